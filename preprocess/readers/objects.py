"""Reads keyed records: JSONL, JSON, Parquet and Hugging Face datasets."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from datetime import date, time
from decimal import Decimal
from functools import partial
from itertools import chain
from json.decoder import WHITESPACE  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from engine.errors import UserError
from engine.model.hub import refusal, require_settings
from engine.run.command_line import first_line
from engine.schema import parse_json, without_duplicates
from engine.task.signs import LABEL_NAMES, PAIR_NAMES
from preprocess.example import Example, abbreviate
from preprocess.labels.spans import is_spans
from preprocess.readers.archives import note
from preprocess.readers.columns import Columns, Head, find_columns
from preprocess.readers.conversion import Conversion
from preprocess.readers.label_studio import is_label_studio, tasks_to_objects
from preprocess.readers.layouts import rows_of_object, with_sentences
from preprocess.readers.options import ReadOptions
from preprocess.readers.raw_files import MAX_CHARACTERS, limit_rows, open_text, read_rows, take_head

MAX_OBJECT_CHARACTERS = 256 * 2**20  # a .json file with a single object is read into memory
HEAD = 1000  # number of leading rows that determine the keys
Objects = Iterator[tuple[str, Any]]  # (source, object, or None for an empty row)


def read_jsonl(path: Path, options: ReadOptions) -> Iterator[Example]:
    """Reads one JSON object per row, with `text` or `tokens` and the labels. Other keys are ignored."""
    return objects_to_examples(path, read_json_rows(path, options.encoding), options)


def read_json_rows(path: Path, encoding: str) -> Objects:
    for number, row in read_rows(path, encoding):
        where = f"{path}, row {number}"
        try:
            yield where, parse_json(row) if row.strip() else None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error})") from None


def read_json(path: Path, options: ReadOptions) -> Iterator[Example]:
    """Reads a list of objects, an object with such a list, JSONL with the suffix .json, or a Label Studio export."""
    form = json_form(path, options.encoding)
    if form == "rows":
        return read_jsonl(path, options)
    items: Callable[[], Objects] = partial(read_list, path, options.encoding)
    if form == "object":
        items = list(read_object(path, options)).__iter__
    _, first = next(items(), (None, None))
    if is_label_studio(first, options.labelled):
        objects, labels = tasks_to_objects(path, items, options)
        return objects_to_examples(path, objects, options, labels)
    return objects_to_examples(path, (item for item in items() if item[1] is not None), options)


def json_form(path: Path, encoding: str) -> str:
    """Returns the form of a .json file: "list", "object", or "rows" (one object per row)."""
    with open_text(path, encoding) as file:
        line = next_line(file)
        if line.lstrip().startswith("["):
            return "list"
        try:
            is_object = isinstance(parse_json(line), dict)
        except (ValueError, RecursionError):  # several lines, or invalid JSON, which read_object reports
            return "object"
        return "rows" if is_object and next_line(file) else "object"


def next_line(file: TextIO) -> str:
    """Returns the next non-blank line (truncated if it is long), or "" at the end."""
    while (line := file.readline(MAX_CHARACTERS)) and not line.strip():
        continue
    return line


def read_object(path: Path, options: ReadOptions) -> Objects:
    """Yields the rows in a file with a single object (see layouts.py), or the object itself."""
    with open_text(path, options.encoding) as file:
        text = file.read(MAX_OBJECT_CHARACTERS + 1)
    if len(text) > MAX_OBJECT_CHARACTERS:
        problem = f"a single object of more than {MAX_OBJECT_CHARACTERS:,} characters"
        raise UserError(f"{path}, row 1: {problem}; save it as JSONL, with one object per row")
    try:
        content = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, row {getattr(error, 'lineno', 1)}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}, row 1: not a JSON object")
    return ((f"{path}, {where}", row) for where, row in rows_of_object(path, content, options.rows_key))


def read_list(path: Path, encoding: str) -> Objects:
    """Yields the items of a JSON list."""
    with open_text(path, encoding) as file:
        for number, item in enumerate(JsonList(path, file).items(), 1):
            yield f"{path}, item {number}", item


class JsonList:
    """Reads a JSON list incrementally, in constant memory."""

    def __init__(self, path: str | Path, file: TextIO) -> None:
        self.path, self.file = path, file
        self.text, self.position, self.rows_before = "", 0, 0
        self.decode = json.JSONDecoder(object_pairs_hook=without_duplicates).raw_decode

    def load(self) -> bool:
        """Drops the parsed characters and reads at least as many as remain. At the end of the file, returns False and
        keeps all positions valid."""
        piece = self.file.read(max(2**20, len(self.text) - self.position))
        if piece:
            self.rows_before += self.text.count("\n", 0, self.position)
            self.text = self.text[self.position :]
            self.text += piece
            self.position = 0
        return bool(piece)

    def next_sign(self) -> str:
        """Returns the next character that is not whitespace, or "" at the end."""
        while True:
            self.position = WHITESPACE.match(self.text, self.position).end()
            if self.position < len(self.text) or not self.load():
                return self.text[self.position : self.position + 1]

    def items(self) -> Iterator[Any]:
        self.expect("[")
        if self.next_sign() != "]":
            yield self.item()
        while self.expect(",]") == ",":
            yield self.item()
        if self.next_sign():
            raise self.error("Extra data", self.position)

    def expect(self, signs: str) -> str:
        sign = self.next_sign()
        if not sign or sign not in signs:
            raise self.error(f"Expecting {' or '.join(signs)}", self.position)
        self.position += 1
        return sign

    def item(self) -> Any:
        """Returns the next item. Reads more of the file until the buffer contains all of it."""
        self.next_sign()
        while True:
            try:
                item, end = self.decode(self.text, self.position)
            except RecursionError as error:
                raise self.error(error, self.position) from None
            except ValueError as error:
                at = getattr(error, "pos", self.position)
                is_truncated = str(error).startswith("Unterminated string") or at > len(self.text) - 16
                if not is_truncated or not self.load():
                    raise self.error(first_line(error), at) from None
            else:
                complete = self.text[end : end + 1] in tuple(" \t\r\n,]") or end < len(self.text) - 8
                if complete or not self.load():  # more digits of a number may follow
                    self.require_room(end - self.position)
                    self.position = end
                    return item
            self.require_room(len(self.text) - self.position - 2**20)

    def require_room(self, length: int) -> None:
        if length > MAX_CHARACTERS:
            problem = f"an item is longer than the limit of {MAX_CHARACTERS:,} characters per row"
            raise UserError(f"{self.path}, row {self.rows_before + 1}: {problem}")

    def error(self, error: object, position: int) -> UserError:
        row = self.rows_before + self.text.count("\n", 0, position) + 1
        return UserError(f"{self.path}, row {row}: not JSON ({error})")


def read_parquet(path: Path, options: ReadOptions) -> Iterator[Example]:
    """Reads a Parquet file in batches of rows."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        size = sum(group.total_byte_size for group in groups) / max(1, file.metadata.num_rows)  # per row
        batches = file.iter_batches(max(1, min(1000, int(2**26 / max(1, size)))))
        rows = (row for batch in batches for row in batch.to_pylist())
        objects = ((where := f"{path}, row {number}", as_json(row, where)) for number, row in enumerate(rows, 1))
        yield from objects_to_examples(path, objects, options)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a readable Parquet file ({first_line(error)})") from None


