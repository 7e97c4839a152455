"""Finds the files of the raw data and the part that each of them belongs to, and reads them."""

import re
from functools import partial
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from engine.errors import UserError
from engine.run.files import sha256
from engine.task.text import split_text, text_of
from preprocess.labels.kinds import KINDS, NO_LABEL
from preprocess.readers.columns import PART_NAMES, RESERVED
from preprocess.readers.folders import class_folders, is_brat
from preprocess.readers.formats import CONLL_SUFFIXES, READERS, SUFFIXES, find_format, read_txt, suffix_of
from preprocess.readers.objects import first_rows, is_saved_dataset
from preprocess.schema import PARTS, TEXT_KEYS, check_characters, check_row, part_of, read_processed


def part_of_name(path):
    """The part named by a file's name (train.csv, atis.dev.txt, test-00000-of-00001.parquet), or None."""
    return next((PART_NAMES[word] for word in re.split(r"[._\-]", path.name.lower()) if word in PART_NAMES), None)


def data_files(folder):
    """The data files in a folder. A folder of seq.in, seq.out and label is one source, and so are a BRAT folder and
    one with a subfolder per class."""
    if (folder / "seq.in").exists() or is_brat(folder) or has_classes(folder):
        return [folder]
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and not path.name.startswith((".", "README"))
        and path.suffix not in (".intent", ".py", ".md")
        and path.name not in ("labels.json", "checks.json")
    ]


def has_classes(folder):
    """Whether the data are texts in one subfolder per class, not files in the folder itself."""
    names = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    tables = any(suffix_of(path) in (*SUFFIXES, *CONLL_SUFFIXES) or part_of_name(path) for path in names)
    parts = any(path.name.lower() in PART_NAMES for path in folder.iterdir() if path.is_dir())
    return not tables and not parts and len(class_folders(folder)) > 1


def find_sources(source):
    """[(part or None, path)] of the data in a file or folder; the part follows from names such as train.csv."""
    if not source.exists():
        raise UserError(f"{source}: no such file or folder (the name of a Hugging Face dataset needs --format hf)")
    if source.is_file() or is_saved_dataset(source):
        return [(None, source)]
    folders = [path for path in sorted(source.iterdir()) if path.is_dir() and path.name.lower() in PART_NAMES]
    sources = [(PART_NAMES[folder.name.lower()], path) for folder in folders for path in data_files(folder)]
    if not folders:
        whole = is_brat(source) or has_classes(source)  # the folder's own name does not name a part
        sources = [(None if whole else part_of_name(path), path) for path in data_files(source)]
    if not sources:
        raise UserError(f"{source}: contains no data files")
    parts = {part for part, _ in sources}
    if None in parts and len(parts) > 1:
        stray = next(path for part, path in sources if part is None)
        reason = "its name must contain train, dev (valid) or test, as the other names do"
        raise UserError(f"{stray}: {reason}; rename or remove it")
    return sorted(sources, key=lambda part_and_path: PARTS.index(part_and_path[0] or "train"))


def read_examples(config):
    """Yields all examples of the input, each with "_where" and, if the data has parts, "split"."""
    sources = [(None, config.input)] if config.format == "hf" else find_sources(Path(config.input))
    for part, path in sources:
        empty = True
        for example in examples_of(path, config):
            empty = False
            yield example | ({"split": part} if part else {})
        if empty:
            raise UserError(f"{path}: contains no examples")


def examples_of(path, config):
    """The examples of one file or folder: at most --max_rows; with --drop_unlabelled only those with a label."""
    name = config.format
    if name == "auto":
        as_table = getattr(config, "delimiter", "") and Path(path).is_file() and suffix_of(path) not in SUFFIXES
        name = "csv" if as_table else find_format(Path(path), encoding=config.encoding)
    examples = READERS[name](path, config)
    if name != "hf":  # this reader counts the rows of each split itself
        examples = first_rows(examples, getattr(config, "max_rows", 0), path)
    return with_labels(examples, path, config) if getattr(config, "drop_unlabelled", False) else examples


