"""Which sets of a backup are wanted, and whether it has them. Needs no OneTrainer."""

from __future__ import annotations

from onetrainer_ema_select import errors
from onetrainer_ema_select.backups import Backup
from onetrainer_ema_select.choices import SaveRounding, WeightSet
from onetrainer_ema_select.errors import ExportError, UsageError
from onetrainer_ema_select.naming import set_suffix
from onetrainer_ema_select.rounding import run_rounding


def chosen_sets(opened: Backup, which: str) -> tuple[WeightSet, ...]:
    """The sets to write, the one with the plain name first.

    Raises:
        ExportError: The backup does not hold them, or there is no set of that name.
    """
    named: dict[str, tuple[WeightSet, ...]] = {str(set_suffix(each)): (each,) for each in WeightSet}
    named.update({str(each): (each,) for each in WeightSet})
    section = (opened.config or {}).get(errors.SECTION)
    primary = WeightSet.EMA
    if isinstance(section, dict) and section.get("primary_set") == "NON_EMA":
        primary = WeightSet.NON_EMA
    named["both"] = (primary, *(each for each in WeightSet if each is not primary))
    if which not in named:
        raise ExportError(f"There is no set {which!r}. Choose ema, non-ema or both.", key="set", found=which)
    wanted = named[which]
    missing = [each for each in wanted if each not in opened.sets]
    if not missing:
        return wanted
    there = ", ".join(set_suffix(each) for each in opened.sets) or "none"
    parked = [record.name for record in opened.manifest.parked] if opened.manifest is not None else []
    advice = f"Choose --set {there}." if opened.sets else "Choose another backup."
    if parked and WeightSet.EMA in missing:
        advice = (
            f"EMA was off in this part of the run. Its average up to then is parked as {parked[-1]}; the backup of "
            f"that name without -ema holds it too, if it is still there. {advice}"
        )
    elif WeightSet.EMA in missing:
        advice = f"EMA was off in this run when the backup was made. {advice}"
    raise ExportError(
        f"{opened.path} does not hold the {set_suffix(missing[0])} set, only: {there}. {advice}",
        path=opened.path,
        expected=set_suffix(missing[0]),
        found=there,
    )


def chosen_rounding(opened: Backup, wanted: str) -> SaveRounding:
    """How weights are rounded to 16 bits.

    Args:
        opened: The backup, whose run says so where nothing else does.
        wanted: ``nearest`` or ``stochastic``; empty for the run's.

    Raises:
        UsageError: There is no such rounding.
    """
    if not wanted:
        return run_rounding(opened.config)
    try:
        return SaveRounding(wanted.upper())
    except ValueError:
        raise UsageError(
            f"--rounding {wanted} is none. Choose nearest or stochastic.",
            key="rounding",
            expected="nearest, stochastic",
            found=wanted,
        ) from None
