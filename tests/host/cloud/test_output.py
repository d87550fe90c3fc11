"""The final output is fetched: both sets, in full, or it is said."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onetrainer_ema_select.errors import CloudError
from onetrainer_ema_select.host import notices
from onetrainer_ema_select.host.cloud import hooks
from onetrainer_ema_select.host.report import Reporter

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the cloud machine is a Linux one; GNU find is needed")


class Sync:
    """Copies as OneTrainer's synchronisation does: a file as a file, a folder's files one by one."""

    def __init__(self) -> None:
        self.failures = 0
        self.cut = False

    def sync_down_file(self, local: Path, remote: Path) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError("connection lost")
        local.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(remote, local)
        if self.cut:
            local.write_bytes(local.read_bytes()[:-1])

    def sync_down_dir(self, local: Path, remote: Path) -> None:
        for file in remote.rglob("*"):
            if file.is_file():
                self.sync_down_file(local / file.relative_to(remote), file)


class Connection:
    def run(self, command: str, **_: Any) -> Any:
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        return SimpleNamespace(exited=done.returncode, stdout=done.stdout, stderr=done.stderr)


class Cloud:
    """Two folders in the place of two machines."""

    def __init__(self, folder: Path, name: str = "model.safetensors") -> None:
        self.there, self.here = folder / "there now", folder / "here now"
        self.output = self.there / "output"
        self.output.mkdir(parents=True)
        self.connection, self.file_sync = Connection(), Sync()
        self.config_file = str(self.there / "job1.json")
        self.workspace = self.there / "run"
        self.done: list[str] = []
        self.config = SimpleNamespace(
            cloud=CloudSection(),
            workspace_dir=str(self.workspace),
            output_model_destination=str(self.output / name),
            local_output_model_destination=str(self.here / name),
        )

    def write(self, name: str, content: str, *, old: bool = False) -> None:
        file = self.output / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
        if old:
            for path in (file, file.parent):
                os.utime(path, (1e9, 1e9))

    def begin(self) -> None:
        """OneTrainer uploads the configuration."""
        Path(self.config_file).write_text("{}", encoding="utf-8")
        os.utime(self.config_file, (1.5e9, 1.5e9))

    def download_output_model(self) -> None:
        """As OneTrainer's own: the one file, and its embeddings."""
        self.done.append("original")
        local, remote = Path(self.config.local_output_model_destination), Path(self.config.output_model_destination)
        if remote.is_dir():
            raise IsADirectoryError(remote)
        self.file_sync.sync_down_file(local, remote)

    def stop(self) -> None:
        self.done.append("stop")

    def delete(self) -> None:
        self.done.append("delete")

    def home(self) -> dict[str, str]:
        return {
            file.relative_to(self.here).as_posix(): file.read_text(encoding="utf-8")
            for file in self.here.rglob("*")
            if file.is_file()
        }


class CloudSection:
    download_output_model = True


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    made = Cloud(tmp_path)
    hooks._runs[made.config.cloud] = hooks.CloudRun(Reporter(lambda status: None))
    made.begin()
    return made


def download(cloud: Cloud) -> None:
    hooks.download_output_model(Cloud.download_output_model, cloud)


def test_both_sets_and_what_lies_beside_them_come_home(cloud: Cloud):
    names = (
        "model.safetensors",
        "model-non-ema.safetensors",
        "model.yaml",
        "model-non-ema.safetensors_embeddings/a.st",
    )
    for name in names:
        cloud.write(name, name)
    cloud.write("another.safetensors", "x")
    cloud.write(".ema_select-staging-0123abcd-x/model-non-ema.safetensors", "half")
    download(cloud)
    assert cloud.home() == {name: name for name in names}
    assert cloud.done == ["original"]


