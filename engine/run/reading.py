"""The options for reading text files, shared by all commands that read them."""

from dataclasses import dataclass, fields
from functools import partial

from engine.errors import UserError
from engine.run.command_line import option

NO_QUOTES = "none"  # value of --quotechar if quotes are ordinary characters
reading = partial(option, resume_safe=True)  # training reads processed data, so these do not affect its result


@dataclass(frozen=True)
class ReadingOptions:
    """Options for reading texts from files. All of them affect the output of labelling."""

    format: str = reading(
        "auto",
        "format of the input, such as csv, jsonl or conll, or txt for one text per row; "
        "auto: detected from file names and first rows",
        group="reading files",
    )
    encoding: str = reading("auto", "encoding of the input: auto (UTF-8, or detected), gb18030, big5, cp1252, …")
    delimiter: str = reading("", "delimiter of tables, such as ';', '|', '_!_' (default: detected)")
    quotechar: str = reading("", 'character that quotes cells of tables (default: " in CSV); none: quotes are text')
    header: bool = reading(True, "the first row of a table has column names; with --no_header they are named 0, 1, …")
    sheet: str = reading("", "sheet of an Excel workbook with several sheets")
    text_column: str = reading("", "column or key of the text (default: detected from the names)")
    text_pair_column: str = reading("", "column or key of the second text of a pair")
    join_columns: str = reading("", "columns or keys whose texts are joined, comma-separated: title,body")
    token_column: str = reading("", "column of the tokens, by name or number, if each row is one token")
    sentence_column: str = reading("", "column whose value changes at each new sentence (default: blank rows)")
    sentence_end: str = reading("", "tokens that end a sentence, such as '. ! ?', if nothing else marks its end")
    comment: str = reading("", "prefix of comment rows between tokens (default: #, unless a token; none: no comments)")
    rows_key: str = reading("", "path to the rows in a JSON file with a single object, such as data.items")
    shape: str = reading(
        "auto", "layout of JSON objects, a name in preprocess/readers/shapes.py; none: common keys only"
    )

    def check_reading(self) -> None:
        """Raises UserError for an invalid delimiter or quote character."""
        if set(unescaped(self.delimiter)) & {self.quotechar or '"', "\n", "\r"}:
            raise UserError(f"--delimiter={self.delimiter!r} cannot be a delimiter: it quotes cells or ends rows")
        if len(self.quotechar) > 1 and self.quotechar != NO_QUOTES:
            raise UserError(f"--quotechar={self.quotechar!r} must be one character, or {NO_QUOTES}: quotes are text")


READING = tuple(f.name for f in fields(ReadingOptions))


def unescaped(text: str) -> str:
    r"""Replaces the escape sequences \t, \n and \r, which shells do not interpret, with the characters."""
    for escape, character in ((r"\t", "\t"), (r"\n", "\n"), (r"\r", "\r")):
        text = text.replace(escape, character)
    return text
