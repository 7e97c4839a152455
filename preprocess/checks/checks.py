"""Data checks that find problems before training time is wasted: `python data_process.py --check --input DATA`.

A check is a generator `check_<what>(parts, tasks)` of Notes, listed in CHECKS. parts: {part: examples with "_where",
the source of each}, sequences that read examples on demand; tasks: as in labels.json. A note without rows is not shown,
so clean data gives no output.
The checks here run in the same pass that writes the data, one block of rows at a time in several processes. Each is a
pair of functions, Streamed(look_<what>, check_<what>): the first records facts of a block in `found`, the second
reads them.
Edit here to add a check for your own data: one function, one line in CHECKS.
"""

import html
import math
import re
import unicodedata
from bisect import bisect_right
from collections import Counter, defaultdict
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import regex
from tqdm import tqdm

from engine.run.files import write_json
from engine.task.tags import (
    TagFacts,
    entities_in,
    find_scheme,
    has_spans,
    illegal_tags,
    is_tagging,
    kind_of,
    needs_words,
)
from engine.task.text import text_of
from preprocess.labels.labelling import look_labels
from preprocess.schema import encode_rows, length_of
from preprocess.storage.facts import Found, Note, Sample, buckets, frequent, hashes, repeats
from preprocess.storage.parallel import in_order
from preprocess.storage.spool import blocks_of, pick, step_of

PLACEHOLDERS = set("nan null none n/a na nil undefined - -- ? unknown todo tbd xxx 无 暂无 空".split())
INVISIBLE = "\u200b\u200c\u2060\ufeff\u00ad\u200e\u200f\u202a\u202b\u202c\u202d\u202e"
JOINED_SCRIPTS = regex.compile(
    r"[\p{Arabic}\p{Hebrew}\p{Devanagari}\p{Bengali}\p{Tamil}\p{Telugu}\p{Malayalam}\p{Sinhala}]"
)
HIGH = re.compile("[\u0080-\u00ff\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u2122]{2,}")
MARKUP = re.compile(r"</?(?:p|br|div|span|a|b|i|img|td|tr|li)\b[^<>]*>|&(?:[a-z]{2,8}|#\d{2,6});")
LOOK_ALIKE = "аеорсухіјѕАВЕКМНОРСТХΑΒΕΖΗΙΚΜΝΟΡΤΥΧο"  # Cyrillic and Greek letters that look Latin
HALF_WIDTH = re.compile("[0-9A-Za-z]")
# Most texts contain none of these; only texts that do are inspected closely
SUSPECT = re.compile("[\ufffd\uff10-\uff19\uff21-\uff3a\uff41-\uff5a<&]|" + HIGH.pattern + "|锟斤拷|烫烫烫")
SUSPECT_LETTER = re.compile(f"[{LOOK_ALIKE}]")
HARMLESS_BLANKS = "\n\r\t\u3000\u00a0"


class Streamed(NamedTuple):
    """A check in two steps: look(found, part, start, examples, context) records in `found` facts of the block that
    begins at row `start` of the part; conclude(found, parts, tasks) yields the Notes."""

    look: object
    conclude: object


class Context:
    """What is known before the data is read. parts: as for a check; kinds: {task: kind}"""

    def __init__(self, parts, kinds):
        self.kinds = kinds
        self.ids = getattr(parts["train"], "own_ids", True)  # otherwise ids are the row numbers
        head = parts["train"][:1000]
        tokens = [token for e in head for token in e.get("tokens", ())]
        self.glued = sum(bool(re.fullmatch(r"\S\d+", token)) for token in tokens) > 0.5 * len(tokens)
        self.words = any(len(token) > 1 for token in tokens)
        self.tagged = [name for name in kinds if is_tagging(kinds[name]) and not foreign_tags(head, name)]
        self.spans = [name for name in kinds if has_spans(kinds[name])]


def foreign_tags(examples, name):
    """Whether some tags of these examples follow no entity scheme."""
    facts = TagFacts()
    for e in examples:
        facts.add(e[name] or ())
    return len(facts.tags - {"O"}) > 0 and facts.scheme is None


def texts_of(example):
    return [*example.get("tokens", [example.get("text", "")]), example.get("text_pair", "")]


def key_of(example):
    """The key that examples with equal texts share."""
    return tuple(example["tokens"]) if "tokens" in example else example["text"], example.get("text_pair")


def plain(example):
    """The text without case, whitespace, punctuation and character width: near duplicates share it."""
    text = text_of(example) + "\n" + example.get("text_pair", "")
    text = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return text.translate(LETTERS) if len(text) > 8 else text


class Letters(dict):
    """A table for str.translate that keeps letters, digits, marks and line feeds."""

    def __missing__(self, code):
        stays = code == 10 or unicodedata.category(chr(code))[0] in "LNM"
        self[code] = code if stays else None
        return self[code]


LETTERS = Letters()


