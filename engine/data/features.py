"""Converts examples to numeric columns, with any fast tokenizer: a row is an example or a window of one."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from engine.errors import UserError
from engine.model.span_pointer import encode, num_outside
from engine.run.files import sha256
from engine.task.extras import extras_of, standardize
from engine.task.tags import IGNORE, has_spans, is_tagging, kind_of, needs_words
from engine.task.task import tasks_to_json
from engine.task.text import join_tokens

if TYPE_CHECKING:
    from tokenizers import Encoding

logger = logging.getLogger("template")


class Ragged(NamedTuple):
    """A column of rows of different lengths: row i is values[offsets[i]:offsets[i + 1]]."""

    values: np.ndarray
    offsets: np.ndarray  # (rows + 1,)

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int]]) -> Ragged:
        lengths = np.fromiter((len(item) for item in lists), np.int64, len(lists))
        values = np.fromiter((value for item in lists for value in item), np.int32, lengths.sum())
        return cls(values, np.concatenate([[0], lengths.cumsum()]))

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def pad(self, rows: np.ndarray, fill: int, multiple: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """(B, W) of the rows, padded to the longest (or a multiple), and the (B, W) mask of real values."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        columns = np.arange(-(-lengths.max(initial=0) // multiple) * multiple)
        mask = columns < lengths[:, None]
        places = np.where(mask, starts[:, None] + columns, 0)
        return np.where(mask, self.values[places], fill).astype(np.int64), mask


class Feature(NamedTuple):
    """One input of the model: an example, or a window of one that is too long."""

    example: int  # its index in the list of examples
    input_ids: list
    token_types: list
    word_starts: list  # position of the first sub-token of each word; only for tagging
    first_word: int = 0
    num_cut: int = 0  # sub-tokens that were cut off
    word_ends: Sequence[int] = ()  # position of the last sub-token of each word, if requested


