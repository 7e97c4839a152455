"""Reads folders with one text per file: one folder per class, and BRAT's text and annotation files."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.errors import UserError
from preprocess.example import SPLIT_ALIASES, Example, abbreviate, shown, split_from_name
from preprocess.readers.archives import note
from preprocess.readers.options import ReadOptions
from preprocess.readers.raw_files import MAX_CHARACTERS, encoding_of_all, is_utf8, named_rows, read_whole

UNLABELLED = ("unsup", "unlabeled", "unlabelled")  # folders of texts without a class
RELATION = re.compile(r"(\S+)\s+\S+?:(\S+)\s+\S+?:(\S+)")
TEXT_BOUND = re.compile(r"(\S+) (\d+ \d+(?:;\d+ \d+)*)")


def is_text(path: Path) -> bool:
    """Returns True if a file is a single text: NAME.txt, or a number without a suffix (as in 20 Newsgroups)."""
    return (path.suffix.lower() == ".txt" or path.name.isdigit()) and not path.name.startswith(".") and path.is_file()


def text_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if is_text(path))


def class_folders(folder: Path) -> list[Path]:
    """Returns the subfolders that contain texts; two or more are classes. A file such as train.txt is not a text."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "_")))
    return [path for path in folders if any(file.stem.lower() not in SPLIT_ALIASES for file in text_files(path))]


def is_brat(folder: Path) -> bool:
    """Returns True if a folder contains BRAT annotations (.ann files)."""
    return any(path.suffix == ".ann" for path in folder.iterdir())


def read_classes(path: Path, options: ReadOptions) -> Iterator[Example]:
    """Reads one folder per class, with one text per .txt file."""
    folders = class_folders(path)
    if len(folders) < 2:
        raise UserError(f"{path}: found {len(folders)} class folders; needs one per class, with one .txt file per text")
    # If labels are not needed (pretraining), all texts are used
    unlabelled = [folder.name for folder in folders if options.labelled and folder.name.lower() in UNLABELLED]
    classes = [folder for folder in folders if folder.name not in unlabelled]
    skipped = f"; skipped, because their texts have no class: {abbreviate(unlabelled)}" if unlabelled else ""
    note(f"{path}: one class for each of the {len(classes)} folders ({abbreviate(f.name for f in classes)}){skipped}")
    shared = ""  # encoding of all non-UTF-8 texts; a single text may be too short to detect it
    for folder in classes:
        for file in text_files(folder):
            encoding = options.encoding
            if encoding == "auto" and not is_utf8(file):
                encoding = shared = shared or encoding_of_all([f for folder in classes for f in text_files(folder)])
            text = read_whole(file, encoding)
            text = text.removeprefix("\ufeff").replace("\r\n", "\n").strip("\r\n")
            yield {"_where": f"{file}", "id": f"{folder.name}/{file.stem}", "text": text, "label": folder.name}


def read_brat(path: Path, options: ReadOptions) -> Iterator[Example]:
    """Reads a BRAT folder: NAME.txt, and NAME.ann with its entities ("T1<tab>TYPE START END<tab>SURFACE"), relations
    ("R1<tab>PREDICATE Arg1:T1 Arg2:T2") and events ("E1<tab>TYPE:T1 ROLE:T2 ROLE:E2"; an event that is an argument is
    replaced by its trigger). Triggers are not entities. If no file has relations or events, there is no such task."""
    ignored, discontinuous = Counter[str](), list[str]()
    texts = text_files(path)
    annotations = {file for file in path.iterdir() if file.suffix == ".ann"}
    if without_text := sorted({file.stem for file in annotations} - {file.stem for file in texts}):
        raise UserError(f"{path}/{without_text[0]}.ann: {without_text[0]}.txt is missing")
    files = annotations if options.labelled else set()
    splits = [folder for folder in path.parent.iterdir() if folder.is_dir() and split_from_name(folder)]
    of_all = [file for folder in (splits if path in splits else [path]) for file in sorted(folder.glob("*.ann"))]
    signs = {row[0] for file in of_all if files for _, row in named_rows(file, options.encoding)}
    for file in texts:
        text, annotation = read_whole(file, options.encoding), file.with_suffix(".ann")
        is_read = annotation in files
        entities: dict[str, list[Any] | None] = {}
        linked: list[tuple[str, str]] = []
        events: dict[str, tuple[str, str]] = {}
        for where, row in named_rows(annotation, options.encoding) if is_read else ():
            if row.startswith("T"):
                entities[row.split("\t")[0]] = span = text_bound(row, text, where)
                discontinuous += [] if span else [where.removeprefix(f"{path}/")]
            elif row.startswith("R"):
                linked.append((where, row))
            elif row.startswith("E"):
                events[row.split("\t")[0]] = (where, row)
            else:
                ignored[row[0]] += 1
        relations = [relation for where, row in linked if (relation := relation_line(row, entities, where, ignored))]
        found, triggers = events_of_lines(events, entities, ignored)
        spans = [span for key, span in entities.items() if span and key not in triggers]
        every = {"entities": spans, "relations": relations, "events": found}
        kept = ["entities", *["relations"] * ("R" in signs), *["events"] * ("E" in signs)]
        labels = {name: every[name] if is_read else None for name in kept}
        yield {"_where": f"{file}", "id": file.stem, "text": text, **labels}
    if discontinuous:
        note(f"{path}: discontinuous entities skipped: {len(discontinuous)} ({abbreviate(discontinuous, 3)})")
    names = {"R": "relations of events or discontinuous entities", "A": "attributes", "M": "attributes"}
    names |= {"#": "notes", "N": "references", "E": "events or arguments of discontinuous entities"}
    if ignored:
        counts = {names.get(sign, f"{sign} lines"): number for sign, number in ignored.items()}
        note(f"{path}: ignored {', '.join(f'{number} {name}' for name, number in counts.items())}")


