"""Post-hoc EMA in runs of the stand-in: against the averages that the paper defines, over resumes, and in trouble."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from onetrainer_ema_select.average_age import power_half_life
from onetrainer_ema_select.cli.inspection import inspect_path
from onetrainer_ema_select.cli.inspection_text import report_lines
from onetrainer_ema_select.errors import BackupError, PostHocError
from onetrainer_ema_select.host.export import synthesize as synthesize_module
from onetrainer_ema_select.manifest import read_manifest
from onetrainer_ema_select.mixture import Mixture, mix
from onetrainer_ema_select.recognise import refuse_other
from onetrainer_ema_select.rounding import StochasticRounding
from onetrainer_ema_select.snapshots import choose_end, find_snapshots, line_to
from onetrainer_ema_select.synthesis import Synthesis
from onetrainer_ema_select.workspace import SNAPSHOT_FOLDER, scan_workspace

from .conftest import CarryOut, RunJobs

SIGMA_RELS = (0.05, 0.08, 0.10, 0.15)
BASE: dict[str, Any] = {
    "training_method": "FINE_TUNE", "output_model_format": "LEGACY_SAFETENSORS", "concepts": [], "samples": [],
    "epochs": 6, "backup_after_unit": "NEVER", "ema": "CPU", "ema_update_step_interval": 1,
}  # fmt: skip
ON = {"enabled": True, "post_hoc_sigma_rels": "0.05, 0.10", "post_hoc_every": "4 steps"}
IMAGES = 6 * 8 * 4  # epochs, steps, batch size
BF16 = {
    "unet": {"weight_dtype": "BFLOAT_16"}, "text_encoder": {"weight_dtype": "BFLOAT_16"},
    "ema_select": {"ema_dtype": "PARAMETER"},
}  # fmt: skip
#: No divisor of the 24 steps of a first half.
INTERVAL = {"ema_update_step_interval": 5, "backup_before_save": True}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("post-hoc")


def job(place: Path, name: str, *, folder: str = "", more: Mapping[str, Any] | None = None, **keys: Any) -> Any:
    home = place / (folder or name)
    section = {**ON, **keys.pop("ema_select", {})}
    config = {
        **BASE,
        "workspace_dir": str(home / "workspace"),
        "output_model_destination": str(home / f"{name}.safetensors"),
        "ema_select": section,
        **keys,
    }
    return {"name": name, "config": config, "plugin": section["enabled"], **(more or {})}


@pytest.fixture(scope="module")
def runs(place: Path, run_jobs: RunJobs) -> dict[str, dict[str, Any]]:
    again = {"continue_last_backup": True}
    half = INTERVAL | {"epochs": 3, "ema_select": {"milestones": "3 epochs"}}
    (place / "unwritable" / "workspace" / "ema_select").mkdir(parents=True)
    (place / "unwritable" / "workspace" / "ema_select" / "post_hoc").write_text("in the way", encoding="utf-8")
    jobs = [
        job(place, "plain", more={"sigma_rels": SIGMA_RELS, "images": IMAGES}),
        job(
            place,
            "order",
            epochs=2,
            backup_before_save=True,
            ema_select={"post_hoc_every": "", "milestones": "1 epochs"},
        ),
        job(place, "off", ema="OFF", ema_select={"enabled": False}),
        job(place, "unwritable", backup_before_save=True),
        # the tracks of the backup at the end are written after those of 12 snapshots
        job(place, "full", backup_before_save=True, more={"full_disk": list(range(1, 40))}),
        job(place, "after full", folder="full", epochs=7, **again),
        job(place, "whole", **INTERVAL, ema_select={"milestones": "2 epochs"}),
        job(
            place,
            "back",
            folder="whole",
            **(INTERVAL | {"epochs": 3}),
            **again,
            ema_select={"resume_backup": "2 epochs", "resume_leg": "back"},
        ),
        job(place, "first", folder="two", **half),
        job(place, "second", folder="two", **INTERVAL, **again),
        # back to the middle, and on from there: what the second has left is of another line
        job(
            place,
            "third",
            folder="two",
            **(INTERVAL | {"epochs": 5}),
            **again,
            ema_select={"resume_backup": "3 epochs", "resume_leg": "another"},
        ),
        job(
            place,
            "post-hoc",
            folder="two",
            **(INTERVAL | {"epochs": 4}),
            **again,
            ema_select={
                "resume_backup": "3 epochs", "resume_weights": "POST_HOC", "resume_sigma_rel": "0.08",
                "post_hoc_every": "",
            },
        ),
        job(
            place,
            "anew",
            folder="two",
            **(INTERVAL | {"epochs": 4}),
            **again,
            ema_select={
                "resume_backup": "3 epochs",
                "resume_ema": "RESTART",
                "resume_leg": "anew",
                "post_hoc_every": "",
            },
        ),
        job(place, "other lengths", folder="lengths", **half),
        job(
            place,
            "longer",
            folder="lengths",
            **(INTERVAL | {"batch_size": 2}),
            **again,
            ema_select={"post_hoc_sigma_rels": "0.05, 0.2"},
        ),
        job(place, "ema off", ema="OFF", epochs=1),
        job(place, "bf16", **BF16, epochs=2),
        job(place, "bf16, half", folder="bf16, two", **BF16, backup_before_save=True, epochs=1),
        job(place, "bf16, rest", folder="bf16, two", **BF16, epochs=2, **again),
    ]  # fmt: skip
    return run_jobs(jobs)


def flat(tensors: Mapping[str, Tensor], names: Any) -> Tensor:
    return torch.cat([tensors[name].double().flatten() for name in names])


def mixture_of(workspace: Path, sigma_rel: float, at: str = "") -> Mixture:
    snapshots, problems = find_snapshots(workspace)
    assert not problems
    return mix(choose_end(workspace, at, snapshots), snapshots, sigma_rel=sigma_rel)


def tensors_of(mixture: Mixture) -> dict[str, Tensor]:
    files = [source.file for source in mixture.sources]
    with Synthesis(files, [source.coefficient for source in mixture.sources]) as made:
        return {name: made[name] for name in made}


def in_order(run: Mapping[str, Any], named: Mapping[str, Tensor]) -> list[Tensor]:
    """The plugin's names in the order of OneTrainer's own: both name the same list of weights."""
    return [named[name] for name in next(iter(run["tracks"].values()))]


# -- the averages --------------------------------------------------------------------------------------------


def relative_error(run: Mapping[str, Any], made: Mapping[str, Tensor], sigma_rel: float) -> float:
    """Distance from the paper's average, in float64 from every step, as a share of that one's from the last weights."""
    expected = run["closed"][sigma_rel]
    live = flat(run["live"], run["ema"])
    ours = torch.cat([tensor.double().flatten() for tensor in in_order(run, made)])
    return float((ours - expected).norm() / (live - expected).norm())


@pytest.mark.parametrize("sigma_rel", [0.05, 0.10])
def test_a_track_is_the_power_function_average(runs, sigma_rel):
    error = relative_error(runs["plain"], runs["plain"]["tracks"][sigma_rel], sigma_rel)
    print(f"track {sigma_rel}: {error:.2e} of the distance from the last weights")
    assert error <= 1e-4


@pytest.mark.parametrize("sigma_rel", SIGMA_RELS)
def test_any_length_comes_out_of_the_snapshots(runs, place, sigma_rel):
    mixture = mixture_of(place / "plain" / "workspace", sigma_rel)
    error = relative_error(runs["plain"], tensors_of(mixture), sigma_rel)
    print(f"sigma_rel {sigma_rel} of 12 snapshots in 48 steps: {error:.4f} of the distance from the last weights")
    assert [one.step for one in mixture.line] == list(range(4, 49, 4))
    assert error <= 0.05


def test_of_a_long_run_it_is_nearly_exact(run_jobs, place):
    epochs, steps = 157, 157 * 32  # of one picture each, which costs least
    more = {"sigma_rels": SIGMA_RELS, "images": steps}
    keys = {"epochs": epochs, "batch_size": 1, "ema_select": {"post_hoc_every": "100 steps"}}
    [(name, run)] = run_jobs([job(place, "long", more=more, **keys)]).items()
    for sigma_rel in SIGMA_RELS:
        mixture = mixture_of(place / name / "workspace", sigma_rel)
        error = relative_error(run, tensors_of(mixture), sigma_rel)
        print(f"sigma_rel {sigma_rel} of {len(mixture.line)} snapshots: {error:.5f}; profile {mixture.fit.error:.4f}")
        assert [one.step for one in mixture.line] == [*range(100, steps, 100), steps]
        assert error <= 0.01


def test_the_live_weights_are_those_without_the_plugin(runs):
    assert all(torch.equal(tensor, runs["off"]["live"][name]) for name, tensor in runs["plain"]["live"].items())
    assert not runs["plain"]["drawn"]


# -- over resumes --------------------------------------------------------------------------------------------


def test_a_resumed_run_equals_the_uninterrupted_one(runs):
    whole, second = runs["whole"]["tracks"], runs["second"]["tracks"]
    assert set(whole) == set(second) == {0.05, 0.1}
    for sigma_rel, averages in whole.items():
        assert all(torch.equal(tensor, second[sigma_rel][name]) for name, tensor in averages.items())
    assert runs["second"]["post_hoc"] == "0.05, 0.1 go on from the backup"
    assert runs["whole"]["post_hoc"] == "they begin at the model's weights"


def test_snapshots_are_whole_and_those_of_a_backup_take_no_space_of_their_own(runs, place):
    workspace = place / "two" / "workspace"
    view = scan_workspace(workspace)
    assert all(not one.reason and one.sigma_rels == (0.05, 0.1) for one in view.snapshots)
    assert all(backup.complete for backup in (*view.backups, *view.milestones))
    newest = view.backups[0]
    for file in (newest.path / "ema_select" / "post_hoc").glob("*.safetensors"):
        assert file.stat().st_nlink >= 2
    for one in view.snapshots:
        with safe_open(one.path / "sigma_rel-0.1.safetensors", framework="pt") as file:
            assert file.metadata()["ema_select.sigma_rel"] == "0.1"
    assert not (workspace / "ema_select" / "staging").exists()


def test_each_line_keeps_to_its_own_snapshots(runs, place):
    workspace = place / "two" / "workspace"
    snapshots, _ = find_snapshots(workspace)
    stretches = {one.record.stretch: max(o.step for o in snapshots if o.record.stretch == one.record.stretch)
                 for one in reversed(snapshots)}  # fmt: skip
    first, second, third, post_hoc, anew = stretches
    assert list(stretches.values()) == [24, 48, 40, 32, 32]
    ends = {one.record.stretch: one for one in reversed(snapshots)}
    lines = {
        stretch: [(one.record.stretch, one.step) for one in line_to(end, snapshots)] for stretch, end in ends.items()
    }
    # none of step 4: the tracks were updated at step 5 for the first time
    beginning = [(first, step) for step in (8, 12, 16, 20, 24)]
    assert lines[second] == beginning + [(second, step) for step in (28, 32, 36, 40, 44, 48)]
    assert lines[third] == beginning + [(third, step) for step in (28, 32, 36, 40)]
    assert lines[post_hoc] == [*beginning, (post_hoc, 32)]
    assert lines[anew] == [(anew, 32)]
    # a step that several lines have come by is the newest one's
    assert choose_end(workspace, "32", snapshots).record.stretch == anew
    assert choose_end(workspace, "40", snapshots).record.stretch == third
    assert choose_end(workspace, "44", snapshots).record.stretch == second
    assert choose_end(workspace, "3 epochs", snapshots).step == 24


def test_what_came_after_the_backup_that_was_gone_back_to_is_left_out(runs, place):
    snapshots, _ = find_snapshots(place / "whole" / "workspace")
    newest = snapshots[0]
    [(before, until)] = [(stretch.id, stretch.until_step) for stretch in newest.record.line]
    assert until == 16
    assert max(one.step for one in snapshots if one.record.stretch == before) == 48
    steps = [(one.record.stretch == before, one.step) for one in line_to(newest, snapshots)]
    assert steps == [(True, 8), (True, 12), (True, 16), (False, 20), (False, 24)]


def test_a_run_resumes_from_a_length_that_was_never_kept(runs, place):
    begun, sentence = runs["post-hoc"]["begun"], runs["post-hoc"]["sentence"]
    backup = next(one for one in scan_workspace(place / "two" / "workspace").milestones if one.step == 24)
    made = tensors_of(mixture_of(place / "two" / "workspace", 0.08, at=backup.name))
    loaded = [begun[name] for name in runs["whole"]["ema"]]
    assert all(torch.equal(one, other) for one, other in zip(loaded, in_order(runs["whole"], made), strict=True))
    assert "its post-hoc EMA (sigma_rel 0.08) weights were loaded (its non-EMA weights stay in that backup)" in sentence
    assert "That average is of sigma_rel 0.08 at step 24, from" in sentence
    manifest = read_manifest(max((place / "two" / "workspace" / "backup").iterdir()))
    assert manifest is not None


def test_tracks_that_begin_anew_count_from_there(runs, place):
    assert runs["anew"]["post_hoc"] == "they begin anew at the loaded weights (resume_ema: RESTART)"
    snapshots, _ = find_snapshots(place / "two" / "workspace")
    assert (snapshots[0].record.images, snapshots[0].record.line) == (8 * 4, ())


def test_another_batch_size_and_other_lengths(runs, place):
    assert runs["longer"]["post_hoc"] == "0.05 go on from the backup, 0.2 begin at the loaded weights, 0.1 end here"
    snapshots, _ = find_snapshots(place / "lengths" / "workspace")
    end = snapshots[0]
    steps = end.step - 24
    assert steps > 0
    assert end.record.images == 24 * 4 + steps * 2
    # the last update of the first half was at step 20
    assert {track.sigma_rel: track.begun_at for track in end.record.tracks} == {0.05: 0.0, 0.2: 20 * 4}


# -- trouble -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["unwritable", "full"])
def test_snapshots_that_cannot_be_written_do_not_end_a_training(runs, place, name):
    run = runs[name]
    assert all(torch.equal(tensor, runs["off"]["live"][key]) for key, tensor in run["live"].items())
    said = [text for text in run["problems"] if "The snapshot of the post-hoc tracks of step 4 could not" in text]
    assert len(said) == 1
    assert "Training goes on, and the next one is tried. Check the disk space and the folder." in said[0]
    view = scan_workspace(place / name / "workspace")
    assert all(one.step > 48 for one in view.snapshots)  # of the run that went on when there was space again
    assert view.backups[-1].complete
    assert (place / name / f"{name}.safetensors").is_file()


def test_a_backup_without_tracks_is_a_backup(runs, place):
    first = min((place / "full" / "workspace" / "backup").iterdir())
    manifest = read_manifest(first)
    assert manifest is not None
    assert manifest.post_hoc is None
    assert not list((first / "ema_select" / "post_hoc").glob("*"))
    assert runs["after full"]["post_hoc"] == "they begin at the loaded weights, because the backup holds none"


def test_ema_off(runs, place):
    assert runs["ema off"]["tracks"] == {}
    assert scan_workspace(place / "ema off" / "workspace").snapshots == ()


def test_tracks_of_16_bits(runs, place):
    tracks = runs["bf16"]["tracks"]
    assert {tensor.dtype for averages in tracks.values() for tensor in averages.values()} == {torch.bfloat16}
    # rounded at random, and alike after a resume
    rest = runs["bf16, rest"]["tracks"]
    for sigma_rel, averages in tracks.items():
        assert all(torch.equal(tensor, rest[sigma_rel][name]) for name, tensor in averages.items())
    [*_, last] = sorted((place / "bf16" / "workspace" / SNAPSHOT_FOLDER).iterdir())
    assert {tensor.dtype for tensor in load_file(last / "sigma_rel-0.05.safetensors").values()} == {torch.bfloat16}


# -- synthesize ----------------------------------------------------------------------------------------------

FORMATS: dict[str, dict[str, Any]] = {
    "fine-tune": {},
    "folder": {"output_model_format": "DIFFUSERS"},
    "lora": {"training_method": "LORA", "output_model_format": "KOHYA_LORA"},
    "embedding": {
        "training_method": "EMBEDDING", "output_model_format": "SAFETENSORS", "embedding_learning_rate": 0.1,
        "embedding": {"uuid": "00000000-0000-4000-8000-000000000001", "token_count": 2},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def synthesized(
    place: Path, standin: Path, run_jobs: RunJobs, carry_out: CarryOut, monkeypatch_module: pytest.MonkeyPatch
) -> dict[str, tuple[Path, Any]]:
    """For each format: the workspace, and what came of an average of exactly one track's length at the end."""
    run_jobs([
        job(place, name, epochs=3, backup_before_save=True, **keys, ema_select={"save_sets": "EMA"})
        for name, keys in FORMATS.items()
    ])  # fmt: skip
    orders: list[Any] = []
    monkeypatch_module.setattr(synthesize_module, "carry_out", lambda order, _: orders.append(order) or _Result())
    for name in FORMATS:
        output = place / "made" / (name if name == "folder" else f"{name}.safetensors")
        synthesize_module.synthesize(place / name / "workspace", output, sigma_rel=0.08, onetrainer=standin)
    of_16_bits = {"sigma_rel": 0.08, "dtype": "BFLOAT_16", "rounding": "stochastic", "onetrainer": standin}
    output = place / "made" / "rounded.safetensors"
    synthesize_module.synthesize(place / "fine-tune" / "workspace", output, **of_16_bits)
    done = carry_out([json.loads(order.model_dump_json()) for order in orders])
    names = (*FORMATS, "rounded")
    return {name: (place / name / "workspace", one) for name, one in zip(names, done, strict=True)}


