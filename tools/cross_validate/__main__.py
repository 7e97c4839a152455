"""Trains a model for every fold of a processed folder, and combines the results.

    python data_process.py --input DATA --output_dir dataset/NAME --n_splits 5
    python -m tools.cross_validate --data_path dataset/NAME --pretrain_model_path bert-base-uncased

Accepts the flags of main.py. Each fold is a run in OUTPUT_DIR/<version>-fold_<k>. Repeat the command to resume. The
command writes these files to OUTPUT_DIR/<version>-folds: out_of_fold.csv (each row labelled by the model that was not
trained on it), predictions.csv (the test split labelled with the mean probabilities of the folds), folds.json (scores
per fold, mean and standard deviation) and report.html (docs/report.md).
"""

import dataclasses
import logging
import sys
from pathlib import Path
from typing import Any

from config import Config
from engine.errors import UserError
from engine.predict.rows import write_predictions
from engine.run.command_line import run_command
from engine.run.files import write_json
from engine.run.launch import is_launched
from logging_config import get_logger


def main(config: Config) -> int:
    import metrics
    from engine.predict.ensemble import average_heads, decoding_state, mean_predictions, mean_scores
    from engine.predict.predictions import prediction_rows
    from engine.predict.stored import rows_of, write_rows
    from main import main as train_fold
    from preprocess.schema import load_labels

    folds = folds_of(config)
    code = max([train_fold(fold) or 0 for fold in folds])

    tasks = load_labels(config.data_dir)
    folder = config.run_dir.with_name(f"{config.run_dir.name}-folds")
    folder.mkdir(parents=True, exist_ok=True)
    logger = get_logger(folder / "train.log", logging.INFO)
    rows: list[dict[str, Any]] = []  # rows of out_of_fold.csv
    stored_rows: list[dict[str, Any]] = []  # the same rows for the report
    averages, head_states, test_set = [], [], None
    for fold in folds:
        number, (trainer, dev_loader, test_loader) = fold.fold, load_fold(fold)
        predictions, _ = trainer.infer(dev_loader, f"fold {number}: dev", keep_averages="texts")
        stored_rows += [row | {"fold": number} for row in rows_of(dev_loader.dataset, predictions, tasks, metrics)]
        for row in prediction_rows(predictions, dev_loader.dataset, tasks, metrics.is_right):
            rows.append({"id": row.pop("id"), "fold": number, **row})
        if test_loader:
            test_set = test_loader.dataset
            predictions, _ = trainer.infer(test_loader, f"fold {number}: test", keep_averages="all")
            averages.append(predictions.averages)
            head_states.append(decoding_state(trainer.model.output_layer.heads))
    write_predictions(rows, folder / "out_of_fold.csv", config.spreadsheet_safe)

    result = mean_scores([fold.run_dir / "eval.json" for fold in folds])
    gold, predicted = (
        {name: [row["answers"][name][side] for row in stored_rows] for name in tasks} for side in ("gold", "predicted")
    )
    result["out_of_fold"] = metrics.score(tasks, gold, predicted)
    write_rows(folder, "out_of_fold", stored_rows)
    if test_set is not None:
        heads = trainer.model.output_layer.heads
        average_heads(heads, head_states)
        predictions = mean_predictions(heads, averages, test_set)
        labelled = prediction_rows(predictions, test_set, tasks, metrics.is_right)
        write_predictions(labelled, folder / "predictions.csv", config.spreadsheet_safe)
        write_rows(folder, "test", rows_of(test_set, predictions, tasks, metrics))
        gold = {name: [test_set[i][name] for i in range(len(test_set))] for name in tasks}
        result["test_of_all_folds"] = metrics.score(tasks, gold, predictions.labels)
    write_json(folder / "folds.json", result)
    log_result(result, len(folds), logger)
    write_report(folder, trainer, folds, ["out_of_fold", *(["test"] if test_set is not None else [])])
    return code


def folds_of(config: Config) -> list[Config]:
    """Returns the options of each fold's run, in order. Raises UserError if there are no folds, or if an option cannot
    be used with folds."""
    for name in ("predict_file", "predict_output", "checkpoint", "shard", "fold"):
        if getattr(config, name) != getattr(Config, name):
            advice = "after training the folds, use main.py with --fold, or tools.ensemble"
            raise UserError(f"--{name} cannot be used with tools.cross_validate, which trains every fold; {advice}")
    if is_launched():
        raise UserError("tools.cross_validate trains the folds sequentially in one process; start it without torchrun")
    numbers = sorted(int(path.name[5:]) for path in config.data_dir.glob("fold_*"))
    if not numbers:
        raise UserError(f"{config.data_dir}: no folds; create them with data_process.py --n_splits 5")
    options: dict[str, Any] = dict(do_train=True, do_eval=True, do_predict=False, resume=True)
    return [dataclasses.replace(config, fold=number, **options) for number in numbers]


def load_fold(fold: Config) -> tuple[Any, ...]:
    """Returns (Trainer with the fold's best model, loader of its dev split, loader of the test split or None)."""
    from data_loader import MyDataLoader, MyDataset
    from engine.run.device import to_device
    from main import load_trained

    trainer, featurizer = load_trained(fold.run_dir / "checkpoints/best", fold, to_device(fold.device))

    def loader(path: Path) -> MyDataLoader:
        return MyDataLoader(MyDataset(path, featurizer, 64 if fold.debug else None), fold.eval_batch_size)

    test = fold.data_dir.parent / "test.jsonl"
    return trainer, loader(fold.data_dir / "dev.jsonl"), loader(test) if test.exists() else None


def log_result(result: dict[str, Any], num_folds: int, logger: logging.Logger) -> None:
    for split, means in result["mean"].items():
        for name, mean in means.items():
            if not name.endswith("loss"):
                logger.info(f"{split} {name}: {mean:.4f} ± {result['std'][split][name]:.4f} over {num_folds} folds")
    for name in ("out_of_fold", "test_of_all_folds"):
        if name in result:
            logger.info(f"{name}: " + "  ".join(f"{score} {value:.4f}" for score, value in result[name].items()))


def write_report(folder: Path, trainer: Any, folds: list[Config], splits: list[str]) -> None:
    """Writes report.html for all folds from answers/ in the folder. trainer: the Trainer of any fold."""
    import metrics
    from engine.predict.stored import write_about
    from tools.report.page import show_report

    names, data_path = [fold.run_dir.name for fold in folds], str(folds[0].data_dir.parent)
    write_about(folder, trainer, folds[0], splits, metrics, folds=names, data_path=data_path)
    show_report(folder, folds[0].report_language, folds[0].spreadsheet_safe)


if __name__ == "__main__":
    sys.exit(run_command(main, Config))
