"""Examples -> token ids -> batches of similar length, from memory (MyDataset) or from a stream (MyIterableDataset).

A batch is `Batch(inputs, labels, rows)`. inputs: `input_ids`, `attention_mask`, `token_type_ids` (B, L); for tagging also
`word_starts`, the position of each word's first sub-token, and `word_mask` (B, W). labels: {task: (B,) or (B, W)}, with
IGNORE where there is none. rows: each example's number in its file.
The order of batches is a function of (seed, epoch) alone, whatever the number of workers, so a run can go on anywhere.
Edit here when your model needs another input or your task another kind of label: `Encoder`, then `make_batch`.
"""

import hashlib
import json
import logging
import os
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from tokenizers import pre_tokenizers
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
from tqdm import tqdm

from config import UserError, first_line, is_tagging, os_error_line
from huggingface_hands_on.train_tokenizer_from_scratch import train_tokenizer
from processed import read_processed, sha256

IGNORE = -100  # what a label is where there is none: torch's ignore_index
logger = logging.getLogger("template")


class Batch(NamedTuple):
    inputs: dict
    labels: dict
    rows: torch.Tensor  # (B,)

    def to(self, device):
        def move(tensors):
            return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}

        return Batch(move(self.inputs), move(self.labels), self.rows)


class Ragged(NamedTuple):
    """A column of rows of different lengths: row i is values[offsets[i]:offsets[i + 1]]."""

    values: np.ndarray
    offsets: np.ndarray  # (rows + 1,)

    @classmethod
    def from_lists(cls, lists):
        lengths = np.fromiter((len(item) for item in lists), np.int64, len(lists))
        values = np.fromiter((value for item in lists for value in item), np.int32, lengths.sum())
        return cls(values, np.concatenate([[0], lengths.cumsum()]))

    @property
    def lengths(self):
        return np.diff(self.offsets)

    def pad(self, rows, fill, multiple=1):
        """(B, W) of the rows, filled up to the longest (or a multiple), and the (B, W) mask of what is real; no loop over rows."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        columns = np.arange(-(-lengths.max(initial=0) // multiple) * multiple)
        mask = columns < lengths[:, None]
        places = np.where(mask, starts[:, None] + columns, 0)
        return np.where(mask, self.values[places], fill).astype(np.int64), mask


def to_device(name):
    """'auto', 'cpu', 'cuda:0', … -> torch.device, or a UserError if this machine has no such one."""
    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name} is not a device; use auto, cpu, cuda or cuda:0") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        build = "" if torch.version.cuda else "; this torch is a CPU build"
        raise UserError(f"--device {name}: {torch.cuda.device_count()} CUDA devices here{build}; use --device cpu or auto")
    return device


def load_tokenizer(config, train_path):
    """The pretrained model's tokenizer, or one trained on the training texts. UserError if it cannot serve."""
    from transformers import AutoTokenizer

    name = config.pretrain_model_path
    if not name:
        logger.info(f"no --pretrain_model_path: the tokenizer is trained on {train_path}")
        tokenizer = train_tokenizer(lambda: (text_of(example) for _, example in read_processed(train_path, {})), config.vocab_size)
    else:
        if name.startswith((".", os.sep, "~")) and not Path(name).is_dir():
            raise UserError(f"--pretrain_model_path {name}: no such folder")
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            if tokenizer.is_fast and isinstance(tokenizer.backend_tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
                # RoBERTa's kind, where a word begins with a blank: the first one, and one given apart, must too
                tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, add_prefix_space=True)
                tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        except Exception as error:  # a foreign folder can make transformers raise anything
            raise UserError(f"--pretrain_model_path {name}: no tokenizer loads from it ({first_line(error)})") from None
    missing = [kind for kind in ("pad_token", "unk_token", "cls_token") if getattr(tokenizer, kind) is None]
    if missing or not tokenizer.is_fast:
        raise UserError(f"--pretrain_model_path {name}: its tokenizer has no {', '.join(missing) or 'fast version'}; use a BERT-like model")
    if config.special_tokens:
        tokenizer.add_special_tokens({"additional_special_tokens": [token.strip() for token in config.special_tokens.split(",")]})
    return tokenizer


