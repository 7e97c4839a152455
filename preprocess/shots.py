"""Samples a few training rows per class (`data_process.py --shots`).

Extends the sampling of papers on few-shot tagging (Hou et al., 2020; Yang and Katiyar, 2020) to every kind of task: a
minimal sample in which each class of each sampled task occurs in at least K rows, or in all its rows if it has fewer.
Classes are filled from the rarest to the most frequent, then redundant rows are removed.
If each row has exactly one class, the sample is K random rows per class.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from engine.errors import UserError
from engine.task.tags import STANDARD
from engine.task.task import PLACES, Task
from preprocess.example import HIDDEN, Example, abbreviate, counted
from preprocess.labels.statistics import collect_labels
from preprocess.schema import LINE
from preprocess.storage.arrow import Rows, blocks_of
from preprocess.storage.parallel import in_order

Class = tuple[str, str]  # (task, label, or type of an entity)


def parse_shots(text: str) -> dict[str, int]:
    """Returns {task: rows per class}. The key "" means all tasks. Raises UserError if `text` is neither a number nor a
    list such as 'intent=8,slots=5'."""
    if re.fullmatch(r"\s*0*[1-9]\d{0,8}\s*", text):
        return {"": int(text)}
    parts = [re.fullmatch(r"\s*(.*\S)\s*=\s*(0*[1-9]\d{0,8})\s*", part) for part in text.split(",") if part.strip()]
    if None in parts or (text and not parts):
        raise UserError(f"--shots={text!r} must be a number of rows per class, such as 8, or like 'intent=8,slots=5'")
    shots = {part[1]: int(part[2]) for part in parts if part}
    if len(shots) < len(parts):
        raise UserError(f"--shots={text!r} names a task twice")
    return shots


def shots_of_tasks(shots: Mapping[str, int], kinds: Mapping[str, str]) -> dict[str, int]:
    """Returns {task: rows per class} for the sampled tasks. kinds: {task: kind}."""
    shots = dict.fromkeys(kinds, shots[""]) if "" in shots else dict(shots)
    for name in shots:
        if name not in kinds:
            raise UserError(f"--shots: the data has no task {name!r}; its tasks are {', '.join(kinds)}")
        if kinds[name] == "regression":
            others = [f"{other}={shots[name]}" for other, kind in kinds.items() if kind != "regression"]
            advice = f"; sample the other tasks: --shots {','.join(others)}" if others else ""
            raise UserError(f"--shots: the task {name!r} is a regression, which has no classes{advice}")
    return shots


def classes_of(example: Example, name: str, kind: str) -> set[Class]:
    """Returns the classes of a row: its label or labels, the types of its entities (or its tags, if they do not mark
    entities), or the predicates of its relations. An empty label set counts as a class; a text without entities or
    relations has no class."""
    label = example[name]
    if label is None:
        return set()
    if kind == "classification":
        return {(name, label)}
    if kind == "multilabel":
        return {(name, item) for item in label or [""]}
    if kind in PLACES:
        return {(name, item[-1]) for item in label}
    tags = {tag: STANDARD.parse(tag) for tag in label}
    return {(name, parsed.kind if parsed else tag) for tag, parsed in tags.items()} - {(name, "")}


def look_at_block(
    rows: Sequence[Example], tasks: Mapping[str, str], seed: int, block: tuple[str, int, int]
) -> tuple[np.ndarray, list[frozenset[Class]]]:
    """Returns (random keys, classes) for the rows of a block. A key depends only on the seed and the content of the
    row, so the sample does not depend on the row order. tasks: {task: kind} of the sampled tasks."""
    examples, keys = rows[block[1] : block[2]], []
    for e in examples:
        content = LINE({name: e[name] for name in sorted(e) if name not in HIDDEN and name != "id"})
        keys.append(hashlib.blake2b(content.encode(), digest_size=8, salt=str(seed).encode()).digest())
    classes = [frozenset().union(*(classes_of(e, name, kind) for name, kind in tasks.items())) for e in examples]
    return np.frombuffer(b"".join(keys), "<u8"), classes


def in_random_order(keys: np.ndarray) -> np.ndarray:
    """Returns the row numbers (N,) sorted by key. Duplicate rows have equal keys, so their keys are shifted first."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], keys[order][1:] != keys[order][:-1]]))
    copies = np.arange(len(keys)) - np.repeat(starts, np.diff(np.append(starts, len(keys))))
    spread = keys[order] + copies.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # modulo 2**64, golden ratio
    return order[np.argsort(spread, kind="stable")]


def choose(order: Sequence[int], classes: Sequence[frozenset[Class]], shots: Mapping[str, int]) -> list[int]:
    """Returns the sorted rows of a minimal sample. order: the rows in random order. classes: the classes per row."""
    rows_with: dict[Class, list[int]] = defaultdict(list)
    for row in order:
        for one in classes[row]:
            rows_with[one].append(row)
    required = {one: min(shots[one[0]], len(rows)) for one, rows in rows_with.items()}
    counts: Counter[Class] = Counter()
    chosen: dict[int, None] = {}
    for one in sorted(rows_with, key=lambda one: (len(rows_with[one]), one)):
        candidates = (row for row in rows_with[one] if row not in chosen)
        while counts[one] < required[one]:
            chosen[row := next(candidates)] = None
            counts.update(classes[row])
    for row in list(chosen):
        if all(counts[one] > required[one] for one in classes[row]):
            del chosen[row]
            counts.subtract(classes[row])
    return sorted(chosen)


def sample_shots(train: Rows, kinds: Mapping[str, str], shots: Mapping[str, int], seed: int) -> Rows:
    """Samples rows of the train split, keeping their order, and prints the number of rows and classes."""
    shots = shots_of_tasks(shots, kinds)
    look = partial(look_at_block, train, {name: kinds[name] for name in shots}, seed)
    known: dict[frozenset[Class], frozenset[Class]] = {}  # equal sets share memory
    keys, classes = [], []
    for of_block, sets in in_order(look, blocks_of({"train": train})):
        keys.append(of_block)
        classes += [known.setdefault(one, one) for one in sets]
    chosen = choose(in_random_order(np.concatenate(keys)).tolist(), classes, shots)
    counts = Counter(one for row in chosen for one in classes[row])
    few = sorted(one for one in counts if counts[one] < shots[one[0]])
    of_train = counted(len(train), "row")
    print(f"--shots: sampled {len(chosen)} of {of_train} of train for {len(counts)} classes, seed {seed}")
    if few:
        listed = abbreviate(f"{label or 'no label'} ({counts[name, label]})" for name, label in few)
        print(f"--shots: classes with fewer rows (all are used): {listed}")
    return Rows(train.store, train.form, train.order[chosen])


def with_counts_of(sample: Rows, tasks: Mapping[str, Task], kinds: Mapping[str, str]) -> dict[str, Task]:
    """Returns the tasks with the counts and statistics of the sample, but the labels of the full data: all samples need
    the same labels, and a sample may lack some (such as an I- tag)."""
    found = collect_labels({"train": sample}, kinds)
    result = {}
    for name, task in tasks.items():
        one, counts = found[name], dict(zip(found[name].labels, found[name].counts or ()))
        result[name] = replace(
            task,
            counts=None if one.counts is None else tuple(counts.get(label, 0) for label in task.labels),
            rows=one.rows,
            mean=one.mean,
            std=one.std,
            extras=one.extras or task.extras,
            fields=one.fields or task.fields,
        )
    return result
