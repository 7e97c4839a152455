"""Classifies entity errors and counts them by type, length and occurrence in training.

Let G be the gold and P the predicted entities of a text, each (type, first token, last token).

1. Entities in both sets are *right*.
2. A remaining gold and predicted entity with the same borders are a pair with the *wrong type*.
3. A remaining gold and predicted entity of the same type that overlap are a pair with a *wrong border*. The pairs with
   the largest intersection over union are formed first; ties are resolved in text order.
4. The remaining entities of G are *missed* and those of P are *invented*, even if they overlap.

Each entity is in at most one pair, so |G| = right + wrong type + wrong border + missed and |P| = right + wrong type +
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
        """The gold entity if there is one, otherwise the predicted one."""
        entity = self.gold or self.predicted
        assert entity
        return entity


def match(gold: set[Entity], predicted: set[Entity]) -> list[Match]:
    """Matches gold and predicted entities -> matches in text order."""
    matches = [Match("right", entity, entity) for entity in gold & predicted]
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
                matches.append(Match(verdict, g, p))
    matches += [Match("missed", g, None) for g in missed] + [Match("invented", None, p) for p in invented]
    return sorted(matches, key=lambda item: position(item.either))


def position(entity: tuple) -> tuple:
    """Returns the key that sorts entities or relations in text order."""
    return *entity[1:], entity[0]


def same_borders(gold: Entity, predicted: Entity) -> float:
    return float(gold[1:] == predicted[1:])


def overlap(gold: Entity, predicted: Entity) -> float:
    """Returns the intersection over union of two entities in tokens; 0 if their types differ."""
    both = min(gold[2], predicted[2]) - max(gold[1], predicted[1]) + 1
    if gold[0] != predicted[0] or both <= 0:
        return 0
    return both / (max(gold[2], predicted[2]) - min(gold[1], predicted[1]) + 1)


def matches_of(kind: str, answer: Answer) -> list[Match]:
    """Returns the matches of a stored answer; [] if the text is unlabelled."""
    gold, predicted = answer["gold"], answer["predicted"]
    return [] if gold is None else match(items_in(kind, gold), items_in(kind, predicted))


def tokens_of(row: Row, entity: Entity) -> tuple[str, ...]:
    return tuple(row["text"][start:end] for start, end in row["places"][entity[1] : entity[2] + 1])


def error_counts(matches: Sequence[list[Match]]) -> dict[str, dict[str, int]]:
    """Counts verdicts -> {type: {verdict: count}}, by the gold type if there is one. matches: lists of all rows"""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for match in chain.from_iterable(matches):
        counts[match.either[0]][match.verdict] += 1
    return {kind: {verdict: counts[kind][verdict] for verdict in VERDICTS} for kind in sorted(counts)}


def confused_types(matches: Sequence[list[Match]]) -> list[list]:
    """Counts pairs with the wrong type -> [[gold type, predicted type, count]], most frequent first."""
    pairs = Counter(
        (match.gold[0], match.predicted[0])
        for match in chain.from_iterable(matches)
        if match.verdict == "wrong_type" and match.gold and match.predicted
    )
    return [[*pair, count] for pair, count in most_frequent(pairs)]


def by_length(matches: Sequence[list[Match]], longest: int = 5) -> list[dict[str, int]]:
    """Counts by entity length in tokens (the last: or more) -> [{"length", "gold", "found", "predicted", "right"}]."""
    cells = {n: dict.fromkeys(("gold", "found", "predicted", "right"), 0) for n in range(1, longest + 1)}
    for match in chain.from_iterable(matches):
        for side, right in (("gold", "found"), ("predicted", "right")):
            if entity := getattr(match, side):
                cell = cells[min(longest, entity[2] - entity[1] + 1)]
                cell[side] += 1
                cell[right] += match.verdict == "right"
    return [{"length": n} | cell for n, cell in cells.items() if any(cell.values())]


def by_seen(
    rows: Sequence[Row], all_matches: Sequence[list[Match]], seen: set[tuple[str, tuple[str, ...]]]
) -> dict[str, dict[str, int]]:
    """Counts gold and found entities that occur in training with the same type, and those that do not ->
    {"seen": {"gold", "found"}, "unseen": …}. seen: {(type, tokens)} of the training data"""
    cells = {name: {"gold": 0, "found": 0} for name in ("seen", "unseen")}
    for row, matches in zip(rows, all_matches):
        for match in matches:
            if match.gold:
                cell = cells["seen" if (match.gold[0], tokens_of(row, match.gold)) in seen else "unseen"]
                cell["gold"] += 1
                cell["found"] += match.verdict == "right"
    return cells
