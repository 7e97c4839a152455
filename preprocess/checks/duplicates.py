"""Checks for repeated ids, texts, pairs and groups, and for identical texts with different labels."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from engine.task.text import text_of
from preprocess.checks.base import AllRows, Check, Context, Splits, Tasks, sampled
from preprocess.example import Example
from preprocess.labels.statistics import LabelStatistics
from preprocess.storage.arrow import step_of
from preprocess.storage.facts import Note, Sample, Series, buckets, hashes, repeats
from preprocess.storage.parallel import in_order


class Ids(Check):
    def __init__(self, context: Context) -> None:
        self.ids = Series(context.folder)

    def look(self, split: str, start: int, examples: Sequence[Example], context: Context) -> None:
        if context.own_ids:
            self.ids.of_block = hashes([e["id"] for e in examples])

    def notes(self, splits: Splits, tasks: Tasks, labels: LabelStatistics) -> Iterator[Note]:
        rows = AllRows(splits)
        firsts, positions = repeats(self.ids.column)
        repeated = sampled(np.sort(positions[positions != firsts]), lambda row: f"{rows.where(row)}: {rows[row]['id']}")
        yield Note("ids are used more than once", repeated, "predictions cannot be matched to examples by id")


class Duplicates(Check):
    """Finds duplicates, near duplicates, and duplicates with different labels. Reads only these rows again."""

    def __init__(self, context: Context) -> None:
        self.texts = Series(context.folder)

    def look(self, split: str, start: int, examples: Sequence[Example], context: Context) -> None:
        self.texts.of_block = hashes([plain(e) for e in examples])

    def notes(self, splits: Splits, tasks: Tasks, labels: LabelStatistics) -> Iterator[Note]:
        firsts, positions = repeats(self.texts.column)
        if not len(positions):
            return
        rows, step = AllRows(splits), step_of(splits["train"])
        blocks = (positions[start : start + step] for start in range(0, len(positions), step))
        hashed = in_order(partial(hash_again, rows, list(tasks)), blocks)
        keys, *label_hashes = map(np.concatenate, zip(*hashed))
        yield from repeated_texts(keys, positions, rows)
        yield from conflicting_labels(keys, positions, rows, dict(zip(tasks, label_hashes)))
        group_starts = np.maximum.accumulate(np.where(positions == firsts, np.arange(len(positions)), 0))
        in_other_split = rows.split_numbers(positions) != rows.split_numbers(firsts)
        near = np.stack([positions, firsts], axis=1)[in_other_split & (keys != keys[group_starts])]
        similar = sampled(near, lambda pair: rows.pair(pair, " and"))
        finding = "texts of two splits differ only in case, whitespace or punctuation"
        yield Note(finding, similar, "this is close to leakage; keep such texts in the same split")


class SwappedPairs(Check):
    def __init__(self, context: Context) -> None:
        self.pairs = Series(context.folder)
        self.swapped = Series(context.folder)

    def look(self, split: str, start: int, examples: Sequence[Example], context: Context) -> None:
        if "text" in examples[0] and "text_pair" in examples[0]:
            pairs = [(e["text"], e["text_pair"]) for e in examples]
            self.pairs.of_block = hashes(pairs)
            self.swapped.of_block = hashes([(b, a) if a != b else (a, None, b) for a, b in pairs])

    def notes(self, splits: Splits, tasks: Tasks, labels: LabelStatistics) -> Iterator[Note]:
        swapped = [np.zeros(0, np.int64)]
        for (positions, values), (others, swapped_values) in buckets(self.pairs.column, self.swapped.column):
            if len(values):
                known, first = np.unique(values, return_index=True)
                at = np.minimum(np.searchsorted(known, swapped_values), len(known) - 1)
                swapped.append(others[(known[at] == swapped_values) & (positions[first[at]] < others)])
        rows = sampled(np.sort(np.concatenate(swapped)), AllRows(splits).where)
        advice = "ignore this for a symmetric task; otherwise check which order is right"
        yield Note("pairs that also occur in reverse order", rows, advice)


class Groups(Check):
    def __init__(self, context: Context) -> None:
        self.groups = Series(context.folder)

    def look(self, split: str, start: int, examples: Sequence[Example], context: Context) -> None:
        if "group" in examples[0]:
            unique_keys = [("", split, start + n) for n in range(len(examples))]
            groups = [e.get("group") for e in examples]
            self.groups.of_block = hashes([key if g in (None, "") else str(g) for key, g in zip(unique_keys, groups)])

    def notes(self, splits: Splits, tasks: Tasks, labels: LabelStatistics) -> Iterator[Note]:
        rows = AllRows(splits)
        firsts, positions = repeats(self.groups.column)
        in_several_splits = np.unique(firsts[rows.split_numbers(positions) != rows.split_numbers(firsts)])
        shared = sampled(in_several_splits, lambda first: shared_group(rows, positions[firsts == first].tolist()))
        yield Note(
            "groups in more than one split", shared, "keep each group in one split; otherwise scores are too high"
        )


def shared_group(rows: AllRows, positions: list[int]) -> str:
    """Formats a group with its first row in each split."""
    where = {rows.split(position): rows.where(position) for position in reversed(positions)}
    return f"{str(rows[positions[0]]['group'])!r}: {', '.join(reversed(where.values()))}"


class Letters(dict[int, int | None]):
    """A table for str.translate that keeps letters, digits, marks and line feeds."""

    def __missing__(self, code: int) -> int | None:
        is_kept = code == 10 or unicodedata.category(chr(code))[0] in "LNM"
        self[code] = code if is_kept else None
        return self[code]


LETTERS = Letters()


def plain(example: Example) -> str:
    """Normalises case, whitespace, punctuation and character width, so that near duplicates become equal."""
    text = text_of(example) + "\n" + example.get("text_pair", "")
    text = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return text.translate(LETTERS) if len(text) > 8 else text


def hash_again(rows: AllRows, names: list[str], positions: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns hashes of the text at each position, and of its label for each task."""
    examples = rows.examples(positions)
    texts = [(tuple(e["tokens"]) if "tokens" in e else e["text"], e.get("text_pair")) for e in examples]
    labels = [hashes([None if e[name] is None else repr(e[name]) for e in examples]) for name in names]
    return hashes(texts), *labels


