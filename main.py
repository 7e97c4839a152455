"""Trains a pretrained encoder, or a small one from scratch, on one or more text classification and tagging tasks.

    python main.py --do_train --do_eval --do_predict
    python main.py --do_train --do_eval --data_path dataset/NAME --pretrain_model_path bert-base-uncased

`main` calls each step in order: options, data, training, evaluation, prediction, report. Edit it to change the steps.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from config import ROOT, Config, seed_torch
from engine.errors import UserError
from engine.run.command_line import run_command
from engine.run.environment import require_packages
from engine.run.files import write_json
from engine.run.launch import require_gpus
from engine.run.run_folder import claim_run_dir
from logging_config import about_environment, chosen_trackers, get_logger

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from data_loader import MyDataLoader, MyDataset, MyIterableDataLoader
    from engine.data.features import Featurizer
    from engine.task.task import Task
    from preprocess.readers.sources import TextRows
    from trainer import Trainer

logger = logging.getLogger("template")


def checked(config: Config) -> Config:
    """Validates the options as far as possible without torch, which takes seconds to import, and returns them."""
    from engine.model.hub import locate

    require_packages()
    if config.debug and not (config.do_train or config.do_eval or config.do_predict):
        config = replace(config, do_train=True, do_eval=True, do_predict=True)
    if not (config.do_train or config.do_eval or config.do_predict):
        raise UserError("nothing to do: add --do_train, --do_eval or --do_predict")
    if config.do_train:
        chosen_trackers(config)
        if config.pretrain_model_path and not config.init_from:
            locate(config.pretrain_model_path, config.model_hub, download=False)
    return config


def main(config: Config) -> Any:  # an exit code, or None
    typed, config = config.given, checked(config)
    # Imported here, because slow imports would delay --help and error messages about flags
    import data_loader  # noqa: F401 (it declares FIELDS)
    from data_process import make_sample
    from engine.data.token_cache import clear
    from engine.run import distributed
    from engine.run.device import keep_freed_memory
    from engine.train.automatic import inherit_auto_options
    from engine.train.initial import inherit_run_options
    from preprocess.readers.sources import texts_of
    from preprocess.schema import load_labels

    require_gpus(config.gpus)
    device, data_path = distributed.join(config.device, config.ddp_timeout), config.data_dir
    config = inherit_run_options(config, typed)
    texts = texts_of(config) if config.do_predict and config.predict_file else None
    needs_data = config.do_train or config.do_eval or (config.do_predict and not texts)
    if needs_data and config.data_path == Config.data_path and config.fold is None:
        with distributed.first_of_node():
            make_sample(data_path)

    if config.clear_cache and distributed.is_main_process():
        load_labels(data_path)  # raises UserError, before anything is removed, if this is not a processed folder
        clear(data_path / ".cache")
    with distributed.entered_by_first(claim_run_dir(config)) as run_dir:
        if distributed.is_main_process():
            log_path = Path(config.log_output_path or run_dir) / config.log_output_file
            about = about_environment(device, config.device)
            get_logger(log_path, logging.DEBUG if config.debug else logging.INFO, about)
        seed_torch(config.random_seed, config.deterministic)
        keep_freed_memory(device)
        config = inherit_auto_options(config, run_dir, device)

        if config.do_train and config.debug:
            return rehearse_and_check(config, device, run_dir, texts)
        if config.do_train:
            trainer = build_trainer(load_data(config, device), device)
            trainer.resume()
            trainer.train()
            del trainer  # frees its memory before the best checkpoint is loaded
        if config.do_eval or config.do_predict:
            evaluate_and_predict(config, device, run_dir, texts)
        if config.do_eval and distributed.is_main_process():
            write_report(run_dir, config)
        distributed.leave(device)


def evaluate_and_predict(config: Config, device: torch.device, run_dir: Path, texts: TextRows | None = None) -> None:
    """Evaluates and predicts with the best checkpoint, which is loaded from disk, as in a new process. texts: rows to
    label instead of the test split."""
    import metrics
    from data_loader import MyDataLoader, MyDataset
    from engine.predict.labelling import embed_rows, label_rows
    from engine.predict.stored import write_about
    from engine.run import distributed
    from preprocess.readers.sources import rows_of_split
    from preprocess.schema import check_same_labels

    best = Path(config.checkpoint or run_dir / "checkpoints/best")
    trainer, featurizer = load_trained(best, config, device)
    data_path, limit = config.data_dir, 64 if config.debug else None
    if config.do_eval:
        check_same_labels(data_path, trainer.tasks)
        paths = [path for path in (data_path / "dev.jsonl", data_path / "test.jsonl") if path.exists()]
        evaluate(trainer, {path.stem: MyDataset(path, featurizer, limit) for path in paths}, run_dir)
        if distributed.is_main_process():
            write_about(run_dir, trainer, Config.load(best / "args.json"), [path.stem for path in paths], metrics)
    if config.do_predict:
        rows = texts or rows_of_split(data_path, "test", trainer.tasks, limit)
        output, size = config.predict_output or run_dir / "predictions.csv", config.eval_batch_size

        def load(examples: list[dict[str, Any]]) -> MyDataLoader:
            return MyDataLoader(MyDataset(examples, featurizer, quiet=True), size)

        if config.embed:
            embed_rows(trainer, rows, load, config.embed)
        else:
            label_rows(trainer, rows, load, output, best)


class Data(NamedTuple):
    """The output of `load_data`: everything that `build_trainer` needs."""

    config: Config  # with the options that depend on the data resolved
    tokenizer: PreTrainedTokenizerBase | None  # None with --encoder none
    tasks: dict[str, Task]
    train_loader: MyDataLoader | MyIterableDataLoader
    dev_loader: MyDataLoader
    own: Path | None  # the checkpoint from which a run with --init_from resumes


def load_data(config: Config, device: torch.device, limit: int | None = None) -> Data:
    """Reads the processed folder and resolves the options that depend on it. limit: the maximum number of examples per
    split."""
    from data_loader import build_loaders
    from engine.data.features import Featurizer
    from engine.data.own_inputs import require_same_fields, require_text
    from engine.data.tokenizer import load_tokenizer
    from engine.model.encoders import pooling_of, pretrained_shape
    from engine.model.hub import locate
    from engine.run import distributed
    from engine.train.automatic import DataFacts, resolve_data_options
    from engine.train.initial import own_checkpoint
    from model_utils import CRFTaggingHead, heads_of
    from preprocess.schema import load_labels, read_processed, training_texts

    data_path = config.data_dir
    tasks = load_labels(data_path)
    require_same_fields(tasks, data_path / "labels.json")
    require_text(tasks, config.encoder, data_path)
    heads = [*heads_of(tasks, config.use_crf).values()]
    actual = replace(config, use_crf=any(issubclass(head, CRFTaggingHead) for head in heads))
    for line in actual.unused_options([task.kind for task in tasks.values()]):
        logger.warning(line)
    if config.pretrain_model_path:  # not in `from_rank_0`: a download may exceed its timeout
        locate(config.pretrain_model_path, config.model_hub)
    own = distributed.from_rank_0(lambda: own_checkpoint(config))
    tokenizer = distributed.from_rank_0(
        lambda: load_tokenizer(config, lambda: training_texts(data_path / "train.jsonl"), own)
    )
    word_ends = pooling_of(config, pretrained_shape(config, own))[1] != "first"
    rows = partial(read_processed, data_path / "train.jsonl", tasks)
    config = resolve_data_options(config, DataFacts(tokenizer, tasks, heads, rows))
    featurizer = Featurizer.from_config(config, tokenizer, tasks, heads, word_ends)
    return Data(config, tokenizer, tasks, *build_loaders(config, data_path, featurizer, device, limit), own)


def build_trainer(data: Data, device: torch.device) -> Trainer:
    """Builds the model, optimizer, schedule and tricks, and a Trainer with them."""
    from engine.train.automatic import TrainingFacts, resolve_training_options
    from engine.train.optimization import merge_groups, parameter_groups, steps_per_epoch
    from metrics import monitor_of
    from model_utils import build_model
    from trainer import Trainer, TrainingSetup, build_optimizer, build_scheduler
    from tricks import build_tricks

    config, tokenizer, tasks, train_loader, dev_loader, own = data
    monitor = monitor_of(config.monitor, tasks)
    model = build_model(config, tokenizer, tasks, own).to(device)
    num_rows = train_loader.dataset.num_labelled_rows
    facts = TrainingFacts(model.encoder, device, tasks, num_rows, num_batches=len(train_loader))
    config = resolve_training_options(config, facts)
    tricks = build_tricks(model, config)
    groups = tricks.param_groups(parameter_groups(model, config))
    optimizer = merge_groups(build_optimizer(groups, config, device))
    scheduler = build_scheduler(optimizer, replace(config, monitor=monitor), steps_per_epoch(len(train_loader), config))
    tricks.begin(train_loader, dev_loader, config)
    setup = TrainingSetup(train_loader, dev_loader, optimizer, scheduler, tricks)
    return Trainer(model, tokenizer, tasks, config, device, setup)


def load_trained(folder: str | Path, config: Config, device: torch.device) -> tuple[Trainer, Featurizer]:
    """Loads a checkpoint, without the data folder. Returns (Trainer with its model, its Featurizer)."""
    from engine.train.automatic import resolve_precision
    from model_utils import load_with_featurizer
    from trainer import Trainer

    model, featurizer, trained = load_with_featurizer(folder, config.pretrain_model_path, config.model_hub)
    config = resolve_precision(config, model.encoder, device, trained.precision)
    return Trainer(model, featurizer.tokenizer, featurizer.tasks, config, device), featurizer


def evaluate(trainer: Trainer, data_sets: dict[str, MyDataset], run_dir: Path) -> None:
    """Scores each split; writes the log, eval.json, report.json and answers/. data_sets: {split: data set}"""
    import metrics
    from data_loader import MyDataLoader
    from engine.predict import uncertainty
    from engine.predict.stored import report_kinds, rows_of, write_rows
    from engine.run import distributed

    scores, per_label, kinds = {}, {}, report_kinds(trainer.tasks, metrics)
    for split, data_set in data_sets.items():
        loader = MyDataLoader(data_set, trainer.config.eval_batch_size)
        scores[split], gold, predicted, predictions = trainer.eval(loader, keep_averages="texts")
        scores_above, lines = uncertainty.abstention_scores(
            split, kinds, gold, predictions, trainer.abstention, trainer.target_precisions
        )
        scores[split] |= scores_above
        if not distributed.is_main_process():
            continue
        write_rows(run_dir, split, rows_of(data_set, predictions, trainer.tasks, metrics))
        per_label[split] = metrics.report(trainer.tasks, gold, predicted)
        for name, scores_of_labels in per_label[split].items():
            if not trainer.config.debug:  # with so few examples, scores per label are noise
                logger.info(f"{split}, {name}:\n{metrics.table(scores_of_labels)}")
        logger.info(f"{split}: " + "  ".join(f"{name} {value:.4f}" for name, value in scores[split].items()))
        for line in lines:
            logger.info(line)
    if distributed.is_main_process():
        write_json(run_dir / "report.json", per_label)
        write_json(run_dir / "eval.json", scores)


def write_report(run_dir: Path, config: Config) -> None:
    """Writes the run's report.html, unless tools/report has been deleted."""
    if not (ROOT / "tools/report").is_dir():
        return logger.info("no report: tools/report is missing")
    from tools.report.page import show_report

    show_report(run_dir, config.report_language, config.spreadsheet_safe)


