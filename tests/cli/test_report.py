"""`report`: what it prints, and a page for whatever is left of a workspace."""

from __future__ import annotations

import json
import webbrowser
from collections.abc import Callable
from pathlib import Path

import pytest

from ..report import runs

Command = Callable[..., "tuple[int, str, str]"]
MakeBackup = Callable[..., Path]
BACKUP = "2026-03-01_12-00-00-backup-100-1-0"


def test_text(command: Command, tmp_path: Path) -> None:
    runs.add_samples(tmp_path / "run", ["a"], steps=[0, 100], size=16)
    runs.add_validation(tmp_path / "run", [50, 100, 150, 200])
    code, out, err = command("report", tmp_path / "run")
    assert (code, err) == (0, "")
    page = tmp_path / "run" / "ema_select" / "report.html"
    lines = out.splitlines()
    assert lines[0].startswith(f"Wrote {page} (")
    assert lines[1] == "It shows 4 samples and 3 curves."
    assert lines[2] == "Take the EMA weights. (how sure: clear)"
    assert lines[3] == "Missing:"
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_json(command: Command, tmp_path: Path) -> None:
    runs.add_samples(tmp_path / "run", ["a"], steps=[0], size=16)
    code, out, _ = command("report", tmp_path / "run", "--json", "-o", tmp_path / "page.html")
    assert code == 0
    told = json.loads(out)
    assert told["schema"] == 1
    assert told["path"] == str(tmp_path / "page.html")
    assert told["size_bytes"] == (tmp_path / "page.html").stat().st_size
    assert (told["samples"], told["left_out"], told["charts"]) == (2, 0, [])
    assert any("training loss" in text for text in told["missing"])


