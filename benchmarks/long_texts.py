"""Long texts to classify: one decisive sentence anywhere in thousands of words.

    python benchmarks/long_texts.py --data ATIS_FOLDER [--seeds 1 2 3 4 5] [--words 3000]

--data: a folder with train, dev and test, each with seq.in and label, as ATIS is released. A text is made of flight
questions up to --words words; at a uniformly random place among them is one question about fares or one about ground
transport, and which of the two is its label. Each part is made of the sentences of the same part of ATIS.
--variants: names from VARIANTS below. Each run trains as main.py does; test is labelled once, by the checkpoint that is
best on dev. Prints accuracy with the paired interval of the difference from the first variant, and CPU time; with
--lengths, the CPU time of an epoch for texts of these numbers of words. A run that is finished is not trained again.
--options: further flags of main.py.
"""

import argparse
import json
import random
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.search.paired import interval  # noqa: E402

LABELS = {"atis_airfare": "fare", "atis_ground_service": "transport"}
SIZES = {"train": 600, "dev": 200, "test": 400}
VARIANTS = {"windows": "--long_text windows", "head": "--long_text head", "long input": "--max_length 5000"}


def sentences_of(folder):
    """{label: sentences} of a part of ATIS"""
    found = {}
    lines = zip((folder / "seq.in").read_text().splitlines(), (folder / "label").read_text().splitlines())
    for sentence, label in lines:
        found.setdefault(label, []).append(sentence)
    return found


def long_text(rng, sentences, label, words):
    """A text of at least `words` words with one sentence of this label at a random place."""
    parts, length = [rng.choice(sentences[label])], 0
    while length < words:
        parts.append(rng.choice(sentences["atis_flight"]))
        length += len(parts[-1].split())
    decisive, *filler = parts
    filler.insert(rng.randint(0, len(filler)), decisive)
    return " . ".join(filler)


def make(source, folder, words):
    """Writes a processed folder of long texts."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (part, size) in enumerate(SIZES.items()):
        rng, sentences = random.Random(number), sentences_of(source / part)
        with open(folder / f"{part}.jsonl", "w", encoding="utf-8") as file:
            for row in range(size):
                label = rng.choice(list(LABELS))
                text = long_text(rng, sentences, label, words)
                file.write(json.dumps({"id": str(row), "text": text, "topic": LABELS[label]}) + "\n")
    task = {"type": "classification", "labels": list(LABELS.values())}
    (folder / "labels.json").write_text(json.dumps({"topic": task}), encoding="utf-8")


def run(options, data, variant, seed, more=""):
    """{"dev", "test": accuracy in %, "minutes": CPU time} of one run. Trains it, unless its scores are there."""
    name = f"{data.name}-{variant.replace(' ', '_')}-{seed}"
    found = Path(options.output_dir) / name / "long_texts.json"
    if not found.exists():
        flags = f"--do_train --do_eval --resume --random_seed {seed} {options.options} {VARIANTS[variant]} {more}"
        paths = ["--data_path", str(data), "--output_dir", options.output_dir, "--model_version", name]
        before = getrusage(RUSAGE_CHILDREN)
        subprocess.run([sys.executable, str(ROOT / "main.py"), *paths, *shlex.split(flags)], check=True)
        after = getrusage(RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        scores = json.loads((found.parent / "eval.json").read_text(encoding="utf-8"))
        result = {part: 100 * scores[part]["topic_accuracy"] for part in ("dev", "test")} | {"minutes": seconds / 60}
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
        for name in ("dev", "test", "minutes"):
            values = [scores[name] for scores in results[variant]]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            bounds = interval([scores[name] - other[name] for scores, other in zip(results[variant], first)])
            difference = f", difference [{bounds[0]:+.2f}, {bounds[1]:+.2f}]" if bounds else ""
            print(f"{variant}: {name} {statistics.mean(values):.2f}{spread}{difference}", flush=True)


def by_length(options):
    """Prints the CPU time of one more epoch by length, from runs of one and of two epochs."""
    for words in options.lengths:
        data = Path(options.output_dir) / f"data-{words}"
        make(Path(options.data), data, words)
        minutes = [run(options, data, "windows", f"{n}-epochs", f"--epochs {n} --random_seed 1") for n in (1, 2)]
        seconds = 60 * (minutes[1]["minutes"] - minutes[0]["minutes"])
        print(f"{words} words: {seconds:.1f} CPU seconds per epoch of {SIZES['train']} texts", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder of ATIS")
    parser.add_argument("--words", type=int, default=3000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--lengths", type=int, nargs="*", help="measure the time by length instead")
    parser.add_argument("--output_dir", default="output/long_texts")
    parser.add_argument("--options", default="--hidden_size 64 --num_layers 1")
    given = parser.parse_args()
    by_length(given) if given.lengths else compare(given)
