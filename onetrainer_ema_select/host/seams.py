"""Every place where the plugin meets OneTrainer, as one table.

The table drives the check before anything is patched, the installation, its undoing and ``doctor``. A place
that is not in it is not used.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any


@dataclass(frozen=True)
class Seam:
    """One function of the host that the plugin replaces, wraps or relies on.

    Attributes:
        module: Dotted name of the host's module.
        name: ``function``, or ``Class.method``.
        parameters: The names that the plugin passes or receives, in order. More parameters are accepted
            where they have defaults: the plugin passes on what it does not know.
        use: What for, in a few words, for ``doctor``.
        replacement: ``module:function`` below ``onetrainer_ema_select.host`` that takes the original as its
            first argument; empty where the seam is wrapped on one object of a run, or only called.
        optional: Whether it may be missing, as in an older host: the plugin does it by itself then.
    """

    module: str
    name: str
    parameters: tuple[str, ...]
    use: str
    replacement: str = ""
    optional: bool = False

    @property
    def label(self) -> str:
        """How it is named to people."""
        return f"{self.module}:{self.name}"


_TRAINER = "modules.trainer.BaseTrainer"
_CONFIG = "modules.util.config.TrainConfig"
_BASE_CONFIG = "modules.util.config.BaseConfig"
_EMA = "modules.module.EMAModule"
_CALLBACKS = "modules.util.callbacks.TrainCallbacks"
_SAVE = ("self", "model", "model_type", "output_model_format", "output_model_destination", "dtype")

SEAMS: tuple[Seam, ...] = (
    # Replaced, on the class or module, for all runs; each passes straight on where the section is off.
    Seam(_CONFIG, "TrainConfig.default_values", (), "adds the section", "config_section:default_values"),
    Seam(_CONFIG, "TrainConfig.get_last_backup_path", ("self",), "chooses the backup", "loop:last_backup_path"),
    Seam(_TRAINER, "BaseTrainer.create_model_loader", ("self",), "begins a run", "loop:create_model_loader"),
    Seam(
        _TRAINER,
        "BaseTrainer.create_model_setup",
        ("self",),
        "applies the resume choice",
        "setup:create_setup",
    ),
    Seam(_TRAINER, "BaseTrainer.create_model_saver", ("self",), "writes both sets", "saver:create_saver"),
    Seam(
        _TRAINER,
        "BaseTrainer.create_model_sampler",
        ("self", "model"),
        "shows a set",
        "sampler:create_sampler",
    ),
    Seam(
        "modules.util.create",
        "create_ema",
        ("parameters", "state_dict", "config"),
        "keeps the average",
        "setup:create_ema",
    ),
    Seam(
        _TRAINER,
        "BaseTrainer.__init__",
        ("self", "config", "callbacks", "commands"),
        "prepares cloud runs",
        "cloud.hooks:trainer_init",
    ),
    # Wrapped on the objects of one run, or called; here so that a change is found before a run begins.
    Seam(
        "modules.modelSetup.BaseModelSetup",
        "BaseModelSetup.create_parameters",
        ("self", "model", "config"),
        "names the weights",
    ),
    Seam("modules.modelSaver.BaseModelSaver", "BaseModelSaver.save", _SAVE, "writes files"),
    Seam("modules.modelSampler.BaseModelSampler", "BaseModelSampler.sample", ("self",), "makes samples"),
    Seam(_TRAINER, "BaseTrainer.train", ("self",), "trains"),
    Seam(_TRAINER, "BaseTrainer.end", ("self",), "ends a run"),
    Seam(
        _CALLBACKS,
        "TrainCallbacks.on_update_train_progress",
        ("self", "train_progress", "max_step", "max_epoch"),
        "counts steps",
    ),
    Seam(_CALLBACKS, "TrainCallbacks.on_update_status", ("self", "status"), "shows messages"),
    Seam("modules.util.commands.TrainCommands", "TrainCommands.save", ("self",), "asks for a milestone's save"),
    Seam(
        "modules.util.optimizer_util",
        "init_model_parameters",
        ("model", "parameters", "train_device"),
        "calls create_ema",
    ),
    Seam(
        "modules.util.NamedParameterGroup",
        "NamedParameterGroupCollection.parameters",
        ("self",),
        "lists the weights",
    ),
    Seam("modules.util.multi_gpu_util", "world_size", (), "tells how many processes there are"),
    Seam("modules.util.multi_gpu_util", "is_master", (), "tells the first process"),
    Seam("modules.dataLoader.BaseDataLoader", "BaseDataLoader.get_data_set", ("self",), "tells an epoch's length"),
    Seam("modules.util.modelSpec.ModelSpec", "ModelSpec.to_dict", ("self",), "marks files"),
    Seam(_BASE_CONFIG, "BaseConfig.__init__", ("self", "data"), "builds the section"),
    Seam(_BASE_CONFIG, "BaseConfig.to_dict", ("self",), "writes configs"),
    Seam(_BASE_CONFIG, "BaseConfig.from_dict", ("self", "data", "migrate"), "reads configs"),
    Seam(_CONFIG, "TrainConfig.to_settings_dict", ("self", "secrets"), "keeps a backup's config"),
    # The average that the plugin puts in the place of the host's must be spoken to as the host does it.
    Seam(_EMA, "EMAModuleWrapper.step", ("self", "parameters", "optimization_step"), "averages"),
    Seam(_EMA, "EMAModuleWrapper.get_current_decay", ("self", "optimization_step"), "averages"),
    Seam(_EMA, "EMAModuleWrapper.copy_ema_to", ("self", "parameters", "store_temp"), "shows the EMA"),
    Seam(_EMA, "EMAModuleWrapper.copy_temp_to", ("self", "parameters"), "shows the live weights"),
    Seam(_EMA, "EMAModuleWrapper.state_dict", ("self",), "writes ema.pt"),
    Seam(_EMA, "EMAModuleWrapper.load_state_dict", ("self", "state_dict"), "reads ema.pt"),
    Seam(_EMA, "EMAModuleWrapper.to", ("self", "device", "dtype"), "moves the average"),
)

_SETUP = "modules.modelSetup.BaseModelSetup"

VALIDATION_SEAMS: tuple[Seam, ...] = (
    # How both sets are judged; wrapped on the objects of one run. A change here leaves that out, and no more.
    Seam(
        "modules.trainer.GenericTrainer",
        "GenericTrainer._GenericTrainer__validate",
        ("self", "train_progress"),
        "validates",
    ),
    Seam(_SETUP, "BaseModelSetup.predict", ("self", "model", "batch", "config", "train_progress"), "predicts"),
    Seam(_SETUP, "BaseModelSetup.calculate_loss", ("self", "model", "batch", "data", "config"), "computes the loss"),
)

_CREATE = "modules.util.create"
_METHOD = ("model_type", "training_method")

EXPORT_SEAMS: tuple[Seam, ...] = (
    # What a model is taken out of a backup with. A change here stops exports, and no training.
    Seam(_CREATE, "create_model_loader", _METHOD, "makes the loader"),
    Seam(
        _CREATE,
        "create_model_setup",
        ("model_type", "train_device", "temp_device", "training_method", "debug_mode"),
        "makes the setup",
    ),
    Seam(_CREATE, "create_model_saver", _METHOD, "makes the saver"),
    Seam(
        "modules.modelLoader.BaseModelLoader",
        "BaseModelLoader.load",
        ("self", "model_type", "model_names", "weight_dtypes", "quantization"),
        "loads the model",
    ),
    Seam(
        "modules.modelLoader.mixin.InternalModelLoaderMixin",
        "InternalModelLoaderMixin._load_internal_data",
        ("self", "model", "model_name"),
        "is kept from reading the optimizer",
    ),
    Seam(
        "modules.modelSetup.BaseModelSetup",
        "BaseModelSetup.setup_model",
        ("self", "model", "config"),
        "says what is trained",
    ),
    Seam(
        "modules.modelSetup.BaseModelSetup",
        "BaseModelSetup.setup_optimizations",
        ("self", "model", "config"),
        "wraps blocks as in training",
    ),
    Seam("modules.modelSaver.BaseModelSaver", "BaseModelSaver.save", _SAVE, "writes files"),
    Seam(_CONFIG, "TrainConfig.default_values", (), "reads the backup's config"),
    Seam(_CONFIG, "TrainConfig.model_names", ("self",), "names what is loaded"),
    Seam(_CONFIG, "TrainConfig.weight_dtypes", ("self",), "names what is loaded"),
    Seam(_BASE_CONFIG, "BaseConfig.from_dict", ("self", "data", "migrate"), "reads the backup's config"),
    Seam(
        "modules.util.enum.ModelType",
        "ModelType.supported_output_formats",
        ("self", "training_method"),
        "lists the formats",
    ),
    Seam("modules.util.enum.ModelType", "ModelType.model_parts", ("self",), "lists the parts"),
    Seam("modules.util.enum.ModelFormat", "ModelFormat.file_extension", ("self",), "tells files from folders"),
    Seam("modules.util.enum.DataType", "DataType.torch_dtype", ("self",), "names the file's dtype"),
    Seam("modules.util.modelSpec.ModelSpec", "ModelSpec.to_dict", ("self",), "marks files"),
    Seam(
        "modules.util.huggingface_util",
        "configure_hub",
        ("token", "offline_mode", "cache_dir"),
        "finds base models",
        optional=True,
    ),
    Seam(
        "modules.util.NamedParameterGroup",
        "NamedParameterGroupCollection.parameters",
        ("self",),
        "lists the weights",
    ),
)

_TRAIN_VIEW = "modules.ui.BaseTrainUIView"
_UI_STATE = "modules.util.ui.UIState"

WINDOW_SEAMS: tuple[Seam, ...] = (
    # OneTrainer's window, whichever toolkit it is of. A change here leaves the plugin's rows out, and no more.
    Seam(
        _TRAIN_VIEW,
        "BaseTrainUIView.build_backup_tab_content",
        ("self", "frame", "controller", "ui_state"),
        "adds rows to the backup tab",
        "window.tabs:build_backup_tab",
    ),
    Seam(
        "modules.ui.BaseTrainingTabView",
        "BaseTrainingTabView.build",
        ("self", "column_0", "column_1", "column_2", "controller", "ui_state"),
        "adds rows to the training tab",
        "window.tabs:build_training_tab",
    ),
    Seam(_TRAIN_VIEW, "BaseTrainUIView.on_training_stopped", ("self", "error_caught"), "shows problems at the end"),
    Seam(_TRAIN_VIEW, "BaseTrainUIView.on_update_status", ("self", "status"), "shows problems at the end"),
    Seam(_UI_STATE, "BaseUIState.get_var", ("self", "name"), "binds the rows"),
    Seam(_UI_STATE, "BaseUIState.add_var_trace", ("self", "name", "command"), "follows the settings"),
    Seam(_UI_STATE, "BaseUIState.remove_var_trace", ("self", "name", "trace_id"), "follows the settings"),
    Seam(_UI_STATE, "BaseUIState._make_nested_state", ("self", "obj"), "holds the panel's own choices"),
)


def _components(module: str, frame: str) -> tuple[Seam, ...]:
    """The components that the rows are made of, as one of the two toolkits has them."""
    place = ("master", "row", "column")
    bound = (*place, "ui_state", "var_name")
    rows: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("label", (*place, "text")),
        ("entry", bound),
        ("switch", bound),
        ("options", (*place, "values", "ui_state", "var_name")),
        ("button", (*place, "text", "command")),
        ("progress", place),
        ("section_frame", (frame, "row", "col")),
        ("inline_frame", (frame, "row", "col", "columnspan")),
        ("set_widget_enabled", ("widget", "enabled")),
        ("set_label_text", ("label", "text")),
        ("call_after", ("widget", "delay_ms", "func")),
    )
    return tuple(Seam(f"modules.util.ui.{module}", name, names, "makes the rows") for name, names in rows)


#: What :data:`WINDOW_SEAMS` are filled with. Only one toolkit is loaded in a process, so ``doctor`` alone checks both.
COMPONENT_SEAMS: tuple[Seam, ...] = (
    *_components("pyside6_components", "parent"),
    *_components("ctk_components", "master"),
)

_CLOUD = "modules.cloud.BaseCloud"
_LINUX_CLOUD = "modules.cloud.LinuxCloud"
_FILE_SYNC = "modules.cloud.BaseSSHFileSync"

CLOUD_SEAMS: tuple[Seam, ...] = (
    # What a cloud run needs on the machine that starts it. A change here stops cloud runs, and no other training.
    Seam(_CLOUD, "BaseCloud.setup", ("self",), "brings the plugin there", "cloud.hooks:setup"),
    Seam(
        _CLOUD,
        "BaseCloud._filter_download",
        ("config", "path"),
        "leaves unfinished files there",
        "cloud.hooks:filter_download",
    ),
    Seam(
        _CLOUD,
        "BaseCloud.download_output_model",
        ("self",),
        "fetches both sets",
        "cloud.hooks:download_output_model",
    ),
    Seam(
        _LINUX_CLOUD,
        "LinuxCloud.run_trainer",
        ("self",),
        "fetches what a failed run has written",
        "cloud.hooks:run_trainer",
    ),
    Seam(
        _LINUX_CLOUD, "LinuxCloud.sync_workspace", ("self",), "waits for other downloads", "cloud.hooks:sync_workspace"
    ),
    Seam(_LINUX_CLOUD, "LinuxCloud.can_reattach", ("self",), "tells a run that goes on"),
    Seam(_CLOUD, "BaseCloud.upload_config", ("self", "commands"), "sends the section"),
    Seam(_CLOUD, "BaseCloud.delete", ("self",), "deletes a machine"),
    Seam(_CLOUD, "BaseCloud.stop", ("self",), "stops a machine"),
    Seam(_FILE_SYNC, "BaseSSHFileSync.sync_up_file", ("self", "local", "remote"), "uploads the plugin"),
    Seam(_FILE_SYNC, "BaseSSHFileSync.sync_down_file", ("self", "local", "remote"), "fetches files"),
    Seam(_FILE_SYNC, "BaseSSHFileSync.sync_down_dir", ("self", "local", "remote", "filter"), "fetches folders"),
    Seam("modules.trainer.CloudTrainer", "CloudTrainer.start", ("self",), "sets a cloud run up"),
    Seam(_CONFIG, "TrainConfig.to_pack_dict", ("self", "secrets"), "sends the section"),
)


@dataclass(frozen=True)
class SeamResult:
    """What was found at a seam.

    Attributes:
        seam: The seam.
        found: Its parameters as the host has them, None where it is missing.
        ok: Whether the plugin can work with it.
        sentence: The same for people: what was expected and found.
    """

    seam: Seam
    found: str | None
    ok: bool
    sentence: str


@dataclass(frozen=True)
class _Signature:
    """Parameter names in order, how many of them, from the end, may be left out, and keywords that may not be."""

    names: tuple[str, ...]
    optional: int
    keywords: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"({', '.join([*self.names, *(['*', *self.keywords] if self.keywords else [])])})"


def check_source(directory: Path, table: Iterable[Seam] = SEAMS) -> tuple[SeamResult, ...]:
    """Check every seam of a OneTrainer folder by reading its source; nothing is imported or run.

    Args:
        directory: The checkout's root.
        table: The seams to check.

    Returns:
        A result for each seam, in the table's order.
    """
    trees: dict[str, ast.Module | None] = {}
    results = []
    for seam in table:
        if seam.module not in trees:
            trees[seam.module] = _parse(directory / Path(*seam.module.split(".")).with_suffix(".py"))
        results.append(_judge(seam, _signature_in_tree(trees[seam.module], seam.name)))
    return tuple(results)


def check_live(table: Iterable[Seam] = SEAMS) -> tuple[SeamResult, ...]:
    """Check every seam of the host in this process. Imports the host's modules that are not loaded yet."""
    results = []
    for seam in table:
        try:
            results.append(_judge(seam, _signature_of_object(seam)))
        except Exception as error:  # noqa: BLE001 - what a host's module raises when it is imported is its business
            sentence = f"{seam.label}: could not be imported: {type(error).__name__}: {error}"
            results.append(SeamResult(seam, None, False, sentence))
    return tuple(results)


