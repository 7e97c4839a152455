"""Selects the columns of a table: drops unnamed columns and joins --join_columns."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from engine.errors import UserError
from preprocess.example import abbreviate, counts_up
from preprocess.readers.archives import note
from preprocess.readers.options import ReadOptions, split_names

UNNAMED = re.compile(r"|Unnamed: \d+(\.\d+)*")  # pandas writes such names for unnamed columns
JOINED = " + "  # joins the names of joined columns


@dataclass(frozen=True)
class Selection:
    """Selects and joins the cells of each row."""

    path: str | Path
    width: int  # number of cells per row in the file
    names: list[str]  # names of the remaining columns
    kept: list[int]
    empty: list[int]  # unnamed columns that must be empty
    joined: list[int]  # columns that are joined into the last one
    options: ReadOptions

    def applied(self, rows: Iterable[tuple[int, list[str]]], origin: str) -> Iterator[tuple[int, list[str]]]:
        for number, cells in rows:
            if any(cells):
                if len(cells) != self.width:
                    raise UserError(f"{self.path}, row {number}: {len(cells)} cells, but {origin} has {self.width}")
                if full := next((cells[column] for column in self.empty if cells[column].strip()), ""):
                    raise UserError(f"{self.path}, row {number}: {full[:40]!r} is in an unnamed column; name it")
                joined = [join_texts(cells[column] for column in self.joined)] if self.joined else []
                cells = [*(cells[column] for column in self.kept), *joined]
            yield number, cells


def join_texts(parts: Iterable[str | None]) -> str:
    """Joins texts with spaces."""
    return " ".join(part for part in parts if part and part.strip())


def select_columns(
    path: str | Path, names: list[str], rows: list[tuple[int, list[str]]], options: ReadOptions
) -> Selection | None:
    """Returns the Selection of a table, or None if all columns stay as they are. rows: the first rows."""
    filled = [cells for _, cells in rows if any(cells)]
    has_extra_cell = options.header and all(len(cells) == len(names) + 1 for cells in filled)
    if has_extra_cell and is_index([cells[0] for cells in filled]):  # R does not name the column of row numbers
        names = ["", *names]
    full = [cells for cells in filled if len(cells) == len(names)]
    unnamed = [i for i, name in enumerate(names) if options.header and UNNAMED.fullmatch(name)] if full else []
    index = [i for i in unnamed if is_index([cells[i] for cells in full])]
    empty = [i for i in unnamed if not any(cells[i].strip() for cells in full)]
    names_to_join = split_names(options.join_columns)
    if missing := [name for name in names_to_join if name not in names]:
        raise UserError(f"{path}: no column {missing[0]!r} (--join_columns); the columns are: {abbreviate(names)}")
    joined = [names.index(name) for name in names_to_join]
    if not (index or empty or joined):
        return None
    if index or empty:
        numbers = ", ".join(str(i + 1) for i in sorted((*index, *empty)))
        note(f"{path}: not used: column {numbers} (unnamed, and empty or row numbers)")
    kept = [i for i in range(len(names)) if i not in (*index, *empty, *joined)]
    all_names = [names[i] for i in kept]
    if joined:
        all_names.append(JOINED.join(names_to_join))
        options = replace(options, text_column=all_names[-1], join_columns="")
    return Selection(path, len(names), all_names, kept, empty, joined, options)


def is_index(cells: list[str]) -> bool:
    """Returns True if the cells are row numbers."""
    return len(cells) > 1 and counts_up(cells)
