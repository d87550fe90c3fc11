from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_mock import MockerFixture

from onetrainer_ema_select.choices import WeightSet
from onetrainer_ema_select.errors import ExportError
from onetrainer_ema_select.host.export import ExportResult
from onetrainer_ema_select.host.export.messages import ExportedSet
from onetrainer_ema_select.host.window import jobs
from onetrainer_ema_select.host.window.jobs import Job, comparison_job, export_job, report_job

from ...backup_files import NAME, tensors, write_backup

RESULT = ExportResult(
    backup=Path("b"), step=8, epoch=4, model_type="X", training_method="LORA", format="KOHYA_LORA", dtype="FLOAT_32",
    sets=(ExportedSet(set=WeightSet.NON_EMA, path=Path("out.safetensors"), size_bytes=2_000_000),), notes=("slow.",),
)  # fmt: skip


def run(mocker: MockerFixture, **behaviour: object) -> Job:
    export = mocker.patch.object(jobs, "export", **behaviour)
    job = export_job(Path("b"), "out.safetensors", sets="non-ema")
    assert job.wait(10)
    assert export.call_args.args == (Path("b"), "out.safetensors")
    assert export.call_args.kwargs["sets"] == "non-ema"
    return job


def test_it_says_what_was_written(mocker: MockerFixture, capfd: pytest.CaptureFixture[str]) -> None:
    job = run(mocker, return_value=RESULT)
    job._thread.join(10)
    assert job.text == ("Exported step 8, read back and compared. non-ema: out.safetensors (2.0 MB). Note: slow.")
    assert capfd.readouterr().out == f"[ema_select] {job.text}\n"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ExportError("There is no room. Make some."), "Not exported: There is no room. Make some."),
        (RuntimeError("broken"), "Not exported: RuntimeError: broken. The console has the details."),
    ],
)
def test_it_says_why_nothing_was(mocker: MockerFixture, error: Exception, text: str) -> None:
    assert run(mocker, side_effect=error).text == text


def test_a_console_that_cannot_show_a_path_hangs_nothing(mocker: MockerFixture, capfdbinary: Any) -> None:
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    mocker.patch("sys.stdout", console)
    job = Job(lambda _: "Exported 模型.safetensors", doing="Exporting", failed="Not exported")
    assert job.wait(10)
    job._thread.join(10)
    assert console.buffer.getvalue() == b"[ema_select] Exported ??.safetensors\n"


def test_progress_is_a_share_where_it_is_known() -> None:
    job = Job(lambda _: "", doing="Exporting", failed="")
    assert job.progress_text() == "Exporting …"
    job._progress("writing", 50, 200)
    assert job.progress_text() == "Exporting: writing 25%"
    job._progress("loading", 0, 0)
    assert job.progress_text() == "Exporting: loading"


@pytest.mark.parametrize(("opens", "end"), [
    (True, "It was opened in the browser."), (False, "No browser could be opened: open it yourself."),
])  # fmt: skip
def test_a_report_is_made_and_opened(mocker: MockerFixture, tmp_path: Path, opens: bool, end: str) -> None:
    opened = mocker.patch("webbrowser.open", return_value=opens)
    job = report_job(tmp_path)
    assert job.wait(60)
    page = tmp_path / "ema_select" / "report.html"
    assert job.text.startswith(f"Report: There is nothing to choose from yet. {page} (")
    assert job.text.endswith(end)
    opened.assert_called_once_with(page.as_uri())


def test_a_report_that_cannot_be_made_says_why(mocker: MockerFixture, tmp_path: Path) -> None:
    opened = mocker.patch("webbrowser.open")
    job = report_job(tmp_path / "nowhere")
    assert job.wait(60)
    assert job.text.startswith("No report was made: There is no folder ")
    opened.assert_not_called()


def compared(folder: Path) -> str:
    job = comparison_job(folder)
    assert job.wait(10)
    return job.text


def test_two_sets_are_measured_as_by_hand(tmp_path: Path) -> None:
    live, averages = tensors((3, 2), (4,), seed=1), tensors((3, 2), (4,), seed=2)
    names = ["unet.down.0.weight", "unet.up.weight"]
    files = {"unet/model.safetensors": {"down.0.weight": live[0], "up.weight": live[1]}}
    folder = write_backup(tmp_path / NAME, files, averages=averages, names=names)
    a, b = (torch.cat([one.flatten().double() for one in each]) for each in (averages, live))
    relative, cosine = (a - b).norm() / a.norm(), a @ b / a.norm() / b.norm()
    assert compared(folder).startswith(
        f"{NAME}: the relative distance of its two sets is {relative:.4g} (the length of the difference, 0 is the "
        f"same), the cosine {cosine:.7f}. Furthest apart: unet."
    )


def test_equal_sets_are_said_to_be_the_same(tmp_path: Path) -> None:
    live = tensors((3, 2))
    folder = write_backup(tmp_path / NAME, {"unet/model.safetensors": {"a": live[0]}}, averages=live, names=["unet.a"])
    assert compared(folder) == f"{NAME}: its two sets are the same, bit for bit (6 numbers)."


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({}, f"Not compared: {NAME} holds one set only. Choose a backup that holds both."),
        (
            {"averages": tensors((3, 2))},
            f"Not compared: {NAME} was made without the plugin, and its EMA names no weights. OneTrainer can name "
            "them: onetrainer-ema-select compare FOLDER FOLDER --onetrainer DIR",
        ),
    ],
)
def test_what_cannot_be_compared(tmp_path: Path, more: dict[str, Any], text: str) -> None:
    folder = write_backup(tmp_path / NAME, {"unet/model.safetensors": {"a": tensors((3, 2))[0]}}, **more)
    assert compared(folder) == text.replace("FOLDER", str(folder))
