"""Labels the rows of a file as a stream, in constant memory and in input order. A killed run can be resumed.

Rows are labelled one pool at a time. A finished pool is appended to <output>.partial and synced to disk; then the
number of durable rows is saved in <output>.partial.json. At the end, the output is renamed to its final path.
Pools start at fixed row numbers, so a resumed run labels the same batches. Shards consist of whole pools; their
concatenation (without repeated CSV headers) is byte-identical to the output of a single run.
"""

import io
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from engine.data.cuts import Cuts
from engine.data.own_inputs import fields_of
from engine.errors import UserError
from engine.predict.predictions import check_pairs, prepare_inputs
from engine.predict.rows import write_rows
from engine.run import distributed
from engine.run.atomic import atomic_file, open_nofollow, require_file, sha256
from engine.run.command_line import os_error_line
from engine.run.files import require_other_file, sync, write_json
from engine.run.launch import restarts
from engine.run.option_checks import parse_shard
from engine.run.reading import READING, ReadingOptions
from engine.run.run_folder import changed_options, hold
from engine.run.signals import Interrupted, StopSignals
from engine.schema import Range, SchemaError, read_json
from engine.task.task import Task

logger = logging.getLogger("template")

POOL, BATCHES = 4096, 64  # maximum rows and batches per pool; a pool is sorted by length to reduce padding
# Options that affect the output. --force_resume allows changes in FORCEABLE, because row positions stay the same
OPTIONS = [*"shard spreadsheet_safe eval_batch_size precision compile".split(), *READING]
DEFAULTS: dict[str, Any] = {f"--{f.name}": f.default for f in fields(ReadingOptions)} | {"--abstain_below": {}}
CHECKPOINT, POOLS = "SHA-256 of the checkpoint", "rows in a pool"
FORCEABLE = {CHECKPOINT, POOLS, "device", "--eval_batch_size", "--precision", "--compile"}


def label_rows(
    trainer: Any,
    rows: Any,
    load: Callable[[list[dict[str, Any]]], Any],
    path: str | Path,
    *checkpoints: str | Path,
    **more: Any,
) -> None:
    """Labels the rows of a file, or of one --shard of it, and writes a .csv or .jsonl file.

    rows: a TextRows of preprocess/readers/sources.py; load(examples) -> MyDataLoader; path: the output path, to which
    --shard adds its number; checkpoints: the checkpoint folders of the model or of an ensemble; more: other values that
    affect the predictions. On SIGTERM or SIGINT, stops after the current batch and raises Interrupted; --resume
    labels that pool again.
    """
    config, tasks = trainer.config, trainer.tasks
    pool = pool_size(config.eval_batch_size)
    shard = rows_of_shard(rows.size, pool, config.shard)
    check_all(rows, tasks)
    sums = [sha256(Path(checkpoint) / "manifest.json")[:16] for checkpoint in checkpoints]
    facts = {"SHA-256 of the input": rows.sha256[:16], CHECKPOINT: " ".join(sums)} | more
    facts |= {"rows": rows.size, POOLS: pool, "device": trainer.device.type}
    facts |= {"--abstain_below": trainer.abstention.thresholds} | {f"--{n}": getattr(config, n) for n in OPTIONS}
    distributed.require_same(facts)
    path = path_of_shard(path, config.shard)
    require_other_file(path, "predict_output", rows.path)
    output = Output(path, facts, len(shard), config.spreadsheet_safe, trainer.abstention.counts)
    trainer.stop = StopSignals(logger.warning, distributed.all_reduce_max, "stopping after this batch")
    resuming = config.resume or restarts() > 0
    with distributed.entered_by_first(output.opened(resuming, config.force_resume)) as done, trainer.stop:
        examples = examples_of(rows, tasks, shard.start + done, shard.stop)
        bar = tqdm(total=len(shard), initial=done, desc="labelling", unit=" rows", leave=False, delay=2)
        try:
            for start in range(shard.start + done, shard.stop, pool):
                chunk = list(islice(examples, pool))
                if len(chunk) < min(pool, shard.stop - start):
                    raise UserError(f"{rows.path}: has fewer rows than at the start of the run; run the command again")
                loader = load(chunk)
                labelled = trainer.predict_rows(loader)
                if distributed.is_main_process():
                    output.add(labelled, loader.dataset)
                bar.update(len(chunk))
        except Interrupted:
            logger.info(f"stopped; {output.so_far()}; the same command with --resume continues")
            raise
        finally:
            bar.close()
        if distributed.is_main_process():
            output.cuts.log(rows.path, tasks)
            output.finish()


