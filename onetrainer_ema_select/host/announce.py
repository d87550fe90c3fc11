"""What a run says at its start: what was loaded, what is kept, and what that takes."""

from __future__ import annotations

import torch
from torch import Tensor

from onetrainer_ema_select.host.length import start_sentence
from onetrainer_ema_select.host.session import Session
from onetrainer_ema_select.rounding import rounds
from onetrainer_ema_select.schedule import parse_milestones
from onetrainer_ema_select.settings import EmaDtype, ResumeWeights, SaveRounding, SaveSets, WeightSet

_GB = 1e9


def announce(session: Session) -> None:
    """Print the start sentences, and put the first one into the window's status line."""
    lines = [session.plan.sentence, *session.match_notes, start_sentence(session)]
    lines += [memory_sentence(session), post_hoc_sentence(session), disk_sentence(session), rounding_sentence(session)]
    if session.judge is not None and session.judge.attached:
        lines.append(judging_sentence(session))
    if session.milestones.pending:
        owed = ", ".join(session.milestones.pending)
        lines.append(f"Owed from before the interruption, written with the next save: {owed}.")
    for line in lines:
        if line:
            session.reporter.say(line)
    dtype = session.config.output_dtype.torch_dtype()
    count = len(session.sets_written(milestone=True))
    session.space.before("save", session.workspace / "save" / "x", count=count, dtype=dtype)
    session.space.before("backup", session.workspace / "backup" / "x", count=1, dtype=None)
    session.reporter.status(f"ema_select: {session.plan.sentence}")


def memory_sentence(session: Session) -> str:
    """What the average takes, and the way out where that is a lot on a GPU."""
    if session.ema is None:
        return ""
    tracks = session.ema.tracks
    size = tracks.nbytes
    live = sum(parameter.nbytes for parameter in _parameters(session))
    exact = session.settings.ema_dtype is EmaDtype.FLOAT_32
    kind = "float32" if exact else "the weights' own precision"
    text = f"The EMA of {len(tracks.names)} weights takes {gigabytes(size)} in {kind} on {tracks.device}"
    if size > live and tracks.device.type == "cuda":
        text += (
            f" ({size / max(live, 1):.1f} times the weights themselves; if that is too much, set ema to CPU, or "
            "ema_select.ema_dtype to PARAMETER)"
        )
    return text + "."


def judging_sentence(session: Session) -> str:
    """That both sets are judged, and what that takes."""
    text = "OneTrainer's validation judges both sets: the EMA's loss is computed on the same batches"
    size = 0 if session.ema is None else session.ema.tracks.stash_nbytes
    if size:
        text += f", while {gigabytes(size)} of live weights are kept aside in the CPU's memory"
    return f"{text}."


def post_hoc_sentence(session: Session) -> str:
    """Which power-function tracks are kept, what they take, and when their snapshots are written."""
    settings = session.settings
    notes = []
    if settings.resume_sigma_rel and settings.resume_weights is not ResumeWeights.POST_HOC:
        notes.append(
            f"ema_select.resume_sigma_rel has no effect while ema_select.resume_weights is {settings.resume_weights}."
        )
    if session.post_hoc is None:
        if settings.post_hoc_sigma_rels:
            notes.append("ema_select.post_hoc_sigma_rels has no effect while EMA is off.")
        elif settings.post_hoc_every:
            notes.append("ema_select.post_hoc_every has no effect while ema_select.post_hoc_sigma_rels is empty.")
        if (last := _last_tracks(session)) is not None and not session.plan.restarts:
            notes.append(f"The backup's post-hoc tracks end at step {last}; the snapshots up to there stay usable.")
        return " ".join(notes)
    tracks = session.post_hoc.tracks
    lengths = ", ".join(f"{sigma_rel:g}" for sigma_rel in tracks.sigma_rels)
    size = gigabytes(tracks.nbytes)
    when = f"every {settings.post_hoc_every}" if settings.post_hoc_every else "at every backup and milestone"
    text = (
        f"Post-hoc tracks of sigma_rel {lengths} take {size} on {tracks.device}; {session.post_hoc.sentence}. A "
        f"snapshot of them, {size} on the disk, is written {when} and at the end; none is ever deleted."
    )
    if len(tracks.sigma_rels) == 1:
        text += " With a second track of another length the lengths between them can be had more exactly."
    return " ".join([text, *notes])


