"""Reads raw files as rows of text: decompression, encoding, and a limit on the length of a row."""

import codecs
import gzip
import io
import os
import zlib
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path

import regex

from engine.errors import UserError
from engine.run.command_line import first_line

MOST_CHARACTERS = 16 * 2**20  # of one row: a file without line ends must not fill the memory
MOST_OF_HEAD = 128 * 2**20  # approximate bytes of the first rows, which are kept to identify columns
LOOKED_AT = 64 * 2**20  # bytes of a file that are read to detect its encoding
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
CHINESE = regex.compile(r"[\p{Han}\u3000-\u303f\uff00-\uffef\u2014\u2018-\u201d\u2026\u00b7]")
# These make up a few percent of any Chinese text, but not of Korean or Greek bytes decoded as GB18030.
COMMON = set(
    "的一是不了在有人我他这中大来上个国到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后小么心多天而能好都"
    "然没日于起还发成事只作当想看文无开手十用主行方又如前所本见经头面公同三已老从动两长"
)


class Unpacked(gzip.GzipFile):
    """A .gz file that raises UserError if it is damaged."""

    def read(self, size=-1):
        return self.checked(super().read, size)

    def read1(self, size=-1):
        return self.checked(super().read1, size)

    def checked(self, read, size):
        try:
            return read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{self.name}: damaged or not a .gz file ({first_line(error)})") from None


def open_bytes(path):
    """Opens a file as bytes, decompressed if its name ends in .gz."""
    return Unpacked(path, "rb") if Path(path).suffix.lower() == ".gz" else open(path, "rb")


def open_text(path, encoding="auto", newline="\n", tell=True):
    """Opens a file as text, without a byte order mark; only `newline` ends a row. tell: whether to print a guessed
    encoding."""
    if encoding == "auto":
        encoding = encoding_of(path, tell)
    try:
        return io.TextIOWrapper(open_bytes(path), encoding=encoding, newline=newline)
    except LookupError:
        unknown = f"--encoding {encoding} is not supported by Python"
        raise UserError(f"{unknown}; try utf-8, gb18030, utf-16 or latin-1") from None


def encoding_of(path, tell):
    """The encoding of a file, detected from its bytes."""
    state = os.stat(path)
    return find_encoding(str(path), state.st_size, state.st_mtime_ns, tell)


@lru_cache(maxsize=4096)  # a file is opened more than once, but its guessed encoding is printed once
def find_encoding(path, size, changed, tell):
    """UTF-16 if there is a byte order mark, otherwise UTF-8; GB18030 if the bytes are not UTF-8 but Chinese text in
    GB18030. size, changed: of the file, so that a changed file is not served from the cache."""
    with open_bytes(path) as file:
        if file.read(2) in UTF16_MARKS:
            return "utf-16"
    if decodes(path, "utf-8"):
        return "utf-8-sig"
    with open_bytes(path) as file:
        sample = file.read(2**20).decode("gb18030", "ignore")
    if not looks_chinese(sample) or not decodes(path, "gb18030"):
        return "utf-8-sig"  # the reader reports the row that is not UTF-8
    if tell:
        shown = "".join(CHINESE.findall(sample))[:12]
        print(f"{path}: not UTF-8; read as GB18030, in which it begins with {shown!r} (--encoding overrides)")
    return "gb18030"


def decodes(path, encoding):
    """Whether the beginning of a file is valid in an encoding."""
    decoder = codecs.getincrementaldecoder(encoding)()
    with open_bytes(path) as file:
        for _ in range(LOOKED_AT // 2**20):
            piece = file.read(2**20)
            try:
                decoder.decode(piece, final=not piece)
            except UnicodeError:
                return False
            if not piece:
                break
    return True


def looks_chinese(text):
    """Whether text decoded as GB18030 looks like Chinese, which text in another encoding is unlikely to do."""
    foreign = [letter for letter in text if not letter.isascii()]
    chinese = [letter for letter in foreign if CHINESE.match(letter)]
    han = "".join(letter for letter in chinese if regex.match(r"\p{Han}", letter))
    if not han or len(chinese) < 0.95 * len(foreign) or any(ord(c) < 32 and c not in "\t\r\n\x0b\x0c" for c in text):
        return False
    simplified = len(han.encode("gb2312", "ignore")) // 2
    common = sum(letter in COMMON for letter in han)
    return simplified >= 0.9 * len(han) and (len(han) < 40 or common >= 0.04 * len(han))


def undecodable(path, file):
    """The UserError for a file that cannot be decoded; it names the row."""
    decoder, row = codecs.getincrementaldecoder(file.encoding)(), 1
    with open_bytes(path) as raw, suppress(UnicodeError):
        while piece := raw.readline(2**20):
            decoder.decode(piece)
            row += piece.endswith(b"\n")
    advice = "name the file's encoding, for example --encoding gb18030"
    return UserError(f"{path}, row {row}: not {file.encoding}; {advice}")


def lines_of(path, file):
    """The lines of an open text file, with line ends, one at a time."""
    most = MOST_CHARACTERS
    for number, line in enumerate(iter(partial(file.readline, most + 1), ""), 1):
        if len(line) > most:
            reason = f"longer than {most:,} characters, the limit of a row"
            raise UserError(f"{path}, row {number}: {reason}; shorten it, or end each row with a line feed")
        yield line


def read_rows(path, encoding="auto"):
    """Yields (row number from 1, row). Only a line feed ends a row: U+2028 and U+0085 stay in texts."""
    with open_text(path, encoding) as file:
        try:
            for number, row in enumerate(lines_of(path, file), 1):
                yield number, row.removesuffix("\n").removesuffix("\r")
        except UnicodeError:
            raise undecodable(path, file) from None


def read_whole(path, encoding="auto"):
    """(text, encoding) of a small file, one of many in a folder; its line ends are kept."""
    with open_text(path, encoding, newline="", tell=False) as file:
        try:
            text = file.read(MOST_CHARACTERS + 1)
        except UnicodeError:
            raise undecodable(path, file) from None
        if len(text) > MOST_CHARACTERS:
            raise UserError(f"{path}: longer than {MOST_CHARACTERS:,} characters, the limit of a text")
        return text, file.encoding


def first_of(rows, most):
    """The first rows of an iterator of (where, list or dict): at most `most`, fewer if they are large."""
    head, size = [], 0
    for where, row in rows:
        head.append((where, row))
        values = row.values() if isinstance(row, dict) else row if isinstance(row, list) else ()
        size += sum(100 + len(value) if isinstance(value, str) else 100 for value in values)
        if len(head) == most or size > MOST_OF_HEAD:
            break
    return head


def some(names, most=12):
    """The first of many names, for a message on one line."""
    names = [str(name) if str(name).isprintable() else repr(name) for name in names]
    return ", ".join(names[:most]) + (f", … ({len(names) - most:,} more)" if len(names) > most else "")
