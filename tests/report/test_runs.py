"""A workspace that two runs have used."""

from __future__ import annotations

from pathlib import Path

from onetrainer_ema_select.manifest import read_manifest, write_manifest
from onetrainer_ema_select.report.advice import advise
from onetrainer_ema_select.report.data import gather
from onetrainer_ema_select.validation import ValidationRecord

from .runs import add_backup, add_snapshots


def judged(backup: Path, *, step: int, run: str, ema: float, non_ema: float) -> None:
    add_backup(backup, step=step, epoch=0)
    manifest = read_manifest(backup)
    assert manifest is not None
    losses = ValidationRecord(
        step=step, epoch=0, batches=30, ema=ema, non_ema=non_ema, difference=ema - non_ema, standard_error=0.001
    )
    write_manifest(manifest.model_copy(update={"run": run, "validation": losses}), backup / "ema_select")


def test_each_backup_has_the_losses_of_its_own_run(tmp_path: Path) -> None:
    first = tmp_path / "backup" / "2026-03-01_12-00-00-backup-5000-5-0"
    second = tmp_path / "backup" / "2026-03-02_12-00-00-backup-1000-1-0"
    judged(first, step=5000, run="q", ema=0.4, non_ema=0.1)
    judged(second, step=1000, run="r", ema=0.3, non_ema=0.5)
    add_snapshots(tmp_path, [5000])  # of the run r
    data = gather(tmp_path)
    points = {point.path: point for point in data.points if point.kind == "backup"}
    assert data.points[0].path == second, "the newest, not the furthest"
    assert points[first].sigma_rels == ()
    assert points[first].validation is not None
    assert points[first].validation.better == "non-ema"
    (tmp_path / "ema_select" / "validation.jsonl").write_text(
        '{"run": "r", "leg": "", "step": 1000, "ema": 0.3, "non_ema": 0.5, "better": "EMA", "sure": "clear"}\n',
        encoding="utf-8",
    )
    assert advise(gather(tmp_path), None).headline.en == "Take the EMA weights of step 1000."
