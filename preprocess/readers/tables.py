"""Reads tables, with or without a header: CSV, TSV and similar formats, and Excel sheets."""

import csv
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import date, time
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from engine.errors import UserError
from engine.run.command_line import first_line
from engine.run.reading import NO_QUOTES
from engine.task.signs import TEXT_NAMES, alike
from preprocess.example import SPLIT_ALIASES, Example, abbreviate
from preprocess.readers.archives import note
from preprocess.readers.cells import Cells
from preprocess.readers.columns import Columns, Head, find_columns, reject_other_tasks
from preprocess.readers.options import ReadOptions, split_names
from preprocess.readers.raw_files import MAX_CHARACTERS, lines_of, open_text, read_rows, take_head
from preprocess.readers.selection import select_columns
from preprocess.readers.token_rows import read_token_table, token_layout

HEAD_ROWS = 200  # rows used to identify columns with unusual names
MAX_UNPACKED_BYTES = 2**30  # per workbook
Table = Iterator[tuple[int, list[str]]]  # (row number, cells)


def read_csv(path: Path, options: ReadOptions) -> Iterator[Example]:
    """Reads CSV with quotes as in RFC 4180. The delimiter is --delimiter, or detected by default."""
    delimiter = options.delimiter or find_delimiter(path, options)
    named = options.format == "csv" and options.delimiter  # --format csv --delimiter '\t': a TSV with quotes
    quoted = len(delimiter) == 1 and (named or not is_plain(delimiter))
    return columns_to_examples(path, cells_of(path, options, delimiter, quoted=bool(quoted)), options)


def read_tsv(path: Path, options: ReadOptions) -> Iterator[Example]:
    """Reads TSV. Quotes are ordinary characters, unless --quotechar is given."""
    delimiter = options.delimiter or "\t"
    return columns_to_examples(path, cells_of(path, options, delimiter, quoted=delimiter in (",", ";")), options)


def is_plain(delimiter: str) -> bool:
    """Returns True if quotes are ordinary characters in a .csv file with this delimiter."""
    return len(delimiter) > 1 or delimiter in "\t "


def cells_of(path: Path, options: ReadOptions, delimiter: str, quoted: bool) -> Table:
    """Yields the rows of a file as cells. quoted: whether double quotes are special by default."""
    quote = quote_of(options, quoted)
    if quote and len(delimiter) > 1:
        raise UserError(f"{path}: --quotechar requires a --delimiter of one character, found {delimiter!r}")
    if quote:
        return quoted_cells(path, options.encoding, delimiter, quote)
    max_splits = 1 if delimiter == " " else -1  # `pos a lovely film` is a label and a text
    return ((number, row.split(delimiter, max_splits)) for number, row in read_rows(path, options.encoding))


def quote_of(options: ReadOptions, quoted: bool) -> str:
    """Returns the quote character, or "" for none."""
    if options.quotechar:
        return "" if options.quotechar == NO_QUOTES else options.quotechar
    return '"' if quoted else ""


def quoted_cells(path: Path, encoding: str, delimiter: str, quote: str) -> Table:
    csv.field_size_limit(MAX_CHARACTERS)
    advice = f"check for an unclosed quote, or add --quotechar {NO_QUOTES} if quotes are ordinary characters"
    start, length = 1, 0  # of the current row: first line, characters so far

    def limited_lines(file: TextIO) -> Iterator[str]:
        nonlocal length
        for line in lines_of(path, file):
            length += len(line)
            if length > MAX_CHARACTERS:  # an unclosed quote makes the rest of the file one row
                problem = f"longer than the limit of {MAX_CHARACTERS:,} characters per row"
                raise UserError(f"{path}, row {start}: {problem}; {advice}")
            yield line

    with open_text(path, encoding, newline="") as file:
        lines = limited_lines(file)
        first = next(lines, "")
        reader = csv.reader(chain([first], lines), strict=True, **dialect(first, delimiter, quote))
        try:
            for cells in reader:
                yield start, cells
                start, length = reader.line_num + 1, 0
        except csv.Error as error:
            raise UserError(f"{path}, row {start}: {error}; {advice}") from None


