from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from onetrainer_ema_select import manifest as module
from onetrainer_ema_select.errors import ManifestError
from onetrainer_ema_select.manifest import (
    EmaRecord,
    LegRecord,
    Manifest,
    ParameterRecord,
    ParkedRecord,
    read_manifest,
    write_manifest,
)
from onetrainer_ema_select.origin import install_source

ADVICE = (
    "Choose another backup with ema_select.resume_backup, or delete the file to treat the folder as one that was "
    "made without the plugin."
)

# As version 1 wrote it. Never change this text: what it stands for lies on people's disks.
VERSION_1 = """
{
 "format": "onetrainer-ema-select",
 "version": 1,
 "kind": "backup",
 "plugin_version": "0.1.0",
 "onetrainer_commit": "0123456789abcdef0123456789abcdef01234567",
 "created": "2026-03-01T12:00:00+01:00",
 "run": "7f3a",
 "step": 4000,
 "epoch": 10,
 "epoch_step": 3,
 "model_type": "STABLE_CASCADE_1",
 "training_method": "FINE_TUNE",
 "parameters": [
  {"name": "prior/down.0.weight", "shape": [4, 2], "dtype": "bfloat16"},
  {"name": "prior/scale", "shape": [], "dtype": "float32"}
 ],
 "ema": {
  "file": "ema/ema.pt", "dtype": "FLOAT_32", "decay": 0.999, "update_step_interval": 5, "updates": 800, "step": 4000
 },
 "leg": {
  "choices": {
   "resume_weights": "EMA", "resume_backup": "", "resume_optimizer": "RESET", "resume_ema": "CONTINUE",
   "resume_leg": "second try"
  },
  "began_from": "2026-02-28_12-00-00-backup-2000-5-0",
  "began_at_step": 2000
 },
 "parked": [{"name": "step-1000", "step": 1000}],
 "pending_milestones": ["10 epochs"]
}
"""


def valid() -> dict:
    return json.loads(VERSION_1)


def write(folder: Path, content: object) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    path = folder / "ema_select" / "manifest.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refusal(folder: Path) -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        read_manifest(folder)
    assert caught.value.path == str(folder / "ema_select" / "manifest.json")
    return caught.value


def test_a_manifest_of_version_1_is_read(tmp_path):
    write(tmp_path, VERSION_1)
    assert read_manifest(tmp_path) == Manifest(
        kind="backup",
        plugin_version="0.1.0",
        onetrainer_commit="0123456789abcdef0123456789abcdef01234567",
        created="2026-03-01T12:00:00+01:00",
        run="7f3a",
        step=4000,
        epoch=10,
        epoch_step=3,
        model_type="STABLE_CASCADE_1",
        training_method="FINE_TUNE",
        parameters=(
            ParameterRecord(name="prior/down.0.weight", shape=(4, 2), dtype="bfloat16"),
            ParameterRecord(name="prior/scale", shape=(), dtype="float32"),
        ),
        ema=EmaRecord(file="ema/ema.pt", dtype="FLOAT_32", decay=0.999, update_step_interval=5, updates=800, step=4000),
        leg=LegRecord(
            choices={
                "resume_weights": "EMA",
                "resume_backup": "",
                "resume_optimizer": "RESET",
                "resume_ema": "CONTINUE",
                "resume_leg": "second try",
            },
            began_from="2026-02-28_12-00-00-backup-2000-5-0",
            began_at_step=2000,
        ),
        parked=(ParkedRecord(name="step-1000", step=1000),),
        pending_milestones=("10 epochs",),
    )


def test_what_is_written_is_read_back(tmp_path):
    manifest = Manifest.model_validate(valid())
    path = write_manifest(manifest, tmp_path / "new" / "ema_select")
    assert path == tmp_path / "new" / "ema_select" / "manifest.json"
    assert read_manifest(tmp_path / "new") == manifest
    # A key that came later has its default in files that are older.
    expected = valid() | {"milestones": [], "validation": None, "post_hoc": None}
    expected["leg"] |= {"id": "", "best": ""}
    later = ("age", "updated_at_step", "accumulation", "images_per_step", "steps_per_epoch", "start_share")
    expected["ema"] |= {"half_life": "", **dict.fromkeys(later)}
    assert json.loads(path.read_text(encoding="utf-8")) == expected


def test_the_least_manifest_is_read_back(tmp_path):
    manifest = Manifest(kind="parked", plugin_version="1", run="模型", step=0, epoch=0, epoch_step=0, parameters=())
    write_manifest(manifest, tmp_path)
    assert read_manifest(tmp_path) == manifest


def test_the_manifest_of_a_parked_average_lies_in_its_folder(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(valid() | {"kind": "parked"}), encoding="utf-8")
    found = read_manifest(tmp_path)
    assert found is not None
    assert found.kind == "parked"


