"""Decides the kind of each task and its tag scheme, and converts examples as read to those of the processed folder.

What depends on all examples is found in two passes, whose blocks several processes read: `decide_form` finds the kind
of each task; `label_all` checks each label, and finds tag schemes and what the splits depend on. The Form then converts
examples each time they are read.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
from tqdm import tqdm

from engine.errors import UserError
from engine.task.extras import require_extras
from engine.task.tags import TagFacts
from engine.task.words import entities_in
from preprocess.example import (
    PART_NAMES,
    PARTS,
    RESERVED,
    TEXT_KEYS,
    Example,
    check_characters,
    check_text,
    file_of,
    same_file,
    shown,
)
from preprocess.labels.kinds import SET_NAMES, TAG_NAMES, as_list, check_label, is_number
from preprocess.labels.positions import marked_names
from preprocess.labels.schemes import Scheme, choose_scheme, written_tags
from preprocess.labels.spans import (
    mostly_chinese,
    read_all_spans,
    token_spans,
    token_spans_to_tags,
    tokenize_spans,
    without_overlaps,
)
from preprocess.labels.values import Values
from preprocess.storage.arrow import Batch, Store
from preprocess.storage.facts import Facts, Note, Sample
from preprocess.storage.parallel import in_order

SPAN_KINDS = (None, "tagging", "spans")  # values of --label_type allowed for labels that are spans over a text


@dataclass
class Form:
    """Converts examples of the raw files to those of the processed folder."""

    separator: str  # of the labels in a cell
    unit: str  # of tokens, for spans over a text
    tag_scheme: str
    chosen: dict[str, str]  # {task: kind} from --label_type
    names: list[str] = field(default_factory=list)  # of the tasks
    kinds: dict[str, str] = field(default_factory=dict)  # {task: kind}
    dashed: list[str] = field(default_factory=list)  # tasks whose label "-" means no label
    dropped: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # rows whose only label is such a "-"
    over_text: list[str] = field(default_factory=list)  # tasks whose labels are spans over characters
    over_tokens: list[str] = field(default_factory=list)  # tasks whose labels are spans over tokens
    from_tags: list[str] = field(default_factory=list)  # tasks whose tags become spans
    schemes: dict[str, Scheme] = field(default_factory=dict)  # {task: Scheme}
    positions: dict[str, list[str]] = field(default_factory=dict)  # {task of lists of 0 and 1: names of the positions}

    def __call__(self, numbers: list[int], examples: list[Example]) -> list[Example]:
        """The examples as they are written, plus "_where". numbers: their row numbers in the store"""
        self.label(examples)
        for example in examples:
            for name, scheme in self.schemes.items():
                if example[name] is not None:
                    example[name] = scheme.convert(example[name], example["_where"])
            for name in self.from_tags:
                if example[name] is not None:
                    example[name] = [[begin, last, kind] for kind, begin, last in entities_in(example[name])]
        if len(self.dropped):
            numbers = (np.array(numbers) - np.searchsorted(self.dropped, numbers)).tolist()
        return [{"_where": e["_where"], "id": str(e.pop("id", number)), **e} for number, e in zip(numbers, examples)]

    def label(self, examples: list[Example]) -> list[Note]:
        """Checks and converts the labels, except for the tag scheme. -> notes"""
        for example in examples:
            self.normalize(example)
            for name in self.dashed:
                if example.get(name) == "-":
                    example[name] = None
        notes = []
        if self.over_text:
            read_all_spans(examples, self.over_text)
            nested = [name for name in self.over_text if self.kinds[name] == "spans"]
            notes = tokenize_spans(examples, self.over_text, self.unit, nested)
        for name in self.over_tokens:
            if self.kinds[name] == "tagging":
                notes.append(token_spans_to_tags(examples, name))
        kinds = self.kinds | dict.fromkeys(self.from_tags, "tagging")
        for example in examples:
            check_labels(example, kinds, self.separator)
        return notes

    def normalize(self, example: Example) -> None:
        """Converts the part's name, extra columns to numbers, lists of 0 and 1 to labels, and empty cells to None if
        there are several tasks."""
        if "split" in example:
            example["split"] = PART_NAMES[str(example["split"]).lower()]
        if "extras" in example:
            require_extras(example, example["extras"], example["_where"])
        for name, positions in self.positions.items():
            if example.get(name) not in (None, ""):
                example[name] = marked_names(example[name], positions, example["_where"])
        for name in self.names if len(self.names) > 1 else ():
            label = example.get(name)
            if type(label) is str and not label.strip() and self.chosen.get(name) != "multilabel":
                example[name] = None

    def kept(self, batch: Batch) -> list[Example]:
        """The examples of a batch without the dropped ones."""
        if not len(self.dropped):
            return list(batch)
        dropped = np.isin(np.arange(batch.start, batch.start + len(batch)), self.dropped)
        return [example for example, is_dropped in zip(batch, dropped) if not is_dropped]


def check_labels(example: Example, kinds: dict[str, str], separator: str) -> None:
    """Converts an example's labels to what is stored. Raises UserError unless it has at least one usable label."""
    where, has_label = example["_where"], False
    for name, kind in kinds.items():
        if kind == "multilabel" and isinstance(example.get(name), str):
            example[name] = as_list(example[name], separator)
        if example.get(name) is None and len(kinds) == 1:
            advice = "--drop_unlabelled drops such rows; pass texts without labels to --predict_file"
            raise UserError(f"{where}: has no label {name!r} (it is null); {advice}")
        example[name] = check_label(example, name, kind)
        has_label = has_label or example[name] is not None
    if not has_label:
        raise UserError(f"{where}: has no label of any task ({', '.join(kinds)})")


