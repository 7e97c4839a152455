"""Batches the texts of all requests: while the model is busy, texts of similar length are collected for the next batch.
Requests that cannot be processed in time are rejected immediately, which keeps the queue short."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from tools.serve.metrics import Metrics

COST_PER_TEXT = 40  # fixed cost of a text, in characters
Row = str | dict[str, Any]  # input of the predictor of an exported folder
Label = Callable[[list[Row]], list[Any]]


class Busy(Exception):
    """Raised if the server is overloaded. The argument is the number of seconds to wait before retrying."""


class Waiting(NamedTuple):
    row: Row
    cost: int
    prediction: asyncio.Future


def cost_of(row: Row) -> int:
    """Returns the cost of a text: its number of characters, plus one per token of a tokenized text, plus a constant."""
    values = row.values() if isinstance(row, dict) else [row]
    return COST_PER_TEXT + sum(len(one) + (sum(map(len, one)) if isinstance(one, list) else 0) for one in values)


class Batcher:
    """Batches the texts of many requests and labels them in a separate thread.

    label(rows) returns one prediction per row, or an exception for a row that cannot be labelled. seconds: maximum
    latency; requests that would take longer are rejected. most_waiting: maximum number of texts in the queue.
    """

    def __init__(self, label: Label, batch_size: int, most_waiting: int, seconds: float, metrics: Metrics) -> None:
        self.label, self.batch_size, self.most_waiting, self.seconds = label, batch_size, most_waiting, seconds
        self.metrics, self.thread = metrics, ThreadPoolExecutor(1)
        self.waiting: list[Waiting] = []
        self.running = 0  # cost of the batch that is being labelled
        self.arrived = asyncio.Event()
        self.speed = 0.0  # recent cost per second
        self.ended: float | None = None  # when the last batch ended, if the queue was not empty

    def warm_up(self, row: Row) -> None:
        """Warms up the model with a text, and measures the speed on a batch of copies of this text."""
        self.label([row])
        start = time.perf_counter()
        predictions = self.label([row] * self.batch_size)
        self.speed = self.batch_size * cost_of(row) / (time.perf_counter() - start)
        if isinstance(predictions[0], Exception):
            raise predictions[0]

    async def ask(self, rows: list[Row]) -> list[Any]:
        """Returns the predictions for the rows of a request. Raises Busy if they would take too long."""
        costs = [cost_of(row) for row in rows]
        ahead = self.running + sum(text.cost for text in self.waiting)
        expected = (ahead + sum(costs)) / self.speed
        if ahead and (expected > self.seconds / 2 or len(self.waiting) + len(rows) > self.most_waiting):
            raise Busy(expected)
        loop = asyncio.get_running_loop()
        added = [Waiting(row, cost, loop.create_future()) for row, cost in zip(rows, costs)]
        self.waiting += added
        self.metrics.waiting.inc(len(added))
        self.arrived.set()
        return await asyncio.gather(*(text.prediction for text in added))

    def next_batch(self) -> list[Waiting]:
        """Removes the oldest text and the texts of most similar length from the queue, and returns them."""
        first = self.waiting[0].cost
        nearest = sorted(range(len(self.waiting)), key=lambda i: abs(self.waiting[i].cost - first))
        chosen = set(nearest[: self.batch_size])
        batch = [text for i, text in enumerate(self.waiting) if i in chosen]
        self.waiting = [text for i, text in enumerate(self.waiting) if i not in chosen]
        self.metrics.waiting.dec(len(batch))
        return batch

    async def run(self) -> None:
        """Labels texts as they arrive. Never returns."""
        loop = asyncio.get_running_loop()
        while True:
            await self.arrived.wait()
            batch = self.next_batch()
            if not self.waiting:
                self.arrived.clear()
            self.running = sum(text.cost for text in batch)
            start = time.perf_counter()
            try:
                predictions = await loop.run_in_executor(self.thread, self.label, [text.row for text in batch])
            except Exception as error:  # raised by the model; only the requests of this batch fail
                predictions = [error] * len(batch)
            now = time.perf_counter()
            speed = self.running / (now - (self.ended or start))
            if len(batch) > self.batch_size // 4 or speed > self.speed:  # fixed costs dominate in small batches
                self.speed += 0.2 * (speed - self.speed)
            self.running, self.ended = 0, now if self.waiting else None
            self.metrics.batch_size.observe(len(batch))
            self.metrics.batch_seconds.observe(now - start)
            for text, prediction in zip(batch, predictions):
                if text.prediction.done():  # cancelled because the server is shutting down
                    continue
                if isinstance(prediction, Exception):
                    text.prediction.set_exception(prediction)
                else:
                    text.prediction.set_result(prediction)


def labeller(predictor: Callable, batch_size: int, input_error: type[Exception]) -> Label:
    """Returns the `label` function of a Batcher, which returns an InputError for each row that cannot be labelled."""

    def label(rows: list[Row]) -> list[Any]:
        try:
            return predictor(rows, batch_size)
        except input_error as error:
            if len(rows) == 1:
                return [input_error(str(error).removeprefix("row 1: "))]  # not the row number in the request
            return [prediction for row in rows for prediction in label([row])]

    return label
