"""Encodes texts, truncates them or splits them into windows, and merges the predictions for windows.

Uses only the package `tokenizers`, because every exported folder has a copy of this file.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tokenizers import Encoding

Span = tuple[int, ...]  # word indices, label id (see PLACES)


class UnreadableExample(ValueError):
    """Raised if a model cannot read an example; the message is a one-line reason."""


class Feature(NamedTuple):
    """One input of the model: an example, or a window of a long one."""

    example: int  # index in the list of examples
    input_ids: list[int]
    token_types: list[int]
    word_starts: list[int]  # position of the first sub-token of each word; only for tagging
    word_ends: list[int]  # position of the last sub-token of each word
    first_word: int = 0
    num_cut: int = 0  # number of truncated sub-tokens

    def joined_with(self, second: "Feature") -> "Feature":
        """Joins two separately encoded texts, each with special tokens, into one input with token types 0 and 1."""
        types = [0] * len(self.input_ids) + [1] * len(second.input_ids)
        num_cut = self.num_cut + second.num_cut
        return self._replace(input_ids=self.input_ids + second.input_ids, token_types=types, num_cut=num_cut)


def encode_texts(
    encode: Callable[[list[Any], list[Any] | None], list[Encoding]],
    first: list[Any],
    second: list[Any] | None,
    filler: str,
) -> list[Encoding]:
    """Encodes texts or pre-split words, optionally with second texts. The filler replaces empty texts and words that
    the tokenizer drops (a space, U+200B, U+FE0F), so every word has a token and tags stay aligned."""
    encodings = list(encode(first, second))
    for i, text in enumerate(first):
        if isinstance(text, list) and (missing := missing_words(encodings[i], len(text))):
            words = [filler if position in missing else word for position, word in enumerate(text)]
            encodings[i] = encode([words], second and [second[i]])[0]
        if not encodings[i].ids:  # no model accepts empty input
            encodings[i] = encode([filler], None)[0]
    return encodings


def words_of_first(encoding: Encoding) -> list[int | None]:
    """Returns the word index of each token in the first text; None for other tokens."""
    return [word if sequence == 0 else None for word, sequence in zip(encoding.word_ids, encoding.sequence_ids)]


def missing_words(encoding: Encoding, num_words: int) -> set[int]:
    """Returns the indices of words without tokens."""
    return set(range(num_words)).difference(words_of_first(encoding))


def word_positions(words: Iterable[int | None]) -> tuple[list[int], list[int]]:
    """Returns the positions of the first and the last sub-token of each word. words: word index of each token"""
    starts, last, before = [], {}, None
    for position, word in enumerate(words):
        if word is not None:
            if word != before:
                starts.append(position)
                before = word
            last[word] = position
    return starts, [last[word] for word in sorted(last)]


def pick(values: Sequence[Any], positions: Iterable[int]) -> list[Any]:
    return [values[i] for i in positions]


class Cutter(NamedTuple):
    """Truncates or splits inputs longer than max_length tokens.

    long_text "windows": one Feature with all windows, concatenated; all but the last have max_length tokens, and they
    overlap by `stride` sub-tokens. Otherwise, for word-level labels: splits the input into Features of whole words that
    overlap by at most `stride` sub-tokens (-1: truncates the end). Otherwise: keeps the head, the tail, or a quarter
    from the head and three quarters from the tail (Sun et al., 2019, arXiv:1905.05583). In pairs, the longer text is
    truncated first.
    """

    max_length: int
    stride: int
    long_text: str
    by_words: bool  # labels are per word
    markers: Mapping[str, int] = {}  # {name: id} of tokens that each text must have once

    def features(
        self, example: int, encoding: Encoding, second: Encoding | None = None, has_words: bool = True
    ) -> list[Feature]:
        """Returns the Features of an example. second: a second text that is encoded separately; has_words: False if the
        text is only the filler. Raises UnreadableExample if the first Feature lacks a marker, because it is used to
        predict text-level labels."""
        features = self.cut(example, encoding, has_words)
        for name, token in self.markers.items():
            if features[0].input_ids.count(token) != 1:
                count = encoding.ids.count(token)
                reason = f"--max_length {self.max_length} truncates {name}" if count == 1 else f"it has {count} {name}"
                raise UnreadableExample(f"{reason}; this model needs one in each text")
        return features if second is None else [features[0].joined_with(*self.cut(example, second, False))]

    def cut(self, example: int, encoding: Encoding, has_words: bool) -> list[Feature]:
        is_long = len(encoding.ids) > self.max_length
        if is_long and self.long_text == "windows" and (joined := self.joined(example, encoding, has_words)):
            return [joined]
        if is_long and self.by_words and self.stride >= 0:
            return self.windows(example, encoding)
        kept = self.kept(encoding) if is_long else range(len(encoding.ids))
        words = pick(words_of_first(encoding), kept) if self.by_words and has_words else []
        ids, token_types = (pick(v, kept) if is_long else v for v in (encoding.ids, encoding.type_ids))
        return [Feature(example, ids, token_types, *word_positions(words), num_cut=len(encoding.ids) - len(kept))]

    def kept(self, encoding: Encoding) -> list[int]:
        """Returns the positions to keep when an input is truncated."""
        sequences = encoding.sequence_ids
        texts = [[i for i, sequence in enumerate(sequences) if sequence == number] for number in (0, 1)]
        part = "head" if self.by_words or self.long_text == "windows" else self.long_text
        if part == "head_tail" and texts[1]:
            raise UnreadableExample("--long_text head_tail requires single texts; use head, tail or windows for pairs")
        sizes = longest_first(len(texts[0]), len(texts[1]), max(0, self.max_length - sequences.count(None)))
        kept = {i for i, sequence in enumerate(sequences) if sequence is None}
        for positions, size in zip(texts, sizes):
            head = {"head": size, "tail": 0, "head_tail": size // 4}[part]
            kept.update(positions[:head], positions[len(positions) - size + head :])
        return sorted(kept)

    def joined(self, example: int, encoding: Encoding, has_words: bool) -> Feature | None:
        """Returns one Feature with all windows of a long example; None if the shorter text of a pair leaves too little
        space. Each window has all special tokens and, in pairs, the shorter text. A word in two windows belongs to the
        one whose edge is farther from its first token."""
        sequences, all_ids, all_types = encoding.sequence_ids, encoding.ids, encoding.type_ids
        longer = 1 if not self.by_words and 2 * sequences.count(1) > len(sequences) - sequences.count(None) else 0
        inside = [i for i, sequence in enumerate(sequences) if sequence == longer]
        before, after = range(inside[0]), range(inside[-1] + 1, len(sequences))
        room = self.max_length - len(before) - len(after)
        if 2 * room < self.max_length or room <= self.stride:
            return None
        step = room - self.stride
        begins = range(0, max(1, len(inside) - self.stride), step)
        kept = [i for begin in begins for i in (*before, *inside[begin : begin + room], *after)]
        starts, ends = [], []
        words = words_of_first(encoding)[inside[0] : inside[-1] + 1] if self.by_words and has_words else []
        for first, last in zip(*word_positions(words)):
            number = min(max(0, first - self.stride // 2) // step, len(begins) - 1)
            starts.append(number * self.max_length + len(before) + first - begins[number])
            ends.append(starts[-1] + min(last - first, begins[number] + room - 1 - first))
        return Feature(example, pick(all_ids, kept), pick(all_types, kept), starts, ends)

    def windows(self, example: int, encoding: Encoding) -> list[Feature]:
        """Splits a long example into Features, each with as many whole words as fit, followed by the second text."""
        inside = [i for i, sequence in enumerate(encoding.sequence_ids) if sequence == 0]
        before, after = range(inside[0]), range(inside[-1] + 1, len(encoding.ids))
        room = self.max_length - len(before) - len(after)
        if room < 4:
            raise UnreadableExample(f"--max_length {self.max_length} leaves no space for the first text; raise it")
        # every access builds a new list
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
            lasts = [len(before) + min(ends[w] - begins[word], room) - 1 for w in range(word, stop)]
            features.append(Feature(example, pick(all_ids, kept), pick(all_types, kept), starts, lasts, word))
            if stop == len(begins):
                return features
            following = stop
            while following - 1 > word and ends[stop - 1] - begins[following - 1] <= self.stride:
                following -= 1
            word = following


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Returns how many tokens of two texts to keep, by the strategy longest_first of `tokenizers`."""
    short, long = sorted((first, second))
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short, long = room // 2, room // 2 + room % 2
    return (long, short) if first > second else (short, long)


