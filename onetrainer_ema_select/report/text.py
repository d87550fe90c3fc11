"""Texts of the page, each in both of its languages."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Text:
    """A text in English and Chinese. In a template it becomes both, of which the page shows one."""

    en: str
    zh: str

    def __html__(self) -> str:
        """Return both as HTML, escaped."""
        return f'<span data-l="en">{escape(self.en)}</span><span data-l="zh" lang="zh">{escape(self.zh)}</span>'

    def __add__(self, other: Text) -> Text:
        """Return one behind the other."""
        return Text(self.en + other.en, self.zh + other.zh)

    def format(self, **values: object) -> Text:
        """Fill in values; one that is a text itself is filled in in its language."""
        filled = [
            getattr(self, language).format(
                **{
                    name: getattr(value, language) if isinstance(value, Text) else value
                    for name, value in values.items()
                }
            )
            for language in LANGUAGES
        ]
        return Text(*filled)


def same(text: str) -> Text:
    """A text that is the same in both, such as a name."""
    return Text(text, text)


def sentences(*texts: Text) -> Text:
    """Several sentences after each other; Chinese has no spaces between them."""
    return Text(" ".join(text.en for text in texts), "".join(text.zh for text in texts))


def listed(texts: tuple[Text, ...]) -> Text:
    """Several names in a row."""
    return Text(", ".join(text.en for text in texts), "、".join(text.zh for text in texts))


EMA = same("EMA")
NON_EMA = Text("non-EMA", "非 EMA")
SETS = {"ema": EMA, "non-ema": NON_EMA}
#: In a sentence; Chinese has a space before Latin letters.
WEIGHTS = {"ema": Text("EMA weights", " EMA 权重"), "non-ema": Text("non-EMA weights", "非 EMA 权重")}


def set_names(sets: tuple[str, ...]) -> Text:
    """The names of some sets, in the order in which the page has them."""
    names = tuple(SETS[name] for name in ("ema", "non-ema") if name in sets)
    return listed(names) if names else Text("no set that can be told", "无法确定的权重组")


def number(value: float) -> str:
    """A number for people: four digits that count."""
    return f"{value:.4g}"
