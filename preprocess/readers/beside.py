"""Plain text files whose labels are elsewhere: in a file next to them, row by row, or in their names, one per class."""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from engine.errors import UserError
from preprocess.example import PART_NAMES, Example, abbreviate, part_of_name
from preprocess.readers.options import ReadOptions
from preprocess.readers.raw_files import open_bytes, read_rows

# Words of file names: of a file of texts, and of one with their labels
TEXT_WORDS = set("text texts sentence sentences x in input inputs data txt".split())
LABEL_WORDS = set("label labels target targets y tag tags intent intents 标签".split())
# Words of files that are not a class
OTHER_WORDS = (
    TEXT_WORDS | LABEL_WORDS | set("corpus vocab vocabulary classes class dict stopwords source words".split())
)
OTHER_WORDS |= set("readme license mapping map index list names all raw clean notes output result results".split())
# Names of files that can only be classes; other names are confirmed by --format class_files
CLASS_WORDS = set("pos neg neu positive negative neutral good bad spam ham true false real fake yes no".split())
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".xlsx", ".conllu", ".conll", ".ann")


def words_of(path: Path) -> list[str]:
    name = path.name[: -len(path.suffix)] if path.suffix.lower() == ".gz" else path.name
    return [word for word in re.split(r"[._\-\s]+", name.lower()) if word]


def label_file_of(path: Path) -> Path | None:
    """The file with a label for each row of a text file: train.labels for train.txt, y_train.txt for x_train.txt."""
    words = {*words_of(path)}
    if words & LABEL_WORDS or not path.is_file() or path.suffix.lower() in TABLES:
        return None
    for other in sorted(path.parent.iterdir()):
        found = {*words_of(other)}
        is_beside = found & LABEL_WORDS and found - LABEL_WORDS - TEXT_WORDS == words - TEXT_WORDS
        is_plain = is_beside and other.is_file() and other.suffix.lower() not in (*TABLES, ".intent")
        if is_plain and number_of_rows(other) == number_of_rows(path):
            return other
    return None


def number_of_rows(path: Path) -> int:
    with open_bytes(path) as file:
        rows, end = 0, b"\n"
        while piece := file.read(2**20):
            rows, end = rows + piece.count(b"\n"), piece[-1:]
        return rows + (end != b"\n")


def read_beside(path: Path, options: ReadOptions) -> Iterator[Example]:
    """A text per row, and in the file next to it its label, or a tag for each of its words."""
    beside = label_file_of(path)
    if beside is None:
        raise UserError(f"{path}: no file of as many labels next to it, such as {path.stem}.labels")
    pairs = zip(read_rows(path, options.encoding), read_rows(beside, options.encoding))
    head = [(text.split(), label.split()) for (_, text), (_, label) in islice(pairs, 200)]
    tagged = all(len(words) == len(tags) for words, tags in head) and any(len(tags) > 1 for _, tags in head)
    columns = {"text": path.name, "tags" if tagged else "label": beside.name}
    options.understood.add(path, "texts with labels next to them", **columns)
    for (number, text), (_, label) in zip(read_rows(path, options.encoding), read_rows(beside, options.encoding)):
        where = f"{path}, row {number}"
        if not tagged:
            if text.strip() or label.strip():
                yield {"_where": where, "text": text, "label": label.strip()}
        elif text.split():
            if len(text.split()) != len(label.split()):
                raise UserError(f"{where}: {len(text.split())} words, but {beside.name} has {len(label.split())} tags")
            yield {"_where": where, "tokens": text.split(), "slots": label.split()}


def classes_of(files: list[Path]) -> dict[Path, str] | None:
    """{file: its class} by their names, without the words that all have and those that name parts; None if the names
    are not those of classes."""
    words = {path: [word for word in words_of(path) if word not in PART_NAMES and word != "txt"] for path in files}
    common = set.intersection(*map(set, words.values())) if words else set()
    classes = {path: "_".join(word for word in found if word not in common) for path, found in words.items()}
    seen = [(part_of_name(path), name) for path, name in classes.items()]
    unusual = any(not name or name.isdigit() or {*name.split("_")} & OTHER_WORDS for name in classes.values())
    if len({*classes.values()}) < 2 or unusual or len({*seen}) < len(seen):
        return None
    return classes


def class_files(folder: Path) -> list[Path]:
    """The plain text files of a folder, sorted."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and not path.name.startswith((".", "README"))
        and path.suffix.lower() not in (*TABLES, ".md", ".py")
    ]


def read_class_files(path: Path, options: ReadOptions) -> Iterator[Example]:
    """A folder with one file per class: a text per row."""
    files = class_files(path)
    classes = classes_of(files)
    if classes is None:
        found = abbreviate(file.name for file in files)
        raise UserError(f"{path}: needs one text file per class, called like the class; it has {found}")
    is_sure = all(map(part_of_name, files)) or {name.lower() for name in classes.values()} <= CLASS_WORDS
    if options.format != "class_files" and not is_sure:
        found = abbreviate(file.name for file in files)
        raise UserError(f"{path}: {found} may each have the texts of one class; if so, add --format class_files")
    print(f"{path}: one class for each of the {len({*classes.values()})} files ({abbreviate({*classes.values()})})")
    for file, name in classes.items():
        part = part_of_name(file)
        for number, row in read_rows(file, options.encoding):
            if row.strip():
                example = {"_where": f"{file}, row {number}", "text": row, "label": name}
                yield example | ({"split": part} if part else {})
