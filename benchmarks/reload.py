"""Does a server lose requests, or respond with a half-loaded model, while its model is replaced again and again?

    python benchmarks/reload.py --folders shipped other_export --texts dataset/atis/test.jsonl --requests 10000

Serves a copy of the first folder with tools.serve. Threads send requests with one text each. After every --every
requests, the copy is replaced with the other export, like tools.export replaces a folder, and the server gets SIGHUP. A
response must equal the prediction of one of the two exports, and after a reload that of the new one. Prints how many
requests were answered, rejected or lost, and how many responses came from neither model.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tqdm import tqdm  # noqa: E402

from tools.export.predictor import Predictor  # noqa: E402


def without_probabilities(value):
    """Removes the probabilities from a prediction, because their last digits depend on the batch."""
    if isinstance(value, dict):
        return {name: without_probabilities(one) for name, one in value.items() if "probability" not in name}
    return [without_probabilities(one) for one in value] if isinstance(value, list) else value


def replace(folder, source):
    """Replaces a folder like tools.export."""
    new, old = folder.with_name("new"), folder.with_name("old")
    shutil.copytree(source, new)
    folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old)


class Load:
    """Threads that send `number` requests in total."""

    def __init__(self, port, texts, expected, number):
        self.port, self.texts, self.expected = port, texts, expected
        self.counter, self.number = itertools.count(), number
        self.found, self.lost, self.neither, self.done = Counter(), Counter(), 0, 0

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        while (number := next(self.counter)) < self.number:
            text = number % len(self.texts)
            try:
                body = json.dumps({"texts": self.texts[text]})
                connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                content = json.loads(response.read())
                self.found[response.status] += 1
                if response.status == 200:
                    prediction = without_probabilities(content["answers"][0])
                    self.neither += prediction not in [models[text] for models in self.expected]
            except (OSError, http.client.HTTPException) as error:
                self.lost[type(error).__name__] += 1
                connection.close()
            self.done += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folders", type=Path, nargs=2, required=True)
    parser.add_argument("--texts", type=Path, required=True, help=".jsonl with text or tokens")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--threads", type=int, default=8)
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.texts.read_text(encoding="utf-8").splitlines()]
    texts = [row.get("text") or " ".join(row["tokens"]) for row in rows][:500]
    expected = [[without_probabilities(row) for row in Predictor(folder)(texts)] for folder in options.folders]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "served"
        shutil.copytree(options.folders[0], folder)
        words = [sys.executable, "-m", "tools.serve", str(folder), "--port", "0", "--max_latency_ms", "60000"]
        server = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            port = int(re.search(r":(\d+)/", server.stdout.readline()).group(1))
            load = Load(port, texts, expected, options.requests)
            threads = [threading.Thread(target=load.run) for _ in range(options.threads)]
            for thread in threads:
                thread.start()
            reloads, sources = 0, itertools.cycle(reversed(options.folders))
            with tqdm(total=options.requests, unit=" requests") as bar:
                while any(thread.is_alive() for thread in threads):
                    time.sleep(0.05)
                    bar.update(load.done - bar.n)
                    if load.done >= options.every * (reloads + 1):
                        replace(folder, next(sources))
                        server.send_signal(signal.SIGHUP)
                        reloads += 1
        finally:
            server.send_signal(signal.SIGTERM)
            printed = server.communicate(timeout=60)[0]
    loaded = printed.count(": reloaded ")
    answered = sum(load.found.values())
    print(f"{answered} of {options.requests} requests answered: {dict(load.found)}; lost: {dict(load.lost)}")
    print(f"{loaded} of {reloads} reloads done; {load.neither} responses from neither model")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
