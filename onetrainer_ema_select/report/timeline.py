"""Where on the line of the run each mark stands."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onetrainer_ema_select.cli.common import size_text
from onetrainer_ema_select.report.data import BACKUP, MILESTONE, RunData
from onetrainer_ema_select.report.text import Text, same, sentences, set_names
from onetrainer_ema_select.workspace import SaveView

WIDTH, LEFT, RIGHT, LANE = 1000, 120, 24, 34


@dataclass(frozen=True)
class Mark:
    """A mark: its place, its shape, the sets it holds, what is said of it, and the part of the page it leads to."""

    x: float
    shape: str
    sets: tuple[str, ...]
    label: Text
    target: str = ""
    broken: bool = False


@dataclass(frozen=True)
class Bar:
    """A leg; `y` grows with each, so that one can see from where it was taken up."""

    x: float
    end: float
    label: Text
    resumed: bool


@dataclass(frozen=True)
class Lane:
    """A row of marks of one kind. Ticks are small ones of which nothing else is said."""

    name: Text
    y: float
    marks: tuple[Mark, ...] = ()
    ticks: tuple[float, ...] = ()
    bars: tuple[Bar, ...] = ()


@dataclass(frozen=True)
class Timeline:
    """The whole drawing: its lanes, and the steps and epochs along it as place and text."""

    height: float
    lanes: tuple[Lane, ...]
    steps: tuple[tuple[float, str], ...]
    epochs: tuple[tuple[float, str], ...]
    width: int = WIDTH
    left: int = LEFT


def timeline(data: RunData) -> Timeline | None:
    """Lay out the line; None where there is no step to show."""
    last = data.last_step
    if last <= 0:
        return None
    span = WIDTH - LEFT - RIGHT

    def place(step: float) -> float:
        return round(LEFT + span * step / last, 1)

    rows: list[Lane] = []

    def lane(name: Text, **parts: tuple[object, ...]) -> None:
        if any(parts.values()):
            rows.append(Lane(name, 46 + LANE * len(rows), **parts))  # type: ignore[arg-type]

    lane(
        Text("Legs", "训练段"),
        bars=tuple(
            Bar(
                place(leg.began_at),
                place(max(leg.last, leg.began_at)),
                _leg_label(leg.text, leg.began_at, leg.last),
                leg.resumed,
            )
            for leg in data.legs
        ),
    )
    for kind, name, shape in (
        (BACKUP, Text("Backups", "备份"), "circle"),
        (MILESTONE, Text("Milestones", "里程碑"), "diamond"),
    ):
        points = [point for point in data.points if point.kind == kind and point.step is not None]
        lane(
            name,
            marks=tuple(
                Mark(
                    place(point.step or 0),
                    shape,
                    point.sets,
                    _label(
                        Text("Milestone", "里程碑") if kind == MILESTONE else Text("Backup", "备份"),
                        step=point.step,
                        epoch=point.epoch,
                        sets=point.sets,
                        name=point.milestone or point.name,
                        size=point.size_bytes,
                        problem=point.reason if not point.complete else "",
                    ),
                    point.key,
                    not point.complete,
                )
                for point in reversed(points)
            ),
        )
    lane(Text("Saves", "保存"), marks=tuple(_save_mark(step, saves, place(step)) for step, saves in _by_step(data)))
    steps = sorted({moment.step for prompt in data.prompts for moment in prompt.moments})
    lane(Text("Samples", "样图"), ticks=tuple(place(step) for step in steps))
    lane(Text("Validation", "验证"), ticks=tuple(place(one.step) for one in data.validations))
    if data.snapshots:
        lane(Text("Snapshots", "快照"), ticks=tuple(place(one.step) for one in data.snapshots))
    return Timeline(
        height=46 + LANE * len(rows) + 22,
        lanes=tuple(rows),
        steps=tuple((place(step), f"{step:,}") for step in _round_steps(last)),
        epochs=tuple(_epochs(data, place, last)),
    )


def _by_step(data: RunData) -> list[tuple[int, list[SaveView]]]:
    found: dict[int, list[SaveView]] = {}
    for save in data.saves:
        if save.step is not None:
            found.setdefault(save.step, []).append(save)
    return sorted(found.items())


def _save_mark(step: int, saves: list[SaveView], x: float) -> Mark:
    sets = tuple(dict.fromkeys(save.set for save in saves if save.set))
    missing = next((save.missing for save in saves if save.missing), "")
    label = _label(
        Text("Save", "保存"),
        step=step,
        epoch=saves[0].epoch,
        sets=sets,
        name=saves[0].milestone or saves[0].path.name,
        size=sum(save.size_bytes for save in saves),
    )
    if missing:
        gone = Text(f"Its {missing} file is not there.", f"其 {missing} 文件不在。")
        label = sentences(label, gone)
    return Mark(x, "square", sets, label, "saves", bool(missing))


def _label(
    kind: Text, *, step: int | None, epoch: int | None, sets: tuple[str, ...], name: str, size: int, problem: str = ""
) -> Text:
    where = Text(f", step {step}", f"，第 {step} 步") if step is not None else same("")
    when = Text(f", epoch {epoch}", f"，第 {epoch} 轮") if epoch is not None else same("")
    holds = Text(": {sets}. ", "：{sets}。").format(sets=set_names(sets))
    text = kind + where + when + holds + same(f"{name}, {size_text(size)}.")
    if problem:
        text += Text(f" Not complete: {problem}.", f" 不完整：{problem}。")
    return text


def _leg_label(text: str, began: int, last: int) -> Text:
    return Text(f"Steps {began} to {last}: {text}", f"第 {began} 到 {last} 步：{text}")


def _round_steps(last: int) -> list[int]:
    """A few round numbers of steps from 0 on."""
    rough = last / 7
    power = 10 ** math.floor(math.log10(rough)) if rough >= 1 else 1
    unit = next(int(power * factor) for factor in (1, 2, 5, 10) if power * factor >= rough)
    return list(range(0, last + 1, max(1, unit)))


def _epochs(data: RunData, place: object, last: int) -> list[tuple[float, str]]:
    length = data.steps_per_epoch
    if not length or not callable(place):
        return []
    count = int(last / length + 1e-9)
    every = next(unit for power in range(9) for factor in (1, 2, 5) if count / (unit := factor * 10**power) <= 10)
    return [(place(epoch * length), str(epoch)) for epoch in range(every, count + 1, every)]
