from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pytest_mock import MockerFixture

from onetrainer_ema_select.origin import UNKNOWN, install_source


def noted(mocker: MockerFixture, text: str | None) -> None:
    mocker.patch.object(metadata, "distribution", lambda name: SimpleNamespace(read_text=lambda file: text))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"url": "https://example.org/a/b.git", "vcs_info": {"vcs": "git"}}, '"git+https://example.org/a/b.git"'),
        ({"url": "https://example.org/plugin-1.0.whl", "archive_info": {}}, '"https://example.org/plugin-1.0.whl"'),
    ],
)
def test_what_pip_noted_is_named(mocker: MockerFixture, content: dict[str, Any], expected: str) -> None:
    noted(mocker, json.dumps(content))
    assert install_source() == expected


def test_a_folder_is_named_as_a_path(mocker: MockerFixture, tmp_path: Path) -> None:
    folder = tmp_path / "my plugins" / "ümlaut"
    noted(mocker, json.dumps({"url": folder.as_uri(), "dir_info": {}}))
    assert install_source() == f'"{folder}"'


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", "3", '{"url": 3}x'])
def test_without_a_note_a_placeholder(mocker: MockerFixture, text: str | None) -> None:
    noted(mocker, text)
    assert install_source() == UNKNOWN == "/path/to/onetrainer-ema-select"


def test_a_package_that_is_not_installed(mocker: MockerFixture) -> None:
    mocker.patch.object(metadata, "distribution", side_effect=metadata.PackageNotFoundError)
    assert install_source() == UNKNOWN
