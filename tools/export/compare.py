"""Compares the predictions of an export with the checkpoint's predictions in torch."""

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
NUM_TEXTS = 128  # number of texts that calibrate static quantisation
TOLERANCE = 1e-4  # for probabilities, and for standardised regression values


def load_predictor(folder: Path) -> Predictor:
    """Creates a Predictor for an exported folder, with the code of this repository instead of the folder's copy."""
    from tools.export.predictor import Predictor  # imported lazily, as onnxruntime may be missing

    seal(folder)  # the predictor rejects files that are not in its manifest
    return Predictor(folder)


def predict(predictor: Predictor, data: MyDataset) -> list[dict[str, list]]:
    """Labels a MyDataset with a Predictor. Returns [{task: labels}, {task: probabilities}]."""
    rows = [data[i] for i in range(len(data))]
    predictions = predictor.answers(predictor.encode(rows))
    return [{name: [row[name][position] for row in predictions] for name in data.tasks} for position in (0, 1)]


def inputs_of(predictor: Predictor, data: MyDataset) -> list[dict[str, np.ndarray]]:
    """Returns graph inputs of about NUM_TEXTS texts, evenly spaced in train, or in `data` if there is no train split.

    Each text is a batch of its own, because activations of padding would distort the calibration.
    """
    from preprocess.schema import read_processed

    train = Path(data.origin).with_name("train.jsonl")
    path = train if train.exists() else Path(data.origin)
    with open(path, "rb") as file:
        step = sum(1 for _ in file) // NUM_TEXTS + 1
    encoded = predictor.encode(example for _, example in islice(read_processed(path, data.tasks), 0, None, step))
    batches = (predictor.encode.batch([feature], encoded) for row in encoded for feature in row.features)
    return [{name: inputs[name] for name in predictor.inputs} for inputs in batches]


def num_different(predictor: Predictor, expected: Predictions, actual: list[dict[str, list]]) -> int:
    """Counts examples with different predictions. expected: Predictions of the checkpoint; actual: from `predict`"""
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
    """Returns whether probabilities agree. A missing probability agrees with every value."""
    if actual is None or expected is None:
        return True
    pairs = zip(expected, actual) if isinstance(actual, list) else [(expected, actual)]
    return all(abs(a - b) <= TOLERANCE for a, b in pairs)


def require_same(predictor: Predictor, expected: Predictions, actual: list[dict[str, list]]) -> None:
    """Raises UserError if an fp32 Predictor predicts more than 1 % of the examples differently from the checkpoint."""
    number = len(next(iter(expected.labels.values())))
    wrong = num_different(predictor, expected, actual)
    same = f"{number - wrong} of {number} dev examples have the same predictions as in torch"
    logger.info(f"{same} (probabilities within {TOLERANCE})")
    if wrong > 0.01 * number:
        raise UserError(
            f"{wrong} of {number} dev examples have different predictions than in torch; tools.export does not support "
            "a custom head or encoder of this model; nothing was written"
        )
