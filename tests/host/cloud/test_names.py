"""What a cloud run's files are known by."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest

from onetrainer_ema_select.errors import ResumeError
from onetrainer_ema_select.host.cloud.names import (
    belongs_to_output,
    is_parked,
    is_temporary,
    remote_choice,
    words_above,
)
from onetrainer_ema_select.store import Staging, write_json

THERE = PurePosixPath("/workspace/remote/run")


def test_what_the_store_writes_in_private_is_known_as_unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    inside = Staging(tmp_path / "backup" / "b", workspace=tmp_path)
    beside = Staging(tmp_path / "elsewhere" / "model.safetensors", workspace=tmp_path / "run")
    for staging in (inside, beside):
        assert is_temporary((staging.path / "ema" / "ema.pt").parts)
        assert is_temporary(staging.path.parts)
    seen = []
    monkeypatch.setattr(Path, "replace", lambda self, target: seen.append((self, target)))
    write_json(tmp_path / "ema_select" / "saves.json", {})
    ((temporary, target),) = seen
    assert is_temporary(temporary.parts)
    assert not is_temporary(target.parts)


@pytest.mark.parametrize(
    "path",
    [
        "save/x-save-2-0-2.safetensors",
        "ema_select/milestones/backup/b/meta.json",
        "ema_select/output/m.safetensors",
        "staging/x",
        "ema_select/staging",  # a file of that name is none of ours, but it is no staging either
        ".hidden.1.tmp",
    ],
)
def test_everything_else_is_not(path: str):
    assert not is_temporary((THERE / path).parts)


def test_paths_of_windows_are_told_by_their_parts_too():
    path = PureWindowsPath("/workspace/remote/run/ema_select/parked/x/ema.safetensors")
    assert is_parked(path.parts)
    assert not is_parked(path.parent.parent.parts)
    assert not is_parked((THERE / "parked" / "x").parts)


@pytest.mark.parametrize(
    ("destination", "own", "foreign"),
    [
        (
            "model.safetensors",
            [
                "model.safetensors", "model-non-ema.safetensors", "model-ema.safetensors", "model.yaml",
                "model-non-ema.yaml", "model.safetensors_embeddings", "model-non-ema.safetensors_embeddings",
                "model-new.safetensors", "model-non-ema-new-2.safetensors",
            ],
            ["model2.safetensors", "model-newer.safetensors", "model-non-ema.ckpt", "model", "old-model.safetensors"],
        ),
        ("my model", ["my model", "my model-non-ema", "my model_embeddings", "my model-new"], ["my model.safetensors"]),
        ("model.v1", ["model.v1", "model.v1-non-ema", "model.yaml"], ["model.v2", "model-non-ema"]),
    ],
)  # fmt: skip
def test_what_belongs_to_a_final_output(destination: str, own: list[str], foreign: list[str]):
    assert [name for name in own if not belongs_to_output(name, destination)] == []
    assert [name for name in foreign if belongs_to_output(name, destination)] == []


def test_a_choice_of_backup_is_translated_for_the_machine(tmp_path: Path):
    def translated(value: str) -> str:
        return remote_choice(value, local_workspace=tmp_path / "run", remote_workspace=THERE)

    name = "2026-01-02_03-04-05-backup-10-1-0"
    assert translated("") == ""
    assert translated(name) == name
    assert translated("10 epochs") == "10 epochs"
    assert translated(str(tmp_path / "run" / "backup" / name)) == f"/workspace/remote/run/backup/{name}"
    assert translated(str(tmp_path / "x" / ".." / "run" / "backup" / name)) == f"/workspace/remote/run/backup/{name}"
    assert translated("cloud:/data/old/backup") == "/data/old/backup"
    assert translated("/nowhere/on/this/machine") == "/nowhere/on/this/machine"
    (tmp_path / "other").mkdir()
    with pytest.raises(ResumeError, match=r"uploads no backups\. Copy it into /workspace/remote/run/backup"):
        translated(str(tmp_path / "other"))


def test_a_word_above_the_workspace_is_noticed():
    assert words_above(THERE) == ()
    assert words_above(PurePosixPath("/workspace/remote/backup/tensorboard/run")) == (
        "download_backups",
        "download_tensorboard",
    )
