"""Converts examples as read into the form of the processed folder, and checks them.

`examine` first determines what depends on all examples (the kind of each task, the tag scheme), in blocks that several
processes read. It returns a Form, which converts examples each time they are read.
"""

import math
import re
import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain

import numpy as np
from tqdm import tqdm

from engine.errors import UserError
from engine.task.extras import column_statistics, require_extras
from engine.task.task import tasks_of
from engine.task.tags import TagFacts, entities_in, has_spans, is_tagging, needs_words, require_distinct
from engine.task.text import split_text
from preprocess.labels import kinds as labels
from preprocess.readers.columns import PART_NAMES, RESERVED
from preprocess.schema import PARTS, TEXT_KEYS, check_characters, check_text, length_of
from preprocess.storage.facts import Found, Note, Sample
from preprocess.storage.parallel import in_order
from preprocess.storage.spool import blocks_of

SPAN_KINDS = (None, "tagging", "spans")  # values of --label_type allowed for labels that are spans over a text


# ---- kinds of labels -----------------------------------------------------------------------------------------------


class Values:
    """Statistics of a task's labels, without None; those of several blocks can be merged.

    "-", which may mean that there is no label, is counted separately.
    """

    def __init__(self):
        self.looks = set()  # "spans", "list", "no number", "float", "not written" (as a number), "point"
        self.number = self.decimals = self.dashes = 0  # counts: labels; those with a decimal point; "-"
        self.words, self.signs = set(), False  # the first strings; whether any string has no letter or digit
        self.numbers = set()  # the first distinct values
        self.first = None  # (where, label)

    def add(self, examples, name):
        values = [e[name] for e in examples if e.get(name) is not None]
        strings = Counter(value for value in values if isinstance(value, str))
        self.dashes = strings.pop("-", 0)
        self.number = len(values) - self.dashes
        for value, count in strings.items():
            is_number = labels.is_number(value)
            self.looks |= {"no number", *([] if is_number else ["not written"]), *(["point"] if "." in value else [])}
            self.decimals += count * (is_number and "." in value)
            self.note_number(value if is_number else None)
            if len(self.words) < 2:
                self.words.add(value)
            self.signs = self.signs or not re.search(r"\w", value)
        for value in values if strings.total() < self.number else ():
            if not isinstance(value, str):
                self.add_other(value)
        if self.number:
            self.first = next((e["_where"], e[name]) for e in examples if e.get(name) not in (None, "-"))

    def add_other(self, value):
        self.looks.add("not written")
        if type(value) not in (int, float):
            self.looks.add("no number")
        if isinstance(value, float):
            self.looks.add("float")
        if labels.is_spans(value):
            self.looks.add("spans")
        if isinstance(value, list):
            self.looks.add("list")
        else:
            self.decimals += "." in str(value) and labels.is_number(str(value))
            self.note_number(value if type(value) in (int, float) else None)

    def note_number(self, value):
        if value is not None and len(self.numbers) <= 10:
            self.numbers.add(float(value) if isinstance(value, str) or abs(value) < 1e300 else float("inf"))

    def merge(self, other):
        self.looks |= other.looks
        self.number += other.number
        self.decimals += other.decimals
        self.dashes += other.dashes
        self.words |= other.words if len(self.words) < 2 else set()
        self.signs = self.signs or other.signs
        self.numbers |= other.numbers if len(self.numbers) <= 10 else set()
        self.first = self.first or other.first

    @property
    def dashes_mean_none(self):
        """Whether "-" among words means no label, as in OCNLI and SNLI. Next to other signs ("+") it is a label like
        any other."""
        return self.dashes > 0 and len(self.words) >= 2 and not self.signs

    def keep_dashes(self):
        """Counts "-" as a label like any other."""
        if self.dashes:
            self.looks |= {"no number", "not written"}
            self.number += self.dashes
            self.first = self.first or ("", "-")

    @property
    def kind(self):
        """The kind that all these labels imply: spans, list, regression or classification."""
        for kind in ("spans", "list"):
            if kind in self.looks:
                return kind
        numbers = "no number" not in self.looks and "float" in self.looks
        written = "not written" not in self.looks and "point" in self.looks
        return "regression" if numbers or written else "classification"


