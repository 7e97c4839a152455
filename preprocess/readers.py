"""Readers: raw files of one format each -> examples, one after another. data_process.py calls them.

A reader is a generator `read_<format>(path, options)` of dicts: `text` or `tokens`, the labels, maybe `text_pair`, `id`
and `split`, and "_where", which says where the example came from, for messages.
Edit here when your data has a format of its own: one reader, one line in READERS.
"""

import codecs
import csv
import gzip
import io
import json
import re
import sys
import zlib
from contextlib import suppress
from datetime import date, time
from decimal import Decimal
from itertools import chain, islice, zip_longest
from pathlib import Path

from engine.command_line import UserError, first_line
from preprocess.labels import is_spans

# The usual names of columns and keys. Where several are present, the first in these lists is the text.
TEXT_NAMES = "text sentence content sentence1 text_a premise question review query title 文本 内容".split()
PAIR_NAMES = "text_pair sentence2 text_b hypothesis question2".split()
LABEL_NAMES = "label labels entities spans intent class category target slots tags ner ner_tags 标签 类别".split()
NUMBER_NAMES = "score rating stars similarity".split()  # taken for labels where there is none of those
# What an example holds beside its labels
RESERVED = ("id", "text", "tokens", "text_pair", "split", "group", "extras", "kept", "_where")


class Unpacked(gzip.GzipFile):
    """A .gz file whose damage is the user's to know of."""

    def read(self, size=-1):
        return self.checked(super().read, size)

    def read1(self, size=-1):
        return self.checked(super().read1, size)

    def checked(self, read, size):
        try:
            return read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{self.name}: not a whole .gz file ({first_line(error)})") from None


def open_bytes(path):
    """The file's bytes, unpacked if its name ends in .gz."""
    return Unpacked(path, "rb") if Path(path).suffix.lower() == ".gz" else open(path, "rb")


def open_text(path, encoding="auto", newline="\n"):
    """The file, decoded as it is read and without a byte order mark; only `newline` ends a row."""
    if encoding == "auto":
        with open_bytes(path) as file:
            encoding = "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return io.TextIOWrapper(open_bytes(path), encoding=encoding, newline=newline)
    except LookupError:
        unknown = f"--encoding {encoding} is not known to Python"
        raise UserError(f"{unknown}; try utf-8, gb18030, utf-16 or latin-1") from None


def undecodable(path, file):
    """The UserError for a file that does not decode, naming the row."""
    decoder, row = codecs.getincrementaldecoder(file.encoding)(), 0
    with open_bytes(path) as raw, suppress(UnicodeError):
        for line in raw:
            row += 1
            decoder.decode(line)
    advice = "name the file's encoding, for example --encoding gb18030"
    return UserError(f"{path}, row {row}: not {file.encoding}; {advice}")


def read_rows(path, encoding="auto"):
    """(row number from 1, row), one after another. Only a line feed ends a row: U+2028 and U+0085 stay in texts."""
    with open_text(path, encoding) as file:
        try:
            for number, row in enumerate(file, 1):
                yield number, row.removesuffix("\n").removesuffix("\r")
        except UnicodeError:
            raise undecodable(path, file) from None


def read_txt(path, options):
    """A text a row, nothing else."""
    for number, row in read_rows(path, options.encoding):
        yield {"_where": f"{path}, row {number}", "text": row}


def read_csv(path, options):
    """CSV with a header; quotes as RFC 4180 has them."""
    csv.field_size_limit(sys.maxsize)
    with open_text(path, options.encoding, newline="") as file:
        yield from columns_to_examples(path, read_cells(path, file), options)


def read_cells(path, file):
    """(row number, cells) of a CSV file that is open."""
    reader, start = csv.reader(file, strict=True), 1
    try:
        for cells in reader:
            yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, row {start}: {error}; look for a quote that is never closed") from None
    except UnicodeError:
        raise undecodable(path, file) from None


