"""Ragged columns in numpy and Arrow."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa


class Ragged(NamedTuple):
    """A column of variable-length rows: row i is values[offsets[i]:offsets[i + 1]]."""

    values: np.ndarray
    offsets: np.ndarray  # (rows + 1,)

    @classmethod
    def from_arrays(cls, arrays: Sequence[np.ndarray]) -> Ragged:
        """Creates a column from one-dimensional arrays of the same dtype; bools are stored as bytes."""
        lengths = np.fromiter(map(len, arrays), np.int64, len(arrays))
        values = np.concatenate(arrays)
        return cls(values.view(np.uint8) if values.dtype == bool else values, np.concatenate([[0], lengths.cumsum()]))

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int]]) -> Ragged:
        """Creates a column of whole numbers. Raises TypeError for other numbers, which would be truncated."""
        lengths = np.fromiter((len(item) for item in lists), np.int64, len(lists))
        values = np.fromiter((index(value) for item in lists for value in item), np.int32, lengths.sum())
        return cls(values, np.concatenate([[0], lengths.cumsum()]))

    def pick(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the values of rows, one row after another, and the length of each."""
        starts, lengths = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        begins = np.cumsum(lengths) - lengths
        return self.values[np.repeat(starts - begins, lengths) + np.arange(lengths.sum())], lengths

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def pad(self, rows: np.ndarray, fill: int, multiple: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Pads rows to the longest one, rounded up to `multiple` -> (values, mask of real values), both (B, W)."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        columns = np.arange(-(-lengths.max(initial=0) // multiple) * multiple)
        mask = columns < lengths[:, None]
        positions = np.where(mask, starts[:, None] + columns, 0)
        return np.where(mask, self.values[positions], fill).astype(np.int64), mask


def to_arrow(column: Ragged | np.ndarray) -> pa.Array:
    if isinstance(column, Ragged):
        return pa.ListArray.from_arrays(pa.array(column.offsets, pa.int32()), pa.array(column.values))
    return pa.array(column)


def to_numpy(column: pa.ChunkedArray) -> Any:
    """Converts an Arrow column to a Ragged or an array."""
    if not pa.types.is_list(column.type):
        return column.to_numpy()
    chunks = column.chunks
    lengths = np.concatenate([chunk.value_lengths().to_numpy() for chunk in chunks])
    return Ragged(
        np.concatenate([chunk.flatten().to_numpy() for chunk in chunks]),
        np.concatenate([[0], lengths.cumsum(dtype=np.int64)]),
    )
