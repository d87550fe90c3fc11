"""Which tensors belong together, whatever their names begin with; and what never does."""

from __future__ import annotations

import time

import pytest
import torch

from onetrainer_ema_select.errors import NamesError
from onetrainer_ema_select.name_matching import Match, match
from onetrainer_ema_select.tensor_set import MappedTensor, TensorSet


def as_set(*names: str, shapes: dict[str, tuple[int, ...]] | None = None) -> TensorSet:
    """Every name has a shape that comes from its last two parts, so that those which belong together agree."""
    named = {}
    for name in names:
        length = sum(map(ord, "".join(name.split(".")[-2:]))) % 97
        named[name] = MappedTensor(torch.zeros((shapes or {}).get(name, (length,))))
    return TensorSet(named)


def pairs(a: TensorSet, b: TensorSet, *, exact: bool = False) -> Match:
    return match(a, b, called=("A", "B"), exact=exact)


def test_equal_names() -> None:
    found = pairs(as_set("x.a", "x.b", "only.a"), as_set("x.b", "x.a", "only.b"))
    assert found.pairs == (("x.a", "x.a"), ("x.b", "x.b"))
    assert (found.only_a, found.only_b, found.prefixes) == (("only.a",), ("only.b",), ())
    assert not found.complete
    assert pairs(as_set("x.a"), as_set("x.a")).complete


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("", "unet."),
        ("model.diffusion_model.", "unet."),
        ("diffusion_model.", "transformer."),
        ("unet_lora.", "unet."),
        ("a.b.c.", ""),
    ],
)
def test_what_names_begin_with(one: str, other: str) -> None:
    rests = [f"{block}.{number}.{leaf}" for block in ("down", "up") for number in (0, 1) for leaf in ("w", "b")]
    a, b = as_set(*(one + rest for rest in rests)), as_set(*(other + rest for rest in rests))
    found = pairs(a, b)
    assert found.pairs == tuple((one + rest, other + rest) for rest in rests)
    assert found.prefixes == ((one, other),)
    assert found.complete
    assert {pair[::-1] for pair in pairs(b, a).pairs} == set(found.pairs)


def test_a_folder_of_parts_against_one_file() -> None:
    unet, text = ["in.w", "down.0.w", "out.w"], ["tokens.w", "layers.0.q", "layers.1.q"]
    a = as_set(*(f"unet.{rest}" for rest in unet), *(f"text_encoder.{rest}" for rest in text), "vae.scale.w")
    b = as_set(*(f"model.diffusion_model.{rest}" for rest in unet), *(f"cond_stage_model.{rest}" for rest in text))
    found = pairs(a, b)
    assert dict(found.pairs) == {
        **{f"unet.{rest}": f"model.diffusion_model.{rest}" for rest in unet},
        **{f"text_encoder.{rest}": f"cond_stage_model.{rest}" for rest in text},
    }
    assert (found.only_a, found.only_b) == (("vae.scale.w",), ())
    assert set(found.prefixes) == {("unet.", "model.diffusion_model."), ("text_encoder.", "cond_stage_model.")}


def test_two_parts_that_would_do_are_none() -> None:
    text = ["tokens.w", "layers.0.q"]
    a = as_set(*(f"text_encoder.{rest}" for rest in text), *(f"text_encoder_2.{rest}" for rest in text), "same.w")
    found = pairs(a, as_set(*text, "same.w"))
    assert found.pairs == (("same.w", "same.w"),)
    assert len(found.only_a) == 4


def test_what_is_sure_is_found_beside_what_is_not() -> None:
    text = ["tokens.w", "layers.0.q", "layers.1.q"]
    a = as_set(*(f"text_encoder.{rest}" for rest in text), *(f"text_encoder_2.{rest}" for rest in text), "vae.in.w")
    found = pairs(a, as_set(*(f"cond.{rest}" for rest in text), "first_stage.in.w"))
    assert found.pairs == (("vae.in.w", "first_stage.in.w"),)
    assert (len(found.only_a), len(found.only_b)) == (6, 3)


