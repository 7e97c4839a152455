"""Skips rows without text or label, and a test split without labels."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import UserError
from preprocess.example import RESERVED, SPLIT_ALIASES, Example, counted
from preprocess.labels.kinds import KINDS, NO_LABEL
from preprocess.readers.archives import note
from preprocess.readers.columns import NoLabels
from preprocess.readers.options import ReadOptions

INDEX_NAMES = {"id", "index", "idx", "guid", "qid"}
MINUS = (-1, "-1")  # placeholder for hidden test labels, as in GLUE


def without_gaps(examples: Iterable[Example], path: Path, options: ReadOptions) -> Iterator[Example]:
    """Drops examples as requested by --drop_empty and --drop_unlabelled, and prints their number."""
    dropped, first = Counter[str](), dict[str, str]()
    for example in examples:
        missing = "text" if options.drop_empty and not has_text(example) else ""
        if options.drop_unlabelled and not missing:
            labels, unlabelled = labels_of(example, options.label_types)
            example |= dict.fromkeys(unlabelled)
            missing = "label" if len(unlabelled) == len(labels) else ""
        if missing:
            dropped[missing] += 1
            first.setdefault(missing, example["_where"])
        else:
            yield example
    for missing, number in dropped.items():
        option = "--drop_empty" if missing == "text" else "--drop_unlabelled"
        note(f"{path}: dropped {counted(number, 'row')} without a {missing} ({option}); first: {first[missing]}")


def has_text(example: Example) -> bool:
    """Returns True if the example has non-blank text or tokens."""
    text, tokens = example.get("text"), example.get("tokens")
    return bool(tokens) if tokens is not None else not (text is None or (isinstance(text, str) and not text.strip()))


def labels_of(example: Example, label_types: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Returns (labels, names of the tasks whose label is empty, null or NaN). For a multilabel task, an empty cell is a
    label: the empty set."""
    multilabel = {name for name, kind in label_types.items() if KINDS[kind] == "multilabel"}
    labels = {name: example[name] for name in example.keys() - set(RESERVED)}
    return labels, [name for name, label in labels.items() if is_no_label(label, name in multilabel)]


def is_no_label(label: Any, may_be_empty: bool) -> bool:
    """Returns True if the label is missing. may_be_empty: whether an empty cell is a label."""
    if isinstance(label, str):
        return label.strip().lower() in NO_LABEL[may_be_empty:]
    return label is None or label != label  # NaN


@dataclass
class SecretLabels:
    """Skips a test split (of one or more files) without labels, if other splits have labels."""

    options: ReadOptions
    trained: bool = False  # whether rows of other splits have been read
    has_minus: bool = False  # whether any of those rows has the label -1
    has_labels: bool = False  # whether any row of the test split has a label
    first: Example | None = None  # first row of the test split, if it has no label
    paths: dict[Path, int] = field(default_factory=dict)  # {file: number of skipped rows}

    def labelled(self, examples: Iterator[Example], split: str | None, path: Path) -> Iterator[Example]:
        """Yields the examples of a file, except examples of a test split without labels."""
        is_read = False
        try:
            for example in examples:
                is_read = True
                if part_of(example, split) != "test" or self.options.drop_unlabelled:
                    self.trained = True
                    self.has_minus = self.has_minus or bool(minus_in(example))
                    yield example
                elif self.is_unlabelled(example) and not self.has_labels:
                    self.first = self.first or example
                    self.paths[path] = self.paths.get(path, 0) + 1
                else:
                    self.has_labels = True
                    if self.first:  # its missing label is reported as an error later
                        self.require_no_minus(self.first)
                        yield self.first
                        self.first = None
                    yield example
        except NoLabels as error:
            if is_read or split != "test" or not self.trained or not self.has_known_columns(error.names):
                raise
            self.paths[path] = 0

    def has_known_columns(self, names: set[str]) -> bool:
        """Returns True if all columns are known from earlier files, except a column of row numbers."""
        known = self.options.understood.columns
        return bool(names & known) and names - known <= INDEX_NAMES

    def is_unlabelled(self, example: Example) -> bool:
        labels, missing = labels_of(example, self.options.label_types)
        secret = self.trained and not self.has_minus and all(map(is_minus, labels.values()))
        return bool(labels) and (len(missing) == len(labels) or secret)

    def require_no_minus(self, example: Example) -> None:
        """Raises UserError if an example has the label -1, unlike all other splits, but other test rows have labels."""
        if minus := minus_in(example):
            reason = f"the label {minus[0]!r} is -1, which no other split has, but other test rows have labels"
            raise UserError(f"{example['_where']}: {reason}; empty such cells and add --drop_unlabelled")

    def report(self) -> None:
        """Prints what was skipped."""
        for path, number in self.paths.items() if not self.has_labels else ():
            self.options.understood.forms.pop(str(path), None)
            rows = f" ({counted(number, 'row')})" if number else ""
            advice = "pass it to --predict_file after training"
            note(f"{path}: skipped the test split, which has no labels{rows}; {advice}")


def minus_in(example: Example) -> list[str]:
    """Returns the tasks whose label is -1."""
    return [name for name in example.keys() - set(RESERVED) if is_minus(example[name])]


def is_minus(label: Any) -> bool:
    return not isinstance(label, list | dict | bool) and label in MINUS


def part_of(example: Example, split: str | None) -> str | None:
    return split or SPLIT_ALIASES.get(str(example.get("split", "")).lower())
