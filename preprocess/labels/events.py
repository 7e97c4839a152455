"""Reads events over a text, and chooses the mention of each event at which it is anchored (see `events_in` in
engine/task/words.py).

A raw event is {"type": …, "trigger": a mention or null, "arguments": [{"role": …} and the keys of a mention]}, as in
predictions; mentions are those of relations.py.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from engine.task.words import ROLE

Place = tuple[int, int]  # (start, exclusive end)
Event = tuple[str, frozenset[tuple[str, Place]]]  # (type, {(label, place) of its mentions}); see `label_of`


def label_of(kind: str, role: str | None) -> str:
    """Returns the label of a mention. role: None for the trigger"""
    return kind if role is None else f"{kind}{ROLE}{role}"


def separated(events: Sequence[Event], label: str) -> list[list[Place]]:
    """Returns, for each event of a text, the places of its mentions with a label that are in no other event."""
    number = Counter(place for _, mentions in events for place in {place for _, place in mentions})
    return [sorted(place for of, place in mentions if of == label and number[place] == 1) for _, mentions in events]


def ranking(texts: Iterable[Sequence[Event]]) -> list[str]:
    """Returns the labels of mentions in the order in which they serve as anchors: triggers, then roles by the number of
    events with a mention that is in no other event of that type and text."""
    counts: Counter[str] = Counter()
    for text in texts:
        for events in by_type(text).values():
            labels = {label for _, mentions in events for label, _ in mentions}
            counts.update({of: sum(map(bool, separated(events, of))) for of in labels})
    return sorted(counts, key=lambda label: (ROLE in label, -counts[label], label))


def by_type(text: Sequence[Event]) -> dict[str, list[Event]]:
    groups: dict[str, list[Event]] = {}
    for event in text:
        groups.setdefault(event[0], []).append(event)
    return groups


def anchored(text: Sequence[Event], order: Sequence[str]) -> list[tuple[int, int, int, int, str]]:
    """Returns the items of a text's events. Those of one type are anchored by the first label in the order with a
    mention of its own for each of them; without one, each by the first label that gives it a mention of its own."""
    items = set()
    for events in by_type(text).values():
        labels = [label for label in order if any(label == of for _, mentions in events for of, _ in mentions)]
        own = {label: separated(events, label) for label in labels}
        best = next((label for label in labels if all(own[label])), None)
        for number, (_, mentions) in enumerate(events):
            places = (own[label][number] for label in ([best] if best else labels))
            inside = (place for label in labels for of, place in sorted(mentions) if of == label)
            anchor = next((found[0] for found in places if found), None) or next(inside)
            items |= {(*anchor, *place, label) for label, place in mentions}
    return sorted(items)
