"""Stores the trials of a search in an Optuna journal, proposes trials, and decides on pruning.

The journal is a JSONL file; each line is synced to disk. A proposal depends only on the seed, the trial number and
earlier trials, but not on state in memory, so a resumed search makes the same proposals.
"""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import MedianPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from engine.errors import UserError
from engine.run.command_line import first_line
from tools.search.space import Dimension, Space, Values, rounded

FULL_TRIALS = 4  # trials that must finish before pruning starts
COMPARED = 3  # trials that must have reached the same epoch before pruning
STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "stopped",
}
STATE_OF = {name: state for state, name in STATES.items()}


def distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.choices:
        return CategoricalDistribution(dimension.choices)
    kind: Any = IntDistribution if isinstance(dimension.low, int) else FloatDistribution
    return kind(dimension.low, dimension.high, log=dimension.log)


def open_journal(path: Path) -> JournalStorage:
    """Opens an Optuna journal, and removes the partial line and the lock that a killed process may have left. Raises
    UserError if the file is not an Optuna journal."""
    if path.exists():
        try:
            *lines, partial = path.read_bytes().split(b"\n")
            operations = [json.loads(line) for line in lines]
            is_journal = all(isinstance(operation, dict) and "op_code" in operation for operation in operations)
        except (ValueError, RecursionError, OSError):
            is_journal = False
        if not is_journal or (partial and not partial.startswith(b"{")):
            advice = "move it away, or choose another folder with --results"
            raise UserError(f"{path}: is not the journal of a search; {advice}")
        os.truncate(path, path.stat().st_size - len(partial))
    Path(f"{path}.lock").unlink(missing_ok=True)  # the lock on the results folder ensures a single writer
    return JournalStorage(JournalFileBackend(str(path)))


class Study:
    """The trials of a search.

    lower: whether lower scores are better. seed: seed of the proposals. startup: number of random trials before TPE
    starts. prune_after: number of epochs before a trial can be pruned, or None to disable pruning.
    """

    def __init__(self, path: Path, space: Space, lower: bool, seed: int, startup: int, prune_after: int | None) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        self.space = {name: distribution(dimension) for name, dimension in space.items()}
        self.lower, self.seed, self.startup, self.prune_after = lower, seed, startup, prune_after
        self.direction = StudyDirection.MINIMIZE if lower else StudyDirection.MAXIMIZE
        try:
            # This study only stores trials. `propose` uses a copy, so trials are always stored with all options
            self.stored = optuna.create_study(
                storage=open_journal(path),
                study_name="search",
                direction=self.direction,
                sampler=RandomSampler(seed=0),
                load_if_exists=True,
            )
        except UserError:
            raise
        except Exception as error:  # a malformed operation may raise any exception
            raise UserError(f"{path}: cannot be read ({first_line(error)}); move it away to search again") from None

    # ---- storage -----------------------------------------------------------------------------------------------------

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, in order. user_attrs: "default", "epochs", "seconds", "cpu_seconds", "reason", …"""
        return self.stored.get_trials(deepcopy=False)

    def get(self, name: str, default: Any = None) -> Any:
        return self.stored.user_attrs.get(name, default)

    def set(self, name: str, value: Any) -> None:
        self.stored.set_user_attr(name, value)

    def note(self, number: int, **values: Any) -> None:
        """Stores attributes of a trial that has not ended."""
        trial = self.handle(number)
        for name, value in values.items():
            trial.set_user_attr(name, value)

    def handle(self, number: int) -> Trial:
        """Returns Optuna's mutable Trial object."""
        return optuna.trial.Trial(self.stored, self.trials[number]._trial_id)

    # ---- one trial -------------------------------------------------------------------------------------------------

    def propose(self, number: int) -> dict[str, Any]:
        """Returns {name: value} for the trial with this number."""
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        # group=True, because the default trial has no value for options whose default is outside the space
        sampler = TPESampler(n_startup_trials=self.startup, group=True, seed=seed)
        copy = optuna.create_study(direction=self.direction, sampler=sampler)
        copy.add_trials(self.trials)
        params = dict(copy.ask(self.space).params)
        for name, bounds in self.space.items():
            if isinstance(bounds, FloatDistribution):
                params[name] = min(max(rounded(params[name]), bounds.low), bounds.high)
        return params

    def add(
        self,
        params: Values,
        state: str = "stopped",
        value: float | None = None,
        steps: dict[int, float] | None = None,
        **attributes: Any,
    ) -> int:
        """Stores a trial in a single write. Returns its number. state: a name in STATES."""
        trial = create_trial(
            state=STATE_OF[state],
            value=value,
            params=dict(params),
            distributions={name: self.space[name] for name in params},
            intermediate_values=steps or {},
            user_attrs=attributes,
        )
        self.stored.add_trial(trial)
        return len(self.trials) - 1

    def report(self, number: int, epoch: int, score: float) -> None:
        """Stores a dev score if it is not already stored. epoch: one-based."""
        if epoch not in self.trials[number].intermediate_values:
            self.handle(number).report(score, epoch)

    def should_prune(self, number: int) -> bool:
        """Returns whether the best dev score of a trial is worse than the median after the same epoch. Compares only
        trials with the same --epochs, because learning rate schedules depend on it."""
        trial = self.trials[number]
        if self.prune_after is None:
            return False
        epochs, finished = trial.user_attrs["epochs"], self.of_state("finished")
        comparable = [t for t in finished if t.user_attrs["epochs"] == epochs]
        view = optuna.create_study(direction=self.direction)
        view.add_trials(comparable)
        pruner = MedianPruner(FULL_TRIALS, n_warmup_steps=self.prune_after, n_min_trials=COMPARED)
        return pruner.prune(view, trial)

    def end(self, number: int, state: str, value: float | None = None) -> None:
        """Ends a trial. state: a name in STATES."""
        self.stored.tell(number, value, STATE_OF[state])

    # ---- all trials ------------------------------------------------------------------------------------------------

    def of_state(self, *names: str) -> list[FrozenTrial]:
        return [trial for trial in self.trials if STATES[trial.state] in names]

    def state(self, number: int) -> str:
        return STATES[self.trials[number].state]

    def counts(self) -> dict[str, int]:
        return {name: len(self.of_state(name)) for name in STATE_OF}

    def twin(self, values: Values) -> FrozenTrial | None:
        """Returns an earlier trial with the same options, and therefore the same result, or None."""
        return next((t for t in self.of_state("finished", "pruned") if t.user_attrs["values"] == values), None)

    def ranked(self) -> list[FrozenTrial]:
        """Returns the finished trials without twins, best first. Ties are sorted by number."""
        finished = [trial for trial in self.of_state("finished") if "twin" not in trial.user_attrs]
        sign = 1 if self.lower else -1
        return sorted(finished, key=lambda trial: (sign * (trial.value or 0.0), trial.number))