def is_saved_dataset(path: Path) -> bool:
    """Returns True if a folder was written by save_to_disk of Hugging Face Datasets."""
    return any((path / name).exists() for name in ("dataset_dict.json", "dataset_info.json", "state.json"))


def read_dataset(path: Path, options: ReadOptions) -> Iterator[Example]:
    """Reads a Hugging Face dataset: a folder written by save_to_disk, or a hub name or folder for load_dataset.

    ClassLabel ids, including ids in lists, are replaced by their names. With --max_rows, or if disk space is low, rows
    are streamed and not stored on disk.
    """
    name, _, config = str(path).partition(":")
    if not Path(name).exists():
        require_settings()
    import datasets

    datasets.config.HF_DATASETS_TRUST_REMOTE_CODE = False  # datasets 3 would ask whether to run a folder's code
    refused = None
    try:
        if is_saved_dataset(path):
            loaded = datasets.load_from_disk(str(path))
        else:
            if not Path(name).exists() and not datasets.config.HF_HUB_OFFLINE:
                refused = refusal(name, 10, kind="dataset")
                datasets.config.HF_HUB_OFFLINE = bool(refused)  # if True, it searches only its cache
            streaming = bool(options.max_rows) or not fits_on_disk(name, config or None)
            loaded = datasets.load_dataset(name, config or None, streaming=streaming)
    except Exception as error:  # datasets raises many kinds of errors
        reason = "; ".join(refused or [f"cannot load it as a dataset ({first_line(error)})"])
        raise UserError(f"{path}: {reason}") from None
    if refused:
        note(f"{path} is loaded from the cache: {refused[0]}")
    for split, rows in (loaded if isinstance(loaded, dict) else {None: loaded}).items():
        objects = dataset_objects(path, split, rows)
        examples = objects_to_examples(path, objects, options)
        yield from limit_rows(examples, options.max_rows, f"{path}, {split or 'rows'}")


def fits_on_disk(name: str, config: str | None) -> bool:
    """Returns True if the disk has room for a dataset's files and their Arrow copy, or if the size is unknown."""
    import datasets

    info = datasets.load_dataset_builder(name, config).info
    size = (info.download_size or 0) + (info.dataset_size or 0)
    folder = Path(datasets.config.HF_DATASETS_CACHE)
    while not folder.exists():
        folder = folder.parent
    if size <= 0.9 * shutil.disk_usage(folder).free:
        return True
    note(f"{name}: not enough space in {folder} for {size:,} bytes; streaming the rows from the hub")
    return False


