"""What a job has left behind, and how two jobs are compared."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

STEP_IN_NAME = re.compile(r"-(?:save|backup)-(\d+)-\d+-\d+")


@dataclass(frozen=True)
class Recording:
    """The files that ``record.py`` wrote for a job, and the job's workspace.

    Sets of weights are dicts from parameter name to tensor (CPU, the run's dtype), in the parameter list's order.
    """

    folder: Path
    config: Mapping[str, Any]

    @cached_property
    def result(self) -> dict[str, Any]:
        """``result.json``: phase, exception, steps, statuses, random states, seconds, parameters."""
        result: dict[str, Any] = json.loads((self.folder / "result.json").read_text(encoding="utf-8"))
        return result

    @property
    def finished(self) -> bool:
        """Whether the run went through all of OneTrainer's calls without an exception."""
        return bool(self.result["finished"])

    @property
    def exception(self) -> dict[str, str] | None:
        """Type and message of what ended the run, if anything did."""
        exception: dict[str, str] | None = self.result["exception"]
        return exception

    @property
    def output(self) -> str:
        """All that the run printed, the standard output first."""
        return "\n".join(
            (self.folder / name).read_text(encoding="utf-8", errors="replace") for name in ("stdout.txt", "stderr.txt")
        )

    def require(self) -> Recording:
        """This recording, after a check that its run finished; shows the end of the output where it did not."""
        if not self.finished:
            raise AssertionError(f"{self.result['name']}: {self.exception}\n{self.output[-6000:]}")
        return self

    def named(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``tensors`` in the order of the parameter list (safetensors sorts by name)."""
        return {name: tensors[name] for name in self.result["parameters"]}

    def weights(self, kind: str = "live", when: str = "trained") -> dict[str, Tensor]:
        """The live weights or the EMA (``kind``) after ``train`` or ``end`` (``when``: ``trained``, ``ended``)."""
        return self.named(load_file(self.folder / f"{when}-{kind}.safetensors"))

    def step(self, number: int, kind: str = "live") -> dict[str, Tensor]:
        """A set after ``number`` steps, for a job with ``kind`` in its ``record``."""
        return self.named(load_file(self.folder / kind / f"{number:06d}.safetensors"))

    def step_numbers(self, kind: str = "live") -> list[int]:
        """The steps that :meth:`step` has."""
        return sorted(int(path.stem) for path in (self.folder / kind).glob("*.safetensors"))

    def optimizer(self) -> dict[str, Any]:
        """The optimizer's ``state_dict`` after ``train``."""
        state: dict[str, Any] = torch.load(self.folder / "optimizer.pt", weights_only=True)
        return state

    @property
    def workspace(self) -> Path:
        """OneTrainer's workspace folder."""
        return Path(self.config["workspace_dir"])

    @property
    def output_folder(self) -> Path:
        """The folder the final model is written to."""
        return Path(self.config["output_model_destination"]).parent

    def by_step(self, folder: str) -> dict[int, list[Path]]:
        """What lies in ``workspace/folder`` (``save``, ``backup``), sorted by name, by the step in the name."""
        found: dict[int, list[Path]] = defaultdict(list)
        for path in sorted((self.workspace / folder).glob("*")):
            if match := STEP_IN_NAME.search(path.name):
                found[int(match.group(1))].append(path)
        return dict(found)


def read_model(path: Path) -> dict[str, Tensor]:
    """All tensors of a saved model, a file or a folder of files (then keyed by ``file:name``)."""
    if path.is_file():
        return load_file(path)
    return {
        f"{file.relative_to(path).as_posix()}:{name}": tensor
        for file in sorted(path.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata in the header of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def difference(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """The largest absolute difference; infinite where names, shapes or dtypes differ or one is not a number."""
    if first.keys() != second.keys():
        return float("inf")
    largest = 0.0
    for name, tensor in first.items():
        other = second[name]
        if tensor.shape != other.shape or tensor.dtype != other.dtype:
            return float("inf")
        if tensor.numel():
            distance = (tensor.double() - other.double()).abs().max().item()
            largest = max(largest, distance if distance == distance else float("inf"))
    return largest


def same_bits(first: object, second: object) -> bool:
    """Whether two nested structures of dicts, lists, tensors and values are equal, tensors bit for bit."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first.dtype != second.dtype or first.shape != second.shape:
            return False
        return torch.equal(*(t.contiguous().flatten().view(torch.uint8) for t in (first, second)))
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(same_bits(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(same_bits(a, b) for a, b in zip(first, second, strict=True))
    return type(first) is type(second) and first == second
