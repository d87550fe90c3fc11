"""Tensors of files: each dtype, pieces, and headers that are wrong in every way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from onetrainer_ema_select.errors import StoreError
from onetrainer_ema_select.tensor_files import read_folder, read_safetensors, weight_files
from onetrainer_ema_select.tensor_set import TensorSet

DTYPES = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64"]
DTYPES += ["int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"]
AGAIN = "Copy or download it once more, or name another one."


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype(tmp_path: Path, name: str) -> None:
    dtype = getattr(torch, name)
    expected = torch.arange(6).reshape(3, 2).to(dtype)
    save_file(
        {"a": expected, "empty": torch.zeros(0, 3, dtype=dtype), "one": expected[1, 1].clone()},
        tmp_path / "x.safetensors",
    )
    found = TensorSet(read_safetensors(tmp_path / "x.safetensors")[0])
    assert found.dtype("a") == dtype
    assert found.dtype_name("a") == name
    assert found["a"].dtype == dtype
    assert found["a"].shape == (3, 2)
    assert torch.equal(found["a"].view(torch.uint8), expected.view(torch.uint8))
    assert torch.equal(found.read("a", 2, 5).view(torch.uint8), expected.reshape(-1)[2:5].view(torch.uint8))
    assert found["empty"].shape == (0, 3)
    assert found["one"].shape == ()
    assert found.nbytes == 7 * dtype.itemsize


def write(path: Path, header: object, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (b"", "has an unreadable header"),
        (b"{", "has an unreadable header"),
        ([], "has an unreadable header"),
        ({"a": 1}, "has an unreadable header"),
        ({"a": entry(), "__metadata__": []}, None),  # nothing in it: taken for no metadata
        ({"a": entry(), "__metadata__": [1]}, "has an unreadable header: its metadata is not a table"),
        ({"a": entry(shape="2")}, "has an unreadable header: 'a' has no shape or no place"),
        ({"a": entry(shape=[-2])}, "has an unreadable header: 'a' has no shape or no place"),
        ({"a": entry(shape=[True, 2])}, "has an unreadable header: 'a' has no shape or no place"),
        ({"a": entry(shape=[2.0])}, "has an unreadable header: 'a' has no shape or no place"),
        ({"a": entry(data_offsets=[-8, 8])}, "has an unreadable header: 'a' has no shape or no place"),
        ({"a": entry(data_offsets=[0, 8, 8])}, "has an unreadable header: 'a' has no dtype or no place"),
        ({"a": entry(dtype=None)}, "has an unreadable header: 'a' has no dtype or no place"),
        (
            {"a": entry(shape=[3])},
            "has an unreadable header: 'a' has 8 bytes, which is not what its shape (3,) in float32 takes",
        ),
        (
            {"a": entry(data_offsets=[16, 8], shape=[0])},
            "has an unreadable header: 'a' has -8 bytes, which is not what its shape (0,) in float32 takes",
        ),
        (
            {"a": entry(dtype="F4", data_offsets=[16, 8])},
            "has an unreadable header: 'a' has -8 bytes, which is not what its shape (2,) in F4 takes",
        ),
        ({"a": entry(data_offsets=[0, 9])}, "is cut short"),
        ({"a": entry(data_offsets=[0, 4], shape=[1])}, "is longer than its header says"),
    ],
)
def test_a_header_that_is_wrong(tmp_path: Path, header: object, problem: str | None) -> None:
    path = write(tmp_path / "x.safetensors", header, b"\0" * 8)
    if problem is None:
        assert read_safetensors(path)[1] == {}
        return
    with pytest.raises(StoreError) as caught:
        read_safetensors(path)
    assert str(caught.value).startswith(f"{path} {problem}")
    assert str(caught.value).endswith(AGAIN)


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 8, b"\xff" * 100])
def test_what_is_no_safetensors_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(StoreError, match=r"(is cut short|is not a safetensors file).*name another one\.$"):
        read_safetensors(tmp_path / "x.safetensors")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "F4", ""]) | json_values,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(-1, 20), min_size=2, max_size=2) | json_values,
    },
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.dictionaries(st.text(max_size=5), entries | json_values, max_size=3), size=st.integers(0, 24))
def test_any_header_is_read_or_refused(tmp_path: Path, header: dict[str, object], size: int) -> None:
    path = write(tmp_path / "x.safetensors", header, bytes(size))
    try:
        found = TensorSet(read_safetensors(path)[0])
    except StoreError as error:
        assert str(error).endswith(AGAIN)
        return
    for name in found:
        try:
            assert found[name].shape == found.shape(name)
        except StoreError as error:
            assert "cannot read" in str(error)


def test_a_dtype_that_torch_does_not_have(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {"a": {"dtype": "F6_E9", "shape": [4], "data_offsets": [0, 3]}}, b"abc")
    found = TensorSet(read_safetensors(path)[0])
    assert (found.dtype_name("a"), found.nbytes, found.numel("a")) == ("F6_E9", 3, 4)
    for read in (lambda: found["a"], lambda: found.dtype("a")):
        with pytest.raises(StoreError) as caught:
            read()
        assert str(caught.value) == (
            f"a in {path} is of the dtype F6_E9, which this version of torch cannot read. Name a model in another "
            "precision, or update torch."
        )


def test_of_several_variants_the_plain_one(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors", metadata={"which": "plain"})
    save_file({"a": torch.zeros(1)}, tmp_path / "model.fp16.safetensors", metadata={"which": "small"})
    save_file({"b": torch.zeros(1)}, tmp_path / "model.more.safetensors")
    found, metadata = read_folder(tmp_path)
    assert {key: stored.place.file.name for key, stored in found.items()} == {
        "a": "model.safetensors",
        "b": "model.more.safetensors",
    }
    assert metadata == {"which": "plain"}


def test_shards(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}', encoding="utf-8")
    save_file({"a": torch.ones(1)}, tmp_path / "1.safetensors")
    with pytest.raises(StoreError) as caught:
        weight_files(tmp_path)
    assert str(caught.value) == f"{index} names 2.safetensors, which is missing. {AGAIN}"
    save_file({"b": torch.ones(1)}, tmp_path / "2.safetensors")
    assert weight_files(tmp_path) == [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
