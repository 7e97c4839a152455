"""Statistics collected per block of rows and merged: counts, first rows, and columns of values on disk."""

from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from preprocess.storage.arrow import Column

MOST_ROWS = 2000  # rows kept per finding; further ones are only counted
CHUNK = 1 << 18  # values of a column held in memory at once


class Sample(list[Any]):
    """The first rows of a finding; `number` counts all."""

    most = MOST_ROWS

    def __init__(self, rows: Sequence[Any] = ()) -> None:
        super().__init__(rows[:MOST_ROWS])
        self.number = getattr(rows, "number", len(rows))

    @property
    def is_full(self) -> bool:
        return len(self) >= MOST_ROWS

    def add(self, row: Any) -> None:
        self.number += 1
        if len(self) < MOST_ROWS:
            self.append(row)

    def merge(self, other: Sequence[Any]) -> None:
        self.number += getattr(other, "number", len(other))
        self += other[: MOST_ROWS - len(self)]


class Note(NamedTuple):
    what: str
    rows: Sequence[str]  # "FILE, row N", possibly with ": detail"; a Sample for a potentially large number
    advice: str

    @property
    def number(self) -> int:
        return getattr(self.rows, "number", len(self.rows))


class FirstRows(dict[str, str]):
    """{value: its first row}"""

    def merge(self, later: "FirstRows") -> None:
        for value, row in later.items():
            self.setdefault(value, row)


class Facts:
    """Facts of a block of rows: picklable attributes that `merge_facts` can merge, in the order of the blocks."""

    def merge(self, later: "Facts") -> None:
        """Adds the facts of the following rows."""
        for name, facts in vars(later).items():
            merge_facts(getattr(self, name), facts)


def merge_facts(facts: Any, later: Any) -> None:
    """Extends lists, sets, counters, objects with a method `merge` (Sample, Series, Facts), and dicts of these."""
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
    """(N,) 64-bit hashes of values; two different values collide with probability 2**-64."""
    return np.fromiter(map(hash, values), np.int64, len(values))


def buckets(*columns: Column) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """Partitions columns into buckets by value, so that only a few chunks are in memory at once.

    Yields [(positions, values) for each column].
    """
    number = 1 << max(0, (max(map(len, columns)) // CHUNK).bit_length())
    for bucket in range(number):
        result = []
        for column in columns:
            positions, kept = [np.zeros(0, np.int64)], [np.zeros(0, column.dtype)]
            for start, values in column.chunks():
                inside = np.flatnonzero((values & (number - 1)) == bucket)
                positions.append(start + inside)
                kept.append(values[inside])
            result.append((np.concatenate(positions), np.concatenate(kept)))
        yield result


def repeats(column: Column) -> tuple[np.ndarray, np.ndarray]:
    """(firsts, positions) of all repeated values: `positions` of every copy, and `firsts` of its first one; sorted by
    first copy, then by position."""
    found = [np.zeros((2, 0), np.int64)]
    for ((positions, values),) in buckets(column):
        order = np.argsort(values, kind="stable")  # np.unique with all its results takes 7 MB more
        ordered = values[order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(values) else order
        sizes = np.diff(np.append(starts, len(values)))
        repeated = np.repeat(sizes > 1, sizes)
        firsts = np.repeat(positions[order[starts]], sizes)
        found.append(np.stack([firsts[repeated], positions[order][repeated]]))
    firsts, positions = np.concatenate(found, axis=1)
    order = np.lexsort([positions, firsts])
    return firsts[order], positions[order]


def frequent(column: Column, least: int) -> dict[Any, int]:
    """{value: count} of values with at least `least` occurrences, limited to the 100,000 most frequent."""
    found: Counter = Counter()
    for ((_, values),) in buckets(column):
        names, counts = np.unique(values, return_counts=True)
        often = counts >= least
        found.update(dict(zip(names[often].tolist(), counts[often].tolist())))
    return dict(found.most_common(100_000))
