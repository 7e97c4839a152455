"""Stores examples on the disk while they are checked and split, so that memory does not grow with their number.

They are in an unnamed temporary file, so nothing remains however a run ends, in groups of a few rows. The offset of
each group is kept, so any row takes one read. The format is Python's `marshal`, three times as fast as JSON.
"""

import json
import marshal
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from engine.errors import UserError
from preprocess.storage.facts import Column, read_all

GROUP = 4  # rows per read
BLOCK = 4000  # rows that a process works on at once, a multiple of GROUP; fewer if they exceed BLOCK_BYTES
BLOCK_BYTES = 1 << 21


PLAIN = {str, int, float, bool, type(None)}


def is_plain(value):
    """Whether a value has only JSON types. marshal would write numpy scalars as bytes."""
    kind = type(value)
    if kind is list:
        return PLAIN.issuperset(map(type, value)) or all(map(is_plain, value))
    return kind in PLAIN or (kind is dict and all(map(is_plain, value.values())))


class Spool:
    """Examples that are appended in order and then read in any order; reading restores "_where"."""

    def __init__(self, folder=None):
        self.file, self.folder = tempfile.TemporaryFile(dir=folder), folder  # noqa: SIM115
        self.places, self.latest = Column(np.uint64, folder), array("Q", [0])  # group offsets; the latest
        self.shapes = {}  # {tuple of keys: its number}
        self.runs, self.heads = array("Q"), []  # first row of each run, and the text before the number in "_where"
        self.group, self.num_rows, self.num_ids, self.size = [], 0, 0, 0
        self.number = None  # row number, in its file, of the last row written

    def __len__(self):
        return self.num_rows

    def close(self):
        self.file.close()

    def append(self, example):
        where = example.pop("_where")
        try:
            if not all(map(is_plain, example.values())):
                example = json.loads(json.dumps(example))
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"{where}: a value that JSON cannot store ({error})") from None
        head, blank, number = where.rpartition(" ")
        place, before, self.number = where, self.number, None
        if blank and number.isdecimal() and number.isascii() and number[0] != "0":
            place = self.number = int(number)
            if not self.heads or head != self.heads[-1]:
                self.runs.append(self.num_rows)
                self.heads.append(head)
                before = None
        shape = self.shapes.setdefault(tuple(example), len(self.shapes))
        if shape:
            place = [place, shape]
        elif self.group and before is not None and self.number == before + 1:
            place = None  # the previous number + 1
        self.num_ids += "id" in example
        self.group.append((place, *example.values()))
        self.num_rows += 1
        if len(self.group) == GROUP:
            self.write_group()

    def write_group(self):
        self.size += self.file.write(marshal.dumps(self.group))
        self.latest.append(self.size)
        self.group = []

    def flush(self):
        self.file.flush()
        self.places.append(np.frombuffer(self.latest, np.uint64))
        self.latest = array("Q")

    def finish(self):
        """Call after the last append."""
        if self.group:
            self.write_group()
        self.flush()

    def piece(self, start, stop):
        """The rows from `start`, the first of a group, to `stop`, for another process to read."""
        if len(self.latest):
            self.flush()
        first, last = start // GROUP, -(-stop // GROUP)
        run = max(0, bisect_right(self.runs, start) - 1)
        until = bisect_right(self.runs, stop)
        places, shapes = self.places[first : last + 1], list(self.shapes)
        return Piece(
            self.file.fileno(), start, stop, first, places, shapes, self.runs[run:until], self.heads[run:until]
        )

    def all(self):
        """All rows as one piece, for processes forked from this one."""
        descriptor, shapes = self.file.fileno(), list(self.shapes)
        return Piece(descriptor, 0, self.num_rows, 0, self.places, shapes, self.runs, self.heads)

    @property
    def step(self):
        """Rows per block: fewer if they are long."""
        fit = BLOCK_BYTES * self.num_rows // max(1, self.size)
        return max(GROUP, min(BLOCK, fit) // GROUP * GROUP)

    def pieces(self):
        """Yields all rows in pieces of one block."""
        for start in range(0, self.num_rows, self.step):
            yield self.piece(start, min(self.num_rows, start + self.step))


class Piece:
    """Some rows of a Spool, read on demand."""

    def __init__(self, descriptor, start, stop, first_group, places, shapes, runs, heads):
        self.descriptor, self.start, self.stop = descriptor, start, stop
        self.first_group, self.places, self.shapes, self.runs, self.heads = first_group, places, shapes, runs, heads

    def __len__(self):
        return self.stop - self.start

    def __iter__(self):
        return self.pick(range(self.start, self.stop))

    def pick(self, numbers):
        """Yields the examples with these numbers in the spool."""
        begin = end = 0  # of the current run; below, the current group
        rows, group_read, head = (), -1, ""
        shapes = [("_where", *keys) for keys in self.shapes]
        groups = np.asarray(numbers, np.int64) // GROUP - self.first_group
        places = [self.places.take(groups + after).tolist() for after in (0, 1)]
        for number, group, start, stop in zip(numbers, groups.tolist(), *places):
            if group != group_read:
                rows, group_read = marshal.loads(read_all(self.descriptor, stop - start, start)), group
            row = rows[number % GROUP]
            where, shape = row[0], 0
            if where is None:
                where = following(rows, number % GROUP)
            elif type(where) is list:
                where, shape = where
            example = dict(zip(shapes[shape], row))
            if type(where) is int:
                if not begin <= number < end:
                    run = bisect_right(self.runs, number) - 1
                    begin, head = self.runs[run], self.heads[run]
                    end = self.runs[run + 1] if run + 1 < len(self.runs) else self.stop
                where = f"{head} {where}"
            example["_where"] = where
            yield example


def following(rows, place):
    """The number, in its file, of a row that follows the previous row of its group."""
    before = place - 1
    while rows[before][0] is None:
        before -= 1
    where = rows[before][0]
    return (where[0] if type(where) is list else where) + place - before


class Rows(Sequence):
    """The examples of a part, as they will be written, plus "_where"; each access reads them from the disk.

    order: (rows,) row numbers in the spool, an array or a Column; form(numbers, examples) -> examples
    """

    def __init__(self, spool, form, order):
        self.piece, self.form, self.order = spool.all(), form, order
        self.own_ids, self.folder, self.step = spool.num_ids > 0, spool.folder, spool.step

    def __len__(self):
        return len(self.order)

    def pick(self, places):
        """The examples at these positions, or in this slice."""
        numbers = self.order[places].tolist()
        return self.form(numbers, list(self.piece.pick(numbers)))

    def __getitem__(self, place):
        return self.pick(place) if isinstance(place, slice) else self.pick([place])[0]

    def __iter__(self):
        for start in range(0, len(self), self.step):
            yield from self.pick(slice(start, start + self.step))


def blocks_of(parts):
    """Yields (part, start, stop) of the blocks of {part: sequence of examples}, in order."""
    for part, rows in parts.items():
        step = step_of(rows)
        for start in range(0, len(rows), step):
            yield part, start, min(len(rows), start + step)


def step_of(rows):
    """Rows per block of a list or of Rows."""
    return rows.step if isinstance(rows, Rows) else BLOCK


def pick(rows, places):
    """Examples of a list or of Rows at some positions."""
    return rows.pick(places) if isinstance(rows, Rows) else [rows[place] for place in places]
