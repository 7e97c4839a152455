"""Tokenises examples and collates them into batches of similar length, in memory (MyDataset) or as a stream
(MyIterableDataset).

The order of batches depends only on (seed, epoch), not on the number of workers, so a run can resume at any batch.
To add a model input, add an entry to FIELDS. To add a type of label, edit engine/data/features.py.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
from tqdm import tqdm

from config import Config
from engine.data.cuts import warn_of_cuts
from engine.data.features import Featurizer, encoded_fingerprint, input_column, label_column
from engine.data.fields import FIELDS, Field  # noqa: F401 (for custom inputs)
from engine.data.length_sampler import LengthSampler, length_batches
from engine.data.own_inputs import fields_of
from engine.data.ragged import Ragged, to_arrow, to_numpy
from engine.data.token_cache import cached_table
from engine.errors import UserError
from engine.run import distributed
from engine.run.atomic import sha256
from engine.run.command_line import first_line
from engine.run.device import can_pin
from engine.run.reading import READING
from engine.task.task import IGNORE, Task
from engine.train.optimization import BATCH_SIZES, batch_size_of
from preprocess.example import check_characters
from preprocess.readers.sources import TextRows, read_unlabelled
from preprocess.schema import check_row, read_processed, require_known_labels

logger = logging.getLogger("template")

# Custom inputs, {name: Field}: each becomes `inputs[name]` (docs/cookbook/own_inputs.md). For example:
#     FIELDS["pixels"] = Field("image", shape=(28, 28))
# The columns of --extra_columns are also a Field, `extras` (B, N). Run data_process.py again after changing FIELDS.

# A function (example, rng) -> example that augments training examples, differently in each epoch
# (docs/cookbook/augmentation.md)
augment: Callable[[dict[str, Any], np.random.Generator], dict[str, Any]] | None = None


class Batch(NamedTuple):
    """The inputs and labels of B rows, padded to L tokens and W words.

    inputs: `input_ids`, `attention_mask`, `token_type_ids` (B, L); for tagging also `word_starts` (B, W), the position
    of each word's first sub-token (for decoders also `word_ends`, its last), and `word_mask` (B, W); and custom inputs.
    labels: {task: (B,) or (B, W)}, IGNORE if unlabelled; for spans (B, 1 + 3N), see engine/model/span_pointer.py.
    """

    inputs: dict[str, torch.Tensor]
    labels: dict[str, torch.Tensor]
    rows: torch.Tensor  # row numbers (B,)

    def to(self, device: torch.device | str) -> Batch:
        pinned = can_pin(torch.device(device).type)
        inputs, labels = (
            {name: tensor.to(device, non_blocking=pinned) for name, tensor in tensors.items()} for tensors in self[:2]
        )
        return Batch(inputs, labels, self.rows)


def make_batch(
    columns: dict[str, Any],
    rows: np.ndarray,
    tasks: dict[str, Task],
    pad_id: int,
    numbers: np.ndarray | None = None,
    multiple: int = 1,
) -> Batch:
    """Collates rows into a Batch, padded to the longest row. Without rows, the batch has one unlabelled row, because
    every process must take part in every step."""
    if not len(rows):
        return without_labels(make_batch(columns, np.zeros(1, int), tasks, pad_id, multiple=multiple))
    input_ids, mask = columns["input_ids"].pad(rows, pad_id, multiple)
    token_types = columns["token_type_ids"].pad(rows, 0, multiple)[0] if "token_type_ids" in columns else 0 * input_ids
    inputs = {"input_ids": input_ids, "attention_mask": mask.astype(np.int64), "token_type_ids": token_types}
    if "word_starts" in columns:
        inputs["word_starts"], inputs["word_mask"] = columns["word_starts"].pad(rows, 0)
    if "word_ends" in columns:
        inputs["word_ends"] = columns["word_ends"].pad(rows, 0)[0]
    if "word_shapes" in columns:
        inputs["word_shapes"] = columns["word_shapes"].pad(rows, 0)[0]
    for name, field in fields_of(tasks).items():
        inputs |= field.batch(name, *columns[input_column(name)].pick(rows))
    labels: dict[str, Any] = {}
    for name in tasks:
        column = columns.get(label_column(name))
        if isinstance(column, Ragged):
            labels[name] = column.pad(rows, IGNORE)[0]
        elif column is not None:
            column = column[rows]
            labels[name] = column if column.dtype == np.float32 else column.astype(np.int64)
    tensors = [{name: torch.from_numpy(array) for name, array in arrays.items()} for arrays in (inputs, labels)]
    return Batch(tensors[0], tensors[1], torch.from_numpy(np.asarray(rows if numbers is None else numbers[rows])))


def without_labels(batch: Batch) -> Batch:
    """Removes all labels from a batch, so that it does not contribute to the loss."""
    labels = {
        name: torch.full_like(label, float("nan") if label.is_floating_point() else IGNORE)
        for name, label in batch.labels.items()
    }
    return Batch(batch.inputs, labels, batch.rows[:0])


def augmented(dataset: Any, examples: list[dict[str, Any]], numbers: Iterable[int]) -> list[dict[str, Any]]:
    """Applies the dataset's `augment` to examples. numbers: their row numbers in the file.

    The random numbers depend only on (seed, epoch, row). Raises UserError if a result is not a valid training example.
    """
    known = {name: set(task.labels) for name, task in dataset.tasks.items() if task.kind != "regression"}
    changed = []
    for example, number in zip(examples, map(int, numbers)):
        keys, where = list(example), f"augment in data_loader.py, row {number + 1}"
        try:
            example = dataset.augment(example, np.random.default_rng([dataset.seed, dataset.epoch, number]))
        except Exception as error:  # it may raise any exception
            raise UserError(f"{where}: it raises {type(error).__name__}: {first_line(error)}") from error
        if not isinstance(example, dict) or set(example) != set(keys):
            raise UserError(f"{where}: it must return an example with {', '.join(keys)}")
        check_row(example, dataset.tasks, where)
        check_characters({"_where": where, **example})
        require_known_labels(example, known, where)
        changed.append(example)
    return changed


# ---- in memory -------------------------------------------------------------------------------------------------------


class MyDataset(Dataset):
    """A processed file, or a list of examples, tokenised once and stored as an Arrow table.

    The encoded columns are in memory, at a few bytes per token; the examples are memory-mapped from `.cache`, next to
    the data. A long example may have several rows. `dataset[i]` returns an example, `dataset.batch(rows)` a Batch.

    limit: the maximum number of examples; quiet: do not warn about truncated texts; unlabelled: texts to append without
    labels; strict: reject labels that labels.json does not list, as in training.
    """

    origin: Any
    augment: Any = None  # only in training; its random numbers depend on seed and epoch
    seed = epoch = 0
    pad_to_multiple = 1
    encoded: Any = None  # with a frozen encoder: a function rows -> its cached outputs

    def __init__(
        self,
        source: str | Path | list[dict[str, Any]],
        featurizer: Featurizer,
        limit: int | None = None,
        quiet: bool = False,
        unlabelled: TextRows | None = None,
        strict: bool = False,
    ):
        self.featurizer, self.tasks, self.fingerprint = featurizer, featurizer.tasks, ""
        self.origin, self.limit, self.unlabelled, self.cache, self.strict = source, limit, unlabelled, None, strict
        self.pad_id = featurizer.pad_id
        if isinstance(source, list):
            self.table = pa.Table.from_batches(list(self.encode(source, "encoding")))
        else:
            path = Path(source)
            more = unlabelled.fingerprint if unlabelled else ""
            self.cache = path.parent / ".cache"
            # a cache built without the label check must not be reused where the check is required
            self.fingerprint = encoded_fingerprint(path, featurizer, f"{limit}{more}{' strict' if strict else ''}")
            name = f"{path.stem}-{self.fingerprint}"
            with distributed.first_of_node():
                self.table = cached_table(self.cache, name, lambda: self.encode_file(path), self.schema())
        self.columns = {name: to_numpy(self.table[name]) for name in self.table.column_names if name != "example"}
        self.lengths = self.columns["input_ids"].lengths
        self.example_index = self.columns["example_index"]  # the example of each row
        self.first_rows = np.flatnonzero(np.diff(self.example_index, prepend=-1))  # the first row of each example
        if not quiet:
            warn_of_cuts(self, "texts" if isinstance(source, list) else source)

    def source_fingerprint(self) -> str:
        """Returns a string that identifies the examples, regardless of the tokenizer."""
        return f"{sha256(self.origin)} {self.limit} {self.unlabelled.fingerprint if self.unlabelled else ''}"

    def examples(self) -> Iterator[dict[str, Any]]:
        """Returns an iterator over all examples."""
        if isinstance(self.origin, list):
            return iter(self.origin)
        rows = read_processed(self.origin, self.tasks, strict=self.strict)
        labelled = (example for _, example in islice(rows, self.limit))
        return chain(labelled, islice(self.unlabelled.read(), self.limit)) if self.unlabelled else labelled

    @property
    def num_labelled(self) -> int:
        """The number of examples from the file. The texts of --unlabelled come after them."""
        return len(self) - (min(self.unlabelled.size, self.limit or self.unlabelled.size) if self.unlabelled else 0)

    @property
    def num_labelled_rows(self) -> int:
        """The number of rows of the labelled examples, which come before the unlabelled ones."""
        labelled = self.num_labelled
        return int(self.first_rows[labelled]) if labelled < len(self) else len(self.lengths)

    def schema(self) -> pa.Schema | None:
        """Returns the expected Arrow schema of the table, from the first example; None if the file is empty."""
        return next(self.encode(islice(self.examples(), 1), "")).schema if os.path.getsize(self.origin) else None

    def encode_file(self, path: Path) -> Iterator[pa.RecordBatch]:
        """Returns the record batches of a processed file. Raises UserError if it has no examples."""
        batches = self.encode(self.examples(), f"tokenising {path.name}")
        first = next(batches, None)
        if first is None:
            raise UserError(f"{path}: no examples in this file")
        return chain([first], batches)

    def encode(self, examples: Iterable[dict[str, Any]], what: str, size: int = 1000) -> Iterator[pa.RecordBatch]:
        """Yields record batches of the encoded columns. The first row of each example also has the example, as JSON."""
        examples, done = iter(examples), 0
        with tqdm(desc=what, unit=" examples", leave=False, delay=2) as bar:
            while chunk := list(islice(examples, size)):
                columns = self.featurizer(chunk)
                index = columns["example_index"]
                is_first = np.diff(index, prepend=-1) > 0
                texts = [json.dumps(chunk[i], ensure_ascii=False) if new else "" for i, new in zip(index, is_first)]
                columns["example_index"] = index + done
                arrays = {name: to_arrow(column) for name, column in columns.items()} | {"example": pa.array(texts)}
                yield pa.RecordBatch.from_pydict(arrays)
                done += len(chunk)
                bar.update(len(chunk))

    def __len__(self) -> int:
        """Returns the number of examples. The number of rows, which may be larger, is len(dataset.lengths)."""
        return len(self.first_rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return json.loads(self.table["example"][int(self.first_rows[index])].as_py())

    def is_first(self, row: int) -> bool:
        return self.first_rows[self.example_index[row]] == row

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        rows = np.asarray(rows, int)
        batch = make_batch(self.columns, rows, self.tasks, self.pad_id, None, self.pad_to_multiple)
        if self.encoded:
            batch.inputs.update(self.encoded(rows if len(rows) else np.zeros(1, int)))
        return batch

    def augmented_batch(self, rows: np.ndarray) -> Batch:
        """Returns the Batch of these rows after `augment`. A window is replaced by the augmented example's window with
        the same index, or by its last window if it has fewer."""
        numbers = self.example_index[rows]
        columns = self.featurizer(augmented(self, [self[i] for i in numbers], numbers))
        first, end = (np.searchsorted(columns["example_index"], np.arange(len(rows)) + i) for i in (0, 1))
        windows = np.minimum(first + rows - self.first_rows[numbers], end - 1)
        batch = make_batch(columns, windows, self.tasks, self.pad_id, multiple=self.pad_to_multiple)
        return batch._replace(rows=torch.from_numpy(rows))

    def __getitems__(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """Returns the Batch of these rows. PyTorch's DataLoader calls it with all rows of a batch."""
        return self.augmented_batch(np.asarray(rows)) if self.augment and len(rows) else self.batch(rows)