def merge_windows(windows: Iterable[tuple[int, Sequence[Any]]]) -> list[Any]:
    """Merges overlapping windows, [(first word, [item per word])]. A word in two windows is taken from the one whose
    edge is farther away."""
    (_, merged), *rest = sorted(windows, key=lambda window: window[0])
    merged = list(merged)
    for first, items in rest:
        middle = (len(merged) - first + 1) // 2  # half of the shared words
        merged = merged[: first + middle] + list(items[middle:])
    return merged


def merge_spans(windows: Iterable[tuple[int, int, list[Any], list[float]]]) -> tuple[list[Span], list[float]]:
    """Merges the spans or relations predicted in the windows of a text -> (items, probabilities), without duplicates.

    windows: [(first word, number of words, spans, probabilities)]. If several windows contain a span, the window whose
    edges are farthest from it decides, even if it did not predict the span. The ends of the text are not edges.
    """
    windows = sorted(windows, key=lambda window: window[0])
    text_end = max(first + size for first, size, _, _ in windows)

    def room(number: int, start: int, stop: int) -> float:
        # distance from a span to the nearer edge of a window; negative if it is not inside
        first, size = windows[number][:2]
        before, behind = start - first, first + size - 1 - stop
        if before < 0 or behind < 0:
            return -1
        return min(before if first else math.inf, behind if first + size < text_end else math.inf)

    merged: dict[Span, float] = {}
    for number, (first, _, spans, probabilities) in enumerate(windows):
        for (*places, kind), p in zip(spans, probabilities):
            places = [place + first for place in places]
            begin, end = min(places), max(places)
            if max(range(len(windows)), key=lambda other: room(other, begin, end)) == number:
                merged[(*places, kind)] = p
    return sorted(merged), [merged[span] for span in sorted(merged)]
