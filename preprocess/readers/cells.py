"""Values in the cells of a table: lists and objects, and one tag per word."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.errors import UserError
from preprocess.example import shown
from preprocess.labels.kinds import NO_LABEL
from preprocess.labels.literals import literal
from preprocess.readers.columns import Columns, Head
from preprocess.readers.conversion import is_plain_object, keys_of_cells, read_cell
from preprocess.readers.options import ReadOptions, split_names

TAG = re.compile(r"O|[BIESMLU][-_]\S+")
Read = Callable[[str], Any]
KEPT_AS_TEXT = ("classification", "regression")  # with these types of --label_type, a cell is a string


def tags_in(cell: str) -> list[str] | None:
    """One tag per word, separated by blanks, as in "O O B-LOC"; None for other cells."""
    tags = cell.split()
    return tags if tags and all(map(TAG.fullmatch, tags)) else None


def is_empty(cell: str) -> bool:
    return cell.strip().lower() in NO_LABEL


class Cells:
    """How the cells of a table become values: found in the first rows, applied to all."""

    def __init__(self, path: str | Path, labels: dict[str, Any], options: ReadOptions) -> None:
        self.path, self.options = path, options
        self.labels = {task: source for task, source in labels.items() if isinstance(source, str)}
        self.readers: dict[str, Read] = {}  # {"text" or task: what reads its cells}
        self.objects: dict[str, list[str]] = {}  # {task: keys of its objects of plain values}
        self.split: Callable[[str], list[str]] | None = None  # a text into the words that the tags are of

    @classmethod
    def of(cls, head: Head, columns: Columns, options: ReadOptions) -> "Cells":
        """The Cells of a table, by its first rows."""
        found = cls(head.path, columns.labels, options)
        by_name = {name: [row[i] for row in head.rows] for i, name in enumerate(head.names)}
        texts = by_name[columns.text]
        if all_fit(texts, literal) and all(is_strings(literal(text)) for text in texts if text.strip()):
            found.readers["text"] = literal
        if "structured" not in split_names(options.accept):
            for task, source in found.labels.items():
                found.look_at(task, by_name[source], texts)
        return found

    def look_at(self, task: str, cells: list[str], texts: list[str]) -> None:
        """Decides how the cells of a label column are read."""
        read: Read | None = next((read for read in (literal, tags_in) if all_fit(cells, read)), None)
        if read is None or self.options.label_types.get(task) in KEPT_AS_TEXT:
            return
        values = [(read(cell), text) for cell, text in zip(cells, texts) if not is_empty(cell)]
        are_tags = all(is_strings(value) and all(map(TAG.fullmatch, value)) for value, _ in values)
        as_tokens: list[Callable[[str], Any]] = [literal] if "text" in self.readers else [str.split, characters]
        fits = [split for split in as_tokens if all(len(value) == len(split(text) or ()) for value, text in values)]
        if read is tags_in and not (fits and any(len(value) > 1 for value, _ in values)):
            return
        if are_tags and "text" not in self.readers:
            self.split = self.split or (fits[0] if fits else str.split)
        if all(is_plain_object(value) for value, _ in values):
            self.objects[task] = keys_of_cells(self.path, task, [value for value, _ in values])
        self.readers[task] = read
        print(f"{self.path}: the cells of {task!r} are read as {'tags' if are_tags else 'lists or objects'}")

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        """An example with the values that its cells are."""
        where = example["_where"]
        for name, read in self.readers.items():
            cell = example.get(name) or ""
            if is_empty(cell):
                chosen = self.options.label_types.get(name)
                example[name] = cell if name == "text" or (chosen == "multilabel" and not cell) else None
                continue
            example[name] = read(cell)
            if example[name] is None:
                raise UserError(f"{where}: {name!r} is {shown(cell)}, but a list or object in other rows")
            if name in self.objects:
                example[name] = read_cell(example[name], where, name, self.objects[name])
        if isinstance(example.get("text"), list):
            example["tokens"] = example.pop("text")
        elif self.split and "text" in example:
            example["tokens"] = self.split(example.pop("text"))
        return example


def all_fit(cells: Sequence[str], read: Read) -> bool:
    filled = [cell for cell in cells if not is_empty(cell)]
    return bool(filled) and all(read(cell) is not None for cell in filled)


def is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def characters(text: str) -> list[str]:
    return [character for character in text if not character.isspace()]
