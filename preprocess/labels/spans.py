"""Reads character spans (such as entities) in the common formats, and converts them to tags or token spans.

To read spans in another format, edit this file.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import regex

from engine.errors import UserError
from engine.task.text import HAN, split_text
from preprocess.example import Example, shown
from preprocess.labels.kinds import check_label
from preprocess.storage.facts import Note

Span = tuple[int, int, str]  # (start, exclusive end, label), in characters
Piece = tuple[str, int, int]  # (token, start, end), in characters
SPAN_KEYS = [  # common names of a span's start, end, label and text
    ("start", "start_offset", "start_idx", "begin"),
    ("end", "end_offset", "end_idx"),
    ("label", "labels", "type", "entity_type", "entity_group", "tag"),
    ("text", "entity", "word", "surface", "mention"),
]
SPACED = regex.compile(
    rf"(?!{HAN})[\p{{L}}\p{{M}}\p{{N}}_](?<![\p{{Hangul}}\p{{Thai}}\p{{Lao}}\p{{Khmer}}\p{{Myanmar}}])"
)


class StoredSpan(NamedTuple):
    """A raw span. Missing values are None."""

    start: Any
    end: Any
    label: Any
    surface: Any = None
    continuous: bool = True

    def has_place(self) -> bool:
        return type(self.start) is int and type(self.end) is int


def is_spans(value: Any) -> bool:
    """Returns True if a label is a list of spans, or a dict of spans as in CLUENER."""
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict | list) for item in value))


def read_all_spans(examples: list[Example], names: list[str]) -> None:
    """Converts character spans of `text` in any supported form to lists of Span. names: the tasks with such labels."""
    if names and examples and "text" not in examples[0]:
        raise UserError(f"{examples[0]['_where']}: {names[0]!r} has spans of characters, but there is no `text`")
    for example in examples:
        for name in names:
            if example.get(name) is not None:
                example[name] = read_spans(example[name], example["text"], example["_where"])


def read_spans(value: Any, text: str, where: str) -> list[Span]:
    """Returns the spans in text order. Surface forms in the data must match the text.

    value: [{"start", "end", "label"}] (or other common key names), [[start, end, label]] (doccano), or CLUENER's
    {label: {surface: [[first, last]]}} with inclusive ends.
    """
    if not isinstance(value, dict | list):
        raise UserError(f"{where}: expected a list of spans, as in other rows, found {shown(value)}")
    spans = []
    fields = fields_of_dict(value, where) if isinstance(value, dict) else (fields_of(item, text) for item in value)
    for span in fields:
        if not span.has_place() or not isinstance(span.label, str) or not span.label:
            values = ", ".join(map(shown, span[:3]))
            raise UserError(f"{where}: a span needs a start, an end and a label, found {values}")
        spans.append((*place_of(span, text, where), span.label))
    return sorted(set(spans))


def place_of(span: StoredSpan, text: str, where: str) -> tuple[int, int]:
    """Returns the start and the exclusive end of a span. Raises UserError if the span is outside the text or does not
    match its surface form."""
    start, end, label, surface, _ = span
    if surface and text[start:end] != surface and text[start : end + 1] == surface:
        end += 1  # ends are inclusive in the data
    ends = from_utf16(text, start, end) if surface and text[start:end] != surface else None
    if ends and text[slice(*ends)] == surface:
        problem = f"matches {shown(surface)} only if offsets are UTF-16 units (an emoji is two)"
        raise UserError(f"{where}: the span {start} to {end} {problem}; add --offsets utf16")
    if not 0 <= start < end <= len(text):
        problem = f"is outside the text of {len(text)} characters"
        raise UserError(f"{where}: the span {start} to {end} of {shown(label)} {problem}")
    if surface and text[start:end] != surface:
        called = f"is {shown(text[start:end])}, but the data says {shown(surface)}"
        raise UserError(f"{where}: the span {start} to {end} {called}; correct one of them")
    return start, end


def is_cut(text: str, position: int) -> bool:
    """Returns True if a position is outside the text, or inside a word of a script that separates words by spaces."""
    if not 0 <= position <= len(text):
        return True
    return 0 < position < len(text) and bool(SPACED.match(text[position - 1]) and SPACED.match(text[position]))


def from_utf16(text: str, *offsets: int) -> list[int] | None:
    """Converts offsets in UTF-16 units (an emoji is two) to characters. Returns None if one is outside the text or
    inside a character."""
    raw = text.encode("utf-16-le", "surrogatepass")
    if min(offsets) < 0 or 2 * max(offsets) > len(raw):
        return None
    try:
        return [len(raw[: 2 * offset].decode("utf-16-le")) for offset in offsets]
    except UnicodeDecodeError:
        return None


def fields_of_dict(value: dict, where: str) -> Iterator[StoredSpan]:
    """Yields the spans of CLUENER's {label: {surface: [[first, last]]}}."""
    for label, surfaces in value.items():
        if not isinstance(surfaces, dict):
            raise UserError(f"{where}: entities must be {{label: {{surface: [[first, last]]}}}} or a list of spans")
        for surface, ranges in surfaces.items():
            for ends in ranges if isinstance(ranges, list) else [ranges]:
                start, last = ends if isinstance(ends, list) and len(ends) == 2 else (ends, None)
                yield StoredSpan(start, last + 1 if isinstance(last, int) else last, label, surface)


