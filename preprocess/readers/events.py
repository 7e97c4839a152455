"""Finds lists of events in JSON objects, and converts them to the raw form of preprocess/labels/events.py.

To read another form, add its keys to the paths below (see preprocess/readers/paths.py).
"""

from collections.abc import Sequence
from typing import Any

from engine.errors import UserError
from preprocess.example import shown
from preprocess.labels.events import is_events
from preprocess.readers.options import ReadOptions, split_names
from preprocess.readers.paths import MISSING, Values, at, is_at

LISTS = ("events", "event_list", "event_mentions", "golden-event-mentions", "event")
TYPE, ARGUMENTS = "event_type|type|event-type", "arguments|args|participants"
ROLE, TRIGGER = "role|role_type", "trigger|event_trigger|nugget"
WORDS = "text|argument|words|mention|name|entity|trigger"
START = "start|start_offset|argument_start_index|trigger_start_index|offset.0|span.0"
END = "end|end_offset|argument_end_index|offset.1|span.1"
ENTITIES, ENTITY = "entity_mentions|entities", "entity_id"


def find_events(rows: Sequence[Values], options: ReadOptions) -> tuple[str, str] | None:
    """Returns (key of the events, task name), or None if the first objects have no events."""
    selected = split_names(options.label_column)
    for key in dict.fromkeys([*selected, *LISTS]):
        name = key if key in selected else "events"
        stored = [row[key] for row in rows if isinstance(row.get(key), list) and row[key]]
        if stored and (all(map(is_raw, stored)) or (all(map(is_of_tokens, stored)) and any(map(is_events, stored)))):
            return (key, name) if not selected or name in selected else None
    return None


def convert_events(values: Values, where: str, *, key: str, name: str) -> Values:
    """Converts the events of an object to the raw form. An object without the key gets no label."""
    stored = values.get(key)
    rest = {other: value for other, value in values.items() if other != key}
    if not isinstance(stored, list):
        if stored is not None:
            raise UserError(f"{where}: {key!r} is not a list of events, found {shown(stored)}")
        return rest | {name: None}
    if isinstance(words := values.get("words"), list) and "tokens" not in values:
        rest["tokens"] = words
    listed = at(values, ENTITIES)
    entities = {one.get("id"): one for one in listed if isinstance(one, dict)} if isinstance(listed, list) else {}
    return rest | {name: stored if is_of_tokens(stored) else [raw_event(item, entities, where) for item in stored]}


def is_raw(items: Any) -> bool:
    """Returns True if a value is a list whose items have the keys of events."""
    return isinstance(items, list) and all(is_at(item, ARGUMENTS) and is_at(item, TYPE) for item in items)


def is_of_tokens(items: list[Any]) -> bool:
    """Returns True if events are already in their stored form."""
    return all(isinstance(item, list) for item in items)


def without_events(values: Values, where: str, *, key: str) -> Values:
    """Returns the object unchanged. Raises UserError if it has events, because the first objects have none."""
    if values.get(key):
        problem = f"has {key}, but the first rows have none, so they would not be read"
        raise UserError(f"{where}: {problem}; move rows with {key} to the start of the file")
    return values


def raw_event(item: Any, entities: dict[Any, Values], where: str) -> Values:
    """Converts an event to its raw form. Raises UserError for invalid events."""
    arguments = at(item, ARGUMENTS)
    if not isinstance(arguments, list) or not is_at(item, TYPE):
        raise UserError(f"{where}: an event needs a type and a list of arguments, found {shown(item)}")
    trigger = at(item, TRIGGER)
    whole = item if isinstance(trigger, str) else trigger  # the offsets are keys of the event itself
    found = []
    for one in arguments:
        entity = one.get(ENTITY) if isinstance(one, dict) and not is_at(one, START) else None
        if entity is not None and entity not in entities:
            raise UserError(f"{where}: an argument refers to the entity {shown(entity)}, which does not exist")
        role = at(one, ROLE)
        found.append({"role": None if role is MISSING else role, **mention(entities.get(entity, one))})
    event = {"type": at(item, TYPE), "arguments": found}
    return event | {"trigger": None if trigger in (MISSING, None, "") else mention(whole)}


def mention(item: Any) -> Values:
    """Returns {"text", "start", "end"} of a mention, without missing keys. Computes a missing end from the words."""
    words, start, end = (None if (value := at(item, path)) is MISSING else value for path in (WORDS, START, END))
    if type(start) is int and end is None and isinstance(words, str):
        end = start + len(words)
    return {key: value for key, value in (("text", words), ("start", start), ("end", end)) if value is not None}
