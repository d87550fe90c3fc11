from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import onetrainer_ema_select
from onetrainer_ema_select.host import seams
from onetrainer_ema_select.host.seams import (
    CLOUD_SEAMS,
    EXPORT_SEAMS,
    SEAMS,
    Seam,
    SeamResult,
    check_live,
    check_source,
    mismatches,
)

CREATE = "modules.util.create"


def parameters_of(seam: Seam) -> str:
    return ", ".join(seam.parameters)


def write_host(root: Path, changes: dict[str, str | None] | None = None) -> Path:
    """Write a host that has every seam as expected, but for some whose source is given (None: left out).

    A changed function is written as it stands, `def` and all; `{indent}` must begin each of its lines.
    """
    changes = changes or {}
    assert set(changes) <= {seam.label for seam in SEAMS}
    files: dict[str, dict[str, list[str]]] = {}
    for seam in SEAMS:
        *owner, name = seam.name.split(".")
        indent = "    " if owner else ""
        source = f"{{indent}}def {name}({parameters_of(seam)}): ...\n"
        if seam.label in changes:
            source = changes[seam.label] or ""
        elif "self" not in seam.parameters and owner:
            source = "{indent}@staticmethod\n" + source
        files.setdefault(seam.module, {}).setdefault(owner[0] if owner else "", []).append(
            source.replace("{indent}", indent)
        )
    for module, owners in files.items():
        text = "".join(owners.pop("", []))
        for owner, functions in owners.items():
            text += f"class {owner}:\n    pass\n{''.join(functions)}"
        path = root.joinpath(*module.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def only(results: tuple[SeamResult, ...], label: str) -> SeamResult:
    (found,) = [result for result in results if result.seam.label == label]
    return found


@pytest.fixture
def as_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder from which `modules` is imported, and nothing of it left behind."""

    def forget() -> dict[str, object]:
        names = [name for name in sys.modules if name.split(".")[0] == "modules"]
        return {name: sys.modules.pop(name) for name in names}

    before = forget()
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    forget()
    sys.modules.update(before)


def test_a_host_as_expected(tmp_path: Path) -> None:
    results = check_source(write_host(tmp_path))
    assert tuple(result.seam for result in results) == SEAMS
    assert all(result.ok for result in results)
    assert mismatches(results) == ()
    for result in results:
        assert result.found == f"({parameters_of(result.seam)})"
        assert result.sentence == f"{result.seam.label}: found {result.found}, as expected"


def test_the_table_names_each_place_once() -> None:
    labels = [seam.label for seam in SEAMS]
    assert len(labels) == len(set(labels))
    assert all(seam.use and seam.module.startswith("modules.") for seam in SEAMS)
    # The trainer calls these by keyword or by position, so the order counts as well as the names.
    assert only(tuple(SeamResult(s, None, True, "") for s in SEAMS), f"{CREATE}:create_ema").seam.parameters == (
        "parameters",
        "state_dict",
        "config",
    )


SAVE = "modules.modelSaver.BaseModelSaver:BaseModelSaver.save"
EMA_STEP = "modules.module.EMAModule:EMAModuleWrapper.step"
SAMPLE = "modules.modelSampler.BaseModelSampler:BaseModelSampler.sample"
DEFAULTS = "modules.util.config.TrainConfig:TrainConfig.default_values"
CREATE_EMA = f"{CREATE}:create_ema"

EXPECTED = "expected (parameters, state_dict, config)"

# What became of a seam, what the host has now, whether that will do, and what is said.
CHANGES: dict[str, tuple[str, str | None, bool, str]] = {
    "missing": (CREATE_EMA, None, False, f"{EXPECTED}, found nothing of that name"),
    "renamed": (
        CREATE_EMA,
        "{indent}def make_ema(parameters, state_dict, config): ...\n",
        False,
        f"{EXPECTED}, found nothing of that name",
    ),
    "in a branch, where nobody can tell": (
        CREATE_EMA,
        "if True:\n    def create_ema(parameters, state_dict, config): ...\n",
        False,
        f"{EXPECTED}, found nothing of that name",
    ),
    "no function any more": (
        CREATE_EMA,
        "create_ema = None\n",
        False,
        f"{EXPECTED}, found nothing of that name",
    ),
    "a parameter renamed": (
        CREATE_EMA,
        "{indent}def create_ema(params, state_dict, config): ...\n",
        False,
        f"found (params, state_dict, config), {EXPECTED}",
    ),
    "two parameters exchanged": (
        CREATE_EMA,
        "{indent}def create_ema(state_dict, parameters, config): ...\n",
        False,
        f"found (state_dict, parameters, config), {EXPECTED}",
    ),
    "a parameter gone": (
        CREATE_EMA,
        "{indent}def create_ema(parameters, state_dict): ...\n",
        False,
        f"found (parameters, state_dict), {EXPECTED}",
    ),
    "one more at the front": (
        CREATE_EMA,
        "{indent}def create_ema(model, parameters, state_dict, config): ...\n",
        False,
        f"found (model, parameters, state_dict, config), {EXPECTED}",
    ),
    "one more without a default": (
        CREATE_EMA,
        "{indent}def create_ema(parameters, state_dict, config, device): ...\n",
        False,
        f"found (parameters, state_dict, config, device), {EXPECTED}",
    ),
    "one more with a default": (
        CREATE_EMA,
        "{indent}def create_ema(parameters, state_dict, config, device=None): ...\n",
        True,
        "found (parameters, state_dict, config, device), as expected",
    ),
    "two more, one without a default": (
        CREATE_EMA,
        "{indent}def create_ema(parameters, state_dict, config, device, dtype=None): ...\n",
        False,
        f"found (parameters, state_dict, config, device, dtype), {EXPECTED}",
    ),
    "defaults for what we pass": (
        CREATE_EMA,
        "{indent}def create_ema(parameters, state_dict=None, config=None): ...\n",
        True,
        "found (parameters, state_dict, config), as expected",
    ),
    "a keyword without a default": (
        CREATE_EMA,
        "{indent}def create_ema(parameters, state_dict, config, *, device): ...\n",
        False,
        f"found (parameters, state_dict, config, *, device), {EXPECTED}",
    ),
    "a keyword with a default": (
        CREATE_EMA,
        "{indent}def create_ema(parameters, state_dict, config, *, device=None): ...\n",
        True,
        "found (parameters, state_dict, config), as expected",
    ),
    "anything more": (
        CREATE_EMA,
        "{indent}def create_ema(parameters, state_dict, config, *args, **kwargs): ...\n",
        True,
        "found (parameters, state_dict, config), as expected",
    ),
    "the last of two definitions counts": (
        CREATE_EMA,
        "{indent}def create_ema(parameters, state_dict, config): ...\n{indent}def create_ema(parameters): ...\n",
        False,
        f"found (parameters), {EXPECTED}",
    ),
    "a method's parameter renamed": (
        EMA_STEP,
        "{indent}def step(self, parameters, step): ...\n",
        False,
        "found (self, parameters, step), expected (self, parameters, optimization_step)",
    ),
    "a method with types, a default and a decorator": (
        EMA_STEP,
        "{indent}def step(self, parameters: 'list[int]', optimization_step: int, grad: bool = False) -> None: ...\n",
        True,
        "found (self, parameters, optimization_step, grad), as expected",
    ),
    "a method missing": (
        EMA_STEP,
        None,
        False,
        "expected (self, parameters, optimization_step), found nothing of that name",
    ),
    "a static method that takes something": (
        DEFAULTS,
        "{indent}@staticmethod\n{indent}def default_values(kind): ...\n",
        False,
        "found (kind), expected ()",
    ),
    "a sampler that takes something else": (
        SAMPLE,
        "{indent}def sample(self, sample_config, destination, *, progress): ...\n",
        True,
        "found (self, sample_config, destination, *, progress), as expected",
    ),
    "a sampler that is no method": (
        SAMPLE,
        "{indent}@staticmethod\n{indent}def sample(config): ...\n",
        False,
        "found (config), expected (self)",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_the_host_is_found_in_its_source(tmp_path: Path, what: str) -> None:
    label, source, fits, sentence = CHANGES[what]
    results = check_source(write_host(tmp_path, {label: source}))
    result = only(results, label)
    assert result.ok == fits
    assert result.sentence == f"{label}: {sentence}"
    assert mismatches(results) == (() if fits else (result.sentence,))


@pytest.mark.parametrize("what", [what for what in CHANGES if "branch" not in what])
def test_the_running_host_is_judged_like_its_source(as_host: Path, what: str) -> None:
    label, source, _, _ = CHANGES[what]
    write_host(as_host, {label: source})
    assert check_live() == check_source(as_host)


def test_what_may_be_missing_is_no_mismatch_but_a_change_of_it_is(tmp_path: Path) -> None:
    [seam] = [seam for seam in EXPORT_SEAMS if seam.optional]
    [missing] = check_source(tmp_path, [seam])
    assert (missing.ok, missing.found) == (True, None)
    assert missing.sentence == "modules.util.huggingface_util:configure_hub: not in this OneTrainer, done without it"
    file = tmp_path / "modules" / "util" / "huggingface_util.py"
    file.parent.mkdir(parents=True)
    file.write_text("def configure_hub(token): ...\n", encoding="utf-8")
    [changed] = check_source(tmp_path, [seam])
    assert not changed.ok
    assert changed.sentence.endswith("found (token), expected (token, offline_mode, cache_dir)")


def test_several_changes_are_all_named(tmp_path: Path) -> None:
    changes: dict[str, str | None] = {CREATE_EMA: None, EMA_STEP: "{indent}def step(self): ...\n"}
    found = mismatches(check_source(write_host(tmp_path, changes)))
    assert found == (
        f"{CREATE_EMA}: {EXPECTED}, found nothing of that name",
        f"{EMA_STEP}: found (self), expected (self, parameters, optimization_step)",
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"class Other: ...\n",
        b"class BaseModelSaver:\n    class Inner:\n        def save(self): ...\n",
        b"def save(self): ...\n",
        b"class BaseModelSaver(:\n",
        b"\x00",
        b"\xff\xfe",
        None,
    ],
    ids=["empty", "no class", "in another class", "no method", "not Python", "zeros", "not text", "no file"],
)
def test_a_file_that_is_not_what_it_was(tmp_path: Path, content: bytes | None) -> None:
    path = write_host(tmp_path) / "modules" / "modelSaver" / "BaseModelSaver.py"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    results = check_source(tmp_path)
    result = only(results, SAVE)
    assert (result.ok, result.found) == (False, None)
    assert mismatches(results) == (
        f"{SAVE}: expected (self, model, model_type, output_model_format, output_model_destination, dtype), found "
        "nothing of that name",
    )


def test_a_folder_that_is_no_host_has_nothing(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        results = check_source(folder)
        assert len(mismatches(results)) == len(SEAMS)


def test_reading_the_source_runs_and_imports_nothing(tmp_path: Path) -> None:
    write_host(tmp_path)
    before = set(sys.modules)
    for path in tmp_path.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        path.write_text(f"raise SystemExit('was run')\nimport not_there\n{text}", encoding="utf-8")
    assert mismatches(check_source(tmp_path)) == ()
    assert set(sys.modules) == before


def test_a_seam_is_resolved_as_it_stands_in_its_owner(as_host: Path) -> None:
    write_host(as_host)
    by_label = {seam.label: seam for seam in SEAMS}
    owner, name, raw = seams.resolve(by_label[DEFAULTS])
    assert (owner.__name__, name) == ("TrainConfig", "default_values")
    assert isinstance(raw, staticmethod)
    owner, name, raw = seams.resolve(by_label[CREATE_EMA])
    assert (owner.__name__, name, raw) == (CREATE, "create_ema", owner.create_ema)


def test_a_host_whose_modules_cannot_be_imported_is_a_mismatch(as_host: Path) -> None:
    write_host(as_host)
    path = as_host / "modules" / "util" / "create.py"
    path.write_text("import not_there\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    assert mismatches(check_live()) == (f"{CREATE_EMA}: {EXPECTED}, found nothing of that name",)


def test_a_host_whose_module_raises_something_of_its_own_is_a_mismatch(as_host: Path) -> None:
    write_host(as_host)
    path = as_host / "modules" / "util" / "create.py"
    path.write_text("raise RuntimeError('no CUDA driver')\n", encoding="utf-8")
    assert mismatches(check_live()) == (f"{CREATE_EMA}: could not be imported: RuntimeError: no CUDA driver",)


@pytest.mark.parametrize(
    "seam", [seam for seam in (*SEAMS, *CLOUD_SEAMS) if seam.replacement], ids=lambda seam: seam.label
)
def test_each_replacement_is_a_function_that_takes_the_original_and_what_the_host_passes(seam: Seam) -> None:
    # Read, not imported: these modules need OneTrainer's.
    module, _, name = seam.replacement.partition(":")
    path = Path(onetrainer_ema_select.__file__).parent / "host" / f"{module.replace('.', '/')}.py"
    body = ast.parse(path.read_text(encoding="utf-8")).body
    (function,) = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == name]
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    assert names[0] == "original"
    assert len(names) == 1 + len(seam.parameters)
    assert function.args.vararg, "a parameter that a newer host adds must be passed on"
    assert function.args.kwarg
    assert None not in function.args.kw_defaults  # a keyword without a default would never be passed
