"""Checks and converts the offsets of character spans.

Offsets count characters or, as in JavaScript and Java, UTF-16 units (an emoji is two). A wrong unit is detected if the
data contains the surface forms of the spans, or if spans start or end inside words.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from engine.errors import UserError
from preprocess.example import RESERVED, Example, shown
from preprocess.labels.events import is_event, is_events
from preprocess.labels.relations import ENDS, is_relation, is_relations
from preprocess.labels.spans import StoredSpan, fields_of, fields_of_dict, from_utf16, is_cut
from preprocess.readers.options import ReadOptions

MAX_KNOWN = 100_000  # maximum number of surface forms in memory
MIN_CUT = 3  # minimum number of spans that start or end inside a word; fewer can be intended


def spans_in(label: Any, where: str) -> list[StoredSpan]:
    """Returns the character spans of a label, including the mentions of relations and events, or [] for other
    labels."""
    if isinstance(label, dict):
        return list(fields_of_dict(label, where))
    if not isinstance(label, list) or not label or not isinstance(label[0], dict | list):
        return []
    return [span for item in label for mention in mentions_of(item) if (span := fields_of(mention)).has_place()]


def mentions_of(item: Any) -> list[Any]:
    """Returns the mentions of a relation or event with character offsets, [] if it has token offsets, else [item]."""
    if is_event(item):
        return [item.get("trigger"), *item["arguments"]]
    if is_relation(item):
        return [item[end] for end in ENDS] if isinstance(item, dict) else []
    return [item]


def with_mentions(item: Any, convert: Callable[[StoredSpan], dict[str, Any]]) -> Any:
    """Returns a relation or event with converted mentions. Mentions without offsets stay unchanged."""

    def moved(mention: Any) -> Any:
        span = fields_of(mention)
        return (mention if isinstance(mention, dict) else {}) | convert(span) if span.has_place() else mention

    if is_event(item):
        return item | {"trigger": moved(item.get("trigger")), "arguments": [*map(moved, item["arguments"])]}
    if not is_relation(item):
        return item  # raises an error later
    return item | {end: moved(mention) for end, mention in zip(ENDS, mentions_of(item))}


@dataclass
class Seen:
    """Counts the spans of a file that start or end inside words, under two interpretations of their offsets."""

    checked: int = 0  # spans that differ between the interpretations
    cut: int = 0
    cut_otherwise: int = 0
    surfaces: Counter[str] = field(default_factory=Counter)  # surface forms of the raw spans
    otherwise: Counter[str] = field(default_factory=Counter)
    first: str = ""

    def add(self, cuts: bool, cuts_otherwise: bool, where: str) -> None:
        self.checked += 1
        self.cut += cuts
        self.cut_otherwise += cuts_otherwise
        if cuts and not self.first:
            self.first = where

    def is_open(self, known: set[str]) -> bool:
        """Returns True if the interpretation is unclear: no span cuts a word (as in Chinese), and known surface forms
        do not occur more often under the current one."""
        num_known = (sum(counts[surface] for surface in known) for counts in (self.surfaces, self.otherwise))
        return self.checked >= MIN_CUT and not (self.cut or self.cut_otherwise) and next(num_known) <= next(num_known)

    def is_wrong(self) -> bool:
        """Returns True if most spans cut words, but only a few do under the other interpretation."""
        return self.cut >= max(MIN_CUT, 0.5 * self.checked) and self.cut_otherwise <= 0.1 * self.cut


@dataclass
class Offsets:
    """Checks or converts the spans in the examples of a file."""

    path: str | Path
    options: ReadOptions
    utf16: Seen = field(default_factory=Seen)
    inclusive: Seen = field(default_factory=Seen)
    plain: Seen = field(default_factory=Seen)  # counts all raw spans
    known: set[str] = field(default_factory=set)  # surface forms of spans before the first emoji

    def examples(self, examples: Iterator[Example]) -> Iterator[Example]:
        """Yields the examples with offsets in characters. Raises UserError at the end if the unit seems wrong."""
        for example in examples:
            text = example.get("text")
            if type(text) is str and "tokens" not in example:
                for name, label in example.items():
                    if type(label) in (list, dict) and label and name not in RESERVED:
                        self.look_at(example, name, text)
            yield example
        self.require_plausible()

    def look_at(self, example: Example, name: str, text: str) -> None:
        where = example["_where"]
        spans = spans_in(example[name], where)
        is_inclusive = self.options.span_end == "inclusive" and isinstance(example[name], list)
        if spans and (is_inclusive or (self.options.offsets == "utf16" and not text.isascii())):
            convert = partial(self.converted, text=text, where=where, is_inclusive=is_inclusive)
            has_mentions = is_relations(example[name]) or is_events(example[name])
            example[name] = (
                [with_mentions(each, convert) for each in example[name]] if has_mentions else [*map(convert, spans)]
            )
            return
        for start, end, _, surface, _ in spans:
            if surface or end <= start:
                continue
            if self.options.span_end == "auto" and end < len(text):
                self.inclusive.add(is_cut(text, end), is_cut(text, end + 1), where)
            cuts_word = is_cut(text, start) or is_cut(text, end)
            self.plain.add(cuts_word, False, where)
            if self.options.offsets == "auto" and not text.isascii() and max(text[:end], default="") > "\uffff":
                ends = from_utf16(text, start, end)
                self.utf16.add(cuts_word, ends is None or any(is_cut(text, place) for place in ends), where)
                self.utf16.surfaces[text[start:end]] += 1
                self.utf16.otherwise[text[slice(*ends)] if ends else ""] += 1
            elif len(self.known) < MAX_KNOWN:
                self.known.add(text[start:end])

    def converted(self, span: StoredSpan, text: str, where: str, is_inclusive: bool) -> dict[str, Any]:
        start, end, label, surface, _ = span
        end += is_inclusive
        if self.options.offsets == "utf16":
            ends = from_utf16(text, start, end)
            if ends is None:
                problem = "is outside the text or starts or ends inside a character, if offsets are UTF-16 units"
                raise UserError(f"{where}: the span {start} to {end} of {shown(label)} {problem} (--offsets)")
            start, end = ends
        return {"start": start, "end": end, "label": label, "text": surface}

    def require_plausible(self) -> None:
        """Raises UserError if most spans cut words, but would not under another interpretation of the offsets."""
        for seen, which, advice in (
            (self.utf16, "after an emoji", "--offsets utf16 (UTF-16 units; an emoji is two)"),
            (self.inclusive, "of the file", "--span_end inclusive"),
        ):
            if seen.is_wrong():
                first = seen.first.removeprefix(f"{self.path}, ")
                problem = f"{seen.cut:,} of {seen.checked:,} spans {which} cut words; first: {first}"
                option = advice.split()[0]
                keep = f"or {option} {'characters' if option == '--offsets' else 'exclusive'} to keep them unchanged"
                raise UserError(f"{self.path}: {problem}; add {advice}, {keep}")
        if self.utf16.is_open(self.known):
            options = "--offsets utf16 if an emoji counts as two (JavaScript, Java), or --offsets characters"
            raise UserError(f"{self.path}: the offsets of spans after an emoji are ambiguous; add {options}")
        if self.options.offsets == "auto" and self.options.span_end == "auto" and self.plain.is_wrong():
            problem = f"{self.plain.cut:,} of {self.plain.checked:,} spans start or end inside a word"
            first = self.plain.first.removeprefix(f"{self.path}, ")
            advice = "correct the offsets (they could be bytes or refer to another text)"
            raise UserError(f"{self.path}: {problem}; first: {first}; {advice}, or keep them with --offsets characters")
