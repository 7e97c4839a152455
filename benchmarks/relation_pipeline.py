"""Relation extraction as a pipeline: one model finds the entities, another classifies each pair, shown by markers.

    python benchmarks/relation_pipeline.py --data CONLL04_FOLDER --pretrain_model_path MODEL_FOLDER [--seeds 1 2 3 4 5]

For comparison with the joint model of relation_extraction.py. --data: a folder that data_process.py reads and that has
the tasks `relations` and `entities`. The first model is trained only on the entities. The second model, with the head
of docs/cookbook/relation.md, is trained on the gold entities of train: all pairs whose types are connected by some
predicate in train, in both orders, with the label none if there is no relation. On dev and test, it classifies the
pairs of entities that the first model has found. Both choose their epoch on dev; test is scored once. Prints the scores
of relation_extraction.py, with the CPU time of training both models, if no run was interrupted. Finished runs are not
trained again.
"""

import argparse
import json
import shlex
import statistics
import sys
import time
from itertools import permutations
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from few_labels import read_rows, write_rows  # noqa: E402
from few_slots import train  # noqa: E402
from relation_extraction import processed  # noqa: E402
from semeval import MARKERS, use_head_of_page  # noqa: E402

from config import Config  # noqa: E402
from data_process import DataConfig, process  # noqa: E402
from engine.run.command_line import parse_args  # noqa: E402
from engine.task.task import read_tasks  # noqa: E402
from engine.task.words import entities_in  # noqa: E402
from main import main as run_main  # noqa: E402
from metrics import score  # noqa: E402

NONE = "none"
SHOWN = ("entities_f1", "relations_precision", "relations_recall", "relations_f1", "relations_typed_f1")


def schema_of(rows):
    """Returns the pairs of entity types that are connected by a relation in these rows."""
    found = set()
    for row in rows:
        types = {(first, last): name for first, last, name in row["entities"]}
        found |= {(types[tuple(places[:2])], types[tuple(places[2:])]) for *places, _ in row["relations"]}
    return found


def marked(tokens, one, other):
    """Returns the text with markers around two entities, which include the entities' types."""
    before = {one[0]: f"<e1> {one[2]} :", other[0]: f"<e2> {other[2]} :"}
    behind = {one[1]: "</e1>", other[1]: "</e2>"}
    words = []
    for number, token in enumerate(tokens):
        words += [before[number]] if number in before else []
        words += [token]
        words += [behind[number]] if number in behind else []
    return " ".join(words)


def pairs_of(rows, entities, schema):
    """Returns [(row number, entity, other entity)] for all pairs to classify, unless they start or end together."""
    return [
        (number, one, other)
        for number, spans in enumerate(entities)
        for one, other in permutations(map(tuple, spans), 2)
        if (one[2], other[2]) in schema and one[0] != other[0] and one[1] != other[1]
    ]


def write_pairs(folder, splits, schema):
    """Returns a folder with the gold pairs of train and dev as texts to classify."""
    for split in ("train", "dev"):
        rows, lines = splits[split], []
        for number, one, other in pairs_of(rows, [row["entities"] for row in rows], schema):
            labels = [label for *places, label in rows[number]["relations"] if places == [*one[:2], *other[:2]]]
            lines.append({"text": marked(rows[number]["tokens"], one, other), "label": [*labels, NONE][0]})
        write_rows(folder / f"raw/{split}.jsonl", lines)
    raw = dict(input=str(folder / "raw"), output_dir=str(folder / "data"))
    process(DataConfig(**raw, label_type="label=classification"))


