"""Creates data with nested entities from tagged data, and computes the best score that a flat tagger could reach on it.

    python benchmarks/nested.py --input RAW_ATIS_FOLDER --output_file nested.jsonl
    python data_process.py --input nested.jsonl --output_dir dataset/nested
    python main.py --do_train --do_eval --data_path dataset/nested --pretrain_model_path MODEL_FOLDER

Two entities with at most one token between them are joined into a longer entity that is named after both. The pairs of
types are chosen by frequency, so that the requested share of all entities is inside another entity. Prints this share,
and the F1 of a perfect flat tagger, which must omit one of two overlapping spans.
"""

import argparse
import itertools
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from seqeval.metrics.sequence_labeling import get_entities

from data_process import DataConfig, process
from engine.task.tags import find_scheme
from engine.task.text import join_tokens
from preprocess.example import SPLITS
from preprocess.labels.spans import without_overlaps
from preprocess.schema import load_labels, read_processed

GAP = 1  # maximum number of tokens between two entities that form a longer one


def pairs_of(entities):
    """Returns [(first, second)] of adjacent entities (type, first token, last token), in order."""
    return [(a, b) for a, b in itertools.pairwise(entities) if 0 < b[1] - a[2] <= 1 + GAP]


def with_longer(entities, chosen):
    """Returns the entities, plus a longer one per pair of the chosen types. No entity is inside two longer ones."""
    longer, end = [], -1
    for first, second in pairs_of(entities):
        if (first[0], second[0]) in chosen and first[1] > end:
            names = (name.split(".")[0] for name in (first[0], second[0]))
            longer.append(("+".join(names), first[1], second[2]))
            end = second[2]
    return entities + longer


def share_nested(texts):
    """Returns the share of entities that are inside another entity."""
    inside = total = 0
    for entities in texts:
        total += len(entities)
        inside += sum(any(a != b and b[1] <= a[1] and a[2] <= b[2] for b in entities) for a in entities)
    return inside / total


def choose_pairs(texts, share):
    """Returns the pairs of types to join, most frequent first, such that at most `share` of the entities are inside
    another one."""
    counts = Counter((a[0], b[0]) for entities in texts for a, b in pairs_of(entities))
    chosen = set()
    for pair, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if share_nested([with_longer(entities, chosen | {pair}) for entities in texts]) <= share:
            chosen.add(pair)
    return chosen


def most_apart(entities):
    """Returns a largest set of entities without overlaps, by choosing those that end first (interval scheduling)."""
    number, end = 0, -1
    for _, first, last in sorted(entities, key=lambda entity: entity[2]):
        if first > end:
            number, end = number + 1, last
    return number


def ceilings(texts):
    """Returns the F1 of a perfect flat tagger that predicts as many spans as possible, or the longer of two."""
    total = sum(map(len, texts))
    most = sum(map(most_apart, texts))
    longer = sum(len(without_overlaps([(first, last + 1, kind) for kind, first, last in text])[0]) for text in texts)
    return [2 * kept / (kept + total) for kept in (most, longer)]


def read(source):
    """Reads raw data as {split: [(id, text, token offsets, entities)]}. Of several tagging tasks, uses the first."""
    with tempfile.TemporaryDirectory() as folder:
        process(DataConfig(input=source, output_dir=f"{folder}/data"))
        tasks, splits = load_labels(f"{folder}/data"), {}
        name = next(n for n, task in tasks.items() if task.is_tagging and find_scheme([task.labels]))
        for split in SPLITS:
            if (path := Path(folder) / "data" / f"{split}.jsonl").exists():
                splits[split] = []
                for _, e in read_processed(path, tasks):
                    text, places = join_tokens(e["tokens"], tasks[name].unit)
                    splits[split].append((e["id"], text, places, get_entities(e[name] or [])))
    return splits


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--input", required=True, help="raw data with tags: a file or folder that data_process.py reads"
    )
    parser.add_argument("--output_file", required=True, help=".jsonl to write: texts, spans and their split")
    parser.add_argument("--share", type=float, default=0.3, help="requested share of entities inside another entity")
    options = parser.parse_args()
    splits = read(options.input)
    chosen = choose_pairs([entities for *_, entities in splits["train"]], options.share)
    with open(options.output_file, "w", encoding="utf-8") as file:
        for split, rows in splits.items():
            found = [with_longer(entities, chosen) for *_, entities in rows]
            most, longer = ceilings(found)
            print(f"{split}: {sum(map(len, found))} entities, {share_nested(found):.1%} inside another one")
            print(f"  F1 of a flat tagger: at most {most:.4f}, or {longer:.4f} if the longer of two spans is predicted")
            for (number, text, places, _), entities in zip(rows, found):
                spans = [[places[first][0], places[last][1], kind] for kind, first, last in entities]
                row = {"id": number, "text": text, "entities": spans, "split": split}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