def relation_line(
    row: str, entities: Mapping[str, list[Any] | None], where: str, ignored: Counter[str]
) -> dict[str, Any] | None:
    """Returns the relation in a BRAT line, from its first argument to its second. Counts it in `ignored` and returns
    None if an argument is an event or a discontinuous entity. entities: {id: span, or None if discontinuous}."""
    cells = row.split("\t")
    match = RELATION.fullmatch(cells[1].strip()) if len(cells) > 1 else None
    if match is None:
        raise UserError(f"{where}: expected PREDICATE Arg1:T1 Arg2:T2, found {row[:80]!r}")
    predicate, *ends = match.groups()
    if unknown := [end for end in ends if end.startswith("T") and end not in entities]:
        raise UserError(f"{where}: the relation {predicate!r} refers to {unknown[0]}, which does not exist")
    spans = [entities.get(end) for end in ends]
    if None in spans:
        ignored["R"] += 1
        return None
    subject, obj = ({"start": span[0], "end": span[1]} for span in spans if span)
    return {"subject": subject, "predicate": predicate, "object": obj}


def events_of_lines(
    lines: Mapping[str, tuple[str, str]], entities: Mapping[str, list[Any] | None], ignored: Counter[str]
) -> tuple[list[dict[str, Any]], set[str]]:
    """Returns (the events in BRAT lines, the ids of their triggers). Counts discontinuous triggers and arguments in
    `ignored`. lines: {id: (source, line)}."""
    mentions: dict[str, list[tuple[str, str]]] = {}
    for key, (where, row) in lines.items():
        cells = row.split("\t")
        words = [each.rpartition(":") for each in cells[1].split()] if len(cells) > 1 else []
        pairs = [(name, end) for name, _, end in words]
        if not pairs or not all(name and end for name, end in pairs) or pairs[0][1] not in entities:
            raise UserError(f"{where}: expected TYPE:T1 and ROLE:T2 or ROLE:E2, found {row[:80]!r}")
        mentions[key] = [(re.sub(r"\d+$", "", name), end) for name, end in pairs]  # Theme2 is a second Theme
    triggers = {key: pairs[0][1] for key, pairs in mentions.items()}
    events = []
    for key, pairs in mentions.items():
        if unknown := [end for _, end in pairs if triggers.get(end, end) not in entities]:
            raise UserError(f"{lines[key][0]}: {key} refers to {unknown[0]}, which does not exist")
        spans = [(name, entities[triggers.get(end, end)]) for name, end in pairs]
        whole = [{"role": name, "start": span[0], "end": span[1]} for name, span in spans if span]
        ignored["E"] += len(spans) - len(whole)
        if spans[0][1]:
            events.append({"type": spans[0][0], "trigger": whole[0], "arguments": whole[1:]})
    return events, {*triggers.values()}


def text_bound(row: str, text: str, where: str) -> list[Any] | None:
    """Returns [start, end, type] of a BRAT entity line, or None if the entity is discontinuous. Raises UserError if the
    text at these offsets does not match the surface form."""
    cells = row.split("\t")
    match = TEXT_BOUND.fullmatch(cells[1]) if len(cells) > 1 else None
    if match is None:
        raise UserError(f"{where}: expected TYPE START END, found {row[:80]!r}")
    if ";" in match[2]:
        return None
    start, end = map(int, match[2].split()) if len(match[2]) < 40 else (0, 0)
    if not 0 <= start < end <= min(len(text), MAX_CHARACTERS):
        raise UserError(f"{where}: {start} to {end} is outside the text of {len(text)} characters")
    surface = cells[2] if len(cells) > 2 else ""
    if surface and surface.split() != text[start:end].split():
        raise UserError(f"{where}: {start} to {end} is {shown(text[start:end])}, but the data says {shown(surface)}")
    return [start, end, match[1]]