class MyDataLoader(DataLoader):
    """Loads batches of a MyDataset. seed: seed for shuffling; None: a fixed order for evaluation, longest first.
    ratio: unlabelled rows per labelled row in an epoch."""

    dataset: MyDataset
    batch_sampler: LengthSampler

    def __init__(
        self,
        dataset: MyDataset,
        batch_size: int,
        seed: int | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        ratio: float = 0.0,
    ):
        super().__init__(
            dataset,
            batch_sampler=LengthSampler(dataset.lengths, batch_size, seed, dataset.num_labelled_rows, ratio),
            collate_fn=identity,
            num_workers=num_workers if distributed.size() == 1 else 0,  # collating is too fast to need workers
            pin_memory=pin_memory,
            generator=torch.Generator(),
            worker_init_fn=detach_worker,
        )

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Sets the epoch and the batch at which the next iteration starts. Earlier batches are not read."""
        self.batch_sampler.epoch, self.batch_sampler.start = epoch, batch
        self.dataset.epoch = epoch


def identity(batch: Any) -> Any:
    return batch


def detach_worker(worker: int) -> None:
    """Moves a worker to another session, so that Ctrl-C does not end it before the run is saved."""
    if hasattr(os, "setsid"):
        os.setsid()


# ---- streamed --------------------------------------------------------------------------------------------------------


class MyIterableDataset(IterableDataset):
    """A processed file, read as a stream in constant memory.

    The byte offsets of blocks of rows are indexed once. Each epoch reads the blocks in random order. About
    `shuffle_buffer` rows form a pool, which is tokenised, shuffled and batched by length. Yields (encoded columns, row
    numbers, batches) for each pool. Workers take turns by pool, so each row is read once, in an order that does not
    depend on the number of workers. With several processes, each reads and batches its share of every pool.
    """

    pad_to_multiple = 1

    def __init__(
        self,
        path: str | Path,
        featurizer: Featurizer,
        batch_size: int,
        shuffle_buffer: int,
        seed: int,
        limit: int | None = None,
    ):
        self.path, self.featurizer, self.seed, self.limit = path, featurizer, seed, limit
        self.tasks, self.augment = featurizer.tasks, None
        self.cache = Path(path).parent / ".cache"
        self.rank, self.processes = distributed.rank(), distributed.size()  # unknown in worker processes
        self.batch_size = batch_size = batch_size * self.processes
        self.block = batch_size * max(1, min(8, shuffle_buffer // (4 * batch_size)))  # rows read together
        self.blocks_in_pool = max(1, shuffle_buffer // self.block)
        self.starts, self.num_rows = [], 0
        bar = tqdm(desc=f"indexing {Path(path).name}", unit=" rows", leave=False, delay=2)
        with open(path, "rb") as file, bar:
            position = 0
            for line in islice(file, limit):
                if self.num_rows % self.block == 0:
                    self.starts.append(position)
                    bar.update(self.block)
                position += len(line)
                self.num_rows += 1
        self.starts.append(position)
        if not self.num_rows:
            raise UserError(f"{path}: no examples in this file")
        self.epoch = self.first_pool = 0
        self.fingerprint = encoded_fingerprint(path, featurizer, limit)

    def pools(self) -> list[np.ndarray]:
        """Returns the blocks of each pool of this epoch, in order."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.starts) - 1)
        return [order[i : i + self.blocks_in_pool] for i in range(0, len(order), self.blocks_in_pool)]

    def __iter__(self) -> Iterator[Any]:
        pools, worker = self.pools(), get_worker_info()
        offset, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in range(self.first_pool + offset, len(pools), step):
            total = self.rows_in(pools[number])
            first, end = (total * rank // self.processes for rank in (self.rank, self.rank + 1))
            # A process with an empty share reads one row, and yields as many batches as the others, all of them empty
            rows, examples = self.read(pools[number], first, max(end, first + 1))
            columns = self.featurizer(augmented(self, examples, rows) if self.augment else examples)
            rng = np.random.default_rng([self.seed, self.epoch, number])
            order = rng.permutation(end - first)
            batches = length_batches(columns["input_ids"].lengths, order, self.batch_size // self.processes, rng)
            missing = -(-total // self.batch_size) - len(batches)
            yield columns, np.array(rows), batches + [order[:0]] * missing

    def source_fingerprint(self) -> str:
        return f"{sha256(self.path)} {self.limit} "

    def examples(self) -> Iterator[dict[str, Any]]:
        """Returns an iterator over all examples, in the order of the file."""
        return (example for _, example in islice(read_processed(self.path, self.featurizer.tasks), self.limit))

    def rows_in(self, blocks: Iterable[int]) -> int:
        return sum(min(self.block, self.num_rows - block * self.block) for block in blocks)

    def read(self, blocks: Iterable[int], first: int, end: int) -> tuple[list[int], list[dict[str, Any]]]:
        """Returns (row numbers, examples) of the rows from `first` to `end`, exclusive, counted over these blocks."""
        before, rows, examples = 0, [], []
        for block in blocks:
            size = self.rows_in([block])
            here = range(max(first - before, 0), min(end - before, size))
            if here:
                places = self.starts[block], self.starts[block + 1]
                lines = read_processed(self.path, self.featurizer.tasks, *places, strict=True)
                examples += [example for _, example in islice(lines, here.start, here.stop)]
                rows += [block * self.block + i for i in here]
            before += size
        return rows, examples

    def __len__(self) -> int:
        return self.num_rows

    num_labelled = num_labelled_rows = property(__len__)


class MyIterableDataLoader(DataLoader):
    """Loads batches of a MyIterableDataset, with its batch size."""

    dataset: MyIterableDataset

    def __init__(self, dataset: MyIterableDataset, num_workers: int = 0, pin_memory: bool = False):
        super().__init__(
            dataset,
            batch_size=None,
            collate_fn=identity,
            num_workers=num_workers,
            multiprocessing_context=distributed.worker_context(num_workers),
            generator=torch.Generator(),
            worker_init_fn=detach_worker,
        )
        self.skip, self.pinned, self.warned = 0, pin_memory, False

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Sets the epoch and the batch at which the next iteration starts. Earlier pools are not read."""
        data, self.skip = self.dataset, batch
        data.epoch, data.first_pool = epoch, 0
        for blocks in data.pools():
            batches = -(-data.rows_in(blocks) // data.batch_size)
            if self.skip < batches:
                break
            self.skip -= batches
            data.first_pool += 1

    def __len__(self) -> int:
        return -(-self.dataset.num_rows // self.dataset.batch_size)

    def __iter__(self) -> Any:
        skip, num_cut, data = self.skip, 0, self.dataset
        tasks, pad_id, multiple = data.tasks, data.featurizer.pad_id, data.pad_to_multiple
        for columns, numbers, batches in super().__iter__():
            for rows in batches[skip:]:
                batch = make_batch(columns, rows, tasks, pad_id, numbers, multiple)
                yield pin(batch) if self.pinned else batch
            skip = 0
            num_cut += int((columns["num_cut"] > 0).sum())
        if num_cut and not self.warned:
            self.warned = True
            logger.warning(f"{data.path}: {num_cut} examples longer than --max_length are truncated in this epoch")


def pin(batch: Batch) -> Batch:
    inputs, labels = ({name: tensor.pin_memory() for name, tensor in tensors.items()} for tensors in batch[:2])
    return Batch(inputs, labels, batch.rows)


def unlabelled_texts(config: Config, tasks: dict[str, Task], train_path: Path) -> TextRows | None:
    """Returns the texts of --unlabelled as training examples without labels; None without that option."""
    if not config.unlabelled:
        return None
    _, like = next(read_processed(train_path, tasks))
    rows = TextRows(config.unlabelled, partial(read_unlabelled, config, tasks, like.keys() & {"tokens", "text_pair"}))
    rows.fingerprint = rows.sha256 + "".join(f" {getattr(config, name)!r}" for name in READING)
    return rows


def build_loaders(
    config: Config, data_path: str | Path, featurizer: Featurizer, device: torch.device, limit: int | None = None
) -> tuple[MyDataLoader | MyIterableDataLoader, MyDataLoader]:
    """Builds the loaders of train and dev. limit: the maximum number of examples in each."""
    pinned = can_pin(device.type)
    path = Path(data_path) / "train.jsonl"
    if config.streaming:
        # streaming needs one row per example, which --long_text windows already has
        one_row = featurizer if featurizer.long_text == "windows" else replace(featurizer, stride=-1)
        size = config.batch_size or BATCH_SIZES[0]
        dataset: Any = MyIterableDataset(path, one_row, size, config.shuffle_buffer, config.random_seed, limit)
        train_loader: Any = MyIterableDataLoader(dataset, config.num_workers, pinned)
    else:
        unlabelled = unlabelled_texts(config, featurizer.tasks, path)
        dataset = MyDataset(path, featurizer, limit, unlabelled=unlabelled, strict=True)
        options = config.random_seed, config.num_workers, pinned, config.unlabelled_ratio
        size = batch_size_of(config, dataset.tasks, dataset.num_labelled_rows)
        train_loader = MyDataLoader(dataset, size, *options)
    dataset.augment, dataset.seed = augment, config.random_seed
    dev_set = MyDataset(Path(data_path) / "dev.jsonl", featurizer, limit)
    dataset.pad_to_multiple = dev_set.pad_to_multiple = 1 if device.type == "cpu" else 8  # 8: for a GPU's tensor cores
    return train_loader, MyDataLoader(dev_set, config.eval_batch_size)