def read_tsv(path, options):
    """TSV with a header; a quote is a character like any other, so a stray one swallows nothing."""
    rows = read_rows(path, options.encoding)
    return columns_to_examples(path, ((number, row.split("\t")) for number, row in rows), options)


def columns_to_examples(path, table, options):
    """(row number, cells), the header first, to examples. Values stay strings: also 'NA', 'null' and '007'."""
    header = [name.strip() for name in next(table, (1, []))[1]]
    if not any(header):
        raise UserError(f"{path}: the file is empty")
    listed = f"its columns are: {', '.join(header)}"
    if twice := [name for name in header if header.count(name) > 1]:
        raise UserError(f"{path}, row 1: two columns are called {twice[0]!r}; {listed}")
    text, pair, labels, extras, kept = find_columns(path, header, options, listed)
    # A column named by an option is what the option says, also if it is called "id"
    keys = {"id": "id", "split": "split", text: "text", pair: "text_pair"} | {name: name for name in labels}
    group = getattr(options, "group_column", "")
    for number, cells in table:
        if not any(cells):
            if labels:
                continue
            cells = [""] * len(header)  # a text to predict on keeps its row
        if len(cells) != len(header):
            raise UserError(f"{path}, row {number}: {len(cells)} cells, but the header has {len(header)}; {listed}")
        example = {keys[name]: cell for name, cell in zip(header, cells) if name in keys}
        if group:
            example["group"] = cells[header.index(group)]
        if extras:
            example["extras"] = {name: cell for name, cell in zip(header, cells) if name in extras}
        if kept:
            example["kept"] = {name: cell for name, cell in zip(header, cells) if name in kept}
        yield {"_where": f"{path}, row {number}", **example}


def find_columns(path, names, options, listed):
    """(text, text pair or None, labels, extra columns, columns kept): as the options say, else by their usual names."""
    choices = (path, names, listed)
    text = pick("text_column", [options.text_column], ["tokens", *TEXT_NAMES], *choices)[0]
    pair = next(iter(pick("text_pair_column", [options.text_pair_column], PAIR_NAMES, *choices, needed=False)), None)
    wanted = getattr(options, "label_column", None)
    if wanted is None:  # reading texts to predict on: there are no labels, and the model knows its extra columns
        return text, pair, [], [name for name in names if name not in (text, pair, "id", "split")], []
    usual = LABEL_NAMES if set(LABEL_NAMES) & set(names) else NUMBER_NAMES
    labels = pick("label_column", [name.strip() for name in wanted.split(",")], usual, *choices)
    if text in labels or pair in labels:
        raise UserError(f"{path}: --label_column names a column of text; {listed}")
    for name in labels:
        if name in RESERVED or set(name) & set(".,="):
            raise UserError(f"{path}: a label column cannot be called {name!r}; rename it")
    group = pick("group_column", [getattr(options, "group_column", "")], (), *choices, needed=False)
    extras = pick("extra_columns", names_in(options, "extra_columns"), (), *choices, needed=False)
    kept = pick("keep_columns", names_in(options, "keep_columns"), (), *choices, needed=False)
    if both := sorted({*extras} & {text, pair, *labels}):
        raise UserError(f"{path}: --extra_columns names {both[0]!r}, which is the text or a label; {listed}")
    unused = [name for name in names if name not in (text, pair, *labels, *extras, *kept, *group, "id", "split")]
    shown = f", second text from {pair!r}" if pair else ""
    left_out = f"; not used: {', '.join(unused)}" if unused else ""
    shown += f", extra inputs from {', '.join(map(repr, extras))}" if extras else ""
    shown += f", kept for the report: {', '.join(map(repr, kept))}" if kept else ""
    print(f"{path}: text from {text!r}{shown}, labels from {', '.join(map(repr, labels))}{left_out}")
    return text, pair, labels, extras, kept


def names_in(options, flag):
    """The columns that a flag lists, each once."""
    return list(dict.fromkeys(name.strip() for name in getattr(options, flag, "").split(",")))


