"""`doctor`: against the stand-in, which has every seam, and against one that is spoilt."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

import onetrainer_ema_select
from onetrainer_ema_select import __version__
from onetrainer_ema_select.host import dropin
from onetrainer_ema_select.host.seams import (
    CLOUD_SEAMS,
    COMPONENT_SEAMS,
    EXPORT_SEAMS,
    SEAMS,
    VALIDATION_SEAMS,
    WINDOW_SEAMS,
)
from onetrainer_ema_select.origin import install_source

Command = Callable[..., "tuple[int, str, str]"]

EMA = Path("modules", "module", "EMAModule.py")


@pytest.fixture
def standin(tmp_path: Path) -> Path:
    source = Path(onetrainer_ema_select.__file__).parent / "demo" / "standin"
    return Path(shutil.copytree(source, tmp_path / "standin"))


def spoil(standin: Path) -> None:
    """Rename a parameter that the plugin passes."""
    path = standin / EMA
    text = path.read_text(encoding="utf-8")
    assert "store_temp" in text
    path.write_text(text.replace("store_temp", "keep"), encoding="utf-8")


def test_everything_fits(command: Command, standin: Path) -> None:
    code, out, err = command("doctor", standin)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    versions = ", ".join(
        f"{name} {metadata.version(name)}"
        for name in ("torch", "numpy", "safetensors", "pydantic", "typer", "rich", "tqdm")
    )
    assert lines[:6] == [
        f"OneTrainer   {standin}",
        "commit       unknown (not a git checkout)",
        f"plugin       onetrainer-ema-select {__version__}, not enabled in this OneTrainer",
        f"Python       {platform.python_version()}, {sys.executable}",
        f"packages     {versions}",
        "",
    ]
    seams = lines[6 : 6 + len(SEAMS)]
    assert all(line.startswith("ok   modules.") for line in seams)
    assert "ok   modules.util.create:create_ema: found (parameters, state_dict, config), as expected" in seams
    assert lines[6 + len(SEAMS) :] == [
        "",
        f"{len(SEAMS)} of {len(SEAMS)} seams are as expected.",
        f"{len(EXPORT_SEAMS)} of {len(EXPORT_SEAMS)} seams of export are as expected.",
        f"{len(VALIDATION_SEAMS)} of {len(VALIDATION_SEAMS)} seams of validation are as expected.",
        f'Nothing to mend. To start the plugin with OneTrainer: onetrainer-ema-select enable "{standin}"; '
        "for one run only: onetrainer-ema-select train --config-path FILE",
    ]


def test_a_changed_seam(command: Command, standin: Path) -> None:
    spoil(standin)
    code, out, err = command("doctor", standin)
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert [line for line in lines if line.startswith("NOT ")] == [
        "NOT  modules.module.EMAModule:EMAModuleWrapper.copy_ema_to: "
        "found (self, parameters, keep), expected (self, parameters, store_temp)"
    ]
    assert lines[-4:] == [
        f"{len(SEAMS) - 1} of {len(SEAMS)} seams are as expected.",
        f"{len(EXPORT_SEAMS)} of {len(EXPORT_SEAMS)} seams of export are as expected.",
        f"{len(VALIDATION_SEAMS)} of {len(VALIDATION_SEAMS)} seams of validation are as expected.",
        "This OneTrainer is not one that the plugin knows, so it refuses to run with it. "
        f"Get a newer version of the plugin and install it: pip install --upgrade {install_source()}",
    ]


def test_a_seam_of_export_that_has_changed(command: Command, standin: Path) -> None:
    file = standin / "modules" / "modelLoader" / "mixin" / "InternalModelLoaderMixin.py"
    file.write_text(file.read_text().replace("(self, model, model_name)", "(self, model)"), encoding="utf-8")
    code, out, err = command("doctor", standin)
    assert (code, err) == (1, "")
    assert out.splitlines()[-5:] == [
        f"{len(SEAMS)} of {len(SEAMS)} seams are as expected.",
        "NOT  for export: modules.modelLoader.mixin.InternalModelLoaderMixin:InternalModelLoaderMixin."
        "_load_internal_data: found (self, model), expected (self, model, model_name)",
        f"{len(EXPORT_SEAMS) - 1} of {len(EXPORT_SEAMS)} seams of export are as expected.",
        f"{len(VALIDATION_SEAMS)} of {len(VALIDATION_SEAMS)} seams of validation are as expected.",
        "The plugin can train with this OneTrainer, but not export from its backups. Get a newer version of the "
        f"plugin and install it: pip install --upgrade {install_source()}",
    ]


def test_a_validation_that_has_changed(command: Command, standin: Path) -> None:
    file = standin / "modules" / "trainer" / "GenericTrainer.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("def __validate(self, train_progress)", "def __check(self, train_progress)"))
    code, out, err = command("doctor", standin)
    assert (code, err) == (1, "")
    assert out.splitlines()[-3:] == [
        "NOT  for validation: modules.trainer.GenericTrainer:GenericTrainer._GenericTrainer__validate: expected (self, "
        "train_progress), found nothing of that name",
        f"{len(VALIDATION_SEAMS) - 1} of {len(VALIDATION_SEAMS)} seams of validation are as expected.",
        "The plugin can train with this OneTrainer, but not judge both sets by its validation. Get a newer version of "
        f"the plugin and install it: pip install --upgrade {install_source()}",
    ]
    report = json.loads(command("doctor", standin, "--json")[1])
    assert [seam["ok"] for seam in report["validation_seams"]] == [False, True, True]


def test_a_window_that_has_changed(command: Command, standin: Path) -> None:
    file = standin / "modules" / "ui" / "BaseTrainingTabView.py"
    file.parent.mkdir()
    file.write_text("class BaseTrainingTabView:\n    def build(self, column_0, ui_state): ...\n", encoding="utf-8")
    code, out, err = command("doctor", standin)
    assert (code, err) == (1, "")
    # advised also where something else does not fit
    loader = standin / "modules" / "modelLoader" / "mixin" / "InternalModelLoaderMixin.py"
    text = loader.read_text(encoding="utf-8")
    loader.write_text(text.replace("(self, model, model_name)", "(self, model)"), encoding="utf-8")
    both = json.loads(command("doctor", standin, "--json")[1])["advice"]
    loader.write_text(text, encoding="utf-8")
    assert ["export" in both[0], "in the window" in both[1], len(both)] == [True, True, 2]
    lines = out.splitlines()
    assert (
        "NOT  for the window: modules.ui.BaseTrainingTabView:BaseTrainingTabView.build: found (self, column_0, "
        "ui_state), expected (self, column_0, column_1, column_2, controller, ui_state)"
    ) in lines
    assert lines[-2:] == [
        f"0 of {len(WINDOW_SEAMS) + len(COMPONENT_SEAMS)} seams of the window are as expected.",
        "The plugin works with this OneTrainer, but cannot show its settings in the window: set them in the config "
        f"file, or get a newer version of the plugin: pip install --upgrade {install_source()}",
    ]


def test_a_missing_module(command: Command, standin: Path) -> None:
    (standin / EMA).unlink()
    code, out, _ = command("doctor", standin)
    assert code == 1
    assert (
        "NOT  modules.module.EMAModule:EMAModuleWrapper.copy_temp_to: "
        "expected (self, parameters), found nothing of that name\n"
    ) in out


def test_json(command: Command, standin: Path) -> None:
    dropin.enable(standin)
    spoil(standin)
    code, out, err = command("doctor", standin, "--json")
    assert (code, err) == (1, "")
    report = json.loads(out)
    assert report["ok"] is False
    assert (report["onetrainer"], report["onetrainer_commit"], report["onetrainer_python"]) == (
        str(standin),
        None,
        None,
    )
    assert (report["enabled"], report["plugin"]) == ("current", __version__)
    assert (report["python"], report["python_executable"]) == (platform.python_version(), sys.executable)
    assert report["packages"]["torch"] == metadata.version("torch")
    assert len(report["seams"]) == len(SEAMS)
    assert len(report["export_seams"]) == len(EXPORT_SEAMS)
    assert all(seam["ok"] for seam in report["export_seams"])
    assert [seam for seam in report["seams"] if not seam["ok"]] == [
        {
            "seam": "modules.module.EMAModule:EMAModuleWrapper.copy_ema_to",
            "ok": False,
            "found": "(self, parameters, keep)",
            "sentence": "modules.module.EMAModule:EMAModuleWrapper.copy_ema_to: "
            "found (self, parameters, keep), expected (self, parameters, store_temp)",
        }
    ]
    assert len(report["advice"]) == 1


@pytest.mark.parametrize(
    ("content", "said", "advice"),
    [
        (
            dropin.DROPIN_TEXT,
            "enabled in this OneTrainer",
            "Nothing to mend. A run uses the plugin when its config says ema_select.enabled=true.",
        ),
        (
            f"{dropin.FIRST_LINE}\n",
            "enabled in this OneTrainer by another version",
            'Renew the file in OneTrainer: onetrainer-ema-select enable "{standin}"',
        ),
        (
            "mine = 1\n",
            "not enabled: a file of somebody else has its name",
            "Move {dropin} away: it is not the plugin's.",
        ),
    ],
)
def test_the_drop_in(command: Command, standin: Path, content: str, said: str, advice: str) -> None:
    path = dropin.dropin_path(standin)
    path.write_bytes(content.encode())
    code, out, _ = command("doctor", standin)
    lines = out.splitlines()
    assert code == 0
    assert lines[2] == f"plugin       onetrainer-ema-select {__version__}, {said}"
    assert lines[-1] == advice.format(standin=standin, dropin=path)


def test_a_missing_package(command: Command, standin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "tqdm":
            raise metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(metadata, "version", version)
    code, out, _ = command("doctor", standin)
    assert code == 1
    assert "rich 1.0, tqdm MISSING\n" in out
    assert out.endswith("\nInstall what is missing: pip install tqdm\n")


def test_a_package_that_is_too_old(command: Command, standin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "2.9.2" if name == "pydantic" else there(name))
    code, out, _ = command("doctor", standin)
    assert code == 1
    assert out.endswith(
        "\nToo old for the plugin: pydantic>=2.10 (there is 2.9.2). Run OneTrainer's own update script.\n"
    )


def test_the_package_is_in_another_python(command: Command, standin: Path) -> None:
    python = standin / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    code, out, _ = command("doctor", standin)
    assert code == 0
    assert out.splitlines()[-1] == (
        "The plugin is not installed in OneTrainer's own Python; the one above is another. "
        f'Install it: "{python}" -m pip install {install_source()}'
    )


def test_nothing_of_the_host_is_run_or_changed(command: Command, standin: Path) -> None:
    for path in standin.rglob("*.py"):
        path.write_text("raise SystemExit('imported')\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    before = {path: path.read_bytes() for path in standin.rglob("*") if path.is_file()}
    command("doctor", standin)
    assert {path: path.read_bytes() for path in standin.rglob("*") if path.is_file()} == before


def test_a_cloud_training_that_has_changed(command: Command, standin: Path) -> None:
    code, out, _ = command("doctor", standin, "--json")
    assert (code, json.loads(out)["cloud_seams"]) == (0, [])  # the stand-in has none
    (standin / "modules" / "cloud").mkdir()
    code, out, err = command("doctor", standin)
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert lines[-2] == f"1 of {len(CLOUD_SEAMS)} seams of cloud runs are as expected."  # the configuration's
    assert "NOT  for cloud runs: modules.cloud.BaseCloud:BaseCloud.setup: expected (self), found nothing" in out
    assert lines[-1].startswith("The plugin does not know this OneTrainer's cloud training: cloud runs with it")
