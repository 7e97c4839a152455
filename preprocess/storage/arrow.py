"""Stores examples and numbers in Arrow files, so that checks and splits need constant memory.

The files are unlinked, so they disappear however a run ends. Raw labels can have any type, so each example is stored as
JSON. Worker processes check and convert batches of examples. A split is a selection of rows.
"""

import json
import mmap
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from engine.errors import UserError
from preprocess.example import Example, file_of

BLOCK = 4000  # rows per block, or fewer if they exceed BLOCK_BYTES
BLOCK_BYTES = 1 << 21
encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass
class Batch:
    """Consecutive examples that are processed together. start: the row number of the first one."""

    start: int
    encoded: pa.Array

    def __len__(self) -> int:
        return len(self.encoded)

    def __iter__(self) -> Iterator[Example]:
        return iter(decode(self.encoded.to_pylist()))


def decode(encoded: Iterable[bytes]) -> list[Example]:
    return json.loads(b"[" + b",".join(encoded) + b"]")  # five times faster than parsing them one by one


class ArrowFile:
    """A column in an unlinked file, written array by array. Processes forked after the last write share it."""

    def __init__(self, type_of_values: pa.DataType, folder: Path | None) -> None:
        self.file, self.folder, self.type = tempfile.TemporaryFile(dir=folder), folder, type_of_values  # noqa: SIM115
        self.schema = pa.schema([("value", type_of_values)])
        self.writer = pa.ipc.new_stream(pa.PythonFile(self.file, "w"), self.schema)

    def write_array(self, *buffers: Any, size: int) -> pa.Array:
        """Writes an array of `size` values from Arrow buffers. (pa.array would import pandas, which needs 50 MB.)"""
        array = pa.Array.from_buffers(self.type, size, [None, *map(pa.py_buffer, buffers)])
        self.writer.write_batch(pa.RecordBatch.from_arrays([array], schema=self.schema))
        return array

    def close(self) -> None:
        self.file.close()

    @cached_property
    def memory(self) -> mmap.mmap:
        self.file.flush()
        return mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)

    @cached_property
    def arrays(self) -> list[pa.Array]:
        """All arrays. Do not access before the last array is written."""
        return [records.column(0) for records in pa.ipc.open_stream(pa.py_buffer(self.memory))]

    def forget(self) -> None:
        """Unmaps the pages that this process has read; they stay in the page cache."""
        if hasattr(self.memory, "madvise"):  # not on Windows
            self.memory.madvise(mmap.MADV_DONTNEED)


