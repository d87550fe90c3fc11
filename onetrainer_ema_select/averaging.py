"""How one average is moved towards its parameter, exactly and in one pass over memory.

The recursion is the usual one for an exponential moving average (Polyak and Juditsky 1992; as used by
Karras et al. 2024, arXiv 2312.02696, equation 1)::

    average <- average + (1 - decay) * (parameter - average)

What differs from case to case is only where the two tensors lie and how many bits they have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

# 2**20 float32 values are 4 MiB: small enough that the converted piece of a 16-bit parameter is still in the
# cache when it is averaged, large enough that neither the interpreter's share of the time nor the threads'
# waiting for each other after every piece shows (with 2**15 it takes 2.7 times as long; `tests/benchmarks`).
_CACHE_CHUNK = 1 << 20
# Of a parameter that several averages are made of, the piece that is read once for all of them. Three averages take
# 2.5 times as long as one with it, and 3 times in one piece; much smaller ones cost more than they save.
_SHARED_CHUNK = 1 << 20
# Staging for parameters on another device: 16 MiB of float32, twice, whatever the size of the model.
_TRANSFER_CHUNK = 1 << 22


_Move: TypeAlias = tuple[Tensor, float]
"""An average, and the weight that it is moved by."""


class Averager:
    """Moves averages towards their parameters; owns the scratch memory that this takes.

    Not shared between threads. The scratch memory is at most 4 MiB for the conversion of 16-bit
    parameters and two staging buffers (pinned where CUDA is involved) of 4 Mi elements for parameters that
    lie on another device than their average.
    """

    def __init__(self) -> None:
        """Create an averager without any scratch memory; it is taken when first needed."""
        self._scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._staging: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

    def update(self, averages: Sequence[Tensor], parameters: Sequence[Tensor], *, weight: float, seed: int) -> None:
        """Move every average by ``weight`` of its distance to its parameter, in place.

        Args:
            averages: Tensors to change, in any floating dtype and on any device.
            parameters: As many tensors of the same shapes; only read.
            weight: ``1 - decay``, between 0 and 1.
            seed: Seeds the stochastic rounding of 16-bit averages. The global generators of torch are not
                touched. The number of the update makes a resumed run round like an uninterrupted one.
        """
        self.update_several([averages], parameters, weights=[weight], seeds=[seed])

    @torch.no_grad()
    def update_several(
        self,
        average_lists: Sequence[Sequence[Tensor | None]],
        parameters: Sequence[Tensor],
        *,
        weights: Sequence[float],
        seeds: Sequence[int],
    ) -> None:
        """Move several averages of each parameter, which is read, converted and transferred once for all of them.

        Each average becomes, bit for bit, what `update` alone would have made of it.

        Args:
            average_lists: One list a track, each as long as ``parameters``; None where a track has no average of
                that parameter.
            parameters: Only read.
            weights: ``1 - decay`` of each track.
            seeds: Of each track, as in `update`.
        """
        alike: list[tuple[Tensor, list[_Move]]] = []
        generators: dict[tuple[int, torch.device], torch.Generator] = {}
        tracks = tuple(zip(weights, seeds, range(len(average_lists)), strict=True))
        for *averages, parameter in list(zip(*average_lists, parameters, strict=True)):
            parameter = parameter.detach()
            same: list[_Move] = []
            converted: list[_Move] = []
            transferred: list[_Move] = []
            full: Tensor | None = None
            for weight, seed, track in tracks:
                average = averages[track]
                if average is None:
                    continue
                if average.element_size() < 4:
                    generator = generators.get((track, average.device))
                    if generator is None:
                        generator = torch.Generator(average.device).manual_seed(seed)
                        generators[track, average.device] = generator
                    if full is None or full.device != average.device:
                        full = parameter.to(average.device, torch.float32)
                    moved = average.float().lerp_(full, weight)
                    stochastic_round_(average, moved, generator=generator)
                elif average.device == parameter.device:
                    (same if average.dtype == parameter.dtype else converted).append((average, weight))
                elif average.device.type == "cpu" and parameter.is_contiguous() and average.is_contiguous():
                    transferred.append((average.view(-1), weight))
                else:
                    average.lerp_(parameter.to(average.device, average.dtype), weight)
            if same:
                alike.append((parameter, same))
            if converted:
                self._update_converted(converted, parameter)
            if transferred:
                self._update_transferred(transferred, parameter.view(-1))
        if alike:
            _update_alike(alike)

    def _update_converted(self, moves: Sequence[_Move], parameter: Tensor) -> None:
        """Average a parameter of another dtype on the same device without a second copy of it."""
        dtype = moves[0][0].dtype
        if parameter.device.type != "cpu" or not _all_contiguous(parameter, moves) or not _all_of(dtype, moves):
            full: Tensor | None = None
            for average, weight in moves:
                if full is None or full.dtype != average.dtype:
                    full = parameter.to(average.dtype)
                average.lerp_(full, weight)
            return
        key = (parameter.device, dtype)
        scratch = self._scratch.get(key)
        if scratch is None:
            scratch = self._scratch[key] = torch.empty(_CACHE_CHUNK, dtype=dtype, device=parameter.device)
        pieces = [(average.view(-1).split(_CACHE_CHUNK), weight) for average, weight in moves]
        for number, piece in enumerate(parameter.view(-1).split(_CACHE_CHUNK)):
            converted = scratch[: piece.numel()]
            converted.copy_(piece)
            for averages, weight in pieces:
                averages[number].lerp_(converted, weight)

    def _update_transferred(self, moves: Sequence[_Move], parameter: Tensor) -> None:
        """Average on the CPU a flat parameter of another device, the next piece travelling meanwhile.

        The copies are queued on the parameter's current stream, so they read it after the optimizer's
        kernels and before anything that the next step queues.
        """
        buffers = self._buffers(parameter)
        pieces = [(average.split(_TRANSFER_CHUNK), weight) for average, weight in moves]
        waiting: tuple[list[_Move], Tensor, torch.cuda.Event | None] | None = None
        for number, (piece, buffer) in enumerate(
            zip(parameter.split(_TRANSFER_CHUNK), _alternate(buffers), strict=False)
        ):
            arrived = buffer[: piece.numel()]
            arrived.copy_(piece, non_blocking=arrived.is_pinned())
            event = None
            if arrived.is_pinned():
                event = torch.cuda.Event()
                event.record(torch.cuda.current_stream(piece.device))
            if waiting is not None:
                self._consume(*waiting)
            waiting = ([(averages[number], weight) for averages, weight in pieces], arrived, event)
        if waiting is not None:
            self._consume(*waiting)

    def _consume(self, moves: Sequence[_Move], arrived: Tensor, event: torch.cuda.Event | None) -> None:
        if event is not None:
            event.synchronize()
        if _all_of(arrived.dtype, moves):
            # By pieces that stay in the cache until the last of several averages has read them.
            _update_alike([(arrived, list(moves))])
        else:
            self._update_converted(moves, arrived)

    def _buffers(self, parameter: Tensor) -> tuple[Tensor, Tensor]:
        buffers = self._staging.get(parameter.dtype)
        if buffers is None:
            pinned = parameter.is_cuda
            first = torch.empty(_TRANSFER_CHUNK, dtype=parameter.dtype, pin_memory=pinned)
            second = torch.empty(_TRANSFER_CHUNK, dtype=parameter.dtype, pin_memory=pinned)
            buffers = self._staging[parameter.dtype] = (first, second)
        return buffers


def _update_alike(pairs: Sequence[tuple[Tensor, list[_Move]]]) -> None:
    """Move averages that lie as their parameters do, in as few calls as possible.

    One call for all: a single fused kernel a group on CUDA, and no interpreter between the thousands of small
    tensors of a LoRA on the CPU. There, where a parameter has several averages, as many as the cache holds.
    """
    groups: dict[float, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
    waiting = 0

    def flush() -> None:
        for weight, (averages, parameters) in groups.items():
            torch._foreach_lerp_(averages, parameters, weight)
        groups.clear()

    for parameter, moves in pairs:
        shared = parameter.device.type == "cpu" and len(moves) > 1
        if not shared or parameter.numel() <= 2 * _SHARED_CHUNK or not _all_contiguous(parameter, moves):
            for average, weight in moves:
                groups[weight][0].append(average)
                groups[weight][1].append(parameter)
        else:
            pieces = parameter.view(-1).split(_SHARED_CHUNK)
            split = [(average.view(-1).split(_SHARED_CHUNK), weight) for average, weight in moves]
            for number, piece in enumerate(pieces):
                for averages, weight in split:
                    averages[number].lerp_(piece, weight)
            continue
        waiting += parameter.numel() if shared else 0
        if waiting >= _SHARED_CHUNK:
            flush()
            waiting = 0
    flush()


def _all_contiguous(parameter: Tensor, moves: Sequence[_Move]) -> bool:
    return parameter.is_contiguous() and all(average.is_contiguous() for average, _ in moves)


def _all_of(dtype: torch.dtype, moves: Sequence[_Move]) -> bool:
    return all(average.dtype == dtype for average, _ in moves)


def average_dtype(parameter: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of a parameter's average.

    Args:
        parameter: The parameter.
        dtype: That was asked for; None for the parameter's own, which weights of 8 bits cannot be averaged in.
    """
    return dtype or (parameter.dtype if parameter.dtype.itemsize > 1 else torch.float32)


