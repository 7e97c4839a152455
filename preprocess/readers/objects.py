"""Readers of objects with keys: JSONL, JSON, Parquet, Hugging Face datasets, and Label Studio's export."""

import json
import shutil
from collections import Counter
from datetime import date, time
from decimal import Decimal
from functools import partial
from itertools import chain, islice
from json.decoder import WHITESPACE
from pathlib import Path

from engine.errors import UserError
from engine.run.command_line import first_line
from engine.schema import parse_json, without_duplicates
from preprocess.labels.kinds import is_spans
from preprocess.readers.columns import (
    LABEL_NAMES,
    PAIR_NAMES,
    TEXT_NAMES,
    columns_of_marks,
    find_columns,
    labels_of_row,
)
from preprocess.readers.raw_files import MOST_CHARACTERS, first_of, open_text, read_rows, some, undecodable

MOST_OF_ONE_OBJECT = 256 * 2**20  # characters of a .json file that is a single object, which is read as a whole


def read_jsonl(path, options):
    """One JSON object per row, with `text` or `tokens` and the labels; other keys are ignored."""
    return objects_to_examples(path, read_objects(path, options.encoding), options)


def read_objects(path, encoding):
    for number, row in read_rows(path, encoding):
        where = f"{path}, row {number}"
        try:
            yield where, parse_json(row) if row.strip() else None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error})") from None


def read_json(path, options):
    """A list of such objects, or an object with such a list under some key (such as "data"); also JSONL named .json,
    and Label Studio's export."""
    form = json_form(path, options.encoding)
    if form == "rows":
        return read_jsonl(path, options)
    if form == "list":
        items = partial(read_list, path, options.encoding)
    else:
        items = list(read_object(path, options.encoding)).__iter__
    _, first = next(items(), (None, None))
    if is_label_studio(first):
        return read_label_studio(path, items, options)
    return objects_to_examples(path, items(), options)


def json_form(path, encoding):
    """The form of a .json file: a "list", one "object", or "rows" of one object each."""
    with open_text(path, encoding) as file:
        try:
            while (line := file.readline(MOST_CHARACTERS)) and not line.strip():
                continue
            if line.lstrip().startswith("["):
                return "list"
            if isinstance(parse_json(line), dict):
                while (line := file.readline(MOST_CHARACTERS)) and not line.strip():
                    continue
                return "rows" if line else "object"
        except UnicodeError:
            raise undecodable(path, file) from None
        except UserError:
            raise
        except (ValueError, RecursionError):  # an object over several lines, or not JSON: read_object reports that
            pass
    return "object"


def read_object(path, encoding):
    """(where, object) for each item of the first list of objects in a single-object file, or for the object itself."""
    with open_text(path, encoding) as file:
        try:
            text = file.read(MOST_OF_ONE_OBJECT + 1)
            if len(text) > MOST_OF_ONE_OBJECT:
                larger = f"a single object of more than {MOST_OF_ONE_OBJECT:,} characters"
                raise UserError(f"{path}, row 1: {larger}; write it as JSONL, one object per row")
            content = parse_json(text)
        except UnicodeError:
            raise undecodable(path, file) from None
        except UserError:
            raise
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, row {getattr(error, 'lineno', 1)}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}, row 1: not a JSON object")
    lists = [rows for rows in content.values() if isinstance(rows, list) and rows and isinstance(rows[0], dict)]
    rows = [content] if not lists or {"tokens", *TEXT_NAMES} & content.keys() else lists[0]
    return ((f"{path}, item {number}", row) for number, row in enumerate(rows, 1))


def read_list(path, encoding):
    """(where, item) of a JSON list, one item at a time."""
    with open_text(path, encoding) as file:
        try:
            for number, item in enumerate(JsonList(path, file).items(), 1):
                yield f"{path}, item {number}", item
        except UnicodeError:
            raise undecodable(path, file) from None