def text_of(example):
    return " ".join(example["tokens"]) if "tokens" in example else " ".join(filter(None, (example["text"], example.get("text_pair"))))


# ---- encoding ------------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One input of the model: an example, or a window of one that is too long."""

    example: int  # its number in the list of examples
    ids: list
    types: list
    starts: list  # position of the first sub-token of each word; only for tagging
    first_word: int = 0
    cut: int = 0  # sub-tokens that are left out


class Encoder:
    """Examples -> columns of numbers, with any fast tokenizer.

    tasks: {name: {"type", "labels", …}} as in labels.json. Every word gets exactly one position, also one that the tokenizer
    swallows (a blank, U+200B, U+FE0F): it is read as the unknown token, so that tags never shift.
    What is longer than max_length: with a tagging task it becomes windows that share `stride` sub-tokens or somewhat fewer
    (whole words; None: a quarter of max_length; -1: it is cut); else the head, the tail, or a quarter of head and three of
    tail are kept (Sun et al., 2019, arXiv:1905.05583).
    """

    def __init__(self, tokenizer, tasks, max_length, stride=-1, truncation="head"):
        self.tokenizer, self.tasks, self.max_length, self.truncation = tokenizer, tasks, max_length, truncation
        self.stride = max_length // 4 if stride is None else stride
        self.multiple = 1  # what batches are padded to: 8 suits a GPU's matrix units
        self.tagging = any(is_tagging(task["type"]) for task in tasks.values())
        self.ids = {name: {label: i for i, label in enumerate(task["labels"])} for name, task in tasks.items()}

    def fingerprint(self):
        """Changes with whatever changes the encoding; the cache is named by it."""
        tokenizer = json.loads(self.tokenizer.backend_tokenizer.to_str())
        del tokenizer["truncation"], tokenizer["padding"]  # set anew by each call
        version = 2  # raise it when the columns change
        depends = [version, tokenizer, self.tasks, self.max_length, self.stride, self.truncation]
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()

    def __call__(self, examples):
        """{column: Ragged, or an array with one number a row} for a list of examples; a row is an example or a window of one.

        Columns: input_ids, token_type_ids (sentence pairs), word_starts, num_words (before cutting) and first_word (tagging),
        of (the example's number), cut (sub-tokens left out), and the tasks.
        """
        rows = self.rows(examples)
        columns = {
            "input_ids": Ragged.from_lists([row.ids for row in rows]),
            "of": np.array([row.example for row in rows], np.int64),
            "cut": np.array([row.cut for row in rows], np.int32),
        }
        if "text_pair" in examples[0]:
            columns["token_type_ids"] = Ragged.from_lists([row.types for row in rows])
        if self.tagging:
            columns["word_starts"] = Ragged.from_lists([row.starts for row in rows])
            columns["first_word"] = np.array([row.first_word for row in rows], np.int32)
            whole = [len(examples[row.example]["tokens"]) if row.cut else len(row.starts) for row in rows]
            columns["num_words"] = np.array(whole, np.int32)
        for name, task in self.tasks.items():
            if name in examples[0]:
                columns[name] = self.labels(name, task["type"], rows, examples)
        return columns

    def labels(self, name, kind, rows, examples):
        """The column of a task's labels. A window has its own words' tags; the text's label goes with the first window."""
        ids, values = self.ids[name], [examples[row.example][name] if is_tagging(kind) or not row.first_word else None for row in rows]
        if is_tagging(kind):
            tags = []
            for row, value in zip(rows, values):
                whole = [IGNORE] * len(examples[row.example]["tokens"]) if value is None else [ids.get(tag, IGNORE) for tag in value]
                tags.append(whole[row.first_word : row.first_word + len(row.starts)])
            return Ragged.from_lists(tags)
        if kind == "multilabel":
            return Ragged.from_lists([[IGNORE if value is None else int(label in value) for label in ids] for value in values])
        if kind == "regression":
            return np.array([np.nan if value is None else value for value in values], np.float32)
        return np.array([ids.get(value, IGNORE) for value in values], np.int32)

    def rows(self, examples):
        by_words, paired = "tokens" in examples[0], "text_pair" in examples[0]
        first = [example["tokens" if by_words else "text"] for example in examples]
        pairs = [example["text_pair"].split() if by_words else example["text_pair"] for example in examples] if paired else None
        options = dict(is_split_into_words=by_words, verbose=False)
        encodings = list(self.tokenizer(first, pairs, **options).encodings)
        if by_words:
            swallowed = {i: gaps for i, e in enumerate(encodings) if (gaps := missing_words(e, len(first[i])))}
            for i, gaps in swallowed.items():
                first[i] = [self.tokenizer.unk_token if w in gaps else word for w, word in enumerate(first[i])]
                encodings[i] = self.tokenizer([first[i]], [pairs[i]] if pairs else None, **options).encodings[0]
        rows = []
        for number, encoding in enumerate(encodings):
            if len(encoding.ids) <= self.max_length:
                rows.append(Row(number, encoding.ids, encoding.type_ids, word_starts(encoding) if self.tagging else []))
            elif self.tagging and self.stride >= 0:
                try:
                    rows += self.windows(number, encoding)
                except UserError as mistake:
                    raise UserError(f"example {examples[number].get('id', number)}: {mistake}") from None
            elif self.tagging or paired or self.truncation == "head":
                if paired and self.truncation == "head_tail" and not self.tagging:
                    raise UserError("--truncation head_tail is for single texts; of pairs take head or tail")
                self.tokenizer.truncation_side = "left" if self.truncation == "tail" and not self.tagging else "right"
                cut = dict(options, truncation="longest_first", max_length=self.max_length)
                short = self.tokenizer([first[number]], [pairs[number]] if pairs else None, **cut).encodings[0]
                lost = len(encoding.ids) - len(short.ids)
                rows.append(Row(number, short.ids, short.type_ids, word_starts(short) if self.tagging else [], cut=lost))
            else:
                before, inside, after = parts_of(encoding)
                room = self.max_length - len(before) - len(after)
                head = room // 4 if self.truncation == "head_tail" else 0
                kept = [*before, *inside[:head], *inside[len(inside) - room + head :], *after]
                rows.append(Row(number, [encoding.ids[i] for i in kept], [encoding.type_ids[i] for i in kept], [], cut=len(inside) - room))
        return rows

    def windows(self, number, encoding):
        """The rows of one example whose words are too many: whole words, as many as fit; all with the same second text."""
        before, inside, after = parts_of(encoding)
        room = self.max_length - len(before) - len(after)
        if room < 4:
            raise UserError(f"--max_length {self.max_length}: a second text leaves no room for the words to tag; raise it")
        begins = [i for n, i in enumerate(inside) if n == 0 or encoding.word_ids[i] != encoding.word_ids[inside[n - 1]]]
        begins = [i - inside[0] for i in begins]
        ends = [*begins[1:], len(inside)]
        rows, word = [], 0
        while True:
            stop = word + 1
            while stop < len(begins) and ends[stop] - begins[word] <= room:
                stop += 1
            kept = [*before, *inside[begins[word] : min(ends[stop - 1], begins[word] + room)], *after]
            starts = [len(before) + begins[w] - begins[word] for w in range(word, stop)]
            rows.append(Row(number, [encoding.ids[i] for i in kept], [encoding.type_ids[i] for i in kept], starts, word))
            if stop == len(begins):
                return rows
            following = stop
            while following - 1 > word and ends[stop - 1] - begins[following - 1] <= self.stride:
                following -= 1
            word = following


