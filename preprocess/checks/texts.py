"""Checks of the texts: unexpected characters and markup, unusual tokens, and lengths."""

import html
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import regex
from ftfy.badness import BADNESS_RE

from engine.task.text import text_of
from preprocess.checks.base import PLACEHOLDERS, Check, Context, Splits, Tasks, add_if
from preprocess.example import Example, length_of
from preprocess.labels.statistics import LabelStatistics
from preprocess.storage.arrow import blocks_of
from preprocess.storage.facts import Note, Sample, Series

INVISIBLE = "\u200b\u200c\u2060\ufeff\u00ad\u200e\u200f\u202a\u202b\u202c\u202d\u202e"
JOINED_SCRIPTS = regex.compile(
    r"[\p{Arabic}\p{Hebrew}\p{Devanagari}\p{Bengali}\p{Tamil}\p{Telugu}\p{Malayalam}\p{Sinhala}]"
)
GARBLED = re.compile(f"{BADNESS_RE.pattern} | 锟斤拷 | 烫烫烫", BADNESS_RE.flags)
MARKUP = re.compile(r"</?(?:p|br|div|span|a|b|i|img|td|tr|li)\b[^<>]*>|&(?:[a-z]{2,8}|#\d{2,6});")
LOOK_ALIKE = "аеорсухіјѕАВЕКМНОРСТХΑΒΕΖΗΙΚΜΝΟΡΤΥΧο"  # Cyrillic and Greek letters that look Latin
HALF_WIDTH = re.compile("[0-9A-Za-z]")
# A fast prefilter: few texts match it, whereas GARBLED alone takes 40 µs per text
SUSPECT = re.compile(
    "[\ufffd\uff10-\uff19\uff21-\uff3a\uff41-\uff5a<&]|[\u0080-\u024f\u02c6-\u02dd\u2013-\u2122]{2}|锟斤拷|烫烫烫"
)
SUSPECT_LETTER = re.compile(f"[{LOOK_ALIKE}]")
HARMLESS_BLANKS = "\n\r\t\u3000\u00a0"

Test = Callable[[str], str | None]


def is_suspicious(text: str) -> bool:
    """Returns True if a test of IN_TEXTS could match the text (a fast prefilter)."""
    if not text.isprintable():  # contains control, format, private or unassigned characters, or whitespace
        for blank in HARMLESS_BLANKS:
            text = text.replace(blank, "")
        if not text.isprintable():
            return True
    if text.isascii():
        return "<" in text or "&" in text
    return bool(SUSPECT.search(text)) or bool(SUSPECT_LETTER.search(text) and HALF_WIDTH.search(text))


def first_match(pattern: str | re.Pattern[str], text: str) -> str | None:
    match = re.search(pattern, text)
    return match and match.group()


def invisible(text: str) -> str | None:
    needed = "\u200c\u200e\u200f" if JOINED_SCRIPTS.search(text) else ""
    return next((c for c in text if c in INVISIBLE and c not in needed), None)


def private(text: str) -> str | None:
    return next((c for c in text if unicodedata.category(c) in ("Co", "Cn")), None)


def markup(text: str) -> str | None:
    match = first_match(MARKUP, text)
    return match if match and (match[0] == "<" or html.unescape(match) != match) else None


