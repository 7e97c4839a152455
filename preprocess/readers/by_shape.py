"""Reads JSON objects according to one of the SHAPES: selects the one that fits the first objects, then converts all.

Spans become {"start", "end", "label", "text"} in characters, or [first token, last token, label].
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.task.signs import TEXT_NAMES
from preprocess.labels.spans import StoredSpan
from preprocess.readers import shapes
from preprocess.readers.archives import note
from preprocess.readers.options import ReadOptions, split_names
from preprocess.readers.paths import MISSING, Convert, Values, at, is_at, key_of, task_of
from preprocess.readers.shapes import Relations, Shape, Spans
from preprocess.readers.stored import SpanTask, check_tokens, is_complete, is_surface, stored_spans
from preprocess.readers.triples import RelationTask, relation_task

HEAD = 200  # number of leading objects that determine the shape
FROM_TEXTS = 0.8  # minimum share of values that occur in their texts; a lower share can be due to chance


@dataclass
class Reading:
    """Converts the objects of a file according to a shape, with details inferred from the first objects."""

    path: str | Path
    shape: Shape
    spans: list[SpanTask] = field(default_factory=list)
    relations: RelationTask | None = None
    convert: Convert | None = None  # from the shape's `find`
    tasks: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # {message: number of skipped items}
    weight: int = 0  # number of paths in the shape; the shape with the largest weight is used

    def __call__(self, values: Values, where: str) -> Values:
        """Converts an object to one with `text` or `tokens` and one label per task."""
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
            if self.relations:
                text, words = found.get("text", ""), found["tokens"] if shape.tokens else None
                found |= self.relations.read(values, text, words, where, self.counts)
        return values | found

    def read_spans(self, task: SpanTask, stored: Any, found: Values, where: str) -> list[Any] | None:
        """Returns the spans of a task in one object. stored: the value at the path of the spans. found: the converted
        text or tokens."""
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
            note(f"{self.path}: {message}: {number:,}")


# ---- which shape ---------------------------------------------------------------------------------------------------


def find_reading(path: str | Path, objects: Sequence[Values], options: ReadOptions) -> Reading | None:
    """Returns the Reading that fits the first objects of a file, or None if no shape fits. Raises UserError if several
    fit equally well."""
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
        reading.relations = None
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
    """Keeps only the tasks in --label_column, and records how they are read. Raises UserError if the ends of their
    spans could be inclusive or exclusive."""
    reading.counts.clear()
    selected, shape = split_names(options.label_column), reading.shape
    reading.spans = [task for task in reading.spans if not selected or task.name in selected]
    if reading.relations and selected and not {*selected} & {*reading.relations.names}:
        reading.relations = None
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
    # a required path is in every object, a label path only in some: required paths count double
    weight = 2 * (bool(shape.text) + bool(shape.tokens) + len(shape.also)) + len(tasks)
    reading = Reading(path, shape, tasks=tasks, weight=weight)
    if shape.find:
        try:
            reading.convert = shape.find(rows, options)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        reading.weight = weight or 2  # a shape without paths counts as one required path
        if reading.convert:
            reading.tasks += [key for key in reading.convert(rows[0], "") if key != "text"]
        return reading if reading.convert else None
    if shape.text and not all(isinstance(at(row, shape.text), str) for row in rows):
        return None
    if shape.tokens and not all(are_tokens(at(row, shape.tokens)) for row in rows):
        return None
    if not (shape.spans or shape.relations) or not needs_spans:
        return reading
    if shape.spans:
        add_spans(reading, shape.spans, rows, options)
    if shape.relations:
        add_relations(reading, shape.relations, rows, options)
        if not (reading.relations or shape.relations.may_lack):
            return None
    return reading if reading.spans or reading.relations else None


def are_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(token, str) for token in value)


def add_spans(reading: Reading, spans: Spans, rows: Sequence[Values], options: ReadOptions) -> None:
    """Adds the tasks whose values are spans in this form."""
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


def add_relations(reading: Reading, form: Relations, rows: Sequence[Values], options: ReadOptions) -> None:
    """Adds the task whose values are relations in this form. Renames the spans task to `entities` if it is the only
    one."""
    selected = split_names(options.label_column)
    reading.relations = task = relation_task(reading.shape, rows, reading.spans, options)
    if task is None:
        return
    if len(reading.spans) == 1 and reading.spans[0].name not in selected:
        reading.tasks.remove(reading.spans[0].name)
        reading.spans[0] = reading.spans[0]._replace(name="entities")
        reading.tasks.append("entities")
    reading.tasks += task.names
    has_places = isinstance(task.form.subject, Spans) and bool(task.form.subject.start)
    reading.weight += 3 + has_places + bool(form.refer)


def spans_in(spans: Spans, rows: Sequence[Values], path: str) -> list[tuple[StoredSpan, Values]]:
    """Returns [(span, its object)] for all objects, or [] if some lack the path or have spans in another form."""
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

    The first of these that applies decides: --span_end, the surface forms, the spans, the shape. Ends are inclusive if
    any span has start = end, and exclusive if any span ends after the last token.
    """
    spans = shape.spans
    assert spans
    ends = [(span, at(row, shape.tokens or shape.text)) for span, row in found]
    past_end = any(span.end >= len(whole) for span, whole in ends)
    task = SpanTask(task_of(path), path, inclusive=bool(spans.inclusive))
    if not shape.tokens:  # offsets.py applies --span_end; spans.py compares surface forms
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
