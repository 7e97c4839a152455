"""Writes selected texts and predictions in formats that annotation tools can import and data_process.py can read."""

import json
import logging
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import quoteattr

from engine.errors import UserError
from engine.predict.interface import Examples, Model
from engine.predict.predictions import column_kind, without_probabilities
from engine.predict.rows import write_predictions
from engine.run.atomic import atomic_file
from engine.task.tags import parse_tag
from engine.task.task import Task
from engine.task.text import text_and_offsets

logger = logging.getLogger("template")
Tasks = dict[str, Task]
Row = dict[str, Any]
UNTYPED = "entity"  # the type of subjects and objects if the model does not predict their types


class Related(NamedTuple):
    """The relations of a text, as pairs of spans of a task."""

    task: str  # task of the spans
    pairs: list[tuple[int, int, str]]  # (index of the subject's span, index of the object's span, predicate)
    left_out: int  # number of relations whose subject or object is not a span of the task


def require_format(form: str, tasks: Tasks) -> None:
    """Raises UserError if a format cannot store the labels of these tasks."""
    kinds = {name: column_kind(task) for name, task in tasks.items()}
    unsupported = {"tags": "labels every word", "events": "has events"}
    problem = next((f"{name!r} {unsupported[kind]}" for name, kind in kinds.items() if kind in unsupported), "")
    related = [task for task in tasks.values() if task.kind == "relations"]
    if len(related) > 1:
        problem = f"a project can have only one relations task, but the tasks are {', '.join(tasks)}"
    if form == "doccano":
        if related and len(tasks) > 1 + (related[0].entities in tasks):
            problem = f"a relations project cannot have other labels, but the tasks are {', '.join(tasks)}"
        by_words = [task.needs_words for task in as_spans(tasks).values()]
        if max(by_words.count(True), by_words.count(False)) > 1:
            problem = f"a project can have one task for texts and one for spans, but the tasks are {', '.join(tasks)}"
        problem = next((f"{name!r} has numbers" for name in tasks if tasks[name].kind == "regression"), problem)
    if problem and form in ("doccano", "label_studio"):
        raise UserError(f"--output_format {form}: {problem}; choose another format")


def write(path: Path, form: str, examples: Examples, facts: list[Row], model: Model | None, answers: bool) -> None:
    """Writes the file. facts: additional values for each row. answers: whether to write predictions as labels; if not,
    the rows have no labels."""
    tasks = model.tasks if model else {}
    for_tool = as_spans(tasks) if form in ("doccano", "label_studio") else tasks
    make = {"doccano": doccano, "label_studio": label_studio}.get(form, plain_row)
    rows, left_out = list[Row](), 0
    predictions = model(examples) if model and answers else [{}] * len(examples)
    for example, prediction, fact in zip(examples, predictions, facts):
        text, _ = text_and_offsets(example, tasks)
        about = {"id": example["id"], "text": text}
        about |= {key: example[key] for key in ("text_pair",) if key in example} | fact | (example.get("extras") or {})
        if form in ("jsonl", "csv") and any(column_kind(task) == "tags" for task in tasks.values()):
            about["tokens"] = example["tokens"]
        keys = {name: f"{name}_tags" if column_kind(task) == "tags" else name for name, task in tasks.items()}
        labels, related = {name: prediction.get(key) for name, key in keys.items()}, None
        if for_tool is not tasks:
            labels, related = split(labels, tasks)
        left_out += related.left_out if related else 0
        rows.append(make(about, labels, related, for_tool))
    if left_out:
        logger.warning(f"omitted relations whose subject or object has no predicted type: {left_out}")
    if form != "label_studio":
        write_predictions(rows, path)
        return
    with atomic_file(path) as file:
        json.dump(rows, file, ensure_ascii=False, indent=1)
    predicates = [label for task in tasks.values() if task.kind == "relations" for label in task.labels]
    with atomic_file(path.with_suffix(".xml")) as file:
        file.write(interface(for_tool, "text_pair" in rows[0]["data"], predicates))


def as_spans(tasks: Tasks) -> Tasks:
    """Returns the tasks without relations. If the data has no task for the subjects and objects, the relations task is
    replaced with a spans task for them."""
    untyped = Task("spans", labels=(UNTYPED,))
    return {
        name: untyped if task.kind == "relations" else task
        for name, task in tasks.items()
        if task.kind != "relations" or task.entities not in tasks
    }


def split(labels: Row, tasks: Tasks) -> tuple[Row, Related | None]:
    """Returns (labels of the tasks in `as_spans`, relations between their spans or None)."""
    name = next((name for name, task in tasks.items() if task.kind == "relations"), "")
    kept = {key: labels[key] for key in as_spans(tasks)}
    if labels.get(name) is None:
        return kept, None
    holder = tasks[name].entities if tasks[name].entities in tasks else name
    triples = [(one["subject"], one["object"], one["predicate"]) for one in labels[name]]
    if holder == name:
        ends = {place_of(end): end | {"label": UNTYPED} for triple in triples for end in triple[:2]}
        kept[holder] = [ends[place] for place in sorted(ends)]
    numbers = {place_of(span): number for number, span in reversed([*enumerate(kept[holder] or ())])}
    pairs = [(numbers.get(place_of(one)), numbers.get(place_of(other)), of) for one, other, of in triples]
    known = [(one, other, of) for one, other, of in pairs if one is not None and other is not None]
    return kept, Related(holder, known, len(pairs) - len(known))


