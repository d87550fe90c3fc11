"""Every error of this package: one base class whose message ends with what to do."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

SECTION: Final = "ema_select"
"""Name of the plugin's section in OneTrainer's config."""


class EmaSelectError(Exception):
    """Base of all errors of this package; ``str(error)`` is a complete message for the user.

    Attributes:
        path: The file or folder it is about, if there is one.
        key: The config key or parameter name it is about, if there is one.
        expected: What would have been right.
        found: What was there instead.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | os.PathLike[str] | None = None,
        key: str | None = None,
        expected: str | None = None,
        found: str | None = None,
    ) -> None:
        """Keep the message, which ends with what to do, and what it is about."""
        super().__init__(message)
        self.path: str | None = None if path is None else os.fspath(path)
        self.key = key
        self.expected = expected
        self.found = found


@dataclass(frozen=True)
class SettingProblem:
    """One wrong setting.

    Attributes:
        key: The key inside the section; empty if the section itself is wrong.
        found: What was found, as shown to the user.
        expected: What is allowed instead.
        advice: What to type.
    """

    key: str
    found: str
    expected: str
    advice: str

    @property
    def name(self) -> str:
        """The key as it is typed on the command line."""
        return f"{SECTION}.{self.key}" if self.key else SECTION

    def __str__(self) -> str:
        """The problem as one line."""
        return f"{self.name}: found {self.found}; {self.expected}; {self.advice}"


class SettingsError(EmaSelectError):
    """The ``ema_select`` section holds wrong keys or values, all of which are named at once.

    Attributes:
        problems: One for every wrong key or value, in the order they were written.
    """

    def __init__(self, problems: tuple[SettingProblem, ...]) -> None:
        """Compose the message: a heading and one line for each problem."""
        count = f"{len(problems)} settings in `{SECTION}` are"
        if len(problems) == 1:
            count = f"1 setting in `{SECTION}` is"
        heading = f"{count} wrong, so no model was loaded:"
        only = problems[0] if len(problems) == 1 else None
        super().__init__(
            "\n".join([heading, *(f"- {problem}" for problem in problems)]),
            key=only.name if only else None,
            expected=only.expected if only else None,
            found=only.found if only else None,
        )
        self.problems = problems

    def __reduce__(self) -> tuple[type[SettingsError], tuple[tuple[SettingProblem, ...]]]:
        """Let it travel between processes: pickle would call the class with the message."""
        return type(self), (self.problems,)


class HostNotFoundError(EmaSelectError):
    """No OneTrainer folder was found where it was looked for."""


class InstallError(EmaSelectError):
    """The plugin could not be installed into OneTrainer's environment, or not removed from it."""


class HostMismatchError(EmaSelectError):
    """This OneTrainer is not one the plugin knows; nothing was patched.

    Attributes:
        mismatches: One sentence for each difference.
    """

    def __init__(self, mismatches: tuple[str, ...]) -> None:
        """Compose the message: a heading, one line for each difference, and what to do."""
        places = "1 place" if len(mismatches) == 1 else f"{len(mismatches)} places"
        super().__init__(
            "\n".join(
                [
                    f"This OneTrainer differs in {places} from those this plugin knows; nothing was patched:",
                    *(f"- {mismatch}" for mismatch in mismatches),
                    "Update onetrainer-ema-select to a version that knows this OneTrainer "
                    "(`onetrainer-ema-select doctor` shows each place), or train without the plugin: "
                    f"set {SECTION}.enabled=false.",
                ]
            )
        )
        self.mismatches = mismatches

    def __reduce__(self) -> tuple[type[HostMismatchError], tuple[tuple[str, ...]]]:
        """Let it travel between processes: pickle would call the class with the message."""
        return type(self), (self.mismatches,)


class ResumeError(EmaSelectError):
    """The weights asked for cannot be loaded from the backup asked for."""


class NamesError(EmaSelectError):
    """Parameter names are not unique, or do not match those of a saved set."""


class TrackError(EmaSelectError):
    """A track cannot do what it was asked to, because its state or the parameters do not allow it."""


class ManifestError(EmaSelectError):
    """A manifest cannot be read, or says something this version cannot understand."""


class StoreError(EmaSelectError):
    """Files could not be written or read."""


class BackupError(EmaSelectError):
    """Something is not a backup, or not a whole one."""


class ExportError(EmaSelectError):
    """A model could not be made out of a backup."""


class ReportError(EmaSelectError):
    """The page of a run could not be made or written."""


class PostHocError(EmaSelectError, ValueError):
    """A post-hoc EMA was asked for that cannot be made."""


class CloudError(EmaSelectError):
    """The plugin could not be brought onto a cloud machine, or its files not home from there."""


class UsageError(ExportError):
    """What was asked for is not among what there is: a mistake in the command."""
