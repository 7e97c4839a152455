"""Load test of tools.serve on this machine's loopback address.

    apt install hey
    python benchmarks/serving.py --folder shipped --texts dataset/atis/test.jsonl

hey (https://github.com/rakyll/hey) runs on the same machine, so it uses some of the cores. Each request contains the
same text, one of median length. Prints latencies, status codes and the server's memory for sequential requests, for the
maximum throughput, and for 70 % and 200 % of it; then the responses to malformed requests, and to SIGTERM under load.
"""

import argparse
import csv
import io
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/tools")]

import numpy as np  # noqa: E402
from test_serve import Served, malformed  # noqa: E402


def load(port, body, seconds, workers, rate=None):
    """Runs hey. Returns [(seconds, status)] of its requests. rate: total requests per second (default: unlimited)."""
    words = ["hey", "-z", f"{seconds}s", "-c", str(workers), "-o", "csv", "-m", "POST", "-T", "application/json"]
    words += ["-q", str(rate / workers)] if rate else []
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(body)
        file.flush()
        done = subprocess.run(
            [*words, "-D", file.name, f"http://127.0.0.1:{port}/predict"], capture_output=True, text=True, check=True
        )
    return [(float(row["response-time"]), int(row["status-code"])) for row in csv.DictReader(io.StringIO(done.stdout))]


def row(what, found, seconds, memory):
    times = [time for time, status in found if status == 200]
    p50, p99 = np.quantile(times, [0.5, 0.99]) * 1000
    statuses = ", ".join(f"{status}: {count}" for status, count in sorted(Counter(s for _, s in found).items()))
    print(f"| {what} | {len(times) / seconds:.0f} | {p50:.1f} | {p99:.1f} | {statuses} | {memory:.0f} |", flush=True)
    return len(times) / seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="folder written by tools.export")
    parser.add_argument("--texts", required=True, help="a processed .jsonl")
    parser.add_argument("--seconds", type=int, default=10, help="duration of each load [10]")
    parser.add_argument("--flags", default="--max_latency_ms 200", help="flags of tools.serve")
    options = parser.parse_args()
    if not shutil.which("hey"):
        parser.error("hey is missing: apt install hey")
    rows = [json.loads(line) for line in Path(options.texts).read_text(encoding="utf-8").splitlines()]
    texts = sorted((one.get("text") or " ".join(one["tokens"]) for one in rows), key=len)
    text, seconds = texts[len(texts) // 2], options.seconds
    body = json.dumps({"texts": text})
    print(f"tools.serve {options.folder} {options.flags}; {seconds} s each; a text of {len(text)} characters")
    print("| load | responses/s | p50, ms | p99, ms | statuses | MB |\n| --- | --- | --- | --- | --- | --- |")
    with Served(options.folder, *options.flags.split()) as server:
        load(server.port, body, 2, 8)
        row("one at a time", load(server.port, body, seconds, 1), seconds, server.memory())
        full = row("32 at a time", load(server.port, body, seconds, 32), seconds, server.memory())
        row("70 % of that rate", load(server.port, body, seconds, 64, 0.7 * full), seconds, server.memory())
        for _ in range(2):
            row("twice that rate", load(server.port, body, seconds, 256, 2 * full), seconds, server.memory())
        rng, statuses, connection = random.Random(0), Counter(), server.connection()
        for _ in range(1000):
            statuses[server.ask("/predict", malformed(rng), connection)[0]] += 1
        print(f"1,000 malformed requests: {dict(statuses)}; {server.memory():.0f} MB")
    with Served(options.folder, *options.flags.split()) as server:
        words = ["hey", "-z", "5s", "-c", "32", "-o", "csv", "-m", "POST", "-T", "application/json", "-d", body]
        asking = subprocess.Popen(
            [*words, f"http://127.0.0.1:{server.port}/predict"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(2)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)
        printed, errors = asking.communicate()
        print(
            f"SIGTERM under load: exit {server.process.returncode}",
            Counter(r["status-code"] for r in csv.DictReader(io.StringIO(printed))),
            errors[-300:],
        )


if __name__ == "__main__":
    main()
