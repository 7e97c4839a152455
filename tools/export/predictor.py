"""Labels texts with an exported model. Needs only onnxruntime, tokenizers and numpy.

    from predictor import Predictor
    predictor = Predictor("shipped")
    predictor(["turn on the light", "play a song"])

    python shipped/predictor.py texts.txt labelled.jsonl

Every exported folder has a copy of tools/export/predictor.py. It reimplements engine/data/features.py and
engine/predict/predictions.py: the same words, windows, cuts, decoding and columns as `main.py --do_predict`.
Shapes: B texts, L tokens, W words, C labels.
"""

import argparse
import csv
import gzip
import hashlib
import io
import json
import math
import os
import re
import sys
import zlib
from collections.abc import Callable
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
if (HERE / "predictor_schema.py").exists():  # in an exported folder, which must not change
    sys.path.append(str(HERE))
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    from predictor_schema import AnyOf, Optional, Range, SchemaError, parse_json, read_json

    sys.dont_write_bytecode = before
else:
    sys.path.append(str(HERE.parents[1]))
    from engine.schema import AnyOf, Optional, Range, SchemaError, parse_json, read_json

MOST_TOKENS = 512  # per batch; larger batches are slower
LOWEST, MOST = -4.0, 4  # as in engine/model/span_pointer.py: the lowest score of a span, and spans kept per word
TEXT_NAMES = "tokens text sentence content sentence1 text_a premise question review query title 文本 内容".split()
PAIR_NAMES = "text_pair sentence2 text_b hypothesis question2".split()


NUMBERS = {"mean": float, "std": Range(1e-300, 1e300)}
TASK = {
    "head": AnyOf("classification", "multilabel", "regression", "tagging", "crf", "spans"),
    "type": str,
    "labels": [str],
    Optional("threshold"): float,
    Optional("outside"): Range(0),
    Optional("entities"): bool,
    Optional("crf"): Range(0),
    Optional("mean"): float,
    Optional("std"): float,
}
NEEDED = {  # {head: keys that its task must have as well}
    "multilabel": ["threshold"],
    "regression": ["mean", "std"],
    "tagging": ["outside", "entities"],
    "crf": ["outside", "entities", "crf"],
    "spans": ["threshold"],
}
SETTINGS = {
    "tasks": {str: TASK},
    "max_length": Range(8, 2**31),
    "stride": Range(-1, 2**31),
    "truncation": AnyOf("head", "tail", "head_tail"),
    "word_ends": bool,
    "unit": AnyOf("word", "character", "character+blank", None),
    "pairs": bool,
    "extras": {str: NUMBERS},
    "pad_id": Range(0, 2**31),
    "filler": AnyOf(str, None),
    "separator": AnyOf(str, None),
    "blanks": bool,
    "patterns": {"word": str, "character": str, "character+blank": str},
    "han": str,
}


class InputError(ValueError):
    """What is wrong with a row or a file, in one line."""


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def require_whole(folder: Path) -> dict:
    """The settings of an exported folder. Raises InputError if a file was changed or cannot be used."""
    try:
        manifest = read_json(folder / "manifest.json", {str: str})
        for name in sorted({"model.onnx", "predictor.json", "tokenizer.json", *manifest}):
            if Path(name).name != name or not os.path.isfile(folder / name):
                raise InputError(f"{folder / name}: is missing; export the model again")
            if manifest.get(name) != sha256_of(folder / name):
                raise InputError(f"{folder / name}: is not what the export wrote; export the model again")
        settings = read_json(folder / "predictor.json", SETTINGS)
    except SchemaError as error:
        raise InputError(f"{error}; export the model again") from None
    for name, task in settings["tasks"].items():
        absent = [key for key in NEEDED.get(task["head"], ()) if key not in task]
        if (task["head"] != "regression" and not task["labels"]) or "" in task["labels"]:
            absent.append("labels")
        if absent or task.get("outside", 0) >= max(1, len(task["labels"])):
            what = absent[0] if absent else "outside"
            raise InputError(f"{folder / 'predictor.json'}: the task {name!r} has no usable {what!r}")
    return settings


class Feature(NamedTuple):
    """One input of the model: a row, or a window of a long row."""

    row: int  # index among the rows labelled together
    input_ids: list
    token_types: list
    starts: list  # position of the first sub-token of each word
    ends: list  # and of the last
    first_word: int = 0


class Encoded(NamedTuple):
    """A row that has been tokenised."""

    example: dict
    features: list
    num_tokens: int  # of the whole text, before windows or cuts


# ---- from texts to inputs --------------------------------------------------------------------------------------------