def parts_of(encoding):
    """Positions before, of and behind the first sequence's tokens."""
    inside = [i for i, sequence in enumerate(encoding.sequence_ids) if sequence == 0]
    return list(range(inside[0])), inside, list(range(inside[-1] + 1, len(encoding.ids)))


def missing_words(encoding, num_words):
    """Numbers of the words that left no token."""
    present = {word for word, sequence in zip(encoding.word_ids, encoding.sequence_ids) if sequence == 0}
    return None if len(present) == num_words else set(range(num_words)) - present


def word_starts(encoding):
    """Positions of the first sub-token of each word of the first sequence."""
    starts, before = [], None
    for position, (word, sequence) in enumerate(zip(encoding.word_ids, encoding.sequence_ids)):
        if sequence == 0 and word is not None and word != before:
            starts.append(position)
            before = word
    return starts


def make_batch(columns, rows, tasks, pad_id, numbers=None, multiple=1):
    """Columns and row numbers -> Batch, by index arithmetic; tokens padded only to the longest of these rows, or to a multiple."""
    input_ids, mask = columns["input_ids"].pad(rows, pad_id, multiple)
    token_types = columns["token_type_ids"].pad(rows, 0, multiple)[0] if "token_type_ids" in columns else np.zeros_like(input_ids)
    inputs = {"input_ids": input_ids, "attention_mask": mask.astype(np.int64), "token_type_ids": token_types}
    if "word_starts" in columns:
        inputs["word_starts"], inputs["word_mask"] = columns["word_starts"].pad(rows, 0)
    labels = {}
    for name in tasks:
        if isinstance(columns.get(name), Ragged):
            labels[name] = columns[name].pad(rows, IGNORE)[0]
        elif name in columns:
            column = columns[name][rows]
            labels[name] = column if column.dtype == np.float32 else column.astype(np.int64)
    tensors = [{name: torch.from_numpy(array) for name, array in part.items()} for part in (inputs, labels)]
    return Batch(*tensors, torch.from_numpy(np.asarray(rows if numbers is None else numbers[rows])))


