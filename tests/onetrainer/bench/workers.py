"""Runs jobs in OneTrainer: one long-lived process each with and without the plugin, or a fresh one.

``Bench.start`` puts jobs into the queue of the process they belong to and returns at once, so that jobs with and
without the plugin run side by side; ``Bench.run`` waits for them.
"""

from __future__ import annotations

import queue
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from . import configs
from .checkout import Host, host_environment, package_folder, run_python
from .recording import Recording

REPLY = "bench-reply "  # as in record.py
BENCH = Path(__file__).parent
START_SECONDS = 180
JOB_SECONDS = 240


@dataclass(frozen=True)
class Job:
    """One training to be done and recorded.

    Attributes:
        name: For messages and folder names.
        config: OneTrainer's configuration, see ``configs.make_config``.
        seed: For torch, numpy and Python, set right before the trainer is made.
        reseed: Seed again before every step, from the step's number: a model with dropout (Stable Cascade) draws
            from torch's global state, which no backup holds, so that a resumed run could never equal another.
        record: Which sets to write down after every step: ``live``, ``ema``. Both are always written at the end.
        actions: What to do after a step, by its number: ``save``, ``backup``, ``sample_default``,
            ``sample_custom``, ``stop`` (OneTrainer's commands); ``interrupt`` (Ctrl-C), ``crash`` (an exception
            that OneTrainer does not catch), ``exit:N`` (the process is gone at once; the bench starts another).
        hook: ``(file, function)``: ``function(trainer)`` returns a context manager; the run happens inside it.
    """

    name: str
    config: dict[str, Any]
    seed: int = 0
    reseed: bool = False
    record: tuple[str, ...] = ()
    actions: dict[int, tuple[str, ...]] = field(default_factory=dict)
    hook: tuple[Path, str] | None = None

    def write(self, folder: Path) -> Path:
        """Write the job for ``record.py``; its results will lie in the same folder."""
        return configs.write_json(
            folder / "job.json",
            {
                "name": self.name, "config": self.config, "seed": self.seed, "reseed": self.reseed,
                "record": self.record, "actions": {str(step): list(what) for step, what in self.actions.items()},
                "hook": ":".join(map(str, self.hook)) if self.hook else None, "output": str(folder),
            },
        )  # fmt: skip


class Batch:
    """Jobs on their way."""

    def __init__(self, futures: Sequence[Future[Recording]]) -> None:
        self.futures = list(futures)

    def results(self) -> list[Recording]:
        """Wait for the recordings, in the order of the jobs; a run that failed has a recording too."""
        return [future.result() for future in self.futures]


class Worker:
    """A ``record.py`` process in a checkout; started when first needed, and again after it has died."""

    def __init__(self, host: Host, *, checkout: Path, package: Path | None, log: Path, real_clock: bool) -> None:
        self.host, self.checkout, self.package, self.log = host, checkout, package, log
        self.arguments = ["--real-clock"] if real_clock else []
        self.process: subprocess.Popen[str] | None = None
        self.replies: queue.Queue[str] = queue.Queue()
        self.threads = ThreadPoolExecutor(max_workers=1)

    def submit(self, job: Job, folder: Path) -> Future[Recording]:
        """Queue a job."""
        return self.threads.submit(self.work, job, folder)

    def warm_up(self) -> None:
        """Begin the imports now."""
        self.threads.submit(self.ensure_running)

    def ensure_running(self) -> subprocess.Popen[str]:
        """The process, started if need be; waits until its imports are done."""
        if self.process is None or self.process.poll() is not None:
            self.replies = queue.Queue()
            with self.log.open("a") as log:
                self.process = subprocess.Popen(
                    [str(self.host.python), "-u", str(BENCH / "record.py"), *self.arguments],
                    cwd=self.checkout,
                    env=host_environment(package=self.package),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    encoding="utf-8",
                )
            threading.Thread(target=self.listen, args=(self.process, self.replies), daemon=True).start()
            self.reply(START_SECONDS)
        return self.process

    @staticmethod
    def listen(process: subprocess.Popen[str], replies: queue.Queue[str]) -> None:
        """Pass a process's replies on, and nothing else it prints; an empty one says that it has ended."""
        if process.stdout is not None:
            for line in process.stdout:
                if line.startswith(REPLY):
                    replies.put(line.removeprefix(REPLY).strip())
        replies.put("")

    def reply(self, seconds: float) -> str:
        """The next reply, empty if the process has ended; ends a process that does not answer."""
        try:
            return self.replies.get(timeout=seconds)
        except queue.Empty:
            if self.process is not None:
                self.process.kill()
            raise TimeoutError(f"no answer in {seconds} s; see {self.log}") from None

    def work(self, job: Job, folder: Path) -> Recording:
        """Do one job."""
        process = self.ensure_running()
        path = job.write(folder)
        if process.stdin is None or process.poll() is not None:
            raise RuntimeError(f"the worker did not start:\n{self.log.read_text(encoding='utf-8')[-6000:]}")
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        if not self.reply(JOB_SECONDS):
            process.wait(timeout=30)
            if not (folder / "result.json").is_file():
                raise RuntimeError(f"{job.name}: the worker died, exit code {process.returncode}; see {self.log}")
        return Recording(folder, job.config)

    def close(self) -> None:
        """End the process when its jobs are done."""
        self.threads.shutdown(wait=True, cancel_futures=True)
        if self.process is not None:
            if self.process.stdin is not None:
                self.process.stdin.close()
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.process.kill()


