"""Do two commits compute identical results? Runs training, evaluation and prediction with each of them over several
code paths, and compares SHA-256 sums.

    python benchmarks/same_bytes.py BEFORE AFTER --atis RAW_ATIS_FOLDER --pretrain_model_path MODEL_FOLDER

Use it for changes that should not affect results, such as a rename. Each commit is checked out as a git worktree in a
temporary folder and run with this Python. Compares the weights of `best`, metrics.jsonl, eval.json and predictions.csv.
Without --atis, only the code paths on the sample are run. The sums of a commit are cached in --cache.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
FILES = ("checkpoints/best/*.safetensors", "metrics.jsonl", "eval.json", "predictions.csv")
CODE_PATHS = {
    "sample": "--epochs 3",
    "sample, CRF and FGM": "--epochs 3 --use_crf --use_fgm",
    "sample, streaming": "--epochs 3 --streaming --shuffle_buffer 256",
    "sample, BiLSTM, windows, accumulation, EMA": "--epochs 2 --encoder bilstm --max_length 12 --use_crf "
    "--gradient_accumulation_steps 3 --batch_size 8 --use_ema --ema_decay 0.99",
    "sample, bf16, SMART, R-Drop, mean pooling": "--epochs 1 --hidden_size 64 --precision bf16 --use_smart "
    "--use_rdrop --pooling mean "
    "--class_weights balanced --label_smoothing 0.1 --focal_gamma 2",
    "sample, fp16, FreeLB, SWA, dropout samples, shared layers": "--epochs 4 --hidden_size 64 --precision fp16 "
    "--use_freelb --use_swa "
    "--swa_start 0.4 --dropout_samples 2 --shared_layers 1 --use_crf",
    "sample, AWP, linear decay": "--epochs 2 --hidden_size 64 --use_awp --awp_start 0 --scheduler linear "
    "--warmup_epochs 1",
    "ATIS": "--epochs 2 --data_path {data} --pretrain_model_path {model}",
    "ATIS, CRF, layer decay, frozen layers": "--epochs 1 --data_path {data} --pretrain_model_path {model} "
    "--use_crf --layer_decay 0.9 --freeze_layers 2",
}


def run(command, cwd):
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} in {cwd}: exit {done.returncode}\n{done.stderr[-3000:]}")


def sums_of(commit, options):
    """Runs a commit. Returns {code path: {file: SHA-256}}."""
    cache = Path(options.cache) / f"{commit}.json"
    known = json.loads(cache.read_text()) if cache.exists() else {}
    code_paths = [
        code_path
        for code_path in CODE_PATHS
        if code_path not in known and (options.atis or not code_path.startswith("ATIS"))
    ]
    if not code_paths:
        return known
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        subprocess.run(["git", "worktree", "add", "--detach", "--quiet", folder / "tree", commit], cwd=ROOT, check=True)
        try:
            if options.atis:
                run(["data_process.py", "--input", options.atis, "--output_dir", "dataset/atis"], folder / "tree")
            for number, code_path in enumerate(tqdm(code_paths, desc=commit[:8])):
                flags = CODE_PATHS[code_path].format(data="dataset/atis", model=options.pretrain_model_path).split()
                todo = ["--do_train", "--do_eval", "--do_predict", "--model_version", f"path{number}"]
                run(["main.py", *todo, *flags], folder / "tree")
                out = folder / "tree/output" / f"path{number}"
                known[code_path] = {
                    name: hashlib.sha256(next(out.glob(name)).read_bytes()).hexdigest() for name in FILES
                }
                cache.parent.mkdir(parents=True, exist_ok=True)
                cache.write_text(json.dumps(known, indent=1))
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", folder / "tree"], cwd=ROOT, check=True)
    return known


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs="+")
    parser.add_argument("--atis", help="raw data with intents and slots, such as ATIS")
    parser.add_argument("--pretrain_model_path", help="encoder for --atis")
    parser.add_argument("--cache", default="output/same_bytes")
    options = parser.parse_args()
    options.atis = options.atis and Path(options.atis).resolve()
    commits = [
        subprocess.run(
            ["git", "rev-parse", commit], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        for commit in options.commits
    ]
    first, *others = (sums_of(commit, options) for commit in commits)
    different = 0
    for code_path, files in first.items():
        for name, value in files.items():
            same = all(other.get(code_path, {}).get(name) == value for other in others)
            different += not same
            print(f"{'same' if same else 'DIFFERENT':<10} {value[:16]}  {name:<40} {code_path}")
    print(f"{different} of {len(FILES) * len(first)} differ")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