def test_an_output_that_is_a_folder_comes_home(tmp_path: Path):
    cloud = Cloud(tmp_path, "my model")
    hooks._runs[cloud.config.cloud] = hooks.CloudRun(Reporter(lambda status: None))
    cloud.begin()
    names = ("my model/unet/config.json", "my model/ema_select.json", "my model-non-ema/unet/config.json")
    for name in names:
        cloud.write(name, name)
    download(cloud)
    assert cloud.home() == {name: name for name in names}
    assert cloud.done == []  # OneTrainer's own would have failed


def test_of_a_folder_that_was_there_before_only_the_files_of_this_run_come_home(cloud: Cloud):
    """OneTrainer gives a single file a name of its own in such a folder, which may hold the workspace too."""
    cloud.config.output_model_destination = str(cloud.output)
    cloud.config.local_output_model_destination = str(cloud.here)
    cloud.config.save_filename_prefix = "me-"
    cloud.config.output_model_format = SimpleNamespace(is_single_file=lambda: True, file_extension=lambda: ".sft")
    names = {"me-2026.sft", "me-2026-non-ema.sft", "me-2026.yaml", "me-2026.sft_embeddings/a.st"}
    for name in (*names, "run/backup/b/model.sft", "me-note.txt", "other.sft"):
        cloud.write(name, name)
    cloud.write("me-2025.sft", "of last year", old=True)
    download(cloud)
    assert cloud.home() == {name: name for name in names}
    assert cloud.done == []  # OneTrainer's own would have failed


def test_what_an_earlier_run_left_there_stays_there(cloud: Cloud):
    cloud.write("model-non-ema.safetensors", "of last year", old=True)
    cloud.write("model.safetensors", "new")
    download(cloud)
    assert cloud.home() == {"model.safetensors": "new"}


def test_a_run_with_nothing_left_to_train_brings_both_sets_of_its_last_end(cloud: Cloud):
    for name in ("model.safetensors", "model-non-ema.safetensors", "model-ema.safetensors"):
        cloud.write(name, name, old=True)
    common = {"step": 8, "epoch": 2, "run": "r", "leg": "", "final": True}
    earlier = {**common, "step": 4, "path": str(cloud.output / "model-ema.safetensors")}
    last = [{**common, "path": str(cloud.output / f"model{which}.safetensors")} for which in ("", "-non-ema")]
    ledger = cloud.workspace / "ema_select" / "saves.json"
    ledger.parent.mkdir(parents=True)
    ledger.write_text(json.dumps({"version": 1, "saves": [earlier, *last]}), encoding="utf-8")
    download(cloud)
    assert set(cloud.home()) == {"model.safetensors", "model-non-ema.safetensors"}


def test_without_the_plugin_onetrainer_does_it_alone(cloud: Cloud):
    del hooks._runs[cloud.config.cloud]
    for name in ("model.safetensors", "model-non-ema.safetensors"):
        cloud.write(name, name)
    download(cloud)
    assert set(cloud.home()) == {"model.safetensors"}


def test_a_connection_that_fails_once_is_tried_again(cloud: Cloud):
    cloud.write("model-non-ema.safetensors", "x")
    cloud.write("model.safetensors", "x")
    hooks.download_output_model(lambda cloud: setattr(cloud.file_sync, "failures", 1), cloud)
    assert set(cloud.home()) == {"model.safetensors", "model-non-ema.safetensors"}
    cloud.delete()
    assert cloud.done == ["delete"]


@pytest.mark.parametrize("how", ["cut", "failures"])
def test_a_machine_with_a_model_that_has_not_come_home_is_stopped_rather_than_deleted(
    cloud: Cloud, how: str, capsys: pytest.CaptureFixture[str]
):
    cloud.write("model.safetensors", "the primary set")
    cloud.write("model-non-ema.safetensors", "the other set")
    with pytest.raises(CloudError, match="could not be fetched") as caught:
        hooks.download_output_model(lambda cloud: setattr(cloud.file_sync, how, 99), cloud)
    reason = r"14 of 15 bytes|12 of 13 bytes" if how == "cut" else "connection lost"
    assert re.search(reason, str(caught.value))
    cloud.delete()
    assert cloud.done == ["stop"]
    assert "stopped, not deleted" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["OneTrainer", "listing", "ledger"])
