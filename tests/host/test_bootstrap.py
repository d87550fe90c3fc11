"""One run with the plugin: the script runs as by itself, and the plugin is armed in time, in every process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from onetrainer_ema_select.host import bootstrap

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(onetrainer: Path, tmp_path: Path) -> Run:
    """Runs `scripts/train.py` with the given text through the bootstrap; arming prints a line instead."""
    (onetrainer / "scripts" / "util").mkdir()
    (onetrainer / "scripts" / "util" / "import_util.py").write_text(
        textwrap.dedent(
            """
            def script_imports():
                import sys
                from pathlib import Path
                sys.path.insert(0, str(Path(__file__).absolute().parent.parent.parent))
                print("script_imports")
            """
        ),
        encoding="utf-8",
    )
    (onetrainer / "modules" / "util" / "create.py").write_text("print('create')\n", encoding="utf-8")
    # Python imports it at the start of every process, spawned ones too
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        textwrap.dedent(
            """
            import os
            import onetrainer_ema_select.host as host

            def arm():
                if os.environ.get("FAIL"):
                    from onetrainer_ema_select.errors import HostMismatchError
                    raise HostMismatchError(("a is not b",))
                print("armed", flush=True)

            host.arm = arm
            """
        ),
        encoding="utf-8",
    )

    def start(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        path = onetrainer / "scripts" / "train.py"
        path.write_text(textwrap.dedent(script), encoding="utf-8")
        package = Path(bootstrap.__file__).parents[2]
        return subprocess.run(
            [sys.executable, bootstrap.__file__, str(path), *arguments],
            cwd=onetrainer,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(package)]), **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return start


def test_armed_after_the_script_prepared_and_before_create(run: Run) -> None:
    ran = run(
        """
        from util.import_util import script_imports
        script_imports()
        from modules.util import create
        print("main")
        """
    )
    assert ran.stdout.splitlines() == ["script_imports", "armed", "create", "main"], ran.stderr
    assert ran.returncode == 0


def test_the_script_runs_as_by_itself(run: Run, onetrainer: Path) -> None:
    ran = run(
        """
        import sys
        from pathlib import Path
        print(__name__, __file__, *sys.argv, sep="|")
        print(sys.path[0])
        print([p for p in sys.path if p.rstrip("/\\\\").endswith("host")])
        x: int = 1
        print(__annotations__)  # the bootstrap's compiler flags must not leak
        if __name__ == "__main__":
            sys.exit(3)
        """,
        "--config-path",
        "a b.json",
    )
    script = onetrainer / "scripts" / "train.py"
    assert ran.stdout.splitlines() == [
        f"__main__|{script}|{script}|--config-path|a b.json",
        str(script.parent),
        "[]",
        "{'x': <class 'int'>}",
    ], ran.stderr
    assert ran.returncode == 3


def test_armed_in_spawned_processes_too(run: Run, onetrainer: Path) -> None:
    (onetrainer / "modules" / "trainer" / "worker.py").write_text(
        "from modules.util import create\n\ndef work():\n    print('work', flush=True)\n", encoding="utf-8"
    )
    ran = run(
        """
        from util.import_util import script_imports
        script_imports()
        import multiprocessing
        from modules.trainer.worker import work

        def main():
            process = multiprocessing.get_context("spawn").Process(target=work)
            process.start()
            process.join()
            print("joined", process.exitcode, flush=True)

        if __name__ == "__main__":
            print("main", flush=True)
            main()
        """,
        PYTHONUNBUFFERED="1",
    )
    once = ["script_imports", "armed", "create"]
    assert ran.stdout.splitlines() == [*once, "main", *once, "work", "joined 0"], ran.stderr


def test_what_the_plugin_refuses_is_said_without_a_traceback(run: Run) -> None:
    ran = run(
        """
        from util.import_util import script_imports
        script_imports()
        from modules.util import create
        print("main")
        """,
        FAIL="1",
    )
    assert ran.stdout == "script_imports\n"
    assert ran.stderr.splitlines()[1] == "- a is not b"
    assert "Traceback" not in ran.stderr
    assert ran.returncode == 1


def test_an_error_of_the_script_keeps_its_traceback(run: Run, onetrainer: Path) -> None:
    ran = run("def f():\n    raise ValueError('theirs')\nf()\n")
    assert f'File "{onetrainer / "scripts" / "train.py"}", line 2, in f' in ran.stderr
    assert ran.stderr.endswith("ValueError: theirs\n")
    assert ran.returncode == 1


def test_without_a_script(onetrainer: Path) -> None:
    ran = subprocess.run(
        [sys.executable, bootstrap.__file__], cwd=onetrainer, capture_output=True, text=True, check=False
    )
    assert (ran.stdout, ran.stderr, ran.returncode) == ("", "Usage: python bootstrap.py SCRIPT ARGS...\n", 2)


def test_importing_it_runs_nothing() -> None:
    assert not any(isinstance(finder, bootstrap.ArmBeforeCreate) for finder in sys.meta_path)