class Encoder:
    """Encodes rows as the Featurizer of engine/data/features.py does. It keeps no state between calls."""

    def __init__(self, folder, settings):
        self.path = folder / "tokenizer.json"
        self.tokenizer = self.usable(self.path, lambda path: Tokenizer.from_file(str(path)))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.max_length, self.stride, self.truncation = (settings[n] for n in ("max_length", "stride", "truncation"))
        self.filler, self.separator, self.blanks = (settings[name] for name in ("filler", "separator", "blanks"))
        self.unit, self.pairs, self.extras = (settings[name] for name in ("unit", "pairs", "extras"))
        self.tagging = self.unit is not None
        self.word_ends = settings["word_ends"]
        compiled = self.usable(
            folder / "predictor.json",
            lambda _: [re.compile(pattern) for pattern in (settings["han"], *settings["patterns"].values())],
        )
        self.han, self.patterns = compiled[0], dict(zip(settings["patterns"], compiled[1:]))

    def usable(self, path, load):
        """load(path), where a library may raise any exception. Raises InputError if it does."""
        try:
            return load(path)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"{path}: cannot be used ({reason[:200]}); export the model again") from None

    def __call__(self, rows, before=0):
        """The rows as a list of Encoded. before: number of rows of the file before these, for messages"""
        examples = [self.example(row, f"row {number}") for number, row in enumerate(rows, before + 1)]
        first = [example["tokens"] if "tokens" in example else example["text"] for example in examples]
        encoded = []
        try:
            pieces = self.tokenize(examples, first)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of Rust; it is not a subclass of Exception
                raise
            raise InputError(f"{self.path}: cannot be used ({error}); export the model again") from None
        for number, (example, text, encoding) in enumerate(zip(examples, *pieces)):
            try:
                features = self.features(number, example, text, encoding)
            except InputError as mistake:
                raise InputError(f"row {before + number + 1}: {mistake}") from None
            encoded.append(Encoded(example, features, len(encoding.ids)))
        return encoded

    def example(self, row, where):
        """A text, a list of tokens, or a dict (text, tokens, text_pair, extras, id) -> a validated dict to label."""
        if isinstance(row, str):
            row = {"text": row}
        elif isinstance(row, list | tuple):
            row = {"tokens": list(row)}
        elif not isinstance(row, dict) or not ("text" in row or "tokens" in row):
            raise InputError(f"{where}: must be a text, a list of tokens, or a dict with `text` or `tokens`")
        example = {key: row[key] for key in ("id", "text", "tokens", "text_pair", "extras") if key in row}
        tokens = example.get("tokens", [""])
        if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
            raise InputError(f"{where}: `tokens` must be a list of one or more strings")
        if not isinstance(example.get("text", ""), str) or not isinstance(example.get("text_pair", ""), str):
            raise InputError(f"{where}: `text` and `text_pair` must be strings")
        if self.pairs and "text_pair" not in example:
            raise InputError(f"{where}: this model was trained on pairs of texts and needs a `text_pair` too")
        if not self.pairs:
            example.pop("text_pair", None)
        for text in (*tokens, example.get("text", ""), example.get("text_pair", "")):
            if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
                raise InputError(f"{where}: holds half a character (a lone surrogate, \\ud800 to \\udfff); remove it")
        if self.extras:
            example["extras"] = self.numbers(example.get("extras") or {}, where)
        if self.tagging and "tokens" not in example:
            example["tokens"] = self.split(example["text"])
        return example

    def numbers(self, given, where):
        """The extra columns of a row, standardised by the mean and deviation of train; 0 for a missing value."""
        values = []
        for name, of_train in self.extras.items():
            if name not in given:
                raise InputError(f"{where}: no column {name!r}, which this model needs")
            cell = given[name]
            try:
                number = math.nan if cell is None or (isinstance(cell, str) and not cell.strip()) else float(cell)
            except (TypeError, ValueError, OverflowError):
                shown = repr(cell) if len(repr(cell)) < 80 else f"{repr(cell)[:80]}…"
                raise InputError(f"{where}: {name} is {shown}, but it must be a number") from None
            if math.isinf(number):
                raise InputError(f"{where}: {name} is {cell!r}, which is not finite")
            values.append(0.0 if math.isnan(number) else (number - of_train["mean"]) / of_train["std"])
        return values

    def split(self, text):
        """The tokens of a text, as `split_text` of engine/task/text.py splits it."""
        return self.patterns[self.unit].findall(text) or [""]

    def join(self, tokens, unit):
        """(text, [(start, end)] of the tokens in it). Words are joined by a blank, Chinese characters are not."""
        text, spans, place = [], [], 0
        last = ""
        for token in tokens:
            if unit == "word" and last and token and not (self.han.match(last) or self.han.match(token[0])):
                text.append(" ")
                place += 1
            spans.append((place, place + len(token)))
            text.append(token)
            place += len(token)
            last = token[-1:] or last
        return "".join(text), spans

    def tokenize(self, examples, first):
        """(first texts as passed to the tokenizer, encodings). A word that gives no token becomes the unknown token."""
        inputs = []
        for i, example in enumerate(examples):
            by_words, second = "tokens" in example, example.get("text_pair")
            if second is not None and by_words:
                second = second.split()
            if by_words and self.blanks:
                first[i] = self.with_blanks(first[i], self.unit or "word")
                second = second and self.with_blanks(second, "word")
            if second is not None and self.separator:
                second = [self.separator, *second] if by_words else f"{self.separator}{second}"
            inputs.append((by_words, second))
        encodings = self.encode(first, inputs)
        for i, (by_words, second) in enumerate(inputs):
            if by_words and (words := missing_words(encodings[i], len(first[i]), second is not None)):
                first[i] = [self.filler if w in words else word for w, word in enumerate(first[i])]
                encodings[i] = self.tokenizer.encode(first[i], second, is_pretokenized=True)
            if not encodings[i].ids:  # a model needs at least one token
                encodings[i] = self.tokenizer.encode(self.filler)
        return first, encodings

    def encode(self, first, inputs):
        if len(first) == 1:  # avoids the thread pool of encode_batch
            ((by_words, second),) = inputs
            return [self.tokenizer.encode(first[0], second, is_pretokenized=by_words)]
        encodings = [None] * len(first)
        ways = {True: self.tokenizer.encode_batch, False: self.tokenizer.encode_batch_fast}  # fast: without word_ids
        for kind, encode in ways.items():
            rows = [i for i, (by_words, _) in enumerate(inputs) if by_words is kind]
            texts = [first[i] if inputs[i][1] is None else (first[i], inputs[i][1]) for i in rows]
            for i, encoding in zip(rows, encode(texts, is_pretokenized=kind)):
                encodings[i] = encoding
        return encodings

    def with_blanks(self, words, unit):
        """Words, each with the blank that precedes it in a text."""
        _, spans = self.join(words, unit)
        gaps = [False, *(after[0] > before[1] for before, after in pairwise(spans))]
        return [f" {word}" if gap else word for word, gap in zip(words, gaps)]

    def features(self, number, example, first, encoding):
        """The Features of a row: one, or several windows if it is too long and has tags or spans."""
        if len(encoding.ids) <= self.max_length:
            places = self.places(encoding.word_ids, encoding, "text_pair" in example, first)
            return [Feature(number, encoding.ids, encoding.type_ids, *places)]
        if self.tagging and self.stride >= 0:
            return self.windows(number, encoding)
        if "text_pair" in example and self.truncation == "head_tail" and not self.tagging:
            raise InputError(
                f"a pair of more than {self.max_length} tokens; this model cannot drop the middle of a pair"
            )
        if self.tagging or "text_pair" in example or self.truncation == "head":
            kept = self.truncated(encoding)
        else:
            before, inside, after = parts_of(encoding)
            room = self.max_length - len(before) - len(after)
            head = room // 4 if self.truncation == "head_tail" else 0
            kept = [*before, *inside[:head], *inside[len(inside) - room + head :], *after]
        ids, types, words = (pick(values, kept) for values in (encoding.ids, encoding.type_ids, encoding.word_ids))
        if "text_pair" in example:
            words = [w if s == 0 else None for w, s in zip(words, pick(encoding.sequence_ids, kept))]
        return [Feature(number, ids, types, *self.places(words, encoding, False, first))]

    def places(self, word_ids, encoding, paired, words):
        """Positions of the first and the last sub-token of each word of the first text."""
        if not self.tagging or not words:
            return [], []
        if paired:
            word_ids = [w if s == 0 else None for w, s in zip(word_ids, encoding.sequence_ids)]
        starts, last, before = [], {}, None
        for position, word in enumerate(word_ids):
            if word is not None:
                if word != before:
                    starts.append(position)
                    before = word
                last[word] = position
        return starts, [last[word] for word in sorted(last)] if self.word_ends else []

    def truncated(self, encoding):
        """Positions that are kept if the input is too long; the longer of two texts is cut first."""
        sequences = encoding.sequence_ids
        first, second = ([i for i, s in enumerate(sequences) if s == number] for number in (0, 1))
        room = max(0, self.max_length - sequences.count(None))
        sizes = [min(room, len(first)), 0] if not second else longest_first(len(first), len(second), room)
        tail = self.truncation == "tail" and not self.tagging
        parts = [p[len(p) - n :] if tail else p[:n] for p, n in zip((first, second), sizes)]
        kept = {*parts[0], *parts[1]}
        return [i for i, sequence in enumerate(sequences) if sequence is None or i in kept]

    def windows(self, number, encoding):
        """The Features of a long row: each has as many whole words as fit, and the second text."""
        before, inside, after = parts_of(encoding)
        room = self.max_length - len(before) - len(after)
        if room < 4:
            raise InputError(f"a second text of {len(after)} tokens leaves no room for the words to tag")
        word_ids, all_ids, all_types = encoding.word_ids, encoding.ids, encoding.type_ids
        begins = [i - inside[0] for n, i in enumerate(inside) if n == 0 or word_ids[i] != word_ids[inside[n - 1]]]
        ends = [*begins[1:], len(inside)]
        features, word = [], 0
        while True:
            stop = word + 1
            while stop < len(begins) and ends[stop] - begins[word] <= room:
                stop += 1
            kept = [*before, *inside[begins[word] : min(ends[stop - 1], begins[word] + room)], *after]
            starts = [len(before) + begins[w] - begins[word] for w in range(word, stop)]
            lasts = [len(before) + min(ends[w] - begins[word], room) - 1 for w in range(word, stop)]
            features.append(Feature(number, pick(all_ids, kept), pick(all_types, kept), starts, lasts, word))
            if stop == len(begins):
                return features
            following = stop
            while following - 1 > word and ends[stop - 1] - begins[following - 1] <= self.stride:
                following -= 1
            word = following