# ---- first pass: the kind of each task -----------------------------------------------------------------------------


class Survey(Facts):
    """What the first pass finds in a block, or in all."""

    def __init__(self) -> None:
        self.values: dict[str, Values] = defaultdict(Values)  # {task: Values}
        self.dashes: dict[str, list[int]] = defaultdict(list)  # {task: row numbers of the label "-"}
        self.parts: list[np.ndarray] = []  # (rows,) 1, 2, 3 for train, dev, test, or empty; of each block
        self.names_seen: set[tuple[str, ...]] = set()  # label names known in each block


def decide_form(form: Form, store: Store, found: Survey, first: Example) -> tuple[list[Note], np.ndarray]:
    """Determines the kinds of a Form for the examples of a store.

    -> (notes on what the conversion changes; the parts of the rows that are not dropped, see Survey). A row may lack
    the labels of some tasks if it has those of another.
    """
    values, parts = found.values, np.concatenate(found.parts)
    notes = list(drop_dashes(form, store, found))
    over = [n for n in form.names if form.chosen.get(n) in SPAN_KINDS and values[n].kind == "spans"]
    form.over_text, form.over_tokens = ([], over) if "tokens" in first else (over, [])
    overlaps: Counter[str] = Counter()
    if over:
        for overlapping in in_order(partial(overlapping_tasks, form=form), store.batches()):
            overlaps.update(overlapping)
        if form.unit == "auto" and form.over_text:
            kept = chain.from_iterable(map(form.kept, store.batches()))
            texts = (e["text"] for e in islice(kept, 2000))
            form.unit = "character" if mostly_chinese(texts) else "word"
    for name in form.names:
        form.kinds[name] = kind_of_task(form, name, values[name], has_tokens="tokens" in first, overlaps=overlaps)
    for name in form.names:
        if name not in form.chosen:
            notes += doubtful_numbers(form, store, name, values[name])
    form.from_tags = [name for name, kind in form.kinds.items() if kind == "spans" and name not in over]
    return notes, np.delete(parts, form.dropped) if len(parts) else parts


def survey_all(form: Form, store: Store, batches: Iterable[Batch], first: Example) -> Survey:
    """Checks all rows of a store, which is filled while `batches` is consumed, and sets the names of the form."""
    found = Survey()
    survey_block = partial(surveyed, form=form, first=first, shapes=store.shapes)
    for of_block in in_order(survey_block, batches):
        found.merge(of_block)
    form.names = names_of(store.shapes)
    if unknown := sorted(set(form.chosen) - set(form.names)):
        joined = f"; --label_column {unknown[0]}={'+'.join(form.names)} combines columns of 0 and 1 into one task"
        advice = joined if form.chosen[unknown[0]] == "multilabel" and len(form.names) > 1 else ""
        raise UserError(f"--label_type names {', '.join(unknown)}, but the labels are {', '.join(form.names)}{advice}")
    if found.names_seen != {tuple(form.names)}:  # names found in later blocks change what an empty cell means
        return survey_all(form, store, store.batches(), first)
    return found


def names_of(shapes: Iterable[tuple[str, ...]]) -> list[str]:
    """The label names, given all tuples of keys that examples have."""
    return list(dict.fromkeys(key for shape in list(shapes) for key in shape if key not in RESERVED))


