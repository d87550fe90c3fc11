"""OneTrainer's own window, Qt and Tk, driven by clicks and keys: see ``bench/window/scenario.py``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from onetrainer_ema_select.host.window import layout
from onetrainer_ema_select.settings import EmaSelectSettings

from .bench import configs
from .bench.checkout import Host, copy_checkout, host_environment, package_folder, run_python
from .bench.workers import BENCH, Bench

SECONDS = 420
TOOLKITS = ("qt", "tk")
#: A folder for pictures of the window, to be looked at; and whether they are to be dark.
PICTURES, DARK = os.environ.get("EMA_SELECT_PICTURES", ""), bool(os.environ.get("EMA_SELECT_DARK"))

DEFAULTS = {
    key: str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
    for key, field in EmaSelectSettings.model_fields.items()
}
SHOWN = layout.shown(layout.KEYS)


@contextmanager
def display() -> Iterator[dict[str, str]]:
    """The environment of a screen that Tk can draw on: a virtual one on Linux."""
    if not sys.platform.startswith("linux"):
        yield {}
        return
    if shutil.which("Xvfb") is None:
        pytest.skip("no Xvfb: install Debian's package xvfb to test OneTrainer's Tk window")
    reader, writer = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(writer), "-screen", "0", "1280x1700x24"],
        pass_fds=[writer],
        stderr=subprocess.DEVNULL,
    )
    os.close(writer)
    try:
        with os.fdopen(reader) as number:
            yield {"DISPLAY": f":{number.readline().strip()}"}
    finally:
        server.terminate()
        server.wait(timeout=20)


def order(bench: Bench, toolkit: str) -> Path:
    """The configuration of the last session and what else the scenario needs, as a file."""
    folder = bench.new_folder(f"window-{toolkit}")
    for name in ("workspace", "cache", "output"):  # the window wants them to be there
        (folder / name).mkdir()
    config = bench.config(
        configs.SD15_FINE_TUNE,
        run=folder,
        ema="CPU",
        schedule=configs.Schedule(epochs=2, steps=2, backup_at_end=True),
        overrides={"clear_cache_before_training": False},
    )
    read = {name: json.loads(Path(config[key]).read_text(encoding="utf-8")) for name, key in (
        ("concepts", "concept_file_name"), ("samples", "sample_definition_file_name"),
    )}  # fmt: skip
    # The window looks for them there.
    config |= {
        "concept_file_name": "training_concepts/concepts.json",
        "sample_definition_file_name": "training_samples/samples.json",
    }
    pictures = Path(PICTURES).absolute() / f"{toolkit}{'-dark' if DARK else ''}" if PICTURES else None
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
    content = {"folder": str(folder), "config": config, "pictures": str(pictures or ""), "dark": DARK, **read}
    return configs.write_json(folder / "order.json", content)


@pytest.fixture(scope="module")
def stories(bench: Bench, host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Any]]]:
    """What was seen in the windows, which are open at the same time, each in a checkout of its own."""
    processes: dict[str, tuple[subprocess.Popen[bytes], Path, Path]] = {}
    with ExitStack() as stack:
        for toolkit in TOOLKITS:
            checkout = copy_checkout(host, tmp_path_factory.mktemp(f"window-{toolkit}") / "One Trainer")
            done = run_python(
                host, ["-m", "onetrainer_ema_select", "enable", checkout], cwd=checkout, package=package_folder()
            )
            assert done.returncode == 0, done.stderr
            path = order(bench, toolkit)
            screen = stack.enter_context(display()) if toolkit == "tk" else {"QT_QPA_PLATFORM": "offscreen"}
            log = path.with_name("window.log")
            process = subprocess.Popen(
                [str(host.python), str(BENCH / "window" / "scenario.py"), toolkit, str(path)],
                cwd=checkout,
                env={**host_environment(package=package_folder()), **screen},
                stdout=stack.enter_context(log.open("wb")),
                stderr=subprocess.STDOUT,
            )
            stack.callback(process.kill)
            processes[toolkit] = (process, path.parent, log)
        seen = {}
        for toolkit, (process, folder, log) in processes.items():
            process.wait(timeout=SECONDS)
            result = folder / "seen.json"
            printed = log.read_text(encoding="utf-8", errors="replace")
            assert result.is_file(), f"the {toolkit} window came to nothing:\n{printed[-6000:]}"
            seen[toolkit] = {**json.loads(result.read_text(encoding="utf-8")), "folder": folder, "printed": printed}
        yield seen


@pytest.fixture(params=TOOLKITS)
def seen(request: pytest.FixtureRequest, stories: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What was seen in one of the windows."""
    return stories[request.param]