def test_a_backups_own_manifest_goes_before_one_in_the_folder(tmp_path):
    write(tmp_path, VERSION_1)
    (tmp_path / "manifest.json").write_text("somebody else's", encoding="utf-8")
    found = read_manifest(tmp_path)
    assert found is not None
    assert found.kind == "backup"


@pytest.mark.parametrize("folder", ["", "missing"])
def test_there_is_none_without_the_plugin(tmp_path, folder):
    assert read_manifest(tmp_path / folder) is None


@pytest.mark.parametrize(
    ("kind", "ema", "expected"),
    [
        ("backup", True, ("NON_EMA", "EMA")),
        ("backup", False, ("NON_EMA",)),
        ("parked", True, ("EMA",)),
        ("parked", False, ("EMA",)),
    ],
)
def test_sets(kind, ema, expected):
    assert Manifest.model_validate(valid() | {"kind": kind, "ema": valid()["ema"] if ema else None}).sets == expected


def test_what_is_not_known_is_passed_over(tmp_path):
    content = valid() | {"later": [1]}
    content["ema"]["later"] = 2
    write(tmp_path, content)
    assert read_manifest(tmp_path) == Manifest.model_validate(valid())


def test_text_that_is_not_json(tmp_path):
    path = write(tmp_path, '{"format": ')
    assert str(refusal(tmp_path)) == f"{path} cannot be read: Expecting value: line 1 column 12 (char 11). {ADVICE}"


def test_bytes_that_are_not_text(tmp_path):
    path = write(tmp_path, "")
    path.write_bytes(b"\xff\xfe\x00")
    error = refusal(tmp_path)
    assert str(error).startswith(f"{path} cannot be read: 'utf-8' codec can't decode byte 0xff in position 0")
    assert str(error).endswith(f". {ADVICE}")


def test_nesting_that_is_too_deep(tmp_path):
    path = write(tmp_path, "[" * 200_000)
    assert str(refusal(tmp_path)).startswith(f"{path} cannot be read: ")


def test_a_file_system_that_refuses(tmp_path, mocker):
    path = write(tmp_path, VERSION_1)
    mocker.patch.object(Path, "read_text", side_effect=PermissionError(13, "Permission denied"))
    assert str(refusal(tmp_path)) == f"{path} cannot be read: [Errno 13] Permission denied. {ADVICE}"


def test_a_folder_that_may_not_be_looked_into(tmp_path, mocker):
    path = tmp_path / "ema_select" / "manifest.json"
    mocker.patch.object(Path, "is_file", side_effect=PermissionError(13, "Permission denied"))
    assert str(refusal(tmp_path)) == f"{path} cannot be read: [Errno 13] Permission denied. {ADVICE}"


def test_a_file_that_is_too_large(tmp_path, monkeypatch):
    assert module._MAX_BYTES == 64 * 1024 * 1024
    path = write(tmp_path, VERSION_1)
    size = path.stat().st_size
    monkeypatch.setattr(module, "_MAX_BYTES", size)
    assert read_manifest(tmp_path) is not None
    monkeypatch.setattr(module, "_MAX_BYTES", size - 1)
    assert str(refusal(tmp_path)) == (
        f"{path} is larger than {size - 1} bytes, so it is not a manifest of this plugin. {ADVICE}"
    )


@pytest.mark.parametrize("version", [2, 99, 10**30])
def test_a_newer_version(tmp_path, version):
    # Whatever else has changed, the version is what is said.
    path = write(tmp_path, {"version": version, "kind": "something new"})
    error = refusal(tmp_path)
    assert str(error) == (
        f"{path} has the version {version}; this plugin reads up to 1. "
        f"Get the newer version that wrote it, and install it: pip install --upgrade {install_source()}"
    )
    assert (error.expected, error.found) == ("at most 1", str(version))


