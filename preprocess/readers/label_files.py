"""Reads plain texts with labels in a parallel file, or with one file per class."""

import re
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path

from engine.errors import UserError
from engine.task.tags import notation_of
from preprocess.example import SPLIT_ALIASES, Example, abbreviate, split_from_name
from preprocess.readers.archives import note
from preprocess.readers.options import ReadOptions
from preprocess.readers.raw_files import named_rows, open_bytes, rows_side_by_side, split_words

# Words in the names of files with texts and of files with labels
TEXT_WORDS = set("text texts sentence sentences x in input inputs data txt".split())
LABEL_WORDS = set("label labels target targets y tag tags intent intents 标签".split())
# Words that show that a file name is not a class
OTHER_WORDS = set(
    "corpus vocab vocabulary classes class dict stopwords source words readme license mapping map".split()
)
OTHER_WORDS |= set("map index list names all raw clean notes output result results".split()) | TEXT_WORDS | LABEL_WORDS
# Names that are certainly classes; other names must be confirmed with --format class_files
CLASS_WORDS = set("pos neg neu positive negative neutral good bad spam ham true false real fake yes no".split())
HEAD_ROWS = 200  # rows used to detect one tag per word
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".xlsx", ".conllu", ".conll", ".ann")


def name_pieces(path: Path) -> list[str]:
    """Returns the words of a file name, with the delimiters between them."""
    name = path.name[: -len(path.suffix)] if path.suffix.lower() == ".gz" else path.name
    return re.split(r"([._\-\s]+)", name)


def words_of(path: Path) -> list[str]:
    return [word.lower() for word in name_pieces(path)[::2] if word]


def label_file_of(path: Path) -> Path | None:
    """Returns the label file next to a text file (train.labels for train.txt, y_train.txt for x_train.txt), or None."""
    words = {*words_of(path)}
    if words & LABEL_WORDS or not path.is_file() or path.suffix.lower() in TABLES:
        return None
    for other in sorted(path.parent.iterdir()):
        other_words = {*words_of(other)}
        is_parallel = other_words & LABEL_WORDS and other_words - LABEL_WORDS - TEXT_WORDS == words - TEXT_WORDS
        is_plain = is_parallel and other.is_file() and other.suffix.lower() not in (*TABLES, ".intent")
        if is_plain and number_of_rows(other) == number_of_rows(path):
            return other
    return None


def number_of_rows(path: Path) -> int:
    with open_bytes(path) as file:
        rows, end = 0, b"\n"
        while piece := file.read(2**20):
            rows, end = rows + piece.count(b"\n"), piece[-1:]
        return rows + (end != b"\n")


def read_labelled_texts(path: Path, options: ReadOptions) -> Iterator[Example]:
    """Reads one text per row, and its label (or one tag per word) from a parallel file. If labels are not needed, keeps
    empty rows, so that each prediction has the row number of its text."""
    label_file = label_file_of(path)
    if label_file is None:
        raise UserError(f"{path}: no label file with the same number of rows (such as {path.stem}.labels)")
    head = list(islice(rows_side_by_side([path, label_file], options.encoding), HEAD_ROWS))
    pairs = [(split_words(text), split_words(label)) for _, (text, label) in head]
    is_parallel = all(len(words) == len(tags) for words, tags in pairs)
    is_parallel = is_parallel or notation_of(tag for _, tags in pairs for tag in tags) is not None
    tagged = is_parallel and any(len(tags) > 1 for _, tags in pairs)
    columns = {"text": path.name, "tags" if tagged else "label": label_file.name}
    options.understood.add(path, "texts with labels in a parallel file", **columns)
    for where, (text, label) in rows_side_by_side([path, label_file], options.encoding):
        words, tags = split_words(text), split_words(label)
        if tagged and options.labelled and len(words) != len(tags):
            raise UserError(f"{where}: {len(words)} words, but {label_file.name} has {len(tags)} tags")
        if not options.labelled or text.strip() or label.strip():
            of_text = {"text": text, "label": label.strip()}
            yield {"_where": where, **({"tokens": words or [""], "slots": tags} if tagged else of_text)}


def classes_of(files: list[Path]) -> dict[Path, str] | None:
    """Returns {file: class}, or None if the file names are not classes. The class is the file name without words that
    all names share and without names of splits such as train."""
    words = {path: [word for word in words_of(path) if word not in SPLIT_ALIASES and word != "txt"] for path in files}
    common = set.intersection(*map(set, words.values())) if words else set()
    words_of_class = {path: {*file_words} - common for path, file_words in words.items()}
    classes = {path: class_of(path, distinct) for path, distinct in words_of_class.items()}
    unusual = any(not name or name.isdigit() or words_of_class[path] & OTHER_WORDS for path, name in classes.items())
    is_repeated = len({(split_from_name(path), name) for path, name in classes.items()}) < len(classes)
    return None if unusual or is_repeated or len({*classes.values()}) < 2 else classes


def class_of(path: Path, words: Collection[str]) -> str:
    """Returns the words of a file name that name its class, with their original case and delimiters."""
    name, pieces = "", name_pieces(path)
    for delimiter, word in zip(["", *pieces[1::2]], pieces[::2]):
        if word.lower() in words:
            name += (delimiter if name else "") + word
    return name


def class_files(folder: Path) -> list[Path]:
    """Returns the plain text files of a folder, sorted."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith((".", "README"))]
    return [path for path in files if path.suffix.lower() not in (*TABLES, ".md", ".py")]


def read_class_files(path: Path, options: ReadOptions) -> Iterator[Example]:
    """Reads a folder with one file per class and one text per row."""
    files = class_files(path)
    classes, file_names = classes_of(files), abbreviate(file.name for file in files)
    if classes is None:
        raise UserError(f"{path}: needs one text file per class, named after the class; found {file_names}")
    names = list(dict.fromkeys(classes.values()))
    is_sure = all(map(split_from_name, files)) or {name.lower() for name in names} <= CLASS_WORDS
    if options.format != "class_files" and not is_sure:
        raise UserError(f"{path}: {file_names} may contain one class each; if so, add --format class_files")
    note(f"{path}: one class for each of the {len(names)} files ({abbreviate(names)})")
    for file, name in classes.items():
        split = split_from_name(file)
        for where, row in named_rows(file, options.encoding):
            yield {"_where": where, "text": row, "label": name} | ({"split": split} if split else {})
