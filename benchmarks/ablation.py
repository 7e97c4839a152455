"""Does a trick help on my data? Compares the gain and cost of variants with a baseline over several seeds.

    python benchmarks/ablation.py --data_path dataset/NAME --pretrain_model_path FOLDER --tricks fgm ema --seeds 5
    --options="--use_crf"

A variant is a name in VARIANTS, an option of main.py such as `lr=5e-4`, or several of these joined by `+`. Each run is
a process of main.py. Finished runs have a row in runs.csv in --results and are not repeated: if the script is
restarted, it continues, and an interrupted run resumes from its checkpoint. A run is identified by the content of its
data and model and by all options that affect its result, but not by the code: after a code change, use another
--results. The script prints, and writes to summary.csv, the mean ± standard deviation of each score, the difference
from the baseline over the same seeds with a confidence interval, and the time. It draws differences.png if matplotlib
is installed. Choose a variant on dev; test shows its gain.

With 95 % intervals, about one comparison in twenty is significant by chance. `--false_positives` measures this on the
stored scores of the baseline. Expect such cases if you compare many variants.
"""

import argparse
import csv
import itertools
import json
import re
import shlex
import shutil
import signal
import statistics
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from filelock import FileLock, Timeout  # noqa: E402

import metrics  # noqa: E402
from config import RESUME_SAFE, Config  # noqa: E402
from engine.errors import UserError  # noqa: E402
from engine.run.command_line import parse_args  # noqa: E402
from engine.run.files import write_csv  # noqa: E402
from preprocess.schema import data_and_model, load_labels  # noqa: E402
from tools.search.child import SET_BY_SCRIPT, Child  # noqa: E402
from tools.search.paired import interval, verdict  # noqa: E402

VARIANTS = {
    **{name: f"use_{name}=True" for name in ("fgm", "pgd", "freelb", "awp", "smart", "rdrop", "ema", "swa", "soup")},
    "dropout_samples": "dropout_samples=5",
    "layer_decay": "layer_decay=0.9",
    "unfreeze": "unfreeze_layers=2",
}


# ---- statistics ------------------------------------------------------------------------------------------------------


def false_positives(scores, seeds, rounds=2000):
    """Returns how often two samples drawn from the same scores differ significantly."""
    rng = np.random.default_rng(0)
    drawn = rng.choice(np.asarray(scores, dtype=float), (rounds, 2, seeds))
    return sum(verdict(interval(one - other)) == "significant" for one, other in drawn) / rounds


# ---- runs ------------------------------------------------------------------------------------------------------------


def flags_of(variant, options):
    """Returns the flags of a variant: for 'ema+lr=5e-4', [all flags of --options, '--use_ema=True', '--lr=5e-4']."""
    parts = [] if variant == "baseline" else [VARIANTS.get(part, part) for part in variant.split("+")]
    if wrong := [part for part in parts if "=" not in part]:
        raise UserError(f"{wrong[0]} is neither one of {', '.join(VARIANTS)} nor an option such as lr=5e-4")
    return [*shlex.split(options.options), *(f"--{part}" for part in parts)]


def settings(variant, options):
    """Returns {option: value as text} of a variant's runs, without options that do not affect the result. Raises
    UserError for invalid variants, before anything runs."""
    config = parse_args(Config, ["--pretrain_model_path", options.pretrain_model_path, *flags_of(variant, options)])
    if idle := config.unused_options():
        raise UserError(f"{variant}: {idle[0]}")
    found, given = asdict(config), asdict(Config(pretrain_model_path=options.pretrain_model_path))
    if taken := [name for name in SET_BY_SCRIPT if found[name] != given[name]]:
        raise UserError(f"{variant}: --{taken[0]} is set by this script")
    switches = {field.name: field.metadata["needs"] for field in fields(config)}
    off = {name for name, needed in switches.items() if needed and not any(found[switch] for switch in needed)}
    left_out = {*RESUME_SAFE, *SET_BY_SCRIPT, *off}
    return {name: str(value) for name, value in found.items() if name not in left_out}