def dialect(first: str, delimiter: str, quote: str) -> dict[str, Any]:
    """Returns the options of csv.reader. Skips spaces before quotes if the first row has any: `"a", "b"`."""
    return dict(delimiter=delimiter, quotechar=quote, skipinitialspace=f"{delimiter} {quote}" in first)


def find_delimiter(path: Path, options: ReadOptions) -> str:
    """Detects the delimiter from the first rows (default: a comma)."""
    with open_text(path, options.encoding, newline="") as file:
        lines = [line.removesuffix("\r") for line in file.read(2**16).split("\n")]
    lines = [line for line in lines if line][:20]
    named = [options.text_column, *split_names(options.label_column)]
    names = [name.strip().lower() for name in (*named, *TEXT_NAMES) if name.strip() and not name.isdigit()]
    tables = {delimiter: cells_of_lines(lines, delimiter, options) for delimiter in (",", ";", "\t", "|", "_!_")}
    delimiter = next((d for d, rows in tables.items() if rows and alike(names, rows[0])), None)
    if delimiter is None:  # the first one that splits all rows into the same number of cells
        widths = {d: {len(row) for row in rows if row} for d, rows in tables.items()}
        delimiter = next((d for d, numbers in widths.items() if len(numbers) == 1 and max(numbers) > 1), ",")
    if delimiter != ",":
        note(f"{path}: detected delimiter {delimiter!r} (--delimiter overrides)")
    return delimiter


def cells_of_lines(lines: list[str], delimiter: str, options: ReadOptions) -> list[list[str]]:
    """Splits the first lines of a file at a delimiter. Returns a single empty cell if the quotes are invalid."""
    quote = quote_of(options, not is_plain(delimiter)) if len(delimiter) == 1 else ""
    if not quote:
        return [line.split(delimiter) for line in lines]
    try:
        return list(csv.reader(lines, **dialect(next(iter(lines), ""), delimiter, quote)))
    except csv.Error:
        return [[""]]


def columns_to_examples(path: str | Path, table: Table, options: ReadOptions) -> Iterator[Example]:
    """Yields the examples of a table. The first row is the header; with --no_header, columns are called 0, 1, ….

    Values such as 'NA', 'null' and '007' stay strings. Cells are parsed only if all cells of a column are lists or
    objects.
    """
    first_row, first = next(table, (1, []))
    if not any(cell.strip() for cell in first):
        raise UserError(f"{path}: the file is empty")
    rows = take_head(table, HEAD_ROWS)
    if options.header:
        names = shown = [cell.strip() for cell in first]
        find, origin = columns_by_name, "the header"
    else:
        names = [str(position) for position in range(len(first))]
        shown = [f"{name} ({cell[:20]!r})" for name, cell in zip(names, first)]
        rows.insert(0, (first_row, first))
        find, origin = columns_by_number, f"row {first_row}"
    below = data_rows(path, first if options.header else [], chain(rows, table))
    if selection := select_columns(path, names, rows, options):
        names, shown = selection.names, selection.names if options.header else shown
        rows, below = list(selection.applied(rows, origin)), selection.applied(below, origin)
        options = selection.options
    full_rows = [cells for _, cells in rows if len(cells) == len(names)]
    if (layout := token_layout(path, names, rows, options)) is not None:
        yield from read_token_table(layout, below, options)
        return
    head = Head(path, names, full_rows, f"its columns are: {abbreviate(shown)}")
    columns = find(head, options)
    report_joined_labels(head, columns, options)
    yield from table_examples(head, columns, below, origin, options)


def data_rows(path: str | Path, header: list[str], table: Iterable[tuple[int, list[str]]]) -> Table:
    """Yields the rows below the header. Raises UserError if the header is repeated, as in concatenated files."""
    for number, cells in table:
        if cells == header and len(header) > 1:
            raise UserError(f"{path}, row {number}: repeats the header; remove this row")
        yield number, cells


