"""One training from a configuration file."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[1]))

from modules.util import create
from modules.util.args.TrainArgs import TrainArgs
from modules.util.callbacks.TrainCallbacks import TrainCallbacks
from modules.util.commands.TrainCommands import TrainCommands
from modules.util.config.SecretsConfig import SecretsConfig
from modules.util.config.TrainConfig import TrainConfig


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def override(config, assignment):
    """Set one value, given as `part.key=value`."""
    key, _, value = assignment.partition("=")
    *sections, name = key.split(".")
    for section in sections:
        config = getattr(config, section)
    if config.types[name] is bool:
        value = value.lower() in ("true", "1", "yes")
    config.from_dict({name: value}, migrate=False)


def main():
    args = TrainArgs.parse_args()
    config = TrainConfig.default_values()
    if args.preset_path is not None:
        config.from_dict(read_json(args.preset_path), migrate=False)
    config.from_dict(read_json(args.config_path), migrate=args.preset_path is None)
    for assignment in args.config_values or []:
        override(config, assignment)
    if args.secrets_path is not None:
        config.secrets = SecretsConfig.default_values().from_dict(read_json(args.secrets_path))

    trainer = create.create_trainer(config, TrainCallbacks(), TrainCommands())
    trainer.start()
    canceled = False
    try:
        trainer.train()
    except KeyboardInterrupt:
        canceled = True
    if not canceled or config.backup_before_save:
        trainer.end()


if __name__ == "__main__":
    main()