def test_it_is_opened_where_that_is_asked_for(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
    assert command("report", tmp_path, "--open")[0] == 0
    assert opened == [(tmp_path / "ema_select" / "report.html").as_uri()]
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    code, _, err = command("report", tmp_path, "--open")
    assert code == 0
    assert err.startswith("No browser could be opened. Open it yourself: ")


def test_errors_say_what_to_do(command: Command, tmp_path: Path) -> None:
    code, _, err = command("report", tmp_path / "nowhere")
    assert code == 1
    assert "There is no folder" in err
    assert command("report", tmp_path, "--language", "fr")[0] == 2
    code, _, err = command("report", tmp_path, "--output", tmp_path)
    assert code == 1
    assert err.startswith(f"{tmp_path} is a folder. Name the file to write, such as ")
    (tmp_path / "file").touch()
    code, _, err = command("report", tmp_path, "--output", tmp_path / "file" / "page.html")
    assert code == 1
    assert "Name another place with --output." in err


# -- ten workspaces broken in ten ways, and two more ---------------------------------------------------------


def empty(root: Path, make: MakeBackup) -> str:
    return "There is nothing to choose from yet."


def no_samples(root: Path, make: MakeBackup) -> str:
    make(root, BACKUP, step=100, epoch=1)
    return "There are no samples in this workspace."


def one_set(root: Path, make: MakeBackup) -> str:
    runs.add_samples(root, ["a"], steps=[0, 100], size=16, sets=[""])
    runs.add_config(root, ["a"])
    make(root, BACKUP, step=100, epoch=1, ema=False)
    return "The samples are of one set only."


def half_a_manifest(root: Path, make: MakeBackup) -> str:
    backup = make(root, BACKUP, step=100, epoch=1)
    runs.add_manifest(backup, step=100, epoch=1)
    file = backup / "ema_select" / "manifest.json"
    file.write_text(file.read_text(encoding="utf-8")[:200], encoding="utf-8")
    return "cannot be read"


def newer_manifest(root: Path, make: MakeBackup) -> str:
    backup = make(root, BACKUP, step=100, epoch=1)
    (backup / "ema_select").mkdir()
    (backup / "ema_select" / "manifest.json").write_text('{"version": 99}', encoding="utf-8")
    return "has the version 99"


def foreign_files(root: Path, make: MakeBackup) -> str:
    runs.add_samples(root, ["a"], steps=[0], size=16)
    for name in ("backup/holiday/photo.jpg", "save/notes.txt", "samples/0 - a/x.exe", "samples/x/y.png", "thesis.docx"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("mine", encoding="utf-8")
    return "There is no backup in this workspace"


def broken_pictures(root: Path, make: MakeBackup) -> str:
    runs.add_samples(root, ["a", "b"], steps=[0, 100], size=16)
    for file in (root / "samples").glob("0 - a/*"):
        file.write_bytes(file.read_bytes()[:300])
    return "Samples that are no pictures that can be read: 2."


def broken_measurements(root: Path, make: MakeBackup) -> str:
    make(root, BACKUP, step=100, epoch=1)
    for name in ("ema_select/validation.jsonl", "ema_select/drift.jsonl", "tensorboard/x/events.out.tfevents.1"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(bytes(range(256)) * 20 + b'\n{"step": 1\n')
    return "There are no measurements"


def cut_short(root: Path, make: MakeBackup) -> str:
    (make(root, BACKUP, step=100, epoch=1) / "meta.json").unlink()
    return "it was cut short"


def files_for_folders(root: Path, make: MakeBackup) -> str:
    for name in ("backup", "save", "samples", "tensorboard", "config"):
        (root / name).write_text("not a folder", encoding="utf-8")
    for name in ("validation.jsonl", "drift.jsonl", "post_hoc/backup/x/manifest.json"):
        (root / "ema_select" / name).mkdir(parents=True)
    return "There is nothing to choose from yet."


def half_a_pair(root: Path, make: MakeBackup) -> str:
    import torch
    from safetensors.torch import save_file

    (root / "save").mkdir()
    marks = {"ema_select.set": "EMA", "ema_select.step": "6", "ema_select.sets": "EMA, NON_EMA"}
    save_file({"a": torch.zeros(2)}, root / "save" / "2026-08-19_10-30-00-save-6-3-0.safetensors", metadata=marks)
    return "The other set of the save 2026-08-19_10-30-00-save-6-3-0.safetensors is not there."


def odd_numbers(root: Path, make: MakeBackup) -> str:
    path = root / "ema_select" / "drift.jsonl"
    path.parent.mkdir(parents=True)
    lines = [{"step": 5, "distance": 0}, {"step": 6, "distance": 1e300, "half_life_steps/EMA": 1e-300}]
    path.write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 7, "distance": NaN}', encoding="utf-8"
    )
    (root / "ema_select" / "validation.jsonl").write_text(
        '{"step": 9007199254740991, "ema": 1, "non_ema": 1}\n', encoding="utf-8"
    )
    return "No difference can be told between the two sets."


@pytest.mark.parametrize("broken", [
    empty, no_samples, one_set, half_a_manifest, newer_manifest, foreign_files, broken_pictures, broken_measurements,
    cut_short, files_for_folders, half_a_pair, odd_numbers,
], ids=lambda broken: broken.__name__)  # fmt: skip
def test_a_broken_workspace_gets_a_page_that_says_what_is_missing(
    command: Command, tmp_path: Path, make_backup: MakeBackup, broken: Callable[[Path, MakeBackup], str]
) -> None:
    root = tmp_path / "run"
    root.mkdir()
    said = broken(root, make_backup)
    code, out, err = command("report", root)
    assert (code, err) == (0, ""), err
    assert "Missing:" in out
    assert said in (root / "ema_select" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_page_of_400_samples_is_smaller_than_25_megabytes(command: Command, tmp_path: Path) -> None:
    # Few different pictures, full of detail; what counts is what becomes of them.
    runs.add_samples(tmp_path, ["a"], steps=[0], size=1024)
    first, second = (next((tmp_path / "samples" / name).iterdir()) for name in ("0 - a", "0 - a - no-ema"))
    for number in range(5):
        for source, postfix in ((first, ""), (second, " - no-ema")):
            folder = tmp_path / "samples" / f"{number} - a{postfix}"
            folder.mkdir(exist_ok=True)
            for step in range(0, 400, 10):
                target = folder / f"{runs.time_of(step)}-training-sample-{step}-{step // 100}-{step % 100}.jpg"
                if not target.exists():
                    target.hardlink_to(source)
    code, out, _ = command("report", tmp_path)
    assert code == 0
    assert "It shows 400 samples" in out
    page = tmp_path / "ema_select" / "report.html"
    assert page.stat().st_size < 25_000_000
    text = page.read_text(encoding="utf-8")
    assert text.count('type="text/plain"') == 400
    assert text.count('href="../samples/') == 400