def mismatches(results: Iterable[SeamResult]) -> tuple[str, ...]:
    """The sentences of those that do not fit."""
    return tuple(result.sentence for result in results if not result.ok)


def resolve(seam: Seam) -> tuple[Any, str, Any]:
    """Find a seam in this process.

    Returns:
        The owner (class or module), the attribute's name, and the raw attribute as it stands in the owner
        (a ``staticmethod`` object stays one).

    Raises:
        ImportError, AttributeError: If it is not there.
    """
    owner: Any = importlib.import_module(seam.module)
    *path, name = seam.name.split(".")
    for part in path:
        owner = getattr(owner, part)
    return owner, name, inspect.getattr_static(owner, name)


def load_replacement(seam: Seam) -> Callable[..., Any]:
    """The plugin's function for a seam that is replaced."""
    module, _, name = seam.replacement.partition(":")
    replacement: Callable[..., Any] = getattr(importlib.import_module(f"{__package__}.{module}"), name)
    return replacement


def _judge(seam: Seam, found: _Signature | None) -> SeamResult:
    expected = f"({', '.join(seam.parameters)})"
    if found is None and seam.optional:
        return SeamResult(seam, None, True, f"{seam.label}: not in this OneTrainer, done without it")
    if found is None:
        return SeamResult(seam, None, False, f"{seam.label}: expected {expected}, found nothing of that name")
    extra = len(found.names) - len(seam.parameters)
    fits = found.names[: len(seam.parameters)] == seam.parameters and extra <= found.optional and not found.keywords
    # The sampler's own parameters are passed on unseen, so it may have any.
    if seam.name.endswith(".sample"):
        fits = found.names[:1] == ("self",)
    verdict = "as expected" if fits else f"expected {expected}"
    return SeamResult(seam, str(found), fits, f"{seam.label}: found {found}, {verdict}")


