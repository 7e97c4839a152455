"""Batches of rows of similar length, in an order that depends only on (seed, epoch)."""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from engine.run import distributed


def length_batches(
    lengths: np.ndarray, rows: np.ndarray, batch_size: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Splits shuffled rows into batches of similar length, in random order. Ties keep their shuffled order."""
    ordered = rows[np.argsort(lengths[rows], kind="stable")]
    batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


class LengthSampler:
    """Yields the row numbers of each batch: with a seed, of similar length, reshuffled per epoch; else longest first.

    Rows from index `labelled` on are unlabelled: an epoch uses `ratio` of them per labelled row and continues where the
    previous one ended. With several processes, each gets a share of every batch; without a seed, whole batches.
    """

    POOL = 256  # batches per sorted pool: little padding, and still random

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        seed: int | None = None,
        labelled: int | None = None,
        ratio: float = 0.0,
    ):
        self.lengths, self.seed, self.epoch, self.start = lengths, seed, 0, 0
        self.labelled = len(lengths) if labelled is None else labelled
        self.unlabelled = round(ratio * self.labelled) if self.labelled < len(lengths) else 0  # per epoch
        self.batch_size = batch_size * (1 if seed is None else distributed.size())

    def __len__(self) -> int:
        rows = len(self.lengths) if self.seed is None else self.labelled + self.unlabelled
        starts = range(0, rows, self.batch_size)
        return len(distributed.share(starts) if self.seed is None else starts)

    def __iter__(self) -> Iterator[Any]:
        if self.seed is None:
            order = np.argsort(-self.lengths, kind="stable")
            batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
            return iter(distributed.share(batches))
        rng = np.random.default_rng([self.seed, self.epoch])
        rows = self.rows_of_epoch()
        rows = rows[rng.permutation(len(rows))]
        pool = self.POOL * self.batch_size
        batches = [
            batch
            for i in range(0, len(rows), pool)
            for batch in length_batches(self.lengths, rows[i : i + pool], self.batch_size, rng)
        ]
        return map(distributed.share, batches[self.start :])

    def rows_of_epoch(self) -> np.ndarray:
        """Returns all labelled rows and this epoch's share of the unlabelled ones."""
        rows = np.arange(self.labelled)
        if not self.unlabelled:
            return rows
        order = self.labelled + np.random.default_rng([cast(int, self.seed)]).permutation(
            len(self.lengths) - self.labelled
        )
        return np.concatenate([rows, order[(self.epoch * self.unlabelled + np.arange(self.unlabelled)) % len(order)]])
