"""The run's configuration out of a backup, twice: as it was, and as a model can be loaded with here."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ConfigPart import ConfigPart
from modules.util.enum.DataType import DataType
from modules.util.enum.EMAMode import EMAMode
from modules.util.enum.ModelFormat import ModelFormat

from onetrainer_ema_select.errors import SECTION, ExportError, UsageError
from onetrainer_ema_select.host.config_section import with_section
from onetrainer_ema_select.host.export.messages import ExportOrder
from onetrainer_ema_select.run_config import CONFIG_PLACES, HOST_CONFIG

# Parts that the config may name a file of their own for: of a fine-tune the backup itself holds them, trained.
_PARTS_IN_BACKUP = ("vae", "transformer", "prior", "text_encoder_4", "unconditional_transformer")


@dataclass(frozen=True)
class RunConfig:
    """The configuration of the run that a backup is of.

    Attributes:
        original: As OneTrainer had it: for the headers of what is written.
        working: With nothing in it that is not needed, or may not be there on this machine.
        notes: What could not be read, for the user.
    """

    original: Any
    working: Any
    notes: tuple[str, ...]

    @property
    def is_fine_tune(self) -> bool:
        """Whether the backup holds the whole model, so that no base model is needed."""
        return is_fine_tune(self.original)


def is_fine_tune(config: Any) -> bool:
    """Whether a run trains a model's own weights: ``FINE_TUNE``, ``FINE_TUNE_VAE``."""
    return str(config.training_method).startswith("FINE_TUNE")


def read_run_config(order: ExportOrder) -> RunConfig:
    """Read the configuration.

    Raises:
        ExportError: There is none, or it cannot be read, or an override names no key of it.
    """
    path, data = _read(order)
    if SECTION in data:
        _keep_section()
    original, complaints = _parse(data)
    working, _ = _parse(data)
    if order.base_model:
        working.base_model_name = order.base_model
    for text in order.config_values:
        _override(working, text)
    working.train_device = working.temp_device = "cpu"
    working.ema = EMAMode.OFF
    working.multi_gpu = False
    working.optimizer.optimizer = None
    working.optimizer.MuonWithAuxAdam = False
    if not is_fine_tune(original):
        _without_quantization(working)
    else:
        for part in _PARTS_IN_BACKUP:
            section = getattr(working, part, None)
            if section is not None:
                section.model_name = ""
    notes = tuple(f"{path}: {complaint}." for complaint in complaints)
    return RunConfig(original, working, notes + _read_definitions(original, order.backup))


def _keep_section() -> None:
    """Have OneTrainer keep the plugin's section, in every copy that it makes of a configuration."""
    original = TrainConfig.default_values
    TrainConfig.default_values = staticmethod(lambda: with_section(original()))


def _read(order: ExportOrder) -> tuple[Path, dict[str, Any]]:
    places = [order.config] if order.config else [order.backup / place for place in CONFIG_PLACES]
    path = next((place for place in places if place.is_file()), None)
    advice = "Give the run's own config, as saved from OneTrainer or in the workspace's folder `config`: --config FILE."
    if path is None:
        looked = " and ".join(map(str, places))
        raise ExportError(f"There is no configuration: looked for {looked}. {advice}", path=places[0])
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"The configuration {path} cannot be read: {error}. {advice}", path=path) from error
    if not isinstance(data, dict) or "model_type" not in data or "training_method" not in data:
        raise ExportError(
            f"{path} is not a configuration of OneTrainer: it names no model_type and training_method. {advice}",
            path=path,
        )
    return path, data


def _parse(data: dict[str, Any]) -> tuple[Any, list[str]]:
    """OneTrainer's own reading; what it prints about values that it cannot set is caught."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        config = TrainConfig.default_values().from_dict(data)
    complaints = [line for line in printed.getvalue().splitlines() if line.startswith("Could not set")]
    for key in ("model_type", "training_method"):
        if any(line.startswith(f"Could not set {key} ") for line in complaints):
            raise ExportError(
                f"This OneTrainer does not know the {key} {data[key]!r} that the backup is of. Update OneTrainer, or "
                "name another one with --onetrainer DIR.",
                key=key,
                found=str(data[key]),
            )
    return config, complaints


def _without_quantization(working: Any) -> None:
    """Have a base model loaded as it is: what it is quantized with may not run here, and is in no adapter's file."""
    for part in working.model_type.model_parts():
        section: Any = getattr(working, part, None)
        dtype = getattr(section, "weight_dtype", None)
        if getattr(dtype, "is_quantized", lambda: False)():
            section.weight_dtype = working.train_dtype