class Shaper:
    """The first pass over a block: rejects rows that cannot be trained on, and collects the Values of their labels."""

    def __init__(self, first, shapes, chosen):
        self.first, self.shapes, self.chosen = first, shapes, chosen

    def __call__(self, piece):
        """(known label names, {name: Values}, {name: row numbers of the label "-"}, parts)"""
        examples, names = list(piece), names_of(self.shapes)
        for example in examples:
            check_shape(example, self.first)
            reshape(example, names, self.chosen)
        values, dashed = {name: Values() for name in names}, {}
        for name in names:
            values[name].add(examples, name)
            if values[name].dashes:
                dashed[name] = [piece.start + place for place, e in enumerate(examples) if e.get(name) == "-"]
        parts = [PARTS.index(e["split"]) + 1 for e in examples] if "split" in self.first else []
        return names, values, dashed, np.array(parts, np.uint8)


def names_of(shapes):
    """The label names, given all tuples of keys that examples have."""
    return list(dict.fromkeys(key for shape in list(shapes) for key in shape if key not in RESERVED))


def reshape(example, names, chosen):
    """Converts extra columns to numbers, and empty cells to None if there are several tasks."""
    if "split" in example:
        example["split"] = PART_NAMES[str(example["split"]).lower()]
    if "extras" in example:
        require_extras(example, example["extras"], example["_where"])
    for name in names if len(names) > 1 else ():
        label = example.get(name)
        if type(label) is str and not label.strip() and chosen.get(name) != "multilabel":
            example[name] = None


def look_over(spool, pieces, first, config):
    """Runs the Shaper over all blocks. -> (label names, {name: Values}, {name: row numbers of "-"}, parts)"""
    chosen = {name: labels.KINDS[kind] for name, kind in config.label_types_by_name().items()}
    shaper = Shaper(first, spool.shapes, chosen)
    *found, seen = merge_looks(in_order(shaper, pieces))
    names = names_of(spool.shapes)
    if unknown := sorted(set(chosen) - set(names)):
        joined = f"; --label_column {unknown[0]}={'+'.join(names)} combines columns of 0 and 1 into one task"
        advice = joined if chosen[unknown[0]] == "multilabel" and len(names) > 1 else ""
        raise UserError(f"--label_type names {', '.join(unknown)}, but the labels are {', '.join(names)}{advice}")
    if seen != {tuple(names)}:  # names found in later blocks change what an empty cell means
        *found, _ = merge_looks(in_order(shaper, spool.pieces()))
    return names, *found


def merge_looks(looks):
    """Merges a Shaper's results of all blocks: ({name: Values}, {name: row numbers of "-"}, parts, known names)"""
    values, dashed, parts, seen = defaultdict(Values), defaultdict(list), [], set()
    for names, of_block, places, parts_of_block in looks:
        seen.add(tuple(names))
        parts.append(parts_of_block)
        for name in names:
            values[name].merge(of_block[name])
            dashed[name] += places.get(name, ())
    return values, dashed, np.concatenate(parts), seen


