"""Small copies of the samples, for the page itself, and how far the two of a pair differ."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from onetrainer_ema_select.report.samples import Moment, Prompt, Sample

if TYPE_CHECKING:
    # not before a page is made: the command line must start in an environment that is still being made
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

#: Of all copies together, as they stand in the page.
BUDGET_BYTES = 20 * 1024 * 1024
#: So many are shown at most; where there are more, steps are left out evenly.
MOST = 2000

# The longest side in pixels, and JPEG's quality. The first that fits into a picture's share is taken.
_SIZES = ((768, 85), (640, 82), (512, 82), (512, 72), (448, 70), (384, 68), (320, 65), (256, 60), (192, 55), (128, 50))
# Bytes a pixel that a usual picture takes at least. Larger copies are not tried where it would not fit.
_LEAST = 0.1
# What pairs are compared at: fine noise is not what one sees.
_COMPARED = 64


@dataclass(frozen=True)
class Copy:
    """A small copy.

    Attributes:
        data: JPEG in base64.
        size: Width and height of the copy in pixels.
        original: The same of the file.
        look: Levels for comparing, shape (64, 64, 3), 0 to 255.
    """

    data: str
    size: tuple[int, int]
    original: tuple[int, int]
    look: NDArray[np.float32]


Copies = dict[Path, "Copy | None"]


def thinned(prompts: tuple[Prompt, ...], *, most: int = MOST) -> tuple[tuple[Prompt, ...], int]:
    """Leave out steps evenly until there are not too many pictures.

    Returns:
        What is left, each prompt's first and last step among it, and how many samples were left out.
    """
    total = sum(len(moment.samples) for prompt in prompts for moment in prompt.moments)
    if total <= most:
        return prompts, 0
    kept = tuple(
        replace(prompt, moments=_spread(prompt.moments, max(2, int(len(prompt.moments) * most / total))))
        for prompt in prompts
    )
    return kept, total - sum(len(moment.samples) for prompt in kept for moment in prompt.moments)


def _spread(moments: tuple[Moment, ...], count: int) -> tuple[Moment, ...]:
    if len(moments) <= count:
        return moments
    places = {round(index * (len(moments) - 1) / (count - 1)) for index in range(count)}
    return tuple(moments[place] for place in sorted(places))


def make_copies(
    samples: Iterable[Sample], *, budget: int = BUDGET_BYTES, advance: Callable[[], None] = lambda: None
) -> Copies:
    """Make the small copies of pictures, several at a time.

    Args:
        samples: Those that are pictures.
        budget: Bytes for all of them together.
        advance: Called after each.

    Returns:
        The copies by the samples' paths; None for a file that is no picture that can be read.
    """
    files = [sample.path for sample in samples]
    if not files:
        return {}
    share = budget // len(files) * 3 // 4  # base64 takes four bytes for three
    copies: Copies = {}
    # Pillow lets go of the interpreter while it decodes, scales and encodes.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 2), thread_name_prefix="ema_select pictures") as pool:
        for file, copy in zip(files, pool.map(lambda file: _copy(file, share), files), strict=True):
            copies[file] = copy
            advance()
    return copies


def _copy(file: Path, share: int) -> Copy | None:
    import numpy as np
    from PIL import Image

    fitting = [one for one in _SIZES if one[0] ** 2 * _LEAST <= share] or [_SIZES[-1]]
    try:
        with Image.open(file) as opened:
            original = opened.size
            if min(original) < 1:
                return None
            # JPEG is decoded at a fraction of its size, where that is enough
            opened.draft("RGB", (fitting[0][0], fitting[0][0]))
            picture = _flat(opened)
    except Exception:  # noqa: BLE001 - Pillow raises whatever a damaged file leads to; the page says it cannot be read
        return None
    copy, data = picture, b""
    for longest, quality in fitting:
        factor = min(1.0, longest / max(picture.size))
        size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
        if copy.size != size:
            copy = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=1.0)
        buffer = io.BytesIO()
        copy.save(buffer, "JPEG", quality=quality)
        data = buffer.getvalue()
        if len(data) <= share:
            break
    look = np.asarray(copy.resize((_COMPARED, _COMPARED), Image.Resampling.BOX), dtype=np.float32)
    return Copy(base64.b64encode(data).decode("ascii"), copy.size, original, look)


def _flat(picture: Image) -> Image:
    """The picture in RGB, what is transparent on white."""
    from PIL import Image

    if picture.mode == "RGB":
        picture.load()
        return picture.copy()
    if "A" not in picture.mode and "transparency" not in picture.info:
        return picture.convert("RGB")
    upper = picture.convert("RGBA")
    flat = Image.new("RGBA", upper.size, "white")
    flat.alpha_composite(upper)
    return flat.convert("RGB")


def difference(first: Copy | None, second: Copy | None) -> float | None:
    """The mean difference of two pictures, from 0 (the same) to 1 (black and white); None where one is missing."""
    if first is None or second is None:
        return None
    return float(abs(first.look - second.look).mean() / 255)
