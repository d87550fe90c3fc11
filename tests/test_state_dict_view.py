from __future__ import annotations

import contextlib
import copy
import itertools
import pickle
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from onetrainer_ema_select import state_dict_view
from onetrainer_ema_select.rounding import StochasticRounding
from onetrainer_ema_select.state_dict_view import Site, StateDictView

DTYPES = [None, torch.float32, torch.bfloat16, torch.float16]


class Block(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"linear": nn.Linear(3, 2), "norm": nn.LayerNorm(2)})
        self.register_buffer("scale", torch.tensor([float(seed)]))


class Tied(nn.Module):
    """Two names for one weight, as in text encoders, and one module at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embedding.weight
        self.block = Block(2)
        self.again = self.block


def sites_of(**modules: nn.Module) -> list[Site]:
    """Every place of every parameter; names by the first place."""
    names: dict[int, str] = {}
    sites = []
    for prefix, module in modules.items():
        for path, owner in module.named_modules(prefix=prefix):
            for attribute, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
                name = names.setdefault(id(parameter), f"{path}.{attribute}")
                sites.append(Site(name, owner, attribute))
    return sites


def track_of(sites: Iterable[Site], *, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Values that no 16-bit format can hold, so that every rounding shows."""
    generator = torch.Generator().manual_seed(7)
    track: dict[str, Tensor] = {}
    for site in sites:
        shape = getattr(site.owner, site.attribute).shape
        track.setdefault(site.name, (torch.randn(shape, generator=generator) + 1e-4).to(dtype))
    return track


def equal(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second)


def as_shown(value: Tensor, live: torch.dtype, output: torch.dtype | None) -> Tensor:
    """What a saver has to see: the value itself where the live weight has its dtype, else rounded once."""
    return value if value.dtype == live else value.to(output or live)


def snapshot(module: nn.Module) -> list[tuple[int, int, int, Tensor]]:
    return [(id(p), p.data_ptr(), p._version, p.detach().clone()) for p in module.parameters()]


def assert_untouched(module: nn.Module, before: list[tuple[int, int, int, Tensor]]) -> None:
    for parameter, (identity, pointer, version, value) in zip(module.parameters(), before, strict=True):
        assert (id(parameter), parameter.data_ptr(), parameter._version) == (identity, pointer, version)
        assert equal(parameter.detach(), value)


def hook_count(module: nn.Module) -> int:
    return sum(len(child._state_dict_hooks) for child in module.modules())


