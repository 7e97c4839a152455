"""Writes selected texts, with a model's answers, in formats that annotation tools import and data_process.py reads."""

import json
from itertools import accumulate
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from engine.errors import UserError
from engine.predict.interface import Examples, Model
from engine.predict.predictions import column_kind, write_predictions
from engine.run.files import appearing_whole
from engine.task.tags import parse_tag
from engine.task.task import Task
from engine.task.text import text_and_offsets

Tasks = dict[str, Task]
Row = dict[str, Any]


def require_format(form: str, tasks: Tasks) -> None:
    """Raises UserError if a format cannot hold labels of these tasks."""
    kinds = {name: column_kind(task) for name, task in tasks.items()}
    unfit = {"tags": "labels every word", "relations": "has relations"}
    problem = next((f"{name!r} {unfit[kind]}" for name, kind in kinds.items() if kind in unfit), "")
    if form == "doccano":
        by_words = [task.needs_words for task in tasks.values()]
        if max(by_words.count(True), by_words.count(False)) > 1:
            problem = f"a project has one task for texts and one for spans, but the tasks are {', '.join(tasks)}"
        problem = next((f"{name!r} has numbers" for name in tasks if tasks[name].kind == "regression"), problem)
    if problem and form in ("doccano", "label_studio"):
        raise UserError(f"--output_format {form}: {problem}; choose another format")


def write(path: Path, form: str, examples: Examples, facts: list[Row], model: Model | None, answers: bool) -> None:
    """Writes the file. facts: what else each row says; answers: with the model's answers, otherwise without labels"""
    tasks = model.tasks if model else {}
    make = {"doccano": doccano, "label_studio": label_studio}.get(form, plain_row)
    rows = []
    for example, answer, fact in zip(examples, model(examples) if model and answers else [{}] * len(examples), facts):
        text, _ = text_and_offsets(example, tasks)
        about = {"id": example["id"], "text": text}
        about |= {key: example[key] for key in ("text_pair",) if key in example} | fact | (example.get("extras") or {})
        if form in ("jsonl", "csv") and any(column_kind(task) == "tags" for task in tasks.values()):
            about["tokens"] = example["tokens"]
        keys = {name: f"{name}_tags" if column_kind(task) == "tags" else name for name, task in tasks.items()}
        rows.append(make(about, {name: answer.get(key) for name, key in keys.items()}, tasks))
    if form != "label_studio":
        write_predictions(rows, path)
        return
    with appearing_whole(path) as file:
        json.dump(rows, file, ensure_ascii=False, indent=1)
    with appearing_whole(path.with_suffix(".xml")) as file:
        file.write(interface(tasks, "text_pair" in rows[0]["data"]))


def plain_row(about: Row, labels: Row, tasks: Tasks) -> Row:
    """A row for an editor or a spreadsheet: each label under the name of its task, or null, to be filled in."""
    for name in tasks:
        if labels[name] and column_kind(tasks[name]) in ("spans", "entities", "relations"):
            labels[name] = [{key: item[key] for key in item if key != "probability"} for item in labels[name]]
    return about | labels


def spans_of(text: str, spans: list[Row]) -> list[tuple[int, int, str]]:
    """(start, end, type) of entities in UTF-16 units, in which an emoji is two: so count Label Studio (its issue 1347)
    and doccano (its issue 2290)."""
    units = [0, *accumulate(1 + (sign > "\uffff") for sign in text)]
    return [(units[span["start"]], units[span["end"]], span["label"]) for span in spans]


def doccano(about: Row, labels: Row, tasks: Tasks) -> Row:
    """A row of doccano's JSONL: "label", or for a project of intents and slots "cats" and "entities". doccano keeps the
    other keys as metadata."""
    for name, value in labels.items():
        key = "label" if len(tasks) == 1 else "entities" if tasks[name].needs_words else "cats"
        if value is not None:
            is_spans = tasks[name].needs_words
            about[key] = spans_of(about["text"], value) if is_spans else value if isinstance(value, list) else [value]
    return about


def label_studio(about: Row, labels: Row, tasks: Tasks) -> Row:
    """A task of Label Studio's JSON, with the answers as predictions."""
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
        results += [{"from_name": name, "to_name": "text", "type": kind, "value": content} for kind, content in values]
    return {"data": about} | ({"predictions": [{"result": results}]} if results else {})


def interface(tasks: Tasks, paired: bool) -> str:
    """The labelling interface of Label Studio, as XML, whose controls have the names of the tasks."""
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
    return "\n".join([*lines, "</View>", ""])


def types_of(task: Task) -> list[str]:
    """The labels that an annotator chooses from: for tags, the types of entities."""
    if not task.is_tagging:
        return list(task.labels)
    return list(dict.fromkeys(tag.kind for label in task.labels if (tag := parse_tag(label)) and tag.kind))