@dataclass
class Form:
    """Converts examples of the raw files to those of the processed folder.

    form(numbers, examples) -> examples, with "_where" and "id". numbers: their row numbers in the spool.
    """

    names: list
    separator: str = ","
    unit: str = "auto"
    tag_scheme: str = "auto"
    chosen: dict = field(default_factory=dict)  # {task: kind} from --label_type
    kinds: dict = field(default_factory=dict)  # {task: kind}
    dashed: tuple = ()  # tasks whose label "-" means no label
    dropped: np.ndarray = None  # rows that are dropped because their only label is "-"
    over_text: list = field(default_factory=list)  # tasks whose labels are spans over characters
    from_tags: list = field(default_factory=list)  # tasks whose tags become spans
    schemes: dict = field(default_factory=dict)  # {task: Scheme}

    def __call__(self, numbers, examples):
        self.label(examples, known_good=True)
        for name, scheme in self.schemes.items():
            for example in examples:
                if example[name] is not None:
                    example[name] = scheme.convert(example[name], example["_where"])
        for name in self.from_tags:
            for example in examples:
                if example[name] is not None:
                    example[name] = [[begin, last, kind] for kind, begin, last in entities_in(example[name])]
        if len(self.dropped):
            numbers = (np.array(numbers) - np.searchsorted(self.dropped, numbers)).tolist()
        return [{"_where": e["_where"], "id": str(e.pop("id", number)), **e} for number, e in zip(numbers, examples)]

    def label(self, examples, known_good=False):
        """Checks and converts the labels, except for the tag scheme. -> notes"""
        for example in examples:
            reshape(example, self.names, self.chosen)
            for name in self.dashed:
                if example.get(name) == "-":
                    example[name] = None
        notes = []
        if self.over_text:
            read_all_spans(examples, self.over_text)
            nested = [name for name in self.over_text if self.kinds[name] == "spans"]
            notes = spans_to_tokens(examples, self.over_text, self.unit, nested)
        kinds = self.kinds | dict.fromkeys(self.from_tags, "tagging")
        if known_good:
            for name, kind in kinds.items():
                make_labels(examples, name, kind, self.separator)
            return notes
        for example in examples:
            check_labels(example, kinds, self.separator)
        return notes

    def kept(self, piece):
        """The examples of a piece without the dropped ones."""
        if not len(self.dropped):
            return list(piece)
        stays = ~np.isin(np.arange(piece.start, piece.stop), self.dropped)
        return [example for example, kept in zip(piece, stays) if kept]


class Overlaps:
    """Whether spans over a text overlap in a block: {task: bool}."""

    def __init__(self, form):
        self.form = form

    def __call__(self, piece):
        examples = self.form.kept(piece)
        for example in examples:
            reshape(example, self.form.names, self.form.chosen)
        read_all_spans(examples, self.form.over_text)
        return {name: any(labels.any_overlap(e.get(name) or ()) for e in examples) for name in self.form.over_text}


def examine(spool, pieces, first, config):
    """Determines how to convert the examples of a spool, which is filled while `pieces` is consumed.

    -> (Form; notes on what the conversion changes, for the data checks; parts: (rows,) 1, 2, 3 for train, dev, test, or
    empty). A row may lack the labels of some tasks if it has those of another.
    """
    names, values, places, parts = look_over(spool, pieces, first, config)
    form = Form(names, config.label_separator, config.unit, config.tag_scheme)
    form.chosen = {name: labels.KINDS[kind] for name, kind in config.label_types_by_name().items()}
    notes = list(drop_dashes(spool, form, values, places))
    shapes = {name: values[name].kind for name in names}
    form.over_text = [n for n in names if form.chosen.get(n) in SPAN_KINDS and shapes[n] == "spans"]
    overlap = Counter()
    if form.over_text:
        for found in in_order(Overlaps(form), spool.pieces()):
            overlap.update(found)
    for name in names:
        form.kinds[name] = kind_of_task(
            name, values[name], form.chosen.get(name), first, name in form.over_text, overlap
        )
    for name in names:
        if name not in form.chosen:
            notes += odd_numbers(name, form, values[name], spool)
    if form.over_text and form.unit == "auto":
        texts = (e["text"] for e in form.kept(spool.piece(0, min(len(spool), 2000 + len(form.dropped))))[:2000])
        form.unit = "character" if labels.mostly_chinese(texts) else "word"
    form.from_tags = [name for name, kind in form.kinds.items() if kind == "spans" and name not in form.over_text]
    return form, notes, np.delete(parts, form.dropped) if len(parts) else parts


class Labeller:
    """The second pass over a block: checks its labels, and collects what the splits and tag schemes depend on."""

    def __init__(self, form, stratify_by, groups, presence):
        self.form, self.stratify_by, self.groups, self.presence = form, stratify_by, groups, presence

    def __call__(self, piece):
        """(notes, {(task, file): TagFacts}, strata, groups, {task: (rows,) whether a row has its label})

        strata: classes, label sets or numbers, None where missing; groups: strings, or None without --group_column
        """
        examples = self.form.kept(piece)
        notes = self.form.label(examples)
        for n, note in enumerate(notes):
            notes[n] = note._replace(rows=Sample(note.rows))
        facts = defaultdict(TagFacts)
        for name, kind in self.form.kinds.items():
            if is_tagging(kind) or name in self.form.from_tags:
                for example in examples:
                    if example[name] is not None:
                        facts[name, file_of(example["_where"])].add(example[name])
        strata = [e[self.stratify_by] for e in examples] if self.stratify_by else None
        groups = [group_of(e) for e in examples] if self.groups else None
        presence = {name: np.array([e[name] is not None for e in examples]) for name in self.presence}
        return notes, dict(facts), strata, groups, presence


