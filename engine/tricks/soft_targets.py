"""Teachers' answers to the training texts, cached on disk and passed to the heads of a student.

A student stores only the statistics its loss is linear in: the expected statistics of the teacher's distribution
(probabilities; for a CRF those of tags and of pairs of tags) and its entropy. Most are nearly zero, so they are stored
as (word, number, value). Words are identified by their number in the text, so tokenizers may differ.

Pairs of tags would take too much space. p(tag i at word t - 1, tag j at word t) is p(j at t) * p(i | j), and

    p(i | j) = before[t - 1, i] * factors[i, j] / sum over i of the same

where `factors` is the teacher's exp(transitions), the same for all words, and `before` its distribution of a word's tag
if the text ended there. A teacher without a CRF has factors of 1, and its probabilities as `before`.
"""

import hashlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from safetensors import safe_open
from tqdm import tqdm

from engine.data.windows import merge_windows
from engine.data.token_cache import cached_table
from engine.model.encoders import overflows
from engine.predict.predictions import prepare_inputs
from engine.run import distributed
from engine.run.files import sha256

CHUNK = 1024  # texts that are answered, and written, together
VERSION = 3  # of the cached format; raise it when that changes
FOUND = ("words", "numbers", "values")
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
COLUMNS = (*FOUND, *(f"before_{name}" for name in FOUND), "entropies")


class SoftTargets(NamedTuple):
    """The answers of all teachers for one task and the rows of a batch.

    A statistic has a row, a word and a number: for a label or tag its id, for a span (words after its first) * types +
    id. Labels of whole texts have one word, 0.
    """

    values: torch.Tensor  # (N,), each divided by the number of teachers
    places: torch.Tensor  # (4, N): teachers, rows, words, numbers
    before_values: torch.Tensor  # (M,); empty if the head does not use pairs of tags
    before_places: torch.Tensor
    factors: torch.Tensor  # (teachers, C, C)
    taught: torch.Tensor  # (B, W), the share of teachers that answered
    entropies: torch.Tensor  # (B, W), the mean over the teachers

    def to(self, device: torch.device) -> "SoftTargets":
        return SoftTargets(*(tensor.to(device, non_blocking=True) for tensor in self))

    def pairs(self, num_tags: int) -> list[torch.Tensor]:
        """(p(tag of each word) over the number of teachers, `before`), each (teachers, B, W, C)."""
        shape = len(self.factors), *self.taught.shape, num_tags
        dense = []
        for values, places in ((self.values, self.places), (self.before_values, self.before_places)):
            dense.append(torch.zeros(shape, device=values.device).index_put(tuple(places), values))
        return dense

    def whole(self, mask: torch.Tensor) -> torch.Tensor:
        """Which texts all teachers answered to the last word, (B,). mask: (B, W), which words exist."""
        return (self.taught > mask.float() - 1e-4).all(1) & mask.any(1)


# ---- the teachers ----------------------------------------------------------------------------------------------------


