"""Reads multi-hot labels: lists of zeros and ones of the same length, with one position per label."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.errors import UserError
from preprocess.example import shown

MARK = r"[01](?:\.0*)?"
CELL = re.compile(rf"[\[(]\s*{MARK}(?:[,;|\s]\s*{MARK})+\s*[\])]|{MARK}(?:[,;|\s]\s*{MARK}){{2,}}|[01]{{3,}}")
NAMES_FILE = "labels.txt"  # file next to the data with one label name per row


def marks_of(label: Any) -> list[int] | None:
    """Parses a multi-hot label, which can be a cell such as "[1, 0, 1]" or "1 0 1". Returns None for other labels."""
    if isinstance(label, str):
        return [int(mark[0]) for mark in re.findall(MARK, label)] if CELL.fullmatch(label.strip()) else None
    if isinstance(label, list) and label and all(type(mark) in (int, float, bool, str) for mark in label):
        marks = [str(mark).strip().lower() for mark in label]
        values = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
        return [values[mark] for mark in marks] if values.keys() >= {*marks} else None
    return None


def marks_width(labels: Sequence[Any]) -> int:
    """Returns the common length if (nearly) all labels are multi-hot lists, otherwise 0."""
    widths = Counter(len(marks_of(label) or ()) for label in labels)
    width, number = widths.most_common(1)[0] if labels else (0, 0)
    return width if width > 1 and number > max(1, 0.9 * len(labels)) else 0


def marked_names(label: Any, names: Sequence[str], where: str) -> list[str]:
    """Returns the names of the positions that are 1."""
    marks = marks_of(label)
    if marks is None or len(marks) != len(names):
        raise UserError(f"{where}: expected {len(names)} values 0 or 1, as in other rows, found {shown(label)}")
    return [name for mark, name in zip(marks, names) if mark]


def names_of_positions(option: str, source: Path, width: int, task: str) -> list[str]:
    """Returns the names in --label_names, or else in labels.txt next to the data, or else []."""
    file = (source if source.is_dir() else source.parent) / NAMES_FILE
    names, origin = [name.strip() for name in option.split(",") if name.strip()], "--label_names"
    if not names and file.is_file():
        rows = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        names, origin = [row.strip() for row in rows if row.strip()], str(file)
    if names and (len(names) != width or len({*names}) < width):
        raise UserError(f"{origin}: {len({*names})} names, but the lists of {task!r} have {width} positions of 0 and 1")
    if names:
        print(f"{task}: label names of the lists of 0 and 1, from {origin}: {shown(', '.join(names))[1:-1]}")
    return names
