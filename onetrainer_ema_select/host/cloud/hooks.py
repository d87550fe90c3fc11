"""The seams of OneTrainer's cloud training. Each passes straight on for a run that does not ask for the plugin."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from onetrainer_ema_select.errors import SECTION, CloudError, EmaSelectError, HostMismatchError
from onetrainer_ema_select.host.cloud.machine import prepare
from onetrainer_ema_select.host.cloud.names import is_parked, is_temporary, remote_choice, words_above
from onetrainer_ema_select.host.cloud.output import Entry, RemoteOutput
from onetrainer_ema_select.host.cloud.secrets import described
from onetrainer_ema_select.host.decision import check_configuration
from onetrainer_ema_select.host.install import install_cloud
from onetrainer_ema_select.host.refusal import keep_machine, leave_machine, refuse, warn
from onetrainer_ema_select.host.report import Reporter
from onetrainer_ema_select.settings import EmaSelectSettings


@dataclass(frozen=True)
class CloudRun:
    """A cloud run that asks for the plugin.

    Attributes:
        reporter: Tells the user.
        trainer: Gives OneTrainer's trainer; None when it is gone.
        syncing: Held by whoever fetches files. OneTrainer synchronises on a thread of its own, over the SFTP client
            that its other downloads use too; two threads take each other's answers from that, and wait for ever.
    """

    reporter: Reporter
    trainer: Callable[[], Any] = lambda: None
    syncing: threading.RLock = field(default_factory=threading.RLock)

    def reattaches(self) -> bool:
        """Whether it follows a training that runs on the machine already."""
        return bool(getattr(self.trainer(), "reattach", False))


# By the cloud section, the one object that OneTrainer shares between the local and the remote configuration.
_runs: weakref.WeakKeyDictionary[Any, CloudRun] = weakref.WeakKeyDictionary()


def trainer_init(
    original: Callable[..., None], trainer: Any, config: Any, callbacks: Any, commands: Any, *args: Any, **kwargs: Any
) -> None:
    """Stand in for ``BaseTrainer.__init__``: a cloud run that asks for the plugin is prepared, or refused.

    It is the first thing that happens after OneTrainer has imported its cloud modules, which only a cloud run does.
    """
    original(trainer, config, callbacks, commands, *args, **kwargs)
    section, cloud = getattr(config, SECTION, None), getattr(config, "cloud", None)
    if section is None or cloud is None or not getattr(cloud, "enabled", False):
        return
    _runs.pop(cloud, None)
    if not section.asks_for_plugin():
        return
    _runs[cloud] = CloudRun(Reporter(callbacks.on_update_status), weakref.ref(trainer))
    if mismatches := install_cloud():
        refuse(trainer, HostMismatchError(mismatches))


def setup(original: Callable[..., Any], cloud: Any, *args: Any, **kwargs: Any) -> Any:
    """Stand in for ``BaseCloud.setup``: connects, installs OneTrainer there; then the plugin is brought there.

    Raises:
        EmaSelectError: If the run would be useless. Of wrong settings it is said before a machine is made.
    """
    run = _run_of(cloud)
    if run is None:
        return original(cloud, *args, **kwargs)
    try:
        check_before_connecting(cloud.config, run.reporter)
    except EmaSelectError as error:
        if not run.reattaches():
            leave_machine(cloud)
            run.reporter.show(error)
            raise
        warn(run.reporter, f"The training that runs on the cloud machine goes on, but here: {error}")
    existed = bool(getattr(getattr(getattr(cloud.config, "secrets", None), "cloud", None), "id", ""))
    result = original(cloud, *args, **kwargs)
    try:
        prepare(cloud, run.reporter)
    except EmaSelectError as error:
        if existed:  # one that this run has made has nothing on it
            keep_machine(cloud, run.reporter, "it was there before this run, and may have backups on it")
        run.reporter.show(error)
        raise
    return result


def check_before_connecting(config: Any, reporter: Reporter) -> None:
    """Refuse here what the cloud machine would refuse, and put paths right that are of this machine.

    Args:
        config: The configuration that is sent there; ``resume_backup`` in it may be changed.
        reporter: Says what will be lost there.

    Raises:
        EmaSelectError: Naming what is wrong.
    """
    section = getattr(config, SECTION)
    settings = section.settings()
    check_configuration(settings, config, ema_on=str(config.ema) != "OFF")
    local = Path(getattr(config, "local_workspace_dir", config.workspace_dir))
    workspace = PurePosixPath(config.workspace_dir)
    section.resume_backup = remote_choice(settings.resume_backup, local_workspace=local, remote_workspace=workspace)
    for sentence in warnings(config, settings, workspace):
        reporter.say(sentence)


def warnings(config: Any, settings: EmaSelectSettings, workspace: PurePosixPath) -> tuple[str, ...]:
    """What of the plugin's will not come home as the run is configured, while it still can be changed."""
    cloud = config.cloud
    said = []
    if flags := words_above(workspace):
        said.append(
            f"The workspace on the cloud machine, {workspace}, has a word in its path by which OneTrainer decides what "
            f"comes home: all of it follows cloud.{flags[0]}. Give workspace_dir another name if that is not meant."
        )
    detached = [key for key in ("on_detached_finish", "on_detached_error") if getattr(cloud, "detach_trainer", False)]
    keys = [key for key in ("on_finish", "on_error", *detached) if str(getattr(cloud, key, "")) == "DELETE"]
    gone = [*keys, *(["delete_workspace"] if cloud.delete_workspace else [])]
    regular = str(getattr(config, "backup_after_unit", "NEVER")) != "NEVER"
    # a run that resumes may set the average of its backup aside
    leaves_any = bool(settings.milestones) or config.backup_before_save or regular or config.continue_last_backup
    if gone and leaves_any and not cloud.download_backups:
        named = ", ".join(f"cloud.{key}" for key in gone)
        said.append(
            f"Backups, also those of milestones and an EMA that is set aside, stay on the cloud machine and go with it "
            f"({named}). To have them come home, set cloud.download_backups=true."
        )
    if lost := [f"cloud.{key}" for key in keys if key in detached]:
        said.append(
            f"A detached machine that ends while nobody is connected deletes itself ({', '.join(lost)}), with all that "
            "has not come home, also the final output. Choose STOP to keep it."
        )
    return tuple(said)