@pytest.mark.parametrize("version", [0, -1, True, 1.0, 2.0, "1", "2", None, [1]])
def test_a_version_that_is_none(tmp_path, version):
    path = write(tmp_path, valid() | {"version": version})
    message = str(refusal(tmp_path))
    assert message.startswith(f"{path} is not a valid manifest: version: ")
    assert message.endswith(f". {ADVICE}")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": "other"}, "format: Input should be 'onetrainer-ema-select'"),
        ({"kind": "save"}, "kind: Input should be 'backup', 'parked' or 'snapshot'"),
        ({"step": -1}, "step: Input should be greater than or equal to 0"),
        ({"step": 2**53 + 1}, f"step: Input should be less than or equal to {2**53}"),
        ({"epoch": "many"}, "epoch: Input should be a valid integer, unable to parse string as an integer"),
        ({"run": 7}, "run: Input should be a valid string"),
        ({"parameters": {}}, "parameters: Input should be a valid tuple"),
        (
            {"parameters": [{"name": "a", "shape": [2, -1], "dtype": "float32"}]},
            "parameters.0.shape.1: Input should be greater than or equal to 0",
        ),
        ({"ema": {"file": "ema/ema.pt"}}, "ema.dtype: Field required"),
        ({"leg": None}, "leg: Input should be a valid dictionary or instance of LegRecord"),
        ({"leg": {"choices": {"resume_leg": 1}}}, "leg.choices.resume_leg: Input should be a valid string"),
        ({"pending_milestones": "10 epochs"}, "pending_milestones: Input should be a valid tuple"),
    ],
)
def test_wrong_values_are_named(tmp_path, change, problem):
    path = write(tmp_path, valid() | change)
    assert str(refusal(tmp_path)) == f"{path} is not a valid manifest: {problem}. {ADVICE}"


@pytest.mark.parametrize("content", [[], [1], "text", 3, None, True])
def test_json_that_is_no_table(tmp_path, content):
    path = write(tmp_path, json.dumps(content))
    assert str(refusal(tmp_path)).startswith(f"{path} is not a valid manifest: the whole file: ")


def test_a_key_that_is_missing(tmp_path):
    content = valid()
    del content["parameters"]
    path = write(tmp_path, content)
    assert str(refusal(tmp_path)) == f"{path} is not a valid manifest: parameters: Field required. {ADVICE}"


@pytest.mark.parametrize(
    "hostile",
    [
        "/etc/passwd",
        "//server/share/x",
        "\\windows\\x",
        "\\\\server\\share\\x",
        "..",
        "../x",
        "ema/../../x",
        "ema/..",
        "..\\x",
        "ema\\..\\..\\x",
        "C:\\x",
        "C:x",
        "c:/x",
        "ema/ema.pt:stream",
    ],
)
def test_a_path_that_leads_out_of_the_folder(tmp_path, hostile):
    content = valid()
    content["ema"]["file"] = hostile
    path = write(tmp_path, content)
    assert str(refusal(tmp_path)) == (
        f"{path} is not a valid manifest: ema.file: Value error, the path {hostile!r} leads out of the folder it "
        f"describes. {ADVICE}"
    )


@pytest.mark.parametrize("file", ["ema/ema.pt", "ema.safetensors", "a..b/..c", "模型/ema.pt", "ema\\ema.pt"])
def test_a_path_that_stays_inside(tmp_path, file):
    content = valid()
    content["ema"]["file"] = file
    write(tmp_path, content)
    found = read_manifest(tmp_path)
    assert found is not None
    assert found.ema is not None
    assert found.ema.file == file


@pytest.mark.parametrize(
    "hostile", ["", ".", "..", "/", "/etc", "a/b", "../a", "a\\b", "..\\a", "C:", "C:\\a", "a:b", "a\0b"]
)
def test_a_parked_name_that_is_not_a_folders(tmp_path, hostile):
    path = write(tmp_path, valid() | {"parked": [{"name": hostile, "step": 1}]})
    assert str(refusal(tmp_path)) == (
        f"{path} is not a valid manifest: parked.0.name: Value error, {hostile!r} is not the name of a folder. {ADVICE}"
    )


def test_a_manifest_is_not_changed():
    with pytest.raises(ValidationError):
        Manifest.model_validate(valid()).step = 1


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**52, max_value=10**40)
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
    | st.sampled_from(["..", "/", "C:", "\0", "backup", "1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def places(value: object, path: tuple = ()) -> list[tuple]:
    found = [path]
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        found += places(inner, (*path, key))
    return found


def changed(path: tuple, value: object) -> object:
    content = valid()
    if not path:
        return value
    target = content
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return content


FUZZ = (
    st.builds(changed, st.sampled_from(places(valid())), JSON).map(json.dumps).map(str.encode)
    | JSON.map(json.dumps).map(str.encode)
    | st.binary(max_size=40)
    | st.integers(0, len(VERSION_1)).map(lambda length: VERSION_1[:length].encode())
)


@settings(max_examples=700, deadline=None)
@given(FUZZ)
def test_whatever_the_file_holds_it_is_read_or_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "manifest.json")
        path.write_bytes(content)
        try:
            found = read_manifest(Path(folder))
        except ManifestError as error:
            assert str(error).startswith(str(path))
            return
        assert isinstance(found, Manifest)
        for name in [record.name for record in found.parked] + ([found.ema.file] if found.ema else []):
            assert not Path(name).is_absolute()
            assert ".." not in Path(name).parts
        write_manifest(found, Path(folder))
