"""What post-hoc tracks go on from when a run is resumed, and what is said where they cannot."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from onetrainer_ema_select.errors import ResumeError
from onetrainer_ema_select.host import backup as backup_module
from onetrainer_ema_select.host import post_hoc
from onetrainer_ema_select.manifest import (
    LegRecord,
    Manifest,
    ParameterRecord,
    PostHocRecord,
    PowerTrackRecord,
    StretchRecord,
)
from onetrainer_ema_select.schedule import parse_interval
from onetrainer_ema_select.settings import EmaSelectSettings

FILE = "ema_select/post_hoc/sigma_rel-0.1.safetensors"
SAVED = torch.full((3,), 2.0)


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run with batches of 2 that is resumed at step 10, from a backup that has seen 40 images by then."""
    monkeypatch.setattr(post_hoc, "images_per_step", lambda _: 2)
    (tmp_path / FILE).parent.mkdir(parents=True)
    save_file({"unet.a": SAVED}, tmp_path / FILE)
    manifest = Manifest(
        kind="backup", plugin_version="0", run="r", step=10, epoch=1, epoch_step=0,
        parameters=(ParameterRecord(name="unet.a", shape=(3,), dtype="float32"),),
        post_hoc=PostHocRecord(
            tracks=(PowerTrackRecord(sigma_rel=0.1, file=FILE),), dtype="FLOAT_32", images=40, time=36, updates=9,
            interval=4, update_step_interval=1, stretch="b", line=(StretchRecord(id="a", until_step=5),),
        ),
    )  # fmt: skip
    said: list[str] = []
    return SimpleNamespace(
        config=SimpleNamespace(gradient_accumulation_steps=1, ema_update_step_interval=1),
        settings=EmaSelectSettings(enabled=True, post_hoc_sigma_rels="0.1", post_hoc_every="2 steps"),
        model=SimpleNamespace(train_progress=SimpleNamespace(global_step=10, epoch=1, epoch_step=0)),
        contents=SimpleNamespace(manifest=manifest),
        backup=tmp_path,
        plan=SimpleNamespace(restarts=False),
        names=("unet.a",),
        starts_average=False,
        reporter=SimpleNamespace(say=said.append, problem=lambda text, _: said.append(text)),
        said=said,
    )


def made(session: Any) -> post_hoc.PostHoc:
    return post_hoc.PostHoc(session, [torch.ones(3, requires_grad=True)], device=torch.device("cpu"))


def test_it_goes_on_from_the_backup_and_counts_on(session: Any) -> None:
    tracks = made(session)
    assert tracks.sentence == "0.1 go on from the backup"
    assert torch.equal(tracks.tracks.sets()[0.1]["unet.a"], SAVED)
    assert (tracks.tracks.time, tracks.tracks.updates) == (36, 9)
    # of the batches of 4 that there were before, and those of 2 from now on
    assert [tracks.images_at(step) for step in (10, 11, 15)] == [40, 42, 50]
    assert tracks.time_of(10) == 42


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_track_that_cannot_be_read_stops_the_run_before_it_trains(session: Any, damage: str) -> None:
    file = session.backup / FILE
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(
        ResumeError, match=r"The post-hoc track .*0\.1\.safetensors .*resume_ema to RESTART to begin all"
    ):
        made(session)


def test_of_other_weights_they_begin_anew(session: Any) -> None:
    session.names = ("unet.b",)
    tracks = made(session)
    assert tracks.sentence == "they begin at the loaded weights, because the backup's are of other trained weights"
    assert (tracks.tracks.time, tracks.tracks.begun_at[0.1]) == (20, 20)


def test_a_restart_begins_with_the_time_too(session: Any) -> None:
    session.plan.restarts = session.starts_average = True
    session.settings = session.settings.model_copy(update={"resume_ema": post_hoc.ResumeEma.RESTART})
    tracks = made(session)
    assert (tracks.tracks.time, tracks.images_at(11)) == (0, 2)


