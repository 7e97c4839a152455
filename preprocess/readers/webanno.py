"""WebAnno's and INCEpTION's TSV 3: one token per row, and a column for each feature of the layers of spans.

A cell is `_`, or one label for each span of the token, as in `PER[1]|ORG[2]`; the tokens of a span share its number.
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
LABEL = re.compile(r"(?s)(.*?)(?:\[(\d+)\])?")  # label of a span, and its number
NONE, NO_LABEL = "_", "*"
FIRST = 3  # the column of the first feature, after number, position and token


def read_webanno(path: Path, options: ReadOptions) -> Iterator[Example]:
    """Tokens with spans, from --tag_column or the only feature with labels."""
    names = feature_names(path, options.encoding)
    chosen = chosen_features(path, names, options) if options.labelled else {}
    columns = {task: names[place] for task, place in chosen.items()}
    options.understood.add(path, "WebAnno TSV", token="column 3", **columns)
    left_out = 0
    for start, rows in sentences(path, options.encoding):
        tokens = [row for row in rows if TOKEN.match(row)]
        left_out += sum(has_label(row, place) for row in rows if PART_OF_TOKEN.match(row) for place in chosen.values())
        cells = [row.split("\t") for row in tokens]
        if short := next((row for row, found in zip(tokens, cells) if len(found) < FIRST + len(names)), None):
            needs = f"needs {FIRST + len(names)} columns, found {short[:60]!r}"
            raise UserError(f"{path}: the sentence that begins in row {start} {needs}")
        example: Example = {"_where": f"{path}, row {start}", "tokens": [found[2] for found in cells]}
        yield example | {task: spans_of([found[FIRST + place] for found in cells]) for task, place in chosen.items()}
    if left_out:
        note(f"{path}: {left_out:,} spans of parts of tokens are skipped")


def feature_names(path: Path, encoding: str) -> list[str]:
    """LAYER.FEATURE of each label column."""
    names: list[str] = []
    for number, (_, row) in enumerate(read_rows(path, encoding)):
        if not number and not row.startswith(f"{FORMAT} 3"):
            raise UserError(f"{path}: {row[:60]!r} is an old version of WebAnno's TSV; export it as version 3")
        if layer := LAYER.fullmatch(row):
            names += [f"{layer[1].rpartition('.')[2]}.{feature}" for feature in layer[2].split("|")[1:]]
        elif TOKEN.match(row):
            break
    return names


def chosen_features(path: Path, names: Sequence[str], options: ReadOptions) -> dict[str, int]:
    """{task: the position of its feature}"""
    if wanted := split_names(options.tag_column):
        places = {name.rpartition(".")[2]: position_of(path, name, names) for name in wanted}
        return places if len(places) == len(wanted) else {name: position_of(path, name, names) for name in wanted}
    rows = [row for _, found in sentences(path, options.encoding) for row in found if TOKEN.match(row)]
    labelled = [place for place in range(len(names)) if any(has_label(row, place) for row in rows)]
    if len(labelled) != 1:
        several = f"{len(labelled)} features have labels" if labelled else "no feature has labels"
        raise UserError(f"{path}: {several}; add --tag_column with one of: {abbreviate(names)}")
    return {"entities": labelled[0]}


def position_of(path: Path, name: str, names: Sequence[str]) -> int:
    """The position of a feature, by FEATURE, LAYER.FEATURE or its number."""
    found = [place for place, known in enumerate(names) if name in (known, known.rpartition(".")[2], str(place))]
    if len(found) != 1:
        several = "several features are called" if found else "no feature is called"
        raise UserError(f"{path}: {several} {name!r} (--tag_column); they are: {abbreviate(names)}")
    return found[0]


def sentences(path: Path, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """(number of the first row, rows) of each sentence."""
    start, rows = 0, list[str]()
    for number, row in read_rows(path, encoding):
        if TOKEN.match(row) or PART_OF_TOKEN.match(row):
            start = start if rows else number
            rows.append(row)
        elif rows and not row.strip():
            yield start, rows
            rows = []
        elif not row.startswith("#") and row.strip():
            raise UserError(f"{path}, row {number}: not a token of WebAnno's TSV: {row[:60]!r}")
    if rows:
        yield start, rows


def has_label(row: str, place: int) -> bool:
    cells = row.split("\t")
    return len(cells) > FIRST + place and any(label for label, _ in labels_in(cells[FIRST + place]))


def labels_in(cell: str) -> Iterator[tuple[str, str | None]]:
    """Yields (label, number of its span or None) of a cell; skips spans without a label."""
    for part in re.split(r"(?<!\\)\|", cell):
        label, number = LABEL.fullmatch(part).groups()  # type: ignore[union-attr]  # it matches everything
        if label not in (NONE, NO_LABEL):
            yield re.sub(r"\\(.)", r"\1", label), number


def spans_of(cells: Sequence[str]) -> list[list[Any]]:
    """[[first token, last token, label]] of a sentence, given the cells of a feature."""
    spans: list[list[Any]] = []
    numbered: dict[tuple[str, str], list[Any]] = {}
    for place, cell in enumerate(cells):
        for label, number in labels_in(cell):
            span = numbered.get((label, number or ""))
            if number and span:
                span[1] = place
                continue
            spans.append([place, place, label])
            if number:
                numbered[label, number] = spans[-1]
    return spans
