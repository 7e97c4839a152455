"""Classifies relation errors, analogously to entities.py.

Let G be the gold and P the predicted relations of a text, each (predicate, subject, object), where subject and object
are spans of words.

1. Relations in both sets are *right*.
2. A remaining gold and predicted relation with the same predicate, but with subject and object swapped, form a pair
   with the *wrong direction*.
3. A remaining gold and predicted relation with the same subject and object form a pair with the *wrong predicate*.
4. A remaining gold and predicted relation with the same predicate form a pair with a *boundary error* if their subjects
   overlap and their objects overlap. Pairs with the largest product of the two intersections over union are formed
   first.
5. A remaining gold relation has a *missed entity* if its subject or its object is in no predicted relation of the text
   and, if the data has a task for the entities, is not predicted there either; otherwise it is *missed*.
6. The remaining relations of P are *false positives*.

In steps 2 to 4, ties are resolved in text order. Each relation is in at most one pair, so |G| = right + wrong
direction + wrong predicate + boundary error + missed entity + missed, and |P| = right + wrong direction + wrong
predicate + boundary error + false positive.
"""

from collections.abc import Collection, Sequence
from typing import Any

from metrics import items_in
from tools.report import entities
from tools.report.entities import Match
from tools.report.figures import Row

Relation = tuple  # (predicate, first and last word of the subject, first and last word of the object)
Span = tuple[int, int]


def match(gold: set[Relation], predicted: set[Relation], found: Collection[Span] = ()) -> list[Match]:
    """Matches gold and predicted relations. Returns the matches in text order. found: spans predicted as entities."""
    known = {*found, *(span for relation in predicted for span in ends(relation))}
    matches = entities.match(gold, predicted, MEASURES)
    return [
        m._replace(verdict="missed_entity") if m.verdict == "missed" and not known.issuperset(ends(m.either)) else m
        for m in matches
    ]


def ends(relation: Relation) -> tuple[Span, Span]:
    """Returns the spans of the subject and the object."""
    return relation[1:3], relation[3:5]


def is_reversed(gold: Relation, predicted: Relation) -> float:
    return float(gold[0] == predicted[0] and ends(gold) == ends(predicted)[::-1])


def overlap(gold: Relation, predicted: Relation) -> float:
    """Returns the product of the intersections over union of subjects and of objects, or 0 if predicates differ."""
    sides = zip(ends(gold), ends(predicted))
    subjects, objects = (entities.overlap((gold[0], *one), (predicted[0], *other)) for one, other in sides)
    return subjects * objects


def distance(relation: Relation) -> int:
    """Returns the number of words between the subject and the object."""
    subject, object_ = sorted(ends(relation))
    return max(0, object_[0] - subject[1] - 1)


MEASURES = {"wrong_direction": is_reversed, "wrong_predicate": entities.same_boundaries, "boundary_error": overlap}
VERDICTS = ("right", *MEASURES, "missed_entity", "missed", "false_positive")
DISTANCES = (0, 3, 6, 11, 21)


def are_relations(kind: str) -> bool:
    """Returns whether labels of a kind are shown as relations. Events are shown as triggers and arguments."""
    return kind == "relations"


def verdicts_of(kind: str) -> tuple[str, ...]:
    """Returns the possible verdicts for tasks of a kind."""
    return VERDICTS if are_relations(kind) else entities.VERDICTS


def matches_of(kind: str, row: Row, name: str, of_entities: str = "") -> list[Match]:
    """Returns the matches of a row for a task with entities or relations, or [] if the row is unlabelled. of_entities:
    the task with the subjects and objects of relations, if there is one."""
    outcome = row["answers"][name]
    if outcome["gold"] is None:
        return []
    gold, predicted = (items_in(kind, outcome[side]) for side in ("gold", "predicted"))
    if not are_relations(kind):
        return entities.match(gold, predicted)
    spans = row["answers"][of_entities]["predicted"] if of_entities in row["answers"] else []
    return match(gold, predicted, {(first, last) for first, last, _ in spans})


def triples_of(row: Row, matches: Sequence[Match], most: int = 40) -> dict[str, Any]:
    """Selects the relations of a text to show, up to `most` per side, wrong ones first. Returns {side: [{"verdict",
    "predicate", "subject", "object"}], "spans": {span: number}, "more": number of omitted relations}. Subjects and
    objects are (text, number); spans are numbered in text order."""
    ordered = sorted(matches, key=lambda match: match.verdict == "right")
    sides = {side: [m for m in ordered if getattr(m, side)] for side in ("gold", "predicted")}
    kept = {side: own[:most] for side, own in sides.items()}
    spans = sorted({span for side, own in kept.items() for m in own for span in ends(getattr(m, side))})
    numbers = {span: number for number, span in enumerate(spans, 1)}

    def shown(span: Span) -> tuple[str, int]:
        return row["text"][row["places"][span[0]][0] : row["places"][span[1]][1]], numbers[span]

    result: dict[str, Any] = {"spans": numbers, "more": sum(len(sides[side]) - len(kept[side]) for side in sides)}
    for side, own in kept.items():
        relations = [(m.verdict, getattr(m, side)) for m in own]
        result[side] = [
            {"verdict": verdict, "predicate": relation[0]}
            | dict(zip(("subject", "object"), map(shown, ends(relation))))
            for verdict, relation in relations
        ]
    return result
