"""The seams of a cloud run: what is checked here before a machine is paid for."""

from __future__ import annotations

from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest
from pytest_mock import MockerFixture

from onetrainer_ema_select.errors import CloudError, HostMismatchError, ResumeError, SettingsError
from onetrainer_ema_select.host.cloud import hooks
from onetrainer_ema_select.host.report import Reporter
from onetrainer_ema_select.settings import parse_settings


class Section:
    """As the section of OneTrainer's configuration: raw values, checked when asked."""

    def __init__(self, **values: Any) -> None:
        self.values = {"enabled": True, **values}
        self.resume_backup = ""

    def asks_for_plugin(self) -> bool:
        return self.values["enabled"] is not False

    def settings(self) -> Any:
        return parse_settings(self.values)


class CloudSection:
    def __init__(self, **values: Any) -> None:
        self.enabled = True
        self.delete_workspace = self.download_backups = False
        self.on_finish = "NONE"
        vars(self).update(values)


def config(section: Section | None, cloud: CloudSection | None = None, **more: Any) -> Any:
    return SimpleNamespace(
        ema_select=section,
        cloud=cloud or CloudSection(),
        ema="CPU",
        continue_last_backup=False,
        backup_before_save=False,
        optimizer=SimpleNamespace(optimizer=None),
        workspace_dir="/workspace/remote/run",
        **more,
    )


class Trainer:
    def __init__(self, config: Any, callbacks: Any, commands: Any) -> None:
        self.config, self.callbacks = config, callbacks
        self.error_caught = self.reattach = False
        self.done: list[str] = []
        self.cloud = SimpleNamespace(
            delete=lambda: self.done.append("delete"), stop=lambda: self.done.append("stop"), config=config
        )

    def _stop_tensorboard(self) -> None:
        self.done.append("tensorboard")

    def end(self) -> None:
        """As OneTrainer's, with DELETE for whatever has happened."""
        self.cloud.delete()

    def start(self) -> str:
        return "started"


def made(config: Any, say: Any = print) -> Trainer:
    trainer = Trainer.__new__(Trainer)
    hooks.trainer_init(Trainer.__init__, trainer, config, SimpleNamespace(on_update_status=say), None)
    return trainer


@pytest.fixture
def install(mocker: MockerFixture) -> Any:
    return mocker.patch.object(hooks, "install_cloud", return_value=())


def test_only_a_cloud_run_that_asks_for_the_plugin_touches_onetrainers_cloud(install: Any):
    for each in (
        SimpleNamespace(),
        config(None),
        config(Section(enabled=False)),
        config(Section(), CloudSection(enabled=False)),
    ):
        assert made(each).start() == "started"
    install.assert_not_called()
    asking = config(Section())
    assert made(asking).start() == "started"
    install.assert_called_once_with()
    assert asking.cloud in hooks._runs
    # the window keeps its configuration: the next run of it has the plugin off
    asking.ema_select.values["enabled"] = False
    made(asking)
    assert asking.cloud not in hooks._runs


def test_an_onetrainer_whose_cloud_is_unknown_is_refused_before_it_connects(install: Any):
    install.return_value = ("a seam: found (), expected (self)",)
    said: list[str] = []
    trainer = made(config(Section()), said.append)
    with pytest.raises(HostMismatchError, match="a seam: found"):
        trainer.start()
    assert trainer.error_caught  # so that OneTrainer's `end` takes it for an error, and deletes no workspace
    assert "a seam" in said[-1]
    trainer.end()
    assert trainer.done == ["tensorboard"]


def test_a_reattached_training_is_followed_without_the_plugin_and_its_machine_kept(install: Any):
    install.return_value = ("a seam: found (), expected (self)",)
    said: list[str] = []
    trainer = made(config(Section()), said.append)
    trainer.reattach = True
    assert trainer.start() == "started"
    assert "a seam" in said[-1]
    trainer.end()
    assert trainer.done == ["stop"]


@pytest.fixture
def prepared(mocker: MockerFixture) -> Any:
    return mocker.patch.object(hooks, "prepare")


def set_up(remote: Any) -> tuple[list[str], list[str]]:
    done: list[str] = []
    said: list[str] = []
    hooks._runs[remote.cloud] = hooks.CloudRun(Reporter(said.append))
    hooks.setup(lambda cloud: done.append("connected"), SimpleNamespace(config=remote))
    return done, said


def test_the_plugin_is_brought_there_after_onetrainer_has_connected(prepared: Any):
    prepared.side_effect = lambda cloud, reporter: order.append("prepared")
    order: list[str] = []
    remote = config(Section())
    hooks._runs[remote.cloud] = hooks.CloudRun(Reporter(order.append))
    hooks.setup(lambda cloud: order.append("connected"), SimpleNamespace(config=remote))
    assert order == ["connected", "prepared"]
    off = config(Section(enabled=False))
    hooks.setup(lambda cloud: order.append("connected"), SimpleNamespace(config=off))
    assert order == ["connected", "prepared", "connected"]


