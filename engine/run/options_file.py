"""Reads the file of --config: a flat JSON or YAML mapping from options to values, or the args.json of a run."""

import json
from collections.abc import Collection
from typing import Any

from engine.errors import UserError
from engine.run.field_flags import SWITCHES, unknown_flag

LARGEST = 2**20  # bytes; an options file has a few kilobytes
Pair = tuple[str, str | None]  # key, value as typed on the command line, or None for the default


def file_words(path: str, known: dict[str, str], left_out: Collection[str]) -> list[str]:
    """Converts the options in a file to command-line arguments, which are then parsed and checked like flags.

    known: {name of a flag: its option}. left_out: options to ignore in a run's args.json.
    Raises UserError if the file is not a flat mapping, has unknown keys, or sets an option twice.
    """
    pairs, is_run = read_pairs(path)
    keys: dict[str, str] = {}  # {option or switch: key in the file}
    words = []
    for key, value in pairs:
        name = key.removeprefix("--").replace("-", "_")
        if is_run and name == "version":
            continue
        if name not in known:
            raise UserError(unknown_flag(name, known, ""))
        is_switch = name in SWITCHES.get(known[name], ({}, ""))[0]
        other = keys.setdefault(name if is_switch else known[name], key)
        if other != key or [each for each, _ in pairs].count(key) > 1:
            raise UserError(f"{key} is set twice" + (f", also as {other}" if other != key else ""))
        if value is not None and not (is_run and known[name] in left_out):
            words.append(f"--{name}={value}")
    return words


def read_pairs(path: str) -> tuple[list[Pair], bool]:
    """Returns (key-value pairs of a file, whether it is the args.json of a run)."""
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise UserError("larger than 1 MB, so it cannot be an options file")
        text = data.decode("utf-8-sig")
        is_json = text.lstrip().startswith("{")
        pairs = json_pairs(text) if is_json else yaml_pairs(text)
    except OSError as error:
        raise UserError(f"{(error.strerror or str(error)).lower()}; it must be a JSON or YAML file") from None
    except UnicodeDecodeError:
        raise UserError("not a text file in UTF-8") from None
    except RecursionError:
        raise UserError("nested too deeply; write one value per option") from None
    if not pairs:
        raise UserError("contains no options; write rows such as `batch_size: 32`")
    return pairs, is_json and "version" in dict(pairs)


def json_pairs(text: str) -> list[Pair]:
    """Reads the pairs of a JSON object. Numbers are not converted, so they keep all their digits."""
    as_typed: Any = str
    numbers = dict(parse_int=as_typed, parse_float=as_typed, parse_constant=as_typed)
    try:
        found = json.loads(text, object_pairs_hook=tuple, **numbers)
    except json.JSONDecodeError as error:
        raise UserError(f"not valid JSON: {error.msg} in row {error.lineno}") from None
    for key, value in found:
        if isinstance(value, list | tuple):
            raise UserError(f"{key} must be one value, not a list and not a mapping")
    return [(key, None if value is None else str(value)) for key, value in found]


def yaml_pairs(text: str) -> list[Pair]:
    """Reads the pairs of a YAML mapping. Values are taken literally: 0666 is not octal, 2024-01-01 is not a date."""
    import yaml  # a dependency of transformers; imported here because it is needed only with --config

    try:
        root = yaml.compose(text, yaml.BaseLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in row {mark.line + 1}" if mark else ""
        raise UserError(f"not valid YAML: {getattr(error, 'problem', None) or 'control characters'}{where}") from None
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise UserError("not a mapping; write rows such as `batch_size: 32`")
    pairs: list[Pair] = []
    for key, value in root.value if root else ():
        if not (isinstance(key, yaml.ScalarNode) and isinstance(value, yaml.ScalarNode)):
            raise UserError(f"{str(key.value)[:80]} must be one value, not a list and not a mapping")
        is_null = value.style is None and value.value in ("", "~", "null", "Null", "NULL")
        pairs.append((key.value, None if is_null else value.value))
    return pairs
