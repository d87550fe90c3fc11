"""The plugin on the cloud machine: brought there, enabled and tried before anything is trained."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from onetrainer_ema_select import __version__, wheel
from onetrainer_ema_select.errors import SECTION, CloudError
from onetrainer_ema_select.host.cloud.remote import MARKER
from onetrainer_ema_select.host.cloud.secrets import described
from onetrainer_ema_select.host.refusal import warn
from onetrainer_ema_select.host.report import Reporter
from onetrainer_ema_select.origin import PACKAGE

# What OneTrainer itself does before it calls its own scripts there (cloud/LinuxCloud.py, lib.include.sh): programs
# that only interactive shells would find, and the environment that its scripts choose.
_ENTER = (
    "export PATH=$PATH:/usr/local/cuda/bin:/venv/main/bin; export OT_LAZY_UPDATES=true; "
    "cd {folder} && source ./lib.include.sh && prepare_runtime_environment"
)
_ASK = "run_python_in_active_env -m onetrainer_ema_select.host.cloud.remote {arguments}"
_INSTALL = (
    "run_python_in_active_env -m pip install --no-deps --no-index --force-reinstall --disable-pip-version-check "
    "--root-user-action=ignore {wheel}"
)

# Characters of what a command has printed, from its end, where the error is.
_SHOWN = 1500


@dataclass(frozen=True)
class RemoteReport:
    """What the plugin on the cloud machine says of itself.

    Attributes:
        version: Its version.
        fingerprint: Of its files; see :func:`wheel.fingerprint`.
        python: The Python that OneTrainer's scripts use there.
        problems: What keeps a training from using it; a sentence each.
    """

    version: str
    fingerprint: str
    python: str
    problems: tuple[str, ...]


class Machine:
    """The OneTrainer of a cloud machine, reached through OneTrainer's own connection and file synchronisation."""

    def __init__(self, cloud: Any) -> None:
        """Note OneTrainer's cloud object, which is connected."""
        self._cloud = cloud
        self.folder = str(cloud.config.cloud.onetrainer_dir)
        self._remote_dir = PurePosixPath(cloud.config.cloud.remote_dir)

    def ask(self, *arguments: str) -> RemoteReport:
        """Have the plugin report.

        Args:
            arguments: As :func:`remote.main` takes them.

        Raises:
            CloudError: It is not there, or does not answer.
        """
        printed = self.run(_ASK.format(arguments=" ".join(arguments)))
        lines = [line for line in printed.splitlines() if line.startswith(MARKER)]
        try:
            raw = json.loads(lines[-1].removeprefix(MARKER))
            return RemoteReport(raw["version"], raw["fingerprint"], raw["python"], tuple(raw["problems"]))
        except (IndexError, ValueError, KeyError, TypeError) as error:
            raise CloudError(f"the plugin there gives no answer that can be read: {tail(printed)}") from error

    def install(self) -> RemoteReport:
        """Bring this very package there, install it into OneTrainer's Python and nothing else, enable and try it.

        Raises:
            Exception: OneTrainer's synchronisation's, or a CloudError of a command that failed.
        """
        with tempfile.TemporaryDirectory() as folder:
            made = wheel.build_wheel(Path(folder))
            # OneTrainer uploads nothing where a file of the same size is: another content gets another place.
            place = self._remote_dir / "ema_select" / wheel.fingerprint()[:12] / made.name
            self._cloud.file_sync.sync_up_file(local=made, remote=Path(place))
        self.run(_INSTALL.format(wheel=shlex.quote(str(place))))
        return self.ask("enable", "probe")

    def run(self, command: str) -> str:
        """Run a command in OneTrainer's environment there.

        Returns:
            What it has printed.

        Raises:
            CloudError: It failed.
        """
        script = f"{_ENTER.format(folder=shlex.quote(self.folder))} && {command}"
        # hide: what OneTrainer's scripts print before each command would bury what matters
        line = f"bash -c {shlex.quote(script)}"
        result = self._cloud.connection.run(line, warn=True, hide=True, in_stream=False)
        if result.exited != 0:
            raise CloudError(
                f"`{command}` ended with {result.exited}: {tail(result.stderr) or tail(result.stdout) or 'no message'}"
            )
        return str(result.stdout)


def prepare(cloud: Any, reporter: Reporter) -> None:
    """See to it that a training on the cloud machine will have this plugin, of this version.

    Where a training is running there already (one that was detached), nothing is changed, and what is wrong is only
    said: its money is spent, and its files are to come home all the same.

    Args:
        cloud: OneTrainer's cloud object, connected, its OneTrainer installed.
        reporter: Says what is done.

    Raises:
        CloudError: It has not, and could not be brought there. Nothing has been trained then.
    """
    machine = Machine(cloud)
    if cloud.can_reattach():
        try:
            report = machine.ask()
            wrong = problems_of(report, same=report.version == __version__)
        except Exception as error:  # noqa: BLE001 - only said; the training there goes on
            wrong = [described(error, cloud.config)]
        if wrong:
            warn(
                reporter,
                "The training that is running on the cloud machine may be one without this plugin, or with another "
                f"version of it: {'; '.join(wrong)}. Look for [ema_select] in what it prints.",
            )
        return
    reporter.say(f"Looking for the plugin on the cloud machine, in {machine.folder}.")
    try:
        try:
            report = machine.ask("probe")
            wrong = problems_of(report, same=report.fingerprint == wheel.fingerprint())
        except CloudError as error:
            wrong = [described(error, cloud.config)]
        if wrong:
            reporter.say(f"Installing {PACKAGE} {__version__} on the cloud machine, as it is installed here.")
            report = machine.install()
            wrong = problems_of(report, same=report.fingerprint == wheel.fingerprint())
    except Exception as error:  # noqa: BLE001 - told in full by the refusal
        # not from it: OneTrainer prints the whole chain, and a command has the password in it
        raise refusal(machine, [described(error, cloud.config)]) from None
    if wrong:
        raise refusal(machine, wrong)
    reporter.say(f"The cloud machine has {PACKAGE} {report.version}, enabled, in {report.python}.")


def problems_of(report: RemoteReport, *, same: bool) -> list[str]:
    """What keeps a report from being that of the plugin that is wanted."""
    other = [] if same else [f"found {PACKAGE} {report.version} there, which is not what is installed here"]
    return [*other, *report.problems]


def refusal(machine: Machine, found: Sequence[str]) -> CloudError:
    """The error that stops a run before it is begun, with what to type."""
    listed = "".join(f"\n- {problem}" for problem in found)
    expected = f"{PACKAGE} {__version__}, enabled, in the Python of {machine.folder}"
    return CloudError(
        "Nothing was trained on the cloud machine, because the plugin is not ready there. "
        f"Expected: {expected}. Found:{listed}\n"
        "The machine may be running, and cost money. Mend what is said above and start again; or install the plugin "
        "there yourself, with a copy of its folder, and start again:\n"
        f"  cd {machine.folder} && source venv/bin/activate && pip install --no-deps /path/to/{PACKAGE}\n"
        f"  {PACKAGE} enable . && {PACKAGE} doctor .\n"
        f"To train without it: set {SECTION}.enabled=false.",
        expected=expected,
        found="; ".join(found),
    )


def tail(text: str) -> str:
    """The end of what a program has printed, where its error stands."""
    stripped = text.strip()
    return stripped if len(stripped) <= _SHOWN else f"…{stripped[-_SHOWN:]}"