def rehearse_and_check(config: Config, device: torch.device, run_dir: Path, texts: TextRows | None) -> int:
    """Runs all steps on a few examples, then the model checks in tools/check. Returns the exit code: 3 if a check
    failed, 4 if one was undecided, otherwise 0."""
    if not (ROOT / "tools/check").is_dir():
        raise UserError("--debug needs tools/check, which is missing; copy it from the template")
    from data_loader import MyDataset
    from tools.check.model_check import Case, check_model, rehearsal

    data = load_data(config, device, 64)

    def build(**changes: Any) -> Trainer:
        changed = replace(data.config, **changes)
        seed_torch(changed.random_seed)
        return build_trainer(data._replace(config=changed), device)

    with rehearsal() as failures:
        trainer = build()
        config = trainer.config  # with all options resolved
        data = data._replace(config=config)
        trainer.resume()
        trainer.train()
        if config.do_eval or config.do_predict:
            evaluate_and_predict(config, device, run_dir, texts)
    rows = MyDataset(config.data_dir / "train.jsonl", data.dev_loader.dataset.featurizer, 64)
    best = run_dir / "checkpoints/best"
    case = Case(build, rows, best if best.is_dir() else None, [sys.executable, ROOT / "main.py"])
    if check_model(case) or failures:
        return 3
    return 4 if case.undecided else 0


if __name__ == "__main__":
    sys.exit(run_command(main, Config))
