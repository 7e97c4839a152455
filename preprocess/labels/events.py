"""Reads events with character or token offsets, and chooses the mention that anchors each event (see `events_in` in
engine/task/words.py).

A raw event is {"type": …, "trigger": a mention or null, "arguments": [{"role": …} and the keys of a mention]}, as in
predictions. See relations.py for mentions; in data with tokens, their offsets count tokens.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from engine.errors import UserError
from engine.task.text import join_tokens
from engine.task.words import ROLE, events_in, in_events
from preprocess.example import Example, cut, shown
from preprocess.labels.relations import Place, gap, is_relation, mention_of, places_of
from preprocess.labels.spans import StoredSpan, place_of
from preprocess.storage.facts import Note

Event = tuple[str, frozenset[tuple[str, Place]]]  # (type, {(label, place) of its mentions}); see `label_of`
Item = tuple[int, int, int, int, str]  # (start and end of the anchor, start and end of a mention, label of the mention)
Problems = defaultdict[str, list[str]]  # {problem: events}
PROBLEMS = {  # problem of some events: consequence
    "mentions that do not occur in the text": "these mentions were dropped",
    "events without a mention in the text": "these events were dropped",
    "ambiguous mentions, which occur several times": "the one closest to the other mentions was used; add offsets to "
    "be exact",
    "events that share every mention with other events of their type": "they were merged; correct repeated events",
}
MISSING, EMPTY, AMBIGUOUS, JOINED = PROBLEMS


def is_event(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("arguments"), list) and "type" in item


def is_events(value: Any) -> bool:
    """Returns True if a label is a list of raw events, or events in their stored form with at least one argument."""
    if not isinstance(value, list) or not all(isinstance(item, list) and is_relation(item) for item in value):
        return isinstance(value, list) and any(map(is_event, value))
    return any(ROLE in item[-1] for item in value) and all(in_events(value, [True] * len(value)))


def read_all_events(examples: list[Example], name: str, order: Sequence[str] | None = None) -> list[Note]:
    """Converts raw events to lists of Item or, with tokens, to their stored form. order: mention labels in order of
    preference as anchors (default: computed from these examples). Returns notes on the changes."""
    problems = Problems(list)
    raw = [(e, events_of(e, name, problems)) for e in examples if isinstance(e.get(name), list)]
    order = ranking(events for _, events in raw if events is not None) if order is None else order
    for example, events in raw:
        if events is None:
            continue
        items = anchored(events, order)
        kept = [(event.type, (*event.triggers, *event.arguments)) for event in events_in(items)]
        stored = Counter((kind, frozenset((items[i][4], items[i][2:4]) for i in numbers)) for kind, numbers in kept)
        problems[JOINED] += [f"{example['_where']}: {kind}" for kind, _ in (Counter(events) - stored).elements()]
        last = int("tokens" in example)
        example[name] = [[a, b - last, c, d - last, label] for a, b, c, d, label in items]
    return [Note(f"{name}: {problem}", problems[problem], advice) for problem, advice in PROBLEMS.items()]


def events_of(example: Example, name: str, problems: Problems) -> list[Event] | None:
    """Returns the events of an example, or None if they are already in their stored form."""
    label, where = example[name], example["_where"]
    if label and not any(isinstance(item, dict) for item in label):
        return None
    read = (read_event(item, example, f"{where}: ", problems) for item in label)
    return [event for event in read if event is not None]


def read_event(raw: Any, example: Example, where: str, problems: Problems) -> Event | None:
    """Returns an event, or None if none of its mentions occurs in the text. Raises UserError for invalid events."""
    if not is_event(raw):
        raise UserError(f"{where}an event needs a type, a trigger or null, and a list of arguments, found {shown(raw)}")
    kind, arguments = raw["type"], raw["arguments"]
    if not isinstance(kind, str) or not kind.strip() or ROLE in kind:
        raise UserError(f"{where}the type of an event must be a name without {ROLE!r}, found {shown(kind)}")
    labels, spans = [], []
    for one in arguments:
        role = one.get("role") if isinstance(one, dict) else None
        if not isinstance(role, str) or not role.strip():
            raise UserError(f"{where}an argument of {shown(kind)} needs a role, found {shown(role)}")
        labels.append(label_of(kind.strip(), role.strip()))
        spans.append(mention_of(one))
    if raw.get("trigger") is not None:
        labels, spans = [kind.strip(), *labels], [mention_of(raw["trigger"]), *spans]
    found = [(label, span, places_in(span, example, where)) for label, span in zip(labels, spans)]
    problems[MISSING] += [f"{where}{label} {cut(str(span.surface), 40)}" for label, span, places in found if not places]
    problems[AMBIGUOUS] += [f"{where}{label} {cut(str(span.surface), 40)}" for label, span, p in found if len(p) > 1]
    mentions = closest([(label, places) for label, _, places in found if places])
    problems[EMPTY] += [f"{where}{kind}"] * (not mentions)
    return (kind.strip(), frozenset(mentions)) if mentions else None


def places_in(span: StoredSpan, example: Example, where: str) -> list[Place]:
    """Returns the given place of a mention, or else all places where its words occur. With tokens, a mention must have
    a place."""
    tokens = example.get("tokens")
    if tokens is None:
        return (
            [place_of(span, example["text"], where.removesuffix(": "))]
            if span.has_place()
            else places_of(span.surface, example["text"])
        )
    start, end = span.start, span.end
    if not span.has_place() or not 0 <= start < end <= len(tokens):
        problem = f"the mention {shown(span.surface)} needs a start and an exclusive end within {len(tokens)} tokens"
        raise UserError(f"{where}{problem}, found {shown(start)} and {shown(end)}")
    if isinstance(span.surface, str) and "".join(span.surface.split()) != "".join("".join(tokens[start:end]).split()):
        called = f"is {shown(' '.join(tokens[start:end]))}, but the data says {shown(span.surface)}"
        raise UserError(f"{where}the mention {start} to {end} {called}")
    return [(start, end)]


def closest(mentions: Sequence[tuple[str, Sequence[Place]]]) -> list[tuple[str, Place]]:
    """Chooses a place for each mention: the one closest to a mention with a single place, or else to the first
    mention."""
    fixed = [places[0] for _, places in mentions if len(places) == 1] or [places[0] for _, places in mentions[:1]]
    return [
        (label, min(places, key=lambda place: min(gap(place, one)[1] for one in fixed))) for label, places in mentions
    ]


def shown_events(label: Sequence[Any], tokens: list[str]) -> str:
    """Formats events with token offsets as `type "trigger" (role: argument, …)`."""
    shown = []
    words = [cut(join_tokens(tokens[first : last + 1], "word")[0]) for _, _, first, last, _ in label]
    for event in events_in(label):
        trigger = "".join(f' "{words[i]}"' for i in event.triggers)
        roles = [f"{label[i][4].partition(ROLE)[2]}: {words[i]}" for i in event.arguments]
        shown.append(f"{event.type}{trigger}" + (f" ({', '.join(roles)})" if roles else ""))
    return "; ".join(shown)


# ---- anchors ---------------------------------------------------------------------------------------------------------


def label_of(kind: str, role: str | None) -> str:
    """Returns the label of a mention. role: None for the trigger."""
    return kind if role is None else f"{kind}{ROLE}{role}"


def separated(events: Sequence[Event], label: str) -> list[list[Place]]:
    """Returns, for each event of a text, the places of its mentions with this label that no other event has."""
    number = Counter(place for _, mentions in events for place in {place for _, place in mentions})
    return [sorted(place for of, place in mentions if of == label and number[place] == 1) for _, mentions in events]


def ranking(texts: Iterable[Sequence[Event]]) -> list[str]:
    """Returns the mention labels in order of preference as anchors (see `anchor_order`)."""
    return anchor_order(sum(map(num_separated, texts), Counter[str]()))


def num_separated(text: Sequence[Event]) -> Counter[str]:
    """Counts, for each label, the events with a mention that no other event of the same type and text has."""
    counts: Counter[str] = Counter()
    for events in by_type(text).values():
        labels = {label for _, mentions in events for label, _ in mentions}
        counts.update({of: sum(map(bool, separated(events, of))) for of in labels})
    return counts


def anchor_order(counts: Counter[str]) -> list[str]:
    """Sorts the labels: triggers before arguments, then by descending count. counts: from `num_separated`."""
    return sorted(counts, key=lambda label: (ROLE in label, -counts[label], label))


def by_type(text: Iterable[Event]) -> dict[str, list[Event]]:
    """Groups the events of a text by type, without duplicates."""
    groups: dict[str, list[Event]] = {}
    for event in dict.fromkeys(text):
        groups.setdefault(event[0], []).append(event)
    return groups


def anchored(text: Sequence[Event], order: Sequence[str]) -> list[Item]:
    """Returns the items of a text's events. The anchor of an event is its mention with the first label in `order` that
    identifies it (no other event of its type has this mention), or else its mention with the first label."""
    items = set()
    for events in by_type(text).values():
        present = {label for _, mentions in events for label, _ in mentions}
        own = {label: separated(events, label) for label in order if label in present}
        for number, (_, mentions) in enumerate(events):
            inside = [place for label in own for of, place in sorted(mentions) if of == label]
            anchor = next((places[number][0] for places in own.values() if places[number]), inside[0])
            items |= {(*anchor, *place, label) for label, place in mentions}
    return sorted(items)