class Store(ArrowFile):
    """Examples that are written once, in order, and then read in any order."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(pa.binary(), folder)
        self.shapes: dict[tuple[str, ...], None] = {}  # observed tuples of keys, in order
        self.files: Counter[str] = Counter()  # {file: number of examples}
        self.waiting: list[bytes] = []  # examples not yet written
        self.num_rows = self.num_ids = self.num_bytes = self.waiting_bytes = 0

    def __len__(self) -> int:
        return self.num_rows

    def fill(self, examples: Iterable[Example]) -> Iterator[Batch]:
        """Writes examples, and yields each batch when it is full."""
        for example in tqdm(examples, desc="reading", unit=" rows", leave=False, delay=2):
            self.append(example)
            if len(self.waiting) == BLOCK or self.waiting_bytes > BLOCK_BYTES:
                yield self.write()
        if self.waiting:
            yield self.write()

    def append(self, example: Example) -> None:
        try:
            encoded = encode(example).encode("utf-8", "surrogatepass")
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"{example['_where']}: a value that JSON cannot store ({error})") from None
        self.files[file_of(example["_where"])] += 1
        self.waiting.append(encoded)
        self.waiting_bytes += len(encoded)
        self.shapes.setdefault(tuple(example))
        self.num_ids += "id" in example

    def write(self) -> Batch:
        """Writes the waiting examples as a batch."""
        offsets = np.array([0, *accumulate(map(len, self.waiting))], np.int32)
        batch = Batch(self.num_rows, self.write_array(offsets, b"".join(self.waiting), size=len(self.waiting)))
        self.num_rows, self.num_bytes = self.num_rows + len(batch), self.num_bytes + self.waiting_bytes
        self.waiting, self.waiting_bytes = [], 0
        return batch

    @cached_property
    def starts(self) -> np.ndarray:
        """The number of the first row of each batch (batches,)."""
        return np.array([0, *accumulate(map(len, self.arrays))][:-1])

    def rows_of_files(self) -> dict[str, range]:
        """Returns {file: its consecutive row numbers}."""
        sizes = self.files
        return {file: range(end - sizes[file], end) for file, end in zip(sizes, accumulate(sizes.values()))}

    def batches(self) -> Iterator[Batch]:
        """Yields all rows in their original batches."""
        for start, encoded in zip(self.starts.tolist(), self.arrays):
            yield Batch(start, encoded)
            self.forget()

    def __iter__(self) -> Iterator[Example]:
        for batch in self.batches():
            yield from batch

    def pick(self, numbers: Sequence[int] | np.ndarray) -> list[Example]:
        """Returns the examples with these row numbers. Uses pread, because every access to mapped memory would also
        load the surrounding 64 KB."""
        numbers, read = np.asarray(numbers, np.int64), partial(os.pread, self.file.fileno())
        batches = self.starts.searchsorted(numbers, "right") - 1
        at_offsets, at_examples = self.positions[batches].T
        at_offsets += 4 * (numbers - self.starts[batches])
        pairs = b"".join([read(8, position) for position in at_offsets.tolist()])
        offsets = np.frombuffer(pairs, np.int32).reshape(-1, 2)
        sizes, positions = np.diff(offsets)[:, 0], at_examples + offsets[:, 0]
        return decode([read(size, position) for size, position in zip(sizes.tolist(), positions.tolist())])

    @cached_property
    def positions(self) -> np.ndarray:
        """The file positions of the offsets and bytes of each batch (batches, 2)."""
        begin = pa.py_buffer(self.memory).address
        buffers = [encoded.buffers()[1:] for encoded in self.arrays]
        return np.array([[buffer.address - begin for buffer in of_batch] for of_batch in buffers], np.int64)

    @property
    def step(self) -> int:
        """Rows per block; fewer if they are long."""
        return max(1, min(BLOCK, BLOCK_BYTES * self.num_rows // max(1, self.num_bytes)))


class Rows(Sequence[Example]):
    """The examples of a split in their output form, plus "_where". Each access reads from the store. order: (rows,) row
    numbers in the store. form: form(numbers, examples) -> examples."""

    def __init__(
        self, store: Store, form: Callable[[list[int], list[Example]], list[Example]], order: np.ndarray
    ) -> None:
        self.store, self.form, self.order = store, form, order
        self.own_ids, self.folder, self.step = store.num_ids > 0, store.folder, store.step
        self.fields, self.no_text = getattr(form, "fields", {}), getattr(form, "no_text", False)
        self.entities: dict[str, str] = getattr(form, "entities", {})  # {relations task: task with types of entities}

    def __len__(self) -> int:
        return len(self.order)

    def pick(self, positions: slice | list[int]) -> list[Example]:
        """Returns the examples at these positions or in this slice."""
        numbers = self.order[positions].tolist()
        return self.form(numbers, self.store.pick(numbers))

    def __getitem__(self, position: Any) -> Any:
        return self.pick(position) if isinstance(position, slice) else self.pick([position])[0]

    def __iter__(self) -> Iterator[Example]:
        for start in range(0, len(self), self.step):
            yield from self.pick(slice(start, start + self.step))


def blocks_of(splits: Mapping[str, Sequence[Example]]) -> Iterator[tuple[str, int, int]]:
    """Yields (split, start, stop) for each block of {split: examples}, in order."""
    for split, rows in splits.items():
        step = step_of(rows)
        for start in range(0, len(rows), step):
            yield split, start, min(len(rows), start + step)


def step_of(rows: Sequence[Example]) -> int:
    """Returns the number of rows per block of a list or of Rows."""
    return rows.step if isinstance(rows, Rows) else BLOCK


def pick(rows: Sequence[Example], positions: list[int]) -> list[Example]:
    """Returns the examples of a list or of Rows at these positions."""
    return rows.pick(positions) if isinstance(rows, Rows) else [rows[position] for position in positions]


class Column(ArrowFile):
    """Numbers that are appended as arrays, and then read in chunks or at once."""

    def __init__(self, dtype: Any, folder: Path | None = None, values: Any = ()) -> None:
        self.dtype, self.size = np.dtype(dtype), 0
        super().__init__(pa.from_numpy_dtype(self.dtype), folder)
        self.append(np.asarray(values, dtype))

    def __len__(self) -> int:
        return self.size

    def append(self, values: np.ndarray) -> None:
        self.write_array(np.ascontiguousarray(values), size=len(values))
        self.size += len(values)

    def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (position of the first value, array)."""
        start = 0
        for array in self.arrays:
            yield start, np.frombuffer(array.buffers()[1], self.dtype, len(array))
            start += len(array)
            self.forget()

    def read(self) -> np.ndarray:
        return np.concatenate([values for _, values in self.chunks()])