def test_the_whole_story_was_told(seen: dict[str, Any]) -> None:
    assert "failed" not in seen, seen.get("failed")
    assert "PROBLEM" not in seen["printed"], seen["printed"]
    # the run that was refused, and on each of the two tabs a failure made on purpose and a host that is not known
    assert seen["printed"].count("Traceback") == 5, seen["printed"]
    assert "onetrainer-ema-select" in seen["printed"].split("is active")[0]


def test_the_rows_begin_with_the_defaults_and_off(seen: dict[str, Any]) -> None:
    assert seen["state when off"] == DEFAULTS
    assert seen["usable when off"] == ["enabled"]


def test_every_option_sets_the_config_to_each_of_its_values(seen: dict[str, Any]) -> None:
    assert seen["options that failed"] == []
    left = [key for key in SHOWN if seen["options"][key] == DEFAULTS[key]]
    assert left == []


def test_what_has_no_meaning_is_greyed_out(seen: dict[str, Any]) -> None:
    assert seen["greyed out, chosen"] == DEFAULTS["milestone_backups"]
    assert seen["usable with all on"] == sorted(SHOWN)
    without_ema = {"save_sets", "primary_set", "ema_dtype", "ema_half_life", "resume_ema"}
    without_ema |= {"post_hoc_sigma_rels", "post_hoc_every"}
    assert seen["usable with EMA off"] == sorted({*SHOWN} - without_ema)
    # a backup that is named without continuing is refused, so it can be emptied
    without_continuing = {*layout.RESUME} - {"resume_backup"}
    assert seen["usable without continuing"] == sorted({*SHOWN} - without_continuing)
    assert "while continue_last_backup is false" in seen["preview of a backup without continuing"]


def test_a_wrong_text_in_a_grey_field_keeps_no_training_from_starting(seen: dict[str, Any]) -> None:
    assert seen["grey fields that block"] == []


def test_options_are_saved_loaded_and_there_in_the_next_session(seen: dict[str, Any]) -> None:
    saved = {key: value for key, value in seen["saved"].items() if key != "__version"}
    as_text = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in saved.items()}
    assert as_text == seen["options"]
    assert seen["after a config without the section"] == DEFAULTS
    assert seen["shown then"] == {key: DEFAULTS[key] for key in SHOWN}
    assert seen["loaded again"]
    assert seen["next session"]
    assert seen["shown in the next session"] == {key: seen["options"][key] for key in SHOWN}


def test_the_rows_survive_every_model_type(seen: dict[str, Any]) -> None:
    assert seen["model types"] >= 26
    assert seen["model types that failed"] == []
    assert seen["traces piled up"] == 0


def test_mistakes_of_a_config_are_named_and_dropped_by_a_button(seen: dict[str, Any]) -> None:
    assert seen["mistakes shown"]
    assert 'milestone_keep: found "many"' in seen["mistakes"]
    assert "probably meant: milestones" in seen["mistakes"]
    assert seen["mistakes after the button"] == ""
    assert seen["values after the button"] == DEFAULTS | {"enabled": "true"}
    assert seen["shown after the button"] == {key: (DEFAULTS | {"enabled": "true"})[key] for key in SHOWN}
    assert not seen["button after the button"]


def test_a_wrong_text_keeps_the_training_from_starting(seen: dict[str, Any]) -> None:
    title, text = seen["wrong text"]
    assert title == "Cannot Start Training"
    assert 'milestones: "10 eopchs", in which "10 eopchs" is not a milestone; allowed: 10 epochs' in text
    assert not seen["trained in spite of it"]