def table_examples(head: Head, columns: Columns, rows: Table, origin: str, options: ReadOptions) -> Iterator[Example]:
    """Yields the examples of the rows below the header. origin: names, for messages, the row that sets the width."""
    values_of, order = Cells(head, columns, options), columns.order(head.names)
    for number, cells in rows:
        where = f"{head.path}, row {number}"
        if not any(cells):
            if options.labelled:
                continue
            cells = [""] * len(head.names)  # for prediction, keep empty rows
        if len(cells) != len(head.names):
            advice = quote_advice(cells, options)
            raise UserError(f"{where}: {len(cells)} cells, but {origin} has {len(head.names)}; {advice}{head.listed}")
        example = columns.example(values_of(dict(zip(head.names, cells)), where), where)
        yield {key: example[key] for key in order if key in example} | example if order else example


def quote_advice(cells: list[str], options: ReadOptions) -> str:
    """Returns advice to add --quotechar if a cell starts with a quote that was read as an ordinary character."""
    quote = next((cell[0] for cell in cells if cell[:1] in ("'", '"') and cell.strip(cell[0])), "")
    if not quote or options.quotechar:
        return ""
    shown = '"\'"' if quote == "'" else "'\"'"
    return f"if cells are quoted, add --quotechar {shown}; "


def report_joined_labels(head: Head, columns: Columns, options: ReadOptions) -> None:
    """Prints a message if label cells look like several labels (such as '2,27')."""
    for task, source in columns.labels.items():
        if isinstance(source, str) and task not in options.label_types:
            cells = [row[head.names.index(source)] for row in head.rows]
            counts = Counter(part.strip() for cell in cells for part in cell.split(","))
            joined = [c for c in cells if "," in c and all(counts[part.strip()] > 1 for part in c.split(","))]
            if len(joined) > 0.02 * len(cells):
                advice = f"if so, add --label_type {task}=multilabel"
                note(f"{head.path}: cells such as {joined[0]!r} could be several labels; {advice}")


def columns_by_name(head: Head, options: ReadOptions) -> Columns:
    """Returns the Columns of a table with a header."""
    is_doubtful = options.labelled and options.text and not alike([*TEXT_NAMES, "tokens"], head.names)
    no_header = f"if row 1 is not a header, add --no_header; {head.listed}"
    reject_other_tasks(head, options)
    if is_doubtful and not options.text_column:
        problem = "looks like data" if is_data(head) else "has no usual column names"
        advice = f"{quote_advice(head.names, options)}specify the columns with --text_column and --label_column"
        raise UserError(f"{head.path}: row 1 {problem}; {advice}; {no_header}")
    if repeated := [name for name, number in Counter(head.names).items() if number > 1]:
        advice = no_header if is_doubtful else head.listed
        raise UserError(f"{head.path}, row 1: two columns are called {repeated[0]!r}; {advice}")
    return find_columns(head, options)


def is_data(head: Head) -> bool:
    """Returns True if the first row looks like data: a number, a long cell, or a cell that recurs in its column."""
    is_repeated = any(name and name == row[i] for row in head.rows for i, name in enumerate(head.names))
    return is_repeated or any(len(name) > 60 or name.replace(".", "", 1).isdigit() for name in head.names)


