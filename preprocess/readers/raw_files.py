"""Reads raw files row by row: decompresses them, detects their encoding and limits the length of a row."""

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

MAX_CHARACTERS = 16 * 2**20  # per row; limits memory use if a file has no line breaks
MAX_HEAD_BYTES = 128 * 2**20  # approximate size of the rows that identify the columns
MAX_DETECTION_BYTES = 64 * 2**20  # read from a file to detect its encoding
SAMPLE = 2**20  # bytes of a file used to choose its encoding
Row = TypeVar("Row")


@contextmanager
def open_bytes(path: str | Path) -> Iterator[BinaryIO]:
    """Opens a file (`with open_bytes(path) as file:`), and decompresses .gz. Raises UserError if it is damaged."""
    with gzip.open(path) if Path(path).suffix.lower() == ".gz" else open(path, "rb") as file:
        try:
            yield cast(BinaryIO, file)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{path}: damaged or not a .gz file ({first_line(error)})") from None


@contextmanager
def open_text(path: str | Path, encoding: str = "auto", newline: str = "\n", report: bool = True) -> Iterator[TextIO]:
    """Opens a text file (`with open_text(path) as file:`) without its byte order mark; only `newline` ends a row.
    report: whether to print a detected encoding. Raises UserError with the row number if a row cannot be decoded."""
    encoding = encoding_of(path, report) if encoding == "auto" else encoding
    with open_bytes(path) as raw:
        try:
            file = io.TextIOWrapper(raw, encoding=encoding, newline=newline)
        except LookupError:
            advice = "try utf-8, gb18030, utf-16 or latin-1"
            raise UserError(f"--encoding {encoding}: unknown encoding; {advice}") from None
        try:
            yield file
        except UnicodeError:
            row = row_of_error(path, encoding)
            advice = "specify the encoding of the file, for example --encoding gb18030"
            name = encoding.removesuffix("-sig")
            raise UserError(f"{path}, row {row}: not valid {name}; {advice}") from None


def encoding_of(path: str | Path, report: bool) -> str:
    """Detects the encoding of a file."""
    state = os.stat(path)
    return find_encoding((str(path),), state.st_size, state.st_mtime_ns, report)


@lru_cache(maxsize=4096)  # files are opened repeatedly, but the detected encoding is printed once
def find_encoding(paths: tuple[str, ...], size: int, changed: int, report: bool) -> str:
    """Detects the common encoding of files: from a byte order mark or zero bytes, else UTF-8 if all are valid, else the
    most plausible one (see encodings.py). size, changed: invalidate the cache if a file changes."""
    sample = b"\n".join(islice((sample_of(path) for path in paths), 10_000))[:SAMPLE]
    if marked := encoding_of_marks(sample):
        if report and len(marked) > len("utf-16"):
            note(f"{paths[0]}: every second byte is 0; read as {marked.upper()} (--encoding overrides)")
        return marked
    if all(decodes(path, "utf-8") for path in paths):
        return "utf-8-sig"
    if all(decodes(path, "cesu-8") for path in paths):
        begin = begin_of(sample.decode("cesu-8", "ignore"), r"\p{L}")
        encoding, language = "cesu-8", "surrogate pairs encoded as UTF-8"
    elif is_damaged_utf8(sample):
        return "utf-8-sig"  # the reader reports the row that is not UTF-8
    else:
        encoding, language, begin = choose_encoding(paths, sample, decodes)
    if report:
        result = f"{encoding.upper()}, which gives {begin!r} ({language}; --encoding overrides)"
        note(f"{paths[0]}: not UTF-8; read as {result}")
    return encoding


def is_utf8(path: str | Path) -> bool:
    """Returns True if the encoding of a file is certain: it is valid UTF-8 or has a byte order mark."""
    return bool(encoding_of_marks(sample_of(str(path)))) or decodes(str(path), "utf-8")


def encoding_of_all(files: list[Path]) -> str:
    """Detects and prints the common encoding of the files that are not UTF-8."""
    paths = tuple(str(file) for file in files if not is_utf8(file))
    state = [os.stat(path) for path in paths]
    return find_encoding(paths, sum(s.st_size for s in state), max(s.st_mtime_ns for s in state), report=True)


