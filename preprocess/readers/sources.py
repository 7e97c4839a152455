"""Finds the raw data files and their splits, and reads them."""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engine.errors import UserError
from engine.run.atomic import sha256
from engine.task.text import split_text, text_of
from engine.task.words import id_of
from preprocess.example import (
    RESERVED,
    SPLIT_ALIASES,
    SPLITS,
    TEXT_KEYS,
    Example,
    abbreviate,
    aliases_in,
    check_characters,
    split_from_name,
)
from preprocess.labels.positions import NAMES_FILE
from preprocess.readers.archives import UNPACKED, as_named, is_archive, note, unpacked
from preprocess.readers.folders import class_folders, is_brat
from preprocess.readers.formats import FOLDERS, FORMATS, find_format, is_labelled, is_table, suffix_of
from preprocess.readers.label_files import class_files, classes_of, label_file_of
from preprocess.readers.left_out import SecretLabels, without_gaps
from preprocess.readers.objects import is_saved_dataset
from preprocess.readers.offsets import Offsets
from preprocess.readers.options import ReadOptions
from preprocess.readers.raw_files import encoding_of, limit_rows
from preprocess.schema import check_row, part_of, read_processed

BINARY = (".parquet", ".xlsx")


def data_files(folder: Path) -> list[Path]:
    """Returns the data files of a folder. The folder itself is the only source if it contains seq.in, BRAT annotations
    or one subfolder per class."""
    if (folder / "seq.in").exists() or is_brat(folder) or has_classes(folder):
        return [folder]
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and not path.name.startswith((".", "README"))
        and path.suffix not in (".intent", ".py", ".md")
        and path.name not in ("labels.json", "checks.json")
    ]
    if are_class_files(folder, files):
        return [folder]
    label_files = {path: label_file for path in files if (label_file := label_file_of(path))}
    data = [path for path in files if path not in label_files.values() and path.name != NAMES_FILE]
    if unused := [path for path in data if path not in label_files] if label_files else []:
        names = abbreviate(path.name for path in unused)
        note(f"{folder}: not used, because only other files have label files: {names}")
    return [path for path in data if path not in unused]


def are_class_files(folder: Path, files: list[Path]) -> bool:
    """Returns True if the files of a folder are plain texts with one file per class."""
    are_plain = files == class_files(folder) and classes_of(files) is not None
    return are_plain and not any(map(is_labelled, files))


def has_classes(folder: Path) -> bool:
    """Returns True if the texts are in one subfolder per class, rather than in files of the folder itself."""
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    tables = any(is_table(path) or split_from_name(path) for path in files)
    splits = any(path.name.lower() in SPLIT_ALIASES for path in folder.iterdir() if path.is_dir())
    return not tables and not splits and len(class_folders(folder)) > 1


def find_sources(source: Path, whole: bool = False) -> list[tuple[str | None, Path]]:
    """Returns [(split or None, path)] for the data in a file or folder. Names such as train.csv determine the split.
    whole: whether each folder is one source, because --format is a folder format."""
    files_in = (lambda folder: [folder]) if whole else data_files
    if not source.exists():
        raise UserError(f"{source}: no such file or folder (for a Hugging Face dataset, add --format hf)")
    if source.is_file() or is_saved_dataset(source):
        return [(None, source)]
    folders = [path for path in sorted(source.iterdir()) if path.is_dir() and path.name.lower() in SPLIT_ALIASES]
    sources: list[tuple[str | None, Path]]
    paths_by_folder = {folder: files_in(folder) for folder in folders}
    sources = [
        (SPLIT_ALIASES[folder.name.lower()], path) for folder, paths in paths_by_folder.items() for path in paths
    ]
    if empty := [folder for folder, paths in paths_by_folder.items() if sources and not paths]:
        reason = "contains no data files or class folders, but other splits do"
        raise UserError(f"{empty[0]}: {reason}; rename or remove it")
    if not folders:
        # The name of the input folder itself does not determine a split
        sources = [(None if path == source else split_from_name(path), path) for path in files_in(source)]
    if not sources:  # one folder per intent, with one file per split (Snips)
        below = [path for path in sorted(source.iterdir()) if path.is_dir() and not path.name.startswith(".")]
        sources = [(split_from_name(path), path) for folder in below for path in data_files(folder) if path.is_file()]
        sources = sources if all(split for split, _ in sources) else []
    if not sources:
        raise UserError(f"{source}: contains no data files")
    require_clear_splits(sources)
    return sorted(sources, key=lambda split_and_path: SPLITS.index(split_and_path[0] or "train"))


def require_clear_splits(sources: list[tuple[str | None, Path]]) -> None:
    """Raises UserError if the name of a file does not show its split."""
    splits = {split for split, _ in sources}
    if None in splits and len(splits) > 1:
        unclear = next(path for split, path in sources if split is None)
        several = len(aliases_in(unclear)) > 1
        reason = "the name contains several splits" if several else "the name must contain train, dev (valid) or test"
        raise UserError(f"{unclear}: {reason}{'' if several else ', like the other names'}; rename or remove it")
    dev = [path for split, path in sources if split == "dev" and path.is_file()]
    testa = [path for path in dev if "testa" in aliases_in(path)]
    if testa and len(testa) < len(dev):
        other = next(path.name for path in dev if path not in testa)
        reason = f"testa is a name of the dev split, but {other} is also the dev split"
        raise UserError(f"{testa[0]}: {reason}; rename or remove it")


def read_examples(source: Path, options: ReadOptions) -> Iterator[Example]:
    """Yields all examples of the input, each with "_where" and, if the data has splits, "split". Reads at most
    --max_rows rows of each file. With --drop_unlabelled, skips rows without a label."""
    try:
        for example in examples_of(source, options):
            yield example | {"_where": as_named(example["_where"])} if UNPACKED else example
    except UserError as error:
        raise UserError(as_named(str(error))) from None


