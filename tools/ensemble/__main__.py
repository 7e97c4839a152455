"""Combines several trained runs into an ensemble: scores and selects runs, and labels texts.

    python -m tools.ensemble output/a output/b output/c
    python -m tools.ensemble output/a output/b output/c --predict_file texts.txt --predict_output labelled.csv

RUN is a run folder (its checkpoints/best is used) or a checkpoint folder. Encoders and tokenizers may differ; tasks,
labels and heads (CRF or not) must be the same. The ensemble averages probabilities or, for a CRF, path scores
(docs/ensemble.md).

Without --predict_file, the command scores each run, all runs together, and the runs selected by greedy search on dev,
and compares them with the best single run. It writes ensemble.json (all scores), eval.json, predictions.csv (of the
test split) and report.html to OUTPUT_DIR/ensemble. The last three files are for all runs or, with --select, for the
selected runs.
"""

import dataclasses
import logging
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from config import Config
from engine.errors import UserError
from engine.run.atomic import sha256
from engine.run.command_line import option, run_command
from engine.run.files import write_json
from engine.run.launch import is_launched
from engine.run.reading import ReadingOptions
from engine.run.run_folder import lock_folder
from engine.task.task import Task
from logging_config import get_logger

if TYPE_CHECKING:  # imported lazily to keep `--help` fast
    from data_loader import MyDataLoader
    from engine.data.features import Featurizer
    from engine.predict.ensemble import Committee, Run

logger = logging.getLogger("template")


