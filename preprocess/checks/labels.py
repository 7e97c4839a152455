"""Checks of labels, except spans: names, class balance, label sets and numbers."""

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from preprocess.checks.base import PLACEHOLDERS, AllRows, Check, Context, Splits, Tasks, add_if, sampled
from preprocess.example import Example
from preprocess.labels.statistics import LabelStatistics
from preprocess.storage.facts import Note, Sample

Counts = Mapping[str, Counter[str]]  # {split: {label: count}}
First = Mapping[str, Mapping[str, str]]  # {split: {label: first row with it, formatted}}

LETTER = r"[^\W\d_]"
# Blanks between letters and digits, and hyphens between letters. A hyphen before a digit could be a minus sign
BETWEEN = re.compile(rf"(?<={LETTER})[\s_-]+(?={LETTER})|(?<={LETTER})[\s_]+(?=\d)|(?<=\d)[\s_]+(?={LETTER})")


class Labels(Check):
    def __init__(self, context: Context) -> None:
        self.without = {name: Sample() for name in context.kinds}  # {multilabel task: rows without a label}

    def look(self, split: str, start: int, examples: Sequence[Example], context: Context) -> None:
        for name, kind in context.kinds.items():
            if kind == "multilabel":
                for e in examples:
                    add_if(self.without[name], e, e[name] == [])

    def notes(self, splits: Splits, tasks: Tasks, labels: LabelStatistics) -> Iterator[Note]:
        for name, task in tasks.items():
            kind = task.kind
            if kind == "regression":
                continue
            counts = {split: labels.counts[name, split] for split in splits}
            first = {
                split: {label: f"{where}: {label!r}" for label, where in labels.first[name, split].items()}
                for split in splits
            }
            yield from label_names(name, kind == "tagging", counts, first)
            if kind == "classification" and counts["train"]:
                yield from class_balance(name, counts, first)
            if kind == "multilabel":
                size = len(splits["train"])
                none = labels.empty[name]["train"] + labels.missing[name]["train"]
                advice = "use null if the label is missing; an empty set means none of the labels"
                without = [] if none > 0.05 * size else self.without[name]
                yield Note(f"{name}: rows without any label", without, advice)
                always = [first["train"][label] for label, n in counts["train"].items() if n == size > 1]
                yield Note(f"{name}: labels that every row has", always, "remove them; there is nothing to learn")


def label_names(name: str, tags: bool, counts: Counts, first: First) -> Iterator[Note]:
    """Yields notes on labels that are missing from a split, rare, or similar. tags: whether the labels are tags."""
    train, dev = counts["train"], counts.get("dev")
    for split, present in counts.items():
        unseen = [first[split][label] for label in sorted(present.keys() - train.keys())]
        advice = "move some rows to train, or merge labels; otherwise they always count as wrong"
        yield Note(f"{name}: labels in {split} that never occur in train", unseen, advice)
    once = [first["train"][label] for label in sorted(train) if train[label] == 1]
    advice = "merge labels, collect more examples, or remove them; one example is too few to learn from"
    yield Note(f"{name}: labels that occur only once in train", once, advice)
    untested = [first["train"][x] for x in sorted(train) if dev is not None and train[x] >= 20 and not dev[x]]
    yield Note(f"{name}: labels in train that are missing from dev", untested, "split the data again, stratified")
    if not tags:
        alike = labels_alike(counts, first)
        yield Note(f"{name}: labels that differ only in case, spaces or width", alike, "merge duplicates")
    missing = [first[split][x] for split in counts for x in sorted(counts[split]) if x.strip().lower() in PLACEHOLDERS]
    yield Note(f"{name}: labels that look like a missing value", missing, "use null if there is no label")


def folded_label(label: str) -> str:
    """Normalises case, spaces and width. Keeps signs and digits: -1 and 1, A+ and A, 1-2 and 12 are different."""
    text = unicodedata.normalize("NFKC", label).casefold()
    text = BETWEEN.sub("", text.strip())
    return text + "".join(sign for sign in label if sign.isdigit() and not sign.isdecimal())


def labels_alike(counts: Counts, first: First) -> list[str]:
    """Returns one line per group of labels that differ only in case, spaces or width: the rarest one, then the rest."""
    folded: dict[str, set[str]] = defaultdict(set)
    rows = []
    total = sum(counts.values(), Counter[str]())
    for label in total:
        folded[folded_label(label)].add(label)
    for group in folded.values():
        if len(group) > 1:
            rare = min(sorted(group), key=lambda label: total[label])
            where = next(first[split][rare] for split in counts if counts[split][rare])
            rows.append(f"{where}, and {', '.join(repr(label) for label in sorted(group - {rare}))}")
    return rows


def class_balance(name: str, counts: Counts, first: First) -> Iterator[Note]:
    train = counts["train"]
    label, count = train.most_common(1)[0]
    if count / train.total() > 0.95 and train.total() >= 20:
        rows = [f"{first['train'][label]} {count / train.total():.1%}"]
        advice = "use macro F1 instead of accuracy, and try --class_weights balanced"
        yield Note(f"{name}: one label covers nearly all of train", rows, advice)
    for split, other in counts.items():
        if min(other.total(), train.total()) >= 30:  # never differs for train itself
            shares = {x: (train[x] / train.total(), other[x] / other.total()) for x in train if other[x]}
            if sum(abs(a - b) for a, b in shares.values()) / 2 > 0.2:
                worst = max(shares, key=lambda x: abs(shares[x][0] - shares[x][1]))
                rows = [f"{worst!r} is {shares[worst][0]:.0%} of train, {shares[worst][1]:.0%} of {split}"]
                finding = f"{name}: labels are distributed differently in {split} than in train"
                yield Note(finding, rows, "split the data again, stratified, unless this is intended")


class Numbers(Check):
    """Checks regression labels."""

    def notes(self, splits: Splits, tasks: Tasks, labels: LabelStatistics) -> Iterator[Note]:
        for name, task in tasks.items():
            if task.kind == "regression":
                columns = {split: labels.numbers[name, split].column.read() for split in splits}
                yield far_numbers(name, task, splits, columns)
                for split, values in columns.items():
                    values = values[~np.isnan(values)]
                    yield from compare_numbers(name, task, split, values, splits[split][0]["_where"])


def far_numbers(name: str, task: Any, splits: Splits, columns: Mapping[str, np.ndarray]) -> Note:
    labelled = columns["train"][~np.isnan(columns["train"])]
    middle = float(np.median(labelled))
    limit = 10 * (1.4826 * float(np.median(np.abs(labelled - middle))) or task.std)
    rows, values = AllRows(splits), np.concatenate(list(columns.values()))
    far = np.flatnonzero(np.abs(values - middle) > limit)
    shown = sampled(far, lambda row: f"{rows.where(row)}: {values[row]:g}")
    return Note(f"{name}: values far from all others", shown, "check the units and decimal points")


def compare_numbers(name: str, task: Any, split: str, values: np.ndarray, where: str) -> Iterator[Note]:
    """Yields notes on a split whose values are constant or are distributed differently than in train."""
    if len(values) > 1 and values.min() == values.max():
        rows = [f"{where}: {values[0]:g}"]
        yield Note(f"{name}: all values in {split} are the same", rows, "correlations cannot be computed")
    elif split != "train" and len(values) >= 30:
        mean = math.fsum(values) / len(values)
        if abs(mean - task.mean) > 0.5 * task.std:
            rows = [f"mean {mean:.4g} and {task.mean:.4g}"]
            yield Note(f"{name}: values in {split} differ from train", rows, "split again, unless this is intended")
