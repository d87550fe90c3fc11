"""Live weights and optimizer are those of a run with EMA off, whatever is saved, sampled, validated, backed up."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from onetrainer_ema_select.report import make_report

from .bench import configs
from .bench.configs import Family, Schedule
from .bench.recording import Recording, difference, read_metadata, read_model, same_bits
from .bench.workers import BENCH, Bench, Job
from .chromium import chromium, complaints, grave_findings, keys, one, press, wait

DECAY = 0.9
STEPS = 12
BUSY = Schedule(epochs=2, steps=6, save_every=4, backup_every=6, sample_every=5, validate_every=4, backup_at_end=True)
PLUGIN = {"enabled": True, "milestones": "10 steps"}


@dataclass(frozen=True)
class Pair:
    """The same training: EMA off and no plugin, and EMA on with the plugin."""

    off: Recording
    on: Recording


@pytest.fixture(scope="module")
def runs(bench: Bench) -> dict[str, Pair]:
    """Every family both ways; queued together so that the two processes work side by side."""
    batches = {}
    for family in configs.FAMILIES:
        off = Job(
            family.name,
            bench.config(family, schedule=BUSY),
            record=("live",),
            # The milestone's save, asked for by hand.
            actions={7: ("sample_custom",), 10: ("save",)},
        )
        on = Job(
            family.name,
            bench.config(family, schedule=BUSY, ema="CPU", ema_decay=DECAY, overrides={"ema_select": PLUGIN}),
            record=("live", "ema"),
            actions={7: ("sample_custom",)},
            hook=(BENCH / "hooks.py", "every_format"),
        )
        batches[family.name] = bench.start([off], plugin=False), bench.start([on], plugin=True)
    return {name: Pair(off.results()[0].require(), on.results()[0].require()) for name, (off, on) in batches.items()}


each_family = pytest.mark.parametrize("family", configs.FAMILIES, ids=lambda family: family.name)


@each_family
def test_live_weights_are_those_of_a_run_with_ema_off(runs: dict[str, Pair], family: Family) -> None:
    pair = runs[family.name]
    assert pair.on.step_numbers() == pair.off.step_numbers() == list(range(1, STEPS + 1))
    for step in pair.on.step_numbers():
        assert difference(pair.on.step(step), pair.off.step(step)) == 0.0, step
    assert difference(pair.on.weights(when="ended"), pair.off.weights(when="ended")) == 0.0


@each_family
def test_optimizer_and_random_states_are_those_of_a_run_with_ema_off(runs: dict[str, Pair], family: Family) -> None:
    pair = runs[family.name]
    assert same_bits(pair.on.optimizer(), pair.off.optimizer())
    # The samples of the EMA are extra, and seeded by their own definition.
    assert [step["random"] for step in pair.on.result["steps"]] == [step["random"] for step in pair.off.result["steps"]]


@each_family
def test_each_non_ema_file_is_what_the_run_with_ema_off_saved_at_that_step(
    runs: dict[str, Pair], family: Family
) -> None:
    pair = runs[family.name]
    saves, references = pair.on.by_step("save"), pair.off.by_step("save")
    assert sorted(saves) == sorted(references) == [3, 7, 10, 11]
    for step, paths in saves.items():
        ema, non_ema = sorted(models_in(paths), key=lambda path: "-non-ema" in path.name)
        assert non_ema == paired(ema)
        [reference] = models_in(references[step])
        assert difference(read_model(non_ema), read_model(reference)) == 0.0
        assert difference(read_model(ema), read_model(reference)) > 0.0
    name = Path(pair.on.config["output_model_destination"])
    final = paired(name)
    reference = Path(pair.off.config["output_model_destination"])
    assert difference(read_model(final), read_model(reference)) == 0.0
    assert difference(read_model(name), read_model(reference)) > 0.0


@each_family
def test_each_backup_holds_the_live_weights_and_the_average(runs: dict[str, Pair], family: Family) -> None:
    pair = runs[family.name]
    backups, references = pair.on.by_step("backup"), pair.off.by_step("backup")
    assert sorted(backups) == sorted(references) == [5, 11, 12]
    for step, [backup] in backups.items():
        [reference] = references[step]
        for file in sorted(reference.rglob("*.safetensors")):
            assert difference(load_file(backup / file.relative_to(reference)), load_file(file)) == 0.0, file
        saved = torch.load(backup / "ema" / "ema.pt", weights_only=True)
        assert saved["decay"] == DECAY
        assert same_bits(saved["ema_parameters"], list(pair.on.step(step, "ema").values()))


def test_samples_without_ema_are_those_of_a_run_with_ema_off(runs: dict[str, Pair]) -> None:
    pair = runs["sd15-fine-tune"]
    [folder] = (pair.off.workspace / "samples").glob("0 - *")
    expected = [path.read_bytes() for path in sorted(folder.glob("*.png"))]
    without = [path.read_bytes() for path in sorted((folder_of(pair.on, " - no-ema")).glob("*.png"))]
    averaged = [path.read_bytes() for path in sorted((folder_of(pair.on, "")).glob("*.png"))]
    assert len(expected) == 3
    assert without == expected
    assert averaged[0] == expected[0]  # before the first step both sets are the model as it was loaded
    assert averaged[1:] != expected[1:]


def folder_of(recording: Recording, ending: str) -> Path:
    """The folder of the first prompt's samples of a set."""
    folders = (recording.workspace / "samples").glob("0 - *")
    [folder] = [path for path in folders if path.name.endswith(" - no-ema") == bool(ending)]
    return folder


