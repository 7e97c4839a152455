"""Collects the predictions of the heads during inference and merges the windows of each text."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from engine.data.windows import merge_spans, merge_windows
from engine.model.temperature import MAX_TEXTS, Sample, fit_temperature, fit_temperature_on_spans
from engine.run import distributed
from engine.task.tags import names_entities, outside_id
from engine.task.task import Task
from engine.task.words import word_probabilities

Averages = Literal["none", "texts", "all"]


class Prediction(NamedTuple):
    """A prediction for one text: with ids, as returned by a head's `decode`, until `named` inserts label names."""

    label: Any  # a label, a list of tags, or a list of spans
    probability: Any
    average: Any = None  # the output that ensembles average, if requested (see `to_average` of the distributions)
    untempered: Any = None  # if requested, at temperature 1: the probability or, for text-level labels, `average`


class Predictions(NamedTuple):
    """Predictions for a dataset: each field of Prediction as {task: list with one entry per example}."""

    labels: dict[str, list[Any]]
    probabilities: dict[str, list[Any]]
    averages: dict[str, list[Any]]
    untempered: dict[str, list[Any]]

    @classmethod
    def from_tasks(cls, tasks: dict[str, list[Prediction]]) -> "Predictions":
        """Converts {task: list with one Prediction per example}."""
        fields = range(len(Prediction._fields))
        return cls(*({name: [row[field] for row in rows] for name, rows in tasks.items()} for field in fields))


class Piece(NamedTuple):
    """The prediction for one row of a dataset: a whole text or a window of words."""

    prediction: Prediction
    first: int = 0  # index of the window's first word in the text
    size: int = 1  # number of words


class PredictionCollector:
    """Collects the predictions of all heads for the rows of a MyDataset.

    calibrate: store the logits of the heads that need calibration, and decode them afterwards. Span heads are
    calibrated on their merged candidate spans instead.
    keep_averages: the tasks whose `average` is stored; "texts": tasks with text-level labels, whose averages are small.
    "texts" also adds `untempered`.
    temper: with `calibrate`, also fit the temperatures of the heads, on at most MAX_TEXTS evenly spaced texts.
    """

    def __init__(
        self, heads: Any, data: Any, calibrate: bool = False, keep_averages: Averages = "none", temper: bool = False
    ):
        options = calibrate, keep_averages, temper
        self.collectors = {name: collector_for(head)(name, head, data, *options) for name, head in heads.items()}

    def add(self, batch: Any, logits: dict[str, torch.Tensor]) -> None:
        for name, task_logits in logits.items():
            self.collectors[name].add(batch, task_logits)

    def gather(self) -> None:
        """Gathers the predictions of all processes."""
        if distributed.size() > 1:
            for collector in self.collectors.values():
                collector.gather()

    def finish(self) -> Predictions:
        """Calibrates the heads if requested. Returns the merged predictions."""
        return Predictions.from_tasks({name: collector.finish() for name, collector in self.collectors.items()})


