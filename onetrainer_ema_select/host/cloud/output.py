"""The final output comes home from the cloud machine: both sets, and what lies beside them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from onetrainer_ema_select.errors import CloudError
from onetrainer_ema_select.host.cloud.names import belongs_to_output
from onetrainer_ema_select.host.ledger import FILE as LEDGER_FILE
from onetrainer_ema_select.manifest import FOLDER
from onetrainer_ema_select.naming import companions
from onetrainer_ema_select.workspace import size_of

# A connection may fail once.
_ATTEMPTS = 2


@dataclass(frozen=True)
class Entry:
    """A part of the final output on the cloud machine; `new` where the present run has written it."""

    name: str
    is_folder: bool
    new: bool


class RemoteOutput:
    """What lies at the final output's place there, and how it is fetched with OneTrainer's own functions."""

    def __init__(self, cloud: Any) -> None:
        """Note OneTrainer's cloud object, which is connected."""
        self._cloud = cloud
        self.destination = PurePosixPath(cloud.config.output_model_destination)
        self.local = Path(cloud.config.local_output_model_destination)
        self._prefix: str | None = None
        if self._is_in_folder():
            # OneTrainer gives the file a name of its own; that folder may hold anything else, also the workspace.
            self._prefix = str(getattr(cloud.config, "save_filename_prefix", ""))
            self.destination, self.local = self.destination / "*", self.local / "*"

    @property
    def is_in_folder(self) -> bool:
        """Whether the output is files in a folder that was there before, with names that OneTrainer has chosen."""
        return self._prefix is not None

    def _is_in_folder(self) -> bool:
        form = getattr(self._cloud.config, "output_model_format", None)
        if form is None or not form.is_single_file():
            return False
        return bool(self._printed(f"if test -d {shlex.quote(str(self.destination))}; then echo yes; fi").strip())

    def entries(self) -> tuple[Entry, ...]:
        """The parts that are there.

        New is what is younger than the run's configuration, which OneTrainer uploads when it starts one.

        Raises:
            Exception: The connection's, or a CloudError where the folder cannot be listed.
        """
        folder, config = shlex.quote(str(self.destination.parent)), shlex.quote(str(self._cloud.config_file))
        listing = f"find {folder} -mindepth 1 -maxdepth 1 -printf '%y\\t%f\\n'"
        newer = f"find {folder} -mindepth 1 -maxdepth 1 -newer {config} -printf 'n\\t%f\\n'"
        printed = self._printed(f"if test -d {folder}; then {listing}; if test -e {config}; then {newer}; fi; fi")
        rows = [line.split("\t", 1) for line in printed.splitlines() if "\t" in line]
        new = {name for kind, name in rows if kind == "n"}
        belongs = self._names(rows)
        return tuple(
            Entry(name, kind == "d", name in new) for kind, name in rows if kind in ("d", "f") and name in belongs
        )

    def _names(self, rows: Iterable[list[str]]) -> set[str]:
        """Names of the output's parts among what lies there."""
        names = {name for _, name in rows}
        if self._prefix is None:
            return {name for name in names if belongs_to_output(name, self.destination.name)}
        files = {name for kind, name in rows if kind == "f"}
        ending = self._cloud.config.output_model_format.file_extension()
        models = {name for name in files if name.startswith(self._prefix) and name.endswith(ending)}
        models |= files & self.last_written()
        return models | {each for name in models for each in companions(name)}

    def last_written(self) -> frozenset[str]:
        """Names of the sets that the newest end of a run in this workspace has written, as its list of saves says.

        Raises:
            Exception: The connection's.
        """
        ledger = PurePosixPath(self._cloud.config.workspace_dir) / FOLDER / LEDGER_FILE
        try:
            saves = json.loads(self._printed(f"cat {shlex.quote(str(ledger))}"))["saves"]
            finals = [save for save in saves if save["final"]]
            return frozenset(
                PurePosixPath(save["path"]).name
                for save in finals
                if all(save[key] == finals[-1][key] for key in ("run", "leg", "step"))
            )
        except (CloudError, ValueError, KeyError, TypeError):
            return frozenset()  # no run of ours has ended there yet

    def fetch(self, entries: Iterable[Entry]) -> None:
        """Fetch parts of the output, and see whether they have come in full.

        Raises:
            Exception: OneTrainer's synchronisation's; a CloudError where a file is missing or of another size.
        """
        entries = tuple(entries)
        if not entries:
            return
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                for entry in entries:
                    self._fetch_one(entry)
                return
            except Exception:
                if attempt == _ATTEMPTS:
                    raise

    def _fetch_one(self, entry: Entry) -> None:
        local, remote = self.local.with_name(entry.name), Path(self.destination.with_name(entry.name))
        if entry.is_folder:
            self._cloud.file_sync.sync_down_dir(local=local, remote=remote)
        else:
            self._cloud.file_sync.sync_down_file(local=local, remote=remote)
        place = shlex.quote(remote.as_posix())
        printed = self._printed(f"find {place} -type f -printf '%s\\t%P\\n'")
        for line in printed.splitlines():
            size, _, inside = line.partition("\t")
            file = local / inside if inside else local
            if size_of(file) != int(size):
                raise CloudError(
                    f"{file} has not come home in full: {size_of(file)} of {size} bytes. It is on the cloud machine as "
                    f"{remote.as_posix()}; fetch it before the machine is deleted.",
                    path=file,
                    expected=size,
                    found=str(size_of(file)),
                )

    def _printed(self, command: str) -> str:
        result = self._cloud.connection.run(command, warn=True, hide=True, in_stream=False)
        if result.exited != 0:
            raise CloudError(f"`{command}` ended with {result.exited} on the cloud machine: {result.stderr.strip()}")
        return str(result.stdout)
