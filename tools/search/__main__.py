"""Searches hyper-parameters with Optuna, and tests whether the best are better than the defaults.

    pip install -r tools/search/requirements.txt
    python -m tools.search --data_path dataset/NAME --pretrain_model_path bert-base-uncased --trials 30 --jobs 2
    python -m tools.search --options="--use_crf --epochs 6" --space "lr=1e-4..3e-3:log pooling=first,mean"

First the search: each trial is one training run of main.py; the first has the defaults. TPE proposes the next trials
from the dev scores so far, and a trial that scores worse than the median is stopped. Then the finalists: the best
trials and the default are trained with several seeds. The mean dev score chooses the winner; test measures its gain.

A space lists options of main.py with their values: a range as in lr=1e-4..1e-3:log (:log if it spans powers of ten) or
a list as in pooling=first,mean. head_multiple is --head_lr divided by --lr, warmup_share is --warmup_epochs divided by
--epochs. The same command resumes a search that was stopped or killed. docs/search.md explains the results.
"""

import logging
import shlex
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tqdm import tqdm

from config import RESUME_SAFE, ROOT, Config
from engine.errors import UserError
from engine.run.command_line import check_values, option, parse_args, run_command
from engine.run.run_folder import AUTO, hold
from engine.run.signals import Interrupted, StopSignals
from logging_config import get_logger

logger = logging.getLogger("template")
NEEDED = "pip install -r tools/search/requirements.txt"
JOURNAL = "search.journal"


@dataclass
class SearchConfig:
    """Options of `tools.search`."""

    data_path: str = option("dataset/sample", "processed folder, made by data_process.py", group="what is trained")
    pretrain_model_path: str = option("", "save_pretrained folder or hub name; empty: from scratch")
    options: str = option("", 'flags of main.py for all runs, such as --options="--use_crf --epochs 6"')
    space: str = option("", "options to search and their values (default: the main ones, around their defaults)")
    monitor: str = option("", "dev score to optimise, such as slots_f1 or loss (default: by task)")

    trials: int = option(30, "number of trials, including the default", group="search", low=1)
    hours: float = option(
        0.0, "end the search after this time in total and continue with the finalists; 0: no limit", low=0
    )
    jobs: int = option(1, "runs in parallel; they share the cores", low=1)
    seed: int = option(
        666, "seed of the proposals; with --jobs 1 the same command proposes the same trials", low=0, high=2**32 - 1
    )
    startup: int = option(8, "trials that must have ended before TPE proposes; until then they are random", low=1)
    prune: bool = option(True, "stop trials that score worse than the median (--no_prune: never)")
    prune_after: int = option(2, "epochs before a trial can be stopped", low=1)

    finalists: int = option(
        3,
        "best trials to train with several seeds, in addition to the default; 0: only search",
        group="finalists",
        low=0,
    )
    seeds: int = option(5, "seeds per finalist; an interval needs five", low=1)

    results: str = option("", "folder of the results (default: output/search-NAME)", group="files")

    def __post_init__(self):
        check_values(self)

    @property
    def folder(self):
        return Path(self.results or f"output/search-{Path(self.data_path).resolve().name}")


def main(config):
    get_logger()
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UserError(f"tools.search needs the package {error.name}: {NEEDED}") from None
    plan = make_plan(config)
    folder = config.folder
    others = folder.is_dir() and {path.name for path in folder.iterdir()} - {".lock"}
    if folder.is_file() or (others and JOURNAL not in others):
        raise UserError(f"--results {folder}: holds other things; choose an empty or new folder")
    with hold(folder / ".lock", folder, "name another with --results", "name another with --results"):
        return search(config, *plan)


def make_plan(config):
    """(Setup, Resolver, space, names of scores, what identifies the search). All checks of options happen here, before
    anything runs."""
    import metrics
    from data_process import make_sample
    from preprocess.schema import PARTS, data_and_model, load_labels
    from tools.search.runs import Setup

    base, fixed = base_of(config)
    if config.data_path == Config.data_path:
        make_sample(base.data_dir)
    tasks = load_labels(base.data_dir)
    if missing := [part for part in ("train", "dev") if not (base.data_dir / f"{part}.jsonl").exists()]:
        raise UserError(f"{base.data_dir}: has no {missing[0]}.jsonl; a search needs {' and '.join(PARTS[:2])}")
    monitor = config.monitor or metrics.default_monitor(tasks)
    if monitor not in (names := metrics.score_names(tasks)):
        raise UserError(f"--monitor={monitor} is not one of the scores: {', '.join(names)}")
    flags = shlex.split(config.options)
    if base.epochs == 0:
        raise UserError("--options: --epochs 0 trains nothing; use 1 or more")
    if base.epochs == AUTO["epochs"]:
        base.epochs = count_epochs(base)
        flags += ["--epochs", str(base.epochs)]
    resolver, space = space_of(config, base, fixed, [task["type"] for task in tasks.values()])

    setup = Setup(
        main=[sys.executable, ROOT / "main.py"],
        flags=["--data_path", config.data_path, "--pretrain_model_path", config.pretrain_model_path, *flags],
        folder=config.folder,
        monitor=monitor,
        lower=metrics.is_better(monitor, 0, 1),
        jobs=config.jobs,
        has_test=(base.data_dir / "test.jsonl").exists(),
    )
    scores = [name for name in dict.fromkeys([monitor, *metrics.main_scores(tasks)]) if name in names]
    options = {name: str(value) for name, value in asdict(base).items() if name not in RESUME_SAFE}
    for path in ("data_path", "pretrain_model_path"):  # identified by their contents
        options.pop(path)
    known_by = data_and_model(base.data_dir, config.pretrain_model_path) | {"monitor": monitor, "seed": config.seed}
    known_by |= {"startup": config.startup, "prune_after": config.prune_after if config.prune else None}
    known_by |= {"space": {name: str(dimension) for name, dimension in space.items()}, "options": options}
    return setup, resolver, space, scores, known_by


