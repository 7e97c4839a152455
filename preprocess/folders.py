"""Readers of folders with a text a file: a folder a class, and BRAT's texts with their annotations beside them."""

import re
from collections import Counter
from pathlib import Path

from engine.errors import UserError
from preprocess.raw_files import MOST_CHARACTERS, read_rows, read_whole, some

UNLABELLED = ("unsup", "unlabeled", "unlabelled")  # folders whose texts have no class
TEXT_BOUND = re.compile(r"(\S+) (\d+ \d+(?:;\d+ \d+)*)")


def is_text(path):
    """Whether a file is one of many texts: NAME.txt, or a number alone (as in 20 Newsgroups)."""
    return (path.suffix.lower() == ".txt" or path.name.isdigit()) and not path.name.startswith(".") and path.is_file()


def text_files(folder):
    return sorted(path for path in folder.iterdir() if is_text(path))


def class_folders(folder):
    """The folders in a folder that hold texts: each is a class, if they are two or more."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "_")))
    return [path for path in inside if any(map(is_text, path.iterdir()))]


def is_brat(folder):
    """Whether a folder holds annotations as BRAT writes them: NAME.ann beside NAME.txt."""
    return any(path.suffix == ".ann" for path in folder.iterdir())


def read_classes(path, options):
    """A folder for each class, with a text in each .txt file of it."""
    folders = class_folders(Path(path))
    if len(folders) < 2:
        raise UserError(f"{path}: needs a folder for each class, with texts in them, a .txt each; found {len(folders)}")
    labelled = hasattr(options, "label_column")  # a corpus to pretrain on takes all texts
    unlabelled = [folder.name for folder in folders if labelled and folder.name.lower() in UNLABELLED]
    classes = [folder for folder in folders if folder.name not in unlabelled]
    left_out = f"; left out, as they have no class: {some(unlabelled)}" if unlabelled else ""
    print(f"{path}: a class for each of the {len(classes)} folders ({some(f.name for f in classes)}){left_out}")
    told = False
    for folder in classes:
        for file in text_files(folder):
            text, encoding = read_whole(file, options.encoding)
            if encoding == "gb18030" and options.encoding == "auto" and not told:
                print(f"{file}: not UTF-8; read as GB18030, as others here may be (--encoding overrides)")
                told = True
            text = text.removeprefix("\ufeff").replace("\r\n", "\n").strip("\n")
            yield {"_where": f"{file}", "id": f"{folder.name}/{file.stem}", "text": text, "label": folder.name}


def read_brat(path, options):
    """BRAT's folder: NAME.txt, and NAME.ann with its entities ("T1<tab>TYPE START END<tab>SURFACE")."""
    path, unread, split_up = Path(path), Counter(), []
    annotations = sorted(file for file in path.iterdir() if file.suffix == ".ann")
    texts = text_files(path)
    if alone := sorted({file.stem for file in annotations} - {file.stem for file in texts}):
        raise UserError(f"{path}/{alone[0]}.ann: no {alone[0]}.txt beside it")
    for file in texts:
        text, _ = read_whole(file, options.encoding)
        spans = None
        if (annotated := file.with_suffix(".ann")).exists():
            spans = []
            for number, row in read_rows(annotated, options.encoding):
                where = f"{annotated}, row {number}"
                if not row.startswith("T"):
                    unread[row[:1]] += bool(row.strip())
                elif (span := text_bound(row, text, where)) is None:
                    split_up.append(where)
                else:
                    spans.append(span)
        yield {"_where": f"{file}", "id": file.stem, "text": text, "entities": spans}
    if split_up:
        print(f"{path}: entities in several pieces are left out ({len(split_up)}): {some(split_up, 3)}")
    names = {"R": "relations", "E": "events", "A": "attributes", "M": "attributes", "#": "notes", "N": "references"}
    if unread := {names.get(sign, f"{sign} lines"): number for sign, number in unread.items() if number}:
        print(f"{path}: not read: {', '.join(f'{number} {name}' for name, number in unread.items())}")


def text_bound(row, text, where):
    """[start, end, type] of a line of BRAT; None for one in several pieces. UserError unless its surface lies there."""
    cells = row.split("\t")
    match = TEXT_BOUND.fullmatch(cells[1]) if len(cells) > 1 else None
    if match is None:
        raise UserError(f"{where}: an entity needs TYPE START END, found {row[:80]!r}")
    if ";" in match[2]:
        return None
    start, end = map(int, match[2].split()) if len(match[2]) < 40 else (0, 0)
    if not 0 <= start < end <= min(len(text), MOST_CHARACTERS):
        raise UserError(f"{where}: {start} to {end} lies outside the text, which has {len(text)} characters")
    surface = cells[2] if len(cells) > 2 else ""
    if surface and surface.split() != text[start:end].split():
        raise UserError(f"{where}: {start} to {end} is {text[start:end]!r}, but the data calls it {surface!r}")
    return [start, end, match[1]]
