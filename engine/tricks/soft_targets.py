"""Teachers' answers for the training texts, cached on disk and passed to the heads of a student.

The student's loss is linear in the expected statistics of the teacher's distribution (probabilities; for a CRF, of tags
and tag pairs), so only these and the entropy are stored. Most values are close to zero, so they are stored sparsely, as
(word, id, value). Words are identified by their index in the text, so tokenizers may differ.

Tag pairs would need too much space. They are computed: p(tag i at word t - 1, tag j at word t) = p(j at t) * p(i | j),

    p(i | j) = before[t - 1, i] * factors[i, j] / sum over i of the same

where `factors` is the teacher's exp(transitions), shared by all words, and `before` is the forward distribution: the
distribution of a word's tag if the text ended there. Without a CRF, `factors` is 1 and `before` is the teacher's
probabilities.
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
from engine.run.device import can_pin
from engine.run.files import sha256
from engine.run.run_folder import weights_file

CHUNK = 1024  # number of texts per record batch
VERSION = 4  # of the cache format; increment it when the format changes
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
EMPTY = np.zeros(0, np.int32)


class Sparse(NamedTuple):
    """The stored statistics of one text, in the order of its words."""

    words: np.ndarray
    ids: np.ndarray  # ids of labels or tags; for two words, (second word - first word) * types + type id
    values: np.ndarray

    def within(self, first: int, stop: int) -> "Sparse":
        """Returns the statistics of words first to stop, with word indices relative to `first`."""
        part = slice(*np.searchsorted(self.words, [first, stop]))
        return Sparse(self.words[part] - first, self.ids[part], self.values[part])

    def where(self, chosen: np.ndarray) -> "Sparse":
        return Sparse(*(column[chosen] for column in self))


class Answer(NamedTuple):
    """A teacher's answer for one text."""

    statistics: Sparse
    before: Sparse  # empty if the head does not use pairs of tags
    entropies: np.ndarray  # per word

    def columns(self) -> dict[str, np.ndarray]:
        """Returns the arrays by their names in COLUMNS."""
        return dict(zip(COLUMNS, (*self.statistics, *self.before, self.entropies)))

    @classmethod
    def of_columns(cls, columns: Mapping[str, np.ndarray]) -> "Answer":
        statistics, before = (Sparse(*(columns[f"{part}.{name}"] for name in Sparse._fields)) for part in PARTS)
        return cls(statistics, before, columns["entropies"])


PARTS = ("statistics", "before")
COLUMNS = (*(f"{part}.{name}" for part in PARTS for name in Sparse._fields), "entropies")  # as cached


class SoftTargets(NamedTuple):
    """The outputs of all teachers for one task and the rows of a batch. W is 1 for text-level labels."""

    values: torch.Tensor  # (N,), divided by the number of teachers
    positions: torch.Tensor  # (4, N): teachers, rows, words, ids
    before_values: torch.Tensor  # (M,); empty if the head does not use pairs of tags
    before_positions: torch.Tensor
    factors: torch.Tensor  # (teachers, C, C)
    taught: torch.Tensor  # (B, W), fraction of the teachers that answered
    entropies: torch.Tensor  # (B, W), mean over the teachers

    def to(self, device: torch.device) -> "SoftTargets":
        return SoftTargets(*(tensor.to(device, non_blocking=can_pin(device.type)) for tensor in self))

    def pairs(self, num_tags: int) -> list[torch.Tensor]:
        """Returns (p(tag) of each word / number of teachers, `before`) as dense tensors, each (teachers, B, W, C)."""
        shape = len(self.factors), *self.taught.shape, num_tags
        both = (self.values, self.positions), (self.before_values, self.before_positions)
        return [torch.zeros(shape, device=values.device).index_put(tuple(at), values) for values, at in both]

    def of_rows(self, part: slice) -> "SoftTargets":
        """The targets of some rows of the batch, renumbered from 0; only for a head without tag pairs."""
        chosen = (self.positions[1] >= part.start) & (self.positions[1] < part.stop)
        positions = self.positions[:, chosen] - torch.tensor([0, part.start, 0, 0], device=chosen.device).unsqueeze(1)
        own = dict(values=self.values[chosen], positions=positions)
        return self._replace(**own, taught=self.taught[part], entropies=self.entropies[part])

    def whole(self, mask: torch.Tensor) -> torch.Tensor:
        """Returns the mask of texts that all teachers labelled completely, (B,). mask: (B, W), True for real words."""
        return (self.taught > mask.float() - 1e-4).all(1) & mask.any(1)


# ---- the teachers ----------------------------------------------------------------------------------------------------