class JsonList:
    """A JSON list that is read piece by piece, so that memory does not grow with its length."""

    def __init__(self, path, file):
        self.path, self.file = path, file
        self.text, self.place, self.rows_before = "", 0, 0
        self.decode = json.JSONDecoder(object_pairs_hook=without_duplicates).raw_decode

    def load(self):
        """Drops what was parsed, and reads about as much again as remains. -> whether there was more."""
        self.rows_before += self.text.count("\n", 0, self.place)
        self.text = self.text[self.place :]
        self.place = 0
        piece = self.file.read(max(2**20, len(self.text)))
        self.text += piece
        return bool(piece)

    def sign(self):
        """The next character that is not whitespace, or "" at the end."""
        while True:
            self.place = WHITESPACE.match(self.text, self.place).end()
            if self.place < len(self.text) or not self.load():
                return self.text[self.place : self.place + 1]

    def items(self):
        self.expect("[")
        if self.sign() == "]":
            self.place += 1
        else:
            yield self.item()
            while self.expect(",]") == ",":
                yield self.item()
        if self.sign():
            raise self.mistake("Extra data", self.place)

    def expect(self, signs):
        sign = self.sign()
        if not sign or sign not in signs:
            raise self.mistake(f"Expecting {' or '.join(signs)}", self.place)
        self.place += 1
        return sign

    def item(self):
        """The next item; reads more of the file while the buffer ends inside it."""
        self.sign()
        while True:
            try:
                item, end = self.decode(self.text, self.place)
            except RecursionError as error:
                raise self.mistake(error, self.place) from None
            except ValueError as error:
                at = getattr(error, "pos", self.place)
                cut_off = str(error).startswith("Unterminated string") or at > len(self.text) - 16
                if not cut_off or not self.load():
                    raise self.mistake(first_line(error), at) from None
            else:
                whole = self.text[end : end + 1] in tuple(" \t\r\n,]") or end < len(self.text) - 8
                if whole or not self.load():  # a number might continue
                    self.require_room(end - self.place)
                    self.place = end
                    return item
            self.require_room(len(self.text) - self.place - 2**20)

    def require_room(self, length):
        if length > MOST_CHARACTERS:
            longer = f"an item is longer than {MOST_CHARACTERS:,} characters, the limit of a row"
            raise UserError(f"{self.path}, row {self.rows_before + 1}: {longer}")

    def mistake(self, error, place):
        row = self.rows_before + self.text.count("\n", 0, place) + 1
        return UserError(f"{self.path}, row {row}: not JSON ({error})")


def read_parquet(path, options):
    """A Parquet file, read in batches of rows."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        size = sum(group.total_byte_size for group in groups) / max(1, file.metadata.num_rows)  # of a row
        batches = file.iter_batches(max(1, min(1000, int(2**26 / max(1, size)))))
        rows = (row for batch in batches for row in batch.to_pylist())
        objects = ((where := f"{path}, row {number}", as_json(row, where)) for number, row in enumerate(rows, 1))
        yield from objects_to_examples(path, objects, options)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a readable Parquet file ({first_line(error)})") from None


def is_saved_dataset(path):
    """Whether a folder was written by save_to_disk of Hugging Face datasets."""
    return any((Path(path) / name).exists() for name in ("dataset_dict.json", "dataset_info.json", "state.json"))


def read_dataset(path, options):
    """A Hugging Face dataset: written by save_to_disk, or what load_dataset takes (a hub name, NAME:CONFIG, a folder).

    Numbers of ClassLabel features, also in lists, are replaced by their names. With --max_rows, or if the disk is too
    full, rows are streamed and nothing is stored on the disk.
    """
    import datasets

    most = getattr(options, "max_rows", 0)
    try:
        if is_saved_dataset(path):
            loaded = datasets.load_from_disk(str(path))
        else:
            name, _, config = str(path).partition(":")
            streaming = bool(most) or not fits(name, config or None)
            loaded = datasets.load_dataset(name, config or None, streaming=streaming)
    except Exception as error:  # a foreign folder or hub can make datasets raise anything
        raise UserError(f"{path}: cannot be loaded as a dataset ({first_line(error)})") from None
    for split, rows in (loaded if isinstance(loaded, dict) else {None: loaded}).items():
        objects = dataset_objects(path, split, rows)
        yield from first_rows(objects_to_examples(path, objects, options), most, f"{path}, {split or 'rows'}")


def fits(name, config):
    """Whether the disk has room for a dataset's files and their Arrow copy; true if its size is not known."""
    import datasets

    info = datasets.load_dataset_builder(name, config).info
    size = (info.download_size or 0) + (info.dataset_size or 0)
    folder = Path(datasets.config.HF_DATASETS_CACHE)
    while not folder.exists():
        folder = folder.parent
    if room := size <= 0.9 * shutil.disk_usage(folder).free:
        return room
    print(f"{name}: {size:,} bytes, too many for the free space of {folder}; its rows are streamed from the hub")
    return False


def first_rows(examples, most, name):
    """The first `most` examples, or all if it is 0; prints a message if there are more."""
    if most:
        examples = iter(examples)
        yield from islice(examples, most)
        if next(examples, None) is not None:
            print(f"{name}: only the first {most:,} rows are read (--max_rows)")
    else:
        yield from examples


