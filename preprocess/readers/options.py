"""The options of the readers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from preprocess.example import Example


@dataclass(frozen=True)
class ReadOptions:
    """How raw files are read. The flags of data_process.py, which explain each option, have the same names."""

    format: str = "auto"
    encoding: str = "auto"
    delimiter: str = ""
    header: bool = True
    sheet: str = ""
    max_rows: int = 0
    drop_unlabelled: bool = False
    text_column: str = ""
    text_pair_column: str = ""
    label_column: str = ""
    group_column: str = ""
    extra_columns: str = ""
    keep_columns: str = ""
    label_types: dict[str, str] = field(default_factory=dict)  # {task: type} of --label_type
    labelled: bool = False  # False: only texts are read, to predict on or to train a tokenizer with

    @classmethod
    def of(cls, config: Any) -> "ReadOptions":
        """The options of a command; defaults for those that it lacks. Only data_process.py, which has --label_column,
        reads labels."""
        values = {f.name: getattr(config, f.name) for f in fields(cls) if hasattr(config, f.name)}
        labelled = "label_column" in values
        return cls(**values, labelled=labelled, label_types=config.label_types_by_name() if labelled else {})


Reader = Callable[[Path, ReadOptions], Iterator[Example]]


def split_names(option: str) -> list[str]:
    """The names in a comma-separated option, each once."""
    return list(dict.fromkeys(name.strip() for name in option.split(",") if name.strip()))
