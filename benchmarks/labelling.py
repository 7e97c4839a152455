"""Labels many short texts, prints peak memory and speed, and checks the output after random kills.

    python benchmarks/labelling.py                         100,000 and 1,000,000 texts, then ten kills
    python benchmarks/labelling.py --sizes 1000 10000 --kills 2

The texts are taken from the sample, each with a number appended. The model is a small encoder trained for one epoch.
Each run is a process of `main.py --do_predict`; the kernel reports its peak memory. A killed run is repeated with
--resume, and its output must be byte-identical to that of an uninterrupted run.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SMALL = "--hidden_size 32 --num_layers 1 --epochs 1 --device cpu --model_version run".split()


def write_texts(path, size):
    """Writes `size` rows, each with a random text of the sample and the row number."""
    texts = []
    for name, blank in (("zh", ""), ("en", " ")):
        lines = (ROOT / f"dataset/sample_raw/{name}.jsonl").read_text(encoding="utf-8").splitlines()
        texts += [blank.join(json.loads(line)["tokens"]) for line in lines]
    rng = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(f"{rng.choice(texts)} {number}\n" for number in range(size))


def start(folder, *words):
    """Starts main.py in a process, with its output in log.txt."""
    with open(folder / "log.txt", "a") as log:
        command = [sys.executable, ROOT / "main.py", "--output_dir", folder, *SMALL, *words]
        return subprocess.Popen(list(map(str, command)), cwd=folder, stderr=log, env=os.environ | {"TQDM_DISABLE": "1"})


def finish(process):
    """Waits for a process and returns its peak memory in MB."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(process.args)}: exit code {process.returncode}")
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def label(folder, texts, output, *words):
    return start(folder, "--do_predict", "--predict_file", texts, "--predict_output", output, *words)


def rows_done(output):
    try:
        return json.loads(output.with_name(f"{output.name}.partial.json").read_text())["rows"]
    except FileNotFoundError:
        return 0


def kill_and_resume(folder, texts, output, size, kills):
    """Kills the run at several random rows, resumes it each time, and lets the last one finish. Returns how many kills
    came before the end of the run."""
    rng, hit = random.Random(1), 0
    for target in sorted(rng.randrange(size) for _ in range(kills)):
        process, delay = label(folder, texts, output, "--resume"), rng.random()
        while process.poll() is None and (rows_done(output) < target or not rows_done(output)):
            time.sleep(0.01)
        time.sleep(delay)
        if process.poll() is None:
            process.kill()
            process.wait()
            hit += 1
            print(f"    killed with {rows_done(output):,} rows on disk", flush=True)
    finish(label(folder, texts, output, "--resume"))
    return hit


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000], help="texts to label")
    parser.add_argument("--kills", type=int, default=10, help="number of kills during the run with the most texts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="labelling-") as name:
        folder = Path(name)
        finish(start(folder, "--do_train"))
        for size in options.sizes:
            texts, output = folder / f"{size}.txt", folder / f"{size}.csv"
            write_texts(texts, size)
            begin = time.perf_counter()
            peak = finish(label(folder, texts, output))
            seconds = time.perf_counter() - begin
            print(f"{size:>10,} texts: peak {peak:.1f} MB, {seconds:.0f} s, {size / seconds:.0f} rows/s", flush=True)
        if options.kills:
            again = folder / "killed.csv"
            hit = kill_and_resume(folder, texts, again, size, options.kills)
            same = "identical" if digest(again) == digest(output) else "DIFFERENT"
            print(f"{size:>10,} texts, {hit} kills: {same}")


if __name__ == "__main__":
    main()
