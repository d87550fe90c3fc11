"""What is put into an environment: the wheel, and what an environment must hold already."""

from __future__ import annotations

import email
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from onetrainer_ema_select import __version__
from onetrainer_ema_select.errors import InstallError
from onetrainer_ema_select.installer import packages as installer_packages
from onetrainer_ema_select.installer.packages import (
    install,
    leftovers,
    refuse_incomplete,
    uninstall,
    with_origin,
)
from onetrainer_ema_select.installer.target import Probed
from onetrainer_ema_select.wheel import build_wheel

from .conftest import PACKAGE, copy_clone

ENOUGH = {
    "torch": "2.9.1+cu128",
    "numpy": "1.24",
    "safetensors": "0.4.0",
    "pydantic": "2.10.6",
    "typer": "0.12.0",
    "rich": "13.0",
    "tqdm": "4.60",
}


@pytest.mark.parametrize(
    ("packages", "says"),
    [
        ({**ENOUGH, "pip": "23.0", "torch": "2.4"}, ["torch>=2.5 (there is 2.4)", "Nothing was installed", "update"]),
        ({"pip": "23.0"}, ["torch>=2.5 (not there), numpy>=1.24 (not there)"]),
        (ENOUGH, ["has no pip, so nothing was installed", f'"{Path("/e/bin/python")}" -m ensurepip']),
    ],
)
def test_an_environment_that_needs_more_is_refused(packages: dict[str, str], says: list[str]) -> None:
    environment = Probed(Path("/e/bin/python"), (3, 11, 0), Path("/e"), "venv", (), Path("/e/bin"), packages)
    with pytest.raises(InstallError) as caught:
        refuse_incomplete(environment)
    assert [text for text in says if text not in str(caught.value)] == []


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_origin_is_added_and_nothing_else_changed(tmp_path: Path) -> None:
    plain = contents(wheel := build_wheel(tmp_path / "built"))
    noted = contents(with_origin(wheel, tmp_path / "a b", tmp_path))
    info = f"onetrainer_ema_select-{__version__}.dist-info"
    assert json.loads(noted.pop(f"{info}/direct_url.json")) == {"url": (tmp_path / "a b").as_uri(), "dir_info": {}}
    record = noted.pop(f"{info}/RECORD").decode()
    assert {name: plain[name] for name in noted} == noted
    assert set(plain) - set(noted) == {f"{info}/RECORD"}
    # pip removes what this lists
    assert {line.split(",")[0] for line in record.splitlines()} == {*plain, f"{info}/direct_url.json"}


def test_it_is_the_wheel_that_the_build_tool_makes(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="the project's build tool is not installed")
    clone = copy_clone(tmp_path / "clone")
    code = "from hatchling.build import build_wheel; print(build_wheel('../theirs'))"
    (tmp_path / "theirs").mkdir()
    built = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True, check=True)
    theirs = contents(tmp_path / "theirs" / built.stdout.strip())
    made = build_wheel(tmp_path / "ours", package=clone / PACKAGE.name)
    ours = contents(made)
    assert made.name == built.stdout.strip()
    assert set(ours) == set(theirs)
    info = f"onetrainer_ema_select-{__version__}.dist-info"
    for name in set(ours) - {f"{info}/{own}" for own in ("METADATA", "WHEEL", "RECORD")}:
        assert ours[name].split() == theirs[name].split() if name.endswith(".txt") else ours[name] == theirs[name], name
    both = [email.message_from_bytes(one[f"{info}/METADATA"]) for one in (ours, theirs)]
    for key in ("Name", "Version", "Summary", "Requires-Python"):
        assert both[0][key] == both[1][key], key
    needs = [
        {re.sub(r"\s", "", line) for line in one.get_all("Requires-Dist") or [] if "extra ==" not in line}
        for one in both
    ]
    assert needs[0] == needs[1]
    tags = [email.message_from_bytes(one[f"{info}/WHEEL"]) for one in (ours, theirs)]
    assert [(one["Tag"], one["Root-Is-Purelib"]) for one in tags] == [("py3-none-any", "true")] * 2


@pytest.fixture
def emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Probed:
    """An environment that the package was taken out of by pip, and that does not have to start."""
    libraries, scripts = tmp_path / "venv" / "lib", tmp_path / "venv" / "bin"
    libraries.mkdir(parents=True)
    scripts.mkdir()
    environment = Probed(scripts / "python", (3, 11, 0), tmp_path / "venv", "venv", (libraries,), scripts, {})
    monkeypatch.setattr(installer_packages, "probe", lambda python: environment)
    return environment


def test_a_link_to_the_checkout_goes_and_the_checkout_stays(
    tmp_path: Path, emptied: Probed, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = copy_clone(tmp_path / "clone")
    before = sorted(path for path in clone.rglob("*") if path.is_file())
    for link in (emptied.libraries[0] / PACKAGE.name, emptied.libraries[0] / "~netrainer_ema_select"):
        try:
            link.symlink_to(clone / PACKAGE.name, target_is_directory=True)
        except OSError:
            pytest.skip("no symbolic links here")
    uninstall(emptied, source=clone)
    assert list(emptied.libraries[0].iterdir()) == []
    link.symlink_to(clone / PACKAGE.name, target_is_directory=True)
    there: list[bool] = []
    monkeypatch.setattr(installer_packages, "_pip", lambda *_: there.append(link.is_symlink()))
    old = Probed(**{**vars(emptied), "packages": {"pip": "21.0"}})
    monkeypatch.setattr(installer_packages, "probe", lambda python: old)
    install(old, source=clone, workplace=tmp_path)
    assert there == [False]
    assert sorted(path for path in clone.rglob("*") if path.is_file()) == before


def test_what_belongs_to_another_package_of_a_similar_name_stays(emptied: Probed) -> None:
    [libraries], scripts = emptied.libraries, emptied.scripts
    own = [
        libraries / "onetrainer_ema_select-0.0.1.dist-info" / "METADATA",
        libraries / "onetrainer_ema_select-1.0rc1+local.dist-info" / "METADATA",
        libraries / "onetrainer_ema_select" / "__init__.py",
        libraries / "~netrainer_ema_select" / "errors.py",
        libraries / "~~%trainer_ema_select-0.1.0.dist-info" / "RECORD",
        scripts / "onetrainer-ema-select",
        scripts / "onetrainer-ema-select.exe.deleteme",
    ]
    others = [
        libraries / "onetrainer_ema_select_extra-1.0.dist-info" / "METADATA",
        libraries / "onetrainer_ema_select_extra" / "__init__.py",
        libraries / "onetrainer_ema_select.py",
        libraries / "~netrainer_ema_select_extra" / "errors.py",
        libraries / "~my_onetrainer_ema_select" / "errors.py",
        libraries / "__editable__.onetrainer_ema_select_extra-1.0.pth",
        scripts / "onetrainer-ema-select-extra",
        scripts / "onetrainer-ema-selector.exe",
    ]
    for file in (*own, *others):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert set(leftovers(emptied)) == {file if file.parent == scripts else file.parent for file in own}
    uninstall(emptied, source=PACKAGE.parent)
    assert [file for file in own if file.exists()] == []
    assert [file for file in others if not file.exists()] == []
