"""Writes rows as CSV or JSON Lines. Every exported folder has a copy of this file."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from engine.run.atomic import atomic_file

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\0")  # these start a formula in spreadsheets (OWASP, CSV Injection)


def write_predictions(rows: Iterable[dict[str, Any]], path: str | Path, spreadsheet_safe: bool = False) -> None:
    """Writes rows to a .csv or .jsonl file atomically. In a CSV, lists are encoded as JSON."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        write_rows(rows, file, path.suffix == ".jsonl", spreadsheet_safe=spreadsheet_safe)


def write_rows(
    rows: Iterable[dict[str, Any]], file: TextIO, as_jsonl: bool, header: bool = True, spreadsheet_safe: bool = False
) -> None:
    """Writes dicts to an open text file. In a CSV, lists are encoded as JSON. header: write the CSV header first;
    spreadsheet_safe: put an apostrophe before cells that a spreadsheet would run as a formula."""
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
    """Escapes a CSV cell that a spreadsheet would run as a formula. Numbers stay unchanged."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell
