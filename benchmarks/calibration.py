"""Measures calibration before and after temperature scaling on dev, and entity probabilities, over several seeds.

    python benchmarks/calibration.py --data DIR --pretrain_model_path MODEL --work FOLDER

DIR contains atis/ (train, dev, test) and cais/ (train, valid, test), in any format that data_process.py reads; MODEL is
an English encoder. Runs that are finished in FOLDER are not trained again. Settings: ATIS intents and slots jointly
(limited epochs), the same with eight texts per intent, CAIS and the sample from scratch. "ECE by chance" is the ECE of
perfectly calibrated probabilities on the same number of predictions, a lower bound for every method.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SETTINGS = {  # {name: (data folder, whether to start from MODEL, texts per intent, options)}
    "sample": ("sample", False, 0, ""),
    "atis_8": ("atis", True, 8, ""),
    "cais": ("cais", False, 0, "--epochs 5"),
    "atis": ("atis", True, 0, "--epochs 3"),
}


def call(*words):
    """Runs a script of the repository. Returns its CPU seconds."""
    before = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"TQDM_DISABLE": "1"}, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}:\n{done.stderr[-2000:]}")
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before


def prepare(name, data, work):
    """Processes the data of a setting, unless this is done. Returns the processed folder."""
    source, folder = SETTINGS[name][0], work / "data" / SETTINGS[name][0]
    if not (folder / "labels.json").exists():
        call("data_process.py", "--input", data / source if source != "sample" else ROOT / "dataset/sample_raw",
             "--output_dir", folder)  # fmt: skip
    return folder


def few(folder, shots, seed, work):
    """Creates a folder with `shots` random training texts per intent, and the full dev and test. Returns its path."""
    target = work / "data" / f"{folder.name}_{shots}_{seed}"
    target.mkdir(exist_ok=True)
    for path in folder.glob("*.json*"):
        (target / path.name).write_bytes(path.read_bytes())
    by_label = defaultdict(list)
    for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines():
        by_label[json.loads(line)["intent"]].append(line)
    rng = random.Random(seed)
    rows = [
        line for label in sorted(by_label) for line in rng.sample(by_label[label], min(shots, len(by_label[label])))
    ]
    (target / "train.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return target


def train(name, seed, options):
    """Trains one run, unless it exists. Returns (its folder, data folder)."""
    _, pretrained, shots, more = SETTINGS[name]
    folder = prepare(name, options.data, options.work)
    folder = few(folder, shots, seed, options.work) if shots else folder
    run = options.work / "runs" / f"{name}-{seed}"
    if not (run / "cpu.json").exists():
        words = ["--data_path", folder, "--output_dir", run.parent, "--model_version", run.name, "--random_seed", seed]
        words += ["--pretrain_model_path", options.pretrain_model_path] if pretrained else []
        seconds = call("main.py", "--do_train", "--resume", *words, *more.split(), "--save_epoch", 0)
        (run / "cpu.json").write_text(json.dumps(seconds))
    return run, folder


def mean_of_words(trainer, loader, predictions):
    """Returns the entity probabilities of earlier versions, one list per text: the mean over an entity's words."""
    import torch

    from engine.task.words import entities_in

    model, by_row = trainer.model.eval(), {}
    for batch in loader:
        with torch.inference_mode():
            logits = model(batch.inputs).logits["slots"]
            tags = model.output_layer.heads["slots"].decode(logits, batch.inputs)[0]
            p = logits.softmax(-1).gather(2, tags.unsqueeze(2)).squeeze(2).tolist()
        by_row |= dict(zip(batch.rows.tolist(), p))
    return [
        [sum(by_row[i][a : b + 1]) / (b + 1 - a) for _, a, b in entities_in(tags)]
        for i, tags in enumerate(predictions.labels["slots"])
    ]


def evaluate(run, folder, target=0.95):
    """Fits the temperatures on dev, like training does, and scores test. Returns {metric: value}, stored in the run
    folder."""
    path = run / "calibration.json"
    if path.exists():
        return json.loads(path.read_text())
    import torch

    import metrics
    from config import Config
    from data_loader import MyDataLoader, MyDataset
    from engine.predict import uncertainty
    from engine.predict.stored import report_kinds
    from main import load_trained

    config = Config(do_eval=True, device="cpu", data_path=str(folder), precision="fp32")
    trainer, featurizer = load_trained(run / "checkpoints/best", config, torch.device("cpu"))
    loaders = {split: MyDataLoader(MyDataset(folder / f"{split}.jsonl", featurizer), 64) for split in ("dev", "test")}
    trainer.eval(loaders["dev"], calibrate=True)
    kinds, heads = report_kinds(trainer.tasks, metrics), trainer.model.output_layer.heads
    result = {f"{name}_temperature": float(head.temperature) for name, head in heads.items()}
    splits = {split: trainer.eval(loader, keep_averages="texts") for split, loader in loaders.items()}
    test = splits["test"]
    result |= test.scores
    decisions = {}
    for split, found in splits.items():
        for name, kind in kinds.items():
            columns = found.gold[name], found.predictions.labels[name], found.predictions.probabilities[name]
            decisions[split, name] = [pair for row in zip(*columns) for pair in uncertainty.decisions_of(kind, *row)]
    for name in kinds:
        result[f"{name}_ece_perfect"] = of_perfect([p for p, _ in decisions["test", name]])
        threshold = uncertainty.lowest_threshold(decisions["dev", name], target)
        if threshold is not None:
            scores, _ = uncertainty.coverage_scores(name, decisions["test", name], threshold)
            result |= scores
    old = mean_of_words(trainer, loaders["test"], test.predictions)
    columns = test.gold["slots"], test.predictions.labels["slots"], old
    before = [pair for row in zip(*columns) for pair in uncertainty.decisions_of("tagging", *row)]
    result["slots_ece_old"] = uncertainty.calibration(*zip(*before))["ece"]
    result["entities"] = [(old, new, right) for (old, right), (new, _) in zip(before, decisions["test", "slots"])]
    path.write_text(json.dumps(result))
    return result


