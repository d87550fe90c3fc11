"""Into the real OneTrainer and out again by the scripts, and what it does when its environment was made anew."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

from onetrainer_ema_select import __version__
from onetrainer_ema_select.wheel import NAME

from .bench.checkout import Host, copy_checkout, host_environment

# of another folder of tests, which is no package that can be imported from here
_HELPERS = runpy.run_path(str(Path(__file__).parents[1] / "installer" / "conftest.py"), run_name="installer_helpers")
copy_clone, files_in, git = _HELPERS["copy_clone"], _HELPERS["files_in"], _HELPERS["git"]
libraries_of, ours, python_of = _HELPERS["libraries_of"], _HELPERS["ours"], _HELPERS["python_of"]

#: What the window does with configs: its top bar loads them into the one that its rows show; then it trains.
WINDOW = """
import json, sys
sys.path.insert(0, ".")
from modules.util import create
from modules.trainer.GenericTrainer import GenericTrainer
from modules.ui.TopBarController import TopBarController
from modules.util.callbacks.TrainCallbacks import TrainCallbacks
from modules.util.commands.TrainCommands import TrainCommands
from modules.util.config.TrainConfig import TrainConfig
from modules.util.ui.UIState import BaseUIState

class Variable:
    def __init__(self, value): self.value = value
    def get(self): return self.value
    def set(self, value): self.value = value
    def trace_add(self, mode, call): pass

class State(BaseUIState):
    _make_str_var = _make_bool_var = lambda self, value: Variable(value)
    _make_nested_state = lambda self, obj: State(obj)

config = TrainConfig.default_values()
rows = State(config)
bar = TopBarController(config)
for file in sys.argv[1:]:
    rows.update(bar.load_config_from_file(file))
    statuses = []
    callbacks = TrainCallbacks(on_update_status=statuses.append)
    trainer = create.create_trainer(config, callbacks, TrainCommands())
    assert isinstance(trainer, GenericTrainer)
    said = "would start"
    if "start" in vars(trainer):
        try:
            trainer.start()
        except RuntimeError as error:
            said = str(error)
    trainer.end()
    print(json.dumps(["RESULT", said, statuses, config.to_settings_dict(secrets=False)["ema_select"]]))
"""


class Place:
    """A copy of OneTrainer under git, with an environment in it that finds OneTrainer's packages."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.host = copy_checkout(host, folder / "One Trainer")
        shutil.rmtree(self.host / ".git")
        git(self.host, "init", "--quiet")
        git(self.host, "add", ".")
        git(self.host, "commit", "--quiet", "-m", "all")
        self.environment = self.host / "venv"
        subprocess.run([host.python, "-m", "venv", "--without-pip", self.environment], check=True)
        for libraries in libraries_found(host.python):
            with (self.libraries / "onetrainer.pth").open("a", encoding="utf-8") as file:
                file.write(f"import site; site.addsitedir({libraries!r})\n")
        self.clone = copy_clone(folder / NAME)
        self.packages = self.listed()
        self.files = files_in(self.environment)

    @property
    def libraries(self) -> Path:
        return next(iter(self.environment.glob("lib/python*/site-packages")), libraries_of(self.environment))

    def python(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(python_of(self.environment)), *map(str, arguments)],
            cwd=self.host,
            env=host_environment(package=None),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )

    def listed(self) -> set[str]:
        code = "from importlib.metadata import distributions as all\nfor one in all(): print(one.name, one.version)"
        return set(self.python("-I", "-c", code).stdout.splitlines())

    def script(self, name: str) -> subprocess.CompletedProcess[str]:
        command = [self.clone / f"{name}.bat"] if os.name == "nt" else ["bash", self.clone / f"{name}.sh"]
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("ONETRAINER_", "OT_", "VENV_"))}
        return subprocess.run(
            [*command, str(self.host)],
            env=kept,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )

    def status(self) -> str:
        return git(self.host, "status", "--porcelain", "--untracked-files=all")


def libraries_found(python: Path) -> list[str]:
    code = "import json, sysconfig; print(json.dumps([sysconfig.get_path('purelib'), sysconfig.get_path('platlib')]))"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True)
    return sorted(set(json.loads(done.stdout)))


@pytest.fixture(scope="module")
def place(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Place:
    if shutil.which("git") is None:
        pytest.skip("there is no git")
    return Place(host, tmp_path_factory.mktemp("installed"))


def test_installed_used_without_its_package_and_taken_out(host: Host, place: Place, tmp_path: Path) -> None:
    ran = place.script("install")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"installed    {NAME} {__version__} (new); no other package was changed" in ran.stdout
    assert len(place.packages) > 50
    assert place.listed() - place.packages == {f"{NAME} {__version__}"}
    assert place.packages <= place.listed()
    added = files_in(place.environment).keys() - place.files.keys()
    assert added == set(ours(added)) != set()
    assert place.status() == "?? modules/modelSetup/ema_select_dropin.py\n"

    # the environment was made anew: the file in OneTrainer is there, the package is not
    for one in ours(place.libraries.iterdir()):
        shutil.rmtree(one)
    assert place.listed() == place.packages
    base = {"__version": host.config_version, "workspace_dir": str(tmp_path / "run"), "tensorboard": False}
    base["train_device"] = "cpu"
    section = {"enabled": True, "milestones": "every 2 epochs"}
    for name, config in (("asks", {**base, "ema_select": section}), ("plain", base)):
        (tmp_path / f"{name}.json").write_text(json.dumps(config), encoding="utf-8")
    done = place.python("-c", WINDOW, *(tmp_path / f"{name}.json" for name in ("asks", "plain")))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["RESULT"')]
    python = python_of(place.environment)
    dropin = place.host / "modules" / "modelSetup" / "ema_select_dropin.py"
    said = (
        "This config asks for onetrainer-ema-select (ema_select.enabled), which is not active: it is not installed in "
        f"{python}. No model was loaded. To train with it, run the plugin's script install again; to train without it, "
        f"delete {dropin}"
    )
    assert found == [
        ["RESULT", said, [said], {"__version": 0, **section}],
        ["RESULT", "would start", [], {"__version": 0, "enabled": False}],
    ]
    assert f"OneTrainer runs WITHOUT {NAME}, it is not installed in {python}." in done.stderr

    out = place.script("uninstall")
    assert out.returncode == 0, out.stdout + out.stderr
    assert place.status() == ""
    assert ours(path.relative_to(place.host) for path in place.host.rglob("*")) == []
    assert files_in(place.environment) == place.files
