class TrainProgress:
    """How far a run is; an epoch that is not finished does not count."""

    def __init__(self, epoch=0, epoch_step=0, epoch_sample=0, global_step=0):
        self.epoch = epoch
        self.epoch_step = epoch_step
        self.epoch_sample = epoch_sample
        self.global_step = global_step

    def next_step(self, batch_size):
        self.global_step += 1
        self.epoch_step += 1
        self.epoch_sample += batch_size

    def next_epoch(self):
        self.epoch += 1
        self.epoch_step = 0
        self.epoch_sample = 0

    def filename_string(self):
        return f"{self.global_step}-{self.epoch}-{self.epoch_step}"
