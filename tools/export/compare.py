"""Compares the answers of an export with those of the checkpoint in torch."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import UserError
from engine.run.files import seal

if TYPE_CHECKING:
    from data_loader import MyDataset
    from engine.predict.collector import Predictions
    from tools.export.predictor import Predictor

logger = logging.getLogger("template")
NUM_TEXTS = 128  # whose activations give the scales of static quantisation
TOLERANCE = 1e-4  # for probabilities, and for standardised regression values


def load_predictor(folder: Path) -> Predictor:
    """Creates a Predictor for an exported folder, from this repository's predictor.py, not the folder's copy."""
    from tools.export.predictor import Predictor  # imported lazily, as onnxruntime may be missing

    seal(folder)  # the predictor rejects files that are not in its manifest
    return Predictor(folder)


def answers_of(predictor: Predictor, data: MyDataset) -> list[dict[str, list]]:
    """Labels a MyDataset with a Predictor -> [{task: labels}, {task: probabilities}]."""
    rows = [data[i] for i in range(len(data))]
    answers = predictor.answers(predictor.encode(rows))
    return [{name: [answer[name][part] for answer in answers] for name in data.tasks} for part in (0, 1)]


def inputs_of(predictor: Predictor, data: MyDataset) -> list[dict[str, np.ndarray]]:
    """Returns the inputs of the graph for about NUM_TEXTS training texts, evenly spaced, or for those of `data` if
    there are none; of each text alone, as padding would add numbers that no text has."""
    from preprocess.schema import read_processed

    train = Path(data.origin).with_name("train.jsonl")
    path = train if train.exists() else Path(data.origin)
    with open(path, "rb") as file:
        step = sum(1 for _ in file) // NUM_TEXTS + 1
    encoded = predictor.encode(example for _, example in islice(read_processed(path, data.tasks), 0, None, step))
    batches = (predictor.batch([feature], encoded) for row in encoded for feature in row.features)
    return [{name: inputs[name] for name in predictor.inputs} for inputs in batches]


def num_different(predictor: Predictor, expected: Predictions, actual: list[dict[str, list]]) -> int:
    """Counts examples with different answers. expected: Predictions of the checkpoint; actual: from `answers_of`"""
    labels, probabilities = actual
    different = set()
    for name, task in predictor.tasks.items():
        for i, pair in enumerate(zip(expected.labels[name], labels[name])):
            if task["head"] == "regression":
                is_same = abs(pair[0] - pair[1]) <= TOLERANCE * task["std"]
            else:
                is_same = pair[0] == pair[1] and is_close(expected.probabilities[name][i], probabilities[name][i])
            if not is_same:
                different.add(i)
    return len(different)


def is_close(expected: Any, actual: Any) -> bool:
    """Whether probabilities agree; a missing one agrees with every value."""
    if actual is None or expected is None:
        return True
    pairs = zip(expected, actual) if isinstance(actual, list) else [(expected, actual)]
    return all(abs(a - b) <= TOLERANCE for a, b in pairs)


def require_same(predictor: Predictor, expected: Predictions, actual: list[dict[str, list]]) -> None:
    """Raises UserError if more than 1 % of the answers of an fp32 Predictor differ from those of the checkpoint."""
    number = len(next(iter(expected.labels.values())))
    wrong = num_different(predictor, expected, actual)
    same = f"{number - wrong} of {number} dev examples have the same answers as in torch"
    logger.info(f"{same}, probabilities within {TOLERANCE}")
    if wrong > 0.01 * number:
        raise UserError(
            f"{wrong} of {number} dev examples have answers that differ from torch; a custom head or encoder is "
            "not supported by tools/export; nothing was written"
        )
