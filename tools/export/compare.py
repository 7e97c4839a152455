"""Compares the answers of an exported folder with those of the checkpoint in torch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import UserError
from engine.run.files import seal

if TYPE_CHECKING:
    from data_loader import MyDataset
    from engine.predict.predictions import Predictions
    from tools.export.predictor import Predictor

logger = logging.getLogger("template")
TOLERANCE = 1e-4  # for probabilities, and for regression values in standard deviations


def load_predictor(folder: Path) -> Predictor:
    """A Predictor for an exported folder, from this repository's predictor.py rather than the folder's copy."""
    from tools.export.predictor import Predictor  # imported lazily: onnxruntime may be missing

    seal(folder)  # the predictor refuses files that are not in its manifest
    return Predictor(folder)


def answers_of(predictor: Predictor, data: MyDataset) -> list[dict[str, list]]:
    """[{task: labels}, {task: probabilities}] of a Predictor."""
    rows = [data[i] for i in range(len(data))]
    answers = predictor.answers(predictor.encode(rows))
    return [{name: [answer[name][part] for answer in answers] for name in data.tasks} for part in (0, 1)]


def num_different(predictor: Predictor, theirs: Predictions, ours: list[dict[str, list]]) -> int:
    """Number of examples whose answers differ. theirs: Predictions of the checkpoint; ours: from `answers_of`"""
    labels, probabilities = ours
    different = set()
    for name, task in predictor.tasks.items():
        for i, pair in enumerate(zip(theirs.labels[name], labels[name])):
            if task["head"] == "regression":
                alike = abs(pair[0] - pair[1]) <= TOLERANCE * task["std"]
            else:
                alike = pair[0] == pair[1] and is_close(theirs.probabilities[name][i], probabilities[name][i])
            if not alike:
                different.add(i)
    return len(different)


def is_close(theirs: Any, ours: Any) -> bool:
    """Whether probabilities agree. None, which a Predictor returns for tags, agrees with anything."""
    if ours is None or theirs is None:
        return True
    pairs = zip(theirs, ours) if isinstance(ours, list) else [(theirs, ours)]
    return all(abs(a - b) <= TOLERANCE for a, b in pairs)


def require_same(predictor: Predictor, theirs: Predictions, ours: list[dict[str, list]]) -> None:
    """Raises UserError if more than 1 % of the answers of an fp32 Predictor differ from the checkpoint's."""
    number = len(next(iter(theirs.labels.values())))
    wrong = num_different(predictor, theirs, ours)
    logger.info(f"{number - wrong} of {number} dev examples are answered as in torch, probabilities within {TOLERANCE}")
    if wrong > 0.01 * number:
        raise UserError(
            f"{wrong} of {number} dev examples are answered differently than in torch: a custom head or encoder does "
            "something that tools/export does not support; nothing was written"
        )
