"""Readers: raw files of one format each -> examples, one after another. data_process.py calls them.

A reader is a generator `read_<format>(path, options)` of dicts: `text` or `tokens`, the labels, maybe `text_pair`, `id` and
`split`, and "at", which says where the example came from, for messages.
Edit here when your data has a format of its own: one reader, one line in READERS.
"""

import codecs
import csv
import json
import re
import sys
from contextlib import suppress
from itertools import chain, zip_longest
from pathlib import Path

from config import UserError

TEXT_NAMES = ("text", "sentence", "content", "sentence1", "text_a", "premise", "question", "review", "query", "title", "文本", "内容")
PAIR_NAMES = ("text_pair", "sentence2", "text_b", "hypothesis", "question2")
RESERVED = ("id", "text", "tokens", "text_pair", "split", "at")  # what an example holds beside its labels
LABEL_NAMES = ("label", "labels", "intent", "class", "category", "target", "slots", "tags", "ner", "ner_tags", "标签", "类别")


def open_text(path, encoding="auto", newline="\n"):
    """The file, decoded as it is read and without a byte order mark; only `newline` ends a row ("": what the csv module wants)."""
    if encoding == "auto":
        with open(path, "rb") as file:
            encoding = "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return open(path, encoding=encoding, newline=newline)
    except LookupError:
        raise UserError(f"--encoding {encoding} is not known to Python; try utf-8, gb18030, utf-16 or latin-1") from None


def undecodable(path, file):
    """The UserError for a file that does not decode, naming the row."""
    decoder, row = codecs.getincrementaldecoder(file.encoding)(), 0
    with open(path, "rb") as raw, suppress(UnicodeDecodeError):
        for line in raw:
            row += 1
            decoder.decode(line)
    return UserError(f"{path}, row {row}: not {file.encoding}; name the file's encoding, for example --encoding gb18030")


def read_rows(path, encoding="auto"):
    """(row number from 1, row), one after another. Only a line feed ends a row: U+2028, U+0085 and kin stay inside texts."""
    with open_text(path, encoding) as file:
        try:
            for number, row in enumerate(file, 1):
                yield number, row.removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            raise undecodable(path, file) from None


def read_txt(path, options):
    """A text a row, nothing else."""
    for number, row in read_rows(path, options.encoding):
        yield {"at": f"{path}, row {number}", "text": row}


def read_csv(path, options, delimiter=","):
    """CSV with a header; quotes as RFC 4180 has them."""

    def table(file):
        reader, start = csv.reader(file, delimiter=delimiter, strict=True), 1
        try:
            for cells in reader:
                yield start, cells
                start = reader.line_num + 1
        except csv.Error as error:
            raise UserError(f"{path}, row {start}: {error}; look for a quote that is never closed") from None
        except UnicodeDecodeError:
            raise undecodable(path, file) from None

    csv.field_size_limit(sys.maxsize)
    with open_text(path, options.encoding, newline="") as file:
        yield from columns_to_examples(path, table(file), options)


def read_tsv(path, options):
    """TSV with a header; a quote is a character like any other, so a stray one swallows nothing."""
    rows = read_rows(path, options.encoding)
    return columns_to_examples(path, ((number, row.split("\t")) for number, row in rows), options)


def columns_to_examples(path, table, options):
    """(row number, cells), the header first, to examples. Values stay strings: 'NA', 'null' and '007' are what they look like."""
    header = [name.strip() for name in next(table, (1, []))[1]]
    if not any(header):
        raise UserError(f"{path}: the file is empty")
    listed = f"its columns are: {', '.join(header)}"
    for name in header:
        if header.count(name) > 1:
            raise UserError(f"{path}, row 1: two columns are called {name!r}; {listed}")
    text, pair, labels = find_columns(path, header, options, listed)
    known = {text: "text", pair: "text_pair", "id": "id", "split": "split"} | {name: name for name in labels}
    for number, cells in table:
        if not any(cells):
            if labels:
                continue
            cells = [""] * len(header)  # a text to predict on keeps its row
        if len(cells) != len(header):
            raise UserError(f"{path}, row {number}: {len(cells)} cells, but the header has {len(header)}; {listed}")
        example = {known[name]: cell for name, cell in zip(header, cells) if name in known}
        yield {"at": f"{path}, row {number}", **example}