def dataset_objects(path, split, rows):
    """(where, dict) for each row of a dataset; a streamed one may have no features."""
    features = rows.features or {}
    try:
        for number, row in enumerate(rows, 1):
            values = {key: class_names(value, features.get(key)) for key, value in row.items()}
            yield f"{path}, {split or 'row'} {number}", as_json(values, path) | ({"split": split} if split else {})
    except UserError:
        raise
    except Exception as error:  # the files of a streamed dataset are opened here
        raise UserError(f"{path}: its rows cannot be read ({first_line(error)})") from None


def class_names(value, feature):
    """The name or names of ClassLabel numbers; other values are returned unchanged."""
    from datasets import ClassLabel, List

    if isinstance(feature, ClassLabel):
        return None if value is None or value < 0 else feature.int2str(value)
    if isinstance(feature, List) and isinstance(feature.feature, ClassLabel):
        return None if value is None else [feature.feature.int2str(item) for item in value]
    return value


def objects_to_examples(path, objects, options, known=()):
    """(where, dict or None for an empty row) -> examples. A label may be missing or null if there are several.

    The first rows, at most 1,000, decide which keys exist. known: keys that are certain to be labels.
    """
    objects = iter(objects)
    head = first_of(objects, 1000)
    names = keys_of(head)
    if not names:
        return
    listed = f"its keys are: {some(names)}"
    rows = [[values.get(name) for name in names] for _, values in head[:200] if values]
    marks = partial(columns_of_marks, list(names), rows)
    columns = find_columns(path, list(names), options, listed, known, marks)
    text, pair, labels = columns.text, columns.pair, columns.labels
    later = {*LABEL_NAMES, *PAIR_NAMES} - names.keys() if labels and not options.label_column and not known else set()
    alone = [source for source in labels.values() if isinstance(source, str)] if len(labels) == 1 else []
    required = [name for name in (text, pair, *([] if getattr(options, "drop_unlabelled", False) else alone)) if name]
    group = getattr(options, "group_column", "")
    for where, values in chain(head, objects):
        if values is None and labels:
            continue
        if values is None:
            values = {key: "" for key in (text, pair) if key}  # for prediction, an empty row keeps its position
        if not isinstance(values, dict):
            raise UserError(f"{where}: not a JSON object")
        if not later.isdisjoint(values):
            late = sorted(later & values.keys())
            unseen = f"has the key {late[0]!r}, which none of the first {len(head)} rows has"
            raise UserError(f"{where}: {unseen}; name the labels with --label_column")
        if absent := [key for key in required if key not in values]:
            advice = "; --drop_unlabelled drops such rows" if absent == alone else ""
            raise UserError(f"{where}: no key {absent[0]!r}, which other rows have{advice}")
        yield object_to_example(where, values, columns, group)


def keys_of(objects):
    """The keys of some (where, object), in order. Raises UserError for values that are not objects."""
    for where, values in objects:
        if not isinstance(values, dict | None):
            raise UserError(f"{where}: not a JSON object")
    return dict.fromkeys(
        key
        for _, values in objects
        for key, value in (values or {}).items()
        if key != "tokens" or not is_spans(value)  # Prodigy's tokens are spans
    )


def object_to_example(where, values, columns, group):
    """Converts one object to an example, with the standard keys."""
    text, pair, labels, extras, kept = columns
    example = {"_where": where}
    for key in ("id", "split"):
        if values.get(key) is not None:
            example[key] = values[key]
    if group:
        example["group"] = values.get(group)
    example["tokens" if isinstance(values[text], list) else "text"] = values[text]
    if pair:
        example["text_pair"] = values[pair]
    if extras:
        example["extras"] = {name: values.get(name) for name in extras}
    if kept:
        example["kept"] = {name: values.get(name) for name in kept}
    return example | labels_of_row(labels, values, where)


def as_json(value, where):
    """A table value converted for JSON: decimals become numbers, dates ISO strings."""
    if isinstance(value, list):
        return [as_json(item, where) for item in value]
    if isinstance(value, dict):
        return {key: as_json(item, where) for key, item in value.items()}
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, str) and len(value) > MOST_CHARACTERS:
        raise UserError(f"{where}: longer than {MOST_CHARACTERS:,} characters, the limit of a row; shorten it")
    if isinstance(value, bytes):
        raise UserError(f"{where}: a column contains bytes, not text; decode it first")
    return value


# ---- Label Studio ----------------------------------------------------------------------------------------------------


def is_label_studio(item):
    """Whether an item is a task as Label Studio exports it to JSON."""
    return isinstance(item, dict) and isinstance(item.get("data"), dict) and annotations_of(item) is not None


