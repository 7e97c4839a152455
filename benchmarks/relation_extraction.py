"""Measures relation extraction: scores on a data set and on generated texts over several seeds, time and memory.

    python benchmarks/relation_extraction.py --data CONLL04_FOLDER --pretrain_model_path MODEL_FOLDER
    python benchmarks/relation_extraction.py --generated english chinese
    python benchmarks/relation_extraction.py --cost

--data: a folder that data_process.py reads and that has a task `relations`, such as CoNLL04 in SpERT's format. main.py
trains each variant in --variants once per seed, chooses the epoch on dev and scores test once; finished runs are not
trained again. Prints means and standard deviations of the scores on test, and the CPU time.
--generated: the same for encoders from scratch on the texts of relation_texts.py.
--cost: time and memory of the loss, forward and backward, on a batch of 16 texts of 300 words with 50 predicates,
compared with the same loss on dense scores and with the spans head; and the time to decode the batch.
"""

import argparse
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import relation_texts  # noqa: E402
from few_slots import train  # noqa: E402

from data_process import DataConfig, process  # noqa: E402

FIXED = "--epochs 25 --early_stop_patience 0 --batch_size 16"
TYPED, HEADS = f"{FIXED} --monitor relations_typed_f1", "--dropout 0.3 --word_pooling mean"
VARIANTS = {
    "entities and relations": f"{TYPED} {HEADS} --use_ema",
    "without EMA": f"{TYPED} {HEADS}",
    "and with the default dropout and pooling": TYPED,
    "and without word shapes": f"{TYPED} --word_shapes False",
    "relations alone": f"{FIXED} {HEADS} --use_ema",
}
SCRATCH = "--hidden_size 128 --num_layers 2 --epochs 15 --lr 1e-3 --batch_size 16 --max_length 128"
SHOWN = ("relations_precision", "relations_recall", "relations_f1", "relations_typed_f1", "relations_relaxed_f1")
SHOWN = ("entities_f1", *SHOWN, "relations_entities_f1")


def processed(work, source, columns=""):
    folder = work / f"data/{columns or 'all'}"
    if not (folder / "labels.json").exists():
        process(DataConfig(input=str(source), output_dir=str(folder), label_column=columns))
    return folder


def table(rows):
    """Returns the lines of a Markdown table with test scores in %. rows: {name: [(scores, seconds) per seed]}."""
    lines = [f"| variant | seeds | {' | '.join(SHOWN)} | CPU s |", "| --- " * (len(SHOWN) + 3) + "|"]
    for name, results in rows.items():
        cells = [name, len(results)]
        for score in SHOWN:
            values = [100 * scores["test"][score] for scores, _ in results if score in scores["test"]]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.2f}{spread}" if values else "")
        cells.append(round(statistics.median(seconds for _, seconds in results)))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def real(options):
    rows = {}
    for name in options.variants:
        folder = processed(options.work, options.data, "relations" if name == "relations alone" else "")
        flags = [*shlex.split(VARIANTS[name]), "--pretrain_model_path", options.pretrain_model_path]
        for seed in options.seeds:
            run = options.work / "runs" / f"{name.replace(' ', '_')}-{seed}"
            rows.setdefault(name, []).append(train(folder, [*flags, *options.flags], run, seed))
            print(f"{name}, seed {seed}: {rows[name][-1][0]['test']}", flush=True)
    print("\n".join(table(rows)))


def generated(options):
    rows = {}
    for language in options.generated:
        work = options.work / language
        if not (work / "raw").exists():
            relation_texts.write(work / "raw", language, options.train)
        folder = processed(work, work / "raw")
        for seed in options.seeds:
            run = work / f"runs/{seed}"
            rows.setdefault(language, []).append(train(folder, [*shlex.split(SCRATCH), *options.flags], run, seed))
            print(f"{language}, seed {seed}: {rows[language][-1][0]['test']}", flush=True)
    print("\n".join(table(rows)))


def cost(options):
    """Runs each measurement in a separate process, because the reported peak memory of a process never falls."""
    for what in ("nothing", "spans", "relations", "dense", "decode"):
        command = [sys.executable, __file__, "--cost_of", what]
        print(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


def cost_of(what, texts=16, words=300, predicates=50, entities=10):
    import torch

    from engine.model import relations
    from engine.task.task import Task
    from model_utils import RelationHead, SpanHead

    torch.manual_seed(0)
    torch.set_num_threads(1)
    kind = "spans" if what == "spans" else "relations"
    head = (SpanHead if kind == "spans" else RelationHead)(384, Task(kind, tuple(map(str, range(predicates)))))
    vectors, mask = torch.randn(texts, words, 384, requires_grad=True), torch.ones(texts, words, dtype=torch.bool)
    first = torch.randint(0, words - 3, (texts, entities, 1 if kind == "spans" else 2))
    places = torch.stack([first, first + 2], 3).flatten(2)
    labels = torch.cat([places, torch.randint(0, predicates, (texts, entities, 1))], 2).flatten(1)
    labels = torch.cat([torch.zeros(texts, 1, dtype=torch.int64), labels], 1)
    inputs = {"word_mask": mask}

    def dense_loss(logits):
        """Computes the loss of Su (2020) on dense scores, with every cell in memory."""
        scores = relations.dense(logits, predicates)
        gold = torch.zeros_like(scores, dtype=torch.bool)
        for text, row in enumerate(labels[:, 1:].unflatten(1, (entities, 5)).tolist()):
            for a, b, c, d, p in row:
                gold[text, 0, a, b] = gold[text, 1, c, d] = True
                gold[text, 2 + p, a, c] = gold[text, 2 + predicates + p, b, d] = True
        where = relations.are_cells(mask, predicates)
        wrong = scores.masked_fill(gold | ~where, -1e30).flatten(2)
        right = (-scores).masked_fill(~gold, -1e30).flatten(2)
        one = torch.zeros_like(wrong[..., :1])
        return sum(torch.cat([one, side], 2).logsumexp(2).sum() for side in (wrong, right)) / 3

    def step():
        logits = head(vectors, inputs)
        if what == "decode":
            return relations.find(logits.detach(), mask, predicates)
        value = dense_loss(logits) if what == "dense" else head.loss(logits, labels, inputs)
        value.backward()
        return float(value.detach())

    before = getrusage(RUSAGE_SELF).ru_maxrss
    value = None if what == "nothing" else step()
    peak = (getrusage(RUSAGE_SELF).ru_maxrss - before) / 1024
    times = []
    for _ in range(0 if what == "nothing" else 5):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    shown = f", loss {value:.4f}" if isinstance(value, float) else ""
    print(f"{what}: {statistics.median(times) if times else 0:.2f} CPU s, peak {peak:.0f} MiB more than before{shown}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--pretrain_model_path")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["entities and relations"])
    parser.add_argument("--generated", nargs="*", choices=relation_texts.LANGUAGES)
    parser.add_argument("--train", type=int, default=2000, help="generated texts in train")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--cost_of", help=argparse.SUPPRESS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--flags", type=str.split, default=[], help="more options of main.py, quoted")
    parser.add_argument("--work", type=Path, default=Path("output/relations"))
    options = parser.parse_args()
    if options.cost_of:
        cost_of(options.cost_of)
    elif options.cost:
        cost(options)
    elif options.generated:
        generated(options)
    elif options.data and options.pretrain_model_path:
        real(options)
    else:
        parser.error("pass --data and --pretrain_model_path, or --generated, or --cost")


if __name__ == "__main__":
    main()
