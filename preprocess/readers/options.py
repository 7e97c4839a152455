"""The options of the readers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from preprocess.example import Example

NO_QUOTES = "none"  # the value of --quotechar for files whose quotes are ordinary characters


@dataclass
class Understanding:
    """What the readers made of each file, which data_process.py shows before anything is written.

    A reader that knows more than the name of its format says so once per file, before its first example:
    `options.understood.add(path, "CoNLL", token="column 2", tag="column 3")`; shown as
    "read as CoNLL: token = column 2, tag = column 3". Without it the format's name is shown.
    """

    forms: dict[str, str] = field(default_factory=dict)  # {file: "FORMAT: role = column, …"}
    parts: dict[str, str | None] = field(default_factory=dict)  # {file: its part}
    columns: set[str] = field(default_factory=set)  # names of the columns and keys of files with labels

    def begin(self, path: Path | str, part: str | None, form: str) -> None:
        """Called for each file before its reader."""
        self.parts[str(path)] = part
        self.forms.setdefault(str(path), form)

    def add(self, path: Path | str, form: str, **columns: str | None) -> None:
        roles = ", ".join(f"{role} = {column}" for role, column in columns.items() if column)
        self.forms[str(path)] = f"{form}: {roles}" if roles else form

    def add_columns(self, **columns: str | None) -> None:
        """The columns or keys of the file that is read, unless its reader has said more."""
        path, form = next(reversed(self.forms.items()), ("", ""))
        if path and ": " not in form:
            self.add(path, form, **columns)

    def lines(self) -> list[str]:
        """One line per form, with its files and their parts."""
        files: dict[str, list[str]] = {}
        for path, form in self.forms.items():
            part = self.parts.get(path)
            files.setdefault(form, []).append(f"{path} ({part})" if part else path)
        return [f"read as {form}; from {abbreviated(paths)}" for form, paths in files.items()]


def abbreviated(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f", … ({len(names) - most:,} more)" if len(names) > most else "")


@dataclass(frozen=True)
class ReadOptions:
    """How raw files are read. The flags of data_process.py, which explain each option, have the same names."""

    format: str = "auto"
    encoding: str = "auto"
    delimiter: str = ""
    quotechar: str = ""
    header: bool = True
    sheet: str = ""
    max_rows: int = 0
    drop_unlabelled: bool = False
    drop_empty: bool = False
    text_column: str = ""
    text_pair_column: str = ""
    join_columns: str = ""
    label_column: str = ""
    group_column: str = ""
    extra_columns: str = ""
    keep_columns: str = ""
    split_column: str = ""
    rows_key: str = ""
    shape: str = "auto"
    offsets: str = "auto"
    span_end: str = "auto"
    label_types: dict[str, str] = field(default_factory=dict)  # {task: type} of --label_type
    understood: Understanding = field(default_factory=Understanding, compare=False)
    token_column: str = ""
    tag_column: str = ""
    sentence_column: str = ""
    comment: str = ""
    sentence_end: str = ""
    accept: str = ""
    labelled: bool = False  # False: only texts are read, to predict on or to train a tokenizer with

    @classmethod
    def of(cls, config: Any) -> "ReadOptions":
        """The options of a command; defaults for those that it lacks. Only data_process.py, which has --label_column,
        reads labels."""
        values = {f.name: getattr(config, f.name) for f in fields(cls) if hasattr(config, f.name)}
        values["delimiter"] = unescaped(values.get("delimiter", ""))
        labelled = "label_column" in values
        return cls(**values, labelled=labelled, label_types=config.label_types_by_name() if labelled else {})


Reader = Callable[[Path, ReadOptions], Iterator[Example]]


def unescaped(option: str) -> str:
    r"""An option with the escapes that a shell leaves as they are: \t and \n."""
    for escape, character in ((r"\t", "\t"), (r"\n", "\n"), (r"\r", "\r")):
        option = option.replace(escape, character)
    return option


def split_names(option: str) -> list[str]:
    """The names in a comma-separated option, each once."""
    return list(dict.fromkeys(name.strip() for name in option.split(",") if name.strip()))