def pick(values, places):
    return [values[i] for i in places]


def missing_words(encoding, num_words, paired):
    """Indices of the words that gave no token, or None."""
    present = set(encoding.word_ids)
    if paired:
        present = {word for word, sequence in zip(encoding.word_ids, encoding.sequence_ids) if sequence == 0}
    present.discard(None)
    return None if len(present) == num_words else set(range(num_words)) - present


def parts_of(encoding):
    """Positions before, in and after the first text."""
    inside = [i for i, sequence in enumerate(encoding.sequence_ids) if sequence == 0]
    return list(range(inside[0])), inside, list(range(inside[-1] + 1, len(encoding.ids)))


def longest_first(one, other, room):
    """How many tokens of two texts are kept, as with the strategy longest_first of `tokenizers`."""
    short, long = sorted((one, other))
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short, long = room // 2, room // 2 + room % 2
    return (long, short) if one > other else (short, long)


# ---- from outputs to answers -----------------------------------------------------------------------------------------


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def sigmoid(logits):
    return np.exp(-np.logaddexp(np.zeros_like(logits), -logits))


def viterbi(emissions, start, transitions, end, mask):
    """The best path (B, W) of each text through a linear-chain CRF. Forbidden transitions have a score of -10,000.

    emissions (B, W, C), transitions (C, C), mask (B, W): ones, then zeros in each row.
    """
    batch, width, num_tags = emissions.shape
    into = np.ascontiguousarray(transitions.T)  # into[j, i]: from i to j
    score = start + emissions[:, 0]
    scores, paths = [score], np.empty((batch, num_tags, num_tags), np.float32)
    for t in range(1, width):
        np.add(score[:, :, None], transitions, out=paths)
        score = np.where(mask[:, t, None], paths.max(1) + emissions[:, t], score)
        scores.append(score)
    tag = (score + end).argmax(1)
    tags = np.empty((batch, width), np.int64)
    tags[:, -1] = tag
    for t in range(width - 1, 0, -1):  # backtrack all texts at once
        tag = np.where(mask[:, t], (scores[t - 1] + into[tag]).argmax(1), tag)
        tags[:, t - 1] = tag
    return tags


