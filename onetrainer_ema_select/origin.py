"""Where this package was installed from, for sentences that tell how to install it again elsewhere."""

from __future__ import annotations

import json
from importlib import metadata
from urllib.parse import urlparse
from urllib.request import url2pathname

PACKAGE = "onetrainer-ema-select"
UNKNOWN = f"/path/to/{PACKAGE}"


def install_source() -> str:
    """What to give to ``pip install``: the folder, file or address that pip noted (PEP 610), quoted for a shell.

    A placeholder for the folder where pip noted none: the package may not be on any index.
    """
    try:
        noted = metadata.distribution(PACKAGE).read_text("direct_url.json")
        origin = json.loads(noted) if noted else {}
        url = str(origin["url"])
    except (metadata.PackageNotFoundError, OSError, ValueError, KeyError, TypeError):
        return UNKNOWN
    if "vcs_info" in origin:
        return f'"{origin["vcs_info"].get("vcs", "git")}+{url}"'
    parts = urlparse(url)
    return f'"{url2pathname(parts.path)}"' if parts.scheme == "file" else f'"{url}"'
