"""Finds the files of the raw data and the part that each of them belongs to, and reads them."""

import re
from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engine.errors import UserError
from engine.run.files import sha256
from engine.task.text import split_text, text_of
from preprocess.example import PART_NAMES, PARTS, RESERVED, TEXT_KEYS, Example, check_characters
from preprocess.labels.kinds import KINDS, NO_LABEL
from preprocess.readers.folders import class_folders, is_brat
from preprocess.readers.formats import CONLL_SUFFIXES, READERS, SUFFIXES, find_format, read_txt, suffix_of
from preprocess.readers.objects import is_saved_dataset
from preprocess.readers.options import ReadOptions
from preprocess.readers.raw_files import limit_rows
from preprocess.schema import check_row, part_of, read_processed


def part_of_name(path: Path) -> str | None:
    """The part named by a file's name (train.csv, atis.dev.txt, test-00000-of-00001.parquet), or None."""
    return next((PART_NAMES[word] for word in re.split(r"[._\-]", path.name.lower()) if word in PART_NAMES), None)


def data_files(folder: Path) -> list[Path]:
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


def has_classes(folder: Path) -> bool:
    """Whether the data are texts in one subfolder per class, not files in the folder itself."""
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    tables = any(suffix_of(path) in (*SUFFIXES, *CONLL_SUFFIXES) or part_of_name(path) for path in files)
    parts = any(path.name.lower() in PART_NAMES for path in folder.iterdir() if path.is_dir())
    return not tables and not parts and len(class_folders(folder)) > 1


def find_sources(source: Path) -> list[tuple[str | None, Path]]:
    """[(part or None, path)] of the data in a file or folder; the part follows from names such as train.csv."""
    if not source.exists():
        raise UserError(f"{source}: no such file or folder (the name of a Hugging Face dataset needs --format hf)")
    if source.is_file() or is_saved_dataset(source):
        return [(None, source)]
    folders = [path for path in sorted(source.iterdir()) if path.is_dir() and path.name.lower() in PART_NAMES]
    sources: list[tuple[str | None, Path]]
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


def read_examples(source: Path, options: ReadOptions) -> Iterator[Example]:
    """Yields all examples of the input, each with "_where" and, if the data has parts, "split".

    At most --max_rows of each file; with --drop_unlabelled only those with a label.
    """
    for part, path in [(None, source)] if options.format == "hf" else find_sources(source):
        name = find_format(path, options)
        examples = READERS[name](path, options)
        if name != "hf":  # this reader counts the rows of each split itself
            examples = limit_rows(examples, options.max_rows, path)
        if options.drop_unlabelled:
            examples = with_labels(examples, path, options.label_types)
        empty = True
        for example in examples:
            empty = False
            yield example | ({"split": part} if part else {})
        if empty:
            raise UserError(f"{path}: contains no examples")


def with_labels(examples: Iterator[Example], path: Path, label_types: dict[str, str]) -> Iterator[Example]:
    """Drops examples without any label (empty, null or NaN; an empty multilabel cell is a label), and prints how many
    were dropped."""
    several = {name for name, kind in label_types.items() if KINDS[kind] == "multilabel"}
    dropped, first = 0, ""
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


def is_no_label(label: Any, may_be_empty: bool) -> bool:
    """Whether a value means that there is no label."""
    if isinstance(label, str):
        return label.strip().lower() in NO_LABEL[may_be_empty:]
    return label is None or label != label  # only NaN differs from itself


class TextRows:
    """The examples of a file, which can be read repeatedly, one at a time. The first pass checks them all.

    labelled: whether they come from a processed folder, with labels.
    """

    def __init__(self, path: str | Path, read: Callable[[], Iterator[Example]], labelled: bool = False) -> None:
        self.path, self.read, self.labelled = Path(path), read, labelled
        checked = tqdm(read(), desc=f"checking {self.path.name}", unit=" rows", leave=False, delay=2)
        self.size = sum(1 for _ in checked)
        if not self.size:
            raise UserError(f"{path}: empty; it contains no texts")
        self.sha256 = self.fingerprint = sha256(path)


def texts_of(config: Any) -> TextRows:
    """The TextRows of --predict_file."""
    path = Path(config.predict_file)
    return TextRows(path, partial(read_texts, path, ReadOptions.of(config)))


def rows_of_part(data_path: str | Path, part: str, tasks: dict[str, Any], limit: int | None = None) -> TextRows:
    """The TextRows of a part of a processed folder, at most `limit` of them."""
    path = part_of(data_path, part)
    return TextRows(path, lambda: (row for _, row in islice(read_processed(path, tasks), limit)), labelled=True)


def read_texts(path: Path, options: ReadOptions) -> Iterator[Example]:
    """Yields examples to predict on, without labels: one text per row (.txt), or the text columns of CSV, TSV or JSONL.
    (A JSON array is read into memory as a whole.)"""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    suffix = suffix_of(path)
    if suffix not in ("", ".txt", *SUFFIXES):
        raise UserError(f"{path}: must end in .txt, {', '.join(SUFFIXES)}")
    read = READERS[SUFFIXES[suffix]] if suffix in SUFFIXES else read_txt
    wanted: list[str] = []
    for number, example in enumerate(read(path, options)):
        keys = [key for key in TEXT_KEYS if key in example]
        if not number:
            wanted, kept = keys, [*keys, *(["extras"] if "extras" in example else [])]
        where = example["_where"]
        if keys != wanted:
            raise UserError(f"{where}: has {' and '.join(keys)}, but the first row has {' and '.join(wanted)}")
        check_row(example, {}, where, needs_labels=False)
        check_characters(example)
        yield {"id": str(example.get("id", number)), **{key: example[key] for key in kept}}


def read_unlabelled(config: Any, tasks: dict[str, Any], form: Collection[str]) -> Iterator[Example]:
    """The texts of --unlabelled as examples of these tasks, all labels None. form: which of "tokens" and "text_pair"
    the training examples have. Raises UserError if only one side has pairs."""
    from engine.predict.predictions import prepare_inputs  # here, so that other commands do not import torch

    labels = dict.fromkeys(tasks)
    for number, example in enumerate(read_texts(Path(config.unlabelled), ReadOptions.of(config)), 1):
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
