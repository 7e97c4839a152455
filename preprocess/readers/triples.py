"""Reads the relations of one JSON object at the paths of a shape.

They are converted to the raw form of preprocess/labels/relations.py or, with token offsets, to [first and last token of
the subject, first and last token of the object, predicate].
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from engine.errors import UserError
from preprocess.example import shown
from preprocess.labels.relations import ENDS, raw_relation
from preprocess.labels.spans import StoredSpan
from preprocess.readers.options import ReadOptions, split_names
from preprocess.readers.paths import MISSING, Values, at, is_at, task_of
from preprocess.readers.shapes import VALUE, Relations, Shape, Spans
from preprocess.readers.stored import SpanTask, entries, stored_spans

FEW = 0.1  # maximum share of invalid relations for a shape to fit; reading then raises for the first one
TWICE = StoredSpan(None, None, None, None)  # stands for several spans with the same key
Triple = tuple[Any, Any, Any]  # (subject, predicate, object): subject and object are spans or unresolved references


@dataclass(frozen=True)
class RelationTask:
    """The task whose labels are relations. typed: whether typed mentions become the spans of the task `entities`."""

    name: str
    shape: Shape
    form: Relations  # from the shape, reduced to the paths that the first objects have
    referred: SpanTask | None  # the task of the spans that relations refer to
    typed: bool = False
    unit: str = ""  # the option that sets another unit of offsets

    @property
    def names(self) -> list[str]:
        return [*["entities"] * self.typed, self.name]

    @cached_property
    def known_keys(self) -> set[str]:
        """The keys of a relation that are read, and its id."""
        ends = [
            end if isinstance(end, str) else "|".join((end.start, end.end, end.label, end.surface))
            for end in (self.form.subject, self.form.object)
        ]
        return {"id", *(path.split(".")[0] for paths in (*ends, self.form.predicate) for path in paths.split("|"))}

    def triples(self, row: Values) -> list[Triple] | None:
        """Returns the relations of an object, or None if it has no label."""
        form, stored = self.form, at(row, self.form.path)
        if stored is MISSING or stored is None:
            return None
        spans: dict[Any, StoredSpan] = {}
        if self.referred and self.shape.spans:
            listed, last = at(row, self.referred.path), self.referred.inclusive
            keys = (at(item, form.refer) if form.refer else n for n, (_, item) in enumerate(entries(listed)))
            for key, span in zip(keys, stored_spans(self.shape.spans, listed)):
                if type(key) in (int, str) and span.has_place():
                    spans[key] = TWICE if key in spans else span._replace(end=span.end + last)
        items = [item for each in as_list(stored) for item in by_slot(each)]
        ends = [[end_of(item, path, spans) for item in items] for path in (form.subject, form.object)]
        found = zip(ends[0], [at(item, form.predicate) for item in items], ends[1])
        return [triple for triple in found if not form.none or triple[1] != form.none]

    def problem(self, triple: Triple) -> str:
        """Returns a description of the problem with a relation, or "" if it is valid."""
        subject, predicate, obj = triple
        spans = [end for end in (subject, obj) if isinstance(end, StoredSpan)]
        unknown = [end for end in (subject, obj) if end is not MISSING and not isinstance(end, StoredSpan)]
        placed = [span.has_place() for span in spans]
        if unknown:
            of = f"the key {self.form.refer!r}" if self.form.refer else "the number"
            return f"a relation refers to a span with {of} {shown(unknown[0])}, which does not exist"
        if self.referred and TWICE in (subject, obj):
            return f"a relation refers to a span with a key {self.form.refer!r} that several spans of this row have"
        if self.unit and not all(placed):
            return f"a relation has no offsets, which {self.unit} requires"
        words = [isinstance(span.surface, str) and bool(span.surface.strip()) for span in spans]
        is_named = isinstance(predicate, str) and bool(predicate.strip())
        is_complete = is_named and len(spans) == 2 and all(map(any, zip(placed, words)))
        return "" if is_complete else "a relation needs a predicate, a subject and an object, as in other rows"

    def read(self, row: Values, text: str, tokens: Sequence[str] | None, where: str, counts: Counter[str]) -> Values:
        """Returns {task: label} of an object. counts: {message: number of skipped items}."""
        triples, result, entities = self.triples(row), list[Any](), dict[tuple[Any, ...], Any]()
        if triples is None:
            return dict.fromkeys(self.names)
        for item in as_list(at(row, self.form.path)):
            counts.update(f"relations read from the slot {slot!r} of an object" for slot in slots_of(item))
            unread = {*item} - self.known_keys if isinstance(item, dict) else ()
            counts.update(f"relations with the key {key!r}, which is not read" for key in unread)
        for triple in triples:
            if problem := self.problem(triple):
                raise UserError(f"{where}: {problem}")
            subject, predicate, obj = triple
            if not (subject.continuous and obj.continuous):
                counts["relations of discontinuous spans skipped"] += 1
            elif tokens is not None:
                last = self.referred is not None  # ends are exclusive
                result.append([subject.start, subject.end - last, obj.start, obj.end - last, predicate])
            else:
                result.append(raw_relation(subject, predicate, obj, text))
                ends = [result[-1][name] for name in ENDS]
                typed = [end for end in ends if end["start"] is not None and isinstance(end["label"], str)]
                entities |= {(end["start"], end["end"], end["label"]): end for end in typed if end["label"]}
        return dict(zip(self.names[::-1], (result, [*entities.values()])))


def end_of(item: Any, path: Spans | str, spans: dict[Any, StoredSpan]) -> Any:
    """Returns the subject or object of a relation."""
    if isinstance(path, Spans):
        span = next(stored_spans(path, [item]))
        start, end, label, surface = (None if part is MISSING else part for part in span[:4])
        return StoredSpan(start, end, label, surface)
    reference = at(item, path)
    return spans.get(reference, reference) if type(reference) in (int, str) else reference


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def slots_of(item: Any) -> list[str]:
    """Returns the filled slots of a complex object (DuIE 2), other than its value."""
    values = item.get("object") if isinstance(item, dict) else None
    slots = values if isinstance(values, dict) and VALUE in values else {}
    return [slot for slot, value in slots.items() if slot != VALUE and value not in ("", None)]


def by_slot(item: Any) -> Iterator[Any]:
    """Yields a relation, or one per filled slot of a complex object (DuIE 2): {"@value": …, "inWork": …} becomes the
    predicates `predicate` and `predicate_inWork`."""
    values = item.get("object") if isinstance(item, dict) else None
    if not isinstance(values, dict) or VALUE not in values:
        yield item
        return
    types = item.get("object_type")
    for slot, value in values.items():
        predicate = item.get("predicate") if slot == VALUE else f"{item.get('predicate')}_{slot}"
        of_slot = types.get(slot) if isinstance(types, dict) else types
        if value not in ("", None):
            yield item | {"predicate": predicate, "object": value, "object_type": of_slot}


def relation_task(
    shape: Shape, rows: Sequence[Values], spans: Sequence[SpanTask], options: ReadOptions
) -> RelationTask | None:
    """Returns the task of the relations in the first objects, or None if they have no relations in the form of the
    shape. spans: the tasks of the spans in these objects."""
    form, selected = shape.relations, split_names(options.label_column)
    units = {"--span_end inclusive": options.span_end == "inclusive", "--offsets utf16": options.offsets == "utf16"}
    unit = next((option for option, is_given in units.items() if is_given), "")
    if form is None or (isinstance(form.subject, str) and not spans):
        return None
    referred = spans[0] if isinstance(form.subject, str) else None
    for path in dict.fromkeys([*form.path.split("|"), *selected]):
        stored = [None if (value := at(row, path)) is MISSING else value for row in rows]  # a row can lack the key
        if not all(value is None or isinstance(value, list) for value in stored):
            continue
        name = task_of(path) if path in selected else "relations"
        task = RelationTask(name, shape, replace(form, path=path), referred, unit=unit)
        triples = [triple for row in rows for triple in task.triples(row) or ()]
        problems = sum(map(bool, map(replace(task, unit="").problem, triples)))
        if triples and problems <= FEW * len(triples):
            items = [item for value in stored for each in value or () for item in by_slot(each)]
            ends = [narrowed(end, items) for end in (form.subject, form.object)]
            mentions = [end for triple in triples for end in triple[::2] if isinstance(end, StoredSpan) and not spans]
            kept = replace(task.form, subject=ends[0], object=ends[1], predicate=narrowed(form.predicate, items))
            return replace(task, form=kept, typed=any(isinstance(end.label, str) and end.label for end in mentions))
    return None


def narrowed(path: Any, items: Sequence[Any]) -> Any:
    """Removes, for speed, the alternatives of a path (or of the paths of a mention) whose first key no item has."""
    if isinstance(path, Spans):
        names = ("start", "end", "label", "surface")
        return replace(path, **{name: narrowed(getattr(path, name), items) for name in names})
    return "|".join(each for each in path.split("|") if any(is_at(item, each.split(".")[0]) for item in items))
