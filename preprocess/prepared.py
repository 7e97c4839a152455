"""The input, read and stored on the disk, with task kinds determined and rows split into parts."""

import tempfile
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from engine.errors import UserError
from engine.task.tags import kind_of
from preprocess.labels.labelling import Labeller, collect_labels, examine, label_all
from preprocess.readers.sources import read_examples
from preprocess.schema import PARTS, encode_rows, load_labels, read_processed
from preprocess.splits import Strata, split_folds, split_rows
from preprocess.storage.facts import Column
from preprocess.storage.parallel import in_order
from preprocess.storage.spool import BLOCK, BLOCK_BYTES, GROUP, Rows, Spool, blocks_of


class Prepared:
    """The data that `data_process.py` writes, without its labels.json. A context manager.

    parts: {part: Rows}; kinds: {task: kind}; tasks: labels.json if the input has one, otherwise None; notes: on what
    was changed.
    """

    def __init__(self, config):
        self.config, self.notes, self.tasks, self.spool = config, [], None, Spool(room_for(config.output_dir))
        try:
            source = Path(config.input)
            if config.format == "auto" and (source / "labels.json").exists():
                self.read_processed(source)
            else:
                self.read_raw()
        except BaseException:
            self.spool.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.spool.close()

    def read_raw(self):
        config, spool, examples = self.config, self.spool, read_examples(self.config)
        first = next(examples)
        if config.group_column and "group" not in first:
            raise UserError(f"{config.input}: this format has no column {config.group_column!r} (--group_column)")
        pieces = filled(spool, chain([dict(first)], examples))
        self.form, notes, given = examine(spool, pieces, first, config)
        self.kinds, self.strata = self.form.kinds, Strata(self.form.kinds)
        presence = list(self.kinds) if config.n_splits and len(self.kinds) > 1 else []
        labeller = Labeller(self.form, self.strata.name, config.group_column, presence)
        self.notes, self.presence = label_all(spool, self.form, notes, self.strata, labeller)
        self.set_parts(split_rows(given, len(spool) - len(self.form.dropped), self.strata, config))

    def set_parts(self, rows):
        """Makes Rows from the row numbers of each part, which are kept only if folds are needed."""
        self.parts = {part: self.of_rows(numbers) for part, numbers in rows.items()}
        self.rows, self.strata = (rows, self.strata) if self.config.n_splits else (None, None)

    def of_rows(self, rows):
        """The Rows with these numbers, which do not count dropped rows."""
        dropped = getattr(self.form, "dropped", ())
        if len(dropped):
            rows = np.delete(np.arange(len(self.spool), dtype=np.uint32), dropped)[rows]
        return Rows(self.spool, self.form, Column(np.uint32, self.spool.folder, rows))

    def read_processed(self, folder):
        """Reads a processed folder, to check it again."""
        if self.config.group_column:
            advice = "use --group_column with the raw data"
            raise UserError(f"{folder}: a processed folder does not store groups; {advice}")
        self.tasks, ends = load_labels(folder), {}
        for part in PARTS:
            if (path := folder / f"{part}.jsonl").exists():
                for where, example in tqdm(read_processed(path, self.tasks), unit=" rows", leave=False, delay=2):
                    self.spool.append({"_where": where, **example})
                ends[part] = len(self.spool)
        if not ends.get("train"):
            raise UserError(f"{folder}: has labels.json, but train.jsonl is missing or empty")
        self.spool.finish()
        self.kinds, self.form = {name: kind_of(task) for name, task in self.tasks.items()}, as_it_is
        self.strata, self.presence = Strata(self.kinds), {}
        if self.config.n_splits:
            self.note_strata()
        starts = [0, *ends.values()]
        parts = {part: np.arange(start, end, dtype=np.uint32) for start, (part, end) in zip(starts, ends.items())}
        self.set_parts({part: rows for part, rows in parts.items() if len(rows)})
        for name, task in self.tasks.items():
            if "counts" not in task:
                task.update(collect_labels(self.parts, {name: self.kinds[name]})[name])

    def note_strata(self):
        """Records what the folds of a processed folder are stratified by."""
        presence = {name: [] for name in self.kinds}
        for piece in self.spool.pieces():
            examples = list(piece)
            self.strata.add([e[self.strata.name] for e in examples] if self.strata.name else None, None)
            for name, there in presence.items():
                there += [e[name] is not None for e in examples]
        self.presence = {name: np.array(there) for name, there in presence.items()}

    def folds(self):
        """(Rows of train and dev together, [(train, dev) Rows of each fold])."""
        config = self.config
        pool = np.concatenate([self.rows["train"], self.rows.get("dev", self.rows["train"][:0])])
        folds = split_folds(pool, self.strata, config)
        for number, fold in enumerate(folds):
            for part, rows in zip(("train", "dev"), fold):
                for name, there in self.presence.items():
                    if not there[rows].any():
                        empty = f"{part} of fold {number} would have no label of {name!r}"
                        raise UserError(f"--n_splits {config.n_splits}: {empty}; use fewer folds")
        return self.of_rows(pool), [tuple(map(self.of_rows, fold)) for fold in folds]


def as_it_is(numbers, examples):
    """A Form that changes nothing, for processed examples."""
    return examples


def filled(spool, examples):
    """Fills a spool, and yields each piece as soon as it is written."""
    start = size = 0
    for example in tqdm(examples, desc="reading", unit=" rows", leave=False, delay=2):
        spool.append(example)
        number = len(spool) - start
        if number == BLOCK or (spool.size - size > BLOCK_BYTES and number % GROUP == 0):
            yield spool.piece(start, len(spool))
            start, size = len(spool), spool.size
    spool.finish()
    if start < len(spool):
        yield spool.piece(start, len(spool))


def room_for(output_dir):
    """A folder for temporary files: the closest existing parent of output_dir, or None for the system's default."""
    if not output_dir:
        return None
    folder = next(parent for parent in Path(output_dir).absolute().parents if parent.is_dir())
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return None
    return folder


class Lines:
    """(part, lines) of a block of rows, in the format of the processed folder."""

    def __init__(self, parts):
        self.parts = parts

    def __call__(self, block):
        part, start, stop = block
        return part, encode_rows(self.parts[part][start:stop])


def write_parts(folder, parts):
    """Writes the rows of each part to its file in a new folder."""
    folder.mkdir()
    with ExitStack() as stack:
        files = {part: stack.enter_context(open(folder / f"{part}.jsonl", "wb")) for part in parts}
        blocks = tqdm(list(blocks_of(parts)), desc=folder.name, leave=False, delay=2)
        for part, lines in in_order(Lines(parts), blocks):
            files[part].write(lines)