class Places:
    """Indexes the rows of all parts by one position, in the order in which they were read."""

    def __init__(self, parts):
        self.parts, self.names = parts, list(parts)
        self.starts = np.cumsum([0, *map(len, parts.values())])

    def part_numbers(self, places):
        return np.searchsorted(self.starts, places, "right") - 1

    def part(self, place):
        return self.names[bisect_right(self.starts, place) - 1]

    def __getitem__(self, place):
        number = bisect_right(self.starts, place) - 1
        return self.parts[self.names[number]][place - int(self.starts[number])]

    def where(self, place):
        return self[place]["_where"]

    def with_value(self, place, value):
        return f"{self.where(place)}: {value:g}"

    def pair(self, place, other, between):
        return f"{self.where(place)}{between} {self.where(other)}"

    def examples(self, places):
        """The examples at an array of positions."""
        numbers, found = self.part_numbers(places), [None] * len(places)
        for number, name in enumerate(self.names):
            inside = np.flatnonzero(numbers == number).tolist()
            examples = pick(self.parts[name], [int(places[i] - self.starts[number]) for i in inside])
            for i, example in zip(inside, examples):
                found[i] = example
        return found


def add_if(rows, e, result):
    if result:
        rows.add(f"{e['_where']}: {result}" if isinstance(result, str) else e["_where"])


# ---- texts ---------------------------------------------------------------------------------------------------------


def look_duplicates(found, part, start, examples, context):
    found.columns["plain"] = hashes([plain(e) for e in examples])


def check_duplicates(found, parts, tasks):
    """Notes on equal and nearly equal texts; only these rows are read again."""
    firsts, rows = repeats(found.columns["plain"])
    places = Places(parts)
    blocks = list(in_order(CopiesAgain(places, rows, list(tasks)), range(0, len(rows), step_of(parts["train"]))))
    keys, *labels = map(np.concatenate, zip(*blocks)) if blocks else [rows[:0]] * (1 + len(tasks))
    order = np.lexsort([rows, keys])
    equal = Copies(rows[order], keys[order])
    yield from repeated_texts(equal, places)
    yield from conflicting_labels(equal, places, {name: column[order] for name, column in zip(tasks, labels)})
    begin = np.maximum.accumulate(np.where(rows == firsts, np.arange(len(rows)), 0)) if len(rows) else order
    apart = places.part_numbers(rows) != places.part_numbers(firsts)
    near = np.stack([rows, firsts], axis=1)[apart & (keys != keys[begin])]
    similar = sampled(near, lambda pair: places.pair(*pair, " and"))
    what = "texts of two parts differ only in case, whitespace or punctuation"
    yield Note(what, similar, "nearly a leak: keep each in one part")


class Copies:
    """Groups of rows with equal keys, in the order of their first rows. rows, keys: (N,), sorted by key, then by row"""

    def __init__(self, rows, keys):
        self.rows = rows
        begins = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else rows
        ends = np.append(begins[1:], len(rows))
        several = ends - begins > 1
        order = np.argsort(rows[begins[several]])
        self.begins, self.ends = begins[several][order], ends[several][order]

    def __iter__(self):
        """Slices of `rows`."""
        return map(slice, self.begins.tolist(), self.ends.tolist())


class CopiesAgain:
    """For a block of rows whose texts may be equal: hashes of each text, and of its label for each task."""

    def __init__(self, places, rows, names):
        self.places, self.rows, self.names = places, rows, names

    def __call__(self, start):
        examples = self.places.examples(self.rows[start : start + step_of(self.places.parts["train"])])
        labels = [hashes([None if e[name] is None else repr(e[name]) for e in examples]) for name in self.names]
        return hashes([key_of(e) for e in examples]), *labels


def add_lazily(sample, row, *arguments):
    """Adds row(*arguments), which is called only if the result is kept."""
    if sample.is_full:
        sample.number += 1
    else:
        sample.add(row(*arguments))


def repeated_texts(equal, places):
    """Notes on texts that are repeated within a part or across two parts. equal: Copies"""
    within, across = defaultdict(Sample), defaultdict(Sample)
    for group in equal:
        first_in = {}
        for row in equal.rows[group].tolist():
            part = places.part(row)
            for other, first in reversed(first_in.items()):
                kind = within[part] if other == part else across[other, part]
                add_lazily(kind, places.pair, row, first, ", as")
            first_in.setdefault(part, row)
    for part, copies in within.items():
        advice = "remove them, or keep them if they are as frequent in production"
        yield Note(f"{part}: texts that repeat an earlier example", copies, advice)
    for (first, second), copies in across.items():
        advice = "scores would be too high: remove them from one of the parts"
        yield Note(f"{second}: texts that also occur in {first}", copies, advice)


def conflicting_labels(equal, places, labels):
    """Notes on equal texts with different labels. equal: Copies; labels: {task: (rows,) hashes}"""
    conflicts, none = {name: Sample() for name in labels}, hash(None)
    for group in equal:
        for name, of_rows in labels.items():
            seen, first = set(), None
            for row, label in zip(equal.rows[group].tolist(), of_rows[group].tolist()):
                if label != none and seen - {label}:
                    add_lazily(conflicts[name], conflict, places, row, first, name)
                if label != none:
                    seen.add(label)
                    first = row if first is None else first
    for name, conflicting in conflicts.items():
        advice = "decide which is right; a model cannot learn both"
        yield Note(f"{name}: the same text has different labels", conflicting, advice)


def conflict(places, row, other, name):
    e, first = places[row], places[other]
    return f"{e['_where']} and {first['_where']}: {e[name]!r} and {first[name]!r}"[:160]


