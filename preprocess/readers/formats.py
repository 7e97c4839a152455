"""The formats of raw files: the reader of each format, and the evidence by which it is detected.

A reader is a generator of examples (see preprocess/example.py). `text_pair`, `id` and `split` are optional keys. The
larger readers are in tables.py, objects.py, tagged.py and folders.py. To add a format, write a reader and add one line
to FORMATS.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from engine.errors import UserError
from engine.task.signs import LABEL_NAMES, TEXT_NAMES, alike, inline_syntax
from engine.task.tags import USUAL, notation_of
from preprocess.example import Example, shown
from preprocess.readers.columns import NUMBER_NAMES, OTHER_LABEL_NAMES
from preprocess.readers.conll import CONLL_2012, GLOBAL_COLUMNS, NO_COMMENTS, read_conll, read_conllu, split_row
from preprocess.readers.folders import class_folders, is_brat, read_brat, read_classes
from preprocess.readers.inline import is_rasa, read_inline, read_rasa
from preprocess.readers.label_files import class_files, classes_of, label_file_of, read_class_files, read_labelled_texts
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
TEXT_SUFFIXES = ("", ".txt")
CONLL_SUFFIXES = (".conll", ".bio", ".bioes", ".bmes", ".iob", ".iob2")  # of all TOKEN_FORMATS


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


# ---- evidence in the first rows ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileHead:
    """The first rows of a file, and the properties of its name and the options that determine its format."""

    path: Path
    options: ReadOptions

    @cached_property
    def suffix(self) -> str:
        return suffix_of(self.path)

    @cached_property
    def rows(self) -> list[str]:
        """The first complete rows, without rows that --comment skips."""
        with open_bytes(self.path) as file:
            raw = file.read(HEAD_BYTES)
        encoding, comment = self.options.encoding, self.options.comment
        try:
            text = raw.decode(encoding_of(self.path, report=False) if encoding == "auto" else encoding, "ignore")
        except LookupError:
            text = raw.decode("utf-8", "ignore")  # the reader reports the unknown encoding
        rows = text.split("\n")
        rows = rows[:-1] if len(raw) == HEAD_BYTES and len(rows) > 1 else rows
        return rows if comment in ("", NO_COMMENTS) else [row for row in rows if not row.startswith(comment)]

    @cached_property
    def filled(self) -> list[str]:
        """The rows that are not blank, or [""] if there are none."""
        return [row for row in self.rows if row.strip()] or [""]

    @property
    def first(self) -> str:
        return self.filled[0]

    @cached_property
    def uncommented(self) -> list[str]:
        """The filled rows that do not start with #, or all if each does."""
        return [row for row in self.filled if not row.startswith("#")] or self.filled

    @property
    def has_tokens(self) -> bool:
        """Whether the suffix or an option shows that each row is a token with its tags."""
        by_suffix = self.suffix in CONLL_SUFFIXES
        return self.suffix != ".tsv" and bool(by_suffix or self.options.token_column or self.options.tag_column)

    @property
    def may_be_table(self) -> bool:
        return self.suffix == ".tsv" or (not self.has_tokens and "\t" in self.first)

    @property
    def may_be_texts(self) -> bool:
        """Whether the rows can be plain texts, because labels are not needed."""
        return not (self.options.labelled or self.has_tokens or self.options.token_column)

    @property
    def names_texts(self) -> bool:
        """Whether the first row is a header with a usual name of a text column."""
        cells = [name.strip() for name in re.split("\t" if "\t" in self.first else "[,;|]", self.first)]
        return not self.options.header or (len(cells) > 1 and bool(alike(["tokens", *TEXT_NAMES], cells)))


def is_csv(head: FileHead) -> bool:
    names = [name.strip() for name in re.split("[,;|]", head.first)]
    return "_!_" in head.first or bool(alike(TEXT_NAMES, names) and alike(USUAL_LABELS, names))


def is_conllu(head: FileHead) -> bool:
    are_rows = all(map(CONLLU_ROW.match, head.filled)) and any(row[0].isdigit() for row in head.filled)
    return head.first.startswith(GLOBAL_COLUMNS) or (are_rows and not head.first.startswith("##"))


