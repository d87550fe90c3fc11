"""Where OneTrainer is, and which commit of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from onetrainer_ema_select.errors import HostNotFoundError
from onetrainer_ema_select.host.environment import find_environments

ENVIRONMENT_VARIABLE = "ONETRAINER_DIR"
TRAIN_SCRIPT = Path("scripts", "train.py")
MARKERS = (
    Path("modules", "trainer", "GenericTrainer.py"),
    Path("modules", "util", "config", "TrainConfig.py"),
)


def is_onetrainer(directory: Path) -> bool:
    """Whether a folder is a OneTrainer checkout (or stands in for one). One that may not be entered is none."""
    try:
        return (directory / TRAIN_SCRIPT).is_file() and any((directory / marker).is_file() for marker in MARKERS)
    except OSError:
        return False


def find_onetrainer(explicit: Path | None = None, *, start: Path | None = None) -> Path:
    """The OneTrainer folder, as an absolute path.

    What was named, by `explicit` or `$ONETRAINER_DIR`, is taken or refused, never replaced by another folder.
    Where nothing was named: the current folder, its parents, `~/OneTrainer`.

    Args:
        explicit: The folder the user named.
        start: Searched instead of the current folder.

    Raises:
        HostNotFoundError: None of the places looked at is one; the message names them all.
    """
    if explicit is not None:
        return checked(explicit, source="the folder given")
    if named := os.environ.get(ENVIRONMENT_VARIABLE):
        return checked(Path(named), source=f"${ENVIRONMENT_VARIABLE}")
    here = (start or Path.cwd()).absolute()
    places = [here, *here.parents]
    home = Path.home() / "OneTrainer"
    if home not in places:
        places.append(home)
    for place in places:
        if is_onetrainer(place):
            return place
    listed = "".join(f"\n  {place}" for place in places)
    raise HostNotFoundError(
        f"OneTrainer was not found. Looked at:{listed}\n"
        f"Give its folder, with --onetrainer DIR or in ${ENVIRONMENT_VARIABLE}.",
        path=str(here),
        expected=TRAIN_SCRIPT.as_posix(),
    )


def checked(directory: Path, *, source: str) -> Path:
    """`directory` as an absolute path, where it is OneTrainer's.

    Raises:
        HostNotFoundError: It is not.
    """
    place = directory.expanduser().absolute()
    if is_onetrainer(place):
        return place
    found = "has no scripts/train.py beside modules/"
    try:
        if not place.is_dir():
            found = "does not exist"
        elif not os.access(place, os.X_OK):
            found = "may not be entered by you"
    except OSError as error:
        found = f"cannot be looked at ({error.strerror})"
    raise HostNotFoundError(
        f"{place} ({source}) is not OneTrainer: it {found}. "
        "Give the folder that holds OneTrainer's scripts and modules.",
        path=str(place),
        expected=TRAIN_SCRIPT.as_posix(),
        found=found,
    )


def host_python(directory: Path) -> Path | None:
    """The Python that OneTrainer's own scripts run with, or of another environment of its own."""
    return next((environment.python for environment in find_environments(directory)), None)


def python_without_package(directory: Path) -> Path | None:
    """OneTrainer's own Python, where this package is not installed in it; else None.

    A usual mistake: the package is installed beside OneTrainer's environment, not into it. Nothing is run to
    find out; an installation, editable or not, leaves a folder of metadata.
    """
    python = host_python(directory)
    if python is None or Path(sys.prefix).resolve() in (folder.resolve() for folder in python.parents):
        return None
    # POSIX, then Windows
    for pattern in ("lib/python*/site-packages", "Lib/site-packages"):
        for environment in python.parents[:2]:
            if any(environment.glob(f"{pattern}/onetrainer_ema_select-*.dist-info")):
                return None
    return python


def host_commit(directory: Path) -> str | None:
    """The commit that is checked out in `directory`; None where that cannot be told.

    Git's files are read by hand: git need not be installed, and refuses folders of another owner.
    """
    try:
        return read_commit(directory / ".git")
    except (OSError, UnicodeDecodeError):
        return None


def read_commit(git: Path) -> str | None:
    """The commit of a `.git` folder, or of the `.git` file of a worktree or submodule."""
    if git.is_file():
        pointer = git.read_text(encoding="utf-8").strip()
        if not pointer.startswith("gitdir:"):
            return None
        git = git.parent / pointer.removeprefix("gitdir:").strip()
    head = (git / "HEAD").read_text(encoding="utf-8").strip()
    if not head.startswith("ref:"):
        return head if is_hash(head) else None
    reference = head.removeprefix("ref:").strip()
    # a worktree keeps its own HEAD, the branches lie in the folder it shares
    folders = [git]
    if (shared := git / "commondir").is_file():
        folders.append(git / shared.read_text(encoding="utf-8").strip())
    for folder in folders:
        if (loose := folder / reference).is_file():
            commit = loose.read_text(encoding="utf-8").strip()
            return commit if is_hash(commit) else None
    for folder in folders:
        if (packed := folder / "packed-refs").is_file():
            for line in packed.read_text(encoding="utf-8").splitlines():
                commit, _, name = line.partition(" ")
                if name.strip() == reference and is_hash(commit):
                    return commit
    return None


def is_hash(text: str) -> bool:
    """Whether a text is a git object name: 40 (SHA-1) or 64 (SHA-256) hexadecimal digits."""
    return len(text) in (40, 64) and all(digit in "0123456789abcdef" for digit in text)
