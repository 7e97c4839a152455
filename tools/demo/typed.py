"""Labels typed texts with a trained model, for the prompt (tools/demo/prompt.py) and the web page
(tools/demo/page.py)."""

import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from engine.data.own_inputs import input_columns
from engine.errors import UserError
from engine.predict.predictions import prediction_row, prepare_inputs
from engine.predict.stored import cuts_and_windows, distribution
from engine.task.tags import names_entities
from engine.task.task import pairs_of, read_tasks
from engine.task.text import text_and_offsets, text_of
from engine.task.words import entities, entity
from tools.report.marked import Mark, split_crossing, tree

MAX_CHARACTERS = 10_000  # per text
MAX_TEXTS = 64  # per request
MAX_ROW = 1_000_000  # bytes of an example row
MAX_LABELS = 5  # number of labels to show
Given = Any  # unvalidated input: a text, or {"text" or "tokens", "text_pair"?, "extras"?: {column: number}, "id"?}
KEYS = ("text", "tokens", "text_pair", "extras", "id")
Tasks = dict[str, Any]  # as in labels.json


def as_example(given: Given, tasks: Tasks) -> dict[str, Any]:
    """Converts typed input to an example for these tasks. Raises UserError if the input is invalid."""
    given = {"text": given} if isinstance(given, str) else given
    tokens = given.get("tokens", [""]) if isinstance(given, dict) else None
    are_strings = isinstance(tokens, list) and bool(tokens) and all(isinstance(token, str) for token in tokens)
    if not are_strings or not given.keys() & {"text", "tokens"} or not isinstance(given.get("text", ""), str):
        raise UserError('each text must be a string, or an object with a string "text" or a list of strings "tokens"')
    if unknown := sorted(given.keys() - {*KEYS}):
        raise UserError(f"unknown key {unknown[0]!r}; the keys are {', '.join(KEYS)}")
    if pairs_of(tasks) and not isinstance(given.get("text_pair"), str):
        raise UserError("this model needs pairs of texts; text_pair must be a string")
    if not isinstance(given.get("extras") or {}, dict):
        raise UserError("extras must be an object with one value per column")
    read = [key for key in ("text", "tokens", *(["text_pair"] if pairs_of(tasks) else [])) if key in given]
    example = {"id": str(given.get("id", "0"))} | {key: given[key] for key in read}
    if not text_of(example).strip():
        raise UserError("the text is empty")
    for text in (" ".join(given[key]) if key == "tokens" else given[key] for key in read):
        if len(text) > MAX_CHARACTERS:
            raise UserError(f"the text has {len(text):,} characters; the maximum is {MAX_CHARACTERS:,}")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError("the text contains a lone surrogate, or bytes that are not UTF-8")
    return next(prepare_inputs([example | {"extras": given.get("extras") or {}}], tasks, "typed"))


class Labeller:
    """Labels typed texts with the model of a Trainer: label(texts). Concurrent calls run one at a time.

    load: function that creates a MyDataLoader from examples.
    """

    def __init__(self, trainer: Any, load: Callable[[list[dict[str, Any]]], Any]) -> None:
        self.trainer, self.tasks, self.load, self.lock = trainer, trainer.tasks, load, Lock()

    def __call__(self, texts: Sequence[Given]) -> list[dict[str, Any]]:
        """Returns [{"prediction": row of predictions.jsonl, "tasks": [results of `view`], "cut": number of truncated
        sub-tokens}]. Raises UserError if a text is invalid."""
        examples = [as_example(text, self.tasks) for text in texts]
        with self.lock:
            loader = self.load(examples)
            (labels, probabilities, averages, _), _ = self.trainer.infer(loader, "labelling", keep_averages="texts")
        results, cut = [], cuts_and_windows(loader.dataset)[0]
        for i, example in enumerate(examples):
            predicted = {name: (labels[name][i], probabilities[name][i]) for name in self.tasks}
            row = prediction_row(example, predicted, self.tasks)
            if not isinstance(texts[i], dict) or "id" not in texts[i]:
                row.pop("id")
            tasks = [view(example, name, self.tasks, *predicted[name], averages[name][i]) for name in self.tasks]
            results.append({"prediction": row, "tasks": tasks, "cut": int(cut[i])})
        return results


def view(
    example: dict[str, Any], name: str, tasks: Tasks, label: Any, probability: Any = None, average: Any = None
) -> dict[str, Any]:
    """Formats a predicted or gold label of a task for display. Returns {"task", "kind"} and these keys:

    tags and spans: "marked", a list of strings and {"label", "colour", "first", "inside": such a list}
    relations and events: also "relations", [[subject, number, predicate, object, number, probability or None]], where
    the numbers are the labels of the subject and object in "marked"
    regression: "value"
    other kinds: "labels", [[label, probability or None, is_chosen]], most probable first
    """
    task = tasks[name]
    kind = task.kind
    shown = {"task": name, "kind": kind}
    if task.num_places == 4:
        return shown | related(example, tasks, label, probability)
    if task.needs_words:
        return shown | {"marked": marked(example, task, tasks, label)}
    if isinstance(label, int | float) and not task.labels:
        return shown | {"value": label}
    chosen = label if isinstance(label, list) else [label]
    by_label = distribution(average, task.labels, label, kind)
    if by_label is None:
        has_one_each = isinstance(probability, list) and len(probability) == len(chosen)
        by_label = dict(zip(chosen, probability if has_one_each else [probability] * len(chosen)))
    likeliest = sorted(by_label.items(), key=lambda item: -(item[1] or 0))
    kept = [item for number, item in enumerate(likeliest) if number < MAX_LABELS or item[0] in chosen]
    return shown | {"labels": [[name, p, name in chosen] for name, p in kept]}