def filter_download(original: Callable[..., Any], config: Any, path: Path, *args: Any, **kwargs: Any) -> Any:
    """Stand in for ``BaseCloud._filter_download``: nothing unfinished comes home, a parked EMA with the backups."""
    if config not in _runs:
        return original(config, path, *args, **kwargs)
    if is_temporary(path.parts):
        return False
    if is_parked(path.parts):
        return config.download_backups
    return original(config, path, *args, **kwargs)


def sync_workspace(original: Callable[..., Any], cloud: Any, *args: Any, **kwargs: Any) -> Any:
    """Stand in for ``LinuxCloud.sync_workspace``: not while the final output is being fetched."""
    run = _run_of(cloud)
    if run is None:
        return original(cloud, *args, **kwargs)
    with run.syncing:
        return original(cloud, *args, **kwargs)


def download_output_model(original: Callable[..., Any], cloud: Any, *args: Any, **kwargs: Any) -> Any:
    """Stand in for ``BaseCloud.download_output_model``: the other set comes home too, and outputs that are folders.

    Raises:
        Exception: Where something of it has not come home; OneTrainer does not delete its workspace then.
    """
    run = _run_of(cloud)
    if run is None or not _comes_home(cloud):
        return original(cloud, *args, **kwargs)
    with run.syncing, _kept_unless_home(cloud, run):
        output = RemoteOutput(cloud)
        entries = output.entries()
        wanted = output.last_written() | {output.destination.name, *(entry.name for entry in entries if entry.new)}
        result = None
        # OneTrainer would fetch a folder as if it were a file, and fail.
        if not output.is_in_folder and not any(
            entry.is_folder and entry.name == output.destination.name for entry in entries
        ):
            result = original(cloud, *args, **kwargs)
        _fetch(run, output, [entry for entry in entries if entry.name in wanted])
    return result


def run_trainer(original: Callable[..., Any], cloud: Any, *args: Any, **kwargs: Any) -> Any:
    """Stand in for ``LinuxCloud.run_trainer``: what a failed training has written of its final output comes home.

    OneTrainer fetches nothing of it then, and may be told to delete the machine on an error.

    Raises:
        Exception: OneTrainer's own, as it was.
    """
    try:
        return original(cloud, *args, **kwargs)
    except Exception:
        run = _run_of(cloud)
        if run is not None and _comes_home(cloud):
            try:
                with run.syncing, _kept_unless_home(cloud, run):
                    output = RemoteOutput(cloud)
                    _fetch(run, output, [entry for entry in output.entries() if entry.new])
            except CloudError:  # said already; the training's own error is the one that counts
                pass
        raise


def _run_of(cloud: Any) -> CloudRun | None:
    return _runs.get(cloud.config.cloud)


def _comes_home(cloud: Any) -> bool:
    """Whether the final output is to be fetched: the user may not want it, or keeps it there with `cloud:`."""
    return bool(cloud.config.cloud.download_output_model) and hasattr(cloud.config, "local_output_model_destination")


def _fetch(run: CloudRun, output: RemoteOutput, entries: Sequence[Entry]) -> None:
    output.fetch(entries)
    for entry in entries:
        run.reporter.say(f"Fetched {output.local.with_name(entry.name)}")


@contextlib.contextmanager
def _kept_unless_home(cloud: Any, run: CloudRun) -> Iterator[None]:
    """Have the machine kept where the final output does not come home: a finished model may be on it.

    Raises:
        CloudError: In the place of any other exception, which may have a password in its text, as its context too.
    """
    try:
        yield
    except BaseException as error:
        keep_machine(cloud, run.reporter, "the final output has not come home")
        if not isinstance(error, Exception):
            raise
        folder = PurePosixPath(cloud.config.output_model_destination).parent
        text = (
            f"The final output is on the cloud machine, in {folder}, and could not be fetched: "
            f"{described(error, cloud.config)} Fetch it from there before you delete the machine."
        )
        warn(run.reporter, text)
        raise CloudError(text) from None
