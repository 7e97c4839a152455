"""Writes rows as CSV or JSON Lines. Every exported folder has a copy of this file."""

import csv
import json
from collections.abc import Iterable
from typing import Any, TextIO

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\0")  # starts of formulas in spreadsheets (OWASP, CSV Injection)


def write_rows(
    rows: Iterable[dict[str, Any]], file: TextIO, as_jsonl: bool, header: bool = True, spreadsheet_safe: bool = False
) -> None:
    """Writes dicts as lines of an open text file; lists are JSON in a CSV. header: start a CSV with the names of its
    columns; spreadsheet_safe: put an apostrophe before text cells that a spreadsheet would take for a formula."""
    to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode  # NaN is not valid JSON
    if as_jsonl:
        file.writelines(to_json(row) + "\n" for row in rows)
        return
    writer = csv.writer(file)
    for row in rows:
        cells = [to_json(v) if isinstance(v, list) else v for v in row.values()]
        for line in [list(row), cells] if header else [cells]:
            writer.writerow(map(harmless, line) if spreadsheet_safe else line)
        header = False


def harmless(cell: Any) -> Any:
    """A CSV cell that no spreadsheet runs as a formula; numbers stay unchanged."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell
