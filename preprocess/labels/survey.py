"""The parallel first pass over all examples: rejects unusable rows, and decides the kind of each task."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, islice

import numpy as np

from engine.errors import UserError
from preprocess.example import (
    PART_NAMES,
    PARTS,
    RESERVED,
    TEXT_KEYS,
    Example,
    check_characters,
    check_text,
    same_file,
    shown,
)
from preprocess.labels.form import Form
from preprocess.labels.kinds import SET_NAMES, TAG_NAMES, is_number
from preprocess.labels.spans import mostly_chinese, read_all_spans, token_spans, without_overlaps
from preprocess.labels.values import Values
from preprocess.storage.arrow import Batch, Store
from preprocess.storage.facts import Facts, Note, Sample
from preprocess.storage.parallel import in_order

SPAN_KINDS = (None, "tagging", "spans")  # values of --label_type allowed for labels that are spans over a text


class Survey(Facts):
    """Results of the first pass for one block, or merged."""

    def __init__(self) -> None:
        self.values: dict[str, Values] = defaultdict(Values)  # {task: Values}
        self.dashes: dict[str, list[int]] = defaultdict(list)  # {task: row numbers of the label "-"}
        self.parts: list[np.ndarray] = []  # (rows,) 1, 2, 3 for train, dev, test, or empty; of each block
        self.names_seen: set[tuple[str, ...]] = set()  # label names known in each block


def decide_form(form: Form, store: Store, found: Survey, first: Example) -> tuple[list[Note], np.ndarray]:
    """Determines the kinds of a Form for the examples of a store.

    Returns (notes on the conversion; the parts of the rows that are kept, see Survey). A row may lack some
    tasks' labels if it has those of another.
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
    """Checks all rows of a store, which fills as `batches` is consumed, and sets the names of the form."""
    found = Survey()
    survey_block = partial(surveyed, form=form, first=first, shapes=store.shapes)
    for of_block in in_order(survey_block, batches):
        found.merge(of_block)
    form.names = names_of(store.shapes)
    if unknown := sorted(set(form.chosen) - set(form.names)):
        joined = f"; --label_column {unknown[0]}={'+'.join(form.names)} combines columns of 0 and 1 into one task"
        advice = joined if form.chosen[unknown[0]] == "multilabel" and len(form.names) > 1 else ""
        raise UserError(f"--label_type names {', '.join(unknown)}, but the labels are {', '.join(form.names)}{advice}")
    if found.names_seen != {tuple(form.names)}:  # names in later blocks change the meaning of an empty cell
        return survey_all(form, store, store.batches(), first)
    return found


def names_of(shapes: Iterable[tuple[str, ...]]) -> list[str]:
    """The label names in all observed tuples of keys."""
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
    """Treats the label "-" as missing where it means that; with a single task such rows are dropped. Yields notes."""
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
