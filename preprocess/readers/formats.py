"""Readers of raw files, one per format, and format detection.

A reader is a generator of examples (see preprocess/example.py). `text_pair`, `id` and `split` are optional keys. The
larger readers are in tables.py, objects.py, tagged.py and folders.py. To add a format, write a reader and add one line
to READERS.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from engine.errors import UserError
from engine.task.signs import LABEL_NAMES, TEXT_NAMES, alike, inline_syntax
from engine.task.tags import USUAL, notation_of
from preprocess.example import Example, shown
from preprocess.readers.beside import class_files, classes_of, label_file_of, read_beside, read_class_files
from preprocess.readers.columns import NUMBER_NAMES, OTHER_LABEL_NAMES
from preprocess.readers.conll import CONLL_2012, GLOBAL_COLUMNS, NO_COMMENTS, read_conll, read_conllu, split_row
from preprocess.readers.folders import class_folders, is_brat, read_brat, read_classes
from preprocess.readers.inline import is_rasa, read_inline, read_rasa
from preprocess.readers.objects import read_dataset, read_json, read_jsonl, read_parquet
from preprocess.readers.options import Reader, ReadOptions
from preprocess.readers.raw_files import encoding_of, named_rows, open_bytes, read_rows, split_words
from preprocess.readers.tables import read_csv, read_tsv, read_xlsx
from preprocess.readers.tagged import WORD_TAG, pieces_of, read_sentence_rows, read_seq, read_word_tags, row_form
from preprocess.readers.token_rows import TAG_NAMES, TOKEN_NAMES, are_bare_tags, plain_name
from preprocess.readers.webanno import FORMAT as WEBANNO
from preprocess.readers.webanno import read_webanno

FASTTEXT = "__label__"
USUAL_LABELS = [*LABEL_NAMES, *NUMBER_NAMES, *OTHER_LABEL_NAMES]
CONLLU_ROW = re.compile(r"#|\d+([-.]\d+)?(\t[^\t]+){9}$")
HEAD_BYTES = 2**16  # first bytes of a file, used to detect its format


def read_txt(path: Path, options: ReadOptions) -> Iterator[Example]:
    """Reads one text per row, without labels."""
    for number, row in read_rows(path, options.encoding):
        yield {"_where": f"{path}, row {number}", "text": row}


def read_fasttext(path: Path, options: ReadOptions) -> Iterator[Example]:
    """Reads fastText rows, `__label__NAME a text`. The task is multilabel if any row has several labels."""
    several = any(len(fasttext_labels(row)[1]) > 1 for _, row in named_rows(path, options.encoding))
    for where, row in named_rows(path, options.encoding):
        text, labels = fasttext_labels(row)
        yield {"_where": where, "text": text, "label": labels if several and labels else next(iter(labels), None)}


def fasttext_labels(row: str) -> tuple[str, list[str]]:
    """Splits a fastText row into (text, labels). The labels come before or after the text."""
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
TEXT_SUFFIXES = ("", ".txt")
CONLL_SUFFIXES = (".conll", ".bio", ".bioes", ".bmes", ".iob", ".iob2")
READERS: dict[str, Reader] = {
    "txt": read_txt,
    "csv": read_csv,
    "tsv": read_tsv,
    "xlsx": read_xlsx,
    "jsonl": read_jsonl,
    "json": read_json,
    "parquet": read_parquet,
    "conll": read_conll,
    "conllu": read_conllu,
    "word_tags": read_word_tags,
    "sentence_rows": read_sentence_rows,
    "fasttext": read_fasttext,
    "seq": read_seq,
    "classes": read_classes,
    "class_files": read_class_files,
    "beside": read_beside,
    "brat": read_brat,
    "hf": read_dataset,
    "rasa": read_rasa,
    "inline": read_inline,
    "webanno": read_webanno,
}
FOLDERS = ("seq", "classes", "class_files", "brat")  # formats of folders


def suffix_of(path: Path) -> str:
    """Returns the suffix that determines the format, in lower case (.csv for data.csv.gz)."""
    return (Path(path.stem) if path.suffix.lower() == ".gz" else path).suffix.lower()


def find_format(path: Path, options: ReadOptions) -> str:
    """Returns the name of the reader for a file or folder: --format, or else detected from its name and first rows."""
    if options.format not in ("auto", *READERS):
        raise UserError(f"--format {options.format} is not one of: auto, {', '.join(READERS)}")
    if options.format in FOLDERS and not path.is_dir():
        raise UserError(f"{path}: --format {options.format} reads a folder; set --input to its path")
    if options.format != "auto":
        return options.format
    if path.is_dir():
        if (path / "seq.in").exists():
            return "seq"
        if is_brat(path) or len(class_folders(path)) > 1:
            return "brat" if is_brat(path) else "classes"
        return "class_files" if classes_of(class_files(path)) else "hf"
    suffix = suffix_of(path)
    if options.delimiter and suffix not in SUFFIXES:
        return "csv"
    if suffix == ".xls":
        raise UserError(f"{path}: .xls files are not supported; save it as .xlsx or CSV")
    if suffix in SUFFIXES and suffix != ".tsv":
        return SUFFIXES[suffix]
    rows = head_of(path, options.encoding)
    if options.comment not in ("", NO_COMMENTS):
        rows = [row for row in rows if not row.startswith(options.comment)]
    if suffix == ".tsv":
        return tokens_of(path, rows, options, may_be_table=True) or "tsv"
    if suffix in CONLL_SUFFIXES or options.token_column or options.tag_column:
        return format_of_tokens(rows, may_be_table=False) or "conll"
    if label_file_of(path):
        return "beside"
    detected = format_of_rows(rows) if options.labelled else format_of_texts(path, rows, options)
    if detected and (detected != "txt" or suffix in TEXT_SUFFIXES):
        return detected
    is_table = "if it is a table, add --delimiter (' ': a label, then the text)"
    hint = is_table if options.labelled else f"texts end in .txt, {', '.join(SUFFIXES)}"
    raise UserError(f"{path}: unknown format; specify it with --format {{{','.join(READERS)}}}; {hint}")


def find_form(path: Path) -> str | None:
    """Detects the labelled format of a file from its first rows, or returns None."""
    return format_of_rows(head_of(path, "auto"))


def format_of_texts(path: Path, rows: list[str], options: ReadOptions) -> str:
    """Detects the format of a file whose labels are not needed (default: txt). Raises UserError if it is ambiguous."""
    head = [row for row in rows if row.strip()] or [""]
    detected = format_of_rows(rows) or "txt"
    cells = [name.strip() for name in re.split("\t" if "\t" in head[0] else "[,;|]", head[0])]
    named = not options.header or (len(cells) > 1 and bool(alike(["tokens", *TEXT_NAMES], cells)))
    alternatives = {
        "word_tags": all(len(row.split()) == 1 for row in head) and "word/tag",
        "tsv": not named and len(head) > 1 == len({row.count("\t") for row in head}) and "columns between tabs",
        "txt": (named and f"a table, as row 1 is {shown(head[0])}")
        or (are_bare_tokens(rows) and "one token per row (--token_column 0)"),
    }
    if alternatives.get(detected):
        advice = "add --format txt for one text per row, or --format word_tags, tsv or csv (with --text_column)"
        raise UserError(f"{path}: rows could be texts or {alternatives[detected]}; {advice}")
    if detected in ("conll", "conllu", "sentence_rows"):
        return tokens_of(path, rows, options, may_be_table="\t" in head[0]) or "txt"
    is_text = {"jsonl": not all(row.startswith("{") for row in head), "tsv": not named}
    return "txt" if is_text.get(detected) else detected


def format_of_rows(rows: list[str]) -> str | None:
    """Detects the labelled format of the first rows of a file, or returns None."""
    head = [row for row in rows if row.strip()] or [""]
    names = [name.strip() for name in re.split("[,;|]", head[0])]
    tokens = format_of_tokens(rows, may_be_table="\t" in head[0])
    evidence: dict[str | None, Callable[[], object]] = {
        "rasa": lambda: is_rasa(head),
        "json": lambda: re.match(r"\[\s*([\[{]|$)|\{\s*$", head[0]),
        "jsonl": lambda: re.match(r"\{(?!\{)", head[0]),
        "fasttext": lambda: all(fasttext_labels(row)[1] for row in head),
        tokens: lambda: tokens,
        "word_tags": lambda: all(map(are_word_tags, head)),
        "tsv": lambda: "\t" in head[0],
        "csv": lambda: "_!_" in head[0] or (alike(TEXT_NAMES, names) and alike(USUAL_LABELS, names)),
        "inline": lambda: inline_syntax(head),
    }
    return next((name for name, fits in evidence.items() if fits()), None)


def format_of_tokens(rows: list[str], may_be_table: bool) -> str | None:
    """Detects the format of rows with one tag per word, or returns None. may_be_table: if True, requires more evidence
    (blank rows between sentences, or one word per row)."""
    head = [row for row in rows if row.strip()]
    if not head:
        return None
    if head[0].startswith(WEBANNO):
        return "webanno"
    is_conllu = all(map(CONLLU_ROW.match, head)) and any(row[0].isdigit() for row in head)
    if head[0].startswith(GLOBAL_COLUMNS) or (is_conllu and not head[0].startswith("##")):
        return "conllu"
    if head[0].startswith(CONLL_2012):
        return "conll"
    if row_form([row for row in head if not row.startswith("#")] or head):
        return "sentence_rows"
    blank = any(not row.strip() for row in rows[:-1])
    if are_tagged(head) and (blank or not may_be_table or are_single_words(head)):
        return "conll"
    return "conll" if blank and are_tagged(head, bare=True) else None


def tokens_of(path: Path, rows: list[str], options: ReadOptions, may_be_table: bool) -> str | None:
    """Returns the format of rows of tokens with tags, or None for tables and texts. If labels are not needed, requires
    blank rows between sentences or entity tags as evidence."""
    detected = format_of_tokens(rows, may_be_table)
    if options.labelled:
        return detected
    rows = rows if rows[-1].strip() else rows[:-1]
    head = [row for row in rows if row.strip()]
    widths = {len(split_row(row)) for row in [row for row in head if not row.startswith("#")] or head}
    if detected != "conll" or options.token_column:
        return detected
    if len(widths - {1}) != 1:
        return None
    tags = [USUAL.parse(split_row(row)[-1].strip()) for row in head]
    if len(head) == len(rows) and not any(tag and tag.letter in "BS" for tag in tags):
        problem = "rows could be tokens with tags, or texts that end with O"
        raise UserError(f"{path}: {problem}; add --token_column 0 for tokens, or save texts as .csv or .jsonl")
    return detected


def head_of(path: Path, encoding: str) -> list[str]:
    """Returns the first complete rows of a file."""
    with open_bytes(path) as file:
        raw = file.read(HEAD_BYTES)
    encoding = encoding_of(path, report=False) if encoding == "auto" else encoding
    try:
        rows = raw.decode(encoding, "ignore").split("\n")
    except LookupError:
        rows = raw.decode("utf-8", "ignore").split("\n")  # the reader reports the unknown encoding
    return rows[:-1] if len(raw) == HEAD_BYTES and len(rows) > 1 else rows


def are_tagged(rows: list[str], bare: bool = False) -> bool:
    """Returns True if rows are tokens with tags, possibly with a header and comments. bare: also accept entity types
    without prefixes and O in the last column, as in `Anna PERSON`."""
    rows = [row for row in rows if not row.startswith(("-DOCSTART-", "#"))] or rows
    table = [split_row(row) for row in rows]
    titles = [plain_name(cell) for cell in table[0]] if not bare else []
    if len(table) > 1 and {*titles} & {*TOKEN_NAMES} and {*titles} & {*TAG_NAMES}:
        table = table[1:]
    if not all(len(cells) > 1 for cells in table):
        table = [cells for cells in table if len(cells) != 1]  # drops intent rows
        if len(table) < 0.5 * len(rows):
            return False
    last = [cells[-1].strip() for cells in table]
    widths = {len(cells) for cells in table}
    if bare:
        return len(widths) == 1 and are_bare_tags(last)
    if notation_of(last):
        return True
    columns = list(zip(*table))[1:-1] if len(widths) == 1 else []
    return any(notation_of(map(str.strip, cells)) and len({*cells}) > 1 for cells in columns)


def are_bare_tokens(rows: list[str]) -> bool:
    """Returns True if each row is one word, mostly short, with blank rows between sentences."""
    words = [row.strip() for row in rows if row.strip()]
    blank = any(not row.strip() for row in rows[: len(rows) - 2])
    return (
        blank and len(words) > 3 and all(len(w.split()) == 1 for w in words) and sum(map(len, words)) < 10 * len(words)
    )


def are_single_words(rows: list[str]) -> bool:
    """Returns True if the first cell of each row is a word."""
    return len(rows) > 1 and all(len(split_words(row.split("\t")[0])) < 2 for row in rows)


def are_word_tags(row: str) -> bool:
    """Returns True if every word of a row has a tag after a slash: 我/r 爱/v [北京/ns 大学/n]nt."""
    pieces = pieces_of(row)
    return bool(pieces) and all(map(WORD_TAG.fullmatch, pieces))