class Teacher:
    """A teacher's answers to all examples of a training set, memory-mapped. Row i belongs to example i.

    folder: its checkpoint; heads: {task: head} of the student; their `wants_pairs` says if pairs of tags are needed.
    """

    def __init__(self, folder: Path, heads: Any, tasks: list[str], temperature: float):
        self.folder, self.tasks, self.temperature = folder, tasks, temperature
        self.heads = {name: heads[name] for name in tasks}
        self.sha256 = sha256(folder / "manifest.json")  # the manifest lists the sums of all files

    def answer(
        self, data: Any, load: Callable[[], Any], precision: str, device: torch.device, batches_of: Callable[..., Any]
    ) -> None:
        """Loads the answers from the cache, or computes them. data: a training set of data_loader.py.

        load() -> (model, featurizer, its options); batches_of(examples, featurizer) -> a MyDataLoader.
        """
        pairs = sorted(name for name, head in self.heads.items() if head.wants_pairs)
        source = None if data.cache is None else data.source()  # answers to a list of examples are not cached
        scales = [(head.task.get("mean"), head.task.get("std")) for head in self.heads.values()]
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
        self.factors = {name: self.factors_of(name, head) for name, head in self.heads.items() if head.wants_pairs}

    def factors_of(self, name: str, head: Any) -> torch.Tensor:
        """exp(transitions) of the teacher's CRF at the temperature, (C, C), up to a factor; ones without a CRF."""
        with safe_open(self.folder / "model.safetensors", "pt") as file:
            key = f"output_layer.heads.{name}.crf.transitions"
            if key not in set(file.keys()):
                return torch.ones(len(head.task["labels"]), len(head.task["labels"]))
            transitions = file.get_tensor(key).float() / self.temperature
        return (transitions - transitions.max()).exp()

    @torch.inference_mode()
    def answers_to(self, model: Any, loader: Any, device: torch.device, dtype: torch.dtype | None) -> pa.RecordBatch:
        """A record batch with a row for each example of a MyDataLoader."""
        data, parts = loader.dataset, {}  # type: Any, dict[tuple[str, int], list]
        for batch in loader:
            inputs = batch.to(device).inputs
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                logits = model(inputs).logits
            for name, student in self.heads.items():
                head = model.output_layer.heads[name]
                taught = as_the_student_counts(head, student, logits[name])
                answers: tuple[Any, Any, Any] = head.teach(taught, inputs, self.temperature, student.wants_pairs)
                for row, found in zip(batch.rows.tolist(), sparse_rows(head, *answers, inputs)):
                    if head.level == "words":
                        first, size = int(data.columns["first_word"][row]), int(found["entropies"].size)
                        parts.setdefault((name, int(data.example_index[row])), []).append((first, size, found))
                    elif data.is_first(row):
                        parts[name, int(data.example_index[row])] = [(0, 1, found)]
        columns: dict[str, list] = {}
        for name in self.heads:
            merged = [merge(parts[name, example]) for example in range(len(data))]
            columns |= {f"{name}.{column}": [found[column] for found in merged] for column in COLUMNS}
        arrays = {
            name: pa.array(lists, pa.list_(pa.float32() if name.endswith(("values", "entropies")) else pa.int32()))
            for name, lists in columns.items()
        }
        return pa.RecordBatch.from_pydict(arrays)

    def find(self, task: str, example: int, first: int, size: int) -> dict[str, np.ndarray]:
        """{column: array} for words first to first + size of an example; words are counted from `first`."""
        chunk, row = divmod(example, CHUNK)
        found = {}
        for prefix in ("", "before_"):
            words = self.cell(f"{task}.{prefix}words", chunk, row)
            here = slice(*np.searchsorted(words, [first, first + size]))
            found[f"{prefix}words"] = words[here] - first
            for column in ("numbers", "values"):
                found[prefix + column] = self.cell(f"{task}.{prefix}{column}", chunk, row)[here]
        if by_word := self.heads[task].numbers_a_word:  # spans: only those that end within these words
            inside = found["words"] + found["numbers"] // by_word < size
            found |= {column: found[column][inside] for column in FOUND}
        found["entropies"] = self.cell(f"{task}.entropies", chunk, row)[first : first + size]
        return found

    def cell(self, column: str, chunk: int, row: int) -> np.ndarray:
        offsets, values = self.columns[column][chunk]
        return values[offsets[row] : offsets[row + 1]]


