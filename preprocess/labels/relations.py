"""Reads relations in a text: a predicate between a subject and an object, which are mentions in the text.

A raw relation is {"subject": …, "predicate": …, "object": …}, as in predictions. A mention is an object with offsets
(see SPAN_KEYS in spans.py), or only its words (an object or a string), which are then searched for in the text.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

from engine.errors import UserError
from engine.task.text import join_tokens
from preprocess.example import Example, cut, shown
from preprocess.labels.spans import StoredSpan, fields_of, is_cut, place_of
from preprocess.storage.facts import Note

Relation = tuple[int, int, int, int, str]  # (start and end of subject, start and end of object, predicate), characters
Place = tuple[int, int]  # (start, exclusive end)
ENDS = ("subject", "object")
MOST_PLACES = 10_000  # maximum number of places of a mention in a text; further places are ignored


def is_relation(item: Any) -> bool:
    """Returns True if an item is a raw relation, or a relation with token offsets: [first and last token of the
    subject, first and last token of the object, predicate]."""
    if isinstance(item, list):
        return [*map(type, item)] == [int, int, int, int, str]
    return isinstance(item, dict) and item.keys() >= {"predicate", *ENDS}


def is_relations(value: Any) -> bool:
    return isinstance(value, list) and any(map(is_relation, value))


def mention_of(value: Any) -> StoredSpan:
    """Returns the span of a raw mention. Its label is the type of the entity, if it is known."""
    return StoredSpan(None, None, None, value) if isinstance(value, str) else fields_of(value)


def places_of(surface: Any, text: str) -> list[Place]:
    """Returns the places where words occur in a text, in order: those at word boundaries, or all if there are none."""
    surface = surface.strip() if isinstance(surface, str) else ""
    found, start = list[Place](), text.find(surface) if surface else -1
    while start >= 0 and len(found) < MOST_PLACES:
        found.append((start, start + len(surface)))
        start = text.find(surface, start + 1)
    return [place for place in found if not any(is_cut(text, boundary) for boundary in place)] or found


def closest(subjects: Sequence[Place], objects: Sequence[Place]) -> tuple[Place, Place]:
    """Returns the pair of places with the fewest characters between them. Prefers pairs that do not overlap, and breaks
    ties by order in the text. The places on each side are sorted and have equal lengths."""
    starts, ends = zip(*objects)
    pairs = []
    for subject in subjects:
        after, behind = bisect_right(ends, subject[0]), bisect_left(starts, subject[1])
        near = [objects[i] for i in {after - 1, after, behind} if 0 <= i < len(objects)]
        pairs += [(gap(subject, place), subject, place) for place in near]
    return min(pairs)[1:]


def gap(one: Place, other: Place) -> tuple[bool, int]:
    """Returns (whether two places overlap, the number of characters between them)."""
    between = max(one[0], other[0]) - min(one[1], other[1])
    return between < 0, max(0, between)


def locate(subject: StoredSpan, obj: StoredSpan, text: str) -> tuple[StoredSpan, StoredSpan, bool] | None:
    """Returns (subject, object, whether either occurs in several places), or None if one does not occur in the text.
    If there are several places, chooses the closest pair."""
    spans = (subject, obj)
    places = [[(span.start, span.end)] if span.has_place() else places_of(span.surface, text) for span in spans]
    if not all(places):
        return None
    pairs = zip(spans, closest(*places))
    found = [s if s.has_place() else StoredSpan(*place, s.label, text[slice(*place)]) for s, place in pairs]
    return found[0], found[1], max(map(len, places)) > 1


def raw_relation(subject: StoredSpan, predicate: str, obj: StoredSpan, text: str) -> dict[str, Any]:
    """Returns a raw relation, with offsets if its mentions occur in the text."""
    found = locate(subject, obj, text)
    ends = [dict(zip(("start", "end", "label", "text"), span)) for span in (found or (subject, obj))[:2]]
    raw = {"subject": ends[0], "predicate": predicate, "object": ends[1]}
    return raw | {"ambiguous": True} if found and found[2] else raw


def read_all_relations(examples: list[Example], names: list[str]) -> list[Note]:
    """Converts raw relations to lists of Relation. names: the tasks with such labels. Returns notes on the changes."""
    notes = []
    for name in names:
        rows: dict[str, list[str]] = {"missing": [], "ambiguous": [], "repeated": []}
        for example in examples:
            label, where, relations = example.get(name), example["_where"], list[Relation]()
            for raw in label if isinstance(label, list) else [label] * (label is not None):
                found = read_relation(raw, example["text"], where)
                relation, is_ambiguous = found or (None, False)
                is_in = {"missing": not found, "ambiguous": is_ambiguous, "repeated": relation in relations}
                for which in (which for which in rows if is_in[which]):
                    rows[which].append(f"{where}: {shown_relation(raw)}")
                relations += [relation] if relation else []
            example[name] = None if label is None else sorted(set(relations))
        advice = "the subject and object closest to each other were used; add offsets to be exact"
        notes += [
            Note(f"{name}: mentions that do not occur in the text", rows["missing"], "these relations were dropped"),
            Note(f"{name}: ambiguous mentions, which occur several times", rows["ambiguous"], advice),
            Note(f"{name}: repeated relations", rows["repeated"], "they count once; correct the data"),
        ]
    return notes


def read_relation(raw: Any, text: str, where: str) -> tuple[Relation, bool] | None:
    """Returns (relation, whether its mentions are ambiguous), or None if a mention does not occur in the text. Raises
    UserError for invalid values, and for offsets that are outside the text or do not match the words."""
    if not isinstance(raw, dict) or not is_relation(raw):
        raise UserError(f"{where}: a relation needs a subject, a predicate and an object, found {shown(raw)}")
    predicate = raw["predicate"]
    if not isinstance(predicate, str) or not predicate.strip():
        raise UserError(f"{where}: a predicate must be a name, found {shown(predicate)}")
    found = locate(mention_of(raw["subject"]), mention_of(raw["object"]), text)
    if found is None:
        return None
    subject, obj = (place_of(span._replace(label=predicate), text, where) for span in found[:2])
    return (*subject, *obj, predicate.strip()), found[2] or bool(raw.get("ambiguous"))


def shown_relation(raw: Any) -> str:
    """Formats a raw relation for a message."""
    if not is_relation(raw) or isinstance(raw, list):
        return shown(raw)
    subject, obj = (cut(str(mention_of(raw[end]).surface or mention_of(raw[end])[:2]), 40) for end in ENDS)
    return f"{subject} —{cut(str(raw['predicate']), 40)}→ {obj}"


def shown_triples(items: Iterable[list[Any]], tokens: list[str]) -> str:
    return "; ".join(shown_triple(item, tokens) for item in items)


def shown_triple(item: list[Any], tokens: list[str]) -> str:
    """Formats a relation with token offsets as `subject —predicate→ object`. item: see PLACES."""
    *places, predicate = item
    pairs = zip(places[::2], places[1::2])
    subject, obj = (cut(join_tokens(tokens[first : last + 1], "word")[0]) for first, last in pairs)
    return f"{subject} —{predicate}→ {obj}"