def find_spans(logits, size, threshold):
    """The spans of one text of `size` words whose score reaches the threshold: [(first word, last word, type id)] and
    their probabilities. logits: (W, W + 2T), scores of word pairs, then of the starts and the ends of each type"""
    width = len(logits)
    types = (logits.shape[1] - width) // 2
    pairs, starts, ends = np.split(logits[:size], [width, width + types], axis=1)
    scores = pairs[:, :size, None] + starts[:, None] + ends[None]
    scores[np.tril_indices(size, -1)] = -np.inf
    taken = scores > max(LOWEST, threshold - 1e-3)
    if taken.sum() > MOST * size:
        taken &= scores >= np.partition(scores.ravel(), -MOST * size)[-MOST * size]
    probabilities = sigmoid(scores[taken].astype(np.float64))
    lowest = float(sigmoid(np.float64(threshold)))
    found = [(tuple(span), p) for span, p in zip(np.argwhere(taken).tolist(), probabilities.tolist()) if p >= lowest]
    return [span for span, _ in found], [p for _, p in found]


def merge_tags(windows):
    """The tags of a text from those of overlapping windows, [(first word, tags)]. A word in two windows gets the tag of
    the window whose edge is farther away."""
    (_, merged), *others = windows
    merged = list(merged)
    for first, tags in others:
        middle = (len(merged) - first + 1) // 2
        merged = merged[: first + middle] + list(tags[middle:])
    return merged


