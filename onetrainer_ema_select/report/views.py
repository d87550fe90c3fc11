"""What the page's template is given: the parts of a run, each as the template and the script want it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onetrainer_ema_select import __version__
from onetrainer_ema_select.cli.common import size_text
from onetrainer_ema_select.report.advice import Advice
from onetrainer_ema_select.report.charts import Chart
from onetrainer_ema_select.report.commands import commands
from onetrainer_ema_select.report.curves import WIDTH, Drawn
from onetrainer_ema_select.report.data import PlacePoint, RunData
from onetrainer_ema_select.report.links import url
from onetrainer_ema_select.report.pictures import Copies, difference
from onetrainer_ema_select.report.samples import Moment, Prompt, Sample
from onetrainer_ema_select.report.text import SETS, Text, number, same
from onetrainer_ema_select.report.words import KINDS, SCRIPT_WORDS
from onetrainer_ema_select.workspace import SaveView

_TABLE_ROWS = 40
_UNKNOWN = SCRIPT_WORDS["unknown"]


@dataclass(frozen=True)
class Parts:
    """What a page is made of.

    Attributes:
        data: The run.
        prompts: Its samples, as many as are shown.
        copies: Small copies of those that are pictures.
        left_out: How many samples are not shown.
        charts: The curves, each with its drawing.
        advice: What to do.
        language: ``en``, ``zh``, or empty to have the reader's browser choose.
        undrawn: Of each curve that could not be drawn a sentence, by its key.
    """

    data: RunData
    prompts: tuple[Prompt, ...]
    copies: Copies
    left_out: int
    charts: tuple[tuple[Chart, Drawn], ...]
    advice: Advice
    language: str = ""
    undrawn: Mapping[str, Text] = field(default_factory=dict)


def subtitle(data: RunData) -> Text:
    """What kind of run it is, and how long."""
    parts = [same(" ".join(data.model))] if data.model else []
    if data.last_step:
        parts.append(Text(f"{data.last_step:,} steps", f"{data.last_step:,} 步"))
    return Text(" · ".join(part.en for part in parts), " · ".join(part.zh for part in parts))


def made() -> Text:
    """When and by what the page was made."""
    now = time.strftime("%Y-%m-%d %H:%M")
    return Text(
        f"Made on {now} by onetrainer-ema-select {__version__}, for the folder it lies in. Make it anew with:",
        f"由 onetrainer-ema-select {__version__} 于 {now} 生成，对应它所在的文件夹。重新生成：",
    )


def left_out(count: int) -> Text:
    """How many samples are not shown, and why."""
    return Text(
        f"{count} more samples are not shown, evenly over the steps: the page would become too large.",
        f"另有 {count} 张样图未显示（在各步之间均匀省略），否则页面会过大。",
    )


def is_paired(prompt: Prompt) -> bool:
    """Whether there are pictures of both sets."""
    moments = shown(prompt)
    return any(moment.ema for moment in moments) and any(moment.non_ema for moment in moments)


def shown(prompt: Prompt) -> list[Moment]:
    """The moments of which there are pictures."""
    return [moment for moment in prompt.moments if any(one.is_picture for one in moment.samples)]


def prompt_view(prompt: Prompt, folder: Path) -> dict[str, Any]:
    """A prompt with the links to its files."""
    moments = shown(prompt)
    sets = [
        {"css": css, "name": name}
        for css, name, there in (
            ("ema", SETS["ema"], any(moment.ema for moment in moments)),
            ("non-ema", SETS["non-ema"], any(moment.non_ema for moment in moments)),
            ("unknown", _UNKNOWN, any(moment.unknown for moment in moments)),
        )
        if there
    ]
    rows = [
        {"step": moment.step, "epoch": moment.epoch, "files": [_file(one, folder) for one in moment.samples]}
        for moment in prompt.moments
    ]
    count = sum(len(moment.samples) for moment in prompt.moments)
    return {
        "number": prompt.number,
        "title": prompt.title,
        "sets": sets,
        "paired": is_paired(prompt),
        "shown": len(moments),
        "rows": rows,
        "count": count,
    }


def _file(sample: Sample, folder: Path) -> dict[str, Any]:
    kind = "" if sample.is_picture else sample.path.suffix.lstrip(".")
    return {"url": url(sample.path, folder), "set": SETS.get(sample.set, _UNKNOWN), "kind": kind}


def script_data(parts: Parts, folder: Path, order: Mapping[Path, int]) -> dict[str, Any]:
    """What the page's script shows when it is asked to: pictures, curves and its own words."""

    def told(sample: Sample | None) -> dict[str, Any] | None:
        if sample is None or not sample.is_picture:
            return None
        copy = parts.copies.get(sample.path)
        width, height = copy.original if copy else (1, 1)
        return {"url": url(sample.path, folder), "copy": order.get(sample.path), "width": width, "height": height}

    prompts = [
        {
            "title": prompt.title,
            "moments": [
                {
                    "step": moment.step,
                    "epoch": moment.epoch,
                    "differ": moment_difference(moment, parts.copies),
                    "sets": {"ema": told(moment.ema), "non-ema": told(moment.non_ema), "unknown": told(moment.unknown)},
                }
                for moment in shown(prompt)
            ],
        }
        for prompt in parts.prompts
    ]
    charts = {
        chart.key: {
            "width": WIDTH,
            "series": [
                {"name": {"en": series.name.en, "zh": series.name.zh}, "points": marks}
                for series, marks in zip(chart.series, drawn.marks, strict=True)
            ],
        }
        for chart, drawn in parts.charts
    }
    words = {
        language: {key: getattr(text, language) for key, text in SCRIPT_WORDS.items()} for language in ("en", "zh")
    }
    return {"words": words, "prompts": prompts, "charts": charts}