def columns_by_number(head: Head, options: ReadOptions) -> Columns:
    """Returns the Columns of a table without a header.

    By default, the text is the column with the longest cells. The label is the only other column, or the only other
    column with repeated cells. The task of a single label is called `label`.
    """
    lengths = [sum(map(len, cells)) for cells in zip(*head.rows)]
    text = options.text_column or str(lengths.index(max(lengths)))
    others = [name for name in head.names if name not in (text, options.text_pair_column)]
    repeating = [name for name in others if len({row[int(name)] for row in head.rows}) <= max(1, 0.6 * len(head.rows))]
    label = others if len(others) == 1 else repeating
    if options.labelled and not options.label_column and len(label) != 1:
        advice = f"add --label_column NUMBER (and --text_column, if the text is not column {text})"
        raise UserError(f"{head.path}: the label column is unclear; {advice}; {head.listed}")
    unused = [name for name in others if name not in (*label, *split_names(options.label_column))]
    second = None if options.text_column or not options.text else second_text(head, int(text), unused)
    if options.labelled and second:
        both = ",".join(sorted((text, second), key=int))
        pair = "--text_column {} --text_pair_column {}".format(*both.split(","))
        advice = f"add {pair} for pairs, --join_columns {both} for one text, or --text_column {text} for one of them"
        raise UserError(f"{head.path}: columns {both} could both be texts; {advice}; {head.listed}")
    columns = find_columns(head, replace(options, text_column=text), known=label)
    prefix = "label" if len(columns.labels) == 1 else "label_{}"
    named = {prefix.format(task) if task.isdigit() else task: source for task, source in columns.labels.items()}
    return columns._replace(labels=named)


def second_text(head: Head, text: int, names: list[str]) -> str | None:
    """Returns the first of these columns that may be a text: its cells rarely repeat and are about as long as texts."""
    for name in names:
        cells = [row[int(name)] for row in head.rows]
        lengths = sum(map(len, cells)), sum(len(row[text]) for row in head.rows)
        num_phrases = sum(bool(re.match(r"[^\x00-\u1fff]{2}|.*\w\s+\w", cell)) for cell in cells)
        if lengths[0] > 0.3 * lengths[1] and len({*cells}) > 0.6 * len(cells) and num_phrases > 0.5 * len(cells):
            return name
    return None


def read_xlsx(path: Path, options: ReadOptions) -> Iterator[Example]:
    """Reads --sheet or the only non-empty sheet of a workbook. Sheets called train, dev and test are splits."""
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise UserError(f"{path}: Excel needs openpyxl; run pip install -r requirements-excel.txt") from None
    warnings.filterwarnings("ignore", category=UserWarning, module="openpyxl")  # unsupported styles
    try:
        with zipfile.ZipFile(path) as packed:
            if sum(part.file_size for part in packed.infolist()) > MAX_UNPACKED_BYTES:
                raise UserError(f"{path}: more than {MAX_UNPACKED_BYTES:,} bytes when decompressed; save it as CSV")
        with closing(load_workbook(path, read_only=True, data_only=True)) as book:
            for split, name in find_sheets(path, book, options.sheet):
                for example in columns_to_examples(f"{path}, sheet {name}", sheet_rows(book[name]), options):
                    yield example | ({"split": split} if split else {})
    except UserError:
        raise
    except Exception as error:  # openpyxl raises many kinds of errors
        raise UserError(f"{path}: not a readable .xlsx file ({first_line(error)}); save it as CSV") from None


def find_sheets(path: Path, book: Any, selected: str) -> list[tuple[str | None, str]]:
    """Returns [(split or None, name)] of the sheets to read."""
    non_empty = [sheet.title for sheet in book.worksheets if next(sheet_rows(sheet), None)]
    if selected:
        if selected not in non_empty:
            raise UserError(f"{path}: no sheet {selected!r} with rows (--sheet); it has: {abbreviate(non_empty)}")
        return [(None, selected)]
    splits = [(SPLIT_ALIASES.get(name.strip().lower()), name) for name in non_empty]
    if len(splits) > 1 and not all(split for split, _ in splits):
        raise UserError(f"{path}: several sheets have rows ({abbreviate(non_empty)}); select one with --sheet NAME")
    if not non_empty:
        raise UserError(f"{path}: all sheets are empty")
    return splits if len(splits) > 1 else [(None, non_empty[0])]


def sheet_rows(sheet: Any) -> Table:
    """Yields the rows of a sheet, padded to the width of the first row, without blank rows at the start and end."""
    sheet.reset_dimensions()  # the size stored in the file can be wrong
    width = 0
    blank: list[int] = []
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


def as_cell(value: Any) -> str:
    """Converts a sheet value to a CSV cell."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value)