def _read_definitions(original: Any, backup: Path) -> tuple[str, ...]:
    """Take concepts and samples, where the headers are to hold them, from the copies that lie in the backup.

    Where there are none, and the run's own files are gone too, the headers hold the settings alone.

    Returns:
        What is missing, for the user.
    """
    if original.include_train_config != ConfigPart.ALL:
        return ()
    # As OneTrainer fills in what such a file does not say.
    blank: dict[str, Callable[[], Any]] = {
        "concepts": ConceptConfig.default_values,
        "samples": lambda: SampleConfig.default_values(original.model_type),
    }
    missing = []
    for key, file in (("concepts", original.concept_file_name), ("samples", original.sample_definition_file_name)):
        if getattr(original, key) is not None:
            continue
        try:
            entries = json.loads((backup / HOST_CONFIG).with_name(f"{key}.json").read_text(encoding="utf-8"))
            setattr(original, key, [blank[key]().from_dict(entry) for entry in entries])
        except (OSError, ValueError, TypeError, AttributeError):
            if not Path(file).is_file():
                missing.append(file)
    if not missing:
        return ()
    original.include_train_config = ConfigPart.SETTINGS
    return (f"The file says the run's settings, without concepts and samples: {', '.join(missing)} is not there.",)


def _override(config: Any, text: str) -> None:
    key, separator, value = text.partition("=")
    *parents, leaf = key.split(".")
    target = config
    for parent in parents:
        target = getattr(target, parent, None)
    types = getattr(target, "types", {})
    if not separator or leaf not in types:
        raise UsageError(
            f"--config-value {text}: there is no such key in OneTrainer's configuration. Write it as in the config "
            "file with dots, for instance decoder.model_name=/models/decoder.",
            key=key,
        )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        typed = value.lower() in ("true", "1", "yes") if types[leaf] is bool else value
        target.from_dict({leaf: typed}, migrate=False)
    if printed.getvalue():
        raise UsageError(
            f"--config-value {text}: OneTrainer cannot set {key} to {value!r}. Give a value as in its config files.",
            key=key,
            found=value,
        )


def choose_format(config: RunConfig, wanted: str) -> Any:
    """The format to write.

    Raises:
        UsageError: OneTrainer has no such format for this type of model.
    """
    original = config.original
    supported = list(original.model_type.supported_output_formats(original.training_method))
    names = ", ".join(str(each) for each in supported)
    if not wanted:
        if original.output_model_format in supported:
            return original.output_model_format
        raise ExportError(
            f"The run's own format, {original.output_model_format}, is none that this OneTrainer writes for "
            f"{original.model_type} {original.training_method}. Choose one with --format: {names}.",
            key="format",
            expected=names,
            found=str(original.output_model_format),
        )
    chosen = ModelFormat.__members__.get(wanted.upper().replace("-", "_"))
    if chosen not in supported:
        raise UsageError(
            f"--format {wanted} is none that OneTrainer writes for {original.model_type} "
            f"{original.training_method}. Choose one of: {names}.",
            key="format",
            expected=names,
            found=wanted,
        )
    return chosen


_DTYPES = {"fp32": "FLOAT_32", "float32": "FLOAT_32", "fp16": "FLOAT_16", "float16": "FLOAT_16",
           "bf16": "BFLOAT_16", "bfloat16": "BFLOAT_16"}  # fmt: skip


def choose_dtype(config: RunConfig, wanted: str) -> Any:
    """The dtype to write; its ``torch_dtype()`` is None for the weights' own.

    Raises:
        UsageError: There is no such dtype, or it is none for files.
    """
    if not wanted:
        return config.original.output_dtype
    allowed = ("FLOAT_32", "FLOAT_16", "BFLOAT_16", "NONE")
    name = _DTYPES.get(wanted.lower(), wanted.upper())
    if name not in allowed:
        raise UsageError(
            f"--dtype {wanted} is none for a file. Choose one of: {', '.join(allowed)} (NONE: the weights' own).",
            key="dtype",
            expected=", ".join(allowed),
            found=wanted,
        )
    return DataType[name]
