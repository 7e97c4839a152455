"""Reads the input files of the command line: .txt, .csv, .tsv and .jsonl, also with .gz.

Rejects files that main.py would read differently, because its readers know more formats.
"""

import csv
import gzip
import io
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from engine.schema import parse_json
from engine.task.signs import PAIR_NAMES, PAIRS, TAG, TEXT_NAMES, by_usual, encoding_of_marks, inline_syntax
from engine.task.words import id_of, text_or_tokens
from tools.export.loading import InputError

FORMATS = ".txt (one text per row), .csv, .tsv or .jsonl"
NAMES = "|".join(map(re.escape, ["tokens", *TEXT_NAMES]))
OTHER_FORMATS: list[tuple[str, Any, str]] = [  # other contents of a .txt: (name, rows that must match, pattern)
    ("JSON lines", all, r"\{"),
    ("JSON", next, r"\[\s*([\[{]|$)|\{\s*$"),
    ("a table", next, rf"(?i)(.*[\t,;|])?\s*({NAMES})\s*[\t,;|]|.*[\t,;|]\s*({NAMES})\s*$|.*_!_"),
    ("a table", all, r".*\t"),
    ("texts with labels (fastText)", all, r"__label__\S|.*\s__label__\S+\s*$"),
    ("Rasa's training data", any, r"##\s*intent:|nlu:\s*$"),
    ("tokens with tags (CoNLL)", all, rf"\S+[ \t](.*[ \t])?{TAG}\s*$"),
    ("tokens with tags (CoNLL)", next, r"# global\.columns|#begin document"),
    ("words with tags", all, r"(\S*/([A-Za-z][\w$-]*|[^\w\s]{1,2})(\]\S*)?(\s+|$))+$"),
    ("words with tags", all, rf"(\S+(:|\||###){TAG}(\s+|$))+(<=>.*|\S+)?$"),
]


def unsupported(path: Path, what: str) -> InputError:
    """Creates the error for a file in a format that only main.py reads."""
    lines = """JSON lines, {"text": "fly to Oslo"} or {"tokens": ["fly", "to", "Oslo"]}"""
    advice = f"convert it to {lines}, or label it with main.py --predict_file"
    return InputError(f"{path}: {what}, but the supported formats are {FORMATS}; {advice}")


def open_text(path: Path, encoding: str, newline: str = "\n") -> io.TextIOWrapper:
    """Opens a text file, which may end in .gz. encoding auto: UTF-16 or UTF-32 with a BOM, otherwise UTF-8"""
    try:
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8" if encoding == "auto" else encoding)
    except (LookupError, ValueError):
        raise InputError(f"--encoding {encoding}: Python has no such encoding") from None
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    if encoding == "auto":
        with opened(path, "rb") as file:
            encoding = encoding_of_marks(file.read(2**20)) or "utf-8-sig"
    return io.TextIOWrapper(opened(path, "rb"), encoding=encoding, newline=newline)


def read_rows(path: str | Path, options: Any) -> Iterator[dict[str, Any]]:
    """Yields the rows of a file. Raises InputError for files that main.py would read differently."""
    path = Path(path)
    if path.is_dir():
        raise unsupported(path, "is a folder")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    suffix = (Path(path.stem) if path.suffix.lower() == ".gz" else path).suffix.lower()
    if suffix not in ("", ".txt", ".csv", ".tsv", ".jsonl", ".ndjson"):
        raise unsupported(path, f"ends in {suffix}")
    with open_text(path, options.encoding, "" if suffix == ".csv" else "\n") as file:
        lines = file if suffix == ".csv" else (line.removesuffix("\n").removesuffix("\r") for line in file)
        if suffix == ".csv":
            csv.field_size_limit(sys.maxsize)
            yield from read_table(path, csv.reader(lines, strict=True), options)
        elif suffix == ".tsv":
            yield from read_table(path, (line.split("\t") for line in lines), options)
        elif suffix in (".jsonl", ".ndjson"):
            yield from read_objects(path, lines, options)
        else:
            yield from ({"id": str(number), "text": line} for number, line in enumerate(texts_only(path, lines)))


def texts_only(path: Path, lines: Iterator[str]) -> Iterator[str]:
    """Returns the lines of a .txt. Raises InputError if they look like another format."""
    head = list(islice(lines, 1000))
    filled = [row for row in head if row.strip()]
    rows = [row for row in filled if not row.startswith("#")] or filled
    words = [row.split() for row in rows]
    if "" in head[:-1]:  # CoNLL has blank rows between sentences, and may have a row with the intent of each
        rows = [row for row, cells in zip(rows, words) if len(cells) > 1] or rows
        if all(len(cells) == 2 for cells in words) and any(cells[1] == "O" for cells in words):
            raise unsupported(path, "seems to contain tokens with tags (CoNLL)")
    reject_marked(path, head)
    for what, which, pattern in OTHER_FORMATS if rows else ():
        if which(bool(re.match(pattern, row)) for row in (rows if which is all else filled)):
            raise unsupported(path, f"seems to contain {what}")
    return chain(head, lines)