@pytest.mark.parametrize("output", DTYPES)
@pytest.mark.parametrize("model_dtype", [torch.float32, torch.bfloat16])
def test_the_set_is_shown_rounded_once_and_live_weights_are_not_touched(
    output: torch.dtype | None, model_dtype: torch.dtype
) -> None:
    model = Block(5).to(model_dtype)
    sites = sites_of(unet=model)
    track, before = track_of(sites), snapshot(model)
    plain = {key: value.clone() for key, value in model.state_dict().items()}

    with StateDictView(sites, track.get, dtype=output):
        shown = model.state_dict()

    assert list(shown) == list(plain)
    assert equal(shown.pop("scale"), plain["scale"])
    for key, value in shown.items():
        assert equal(value, as_shown(track[f"unet.{key}"], model_dtype, output))
    assert_untouched(model, before)
    assert hook_count(model) == 0
    assert all(equal(value, plain[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("live", "output"), [(torch.bfloat16, torch.float32), *((torch.float32, x) for x in DTYPES)])
def test_nothing_is_copied_where_the_track_has_the_dtype_of_the_live_weight_or_of_the_file(
    live: torch.dtype, output: torch.dtype | None
) -> None:
    model = Block(1).to(live)
    sites = sites_of(unet=model)
    track = track_of(sites)
    with StateDictView(sites, track.get, dtype=output):
        shown = model.state_dict()
    assert shown["inner.linear.weight"].data_ptr() == track["unet.inner.linear.weight"].data_ptr()


def test_the_set_is_seen_through_any_module_above_or_below() -> None:
    outer = nn.Sequential(nn.Identity(), Block(1))
    sites = sites_of(unet=outer)
    track = track_of(sites)
    with StateDictView(sites, track.get, dtype=None):
        above = nn.ModuleDict({"pipeline": outer}).state_dict(prefix="x.")
        below = outer[1].inner["linear"].state_dict()
        kept = outer.state_dict(keep_vars=True)
    assert equal(above["x.pipeline.1.inner.linear.bias"], track["unet.1.inner.linear.bias"])
    assert equal(below["weight"], track["unet.1.inner.linear.weight"])
    assert equal(kept["1.inner.linear.weight"], track["unet.1.inner.linear.weight"])


def test_several_modules_are_shown_at_once() -> None:
    unet, encoder = Block(1), Block(2)
    sites = sites_of(unet=unet, text_encoder=encoder)
    track = track_of(sites)
    with StateDictView(sites, track.get, dtype=None):
        shown = unet.state_dict(), encoder.state_dict()
    assert equal(shown[0]["inner.norm.bias"], track["unet.inner.norm.bias"])
    assert equal(shown[1]["inner.norm.bias"], track["text_encoder.inner.norm.bias"])


def test_what_has_no_value_and_what_is_no_site_stays_live() -> None:
    model = Block(1)
    sites = [site for site in sites_of(unet=model) if site.attribute == "weight"]
    track: dict[str, Tensor | None] = dict(track_of(sites))
    track["unet.inner.norm.weight"] = None
    with StateDictView(sites, track.get, dtype=torch.bfloat16):
        shown = model.state_dict()
    assert equal(shown["inner.linear.weight"], track["unet.inner.linear.weight"])
    assert shown["inner.norm.weight"].data_ptr() == model.inner["norm"].weight.data_ptr()
    assert shown["inner.linear.bias"].data_ptr() == model.inner["linear"].bias.data_ptr()


def test_a_key_that_a_module_leaves_out_stays_out() -> None:
    model = nn.Linear(2, 2)

    def leave_out(module: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
        del state[f"{prefix}bias"]

    model.register_state_dict_post_hook(leave_out)
    sites = sites_of(unet=model)
    with StateDictView(sites, track_of(sites).get, dtype=None):
        assert list(model.state_dict()) == ["weight"]
    assert hook_count(model) == 1  # theirs


@pytest.mark.parametrize("output", DTYPES)
@pytest.mark.parametrize("track_dtype", [torch.float32, torch.bfloat16])
def test_tied_parameters_stay_one_tensor(output: torch.dtype | None, track_dtype: torch.dtype) -> None:
    model = Tied()
    sites = sites_of(te=model)
    track, before = track_of(sites, dtype=track_dtype), snapshot(model)
    with StateDictView(sites, track.get, dtype=output):
        shown, once_more = model.state_dict(), model.state_dict()
    assert equal(shown["head.weight"], as_shown(track["te.embedding.weight"], torch.float32, output))
    for state in (shown, once_more):
        assert state["head.weight"].data_ptr() == state["embedding.weight"].data_ptr()
    for leaf in ("linear.weight", "norm.bias"):  # the same module at two places
        assert equal(shown[f"block.inner.{leaf}"], shown[f"again.inner.{leaf}"])
        assert equal(shown[f"block.inner.{leaf}"], as_shown(track[f"te.block.inner.{leaf}"], torch.float32, output))
    assert_untouched(model, before)


# -- copies that savers make ------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", DTYPES)
@pytest.mark.parametrize("model_dtype", [torch.float32, torch.bfloat16])
def test_a_deep_copy_that_a_saver_converts_shows_the_track_rounded_once(
    output: torch.dtype | None, model_dtype: torch.dtype
) -> None:
    model = Block(1).to(model_dtype)
    sites = sites_of(unet=model)
    track, before = track_of(sites), snapshot(model)
    with StateDictView(sites, track.get, dtype=output):
        pipeline = copy.deepcopy(model)
        if output is not None:
            pipeline.to(dtype=output)
        written = pipeline.state_dict()
    for key, value in written.items():
        if key != "scale":
            assert equal(value, track[f"unet.{key}"].to(output or model_dtype))
    assert_untouched(model, before)


@pytest.mark.parametrize("output", DTYPES)
@pytest.mark.parametrize("model_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_rounded_in_the_savers_place_is_not_rounded_again(
    output: torch.dtype | None, model_dtype: torch.dtype
) -> None:
    model = Tied().to(model_dtype)
    sites = sites_of(te=model)
    track, before = track_of(sites), snapshot(model)
    rule = StochasticRounding("a-run", 3)
    target = output or model_dtype
    ways = (lambda m: m, copy.deepcopy, lambda m: copy.deepcopy(m) if output is None else copy.deepcopy(m).to(output))
    for take in ways:
        with StateDictView(sites, track.get, dtype=output, rounding=rule):
            shown = take(model).state_dict()
        assert shown["head.weight"].data_ptr() == shown["embedding.weight"].data_ptr()
        for site in sites:
            value = shown["embedding.weight" if site.name == "te.embedding.weight" else site.name.removeprefix("te.")]
            assert equal(value.to(target), rule(site.name, track[site.name], target))
    assert_untouched(model, before)


def test_the_live_weights_are_shown_rounded_or_as_they_are() -> None:
    model = Block(1)
    model.inner["norm"].bfloat16()
    sites = sites_of(unet=model)
    live = {site.name: getattr(site.owner, site.attribute) for site in sites}
    before, rule = snapshot(model), StochasticRounding("a-run", 3)
    with StateDictView(sites, live.get, dtype=torch.bfloat16, rounding=rule):
        shown = model.state_dict()
    assert equal(
        shown["inner.linear.weight"], rule("unet.inner.linear.weight", live["unet.inner.linear.weight"], torch.bfloat16)
    )
    assert not equal(shown["inner.linear.weight"], live["unet.inner.linear.weight"].bfloat16())
    assert shown["inner.norm.weight"].data_ptr() == live["unet.inner.norm.weight"].data_ptr()
    assert_untouched(model, before)


def test_a_converted_copy_is_written_in_place() -> None:
    model = Block(1).bfloat16()
    sites = sites_of(unet=model)
    track = track_of(sites)
    with StateDictView(sites, track.get, dtype=torch.float32):
        pipeline = copy.deepcopy(model).float()
        pointers = [parameter.data_ptr() for parameter in pipeline.parameters()]
        written = pipeline.state_dict()
    assert [written[name].data_ptr() for name, _ in pipeline.named_parameters()] == pointers
    assert equal(pipeline.inner["linear"].weight.detach(), track["unet.inner.linear.weight"])


def test_a_copy_of_another_dtype_than_the_output_is_not_rounded_on_the_way() -> None:
    # The saver converts after state_dict() here: through bfloat16 the float16 file would be rounded twice.
    model = Block(1).bfloat16()
    sites = sites_of(unet=model)
    track = track_of(sites)
    with StateDictView(sites, track.get, dtype=torch.float16):
        written = {key: value.to(torch.float16) for key, value in copy.deepcopy(model).state_dict().items()}
    for name, value in track.items():
        assert equal(written[name.removeprefix("unet.")], value.half())


def test_the_file_of_a_bfloat16_model_in_float32_is_the_track_exactly(tmp_path: Path) -> None:
    model = Block(1).bfloat16()
    sites = sites_of(unet=model)
    track = track_of(sites)
    for number, take in enumerate((lambda m: m, copy.deepcopy, lambda m: copy.deepcopy(m).float())):
        file = tmp_path / f"{number}.safetensors"
        with StateDictView(sites, track.get, dtype=torch.float32):
            save_file(take(model).state_dict(), file)
        found = load_file(file)
        assert all(equal(found[name.removeprefix("unet.")], value) for name, value in track.items())


def test_tied_parameters_of_a_copy_stay_one_tensor() -> None:
    model = Tied().bfloat16()
    sites = sites_of(te=model)
    track = track_of(sites)
    for output in DTYPES:
        with StateDictView(sites, track.get, dtype=output):
            pipeline = copy.deepcopy(model)
            shown = (pipeline if output is None else pipeline.to(output)).state_dict()
        assert shown["head.weight"].data_ptr() == shown["embedding.weight"].data_ptr()
        assert equal(shown["head.weight"], track["te.embedding.weight"].to(output or torch.bfloat16))


def test_a_shallow_copy_shares_the_live_weights_and_does_not_let_them_be_written() -> None:
    model = nn.Linear(3, 2)
    sites = sites_of(unet=model)
    track, before = track_of(sites), snapshot(model)
    with StateDictView(sites, track.get, dtype=None):
        shown = copy.copy(model).state_dict()
    assert equal(shown["weight"], track["unet.weight"])
    assert_untouched(model, before)


def test_the_track_itself_is_only_read() -> None:
    model = Tied()
    sites = sites_of(te=model)
    track = track_of(sites)
    before = {name: value.clone() for name, value in track.items()}
    with StateDictView(sites, track.get, dtype=None):
        copy.deepcopy(model).state_dict()
        model.state_dict()
    assert all(equal(value, before[name]) for name, value in track.items())


def test_a_copy_that_outlives_the_view_shows_itself() -> None:
    model = Block(1)
    sites = sites_of(unet=model)
    with StateDictView(sites, track_of(sites).get, dtype=None):
        kept = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in kept.parameters():
            parameter.fill_(3.0)
    for state in (kept.state_dict(), copy.deepcopy(kept).state_dict()):
        assert all(bool((value == 3.0).all()) for key, value in state.items() if key != "scale")


def test_a_second_view_follows_the_first() -> None:
    model = Block(1)
    sites = sites_of(unet=model)
    first, second = track_of(sites), {name: value + 1 for name, value in track_of(sites).items()}
    for track in (first, second, first):
        with StateDictView(sites, track.get, dtype=None):
            assert equal(model.state_dict()["inner.linear.weight"], track["unet.inner.linear.weight"])


# -- objects without a state_dict -----------------------------------------------------------------------------


@pytest.mark.parametrize("output", DTYPES)
def test_an_attribute_is_exchanged_for_the_time(output: torch.dtype | None) -> None:
    original, other = torch.ones(3, dtype=torch.bfloat16, requires_grad=True), torch.zeros(3)
    embedding = SimpleNamespace(vector=original, output_vector=other)
    value = torch.tensor([0.1, 0.2, 0.3])
    sites = [
        Site("embedding.a.vector", embedding, "vector"),
        Site("embedding.a.output_vector", embedding, "output_vector"),
    ]
    with StateDictView(sites, {"embedding.a.vector": value}.get, dtype=output):
        assert equal(embedding.vector, value.to(output or torch.bfloat16))
        assert not embedding.vector.requires_grad
        assert embedding.output_vector is other
    assert embedding.vector is original
    assert embedding.output_vector is other
    assert original.tolist() == [1.0, 1.0, 1.0]


def test_an_attribute_is_rounded_in_the_savers_place() -> None:
    embedding = SimpleNamespace(vector=torch.ones(300))
    value, rule = torch.linspace(0.1, 0.2, 300), StochasticRounding("a-run", 3)
    sites = [Site("embedding.a.vector", embedding, "vector")]
    with StateDictView(sites, {"embedding.a.vector": value}.get, dtype=torch.bfloat16, rounding=rule):
        assert equal(embedding.vector, rule("embedding.a.vector", value, torch.bfloat16))
        assert not equal(embedding.vector, value.bfloat16())


def test_everything_is_undone_after_an_error_inside() -> None:
    model, embedding = Block(1), SimpleNamespace(vector=torch.ones(2))
    original = embedding.vector
    sites = [*sites_of(unet=model), Site("vector", embedding, "vector")]
    track = {**track_of(sites), "vector": torch.zeros(2)}
    with pytest.raises(RuntimeError, match="disk full"), StateDictView(sites, track.get, dtype=None):
        raise RuntimeError("disk full")
    assert hook_count(model) == 0
    assert embedding.vector is original


def test_a_value_that_cannot_be_had_leaves_nothing_behind() -> None:
    model, embedding = Block(1), SimpleNamespace(vector=torch.ones(2), output_vector=torch.ones(2))
    originals = dict(vars(embedding))
    sites = [*sites_of(unet=model), Site("a", embedding, "vector"), Site("b", embedding, "output_vector")]

    def value_of(name: str) -> Tensor:
        if name == "b":
            raise RuntimeError("out of memory")
        return torch.zeros(2)

    with pytest.raises(RuntimeError, match="out of memory"), StateDictView(sites, value_of, dtype=None):
        pytest.fail("entered")
    assert all(getattr(embedding, name) is value for name, value in originals.items())
    assert hook_count(model) == 0


# -- interrupts ------------------------------------------------------------------------------------------------


class Interrupt:
    """Raises KeyboardInterrupt at one line of the module under test, or at one opcode."""

    def __init__(self, at: int, event: str) -> None:
        self.at = at
        self.event = event
        self.seen = 0

    def __enter__(self) -> Interrupt:
        self._previous = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._previous)

    def _trace(self, frame: FrameType, kind: str, _: object) -> Any:
        if frame.f_code.co_filename != state_dict_view.__file__:
            return None
        frame.f_trace_opcodes = self.event == "opcode"
        if kind == self.event:
            self.seen += 1
            if self.seen == self.at:
                raise KeyboardInterrupt
        return self._trace


def play(interrupt: Interrupt | None) -> tuple[StateDictView, nn.Module, SimpleNamespace, Mapping[str, Any]]:
    model, embedding = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 2)), SimpleNamespace(vector=torch.ones(2))
    originals = {"vector": embedding.vector, "parameters": snapshot(model)}
    sites = [*sites_of(unet=model), Site("vector", embedding, "vector")]
    view = StateDictView(sites, track_of(sites).get, dtype=None)
    with contextlib.suppress(KeyboardInterrupt), interrupt or contextlib.nullcontext(), view:
        model.state_dict()
        copy.deepcopy(model).state_dict()
    return view, model, embedding, originals