def test_how_many_snapshots_are_to_come(session: Any) -> None:
    tracks = made(session)
    every = parse_interval("2 steps")
    assert every is not None
    said = tracks._projection(every, epoch_length=10, epochs=3)
    assert said == "About 10 snapshot(s) of the post-hoc tracks are still to come, 0.1 kB together."


def test_a_backup_that_has_no_room_for_them(session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracks = made(session)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    session.run = "r"
    monkeypatch.setattr(post_hoc, "save_file", full)
    (tmp_path / "new").mkdir()
    assert tracks.keep(tmp_path / "new") is None
    assert session.said == [
        "The post-hoc tracks could not be kept in the backup new. A run that is resumed from it begins them anew. "
        "Check the disk space."
    ]


@pytest.fixture
def snapshots(session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the run's snapshots come to lie."""
    session.run, session.workspace = "r", tmp_path / "workspace"
    session.space = SimpleNamespace(before=lambda *_, **__: None)
    session.config.model_type, session.config.training_method = "STABLE_DIFFUSION_15", "LORA"
    session.plan.leg = LegRecord()
    session.model.train_progress.filename_string = lambda: f"{session.model.train_progress.global_step}-1-0"
    monkeypatch.setattr(backup_module, "host_commit", lambda _: "")
    return session.workspace / "ema_select" / "post_hoc" / "backup"


def test_a_run_that_has_nothing_left_to_train_writes_no_snapshot_again(session: Any, snapshots: Path) -> None:
    tracks = made(session)
    tracks.snapshot()
    assert not snapshots.exists()
    session.model.train_progress.global_step = 11
    tracks.tracks.step(42.0)
    tracks.snapshot()
    tracks.snapshot()
    assert len(list(snapshots.iterdir())) == 1
    assert session.said == []


def test_a_backup_between_an_update_and_its_step_holds_the_tracks_of_its_time(session: Any, snapshots: Path) -> None:
    """Ctrl-C while OneTrainer validates: it has not counted the step yet whose update is done."""
    tracks = made(session)
    tracks.tracks.step(42.0)
    session.model.train_progress.global_step = 11
    tracks.snapshot()
    tracks.tracks.step(44.0)
    folder = session.workspace / "stopped"
    folder.mkdir()
    record = tracks.keep(folder)
    assert record is not None
    assert (record.time, record.updates) == (44.0, 11)
    kept = load_file(folder / record.tracks[0].file)["unet.a"]
    assert torch.equal(kept, tracks.tracks.sets()[0.1]["unet.a"])
    session.contents.manifest = session.contents.manifest.model_copy(update={"post_hoc": record})
    session.backup = folder
    again = made(session)
    assert again.images_at(11) == 44.0  # and not 42, behind the tracks
    assert session.said == []


def test_a_snapshot_of_a_backup_links_its_files(session: Any, snapshots: Path) -> None:
    tracks = made(session)
    session.model.train_progress.global_step = 11
    tracks.tracks.step(42.0)
    backup = session.workspace / "backup" / "b"
    backup.mkdir(parents=True)
    record = tracks.keep(backup)
    assert record is not None
    tracks.kept_in(backup)
    tracks.snapshot()
    [snapshot] = snapshots.iterdir()
    assert (snapshot / "sigma_rel-0.1.safetensors").samefile(backup / record.tracks[0].file)


def test_a_resume_leaves_no_file_of_its_backup_mapped(session: Any) -> None:
    """Windows deletes no mapped file, and OneTrainer deletes old backups while it trains."""
    tracks = made(session)
    assert tracks.tracks.sets()[0.1]["unet.a"].untyped_storage().nbytes() == 12  # and not the whole file
    maps = Path("/proc/self/maps")
    if maps.is_file():
        assert str(session.backup / FILE) not in maps.read_text(encoding="utf-8")
