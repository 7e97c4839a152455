"""SemEval-2010 Task 8 (Hendrickx et al., 2010): the official score of the head of docs/cookbook/relation.md.

    python benchmarks/semeval.py --data DIR --pretrain_model_path MODEL_FOLDER [--seeds 1 2 3 4 5]

--data: a folder with train.txt (8,000 sentences) and test.txt (2,717) in the format of the task's release: number, tab,
sentence in quotes; then the relation; then a comment. 800 rows of train, stratified and the same for all seeds, are
held out as dev. Each run trains like main.py; test is scored once, with the best checkpoint on dev. Prints the official
score on dev and test, and the CPU time of training and evaluation, for each seed and as a mean. Finished runs are not
trained again. --options: further flags of main.py.
"""

import argparse
import csv
import json
import re
import shlex
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sklearn.metrics import f1_score

import model_utils
from config import ROOT, Config
from data_process import DataConfig, process
from engine.run.command_line import parse_args
from main import main

MARKERS = "<e1>,</e1>,<e2>,</e2>"


def official_f1(gold, predicted):
    """Returns the macro F1 over all relations except Other, like semeval2010_task8_scorer-v1.2.pl ("(9+1)-way
    evaluation taking directionality into account"): a relation's precision and recall are over both directions, and a
    prediction with the wrong direction is an error in both."""
    directions = {}
    for label in sorted({*gold, *predicted} - {"Other"}):
        directions.setdefault(label.partition("(")[0], []).append(label)
    of_gold = {label.partition("(")[0] for label in gold} & directions.keys()
    scores = [
        f1_score(gold, predicted, labels=directions[relation], average="micro", zero_division=0) for relation in of_gold
    ]
    return sum(sorted(scores)) / len(scores)


def convert(source, folder):
    """Writes train.csv and test.csv from the release's train.txt and test.txt. Returns the number of rows."""
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for split in ("train", "test"):
        blocks = re.split(r"\n\s*\n", (source / f"{split}.txt").read_text(encoding="utf-8-sig").strip())
        with open(folder / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "text", "relation"])
            for block in blocks:
                sentence, relation = block.strip().splitlines()[:2]
                number, text = sentence.split("\t", 1)
                writer.writerow([number, text.strip().removeprefix('"').removesuffix('"').strip(), relation.strip()])
        total += len(blocks)
    return total


def use_head_of_page():
    """Runs the page's code block as if it were at the end of model_utils.py."""
    page = (ROOT / "docs/cookbook/relation.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n# model_utils.py: at the end\n(.*?)^```", page, re.M | re.S)
    exec(compile(code, "relation.md", "exec"), vars(model_utils))


def labels_of(run, split):
    """Returns (gold, predicted) labels of a split, from the predictions that a finished run stores for its report."""
    rows = [json.loads(line) for line in (run / f"answers/{split}.jsonl").read_text(encoding="utf-8").splitlines()]
    return tuple([row["answers"]["relation"][kind] for row in rows] for kind in ("gold", "predicted"))


def scores_of(options, data, seed):
    """Returns {"dev", "test": official F1 in %, "minutes": CPU time}, without "minutes" if the run was interrupted.
    Trains the run, unless its scores exist."""
    run = Path(options.output_dir) / f"seed-{seed}"
    found = run / "semeval.json"
    if not found.exists():
        fixed = ["--do_train", "--do_eval", "--resume", "--special_tokens", MARKERS, "--early_stop_patience", "0"]
        paths = ["--data_path", str(data), "--output_dir", options.output_dir, "--model_version", run.name]
        paths += ["--pretrain_model_path", options.pretrain_model_path, "--random_seed", str(seed)]
        is_new, start = not run.exists(), time.process_time()
        main(parse_args(Config, [*fixed, *paths, *shlex.split(options.options)]))
        scores = {split: round(100 * official_f1(*labels_of(run, split)), 2) for split in ("dev", "test")}
        if is_new:  # this process has not measured the first part of a resumed run
            scores["minutes"] = round((time.process_time() - start) / 60, 1)
        found.write_text(json.dumps(scores), encoding="utf-8")
    return json.loads(found.read_text(encoding="utf-8"))


def compare(options):
    folder = Path(options.output_dir)
    data = folder / "data"
    if not (data / "labels.json").exists():
        total = convert(Path(options.data), folder / "raw")
        raw = dict(input=str(folder / "raw"), output_dir=str(data), label_column="relation")
        process(DataConfig(**raw, label_type="relation=classification", dev_ratio=options.num_dev / total))
    use_head_of_page()
    results = {}
    for seed in options.seeds:
        results[seed] = scores_of(options, data, seed)
        print(f"seed {seed}: " + "  ".join(f"{name} {value:g}" for name, value in results[seed].items()), flush=True)
    for name in ("dev", "test", "minutes"):
        if values := [scores[name] for scores in results.values() if name in scores]:
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            print(f"{name}: mean {statistics.mean(values):.2f}{spread}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with train.txt and test.txt")
    parser.add_argument("--pretrain_model_path", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--output_dir", default="output/semeval")
    parser.add_argument("--num_dev", type=int, default=800)
    parser.add_argument("--options", default="--epochs 5")
    compare(parser.parse_args())
