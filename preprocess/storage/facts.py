"""Statistics that are collected per block of rows and then merged: counts, first rows, and columns on disk."""

from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from preprocess.storage.arrow import Column

MAX_ROWS = 2000  # rows stored per finding; further rows are only counted
CHUNK = 1 << 18  # values of a column in memory at once


class Sample(list[Any]):
    """The first rows of a finding. `number` is the total."""

    most = MAX_ROWS

    def __init__(self, rows: Sequence[Any] = ()) -> None:
        super().__init__(rows[:MAX_ROWS])
        self.number = getattr(rows, "number", len(rows))

    @property
    def is_full(self) -> bool:
        return len(self) >= MAX_ROWS

    def add(self, row: Any) -> None:
        self.number += 1
        if len(self) < MAX_ROWS:
            self.append(row)

    def merge(self, other: Sequence[Any]) -> None:
        self.number += getattr(other, "number", len(other))
        self += other[: MAX_ROWS - len(self)]


class Note(NamedTuple):
    what: str
    rows: Sequence[str]  # "FILE, row N" or "FILE, row N: detail"; a Sample if there can be many
    advice: str

    @property
    def number(self) -> int:
        return getattr(self.rows, "number", len(self.rows))


class FirstRows(dict[str, str]):
    """{value: first row with this value}"""

    def merge(self, later: "FirstRows") -> None:
        for value, row in later.items():
            self.setdefault(value, row)


class Facts:
    """Statistics of a block of rows: picklable attributes that `merge_facts` can merge, in block order."""

    def merge(self, later: "Facts") -> None:
        """Adds the statistics of the rows that follow."""
        for name, facts in vars(later).items():
            merge_facts(getattr(self, name), facts)


def merge_facts(facts: Any, later: Any) -> None:
    """Extends lists, sets, counters, objects with a `merge` method (Sample, Series, Facts), and dicts of these."""
    if hasattr(facts, "merge"):
        facts.merge(later)
    elif isinstance(facts, list):
        facts += later
    elif isinstance(facts, set | Counter):
        facts.update(later)
    else:
        for key, value in later.items():
            merge_facts(facts[key], value)


class Series:
    """Numbers, usually one per row: an array for a block, and a column on disk for all rows."""

    def __init__(self, folder: Path | None, dtype: Any = np.int64) -> None:
        self.folder = folder
        self.of_block = np.zeros(0, dtype)

    @cached_property
    def column(self) -> Column:
        return Column(self.of_block.dtype, self.folder)

    def merge(self, later: "Series") -> None:
        self.column.append(later.of_block)


def hashes(values: Collection[Hashable]) -> np.ndarray:
    """Returns 64-bit hashes of the values (N,). Two different values collide with probability 2**-64."""
    return np.fromiter(map(hash, values), np.int64, len(values))


def buckets(*columns: Column) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """Partitions columns into buckets by value, so that only a few chunks are in memory at once. Yields one list per
    bucket: [(positions, values) for each column]."""
    number = 1 << max(0, (max(map(len, columns)) // CHUNK).bit_length())
    for bucket in range(number):
        result = []
        for column in columns:
            positions, bucket_values = [np.zeros(0, np.int64)], [np.zeros(0, column.dtype)]
            for start, values in column.chunks():
                matches = np.flatnonzero((values & (number - 1)) == bucket)
                positions.append(start + matches)
                bucket_values.append(values[matches])
            result.append((np.concatenate(positions), np.concatenate(bucket_values)))
        yield result


def repeats(column: Column) -> tuple[np.ndarray, np.ndarray]:
    """Returns (firsts, positions) for all repeated values, sorted: the position of each copy, and the position of the
    first copy of its value."""
    pairs = [np.zeros((2, 0), np.int64)]
    for ((positions, values),) in buckets(column):
        order = np.argsort(values, kind="stable")  # np.unique would need 7 MB more
        ordered = values[order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(values) else order
        sizes = np.diff(np.append(starts, len(values)))
        repeated = np.repeat(sizes > 1, sizes)
        firsts = np.repeat(positions[order[starts]], sizes)
        pairs.append(np.stack([firsts[repeated], positions[order][repeated]]))
    firsts, positions = np.concatenate(pairs, axis=1)
    order = np.lexsort([positions, firsts])
    return firsts[order], positions[order]


def frequent(column: Column, least: int) -> dict[Any, int]:
    """Returns {value: count} for the values with at least `least` occurrences, limited to the 100,000 most frequent."""
    result: Counter = Counter()
    for ((_, values),) in buckets(column):
        names, counts = np.unique(values, return_counts=True)
        often = counts >= least
        result.update(dict(zip(names[often].tolist(), counts[often].tolist())))
    return dict(result.most_common(100_000))