def length_batches(lengths, rows, batch_size, rng):
    """Shuffled `rows` -> batches of similar length, in random order. Ties stay as shuffled, so batches differ by epoch."""
    ordered = rows[np.argsort(lengths[rows], kind="stable")]
    batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


# ---- whole in memory -----------------------------------------------------------------------------------------------------


class MyDataset(Dataset):
    """A processed file, or a list of examples, tokenised once and kept as Arrow.

    Numbers are in memory, some bytes a token; the examples themselves stay memory-mapped. The Arrow file lies in `.cache`
    beside the data and is named by what it depends on (the data, the tokenizer, the labels, the length) and by its own SHA-256:
    one that is damaged is made anew. Where none can be written, everything is kept in memory.
    `dataset[i]` is the example as it was read; `dataset.batch(rows)` is a Batch.
    """

    def __init__(self, source, encoder, limit=None):
        self.encoder, self.tasks, self.fingerprint = encoder, encoder.tasks, ""
        self.pad_id = encoder.tokenizer.pad_token_id
        if isinstance(source, list):
            self.table = pa.Table.from_batches(list(self.encode(source, "encoding")))
        else:
            self.table = self.from_cache(Path(source), limit)
        self.columns = {name: to_numpy(self.table[name]) for name in self.table.column_names if name != "example"}
        self.lengths = self.columns["input_ids"].lengths
        self.of = self.columns["of"]  # the example of each row
        self.first_rows = np.flatnonzero(np.diff(self.of, prepend=-1))  # of each example
        self.warn_of_cuts(source)

    def from_cache(self, path, limit):
        from datasets import Dataset as ArrowDataset

        key = self.fingerprint = encoded_fingerprint(path, self.encoder, limit)
        folder, name = path.parent / ".cache", f"{path.stem}-{key}"
        building = folder / f"{name}.{os.getpid()}.tmp"
        try:
            cache = find_cache(folder, name)
            if cache is None:
                folder.mkdir(exist_ok=True)
                batches = self.encode_file(path, limit)
                first = next(batches)
                with pa.OSFile(str(building), "wb") as file, pa.ipc.new_stream(file, first.schema) as writer:
                    writer.write_batch(first)
                    for batch in batches:
                        writer.write_batch(batch)
                cache = folder / f"{name}.{sha256(building)[:16]}.arrow"
                os.replace(building, cache)
            return ArrowDataset.from_file(str(cache)).data.table
        except OSError as error:
            with suppress(OSError):
                building.unlink(missing_ok=True)
            logger.warning(f"no token cache ({os_error_line(error)}); tokens are kept in memory, and made anew by each run")
            return pa.Table.from_batches(list(self.encode_file(path, limit)))

    def encode_file(self, path, limit):
        """The record batches of a processed file; UserError if it has no example."""
        batches = self.encode((e for _, e in islice(read_processed(path, self.tasks), limit)), f"tokenising {path.name}")
        first = next(batches, None)
        if first is None:
            raise UserError(f"{path}: no examples in it")
        return chain([first], batches)

    def encode(self, examples, what, size=1000):
        """Record batches of the encoded columns and, as JSON in the first row of each, of the examples themselves."""
        examples, done = iter(examples), 0
        with tqdm(desc=what, unit=" examples", leave=False, delay=2) as bar:
            while chunk := list(islice(examples, size)):
                columns = self.encoder(chunk)
                first = np.diff(columns["of"], prepend=-1) > 0
                texts = [json.dumps(chunk[number], ensure_ascii=False) if new else "" for number, new in zip(columns["of"], first)]
                columns["of"] = columns["of"] + done
                arrays = {name: to_arrow(column) for name, column in columns.items()} | {"example": pa.array(texts)}
                yield pa.RecordBatch.from_pydict(arrays)
                done += len(chunk)
                bar.update(len(chunk))

    def warn_of_cuts(self, source):
        """Nothing is cut in silence."""
        where = "texts" if isinstance(source, list) else source
        cut, length = int((self.columns["cut"] > 0).sum()), self.encoder.max_length
        if cut and "num_words" in self.columns:
            lost = (self.columns["num_words"] - self.columns["word_starts"].lengths)[self.columns["cut"] > 0].sum()
            logger.warning(
                f"{where}: {cut} of {len(self)} examples are longer than --max_length {length}; "
                f"their last {lost} words are not seen and count as O"
            )
        elif cut:
            lost = self.columns["cut"].sum()
            logger.warning(f"{where}: {cut} of {len(self)} examples are longer than --max_length {length}; {lost} sub-tokens are not seen")
        elif len(self.lengths) > len(self):
            windows = len(self.lengths) - len(self) + len(np.unique(self.columns["of"][self.columns["first_word"] > 0]))
            first = any(not is_tagging(task["type"]) for task in self.tasks.values())
            logger.info(
                f"{where}: examples longer than --max_length {length} are read in {windows} overlapping windows"
                + ("; labels of the whole text come from the first" if first else "")
            )

    def __len__(self):
        """Examples; of their rows, which may be more, there are len(dataset.lengths)."""
        return len(self.first_rows)

    def __getitem__(self, index):
        return json.loads(self.table["example"][int(self.first_rows[index])].as_py())

    def is_first(self, row):
        return self.first_rows[self.of[row]] == row

    def batch(self, rows):
        return make_batch(self.columns, np.asarray(rows), self.tasks, self.pad_id, multiple=self.encoder.multiple)

    __getitems__ = batch  # what torch's DataLoader asks for, with the row numbers of a whole batch


