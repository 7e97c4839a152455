"""Schemas for validating JSON files.

    TASK = {"type": str, "labels": [str], Optional("unit"): AnyOf("word", "character")}
    tasks = read_json(folder / "labels.json", {str: TASK})

A shape is one of: a type (`float` also accepts integers, `int` rejects booleans; numbers must be finite), None, a
literal string or boolean, `[shape]` for a list, `(shape, shape)` for a list of two items, `{str: shape}` for an object
with arbitrary keys, `{"name": shape, Optional("name"): shape}` for an object with these keys (others are ignored),
`AnyOf(shape, …)`, `Range(low, high)` for a number in this range, `Number` for a number that may be infinite or NaN, or
`object` for any value.

Uses only the standard library, because every exported folder has a copy of this file.
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

MAX_SHOWN = 60  # maximum number of characters of an invalid value in a message


class SchemaError(ValueError):
    """Raised if a file does not match its schema. The one-line message says where and why."""


class Optional(str):
    """The name of an optional key."""


class AnyOf(tuple):
    """Alternative shapes; a value must match one of them."""

    def __new__(cls, *shapes: Any) -> "AnyOf":
        return super().__new__(cls, shapes)


class Range(NamedTuple):
    """A number from `low` to `high`, inclusive; an integer if `low` is an int."""

    low: float
    high: float = math.inf


class Number:
    """Any number, including NaN and infinity, such as a score or a loss."""


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict:
    """Converts the pairs of a JSON object to a dict. Raises ValueError for duplicate keys, which json accepts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} appears twice")
    return found


# Parses a text like json.loads, but rejects duplicate keys
parse_json = json.JSONDecoder(object_pairs_hook=without_duplicates).decode


def read_json(path: str | Path, shape: Any = object) -> Any:
    """Reads a JSON file. Raises SchemaError if it cannot be read or does not have this shape."""
    if not os.path.isfile(path):  # a pipe would block, and /dev/zero has no end
        raise SchemaError(f"{path}: no such file")
    try:
        value = parse_json(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, RecursionError, ValueError) as error:
        raise SchemaError(f"{path}: cannot be read as JSON ({type(error).__name__})") from None
    if wrong := mismatch(value, shape):
        raise SchemaError(f"{path}: {wrong}")
    return value


def read_json_lines(path: str | Path, shape: Any = object) -> Iterator[Any]:
    """Yields the values of a .jsonl file, one per line. Raises SchemaError if a line does not have this shape."""
    number = 0
    if not os.path.isfile(path):
        raise SchemaError(f"{path}: no such file")
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                value = parse_json(line)
                if wrong := mismatch(value, shape):
                    raise SchemaError(f"{path}, row {number}: {wrong}")
                yield value
    except SchemaError:
        raise
    except (OSError, RecursionError, ValueError) as error:
        raise SchemaError(f"{path}, row {number}: cannot be read as JSON ({type(error).__name__})") from None


def mismatch(value: Any, shape: Any, where: str = "") -> str:
    """Returns a description of the first mismatch between a value and a shape; "" if they match."""
    if isinstance(shape, AnyOf):
        found = [mismatch(value, option, where) for option in shape]
        return "" if "" in found else mismatch_message(value, shape, where)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return mismatch_message(value, shape, where)
        if shape[0] is str and set(map(type, value)) <= {str}:  # fast path for the most frequent shape
            return ""
        items = ((item, shape[0], f"{where}[{number}]") for number, item in enumerate(value))
        return next((text for item in items if (text := mismatch(*item))), "")
    if isinstance(shape, dict):
        return mismatch_in_object(value, shape, where)
    if type(shape) is tuple:
        if not isinstance(value, list) or len(value) != len(shape):
            return mismatch_message(value, shape, where)
        items = ((item, kind, f"{where}[{number}]") for number, (item, kind) in enumerate(zip(value, shape)))
        return next((text for item in items if (text := mismatch(*item))), "")
    return "" if fits(value, shape) else mismatch_message(value, shape, where)


def mismatch_in_object(value: Any, shape: dict, where: str) -> str:
    if not isinstance(value, dict):
        return mismatch_message(value, shape, where)
    before = f"{where}." if where else ""
    if str in shape:
        items = [(item, shape[str], before + key) for key, item in value.items()]
    else:
        if absent := [key for key in shape if key not in value and not isinstance(key, Optional)]:
            return f"{before}{absent[0]} is missing"
        items = [(value[key], item_shape, before + key) for key, item_shape in shape.items() if key in value]
    return next((text for item in items if (text := mismatch(*item))), "")


def fits(value: Any, shape: Any) -> bool:
    """Returns whether a value matches a shape that is neither a list nor an object."""
    if shape is object:
        return True
    if isinstance(value, bool) or shape is bool:
        return value is shape or (shape is bool and isinstance(value, bool))
    if isinstance(shape, Range):
        return fits(value, type(shape.low)) and shape.low <= value <= shape.high
    if shape is int:
        return isinstance(value, int) and abs(value) < 2**63
    if shape is Number:
        return isinstance(value, float) or (isinstance(value, int) and abs(value) < 1e308)
    if shape is float:
        # `float(10**400)` and comparisons in numpy would raise
        return isinstance(value, int | float) and abs(value) < 1e308 and math.isfinite(value)
    return isinstance(value, shape) if isinstance(shape, type) else type(value) is type(shape) and value == shape


def like(value: Any) -> Any:
    """Infers the shape of a value: the same keys and list lengths, any number for a number (finite for a finite one),
    and any value for null."""
    if isinstance(value, dict):
        return {Optional(key): like(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(like, value))
    if value is None or isinstance(value, bool):
        return object if value is None else bool
    if isinstance(value, str):
        return str
    return Number if isinstance(value, float) and not math.isfinite(value) else float


def mismatch_message(value: Any, shape: Any, where: str) -> str:
    try:
        shown = json.dumps(value, ensure_ascii=False)
    except RecursionError:  # writing needs a slightly deeper stack than reading
        shown = "nested too deeply"
    shown = shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}…"
    return f"{where or 'it'} is {shown}, but must be {describe(shape)}"


def describe(shape: Any) -> str:
    """Returns a shape in words."""
    names: dict[Any, str] = {
        str: "a string",
        int: "a whole number",
        float: "a finite number",
        bool: "true or false",
        None: "null",
    }
    names |= {Number: "a number", object: "anything"}
    if isinstance(shape, AnyOf):
        return " or ".join(describe(option) for option in shape)
    if isinstance(shape, list):
        return f"a list, each item {describe(shape[0])}"
    if type(shape) is tuple:
        return f"a list of {len(shape)} items"
    if isinstance(shape, dict):
        return "an object"
    if isinstance(shape, Range):
        most = f" to {shape.high:g}" if math.isfinite(shape.high) else " or more"
        return f"a number of {shape.low:g}{most}"
    return names.get(shape) or json.dumps(shape, ensure_ascii=False)
