"""Checks for repeated ids, texts, pairs and groups, and for equal texts with different labels."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from engine.task.text import text_of
from preprocess.checks.base import AllRows, Check, Context, Parts, Tasks, sampled
from preprocess.example import Example
from preprocess.labels.statistics import LabelStatistics
from preprocess.storage.arrow import step_of
from preprocess.storage.facts import Note, Sample, Series, buckets, hashes, repeats
from preprocess.storage.parallel import in_order


class Ids(Check):
    def __init__(self, context: Context) -> None:
        self.ids = Series(context.folder)

    def look(self, part: str, start: int, examples: Sequence[Example], context: Context) -> None:
        if context.own_ids:
            self.ids.of_block = hashes([e["id"] for e in examples])

    def notes(self, parts: Parts, tasks: Tasks, labels: LabelStatistics) -> Iterator[Note]:
        rows = AllRows(parts)
        firsts, positions = repeats(self.ids.column)
        again = sampled(np.sort(positions[positions != firsts]), lambda row: f"{rows.where(row)}: {rows[row]['id']}")
        yield Note("ids are used more than once", again, "predictions cannot be matched to examples by id")


class Duplicates(Check):
    """Duplicates, near duplicates, and duplicates with different labels; only these rows are read again."""

    def __init__(self, context: Context) -> None:
        self.texts = Series(context.folder)

    def look(self, part: str, start: int, examples: Sequence[Example], context: Context) -> None:
        self.texts.of_block = hashes([plain(e) for e in examples])

    def notes(self, parts: Parts, tasks: Tasks, labels: LabelStatistics) -> Iterator[Note]:
        firsts, positions = repeats(self.texts.column)
        if not len(positions):
            return
        rows, step = AllRows(parts), step_of(parts["train"])
        blocks = (positions[start : start + step] for start in range(0, len(positions), step))
        hashed = in_order(partial(hash_again, rows, list(tasks)), blocks)
        keys, *of_tasks = map(np.concatenate, zip(*hashed))
        yield from repeated_texts(keys, positions, rows)
        yield from conflicting_labels(keys, positions, rows, dict(zip(tasks, of_tasks)))
        begin = np.maximum.accumulate(np.where(positions == firsts, np.arange(len(positions)), 0))
        apart = rows.part_numbers(positions) != rows.part_numbers(firsts)
        near = np.stack([positions, firsts], axis=1)[apart & (keys != keys[begin])]
        similar = sampled(near, lambda pair: rows.pair(pair, " and"))
        what = "texts of two parts differ only in case, whitespace or punctuation"
        yield Note(what, similar, "nearly a leak: keep each in one part")


class SwappedPairs(Check):
    def __init__(self, context: Context) -> None:
        self.pairs = Series(context.folder)
        self.swapped = Series(context.folder)

    def look(self, part: str, start: int, examples: Sequence[Example], context: Context) -> None:
        if "text" in examples[0] and "text_pair" in examples[0]:
            pairs = [(e["text"], e["text_pair"]) for e in examples]
            self.pairs.of_block = hashes(pairs)
            self.swapped.of_block = hashes([(b, a) if a != b else (a, None, b) for a, b in pairs])

    def notes(self, parts: Parts, tasks: Tasks, labels: LabelStatistics) -> Iterator[Note]:
        swapped = [np.zeros(0, np.int64)]
        for (positions, values), (others, turned) in buckets(self.pairs.column, self.swapped.column):
            if len(values):
                known, first = np.unique(values, return_index=True)
                at = np.minimum(np.searchsorted(known, turned), len(known) - 1)
                swapped.append(others[(known[at] == turned) & (positions[first[at]] < others)])
        rows = sampled(np.sort(np.concatenate(swapped)), AllRows(parts).where)
        advice = "fine for a symmetric task; otherwise check which order is meant"
        yield Note("pairs that also occur in reverse order", rows, advice)


class Groups(Check):
    def __init__(self, context: Context) -> None:
        self.groups = Series(context.folder)

    def look(self, part: str, start: int, examples: Sequence[Example], context: Context) -> None:
        if "group" in examples[0]:
            alone = [("", part, start + n) for n in range(len(examples))]
            groups = [e.get("group") for e in examples]
            self.groups.of_block = hashes([own if g in (None, "") else str(g) for own, g in zip(alone, groups)])

    def notes(self, parts: Parts, tasks: Tasks, labels: LabelStatistics) -> Iterator[Note]:
        rows = AllRows(parts)
        firsts, positions = repeats(self.groups.column)
        apart = np.unique(firsts[rows.part_numbers(positions) != rows.part_numbers(firsts)])
        shared = sampled(apart, lambda first: shared_group(rows, positions[firsts == first].tolist()))
        yield Note("groups that two parts share", shared, "scores would be too high: keep each group in one part")


def shared_group(rows: AllRows, positions: list[int]) -> str:
    """Formats a group with its first row in each part."""
    where = {rows.part(position): rows.where(position) for position in reversed(positions)}
    return f"{str(rows[positions[0]]['group'])!r}: {', '.join(reversed(where.values()))}"


class Letters(dict[int, int | None]):
    """A table for str.translate that keeps letters, digits, marks and line feeds."""

    def __missing__(self, code: int) -> int | None:
        stays = code == 10 or unicodedata.category(chr(code))[0] in "LNM"
        self[code] = code if stays else None
        return self[code]


LETTERS = Letters()


def plain(example: Example) -> str:
    """The text without case, whitespace, punctuation and character width; equal for near duplicates."""
    text = text_of(example) + "\n" + example.get("text_pair", "")
    text = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return text.translate(LETTERS) if len(text) > 8 else text


def hash_again(rows: AllRows, names: list[str], positions: np.ndarray) -> tuple[np.ndarray, ...]:
    """Hashes of each position's text, and of its label for each task."""
    examples = rows.examples(positions)
    texts = [(tuple(e["tokens"]) if "tokens" in e else e["text"], e.get("text_pair")) for e in examples]
    labels = [hashes([None if e[name] is None else repr(e[name]) for e in examples]) for name in names]
    return hashes(texts), *labels


