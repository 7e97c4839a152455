"""The two stages of a search: many trials with one seed, then the best and the default with several seeds."""

import json
import logging
import shutil
import statistics
import time

from engine.errors import UserError
from tools.search.runs import FinalJob, TrialJob, run_jobs

logger = logging.getLogger("template")
HOPELESS = 5  # if this many trials failed and none succeeded, the search ends


class Clock:
    """Seconds that a stage took over all starts of the search. name: the key in the study"""

    def __init__(self, study, name):
        self.study, self.name, self.before, self.began = study, name, study.get(name, 0.0), time.monotonic()

    def seconds(self):
        return self.before + time.monotonic() - self.began

    def keep(self):
        self.study.set(self.name, round(self.seconds(), 2))


class SearchStage:
    """Runs trials until there are enough or the time is used up.

    resolver: a Resolver; space: {name: Dimension}; seed: of the runs; hours: 0 for no limit; bar: a tqdm over the
    trials.
    """

    def __init__(self, setup, study, resolver, space, trials, seed, hours, bar):
        self.setup, self.study, self.resolver, self.space = setup, study, resolver, space
        self.trials, self.seed, self.limit, self.bar = trials, seed, 3600 * hours or float("inf"), bar
        self.clock = Clock(study, "search_seconds")
        self.left = [trial.number for trial in study.of_state("stopped")]  # left by a search that was stopped

    def run(self, stop):
        if not self.left and (
            len(self.study.trials) >= self.trials or self.study.get("search_seconds", 0) > self.limit
        ):
            return
        self.show()
        try:
            run_jobs(self.next_job, self.setup.jobs, stop)
        finally:
            self.clock.keep()
        if self.out_of_time():
            ended = len(self.study.trials) - self.study.counts()["stopped"]
            logger.info(f"--hours are used up: the search ends with {ended} of {self.trials} trials done")

    def out_of_time(self):
        return self.clock.seconds() > self.limit

    def next_job(self):
        """The next trial that needs a process, or None."""
        while not self.out_of_time() and not self.is_hopeless():
            if self.left:
                return self.job(self.left.pop(0))
            if len(self.study.trials) >= self.trials:
                return None
            if (number := self.add(len(self.study.trials))) is not None:
                return self.job(number)
            self.show()
        return None

    def job(self, number):
        return TrialJob(self.setup, self.study, number, self.seed, self.out_of_time, self.ended)

    def is_hopeless(self):
        counts = self.study.counts()  # running trials do not count yet
        return counts["failed"] >= HOPELESS and not counts["finished"] + counts["pruned"]

    def add(self, number):
        """Stores trial `number`. -> its number, or None if it needs no process. The first is the default."""
        default = number == 0
        point = self.resolver.default(self.space) if default else self.study.propose(number)
        values = {} if default else self.resolver.values(point)
        try:
            epochs = (self.resolver.base if default else self.resolver.config(point)).epochs
        except UserError as mistake:
            self.study.add(point, "failed", values=values, reason=str(mistake), code=2)
            self.tell(number)
            return None
        if twin := self.study.twin(values):
            told = {"values": values, "epochs": epochs, "twin": twin.user_attrs.get("twin", twin.number)}
            told |= {"best_epoch": twin.user_attrs.get("best_epoch")}
            self.study.add(point, self.study.state(twin.number), twin.value, twin.intermediate_values, **told)
            self.tell(number)
            return None
        return self.study.add(point, values=values, epochs=epochs, default=default)

    def ended(self, number):
        self.clock.keep()
        self.tell(number)
        self.show()

    def tell(self, number):
        """Logs the outcome of a trial."""
        trial, state = self.study.trials[number], self.study.state(number)
        kept, options = (
            trial.user_attrs,
            " ".join(f"--{name}={value}" for name, value in trial.user_attrs["values"].items()),
        )
        if "twin" in kept:
            said = f"has the options of trial {kept['twin']} and is not run again"
        elif state == "finished":
            said = f"dev {self.setup.monitor} {trial.value:.4f} after epoch {kept['best_epoch']}"
        else:
            said = f"{state}: {kept['reason']}" if "reason" in kept else f"{state}: the time is used up"
        logger.info(f"trial {number} ({options or 'the default'}) {said}")

    def show(self):
        """Updates the progress bar."""
        counts = self.study.counts()
        self.bar.n, pruned = len(self.study.trials) - counts["stopped"], counts["pruned"]
        if best := self.study.ranked()[:1]:
            name = f"best dev {self.setup.monitor}"
            self.bar.set_postfix_str(f"{name} {best[0].value:.4f} (trial {best[0].number}), {pruned} pruned", False)
        self.bar.refresh()


