"""Is a backup whole: every part that may be missing or cut short, and what is said about it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from onetrainer_ema_select import store
from onetrainer_ema_select.checksums import verify_backup, verify_model
from onetrainer_ema_select.integrity import backup_problem, read_progress, read_safetensors_header, safetensors_problem
from onetrainer_ema_select.workspace import newest_complete_backup, scan_workspace

NAME = "2026-08-19_10-00-00-backup-4-2-0"


@pytest.fixture(params=["LORA", "EMBEDDING", "FINE_TUNE"])
def backup(request: pytest.FixtureRequest, make_backup: Callable[..., Path], tmp_path: Path) -> Path:
    return make_backup(tmp_path, NAME, method=request.param)


def model_of(backup: Path) -> Path:
    return next(backup.rglob("*.safetensors"))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def test_a_whole_backup(backup: Path) -> None:
    assert backup_problem(backup) == ""
    assert read_progress(backup) == {"epoch": 2, "epoch_step": 0, "epoch_sample": 0, "global_step": 4}


def test_without_an_average_it_is_whole_too(backup: Path) -> None:
    shutil.rmtree(backup / "ema")
    assert backup_problem(backup) == ""


def test_meta_is_written_last(backup: Path) -> None:
    (backup / "meta.json").unlink()
    assert backup_problem(backup) == "meta.json, which is written last, is missing: it was cut short"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is not JSON"),
        ('{"train_progress": {"epoch', "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("[]", "no train_progress in it"),
        ('{"train_progress": {"epoch": 2}}', "no step or epoch in it"),
    ],
)
def test_unreadable_meta(backup: Path, text: str, why: str) -> None:
    (backup / "meta.json").write_text(text, encoding="utf-8")
    assert backup_problem(backup) == f"meta.json cannot be read ({why})"


def test_without_a_model(backup: Path) -> None:
    for name in ("lora", "embeddings", "unet", "model_index.json"):
        path = backup / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    assert backup_problem(backup) == "there is no model in it"


def test_a_component_folder_is_a_model_without_an_index_too(make_backup: Callable[..., Path], tmp_path: Path) -> None:
    backup = make_backup(tmp_path, NAME, method="FINE_TUNE")
    (backup / "model_index.json").unlink()
    assert backup_problem(backup) == "there is no model in it"
    (backup / "unet" / "config.json").write_text("{}", encoding="utf-8")
    assert backup_problem(backup) == ""


def test_model_cut_short(backup: Path) -> None:
    model = model_of(backup)
    size = model.stat().st_size
    name = model.relative_to(backup).as_posix()
    cut(model, size - 1)
    assert backup_problem(backup) == f"{name} is cut short ({size - 1} of {size} bytes)"
    cut(model, 20)
    header = size - 32  # eight float32
    assert backup_problem(backup) == f"{name} is cut short inside its header (20 of at least {header} bytes)"
    cut(model, 3)
    assert backup_problem(backup) == f"{name} is cut short (3 bytes)"


def test_what_the_plugin_adds_is_no_part_of_the_model(backup: Path) -> None:
    """A damaged post-hoc track is no reason to go back to an older backup."""
    track = backup / "ema_select" / "post_hoc" / "sigma_rel-0.05.safetensors"
    track.parent.mkdir(parents=True)
    track.write_bytes(b"cut")
    assert backup_problem(backup) == ""


def test_model_longer_than_its_header_says(backup: Path) -> None:
    model = model_of(backup)
    size = model.stat().st_size
    model.write_bytes(model.read_bytes() + b"x")
    name = model.relative_to(backup).as_posix()
    assert backup_problem(backup) == f"{name} is longer than its header says ({size + 1} of {size} bytes)"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"PK\x03\x04\xff\xff\xff\xff" * 4, "is not a safetensors file"),
        ((2).to_bytes(8, "little") + b"{]", "has an unreadable header"),
        ((8).to_bytes(8, "little") + b'{"a": 1}', "has an unreadable header"),
    ],
)
def test_model_is_something_else(backup: Path, content: bytes, why: str) -> None:
    model = model_of(backup)
    model.write_bytes(content)
    assert backup_problem(backup) == f"{model.relative_to(backup).as_posix()} {why}"


def test_missing_shard(make_backup: Callable[..., Path], tmp_path: Path) -> None:
    backup = make_backup(tmp_path, NAME, method="FINE_TUNE")
    index = backup / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    shards = {"a": "diffusion_pytorch_model.safetensors", "b": "part-2.safetensors"}
    index.write_text(json.dumps({"weight_map": shards}), encoding="utf-8")
    assert (
        backup_problem(backup) == f"{index.relative_to(backup).as_posix()} names part-2.safetensors, which is missing"
    )
    save_file({"b": torch.zeros(2)}, backup / "unet" / "part-2.safetensors")
    assert backup_problem(backup) == ""
    index.write_text("{", encoding="utf-8")
    assert backup_problem(backup) == f"{index.relative_to(backup).as_posix()} cannot be read"


def test_optimizer_missing_or_cut_short(backup: Path) -> None:
    optimizer = backup / "optimizer" / "optimizer.pt"
    size = optimizer.stat().st_size
    cut(optimizer, size - 1)
    assert backup_problem(backup) == f"optimizer/optimizer.pt is cut short or not a torch file ({size - 1} bytes)"
    optimizer.unlink()
    assert backup_problem(backup) == "optimizer/optimizer.pt is missing"


def test_average_cut_short(backup: Path) -> None:
    average = backup / "ema" / "ema.pt"
    cut(average, 100)
    assert backup_problem(backup) == "ema/ema.pt is cut short or not a torch file (100 bytes)"


def test_average_that_the_manifest_promises(backup: Path) -> None:
    manifest = {
        "format": "onetrainer-ema-select",
        "version": 1,
        "kind": "backup",
        "plugin_version": "0.1.0",
        "run": "r",
        "step": 4,
        "epoch": 2,
        "epoch_step": 0,
        "parameters": [],
        "ema": {
            "file": "ema/ema.pt",
            "dtype": "FLOAT_32",
            "decay": 0.9,
            "update_step_interval": 1,
            "updates": 4,
            "step": 4,
        },
    }
    (backup / "ema_select").mkdir()
    (backup / "ema_select" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert backup_problem(backup) == ""
    (backup / "ema" / "ema.pt").unlink()
    assert backup_problem(backup) == "ema/ema.pt, which its manifest names, is missing"


def test_an_unreadable_manifest_does_not_make_a_backup_incomplete(backup: Path) -> None:
    # OneTrainer can resume from it; the plugin reports the manifest itself
    (backup / "ema_select").mkdir()
    (backup / "ema_select" / "manifest.json").write_text("{", encoding="utf-8")
    assert backup_problem(backup) == ""


def test_no_tensor_is_read(tmp_path: Path) -> None:
    # 4 TB that are not on the disk: only the header and the size can have been looked at
    header = json.dumps({"a": {"dtype": "U8", "shape": [2**42], "data_offsets": [0, 2**42]}}).encode()
    path = tmp_path / "sparse.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        try:
            file.truncate(8 + len(header) + 2**42)
        except OSError:
            pytest.skip("no sparse files of this size here")
    assert read_safetensors_header(path)["a"] == {"dtype": "U8", "shape": [2**42], "data_offsets": [0, 2**42]}


# -- files that lie -------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
OFFSETS = st.lists(st.integers(-(2**70), 2**70) | st.text(max_size=3), max_size=3) | JSON
ENTRY = st.fixed_dictionaries({"dtype": st.sampled_from(["F32", "BF16", "X"]), "shape": JSON, "data_offsets": OFFSETS})
LENGTHS = st.none() | st.integers(0, 2**64 - 1)


def as_safetensors(header: object, length: int | None, body: bytes) -> bytes:
    """A file whose length of the header may be a lie."""
    text = json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


TABLES = st.dictionaries(st.text(max_size=4), ENTRY | JSON, max_size=4) | JSON
HEADERS = st.builds(as_safetensors, TABLES, LENGTHS, st.binary(max_size=20)) | st.binary(max_size=60)


@settings(max_examples=600, deadline=None)
@given(HEADERS)
def test_whatever_a_model_file_holds_it_is_judged(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        path.write_bytes(content)
        problem = safetensors_problem(path)
        try:
            load_file(path)
        except Exception:
            loads = False
        else:
            loads = True
        assert not (loads and problem), "a file that loads is called broken"
        with contextlib.suppress(ValueError):
            store.read_metadata(path)
        verify_model(path)


def archive(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name, content in entries.items():
            target.writestr(name, content)
    return buffer.getvalue()


MARK = Path(tempfile.gettempdir(), f"ema_select_{os.getpid()}_was_here")


class Evil:
    """Would run a command if it were unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {MARK}",)


