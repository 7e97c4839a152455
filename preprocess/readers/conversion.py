"""Flattens JSON objects before columns are identified, so that text, tokens and labels have their own keys."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.task.signs import LABEL_NAMES, alike
from preprocess.example import abbreviate
from preprocess.labels.spans import is_spans
from preprocess.readers.by_shape import Reading, find_reading
from preprocess.readers.columns import YES, are_joined_intents
from preprocess.readers.events import LISTS as EVENT_LISTS
from preprocess.readers.events import convert_events, find_events, without_events
from preprocess.readers.layouts import with_keys
from preprocess.readers.options import ReadOptions, split_names
from preprocess.readers.paths import MISSING, Convert, Values, at, is_at, key_of, task_of
from preprocess.readers.selection import JOINED, join_texts
from preprocess.readers.shapes import FROM, LISTS, TO

HEAD = 200  # number of leading objects whose keys are considered
BY_NAME = "text_column text_pair_column label_column group_column extra_columns keep_columns split_column".split()
Names = tuple[str, str]


@dataclass
class Conversion:
    """The steps that convert the objects of a file. Objects in standard form need no step."""

    path: str | Path
    options: ReadOptions  # updated by steps that rename keys
    known: Sequence[str] = ()  # keys known to be labels
    from_lists: Callable[[Any, str], Any] | None = None  # the first step, for rows that are lists
    steps: list[Convert] = field(default_factory=list)
    reading: Reading | None = None
    origins: dict[str, str] = field(default_factory=dict)  # {label: the key that it is read from, if another}

    @classmethod
    def of(
        cls, path: str | Path, head: Sequence[tuple[str, Any]], options: ReadOptions, known: Sequence[str]
    ) -> "Conversion":
        """Builds the Conversion from the first objects. head: (source, object) pairs."""
        conversion = cls(path, options, known)
        values = [values for _, values in head if values is not None]
        if values and all(isinstance(each, list) or is_numbered(each) for each in values):
            conversion.from_lists = conversion.list_step(values)
        pairs = [(where, conversion(values, where)) for where, values in head]
        pairs = [(where, values) for where, values in pairs if isinstance(values, dict)]
        for find in (
            (dotted_step, join_step, events_step, shape_step, empty_step, label_step, intents_step) if pairs else ()
        ):
            if step := find([values for _, values in pairs], conversion):
                conversion.steps.append(step)
                pairs = [(where, step(values, where)) for where, values in pairs]
        if conversion.reading:
            conversion.reading.counts.clear()
        return conversion

    def __call__(self, values: Any, where: str) -> Any:
        if self.from_lists and isinstance(values, dict | list):
            values = self.from_lists(values, where)
        for step in self.steps if isinstance(values, dict) else ():
            values = step(values, where)
        return values

    def list_step(self, rows: Sequence[Any]) -> Callable[[Any, str], Any]:
        """Returns the step that names the values of list rows: text and label for pairs, otherwise 0, 1, …."""
        lists = [values if isinstance(values, list) else cells_of(values) for values in rows]
        if any(isinstance(value, dict) for values in lists for value in values):
            return lambda values, where: with_keys(values)
        chosen = (self.options.text_column, self.options.label_column)
        by_option: dict[Names, Names] = {("0", "1"): ("text", "label"), ("1", "0"): ("label", "text")}
        names = by_option.get(chosen) or (None if any(chosen) else names_of_pairs(lists))
        if chosen in by_option:
            self.options = replace(self.options, text_column="", label_column="")
        return partial(with_names, names=names)


def is_numbered(values: Any) -> bool:
    """Returns True if an object is a converted list, with the keys 0, 1, … and optionally split."""
    return isinstance(values, dict) and "0" in values and all(key.isdecimal() or key == "split" for key in values)


def cells_of(values: Values) -> list[Any]:
    return [values[str(number)] for number in range(len(values) - ("split" in values))]


def with_names(values: Any, where: str, *, names: Names | None) -> Any:
    """Converts a list row to an object. names: the keys of a pair, or None to number the values."""
    values = with_keys(values)
    if not names or not isinstance(values, dict):
        return values
    if not {"0", "1"} <= values.keys() <= {"0", "1", "split"}:
        raise UserError(f"{where}: expected a pair of {' and '.join(names)}, as in the first rows")
    return {{"0": names[0], "1": names[1]}.get(key, key): value for key, value in values.items()}


def names_of_pairs(rows: Sequence[Sequence[Any]]) -> Names | None:
    """Returns ("text", "label") or the reverse: the text is longer and repeats less. Returns None if unclear."""
    if any(len(row) != 2 or not isinstance(row[0], str) or not isinstance(row[1], str | int) for row in rows):
        return None
    first, second = ({str(row[place]) for row in rows} for place in (0, 1))
    lengths = [sum(len(str(row[place])) for row in rows) for place in (0, 1)]
    if len(first) > len(second) and lengths[0] > lengths[1]:
        return "text", "label"
    if len(second) > len(first) and lengths[1] > lengths[0]:
        return "label", "text"
    return None


def dotted_step(rows: Sequence[Values], conversion: Conversion) -> Convert | None:
    """Copies values that options select by a path (--label_column labels.score) to the last key of the path."""
    keys = {key for values in rows[:HEAD] for key in values}
    paths: dict[str, str] = {}
    for option in BY_NAME:
        names = split_names(getattr(conversion.options, option))
        for path in names:
            if "." in path and path not in keys and any(is_at(values, path) for values in rows[:HEAD]):
                paths[task_of(path) if task_of(path) not in keys else path.replace(".", "_")] = path
        renamed = {path: key for key, path in paths.items()}
        if renamed.keys() & {*names}:
            changed: dict[str, Any] = {option: ",".join(renamed.get(name, name) for name in names)}
            conversion.options = replace(conversion.options, **changed)
    if not paths:
        return None

    def convert(values: Values, where: str) -> Values:
        copied = {key: at(values, path) for key, path in paths.items()}
        return values | {key: value for key, value in copied.items() if value is not MISSING}

    return convert


def join_step(rows: Sequence[Values], conversion: Conversion) -> Convert | None:
    """Joins the texts under the keys in --join_columns."""
    joined = split_names(conversion.options.join_columns)
    if not joined:
        return None
    known = dict.fromkeys(key for values in rows for key in values)
    if missing := [name for name in joined if name not in known]:
        raise UserError(f"{conversion.path}: no key {missing[0]!r} (--join_columns); the keys are: {abbreviate(known)}")
    text = JOINED.join(joined)
    conversion.options = replace(conversion.options, text_column=text, join_columns="")

    def convert(values: Values, where: str) -> Values:
        parts = [values.get(name) for name in joined]
        if invalid := [name for name, part in zip(joined, parts) if not isinstance(part, str | None)]:
            raise UserError(f"{where}: {invalid[0]!r} is not a text (--join_columns)")
        return {key: value for key, value in values.items() if key not in joined} | {text: join_texts(parts)}

    return convert


def events_step(rows: Sequence[Values], conversion: Conversion) -> Convert | None:
    """Converts events, unless the format already defines the labels. Other labels then need usual names. If the first
    objects have only empty lists: after an earlier file with events, an empty list means no events; otherwise a later
    object must not have any."""
    options = conversion.options
    if conversion.known or not options.labelled:
        return None
    found = find_events(rows, options)
    if found is None:
        lists = {key: [values.get(key) for values in rows[:HEAD]] for key in EVENT_LISTS * (not options.label_column)}
        empty = next((key for key, cells in lists.items() if [] in cells and not any(cells)), None)
        if empty is None:
            return None
        if not options.understood.events:
            return partial(without_events, key=empty)
        found = empty, options.understood.events
    key, name = found
    options.understood.events = name
    conversion.origins[name] = key
    conversion.known = [name, *(other for other in LABEL_NAMES if any(other in values for values in rows[:HEAD]))]
    options.understood.add(conversion.path, "events", labels=f"{name} ({key})")
    return partial(convert_events, key=key, name=name)


def shape_step(rows: Sequence[Values], conversion: Conversion) -> Convert | None:
    """Selects a shape of SHAPES, unless the format already defines the labels (Label Studio)."""
    reading = None if conversion.known else find_reading(conversion.path, rows, conversion.options)
    if reading is None:
        require_entities(rows[:HEAD], conversion)
        return None
    shape, first = reading.shape, rows[:HEAD]
    conversion.origins |= {task.name: key_of(task.path, first[0]) for task in reading.spans}
    if reading.relations:
        key = key_of(reading.relations.form.path, first[0])
        conversion.origins = dict.fromkeys(reading.relations.names, key) | conversion.origins
    used = {key_of(path, first[0]) for path in (shape.text, shape.tokens, *shape.labels) if path}
    used |= {task.name for task in reading.spans} | {task_of(task.path) for task in reading.spans}
    if reading.relations:  # lists of entities without types
        used |= {name for name in LABEL_NAMES if any(is_spans(values.get(name)) for values in first)}
    other_labels = [name for name in LABEL_NAMES if any(name in values for values in first) and name not in used]
    conversion.known = [*dict.fromkeys([*reading.tasks, *other_labels])] if conversion.options.labelled else ()
    conversion.reading = reading
    if reading.relations:
        conversion.options.understood.relations = reading.relations.names
    return reading


def require_entities(rows: Sequence[Values], conversion: Conversion) -> None:
    """Raises UserError if relations refer to the ids of entities, which the objects do not contain."""
    options, is_labelled = conversion.options, any(row.get(name) for row in rows for name in LABEL_NAMES)
    if conversion.known or is_labelled or options.label_column or not options.labelled:
        return
    for key in LISTS.split("|"):
        items = [item for row in rows if isinstance(row.get(key), list) for item in row[key]]
        if items and all(is_at(item, FROM) and is_at(item, TO) for item in items):
            problem = f"{key!r} refer to the ids of entities (such as {at(items[0], FROM)!r}), but no row has entities"
            raise UserError(f"{conversion.path}: {problem}; export them too, as a list under `entities`")


def empty_step(rows: Sequence[Values], conversion: Conversion) -> Convert | None:
    """Returns the step for files whose first objects have only empty lists of relations: after an earlier file with
    relations, an empty list means no relations; otherwise the lists are ignored, and a later object must not have
    any."""
    first, known = rows[:HEAD], conversion.known
    lists = {key: [values.get(key) for values in first] for key in LISTS.split("|") if key not in known}
    keys = [key for key, cells in lists.items() if [] in cells and not any(cells)]
    if not keys or not conversion.options.labelled:
        return None
    names, key = conversion.options.understood.relations, keys[0]
    if names:
        others = [name for name in LABEL_NAMES if any(name in values for values in first)]
        conversion.known = [*dict.fromkeys([*(known or others), *names])]

    def convert(values: Values, where: str) -> Values:
        if values.get(key) and not conversion.options.label_column:
            problem = f"has {key}, but the first rows have none, so they would not be read"
            raise UserError(f"{where}: {problem}; move rows with {key} to the start of the file")
        return dict.fromkeys(names, values.get(key)) | values

    return convert


def label_step(rows: Sequence[Values], conversion: Conversion) -> Convert | None:
    """Converts labels that are objects: {"key": value} with the same key in all rows, or {label: 0 or 1}. Raises
    UserError for other objects."""
    if not conversion.options.labelled:
        return None
    selected = split_names(conversion.options.label_column)
    keys: dict[str, list[str]] = {}
    for name in selected or conversion.known or alike(LABEL_NAMES, [key for values in rows[:HEAD] for key in values]):
        cells = [values[name] for values in rows if values.get(name) is not None]
        if cells and all(map(is_plain_object, cells)):
            keys[name] = keys_of_cells(conversion.path, name, cells)

    def convert(values: Values, where: str) -> Values:
        cells = {name: values[name] for name in keys if values.get(name) is not None}
        return values | {name: read_cell(cell, where, name, keys[name]) for name, cell in cells.items()}

    return convert if keys else None


def intents_step(rows: Sequence[Values], conversion: Conversion) -> Convert | None:
    """Splits intents such as `a#b`."""
    intents = [values.get("intent") for values in rows]
    if not conversion.options.labelled or not are_joined_intents(intents, conversion.options):
        return None

    def convert(values: Values, where: str) -> Values:
        intent = values.get("intent")
        return values | {"intent": intent.split("#")} if isinstance(intent, str) else values

    return convert


# ---- labels that are objects (also in table cells) -----------------------------------------------------------------


def is_plain_object(value: Any) -> bool:
    """Returns True if a value is a non-empty object without nested lists or objects."""
    return (
        isinstance(value, dict) and bool(value) and all(isinstance(v, str | int | float | None) for v in value.values())
    )


def keys_of_cells(path: str | Path, name: str, cells: Sequence[Values]) -> list[str]:
    """Returns the keys of labels that are objects with one key, or with values 0 and 1. Raises UserError otherwise."""
    keys = list(dict.fromkeys(key for cell in cells for key in cell))
    are_marks = {str(value).lower() for cell in cells for value in cell.values()} <= YES.keys()
    if all(cell.keys() == cells[0].keys() for cell in cells) and are_marks == (len(keys) > 1):
        return keys
    problem = f"{name!r} has several values ({', '.join(keys[:8])})"
    raise UserError(f"{path}: {problem}; select one with --label_column {name}.{keys[0]}")


def read_cell(cell: Any, where: str, name: str, keys: list[str]) -> Any:
    """Returns the label in an object: the value of its only key, or the names of the keys with 1."""
    if not isinstance(cell, dict) or {*cell} != {*keys}:
        raise UserError(f"{where}: the keys of {name!r} differ from the keys in the first rows ({', '.join(keys[:8])})")
    if len(keys) == 1:
        return cell[keys[0]]
    if not all(str(value).lower() in YES for value in cell.values()):
        raise UserError(f"{where}: {name!r} has a value other than 0 and 1, unlike the first rows")
    return [key for key in keys if YES[str(cell[key]).lower()]]
