"""The processes of a search: runs of main.py, several in parallel, all watched from one loop."""

import logging
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from engine.errors import UserError
from tools.report.course import best_epoch, read_course
from tools.search.child import Child

logger = logging.getLogger("template")
TICK = 0.1  # seconds between two checks of the processes
PATIENCE = 120  # seconds for a run of a killed search to save and exit


@dataclass
class Setup:
    """What all runs share. main: the command; flags: of all runs; folder: --results; lower: whether a lower score is
    better; has_test: whether the data have a test part."""

    main: list
    flags: list
    folder: Path
    monitor: str
    lower: bool
    jobs: int
    has_test: bool

    def command(self, run, values, seed, *what):
        """The command of a run. values: {option: value} in addition to flags; what: flags such as --do_train"""
        place = ["--output_dir", self.folder / "runs", "--model_version", run, "--random_seed", seed]
        own = [f"--{name}={value}" for name, value in values.items()]
        return [*self.main, *self.flags, "--monitor", self.monitor, *own, *what, *place]


def dev_scores(folder):
    """[(epoch from 1, {score: dev value})] of a run so far."""
    records = read_course(folder)["epochs"]
    return [
        (record["epoch"] + 1, {name[4:]: value for name, value in record.items() if name.startswith("dev_")})
        for record in records
    ]


def best_of(folder, monitor):
    """(epoch from 1, {score: dev value}) of a run's best checkpoint; (None, {}) without one."""
    best = best_epoch(read_course(folder), monitor)
    return best, dict(dev_scores(folder)).get(best, {})


class Job:
    """A run as a process. name: of its folder; keep_checkpoints: keep them after the run"""

    def __init__(self, setup, name, values, seed, what, keep_checkpoints=False):
        self.setup, self.name, self.values, self.keep_checkpoints = setup, name, values, keep_checkpoints
        self.folder = setup.folder / "runs" / name
        self.command = setup.command(name, values, seed, *what)
        self.child = None

    def start(self):
        """Starts the process, once a process left by a killed search has released the run."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = self.folder / ".lock"
        if lock.exists():
            try:
                with FileLock(lock, timeout=PATIENCE):
                    pass
            except Timeout:
                raise UserError(f"{self.folder} is in use by another process; end it and start again") from None
        self.child = Child(self.command, self.folder.with_name(f"{self.name}.log"), self.setup.jobs)

    def watch(self):
        """Called repeatedly while it runs."""

    def finish(self):
        """Called when it has ended: collects its results."""

    def interrupted(self):
        """Called when the search stops it: saves what must be kept."""

    def tidy(self):
        """Removes large files that are no longer needed."""
        for path in (self.folder / "checkpoints").glob("step_*"):
            shutil.rmtree(path)
        if not self.keep_checkpoints:
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)


def run_jobs(next_job, slots, stop):
    """Runs jobs from next_job() until it returns None and all have ended. stop: StopSignals; on a signal all jobs save
    and exit, and Interrupted is raised."""
    running = []
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


class TrialJob(Job):
    """A trial of the search: reports each epoch to the study, and stops if the study prunes it.

    out_of_time: a function, whether the search's time is used up; ended: a function to call with the trial's number
    when it has ended.
    """

    def __init__(self, setup, study, number, seed, out_of_time, ended):
        trial = study.trials[number]
        super().__init__(setup, f"{number:04d}", trial.user_attrs["values"], seed, ["--do_train", "--resume"])
        self.study, self.number, self.out_of_time, self.ended = study, number, out_of_time, ended
        self.epochs, self.seen = trial.user_attrs["epochs"], (trial.last_step or 1) - 1
        self.before = {name: trial.user_attrs.get(name, 0.0) for name in ("seconds", "cpu_seconds")}
        self.times = trial.user_attrs.get("times", [])
        self.verdict = self.reason = None

    def cost(self):
        now = {"seconds": self.child.seconds, "cpu_seconds": self.child.cpu_seconds}
        return {name: round(self.before[name] + value, 2) for name, value in now.items()}

    def watch(self):
        self.read()
        if self.verdict is None and self.out_of_time():
            self.give_up("time")

    def read(self):
        """Reports new dev scores in order of epochs, so that the result does not depend on timing."""
        for epoch, scores in dev_scores(self.folder):
            if self.verdict is None and epoch > self.seen:
                self.seen = epoch
                self.take(epoch, scores)

    def take(self, epoch, scores):
        score = scores.get(self.setup.monitor)
        if score is None:  # main.py reports it
            return
        if broken := [name for name in (self.setup.monitor, "loss") if not math.isfinite(scores.get(name, 0.0))]:
            return self.give_up("failed", f"dev {broken[0]} is {scores[broken[0]]} after epoch {epoch}")
        self.study.report(self.number, epoch, score)
        self.times = [*self.times, [epoch, self.cost()["seconds"]]]
        self.study.note(self.number, times=self.times, **self.cost())
        if epoch < self.epochs and self.study.should_prune(self.number):
            self.give_up("pruned", f"worse than the median of the others after epoch {epoch}")

    def give_up(self, verdict, reason=None):
        self.verdict, self.reason = verdict, reason
        self.child.terminate()

    def finish(self):
        if self.verdict == "time" and self.child.code == 0:  # it had just finished
            self.verdict = None
        self.read()
        self.study.note(self.number, **self.cost())
        if self.verdict is None and self.child.code != 0:
            self.verdict, self.reason = "failed", self.child.last_line()
        best, scores = best_of(self.folder, self.setup.monitor)
        if self.verdict is None and best is None:
            self.verdict, self.reason = "failed", "it has no dev score"
        if self.reason:
            self.study.note(self.number, reason=self.reason, code=self.child.code)
        if self.verdict is None:
            self.study.note(self.number, best_epoch=best)
            self.study.end(self.number, "finished", scores[self.setup.monitor])
        elif self.verdict != "time":  # out of time: it stays open and resumes when there is more
            self.study.end(self.number, self.verdict)
        if self.verdict != "time":
            self.tidy()
        self.ended(self.number)

    def interrupted(self):
        self.study.note(self.number, **self.cost())


class FinalJob(Job):
    """A finalist with one seed. test: also score the test part; ended: a function of (job, {"epoch", "dev"}, None), or
    of (job, None, reason) if it failed; spent: a function of its CPU seconds."""

    def __init__(self, setup, number, values, seed, ended, spent, train=True, test=False):
        what = [*(["--do_train", "--resume"] if train else []), *(["--do_eval"] if test else [])]
        super().__init__(setup, f"final-{number:04d}-seed-{seed}", values, seed, what, keep_checkpoints=True)
        self.number, self.seed, self.ended, self.spent, self.test = number, seed, ended, spent, test

    def finish(self):
        self.spent(self.child.cpu_seconds)
        if self.child.code:
            return self.ended(self, None, self.child.last_line())
        best, scores = best_of(self.folder, self.setup.monitor)
        self.tidy()
        self.ended(self, {"epoch": best, "dev": scores}, None)

    def interrupted(self):
        self.spent(self.child.cpu_seconds)