def pick(flag, wanted, usual, path, names, listed, needed=True):
    """The columns that an option names, else all those of the usual names that are there."""
    wanted = [name for name in wanted if name]
    if absent := [name for name in wanted if name not in names]:
        raise UserError(f"{path}: no column {absent[0]!r} (--{flag}); {listed}")
    columns = wanted or [name for name in usual if name in names]
    if needed and not columns:
        raise UserError(f"{path}: cannot tell which column is meant; add --{flag}; {listed}")
    return columns


def read_jsonl(path, options):
    """One JSON object a row, with `text` or `tokens`, the labels, and whatever else (left out)."""
    return objects_to_examples(path, read_objects(path, options.encoding), options)


def read_objects(path, encoding):
    for number, row in read_rows(path, encoding):
        where = f"{path}, row {number}"
        try:
            yield where, json.loads(row) if row.strip() else None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error})") from None


def read_json(path, options):
    """A list of such objects, or an object with one under some key ("data", say); or JSONL by another name."""
    with open_text(path, options.encoding) as file:
        try:
            content = json.load(file)
        except UnicodeError:
            raise undecodable(path, file) from None
        except (ValueError, RecursionError) as error:
            if getattr(error, "msg", "") == "Extra data":
                content = None
            else:
                raise UserError(f"{path}, row {getattr(error, 'lineno', 1)}: not JSON ({error})") from None
    if isinstance(content, dict):
        lists = [rows for rows in content.values() if isinstance(rows, list) and rows and isinstance(rows[0], dict)]
        content = [content] if not lists or {"tokens", *TEXT_NAMES} & content.keys() else lists[0]
    if not isinstance(content, list):
        return read_jsonl(path, options)
    items = ((f"{path}, item {number}", item) for number, item in enumerate(content, 1))
    return objects_to_examples(path, items, options)


