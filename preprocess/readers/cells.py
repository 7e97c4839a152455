"""Parses table cells that contain serialised lists or objects, or one tag per word."""

from collections.abc import Callable, Sequence
from typing import Any

from engine.errors import UserError
from engine.task.signs import LABEL_NAMES, alike
from engine.task.tags import USUAL
from preprocess.example import shown
from preprocess.labels.kinds import NO_LABEL
from preprocess.labels.literals import literal
from preprocess.readers.archives import note
from preprocess.readers.columns import Columns, Head
from preprocess.readers.conversion import is_plain_object, keys_of_cells, read_cell
from preprocess.readers.options import ReadOptions, split_names
from preprocess.readers.raw_files import split_words

Read = Callable[[str], Any]
KEPT_AS_TEXT = ("classification", "regression")  # label types whose labels are never lists


def tags_in(cell: str) -> list[str] | None:
    """Returns the tags in a cell with one tag per word ("O O B-LOC"), or None."""
    tags = split_words(cell)
    return tags if tags and all(map(USUAL.parse, tags)) else None


def is_empty(cell: str) -> bool:
    return cell.strip().lower() in NO_LABEL


class Cells:
    """Parses text and label cells. The first rows determine the parser of each column."""

    def __init__(self, head: Head, columns: Columns, options: ReadOptions) -> None:
        self.path, self.options, self.text = head.path, options, columns.text or ""
        self.readers: dict[str, Read] = {}  # {column: parser of its cells}
        self.tasks: dict[str, str] = {}  # {parsed label column: its task}
        self.keys: dict[str, list[str]] = {}  # {column: keys of its objects}
        usual = {name: name for name in alike(LABEL_NAMES, head.names) if name not in (columns.text, columns.pair)}
        labels = columns.labels if options.labelled else usual  # even unread labels define the tokens
        by_name = {name: [row[i] for row in head.rows] for i, name in enumerate(head.names)}
        texts = by_name[columns.text] if columns.text else [""] * len(head.rows)
        if sum(is_strings(literal(text)) for text in texts) > 0.5 * sum(not is_empty(text) for text in texts):
            self.readers[self.text] = literal
        for task, source in labels.items() if "structured" not in split_names(options.accept) else ():
            if isinstance(source, str):
                self.choose_parser(task, source, by_name[source], texts)

    def choose_parser(self, task: str, column: str, cells: list[str], texts: list[str]) -> None:
        """Chooses the parser of a label column, and of the text if the labels are tags."""
        read: Read | None = next((read for read in (literal, tags_in) if all_fit(cells, read)), None)
        if read is None or self.options.label_types.get(task) in KEPT_AS_TEXT:
            return
        values = [(read(cell), text) for cell, text in zip(cells, texts) if not is_empty(cell)]
        is_list = self.readers.get(self.text) is literal
        as_tokens: list[Read] = [literal] if is_list else [split_words, str.split, characters]
        fits = [split for split in as_tokens if all(len(value) == len(split(text) or ()) for value, text in values)]
        if read is tags_in and not any(len(value) > 1 for value, _ in values):
            return
        are_tags = all(is_strings(value) and all(map(USUAL.parse, value)) for value, _ in values)
        if are_tags:  # split the text into as many words as there are tags
            self.readers.setdefault(self.text, fits[0] if fits else split_words)
        if not self.options.labelled:
            return
        if all(is_plain_object(value) for value, _ in values):
            self.keys[column] = keys_of_cells(self.path, task, [value for value, _ in values])
        self.readers[column], self.tasks[column] = read, task
        note(f"{self.path}: reading the cells of {task!r} as {'tags' if are_tags else 'lists or objects'}")

    def __call__(self, values: dict[str, Any], where: str) -> dict[str, Any]:
        """Returns the row with parsed cells."""
        if not self.readers:
            return values
        return values | {column: self.value(column, values[column], where) for column in self.readers}

    def value(self, column: str, cell: str, where: str) -> Any:
        read, task = self.readers[column], self.tasks.get(column, "text")
        if column == self.text and read is not literal:
            return read(cell)
        if is_empty(cell):
            is_label = column != self.text and (cell or self.options.label_types.get(task) != "multilabel")
            return None if is_label else cell
        value = read(cell)
        if value is None:
            raise UserError(f"{where}: {task!r} is {shown(cell)}, but other rows have a list or object")
        return read_cell(value, where, task, self.keys[column]) if column in self.keys else value


def all_fit(cells: Sequence[str], read: Read) -> bool:
    filled = [cell for cell in cells if not is_empty(cell)]
    return bool(filled) and all(read(cell) is not None for cell in filled)


def is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def characters(text: str) -> list[str]:
    return [character for character in text if not character.isspace()]
