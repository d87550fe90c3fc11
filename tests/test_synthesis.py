from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from onetrainer_ema_select import synthesis
from onetrainer_ema_select.errors import StoreError
from onetrainer_ema_select.synthesis import Synthesis

LARGE = (3.0, -47.5, 88.25, -61.0, 18.25)


def coefficients(count: int, *, seed: int = 0) -> tuple[float, ...]:
    drawn = np.random.default_rng(seed).normal(size=count) * 3
    return (*drawn[:-1].tolist(), float(1 - drawn[:-1].sum()))


def snapshots(folder: Path, count: int, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> list[Path]:
    """Files whose weights lie near each other, as those of one training do."""
    generator = torch.Generator().manual_seed(3)
    start = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    files = []
    for number in range(count):
        moved = {
            name: (value + 1e-4 * torch.randn(value.shape, generator=generator)).to(dtype)
            for name, value in start.items()
        }
        moved["counter"] = torch.tensor([number])
        files.append(folder / f"{number}.safetensors")
        save_file(moved, files[-1])
    return files


def exact(files: Sequence[Path], weights: Sequence[float], name: str) -> Tensor:
    from safetensors.torch import load_file

    parts = [load_file(file)[name].double() for file in files]
    return torch.stack([part * weight for part, weight in zip(parts, weights, strict=True)]).sum(0)


SHAPES = {"matrix": (70, 90), "vector": (5,), "number": (), "empty": (0, 3), "kernel": (4, 3, 3, 3)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("piece", [16, 4096, None])
def test_every_tensor_is_the_weighted_sum(
    dtype: torch.dtype, piece: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if piece is not None:
        monkeypatch.setattr(synthesis, "_STACK_BYTES", 4 * 5 * piece)
    files = snapshots(tmp_path, 5, SHAPES, dtype)
    weights = coefficients(5)
    with Synthesis(files, weights) as mixed:
        assert set(mixed) == {*SHAPES, "counter"}
        for name, shape in SHAPES.items():
            found = mixed[name]
            assert (found.dtype, tuple(found.shape), mixed.shape(name)) == (torch.float32, shape, shape)
            assert mixed.dtype_name(name) == "float32"
            assert mixed.entry(name).nbytes == found.nbytes
            tolerance = 1e-6 if dtype in (torch.float32, torch.float64) else 2e-6
            torch.testing.assert_close(found.double(), exact(files, weights, name), rtol=tolerance, atol=tolerance)
        assert mixed["counter"].item() in range(5)


def test_a_piece_of_a_tensor_is_what_it_is_in_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis, "_STACK_BYTES", 4 * 4 * 100)
    files = snapshots(tmp_path, 4, SHAPES, torch.float32)
    with Synthesis(files, coefficients(4)) as mixed:
        whole = mixed["matrix"].reshape(-1)
        for first, last in ((0, 0), (0, 1), (99, 101), (17, 6300), (6299, 6300)):
            torch.testing.assert_close(mixed.read("matrix", first, last), whole[first:last], rtol=1e-6, atol=1e-6)


def test_large_coefficients_of_both_signs_do_not_amplify_the_rounding(tmp_path: Path) -> None:
    # A plain float32 sum is off by up to 218 (the sum of the magnitudes) roundings of the weights themselves.
    files = snapshots(tmp_path, 5, {"weights": (200, 300)}, torch.float32)
    wanted = exact(files, LARGE, "weights")
    with Synthesis(files, LARGE) as mixed:
        found = mixed["weights"].double()
    plain = torch.stack([_load(file) * weight for file, weight in zip(files, LARGE, strict=True)]).sum(0).double()

    half_a_step = torch.finfo(torch.float32).eps / 2 * wanted.abs()
    assert ((found - wanted).abs() <= 1.1 * half_a_step + 1e-8).all()
    assert (plain - wanted).norm() > 10 * (found - wanted).norm()


def _load(file: Path) -> Tensor:
    from safetensors.torch import load_file

    return load_file(file)["weights"]


def test_one_snapshot_with_everything_is_itself_bit_for_bit(tmp_path: Path) -> None:
    files = snapshots(tmp_path, 3, SHAPES, torch.float32)
    files[0].unlink()  # a coefficient of 0: not looked at
    with Synthesis(files, (0.0, 1.0, 0.0)) as mixed:
        assert mixed.files == (files[1],)
        from safetensors.torch import load_file

        for name, tensor in load_file(files[1]).items():
            assert torch.equal(mixed[name], tensor)


def test_every_byte_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = snapshots(tmp_path, 3, {"a": (50_000,), "b": (7,)}, torch.float32)
    read: list[int] = []
    original = synthesis._Worker._read

    def counted(self, place, part, first, target) -> None:
        read.append(target.numel() * 4)
        original(self, place, part, first, target)

    monkeypatch.setattr(synthesis._Worker, "_read", counted)
    with Synthesis(files, coefficients(3)) as mixed:
        mixed["a"], mixed["b"]
    assert sum(read) == 3 * 4 * 50_007


@pytest.mark.parametrize(("weights", "said"), [((0.5, 0.4), "sum to 0.9"), ((0.0, 0.0), "sum to 0")])
def test_coefficients_that_do_not_sum_to_one_are_refused(weights: tuple[float, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=said):
        Synthesis(snapshots(tmp_path, 2, SHAPES, torch.float32), weights)


def test_as_many_coefficients_as_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="longer"):
        Synthesis(snapshots(tmp_path, 2, SHAPES, torch.float32), (0.5, 0.25, 0.25))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"a": torch.zeros(2)}, "does not hold b, unlike"),
        ({"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}, "holds c, unlike"),
        ({"a": torch.zeros(3), "b": torch.zeros(3)}, r"holds a in the shape \(3,\) and float32 instead of \(2,\)"),
        ({"a": torch.zeros(2, dtype=torch.int64), "b": torch.zeros(3)}, "int64 instead of"),
    ],
)
def test_snapshots_of_different_weights_are_refused(other: dict[str, Tensor], said: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    save_file({"a": torch.zeros(2), "b": torch.zeros(3)}, one)
    save_file(other, two)
    with pytest.raises(StoreError, match=said) as caught:
        Synthesis([one, two], (0.75, 0.25))
    assert "cannot be mixed" in str(caught.value)
    assert caught.value.path == str(two)


def test_a_missing_file_and_one_that_shrinks_are_named(tmp_path: Path) -> None:
    files = snapshots(tmp_path, 2, {"a": (50_000,)}, torch.float32)
    with Synthesis(files, (0.75, 0.25)) as mixed:
        os.truncate(files[1], files[1].stat().st_size - 50_000)
        with pytest.raises(StoreError, match=r"1\.safetensors became shorter while it was read"):
            mixed["a"]
    files[1].unlink()
    with pytest.raises(StoreError, match=r"1\.safetensors"):
        Synthesis(files, (0.75, 0.25))


def test_when_it_is_closed_nothing_is_held_open(tmp_path: Path) -> None:
    files = snapshots(tmp_path, 3, SHAPES, torch.float32)
    mixed = Synthesis(files, (0.5, 0.25, 0.25))
    handles = [handle.file for handle in mixed._handles._kept]
    assert len(handles) == 3  # one for each, not one for each and thread
    mixed["matrix"]
    assert not any(handle.closed for handle in handles)
    mixed.close()
    assert all(handle.closed for handle in handles)
    assert len(mixed) == 0


@pytest.mark.parametrize("most_open", [0, 1, 3, 7, 128])
@pytest.mark.parametrize("rows", [1, 3, 6, 32])
@pytest.mark.parametrize("positioned", [True, False])
def test_files_that_do_not_stay_open_and_more_than_lie_side_by_side(
    most_open: int, rows: int, positioned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthesis, "_MOST_OPEN", most_open)
    monkeypatch.setattr(synthesis, "_ROWS", rows)
    monkeypatch.setattr(synthesis, "_STACK_BYTES", 4 * 1000)
    if not positioned:  # as on Windows
        monkeypatch.setattr(synthesis, "_PREADV", None)
    files = snapshots(tmp_path, 7, {"matrix": (70, 90)}, torch.float32)
    weights = coefficients(7)
    with Synthesis(files, weights) as mixed:
        assert len(mixed._handles._kept) == min(most_open, 7)
        wanted = exact(files, weights, "matrix")
        torch.testing.assert_close(mixed["matrix"].double(), wanted, rtol=1e-6, atol=1e-6)


MANY = """
import resource, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from onetrainer_ema_select.synthesis import Synthesis

def opened():
    return len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 0

moved = 1e-3 * torch.randn(600, 1000, generator=torch.Generator().manual_seed(1))
weights = torch.randn(600, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
weights[-1] += 1 - weights.sum()
files = [Path(sys.argv[1], f"{number}.safetensors") for number in range(600)]
for file, row in zip(files, moved, strict=True):
    save_file({"a": row + 1}, file)
for limit in (256, 64):  # what macOS allows, and less than what is kept open otherwise
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    before = opened()
    with Synthesis(files, weights.tolist()) as mixed:
        found = mixed["a"].double()
    torch.testing.assert_close(found, weights @ (moved + 1).double(), rtol=1e-6, atol=1e-6)
    assert opened() == before
print("as it should be")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the number of open files is limited in another way there")
def test_more_files_than_the_system_allows_to_be_open(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", MANY, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "as it should be\n"), done.stderr


def test_where_not_one_file_can_be_opened_the_limit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = snapshots(tmp_path, 2, {"a": (5,)}, torch.float32)

    def full(path: Path) -> None:
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    monkeypatch.setattr(synthesis, "_Handle", full)
    with Synthesis(files, (0.75, 0.25)) as mixed, pytest.raises(StoreError, match="as many files open as the") as told:
        mixed["a"]
    assert "ulimit -n 4096" in str(told.value)
    assert "download" not in str(told.value)
    assert str(files[0]) in str(told.value)
