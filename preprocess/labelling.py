"""Examples as they were read -> examples as the processed folder holds them: checked, in one form.

What all examples together decide (which kind of task labels make, how tags are written) is found first, in blocks that
several processes read: `examine`. It says how each example is brought into form: a Form, which does it as often as
examples are read.
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
from engine.task.tags import TagFacts, entities_in, has_spans, is_tagging, needs_words, require_distinct
from engine.task.text import split_text
from preprocess import labels
from preprocess.columns import PART_NAMES, RESERVED
from preprocess.facts import Found, Note, Sample
from preprocess.parallel import in_order
from preprocess.schema import PARTS, TEXT_KEYS, check_characters, check_text, length_of
from preprocess.spool import blocks_of

SPAN_KINDS = (None, "tagging", "spans")  # what --label_type may say of labels that are spans over a text


# ---- what labels look like -----------------------------------------------------------------------------------------


class Values:
    """What the labels of a task, None left out, look like; those of several blocks can be merged.

    "-", which may mean that there is no label, is counted apart.
    """

    def __init__(self):
        self.looks = set()  # "spans", "list", "no number", "float", "not written" (as a number), "point"
        self.number = self.decimals = self.dashes = 0  # labels; with a decimal point; "-"
        self.words, self.signs = set(), False  # the first strings, and whether one of all has no letter or digit
        self.numbers = set()  # the first different ones
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
        """Whether "-" among words, as OCNLI and SNLI write it, stands for no label. Beside other signs ("+") it is a
        label like any other."""
        return self.dashes > 0 and len(self.words) >= 2 and not self.signs

    def keep_dashes(self):
        """Counts "-" as a label like any other."""
        if self.dashes:
            self.looks |= {"no number", "not written"}
            self.number += self.dashes
            self.first = self.first or ("", "-")

    @property
    def kind(self):
        """The kind of task that all these labels make: spans, list, regression or classification."""
        for kind in ("spans", "list"):
            if kind in self.looks:
                return kind
        numbers = "no number" not in self.looks and "float" in self.looks
        written = "not written" not in self.looks and "point" in self.looks
        return "regression" if numbers or written else "classification"


class Shaper:
    """The first look at a block: refuses rows that cannot be trained on, and sees what their labels look like."""

    def __init__(self, first, shapes, chosen):
        self.first, self.shapes, self.chosen = first, shapes, chosen

    def __call__(self, piece):
        """(the names of labels that were known, {name: Values}, places of rows with the label "-" by name, parts)"""
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
    """The labels' names, given all the tuples of keys that examples have."""
    return list(dict.fromkeys(key for shape in list(shapes) for key in shape if key not in RESERVED))


def reshape(example, names, chosen):
    """Makes extra columns numbers, and empty cells of one of several tasks no label."""
    if "split" in example:
        example["split"] = PART_NAMES[str(example["split"]).lower()]
    if "extras" in example:
        require_extras(example, example["extras"], example["_where"])
    for name in names if len(names) > 1 else ():
        label = example.get(name)
        if type(label) is str and not label.strip() and chosen.get(name) != "multilabel":
            example[name] = None  # a cell without labels is just that


def look_over(spool, pieces, first, config):
    """Runs the Shaper over all blocks. -> (names of the labels, {name: Values}, {name: places of "-"}, parts)"""
    chosen = {name: labels.KINDS[kind] for name, kind in config.label_types_by_name().items()}
    shaper = Shaper(first, spool.shapes, chosen)
    *found, seen = merge_looks(in_order(shaper, pieces))
    names = names_of(spool.shapes)
    if unknown := sorted(set(chosen) - set(names)):
        joined = f"; --label_column {unknown[0]}={'+'.join(names)} makes one task of columns of 0 and 1"
        advice = joined if chosen[unknown[0]] == "multilabel" and len(names) > 1 else ""
        raise UserError(f"--label_type names {', '.join(unknown)}, but the labels are {', '.join(names)}{advice}")
    if seen != {tuple(names)}:  # a name that came late decides what an empty cell means
        *found, _ = merge_looks(in_order(shaper, spool.pieces()))
    return names, *found


def merge_looks(looks):
    """What a Shaper says of all blocks: ({name: Values}, {name: places of "-"}, parts, the names that were known)"""
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
    """What becomes of an example on its way from the raw file to the processed folder.

    form(numbers, examples) -> examples, with "_where" and "id". numbers: theirs in the spool.
    """

    names: list
    separator: str = ","
    unit: str = "auto"
    tag_scheme: str = "auto"
    chosen: dict = field(default_factory=dict)  # {task: kind} as --label_type says
    kinds: dict = field(default_factory=dict)  # {task: kind}
    dashed: tuple = ()  # tasks of which "-" is no label
    dropped: np.ndarray = None  # rows that are left out as their only label is "-"
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
        """Checks the labels and makes them what is kept, but for the scheme of tags. -> notes"""
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
        """The examples of a piece without those that are left out."""
        if not len(self.dropped):
            return list(piece)
        stays = ~np.isin(np.arange(piece.start, piece.stop), self.dropped)
        return [example for example, kept in zip(piece, stays) if kept]