@dataclass(frozen=True)
class EnsembleConfig(ReadingOptions):
    """Options of `tools.ensemble`. Options with the same name as in main.py have the same meaning."""

    runs: tuple[str, ...] = option((), "two or more run folders or checkpoint folders", positional="RUN")
    data_path: str = option("", "processed folder with the dev and test splits (default: the data of the first run)")
    select: bool = option(False, "use the runs selected on dev, instead of all runs, for labels and report")
    monitor: str = option("", "dev score to optimise, such as slots_f1 (default: the monitor of the first run)")
    output_dir: str = option("output", "parent folder of the ensemble's folder")
    model_version: str = option("ensemble", "name of the ensemble's folder")
    predict_file: str = option("", "file to label, in any format that data_process.py reads", group="labelling")
    predict_output: str = option("", ".csv or .jsonl to write (default: predictions.csv in the ensemble's folder)")
    abstain_below: str = option("", "omit predictions below this probability; can be set per task")
    resume: bool = option(False, "resume interrupted labelling, if any")
    force_resume: bool = option(False, "resume even if checkpoints or options have changed")
    spreadsheet_safe: bool = option(False, "add an apostrophe before cells that a spreadsheet would run as formulas")
    device: str = option("auto", "auto, cpu, cuda:0, mps, xpu, npu", group="machine")
    precision: Literal["fp32", "bf16", "fp16"] = option("fp32", "autocast to half precision")
    eval_batch_size: int = option(64, "texts per batch; scores do not depend on it")
    pretrain_model_path: str = option("", "path of the base model of LoRA adapters, if it has moved")
    report_language: Literal["auto", "en", "zh"] = option("auto", "language of report.html; auto: that of the texts")

    def __post_init__(self) -> None:
        object.__setattr__(self, "runs", tuple(self.runs))
        if len(self.runs) < 2:
            raise UserError("pass two or more runs; use main.py --do_eval to evaluate a single run")
        self.for_runs()  # validates the options

    @property
    def folder(self) -> Path:
        """The ensemble's folder."""
        return Path(self.output_dir) / self.model_version

    def for_runs(self) -> Config:
        """Returns the options of main.py for loading each run and labelling texts."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(Config) if f.name in vars(self)}
        return Config(do_predict=bool(self.predict_file), **values)


def main(config: EnsembleConfig) -> None:
    import data_loader  # noqa: F401 (it declares FIELDS)
    import metrics
    from engine.predict.ensemble import Committee, find_runs
    from engine.predict.uncertainty import thresholds_of
    from engine.run.device import keep_freed_memory, to_device
    from main import load_trained
    from preprocess.readers.sources import texts_of
    from tools.ensemble.selection import monitor_of

    if is_launched():
        raise UserError("tools.ensemble loads the runs sequentially in one process; start it without torchrun")
    runs, device = find_runs(config.runs), to_device(config.device)
    trained = [Config.load(run.folder / "args.json") for run in runs]
    monitor = monitor_of(config.monitor, trained[0].monitor, runs[0].tasks, metrics)
    data_path, splits = splits_of(config, runs, trained)
    options = dataclasses.replace(config.for_runs(), data_path=str(data_path))
    texts = texts_of(options) if config.predict_file else None
    if (config.folder / "args.json").exists() or (config.folder / "checkpoints").exists():
        raise UserError(f"{config.folder} contains a run of main.py; choose another folder with --model_version")
    keep_freed_memory(device)
    with lock_folder(config.folder, "choose another folder with --model_version"):
        get_logger(config.folder / "train.log")
        others = [(run, c) for run, c in zip(runs, trained) if splits and c.data_dir.resolve() != data_path.resolve()]
        for run, run_config in others:
            leak = f"if it contains dev or test texts of {data_path}, the scores are inflated"
            logger.warning(f"{run.name} was trained on {run_config.data_dir}; {leak}")
        load = partial(load_trained, config=options, device=device)
        committee = Committee(runs, load, loader_of, options, device, metrics)
        committee.temper = not others  # runs are overconfident on texts that they were trained on
        committee.abstention.thresholds |= thresholds_of(config.abstain_below, "abstain_below", committee.tasks)
        if texts:
            label(committee, config, monitor, splits.get("dev"), texts)
        else:
            score(committee, config, monitor, splits)
            report(committee, config, trained, list(splits))


def splits_of(config: EnsembleConfig, runs: list["Run"], trained: list[Config]) -> tuple[Path, dict[str, Path]]:
    """Returns (processed folder, {"dev", "test": file} for existing splits, or {} if labelling does not need dev)."""
    from preprocess.schema import check_same_labels

    data_path = Path(config.data_path) if config.data_path else trained[0].data_dir
    exists = config.data_path or (data_path / "labels.json").exists()
    if config.predict_file and not config.select and not (exists and calibrates(runs[0].tasks)):
        return data_path, {}
    if not exists:
        missing = f"{data_path}, on which {runs[0].name} was trained, does not exist"
        raise UserError(f"{missing}; pass a processed folder with --data_path")
    check_same_labels(data_path, runs[0].tasks)
    splits = {split: data_path / f"{split}.jsonl" for split in ("dev", "test")}
    splits = {split: path for split, path in splits.items() if path.exists()}
    if not splits or (config.select and "dev" not in splits):
        raise UserError(f"{data_path}: no dev.jsonl to score and select on; pass another folder with --data_path")
    return data_path, splits


def calibrates(tasks: dict[str, Task]) -> bool:
    """Returns whether the threshold of any head is calibrated on dev."""
    from model_utils import HEADS

    return any(getattr(HEADS.get(task.type), "needs_calibration", False) for task in tasks.values())


def loader_of(
    source: str | Path | list[dict[str, Any]], featurizer: "Featurizer", batch_size: int, name: str
) -> "MyDataLoader":
    """Creates a MyDataLoader for a processed file or for texts to label. name: name of the run in warnings."""
    from data_loader import MyDataLoader, MyDataset
    from engine.data.cuts import warn_of_cuts

    data = MyDataset(source, featurizer, quiet=True)
    if not isinstance(source, list):  # for a list, `label_rows` warns
        warn_of_cuts(data, f"{name} on {source}")
    return MyDataLoader(data, batch_size)


def label(committee: "Committee", config: EnsembleConfig, monitor: str, dev_path: Path | None, texts: Any) -> None:
    """Labels --predict_file with all runs or, with --select, with the runs selected on dev."""
    from engine.predict.labelling import label_rows
    from tools.ensemble.selection import Selection

    depends = {}
    if dev_path:
        dev, members = committee.collect({"dev": dev_path})["dev"], committee.members
        if config.select:
            members = [member for member, _ in Selection(committee, dev, monitor).order()]
            logger.info(f"selected on dev: {', '.join(committee.runs[member].name for member in members)}")
        committee.decide(members, dev)
        depends["SHA-256 of dev"] = sha256(dev_path)[:16]
    elif calibrates(committee.tasks):
        logger.warning("no dev split to fit thresholds on (--data_path); using the mean thresholds of the runs")
    checkpoints = [committee.runs[member].folder for member in committee.members]
    output = config.predict_output or config.folder / "predictions.csv"
    label_rows(committee, texts, committee.collect_rows, output, *checkpoints, **depends)


def score(committee: "Committee", config: EnsembleConfig, monitor: str, paths: dict[str, Path]) -> None:
    """Scores each run, all runs together and the selected runs. Logs the scores and writes ensemble.json. Writes
    eval.json, predictions.csv and answers/ for all runs or, with --select, for the selected runs."""
    from engine.predict.predictions import prediction_rows
    from engine.predict.rows import write_predictions
    from engine.predict.stored import rows_of, write_rows
    from tools.ensemble.selection import assess, summary

    tasks, metrics, folder = committee.tasks, committee.metrics, config.folder
    splits = committee.collect(paths)
    result, predictions = assess(committee, splits, monitor)
    for text in summary(result, splits, tasks, metrics):
        logger.info(text)
    group = "selected" if config.select else "all"
    write_json(folder / "ensemble.json", result)
    write_json(folder / "eval.json", {title: result[group][title] for title in splits})
    for title, split in splits.items():
        write_rows(folder, title, rows_of(split.dataset, predictions[group][title], tasks, metrics))
    if "test" in splits:
        rows = prediction_rows(predictions[group]["test"], splits["test"].dataset, tasks, metrics.is_right)
        write_predictions(rows, folder / "predictions.csv", config.spreadsheet_safe)


def report(committee: "Committee", config: EnsembleConfig, trained: list[Config], splits: list[str]) -> None:
    """Writes report.html from answers/, with the learning curves of all runs and the options that they share."""
    from engine.predict.stored import options_of, write_about
    from tools.report.page import show_report

    homes = [run.home for run in committee.runs if run.home]
    folds = [os.path.relpath(home, config.folder.resolve().parent) for home in dict.fromkeys(homes)]
    first, *rest = map(options_of, trained)
    shared = {name: value for name, value in first.items() if all(other.get(name) == value for other in rest)}
    seeds = ", ".join(str(run_config.random_seed) for run_config in trained)
    extra = dict(folds=folds, options=shared, seed=seeds)
    write_about(config.folder, committee, trained[0], splits, committee.metrics, **extra)
    show_report(config.folder, config.report_language, config.spreadsheet_safe)


if __name__ == "__main__":
    sys.exit(run_command(main, EnsembleConfig))
