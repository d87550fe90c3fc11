from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock, Mock

import pytest
import torch
from pytest_mock import MockerFixture

from onetrainer_ema_select.errors import PostHocError
from onetrainer_ema_select.host import post_hoc
from onetrainer_ema_select.host import session as sessions
from onetrainer_ema_select.host.session import Session
from onetrainer_ema_select.settings import parse_settings


def waiting(*answers: object) -> SimpleNamespace:
    """A session whose checksums answer so when they are waited for."""
    return SimpleNamespace(checksums=Mock(wait=Mock(side_effect=answers)), reporter=Mock())


def test_checksums_that_are_soon_done_are_not_spoken_of() -> None:
    session = waiting(True)
    Session.finish_checksums(session)
    session.reporter.say.assert_not_called()


def test_ctrl_c_leaves_checksums_out_and_ends_nothing() -> None:
    session = waiting(False, KeyboardInterrupt)
    try:
        Session.finish_checksums(session)
    except KeyboardInterrupt:  # would end pytest itself
        pytest.fail("Ctrl-C came through")
    session.reporter.say.assert_called_once_with(
        "The last backup's checksums are being written; Ctrl-C leaves them out."
    )
    session.checksums.stop.assert_called_once_with()


def test_a_run_is_begun_without_a_look_at_the_list_of_saves(mocker: MockerFixture) -> None:
    """Every process begins it, and may find another state of the disk."""
    read = mocker.patch.object(sessions, "Ledger")
    session = Session(
        MagicMock(**{"config.workspace_dir": "run", "config.output_model_destination": "model"}),
        parse_settings({"enabled": True}),
        MagicMock(contents=None),
    )
    read.assert_not_called()
    assert session.ledger is session.ledger
    read.assert_called_once_with(session.workspace)


def test_a_failed_update_of_the_post_hoc_tracks_is_not_called_one_of_the_ema() -> None:
    session = SimpleNamespace(failed_updates=0, failed_tracks=False, reporter=Mock(), post_hoc=object())
    for step in (7, 8):
        Session.update_failed(session, step, PostHocError("no time"))
    session.reporter.problem.assert_called_once()
    assert session.reporter.problem.call_args.args[0] == (
        "The post-hoc tracks could not be updated at optimizer step 7; training and the EMA go on. Do not use "
        "snapshots of this run from here on."
    )
    assert session.failed_updates == 0
    Session.update_failed(session, 9, ValueError("the EMA itself"))
    assert session.failed_updates == 1


def test_tracks_that_a_gpu_has_no_room_for_are_refused_with_the_ways_out(mocker: MockerFixture) -> None:
    mocker.patch.object(post_hoc, "PostHoc", side_effect=torch.cuda.OutOfMemoryError("CUDA out of memory"))
    session = SimpleNamespace(settings=parse_settings({"post_hoc_sigma_rels": "0.05, 0.1"}))
    with pytest.raises(PostHocError) as caught:
        post_hoc.begin_post_hoc(session, [torch.zeros(10**6)], device=torch.device("cuda"))
    assert str(caught.value) == (
        "The post-hoc tracks of 2 lengths take about 8.0 MB in 32 bits, which cuda has not got. Set ema to CPU, "
        "ema_select.ema_dtype to PARAMETER, or fewer lengths in ema_select.post_hoc_sigma_rels."
    )


def test_a_backup_that_was_removed_but_for_a_part_is_lost(make_backup: Callable[..., Path], tmp_path: Path) -> None:
    """OneTrainer removes a backup whose configuration it cannot write, while its checksums are being written."""
    backup = make_backup(tmp_path, "2026-11-24_20-44-00-backup-4-2-0")
    assert Session._backup_loss(backup) == ""
    (backup / "ema_select").mkdir()
    (backup / "meta.json").unlink()
    assert Session._backup_loss(backup) == "meta.json, which is written last, is missing: it was cut short"
    shutil.rmtree(backup)
    assert Session._backup_loss(backup) == "it is gone"
