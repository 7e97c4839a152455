"""Joins the words of a text, finds their offsets and entities, and writes output columns.

Only the standard library is used, because every exported folder has a copy of this file.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any
from unicodedata import category

Offsets = list[tuple[int, int]]  # (start, end) of each token in its text
INVISIBLE = ("Cc", "Cf", "Zl", "Zp", "Zs")  # categories of control and format characters, and of blanks
# Limits for spans, as an untrained model accepts half of all: the minimum score (a probability of 1.8 %), whatever the
# threshold chosen on dev, and the number of best spans to keep
LOWEST_SCORE, SPANS_PER_WORD = -4.0, 4


def join_tokens(tokens: Iterable[str], unit: str, han: Any) -> tuple[str, Offsets]:
    """Joins tokens into a text. A space separates words, but not Chinese characters.

    han: the compiled pattern of a Chinese character, of `re` or `regex`.
    """
    text, offsets, end, last = [], [], 0, ""
    for token in tokens:
        if unit == "word" and last and token and not (han.match(last) or han.match(token[0])):
            text.append(" ")
            end += 1
        offsets.append((end, end + len(token)))
        text.append(token)
        end += len(token)
        last = token[-1:] or last
    return "".join(text), offsets


def place_tokens(text: str, tokens: Iterable[str]) -> Offsets | None:
    """The offsets of tokens that occur in the text in this order; None if they do not."""
    offsets, end = [], 0
    for token in tokens:
        start = text.find(token, end)
        if start < 0:
            return None
        end = start + len(token)
        offsets.append((start, end))
    return offsets


def id_of(given: Any, number: int) -> str:
    """The id of an input row: the given one, otherwise the row number, from 0."""
    return str(number if given is None else given)


def text_or_tokens(value: Any, text: Any) -> dict[str, Any]:
    """The text or tokens of an input row. text: the text of a row with tokens; kept if the tokens are from it"""
    if not isinstance(value, list):
        return {"text": value}
    words = [token for token in value if isinstance(token, str)]
    is_whole = isinstance(text, str) and place_tokens(text, words) is not None
    return {"text": text, "tokens": value} if is_whole else {"tokens": value}


def text_and_offsets(example: dict[str, Any], unit: str, han: Any) -> tuple[str, Offsets | None]:
    """The text of an example, and the offsets of its tokens, None without tokens."""
    text, tokens = example.get("text"), example.get("tokens")
    if tokens is None:
        return example["text"], None
    if text is not None and (offsets := place_tokens(text, tokens)) is not None:
        return text, offsets
    return join_tokens(tokens, unit, han)  # there is no text, or the tokens are not from it


def texts_to_encode(
    example: dict[str, Any], by_words: bool, unit: str, han: Any, blanks: bool, separator: str | None
) -> tuple[Any, Any]:
    """The first and the second text (or None) of an example as its tokenizer reads them; by_words: as lists of words.

    blanks: words keep their leading space; separator: prepended to the second text, if the tokenizer adds none.
    """
    first, second = example["tokens" if by_words else "text"], example.get("text_pair")
    if by_words:
        second = None if second is None else second.split()
        if blanks:
            first, second = with_blanks(first, unit, han), second and with_blanks(second, "word", han)
    if second is not None and separator:
        second = [separator, *second] if by_words else f"{separator}{second}"
    return first, second


def with_blanks(words: list[str], unit: str, han: Any) -> list[str]:
    """Words with their leading space, where `join_tokens` would put one."""
    _, offsets = join_tokens(words, unit, han)
    gaps = [False, *(after[0] > before[1] for before, after in pairwise(offsets))]
    return [f" {word}" if gap else word for word, gap in zip(words, gaps)]


def entities_in(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """[(type, first token, last token)] of a list of tags, as seqeval's get_entities reads them.

    This version needs no scikit-learn and skips tokens outside entities.
    """
    found, before, kind_before, begin = [], "O", "_", 0
    for i, chunk in enumerate([*tags, "O"]):
        if chunk == before == "O":
            kind_before = "_"
            continue
        tag, kind = chunk[0], chunk[1:].split("-", 1)[-1] or "_"
        another = kind != kind_before
        if before in "ES" or (before in "BI" and tag in "BSO") or (another and before not in "O."):
            found.append((kind_before, begin, i - 1))
        if tag in "BS" or (tag in "EI" and before in "ESO") or (another and tag not in "O."):
            begin = i
        before, kind_before = tag, kind
    return found


def entity(label: str, start: int, end: int, text: str) -> dict[str, Any]:
    return {"label": label, "text": text[start:end], "start": start, "end": end}


def entities(tags: Sequence[str], offsets: Offsets, text: str) -> list[dict[str, Any]]:
    return [entity(label, offsets[first][0], offsets[last][1], text) for label, first, last in entities_in(tags)]


def is_wordless(example: dict[str, Any]) -> bool:
    """Whether a text has no words, only blanks and invisible characters, and so neither tags nor spans, though the
    model reads it as [UNK]."""
    pieces = (*(example.get("tokens") or ()), example.get("text") or "")
    return all(category(character) in INVISIBLE for piece in pieces for character in piece)


def columns_of(name: str, kind: str, label: Any, offsets: Any, text: str, probability: Any = None) -> dict[str, Any]:
    """The output columns of a task's label, gold or predicted; a missing label stays None.

    kind: "spans", "entities" (tags that mark entities), "tags" (other tags), or any other for a text-level label.
    """
    if kind == "spans":
        spans = label and [entity(of, offsets[first][0], offsets[last][1], text) for first, last, of in label]
        if probability is not None:
            spans = [span | {"probability": round(p, 6)} for span, p in zip(spans, probability)]
        return {name: spans}
    if kind in ("entities", "tags"):
        found = {name: label and entities(label, offsets, text)} if kind == "entities" else {}
        return found | {f"{name}_tags": label}
    if probability is None:
        return {name: label}
    rounded = [round(p, 6) for p in probability] if isinstance(probability, list) else round(probability, 6)
    return {name: label, f"{name}_probability": rounded}


def row_of(
    example: dict[str, Any], answers: dict[str, tuple[str, Any, Any]], text: str, offsets: Offsets | None
) -> dict[str, Any]:
    """The output row of an example. answers: {task: (kind of `columns_of`, label, probability)}"""
    example = example | {"text": text}
    row: dict[str, Any] = {key: example[key] for key in ("id", "text", "text_pair") if key in example}
    for name, (kind, label, probability) in answers.items():
        row |= columns_of(name, kind, label, offsets, text, probability)
    return row