def test_whatever_fails_the_machine_and_its_workspace_stay_and_no_password_is_said(
    cloud: Cloud, where: str, mocker: Any, capsys: pytest.CaptureFixture[str]
):
    cloud.write("model.safetensors", "x")
    cloud.config.secrets = SimpleNamespace(cloud=SimpleNamespace(password="hunter2", api_key=""), huggingface_token="")
    error: Exception = subprocess.CalledProcessError(1, ["sshpass", "-p", "hunter2", "scp", "x"])
    if where == "listing":
        mocker.patch.object(cloud.connection, "run", side_effect=error)
    elif where == "ledger":
        error = OSError("lost: hunter2")
        mocker.patch.object(hooks.RemoteOutput, "last_written", side_effect=error)
    notices.take()
    original = mocker.Mock(side_effect=error)
    with pytest.raises(CloudError, match="could not be fetched") as caught:
        hooks.download_output_model(original, cloud)
    cloud.delete()
    cloud.delete_workspace()
    assert cloud.done == ["stop"]
    trace = "".join(traceback.format_exception(caught.value))
    everything = [trace, capsys.readouterr().out, *notices.take()]
    assert not [text for text in everything if "hunter2" in text]
    assert ("scp ended with 1" if where != "ledger" else "lost: ***") in trace


def test_a_machine_that_cannot_be_stopped_is_said_to_be_running(cloud: Cloud, mocker: Any):
    mocker.patch.object(cloud, "stop", side_effect=NotImplementedError("no"))
    notices.take()
    with pytest.raises(CloudError):
        hooks.download_output_model(mocker.Mock(side_effect=OSError("lost")), cloud)
    with pytest.raises(NotImplementedError):
        cloud.delete()
    text = notices.take()[-1]
    assert "still RUNNING" in text
    assert "is stopped" not in text


def failed(cloud: Cloud) -> None:
    cloud.write("model.safetensors", "of this run")
    raise RuntimeError("exit code 1")


def test_what_a_failed_training_has_written_comes_home_and_its_error_stays(cloud: Cloud):
    cloud.write("model-non-ema.safetensors", "of last year", old=True)
    with pytest.raises(RuntimeError, match="exit code 1"):
        hooks.run_trainer(failed, cloud)
    assert cloud.home() == {"model.safetensors": "of this run"}
    cloud.delete()  # as the user has asked for on an error
    assert cloud.done == ["delete"]


def test_a_user_who_wants_no_model_home_gets_none(cloud: Cloud):
    cloud.config.cloud.download_output_model = False
    with pytest.raises(RuntimeError, match="exit code 1"):
        hooks.run_trainer(failed, cloud)
    assert cloud.home() == {}


def test_a_training_whose_files_cannot_be_fetched_keeps_its_own_error(cloud: Cloud, capsys: pytest.CaptureFixture[str]):
    cloud.file_sync.failures = 99
    with pytest.raises(RuntimeError, match="exit code 1"):
        hooks.run_trainer(failed, cloud)
    assert "could not be fetched: connection lost" in capsys.readouterr().out
    cloud.delete()
    assert cloud.done == ["stop"]


def test_the_workspace_waits_while_the_output_is_fetched(cloud: Cloud):
    """OneTrainer synchronises on another thread, over the same SFTP client."""
    cloud.write("model.safetensors", "x")
    order: list[str] = []
    started = threading.Event()

    def synchronise() -> None:
        started.set()
        hooks.sync_workspace(lambda cloud: order.append("workspace"), cloud)

    def slow(cloud: Cloud) -> None:
        thread.start()
        started.wait(10)
        thread.join(0.3)  # would be done by then if it did not wait
        order.append("output")

    thread = threading.Thread(target=synchronise)
    hooks.download_output_model(slow, cloud)
    thread.join(10)
    assert order == ["output", "workspace"]
