"""Checks of entities (tags or spans): the tag scheme, boundaries, and the consistency of annotation."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from tqdm import tqdm

from engine.task.tags import find_scheme, illegal_tags
from engine.task.words import entities_in
from preprocess.checks.base import Check, Context, Splits, Tasks, add_if, splits_without
from preprocess.example import Example
from preprocess.labels.statistics import LabelStatistics
from preprocess.storage.arrow import blocks_of
from preprocess.storage.facts import Column, Facts, FirstRows, Note, Sample, Series, frequent, hashes
from preprocess.storage.parallel import in_order

NO_BOUNDARY = "()[]《》“”\"'$#@.%+"  # punctuation that entities can start or end with

Words = tuple[str, ...]
Block = tuple[str, int, int]  # (split, first row, end)


class EntityFacts(Facts):
    """Statistics of the entities of one task."""

    def __init__(self, context: Context) -> None:
        self.splits: set[str] = set()  # splits with at least one entity
        self.illegal = Sample()
        self.unfinished = Sample()
        self.crossing = Sample()
        self.long = Sample()
        self.edges = Sample()
        self.surfaces = Series(context.folder)  # hashes of the words of each entity


class Entities(Check):
    def __init__(self, context: Context) -> None:
        self.tasks = {name: EntityFacts(context) for name in (*context.tagged, *context.spans)}

    def look(self, split: str, start: int, examples: Sequence[Example], context: Context) -> None:
        for name, facts in self.tasks.items():
            surfaces: list[Words] = []
            for e in examples:
                label = e[name]
                if label and label.count("O") < len(label):
                    facts.splits.add(split)
                    if name in context.spans:
                        add_if(facts.crossing, e, first_crossing(e, name))
                    else:
                        check_tags(facts, e, name)
                    surfaces += check_boundaries(facts, e, name)
            facts.surfaces.of_block = hashes(surfaces)

    def notes(self, splits: Splits, tasks: Tasks, labels: LabelStatistics) -> Iterator[Note]:
        for name, facts in self.tasks.items():
            kind, names = tasks[name].kind, tasks[name].labels
            if kind == "spans":
                advice = "correct them, unless such overlaps are intended"
                yield Note(f"{name}: spans that overlap without being nested", facts.crossing, advice)
            elif find_scheme([names]) is None:
                continue
            else:
                advice = "start entities with B-; seqeval counts these as entities anyway"
                yield Note(f"{name}: I-, E- or M- tags that do not continue an entity", facts.illegal, advice)
                bioes = any(label.startswith(("E-", "S-")) for label in names)
                unfinished = facts.unfinished if bioes else []
                yield Note(f"{name}: entities without an end tag", unfinished, "the scheme requires E- or S- there")
            advice = "check whether a tag was extended accidentally"
            yield Note(f"{name}: long entities that fill most of their text", facts.long, advice)
            edges = facts.edges if facts.edges.number < max(10, 0.02 * len(facts.surfaces.column)) else []
            yield Note(f"{name}: entities start or end with punctuation", edges, "check for boundaries off by one")
            yield from consistency_notes(splits, name, facts.surfaces.column)
            kind_name = "span" if kind == "spans" else "entity"
            yield splits_without(f"{name}: splits without any {kind_name}", splits, facts.splits)


def first_crossing(e: Example, name: str) -> str | None:
    """Formats the first two spans that overlap without being nested, or returns None."""
    spans = sorted((first, -last) for first, last, _ in e[name])
    for number, (first, last) in enumerate(spans):
        for other, end in spans[number + 1 :]:
            if first < other <= -last < -end:
                return f"{' '.join(e['tokens'][first : 1 - last])!r} and {' '.join(e['tokens'][other : 1 - end])!r}"
    return None


def entities_of(e: Example, name: str) -> list[tuple[str, int, int, list[str]]]:
    """Returns (type, first token, last token, tokens) for each entity of an example, from tags or spans."""
    label = e[name]
    entities = [(kind, *ends) for *ends, kind in label] if label and isinstance(label[0], list) else entities_in(label)
    return [(kind, first, last, e["tokens"][first : last + 1]) for kind, first, last in entities]


def check_tags(facts: EntityFacts, e: Example, name: str) -> None:
    """Records the first illegal tag and the first entity without an end tag."""
    tags, where = e[name], e["_where"]
    for i in illegal_tags(tags)[:1]:
        facts.illegal.add(f"{where}: token {i + 1} {e['tokens'][i]!r} {tags[i]}")
    for i, (tag, after) in enumerate(zip(tags, [*tags[1:], "O"])):
        if tag[0] in "BIM" and tag[1:2] == "-" and not after.startswith(("I-", "E-", "M-")):
            facts.unfinished.add(f"{where}: token {i + 1} {tag}")
            break


def check_boundaries(facts: EntityFacts, e: Example, name: str) -> list[Words]:
    """Records suspicious entity boundaries of an example. Returns the words of each entity."""
    surfaces = []
    for label, first, last, words in entities_of(e, name):
        if last - first >= 20 and last - first > 0.5 * len(e["tokens"]):
            facts.long.add(f"{e['_where']}: {label}, {last - first + 1} tokens")
        if len(words) > 1 and (is_punctuation(words[0]) or is_punctuation(words[-1])):
            facts.edges.add(f"{e['_where']}: {label} {' '.join(words)!r}")
        surfaces.append(tuple(words))
    return surfaces


def is_punctuation(token: str) -> bool:
    return token != "" and not any(map(str.isalnum, token)) and token not in NO_BOUNDARY


def consistency_notes(splits: Splits, name: str, surfaces: Column) -> Iterator[Note]:
    """Yields notes on words that are annotated inconsistently. Reads all rows again if there are frequent entities."""
    frequent_hashes = frequent(surfaces, 10)
    types = WordTypes()
    for block in again(splits, partial(count_types, splits, name, frequent_hashes)) if frequent_hashes else ():
        types.merge(block)
    rare = Sample()
    for words, counts in types.counts.items():
        label, count = min(counts.items(), key=lambda item: (item[1], item[0]))
        if len(counts) > 1 and count == 1:
            usual = counts.most_common(1)[0][0]
            rare.add(f"{types.first[words][label]}: {' '.join(words)!r} is {label} once, otherwise {usual}")
    finding = f"{name}: words that nearly always have the same type have another type once"
    yield Note(finding, rare, "check the row; this is probably an annotation error")
    totals = {words: counts.total() for words, counts in types.counts.items() if len(words) >= 2}
    outside: dict[Words, Sample] = defaultdict(Sample)
    for block in again(splits, partial(find_outside, splits, name, by_first_pair(totals))) if totals else ():
        for words, rows in block.items():
            outside[words].merge(rows)
            if outside[words].number > 0.05 * totals[words]:
                outside[words].clear()
    missed = [row for words, rows in outside.items() if rows.number <= 0.05 * totals[words] for row in rows]
    finding = f"{name}: words that are nearly always entities are O here"
    yield Note(finding, missed, "check the rows; the annotators probably missed these")


def again(splits: Splits, look: Callable[[Block], Any]) -> Iterator[Any]:
    """Yields look(block) for each block of rows, in order."""
    return in_order(look, tqdm(list(blocks_of(splits)), desc="data checks: entities", leave=False, delay=2))


class WordTypes(Facts):
    """Counts of entity types by surface form."""

    def __init__(self) -> None:
        self.counts: dict[Words, Counter[str]] = defaultdict(Counter)
        self.first: dict[Words, FirstRows] = defaultdict(FirstRows)


def count_types(splits: Splits, name: str, often: Mapping[int, int], block: Block) -> WordTypes:
    """Counts the types of a block's frequent entities. often: hashes of their words."""
    types, (split, start, stop) = WordTypes(), block
    for e in splits[split][start:stop]:
        for label, _, _, tokens in entities_of(e, name) if e[name] else ():
            words = tuple(tokens)
            if hash(words) in often:
                types.counts[words][label] += 1
                types.first[words].setdefault(label, e["_where"])
    return types


