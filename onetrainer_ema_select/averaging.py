"""How one average is moved towards its parameter, exactly and in one pass over memory.

The recursion is the usual one for an exponential moving average (Polyak and Juditsky 1992; as used by
Karras et al. 2024, arXiv 2312.02696, equation 1)::

    average <- average + (1 - decay) * (parameter - average)

What differs from case to case is only where the two tensors lie and how many bits they have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# 2**20 float32 values are 4 MiB: small enough that the converted piece of a 16-bit parameter is still in the
# cache when it is averaged, large enough that neither the interpreter's share of the time nor the threads'
# waiting for each other after every piece shows (with 2**15 it takes 2.7 times as long; `tests/benchmarks`).
_CACHE_CHUNK = 1 << 20
# Staging for parameters on another device: 16 MiB of float32, twice, whatever the size of the model.
_TRANSFER_CHUNK = 1 << 22


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

    @torch.no_grad()
    def update(self, averages: Sequence[Tensor], parameters: Sequence[Tensor], *, weight: float, seed: int) -> None:
        """Move every average by ``weight`` of its distance to its parameter, in place.

        Args:
            averages: Tensors to change, in any floating dtype and on any device.
            parameters: As many tensors of the same shapes; only read.
            weight: ``1 - decay``, between 0 and 1.
            seed: Seeds the stochastic rounding of 16-bit averages. The global generators of torch are not
                touched. The number of the update makes a resumed run round like an uninterrupted one.
        """
        alike_averages: list[Tensor] = []
        alike_parameters: list[Tensor] = []
        rounded: dict[torch.device, torch.Generator] = {}
        for average, parameter in zip(averages, parameters, strict=True):
            parameter = parameter.detach()
            if average.element_size() < 4:
                generator = rounded.get(average.device)
                if generator is None:
                    generator = rounded[average.device] = torch.Generator(average.device).manual_seed(seed)
                moved = average.float().lerp_(parameter.to(average.device, torch.float32), weight)
                stochastic_round_(average, moved, generator=generator)
            elif average.device == parameter.device and average.dtype == parameter.dtype:
                alike_averages.append(average)
                alike_parameters.append(parameter)
            elif average.device == parameter.device:
                self._update_converted(average, parameter, weight)
            elif average.device.type == "cpu" and parameter.is_contiguous() and average.is_contiguous():
                self._update_transferred(average.view(-1), parameter.view(-1), weight)
            else:
                average.lerp_(parameter.to(average.device, average.dtype), weight)
        if alike_averages:
            # One call for all: a single fused kernel a group on CUDA, and no interpreter between the
            # thousands of small tensors of a LoRA on the CPU.
            torch._foreach_lerp_(alike_averages, alike_parameters, weight)

    def _update_converted(self, average: Tensor, parameter: Tensor, weight: float) -> None:
        """Average a parameter of another dtype on the same device without a second copy of it."""
        if not (average.is_contiguous() and parameter.is_contiguous()) or average.device.type != "cpu":
            average.lerp_(parameter.to(average.dtype), weight)
            return
        key = (average.device, average.dtype)
        scratch = self._scratch.get(key)
        if scratch is None:
            scratch = self._scratch[key] = torch.empty(_CACHE_CHUNK, dtype=average.dtype, device=average.device)
        average_pieces = average.view(-1).split(_CACHE_CHUNK)
        for average_piece, piece in zip(average_pieces, parameter.view(-1).split(_CACHE_CHUNK), strict=True):
            converted = scratch[: piece.numel()]
            converted.copy_(piece)
            average_piece.lerp_(converted, weight)

    def _update_transferred(self, average: Tensor, parameter: Tensor, weight: float) -> None:
        """Average on the CPU a flat parameter of another device, the next piece travelling meanwhile.

        The copies are queued on the parameter's current stream, so they read it after the optimizer's
        kernels and before anything that the next step queues.
        """
        buffers = self._buffers(parameter)
        pieces = zip(average.split(_TRANSFER_CHUNK), parameter.split(_TRANSFER_CHUNK), strict=True)
        waiting: tuple[Tensor, Tensor, torch.cuda.Event | None] | None = None
        for (average_piece, piece), buffer in zip(pieces, _alternate(buffers), strict=False):
            arrived = buffer[: piece.numel()]
            arrived.copy_(piece, non_blocking=arrived.is_pinned())
            event = None
            if arrived.is_pinned():
                event = torch.cuda.Event()
                event.record(torch.cuda.current_stream(piece.device))
            if waiting is not None:
                self._consume(*waiting, weight=weight)
            waiting = (average_piece, arrived, event)
        if waiting is not None:
            self._consume(*waiting, weight=weight)

    def _consume(self, average: Tensor, arrived: Tensor, event: torch.cuda.Event | None, *, weight: float) -> None:
        if event is not None:
            event.synchronize()
        if arrived.dtype == average.dtype:
            average.lerp_(arrived, weight)
        else:
            self._update_converted(average, arrived, weight)

    def _buffers(self, parameter: Tensor) -> tuple[Tensor, Tensor]:
        buffers = self._staging.get(parameter.dtype)
        if buffers is None:
            pinned = parameter.is_cuda
            first = torch.empty(_TRANSFER_CHUNK, dtype=parameter.dtype, pin_memory=pinned)
            second = torch.empty(_TRANSFER_CHUNK, dtype=parameter.dtype, pin_memory=pinned)
            buffers = self._staging[parameter.dtype] = (first, second)
        return buffers


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