def marked(example: dict[str, Any], task: Any, tasks: Tasks, label: Any) -> list:
    """Splits a text into pieces marked with entities or, for other tags, with one tag per word."""
    text, spans = text_and_offsets(example, tasks)
    assert spans is not None  # the example has tokens
    kinds = sorted({tag.partition("-")[2] or tag for tag in task.labels if tag != "O"})
    if task.kind == "spans":
        kinds = list(task.labels)
        items = [entity(kind, spans[first][0], spans[last][1], text) for first, last, kind in label]
    elif task.is_tagging and names_entities(task):
        items = entities(label, spans, text)
    else:
        kinds = task.labels
        items = [entity(tag, start, end, text) for tag, (start, end) in zip(label, spans) if tag != "O"]
    marks = [Mark(e["start"], e["end"], e["label"], "right") for e in items if e["start"] < e["end"]]
    colours = {kind: number % 8 for number, kind in enumerate(kinds)}
    return pieces(tree(text, split_crossing(marks)), colours)


def related(example: dict[str, Any], tasks: Tasks, label: list, probability: Any) -> dict[str, Any]:
    """Formats the relations of a text for `view`. Subjects and objects are numbered in text order."""
    text, places = text_and_offsets(example, tasks)
    assert places is not None  # the example has tokens
    spans = sorted({tuple(item[i : i + 2]) for item in label for i in (0, 2)})
    ends = {span: (places[span[0]][0], places[span[1]][1], number) for number, span in enumerate(spans, 1)}
    marks = [Mark(start, end, str(number), "") for start, end, number in ends.values() if start < end]
    found = []
    for i, (*item, predicate) in enumerate(label):
        subject, object_ = ([text[start:end], n] for start, end, n in (ends[tuple(item[:2])], ends[tuple(item[2:])]))
        found.append([*subject, predicate, *object_, probability[i] if probability else None])
    return {"marked": pieces(tree(text, split_crossing(marks)), {}), "relations": found}


def pieces(nested: list, colours: dict[str, int]) -> list:
    """Converts a tree from tools/report/marked.py to JSON."""
    items: list = []
    for item in nested:
        if not isinstance(item, str):
            mark, inside = item
            colour = colours.get(mark.label, 0)
            item = {"label": mark.label, "colour": colour, "first": mark.first, "inside": pieces(inside, colours)}
        items.append(item)
    return items


class Examples:
    """Reads example rows from the test split of the first folder that has the model's tasks and labels."""

    def __init__(self, folders: Iterable[str | Path], tasks: Tasks) -> None:
        self.tasks, self.path = tasks, next((p for p in map(Path, folders) if fits(p, tasks)), None)

    def first(self, most: int = 8) -> list[dict[str, Any]]:
        if self.path is None:
            return []
        with open(self.path / "test.jsonl", "rb") as file:
            return list(filter(None, (self.shown(line) for line, _ in zip(file, range(most)))))

    def random_row(self, rng: Any = random) -> dict[str, Any] | None:
        """Returns a random row, or None if no valid row is found. Long rows are more likely."""
        if self.path is None:
            return None
        with open(self.path / "test.jsonl", "rb") as file:
            size = file.seek(0, 2)
            for _ in range(20):
                position = rng.randrange(size) if size else 0
                start = max(0, position - MAX_ROW)
                file.seek(start)
                file.seek(start + file.read(position - start).rfind(b"\n") + 1)
                if row := self.shown(file.readline(MAX_ROW)):
                    return row
        return None

    def shown(self, line: bytes) -> dict[str, Any] | None:
        """Converts a row to {"given": input of `as_example`, "gold": [results of `view`]}. Returns None if invalid."""
        try:
            row = json.loads(line)
            given = {"text": text_and_offsets(row, self.tasks)[0]}
            given |= {"text_pair": row["text_pair"]} if "text_pair" in row else {}
            given |= {"extras": row["extras"]} if input_columns(self.tasks) else {}
            as_example(given, self.tasks)
            known = [name for name in self.tasks if row.get(name) is not None]
            return {"given": given, "gold": [view(row, name, self.tasks, row[name]) for name in known]}
        except (ValueError, LookupError, TypeError, AttributeError):  # UserError is a ValueError
            return None


def fits(folder: Path, tasks: Tasks) -> bool:
    """Returns whether a data folder has a test split and the same labels for these tasks."""
    try:
        folder_tasks = read_tasks(folder / "labels.json")
        labels = [{name: task.labels for name, task in side.items()} for side in (folder_tasks, tasks)]
        return labels[0] == labels[1] and (folder / "test.jsonl").is_file()
    except (OSError, UserError):
        return False
