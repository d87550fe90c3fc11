"""What post-hoc EMA costs: the power-function tracks in a step, and a mixture of snapshots on the disk."""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from onetrainer_ema_select.posthoc import Profile, gamma_from_sigma_rel, solve
from onetrainer_ema_select.power_tracks import PowerTracks
from onetrainer_ema_select.synthesis import Synthesis
from onetrainer_ema_select.tracks import WeightTracks

from .bench.checkout import package_folder
from .conftest import MIB, Rounds, Show, ratio
from .test_ema_update import DECAY, ELEMENTS, LATE, Weights, floor

ROUNDS = 21
EVERY = 4
SIGMA_RELS = (0.05, 0.10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_three_tracks_beside_one(dtype: torch.dtype, benchmark: Any, show: Show) -> None:
    weights = Weights(dtype)
    parameters = list(weights.all)
    one = WeightTracks(weights.named_parameters(), decay=DECAY, device="cpu")
    three = WeightTracks(weights.named_parameters(), decay=DECAY, device="cpu")
    three.beside = PowerTracks(
        weights.named_parameters(),
        sigma_rels=(0.05, 0.10),
        device="cpu",
        time=float(LATE),
        time_of=lambda step: float(step + 1),
    )
    seldom = WeightTracks(weights.named_parameters(), decay=DECAY, device="cpu")
    seldom.beside = PowerTracks(
        weights.named_parameters(),
        sigma_rels=(0.05, 0.10),
        device="cpu",
        interval=EVERY,
        time=float(LATE),
        time_of=lambda step: float(step + 1),
    )
    steps = dict.fromkeys(("one", "three", "seldom"), LATE)

    def stepper(name: str, tracks: WeightTracks) -> Any:
        def run() -> None:
            for _ in range(EVERY):
                steps[name] += 1
                tracks.step(parameters, steps[name])

        return run

    def floors() -> None:
        for _ in range(EVERY):
            add()

    add = floor(weights)
    contestants = {name: stepper(name, tracks) for name, tracks in (("one", one), ("three", three), ("seldom", seldom))}
    rounds = Rounds({"floor": floors, **contestants})
    rounds.warm_up()
    benchmark.pedantic(rounds.once, rounds=ROUNDS, iterations=1)

    assert three.beside.updates == EVERY * (ROUNDS + 1)
    assert seldom.beside.updates == ROUNDS + 1
    show(f"\n{EVERY} steps of 1 and 3 averages, {dtype}, {ELEMENTS:,} elements, {torch.get_num_threads()} threads:")
    for name, seconds in rounds.seconds.items():
        to_one = ratio(seconds, rounds.seconds["one"])
        benchmark.extra_info[name] = {"median_ms": statistics.median(seconds) * 1e3, "to_one": to_one}
        show(
            f"  {name:7} {statistics.median(seconds) * 1e3:8.1f} ms (best {min(seconds) * 1e3:.1f}) {to_one:6.2f} x one"
        )


# -- a mixture of snapshots ----------------------------------------------------------------------------------

SNAPSHOTS = 20
DIFFERENT = 4  # files; the others are further names of these, so that all stay in the system's cache
SHARES = [(-1) ** number * (1 + number / 7) for number in range(SNAPSHOTS - 1)]
SHARES.append(1 - sum(SHARES))

PEAK = """
import sys
from pathlib import Path
from onetrainer_ema_select.synthesis import Synthesis

def peak():  # not getrusage: there a process begins with its parent's
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

before = peak()
mixed = Synthesis([Path(file) for file in sys.argv[2:]], [float(share) for share in sys.argv[1].split()])
for name in mixed:
    mixed[name]
print(peak() - before - 4 * max(map(mixed.numel, mixed)))
"""


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """1 GiB of float32 each, half of it in one tensor."""
    folder = tmp_path_factory.mktemp("snapshots")
    files = []
    for number in range(SNAPSHOTS):
        files.append(folder / f"{number}.safetensors")
        if number >= DIFFERENT:
            os.link(files[number % DIFFERENT], files[number])
            continue
        tensors = {"large": torch.randn(MIB * 128)}
        tensors |= {f"part {part}": torch.randn(MIB * 2) for part in range(60)}
        tensors |= {f"small {part}": torch.randn(1280) for part in range(200)}
        save_file(tensors, files[number])
    return files


def read_once(files: list[Path]) -> None:
    """All bytes of the files, into one small piece of memory."""
    piece = memoryview(bytearray(MIB))
    for file in files:
        with file.open("rb", buffering=0) as handle:
            while handle.readinto(piece):
                pass


def test_synthesis_of_a_gibibyte(snapshots: list[Path], benchmark: Any, show: Show) -> None:
    def ours() -> None:
        with Synthesis(snapshots, SHARES) as mixed:
            for name in mixed:
                mixed[name]

    rounds = Rounds({"read": lambda: read_once(snapshots), "ours": ours})
    rounds.warm_up()
    benchmark.pedantic(rounds.once, rounds=7, iterations=1)
    to_read = ratio(rounds.seconds["ours"], rounds.seconds["read"])
    show(f"\n1 GiB of float32 out of {SNAPSHOTS} snapshots in the system's cache, {os.cpu_count()} CPUs:")
    for name, seconds in rounds.seconds.items():
        show(f"  {name:5} {statistics.median(seconds):6.2f} s (best {min(seconds):.2f})")
    show(f"  {to_read:.2f} x reading the files once")
    benchmark.extra_info["to_read"] = to_read
    if sys.platform == "linux":
        command = [sys.executable, "-c", PEAK, " ".join(map(repr, SHARES)), *map(str, snapshots)]
        environment = {**os.environ, "PYTHONPATH": str(package_folder())}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        benchmark.extra_info["peak_bytes"] = int(done.stdout)
        show(f"  peak memory beyond the tensor being made: {int(done.stdout) / MIB:.0f} MiB")


def test_solving(benchmark: Any, show: Show) -> None:
    def profiles(steps: int, count: int) -> list[Profile]:
        times = range(steps // count, steps + 1, steps // count)
        return [Profile(sigma_rel, float(step), 1.0) for step in times for sigma_rel in SIGMA_RELS]

    cases = {
        f"{steps:,} steps, {2 * count} snapshots": (steps, profiles(steps, count))
        for steps, count in ((48, 12), (5000, 50), (1_000_000, 100))
    }
    rounds = Rounds(
        {
            name: (lambda steps=steps, all_=all_: solve(all_, Profile(0.08, steps)))
            for name, (steps, all_) in cases.items()
        }
    )
    rounds.warm_up()
    benchmark.pedantic(rounds.once, rounds=7, iterations=1)
    for name, seconds in rounds.seconds.items():
        show(f"  {name}: {statistics.median(seconds) * 1e3:.0f} ms")


# -- beside ema-pytorch --------------------------------------------------------------------------------------


class Model(nn.Module):
    """Weights without a purpose."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.all = nn.ParameterList(weights)

    def forward(self) -> None:
        """Nothing: only the weights matter."""


def post_hoc_peer() -> Any:
    try:
        from ema_pytorch import PostHocEMA
    except Exception as error:  # whatever its own libraries raise at their import
        pytest.skip(f"needs ema-pytorch (pip install ema-pytorch): {error}")
    return PostHocEMA


class Ours:
    """The two tracks and their snapshots, as plain files."""

    def __init__(self, model: nn.Module, folder: Path, *, interval: int, every: int) -> None:
        self.tracks = PowerTracks(model.named_parameters(), sigma_rels=SIGMA_RELS, device="cpu", interval=interval)
        self.folder, self.every = folder, every
        self.profiles: list[Profile] = []
        self.files: list[Path] = []

    def update(self, step: int) -> None:
        if self.tracks.due(step - 1):
            self.tracks.step(float(step))
        if step % self.every == 0:
            for sigma_rel, averages in self.tracks.sets().items():
                self.files.append(self.folder / f"{sigma_rel}-{step}.safetensors")
                save_file(dict(averages), self.files[-1])
                self.profiles.append(self.tracks.profile(sigma_rel, interval_time=self.tracks.interval))

    def synthesize(self, sigma_rel: float) -> list[Tensor]:
        fit = solve(self.profiles, Profile(sigma_rel, self.tracks.time))
        with Synthesis(self.files, fit.coefficients) as mixed:
            return [mixed[name] for name in mixed]


def exact_average(history: Iterator[list[Tensor]], steps: int, sigma_rel: float) -> list[Tensor]:
    exponent = gamma_from_sigma_rel(sigma_rel) + 1
    shares = [(step / steps) ** exponent - ((step - 1) / steps) ** exponent for step in range(1, steps + 1)]
    total: list[Tensor] = []
    for share, weights in zip(shares, history, strict=True):
        parts = [share * weight.double() for weight in weights]
        total = [a + b for a, b in zip(total, parts, strict=True)] if total else parts
    return total


def norm(tensors: list[Tensor]) -> float:
    return float(torch.cat([tensor.double().reshape(-1) for tensor in tensors]).norm())


def difference(some: list[Tensor], others: list[Tensor]) -> float:
    return norm([a.double() - b.double() for a, b in zip(some, others, strict=True)])


@pytest.mark.parametrize("interval", [1, 10])
def test_the_error_beside_ema_pytorch(interval: int, tmp_path: Path, benchmark: Any, show: Show) -> None:
    peer = post_hoc_peer()
    steps, every = 5000, 100
    shapes = [(40, 50), (100,), (3, 20, 20)]

    def history() -> Iterator[list[Tensor]]:
        """A drift and a random walk around it, of the size of a fine-tuning's beside the weights."""
        generator = torch.Generator().manual_seed(5)
        weights = [0.02 * torch.randn(shape, generator=generator) for shape in shapes]
        drift = [1e-6 * torch.randn(shape, generator=generator) for shape in shapes]
        for _ in range(steps):
            moves = [d + 1e-5 * torch.randn(d.shape, generator=generator) for d in drift]
            weights = [weight + move for weight, move in zip(weights, moves, strict=True)]
            yield weights

    model = Model([torch.zeros(shape) for shape in shapes])
    (tmp_path / "ours").mkdir()
    theirs = peer(
        model,
        sigma_rels=SIGMA_RELS,
        update_every=interval,
        checkpoint_every_num_steps=every,
        checkpoint_dtype=torch.float32,
        checkpoint_folder=str(tmp_path / "theirs"),
    )
    ours = Ours(model, tmp_path / "ours", interval=interval, every=every)
    for step, weights in enumerate(history(), start=1):
        with torch.no_grad():
            for parameter, weight in zip(model.all, weights, strict=True):
                parameter.copy_(weight)
        ours.update(step)
        theirs.update()
    last = [parameter.detach().clone() for parameter in model.all]

    def compare() -> None:
        show(
            f"\n{steps:,} steps, a snapshot every {every}, an update every {interval}: error as a share of the "
            "distance from the last weights"
        )
        for sigma_rel in (0.05, 0.08, 0.10, 0.15):
            wanted = exact_average(history(), steps, sigma_rel)
            distance = difference(wanted, last)
            our_error = difference(ours.synthesize(sigma_rel), wanted) / distance
            made = theirs.synthesize_ema_model(sigma_rel=sigma_rel)
            their_error = difference([p.detach() for p in made.ema_model.parameters()], wanted) / distance
            benchmark.extra_info[f"{sigma_rel}"] = {"ours": our_error, "ema_pytorch": their_error}
            show(f"  sigma_rel {sigma_rel:.2f}: ours {our_error:.5f}, ema-pytorch {their_error:.5f}")

    benchmark.pedantic(compare, rounds=1, iterations=1)


def test_the_time_beside_ema_pytorch(tmp_path: Path, benchmark: Any, show: Show) -> None:
    peer = post_hoc_peer()
    generator = torch.Generator().manual_seed(1)
    model = Model(
        [torch.randn(1280, 1280, generator=generator) for _ in range(16)]
        + [torch.randn(1280, generator=generator) for _ in range(200)]
    )
    elements = sum(parameter.numel() for parameter in model.parameters())
    (tmp_path / "ours").mkdir()
    theirs = peer(
        model,
        sigma_rels=SIGMA_RELS,
        update_every=1,
        checkpoint_every_num_steps="manual",
        checkpoint_dtype=torch.float32,
        checkpoint_folder=str(tmp_path / "theirs"),
    )
    ours = Ours(model, tmp_path / "ours", interval=1, every=1 << 40)
    steps = itertools.count(1)

    def our_update() -> None:
        ours.update(next(steps))

    update = Rounds({"ours": our_update, "ema-pytorch": theirs.update})
    update.warm_up()
    for _ in range(20):
        update.once()
    ours.every = 1
    for _ in range(10):
        our_update()
        theirs.update()
        theirs.checkpoint()
    mix = Rounds(
        {"ours": lambda: ours.synthesize(0.08), "ema-pytorch": lambda: theirs.synthesize_ema_model(sigma_rel=0.08)}
    )
    mix.warm_up()
    benchmark.pedantic(mix.once, rounds=5, iterations=1)
    show(f"\n{elements:,} elements, 2 tracks:")
    for what, rounds in (("update", update), (f"synthesis from {len(ours.files)} snapshots", mix)):
        to_ours = ratio(rounds.seconds["ema-pytorch"], rounds.seconds["ours"])
        mine, other = (statistics.median(rounds.seconds[name]) * 1e3 for name in ("ours", "ema-pytorch"))
        benchmark.extra_info[what] = {"ours_ms": mine, "ema_pytorch_ms": other, "ratio": to_ours}
        show(f"  {what}: ours {mine:.0f} ms, ema-pytorch {other:.0f} ms, {to_ours:.1f} x ours")
