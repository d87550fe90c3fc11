"""The documentation: links, code blocks, and the keys and verbs that it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from onetrainer_ema_select.settings import EmaSelectSettings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CHINESE = DOCS / "zh"
PAGES = sorted([*ROOT.glob("README*.md"), *DOCS.rglob("*.md")])
NOT_TRANSLATED = {"config.md"}
PAIRS = [
    (ROOT / "README.md", ROOT / "README.zh-CN.md"),
    *((page, CHINESE / page.name) for page in sorted(DOCS.glob("*.md")) if page.name not in NOT_TRANSLATED),
]

VERBS = {"enable", "disable", "doctor", "train", "list", "demo"}
KEYS = set(EmaSelectSettings.model_fields)
# Named like settings, but they stand in the header of a model file, or in the folder of a model.
METADATA = {
    "set",
    "run",
    "step",
    "epoch",
    "epoch_step",
    "milestone",
    "decay",
    "updates",
    "update_step_interval",
    "precision",
    "version",
    "json",
}

FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
KEY = re.compile(r"(?<![\w-])ema_select\.([a-z]\w*)")
VERB = re.compile(r"onetrainer[-_]ema[-_]select(?:\.exe)? +([^\s`]+)")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path) -> list[tuple[str, str, str]]:
    return FENCE.findall(text(page))


def prose(page: Path) -> str:
    return FENCE.sub("", text(page))


def anchors(page: Path) -> set[str]:
    """As GitHub makes them: lower case, no punctuation, hyphens for spaces."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(prose(page))}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_resolve(page: Path):
    broken = []
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_page_is_translated():
    english = {page.name for page in DOCS.glob("*.md")}
    assert {page.name for page in CHINESE.glob("*.md")} == english - NOT_TRANSLATED


@pytest.mark.parametrize(("english", "chinese"), PAIRS, ids=[name(english) for english, _ in PAIRS])
def test_code_blocks_are_the_same_in_both_languages(english: Path, chinese: Path):
    assert blocks(chinese) == blocks(english)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_named_keys_exist(page: Path):
    assert set(KEY.findall(text(page))) <= KEYS | METADATA


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_named_verbs_exist(page: Path):
    named = {verb for _, _, body in blocks(page) for verb in VERB.findall(body)}
    assert named <= VERBS


def test_every_key_is_documented():
    config = text(DOCS / "config.md")
    assert {key for key in KEYS if f"\n## `{key}`\n" not in config} == set()
