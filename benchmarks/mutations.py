"""Tests the tests: applies mutations to the code, and reports whether the tests detect each of them.

    python benchmarks/mutations.py [--only WORD …] [--tests FOLDER] [--all]

A mutation replaces one piece of code in a copy of the repository. Then the test files that should detect it are run,
including slow tests, until one fails. --tests: the tests of another version of the repository. --all: all test files.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
# name: (file, code to replace, replacement, test files)
MUTATIONS = {
    "the schedule never advances": (
        "trainer.py",
        "            self.scheduler.step()\n        self.optimizer.zero_grad()",
        "            pass\n        self.optimizer.zero_grad()",
        "trainer",
    ),
    "gradients are never zeroed": ("trainer.py", "        self.optimizer.zero_grad()\n", "", "trainer tricks"),
    "the loss is divided by one micro-batch's labels": (
        "trainer.py",
        "sum(count[name] for count in counts)",
        "counts[0][name]",
        "trainer tricks",
    ),
    "a tied score replaces the best checkpoint": ("metrics.py", "new > old", "new >= old", "trainer metrics"),
    "the gradient is not clipped": (
        "trainer.py",
        "(norm / limit).clamp(min=1)",
        "(norm / limit).clamp(min=1, max=1)",
        "trainer",
    ),
    "resuming restarts the epoch": (
        "trainer.py",
        "self.train_loader.set_position(epoch, progress.batch)",
        "self.train_loader.set_position(epoch, 0)",
        "trainer checkpoint",
    ),
    "focal loss weights easy examples": (
        "model_utils.py",
        "((1 - probability) ** self.focal_gamma",
        "(probability**self.focal_gamma",
        "model_utils",
    ),
    "balanced weights without the number of classes": (
        "model_utils.py",
        "counts.sum() / (len(counts) * counts)",
        "counts.sum() / counts",
        "model_utils",
    ),
    "the fitted threshold is not used": (
        "model_utils.py",
        "probabilities >= self.threshold",
        "probabilities >= 0.5",
        "export ensemble",
    ),
    "missing multilabel labels count": (
        "model_utils.py",
        "torch.where(labels != IGNORE, losses, 0.0).sum()",
        "losses.sum()",
        "model_utils any_data",
    ),
    "regression predictions stay standardized": (
        "model_utils.py",
        "to_double(logits) * self.task.std",
        "to_double(logits)",
        "model_utils any_data",
    ),
    "the forward algorithm ignores end transitions": (
        "engine/model/crf.py",
        "return (alpha + end).logsumexp(1)",
        "return alpha.logsumexp(1)",
        "crf",
    ),
    "Viterbi allows invalid tag sequences": (
        "engine/model/crf.py",
        "self.transitions.masked_fill(self.forbidden, IMPOSSIBLE)",
        "self.transitions",
        "crf decoders",
    ),
    "paths are scored without start transitions": (
        "engine/model/crf.py",
        "F.pad(self.start_transitions, (0, 1))",
        "F.pad(0 * self.start_transitions, (0, 1))",
        "crf",
    ),
    "word starts of windows are shifted": (
        "engine/data/windows.py",
        "starts = [len(before) + begins[w] - begins[word]",
        "starts = [len(before) + 1 + begins[w] - begins[word]",
        "data_loader checks spans export",
    ),
    "windows overlap by one word too few": (
        "engine/data/windows.py",
        "begins[following - 1] <= self.stride:",
        "begins[following - 1] < self.stride:",
        "data_loader any_data",
    ),
    "windows are not merged at the middle": (
        "engine/data/windows.py",
        "(len(merged) - first + 1) // 2",
        "(len(merged) - first + 1) // 2 + 1",
        "data_loader any_data",
    ),
    "a text's label counts in each window": (
        "engine/data/features.py",
        "[None if feature.first_word else examples",
        "[examples",
        "data_loader any_data trainer",
    ),
    "a damaged checkpoint is accepted": (
        "engine/run/files.py",
        "if sha256(folder / name) != expected:",
        "if False:",
        "checkpoint hostile",
    ),
    "Python's random state is not restored": (
        "engine/train/checkpoint.py",
        "    random.setstate((version, tuple(internal), gauss))\n",
        "",
        "checkpoint trainer",
    ),
    "rotation deletes the newest checkpoints": (
        "engine/train/checkpoint.py",
        "step_folders(root)[KEEP:]",
        "step_folders(root)[:-KEEP]",
        "checkpoint trainer",
    ),
    "FGM perturbs against the gradient": (
        "tricks.py",
        "self.weight.index_add_(0, rows, self.r",
        "self.weight.index_add_(0, rows, -self.r",
        "tricks",
    ),
    "R-Drop counts twice": ("tricks.py", "self.alpha / 2 * self.model", "self.alpha * self.model", "tricks"),
    "AWP does not restore the weights": ("tricks.py", "p.copy_(before)", "pass", "tricks"),
    "EMA copies the weights": (
        "engine/tricks/averages.py",
        "self.average[name].lerp_(p, share.to(p.dtype))",
        "self.average[name].copy_(p)",
        "tricks",
    ),
    "quotes in CSV are ignored": (
        "preprocess/readers/tables.py",
        "strict=True",
        "quoting=csv.QUOTE_NONE",
        "shapes any_data",
    ),
    "comments in CoNLL-U are read as words": (
        "preprocess/readers/conll.py",
        'elif not row.startswith("#"):',
        "else:",
        "shapes",
    ),
    "a split has a row too many": (
        "preprocess/splits.py",
        "max(1, round(ratio * total))",
        "max(1, round(ratio * total)) + 1",
        "data_process",
    ),
    "label counts are not summed over processes": (
        "engine/run/distributed.py",
        "    dist.all_reduce(numbers)\n",
        "",
        "distributed",
    ),
    "every process gets all rows": (
        "engine/data/length_sampler.py",
        "return map(distributed.share, batches[self.start :])",
        "return iter(batches[self.start :])",
        "distributed",
    ),
    "responses are sent to other requests": (
        "tools/serve/batcher.py",
        "zip(batch, predictions)",
        "zip(batch, predictions[::-1])",
        "serve",
    ),
    "the server never returns 503": ("tools/serve/batcher.py", "raise Busy(expected)", "pass", "serve"),
    "any Host is answered": (
        "tools/serve/connections.py",
        'return ["*"]\n    return [f"[',
        'return ["*"]\n    return ["*"]\n    return [f"[',
        "hostile serve",
    ),
}


def broken_copy(name, folder, tests):
    """Creates a copy of the repository with one mutation, and the tests in `tests`."""
    file, old, new, _ = MUTATIONS[name]
    left_out = shutil.ignore_patterns(".*", "output", "__pycache__", "tests")
    shutil.copytree(ROOT, folder, ignore=left_out)
    shutil.copytree(tests, folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    text = (folder / file).read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{name}: {text.count(old)} times {old!r} in {file}"
    (folder / file).write_text(text.replace(old, new), encoding="utf-8")


def first_failure(folder, files, workers):
    """Returns the name of the first test that fails, or "" if none fails."""
    chosen = [str(next((folder / "tests").rglob(f"test_{file}.py"))) for file in files.split()]
    words = ["-m", "pytest", "-x", "-q", "-m", "slow or not slow", "-n", str(workers), "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, *words, *chosen],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "TQDM_DISABLE": "1"},
    )
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
    return failed[0] if failed else "" if done.returncode == 0 else f"exit {done.returncode}: {done.stdout[-300:]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[""], help="run the mutations whose name contains one of these")
    parser.add_argument("--tests", type=Path, default=ROOT / "tests", help="folder of tests [this repository's]")
    parser.add_argument("--all", action="store_true", help="run all test files, which takes very long")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="pytest-xdist workers [all cores]")
    options = parser.parse_args()
    chosen = [name for name in MUTATIONS if any(word in name for word in options.only)]
    missed = []
    for name in tqdm(chosen, disable=None):
        with tempfile.TemporaryDirectory() as base:
            folder = Path(base) / "repository"
            broken_copy(name, folder, options.tests)
            noticed = first_failure(folder, "" if options.all else MUTATIONS[name][3], options.workers)
        missed += [] if noticed else [name]
        print(f"| {name} | {noticed or 'MISSED'} |", flush=True)
    print(f"{len(chosen) - len(missed)} of {len(chosen)} detected")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