def pool_size(batch_size: int) -> int:
    """Returns the number of rows in a pool."""
    return batch_size * min(BATCHES, max(1, POOL // batch_size))


def embed_rows(trainer: Any, rows: Any, load: Callable[[list[dict[str, Any]]], Any], path: str | Path) -> None:
    """Writes the vectors of the rows of a file, or of one --shard of it, to a .npy file (N, H), pool by pool.

    Arguments: as in `label_rows`. The file is written atomically; if the process is killed, it is written from scratch.
    """
    pool = pool_size(trainer.config.eval_batch_size)
    shard = rows_of_shard(rows.size, pool, trainer.config.shard)
    check_all(rows, trainer.tasks_to_embed)
    path, cuts = path_of_shard(path, trainer.config.shard), Cuts()
    require_other_file(path, "embed", rows.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    examples = examples_of(rows, trainer.tasks_to_embed, shard.start, shard.stop)
    shape = (len(shard), trainer.model.hidden_size)
    bar = tqdm(total=len(shard), desc="embedding", unit=" rows", leave=False, delay=2)
    with atomic_file(path, durable=True) as file, bar:
        np.lib.format.write_array_header_1_0(file.buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
        while chunk := list(islice(examples, pool)):
            loader = load(chunk)
            file.buffer.write(trainer.embed(loader).astype("<f4").tobytes())
            cuts.add(loader.dataset)
            bar.update(len(chunk))
    cuts.log(rows.path, trainer.tasks)
    logger.info(f"{shape[0]} vectors of size {shape[1]} in {path}")


def rows_of_shard(size: int, pool: int, shard: str) -> range:
    """Returns the rows of a shard such as "3/16". Shards consist of whole pools; their sizes differ by at most one."""
    number, shards = parse_shard(shard)
    pools = -(-size // pool)
    first, end = (min(size, pools * n // shards * pool) for n in (number - 1, number))
    if first == end:
        logger.warning(
            f"--shard={shard} is empty: shards consist of pools of {pool} rows, and the file has only {pools}"
        )
    return range(first, end)


def path_of_shard(path: str | Path, shard: str) -> Path:
    """Returns the output path of a shard, such as labelled-03-of-16.csv for labelled.csv. Paths sort in row order."""
    path, (number, shards) = Path(path), parse_shard(shard)
    return path.with_stem(f"{path.stem}-{number:0{len(str(shards))}d}-of-{shards}") if shard else path


def check_all(rows: Any, tasks: dict[str, Task]) -> None:
    """Logs how the file was read. Raises UserError if a model for these tasks cannot read a row."""
    for note in rows.notes:
        logger.info(note)
    if not rows.labelled:
        check_pairs(next(iter(rows.read())), tasks, rows.path)
        for _ in prepare_inputs(rows.read(), tasks, rows.path) if fields_of(tasks) else ():
            pass


def examples_of(rows: Any, tasks: dict[str, Task], start: int, stop: int) -> Iterator[dict[str, Any]]:
    """Yields rows start to stop (exclusive) as examples prepared for these tasks."""
    examples = rows.read()
    before = tqdm(total=start, desc=f"finding row {start + 1}", unit=" rows", leave=False, delay=2)
    for _ in islice(examples, start):
        before.update()
    before.close()
    examples = islice(examples, stop - start)
    return examples if rows.labelled else prepare_inputs(examples, tasks, rows.path, start + 1)


PROGRESS = {"facts": {str: object}, "rows": Range(0), "bytes": Range(0), "cuts": {str: int}}  # in <output>.partial.json


class Output:
    """The output file and its partial state. The file appears once all rows are labelled. Only one process writes it.

    facts: {name: value} of everything that affects the content of the file; num_rows: the final number of rows.
    """

    def __init__(
        self,
        path: str | Path,
        facts: dict[str, Any],
        num_rows: int,
        spreadsheet_safe: bool = False,
        abstained: Counter[str] | None = None,
    ):
        self.path, self.facts, self.num_rows, self.safe = Path(path), facts, num_rows, spreadsheet_safe
        self.partial = self.path.with_name(f"{self.path.name}.partial")
        self.progress = self.path.with_name(f"{self.path.name}.partial.json")
        self.lock = self.path.with_name(f".{self.path.name}.lock")
        self.rows = self.bytes = 0  # labelled so far
        self.cuts = Cuts()
        self.abstained = Counter[str]() if abstained is None else abstained  # by an Abstention, since the last save

    @contextmanager
    def opened(self, resume: bool, force: bool) -> Iterator[int]:
        """Context manager that locks the output for this process and yields the number of finished rows.

        resume: continue a partial output, if there is one; force: even if the model or some options have changed.
        """
        with hold(self.lock, self.path, "choose another --predict_output", "choose another --predict_output"):
            try:
                require_file(self.path)
                if not (resume and self.progress.exists() and self.resume(force)):
                    self.begin(resume)
            except OSError as error:
                raise UserError(os_error_line(error)) from None
            yield self.rows

    def begin(self, resume: bool) -> None:
        self.rows = self.bytes = 0
        if self.partial.exists():
            why = f"{self.progress.name} is missing" if resume else "--resume is not given"
            logger.warning(f"{self.partial}: discarding the rows of an earlier run, because {why}")
        self.save()
        self.partial.unlink(missing_ok=True)
        open_nofollow(self.partial).close()

    def resume(self, force: bool) -> bool:
        """Rolls back to the last durable state. Returns whether there is one. Raises UserError if it is damaged, or was
        written with other inputs or options."""
        advice = f"remove {self.progress} to start over"
        try:
            saved = read_json(self.progress, PROGRESS)
            before, self.rows, self.bytes, cuts = (saved[name] for name in PROGRESS)
        except SchemaError:
            raise UserError(f"{self.progress}: damaged, or written by another version; {advice}") from None
        # Options that were added later had their default values
        before = {name: value for name, value in DEFAULTS.items() if name in self.facts} | before
        changes = changed_options(before, self.facts, FORCEABLE if force else ())
        if changes:
            is_forceable = not changed_options(before, self.facts, FORCEABLE)
            advice += ", or add --force_resume to continue anyway" if is_forceable else ""
            raise UserError(f"{self.partial} was started with different options: {'; '.join(changes)}; {advice}")
        if not self.partial.exists():  # it was already renamed to its final path, or not yet created
            return self.rows == self.num_rows and self.path.exists()
        if self.partial.stat().st_size < self.bytes:
            raise UserError(f"{self.partial}: is shorter than the {self.rows} rows recorded; {advice}")
        with open_nofollow(self.partial, append=True) as file:
            file.truncate(self.bytes)
        self.cuts = Cuts(cuts)
        logger.info(f"resuming: {self.so_far()}")
        return True

    def so_far(self) -> str:
        return f"{self.rows} of {self.num_rows} rows are in {self.partial}"

    def save(self) -> None:
        done = {"rows": self.rows, "bytes": self.bytes, "cuts": self.cuts.counts, "facts": self.facts}
        write_json(self.progress, done, durable=True)

    def add(self, rows: Iterable[dict[str, Any]], data: Any) -> None:
        """Appends the predictions for a MyDataset. Raises UserError if writing fails; earlier rows remain intact."""
        text = io.StringIO(newline="")
        write_rows(rows, text, self.path.suffix == ".jsonl", header=not self.rows, spreadsheet_safe=self.safe)
        written, safe = text.getvalue().encode(), self.rows
        try:
            with open_nofollow(self.partial, append=True) as file:
                file.write(text.getvalue())
                file.flush()
                os.fsync(file.fileno())
            self.rows, self.bytes = self.rows + len(data), self.bytes + len(written)
            self.cuts.add(data)
            self.cuts.counts.update(self.abstained)
            self.abstained.clear()
            self.save()
        except OSError as error:
            advice = f"{safe} of {self.num_rows} rows are saved; add --resume to continue"
            raise UserError(f"{self.partial}: cannot be written ({(error.strerror or '').lower()}); {advice}") from None

    def finish(self) -> None:
        """Renames the file to its final path."""
        if self.partial.exists():
            os.replace(self.partial, self.path)
            sync(self.path.parent)
        self.progress.unlink()
        with suppress(OSError):  # Windows cannot delete a locked file
            self.lock.unlink()
        for name in [key.removeprefix("answers ") for key in self.cuts.counts if key.startswith("answers ")]:
            omitted, total = (self.cuts.counts[f"{what} {name}"] for what in ("abstained", "answers"))
            logger.info(f"{name}: {omitted} of {total} predictions are omitted because of their low probability")
        logger.info(f"{self.num_rows} predictions in {self.path}")
