"""Merges the heads' answers for each text and writes them to a file."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from engine.data.fields import describe
from engine.data.own_inputs import fields_of, input_columns, require_fields
from engine.errors import UserError
from engine.predict.collector import Predictions
from engine.task.tags import names_entities
from engine.task.task import Task, has_no_text, pairs_of
from engine.task.text import split_text, text_and_offsets, token_unit
from engine.task.words import columns_of, is_wordless, row_of

logger = logging.getLogger("template")


def prepare_inputs(
    examples: Iterable[dict[str, Any]], tasks: dict[str, Task], path: str | Path = "--predict_file", first: int = 1
) -> Iterator[dict[str, Any]]:
    """Yields examples prepared for prediction on these tasks: split into tokens for tags and spans, with their custom
    inputs.

    tasks: if empty, as before a model exists, all inputs are kept. first: number of the first text, for error messages.
    """
    fields, unit = fields_of(tasks), token_unit(tasks)
    paired, columns = pairs_of(tasks), input_columns(tasks)
    for number, example in enumerate(examples, first):
        if tasks and not paired:
            example.pop("text_pair", None)
        if unit is not None and "tokens" not in example and "text" in example:
            example["tokens"] = [token for token, _, _ in split_text(example["text"], unit)]
        if not example.keys() & {"text", "tokens"}:
            if not has_no_text(tasks):
                raise UserError(f"{path}, row {number}: no column has a usual name of a text; add --text_column")
            example["text"] = describe(example.get("extras") or {}, columns)
        if fields:
            require_fields(example, fields, f"{path}, text {number}")
        elif tasks:
            example.pop("extras", None)
        yield example


def check_pairs(example: dict[str, Any], tasks: dict[str, Task], path: str | Path) -> None:
    """Raises UserError if the tasks read pairs of texts but the example has one; warns if a second text is unused.

    path: the file of the example, for the message.
    """
    paired = pairs_of(tasks)
    if paired and "text_pair" not in example:
        raise UserError(
            f"this model was trained on pairs of texts, but {path} has one text per row; add --text_pair_column"
        )
    if "text_pair" in example and tasks and not paired:
        logger.warning(f"only single texts are read here; the second texts of {path} are ignored")


def prediction_row(
    example: dict[str, Any],
    answers: dict[str, tuple[Any, Any]],
    tasks: dict[str, Task],
    is_right: Callable[[Task, Any, Any], bool | None] | None = None,
    abstain: Callable[[str, str, Any, Any], tuple[Any, Any]] | None = None,
) -> dict[str, Any]:
    """Returns the output row of an example. answers: {task: (label or tags, probability)}.

    Columns: id, text, (text_pair,) and for each task its label and probability; for tagging, its entities (with their
    text and character offsets) and tags; for spans, its entities with one probability each.
    For a labelled example, if is_right(task, gold, predicted) -> bool or None is given: also <task>_gold (and
    <task>_gold_tags), <task>_right, and as the last column `right`: whether all answers are right.
    abstain: an Abstention, which leaves out answers.
    """
    text, offsets = text_and_offsets(example, tasks)
    if is_wordless(example):
        answers = answers | {name: ([], []) for name in answers if tasks[name].needs_words}
    require_finite(example, answers)
    kinds = {name: column_kind(task) for name, task in tasks.items()}
    if abstain:
        answers = {name: abstain(name, kinds[name], *answer) for name, answer in answers.items()}
    row = row_of(example, {name: (kinds[name], *answer) for name, answer in answers.items()}, text, offsets)
    if is_right is None or any(name not in example for name in answers):
        return row
    verdicts = {
        name: None if label is None else is_right(tasks[name], example[name], label)
        for name, (label, _) in answers.items()
    }
    gold: dict[str, Any] = {}
    for name, verdict in verdicts.items():
        gold |= columns_of(f"{name}_gold", kinds[name], example[name], offsets, text) | {f"{name}_right": verdict}
    known = [verdict for verdict in verdicts.values() if verdict is not None]
    gold["right"] = all(known) if known else None
    # a task named "right" or "<task>_gold" keeps its column
    return row | {name: value for name, value in gold.items() if name not in row}


def prediction_rows(
    predictions: Predictions,
    data: Any,
    tasks: dict[str, Task],
    is_right: Callable[[Task, Any, Any], bool | None] | None = None,
    abstain: Callable[[str, str, Any, Any], tuple[Any, Any]] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yields the `prediction_row` of each example of a MyDataset."""
    labels, probabilities = predictions.labels, predictions.probabilities
    for i in range(len(data)):
        answers = {name: (labels[name][i], probabilities[name][i]) for name in tasks}
        yield prediction_row(data[i], answers, tasks, is_right, abstain)


def require_finite(example: dict, answers: dict) -> None:
    """Raises UserError if an answer contains NaN or infinity."""
    for name, answer in answers.items():
        numbers = [value for part in answer for value in (part if isinstance(part, list) else [part])]
        if not all(math.isfinite(value) for value in numbers if isinstance(value, float)):
            raise UserError(
                f"row {example.get('id')}: the model's answer for {name!r} is not a finite number; try --precision "
                "fp32, or train again"
            )


def column_kind(task: Task) -> str:
    """Returns the `kind` argument of `columns_of` for a task."""
    if task.num_places:
        return task.kind
    if task.is_tagging:
        return "entities" if names_entities(task) else "tags"
    return "label"


def without_probabilities(value: Any) -> Any:
    """Returns a task's column without the probabilities of its items."""
    if isinstance(value, list):
        return [without_probabilities(item) for item in value]
    parts = value.items() if isinstance(value, dict) else ()
    return {key: without_probabilities(part) for key, part in parts if key != "probability"} if parts else value