def moment_difference(moment: Moment, copies: Copies) -> float | None:
    """How far the two pictures of a moment differ, None where there are not two."""
    if moment.ema is None or moment.non_ema is None:
        return None
    return difference(copies.get(moment.ema.path), copies.get(moment.non_ema.path))


def chart_view(chart: Chart, drawn: Drawn) -> dict[str, Any]:
    """A chart with its table, whose rows are thinned out evenly."""
    from markupsafe import Markup

    steps = sorted({step for series in chart.series for step, _ in series.points})
    if len(steps) > _TABLE_ROWS:
        steps = [steps[round(index * (len(steps) - 1) / (_TABLE_ROWS - 1))] for index in range(_TABLE_ROWS)]
    values = [dict(series.points) for series in chart.series]
    rows = [
        [f"{step:g}" if step < 1e6 else f"{int(step)}", *(_cell(one.get(step)) for one in values)] for step in steps
    ]
    return {
        "key": chart.key,
        "title": chart.title,
        "note": chart.note,
        "series": chart.series,
        "named": chart.key == "snapshots" or chart.key.startswith(("validation", "concept")),
        "svg": Markup(drawn.svg),  # drawn from numbers alone
        "count": len({step for series in chart.series for step, _ in series.points}),
        "rows": rows,
    }


def _cell(value: float | None) -> str:
    return "–" if value is None else number(value)


def concepts_view(data: RunData) -> dict[str, Any] | None:
    """The newest losses by concept; None where there is one concept at most."""
    newest = data.validations[-1] if data.validations else None
    if newest is None or len(newest.concepts) < 2:
        return None
    rows = []
    for label, ema, other in newest.concepts:
        better = "" if ema is None or other is None or ema == other else "ema" if ema < other else "non-ema"
        rows.append((label, _cell(ema), _cell(other), better))
    return {"caption": Text(f"Validation loss at step {newest.step}", f"第 {newest.step} 步的验证损失"), "rows": rows}


def point_view(point: PlacePoint, data: RunData) -> dict[str, Any]:
    """A point with its commands."""
    step = (
        Text("step not known", "步数未知")
        if point.step is None
        else Text(f"step {point.step:,}", f"第 {point.step:,} 步")
    )
    epoch = same("") if point.epoch is None else Text(f", epoch {point.epoch}", f"，第 {point.epoch} 轮")
    chips: list[dict[str, Any]] = [
        {"css": name, "name": SETS[name]} for name in ("ema", "non-ema") if name in point.sets
    ]
    chips += [{"css": "post-hoc", "name": same(f"sigma_rel {length:g}")} for length in point.sigma_rels]
    facts = [same(size_text(point.size_bytes))] if point.size_bytes else []
    if point.half_life:
        facts.append(Text(f"EMA half-life {number(point.half_life)} steps", f"EMA 半衰期 {number(point.half_life)} 步"))
    if point.leg:
        facts.append(Text(f"leg: {point.leg}", f"训练段：{point.leg}"))
    return {
        "key": point.key,
        "kind": KINDS[point.kind],
        "where": step + epoch,
        "sets": chips,
        "extra": point.milestone,
        "broken": not point.complete,
        "name": point.name,
        "facts": _joined(facts),
        "reason": point.reason,
        "commands": commands(point, data),
    }


def _joined(texts: Sequence[Text]) -> Text | str:
    if not texts:
        return ""
    return Text(" · ".join(text.en for text in texts), " · ".join(text.zh for text in texts))


def save_view(save: SaveView) -> dict[str, Any]:
    """A row for a model that has been written."""
    notes = (
        *((Text(f"milestone {save.milestone}", f"里程碑 {save.milestone}"),) if save.milestone else ()),
        *((Text(f"its {save.missing} file is not there", f"其 {save.missing} 文件不在"),) if save.missing else ()),
    )
    return {
        "step": "–" if save.step is None else save.step,
        "set": SETS.get(save.set, Text("not told", "未说明")),
        "name": save.path.name,
        "note": _joined(notes),
        "size": size_text(save.size_bytes),
    }
