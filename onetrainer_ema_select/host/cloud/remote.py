"""What is asked of the plugin on the cloud machine: `python -m onetrainer_ema_select.host.cloud.remote`.

Runs in OneTrainer's folder with OneTrainer's Python, and prints one line for the machine that asks. Imports nothing
but the standard library until it has found out what is there.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from importlib import import_module
from pathlib import Path

from onetrainer_ema_select import __version__
from onetrainer_ema_select.errors import SECTION
from onetrainer_ema_select.host import dropin
from onetrainer_ema_select.host.seams import check_source, mismatches
from onetrainer_ema_select.requirements import missing_packages
from onetrainer_ema_select.wheel import fingerprint

MARKER = "onetrainer-ema-select-report "


def main(arguments: list[str]) -> int:
    """Print the report; `enable` puts the drop-in there first, `probe` has OneTrainer load it."""
    folder = Path.cwd()
    problems = []
    if "enable" in arguments:
        try:
            dropin.enable(folder)
        except Exception as error:  # noqa: BLE001 - told to the one who asks, who stops
            problems.append(str(error))
    if not dropin.is_current(folder):
        problems.append(f"it is not enabled in {folder}")
    problems += [f"{sys.executable} lacks {missing}" for missing in missing_packages()]
    problems += mismatches(check_source(folder))
    if "probe" in arguments and not problems:
        problems += probe(folder)
    report = {
        "version": __version__,
        "fingerprint": fingerprint(),
        "python": sys.executable,
        "onetrainer": str(folder),
        "problems": problems,
    }
    # On a line of its own, whatever OneTrainer's modules have printed.
    sys.stdout.write(f"\n{MARKER}{json.dumps(report)}\n")
    return 0


def probe(folder: Path) -> list[str]:
    """Have OneTrainer import the drop-in as a training does, and see whether the plugin has come with it."""
    sys.path.insert(0, str(folder))
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            import_module("modules.util.create")
            config = import_module("modules.util.config.TrainConfig").TrainConfig.default_values()
    except Exception as error:  # noqa: BLE001 - no training would start either
        return [f"OneTrainer cannot be loaded there: {type(error).__name__}: {error}"]
    if not hasattr(config, SECTION):
        return [f"OneTrainer starts without it: {said.getvalue().strip() or 'it says no reason'}"]
    from onetrainer_ema_select.host.install import install

    return list(install())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