def _parse(path: Path) -> ast.Module | None:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None


def _signature_in_tree(tree: ast.Module | None, name: str) -> _Signature | None:
    body: list[ast.stmt] = tree.body if tree is not None else []
    *classes, function = name.split(".")
    for class_name in classes:
        found = [node for node in body if isinstance(node, ast.ClassDef) and node.name == class_name]
        if not found:
            return None
        body = found[-1].body
    functions = [node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    # A private method's name, as it stands in the source: Python puts the class's before it.
    written = {function, function.removeprefix(f"_{classes[-1]}")} if classes else {function}
    for node in reversed(functions):
        if node.name in written:
            names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
            keywords = [
                argument.arg
                for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
                if default is None
            ]
            return _Signature(tuple(names), len(node.args.defaults), tuple(keywords))
    return None


def _signature_of_object(seam: Seam) -> _Signature | None:
    try:
        _, _, raw = resolve(seam)
    except (ImportError, AttributeError):
        return None
    function = inspect.unwrap(raw.__func__ if isinstance(raw, staticmethod | classmethod) else raw)
    if not isinstance(function, FunctionType):
        return None
    parameters = inspect.signature(function).parameters.values()
    positional = [
        parameter
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    keywords = [
        parameter.name
        for parameter in parameters
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
    ]
    optional = sum(parameter.default is not parameter.empty for parameter in positional)
    return _Signature(tuple(parameter.name for parameter in positional), optional, tuple(keywords))
