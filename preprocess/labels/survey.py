"""The parallel first pass over all examples. It rejects unusable rows and infers the kind of each task."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, islice

import numpy as np

from engine.errors import UserError
from preprocess.example import (
    RESERVED,
    SPLIT_ALIASES,
    SPLITS,
    TEXT_KEYS,
    Example,
    check_characters,
    check_text,
    same_file,
    shown,
)
from preprocess.labels.events import Problems, anchor_order, events_of, num_separated
from preprocess.labels.form import Form
from preprocess.labels.kinds import SET_NAMES, TAG_NAMES, is_number, links_mentions
from preprocess.labels.spans import mostly_chinese, read_all_spans, token_spans, without_overlaps
from preprocess.labels.values import Values
from preprocess.storage.arrow import Batch, Store
from preprocess.storage.facts import Facts, Note, Sample
from preprocess.storage.parallel import in_order

SPAN_KINDS = (None, "tagging", "spans")  # values of --label_type that are allowed for character spans


class Survey(Facts):
    """Results of the first pass for one block, or merged."""

    def __init__(self) -> None:
        self.values: dict[str, Values] = defaultdict(Values)  # {task: Values}
        self.dashes: dict[str, list[int]] = defaultdict(list)  # {task: row numbers of the label "-"}
        self.splits: list[np.ndarray] = []  # per block (rows,): 1, 2, 3 for train, dev, test; or empty
        self.names_seen: set[tuple[str, ...]] = set()  # label names known when each block was read


def decide_form(form: Form, store: Store, survey: Survey, first: Example) -> tuple[list[Note], np.ndarray]:
    """Determines the kinds of a Form for the examples of a store. Returns (notes, splits of the remaining rows; see
    Survey). A row may lack the label of one task if it has a label of another."""
    values, splits = survey.values, np.concatenate(survey.splits)
    notes = list(drop_dashes(form, store, survey))
    span_tasks = [n for n in form.names if form.chosen.get(n) in SPAN_KINDS and values[n].kind == "spans"]
    kinds = {name: form.chosen.get(name, values[name].kind) for name in form.names}
    known = {name: kind for name, kind in kinds.items() if links_mentions(kind)}
    relations, events = ([name for name in known if known[name] == kind] for kind in ("relations", "events"))
    form.over_text, form.over_tokens = ([], span_tasks) if "tokens" in first else (span_tasks, [])
    overlaps: Counter[str] = Counter()
    for overlapping in in_order(partial(overlapping_tasks, form=form), store.batches()) if span_tasks else ():
        overlaps.update(overlapping)
    form.anchors = anchors_of(form, store, events)
    form.over_text = form.over_text if "tokens" in first else [*span_tasks, *relations, *events]
    if form.unit == "auto" and form.over_text:
        kept = chain.from_iterable(map(form.kept, store.batches()))
        form.unit = "character" if mostly_chinese(e["text"] for e in islice(kept, 2000)) else "word"
    if entities := task_of_entities(form, span_tasks):
        form.entities = dict.fromkeys(relations, entities)
    known |= dict.fromkeys(form.entities.values(), "spans")
    for name in form.names:
        kind = partial(kind_of_task, form, name, values[name], has_tokens="tokens" in first, overlaps=overlaps)
        form.kinds[name] = known.get(name) or kind()
    for name in form.names:
        if name not in form.chosen:
            notes += doubtful_numbers(form, store, name, values[name])
    form.from_tags = [name for name, kind in form.kinds.items() if kind == "spans" and name not in span_tasks]
    return notes, np.delete(splits, form.dropped) if len(splits) else splits


def task_of_entities(form: Form, span_tasks: Collection[str]) -> str:
    """Returns the task whose spans are the entities (with types) of relations: the only spans task, or the one called
    `entities` if there are several, or "" if there is none."""
    names = [name for name in form.names if form.chosen.get(name, "spans" if name in span_tasks else "") == "spans"]
    return names[0] if len(names) == 1 else "entities" if "entities" in names else ""


def survey_all(form: Form, store: Store, batches: Iterable[Batch], first: Example) -> Survey:
    """Surveys all rows of a store, which grows while `batches` is consumed, and sets the names of the form."""
    survey = Survey()
    survey_block = partial(surveyed, form=form, first=first, shapes=store.shapes)
    for block in in_order(survey_block, batches):
        survey.merge(block)
    form.names = names_of(store.shapes)
    if unknown := sorted(set(form.chosen) - set(form.names)):
        combine = f"; --label_column {unknown[0]}={'+'.join(form.names)} combines columns of 0 and 1 into one task"
        advice = combine if form.chosen[unknown[0]] == "multilabel" and len(form.names) > 1 else ""
        raise UserError(f"--label_type: no label {', '.join(unknown)}; the labels are {', '.join(form.names)}{advice}")
    if survey.names_seen != {tuple(form.names)}:  # later names change the meaning of empty cells
        return survey_all(form, store, store.batches(), first)
    return survey


def names_of(shapes: Iterable[tuple[str, ...]]) -> list[str]:
    """Returns the label names in all observed tuples of keys."""
    return list(dict.fromkeys(key for shape in list(shapes) for key in shape if key not in RESERVED))


def surveyed(batch: Batch, form: Form, first: Example, shapes: Iterable[tuple[str, ...]]) -> Survey:
    """Surveys a block: rejects rows that cannot be used in training, and collects the Values of their labels."""
    examples, form, survey = list(batch), replace(form, names=names_of(shapes)), Survey()
    for example in examples:
        check_shape(example, first)
        form.normalize(example)
    for name in form.names:
        survey.values[name].add(examples, name)
        if survey.values[name].dashes:
            survey.dashes[name] = [number for number, e in enumerate(examples, batch.start) if e.get(name) == "-"]
    splits = [SPLITS.index(e["split"]) + 1 for e in examples] if "split" in first else []
    survey.splits.append(np.array(splits, np.uint8))
    survey.names_seen.add(tuple(form.names))
    return survey


def check_shape(example: Example, first: Example) -> None:
    """Raises UserError unless an example has the same text keys as the first one, and a split if that has one."""
    where = example["_where"]
    if any((key in example) != (key in first) for key in TEXT_KEYS):
        has, expected = (sorted(e.keys() & TEXT_KEYS) for e in (example, first))
        other = same_file(where, first["_where"])
        raise UserError(f"{where}: has {' and '.join(has)}, but {other} has {' and '.join(expected)}")
    check_text(example, advice="; add --drop_empty to drop such rows")
    check_characters(example)
    if "split" in example and str(example["split"]).lower() not in SPLIT_ALIASES:
        raise UserError(f"{where}: split {shown(example['split'])} must be one of train, dev, test")
    if ("split" in example) != ("split" in first):
        source = where if "split" in first else first["_where"]
        raise UserError(f"{source}: has no split (train, dev, test), but other rows have one")


def drop_dashes(form: Form, store: Store, survey: Survey) -> Iterator[Note]:
    """Treats the label "-" as missing in tasks where it has this meaning. Drops these rows if there is only one task.
    Yields notes."""
    is_single = len(form.names) == 1
    for name in form.names:
        if name in form.chosen or not survey.values[name].dashes_mean_none:
            survey.values[name].keep_dashes()
            continue
        form.dashed.append(name)
        if is_single:
            form.dropped = np.array(survey.dashes[name], np.int64)
        rows = Sample([e["_where"] for e in store.pick(survey.dashes[name][: Sample.most])])
        rows.number = len(survey.dashes[name])
        action = "these rows were dropped" if is_single else "they are unlabelled"
        advice = f"{action}; if it is a class, add --label_type {name}=classification"
        yield Note(f"{name}: the label '-' means that there is no gold label", rows, advice)


def overlapping_tasks(batch: Batch, form: Form) -> dict[str, bool]:
    """Returns {task: whether any spans overlap} for a block."""
    examples = form.kept(batch)
    for example in examples:
        form.normalize(example)
    read_all_spans(examples, form.over_text)
    result = {name: any(without_overlaps(e.get(name) or ())[1] for e in examples) for name in form.over_text}
    return result | {
        name: any(without_overlaps(token_spans(e, name))[1] for e in examples) for name in form.over_tokens
    }


def anchors_of(form: Form, store: Store, names: Collection[str]) -> dict[str, list[str]]:
    """Returns {events task: its mention labels in order of preference as anchors}, computed from all rows."""
    counts = {name: Counter[str]() for name in names}
    for of_block in in_order(partial(counts_of_mentions, form=form, names=names), store.batches()) if names else ():
        for name, found in of_block.items():
            counts[name] += found
    return {name: anchor_order(found) for name, found in counts.items()}


def counts_of_mentions(batch: Batch, form: Form, names: Collection[str]) -> dict[str, Counter[str]]:
    """Returns {events task: the `num_separated` of a block}."""
    examples = form.kept(batch)
    for example in examples:
        form.normalize(example)
    labelled = {name: [e for e in examples if isinstance(e.get(name), list)] for name in names}
    texts = {name: [events_of(e, name, Problems(list)) or [] for e in rows] for name, rows in labelled.items()}
    return {name: sum(map(num_separated, each), Counter[str]()) for name, each in texts.items()}


def kind_of_task(form: Form, name: str, values: Values, *, has_tokens: bool, overlaps: Counter[str]) -> str:
    """Returns the kind of a task, from --label_type or else from its labels. overlaps: {task: blocks with overlaps}."""
    chosen = form.chosen.get(name)
    if chosen not in SPAN_KINDS:
        return chosen
    if name in (*form.over_text, *form.over_tokens):
        if chosen is None and overlaps[name]:
            advice = f"--label_type {name}=tagging keeps the longer span of each pair"
            print(f"the spans of {name!r} overlap, so the task type is spans ({advice})")
            return "spans"
        return chosen or "tagging"
    if chosen == "spans":
        return chosen
    if values.kind == "list":
        return "tagging" if name in TAG_NAMES or (has_tokens and name not in SET_NAMES) else "multilabel"
    if chosen == "tagging" and values.kind != "spans" and values.first:
        where, label = values.first
        problem = f"--label_type {name}=tagging requires one tag per token"
        raise UserError(f"{where}: {problem}, but the label is {shown(label)}")
    return values.kind


def doubtful_numbers(form: Form, store: Store, name: str, values: Values) -> Iterator[Note]:
    """Yields notes on labels that could be either numbers or class names."""
    if form.kinds[name] == "regression":
        numbers = sorted(values.numbers)
        if values.first and values.count >= 20 and len(numbers) <= 10 and all(map(float.is_integer, numbers)):
            rows = [f"{values.first[0]}: {', '.join(f'{value:g}' for value in numbers)}"]
            advice = f"if they are class names, add --label_type {name}=classification"
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
        correct = "if the label is a score, correct these rows (or, with several tasks, empty the cells)"
        advice = f"{correct}, and add --label_type {name}=regression"
        yield Note(f"{name}: nearly all labels are numbers, but not these", words, advice)