def groups_of_equal(keys: np.ndarray, positions: np.ndarray) -> Iterator[np.ndarray]:
    """Groups of two or more row indices with the same key, ordered by their first rows."""
    order = np.lexsort([positions, keys])
    ordered = keys[order]
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    ends = np.append(begins[1:], len(order))
    several = np.flatnonzero(ends - begins > 1)
    for i in several[np.argsort(positions[order[begins[several]]])]:
        yield order[begins[i] : ends[i]]


def repeated_texts(keys: np.ndarray, positions: np.ndarray, rows: AllRows) -> Iterator[Note]:
    """Notes on texts that are duplicated within a part or across parts."""
    within: dict[str, Sample] = defaultdict(Sample)
    across: dict[tuple[str, str], Sample] = defaultdict(Sample)
    for group in groups_of_equal(keys, positions):
        first_in: dict[str, int] = {}
        for position in positions[group].tolist():
            part = rows.part(position)
            for other, first in reversed(first_in.items()):
                copies = within[part] if other == part else across[other, part]
                copies.add((position, first))
            first_in.setdefault(part, position)
    shown = partial(sampled, shown=lambda pair: rows.pair(pair, ", as"))
    for part, copies in within.items():
        advice = "remove them, or keep them if they are as frequent in production"
        yield Note(f"{part}: texts that repeat an earlier example", shown(copies), advice)
    for (other, part), copies in across.items():
        advice = "scores would be too high: remove them from one of the parts"
        yield Note(f"{part}: texts that also occur in {other}", shown(copies), advice)


def conflicting_labels(
    keys: np.ndarray, positions: np.ndarray, rows: AllRows, labels: Mapping[str, np.ndarray]
) -> Iterator[Note]:
    """Notes on equal texts with different labels. labels: {task: hash of each row's label}"""
    conflicts: dict[str, Sample] = {name: Sample() for name in labels}
    for group in groups_of_equal(keys, positions):
        for name, of_rows in labels.items():
            labelled = [row for row in zip(positions[group].tolist(), of_rows[group].tolist()) if row[1] != hash(None)]
            seen = {label for _, label in labelled[:1]}
            for position, label in labelled[1:]:
                if seen != {label}:
                    conflicts[name].add((position, labelled[0][0]))
                seen.add(label)
    for name, pairs in conflicts.items():
        conflicting = sampled(pairs, partial(conflict, rows, name))
        advice = "decide which is right; a model cannot learn both"
        yield Note(f"{name}: the same text has different labels", conflicting, advice)


def conflict(rows: AllRows, name: str, pair: tuple[int, int]) -> str:
    e, first = rows[pair[0]], rows[pair[1]]
    return f"{e['_where']} and {first['_where']}: {e[name]!r} and {first[name]!r}"[:160]