def of_perfect(confidences, times=200):
    """Returns the mean ECE of simulated, perfectly calibrated predictions with these confidences: ECE by chance."""
    import numpy as np

    from engine.predict.uncertainty import calibration

    rng = np.random.default_rng(0)
    return float(
        np.mean([calibration(confidences, rng.random(len(confidences)) < confidences)["ece"] for _ in range(times)])
    )


def paired(values, others):
    """Formats the mean difference with its 95 % interval (Student's t)."""
    import numpy as np
    from scipy import stats

    differences = np.subtract(values, others)
    if len(differences) < 2:
        return f"{differences.mean():+.4f}"
    half = stats.t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / len(differences) ** 0.5
    return f"{differences.mean():+.4f} [{differences.mean() - half:+.4f}, {differences.mean() + half:+.4f}]"


def show(results):
    """Prints the tables. results: {setting: [metrics of each run]}"""
    import numpy as np

    names = "data task seeds score T ECE,before ECE,after difference ECE,by,chance NLL,before NLL,after"
    print(f"\n| {' | '.join(names.split()).replace(',', ' ')} |")
    print("| --- " * 11 + "|")
    for name, runs in results.items():
        for task, score in (("intent", "intent_accuracy"), ("slots", "slots_f1")):
            column = {key: [run[f"{task}_{key}"] for run in runs] for key in
                      ("temperature", "ece_untempered", "ece", "ece_perfect", "nll_untempered", "nll")}  # fmt: skip
            means = {key: f"{np.mean(values):.4f}" for key, values in column.items()}
            cells = [name, task, len(runs), f"{np.mean([run[score] for run in runs]):.4f}", means["temperature"]]
            cells += [
                means["ece_untempered"],
                means["ece"],
                paired(column["ece"], column["ece_untempered"]),
                means["ece_perfect"],
            ]
            print("| " + " | ".join(map(str, [*cells, means["nll_untempered"], means["nll"]])) + " |")
    print("\n| data | task | entities | ECE, mean of words | ECE, whole span | difference |")
    print("| --- " * 6 + "|")
    for name, runs in results.items():
        old, new = ([run[key] for run in runs] for key in ("slots_ece_old", "slots_ece"))
        cells = name, "slots", sum(len(run["entities"]) for run in runs), f"{np.mean(old):.4f}", f"{np.mean(new):.4f}"
        print("| " + " | ".join(map(str, [*cells, paired(new, old)])) + " |")
    print("\n| data | probability | entities, mean of words | correct | entities, whole span | correct |")
    print("| --- " * 6 + "|")
    for name, runs in results.items():
        pairs = np.array([pair for run in runs for pair in run["entities"]], float)
        for low, high in ((0, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 0.97), (0.97, 0.99), (0.99, 1)):
            cells = [name, f"{low:g} to {high:g}"]
            for side in (0, 1):
                inside = (pairs[:, side] > low) & (pairs[:, side] <= high)
                cells += [str(inside.sum()), f"{pairs[inside, 2].mean():.3f}" if inside.any() else ""]
            print("| " + " | ".join(cells) + " |")
    print("\n| data | task | precision .95 reached on dev | also on test | test coverage | test precision |")
    print("| --- " * 6 + "|")
    for name, runs in results.items():
        for task in ("intent", "slots"):
            found = [run for run in runs if f"{task}_coverage" in run]
            values = [[run[f"{task}_{key}"] for run in found] for key in ("coverage", "answered_precision")]
            cells = [name, task, f"{len(found)} of {len(runs)}", str(sum(value >= 0.95 for value in values[1]))]
            cells += [f"{np.mean(column):.4f}" if found else "" for column in values]
            print("| " + " | ".join(cells) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pretrain_model_path", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    options.data, options.work = options.data.resolve(), options.work.resolve()
    (options.work / "data").mkdir(parents=True, exist_ok=True)
    results = {}
    for seed in range(1, options.seeds + 1):
        for name in SETTINGS:
            run, folder = train(name, seed, options)
            results.setdefault(name, []).append(evaluate(run, folder))
            print(run.name, f"{json.loads((run / 'cpu.json').read_text()):.0f} CPU seconds", flush=True)
    show(results)


if __name__ == "__main__":
    main()