def find_cache(folder, name):
    """The token cache of that name whose bytes are what its name says, or None; damaged ones are told and removed."""
    for path in sorted(folder.glob(f"{name}.*.arrow")):
        if sha256(path)[:16] == path.name.split(".")[-2]:
            return path
        logger.warning(f"{path}: the token cache is damaged and is made anew")
        path.unlink()
    return None


def to_arrow(column):
    if isinstance(column, Ragged):
        return pa.ListArray.from_arrays(pa.array(column.offsets, pa.int32()), pa.array(column.values))
    return pa.array(column)


def to_numpy(column):
    """Arrow column -> Ragged or array."""
    if not pa.types.is_list(column.type):
        return column.to_numpy()
    chunks = column.chunks
    lengths = np.concatenate([chunk.value_lengths().to_numpy() for chunk in chunks])
    return Ragged(np.concatenate([chunk.flatten().to_numpy() for chunk in chunks]), np.concatenate([[0], lengths.cumsum(dtype=np.int64)]))


def encoded_fingerprint(path, encoder, limit):
    """Changes with the file's bytes and with whatever changes their encoding."""
    return hashlib.sha256(f"{sha256(path)}{encoder.fingerprint()}{limit}".encode()).hexdigest()[:20]


class LengthSampler:
    """Row numbers of each batch. shuffled: random batches of similar length, new in each epoch; else longest first."""

    POOL = 256  # batches sorted together: nearly no padding, and still random

    def __init__(self, lengths, batch_size, seed=None):
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.epoch = self.start = 0

    def __len__(self):
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self):
        if self.seed is None:
            order = np.argsort(-self.lengths, kind="stable")
            batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        else:
            rng = np.random.default_rng([self.seed, self.epoch])
            rows = rng.permutation(len(self.lengths))
            pool = self.POOL * self.batch_size
            batches = [
                batch for i in range(0, len(rows), pool) for batch in length_batches(self.lengths, rows[i : i + pool], self.batch_size, rng)
            ]
        return iter(batches[self.start :])


