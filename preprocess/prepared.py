"""Reads the input into temporary files, infers the kinds of the tasks, and splits the rows."""

import tempfile
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from engine.data.own_inputs import declared_fields
from engine.errors import UserError
from engine.run.reading import unescaped
from engine.task.text import text_of
from preprocess.example import SPLITS, Example
from preprocess.gates import apply_gates, check_accepted, gather, name_positions
from preprocess.labels.form import Form
from preprocess.labels.kinds import KINDS
from preprocess.labels.label_pass import LabelPass, choose_schemes, label_all
from preprocess.labels.statistics import collect_labels
from preprocess.labels.survey import decide_form, survey_all
from preprocess.readers.options import ReadOptions, Understanding, split_names
from preprocess.readers.sources import read_examples
from preprocess.schema import Tasks, encode_rows, load_labels, read_processed
from preprocess.shots import parse_shots, sample_shots, with_counts_of
from preprocess.splits import Strata, split_folds, split_rows
from preprocess.storage.arrow import Rows, Store, blocks_of
from preprocess.storage.facts import Note
from preprocess.storage.parallel import in_order


class Prepared:
    """The data that `data_process.py` writes, except labels.json. Use it as a context manager. tasks: the content of
    labels.json if the input has one, otherwise None. notes: changes to the data."""

    understood: Understanding  # how each file was read
    splits: dict[str, Rows]
    kinds: dict[str, str]
    form: Callable[[list[int], list[Example]], list[Example]]
    strata: Strata
    presence: dict[str, np.ndarray]  # {task: whether each row has a label, (rows,)}

    def __init__(self, config: Any) -> None:
        self.config, self.store = config, Store(room_for(config.output_dir))
        self.notes: list[Note] = []
        self.tasks: Tasks | None = None
        self.fields = declared_fields(split_names(config.extra_columns))
        self.types: dict[str, str] = config.label_types_by_name()  # {task: type}
        self.hierarchy: str = config.label_hierarchy
        self.dropped = np.zeros(0, np.int64)
        try:
            source = Path(config.input)
            if config.format == "auto" and (source / "labels.json").exists():
                self.read_processed(source)
            else:
                self.read_raw()
            if shots := parse_shots(config.shots):
                self.sample(shots)
        except BaseException:
            self.store.close()
            raise

    def __enter__(self) -> "Prepared":
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    def read_raw(self) -> None:
        config, store = self.config, self.store
        options = ReadOptions.of(config)
        self.understood = options.understood
        examples = read_examples(Path(config.input), options)
        first = next(examples)
        if config.group_column and "group" not in first:
            raise UserError(f"{config.input}: this format has no column {config.group_column!r} (--group_column)")
        chosen = {name: KINDS[kind] for name, kind in self.types.items()}
        self.form = form = Form(
            unescaped(config.label_separator),
            config.unit,
            config.tag_scheme,
            chosen,
            hierarchy=self.hierarchy,
            fields=self.fields,
            no_text=not config.text,
        )
        survey = survey_all(form, store, store.fill(chain([dict(first)], examples)), first)
        evidence = gather(store, form, survey.values, config.text_column)
        name_positions(evidence, config)
        accepted = check_accepted(config.accept)
        apply_gates(evidence, accepted, after_labels=False)
        self.notes, split_numbers = decide_form(form, store, survey, first)
        self.kinds, self.strata, self.dropped = form.kinds, Strata(form.kinds), form.dropped
        with_presence = list(self.kinds) if config.n_splits and len(self.kinds) > 1 else []
        label_pass = LabelPass(form, self.strata.name, bool(config.group_column), with_presence)
        labelled = label_all(store, label_pass, self.strata.add)
        self.presence = {name: np.concatenate(blocks) for name, blocks in labelled.presence.items()}
        evidence.tags = labelled.tags_of_tasks(form)
        apply_gates(evidence, accepted, after_labels=True)
        self.notes += choose_schemes(form, store, labelled)
        self.set_splits(split_rows(split_numbers, len(store) - len(self.dropped), self.strata, config))

    def set_splits(self, rows: dict[str, np.ndarray]) -> None:
        """Creates Rows from the row numbers of each split. Keeps the numbers only if folds are needed."""
        self.splits = {split: self.of_rows(numbers) for split, numbers in rows.items()}
        if self.config.n_splits:
            self.rows = rows
        else:
            del self.strata

    def of_rows(self, rows: np.ndarray) -> Rows:
        """Returns the Rows with these row numbers, counted without dropped rows."""
        if len(self.dropped):
            rows = np.delete(np.arange(len(self.store), dtype=np.uint32), self.dropped)[rows]
        result = Rows(self.store, self.form, rows)
        if self.tasks:
            result.entities = {name: task.entities for name, task in self.tasks.items() if task.entities}
        return result

    def read_processed(self, folder: Path) -> None:
        """Reads a processed folder to check it again."""
        if self.config.group_column:
            advice = "use --group_column with the raw data"
            raise UserError(f"{folder}: processed folders do not store groups; {advice}")
        if self.hierarchy:
            raise UserError(f"{folder}: already processed; use --label_hierarchy with the raw data")
        self.understood = Understanding({str(folder): "a processed folder"})
        given, splits = load_labels(folder), {}
        self.tasks = named_tasks(given, self.config.label_column)
        keep = partial(without_tasks, names=given.keys() - self.tasks.keys(), tasks=self.tasks)
        for split in SPLITS:
            if (path := folder / f"{split}.jsonl").exists():
                start, rows = len(self.store), read_processed(path, given)
                deque(self.store.fill({"_where": where, **keep(example)} for where, example in rows), maxlen=0)
                splits[split] = np.arange(start, len(self.store), dtype=np.uint32)
        if not len(splits.get("train", ())):
            raise UserError(f"{folder}: has labels.json, but train.jsonl is missing or empty")
        self.kinds, self.form = {name: task.kind for name, task in self.tasks.items()}, unchanged
        self.types = {name: task.type for name, task in self.tasks.items() if task.type in KINDS} | self.types
        self.hierarchy = next((task.hierarchy for task in self.tasks.values() if task.hierarchy), "")
        self.strata, self.presence = Strata(self.kinds), {}
        if self.config.n_splits:
            self.note_strata()
        self.set_splits({split: rows for split, rows in splits.items() if len(rows)})
        for name, task in self.tasks.items():
            if task.counts is None:
                counted = collect_labels(self.splits, {name: self.kinds[name]})[name]
                kept: dict[str, Any] = dict(type=task.type, kind=task.kind, hierarchy=task.hierarchy)
                kept |= dict(extras=task.extras, fields=task.fields, no_text=task.no_text, entities=task.entities)
                self.tasks[name] = replace(counted, **kept)

    def sample(self, shots: dict[str, int]) -> None:
        """Replaces the train split with a few rows per class. shots: {task: rows per class}."""
        tasks = self.tasks or collect_labels(self.splits, self.kinds, self.types, self.hierarchy)
        self.splits["train"] = sample_shots(self.splits["train"], self.kinds, shots, self.config.random_seed)
        self.tasks = with_counts_of(self.splits["train"], tasks, self.kinds)

    def note_strata(self) -> None:
        """Records the strata for the folds of a processed folder."""
        presence: dict[str, list[bool]] = {name: [] for name in self.kinds}
        for examples in map(list, self.store.batches()):
            self.strata.add([e[self.strata.name] for e in examples] if self.strata.name else None, None)
            for name in presence:
                presence[name] += [e[name] is not None for e in examples]
        self.presence = {name: np.array(is_present) for name, is_present in presence.items()}

    def folds(self) -> tuple[Rows, list[tuple[Rows, Rows]]]:
        """Returns (Rows of train and dev together, [(train, dev) Rows of each fold])."""
        config = self.config
        pool = np.concatenate([self.rows["train"], self.rows.get("dev", self.rows["train"][:0])])
        folds = split_folds(pool, self.strata, config)
        for number, fold in enumerate(folds):
            for split, rows in zip(("train", "dev"), fold):
                for name, is_present in self.presence.items():
                    if not is_present[rows].any():
                        problem = f"{split} of fold {number} would have no label of {name!r}"
                        raise UserError(f"--n_splits {config.n_splits}: {problem}; use fewer folds")
        return self.of_rows(pool), [(self.of_rows(train), self.of_rows(dev)) for train, dev in folds]


