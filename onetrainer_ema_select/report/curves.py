"""Draws the charts with matplotlib, as SVG that stands in the page and takes its colours from the page's style."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from onetrainer_ema_select.report.charts import Chart, Series

WIDTH, HEIGHT = 560, 230
_TOP, _BOTTOM, _LEFT = 0.04, 0.15, 0.11
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
# Colours that only stand for a class of the page's style: text and axes, grid; a series has its number in the blue.
_INK, _GRID, _SERIES = "#010203", "#040506", "#0708{:02x}"
_CLASSES = {_INK: "ink", _GRID: "grid"}
_REFERENCE = re.compile(r"#([\w.-]+)")


@dataclass(frozen=True)
class Drawn:
    """A drawn chart.

    Attributes:
        svg: The drawing, without a title: what it is stands beside it in the page.
        marks: Of each series its points as x and y in the drawing, step and value.
    """

    svg: str
    marks: tuple[tuple[tuple[float, float, float, float], ...], ...]


def draw(chart: Chart) -> Drawn:
    """Draw a chart; one series at least, each with a point."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)
    axes = figure.add_axes((_LEFT, _BOTTOM, 0.98 - _LEFT, 1 - _TOP - _BOTTOM))
    for index, series in enumerate(chart.series):
        _line(axes, series, _SERIES.format(index))
    if chart.logarithmic:
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
    if not chart.logarithmic:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    axes.grid(axis="y", color=_GRID, linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, labelsize=13, length=0, pad=6)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(_GRID)
    axes.margins(x=0.02, y=0.12)
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    written = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": chart.key, "path.simplify": False}):
        FigureCanvasSVG(figure).print_svg(written, metadata={"Date": None, "Creator": None})
    marks = tuple(tuple(_places(axes, series)) for series in chart.series)
    return Drawn(_for_page(written.getvalue(), chart), marks)


def _line(axes: Any, series: Series, colour: str) -> None:
    steps, values = zip(*series.points, strict=True)
    many = len(steps) > 40
    axes.plot(
        steps,
        values,
        color=colour,
        linestyle="none" if series.dots else "-",
        linewidth=1 if series.faint else 2.2,
        marker="" if many and not series.dots else "o",
        markersize=5 if series.dots else 4.5,
        solid_joinstyle="round",
    )


def _places(axes: Any, series: Series) -> Iterator[tuple[float, float, float, float]]:
    for (x, y), (step, value) in zip(axes.transData.transform(series.points), series.points, strict=True):
        yield round(float(x), 1), round(HEIGHT - float(y), 1), step, value


def _for_page(svg: str, chart: Chart) -> str:
    """The drawing as it may stand in a page that allows no style of its own, with names that no other one has."""
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    root = ET.fromstring(svg)  # written by matplotlib just now: no name or text of the run is in it
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}style", f"{{{_SVG}}}metadata"):
                parent.remove(child)
    used = {
        found[1]
        for element in root.iter()
        for value in element.attrib.values()
        if (found := _REFERENCE.search(value)) and ("url(" in value or value.startswith("#"))
    }
    for element in root.iter():
        _plain(element, chart, used)
    root.attrib = {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "aria-hidden": "true", "focusable": "false"}
    return ET.tostring(root, encoding="unicode")


def _plain(element: ET.Element, chart: Chart, used: set[str]) -> None:
    """Styles become attributes and classes; names that are referred to get the chart's before them."""
    name = element.attrib.pop("id", None)
    if name in used:
        element.set("id", f"{chart.key}-{name}")
    classes = []
    for part in element.attrib.pop("style", "").split(";"):
        key, _, value = (text.strip() for text in part.partition(":"))
        if key == "font":
            element.set("font-size", re.sub(r".*?([\d.]+)px.*", r"\1", value))
        elif key in ("fill", "stroke") and (kind := _class_of(value, chart)):
            classes.append(f"{key}-{kind}")
        elif key:
            element.set(key, value)
    if classes:
        element.set("class", " ".join(classes))
    for key, value in list(element.attrib.items()):
        if key == f"{{{_XLINK}}}href":
            del element.attrib[key]
            element.set("href", f"#{chart.key}-{value.removeprefix('#')}")
        elif "url(#" in value:
            element.set(key, value.replace("url(#", f"url(#{chart.key}-"))


def _class_of(colour: str, chart: Chart) -> str:
    if colour in _CLASSES:
        return _CLASSES[colour]
    for index, series in enumerate(chart.series):
        if colour == _SERIES.format(index):
            return f"c-{series.colour}" + (" faint" if series.faint else "")
    return ""