class MyDataLoader(DataLoader):
    """Batches of a MyDataset. seed: shuffle by it; None: a fixed order for evaluation, longest first."""

    def __init__(self, dataset, batch_size, seed=None, num_workers=0, pin_memory=False):
        super().__init__(
            dataset,
            batch_sampler=LengthSampler(dataset.lengths, batch_size, seed),
            collate_fn=as_it_is,
            num_workers=num_workers,
            pin_memory=pin_memory,
            generator=torch.Generator(),
            worker_init_fn=apart,
        )

    def set_position(self, epoch, batch=0):
        """The next iteration is that epoch's, from that batch on. Nothing before it is read."""
        self.batch_sampler.epoch, self.batch_sampler.start = epoch, batch


def as_it_is(batch):
    return batch


def apart(worker):
    """A worker leaves the process group, so that Ctrl-C or a SIGTERM to the group lets it serve until the run has saved."""
    if hasattr(os, "setsid"):
        os.setsid()


# ---- streamed ------------------------------------------------------------------------------------------------------------


class MyIterableDataset(IterableDataset):
    """A processed file read as a stream: constant memory, however long it is.

    The file is indexed once by blocks of rows (a byte position for each). An epoch takes the blocks in random order;
    `shuffle_buffer` rows at a time form a pool that is tokenised, shuffled and batched by length. Yields one pool after
    another: (encoded columns, row numbers, batches). Workers take turns by pools, so each row comes exactly once and in
    an order that does not depend on their number.
    """

    def __init__(self, path, encoder, batch_size, shuffle_buffer, seed, limit=None):
        self.path, self.encoder, self.batch_size, self.seed = path, encoder, batch_size, seed
        self.block = batch_size * max(1, min(8, shuffle_buffer // (4 * batch_size)))  # rows read together
        self.blocks_in_pool = max(1, shuffle_buffer // self.block)
        self.starts, self.num_rows = [], 0
        with open(path, "rb") as file, tqdm(desc=f"indexing {Path(path).name}", unit=" rows", leave=False, delay=2) as bar:
            position = 0
            for line in islice(file, limit):
                if self.num_rows % self.block == 0:
                    self.starts.append(position)
                    bar.update(self.block)
                position += len(line)
                self.num_rows += 1
        self.starts.append(position)
        self.epoch = self.first_pool = 0
        self.fingerprint = encoded_fingerprint(path, encoder, limit)

    def pools(self):
        """The blocks of each pool of this epoch, in order."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.starts) - 1)
        return [order[i : i + self.blocks_in_pool] for i in range(0, len(order), self.blocks_in_pool)]

    def __iter__(self):
        pools = self.pools()
        worker = get_worker_info()
        for number in range(self.first_pool + (worker.id if worker else 0), len(pools), worker.num_workers if worker else 1):
            examples, rows = [], []
            for block in pools[number]:
                found = [e for _, e in read_processed(self.path, self.encoder.tasks, self.starts[block], self.starts[block + 1])]
                examples += found
                rows += range(block * self.block, block * self.block + len(found))
            columns = self.encoder(examples)
            rng = np.random.default_rng([self.seed, self.epoch, number])
            yield (columns, np.array(rows), length_batches(columns["input_ids"].lengths, rng.permutation(len(rows)), self.batch_size, rng))

    def __len__(self):
        return self.num_rows


class MyIterableDataLoader(DataLoader):
    """Batches of a MyIterableDataset, of its batch size."""

    def __init__(self, dataset, num_workers=0, pin_memory=False):
        super().__init__(
            dataset, batch_size=None, collate_fn=as_it_is, num_workers=num_workers, generator=torch.Generator(), worker_init_fn=apart
        )
        self.skip, self.pinned, self.told = 0, pin_memory, False

    def set_position(self, epoch, batch=0):
        """As MyDataLoader.set_position: pools before that batch are counted (the file's last block may be short), not read."""
        data, self.skip = self.dataset, batch
        data.epoch, data.first_pool = epoch, 0
        for blocks in data.pools():
            rows = sum(min(data.block, data.num_rows - block * data.block) for block in blocks)
            batches = -(-rows // data.batch_size)
            if self.skip < batches:
                break
            self.skip -= batches
            data.first_pool += 1

    def __len__(self):
        return -(-self.dataset.num_rows // self.dataset.batch_size)

    def __iter__(self):
        skip, cut = self.skip, 0
        pad_id = self.dataset.encoder.tokenizer.pad_token_id
        for columns, numbers, batches in super().__iter__():
            for rows in batches[skip:]:
                batch = make_batch(columns, rows, self.dataset.encoder.tasks, pad_id, numbers, self.dataset.encoder.multiple)
                yield pin(batch) if self.pinned else batch
            skip = 0
            cut += int((columns["cut"] > 0).sum())
        if cut and not self.told:
            self.told = True
            logger.warning(f"{self.dataset.path}: {cut} examples of this epoch do not fit --max_length; what is longer is cut")


def pin(batch):
    return Batch(*({name: tensor.pin_memory() for name, tensor in part.items()} for part in batch[:2]), batch.rows)


def build_loaders(config, data_path, encoder, device, limit=None):
    """(train loader, dev loader) as the options say; `limit`: only so many rows of each."""
    pinned = device.type == "cuda"
    encoder.multiple = 8 if pinned else 1
    path = Path(data_path) / "train.jsonl"
    if config.streaming:
        cutting = Encoder(encoder.tokenizer, encoder.tasks, encoder.max_length, truncation=encoder.truncation)  # a row an example
        cutting.multiple = encoder.multiple
        dataset = MyIterableDataset(path, cutting, config.batch_size, config.shuffle_buffer, config.random_seed, limit)
        train_loader = MyIterableDataLoader(dataset, config.num_workers, pinned)
    else:
        dataset = MyDataset(path, encoder, limit)
        train_loader = MyDataLoader(dataset, config.batch_size, config.random_seed, config.num_workers, pinned)
    return train_loader, MyDataLoader(MyDataset(Path(data_path) / "dev.jsonl", encoder, limit), config.eval_batch_size)
