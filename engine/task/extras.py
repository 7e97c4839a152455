"""Numeric columns that a model reads in addition to its texts (--extra_columns of data_process.py).

Examples have them as "extras": {name: number or None}. labels.json has the mean and standard deviation of each column
of train, as "extras" of every task. Batches have them standardised, as `extras` (B, N).
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from engine.errors import UserError
from engine.task.task import Task

MAX_NUMBER = 1e30  # single precision overflows at 3e38


def extras_of(tasks: dict[str, Task]) -> dict[str, dict[str, float]]:
    """Returns {column: {"mean", "std"}} for the columns that a model of these tasks reads, in order."""
    return next((task.extras for task in tasks.values() if task.extras), {})


def pairs_of(tasks: dict[str, Task]) -> bool:
    """Whether a model of these tasks reads a second text."""
    return any(task.pairs for task in tasks.values())


def to_number(value: Any, name: str, where: str) -> float | None:
    """Converts a cell to a float, or None if it is empty. Raises UserError if it is not a number."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer with hundreds of digits
        number = math.inf
    except (TypeError, ValueError):
        advice = "one-hot encode words first (pandas.get_dummies)"
        raise UserError(f"{where}: {name} is {value!r}, but --extra_columns must be numbers; {advice}") from None
    if math.isinf(number) and not isinstance(value, int):
        raise UserError(f"{where}: {name} is {value!r}, which is not finite")
    if abs(number) > MAX_NUMBER:
        raise UserError(f"{where}: {name} is {str(value)[:60]}, but must be at most {MAX_NUMBER:g} in absolute value")
    return None if math.isnan(number) else number


def column_statistics(name: str, values: np.ndarray) -> dict[str, float]:
    """Returns {"mean", "std"} of a column's values in train. Raises UserError if the column is constant."""
    if not len(values) or values.std() == 0:
        problem = f"is always {values[0]:g}" if len(values) else "is empty"
        raise UserError(f"--extra_columns: {name!r} {problem} in train; leave it out")
    return {"mean": float(values.mean()), "std": float(values.std())}


def standardize(values: Sequence[float | None], mean: float, std: float) -> np.ndarray:
    """Standardises a column -> (rows,). Missing values (None) become 0, the mean."""
    return np.array([0.0 if value is None else (value - mean) / std for value in values], np.float32)


def require_extras(example: dict[str, Any], extras: Iterable[str], where: str) -> None:
    """Converts the extras that a model reads to numbers, in place. Raises UserError if a column is missing."""
    given = example.get("extras") or {}
    if missing := [name for name in extras if name not in given]:
        columns = f"its columns are: {', '.join(given)}" if given else "it has no columns besides the text"
        raise UserError(f"{where}: no column {missing[0]!r}, which this model needs; {columns}")
    example["extras"] = {name: to_number(given[name], name, where) for name in extras}
