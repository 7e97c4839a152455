"""How many labels does `tools.select` save? Simulates active learning on labelled data over several seeds.

    python data_process.py --input atis --output_dir dataset/atis
    python benchmarks/selection.py --data dataset/atis --task intent --pretrain_model_path MODEL_FOLDER
    python benchmarks/selection.py --data dataset/cais --task slots --options hidden_size=64 use_crf=false

A pool is drawn from train, and a random subset of it is labelled. In each round, a model is trained from scratch on the
labelled rows, and each strategy chooses the rows to label next. Prints the mean test score after each round, the
differences from random selection (paired over seeds, 95% bootstrap intervals), and the number of labels with which each
strategy reaches the score of random selection at the last size. Finished rounds are stored in --work, and a repeated
command continues after them. The best epoch is chosen on --dev rows of dev.
"""

import argparse
import json
import logging
import resource
import shutil
import sys
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from config import Config, seed_torch
from data_loader import MyDataLoader, MyDataset
from engine.predict.interface import Model
from engine.run.files import write_json
from main import build_trainer, load_data
from metrics import default_monitor
from preprocess.checks.duplicates import plain
from preprocess.readers.sources import rows_of_split
from preprocess.schema import load_labels
from tools.select.choose import choose, survey

STRATEGIES = ("random", "uncertainty", "both", "diversity")
BOOTSTRAP = 2000


