"""What would make a run useless stops it before the model is loaded, in words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from .bench import configs
from .bench.checkout import copy_checkout, package_folder, run_python
from .bench.configs import Schedule
from .bench.recording import Recording
from .bench.workers import Bench, Job

SHORT = Schedule(epochs=1, steps=2)


def refused(bench: Bench, *, section: Any, ema: str = "CPU", overrides: dict[str, Any] | None = None) -> Recording:
    """A run that must not get as far as loading a model."""
    config = bench.config(
        configs.SD15_LORA, schedule=SHORT, ema=ema, overrides={**(overrides or {}), "ema_select": section}
    )
    [recording] = bench.run([Job("refused", config)], plugin=True)
    assert not recording.finished
    assert recording.result["phase"] == "start"
    assert "parameters" not in recording.result
    return recording


def message(recording: Recording) -> str:
    assert recording.exception is not None
    return recording.exception["message"]


def test_wrong_keys_and_values_are_all_named_at_once(bench: Bench) -> None:
    recording = refused(
        bench,
        section={
            "enabled": True,
            "save_sets": "BOHT",
            "primary": "EMA",
            "milestones": "ten epochs",
            "resume_weights": "BESTT",
        },
    )
    text = message(recording)
    assert text.startswith("4 settings in `ema_select` are wrong, so no model was loaded:")
    for key in ("save_sets", "primary", "milestones", "resume_weights"):
        assert f"\n- ema_select.{key}: found " in text
    # The window's status line, last.
    assert recording.result["statuses"][-1] == text


def test_a_section_that_is_none_is_refused(bench: Bench) -> None:
    assert "1 setting in `ema_select` is wrong" in message(refused(bench, section="yes please"))


def test_a_schedule_free_optimizer_with_ema(bench: Bench) -> None:
    overrides = {"optimizer": {"optimizer": "SCHEDULE_FREE_ADAMW"}}
    assert message(refused(bench, section={"enabled": True}, overrides=overrides)) == (
        "1 setting in `ema_select` is wrong, so no model was loaded:\n"
        "- ema_select.enabled: found true together with ema: CPU and the schedule-free optimizer "
        "SCHEDULE_FREE_ADAMW; a schedule-free optimizer keeps an average of its own, and an EMA of its weights would "
        "average points that are not the model; type --config-value ema=OFF, or choose an optimizer that is not "
        "schedule-free"
    )


def test_a_named_backup_without_continuing(bench: Bench) -> None:
    text = message(refused(bench, section={"enabled": True, "resume_backup": "2026"}))
    assert 'ema_select.resume_backup: found "2026" while continue_last_backup is false' in text


def test_a_named_backup_that_is_not_there(bench: Bench) -> None:
    text = message(
        refused(bench, section={"enabled": True, "resume_backup": "2026"}, overrides={"continue_last_backup": True})
    )
    assert text.startswith('ema_select.resume_backup names "2026", which is neither a backup in ')
    assert text.endswith("Backups there: none. Type one of these, a path, or nothing for the newest.")


def test_mistakes_in_a_section_that_is_off_are_named_and_do_no_harm(bench: Bench) -> None:
    config = bench.config(
        configs.SD15_LORA, schedule=SHORT, overrides={"ema_select": {"enabled": False, "save_set": "EMA"}}
    )
    [recording] = bench.run([Job("off", config)], plugin=True)
    recording.require()
    assert "The plugin is off for this run (ema_select.enabled is false)" in recording.output
    assert "ema_select.save_set" in recording.output


# -- on the command line -------------------------------------------------------------------------------------


def test_command_line_values_are_checked_too(bench: Bench) -> None:
    config = bench.config(configs.SD15_LORA, schedule=SHORT, ema="CPU")
    values = ["ema_select.enabled=true", "ema_select.save_sets=ema", "ema_select.milestone=5 epochs"]
    arguments = [part for value in values for part in ("--config-value", value)]
    done = bench.train(config, *arguments, plugin=True)
    assert done.returncode == 1
    assert "2 settings in `ema_select` are wrong, so no model was loaded:" in done.stderr
    assert "- ema_select.save_sets: found" in done.stderr
    assert "- ema_select.milestone: found" in done.stderr
    assert "loading" not in done.stdout.lower()


@pytest.fixture(scope="module")
def unknown_host(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A OneTrainer in which two seams have changed, with the plugin enabled."""
    folder = tmp_path_factory.mktemp("unknown")
    checkout = copy_checkout(bench.host, folder / "OneTrainer")
    saver = checkout / "modules" / "modelSaver" / "BaseModelSaver.py"
    saver.write_text(saver.read_text().replace("output_model_destination: str", "destination: str"))
    trainer = checkout / "modules" / "trainer" / "BaseTrainer.py"
    trainer.write_text(
        trainer.read_text().replace("def create_model_saver(self)", "def create_model_saver(self, kind)")
    )
    run_python(bench.host, ["-m", "onetrainer_ema_select", "enable", checkout], cwd=folder, package=package_folder())
    return checkout


def test_an_unknown_host_is_refused_with_each_mismatch_named(bench: Bench, unknown_host: Path) -> None:
    config = bench.config(configs.SD15_LORA, schedule=SHORT, overrides={"ema_select": {"enabled": True}})
    path = configs.write_json(Path(config["workspace_dir"]).parent / "config.json", config)
    command = [Path("scripts") / "train.py", "--config-path", path]
    done = run_python(bench.host, command, cwd=unknown_host, package=package_folder())
    assert done.returncode == 1
    assert "This OneTrainer differs in 2 places from those this plugin knows; nothing was patched:" in done.stderr
    assert re.search(r"BaseModelSaver\.save: found \(.*destination, dtype\), expected \(", done.stderr)
    assert re.search(r"create_model_saver: found \(self, kind\), expected \(self\)", done.stderr)
    assert "set ema_select.enabled=false" in done.stderr


def test_doctor_names_them_too_and_exits_with_one(bench: Bench, unknown_host: Path) -> None:
    command = ["-m", "onetrainer_ema_select", "doctor", unknown_host]
    done = run_python(bench.host, command, cwd=unknown_host, package=package_folder())
    assert done.returncode == 1
    assert "create_model_saver" in done.stdout + done.stderr