def examples_of(source: Path, options: ReadOptions) -> Iterator[Example]:
    """Yields the examples for read_examples, with the paths of extracted files in "_where"."""
    test_split, whole = SecretLabels(options), options.format in FOLDERS
    with ExitStack() as stack:
        for split, path in [(None, source)] if options.format == "hf" else sources_of(source, stack, whole):
            name = find_format(path, options)
            options.understood.begin(path, split, name)
            examples = FORMATS[name].read(path, options)
            if name != "hf":  # this reader limits the rows of each split itself
                examples = limit_rows(examples, options.max_rows, path)
            if options.labelled:
                examples = test_split.labelled(Offsets(path, options).examples(examples), split, path)
            if options.drop_empty or options.drop_unlabelled:
                examples = without_gaps(examples, path, options)
            empty = True
            for example in examples:
                empty = False
                yield example | ({"split": split} if split else {})
            if empty and path not in test_split.paths:
                raise UserError(f"{path}: contains no examples")
    test_split.report()


def sources_of(source: Path, stack: ExitStack, whole: bool) -> list[tuple[str | None, Path]]:
    """Calls find_sources, and extracts archives to folders that are deleted when the stack is closed."""
    sources: list[tuple[str | None, Path]] = []
    for split, path in find_sources(unpacked(source, stack) if is_archive(source) else source, whole):
        inner = find_sources(unpacked(path, stack), whole) if is_archive(path) else [(split, path)]
        sources += [(split or of_inner, each) for of_inner, each in inner]
    return sources


class TextRows:
    """The examples of a file, which can be iterated several times. Checks all of them when it is created. labelled:
    whether they are from a processed folder, with labels."""

    def __init__(self, path: str | Path, read: Callable[[], Iterator[Example]], labelled: bool = False) -> None:
        self.path, self.read, self.labelled = Path(path), read, labelled
        checked = tqdm(read(), desc=f"checking {self.path.name}", unit=" rows", leave=False, delay=2)
        self.size = sum(1 for _ in checked)
        if not self.size:
            raise UserError(f"{path}: contains no texts")
        self.sha256 = self.fingerprint = sha256(path)
        self.notes: list[str] = []  # log lines about how the file was read


def texts_of(config: Any) -> TextRows:
    """Returns the TextRows of --predict_file."""
    path, options = Path(config.predict_file), replace(ReadOptions.of(config), needs_text=False)
    rows = TextRows(path, partial(read_texts, path, options))
    files = [each for each in map(Path, options.understood.forms) if each.is_file() and suffix_of(each) not in BINARY]
    detected = {str(each): encoding_of(each, report=False) for each in files if options.encoding == "auto"}
    encodings = [f"{each}: read as {name.upper()} (--encoding overrides)" for each, name in detected.items()]
    rows.notes = [*options.understood.notes(), *(note for note in encodings if "UTF-8-SIG" not in note)]
    return rows


def rows_of_split(data_path: str | Path, split: str, tasks: dict[str, Any], limit: int | None = None) -> TextRows:
    """Returns the TextRows of a split of a processed folder. limit: the maximum number of rows."""
    path = part_of(data_path, split)
    return TextRows(path, lambda: (row for _, row in islice(read_processed(path, tasks), limit)), labelled=True)


def read_texts(path: Path, options: ReadOptions) -> Iterator[Example]:
    """Yields the examples of a file, folder or archive without their labels, for prediction. Keeps empty rows of tables
    and texts, so that each prediction has the row number of its text. Reads a whole JSON object into memory."""
    if options.format == "hf" and not path.exists():
        raise UserError(f"{path}: no such folder; save a hub dataset with load_dataset(…).save_to_disk(FOLDER)")
    expected: set[str] | None = None
    for number, example in enumerate(read_examples(path, options)):
        form = {*TEXT_KEYS} & example.keys() - ({"text"} if "tokens" in example else set())
        expected = form if expected is None else expected
        where = example["_where"]
        if form != expected:
            has, first = (" and ".join(sorted(keys)) or "no text" for keys in (form, expected))
            raise UserError(f"{where}: has {has}, but the first row has {first}")
        if form:
            check_row(example, {}, where, needs_labels=False)
        if not number:
            options.understood.unread.update(example.keys() - {*RESERVED})
        texts = {key: example[key] for key in (*TEXT_KEYS, "extras") if key in example}
        check_characters({"_where": where, **texts})
        yield {"id": id_of(example.get("id"), number), **texts}


def read_unlabelled(config: Any, tasks: dict[str, Any], form: Collection[str]) -> Iterator[Example]:
    """Yields the texts of --unlabelled as examples of these tasks, with all labels None. form: the keys "tokens" and
    "text_pair", if the training examples have them. Raises UserError if only one side has text pairs."""
    from engine.predict.predictions import prepare_inputs  # imported here because it imports torch

    labels = dict.fromkeys(tasks)
    for number, example in enumerate(read_texts(Path(config.unlabelled), ReadOptions.of(config)), 1):
        if ("text_pair" in form) != ("text_pair" in example):
            ours, theirs = ("pairs of texts", "single texts")[:: 1 if "text_pair" in form else -1]
            raise UserError(f"{config.unlabelled}: has {theirs}, but train has {ours} (see --text_pair_column)")
        (example,) = prepare_inputs([example], tasks, config.unlabelled, number)
        if "tokens" in form and "tokens" not in example:
            example["tokens"] = [token for token, _, _ in split_text(example["text"], "word")]
        if "tokens" not in form and "tokens" in example:
            example["text"] = example.get("text") or text_of(example)
            del example["tokens"]
        yield example | labels