def with_labels(examples, path, config):
    """Drops examples without any label (empty, null or NaN; an empty multilabel cell is a label), and prints how many
    were dropped."""
    several = {name for name, kind in config.label_types_by_name().items() if KINDS[kind] == "multilabel"}
    dropped, first = 0, None
    for example in examples:
        labels = {name: example[name] for name in example.keys() - set(RESERVED)}
        lacking = [name for name, label in labels.items() if is_no_label(label, name in several)]
        example |= dict.fromkeys(lacking)
        if len(lacking) < len(labels):
            yield example
        else:
            dropped, first = dropped + 1, first or example["_where"]
    if dropped:
        print(f"{path}: {dropped:,} rows without a label are dropped (--drop_unlabelled), the first: {first}")


def is_no_label(label, may_be_empty):
    """Whether a value means that there is no label."""
    if isinstance(label, str):
        return label.strip().lower() in NO_LABEL[may_be_empty:]
    return label is None or label != label  # only NaN differs from itself


class Rows:
    """The examples of a file, which can be read repeatedly, one at a time. The first pass checks them all.

    read() -> an iterator of examples. labelled: whether they come from a processed folder, with labels.
    """

    def __init__(self, path, read, labelled=False):
        self.path, self.read, self.labelled = Path(path), read, labelled
        checked = tqdm(read(), desc=f"checking {self.path.name}", unit=" rows", leave=False, delay=2)
        self.size = sum(1 for _ in checked)
        if not self.size:
            raise UserError(f"{path}: empty; it contains no texts")
        self.sha256 = sha256(path)


def texts_of(config):
    """The Rows of --predict_file."""
    return Rows(config.predict_file, partial(read_texts, config.predict_file, config))


def rows_of_part(data_path, part, tasks, limit=None):
    """The Rows of a part of a processed folder, at most `limit` of them."""
    path = part_of(data_path, part)
    return Rows(path, partial(read_part, path, tasks, limit), labelled=True)


def read_part(path, tasks, limit):
    return (example for _, example in islice(read_processed(path, tasks), limit))


def read_texts(path, config):
    """Yields examples to predict on, without labels: one text per row (.txt), or the text columns of CSV, TSV or JSONL.
    (A JSON array is read into memory as a whole.)"""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    suffix = suffix_of(path)
    if suffix not in ("", ".txt", *SUFFIXES):
        raise UserError(f"{path}: must end in .txt, {', '.join(SUFFIXES)}")
    read = READERS[SUFFIXES[suffix]] if suffix in SUFFIXES else read_txt
    wanted = kept = None
    for number, e in enumerate(read(path, config)):
        keys = [key for key in TEXT_KEYS if key in e]
        if wanted is None:
            wanted, kept = keys, [*keys, *(["extras"] if "extras" in e else [])]
        if keys != wanted:
            raise UserError(f"{e['_where']}: has {' and '.join(keys)}, but the first row has {' and '.join(wanted)}")
        check_row(e, {}, e["_where"], needs_labels=False)
        check_characters(e)
        yield {"id": str(e.get("id", number)), **{key: e[key] for key in kept}}


def read_unlabelled(config, tasks, form):
    """The texts of --unlabelled as examples of these tasks, all labels None. form: which of "tokens" and "text_pair"
    the training examples have. Raises UserError if only one side has pairs."""
    from engine.predict.predictions import prepare_inputs  # here, so that other commands do not import torch

    labels = dict.fromkeys(tasks)
    for number, example in enumerate(read_texts(config.unlabelled, config), 1):
        if ("text_pair" in form) != ("text_pair" in example):
            ours, theirs = ("pairs of texts", "single texts")[:: 1 if "text_pair" in form else -1]
            raise UserError(f"{config.unlabelled}: train has {ours}, this file has {theirs}; see --text_pair_column")
        (example,) = prepare_inputs([example], tasks, config.unlabelled, number)
        if "tokens" in form and "tokens" not in example:
            example["tokens"] = [token for token, _, _ in split_text(example["text"], "word")]
        if "tokens" not in form and "tokens" in example:
            example["text"] = example.get("text") or text_of(example)
            del example["tokens"]
        yield example | labels
