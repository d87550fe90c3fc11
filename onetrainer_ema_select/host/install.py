"""Check, install and undo the seams that are replaced: all of them or none, once."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

from onetrainer_ema_select.errors import SECTION, HostMismatchError
from onetrainer_ema_select.host import seams

_FIRST = next(seam for seam in seams.SEAMS if seam.replacement.startswith("config_section:"))

# Owner, attribute and what stood there, in the order of installation. Empty: nothing is installed.
_installed: list[tuple[Any, str, Any]] = []
_mismatches: tuple[str, ...] = ()
# What does not fit of the cloud seams; None before they were looked at.
_cloud_mismatches: tuple[str, ...] | None = None


def arm() -> None:
    """Get ready to install, while OneTrainer is still being imported.

    Only ``TrainConfig.default_values`` is wrapped now: its module is no part of OneTrainer's import circle.
    Its first call, which comes before any trainer or window exists, installs the rest. Calling this again
    does nothing.

    Raises:
        ImportError: If OneTrainer's modules are not on the path.
    """
    if _installed:
        return
    owner, name, raw = seams.resolve(_FIRST)
    replacement = seams.load_replacement(_FIRST)
    _installed.append((owner, name, raw))
    setattr(owner, name, _in_place_of(raw, replacement))


def install() -> tuple[str, ...]:
    """Check every seam, then replace those that are to be replaced; a second call does nothing.

    Returns:
        What does not fit, a sentence each. Nothing has been replaced then, and every run that asks for the
        plugin is refused when its trainer starts.
    """
    global _mismatches
    if len(_installed) > 1 or _mismatches:
        return _mismatches
    _install_window()
    _mismatches = seams.mismatches(seams.check_live())
    if _mismatches:
        _refuse_runs()
        return _mismatches
    try:
        _replace(seam for seam in seams.SEAMS if seam.replacement and seam is not _FIRST)
    except Exception as error:  # noqa: BLE001 - OneTrainer must start all the same
        _mismatches = (f"the plugin's own modules could not be loaded: {type(error).__name__}: {error}",)
        _refuse_runs()
        return _mismatches
    return ()


def mismatches_found() -> tuple[str, ...]:
    """What :func:`install` has found that does not fit, a sentence each."""
    return _mismatches


def _install_window() -> None:
    """Put the plugin's rows into OneTrainer's window, where this process is to open it.

    A window that is not as expected stays as it is, and the plugin works without its rows there.
    """
    if not any(name in sys.modules for name in {seam.module for seam in seams.WINDOW_SEAMS}):
        return
    found = seams.mismatches(seams.check_live(seams.WINDOW_SEAMS))
    try:
        if found:
            raise HostMismatchError(found)
        _replace(seam for seam in seams.WINDOW_SEAMS if seam.replacement)
    except Exception as error:  # noqa: BLE001 - OneTrainer's window must open
        # here and not above: the scripts that install the plugin come by with a Python that has no tqdm
        from onetrainer_ema_select.host.report import write_line

        write_line(
            "[ema_select] The plugin's settings are not shown in OneTrainer's window; set them in the config file. "
            f"{type(error).__name__}: {error}"
        )


def _replace(table: Iterable[seams.Seam]) -> None:
    """Replace seams: all is found and loaded before the first one is set, so that it is all or none."""
    ready = [(*seams.resolve(seam), seams.load_replacement(seam)) for seam in table]
    for owner, name, raw, replacement in ready:
        _installed.append((owner, name, raw))
        setattr(owner, name, _in_place_of(raw, replacement))


def install_cloud() -> tuple[str, ...]:
    """Check the seams of cloud runs, then replace those that are to be replaced; a second call does nothing.

    To be called when a cloud run begins: OneTrainer imports its cloud modules, and what they need, only then.

    Returns:
        What does not fit, a sentence each. Nothing has been replaced then.
    """
    global _cloud_mismatches
    if _cloud_mismatches is None:
        _cloud_mismatches = seams.mismatches(seams.check_live(seams.CLOUD_SEAMS))
        if not _cloud_mismatches:
            _replace(seam for seam in seams.CLOUD_SEAMS if seam.replacement)
    return _cloud_mismatches


def disarm() -> None:
    """Put everything back as it was, in reverse."""
    global _mismatches, _cloud_mismatches
    while _installed:
        owner, name, raw = _installed.pop()
        setattr(owner, name, raw)
    _mismatches = ()
    _cloud_mismatches = None


def _in_place_of(raw: Any, replacement: Callable[..., Any]) -> Any:
    """The plugin's function for the place of a host's, of the same kind."""
    if isinstance(raw, staticmethod):
        return staticmethod(_wrapped(raw.__func__, replacement))
    return _wrapped(raw, replacement)


def _wrapped(original: Callable[..., Any], replacement: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return replacement(original, *args, **kwargs)

    return wrapper


def _refuse_runs() -> None:
    """Stop runs that ask for the plugin on a host it does not know.

    The trainer's constructor is the one thing that every version has; the error itself is raised by
    ``start``, where the window catches it.
    """
    try:
        trainer = importlib.import_module("modules.trainer.BaseTrainer").BaseTrainer
    except Exception:  # noqa: BLE001 - without it no run can start anyway
        return
    from onetrainer_ema_select.host.refusal import refuse

    original = trainer.__init__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        section = getattr(self.config, SECTION, None)
        if section is not None and section.asks_for_plugin():
            refuse(self, HostMismatchError(_mismatches))

    _installed.append((trainer, "__init__", original))
    trainer.__init__ = init
