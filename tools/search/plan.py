"""The options of a search, and the plan derived from them. All options are validated here, before any run starts."""

import logging
import shlex
import sys
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from config import RESUME_SAFE, ROOT, Config
from engine.errors import UserError
from engine.model.hub import locate
from engine.run.command_line import check_values, given_options, option, parse_args
from engine.run.option_checks import is_given
from engine.task.task import Task
from tools.search.space import NOT_FOR_TRIALS, Resolver, Space, Values, default_space, parse_space

logger = logging.getLogger("template")


@dataclass
class SearchConfig:
    """Options of `tools.search`."""

    data_path: str = option("dataset/sample", "processed folder, created by data_process.py", group="training")
    pretrain_model_path: str = option("", "save_pretrained folder or hub name; empty: from scratch")
    options: str = option("", 'flags of main.py for all runs, such as --options="--use_crf --epochs 6"')
    space: str = option("", "options to search and their values (default: the main options around their defaults)")
    monitor: str = option("", "dev score to optimise, such as slots_f1 or loss (default: by task)")

    trials: int = option(30, "number of trials, including the default", group="search", low=1)
    hours: float = option(0.0, "time limit in hours, with restarts and without finalists; 0: no limit", low=0)
    jobs: int = option(1, "number of parallel runs; they share the cores", low=1)
    seed: int = option(666, "seed of the proposals; with --jobs 1, it determines the trials", low=0, high=2**32 - 1)
    startup: int = option(8, "number of random trials before TPE starts", low=1)
    prune: bool = option(True, "stop trials that score worse than the median (--no_prune disables it)")
    prune_after: int = option(2, "number of epochs before a trial can be pruned", low=1)

    finalists: int = option(
        3, "number of best trials to train again with several seeds; 0: search only", group="finalists", low=0
    )
    seeds: int = option(5, "number of seeds per finalist; intervals need at least five", low=1)

    results: str = option("", "folder of the results (default: output/search-NAME)", group="files")

    def __post_init__(self) -> None:
        check_values(self)

    @property
    def folder(self) -> Path:
        return Path(self.results or f"output/search-{Path(self.data_path).resolve().name}")

    @property
    def epochs_before_pruning(self) -> int | None:
        return self.prune_after if self.prune else None


@dataclass(frozen=True)
class Plan:
    """The settings of a search.

    flags: flags of all runs, without paths. lower: whether lower scores are better. has_test: whether the data has a
    test split. scores: names of the scores to report. known_by: identifies the search.
    """

    config: SearchConfig
    resolver: Resolver
    space: Space
    flags: list[str]
    monitor: str
    lower: bool
    has_test: bool
    scores: list[str]
    known_by: dict[str, Any]

    @property
    def folder(self) -> Path:
        return self.config.folder

    def command(self, run: str, values: Values, seed: int, *actions: str) -> list[str]:
        """Returns the command of a run. values: options in addition to `flags`. actions: --do_train, …."""
        paths = ["--data_path", self.config.data_path, "--pretrain_model_path", self.config.pretrain_model_path]
        folder = ["--output_dir", str(self.folder / "runs"), "--model_version", run, "--random_seed", str(seed)]
        flags = [*paths, *self.flags, "--monitor", self.monitor, *as_flags(values), *actions]
        return [sys.executable, str(ROOT / "main.py"), *flags, *folder]

    def command_to_copy(self, values: Values) -> str:
        """Returns a main.py command with the options of a trial for users to copy."""
        words = ["python", "main.py", "--data_path", self.config.data_path]
        words += ["--pretrain_model_path", path] if (path := self.config.pretrain_model_path) else []
        words += [*self.flags, *(["--monitor", self.config.monitor] if self.config.monitor else [])]
        return shlex.join([*words, *as_flags(values), "--do_train", "--do_eval"])


def as_flags(values: Values) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items()]


