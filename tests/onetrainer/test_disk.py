"""What two sets take on the disk: parts that were not trained are one file where the output is a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from .bench import configs
from .bench.recording import Recording, read_metadata
from .bench.scenario import Scenario, steps
from .bench.workers import Bench

SD15_FOLDER = {"output_model_format": "DIFFUSERS", "text_encoder": {"train": False}}
CASCADE_FOLDER = {"text_encoder": {"train": False}}
CASES = {"sd15": (configs.SD15_FINE_TUNE, SD15_FOLDER), "cascade": (configs.CASCADE_FINE_TUNE, CASCADE_FOLDER)}


@pytest.fixture(scope="module")
def runs(bench: Bench) -> dict[str, Recording]:
    started = {
        name: Scenario(bench, f"disk-{name}", family=family).start(
            schedule=steps(2, save_every=3), overrides=overrides, hook="initial_weights"
        )
        for name, (family, overrides) in CASES.items()
    }
    return {name: batch.results()[0].require() for name, batch in started.items()}


def tensor_files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.safetensors"))}


@pytest.mark.parametrize("name", CASES)
def test_parts_that_were_not_trained_are_one_file(runs: dict[str, Recording], name: str) -> None:
    # A part with a header of its own says of which set it is: that it is in both is known from the second save on.
    _, *later = sorted(runs[name].by_step("save").items())
    paths = later[0][1]
    ema, other = sorted((path for path in paths if path.is_dir()), key=lambda path: "-non-ema" in path.name)
    ours, theirs = tensor_files(ema), tensor_files(other)
    assert ours.keys() == theirs.keys()
    shared = {key for key, path in ours.items() if path.samefile(theirs[key])}
    trained = {key for key in ours if key.split("/")[0] in ("unet", "stage_c.safetensors")}
    assert trained
    assert shared == ours.keys() - trained
    for key in shared:
        marks = read_metadata(ours[key])
        assert marks.get("ema_select.set", "EMA, NON_EMA") == "EMA, NON_EMA"
    for key in trained:
        assert read_metadata(ours[key]).get("ema_select.set", "EMA") == "EMA"
        assert read_metadata(theirs[key]).get("ema_select.set", "NON_EMA") == "NON_EMA"
    for config in ema.rglob("*.json"):
        assert not config.samefile(other / config.relative_to(ema))


@pytest.mark.parametrize("name", CASES)
def test_the_final_output_may_be_written_into_again_and_shares_nothing(runs: dict[str, Recording], name: str) -> None:
    ema, other = sorted(
        (path for path in runs[name].output_folder.iterdir() if path.is_dir()), key=lambda path: "-non-ema" in path.name
    )
    for key, path in tensor_files(ema).items():
        assert not path.samefile(other / key)
