class TrainCommands:
    """What a run is asked to do; it looks before each step, when no gradient is pending."""

    def __init__(self, on_command=None):
        self._on_command = on_command
        self._stop = False
        self.reset()

    def reset(self):
        """Forget all but a stop."""
        self._backup = self._save = self._sample_default = False
        self._sample_custom = []

    def set_on_command(self, on_command):
        self._on_command = on_command

    def stop(self):
        self._stop = True
        self._tell()

    def get_stop_command(self):
        return self._stop

    def backup(self):
        self._backup = True
        self._tell()

    def get_and_reset_backup_command(self):
        asked, self._backup = self._backup, False
        return asked

    def save(self):
        self._save = True
        self._tell()

    def get_and_reset_save_command(self):
        asked, self._save = self._save, False
        return asked

    def sample_default(self):
        self._sample_default = True
        self._tell()

    def get_and_reset_sample_default_command(self):
        asked, self._sample_default = self._sample_default, False
        return asked

    def sample_custom(self, sample_params):
        self._sample_custom.append(sample_params)
        self._tell()

    def get_and_reset_sample_custom_commands(self):
        asked, self._sample_custom = self._sample_custom, []
        return asked

    def _tell(self):
        if self._on_command is not None:
            self._on_command(self)
