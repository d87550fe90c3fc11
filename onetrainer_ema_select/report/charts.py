"""Which curves the page has, and what is to be said of each; how they are drawn is :mod:`curves`' matter."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from onetrainer_ema_select.report.sources import Curves, Drift, Snapshot, Validation
from onetrainer_ema_select.report.text import EMA, NON_EMA, Text, same

Point = tuple[float, float]

#: Concepts that get a chart of their own; all are in the table of the newest validation.
_CONCEPTS = 8
# More points than pixels only make the page larger.
_POINTS = 600
# Nothing that is measured is as large; matplotlib cannot lay out an axis up to the largest numbers there are.
_LARGEST = 1e100


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: What it is.
        colour: ``ema``, ``non-ema``, or a number for one of the others.
        points: Step and value.
        dots: Whether they are drawn as dots only.
        faint: Whether the line is thin and pale: behind another one that says the same smoothed.
    """

    name: Text
    colour: str
    points: tuple[Point, ...]
    dots: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart: what it shows, how to read it, its lines, and whether the values' axis is logarithmic."""

    key: str
    title: Text
    note: Text
    series: tuple[Series, ...]
    logarithmic: bool = False


def all_charts(
    validations: tuple[Validation, ...], curves: Curves, drift: tuple[Drift, ...], snapshots: tuple[Snapshot, ...]
) -> tuple[Chart, ...]:
    """The charts for which there is something to draw, in the order of the page."""
    charts = [
        *validation_charts(validations, curves),
        training_chart(curves),
        distance_chart(drift),
        decay_chart(drift, curves),
        length_chart(drift),
        snapshot_chart(snapshots),
    ]
    return tuple(drawable for chart in charts if chart is not None and (drawable := _drawable(chart)).series)


def _drawable(chart: Chart) -> Chart:
    """A chart without the numbers that no axis can reach."""
    lines = [
        replace(line, points=tuple(point for point in line.points if abs(point[1]) <= _LARGEST))
        for line in chart.series
    ]
    return replace(chart, series=tuple(line for line in lines if line.points))


def validation_charts(validations: tuple[Validation, ...], curves: Curves) -> list[Chart]:
    """The losses of both sets in total and by concept; of OneTrainer's own curves where the plugin has none."""
    note = Text(
        "Lower is better. Both sets are measured on the same images and the same noise.",
        "越低越好。两组权重用同样的图片和同样的噪声测量。",
    )
    if not validations:
        return _own_validation(curves)
    both = _pair(
        "validation", Text("Validation loss", "验证损失"), note, [(v.step, v.ema, v.non_ema) for v in validations]
    )
    labels = list(dict.fromkeys(label for one in validations for label, _, _ in one.concepts))
    charts = [both]
    for index, label in enumerate(labels[:_CONCEPTS] if len(labels) > 1 else []):
        losses = [(v.step, ema, other) for v in validations for name, ema, other in v.concepts if name == label]
        title = Text(f"Validation loss, concept “{label}”", f"验证损失，概念“{label}”")
        charts.append(_pair(f"concept{index}", title, note, losses))
    return [chart for chart in charts if chart.series]


def _pair(key: str, title: Text, note: Text, losses: Iterable[tuple[int, float | None, float | None]]) -> Chart:
    losses = list(losses)
    lines = (
        Series(EMA, "ema", tuple((step, ema) for step, ema, _ in losses if ema is not None)),
        Series(NON_EMA, "non-ema", tuple((step, other) for step, _, other in losses if other is not None)),
    )
    return Chart(key, title, note, tuple(line for line in lines if line.points))


def _own_validation(curves: Curves) -> list[Chart]:
    names = ["total_average"] if "total_average" in curves.validation else sorted(curves.validation)[:1]
    charts = []
    for name in names:
        lines = (
            Series(EMA, "ema", _counted(curves.ema_validation.get(name, []))),
            Series(NON_EMA, "non-ema", _counted(curves.validation[name])),
        )
        note = Text(
            "Lower is better. From OneTrainer's TensorBoard, which validates the weights being trained.",
            "越低越好。来自 OneTrainer 的 TensorBoard，它验证的是正在训练的权重。",
        )
        shown = tuple(line for line in lines if line.points)
        charts.append(Chart("validation", Text("Validation loss", "验证损失"), note, shown))
    return charts