def count_epochs(base):
    """The value of --epochs auto for the batch size of `base`. All trials use it; otherwise their scores after an epoch
    could not be compared."""
    from engine.train.optimization import epochs_of, is_pretrained, steps_per_epoch

    with open(base.data_dir / "train.jsonl", "rb") as file:
        rows = sum(1 for line in file if line.strip())
    steps = steps_per_epoch(-(-rows // base.batch_size), base)
    epochs = epochs_of(steps, is_pretrained(base))
    logger.info(f"--epochs auto: {epochs} for {steps} steps per epoch, in all trials")
    return epochs


def base_of(config):
    """(the Config shared by all runs, the names of the options that --options sets)."""
    from tools.search.space import NOT_FOR_TRIALS

    try:
        words = shlex.split(config.options)
    except ValueError as error:
        raise UserError(f"--options={config.options!r} cannot be read: {error}") from None
    paths = {"data_path": config.data_path, "pretrain_model_path": config.pretrain_model_path}
    base = parse_args(Config, [f"--{name}={value}" for name, value in paths.items()] + words)
    given, plain = asdict(base), asdict(Config(**paths))
    if taken := [name for name in NOT_FOR_TRIALS if given[name] != plain[name]]:
        raise UserError(f"--options: --{taken[0]} is not allowed; tools.search sets it for each run")
    names = {alias: field.name for field in fields(Config) for alias in (field.name, *field.metadata["aliases"])}
    said = [word[2:].split("=")[0].removeprefix("no_") for word in words if word.startswith("--")]
    return base, {names[name] for name in said}


def space_of(config, base, fixed, kinds):
    """(Resolver, {name: Dimension}). Raises UserError with one line per mistake."""
    from tools.search.space import NOT_FOR_TRIALS, Resolver, default_space, parse_space

    known = {field.name: field for field in fields(Config) if field.name not in {*RESUME_SAFE, *NOT_FOR_TRIALS}}
    space, mistakes = parse_space(config.space, known, fixed)
    mistakes = [f"--options: {line}" for line in base.unused_options(kinds)] + mistakes
    shape = None
    if base.pretrain_model_path and base.encoder == "transformer":
        from engine.model.encoders import pretrained_shape

        if (shape := pretrained_shape(base)) is None:
            raise UserError(f"{base.pretrain_model_path}: no encoder loads from it")
    resolver = Resolver(base, kinds, shape)
    if not config.space:
        space = default_space(resolver, fixed)
    mistakes += resolver.mistakes(space)
    if mistakes:
        raise UserError("\nerror: ".join(mistakes))
    return resolver, space


def search(config, setup, resolver, space, scores, known_by):
    """Runs what is left of both stages and writes the results. -> the exit code"""
    from tools.search import outcome
    from tools.search.stages import FinalStage, SearchStage
    from tools.search.study import Study

    prune_after = config.prune_after if config.prune else None
    study = Study(config.folder / JOURNAL, space, setup.lower, config.seed, config.startup, prune_after)
    require_same(study, known_by, config.folder)
    logger.info("space: " + " ".join(f"{name}={dimension}" for name, dimension in space.items()))
    winner = stage = None
    try:
        with StopSignals(logger.warning, then="runs save and exit") as stop:
            with tqdm(total=config.trials, desc="search", disable=None) as bar:
                limits = config.trials, resolver.base.random_seed, config.hours
                SearchStage(setup, study, resolver, space, *limits, bar).run(stop)
            if (code := nothing_finished(study)) is not None:
                return code
            if config.finalists:
                others = [trial.number for trial in study.ranked() if trial.number][: config.finalists]
                numbers = ([] if study.state(0) == "failed" else [0]) + others
                with tqdm(total=len(numbers) * config.seeds, desc="finalists", disable=None) as bar:
                    stage = FinalStage(setup, study, numbers, range(1, config.seeds + 1), bar)
                    winner = stage.run(stop)
    except Interrupted:
        done = study.counts()
        ended = done["finished"] + done["pruned"] + done["failed"]
        logger.info(f"stopped, with {ended} of {config.trials} trials done; the same command resumes the search")
        raise
    finally:
        rows = outcome.write_trials(config.folder, study, space, setup.monitor)
    outcome.tell(config, setup, study, space, scores, known_by, rows, stage, winner)
    return 0


def require_same(study, known_by, folder):
    """Raises UserError if the folder holds another search."""
    before = study.get("known_by")
    if before is None:
        return study.set("known_by", known_by)
    for name in before.keys() | known_by.keys():
        old, new = before.get(name), known_by.get(name)
        if old != new:
            if isinstance(old, dict) and isinstance(new, dict):
                part = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))[0]
                name, old, new = f"{name}: {part}", old.get(part), new.get(part)
            raise UserError(f"{folder} holds another search ({name} was {old}, is {new}); name another with --results")


def nothing_finished(study):
    """None if a trial finished; otherwise the exit code, which is that of main.py if all trials failed."""
    if study.ranked():
        return None
    failed = study.of_state("failed")
    if not failed or len(failed) < len(study.trials):
        raise UserError("no trial finished in this time; the same command with more --hours resumes the search")
    last = failed[-1].user_attrs
    print(f"error: all {len(failed)} trials failed; the last one: {last['reason']}", file=sys.stderr)
    return 128 - last["code"] if last["code"] < 0 else last["code"] or 2


if __name__ == "__main__":
    sys.exit(run_command(main, SearchConfig))
