"""Examples on the disk while they are examined and split: memory does not grow with them.

They lie in a file without a name, so that nothing stays behind however a run ends, in groups of a few rows. The places
of the groups are kept: any row is found with one read. Python's own `marshal` writes them: three times as fast as JSON.
"""

import json
import marshal
import os
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from engine.command_line import UserError

GROUP = 4  # rows that are read at once
BLOCK = 4000  # rows that a process works on at once; a multiple of GROUP


class Spool:
    """Examples, written one after another and then read in any order. Example number i has "_where" again."""

    def __init__(self, folder=None):
        self.file, self.folder = tempfile.TemporaryFile(dir=folder), folder  # noqa: SIM115
        self.places, self.size = array("Q", [0]), 0  # of the groups, and of the file
        self.shapes = {}  # tuples of keys: their numbers, which stand for them
        self.runs, self.heads = array("Q"), []  # from which row on which words stand before the number in "_where"
        self.group, self.num_rows, self.num_ids = [], 0, 0

    def __len__(self):
        return self.num_rows

    def close(self):
        self.file.close()

    def append(self, example):
        where = example.pop("_where")
        head, blank, number = where.rpartition(" ")
        place = where
        if blank and number.isdecimal() and number.isascii() and number[0] != "0":
            place = int(number)
            if not self.heads or head != self.heads[-1]:
                self.runs.append(self.num_rows)
                self.heads.append(head)
        keys = tuple(example)
        shape = self.shapes.setdefault(keys, len(self.shapes))
        self.num_ids += "id" in example
        self.group.append((place if shape == 0 else [place, shape], *example.values()))
        self.num_rows += 1
        if len(self.group) == GROUP:
            self.write_group(where)

    def write_group(self, where):
        try:
            data = marshal.dumps(self.group)
        except ValueError:  # of a reader's own kinds of values, such as numpy's
            try:
                data = marshal.dumps(json.loads(json.dumps(self.group)))
            except (TypeError, ValueError) as error:
                raise UserError(f"{where}, or some rows above: a value that JSON cannot hold ({error})") from None
        self.size += self.file.write(data)
        self.places.append(self.size)
        self.group = []

    def finish(self):
        """To be called when all is written."""
        if self.group:
            self.write_group("the last row")
        self.file.flush()
        self.places = np.frombuffer(self.places, np.uint64)

    def piece(self, start, stop):
        """The rows from `start`, where a group begins, to `stop`, for another process to read."""
        self.file.flush()
        first, last = start // GROUP, -(-stop // GROUP)
        run = max(0, bisect_right(self.runs, start) - 1)
        until = bisect_right(self.runs, stop)
        places = np.array(self.places[first : last + 1], np.uint64)
        shapes = list(self.shapes)
        return Piece(
            self.file.fileno(), start, stop, first, places, shapes, self.runs[run:until], self.heads[run:until]
        )

    def all(self):
        """All rows, as one piece."""
        return self.piece(0, self.num_rows)

    def pieces(self):
        """All rows in pieces of a block each."""
        for start in range(0, self.num_rows, BLOCK):
            yield self.piece(start, min(self.num_rows, start + BLOCK))


class Piece:
    """Some rows of a Spool, read when they are asked for."""

    def __init__(self, descriptor, start, stop, first_group, places, shapes, runs, heads):
        self.descriptor, self.start, self.stop = descriptor, start, stop
        self.first_group, self.places, self.shapes, self.runs, self.heads = first_group, places, shapes, runs, heads

    def __len__(self):
        return self.stop - self.start

    def __iter__(self):
        return self.pick(range(self.start, self.stop))

    def pick(self, numbers):
        """The examples of these numbers in the spool."""
        rows, group_read, begin, end, head = (), -1, 0, 0, ""  # of the group, and of the run, that were read last
        shapes = [("_where", *keys) for keys in self.shapes]
        places, first_group, descriptor, read, load = (
            self.places,
            self.first_group,
            self.descriptor,
            os.pread,
            marshal.loads,
        )
        for number in numbers:
            group = number // GROUP
            if group != group_read:
                place, stop = places[group - first_group : group - first_group + 2].tolist()
                rows, group_read = load(read(descriptor, stop - place, place)), group
            row = rows[number % GROUP]
            where, shape = row[0], 0
            if type(where) is list:
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


class Rows(Sequence):
    """The examples of a part, as they will be written and with "_where": read anew each time they are asked for.

    order: (rows,) numbers in the spool; form(numbers, examples) -> examples
    """

    def __init__(self, spool, form, order):
        self.piece, self.form, self.order = spool.all(), form, order
        self.own_ids, self.folder = spool.num_ids > 0, spool.folder

    def __len__(self):
        return len(self.order)

    def pick(self, places):
        """The examples at these places, or in this slice."""
        numbers = self.order[places].tolist()
        return self.form(numbers, list(self.piece.pick(numbers)))

    def __getitem__(self, place):
        return self.pick(place) if isinstance(place, slice) else self.pick([place])[0]

    def __iter__(self):
        for start in range(0, len(self), BLOCK):
            yield from self.pick(slice(start, start + BLOCK))


def blocks_of(parts):
    """(part, start, stop) of the blocks of {part: sequence of examples}, in order."""
    for part, rows in parts.items():
        for start in range(0, len(rows), BLOCK):
            yield part, start, min(len(rows), start + BLOCK)


def pick(rows, places):
    """Examples of a list, or of Rows, at some places."""
    return rows.pick(places) if isinstance(rows, Rows) else [rows[place] for place in places]
