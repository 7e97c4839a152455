"""The trials of a search in an Optuna journal: proposes the next trial, decides on pruning, and stores the costs.

The journal is a file of JSON lines, each synced to disk before the next is written. A proposal depends only on the
seed, the number of the trial and the trials before it, not on state in memory: a search that is resumed after a stop or
a kill makes the same proposals.
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

FULL_TRIALS = 4  # that must finish before any trial is pruned
COMPARED = 3  # trials that must have reached the same epoch
STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "stopped",
}
STATE_OF = {name: state for state, name in STATES.items()}


def distribution(dimension):
    """Optuna's distribution of a Dimension."""
    if dimension.choices:
        return CategoricalDistribution(dimension.choices)
    kind = IntDistribution if isinstance(dimension.low, int) else FloatDistribution
    return kind(dimension.low, dimension.high, log=dimension.log)


def open_journal(path):
    """Opens the storage in a file. A process killed while writing may have left half a line and a lock."""
    if path.exists():
        refuse_garbage(path)
    with suppress(FileNotFoundError):
        Path(f"{path}.lock").unlink()  # the lock of the results folder ensures a single writer
    if path.exists():
        text = path.read_bytes()
        if not text.endswith(b"\n"):
            with open(path, "r+b") as file:
                file.truncate(text.rfind(b"\n") + 1)
    return JournalStorage(JournalFileBackend(str(path)))


def refuse_garbage(path: Path) -> None:
    """Raises UserError if a file is not an Optuna journal, before an incomplete last line is cut off."""
    try:
        *lines, half = path.read_bytes().split(b"\n")
        operations = [json.loads(line) for line in lines]
        is_journal = all(isinstance(one, dict) and "op_code" in one for one in operations)
    except (ValueError, RecursionError, OSError):
        is_journal = False
    if not is_journal or (half and not half.startswith(b"{")):
        raise UserError(f"{path}: is not a journal of a search; move it away or choose another folder for the results")


class Study:
    """The trials so far, and the next one.

    space: {name: Dimension}; lower: whether a lower score is better; seed: of the proposals; startup: trials that are
    drawn at random before TPE proposes; prune_after: epochs that every trial gets, None for no pruning
    """

    def __init__(self, path, space, lower, seed, startup, prune_after):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        self.space = {name: distribution(dimension) for name, dimension in space.items()}
        self.direction, self.seed, self.startup = "minimize" if lower else "maximize", seed, startup
        self.lower, self.prune_after = lower, prune_after
        # Only stores trials: `propose` asks a copy, so that a trial is stored with all of its options or not at all
        kept = dict(study_name="search", direction=self.direction, sampler=RandomSampler(seed=0), load_if_exists=True)
        try:
            self.kept = optuna.create_study(storage=open_journal(path), **kept)
        except UserError:
            raise
        except Exception as error:  # a malformed operation may raise anything
            raise UserError(f"{path}: cannot be read ({first_line(error)}); move it away to search again") from None

    # ---- storage -----------------------------------------------------------------------------------------------------

    @property
    def trials(self):
        """All trials, in order. Their user_attrs: "default", "epochs", "seconds", "cpu_seconds", "reason", …"""
        return self.kept.get_trials(deepcopy=False)

    def get(self, name, default=None):
        """Another value stored with the search."""
        return self.kept.user_attrs.get(name, default)

    def set(self, name, value):
        self.kept.set_user_attr(name, value)

    def note(self, number, **values):
        """Stores attributes of a trial that has not ended."""
        trial = self.handle(number)
        for name, value in values.items():
            trial.set_user_attr(name, value)

    def handle(self, number):
        """Optuna's Trial object, which can change a trial."""
        return optuna.trial.Trial(self.kept, self.trials[number]._trial_id)

    # ---- one trial -------------------------------------------------------------------------------------------------

    def propose(self, number):
        """Proposes {name: value} for the trial with this number."""
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        # group: the default trial may lack options, if their default is outside the space
        sampler = TPESampler(n_startup_trials=self.startup, group=True, seed=seed)
        copy = optuna.create_study(direction=self.direction, sampler=sampler)
        copy.add_trials(self.trials)
        asked = copy.ask(self.space).params
        return {name: self.within(name, value) for name, value in asked.items()}

    def within(self, name, value):
        """A proposed float, rounded to four digits within its range."""
        if not isinstance(value, float):
            return value
        borders = self.space[name]
        return min(max(rounded(value), borders.low), borders.high) if hasattr(borders, "low") else value

    def add(self, params, state="stopped", value=None, steps=None, **attributes):
        """Stores a trial with all its values in one write. state: a name of STATES. -> its number"""
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
        """Stores a dev score unless it is stored already. epoch: from 1"""
        if epoch not in self.trials[number].intermediate_values:
            self.handle(number).report(score, epoch)

    def should_prune(self, number):
        """Whether the best dev score of a trial is worse than the median after the same epoch, among trials with the
        same number of epochs: after two epochs a schedule of three is further along than one of ten."""
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
        """Ends a trial. state: a name of STATES"""
        self.kept.tell(number, value, STATE_OF[state])

    # ---- all of them -----------------------------------------------------------------------------------------------

    def of_state(self, *names):
        """Trials in these states, in order."""
        return [trial for trial in self.trials if STATES[trial.state] in names]

    def state(self, number):
        return STATES[self.trials[number].state]

    def counts(self):
        """{state: number of trials}"""
        return {name: len(self.of_state(name)) for name in STATE_OF}

    def twin(self, values):
        """An earlier trial with the same options of main.py, and so the same result; None without one."""
        return next((t for t in self.of_state("finished", "pruned") if t.user_attrs["values"] == values), None)

    def ranked(self):
        """Finished trials, the best first; ties by number, and twins only once."""
        finished = [trial for trial in self.of_state("finished") if "twin" not in trial.user_attrs]
        return sorted(finished, key=lambda trial: (trial.value if self.lower else -trial.value, trial.number))
