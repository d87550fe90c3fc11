"""Which tensor of one model is which of another, whose names may begin differently."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from onetrainer_ema_select.errors import NamesError
from onetrainer_ema_select.tensor_set import TensorSet

# How many names stand in a message.
_EXAMPLES = 3
_SHOWN_LENGTH = 100

# Parts that a model can have: text encoders, VAEs and the like.
_MOST_PARTS = 24


@dataclass(frozen=True)
class Match:
    """Two sets of names beside each other.

    Attributes:
        pairs: Names of tensors of the same shape.
        reshaped: Names that belong together, of tensors that have not the same shape.
        only_a: Names that only the first has.
        only_b: Names that only the second has.
        prefixes: What was taken off the beginnings of names of either, to find those that belong together.
    """

    pairs: tuple[tuple[str, str], ...]
    reshaped: tuple[tuple[str, str], ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    prefixes: tuple[tuple[str, str], ...]

    @property
    def complete(self) -> bool:
        """Whether nothing is left over on either side."""
        return not (self.reshaped or self.only_a or self.only_b)


def match(a: TensorSet, b: TensorSet, *, called: tuple[str, str], exact: bool = False) -> Match:
    """Find the tensors that belong together: by equal names first, then by names that differ in their beginning.

    A beginning is a model's folder, or what all names of a part have in common; of these, those are taken off
    which make the most names of tensors of equal shape agree, and at least half of the smaller part. Where two
    choices do equally well, neither is taken.

    Args:
        a: The first set.
        b: The second.
        called: How the two are called in a message.
        exact: Whether only equal names belong together: of two sets of one backup, whose names are stable.

    Raises:
        NamesError: If no two tensors belong together.
    """
    found = {name: name for name in a if name in b}
    left_a, left_b = set(a) - found.keys(), set(b) - set(found.values())
    prefixes: list[tuple[str, str]] = []
    while left_a and left_b and not exact:
        best = _best_prefixes(a, b, left_a, left_b)
        if not best:
            break
        choices = [_agreeing(left_a, left_b, pair) for pair in best]
        if _at_odds(choices):
            # Which of them is right nobody can say; what else there is may still be found.
            left_a -= {name for agreed in choices for name in agreed}
            left_b -= {name for agreed in choices for name in agreed.values()}
            continue
        prefixes.append(best[0])
        found |= choices[0]
        left_a -= choices[0].keys()
        left_b -= set(choices[0].values())
    taken = set(found.values())
    ordered = [(name, found[name]) for name in a if name in found]
    pairs = tuple((one, other) for one, other in ordered if a.shape(one) == b.shape(other))
    reshaped = tuple((one, other) for one, other in ordered if a.shape(one) != b.shape(other))
    if not pairs:
        _refuse(a, b, called, reshaped)
    return Match(
        pairs=pairs,
        reshaped=reshaped,
        only_a=tuple(name for name in a if name not in found),
        only_b=tuple(name for name in b if name not in taken),
        prefixes=tuple(prefixes),
    )


def _best_prefixes(
    a: TensorSet, b: TensorSet, left_a: Collection[str], left_b: Collection[str]
) -> list[tuple[str, str]]:
    """The beginnings that make the most names agree, the shortest of those that do equally well first."""
    best: list[tuple[str, str]] = []
    most = 1
    for one in _beginnings(left_a):
        for other in _beginnings(left_b):
            agreed = _agreeing(left_a, left_b, (one, other))
            alike = sum(a.shape(first) == b.shape(second) for first, second in agreed.items())
            if alike < most or alike * 2 < min(_size(left_a, one), _size(left_b, other)):
                continue
            best = [(one, other)] if alike > most else [*best, (one, other)]
            most = alike
    return sorted(best, key=lambda pair: (len(pair[0]) + len(pair[1]), pair))


def _at_odds(choices: Iterable[Mapping[str, str]]) -> bool:
    """Whether two of them give a name different partners, or a partner different names."""
    partners: dict[str, str] = {}
    names: dict[str, str] = {}
    return any(
        partners.setdefault(name, partner) != partner or names.setdefault(partner, name) != name
        for agreed in choices
        for name, partner in agreed.items()
    )


def _beginnings(names: Collection[str]) -> list[str]:
    """Nothing, each first part, and what all names, or all names with the same first part, begin with."""
    found = {""}
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition(".")[0], []).append(name)
    # A model has few parts; where there are many first parts, as in kohya's flat names, they are its layers.
    parts_of_a_model = groups.values() if len(groups) <= _MOST_PARTS else ()
    for group in [list(names), *parts_of_a_model]:
        first, last = (name.split(".")[:-1] for name in (min(group, key=_parts), max(group, key=_parts)))
        length = next((i for i, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), None)
        parts = first[: min(len(first), len(last)) if length is None else length]
        found |= {"".join(f"{part}." for part in parts[: count + 1]) for count in range(len(parts))}
    # A number counts blocks: what is behind it would be taken for the same part of another block.
    return sorted(beginning for beginning in found if not any(part.isdecimal() for part in beginning.split(".")))


def _parts(name: str) -> list[str]:
    return name.split(".")


def _agreeing(left_a: Iterable[str], left_b: Iterable[str], prefixes: tuple[str, str]) -> dict[str, str]:
    one, other = prefixes
    rests = {name[len(other) :]: name for name in left_b if name.startswith(other)}
    agreed = {}
    for name in left_a:
        rest = name[len(one) :] if name.startswith(one) else ""
        if rest in rests and "." in rest and not rest.split(".")[0].isdecimal():
            agreed[name] = rests[rest]
    return agreed


def _size(names: Iterable[str], beginning: str) -> int:
    return sum(name.startswith(beginning) for name in names)


def _refuse(a: TensorSet, b: TensorSet, called: tuple[str, str], reshaped: tuple[tuple[str, str], ...]) -> None:
    if reshaped:
        one, other = reshaped[0]
        raise NamesError(
            f"{called[0]} and {called[1]} have {len(reshaped)} names in common, but no tensor of the same shape: "
            f"{_short(one)} is {a.shape(one)} in the one and {b.shape(other)} in the other. LoRAs must have the same "
            "rank, models the same architecture, to be compared: name two that have.",
            key=one,
            expected=str(a.shape(one)),
            found=str(b.shape(other)),
        )
    examples = [", ".join(_short(name) for name in side.names[:_EXAMPLES]) or "no tensors" for side in (a, b)]
    raise NamesError(
        f"No tensor of {called[0]} is in {called[1]}: the one has names such as {examples[0]}; the other such as "
        f"{examples[1]}. Compare two models in the same format: export both with `onetrainer-ema-select export` and "
        "the same --format."
    )


def _short(name: str) -> str:
    return name if len(name) <= _SHOWN_LENGTH else f"{name[:_SHOWN_LENGTH]}…"
