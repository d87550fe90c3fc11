"""What the package needs of the environment that it is in, by the standard library alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import metadata

from onetrainer_ema_select.wheel import REQUIRES

_RELEASE = re.compile(r"\d+(?:\.\d+)*")


def installed_version(name: str) -> str | None:
    """The version of a package in this Python, None where it is missing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def required() -> dict[str, str]:
    """The packages that are needed, each with the lowest version that will do."""
    pairs = (requirement.partition(">=") for requirement in REQUIRES)
    return {name: at_least for name, _, at_least in pairs}


def missing_packages(version_of: Callable[[str], str | None] = installed_version) -> list[str]:
    """What is needed and is not there, each with what was found.

    Args:
        version_of: Tells a package's version, None where it is missing.
    """
    missing = []
    for name, at_least in required().items():
        version = version_of(name)
        if version is None:
            missing.append(f"{name}>={at_least} (not there)")
        elif release(version) < release(at_least):
            missing.append(f"{name}>={at_least} (there is {version})")
    return missing


def release(version: str) -> tuple[int, ...]:
    """A version's numbers, to be compared, without trailing zeros: 2.10 and 2.10.0 are the same."""
    found = _RELEASE.match(version)
    numbers = [int(number) for number in found[0].split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
