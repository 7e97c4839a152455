"""Readers of tables: CSV, TSV and similar formats, with or without a header, and Excel sheets."""

import csv
import re
import warnings
import zipfile
from collections import Counter
from contextlib import closing
from datetime import date, time
from functools import partial
from itertools import chain

from engine.errors import UserError
from engine.run.command_line import first_line
from preprocess.readers.columns import (
    PART_NAMES,
    TEXT_NAMES,
    alike,
    columns_of_marks,
    find_columns,
    labels_of_row,
    refuse_other_tasks,
)
from preprocess.readers.raw_files import MOST_CHARACTERS, first_of, lines_of, open_text, read_rows, some, undecodable

HEAD_ROWS = 200  # rows that identify columns if their names do not
MOST_UNPACKED = 2**30  # bytes of a workbook, decompressed


def read_csv(path, options):
    """CSV with quotes as in RFC 4180. The delimiter is --delimiter, otherwise it is detected from the first rows."""
    delimiter = find_delimiter(path, options)
    if len(delimiter) > 1 or delimiter == "\t":
        return read_split(path, options, delimiter)
    return read_quoted(path, options, delimiter)


def read_tsv(path, options):
    """TSV; a quote is an ordinary character, so an unmatched one does no harm."""
    delimiter = delimiter_option(options) or "\t"
    return read_quoted(path, options, delimiter) if delimiter in ",;" else read_split(path, options, delimiter)


def read_split(path, options, delimiter):
    rows = read_rows(path, options.encoding)
    return columns_to_examples(path, ((number, row.split(delimiter)) for number, row in rows), options)


def read_quoted(path, options, delimiter):
    with open_text(path, options.encoding, newline="") as file:
        yield from columns_to_examples(path, read_cells(path, file, delimiter), options)


def read_cells(path, file, delimiter=","):
    """Yields (row number, cells) of an open CSV file."""
    csv.field_size_limit(MOST_CHARACTERS)
    lines = LinesOfRows(path, file)
    reader, start = csv.reader(lines, strict=True, delimiter=delimiter), 1
    try:
        for cells in reader:
            yield start, cells
            start = reader.line_num + 1
            lines.start, lines.length = start, 0
    except csv.Error as error:
        raise UserError(f"{path}, row {start}: {error}; check for an unclosed quote") from None
    except UnicodeError:
        raise undecodable(path, file) from None


class LinesOfRows:
    """The lines of a CSV file, with a limit on the length of a row: an unclosed quote, which joins lines, must not fill
    the memory."""

    def __init__(self, path, file):
        self.path, self.lines = path, lines_of(path, file)
        self.start, self.length = 1, 0  # the row's first line, and its characters so far

    def __iter__(self):
        return self

    def __next__(self):
        line = next(self.lines)
        self.length += len(line)
        if self.length > MOST_CHARACTERS:
            longer = f"longer than {MOST_CHARACTERS:,} characters, the limit of a row"
            raise UserError(f"{self.path}, row {self.start}: {longer}; check for an unclosed quote")
        return line


def delimiter_option(options):
    return getattr(options, "delimiter", "").replace("\\t", "\t")


def find_delimiter(path, options):
    """The delimiter: --delimiter if given; otherwise a comma, unless the first rows indicate another."""
    if given := delimiter_option(options):
        return given
    with open_text(path, options.encoding, newline="") as file:
        try:
            lines = file.read(2**16).splitlines()[:20]
        except UnicodeError:
            raise undecodable(path, file) from None
    named = [options.text_column, *getattr(options, "label_column", "").split(",")]
    names = [name.strip().lower() for name in (*named, *TEXT_NAMES) if name.strip() and not name.isdigit()]
    tables = {}
    for delimiter in (",", ";", "\t", "|", "_!_"):
        try:
            tables[delimiter] = cells_of(lines, delimiter)
        except csv.Error:
            tables[delimiter] = [[""]]
    found = next((d for d, rows in tables.items() if rows and alike(names, rows[0])), None)
    if found is None:  # without known names: the first that splits all rows into the same number of cells
        even = {d: {len(row) for row in rows if row} for d, rows in tables.items()}
        found = next((d for d, widths in even.items() if len(widths) == 1 and max(widths) > 1), ",")
    if found != ",":
        print(f"{path}: the delimiter is {found!r} (--delimiter overrides)")
    return found


def cells_of(lines, delimiter):
    if len(delimiter) > 1 or delimiter == "\t":
        return [line.split(delimiter) for line in lines]
    return list(csv.reader(lines, delimiter=delimiter))


def columns_to_examples(path, table, options):
    """(row number, cells) -> examples. The first row names the columns; with --no_header they are called 0, 1, ….
    Values stay strings, including 'NA', 'null' and '007'."""
    first = next(table, (1, []))
    if not any(cell.strip() for cell in first[1]):
        raise UserError(f"{path}: the file is empty")
    head = first_of(table, HEAD_ROWS)
    if getattr(options, "header", True):
        names, columns = columns_by_name(path, first[1], head, options)
        table, origin = chain(head, table), "the header"
    else:
        names, columns = columns_by_number(path, [first, *head], options)
        table, origin = chain([first, *head], table), f"row {first[0]}"
    listed = f"its columns are: {some(names)}"
    tell_several(path, names, columns, [first, *head], options)
    cells_of_keys, others = places_of(names, columns, options)
    for number, cells in table:
        where = f"{path}, row {number}"
        if not any(cells):
            if columns.labels:
                continue
            cells = [""] * len(names)  # for prediction, an empty row keeps its position
        if len(cells) != len(names):
            raise UserError(f"{where}: {len(cells)} cells, but {origin} has {len(names)}; {listed}")
        example = {"_where": where}
        for key, place in cells_of_keys:
            example[key] = cells[place]
        if others:
            example |= other_parts(columns, {name: cells[place] for name, place in others.items()}, options, where)
        yield example


def tell_several(path, names, columns, head, options):
    """Prints a message if the cells of a label look like several labels, such as '2,27'."""
    for task, source in columns.labels.items():
        if isinstance(source, str) and f"{task}=" not in options.label_type:
            cells = [cells[names.index(source)] for _, cells in head if len(cells) == len(names)]
            several = [cell for cell in cells if re.fullmatch(r"\d+(,\d+)+", cell)]
            if len(several) > 0.02 * len(cells):
                print(f"{path}: cells such as {several[0]!r} may be several labels: --label_type {task}=multilabel")


def places_of(names, columns, options):
    """([(key of an example, index of its cell)], {column: its index} of the columns for `other_parts`)."""
    # The role given by an option takes precedence, even for a column called "id"
    keys = {"id": "id", "split": "split", columns.text: "text", columns.pair: "text_pair"}
    keys |= {source: task for task, source in columns.labels.items() if isinstance(source, str)}
    cells_of_keys = [(keys[name], place) for place, name in enumerate(names) if name in keys]
    others = [name for name in (*columns.extras, *columns.kept, getattr(options, "group_column", "")) if name]
    others += [name for source in columns.labels.values() if not isinstance(source, str) for name in source]
    return cells_of_keys, {name: names.index(name) for name in others}


def other_parts(columns, values, options, where):
    """The rest of a row: its group, extra columns, columns kept for the report, and combined labels."""
    parts = {"group": values[options.group_column]} if getattr(options, "group_column", "") else {}
    if columns.extras:
        parts["extras"] = {name: values[name] for name in columns.extras}
    if columns.kept:
        parts["kept"] = {name: values[name] for name in columns.kept}
    joined = {task: source for task, source in columns.labels.items() if not isinstance(source, str)}
    return parts | labels_of_row(joined, values, where)


def columns_by_name(path, header, head, options):
    """(names, Columns) of a table whose first row names them."""
    names = [name.strip() for name in header]
    listed = f"its columns are: {some(names)}"
    may_lack = hasattr(options, "header") and not alike([*TEXT_NAMES, "tokens"], names)
    headless = f"if row 1 is not a header, add --no_header; {listed}"
    refuse_other_tasks(path, names, options)
    if may_lack and not options.text_column:
        like = "looks like data" if is_data(names, head) else "has none of the usual names"
        raise UserError(f"{path}: row 1 {like}: name the columns with --text_column and --label_column; {headless}")
    if twice := [name for name, number in Counter(names).items() if number > 1]:
        raise UserError(f"{path}, row 1: two columns are called {twice[0]!r}; {headless if may_lack else listed}")
    rows = [cells for _, cells in head if len(cells) == len(names)]
    return names, find_columns(path, names, options, listed, marks=partial(columns_of_marks, names, rows))