def begin_average(parameter: Tensor, *, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    """A new average that begins at a parameter: a copy, with the arguments of :func:`average_dtype`."""
    return parameter.detach().to(device, average_dtype(parameter, dtype), copy=True)


def take_up_average(saved: Tensor, parameter: Tensor, *, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    """A saved average of a parameter; kept without a copy where device and dtype fit.

    Never the live weight itself: an alias would move with it.
    """
    average = saved.detach().to(device, average_dtype(parameter, dtype))
    return average.clone() if average.data_ptr() == parameter.data_ptr() else average


def wait_for_transfers() -> None:
    """Wait for copies that a host with layer offloading has queued on streams of its own.

    It points ``.data`` at a buffer before the contents have arrived there; only the device can tell when they have.
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _alternate(buffers: tuple[Tensor, Tensor]) -> Iterator[Tensor]:
    while True:
        yield from buffers


# Bits of precision (with the implicit one) and exponent of the smallest step of the 16-bit formats. Steps of
# bfloat16 below 2**-126 are coarsened to it: float32 has no normal number there, and no weight is that small.
_PRECISION = {torch.bfloat16: (8, -126), torch.float16: (11, -24)}
_FLOAT32_PRECISION = 24


@torch.no_grad()
def stochastic_round_(target: Tensor, value: Tensor, *, generator: torch.Generator) -> None:
    """Write ``value`` into a 16-bit ``target``, rounding up or down so that the mean is right.

    A value between two neighbours of the 16-bit grid becomes the upper one with a probability equal to its
    distance from the lower one (Gupta et al. 2015, arXiv 1502.02551, section 3.1). Increments smaller than
    half a grid step survive on average, where rounding to nearest loses every one of them.

    Args:
        target: bfloat16 or float16 tensor; changed in place.
        value: float32 tensor of the same shape and device; used as scratch memory, so its contents are lost.
        generator: The only source of randomness, on the same device.

    Raises:
        KeyError: If ``target`` is neither bfloat16 nor float16.
    """
    precision, smallest = _PRECISION[target.dtype]
    _, exponent = torch.frexp(value)
    exponent = exponent.sub_(precision).clamp_(min=smallest)
    # The step of the grid as a float32, made from its exponent bits: exact, which a power function is not.
    step = exponent.add_(127).bitwise_left_shift_(23).view(torch.float32)
    # As many random bits as float32 has below the 16-bit grid. With more, the sum itself would be rounded, and
    # a value that lies on the grid already would be moved up now and then.
    noise_steps = 1 << (_FLOAT32_PRECISION - precision)
    noise = torch.randint(noise_steps, value.shape, generator=generator, device=value.device, dtype=value.dtype)
    target.copy_(value.div_(step).add_(noise.div_(noise_steps)).floor_().mul_(step))
