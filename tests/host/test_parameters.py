from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from onetrainer_ema_select.errors import NamesError
from onetrainer_ema_select.host.parameters import find_parameters, name_parameters
from onetrainer_ema_select.state_dict_view import StateDictView


class Checkpointed(nn.Module):
    """As OneTrainer wraps a block for gradient checkpointing: the block becomes the child `checkpoint`."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.checkpoint = block


class Wrapper:
    """As OneTrainer's LoRA wrapper: no module itself, adapters by name."""

    def __init__(self, **adapters: Any) -> None:
        self.lora_modules = adapters


def adapter(*, rank: int = 2) -> nn.Module:
    module = nn.Module()
    module.lora_down, module.lora_up = nn.Linear(4, rank, bias=False), nn.Linear(rank, 4, bias=False)
    return module


def test_weights_of_modules_are_named_by_where_they_hang() -> None:
    model = SimpleNamespace(unet=nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), prior=nn.Linear(1, 1), name="x", n=3)
    parameters = [*model.unet.parameters(), *model.prior.parameters()]
    names, sites = name_parameters(model, parameters)
    assert names == ("unet.0.weight", "unet.0.bias", "unet.1.weight", "unet.1.bias", "prior.weight", "prior.bias")
    found = {site.name: (site.owner, site.attribute) for site in sites}
    assert found["unet.1.bias"] == (model.unet[1], "bias")
    assert len(sites) == 6


def test_names_are_in_the_order_of_the_list_and_of_what_is_trained_only() -> None:
    model = SimpleNamespace(b=nn.Linear(1, 1), a=nn.Linear(1, 1))
    names, sites = name_parameters(model, [model.b.bias, model.a.weight])
    assert names == ("b.bias", "a.weight")
    assert {site.name for site in sites} == {"b.bias", "a.weight"}


def test_wrappers_of_checkpointing_and_compilation_do_not_enter_the_name() -> None:
    plain = SimpleNamespace(unet=nn.Sequential(nn.Linear(1, 1)))
    wrapped = SimpleNamespace(unet=nn.Sequential(Checkpointed(nn.Linear(1, 1))))
    compiled = nn.Module()
    compiled._orig_mod = nn.Sequential(nn.Linear(1, 1))
    for model in (plain, wrapped, SimpleNamespace(unet=compiled)):
        names, _ = name_parameters(model, list(model.unet.parameters()))
        assert names == ("unet.0.weight", "unet.0.bias")


def test_adapters_are_named_by_their_key_also_where_some_are_fused() -> None:
    fused = SimpleNamespace(module=adapter())
    model = SimpleNamespace(unet=None, unet_lora=Wrapper(**{"down.q": adapter(), "down.qkv": fused, "dummy": object()}))
    wrapper = model.unet_lora.lora_modules
    parameters = [*wrapper["down.q"].parameters(), *fused.module.parameters()]
    names, sites = name_parameters(model, parameters)
    assert names == (
        "unet_lora.down.q.lora_down.weight",
        "unet_lora.down.q.lora_up.weight",
        "unet_lora.down.qkv.lora_down.weight",
        "unet_lora.down.qkv.lora_up.weight",
    )
    assert all(isinstance(site.owner, nn.Linear) for site in sites)


def test_embeddings_are_named_by_their_own_number() -> None:
    def part(uuid: str, **vectors: Any) -> SimpleNamespace:
        return SimpleNamespace(uuid=uuid, **vectors)

    first = SimpleNamespace(
        text_encoder_1_embedding=part("u1", vector=nn.Parameter(torch.ones(2)), output_vector=None),
        text_encoder_2_embedding=part(
            "u1", vector=nn.Parameter(torch.ones(3)), output_vector=nn.Parameter(torch.ones(4))
        ),
        placeholder="<x>",
    )
    second = SimpleNamespace(text_encoder_1_embedding=part("u2", vector=nn.Parameter(torch.ones(5))))
    model = SimpleNamespace(embedding=first, additional_embeddings=[second, "no embedding"])
    parameters = [
        first.text_encoder_1_embedding.vector,
        first.text_encoder_2_embedding.vector,
        first.text_encoder_2_embedding.output_vector,
        second.text_encoder_1_embedding.vector,
    ]
    names, sites = name_parameters(model, parameters)
    assert names == (
        "embedding.u1.text_encoder_1_embedding.vector",
        "embedding.u1.text_encoder_2_embedding.vector",
        "embedding.u1.text_encoder_2_embedding.output_vector",
        "embedding.u2.text_encoder_1_embedding.vector",
    )
    with StateDictView(sites, lambda name: torch.zeros(1), dtype=None):
        assert second.text_encoder_1_embedding.vector.tolist() == [0.0]
    assert second.text_encoder_1_embedding.vector is parameters[3]


def test_a_tied_weight_has_one_name_and_all_its_places() -> None:
    encoder = nn.Module()
    encoder.embedding, encoder.head = nn.Embedding(3, 2), nn.Linear(2, 3, bias=False)
    encoder.head.weight = encoder.embedding.weight
    model = SimpleNamespace(text_encoder=encoder, alias=encoder)
    names, sites = name_parameters(model, [encoder.embedding.weight])
    assert names == ("alias.embedding.weight",)
    assert [(site.name, site.owner) for site in sites] == [
        ("alias.embedding.weight", encoder.embedding),
        ("alias.embedding.weight", encoder.head),
    ]


def test_a_weight_that_is_nowhere_in_the_model() -> None:
    model = SimpleNamespace(unet=nn.Linear(2, 2))
    with pytest.raises(NamesError) as caught:
        name_parameters(model, [model.unet.weight, nn.Parameter(torch.ones(4, 2)), nn.Parameter(torch.ones(1))])
    assert str(caught.value) == (
        "2 of 3 trained weights were not found in the model (the first is number 1, shape (4, 2)). Please report this "
        "with the model type and training method, and train without the plugin: set ema_select.enabled=false."
    )


def test_a_weight_that_is_listed_twice() -> None:
    model = SimpleNamespace(unet=nn.Linear(2, 2))
    with pytest.raises(NamesError) as caught:
        name_parameters(model, [model.unet.weight, model.unet.bias, model.unet.weight])
    assert str(caught.value) == (
        "OneTrainer lists 3 weights, but only 2 different ones. The plugin cannot tell them apart; please report this "
        "with the model type, and train without it: set ema_select.enabled=false."
    )


def test_two_weights_that_only_differ_by_a_wrapper() -> None:
    both = Checkpointed(nn.Linear(1, 1, bias=False))
    both.weight = nn.Parameter(torch.ones(1))
    with pytest.raises(NamesError) as caught:
        name_parameters(SimpleNamespace(unet=both), list(both.parameters()))
    assert str(caught.value) == (
        "Two trained weights would both be called 'unet.weight'. Please report this with the model type and training "
        "method, and train without the plugin: set ema_select.enabled=false."
    )
    assert caught.value.key == "unet.weight"


def test_weights_are_found_by_name_whether_they_train_or_not() -> None:
    model = SimpleNamespace(unet=nn.Linear(2, 2), lora=Wrapper(a=adapter()))
    model.unet.requires_grad_(False)
    names = ["unet.bias", "lora.a.lora_up.weight", "unet.gone"]
    found = find_parameters(model, names)
    assert found["unet.bias"] is model.unet.bias
    assert found["lora.a.lora_up.weight"] is model.lora.lora_modules["a"].lora_up.weight
    assert list(found) == ["lora.a.lora_up.weight", "unet.bias"]
    assert find_parameters(model, ()) == {}
