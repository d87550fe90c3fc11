"""The stand-in meets the plugin exactly as OneTrainer does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onetrainer_ema_select.demo.standin_copy import SOURCE
from onetrainer_ema_select.host.seams import EXPORT_SEAMS, SEAMS, VALIDATION_SEAMS, check_source

ONETRAINER = Path(os.environ.get("ONETRAINER_DIR") or Path.home() / "OneTrainer")
ALL = (*SEAMS, *EXPORT_SEAMS, *VALIDATION_SEAMS)


def test_every_seam_of_the_standin_is_as_the_plugin_expects():
    results = check_source(SOURCE, ALL)
    assert len(results) == len(ALL)
    assert [result.sentence for result in results if not result.ok] == []


@pytest.mark.skipif(
    not (ONETRAINER / "scripts" / "train.py").is_file(),
    reason=f"no OneTrainer in {ONETRAINER}; name one in ONETRAINER_DIR",
)
def test_the_standin_and_a_real_checkout_have_the_same_seams():
    ours, theirs = (check_source(folder, ALL) for folder in (SOURCE, ONETRAINER))
    assert [result.sentence for result in theirs if not result.ok] == []
    differing = [
        f"{mine.seam.label}: the stand-in has {mine.found}, OneTrainer {real.found}"
        for mine, real in zip(ours, theirs, strict=True)
        if mine.found != real.found
    ]
    assert differing == []


def test_the_standin_needs_nothing_but_torch_safetensors_and_tqdm():
    allowed = {"modules", "torch", "safetensors", "tqdm"}
    standard = {
        "abc", "argparse", "contextlib", "copy", "datetime", "enum", "hashlib", "importlib", "json", "math", "pathlib",
        "pkgutil", "shutil", "struct", "sys", "time", "traceback", "typing", "uuid", "zlib",
    }  # fmt: skip
    found = set()
    for file in SOURCE.rglob("*.py"):
        for line in file.read_text(encoding="utf-8").splitlines():
            words = line.split()
            if len(words) > 1 and words[0] in ("import", "from"):
                found.add(words[1].split(".")[0])
    assert found - standard <= allowed