def cut_or_changed(content: bytes, at: int, value: int) -> bytes:
    position = at % (len(content) + 1)
    return content[:position] + bytes([value]) + content[position + (value % 2) :]


PICKLES = st.sampled_from([pickle.dumps({"a": 1}), pickle.dumps(Evil()), b"", b"\x80"])
MEMBERS = st.sampled_from(["archive/data.pkl", "../../out", "/etc/x", "archive/data/0", "archive/version"])
ARCHIVES = st.dictionaries(MEMBERS, PICKLES, max_size=4).map(archive)
ENDINGS = ARCHIVES | st.builds(cut_or_changed, ARCHIVES, st.integers(0, 10**6), st.integers(0, 255)) | st.binary()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=ENDINGS, name=st.sampled_from(["optimizer/optimizer.pt", "ema/ema.pt"]))
def test_whatever_an_archive_holds_it_is_judged_and_nothing_in_it_is_run(
    backup: Path, content: bytes, name: str
) -> None:
    whole = (backup / name).read_bytes()
    try:
        (backup / name).write_bytes(content)
        before = sorted(backup.parent.parent.rglob("*"))
        backup_problem(backup)
        verify_backup(backup)
        assert sorted(backup.parent.parent.rglob("*")) == before
        assert not MARK.exists()
    finally:
        (backup / name).write_bytes(whole)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=30))
def test_whatever_stands_for_the_progress_is_judged(backup: Path, content: bytes) -> None:
    whole = (backup / "meta.json").read_bytes()
    try:
        (backup / "meta.json").write_bytes(content)
        backup_problem(backup)
        scan_workspace(backup.parent.parent)
        newest_complete_backup(backup.parent.parent)
    finally:
        (backup / "meta.json").write_bytes(whole)