class Teacher:
    """A teacher's memory-mapped answers for a training set. Row i is the answer for example i.

    folder: the teacher's checkpoint; heads: {task: head} of the student, which determine if tag pairs are needed.
    """

    def __init__(self, folder: Path, heads: Any, tasks: list[str], temperature: float):
        self.folder, self.tasks, self.temperature = folder, tasks, temperature
        self.heads = {name: heads[name] for name in tasks}
        self.sha256 = sha256(folder / "manifest.json")  # the manifest contains the checksums of all files

    def answer(
        self, data: Any, load: Callable[[], Any], precision: str, device: torch.device, batches_of: Callable[..., Any]
    ) -> None:
        """Loads the answers from the cache, or computes them. data: a training set of data_loader.py.

        load() -> (model, featurizer, its options); batches_of(examples, featurizer) -> a MyDataLoader.
        """
        pairs = sorted(name for name, head in self.heads.items() if head.distribution.wants_pairs)
        # Answers for a list of examples are not cached
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
                    yield self.answers_to(model, batches_of(chunk, featurizer), device, dtype)
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
    def answers_to(self, model: Any, loader: Any, device: torch.device, dtype: torch.dtype | None) -> pa.RecordBatch:
        """Runs the teacher on a MyDataLoader; the record batch has one row per example."""
        data = loader.dataset
        windows: dict[tuple[str, int], list[tuple[int, Answer]]] = {}  # {(task, example): [(first word, answer)]}
        for batch in loader:
            inputs = batch.to(device).inputs
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                logits = model(inputs).logits
            for name, student in self.heads.items():
                head = model.output_layer.heads[name]
                scaled = rescale_regression(head, student, logits[name])
                pairs = student.distribution.wants_pairs
                parts = head.distribution.teach_parts(scaled, inputs, self.temperature, pairs)
                answers = [answer for own, stored in parts for answer in sparse_rows(head, stored, own)]
                for row, answer in zip(batch.rows.tolist(), answers):
                    if head.by_words:
                        first = int(data.columns["first_word"][row])
                        windows.setdefault((name, int(data.example_index[row])), []).append((first, answer))
                    elif data.is_first(row):
                        windows[name, int(data.example_index[row])] = [(0, answer)]
        arrays = {}
        for name in self.heads:
            merged = [merge(windows[name, example]).columns() for example in range(len(data))]
            for column in COLUMNS:
                kind = pa.float32() if column.endswith(("values", "entropies")) else pa.int32()
                arrays[f"{name}.{column}"] = pa.array([answer[column] for answer in merged], pa.list_(kind))
        return pa.RecordBatch.from_pydict(arrays)

    def find(self, task: str, example: int, first: int, size: int) -> Answer:
        """Returns the answer for words first to first + size of an example, with word indices relative to `first`."""
        chunk, row = divmod(example, CHUNK)
        cells = {}
        for column in COLUMNS:
            offsets, values = self.columns[f"{task}.{column}"][chunk]
            cells[column] = values[offsets[row] : offsets[row + 1]]
        answer = Answer.of_columns(cells)
        stop = first + size
        statistics = answer.statistics.within(first, stop)
        if stride := self.heads[task].distribution.stride:  # pairs of words: drop pairs with a word outside this range
            second = statistics.words + statistics.ids // stride
            statistics = statistics.where((second >= 0) & (second < size))
        return Answer(statistics, answer.before.within(first, stop), answer.entropies[first:stop])


