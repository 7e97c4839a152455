"""Does a run initialised from a trained run (--init_from) beat a run from scratch, after a label was added?

    python benchmarks/continued.py [--label watch_movie] [--seeds 1 2 3 4 5] [--epochs 2 10] [--rates 1]

For each seed, a first run is trained on the sample without the rows of one label. Then the label is added. A run from
scratch and a run with --init_from are trained on all rows for the same number of epochs. Another run with --init_from
is trained only on the rows of the new label and a few rows of each old label. Prints for each run, on the test split:
the accuracy on rows with old labels, the recall of the new label, slot F1 and sentence accuracy, and the paired
differences over seeds. --rates: learning rates of the continued runs, as multiples of the first run's learning rate.
"""

import argparse
import json
import logging
import shutil
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from config import Config, seed_torch
from data_loader import MyDataLoader, MyDataset
from data_process import make_sample
from engine.train.initial import inherit_run_options
from main import build_trainer, load_data

FEW = 5  # rows per old label in the run on the rows of the new label
SIZE = dict(hidden_size=128, num_layers=2, device="cpu", do_train=True, early_stop_patience=0)


def write_folder(folder, source, keep):
    """Writes a processed folder with the rows of `source` that keep(row, split) selects, and with their labels."""
    folder.mkdir(parents=True)
    tasks = json.loads((source / "labels.json").read_text(encoding="utf-8"))
    for split in ("train", "dev", "test"):
        rows = [json.loads(line) for line in (source / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if keep(row, split)]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
        if split == "train":
            intents, tags = Counter(row["intent"] for row in rows), Counter(tag for row in rows for tag in row["slots"])
    for name, counts in (("intent", intents), ("slots", tags)):
        labels = [label for label in tasks[name]["labels"] if counts[label]]
        tasks[name] |= {"labels": labels, "counts": [counts[label] for label in labels]}
    (folder / "labels.json").write_text(json.dumps(tasks), encoding="utf-8")


def few_old_rows(label):
    """Returns keep(row, split) for `write_folder`, which selects only a few rows of other labels in train."""
    seen = Counter()

    def keep(row, split):
        seen[row["intent"]] += split == "train"
        return split != "train" or row["intent"] == label or seen[row["intent"]] <= FEW

    return keep


def trained_on(data, name, seed, work, **options):
    """Trains a run like main.py. Returns (trainer with the best weights, featurizer)."""
    options = SIZE | dict(data_path=str(data), output_dir=str(work / "output"), random_seed=seed) | options
    config = inherit_run_options(Config(model_version=f"{name}-{seed}", **options))
    config.run_dir.mkdir(parents=True)
    seed_torch(seed)
    loaded = load_data(config, torch.device("cpu"))
    trainer = build_trainer(loaded, torch.device("cpu"))
    trainer.resume()
    trainer.train()
    return trainer, loaded.dev_loader.dataset.featurizer


def scores_of(trained, path, label):
    """Scores a trained run on a file of rows. Returns the SCORES in %."""
    trainer, featurizer = trained
    found = trainer.eval(MyDataLoader(MyDataset(path, featurizer), 64))
    pairs = list(zip(found.gold["intent"], found.predicted["intent"]))
    old = [gold == predicted for gold, predicted in pairs if gold != label]
    new = [gold == predicted for gold, predicted in pairs if gold == label]
    shares = [100 * sum(correct) / len(correct) for correct in (old, new)]
    return [*shares, 100 * found.scores["slots_f1"], 100 * found.scores["sentence_accuracy"]]


SCORES = ("old labels", "new label", "slot F1", "sentence")


def compare(options, work):
    """Returns {run: [scores of each seed]}."""
    sample = work / "sample"
    make_sample(sample)
    folders = {"first": lambda row, _: row["intent"] != options.label, "few": few_old_rows(options.label)}
    for name, keep in folders.items():
        write_folder(work / name, sample, keep)
    results = {}
    for seed in options.seeds:
        run = work / f"output/first-{seed}"
        first = trained_on(work / "first", "first", seed, work, epochs=10)
        results.setdefault("first run", []).append(scores_of(first, sample / "test.jsonl", options.label))
        print(f"seed {seed}, first run: {results['first run'][-1]}", flush=True)
        lr = json.loads((run / "args.json").read_text(encoding="utf-8"))["lr"]
        for epochs in options.epochs:
            runs = {f"from scratch, {epochs} epochs": (sample, {})}
            for rate in options.rates:
                at = "" if len(options.rates) == 1 else f", {rate:g} of the rate"
                start = {"init_from": str(run)} | ({} if rate == 1 else {"lr": rate * lr})
                runs[f"--init_from, {epochs} epochs{at}"] = (sample, start)
                runs[f"--init_from, {epochs} epochs, {FEW} rows per old label{at}"] = (work / "few", start)
            for name, (data, flags) in runs.items():
                trained = trained_on(data, name.replace(" ", ""), seed, work, epochs=epochs, **flags)
                scores = scores_of(trained, sample / "test.jsonl", options.label)
                results.setdefault(name, []).append(scores)
                print(f"seed {seed}, {name}: {' '.join(f'{score:.2f}' for score in scores)}", flush=True)
        shutil.rmtree(work / "output")
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--label", default="watch_movie")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--epochs", type=int, nargs="+", default=[2, 10])
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0])
    options = parser.parse_args()
    logging.getLogger("template").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        results = compare(options, Path(folder))
    print(f"| run | {' | '.join(SCORES)} |\n| --- | --- | --- | --- | --- |")
    for name, rows in results.items():
        means = [f"{statistics.mean(column):.1f}" for column in zip(*rows)]
        print(f"| {name} | {' | '.join(means)} |")
        base = results[f"from scratch, {name.split(', ')[1]}"] if ", " in name else rows
        if rows is not base:
            gaps = [[a - b for a, b in zip(*pair)] for pair in zip(rows, base)]
            shown = [f"{statistics.mean(c):+.1f} ± {statistics.stdev(c) if len(c) > 1 else 0:.1f}" for c in zip(*gaps)]
            print(f"| minus from scratch | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
