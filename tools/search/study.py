"""The trials of a search, in a journal of Optuna's: what is tried next, what is given up, and what each cost.

The journal is a file of JSON lines, each on the disk before the next is written. What is proposed depends on the seed,
the number of the trial and the trials before it alone, not on a state that would be lost with the process: a search
that was stopped, or killed, goes on with the proposals that it would have made.
"""

import json
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import MedianPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from engine.errors import UserError
from engine.run.command_line import first_line
from tools.search.space import rounded

FULL_TRIALS = 4  # finished without pruning, before one is compared with them
COMPARED = 3  # trials that reached the same epoch, at least
STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "stopped",
}
STATE_OF = {name: state for state, name in STATES.items()}


def distribution(dimension):
    """A Dimension of the space as Optuna has it."""
    if dimension.choices:
        return CategoricalDistribution(dimension.choices)
    kind = IntDistribution if isinstance(dimension.low, int) else FloatDistribution
    return kind(dimension.low, dimension.high, log=dimension.log)


def open_journal(path):
    """The storage in a file. Of a process that was killed while it wrote, half a line and a lock may be left."""
    if path.exists():
        refuse_garbage(path)
    with suppress(FileNotFoundError):
        Path(f"{path}.lock").unlink()  # the results folder's own lock says that nobody else writes
    if path.exists():
        text = path.read_bytes()
        if not text.endswith(b"\n"):
            with open(path, "r+b") as file:
                file.truncate(text.rfind(b"\n") + 1)
    return JournalStorage(JournalFileBackend(str(path)))


def refuse_garbage(path: Path) -> None:
    """UserError if a file is no journal of Optuna, before half a line of it is cut off."""
    try:
        *lines, half = path.read_bytes().split(b"\n")
        operations = [json.loads(line) for line in lines]
        is_journal = all(isinstance(one, dict) and "op_code" in one for one in operations)
    except (ValueError, RecursionError, OSError):
        is_journal = False
    if not is_journal or (half and not half.startswith(b"{")):
        raise UserError(f"{path}: is no journal of a search; move it away, or choose another folder for the results")


class Study:
    """The trials so far, and the next one.

    space: {name: Dimension}; lower: whether a lower score is better; seed: of what is proposed; startup: trials that
    are drawn at random before TPE proposes; prune_after: epochs that every trial gets, None for no pruning.
    """

    def __init__(self, path, space, lower, seed, startup, prune_after):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        self.space = {name: distribution(dimension) for name, dimension in space.items()}
        self.direction, self.seed, self.startup = "minimize" if lower else "maximize", seed, startup
        self.lower, self.prune_after = lower, prune_after
        # Trials are only kept in it: `propose` asks a copy, so that a trial appears with all of its options or not
        kept = dict(study_name="search", direction=self.direction, sampler=RandomSampler(seed=0), load_if_exists=True)
        try:
            self.kept = optuna.create_study(storage=open_journal(path), **kept)
        except UserError:
            raise
        except Exception as error:  # an operation with other values may raise anything
            raise UserError(f"{path}: cannot be read ({first_line(error)}); move it away to search again") from None

    # ---- what is kept ----------------------------------------------------------------------------------------------

    @property
    def trials(self):
        """All trials, in order. Their user_attrs: "default", "epochs", "seconds", "cpu_seconds", "reason", …"""
        return self.kept.get_trials(deepcopy=False)

    def get(self, name, default=None):
        """Something else that the search keeps."""
        return self.kept.user_attrs.get(name, default)

    def set(self, name, value):
        self.kept.set_user_attr(name, value)

    def note(self, number, **values):
        """Keeps something about a trial that has not ended."""
        trial = self.handle(number)
        for name, value in values.items():
            trial.set_user_attr(name, value)

    def handle(self, number):
        """Optuna's object that can change a trial."""
        return optuna.trial.Trial(self.kept, self.trials[number]._trial_id)

    # ---- one trial -------------------------------------------------------------------------------------------------

    def propose(self, number):
        """{name: value} of the trial of this number."""
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        # group: the default may lack options that lie elsewhere than the space
        sampler = TPESampler(n_startup_trials=self.startup, group=True, seed=seed)
        copy = optuna.create_study(direction=self.direction, sampler=sampler)
        copy.add_trials(self.trials)
        asked = copy.ask(self.space).params
        return {name: self.within(name, value) for name, value in asked.items()}

    def within(self, name, value):
        """A proposed number with four digits, inside of its range."""
        if not isinstance(value, float):
            return value
        borders = self.space[name]
        return min(max(rounded(value), borders.low), borders.high) if hasattr(borders, "low") else value

    def add(self, params, state="stopped", value=None, steps=None, **attributes):
        """Keeps a trial, with all that is known of it, in one write. state: a name of STATES. -> its number"""
        distributions = {name: self.space[name] for name in params}
        self.kept.add_trial(
            create_trial(
                state=STATE_OF[state],
                value=value,
                params=params,
                distributions=distributions,
                intermediate_values=steps or {},
                user_attrs=attributes,
            )
        )
        return len(self.trials) - 1

    def report(self, number, epoch, score):
        """Keeps a dev score, unless it is kept already. epoch: from 1"""
        if epoch not in self.trials[number].intermediate_values:
            self.handle(number).report(score, epoch)

    def should_prune(self, number):
        """Whether the best dev score of a trial so far is worse than the median of those that trials of as many epochs
        had after the same one: a schedule of three epochs is further after two of them than one of ten."""
        trial = self.trials[number]
        if self.prune_after is None:
            return False
        epochs, finished = trial.user_attrs["epochs"], self.of_state("finished")
        alike = [other for other in finished if other.user_attrs["epochs"] == epochs]
        view = optuna.create_study(direction=self.direction)
        view.add_trials(alike)
        pruner = MedianPruner(FULL_TRIALS, n_warmup_steps=self.prune_after, n_min_trials=COMPARED)
        return pruner.prune(view, trial)

    def end(self, number, state, value=None):
        """state: a name of STATES"""
        self.kept.tell(number, value, STATE_OF[state])

    # ---- all of them -----------------------------------------------------------------------------------------------

    def of_state(self, *names):
        """Trials in these states, in order."""
        return [trial for trial in self.trials if STATES[trial.state] in names]

    def state(self, number):
        return STATES[self.trials[number].state]

    def counts(self):
        """{state: how many trials are in it}"""
        return {name: len(self.of_state(name)) for name in STATE_OF}

    def twin(self, values):
        """An earlier trial with the same options for main.py, which would end the same. None if there is none."""
        return next((t for t in self.of_state("finished", "pruned") if t.user_attrs["values"] == values), None)

    def ranked(self):
        """Trials that finished, the best first; of equal ones the earlier, and of twins only the first."""
        finished = [trial for trial in self.of_state("finished") if "twin" not in trial.user_attrs]
        return sorted(finished, key=lambda trial: (trial.value if self.lower else -trial.value, trial.number))