def test_a_training_from_the_window_writes_both_sets_and_lists_its_backups(seen: dict[str, Any]) -> None:
    ema, other = (load_file(seen["folder"] / "output" / f"model{end}.safetensors") for end in ("", "-non-ema"))
    assert any(not ema[name].equal(other[name]) for name in ema)
    newest, milestone = seen["listed"]
    assert newest.startswith("backup | step 4, epoch 2 | ema and non-ema | ")
    assert milestone.startswith("milestone 1 epoch | step 2, epoch 1 | ema and non-ema | ")
    assert seen["dialogs of the training"] == []


def test_a_refused_run_says_why_until_the_user_has_seen_it(seen: dict[str, Any]) -> None:
    assert seen["preview of a refused run"].startswith("The next training would be refused: ema_select.resume_backup")
    ((title, text),) = seen["refused"]
    assert title == "EMA and non-EMA"
    assert '"nowhere", which is neither a backup' in text
    assert seen["status of a refused run"] == f"{title}: {text}"


def test_a_run_continues_from_the_backup_that_was_chosen(seen: dict[str, Any]) -> None:
    name = seen["listed"][1].rpartition("| ")[2]
    assert seen["continue: backup"] == name
    assert seen["continue: asked of OneTrainer"]
    sentence = seen["continue: preview"].partition("will say: ")[2]
    assert sentence.startswith(f"Resumed from backup {name} (step 2, epoch 1): its EMA weights were loaded")
    assert f"[ema_select] {sentence}" in seen["printed"]
    assert seen["continue: dialogs"] == []


def test_the_same_choice_again_begins_another_leg(seen: dict[str, Any]) -> None:
    assert seen["continue again: leg"].startswith("window 2")
    assert seen["continue: newest"] == ""


def test_an_export_is_what_the_run_saved_itself(seen: dict[str, Any]) -> None:
    folder = seen["folder"]
    assert seen["export without an output"] == "Not exported: type a file or folder under Output."
    assert seen["export: suggested"] == str(folder / "output" / "model-step4-non-ema.safetensors")
    assert seen["export"].startswith("Exported step 4, read back and compared. non-ema: ")
    exported, saved = load_file(folder / "exported.safetensors"), load_file(folder / "output/model-non-ema.safetensors")
    assert exported.keys() == saved.keys()
    assert all(exported[name].equal(saved[name]) for name in saved)
    assert seen["export: moments"] > 100, "the window was not usable meanwhile"
    assert seen["export: texts"] > 2


def test_the_two_sets_of_a_backup_are_compared(seen: dict[str, Any]) -> None:
    ema, other = (load_file(seen["folder"] / "output" / f"model{end}.safetensors") for end in ("", "-non-ema"))
    moved = [name for name in ema if not ema[name].equal(other[name])]
    name = Path(seen["export: backup"]).name
    assert moved
    assert seen["compared"].startswith(f"{name}: the relative distance of its two sets is 0.")


def test_the_report_is_made_and_opened(seen: dict[str, Any]) -> None:
    page = seen["folder"] / "workspace" / "ema_select" / "report.html"
    assert seen["report: under way"]
    assert seen["report: opened"] == [page.as_uri()]
    assert seen["report"].startswith("Report: ")
    assert str(page) in seen["report"]
    assert seen["report"].endswith("It was opened in the browser.")
    assert Path(seen["export: backup"]).name in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("failure", ["failure", "unknown host"])
def test_a_failure_of_ours_is_shown_and_the_window_opens(seen: dict[str, Any], failure: str) -> None:
    assert len(seen[failure]) == 2, "one text on each tab"
    reason = {"failure": "broken on purpose", "unknown host": "modules.x:f: expected (a), found (b)"}[failure]
    for text in seen[failure]:
        assert reason in text
        assert "OneTrainer's own settings are not affected" in text
    assert seen[f"{failure}: OneTrainer's own"]


def test_a_window_that_is_closed_while_it_exports_is_gone_and_the_file_is_written(seen: dict[str, Any]) -> None:
    assert seen["closing: exporting"]
    assert not seen["closing: on the screen"]
    late, earlier = (load_file(seen["folder"] / f"exported{end}.safetensors") for end in ("-late", ""))
    assert late.keys() == earlier.keys()
    assert "[ema_select] Exported step 4" in seen["printed"].rpartition("exported.safetensors")[2]
