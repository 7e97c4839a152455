"""The options for reading files of texts, declared once for all commands that read such files."""

from dataclasses import dataclass, fields
from functools import partial

from engine.errors import UserError
from engine.run.command_line import option

NO_QUOTES = "none"  # the value of --quotechar for files whose quotes are ordinary characters
reading = partial(option, resume_safe=True)  # how other files are read does not affect a run's result


@dataclass(frozen=True)
class ReadingOptions:
    """Options for reading texts from files. The output of labelling depends on each of them."""

    format: str = reading(
        "auto",
        "format of the input, such as csv, jsonl or conll, or txt for one text per row; "
        "auto: detected from file names and first rows",
        group="how files are read",
    )
    encoding: str = reading("auto", "encoding of the input: auto (UTF-8, or detected), gb18030, big5, cp1252, …")
    delimiter: str = reading("", "delimiter of tables, such as ';', '|', '_!_' (default: detected)")
    quotechar: str = reading("", 'character that quotes cells of tables (default: " in CSV); none: quotes are text')
    header: bool = reading(True, "the first row of a table names its columns; with --no_header they are called 0, 1, …")
    sheet: str = reading("", "sheet of an Excel workbook with several sheets")
    text_column: str = reading("", "column or key of the text (default: found by name)")
    text_pair_column: str = reading("", "column or key of the second text of a pair")
    join_columns: str = reading("", "columns or keys, comma-separated, whose texts are joined: title,body")
    token_column: str = reading("", "column of the tokens, by name or number, where each row is one token")
    sentence_column: str = reading("", "column whose value changes where a sentence begins (default: blank rows)")
    sentence_end: str = reading("", "tokens that end a sentence, such as '. ! ?', if nothing else marks its end")
    comment: str = reading("", "prefix of rows to skip between tokens (default: #, if not a token; none: keep all)")
    rows_key: str = reading("", "path to the rows in a JSON file with a single object, such as data.items")
    shape: str = reading("auto", "shape of JSON objects, a name in preprocess/readers/shapes.py; none: only usual keys")

    def check_reading(self) -> None:
        """Raises UserError for an invalid delimiter or quote character."""
        if set(unescaped(self.delimiter)) & {self.quotechar or '"', "\n", "\r"}:
            raise UserError(f"--delimiter={self.delimiter!r} cannot be a delimiter: it quotes cells or ends a row")
        if len(self.quotechar) > 1 and self.quotechar != NO_QUOTES:
            raise UserError(f"--quotechar={self.quotechar!r} must be one character, or {NO_QUOTES}: quotes are text")


READING = tuple(f.name for f in fields(ReadingOptions))


def unescaped(text: str) -> str:
    r"""Replaces \t and \n in an option, which a shell leaves unchanged, by a tab and a line break."""
    for escape, character in ((r"\t", "\t"), (r"\n", "\n"), (r"\r", "\r")):
        text = text.replace(escape, character)
    return text
