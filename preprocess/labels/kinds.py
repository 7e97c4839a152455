"""The kinds of tasks, and the validation of labels.

Kinds: "classification" (a string), "multilabel" (a list of strings), "regression" (a number), "tagging" (one tag per
token), "spans" (a list of [first token, last token, type], with inclusive ends), "relations" (a list of [first and last
token of the subject, first and last token of the object, predicate]), "events" (a list of [first and last token of the
anchor, first and last token of a trigger or argument, type or type|role]; see `events_in` in engine/task/words.py).
Character spans become tags, so their task is tagging, unless spans overlap.

To add a kind of task, edit this file.
"""

import math
import re
from typing import Any

from engine.data.fields import MAX_NUMBER
from engine.errors import UserError
from engine.task import task
from engine.task.hierarchy import problem_of, with_ancestors
from engine.task.words import ROLE, in_events
from preprocess.example import Example, shown
from preprocess.labels.literals import literal

# {kind: kind with the same label format}; to add a custom kind: KINDS["ordinal"] = "classification"
KINDS = {kind: kind for kind in task.KINDS}
TAG_NAMES = ("slots", "tags", "ner", "ner_tags")  # labels with these names are tags, never label sets
SET_NAMES = ("intent", "intents")  # lists with these names are label sets, even if there are tokens
HIERARCHICAL = ("classification", "multilabel")  # kinds whose labels can be paths of nodes
MAX_LABELS = 100_000  # per task
NO_LABEL = ("", "nan", "null", "na", "n/a", "#n/a")  # missing labels for --drop_unlabelled


def links_mentions(kind: str) -> bool:
    """Returns True for relations and events, whose labels connect two mentions each."""
    return task.PLACES.get(kind, 0) > 2


def as_list(cell: str, separator: str) -> list[Any]:
    """Returns the labels in a cell: a JSON or Python list, or a string split at the separator."""
    cell = cell.strip()
    if cell.startswith("[") and isinstance(labels := literal(cell), list):
        return labels
    if cell[:1] + cell[-1:] == "[]":  # [red, blue]
        cell = cell[1:-1]
    return [part for part in cell.split(separator) if part.strip()]


