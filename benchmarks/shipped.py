"""Compares an exported folder with the same model in torch, as ratios within one run, on the test split.

    python benchmarks/shipped.py --checkpoint output/atis/checkpoints/best --data_path dataset/atis

Exports the checkpoint in fp32 and int8, and creates an environment with only the requirements of an export. Then it
measures, in separate processes that take turns: the latency of a single text, texts per second on the whole split,
scores, the time of a process that labels one text, and the size of the environment. In torch, single texts are labelled
by the template's shortest code path (features, model, decoding, a row), not by main.py, which would take longer. All
sides use the same texts and the same number of threads.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def latencies(predict, rows, number):
    """Returns the (p50, p99) latency of single texts in milliseconds."""
    for row in rows[:20]:
        predict([row])
    times = []
    for row in (rows * (1 + number // len(rows)))[:number]:
        start = time.perf_counter()
        predict([row])
        times.append(1000 * (time.perf_counter() - start))
    times.sort()
    return times[len(times) // 2], times[int(0.99 * len(times))]


def in_torch(checkpoint, rows, threads):
    """Returns (function that labels a few rows in one batch, function that labels all rows), with the model in torch.
    Texts passed to the first function must fit into one window."""
    import numpy as np
    import torch

    from config import Config
    from data_loader import MyDataLoader, MyDataset, make_batch
    from engine.predict.collector import PredictionCollector
    from engine.predict.predictions import prediction_row, prepare_inputs
    from main import load_trained

    torch.set_num_threads(threads)
    trainer, featurizer = load_trained(Path(checkpoint), Config(device="cpu"), torch.device("cpu"))
    model, tasks, pad_id = trainer.model.eval(), trainer.tasks, featurizer.tokenizer.pad_token_id
    rows = list(prepare_inputs(rows, tasks))

    def predict(rows):
        rows = list(prepare_inputs(rows, tasks))
        with torch.inference_mode():
            columns = featurizer(rows)
            inputs = make_batch(columns, np.arange(len(columns["example_index"])), tasks, pad_id).inputs
            found = model.decode(model(inputs).logits, inputs)
        labels = [{} for _ in rows]
        for name, head in model.output_layer.heads.items():
            for i, row in enumerate(rows):
                own = [values[i] if head.finds_spans else values[i].tolist() for values in found[name]]
                if head.by_words and not head.finds_spans:  # without padding
                    own = [values[: len(row["tokens"])] for values in own]
                labels[i][name] = head.to_labels(*own)
        return [prediction_row(row, label, tasks) for row, label in zip(rows, labels)]

    def label_all():
        data = MyDataset(rows, featurizer)
        found = PredictionCollector(model.output_layer.heads, data)
        with torch.inference_mode():
            for batch in MyDataLoader(data, 64):
                found.add(batch, model(batch.inputs).logits)
        return found.finish().labels

    return predict, label_all


def in_onnxruntime(folder, rows, threads, provider="cpu"):
    """Returns the same functions as `in_torch`, with an exported folder."""
    sys.path.insert(0, str(folder))
    from predictor import Predictor

    predictor = Predictor(folder, threads, provider=provider)

    def label_all():
        encoded = predictor.encode(rows)
        predictions = predictor.answers(encoded)
        for one, prediction in zip(encoded, predictions):
            predictor.row(one.example, prediction)
        return {name: [prediction[name][0] for prediction in predictions] for name in predictor.tasks}

    return predictor, label_all


def measure(options):
    """Prints as JSON: p50 and p99 latency of single texts, texts per second (best of three), and the labels."""
    rows = json.loads(Path(options.rows).read_text(encoding="utf-8"))
    side = in_torch if options.side == "torch" else in_onnxruntime
    predict, label_all = side(options.checkpoint, rows, options.threads)
    p50, p99 = latencies(predict, rows, options.texts)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        labels = label_all()
        seconds.append(time.perf_counter() - start)
    result = {"p50": p50, "p99": p99, "throughput": len(rows) / min(seconds), "labels": labels}
    print(json.dumps(result, ensure_ascii=False))


def run(python, *words, threads=None):
    """Runs a process. Returns (its standard output, seconds)."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    env = {
        **os.environ,
        "TQDM_DISABLE": "1",
        "PYTHONPATH": str(ROOT),
        **(dict.fromkeys(names, str(threads)) if threads else {}),
    }
    start = time.perf_counter()
    done = subprocess.run([python, *map(str, words)], capture_output=True, text=True, env=env)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}:\n{done.stderr}")
    return done.stdout, time.perf_counter() - start


def make_environment(folder):
    """Creates an environment with only the requirements of an export. Returns (its Python, size in MB with pip)."""
    run(sys.executable, "-m", "venv", folder)
    run(
        folder / "bin/python", "-m", "pip", "install", "--quiet", "-r", ROOT / "tools/export/predictor_requirements.txt"
    )
    size = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return folder / "bin/python", size / 2**20


