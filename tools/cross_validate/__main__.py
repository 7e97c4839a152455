"""Trains every fold of a processed folder and combines the results.

    python data_process.py --input DATA --output_dir dataset/NAME --n_splits 5
    python -m tools.cross_validate --data_path dataset/NAME --pretrain_model_path bert-base-uncased

Takes main.py's flags. Each fold is a run in OUTPUT_DIR/<version>-fold_<k>; the same command resumes an interrupted one.
OUTPUT_DIR/<version>-folds gets out_of_fold.csv (each row once, labelled by the model that was not trained on it),
predictions.csv (the test part, labelled with the mean of the folds' probabilities), folds.json (scores of each fold,
mean, standard deviation) and report.html (docs/report.md).
"""

import dataclasses
import logging
import sys

from config import Config
from engine.errors import UserError
from engine.run.command_line import run_command
from engine.run.files import write_json
from engine.run.launch import is_launched
from logging_config import get_logger


def main(config):
    import metrics
    from engine.predict.answers import rows_of, write_rows
    from engine.predict.ensemble import average_heads, deciding_state, mean_predictions, mean_scores
    from engine.predict.predictions import prediction_rows, write_predictions
    from preprocess.schema import load_labels

    refuse_other_work(config)
    data_path = config.data_dir
    numbers = fold_numbers(data_path)
    options = dict(do_train=True, do_eval=True, do_predict=False, resume=True)
    folds = [dataclasses.replace(config, fold=number, **options) for number in numbers]
    code = train_folds(folds)

    tasks = load_labels(data_path)
    folder = config.run_dir.with_name(f"{config.run_dir.name}-folds")
    folder.mkdir(parents=True, exist_ok=True)
    logger = get_logger(folder / "train.log", logging.INFO)
    rows, kept, averages, head_states, test_set = [], [], [], [], None
    for fold in folds:
        trainer, dev_loader, test_loader = load_fold(fold)
        predictions, _ = trainer.infer(dev_loader, f"fold {fold.fold}: dev", keep_averages="texts")
        kept += [row | {"fold": fold.fold} for row in rows_of(dev_loader.dataset, predictions, tasks, metrics)]
        rows += fold_rows(fold.fold, dev_loader.dataset, predictions, tasks)
        if test_loader:
            test_set = test_loader.dataset
            predictions, _ = trainer.infer(test_loader, f"fold {fold.fold}: test", keep_averages=True)
            averages.append(predictions.averages)
            head_states.append(deciding_state(trainer.model.output_layer.heads))
    write_predictions(rows, folder / "out_of_fold.csv", config.spreadsheet_safe)

    result = mean_scores([fold.run_dir / "eval.json" for fold in folds])
    sides = ({name: [row["answers"][name][side] for row in kept] for name in tasks} for side in ("gold", "predicted"))
    result["out_of_fold"] = metrics.score(tasks, *sides)
    write_rows(folder, "out_of_fold", kept)
    if test_set is not None:
        heads = trainer.model.output_layer.heads
        average_heads(heads, head_states)
        predictions = mean_predictions(heads, averages, test_set)
        labelled = prediction_rows(predictions, test_set, tasks, metrics.is_right)
        write_predictions(labelled, folder / "predictions.csv", config.spreadsheet_safe)
        write_rows(folder, "test", rows_of(test_set, predictions, tasks, metrics))
        test_gold = {name: [test_set[i][name] for i in range(len(test_set))] for name in tasks}
        result["test_of_all_folds"] = metrics.score(tasks, test_gold, predictions.labels)
    write_json(folder / "folds.json", result)
    log_result(result, len(folds), logger)
    leave_report(folder, trainer, folds, ["out_of_fold", *(["test"] if test_set is not None else [])])
    return code


def refuse_other_work(config: Config) -> None:
    """Raises UserError for main.py options that have no effect on folds or cannot work there."""
    others = "predict_file predict_output checkpoint shard fold"
    given = [name for name in others.split() if getattr(config, name) != getattr(Config, name)]
    if given:
        raise UserError(
            f"tools.cross_validate trains and scores every fold; it takes no --{given[0]}: use main.py with --fold, or "
            "tools.ensemble, once the folds are trained"
        )


def fold_rows(number, data, predictions, tasks):
    """Rows of out_of_fold.csv for a fold's dev part."""
    from engine.predict.predictions import prediction_rows
    from metrics import is_right

    rows = prediction_rows(predictions, data, tasks, is_right)
    return [{"id": row.pop("id"), "fold": number, **row} for row in rows]


def fold_numbers(data_path):
    """The folds of a processed folder, in order."""
    if is_launched():
        raise UserError("tools.cross_validate trains one fold after another in one process; start it without torchrun")
    numbers = sorted(int(path.name[5:]) for path in data_path.glob("fold_*"))
    if not numbers:
        raise UserError(f"{data_path}: has no folds; make them with data_process.py --n_splits 5")
    return numbers


def train_folds(folds):
    """Trains each fold as main.py would; a finished one is left unchanged. -> the exit code"""
    from main import main as train_one

    return max([train_one(fold) or 0 for fold in folds])


def load_fold(fold):
    """(Trainer with the fold's best model, loader of its dev part, loader of the test part or None)."""
    from data_loader import MyDataLoader, MyDataset
    from engine.run.device import to_device
    from main import load_trained

    trainer, featurizer = load_trained(fold.run_dir / "checkpoints/best", fold, to_device(fold.device))
    limit = 64 if fold.debug else None
    parts = [fold.data_dir / "dev.jsonl", fold.data_dir.parent / "test.jsonl"]
    loaders = [
        MyDataLoader(MyDataset(path, featurizer, limit), fold.eval_batch_size) if path.exists() else None
        for path in parts
    ]
    return trainer, *loaders


def leave_report(folder, trainer, folds, parts):
    """Writes report.html of all folds from the answers already in the folder. trainer: that of any fold"""
    import metrics
    from engine.predict.answers import write_about
    from tools.report.page import show_report

    names, data_path = [fold.run_dir.name for fold in folds], str(folds[0].data_dir.parent)
    write_about(folder, trainer, folds[0], parts, metrics, folds=names, data_path=data_path)
    show_report(folder, folds[0].report_language, folds[0].spreadsheet_safe)


def log_result(result, num_folds, logger):
    for part in result["mean"]:
        for name, mean in result["mean"][part].items():
            if not name.endswith("loss"):
                deviation = result["std"][part][name]
                logger.info(f"{part} {name}: {mean:.4f} ± {deviation:.4f} over {num_folds} folds")
    for name in ("out_of_fold", "test_of_all_folds"):
        if name in result:
            logger.info(f"{name}: " + "  ".join(f"{score} {value:.4f}" for score, value in result[name].items()))


if __name__ == "__main__":
    sys.exit(run_command(main, Config))
