"""Creates new unlabelled texts from the training texts by replacing entities with others of the same type.

    python benchmarks/recombine.py --data_path dataset/atis --task slots --texts 13000 --output more.jsonl

Reads only the train split. With `--unlabelled more.jsonl` and `--teacher`, a student learns the teachers' predictions
for these texts. On the training texts, which the teachers have memorised, their predictions add little to the labels.
"""

import argparse
import json
import random
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from seqeval.metrics.sequence_labeling import get_entities


def recombine(rows, count, seed, share=0.5):
    """Returns `count` new lists of tokens, by replacing each entity in `rows` with probability `share`.

    rows: [(tokens, tags)]. Stops after 10,000 consecutive texts that are not new.
    """
    rng, values = random.Random(seed), defaultdict(list)
    for tokens, tags in rows:
        for kind, first, last in get_entities(tags):
            values[kind].append(tokens[first : last + 1])
    known, made, misses = {tuple(tokens) for tokens, _ in rows}, [], 0
    while len(made) < count and misses < 10_000:
        tokens, tags = rng.choice(rows)
        new, place = [], 0
        for kind, first, last in get_entities(tags):
            value = rng.choice(values[kind]) if rng.random() < share else tokens[first : last + 1]
            new += tokens[place:first] + value
            place = last + 1
        new += tokens[place:]
        if tuple(new) in known:
            misses += 1
            continue
        known.add(tuple(new))
        made.append(new)
        misses = 0
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", required=True, help="processed folder")
    parser.add_argument("--task", default="slots", help="tagging task whose entities are replaced")
    parser.add_argument("--texts", type=int, default=10_000, help="number of texts to create")
    parser.add_argument("--output", required=True, help=".jsonl to write")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with open(Path(options.data_path) / "train.jsonl", encoding="utf-8") as file:
        examples = [json.loads(line) for line in file]
    made = recombine([(e["tokens"], e[options.task]) for e in examples if e[options.task]], options.texts, options.seed)
    with open(options.output, "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"tokens": tokens}, ensure_ascii=False) + "\n" for tokens in made)
    print(f"{len(made)} new texts in {options.output}")


if __name__ == "__main__":
    main()