def find_columns(path, names, options, listed):
    """(text, text pair or None, labels): as the options say, else by their usual names."""

    def find(flag, wanted, usual, needed=True):
        for name in wanted:
            if name not in names:
                raise UserError(f"{path}: no column {name!r} (--{flag}); {listed}")
        found = wanted or [name for name in usual if name in names][: 1 if flag != "label_column" else None]
        if needed and not found:
            raise UserError(f"{path}: cannot tell which column is meant; add --{flag}; {listed}")
        return found

    text = find("text_column", [options.text_column] if options.text_column else [], ("tokens", *TEXT_NAMES))[0]
    pair = find("text_pair_column", [options.text_pair_column] if options.text_pair_column else [], PAIR_NAMES, False)
    wanted = getattr(options, "label_column", None)
    if wanted is None:  # reading texts to predict on: there are no labels
        return text, pair[0] if pair else None, []
    labels = find("label_column", [name.strip() for name in wanted.split(",") if name.strip()], LABEL_NAMES)
    if set(labels) & {text, *pair}:
        raise UserError(f"{path}: --label_column names a column of text; {listed}")
    for name in labels:
        if name in RESERVED or set(name) & set(".,="):
            raise UserError(f"{path}: a label column cannot be called {name!r}; rename it")
    unused = [name for name in names if name not in (text, *pair, *labels, "id", "split")]
    shown = f", second text from {pair[0]!r}" if pair else ""
    print(
        f"{path}: text from {text!r}{shown}, labels from {', '.join(map(repr, labels))}"
        + (f"; not used: {', '.join(unused)}" if unused else "")
    )
    return text, pair[0] if pair else None, labels


def read_jsonl(path, options):
    """One JSON object a row, with `text` or `tokens`, the labels, and whatever else (left out)."""
    columns, seen = None, []
    for number, row in read_rows(path, options.encoding):
        at = f"{path}, row {number}"
        if not row.strip():
            if columns is None or columns[2]:
                continue
            row = json.dumps({key: "" for key in columns[:2] if key})  # a text to predict on keeps its row
        try:
            values = json.loads(row)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{at}: not JSON ({error})") from None
        if not isinstance(values, dict):
            raise UserError(f"{at}: not a JSON object")
        if columns is None:
            seen = list(values)
            columns = find_columns(path, seen, options, f"its keys are: {', '.join(seen)}")
        text, pair, labels = columns
        example = {"at": at} | {key: values[key] for key in ("id", "split") if key in values}
        for key, name in (
            (text, "tokens" if isinstance(values.get(text), list) else "text"),
            (pair, "text_pair"),
            *((name, name) for name in labels),
        ):
            if key is not None:
                if key not in values:
                    raise UserError(f"{at}: no key {key!r}, which the first row has")
                value = values[key]
                example[name] = str(value) if isinstance(value, int) and name in labels else value
        yield example


def read_conll(path, options):
    """One token and its tag a row, a blank row between sentences; an intent file beside it (PATH.intent), one a sentence.

    The token is the first column, the tag the last. A token may itself be a blank: `' ' + ' ' + 'O'`.
    """
    intents = None
    if Path(f"{path}.intent").exists():
        intents = [row.strip() for _, row in read_rows(f"{path}.intent", options.encoding)]
        while intents and not intents[-1]:
            intents.pop()
    tokens, tags, start, count = [], [], 0, 0
    for number, row in chain(read_rows(path, options.encoding), [(0, "")]):
        if row.strip(" \t") and not row.startswith("-DOCSTART-"):
            separator = "\t" if "\t" in row else " "
            head, _, tag = row.rstrip(separator).rpartition(separator)
            token = head.split(separator)[0] or head[:1]
            if not token or not tag:
                raise UserError(f"{path}, row {number}: needs a token and a tag, found {row!r}")
            start = start if tokens else number
            tokens.append(token)
            tags.append(tag)
        elif tokens:
            if intents is not None and count >= len(intents):
                raise UserError(f"{path}.intent: {len(intents)} rows, but {path} has more sentences (the next begins in row {start})")
            yield (
                {"at": f"{path}, row {start}", "tokens": tokens}
                | ({"intent": intents[count]} if intents is not None else {})
                | {"slots": tags}
            )
            tokens, tags, count = [], [], count + 1
    if intents is not None and count != len(intents):
        raise UserError(f"{path}.intent: {len(intents)} rows, but {path} has {count} sentences")


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
        example = {"at": f"{path}/seq.in, row {number}", "tokens": re.findall(r"[^ \t]+", columns["seq.in"])}
        if "label" in names:
            example["intent"] = columns["label"].strip()
        if "seq.out" in names:
            example["slots"] = re.findall(r"[^ \t]+", columns["seq.out"])
        yield example


SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
READERS = {"csv": read_csv, "tsv": read_tsv, "jsonl": read_jsonl, "conll": read_conll, "seq": read_seq}


def find_format(path, labelled=True):
    """The reader's name for a file or folder, by its name and first rows. labelled: whether plain text will not do."""
    if path.is_dir():
        return "seq"
    if path.suffix.lower() in SUFFIXES:
        return SUFFIXES[path.suffix.lower()]
    if path.suffix.lower() in (".conll", ".bio", ".bioes", ".bmes"):
        return "conll"
    with open(path, "rb") as file:
        head = [row for row in file.read(8192).decode("utf-8", "ignore").lstrip("\ufeff").split("\n")[:-1] if row.strip()] or [""]
    if head[0].startswith("{"):
        return "jsonl"
    if all(re.search(r"[ \t](O|[BIESMLU]-\S+)\s*$", row) or row.startswith("-DOCSTART-") for row in head):
        return "conll"
    if not labelled:
        return "txt"
    if "\t" in head[0]:
        return "tsv"
    raise UserError(f"{path}: cannot tell its format; name it with --format {{{','.join(READERS)}}}")
