"""The configuration that a backup was made with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onetrainer_ema_select.manifest import CONFIG_NAME, FOLDER

HOST_CONFIG = Path("onetrainer_config", "args.json")
#: Where a backup keeps the configuration that it was made with: OneTrainer's own copy, else the plugin's.
CONFIG_PLACES = (HOST_CONFIG, Path(FOLDER, CONFIG_NAME))


def read_config(folder: Path) -> dict[str, Any] | None:
    """The configuration that a backup was made with: OneTrainer's own copy, else the plugin's."""
    for path in (folder / place for place in CONFIG_PLACES):
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(config, dict):
            return config
    return None
