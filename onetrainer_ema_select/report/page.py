"""Puts the page together. Whatever comes from a run goes through autoescape, or into a block that is no script."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from onetrainer_ema_select import __version__
from onetrainer_ema_select.cli.common import size_text
from onetrainer_ema_select.report.advice import SURE, Advice
from onetrainer_ema_select.report.charts import Chart
from onetrainer_ema_select.report.commands import commands, page_command, resume_hint
from onetrainer_ema_select.report.curves import WIDTH, Drawn
from onetrainer_ema_select.report.data import RunData
from onetrainer_ema_select.report.missing import missing
from onetrainer_ema_select.report.pictures import Copies, difference
from onetrainer_ema_select.report.samples import Moment, Prompt, Sample
from onetrainer_ema_select.report.text import SETS, Text, number, same
from onetrainer_ema_select.report.timeline import Mark, timeline
from onetrainer_ema_select.report.words import KINDS, SCRIPT_WORDS, WORDS

if TYPE_CHECKING:
    from markupsafe import Markup

_TABLE_ROWS = 40
_UNKNOWN = Text("set not known", "权重组未知")


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
    """

    data: RunData
    prompts: tuple[Prompt, ...]
    copies: Copies
    left_out: int
    charts: tuple[tuple[Chart, Drawn], ...]
    advice: Advice
    language: str = ""