def sample_of(path: str) -> bytes:
    with open_bytes(path) as file:
        return file.read(SAMPLE)


def decodes(path: str, encoding: str) -> bool:
    """Returns True if the start of a file is valid in an encoding."""
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
    """Returns the number of the first row that cannot be decoded."""
    decoder, row = codecs.getincrementaldecoder(encoding)(), 1
    with open_bytes(path) as raw, suppress(UnicodeError):
        while piece := raw.readline(2**20):
            decoder.decode(piece)
            row += piece.endswith(b"\n")
    return row


def lines_of(path: str | Path, file: TextIO) -> Iterator[str]:
    """Yields the lines of an open text file, including line breaks."""
    limit = MAX_CHARACTERS
    for number, line in enumerate(iter(partial(file.readline, limit + 1), ""), 1):
        if len(line) > limit:
            reason = f"longer than the limit of {limit:,} characters per row"
            raise UserError(f"{path}, row {number}: {reason}; shorten it, or check the line breaks")
        yield line


def read_rows(path: str | Path, encoding: str = "auto") -> Iterator[tuple[int, str]]:
    """Yields (row number from 1, row). Only a line feed ends a row; U+2028 and U+0085 stay in the text."""
    with open_text(path, encoding) as file:
        for number, row in enumerate(lines_of(path, file), 1):
            if number == 1 and "\r" in row[:-1] and not row.endswith("\n"):
                raise UserError(f"{path}: rows end with carriage returns; save the file with line feeds")
            yield number, row.removesuffix("\n").removesuffix("\r")


def split_words(row: str) -> list[str]:
    """Splits a row at spaces and tabs only. Other whitespace, such as U+00A0, is part of a word."""
    return re.findall(r"[^ \t\r\n]+", row)


def named_rows(path: str | Path, encoding: str = "auto") -> Iterator[tuple[str, str]]:
    """Yields ("PATH, row 1", row) for each non-blank row."""
    return ((f"{path}, row {number}", row) for number, row in read_rows(path, encoding) if row.strip())


def rows_side_by_side(paths: Sequence[Path], encoding: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields (source in the first file, one row of each file). Raises UserError if the numbers of rows differ."""
    for number, rows in enumerate(zip_longest(*(read_rows(path, encoding) for path in paths)), 1):
        if None in rows:
            counts = {path: sum(1 for _ in read_rows(path, encoding)) for path in paths}
            other = next(path for path in paths if counts[path] != counts[paths[0]])
            raise UserError(f"{other}: {counts[other]} rows, but {paths[0].name} has {counts[paths[0]]}")
        yield f"{paths[0]}, row {number}", tuple(row for _, row in rows)


def read_whole(path: Path, encoding: str = "auto") -> str:
    """Reads a small file, one of many in a folder. Keeps the line breaks."""
    with open_text(path, encoding, newline="", report=False) as file:
        text = file.read(MAX_CHARACTERS + 1)
        if len(text) > MAX_CHARACTERS:
            raise UserError(f"{path}: longer than the limit of {MAX_CHARACTERS:,} characters per text")
        return text


def take_head(rows: Iterable[tuple[Any, Row]], limit: int) -> list[tuple[Any, Row]]:
    """Returns the first `limit` items of an iterator of (source, list or dict), or fewer if they are large."""
    head, size = [], 0
    for where, row in rows:
        head.append((where, row))
        values = row.values() if isinstance(row, dict) else row if isinstance(row, list) else ()
        size += sum(100 + len(value) if isinstance(value, str) else 100 for value in values)
        if len(head) == limit or size > MAX_HEAD_BYTES:
            break
    return head


def limit_rows(examples: Iterator[Row], limit: int, source: str | Path) -> Iterator[Row]:
    """Yields the first `limit` examples, or all if `limit` is 0. Prints a message if there are more."""
    if not limit:
        yield from examples
        return
    yield from islice(examples, limit)
    if next(examples, None) is not None:
        note(f"{source}: reading only the first {limit:,} rows (--max_rows)")