def groups_of_equal(keys: np.ndarray, positions: np.ndarray) -> Iterator[np.ndarray]:
    """Yields groups of two or more row indices with the same key, ordered by their first rows."""
    order = np.lexsort([positions, keys])
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    ends = np.append(starts[1:], len(order))
    repeated = np.flatnonzero(ends - starts > 1)
    for i in repeated[np.argsort(positions[order[starts[repeated]]])]:
        yield order[starts[i] : ends[i]]


def repeated_texts(keys: np.ndarray, positions: np.ndarray, rows: AllRows) -> Iterator[Note]:
    """Yields notes on texts that are duplicated within a split or across splits."""
    within: dict[str, Sample] = defaultdict(Sample)
    across: dict[tuple[str, str], Sample] = defaultdict(Sample)
    for group in groups_of_equal(keys, positions):
        first_in: dict[str, int] = {}
        for position in positions[group].tolist():
            split = rows.split(position)
            for other, first in reversed(first_in.items()):
                copies = within[split] if other == split else across[other, split]
                copies.add((position, first))
            first_in.setdefault(split, position)
    shown = partial(sampled, shown=lambda pair: rows.pair(pair, ", as"))
    for split, copies in within.items():
        advice = "remove them, unless production data has as many duplicates"
        yield Note(f"{split}: texts that repeat an earlier example", shown(copies), advice)
    for (other, split), copies in across.items():
        advice = "remove them from one of the splits; otherwise scores are too high"
        yield Note(f"{split}: texts that also occur in {other}", shown(copies), advice)


def conflicting_labels(
    keys: np.ndarray, positions: np.ndarray, rows: AllRows, labels: Mapping[str, np.ndarray]
) -> Iterator[Note]:
    """Yields notes on identical texts with different labels. labels: {task: hash of each row's label}."""
    conflicts: dict[str, Sample] = {name: Sample() for name in labels}
    for group in groups_of_equal(keys, positions):
        for name, row_hashes in labels.items():
            pairs = zip(positions[group].tolist(), row_hashes[group].tolist())
            labelled = [pair for pair in pairs if pair[1] != hash(None)]
            seen = {label for _, label in labelled[:1]}
            for position, label in labelled[1:]:
                if seen != {label}:
                    conflicts[name].add((position, labelled[0][0]))
                seen.add(label)
    for name, rows_of_task in conflicts.items():
        conflicting = sampled(rows_of_task, partial(conflict, rows, name))
        advice = "decide which label is right; a model cannot learn both"
        yield Note(f"{name}: the same text has different labels", conflicting, advice)


def conflict(rows: AllRows, name: str, pair: tuple[int, int]) -> str:
    e, first = rows[pair[0]], rows[pair[1]]
    return f"{e['_where']} and {first['_where']}: {e[name]!r} and {first[name]!r}"[:160]
