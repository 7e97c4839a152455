"""The shape that a JSON file must have before anything in it is used.

    TASK = {"type": str, "labels": [str], Optional("unit"): AnyOf("word", "character")}
    tasks = read_json(folder / "labels.json", {str: TASK})

A shape is one of: a type (`float` also takes whole numbers, `int` no booleans; numbers must be finite), None, a value
that it must equal (a string or a boolean), `[shape]` for a list, `{str: shape}` for an object with any keys,
`{"name": shape, Optional("name"): shape}` for one with these keys (and others, which nobody reads), `AnyOf(shape, …)`,
`Range(low, high)` for a number between both, or `object` for anything.
Only the standard library is used, because every exported folder has a copy of this file.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

MOST_SHOWN = 60  # characters of a wrong value that a message shows


class SchemaError(ValueError):
    """What is wrong with a file, and where in it, in one line."""


class Optional(str):
    """The name of a key that may be missing."""


class AnyOf(tuple):
    """Several shapes, one of which must fit."""

    def __new__(cls, *shapes: Any) -> "AnyOf":
        return super().__new__(cls, shapes)


class Range(NamedTuple):
    """A number from `low` to `high`, both included; a whole one if `low` is an int."""

    low: float
    high: float = math.inf


def read_json(path: str | Path, shape: Any = object) -> Any:
    """The value in a JSON file, if it has this shape. SchemaError: it cannot be read, or has another one."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        value = json.loads(text)
    except FileNotFoundError:
        raise SchemaError(f"{path}: no such file") from None
    except (OSError, RecursionError, ValueError) as error:
        raise SchemaError(f"{path}: cannot be read as JSON ({type(error).__name__})") from None
    if wrong := mismatch(value, shape):
        raise SchemaError(f"{path}: {wrong}")
    return value


def mismatch(value: Any, shape: Any, where: str = "") -> str:
    """Where a value does not have a shape, and what it should be; empty if it has it."""
    if isinstance(shape, AnyOf):
        found = [mismatch(value, one, where) for one in shape]
        return "" if "" in found else wrong(value, shape, where)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return wrong(value, shape, where)
        items = ((one, shape[0], f"{where}[{number}]") for number, one in enumerate(value))
        return next((text for item in items if (text := mismatch(*item))), "")
    if isinstance(shape, dict):
        return mismatch_in_object(value, shape, where)
    return "" if fits(value, shape) else wrong(value, shape, where)


def mismatch_in_object(value: Any, shape: dict, where: str) -> str:
    if not isinstance(value, dict):
        return wrong(value, shape, where)
    before = f"{where}." if where else ""
    if str in shape:
        items = [(one, shape[str], before + key) for key, one in value.items()]
    else:
        if absent := [key for key in shape if key not in value and not isinstance(key, Optional)]:
            return f"{before}{absent[0]} is missing"
        items = [(value[key], one, before + key) for key, one in shape.items() if key in value]
    return next((text for item in items if (text := mismatch(*item))), "")


def fits(value: Any, shape: Any) -> bool:
    """Whether a single value has a shape that is neither a list nor an object."""
    if shape is object:
        return True
    if isinstance(value, bool) or shape is bool:
        return value is shape or (shape is bool and isinstance(value, bool))
    if isinstance(shape, Range):
        return fits(value, type(shape.low)) and shape.low <= value <= shape.high
    if shape is int:
        return isinstance(value, int)
    if shape is float:
        # `float(10**400)` raises, and so do comparisons that numpy makes of it later
        return isinstance(value, int | float) and abs(value) < 1e308 and math.isfinite(value)
    return isinstance(value, shape) if isinstance(shape, type) else type(value) is type(shape) and value == shape


def wrong(value: Any, shape: Any, where: str) -> str:
    try:
        shown = json.dumps(value, ensure_ascii=False)
    except RecursionError:  # writing takes a little more of the stack than reading did
        shown = "nested too deeply"
    shown = shown if len(shown) <= MOST_SHOWN else f"{shown[:MOST_SHOWN]}…"
    return f"{where or 'it'} is {shown}, but must be {describe(shape)}"


def describe(shape: Any) -> str:
    """A shape in words."""
    names = {str: "a string", int: "a whole number", float: "a finite number", bool: "true or false", None: "null"}
    if isinstance(shape, AnyOf):
        return " or ".join(describe(one) for one in shape)
    if isinstance(shape, list):
        return f"a list, each item {describe(shape[0])}"
    if isinstance(shape, dict):
        return "an object"
    if isinstance(shape, Range):
        most = f" to {shape.high:g}" if math.isfinite(shape.high) else " or more"
        return f"a number of {shape.low:g}{most}"
    return names.get(shape) or json.dumps(shape, ensure_ascii=False)
