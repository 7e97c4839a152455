"""The base class of the data checks, and access to rows by position."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.task.tags import find_scheme
from preprocess.example import Example
from preprocess.labels.statistics import LabelStatistics
from preprocess.storage.arrow import pick
from preprocess.storage.facts import Facts, Note, Sample

Splits = Mapping[str, Sequence[Example]]  # {split: examples with "_where", read on access}
Tasks = Mapping[str, Any]  # {task: its entry in labels.json}
# Texts and labels that look like missing values
PLACEHOLDERS = set("nan null none n/a na nil undefined - -- ? unknown todo tbd xxx 无 暂无 空".split())


class Context:
    """Properties of the data that the checks need. kinds: {task: kind}."""

    def __init__(self, splits: Splits, kinds: Mapping[str, str]) -> None:
        self.kinds = kinds
        self.fields = getattr(splits["train"], "fields", {})  # custom inputs
        self.entities: dict[str, str] = getattr(splits["train"], "entities", {})  # see Rows
        self.folder: Path | None = getattr(splits["train"], "folder", None)  # for temporary files
        self.own_ids: bool = getattr(splits["train"], "own_ids", True)  # if False, ids are row numbers
        head = splits["train"][:1000]
        tokens = [token for e in head for token in e.get("tokens", ())]
        self.glued = sum(bool(re.fullmatch(r"\S\d+", token)) for token in tokens) > 0.5 * len(tokens)
        self.words = any(len(token) > 1 for token in tokens)
        self.tagged = [name for name, kind in kinds.items() if kind == "tagging" and not has_foreign_tags(head, name)]
        self.spans = [name for name, kind in kinds.items() if kind == "spans"]


def has_foreign_tags(examples: Sequence[Example], name: str) -> bool:
    """Returns True if any tags of these examples do not follow an entity scheme."""
    tags = {tag for e in examples for tag in e[name] or ()} - {"O"}
    return len(tags) > 0 and find_scheme([list(tags)]) is None


class Check(Facts):
    """A data check: collects statistics in its attributes and derives notes from them.

    `look` runs on blocks of rows in several processes, with a new instance per block. The instances are merged in row
    order, and the notes of the merged instance are printed. A check without `look` can read the rows again in `notes`.
    """

    def __init__(self, context: Context) -> None:
        """Initializes all attributes before any row is read."""

    def look(self, split: str, start: int, examples: Sequence[Example], context: Context) -> None:
        """Processes a block of examples that starts at row `start` of the split."""

    def lines(self) -> Iterator[str]:
        """Yields lines about the data for the summary."""
        yield from ()

    def notes(self, splits: Splits, tasks: Tasks, labels: LabelStatistics) -> Iterator[Note]:
        """Yields the findings. Notes without rows are not printed. labels: statistics of labels and lengths."""
        raise NotImplementedError


class AllRows:
    """The rows of all splits, concatenated in reading order."""

    def __init__(self, splits: Splits) -> None:
        self.splits = splits
        self.names = list(splits)
        self.starts = np.cumsum([0, *map(len, splits.values())])

    def split_numbers(self, positions: Any) -> Any:
        """Returns, for each position, the index of its split in `names`."""
        return self.starts.searchsorted(positions, "right") - 1

    def split(self, position: int) -> str:
        return self.names[self.split_numbers(position)]

    def __getitem__(self, position: int) -> Example:
        number = self.split_numbers(position)
        return self.splits[self.names[number]][int(position - self.starts[number])]

    def where(self, position: int) -> str:
        return self[position]["_where"]

    def pair(self, pair: Sequence[int], between: str) -> str:
        return f"{self.where(pair[0])}{between} {self.where(pair[1])}"

    def examples(self, positions: np.ndarray) -> list[Example]:
        numbers = self.split_numbers(positions)
        examples: dict[int, Example] = {}
        for number, name in enumerate(self.names):
            in_split = positions[numbers == number]
            examples |= zip(in_split.tolist(), pick(self.splits[name], (in_split - self.starts[number]).tolist()))
        return [examples[position] for position in positions.tolist()]


def splits_without(what: str, splits: Splits, present: set[str]) -> Note:
    """Returns the note on the splits that are not in `present`. what: "TASK: splits without any KIND"."""
    missing = [f"{rows[0]['_where']}: {split}" for split, rows in splits.items() if split not in present]
    return Note(what, missing, "the F1 of such a split is always 0")


def sampled(items: Sequence[Any] | np.ndarray, shown: Callable[[Any], str]) -> Sample:
    """Returns a Sample of shown(item) for the items. Calls `shown` only for the items that it stores."""
    sample = Sample([shown(item) for item in items[: Sample.most]])
    sample.number = getattr(items, "number", len(items))
    return sample


def add_if(rows: Sample, e: Example, result: str | bool | None) -> None:
    """Adds the row of an example if `result` is truthy, followed by `result` if it is a string."""
    if result:
        rows.add(f"{e['_where']}: {result}" if isinstance(result, str) else e["_where"])
