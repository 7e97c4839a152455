"""The readers of raw files, one per format, and how a file's format is recognised.

A reader is a generator of examples (see preprocess/example.py), with optional `text_pair`, `id` and `split`. The larger
readers are in tables.py, objects.py, tagged.py and folders.py.
Edit here to add your own format: one reader, one line in READERS.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from engine.errors import UserError
from preprocess.example import Example
from preprocess.readers.columns import LABEL_NAMES, NUMBER_NAMES, OTHER_LABEL_NAMES, TEXT_NAMES, alike
from preprocess.readers.folders import class_folders, is_brat, read_brat, read_classes
from preprocess.readers.objects import read_dataset, read_json, read_jsonl, read_parquet
from preprocess.readers.options import Reader, ReadOptions
from preprocess.readers.raw_files import encoding_of, open_bytes, read_rows
from preprocess.readers.tables import read_csv, read_tsv, read_xlsx
from preprocess.readers.tagged import WORD_TAG, read_conll, read_conllu, read_seq, read_word_tags

FASTTEXT = "__label__"
USUAL_LABELS = [*LABEL_NAMES, *NUMBER_NAMES, *OTHER_LABEL_NAMES]
CONLLU_ROW = re.compile(r"#|\d+([-.]\d+)?(\t[^\t]+){9}$")
HEAD_BYTES = 2**16  # of a file, by which its format is recognised


def read_txt(path: Path, options: ReadOptions) -> Iterator[Example]:
    """One text per row, without labels."""
    for number, row in read_rows(path, options.encoding):
        yield {"_where": f"{path}, row {number}", "text": row}


def read_fasttext(path: Path, options: ReadOptions) -> Iterator[Example]:
    """fastText's format: `__label__NAME a text`, labels before or after the text; several labels in a row: a set."""
    several = any(len(fasttext_labels(row)[1]) > 1 for _, row in read_rows(path, options.encoding))
    for number, row in read_rows(path, options.encoding):
        if row.strip():
            text, labels = fasttext_labels(row)
            label = labels if several and labels else next(iter(labels), None)
            yield {"_where": f"{path}, row {number}", "text": text, "label": label}


def fasttext_labels(row: str) -> tuple[str, list[str]]:
    """(text, labels) of a fastText row."""
    text, labels = row.strip(), []
    while match := re.match(rf"{FASTTEXT}(\S+?),?(?:\s+|$)", text):
        labels.append(match[1])
        text = text[match.end() :]
    in_front = bool(labels)
    while not in_front and (match := re.search(rf"\s{FASTTEXT}(\S+)$", text)):
        labels.append(match[1])
        text = text[: match.start()].rstrip()
    return text, labels


SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"}
SUFFIXES |= {".xlsx": "xlsx", ".conllu": "conllu"}
CONLL_SUFFIXES = (".conll", ".bio", ".bioes", ".bmes", ".iob", ".iob2")
READERS: dict[str, Reader] = {
    "csv": read_csv,
    "tsv": read_tsv,
    "xlsx": read_xlsx,
    "jsonl": read_jsonl,
    "json": read_json,
    "parquet": read_parquet,
    "conll": read_conll,
    "conllu": read_conllu,
    "word_tags": read_word_tags,
    "fasttext": read_fasttext,
    "seq": read_seq,
    "classes": read_classes,
    "brat": read_brat,
    "hf": read_dataset,
}


def suffix_of(path: Path) -> str:
    """The suffix that determines the format, in lower case; .csv for data.csv.gz."""
    return (Path(path.stem) if path.suffix.lower() == ".gz" else path).suffix.lower()


def find_format(path: Path, options: ReadOptions) -> str:
    """The reader's name for a file or folder: --format, otherwise by the file's name and first rows."""
    if options.format != "auto":
        return options.format
    if path.is_dir():
        if (path / "seq.in").exists():
            return "seq"
        return "brat" if is_brat(path) else "classes" if len(class_folders(path)) > 1 else "hf"
    suffix = suffix_of(path)
    if options.delimiter and suffix not in SUFFIXES:
        return "csv"
    if suffix in CONLL_SUFFIXES:
        return "conll"
    if suffix == ".xls":
        raise UserError(f"{path}: the old format of Excel; save it as .xlsx or CSV")
    if suffix in SUFFIXES and suffix != ".tsv":
        return SUFFIXES[suffix]
    rows = head_of(path, options.encoding)
    head = [row for row in rows if row.strip()] or [""]
    if suffix == ".tsv":  # one token and tag per row, with blank rows between sentences: not a table
        return "conll" if are_tagged(head) and any(not row.strip() for row in rows[:-1]) else "tsv"
    if found := format_of_rows(head, options.labelled):
        return found
    hint = "if it is a table, add --delimiter"
    raise UserError(f"{path}: unknown format; name it with --format {{{','.join(READERS)}}}; {hint}")


def format_of_rows(head: list[str], labelled: bool) -> str | None:
    """The format that the first rows of a file have, or None. labelled: whether a format with labels is needed."""
    names = [name.strip() for name in re.split("[,;|]", head[0])]
    evidence: dict[str, Callable[[], object]] = {
        "jsonl": lambda: head[0].startswith("{"),
        "json": lambda: re.match(r"\[\s*(\{|$)", head[0]),
        "fasttext": lambda: all(fasttext_labels(row)[1] for row in head),
        "conllu": lambda: all(map(CONLLU_ROW.match, head)) and not head[0].startswith("##"),
        "conll": lambda: are_tagged(head),
        "word_tags": lambda: all(map(are_word_tags, head)),
        "txt": lambda: not labelled,
        "tsv": lambda: "\t" in head[0],
        "csv": lambda: "_!_" in head[0] or (alike(TEXT_NAMES, names) and alike(USUAL_LABELS, names)),
    }
    return next((name for name, fits in evidence.items() if fits()), None)


def head_of(path: Path, encoding: str) -> list[str]:
    """The first complete rows of a file."""
    with open_bytes(path) as file:
        raw = file.read(HEAD_BYTES)
    encoding = encoding_of(path, report=False) if encoding == "auto" else encoding
    try:
        rows = raw.decode(encoding, "ignore").split("\n")
    except LookupError:
        rows = raw.decode("utf-8", "ignore").split("\n")  # the reader reports the unknown encoding
    return rows[:-1] if len(raw) == HEAD_BYTES and len(rows) > 1 else rows


def are_tagged(rows: list[str]) -> bool:
    """Whether all rows end with an entity tag."""
    return all(re.search(r"[ \t](O|[BIESMLU]-\S+)\s*$", row) or row.startswith(("-DOCSTART-", "# ")) for row in rows)


def are_word_tags(row: str) -> bool:
    """Whether every word of a row is followed by its tag: 我/r 爱/v [北京/ns 大学/n]nt"""
    pieces = [re.sub(r"\](/?[A-Za-z]+)?$", "", piece) for piece in re.findall(r"[^ \t\r\u3000]+", row)]
    return bool(pieces) and all(WORD_TAG.fullmatch(piece) for piece in pieces)
