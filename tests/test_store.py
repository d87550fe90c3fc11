from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from onetrainer_ema_select import store
from onetrainer_ema_select.store import (
    Staging,
    add_metadata,
    clear_leftovers,
    clear_old_leftovers,
    read_metadata,
    write_json,
)

REPLACE = Path.replace
FSYNC = os.fsync


class FailingCalls:
    """Stands in for a function: its calls are counted, and the n-th one (from 0) fails."""

    def __init__(self, function: Callable, fails_at: int | None = None, code: int = errno.ENOSPC) -> None:
        self.function = function
        self.fails_at = fails_at
        self.code = code
        self.count = 0

    def __call__(self, *args: object) -> object:
        self.count += 1
        if self.count - 1 == self.fails_at:
            raise OSError(self.code, os.strerror(self.code))
        return self.function(*args)


def failing(mocker, which: str, fails_at: int | None = None, code: int = errno.ENOSPC) -> FailingCalls:
    calls = FailingCalls(FSYNC if which == "fsync" else REPLACE, fails_at, code)
    if which == "fsync":
        mocker.patch.object(os, "fsync", calls)
    else:
        # A function, which binds as a method; the object itself would not.
        mocker.patch.object(Path, "replace", lambda self, target: calls(self, target))  # noqa: PLW0108
    return calls


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with its text, hidden ones too."""
    return {
        file.relative_to(folder).as_posix(): file.read_text(encoding="utf-8")
        for file in folder.rglob("*")
        if file.is_file()
    }


def fill(path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text, encoding="utf-8")


BACKUP = {
    "ema_select/manifest.json": "m",
    "lora/lora.safetensors": "w",
    "meta.json": "p",
    "optimizer/optimizer.pt": "o",
}


def write_backup(destination: Path, workspace: Path) -> None:
    staging = Staging(destination, workspace=workspace)
    try:
        fill(staging.path, BACKUP)
        assert not destination.exists()
        staging.publish()
    finally:
        staging.discard()


SAVE = {
    "x.safetensors": "new",
    "x.yaml": "new yaml",
    "x.safetensors_embeddings/a.safetensors": "new a",
    "x.safetensors_embeddings/b.safetensors": "new b",
}


def write_save(destination: Path, workspace: Path) -> None:
    staging = Staging(destination, workspace=workspace)
    try:
        assert staging.path.name == destination.name
        fill(staging.folder, SAVE)
        staging.publish()
    finally:
        staging.discard()


def test_a_backup_is_published_whole(tmp_path):
    destination = tmp_path / "run" / "backup" / "b"
    write_backup(destination, tmp_path / "run")
    assert tree(tmp_path) == {f"run/backup/b/{name}": text for name, text in BACKUP.items()}
    assert not (tmp_path / "run" / "ema_select" / "staging").exists()


def test_a_folder_appears_in_one_step_after_its_files_are_on_the_disk(tmp_path, mocker):
    order = []
    mocker.patch.object(os, "fsync", lambda descriptor: order.append("flush"))
    mocker.patch.object(Path, "replace", lambda self, target: (order.append("move"), REPLACE(self, target))[1])
    write_backup(tmp_path / "backup" / "b", tmp_path)
    assert order == ["flush"] * len(BACKUP) + ["move"] + ["flush"] * (os.name != "nt")


def test_inside_the_workspace_nothing_private_stands_among_backups_and_saves(tmp_path):
    staging = Staging(tmp_path / "backup" / "b", workspace=tmp_path)
    assert staging.folder.parent == tmp_path / "ema_select" / "staging"
    assert staging.path == staging.folder / "b"
    assert not (tmp_path / "backup").exists()


def test_outside_it_is_staged_beside_the_destination(tmp_path):
    staging = Staging(tmp_path / "models" / "x.safetensors", workspace=tmp_path / "run")
    assert staging.folder.parent == tmp_path / "models"
    assert staging.folder.name.startswith(".ema_select-staging-")
    assert not (tmp_path / "run").exists()
    staging.discard()
    assert list((tmp_path / "models").iterdir()) == []


def test_discarding_keeps_a_users_folder_that_is_called_staging(tmp_path):
    folder = tmp_path / "staging"
    folder.mkdir()
    Staging(folder / "x.safetensors", workspace=tmp_path / "run").discard()
    assert folder.is_dir()


def test_two_at_once_do_not_disturb_each_other(tmp_path):
    first = Staging(tmp_path / "save" / "x", workspace=tmp_path)
    second = Staging(tmp_path / "save" / "x", workspace=tmp_path)
    first.path.write_text("first", encoding="utf-8")
    second.path.write_text("second", encoding="utf-8")
    second.discard()
    first.publish()
    assert tree(tmp_path) == {"save/x": "first"}


def test_the_last_one_to_leave_takes_nothing_from_the_next(tmp_path, mocker):
    """They are written on one thread and discarded on another."""
    make, removed = store.tempfile.mkdtemp, []

    def mkdtemp(**where: Path) -> str:
        if not removed:
            removed.append(where["dir"].rmdir())
        return make(**where)

    mocker.patch.object(store.tempfile, "mkdtemp", mkdtemp)
    write_backup(tmp_path / "backup" / "b", tmp_path)
    assert removed
    assert tree(tmp_path) == {f"backup/b/{name}": text for name, text in BACKUP.items()}


def test_a_file_in_the_place_of_the_private_folder_is_named(tmp_path):
    fill(tmp_path, {"ema_select/staging": "mine"})
    with pytest.raises(FileExistsError, match="staging"):
        Staging(tmp_path / "backup" / "b", workspace=tmp_path)
    assert tree(tmp_path) == {"ema_select/staging": "mine"}


@pytest.mark.parametrize("inside", [True, False])
def test_what_belongs_beside_is_published_and_the_destination_last(tmp_path, mocker, inside):
    moved = []
    mocker.patch.object(Path, "replace", lambda self, target: (moved.append(Path(target).name), REPLACE(self, target)))
    destination = tmp_path / ("run/save" if inside else "models") / "x.safetensors"
    write_save(destination, tmp_path / "run")
    assert tree(destination.parent) == SAVE
    assert sorted(moved) == ["x.safetensors", "x.safetensors_embeddings", "x.yaml"]
    assert moved[-1] == "x.safetensors"


def test_an_existing_folder_is_merged_and_foreign_files_stay(tmp_path, mocker):
    destination = tmp_path / "backup" / "b"
    fill(destination, {"notes.txt": "mine", "lora/other.txt": "mine too", "meta.json": "old", "ema_select/x": "kept"})
    moved = []
    mocker.patch.object(Path, "replace", lambda self, target: (moved.append(Path(target)), REPLACE(self, target)))
    staging = Staging(destination, workspace=tmp_path)
    fill(staging.path, BACKUP)
    staging.publish()
    foreign = {"notes.txt": "mine", "lora/other.txt": "mine too", "ema_select/x": "kept"}
    assert tree(destination) == BACKUP | foreign
    # What says that the rest is there comes after the rest.
    names = [path.relative_to(destination).as_posix() for path in moved]
    assert names == ["lora/lora.safetensors", "optimizer", "ema_select/manifest.json", "meta.json"]


def test_an_existing_file_is_replaced(tmp_path):
    fill(tmp_path, {"save/x.safetensors": "old", "save/y": "other"})
    write_save(tmp_path / "save" / "x.safetensors", tmp_path)
    assert tree(tmp_path / "save") == SAVE | {"y": "other"}


def test_nothing_written_is_an_error(tmp_path):
    staging = Staging(tmp_path / "backup" / "b", workspace=tmp_path)
    with pytest.raises(FileNotFoundError, match="Nothing was written for") as caught:
        staging.publish()
    assert caught.value.filename == str(tmp_path / "backup" / "b")
    staging.discard()
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("which", ["fsync", "replace"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_backup_is_whole_or_absent_whatever_fails(tmp_path, mocker, which, inside):
    count = failing(mocker, which)
    write_backup(tmp_path / "dry" / "b", tmp_path / "dry")
    assert count.count > 0
    for fails_at in range(count.count):
        root = tmp_path / str(fails_at)
        workspace = root / "run"
        destination = (workspace / "backup" if inside else root / "out") / "b"
        mocker.stopall()
        failing(mocker, which, fails_at)
        # Some file systems refuse to flush a folder's entries: what is whole by then must not count as lost.
        appeared = which == "fsync" and fails_at == len(BACKUP)
        with contextlib.nullcontext() if appeared else pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            write_backup(destination, workspace)
        assert destination.exists() == appeared
        prefix = destination.relative_to(root).as_posix()
        assert tree(root) == ({f"{prefix}/{name}": text for name, text in BACKUP.items()} if appeared else {})
        assert not (workspace / "ema_select" / "staging").exists()


@pytest.mark.parametrize("which", ["fsync", "replace"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_save_is_seen_only_with_what_belongs_beside_it(tmp_path, mocker, which, inside):
    count = failing(mocker, which)
    write_save(tmp_path / "dry" / "x.safetensors", tmp_path / "dry")
    for fails_at in range(count.count):
        root = tmp_path / str(fails_at)
        folder = root / "run" / "save" if inside else root / "out"
        mocker.stopall()
        failing(mocker, which, fails_at)
        whole = which == "fsync" and fails_at == len(SAVE)
        with contextlib.nullcontext() if whole else pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            write_save(folder / "x.safetensors", root / "run")
        found = tree(root)
        assert (len(found) == len(SAVE)) == whole or which == "replace"
        assert "x.safetensors" not in {Path(name).name for name in found} or len(found) == len(SAVE)
        assert not any("staging" in name for name in found)


def test_an_interrupted_merge_leaves_the_old_markers(tmp_path, mocker):
    old = dict.fromkeys(BACKUP, "old")
    count = failing(mocker, "replace")
    fill(tmp_path / "dry" / "b", old)
    staging = Staging(tmp_path / "dry" / "b", workspace=tmp_path / "dry")
    fill(staging.path, BACKUP)
    staging.publish()
    assert count.count == len(BACKUP)
    for fails_at in range(count.count):
        mocker.stopall()
        failing(mocker, "replace", fails_at)
        destination = tmp_path / str(fails_at) / "b"
        fill(destination, old)
        staging = Staging(destination, workspace=tmp_path / str(fails_at))
        fill(staging.path, BACKUP)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            staging.publish()
        staging.discard()
        found = tree(destination)
        assert set(found) == set(BACKUP)
        assert found["meta.json"] == "old"
        assert not (tmp_path / str(fails_at) / "ema_select").exists() or not any(
            (tmp_path / str(fails_at) / "ema_select").iterdir()
        )


def test_another_disk_is_reached_in_one_visible_step(tmp_path, mocker):
    calls = failing(mocker, "replace", 0, errno.EXDEV)
    write_backup(tmp_path / "backup" / "b", tmp_path)
    assert calls.count == 2
    assert tree(tmp_path) == {f"backup/b/{name}": text for name, text in BACKUP.items()}
    assert [path.name for path in (tmp_path / "backup").iterdir()] == ["b"]


# The files are flushed in the staging and again as copies.
@pytest.mark.parametrize("fails_at", range(2 * len(BACKUP)))
def test_on_another_disk_too_it_is_whole_or_absent(tmp_path, mocker, fails_at):
    failing(mocker, "replace", 0, errno.EXDEV)
    failing(mocker, "fsync", fails_at)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        write_backup(tmp_path / "backup" / "b", tmp_path)
    assert tree(tmp_path) == {}
    assert list((tmp_path / "backup").glob("*")) == []


def test_another_disk_that_refuses_the_last_step_is_left_clean(tmp_path, mocker):
    refusals = [OSError(errno.EXDEV, "another disk"), OSError(errno.ENOSPC, "full")]
    mocker.patch.object(Path, "replace", side_effect=refusals)
    with pytest.raises(OSError, match="full"):
        write_backup(tmp_path / "backup" / "b", tmp_path)
    assert tree(tmp_path) == {}
    assert list((tmp_path / "backup").iterdir()) == []


def test_leftovers_of_this_workspace_are_removed_and_nothing_else(tmp_path):
    ours, theirs, models = tmp_path / "run", tmp_path / "other run", tmp_path / "models"
    for workspace in (ours, theirs):
        for destination in (workspace / "backup" / "b", workspace / "save" / "x", models / "x.safetensors"):
            fill(Staging(destination, workspace=workspace).folder, {"half": "written"})
    fill(ours, {"backup/b1/meta.json": "{}", "ema_select/saves.json": "{}", "save/y": "y", "config.json": "{}"})
    fill(models, {"z.safetensors": "z", ".ema_select-staging-notes": "mine"})
    # A disk that is mounted in the place of a folder has its own, beside the backups.
    mounted = ours / "backup" / (store._sibling_prefix(ours) + "abc")
    fill(mounted, {"half": "written"})
    fill(ours, {"ema_select/.saves.json.12.tmp": "{", "backup/b1/ema_select/.checksums.json.7.tmp": "{"})
    before = tree(theirs)

    clear_leftovers(ours, models / "x.safetensors")

    assert tree(ours) == {
        "backup/b1/meta.json": "{}",
        "ema_select/saves.json": "{}",
        "save/y": "y",
        "config.json": "{}",
    }
    assert not mounted.exists()
    assert tree(theirs) == before
    left = tree(models)
    assert left.pop("z.safetensors") == "z"
    assert left.pop(".ema_select-staging-notes") == "mine"
    prefix = store._sibling_prefix(theirs)
    assert [name.startswith(prefix) for name in left] == [True]


def test_where_nothing_is_there_nothing_is_cleared(tmp_path):
    clear_leftovers(tmp_path / "run", tmp_path / "models" / "x")
    assert list(tmp_path.iterdir()) == []


TENSORS = {
    "a": torch.arange(7, dtype=torch.float32),
    "b": torch.full((3, 2), 1.5, dtype=torch.bfloat16),
    "odd": torch.tensor([1, 2, 3], dtype=torch.uint8),
    "scalar": torch.tensor(4.0),
}


@pytest.mark.parametrize("existing", [None, {"format": "pt", "key": "old"}])
@pytest.mark.parametrize("added", [{}, {"key": "new"}, {"ema_select.set": "EMA", "name": "模型 é \n \"'"}])
def test_metadata_is_added_and_the_tensors_stay(tmp_path, existing, added):
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path, metadata=existing)
    before = path.read_bytes()
    add_metadata(path, added)
    after = path.read_bytes()

    def data(content: bytes) -> bytes:
        length = int.from_bytes(content[:8], "little")
        assert length % 8 == 0
        return content[8 + length :]

    assert data(after) == data(before)
    loaded = load_file(path)
    assert set(loaded) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    with safe_open(path, framework="pt") as file:
        assert (file.metadata() or {}) == (existing or {}) | added
    assert read_metadata(path) == (existing or {}) | added
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        (2**63).to_bytes(8, "little") + b"{}",
        (100).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (3).to_bytes(8, "little") + b"{,}",
        (22).to_bytes(8, "little") + b'{"__metadata__": null}',
        (20).to_bytes(8, "little") + b'{"__metadata__": []}',
        (40000).to_bytes(8, "little") + b"[" * 40000,
    ],
)
def test_what_is_not_safetensors_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    for call in (lambda: add_metadata(path, {"a": "b"}), lambda: read_metadata(path)):
        with pytest.raises(ValueError, match="is not a safetensors file") as caught:
            call()
        assert str(caught.value).startswith(str(path))
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_failing_disk_leaves_the_file_as_it_was(tmp_path, mocker):
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path)
    before = path.read_bytes()
    failing(mocker, "replace", 0)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        add_metadata(path, {"a": "b"})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_json_is_written_and_replaced(tmp_path):
    path = tmp_path / "new" / "x.json"
    write_json(path, {"a": 1})
    write_json(path, {"名": [1, "é"]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"名": [1, "é"]}
    assert [file.name for file in path.parent.iterdir()] == ["x.json"]


@pytest.mark.parametrize("which", ["fsync", "replace"])
def test_json_that_cannot_be_written_leaves_the_old_one(tmp_path, mocker, which):
    path = tmp_path / "x.json"
    write_json(path, {"old": True})
    failing(mocker, which, 0)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        write_json(path, {"new": True})
    assert json.loads(path.read_text(encoding="utf-8")) == {"old": True}
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_what_is_not_json_leaves_the_old_one(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, [1])
    with pytest.raises(TypeError):
        write_json(path, [1, object()])
    assert tree(tmp_path) == {"x.json": "[\n 1\n]"}


def test_json_is_on_the_disk_before_it_replaces(tmp_path, mocker):
    order = []
    mocker.patch.object(os, "fsync", lambda descriptor: order.append("flush"))
    mocker.patch.object(Path, "replace", lambda self, target: (order.append("move"), REPLACE(self, target))[1])
    write_json(tmp_path / "x.json", 1)
    assert order == ["flush", "move"]


# -- places that cannot be taken --------------------------------------------------------------------------------


def held_open(mocker, *names: str, times: int = 1000) -> list[str]:
    """As on Windows, where a file that another program has open cannot be replaced; lets go after `times`."""
    tried: list[str] = []

    def replace(self: Path, target: Path) -> object:
        if Path(target).name in names:
            tried.append(Path(target).name)
            if len(tried) <= times:
                raise PermissionError(errno.EACCES, "Access is denied", str(target))
        return REPLACE(self, target)

    mocker.patch.object(Path, "replace", replace)
    mocker.patch.object(store.time, "sleep")
    return tried


def test_a_file_that_is_held_open_leaves_the_new_one_beside_it(tmp_path, mocker):
    save = tmp_path / "save"
    fill(save, {"x.safetensors": "old", "x-new.safetensors": "of yesterday"})
    held_open(mocker, "x.safetensors")
    staging = Staging(save / "x.safetensors", workspace=tmp_path)
    fill(staging.folder, {"x.safetensors": "new", "x.yaml": "new yaml"})
    (beside,) = staging.publish()
    assert (beside.wanted, beside.actual) == (save / "x.safetensors", save / "x-new-2.safetensors")
    assert "Access is denied" in beside.reason
    assert tree(save) == {
        "x.safetensors": "old",
        "x-new.safetensors": "of yesterday",
        "x-new-2.safetensors": "new",
        "x.yaml": "new yaml",
    }


def test_a_file_that_is_held_for_a_moment_is_replaced(tmp_path, mocker):
    fill(tmp_path / "save", {"x.safetensors": "old"})
    tried = held_open(mocker, "x.safetensors", times=2)
    staging = Staging(tmp_path / "save" / "x.safetensors", workspace=tmp_path)
    fill(staging.folder, {"x.safetensors": "new"})
    assert staging.publish() == ()
    assert len(tried) == 3
    assert tree(tmp_path / "save") == {"x.safetensors": "new"}


def test_one_held_file_of_a_folder_leaves_its_new_one_beside_it(tmp_path, mocker):
    folder = tmp_path / "save" / "x.safetensors"
    fill(folder, {"unet/model.safetensors": "old", "unet/config.json": "old"})
    held_open(mocker, "model.safetensors")
    staging = Staging(folder, workspace=tmp_path)
    fill(staging.path, {"unet/model.safetensors": "new", "unet/config.json": "new"})
    (beside,) = staging.publish()
    assert beside.actual == folder / "unet" / "model-new.safetensors"
    assert tree(folder / "unet") == {"model.safetensors": "old", "config.json": "new", "model-new.safetensors": "new"}


@pytest.mark.parametrize("was_folder", [True, False])
def test_a_place_that_is_of_another_kind_is_left_as_it_is(tmp_path, was_folder):
    """A user who changes the output format from a folder to a file, or back."""
    place = tmp_path / "models" / "x"
    fill(place.parent, {"x/notes.txt": "mine"} if was_folder else {"x": "mine"})
    staging = Staging(place, workspace=tmp_path / "run")
    fill(staging.folder, {"x": "new"} if was_folder else {"x/model.safetensors": "new"})
    (beside,) = staging.publish()
    assert beside.actual == place.with_name("x-new")
    assert tree(place.parent) == (
        {"x/notes.txt": "mine", "x-new": "new"} if was_folder else {"x": "mine", "x-new/model.safetensors": "new"}
    )


def test_a_folder_in_which_nothing_can_be_written_is_the_error_that_it_is(tmp_path, mocker):
    fill(tmp_path / "save", {"x.safetensors": "old"})
    held_open(mocker, "x.safetensors", "x-new.safetensors")
    staging = Staging(tmp_path / "save" / "x.safetensors", workspace=tmp_path)
    fill(staging.folder, {"x.safetensors": "new"})
    with pytest.raises(PermissionError) as caught:
        staging.publish()
    assert Path(caught.value.filename).name == "x.safetensors"
    staging.discard()
    assert tree(tmp_path) == {"save/x.safetensors": "old"}


def test_a_full_disk_is_not_taken_for_a_held_file(tmp_path, mocker):
    fill(tmp_path / "save", {"x.safetensors": "old"})
    failing(mocker, "replace", 0)
    staging = Staging(tmp_path / "save" / "x.safetensors", workspace=tmp_path)
    fill(staging.folder, {"x.safetensors": "new"})
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        staging.publish()


# -- parts that are equal in both sets --------------------------------------------------------------------------


def folder_pair(tmp_path: Path) -> tuple[Path, Staging]:
    twin = tmp_path / "save" / "x"
    fill(twin, {"vae/w.pt": "same", "unet/w.bin": "ema", "vae/config.json": "{}", "only.pt": "1"})
    staging = Staging(tmp_path / "save" / "x-non-ema", workspace=tmp_path)
    fill(staging.path, {"vae/w.pt": "same", "unet/w.bin": "own", "vae/config.json": "{}", "te/w.bin": "same"})
    return twin, staging


def same_file(first: Path, second: Path) -> bool:
    return first.samefile(second)


def test_equal_tensor_files_are_one_file(tmp_path):
    twin, staging = folder_pair(tmp_path)
    before = tree(staging.path)
    assert staging.share(twin, rewritten=False) == len("same")
    assert tree(staging.path) == before
    staging.publish()
    other = tmp_path / "save" / "x-non-ema"
    assert tree(other) == before
    assert same_file(twin / "vae/w.pt", other / "vae/w.pt")
    assert not same_file(twin / "vae/config.json", other / "vae/config.json")  # text is edited by hand
    # One of the two can be replaced or deleted without the other.
    write_json(other / "vae" / "w.pt", "new")
    assert (twin / "vae/w.pt").read_text(encoding="utf-8") == "same"


def test_what_may_be_written_into_again_is_never_linked(tmp_path):
    twin, staging = folder_pair(tmp_path)
    staging.share(twin, rewritten=True)
    staging.publish()
    place = tmp_path / "save" / "x-non-ema" / "vae/w.pt"
    assert not same_file(twin / "vae/w.pt", place)
    place.write_text("else", encoding="utf-8")
    assert (twin / "vae/w.pt").read_text(encoding="utf-8") == "same"


def test_where_the_file_system_has_no_links_copies_stay(tmp_path, mocker):
    twin, staging = folder_pair(tmp_path)
    before = tree(staging.path)
    mocker.patch.object(os, "link", side_effect=OSError(errno.EPERM, "Operation not permitted"))
    assert staging.share(twin, rewritten=False) == 0
    assert tree(staging.path) == before


@pytest.mark.parametrize("links", [True, False])
def test_a_file_in_a_second_place(tmp_path, mocker, links):
    fill(tmp_path, {"a/w.pt": "weights"})
    if not links:
        mocker.patch.object(os, "link", side_effect=OSError(errno.EPERM, "Operation not permitted"))
    store.link_or_copy(tmp_path / "a" / "w.pt", tmp_path / "b" / "c" / "w.pt")
    assert tree(tmp_path) == {"a/w.pt": "weights", "b/c/w.pt": "weights"}
    assert same_file(tmp_path / "a/w.pt", tmp_path / "b/c/w.pt") == links


def test_a_full_disk_is_not_tried_twice(tmp_path, mocker):
    fill(tmp_path, {"a/w.pt": "weights"})
    mocker.patch.object(os, "link", side_effect=OSError(errno.ENOSPC, "full"))
    with pytest.raises(OSError, match="full"):
        store.link_or_copy(tmp_path / "a" / "w.pt", tmp_path / "b" / "w.pt")


@pytest.mark.parametrize(
    ("metadata", "value", "equal"),
    [
        ({"a": "1", "b": "2"}, 1.0, True),
        ({"a": "1", "b": "3"}, 1.0, False),
        ({"a": "1", "b": "2"}, 2.0, False),
    ],
)
def test_headers_are_the_same_in_any_order(tmp_path, metadata, value, equal):
    """safetensors writes the keys of the metadata in random order."""
    twin = tmp_path / "save" / "x"
    twin.mkdir(parents=True)
    staging = Staging(tmp_path / "save" / "y", workspace=tmp_path)
    staging.path.mkdir()
    save_file({"w": torch.full((3,), 1.0)}, twin / "w.safetensors", metadata={"b": "2", "a": "1"})
    for _ in range(8):
        save_file({"w": torch.full((3,), value)}, staging.path / "w.safetensors", metadata=metadata)
        assert bool(staging.share(twin, rewritten=False)) == equal
        assert (staging.path / "w.safetensors").samefile(twin / "w.safetensors") == equal
        (staging.path / "w.safetensors").unlink()


def test_what_is_no_model_is_never_the_same(tmp_path):
    twin = tmp_path / "save" / "x"
    fill(twin, {"w.safetensors": "no model"})
    staging = Staging(tmp_path / "save" / "y", workspace=tmp_path)
    fill(staging.path, {"w.safetensors": "no model"})
    assert staging.share(twin, rewritten=False) == 0


@pytest.mark.parametrize("free", [0, 10**9])
def test_an_error_on_a_full_disk_is_called_by_its_name(tmp_path, mocker, free):
    """torch only says that writing has failed."""
    staging = Staging(tmp_path / "backup" / "b", workspace=tmp_path)
    mocker.patch.object(store.shutil, "disk_usage", return_value=mocker.Mock(free=free))
    expected = (
        pytest.raises(OSError, match="No space left") if free == 0 else pytest.raises(RuntimeError, match="torch")
    )
    with expected as caught, staging.writing() as place:
        assert place == staging.path
        raise RuntimeError("torch has failed")
    if free == 0:
        assert caught.value.errno == errno.ENOSPC
        assert str(caught.value.__cause__) == "torch has failed"


def test_an_error_stays_what_it_is_where_the_disk_cannot_be_asked(tmp_path, mocker):
    staging = Staging(tmp_path / "backup" / "b", workspace=tmp_path)
    mocker.patch.object(store.shutil, "disk_usage", side_effect=OSError("gone"))
    with pytest.raises(RuntimeError, match="torch has failed"), staging.writing():
        raise RuntimeError("torch has failed")


def test_old_leftovers_of_a_folder_that_others_write_into(tmp_path: Path) -> None:
    backup, other, folder = tmp_path / "backup", tmp_path / "other", tmp_path / "models"
    old, new, foreign = (
        Staging(folder / f"{name}.safetensors", workspace=owner).folder
        for name, owner in (("old", backup), ("new", backup), ("foreign", other))
    )
    for place in (old, foreign):
        (place / "half").write_bytes(b"x")
        for path in (place / "half", place):
            os.utime(path, (0, 0))
    clear_old_leftovers(backup, folder)
    assert not old.exists()
    assert new.is_dir()
    assert foreign.is_dir()
    # A file that is being written is new, however old its folder is.
    os.utime(new, (0, 0))
    (new / "growing").write_bytes(b"x")
    os.utime(new, (0, 0))
    clear_old_leftovers(backup, folder)
    assert new.is_dir()


# -- Windows ------------------------------------------------------------------------------------------------------


# What torch 2 and safetensors 0.4 and 0.6 say of a folder that is not there, with Windows' words in German.
NOT_FOUND = [
    FileNotFoundError(2, "No such file or directory"),
    OSError(errno.ENAMETOOLONG, "File name too long"),
    RuntimeError("Parent directory C:\\models\\x does not exist."),
    RuntimeError("File C:\\models\\x.pt cannot be opened."),
    ValueError('Error while serializing: IoError(Os { code: 3, kind: NotFound, message: "Das System kann" })'),
    ValueError("Error while serializing: I/O error: Das System kann den Pfad nicht finden. (os error 3)"),
]


@pytest.mark.parametrize("error", NOT_FOUND, ids=str)
def test_a_path_that_is_too_long_for_windows_is_called_that(tmp_path, monkeypatch, error):
    monkeypatch.setattr(store, "_WINDOWS", True)
    staging = Staging(tmp_path / "save" / "x", workspace=tmp_path)
    staged = len(str(staging.path))
    monkeypatch.setattr(store, "_LONGEST_PATH", staged + 65)
    with pytest.raises(OSError, match="path is too long for Windows") as caught, staging.writing():
        raise error
    assert f"{staged} characters while it is written" in str(caught.value)
    assert (caught.value.errno, caught.value.filename) == (errno.ENAMETOOLONG, str(tmp_path / "save" / "x"))
    assert caught.value.__cause__ is error
    # one that fits is not blamed
    monkeypatch.setattr(store, "_LONGEST_PATH", staged + 66)
    with pytest.raises(type(error)) as passed, staging.writing():
        raise error
    assert passed.value is error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        PermissionError(13, "Permission denied"),
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("Error while serializing: IoError(Os { code: 32, kind: Uncategorized })"),
    ],
    ids=str,
)
def test_another_error_in_a_long_path_stays_what_it_is(tmp_path, monkeypatch, error):
    monkeypatch.setattr(store, "_WINDOWS", True)
    monkeypatch.setattr(store, "_LONGEST_PATH", 10)
    staging = Staging(tmp_path / "save" / "x", workspace=tmp_path)
    with pytest.raises(type(error)) as passed, staging.writing():
        raise error
    assert passed.value is error


def test_metadata_is_added_to_a_closed_file(tmp_path, mocker):
    """An open file cannot be replaced on Windows."""
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1)}, file)
    descriptors = []

    def replace(self: Path, target: Path) -> object:
        folder = Path("/proc/self/fd")
        descriptors.extend(str(one.readlink()) for one in folder.iterdir() if one.is_symlink())
        return REPLACE(self, target)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs Linux's list of what is open")
    mocker.patch.object(Path, "replace", replace)
    store.add_metadata(file, {"k": "v"})
    assert descriptors
    assert [name for name in descriptors if str(tmp_path) in name] == []
