"""Reads JSON objects by one of SHAPES: finds the shape that the first objects have, and converts all of them.

Every span becomes {"start", "end", "label", "text"} in characters, or [first token, last token, label].
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import UserError
from engine.task.signs import TEXT_NAMES
from preprocess.example import shown
from preprocess.labels.spans import StoredSpan
from preprocess.readers import shapes
from preprocess.readers.archives import note
from preprocess.readers.options import ReadOptions, split_names
from preprocess.readers.paths import MISSING, Convert, Values, at, is_at, key_of, task_of
from preprocess.readers.shapes import KEY, VALUE, Shape, Spans

HEAD = 200  # the first objects, which determine the shape
FROM_TEXTS = 0.8  # the minimum share of values found in their texts; other values sometimes match by chance


def stored_spans(spans: Spans, found: Any) -> Iterator[StoredSpan]:
    """Yields the spans of one object. found: the value at their path"""
    for key, item in entries(rows_of_columns(found) if spans.columns else found):
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


def is_complete(span: StoredSpan, by_place: bool) -> bool:
    """Whether a span has a label and its position, or its surface instead."""
    found = span.has_place() if by_place else bool(span.surface)
    return found and isinstance(span.label, str) and bool(span.label)


def entries(found: Any) -> Iterator[tuple[str, Any]]:
    """(key, span) of a dict of spans or of lists of spans; the key is "" in a list of spans."""
    if isinstance(found, list):
        yield from (("", item) for item in found)
    for key, items in found.items() if isinstance(found, dict) else ():
        is_span = not isinstance(items, list) or (items and type(items[0]) is int)
        yield from ((key, item) for item in ([items] if is_span else items))


def rows_of_columns(found: Any) -> Any:
    """[{"start", "end", …}] of {"start": […], "end": […], …}; [MISSING] of other values."""
    lists = isinstance(found, dict) and found and all(isinstance(value, list) for value in found.values())
    if not lists or len({len(value) for value in found.values()}) > 1:
        return [MISSING]
    return [dict(zip(found, row)) for row in zip(*found.values())]


def ends_of(pieces: Any) -> tuple[Any, Any]:
    """The first start and last end of [0, 1, 2], or of [[0, 4], [6, 9]]."""
    first, last = (pieces[0], pieces[-1]) if isinstance(pieces, list) and pieces else (MISSING, MISSING)
    return at(first, "0") if isinstance(first, list) else first, at(last, "1") if isinstance(last, list) else last


def is_continuous(pieces: Any) -> bool:
    """Whether positions, or ranges, are contiguous."""
    if not isinstance(pieces, list) or not pieces:
        return True
    ranges = pieces if isinstance(pieces[0], list) else [[place, place + 1] for place in pieces if type(place) is int]
    return all(after[0] == before[1] for before, after in pairwise(ranges))


def is_surface(tokens: Sequence[str], surface: str) -> bool:
    """Whether tokens equal a surface, ignoring whitespace."""
    return "".join("".join(tokens).split()) == "".join(surface.split())


class SpanTask(NamedTuple):
    """A task whose labels are spans. inclusive: whether their ends are inclusive; is_sure: whether that is certain"""

    name: str
    path: str
    inclusive: bool
    is_sure: bool = True


@dataclass
class Reading:
    """How to read the objects of a file: by a shape, with details inferred from the first objects."""

    path: str | Path
    shape: Shape
    spans: list[SpanTask] = field(default_factory=list)
    convert: Convert | None = None  # of shapes with `find`
    tasks: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # {what is skipped: how often}
    weight: int = 0  # the number of paths that the shape names

    def __call__(self, values: Values, where: str) -> Values:
        """Converts an object to one with `text` or `tokens`, and labels keyed by task."""
        shape = self.shape
        found: Values = {}
        for key, path in (*((task_of(path), path) for path in shape.labels), ("text", shape.text)):
            if path and (value := at(values, path)) is not MISSING:
                found[key] = value
        if self.convert:
            return values | found | self.convert(values, where)
        tokens: Any = at(values, shape.tokens) if shape.tokens else MISSING
        if tokens is not MISSING:
            found["tokens"] = tokens
        if isinstance(found.get("tokens"), list) if shape.tokens else isinstance(found.get("text"), str):
            for task in self.spans:
                found[task.name] = self.read_spans(task, at(values, task.path), found, where)
        return values | found

    def read_spans(self, task: SpanTask, stored: Any, found: Values, where: str) -> list[Any] | None:
        """The spans of a task in one object. stored: the value at their path; found: has the text or tokens"""
        spans, result = self.shape.spans, list[Any]()
        assert spans
        if stored is MISSING or stored is None:
            return [] if spans.may_lack else None
        by_place, tokens = bool(spans.start or spans.pieces), found["tokens"] if self.shape.tokens else None
        for span in stored_spans(spans, stored):
            if not is_complete(span, by_place):
                raise UserError(f"{where}: a span of {task.name!r} needs a start, an end and a label, as in other rows")
            if not span.continuous:
                self.counts["discontinuous spans, which are skipped"] += 1
                continue
            start, end = span.start, span.end
            if not by_place:
                start = found["text"].find(span.surface)
                if start < 0 or start != found["text"].rfind(span.surface):
                    self.counts[f"texts in which a value does not occur exactly once; they have no {task.name}"] += 1
                    return None
                end = start + len(str(span.surface))
            end += task.inclusive
            if tokens is not None:
                check_tokens(span._replace(end=end), tokens, task.inclusive, where)
                result.append([start, end - 1, span.label])
            else:
                result.append({"start": start, "end": end, "label": span.label, "text": span.surface})
        return result

    def report(self) -> None:
        for what, number in self.counts.items():
            note(f"{self.path}: {number:,} {what}")


def check_tokens(span: StoredSpan, tokens: list[str], inclusive: bool, where: str) -> None:
    """Raises UserError for a span outside the tokens, or with a wrong surface. span: with an exclusive end"""
    start, end, label, surface, _ = span
    how = f"with its end {'inclusive' if inclusive else 'exclusive'} (--span_end overrides)"
    place = f"{where}: the span {start} to {end - inclusive} of {shown(label)}"
    if not 0 <= start < end <= len(tokens):
        raise UserError(f"{place} lies outside the {len(tokens)} tokens, or is empty, {how}")
    if surface and not is_surface(tokens[start:end], surface):
        called = f"is {shown(' '.join(tokens[start:end]))}, but the data gives {shown(surface)}"
        raise UserError(f"{place} {called}, {how}")


# ---- which shape ---------------------------------------------------------------------------------------------------


def find_reading(path: str | Path, objects: Sequence[Values], options: ReadOptions) -> Reading | None:
    """The Reading that fits the first objects of a file; None if text, tokens and labels are under usual keys, or if no
    shape fits. Raises UserError if several different shapes fit equally well."""
    rows = [values for values in objects[:HEAD] if isinstance(values, dict)]
    wanted = [shape for shape in shapes.SHAPES if options.shape in ("auto", shape.name)]
    if options.shape == "none" or not rows:
        return None
    if not wanted:
        names = ", ".join(shape.name for shape in shapes.SHAPES)
        raise UserError(f"--shape {options.shape!r} is not one of: auto, none, {names}")
    readings = [reading for shape in wanted if (reading := fitting(path, shape, rows, options))]
    usual = any({"tokens", *TEXT_NAMES} & row.keys() for row in rows)
    if not options.labelled and not readings and (not usual or options.shape != "auto"):
        readings = [found for shape in wanted if (found := fitting(path, shape, rows, options, needs_spans=False))]
    for reading in readings if not options.labelled else ():
        reading.spans.clear()
    if options.shape != "auto" and not readings:
        raise UserError(f"{path}: the first {len(rows)} objects do not fit --shape {options.shape!r}")
    best = max((reading.weight for reading in readings), default=0)
    fit = [reading for reading in readings if reading.weight == best]
    for other in fit[1:]:
        if [outcome(fit[0], row) for row in rows] != [outcome(other, row) for row in rows]:
            both = f"{fit[0].shape.name!r} and {other.shape.name!r}"
            raise UserError(f"{path}: the objects fit the shapes {both} equally well; name one with --shape")
    if fit:
        settle(fit[0], rows[0], options)
    return fit[0] if fit else None


def outcome(reading: Reading, row: Values) -> Any:
    """The object converted by a Reading, or the error message."""
    try:
        return reading(row, "")
    except UserError as error:
        return str(error)


def settle(reading: Reading, row: Values, options: ReadOptions) -> None:
    """Keeps the tasks in --label_column, and records how they are read. Raises UserError if it is unclear whether
    the ends of their spans are inclusive."""
    reading.counts.clear()
    wanted, shape = split_names(options.label_column), reading.shape
    reading.spans = [task for task in reading.spans if not wanted or task.name in wanted]
    if doubtful := [task.name for task in reading.spans if not task.is_sure]:
        doubt = "do not show whether their ends are inclusive (no span of one token, none up to the last token)"
        advice = "add --span_end inclusive or --span_end exclusive"
        raise UserError(f"{reading.path}: the spans of {doubtful[0]!r} {doubt}; {advice}")
    unit = "tokens" if shape.tokens else "characters"
    how = {task.name: f" ({unit}, ends {('exclusive', 'inclusive')[task.inclusive]})" for task in reading.spans}
    labels = ", ".join(f"{task}{how.get(task, '')}" for task in reading.tasks)
    text = key_of(path, row) if (path := shape.tokens or shape.text) else None
    if not options.labelled:
        options.understood.unread.update(reading.tasks)
    options.understood.add(reading.path, shape.name, text=text, labels=labels if options.labelled else None)


def fitting(
    path: str | Path, shape: Shape, rows: Sequence[Values], options: ReadOptions, needs_spans: bool = True
) -> Reading | None:
    """The Reading of a shape, or None if an object lacks one of its paths (of spans only if they are needed)."""
    if not all(is_at(row, needed) for needed in shape.also for row in rows):
        return None
    tasks = [task_of(label) for label in shape.labels if any(is_at(row, label) for row in rows)]
    weight = 2 * (bool(shape.text) + bool(shape.tokens) + len(shape.also)) + len(tasks)
    reading = Reading(path, shape, tasks=tasks, weight=weight)
    if shape.find:
        try:
            reading.convert = shape.find(rows, options)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        reading.weight = weight or 2
        if reading.convert:
            reading.tasks += [key for key in reading.convert(rows[0], "") if key != "text"]
        return reading if reading.convert else None
    if shape.text and not all(isinstance(at(row, shape.text), str) for row in rows):
        return None
    if shape.tokens and not all(are_tokens(at(row, shape.tokens)) for row in rows):
        return None
    return with_spans(reading, shape.spans, rows, options) if shape.spans and needs_spans else reading


def are_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(token, str) for token in value)


def with_spans(reading: Reading, spans: Spans, rows: Sequence[Values], options: ReadOptions) -> Reading | None:
    """Adds the tasks whose values are spans of this form. Returns the Reading, or None without such tasks."""
    for path in dict.fromkeys([*spans.path.split("|"), *split_names(options.label_column)]):
        found = spans_in(spans, rows, path)
        if not found or task_of(path) in (reading.shape.text, reading.shape.tokens):
            continue
        task: SpanTask | None = SpanTask(task_of(path), path, inclusive=False)
        if spans.start or spans.pieces:
            task = inclusive_or_not(reading.shape, path, [pair for pair in found if pair[0].continuous], options)
        elif sum(str(span.surface) in at(row, reading.shape.text) for span, row in found) < FROM_TEXTS * len(found):
            task = None
        if task:
            reading.tasks.append(task.name)
            reading.spans.append(task)
            has_surface = bool(spans.surface) and any(span.surface for span, _ in found)
            named = [spans.start or spans.surface, spans.start and spans.end, spans.label, spans.pieces, has_surface]
            reading.weight += sum(map(bool, named))
    return reading if reading.spans else None


def spans_in(spans: Spans, rows: Sequence[Values], path: str) -> list[tuple[StoredSpan, Values]]:
    """[(span, its object)] of all objects; empty if some lack the path or have spans of another form."""
    stored = [(row, at(row, path)) for row in rows]
    present = [(row, value) for row, value in stored if value is not MISSING and value is not None]
    if not spans.may_lack and any(value is MISSING for _, value in stored):
        return []
    if not present or not all(isinstance(value, list | dict) for _, value in present):
        return []
    items = [item for _, value in present if isinstance(value, list) for item in value]
    if spans.without and any(is_at(item, spans.without) for item in items):
        return []
    found = [(span, row) for row, value in present for span in stored_spans(spans, value)]
    return found if all(is_complete(span, bool(spans.start or spans.pieces)) for span, _ in found) else []


def inclusive_or_not(
    shape: Shape, path: str, found: Sequence[tuple[StoredSpan, Values]], options: ReadOptions
) -> SpanTask | None:
    """The task at a path. --span_end, the surfaces, the spans or the shape decide whether its ends are inclusive; None
    if they can be neither.

    A span with start = end implies inclusive ends; one that ends after the last token implies exclusive ends.
    """
    spans = shape.spans
    assert spans
    ends = [(span, at(row, shape.tokens or shape.text)) for span, row in found]
    behind = any(span.end >= len(whole) for span, whole in ends)
    task = SpanTask(task_of(path), path, inclusive=bool(spans.inclusive))
    if not shape.tokens:  # offsets.py applies --span_end; spans.py compares surfaces row by row
        return task._replace(inclusive=options.span_end == "auto" and task.inclusive and not behind)
    if any(span.end > len(whole) for span, whole in ends):
        return None
    if options.span_end != "auto":
        return task._replace(inclusive=options.span_end == "inclusive")
    named = [(span, whole) for span, whole in ends if span.surface]
    for last in (0, 1):
        if named and all(is_surface(whole[span.start : span.end + last], str(span.surface)) for span, whole in named):
            return task._replace(inclusive=bool(last))
    same = any(span.start == span.end for span, _ in ends)
    if behind or same:
        return None if behind and same else task._replace(inclusive=same)
    return task._replace(is_sure=spans.inclusive is not None)
