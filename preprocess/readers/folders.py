"""Readers of folders with one text per file: one folder per class, and BRAT's texts with annotation files."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.errors import UserError
from preprocess.example import PART_NAMES, Example, abbreviate, shown
from preprocess.readers.archives import note
from preprocess.readers.options import ReadOptions
from preprocess.readers.raw_files import MAX_CHARACTERS, encoding_of_all, is_utf8, named_rows, read_whole

UNLABELLED = ("unsup", "unlabeled", "unlabelled")  # folders whose texts have no class
TEXT_BOUND = re.compile(r"(\S+) (\d+ \d+(?:;\d+ \d+)*)")


def is_text(path: Path) -> bool:
    """Whether a file is one of many texts: NAME.txt, or a number without a suffix (as in 20 Newsgroups)."""
    return (path.suffix.lower() == ".txt" or path.name.isdigit()) and not path.name.startswith(".") and path.is_file()


def text_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if is_text(path))


def class_folders(folder: Path) -> list[Path]:
    """The subfolders that contain texts; each is a class if there are two or more. A file train.txt is not a text."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "_")))
    return [path for path in inside if any(file.stem.lower() not in PART_NAMES for file in text_files(path))]


def is_brat(folder: Path) -> bool:
    """Whether a folder contains BRAT annotations: NAME.ann next to NAME.txt."""
    return any(path.suffix == ".ann" for path in folder.iterdir())


def read_classes(path: Path, options: ReadOptions) -> Iterator[Example]:
    """One folder per class, with one text per .txt file."""
    folders = class_folders(path)
    if len(folders) < 2:
        raise UserError(f"{path}: needs one folder per class, with one .txt file per text; found {len(folders)}")
    # Without labels, as for pretraining, all texts are used
    unlabelled = [folder.name for folder in folders if options.labelled and folder.name.lower() in UNLABELLED]
    classes = [folder for folder in folders if folder.name not in unlabelled]
    left_out = f"; skipped, as their texts have no class: {abbreviate(unlabelled)}" if unlabelled else ""
    note(f"{path}: one class for each of the {len(classes)} folders ({abbreviate(f.name for f in classes)}){left_out}")
    shared = ""  # the encoding of all non-UTF-8 texts, as a single one may be too short for detection
    for folder in classes:
        for file in text_files(folder):
            encoding = options.encoding
            if encoding == "auto" and not is_utf8(file):
                encoding = shared = shared or encoding_of_all([f for folder in classes for f in text_files(folder)])
            text = read_whole(file, encoding)
            text = text.removeprefix("\ufeff").replace("\r\n", "\n").strip("\r\n")
            yield {"_where": f"{file}", "id": f"{folder.name}/{file.stem}", "text": text, "label": folder.name}


def read_brat(path: Path, options: ReadOptions) -> Iterator[Example]:
    """A BRAT folder: NAME.txt, and NAME.ann with its entities ("T1<tab>TYPE START END<tab>SURFACE")."""
    unread, discontinuous = Counter[str](), list[str]()
    texts = text_files(path)
    annotations = {file for file in path.iterdir() if file.suffix == ".ann"}
    if alone := sorted({file.stem for file in annotations} - {file.stem for file in texts}):
        raise UserError(f"{path}/{alone[0]}.ann: no {alone[0]}.txt next to it")
    for file in texts:
        text, annotated = read_whole(file, options.encoding), file.with_suffix(".ann")
        spans: list[Any] = []
        is_read = options.labelled and annotated in annotations
        for where, row in named_rows(annotated, options.encoding) if is_read else ():
            if not row.startswith("T"):
                unread[row[0]] += 1
            elif span := text_bound(row, text, where):
                spans.append(span)
            else:
                discontinuous.append(where.removeprefix(f"{path}/"))
        yield {"_where": f"{file}", "id": file.stem, "text": text, "entities": spans if is_read else None}
    if discontinuous:
        note(f"{path}: discontinuous entities are dropped ({len(discontinuous)}): {abbreviate(discontinuous, 3)}")
    names = {"R": "relations", "E": "events", "A": "attributes", "M": "attributes", "#": "notes", "N": "references"}
    if unread:
        ignored = {names.get(sign, f"{sign} lines"): number for sign, number in unread.items()}
        note(f"{path}: ignored: {', '.join(f'{number} {name}' for name, number in ignored.items())}")


def text_bound(row: str, text: str, where: str) -> list[Any] | None:
    """[start, end, type] of a BRAT line; None if discontinuous. Raises UserError if the surface does not match."""
    cells = row.split("\t")
    match = TEXT_BOUND.fullmatch(cells[1]) if len(cells) > 1 else None
    if match is None:
        raise UserError(f"{where}: an entity needs TYPE START END, found {row[:80]!r}")
    if ";" in match[2]:
        return None
    start, end = map(int, match[2].split()) if len(match[2]) < 40 else (0, 0)
    if not 0 <= start < end <= min(len(text), MAX_CHARACTERS):
        raise UserError(f"{where}: {start} to {end} lies outside the text, which has {len(text)} characters")
    surface = cells[2] if len(cells) > 2 else ""
    if surface and surface.split() != text[start:end].split():
        raise UserError(f"{where}: {start} to {end} is {shown(text[start:end])}, but the data gives {shown(surface)}")
    return [start, end, match[1]]
