"""Runs the data checks of `python data_process.py`, which find problems in the data before training.

To add a check for your own data, write a subclass of Check (base.py) and add it to CHECKS.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from engine.run.files import write_json
from preprocess.checks.base import Check, Context, Splits, Tasks
from preprocess.checks.duplicates import Duplicates, Groups, Ids, SwappedPairs
from preprocess.checks.entities import Block, Entities
from preprocess.checks.events import Events
from preprocess.checks.labels import Labels, Numbers
from preprocess.checks.relations import Relations
from preprocess.checks.texts import Lengths, Texts, Tokens
from preprocess.example import counted, cut
from preprocess.labels.statistics import LabelStatistics
from preprocess.schema import encode_rows
from preprocess.storage.arrow import blocks_of
from preprocess.storage.facts import Facts, Note
from preprocess.storage.parallel import in_order

CHECKS: list[type[Check]] = [
    Ids,
    Duplicates,
    SwappedPairs,
    Groups,
    Texts,
    Tokens,
    Lengths,
    Labels,
    Numbers,
    Entities,
    Relations,
    Events,
]


class CheckResults(Facts):
    """Results of one pass over some rows. labels: statistics for labels.json and the summary."""

    def __init__(self, context: Context) -> None:
        self.checks = {check: check(context) for check in CHECKS}
        self.labels = LabelStatistics(context.folder)


def inspect_splits(
    splits: Splits, kinds: Mapping[str, str], files: Mapping[str, BinaryIO] | None = None
) -> CheckResults:
    """Runs all checks in one pass over the rows. Also writes each split to files[split]. kinds: {task: kind}."""
    context, blocks = Context(splits, kinds), list(blocks_of(splits))
    results, look = CheckResults(context), partial(look_at_block, splits, context, bool(files))
    size = sum(map(len, splits.values()))
    with tqdm(total=size, desc="rows", unit=" rows", leave=False, delay=2) as bar:
        for (split, start, stop), (block_results, lines) in zip(blocks, in_order(look, blocks)):
            results.merge(block_results)
            if files:
                files[split].write(lines)
            bar.update(stop - start)
    return results


def look_at_block(splits: Splits, context: Context, write: bool, block: Block) -> tuple[CheckResults, bytes]:
    """Returns the results for a block of rows, and its encoded lines for the processed folder."""
    split, start, stop = block
    examples, results = splits[split][start:stop], CheckResults(context)
    for check in results.checks.values():
        check.look(split, start, examples, context)
    results.labels.look(split, examples, context.kinds, context.fields)
    return results, encode_rows(examples) if write else b""


def run_checks(
    splits: Splits, tasks: Tasks, notes: Iterable[Note] = (), results: CheckResults | None = None
) -> list[Note]:
    """Returns all notes that have rows, starting with `notes`. results: from `inspect_splits`, if it has run."""
    if results is None:
        results = inspect_splits(splits, {name: task.kind for name, task in tasks.items()})
    notes = list(notes)
    for check in tqdm(results.checks.values(), desc="data checks", leave=False, delay=2):
        notes += check.notes(splits, tasks, results.labels)
    return with_rows(notes)


def with_rows(notes: Iterable[Note]) -> list[Note]:
    return [note for note in notes if note.rows]


def save_notes(notes: Sequence[Note], path: Path) -> None:
    """Writes the notes and the first rows of each to a JSON file, for the report of a run."""
    rows = [[cut(row, 300) for row in n.rows[:3]] for n in notes]
    items = [{"what": n.what, "count": n.number, "rows": r, "advice": n.advice} for n, r in zip(notes, rows)]
    write_json(path, items)


def print_notes(notes: list[Note], max_rows: int = 3) -> None:
    """Prints each note: the finding, the number of rows, the first rows and the advice."""
    if not notes:
        print("checks: no problems found")
        return
    print(f"checks: {counted(len(notes), 'possible problem')}")
    for note in notes:
        remaining = f"; and {note.number - max_rows} more" if note.number > max_rows else ""
        rows = "; ".join(cut(row, 300) for row in note.rows[:max_rows])
        print(f"  - {note.what} ({note.number}): {rows}{remaining}\n      -> {note.advice}")
