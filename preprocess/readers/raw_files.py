"""Reads raw files as rows of text: decompression, encoding and a limit on row length."""

import codecs
import gzip
import io
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, BinaryIO, TextIO, TypeVar, cast

from engine.errors import UserError
from engine.run.command_line import first_line
from engine.task.signs import encoding_of_marks
from preprocess.readers.archives import note
from preprocess.readers.encodings import begin_of, choose_encoding, is_damaged_utf8

MAX_CHARACTERS = 16 * 2**20  # per row: a file without line ends must not exhaust memory
MAX_HEAD_BYTES = 128 * 2**20  # approximate size of the rows kept to identify columns
MAX_DETECTION_BYTES = 64 * 2**20  # read from a file to detect its encoding
SAMPLE = 2**20  # bytes of a file used to choose its encoding
Row = TypeVar("Row")


@contextmanager
def open_bytes(path: str | Path) -> Iterator[BinaryIO]:
    """`with open_bytes(path) as file:` — decompressed if its name ends in .gz; a UserError if that is damaged."""
    with gzip.open(path) if Path(path).suffix.lower() == ".gz" else open(path, "rb") as file:
        try:
            yield cast(BinaryIO, file)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{path}: damaged or not a .gz file ({first_line(error)})") from None


@contextmanager
def open_text(path: str | Path, encoding: str = "auto", newline: str = "\n", report: bool = True) -> Iterator[TextIO]:
    """`with open_text(path) as file:` — a file as text, without its byte order mark; only `newline` ends a row.

    report: print a guessed encoding. A row that cannot be decoded raises a UserError with its number.
    """
    encoding = encoding_of(path, report) if encoding == "auto" else encoding
    with open_bytes(path) as raw:
        try:
            file = io.TextIOWrapper(raw, encoding=encoding, newline=newline)
        except LookupError:
            unknown = f"--encoding {encoding} is not supported by Python"
            raise UserError(f"{unknown}; try utf-8, gb18030, utf-16 or latin-1") from None
        try:
            yield file
        except UnicodeError:
            row = row_of_error(path, encoding)
            advice = "name the file's encoding, for example --encoding gb18030"
            name = encoding.removesuffix("-sig")
            raise UserError(f"{path}, row {row}: not {name}; {advice}") from None


def encoding_of(path: str | Path, report: bool) -> str:
    """The encoding of a file, detected from its bytes."""
    state = os.stat(path)
    return find_encoding((str(path),), state.st_size, state.st_mtime_ns, report)


@lru_cache(maxsize=4096)  # files are opened repeatedly, but a guessed encoding is printed once
def find_encoding(paths: tuple[str, ...], size: int, changed: int, report: bool) -> str:
    """The common encoding of files: by a byte order mark or zero bytes, UTF-8, or the most plausible one (see
    encodings.py). size, changed: of the files, so that a changed file is not served from the cache."""
    sample = b"\n".join(islice((sample_of(path) for path in paths), 10_000))[:SAMPLE]
    if by_marks := encoding_of_marks(sample):
        if report and len(by_marks) > len("utf-16"):
            note(f"{paths[0]}: every second byte is 0; read as {by_marks.upper()} (--encoding overrides)")
        return by_marks
    if all(decodes(path, "utf-8") for path in paths):
        return "utf-8-sig"
    if all(decodes(path, "cesu-8") for path in paths):
        begin = begin_of(sample.decode("cesu-8", "ignore"), r"\p{L}")
        found, language = "cesu-8", "surrogate pairs encoded as UTF-8"
    elif is_damaged_utf8(sample):
        return "utf-8-sig"  # the reader reports the row that is not UTF-8
    else:
        found, language, begin = choose_encoding(paths, sample, decodes)
    if report:
        known = f"{found.upper()}; its first words are then {begin!r} ({language}; --encoding overrides)"
        note(f"{paths[0]}: not UTF-8; read as {known}")
    return found


def is_utf8(path: str | Path) -> bool:
    """Whether the encoding of a file is certain: it is UTF-8, or has a byte order mark."""
    return bool(encoding_of_marks(sample_of(str(path)))) or decodes(str(path), "utf-8")


def encoding_of_all(files: list[Path]) -> str:
    """Detects and prints the common encoding of the non-UTF-8 files."""
    others = tuple(str(file) for file in files if not is_utf8(file))
    state = [os.stat(path) for path in others]
    return find_encoding(others, sum(s.st_size for s in state), max(s.st_mtime_ns for s in state), report=True)


