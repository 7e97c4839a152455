"""Ragged columns, in numpy and Arrow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa


class Ragged(NamedTuple):
    """A column whose rows vary in length: row i is values[offsets[i]:offsets[i + 1]]."""

    values: np.ndarray
    offsets: np.ndarray  # (rows + 1,)

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int]]) -> Ragged:
        lengths = np.fromiter((len(item) for item in lists), np.int64, len(lists))
        values = np.fromiter((value for item in lists for value in item), np.int32, lengths.sum())
        return cls(values, np.concatenate([[0], lengths.cumsum()]))

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def pad(self, rows: np.ndarray, fill: int, multiple: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """(B, W) of the rows, padded to the longest (or a multiple), and the (B, W) mask of real values."""
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
    """Arrow column -> Ragged or array."""
    if not pa.types.is_list(column.type):
        return column.to_numpy()
    chunks = column.chunks
    lengths = np.concatenate([chunk.value_lengths().to_numpy() for chunk in chunks])
    return Ragged(
        np.concatenate([chunk.flatten().to_numpy() for chunk in chunks]),
        np.concatenate([[0], lengths.cumsum(dtype=np.int64)]),
    )
