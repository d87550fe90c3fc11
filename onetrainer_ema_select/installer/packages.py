"""Bring the package into an environment with the environment's own pip, and out again, and touch nothing else."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

from onetrainer_ema_select.errors import InstallError
from onetrainer_ema_select.installer.target import Probed, probe, run
from onetrainer_ema_select.requirements import missing_packages, release
from onetrainer_ema_select.wheel import NAME, build_wheel

_PACKAGE = NAME.replace("-", "_")

# Of the package alone: another package's name may begin with its name. The last is what pip calls it while it removes
# it: the first letters are others, so that nothing imports it.
_LEFT = re.compile(
    rf"{_PACKAGE}|{_PACKAGE}-\d[^-]*\.dist-info"
    rf"|__editable__\.{_PACKAGE}-\d.*\.pth|__editable___{_PACKAGE}_\d.*_finder\.py"
    r"|~[-~.=%\d]*n?e?trainer_ema_select(-\d[^-]*\.dist-info)?"
)
_COMMANDS = (NAME, f"{NAME}.exe", f"{NAME}.exe.deleteme")

#: The first pip that can say what it would do without doing it.
_PIP_WITH_REPORT = (22, 3)


def refuse_incomplete(environment: Probed) -> None:
    """Refuse an environment that would need more than the plugin itself.

    Raises:
        InstallError: Naming all that is missing, and what to type.
    """
    if "pip" not in environment.packages:
        raise InstallError(
            f"{environment.prefix} has no pip, so nothing was installed. Put it there, and run this again: "
            f'"{environment.python}" -m ensurepip',
            path=environment.prefix,
        )
    if missing := missing_packages(environment.packages.get):
        raise InstallError(
            f"{environment.prefix} lacks what the plugin needs: {', '.join(missing)}. Nothing was installed. "
            "OneTrainer itself needs these: run its own update script, which installs them, and run this again.",
            path=environment.prefix,
            found=", ".join(missing),
        )


def install(environment: Probed, *, source: Path, workplace: Path) -> Probed:
    """Install the package from its source, instead of any version that is there, older, newer or the same.

    Args:
        environment: Where to; its other packages stay as they are.
        source: The checkout. The environment notes that the package came from there.
        workplace: A folder for what is only needed meanwhile.

    Returns:
        The environment as it is afterwards.

    Raises:
        InstallError: pip would do more than that, or could not do it.
    """
    wheel = with_origin(build_wheel(workplace / "built", package=source / _PACKAGE), source, workplace)
    command = ["install", "--no-deps", "--no-index", "--force-reinstall", "--no-warn-script-location"]
    # by its folder, not its file: pip would note the file, which is gone soon, as the package's origin
    command += ["--find-links", str(wheel.parent), f"{NAME}=={wheel.name.split('-')[1]}"]
    if release(environment.packages["pip"]) >= _PIP_WITH_REPORT:
        report = workplace / "report.json"
        _pip(environment, [*command, "--dry-run", "--quiet", "--report", str(report)])
        entries = json.loads(report.read_text(encoding="utf-8"))["install"]
        names = [entry["metadata"]["name"] for entry in entries]
        if names != [NAME]:
            raise InstallError(
                f"pip would install {', '.join(names) or 'nothing'} into {environment.prefix}, and not {NAME} alone. "
                "Nothing was installed. Report this, with the version of pip: "
                f"{environment.packages['pip']}.",
                path=environment.prefix,
            )
    for place in list(leftovers(environment)):
        if is_link(place):
            place.unlink()  # pip would write through it, into what it leads to
    _pip(environment, command)
    return _unchanged_but_ours(environment)


def uninstall(environment: Probed, *, source: Path) -> Probed:
    """Remove the package, what Python compiled of it, and what an interrupted removal has left.

    Args:
        environment: Where from.
        source: The checkout; by it a file is known as the package's where pip has no list any more.

    Returns:
        The environment as it is afterwards.

    Raises:
        InstallError: If something of it could not be removed.
    """
    if NAME in environment.packages:
        _pip(environment, ["uninstall", "--yes", NAME])
    for place in list(leftovers(environment)):
        if is_link(place):
            # what it leads to, a checkout for instance, is not the environment's
            with contextlib.suppress(OSError):
                place.unlink()
            continue
        for file in [place] if place.is_file() else [*sorted(place.rglob("*"), reverse=True), place]:
            # what cannot be removed is named below
            with contextlib.suppress(OSError):
                if _is_ours(file, place, source / _PACKAGE):
                    file.rmdir() if file.is_dir() else file.unlink()
    after = _unchanged_but_ours(environment)
    if left := [str(place) for place in leftovers(environment)]:
        raise InstallError(
            f"These could not be removed, or hold files that are not the package's: {', '.join(left)}. Close "
            "OneTrainer and every window in which the plugin was used, look at them, and delete them.",
            path=left[0],
        )
    return after


def leftovers(environment: Probed) -> Iterator[Path]:
    """Files and folders of the package that lie in the environment; pip renames what it cannot delete at once."""
    for folder in environment.libraries:
        with contextlib.suppress(OSError):  # a folder that is not there
            yield from sorted(place for place in folder.iterdir() if _LEFT.fullmatch(place.name))
    for command in _COMMANDS:
        if os.path.lexists(place := environment.scripts / command):
            yield place


def is_link(place: Path) -> bool:
    """Whether it is a symbolic link, or what takes a folder to another place on Windows."""
    found = place.lstat()
    junction = getattr(found, "st_reparse_tag", 0) == getattr(stat, "IO_REPARSE_TAG_MOUNT_POINT", -1)
    return stat.S_ISLNK(found.st_mode) or junction


def _is_ours(file: Path, place: Path, package: Path) -> bool:
    """Whether a file, or an empty folder, below what `leftovers` found may go."""
    if file.is_dir():
        return not any(file.iterdir())
    if place.name in _COMMANDS:
        return True
    if place.name.startswith("~") or place.suffix == ".dist-info" or file.suffix == ".pyc":
        return True  # pip's own, and what Python compiled
    return (package / file.relative_to(place)).is_file()


def with_origin(wheel: Path, source: Path, workplace: Path) -> Path:
    """A copy of a wheel that tells where the package came from, as pip itself notes it (PEP 610).

    The wheel is gone when the package is installed; the folder that it was made of is what can be installed again.
    """
    folder = workplace / "links"
    folder.mkdir()
    copied = folder / wheel.name
    noted = json.dumps({"dir_info": {}, "url": source.as_uri()}).encode()
    digest = base64.urlsafe_b64encode(hashlib.sha256(noted).digest()).rstrip(b"=").decode()
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(copied, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith(".dist-info/RECORD"):
                name = entry.filename.removesuffix("RECORD") + "direct_url.json"
                new.writestr(name, noted)
                content = f"{name},sha256={digest},{len(noted)}\n".encode() + content
            new.writestr(entry, content)
    return copied


def _pip(environment: Probed, arguments: list[str]) -> None:
    pip = ("-I", "-X", "utf8", "-m", "pip", "--isolated", "--disable-pip-version-check", "--no-input")
    ran = run([environment.python, *pip, *arguments])
    if ran.returncode != 0:
        said = "\n".join(f"  {line}" for line in (ran.stderr or ran.stdout).strip().splitlines()[-12:])
        raise InstallError(
            f"pip could not {arguments[0]} it, exit code {ran.returncode}:\n{said}\nClose OneTrainer, look whether you "
            f"may write into {environment.prefix}, and run this again.",
            path=environment.prefix,
        )


def _unchanged_but_ours(environment: Probed) -> Probed:
    after = probe(environment.python)
    others = [{**one.packages, NAME: ""} for one in (environment, after)]
    if others[0] != others[1]:
        changed = sorted(
            f"{name} {others[0].get(name, '(not there)')} -> {others[1].get(name, '(gone)')}"
            for name in others[0].keys() | others[1].keys()
            if others[0].get(name) != others[1].get(name)
        )
        raise InstallError(
            f"Other packages of {environment.prefix} changed meanwhile: {', '.join(changed)}. This program does not do "
            "that; if no other one was at work there, report it. OneTrainer's own update script puts its packages "
            "right.",
            path=environment.prefix,
        )
    return after