def surveyed(batch: Batch, form: Form, first: Example, shapes: Iterable[tuple[str, ...]]) -> Survey:
    """The first pass over a block: rejects rows that cannot be trained on, and collects the Values of their labels."""
    examples, form, found = list(batch), replace(form, names=names_of(shapes)), Survey()
    for example in examples:
        check_shape(example, first)
        form.normalize(example)
    for name in form.names:
        found.values[name].add(examples, name)
        if found.values[name].dashes:
            found.dashes[name] = [number for number, e in enumerate(examples, batch.start) if e.get(name) == "-"]
    parts = [PARTS.index(e["split"]) + 1 for e in examples] if "split" in first else []
    found.parts.append(np.array(parts, np.uint8))
    found.names_seen.add(tuple(form.names))
    return found


def check_shape(example: Example, first: Example) -> None:
    """Raises UserError unless an example has the same text keys as the first, and a part if the first has one."""
    where = example["_where"]
    if any((key in example) != (key in first) for key in TEXT_KEYS):
        has, wanted = (sorted(e.keys() & TEXT_KEYS) for e in (example, first))
        other = same_file(where, first["_where"])
        raise UserError(f"{where}: has {' and '.join(has)}, but {other} has {' and '.join(wanted)}")
    check_text(example, advice="; --drop_empty drops such rows")
    check_characters(example)
    if "split" in example and str(example["split"]).lower() not in PART_NAMES:
        raise UserError(f"{where}: split {shown(example['split'])} must be one of train, dev, test")
    if ("split" in example) != ("split" in first):
        without = where if "split" in first else first["_where"]
        raise UserError(f"{without}: has no part (train, dev, test), but other rows have one")


def drop_dashes(form: Form, store: Store, found: Survey) -> Iterator[Note]:
    """Marks the label "-" as no label where it means that; with a single task such rows are dropped. -> notes"""
    is_single = len(form.names) == 1
    for name in form.names:
        if name in form.chosen or not found.values[name].dashes_mean_none:
            found.values[name].keep_dashes()
            continue
        form.dashed.append(name)
        if is_single:
            form.dropped = np.array(found.dashes[name], np.int64)
        rows = Sample([e["_where"] for e in store.pick(found.dashes[name][: Sample.most])])
        rows.number = len(found.dashes[name])
        done = "these rows are dropped" if is_single else "they count as unlabelled"
        advice = f"{done}; if it is a class: --label_type {name}=classification"
        yield Note(f"{name}: the label '-' means that there is no gold label", rows, advice)


def overlapping_tasks(batch: Batch, form: Form) -> dict[str, bool]:
    """{task: whether spans of a text overlap} in a block."""
    examples = form.kept(batch)
    for example in examples:
        form.normalize(example)
    read_all_spans(examples, form.over_text)
    found = {name: any(without_overlaps(e.get(name) or ())[1] for e in examples) for name in form.over_text}
    return found | {name: any(without_overlaps(token_spans(e, name))[1] for e in examples) for name in form.over_tokens}


def kind_of_task(form: Form, name: str, values: Values, *, has_tokens: bool, overlaps: Counter[str]) -> str:
    """The kind of a task: from --label_type, otherwise from its labels. overlaps: {task: blocks with overlaps}"""
    chosen = form.chosen.get(name)
    if chosen not in SPAN_KINDS:
        return chosen
    if name in (*form.over_text, *form.over_tokens):
        if chosen is None and overlaps[name]:
            print(f"the spans of {name!r} overlap: a spans task (--label_type {name}=tagging keeps the longer of two)")
            return "spans"
        return chosen or "tagging"
    if chosen == "spans":
        return chosen
    if values.kind == "list":
        return "tagging" if name in TAG_NAMES or (has_tokens and name not in SET_NAMES) else "multilabel"
    if chosen == "tagging" and values.kind != "spans" and values.first:
        where, label = values.first
        needs = f"--label_type {name}=tagging needs a tag for each token"
        raise UserError(f"{where}: {needs}, but the label is {shown(label)}")
    return values.kind


def doubtful_numbers(form: Form, store: Store, name: str, values: Values) -> Iterator[Note]:
    """Notes on labels that may be either numbers or class names."""
    if form.kinds[name] == "regression":
        numbers = sorted(values.numbers)
        if values.first and values.count >= 20 and len(numbers) <= 10 and all(map(float.is_integer, numbers)):
            rows = [f"{values.first[0]}: {', '.join(f'{value:g}' for value in numbers)}"]
            advice = f"if they are class names: --label_type {name}=classification"
            yield Note(f"{name}: few distinct values, all whole numbers", rows, advice)
    elif form.kinds[name] == "classification" and values.decimals > 0.8 * values.count:
        words = Sample()
        for batch in store.batches():
            for e in form.kept(batch):
                form.normalize(e)
                label = e.get(name)
                is_missing = label is None or (name in form.dashed and label == "-")
                if not is_missing and not is_number(str(label)):
                    words.add(f"{e['_where']}: {shown(label)}")
        leave = "if the label is a score, correct these, or leave them empty (with several tasks)"
        advice = f"{leave}, and add --label_type {name}=regression"
        yield Note(f"{name}: nearly all labels are numbers, but not these", words, advice)