def named_tasks(tasks: Tasks, names: str) -> Tasks:
    """Returns the tasks listed in --label_column, or all tasks if it is empty. Raises UserError for unknown names."""
    requested = split_names(names)
    if unknown := [name for name in requested if name not in tasks]:
        raise UserError(f"--label_column: the folder has no task {unknown[0]!r}; its tasks are {', '.join(tasks)}")
    tasks = {name: tasks[name] for name in requested} if requested else tasks
    return {name: replace(task, entities=task.entities * (task.entities in tasks)) for name, task in tasks.items()}


def without_tasks(example: Example, names: Collection[str], tasks: Tasks) -> Example:
    """Removes the labels of the tasks in `names`, and joins the tokens to a text if no task in `tasks` needs words."""
    if not names:
        return example
    example = {name: value for name, value in example.items() if name not in names}
    if "tokens" in example and not any(task.needs_words for task in tasks.values()):
        example = {"id": example.pop("id"), "text": text_of(example), **example}
        del example["tokens"]
    return example


def unchanged(numbers: list[int], examples: list[Example]) -> list[Example]:
    """Returns processed examples unchanged; has the interface of a Form."""
    return examples


def room_for(output_dir: str) -> Path | None:
    """Returns a folder for temporary files: the closest existing parent of output_dir, or None for the default."""
    if not output_dir:
        return None
    folder = next(parent for parent in Path(output_dir).absolute().parents if parent.is_dir())
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return None
    return folder


def write_splits(folder: Path, splits: Mapping[str, Rows]) -> None:
    """Writes the rows of each split to its file in a new folder."""
    folder.mkdir()
    with ExitStack() as stack:
        files = {split: stack.enter_context(open(folder / f"{split}.jsonl", "wb")) for split in splits}
        blocks = tqdm(list(blocks_of(splits)), desc=folder.name, leave=False, delay=2)
        for split, lines in in_order(partial(encode_block, splits), blocks):
            files[split].write(lines)


def encode_block(splits: Mapping[str, Rows], block: tuple[str, int, int]) -> tuple[str, bytes]:
    """Returns (split, encoded lines) for a block of rows, in the format of the processed folder."""
    split, start, stop = block
    return split, encode_rows(splits[split][start:stop])
