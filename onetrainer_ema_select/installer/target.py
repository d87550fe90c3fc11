"""Where to install: OneTrainer near this checkout, and the Python of its own environment."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onetrainer_ema_select.errors import HostNotFoundError, InstallError
from onetrainer_ema_select.host.environment import Environment, find_environments, python_in
from onetrainer_ema_select.host.locate import ENVIRONMENT_VARIABLE, checked, is_onetrainer

# Run by the environment's own Python; its answer is ASCII.
_PROBE = """
import json, os, sys, sysconfig
from importlib import metadata
packages = {}
for one in metadata.distributions():
    name = one.metadata["Name"]
    if name and name.lower().replace("_", "-") not in packages:
        packages[name.lower().replace("_", "-")] = one.version
print(json.dumps({
    "version": list(sys.version_info[:3]),
    "prefix": sys.prefix,
    "venv": sys.prefix != sys.base_prefix,
    "conda": os.path.isdir(os.path.join(sys.prefix, "conda-meta")),
    "conda_root": os.path.isdir(os.path.join(sys.prefix, "condabin")),
    "libraries": [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")],
    "scripts": sysconfig.get_path("scripts"),
    "packages": packages,
}))
"""

_SEPARATORS = re.compile(r"[-_.]+")


@dataclass(frozen=True)
class Probed:
    """What the Python of an environment says of itself.

    Attributes:
        python: Its path, as it was found.
        version: Its version's three numbers.
        prefix: The environment's folder.
        kind: `venv`, `conda environment`, `Python of its own`; empty for a global one.
        libraries: Where its packages lie.
        scripts: Where its commands lie.
        packages: Version of each installed package, by normalised name.
    """

    python: Path
    version: tuple[int, ...]
    prefix: Path
    kind: str
    libraries: tuple[Path, ...]
    scripts: Path
    packages: Mapping[str, str]


def find_host(checkout: Path, named: Path | None) -> Path:
    """OneTrainer's folder: the one named, else above the checkout, beside it, around the current folder, at home.

    Raises:
        HostNotFoundError: There is none, or there are several to choose from.
    """
    if named is not None:
        return checked(named, source="the folder given")
    if said := os.environ.get(ENVIRONMENT_VARIABLE):
        return checked(Path(said), source=f"${ENVIRONMENT_VARIABLE}")
    for place in checkout.parents:
        if is_onetrainer(place):
            return place
    beside: list[Path] = []
    with contextlib.suppress(OSError):  # a folder that may not be listed
        beside = sorted(place for place in checkout.parent.iterdir() if place != checkout and is_onetrainer(place))
    by_name = [place for place in beside if place.name.lower() == "onetrainer"]
    if len(by_name or beside) > 1:
        listed = "".join(f"\n  {place}" for place in beside)
        raise HostNotFoundError(
            f"Several folders beside this one are OneTrainer's:{listed}\nGive the one that is meant, after the "
            'script\'s name, in quotes: install.sh "DIR" or install.bat "DIR".',
            path=checkout,
        )
    here = Path.cwd().absolute()
    others = [*by_name, *beside, here, *here.parents, Path.home() / "OneTrainer"]
    for place in others:
        if is_onetrainer(place):
            return place
    raise HostNotFoundError(
        "OneTrainer was not found: not above this folder, not beside it, and not as "
        f"{Path.home() / 'OneTrainer'}. Put {checkout.name} beside OneTrainer's folder, or give that folder after the "
        'script\'s name, in quotes: install.sh "DIR" or install.bat "DIR".',
        path=checkout,
    )


def find_environment(directory: Path, named: Path | None) -> Environment:
    """The environment to install into: the one that was named by its folder or Python, else OneTrainer's own.

    Raises:
        InstallError: There is none.
    """
    if named is not None:
        place = named.expanduser().absolute()
        if (python := place if place.is_file() else python_in(place)) is None:
            raise InstallError(
                f"{place} holds no Python. Give the folder of OneTrainer's environment, or the Python in it.",
                path=place,
            )
        return Environment(place, python, chosen=True)
    found = find_environments(directory)
    if found:
        return found[0]
    script = "install.bat" if os.name == "nt" else "install.sh"
    raise InstallError(
        f"{directory} has no environment of its own: no folder venv or conda_env with a Python in it. Run OneTrainer's "
        f"own {script} first. If its environment lies elsewhere, give it: --python DIR. Nothing is installed into a "
        "Python that other programs use.",
        path=directory,
    )


def probe(python: Path, *, host: Path | None = None) -> Probed:
    """Ask a Python about itself.

    Args:
        python: It.
        host: OneTrainer's folder. A Python that lies in it is its own, whatever it was made with.

    Raises:
        InstallError: It does not start, or is too old.
    """
    try:
        ran = run([python, "-I", "-X", "utf8", "-c", _PROBE])
        answer: dict[str, Any] = json.loads(ran.stdout) if ran.returncode == 0 else {}
        reason = ran.stderr.strip().splitlines()[-1:] or [f"exit code {ran.returncode}"]
    except (OSError, ValueError) as error:
        answer, reason = {}, [str(error)]
    if not answer:
        raise InstallError(
            f"{python} does not start ({reason[0]}). The Python that it was made from may have been removed. "
            "Delete the environment, make it again with OneTrainer's own install script, and run this again.",
            path=python,
        )
    version = tuple(answer["version"])
    if version < (3, 10):
        raise InstallError(
            f"{python} is Python {'.'.join(map(str, version))}; the plugin needs 3.10 or newer, as OneTrainer does. "
            "Update OneTrainer's environment with its own scripts, and run this again.",
            path=python,
            expected="3.10",
            found=".".join(map(str, version)),
        )
    prefix = Path(answer["prefix"])
    kind = ""
    if answer["venv"]:
        kind = "venv"
    elif answer["conda"] and not answer["conda_root"]:
        kind = "conda environment"
    elif host is not None and prefix.resolve().is_relative_to(host.resolve()):
        kind = "Python of its own"
    return Probed(
        python=python,
        version=version,
        prefix=prefix,
        kind=kind,
        libraries=tuple(dict.fromkeys(Path(place) for place in answer["libraries"])),
        scripts=Path(answer["scripts"]),
        packages={_SEPARATORS.sub("-", name): text for name, text in answer["packages"].items()},
    )


def refuse_global(environment: Probed) -> None:
    """Refuse a Python that other programs use as well.

    Raises:
        InstallError: It is one.
    """
    if not environment.kind:
        raise InstallError(
            f"{environment.python} is a Python for all programs, not an environment of OneTrainer. Nothing was "
            "installed. Give the environment that OneTrainer runs in: --python DIR, or run OneTrainer's own install "
            "script to make one.",
            path=environment.python,
        )


def run(command: Iterable[str | Path], *, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with nothing in its environment that could divert Python or pip.

    Raises:
        OSError: It cannot be started.
    """
    command = [str(part) for part in command]
    kept = {key: value for key, value in os.environ.items() if not key.upper().startswith(("PYTHON", "PIP_"))}
    if os.name == "nt":
        # a conda environment that was not activated finds its own libraries this way only
        folder = Path(command[0]).parent
        more = [str(folder), str(folder / "Library" / "bin")]
        kept["PATH"] = os.pathsep.join([*more, kept.get("PATH", "")])
    return subprocess.run(
        command,
        cwd=cwd,
        # no configuration file: one could name a target folder, or versions for other packages
        env={**kept, "PIP_CONFIG_FILE": os.devnull},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