class Simulation:
    """Simulates the rounds of one seed. options: the command's options. folder: where data and results are stored."""

    def __init__(self, options, seed, folder):
        self.options, self.seed, self.folder = options, seed, folder
        rng = np.random.default_rng(seed)
        rows = {split: self.rows_of(split) for split in ("train", "dev", "test")}
        drawn = rng.permutation(len(rows["train"]))[: options.pool]
        self.pool = [rows["train"][i] for i in drawn]
        self.dev, self.test = rows["dev"][:32], rows["test"]
        self.by_id = {row["id"]: row for row in self.pool}
        self.labels = json.loads((Path(options.data) / "labels.json").read_text(encoding="utf-8"))
        self.labels = {options.task: self.labels[options.task]}
        self.write(folder / "pool", self.pool)
        self.start = [row["id"] for row in self.pool[: options.sizes[0]]]  # the pool is shuffled

    def rows_of(self, split):
        lines = (Path(self.options.data) / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def write(self, folder, train):
        folder.mkdir(parents=True, exist_ok=True)
        for split, rows in (("train", train), ("dev", self.dev), ("test", self.test)):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
        write_json(folder / "labels.json", self.labels)

    def train(self, ids):
        """Trains on these rows. Returns (Model, its main test score in %)."""
        data, options = self.folder / "data", self.options
        self.write(data, [self.by_id[one] for one in ids])
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        config = Config(
            data_path=str(data),
            output_dir=str(self.folder),
            model_version="run",
            pretrain_model_path=options.pretrain_model_path,
            epochs=options.epochs,
            random_seed=self.seed,
            do_train=True,
            early_stop_patience=0,
            device="cpu",
            **dict(options.options),
        )
        config.run_dir.mkdir(parents=True)
        seed_torch(self.seed)
        loaded = load_data(config, torch.device("cpu"))
        trainer = build_trainer(loaded, torch.device("cpu"))
        for trainer.progress.epoch in range(config.epochs):  # no evaluation on dev, no checkpoints
            trainer.progress.batch = 0
            trainer.train_one_epoch(trainer.progress.epoch)
        featurizer = loaded.dev_loader.dataset.featurizer
        found = trainer.eval(MyDataLoader(MyDataset(data / "test.jsonl", featurizer), 64))
        model = Model(config.run_dir / "checkpoints/best", {}, trainer, featurizer)
        return model, 100 * found.scores[default_monitor(load_labels(data))]

    def next(self, model, strategy, ids, count):
        """Returns the labelled ids, extended by `count` ids that a strategy chooses."""
        rows = rows_of_split(self.folder / "pool", "train", load_labels(self.folder / "pool"))
        labelled = {hash(plain(self.by_id[one])) for one in ids}
        pool = survey(rows, model, strategy in ("both", "uncertainty"), labelled)
        _, examples = choose(pool, model, strategy, count, self.seed)
        return [*ids, *(example["id"] for example in examples)]

    def run(self):
        """Runs all rounds, and saves each one when it is finished. Returns {strategy: [score at each size]}."""
        path, sizes = self.folder / "rounds.json", self.options.sizes
        state = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        counts = [after - before for before, after in pairwise(sizes)]
        if missing := [name for name in self.options.strategies if name not in state]:
            model, score = self.train(self.start)
            for name in missing:
                state[name] = {"scores": [score], "labelled": self.next(model, name, self.start, counts[0])}
            write_json(path, state)
        for name in self.options.strategies:
            own = state[name]
            while len(own["scores"]) < len(sizes):
                model, score = self.train(own["labelled"])
                own["scores"].append(score)
                if len(own["scores"]) < len(sizes):
                    own["labelled"] = self.next(model, name, own["labelled"], counts[len(own["scores"]) - 1])
                write_json(path, state)
                print(f"seed {self.seed}, {name}, {sizes[len(own['scores']) - 1]}: {score:.2f}", flush=True)
        return {name: state[name]["scores"] for name in self.options.strategies}


def labels_needed(sizes, scores, target):
    """Returns the size at which a curve first reaches a score, by linear interpolation, or inf if it never does."""
    for i, score in enumerate(scores):
        if score >= target:
            before = scores[i - 1] if i else score
            share = 1.0 if score == before else (target - before) / (score - before)
            return sizes[i - 1] + share * (sizes[i] - sizes[i - 1]) if i else sizes[0]
    return np.inf


def interval(values):
    """Returns the 2.5 and 97.5 percentiles of bootstrap values, which can be inf."""
    low, high = np.quantile(np.asarray(values), [0.025, 0.975], method="nearest")
    return low, high


def report(results, sizes):
    """Prints the tables. results: [{strategy: scores}], one per seed."""
    curves = {name: np.array([result[name] for result in results]) for name in results[0]}
    rng, seeds = np.random.default_rng(0), len(results)
    draws = rng.integers(seeds, size=(BOOTSTRAP, seeds))
    print(f"| strategy | {' | '.join(map(str, sizes))} | labels for random's score at {sizes[-1]} |")
    print(f"| --- |{' --- |' * (len(sizes) + 1)}")
    for name, scores in curves.items():
        cells = [f"{mean:.1f} ± {std:.1f}" for mean, std in zip(scores.mean(0), scores.std(0, ddof=min(1, seeds - 1)))]
        needed = labels_needed(sizes, scores.mean(0), curves["random"][:, -1].mean())
        again = [labels_needed(sizes, scores[draw].mean(0), curves["random"][draw, -1].mean()) for draw in draws]
        low, high = interval(again)
        print(f"| {name} | {' | '.join(cells)} | {needed:.0f} ({low:.0f} to {high:.0f}) |")
    for name, scores in curves.items():
        if name != "random":
            gaps = scores - curves["random"]
            ends = [interval(gaps[draws, i].mean(1)) for i in range(len(sizes))]
            cells = [f"{gap:+.1f} ({low:+.1f} to {high:+.1f})" for gap, (low, high) in zip(gaps.mean(0), ends)]
            print(f"| {name} minus random | {' | '.join(cells)} | |")


def option_of(word):
    name, _, value = word.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a processed folder")
    parser.add_argument("--task", required=True, help="the task to train and score")
    parser.add_argument("--pretrain_model_path", default="", help="pretrained encoder [an encoder from scratch]")
    parser.add_argument("--options", type=option_of, nargs="+", default=[], help="options of main.py: NAME=VALUE …")
    parser.add_argument("--work", default="output/selection")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES[:3])
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 100, 200, 300, 400])
    parser.add_argument("--pool", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    logging.getLogger("template").setLevel(logging.ERROR)
    setting = [Path(options.data).name, options.task, options.epochs, options.pool, *options.sizes]
    setting += [Path(options.pretrain_model_path).parent.name, *(f"{key}{value}" for key, value in options.options)]
    name = "-".join(map(str, filter(None, setting)))
    results = [Simulation(options, seed, Path(options.work) / name / str(seed)).run() for seed in options.seeds]
    report(results, options.sizes)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(f"{sum(one.ru_utime + one.ru_stime for one in used) / 60:.1f} CPU minutes in this process")


if __name__ == "__main__":
    main()
