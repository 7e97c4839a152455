"""Compares few-shot classification methods: options of this repository, logistic regression and setfit.

    python benchmarks/few_labels.py --data dataset/atis --pretrain_model_path DIR --work few_labels/atis
    python benchmarks/few_labels.py --data dataset/cais --methods former few_shot --work few_labels/cais

For each number of rows per class and each seed, `data_process.py --shots` draws a sample. All methods use the same
sample, and --dev_rows random rows of dev to choose the best epoch; they are scored on all of dev and on test. The same
seed is used for the sample and the training. Finished runs in --work are not repeated. Prints the mean accuracies, the
paired differences from the first method with 95 % intervals (Student's t over seeds), and the CPU seconds of training,
including the start of Python. `logistic` is scikit-learn's logistic regression on the normalised mean of the frozen
encoder's outputs. `setfit` runs in another environment: --setfit_python (benchmarks/setfit_peer.py).
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# {method: options of main.py}
OURS = {
    "former": ["--pooling", "first", "--few_shot", "False"],  # the defaults of version 0.9
    "auto": ["--few_shot", "False"],  # --pooling auto
    "few_shot": [],  # the current defaults for so few labels
    "frozen": ["--freeze_layers", "all"],
}
# {rows per class: options of setfit_peer.py}; its defaults use all pairs of texts, whose number grows quadratically
SETFIT = {16: ["--num_iterations", "20"], 64: ["--num_iterations", "20"]}
SPLITS = ("train", "dev", "test")


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def run(*command):
    """Runs a command. Returns its CPU seconds, including those of its child processes."""
    environment = {**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with open(os.devnull, "w") as quiet:
        process = subprocess.Popen([*map(str, command)], cwd=ROOT, env=environment, stdout=quiet)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit code {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def write_full(options):
    """Writes the rows of the processed folder with only the text and the label of one task."""
    from engine.task.text import text_of

    for split in SPLITS:
        rows = read_rows(options.data / f"{split}.jsonl")
        kept = [{"id": row["id"], "text": text_of(row), "label": row[options.task]} for row in rows]
        write_rows(options.work / f"full/{split}.jsonl", [row for row in kept if row["label"] is not None])


def sample_of(options, shots, seed):
    """Creates the processed folder of a sample: K rows per class, --dev_rows rows of dev, all of test. Returns it."""
    folder = options.work / f"data/{shots}-{seed}"
    if not (folder / "labels.json").exists():
        raw = options.work / f"raw/{shots}-{seed}"
        for split in SPLITS:
            rows = read_rows(options.work / f"full/{split}.jsonl")
            if split == "dev" and 0 < options.dev_rows < len(rows):
                rows = random.Random(seed).sample(rows, options.dev_rows)
            write_rows(raw / f"{split}.jsonl", rows)
        flags = ["--input", raw, "--output_dir", folder, "--shots", shots, "--random_seed", seed]
        run(sys.executable, "data_process.py", *flags, "--label_type", "label=classification")
    return folder


def accuracies(predict, options):
    """Returns {split: accuracy} on all of dev and test. predict: function from texts to labels."""
    scores = {}
    for split in ("dev", "test"):
        rows = read_rows(options.work / f"full/{split}.jsonl")
        found = predict([row["text"] for row in rows])
        scores[split] = statistics.mean(label == row["label"] for label, row in zip(found, rows))
    return scores


def run_ours(options, method, data, seed, name):
    from engine.predict import load

    model = ["--pretrain_model_path", options.pretrain_model_path] if options.pretrain_model_path else []
    place = ["--output_dir", options.work / "runs", "--model_version", name, "--report_to", "none", "--resume"]
    flags = ["--data_path", data, *model, *place, "--random_seed", seed, *OURS[method], *options.flags]
    seconds = run(sys.executable, "main.py", "--do_train", *flags)
    trained = load(options.work / "runs" / name / "checkpoints/best", device="cpu")
    return {"seconds": seconds} | accuracies(lambda texts: [row["label"] for row in trained(texts)], options)


def run_logistic(options, data, name):
    """Runs logistic regression in a separate process to measure its CPU time."""
    output = options.work / f"runs/{name}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    seconds = run(sys.executable, __file__, *options.given, "--logistic_on", data, "--output", output)
    return {"seconds": seconds} | json.loads(output.read_text())


def logistic(options):
    """Fits and scores scikit-learn's logistic regression, with default options, on a frozen encoder's vectors."""
    import numpy as np
    import torch
    from sklearn.linear_model import LogisticRegression
    from transformers import AutoModel, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(options.pretrain_model_path, trust_remote_code=False)
    encoder = AutoModel.from_pretrained(options.pretrain_model_path, trust_remote_code=False).eval()

    def vectors(texts):
        found = []
        for start in range(0, len(texts), 64):
            batch = tokenizer(
                texts[start : start + 64], truncation=True, max_length=256, padding=True, return_tensors="pt"
            )
            with torch.no_grad():
                hidden = encoder(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            found.append(torch.nn.functional.normalize(mean, dim=1).numpy())
        return np.concatenate(found)

    train = read_rows(options.logistic_on / "train.jsonl")
    model = LogisticRegression(max_iter=1000)
    model.fit(vectors([row["text"] for row in train]), [row["label"] for row in train])
    scores = accuracies(lambda texts: model.predict(vectors(texts)), options)
    options.output.write_text(json.dumps(scores))


def run_setfit(options, shots, data, seed, name):
    """Runs setfit, and records its options and steps. The seconds exclude scoring."""
    output = options.work / f"runs/{name}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    full = options.work / f"raw_setfit/{shots}-{seed}"
    sources = {"train": data / "train.jsonl", "tuning": data / "dev.jsonl"}
    for split in ("train", "tuning", "dev", "test"):
        rows = read_rows(sources.get(split, options.work / f"full/{split}.jsonl"))
        write_rows(full / f"{split}.jsonl", [{"text": row["text"], "label": row["label"]} for row in rows])
    extra = options.setfit_options or SETFIT.get(shots, [])
    model = ["--pretrain_model_path", options.pretrain_model_path]
    flags = ["--data", full, *model, "--seed", seed, "--output", output, *extra]
    run(options.setfit_python, ROOT / "benchmarks/setfit_peer.py", *flags)
    return {"options": " ".join(map(str, extra)) or "defaults"} | json.loads(output.read_text())


def results_of(options):
    """Returns {(method, shots, seed): scores}. Trains the runs that are not in results.jsonl."""
    path = options.work / "results.jsonl"
    known = {(row["method"], row["shots"], row["seed"]): row for row in (read_rows(path) if path.exists() else [])}
    for shots in options.shots:
        for seed in options.seeds:
            for method in options.methods:
                if (method, shots, seed) in known:
                    continue
                data, name = sample_of(options, shots, seed), f"{method}-{shots}-{seed}"
                if method == "setfit":
                    scores = run_setfit(options, shots, data, seed, name)
                elif method == "logistic":
                    scores = run_logistic(options, data, name)
                else:
                    scores = run_ours(options, method, data, seed, name)
                row = {"method": method, "shots": shots, "seed": seed} | scores
                known[method, shots, seed] = row
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{name}: dev {row['dev']:.4f}, test {row['test']:.4f}, {row['seconds']:.0f} s", flush=True)
    return known


def interval(values):
    """Formats 'mean [low, high]' of paired differences in points, with a 95 % interval (Student's t)."""
    from scipy import stats

    mean = 100 * statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.1f}"
    half = 100 * stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def print_tables(options, known):
    print(f"| rows per class | method | seeds | dev | test | test, minus {options.methods[0]} | CPU seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for shots in options.shots:
        for method in options.methods:
            rows = {seed: known[method, shots, seed] for seed in options.seeds if (method, shots, seed) in known}
            means = []
            for split in ("dev", "test"):
                values = [100 * row[split] for row in rows.values()]
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                means.append(f"{statistics.mean(values):.1f}{spread}")
            base = {seed: known[options.methods[0], shots, seed]["test"] for seed in rows}
            gap = "" if method == options.methods[0] else interval([rows[s]["test"] - base[s] for s in rows])
            seconds = statistics.median(row["seconds"] for row in rows.values())
            print(f"| {shots} | {method} | {len(rows)} | {' | '.join(means)} | {gap} | {seconds:.0f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="processed folder")
    parser.add_argument("--task", default="intent", help="classification task")
    parser.add_argument("--pretrain_model_path", default="", help="encoder; without one, it is trained from scratch")
    parser.add_argument("--work", type=Path, required=True, help="folder for samples, runs and results.jsonl")
    parser.add_argument("--shots", type=int, nargs="+", default=[4, 8, 16, 64])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--methods", nargs="+", default=[*OURS, "logistic"])
    parser.add_argument("--dev_rows", type=int, default=100, help="rows of dev that training may use; 0: all")
    parser.add_argument("--flags", type=str.split, default=[], help="more options of main.py, quoted")
    parser.add_argument("--setfit_python", help="Python of an environment with setfit")
    parser.add_argument("--setfit_options", type=str.split, help="options of setfit_peer.py (default: see SETFIT)")
    parser.add_argument("--logistic_on", type=Path, help=argparse.SUPPRESS)  # in a child process
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.given = sys.argv[1:]
    options.work, options.data = options.work.resolve(), options.data.resolve()
    if options.logistic_on:
        logistic(options)
        return
    known_methods = [*OURS, "logistic", "setfit"]
    if unknown := set(options.methods) - set(known_methods):
        parser.error(f"unknown methods {', '.join(sorted(unknown))}; there are {', '.join(known_methods)}")
    skipped = {"setfit": options.setfit_python and options.pretrain_model_path, "logistic": options.pretrain_model_path}
    for method in [method for method in options.methods if not skipped.get(method, True)]:
        print(f"{method} is skipped: it needs --pretrain_model_path" + " and --setfit_python" * (method == "setfit"))
        options.methods.remove(method)
    if not (options.work / "full/test.jsonl").exists():
        write_full(options)
    print_tables(options, results_of(options))


if __name__ == "__main__":
    main()
