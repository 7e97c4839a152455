"""Paths into JSON values: keys and list positions joined by dots. `a|b` is `a`, or `b` if `a` is absent."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

MISSING = object()
Values = dict[str, Any]  # a JSON object
Convert = Callable[[Values, str], Values]  # (object, source for messages) -> converted object


@lru_cache(maxsize=1024)
def steps_of(path: str) -> list[list[str]]:
    return [alternative.split(".") for alternative in path.split("|")]


def at(value: Any, path: str) -> Any:
    """Returns the value at a path, or MISSING."""
    for steps in steps_of(path):
        current = value
        for step in steps:
            if isinstance(current, dict) and step in current:
                current = current[step]
            elif isinstance(current, list) and step.isdecimal() and int(step) < len(current):
                current = current[int(step)]
            else:
                current = MISSING
                break
        if current is not MISSING:
            return current
    return MISSING


def is_at(value: Any, path: str) -> bool:
    return at(value, path) is not MISSING


def key_of(path: str, values: Values) -> str:
    """Returns the first key of the first alternative that exists, or else of the first alternative."""
    return next((steps[0] for steps in steps_of(path) if is_at(values, ".".join(steps))), steps_of(path)[0][0])


def task_of(path: str) -> str:
    """Returns the name of the task for the labels at a path: the last key."""
    return path.rpartition(".")[2]