@pytest.mark.parametrize("event", ["line", "opcode"])
def test_an_interrupt_anywhere_is_undone_by_restoring_again(event: str) -> None:
    for at in itertools.count(1):
        interrupt = Interrupt(at, event)
        view, model, embedding, originals = play(interrupt)

        view.restore()

        assert hook_count(model) == 0
        assert embedding.vector is originals["vector"]
        assert_untouched(model, originals["parameters"])
        assert all(equal(model.state_dict()[name], p.detach()) for name, p in model.named_parameters())
        pickle.loads(pickle.dumps(model))  # nothing of ours is left that could not be pickled
        if interrupt.seen < at:
            break
    assert at > 60 or event == "opcode"


def test_an_interrupt_while_entering_is_undone_at_once() -> None:
    # No __exit__ follows an __enter__ that did not come to its end.
    entering = {StateDictView.__enter__, StateDictView._install, StateDictView._hook, StateDictView._replace_attribute}
    codes = {function.__code__ for function in entering}

    class WhileEntering(Interrupt):
        def _trace(self, frame: FrameType, kind: str, _: object) -> Any:
            caller = frame.f_back
            if frame.f_code in codes and caller is not None:
                return super()._trace(frame, kind, _)
            return None

    for at in itertools.count(1):
        interrupt = WhileEntering(at, "line")
        _, model, embedding, originals = play(interrupt)
        assert hook_count(model) == 0
        assert embedding.vector is originals["vector"]
        if interrupt.seen < at:
            break
    assert at > 20
