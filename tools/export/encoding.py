"""Validates and tokenises rows, and builds the inputs of the graph from them. Shapes: B texts, L tokens, W words."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from engine.data.fields import Field, FieldError, describe
from engine.data.windows import Cutter, Feature, UnreadableExample, encode_texts
from engine.task.words import shape_of, texts_to_encode
from tools.export.loading import InputError, load_part

MAX_TOKENS = 512  # per batch; larger batches are slower
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "word_starts", "word_ends", "word_mask", "word_shapes")
Example = dict[str, Any]  # a valid row: text or tokens, and id, text_pair, extras


class Encoded(NamedTuple):
    """A tokenised row."""

    example: Example
    features: list[Feature]
    num_tokens: int  # before windows or truncation

    @property
    def num_words(self) -> int:
        return len(self.example.get("tokens", ()))


class Encoder:
    """Encodes rows like the Featurizer of engine/data/features.py. Keeps no state between calls."""

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.path = folder / "tokenizer.json"
        self.tokenizer: Any = None
        if settings["reads_text"]:
            self.tokenizer = load_part(self.path, lambda path: Tokenizer.from_file(str(path)))
            self.tokenizer.no_truncation()
            self.tokenizer.no_padding()
        self.filler, self.separator, self.blanks = (settings[name] for name in ("filler", "separator", "blanks"))
        self.unit, self.pairs, self.pad_id = settings["unit"], settings["pairs"], settings["pad_id"]
        fields = settings["fields"].items()
        self.fields = load_part(folder / "predictor.json", lambda _: {name: Field(**field) for name, field in fields})
        self.columns = [column for field in self.fields.values() for column in field.columns]
        self.word_shapes = settings.get("word_shapes", False)
        self.word_ends, self.apart = settings["word_ends"], settings["apart"] and self.pairs
        max_length, stride, long_text = (settings[name] for name in ("max_length", "stride", "long_text"))
        self.cutter = Cutter(max_length, stride, long_text, self.unit is not None, settings["markers"])
        patterns = settings["han"], settings["patterns"].get(self.unit, "")  # compiling all takes 20 ms
        self.han, self.token = load_part(folder / "predictor.json", lambda _: list(map(re.compile, patterns)))

    @property
    def inputs(self) -> set[str]:
        """The names of all inputs that `batch` builds."""
        return {*INPUTS, *(name for field in self.fields for name in (field, f"{field}_mask"))}

    def __call__(self, rows: Iterable[Any], before: int = 0) -> list[Encoded]:
        """Validates and encodes rows. before: the number of preceding rows in the file, for error messages"""
        examples = [self.example(row, f"row {number}") for number, row in enumerate(rows, before + 1)]
        encoded = []
        if self.tokenizer is None:  # each word, or each row, is one token
            sizes = [len(example.get("tokens", [""])) for example in examples]
            positions = [list(range(size if self.unit else 0)) for size in sizes]
            features = [Feature(i, [0] * max(1, len(p)), [0] * max(1, len(p)), p, p) for i, p in enumerate(positions)]
            return [Encoded(example, [feature], 0) for example, feature in zip(examples, features)]
        try:
            seconds = [{"text": example["text_pair"]} for example in examples] if self.apart else []
            encodings, others = self.tokenize(examples), self.tokenize(seconds) or len(examples) * [None]
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # raised by Rust; not a subclass of Exception
                raise
            raise InputError(f"{self.path}: cannot be loaded ({error}); export the model again") from None
        for number, (example, encoding) in enumerate(zip(examples, encodings)):
            try:
                features = self.cutter.features(number, encoding, others[number])
            except UnreadableExample as error:
                raise InputError(f"row {before + number + 1}: {error}") from None
            encoded.append(Encoded(example, features, len(encoding.ids)))
        return encoded

    def example(self, row: Any, where: str) -> Example:
        """Validates a text, a list of tokens, or a dict with text, tokens, text_pair, extras, id."""
        if isinstance(row, str):
            row = {"text": row}
        elif isinstance(row, list | tuple):
            row = {"tokens": list(row)}
        elif isinstance(row, dict) and self.tokenizer is None and not row.keys() & {"text", "tokens"}:
            row = row | {"text": describe(row.get("extras") or row, dict.fromkeys(self.columns))}
        elif not isinstance(row, dict) or not ("text" in row or "tokens" in row):
            raise InputError(f"{where}: must be a text, a list of tokens, or a dict with `text` or `tokens`")
        example = {key: row[key] for key in ("id", "text", "tokens", "text_pair", "extras") if key in row}
        self.check(example, where)
        if not self.pairs:
            example.pop("text_pair", None)
        if self.unit is not None and "tokens" not in example:
            example["tokens"] = self.token.findall(example["text"]) or [""]
        given = example.pop("extras", None) or {}
        if isinstance(row, dict) and isinstance(given, dict):  # the row itself may also have the columns as keys
            given = {name: row[name] for name in self.columns if name in row} | given
        if self.fields:
            example["inputs"] = self.own_inputs(given, example.get("tokens"), where)
        return example

    def check(self, example: Example, where: str) -> None:
        """Raises InputError if the texts of a row are missing, have the wrong types or contain lone surrogates."""
        tokens = example.get("tokens", [""])
        if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
            raise InputError(f"{where}: `tokens` must be a list of one or more strings")
        if not isinstance(example.get("text", ""), str) or not isinstance(example.get("text_pair", ""), str):
            raise InputError(f"{where}: `text` and `text_pair` must be strings")
        if self.pairs and "text_pair" not in example:
            raise InputError(f"{where}: this model was trained on pairs of texts; add a `text_pair`")
        for text in (*tokens, example.get("text", ""), example.get("text_pair", "") if self.pairs else ""):
            if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
                raise InputError(f"{where}: contains a lone surrogate (\\ud800 to \\udfff); remove it")

    def own_inputs(self, given: Any, tokens: list[str] | None, where: str) -> dict[str, np.ndarray]:
        """Returns the values of a row's custom inputs, {name: (N, *shape)}. given: {column: cell}"""
        values = {}
        try:
            for name, field in self.fields.items():
                values[name] = field.value(field.clean(given if isinstance(given, dict) else {}))
                if field.level == "words" and len(values[name]) != len(tokens or ()):
                    raise FieldError(f"{field.columns[0]} must have one value per word")
        except FieldError as error:
            raise InputError(f"{where}: {error}") from None
        return values

    def tokenize(self, examples: list[Example]) -> list[Encoding]:
        """Encodes examples, without windows or truncation."""
        encodings: list[Any] = [None] * len(examples)
        together = self.pairs and not self.apart
        for by_words in (True, False):
            rows = [i for i, example in enumerate(examples) if ("tokens" in example) is by_words]
            options = (by_words, self.unit or "word", self.han, self.blanks, self.separator)
            if texts := [texts_to_encode(examples[i], *options) for i in rows]:
                first, second = map(list, zip(*texts))
                encoded = encode_texts(self.encode, first, second if together else None, self.filler)
                for i, encoding in zip(rows, encoded):
                    encodings[i] = encoding
        return encodings

    def encode(self, first: list[Any], second: list[Any] | None) -> list[Encoding]:
        """Encodes texts or pre-split words, optionally with second texts."""
        by_words = isinstance(first[0], list)
        if len(first) == 1:  # avoids the thread pool of encode_batch
            return [self.tokenizer.encode(first[0], second and second[0], is_pretokenized=by_words)]
        encode = self.tokenizer.encode_batch if by_words else self.tokenizer.encode_batch_fast  # returns no word_ids
        return encode(first if second is None else list(zip(first, second)), is_pretokenized=by_words)

    def batch(self, features: list[Feature], encoded: list[Encoded]) -> dict[str, np.ndarray]:
        """Returns the inputs of the graph for a batch, {name: array}, padded to the longest feature."""
        size, length = len(features), max(len(feature.input_ids) for feature in features)
        window = min(length, self.cutter.max_length) if self.cutter.long_text == "windows" else 0
        length += -length % window if window else 0
        width = max(len(feature.word_starts) for feature in features)
        ids = np.full((size, length), self.pad_id, np.int64)
        mask, types = np.zeros((size, length), np.int64), np.zeros((size, length), np.int64)
        starts, ends, shapes = np.zeros((3, size, width), np.int64)
        words = np.zeros((size, width), bool)
        for i, feature in enumerate(features):
            num_tokens, num_words = len(feature.input_ids), len(feature.word_starts)
            ids[i, :num_tokens], mask[i, :num_tokens] = feature.input_ids, 1
            if self.pairs:
                types[i, :num_tokens] = feature.token_types
            starts[i, :num_words], words[i, :num_words] = feature.word_starts, True
            if self.word_ends:
                ends[i, :num_words] = feature.word_ends
            if self.word_shapes:
                tokens = encoded[feature.example].example["tokens"][feature.first_word :]
                shapes[i, :num_words] = list(map(shape_of, tokens[:num_words]))
        inputs: dict[str, np.ndarray] = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        shape = (size, -1, window) if window else (size, length)
        inputs = {name: array.reshape(shape) for name, array in inputs.items()}
        inputs |= {"word_starts": starts, "word_ends": ends, "word_mask": words, "word_shapes": shapes}
        for name, field in self.fields.items():
            values = [encoded[feature.example].example["inputs"][name] for feature in features]
            if field.level == "words":
                values = [value[f.first_word : f.first_word + len(f.word_starts)] for f, value in zip(features, values)]
            lengths = np.array([value.size for value in values])
            inputs |= field.batch(name, np.concatenate([value.ravel() for value in values]), lengths)
        return inputs


def batches_of(encoded: list[Encoded], batch_size: int) -> Iterator[list[Feature]]:
    """Yields batches of features, the longest first: at most `batch_size` of them, and about MAX_TOKENS tokens."""
    features = [feature for row in encoded for feature in row.features]
    features.sort(key=lambda feature: -len(feature.input_ids))
    begin = 0
    while begin < len(features):
        size = min(batch_size, max(1, MAX_TOKENS // len(features[begin].input_ids)))
        yield features[begin : begin + size]
        begin += size
