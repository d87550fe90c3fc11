"""Makes the page of a workspace, and writes it whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from onetrainer_ema_select.errors import ReportError
from onetrainer_ema_select.manifest import FOLDER
from onetrainer_ema_select.report.advice import advise
from onetrainer_ema_select.report.charts import all_charts
from onetrainer_ema_select.report.data import gather
from onetrainer_ema_select.report.pictures import Copies, make_copies, thinned
from onetrainer_ema_select.report.samples import Prompt
from onetrainer_ema_select.store import write_text

FILE = Path(FOLDER, "report.html")
#: What a page needs beside the package's own requirements, as import and as pip name them.
NEEDED = (("jinja2", "jinja2"), ("matplotlib", "matplotlib"), ("PIL", "pillow"))

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Made:
    """A page that has been written.

    Attributes:
        path: The file.
        size_bytes: Its size.
        samples: Samples shown in it.
        left_out: Samples that are not.
        charts: Which curves it has.
        headline: Its recommendation.
        sure: How sure that is: ``clear``, ``probable`` or empty.
        missing: What it says is missing.
    """

    path: Path
    size_bytes: int
    samples: int
    left_out: int
    charts: tuple[str, ...]
    headline: str
    sure: str
    missing: tuple[str, ...]


def make_report(
    workspace: Path,
    *,
    output: Path | None = None,
    language: str = "",
    progress: Progress = lambda _what, _done, _total: None,
) -> Made:
    """Make the page.

    Args:
        workspace: A run's workspace.
        output: Where to write it; ``WORKSPACE/ema_select/report.html`` by default.
        language: ``en`` or ``zh``; empty to have the reader's browser choose.
        progress: Told what is being done, and how much of it is.

    Raises:
        EmaSelectError: There is no such workspace, a package is missing, or the page cannot be written.
    """
    check_needed()
    from onetrainer_ema_select.report.curves import draw
    from onetrainer_ema_select.report.missing import missing, not_drawn
    from onetrainer_ema_select.report.page import render
    from onetrainer_ema_select.report.views import Parts, moment_difference

    path = (output or workspace / FILE).absolute()
    if path.is_dir():
        raise ReportError(f"{path} is a folder. Name the file to write, such as {path / FILE.name}.", path=path)
    progress("reading the workspace", 0, 0)
    data = gather(workspace)
    prompts, left_out = thinned(data.prompts)
    copies = _copies(prompts, progress)
    charts = all_charts(data.validations, data.curves, data.drift, data.snapshots)
    drawn, undrawn = [], {}
    for index, chart in enumerate(charts):
        progress("drawing curves", index, len(charts))
        try:
            drawn.append((chart, draw(chart)))
        except Exception as error:  # noqa: BLE001 - one curve must not cost the page
            undrawn[chart.key] = not_drawn(chart.title, error)
    latest = [
        found
        for prompt in prompts
        for moment in prompt.moments[-1:]
        if (found := moment_difference(moment, copies)) is not None
    ]
    advice = advise(data, sum(latest) / len(latest) if latest else None)
    progress("writing the page", 0, 0)
    parts = Parts(data, prompts, copies, left_out, tuple(drawn), advice, language, undrawn)
    html = render(parts, folder=path.parent)
    try:
        # half a character of a file's name must not keep the page from being written
        write_text(path, html.encode("utf-8", "replace").decode())
    except OSError as error:
        raise ReportError(
            f"The page cannot be written to {path}: {error}. Name another place with --output.", path=path
        ) from error
    lacks = missing(parts)
    return Made(
        path=path,
        size_bytes=path.stat().st_size,
        samples=sum(len(moment.samples) for prompt in prompts for moment in prompt.moments),
        left_out=left_out,
        charts=tuple(chart.key for chart, _ in drawn),
        headline=advice.headline.en,
        sure=advice.sure,
        missing=tuple(text.en for text in lacks),
    )


def _copies(prompts: tuple[Prompt, ...], progress: Progress) -> Copies:
    samples = [one for prompt in prompts for moment in prompt.moments for one in moment.samples if one.is_picture]
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress("making small copies of the samples", done, len(samples))

    return make_copies(samples, advance=advance)


def check_needed(load: Callable[[str], ModuleType] = __import__) -> None:
    """Look whether everything is there that a page is made with.

    Raises:
        ReportError: Something is missing; says how to install it.
    """
    lacking = []
    for module, package in NEEDED:
        try:
            load(module)
        except ImportError:
            lacking.append(package)
    if lacking:
        raise ReportError(
            f"A page needs {' and '.join(lacking)}, which this Python does not have. OneTrainer's own environment has "
            f"them: use that one, or type: pip install {' '.join(lacking)}",
            expected=", ".join(package for _, package in NEEDED),
            found="without " + ", ".join(lacking),
        )