def merge_spans(windows):
    """Spans and probabilities of a text from its windows, [(first word, number of words, (spans, probabilities))]. A
    span that is inside several windows is taken from the one whose edge is farthest away."""
    if len(windows) == 1:
        return windows[0][2]
    end = max(first + size for first, size, _ in windows)
    merged = {}
    for number, (first, _, (spans, probabilities)) in enumerate(windows):
        for (start, stop, kind), p in zip(spans, probabilities):
            place = start + first, stop + first
            if max(range(len(windows)), key=lambda other: room_of(windows[other], *place, end)) == number:
                merged[(*place, kind)] = p
    return sorted(merged), [merged[span] for span in sorted(merged)]


def room_of(window, start, stop, end):
    """Words from a span to the nearer edge of a window; -1 if it is not inside. The ends of a text are not edges."""
    first, size, _ = window
    before, behind = start - first, first + size - 1 - stop
    if before < 0 or behind < 0:
        return -1
    return min(before if first else math.inf, behind if first + size < end else math.inf)


def entities_of(tags):
    """[(type, first word, last word)] of a list of tags, as in seqeval's get_entities."""
    found, begin, before, before_type = [], 0, "O", ""
    for i, chunk in enumerate([*tags, "O"]):
        tag, kind = chunk[0], chunk[1:].split("-", maxsplit=1)[-1] or "_"
        other = before_type != kind
        ends = before in "ES" or (before in "BI" and tag in "BSO") or (before not in "O." and other)
        starts = tag in "BS" or (before in "ESO" and tag in "EI") or (tag not in "O." and other)
        if ends:
            found.append((before_type, begin, i - 1))
        if starts:
            begin = i
        before, before_type = tag, kind
    return found


