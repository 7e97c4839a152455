"""Runs the data checks of `python data_process.py`, which find problems before training.

Edit here to add a check for your own data: a subclass of Check (base.py), and its name in CHECKS.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from engine.run.files import write_json
from preprocess.checks.base import Check, Context, Parts, Tasks
from preprocess.checks.duplicates import Duplicates, Groups, Ids, SwappedPairs
from preprocess.checks.entities import Block, Entities
from preprocess.checks.labels import Labels, Numbers
from preprocess.checks.texts import Lengths, Texts, Tokens
from preprocess.example import cut
from preprocess.labels.statistics import LabelStatistics
from preprocess.schema import encode_rows
from preprocess.storage.arrow import blocks_of
from preprocess.storage.facts import Facts, Note
from preprocess.storage.parallel import in_order

CHECKS: list[type[Check]] = [Ids, Duplicates, SwappedPairs, Groups, Texts, Tokens, Lengths, Labels, Numbers, Entities]


class Looked(Facts):
    """Results of one pass over some rows. labels: statistics for labels.json and the summary"""

    def __init__(self, context: Context) -> None:
        self.checks = {check: check(context) for check in CHECKS}
        self.labels = LabelStatistics(context.folder)


def look_through(parts: Parts, kinds: Mapping[str, str], files: Mapping[str, BinaryIO] | None = None) -> Looked:
    """Runs all checks in one pass over the rows, and writes each part to files[part]. kinds: {task: kind}"""
    context, blocks = Context(parts, kinds), list(blocks_of(parts))
    found, look = Looked(context), partial(look_at_block, parts, context, bool(files))
    size = sum(map(len, parts.values()))
    with tqdm(total=size, desc="rows", unit=" rows", leave=False, delay=2) as bar:
        for (part, start, stop), (of_block, lines) in zip(blocks, in_order(look, blocks)):
            found.merge(of_block)
            if files:
                files[part].write(lines)
            bar.update(stop - start)
    return found


def look_at_block(parts: Parts, context: Context, write: bool, block: Block) -> tuple[Looked, bytes]:
    """The results for a block of rows, and its lines for the processed folder."""
    part, start, stop = block
    examples, found = parts[part][start:stop], Looked(context)
    for check in found.checks.values():
        check.look(part, start, examples, context)
    found.labels.look(part, examples, context.kinds)
    return found, encode_rows(examples) if write else b""


def run_checks(parts: Parts, tasks: Tasks, notes: Iterable[Note] = (), found: Looked | None = None) -> list[Note]:
    """All notes with rows, those of the processing first. found: the result of `look_through`, if it has run"""
    if found is None:
        found = look_through(parts, {name: task.kind for name, task in tasks.items()})
    notes = list(notes)
    for check in tqdm(found.checks.values(), desc="data checks", leave=False, delay=2):
        notes += check.notes(parts, tasks, found.labels)
    return with_rows(notes)


def with_rows(notes: Iterable[Note]) -> list[Note]:
    return [note for note in notes if note.rows]


def keep(notes: Sequence[Note], path: Path) -> None:
    """Writes the notes and the first rows of each to a JSON file for the report of a run."""
    rows = [[cut(row, 300) for row in n.rows[:3]] for n in notes]
    kept = [{"what": n.what, "count": n.number, "rows": r, "advice": n.advice} for n, r in zip(notes, rows)]
    write_json(path, kept)


def show(notes: list[Note], most: int = 3) -> None:
    """Prints each note: the finding, its count, its first rows and advice."""
    if not notes:
        print("checks: no problems found")
        return
    print(f"checks: {len(notes)} possible problems")
    for note in notes:
        more = f"; and {note.number - most} more" if note.number > most else ""
        rows = "; ".join(cut(row, 300) for row in note.rows[:most])
        print(f"  - {note.what} ({note.number}): {rows}{more}\n      -> {note.advice}")
