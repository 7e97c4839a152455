"""Searches for hyperparameters with Optuna, and tests whether they improve on the defaults.

    pip install -r tools/search/requirements.txt
    python -m tools.search --data_path dataset/NAME --pretrain_model_path bert-base-uncased --trials 30 --jobs 2
    python -m tools.search --options="--use_crf --epochs 6" --space "lr=1e-4..3e-3:log pooling=first,mean"

Stage 1, search: each trial is a training run of main.py; the first trial uses the defaults. TPE proposes trials based
on the dev scores so far, and trials that score worse than the median are pruned. Stage 2, finalists: the best trials
and the default are trained with several seeds. The winner has the best mean dev score; its gain is measured on test.

A search space lists options of main.py, each with a range (lr=1e-4..1e-3:log, where :log selects a logarithmic scale)
or a list of values (pooling=first,mean). head_multiple is --head_lr divided by --lr, and warmup_share is
--warmup_epochs divided by --epochs. Repeat the command to resume a search that was stopped or killed. docs/search.md
explains the results.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from engine.errors import UserError
from engine.run.command_line import run_command
from engine.run.run_folder import hold
from engine.run.signals import Interrupted, StopSignals
from logging_config import get_logger
from tools.search.plan import Plan, SearchConfig, make_plan

if TYPE_CHECKING:
    from tools.search.study import Study

logger = logging.getLogger("template")
NEEDED = "pip install -r tools/search/requirements.txt"
JOURNAL = "search.journal"


def main(config: SearchConfig) -> int:
    get_logger()
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UserError(f"tools.search needs the package {error.name}; {NEEDED}") from None
    plan = make_plan(config)
    folder = config.folder
    existing = {path.name for path in folder.iterdir()} - {".lock"} if folder.is_dir() else set()
    if folder.is_file() or (existing and JOURNAL not in existing):
        raise UserError(f"--results {folder}: contains other files; choose an empty or new folder")
    with hold(folder / ".lock", folder, "choose another folder with --results", "choose another --results"):
        return search(plan)


def search(plan: Plan) -> int:
    """Runs or resumes both stages and writes the results. Returns the exit code."""
    from tqdm import tqdm

    from tools.search import outcome
    from tools.search.finals import FinalStage
    from tools.search.study import Study
    from tools.search.trials import SearchStage

    config = plan.config
    pruning = config.epochs_before_pruning
    study = Study(config.folder / JOURNAL, plan.space, plan.lower, config.seed, config.startup, pruning)
    require_same(study, plan)
    logger.info("space: " + " ".join(f"{name}={dimension}" for name, dimension in plan.space.items()))
    winner = stage = None
    try:
        with StopSignals(logger.warning, then="runs save and exit") as stop:
            with tqdm(total=config.trials, desc="search", disable=None) as bar:
                SearchStage(plan, study, bar).run(stop)
            if not study.ranked():
                return nothing_finished(study)
            if config.finalists:
                best = [trial.number for trial in study.ranked() if trial.number][: config.finalists]
                numbers = best if study.state(0) == "failed" else [0, *best]
                with tqdm(total=len(numbers) * config.seeds, desc="finalists", disable=None) as bar:
                    stage = FinalStage(plan, study, numbers, range(1, config.seeds + 1), bar)
                    winner = stage.run(stop)
    except Interrupted:
        counts = study.counts()
        ended = counts["finished"] + counts["pruned"] + counts["failed"]
        logger.info(f"stopped after {ended} of {config.trials} trials; the same command resumes the search")
        raise
    finally:
        rows = outcome.write_trials(plan, study)
    outcome.write_results(plan, study, rows, stage, winner)
    return 0


def require_same(study: Study, plan: Plan) -> None:
    """Raises UserError if the folder contains another search."""
    before, now = study.get("known_by"), plan.known_by
    if before is None:
        return study.set("known_by", now)
    for name in before.keys() | now.keys():
        old, new = before.get(name), now.get(name)
        if old != new:
            if isinstance(old, dict) and isinstance(new, dict):
                changed = min(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
                name, old, new = f"{name}: {changed}", old.get(changed), new.get(changed)
            change = f"{name} was {old}, is {new}"
            raise UserError(f"{plan.folder} contains another search ({change}); choose another folder with --results")


def nothing_finished(study: Study) -> int:
    """Returns the exit code of the last trial if all trials failed. Raises UserError if none finished in time."""
    failed = study.of_state("failed")
    if not failed or len(failed) < len(study.trials):
        raise UserError("no trial finished within --hours; the same command with more --hours resumes the search")
    last = failed[-1].user_attrs
    print(f"error: all {len(failed)} trials failed, the last one with: {last['reason']}", file=sys.stderr)
    return 128 - last["code"] if last["code"] < 0 else last["code"] or 2


if __name__ == "__main__":
    sys.exit(run_command(main, SearchConfig))