class Predictor:
    """Labels rows: texts, lists of tokens, or dicts with "text" or "tokens", and optional "text_pair" and "extras".

    folder: what tools.export wrote. threads: threads per batch (default: all cores this process may use). Raises
    InputError (a ValueError) for an invalid row. It may be called from several threads at once.
    """

    def __init__(self, folder, threads=None):
        folder = Path(folder)
        settings = require_whole(folder)
        self.folder = folder
        self.tasks, self.pad_id = settings["tasks"], settings["pad_id"]
        self.encode = Encoder(folder, settings)
        self.arrays = self.load_arrays(folder / "arrays.npz")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or num_cores()
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        self.session = self.encode.usable(
            folder / "model.onnx", lambda path: onnxruntime.InferenceSession(str(path), options, providers=providers)
        )
        self.inputs = [given.name for given in self.session.get_inputs()]
        unknown = set(self.inputs) - set(INPUTS)
        if unknown or len(self.session.get_outputs()) != len(self.tasks):
            raise InputError(f"{folder / 'model.onnx'}: does not match predictor.json; export the model again")

    def load_arrays(self, path):
        """{name: array} with the parameters of CRFs, whose shapes must fit their labels."""
        crfs = [task for task in self.tasks.values() if task["head"] == "crf"]
        arrays = {}
        if crfs:
            arrays = self.encode.usable(path, lambda path: dict(np.load(path, allow_pickle=False)))
        for task in crfs:
            size, number = len(task["labels"]), task["crf"]
            for part, shape in (("start", (size,)), ("transitions", (size, size)), ("end", (size,))):
                if getattr(arrays.get(f"{number}.{part}"), "shape", None) != shape:
                    raise InputError(f"{path}: {number}.{part} does not fit {size} labels; export the model again")
        return arrays

    def __call__(self, rows, batch_size=64):
        """A dict per row, in order, with the columns that main.py writes to predictions.jsonl.

        text, (id, text_pair,) and for each task <task> and <task>_probability, which are lists for several labels.
        Regression has <task> only. Tags and spans have <task>: [{"label", "text", "start", "end"}], with offsets into
        the text; tags also have <task>_tags, and each span a "probability".
        """
        encoded = self.encode(rows)
        return [self.row(one.example, answer) for one, answer in zip(encoded, self.answers(encoded, batch_size))]

    def count_tokens(self, rows):
        """Number of sub-tokens of each row, special ones included, before windows or cuts."""
        return [one.num_tokens for one in self.encode(rows)]

    def answers(self, encoded, batch_size=64):
        """[{task: (label, probability)}] of encoded rows; spans are [first word, last word, type]."""
        features = sorted((f for one in encoded for f in one.features), key=lambda feature: -len(feature.input_ids))
        pieces = [{name: [] for name in self.tasks} for _ in encoded]
        for batch in batches_of(features, batch_size):
            inputs = self.batch(batch, encoded)
            outputs = self.session.run(None, {name: inputs[name] for name in self.inputs})
            for (name, task), logits in zip(self.tasks.items(), outputs):
                self.require_usable(name, task, logits, encoded[batch[0].row])
                for feature, piece in zip(batch, self.decode(task, logits, inputs, batch)):
                    pieces[feature.row][name].append((feature.first_word, len(feature.starts), piece))
        return [
            {name: self.merge(task, found[name], one) for name, task in self.tasks.items()}
            for one, found in zip(encoded, pieces)
        ]

    def require_usable(self, name, task, logits, one):
        """Raises InputError if the logits of a task do not fit its labels, or are not finite."""
        width = logits.shape[-1]
        fits = {"regression": logits.ndim == 1, "spans": width > 2 * len(task["labels"])}
        if not fits.get(task["head"], width == len(task["labels"])):
            raise InputError(f"{self.folder}: model.onnx answers {name!r} with other labels than predictor.json names")
        if not np.isfinite(logits).all():
            some = repr(one.example.get("id", one.example.get("text", "")))[:60]
            raise InputError(f"the model's answer for {name!r} is not a finite number, near the row {some}")

    def batch(self, features, encoded):
        """{input: array} of some features, padded to the longest."""
        size, length = len(features), max(len(feature.input_ids) for feature in features)
        width = max(len(feature.starts) for feature in features)
        ids = np.full((size, length), self.pad_id, np.int64)
        mask, types = np.zeros((size, length), np.int64), np.zeros((size, length), np.int64)
        starts, ends, words = (np.zeros((size, width), kind) for kind in (np.int64, np.int64, bool))
        for i, feature in enumerate(features):
            here, there = len(feature.input_ids), len(feature.starts)
            ids[i, :here], mask[i, :here] = feature.input_ids, 1
            if self.encode.pairs:
                types[i, :here] = feature.token_types
            if there:
                starts[i, :there], words[i, :there] = feature.starts, True
                if self.encode.word_ends:
                    ends[i, :there] = feature.ends
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        inputs |= {"word_starts": starts, "word_ends": ends, "word_mask": words}
        if self.encode.extras:
            inputs["extras"] = np.array([encoded[f.row].example["extras"] for f in features], np.float32)
        return inputs

    def decode(self, task, logits, inputs, features):
        """The decoded answer of a task for each feature of a batch; tags as ids."""
        head = task["head"]
        if head == "classification":
            probabilities = softmax(logits)
            best = probabilities.argmax(-1)
            return list(zip(best.tolist(), probabilities[np.arange(len(best)), best].tolist()))
        if head == "multilabel":
            probabilities = sigmoid(logits)
            return list(zip((probabilities >= np.float32(task["threshold"])).tolist(), probabilities.tolist()))
        if head == "regression":
            return [(value, None) for value in (logits.astype(np.float64) * task["std"] + task["mean"]).tolist()]
        sizes = [len(feature.starts) for feature in features]
        if head == "spans":
            return [find_spans(row, size, task["threshold"]) for row, size in zip(logits, sizes)]
        if head == "crf":
            parameters = (self.arrays[f"{task['crf']}.{name}"] for name in ("start", "transitions", "end"))
            tags = viterbi(logits, *parameters, inputs["word_mask"])
        else:
            tags = logits.argmax(-1)
        return [row[:size] for row, size in zip(tags.tolist(), sizes)]

    def merge(self, task, pieces, encoded):
        """(label, probability) of a row from its windows. A label of the whole text comes from the first window; words
        that were cut off are O."""
        labels, head = task["labels"], task["head"]
        pieces = sorted(pieces, key=lambda piece: piece[0])
        if head == "spans":
            spans, probabilities = merge_spans(pieces)
            return [[first, last, labels[kind]] for first, last, kind in spans], probabilities
        if head in ("crf", "tagging"):
            ids = merge_tags([(first, tags) for first, _, tags in pieces])
            ids += [task["outside"]] * (len(encoded.example["tokens"]) - len(ids))
            return [labels[i] for i in ids], None
        answer, probability = pieces[0][2]
        if head == "classification":
            return labels[answer], probability
        if head == "multilabel":
            taken = [i for i, is_there in enumerate(answer) if is_there]
            return pick(labels, taken), pick(probability, taken)
        return answer, None

    def row(self, example, answers):
        """The columns of a row. answers: {task: (label, probability)}"""
        text, spans = self.text_and_places(example)
        wordless = example.get("tokens") == [""] and not example.get("text", "").strip()  # the model read [UNK]
        row = {"id": example["id"]} if "id" in example else {}
        row["text"] = text
        if "text_pair" in example:
            row["text_pair"] = example["text_pair"]
        for name, (label, probability) in answers.items():
            task = self.tasks[name]
            if wordless and task["head"] in ("spans", "crf", "tagging"):
                label, probability = [], []
            if task["head"] == "spans":
                found = [entity(kind, spans[first][0], spans[last][1], text) for first, last, kind in label]
                row[name] = [one | {"probability": round(p, 6)} for one, p in zip(found, probability)]
            elif task["head"] in ("crf", "tagging"):
                if task["entities"]:
                    row[name] = [entity(kind, spans[a][0], spans[b][1], text) for kind, a, b in entities_of(label)]
                row[f"{name}_tags"] = label
            else:
                row[name] = label
                if probability is not None:
                    several = isinstance(probability, list)
                    rounded = [round(p, 6) for p in probability] if several else round(probability, 6)
                    row[f"{name}_probability"] = rounded
        return row

    def text_and_places(self, example):
        """(the text of an example, [(start, end)] of its tokens in it, or None if it has none)."""
        text, tokens, spans = example.get("text"), example.get("tokens"), None
        if text is not None and tokens is not None:
            spans = place_tokens(text, tokens)
        if text is None or (tokens is not None and spans is None):  # no text, or the tokens are not from it
            text, spans = self.encode.join(tokens, self.encode.unit or "word")
        return text, spans