def read_parquet(path, options):
    """A table of columns, read in pieces."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
        rows = (row for batch in file.iter_batches(1000) for row in batch.to_pylist())
        objects = ((where := f"{path}, row {number}", as_json(row, where)) for number, row in enumerate(rows, 1))
        yield from objects_to_examples(path, objects, options)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a readable Parquet file ({first_line(error)})") from None


def is_saved_dataset(path):
    """Whether a folder was made by save_to_disk of Hugging Face datasets."""
    return any((Path(path) / name).exists() for name in ("dataset_dict.json", "dataset_info.json", "state.json"))


def read_dataset(path, options):
    """A Hugging Face dataset: made by save_to_disk, or what load_dataset takes (a hub name, NAME:CONFIG, a folder).

    The names of ClassLabel features, also in lists, stand for their numbers.
    """
    import datasets

    try:
        if is_saved_dataset(path):
            loaded = datasets.load_from_disk(str(path))
        else:
            name, _, config = str(path).partition(":")
            loaded = datasets.load_dataset(name, config or None)
    except Exception as error:  # a foreign folder or hub can make datasets raise anything
        raise UserError(f"{path}: no dataset loads from it ({first_line(error)})") from None
    for split, rows in (loaded if isinstance(loaded, dict) else {None: loaded}).items():
        yield from objects_to_examples(path, dataset_objects(path, split, rows), options)


def dataset_objects(path, split, rows):
    """(where, dict) of the rows of a dataset."""
    for number, row in enumerate(rows, 1):
        values = {key: class_names(value, rows.features[key]) for key, value in row.items()}
        yield f"{path}, {split or 'row'} {number}", as_json(values, path) | ({"split": split} if split else {})


def class_names(value, feature):
    """The name or names that the numbers of a ClassLabel stand for; other values as they are."""
    from datasets import ClassLabel, List

    if isinstance(feature, ClassLabel):
        return None if value is None or value < 0 else feature.int2str(value)
    if isinstance(feature, List) and isinstance(feature.feature, ClassLabel):
        return None if value is None else [feature.feature.int2str(item) for item in value]
    return value


def objects_to_examples(path, objects, options):
    """(where, dict or None for an empty row) -> examples. A label may be missing or null where there are several.

    The first thousand rows say which keys there are.
    """
    objects = iter(objects)
    head = list(islice(objects, 1000))
    for where, values in head:
        if not isinstance(values, dict | None):
            raise UserError(f"{where}: not a JSON object")
    names = dict.fromkeys(
        key
        for _, values in head
        for key, value in (values or {}).items()
        if key != "tokens" or not is_spans(value)  # Prodigy's tokens are spans
    )
    if not names:
        return
    listed = f"its keys are: {', '.join(map(str, names))}"
    text, pair, labels, extras, kept = find_columns(path, list(names), options, listed)
    later = {*LABEL_NAMES, *PAIR_NAMES} - names.keys() if labels and not options.label_column else set()
    required = [name for name in (text, pair, *(labels if len(labels) == 1 else [])) if name]
    for where, values in chain(head, objects):
        if values is None and labels:
            continue
        if values is None:
            values = {key: "" for key in (text, pair) if key}  # a text to predict on keeps its row
        if not isinstance(values, dict):
            raise UserError(f"{where}: not a JSON object")
        if late := sorted(later & values.keys()):
            unseen = f"has the key {late[0]!r}, which none of the first 1000 rows has"
            raise UserError(f"{where}: {unseen}; say with --label_column what to use")
        if absent := [key for key in required if key not in values]:
            raise UserError(f"{where}: no key {absent[0]!r}, which other rows have")
        example = {"_where": where} | {key: values[key] for key in ("id", "split") if values.get(key) is not None}
        if group := getattr(options, "group_column", ""):
            example["group"] = values.get(group)
        example["tokens" if isinstance(values[text], list) else "text"] = values[text]
        if pair:
            example["text_pair"] = values[pair]
        if extras:
            example["extras"] = {name: values.get(name) for name in extras}
        if kept:
            example["kept"] = {name: values.get(name) for name in kept}
        yield example | {name: values.get(name) for name in labels}


def as_json(value, where):
    """A value of a table as JSON has it: decimals are numbers, dates their ISO form."""
    if isinstance(value, list):
        return [as_json(item, where) for item in value]
    if isinstance(value, dict):
        return {key: as_json(item, where) for key, item in value.items()}
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        raise UserError(f"{where}: a column holds bytes, not text; decode it first")
    return value


def read_conll(path, options):
    """One token and its tag a row, a blank row between sentences; maybe PATH.intent beside it, an intent a sentence.

    The token is the first column, the tag the last. A token may itself be a blank: `' ' + ' ' + 'O'`.
    """
    intents = None
    if Path(f"{path}.intent").exists():
        intents = [row.strip() for _, row in read_rows(f"{path}.intent", options.encoding)]
        while intents and not intents[-1]:
            intents.pop()
    glued = has_glued_places(path, options.encoding)
    if glued:
        print(f"{path}: each character has its place in its word glued to it (科0 技1), which is removed")
    tokens, tags, start, num_sentences = [], [], 0, 0
    for number, row in chain(read_rows(path, options.encoding), [(0, "")]):
        if not tokens and row.startswith("# ") and "=" in row:
            continue  # a comment, as of CoNLL-U: "# text = …"
        if row.strip(" \t") and not row.startswith("-DOCSTART-"):
            separator = "\t" if "\t" in row else " "
            head, _, tag = row.rstrip(separator).rpartition(separator)
            token = head.split(separator)[0] or head[:1]
            if not token or not tag:
                raise UserError(f"{path}, row {number}: needs a token and a tag, found {row!r}")
            start = start if tokens else number
            tokens.append(token[0] if glued else token)
            tags.append(tag)
        elif tokens:
            if intents is not None and num_sentences >= len(intents):
                more = f"more sentences (the next begins in row {start})"
                raise UserError(f"{path}.intent: {len(intents)} rows, but {path} has {more}")
            intent = {"intent": intents[num_sentences]} if intents is not None else {}
            yield {"_where": f"{path}, row {start}", "tokens": tokens, **intent, "slots": tags}
            tokens, tags, num_sentences = [], [], num_sentences + 1
    if intents is not None and num_sentences != len(intents):
        raise UserError(f"{path}.intent: {len(intents)} rows, but {path} has {num_sentences} sentences")


def has_glued_places(path, encoding):
    """Whether every token of a CoNLL file is a character and its place in its word, as in Weibo NER: 科0 技1."""
    before, num_tokens = -1, 0
    for _, row in read_rows(path, encoding):
        if not row.strip() or row.startswith("-DOCSTART-"):
            before = -1
            continue
        match = re.fullmatch(r"(?s)\S(\d+)", re.split(r"[ \t]", row, maxsplit=1)[0])
        if match is None or int(match[1]) not in (0, before + 1):
            return False
        before, num_tokens = int(match[1]), num_tokens + 1
    return num_tokens > 1


def read_seq(path, options):
    """A folder of seq.in, seq.out (words and their tags, apart by blanks) and label (the intent), a sentence a row."""
    names = [name for name in ("seq.in", "seq.out", "label") if (Path(path) / name).exists()]
    if len(names) < 2 or names[0] != "seq.in":
        raise UserError(f"{path}: needs seq.in, and seq.out or label or both")
    for rows in zip_longest(*(read_rows(Path(path) / name, options.encoding) for name in names)):
        if None in rows:
            counts = {name: sum(1 for _ in read_rows(Path(path) / name, options.encoding)) for name in names}
            other = next(name for name in names if counts[name] != counts["seq.in"])
            raise UserError(f"{path}/{other}: {counts[other]} rows, but seq.in has {counts['seq.in']}")
        number = rows[0][0]
        columns = {name: row for name, (_, row) in zip(names, rows)}
        example = {"_where": f"{path}/seq.in, row {number}", "tokens": re.findall(r"[^ \t]+", columns["seq.in"])}
        if "label" in names:
            example["intent"] = columns["label"].strip()
        if "seq.out" in names:
            example["slots"] = re.findall(r"[^ \t]+", columns["seq.out"])
        yield example


SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"}
CONLL_SUFFIXES = (".conll", ".bio", ".bioes", ".bmes", ".iob", ".iob2")
READERS = {
    "csv": read_csv,
    "tsv": read_tsv,
    "jsonl": read_jsonl,
    "json": read_json,
    "parquet": read_parquet,
    "conll": read_conll,
    "seq": read_seq,
    "hf": read_dataset,
}


def suffix_of(path):
    """The suffix that tells the format: in lower case, of data.csv.gz that of data.csv."""
    path = Path(path)
    return (Path(path.stem) if path.suffix.lower() == ".gz" else path).suffix.lower()


def find_format(path, labelled=True):
    """The reader's name for a file or folder, by its name and first rows. labelled: whether plain text will not do."""
    if path.is_dir():
        return "seq" if (path / "seq.in").exists() else "hf"
    suffix = suffix_of(path)
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    if suffix in CONLL_SUFFIXES:
        return "conll"
    with open_bytes(path) as file:
        raw = file.read(8192)
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    rows = raw.decode(encoding, "ignore").lstrip("\ufeff").split("\n")
    whole_rows = rows[:-1] if len(raw) == 8192 else rows
    head = [row for row in whole_rows if row.strip()] or [""]
    if head[0].startswith("{"):
        return "jsonl"
    if all(re.search(r"[ \t](O|[BIESMLU]-\S+)\s*$", row) or row.startswith(("-DOCSTART-", "# ")) for row in head):
        return "conll"
    if not labelled:
        return "txt"
    if "\t" in head[0]:
        return "tsv"
    raise UserError(f"{path}: cannot tell its format; name it with --format {{{','.join(READERS)}}}")
