"""What the plugin writes beside a set of weights so that it can be understood later, by people and by itself."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from onetrainer_ema_select.errors import ManifestError
from onetrainer_ema_select.origin import install_source
from onetrainer_ema_select.validation import ValidationRecord

FOLDER = "ema_select"
"""The plugin's folder, inside a backup and inside a workspace."""

MANIFEST_NAME = "manifest.json"
CONFIG_NAME = "config.json"

VERSION = 1
# A manifest of a hundred thousand parameters is about 15 MB; anything beyond this is not one of ours.
_MAX_BYTES = 64 * 1024 * 1024

Count = Annotated[int, Field(ge=0, le=2**53)]
Images = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ParameterRecord(_Record):
    """One parameter of a set: its stable name, shape and dtype (torch's name, such as ``bfloat16``)."""

    name: str
    shape: tuple[Count, ...]
    dtype: str


class EmaRecord(_Record):
    """The average that a backup holds.

    Attributes:
        file: Path relative to the folder that the manifest describes.
        dtype: ``FLOAT_32``, or ``PARAMETER`` for an average in the parameters' own dtypes.
        decay: Decay that the updates come to, after the warm-up where it is OneTrainer's.
        update_step_interval: Optimizer steps from one update to the next.
        updates: Updates so far, over all legs that continued this average.
        step: The host's ``global_step`` that it belongs to.
        half_life: As it was asked for; empty where the decay is OneTrainer's.
        age: In half-lives, of an average that began with one; see :class:`length.Pace`.
        updated_at_step: Steps done at its last update, where there is a half-life.
        accumulation: Batches of an optimizer step.
        images_per_step: Images of a batch on every GPU.
        steps_per_epoch: Batches of an epoch.
        start_share: Share of what the average began with, over all legs that continued it.
    """

    file: str
    dtype: str
    decay: float
    update_step_interval: Count
    updates: Count
    step: Count
    half_life: str = ""
    age: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    updated_at_step: Count | None = None
    accumulation: Annotated[int, Field(ge=1, le=2**53)] | None = None
    images_per_step: Annotated[int, Field(ge=1, le=2**53)] | None = None
    steps_per_epoch: Annotated[int, Field(ge=1, le=2**53)] | None = None
    start_share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None

    @field_validator("file")
    @classmethod
    def _stays_inside(cls, value: str) -> str:
        return _inside(value)


def _inside(value: str) -> str:
    path = value.replace("\\", "/")
    if path.startswith("/") or ":" in path or ".." in path.split("/"):
        raise ValueError(f"the path {value!r} leads out of the folder it describes")
    return value


class PowerTrackRecord(_Record):
    """One power-function track.

    Attributes:
        sigma_rel: Its length.
        file: Path relative to the folder that the manifest describes.
        begun_at: Images when it began; the weights of that moment stand for all before.
    """

    sigma_rel: Annotated[float, Field(gt=0, lt=1)]
    file: str
    begun_at: Images = 0.0

    @field_validator("file")
    @classmethod
    def _stays_inside(cls, value: str) -> str:
        return _inside(value)


class StretchRecord(_Record):
    """What one start of the program has trained, up to the step from which the next one went on."""

    id: str
    until_step: Count


class PostHocRecord(_Record):
    """The power-function tracks of a moment: of a snapshot, or what a backup goes on from.

    Attributes:
        tracks: The tracks, the shortest first.
        dtype: As :attr:`EmaRecord.dtype`.
        images: Images that the run has trained on by then, counted from its beginning, or from the last
            ``resume_ema: RESTART``.
        time: The same at the last update of the tracks.
        updates: Updates so far.
        interval: Images from one update to the next.
        update_step_interval: The same in optimizer steps.
        stretch: The start of the program that it was made in.
        line: The stretches before that led there. What others have trained belongs to another line.
    """

    tracks: tuple[PowerTrackRecord, ...]
    dtype: str
    images: Images
    time: Images
    updates: Count
    interval: Images
    update_step_interval: Count
    stretch: str
    line: tuple[StretchRecord, ...] = ()


class ParkedRecord(_Record):
    """An average that was set aside when EMA was switched off, and the step at which it stopped."""

    name: str
    step: Count

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not value or value in {".", ".."} or any(character in value for character in "/\\:\0"):
            raise ValueError(f"{value!r} is not the name of a folder")
        return value