control: Test = partial(first_match, "[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
undecodable: Test = partial(first_match, "\ufffd")
garbled: Test = partial(first_match, GARBLED)
mixed_script: Test = partial(first_match, rf"\b(?=\w*[{LOOK_ALIKE}])(?=\w*[A-Za-z])\w{{3,}}")
full_width: Test = partial(first_match, "[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a]")
IN_TEXTS: list[tuple[Test, str, str]] = [  # (test of a text, finding, advice)
    (control, "control characters in texts", "remove them; they come from a broken export"),
    (undecodable, "characters that could not be decoded (U+FFFD)", "read the source again with --encoding"),
    (garbled, "texts decoded with the wrong encoding", "read the source again with --encoding"),
    (invisible, "invisible characters in texts", "remove them; texts that look the same are different"),
    (private, "private or unassigned characters in texts", "replace them; no vocabulary contains them"),
    (markup, "markup or HTML entities in texts", "convert the texts to plain text with html.unescape and a parser"),
    (mixed_script, "words that mix Latin and look-alike letters", "replace them; tokenizers distinguish them"),
    (full_width, "both full-width and half-width letters or digits", "unify them with NFKC normalisation"),
]


def texts_of(e: Example) -> list[str]:
    return [*e.get("tokens", [e.get("text", "")]), e.get("text_pair", "")]


def is_quoted(e: Example) -> bool:
    return '""' in text_of(e) + e.get("text_pair", "") and any(
        len(t) > 2 and t[0] == t[-1] == '"' and '""' in t[1:-1] for t in texts_of(e)
    )


def has_outer_blanks(e: Example) -> bool:
    return "tokens" not in e and any(t != t.strip() for t in texts_of(e) if t)


def looks_missing(e: Example) -> str | None:
    return repr(text_of(e)) if text_of(e).strip().lower() in PLACEHOLDERS else None


def has_no_letter(e: Example) -> str | None:
    text = text_of(e)
    return None if any(map(str.isalnum, text)) or looks_missing(e) else ascii(text[:20])


def is_own_pair(e: Example) -> bool:
    return "text" in e and "text_pair" in e and e["text"] == e["text_pair"] != ""


def has_empty_pair(e: Example) -> bool:
    return "text_pair" in e and not e["text_pair"].strip()


QUOTED = "the TSV has CSV quotes; add --format csv --delimiter '\\t', or remove the quotes"
BLANKS = "strip them to find duplicates; most tokenizers ignore them"
IN_EXAMPLES: list[tuple[Callable[[Example], str | bool | None], str, str]] = [  # (test of an example, finding, advice)
    (is_quoted, "texts in CSV quotes, with doubled quotes inside", QUOTED),
    (has_outer_blanks, "texts start or end with whitespace", BLANKS),
    (looks_missing, "texts that look like a missing value", "remove the rows if they are not texts"),
    (has_no_letter, "texts without a letter or digit", "check whether they are useful for training"),
    (is_own_pair, "both texts of a pair are the same", "check the export"),
    (has_empty_pair, "one text of a pair is empty", "check the export"),
]


class Texts(Check):
    """Finds signs that texts were decoded or exported incorrectly."""

    def __init__(self, context: Context) -> None:
        self.with_half_width: set[str] = set()  # splits with half-width characters
        self.rows = {finding: Sample() for _, finding, _ in (*IN_TEXTS, *IN_EXAMPLES)}

    def look(self, split: str, start: int, examples: Sequence[Example], context: Context) -> None:
        if any(HALF_WIDTH.search(text_of(e)) for e in examples):
            self.with_half_width.add(split)
        for e in examples:
            if is_suspicious(text_of(e)) or is_suspicious(e.get("text_pair", "")):
                for test, finding, _ in IN_TEXTS:
                    result = next((ascii(match) for text in texts_of(e) if (match := test(text))), None)
                    add_if(self.rows[finding], e, result)
            for test_example, finding, _ in IN_EXAMPLES:
                add_if(self.rows[finding], e, test_example(e))

    def notes(self, splits: Splits, tasks: Tasks, labels: LabelStatistics) -> Iterator[Note]:
        for test, finding, advice in (*IN_TEXTS, *IN_EXAMPLES):
            if test is not full_width or self.with_half_width:
                yield Note(finding, self.rows[finding], advice)


class Tokens(Check):
    def __init__(self, context: Context) -> None:
        self.empty = Sample()
        self.glued = Sample()
        self.blank = Sample()

    def look(self, split: str, start: int, examples: Sequence[Example], context: Context) -> None:
        for e in examples:
            tokens = e.get("tokens", ())
            if "" in tokens:
                self.empty.add(f"{e['_where']}: an empty token")
            if context.glued:
                add_if(self.glued, e, first_token(tokens, r"[^\W\da-zA-Z]\d+", repr))
            if context.words and (joined := "".join(tokens)).split() != [joined]:
                add_if(self.blank, e, first_token(tokens, r"(?s)\s+|.*\S\s+\S.*", ascii))

    def notes(self, splits: Splits, tasks: Tasks, labels: LabelStatistics) -> Iterator[Note]:
        yield Note("tokens that are empty", self.empty, "they become [UNK]; check how the text was split")
        advice = "remove the number; no vocabulary contains such tokens"
        yield Note("tokens are characters with a number appended", self.glued, advice)
        advice = "check the delimiter; the tags could be shifted by a column"
        yield Note("tokens that are or contain whitespace", self.blank, advice)


def first_token(tokens: Sequence[str], pattern: str, shown: Callable[[str], str]) -> str | None:
    """Returns shown(token) of the first token that matches a pattern, or None."""
    return next((shown(token) for token in tokens if re.fullmatch(pattern, token)), None)


class Lengths(Check):
    """Finds outliers in text length, and splits whose length distribution differs from train."""

    def __init__(self, context: Context) -> None:
        self.longest = Series(context.folder)  # maximum length per block

    def look(self, split: str, start: int, examples: Sequence[Example], context: Context) -> None:
        self.longest.of_block = np.array([max(map(length_of, examples))])

    def notes(self, splits: Splits, tasks: Tasks, labels: LabelStatistics) -> Iterator[Note]:
        lengths = {split: labels.lengths[split] for split in splits}
        logs, counts = np.log1p(list(lengths["train"])), list(lengths["train"].values())
        middle = weighted_median(logs, counts)
        # The median absolute deviation, scaled to the standard deviation of a normal distribution; robust to outliers
        spread = 1.4826 * weighted_median(np.abs(logs - middle), counts)
        limit = max(30, math.exp(middle + 6 * max(spread, 0.3)))
        long = Sample()
        for (split, start, stop), longest in zip(blocks_of(splits), self.longest.column.read().tolist()):
            if longest > limit and not long.is_full:
                for e in splits[split][start:stop]:
                    add_if(long, e, str(length_of(e)) if length_of(e) > limit else None)
        long.number = sum(count for of_split in lengths.values() for n, count in of_split.items() if n > limit)
        yield Note("texts far longer than the others", long, "check for missing line breaks and joined texts")
        for split in splits:
            yield from compare_lengths(lengths["train"], lengths[split], split)


def weighted_median(values: Sequence[float] | np.ndarray, counts: Sequence[int]) -> float:
    """Returns the weighted median: the lower of the two middle values for an even total."""
    return float(np.quantile(values, 0.5, weights=counts, method="inverted_cdf"))


def compare_lengths(train: Counter[int], other: Counter[int], split: str) -> Iterator[Note]:
    """Yields a note if the length distribution of a split differs from that of train (Kolmogorov-Smirnov, p < 0.001).
    scipy.stats.ks_2samp would need all lengths instead of their counts, and its import takes 60 MB."""
    sizes = train.total(), other.total()
    if split != "train" and min(sizes) >= 30:
        critical_value = 1.95 * math.sqrt(sum(sizes) / (sizes[0] * sizes[1]))
        lengths = sorted(train.keys() | other.keys())
        cumulative = [np.cumsum([counts[n] for n in lengths]) / counts.total() for counts in (train, other)]
        if np.abs(cumulative[0] - cumulative[1]).max() > max(0.15, critical_value):
            medians = [weighted_median(list(counts), list(counts.values())) for counts in (train, other)]
            rows = [f"median {medians[0]:g} in train, {medians[1]:g} in {split}"]
            advice = "split the data again, unless this is intended"
            yield Note(f"{split}: texts are longer or shorter than in train", rows, advice)
