"""Predictions of teachers for the training texts, cached on disk and passed to the heads of a student.

The student's loss is linear in the expected statistics of the teacher's distribution: probabilities of labels or, for a
CRF, of tags and tag pairs. Only these and the entropy are stored. Most values are close to zero, so they are stored
sparsely, as (word, id, value). Words are identified by their index in the text, so tokenizers may differ.

Probabilities of tag pairs would need too much space, so they are computed: p(tag i at word t - 1, tag j at word t) =
p(j at t) * p(i | j), where

    p(i | j) = before[t - 1, i] * factors[i, j] / sum_k before[t - 1, k] * factors[k, j]

`factors` is the teacher's exp(transitions), shared by all words. `before` is the forward distribution, i.e. the
distribution of a word's tag if the text ended at that word. Without a CRF, `factors` is 1 and `before` contains the
teacher's probabilities.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from safetensors import safe_open
from tqdm import tqdm

from engine.data.token_cache import cached_table
from engine.data.windows import merge_windows
from engine.model.encoders import overflows
from engine.predict.predictions import prepare_inputs
from engine.run import distributed
from engine.run.atomic import sha256
from engine.run.device import can_pin
from engine.run.run_folder import weights_file

CHUNK = 1024  # number of texts per record batch
VERSION = 4  # version of the cache format, to be incremented when the format changes
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
EMPTY = np.zeros(0, np.int32)


class Sparse(NamedTuple):
    """A sparse array with one row per word, ordered by word."""

    words: np.ndarray
    ids: np.ndarray  # ids of labels or tags; for two words, (second word - first word) * types + type id
    values: np.ndarray

    def within(self, first: int, stop: int) -> "Sparse":
        """Returns the values of words first to stop (exclusive), with word indices relative to `first`."""
        inside = slice(*np.searchsorted(self.words, [first, stop]))
        return Sparse(self.words[inside] - first, self.ids[inside], self.values[inside])

    def where(self, chosen: np.ndarray) -> "Sparse":
        return Sparse(*(column[chosen] for column in self))


class Statistics(NamedTuple):
    """The stored statistics of a teacher's prediction for one text."""

    statistics: Sparse
    before: Sparse  # empty if the head does not use tag pairs
    entropies: np.ndarray  # per word

    def columns(self) -> dict[str, np.ndarray]:
        """Returns the arrays as {name in COLUMNS: array}."""
        return dict(zip(COLUMNS, (*self.statistics, *self.before, self.entropies)))

    @classmethod
    def of_columns(cls, columns: Mapping[str, np.ndarray]) -> "Statistics":
        statistics, before = (Sparse(*(columns[f"{side}.{name}"] for name in Sparse._fields)) for side in SPARSE)
        return cls(statistics, before, columns["entropies"])


SPARSE = ("statistics", "before")
COLUMNS = (*(f"{side}.{name}" for side in SPARSE for name in Sparse._fields), "entropies")  # as cached


class SoftTargets(NamedTuple):
    """The predictions of all teachers for one task and the rows of a batch. W is 1 for text-level labels."""

    values: torch.Tensor  # (N,), divided by the number of teachers
    positions: torch.Tensor  # (4, N): teachers, rows, words, ids
    before_values: torch.Tensor  # (M,); empty if the head does not use tag pairs
    before_positions: torch.Tensor
    factors: torch.Tensor  # (teachers, C, C)
    taught: torch.Tensor  # (B, W), fraction of the teachers with a prediction
    entropies: torch.Tensor  # (B, W), mean over the teachers

    def to(self, device: torch.device) -> "SoftTargets":
        return SoftTargets(*(tensor.to(device, non_blocking=can_pin(device.type)) for tensor in self))

    def pairs(self, num_tags: int) -> list[torch.Tensor]:
        """Returns (p(tag) of each word / number of teachers, `before`) as dense tensors, each (teachers, B, W, C)."""
        shape = len(self.factors), *self.taught.shape, num_tags
        both = (self.values, self.positions), (self.before_values, self.before_positions)
        return [torch.zeros(shape, device=values.device).index_put(tuple(at), values) for values, at in both]

    def of_rows(self, part: slice) -> "SoftTargets":
        """Returns the targets of some rows of the batch, renumbered from 0. Only for heads without tag pairs."""
        chosen = (self.positions[1] >= part.start) & (self.positions[1] < part.stop)
        positions = self.positions[:, chosen] - torch.tensor([0, part.start, 0, 0], device=chosen.device).unsqueeze(1)
        own = dict(values=self.values[chosen], positions=positions)
        return self._replace(**own, taught=self.taught[part], entropies=self.entropies[part])

    def whole(self, mask: torch.Tensor) -> torch.Tensor:
        """Returns the mask of texts that all teachers predicted completely, (B,). mask: (B, W), True for real words"""
        return (self.taught > mask.float() - 1e-4).all(1) & mask.any(1)


