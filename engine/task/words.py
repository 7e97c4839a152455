"""Joins words into texts, locates words and entities in texts, and builds output columns.

Uses only the standard library, because every exported folder has a copy of this file.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any
from unicodedata import category

Offsets = list[tuple[int, int]]  # (start, end) of each token in its text
INVISIBLE = ("Cc", "Cf", "Zl", "Zp", "Zs")  # Unicode categories of control and format characters, and of whitespace
# Limits for spans, since an untrained model accepts half of all spans: the minimum score (a probability of 1.8 %), even
# if the threshold chosen on dev is lower, and the maximum number of spans per word
LOWEST_SCORE, SPANS_PER_WORD = -4.0, 4


def join_tokens(tokens: Iterable[str], unit: str, han: Any) -> tuple[str, Offsets]:
    """Joins tokens into a text -> (text, offsets). Words are separated by spaces, but Chinese characters are not.

    han: compiled pattern of a Chinese character (`re` or `regex`).
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
    """Returns the offsets of tokens that occur in the text in this order; None if they do not."""
    offsets, end = [], 0
    for token in tokens:
        start = text.find(token, end)
        if start < 0:
            return None
        end = start + len(token)
        offsets.append((start, end))
    return offsets


def id_of(given: Any, number: int) -> str:
    """Returns the id of an input row: the given one, or else the zero-based row number."""
    return str(number if given is None else given)


def text_or_tokens(value: Any, text: Any) -> dict[str, Any]:
    """Returns the text or tokens of an input row. text: text of a row with tokens; kept if it contains them"""
    if not isinstance(value, list):
        return {"text": value}
    words = [token for token in value if isinstance(token, str)]
    is_whole = isinstance(text, str) and place_tokens(text, words) is not None
    return {"text": text, "tokens": value} if is_whole else {"tokens": value}


def text_and_offsets(example: dict[str, Any], unit: str, han: Any) -> tuple[str, Offsets | None]:
    """Returns the text of an example and the offsets of its tokens; the offsets are None if it has no tokens."""
    text, tokens = example.get("text"), example.get("tokens")
    if tokens is None:
        return example["text"], None
    if text is not None and (offsets := place_tokens(text, tokens)) is not None:
        return text, offsets
    return join_tokens(tokens, unit, han)  # there is no text, or it does not contain the tokens


def texts_to_encode(
    example: dict[str, Any], by_words: bool, unit: str, han: Any, blanks: bool, separator: str | None
) -> tuple[Any, Any]:
    """Returns the first and the second text (or None) to pass to the tokenizer; by_words: as lists of words.

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
    """Adds a leading space to the words that `join_tokens` would separate by one."""
    _, offsets = join_tokens(words, unit, han)
    gaps = [False, *(after[0] > before[1] for before, after in pairwise(offsets))]
    return [f" {word}" if gap else word for word, gap in zip(words, gaps)]


def entities_in(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Returns [(type, first token, last token)] for a list of tags, by the rules of seqeval's get_entities.

    This version does not need scikit-learn and skips tokens outside entities.
    """
    spans, before, kind_before, begin = [], "O", "_", 0
    for i, chunk in enumerate([*tags, "O"]):
        if chunk == before == "O":
            kind_before = "_"
            continue
        tag, kind = chunk[0], chunk[1:].split("-", 1)[-1] or "_"
        another = kind != kind_before
        if before in "ES" or (before in "BI" and tag in "BSO") or (another and before not in "O."):
            spans.append((kind_before, begin, i - 1))
        if tag in "BS" or (tag in "EI" and before in "ESO") or (another and tag not in "O."):
            begin = i
        before, kind_before = tag, kind
    return spans


def entity(label: str, start: int, end: int, text: str) -> dict[str, Any]:
    return {"label": label, "text": text[start:end], "start": start, "end": end}


def entities(tags: Sequence[str], offsets: Offsets, text: str) -> list[dict[str, Any]]:
    return [entity(label, offsets[first][0], offsets[last][1], text) for label, first, last in entities_in(tags)]


def is_wordless(example: dict[str, Any]) -> bool:
    """Whether a text has only whitespace and invisible characters. Its tags and spans are empty, although the model
    reads an [UNK]."""
    pieces = (*(example.get("tokens") or ()), example.get("text") or "")
    return all(category(character) in INVISIBLE for piece in pieces for character in piece)


def columns_of(name: str, kind: str, label: Any, offsets: Any, text: str, probability: Any = None) -> dict[str, Any]:
    """Returns the output columns for a task's label, gold or predicted; a missing label stays None.

    kind: "spans", "entities" (tags that mark entities), "tags" (other tags), or another string for text-level labels.
    """
    if kind == "spans":
        spans = label and [entity(of, offsets[first][0], offsets[last][1], text) for first, last, of in label]
        if probability is not None:
            spans = [span | {"probability": round(p, 6)} for span, p in zip(spans, probability)]
        return {name: spans}
    if kind in ("entities", "tags"):
        columns = {name: label and entities(label, offsets, text)} if kind == "entities" else {}
        return columns | {f"{name}_tags": label}
    if probability is None:
        return {name: label}
    rounded = [round(p, 6) for p in probability] if isinstance(probability, list) else round(probability, 6)
    return {name: label, f"{name}_probability": rounded}


def row_of(
    example: dict[str, Any], answers: dict[str, tuple[str, Any, Any]], text: str, offsets: Offsets | None
) -> dict[str, Any]:
    """Returns the output row of an example. answers: {task: (kind in `columns_of`, label, probability)}"""
    example = example | {"text": text}
    row: dict[str, Any] = {key: example[key] for key in ("id", "text", "text_pair") if key in example}
    for name, (kind, label, probability) in answers.items():
        row |= columns_of(name, kind, label, offsets, text, probability)
    return row
