"""The processes of a search: each a run of main.py, so many side by side, all watched from one loop."""

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
TICK = 0.1  # seconds between two looks at the processes
PATIENCE = 120  # seconds for a run that a killed search left behind to save and end


@dataclass
class Setup:
    """What all runs share. main: the command; flags: for all of them; folder: --results; lower: whether a lower score
    is better; has_test: whether the data have a test part."""

    main: list
    flags: list
    folder: Path
    monitor: str
    lower: bool
    jobs: int
    has_test: bool

    def command(self, run, values, seed, *what):
        """Of a run. values: {option: value} beside the flags; what: it is to do."""
        place = ["--output_dir", self.folder / "runs", "--model_version", run, "--random_seed", seed]
        own = [f"--{name}={value}" for name, value in values.items()]
        return [*self.main, *self.flags, "--monitor", self.monitor, *own, *what, *place]


def dev_scores(folder):
    """[(epoch from 1, {score: value on dev})] of a run so far."""
    records = read_course(folder)["epochs"]
    return [
        (record["epoch"] + 1, {name[4:]: value for name, value in record.items() if name.startswith("dev_")})
        for record in records
    ]


def best_of(folder, monitor):
    """(epoch from 1, {score: value on dev}) of the checkpoint that a run keeps as its best. (None, {}) without."""
    best = best_epoch(read_course(folder), monitor)
    return best, dict(dev_scores(folder)).get(best, {})


class Job:
    """A run as a process. name: of its folder; keep_checkpoints: when it has ended."""

    def __init__(self, setup, name, values, seed, what, keep_checkpoints=False):
        self.setup, self.name, self.values, self.keep_checkpoints = setup, name, values, keep_checkpoints
        self.folder = setup.folder / "runs" / name
        self.command = setup.command(name, values, seed, *what)
        self.child = None

    def start(self):
        """Starts it, once no process of a search that was killed has the run any more."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = self.folder / ".lock"
        if lock.exists():
            try:
                with FileLock(lock, timeout=PATIENCE):
                    pass
            except Timeout:
                raise UserError(f"{self.folder} is in use by another process; end it, and start again") from None
        self.child = Child(self.command, self.folder.with_name(f"{self.name}.log"), self.setup.jobs)

    def watch(self):
        """Looks at it while it runs."""

    def finish(self):
        """Takes what it left."""

    def interrupted(self):
        """The search ends, and it with it: what is to be kept."""

    def tidy(self):
        """Removes what is large and of no more use."""
        for path in (self.folder / "checkpoints").glob("step_*"):
            shutil.rmtree(path)
        if not self.keep_checkpoints:
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)


def run_jobs(next_job, slots, stop):
    """Runs what next_job() gives until it gives None and all have ended. stop: StopSignals; a signal ends all of them,
    each saves first, and raises Interrupted."""
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
    """A trial of the search: told to the study epoch by epoch, and stopped when the study gives it up.

    out_of_time: a function that says whether the search's time is used; ended: one to call with the number of the
    trial when it has ended.
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
        """Takes the dev scores that have come, in their order, so that the clock decides nothing."""
        for epoch, scores in dev_scores(self.folder):
            if self.verdict is None and epoch > self.seen:
                self.seen = epoch
                self.take(epoch, scores)

    def take(self, epoch, scores):
        score = scores.get(self.setup.monitor)
        if score is None:  # main.py says so itself
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
        if self.verdict == "time" and self.child.code == 0:  # it was done just then
            self.verdict = None
        self.read()
        self.study.note(self.number, **self.cost())
        if self.verdict is None and self.child.code != 0:
            self.verdict, self.reason = "failed", self.child.last_line()
        best, scores = best_of(self.folder, self.setup.monitor)
        if self.verdict is None and best is None:
            self.verdict, self.reason = "failed", "it left no dev score"
        if self.reason:
            self.study.note(self.number, reason=self.reason, code=self.child.code)
        if self.verdict is None:
            self.study.note(self.number, best_epoch=best)
            self.study.end(self.number, "finished", scores[self.setup.monitor])
        elif self.verdict != "time":  # else it stays as it is, and goes on when there is more of it
            self.study.end(self.number, self.verdict)
        if self.verdict != "time":
            self.tidy()
        self.ended(self.number)

    def interrupted(self):
        self.study.note(self.number, **self.cost())


class FinalJob(Job):
    """A finalist with one seed. test: score the test part as well; ended: a function of (job, {"dev", "test", …}), or
    None and a reason if it failed."""

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