class FinalStage:
    """Trains the finalists and the default with several seeds, then scores the winner and the default on test.

    numbers: of the trials, the default first; seeds: of the runs; bar: a tqdm over the runs
    """

    def __init__(self, setup, study, numbers, seeds, bar):
        self.setup, self.study, self.numbers, self.seeds, self.bar = setup, study, numbers, seeds, bar
        self.clock = Clock(study, "final_seconds")
        self.failed = {}  # {number: reason}; not saved, so a restart tries them again

    def find(self, number, seed, what="final"):
        """{"epoch", "dev": {score: value}}, or {score: value} of "test"; None if that run is not done."""
        return self.study.get(f"{what} {number} {seed}")

    def is_done(self, number, what="final"):
        return all(self.find(number, seed, what) for seed in self.seeds)

    def run(self, stop):
        """-> the number of the winner by mean dev score, or None if no candidate finished with all seeds"""
        runs = [(number, seed) for seed in self.seeds for number in self.numbers]
        self.todo = [run for run in runs if not self.is_ready(*run)]
        self.bar.reset(len(runs))
        self.run_all(len(runs), self.train, stop)
        done = [number for number in self.numbers if self.is_done(number)]
        if not done:
            return None
        means = {number: self.mean(number) for number in done}
        winner = min(done, key=lambda number: (means[number] if self.setup.lower else -means[number], number))
        if self.setup.has_test:
            self.todo = [(winner, seed) for seed in self.seeds if not self.find(winner, seed, "test")]
            self.run_all(len(runs) + len(self.todo), self.score, stop)
        for number in self.numbers:
            if number != winner:
                for seed in self.seeds:
                    folder = self.setup.folder / f"runs/final-{number:04d}-seed-{seed}"
                    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return winner

    def is_ready(self, number, seed):
        """Whether nothing is left to do. The default always needs test scores."""
        needs_test = number == 0 and self.setup.has_test
        return bool(self.find(number, seed) and (not needs_test or self.find(number, seed, "test")))

    def run_all(self, total, make, stop):
        if not self.todo:
            return
        self.clock, self.make = Clock(self.study, "final_seconds"), make
        self.bar.total, self.bar.n = total, total - len(self.todo)
        self.bar.refresh()
        try:
            run_jobs(self.next_job, self.setup.jobs, stop)
        finally:
            self.clock.keep()

    def next_job(self):
        while self.todo:
            number, seed = self.todo.pop(0)
            if number not in self.failed:
                return self.make(number, seed)
        return None

    def train(self, number, seed):
        return self.job(number, seed, test=number == 0 and self.setup.has_test)

    def score(self, number, seed):
        """A job that scores test, without training if the checkpoint exists."""
        best = self.setup.folder / f"runs/final-{number:04d}-seed-{seed}/checkpoints/best"
        return self.job(number, seed, train=not best.is_dir(), test=True)

    def job(self, number, seed, **what):
        values = self.study.trials[number].user_attrs["values"]
        return FinalJob(self.setup, number, values, seed, self.ended, self.spent, **what)

    def spent(self, cpu_seconds):
        self.study.set("final_cpu_seconds", round(self.study.get("final_cpu_seconds", 0.0) + cpu_seconds, 2))
        self.clock.keep()

    def ended(self, job, record, reason):
        self.bar.update()
        if record is None:
            self.failed[job.number] = reason
            logger.info(f"trial {job.number} with seed {job.seed} failed and is not a finalist: {reason}")
            return
        if job.test:
            scores = json.loads((job.folder / "eval.json").read_text(encoding="utf-8"))
            self.study.set(f"test {job.number} {job.seed}", scores["test"])
        self.study.set(f"final {job.number} {job.seed}", record)

    def mean(self, number):
        """The mean of the monitored dev score over the seeds."""
        return statistics.fmean(self.find(number, seed)["dev"][self.setup.monitor] for seed in self.seeds)
