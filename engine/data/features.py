"""Converts examples to numeric columns with a fast tokenizer. A row is an example or a window of one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.data.own_inputs import fields_of, value_of
from engine.data.own_spans import spans_inside
from engine.data.ragged import Ragged
from engine.data.windows import Cutter, Feature, UnreadableExample, encode_texts
from engine.errors import UserError
from engine.model.head import Head, token_ids
from engine.model.span_pointer import encode
from engine.run.atomic import sha256
from engine.task.task import IGNORE, PLACES, Task, tasks_to_json
from engine.task.text import HAN_CHARACTER, text_of, token_unit
from engine.task.words import shape_of, texts_to_encode

if TYPE_CHECKING:
    from tokenizers import Encoding

    from config import Config
    from engine.data.fields import Field


@dataclass(frozen=True, eq=False)
class Featurizer:
    """Converts examples to numeric columns with a fast tokenizer.

    Every word gets at least one token (`encode_texts`). A `Cutter` truncates or splits inputs longer than max_length.
    """

    tokenizer: Any  # None with --encoder none
    tasks: dict[str, Task]
    max_length: int  # in sub-tokens
    stride: int = -1  # overlap of windows in sub-tokens; -1: long inputs are truncated
    long_text: str = "head"  # see `Cutter`
    word_ends: bool = False  # also return the position of each word's last sub-token, for pooling
    word_shapes: bool = False  # also return the shape of each word (`shape_of`)
    apart: bool = False  # encode the texts of a pair separately
    markers: Mapping[str, int] = dataclasses.field(default_factory=dict)  # {token required once in each text: its id}

    @classmethod
    def from_config(
        cls, config: Config, tokenizer: Any, tasks: dict[str, Task], heads: Iterable[type[Head]], word_ends: bool
    ) -> Featurizer:
        """Builds the Featurizer of a run from its resolved options and its heads. If a head encodes the texts of a pair
        separately, each text gets half of --max_length."""
        heads, tagging = [*heads] if tokenizer else [], any(task.needs_words for task in tasks.values())
        apart, length, stride = any(head.level == "pair" for head in heads), config.max_length, config.window_stride
        return cls(
            tokenizer,
            tasks,
            length // 2 if apart else length,
            length // 4 if stride is None else stride,
            "head" if config.long_text == "auto" else config.long_text,  # auto: a checkpoint from before this option
            word_ends=word_ends and tagging,
            word_shapes=bool(config.word_shapes) and tagging,
            apart=apart,
            markers={name: i for head in heads for name, i in zip(head.markers, token_ids(tokenizer, head.markers))},
        )

    def __post_init__(self) -> None:
        for name, field in self.fields.items():
            if field.level == "words" and not self.tagging:
                raise UserError(f"FIELDS[{name!r}]: level='words' requires a word-level task; use level='list'")
            if field.level == "spans" and self.tokenizer is None:
                raise UserError(f"FIELDS[{name!r}]: level='spans' needs tokens, which --encoder none lacks")

    @cached_property
    def fields(self) -> dict[str, Field]:
        """The custom inputs of these tasks."""
        return fields_of(self.tasks)

    @cached_property
    def tagging(self) -> bool:
        """Whether any task has labels, spans or relations of words."""
        return any(task.needs_words for task in self.tasks.values())

    @cached_property
    def unit(self) -> str:
        return token_unit(self.tasks) or "word"

    @cached_property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id if self.tokenizer else 0

    @cached_property
    def filler(self) -> Any:
        """The token for words and texts without tokens. Byte-level tokenizers have no unknown token."""
        return self.tokenizer and (self.tokenizer.unk_token or self.tokenizer.pad_token)

    @cached_property
    def is_decoder(self) -> bool:
        return bool(self.tokenizer) and self.tokenizer.cls_token is None

    @cached_property
    def separator(self) -> str | None:
        """The separator to insert between two texts; None if the tokenizer inserts one."""
        if not self.is_decoder or len({self.tokenizer.num_special_tokens_to_add(pair) for pair in (False, True)}) > 1:
            return None
        return self.tokenizer.eos_token or "\n"

    @cached_property
    def blanks(self) -> bool:
        """Whether pre-split words need a leading space, because the tokenizer joins them without one (GPT-2, Gemma)."""
        if not self.is_decoder:
            return False
        options = dict(add_special_tokens=False, verbose=False)
        text = self.tokenizer(["a a"], **options).encodings[0].ids
        joined, spaced = (
            self.tokenizer([words], is_split_into_words=True, **options).encodings[0].ids
            for words in (["a", "a"], ["a", " a"])
        )
        return text != joined and text == spaced

    def __getstate__(self) -> dict[str, Any]:
        """Omits custom inputs, because a lambda cannot be pickled. A worker process reads FIELDS instead."""
        return {name: value for name, value in self.__dict__.items() if name != "fields"}

    def fingerprint(self) -> str:
        """Returns a hash of everything that affects the encoding. It is part of the cache's file name."""
        tokenizer = json.loads(self.tokenizer.backend_tokenizer.to_str()) if self.tokenizer else {}
        for set_by_each_call in ("truncation", "padding"):
            tokenizer.pop(set_by_each_call, None)
        version = 4  # increment when the columns change
        depends = [version, tokenizer, tasks_to_json(self.tasks), self.max_length, self.stride, self.long_text]
        depends += ["word ends"] if self.word_ends else []
        depends += ["word shapes"] if self.word_shapes else []
        depends += [self.apart, self.markers] if self.apart or self.markers else []
        depends += ["own inputs"] if self.fields else []
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Converts a list of examples to {column: Ragged, or array with one value per row}. Each row is a Feature.

        Columns: input_ids, token_type_ids (sentence pairs), example_index, num_cut, labels.<task>, inputs.<name>, and
        for tagging word_starts, num_words (before truncation) and first_word.
        """
        features = self.features(examples)
        columns: dict[str, Any] = {
            "input_ids": Ragged.from_lists([feature.input_ids for feature in features]),
            "example_index": np.array([feature.example for feature in features], np.int64),
            "num_cut": np.array([feature.num_cut for feature in features], np.int32),
        }
        if "text_pair" in examples[0]:
            columns["token_type_ids"] = Ragged.from_lists([feature.token_types for feature in features])
        if self.tagging:
            columns["word_starts"] = Ragged.from_lists([feature.word_starts for feature in features])
            if self.word_ends:
                columns["word_ends"] = Ragged.from_lists([feature.word_ends for feature in features])
            if self.word_shapes:
                columns["word_shapes"] = Ragged.from_lists([word_shapes(f, examples[f.example]) for f in features])
            columns["first_word"] = np.array([feature.first_word for feature in features], np.int32)
            num_words = [
                len(examples[feature.example]["tokens"]) if feature.num_cut else len(feature.word_starts)
                for feature in features
            ]
            columns["num_words"] = np.array(num_words, np.int32)
        for name, field in self.fields.items():
            columns[input_column(name)] = self.own_input(name, field, features, examples)
        for name, task in self.tasks.items():
            if name in examples[0]:
                columns[label_column(name)] = self.labels(name, task.kind, features, examples)
        return columns

    def own_input(self, name: str, field: Field, features: list[Feature], examples: list[dict[str, Any]]) -> Ragged:
        """Returns the column of a custom input. A window gets the values of its words, or of the whole text."""
        values = [value_of(name, field, example) for example in examples]
        if field.level == "words":
            windows = [(f.example, slice(f.first_word, f.first_word + len(f.word_starts))) for f in features]
            rows = [values[number][window] for number, window in windows]
        elif field.level == "spans":
            rows = [spans_inside(self, f, examples[f.example], values[f.example], field.unit) for f in features]
        else:
            rows = [values[feature.example] for feature in features]
        return Ragged.from_arrays([row.ravel() for row in rows])

    def labels(
        self, name: str, kind: str, features: list[Feature], examples: list[dict[str, Any]]
    ) -> Ragged | np.ndarray:
        """Returns the label column of a task. A window has the tags of its words and the spans inside it; a text-level
        label is only in the first window."""
        label_ids = {label: i for i, label in enumerate(self.tasks[name].labels)}
        if kind == "tagging":
            tag_ids = []
            for feature in features:
                tags, num_words = examples[feature.example][name], len(examples[feature.example]["tokens"])
                ids = [IGNORE] * num_words if tags is None else [label_ids.get(tag, IGNORE) for tag in tags]
                tag_ids.append(ids[feature.first_word : feature.first_word + len(feature.word_starts)])
            return Ragged.from_lists(tag_ids)
        if kind in PLACES:
            return Ragged.from_lists([encode(spans_within(f, examples[f.example][name], label_ids)) for f in features])
        values = [None if feature.first_word else examples[feature.example][name] for feature in features]
        if kind == "multilabel":
            values = [[value] if isinstance(value, str) else value for value in values]  # `in` must not find substrings
            return Ragged.from_lists(
                [[IGNORE if value is None else int(label in value) for label in label_ids] for value in values]
            )
        if kind == "regression":
            return np.array([np.nan if value is None else value for value in values], np.float32)
        return np.array([label_ids.get(value, IGNORE) for value in values], np.int32)  # type: ignore[arg-type]

    def features(self, examples: list[dict[str, Any]]) -> list[Feature]:
        """Returns the Features of a list of examples, in order. Without a tokenizer, each word or text is one token."""
        if self.tokenizer is None:
            words = [range(len(example["tokens"]) if self.tagging else 0) for example in examples]
            return [Feature(i, [0] * max(1, len(w)), [0] * max(1, len(w)), [*w], [*w]) for i, w in enumerate(words)]
        first, encodings = self.encodings(examples)
        seconds: list[Any] = len(examples) * [None]
        if "text_pair" in examples[0] and self.apart:
            seconds = encode_texts(self.encode, [example["text_pair"] for example in examples], None, self.filler)
        cutter = Cutter(self.max_length, self.stride, self.long_text, self.tagging, self.markers)
        features = []
        for number, (text, encoding) in enumerate(zip(first, encodings)):
            try:
                features += cutter.features(number, encoding, seconds[number], has_words=bool(text))
            except UnreadableExample as error:
                raise UserError(f"example {examples[number].get('id', number)}: {error}") from None
        return features

    def encodings(self, examples: list[dict[str, Any]]) -> tuple[list[Any], list[Encoding]]:
        """Returns the texts or words of examples and their Encodings, which include second texts unless `apart`."""
        options = ("tokens" in examples[0], self.unit, HAN_CHARACTER, self.blanks, self.separator)
        first, second = map(list, zip(*(texts_to_encode(example, *options) for example in examples)))
        together = "text_pair" in examples[0] and not self.apart
        return first, encode_texts(self.encode, first, second if together else None, self.filler)

    def num_longer(self, examples: list[dict[str, Any]]) -> int:
        """Counts the examples that are longer than max_length tokens. Shorter examples, measured in bytes, are not
        tokenised, because each token has at least one byte."""
        unsure = [example for example in examples if len(text_of(example, True).encode()) > self.max_length - 8]
        return sum(len(encoding.ids) > self.max_length for encoding in self.encodings(unsure)[1]) if unsure else 0

    def encode(self, first: list[Any], second: list[Any] | None) -> list[Encoding]:
        """Encodes texts or pre-split words, optionally with second texts."""
        by_words = isinstance(first[0], list)
        return self.tokenizer(first, second, is_split_into_words=by_words, verbose=False).encodings


def spans_within(feature: Feature, spans: list[Any] | None, label_ids: dict[str, int]) -> list[tuple[int, ...]] | None:
    """Returns the spans or relations inside a window, relative to its first word, with label ids; None if unlabelled.
    spans: [[word index, …, label]] of the example (see PLACES)."""
    start, size = feature.first_word, len(feature.word_starts)
    if spans is None:
        return None
    inside: list[Any] = [(*(place - start for place in places), label_ids.get(label)) for *places, label in spans]
    return sorted(item for item in inside if min(item[:-1]) >= 0 and max(item[:-1]) < size and item[-1] is not None)


def word_shapes(feature: Feature, example: dict[str, Any]) -> list[int]:
    """Returns the shapes of the words of a window."""
    first = feature.first_word
    return [shape_of(word) for word in example["tokens"][first : first + len(feature.word_starts)]]


def label_column(task: str) -> str:
    """Returns the name of a task's label column. The prefix avoids clashes with built-in columns."""
    return f"labels.{task}"


def input_column(name: str) -> str:
    """Returns the name of a custom input's column."""
    return f"inputs.{name}"


def encoded_fingerprint(path: str | Path, featurizer: Featurizer, limit: int | str | None) -> str:
    """Returns a hash of the file's bytes and of everything that affects their encoding."""
    return hashlib.sha256(f"{sha256(path)}{featurizer.fingerprint()}{limit}".encode()).hexdigest()[:20]