class Featurizer:
    """Converts examples to numeric columns, with any fast tokenizer.

    tasks: {name: {"type", "labels", …}} as in labels.json. Every word gets exactly one position, even one that the
    tokenizer drops (a space, U+200B, U+FE0F): it is read as the unknown token, so that tags never shift.
    Texts longer than max_length: with a tagging task they become windows of whole words that overlap by at most
    `stride` sub-tokens (None: a quarter of max_length; -1: they are cut); otherwise the head, the tail, or a quarter of
    head and three quarters of tail are kept (Sun et al., 2019, arXiv:1905.05583).
    word_ends: also returns the last sub-token of each word, for models that read words there.
    """

    def __init__(
        self,
        tokenizer: Any,
        tasks: dict[str, dict[str, Any]],
        max_length: int,
        stride: int | None = -1,
        truncation: str = "head",
        word_ends: bool = False,
    ):
        self.tokenizer, self.tasks, self.max_length, self.truncation = tokenizer, tasks, max_length, truncation
        self.stride = max_length // 4 if stride is None else stride
        self.pad_to_multiple = 1  # 8 suits a GPU's matrix units
        self.tagging = any(needs_words(task["type"]) for task in tasks.values())  # or spans
        self.word_ends = word_ends and self.tagging
        # Replaces a word, or a text, that yields no token. A byte-level tokenizer has no unknown token
        self.filler = tokenizer.unk_token or tokenizer.pad_token
        decoder = tokenizer.cls_token is None
        self.separator, self.blanks = decoder and separator_of(tokenizer), decoder and needs_blanks(tokenizer)
        self.unit = next((task.get("unit", "word") for task in tasks.values() if needs_words(task["type"])), "word")
        self.extras = extras_of(tasks)
        self.label_ids = {name: {label: i for i, label in enumerate(task["labels"])} for name, task in tasks.items()}

    def fingerprint(self) -> str:
        """A hash of everything that affects the encoding; the cache is named after it."""
        tokenizer = json.loads(self.tokenizer.backend_tokenizer.to_str())
        del tokenizer["truncation"], tokenizer["padding"]  # set by each call
        version = 4  # raise it when the columns change
        depends = [version, tokenizer, tasks_to_json(self.tasks), self.max_length, self.stride, self.truncation]
        depends += ["word ends"] if self.word_ends else []
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """{column: Ragged, or an array with one value per row} for a list of examples; a row is a Feature.

        Columns: input_ids, token_type_ids (sentence pairs), example_index, num_cut, labels.<task>, extras.<name>, and
        for tagging word_starts, num_words (before cutting) and first_word.
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
            columns["first_word"] = np.array([feature.first_word for feature in features], np.int32)
            num_words = [
                len(examples[feature.example]["tokens"]) if feature.num_cut else len(feature.word_starts)
                for feature in features
            ]
            columns["num_words"] = np.array(num_words, np.int32)
        for name, of_train in self.extras.items():
            values = [examples[feature.example]["extras"][name] for feature in features]
            columns[f"extras.{name}"] = standardize(values, **of_train)
        for name, task in self.tasks.items():
            if name in examples[0]:
                columns[label_column(name)] = self.labels(name, kind_of(task), features, examples)
        return columns

    def labels(
        self, name: str, kind: str, features: list[Feature], examples: list[dict[str, Any]]
    ) -> Ragged | np.ndarray:
        """The column of a task's labels. A window has the tags of its own words and the spans within it; a label of the
        whole text is in the first window."""
        label_ids = self.label_ids[name]
        if is_tagging(kind):
            tag_ids = []
            for feature in features:
                tags, num_words = examples[feature.example][name], len(examples[feature.example]["tokens"])
                ids = [IGNORE] * num_words if tags is None else [label_ids.get(tag, IGNORE) for tag in tags]
                tag_ids.append(ids[feature.first_word : feature.first_word + len(feature.word_starts)])
            return Ragged.from_lists(tag_ids)
        if has_spans(kind):
            return Ragged.from_lists([encode(spans_within(f, examples[f.example][name], label_ids)) for f in features])
        values = [None if feature.first_word else examples[feature.example][name] for feature in features]
        if kind == "multilabel":
            values = [[value] if isinstance(value, str) else value for value in values]  # `in` must not find substrings
            return Ragged.from_lists(
                [[IGNORE if value is None else int(label in value) for label in label_ids] for value in values]
            )
        if kind == "regression":
            return np.array([np.nan if value is None else value for value in values], np.float32)
        return np.array([label_ids.get(value, IGNORE) for value in values], np.int32)

    def features(self, examples: list[dict[str, Any]]) -> list[Feature]:
        """The Features of a list of examples, in order."""
        first, second, encodings = self.tokenize(examples)
        features = []
        for number, encoding in enumerate(encodings):
            if len(encoding.ids) <= self.max_length:
                starts, ends = self.word_places(encoding, first[number])
                features.append(Feature(number, encoding.ids, encoding.type_ids, starts, word_ends=ends))
            elif self.tagging and self.stride >= 0:
                try:
                    features += self.windows(number, encoding)
                except UserError as mistake:
                    raise UserError(f"example {examples[number].get('id', number)}: {mistake}") from None
            elif self.tagging or second or self.truncation == "head":
                features.append(self.truncated(number, first[number], second and second[number], encoding))
            else:
                features.append(self.without_middle(number, encoding))
        return features

    def tokenize(self, examples: list[dict[str, Any]]) -> tuple[list[Any], list[Any] | None, list[Encoding]]:
        """(first texts, second texts or None, their encodings); words without tokens become the unknown token."""
        by_words, paired = "tokens" in examples[0], "text_pair" in examples[0]
        first = [example["tokens" if by_words else "text"] for example in examples]
        second = None
        if paired:
            second = [example["text_pair"].split() if by_words else example["text_pair"] for example in examples]
        first, second = self.as_the_tokenizer_reads(first, second, by_words)
        options = dict(is_split_into_words=by_words, verbose=False)
        encodings = list(self.tokenizer(first, second, **options).encodings)
        if by_words:
            swallowed = {i: words for i, e in enumerate(encodings) if (words := missing_words(e, len(first[i])))}
            for i, words in swallowed.items():
                first[i] = [self.filler if w in words else word for w, word in enumerate(first[i])]
                encodings[i] = self.tokenizer([first[i]], second and [second[i]], **options).encodings[0]
        for i, encoding in enumerate(encodings):
            if not encoding.ids:  # no model accepts empty input
                encodings[i] = self.tokenizer([self.filler], verbose=False).encodings[0]
        return first, second, encodings

    def as_the_tokenizer_reads(
        self, first: list[Any], second: list[Any] | None, by_words: bool
    ) -> tuple[list[Any], list[Any] | None]:
        """The same texts, with spaces before words where these are parts of tokens, and with a separator in a pair if
        the tokenizer adds none."""
        if by_words and self.blanks:
            first = [with_blanks(words, self.unit) for words in first]
            second = second and [with_blanks(words, "word") for words in second]
        if second and self.separator:
            second = [[self.separator, *text] if by_words else f"{self.separator}{text}" for text in second]
        return first, second

    def word_places(self, encoding: Encoding, words: str | list[str]) -> tuple[list[int], list[int]]:
        """Positions of the first and of the last sub-token of each word; empty if not needed."""
        if not self.tagging or not words:  # the filler of a text without words is not a word
            return [], []
        return word_starts(encoding), word_ends(encoding) if self.word_ends else []

    def truncated(self, number: int, first: str | list[str], second: Any, encoding: Encoding) -> Feature:
        """The Feature of an example that is too long, cut at the end, or at the start with --truncation tail."""
        if second is not None and self.truncation == "head_tail" and not self.tagging:
            raise UserError("--truncation head_tail is for single texts; use head or tail for pairs")
        self.tokenizer.truncation_side = "left" if self.truncation == "tail" and not self.tagging else "right"
        options = dict(is_split_into_words=isinstance(first, list), verbose=False, max_length=self.max_length)
        second = None if second is None else [second]
        short = self.tokenizer([first], second, truncation="longest_first", **options).encodings[0]
        starts, ends = self.word_places(short, first)
        return Feature(number, short.ids, short.type_ids, starts, 0, len(encoding.ids) - len(short.ids), ends)

    def without_middle(self, number: int, encoding: Encoding) -> Feature:
        """The Feature of a single text that is too long: its tail, with head_tail also a quarter of head."""
        before, inside, after = parts_of(encoding)
        room = self.max_length - len(before) - len(after)
        head = room // 4 if self.truncation == "head_tail" else 0
        kept = [*before, *inside[:head], *inside[len(inside) - room + head :], *after]
        token_types = [encoding.type_ids[i] for i in kept]
        return Feature(number, [encoding.ids[i] for i in kept], token_types, [], num_cut=len(inside) - room)

    def windows(self, number: int, encoding: Encoding) -> list[Feature]:
        """The Features of one example with too many words: each has as many whole words as fit, and the second text."""
        before, inside, after = parts_of(encoding)
        room = self.max_length - len(before) - len(after)
        if room < 4:
            raise UserError(
                f"--max_length {self.max_length}: a second text leaves no room for the words to tag; raise it"
            )
        # each access builds a new list
        all_ids, all_types, word_ids = encoding.ids, encoding.type_ids, encoding.word_ids
        begins = [i - inside[0] for n, i in enumerate(inside) if n == 0 or word_ids[i] != word_ids[inside[n - 1]]]
        ends = [*begins[1:], len(inside)]
        features, word = [], 0
        while True:
            stop = word + 1
            while stop < len(begins) and ends[stop] - begins[word] <= room:
                stop += 1
            kept = [*before, *inside[begins[word] : min(ends[stop - 1], begins[word] + room)], *after]
            starts = [len(before) + begins[w] - begins[word] for w in range(word, stop)]
            token_types = [all_types[i] for i in kept]
            lasts = [len(before) + min(ends[w] - begins[word], room) - 1 for w in range(word, stop)]
            ids, lasts = [all_ids[i] for i in kept], lasts if self.word_ends else []
            features.append(Feature(number, ids, token_types, starts, word, word_ends=lasts))
            if stop == len(begins):
                return features
            following = stop
            while following - 1 > word and ends[stop - 1] - begins[following - 1] <= self.stride:
                following -= 1
            word = following


def spans_within(
    feature: Feature, spans: list[Any] | None, label_ids: dict[str, int]
) -> list[tuple[int, int, int]] | None:
    """The spans [(first word, last word, type id)] within a window, in its word positions; None if there is no label.
    spans: [[first word, last word, type]] of its example."""
    start, size = feature.first_word, len(feature.word_starts)
    if spans is None:
        return None
    inside: list[Any] = [(first - start, last - start, label_ids.get(label)) for first, last, label in spans]
    return sorted(span for span in inside if span[0] >= 0 and span[1] < size and span[2] is not None)


def merge_windows(windows: Iterable[tuple[int, Sequence[Any]]]) -> list[Any]:
    """Overlapping windows, [(first word, list with one item per word)] -> one list; a word in two windows is taken from
    the one whose edge is farther."""
    (_, merged), *others = sorted(windows, key=lambda window: window[0])
    merged = list(merged)
    for first, items in others:
        middle = (len(merged) - first + 1) // 2  # of the words in both
        merged = merged[: first + middle] + list(items[middle:])
    return merged


def parts_of(encoding: Encoding) -> tuple[list[int], list[int], list[int]]:
    """Positions before, of and after the first sequence's tokens."""
    inside = [i for i, sequence in enumerate(encoding.sequence_ids) if sequence == 0]
    return list(range(inside[0])), inside, list(range(inside[-1] + 1, len(encoding.ids)))


