"""OneTrainer's samples in a workspace, by prompt and step, those of both sets beside each other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onetrainer_ema_select.report.sources import line_of, read_json

SAMPLES_FOLDER = "samples"
#: What OneTrainer adds to a prompt's folder for the samples without the EMA.
NO_EMA = " - no-ema"
CUSTOM = "custom"
# Sets, in the order of a moment's fields.
OWN = ("ema", "non-ema", "")

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".jxl"})
OTHERS = frozenset({".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mp3", ".wav", ".flac", ".ogg", ".m4a", ".opus"})

# `<prefix><time>-training-sample-<step>-<epoch>-<step of the epoch>`
_NAME = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)-training-sample-(?P<step>\d{1,15})-(?P<epoch>\d{1,15})-\d+$"
)
_TIME = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d")
_FOLDER = re.compile(r"(?P<number>\d+) - (?P<prompt>.*)", re.DOTALL)


@dataclass(frozen=True)
class Sample:
    """One file that OneTrainer has made as a sample.

    Attributes:
        path: The file.
        set: ``ema``, ``non-ema``, or empty where it cannot be told.
        step: Steps done.
        epoch: Epochs finished.
        time: When, as its name says.
    """

    path: Path
    set: str
    step: int
    epoch: int
    time: str

    @property
    def is_picture(self) -> bool:
        """Whether it can be shown as a picture; else it is linked."""
        return self.path.suffix.lower() in PICTURES


@dataclass(frozen=True)
class Moment:
    """The samples of a prompt at one step, of each set at most one."""

    step: int
    epoch: int
    ema: Sample | None
    non_ema: Sample | None
    unknown: Sample | None = None

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Those that are there."""
        return tuple(one for one in (self.ema, self.non_ema, self.unknown) if one is not None)


@dataclass(frozen=True)
class Prompt:
    """All samples of one prompt, by step.

    Attributes:
        number: OneTrainer's, None for the samples asked for by hand.
        name: What the folder's name has kept of the prompt.
        moments: Its steps.
        full: The whole prompt, where a configuration of the run has it.
    """

    number: int | None
    name: str
    moments: tuple[Moment, ...]
    full: str = ""

    @property
    def title(self) -> str:
        """The prompt as far as it is known."""
        return self.full or self.name


def find_samples(workspace: Path) -> tuple[Prompt, ...]:
    """The samples of a workspace by prompt, in OneTrainer's order. Files and folders of other names are passed over.

    Where a step was come by again, the newest sample counts.
    """
    root = workspace / SAMPLES_FOLDER
    ema_at = _ema_by_time(workspace)
    prompts: dict[str, list[Sample]] = {}
    paired = {folder.name.removesuffix(NO_EMA) for folder in _folders(root) if folder.name.endswith(NO_EMA)}
    for folder in _folders(root):
        name = folder.name.removesuffix(NO_EMA)
        if name != CUSTOM and not _FOLDER.fullmatch(name):
            continue
        if folder.name != name:
            prompts.setdefault(name, []).extend(_samples(folder, "non-ema"))
            continue
        for one in _samples(folder, ""):
            prompts.setdefault(name, []).append(_told(one, ema_at, paired=name in paired))
    full = _full_prompts(workspace)
    found = [_prompt(name, samples, full) for name, samples in prompts.items() if samples]
    return tuple(sorted(found, key=lambda one: (one.number is None, one.number or 0, one.name)))


def _prompt(name: str, samples: list[Sample], full: dict[tuple[int, str], str]) -> Prompt:
    match = _FOLDER.fullmatch(name)
    in_order = sorted(samples, key=lambda sample: (sample.time, sample.step, sample.path.name))
    if not match:
        # Asked for by hand: each may be of another prompt.
        alone = [Moment(one.step, one.epoch, *(one if one.set == own else None for own in OWN)) for one in in_order]
        return Prompt(None, name, tuple(sorted(alone, key=lambda moment: moment.step)))
    by_step: dict[int, dict[str, Sample]] = {}
    for own in OWN:
        of_set = line_of((one.step, one) for one in in_order if one.set == own)
        for one in of_set:
            by_step.setdefault(one.step, {})[one.set] = one
    moments = []
    for step, sets in sorted(by_step.items()):
        any_of = next(iter(sets.values()))
        moments.append(Moment(step, any_of.epoch, sets.get("ema"), sets.get("non-ema"), sets.get("")))
    number, kept = int(match["number"]), match["prompt"]
    return Prompt(number, kept, tuple(moments), full.get((number, kept), ""))


def _full_prompts(workspace: Path) -> dict[tuple[int, str], str]:
    """Whole prompts by number and by what a folder's name keeps of them, from the configurations of each start."""
    found = {}
    for said in _configs(workspace).values():
        samples = said.get("samples")
        for number, sample in enumerate(samples if isinstance(samples, list) else []):
            prompt = sample.get("prompt") if isinstance(sample, dict) else None
            if isinstance(prompt, str):
                found[number, _kept(prompt)] = prompt
    return found


def _kept(prompt: str) -> str:
    """What OneTrainer keeps of a prompt for a folder's name: letters, digits and a few signs, 32 of them."""
    letters = "".join(character for character in prompt if character.isalnum() or character in " ._-#")
    return letters.strip()[:32].strip()


def _told(sample: Sample, ema_at: list[tuple[str, bool]], *, paired: bool) -> Sample:
    """The set of a sample in a prompt's own folder: the EMA's, but where EMA was off."""
    on = next((ema for time, ema in reversed(ema_at) if time <= sample.time), None)
    if on is None and paired:
        on = True
    told = "" if on is None else "ema" if on else "non-ema"
    return Sample(sample.path, told, sample.step, sample.epoch, sample.time)


def _ema_by_time(workspace: Path) -> list[tuple[str, bool]]:
    """Whether EMA was on, by the time of each start."""
    configs = _configs(workspace).items()
    return [(time, said["ema"] != "OFF") for time, said in configs if isinstance(said.get("ema"), str)]


def _configs(workspace: Path) -> dict[str, dict[str, Any]]:
    """The configurations that OneTrainer keeps of each start, by the time in their names, the earliest first."""
    try:
        files = sorted((workspace / "config").glob("*.json"))
    except OSError:
        return {}
    found = {time[0]: read_json(file) for file in files if (time := _TIME.search(file.name))}
    return dict(sorted(found.items()))


def _samples(folder: Path, weight_set: str) -> Iterator[Sample]:
    try:
        files = sorted(folder.iterdir())
    except OSError:
        return
    for file in files:
        named = _NAME.search(file.stem)
        if named and file.suffix.lower() in PICTURES | OTHERS and file.is_file():
            yield Sample(file, weight_set, int(named["step"]), int(named["epoch"]), named["time"])


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    except OSError:
        return []
