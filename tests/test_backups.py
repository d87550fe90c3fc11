"""`open_backup`: sets by name, where the live weights lie, and every kind of path that is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from onetrainer_ema_select.backups import open_backup
from onetrainer_ema_select.choices import WeightSet
from onetrainer_ema_select.errors import BackupError, ManifestError, NamesError, StoreError

from .backup_files import NAME, park, tensors, write_backup

UNET = "unet/diffusion_pytorch_model.safetensors"
NAMES = ("unet.conv_in.weight", "unet.blocks.0.weight")
GIVE = "Give a backup: a folder in WORKSPACE/backup, as `onetrainer-ema-select list WORKSPACE` shows them."


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """A fine-tune by the plugin: a UNet of which all is trained, a VAE of which nothing is."""
    live, average = tensors((3, 2), (4,)), tensors((3, 2), (4,), seed=1)
    files = {
        UNET: {"conv_in.weight": live[0], "blocks.0.weight": live[1]},
        "vae/diffusion_pytorch_model.safetensors": {"scale": torch.ones(1)},
    }
    config = {"model_type": "STABLE_CASCADE_1", "training_method": "FINE_TUNE", "ema_update_step_interval": 5}
    return write_backup(tmp_path / "run" / "backup" / NAME, files, averages=average, names=NAMES, config=config)


def test_everything_in_it(backup: Path) -> None:
    opened = open_backup(str(backup))
    live, average = tensors((3, 2), (4,)), tensors((3, 2), (4,), seed=1)
    assert (opened.path, opened.name) == (backup, NAME)
    assert (opened.step, opened.epoch, opened.epoch_step, opened.decay) == (8, 4, 1, 0.99)
    assert (opened.model_type, opened.training_method, opened.named) == ("STABLE_CASCADE_1", "FINE_TUNE", True)
    ema, non_ema = opened.sets[WeightSet.EMA], opened.sets[WeightSet.NON_EMA]
    assert ema.names == NAMES
    assert set(non_ema) == {*NAMES, "vae.scale"}
    for name, one, other in zip(NAMES, live, average, strict=True):
        assert torch.equal(non_ema[name], one)
        assert torch.equal(ema[name], other)
        place = opened.places[name]
        assert (place.file, f"unet.{place.key}") == (backup / UNET, name)
    assert (non_ema.shape(NAMES[0]), non_ema.dtype(NAMES[0]), non_ema.nbytes) == ((3, 2), torch.float32, 44)
    assert (len(non_ema), non_ema.elements, NAMES[0] in non_ema, "x" in non_ema) == (3, 11, True, False)


def test_what_is_read_may_be_changed(backup: Path) -> None:
    for tensors_of in open_backup(backup).sets.values():
        before = tensors_of[NAMES[0]].clone()
        tensors_of[NAMES[0]].zero_()
        assert torch.equal(tensors_of[NAMES[0]], before)


def test_the_config_of_the_plugin_where_there_is_no_other(backup: Path) -> None:
    (backup / "ema_select" / "config.json").write_text('{"model_type": "FLUX_DEV_1"}', encoding="utf-8")
    assert open_backup(backup).model_type == "STABLE_CASCADE_1"
    (backup / "ema_select" / "config.json").unlink()
    shutil.rmtree(backup / "onetrainer_config")
    assert open_backup(backup).config is None
    assert open_backup(backup).model_type == "STABLE_DIFFUSION_15"  # the manifest's
    (backup / "ema_select" / "config.json").write_text('{"model_type": "FLUX_DEV_1"}', encoding="utf-8")
    assert open_backup(backup).model_type == "FLUX_DEV_1"
    (backup / "onetrainer_config").mkdir()
    (backup / "onetrainer_config" / "args.json").write_text("[]", encoding="utf-8")
    assert open_backup(backup).model_type == "FLUX_DEV_1"


def test_without_the_plugin_and_without_ema(tmp_path: Path) -> None:
    opened = open_backup(write_backup(tmp_path / NAME, {UNET: {"a.weight": torch.ones(1)}}))
    assert (opened.manifest, opened.config, opened.decay, opened.named) == (None, None, None, False)
    assert (opened.model_type, opened.training_method) == ("", "")
    assert {one: tensors_of.names for one, tensors_of in opened.sets.items()} == {WeightSet.NON_EMA: ("unet.a.weight",)}


def test_names_for_a_backup_without_ema_find_places_too(tmp_path: Path) -> None:
    opened = open_backup(write_backup(tmp_path / NAME, {UNET: {"a.weight": torch.ones(1)}}), names=["unet.a.weight"])
    assert opened.places["unet.a.weight"].key == "a.weight"


def test_a_missing_or_broken_optimizer_is_no_matter(backup: Path) -> None:
    (backup / "optimizer" / "optimizer.pt").write_bytes(b"broken")
    assert open_backup(backup).named
    shutil.rmtree(backup / "optimizer")
    assert open_backup(backup).named


def test_sharded(tmp_path: Path) -> None:
    first, second = tensors((2, 2), (3,))
    stem = "unet/diffusion_pytorch_model"
    folder = write_backup(
        tmp_path / NAME,
        {f"{stem}-00001-of-00002.safetensors": {"a.w": first}, f"{stem}-00002-of-00002.safetensors": {"b.w": second}},
    )
    shards = {
        "a.w": f"{Path(stem).name}-00001-of-00002.safetensors",
        "b.w": f"{Path(stem).name}-00002-of-00002.safetensors",
    }
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": shards}), encoding="utf-8")
    opened = open_backup(folder, names=["unet.b.w", "unet.a.w"])
    assert torch.equal(opened.sets[WeightSet.NON_EMA]["unet.b.w"], second)
    assert opened.places["unet.b.w"].file.name == shards["b.w"]


def test_averages_that_do_not_lie_in_order_in_memory(tmp_path: Path) -> None:
    turned = torch.arange(6.0).reshape(2, 3).t()
    folder = write_backup(tmp_path / NAME, {UNET: {"a.w": torch.ones(3, 2)}}, averages=[turned])
    average = open_backup(folder).sets[WeightSet.EMA]
    assert torch.equal(average["position.0"], torch.tensor([[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]))
    assert average.read("position.0", 1, 3).tolist() == [3.0, 1.0]


def test_a_parked_average(tmp_path: Path) -> None:
    # safetensors orders by size, the manifest keeps OneTrainer's order
    one, other = tensors((2,), (50,))
    opened = open_backup(park(tmp_path / "x-ema", {"unet.b": one, "unet.a": other}))
    assert (opened.step, opened.named, opened.places) == (8, True, {})
    assert list(opened.sets) == [WeightSet.EMA]
    assert opened.sets[WeightSet.EMA].names == ("unet.b", "unet.a")
    assert torch.equal(opened.sets[WeightSet.EMA]["unet.a"], other)


def test_a_parked_average_without_names(tmp_path: Path) -> None:
    one, other = tensors((2,), (50,))
    folder = park(tmp_path / "x-ema", {"position.0": one, "position.1": other})
    assert not open_backup(folder).named
    named = open_backup(folder, names=["unet.a", "unet.b"])
    assert named.named
    assert torch.equal(named.sets[WeightSet.EMA]["unet.b"], other)
    with pytest.raises(NamesError, match=r"^1 names were given for the parked EMA .* holds 2 tensors\. Give "):
        open_backup(folder, names=["unet.a"])


# -- what is no backup ----------------------------------------------------------------------------------------


def refused(path: Path, kind: type[Exception] = BackupError, **options: object) -> str:
    with pytest.raises(kind) as caught:
        open_backup(path, **options)
    assert type(caught.value) is kind
    return str(caught.value)


def test_no_such_path(tmp_path: Path) -> None:
    assert refused(tmp_path / "gone") == f"There is no {tmp_path / 'gone'}. {GIVE}"


def test_a_saved_file(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    assert refused(tmp_path / "x.safetensors") == (
        f"{tmp_path / 'x.safetensors'} is a file, and a backup is a folder. A saved model holds one set of weights and "
        f"nothing to go on from. {GIVE}"
    )


def test_a_file_and_a_folder_of_a_backup(backup: Path) -> None:
    assert refused(backup / UNET) == (
        f"{backup / UNET} is a file of a backup, not the backup itself. Give its folder: {backup}"
    )
    for part in ("unet", "ema", "ema_select"):
        assert refused(backup / part) == (
            f"{backup / part} is a part of a backup, not the backup itself. Give its folder: {backup}"
        )


def test_a_workspace(backup: Path) -> None:
    workspace = backup.parent.parent
    assert refused(workspace) == (
        f"{workspace} is a workspace, not a backup. Give one of its backups; the newest whole one is {backup}"
    )
    assert refused(workspace / "backup") == (
        f"{workspace / 'backup'} is the folder of all backups of a workspace, not a backup. Give one of its backups; "
        f"the newest whole one is {backup}"
    )
    (backup / "meta.json").unlink()
    assert refused(workspace) == f"{workspace} is a workspace, not a backup. It holds none. {GIVE}"


def test_a_workspace_with_a_milestone_only(backup: Path) -> None:
    workspace = backup.parent.parent
    pinned = workspace / "ema_select" / "milestones" / "backup" / "x"
    pinned.parent.mkdir(parents=True)
    backup.rename(pinned)
    assert refused(workspace).endswith(f"the newest whole one is {pinned}")
    assert open_backup(pinned).named


def test_a_diffusers_model(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}", encoding="utf-8")
    assert refused(tmp_path) == (
        f"{tmp_path} is a model in diffusers' format, not a backup: it has no meta.json. It can be used as it is. "
        f"{GIVE}"
    )


def test_a_saved_folder(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "stage_c.safetensors")
    assert refused(tmp_path) == f"{tmp_path} is a folder with a saved model, not a backup: it has no meta.json. {GIVE}"


def test_any_other_folder(tmp_path: Path) -> None:
    assert refused(tmp_path) == f"{tmp_path} is not a backup: it has no meta.json. {GIVE}"


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("meta", "meta.json, which is written last, is missing: it was cut short"),
        ("unet", f"{UNET} is cut short (180 of 256 bytes)"),
        ("no model", "there is no model in it"),
        ("ema", "ema/ema.pt is cut short or not a torch file (4 bytes)"),
        ("no ema", "ema/ema.pt, which its manifest names, is missing"),
    ],
)
def test_incomplete(backup: Path, damage: str, problem: str) -> None:
    size = (backup / UNET).stat().st_size
    if damage == "meta":
        (backup / "meta.json").unlink()
    elif damage == "unet":
        (backup / UNET).write_bytes((backup / UNET).read_bytes()[:180])
        problem = problem.replace("256", str(size))
    elif damage == "no model":
        shutil.rmtree(backup / "unet")
        shutil.rmtree(backup / "vae")
    elif damage == "ema":
        (backup / "ema" / "ema.pt").write_bytes(b"torn")
    else:
        (backup / "ema" / "ema.pt").unlink()
    assert refused(backup) == (
        f"The backup {backup} is not complete: {problem}. Give another one, as "
        "`onetrainer-ema-select list WORKSPACE` shows them."
    )


def test_a_missing_shard(backup: Path) -> None:
    index = backup / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "b.safetensors"}}', encoding="utf-8")
    assert "names b.safetensors, which is missing. Give another one" in refused(backup)


@pytest.mark.parametrize("content", ["[]", '{"weight_map": []}', "{", '{"weight_map": {"a": "../b.safetensors"}}'])
def test_an_index_that_is_none(backup: Path, content: str) -> None:
    index = backup / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    save_file({"a": torch.ones(1)}, backup / "b.safetensors")
    index.write_text(content, encoding="utf-8")
    with pytest.raises((BackupError, StoreError), match=r"cannot be read|which is missing"):
        open_backup(backup)


@pytest.mark.parametrize(
    "state", [[], {}, {"ema_parameters": 3}, {"ema_parameters": [1]}, {"ema_parameters": {"a": torch.ones(1)}}]
)
def test_an_average_that_is_none(backup: Path, state: object) -> None:
    torch.save(state, backup / "ema" / "ema.pt")
    assert refused(backup, StoreError) == (
        f"{backup / 'ema' / 'ema.pt'} holds no list ema_parameters of tensors, so OneTrainer did not write it. Copy or "
        "download it once more, or name another one."
    )


def test_an_average_that_is_a_program(backup: Path) -> None:
    torch.save({"ema_parameters": [Path("x")]}, backup / "ema" / "ema.pt")
    assert refused(backup, StoreError) == (
        f"{backup / 'ema' / 'ema.pt'} holds more than tensors and numbers, which could be a program, or is damaged; it "
        "was not read. Copy or download it once more, or name another one."
    )


def test_a_count_that_is_not_the_manifests(backup: Path) -> None:
    torch.save({"decay": 0.9, "ema_parameters": tensors((3, 2))}, backup / "ema" / "ema.pt")
    assert refused(backup, ManifestError) == (
        f"The manifest of {backup} names 2 weights, but its average holds 1 tensors: one of the two is not of this "
        "backup. Give another backup; or, to treat it as one that was made without the plugin, delete "
        f"{backup / 'ema_select'}."
    )


def test_shapes_that_are_not_the_manifests(backup: Path) -> None:
    torch.save({"decay": 0.9, "ema_parameters": tensors((3, 2), (5,))}, backup / "ema" / "ema.pt")
    assert refused(backup, ManifestError).startswith(
        f"The manifest of {backup} gives unet.blocks.0.weight the shape (4,), its average has (5,) there: "
    )


def test_a_manifest_that_names_twice(backup: Path) -> None:
    path = backup / "ema_select" / "manifest.json"
    path.write_text(path.read_text(encoding="utf-8").replace(NAMES[1], NAMES[0]), encoding="utf-8")
    assert refused(backup, ManifestError) == f"The manifest of {backup} names a weight twice. Give another backup."


def test_a_manifest_that_cannot_be_read(backup: Path) -> None:
    (backup / "ema_select" / "manifest.json").write_text("{", encoding="utf-8")
    assert "cannot be read" in refused(backup, ManifestError)


def test_names_that_do_not_fit(tmp_path: Path) -> None:
    folder = write_backup(tmp_path / NAME, {UNET: {"a.w": torch.ones(1)}}, averages=tensors((1,)))
    assert refused(folder, NamesError, names=["a", "b"]) == (
        f"2 names were given for the average in {folder}, which holds 1 tensors. Give the names of the weights that "
        "this run trained, in OneTrainer's order; with another layer filter or training method they are others."
    )
    assert refused(folder, NamesError, names=["a", "a"]) == (
        f"The name 'a' is given twice for the weights of {folder}. Give each weight its own name."
    )


def test_weights_in_another_format(backup: Path) -> None:
    (backup / "text_encoder").mkdir()
    torch.save({}, backup / "text_encoder" / "pytorch_model.bin")
    assert refused(backup) == (
        f"{backup / 'text_encoder' / 'pytorch_model.bin'} holds weights in a format that is not read here. "
        "OneTrainer's backups have safetensors files: load and save the model there once, or give another backup."
    )


@pytest.mark.parametrize(
    ("damage", "problem"), [("file", "ema.safetensors is missing"), ("record", "its manifest names no average")]
)
def test_a_parked_average_that_is_not_whole(tmp_path: Path, damage: str, problem: str) -> None:
    folder = park(tmp_path / "x-ema", {"unet.a": torch.ones(1)})
    if damage == "file":
        (folder / "ema.safetensors").unlink()
    else:
        raw = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        (folder / "manifest.json").write_text(json.dumps({**raw, "ema": None}), encoding="utf-8")
    assert refused(folder) == (
        f"The parked EMA {folder} cannot be opened: {problem}. Bring back a whole copy, or give a backup."
    )


def test_a_parked_average_with_other_names(tmp_path: Path) -> None:
    folder = park(tmp_path / "x-ema", {"unet.a": torch.ones(1)})
    save_file({"unet.b": torch.ones(1)}, folder / "ema.safetensors")
    assert refused(folder, ManifestError).endswith(
        "and they are not the same. Bring back a whole copy, or give a backup."
    )


def test_a_file_that_is_cut_short_after_it_was_opened(backup: Path) -> None:
    live = open_backup(backup).sets[WeightSet.NON_EMA]
    path = backup / UNET
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(StoreError, match=r"became shorter while it was read\. Copy or download it once more"):
        for name in NAMES:
            _ = live[name]
    path.unlink()
    with pytest.raises(StoreError, match=r"cannot be read \(No such file"):
        _ = live[NAMES[0]]


# -- letting go of the files --------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="needs Linux's list of what is mapped")
def test_a_closed_backup_has_no_file_mapped(tmp_path, make_backup):
    """On Windows a mapped file can neither be deleted nor replaced, so the backup could not be rolled away."""

    def mapped() -> list[str]:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
        return [line for line in maps.splitlines() if str(tmp_path) in line]

    backup = open_backup(make_backup(tmp_path, "2026-01-01_00-00-00-backup-4-2-0"))
    assert len(mapped()) == 1
    average = backup.sets[WeightSet.EMA]
    name = next(iter(average))
    read = average[name]
    backup.close()
    assert mapped() == []
    assert read.tolist() == [[4.0] * 2] * 4
    assert list(average) == []
    with open_backup(backup.path) as again:
        assert len(mapped()) == 1
        assert again.sets[WeightSet.NON_EMA].names
    assert mapped() == []