def training_chart(curves: Curves) -> Chart | None:
    """OneTrainer's own loss, as it is and smoothed."""
    plain = _counted(curves.training.get("loss/train_step", []))
    smooth = _counted(curves.training.get("smooth_loss/train_step", []))
    if not plain:
        return None
    lines = [Series(Text("each step", "每一步"), "0", thin(plain), faint=bool(smooth))]
    if smooth:
        lines.append(Series(Text("smoothed", "平滑后"), "0", thin(smooth)))
    note = Text(
        "Of the weights being trained, on the images trained on. It says little about which set is better.",
        "正在训练的权重在训练图片上的损失。它很难说明哪一组更好。",
    )
    return Chart("training", Text("Training loss", "训练损失"), note, tuple(lines))


def distance_chart(drift: tuple[Drift, ...]) -> Chart | None:
    """How far the sets are apart, in total and for the parts of the model."""
    parts = list(dict.fromkeys(key for one in drift for key in one.values if key.startswith("distance/")))
    lines = [_drift_line(drift, "distance", Text("all weights", "全部权重"), "0")]
    if len(parts) > 1:
        lines += [
            _drift_line(drift, part, same(part.removeprefix("distance/")), str(index + 1))
            for index, part in enumerate(parts[:5])
        ]
    note = Text(
        "Length of the difference between the sets, relative to the weights. 0: the sets are the same.",
        "两组之差的长度，相对于权重的长度。0 表示两组相同。",
    )
    return _chart("distance", Text("Distance between the sets", "两组之间的距离"), note, lines)


def decay_chart(drift: tuple[Drift, ...], curves: Curves) -> Chart | None:
    """What of the average stays from one step to the next."""
    line = _drift_line(drift, "decay_per_step", EMA, "ema")
    if not line.points:
        line = Series(EMA, "ema", thin(_counted(curves.training.get("ema_decay", []))))
    note = Text(
        "The share of the average that stays, one step to the next. It rises while OneTrainer warms the average up.",
        "从一步到下一步，平均值中保留下来的份额。OneTrainer 预热平均值时它逐渐上升。",
    )
    return _chart("decay", Text("Effective decay", "有效衰减"), note, [line])


def length_chart(drift: tuple[Drift, ...]) -> Chart | None:
    """The half-life of each track, in steps."""
    names = list(dict.fromkeys(key for one in drift for key in one.values if key.startswith("half_life_steps/")))
    lines = []
    for index, name in enumerate(names[:6]):
        track = name.removeprefix("half_life_steps/").replace("POST_HOC_", "sigma_rel ")
        lines.append(_drift_line(drift, name, same(track), "ema" if track == "EMA" else str(index % 6)))
    note = Text(
        "What a track held this many steps ago counts half in it.",
        "这么多步之前的内容，在平均值中只占一半分量。",
    )
    high = [value for line in lines for _, value in line.points]
    logarithmic = bool(high) and min(high) > 0 and max(high) > 50 * min(high)
    return _chart(
        "length", Text("Half-life of each average, in steps", "各平均值的半衰期（步）"), note, lines, logarithmic
    )


def snapshot_chart(snapshots: tuple[Snapshot, ...]) -> Chart | None:
    """Which post-hoc lengths were kept when."""
    lengths = sorted({length for one in snapshots for length in one.sigma_rels})
    lines = [
        Series(
            same(f"sigma_rel {length:g}"),
            str(index),
            tuple((one.step, length) for one in snapshots if length in one.sigma_rels),
            dots=True,
        )
        for index, length in enumerate(lengths[:6])
    ]
    note = Text(
        "Snapshots of the tracks kept for post-hoc EMA. From them an average of any length can be made, up to any of "
        "these steps.",
        "为事后 EMA 保存的快照。用它们可以得到任意长度的平均值，直到其中任意一步。",
    )
    return _chart("snapshots", Text("Post-hoc EMA: snapshots", "事后 EMA：快照"), note, lines)


def _chart(key: str, title: Text, note: Text, lines: list[Series], logarithmic: bool = False) -> Chart | None:
    shown = tuple(line for line in lines if line.points)
    return Chart(key, title, note, shown, logarithmic) if shown else None


def _drift_line(drift: tuple[Drift, ...], key: str, name: Text, colour: str) -> Series:
    points = ((float(one.step), one.values[key]) for one in drift if key in one.values)
    return Series(name, colour, thin(tuple(points)))


def _counted(points: list[tuple[int, float]]) -> tuple[Point, ...]:
    """By steps done: OneTrainer's curves give a step the number of those before it."""
    return tuple((step + 1, value) for step, value in points if math.isfinite(value))


def thin(points: tuple[Point, ...], *, most: int = _POINTS) -> tuple[Point, ...]:
    """Fewer points with the same outline: of each stretch the lowest and the highest one, and the last of all."""
    if len(points) <= most:
        return points
    stretch = math.ceil(len(points) / (most // 2))
    kept: list[Point] = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return (*kept, points[-1]) if kept[-1] != points[-1] else tuple(kept)
