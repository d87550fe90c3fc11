"""Where live weights lie: only what is certain."""

from __future__ import annotations

from pathlib import Path

import pytest

from onetrainer_ema_select.places import find_places, name_all
from onetrainer_ema_select.tensor_set import Place, StoredTensor

UUID = "0b2f-11"


def stored(file: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, StoredTensor]:
    return {key: StoredTensor(Place(Path(file), key), shape, "float32", 0, 0) for key, shape in shapes.items()}


def places(
    trained: dict[str, tuple[int, ...] | None],
    components: dict[str, dict[str, tuple[int, ...]]] | None = None,
    adapters: dict[str, tuple[int, ...]] | None = None,
    embeddings: dict[str, dict[str, tuple[int, ...]]] | None = None,
) -> dict[str, str]:
    found = find_places(
        trained,
        components={name: stored(name, shapes) for name, shapes in (components or {}).items()},
        adapters=stored("lora", adapters or {}),
        embeddings={name: stored(name, shapes) for name, shapes in (embeddings or {}).items()},
    )
    return {name: f"{place.file}:{place.key}" for name, place in found.items()}


def test_the_folder_of_the_same_name() -> None:
    assert places({"unet.a.w": (2,)}, {"unet": {"a.w": (2,)}, "vae": {"a.w": (2,)}}) == {"unet.a.w": "unet:a.w"}


def test_the_only_folder_that_is_left() -> None:
    # Stable Cascade, and the text encoders of models that have several
    assert places(
        {"prior_prior.a.w": (2,), "prior_text_encoder.t.w": (3,)},
        {"prior": {"a.w": (2,), "b.w": (1,)}, "text_encoder": {"t.w": (3,)}},
    ) == {"prior_prior.a.w": "prior:a.w", "prior_text_encoder.t.w": "text_encoder:t.w"}
    assert places(
        {"text_encoder_1.t.w": (3,), "text_encoder_2.t.w": (3,)},
        {"text_encoder": {"t.w": (3,)}, "text_encoder_2": {"t.w": (3,)}},
    ) == {"text_encoder_1.t.w": "text_encoder:t.w", "text_encoder_2.t.w": "text_encoder_2:t.w"}


def test_two_folders_that_would_do_are_none() -> None:
    assert places({"text_encoder_1.t.w": (3,)}, {"text_encoder": {"t.w": (3,)}, "text_encoder_2": {"t.w": (3,)}}) == {}


def test_two_groups_that_want_the_same_folder_get_none() -> None:
    assert places({"one.t.w": (3,), "two.t.w": (3,)}, {"x": {"t.w": (3,)}}) == {}


def test_what_one_group_takes_is_not_left_for_another() -> None:
    assert places(
        {"one.t.w": (3,), "two.t.w": (3,), "two.u.w": (1,)},
        {"x": {"t.w": (3,)}, "y": {"t.w": (3,), "u.w": (1,)}},
    ) == {"one.t.w": "x:t.w", "two.t.w": "y:t.w", "two.u.w": "y:u.w"}


@pytest.mark.parametrize("held", [{"a.w": (3,), "b.w": (1,)}, {"a.w": (2,)}])
def test_a_shape_or_a_name_that_does_not_fit(held: dict[str, tuple[int, ...]]) -> None:
    trained: dict[str, tuple[int, ...] | None] = {"unet.a.w": (2,), "unet.b.w": (1,)}
    # nor is the folder of another name taken then, which would fit
    assert places(trained, {"unet": held, "other": {"a.w": (2,), "b.w": (1,)}}) == {}


def test_lora() -> None:
    down, up = "down_blocks.0.q.lora_down.weight", "down_blocks.0.q.lora_up.weight"
    assert places(
        {f"unet_lora.{down}": (4, 2), f"unet_lora.{up}": (2, 4), "text_encoder_1_lora.l.lora_up.weight": (8, 8)},
        adapters={
            f"unet.{down}": (4, 2),
            f"unet.{up}": (2, 4),
            "unet.down_blocks.0.q.alpha": (),
            "text_encoder.l.lora_up.weight": (8, 8),
            "bundle_emb.x.clip_l": (2, 2),
        },
    ) == {
        f"unet_lora.{down}": f"lora:unet.{down}",
        f"unet_lora.{up}": f"lora:unet.{up}",
        "text_encoder_1_lora.l.lora_up.weight": "lora:text_encoder.l.lora_up.weight",
    }


def test_a_lora_is_not_looked_for_in_folders_nor_the_other_way() -> None:
    assert places({"unet_lora.a.w": (1,), "unet.b.w": (1,)}, {"unet": {"a.w": (1,)}}, {"unet.b.w": (1,)}) == {}


@pytest.mark.parametrize(
    ("trained", "held", "expected"),
    [
        ({"text_encoder_embedding.vector": (2, 8)}, {"emp_params": (2, 8)}, {"vector": "emp_params"}),
        ({"text_encoder_embedding.vector": None}, {"emp_params": (2, 8)}, {"vector": "emp_params"}),
        ({"text_encoder_embedding.vector": (2, 8)}, {"emp_params": (3, 8)}, {}),
        (
            {"text_encoder_1_embedding.vector": (2, 8), "text_encoder_2_embedding.vector": (2, 12)},
            {"clip_l": (2, 8), "clip_g": (2, 12)},
            {"1_embedding.vector": "clip_l", "2_embedding.vector": "clip_g"},
        ),
        # the vector and the output vector have the same shape: which is which nobody says
        ({"text_encoder_embedding.output_vector": (2, 8)}, {"emp_params": (2, 8), "emp_params_out": (2, 8)}, {}),
        ({"a_embedding.vector": (2, 8), "b_embedding.vector": (2, 8)}, {"clip_l": (2, 8)}, {}),
        ({"text_encoder_embedding.vector": None}, {"clip_l": (2, 8), "clip_g": (2, 12)}, {}),
    ],
)
def test_embeddings(
    trained: dict[str, tuple[int, ...] | None], held: dict[str, tuple[int, ...]], expected: dict[str, str]
) -> None:
    named = {f"embedding.{UUID}.{name}": shape for name, shape in trained.items()}
    found = places(named, embeddings={UUID: held, "other": held})
    assert {name.split(".", 2)[2].removeprefix("text_encoder_"): place for name, place in found.items()} == {
        name if "_" in name else f"embedding.{name}": f"{UUID}:{key}" for name, key in expected.items()
    }


def test_a_trained_name_is_never_given_to_another_tensor() -> None:
    # the file has a tensor of that name, but of another shape: it is not the trained one
    entries = stored("unet", {"a.w": (3,)})
    named = name_all([("unet", entries["a.w"])], {}, {"unet.a.w": (2,)})
    assert list(named) == ["unet/a.w"]


def test_two_tensors_that_would_have_one_name() -> None:
    one, other = stored("a", {"b.c": (1,)})["b.c"], stored("a.b", {"c": (1,)})["c"]
    assert list(name_all([("a", one), ("a.b", other)], {}, {})) == ["a.b.c", "a.b/c"]