class Runs:
    """The finished runs (the rows of runs.csv) and the active runs. keys: {variant: options and checksums that identify
    its runs}"""

    def __init__(self, path, keys):
        self.path, self.keys, self.lock, self.children, self.stopped = path, keys, threading.Lock(), set(), False
        self.rows = list(csv.DictReader(open(path, encoding="utf-8"))) if path.exists() else []  # noqa: SIM115

    def find(self, variant, seed):
        """Returns the row of a run, or None. An option that an old run does not have is assumed to have its current
        default."""
        key = self.keys[variant] | {"seed": str(seed)}
        defaults = {name: str(value) for name, value in asdict(Config()).items()}
        return next(
            (row for row in self.rows if all((row.get(name) or defaults.get(name)) == key[name] for name in key)), None
        )

    def of(self, variant, seeds):
        return [row for seed in seeds if (row := self.find(variant, seed))]

    def stop(self):
        """Asks the running processes to save and exit."""
        with self.lock:
            self.stopped = True
            for child in self.children:
                child.terminate()

    def add(self, row):
        with self.lock:
            self.rows.append(row)
            write_csv(self.path, self.rows)


def run(variant, seed, options, runs):
    """Trains and evaluates one run, unless it is already done."""
    if runs.find(variant, seed):
        return
    name = re.sub(r"[^\w.=+-]+", "_", f"{variant}-{seed}")
    folder = Path(options.work) / name
    fresh = not folder.exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        str(ROOT / "main.py"),
        *flags_of(variant, options),
        "--do_train",
        "--do_eval",
        "--resume",
    ]
    command += ["--data_path", options.data_path, "--pretrain_model_path", options.pretrain_model_path]
    command += ["--output_dir", options.work, "--model_version", name, "--random_seed", str(seed)]
    log = Path(options.work) / f"{name}.log"
    with runs.lock:
        if runs.stopped:
            return
        child = Child(command, log, options.jobs)
        runs.children.add(child)
    code = child.wait()
    with runs.lock:
        runs.children.remove(child)
    if code:
        raise UserError(f"{name} failed: {child.last_line()} (see {log})")
    scores = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
    row = {"variant": variant, "seed": str(seed)} | runs.keys[variant]
    row |= {"seconds": f"{child.seconds:.1f}", "cpu_seconds": f"{child.cpu_seconds:.3f}"} if fresh else {}
    row |= {f"{split}_{score}": repr(value) for split in scores for score, value in scores[split].items()}
    runs.add(row)
    shutil.rmtree(folder)


# ---- results ---------------------------------------------------------------------------------------------------------


def summary(runs, variants, seeds, options):
    """Returns (scores, splits, [{column: value}] with one row per variant). All runs must be done."""
    base, found = runs.of("baseline", seeds), []
    splits = [
        split
        for split in ("dev", "test")
        if any(column.startswith(f"{split}_") and value for column, value in base[0].items())
    ]
    names = options.scores or [
        name
        for name in (column.removeprefix("dev_") for column in base[0] if column.startswith("dev_"))
        if name.endswith(("accuracy", "f1", "spearman")) and not any(word in name for word in ("macro", "weighted"))
    ]
    for variant in variants:
        rows = runs.of(variant, seeds)
        line = {"variant": variant, "runs": len(rows)}
        for split, name in itertools.product(splits, names):
            column = f"{split}_{name}"
            values = [100 * float(row[column]) for row in rows]
            line |= {
                f"{column}_mean": statistics.mean(values),
                f"{column}_std": statistics.stdev(values) if len(values) > 1 else 0.0,
            }
            if variant != "baseline":
                partner = {row["seed"]: 100 * float(row[column]) for row in base}
                differences = [
                    value - partner[row["seed"]] for row, value in zip(rows, values) if row["seed"] in partner
                ]
                low, high = interval(differences) or ("", "")
                line |= {
                    f"{column}_difference": statistics.mean(differences),
                    f"{column}_low": low,
                    f"{column}_high": high,
                }
                line[f"{column}_verdict"] = verdict(interval(differences))
        clock = "cpu_seconds" if options.jobs > 1 else "seconds"  # parallel runs slow each other down
        cost, of_base = ([float(row[clock]) for row in each if row.get(clock)] for each in (rows, base))
        line["time_ratio"] = statistics.median(cost) / statistics.median(of_base) if cost and of_base else ""
        found.append(line)
    return names, splits, found


def table(split, names, lines):
    """Formats the summary of a split as Markdown."""
    rows = [f"| variant | {' | '.join(names)} | time |", "| --- |" + " --- |" * (len(names) + 1)]
    for line in lines:
        cells = []
        for name in names:
            column = f"{split}_{name}"
            cell = f"{line[f'{column}_mean']:.2f} ± {line[f'{column}_std']:.2f}"
            if f"{column}_difference" in line:
                cell += f"; {line[f'{column}_difference']:+.2f}"
                if line[f"{column}_low"] != "":
                    cell += f" [{line[f'{column}_low']:+.2f}, {line[f'{column}_high']:+.2f}]"
                cell += f" {line[f'{column}_verdict']}"
            cells.append(cell)
        ratio = line["time_ratio"]
        rows.append(f"| {line['variant']} | {' | '.join(cells)} | {ratio if ratio == '' else f'{ratio:.2f} ×'} |")
    return "\n".join(rows)


