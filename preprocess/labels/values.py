"""Statistics of a label column's values."""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from preprocess.example import Example
from preprocess.labels.events import is_events
from preprocess.labels.kinds import is_number
from preprocess.labels.relations import is_relations
from preprocess.labels.spans import is_spans


@dataclass
class Values:
    """Statistics of a task's labels, without None. Can be merged across blocks. "-" is counted separately, because it
    can mean that the label is missing."""

    count: int = 0  # number of labels
    decimals: int = 0  # number of labels with a decimal point
    dashes: int = 0
    any_spans: bool = False
    any_relations: bool = False
    any_events: bool = False
    any_list: bool = False
    any_float: bool = False
    any_sign: bool = False  # any string without letters or digits
    all_numbers: bool = True  # all int or float
    all_numeric: bool = True  # all strings that are numbers
    broken: str | None = None  # a string that contains a line break or tab
    words: set[str] = field(default_factory=set)  # the first strings
    numbers: set[float] = field(default_factory=set)  # the first distinct values
    first: tuple[str, Any] | None = None  # (source, label)

    def add(self, examples: list[Example], name: str) -> None:
        values = [e[name] for e in examples if e.get(name) is not None]
        strings = Counter(value for value in values if isinstance(value, str))
        self.dashes = strings.pop("-", 0)
        self.count = len(values) - self.dashes
        for value, count in strings.items():
            self.add_string(value, count)
        for value in values if strings.total() < self.count else ():
            if not isinstance(value, str):
                self.add_other(value)
        if self.count:
            self.first = next((e["_where"], e[name]) for e in examples if e.get(name) not in (None, "-"))

    def add_string(self, value: str, count: int) -> None:
        self.all_numbers = False
        if is_number(value):
            self.decimals += count * ("." in value)
            self.add_number(float(value))
        else:
            self.all_numeric = False
        if len(self.words) < 2:
            self.words.add(value)
        if not value.isprintable() and re.search(r"[\t\n\r]", value.strip()):
            self.broken = self.broken or value
        self.any_sign = self.any_sign or not re.search(r"\w", value)

    def add_other(self, value: Any) -> None:
        self.all_numeric = False
        self.any_spans = self.any_spans or is_spans(value)
        self.any_relations = self.any_relations or is_relations(value)
        self.any_events = self.any_events or is_events(value)
        self.any_list = self.any_list or isinstance(value, list)
        if type(value) in (int, float):
            self.any_float = self.any_float or isinstance(value, float)
            self.decimals += "." in str(value)
            self.add_number(float(value) if abs(value) < 1e300 else float("inf"))
        else:
            self.all_numbers = False

    def add_number(self, value: float) -> None:
        if len(self.numbers) <= 10:
            self.numbers.add(value)

    def merge(self, other: "Values") -> None:
        self.words |= other.words if len(self.words) < 2 else set()
        self.numbers |= other.numbers if len(self.numbers) <= 10 else set()
        self.first, self.broken = self.first or other.first, self.broken or other.broken
        for name in ("count", "decimals", "dashes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("any_spans", "any_relations", "any_events", "any_list", "any_float", "any_sign"):
            setattr(self, name, getattr(self, name) or getattr(other, name))
        for name in ("all_numbers", "all_numeric"):
            setattr(self, name, getattr(self, name) and getattr(other, name))

    @property
    def dashes_mean_none(self) -> bool:
        """True if "-" among words means that there is no label, as in OCNLI and SNLI. It is an ordinary label if other
        symbols, such as "+", are labels too."""
        return self.dashes > 0 and len(self.words) >= 2 and not self.any_sign

    def keep_dashes(self) -> None:
        """Counts "-" as an ordinary label."""
        if self.dashes:
            self.all_numbers = self.all_numeric = False
            self.count += self.dashes
            self.first = self.first or ("", "-")

    @property
    def kind(self) -> str:
        """The kind that these labels imply: relations, events, spans, list, regression or classification."""
        if self.any_relations or self.any_events:
            return "events" if self.any_events else "relations"
        if self.any_spans or self.any_list:
            return "spans" if self.any_spans else "list"
        is_regression = (self.all_numbers and self.any_float) or (self.all_numeric and self.decimals > 0)
        return "regression" if is_regression else "classification"