def missing_words(encoding: Encoding, num_words: int) -> set[int] | None:
    """Indices of the words that yielded no token; None if there are none."""
    present = {word for word, sequence in zip(encoding.word_ids, encoding.sequence_ids) if sequence == 0}
    return None if len(present) == num_words else set(range(num_words)) - present


def word_starts(encoding: Encoding) -> list[int]:
    """Positions of the first sub-token of each word of the first sequence."""
    starts, before = [], None
    for position, (word, sequence) in enumerate(zip(encoding.word_ids, encoding.sequence_ids)):
        if sequence == 0 and word is not None and word != before:
            starts.append(position)
            before = word
    return starts


def word_ends(encoding: Encoding) -> list[int]:
    """Positions of the last sub-token of each word of the first sequence."""
    last = {}
    for position, (word, sequence) in enumerate(zip(encoding.word_ids, encoding.sequence_ids)):
        if sequence == 0 and word is not None:
            last[word] = position
    return [last[word] for word in sorted(last)]


def separator_of(tokenizer: Any) -> str | None:
    """The separator to insert between two texts; None if the tokenizer adds its own."""
    if tokenizer.num_special_tokens_to_add(pair=True) > tokenizer.num_special_tokens_to_add(pair=False):
        return None
    return tokenizer.eos_token or "\n"