HOSTILE = (
    "一只坐在窗台上的橘猫",
    "</script><script>window.broken=1</script>",
    '"><img src=x onerror=window.broken=1> #1 100%?',
)


def test_the_report_of_a_real_run_in_a_browser(runs: dict[str, Pair], tmp_path: Path) -> None:
    workspace = tmp_path / "run #1"
    shutil.copytree(runs["sd15-fine-tune"].on.workspace, workspace, ignore=shutil.ignore_patterns("formats", "save"))
    more_samples(workspace, HOSTILE, 394)
    made = make_report(workspace)
    assert (made.samples, made.left_out) == (401, 0), "one of them was asked for by hand"
    assert {"training", "validation"} <= set(made.charts)
    text = made.path.read_text(encoding="utf-8")
    for backup in (workspace / "backup").iterdir():
        assert f"--config-value ema_select.resume_backup={backup.name}" in text
    with chromium(tmp_path / "profile") as browser:
        browser.get(made.path.as_uri())
        took = browser.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd")
        print(f"a page of {made.samples} samples, {made.size_bytes / 1e6:.1f} MB, was loaded in {took / 1000:.2f} s")
        titles = [each.text for each in browser.find_elements("css selector", ".prompt h3 bdi")]
        assert titles == ["picture 1 of <thing>", *HOSTILE, "custom"]
        browser.execute_script("document.querySelector('.steps').focus()")
        wait(browser, "document.querySelector('.prompt .non-ema img').naturalWidth > 0")
        assert one(browser, ".prompt .where").text.startswith("step 10, epoch 1 · the sets differ by ")
        press(browser, keys().HOME)
        assert one(browser, ".prompt .where").text == "step 0, epoch 0 · the sets differ by 0.0 %"
        one(browser, ".modes label:nth-of-type(2)").click()
        assert one(browser, "#pictures").get_attribute("data-mode") == "swipe"
        one(browser, ".point .copy").click()
        wait(browser, "document.querySelector('.copy').classList.contains('copied')")
        assert complaints(browser) == []
        assert grave_findings(browser) == []
        assert browser.execute_script("return window.broken") is None


