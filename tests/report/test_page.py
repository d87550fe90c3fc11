"""The page itself: nothing of a run can run in it, and it reaches for nothing."""

from __future__ import annotations

import json
import os
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from onetrainer_ema_select.errors import ReportError
from onetrainer_ema_select.report import make_report
from onetrainer_ema_select.report.links import url
from onetrainer_ema_select.report.make import check_needed
from onetrainer_ema_select.report.text import Text
from onetrainer_ema_select.report.words import KINDS, SCRIPT_WORDS, WORDS

from .runs import PROMPTS, add_config, add_drift, add_manifest, add_samples, add_snapshots, add_validation

HOSTILE = "</script><script>window.broken=1</script>\"'><img src=x onerror=window.broken=1>\u2028&amp;{{ 7*7 }}"


class Found(HTMLParser):
    """What a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.scripts: list[dict[str, str | None]] = []
        self.handlers: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append(dict(attrs))
        self.handlers += [name for name, _ in attrs if name.startswith("on") or name == "style"]
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "srcset", "action", "data")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run in which everything that can have a name has a bad one."""
    folder = tmp_path_factory.mktemp("runs")
    workspace = folder / ("run &'#%3F" if sys.platform == "win32" else "run <b>\"&'#%3F?")
    add_samples(workspace, [*PROMPTS, HOSTILE], steps=[0, 100], size=16)
    add_config(workspace, [*PROMPTS, HOSTILE])
    add_validation(workspace, [50, 100], concepts=(HOSTILE, "\u202eright to left"))
    add_drift(workspace, [50, 100])
    add_snapshots(workspace, [100])
    line = {"step": 101, f"distance/{HOSTILE}": 0.1, f"half_life_steps/{HOSTILE}": 5, "distance/b": 1}
    with (workspace / "ema_select" / "drift.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    backup = workspace / "backup" / "2026-03-01_12-00-00-backup-100-1-0"
    add_manifest(backup, step=100, epoch=1, milestones=[HOSTILE])
    made = make_report(workspace)
    return workspace, made.path.read_text(encoding="utf-8")


def test_only_its_own_script_is_there(hostile: tuple[Path, str]) -> None:
    found = Found(hostile[1])
    running = [one for one in found.scripts if one.get("type") not in ("application/json", "text/plain")]
    assert running == [{}]
    assert found.handlers == []
    assert not {"iframe", "object", "embed", "base", "form", "link"} & set(found.tags)
    assert found.tags.count("img") == 2 * (len(PROMPTS) + 1) + 1, "only those of the template"


def test_it_reaches_for_nothing(hostile: tuple[Path, str]) -> None:
    links = Found(hostile[1]).links
    assert links
    assert [link for link in links if not link.startswith(("#", "./", "../"))] == []
    assert "default-src &#39;none&#39;; style-src &#39;sha256-" in hostile[1]


def test_every_original_is_linked(hostile: tuple[Path, str]) -> None:
    workspace, text = hostile
    linked = {
        os.path.normpath(workspace / "ema_select" / unquote(link))
        for link in Found(text).links
        if link.startswith("../samples")
    }
    assert linked == {str(file) for file in (workspace / "samples").rglob("*.jpg")}


def test_names_are_shown_as_they_are(hostile: tuple[Path, str]) -> None:
    texts = Found(hostile[1]).texts
    for name in (*PROMPTS, HOSTILE, hostile[0].name):
        assert name in texts


def test_its_data_can_be_read(hostile: tuple[Path, str]) -> None:
    block = hostile[1].partition('id="data">')[2].partition("</script>")[0]
    data = json.loads(block)
    assert [prompt["title"] for prompt in data["prompts"]] == [*PROMPTS, HOSTILE]
    assert not set("<>&\u2028\u2029") & set(block)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no names that are not text")
def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    add_samples(tmp_path, ["a"], steps=[0], size=8)
    folder = tmp_path / "samples" / os.fsdecode(b"1 - \xff\xfe")
    try:
        (tmp_path / "samples" / "0 - a").rename(folder)
    except OSError:
        pytest.skip("this file system takes no such name")
    text = make_report(tmp_path).path.read_text(encoding="utf-8")
    assert "../samples/1%20-%20%FF%FE/" in text


def test_a_link_to_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    assert url(folder / "b c" / "100% #1?.png", folder) == "./b%20c/100%25%20%231%3F.png"
    assert url(tmp_path / "x:y.png", folder) == "../x%3Ay.png"
    assert url(folder / "javascript:alert(1)", folder) == "./javascript%3Aalert%281%29"


def test_the_language_that_is_asked_for(tmp_path: Path) -> None:
    add_samples(tmp_path, ["a"], steps=[0], size=8)
    text = make_report(tmp_path, language="zh").path.read_text(encoding="utf-8")
    assert '<html lang="zh" data-lang="zh" data-choose="no">' in text
    text = make_report(tmp_path).path.read_text(encoding="utf-8")
    assert '<html lang="en" data-lang="en" data-choose="yes">' in text


@pytest.mark.parametrize("texts", [WORDS, SCRIPT_WORDS, KINDS], ids=["words", "script", "kinds"])
def test_every_text_is_there_in_both_languages(texts: dict[str, Text]) -> None:
    for text in texts.values():
        assert text.en
        assert text.zh
        assert text.en == "EMA" or any("\u4e00" <= character <= "\u9fff" for character in text.zh)


def test_a_page_that_is_there_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_report(tmp_path).path
    first.write_text("old", encoding="utf-8")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(ReportError, match="Name another place with --output"):
        make_report(tmp_path)
    monkeypatch.undo()
    assert first.read_text(encoding="utf-8") == "old"
    assert sorted(file.name for file in first.parent.iterdir()) == ["report.html"]


def test_what_is_missing_to_make_it_is_named() -> None:
    def load(name: str) -> None:
        if name != "matplotlib":
            raise ImportError(name)

    with pytest.raises(ReportError) as raised:
        check_needed(load)
    assert str(raised.value) == (
        "A page needs jinja2 and pillow, which this Python does not have. OneTrainer's own environment has them: use "
        "that one, or type: pip install jinja2 pillow"
    )


def test_progress_is_told(tmp_path: Path) -> None:
    add_samples(tmp_path, ["a"], steps=[0, 1], size=8)
    told: list[tuple[str, int, int]] = []
    make_report(tmp_path, progress=lambda *what: told.append(what))
    assert ("making small copies of the samples", 4, 4) in told
    assert (told[0][0], told[-1][0]) == ("reading the workspace", "writing the page")
