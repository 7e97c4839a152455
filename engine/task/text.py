"""Text <-> tokens."""

from collections.abc import Iterable
from typing import Any

import regex

HAN = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
LETTER = rf"[[\p{{L}}\p{{M}}\p{{N}}_]--{HAN}]"
WORD = rf"(?V1){HAN}|{LETTER}+(?:(?:[-'’.:/@&]|(?<=\d),(?=\d)){LETTER}+)*|[^\s]"


def split_text(text: str, unit: str) -> list[tuple[str, int, int]]:
    """[(token, start, end)] of a raw text: characters, or words, with each Chinese character and symbol by itself.

    An empty text is one empty token, which the loader turns into [UNK].
    """
    pattern = {"word": WORD, "character": r"\S", "character+blank": r"(?s)."}[unit]
    return [(m.group(), m.start(), m.end()) for m in regex.finditer(pattern, text)] or [("", 0, 0)]


def join_tokens(tokens: Iterable[str], unit: str) -> tuple[str, list[tuple[int, int]]]:
    """(text, [(start, end)]): tokens joined into a text. A space separates words, but not Chinese characters."""
    text, spans = "", []
    for token in tokens:
        if unit == "word" and text and token and not (regex.match(HAN, text[-1]) or regex.match(HAN, token[0])):
            text += " "
        spans.append((len(text), len(text) + len(token)))
        text += token
    return text, spans


def place_tokens(text: str, tokens: Iterable[str]) -> list[tuple[int, int]] | None:
    """[(start, end)] of tokens that were cut from the text in order; None if they were not."""
    spans, position = [], 0
    for token in tokens:
        start = text.find(token, position)
        if start < 0:
            return None
        spans.append((start, start + len(token)))
        position = start + len(token)
    return spans


def text_of(example: dict[str, Any], with_pair: bool = False) -> str:
    """The text of an example, or its tokens joined by spaces; with_pair: also its second text."""
    if "tokens" in example:
        return " ".join(example["tokens"])
    return " ".join(filter(None, (example["text"], example.get("text_pair")))) if with_pair else example["text"]
