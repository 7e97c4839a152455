"""Classifies entity errors, and counts them by type, length and occurrence in training.

The rule. In a text, G is the set of gold entities and P of predicted ones, each (type, first token, last token).

1. Entities in both sets are right.
2. Of the rest, a gold and a predicted entity with the same borders form a pair with the *wrong type*.
3. Of the rest, a gold and a predicted entity of the same type that share a token form a pair with a *wrong border*;
   pairs with the largest intersection over union come first, then earlier ones.
4. The rest is *missed* in G and *invented* in P, even if two overlap that differ in both type and borders.

Each entity is in at most one pair. So |G| = right + wrong type + wrong border + missed and |P| = right + wrong type +
wrong border + invented.
"""

from collections import Counter, defaultdict
from typing import NamedTuple

from seqeval.metrics.sequence_labeling import get_entities

from tools.report.figures import scores_by_label

VERDICTS = ("right", "wrong_type", "wrong_border", "missed", "invented")


class Match(NamedTuple):
    verdict: str
    gold: tuple | None  # (type, first token, last token)
    predicted: tuple | None


def entities_in(kind, label):
    """{(type, first token, last token)} of a text's tags or spans, as in metrics.py."""
    return {(t, first, last) for first, last, t in label} if kind == "spans" else set(get_entities(label))


def entity_sets(kind, gold, predicted):
    return entities_in(kind, gold), entities_in(kind, predicted)


def match(gold, predicted):
    """[Match] of two sets of entities, in text order."""
    found = [Match("right", one, one) for one in gold & predicted]
    left, rest = sorted(gold - predicted, key=place), sorted(predicted - gold, key=place)
    for verdict, closeness in (("wrong_type", same_borders), ("wrong_border", shared_part)):
        pairs = [(-closeness(g, p), place(g), place(p), g, p) for g in left for p in rest if closeness(g, p)]
        for *_, g, p in sorted(pairs):
            if g in left and p in rest:
                left.remove(g)
                rest.remove(p)
                found.append(Match(verdict, g, p))
    found += [Match("missed", g, None) for g in left] + [Match("invented", None, p) for p in rest]
    return sorted(found, key=lambda one: place(one.gold or one.predicted))


def place(entity):
    return entity[1], entity[2], entity[0]


def same_borders(gold, predicted):
    return float(gold[1:] == predicted[1:])


def shared_part(gold, predicted):
    """Intersection over union of two entities in tokens; 0 if their types differ."""
    both = min(gold[2], predicted[2]) - max(gold[1], predicted[1]) + 1
    return (
        both / (max(gold[2], predicted[2]) - min(gold[1], predicted[1]) + 1)
        if gold[0] == predicted[0] and both > 0
        else 0
    )


def matches_of(kind, answer):
    """[Match] of a text's stored answer; [] if it has no gold label."""
    return [] if answer["gold"] is None else match(*entity_sets(kind, answer["gold"], answer["predicted"]))


def tokens_of(row, entity):
    """The tokens of an entity, as a tuple."""
    return tuple(row["text"][start:end] for start, end in row["places"][entity[1] : entity[2] + 1])


def error_counts(found):
    """{type: {verdict: count}}, by the gold type or, without one, the predicted. found: [Match] of each row"""
    counts = defaultdict(Counter)
    for one in (one for matches in found for one in matches):
        counts[(one.gold or one.predicted)[0]][one.verdict] += 1
    return {kind: {verdict: counts[kind][verdict] for verdict in VERDICTS} for kind in sorted(counts)}


def confused_types(found):
    """[[gold type, predicted type, count]] of the pairs with the wrong type, most frequent first."""
    pairs = Counter(
        (one.gold[0], one.predicted[0]) for matches in found for one in matches if one.verdict == "wrong_type"
    )
    return [[*pair, count] for pair, count in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))]


def by_length(found, longest=5):
    """[{"length", "gold", "found", "predicted", "right"}] by entity length in tokens (the last: or more)."""
    table = {length: Counter() for length in range(1, longest + 1)}
    for one in (one for matches in found for one in matches):
        for side, right in (("gold", "found"), ("predicted", "right")):
            if entity := getattr(one, side):
                cell = table[min(longest, entity[2] - entity[1] + 1)]
                cell[side] += 1
                cell[right] += one.verdict == "right"
    keys = ("gold", "found", "predicted", "right")
    return [{"length": n} | {key: cell[key] for key in keys} for n, cell in table.items() if cell.total()]


def by_seen(rows, found, seen):
    """{"seen": {"gold", "found"}, "unseen": …}: gold entities by whether training has one with these tokens and type.
    seen: {(type, tokens)}"""
    table = {"seen": Counter(), "unseen": Counter()}
    for row, matches in zip(rows, found):
        for one in matches:
            if one.gold:
                cell = table["seen" if (one.gold[0], tokens_of(row, one.gold)) in seen else "unseen"]
                cell["gold"] += 1
                cell["found"] += one.verdict == "right"
    return {name: {"gold": cell["gold"], "found": cell["found"]} for name, cell in table.items()}


def per_type(found):
    """{type: {"precision", "recall", "f1", "support"}} as in report.json."""
    right, guessed, there = Counter(), Counter(), Counter()
    for one in (one for matches in found for one in matches):
        if one.gold:
            right[one.gold[0]] += one.verdict == "right"
            there[one.gold[0]] += 1
        if one.predicted:
            guessed[one.predicted[0]] += 1
    return scores_by_label(right, guessed, there)
