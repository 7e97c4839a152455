"""Does suspicious.csv find wrong labels? Corrupts some labels, cross-validates, and counts how many are found.

    python benchmarks/wrong_labels.py --input dataset/sample_raw --task intent

A share of the train and dev rows gets a random other label of the same task (see --seed). Then every row is scored by
the model of the fold that was not trained on it (tools.cross_validate). Prints how many corrupted rows are in the first
rows of suspicious.csv, up to 5 % of the data.
"""

import argparse
import csv
import io
import json
import random
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data_process import DataConfig, prepare  # noqa: E402


def planted(options, folder):
    """Writes the data with corrupted labels as raw JSONL. Returns (ids of corrupted rows, total number of rows)."""
    with redirect_stdout(io.StringIO()):
        splits, tasks, _ = prepare(DataConfig(input=options.input, output_dir=str(folder / "unused")))
    rows = [row for split in ("train", "dev") for row in splits.get(split, ())]
    labels, rng = tasks[options.task]["labels"], random.Random(options.seed)
    chosen = rng.sample(range(len(rows)), round(options.share * len(rows)))
    for i in chosen:
        rows[i][options.task] = rng.choice([label for label in labels if label != rows[i][options.task]])
    with open(folder / "raw.jsonl", "w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            text = {key: row[key] for key in ("text", "tokens", "text_pair") if key in row}
            file.write(json.dumps({"id": str(number), "split": "train", options.task: row[options.task]} | text) + "\n")
    return {str(i) for i in chosen}, len(rows)


def run(*command):
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stderr[-3000:]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", default="dataset/sample_raw", help="raw data")
    parser.add_argument("--task", default="intent", help="a classification task in it")
    parser.add_argument("--share", type=float, default=0.02, help="share of the labels to corrupt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n_splits", type=int, default=5)
    parser.add_argument("--flags", default="--hidden_size 128 --epochs 8", help="flags of tools.cross_validate, quoted")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        wrong, size = planted(options, folder)
        make = ["data_process.py", "--input", folder / "raw.jsonl", "--label_column", options.task]
        run(*make, "--output_dir", folder / "data", "--n_splits", options.n_splits, "--test_ratio", 0)
        run(
            *("-m", "tools.cross_validate"),
            "--data_path",
            folder / "data",
            "--output_dir",
            folder,
            "--model_version",
            "cv",
            *options.flags.split(),
        )
        with open(folder / "cv-folds/suspicious.csv", encoding="utf-8", newline="") as file:
            listed = [row["id"] for row in csv.DictReader(file)]
        scores = json.loads((folder / "cv-folds/folds.json").read_text(encoding="utf-8"))["out_of_fold"]
    first = listed[: round(0.05 * size)]
    found = len(wrong & {*first})
    print(f"{size} rows, {len(wrong)} labels corrupted, out-of-fold accuracy {scores[f'{options.task}_accuracy']:.4f}")
    print(
        f"{len(listed)} rows listed; the first {len(first)} contain {found} corrupted ones ({found / len(wrong):.0%})"
    )


if __name__ == "__main__":
    main()