@pytest.mark.parametrize(
    ("section", "key"),
    [(Section(save_sets="BOHT"), "save_sets"), (Section(resume_backup="10 epochs"), "continue_last_backup")],
)
def test_wrong_settings_are_refused_before_a_machine_is_made(prepared: Any, section: Section, key: str):
    done: list[str] = []
    said: list[str] = []
    remote = config(section)
    hooks._runs[remote.cloud] = hooks.CloudRun(Reporter(said.append))
    with pytest.raises(SettingsError, match=key):
        hooks.setup(lambda cloud: done.append("connected"), SimpleNamespace(config=remote))
    assert done == []
    assert key in said[-1]
    prepared.assert_not_called()


def test_a_refusal_before_connecting_leaves_an_earlier_machine_as_it_is(install: Any, prepared: Any):
    trainer = made(config(Section(save_sets="BOHT")))
    with pytest.raises(SettingsError):
        hooks.setup(lambda cloud: None, trainer.cloud)
    trainer.end()
    assert trainer.done == []


def test_wrong_settings_do_not_keep_from_a_training_that_runs_there(install: Any, prepared: Any):
    said: list[str] = []
    trainer = made(config(Section(save_sets="BOHT")), said.append)
    trainer.reattach = True
    hooks.setup(lambda cloud: said.append("connected"), trainer.cloud)
    assert "save_sets" in said[0]
    assert said[1] == "connected"
    prepared.assert_called_once()


@pytest.mark.parametrize(("pod", "done"), [("pod-1", ["stop"]), ("", ["delete"])])
def test_a_machine_of_an_earlier_run_that_cannot_have_the_plugin_is_not_deleted(
    install: Any, prepared: Any, pod: str, done: list[str]
):
    prepared.side_effect = CloudError("no pip")
    secrets = SimpleNamespace(cloud=SimpleNamespace(id=pod))
    trainer = made(config(Section(), secrets=secrets))
    with pytest.raises(CloudError):
        hooks.setup(lambda cloud: None, trainer.cloud)
    trainer.end()
    assert trainer.done == done


def test_a_path_in_resume_backup_is_made_one_of_the_machine(prepared: Any, tmp_path: Any):
    local = tmp_path / "run"
    section = Section(resume_backup=str(local / "backup" / "b"))
    remote = config(section, local_workspace_dir=str(local))
    remote.continue_last_backup = True
    set_up(remote)
    assert section.resume_backup == "/workspace/remote/run/backup/b"
    (tmp_path / "elsewhere").mkdir()
    section.values["resume_backup"] = str(tmp_path / "elsewhere")
    with pytest.raises(ResumeError, match="a folder of this machine"):
        set_up(remote)


def test_what_will_be_lost_there_is_said_while_it_can_be_changed(prepared: Any, capsys: pytest.CaptureFixture[str]):
    def printed(cloud: CloudSection, **settings: Any) -> str:
        set_up(config(Section(**settings), cloud))
        return capsys.readouterr().out

    milestones = {"milestones": "10 epochs"}
    assert "go with it (cloud.on_finish)" in printed(CloudSection(on_finish="DELETE"), **milestones)
    assert "go with it (cloud.delete_workspace)" in printed(CloudSection(delete_workspace=True), **milestones)
    assert printed(CloudSection(on_finish="DELETE", download_backups=True), **milestones) == ""
    assert printed(CloudSection(on_finish="STOP"), **milestones) == ""
    assert printed(CloudSection(on_finish="DELETE")) == ""
    # whatever leaves backups, whatever deletes them
    assert "go with it (cloud.on_error)" in printed(CloudSection(on_error="DELETE"), **milestones)
    for change in ({"backup_after_unit": "MINUTE"}, {"continue_last_backup": True}, {"backup_before_save": True}):
        remote = config(Section(), CloudSection(on_error="DELETE"))
        vars(remote).update(change)
        set_up(remote)
        assert "go with it (cloud.on_error)" in capsys.readouterr().out
    for key in ("on_detached_finish", "on_detached_error"):
        assert printed(CloudSection(**{key: "DELETE"}), **milestones) == ""  # OneTrainer looks at it in no such run
        text = printed(CloudSection(**{key: "DELETE"}, detach_trainer=True), **milestones)
        assert f"go with it (cloud.{key})" in text
        assert f"deletes itself (cloud.{key})" in text
    remote = config(Section())
    remote.workspace_dir = "/workspace/remote/backup/run"
    set_up(remote)
    assert "all of it follows cloud.download_backups" in capsys.readouterr().out


def test_unfinished_files_never_come_home_and_a_parked_ema_with_the_backups():
    section = CloudSection(download_backups=False)
    hooks._runs[section] = hooks.CloudRun(Reporter(print))
    workspace = PurePosixPath("/workspace/remote/run/ema_select")

    def comes(path: PurePosixPath) -> Any:
        return hooks.filter_download(lambda config, path: "as OneTrainer says", config=section, path=path)

    assert comes(workspace / "staging" / "x" / "model.safetensors") is False
    assert comes(workspace / "parked" / "x" / "ema.safetensors") is False
    assert comes(workspace / "saves.json") == "as OneTrainer says"
    section.download_backups = True
    assert comes(workspace / "parked" / "x" / "ema.safetensors") is True
    assert comes(workspace / "staging" / "x" / "model.safetensors") is False
    # a later run of the same window that does not ask for the plugin
    del hooks._runs[section]
    assert comes(workspace / "staging" / "x" / "model.safetensors") == "as OneTrainer says"