def group_of(example):
    """The group of an example, which stays in one part; an example without one is its own group."""
    return example["_where"] if example.get("group") in (None, "") else str(example["group"])


def file_of(where):
    """The file of "FILE, row 7"."""
    head, _, number = where.rpartition(" ")
    return file_of_head(head) if number.isdecimal() else where


@lru_cache(1000)
def file_of_head(head):
    return re.sub(r", \S+$", "", head)


def label_all(spool, form, notes, strata, labeller):
    """Runs a Labeller over all blocks, chooses the tag schemes, and adds the strata of all blocks to `strata`.

    -> (notes, {task: (rows,) whether a row has its label})
    """
    facts, merged, presence = {}, {}, defaultdict(list)
    pieces = tqdm(spool.pieces(), desc="labels", total=-(-len(spool) // spool.step), leave=False, delay=2)
    for found, tags, values, groups, there in in_order(labeller, pieces):
        for note in found:
            merged.setdefault(note.what, note._replace(rows=Sample())).rows.merge(note.rows)
        for key, of_file in tags.items():
            facts.setdefault(key, TagFacts()).merge(of_file)
        strata.add(values, groups)
        for name, of_block in there.items():
            presence[name].append(of_block)
    notes = [*notes, *merged.values()]
    for name, kind in form.kinds.items():
        files = {file: of_file for (task, file), of_file in facts.items() if task == name}
        if is_tagging(kind) or name in form.from_tags:
            wanted = "bio" if name in form.from_tags else form.tag_scheme
            notes += choose_scheme(spool, form, name, files, wanted)
    return notes, {name: np.concatenate(blocks) for name, blocks in presence.items()}


def kind_of_task(name, values, chosen, first, over_text, overlap):
    """The type of a task: from --label_type, otherwise from its labels. over_text: whether they are spans over a text;
    overlap: {task: whether some overlap}."""
    if chosen not in SPAN_KINDS:
        return chosen
    if over_text:
        if chosen is None and overlap[name]:
            print(f"the spans of {name!r} overlap: a spans task (--label_type {name}=tagging keeps the longer of two)")
            return "spans"
        return chosen or "tagging"
    kind = values.kind
    if chosen == "spans":
        return chosen
    if kind == "list":
        return "tagging" if "tokens" in first or name in labels.TAG_NAMES else "multilabel"
    if chosen == "tagging" and kind != "spans":
        where, label = values.first
        raise UserError(f"{where}: --label_type {name}=tagging needs a tag for each token, but the label is {label!r}")
    return kind


def read_all_spans(examples, names):
    """Converts labels that are spans over `text`, in any supported format, to lists of (start, end, label)."""
    if names and examples and "text" not in examples[0]:
        raise UserError(f"{examples[0]['_where']}: {names[0]!r} has spans of characters; they need a text, not tokens")
    for example in examples:
        for name in names:
            if example.get(name) is not None:
                example[name] = labels.read_spans(example[name], example["text"], example["_where"])


def check_shape(example, first):
    """Raises UserError unless an example has the same text keys as the first, and a part if the first has one."""
    where = example["_where"]
    if any((key in example) != (key in first) for key in TEXT_KEYS):
        has, wanted = (sorted(e.keys() & TEXT_KEYS) for e in (example, first))
        raise UserError(f"{where}: has {' and '.join(has)}, but {first['_where']} has {' and '.join(wanted)}")
    check_text(example)
    check_characters(example)
    if "split" in example:
        part = PART_NAMES.get(str(example["split"]).lower())
        if part is None:
            raise UserError(f"{where}: split {example['split']!r} must be one of train, dev, test")
    if ("split" in example) != ("split" in first):
        without = where if "split" in first else first["_where"]
        raise UserError(f"{without}: has no part (train, dev, test), but other rows have one")


def make_labels(examples, name, kind, separator):
    """Like check_labels, but faster, for labels that have passed it."""
    for example in examples:
        label = example.get(name)
        if kind == "classification" and type(label) is str:
            example[name] = label.strip()
        elif kind == "tagging" and type(label) is list:
            continue
        else:
            if kind == "multilabel" and isinstance(label, str):
                example[name] = labels.as_list(label, separator)
            example[name] = labels.check_label(example, name, kind)


def check_labels(example, tasks, separator):
    """Converts an example's labels to what is stored. Raises UserError unless it has at least one usable label."""
    where = example["_where"]
    for name, kind in tasks.items():
        if kind == "multilabel" and isinstance(example.get(name), str):
            example[name] = labels.as_list(example[name], separator)
        if example.get(name) is None and len(tasks) == 1:
            advice = "--drop_unlabelled drops such rows; pass texts without labels to --predict_file"
            raise UserError(f"{where}: has no label {name!r} (it is null); {advice}")
        example[name] = labels.check_label(example, name, kind)
    if all(example[name] is None for name in tasks):
        raise UserError(f"{where}: has no label of any task ({', '.join(tasks)})")


def drop_dashes(spool, form, values, places):
    """Marks the label "-" as no label where it means that; with a single task such rows are dropped. -> notes"""
    alone, form.dropped, form.dashed = len(form.names) == 1, np.zeros(0, np.int64), []
    for name in form.names:
        if name in form.chosen or not values[name].dashes_mean_none:
            values[name].keep_dashes()
            continue
        form.dashed.append(name)
        if alone:
            form.dropped = np.array(places[name], np.int64)
        rows = Sample([e["_where"] for e in spool.all().pick(places[name][: Sample.most])])
        rows.number = len(places[name])
        done = "these rows are dropped" if alone else "they count as unlabelled"
        advice = f"{done}; if it is a class: --label_type {name}=classification"
        yield Note(f"{name}: the label '-' means that there is no gold label", rows, advice)


def odd_numbers(name, form, values, spool):
    """Notes on labels that may be either numbers or class names."""
    if form.kinds[name] == "regression":
        numbers = sorted(values.numbers)
        if len(numbers) <= 10 and all(map(float.is_integer, numbers)) and values.number >= 20:
            rows = [f"{values.first[0]}: {', '.join(f'{value:g}' for value in numbers)}"]
            advice = f"if they are class names: --label_type {name}=classification"
            yield Note(f"{name}: few distinct values, all whole numbers", rows, advice)
    elif form.kinds[name] == "classification" and values.decimals > 0.8 * values.number:
        rows = Sample()
        for piece in spool.pieces():
            for e in form.kept(piece):
                reshape(e, form.names, form.chosen)
                label = e.get(name)
                if (
                    label is not None
                    and not (name in form.dashed and label == "-")
                    and not labels.is_number(str(label))
                ):
                    rows.add(f"{e['_where']}: {label!r}")
        leave = "if the label is a score, correct these, or leave them empty (with several tasks)"
        advice = f"{leave}, and add --label_type {name}=regression"
        yield Note(f"{name}: nearly all labels are numbers, but not these", rows, advice)


def spans_to_tokens(examples, names, unit, nested=()):
    """Converts spans over `text`, (start, end, label), to tags over `tokens`, which it adds; `text` is kept.
    nested: the tasks whose labels become spans of tokens instead. -> notes"""
    if unit == "auto":
        unit = "character" if labels.mostly_chinese(example["text"] for example in examples[:2000]) else "word"
    overlapping, inside, blank = [], [], []
    for example in examples:
        where, text, spans = example["_where"], example["text"], {}
        for name in names:
            if example.get(name) is not None:
                spans[name], dropped = (example[name], []) if name in nested else labels.without_overlaps(example[name])
                overlapping += [f"{where}: {text[start:end]!r} ({label})" for start, end, label in dropped]
        borders = {border for task_spans in spans.values() for start, end, _ in task_spans for border in (start, end)}
        words = split_text(text, unit)
        pieces = labels.split_at_borders(words, borders)
        if len(pieces) > len(words):
            inside.append(where)
        example["tokens"] = [token for token, _, _ in pieces]
        for name, task_spans in spans.items():
            if name in nested:
                example[name] = labels.spans_to_tokens(task_spans, pieces)
                number = len(example[name])
            else:
                example[name] = labels.spans_to_tags(task_spans, pieces)
                number = sum(tag[0] == "B" for tag in example[name])
            if number < len(task_spans):
                blank.append(where)
    name = names[0]
    longer = f"the longer of each pair was kept; --label_type {name}=spans keeps both"
    return [
        Note(f"{name}: spans overlap", overlapping, longer),
        Note(f"{name}: spans begin or end inside a word", inside, "the words were split there; try --unit character"),
        Note(f"{name}: spans contain only whitespace", blank, "they were dropped; correct the data"),
    ]


class Scheme:
    """Converts the tags of a task to another scheme. sources: {file: its scheme}; runs: the tags have no B- and I-."""

    def __init__(self, sources, target, runs=False):
        self.sources, self.target, self.runs = sources, target, runs

    def convert(self, tags, where):
        if self.runs:
            tags = labels.runs_to_bio(tags)
        source = self.sources.get(file_of(where))
        return labels.convert_tags(tags, source, self.target) if source and source != self.target else tags


def choose_scheme(spool, form, name, files, wanted):
    """Chooses the scheme in which a task's tags are written, and sets form.schemes. -> notes

    files: {file: TagFacts}; wanted: "keep", a scheme, or "auto": BIO, or BIOES if all files use BIOES, BMES or BILOU.
    """
    spans = name in form.from_tags
    sources = {file: facts.scheme for file, facts in files.items()}
    tags = {tag for facts in files.values() for tag in facts.tags}
    prefixed = {tag for tag in tags if tag == "O" or re.match(r"[BIESMLU]-.", tag)}
    runs, notes = False, []
    if wanted != "keep" and not any(sources.values()):
        if "O" in tags and len(tags) > 1 and len(prefixed) > len(tags) / 2:
            strange = strange_tags(spool, form, name, prefixed)
            advice = "entities cannot be recognised until they are corrected"
            notes = [Note(f"{name}: some tags do not follow the tag scheme", strange, advice)]
        elif "O" in tags and len(tags) > 1:
            print(f"the tags of {name!r} have no B- and I-: runs of equal tags are written as entities in BIO")
            runs, sources = True, dict.fromkeys(files, "bio")
    if spans and not runs and (prefixed != tags or not any(sources.values())):
        raise UserError(f"--label_type {name}=spans: its tags are not entities (B-, I-, …), so there are no spans")
    if wanted == "keep" or not any(sources.values()):
        return notes
    present = set(sources.values()) - {None}
    target = wanted if wanted != "auto" else ("bio" if present & {"bio", "iob1"} else "bioes")
    for file, source in sources.items():
        if source and source != target:
            print(f"{file}: the tags of {name!r} are {source.upper()}, written as {target.upper()}")
    form.schemes[name] = Scheme(sources, target, runs)
    mixed = [f"{file}: {source.upper()}" for file, source in sources.items() if source] if len(present) > 1 else []
    return [Note(f"{name}: files have different tag schemes", mixed, f"all were written as {target.upper()}")]


def strange_tags(spool, form, name, known):
    """The rows of tags that are not among the known ones."""
    rows = Sample()
    for piece in spool.pieces():
        examples = form.kept(piece)
        form.label(examples)
        for e in examples:
            for tag in e[name] or ():
                if tag not in known:
                    rows.add(f"{e['_where']}: {tag}")
    return rows


# ---- labels.json ---------------------------------------------------------------------------------------------------


def look_labels(found, part, start, examples, kinds):
    """Records in `found` what labels.json and the summary need of a block of examples. kinds: {task: kind}"""
    found.counts["lengths", part].update(map(length_of, examples))
    for name, kind in kinds.items():
        values = [e[name] for e in examples]
        found.counts["missing", name][part] += values.count(None)
        if kind == "regression":
            found.columns["numbers", name, part] = np.array([np.nan if x is None else x for x in values], np.float64)
            continue
        counts, first = found.counts["labels", name, part], found.first["labels", name, part]
        if kind == "multilabel":
            found.counts["none", name][part] += values.count([])
        if kind == "classification":
            counts.update(values)
            counts.pop(None, None)
            last = dict(zip(reversed(values), range(len(values) - 1, -1, -1)))
            first.update((label, examples[place]["_where"]) for label, place in last.items() if label is not None)
            continue
        lists = [[item[2] for item in x] if has_spans(kind) else x for x in (value or () for value in values)]
        counts.update(chain.from_iterable(lists))
        for e, items in zip(examples, lists):
            if items and not first.keys() >= set(items):
                for item in items:
                    first.setdefault(item, e["_where"])
    if part == "train":
        if any(map(needs_words, kinds.values())):
            tokens = {token for e in examples for token in e["tokens"]}
            found.counts["tokens"].update(
                long=any(len(token) > 1 for token in tokens), blank=any(token.isspace() for token in tokens)
            )
        for name in examples[0].get("extras", ()):
            values = [e["extras"][name] for e in examples]
            found.columns["extras", name] = np.array([x for x in values if x is not None], np.float64)


def collect_labels(parts, tasks):
    """labels.json of {part: examples}, see `label_info`. tasks: {task: kind}"""
    found = Found()
    for part, start, stop in blocks_of(parts):
        of_block = Found()
        look_labels(of_block, part, start, parts[part][start:stop], tasks)
        found.merge(of_block)
    return label_info(found, {part: len(rows) for part, rows in parts.items()}, tasks, parts["train"][0])


def label_info(found, sizes, tasks, first):
    """labels.json: each task's type and its labels in order with their counts, from the training part.

    Tagging tasks also have "unit", what a token is; regression has mean and standard deviation instead of labels. Also
    whether texts are pairs, and the extra columns. found: from `look_labels`; sizes: {part: rows}; first: example of
    train
    """
    info = {}
    require_distinct("the data", tasks)
    for name, kind in tasks.items():
        for part, size in sizes.items():
            if found.counts["missing", name][part] == size:
                raise UserError(f"{part} has no label for the task {name!r}")
        if kind == "regression":
            info[name] = {
                "type": kind,
                "labels": [],
                **mean_and_deviation(name, found.columns["numbers", name, "train"]),
            }
            continue
        counts = found.counts["labels", name, "train"]
        names = sorted(counts, key=lambda label: (label != "O", label))
        labels.require_few(name, names)
        labels.refuse_two_ways(name, names)
        if kind == "classification" and len(names) < 2:
            raise UserError(f"the task {name!r} has the single label {names[0]!r} in train: there is nothing to learn")
        if not names:
            raise UserError(f"the task {name!r} has no label in train: all label lists are empty")
        info[name] = {"type": kind, "labels": names, "counts": [counts[label] for label in names]}
        if kind == "multilabel":
            info[name]["rows"] = sizes["train"] - found.counts["missing", name]["train"]
        if needs_words(kind):
            unit = "character+blank" if found.counts["tokens"]["blank"] else "character"
            info[name]["unit"] = "word" if found.counts["tokens"]["long"] else unit
    extras = {name: column_statistics(name, found.columns["extras", name].read()) for name in first.get("extras", ())}
    for task in info.values():
        if "text_pair" in first:
            task["pairs"] = True
        if extras:
            task["extras"] = extras
    return tasks_of(info)


def present_in(column):
    """The values of a column, one at a time, without missing ones."""
    for _, values in column.chunks():
        yield from values[~np.isnan(values)].tolist()


def mean_and_deviation(name, column):
    number = sum(int((~np.isnan(values)).sum()) for _, values in column.chunks())
    mean, deviation = math.fsum(present_in(column)) / number, statistics.pstdev(present_in(column))
    if deviation == 0:
        raise UserError(f"the task {name!r} has the single value {mean:g} in train: there is nothing to learn")
    return {"mean": mean, "std": deviation}