def batches_of(features, batch_size):
    """Batches of features sorted by length, longest first: at most `batch_size` and about MOST_TOKENS tokens each."""
    begin = 0
    while begin < len(features):
        size = min(batch_size, max(1, MOST_TOKENS // len(features[begin].input_ids)))
        yield features[begin : begin + size]
        begin += size


def num_cores():
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def entity(label, start, end, text):
    return {"label": label, "text": text[start:end], "start": start, "end": end}


def place_tokens(text, tokens):
    """[(start, end)] of tokens that were cut out of the text in order; None if they were not."""
    spans, position = [], 0
    for token in tokens:
        start = text.find(token, position)
        if start < 0:
            return None
        position = start + len(token)
        spans.append((start, position))
    return spans


# ---- files -----------------------------------------------------------------------------------------------------------


INPUTS = ("input_ids", "attention_mask", "token_type_ids", "word_starts", "word_ends", "word_mask", "extras")


def open_text(path, encoding, newline="\n"):
    """Opens a text file, decompressed if it ends in .gz. auto: UTF-16 if it has a BOM, otherwise UTF-8"""
    try:
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8" if encoding == "auto" else encoding)
    except (LookupError, ValueError):
        raise InputError(f"--encoding {encoding}: Python has no such encoding") from None
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    if encoding == "auto":
        with opened(path, "rb") as file:
            encoding = "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return io.TextIOWrapper(opened(path, "rb"), encoding=encoding, newline=newline)


def read_rows(path, options):
    """Yields the rows of a file to label: .txt (one text per line), .csv, .tsv or .jsonl."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    suffix = (Path(path.stem) if path.suffix.lower() == ".gz" else path).suffix.lower()
    if suffix not in ("", ".txt", ".csv", ".tsv", ".jsonl", ".ndjson"):
        raise InputError(f"{path}: must end in .txt, .csv, .tsv or .jsonl")
    with open_text(path, options.encoding, "" if suffix == ".csv" else "\n") as file:
        lines = file if suffix == ".csv" else (line.removesuffix("\n").removesuffix("\r") for line in file)
        if suffix == ".csv":
            csv.field_size_limit(sys.maxsize)
            yield from read_table(path, csv.reader(lines, strict=True), options)
        elif suffix == ".tsv":
            yield from read_table(path, (line.split("\t") for line in lines), options)
        elif suffix in (".jsonl", ".ndjson"):
            yield from read_objects(path, lines, options)
        else:
            yield from ({"id": str(number), "text": line} for number, line in enumerate(lines))


def read_table(path, table, options):
    header = [name.strip() for name in next(table, [])]
    if twice := [name for number, name in enumerate(header) if name and name in header[:number]]:
        raise InputError(f"{path}: two columns are called {twice[0]!r}; rename one")
    text, pair = columns_of(path, header, options)
    for number, cells in enumerate(table):
        cells = cells if any(cells) else [""] * len(header)
        if len(cells) != len(header):
            raise InputError(f"{path}, text {number + 1}: {len(cells)} cells, but the header has {len(header)}")
        yield row_of(dict(zip(header, cells)), number, text, pair)


def read_objects(path, lines, options):
    """Yields rows of JSON lines; the keys are those of the first thousand objects."""
    objects = parse_lines(path, lines)
    head = list(islice(objects, 1000))
    if names := dict.fromkeys(key for one in head for key in one):
        text, pair = columns_of(path, list(names), options)
        for number, one in enumerate(chain(head, objects)):
            one = one or {key: "" for key in (text, pair) if key}
            if absent := [key for key in (text, pair) if key and key not in one]:
                raise InputError(f"{path}, row {number + 1}: no key {absent[0]!r}, which other rows have")
            yield row_of(one, number, text, pair)


def parse_lines(path, lines):
    for number, line in enumerate(lines, 1):
        try:
            one = parse_json(line) if line.strip() else {}
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, row {number}: not JSON ({error})") from None
        if not isinstance(one, dict):
            raise InputError(f"{path}, row {number}: not a JSON object")
        yield one


def columns_of(path, names, options):
    """(column of the text, of the second text or None): from the options, otherwise by the usual names."""
    chosen = []
    for flag, usual in (("text_column", TEXT_NAMES), ("text_pair_column", PAIR_NAMES)):
        wanted = getattr(options, flag)
        if wanted and wanted not in names:
            raise InputError(f"{path}: no column {wanted!r} (--{flag}); the columns are: {', '.join(names)}")
        chosen.append(wanted or next((name for name in usual if name in names), None))
    if chosen[0] is None:
        raise InputError(f"{path}: cannot tell which column is the text; add --text_column: {', '.join(names)}")
    return chosen


def row_of(values, number, text, pair):
    key = "tokens" if isinstance(values[text], list) else "text"
    given = values.get("id")
    row = {"id": str(number if given is None or text == "id" else given), key: values[text]}
    if pair:
        row["text_pair"] = values[pair]
    return row | {"extras": {name: value for name, value in values.items() if name not in (text, pair, "id")}}


FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\0")  # a spreadsheet may run such cells (OWASP, CSV Injection)


def harmless(cell):
    """A cell of a CSV, escaped so that no spreadsheet runs it; numbers stay as they are."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell


def write_rows(rows, path, spreadsheet_safe=False):
    """Writes dicts to a .csv or .jsonl file, which appears complete or not at all. Lists are JSON in a CSV."""
    path, safe = Path(path), harmless if spreadsheet_safe else lambda cell: cell
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is {'a folder' if path.is_dir() else 'not a file'}; name another one")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, writer = path.with_name(f".{path.name}.tmp"), None
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL  # never follow a link that someone placed there
    try:
        with open(os.open(temporary, flags, 0o666), "w", encoding="utf-8", newline="") as file:
            for row in rows:
                if path.suffix == ".jsonl":
                    file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
                    continue
                cells = {k: json.dumps(v, ensure_ascii=False) if isinstance(v, list) else v for k, v in row.items()}
                if writer is None:
                    writer = csv.writer(file)
                    writer.writerow(map(safe, cells))
                writer.writerow(map(safe, cells.values()))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def label_file(options):
    """Labels a file in constant memory, a few thousand rows at a time."""
    if not options.output.endswith((".jsonl", ".csv")):
        raise InputError(f"{options.output}: must end in .jsonl or .csv")
    if (
        os.path.exists(options.output)
        and os.path.exists(options.texts)
        and os.path.samefile(options.texts, options.output)
    ):
        raise InputError(f"{options.output}: is the input file; name another one to write")
    rows = read_rows(options.texts, options)
    first = next(rows, None)
    if first is None:
        raise InputError(f"{options.texts}: the file is empty; there is nothing to label")
    predictor = Predictor(Path(__file__).parent, options.threads or None)
    found = labelled(predictor, chain([first], rows), options.batch_size)
    write_rows(found, options.output, options.spreadsheet_safe)


def labelled(predictor, rows, batch_size):
    """Yields the output columns of each row."""
    done = 0
    while chunk := list(islice(rows, 64 * batch_size)):
        encoded = predictor.encode(chunk, done)
        for one, answer in zip(encoded, predictor.answers(encoded, batch_size)):
            yield predictor.row(one.example, answer)
        done += len(chunk)


def one_line(text: str) -> str:
    """The text with line breaks, escape sequences and other non-printable characters escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class OneLineParser(argparse.ArgumentParser):
    """Reports an error of the command line in one line."""

    def error(self, message):
        self.exit(2, one_line(f"error: {message} (--help lists all flags)") + "\n")


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """A type for argparse: whole numbers from `low` to `high`, in plain digits."""

    def parse(text):
        if not (text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"{text[:30]!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse


def main():
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", help=".txt (one text per line), .csv, .tsv or .jsonl, or any of these with .gz")
    parser.add_argument("output", help=".jsonl or .csv to write; it appears when it is complete")
    parser.add_argument("--batch_size", type=whole_number(1, 65536), default=64, help="texts per batch [64]")
    parser.add_argument("--threads", type=whole_number(0, 1024), default=0, help="processor cores to use [all]")
    parser.add_argument("--text_column", default="", help="column of the text (default: found by its name)")
    parser.add_argument("--text_pair_column", default="", help="column of the second text of a pair")
    parser.add_argument("--encoding", default="auto", help="of the texts: auto (UTF-8 or UTF-16), gb18030, …")
    parser.add_argument(
        "--spreadsheet_safe", action="store_true", help="put an apostrophe before cells a spreadsheet would run"
    )
    options = parser.parse_args()
    try:
        label_file(options)
    except (InputError, csv.Error) as error:
        mistake = str(error)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        mistake = f"{options.texts}: cannot be decompressed ({error}); it is damaged or not a .gz file"
    except UnicodeError as error:
        mistake = f"{options.texts}: cannot be read with --encoding {options.encoding} ({error})"
    except OSError as error:
        mistake = str(error)
    else:
        return 0
    print(one_line(f"error: {mistake}"), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
