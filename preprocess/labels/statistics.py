"""Computes labels.json: the ordered labels of each task, their counts, and other metadata that a model needs."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.fields import Field
from engine.data.own_inputs import column_statistics
from engine.errors import UserError
from engine.task.hierarchy import depth_of, most_specific
from engine.task.task import PLACES, Task, needs_words, require_distinct, tasks_of
from preprocess.example import Example, counted, cut, length_of, shown
from preprocess.labels.kinds import HIERARCHICAL, KINDS, check_label_names
from preprocess.storage.arrow import blocks_of
from preprocess.storage.facts import Column, Facts, FirstRows, Series


class LabelStatistics(Facts):
    """Statistics of labels, lengths and custom inputs over all rows."""

    def __init__(self, folder: Path | None = None) -> None:
        self.lengths: dict[str, Counter[int]] = defaultdict(Counter)  # {split: {length: number of rows}}
        self.missing: dict[str, Counter[str]] = defaultdict(Counter)  # {task: {split: rows without a label}}
        self.first_missing = FirstRows()  # {task: first row without a label}
        self.empty: dict[str, Counter[str]] = defaultdict(Counter)  # {task: {split: rows with an empty set}}
        self.counts: dict[tuple[str, str], Counter[Any]] = defaultdict(Counter)  # {(task, split): {label: count}}
        self.first: dict[tuple[str, str], FirstRows] = defaultdict(
            FirstRows
        )  # {(task, split): first row of each label}
        series = partial(Series, folder, np.float64)
        self.numbers: dict[tuple[str, str], Series] = defaultdict(series)  # {(task, split): NaN where missing}
        self.cells: dict[str, Series] = defaultdict(series)  # {column: numbers in train, without missing ones}
        self.names: dict[str, Counter[str]] = defaultdict(Counter)  # {custom input: its names in train}
        self.tokens: Counter[str] = Counter()  # {"long", "blank": train blocks with such tokens}

    def look(
        self,
        split: str,
        examples: Sequence[Example],
        kinds: Mapping[str, str],
        inputs: Mapping[str, Field] | None = None,
    ) -> None:
        """Adds a block of examples. kinds: {task: kind}; inputs: the custom inputs."""
        self.lengths[split].update(map(length_of, examples))
        for name, kind in kinds.items():
            self.look_at_task(split, examples, name, kind)
        if split == "train":
            if any(map(needs_words, kinds.values())):
                tokens = {token for e in examples for token in e["tokens"]}
                self.tokens["long"] += any(len(token) > 1 for token in tokens)
                self.tokens["blank"] += any(token.isspace() for token in tokens)
            for name, field in (inputs or {}).items():
                self.look_at_input(name, field, examples)

    def look_at_input(self, name: str, field: Field, examples: Sequence[Example]) -> None:
        for column in field.columns if field.standardize or field.dtype == "name" else ():
            values = [value for e in examples for value in field.present(column, e["extras"][column])]
            if field.standardize:
                self.cells[column].of_block = np.array(values, np.float64)
            else:
                self.names[name].update(values)

    def look_at_task(self, split: str, examples: Sequence[Example], name: str, kind: str) -> None:
        values = [e[name] for e in examples]
        self.missing[name][split] += values.count(None)
        if None in values:
            self.first_missing.setdefault(name, examples[values.index(None)]["_where"])
        if kind == "regression":
            self.numbers[name, split].of_block = np.array([np.nan if x is None else x for x in values], np.float64)
            return
        if kind == "multilabel":
            self.empty[name][split] += values.count([])
        counts, first = self.counts[name, split], self.first[name, split]
        if kind == "classification":
            counts.update(values)
            counts.pop(None, None)
            last = dict(zip(reversed(values), range(len(values) - 1, -1, -1)))
            first.update((label, examples[row]["_where"]) for label, row in last.items() if label is not None)
            return
        lists = [[item[-1] for item in x] if kind in PLACES else x for x in (value or () for value in values)]
        counts.update(chain.from_iterable(lists))
        for e, items in zip(examples, lists):
            if items and not first.keys() >= set(items):
                for item in items:
                    first.setdefault(item, e["_where"])


def collect_labels(
    splits: Mapping[str, Sequence[Example]],
    kinds: Mapping[str, str],
    types: Mapping[str, str] | None = None,
    hierarchy: str = "",
) -> dict[str, Task]:
    """Returns the tasks of {split: examples}, see `label_info`."""
    total = LabelStatistics()
    for split, start, stop in blocks_of(splits):
        block = LabelStatistics()
        block.look(split, splits[split][start:stop], kinds, getattr(splits[split], "fields", {}))
        total.merge(block)
    return label_info(total, splits, kinds, types or {}, hierarchy)


def label_info(
    found: LabelStatistics,
    splits: Mapping[str, Sequence[Example]],
    kinds: Mapping[str, str],
    types: Mapping[str, str],
    hierarchy: str = "",
) -> dict[str, Task]:
    """Returns the tasks: their types, and the ordered labels with their counts in train.

    Tagging tasks also have "unit", the kind of token. Regression tasks have the mean and standard deviation instead of
    labels. All tasks also record whether texts are pairs, the custom inputs, and the kind of a custom type.

    types: {task: custom type}. hierarchy: the separator of nodes in labels; applies to tasks whose labels contain it.
    """
    require_distinct("the data", kinds)
    info: dict[str, dict[str, Any]] = {}
    for name, kind in kinds.items():
        for split, rows in splits.items():
            if found.missing[name][split] == len(rows):
                raise UserError(f"{split} has no label for the task {name!r}")
        if kind == "regression":
            column = found.numbers[name, "train"].column
            info[name] = {"type": kind, "labels": [], **mean_and_deviation(name, column)}
            continue
        counts = found.counts[name, "train"]
        names = sorted(counts, key=lambda label: (label != "O", label))
        check_label_names(name, names)
        if names and len(names) < 2 and kind in ("classification", "tagging"):
            problem = f"has the single label {shown(names[0])} in train"
            raise UserError(f"the task {name!r} {problem}; there is nothing to learn")
        if not names:
            raise UserError(f"the task {name!r} has no label in train; all label lists are empty")
        info[name] = {"type": kind, "labels": names, "counts": [counts[label] for label in names]}
        if kind == "multilabel":
            info[name]["rows"] = len(splits["train"]) - found.missing[name]["train"]
        if needs_words(kind):
            unit = "character+blank" if found.tokens["blank"] else "character"
            info[name]["unit"] = "word" if found.tokens["long"] else unit
    if hierarchy:
        add_hierarchy(info, hierarchy)
    first = splits["train"][0]
    inputs = inputs_of(found, getattr(splits["train"], "fields", {}))
    for name, task in info.items():
        task["entities"] = getattr(splits["train"], "entities", {}).get(name, "")
        task |= inputs | {"pairs": "text_pair" in first, "no_text": getattr(splits["train"], "no_text", False)}
        if name in types and KINDS[types[name]] != types[name]:
            task |= {"type": types[name], "kind": KINDS[types[name]]}
    return tasks_of(info)


def add_hierarchy(info: Mapping[str, dict[str, Any]], separator: str) -> None:
    """Marks the tasks whose labels are paths. Raises UserError if there are none, or if the top level already
    distinguishes all labels: then the separator is probably part of their names."""
    paths = {name: task for name, task in info.items() if task["type"] in HIERARCHICAL}
    paths = {name: task for name, task in paths.items() if any(separator in label for label in task["labels"])}
    if not paths:
        kinds = " and ".join(f"{name!r} ({task['type']})" for name, task in info.items())
        raise UserError(f"--label_hierarchy={separator!r} occurs in no label of {kinds} in train; leave it out")
    for name, task in paths.items():
        leaves = most_specific(task["labels"], separator)
        if len(leaves) == len({leaf.split(separator)[0] for leaf in leaves}):
            problem = f"no two labels of the task {name!r} share a parent, such as {shown(max(leaves))}"
            raise UserError(f"--label_hierarchy={separator!r}: {problem}; leave it out if it does not separate levels")
        task["hierarchy"] = separator


def levels_of(task: Task) -> str:
    """Formats the number of nodes on each level of a hierarchy, for the summary."""
    levels = Counter(depth_of(node, task.hierarchy) for node in task.nodes)
    names: dict[str, set[str]] = defaultdict(set)
    for node in task.nodes:
        parent, _, name = node.rpartition(task.hierarchy)
        names[name].add(parent)
    several = sorted(name for name, parents in names.items() if len(parents) > 1)
    note = f"; different nodes with the same name: {', '.join(map(shown, several[:3]))}" if several else ""
    return f"{len(levels)} levels of {', '.join(str(levels[depth]) for depth in sorted(levels))} nodes{note}"


def inputs_of(found: LabelStatistics, inputs: Mapping[str, Field]) -> dict[str, Any]:
    """Returns the entries `extras` and `fields` of labels.json, with the statistics and names of train."""
    declared = {}
    for name, field in inputs.items():
        if field.standardize:
            values = {column: found.cells[column].column.read() for column in field.columns}
            field = replace(field, statistics=column_statistics(name, field, values))
        if field.dtype == "name":
            field = replace(field, names=sorted(found.names[name]))
        declared[name] = field
    extras = declared.pop("extras", None)
    return {
        "extras": extras.statistics if extras else None,
        "fields": {name: field.to_json() for name, field in declared.items()} or None,
    }


def present_in(column: Column) -> Iterator[float]:
    """Yields the values of a column, without missing ones."""
    for _, values in column.chunks():
        yield from values[~np.isnan(values)].tolist()


def mean_and_deviation(name: str, column: Column) -> dict[str, float]:
    number = sum(int((~np.isnan(values)).sum()) for _, values in column.chunks())
    mean, deviation = math.fsum(present_in(column)) / number, statistics.pstdev(present_in(column))
    if deviation == 0:
        raise UserError(f"the task {name!r} has the single value {mean:g} in train; there is nothing to learn")
    return {"mean": mean, "std": deviation}


def print_summary(splits: Mapping[str, Sequence[Example]], tasks: Mapping[str, Task], found: LabelStatistics) -> None:
    """Prints the sizes, lengths and labels of the data."""
    unit = "tokens" if "tokens" in splits["train"][0] else "characters"
    print(f"{'split':<8}{'examples':>9}   length in {unit}: median   95 %   99 %    max")
    for split, rows in splits.items():
        lengths, counts = np.array(sorted(found.lengths[split].items())).T
        ranks = [min(len(rows) - 1, int(share * len(rows))) for share in (0.5, 0.95, 0.99, 1)]
        quantiles = lengths[np.searchsorted(np.cumsum(counts), ranks, "right")]
        width = 18 if "tokens" in rows[0] else 22
        print(f"{split:<8}{len(rows):>9}   {'':<{width}} " + " ".join(f"{length:>6}" for length in quantiles))
    for name, task in tasks.items():
        if task.kind == "regression":
            print(f"task {name}: regression, mean {task.mean:.4g}, standard deviation {task.std:.4g}")
            continue
        per_label = Counter(dict(zip(task.labels, task.counts or ())))
        common = ", ".join(f"{cut(label)} {count / per_label.total():.0%}" for label, count in per_label.most_common(3))
        number, more = counted(len(per_label), "label"), ", …" if len(per_label) > 3 else ""
        print(f"task {name}: {task.type}, {number} ({common}{more})")
        if task.hierarchy:
            print(f"task {name}: hierarchy, {levels_of(task)}")
        if task.kind == "multilabel":
            print(f"task {name}: rows with an empty label set: {per_split(found.empty[name], splits)}")
        if any(found.missing[name].values()):
            numbers, first = per_split(found.missing[name], splits), found.first_missing[name]
            print(f"task {name}: rows without a label, which this task ignores: {numbers}; first: {first}")


def per_split(counts: Mapping[str, int], splits: Iterable[str]) -> str:
    return ", ".join(f"{split} {counts[split]}" for split in splits)
