"""Reads the spans of one JSON object at the paths of a shape."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from engine.errors import UserError
from preprocess.example import shown
from preprocess.labels.spans import StoredSpan
from preprocess.readers.paths import MISSING, at
from preprocess.readers.shapes import KEY, VALUE, Spans


class SpanTask(NamedTuple):
    """A task whose labels are spans. inclusive: whether the ends are inclusive. is_sure: whether that is certain."""

    name: str
    path: str
    inclusive: bool
    is_sure: bool = True


def stored_spans(spans: Spans, value: Any) -> Iterator[StoredSpan]:
    """Yields the spans of one object. value: the value at their path."""
    for key, item in entries(rows_of_columns(value) if spans.columns else value):
        label = key if spans.label == KEY else at(item, spans.label)
        surface = item if spans.surface == VALUE else at(item, spans.surface) if spans.surface else None
        surface = surface if isinstance(surface, str) else None
        if spans.pieces:
            pieces = at(item, spans.pieces)
            yield StoredSpan(*ends_of(pieces), label, surface, is_continuous(pieces))
        elif not spans.start:
            yield StoredSpan(None, None, label, surface)
        else:
            start = at(item, spans.start)
            start = spans.default_start if start is MISSING and spans.default_start is not None else start
            end = at(item, spans.length or spans.end)
            if spans.length and type(start) is int and type(end) is int:
                end += start
            yield StoredSpan(start, end, label, surface)


def is_complete(span: StoredSpan, by_offsets: bool) -> bool:
    """Returns True if a span has a label, and its offsets or surface form. by_offsets: whether offsets are stored."""
    is_located = span.has_place() if by_offsets else bool(span.surface)
    return is_located and isinstance(span.label, str) and bool(span.label)


def entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Yields (key, span) from a dict of spans or of lists of spans. The key is "" for a list of spans."""
    if isinstance(value, list):
        yield from (("", item) for item in value)
    for key, items in value.items() if isinstance(value, dict) else ():
        is_span = not isinstance(items, list) or (items and type(items[0]) is int)
        yield from ((key, item) for item in ([items] if is_span else items))


def rows_of_columns(columns: Any) -> Any:
    """Converts {"start": […], "end": […], …} to [{"start", "end", …}]; returns [MISSING] for other values."""
    are_lists = isinstance(columns, dict) and columns and all(isinstance(each, list) for each in columns.values())
    if not are_lists or len({len(column) for column in columns.values()}) > 1:
        return [MISSING]
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


def ends_of(pieces: Any) -> tuple[Any, Any]:
    """Returns (first start, last end) of positions [0, 1, 2] or ranges [[0, 4], [6, 9]]."""
    first, last = (pieces[0], pieces[-1]) if isinstance(pieces, list) and pieces else (MISSING, MISSING)
    return at(first, "0") if isinstance(first, list) else first, at(last, "1") if isinstance(last, list) else last


def is_continuous(pieces: Any) -> bool:
    """Returns True if positions or ranges are contiguous."""
    if not isinstance(pieces, list) or not pieces:
        return True
    ranges = pieces if isinstance(pieces[0], list) else [[place, place + 1] for place in pieces if type(place) is int]
    return all(after[0] == before[1] for before, after in pairwise(ranges))


def is_surface(tokens: Sequence[str], surface: str) -> bool:
    """Returns True if tokens equal a surface form, ignoring whitespace."""
    return "".join("".join(tokens).split()) == "".join(surface.split())


def check_tokens(span: StoredSpan, tokens: list[str], inclusive: bool, where: str) -> None:
    """Raises UserError if a span is outside the tokens or differs from its surface form. span: has an exclusive end."""
    start, end, label, surface, _ = span
    end_type = f"with its end {'inclusive' if inclusive else 'exclusive'} (--span_end overrides)"
    source = f"{where}: the span {start} to {end - inclusive} of {shown(label)}"
    if not 0 <= start < end <= len(tokens):
        raise UserError(f"{source} is empty or outside the {len(tokens)} tokens, {end_type}")
    if surface and not is_surface(tokens[start:end], surface):
        called = f"is {shown(' '.join(tokens[start:end]))}, but the data says {shown(surface)}"
        raise UserError(f"{source} {called}, {end_type}")