def annotations_of(item):
    found = item.get("annotations", item.get("completions"))
    return found if isinstance(found, list) and all(isinstance(one, dict) for one in found) else None


def read_label_studio(path, items, options):
    """Tasks of Label Studio: choices become a class, or a set if some text has several; labels become spans; ratings
    and numbers become numbers. If a text has several annotations, the first that was not cancelled is used.

    items: a function that yields (where, task) from the beginning; it is called twice, first to find the kinds.
    """
    kinds, several, unread = {}, 0, Counter()
    for where, item in items():
        if not is_label_studio(item):
            raise UserError(f"{where}: lacks `data` or `annotations`, so it is not a task of Label Studio")
        several += sum(not one.get("was_cancelled") for one in annotations_of(item)) > 1
        for name, kind, values in results_of(item, where):
            if kind == "choices" and (len(values) > 1 or kinds.get(name) == "several choices"):
                kind = "several choices"
            if kind in ("choices", "several choices", "spans", "number"):
                kinds[name] = kind
            else:
                unread[kind] += 1
    if several:
        print(f"{path}: {several} texts have several annotations; the first that was not cancelled is used")
    if unread:
        print(f"{path}: ignored: {', '.join(f'{kind} ({number})' for kind, number in unread.items())}")
    objects = ((where, task_to_object(item, kinds, where, options)) for where, item in items())
    return objects_to_examples(path, objects, options, known=tuple(map(task_name, kinds)))


def task_name(name):
    """The task name for a control of Label Studio."""
    name = "".join("_" if sign in ".,=" else sign for sign in name)
    return f"{name}_label" if name in ("id", "split", "tokens", *TEXT_NAMES, *PAIR_NAMES) else name


def results_of(item, where):
    """[(control, "choices" | "spans" | "number" | another type, values)] of the annotation that is used; empty if there
    is none."""
    annotation = next((one for one in annotations_of(item) if not one.get("was_cancelled")), None)
    found = []
    for result in (annotation or {}).get("result") or []:
        try:
            kind, value, name = result["type"], result.get("value", {}), result.get("from_name", "")
            if kind == "choices" and "start" not in value:
                found.append((name, "choices", value["choices"]))
            elif kind == "taxonomy" and "start" not in value:
                found.append((name, "choices", ["/".join(path) for path in value["taxonomy"]]))
            elif kind == "labels":
                span = (value["start"], value["end"], value.get("text"))
                found.append((name, "spans", [(*span, label) for label in value["labels"]]))
            elif kind in ("rating", "number"):
                found.append((name, "number", [float(value[kind])]))
            else:
                found.append((name, kind, []))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            wrong = f"unexpected form of a Label Studio result ({type(error).__name__}: {first_line(error)})"
            raise UserError(f"{where}: {wrong}") from None
    return found


def task_to_object(item, kinds, where, options):
    """Converts a task of Label Studio to one object: its data, and a label for each control."""
    data = dict(item["data"])
    texts = [key for key in (options.text_column, *TEXT_NAMES) if isinstance(data.get(key), str)]
    texts = texts or [key for key, value in data.items() if isinstance(value, str)]
    if len(texts) == 1 and texts[0] not in (options.text_column, *TEXT_NAMES):
        data["text"] = data.pop(texts[0])  # the only text, under any name
        texts = ["text"]
    labelled = any(not one.get("was_cancelled") for one in annotations_of(item))
    labels = {name: [] if kind == "spans" and labelled else None for name, kind in kinds.items()}
    for name, kind, values in results_of(item, where):
        if kind == "spans":
            text = data[texts[0]] if texts else ""
            labels[name] += [span_in_text(text, *value) for value in values]
        elif kind == "choices" and kinds[name] == "several choices":
            labels[name] = [*(labels[name] or []), *values]
        elif kind in kinds.get(name, ""):
            labels[name] = values[0] if values else None
    number = {"id": item["id"]} if "id" in item else {}
    return data | number | {task_name(name): label for name, label in labels.items()}


def span_in_text(text, start, end, surface, label):
    """A span of Label Studio. Browsers count an emoji as two characters (UTF-16 units); if the surface shows that the
    offsets are counted so, they are converted."""
    counted = type(start) is int and type(end) is int and surface
    if counted and (text[start:end] != surface or end > len(text)):
        raw = text.encode("utf-16-le", "surrogatepass")
        before, inside = (part.decode("utf-16-le", "ignore") for part in (raw[: 2 * start], raw[2 * start : 2 * end]))
        if inside == surface:
            start, end = len(before), len(before) + len(inside)
    return {"start": start, "end": end, "label": label, "text": surface}