# ---- second pass: each label, tag schemes, strata ------------------------------------------------------------------


class Labelled(Facts):
    """What the second pass finds in a block, or in all."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Sample] = defaultdict(Sample)  # of notes {(what, advice): rows}
        self.tags: dict[tuple[str, str], TagFacts] = defaultdict(TagFacts)  # {(task, file): its tags}
        self.presence: dict[str, list[np.ndarray]] = defaultdict(list)  # {task: whether each row has its label}

    def tags_of_tasks(self, form: Form) -> dict[str, dict[str, TagFacts]]:
        """{task: {file: its tags}}"""
        of_task: dict[str, dict[str, TagFacts]] = {name: {} for name in tagged_tasks(form)}
        for (name, file), facts in self.tags.items():
            of_task[name][file] = facts
        return of_task


@dataclass
class LabelPass:
    """The second pass over a block: checks its labels, and collects what the splits and tag schemes depend on."""

    form: Form
    stratify_by: str | None  # the task that splits are stratified by
    with_groups: bool
    with_presence: Sequence[str]  # the tasks whose presence is recorded

    def __call__(self, batch: Batch) -> tuple[Labelled, list[Any] | None, list[str] | None]:
        """(what is found; classes, label sets or numbers to stratify by, None where missing; groups)"""
        examples, found = self.form.kept(batch), Labelled()
        for what, rows, advice in self.form.label(examples):
            found.rows[what, advice].merge(rows)
        for name in tagged_tasks(self.form):
            for example in examples:
                if example[name] is not None:
                    found.tags[name, file_of(example["_where"])].add(example[name])
        for name in self.with_presence:
            found.presence[name].append(np.array([e[name] is not None for e in examples]))
        strata = [e[self.stratify_by] for e in examples] if self.stratify_by else None
        return found, strata, list(map(group_of, examples)) if self.with_groups else None


def tagged_tasks(form: Form) -> list[str]:
    return [name for name, kind in form.kinds.items() if kind == "tagging" or name in form.from_tags]


def group_of(example: Example) -> str:
    """The group of an example, which stays in one part; an example without one is its own group."""
    return example["_where"] if example.get("group") in (None, "") else str(example["group"])


def label_all(
    store: Store, label_pass: LabelPass, add_strata: Callable[[list[Any] | None, list[str] | None], None]
) -> Labelled:
    """Runs a LabelPass over all blocks. add_strata: is called with the strata and groups of each block"""
    found = Labelled()
    batches = tqdm(store.batches(), desc="labels", total=len(store.records), leave=False, delay=2)
    for of_block, strata, groups in in_order(label_pass, batches):
        found.merge(of_block)
        add_strata(strata, groups)
    return found


def choose_schemes(form: Form, store: Store, found: Labelled) -> list[Note]:
    """Chooses the tag schemes of a form. -> notes"""
    notes = [Note(what, rows, advice) for (what, advice), rows in found.rows.items()]
    for name, files in found.tags_of_tasks(form).items():
        to_spans = name in form.from_tags
        wanted = "bio" if to_spans else form.tag_scheme
        written = written_tags(name, files, wanted)
        if written:
            files = tags_as_read(form, store, name, written)
        scheme, scheme_notes = choose_scheme(name, files, wanted, to_spans, partial(rows_with_tags, form, store, name))
        if scheme is not None or written:
            form.schemes[name] = replace(scheme or Scheme({}, "", False), written=written)
        notes += scheme_notes
    return notes


def tags_as_read(form: Form, store: Store, name: str, written: Mapping[str, Mapping[str, str]]) -> dict[str, TagFacts]:
    """{file: facts of the tags of a task, after those that `written` has were replaced}"""
    files: dict[str, TagFacts] = defaultdict(TagFacts)
    for batch in store.batches():
        examples = form.kept(batch)
        form.label(examples)
        for e in examples:
            if e[name] is not None:
                same = written.get(file := file_of(e["_where"]))
                files[file].add([same[tag] for tag in e[name]] if same else e[name])
    return files


def rows_with_tags(form: Form, store: Store, name: str, tags: Collection[str]) -> Sample:
    """The rows in which a task has any of these tags."""
    rows = Sample()
    for batch in store.batches():
        examples = form.kept(batch)
        form.label(examples)
        for e in examples:
            for tag in e[name] or ():
                if tag in tags:
                    rows.add(f"{e['_where']}: {tag}")
    return rows