def render(parts: Parts, *, folder: Path) -> str:
    """Return the page's HTML.

    Args:
        parts: What it is made of.
        folder: Where it will lie; the originals are linked from there.
    """
    from jinja2 import DictLoader, Environment, StrictUndefined
    from markupsafe import Markup

    css, js = _resource("page.css"), _resource("page.js")
    environment = Environment(
        loader=DictLoader({"page": _resource("page.html.j2")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["shape"] = _shape
    data, language = parts.data, parts.language or "en"
    order = {path: index for index, path in enumerate(path for path, copy in parts.copies.items() if copy is not None)}
    points = [_point(point, data) for point in data.points]
    run_name = data.workspace.absolute().name or str(data.workspace.absolute())
    broken = sum(copy is None for copy in parts.copies.values())
    return environment.get_template("page").render(
        language=language,
        choose_language=not parts.language,
        policy=_policy(css, js),
        version=__version__,
        title={
            one: getattr(Text("{name}: EMA or non-EMA", "{name}：EMA 还是非 EMA").format(name=run_name), one)
            for one in ("en", "zh")
        },
        css=Markup(css),  # the package's own files
        js=Markup(js),
        words={key: _Word(text) for key, text in WORDS.items()},
        run_name=run_name,
        subtitle=_subtitle(data),
        advice=parts.advice,
        sure=SURE[parts.advice.sure],
        advice_point=parts.advice.point.key if parts.advice.point else "",
        line=timeline(data),
        prompts=[_prompt(prompt, folder) for prompt in parts.prompts],
        has_pairs=any(_paired(prompt) for prompt in parts.prompts),
        left_out=_left_out(parts.left_out) if parts.left_out else "",
        charts=[_chart(chart, drawn) for chart, drawn in parts.charts],
        concepts=_concepts(data),
        points=points,
        resume_hint=resume_hint(data),
        saves=[_save(save) for save in data.saves],
        missing=missing(data, broken_pictures=broken, charts=frozenset(chart.key for chart, _ in parts.charts)),
        made=_made(),
        page_command=page_command(data).line,
        data=_json(_script_data(parts, folder, order)),
        copies=[copy.data for copy in parts.copies.values() if copy is not None],
    )


class _Word(Text):
    """A text that a template can also ask for one language of."""

    def __init__(self, text: Text) -> None:
        super().__init__(text.en, text.zh)

    def __getitem__(self, language: str) -> str:
        return self.zh if language == "zh" else self.en


def _resource(name: str) -> str:
    return (
        resources.files("onetrainer_ema_select.report").joinpath("templates").joinpath(name).read_text(encoding="utf-8")
    )


def _policy(css: str, js: str) -> str:
    """The page may run its own script and nothing else, and reach nothing but the files beside it."""
    style, script = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (css, js))
    return (
        f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; img-src data: 'self' file:; "
        "base-uri 'none'; form-action 'none'"
    )


def _json(value: object) -> Markup:
    """JSON that ends no block and opens none, whatever is in it."""
    from markupsafe import Markup

    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # no character of HTML is left in it


def url(path: Path, folder: Path) -> str:
    """A link from a page in a folder to a file, which may have any name."""
    try:
        relative = Path(os.path.relpath(path.absolute(), folder.absolute()))
    except ValueError:  # another drive of Windows
        return path.absolute().as_uri()
    quoted = quote(os.fsencode(relative.as_posix()), safe="/")
    return quoted if quoted.startswith("../") else f"./{quoted}"


def _shape(mark: Mark, y: float) -> Markup:
    """A mark: one colour for each set that it holds, left and right where there are both."""
    from markupsafe import Markup

    x, r = mark.x, 6.5
    d = r + 2
    # the left half from the top down, the right half, and the way back up along the right
    outlines = {
        "circle": (f"A{r},{r} 0 0 0 {x},{y + r}", f"A{r},{r} 0 0 1 {x},{y + r}", f"A{r},{r} 0 0 0 {x},{y - r}", r),
        "square": (f"H{x - r}V{y + r}H{x}", f"H{x + r}V{y + r}H{x}", f"H{x + r}V{y - r}H{x}", r),
        "diamond": (f"L{x - d},{y}L{x},{y + d}", f"L{x + d},{y}L{x},{y + d}", f"L{x + d},{y}L{x},{y - d}", d),
    }
    left, right, back, height = outlines[mark.shape]
    top = f"M{x},{y - height}"
    only = next((name for name in mark.sets if name in SETS), "unknown")
    if not mark.broken and {"ema", "non-ema"} <= set(mark.sets):
        parts = [("ema", f"{top}{left}Z"), ("non-ema", f"{top}{right}Z")]
    else:
        parts = [("unknown" if mark.broken else only, f"{top}{left}{back}Z")]
    return Markup("").join(Markup('<path class="shape {}" d="{}"/>').format(name, outline) for name, outline in parts)


# -- parts of the page ---------------------------------------------------------------------------------------


def _subtitle(data: RunData) -> Text:
    parts = [same(" ".join(data.model))] if data.model else []
    if data.last_step:
        parts.append(Text(f"{data.last_step:,} steps", f"{data.last_step:,} 步"))
    return Text(" · ".join(part.en for part in parts), " · ".join(part.zh for part in parts))


def _made() -> Text:
    now = time.strftime("%Y-%m-%d %H:%M")
    return Text(
        f"Made on {now} by onetrainer-ema-select {__version__}, for the folder it lies in. Make it anew with:",
        f"由 onetrainer-ema-select {__version__} 于 {now} 生成，对应它所在的文件夹。重新生成：",
    )


def _left_out(count: int) -> Text:
    return Text(
        f"{count} more samples are not shown, evenly over the steps: the page would become too large.",
        f"另有 {count} 张样图未显示（在各步之间均匀省略），否则页面会过大。",
    )


def _paired(prompt: Prompt) -> bool:
    shown = [moment for moment in prompt.moments if any(one.is_picture for one in moment.samples)]
    return any(moment.ema for moment in shown) and any(moment.non_ema for moment in shown)


def _shown(prompt: Prompt) -> list[Moment]:
    return [moment for moment in prompt.moments if any(one.is_picture for one in moment.samples)]


def _prompt(prompt: Prompt, folder: Path) -> dict[str, Any]:
    shown = _shown(prompt)
    sets = [
        {"css": css, "name": name}
        for css, name, there in (
            ("ema", SETS["ema"], any(moment.ema for moment in shown)),
            ("non-ema", SETS["non-ema"], any(moment.non_ema for moment in shown)),
            ("unknown", _UNKNOWN, any(moment.unknown for moment in shown)),
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
        "paired": _paired(prompt),
        "shown": len(shown),
        "rows": rows,
        "count": count,
    }


def _file(sample: Sample, folder: Path) -> dict[str, Any]:
    kind = "" if sample.is_picture else sample.path.suffix.lstrip(".")
    return {"url": url(sample.path, folder), "set": SETS.get(sample.set, _UNKNOWN), "kind": kind}


def _script_data(parts: Parts, folder: Path, order: Mapping[Path, int]) -> dict[str, Any]:
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
                for moment in _shown(prompt)
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


def _chart(chart: Chart, drawn: Drawn) -> dict[str, Any]:
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
        "named": chart.key == "snapshots",
        "svg": Markup(drawn.svg),  # drawn from numbers alone
        "count": len({step for series in chart.series for step, _ in series.points}),
        "rows": rows,
    }


def _cell(value: float | None) -> str:
    return "–" if value is None else number(value)


def _concepts(data: RunData) -> dict[str, Any] | None:
    newest = data.validations[-1] if data.validations else None
    if newest is None or len(newest.concepts) < 2:
        return None
    rows = []
    for label, ema, other in newest.concepts:
        better = "" if ema is None or other is None or ema == other else "ema" if ema < other else "non-ema"
        rows.append((label, _cell(ema), _cell(other), better))
    return {"caption": Text(f"Validation loss at step {newest.step}", f"第 {newest.step} 步的验证损失"), "rows": rows}


def _point(point: Any, data: RunData) -> dict[str, Any]:
    step = (
        Text("step not known", "步数未知")
        if point.step is None
        else Text(f"step {point.step:,}", f"第 {point.step:,} 步")
    )
    epoch = same("") if point.epoch is None else Text(f", epoch {point.epoch}", f"，第 {point.epoch} 轮")
    chips = [{"css": name, "name": SETS[name]} for name in ("ema", "non-ema") if name in point.sets]
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


def _save(save: Any) -> dict[str, Any]:
    notes: Iterable[Text] = (
        *((Text(f"milestone {save.milestone}", f"里程碑 {save.milestone}"),) if save.milestone else ()),
        *((Text(f"its {save.missing} file is not there", f"其 {save.missing} 文件不在"),) if save.missing else ()),
    )
    return {
        "step": "–" if save.step is None else save.step,
        "set": SETS.get(save.set, Text("not told", "未说明")),
        "name": save.path.name,
        "note": _joined(tuple(notes)),
        "size": size_text(save.size_bytes),
    }
