"""Adds a task of relations to a processed folder with spans or tags, for tests of several rooms."""

import json
import shutil

from engine.task.words import entities_in

PREDICATES = ["before", "holds"]


def between(spans, tagged):
    """The relations of a text: what lies in a span, and what comes after it, so that entities nest and one has several
    objects."""
    if spans is None:
        return None
    places = {tuple(span[-2:] if tagged else span[:2]) for span in (entities_in(spans) if tagged else spans)}
    pairs = [(one, other) for one in places for other in places if one != other]
    found = [[*one, *other, "before"] for one, other in pairs if one[1] < other[0]]
    found += [[*one, *other, "holds"] for one, other in pairs if one[0] <= other[0] and other[1] <= one[1]]
    return sorted(found)


def with_relations(folder, other, entities):
    """Copies a processed folder, and adds relations there. -> the copy"""
    shutil.copytree(folder, other, ignore=shutil.ignore_patterns(".cache"))
    add_relations(other, entities)
    return other


def add_relations(folder, entities, name="facts"):
    """Adds the task `name`, with the relations of the spans, or tags, of the task `entities`."""
    tasks = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    tagged = tasks[entities]["type"] == "tagging"
    for path in folder.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        rows = [row | {name: between(row[entities], tagged)} for row in rows]
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        if path.name == "train.jsonl":
            given = [item[-1] for row in rows for item in row[name] or []]
    tasks[name] = {"type": "relations", "labels": PREDICATES, "counts": [given.count(label) for label in PREDICATES]}
    tasks[name] |= {"unit": tasks[entities]["unit"]} | ({} if tagged else {"entities": entities})
    (folder / "labels.json").write_text(json.dumps(tasks, ensure_ascii=False), encoding="utf-8")
