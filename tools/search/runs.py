"""Runs main.py in parallel processes, which are monitored in a loop."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from engine.errors import UserError
from engine.run.signals import StopSignals
from tools.report.history import best_epoch, read_history
from tools.search.child import Child
from tools.search.plan import Plan
from tools.search.space import Values
from tools.search.study import Study

TICK = 0.1  # polling interval in seconds
PATIENCE = 120  # seconds to wait for a run of a killed search to save and exit


def dev_scores(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Reads the dev scores of a run. Returns [(one-based epoch, {score: value})]."""
    return [
        (record["epoch"] + 1, {name[4:]: value for name, value in record.items() if name.startswith("dev_")})
        for record in read_history(folder)["epochs"]
    ]


def best_of(folder: Path, monitor: str) -> tuple[int | None, dict[str, float]]:
    """Returns (one-based epoch, {score: value}) of a run's best checkpoint on dev, or (None, {})."""
    best = best_epoch(read_history(folder), monitor)
    return best, {} if best is None else dict(dev_scores(folder)).get(best, {})


class Clock:
    """Measures the duration of a stage in seconds, including earlier starts of the search. name: key in the study."""

    def __init__(self, study: Study, name: str) -> None:
        self.study, self.name, self.before, self.start = study, name, study.get(name, 0.0), time.monotonic()

    def seconds(self) -> float:
        return self.before + time.monotonic() - self.start

    def store(self) -> None:
        self.study.set(self.name, round(self.seconds(), 2))


class Job:
    """A run in a separate process. name: name of the run's folder. flags: --do_train, …."""

    keeps_checkpoints = False

    def __init__(self, plan: Plan, name: str, values: Values, seed: int, *flags: str) -> None:
        self.plan, self.name, self.folder = plan, name, plan.folder / "runs" / name
        self.command = plan.command(name, values, seed, *flags)

    def start(self) -> None:
        """Waits until the run is no longer locked by a process of a killed search, and starts the process."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = self.folder / ".lock"
        if lock.exists():
            try:
                with FileLock(lock, timeout=PATIENCE):
                    pass
            except Timeout:
                raise UserError(f"{self.folder} is in use by another process; stop it and try again") from None
        self.child = Child(self.command, self.folder.with_name(f"{self.name}.log"), self.plan.config.jobs)

    def watch(self) -> None:
        """Monitors the run. Called repeatedly while it is active."""

    def finish(self) -> None:
        """Collects the results. Called when the run has ended."""

    def interrupted(self) -> None:
        """Saves the state of the job. Called when the search is stopped."""

    def tidy(self) -> None:
        """Removes large files that are no longer needed."""
        for path in (self.folder / "checkpoints").glob("step_*"):
            shutil.rmtree(path)
        if not self.keeps_checkpoints:
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)


def run_jobs(next_job: Callable[[], Job | None], slots: int, stop: StopSignals) -> None:
    """Runs jobs from `next_job` until it returns None and all jobs have ended. On a signal, terminates all jobs, which
    save and exit, and raises Interrupted."""
    running: list[Job] = []
    try:
        while True:
            stop.check()
            while len(running) < slots and (job := next_job()) is not None:
                job.start()
                running.append(job)
            if not running:
                return
            for job in list(running):
                job.watch()
                if job.child.poll() is not None:
                    running.remove(job)
                    job.finish()
            time.sleep(TICK)
    finally:
        for job in running:
            job.child.terminate()
        for job in running:
            job.child.wait()
            job.interrupted()