def by_first_pair(entities: Iterable[Words]) -> dict[Words, list[Words]]:
    """Returns {first two words: entities that start with them}."""
    result: dict[Words, list[Words]] = defaultdict(list)
    for words in entities:
        result[words[:2]].append(words)
    return result


def find_outside(splits: Splits, name: str, by_pair: Mapping[Words, list[Words]], block: Block) -> dict[Words, Sample]:
    """Returns {words: rows in which they are not annotated, although they are an entity elsewhere}. by_pair: see
    by_first_pair."""
    rows: dict[Words, Sample] = defaultdict(Sample)
    split, start, stop = block
    for e in splits[split][start:stop]:
        tokens = e["tokens"]
        if e[name] is not None and not by_pair.keys().isdisjoint(pairs := list(pairwise(tokens))):
            outside = is_outside(e, name)
            for i, pair in enumerate(pairs):
                for words in by_pair.get(pair, ()) if outside[i] else ():
                    end = i + len(words)
                    if tuple(tokens[i:end]) == words and all(outside[i:end]):
                        rows[words].add(f"{e['_where']}: {' '.join(words)!r}")
    return rows


def is_outside(e: Example, name: str) -> list[bool]:
    """Returns for each token whether it is outside all entities."""
    if not e[name] or isinstance(e[name][0], str):
        return [tag == "O" for tag in e[name] or ["O"] * len(e["tokens"])]
    inside = {position for first, last, _ in e[name] for position in range(first, last + 1)}
    return [position not in inside for position in range(len(e["tokens"]))]
