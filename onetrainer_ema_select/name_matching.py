"""Which tensor of one model is which of another, whose names may begin differently."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from onetrainer_ema_select.errors import NamesError
from onetrainer_ema_select.tensor_set import TensorSet

# How many names stand in a message.
_EXAMPLES = 3
_SHOWN_LENGTH = 100


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
        if best is None:
            break
        agreed = _agreeing(left_a, left_b, best)
        prefixes.append(best)
        found |= agreed
        left_a -= agreed.keys()
        left_b -= set(agreed.values())
    ordered = [(name, found[name]) for name in a if name in found]
    pairs = tuple((one, other) for one, other in ordered if a.shape(one) == b.shape(other))
    reshaped = tuple((one, other) for one, other in ordered if a.shape(one) != b.shape(other))
    if not pairs:
        _refuse(a, b, called, reshaped)
    return Match(
        pairs=pairs,
        reshaped=reshaped,
        only_a=tuple(name for name in a if name in left_a),
        only_b=tuple(name for name in b if name in left_b),
        prefixes=tuple(prefixes),
    )


def _best_prefixes(
    a: TensorSet, b: TensorSet, left_a: Collection[str], left_b: Collection[str]
) -> tuple[str, str] | None:
    best: list[tuple[str, str]] = []
    most = 0
    for one in _beginnings(left_a):
        for other in _beginnings(left_b):
            agreed = _agreeing(left_a, left_b, (one, other))
            alike = sum(a.shape(first) == b.shape(second) for first, second in agreed.items())
            group = min(_size(left_a, one), _size(left_b, other))
            if alike == 0 or alike * 2 < group or alike < most:
                continue
            best = [(one, other)] if alike > most else [*best, (one, other)]
            most = alike
    # Of those that say the same, the shortest; where two say different things, neither is sure.
    best.sort(key=lambda pair: (len(pair[0]) + len(pair[1]), pair))
    if not best:
        return None
    chosen = _agreeing(left_a, left_b, best[0])
    for other_choice in best[1:]:
        agreed = _agreeing(left_a, left_b, other_choice)
        taken = set(chosen.values())
        if any(chosen.get(name, partner) != partner for name, partner in agreed.items()):
            return None
        if any(partner in taken and chosen.get(name) != partner for name, partner in agreed.items()):
            return None
    return best[0]


def _beginnings(names: Collection[str]) -> list[str]:
    """Nothing, each first part, and what all names, or all names with the same first part, begin with."""
    found = {""}
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition(".")[0], []).append(name)
    for group in [list(names), *groups.values()]:
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
