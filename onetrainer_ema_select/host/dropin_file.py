# Written by `onetrainer-ema-select enable`; `onetrainer-ema-select disable` removes it.
"""Starts the plugin onetrainer-ema-select with OneTrainer. It changes nothing until a config asks for it."""

import functools
import sys
from contextlib import suppress

NOT_STOPPED = "A run that asks for it will not be stopped: "


def stop_runs_that_ask(reason):
    """Without the plugin OneTrainer would drop a config's section without a word, and train for days."""
    from modules.util.config.BaseConfig import BaseConfig
    from modules.util.config.TrainConfig import TrainConfig

    class Types(dict):
        def __missing__(self, key):
            return bool if key == "enabled" else str

    class Section(BaseConfig):
        """Keeps what was written, also where OneTrainer copies or saves the config."""

        def __init__(self):
            super().__init__([])
            self.types = Types()
            self.given = {}

        @staticmethod
        def default_values():
            return Section()

        def from_dict(self, data, migrate=True):
            data = data if isinstance(data, dict) else {"enabled": data}
            # with a version it is a whole section, which a config that was loaded before has no part in
            self.given = {**({} if "__version" in data else self.given), **data}
            return self

        def to_dict(self):
            return {"__version": 0, "enabled": False, **self.given}

        def asks(self):
            return str(self.given.get("enabled")).strip().lower() not in (
                "none",
                "",
                "false",
                "0",
                "no",
                "off",
                "f",
                "n",
            )

    def check(trainer):
        section = getattr(trainer.config, "ema_select", None)
        if not isinstance(section, Section) or not section.asks():
            return
        text = (
            "This config asks for onetrainer-ema-select (ema_select.enabled), which is not active: " + reason + ". "
            "No model was loaded. To train with it, run the plugin's script install again; to train without it, "
            "delete " + __file__
        )

        def start(*args, **kwargs):
            if getattr(trainer, "reattach", False):
                # that training is paid for, and its files are to come home; of its final output only one set will
                trainer.cloud.delete = trainer.cloud.stop
                trainer.cloud.delete_workspace = lambda: None
                print("Only a part of the final output will be fetched, and nothing deleted: " + text, file=sys.stderr)
                return type(trainer).start(trainer)
            with suppress(Exception):
                trainer.callbacks.on_update_status(text)
            if getattr(trainer, "cloud", None) is not None:
                # `end` would do to a cloud machine of an earlier run what `on_error` says, and needs no connection
                trainer.cloud.delete = trainer.cloud.stop = lambda: None
            trainer.error_caught = True
            raise RuntimeError(text)

        trainer.start = start

    def watch_trainers():
        from modules.trainer.BaseTrainer import BaseTrainer

        original = BaseTrainer.__init__

        @functools.wraps(original)
        def init(self, *args, **kwargs):
            original(self, *args, **kwargs)
            check(self)

        BaseTrainer.__init__ = init

    def add_section(config):
        section = Section()
        config.types["ema_select"], config.nullables["ema_select"] = Section, False
        config.default_values["ema_select"] = config.ema_select = section

    original_values = TrainConfig.default_values
    # not before the first config is made: OneTrainer's modules import each other in a circle
    to_do = [watch_trainers]

    @functools.wraps(original_values)
    def default_values():
        config = original_values()
        try:
            while to_do:
                to_do.pop()()
            add_section(config)
        except Exception as error:
            print(NOT_STOPPED + type(error).__name__, error, file=sys.stderr)
            TrainConfig.default_values = staticmethod(original_values)
        return config

    TrainConfig.default_values = staticmethod(default_values)


# An exception here would keep OneTrainer from starting at all, so everything is caught, and an ASCII sentence
# printed: a Windows console may be able to show no more.
try:
    from onetrainer_ema_select.host import arm

    arm()
except Exception as error:
    if isinstance(error, ModuleNotFoundError) and error.name == "onetrainer_ema_select":
        reason = "it is not installed in " + sys.executable
        advice = "Install it there, or delete " + __file__
    else:
        reason = type(error).__name__ + ": " + " ".join(str(error).split())
        advice = "For the details run: onetrainer-ema-select doctor"
    print("OneTrainer runs WITHOUT onetrainer-ema-select, " + reason + ". " + advice, file=sys.stderr)
    try:
        stop_runs_that_ask(reason)
    except Exception as error:
        print(NOT_STOPPED + type(error).__name__, error, file=sys.stderr)
