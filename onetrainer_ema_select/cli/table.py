"""Text that fits a terminal of 80 columns, also where names are long or in wide characters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len

WIDTH = 80
# Stands for a space that is no place to break at; no name has it.
_SPACE = "\0"


def padded(text: str, width: int, *, right: bool = False) -> str:
    """Fill up with spaces; wide characters take two columns."""
    space = " " * max(0, width - cell_len(text))
    return space + text if right else text + space


def wrapped(text: str, *, indent: str = "", hanging: str = "  ", keep: Iterable[object] = ()) -> list[str]:
    """Break at spaces to lines that fit; what cannot be broken, such as a path, gets a line of its own.

    Args:
        text: One paragraph.
        indent: What every line begins with.
        hanging: What further lines begin with behind that.
        keep: Paths and names in the text that stay whole, even where there are spaces in them.
    """
    for name in map(str, keep):
        text = text.replace(name, name.replace(" ", _SPACE))
    lines: list[str] = []
    line = indent
    empty = True
    for word in text.split(" "):
        if not empty and cell_len(line) + 1 + cell_len(word) > WIDTH:
            lines.append(line)
            line, empty = indent + hanging, True
        line += word if empty else f" {word}"
        empty = False
    return [one.replace(_SPACE, " ") for one in (*lines, line)]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, last: str = "") -> list[str]:
    """Lay out rows whose first column is text and whose others are numbers, each under its head.

    A first column that does not fit stands on a line of its own, above its numbers.

    Args:
        heads: Heads of the columns.
        rows: Of each row the columns' texts.
        last: A line is drawn above the row whose first column is this.
    """
    body = [tuple(row) for row in rows]
    widths = [max(cell_len(row[column]) for row in (heads, *body)) for column in range(1, len(heads))]
    numbers = sum(width + 2 for width in widths)
    first = max(8, min(WIDTH - 2 - numbers, max(cell_len(row[0]) for row in (heads, *body))))
    lines = []
    for row in (heads, *body):
        texts = "".join(
            f"  {padded(text, width, right=True)}" for text, width in zip(row[1:], widths, strict=True)
        ).rstrip()
        if last and row[0] == last:
            lines.append("  " + "-" * (first + numbers))
        if cell_len(row[0]) > first:
            lines += [f"  {row[0]}", f"  {padded('', first)}{texts}"]
        else:
            lines.append(f"  {padded(row[0], first)}{texts}".rstrip())
    return lines


def number(value: float | None) -> str:
    """A measured number, short; what has no value is a dash."""
    if value is None:
        return "-"
    return "0" if value == 0 else f"{value:.4g}"


def cosine(value: float | None) -> str:
    """A cosine, with the digits that tell it from 1."""
    return "-" if value is None else f"{value:.7f}"
