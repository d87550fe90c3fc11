"""A wheel of this package, made from its own files with the standard library alone.

For machines that the package has to be carried to as it is here: an archive that `pip install --no-deps` takes, and
no build tool, network or index. Imports nothing of the package, so that it also runs as a file, in a Python that
has none of what the package needs: `python onetrainer_ema_select/wheel.py FOLDER`.
"""

from __future__ import annotations

import base64
import hashlib
import re
import sys
import zipfile
from pathlib import Path

NAME = "onetrainer-ema-select"
_MODULE = NAME.replace("-", "_")
_SUMMARY = "Keep, save and choose between the EMA and the non-EMA weights of a OneTrainer run."
_LICENSE = "AGPL-3.0-or-later"

#: As in pyproject.toml, which an installed package does not have any more; a test compares the two.
REQUIRES_PYTHON = ">=3.10"
REQUIRES = ("torch>=2.5", "numpy>=1.24", "safetensors>=0.4", "pydantic>=2.10", "typer>=0.12", "rich>=13", "tqdm>=4.60")
SCRIPT = "onetrainer_ema_select.cli.app:main"

_WHEEL = f"Wheel-Version: 1.0\nGenerator: {NAME}\nRoot-Is-Purelib: true\nTag: py3-none-any\n"

# The same files give the same bytes, whenever and wherever they were installed.
_DATE = (2020, 1, 1, 0, 0, 0)
_MODE = 0o100644 << 16

# Of an installed package first: beside it lies whatever another package has put there.
_LICENSE_PLACES = (f"{_MODULE}-*.dist-info/licenses/LICENSE", f"{_MODULE}-*.dist-info/LICENSE", "LICENSE")


def build_wheel(folder: Path, *, package: Path | None = None) -> Path:
    """Write the wheel.

    Args:
        folder: Where to; made if missing.
        package: The package's folder; this file's own by default.

    Returns:
        The file, whose name pip reads the version from.

    Raises:
        OSError: If a file cannot be read, or the wheel not be written.
        ValueError: If the folder is not this package.
    """
    package = package or Path(__file__).resolve().parent
    version = version_of(package)
    info = f"{_MODULE}-{version}.dist-info"
    contents = {f"{_MODULE}/{name}": content for name, content in _files(package).items()}
    contents[f"{info}/METADATA"] = _metadata(version).encode()
    contents[f"{info}/WHEEL"] = _WHEEL.encode()
    contents[f"{info}/entry_points.txt"] = f"[console_scripts]\n{NAME} = {SCRIPT}\n".encode()
    license_file = next((file for place in _LICENSE_PLACES for file in package.parent.glob(place)), None)
    if license_file is not None:
        contents[f"{info}/licenses/LICENSE"] = license_file.read_bytes()
    record = "".join(f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in contents.items())
    contents[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{_MODULE}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name, _DATE)
            entry.external_attr = _MODE
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return wheel


def fingerprint(package: Path | None = None) -> str:
    """A SHA-256 over all files of the package: the same here and where its wheel was installed.

    Args:
        package: The package's folder; this file's own by default.

    Raises:
        OSError: If a file cannot be read.
    """
    files = _files(package or Path(__file__).resolve().parent)
    total = hashlib.sha256()
    for name, content in files.items():
        total.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return total.hexdigest()


def _files(package: Path) -> dict[str, bytes]:
    """Contents by path inside the package, with forward slashes."""
    found = {
        file.relative_to(package).as_posix(): file.read_bytes()
        for file in package.rglob("*")
        if file.is_file() and "__pycache__" not in file.relative_to(package).parts and file.suffix != ".pyc"
    }
    return dict(sorted(found.items()))


def version_of(package: Path) -> str:
    """The version that the package's source names.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it names none.
    """
    source = package / "__init__.py"
    found = re.search(r'^__version__ = "([^"]+)"$', source.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise ValueError(f"{source} names no version, so {package} is not the package {NAME}.")
    return found[1]


def _metadata(version: str) -> str:
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {NAME}",
        f"Version: {version}",
        f"Summary: {_SUMMARY}",
        f"License: {_LICENSE}",
        f"Requires-Python: {REQUIRES_PYTHON}",
        *(f"Requires-Dist: {requirement}" for requirement in REQUIRES),
    ]
    return "\n".join(lines) + "\n"


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.stderr.write(f"Usage: python {Path(__file__).name} FOLDER\n")
        sys.exit(2)
    sys.stdout.write(f"{build_wheel(Path(sys.argv[1]))}\n")