class _Result:
    notes = ()

    def model_copy(self, update: Any) -> _Result:
        return self


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def model_tensors(path: Path) -> dict[str, Tensor]:
    if path.is_file():
        return load_file(path)
    return {
        f"{file.parent.name}.{key}": value
        for file in sorted(path.rglob("*.safetensors"))
        for key, value in load_file(file).items()
    }


@pytest.mark.parametrize("name", FORMATS)
def test_a_synthesized_model_holds_the_mixture(synthesized, place, name):
    workspace, done = synthesized[name]
    assert done["error"] is None
    [each] = done["result"]["sets"]
    path = Path(each["path"])
    written = model_tensors(path)
    ema = model_tensors(next(one for one in (place / name).iterdir() if one.stem == name))
    assert written.keys() == ema.keys()
    mixed = sorted(tensor.double().sum().item() for tensor in tensors_of(mixture_of(workspace, 0.08)).values())
    there = [tensor.double().sum().item() for tensor in written.values()]
    found = [min(there, key=lambda value: abs(value - sum_)) for sum_ in mixed]
    assert found == pytest.approx(mixed, rel=1e-6, abs=1e-7)
    assert any(not torch.equal(tensor, ema[key]) for key, tensor in written.items())
    assert each["weights"] == len(mixed)
    assert not each["left_out"]


