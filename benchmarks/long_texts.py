"""Compares methods for long texts: classification by one decisive sentence among thousands of words.

    python benchmarks/long_texts.py --data ATIS_FOLDER [--seeds 1 2 3 4 5] [--words 3000]

--data: a folder with train, dev and test, each with seq.in and label, as in JointBERT's release of ATIS. A text
consists of flight questions with --words words in total, and one question about either fares or ground transport at a
random position, which determines the label. Each split uses sentences from the same split of ATIS. All runs start from
a small encoder that was trained on the sentences of train with their intents and slots; it takes the place of a
pretrained encoder and trains in seconds. --variants: names in VARIANTS below. Each run is a process of main.py; test is
scored once, with the best checkpoint on dev. Prints accuracy, the paired interval of the difference from the first
variant, and CPU time; with --lengths, the CPU time of training by number of words. Finished runs are not trained again.
--options: further flags of main.py.
"""

import argparse
import json
import random
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from config import Config  # noqa: E402
from data_process import DataConfig, process  # noqa: E402
from engine.run.command_line import parse_args  # noqa: E402
from engine.train.initial import inherit_run_options  # noqa: E402
from main import build_trainer, load_data  # noqa: E402
from tools.search.paired import interval  # noqa: E402

LABELS = {"atis_airfare": "fare", "atis_ground_service": "transport"}
SIZES = {"train": 300, "dev": 100, "test": 200}
VARIANTS = {"windows": "--long_text windows --max_length 64 --window_stride 8", "head": "--long_text head"}
SENTENCES = "--hidden_size 64 --num_layers 1 --pooling mean --epochs 4 --random_seed 1"
SMALL = "--batch_size 4 --lr 1e-3 --epochs 8 --early_stop_patience 3 --dropout 0"


def sentences_of(folder):
    """Returns {label: sentences} of a split of ATIS."""
    found = {}
    lines = zip((folder / "seq.in").read_text().splitlines(), (folder / "label").read_text().splitlines())
    for sentence, label in lines:
        found.setdefault(label, []).append(sentence)
    return found


def long_text(rng, sentences, label, words):
    """Returns a text of at least `words` words with one sentence of this label at a random position."""
    chosen, length = [rng.choice(sentences[label])], 0
    while length < words:
        chosen.append(rng.choice(sentences["atis_flight"]))
        length += len(chosen[-1].split())
    decisive, *filler = chosen
    filler.insert(rng.randint(0, len(filler)), decisive)
    return " . ".join(filler)


def make(source, folder, words, sizes=SIZES):
    """Writes a processed folder of long texts."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (split, size) in enumerate(sizes.items()):
        rng, sentences = random.Random(number), sentences_of(source / split)
        with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as file:
            for row in range(size):
                label = rng.choice(list(LABELS))
                text = long_text(rng, sentences, label, words)
                file.write(json.dumps({"id": str(row), "text": text, "topic": LABELS[label]}) + "\n")
    task = {"type": "classification", "labels": list(LABELS.values())}
    (folder / "labels.json").write_text(json.dumps({"topic": task}), encoding="utf-8")


def train(options, data, name, flags):
    """Runs main.py. Returns its CPU seconds."""
    paths = ["--data_path", str(data), "--output_dir", options.output_dir, "--model_version", name]
    before = getrusage(RUSAGE_CHILDREN)
    command = [sys.executable, str(ROOT / "main.py"), "--do_train", "--resume", *paths, *shlex.split(flags)]
    subprocess.run(command, check=True)
    after = getrusage(RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def sentence_model(options):
    """Trains the model from which all other runs start, unless it exists. Returns its run folder."""
    data, name = Path(options.output_dir) / "data-sentences", "sentences"
    if not (Path(options.output_dir) / name / "checkpoints/best").is_dir():
        process(DataConfig(input=options.data, output_dir=str(data), label_column="intent"))
        train(options, data, name, SENTENCES)
    return Path(options.output_dir) / name


def run(options, data, variant, seed, more=""):
    """Returns {"dev", "test": accuracy in %, "seconds": CPU time} of one run. Trains it, unless its scores exist."""
    name = f"{data.name}-{variant}-{seed}{more.replace(' ', '')}"
    found = Path(options.output_dir) / name / "long_texts.json"
    if not found.exists():
        start = f"--init_from {shlex.quote(str(sentence_model(options)))}"
        flags = f"--do_eval {start} --random_seed {seed} {options.options} {VARIANTS[variant]} {more}"
        seconds = train(options, data, name, flags)
        scores = json.loads((found.parent / "eval.json").read_text(encoding="utf-8"))
        result = {split: 100 * scores[split]["topic_accuracy"] for split in ("dev", "test")} | {"seconds": seconds}
        found.write_text(json.dumps(result), encoding="utf-8")
    return json.loads(found.read_text(encoding="utf-8"))


def compare(options):
    data = Path(options.output_dir) / f"data-{options.words}"
    make(Path(options.data), data, options.words)
    rows = (data / "test.jsonl").read_text(encoding="utf-8").splitlines()
    share = max(sum(json.loads(row)["topic"] == label for row in rows) for label in LABELS.values()) / len(rows)
    print(f"test: {len(rows)} texts of {options.words} words, the more frequent label {100 * share:.1f} %")
    results = {}
    for variant in options.variants:
        results[variant] = [run(options, data, variant, seed) for seed in options.seeds]
        first = results[options.variants[0]]
        for name in ("dev", "test", "seconds"):
            values = [scores[name] for scores in results[variant]]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            bounds = interval([scores[name] - other[name] for scores, other in zip(results[variant], first)])
            difference = f", difference [{bounds[0]:+.2f}, {bounds[1]:+.2f}]" if bounds else ""
            print(f"{variant}: {name} {statistics.mean(values):.2f}{spread}{difference}", flush=True)


def by_length(options):
    """Prints the CPU time of training by number of words: the difference between epochs of 48 and of 8 texts."""
    device = torch.device("cpu")
    for words in options.lengths:
        seconds = 0.0
        for size in (8, 48):
            data = Path(options.output_dir) / f"data-{words}-{size}"
            make(Path(options.data), data, words, dict.fromkeys(SIZES, size))
            paths = ["--data_path", str(data), "--output_dir", options.output_dir, "--model_version", data.name]
            start = ["--init_from", str(sentence_model(options)), "--do_train", "--report_to", "none"]
            flags = shlex.split(f"{options.options} {VARIANTS['windows']}")
            config = inherit_run_options(parse_args(Config, [*paths, *start, *flags]))
            config.run_dir.mkdir(parents=True, exist_ok=True)
            trainer = build_trainer(load_data(config, device), device)
            before = time.process_time()
            trainer.train_one_epoch(0)
            seconds = time.process_time() - before
        print(f"{words} words: {1000 * seconds / size:.0f} ms of CPU time per text and epoch", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder of ATIS")
    parser.add_argument("--words", type=int, default=3000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--lengths", type=int, nargs="*", help="measure the training time by length instead")
    parser.add_argument("--output_dir", default="output/long_texts")
    parser.add_argument("--options", default=SMALL, help="options of all variants")
    given = parser.parse_args()
    by_length(given) if given.lengths else compare(given)