def is_conll(head: FileHead) -> bool:
    """Returns True for one token with its tags per row. A possible table needs more evidence: blank rows between
    sentences, or one word per row."""
    blank = any(not row.strip() for row in head.rows[:-1])
    is_clear = blank or not head.may_be_table or are_single_words(head.filled)
    tagged = (is_clear and are_tagged(head.filled)) or (blank and are_tagged(head.filled, bare=True))
    return head.first.startswith(CONLL_2012) or tagged


def lack_width(head: FileHead) -> bool:
    """Returns True if the rows are not split into the same number of cells, two or more."""
    return len({len(split_row(row)) for row in head.uncommented} - {1}) != 1


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


# ---- other interpretations of the rows if labels are not needed ----------------------------------------------------

TEXTS = "add --format txt for one text per row, or --format word_tags, tsv or csv (with --text_column)"
TOKENS = "add --token_column 0 for tokens, or save texts as .csv or .jsonl"


def doubt_of_words(head: FileHead) -> str:
    return f"texts or word/tag; {TEXTS}" if all(len(row.split()) == 1 for row in head.filled) else ""


def doubt_of_columns(head: FileHead) -> str:
    are_even = len(head.filled) > 1 == len({row.count("\t") for row in head.filled})
    return f"texts or columns between tabs; {TEXTS}" if are_even and not head.names_texts else ""


def doubt_of_tokens(head: FileHead) -> str:
    """Returns a problem if neither blank rows nor the start of an entity show that the rows are tokens."""
    tags = [USUAL.parse(split_row(row)[-1].strip()) for row in head.filled]
    blank = any(not row.strip() for row in head.rows[:-1])
    is_clear = blank or any(tag and tag.letter in "BS" for tag in tags)
    return "" if is_clear or lack_width(head) else f"tokens with tags, or texts that end with O; {TOKENS}"


def doubt_of_texts(head: FileHead) -> str:
    if head.names_texts:
        return f"texts or a table, as row 1 is {shown(head.first)}; {TEXTS}"
    return f"texts or one token per row (--token_column 0); {TEXTS}" if are_bare_tokens(head.rows) else ""


# ---- the table -----------------------------------------------------------------------------------------------------


def never(_: object) -> str:
    return ""


class Format(NamedTuple):
    """A format. It is detected by the first of: its suffix, the content of a folder, and the first rows of a file."""

    read: Reader
    suffixes: tuple[str, ...] = ()
    folder: Callable[[Path], object] = never  # whether a folder has this format
    rows: Callable[[FileHead], object] = never  # whether the first rows have this format
    # If labels are not needed, rows with this evidence can also be plain texts:
    texts: Callable[[FileHead], object] = never  # whether they are
    doubt: Callable[[FileHead], str] = never  # why this is unclear, or ""


FORMATS: dict[str, Format] = {  # in the order in which the evidence is tested
    "seq": Format(read_seq, folder=lambda path: (path / "seq.in").exists()),
    "brat": Format(read_brat, folder=is_brat),
    "classes": Format(read_classes, folder=lambda path: len(class_folders(path)) > 1),
    "class_files": Format(read_class_files, folder=lambda path: classes_of(class_files(path))),
    "hf": Format(read_dataset, folder=lambda path: True),
    "parquet": Format(read_parquet, (".parquet",)),
    "xlsx": Format(read_xlsx, (".xlsx",)),
    "beside": Format(read_labelled_texts, rows=lambda head: label_file_of(head.path)),
    "rasa": Format(read_rasa, rows=lambda head: is_rasa(head.filled)),
    "json": Format(read_json, (".json",), rows=lambda head: re.match(r"\[\s*([\[{]|$)|\{\s*$", head.first)),
    "jsonl": Format(
        read_jsonl,
        (".jsonl", ".ndjson"),
        rows=lambda head: re.match(r"\{(?!\{)", head.first),
        texts=lambda head: not all(row.startswith("{") for row in head.filled),
    ),
    "fasttext": Format(read_fasttext, rows=lambda head: all(fasttext_labels(row)[1] for row in head.filled)),
    "webanno": Format(read_webanno, rows=lambda head: head.first.startswith(WEBANNO)),
    "conllu": Format(read_conllu, (".conllu",), rows=is_conllu),
    "sentence_rows": Format(
        read_sentence_rows, rows=lambda head: not head.first.startswith(CONLL_2012) and row_form(head.uncommented)
    ),
    "conll": Format(read_conll, rows=is_conll, texts=lack_width, doubt=doubt_of_tokens),
    "word_tags": Format(read_word_tags, rows=lambda head: all(map(are_word_tags, head.filled)), doubt=doubt_of_words),
    "tsv": Format(
        read_tsv,
        (".tsv",),
        rows=lambda head: "\t" in head.first,
        texts=lambda head: not head.names_texts,
        doubt=doubt_of_columns,
    ),
    "csv": Format(read_csv, (".csv",), rows=is_csv),
    "inline": Format(read_inline, rows=lambda head: inline_syntax(head.filled)),
    "txt": Format(read_txt, rows=lambda head: head.may_be_texts, doubt=doubt_of_texts),
}
FOLDERS = ("seq", "classes", "class_files", "brat")  # formats of folders
TOKEN_FORMATS = ("webanno", "conllu", "sentence_rows", "conll")  # with one tag per token