def needs_blanks(tokenizer: Any) -> bool:
    """Whether a word passed separately is read as if glued to the previous one, as GPT-2's and Gemma's tokenizers
    do: a space before it gives the tokens that the model was trained on."""
    options = dict(add_special_tokens=False, verbose=False)
    text = tokenizer(["a a"], **options).encodings[0].ids
    glued, apart = (
        tokenizer([words], is_split_into_words=True, **options).encodings[0].ids for words in (["a", "a"], ["a", " a"])
    )
    return text != glued and text == apart


def with_blanks(words: list[str], unit: str) -> list[str]:
    """Words, each with the space before it, if a text has one there (see `join_tokens`)."""
    _, spans = join_tokens(words, unit)
    gaps = [False, *(after[0] > before[1] for before, after in itertools.pairwise(spans))]
    return [f" {word}" if gap else word for word, gap in zip(words, gaps)]


def label_column(task: str) -> str:
    """The name of a task's column; the prefix avoids clashes with our own columns."""
    return f"labels.{task}"


def to_arrow(column: Ragged | np.ndarray) -> pa.Array:
    if isinstance(column, Ragged):
        return pa.ListArray.from_arrays(pa.array(column.offsets, pa.int32()), pa.array(column.values))
    return pa.array(column)


def to_numpy(column: pa.ChunkedArray) -> Any:
    """Arrow column -> Ragged or array."""
    if not pa.types.is_list(column.type):
        return column.to_numpy()
    chunks = column.chunks
    lengths = np.concatenate([chunk.value_lengths().to_numpy() for chunk in chunks])
    return Ragged(
        np.concatenate([chunk.flatten().to_numpy() for chunk in chunks]),
        np.concatenate([[0], lengths.cumsum(dtype=np.int64)]),
    )


