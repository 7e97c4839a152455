"""Converts custom inputs that are text spans to token positions in the model input."""

from typing import Any

import numpy as np

from engine.data.windows import Cutter, Feature, encode_texts, words_of_first
from engine.task.text import HAN_CHARACTER
from engine.task.words import text_and_offsets, texts_to_encode


def units_of(featurizer: Any, example: dict[str, Any], unit: str) -> tuple[list[tuple[int, int]], list[int]]:
    """Returns (offsets, positions): the (start, end) of each token, or of each word for word-level tasks, in characters
    or words; and the positions of the tokens that remain after truncation."""
    words = [(i, i + 1) for i in range(len(example.get("tokens", ())))]
    if unit == "characters":
        words = text_and_offsets(example, featurizer.unit, HAN_CHARACTER)[1] or []
    if featurizer.tagging:
        return words, []
    by_words, options = "tokens" in example, (featurizer.unit, HAN_CHARACTER, featurizer.blanks, featurizer.separator)
    first, second = texts_to_encode(example, by_words, *options)
    seconds = None if second is None else [second]
    encoding = encode_texts(featurizer.encode, [first], seconds, featurizer.filler)[0]
    of_tokens = words_of_first(encoding)
    tokens = [words[word or 0] for word in of_tokens] if by_words else encoding.offsets
    kept = list(range(len(tokens)))
    if len(tokens) > featurizer.max_length:
        kept = Cutter(featurizer.max_length, featurizer.stride, featurizer.long_text, False).kept(encoding)
    return [(0, 0) if word is None else token for token, word in zip(tokens, of_tokens)], kept


def spans_inside(
    featurizer: Any, feature: Feature, example: dict[str, Any], spans: np.ndarray, unit: str
) -> np.ndarray:
    """Returns the first and last token of each span in an input, or its first and last word in a window: (N, 2), -1 for
    spans that are truncated.

    spans: (N, 2), begin and end (exclusive) of each, in characters or words.
    """
    units, kept = units_of(featurizer, example, unit)
    if featurizer.tagging:
        kept = list(range(feature.first_word, feature.first_word + len(feature.word_starts)))
    positions, found = {number: position for position, number in enumerate(kept)}, []
    for start, end in spans.tolist():
        inside = [number for number, (begin, stop) in enumerate(units) if begin < end and stop > start]
        is_whole = bool(inside) and positions.keys() >= {*inside}
        found.append((positions[inside[0]], positions[inside[-1]]) if is_whole else (-1, -1))
    return np.array(found, np.int64).reshape(-1, 2)