def test_a_synthesized_model_of_16_bits_is_rounded_at_random(synthesized, place):
    [each] = synthesized["rounded"][1]["result"]["sets"]
    mixture = mixture_of(place / "fine-tune" / "workspace", 0.08)
    rounding = StochasticRounding(mixture.end.manifest.run, mixture.end.step)
    written = [tensor for tensor in load_file(each["path"]).values() if tensor.dtype is torch.bfloat16]
    for name, exact in tensors_of(mixture).items():
        expected = rounding(name, exact, torch.bfloat16)
        assert any(torch.equal(tensor, expected) for tensor in written if tensor.shape == expected.shape), name
    with safe_open(each["path"], framework="pt") as file:
        assert file.metadata()["ema_select.rounding"] == "STOCHASTIC"


def test_a_synthesized_model_says_what_it_is(synthesized, place):
    [each] = synthesized["fine-tune"][1]["result"]["sets"]
    with safe_open(each["path"], framework="pt") as file:
        marks = file.metadata()
    said = {key.removeprefix("ema_select."): value for key, value in marks.items() if key.startswith("ema_select.")}
    assert said["set"] == said["sets"] == "POST_HOC"
    assert (said["sigma_rel"], said["step"], said["epoch"]) == ("0.08", "24", "3")
    assert 0 <= float(said["fit_error"]) < 0.1
    assert "decay" not in said
    assert marks["modelspec.title"] == "fine-tune (POST_HOC 0.08, epoch 3, step 24)"
    text = "\n".join(report_lines(inspect_path(Path(each["path"]), onetrainer=None), every=False))
    assert "post-hoc: " in text
    assert "sigma_rel: 0.08" in text


