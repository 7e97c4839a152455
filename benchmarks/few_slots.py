"""Compares few-shot tagging methods, for example on ATIS with 5, 20 or 50 sentences per entity type.

    python benchmarks/few_slots.py --data DIR --pretrain_model_path MODEL_FOLDER [--shots 5 20] [--seeds 1 2 3 4 5]

--data: a folder that data_process.py reads and that has a tagging task, such as ATIS as released with JointBERT. For
each seed, `data_process.py --shots K` draws the training sentences. The rest of train, without labels, is used as
unlabelled texts. The best epoch is chosen on --dev_rows rows of dev, because users with few labels cannot spare many
for dev. Each run is scored once on all of test. Only the tagging task is read.

METHODS has the flags of each method. A method may have several stages, each a run of main.py; the last one is scored.
{before} is the run of the previous stage, {unlabelled} the file of unlabelled texts. Finished runs are not trained
again. Prints, for each K and method, entity F1 on dev and test, the differences from the first method over the same
seeds with 95 % intervals, and the CPU time of all stages. Choose a method on dev.
"""

import argparse
import json
import random
import shlex
import shutil
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from few_labels import read_rows, write_rows

from config import ROOT
from data_process import DataConfig, process
from engine.run.files import write_json
from tools.search.child import Child
from tools.search.paired import interval

METHODS = {
    "batches of 32": ["--batch_size 32"],
    "default": [""],
    "self-training": ["", "--epochs 10 --teacher {before} --unlabelled {unlabelled} --unlabelled_ratio 4"],
}


def prepare(options, work):
    """Writes the data, with only its tagging task, to work/raw. Returns the name of the task."""
    if not (work / "full").exists():
        process(DataConfig(input=options.data, output_dir=str(work / "full")))
    tasks = json.loads((work / "full/labels.json").read_text(encoding="utf-8"))
    (task,) = (name for name, about in tasks.items() if about["type"] == "tagging")
    for split in ("train", "dev", "test"):
        rows = read_rows(work / f"full/{split}.jsonl")
        write_rows(work / f"raw/{split}.jsonl", [{key: row[key] for key in ("id", "tokens", task)} for row in rows])
    return task


def draw(work, task, shots, seed, dev_rows):
    """Creates a processed folder with `shots` random sentences per type, and unlabelled.jsonl. Returns its path."""
    folder = work / f"shots_{shots}-{seed}"
    if (folder / "unlabelled.jsonl").exists():
        return folder
    columns = dict(tag_column=task, shots=str(shots), random_seed=seed)
    process(DataConfig(input=str(work / "raw"), output_dir=str(folder), **columns))
    dev = read_rows(folder / "dev.jsonl")
    write_rows(folder / "dev.jsonl", random.Random(seed).sample(dev, min(dev_rows, len(dev))))
    labelled = {row["id"] for row in read_rows(folder / "train.jsonl")}
    rest = [row for row in read_rows(work / "raw/train.jsonl") if row["id"] not in labelled]
    write_rows(folder / "unlabelled.jsonl", [{"id": row["id"], "tokens": row["tokens"]} for row in rest])
    return folder


def train(folder, flags, run, seed):
    """Trains and evaluates one run of main.py, unless it is finished. Returns ({split: scores}, CPU seconds)."""
    done = run / "cpu_seconds.json"
    if not done.exists():
        shutil.rmtree(run, ignore_errors=True)
        run.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(ROOT / "main.py"), "--do_train", "--do_eval", "--data_path", str(folder)]
        command += ["--output_dir", str(run.parent), "--model_version", run.name, "--random_seed", str(seed)]
        child = Child([*command, "--save_epoch", "0", "--report_to", "none", *flags], run.with_suffix(".log"), 1)
        if child.wait():
            sys.exit(f"{run} failed: {child.last_line()}")
        write_json(done, child.cpu_seconds)
        for checkpoint in run.glob("checkpoints/step_*"):
            shutil.rmtree(checkpoint)
    scores = json.loads((run / "eval.json").read_text(encoding="utf-8"))
    return scores, json.loads(done.read_text(encoding="utf-8"))


def run_method(name, folder, seed, task, options):
    """Returns (F1 on dev, F1 on test, CPU seconds) of a method: the F1 of its last stage in %, and the time of all
    stages. Methods that begin with the same stages share their runs."""
    before, seconds = None, 0.0
    for number in range(len(METHODS[name])):
        stages = METHODS[name][: number + 1]
        flags = [flag.format(before=before, unlabelled=folder / "unlabelled.jsonl") for flag in shlex.split(stages[-1])]
        same = next(other for other, theirs in METHODS.items() if theirs[: number + 1] == stages)
        before = Path(options.work) / "runs" / f"{folder.name}-{same.replace(' ', '_')}-{number}"
        scores, cpu = train(folder, ["--pretrain_model_path", options.pretrain_model_path, *flags], before, seed)
        seconds += cpu
    return 100 * scores["dev"][f"{task}_f1"], 100 * scores["test"][f"{task}_f1"], seconds


def table(results, first):
    """Returns the lines of a Markdown table. results: {(shots, method): [result of each seed]}. first: the method with
    which the others are compared."""
    lines = ["| sentences per type | method | dev | difference | test | difference | CPU s |", "| --- " * 7 + "|"]
    for (shots, name), rows in results.items():
        *scores, seconds = zip(*rows)
        cells = [shots, name]
        for values, others in zip(scores, zip(*results[shots, first])):
            cells.append(f"{statistics.mean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else 0:.2f}")
            gaps = [value - other for value, other in zip(values, others)]
            bounds = interval(gaps)
            gap = f"{statistics.mean(gaps):+.2f}" + (f" [{bounds[0]:+.2f}, {bounds[1]:+.2f}]" if bounds else "")
            cells.append("" if name == first else gap)
        lines.append(f"| {' | '.join(map(str, [*cells, round(statistics.mean(seconds))]))} |")
    return lines


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--pretrain_model_path", required=True)
    parser.add_argument("--shots", type=int, nargs="+", default=[5, 20, 50])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--dev_rows", type=int, default=150)
    parser.add_argument("--work", default="output/few_slots", help="folder for data and runs")
    options = parser.parse_args(argv)
    work, results = Path(options.work), {}
    work.mkdir(parents=True, exist_ok=True)
    task = prepare(options, work)
    for shots in options.shots:
        for seed in options.seeds:
            folder = draw(work, task, shots, seed, options.dev_rows)
            for name in options.methods:
                result = run_method(name, folder, seed, task, options)
                results.setdefault((shots, name), []).append(result)
                print(f"{shots} per type, seed {seed}, {name}: dev {result[0]:.2f} test {result[1]:.2f}", flush=True)
    print("\n".join(table(results, options.methods[0])))


if __name__ == "__main__":
    main()
