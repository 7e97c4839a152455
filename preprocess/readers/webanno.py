"""Reads WebAnno's and INCEpTION's TSV 3: one token per row, with one column per feature of the span layers.

A cell is `_`, or has one label per span of the token, as in `PER[1]|ORG[2]`. All tokens of a span have the same number.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.errors import UserError
from preprocess.example import Example, abbreviate
from preprocess.readers.archives import note
from preprocess.readers.options import ReadOptions, split_names
from preprocess.readers.raw_files import read_rows

FORMAT = "#FORMAT=WebAnno TSV"
LAYER = re.compile(r"#T_SP=([^|]*)((?:\|[^|]+)*)")
TOKEN = re.compile(r"\d+-\d+\t\d+-\d+\t")
PART_OF_TOKEN = re.compile(r"\d+-\d+\.\d+\t")
LABEL = re.compile(r"(?s)(.*?)(?:\[(\d+)\])?")  # label and number of a span
NONE, NO_LABEL = "_", "*"
FIRST = 3  # column of the first feature, after number, position and token


def read_webanno(path: Path, options: ReadOptions) -> Iterator[Example]:
    """Reads tokens, and spans from --tag_column or from the only feature with labels."""
    names = feature_names(path, options.encoding)
    features = chosen_features(path, names, options) if options.labelled else {}
    columns = {task: names[feature] for task, feature in features.items()}
    options.understood.add(path, "WebAnno TSV", token="column 3", **columns)
    num_skipped = 0
    for start, rows in sentences(path, options.encoding):
        tokens = [row for row in rows if TOKEN.match(row)]
        parts = [row for row in rows if PART_OF_TOKEN.match(row)]
        num_skipped += sum(has_label(row, feature) for row in parts for feature in features.values())
        cells = [row.split("\t") for row in tokens]
        width = FIRST + len(names)
        if short := next((row for row, values in zip(tokens, cells) if len(values) < width), None):
            raise UserError(f"{path}, sentence at row {start}: expected {width} columns, found {short[:60]!r}")
        example: Example = {"_where": f"{path}, row {start}", "tokens": [values[2] for values in cells]}
        yield example | {task: spans_of([values[FIRST + n] for values in cells]) for task, n in features.items()}
    if num_skipped:
        note(f"{path}: skipped {num_skipped:,} spans of parts of tokens")


def feature_names(path: Path, encoding: str) -> list[str]:
    """Returns LAYER.FEATURE for each label column."""
    names: list[str] = []
    for number, (_, row) in enumerate(read_rows(path, encoding)):
        if not number and not row.startswith(f"{FORMAT} 3"):
            raise UserError(f"{path}: {row[:60]!r} is an old WebAnno TSV format; export the data as version 3")
        if layer := LAYER.fullmatch(row):
            names += [f"{layer[1].rpartition('.')[2]}.{feature}" for feature in layer[2].split("|")[1:]]
        elif TOKEN.match(row):
            break
    return names


def chosen_features(path: Path, names: Sequence[str], options: ReadOptions) -> dict[str, int]:
    """Returns {task: position of its feature}."""
    if selected := split_names(options.tag_column):
        positions = {name: position_of(path, name, names) for name in selected}
        short_names = {name.rpartition(".")[2]: position for name, position in positions.items()}
        return short_names if len(short_names) == len(positions) else positions
    rows = [row for _, sentence in sentences(path, options.encoding) for row in sentence if TOKEN.match(row)]
    labelled = [position for position in range(len(names)) if any(has_label(row, position) for row in rows)]
    if len(labelled) != 1:
        problem = f"{len(labelled)} features have labels" if labelled else "no feature has labels"
        raise UserError(f"{path}: {problem}; add --tag_column with one of: {abbreviate(names)}")
    return {"entities": labelled[0]}


def position_of(path: Path, name: str, names: Sequence[str]) -> int:
    """Returns the position of a feature, given as FEATURE, LAYER.FEATURE or its number."""
    positions = [n for n, known in enumerate(names) if name in (known, known.rpartition(".")[2], str(n))]
    if len(positions) != 1:
        number = "several features have" if positions else "no feature has"
        raise UserError(f"{path}: {number} the name {name!r} (--tag_column); the features are: {abbreviate(names)}")
    return positions[0]


def sentences(path: Path, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (number of the first row, rows) for each sentence."""
    start, rows = 0, list[str]()
    for number, row in read_rows(path, encoding):
        if TOKEN.match(row) or PART_OF_TOKEN.match(row):
            start = start if rows else number
            rows.append(row)
        elif rows and not row.strip():
            yield start, rows
            rows = []
        elif not row.startswith("#") and row.strip():
            raise UserError(f"{path}, row {number}: expected a token in WebAnno TSV format, found {row[:60]!r}")
    if rows:
        yield start, rows


def has_label(row: str, feature: int) -> bool:
    cells = row.split("\t")
    return len(cells) > FIRST + feature and any(label for label, _ in labels_in(cells[FIRST + feature]))


def labels_in(cell: str) -> Iterator[tuple[str, str | None]]:
    """Yields (label, number of its span or None) for a cell. Skips spans without a label."""
    for part in re.split(r"(?<!\\)\|", cell):
        label, number = LABEL.fullmatch(part).groups()  # type: ignore[union-attr]  # matches any text
        if label not in (NONE, NO_LABEL):
            yield re.sub(r"\\(.)", r"\1", label), number


def spans_of(cells: Sequence[str]) -> list[list[Any]]:
    """Returns [[first token, last token, label]] for a sentence. cells: the feature's cell for each token."""
    spans: list[list[Any]] = []
    numbered: dict[tuple[str, str], list[Any]] = {}
    for token, cell in enumerate(cells):
        for label, number in labels_in(cell):
            span = numbered.get((label, number or ""))
            if number and span:
                span[1] = token
                continue
            spans.append([token, token, label])
            if number:
                numbered[label, number] = spans[-1]
    return spans
