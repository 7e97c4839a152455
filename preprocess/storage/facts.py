"""Statistics that are collected per block of rows and merged: counts, first rows, and columns of values on the disk."""

import os
import tempfile
from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np

MOST_ROWS = 2000  # rows kept of each finding; the others are only counted
CHUNK = 1 << 18  # values of a column that are in memory at once


class Sample(list):
    """The first rows of many; `number` is the count of all."""

    most = MOST_ROWS

    def __init__(self, rows=()):
        super().__init__(rows[:MOST_ROWS])
        self.number = getattr(rows, "number", len(rows))

    @property
    def is_full(self):
        return len(self) >= MOST_ROWS

    def add(self, row):
        self.number += 1
        if len(self) < MOST_ROWS:
            self.append(row)

    def merge(self, other):
        self.number += getattr(other, "number", len(other))
        self += other[: MOST_ROWS - len(self)]

    def __reduce__(self):  # pickle would call `append` before `number` is set
        return restored, (list(self), self.number)


def restored(rows, number):
    sample = Sample(rows)
    sample.number = number
    return sample


class Note(NamedTuple):
    what: str
    rows: list  # of "FILE, row N", possibly with ": detail"; a Sample if there may be many
    advice: str

    @property
    def number(self):
        return getattr(self.rows, "number", len(self.rows))


class Found:
    """What was found in a block, under names chosen by each check; the results of all blocks are merged in order."""

    def __init__(self, folder=None):
        self.folder = folder  # for the columns
        self.rows = defaultdict(Sample)  # rows of each finding
        self.counts = defaultdict(Counter)
        self.first = defaultdict(dict)  # {value: its first row}
        self.columns = {}  # up to one value per row: an array for one block, a Column for all blocks

    def merge(self, later):
        """Adds what was found in the rows that follow."""
        for name, sample in later.rows.items():
            self.rows[name].merge(sample)
        for name, counts in later.counts.items():
            self.counts[name].update(counts)
        for name, first in later.first.items():
            merged(self.first[name], first)
        for name, values in later.columns.items():
            if name not in self.columns:
                self.columns[name] = Column(values.dtype, self.folder)
            self.columns[name].append(values)


def merged(first, later):
    """The first dict, extended by the keys that only the second has."""
    for key, value in later.items():
        first.setdefault(key, value)
    return first


class Column:
    """An array on the disk, in an unnamed temporary file: written in order, readable from any process."""

    def __init__(self, dtype, folder=None, values=()):
        self.file, self.dtype, self.size = tempfile.TemporaryFile(dir=folder), np.dtype(dtype), 0  # noqa: SIM115
        self.append(np.asarray(values, dtype))

    def __len__(self):
        return self.size

    def append(self, values):
        self.file.write(np.ascontiguousarray(values))
        self.file.flush()
        self.size += len(values)

    def read(self, start=0, stop=None):
        stop, width = self.size if stop is None else min(stop, self.size), self.dtype.itemsize
        return np.frombuffer(read_all(self.file.fileno(), (stop - start) * width, start * width), self.dtype)

    def __getitem__(self, places):
        """The values of a slice without a step, or at a list of positions."""
        if isinstance(places, slice):
            start, stop, _ = places.indices(self.size)
            return self.read(start, stop)
        return self.take(np.array([range(self.size)[place] for place in places], np.int64))  # also negative ones

    def take(self, places):
        """The values at an array of positions: one by one if they are few, otherwise in one pass over the column."""
        if self.size > 1000 * len(places):
            return np.concatenate([self.read(place, place + 1) for place in places.tolist()] or [self.read(0, 0)])
        result = np.empty(len(places), self.dtype)
        for start, values in self.chunks():
            inside = (places >= start) & (places < start + len(values))
            result[inside] = values[places[inside] - start]
        return result

    def chunks(self):
        """Yields (position of the first value, array)."""
        for start in range(0, self.size, CHUNK):
            yield start, self.read(start, start + CHUNK)


def read_all(descriptor, size, start):
    """`size` bytes of a file, in several reads if needed: one read returns at most 2 GB."""
    data = os.pread(descriptor, size, start)
    while len(data) < size:
        data += os.pread(descriptor, size - len(data), start + len(data))
    return data


def hashes(values):
    """(N,) 64-bit hashes of hashable values: equal values have equal hashes; two others collide once in 2**64."""
    return np.fromiter(map(hash, values), np.int64, len(values))


def buckets(*columns):
    """Partitions columns into buckets by value, so that only a few chunks are in memory at once.

    Yields [(positions, values) for each column].
    """
    number = 1 << max(0, (max(map(len, columns)) // CHUNK).bit_length())
    for bucket in range(number):
        result = []
        for column in columns:
            places, kept = [np.zeros(0, np.int64)], [np.zeros(0, column.dtype)]
            for start, values in column.chunks():
                inside = np.flatnonzero((values & (number - 1)) == bucket)
                places.append(start + inside)
                kept.append(values[inside])
            result.append((np.concatenate(places), np.concatenate(kept)))
        yield result


def repeats(column):
    """(firsts, positions) of all values that occur more than once: the position of each, and of its first copy; sorted
    by first copy, then by position."""
    found = [np.zeros((2, 0), np.int64)]
    for ((places, values),) in buckets(column):
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(values) else order
        sizes = np.diff(np.append(begins, len(values)))
        inside = np.repeat(sizes > 1, sizes)
        firsts = np.repeat(places[order[begins]], sizes)
        found.append(np.stack([firsts[inside], places[order][inside]]))
    firsts, places = np.concatenate(found, axis=1)
    order = np.lexsort([places, firsts])
    return firsts[order], places[order]


def frequent(column, least):
    """{value: count} of the values that occur at least `least` times, limited to the 100,000 most frequent."""
    found = Counter()
    for ((_, values),) in buckets(column):
        names, counts = np.unique(values, return_counts=True)
        often = counts >= least
        found.update(dict(zip(names[often].tolist(), counts[often].tolist())))
    return dict(found.most_common(100_000))