class MakeCheckout(Protocol):
    """Gives the private copy of OneTrainer with or without the plugin enabled in it."""

    def __call__(self, *, plugin: bool) -> Path: ...


class Bench:
    """Everything a test needs: configurations for the tiny models, and jobs run in the real OneTrainer."""

    def __init__(self, host: Host, *, checkout: MakeCheckout, models: Path, folder: Path) -> None:
        self.host, self.checkout, self.models, self.folder = host, checkout, models, folder
        self.workers: dict[bool, Worker] = {}
        self.count = 0

    def new_folder(self, name: str) -> Path:
        """An empty folder for a run."""
        self.count += 1
        folder = self.folder / f"{self.count:03d}-{name}"
        folder.mkdir(parents=True)
        return folder

    def config(self, family: configs.Family, *, run: Path | None = None, **options: Any) -> configs.Config:
        """``configs.make_config`` for this host and these models, in a new folder unless ``run`` is given."""
        return configs.make_config(
            family,
            models=self.models,
            run=run or self.new_folder(family.name),
            config_version=self.host.config_version,
            **options,
        )

    def package(self, *, plugin: bool) -> Path | None:
        """The folder to put on OneTrainer's path."""
        return package_folder() if plugin else None

    def new_worker(self, *, plugin: bool, real_clock: bool = False) -> Worker:
        """A worker that is not started yet."""
        return Worker(
            self.host,
            checkout=self.checkout(plugin=plugin),
            package=self.package(plugin=plugin),
            log=self.folder / f"worker-{'plugin' if plugin else 'plain'}.log",
            real_clock=real_clock,
        )

    def worker(self, *, plugin: bool) -> Worker:
        """The long-lived worker of a kind."""
        if plugin not in self.workers:
            self.workers[plugin] = self.new_worker(plugin=plugin)
        return self.workers[plugin]

    def start(self, jobs: Sequence[Job], *, plugin: bool) -> Batch:
        """Queue jobs; those of one kind are done one after the other, in this order."""
        worker = self.worker(plugin=plugin)
        return Batch([worker.submit(job, self.new_folder(f"job-{job.name}")) for job in jobs])

    def run(self, jobs: Sequence[Job], *, plugin: bool) -> list[Recording]:
        """Do jobs and wait for their recordings."""
        return self.start(jobs, plugin=plugin).results()

    def run_fresh(self, jobs: Sequence[Job], *, plugin: bool, real_clock: bool = False) -> list[Recording]:
        """Do jobs one after the other in a process of their own (10 s more)."""
        worker = self.new_worker(plugin=plugin, real_clock=real_clock)
        try:
            folders = [self.new_folder(f"fresh-{job.name}") for job in jobs]
            return [worker.submit(job, folder).result() for job, folder in zip(jobs, folders, strict=True)]
        finally:
            worker.close()

    def train(self, config: configs.Config, *arguments: str, plugin: bool) -> subprocess.CompletedProcess[str]:
        """OneTrainer's own ``scripts/train.py --config-path CONFIG ARGUMENTS`` in a process of its own."""
        path = configs.write_json(Path(config["workspace_dir"]).parent / "config.json", config)
        command = [Path("scripts") / "train.py", "--config-path", path, *arguments]
        return run_python(self.host, command, cwd=self.checkout(plugin=plugin), package=self.package(plugin=plugin))

    def close(self) -> None:
        """End the workers."""
        for worker in self.workers.values():
            worker.close()