def read_table(path: Path, table: Iterator[list[str]], options: Any) -> Iterator[dict[str, Any]]:
    """Yields the rows of a table with a header."""
    header = [name.strip() for name in next(table, [])]
    if twice := [name for number, name in enumerate(header) if name and name in header[:number]]:
        raise InputError(f"{path}: two columns are named {twice[0]!r}; rename one")
    text, pair = find_columns(path, header, options)
    head = list(islice(table, 200))
    full = [dict(zip(header, cells)) for cells in head if len(cells) == len(header) and any(cells)]
    texts = [row[text] for row in full] if text else []
    reject_marked(path, texts, [[row[name] for row in full] for name in header if name != text])
    for number, cells in enumerate(chain(head, table)):
        cells = cells if any(cells) else [""] * len(header)
        if len(cells) != len(header):
            raise InputError(f"{path}, text {number + 1}: {len(cells)} cells, but the header has {len(header)}")
        yield input_row(dict(zip(header, cells)), number, text, pair)


def reject_marked(path: Path, texts: list[Any], columns: Iterable[list[str]] = ()) -> None:
    """Raises InputError if texts are lists or have entity markup, or if a column contains a tag for each word."""
    filled = [text for text in texts if isinstance(text, str) and text.strip()]
    if filled and (inline_syntax(filled) or all(re.match(r"\s*\[.*\]\s*$", text, re.S) for text in filled)):
        raise unsupported(path, "seems to contain lists or entity markup instead of texts")
    sizes = [len(text.split()) for text in texts if isinstance(text, str)]
    for tags in ([items_of(cell) for cell in column] for column in columns if filled):
        as_tags = all(re.fullmatch(TAG, tag) for row in tags for tag in row)
        if sizes == list(map(len, tags)) and (as_tags or ({*sizes} <= {0, 1} and ["O"] in tags)):
            raise unsupported(path, "seems to contain a column with a tag for each word")


def items_of(cell: str) -> list[str]:
    """Splits a cell into words, or into the items of a list."""
    return re.findall(r"""['"]([^'"]*)['"]""", cell) if cell.startswith("[") else cell.split()


def read_objects(path: Path, lines: Iterable[str], options: Any) -> Iterator[dict[str, Any]]:
    """Yields the rows of a JSON Lines file. The first 1000 objects determine the keys."""
    objects = parse_lines(path, lines)
    head = list(islice(objects, 1000))
    # tokens are ignored if they are objects, as in Prodigy
    if names := dict.fromkeys(k for item in head for k in item if k != "tokens" or "{" not in str(item[k])[:2]):
        text, pair = find_columns(path, list(names), options)
        is_instruction = {*names} & {"output", "response", "completion"} and {*names} & {
            "instruction",
            "prompt",
            "query",
        }
        if not options.text_column and (is_instruction or {*names} & {"messages", "conversations"}):
            raise unsupported(path, "the objects seem to be instructions or dialogues")
        reject_marked(path, [item.get(text) for item in head[:200]])
        for number, item in enumerate(chain(head, objects)):
            item = item or {key: "" for key in (text, pair) if key}
            if missing := [key for key in (text, pair) if key and key not in item]:
                raise InputError(f"{path}, row {number + 1}: no key {missing[0]!r}, which other rows have")
            yield input_row(item, number, text, pair)


def parse_lines(path: Path, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yields one object per line; an empty one for a blank line."""
    for number, line in enumerate(lines, 1):
        try:
            item = parse_json(line) if line.strip() else {}
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, row {number}: not JSON ({error})") from None
        if not isinstance(item, dict):
            raise InputError(f"{path}, row {number}: not a JSON object")
        yield item


def find_columns(path: Path, names: list[str], options: Any) -> tuple[str, str | None]:
    """Returns the columns of the text and of the second text (or None), from the options or by their usual names."""
    if not (options.text_column or options.text_pair_column or "tokens" in names):
        for pair in PAIRS:
            if {*pair} <= {*names}:
                return pair
    chosen: list[Any] = []
    for flag, usual in (("text_column", ["tokens", *TEXT_NAMES]), ("text_pair_column", PAIR_NAMES)):
        given = getattr(options, flag)
        if given and given not in names:
            raise InputError(f"{path}: no column {given!r} (--{flag}); the columns are: {', '.join(names)}")
        chosen.append(given or next(iter(by_usual(usual, names)), None))
    if chosen[0] is None and not getattr(options, "reads_text", True):
        return "", None
    if chosen[0] is None:
        problem = f"cannot tell which column is the text; add --text_column: {', '.join(names)}"
        raise InputError(f"{path}: {problem}; if the file has another format, label it with main.py --predict_file")
    return chosen[0], chosen[1]


def input_row(values: dict[str, Any], number: int, text: str, pair: str | None) -> dict[str, Any]:
    """Converts a row of a file to a row for Predictor. text: its column, "" if the model reads no text"""
    row = {"id": id_of(None if text == "id" else values.get("id"), number)}
    if text:
        row |= text_or_tokens(values[text], values.get("text"))
    if pair:
        row["text_pair"] = values[pair]
    return row | {"extras": {name: value for name, value in values.items() if name not in (text, pair, "id")}}
