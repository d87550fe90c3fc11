from __future__ import annotations

from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from onetrainer_ema_select.choices import WeightSet
from onetrainer_ema_select.errors import ExportError
from onetrainer_ema_select.host.export import ExportResult
from onetrainer_ema_select.host.export.messages import ExportedSet
from onetrainer_ema_select.host.window import export_job
from onetrainer_ema_select.host.window.export_job import ExportJob

RESULT = ExportResult(
    backup=Path("b"), step=8, epoch=4, model_type="X", training_method="LORA", format="KOHYA_LORA", dtype="FLOAT_32",
    sets=(ExportedSet(set=WeightSet.NON_EMA, path=Path("out.safetensors"), size_bytes=2_000_000),), notes=("slow.",),
)  # fmt: skip


def run(mocker: MockerFixture, **behaviour: object) -> ExportJob:
    export = mocker.patch.object(export_job, "export", **behaviour)
    job = ExportJob(Path("b"), "out.safetensors", {"sets": "non-ema"})
    job.start()
    assert job._done.wait(10)
    assert export.call_args.args == (Path("b"), "out.safetensors")
    assert export.call_args.kwargs["sets"] == "non-ema"
    return job


def test_it_says_what_was_written(mocker: MockerFixture, capfd: pytest.CaptureFixture[str]) -> None:
    job = run(mocker, return_value=RESULT)
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


def test_progress_is_a_share_where_it_is_known() -> None:
    job = ExportJob(Path("b"), "out", {})
    assert job.progress_text() == "Exporting: starting OneTrainer"
    job._progress("writing", 50, 200)
    assert job.progress_text() == "Exporting: writing 25%"
    job._progress("loading", 0, 0)
    assert job.progress_text() == "Exporting: loading"
