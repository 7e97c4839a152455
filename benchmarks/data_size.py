"""Measures the speed, memory and temporary disk use of `data_process.py` on data of a given size.

    python benchmarks/data_size.py --rows 400000                       a classification CSV and a tagging JSONL
    python benchmarks/data_size.py --rows 400000 --against CHECKOUT    also with another version of this repository
    python benchmarks/data_size.py --rows 400000 4000000 --only csv    how memory grows

Creates files of short random rows and processes each in a separate process, alternating between versions. Prints for
the fastest of --rounds: rows per second; the peak memory of all processes, with shared pages counted once (proportional
set size) and counted in each process (resident set size, an upper bound); the peak of the largest process; and the peak
temporary disk use (unlinked files), as a share of the input. Linux only. CPU seconds are summed over all processes; on
a busy machine, they are more reliable than wall-clock seconds.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORDS = (
    "please could you bring show find open close start stop the red blue green small lamp door box song film".split()
)


def write_csv(path, rows):
    """Writes random texts of five to nine words and a number, each with one of eight classes."""
    rng = random.Random(1)
    with open(path, "w", encoding="utf-8") as file:
        file.write("text,label\n")
        for _ in range(rows):
            words = " ".join(rng.choices(WORDS, k=rng.randint(5, 9)))
            file.write(f"{words} {rng.randrange(10**7)},{rng.choice('abcdefgh')}\n")


def write_jsonl(path, rows):
    """Writes random rows of five to nine tokens, with an entity of two words and one of four intents."""
    rng = random.Random(2)
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(rows):
            tokens = [*rng.choices(WORDS, k=rng.randint(4, 8)), str(rng.randrange(10**7))]
            tags, at, kind = ["O"] * len(tokens), rng.randrange(len(tokens) - 2), rng.choice("xyz")
            tags[at : at + 2] = [f"B-{kind}", f"I-{kind}"]
            file.write(json.dumps({"tokens": tokens, "intent": rng.choice("abcd"), "slots": tags}) + "\n")


WRITERS = {"csv": write_csv, "jsonl": write_jsonl}


class Watch(threading.Thread):
    """Samples the memory and unlinked files of a process and its children ten times a second."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.memory, self.resident, self.disk, self.ended = pid, 0, 0, 0, threading.Event()

    def run(self):
        while not self.ended.wait(0.1):
            with contextlib.suppress(OSError):  # a process may end while it is sampled
                sizes = [memory_of(process) for process in (self.pid, *children_of(self.pid))]
                shared_once, resident = map(sum, zip(*sizes))
                self.memory, self.resident = max(self.memory, shared_once), max(self.resident, resident)
                self.disk = max(self.disk, nameless_files(self.pid))


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def memory_of(pid):
    """Returns (proportional, resident) bytes of a process, or 0 if it has ended."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        sizes = {line.split(":")[0]: line.split()[1] for line in lines[1:]}
        return 1024 * int(sizes["Pss"]), 1024 * int(sizes["Rss"])
    return 0, 0


def nameless_files(pid):
    """Returns the bytes on disk of unlinked files that a process has open."""
    sizes = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if " (deleted)" in os.readlink(link):
                about = os.stat(link)
                sizes[about.st_ino] = 512 * about.st_blocks
    return sum(sizes.values())


def measure(checkout, source, output):
    """Processes a file once. Returns {measurement: value}."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, checkout / "data_process.py", "--input", source, "--output_dir", output]
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    start = time.perf_counter()
    process = subprocess.Popen([*map(str, command)], cwd=checkout, env=environment, stdout=subprocess.DEVNULL)
    watch = Watch(process.pid)
    watch.start()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    watch.ended.set()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{checkout}: exit code {process.returncode}")
    return {
        "seconds": seconds,
        "CPU seconds": usage.ru_utime + usage.ru_stime,
        "memory": watch.memory,
        "resident": watch.resident,
        "largest": 1024 * usage.ru_maxrss,
        "disk": watch.disk,
    }


def same(first, second):
    """Returns whether the files in two processed folders are identical."""
    names = [sorted(path.name for path in folder.iterdir() if path.is_file()) for folder in (first, second)]
    return names[0] == names[1] and all((first / n).read_bytes() == (second / n).read_bytes() for n in names[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[400_000])
    parser.add_argument("--only", choices=sorted(WRITERS), nargs="+", default=sorted(WRITERS))
    parser.add_argument("--against", help="the folder of another version of this repository")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    versions = {"here": ROOT} | ({"against": Path(options.against).resolve()} if options.against else {})
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f} at the start")
    print("| file | rows | version | rows/s | CPU s | memory, shared once | at most | largest process | disk / input |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(dir=".") as folder:
        folder = Path(folder).resolve()
        for rows in options.rows:
            for name in options.only:
                source = folder / f"rows.{name}"
                WRITERS[name](source, rows)
                measured = {version: [] for version in versions}
                for _ in range(options.rounds):
                    for version, checkout in versions.items():
                        measured[version].append(measure(checkout, source, folder / version))
                for version, runs in measured.items():
                    best = min(runs, key=lambda run: run["seconds"])
                    memory = " | ".join(f"{best[what] / 1e6:.0f} MB" for what in ("memory", "resident", "largest"))
                    speed, cpu = f"{rows / best['seconds']:,.0f}", f"{best['CPU seconds']:.1f}"
                    share = f"{best['disk'] / source.stat().st_size:.2f}"
                    print(f"| {name} | {rows:,} | {version} | {speed} | {cpu} | {memory} | {share} |", flush=True)
                if len(versions) == 2:
                    print(f"identical output: {same(*(folder / version for version in versions))}", flush=True)


if __name__ == "__main__":
    main()
