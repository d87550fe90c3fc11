"""OneTrainer's cloud training with the plugin: from this machine to one behind a real SSH server, which is this one.

OneTrainer's own CloudTrainer, LinuxCloud and synchronisation (by scp, and by SFTP for the run that is refused) do all
of it. There is no GPU and no RunPod: what creates, stops and deletes machines is not run here.
"""

from __future__ import annotations

import ast
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from onetrainer_ema_select import __version__
from onetrainer_ema_select.host.cloud.hooks import CloudRun, _runs, filter_download
from onetrainer_ema_select.host.report import Reporter
from onetrainer_ema_select.store import read_metadata

from .bench import configs
from .bench.checkout import Host, copy_checkout, host_environment, package_folder
from .bench.workers import BENCH, Bench

pytestmark = pytest.mark.slow

#: OneTrainer's default is to copy with this program; where it is missing, its own SFTP does it all.
SCP = shutil.which("scp") if shutil.which("ssh-keygen") else None


@dataclass(frozen=True)
class Machine:
    """The cloud machine: its folder, its port, and the commands it was given."""

    root: Path
    port: int
    log: Path

    @property
    def onetrainer(self) -> Path:
        return self.root / "OneTrainer"

    @property
    def key(self) -> Path:
        return self.root / "key"

    @property
    def broken(self) -> Path:
        return self.root / "OneTrainer-without-pip"

    @property
    def remote_dir(self) -> Path:
        return self.root / "workspace"

    def commands(self) -> list[str]:
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]

    def there(self, path: Path) -> Path:
        """Where OneTrainer puts a path of this machine."""
        return self.remote_dir / "remote" / path.relative_to(path.anchor)