def lists_of(chunk: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """(offsets, values) of an Arrow array of lists, without a copy."""
    return chunk.offsets.to_numpy(), chunk.values.to_numpy()


def as_the_student_counts(head: Any, student: Any, logits: torch.Tensor) -> torch.Tensor:
    """A teacher's logits; those of a regression in standard deviations from the mean of the student's train part."""
    own, other = student.task, head.task
    return (logits * other["std"] + other["mean"] - own["mean"]) / own["std"] if "std" in own else logits


def sparse_rows(
    head: Any, statistics: torch.Tensor, entropies: Any, before: torch.Tensor | None, inputs: dict[str, torch.Tensor]
) -> list[dict[str, np.ndarray]]:
    """[{column: array}] for each row of a batch, from the result of `head.teach`."""
    there = inputs["word_mask"] if head.level == "words" else torch.ones_like(entropies, dtype=torch.bool)
    found = [by_row(*kept(statistics, head.least, there), head.numbers_a_word)]
    found.append([()] * len(there) if before is None else by_row(*kept(before, head.least, there), 0))
    entropies, sizes, nothing = entropies.cpu().numpy(), there.sum(1).tolist(), [np.zeros(0, np.int32)] * 3
    return [
        dict(zip(FOUND, one)) | {f"before_{n}": a for n, a in zip(FOUND, two or nothing)} | {"entropies": h[:size]}
        for one, two, h, size in zip(*found, entropies, sizes)
    ]


def kept(
    values: torch.Tensor, least: float, there: torch.Tensor
) -> tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(number of rows, rows, words, numbers, values) of the values (B, W, N) above `least` at words that exist."""
    large = (values.abs() > least) & there.unsqueeze(2)
    return len(values), *large.nonzero().cpu().numpy().T, values[large].float().cpu().numpy()


def by_row(
    count: int, rows: np.ndarray, words: np.ndarray, numbers: np.ndarray, values: np.ndarray, numbers_a_word: int
) -> list[tuple]:
    """The words, numbers and values of each of `count` rows; numbers start from 0 at each word."""
    borders = np.searchsorted(rows, np.arange(1, count))
    columns = words, numbers - words * numbers_a_word, values
    return list(zip(*(np.split(column, borders) for column in columns)))


def merge(pieces: list[tuple[int, int, dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """The answers to one text, merged from its windows [(first word, number of words, answers)]; a word is taken from
    the window whose edge is farther away."""
    if len(pieces) == 1:
        return pieces[0][2]
    pieces = sorted(pieces, key=lambda piece: piece[0])
    owner = np.array(merge_windows([(first, [number] * size) for number, (first, size, _) in enumerate(pieces)]))
    merged: dict[str, list[np.ndarray]] = {column: [] for column in COLUMNS}
    for number, (first, size, found) in enumerate(pieces):
        for prefix in ("", "before_"):
            words = found[f"{prefix}words"] + first
            own = owner[words] == number
            merged[f"{prefix}words"].append(words[own])
            for column in ("numbers", "values"):
                merged[prefix + column].append(found[prefix + column][own])
        merged["entropies"].append(found["entropies"][owner[first : first + size] == number])
    return {column: np.concatenate(arrays) for column, arrays in merged.items()}


# ---- the student -----------------------------------------------------------------------------------------------------


class Places:
    """Which words of which example each row of a training set holds. data: of data_loader.py"""

    def __init__(self, data: Any):
        columns = getattr(data, "columns", {})
        self.example, self.first = columns.get("example_index"), columns.get("first_word")

    def of(self, batch: Any, by_words: bool) -> list[tuple[int, int, int] | None]:
        """[(example, first word, number of words)] of a batch's rows; None for a row that is not the first of its text,
        if a text has one label."""
        rows = batch.rows.numpy()
        examples = (rows if self.example is None else self.example[rows]).tolist()
        firsts = [0] * len(rows) if self.first is None else self.first[rows].tolist()
        if by_words:
            return list(zip(examples, firsts, batch.inputs["word_mask"].sum(1).tolist()))
        return [None if first else (example, 0, 1) for example, first in zip(examples, firsts)]


def soft_targets(teachers: list[Teacher], name: str, head: Any, batch: Any, places: Any) -> SoftTargets:
    """The SoftTargets of a batch, averaged over the teachers that have the task. places: Places of the training set"""
    by_words = head.level == "words"
    batch_size, width = batch.inputs["word_mask"].shape if by_words else (len(batch.inputs["input_ids"]), 1)
    taught, entropies = torch.zeros(2, batch_size, width)
    teachers = [teacher for teacher in teachers if name in teacher.tasks]
    found: dict[str, tuple[Any, Any]] = {prefix: ([], []) for prefix in ("", "before_")}  # values, places
    for row, place in enumerate(places.of(batch, by_words)):
        for number, teacher in enumerate(teachers if place else ()):
            answers = teacher.find(name, *place)
            size = len(answers["entropies"])
            taught[row, :size] += 1 / len(teachers)
            entropies[row, :size] += torch.from_numpy(answers["entropies"] / len(teachers))
            for prefix, (values, where) in found.items():
                own = [answers[f"{prefix}{column}"] for column in FOUND]
                values.append(own[2])
                where.append(np.stack([np.full_like(own[0], number), np.full_like(own[0], row), own[0], own[1]]))
    values, places = joined(*found[""])
    before = joined(*found["before_"])
    factors: Any = [teacher.factors[name] for teacher in teachers if head.wants_pairs]
    factors = torch.stack(factors) if factors else torch.zeros(0, 0, 0)
    return SoftTargets(values / len(teachers), places, *before, factors, taught, entropies)


def joined(values: Any, places: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists of arrays -> (values (N,), places (4, N)) as tensors."""
    values = np.concatenate([np.zeros(0, np.float32), *values])
    places = np.concatenate([np.zeros((4, 0), np.int64), *places], 1)
    return torch.from_numpy(values), torch.from_numpy(places)
