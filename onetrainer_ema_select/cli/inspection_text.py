"""How `inspect` tells its report: as text of 80 columns, and as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from onetrainer_ema_select.cli.common import size_text
from onetrainer_ema_select.cli.distances import distance_json, distance_lines
from onetrainer_ema_select.cli.inspection import EmaReport, Report, SetReport
from onetrainer_ema_select.cli.shortfall import gap_json, gap_lines, rounding_json, rounding_lines
from onetrainer_ema_select.cli.table import number, table, wrapped
from onetrainer_ema_select.validation import ValidationRecord

# A whole configuration is no line of a report.
_LONGEST_VALUE = 200


def report_lines(report: Report, *, every: bool) -> list[str]:
    """The report for people.

    Args:
        report: What was found.
        every: Whether to show all blocks.
    """
    lines = [*wrapped(f"{report.path} ({size_text(report.size_bytes)})", keep=[report.path]), *wrapped(report.kind.use)]
    # Unbroken, to be copied.
    lines += [f"  {report.kind.command}", ""] if report.kind.command else [""]
    for one in report.sets:
        lines += wrapped(set_text(one))
    if report.ema is not None:
        lines += wrapped(ema_text(report.ema))
        if report.ema.average is not None:
            for warning in report.ema.average.warnings(run_steps=report.ema.run_steps):
                lines += wrapped(f"WARNING: {warning}")
    if report.validation is not None:
        lines += validation_lines(report.validation)
    if report.provenance:
        lines += ["", "Where it comes from"]
        lines += [line for key, value in report.provenance.items() for line in _field(key, value)]
    if report.metadata:
        lines += ["", "What its header says"]
        lines += [line for key, value in sorted(report.metadata.items()) for line in _field(key, value)]
    if report.kind.name in ("unknown", "lora"):
        lines += ["", "Names of its tensors", *(f"  {name}" for name in report.examples)]
    if report.distance is not None:
        heads = report.between if report.partner is None else ("this", "other")
        lines += ["", *wrapped(f"How far {report.between[0]} and {report.between[1]} are apart:")]
        if report.partner is not None:
            lines += wrapped(str(report.partner), indent="  ", keep=[report.partner])
        lines += distance_lines(report.distance, every=every, heads=heads)
    elif report.distance_problem:
        lines += ["", *wrapped(report.distance_problem, keep=[report.path, report.partner])]
    lines += _paragraph([] if report.rounded is None else rounding_lines(report.rounded))
    lines += _paragraph([] if report.gap is None else gap_lines(report.gap))
    return lines


def set_text(one: SetReport) -> str:
    """One set, in one sentence."""
    dtypes = ", ".join(
        name if len(one.dtypes) == 1 else f"{name} ({share_text(elements, one.elements)})"
        for name, elements in one.dtypes.items()
    )
    health = f"{one.nan} NaN and {one.inf} Inf" if one.nan or one.inf else "no NaN, no Inf"
    return (
        f"{one.name or 'weights'}: {one.tensors:,} tensors, {one.elements:,} numbers, {dtypes or 'nothing'}, "
        f"{size_text(one.size_bytes)}; {health}"
    )


def validation_lines(record: ValidationRecord) -> list[str]:
    """Which set is better by validation loss, and the losses of each concept."""
    rows = [(one.label, str(one.batches), number(one.ema), number(one.non_ema)) for one in record.concepts]
    if len(rows) > 1:
        rows.append(("all", str(record.batches), number(record.ema), number(record.non_ema)))
    heads = ("validation loss", "batches", "ema", "non-ema")
    return ["", *wrapped(record.text), *table(heads, rows, last="all" if len(rows) > 1 else "")]


def share_text(part: int, whole: int) -> str:
    """A part of a whole in percent."""
    return f"{100 * part / whole:.3g} %" if whole else "0 %"


def ema_text(ema: EmaReport) -> str:
    """How an average was made, in one sentence."""
    parts = [] if ema.decay is None else [f"decay {ema.decay:g}"]
    if ema.update_step_interval is not None:
        steps = "every step" if ema.update_step_interval == 1 else f"every {ema.update_step_interval} steps"
        parts.append(f"updated {steps}")
    if ema.updates is not None:
        parts.append(f"{ema.updates:,} updates so far")
    if ema.average is not None:
        asked, full, now = ema.average.typed, ema.average.half_life, ema.average.half_life_at(ema.step)
        parts.append(f"half-life {full.text}" + (f", as {asked} was asked for" if asked else ""))
        if now != full:
            parts.append(f"which OneTrainer's warm-up has brought to {now.text} so far")
    if ema.age is not None:
        parts.append(f"{number(ema.age)} half-lives old")
    return "EMA: " + (", ".join(parts) or "nothing says how it was made")


def half_life_json(ema: EmaReport) -> dict[str, Any] | None:
    """How long an average is; see docs/json.md."""
    if ema.average is None or math.isinf(ema.average.half_life.steps):
        return None
    full, now = ema.average.half_life, ema.average.half_life_at(ema.step)
    return {
        "asked": ema.average.typed,
        "full": asdict(full),
        "now": asdict(now),
        "age": ema.age,
        "warnings": ema.average.warnings(run_steps=ema.run_steps),
    }


def report_json(report: Report) -> dict[str, Any]:
    """The report for programs; see docs/json.md."""
    ema = report.ema
    return {
        "schema": 1,
        "path": report.path.absolute(),
        "kind": report.kind.name,
        "use": f"{report.kind.use} {report.kind.command}".rstrip(),
        "size_bytes": report.size_bytes,
        "sets": [
            {
                "set": one.name,
                "tensors": one.tensors,
                "elements": one.elements,
                "size_bytes": one.size_bytes,
                "dtypes": [{"dtype": dtype, "elements": elements} for dtype, elements in one.dtypes.items()],
                "nan": one.nan,
                "inf": one.inf,
            }
            for one in report.sets
        ],
        "ema": None
        if ema is None
        else {
            "decay": ema.decay,
            "update_step_interval": ema.update_step_interval,
            "updates": ema.updates,
            "half_life_steps": ema.half_life_steps,
            "half_life": half_life_json(ema),
            "precision": ema.precision,
        },
        "validation": None if report.validation is None else report.validation.as_json(),
        "provenance": dict(report.provenance),
        "metadata": dict(report.metadata),
        "examples": list(report.examples),
        "partner": None if report.partner is None else report.partner.absolute(),
        "distance": None if report.distance is None else distance_json(report.distance),
        "distance_problem": report.distance_problem,
        "rounding": rounding_json(report.rounded),
        "lora_gap": gap_json(report.gap),
    }


def _paragraph(lines: list[str]) -> list[str]:
    return ["", *lines] if lines else []


def _field(key: str, value: str) -> list[str]:
    shown = value if len(value) <= _LONGEST_VALUE else f"{value[:_LONGEST_VALUE]}…"
    return wrapped(f"{key}: {' '.join(shown.split())}", indent="  ", hanging="    ")
