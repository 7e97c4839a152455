"""Does pretraining on the task's own texts help? Compares encoders from scratch with and without it, on all labels and
on a few.

    python benchmarks/pretraining.py --data_path dataset/cais --seeds 1 2 3 --shares 1 0.1

Each run is a separate process, whose results are stored in --work; finished runs are not repeated when the script is
restarted. Prints test scores as mean ± standard deviation over the seeds. Pretraining uses dev as its held-out texts,
and never reads the test texts.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
SIZE = {"mini": ["--num_layers", 4, "--hidden_size", 256], "tiny": ["--num_layers", 2, "--hidden_size", 128]}


def run(done, log, *command):
    """Runs a command of this repository, unless `done`, the file that it writes last, exists."""
    if not done.exists():
        log.parent.mkdir(parents=True, exist_ok=True)
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // options.jobs)), "TQDM_DISABLE": "1"}
        with open(log, "w") as file:
            finished = subprocess.run(
                [sys.executable, *map(str, command)], cwd=ROOT, stdout=file, stderr=file, env=threads | dict(os.environ)
            )
        if finished.returncode:
            sys.exit(f"{' '.join(map(str, command))} failed; see {log}")


def part_of_data(share, seed):
    """Creates a data folder with a random share of the training rows, all of dev and test, and labels.json."""
    folder = work / f"data-{share:g}-{seed}"
    folder.mkdir(exist_ok=True)
    for name in ("dev.jsonl", "test.jsonl", "labels.json"):
        (folder / name).write_bytes((data / name).read_bytes())
    rows = (data / "train.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    kept = sorted(random.Random(seed).sample(range(len(rows)), round(share * len(rows))))
    (folder / "train.jsonl").write_text("".join(rows[number] + "\n" for number in kept), encoding="utf-8")
    return folder


def pretrain(seed):
    flags = ["--input", data, "--pretrain_model_path", work / "tokenizer", "--from_scratch", "--config", options.config]
    flags += ["--epochs", options.pretrain_epochs, "--batch_size", options.pretrain_batch_size, "--random_seed", seed]
    encoder = work / f"encoder-{seed}"
    run(
        encoder / "pretraining.json",
        work / f"logs/encoder-{seed}",
        "huggingface_hands_on/continue_pretrain_task.py",
        *flags,
        "--output_dir",
        encoder,
    )


def fine_tune(share, seed, pretrained):
    name = f"{'pretrained' if pretrained else 'scratch'}-{share:g}-{seed}"
    model = ["--pretrain_model_path", work / f"encoder-{seed}"] if pretrained else SIZE[options.config]
    flags = [
        "--do_train",
        "--do_eval",
        "--resume",
        "--data_path",
        work / f"data-{share:g}-{seed}",
        "--output_dir",
        work / "runs",
    ]
    flags += [
        "--model_version",
        name,
        "--random_seed",
        seed,
        "--epochs",
        options.epochs if share == 1 else options.epochs_of_shares,
    ]
    run(work / f"runs/{name}/eval.json", work / f"logs/{name}", "main.py", *flags, *model)


def table():
    def scores(share, arm):
        return [
            json.loads((work / f"runs/{arm}-{share:g}-{seed}/eval.json").read_text())["test"] for seed in options.seeds
        ]

    names = [
        name
        for name in scores(options.shares[0], "scratch")[0]
        if name.endswith(("accuracy", "_f1")) and "macro" not in name
    ]
    print(f"| share of the labels | encoder | {' | '.join(names)} |\n| --- | --- |{' --- |' * len(names)}")
    for share in options.shares:
        for arm in ("scratch", "pretrained"):
            cells = [[100 * one[name] for one in scores(share, arm)] for name in names]
            shown = (
                f"{statistics.mean(cell):.2f} ± {statistics.stdev(cell) if len(cell) > 1 else 0:.2f}" for cell in cells
            )
            print(f"| {share:.0%} | {arm} | {' | '.join(shown)} |")
    for seed in options.seeds:
        result = json.loads((work / f"encoder-{seed}/pretraining.json").read_text())
        print(
            f"seed {seed}: held-out perplexity {result['before']['perplexity']:.0f} -> "
            f"{result['after']['perplexity']:.1f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", required=True, help="processed folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[1, 0.1], help="shares of the training rows to fine-tune on"
    )
    parser.add_argument("--config", default="mini", choices=list(SIZE))
    parser.add_argument("--pretrain_epochs", type=int, default=20)
    parser.add_argument("--pretrain_batch_size", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--epochs_of_shares", type=int, default=40, help="epochs for shares below 1")
    parser.add_argument("--jobs", type=int, default=1, help="parallel runs; they share the cores")
    parser.add_argument("--work", default="output/pretraining")
    options = parser.parse_args()
    data, work = Path(options.data_path).resolve(), Path(options.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = [
        ROOT / "huggingface_hands_on/train_tokenizer_from_scratch.py",
        "--input",
        data,
        "--output_dir",
        work / "tokenizer",
    ]
    run(work / "tokenizer/tokenizer.json", work / "logs/tokenizer", *tokenizer)
    for share in options.shares:
        for seed in options.seeds:
            part_of_data(share, seed)
    tasks = [(fine_tune, share, seed, False) for share in options.shares for seed in options.seeds]
    tasks = [(pretrain, seed) for seed in options.seeds] + tasks
    with ThreadPoolExecutor(options.jobs) as pool:
        list(tqdm(pool.map(lambda task: task[0](*task[1:]), tasks), total=len(tasks), desc="pretraining, scratch"))
        tasks = [(fine_tune, share, seed, True) for share in options.shares for seed in options.seeds]
        list(tqdm(pool.map(lambda task: task[0](*task[1:]), tasks), total=len(tasks), desc="pretrained"))
    table()
