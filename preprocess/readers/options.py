"""Options of the readers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from engine.run.command_line import option
from engine.run.reading import ReadingOptions, unescaped
from preprocess.example import Example, abbreviate
from preprocess.readers.archives import as_named


@dataclass
class Understanding:
    """How each file was interpreted. data_process.py prints this before it writes anything.

    A reader can record details once per file, before its first example: `options.understood.add(path, "CoNLL",
    token="column 2", tag="column 3")` is printed as "read as CoNLL: token = column 2, tag = column 3". By default, only
    the format is printed.
    """

    forms: dict[str, str] = field(default_factory=dict)  # {file: "FORMAT: role = column, …"}
    splits: dict[str, str | None] = field(default_factory=dict)  # {file: split}
    columns: set[str] = field(default_factory=set)  # columns and keys of files with labels
    relations: list[str] = field(default_factory=list)  # the tasks of the relations in an earlier file
    events: str = ""  # the task of the events in an earlier file
    unread: set[str] = field(default_factory=set)  # label columns that are not read

    def begin(self, path: Path | str, split: str | None, form: str) -> None:
        """Records a file that is about to be read."""
        self.splits[str(path)] = split
        self.forms.setdefault(str(path), form)

    def add(self, path: Path | str, form: str, **columns: str | None) -> None:
        roles = ", ".join(f"{role} = {column}" for role, column in columns.items() if column)
        self.forms[str(path)] = f"{form}: {roles}" if roles else form

    def add_columns(self, **columns: str | None) -> None:
        """Records the columns or keys of the current file, unless its reader has recorded details."""
        path, form = next(reversed(self.forms.items()), ("", ""))
        if path and ": " not in form:
            self.add(path, form, **columns)

    def notes(self) -> list[str]:
        """Returns log lines for files from which only the texts are read."""
        labels = f"; labels are ignored: {abbreviate(sorted(self.unread), 6)}" if self.unread else ""
        return [f"{line}{labels}" for line in self.lines()]

    def lines(self) -> list[str]:
        """Returns one line per format, with its files and their splits."""
        files: dict[str, list[str]] = {}
        for path, form in self.forms.items():
            split = self.splits.get(path)
            named = as_named(path)
            files.setdefault(form, []).append(f"{named} ({split})" if split else named)
        return [f"read as {form}; from {abbreviate(paths, 6, width=500)}" for form, paths in files.items()]


@dataclass(frozen=True)
class RawOptions(ReadingOptions):
    """The options of data_process.py for reading raw files with labels."""

    max_rows: int = option(0, "read only the first N rows of each file, and stream hub datasets; 0: all", low=0)
    drop_unlabelled: bool = option(False, "drop rows whose label is empty, null or NaN, and count them")
    drop_empty: bool = option(False, "drop rows whose text is empty, and count them")
    label_column: str = option(
        "",
        "label column or key, or several, comma-separated; each becomes a task (default: usual names); "
        "TASK=COLUMN+COLUMN+… combines columns of 0 and 1 into one multilabel task: 'topics=toxic+obscene+threat'",
    )
    tag_column: str = option("", "column of token tags, or several, comma-separated; each becomes a task")
    group_column: str = option("", "rows with equal values in this column stay in the same split and fold")
    extra_columns: str = option("", "numeric columns, comma-separated, used as model inputs in addition to the text")
    text: bool = option(
        True, "the rows have a text; --no_text: they have only --extra_columns and FIELDS of data_loader.py"
    )
    keep_columns: str = option("", "columns to keep, comma-separated; the report shows scores per value")
    split_column: str = option("", "column or key with the split of each row (default: split, partition, …)")
    offsets: Literal["auto", "characters", "utf16"] = option("auto", "unit of span offsets")
    span_end: Literal["auto", "exclusive", "inclusive"] = option("auto", "whether the end of a span is inclusive")
    accept: str = option("", "gates to skip, comma-separated (an error message names the gate)")


@dataclass(frozen=True)
class ReadOptions(RawOptions):
    """The reader options of a command."""

    label_types: dict[str, str] = field(default_factory=dict)  # {task: type} of --label_type
    understood: Understanding = field(default_factory=Understanding, compare=False)
    needs_text: bool = True  # whether a file without a text column is an error
    labelled: bool = False  # whether to read labels; not needed for prediction and tokenizer training

    @classmethod
    def of(cls, config: Any) -> "ReadOptions":
        """Returns the reader options of a command, with defaults for options that it does not have. Only
        data_process.py, which has --label_column, reads labels."""
        values = {f.name: getattr(config, f.name) for f in fields(cls) if hasattr(config, f.name)}
        values["delimiter"] = unescaped(values.get("delimiter", ""))
        labelled = "label_column" in values
        return cls(**values, labelled=labelled, label_types=config.label_types_by_name() if labelled else {})


Reader = Callable[[Path, ReadOptions], Iterator[Example]]


def split_names(option: str) -> list[str]:
    """Returns the unique names in a comma-separated option."""
    return list(dict.fromkeys(name.strip() for name in option.split(",") if name.strip()))
