"""Parses lists and objects in JSON notation, or as printed by Python or NumPy."""

import ast
import json
import re
from contextlib import suppress
from typing import Any

MAX_LITERAL = 2**20  # maximum length of a Python literal, which needs much more memory than JSON
STRING = r"(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")"
NUMPY = re.compile(rf"\[\s*(?:{STRING}(?:\s+{STRING})+|-?[\d.]+(?:\s+-?[\d.]+)+)\s*\]")  # printed without commas
TWO_STRINGS = re.compile(rf"(?:{STRING}|[^'\"])*?{STRING}\s*{STRING}")  # Python concatenates these


def literal(cell: str) -> list[Any] | dict[Any, Any] | None:
    """Parses a cell as a list or object. Returns None if it is neither."""
    cell = cell.strip()
    if match := re.fullmatch(r"(?s)array\((.*?)(?:,\s*dtype=[^)]*)?\)", cell):
        cell = match[1].strip()
    if cell[:1] == cell[-1:] == '"':  # double-encoded JSON
        with suppress(ValueError):
            cell = json.loads(cell).strip()
    if cell[:1] + cell[-1:] not in ("[]", "{}", "()"):
        return None
    with suppress(ValueError, RecursionError):
        return json.loads(cell)
    if NUMPY.fullmatch(cell):
        with suppress(ValueError, SyntaxError):
            return [ast.literal_eval(item) for item in re.findall(rf"{STRING}|[^\s\[\]]+", cell)]
    if len(cell) > MAX_LITERAL or TWO_STRINGS.match(cell):
        return None
    with suppress(ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return as_lists(ast.literal_eval(cell))
    return None


def as_lists(value: Any) -> Any:
    """Converts tuples and sets to lists, as in JSON. Raises ValueError for other containers."""
    if isinstance(value, set | frozenset):
        return sorted(map(as_lists, value))
    if isinstance(value, list | tuple):
        return list(map(as_lists, value))
    if isinstance(value, dict):
        return {str(key): as_lists(item) for key, item in value.items()}
    if isinstance(value, bytes | complex):
        raise ValueError("not a valid label value")
    return value