def fields_of(item: Any, text: str = "") -> StoredSpan:
    """Converts an item to a StoredSpan. text: decides whether the key `entity` is the span's text or its label."""
    if not isinstance(item, dict):
        return StoredSpan(*item) if isinstance(item, list) and len(item) == 3 else StoredSpan(item, None, None)
    start, end, label, surface = (next((item[key] for key in keys if key in item), None) for keys in SPAN_KEYS)
    if isinstance(label, list) and len(label) == 1:
        (label,) = label
    if label is None and "entity" in item and type(start) is int and type(end) is int:
        is_surface = item["entity"] in (text[start:end], text[start : end + 1])
        if not is_surface:
            label = item["entity"]
            surface = next((item[key] for key in SPAN_KEYS[3] if key in item and key != "entity"), None)
    return StoredSpan(start, end, label, surface)


def without_overlaps(spans: Iterable[Span]) -> tuple[list[Span], list[Span]]:
    """Returns (kept, dropped). Of two spans that share a character, keeps the longer one, then the earlier one."""
    kept: list[Span] = []
    dropped: list[Span] = []
    for span in sorted(spans, key=lambda span: (span[0] - span[1], span[0], span[2])):
        is_overlapping = any(span[0] < other[1] and other[0] < span[1] for other in kept)
        (dropped if is_overlapping else kept).append(span)
    return sorted(kept), dropped


def tokenize_spans(examples: list[Example], names: list[str], unit: str, nested: Collection[str] = ()) -> list[Note]:
    """Adds `tokens` to examples whose labels are lists of Span, and converts the labels to tags. Keeps `text`. unit:
    see split_text. nested: tasks whose labels (lists of Span, Relation or event Item) become token spans instead.
    Returns notes on the changes."""
    overlapping, inside, blank = [], [], []
    for example in examples:
        where, text, spans = example["_where"], example["text"], {}
        for name in names:
            if example.get(name) is not None:
                spans[name], dropped = (example[name], []) if name in nested else without_overlaps(example[name])
                overlapping += [f"{where}: {text[start:end]!r} ({label})" for start, end, label in dropped]
        boundaries = {boundary for task_spans in spans.values() for *places, _ in task_spans for boundary in places}
        words = split_text(text, unit)
        pieces = split_at_boundaries(words, boundaries)
        if len(pieces) > len(words):
            inside.append(where)
        example["tokens"] = [token for token, _, _ in pieces]
        for name, task_spans in spans.items():
            if name in nested:
                example[name] = spans_to_tokens(task_spans, pieces)
                number = len(example[name])
            else:
                example[name] = spans_to_tags(task_spans, pieces)
                number = sum(tag[0] == "B" for tag in example[name])
            if number < len(task_spans):
                blank.append(where)
    name = names[0]
    advice = f"the longer of each pair was kept; --label_type {name}=spans keeps both"
    return [
        Note(f"{name}: spans overlap", overlapping, advice),
        Note(f"{name}: spans start or end inside a word", inside, "these words were split; try --unit character"),
        Note(f"{name}: spans contain only whitespace", blank, "they were dropped; correct the data"),
    ]


def token_spans(example: Example, name: str) -> list[Span]:
    """Returns the token spans of an example. Converts [first token, last token, label] to exclusive ends."""
    spans = check_label(example, name, "spans") if example.get(name) is not None else None
    return [(first, last + 1, label) for first, last, label in spans or ()]


def token_spans_to_tags(examples: list[Example], name: str) -> Note:
    """Converts spans of tokens to tags. Returns a note on dropped spans."""
    overlapping = []
    for example in examples:
        if example.get(name) is not None:
            tokens = example["tokens"]
            kept, dropped = without_overlaps(token_spans(example, name))
            example[name] = spans_to_tags(kept, [(token, n, n + 1) for n, token in enumerate(tokens)])
            overlapping += [f"{example['_where']}: {' '.join(tokens[a:b])!r} ({label})" for a, b, label in dropped]
    advice = f"the longer of each pair was kept; --label_type {name}=spans keeps both"
    return Note(f"{name}: spans overlap", overlapping, advice)


def split_at_boundaries(pieces: Iterable[Piece], boundaries: Collection[int]) -> list[Piece]:
    """Splits the pieces at span boundaries."""
    result = []
    for token, start, end in pieces:
        inner = sorted(boundary for boundary in boundaries if start < boundary < end)
        for a, b in zip([start, *inner], [*inner, end]):
            result.append((token[a - start : b - start], a, b))
    return result


def spans_to_tags(spans: Sequence[Span], pieces: Iterable[Piece]) -> list[str]:
    """Returns the BIO tags of the pieces. The spans must be sorted and must not overlap."""
    tags, number, last = [], 0, None
    for _, start, end in pieces:
        while number < len(spans) and spans[number][1] <= start:
            number += 1
        span = spans[number] if number < len(spans) and spans[number][0] < end else None
        tags.append("O" if span is None else f"{'I' if span is last else 'B'}-{span[2]}")
        last = span
    return tags


def spans_to_tokens(spans: Iterable[tuple[Any, ...]], pieces: Sequence[Piece]) -> list[list]:
    """Converts spans (start, end, label), or items with several pairs of start and end, to [[first token, last token,
    …, label]]. They must start and end at boundaries of pieces. Drops items with a span of only whitespace."""
    starts, ends = [start for _, start, _ in pieces], [end for _, _, end in pieces]
    found = set()
    for *places, label in spans:
        pairs = zip(places[::2], places[1::2])
        ranges = [(bisect_left(starts, start), bisect_right(ends, end) - 1) for start, end in pairs]
        if all(first <= last for first, last in ranges):
            found.add((*chain.from_iterable(ranges), label))
    return [list(item) for item in sorted(found)]


def mostly_chinese(texts: Iterable[str]) -> bool:
    """Returns True if most letters of the texts are Chinese or kana."""
    text = "".join(texts)
    letters, chinese = (regex.subn(pattern, "", text)[1] for pattern in (r"\p{L}", HAN))
    return 2 * chinese > letters
