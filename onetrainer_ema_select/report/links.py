"""Links from the page to the files of the run."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote


def url(path: Path, folder: Path) -> str:
    """A link from a page in a folder to a file, which may have any name."""
    try:
        relative = Path(os.path.relpath(path.absolute(), folder.absolute()))
    except ValueError:  # another drive of Windows
        return path.absolute().as_uri()
    quoted = quote(os.fsencode(relative.as_posix()), safe="/")
    return quoted if quoted.startswith("../") else f"./{quoted}"