def plot(path, split, names, lines):
    """Plots the differences from the baseline with their confidence intervals."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return print("no plot: matplotlib is not installed (pip install matplotlib)")
    lines = [line for line in lines if line["variant"] != "baseline"]
    figure = Figure(figsize=(4 * len(names), 1 + 0.4 * len(lines)), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), sharey=True, squeeze=False)[0], names):
        for height, line in enumerate(reversed(lines)):
            middle, low, high = (line[f"{split}_{name}_{what}"] for what in ("difference", "low", "high"))
            if low != "":
                axis.plot([low, high], [height, height], color="tab:blue")
            axis.plot([middle], [height], "o", color="tab:blue")
        axis.axvline(0, color="gray", linewidth=0.8)
        axis.set_yticks(range(len(lines)), [line["variant"] for line in reversed(lines)])
        axis.set_title(f"{split} {name}, points")
    figure.savefig(path, dpi=120)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", required=True)
    parser.add_argument("--pretrain_model_path", default="")
    parser.add_argument(
        "--tricks", nargs="*", default=[], help=f"variants: {', '.join(VARIANTS)}, option=value, or several joined by +"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--options",
        default="",
        help="options of main.py for all runs, including the baseline, such as '--use_crf --epochs 5'",
    )
    parser.add_argument("--scores", nargs="*", help="scores to compare (default: accuracies and F1)")
    parser.add_argument("--jobs", type=int, default=1, help="parallel runs; with several, CPU time is compared")
    parser.add_argument("--work", default="output/ablation", help="folder for unfinished runs")
    parser.add_argument(
        "--results", default="", help="folder of runs.csv, summary.csv and differences.png (default: --work)"
    )
    parser.add_argument(
        "--false_positives", action="store_true", help="only compare the baseline's stored scores with themselves"
    )
    options = parser.parse_args(argv)
    if options.seeds < 1 or options.jobs < 1:
        raise UserError("--seeds and --jobs must be at least 1")
    results = Path(options.results or options.work)
    variants, seeds = ["baseline", *options.tricks], range(1, options.seeds + 1)
    known = [name for name in metrics.score_names(load_labels(options.data_path)) if "loss" not in name]
    if unknown := sorted(set(options.scores or []) - set(known)):
        raise UserError(f"--scores {unknown[0]} must be one of {', '.join(known)}")
    same = data_and_model(options.data_path, options.pretrain_model_path)
    keys = {variant: same | settings(variant, options) for variant in variants}
    results.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(results / ".lock", timeout=0):
            compare(options, Runs(results / "runs.csv", keys), results, variants, seeds)
    except Timeout:
        raise UserError(f"{results} is in use by another process; name another folder with --results") from None


def compare(options, runs, results, variants, seeds):
    """Runs everything that is not yet done, then prints the comparison."""
    if not options.false_positives:
        todo = [(variant, seed) for seed in seeds for variant in variants]
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        with ThreadPoolExecutor(options.jobs) as pool, tqdm(total=len(todo), desc="runs") as bar:
            jobs = [pool.submit(run, variant, seed, options, runs) for variant, seed in todo]
            try:
                for job in jobs:
                    job.result()
                    bar.update()
            except BaseException:  # also Ctrl-C: active runs save and exit, pending ones do not start
                runs.stop()
                pool.shutdown(cancel_futures=True)
                raise
    if len(runs.of("baseline", seeds)) < len(seeds):
        raise UserError(f"{runs.path} has no baseline runs with these data, model, options and seeds yet")
    names, splits, lines = summary(runs, variants, seeds, options)
    split = splits[-1]
    if options.false_positives:
        for name in names:
            scores = [float(row[f"{split}_{name}"]) for row in runs.of("baseline", seeds)]
            print(
                f"{name}: significant in {false_positives(scores, options.seeds):.1%} of comparisons of the "
                "baseline with itself"
            )
        return
    write_csv(results / "summary.csv", lines)
    plot(results / "differences.png", split, names, lines)
    print(f"\nmean ± standard deviation over {options.seeds} seeds; difference from the baseline [95 % interval]")
    for split in splits:
        print(f"\n{split}:\n\n{table(split, names, lines)}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
