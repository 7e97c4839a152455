"""The first stage of a search: many trials with one seed."""

import logging
import math
from typing import Any

from tqdm import tqdm

from engine.errors import UserError
from engine.run.signals import StopSignals
from tools.search.plan import Plan, as_flags
from tools.search.runs import Clock, Job, best_of, dev_scores, run_jobs
from tools.search.study import Study

logger = logging.getLogger("template")
HOPELESS = 5  # the search ends after this many failed trials without a success


class SearchStage:
    """Runs trials until the number or the time limit is reached. bar: a tqdm over the trials"""

    def __init__(self, plan: Plan, study: Study, bar: tqdm) -> None:
        self.plan, self.study, self.bar, self.trials = plan, study, bar, plan.config.trials
        self.limit = 3600 * plan.config.hours or float("inf")
        self.clock = Clock(study, "search_seconds")
        self.left = [trial.number for trial in study.of_state("stopped")]  # left over from a stopped search

    def run(self, stop: StopSignals) -> None:
        enough = len(self.study.trials) >= self.trials or self.study.get("search_seconds", 0) > self.limit
        if enough and not self.left:
            return
        self.update_bar()
        try:
            run_jobs(self.next_job, self.plan.config.jobs, stop)
        finally:
            self.clock.store()
        if self.out_of_time():
            ended = len(self.study.trials) - self.study.counts()["stopped"]
            logger.info(f"--hours are used up: the search ends with {ended} of {self.trials} trials done")

    def out_of_time(self) -> bool:
        return self.clock.seconds() > self.limit

    def next_job(self) -> Job | None:
        """The next trial that needs a process, or None."""
        while not self.out_of_time() and not self.is_hopeless():
            if self.left:
                return TrialJob(self, self.left.pop(0))
            if len(self.study.trials) >= self.trials:
                return None
            if (number := self.add(len(self.study.trials))) is not None:
                return TrialJob(self, number)
            self.update_bar()
        return None

    def is_hopeless(self) -> bool:
        counts = self.study.counts()  # running trials do not count yet
        return counts["failed"] >= HOPELESS and not counts["finished"] + counts["pruned"]

    def add(self, number: int) -> int | None:
        """Stores trial `number`. Returns its number, or None if it needs no process. The first is the default."""
        resolver, study, default = self.plan.resolver, self.study, number == 0
        point = resolver.default(self.plan.space) if default else study.propose(number)
        values = {} if default else resolver.values(point)
        try:
            epochs = (resolver.base if default else resolver.config(point)).epochs
        except UserError as error:
            study.add(point, "failed", values=values, reason=str(error), code=2)
            self.log(number)
            return None
        if twin := study.twin(values):
            attributes = {"values": values, "epochs": epochs, "twin": twin.user_attrs.get("twin", twin.number)}
            attributes["best_epoch"] = twin.user_attrs.get("best_epoch")
            study.add(point, study.state(twin.number), twin.value, twin.intermediate_values, **attributes)
            self.log(number)
            return None
        return study.add(point, values=values, epochs=epochs, default=default)

    def ended(self, number: int) -> None:
        self.clock.store()
        self.log(number)
        self.update_bar()

    def log(self, number: int) -> None:
        trial, state = self.study.trials[number], self.study.state(number)
        attributes = trial.user_attrs
        if "twin" in attributes:
            outcome = f"has the options of trial {attributes['twin']} and is not run again"
        elif state == "finished":
            outcome = f"dev {self.plan.monitor} {trial.value:.4f} after epoch {attributes['best_epoch']}"
        else:
            outcome = f"{state}: {attributes.get('reason', 'the time is used up')}"
        logger.info(f"trial {number} ({' '.join(as_flags(attributes['values'])) or 'the default'}) {outcome}")

    def update_bar(self) -> None:
        counts = self.study.counts()
        self.bar.n = len(self.study.trials) - counts["stopped"]
        if best := self.study.ranked()[:1]:
            score = f"best dev {self.plan.monitor} {best[0].value:.4f} (trial {best[0].number})"
            self.bar.set_postfix_str(f"{score}, {counts['pruned']} pruned", False)
        self.bar.refresh()


class TrialJob(Job):
    """A trial, which reports each epoch to the study and stops if it is pruned."""

    def __init__(self, stage: SearchStage, number: int) -> None:
        self.stage, self.study, self.number = stage, stage.study, number
        trial = self.study.trials[number]
        attributes, seed = trial.user_attrs, stage.plan.resolver.base.random_seed
        super().__init__(stage.plan, f"{number:04d}", attributes["values"], seed, "--do_train", "--resume")
        self.epochs, self.seen = attributes["epochs"], (trial.last_step or 1) - 1
        self.before = {name: attributes.get(name, 0.0) for name in ("seconds", "cpu_seconds")}
        self.times: list[Any] = attributes.get("times", [])  # [epoch, seconds until its score]
        self.verdict: str | None = None  # "failed", "pruned" or "time"
        self.reason: str | None = None

    def cost(self) -> dict[str, float]:
        now = {"seconds": self.child.seconds, "cpu_seconds": self.child.cpu_seconds}
        return {name: round(self.before[name] + value, 2) for name, value in now.items()}

    def watch(self) -> None:
        self.read()
        if self.verdict is None and self.stage.out_of_time():
            self.give_up("time")

    def read(self) -> None:
        """Reports new dev scores in order of epochs, so that the result does not depend on timing."""
        for epoch, scores in dev_scores(self.folder):
            if self.verdict is None and epoch > self.seen:
                self.seen = epoch
                self.report(epoch, scores)

    def report(self, epoch: int, scores: dict[str, float]) -> None:
        monitor = self.plan.monitor
        if monitor not in scores:  # main.py reports it
            return
        for name in (monitor, "loss"):
            if not math.isfinite(scores.get(name, 0.0)):
                return self.give_up("failed", f"dev {name} is {scores[name]} after epoch {epoch}")
        self.study.report(self.number, epoch, scores[monitor])
        self.times = [*self.times, [epoch, self.cost()["seconds"]]]
        self.study.note(self.number, times=self.times, **self.cost())
        if epoch < self.epochs and self.study.should_prune(self.number):
            self.give_up("pruned", f"worse than the median of the others after epoch {epoch}")

    def give_up(self, verdict: str, reason: str | None = None) -> None:
        self.verdict, self.reason = verdict, reason
        self.child.terminate()

    def finish(self) -> None:
        if self.verdict == "time" and self.child.code == 0:  # it had just finished
            self.verdict = None
        self.read()
        self.study.note(self.number, **self.cost())
        if self.verdict is None and self.child.code != 0:
            self.verdict, self.reason = "failed", self.child.last_line()
        best, scores = best_of(self.folder, self.plan.monitor)
        if self.verdict is None and best is None:
            self.verdict, self.reason = "failed", "it has no dev score"
        if self.reason:
            self.study.note(self.number, reason=self.reason, code=self.child.code)
        if self.verdict is None:
            self.study.note(self.number, best_epoch=best)
            self.study.end(self.number, "finished", scores[self.plan.monitor])
        elif self.verdict != "time":  # out of time: it stays open and can be resumed
            self.study.end(self.number, self.verdict)
        if self.verdict != "time":
            self.tidy()
        self.stage.ended(self.number)

    def interrupted(self) -> None:
        self.study.note(self.number, **self.cost())