def suffix_of(path: Path) -> str:
    """Returns the suffix that determines the format, in lower case (.csv for data.csv.gz)."""
    return (Path(path.stem) if path.suffix.lower() == ".gz" else path).suffix.lower()


def format_of_suffix(suffix: str) -> str:
    return next((name for name, known in FORMATS.items() if suffix in known.suffixes), "")


def is_table(path: Path) -> bool:
    """Returns True if the suffix of a file determines a format other than plain texts."""
    return bool(format_of_suffix(suffix_of(path))) or suffix_of(path) in CONLL_SUFFIXES


def is_labelled(path: Path) -> bool:
    """Returns True if the first rows of a file have a labelled format."""
    return bool(format_of_rows(FileHead(path, ReadOptions(labelled=True)), FORMATS, ""))


def find_format(path: Path, options: ReadOptions) -> str:
    """Returns the name of the format of a file or folder: --format, or else detected from its name and first rows."""
    if options.format not in ("auto", *FORMATS):
        raise UserError(f"--format {options.format} is not one of: auto, {', '.join(sorted(FORMATS))}")
    if options.format in FOLDERS and not path.is_dir():
        raise UserError(f"{path}: --format {options.format} reads a folder; set --input to its path")
    if options.format != "auto":
        return options.format
    if path.is_dir():
        return next(name for name, known in FORMATS.items() if known.folder(path))
    head = FileHead(path, options)
    by_suffix = format_of_suffix(head.suffix)
    if options.delimiter and not by_suffix:
        return "csv"
    if head.suffix == ".xls":
        raise UserError(f"{path}: .xls files are not supported; save it as .xlsx or CSV")
    if by_suffix not in ("", "tsv"):
        return by_suffix
    if by_suffix or head.has_tokens:
        return format_of_rows(head, TOKEN_FORMATS, by_suffix or "conll")
    names = sorted(FORMATS, key=lambda name: name == "txt")  # plain texts have no evidence, so they are last
    detected = format_of_rows(head, names, "txt" if head.may_be_texts else "")
    if detected and (detected != "txt" or head.suffix in TEXT_SUFFIXES):
        return detected
    table = "if it is a table, add --delimiter (' ': a label, then the text)"
    suffixes = [suffix for known in FORMATS.values() for suffix in known.suffixes]
    hint = table if options.labelled else f"texts end in .txt, {', '.join(suffixes)}"
    raise UserError(f"{path}: unknown format; specify it with --format {{{','.join(sorted(FORMATS))}}}; {hint}")


def format_of_rows(head: FileHead, names: Iterable[str], default: str) -> str:
    """Returns the first of these formats whose evidence is in the first rows. Returns `default` if there is none, or if
    labels are not needed and the rows are plain texts. Raises UserError if that is unclear."""
    name = next((name for name in names if FORMATS[name].rows(head)), "")
    if not name or not head.may_be_texts:
        return name or default
    if doubt := FORMATS[name].doubt(head):
        raise UserError(f"{head.path}: rows could be {doubt}")
    return default if FORMATS[name].texts(head) else name