def make_environment(host: Host, folder: Path) -> None:
    """A virtual environment of its own that sees the packages of OneTrainer's: what is installed there stays there."""
    subprocess.run([host.python, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = host.python.parents[1].glob("lib/python*/site-packages")
    (own,) = folder.glob("lib/python*/site-packages")
    (own / "onetrainer.pth").write_text(f"import site; site.addsitedir({str(packages)!r})\n", encoding="utf-8")


@pytest.fixture(scope="module")
def machine(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    root = tmp_path_factory.mktemp("machine")
    log = root / "commands"
    process = subprocess.Popen(
        [host.python, BENCH / "ssh_machine.py", log],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=host_environment(package=None),
    )
    made = Machine(root, int(process.stdout.readline()), log)
    copy_checkout(host, made.onetrainer)
    make_environment(host, made.onetrainer / "venv")
    with pytest.MonkeyPatch.context() as patch:
        if SCP:
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", made.key], check=True)
            # the machine's key must not get into the list of known hosts of whoever runs the tests
            script = f'#!/bin/sh\nexec {SCP} -q -o UserKnownHostsFile=/dev/null "$@"\n'
            (root / "bin").mkdir()
            (root / "bin" / "scp").write_text(script, encoding="utf-8")
            (root / "bin" / "scp").chmod(0o755)
            patch.setenv("PATH", str(root / "bin"), prepend=os.pathsep)
        yield made
    process.stdin.close()
    process.wait(timeout=20)


def cloud_config(machine: Machine, bench: Bench, run: Path, **cloud: Any) -> configs.Config:
    """A LoRA on the machine, with milestones, saves and backups."""
    config = bench.config(
        configs.SD15_LORA,
        run=run,
        schedule=configs.Schedule(epochs=2, steps=4, backup_every=3, save_every=3),
        ema="CPU",
        overrides={
            "ema_select": {"enabled": True, "milestones": "1 epochs"},
            # OneTrainer replaces "cpu" with "cuda" for a cloud
            "train_device": "cpu:0", "latent_caching": False,
            "cloud": {
                "enabled": True, "type": "LINUX", "file_sync": "FABRIC_SFTP", "tensorboard_tunnel": False,
                "update_onetrainer": False, "remote_dir": str(machine.remote_dir), "huggingface_cache_dir": "",
                "onetrainer_dir": str(machine.onetrainer), **cloud,
            },
        },
    )  # fmt: skip
    return {**config, "base_model_name": f"cloud:{config['base_model_name']}"}


def train(machine: Machine, bench: Bench, config: configs.Config, run: Path) -> subprocess.CompletedProcess[str]:
    secret = {"key_file": str(machine.key)} if config["cloud"]["file_sync"] == "NATIVE_SCP" else {"password": "any"}
    secrets = {"cloud": {"host": "127.0.0.1", "port": str(machine.port), "user": "root", **secret}}
    path = configs.write_json(run / "secrets.json", secrets)
    return bench.train(config, "--secrets-path", str(path), plugin=True)


@dataclass(frozen=True)
class Trained:
    """A cloud run that has ended: its folder here, how it ended, and the commands that the machine was given."""

    run: Path
    done: subprocess.CompletedProcess[str]
    commands: list[str]


@pytest.fixture(scope="module")
def both(machine: Machine, bench: Bench) -> tuple[Trained, Trained]:
    """A run on the machine, and at the same time one on an OneTrainer there that cannot have the plugin."""
    broken = copy_checkout(bench.host, machine.broken)
    subprocess.run([bench.host.python, "-m", "venv", "--without-pip", broken / "venv"], check=True)
    runs = [bench.new_folder("cloud"), bench.new_folder("refused")]
    # of another workspace's run, which ours may not clear away
    unfinished = machine.there(runs[0] / "workspace") / "save" / ".ema_select-staging-0123abcd-x" / "model.safetensors"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_text("half of it", encoding="utf-8")
    method = "NATIVE_SCP" if SCP else "FABRIC_SFTP"
    options = ({"file_sync": method}, {"onetrainer_dir": str(broken), "remote_dir": str(machine.root / "elsewhere")})
    prepared = [cloud_config(machine, bench, run, **option) for run, option in zip(runs, options, strict=True)]
    with ThreadPoolExecutor() as threads:
        ended = list(threads.map(lambda config, run: train(machine, bench, config, run), prepared, runs))
    commands = machine.commands()
    on_broken = [command for command in commands if str(broken) in command]
    others = [command for command in commands if command not in on_broken]
    good, bad = zip(runs, ended, (others, on_broken), strict=True)
    return Trained(*good), Trained(*bad)


@pytest.fixture(scope="module")
def trained(both: tuple[Trained, Trained]) -> Trained:
    done = both[0].done
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    return both[0]


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def where(commands: list[str], part: str) -> int:
    return next(number for number, command in enumerate(commands) if part in command)


def test_this_very_plugin_is_put_there_before_anything_is_uploaded_or_trained(trained: Trained, machine: Machine):
    installed = where(trained.commands, "-m pip install")
    uploaded = where(trained.commands, "mkdir -p " + str(machine.there(trained.run.parents[1])))
    assert installed < uploaded < where(trained.commands, "train_remote")
    (packages,) = (machine.onetrainer / "venv").glob("lib/python*/site-packages")
    assert files(packages / "onetrainer_ema_select") == files(package_folder() / "onetrainer_ema_select")
    names = {path.name for path in packages.iterdir()}
    assert names == {"onetrainer.pth", "onetrainer_ema_select", f"onetrainer_ema_select-{__version__}.dist-info"}
    assert (machine.onetrainer / "modules" / "modelSetup" / "ema_select_dropin.py").is_file()
    (sent,) = machine.remote_dir.glob("*.json")
    section = json.loads(sent.read_text(encoding="utf-8"))["ema_select"]
    assert (section["enabled"], section["milestones"]) == (True, "1 epochs")


def test_both_sets_come_home(trained: Trained, machine: Machine):
    output = files(trained.run / "output")
    assert set(output) == {"model.safetensors", "model-non-ema.safetensors"}
    assert output == files(machine.there(trained.run / "output"))
    sets = {name: read_metadata(trained.run / "output" / name)["ema_select.set"] for name in output}
    assert sets == {"model.safetensors": "EMA", "model-non-ema.safetensors": "NON_EMA"}


def test_of_the_workspace_comes_home_what_the_flags_say_and_nothing_unfinished(trained: Trained, machine: Machine):
    here, there = files(trained.run / "workspace"), files(machine.there(trained.run / "workspace"))
    assert any("milestones/backup" in name for name in there)  # or this shows nothing
    wanted = {
        name: content
        for name, content in there.items()
        if "backup" not in name.split("/") and "tensorboard" not in name.split("/") and "staging" not in name
    }
    # OneTrainer leaves what it has sent in the workspace here
    assert {name: content for name, content in here.items() if not name.startswith("remote_config-")} == wanted
    assert len([name for name in wanted if name.startswith("save/")]) == 6
    assert "ema_select/saves.json" in wanted


def host_rule(host: Host) -> Callable[..., bool]:
    """OneTrainer's own `BaseCloud._filter_download`, from its source: what its module imports is not needed here."""
    source = (host.directory / "modules" / "cloud" / "BaseCloud.py").read_text(encoding="utf-8")
    (function,) = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name == "_filter_download"
    ]
    function.decorator_list = []
    for argument in function.args.args:
        argument.annotation = None
    space: dict[str, Any] = {}
    exec(compile(ast.fix_missing_locations(ast.Module([function], [])), "BaseCloud.py", "exec"), space)
    return space["_filter_download"]


FLAGS = ("download_samples", "download_saves", "download_backups", "download_tensorboard")


@pytest.mark.parametrize("values", list(itertools.product((False, True), repeat=4)), ids=str)
def test_what_comes_home_of_a_workspace_for_every_choice_of_flags(
    trained: Trained, machine: Machine, host: Host, values: tuple[bool, ...]
):
    workspace = PurePosixPath("/workspace/remote/run")
    ours = [
        "ema_select/staging/tmpab12/2026-11-24_14-48-37-backup-2-0-2/ema/ema.pt",
        "ema_select/.saves.json.4711.tmp",
        "backup/2026-11-24_14-48-37-backup-2-0-2/ema_select/.checksums.json.4711.tmp",
        "ema_select/parked/2026-11-24_14-48-37/ema.safetensors",
        "ema_select/parked/2026-11-24_14-48-37/manifest.json",
        "ema_select/output/model-non-ema.safetensors",
        "ema_select/post_hoc/backup/2026-11-24_14-48-37-snapshot-2-0-2/sigma_rel-0.05.safetensors",
        "ema_select/post_hoc/backup/2026-11-24_14-48-37-snapshot-2-0-2/manifest.json",
        "ema_select/validation.jsonl",
        "samples/prompt/0.png",
    ]
    names = [*files(machine.there(trained.run / "workspace")), *ours]
    flags = dict(zip(FLAGS, values, strict=True))
    rule = host_rule(host)
    section = type("CloudConfig", (), flags)()
    _runs[section] = CloudRun(Reporter(print))
    home = {name for name in names if filter_download(rule, config=section, path=workspace / name)}
    by_folder = {
        "save": "download_saves", "backup": "download_backups", "ema_select/milestones": "download_backups",
        "ema_select/parked": "download_backups", "tensorboard": "download_tensorboard", "samples": "download_samples",
        "config": None, "ema_select/saves.json": None, "ema_select/output": None, "ema_select/drift.jsonl": None,
        "ema_select/validation.jsonl": None, "ema_select/post_hoc": "download_backups",
    }  # fmt: skip
    expected = {
        name
        for name in names
        for folder, flag in by_folder.items()
        if name.startswith(folder) and ".ema_select-staging" not in name and not name.endswith(".tmp")
        if flag is None or flags[flag]
    }
    assert home == expected


def test_a_machine_that_cannot_have_it_trains_nothing(both: tuple[Trained, Trained], machine: Machine):
    refused = both[1]
    assert refused.done.returncode != 0
    assert any("-m pip install" in command for command in refused.commands)
    assert not any("train_remote" in command for command in refused.commands)
    assert not machine.there(refused.run).exists()  # nothing was uploaded either
    error = refused.done.stderr
    last = error[error.rindex("Nothing was trained on the cloud machine") :]
    for part in (
        f"enabled, in the Python of {machine.broken}",
        "No module named pip",
        "ema_select.enabled=false",
        "doctor .",
    ):
        assert part in last, last