def look_pairs(found, part, start, examples, context):
    if "text" in examples[0] and "text_pair" in examples[0]:
        pairs = [(e["text"], e["text_pair"]) for e in examples]
        found.columns["pair"] = hashes(pairs)
        found.columns["swapped"] = hashes([(b, a) if a != b else (a, None, b) for a, b in pairs])


def check_swapped_pairs(found, parts, tasks):
    swapped = [np.zeros(0, np.int64)]
    if "pair" in found.columns:
        for (places, values), (others, turned) in buckets(found.columns["pair"], found.columns["swapped"]):
            known, first = np.unique(values, return_index=True)
            at = np.minimum(np.searchsorted(known, turned), max(0, len(known) - 1))
            if len(known):
                swapped.append(others[(known[at] == turned) & (places[first[at]] < others)])
    advice = "fine for a symmetric task; otherwise check which order is meant"
    rows = sampled(np.sort(np.concatenate(swapped)), Places(parts).where)
    yield Note("pairs that also occur in reverse order", rows, advice)


def sampled(numbers, row):
    """A Sample of row(number) for all these numbers."""
    sample = Sample([row(number) for number in numbers[: Sample.most].tolist()])
    sample.number = len(numbers)
    return sample


def look_ids(found, part, start, examples, context):
    if context.ids:
        found.columns["id"] = hashes([e["id"] for e in examples])


def check_ids(found, parts, tasks):
    rows, places = Sample(), Places(parts)
    if "id" in found.columns:
        firsts, again = repeats(found.columns["id"])
        rows = sampled(np.sort(again[again != firsts]), lambda row: f"{places.where(row)}: {places[row]['id']}")
    yield Note("ids are used more than once", rows, "predictions cannot be matched to examples by id")


def first_match(pattern, text):
    match = re.search(pattern, text)
    return match and match.group()


def invisible(text):
    if text.isascii():
        return None
    joined = JOINED_SCRIPTS.search(text)
    return next((c for c in text if c in INVISIBLE and not (joined and c in "\u200c\u200e\u200f")), None)


def mojibake(text):
    """The first characters that are UTF-8 decoded as Latin-1 or cp1252, or None: re-encoded, they are valid UTF-8."""
    for run in HIGH.findall(text):
        for encoding in ("cp1252", "latin-1"):
            with suppress(UnicodeError):
                meant = run.encode(encoding).decode("utf-8")
                # French "é »" would be a rare ideograph
                if len(meant) > 1 or run[0] in "ÃÂâ" or re.search("[\u0080-\u009f]", run):
                    return run
    return next((sign for sign in ("锟斤拷", "烫烫烫") if sign in text), None)


def private(text):
    if text.isprintable():
        return None
    return next((c for c in text if unicodedata.category(c) in ("Co", "Cn")), None)


def markup(text):
    match = MARKUP.search(text)
    is_markup = match and (match.group()[0] == "<" or html.unescape(match.group()) != match.group())
    return match.group() if is_markup else None


