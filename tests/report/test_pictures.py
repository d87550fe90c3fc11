"""Small copies: within their budget, readable, and compared."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onetrainer_ema_select.report.pictures import difference, make_copies, thinned
from onetrainer_ema_select.report.samples import Sample, find_samples

from .runs import add_samples


def sample(path: Path) -> Sample:
    return Sample(path, "ema", 0, 0, "")


def noise(path: Path, *, size: int = 400, mode: str = "RGB") -> Path:
    levels = np.random.default_rng(3).integers(0, 255, (size, size, 4), dtype=np.uint8)
    Image.fromarray(levels, "RGBA").convert(mode).save(path)
    return path


def test_copies_are_the_pictures(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "c.webp"):
        Image.new("RGB", (1000, 500), (200, 40, 90)).save(tmp_path / name)
    copies = make_copies([sample(tmp_path / name) for name in ("a.png", "b.jpg", "c.webp")])
    for copy in copies.values():
        assert copy is not None
        assert copy.original == (1000, 500)
        shown = Image.open(io.BytesIO(base64.b64decode(copy.data)))
        assert shown.format == "JPEG"
        assert shown.size == copy.size == (768, 384)
        assert np.abs(np.asarray(shown, dtype=int) - (200, 40, 90)).max() < 12


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_every_kind_of_pixel(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "x.tif"
    if mode == "I;16":
        Image.fromarray(np.full((50, 50), 9000, dtype=np.uint16)).save(path)
    else:
        noise(path, size=50, mode=mode)
    assert make_copies([sample(path)])[path] is not None


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    Image.new("RGBA", (10, 10), (0, 0, 0, 0)).save(tmp_path / "x.png")
    copy = make_copies([sample(tmp_path / "x.png")])[tmp_path / "x.png"]
    assert copy is not None
    assert copy.look.min() > 250


@pytest.mark.parametrize("count", [4, 40])
def test_all_together_stay_within_the_budget(tmp_path: Path, count: int) -> None:
    files = [noise(tmp_path / f"{index}.png") for index in range(count)]
    copies = make_copies([sample(file) for file in files], budget=400_000)
    assert sum(len(copy.data) for copy in copies.values() if copy) <= 400_000
    assert all(copies.values())


def test_what_is_no_picture_has_no_copy(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    whole = noise(tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("<svg onload=alert(1)>", encoding="utf-8")
    files = [tmp_path / name for name in ("empty.png", "cut.png", "text.jpg", "gone.png")]
    seen = []
    copies = make_copies([sample(file) for file in files], advance=lambda: seen.append(1))
    assert copies == dict.fromkeys(files)
    assert len(seen) == 4


def test_the_difference_of_two_pictures(tmp_path: Path) -> None:
    for name, level in (("black", 0), ("grey", 51), ("white", 255)):
        Image.new("RGB", (100, 80), (level, level, level)).save(tmp_path / f"{name}.png")
    black, grey, white = make_copies([sample(tmp_path / f"{name}.png") for name in ("black", "grey", "white")]).values()
    assert difference(black, white) == pytest.approx(1, abs=0.01)
    assert difference(black, grey) == pytest.approx(0.2, abs=0.01)
    assert difference(grey, grey) == 0
    assert difference(grey, None) is None


def test_too_many_steps_are_left_out_evenly(tmp_path: Path) -> None:
    add_samples(tmp_path, ["a", "b"], steps=range(0, 400, 20), size=8)
    prompts = find_samples(tmp_path)
    assert thinned(prompts) == (prompts, 0)
    kept, left = thinned(prompts, most=20)
    assert left == 60
    for prompt in kept:
        assert [moment.step for moment in prompt.moments] == [0, 100, 200, 280, 380]
