"""What may be shown of an error of a cloud run: OneTrainer's commands have passwords and tokens in them."""

from __future__ import annotations

import subprocess
from pathlib import PurePath
from typing import Any


def described(error: BaseException, config: Any) -> str:
    """Say an error in a sentence without the secrets of a configuration.

    Args:
        error: Of a command, of the connection or of the plugin.
        config: OneTrainer's configuration with its `secrets`.
    """
    if isinstance(error, subprocess.CalledProcessError):
        words = [error.cmd] if isinstance(error.cmd, str) else [str(word) for word in error.cmd]
        # `sshpass -p PASSWORD scp ...` is a call of scp
        name = "scp" if "scp" in words else PurePath(words[0].split(" ", 1)[0]).name
        return f"{name} ended with {error.returncode}; what it said is on the console."
    text = str(error) or type(error).__name__
    secrets = getattr(config, "secrets", None)
    places = ((getattr(secrets, "cloud", None), ("password", "api_key")), (secrets, ("huggingface_token",)))
    for owner, names in places:
        for name in names:
            value = str(getattr(owner, name, "") or "").strip()
            if value:
                text = text.replace(value, "***")
    return text