class TextCollector:
    """Collects one label, label set or number per text. Arguments: see PredictionCollector."""

    averages_kept: tuple[str, ...] = ("texts", "all")

    def __init__(self, name: str, head: Any, data: Any, calibrate: bool, keep_averages: Averages, temper: bool):
        self.name, self.head, self.data = name, head, data
        self.calibrate, self.temper = calibrate and head.needs_calibration, calibrate and temper
        self.keep_average, self.add_untempered = keep_averages in self.averages_kept, keep_averages == "texts"
        self.sample_every = -(-len(data) // MAX_TEXTS) or 1  # the temperature is fitted on every n-th example
        self.samples: list[Sample] = []
        self.pending: list[Any] = []  # (batch, logits), to be decoded after calibration
        self.pieces: list[list[Piece]] = [[] for _ in range(len(data))]

    def add(self, batch: Any, logits: torch.Tensor) -> None:
        if self.temper:
            is_sampled = self.data.example_index[batch.rows.numpy(force=True)] % self.sample_every == 0
            chosen = [i for i, row in enumerate(batch.rows.tolist()) if is_sampled[i] and self.is_used(row)]
            inputs = {key: values[chosen] for key, values in batch.inputs.items()}
            self.samples.append(Sample(logits[chosen], batch.labels[self.name][chosen], inputs))
        if self.calibrate:
            self.pending.append((batch, logits))
        else:
            self.store(batch, logits)

    def is_used(self, row: int) -> bool:
        """Returns whether a row of the dataset has a prediction: text-level labels are read from the first window."""
        return bool(self.data.is_first(row))

    def store(self, batch: Any, logits: torch.Tensor) -> None:
        """Decodes a batch and stores a Piece for each row."""
        for row, *values in zip(batch.rows.tolist(), *self.decode(batch, logits)):
            if self.is_used(row):
                self.pieces[self.data.example_index[row]].append(self.piece(row, Prediction(*values)))

    def decode(self, batch: Any, logits: torch.Tensor) -> tuple[Iterable[Any], ...]:
        """Decodes a batch. Returns the fields of Prediction, each with one entry per row."""
        labels, probabilities = self.head.distribution.decode(logits, batch.inputs)
        averages = self.head.distribution.to_average(logits).cpu() if self.keep_average else [None] * len(logits)
        return labels.tolist(), probabilities.tolist(), averages

    def piece(self, row: int, prediction: Prediction) -> Piece:
        return Piece(prediction)

    def gather(self) -> None:
        """Gathers the predictions of all processes."""
        device = self.head.temperature.device
        samples = distributed.gather_in_turn([sample.to("cpu") for sample in self.samples])
        self.samples = [sample.to(device) for sample in samples]
        pending = distributed.gather_in_turn([(batch.to("cpu"), logits.cpu()) for batch, logits in self.pending])
        self.pending = [(batch.to(device), logits.to(device)) for batch, logits in pending]
        own = {example: pieces for example, pieces in enumerate(self.pieces) if pieces}
        self.pieces = [[] for _ in self.pieces]
        for collected in distributed.gather(own):
            for example, pieces in collected.items():
                self.pieces[example] += pieces

    def finish(self) -> list[Prediction]:
        """Calibrates the head if requested. Returns one prediction per example."""
        if self.calibrate:
            labels = torch.cat([batch.labels[self.name] for batch, _ in self.pending])
            self.head.calibrate(torch.cat([logits for _, logits in self.pending]), labels)
        if self.temper:
            fit_temperature(self.head, self.samples)
        for batch, logits in self.pending:
            self.store(batch, logits)
        return [self.named(self.merge(example)) for example in range(len(self.data))]

    def merge(self, example: int) -> Prediction:
        """Merges the rows of an example."""
        return self.pieces[example][0].prediction

    def named(self, prediction: Prediction) -> Prediction:
        """Replaces ids by label names, and adds the values at temperature 1."""
        label, probability = self.head.to_labels(*prediction[:2])
        average, untempered = prediction.average, None
        if self.add_untempered and average is not None and self.head.distribution.has_temperature:
            average, untempered = self.head.distribution.tempered_average(average), average
        return Prediction(label, probability, average, untempered)


class WordCollector(TextCollector):
    """Collects one tag per word. Truncated words are tagged O."""

    averages_kept = ("all",)

    def is_used(self, row: int) -> bool:
        return True

    @cached_property
    def num_words(self) -> np.ndarray:
        """The number of words of each row."""
        return self.data.columns["word_starts"].lengths

    def window(self, row: int) -> tuple[int, int]:
        """Returns (index of the first word, number of words) of a row."""
        return int(self.data.columns["first_word"][row]), int(self.num_words[row])

    def decode(self, batch: Any, logits: torch.Tensor) -> tuple[Iterable[Any], ...]:
        columns = super().decode(batch, logits)
        if not self.add_untempered:
            return columns
        with temperature_of_one(self.head):
            return *columns, self.head.distribution.decode(logits, batch.inputs)[1].tolist()

    def piece(self, row: int, prediction: Prediction) -> Piece:
        first, size = self.window(row)
        return Piece(Prediction(*(None if values is None else values[:size] for values in prediction)), first, size)

    def merge(self, example: int) -> Prediction:
        pieces = self.pieces[example]
        firsts, columns = [piece.first for piece in pieces], zip(*(piece.prediction for piece in pieces))
        merged = Prediction(*(None if column[0] is None else merge_windows(zip(firsts, column)) for column in columns))
        if merged.average is not None:
            merged = merged._replace(average=torch.stack(merged.average))
        if len(pieces) > 1:
            return merged
        num_words = int(self.data.columns["num_words"][self.data.first_rows[example]])
        return tag_truncated_words(merged, num_words, self.head.task)

    def named(self, prediction: Prediction) -> Prediction:
        tags, probability = self.head.to_labels(*prediction[:2])
        probabilities, untempered = (
            word_probabilities(tags, p, names_entities(self.head.task)) for p in (probability, prediction.untempered)
        )
        return Prediction(tags, probabilities, prediction.average, untempered)


class SpanCollector(WordCollector):
    """Collects a list of spans, relations or events per text."""

    def add(self, batch: Any, logits: torch.Tensor) -> None:
        self.store(batch, logits)

    def decode(self, batch: Any, logits: torch.Tensor) -> tuple[Iterable[Any], ...]:
        return self.head.distribution.decode(logits, batch.inputs)

    def piece(self, row: int, prediction: Prediction) -> Piece:
        return Piece(prediction, *self.window(row))

    def finish(self) -> list[Prediction]:
        merged = [self.merge(example) for example in range(len(self.data))]
        if self.calibrate:
            found = [prediction[:2] for prediction in merged]
            gold = [self.data[example][self.name] for example in range(len(self.data))]
            self.head.calibrate(found, gold)
            if self.temper:
                fit_temperature_on_spans(self.head, found, gold)
        return [self.named(prediction) for prediction in merged]

    def merge(self, example: int) -> Prediction:
        pieces = self.pieces[example]
        spans = merge_spans([(piece.first, piece.size, *piece.prediction[:2]) for piece in pieces])
        return Prediction(*spans, average=spans if self.keep_average else None)

    def named(self, prediction: Prediction) -> Prediction:
        spans, untempered = self.head.to_labels(*prediction[:2])
        probabilities = self.head.distribution.at_temperature(untempered, float(self.head.temperature))
        return Prediction(spans, probabilities, prediction.average, untempered)


def collector_for(head: Any) -> type[TextCollector]:
    """Returns the class of the collector for a head's level of labels."""
    return SpanCollector if head.finds_spans else WordCollector if head.by_words else TextCollector


@contextmanager
def temperature_of_one(head: Any) -> Iterator[None]:
    """Context manager that temporarily sets a head's temperature to 1."""
    fitted, head.temperature = head.temperature, torch.ones_like(head.temperature)
    try:
        yield
    finally:
        head.temperature = fitted


def tag_truncated_words(prediction: Prediction, num_words: int, task: Task) -> Prediction:
    """Appends O with probability 0 for the truncated words at the end of a text."""
    missing = num_words - len(prediction.label)
    zeros = [0.0] * missing
    return prediction._replace(
        label=prediction.label + [outside_id(task)] * missing,
        probability=prediction.probability + zeros,
        untempered=None if prediction.untempered is None else prediction.untempered + zeros,
    )
