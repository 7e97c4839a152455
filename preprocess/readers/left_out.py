"""Drops rows without a text or a label, and a test part without labels."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import UserError
from preprocess.example import PART_NAMES, RESERVED, Example
from preprocess.labels.kinds import KINDS, NO_LABEL
from preprocess.readers.archives import note
from preprocess.readers.columns import NoLabels
from preprocess.readers.options import ReadOptions

INDEX_NAMES = {"id", "index", "idx", "guid", "qid"}
MINUS = (-1, "-1")  # the label in a test part with secret labels, as in GLUE


def without_gaps(examples: Iterable[Example], path: Path, options: ReadOptions) -> Iterator[Example]:
    """Drops examples for --drop_empty and --drop_unlabelled, and prints how many."""
    dropped, first = Counter[str](), dict[str, str]()
    for example in examples:
        gap = "text" if options.drop_empty and not has_text(example) else ""
        if options.drop_unlabelled and not gap:
            labels, lacking = labels_of(example, options.label_types)
            example |= dict.fromkeys(lacking)
            gap = "label" if len(lacking) == len(labels) else ""
        if gap:
            dropped[gap] += 1
            first.setdefault(gap, example["_where"])
        else:
            yield example
    for gap, number in dropped.items():
        option = "--drop_empty" if gap == "text" else "--drop_unlabelled"
        note(f"{path}: {number:,} rows without a {gap} dropped ({option}); first: {first[gap]}")


def has_text(example: Example) -> bool:
    """Whether the example has non-blank text or tokens."""
    text, tokens = example.get("text"), example.get("tokens")
    return bool(tokens) if tokens is not None else not (text is None or (isinstance(text, str) and not text.strip()))


def labels_of(example: Example, label_types: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """(labels, names of the tasks with an empty, null or NaN label; an empty multilabel cell is a label)"""
    several = {name for name, kind in label_types.items() if KINDS[kind] == "multilabel"}
    labels = {name: example[name] for name in example.keys() - set(RESERVED)}
    return labels, [name for name, label in labels.items() if is_no_label(label, name in several)]


def is_no_label(label: Any, may_be_empty: bool) -> bool:
    """Whether a value means that the label is missing."""
    if isinstance(label, str):
        return label.strip().lower() in NO_LABEL[may_be_empty:]
    return label is None or label != label  # only NaN differs from itself


@dataclass
class SecretLabels:
    """Skips a test part, of one or more files, if none of its rows has a label although other parts have labels."""

    options: ReadOptions
    trained: bool = False  # whether rows of other parts were read
    has_minus: bool = False  # whether those rows have the label -1
    has_labels: bool = False  # whether a row of the test part has a label
    held: Example | None = None  # the first row of the test part, without a label
    paths: dict[Path, int] = field(default_factory=dict)  # {file: number of skipped rows}

    def labelled(self, examples: Iterator[Example], part: str | None, path: Path) -> Iterator[Example]:
        """The examples of a file, except those of a test part without labels."""
        is_read = False
        try:
            for example in examples:
                is_read = True
                if part_of(example, part) != "test" or self.options.drop_unlabelled:
                    self.trained = True
                    self.has_minus = self.has_minus or bool(minus_in(example))
                    yield example
                elif self.is_unlabelled(example) and not self.has_labels:
                    self.held = self.held or example
                    self.paths[path] = self.paths.get(path, 0) + 1
                else:
                    self.has_labels = True
                    if self.held:  # pass on the first row without a label, which is then reported as an error
                        self.require_no_minus(self.held)
                        yield self.held
                        self.held = None
                    yield example
        except NoLabels as error:
            if is_read or part != "test" or not self.trained or not self.knows(error.names):
                raise
            self.paths[path] = 0

    def knows(self, names: set[str]) -> bool:
        """Whether columns are those of the files before, except for one that numbers the rows."""
        known = self.options.understood.columns
        return bool(names & known) and names - known <= INDEX_NAMES

    def is_unlabelled(self, example: Example) -> bool:
        labels, lacking = labels_of(example, self.options.label_types)
        secret = self.trained and not self.has_minus and all(map(is_minus, labels.values()))
        return bool(labels) and (len(lacking) == len(labels) or secret)

    def require_no_minus(self, example: Example) -> None:
        """Raises UserError for a label -1 if other rows of the test part have labels but no other part has -1."""
        if minus := minus_in(example):
            reason = f"the label {minus[0]!r} is -1, as in no other part, but other rows of test have labels"
            raise UserError(f"{example['_where']}: {reason}; leave those cells empty and add --drop_unlabelled")

    def report(self) -> None:
        """Prints what was skipped."""
        for path, number in self.paths.items() if not self.has_labels else ():
            self.options.understood.forms.pop(str(path), None)
            rows = f" ({number:,} rows)" if number else ""
            advice = "pass it to --predict_file once a model is trained"
            note(f"{path}: the test part has no labels and is skipped{rows}; {advice}")


def minus_in(example: Example) -> list[str]:
    """The tasks whose label is -1."""
    return [name for name in example.keys() - set(RESERVED) if is_minus(example[name])]


def is_minus(label: Any) -> bool:
    return not isinstance(label, list | dict | bool) and label in MINUS


def part_of(example: Example, part: str | None) -> str | None:
    return part or PART_NAMES.get(str(example.get("split", "")).lower())
