"""Trains every fold of a processed folder and puts the folds together.

    python data_process.py --input DATA --output_dir dataset/NAME --n_splits 5
    python cross_validate.py --data_path dataset/NAME --pretrain_model_path bert-base-uncased

Takes main.py's flags. Each fold is a run of its own, OUTPUT_DIR/<version>-fold_<k>; started again, it goes on where it stopped.
In OUTPUT_DIR/<version>-folds: out_of_fold.csv (each row once, by the model that never saw it), predictions.csv (the test part,
by the mean of the folds' probabilities) and folds.json (scores of each fold, mean and standard deviation).
Edit here when folds should be put together in another way.
"""

import dataclasses
import json
import logging
import statistics
import sys
from pathlib import Path

from engine.command_line import UserError
from logging_config import get_logger


def main(config):
    import torch

    import metrics
    from data_loader import MyDataLoader, MyDataset
    from engine.device import to_device
    from engine.features import Featurizer
    from main import main as run
    from model_utils import load_checkpoint
    from preprocess.schema import load_labels
    from trainer import Trainer, write_predictions

    data_path = Path(config.data_path)
    numbers = sorted(int(path.name[5:]) for path in data_path.glob("fold_*"))
    if not numbers:
        raise UserError(
            f"{data_path}: no folds in it; make them with: python data_process.py --input DATA --output_dir {data_path} --n_splits 5"
        )
    folds = [
        dataclasses.replace(config, fold=k, do_train=True, do_eval=True, do_predict=False, resume=True) for k in numbers
    ]
    for one in folds:
        run(one)

    tasks = load_labels(data_path)
    folder = config.run_dir.with_name(f"{config.run_dir.name}-folds")
    folder.mkdir(parents=True, exist_ok=True)
    logger = get_logger(folder / "train.log", logging.INFO)
    device, limit = to_device(config.device), 64 if config.debug else None
    gold, predicted, rows, kept, decisions, test = (
        {name: [] for name in tasks},
        {name: [] for name in tasks},
        [],
        [],
        [],
        None,
    )
    for one in folds:
        model, tokenizer, _, trained = load_checkpoint(one.run_dir / "checkpoints/best")
        encoder = Featurizer(tokenizer, tasks, trained.max_length, trained.window_stride, trained.truncation)
        trainer = Trainer(model, tokenizer, tasks, one, device)
        dev = MyDataset(data_path / f"fold_{one.fold}/dev.jsonl", encoder, limit)
        answers, chances, _ = trainer.infer(MyDataLoader(dev, config.eval_batch_size), f"fold {one.fold}: dev")
        for i in range(len(dev)):
            for name in tasks:
                gold[name].append(dev[i][name])
                predicted[name].append(answers[name][i])
            row = trainer.prediction(dev[i], {name: (answers[name][i], chances[name][i]) for name in tasks})
            rows.append({"id": row.pop("id"), "fold": one.fold, **row})
        if (data_path / "test.jsonl").exists():
            test = MyDataset(data_path / "test.jsonl", encoder, limit)
            kept.append({})
            trainer.infer(MyDataLoader(test, config.eval_batch_size), f"fold {one.fold}: test", keep=kept[-1])
            heads = model.output_layer.heads.items()
            decisions.append(
                {n: {k: v for k, v in head.state_dict().items() if not k.startswith("linear.")} for n, head in heads}
            )
    write_predictions(rows, folder / "out_of_fold.csv")
    result = {"folds": [json.loads((one.run_dir / "eval.json").read_text(encoding="utf-8")) for one in folds]}
    for part in result["folds"][0]:
        for name in result["folds"][0][part]:
            values = [fold[part][name] for fold in result["folds"] if name in fold[part]]
            if len(values) < len(folds):
                continue  # a fold without a label of the task
            result.setdefault("mean", {}).setdefault(part, {})[name] = statistics.fmean(values)
            result.setdefault("std", {}).setdefault(part, {})[name] = statistics.stdev(values)
    result["out_of_fold"] = metrics.score(tasks, gold, predicted)
    if test is not None:
        for name, head in model.output_layer.heads.items():
            means = {
                key: torch.stack([one[name][key].cpu().float() for one in decisions]).mean(0)
                for key in decisions[0][name]
            }
            head.load_state_dict(means, strict=False)
        result["test_of_all_folds"] = average(trainer, test, kept, folder / "predictions.csv")
    (folder / "folds.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for part in result["mean"]:
        for name in result["mean"][part]:
            if not name.endswith("loss"):
                logger.info(
                    f"{part} {name}: {result['mean'][part][name]:.4f} ± {result['std'][part][name]:.4f} over {len(folds)} folds"
                )
    for what in ("out_of_fold", "test_of_all_folds"):
        if what in result:
            logger.info(f"{what}: " + "  ".join(f"{name} {value:.4f}" for name, value in result[what].items()))


def average(trainer, test, kept, path):
    """Scores and writes the mean of what the folds' heads gave (see `probabilities` in model_utils.py) for each example."""
    import torch

    from trainer import merge_windows, outside_id, write_predictions

    heads, answers = trainer.model.output_layer.heads, []
    for i in range(len(test)):
        answers.append({})
        for name, head in heads.items():
            found = []
            for fold in kept:
                pieces = fold[name][i]
                found.append(
                    torch.stack(merge_windows([(first, list(piece)) for first, piece in pieces]))
                    if head.reads == "words"
                    else pieces[0][1]
                )
            logits = head.from_probabilities(torch.stack(found).mean(0)).unsqueeze(0).to(trainer.device)
            inputs = (
                {"word_mask": torch.ones(logits.shape[:2], dtype=torch.bool, device=trainer.device)}
                if head.reads == "words"
                else {}
            )
            with torch.inference_mode():
                numbers, chances = (tensor[0].tolist() for tensor in head.decode(logits, inputs))
            missing = len(test[i]["tokens"]) - len(numbers) if head.reads == "words" else 0
            if missing:  # words that were cut
                numbers, chances = numbers + [outside_id(head.task)] * missing, chances + [0.0] * missing
            answers[i][name] = head.named(numbers, chances)
    write_predictions((trainer.prediction(test[i], answers[i]) for i in range(len(test))), path)
    gold = {name: [test[i][name] for i in range(len(test))] for name in heads}
    return trainer.metric_function(gold, {name: [answer[name][0] for answer in answers] for name in heads})


if __name__ == "__main__":
    from huggingface_hands_on.continue_pretrain_task import command

    sys.exit(command(run=main))