def sample_of(path: str) -> bytes:
    with open_bytes(path) as file:
        return file.read(SAMPLE)


def decodes(path: str, encoding: str) -> bool:
    """Whether the beginning of a file is valid in an encoding."""
    decoder = codecs.getincrementaldecoder(encoding)()
    with open_bytes(path) as file, suppress(UnicodeError):
        for _ in range(MAX_DETECTION_BYTES // 2**20):
            piece = file.read(2**20)
            decoder.decode(piece, final=not piece)
            if not piece:
                break
        return True
    return False


def row_of_error(path: str | Path, encoding: str) -> int:
    """The number of the first row that cannot be decoded."""
    decoder, row = codecs.getincrementaldecoder(encoding)(), 1
    with open_bytes(path) as raw, suppress(UnicodeError):
        while piece := raw.readline(2**20):
            decoder.decode(piece)
            row += piece.endswith(b"\n")
    return row


def lines_of(path: str | Path, file: TextIO) -> Iterator[str]:
    """Yields the lines of an open text file, with line ends."""
    limit = MAX_CHARACTERS
    for number, line in enumerate(iter(partial(file.readline, limit + 1), ""), 1):
        if len(line) > limit:
            reason = f"longer than {limit:,} characters, the limit of a row"
            raise UserError(f"{path}, row {number}: {reason}; shorten it, or end each row with a line feed")
        yield line


def read_rows(path: str | Path, encoding: str = "auto") -> Iterator[tuple[int, str]]:
    """Yields (row number from 1, row). Only a line feed ends a row: U+2028 and U+0085 remain in texts."""
    with open_text(path, encoding) as file:
        for number, row in enumerate(lines_of(path, file), 1):
            if number == 1 and "\r" in row[:-1] and not row.endswith("\n"):
                raise UserError(f"{path}: its rows end with carriage returns; save it with line feeds")
            yield number, row.removesuffix("\n").removesuffix("\r")


def split_words(row: str) -> list[str]:
    """Splits a row at spaces and tabs only: other whitespace, such as U+00A0, may be in a word or be one."""
    return re.findall(r"[^ \t\r\n]+", row)


def named_rows(path: str | Path, encoding: str = "auto") -> Iterator[tuple[str, str]]:
    """Yields ("PATH, row 1", row) of the non-blank rows."""
    return ((f"{path}, row {number}", row) for number, row in read_rows(path, encoding) if row.strip())


def rows_side_by_side(paths: Sequence[Path], encoding: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields (position in the first file, one row of each file). Raises UserError if the numbers of rows differ."""
    for number, rows in enumerate(zip_longest(*(read_rows(path, encoding) for path in paths)), 1):
        if None in rows:
            counts = {path: sum(1 for _ in read_rows(path, encoding)) for path in paths}
            other = next(path for path in paths if counts[path] != counts[paths[0]])
            raise UserError(f"{other}: {counts[other]} rows, but {paths[0].name} has {counts[paths[0]]}")
        yield f"{paths[0]}, row {number}", tuple(row for _, row in rows)


def read_whole(path: Path, encoding: str = "auto") -> str:
    """The text of a small file, one of many in a folder; line ends are kept."""
    with open_text(path, encoding, newline="", report=False) as file:
        text = file.read(MAX_CHARACTERS + 1)
        if len(text) > MAX_CHARACTERS:
            raise UserError(f"{path}: longer than {MAX_CHARACTERS:,} characters, the limit of a text")
        return text


def take_head(rows: Iterable[tuple[Any, Row]], limit: int) -> list[tuple[Any, Row]]:
    """The first rows of an iterator of (where, list or dict): at most `limit`, fewer if they are large."""
    head, size = [], 0
    for where, row in rows:
        head.append((where, row))
        values = row.values() if isinstance(row, dict) else row if isinstance(row, list) else ()
        size += sum(100 + len(value) if isinstance(value, str) else 100 for value in values)
        if len(head) == limit or size > MAX_HEAD_BYTES:
            break
    return head


def limit_rows(examples: Iterator[Row], limit: int, source: str | Path) -> Iterator[Row]:
    """The first `limit` examples, or all if it is 0; prints a message if there are more."""
    if not limit:
        yield from examples
        return
    yield from islice(examples, limit)
    if next(examples, None) is not None:
        note(f"{source}: only the first {limit:,} rows are read (--max_rows)")
