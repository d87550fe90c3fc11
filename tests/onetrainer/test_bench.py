"""The bench is to be trusted: plain OneTrainer on it is deterministic, and what is wrong in it shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from .bench import configs
from .bench.checkout import Host
from .bench.configs import CASCADE_FINE_TUNE, CASCADE_LORA, FAMILIES, SD15_FINE_TUNE, SD15_LORA, Family, Schedule
from .bench.recording import Recording, difference, read_metadata, read_model, same_bits
from .bench.workers import Bench, Job

Kind = tuple[Family, str]

KINDS: list[Kind] = [
    *((family, "FLOAT_32") for family in FAMILIES),
    (SD15_FINE_TUNE, "BFLOAT_16"),
    (CASCADE_FINE_TUNE, "BFLOAT_16"),
]
BUSY = Schedule(save_every=4, backup_every=5, sample_every=4, validate_every=4, backup_at_end=True)


def kind_name(kind: Kind) -> str:
    """The test id of a kind of training."""
    return f"{kind[0].name}-{kind[1]}"


def busy_jobs(bench: Bench) -> list[Job]:
    """A run of every kind with saves, backups, samples and validation, EMA off."""
    return [
        Job(kind_name(kind), bench.config(kind[0], schedule=BUSY, dtype=kind[1]), record=("live",)) for kind in KINDS
    ]


@pytest.fixture(scope="module")
def repeated(bench: Bench) -> Mapping[str, list[Recording]]:
    """Every kind twice, in two processes that do the kinds in opposite order."""
    here = bench.start(busy_jobs(bench), plugin=False)
    there = bench.run_fresh(busy_jobs(bench)[::-1], plugin=False)[::-1]
    runs = zip(here.results(), there, strict=True)
    return {kind_name(kind): list(run) for kind, run in zip(KINDS, runs, strict=True)}


@pytest.mark.parametrize("kind", KINDS, ids=kind_name)
def test_the_same_run_is_the_same_bit_for_bit(repeated: Mapping[str, list[Recording]], kind: Kind) -> None:
    first, second = (recording.require() for recording in repeated[kind_name(kind)])
    assert first.step_numbers() == list(range(1, 9))
    assert difference(first.step(1), first.step(8)) > 1e-4, "nothing was trained"
    for step in first.step_numbers():
        assert same_bits(first.step(step), second.step(step)), f"differs after step {step}"
    assert same_bits(first.optimizer(), second.optimizer())
    assert first.result["random"] == second.result["random"]
    assert first.result["steps"] == second.result["steps"]
    for step, (path, *_) in first.by_step("save").items():
        assert same_bits(read_model(path), read_model(second.by_step("save")[step][0]))


@pytest.mark.parametrize("kind", KINDS, ids=kind_name)
def test_every_event_takes_place(repeated: Mapping[str, list[Recording]], kind: Kind) -> None:
    recording = repeated[kind_name(kind)][0].require()
    assert "Traceback" not in recording.output
    assert list(recording.by_step("save")) == [3, 7]
    assert list(recording.by_step("backup")) == [4, 8]
    assert recording.result["samples"] == 2
    assert len(list((recording.workspace / "samples").rglob("*.png"))) == 2
    assert recording.result["statuses"].count("Calculating validation loss") == 2
    assert list(recording.output_folder.iterdir())
    assert not [name for name in recording.result["parameters"] if name.startswith("unnamed")]


def test_a_save_holds_the_weights_of_its_step(host: Host, repeated: Mapping[str, list[Recording]]) -> None:
    recording = repeated[kind_name((SD15_FINE_TUNE, "FLOAT_32"))][0]
    path = recording.by_step("save")[3][0]
    saved = read_model(path)["model.diffusion_model.time_embed.0.weight"]
    assert same_bits(saved, recording.step(3)["unet.time_embedding.linear_1.weight"])
    assert read_metadata(path)["ot_revision"] == host.commit[:7]


@pytest.fixture(scope="module")
def averaged(bench: Bench) -> dict[str, list[Recording]]:
    """Plain OneTrainer with EMA off, with EMA on, and with EMA on and saves in between."""
    schedules = {
        "off": ("OFF", Schedule(save_every=4)),
        "on": ("CPU", Schedule()),
        "saved": ("CPU", Schedule(save_every=4)),
    }
    families = (SD15_FINE_TUNE, CASCADE_LORA)
    jobs = [
        Job(
            f"{family.name}-{name}",
            bench.config(family, ema=ema, schedule=schedule),
            record=("live", "ema"),
        )
        for family in families
        for name, (ema, schedule) in schedules.items()
    ]
    done = [recording.require() for recording in bench.run(jobs, plugin=False)]
    return {family.name: done[3 * i : 3 * i + 3] for i, family in enumerate(families)}


@pytest.mark.parametrize("family", [SD15_FINE_TUNE, CASCADE_LORA], ids=lambda family: family.name)
def test_plain_onetrainer_loses_the_live_weights_in_a_save(
    averaged: dict[str, list[Recording]], family: Family
) -> None:
    off, on, saved = averaged[family.name]
    assert difference(off.weights(), on.weights()) == 0.0
    assert same_bits(off.step(3), saved.step(3))
    assert difference(off.step(4), saved.step(4)) > 1e-4
    assert difference(off.weights(), saved.weights()) > 1e-3
    assert not same_bits(off.optimizer(), saved.optimizer())


def test_the_ema_is_recorded_after_its_update(averaged: dict[str, list[Recording]]) -> None:
    _, on, _ = averaged[SD15_FINE_TUNE.name]
    name = "unet.conv_in.weight"
    average = on.step(1, "ema")[name].double()
    for step in range(2, 9):
        decay = min(step / (step + 9), 0.9)
        average += (1 - decay) * (on.step(step)[name].double() - average)
        assert (on.step(step, "ema")[name] - average).abs().max() < 1e-6
    assert same_bits(on.step(8, "ema"), on.weights("ema"))
    assert same_bits(on.weights("live", "ended"), on.weights("ema"))


@pytest.mark.parametrize(("family", "reseed"), [(SD15_FINE_TUNE, False), (SD15_LORA, False), (CASCADE_FINE_TUNE, True)])
def test_a_resumed_run_equals_an_uninterrupted_one(bench: Bench, family: Family, *, reseed: bool) -> None:
    run = bench.new_folder("resumed")
    plans = [
        ("whole", None, Schedule(epochs=4, steps=2), {}),
        ("first", run, Schedule(epochs=2, steps=2, backup_at_end=True), {}),
        ("second", run, Schedule(epochs=4, steps=2), {"continue_last_backup": True}),
    ]
    jobs = [
        Job(
            name,
            bench.config(family, run=folder, schedule=schedule, ema="CPU", overrides=more),
            reseed=reseed,
            record=("live", "ema"),
        )
        for name, folder, schedule, more in plans
    ]
    whole, first, second = (recording.require() for recording in bench.run(jobs, plugin=False))
    assert same_bits(whole.step(4), first.weights())
    assert second.step_numbers() == [5, 6, 7, 8]
    for kind in ("live", "ema"):
        assert same_bits(whole.weights(kind), second.weights(kind))
    assert same_bits(whole.optimizer()["state"], second.optimizer()["state"])


def test_a_run_can_be_cut_short_in_every_way(bench: Bench) -> None:
    actions: dict[str, dict[int, tuple[str, ...]]] = {
        "crash": {3: ("crash",)},
        "interrupt": {3: ("interrupt",)},
        "exit": {3: ("exit:7",)},
        "commands": {2: ("save", "backup"), 3: ("sample_default", "sample_custom"), 6: ("stop",)},
    }
    jobs = [Job(name, bench.config(SD15_FINE_TUNE), actions=asked, record=("live",)) for name, asked in actions.items()]
    crash, interrupt, gone, commands = bench.run(jobs, plugin=False)

    assert crash.exception == {"type": "SimulatedCrash", "message": "crash"}
    assert (crash.finished, crash.step_numbers()) == (False, [1, 2, 3])
    assert interrupt.require().result["canceled"]
    assert not interrupt.output_folder.exists() or not list(interrupt.output_folder.iterdir())
    assert (gone.finished, gone.result["phase"], gone.step_numbers()) == (False, "train", [1, 2, 3])
    assert commands.require().step_numbers() == [1, 2, 3, 4, 5, 6]
    assert list(commands.by_step("save")) == [2]
    assert list(commands.by_step("backup")) == [2]
    assert commands.result["samples"] == 2


def test_a_hook_reaches_into_the_run(bench: Bench) -> None:
    config = bench.config(SD15_FINE_TUNE, schedule=Schedule(save_every=4, backup_every=4))
    hook = (Path(configs.__file__).with_name("hooks.py"), "every_save_fails")
    [recording] = bench.run([Job("hooked", config, hook=hook)], plugin=False)
    assert recording.exception == {"type": "OSError", "message": "[Errno 28] No space left on device"}
    assert recording.result["phase"] == "end"
    assert "Could not save model" in recording.output
    # OneTrainer leaves the half files of its failed saves where they are.
    assert [path.read_bytes() for paths in recording.by_step("save").values() for path in paths] == [b"half"] * 2
    assert list(recording.by_step("backup")) == [3, 7]


def test_the_command_line_does_the_same_run(bench: Bench) -> None:
    [recorded] = bench.run([Job("recorded", bench.config(SD15_FINE_TUNE))], plugin=False)
    config = bench.config(SD15_FINE_TUNE, schedule=Schedule(epochs=5))
    done = bench.train(config, "--config-value", "epochs=2", plugin=False)
    assert done.returncode == 0, done.stderr
    assert same_bits(
        read_model(Path(config["output_model_destination"])),
        read_model(Path(recorded.config["output_model_destination"])),
    )
