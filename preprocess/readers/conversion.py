"""Converts objects to those with text, tokens and labels under keys of their own, before their columns are found."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from engine.errors import UserError
from preprocess.example import abbreviate
from preprocess.readers.columns import LABEL_NAMES, YES, alike
from preprocess.readers.layouts import names_of_pairs, with_keys
from preprocess.readers.options import ReadOptions, split_names
from preprocess.readers.selection import JOINED, join_texts
from preprocess.readers.shapes import MISSING, Reading, Shape, at, find_reading, key_of, with_dotted

Values = dict[str, Any]
Step = Callable[[Any, str], Any]  # (values, where) -> values
BY_NAME = "text_column text_pair_column label_column group_column extra_columns keep_columns split_column".split()


@dataclass
class Conversion:
    """The steps that each object of a file goes through; none for objects that are as they should be.

    options: with the new names of keys that were paths; known: the keys that are certain to be labels
    """

    options: ReadOptions
    known: Sequence[str] = ()
    steps: list[Step] = field(default_factory=list)
    reading: Reading | None = None

    @classmethod
    def of(
        cls, path: str | Path, head: Sequence[tuple[str, Any]], options: ReadOptions, known: Sequence[str]
    ) -> "Conversion":
        """The Conversion that the first objects need. head: (where, object) of each"""
        found = cls(options, known)
        rows = [values for _, values in head if values is not None]
        places = [where for where, values in head if values is not None]
        for find in (
            list_step,
            dotted_step,
            partial(join_step, path),
            partial(shape_step, path),
            partial(label_step, path),
            intents_step,
        ):
            step = find(rows, found)
            if step is not None:
                found.steps.append(step)
                rows = [
                    step(values, where) if isinstance(values, dict | list) else values
                    for where, values in zip(places, rows)
                ]
        if found.reading:
            found.reading.counts.clear()
        return found

    def __call__(self, values: Any, where: str) -> Any:
        for step in self.steps if isinstance(values, dict | list) else ():
            values = step(values, where)
        return values

    @property
    def keeps_text(self) -> bool:
        """Whether objects with tokens may also have the text that these are from."""
        return self.reading is not None and bool(self.reading.shape.tokens)

    def report(self) -> None:
        if self.reading:
            self.reading.report()


def list_step(rows: Sequence[Any], found: Conversion) -> Step | None:
    """Gives keys to rows that are lists: [text, label] pairs, otherwise 0, 1, …."""
    places = [
        [values[str(number)] for number in range(len(values) - ("split" in values))] if is_numbered(values) else values
        for values in rows
        if isinstance(values, list) or is_numbered(values)
    ]
    if not places or len(places) < len(rows):
        return None
    if any(isinstance(value, dict) for values in places for value in values):
        return lambda values, where: with_keys(values)
    named = (found.options.text_column, found.options.label_column)
    names = ("text", "label") if named == ("0", "1") else ("label", "text") if named == ("1", "0") else None
    names = names or (None if any(named) else names_of_pairs(places))
    if names and any(named):
        found.options = replace(found.options, text_column="", label_column="")

    def convert(values: Any, where: str) -> Any:
        values = with_keys(values)
        if not names or not isinstance(values, dict):
            return values
        if not {"0", "1"} <= values.keys() <= {"0", "1", "split"}:
            raise UserError(f"{where}: not a pair of {' and '.join(names)}, as the first rows are")
        return {{"0": names[0], "1": names[1]}.get(key, key): value for key, value in values.items()}

    return convert


def is_numbered(values: Any) -> bool:
    """Whether an object was a list: its keys are 0, 1, …, and perhaps split."""
    return (
        isinstance(values, dict)
        and bool(values)
        and "0" in values
        and all(k.isdecimal() or k == "split" for k in values)
    )


def is_document(values: Any) -> bool:
    """Whether an object is a document of DyGIE: its sentences as lists of tokens, and the spans of each sentence."""
    if not isinstance(values, dict):
        return False
    sentences, spans = values.get("sentences"), values.get("ner")
    if not isinstance(sentences, list) or not isinstance(spans, list) or len(sentences) != len(spans):
        return False
    return all(isinstance(each, list) for each in (*sentences, *spans))


def sentences_of(objects: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Objects, with documents of DyGIE as one object per sentence, whose spans count its tokens."""
    for where, values in objects:
        if not is_document(values):
            yield where, values
            continue
        start = 0
        for number, (tokens, spans) in enumerate(zip(values["sentences"], values["ner"]), 1):
            place = f"{where}, sentence {number}"
            if any(not isinstance(s, list) or len(s) < 3 or {type(s[0]), type(s[1])} != {int} for s in spans):
                raise UserError(f"{place}: a span of 'ner' is not [first token, last token, label]")
            found = [[first - start, last - start, label] for first, last, label, *_ in spans]
            yield place, {"tokens": tokens, "ner": found}
            start += len(tokens)


def join_step(path: str | Path, rows: Sequence[Any], found: Conversion) -> Step | None:
    """Makes one text of the keys of --join_columns."""
    wanted = split_names(found.options.join_columns)
    if not wanted:
        return None
    known = dict.fromkeys(key for values in rows if isinstance(values, dict) for key in values)
    if absent := [name for name in wanted if name not in known]:
        raise UserError(f"{path}: no key {absent[0]!r} (--join_columns); its keys are: {abbreviate(known)}")
    text = JOINED.join(wanted)
    found.options = replace(found.options, text_column=text, join_columns="")

    def convert(values: Any, where: str) -> Any:
        if not isinstance(values, dict):
            return values
        parts = [values.get(name) for name in wanted]
        if odd := [name for name, part in zip(wanted, parts) if not isinstance(part, str | None)]:
            raise UserError(f"{where}: {odd[0]!r} is not a text (--join_columns)")
        return {key: value for key, value in values.items() if key not in wanted} | {text: join_texts(parts)}

    return convert