def make_plan(config: SearchConfig) -> Plan:
    """Creates the plan of a search. Raises UserError if an option is invalid."""
    base, fixed = base_of(config)
    if base.pretrain_model_path and not base.init_from:
        locate(base.pretrain_model_path, base.model_hub, download=False)  # fails before the slow imports below
    import metrics
    from data_process import make_sample
    from preprocess.example import SPLITS
    from preprocess.schema import data_and_model, load_labels

    if config.data_path == Config.data_path:
        make_sample(base.data_dir)
    tasks = load_labels(base.data_dir)
    if missing := [split for split in ("train", "dev") if not (base.data_dir / f"{split}.jsonl").exists()]:
        raise UserError(f"{base.data_dir}: no {missing[0]}.jsonl; a search needs {' and '.join(SPLITS[:2])}")
    monitor = config.monitor or metrics.default_monitor(tasks)
    if monitor not in (names := metrics.score_names(tasks)):
        raise UserError(f"--monitor={monitor} is not one of the scores: {', '.join(names)}")
    flags = shlex.split(config.options)
    if base.epochs == 0:
        raise UserError("--options: --epochs must be at least 1")
    base = replace(base, batch_size=find_batch_size(base, tasks))
    if base.is_auto("epochs"):
        base = replace(base, epochs=count_epochs(base))
        flags += ["--epochs", str(base.epochs)]
    resolver, space = space_of(config, base, fixed, [task.type for task in tasks.values()])

    scores = [name for name in dict.fromkeys([monitor, *metrics.main_scores(tasks)]) if name in names]
    ignored = {*RESUME_SAFE, "data_path", "pretrain_model_path"}  # the paths are identified by their contents
    known_by = data_and_model(base.data_dir, config.pretrain_model_path) | {"monitor": monitor, "seed": config.seed}
    known_by |= {"startup": config.startup, "prune_after": config.epochs_before_pruning}
    known_by |= {"space": {name: str(dimension) for name, dimension in space.items()}}
    known_by["options"] = {name: str(value) for name, value in asdict(base).items() if name not in ignored}
    lower, has_test = metrics.lower_is_better(monitor), (base.data_dir / "test.jsonl").exists()
    return Plan(config, resolver, space, flags, monitor, lower, has_test, scores, known_by)


def base_of(config: SearchConfig) -> tuple[Config, set[str]]:
    """Returns the Config shared by all runs, and the names of the options set by --options."""
    from engine.train.initial import inherit_run_options

    try:
        words = shlex.split(config.options)
    except ValueError as error:
        raise UserError(f"--options={config.options!r} cannot be read: {error}") from None
    paths: dict[str, Any] = {"data_path": config.data_path, "pretrain_model_path": config.pretrain_model_path}
    base = parse_args(Config, [*as_flags(paths), *words])
    given, defaults = asdict(base), asdict(Config(**paths))
    if forbidden := [name for name in NOT_FOR_TRIALS if given[name] != defaults[name]]:
        raise UserError(f"--options: --{forbidden[0]} is not allowed; tools.search sets it for each run")
    if base.init_from:  # use its model and learning rates
        own_folder = replace(base, do_train=True, output_dir=str(config.folder / "runs"))
        base = replace(inherit_run_options(own_folder), do_train=False, output_dir=base.output_dir)
    return base, {*given_options(Config, words)[0]}


def count_rows(base: Config) -> int:
    with open(base.data_dir / "train.jsonl", "rb") as file:
        return sum(1 for line in file if line.strip())


def find_batch_size(base: Config, tasks: dict[str, Task]) -> int:
    """Resolves --batch_size auto for trials that do not search the batch size."""
    from engine.train.optimization import batch_size_of

    return batch_size_of(base, tasks, count_rows(base))


def count_epochs(base: Config) -> int:
    """Resolves --epochs auto for the batch size of `base`. All trials use this value, which makes them comparable."""
    from engine.train.optimization import epochs_of, is_pretrained, steps_per_epoch

    steps = steps_per_epoch(-(-count_rows(base) // base.batch_size), base)  # type: ignore[operator]
    epochs = epochs_of(steps, is_pretrained(base))
    logger.info(f"--epochs auto: {epochs} for {steps} steps per epoch, in all trials")
    return epochs


def space_of(config: SearchConfig, base: Config, fixed: set[str], kinds: list[str]) -> tuple[Resolver, Space]:
    """Returns the Resolver and the search space. Raises UserError with one line per error."""
    known = {field.name: field for field in fields(Config) if field.name not in {*RESUME_SAFE, *NOT_FOR_TRIALS}}
    space, errors = parse_space(config.space, known, fixed)
    errors = [f"--options: {line}" for line in base.unused_options(kinds)] + errors
    shape = None
    if is_given(base) and base.encoder == "transformer":
        from engine.model.encoders import pretrained_shape

        if (shape := pretrained_shape(base)) is None:
            raise UserError(f"{base.pretrain_model_path or base.init_from}: its encoder cannot be loaded")
    resolver = Resolver(base, kinds, shape)
    if not config.space:
        space = default_space(resolver, fixed)
    errors += resolver.errors(space)
    if errors:
        raise UserError("\nerror: ".join(errors))
    return resolver, space
