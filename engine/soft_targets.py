"""What teachers answer to the training texts, kept on the disk, and given to the heads of a student.

Of an answer a student needs no more than what its loss is linear in: the expected statistics of the teacher's
distribution, which are its probabilities, of a CRF those of tags and of pairs of tags, and its entropy. Nearly all are
zero, so they are kept as (word, number, value). Words are known by their number in the text, whatever the tokenizers.
"""

import hashlib
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from engine import distributed
from engine.features import merge_windows
from engine.files import sha256
from engine.token_cache import cached_table

CHUNK = 1024  # texts that are answered, and written, together
VERSION = 1  # of what is kept; raise it when that changes
FOUND = ("words", "numbers", "values")
COLUMNS = (*FOUND, *(f"pair_{name}" for name in FOUND), "entropies")


class SoftTargets(NamedTuple):
    """Of the rows of a batch, and one task: sums over all teachers, each divided by their number.

    A statistic is found by its row, word and number: for a label or tag its id, for a pair of tags id * C + id at the
    word of the second, for a span (words after its first) * types + id. Labels of whole texts have one word, 0.
    """

    rows: torch.Tensor  # (N,)
    words: torch.Tensor
    numbers: torch.Tensor
    values: torch.Tensor
    pair_rows: torch.Tensor  # (M,); empty if the head does not want them
    pair_words: torch.Tensor
    pair_numbers: torch.Tensor
    pair_values: torch.Tensor
    taught: torch.Tensor  # (B, W), the share of teachers that answered
    entropies: torch.Tensor  # (B, W)

    def to(self, device):
        return SoftTargets(*(tensor.to(device, non_blocking=True) for tensor in self))

    def whole(self, mask):
        """Which texts all teachers answered to the last word, (B,). mask: (B, W), the words that there are."""
        return (self.taught > mask.float() - 1e-4).all(1) & mask.any(1)


# ---- the teachers ----------------------------------------------------------------------------------------------------


class Teacher:
    """A teacher's answers to all examples of a training set, memory-mapped. Row i is of example i.

    folder: its checkpoint; heads: {task: head} of the student, which ask for pairs of tags or not.
    """

    def __init__(self, folder, heads, tasks, temperature):
        self.folder, self.tasks, self.temperature = folder, tasks, temperature
        self.heads = {name: heads[name] for name in tasks}
        self.sha256 = sha256(folder / "manifest.json")  # which has those of all its files

    def answer(self, data, load, precision, device, batches_of):
        """Reads the answers, or computes them once. data: a training set of data_loader.py.

        load() -> (model, featurizer, its options); batches_of(examples, featurizer) -> a MyDataLoader.
        """
        pairs = sorted(name for name, head in self.heads.items() if head.wants_pairs)
        depends = [VERSION, self.sha256, data.source, self.temperature, self.tasks, pairs, precision]
        name = f"teacher-{hashlib.sha256(repr(depends).encode()).hexdigest()[:20]}"

        def compute():
            model, featurizer, _ = load()
            dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
            model = model.to(device).eval()
            examples = data.examples()
            with tqdm(desc=f"teacher {self.folder}", unit=" texts", total=len(data), leave=False, delay=2) as bar:
                while chunk := list(islice(examples, CHUNK)):
                    yield self.answers_to(model, batches_of(chunk, featurizer), device, dtype)
                    bar.update(len(chunk))

        with distributed.first_of_node():
            table = cached_table(data.cache, name, compute)
        self.columns = {name: [lists_of(chunk) for chunk in table[name].chunks] for name in table.column_names}

    @torch.inference_mode()
    def answers_to(self, model, loader, device, dtype):
        """A record batch with a row for each example of a MyDataLoader."""
        data, parts = loader.dataset, {}
        for batch in loader:
            inputs = batch.to(device).inputs
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                logits = model(inputs).logits
            for name, student in self.heads.items():
                head = model.output_layer.heads[name]
                taught = as_the_student_counts(head, student, logits[name])
                answers = head.teach(taught, inputs, self.temperature, student.wants_pairs)
                for row, found in zip(batch.rows.tolist(), sparse_rows(head, *answers, inputs)):
                    if head.level == "words":
                        first, size = int(data.columns["first_word"][row]), int(found["entropies"].size)
                        parts.setdefault((name, int(data.example_index[row])), []).append((first, size, found))
                    elif data.is_first(row):
                        parts[name, int(data.example_index[row])] = [(0, 1, found)]
        columns = {}
        for name in self.heads:
            merged = [merge(parts[name, example]) for example in range(len(data))]
            columns |= {f"{name}.{column}": [found[column] for found in merged] for column in COLUMNS}
        arrays = {
            name: pa.array(lists, pa.list_(pa.float32() if name.endswith(("values", "entropies")) else pa.int32()))
            for name, lists in columns.items()
        }
        return pa.RecordBatch.from_pydict(arrays)

    def find(self, task, example, first, size):
        """{column: array} of words first to first + size of an example; words are counted from `first`."""
        chunk, row = divmod(example, CHUNK)
        found = {}
        for prefix, begin in (("", first), ("pair_", first + 1)):  # a pair lies at its second word
            words = self.cell(f"{task}.{prefix}words", chunk, row)
            here = slice(*np.searchsorted(words, [begin, first + size]))
            found[f"{prefix}words"] = words[here] - first
            for column in ("numbers", "values"):
                found[prefix + column] = self.cell(f"{task}.{prefix}{column}", chunk, row)[here]
        if by_word := self.heads[task].numbers_a_word:  # spans: those alone that end within
            inside = found["words"] + found["numbers"] // by_word < size
            found |= {column: found[column][inside] for column in FOUND}
        found["entropies"] = self.cell(f"{task}.entropies", chunk, row)[first : first + size]
        return found

    def cell(self, column, chunk, row):
        offsets, values = self.columns[column][chunk]
        return values[offsets[row] : offsets[row + 1]]


