"""Numeric columns that a model reads in addition to its texts (--extra_columns of data_process.py).

An example holds them as "extras": {name: number or None}; labels.json holds each column's mean and standard deviation
in train, as "extras" of every task; a batch has them as `extras` (B, N), in standard deviations from the mean.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from engine.errors import UserError
from engine.task.task import Task

MAX_NUMBER = 1e30  # single precision overflows at 3e38


def extras_of(tasks: dict[str, Task]) -> dict[str, dict[str, float]]:
    """{column: {"mean", "std"}} of the columns that a model of these tasks reads, in order."""
    return next((task.extras for task in tasks.values() if task.extras), {})


def pairs_of(tasks: dict[str, Task]) -> bool:
    """Whether a model of these tasks reads a second text."""
    return any(task.pairs for task in tasks.values())


def to_number(value: Any, name: str, where: str) -> float | None:
    """A cell as a float; None if it is empty. Raises UserError if it is not a number."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer with hundreds of digits
        number = math.inf
    except (TypeError, ValueError):
        advice = "one-hot encode words first (pandas.get_dummies)"
        raise UserError(f"{where}: {name} is {value!r}, but --extra_columns takes numbers; {advice}") from None
    if math.isinf(number) and not isinstance(value, int):
        raise UserError(f"{where}: {name} is {value!r}, which is not finite")
    if abs(number) > MAX_NUMBER:
        raise UserError(f"{where}: {name} is {str(value)[:60]}, but it must be a number up to {MAX_NUMBER:g}")
    return None if math.isnan(number) else number


def column_statistics(name: str, values: np.ndarray) -> dict[str, float]:
    """{"mean", "std"} of a column's values in train. Raises UserError for a column that never varies."""
    if not len(values) or values.std() == 0:
        what = f"has the single value {values[0]:g}" if len(values) else "is empty"
        raise UserError(f"--extra_columns: {name!r} {what} in train: there is nothing to learn from it")
    return {"mean": float(values.mean()), "std": float(values.std())}


def standardize(values: Sequence[float | None], mean: float, std: float) -> np.ndarray:
    """Values, None where missing -> (rows,) in standard deviations from the mean; 0 where missing."""
    return np.array([0.0 if value is None else (value - mean) / std for value in values], np.float32)


def require_extras(example: dict[str, Any], extras: Iterable[str], where: str) -> None:
    """Converts an example's extras to the numbers that a model reads. Raises UserError if a column is missing."""
    given = example.get("extras") or {}
    if missing := [name for name in extras if name not in given]:
        there = f"its columns are: {', '.join(given)}" if given else "it has no columns besides the text"
        raise UserError(f"{where}: no column {missing[0]!r}, which this model needs; {there}")
    example["extras"] = {name: to_number(given[name], name, where) for name in extras}
