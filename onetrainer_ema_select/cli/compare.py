"""`compare`: how far two models or backups are apart."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onetrainer_ema_select.choices import WeightSet
from onetrainer_ema_select.cli.common import JsonOption, OneTrainerOption, echo_json
from onetrainer_ema_select.cli.table import wrapped
from onetrainer_ema_select.naming import set_suffix
from onetrainer_ema_select.origin import PACKAGE

if TYPE_CHECKING:  # torch is imported when the verb runs, so that `--help` answers at once
    from onetrainer_ema_select.tensor_set import TensorSet

EXAMPLE = f"Example: {PACKAGE} compare models/model.safetensors models/model-non-ema.safetensors"


class SetName(str, Enum):
    """A set, as it is typed."""

    EMA = "ema"
    NON_EMA = "non-ema"

    @property
    def weight_set(self) -> WeightSet:
        """The set."""
        return WeightSet.EMA if self is SetName.EMA else WeightSet.NON_EMA


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        path: As it was given.
        weight_set: Which set; None where the model does not say.
        kind: What it is, in one word.
        tensors: Its weights.
    """

    path: Path
    weight_set: WeightSet | None
    kind: str
    tensors: TensorSet

    @property
    def set_text(self) -> str:
        """Its set as it is typed; empty where it is not known."""
        return "" if self.weight_set is None else set_suffix(self.weight_set)


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A backup, or a model: a file or a folder.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one; or the same backup, to compare its two sets.")],
    *,
    set_a: Annotated[
        SetName | None, typer.Option("--set-a", show_default="non-ema", help="Which set of A, where A is a backup.")
    ] = None,
    set_b: Annotated[
        SetName | None, typer.Option("--set-b", show_default="non-ema", help="Which set of B, where B is a backup.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Show every block, not only the 12 furthest apart.")] = False,
    onetrainer: OneTrainerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how far two models or backups are apart, block by block, in double precision.

    The distance is the length of the difference relative to the length of A. LoRAs are compared as their files are,
    factor by factor. A backup made without the plugin has no names for its EMA: --onetrainer DIR has OneTrainer say
    them.
    """
    from onetrainer_ema_select.cli.distances import distance_json, distance_lines, measure

    same = _same(a, b)
    if set_a is None and set_b is None and same:
        from onetrainer_ema_select.recognise import is_backup

        if is_backup(a):
            set_a, set_b = SetName.EMA, SetName.NON_EMA
    sides = open_side(a, set_a, onetrainer, option="--set-a"), open_side(b, set_b, onetrainer, option="--set-b")
    measured = measure(sides[0].tensors, sides[1].tensors, called=(str(a), str(b)), exact=same)
    if as_json:
        described = {
            name: {"path": side.path.absolute(), "set": side.set_text, "kind": side.kind}
            for name, side in zip(("a", "b"), sides, strict=True)
        }
        echo_json({"schema": 1, **described, **distance_json(measured)})
        return
    for head, side in zip(("A", "B"), sides, strict=True):
        for line in wrapped(
            f"{head}: {side.path}" + (f" ({side.set_text})" if side.set_text else ""), keep=[side.path]
        ):
            typer.echo(line)
    typer.echo()
    for line in distance_lines(measured, every=every, heads=("A", "B")):
        typer.echo(line)


def open_side(path: Path, asked: SetName | None, onetrainer: Path | None, *, option: str) -> Side:
    """Open one of the two.

    Raises:
        typer.BadParameter: If a set was asked for that is not in it.
        EmaSelectError: If it cannot be opened.
    """
    from onetrainer_ema_select.cli.distances import open_named, require_named
    from onetrainer_ema_select.model_kinds import kind_of
    from onetrainer_ema_select.models import open_model
    from onetrainer_ema_select.recognise import is_backup, is_parked

    if path.is_dir() and (is_backup(path) or is_parked(path)):
        backup = open_named(path, onetrainer if asked is SetName.EMA else None)
        default = WeightSet.NON_EMA if WeightSet.NON_EMA in backup.sets else WeightSet.EMA
        wanted = asked.weight_set if asked is not None else default
        if wanted not in backup.sets:
            held = " and ".join(set_suffix(one) for one in backup.sets)
            raise typer.BadParameter(f"{path} holds {held} only: leave {option} out.")
        require_named(backup, wanted)
        return Side(path, wanted, "parked" if is_parked(path) else "backup", backup.sets[wanted])
    model = open_model(path)
    said = model.metadata.get("ema_select.set", "")
    own = WeightSet(said) if said in ("EMA", "NON_EMA") else None
    if asked is not None and own is not None and asked.weight_set is not own:
        raise typer.BadParameter(f"{path} is the {set_suffix(own)} set, not {asked.value}: leave {option} out.")
    if asked is not None and own is None:
        raise typer.BadParameter(f"{path} is a model with one set of weights, not a backup: leave {option} out.")
    return Side(path, own, kind_of(path, model.tensors.names).name, model.tensors)


def _same(a: Path, b: Path) -> bool:
    return a.exists() and b.exists() and a.samefile(b)