def more_samples(workspace: Path, prompts: tuple[str, ...], count: int) -> None:
    """Have a run have made more of its samples, for prompts that try to break a page."""
    [config] = (workspace / "config").glob("*.json")
    said = json.loads(config.read_text(encoding="utf-8"))
    said["samples"] += [{"prompt": prompt} for prompt in prompts]
    config.write_text(json.dumps(said), encoding="utf-8")
    made = {
        "": max((workspace / "samples").glob("0 - *thing/*.png")),
        " - no-ema": max((workspace / "samples").glob("0 - *thing - no-ema/*.png")),
    }
    for index in range(count // 2):
        number, step = index % len(prompts), index // len(prompts)
        name = "".join(filter(lambda x: x.isalnum() or x in " ._-#", prompts[number])).strip()[:32].strip()
        for ending, file in made.items():
            folder = workspace / "samples" / f"{number + 1} - {name}{ending}"
            folder.mkdir(exist_ok=True)
            shutil.copyfile(file, folder / file.name.replace("-10-1-4.", f"-{step}-0-{step}."))


# -- every format --------------------------------------------------------------------------------------------


@each_family
def test_each_file_is_exactly_the_track_rounded_once_in_every_format(runs: dict[str, Pair], family: Family) -> None:
    workspace = runs[family.name].on.workspace
    compared = 0
    for folder in sorted((workspace / "formats").iterdir()):
        refused = [(folder / part / "refused.txt").exists() for part in ("plugin", "reference")]
        assert refused[0] == refused[1], folder.name
        if refused[0]:
            continue
        [stem] = [
            path for path in (folder / "reference" / "ema").iterdir() if path.stem == "model" and path.suffix != ".yaml"
        ]
        for kind, path in (("ema", stem.name), ("non-ema", paired(stem).name)):
            for reference in sorted((folder / "reference" / kind).rglob("*.safetensors")):
                if reference.is_dir():  # Stable Cascade's "file"
                    continue
                inside = reference.relative_to(folder / "reference" / kind)
                ours = folder / "plugin" / Path(inside.as_posix().replace(stem.name, path, 1))
                assert difference(load_file(ours), load_file(reference)) == 0.0, f"{folder.name}: {inside}"
                compared += 1
    assert compared >= 6


def models_in(paths: list[Path]) -> list[Path]:
    """Without what a saver writes beside a model."""
    return [path for path in paths if path.suffix != ".yaml" and not path.name.endswith("_embeddings")]


def paired(path: Path) -> Path:
    """The other set's name, spelled out here once more."""
    if path.suffix == ".safetensors":
        return path.with_name(f"{path.stem}-non-ema.safetensors")
    return path.with_name(f"{path.name}-non-ema")


def test_every_format_that_onetrainer_offers_was_written(runs: dict[str, Pair]) -> None:
    written = {}
    for family in configs.FAMILIES:
        folders = sorted((runs[family.name].on.workspace / "formats").iterdir())
        written[family.name] = {
            folder.name.split("-")[0] for folder in folders if not (folder / "reference" / "refused.txt").exists()
        }
    for family in configs.FAMILIES:
        # ORIGINAL_LORA has no place for a trained text encoder, and OneTrainer refuses it.
        assert set(family.formats) - {"ORIGINAL_LORA"} <= written[family.name], family.name


# -- marks ---------------------------------------------------------------------------------------------------


@each_family
def test_each_file_says_which_set_it_is(runs: dict[str, Pair], family: Family) -> None:
    pair = runs[family.name]
    titles = set()
    for step, paths in pair.on.by_step("save").items():
        for path in models_in(paths):
            marks = marks_of(path)
            assert marks["ema_select.set"] == ("NON_EMA" if "-non-ema" in path.name else "EMA")
            assert marks["ema_select.step"] == str(step)
            assert marks.get("ema_select.milestone") == ("10 steps" if step == 10 else None)
            if path.is_file() and family.method != "EMBEDDING":
                titles.add(marks["modelspec.title"])
            assert not [key for key in marks if key.startswith("ema_select.") and key.endswith(FORBIDDEN)]
    if titles:
        assert len(titles) == 8


FORBIDDEN = ("name", "title", "description", "tags", "image")


def marks_of(path: Path) -> dict[str, str]:
    """The marks of a model, file or folder."""
    if path.is_dir():
        marks: dict[str, str] = json.loads((path / "ema_select.json").read_text(encoding="utf-8"))
        return marks
    return read_metadata(path)
