"""TensorBoard's event files, against TensorBoard's own reader."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from onetrainer_ema_select.report.events import read_scalars


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scalars, a text and a large picture, by torch's writer."""
    np = pytest.importorskip("numpy")
    writer = pytest.importorskip("torch.utils.tensorboard")
    folder = tmp_path_factory.mktemp("board")
    board = writer.SummaryWriter(str(folder))
    for step in range(50):
        board.add_scalar("loss/train_step", 1 / (1 + step), step)
    board.add_text("notes", "some text", 7)
    board.add_image("sample", np.random.default_rng(0).integers(0, 255, (3, 200, 200), dtype=np.uint8), 8)
    board.add_scalar("loss/train_step", float("nan"), 50)
    board.add_scalar("lr/学习率", 1e-4, 1 << 40)
    board.close()
    return next(folder.glob("*tfevents*"))


def test_what_tensorboard_reads_is_read(written: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    theirs = accumulator.EventAccumulator(str(written), size_guidance={"scalars": 0})
    theirs.Reload()
    ours = read_scalars(written, lambda tag: True)
    assert set(ours) == set(theirs.Tags()["scalars"])
    for tag, points in ours.items():
        expected = [(one.step, one.value) for one in theirs.Scalars(tag) if one.value == one.value]
        assert points == expected
    assert len(ours["loss/train_step"]) == 50


def test_only_what_is_wanted_is_kept(written: Path) -> None:
    assert set(read_scalars(written, lambda tag: tag.startswith("lr/"))) == {"lr/学习率"}


def test_a_file_that_is_cut_short_gives_what_is_whole(written: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    whole = read_scalars(written, lambda tag: True)["loss/train_step"]
    content = written.read_bytes()
    for length in (0, 5, 11, 400, 1000, len(content) - 60000):
        cut.write_bytes(content[:length])
        found = read_scalars(cut, lambda tag: True).get("loss/train_step", [])
        assert found == whole[: len(found)]
    assert found


@pytest.mark.parametrize(
    "body", [b"\xff" * 40, b"\x2a\xff", b"\x2b\x01", b"\x2a\x04\x0a\x7f\x0a\x01", b"\x10" + b"\xff" * 12]
)
def test_what_is_no_event_is_passed_over(tmp_path: Path, body: bytes) -> None:
    file = tmp_path / "events"
    file.write_bytes(struct.pack("<Q", len(body)) + bytes(4) + body + bytes(4))
    assert read_scalars(file, lambda tag: True) == {}
