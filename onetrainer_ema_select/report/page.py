"""Puts the page together. Whatever comes from a run goes through autoescape, or into a block that is no script."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from onetrainer_ema_select import __version__
from onetrainer_ema_select.report.advice import SURE
from onetrainer_ema_select.report.commands import page_command, resume_hint
from onetrainer_ema_select.report.missing import missing
from onetrainer_ema_select.report.text import SETS, Text
from onetrainer_ema_select.report.timeline import Mark, timeline
from onetrainer_ema_select.report.views import (
    Parts,
    chart_view,
    concepts_view,
    is_paired,
    left_out,
    made,
    point_view,
    prompt_view,
    save_view,
    script_data,
    subtitle,
)
from onetrainer_ema_select.report.words import WORDS

if TYPE_CHECKING:
    from markupsafe import Markup


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
    points = [point_view(point, data) for point in data.points]
    run_name = data.workspace.absolute().name or str(data.workspace.absolute())
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
        subtitle=subtitle(data),
        advice=parts.advice,
        sure=SURE[parts.advice.sure],
        advice_point=parts.advice.point.key if parts.advice.point else "",
        line=timeline(data),
        prompts=[prompt_view(prompt, folder) for prompt in parts.prompts],
        has_pairs=any(is_paired(prompt) for prompt in parts.prompts),
        left_out=left_out(parts.left_out) if parts.left_out else "",
        charts=[chart_view(chart, drawn) for chart, drawn in parts.charts],
        concepts=concepts_view(data),
        points=points,
        resume_hint=resume_hint(data),
        saves=[save_view(save) for save in data.saves],
        missing=missing(parts),
        made=made(),
        page_command=page_command(data).line,
        data=_json(script_data(parts, folder, order)),
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