def is_data(names, head):
    """Whether the first row looks like data: it has a number, a long cell, or a cell that occurs again below."""
    rows = [cells for _, cells in head if len(cells) == len(names)]
    again = any(name and name == cells[place] for cells in rows for place, name in enumerate(names))
    return again or any(len(name) > 60 or name.replace(".", "", 1).isdigit() for name in names)


def columns_by_number(path, head, options):
    """(names, Columns) of a table without a header. By default the text is the column with the longest cells, and the
    label the only other one whose cells repeat; a single label is the task `label`."""
    names = [str(place) for place in range(len(head[0][1]))]
    rows = [cells for _, cells in head if len(cells) == len(names)]
    shown = [f"{name} ({cell[:20]!r})" for name, cell in zip(names, head[0][1])]
    listed = f"its columns are: {some(shown)}"
    lengths = [sum(len(cells[place]) for cells in rows) for place in range(len(names))]
    text = options.text_column or str(max(range(len(names)), key=lengths.__getitem__))
    others = [name for name in names if name not in (text, options.text_pair_column)]
    again = [name for name in others if len({cells[int(name)] for cells in rows}) <= max(1, 0.6 * len(rows))]
    label = others if len(others) == 1 else again
    if not options.label_column and len(label) != 1:
        advice = f"add --label_column NUMBER (and --text_column, if the text is not column {text})"
        raise UserError(f"{path}: cannot find the label column; {advice}; {listed}")
    columns = find_columns(path, names, Given(options, text), listed, known=label)
    alone = len(columns.labels) == 1
    tasks = {
        (task if not task.isdigit() else "label" if alone else f"label_{task}"): source
        for task, source in columns.labels.items()
    }
    return names, columns._replace(labels=tasks)


class Given:
    """Options with the text column set."""

    def __init__(self, options, text):
        self.options, self.text_column = options, text

    def __getattr__(self, name):
        return getattr(self.options, name)


def read_xlsx(path, options):
    """The only non-empty sheet of a workbook, or --sheet; sheets called train, dev and test are parts."""
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise UserError(f"{path}: Excel needs the package openpyxl: pip install -r requirements-excel.txt") from None
    warnings.filterwarnings("ignore", category=UserWarning, module="openpyxl")  # about unsupported styles
    try:
        with zipfile.ZipFile(path) as packed:
            if sum(part.file_size for part in packed.infolist()) > MOST_UNPACKED:
                raise UserError(f"{path}: more than {MOST_UNPACKED:,} bytes when decompressed; save it as CSV")
        with closing(load_workbook(path, read_only=True, data_only=True)) as book:
            for part, name in find_sheets(path, book, options):
                for example in columns_to_examples(f"{path}, sheet {name}", sheet_rows(book[name]), options):
                    yield example | ({"split": part} if part else {})
    except UserError:
        raise
    except Exception as error:  # a damaged workbook can make openpyxl raise anything
        raise UserError(f"{path}: not a readable .xlsx file ({first_line(error)}); save it as CSV") from None


def find_sheets(path, book, options):
    """[(part or None, name)] of the sheets to read."""
    filled = [sheet.title for sheet in book.worksheets if next(sheet_rows(sheet), None)]
    if wanted := getattr(options, "sheet", ""):
        if wanted not in filled:
            raise UserError(f"{path}: no sheet {wanted!r} with rows (--sheet); it has: {some(filled)}")
        return [(None, wanted)]
    parts = [(PART_NAMES.get(name.strip().lower()), name) for name in filled]
    if len(parts) > 1 and not all(part for part, _ in parts):
        raise UserError(f"{path}: several sheets have rows ({some(filled)}); choose one with --sheet NAME")
    if not filled:
        raise UserError(f"{path}: all sheets are empty")
    return parts if len(parts) > 1 else [(None, filled[0])]


def sheet_rows(sheet):
    """Yields (row number, cells as strings) of a sheet, padded to the first row's width, without blank rows at the
    ends."""
    sheet.reset_dimensions()  # the size stated in the file may be wrong
    width, blank = 0, []
    for number, row in enumerate(sheet.iter_rows(values_only=True), 1):
        cells = [as_cell(value) for value in row]
        while cells and not cells[-1] and len(cells) > width:
            cells.pop()
        if any(cells):
            width = width or len(cells)
            yield from ((before, [""] * width) for before in blank)
            yield number, cells + [""] * (width - len(cells))
            blank = []
        elif width:
            blank.append(number)


def as_cell(value):
    """A value of a sheet as a CSV cell."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value)
