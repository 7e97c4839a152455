"""Calibration before and after the temperature of dev, and the probabilities of entities, over seeds.

    python benchmarks/calibration.py --data DIR --pretrain_model_path MODEL --work FOLDER

DIR has atis/ (train, dev, test) and cais/ (train, valid, test), in any format that data_process.py reads; MODEL is an
English encoder. A run that FOLDER has finished is not trained again. Settings: ATIS intents and slots jointly (limited
epochs), the same with eight texts per intent, CAIS and the sample from scratch.
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
SETTINGS = {  # {name: (data folder, whether it starts from MODEL, texts per intent, options)}
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
    """Processes the data of a setting once. -> its folder"""
    source, folder = SETTINGS[name][0], work / "data" / SETTINGS[name][0]
    if not (folder / "labels.json").exists():
        call("data_process.py", "--input", data / source if source != "sample" else ROOT / "dataset/sample_raw",
             "--output_dir", folder)  # fmt: skip
    return folder


def few(folder, shots, seed, work):
    """A folder with `shots` training texts per intent, drawn with this seed; dev and test stay. -> its path"""
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
    """Trains one run, unless it is there. -> (its folder, data folder)"""
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pretrain_model_path", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    options.data, options.work = options.data.resolve(), options.work.resolve()
    (options.work / "data").mkdir(parents=True, exist_ok=True)
    for seed in range(1, options.seeds + 1):
        for name in SETTINGS:
            run, folder = train(name, seed, options)
            print(run.name, json.loads((run / "cpu.json").read_text()), flush=True)


if __name__ == "__main__":
    main()
