from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import MagicMock, Mock

import pytest
from pytest_mock import MockerFixture

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
