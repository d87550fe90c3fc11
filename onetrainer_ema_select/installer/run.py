"""Install or uninstall from start to end, in words that stay readable in a window."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from onetrainer_ema_select import __version__
from onetrainer_ema_select.errors import EmaSelectError, InstallError
from onetrainer_ema_select.host import dropin
from onetrainer_ema_select.host.environment import find_environments
from onetrainer_ema_select.installer import packages
from onetrainer_ema_select.installer.target import (
    Probed,
    find_environment,
    find_host,
    probe,
    refuse_global,
    run,
)
from onetrainer_ema_select.wheel import NAME

CHECKOUT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say.

    Returns:
        0 done, 1 could not, 2 wrong usage (as `SystemExit`).
    """
    for stream in (sys.stdout, sys.stderr):
        # a console that cannot show a character of a path must not turn a report into a traceback
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    asked = parser().parse_args(arguments)
    try:
        refuse_installed(CHECKOUT)
        host = find_host(CHECKOUT, asked.directory)
        say(f"OneTrainer   {host}")
        if asked.uninstall:
            return uninstall(host, asked.python)
        return install(host, asked.python)
    except (EmaSelectError, OSError) as error:
        say("")
        say(f"NOT DONE. {error}")
        return 1


def parser() -> argparse.ArgumentParser:
    """What can be typed after the script's name."""
    made = argparse.ArgumentParser(
        prog="install",
        description=f"Install {NAME} {__version__} into OneTrainer's own environment, enable it and check it. Run it "
        "again to upgrade, or when OneTrainer's environment was made anew.",
    )
    made.add_argument(
        "directory",
        metavar="DIR",
        nargs="?",
        type=typed_folder,
        help="OneTrainer's folder. Default: $ONETRAINER_DIR, above this folder, beside it, ~/OneTrainer",
    )
    made.add_argument(
        "--python",
        metavar="DIR",
        type=typed_folder,
        help="the environment that OneTrainer runs in, where it does not lie in its folder",
    )
    made.add_argument("--uninstall", action="store_true", help="take the plugin out again (as the script uninstall)")
    return made


def refuse_installed(checkout: Path) -> None:
    """Refuse to run as the package that was installed, whose folder is that of all packages.

    Raises:
        InstallError: What is there is not this project's folder.
    """
    if not all((checkout / name).is_file() for name in ("pyproject.toml", "install.sh")):
        raise InstallError(
            f"This was started from {checkout}, which is not the project's folder: it has no pyproject.toml and "
            "install.sh. Nothing was changed. Run the script in the folder that the plugin was installed from. Without "
            f"it, take the plugin out by hand: {NAME} disable, then the environment's own pip: "
            f'"{sys.executable}" -m pip uninstall {NAME}',
            path=checkout,
        )


def typed_folder(text: str) -> Path:
    r"""A folder as it was typed. On Windows the last quote of `"D:\One Trainer\"` comes with it."""
    return Path(text.rstrip('"') if os.name == "nt" else text)


def install(host: Path, named: Path | None) -> int:
    """Install, enable, check.

    Raises:
        EmaSelectError: Nothing was installed, or not all.
    """
    environment = open_environment(host, named)
    refuse_global(environment)
    packages.refuse_incomplete(environment)
    with tempfile.TemporaryDirectory(prefix="ema-select-") as folder:
        after = packages.install(environment, source=CHECKOUT, workplace=Path(folder))
    before = environment.packages.get(NAME)
    was = f"instead of {before}" if before is not None else "new"
    say(f"installed    {NAME} {after.packages[NAME]} ({was}); no other package was changed")
    # by the package that was installed, so that the file is the one that this version writes
    ours = (str(after.python), "-I", "-X", "utf8", "-m", "onetrainer_ema_select")
    enabled = run([*ours, "enable", str(host)], cwd=host)
    if enabled.returncode != 0:
        raise InstallError(
            f"It is installed, but could not be enabled: {(enabled.stderr or enabled.stdout).strip()}", path=host
        )
    say(f"enabled      {dropin.dropin_path(host)}")
    checked = run([*ours, "doctor", str(host), "--json"], cwd=host)
    try:
        report = json.loads(checked.stdout)
    except ValueError:
        raise InstallError(
            f"It is installed and enabled, but could not be checked: {checked.stderr.strip()[-2000:]}\nFor the details "
            f'run: "{after.python}" -m onetrainer_ema_select doctor "{host}"',
            path=host,
        ) from None
    seams = [seam for key, found in report.items() if key.endswith("seams") for seam in found]
    say(f"checked      {sum(seam['ok'] for seam in seams)} of {len(seams)} places in OneTrainer are as expected")
    for seam in seams:
        if not seam["ok"]:
            say(f"  NOT  {seam['sentence']}")
    if not report["ok"]:
        say("")
        trains = all(seam["ok"] for seam in report["seams"]) and all(report["packages"].values())
        heading = "INSTALLED, BUT A PART DOES NOT FIT. " if trains else "INSTALLED, BUT IT DOES NOT FIT. "
        say(heading + " ".join(report["advice"]))
        return 1
    say("")
    say(f"DONE. {NAME} {after.packages[NAME]} is installed and starts with OneTrainer.")
    say("It changes nothing until a run's config turns it on:")
    say('  "ema_select": {"enabled": true}')
    say("How to go on: docs/first-run.md. To take it out again: the script uninstall beside this one.")
    return 0


def uninstall(host: Path, named: Path | None) -> int:
    """Disable, and remove the package. What was trained stays.

    Raises:
        EmaSelectError: Something is still there.
    """
    removed = dropin.disable(host)
    say(f"disabled     {dropin.dropin_path(host)} {'is removed' if removed else 'was not there'}")
    if named is None and not find_environments(host):
        say("environment  none there, so there is no package in it either")
    else:
        environment = open_environment(host, named)
        before = environment.packages.get(NAME)
        if before is None and not any(packages.leftovers(environment)):
            say("uninstalled  nothing: the package was not there")
        else:
            packages.uninstall(environment, source=CHECKOUT)
            say(f"uninstalled  {NAME} {before or '(what was left of it)'}; no other package was changed")
    say("")
    say("DONE. OneTrainer runs without the plugin. Your backups and models stay, and plain OneTrainer can use them.")
    say(f"You can delete this folder now: {CHECKOUT}")
    return 0


def open_environment(host: Path, named: Path | None) -> Probed:
    """Find OneTrainer's environment and say which it is.

    Raises:
        InstallError: There is none, or it does not run.
    """
    found = find_environment(host, named)
    environment = probe(found.python, host=host)
    version = ".".join(map(str, environment.version))
    say(f"environment  {environment.prefix} ({environment.kind or 'global'}, Python {version})")
    if not found.chosen:
        say("             OneTrainer's own scripts would look for another one, which is not there.")
    elif named is None and (others := [str(other.folder) for other in find_environments(host)[1:]]):
        say(f"             as OneTrainer's own scripts choose; --python DIR takes another: {', '.join(others)}")
    return environment


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