# ---- the teachers ----------------------------------------------------------------------------------------------------


class Teacher:
    """A teacher and its predictions for a training set, which are memory-mapped. Row i belongs to example i.

    folder: the teacher's checkpoint; heads: {task: head} of the student, which determine if tag pairs are needed.
    """

    def __init__(self, folder: Path, heads: Any, tasks: list[str], temperature: float):
        self.folder, self.tasks, self.temperature = folder, tasks, temperature
        self.heads = {name: heads[name] for name in tasks}
        self.sha256 = sha256(folder / "manifest.json")  # the manifest contains the checksums of all files

    def predict(
        self, data: Any, load: Callable[[], Any], precision: str, device: torch.device, batches_of: Callable[..., Any]
    ) -> None:
        """Loads the predictions from the cache, or computes them. data: a training set of data_loader.py.

        load() -> (model, featurizer, its options); batches_of(examples, featurizer) -> a MyDataLoader.
        """
        pairs = sorted(name for name, head in self.heads.items() if head.distribution.wants_pairs)
        # Predictions for a list of examples are not cached
        source = None if data.cache is None else data.source_fingerprint()
        scales = [(head.task.mean, head.task.std) for head in self.heads.values()]
        depends = [VERSION, self.sha256, source, self.temperature, self.tasks, scales, pairs, precision]
        name = f"teacher-{hashlib.sha256(repr(depends).encode()).hexdigest()[:20]}"

        def compute() -> Iterator[pa.RecordBatch]:
            model, featurizer, _ = load()
            dtype = None if overflows(model.encoder) else DTYPES[precision]
            model = model.to(device).eval()
            examples: Iterator[dict[str, Any]] = map(dict, data.examples())
            examples = prepare_inputs(examples, featurizer.tasks, f"--teacher {self.folder}")
            with tqdm(desc=f"teacher {self.folder}", unit=" texts", total=len(data), leave=False, delay=2) as bar:
                while chunk := list(islice(examples, CHUNK)):
                    yield self.run_model(model, batches_of(chunk, featurizer), device, dtype)
                    bar.update(len(chunk))

        with distributed.first_of_node():
            table = cached_table(data.cache, name, compute) if source else pa.Table.from_batches(list(compute()))
        self.columns = {name: [lists_of(chunk) for chunk in table[name].chunks] for name in table.column_names}
        self.factors = {name: self.factors_of(name, self.heads[name]) for name in pairs}

    def factors_of(self, name: str, head: Any) -> torch.Tensor:
        """Returns exp(transitions / temperature) of the teacher's CRF up to a constant, (C, C); ones without a CRF."""
        with safe_open(weights_file(self.folder), "pt") as file:
            key = f"output_layer.heads.{name}.crf.transitions"
            if key not in set(file.keys()):
                return torch.ones(len(head.task.labels), len(head.task.labels))
            transitions = file.get_tensor(key).float() / self.temperature
        return (transitions - transitions.max()).exp()

    @torch.inference_mode()
    def run_model(self, model: Any, loader: Any, device: torch.device, dtype: torch.dtype | None) -> pa.RecordBatch:
        """Runs the teacher on a MyDataLoader. The record batch has one row per example."""
        data = loader.dataset
        windows: dict[tuple[str, int], list[tuple[int, Statistics]]] = {}  # {(task, example): [(first word, …)]}
        for batch in loader:
            inputs = batch.to(device).inputs
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                logits = model(inputs).logits
            for name, student in self.heads.items():
                head = model.output_layer.heads[name]
                scaled = rescale_regression(head, student, logits[name])
                pairs = student.distribution.wants_pairs
                parts = head.distribution.teach_parts(scaled, inputs, self.temperature, pairs)
                rows = [statistics for own, stored in parts for statistics in sparse_rows(head, stored, own)]
                for row, statistics in zip(batch.rows.tolist(), rows):
                    if head.by_words:
                        first = int(data.columns["first_word"][row])
                        windows.setdefault((name, int(data.example_index[row])), []).append((first, statistics))
                    elif data.is_first(row):
                        windows[name, int(data.example_index[row])] = [(0, statistics)]
        arrays = {}
        for name in self.heads:
            merged = [merge(windows[name, example]).columns() for example in range(len(data))]
            for column in COLUMNS:
                kind = pa.float32() if column.endswith(("values", "entropies")) else pa.int32()
                arrays[f"{name}.{column}"] = pa.array([columns[column] for columns in merged], pa.list_(kind))
        return pa.RecordBatch.from_pydict(arrays)

    def find(self, task: str, example: int, first: int, size: int) -> Statistics:
        """Returns the statistics of `size` words of an example, with word indices relative to `first`."""
        chunk, row = divmod(example, CHUNK)
        cells = {}
        for column in COLUMNS:
            offsets, values = self.columns[f"{task}.{column}"][chunk]
            cells[column] = values[offsets[row] : offsets[row + 1]]
        found = Statistics.of_columns(cells)
        stop = first + size
        statistics = found.statistics.within(first, stop)
        if stride := self.heads[task].distribution.stride:  # drop pairs of words with a word outside this range
            second = statistics.words + statistics.ids // stride
            statistics = statistics.where((second >= 0) & (second < size))
        return Statistics(statistics, found.before.within(first, stop), found.entropies[first:stop])