def test_a_snapshot_is_no_backup_and_inspect_says_what_it_is(synthesized, place):
    snapshot = max((place / "lora" / "workspace" / SNAPSHOT_FOLDER).iterdir())
    with pytest.raises(BackupError, match=r"is a snapshot of post-hoc tracks, not a backup\. Make a model of any"):
        refuse_other(snapshot)
    text = "\n".join(report_lines(inspect_path(snapshot, onetrainer=None), every=False))
    assert "post-hoc 0.05: " in text
    assert f"synthesize {place / 'lora' / 'workspace'} --at {snapshot.name}" in text
    with pytest.raises(BackupError, match="snapshot"):
        refuse_other(snapshot)


def test_without_a_backup_there_is_no_model_around_the_averages(runs, place, standin, tmp_path):
    shutil.copytree(place / "plain" / "workspace" / "ema_select", tmp_path / "workspace" / "ema_select")
    with pytest.raises(PostHocError, match=r"no backup of their run to take the rest of the model from .there is no"):
        synthesize_module.synthesize(tmp_path / "workspace", tmp_path / "m", sigma_rel=0.08, onetrainer=standin)


def test_the_lengths_of_the_tracks_are_drawn(runs, place):
    del runs
    lines = (place / "plain" / "workspace" / "ema_select" / "drift.jsonl").read_text(encoding="utf-8").splitlines()
    looks = [look for look in map(json.loads, lines) if "distance" in look]
    assert looks[-1]["step"] == IMAGES / 4
    for look in looks:
        for sigma_rel, gamma in ((0.05, 16.97), (0.1, 6.94)):
            length = look[f"half_life_steps/POST_HOC_{sigma_rel:g}"]
            assert length == pytest.approx(power_half_life(gamma, look["step"]), rel=1e-3)


def test_what_is_needed_most_is_written_first(runs, place):
    """On a disk that is nearly full, a snapshot must not take the space of a backup or a model."""
    del runs
    home = place / "order"
    written = {}
    for manifest in (home / "workspace" / SNAPSHOT_FOLDER).glob("*/manifest.json"):
        written[json.loads(manifest.read_text(encoding="utf-8"))["step"]] = manifest
    assert sorted(written) == [8, 16]
    [milestone] = (home / "workspace" / "ema_select" / "milestones" / "backup").iterdir()
    [end] = [one for one in (home / "workspace" / "backup").iterdir() if "-backup-16-" in one.name]
    models = [*home.glob("order*.safetensors")]
    assert len(models) == 2
    for step, earlier in ((8, [milestone / "meta.json"]), (16, [end / "meta.json", *models])):
        assert all(one.stat().st_mtime_ns < written[step].stat().st_mtime_ns for one in earlier)
    # and is no further file where the backup holds the tracks
    for step, backup in ((8, milestone), (16, end)):
        track = backup / "ema_select" / "post_hoc" / "sigma_rel-0.05.safetensors"
        assert (written[step].parent / "sigma_rel-0.05.safetensors").samefile(track)