def judge(run, rows, entities, schema, name):
    """Returns the relations that the second model predicts for the pairs of these entities, per text."""
    pairs, found = pairs_of(rows, entities, schema), [[] for _ in rows]
    texts, output = run.parent / f"{run.name}-{name}.jsonl", run.parent / f"{run.name}-{name}-labelled.jsonl"
    write_rows(texts, [{"text": marked(rows[number]["tokens"], one, other)} for number, one, other in pairs])
    flags = ["--do_predict", "--checkpoint", str(run / "checkpoints/best"), "--predict_file", str(texts)]
    run_main(parse_args(Config, [*flags, "--predict_output", str(output)]))
    for (number, one, other), prediction in zip(pairs, read_rows(output)):
        if prediction["label"] != NONE:
            found[number].append([*one[:2], *other[:2], prediction["label"]])
    return [sorted(label) for label in found]


def scores_of(options, splits, folder, schema, seed):
    """Returns {"dev", "test": scores, "seconds": CPU time of both models, or None if a run was interrupted}."""
    done = options.work / f"scores-{seed}.json"
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    entity_run = options.work / f"runs/entities-{seed}"
    model = ["--pretrain_model_path", options.pretrain_model_path]
    _, seconds = train(folder, [*shlex.split(options.entity_options), *model], entity_run, seed)
    run = options.work / f"runs/pairs-{seed}"
    measured, is_new, start = run / "cpu_seconds.json", not run.exists(), time.process_time()
    paths = ["--data_path", str(options.work / "pairs/data"), "--output_dir", str(run.parent)]
    fixed = ["--do_train", "--resume", "--special_tokens", MARKERS, "--report_to", "none", "--save_epoch", "0"]
    flags = [*fixed, *paths, *model, "--model_version", run.name, "--random_seed", str(seed)]
    run_main(parse_args(Config, [*flags, *shlex.split(options.pair_options)]))
    if is_new:  # this process has not measured the first part of a resumed run
        measured.write_text(json.dumps(time.process_time() - start), encoding="utf-8")
    pairs = json.loads(measured.read_text(encoding="utf-8")) if measured.exists() else None
    result = {"seconds": None if pairs is None else seconds + pairs}
    tasks = read_tasks(options.work / "data/all/labels.json")
    for split in ("dev", "test"):
        rows, labelled = splits[split], read_rows(entity_run / f"answers/{split}.jsonl")
        predicted = [row["answers"]["entities"]["predicted"] for row in labelled]  # tags, unless entities nest
        tagged = read_tasks(folder / "labels.json")["entities"].kind == "tagging"
        entities = [[[a, b, name] for name, a, b in entities_in(t)] for t in predicted] if tagged else predicted
        found = {"entities": entities, "relations": judge(run, rows, entities, schema, split)}
        result[split] = score(tasks, {name: [row[name] for row in rows] for name in tasks}, found)
    done.write_text(json.dumps(result), encoding="utf-8")
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pretrain_model_path", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--entity_options", default="--epochs 25 --batch_size 16", help="options of the first model")
    parser.add_argument("--pair_options", default="--epochs 5 --early_stop_patience 0", help="options of the second")
    parser.add_argument("--work", type=Path, default=Path("output/relation_pipeline"))
    options = parser.parse_args()
    options.work = options.work.resolve()
    both = processed(options.work, options.data)
    folder = processed(options.work, options.data, "entities")
    splits = {split: read_rows(both / f"{split}.jsonl") for split in ("train", "dev", "test")}
    schema = schema_of(splits["train"])
    if not (options.work / "pairs/data/labels.json").exists():
        write_pairs(options.work / "pairs", splits, schema)
    use_head_of_page()
    results = []
    for seed in options.seeds:
        results.append(scores_of(options, splits, folder, schema, seed))
        print(f"seed {seed}: {results[-1]['test']}", flush=True)
    print(f"| seeds | {' | '.join(SHOWN)} | CPU s |\n{'| --- ' * (len(SHOWN) + 2)}|")
    cells = [len(results)]
    for name in SHOWN:
        values = [100 * result["test"][name] for result in results]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.2f}{spread}")
    times = [result["seconds"] for result in results if result["seconds"] is not None]
    print(f"| {' | '.join(map(str, [*cells, round(statistics.median(times)) if times else '']))} |")


if __name__ == "__main__":
    main()