class LegRecord(_Record):
    """The stretch of a run that began with one set of ``resume_*`` choices.

    Attributes:
        id: Tells it from other legs of the same run; empty for the first one.
        choices: The choices that began it; None for a run that was not resumed.
        began_from: Name of the backup it began from, empty for a fresh start.
        began_at_step: The host's ``global_step`` then.
        best: The set that ``resume_weights`` ``BEST`` came to; empty for any other choice.
    """

    id: str = ""
    choices: dict[str, str] | None = None
    began_from: str = ""
    began_at_step: Count = 0
    best: str = ""


class Manifest(_Record):
    """All that the plugin knows of a backup, a parked average, or a snapshot of post-hoc tracks.

    Attributes:
        post_hoc: The power-function tracks of that moment; None where none are kept.
        pending_milestones: Milestones that were due when a backup was made, and not saved yet.
        milestones: Of a backup that was pinned, the milestones it was pinned for.
        validation: Losses of both sets, of the last validation of the leg; None where there was none.
    """

    format: Literal["onetrainer-ema-select"] = "onetrainer-ema-select"
    # Strict: what pydantic would turn into a number, such as 2.0, must not slip past the check of the version.
    version: Annotated[int, Field(strict=True, ge=1, le=VERSION)] = VERSION
    kind: Literal["backup", "parked", "snapshot"]
    plugin_version: str
    onetrainer_commit: str = ""
    created: str = Field(default_factory=lambda: datetime.datetime.now().astimezone().isoformat(timespec="seconds"))
    run: str
    step: Count
    epoch: Count
    epoch_step: Count
    model_type: str = ""
    training_method: str = ""
    parameters: tuple[ParameterRecord, ...]
    ema: EmaRecord | None = None
    post_hoc: PostHocRecord | None = None
    leg: LegRecord = LegRecord()
    parked: tuple[ParkedRecord, ...] = ()
    pending_milestones: tuple[str, ...] = ()
    milestones: tuple[str, ...] = ()
    validation: ValidationRecord | None = None

    @property
    def sets(self) -> tuple[str, ...]:
        """Names of the sets that are there, as in configs: ``EMA``, ``NON_EMA``."""
        if self.kind == "parked":
            return ("EMA",)
        if self.kind == "snapshot":
            return ("POST_HOC",)
        return ("NON_EMA",) if self.ema is None else ("NON_EMA", "EMA")


def read_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of a backup (``folder/ema_select/manifest.json``), or of a parked average.

    Args:
        folder: The backup's folder, or the parked average's (whose manifest lies directly in it).

    Returns:
        None where there is none: the folder was made without the plugin.

    Raises:
        ManifestError: If the file is there but cannot be read, is not one of ours, or is of a newer version.
    """
    path = folder / FOLDER / MANIFEST_NAME
    advice = (
        "Choose another backup with ema_select.resume_backup, or delete the file to treat the folder as "
        "one that was made without the plugin."
    )
    try:
        if not path.is_file():  # raises for a folder that may not be looked into
            path = folder / MANIFEST_NAME
            if not path.is_file():
                return None
        if path.stat().st_size > _MAX_BYTES:
            raise ManifestError(
                f"{path} is larger than {_MAX_BYTES} bytes, so it is not a manifest of this plugin. {advice}",
                path=str(path),
            )
        text = path.read_text(encoding="utf-8")
        raw = json.loads(text)
        if "\\ud" in text.lower():
            # Half a character, which could be read here but never written into the manifests that come after.
            json.dumps(raw, ensure_ascii=False).encode()
    except (OSError, ValueError, RecursionError) as error:
        raise ManifestError(f"{path} cannot be read: {error}. {advice}", path=str(path)) from error
    version = raw.get("version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise ManifestError(
            f"{path} has the version {version}; this plugin reads up to {VERSION}. "
            f"Get the newer version that wrote it, and install it: pip install --upgrade {install_source()}",
            path=str(path),
            expected=f"at most {VERSION}",
            found=str(version),
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise ManifestError(
            f"{path} is not a valid manifest: {where}: {first['msg']}. {advice}", path=str(path)
        ) from error


def write_manifest(manifest: Manifest, folder: Path) -> Path:
    """Write ``manifest.json`` into ``folder``, which is made where it is missing.

    The caller sees to it that the folder becomes visible only when it is whole (see :mod:`store`).

    Raises:
        OSError: If the file system refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MANIFEST_NAME
    path.write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return path