def test_rows(data_path):
    """Returns (rows to label, {task: gold labels}, tasks) of the test split."""
    from preprocess.schema import load_labels, part_of, read_processed

    tasks = load_labels(data_path)
    examples = [example for _, example in read_processed(part_of(data_path, "test"), tasks)]
    keys = ("id", "text", "tokens", "text_pair", "extras")
    rows = [{key: e[key] for key in keys if key in e} for e in examples]
    return rows, {name: [e[name] for e in examples] for name in tasks}, tasks


def start_ups(sides, folder, options):
    """Returns {side: median seconds from process start to the prediction for one text}."""
    text = folder / "one.txt"
    text.write_text("one text to label\n")
    found = {side: [] for side in sides}
    for _ in range(options.rounds):
        for side, (python, place) in sides.items():
            words = [place / "predictor.py", text, folder / "one.jsonl"]
            if side == "torch":
                words = [ROOT / "main.py", "--do_predict", "--checkpoint", place, "--predict_file", text]
                words += ["--device", "cpu", "--output_dir", folder / "runs", "--predict_output", folder / "one.jsonl"]
            found[side].append(run(python, *words)[1])
    return {side: statistics.median(times) for side, times in found.items()}


def compare(options):
    import metrics

    rows, gold, tasks = test_rows(Path(options.data_path))
    name = metrics.default_monitor(tasks)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
        python, size = make_environment(folder / "environment")
        sides = {"torch": (sys.executable, Path(options.checkpoint).resolve())}
        for kind in ("fp32", "int8"):
            words = ["--checkpoint", options.checkpoint, "--output_dir", folder / kind, "--max_drop", 1]
            words += ["--data_path", options.data_path, *(["--int8"] if kind == "int8" else [])]
            run(sys.executable, "-m", "tools.export", *words)
            sides[kind] = (python, folder / kind)
        print(f"{'':<10}{'threads':>8}{'p50 ms':>9}{'p99 ms':>9}{'texts/s':>10}  {name} on test")
        for threads in map(int, options.thread_counts.split(",")):
            results = measured(sides, folder / "rows.json", threads, options)
            for side, found in results.items():
                scored = metrics.score(tasks, gold, found["labels"])[name]
                speed = f"{found['p50']:>9.2f}{found['p99']:>9.2f}{found['throughput']:>10.0f}"
                compared = ratios(results["torch"], found, side)
                print(f"{side:<10}{threads:>8}{speed}  {scored:.4f}{compared}", flush=True)
        starts = start_ups(sides, folder, options)
        for side, seconds in starts.items():
            print(f"{side:<10}start to first prediction {seconds:.2f} s ({starts['torch'] / seconds:.1f} x)")
        models = ", ".join(f"{kind} {size_of(folder / kind):.1f} MB" for kind in ("fp32", "int8"))
        print(f"environment {size:.0f} MB, with pip; models: {models}")
    print("targets: p50 2 x, start 5 x, int8 throughput 2 x, score loss at most 0.003, environment at most 250 MB")


def measured(sides, rows, threads, options):
    """Returns {side: result of `measure`}, as medians over rounds in which the sides take turns."""
    found = {side: [] for side in sides}
    for _ in range(options.rounds):
        for side, (python, place) in sides.items():
            words = ["--side", side, "--checkpoint", place, "--rows", rows, "--threads", threads]
            printed = run(python, __file__, *words, "--texts", options.texts, threads=threads)[0]
            found[side].append(json.loads(printed.splitlines()[-1]))
    middle = {side: {} for side in sides}
    for side, results in found.items():
        middle[side] = {key: statistics.median(r[key] for r in results) for key in ("p50", "p99", "throughput")}
        middle[side]["labels"] = results[0]["labels"]
    return middle


def ratios(torch, found, side):
    if side == "torch":
        return ""
    faster = [torch[key] / found[key] for key in ("p50", "p99")] + [found["throughput"] / torch["throughput"]]
    return "  ({:.1f} x, {:.1f} x, {:.1f} x)".format(*faster)


def size_of(folder):
    return sum(path.stat().st_size for path in folder.iterdir()) / 2**20


def start(doc, own_flags, measure, compare):
    """Parses the command line and runs `compare`, or `measure` in a process that `compare` started.

    own_flags: {flag: (default, help)} of one benchmark, in addition to the shared ones.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="checkpoint folder, such as output/atis/checkpoints/best")
    parser.add_argument("--data_path", default="", help="processed folder with a dev and a test split")
    parser.add_argument("--rounds", type=int, default=3, help="number of times each side is measured")
    for name, (default, text) in own_flags.items():
        parser.add_argument(name, type=type(default), default=default, help=text)
    for name in ("--side", "--rows"):  # for `measure`
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return measure(options)
    if not (Path(options.data_path) / "labels.json").exists():
        parser.error("--data_path must be a processed folder")
    compare(options)


OWN_FLAGS = {
    "--texts": (500, "number of single texts to time"),
    "--thread_counts": ("1,2", "numbers of threads to measure with"),
    "--threads": (1, argparse.SUPPRESS),
}

if __name__ == "__main__":
    start(__doc__, OWN_FLAGS, measure, compare)
