"""The relations of one JSON object, as the paths of a shape describe them.

They become the raw form of preprocess/labels/relations.py or, over tokens, [first and last token of the subject, those
of the object, predicate].
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from engine.errors import UserError
from preprocess.example import shown
from preprocess.labels.relations import ENDS, raw_relation
from preprocess.labels.spans import StoredSpan
from preprocess.readers.options import ReadOptions, split_names
from preprocess.readers.paths import MISSING, Values, at, is_at, task_of
from preprocess.readers.shapes import VALUE, Relations, Shape, Spans
from preprocess.readers.stored import SpanTask, entries, stored_spans


class Triple(NamedTuple):
    """A stored relation. subject and object: spans, or references that no span has."""

    subject: Any
    predicate: Any
    object: Any

    def is_complete(self) -> bool:
        ends = [end for end in (self.subject, self.object) if isinstance(end, StoredSpan)]
        located = [span.has_place() or (isinstance(span.surface, str) and span.surface.strip()) for span in ends]
        return isinstance(self.predicate, str) and bool(self.predicate.strip()) and len(ends) == 2 and all(located)


@dataclass(frozen=True)
class RelationTask:
    """The task whose labels are relations. typed: whether types of mentions become the spans of the task `entities`."""

    name: str
    shape: Shape
    form: Relations  # of the shape, with the paths that the first objects have
    referred: SpanTask | None  # the spans that references refer to
    typed: bool = False
    unit: str = ""  # an option that gives another unit of offsets

    def triples(self, row: Values) -> list[Triple] | None:
        """Returns the relations of an object; None if it has no label."""
        form, stored = self.form, at(row, self.form.path)
        if stored is MISSING or stored is None:
            return None
        spans: dict[Any, StoredSpan] = {}
        if self.referred and self.shape.spans:
            listed, last = at(row, self.referred.path), self.referred.inclusive
            keys = (at(item, form.refer) if form.refer else n for n, (_, item) in enumerate(entries(listed)))
            pairs = zip(keys, stored_spans(self.shape.spans, listed))
            spans = {key: s._replace(end=s.end + last) for key, s in pairs if type(key) in (int, str) and s.has_place()}
        items = (item for each in (stored if isinstance(stored, list) else [stored]) for item in by_slot(each))
        found = (
            (at_end(item, form.subject, spans), at(item, form.predicate), at_end(item, form.object, spans))
            for item in items
        )
        return [Triple(*each) for each in found if not form.none or each[1] != form.none]

    def read(self, row: Values, text: str, tokens: Sequence[str] | None, where: str, counts: Counter[str]) -> Values:
        """Returns {task: label} of an object. counts: {message: number of skipped items}."""
        triples, result, entities = self.triples(row), list[Any](), dict[tuple[Any, ...], Any]()
        for triple in triples or ():
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
                for end in (result[-1][name] for name in ENDS) if self.typed else ():
                    if end["start"] is not None and isinstance(end["label"], str) and end["label"]:
                        entities[end["start"], end["end"], end["label"]] = end
        is_label = triples is not None
        typed = {"entities": [*entities.values()] if is_label else None} if self.typed else {}
        return typed | {self.name: result if is_label else None}

    def problem(self, triple: Triple) -> str:
        """Returns what is wrong with a relation, or ""."""
        spans = [end for end in (triple.subject, triple.object) if isinstance(end, StoredSpan)]
        if self.unit and not all(span.has_place() for span in spans):
            return f"a relation has no offsets, which {self.unit} requires"
        if triple.is_complete():
            return ""
        unknown = [end for end in (triple.subject, triple.object) if not isinstance(end, StoredSpan)]
        if unknown and unknown[0] is not MISSING:
            of = f"the key {self.form.refer!r}" if self.form.refer else "the number"
            return f"a relation refers to a span with {of} {shown(unknown[0])}, which does not exist"
        return "a relation needs a predicate, a subject and an object, as in other rows"


def at_end(item: Any, path: Spans | str, spans: dict[Any, StoredSpan]) -> Any:
    """Returns the subject or object of a relation."""
    if isinstance(path, Spans):
        start, end, label, surface = (
            None if part is MISSING else part for part in next(stored_spans(path, [item]))[:4]
        )
        return StoredSpan(start, end, label, surface)
    reference = at(item, path)
    return spans.get(reference, reference) if type(reference) in (int, str) else reference


def by_slot(item: Any) -> Iterator[Any]:
    """Yields a relation, or one per slot of a complex object (DuIE 2): {"@value": …, "inWork": …} gives the predicates
    `predicate` and `predicate_inWork`. Empty slots are left out."""
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
    """Returns the task of the relations in the first objects, or None if these have none in the form of the shape.
    spans: the tasks of their spans."""
    form, selected = shape.relations, split_names(options.label_column)
    unit = "--span_end inclusive" * (options.span_end == "inclusive") or "--offsets utf16" * (
        options.offsets == "utf16"
    )
    if form is None or (isinstance(form.subject, str) and not spans):
        return None
    referred = spans[0] if isinstance(form.subject, str) else None
    for path in dict.fromkeys([*form.path.split("|"), *selected]):
        stored = [at(row, path) for row in rows]
        if not all(value is None or isinstance(value, list) for value in stored):
            continue
        name = task_of(path) if path in selected else "relations"
        task = RelationTask(name, shape, replace(form, path=path), referred, unit=unit)
        triples = [triple for row in rows for triple in task.triples(row) or ()]
        if triples and all(triple.is_complete() for triple in triples):
            items = [item for value in stored for each in value or () for item in by_slot(each)]
            ends = [narrowed(end, items) for end in (form.subject, form.object)]
            mentions = [end for triple in triples for end in (triple.subject, triple.object)] if not spans else []
            kept = replace(task.form, subject=ends[0], object=ends[1], predicate=narrowed(form.predicate, items))
            return replace(task, form=kept, typed=any(isinstance(end.label, str) and end.label for end in mentions))
    return None


def narrowed(path: Any, items: Sequence[Any]) -> Any:
    """Returns a path, or the paths of a mention, without alternatives whose first key no item has; they cost time."""
    if isinstance(path, Spans):
        names = ("start", "end", "label", "surface")
        return replace(path, **{name: narrowed(getattr(path, name), items) for name in names})
    return "|".join(each for each in path.split("|") if any(is_at(item, each.split(".")[0]) for item in items))
