"""The first stage of a search: runs many trials with one seed."""

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
HOPELESS = 5  # number of failed trials after which the search ends if no trial has succeeded


class SearchStage:
    """Runs trials until the maximum number or the time limit is reached. bar: tqdm over the trials."""

    def __init__(self, plan: Plan, study: Study, bar: tqdm) -> None:
        self.plan, self.study, self.bar, self.trials = plan, study, bar, plan.config.trials
        self.limit = 3600 * plan.config.hours or float("inf")
        self.clock = Clock(study, "search_seconds")
        self.unfinished = [trial.number for trial in study.of_state("stopped")]

    def run(self, stop: StopSignals) -> None:
        enough = len(self.study.trials) >= self.trials or self.study.get("search_seconds", 0) > self.limit
        if enough and not self.unfinished:
            return
        self.update_bar()
        try:
            run_jobs(self.next_job, self.plan.config.jobs, stop)
        finally:
            self.clock.store()
        if self.out_of_time():
            ended = len(self.study.trials) - self.study.counts()["stopped"]
            logger.info(f"--hours reached; the search ends after {ended} of {self.trials} trials")

    def out_of_time(self) -> bool:
        return self.clock.seconds() > self.limit

    def next_job(self) -> Job | None:
        """Returns the next trial that needs a process, or None at the end of the search."""
        while not self.out_of_time() and not self.is_hopeless():
            if self.unfinished:
                return TrialJob(self, self.unfinished.pop(0))
            if len(self.study.trials) >= self.trials:
                return None
            if (number := self.add(len(self.study.trials))) is not None:
                return TrialJob(self, number)
            self.update_bar()
        return None

    def is_hopeless(self) -> bool:
        counts = self.study.counts()  # running trials are not included
        return counts["failed"] >= HOPELESS and not counts["finished"] + counts["pruned"]

    def add(self, number: int) -> int | None:
        """Stores trial `number` (0: the default). Returns its number, or None if it needs no process."""
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
            outcome = f"has the same options as trial {attributes['twin']} and is not run again"
        elif state == "finished":
            outcome = f"dev {self.plan.monitor} {trial.value:.4f} after epoch {attributes['best_epoch']}"
        else:
            outcome = f"{state}: {attributes.get('reason', 'no time left')}"
        logger.info(f"trial {number} ({' '.join(as_flags(attributes['values'])) or 'the default'}) {outcome}")

    def update_bar(self) -> None:
        counts = self.study.counts()
        self.bar.n = len(self.study.trials) - counts["stopped"]
        if best := self.study.ranked()[:1]:
            score = f"best dev {self.plan.monitor} {best[0].value:.4f} (trial {best[0].number})"
            self.bar.set_postfix_str(f"{score}, {counts['pruned']} pruned", False)
        self.bar.refresh()


class TrialJob(Job):
    """A trial that reports each epoch to the study, and stops if it is pruned."""

    def __init__(self, stage: SearchStage, number: int) -> None:
        self.stage, self.study, self.number = stage, stage.study, number
        trial = self.study.trials[number]
        attributes, seed = trial.user_attrs, stage.plan.resolver.base.random_seed
        super().__init__(stage.plan, f"{number:04d}", attributes["values"], seed, "--do_train", "--resume")
        self.epochs, self.seen = attributes["epochs"], (trial.last_step or 1) - 1
        self.before = {name: attributes.get(name, 0.0) for name in ("seconds", "cpu_seconds")}
        self.times: list[Any] = attributes.get("times", [])  # [[epoch, seconds until its score]]
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
        """Reports new dev scores in order of epochs, so the result does not depend on timing."""
        for epoch, scores in dev_scores(self.folder):
            if self.verdict is None and epoch > self.seen:
                self.seen = epoch
                self.report(epoch, scores)

    def report(self, epoch: int, scores: dict[str, float]) -> None:
        monitor = self.plan.monitor
        if monitor not in scores:  # main.py reports this
            return
        for name in (monitor, "loss"):
            if not math.isfinite(scores.get(name, 0.0)):
                return self.give_up("failed", f"dev {name} is {scores[name]} after epoch {epoch}")
        self.study.report(self.number, epoch, scores[monitor])
        self.times = [*self.times, [epoch, self.cost()["seconds"]]]
        self.study.note(self.number, times=self.times, **self.cost())
        if epoch < self.epochs and self.study.should_prune(self.number):
            self.give_up("pruned", f"worse than the median of the other trials after epoch {epoch}")

    def give_up(self, verdict: str, reason: str | None = None) -> None:
        self.verdict, self.reason = verdict, reason
        self.child.terminate()

    def finish(self) -> None:
        if self.verdict == "time" and self.child.code == 0:  # it finished in the meantime
            self.verdict = None
        self.read()
        self.study.note(self.number, **self.cost())
        if self.verdict is None and self.child.code != 0:
            self.verdict, self.reason = "failed", self.child.last_line()
        best, scores = best_of(self.folder, self.plan.monitor)
        if self.verdict is None and best is None:
            self.verdict, self.reason = "failed", "no dev score"
        if self.reason:
            self.study.note(self.number, reason=self.reason, code=self.child.code)
        if self.verdict is None:
            self.study.note(self.number, best_epoch=best)
            self.study.end(self.number, "finished", scores[self.plan.monitor])
        elif self.verdict != "time":  # a trial that ran out of time can be resumed
            self.study.end(self.number, self.verdict)
        if self.verdict != "time":
            self.tidy()
        self.stage.ended(self.number)

    def interrupted(self) -> None:
        self.study.note(self.number, **self.cost())
