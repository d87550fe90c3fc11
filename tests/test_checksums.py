"""Checksums of backups: written, compared, and what is left where there are none."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest_mock import MockerFixture
from safetensors.torch import save_file

from onetrainer_ema_select import checksums
from onetrainer_ema_select.checksums import FILE, ChecksumWriter, verify_backup, verify_model, write_checksums

MakeBackup = Callable[..., Path]
NAME = "2026-08-19_10-00-00-backup-4-2-0"
WEIGHTS = Path("lora", "lora.safetensors")


@pytest.fixture
def backup(tmp_path: Path, make_backup: MakeBackup) -> Path:
    folder = make_backup(tmp_path, NAME)
    (folder / "ema_select").mkdir()
    (folder / "onetrainer_config").mkdir()
    (folder / "onetrainer_config" / "args.json").write_text("{}", encoding="utf-8")
    return folder


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_the_sums_are_sha256_of_the_files(backup: Path) -> None:
    assert write_checksums(backup)
    written = json.loads((backup / FILE).read_text(encoding="utf-8"))
    assert written["version"] == 1
    assert written["files"] == {
        name: {
            "size": (backup / name).stat().st_size,
            "sha256": hashlib.sha256((backup / name).read_bytes()).hexdigest(),
        }
        for name in ("ema/ema.pt", "lora/lora.safetensors", "meta.json", "optimizer/optimizer.pt")
    }
    verdict = verify_backup(backup)
    assert (verdict.problem, verdict.checksums, verdict.files) == ("", True, 4)


def test_one_bit_is_found_wherever_it_is(backup: Path) -> None:
    write_checksums(backup)
    flip_last_byte(backup / WEIGHTS)
    assert verify_backup(backup).problem == "lora/lora.safetensors has another checksum than when it was written"


def test_a_swapped_tensor_is_found(backup: Path) -> None:
    """As large as the one it stands for, and a whole file of its own."""
    write_checksums(backup)
    save_file({"weight": torch.full((4, 2), 9.0)}, backup / WEIGHTS)
    assert "has another checksum" in verify_backup(backup).problem


def test_a_file_of_another_size(backup: Path) -> None:
    write_checksums(backup)
    save_file({"weight": torch.zeros(9)}, backup / WEIGHTS)
    assert "lora/lora.safetensors has " in verify_backup(backup).problem


def test_a_file_that_is_gone(backup: Path) -> None:
    write_checksums(backup)
    shutil.rmtree(backup / "ema")
    assert verify_backup(backup).problem.startswith("ema/ema.pt cannot be read")


def test_a_backup_that_is_not_complete_is_that(backup: Path) -> None:
    write_checksums(backup)
    (backup / "meta.json").unlink()
    assert "meta.json" in verify_backup(backup).problem


def test_without_sums_the_archives_own_are_compared(backup: Path) -> None:
    verdict = verify_backup(backup)
    assert (verdict.problem, verdict.checksums) == ("", False)
    path = backup / "ema" / "ema.pt"
    data = path.read_bytes()
    number = torch.full((4, 2), 4.0).numpy().tobytes()
    path.write_bytes(data.replace(number, number[:-1] + b"\x41"))
    assert verify_backup(backup).problem.startswith("ema/ema.pt is damaged")


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "a/../../../x", "C:/x", "a\\..\\b"])
def test_sums_that_lead_out_of_the_backup_are_refused_and_nothing_is_read(
    backup: Path, mocker: MockerFixture, name: str
) -> None:
    write_checksums(backup)
    content = json.loads((backup / FILE).read_text(encoding="utf-8"))
    content["files"] = {name: {"size": 1, "sha256": "00"}}
    (backup / FILE).write_text(json.dumps(content), encoding="utf-8")
    read = mocker.patch.object(checksums, "_sha256")
    assert "leads out of the backup" in verify_backup(backup).problem
    read.assert_not_called()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
SUMS = st.dictionaries(st.text(), st.fixed_dictionaries({"size": st.integers(), "sha256": st.text()}))
CONTENT = (
    st.binary(max_size=40)
    | JSON.map(lambda value: json.dumps(value).encode())
    | SUMS.map(lambda files: json.dumps({"version": 1, "files": files}).encode())
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CONTENT)
def test_whatever_stands_for_the_sums_is_read_or_named(backup: Path, content: bytes) -> None:
    (backup / FILE).write_bytes(content)
    verify_backup(backup)


class TestModels:
    def save(self, path: Path, *, noted: str | None = None) -> None:
        tensors = {"b": torch.arange(6.0), "a": torch.ones(3, dtype=torch.bfloat16)}
        digest = hashlib.sha256()
        for name in sorted(tensors):  # as OneTrainer does it
            digest.update(tensors[name].view(torch.uint8).numpy().tobytes())
        save_file(tensors, path, metadata={"modelspec.hash_sha256": noted or f"0x{digest.hexdigest()}"})

    def test_the_tensors_are_compared_with_the_header(self, tmp_path: Path) -> None:
        path = tmp_path / "x.safetensors"
        self.save(path)
        assert verify_model(path) == checksums.Verdict("", checksums=True, files=1)
        flip_last_byte(path)
        assert verify_model(path).problem == "x.safetensors: its tensors have another checksum than its header says"

    def test_without_a_hash_it_is_read_from_beginning_to_end(self, tmp_path: Path) -> None:
        save_file({"a": torch.ones(3)}, tmp_path / "x.safetensors")
        torch.save({"a": torch.full((4, 2), 4.0)}, tmp_path / "x.ckpt")
        for name in ("x.safetensors", "x.ckpt"):
            read: list[int] = []
            verdict = verify_model(tmp_path / name, advance=read.append)
            assert verdict == checksums.Verdict("", checksums=False, files=1)
            assert sum(read) == (tmp_path / name).stat().st_size

    def test_an_archive_has_sums_of_its_own(self, tmp_path: Path) -> None:
        path = tmp_path / "x.ckpt"
        torch.save({"a": torch.full((4, 2), 4.0)}, path)
        number = torch.full((4, 2), 4.0).numpy().tobytes()
        path.write_bytes(path.read_bytes().replace(number, number[:-1] + b"\x41"))
        assert verify_model(path).problem.startswith("x.ckpt is damaged")

    def test_a_folder_counts_as_compared_only_where_all_of_it_was(self, tmp_path: Path) -> None:
        (tmp_path / "x").mkdir()
        self.save(tmp_path / "x" / "a.safetensors")
        assert verify_model(tmp_path / "x").checksums
        save_file({"a": torch.ones(3)}, tmp_path / "x" / "b.safetensors")
        assert verify_model(tmp_path / "x") == checksums.Verdict("", checksums=False, files=2)

    def test_a_folder(self, tmp_path: Path) -> None:
        folder = tmp_path / "x"
        (folder / "unet").mkdir(parents=True)
        save_file({"a": torch.ones(3)}, folder / "unet" / "w.safetensors")
        assert verify_model(folder).problem == ""
        with (folder / "unet" / "w.safetensors").open("ab") as file:
            file.write(b"more")
        assert verify_model(folder).problem.startswith("w.safetensors is longer than its header says")

    @pytest.mark.parametrize("offsets", [[4, 0], [-8, 4], [0, 10**12], ["0", "4"], [0], 3])
    def test_a_header_that_lies(self, tmp_path: Path, offsets: object) -> None:
        header = {"a": {"dtype": "F32", "shape": [1], "data_offsets": offsets}, "b": {"data_offsets": [0, 4]}}
        text = json.dumps({**header, "__metadata__": {"modelspec.hash_sha256": "0x00"}}).encode()
        path = tmp_path / "x.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 4)
        assert verify_model(path).problem


class TestInTheBackground:
    def test_they_are_written_and_can_be_waited_for(self, backup: Path) -> None:
        writer = ChecksumWriter(lambda folder, error: pytest.fail(str(error)))
        writer.start(backup)
        writer.wait()
        assert verify_backup(backup).checksums

    def test_it_stops_at_once_and_writes_nothing(self, backup: Path, mocker: MockerFixture) -> None:
        begun, gate = threading.Event(), threading.Event()
        read = checksums._sha256

        def slow(path: Path, **options: Callable[[], bool]) -> str | None:
            begun.set()
            gate.wait(20)
            return read(path, **options)

        mocker.patch.object(checksums, "_sha256", slow)
        writer = ChecksumWriter(lambda folder, error: pytest.fail(str(error)))
        writer.start(backup)
        assert begun.wait(20)
        stopping = threading.Thread(target=writer.stop)
        stopping.start()
        gate.set()
        stopping.join(20)
        assert not stopping.is_alive()
        assert not (backup / FILE).exists()
        writer.start(backup)  # it can be used again
        writer.wait()
        assert (backup / FILE).exists()

    def test_a_backup_that_is_deleted_meanwhile_is_no_problem(self, backup: Path) -> None:
        shutil.rmtree(backup)
        writer = ChecksumWriter(lambda folder, error: pytest.fail(str(error)))
        writer.start(backup)
        writer.wait()
        assert not backup.exists()

    def test_a_failure_is_told(self, backup: Path, mocker: MockerFixture) -> None:
        told: list[tuple[Path, Exception]] = []
        mocker.patch.object(checksums.store, "write_json", side_effect=OSError(28, "No space left on device"))
        writer = ChecksumWriter(lambda folder, error: told.append((folder, error)))
        writer.start(backup)
        writer.wait()
        assert [folder for folder, _ in told] == [backup]
