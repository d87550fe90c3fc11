"""What the caller and the process with OneTrainer tell each other: one order, and events, a line each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from onetrainer_ema_select.choices import WeightSet

#: What is being done, how many bytes are done, and how many there will be (0: cannot be told).
Progress = Callable[[str, int, int], None]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True)


class MixtureOrder(_Message):
    """A post-hoc average that is written in the place of the backup's EMA.

    Attributes:
        sigma_rel: Its length.
        fit_error: How far its profile is off, as a share.
        name: Of the snapshot that it ends with.
        files: The snapshots that are mixed.
        coefficients: The share of each; they sum to 1.
        step: The host's ``global_step`` it is of.
        epoch: Epochs finished.
        epoch_step: Steps of the epoch under way.
        run: Identifies the run.
        leg: Of the run; empty for the first.
    """

    sigma_rel: float
    fit_error: float
    name: str
    files: tuple[Path, ...]
    coefficients: tuple[float, ...]
    step: int
    epoch: int
    epoch_step: int
    run: str
    leg: str

    @property
    def global_step(self) -> int:
        """As OneTrainer's progress calls it."""
        return self.step


class ExportOrder(_Message):
    """What is to be done, with absolute paths.

    Attributes:
        action: ``export``, ``plan`` (everything that can be checked without loading the model), or ``names``
            (only say what the trained weights are called).
        onetrainer: OneTrainer's folder.
        backup: The backup.
        config: A config file in the place of the one that the backup carries; None for that one.
        sets: ``ema``, ``non-ema`` or ``both``, or a set's name as in configs.
        output: Where to.
        format: As OneTrainer spells it; empty for the run's.
        dtype: As OneTrainer spells it; empty for the run's.
        rounding: ``nearest`` or ``stochastic``; empty for the run's.
        base_model: In the place of the config's ``base_model_name``; empty for that one.
        config_values: More of the config as ``KEY=VALUE``, as OneTrainer's own option takes it.
        overwrite: Whether what is there already may be replaced.
        mixture: What is written in the place of the backup's EMA; None for that itself.
    """

    action: Literal["export", "plan", "names"]
    onetrainer: Path
    backup: Path
    config: Path | None = None
    sets: str = "ema"
    output: Path = Path()
    format: str = ""
    dtype: str = ""
    rounding: str = ""
    base_model: str = ""
    config_values: tuple[str, ...] = ()
    overwrite: bool = False
    mixture: MixtureOrder | None = None


class ExportedSet(_Message):
    """One written set.

    Attributes:
        set: Which one.
        path: The file or folder.
        files: Every file that belongs to it.
        size_bytes: All of them together. In a plan, what it will be, about.
        tensors: Tensors in them.
        weights: Trained weights that are in it.
        left_out: Trained weights that the format has no place for.
        nonfinite: Tensors that hold NaN or Inf.
    """

    set: WeightSet
    path: Path
    files: tuple[Path, ...] = ()
    size_bytes: int = 0
    tensors: int = 0
    weights: int = 0
    left_out: tuple[str, ...] = ()
    nonfinite: tuple[str, ...] = ()


class ExportResult(_Message):
    """What was done, or with ``dry_run`` what would be.

    Attributes:
        backup: The backup.
        step: The host's ``global_step`` it is of.
        epoch: Epochs finished.
        model_type: As OneTrainer spells it.
        training_method: The same.
        format: The format written.
        dtype: The dtype written; ``NONE`` for the weights' own.
        rounding: ``STOCHASTIC`` where weights are rounded to 16 bits at random; else ``NEAREST``.
        sets: The written sets.
        base_model: The base model that was loaded, or had its structure read; empty where none was needed.
        how: In words, how the weights come out of the backup.
        free_bytes: Free space at the output's place.
        notes: What the user should know besides.
        dry_run: Whether nothing was written.
    """

    backup: Path
    step: int
    epoch: int
    model_type: str
    training_method: str
    format: str
    dtype: str
    rounding: str = "NEAREST"
    sets: tuple[ExportedSet, ...]
    base_model: str = ""
    how: str = ""
    free_bytes: int = 0
    notes: tuple[str, ...] = ()
    dry_run: bool = False


class Event(_Message):
    """One line from the process with OneTrainer.

    Attributes:
        kind: ``progress``, ``staging`` (a private folder that was made), ``result``, ``names``, or ``error``.
        text: What is being done; the folder; the error's message.
        done: Bytes.
        total: Bytes; 0 where that cannot be told.
        result: Of ``result``.
        names: Of ``names``.
        error: Of ``error``: the name of its class in :mod:`errors`; empty for one that nobody expected.
        from_host: Of ``error``: whether OneTrainer raised it, and has printed more.
    """

    kind: Literal["progress", "staging", "result", "names", "error"]
    text: str = ""
    done: int = 0
    total: int = 0
    result: ExportResult | None = None
    names: tuple[str, ...] = ()
    error: str = ""
    from_host: bool = False