def is_number(text: str) -> bool:
    return bool(re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", text))


def check_label(example: Example, name: str, kind: str) -> Any:
    """Returns the label in its stored form, or None if it is missing. Raises UserError if it is invalid."""
    where, label = example["_where"], example.get(name)
    if kind == "classification" and type(label) is str and label.strip():
        return label.strip()
    if label is None or (isinstance(label, float) and math.isnan(label)):
        return None
    if kind == "tagging":
        return check_tags(label, name, where, example.get("tokens"))
    if kind in task.PLACES:
        return check_spans(label, name, kind, where, example.get("tokens"))
    check = {"multilabel": check_set, "regression": check_number}.get(kind, check_class)
    return check(label, name, where)


def check_set(label: Any, name: str, where: str) -> list[str]:
    label = label if isinstance(label, list) else [label]
    label = [str(item) if isinstance(item, int) and not isinstance(item, bool) else item for item in label]
    if not all(isinstance(item, str) and item.strip() for item in label):
        raise UserError(f"{where}: {name!r} must be a list of labels (non-empty strings)")
    return sorted({item.strip() for item in label})


def check_paths(label: Any, name: str, separator: str, where: str) -> Any:
    """Checks a label that is a path or a set of paths, and adds all ancestors to a set. Raises UserError for an invalid
    path. label: in its stored form, or None."""
    for path in label if isinstance(label, list) else [label or ""]:
        if path and (problem := problem_of(path, separator)):
            raise UserError(f"{where}: the label {name}={shown(path)} {problem} (--label_hierarchy {separator!r})")
    return sorted(with_ancestors(label, separator)) if isinstance(label, list) else label


def check_tags(label: Any, name: str, where: str, tokens: list[str] | None) -> list[str]:
    if tokens is None:
        raise UserError(f"{where}: {name!r} is a list of tags, but there is no list of `tokens`")
    if not isinstance(label, list) or "" in label or {*map(type, label)} - {str}:
        numbers = isinstance(label, list) and int in {*map(type, label)}
        advice = "; replace numbers with the names of the tags" if numbers else ""
        raise UserError(f"{where}: {name!r} must be a list of tags (non-empty strings){advice}")
    if len(label) != len(tokens):
        raise UserError(f"{where}: {len(tokens)} tokens, but {len(label)} tags in {name!r}")
    return label


FORMS = {  # the format of the items of a label
    "spans": "[first token, last token, type]",
    "relations": "[first and last token of the subject, first and last token of the object, predicate]",
    "events": "[first and last token of the anchor, first and last token of a mention, type or type|role]",
}


def check_spans(label: Any, name: str, kind: str, where: str, tokens: list[str] | None) -> list[list]:
    if tokens is None:
        raise UserError(f"{where}: {name!r} has {kind} of tokens, but there is no list of `tokens`")
    size = task.PLACES[kind]
    for item in label if isinstance(label, list) else [label]:
        is_item = isinstance(item, list | tuple) and len(item) == size + 1
        if not (is_item and isinstance(item[-1], str) and item[-1]):
            raise UserError(f"{where}: {name!r} must be a list of {FORMS[kind]}, found {shown(item)}")
        ends = zip(item[:-1:2], item[1:-1:2])
        if not all(type(a) is int and type(b) is int and 0 <= a <= b < len(tokens) for a, b in ends):
            raise UserError(f"{where}: {shown(item)} of {name!r} is outside the {len(tokens)} tokens")
    items = [list(item) for item in sorted({tuple(item) for item in label})]
    if kind == "events":
        check_events(items, name, where)
    return items


def check_events(items: list[list], name: str, where: str) -> None:
    """Raises UserError for an item whose label is neither a type nor type|role, or that belongs to no event."""
    for *_, label in items:
        kind, is_argument, role = label.partition(ROLE)
        if not kind or (is_argument and not role):
            raise UserError(f"{where}: the label {shown(label)} of {name!r} lacks a type or a role (type{ROLE}role)")
    if False in (stays := in_events(items, [True] * len(items))):
        problem = f"{shown(items[stays.index(False)])} of {name!r} belongs to no event"
        raise UserError(f"{where}: {problem}; an event needs an item whose anchor and mention are the same")


def check_number(label: Any, name: str, where: str) -> float:
    if isinstance(label, bool) or not (isinstance(label, int | float) or (isinstance(label, str) and is_number(label))):
        advice = f"if it is a class name, add --label_type {name}=classification"
        if isinstance(label, str) and label.strip().lower() in NO_LABEL:
            advice = "add --drop_unlabelled to drop such rows"
        raise UserError(f"{where}: the label {name}={shown(label)} is not a number; {advice}")
    number = math.inf if isinstance(label, int) and abs(label) > MAX_NUMBER else float(label)
    if not abs(number) <= MAX_NUMBER:
        limit = f"a finite number up to {MAX_NUMBER:g}"
        raise UserError(f"{where}: the label {name}={shown(label)} is not {limit}; scale the column")
    return number


def check_class(label: Any, name: str, where: str) -> str:
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, float) and label.is_integer():
        label = int(label)  # pandas stores integers as floats if a column has missing values
    label = str(label) if isinstance(label, int | float) else label
    if not isinstance(label, str):
        raise UserError(f"{where}: the label {name}={shown(label)} is not a string")
    if not label.strip():
        raise UserError(f"{where}: the label {name!r} is empty; add --drop_unlabelled to drop such rows")
    return label.strip()


def check_label_names(name: str, labels: list[str]) -> None:
    """Raises UserError for more than MAX_LABELS labels (probably ids or texts), or for mixed spellings of yes and no,
    such as 1 and true, which would result in up to four labels."""
    if len(labels) > MAX_LABELS:
        examples = f"{shown(labels[0])}, …, {shown(labels[-1])}"
        problem = f"the task {name!r} has {len(labels):,} labels in train ({examples}), more than {MAX_LABELS:,}"
        raise UserError(f"{problem}; specify the label column with --label_column")
    written = {label.lower() for label in labels}
    if written <= {"true", "false", "1", "0"} and written & {"true", "false"} and written & {"1", "0"}:
        raise UserError(f"the task {name!r} has the labels {', '.join(labels)}; write yes and no consistently")
