from __future__ import annotations

import os

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from onetrainer_ema_select.naming import Suffix, companions, is_paired_name, paired_name, set_suffix, shortened
from onetrainer_ema_select.settings import WeightSet

NAMES = st.text(st.sampled_from("aZ0 ._-中模型é%") | st.characters(exclude_characters="/\\:\x00"), min_size=1)
ENDINGS = st.sampled_from(["", ".safetensors", ".SafeTensors", ".ckpt", ".pt", ".PTH", ".bin", ".sft", ".txt"])
FOLDERS = st.sampled_from(["", "/", "out/", "C:\\models\\", "C:/models/", "\\\\server\\share\\", "a.b/", "模型/x.pt/"])
TAILS = st.sampled_from(["", "/", "\\", "//"])
SUFFIXES: st.SearchStrategy[Suffix] = st.sampled_from(["ema", "non-ema"])


@pytest.mark.parametrize(
    ("destination", "expected"),
    [
        ("model.safetensors", "model-non-ema.safetensors"),
        ("model.ckpt", "model-non-ema.ckpt"),
        ("model.pt", "model-non-ema.pt"),
        ("model.pth", "model-non-ema.pth"),
        ("model.bin", "model-non-ema.bin"),
        ("model.sft", "model-non-ema.sft"),
        ("Model.SafeTensors", "Model-non-ema.SafeTensors"),
        ("model", "model-non-ema"),
        ("model.v1.5", "model.v1.5-non-ema"),
        ("model.v1.5.safetensors", "model.v1.5-non-ema.safetensors"),
        ("model.safetensors.part", "model.safetensors.part-non-ema"),
        ("model.", "model.-non-ema"),
        ("model..safetensors", "model.-non-ema.safetensors"),
        ("model.ckpt.safetensors", "model.ckpt-non-ema.safetensors"),
        ("xsafetensors", "xsafetensors-non-ema"),
        (".safetensors", "-non-ema.safetensors"),
        ("workspace/save/m-save-40-10-0.safetensors", "workspace/save/m-save-40-10-0-non-ema.safetensors"),
        ("out.safetensors/model", "out.safetensors/model-non-ema"),
        ("out/model/", "out/model-non-ema/"),
        ("out/model.safetensors//", "out/model-non-ema.safetensors//"),
        ("C:\\My Models\\m.safetensors", "C:\\My Models\\m-non-ema.safetensors"),
        ("C:\\My Models\\folder\\", "C:\\My Models\\folder-non-ema\\"),
        ("D:/x\\模型 一号.safetensors", "D:/x\\模型 一号-non-ema.safetensors"),
        ("模型。", "模型。-non-ema"),
        ("İ.safetensors", "İ-non-ema.safetensors"),
        ("line\nbreak.pt", "line\nbreak-non-ema.pt"),
        # Roots have no name of their own; these only must not raise or point elsewhere.
        ("", "-non-ema"),
        ("/", "/-non-ema"),
        ("C:\\", "C:\\-non-ema"),
    ],
)
def test_where_the_suffix_goes(destination: str, expected: str) -> None:
    assert paired_name(destination, "non-ema") == expected
    assert paired_name(destination, "ema") == expected.replace("-non-ema", "-ema")
    assert is_paired_name(expected) == (destination, WeightSet.NON_EMA)


def test_suffixes_of_the_sets() -> None:
    assert {weight_set: set_suffix(weight_set) for weight_set in WeightSet} == {
        WeightSet.EMA: "ema",
        WeightSet.NON_EMA: "non-ema",
    }


@pytest.mark.parametrize("name", ["model", "ema", "model_ema.safetensors", "schema.safetensors", "x-EMA.pt"])
def test_other_names_are_no_set(name: str) -> None:
    assert is_paired_name(name) == (name, None)


@given(FOLDERS, NAMES, ENDINGS, TAILS, SUFFIXES)
def test_only_the_last_part_changes_and_the_name_can_be_read_back(
    folder: str, name: str, ending: str, tail: str, suffix: Suffix
) -> None:
    # `x-non` with `-ema` and `x` with `-non-ema` are the same name: documented as read in the second way.
    assume(not name.endswith("-non"))
    destination = f"{folder}{name}{ending}{tail}"
    paired = paired_name(destination, suffix)
    assert len(paired) == len(destination) + 1 + len(suffix)
    assert paired.startswith(f"{folder}{name[:1]}" if not name.startswith(".") else folder)
    assert paired.endswith(f"{ending}{tail}" if ending != ".txt" else f".txt-{suffix}{tail}")
    assert paired.count("/") == destination.count("/")
    base, weight_set = is_paired_name(paired)
    assert base == destination
    assert weight_set is not None
    assert set_suffix(weight_set) == suffix


@given(FOLDERS, NAMES, ENDINGS)
def test_the_two_sets_and_onetrainers_own_name_differ(folder: str, name: str, ending: str) -> None:
    destination = f"{folder}{name}{ending}"
    assert len({destination, paired_name(destination, "ema"), paired_name(destination, "non-ema")}) == 3


def test_a_name_that_could_be_read_in_two_ways_is_the_non_ema_set() -> None:
    assert paired_name("x-non", "ema") == paired_name("x", "non-ema") == "x-non-ema"
    assert is_paired_name("x-non-ema") == ("x", WeightSet.NON_EMA)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("out/model.safetensors", ("out/model.yaml", "out/model.safetensors_embeddings")),
        ("model-non-ema.ckpt", ("model-non-ema.yaml", "model-non-ema.ckpt_embeddings")),
        ("model", ("model.yaml", "model_embeddings")),
        ("模型.v2.safetensors", ("模型.v2.yaml", "模型.v2.safetensors_embeddings")),
        # As the host's own `os.path.splitext` does it, also for an ending that is none.
        ("model.v1", ("model.yaml", "model.v1_embeddings")),
        ("a.b/model", ("a.b/model.yaml", "a.b/model_embeddings")),
    ],
)
def test_companions(name: str, expected: tuple[str, str]) -> None:
    assert companions(name) == expected


@given(FOLDERS, NAMES, ENDINGS.filter(lambda ending: ending not in ("", ".txt")), SUFFIXES)
def test_companions_follow_their_set(folder: str, name: str, ending: str, suffix: Suffix) -> None:
    destination = f"{folder}{name}{ending}"
    assume(os.path.splitext(destination)[1])  # noqa: PTH122 - a name of dots only has no ending for the host
    own, other = companions(destination), companions(paired_name(destination, suffix))
    assert not set(own) & set(other)


@pytest.mark.parametrize("name", ["model.safetensors", "x" * 160, "模" * 40 + "-non-ema.safetensors"])
def test_a_name_that_fits_stays(name: str) -> None:
    assert shortened(name) == name


@pytest.mark.parametrize("stem", ["x" * 240, "模" * 90])
@pytest.mark.parametrize("ending", ["", ".safetensors", "-non-ema.safetensors", "-ema"])
def test_a_name_that_is_too_long_keeps_its_set_and_ending(stem: str, ending: str) -> None:
    short = shortened(stem + ending)
    assert len(short.encode()) <= 160
    assert short.endswith(ending)
    assert stem.startswith(short.removesuffix(ending))
    assert is_paired_name(short)[1] == is_paired_name(stem + ending)[1]
