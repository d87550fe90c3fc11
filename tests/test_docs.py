"""The documentation: links, code blocks, the keys, verbs and messages that it names; its scenarios are run."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import onetrainer_ema_select
from onetrainer_ema_select.demo.runner import BASE_CONFIG, clean_lines
from onetrainer_ema_select.demo.standin_copy import copy_standin
from onetrainer_ema_select.settings import EmaSelectSettings, parse_settings
from onetrainer_ema_select.workspace import scan_workspace

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGE = Path(onetrainer_ema_select.__file__).parent
CHINESE = DOCS / "zh"
PAGES = sorted([*ROOT.glob("README*.md"), *DOCS.rglob("*.md")])
NOT_TRANSLATED = {"config.md"}
PAIRS = [
    (ROOT / "README.md", ROOT / "README.zh-CN.md"),
    *((page, CHINESE / page.name) for page in sorted(DOCS.glob("*.md")) if page.name not in NOT_TRANSLATED),
]

VERBS = {"enable", "disable", "doctor", "train", "list", "inspect", "export", "synthesize", "compare", "report", "demo"}
KEYS = set(EmaSelectSettings.model_fields)
# Named like settings, but they stand in the header of a model file, or in the folder of a model.
METADATA = {
    "set",
    "sets",
    "leg",
    "run",
    "step",
    "epoch",
    "epoch_step",
    "milestone",
    "decay",
    "updates",
    "update_step_interval",
    "precision",
    "rounding",
    "half_life",
    "accumulation",
    "images_per_step",
    "steps_per_epoch",
    "sigma_rel",
    "fit_error",
    "version",
    "json",
}

FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
KEY = re.compile(r"(?<![\w-])ema_select\.([a-z]\w*)")
VERB = re.compile(r"onetrainer[-_]ema[-_]select(?:\.exe)? +([a-z-][^\s`]*)")


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
    named = {verb for _, language, body in blocks(page) if language != "python" for verb in VERB.findall(body)}
    assert named <= VERBS


def test_every_key_is_documented():
    config = text(DOCS / "config.md")
    assert {key for key in KEYS if f"\n## `{key}`\n" not in config} == set()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_configs_that_are_shown_are_accepted(page: Path):
    for _, language, body in blocks(page):
        if language == "json":
            parse_settings(json.loads(body)["ema_select"])


@pytest.mark.parametrize("folder", [DOCS, CHINESE], ids=name)
def test_messages_that_are_explained_exist(folder: Path):
    texts = [
        node.value
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    quoted = [
        part.strip()
        for heading in re.findall(r"^\*\*(.+)\*\*$", text(folder / "troubleshooting.md"), re.MULTILINE)
        for message in re.findall(r'"([^"]*)"', heading.replace("\\", "").replace("PROBLEM: ", ""))
        # what stands between two inserted values, and is long enough to be told from anything else
        for part in re.split(r"[…`,:;.]", message)
        if len(part.strip()) >= 12
    ]
    assert len(quoted) > 20
    assert [part for part in quoted if not any(part in one for one in texts)] == []


# -- the scenarios, run from the pages themselves ------------------------------------------------------------

SCENARIOS = (
    "first-run.md",
    "milestones.md",
    "inspect.md",
    "compare.md",
    "report.md",
    "export.md",
    "json.md",
    "post-hoc.md",
    "python.md",
    "resume.md",
    "remove.md",
    "best.md",
)
BACKUP = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(-backup-\d+-\d+-\d+)")


@dataclass(frozen=True)
class Ran:
    """A block of commands, what they printed, and the lines that the page shows of that."""

    commands: str
    printed: list[str]
    shown: list[str]


class Reader:
    """Does what the pages say, in one OneTrainer folder (the stand-in)."""

    def __init__(self, folder: Path) -> None:
        self.folder = copy_standin(folder)
        self.workspace = self.folder / "workspace" / "run"

    def follow(self, page: Path) -> list[Ran]:
        """Take over a page's config, and type its commands."""
        found = blocks(page)
        config = {
            **BASE_CONFIG,
            "workspace_dir": "workspace/run",
            "output_model_destination": "models/model.safetensors",
        }
        for _, language, body in found:
            if language == "json":
                config |= json.loads(body)
        (self.folder / "my-config.json").write_text(json.dumps(config), encoding="utf-8")
        ran = []
        for (_, language, body), (_, following, shown) in zip(found, [*found[1:], ("", "", "")], strict=True):
            if language == "console":
                printed = [line for command in body.splitlines() for line in self.type(command)]
                ran.append(Ran(body, printed, shown.splitlines() if following == "text" else []))
        if scripts := [body for _, language, body in found if language == "python"]:
            # one script: what comes later on a page uses what stands above
            script = "".join(scripts)
            ran.append(Ran(script, self.type(f"python -c {shlex.quote(script)}"), []))
        return ran

    def type(self, command: str) -> list[str]:
        """Run one command; backups' names have the time in them, so the page's stands for the newest such one."""
        if example := BACKUP.search(command):
            real = max(path.name for path in (self.workspace / "backup").glob(f"*{example[1]}"))
            command = command.replace(example[0], real)
        program, *arguments = shlex.split(command)
        programs = {"python": [sys.executable], "onetrainer-ema-select": [sys.executable, "-m", PACKAGE.name]}
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(PACKAGE.parent)]))
        own = {"PYTHONPATH": path, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
        before = set((self.workspace / "backup").glob("*"))
        done = subprocess.run(
            [*programs[program], *arguments],
            cwd=self.folder,
            env={key: value for key, value in os.environ.items() if key != "ONETRAINER_DIR"} | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}"
        if "ema_select.enabled=false" in command:
            # what the page resumes afterwards is to be a backup of the plugin
            for backup in set((self.workspace / "backup").glob("*")) - before:
                shutil.rmtree(backup)
        return [line.replace("\\", "/") for line in clean_lines(done.stdout)]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(tmp_path_factory.mktemp("docs") / "One Trainer")


@pytest.fixture(scope="module")
def followed(reader: Reader) -> dict[str, list[Ran]]:
    """Every page in the order in which a user reads them, each going on from the one before."""
    return {page: reader.follow(DOCS / page) for page in SCENARIOS}


@pytest.mark.slow
@pytest.mark.parametrize("page", SCENARIOS)
def test_what_a_page_shows_is_printed(followed: dict[str, list[Ran]], page: str):
    for ran in followed[page]:
        for line in ran.shown:
            pattern = ".*".join(re.escape(part) for part in line.split("…")) + "$"
            assert any(re.search(pattern, printed) for printed in ran.printed), (ran.commands, line, ran.printed)


@pytest.mark.slow
def test_what_the_pages_promise_lies_there(reader: Reader, followed: dict[str, list[Ran]]):
    view = scan_workspace(reader.workspace)
    assert {save.set for save in view.saves} == {"ema", "non-ema"}
    assert all(save.milestone and save.partner for save in view.saves)
    assert [parked.step for parked in view.parked] == [160]
    assert (reader.folder / "models" / "model.safetensors").is_file()
    assert (reader.folder / "models" / "model-non-ema.safetensors").is_file()
    # the last command of all: plain OneTrainer goes on from the plugin's backup
    last = followed["remove.md"][-1]
    assert not any("[ema_select]" in line for line in last.printed)
    plain, ours = view.backups[:2]
    assert (plain.epoch, plain.leg, ours.epoch, ours.sets) == (40, "", 30, ("non-ema", "ema"))
    assert not (reader.folder / "modules" / "modelSetup" / "ema_select_dropin.py").exists()
