"""Classifies entity errors, and counts them by type, length and occurrence in training.

Let G be the gold and P the predicted entities of a text, each (type, first token, last token).

1. Entities in both sets are *right*.
2. Of the rest, a gold and a predicted entity with the same borders form a pair with the *wrong type*.
3. Of the rest, a gold and a predicted entity of the same type that share a token form a pair with a *wrong border*;
   pairs with the largest intersection over union come first, then earlier ones.
4. The rest of G is *missed* and the rest of P *invented*, even if they overlap.

Each entity is in at most one pair. So |G| = right + wrong type + wrong border + missed and |P| = right + wrong type +
wrong border + invented.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

from metrics import items_in
from tools.report.figures import Answer, Row, most_frequent

Entity = tuple[str, int, int]  # type, first token, last token
VERDICTS = ("right", "wrong_type", "wrong_border", "missed", "invented")


class Match(NamedTuple):
    verdict: str
    gold: Entity | None
    predicted: Entity | None

    @property
    def either(self) -> Entity:
        """The gold entity, otherwise the predicted one."""
        entity = self.gold or self.predicted
        assert entity
        return entity


def match(gold: set[Entity], predicted: set[Entity]) -> list[Match]:
    """The matches of two sets of entities, in text order."""
    found = [Match("right", entity, entity) for entity in gold & predicted]
    missed, invented = sorted(gold - predicted, key=position), sorted(predicted - gold, key=position)
    measures: tuple[tuple[str, Callable[[Entity, Entity], float]], ...]
    measures = ("wrong_type", same_borders), ("wrong_border", overlap)
    for verdict, closeness in measures:
        pairs = [
            (-value, position(g), position(p), g, p) for g in missed for p in invented if (value := closeness(g, p))
        ]
        for *_, g, p in sorted(pairs):
            if g in missed and p in invented:
                missed.remove(g)
                invented.remove(p)
                found.append(Match(verdict, g, p))
    found += [Match("missed", g, None) for g in missed] + [Match("invented", None, p) for p in invented]
    return sorted(found, key=lambda one: position(one.either))


def position(entity: Entity) -> tuple[int, int, str]:
    """The key to sort entities in text order."""
    return entity[1], entity[2], entity[0]


def same_borders(gold: Entity, predicted: Entity) -> float:
    return float(gold[1:] == predicted[1:])


def overlap(gold: Entity, predicted: Entity) -> float:
    """Intersection over union of two entities in tokens; 0 if their types differ."""
    both = min(gold[2], predicted[2]) - max(gold[1], predicted[1]) + 1
    if gold[0] != predicted[0] or both <= 0:
        return 0
    return both / (max(gold[2], predicted[2]) - min(gold[1], predicted[1]) + 1)


def matches_of(kind: str, answer: Answer) -> list[Match]:
    """The matches of a text's stored answer; [] without a gold label."""
    gold, predicted = answer["gold"], answer["predicted"]
    return [] if gold is None else match(items_in(kind, gold), items_in(kind, predicted))


def tokens_of(row: Row, entity: Entity) -> tuple[str, ...]:
    return tuple(row["text"][start:end] for start, end in row["places"][entity[1] : entity[2] + 1])


def error_counts(found: Sequence[list[Match]]) -> dict[str, dict[str, int]]:
    """{type: {verdict: count}}, by the gold type, otherwise the predicted one. found: the matches of each row"""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for one in chain.from_iterable(found):
        counts[one.either[0]][one.verdict] += 1
    return {kind: {verdict: counts[kind][verdict] for verdict in VERDICTS} for kind in sorted(counts)}


def confused_types(found: Sequence[list[Match]]) -> list[list]:
    """[[gold type, predicted type, count]] of the pairs with the wrong type, most frequent first."""
    pairs = Counter(
        (one.gold[0], one.predicted[0])
        for one in chain.from_iterable(found)
        if one.verdict == "wrong_type" and one.gold and one.predicted
    )
    return [[*pair, count] for pair, count in most_frequent(pairs)]


def by_length(found: Sequence[list[Match]], longest: int = 5) -> list[dict[str, int]]:
    """[{"length", "gold", "found", "predicted", "right"}] by entity length in tokens (the last: or more)."""
    cells = {n: dict.fromkeys(("gold", "found", "predicted", "right"), 0) for n in range(1, longest + 1)}
    for one in chain.from_iterable(found):
        for side, right in (("gold", "found"), ("predicted", "right")):
            if entity := getattr(one, side):
                cell = cells[min(longest, entity[2] - entity[1] + 1)]
                cell[side] += 1
                cell[right] += one.verdict == "right"
    return [{"length": n} | cell for n, cell in cells.items() if any(cell.values())]


def by_seen(
    rows: Sequence[Row], found: Sequence[list[Match]], seen: set[tuple[str, tuple[str, ...]]]
) -> dict[str, dict[str, int]]:
    """{"seen": {"gold", "found"}, "unseen": …}: gold entities by whether their tokens and type occur in training.
    seen: {(type, tokens)}"""
    cells = {name: {"gold": 0, "found": 0} for name in ("seen", "unseen")}
    for row, matches in zip(rows, found):
        for one in matches:
            if one.gold:
                cell = cells["seen" if (one.gold[0], tokens_of(row, one.gold)) in seen else "unseen"]
                cell["gold"] += 1
                cell["found"] += one.verdict == "right"
    return cells