class Overlaps:
    """Whether, in a block, spans over a text overlap: {task: bool}."""

    def __init__(self, form):
        self.form = form

    def __call__(self, piece):
        examples = self.form.kept(piece)
        for example in examples:
            reshape(example, self.form.names, self.form.chosen)
        read_all_spans(examples, self.form.over_text)
        return {name: any(labels.any_overlap(e.get(name) or ()) for e in examples) for name in self.form.over_text}


def examine(spool, pieces, first, config):
    """How the examples of a spool, which is filled while `pieces` are taken, become those of the processed folder.

    -> (Form, notes: what is changed on the way, for the data checks; parts: (rows,) 1, 2, 3 for train, dev, test, or
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
    """The second look at a block: its labels, checked. What the splits and the tags' schemes depend on is noted."""

    def __init__(self, form, stratify_by, groups, presence):
        self.form, self.stratify_by, self.groups, self.presence = form, stratify_by, groups, presence

    def __call__(self, piece):
        """(notes, {(task, file): TagFacts}, strata, groups, {task: whether rows have a label of it})

        strata: classes, sets of labels or numbers, None where there is none; groups: strings, where there are any
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
    """What must stay together with this example; one without a group is a group of its own."""
    return example["_where"] if example.get("group") in (None, "") else str(example["group"])


def file_of(where):
    """The file of "FILE, row 7"."""
    head, _, number = where.rpartition(" ")
    return file_of_head(head) if number.isdecimal() else where


@lru_cache(1000)
def file_of_head(head):
    return re.sub(r", \S+$", "", head)


def label_all(spool, form, notes, strata, labeller):
    """Runs a Labeller over all blocks and decides how tags are written. `strata` takes in what the blocks say.

    -> (notes, {task: (rows,) whether a label is there})
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
    """The type of a task: as chosen with --label_type, else as its labels look. over_text: they are spans that were
    read; overlap: {task: whether some do}."""
    if chosen not in SPAN_KINDS:
        return chosen
    if over_text:
        if chosen is None and overlap[name]:
            print(
                f"the spans of {name!r} overlap: a task of spans (--label_type {name}=tagging keeps the longer of two)"
            )
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
    """Makes labels that are spans over `text`, however they are written, lists of (start, end, label)."""
    if names and examples and "text" not in examples[0]:
        raise UserError(f"{examples[0]['_where']}: {names[0]!r} is spans over characters; they need a text, not tokens")
    for example in examples:
        for name in names:
            if example.get(name) is not None:
                example[name] = labels.read_spans(example[name], example["text"], example["_where"])


def check_shape(example, first):
    """UserError unless an example has the texts and the kind of part that the first one has."""
    where = example["_where"]
    if any((key in example) != (key in first) for key in TEXT_KEYS):
        has, wanted = (sorted(e.keys() & TEXT_KEYS) for e in (example, first))
        raise UserError(f"{where}: has {' and '.join(has)}, but {first['_where']} has {' and '.join(wanted)}")
    check_text(example)
    check_characters(example)
    if "split" in example:
        part = PART_NAMES.get(str(example["split"]).lower())
        if part is None:
            raise UserError(f"{where}: split {example['split']!r} is none of train, dev, test")
    if ("split" in example) != ("split" in first):
        without = where if "split" in first else first["_where"]
        raise UserError(f"{without}: has no part (train, dev, test), but other rows have one")


def make_labels(examples, name, kind, separator):
    """What check_labels does, for labels that it has seen: most need nothing more."""
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
    """Makes an example's labels what is kept. UserError unless it has one that can be used."""
    where = example["_where"]
    for name, kind in tasks.items():
        if kind == "multilabel" and isinstance(example.get(name), str):
            example[name] = labels.as_list(example[name], separator)
        if example.get(name) is None and len(tasks) == 1:
            advice = "--drop_unlabelled leaves such rows out; texts without labels are for --predict_file"
            raise UserError(f"{where}: has no label {name!r} (it is null); {advice}")
        example[name] = labels.check_label(example, name, kind)
    if all(example[name] is None for name in tasks):
        raise UserError(f"{where}: has no label of any task ({', '.join(tasks)})")