def lists_of(chunk):
    """(offsets, values) of an Arrow array of lists, without a copy."""
    return chunk.offsets.to_numpy(), chunk.values.to_numpy()


def as_the_student_counts(head, student, logits):
    """A teacher's logits; numbers in standard deviations from the mean of the student's train, not of its own."""
    own, other = student.task, head.task
    return (logits * other["std"] + other["mean"] - own["mean"]) / own["std"] if "std" in own else logits


def sparse_rows(head, statistics, entropies, pairs, inputs):
    """[{column: array}] of each row of a batch, from what `head.teach` gave."""
    there = inputs["word_mask"] if head.level == "words" else torch.ones_like(entropies, dtype=torch.bool)
    kept = (statistics.abs() > head.least) & there.unsqueeze(2)
    rows, words, numbers = kept.nonzero().cpu().numpy().T
    numbers = numbers - words * head.numbers_a_word
    found = by_row(len(there), rows, words, numbers, statistics[kept].cpu().numpy())
    of_pairs = [np.zeros(0, int), np.zeros(0, int), np.zeros(0, int), np.zeros(0)]
    for t, probabilities in enumerate(pairs, 1):
        kept = (probabilities > head.least) & there[:, t, None, None]
        rows, i, j = kept.nonzero().cpu().numpy().T
        more = rows, np.full_like(rows, t), i * probabilities.shape[2] + j, probabilities[kept].cpu().numpy()
        of_pairs = [np.concatenate(two) for two in zip(of_pairs, more)]
    order = np.argsort(of_pairs[0], kind="stable")
    second = by_row(len(there), *(column[order] for column in of_pairs))
    entropies, sizes = entropies.cpu().numpy(), there.sum(1).tolist()
    return [
        dict(zip(FOUND, one)) | {f"pair_{name}": array for name, array in zip(FOUND, two)} | {"entropies": h[:size]}
        for one, two, h, size in zip(found, second, entropies, sizes)
    ]


def by_row(count, rows, *columns):
    """Columns sorted by row -> the columns of each of `count` rows."""
    borders = np.searchsorted(rows, np.arange(1, count))
    return zip(*(np.split(column, borders) for column in columns))


def merge(pieces):
    """The answers to one text from its windows [(first word, number of words, answers)]; a word comes from the window
    whose edge is farther, and a pair from that of its second word."""
    if len(pieces) == 1:
        return pieces[0][2]
    pieces = sorted(pieces, key=lambda piece: piece[0])
    owner = np.array(merge_windows([(first, [number] * size) for number, (first, size, _) in enumerate(pieces)]))
    merged = {column: [] for column in COLUMNS}
    for number, (first, size, found) in enumerate(pieces):
        for prefix in ("", "pair_"):
            words = found[f"{prefix}words"] + first
            own = owner[words] == number
            merged[f"{prefix}words"].append(words[own])
            for column in ("numbers", "values"):
                merged[prefix + column].append(found[prefix + column][own])
        merged["entropies"].append(found["entropies"][owner[first : first + size] == number])
    return {column: np.concatenate(arrays) for column, arrays in merged.items()}


# ---- the student -----------------------------------------------------------------------------------------------------


class Places:
    """Which words of which example each row of a training set is. data: of data_loader.py"""

    def __init__(self, data):
        columns = getattr(data, "columns", {})
        self.example, self.first = columns.get("example_index"), columns.get("first_word")

    def of(self, batch, by_words):
        """[(example, first word, number of words)] of a batch's rows; None for a row that is not the first of its text,
        if a text has one label."""
        rows = batch.rows.numpy()
        examples = (rows if self.example is None else self.example[rows]).tolist()
        firsts = [0] * len(rows) if self.first is None else self.first[rows].tolist()
        if by_words:
            return list(zip(examples, firsts, batch.inputs["word_mask"].sum(1).tolist()))
        return [None if first else (example, 0, 1) for example, first in zip(examples, firsts)]


def soft_targets(teachers, name, head, batch, places):
    """The SoftTargets of a batch, by the mean of the teachers that know the task."""
    by_words = head.level == "words"
    batch_size, width = batch.inputs["word_mask"].shape if by_words else (len(batch.inputs["input_ids"]), 1)
    taught, entropies = torch.zeros(2, batch_size, width)
    teachers = [teacher for teacher in teachers if name in teacher.tasks]
    rows, pair_rows, found = [], [], {column: [] for column in COLUMNS}
    for row, place in enumerate(places.of(batch, by_words)):
        for teacher in teachers if place else ():
            answers = teacher.find(name, *place)
            size = len(answers["entropies"])
            taught[row, :size] += 1 / len(teachers)
            entropies[row, :size] += torch.from_numpy(answers["entropies"] / len(teachers))
            for column in COLUMNS:
                found[column].append(answers[column])
            rows.append(np.full(len(answers["words"]), row))
            pair_rows.append(np.full(len(answers["pair_words"]), row))

    def joined(arrays, kind=np.int64):
        return torch.from_numpy(np.concatenate([np.zeros(0, kind), *arrays]).astype(kind))

    tensors = []
    for prefix, own in (("", rows), ("pair_", pair_rows)):
        tensors += [joined(own), joined(found[f"{prefix}words"]), joined(found[f"{prefix}numbers"])]
        tensors.append(joined(found[f"{prefix}values"], np.float32) / max(1, len(teachers)))
    return SoftTargets(*tensors, taught, entropies)
