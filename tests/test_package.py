"""The package itself: what it exports, and that importing it is cheap."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

import onetrainer_ema_select as package


def test_version_is_that_of_the_distribution() -> None:
    try:
        installed = metadata.version("onetrainer-ema-select")
    except metadata.PackageNotFoundError:
        pytest.skip("the package is not installed, only found on the path")
    assert installed == package.__version__


@pytest.mark.parametrize("name", package.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(package, name) is not None


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match=r"^module 'onetrainer_ema_select' has no attribute 'nothing'$"):
        _ = package.nothing


@pytest.mark.parametrize(
    "code",
    [
        "import onetrainer_ema_select",
        "import onetrainer_ema_select.cli.app",
        "import onetrainer_ema_select.host.bootstrap",
    ],
)
def test_torch_is_not_imported(code: str) -> None:
    # `--help` must answer at once, and on Windows ZLUDA must be loaded before torch
    said = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint('torch' in sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert said.stdout == "False\n"


def test_run_as_a_module() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "onetrainer_ema_select", "--version"], check=True, capture_output=True, text=True
    )
    assert said.stdout == f"onetrainer-ema-select {package.__version__}\n"
