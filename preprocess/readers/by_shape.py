"""Reads JSON objects by one of SHAPES: selects the shape that fits the first objects, and converts all of them.

Spans become {"start", "end", "label", "text"} in characters, or [first token, last token, label].
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

HEAD = 200  # number of first objects that determine the shape
FROM_TEXTS = 0.8  # minimum share of values found in their texts; a lower share can be chance


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
    """Whether a span has a label, and its offsets or surface. by_offsets: whether offsets are stored."""
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
    """Returns the first start and the last end of positions [0, 1, 2] or ranges [[0, 4], [6, 9]]."""
    first, last = (pieces[0], pieces[-1]) if isinstance(pieces, list) and pieces else (MISSING, MISSING)
    return at(first, "0") if isinstance(first, list) else first, at(last, "1") if isinstance(last, list) else last


def is_continuous(pieces: Any) -> bool:
    """Whether positions or ranges are contiguous."""
    if not isinstance(pieces, list) or not pieces:
        return True
    ranges = pieces if isinstance(pieces[0], list) else [[place, place + 1] for place in pieces if type(place) is int]
    return all(after[0] == before[1] for before, after in pairwise(ranges))


def is_surface(tokens: Sequence[str], surface: str) -> bool:
    """Whether tokens equal a surface, ignoring whitespace."""
    return "".join("".join(tokens).split()) == "".join(surface.split())


class SpanTask(NamedTuple):
    """A task whose labels are spans. inclusive: whether the ends are inclusive. is_sure: whether this is certain."""

    name: str
    path: str
    inclusive: bool
    is_sure: bool = True


@dataclass
class Reading:
    """Converts the objects of a file by a shape, with details inferred from the first objects."""

    path: str | Path
    shape: Shape
    spans: list[SpanTask] = field(default_factory=list)
    convert: Convert | None = None  # from the shape's `find`
    tasks: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # {message: number of skipped items}
    weight: int = 0  # number of paths in the shape; the largest weight wins

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
        """Returns the spans of a task in one object. stored: the value at their path. found: the converted text or
        tokens."""
        spans, result = self.shape.spans, list[Any]()
        assert spans
        if stored is MISSING or stored is None:
            return [] if spans.may_lack else None
        by_offsets, tokens = bool(spans.start or spans.pieces), found["tokens"] if self.shape.tokens else None
        for span in stored_spans(spans, stored):
            if not is_complete(span, by_offsets):
                raise UserError(f"{where}: a span of {task.name!r} needs a start, an end and a label, as in other rows")
            if not span.continuous:
                self.counts["discontinuous spans skipped"] += 1
                continue
            start, end = span.start, span.end
            if not by_offsets:
                start = found["text"].find(span.surface)
                if start < 0 or start != found["text"].rfind(span.surface):
                    self.counts[f"texts without {task.name}, because a value does not occur exactly once"] += 1
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
        for message, number in self.counts.items():
            note(f"{self.path}: {number:,} {message}")


def check_tokens(span: StoredSpan, tokens: list[str], inclusive: bool, where: str) -> None:
    """Raises UserError if a span is outside the tokens or has a wrong surface. span: with an exclusive end."""
    start, end, label, surface, _ = span
    end_type = f"with its end {'inclusive' if inclusive else 'exclusive'} (--span_end overrides)"
    source = f"{where}: the span {start} to {end - inclusive} of {shown(label)}"
    if not 0 <= start < end <= len(tokens):
        raise UserError(f"{source} is empty or outside the {len(tokens)} tokens, {end_type}")
    if surface and not is_surface(tokens[start:end], surface):
        called = f"is {shown(' '.join(tokens[start:end]))}, but the data gives {shown(surface)}"
        raise UserError(f"{source} {called}, {end_type}")


# ---- which shape ---------------------------------------------------------------------------------------------------


def find_reading(path: str | Path, objects: Sequence[Values], options: ReadOptions) -> Reading | None:
    """Returns the Reading that fits the first objects of a file. Raises UserError if several fit equally well. Returns
    None if no shape fits, or if text, tokens and labels have usual keys."""
    rows = [values for values in objects[:HEAD] if isinstance(values, dict)]
    candidates = [shape for shape in shapes.SHAPES if options.shape in ("auto", shape.name)]
    if options.shape == "none" or not rows:
        return None
    if not candidates:
        names = ", ".join(shape.name for shape in shapes.SHAPES)
        raise UserError(f"--shape {options.shape!r} is not one of: auto, none, {names}")
    readings = [reading for shape in candidates if (reading := fitting(path, shape, rows, options))]
    usual = any({"tokens", *TEXT_NAMES} & row.keys() for row in rows)
    if not options.labelled and not readings and (not usual or options.shape != "auto"):
        readings = [
            reading for shape in candidates if (reading := fitting(path, shape, rows, options, needs_spans=False))
        ]
    for reading in readings if not options.labelled else ():
        reading.spans.clear()
    if options.shape != "auto" and not readings:
        raise UserError(f"{path}: the first {len(rows)} objects do not fit --shape {options.shape!r}")
    most = max((reading.weight for reading in readings), default=0)
    best = [reading for reading in readings if reading.weight == most]
    for other in best[1:]:
        if [outcome(best[0], row) for row in rows] != [outcome(other, row) for row in rows]:
            both = f"{best[0].shape.name!r} and {other.shape.name!r}"
            raise UserError(f"{path}: the objects fit the shapes {both} equally well; select one with --shape")
    if best:
        settle(best[0], rows[0], options)
    return best[0] if best else None


def outcome(reading: Reading, row: Values) -> Any:
    """Returns the object converted by a Reading, or the error message."""
    try:
        return reading(row, "")
    except UserError as error:
        return str(error)


def settle(reading: Reading, row: Values, options: ReadOptions) -> None:
    """Keeps only the tasks in --label_column, and records how they are read. Raises UserError if it is unclear whether
    the ends of their spans are inclusive."""
    reading.counts.clear()
    selected, shape = split_names(options.label_column), reading.shape
    reading.spans = [task for task in reading.spans if not selected or task.name in selected]
    if doubtful := [task.name for task in reading.spans if not task.is_sure]:
        problem = "could have inclusive or exclusive ends (no span has one token or reaches the last token)"
        advice = "add --span_end inclusive or --span_end exclusive"
        raise UserError(f"{reading.path}: the spans of {doubtful[0]!r} {problem}; {advice}")
    unit = "tokens" if shape.tokens else "characters"
    details = {task.name: f" ({unit}, ends {('exclusive', 'inclusive')[task.inclusive]})" for task in reading.spans}
    labels = ", ".join(f"{task}{details.get(task, '')}" for task in reading.tasks)
    text = key_of(path, row) if (path := shape.tokens or shape.text) else None
    if not options.labelled:
        options.understood.unread.update(reading.tasks)
    options.understood.add(reading.path, shape.name, text=text, labels=labels if options.labelled else None)


def fitting(
    path: str | Path, shape: Shape, rows: Sequence[Values], options: ReadOptions, needs_spans: bool = True
) -> Reading | None:
    """Returns the Reading of a shape, or None if an object lacks one of its paths. needs_spans: whether the paths of
    spans are required."""
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
    """Adds the tasks whose values are spans of this form. Returns the Reading, or None if there are no such tasks."""
    for path in dict.fromkeys([*spans.path.split("|"), *split_names(options.label_column)]):
        matches = spans_in(spans, rows, path)
        if not matches or task_of(path) in (reading.shape.text, reading.shape.tokens):
            continue
        task: SpanTask | None = SpanTask(task_of(path), path, inclusive=False)
        if spans.start or spans.pieces:
            task = inclusive_or_not(reading.shape, path, [pair for pair in matches if pair[0].continuous], options)
        elif sum(str(span.surface) in at(row, reading.shape.text) for span, row in matches) < FROM_TEXTS * len(matches):
            task = None
        if task:
            reading.tasks.append(task.name)
            reading.spans.append(task)
            has_surface = bool(spans.surface) and any(span.surface for span, _ in matches)
            named = [spans.start or spans.surface, spans.start and spans.end, spans.label, spans.pieces, has_surface]
            reading.weight += sum(map(bool, named))
    return reading if reading.spans else None


def spans_in(spans: Spans, rows: Sequence[Values], path: str) -> list[tuple[StoredSpan, Values]]:
    """Returns [(span, its object)] of all objects, or [] if some lack the path or have spans of another form."""
    stored = [(row, at(row, path)) for row in rows]
    present = [(row, value) for row, value in stored if value is not MISSING and value is not None]
    if not spans.may_lack and any(value is MISSING for _, value in stored):
        return []
    if not present or not all(isinstance(value, list | dict) for _, value in present):
        return []
    items = [item for _, value in present if isinstance(value, list) for item in value]
    if spans.without and any(is_at(item, spans.without) for item in items):
        return []
    pairs = [(span, row) for row, value in present for span in stored_spans(spans, value)]
    return pairs if all(is_complete(span, bool(spans.start or spans.pieces)) for span, _ in pairs) else []


def inclusive_or_not(
    shape: Shape, path: str, found: Sequence[tuple[StoredSpan, Values]], options: ReadOptions
) -> SpanTask | None:
    """Returns the task at a path, with inclusive or exclusive ends, or None if neither is possible.

    --span_end, the surfaces, the spans or the shape decide. Ends are inclusive if any span has start = end, and
    exclusive if any ends after the last token.
    """
    spans = shape.spans
    assert spans
    ends = [(span, at(row, shape.tokens or shape.text)) for span, row in found]
    past_end = any(span.end >= len(whole) for span, whole in ends)
    task = SpanTask(task_of(path), path, inclusive=bool(spans.inclusive))
    if not shape.tokens:  # offsets.py applies --span_end; spans.py compares surfaces
        return task._replace(inclusive=options.span_end == "auto" and task.inclusive and not past_end)
    if any(span.end > len(whole) for span, whole in ends):
        return None
    if options.span_end != "auto":
        return task._replace(inclusive=options.span_end == "inclusive")
    named = [(span, whole) for span, whole in ends if span.surface]
    for last in (0, 1):
        if named and all(is_surface(whole[span.start : span.end + last], str(span.surface)) for span, whole in named):
            return task._replace(inclusive=bool(last))
    single_token = any(span.start == span.end for span, _ in ends)
    if past_end or single_token:
        return None if past_end and single_token else task._replace(inclusive=single_token)
    return task._replace(is_sure=spans.inclusive is not None)