def encoded_fingerprint(path: str | Path, featurizer: Featurizer, limit: int | str | None) -> str:
    """A hash of the file's bytes and of everything that affects their encoding."""
    return hashlib.sha256(f"{sha256(path)}{featurizer.fingerprint()}{limit}".encode()).hexdigest()[:20]


def warn_of_cuts(data: Any, where: str | Path) -> None:
    """Logs which parts of a MyDataset no window or batch holds: nothing is cut silently."""
    cuts = Cuts()
    cuts.add(data)
    cuts.log(where, data.tasks)


class Cuts:
    """Counts the parts of MyDatasets that no window or batch holds. counts: {what: how many}, to start from."""

    def __init__(self, counts: Mapping[str, int] | Iterable[tuple[str, int]] = ()):
        self.counts = Counter(dict(counts))

    def add(self, data: Any) -> None:
        columns, counts = data.columns, self.counts
        is_cut = columns["num_cut"] > 0
        counts["examples"] += len(data)
        counts["max_length"] = data.featurizer.max_length
        counts["cut"] += int(is_cut.sum())
        counts["tokens"] += int(columns["num_cut"].sum())
        if "num_words" in columns:
            counts["words"] += int((columns["num_words"] - columns["word_starts"].lengths)[is_cut].sum())
        if len(data.lengths) > len(data):
            in_windows = len(np.unique(data.example_index[columns["first_word"] > 0]))
            counts["windows"] += len(data.lengths) - len(data) + in_windows
            for name in [name for name, task in data.tasks.items() if has_spans(task["type"])]:
                counts[f"outside {name}"] += num_outside(data, name)

    def log(self, where: str | Path, tasks: dict[str, dict[str, Any]]) -> None:
        """Logs what was cut, or otherwise what is read in windows."""
        counts, max_length = self.counts, self.counts["max_length"]
        longer = f"{where}: {counts['cut']} of {counts['examples']} examples are longer than --max_length {max_length}"
        if counts["cut"] and any(needs_words(task["type"]) for task in tasks.values()):
            logger.warning(f"{longer}; their last {counts['words']} words are not seen and count as O")
        elif counts["cut"]:
            logger.warning(f"{longer}; {counts['tokens']} sub-tokens are not seen")
        elif counts["windows"]:
            text_labels = any(not needs_words(task["type"]) for task in tasks.values())
            logger.info(
                f"{where}: examples longer than --max_length {max_length} are read in {counts['windows']} overlapping "
                "windows" + ("; labels of the whole text come from the first" if text_labels else "")
            )
            for name in tasks:
                if lost := counts[f"outside {name}"]:
                    logger.warning(f"{where}: {lost} spans of {name!r} fit no window; raise --window_stride")
