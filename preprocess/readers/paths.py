"""Paths into JSON values: keys and positions in lists, joined by dots; `a|b` is a, or b if a is absent."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

MISSING = object()
Values = dict[str, Any]  # a JSON object
Convert = Callable[[Values, str], Values]  # (object, its position for messages) -> the converted object


@lru_cache(maxsize=1024)
def steps_of(path: str) -> list[list[str]]:
    return [alternative.split(".") for alternative in path.split("|")]


def at(value: Any, path: str) -> Any:
    """The value at a path, or MISSING."""
    for steps in steps_of(path):
        found = value
        for step in steps:
            if isinstance(found, dict) and step in found:
                found = found[step]
            elif isinstance(found, list) and step.isdecimal() and int(step) < len(found):
                found = found[int(step)]
            else:
                found = MISSING
                break
        if found is not MISSING:
            return found
    return MISSING


def is_at(value: Any, path: str) -> bool:
    return at(value, path) is not MISSING


def key_of(path: str, values: Values) -> str:
    """The first key of the first alternative that exists, otherwise of the first alternative."""
    return next((steps[0] for steps in steps_of(path) if is_at(values, ".".join(steps))), steps_of(path)[0][0])


def task_of(path: str) -> str:
    """The name of the task whose labels are at a path: its last key."""
    return path.rpartition(".")[2]
