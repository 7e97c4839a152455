"""Classifies entity errors, and counts entities by type, length and occurrence in training.

Let G be the gold and P the predicted entities of a text, each (type, first token, last token).

1. Entities in both sets are *right*.
2. A remaining gold and predicted entity with the same boundaries form a pair with the *wrong type*.
3. A remaining gold and predicted entity of the same type that overlap form a pair with a *boundary error*. Pairs with
   the largest intersection over union are formed first; ties are resolved in text order.
4. The remaining entities of G are *missed* and those of P are *false positives*, even if they overlap.

Each entity is in at most one pair, so |G| = right + wrong type + boundary error + missed, and |P| = right + wrong type
+ boundary error + false positive.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from tools.report.figures import Row, most_frequent

Entity = tuple  # (type, first token, last token); a relation has two token spans after its predicate
Measures = Mapping[str, Callable[[Entity, Entity], float]]


class Match(NamedTuple):
    verdict: str
    gold: Entity | None
    predicted: Entity | None

    @property
    def either(self) -> Entity:
        """The gold entity if there is one, otherwise the predicted entity."""
        entity = self.gold or self.predicted
        assert entity
        return entity


def match(gold: set[Entity], predicted: set[Entity], measures: Measures | None = None) -> list[Match]:
    """Matches gold and predicted entities. Returns the matches in text order. measures: {verdict: function}, in the
    order in which pairs are formed (default: MEASURES). A function returns the closeness of a gold and a predicted
    entity, or 0 if they do not form a pair with this verdict."""
    matches = [Match("right", entity, entity) for entity in gold & predicted]
    missed, extra = sorted(gold - predicted, key=position), sorted(predicted - gold, key=position)
    for verdict, closeness in (MEASURES if measures is None else measures).items():
        pairs = [(-value, position(g), position(p), g, p) for g in missed for p in extra if (value := closeness(g, p))]
        for *_, g, p in sorted(pairs):
            if g in missed and p in extra:
                missed.remove(g)
                extra.remove(p)
                matches.append(Match(verdict, g, p))
    matches += [Match("missed", g, None) for g in missed] + [Match("false_positive", None, p) for p in extra]
    return sorted(matches, key=lambda item: position(item.either))


def position(entity: tuple) -> tuple:
    """Returns a key to sort entities or relations in text order."""
    return *entity[1:], entity[0]


def same_boundaries(gold: Entity, predicted: Entity) -> float:
    return float(gold[1:] == predicted[1:])


def overlap(gold: Entity, predicted: Entity) -> float:
    """Returns the intersection over union of two entities in tokens, or 0 if their types differ."""
    both = min(gold[2], predicted[2]) - max(gold[1], predicted[1]) + 1
    if gold[0] != predicted[0] or both <= 0:
        return 0
    return both / (max(gold[2], predicted[2]) - min(gold[1], predicted[1]) + 1)


def length(entity: Entity) -> int:
    """Returns the length of an entity in tokens."""
    return entity[2] - entity[1] + 1


MEASURES: Measures = {"wrong_type": same_boundaries, "boundary_error": overlap}
VERDICTS = ("right", *MEASURES, "missed", "false_positive")
LENGTHS = (1, 2, 3, 4, 5)


def key_of(words: Sequence[str], entity: Entity) -> tuple:
    """Returns (type, tokens of each span) for an entity or a relation in a text."""
    label, *places = entity
    return label, *(tuple(words[first : last + 1]) for first, last in zip(places[::2], places[1::2]))


def error_counts(matches: Sequence[list[Match]], verdicts: Sequence[str] = VERDICTS) -> dict[str, dict[str, int]]:
    """Returns {type: {verdict: count}}, by gold type or, for false positives, by predicted type. matches: one list per
    row."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for match in chain.from_iterable(matches):
        counts[match.either[0]][match.verdict] += 1
    return {kind: {verdict: counts[kind][verdict] for verdict in verdicts} for kind in sorted(counts)}


def confused_types(matches: Sequence[list[Match]], wrong: str = "wrong_type") -> list[list]:
    """Counts pairs with the verdict `wrong`. Returns [[gold type, predicted type, count]], most frequent first."""
    pairs = Counter(
        (match.gold[0], match.predicted[0])
        for match in chain.from_iterable(matches)
        if match.verdict == wrong and match.gold and match.predicted
    )
    return [[*pair, count] for pair, count in most_frequent(pairs)]


def by_size(
    matches: Sequence[list[Match]], size: Callable[[Entity], int] = length, lows: Sequence[int] = LENGTHS
) -> list[dict[str, Any]]:
    """Counts entities by size, in ranges that start at `lows`. Returns [{"size": name of the range, "gold", "found",
    "predicted", "right"}]."""
    last = [high - 1 for high in lows[1:]]
    names = [str(low) if low == high else f"{low}–{high}" for low, high in zip(lows, last)] + [f"{lows[-1]}+"]
    cells = [dict.fromkeys(("gold", "found", "predicted", "right"), 0) for _ in lows]
    for match in chain.from_iterable(matches):
        for side, right in (("gold", "found"), ("predicted", "right")):
            if entity := getattr(match, side):
                cell = cells[bisect_right(lows, size(entity)) - 1]
                cell[side] += 1
                cell[right] += match.verdict == "right"
    return [{"size": name} | cell for name, cell in zip(names, cells) if any(cell.values())]


def by_seen(rows: Sequence[Row], all_matches: Sequence[list[Match]], seen: set[tuple]) -> dict[str, dict[str, int]]:
    """Counts gold and found entities, separately by whether they occur in training with the same type. Returns {"seen":
    {"gold", "found"}, "unseen": …}. seen: keys of the training entities, from `key_of`."""
    cells = {name: {"gold": 0, "found": 0} for name in ("seen", "unseen")}
    for row, matches in zip(rows, all_matches):
        words = [row["text"][start:end] for start, end in row["places"]]
        for match in matches:
            if match.gold:
                cell = cells["seen" if key_of(words, match.gold) in seen else "unseen"]
                cell["gold"] += 1
                cell["found"] += match.verdict == "right"
    return cells