def dotted_step(rows: Sequence[Any], found: Conversion) -> Step | None:
    """Gives a key to what options name by a path, such as --label_column labels.score; it is the path's last one."""
    rows = [values for values in rows if isinstance(values, dict)]
    taken: set[str] = {key for values in rows[:200] for key in values}
    paths: dict[str, str] = {}
    for option in BY_NAME:
        names = split_names(getattr(found.options, option))
        for path in with_dotted(names, rows[:200]):
            last = path.rpartition(".")[2]
            paths[last if last not in taken else path.replace(".", "_")] = path
        renamed = {path: key for key, path in paths.items()}
        if renamed.keys() & {*names}:
            joined = ",".join(renamed.get(name, name) for name in names)
            changed: dict[str, Any] = {option: joined}
            found.options = replace(found.options, **changed)
    if not paths:
        return None

    def convert(values: Values, where: str) -> Values:
        more = {key: at(values, path) for key, path in paths.items()}
        return values | {key: value for key, value in more.items() if value is not MISSING}

    return convert


def shape_step(path: str | Path, rows: Sequence[Any], found: Conversion) -> Step | None:
    """Reads objects by a shape of SHAPES, unless the format says what the labels are (Label Studio)."""
    reading = None if found.known else find_reading(path, rows, found.options)
    if reading is None:
        return None
    first = rows[:200]
    used = {key_of(path, first[0]) for path in paths_of(reading.shape)} | {*reading.spans}
    others = [name for name in LABEL_NAMES if any(name in values for values in first) and name not in used]
    found.known = [*dict.fromkeys([*reading.tasks, *others])] if found.options.labelled else ()
    found.reading = reading
    return reading


def paths_of(shape: Shape) -> list[str]:
    paths = [shape.text, shape.tokens, shape.chunks, *shape.labels]
    return [path for path in paths if path]


def label_step(path: str | Path, rows: Sequence[Any], found: Conversion) -> Step | None:
    """Reads labels that are objects of plain values: {"key": value} with one key in all rows, and names with 0 and 1.
    Raises UserError for others, and names the keys."""
    rows = [values for values in rows if isinstance(values, dict)]
    if not found.options.labelled or not rows:
        return None
    wanted = split_names(found.options.label_column)
    steps: list[Step] = []
    for name in wanted or found.known or alike(LABEL_NAMES, {key: 0 for values in rows[:200] for key in values}):
        cells = [values[name] for values in rows if values.get(name) is not None]
        if not cells or not all(isinstance(cell, dict) and cell and are_plain(cell.values()) for cell in cells):
            continue
        steps.append(partial(read_cell, name=name, keys=keys_of_cells(path, name, cells)))
    if not steps:
        return None

    def convert(values: Values, where: str) -> Values:
        for step in steps:
            values = step(values, where)
        return values

    return convert


def intents_step(rows: Sequence[Any], found: Conversion) -> Step | None:
    """Reads intents such as `a#b` (MixATIS) as two, if the parts of each also occur elsewhere."""
    if not found.options.labelled or "intent" in found.options.label_types:
        return None
    intents = [values.get("intent") for values in rows if isinstance(values, dict)]
    if not all(isinstance(intent, str) for intent in intents) or not any("#" in str(intent) for intent in intents):
        return None
    parts = Counter(part for intent in intents for part in str(intent).split("#"))
    if any(
        not part or (parts[part] < 2 and "#" in str(intent)) for intent in intents for part in str(intent).split("#")
    ):
        return None

    def convert(values: Values, where: str) -> Values:
        intent = values.get("intent")
        return values | {"intent": intent.split("#")} if isinstance(intent, str) else values

    return convert


def are_plain(values: Any) -> bool:
    return all(value is None or isinstance(value, str | int | float) for value in values)


def keys_of_cells(path: str | Path, name: str, cells: Sequence[Values]) -> list[str]:
    """The keys of labels that are objects: one, or those of marks 0 and 1. Raises UserError for others."""
    keys = list(dict.fromkeys(key for cell in cells for key in cell))
    alone = len(keys) == 1
    marks = {str(value).lower() for cell in cells for value in cell.values()} <= YES.keys()
    same = all(cell.keys() == cells[0].keys() for cell in cells)
    if same and ((alone and not marks) or (marks and not alone)):
        return keys
    several = f"{name!r} holds several values ({', '.join(keys[:8])})"
    raise UserError(f"{path}: {several}; choose with --label_column {name}.{keys[0]}")


def read_cell(values: Values, where: str, *, name: str, keys: list[str]) -> Values:
    """An object whose label under a key is read: the value of its only key, or the names of its keys with 1."""
    cell = values.get(name)
    if cell is None:
        return values
    if not isinstance(cell, dict) or ([*cell] != keys and {*cell} != {*keys}):
        raise UserError(f"{where}: {name!r} has not the keys {', '.join(keys[:8])}, as in the first rows")
    if len(keys) == 1:
        return values | {name: cell[keys[0]]}
    if not all(str(value).lower() in YES for value in cell.values()):
        raise UserError(f"{where}: {name!r} has a value that is neither 0 nor 1, as in the first rows")
    return values | {name: [key for key in keys if YES[str(cell[key]).lower()]]}
