"""What to type to use a point of the run: each command is whole, for the shell of the machine the page is made on."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onetrainer_ema_select.origin import PACKAGE
from onetrainer_ema_select.report.data import SNAPSHOT, PlacePoint, RunData
from onetrainer_ema_select.report.text import WEIGHTS, Text

#: Where the workspace has kept no configuration.
CONFIG = "my-config.json"
# What neither cmd.exe nor PowerShell takes for anything but a part of a word.
_PLAIN_WORD = re.compile(r"[\w.:\\/=+-]+")
_FLAGS = {"ema": "EMA", "non-ema": "NON_EMA"}


@dataclass(frozen=True)
class Command:
    """A command and what it is for."""

    title: Text
    line: str


def commands(point: PlacePoint, data: RunData) -> tuple[Command, ...]:
    """What can be done from a point, the usual first; nothing from one that is not complete."""
    if not point.complete:
        return ()
    found = []
    if point.kind != SNAPSHOT:
        found += [
            export_command(point, data, weight_set) for weight_set in ("ema", "non-ema") if weight_set in point.sets
        ]
        found += [
            resume_command(point, data, weight_set) for weight_set in ("ema", "non-ema") if weight_set in point.sets
        ]
    if point.sigma_rels:
        found += post_hoc_commands(point, data)
    return tuple(found)


def export_command(point: PlacePoint, data: RunData, weight_set: str) -> Command:
    """Write one set as a model."""
    title = Text("Write the {weights} as a model", "把{weights}写成模型").format(weights=WEIGHTS[weight_set])
    words = ["export", point.path.absolute(), "--set", weight_set, "--output", _output(point, data, weight_set)]
    return Command(title, line(words))


def resume_command(point: PlacePoint, data: RunData, weight_set: str) -> Command:
    """Train on from one set."""
    title = Text("Train on from the {weights}", "从{weights}继续训练").format(weights=WEIGHTS[weight_set])
    return Command(title, line(_resume(point, data, resume_weights=_FLAGS[weight_set])))


def post_hoc_commands(point: PlacePoint, data: RunData) -> list[Command]:
    """Make an average of a length that was not kept, and train on from it."""
    sigma_rel = f"{point.sigma_rels[-1]:g}"
    output = _output(point, data, f"sigma-rel-{sigma_rel}")
    made = Command(
        Text(
            f"Make an EMA of another length (here sigma_rel {sigma_rel}; any from about 0.03 to 0.25)",
            f"生成另一长度的 EMA（这里 sigma_rel 为 {sigma_rel}；大约 0.03 到 0.25 都可以）",
        ),
        line(
            [
                "synthesize",
                data.workspace.absolute(),
                "--sigma-rel",
                sigma_rel,
                "--at",
                point.snapshot,
                "--output",
                output,
            ]
        ),
    )
    if point.kind == SNAPSHOT:
        return [made]
    title = Text("Train on from such an EMA", "从这样的 EMA 继续训练")
    return [made, Command(title, line(_resume(point, data, resume_weights="POST_HOC", resume_sigma_rel=sigma_rel)))]


def page_command(data: RunData) -> Command:
    """Make this page again."""
    return Command(Text("Make this page anew", "重新生成本页"), line(["report", data.workspace.absolute()]))


def resume_hint(data: RunData) -> Text:
    """What else has to be as it should for a command that trains on."""
    more = Text(
        "Raise epochs in the configuration if the run has reached its end. The same line typed again, as after a "
        "crash, goes on from where it was; make the page anew to begin from the point once more.",
        "如果训练已到终点，请在配置中加大 epochs。再次输入同一行（例如崩溃之后）会从中断处继续；"
        "想再次从该点开始，请重新生成本页。",
    )
    if data.config_file and all(data.config_of(point) for point in data.points if point.kind != SNAPSHOT):
        return more
    return Text(f"Put your own configuration in the place of {CONFIG}. ", f"请把 {CONFIG} 换成您自己的配置。") + more


def _resume(point: PlacePoint, data: RunData, **choices: str) -> list[object]:
    found = data.config_of(point)
    config = found.absolute() if found else CONFIG
    values = {"continue_last_backup": "true", "ema_select.enabled": "true", "ema_select.resume_backup": point.name}
    values |= {f"ema_select.{key}": value for key, value in choices.items()}
    if data.made:
        # Without it, the same choices of an earlier page would go on with the newest backup.
        values["ema_select.resume_leg"] = data.made
    words: list[object] = ["train", "--config-path", config]
    for key, value in values.items():
        words += ["--config-value", f"{key}={value}"]
    return words


def _output(point: PlacePoint, data: RunData, weight_set: str) -> str:
    name = f"{data.workspace.absolute().name or 'model'}-step{point.step}-{weight_set}"
    return str(Path("models", name if point.folder_format else f"{name}.safetensors"))


def line(words: Sequence[object], *, windows: bool = os.name == "nt") -> str:
    """A command in one line, quoted for the shell."""
    texts = [PACKAGE, *map(str, words)]
    return " ".join(map(_windows_word, texts)) if windows else shlex.join(texts)


def _windows_word(text: str) -> str:
    """A word for cmd.exe and PowerShell: both end a bare word at signs such as `&`, `;` and `,`.

    Inside the quotes, the rules of Microsoft's C runtime hold: backslashes count only before a quotation mark.
    """
    if _PLAIN_WORD.fullmatch(text):
        return text
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', text)
    ending = len(escaped) - len(escaped.rstrip("\\"))
    return f'"{escaped}' + "\\" * ending + '"'