def lists_of(chunk: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (offsets, values) of an Arrow list array without a copy."""
    return chunk.offsets.to_numpy(), chunk.values.to_numpy()


def rescale_regression(head: Any, student: Any, logits: torch.Tensor) -> torch.Tensor:
    """Converts a teacher's regression logits to the student's mean and std; returns other logits unchanged."""
    own, other = student.task, head.task
    return logits if own.kind != "regression" else (logits * other.std + other.mean - own.mean) / own.std


def sparse_rows(
    head: Any, stored: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None], inputs: dict[str, torch.Tensor]
) -> list[Answer]:
    """Returns the answer for each row of a batch. stored: the output of `teach` of the head's distribution"""
    statistics, entropies, before = stored
    mask = inputs["word_mask"] if head.by_words else torch.ones_like(entropies, dtype=torch.bool)
    smallest, stride = head.distribution.smallest, head.distribution.stride
    statistics_by_row = by_row(statistics, smallest, mask, stride)
    before_by_row = [Sparse(EMPTY, EMPTY, EMPTY)] * len(mask) if before is None else by_row(before, smallest, mask, 0)
    entropies_by_row = [h[:size] for h, size in zip(entropies.cpu().numpy(), mask.sum(1).tolist())]
    return [Answer(*answer) for answer in zip(statistics_by_row, before_by_row, entropies_by_row)]


def by_row(values: torch.Tensor, smallest: float, mask: torch.Tensor, stride: int) -> list[Sparse]:
    """Converts values (B, W, N) to one Sparse per row, with values above `smallest`. Ids start at 0 for each word."""
    large = (values.abs() > smallest) & mask.unsqueeze(2)
    rows, words, ids = large.nonzero().cpu().numpy().T
    borders = np.searchsorted(rows, np.arange(1, len(values)))
    columns = words, ids - words * stride, values[large].float().cpu().numpy()
    return [Sparse(*row) for row in zip(*(np.split(column, borders) for column in columns))]


def merge(windows: list[tuple[int, Answer]]) -> Answer:
    """Merges the answers for the windows of a text, [(first word, answer)]. A word in two windows is taken from the one
    whose edge is farther away."""
    if len(windows) == 1:
        return windows[0][1]
    windows = sorted(windows, key=lambda window: window[0])
    numbers = [(first, [number] * len(answer.entropies)) for number, (first, answer) in enumerate(windows)]
    owner = np.array(merge_windows(numbers))
    parts: list[Answer] = []
    for number, (first, answer) in enumerate(windows):
        of_words = owner[first : first + len(answer.entropies)] == number
        statistics, before = (sparse.where(of_words[sparse.words]) for sparse in (answer.statistics, answer.before))
        statistics, before = (sparse._replace(words=sparse.words + first) for sparse in (statistics, before))
        parts.append(Answer(statistics, before, answer.entropies[of_words]))
    columns = [part.columns() for part in parts]
    return Answer.of_columns({name: np.concatenate([part[name] for part in columns]) for name in COLUMNS})


# ---- the student -----------------------------------------------------------------------------------------------------


class Windows:
    """Maps the rows of a training set to examples and words. data: a dataset of data_loader.py"""

    def __init__(self, data: Any):
        columns = getattr(data, "columns", {})
        self.example, self.first = columns.get("example_index"), columns.get("first_word")

    def of(self, batch: Any, by_words: bool) -> list[tuple[int, int, int] | None]:
        """Returns [(example, first word, number of words)] for a batch's rows. For text-level labels, only the first
        window of a text has an entry; the rest are None."""
        rows = batch.rows.numpy()
        examples = (rows if self.example is None else self.example[rows]).tolist()
        firsts = [0] * len(rows) if self.first is None else self.first[rows].tolist()
        if by_words:
            return list(zip(examples, firsts, batch.inputs["word_mask"].sum(1).tolist()))
        return [None if first else (example, 0, 1) for example, first in zip(examples, firsts)]


def soft_targets(teachers: list[Teacher], name: str, head: Any, batch: Any, windows: Windows) -> SoftTargets:
    """Returns the SoftTargets of a batch, averaged over the teachers of the task. windows: of the training set"""
    by_words = head.by_words
    batch_size, width = batch.inputs["word_mask"].shape if by_words else (len(batch.inputs["input_ids"]), 1)
    taught, entropies = torch.zeros(2, batch_size, width)
    teachers = [teacher for teacher in teachers if name in teacher.tasks]
    statistics: list[tuple[int, int, Sparse]] = []  # (teacher, row, its answer)
    before: list[tuple[int, int, Sparse]] = []
    for row, window in enumerate(windows.of(batch, by_words)):
        for number, teacher in enumerate(teachers):
            if window is None:
                continue
            answer = teacher.find(name, *window)
            size = len(answer.entropies)
            taught[row, :size] += 1 / len(teachers)
            entropies[row, :size] += torch.from_numpy(answer.entropies / len(teachers))
            statistics.append((number, row, answer.statistics))
            before.append((number, row, answer.before))
    values, positions = joined(statistics)
    factors: Any = [teacher.factors[name] for teacher in teachers if head.distribution.wants_pairs]
    factors = torch.stack(factors) if factors else torch.zeros(0, 0, 0)
    return SoftTargets(values / len(teachers), positions, *joined(before), factors, taught, entropies)


def joined(answers: list[tuple[int, int, Sparse]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Concatenates [(teacher, row, statistics)] -> (values (N,), positions (4, N))."""
    values = np.concatenate([np.zeros(0, np.float32), *(sparse.values for _, _, sparse in answers)])
    positions = np.zeros((4, len(values)), np.int64)
    start = 0
    for number, row, sparse in answers:
        stop = start + len(sparse.values)
        positions[:, start:stop] = np.broadcast_arrays(number, row, sparse.words, sparse.ids)
        start = stop
    return torch.from_numpy(values), torch.from_numpy(positions)