def drop_dashes(spool, form, values, places):
    """Takes the label "-" for no label where it means that: of a single task the row is left out. -> notes"""
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
        done = "these rows are left out" if alone else "they count as unlabelled"
        advice = f"{done}; if it is a class: --label_type {name}=classification"
        yield Note(f"{name}: the label '-' means that there is no gold label", rows, advice)


def odd_numbers(name, form, values, spool):
    """Notes on labels of which it is not clear whether they are numbers or names."""
    if form.kinds[name] == "regression":
        numbers = sorted(values.numbers)
        if len(numbers) <= 10 and all(map(float.is_integer, numbers)) and values.number >= 20:
            rows = [f"{values.first[0]}: {', '.join(f'{value:g}' for value in numbers)}"]
            advice = f"if they are names of classes: --label_type {name}=classification"
            yield Note(f"{name}: numbers of few whole values", rows, advice)
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
        leave = "if it is a score, leave these empty (with other tasks) or correct them"
        advice = f"{leave}, and add --label_type {name}=regression"
        yield Note(f"{name}: nearly all labels are numbers, but not these", rows, advice)


def spans_to_tokens(examples, names, unit, nested=()):
    """Turns labels that are spans over `text`, (start, end, label), into tags over `tokens`, which it adds; `text`
    stays. nested: of which of these tasks they become spans of tokens. -> notes."""
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
    longer = f"of each two the longer was kept; --label_type {name}=spans keeps both"
    return [
        Note(f"{name}: spans overlap", overlapping, longer),
        Note(f"{name}: spans begin or end inside a word", inside, "the words were cut there; try --unit character"),
        Note(f"{name}: spans hold nothing but blanks", blank, "they were left out; correct the data"),
    ]


class Scheme:
    """How the tags of a task are written anew. sources: {file: its scheme}; runs: they have no B- and I-."""

    def __init__(self, sources, target, runs=False):
        self.sources, self.target, self.runs = sources, target, runs

    def convert(self, tags, where):
        if self.runs:
            tags = labels.runs_to_bio(tags)
        source = self.sources.get(file_of(where))
        return labels.convert_tags(tags, source, self.target) if source and source != self.target else tags


def choose_scheme(spool, form, name, files, wanted):
    """Decides in which scheme a task's tags are written, into form.schemes. -> notes.

    files: {file: TagFacts}; wanted: "keep", a scheme, or "auto": BIO, or BIOES where all files have it, BMES or BILOU.
    """
    spans = name in form.from_tags
    sources = {file: facts.scheme for file, facts in files.items()}
    tags = {tag for facts in files.values() for tag in facts.tags}
    prefixed = {tag for tag in tags if tag == "O" or re.match(r"[BIESMLU]-.", tag)}
    runs, notes = False, []
    if wanted != "keep" and not any(sources.values()):
        if "O" in tags and len(tags) > 1 and len(prefixed) > len(tags) / 2:
            strange = strange_tags(spool, form, name, prefixed)
            advice = "entities cannot be recognised while they are there: correct them"
            notes = [Note(f"{name}: tags of no scheme among those of one", strange, advice)]
        elif "O" in tags and len(tags) > 1:
            print(f"the tags of {name!r} have no B- and I-: runs of equal tags are written as entities in BIO")
            runs, sources = True, dict.fromkeys(files, "bio")
    if spans and not runs and (prefixed != tags or not any(sources.values())):
        raise UserError(f"--label_type {name}=spans: its tags are no entities (B-, I-, …), so there are no spans")
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
    """Where tags are that are none of the known ones."""
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
    """Notes in `found` what labels.json and the summary say of a block of examples. kinds: {task: kind}"""
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

    Of tags also what a token is ("unit"); of numbers their mean and standard deviation instead of labels; whether texts
    are pairs, and the extra columns. found: by `look_labels`; sizes: {part: rows}; first: the first example of train
    """
    info = {}
    require_distinct("the data", tasks)
    for name, kind in tasks.items():
        for part, size in sizes.items():
            if found.counts["missing", name][part] == size:
                raise UserError(f"{part} has no label of the task {name!r} at all")
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
            raise UserError(f"the task {name!r} has no label in train: all its lists are empty")
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
    return info


def present_in(column):
    """The numbers of a column, one after another, without those that are missing."""
    for _, values in column.chunks():
        yield from values[~np.isnan(values)].tolist()


def mean_and_deviation(name, column):
    number = sum(int((~np.isnan(values)).sum()) for _, values in column.chunks())
    mean, deviation = math.fsum(present_in(column)) / number, statistics.pstdev(present_in(column))
    if deviation == 0:
        raise UserError(f"the task {name!r} has the single value {mean:g} in train: there is nothing to learn")
    return {"mean": mean, "std": deviation}
