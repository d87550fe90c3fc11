"""What a file holds is compared with what it was to hold; whatever differs is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file
from torch import Tensor

from onetrainer_ema_select.errors import ExportError
from onetrainer_ema_select.host.export.readback import _CHUNK, ReadBack, compare_file


def tensors() -> dict[str, Tensor]:
    """Of several dtypes and sizes; the largest is read in several pieces."""
    generator = torch.Generator().manual_seed(1)
    return {
        "large": torch.randn(3 * _CHUNK // 4 + 5, generator=generator),
        "half": torch.randn(7, 3, generator=generator).half(),
        "brain": torch.randn(33, generator=generator).bfloat16(),
        "whole": torch.arange(5),
        "none": torch.zeros(0, 4),
        "one": torch.tensor(2.5),
    }


def test_a_file_that_is_right(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file(tensors(), path)
    found = compare_file(path, tensors())
    assert (found.path, found.tensors, found.size_bytes, found.nonfinite) == (path, 6, path.stat().st_size, ())


@pytest.mark.parametrize("name", ["large", "half", "brain", "whole", "one"])
@pytest.mark.parametrize("last", [False, True])
def test_one_changed_bit_is_found(tmp_path: Path, name: str, last: bool) -> None:
    path = tmp_path / "m.safetensors"
    changed = tensors()
    as_bytes = changed[name].reshape(-1).view(torch.uint8)
    as_bytes[-1 if last else 0] ^= 1
    save_file(changed, path)
    with pytest.raises(
        ExportError, match=rf"{name} in m\.safetensors is not what was written\. The disk or the memory"
    ):
        compare_file(path, tensors())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def one_less(path: Path) -> None:
    save_file({name: tensor for name, tensor in tensors().items() if name != "half"}, path)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [(cut, "is cut short .* right after it was written"), (one_less, "does not hold the tensors that were written")],
)
def test_a_file_of_another_structure_is_found(tmp_path: Path, spoil: Callable[[Path], None], says: str) -> None:
    path = tmp_path / "m.safetensors"
    save_file(tensors(), path)
    spoil(path)
    with pytest.raises(ExportError, match=says):
        compare_file(path, tensors())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nan_and_inf_are_named_and_large_numbers_are_not(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    path = tmp_path / "m.safetensors"
    most = torch.finfo(dtype).max
    held = {"good": torch.full((4000,), most, dtype=dtype), "bad": torch.zeros(4000, dtype=dtype)}
    held["bad"][3999] = value
    save_file(held, path)
    assert compare_file(path, held).nonfinite == ("bad",)


def test_it_stands_in_for_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = safetensors.torch.save_file
    monkeypatch.setattr(safetensors.torch, "save_file", original)
    readback = ReadBack()
    readback.install()
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file(tensors(), str(path), metadata={"format": "pt"})
    assert [file.path for file in readback.files] == [path]
    with safetensors.safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}

    def forgetful(held: dict[str, Tensor], filename: str, metadata: object = None) -> None:
        original({name: tensor + 1 for name, tensor in held.items()}, filename)

    readback._save = forgetful  # type: ignore[assignment]
    with pytest.raises(ExportError, match="is not what was written"):
        safetensors.torch.save_file(tensors(), str(path))
    assert len(readback.files) == 1