def lists_of(chunk: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (offsets, values) of an Arrow list array without copying them."""
    return chunk.offsets.to_numpy(), chunk.values.to_numpy()


def rescale_regression(head: Any, student: Any, logits: torch.Tensor) -> torch.Tensor:
    """Converts a teacher's regression logits to the student's mean and std. Returns other logits unchanged."""
    own, other = student.task, head.task
    return logits if own.kind != "regression" else (logits * other.std + other.mean - own.mean) / own.std


def sparse_rows(
    head: Any, stored: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None], inputs: dict[str, torch.Tensor]
) -> list[Statistics]:
    """Returns the Statistics of each row of a batch. stored: the output of `teach` of the head's distribution"""
    statistics, entropies, before = stored
    mask = inputs["word_mask"] if head.by_words else torch.ones_like(entropies, dtype=torch.bool)
    smallest, stride = head.distribution.smallest, head.distribution.stride
    statistics_by_row = by_row(statistics, smallest, mask, stride)
    before_by_row = [Sparse(EMPTY, EMPTY, EMPTY)] * len(mask) if before is None else by_row(before, smallest, mask, 0)
    entropies_by_row = [h[:size] for h, size in zip(entropies.cpu().numpy(), mask.sum(1).tolist())]
    return [Statistics(*row) for row in zip(statistics_by_row, before_by_row, entropies_by_row)]


def by_row(values: torch.Tensor, smallest: float, mask: torch.Tensor, stride: int) -> list[Sparse]:
    """Converts values (B, W, N) to one Sparse per row, with the values above `smallest`. Ids start at word * stride."""
    large = (values.abs() > smallest) & mask.unsqueeze(2)
    rows, words, ids = large.nonzero().cpu().numpy().T
    boundaries = np.searchsorted(rows, np.arange(1, len(values)))
    columns = words, ids - words * stride, values[large].float().cpu().numpy()
    return [Sparse(*row) for row in zip(*(np.split(column, boundaries) for column in columns))]


def merge(windows: list[tuple[int, Statistics]]) -> Statistics:
    """Merges the statistics of the windows of a text, [(first word, Statistics)]. A word in two windows is taken from
    the window whose edge is farther away."""
    if len(windows) == 1:
        return windows[0][1]
    windows = sorted(windows, key=lambda window: window[0])
    numbers = [(first, [number] * len(window.entropies)) for number, (first, window) in enumerate(windows)]
    owner = np.array(merge_windows(numbers))
    columns: list[dict[str, np.ndarray]] = []
    for number, (first, window) in enumerate(windows):
        owned = owner[first : first + len(window.entropies)] == number
        statistics, before = (sparse.where(owned[sparse.words]) for sparse in (window.statistics, window.before))
        statistics, before = (sparse._replace(words=sparse.words + first) for sparse in (statistics, before))
        columns.append(Statistics(statistics, before, window.entropies[owned]).columns())
    return Statistics.of_columns({name: np.concatenate([column[name] for column in columns]) for name in COLUMNS})


# ---- the student -----------------------------------------------------------------------------------------------------


class Windows:
    """Maps the rows of a training set to examples and words. data: a dataset of data_loader.py"""

    def __init__(self, data: Any):
        columns = getattr(data, "columns", {})
        self.example, self.first = columns.get("example_index"), columns.get("first_word")

    def of(self, batch: Any, by_words: bool) -> list[tuple[int, int, int] | None]:
        """Returns [(example, first word, number of words)] for the rows of a batch. For text-level labels, it is None
        except for the first window of a text."""
        rows = batch.rows.numpy()
        examples = (rows if self.example is None else self.example[rows]).tolist()
        firsts = [0] * len(rows) if self.first is None else self.first[rows].tolist()
        if by_words:
            return list(zip(examples, firsts, batch.inputs["word_mask"].sum(1).tolist()))
        return [None if first else (example, 0, 1) for example, first in zip(examples, firsts)]


def soft_targets(teachers: list[Teacher], name: str, head: Any, batch: Any, windows: Windows) -> SoftTargets:
    """Returns the SoftTargets of a batch, averaged over the teachers of a task. windows: of the training set"""
    by_words = head.by_words
    batch_size, width = batch.inputs["word_mask"].shape if by_words else (len(batch.inputs["input_ids"]), 1)
    taught, entropies = torch.zeros(2, batch_size, width)
    teachers = [teacher for teacher in teachers if name in teacher.tasks]
    statistics: list[tuple[int, int, Sparse]] = []  # (teacher, row, …)
    before: list[tuple[int, int, Sparse]] = []
    for row, window in enumerate(windows.of(batch, by_words)):
        for number, teacher in enumerate(teachers):
            if window is None:
                continue
            found = teacher.find(name, *window)
            size = len(found.entropies)
            taught[row, :size] += 1 / len(teachers)
            entropies[row, :size] += torch.from_numpy(found.entropies / len(teachers))
            statistics.append((number, row, found.statistics))
            before.append((number, row, found.before))
    values, positions = joined(statistics)
    factors: Any = [teacher.factors[name] for teacher in teachers if head.distribution.wants_pairs]
    factors = torch.stack(factors) if factors else torch.zeros(0, 0, 0)
    return SoftTargets(values / len(teachers), positions, *joined(before), factors, taught, entropies)


def joined(arrays: list[tuple[int, int, Sparse]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Concatenates [(teacher, row, sparse array)]. Returns (values (N,), positions (4, N))."""
    values = np.concatenate([np.zeros(0, np.float32), *(sparse.values for _, _, sparse in arrays)])
    positions = np.zeros((4, len(values)), np.int64)
    start = 0
    for number, row, sparse in arrays:
        stop = start + len(sparse.values)
        positions[:, start:stop] = np.broadcast_arrays(number, row, sparse.words, sparse.ids)
        start = stop
    return torch.from_numpy(values), torch.from_numpy(positions)