def dataset_objects(path: Path, split: str | None, rows: Any) -> Objects:
    """Yields the rows of a `datasets.Dataset` or `IterableDataset`."""
    features = rows.features or {}  # None in some streamed datasets
    try:
        for number, row in enumerate(rows, 1):
            values = {key: class_names(value, features.get(key)) for key, value in row.items()}
            yield f"{path}, {split or 'row'} {number}", as_json(values, path) | ({"split": split} if split else {})
    except UserError:
        raise
    except Exception as error:  # a streamed dataset opens its files only now
        raise UserError(f"{path}: cannot read the rows ({first_line(error)})") from None


def class_names(value: Any, feature: Any) -> Any:
    """Converts ClassLabel ids to names. Returns other values unchanged."""
    from datasets import ClassLabel

    if isinstance(feature, ClassLabel):
        return None if value is None or value < 0 else feature.int2str(value)
    inside = getattr(feature, "feature", None)  # for a List (a Sequence before datasets 4)
    if isinstance(inside, ClassLabel):
        return None if value is None else [inside.int2str(item) for item in value]
    return value


def objects_to_examples(
    path: Path, objects: Objects, options: ReadOptions, known: Sequence[str] = ()
) -> Iterator[Example]:
    """Converts objects to examples. The first rows determine the keys. If there are several labels, some may be missing
    or null. known: label keys defined by the file format."""
    objects = with_sentences(objects, options.labelled)
    head = take_head(objects, HEAD)
    conversion = Conversion.of(path, head, options, known)
    options = conversion.options
    rows = ((where, conversion(values, where)) for where, values in chain(head, objects))
    first = take_head(rows, len(head))
    names = keys_of(first)
    if not names:
        return
    cells = [[values.get(name) for name in names] for _, values in first[:200] if values]
    table = Head(path, names, cells, f"its keys are: {abbreviate(names)}", conversion.origins)
    columns = find_columns(table, options, conversion.known)
    needs = Needs.of(columns, names, len(first), options, by_name=bool(conversion.reading or not conversion.known))
    for where, values in chain(first, rows):
        if values is None and options.labelled:
            continue
        if values is None:
            values = dict.fromkeys(needs.keys, "")  # empty rows are kept for prediction
        needs.check(values, where)
        yield columns.example(values, where)
    if conversion.reading:
        conversion.reading.report()


class Needs(NamedTuple):
    """The keys that all objects of a file must have, derived from the first objects."""

    keys: list[str]
    label: list[str]  # the key of the label, if there is exactly one
    unseen: set[str]  # usual label names that none of the first objects has
    num_seen: int

    @classmethod
    def of(cls, columns: Columns, names: list[str], num_seen: int, options: ReadOptions, by_name: bool) -> "Needs":
        """Builds the Needs from the columns. by_name: whether the labels were found by their names."""
        label = [source for source in columns.labels.values() if isinstance(source, str)]
        label = label if len(columns.labels) == 1 else []
        by_name = by_name and options.labelled and not options.label_column
        unseen = {*LABEL_NAMES, *PAIR_NAMES} - {*names} if by_name else set()
        keys = [*filter(None, (columns.text, columns.pair)), *([] if options.drop_unlabelled else label)]
        return cls(keys, label, unseen, num_seen)

    def check(self, values: Any, where: str) -> None:
        """Raises UserError for an object whose keys differ from those of the first objects."""
        if not isinstance(values, dict):
            raise UserError(f"{where}: not a JSON object")
        if late := sorted(self.unseen & values.keys()):
            problem = f"has the key {late[0]!r}, which is not in the first {self.num_seen} rows"
            raise UserError(f"{where}: {problem}; select the labels with --label_column")
        if missing := [key for key in self.keys if key not in values]:
            advice = "; --drop_unlabelled drops such rows" if missing == self.label else ""
            raise UserError(f"{where}: no key {missing[0]!r}, unlike other rows{advice}")


def keys_of(objects: list[tuple[str, Any]]) -> list[str]:
    """Returns the keys of the objects, in order. Raises UserError for other values."""
    keys: dict[str, None] = {}
    for where, values in objects:
        if not isinstance(values, dict | None):
            raise UserError(f"{where}: not a JSON object")
        for key, value in (values or {}).items():
            if key != "tokens" or not is_spans(value):  # Prodigy's tokens are spans
                keys[key] = None
    return list(keys)


def as_json(value: Any, where: str | Path) -> Any:
    """Converts a table value to JSON: decimals become numbers, dates become ISO strings."""
    if isinstance(value, list):
        return [as_json(item, where) for item in value]
    if isinstance(value, dict):
        return {key: as_json(item, where) for key, item in value.items()}
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, str) and len(value) > MAX_CHARACTERS:
        raise UserError(f"{where}: longer than the limit of {MAX_CHARACTERS:,} characters per row; shorten it")
    if isinstance(value, bytes):
        raise UserError(f"{where}: a column has bytes instead of text; decode it first")
    return value
