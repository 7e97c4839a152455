"""Adds a task of relations or events to a processed folder with spans or tags, for the tests of several packages."""

import json
import shutil

from engine.task.words import entities_in

PREDICATES = ["before", "holds"]


def between(spans, tagged):
    """Returns relations of a text: from each span to those inside it and after it, so that entities are nested and one
    has several objects."""
    if spans is None:
        return None
    places = {tuple(span[-2:] if tagged else span[:2]) for span in (entities_in(spans) if tagged else spans)}
    pairs = [(one, other) for one in places for other in places if one != other]
    found = [[*one, *other, "before"] for one, other in pairs if one[1] < other[0]]
    found += [[*one, *other, "holds"] for one, other in pairs if one[0] <= other[0] and other[1] <= one[1]]
    return sorted(found)


def with_relations(folder, other, entities):
    """Copies a processed folder, and adds relations and events to the copy. Returns the copy."""
    shutil.copytree(folder, other, ignore=shutil.ignore_patterns(".cache"))
    add_relations(other, entities)
    add_events(other, entities)
    return other


def events_between(spans, tagged):
    """Returns the same as events of one type, whose triggers are the subjects of `between`."""
    found = between(spans, tagged)
    return found and sorted({(*x[:2], *x[:2], "sees") for x in found} | {(*x[:4], f"sees|{x[4]}") for x in found})


def add_relations(folder, entities, name="facts"):
    """Adds the task `name`, with relations between the spans, or tags, of the task `entities`."""
    add_task(folder, entities, name, between, {"type": "relations", "labels": PREDICATES, "entities": entities})


def add_events(folder, entities, name="acts"):
    """Adds the task `name`, with events of the spans, or tags, of the task `entities`."""
    labels = ["sees", *(f"sees|{predicate}" for predicate in PREDICATES)]
    add_task(folder, entities, name, events_between, {"type": "events", "labels": labels})


def add_task(folder, entities, name, label_of, task):
    tasks = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    tagged = tasks[entities]["type"] == "tagging"
    for path in folder.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        rows = [row | {name: label_of(row[entities], tagged)} for row in rows]
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        if path.name == "train.jsonl":
            given = [item[-1] for row in rows for item in row[name] or []]
    counts = [given.count(label) for label in task["labels"]]
    tasks[name] = task | {"counts": counts, "unit": tasks[entities]["unit"]}
    if tagged:
        tasks[name].pop("entities", None)
    (folder / "labels.json").write_text(json.dumps(tasks, ensure_ascii=False), encoding="utf-8")
