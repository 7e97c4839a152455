"""The parallel second pass over all examples: checks the labels, and collects statistics for tag schemes and splits."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from engine.task.tags import TagFacts
from preprocess.example import Example, file_of
from preprocess.labels.form import Form
from preprocess.labels.schemes import Scheme, choose_scheme, written_tags
from preprocess.storage.arrow import Batch, Store
from preprocess.storage.facts import Facts, Note, Sample
from preprocess.storage.parallel import in_order


class Labelled(Facts):
    """Results of the second pass for one block, or merged."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Sample] = defaultdict(Sample)  # notes, {(message, advice): rows}
        self.tags: dict[tuple[str, str], TagFacts] = defaultdict(TagFacts)  # {(task, file): tags}
        self.presence: dict[str, list[np.ndarray]] = defaultdict(list)  # {task: whether each row has a label}

    def tags_of_tasks(self, form: Form) -> dict[str, dict[str, TagFacts]]:
        """Returns {task: {file: tags}}."""
        of_task: dict[str, dict[str, TagFacts]] = {name: {} for name in tagged_tasks(form)}
        for (name, file), facts in self.tags.items():
            of_task[name][file] = facts
        return of_task


@dataclass
class LabelPass:
    """The second pass over a block: checks the labels, and collects statistics for splits and tag schemes."""

    form: Form
    stratify_by: str | None  # the task that splits are stratified by
    with_groups: bool
    with_presence: Sequence[str]  # tasks for which to record the rows with a label

    def __call__(self, batch: Batch) -> tuple[Labelled, list[Any] | None, list[str] | None]:
        """Returns (results; the labels to stratify by, None where missing; groups)."""
        examples, results = self.form.kept(batch), Labelled()
        for message, rows, advice in self.form.label(examples):
            results.rows[message, advice].merge(rows)
        for name in tagged_tasks(self.form):
            for example in examples:
                if example[name] is not None:
                    results.tags[name, file_of(example["_where"])].add(example[name])
        for name in self.with_presence:
            results.presence[name].append(np.array([e[name] is not None for e in examples]))
        strata = [e[self.stratify_by] for e in examples] if self.stratify_by else None
        return results, strata, list(map(group_of, examples)) if self.with_groups else None


def tagged_tasks(form: Form) -> list[str]:
    return [name for name, kind in form.kinds.items() if kind == "tagging" or name in form.from_tags]


def group_of(example: Example) -> str:
    """Returns the group of an example, which must stay in one split. By default, each example is its own group."""
    return example["_where"] if example.get("group") in (None, "") else str(example["group"])


def label_all(
    store: Store, label_pass: LabelPass, add_strata: Callable[[list[Any] | None, list[str] | None], None]
) -> Labelled:
    """Runs a LabelPass over all blocks. add_strata: called with the strata and groups of each block."""
    results = Labelled()
    batches = tqdm(store.batches(), desc="labels", total=len(store.arrays), leave=False, delay=2)
    for of_block, strata, groups in in_order(label_pass, batches):
        results.merge(of_block)
        add_strata(strata, groups)
    return results


def choose_schemes(form: Form, store: Store, results: Labelled) -> list[Note]:
    """Chooses the tag schemes of a form. Returns notes."""
    notes = [Note(message, rows, advice) for (message, advice), rows in results.rows.items()]
    for name, files in results.tags_of_tasks(form).items():
        to_spans = name in form.from_tags
        target = "bio" if to_spans else form.tag_scheme
        written = written_tags(name, files, target)
        if written:
            files = tags_as_read(form, store, name, written)
        scheme, scheme_notes = choose_scheme(name, files, target, to_spans, partial(rows_with_tags, form, store, name))
        if scheme is not None or written:
            form.schemes[name] = replace(scheme or Scheme({}, "", False), written=written)
        notes += scheme_notes
    return notes


def tags_as_read(form: Form, store: Store, name: str, written: Mapping[str, Mapping[str, str]]) -> dict[str, TagFacts]:
    """Returns {file: statistics of a task's tags, normalised by `written`}."""
    files: dict[str, TagFacts] = defaultdict(TagFacts)
    for batch in store.batches():
        examples = form.kept(batch)
        form.label(examples)
        for e in examples:
            if e[name] is not None:
                normalised = written.get(file := file_of(e["_where"]))
                files[file].add([normalised[tag] for tag in e[name]] if normalised else e[name])
    return files


def rows_with_tags(form: Form, store: Store, name: str, tags: Collection[str]) -> Sample:
    """Returns the rows with any of these tags."""
    rows = Sample()
    for batch in store.batches():
        examples = form.kept(batch)
        form.label(examples)
        for e in examples:
            for tag in e[name] or ():
                if tag in tags:
                    rows.add(f"{e['_where']}: {tag}")
    return rows