def place_of(span: Row) -> tuple[int, int]:
    return span["start"], span["end"]


def plain_row(about: Row, labels: Row, _: Related | None, tasks: Tasks) -> Row:
    """Creates a row for an editor or a spreadsheet, with each label (null if unlabelled) under the name of its task."""
    for name in tasks:
        if labels[name] and column_kind(tasks[name]) in ("spans", "entities"):
            labels[name] = [{key: span[key] for key in ("start", "end", "label", "text")} for span in labels[name]]
        elif labels[name] and tasks[name].num_places:
            labels[name] = without_probabilities(labels[name])
    return about | labels


def spans_of(text: str, spans: list[Row]) -> list[tuple[int, int, str]]:
    """Returns the entities as (start, end, type) with offsets in UTF-16 code units (an emoji is two units), as in Label
    Studio (see its issue 1347) and doccano (see its issue 2290)."""
    units = [0, *accumulate(1 + (sign > "\uffff") for sign in text)]
    return [(units[span["start"]], units[span["end"]], span["label"]) for span in spans]


def doccano(about: Row, labels: Row, related: Related | None, tasks: Tasks) -> Row:
    """Creates a row of doccano's JSONL. The labels are stored under "label", or under "cats" and "entities" for a
    project with intents and slots, or under "entities" and "relations" for a relations project. doccano stores other
    keys as metadata."""
    if related:
        spans = enumerate(spans_of(about["text"], labels[related.task] or []))
        keys = ("id", "start_offset", "end_offset", "label")
        about["entities"] = [dict(zip(keys, (number, *span))) for number, span in spans]
        keys = ("id", "from_id", "to_id", "type")
        return about | {"relations": [dict(zip(keys, (number, *pair))) for number, pair in enumerate(related.pairs)]}
    for name, value in labels.items():
        key = "label" if len(tasks) == 1 else "entities" if tasks[name].needs_words else "cats"
        if value is not None:
            is_spans = tasks[name].needs_words
            about[key] = spans_of(about["text"], value) if is_spans else value if isinstance(value, list) else [value]
    return about


def label_studio(about: Row, labels: Row, related: Related | None, tasks: Tasks) -> Row:
    """Creates a task in Label Studio's JSON format, with the labels as predictions."""
    results: list[Row] = []
    for name, value in labels.items():
        values: list[tuple[str, Row]] = []
        if value is not None and tasks[name].needs_words:
            for span, (start, end, kind) in zip(value, spans_of(about["text"], value)):
                values.append(("labels", {"start": start, "end": end, "text": span["text"], "labels": [kind]}))
        elif value is not None and tasks[name].kind == "regression":
            values = [("number", {"number": value})]
        elif value is not None:
            values = [("choices", {"choices": value if isinstance(value, list) else [value]})]
        for number, (kind, content) in enumerate(values):
            region = {"id": f"{name}-{number}"} if related and kind == "labels" else {}
            results.append(region | {"from_name": name, "to_name": "text", "type": kind, "value": content})
    if related:
        for one, other, predicate in related.pairs:
            ends = {"from_id": f"{related.task}-{one}", "to_id": f"{related.task}-{other}"}
            results.append({"type": "relation", **ends, "direction": "right", "labels": [predicate]})
    return {"data": about} | ({"predictions": [{"result": results}]} if results else {})


def interface(tasks: Tasks, paired: bool, predicates: Sequence[str]) -> str:
    """Returns the labelling interface for Label Studio as XML. The controls are named after the tasks."""
    lines = ["<View>", "  <Style>.htx-text{ white-space: pre-wrap; }</Style>"]  # otherwise spaces are trimmed
    lines += [f'  <Text name="{name}" value="${name}"/>' for name in ("text", "text_pair")[: 1 + paired]]
    for name, task in tasks.items():
        control = f'name={quoteattr(name)} toName="text"'
        if task.kind == "regression":
            lines.append(f"  <Number {control}/>")
            continue
        tag, item = ("Labels", "Label") if task.needs_words else ("Choices", "Choice")
        choice = "" if task.needs_words else f' choice="{"multiple" if task.kind == "multilabel" else "single"}"'
        inside = [f"    <{item} value={quoteattr(label)}/>" for label in types_of(task)]
        lines += [f"  <{tag} {control}{choice}>", *inside, f"  </{tag}>"]
    relations = [f"    <Relation value={quoteattr(predicate)}/>" for predicate in predicates]
    lines += ["  <Relations>", *relations, "  </Relations>"] if relations else []
    return "\n".join([*lines, "</View>", ""])


def types_of(task: Task) -> list[str]:
    """Returns the labels that an annotator can choose; for tags, these are the entity types."""
    if not task.is_tagging:
        return list(task.labels)
    return list(dict.fromkeys(tag.kind for label in task.labels if (tag := parse_tag(label)) and tag.kind))
