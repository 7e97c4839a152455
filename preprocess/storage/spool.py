"""Stores examples on the disk while they are checked and split, so that memory does not grow with their number.

They are in an unnamed temporary file, so nothing remains however a run ends, in groups of a few rows. The offset of
each group is kept, so any row takes one read. The format is Python's `marshal`, three times as fast as JSON.
"""

import json
import marshal
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.errors import UserError
from preprocess.example import Example
from preprocess.storage.facts import Column, read_all

GROUP = 4  # rows per read
BLOCK = 4000  # rows that a process works on at once, a multiple of GROUP; fewer if they exceed BLOCK_BYTES
BLOCK_BYTES = 1 << 21
PLAIN = {str, int, float, bool, type(None)}


def is_plain(value: Any) -> bool:
    """Whether a value has only JSON types. marshal would write numpy scalars as bytes."""
    kind = type(value)
    if kind is list:
        return PLAIN.issuperset(map(type, value)) or all(map(is_plain, value))
    return kind in PLAIN or (kind is dict and all(map(is_plain, value.values())))


class Run(NamedTuple):
    """Rows of one file: the "_where" of each is the head and a number, usually its number in the spool + shift."""

    start: int  # number of the first row in the spool
    head: str
    shift: int


class Spool:
    """Examples that are appended in order and then read in any order; reading restores "_where"."""

    def __init__(self, folder: Path | None = None) -> None:
        self.file, self.folder = tempfile.TemporaryFile(dir=folder), folder  # noqa: SIM115
        self.offsets, self.latest_offsets = Column(np.uint64, folder), array("Q", [0])  # of the groups
        self.shapes: dict[tuple[str, ...], int] = {}  # {tuple of keys: its number}
        self.runs: list[Run] = []
        self.group: list[tuple] = []
        self.num_rows = self.num_ids = self.num_bytes = 0

    def __len__(self) -> int:
        return self.num_rows

    def close(self) -> None:
        self.file.close()

    def append(self, example: Example) -> None:
        where = example.pop("_where")
        try:
            if not all(map(is_plain, example.values())):
                example = json.loads(json.dumps(example))
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"{where}: a value that JSON cannot store ({error})") from None
        head, blank, number = where.rpartition(" ")
        if blank and number.isdecimal() and number.isascii() and number[0] != "0":
            shift = int(number) - self.num_rows
            if not self.runs or head != self.runs[-1].head:
                self.runs.append(Run(self.num_rows, head, shift))
            where = None if shift == self.runs[-1].shift else int(number)
        shape = self.shapes.setdefault(tuple(example), len(self.shapes))
        self.num_ids += "id" in example
        self.group.append(((where, shape) if shape else where, *example.values()))
        self.num_rows += 1
        if len(self.group) == GROUP:
            self.write_group()

    def write_group(self) -> None:
        self.num_bytes += self.file.write(marshal.dumps(self.group))
        self.latest_offsets.append(self.num_bytes)
        self.group = []

    def flush(self) -> None:
        self.file.flush()
        self.offsets.append(np.frombuffer(self.latest_offsets, np.uint64))
        self.latest_offsets = array("Q")

    def finish(self) -> None:
        """Call after the last append."""
        if self.group:
            self.write_group()
        self.flush()

    def piece(self, start: int, stop: int) -> "Piece":
        """The rows from `start`, the first of a group, to `stop`, for another process to read."""
        if len(self.latest_offsets):
            self.flush()
        first_group, last_group = start // GROUP, -(-stop // GROUP)
        first_run, last_run = (bisect_right(self.runs, row, key=attrgetter("start")) for row in (start, stop))
        runs = self.runs[max(0, first_run - 1) : last_run]
        return Piece(self, range(start, stop), self.offsets[first_group : last_group + 1], runs)

    def all(self) -> "Piece":
        """All rows as one piece, for processes forked from this one."""
        return Piece(self, range(self.num_rows), self.offsets, self.runs)

    @property
    def step(self) -> int:
        """Rows per block: fewer if they are long."""
        fit = BLOCK_BYTES * self.num_rows // max(1, self.num_bytes)
        return max(GROUP, min(BLOCK, fit) // GROUP * GROUP)

    def pieces(self) -> Iterator["Piece"]:
        """Yields all rows in pieces of one block."""
        for start in range(0, self.num_rows, self.step):
            yield self.piece(start, min(self.num_rows, start + self.step))


class Piece:
    """Some rows of a Spool, read on demand. offsets: of their groups, and the end of the last one"""

    def __init__(self, spool: Spool, rows: range, offsets: np.ndarray | Column, runs: list[Run]) -> None:
        self.descriptor, self.shapes, self.offsets, self.runs = spool.file.fileno(), list(spool.shapes), offsets, runs
        self.start, self.stop = rows.start, rows.stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[Example]:
        return self.pick(range(self.start, self.stop))

    def pick(self, numbers: Sequence[int]) -> Iterator[Example]:
        """Yields the examples with these numbers in the spool."""
        rows: list[tuple] = []
        group_read, run, run_stop = -1, Run(0, "", 0), 0
        shapes = [("_where", *keys) for keys in self.shapes]
        groups = np.asarray(numbers, np.int64) // GROUP - self.start // GROUP
        offsets = [self.offsets.take(groups + shift).tolist() for shift in (0, 1)]
        for number, group, start, stop in zip(numbers, groups.tolist(), *offsets):
            if group != group_read:
                rows, group_read = marshal.loads(read_all(self.descriptor, stop - start, start)), group
            row = rows[number % GROUP]
            where, shape = row[0] if type(row[0]) is tuple else (row[0], 0)
            example = dict(zip(shapes[shape], row))
            if type(where) is not str:
                if not run.start <= number < run_stop:
                    after = bisect_right(self.runs, number, key=attrgetter("start"))
                    run, run_stop = (
                        self.runs[after - 1],
                        self.runs[after].start if after < len(self.runs) else self.stop,
                    )
                where = f"{run.head} {number + run.shift if where is None else where}"
            example["_where"] = where
            yield example


class Rows(Sequence[Example]):
    """The examples of a part, as they will be written, plus "_where"; each access reads them from the disk.

    order: (rows,) row numbers in the spool; form(numbers, examples) -> examples
    """

    def __init__(
        self, spool: Spool, form: Callable[[list[int], list[Example]], list[Example]], order: np.ndarray | Column
    ) -> None:
        self.piece, self.form, self.order = spool.all(), form, order
        self.own_ids, self.folder, self.step = spool.num_ids > 0, spool.folder, spool.step

    def __len__(self) -> int:
        return len(self.order)

    def pick(self, positions: slice | list[int]) -> list[Example]:
        """The examples at these positions, or in this slice."""
        numbers = self.order[positions].tolist()
        return self.form(numbers, list(self.piece.pick(numbers)))

    def __getitem__(self, position: Any) -> Any:
        return self.pick(position) if isinstance(position, slice) else self.pick([position])[0]

    def __iter__(self) -> Iterator[Example]:
        for start in range(0, len(self), self.step):
            yield from self.pick(slice(start, start + self.step))


def blocks_of(parts: Mapping[str, Sequence[Example]]) -> Iterator[tuple[str, int, int]]:
    """Yields (part, start, stop) of the blocks of {part: examples}, in order."""
    for part, rows in parts.items():
        step = step_of(rows)
        for start in range(0, len(rows), step):
            yield part, start, min(len(rows), start + step)


def step_of(rows: Sequence[Example]) -> int:
    """Rows per block of a list or of Rows."""
    return rows.step if isinstance(rows, Rows) else BLOCK


def pick(rows: Sequence[Example], positions: list[int]) -> list[Example]:
    """Examples of a list or of Rows at some positions."""
    return rows.pick(positions) if isinstance(rows, Rows) else [rows[position] for position in positions]
