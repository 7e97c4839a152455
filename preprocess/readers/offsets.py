"""Offsets of spans over a text, in characters or, as in JavaScript and Java, UTF-16 units (an emoji is two). A wrong
unit is detected if the data has the surfaces of the spans, or if spans cut words."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import regex

from engine.errors import UserError
from engine.task.text import HAN
from preprocess.example import RESERVED, Example, shown
from preprocess.labels.spans import StoredSpan, fields_of, fields_of_dict, from_utf16
from preprocess.readers.options import ReadOptions

SPACED = regex.compile(
    rf"(?!{HAN})[\p{{L}}\p{{M}}\p{{N}}_](?<![\p{{Hangul}}\p{{Thai}}\p{{Lao}}\p{{Khmer}}\p{{Myanmar}}])"
)
MOST_KNOWN = 100_000  # surfaces that are kept
LEAST = 3  # minimum number of cut words; fewer may be deliberate


def is_cut(text: str, place: int) -> bool:
    """Whether a position is outside the text, or inside a word of a script with spaces between words."""
    if not 0 <= place <= len(text):
        return True
    return 0 < place < len(text) and bool(SPACED.match(text[place - 1]) and SPACED.match(text[place]))


def spans_in(label: Any, where: str) -> list[StoredSpan]:
    """The spans of a label over characters; empty for any other label."""
    if isinstance(label, dict):
        return list(fields_of_dict(label, where))
    if not isinstance(label, list) or not label or not isinstance(label[0], dict | list):
        return []
    return [span for item in label if (span := fields_of(item)).has_place()]


@dataclass
class Seen:
    """Counts how many spans of a file would cut words under two interpretations of their offsets."""

    checked: int = 0  # spans that differ between the two
    cut: int = 0
    cut_otherwise: int = 0
    surfaces: Counter[str] = field(default_factory=Counter)  # of the raw spans
    otherwise: Counter[str] = field(default_factory=Counter)
    first: str = ""

    def add(self, is_cut_so: bool, is_cut_otherwise: bool, where: str) -> None:
        self.checked += 1
        self.cut += is_cut_so
        self.cut_otherwise += is_cut_otherwise
        if is_cut_so and not self.first:
            self.first = where

    def is_open(self, known: set[str]) -> bool:
        """Whether nothing shows how to read the offsets: no words are cut, as in Chinese, and no surface is known."""
        found = (sum(counts[surface] for surface in known) for counts in (self.surfaces, self.otherwise))
        return self.checked >= LEAST and not (self.cut or self.cut_otherwise) and next(found) <= next(found)

    def is_wrong(self) -> bool:
        """Whether most spans cut words, but few do in the other interpretation."""
        return self.cut >= max(LEAST, 0.5 * self.checked) and self.cut_otherwise <= 0.1 * self.cut


@dataclass
class Offsets:
    """Checks or converts the spans of a file's examples."""

    path: str | Path
    options: ReadOptions
    utf16: Seen = field(default_factory=Seen)
    inclusive: Seen = field(default_factory=Seen)
    plain: Seen = field(default_factory=Seen)  # all raw spans
    known: set[str] = field(default_factory=set)  # surfaces of spans that are not after an emoji

    def examples(self, examples: Iterator[Example]) -> Iterator[Example]:
        """Yields the examples with offsets in characters. Raises UserError at the end if the unit seems wrong."""
        for example in examples:
            text = example.get("text")
            if type(text) is str and "tokens" not in example:
                for name, label in example.items():
                    if type(label) in (list, dict) and label and name not in RESERVED:
                        self.look_at(example, name, text)
            yield example
        self.refuse()

    def look_at(self, example: Example, name: str, text: str) -> None:
        where = example["_where"]
        found = spans_in(example[name], where)
        behind = self.options.span_end == "inclusive" and isinstance(example[name], list)
        if found and (behind or (self.options.offsets == "utf16" and not text.isascii())):
            example[name] = [self.converted(each, text, where, behind) for each in found]
            return
        for start, end, _, surface, _ in found:
            if surface or end <= start:
                continue
            if self.options.span_end == "auto" and end < len(text):
                self.inclusive.add(is_cut(text, end), is_cut(text, end + 1), where)
            is_odd = is_cut(text, start) or is_cut(text, end)
            self.plain.add(is_odd, False, where)
            if self.options.offsets == "auto" and not text.isascii() and max(text[:end], default="") > "\uffff":
                ends = from_utf16(text, start, end)
                self.utf16.add(is_odd, ends is None or any(is_cut(text, place) for place in ends), where)
                self.utf16.surfaces[text[start:end]] += 1
                self.utf16.otherwise[text[slice(*ends)] if ends else ""] += 1
            elif len(self.known) < MOST_KNOWN:
                self.known.add(text[start:end])

    def converted(self, span: StoredSpan, text: str, where: str, behind: bool) -> dict[str, Any]:
        start, end, label, surface, _ = span
        end += behind
        if self.options.offsets == "utf16":
            ends = from_utf16(text, start, end)
            if ends is None:
                wrong = "lies outside the text or inside a character, counted in UTF-16 units"
                raise UserError(f"{where}: the span {start} to {end} of {shown(label)} {wrong} (--offsets)")
            start, end = ends
        return {"start": start, "end": end, "label": label, "text": surface}

    def refuse(self) -> None:
        """Raises UserError if most spans cut words, but would not under another interpretation of the offsets."""
        for seen, how, advice in (
            (self.utf16, "after an emoji", "--offsets utf16 (UTF-16 units; an emoji is two)"),
            (self.inclusive, "of the file", "--span_end inclusive (the end belongs to the span)"),
        ):
            if seen.is_wrong():
                first = seen.first.removeprefix(f"{self.path}, ")
                cut = f"{seen.cut:,} of {seen.checked:,} spans {how} cut words; first: {first}"
                option = advice.split()[0]
                keep = f"{option} {'characters' if option == '--offsets' else 'exclusive'} keeps them unchanged"
                raise UserError(f"{self.path}: {cut}; add {advice}; {keep}")
        if self.utf16.is_open(self.known):
            which = "--offsets utf16 if an emoji counts as two, as in JavaScript and Java, or --offsets characters"
            raise UserError(f"{self.path}: spans after an emoji may be counted in two ways; add {which}")
        if self.options.offsets == "auto" and self.options.span_end == "auto" and self.plain.is_wrong():
            what = f"{self.plain.cut:,} of {self.plain.checked:,} spans begin or end inside a word"
            first = self.plain.first.removeprefix(f"{self.path}, ")
            advice = "correct the offsets (they may count bytes, or belong to another text)"
            raise UserError(f"{self.path}: {what}; first: {first}; {advice}; --offsets characters keeps them unchanged")
