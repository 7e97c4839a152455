"""Prepares examples for prediction, and writes predictions to files."""

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
    """Prepares examples for prediction on these tasks: splits texts into tokens if necessary, and checks custom inputs.

    tasks: if empty, because no model exists yet, all inputs are preserved. first: number of the first row, for error
    messages.
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
                raise UserError(f"{path}, row {number}: no column has a recognised name for texts; add --text_column")
            example["text"] = describe(example.get("extras") or {}, columns)
        if fields:
            require_fields(example, fields, f"{path}, text {number}")
        elif tasks:
            example.pop("extras", None)
        yield example


def check_pairs(example: dict[str, Any], tasks: dict[str, Task], path: str | Path) -> None:
    """Raises UserError if the tasks need pairs of texts, but the example has one text. Warns if a second text is
    ignored. path: the file of the example, for the message"""
    paired = pairs_of(tasks)
    if paired and "text_pair" not in example:
        raise UserError(
            f"this model was trained on pairs of texts, but {path} has one text per row; add --text_pair_column"
        )
    if "text_pair" in example and tasks and not paired:
        logger.warning(f"this model reads single texts; ignoring the second texts of {path}")


def prediction_row(
    example: dict[str, Any],
    predictions: dict[str, tuple[Any, Any]],
    tasks: dict[str, Task],
    is_right: Callable[[Task, Any, Any], bool | None] | None = None,
    abstain: Callable[[str, str, Any, Any], tuple[Any, Any]] | None = None,
) -> dict[str, Any]:
    """Returns the output row of an example. predictions: {task: (label or tags, probability)}

    Columns: id, text, text_pair (if there is one), and for each task the label and its probability; for tagging, the
    entities (with text and character offsets) and tags; for spans, the entities with one probability each.
    is_right(task, gold, predicted) -> bool or None: if given, a labelled example also has the columns <task>_gold (and
    <task>_gold_tags), <task>_right, and finally `right`, whether all predictions are correct.
    abstain: an Abstention, which omits uncertain predictions.
    """
    text, offsets = text_and_offsets(example, tasks)
    if is_wordless(example):
        predictions = predictions | {name: ([], []) for name in predictions if tasks[name].needs_words}
    require_finite(example, predictions)
    kinds = {name: column_kind(task) for name, task in tasks.items()}
    if abstain:
        predictions = {name: abstain(name, kinds[name], *pair) for name, pair in predictions.items()}
    row = row_of(example, {name: (kinds[name], *pair) for name, pair in predictions.items()}, text, offsets)
    if is_right is None or any(name not in example for name in predictions):
        return row
    verdicts = {
        name: None if label is None else is_right(tasks[name], example[name], label)
        for name, (label, _) in predictions.items()
    }
    gold: dict[str, Any] = {}
    for name, verdict in verdicts.items():
        gold |= columns_of(f"{name}_gold", kinds[name], example[name], offsets, text) | {f"{name}_right": verdict}
    known = [verdict for verdict in verdicts.values() if verdict is not None]
    gold["right"] = all(known) if known else None
    # a task may itself be named "right" or "<task>_gold"
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
        row = {name: (labels[name][i], probabilities[name][i]) for name in tasks}
        yield prediction_row(data[i], row, tasks, is_right, abstain)


def require_finite(example: dict[str, Any], predictions: dict[str, tuple[Any, Any]]) -> None:
    """Raises UserError if a prediction contains NaN or infinity. predictions: as in `prediction_row`"""
    for name, pair in predictions.items():
        numbers = [value for field in pair for value in (field if isinstance(field, list) else [field])]
        if not all(math.isfinite(value) for value in numbers if isinstance(value, float)):
            raise UserError(
                f"row {example.get('id')}: the prediction for {name!r} contains NaN or infinity; try --precision "
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
    if not isinstance(value, dict):
        return value
    return {key: without_probabilities(item) for key, item in value.items() if key != "probability"}