control = partial(first_match, "[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
undecodable = partial(first_match, "\ufffd")
mixed_script = partial(first_match, rf"\b(?=\w*[{LOOK_ALIKE}])(?=\w*[A-Za-z])\w{{3,}}")
full_width = partial(first_match, "[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a]")
IN_TEXTS = [  # test of a text, what it finds, what to do
    (control, "control characters in texts", "they come from a broken export: remove them"),
    (undecodable, "characters that could not be decoded (U+FFFD)", "read the source again with --encoding"),
    (mojibake, "texts decoded with the wrong encoding", "read the source again with --encoding"),
    (invisible, "invisible characters in texts", "two texts that look the same differ: remove them"),
    (private, "private or unassigned characters in texts", "not in any vocabulary: replace them"),
    (markup, "markup or HTML entities in texts", "convert them to plain text with html.unescape and a parser"),
    (mixed_script, "words that mix Latin and look-alike letters", "they are tokenized differently than they look"),
    (full_width, "both full-width and half-width letters or digits", "NFKC normalisation unifies them"),
]


def first_hit(test, e):
    """What a test finds in the texts of an example, as printable ASCII; or None."""
    return next((ascii(hit) for text in texts_of(e) if (hit := test(text))), None)


def is_quoted(e):
    return '""' in text_of(e) + e.get("text_pair", "") and any(
        len(t) > 2 and t[0] == t[-1] == '"' and '""' in t[1:-1] for t in texts_of(e)
    )


def has_outer_blanks(e):
    return "tokens" not in e and any(t != t.strip() for t in texts_of(e) if t)


def looks_missing(e):
    return text_of(e).strip().lower() in PLACEHOLDERS and repr(text_of(e))


def has_no_letter(e):
    text = text_of(e)
    if text[:1].isalnum():
        return False
    return not any(map(str.isalnum, text)) and not looks_missing(e) and ascii(text_of(e)[:20])


def is_own_pair(e):
    return "text" in e and "text_pair" in e and e["text"] == e["text_pair"] != ""


def has_empty_pair(e):
    return "text_pair" in e and not e["text_pair"].strip()


IN_EXAMPLES = [
    (
        is_quoted,
        "texts in CSV quotes, with doubled quotes inside",
        "the TSV was written with CSV quoting: add --format csv, or unquote them",
    ),
    (
        has_outer_blanks,
        "texts begin or end with whitespace",
        "harmless for most tokenizers; strip them to find duplicates",
    ),
    (looks_missing, "texts that look like a missing value", "they are used as texts: remove the rows if they are not"),
    (has_no_letter, "texts without a letter or digit", "there is little to learn from them"),
    (is_own_pair, "both texts of a pair are the same", "check the export"),
    (has_empty_pair, "one text of a pair is empty", "check the export"),
]


def suspicious(text):
    """Whether a test of IN_TEXTS could find something in a text: a quick filter."""
    if not text.isprintable():  # it has control, format, private or unassigned characters, or whitespace
        for blank in HARMLESS_BLANKS:
            text = text.replace(blank, "")
        if not text.isprintable():
            return True
    if text.isascii():
        return "<" in text or "&" in text
    return bool(SUSPECT.search(text)) or bool(SUSPECT_LETTER.search(text) and HALF_WIDTH.search(text))


def look_texts(found, part, start, examples, context):
    found.counts["half width"][()] += any(HALF_WIDTH.search(text_of(e)) for e in examples)
    for e in examples:
        if suspicious(text_of(e)) or suspicious(e.get("text_pair", "")):
            for test, what, _ in IN_TEXTS:
                add_if(found.rows[what], e, first_hit(test, e))
        for test, what, _ in IN_EXAMPLES:
            if result := test(e):
                add_if(found.rows[what], e, result)


def check_texts(found, parts, tasks):
    for test, what, advice in IN_TEXTS:
        if test is not full_width or found.counts["half width"][()]:
            yield Note(what, found.rows[what], advice)
    for _, what, advice in IN_EXAMPLES:
        yield Note(what, found.rows[what], advice)


def look_groups(found, part, start, examples, context):
    if "group" in examples[0]:
        alone = [("", part, start + n) for n in range(len(examples))]
        groups = [e.get("group") for e in examples]
        found.columns["group"] = hashes([own if g in (None, "") else str(g) for own, g in zip(alone, groups)])


def check_groups(found, parts, tasks):
    shared, places = [], Places(parts)
    if "group" in found.columns:
        firsts, rows = repeats(found.columns["group"])
        apart = np.unique(firsts[places.part_numbers(rows) != places.part_numbers(firsts)])
        shared = sampled(apart, lambda first: shared_group(places, rows[firsts == first].tolist()))
    yield Note("groups that two parts share", shared, "scores would be too high: keep each group in one part")


def shared_group(places, rows):
    """A group and its first row in each part, as shown."""
    where = {places.part(row): places.where(row) for row in reversed(rows)}
    return f"{str(places[rows[0]]['group'])!r}: {', '.join(reversed(where.values()))}"


def look_tokens(found, part, start, examples, context):
    for e in examples:
        tokens = e.get("tokens", ())
        if "" in tokens:
            found.rows["empty token"].add(f"{e['_where']}: an empty token")
        if context.glued:
            add_if(found.rows["glued token"], e, first_token(e, r"[^\W\da-zA-Z]\d+", repr))
        if context.words and (joined := "".join(tokens)).split() != [joined]:
            add_if(found.rows["blank token"], e, first_token(e, r"(?s)\s+|.*\S\s+\S.*", ascii))


def check_tokens(found, parts, tasks):
    yield Note("tokens that are empty", found.rows["empty token"], "they become [UNK]; check how the text was split")
    advice = "remove the number; such tokens are in no vocabulary"
    yield Note("tokens are characters with a number appended", found.rows["glued token"], advice)
    advice = "tags may be shifted by a column: check the delimiter"
    yield Note("tokens that are or contain whitespace", found.rows["blank token"], advice)


def first_token(e, pattern, shown):
    """The first token that matches a pattern, formatted by shown(token); or None."""
    return next((shown(token) for token in e.get("tokens", ()) if re.fullmatch(pattern, token)), None)


def weighted_median(counts):
    """The median of values given with their counts, {value: count}."""
    ordered, before, total = sorted(counts), 0, sum(counts.values())
    middle = []
    for value in ordered:
        before += counts[value]
        middle += [value] * ((before > (total - 1) // 2) + (before > total // 2) - len(middle))
        if len(middle) == 2:
            return middle[0] if total % 2 else (middle[0] + middle[1]) / 2
    raise ValueError("no values")


def outlier_spread(counts, middle):
    """The median absolute deviation, scaled to the standard deviation of a normal distribution; robust to outliers."""
    deviations = Counter()
    for value, count in counts.items():
        deviations[abs(value - middle)] += count
    return 1.4826 * weighted_median(deviations)


def look_lengths(found, part, start, examples, context):
    found.columns["longest"] = np.array([max(map(length_of, examples))])


def check_lengths(found, parts, tasks):
    lengths = {part: found.counts["lengths", part] for part in parts}
    logs = Counter()
    for n, count in lengths["train"].items():
        logs[math.log(1 + n)] += count
    middle = weighted_median(logs)
    limit = max(30, math.exp(middle + 6 * max(outlier_spread(logs, middle), 0.3)))
    long = Sample()
    for (part, start, stop), longest in zip(blocks_of(parts), found.columns["longest"].read().tolist()):
        if longest > limit and not long.is_full:
            for e in parts[part][start:stop]:
                add_if(long, e, length_of(e) > limit and str(length_of(e)))
    long.number = sum(count for of_part in lengths.values() for n, count in of_part.items() if n > limit)
    yield Note("texts far longer than the others", long, "a missing end of row, or several texts in one?")
    for part in parts:
        yield from compare_lengths(lengths["train"], lengths[part], part)


def compare_lengths(train, others, part):
    """A note if the length distribution of a part differs from that of train (Kolmogorov-Smirnov)."""
    sizes = train.total(), others.total()
    if part != "train" and min(sizes) >= 30:
        unlikely = 1.95 * math.sqrt(sum(sizes) / (sizes[0] * sizes[1]))
        apart, below, below_others = 0.0, 0, 0
        for length in sorted(train.keys() | others.keys()):
            below, below_others = below + train[length], below_others + others[length]
            apart = max(apart, abs(below / sizes[0] - below_others / sizes[1]))
        if apart > max(0.15, unlikely):
            rows = [f"median {weighted_median(train):g} in train, {weighted_median(others):g} in {part}"]
            advice = "the parts differ in kind: split again unless this is intended"
            yield Note(f"{part}: texts are longer or shorter than in train", rows, advice)


# ---- labels --------------------------------------------------------------------------------------------------------


def look_at_labels(found, part, start, examples, context):
    """Records what labels.json, the summary and the label checks need."""
    look_labels(found, part, start, examples, context.kinds)
    for name, kind in context.kinds.items():
        if kind == "multilabel":
            for e in examples:
                add_if(found.rows["no label", name], e, e[name] == [])


def check_labels(found, parts, tasks):
    for name, task in tasks.items():
        if kind_of(task) != "regression":
            counts = {part: found.counts["labels", name, part] for part in parts}
            places = {part: found.first["labels", name, part] for part in parts}
            first = {
                part: {label: f"{where}: {label!r}" for label, where in of_part.items()}
                for part, of_part in places.items()
            }
            yield from check_label_names(name, task, counts, first)
            if kind_of(task) == "classification" and counts["train"]:
                yield from check_class_balance(name, counts, first)
            if kind_of(task) == "multilabel":
                without = found.counts["none", name]["train"] + found.counts["missing", name]["train"]
                often, number = without > 0.05 * len(parts["train"]), len(parts["train"])
                none = [] if often else found.rows["no label", name]
                yield Note(
                    f"{name}: rows with no label at all", none, "is an empty set meant, or is the label missing (null)?"
                )
                always = [first["train"][label] for label, n in counts["train"].items() if n == number > 1]
                yield Note(f"{name}: labels that every row has", always, "there is nothing to learn: remove them")


def check_label_names(name, task, counts, first):
    """Notes on labels that a part lacks, that are rare, or look like another. first: {part: {label: its first row}}"""
    train, dev = counts["train"], counts.get("dev")
    for part, present in counts.items():
        unseen = [first[part][label] for label in sorted(present.keys() - train.keys())]
        advice = "they always count as wrong: move some to train, or merge them"
        yield Note(f"{name}: labels of {part} that never occur in train", unseen, advice)
    once = [first["train"][label] for label in sorted(train) if train[label] == 1]
    advice = "one example is too few to learn from: merge, collect more, or remove"
    yield Note(f"{name}: labels that occur only once in train", once, advice)
    untested = [first["train"][x] for x in sorted(train) if dev is not None and train[x] >= 20 and not dev[x]]
    yield Note(f"{name}: labels of train that dev lacks", untested, "split again, stratified")
    if not is_tagging(kind_of(task)):
        alike = labels_alike(counts, first)
        yield Note(f"{name}: labels that differ only in case, spaces or width", alike, "probably one label: merge them")
    odd = [first[part][x] for part in counts for x in sorted(counts[part]) if x.strip().lower() in PLACEHOLDERS]
    yield Note(f"{name}: labels that look like a missing value", odd, "leave the label empty (null) if there is none")


def labels_alike(counts, first):
    """For each group of labels that differ only in case, spaces or width: where the rarest occurs, and the others."""
    folded, rows = defaultdict(set), []
    total = sum(counts.values(), Counter())
    for label in total:
        folded[re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", label).casefold())].add(label)
    for group in folded.values():
        if len(group) > 1:
            rare = min(sorted(group), key=lambda label: total[label])
            where = next(first[part][rare] for part in counts if counts[part][rare])
            rows.append(f"{where}, and {', '.join(repr(label) for label in sorted(group - {rare}))}")
    return rows


def check_class_balance(name, counts, first):
    train = counts["train"]
    label, most = train.most_common(1)[0]
    if most / train.total() > 0.95 and train.total() >= 20:
        rows = [f"{first['train'][label]} {most / train.total():.1%}"]
        advice = "use macro F1, not accuracy; try --class_weights balanced"
        yield Note(f"{name}: nearly all of train is one label", rows, advice)
    for part, other in counts.items():
        if min(other.total(), train.total()) >= 30:  # train does not differ from itself
            shares = {x: (train[x] / train.total(), other[x] / other.total()) for x in train if other[x]}
            if sum(abs(a - b) for a, b in shares.values()) / 2 > 0.2:
                worst = max(shares, key=lambda x: abs(shares[x][0] - shares[x][1]))
                rows = [f"{worst!r} is {shares[worst][0]:.0%} of train, {shares[worst][1]:.0%} of {part}"]
                what = f"{name}: labels are distributed differently in {part} than in train"
                yield Note(what, rows, "split again, stratified, unless this is intended")


def check_numbers(found, parts, tasks):
    for name, task in tasks.items():
        if kind_of(task) == "regression":
            columns = {part: found.columns["numbers", name, part].read() for part in parts}
            labelled = columns["train"][~np.isnan(columns["train"])]
            middle = float(np.median(labelled))
            limit = 10 * (1.4826 * float(np.median(np.abs(labelled - middle))) or task["std"])
            far, places = Sample(), Places(parts)
            for values, start in zip(columns.values(), places.starts.tolist()):
                for row in np.flatnonzero(np.abs(values - middle) > limit).tolist():
                    add_lazily(far, places.with_value, start + row, values[row])
            yield Note(f"{name}: values far from all others", far, "a unit or a decimal point may be wrong")
            for part, values in columns.items():
                values = values[~np.isnan(values)]
                yield from compare_numbers(name, task, part, values, parts[part][0]["_where"])


def compare_numbers(name, task, part, values, where):
    """Notes on a part whose values are all the same, or distributed differently than in train."""
    if len(values) > 1 and values.min() == values.max():
        rows = [f"{where}: {values[0]:g}"]
        yield Note(f"{name}: all values of {part} are the same", rows, "no correlation can be computed")
    elif part != "train" and len(values) >= 30:
        mean = math.fsum(values) / len(values)
        if abs(mean - task["mean"]) > 0.5 * task["std"]:
            rows = [f"mean {mean:.4g} and {task['mean']:.4g}"]
            yield Note(f"{name}: values of {part} differ from train", rows, "split again unless this is intended")


# ---- tags ----------------------------------------------------------------------------------------------------------


def look_tags(found, part, start, examples, context):
    for name in context.tagged:
        surfaces = []
        for e in examples:
            tags = e[name]
            if tags and tags.count("O") < len(tags):
                found.counts["entities", name][part] += 1
                look_scheme(found, name, e)
                surfaces += look_borders(found, name, e)
        found.columns["surfaces", name] = hashes(surfaces)


def check_tags(found, parts, tasks):
    for name, task in tasks.items():
        if is_tagging(kind_of(task)) and find_scheme([task["labels"]]) is not None:
            yield from check_scheme(found, name, task)
            yield from check_entities(found, parts, name)
            bare = [part for part in parts if not found.counts["entities", name][part]]
            rows = [f"{parts[part][0]['_where']}: {part}" for part in bare]
            yield Note(f"{name}: a part has no entity at all", rows, "its F1 can only be 0")


def look_spans(found, part, start, examples, context):
    for name in context.spans:
        surfaces = []
        for e in examples:
            if e[name]:
                found.counts["entities", name][part] += 1
                add_if(found.rows["crossing", name], e, first_crossing(e, name))
                surfaces += look_borders(found, name, e)
        found.columns["surfaces", name] = hashes(surfaces)


def check_spans(found, parts, tasks):
    for name, task in tasks.items():
        if has_spans(kind_of(task)):
            advice = "fine if intended; nested spans lie one within the other"
            what = f"{name}: spans that overlap without being nested"
            yield Note(what, found.rows["crossing", name], advice)
            yield from check_entities(found, parts, name)
            bare = [part for part in parts if not found.counts["entities", name][part]]
            rows = [f"{parts[part][0]['_where']}: {part}" for part in bare]
            yield Note(f"{name}: a part has no span at all", rows, "its F1 can only be 0")


def first_crossing(e, name):
    """Two spans of an example that overlap without being nested, as shown; or None."""
    spans = sorted((first, -last) for first, last, _ in e[name])
    for number, (first, last) in enumerate(spans):
        for other, end in spans[number + 1 :]:
            if first < other <= -last < -end:
                return f"{' '.join(e['tokens'][first : 1 - last])!r} and {' '.join(e['tokens'][other : 1 - end])!r}"
    return None


def entities_of(e, name):
    """(type, first token, last token, tokens) of an example's entities, given as tags or spans."""
    label = e[name]
    found = [(kind, *ends) for *ends, kind in label] if label and isinstance(label[0], list) else entities_in(label)
    return [(kind, first, last, e["tokens"][first : last + 1]) for kind, first, last in found]


def look_scheme(found, name, e):
    tags, where = e[name], e["_where"]
    for i in illegal_tags(tags)[:1]:
        found.rows["illegal", name].add(f"{where}: token {i + 1} {e['tokens'][i]!r} {tags[i]}")
    for i, (tag, after) in enumerate(zip(tags, [*tags[1:], "O"])):
        if tag[0] in "BIM" and tag[1:2] == "-" and not after.startswith(("I-", "E-", "M-")):
            found.rows["unfinished", name].add(f"{where}: token {i + 1} {tag}")
            break


def check_scheme(found, name, task):
    advice = "seqeval still counts them as entities; write B- where one begins"
    yield Note(f"{name}: tags that continue no entity", found.rows["illegal", name], advice)
    bioes = any(label.startswith(("E-", "S-")) for label in task["labels"])
    unfinished = found.rows["unfinished", name] if bioes else []
    yield Note(f"{name}: entities without an end tag", unfinished, "the scheme requires an E- or S- there")


def look_borders(found, name, e):
    """Records odd borders of an example's entities. -> the words of each"""
    surfaces = []
    for label, first, last, words in entities_of(e, name):
        if last - first >= 20 and last - first > 0.5 * len(e["tokens"]):
            found.rows["long", name].add(f"{e['_where']}: {label}, {last - first + 1} tokens")
        if len(words) > 1 and (is_punctuation(words[0]) or is_punctuation(words[-1])):
            found.rows["edges", name].add(f"{e['_where']}: {label} {' '.join(words)!r}")
        surfaces.append(tuple(words))
    return surfaces


def is_punctuation(token):
    return token and not token[0].isalnum() and not any(map(str.isalnum, token)) and token not in NO_BORDER


NO_BORDER = "()[]《》“”\"'$#@.%+"


def check_entities(found, parts, name):
    """Notes on the borders of entities, and on the same words tagged in different ways."""
    surfaces = found.columns.get(("surfaces", name), ())
    long, edges = found.rows["long", name], found.rows["edges", name]
    yield Note(f"{name}: long entities that fill most of their text", long, "a tag may have been extended by mistake")
    few = edges.number < max(10, 0.02 * len(surfaces))
    yield Note(f"{name}: entities begin or end with punctuation", edges if few else [], "boundaries may be off by one")
    often = frequent(surfaces, 10) if len(surfaces) else {}
    seen = look_again(parts, Surfaces(parts, name, often)) if often else Found()
    rare = Sample()
    for words, kinds in seen.counts.items():
        label, count = min(kinds.items(), key=lambda item: (item[1], item[0]))
        if len(kinds) > 1 and count == 1:
            usual = max(kinds, key=kinds.get)
            rare.add(f"{seen.first[words][label]}: {' '.join(words)!r} is {label} once, otherwise {usual}")
    what = f"{name}: the same words nearly always have one type, and another once"
    yield Note(what, rare, "probably an annotation error: check the row")
    totals = {words: kinds.total() for words, kinds in seen.counts.items() if len(words) >= 2}
    outside = look_again(parts, Forgotten(parts, name, totals), totals).rows if totals else {}
    rows = [row for words, rows in outside.items() if rows.number <= 0.05 * totals[words] for row in rows]
    what = f"{name}: words that are nearly always entities are O here"
    yield Note(what, rows, "probably missed in annotation: check the rows")


def look_again(parts, look, totals=None):
    """What a second pass over all blocks finds. totals: as in Forgotten; rows of frequent findings are dropped"""
    found = Found()
    blocks = tqdm(list(blocks_of(parts)), desc="data checks: entities", leave=False, delay=2)
    for of_block in in_order(look, blocks):
        found.merge(of_block)
        for words in of_block.rows if totals else ():
            if found.rows[words].number > 0.05 * totals[words]:
                found.rows[words].clear()
    return found


class Surfaces:
    """Counts the types of entities whose words are frequent. often: hashes of the words"""

    def __init__(self, parts, name, often):
        self.parts, self.name, self.often = parts, name, often

    def __call__(self, block):
        found, (part, start, stop) = Found(), block
        for e in self.parts[part][start:stop]:
            for label, _, _, words in entities_of(e, self.name) if e[self.name] else ():
                words = tuple(words)
                if hash(words) in self.often:
                    found.counts[words][label] += 1
                    found.first[words].setdefault(label, e["_where"])
        return found


class Forgotten:
    """Finds untagged words that are an entity elsewhere. totals: {two words or more: how often they are an entity}"""

    def __init__(self, parts, name, totals):
        self.parts, self.name, self.by_pair = parts, name, defaultdict(list)
        for words in totals:
            self.by_pair[words[:2]].append(words)

    def __call__(self, block):
        found, (part, start, stop) = Found(), block
        for e in self.parts[part][start:stop]:
            tokens = e["tokens"]
            if e[self.name] is not None and not self.by_pair.keys().isdisjoint(pairs := list(pairwise(tokens))):
                outside = outside_of(e, self.name)
                for i, pair in enumerate(pairs):
                    for words in self.by_pair.get(pair, ()) if outside[i] else ():
                        end = i + len(words)
                        if tuple(tokens[i:end]) == words and all(outside[i:end]):
                            found.rows[words].add(f"{e['_where']}: {' '.join(words)!r}")
        return found


def outside_of(e, name):
    """One bool per token of an example: whether it belongs to no entity."""
    if not e[name] or isinstance(e[name][0], str):
        return [tag == "O" for tag in e[name] or ["O"] * len(e["tokens"])]
    inside = {place for first, last, _ in e[name] for place in range(first, last + 1)}
    return [place not in inside for place in range(len(e["tokens"]))]


# ---- with the tokenizer --------------------------------------------------------------------------------------------


def check_encoding(parts, tasks, featurizer):
    """Notes on the data after tokenization: texts over max_length, tokens that vanish, unknown characters."""
    tokenizer, length = featurizer.tokenizer, featurizer.max_length
    rows, number = defaultdict(Sample), sum(map(len, parts.values()))
    special = {token for token in tokenizer.all_special_tokens if token.strip()}
    for part, start, stop in tqdm(list(blocks_of(parts)), desc="tokenizer", leave=False, delay=2):
        chunk = parts[part][start:stop]
        words = [e["tokens"] if "tokens" in e else e["text"] for e in chunk]
        options = dict(is_split_into_words="tokens" in chunk[0], add_special_tokens=False, verbose=False)
        for e, encoding in zip(chunk, tokenizer(words, **options).encodings):
            for what, detail in encoding_faults(e, encoding, tokenizer, length, tasks, special):
                rows[what].add(f"{e['_where']}: {detail}")
    advice = "raise it; otherwise tagging uses windows and classification --truncation"
    yield Note(f"texts are longer than --max_length {length}", rows["long"], advice)
    advice = "windows (--window_stride) cover them; a larger --max_length is faster"
    yield Note(f"entities lie beyond --max_length {length}", rows["entity"], advice)
    advice = "they are read as [UNK], so tags do not shift; remove them if they carry no meaning"
    yield Note("tokens vanish in the tokenizer", rows["vanished"], advice)
    if rows["unknown"].number > 0.1 * number:
        advice = "use another tokenizer, or add them with --new_tokens of continue_pretrain_task.py"
        share = f" ({rows['unknown'].number / number:.1%} of the rows)"
        yield Note(f"characters become [UNK]{share}", rows["unknown"], advice)
    advice = "they are read as special tokens: add markers with --special_tokens"
    yield Note("texts contain the tokenizer's own special tokens", rows["special"], advice)


def encoding_faults(e, encoding, tokenizer, length, tasks, special):
    """(kind, detail) of each problem that the tokenizer has with an example."""
    pair = e.get("text_pair")
    room = length - 2 - (len(tokenizer(pair, add_special_tokens=False)["input_ids"]) + 1 if pair else 0)
    tokens = e.get("tokens")
    if len(encoding.ids) > room:
        yield "long", f"{len(encoding.ids) + 2} sub-tokens"
        kept = set(encoding.word_ids[:room])
        for name, task in tasks.items():
            if needs_words(kind_of(task)) and e[name]:
                lost = [(label, words) for label, _, last, words in entities_of(e, name) if last not in kept]
                yield from [("entity", f"{label} {' '.join(words)!r}") for label, words in lost[:1]]
    if tokens:
        present = set(encoding.word_ids)
        yield from [("vanished", ascii(token)) for i, token in enumerate(tokens) if i not in present][:1]
    if tokenizer.unk_token_id in encoding.ids:
        i = encoding.ids.index(tokenizer.unk_token_id)
        start, stop = encoding.offsets[i]
        yield "unknown", repr(tokens[encoding.word_ids[i]] if tokens else e["text"][start:stop])
    yield from [("special", token) for token in special if token in text_of(e)][:1]


CHECKS = [
    Streamed(look_ids, check_ids),
    Streamed(look_duplicates, check_duplicates),
    Streamed(look_pairs, check_swapped_pairs),
    Streamed(look_groups, check_groups),
    Streamed(look_texts, check_texts),
    Streamed(look_tokens, check_tokens),
    Streamed(look_lengths, check_lengths),
    Streamed(look_at_labels, check_labels),
    Streamed(None, check_numbers),
    Streamed(look_tags, check_tags),
    Streamed(look_spans, check_spans),
]


class Look:
    """The single pass over a block of rows: what all checks record of it, and its lines for the processed folder."""

    def __init__(self, parts, kinds, write):
        self.parts, self.context, self.write = parts, Context(parts, kinds), write

    def __call__(self, block):
        part, start, stop = block
        examples, found = self.parts[part][start:stop], Found()
        for check in CHECKS:
            if isinstance(check, Streamed) and check.look is not None:
                check.look(found, part, start, examples, self.context)
        return part, encode_rows(examples) if self.write else b"", found


def look_through(parts, kinds, files=None):
    """Reads all rows once, writes those of each part to files[part], and returns what was found in them."""
    found, blocks = Found(getattr(parts["train"], "folder", None)), list(blocks_of(parts))
    bar = tqdm(total=sum(map(len, parts.values())), desc="rows", unit=" rows", leave=False, delay=2)
    with bar:
        for block, (part, lines, of_block) in zip(blocks, in_order(Look(parts, kinds, bool(files)), blocks)):
            found.merge(of_block)
            if files:
                files[part].write(lines)
            bar.update(block[2] - block[1])
    return found


def examine(parts, tasks, notes=(), found=None):
    """All notes that have rows, those of the processing first. found: the result of `look_through`, if it has run."""
    if found is None:
        found = look_through(parts, {name: kind_of(task) for name, task in tasks.items()})
    notes = list(notes)
    for check in tqdm(CHECKS, desc="data checks", leave=False, delay=2):
        notes += check.conclude(found, parts, tasks) if isinstance(check, Streamed) else check(parts, tasks)
    return with_rows(notes)


def with_rows(notes):
    return [note for note in notes if note.rows]


def keep(notes, path):
    """Writes the notes with the first rows of each to a JSON file, for a run's report."""
    write_json(path, [{"what": n.what, "count": n.number, "rows": n.rows[:3], "advice": n.advice} for n in notes])


def show(notes, most=3):
    """Prints each note: what was found, how often, the first rows, what to do."""
    if not notes:
        print("checks: no problems found")
        return
    print(f"checks: {len(notes)} possible problems")
    for note in notes:
        more = f"; and {note.number - most} more" if note.number > most else ""
        print(f"  - {note.what} ({note.number}): {'; '.join(note.rows[:most])}{more}\n      -> {note.advice}")
