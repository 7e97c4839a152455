"""The second stage of a search: trains the best trials and the default with several seeds."""

import json
import logging
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engine.run.signals import StopSignals
from tools.search.plan import Plan
from tools.search.runs import Clock, Job, best_of, run_jobs
from tools.search.study import Study

logger = logging.getLogger("template")


class FinalStage:
    """Trains the finalists and the default with several seeds, then scores the winner and the default on test.

    numbers: the trials, default first. seeds: one run per trial and seed. bar: tqdm over the runs.
    """

    def __init__(self, plan: Plan, study: Study, numbers: Sequence[int], seeds: Sequence[int], bar: tqdm) -> None:
        self.plan, self.study, self.numbers, self.seeds, self.bar = plan, study, numbers, seeds, bar
        self.failed: dict[int, str] = {}  # {trial number: reason}; not stored, so a restart retries them

    def find(self, number: int, seed: int, kind: str = "final") -> dict[str, Any] | None:
        """Returns {"epoch", "dev": {score: value}}, or {score: value} for kind "test". Returns None if the run has not
        finished."""
        return self.study.get(f"{kind} {number} {seed}")

    def of_all_seeds(self, number: int, kind: str = "final") -> list[dict[str, Any]] | None:
        """Returns the results of `find` for all seeds, or None if a run has not finished."""
        results = [result for seed in self.seeds if (result := self.find(number, seed, kind))]
        return results if len(results) == len(self.seeds) else None

    def ranked(self) -> list[int]:
        """Returns the candidates that finished with all seeds, by mean dev score, best first."""
        means = {}
        for number in self.numbers:
            if results := self.of_all_seeds(number):
                mean = statistics.fmean(result["dev"][self.plan.monitor] for result in results)
                means[number] = mean if self.plan.lower else -mean
        return sorted(means, key=lambda number: (means[number], number))

    def folder(self, number: int, seed: int) -> Path:
        return self.plan.folder / f"runs/final-{number:04d}-seed-{seed}"

    def run(self, stop: StopSignals) -> int | None:
        """Runs the stage. Returns the trial with the best mean dev score, or None if no trial has all seeds."""
        runs = [(number, seed) for seed in self.seeds for number in self.numbers]
        self.bar.reset(len(runs))
        jobs = []
        for number, seed in runs:
            test = number == 0 and self.plan.has_test  # the test scores of the default are always needed
            if not self.find(number, seed) or (test and not self.find(number, seed, "test")):
                jobs.append(FinalJob(self, number, seed, train=True, test=test))
        self.run_all(jobs, len(runs), stop)
        if not (ranked := self.ranked()):
            return None
        winner = ranked[0]
        if self.plan.has_test:
            seeds = [seed for seed in self.seeds if not self.find(winner, seed, "test")]
            jobs = []
            for seed in seeds:
                trained = (self.folder(winner, seed) / "checkpoints/best").is_dir()
                jobs.append(FinalJob(self, winner, seed, train=not trained, test=True))
            self.run_all(jobs, len(runs) + len(jobs), stop)
        for number, seed in runs:
            if number != winner:
                shutil.rmtree(self.folder(number, seed) / "checkpoints", ignore_errors=True)
        return winner

    def run_all(self, jobs: list["FinalJob"], total: int, stop: StopSignals) -> None:
        """Runs jobs, and skips the remaining seeds of failed trials. total: number of runs for the progress bar."""
        if not jobs:
            return

        def next_job() -> FinalJob | None:
            while jobs:
                job = jobs.pop(0)
                if job.number not in self.failed:
                    return job
            return None

        self.clock = Clock(self.study, "final_seconds")
        self.bar.total, self.bar.n = total, total - len(jobs)
        self.bar.refresh()
        try:
            run_jobs(next_job, self.plan.config.jobs, stop)
        finally:
            self.clock.store()


class FinalJob(Job):
    """A run of a finalist with one seed. test: whether to score the test split, too."""

    keeps_checkpoints = True

    def __init__(self, stage: FinalStage, number: int, seed: int, train: bool, test: bool) -> None:
        self.stage, self.study, self.number, self.seed, self.test = stage, stage.study, number, seed, test
        values = self.study.trials[number].user_attrs["values"]
        flags = [*(["--do_train", "--resume"] if train else []), *(["--do_eval"] if test else [])]
        super().__init__(stage.plan, stage.folder(number, seed).name, values, seed, *flags)

    def finish(self) -> None:
        self.interrupted()
        self.stage.bar.update()
        if self.child.code:
            reason = self.stage.failed[self.number] = self.child.last_line()
            logger.info(f"trial {self.number} failed with seed {self.seed} and is not a finalist: {reason}")
            return
        best, scores = best_of(self.folder, self.plan.monitor)
        self.tidy()
        if self.test:
            results = json.loads((self.folder / "eval.json").read_text(encoding="utf-8"))
            self.study.set(f"test {self.number} {self.seed}", results["test"])
        self.study.set(f"final {self.number} {self.seed}", {"epoch": best, "dev": scores})

    def interrupted(self) -> None:
        """Adds the CPU time of the run to the total of the stage."""
        seconds = self.study.get("final_cpu_seconds", 0.0) + self.child.cpu_seconds
        self.study.set("final_cpu_seconds", round(seconds, 2))
        self.stage.clock.store()