def test_shapes_tell_two_parts_apart() -> None:
    a = as_set("one.t.w", "two.t.w", shapes={"one.t.w": (1,), "two.t.w": (2,)})
    assert pairs(a, as_set("t.w", shapes={"t.w": (2,)})).pairs == (("two.t.w", "t.w"),)


def test_blocks_of_different_numbers_never_belong_together() -> None:
    # LoRAs of different blocks: all that is behind the number is the same
    a = as_set("unet.down.0.q.w", "unet.down.0.k.w")
    with pytest.raises(NamesError):
        pairs(a, as_set("unet.up.1.q.w", "unet.up.1.k.w"))
    with pytest.raises(NamesError):
        pairs(a, as_set("unet.down.1.q.w", "unet.down.1.k.w"))
    with pytest.raises(NamesError):
        pairs(a, as_set("unet.up.0.q.w", "unet.up.0.k.w"))


def test_a_minority_that_agrees_by_chance_is_left_alone() -> None:
    # of the same name and shape behind another beginning, but so is nothing else of either part
    a = as_set("same.a", "x.norm.w", *(f"x.one.{number}" for number in range(9)))
    b = as_set("same.a", "y.norm.w", *(f"y.other.{number}" for number in range(9)))
    assert pairs(a, b).pairs == (("same.a", "same.a"),)


def test_exact() -> None:
    with pytest.raises(NamesError):
        pairs(as_set("unet.x.a"), as_set("x.a"), exact=True)


def test_other_shapes() -> None:
    a, b = (as_set("x.a", "x.b", shapes={"x.a": (length,), "x.b": (3,)}) for length in (1, 2))
    found = pairs(a, b)
    assert (found.pairs, found.reshaped) == ((("x.b", "x.b"),), (("x.a", "x.a"),))
    assert not found.complete


def test_nothing_in_common() -> None:
    with pytest.raises(NamesError) as caught:
        pairs(as_set("lora_unet_a.alpha", "b.c"), as_set("unet.a.alpha"))
    assert str(caught.value) == (
        "No tensor of A is in B: the one has names such as lora_unet_a.alpha, b.c; the other such as unet.a.alpha. "
        "Compare two models in the same format: export both with `onetrainer-ema-select export` and the same --format."
    )
    with pytest.raises(NamesError, match="has names such as no tensors; the other"):
        pairs(as_set(), as_set("a.b"))


def test_the_same_names_and_no_shape_in_common() -> None:
    a, b = (as_set("x.a", shapes={"x.a": shape}) for shape in ((4, 8), (16, 8)))
    with pytest.raises(NamesError) as caught:
        pairs(a, b)
    assert str(caught.value) == (
        "A and B have 1 names in common, but no tensor of the same shape: x.a is (4, 8) in the one and (16, 8) in the "
        "other. LoRAs must have the same rank, models the same architecture, to be compared: name two that have."
    )


def test_very_long_names_are_cut_in_messages() -> None:
    with pytest.raises(NamesError) as caught:
        pairs(as_set("x" * 500), as_set("y.a"))
    assert "x" * 100 + "…;" in str(caught.value)


def test_thousands_of_flat_names_take_no_time() -> None:
    layers = [f"lora_unet_{block}_{number}" for block in ("down", "mid", "up") for number in range(700)]
    a = as_set(*(f"{layer}.{leaf}.weight" for layer in layers for leaf in ("lora_down", "lora_up")))
    b = as_set(
        *(f"{layer.replace('unet', 'other')}.{leaf}.weight" for layer in layers for leaf in ("lora_down", "lora_up"))
    )
    began = time.perf_counter()
    with pytest.raises(NamesError):
        pairs(a, b)
    assert time.perf_counter() - began < 5