def _last_tracks(session: Session) -> int | None:
    manifest = session.contents.manifest if session.contents is not None else None
    return None if manifest is None or manifest.post_hoc is None else manifest.step


def disk_sentence(session: Session) -> str:
    """Which sets are written where, and what the trained weights in them take at least."""
    sets = session.settings.save_sets
    dtype: torch.dtype | None = session.config.output_dtype.torch_dtype()
    size = sum(p.numel() * (dtype.itemsize if dtype is not None else p.element_size()) for p in _parameters(session))
    milestones = milestone_sentence(session)
    if session.ema is None:
        return f"Every save writes the non-EMA set, at least {gigabytes(size)}. {milestones}"
    primary = session.settings.primary_set
    other = WeightSet.EMA if primary is WeightSet.NON_EMA else WeightSet.NON_EMA
    match sets:
        case SaveSets.BOTH:
            text = (
                f"Every save writes both sets, at least {gigabytes(2 * size)} together: {_label(primary)} under "
                f"OneTrainer's own name, {_label(other)} beside it with -{_label(other).lower()} in its name"
            )
        case SaveSets.BOTH_AT_MILESTONES:
            text = (
                f"Milestones and the final output write both sets, at least {gigabytes(2 * size)} together; other "
                f"saves write {_label(primary)} alone, at least {gigabytes(size)}"
            )
        case _:
            text = f"Every save writes the {_label(WeightSet[str(sets)])} set alone, at least {gigabytes(size)}"
    return f"{text}. {milestones}"


def rounding_sentence(session: Session) -> str:
    """What saves of 16 bits take from an average of 32, and the ways out; empty where they take nothing."""
    dtype: torch.dtype | None = session.config.output_dtype.torch_dtype()
    written = {*session.sets_written(milestone=False), *session.sets_written(milestone=True)}
    if session.ema is None or WeightSet.EMA not in written:
        return ""
    taken = set()
    for name, parameter in zip(session.names, session.model.parameters.parameters(), strict=True):
        average = session.average(name)
        if average is not None and rounds(dtype, own=parameter.dtype, held=average.dtype):
            taken.add(dtype or parameter.dtype)
    if not taken:
        return ""
    names = " and ".join(sorted(str(one).removeprefix("torch.") for one in taken))
    if session.settings.save_rounding is SaveRounding.STOCHASTIC:
        return (
            f"Saves are rounded to {names} at random, right on average with some noise; set output_dtype to FLOAT_32 "
            "to keep the EMA in full."
        )
    return (
        f"Saves are rounded to {names}, which can lose much of what a slow EMA has moved (inspect says how much, of a "
        "backup). Set output_dtype to FLOAT_32 to keep it in full, or ema_select.save_rounding to STOCHASTIC to keep "
        "it on average, with some noise."
    )


def milestone_sentence(session: Session) -> str:
    """Which milestones there are, and what the backups take that they leave."""
    settings = session.settings
    names = [milestone.name for milestone in parse_milestones(settings.milestones)]
    pinned = settings.pinned_milestones(names)
    text = f"Milestones: {settings.milestones or 'none'}"
    if pinned:
        which = "each" if len(pinned) == len(names) else f"each of {', '.join(pinned)}"
        text += f"; {which} also leaves a backup, about {gigabytes(session.space.estimate('backup', None))}"
    return f"{text}."


def gigabytes(size: int) -> str:
    """A size for people: GB, or MB and kB below a tenth of those."""
    if size >= 0.1 * _GB:
        return f"{size / _GB:.1f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _label(weight_set: WeightSet) -> str:
    return "EMA" if weight_set is WeightSet.EMA else "non-EMA"


def _parameters(session: Session) -> list[Tensor]:
    return [parameter for parameter in session.model.parameters.parameters() if parameter.requires_grad]
