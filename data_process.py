"""Raw files in any accepted format -> one validated, split, human-readable folder that `main.py` trains on.

    python data_process.py --input FILE_OR_FOLDER --output_dir dataset/NAME

The folder holds train.jsonl, dev.jsonl, (test.jsonl) and labels.json. An example is one line:
`id`; `text`, or `tokens`; optional `text_pair`; and one key per task: a string, or one tag per token.
Edit here when your data has a format of its own: write one reader (a generator of examples) and name it in READERS.
"""

import csv
import io
import json
import os
import random
import re
import sys
from collections import Counter
from pathlib import Path

from config import DataConfig, UserError, parse_args

PARTS = ("train", "dev", "test")
PART_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test",
              "dev": "dev", "valid": "dev", "val": "dev", "validation": "dev", "eval": "dev"}
TEXT_NAMES = ("text", "sentence", "content", "sentence1", "text_a", "premise", "question", "review", "query", "title", "文本", "内容")
PAIR_NAMES = ("text_pair", "sentence2", "text_b", "hypothesis", "question2")
LABEL_NAMES = ("label", "labels", "intent", "class", "category", "target", "slots", "tags", "ner", "ner_tags", "标签", "类别")
NOT_TASKS = ("id", "text", "tokens", "text_pair", "split")


# ---- readers: path, options -> examples; an example's "at" says where it came from, for messages ----------------------

def read_text(path, encoding="auto"):
    """The whole file as a string, without a byte order mark. UserError names the row that does not decode."""
    raw = Path(path).read_bytes()
    if encoding == "auto":
        encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return raw.decode(encoding)
    except LookupError:
        raise UserError(f"--encoding {encoding} is not known to Python; try utf-8, gb18030, utf-16 or latin-1") from None
    except UnicodeDecodeError as error:
        row = raw[:error.start].count(b"\n") + 1
        raise UserError(f"{path}, row {row}: not {error.encoding}; name the file's encoding, for example --encoding gb18030") from None


def read_rows(path, encoding="auto"):
    """(row number from 1, row) for each row. Only a line feed ends a row: U+2028, U+0085 and kin stay inside texts."""
    rows = read_text(path, encoding).split("\n")
    if rows[-1] == "":
        rows.pop()
    return ((number, row.removesuffix("\r")) for number, row in enumerate(rows, 1))


def read_csv(path, options, delimiter=","):
    """CSV with a header; quotes as RFC 4180 has them."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(read_text(path, options.encoding), newline=""), delimiter=delimiter, strict=True)
    row = 1
    try:
        header, table = next(reader, []), []
        for row, cells in iter(lambda: (reader.line_num + 1, next(reader, None)), None):
            if cells is None:
                break
            table.append((row, cells))
    except csv.Error as error:
        raise UserError(f"{path}, row {row}: {error}; look for a quote that is never closed") from None
    return columns_to_examples(path, header, table, options)


def read_tsv(path, options):
    """TSV with a header; a quote is a character like any other, so a stray one swallows nothing."""
    table = [(number, row.split("\t")) for number, row in read_rows(path, options.encoding)]
    return columns_to_examples(path, table[0][1] if table else [], table[1:], options)


def columns_to_examples(path, header, table, options):
    """Cells to examples. Values stay strings: 'NA', 'null' and '007' are what they look like."""
    header = [name.strip() for name in header]
    listed = f"its columns are: {', '.join(header)}"
    for name in header:
        if header.count(name) > 1:
            raise UserError(f"{path}, row 1: two columns are called {name!r}; {listed}")
    text, pair, labels = find_columns(path, header, options, listed)
    known = {text: "text", pair: "text_pair", "id": "id", "split": "split"} | {name: name for name in labels}
    for number, cells in table:
        if not any(cells):
            continue
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
        found = wanted or [name for name in usual if name in names][:1 if flag != "label_column" else None]
        if needed and not found:
            raise UserError(f"{path}: cannot tell which column is meant; add --{flag}; {listed}")
        return found

    text = find("text_column", [options.text_column] if options.text_column else [], ("tokens", *TEXT_NAMES))[0]
    pair = find("text_pair_column", [options.text_pair_column] if options.text_pair_column else [], PAIR_NAMES, False)
    wanted = getattr(options, "label_column", None)
    if wanted is None:                                          # reading texts to predict on: there are no labels
        return text, pair[0] if pair else None, []
    labels = find("label_column", [name.strip() for name in wanted.split(",") if name.strip()], LABEL_NAMES)
    if set(labels) & {text, *pair}:
        raise UserError(f"{path}: --label_column names a column of text; {listed}")
    return text, pair[0] if pair else None, labels


def read_jsonl(path, options):
    """One JSON object a row, with `text` or `tokens`, the labels, and whatever else (left out)."""
    columns, seen = None, []
    for number, row in read_rows(path, options.encoding):
        if not row.strip():
            continue
        at = f"{path}, row {number}"
        try:
            values = json.loads(row)
        except json.JSONDecodeError as error:
            raise UserError(f"{at}: not JSON ({error.msg} at column {error.colno})") from None
        if not isinstance(values, dict):
            raise UserError(f"{at}: not a JSON object")
        if columns is None:
            seen = list(values)
            columns = find_columns(path, seen, options, f"its keys are: {', '.join(seen)}")
        text, pair, labels = columns
        example = {"at": at} | {key: values[key] for key in ("id", "split") if key in values}
        for key, name in ((text, "tokens" if isinstance(values.get(text), list) else "text"), (pair, "text_pair"), *((name, name) for name in labels)):
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
    for number, row in (*read_rows(path, options.encoding), (0, "")):
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
            yield {"at": f"{path}, row {start}", "tokens": tokens} | ({"intent": intents[count]} if intents is not None else {}) | {"slots": tags}
            tokens, tags, count = [], [], count + 1
    if intents is not None and count != len(intents):
        raise UserError(f"{path}.intent: {len(intents)} rows, but {path} has {count} sentences")


def read_seq(path, options):
    """A folder of seq.in, seq.out (words and their tags, apart by blanks) and label (the intent), a sentence a row."""
    names = [name for name in ("seq.in", "seq.out", "label") if (Path(path) / name).exists()]
    if len(names) < 2 or names[0] != "seq.in":
        raise UserError(f"{path}: needs seq.in, and seq.out or label or both")
    columns = {name: list(read_rows(Path(path) / name, options.encoding)) for name in names}
    for name in names[1:]:
        if len(columns[name]) != len(columns["seq.in"]):
            raise UserError(f"{path}/{name}: {len(columns[name])} rows, but seq.in has {len(columns['seq.in'])}")
    for index, (number, row) in enumerate(columns["seq.in"]):
        example = {"at": f"{path}/seq.in, row {number}", "tokens": re.findall(r"[^ \t]+", row)}
        if "label" in names:
            example["intent"] = columns["label"][index][1].strip()
        if "seq.out" in names:
            example["slots"] = re.findall(r"[^ \t]+", columns["seq.out"][index][1])
        yield example


READERS = {"csv": read_csv, "tsv": read_tsv, "jsonl": read_jsonl, "conll": read_conll, "seq": read_seq}


# ---- from files to examples with a part ---------------------------------------------------------------------------------

def find_format(path):
    """The reader's name for a file or folder, by its name and first rows."""
    if path.is_dir():
        return "seq"
    if path.suffix in (".csv", ".tsv", ".jsonl", ".ndjson"):
        return path.suffix[1:].replace("nd", "")
    with open(path, "rb") as file:
        head = [row for row in file.read(8192).decode("utf-8", "ignore").lstrip("\ufeff").split("\n")[:-1] if row.strip()] or [""]
    if head[0].startswith("{"):
        return "jsonl"
    if all(re.search(r"[ \t](O|[BIESMLU]-\S+)\s*$", row) or row.startswith("-DOCSTART-") for row in head):
        return "conll"
    if "\t" in head[0]:
        return "tsv"
    raise UserError(f"{path}: cannot tell its format; name it with --format {{{','.join(READERS)}}}")


def find_sources(folder):
    """[(part or None, path)] of the data below a file or folder: parts are told by their names, train/dev(valid)/test."""
    if not folder.exists():
        raise UserError(f"{folder}: no such file or folder")
    if folder.is_file():
        return [(None, folder)]

    def data_in(directory):
        if (directory / "seq.in").exists():
            return [directory]
        return [path for path in sorted(directory.iterdir()) if path.is_file() and not path.name.startswith((".", "README"))
                and path.suffix not in (".intent", ".py", ".md") and path.name != "labels.json"]

    directories = [(PART_NAMES[path.name.lower()], path) for path in sorted(folder.iterdir()) if path.is_dir() and path.name.lower() in PART_NAMES]
    if directories:
        sources = [(part, path) for part, directory in directories for path in data_in(directory)]
    else:
        sources = []
        for path in data_in(folder):
            words = [PART_NAMES[word] for word in re.split(r"[._\-]", path.name.lower()) if word in PART_NAMES]
            sources.append((words[0] if words else None, path))
    if not sources:
        raise UserError(f"{folder}: no data files in it")
    parts = {part for part, _ in sources}
    if None in parts and len(parts) > 1:
        stray = next(path for part, path in sources if part is None)
        raise UserError(f"{stray}: belongs to none of train, dev (valid), test, as its neighbours do; rename or remove it")
    return sorted(sources, key=lambda source: PARTS.index(source[0] or "train"))


def read_examples(config):
    """All examples of the input, each with "at" and, if the data has parts, "split". UserError on the first bad row."""
    examples = []
    for part, path in find_sources(Path(config.input)):
        name = config.format if config.format != "auto" else find_format(path)
        found = list(READERS[name](path, config))
        if not found:
            raise UserError(f"{path}: no examples in it")
        for example in found:
            if part:
                example["split"] = part
            examples.append(example)
    return examples


# ---- checks, labels, split ----------------------------------------------------------------------------------------------

def check_examples(examples):
    """Refuses rows that cannot be trained on, and returns the tasks: {name: "classification" | "tagging"}."""
    first = examples[0]
    names = [key for key in first if key not in (*NOT_TASKS, "at")]
    tasks = {name: "tagging" if isinstance(first[name], list) else "classification" for name in names}
    for name in names:
        if "." in name or "=" in name or "," in name:
            raise UserError(f"{first['at']}: a task cannot be called {name!r} (no '.', '=' or ','); rename the column")
    for example in examples:
        at = example["at"]
        if list(example) != list(first) and set(example) != set(first):
            raise UserError(f"{at}: has {sorted(set(example) - {'at'})}, but {first['at']} has {sorted(set(first) - {'at'})}")
        check_text(example)
        for name, kind in tasks.items():
            label = example[name]
            if kind == "classification":
                if not isinstance(label, str):
                    raise UserError(f"{at}: the label {name}={label!r} is not a string")
                if not label.strip():
                    raise UserError(f"{at}: the label {name!r} is empty")
                example[name] = label.strip()
            elif "tokens" not in example:
                raise UserError(f"{at}: {name!r} is a list; tags need `tokens`, a list as well")
            elif not isinstance(label, list) or len(label) != len(example["tokens"]):
                raise UserError(f"{at}: {len(example['tokens'])} tokens, but {len(label)} tags in {name!r}")
            elif not all(isinstance(tag, str) and tag for tag in label):
                raise UserError(f"{at}: every tag in {name!r} must be a string that is not empty")
        if "split" in example:
            part = PART_NAMES.get(str(example["split"]).lower())
            if part is None:
                raise UserError(f"{at}: split {example['split']!r} is none of train, dev, test")
            example["split"] = part
    return tasks


def check_text(example):
    at = example["at"]
    if "tokens" in example:
        tokens = example["tokens"]
        if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
            raise UserError(f"{at}: `tokens` must be a list of one or more strings")
    elif not isinstance(example["text"], str) or not example["text"].strip():
        raise UserError(f"{at}: the text is empty")
    if not isinstance(example.get("text_pair", ""), str):
        raise UserError(f"{at}: text_pair must be a string")


def split_examples(examples, tasks, config):
    """{part: examples}: the given split where there is one, else a seeded one, stratified by the first classification task."""
    from sklearn.model_selection import train_test_split

    parts = {part: [e for e in examples if e.get("split") == part] for part in PARTS}
    stratify_by = next((name for name, kind in tasks.items() if kind == "classification"), None)

    def carve(pool, size, part):
        """Moves `size` examples of the pool to a part; classes too small to share stay in the pool."""
        counts = Counter(e[stratify_by] for e in pool) if stratify_by else {}
        alone = [e for e in pool if stratify_by and counts[e[stratify_by]] < 2]
        shared = [e for e in pool if not (stratify_by and counts[e[stratify_by]] < 2)]
        size = max(1, round(size))
        if size >= len(shared):
            raise UserError(f"{config.input}: {len(pool)} examples are too few to split; give train, dev and test yourself")
        keys = [e[stratify_by] for e in shared] if stratify_by else None
        if keys and min(size, len(shared) - size) < len(set(keys)):
            keys = None
        kept, taken = train_test_split(shared, test_size=size, random_state=config.random_seed, stratify=keys)
        how = f"stratified by {stratify_by!r}" if keys else "at random"
        print(f"no {part} part given: {len(taken)} examples set aside {how}, seed {config.random_seed}")
        return kept + alone, taken

    if not any(parts.values()):
        parts["train"] = list(examples)
        if config.test_ratio:
            parts["train"], parts["test"] = carve(parts["train"], config.test_ratio * len(examples), "test")
    if not parts["train"]:
        raise UserError(f"{config.input}: parts {[part for part in PARTS if parts[part]]}, but none to train on")
    if not parts["dev"]:
        parts["train"], parts["dev"] = carve(parts["train"], config.dev_ratio * len(examples), "dev")
        parts["train"].sort(key=lambda e: e["id"])
    return {part: rows for part, rows in parts.items() if rows}


def collect_labels(parts, tasks):
    """labels.json: each task's type and its labels in order, from the training part; of tags, what a token is."""
    info = {}
    for name, kind in tasks.items():
        seen = {label for e in parts["train"] for label in (e[name] if kind == "tagging" else [e[name]])}
        labels = sorted(seen, key=lambda label: (label != "O", label))
        if kind == "classification" and len(labels) < 2:
            raise UserError(f"the task {name!r} has the single label {labels[0]!r} in train: there is nothing to learn")
        info[name] = {"type": kind, "labels": labels}
        if kind == "tagging":
            info[name]["unit"] = token_unit(parts["train"])
    return info


def token_unit(examples):
    """How a raw text is to be cut into tokens like these: "word", "character", or "character+blank"."""
    tokens = {token for e in examples for token in e["tokens"]}
    if any(len(token) > 1 for token in tokens):
        return "word"
    return "character+blank" if any(token.isspace() for token in tokens) else "character"


# ---- text <-> tokens -----------------------------------------------------------------------------------------------------

CJK = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3040-\u30ff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{CJK}]|[^\W{CJK}]+(?:[^\w\s]+[^\W{CJK}]+)*|[^\w\s]")


def split_text(text, unit):
    """[(token, start, end)] of a raw text: characters, or words with Chinese characters and outer punctuation apart.

    A text with nothing in it is one empty token, which the loader turns into [UNK].
    """
    found = WORD.finditer(text) if unit == "word" else re.finditer(r"(?s)." if unit == "character+blank" else r"\S", text)
    return [(m.group(), m.start(), m.end()) for m in found] or [("", 0, 0)]


def join_tokens(tokens, unit):
    """(text, [(start, end)]): tokens written as a text. Words are parted by a blank, but Chinese is not."""
    text, spans = "", []
    for token in tokens:
        if unit == "word" and text and token and not (re.match(f"[{CJK}]", text[-1]) or re.match(f"[{CJK}]", token[0])):
            text += " "
        spans.append((len(text), len(text) + len(token)))
        text += token
    return text, spans


# ---- report and output ---------------------------------------------------------------------------------------------------

def illegal_tags(tags):
    """How many tags break BIO or BIOES: an I- or E- (or M-) that continues nothing of its own type."""
    before, bad = "O", 0
    for tag in tags:
        if tag[:2] in ("I-", "E-", "M-") and (before[:2] not in ("B-", "I-", "M-") or before[2:] != tag[2:]):
            bad += 1
        before = tag
    return bad


def report(parts, labels):
    """Prints what is in the data, and what is odd about it."""
    print(f"{'part':<8}{'examples':>9}   length in {'tokens' if 'tokens' in parts['train'][0] else 'characters'}: "
          f"{'median':>6} {'95 %':>6} {'99 %':>6} {'most':>6}")
    for part, rows in parts.items():
        lengths = sorted(len(e.get("tokens") or e["text"]) for e in rows)
        shown = [lengths[min(len(lengths) - 1, int(share * len(lengths)))] for share in (0.5, 0.95, 0.99, 1)]
        print(f"{part:<8}{len(rows):>9}   {'':<{18 if 'tokens' in rows[0] else 22}} {shown[0]:>6} {shown[1]:>6} {shown[2]:>6} {shown[3]:>6}")
    odd = []
    for name, info in labels.items():
        flat = {part: Counter(x for e in rows for x in (e[name] if info["type"] == "tagging" else [e[name]])) for part, rows in parts.items()}
        common = ", ".join(f"{label} {count / flat['train'].total():.0%}" for label, count in flat["train"].most_common(3))
        print(f"task {name}: {info['type']}, {len(info['labels'])} labels ({common}{', …' if len(info['labels']) > 3 else ''})")
        once = [label for label, count in flat["train"].items() if count == 1]
        if once:
            odd.append(f"{name}: {len(once)} labels occur only once in train: {shorten(once)}")
        for part in ("dev", "test"):
            unseen = {label: count for label, count in flat.get(part, {}).items() if label not in flat["train"]}
            if unseen:
                odd.append(f"{name}: {len(unseen)} labels of {part} never occur in train; their {sum(unseen.values())} uses will count as wrong: {shorten(unseen)}")
        if info["type"] == "tagging":
            bad = {part: sum(illegal_tags(e[name]) for e in rows) for part, rows in parts.items()}
            if any(bad.values()):
                odd.append(f"{name}: tags that continue no entity (an I- after O, say): {bad}")
    texts = {part: Counter(text_key(e) for e in rows) for part, rows in parts.items()}
    for part, counts in texts.items():
        if len(counts) < len(parts[part]):
            odd.append(f"{part}: {len(parts[part]) - len(counts)} examples repeat the text of another")
        shared = counts.keys() & texts["train"].keys() if part != "train" else ()
        if shared:
            odd.append(f"{part}: {len(shared)} texts occur in train too")
    print("\n".join(["odd:"] + [f"  - {line}" for line in odd]) if odd else "nothing odd found")


def text_key(example):
    return (*example.get("tokens", ()), example.get("text"), example.get("text_pair"))


def shorten(labels, most=8):
    names = sorted(labels)
    return ", ".join(names[:most]) + (f", … ({len(names) - most} more)" if len(names) > most else "")


def write_folder(folder, parts, labels):
    """Writes the processed folder. Each file appears whole or not at all; labels.json comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.json").unlink(missing_ok=True)
    files = {f"{part}.jsonl": (json.dumps(e, ensure_ascii=False) + "\n" for e in rows) for part, rows in parts.items()}
    files["labels.json"] = [json.dumps(labels, ensure_ascii=False, indent=1) + "\n"]
    for name, rows in files.items():
        with open(folder / f".{name}.tmp", "w", encoding="utf-8", newline="\n") as file:
            file.writelines(rows)
        os.replace(folder / f".{name}.tmp", folder / name)
    for part in set(PARTS) - set(parts):
        (folder / f"{part}.jsonl").unlink(missing_ok=True)


def process(config):
    """Raw input -> processed folder, as `config` (a DataConfig) says. Nothing is written unless all of it is good."""
    folder = Path(config.output_dir)
    strange = sorted(p.name for p in folder.iterdir() if p.name not in ("labels.json", ".cache", *(f"{part}.jsonl" for part in PARTS))) if folder.is_dir() else []
    if folder.is_file() or strange:
        raise UserError(f"--output_dir {folder}: holds other things ({shorten(strange) or 'it is a file'}); choose an empty or new folder")
    examples = read_examples(config)
    tasks = check_examples(examples)
    used = Counter(str(e.get("id")) for e in examples if "id" in e)
    for number, example in enumerate(examples):
        at = example.pop("at")
        identity = str(example.pop("id", number))
        if used[identity] > 1:
            raise UserError(f"{at}: the id {identity!r} is used {used[identity]} times")
        examples[number] = {"id": identity, **example}
    random_order = random.Random(config.random_seed)
    parts = split_examples(examples, tasks, config)
    if not any("split" in e for e in examples):
        for rows in parts.values():
            random_order.shuffle(rows)
    for example in examples:
        example.pop("split", None)
    labels = collect_labels(parts, tasks)
    write_folder(folder, parts, labels)
    report(parts, labels)
    print(f"wrote {folder}: " + ", ".join(f"{len(rows)} {part}" for part, rows in parts.items()))


# ---- reading the processed folder ----------------------------------------------------------------------------------------

def load_labels(data_path):
    """labels.json of a processed folder: {task: {"type", "labels", …}}."""
    path = Path(data_path) / "labels.json"
    if not path.exists():
        raise UserError(f"{data_path}: no labels.json in it; make the folder with: python data_process.py --input RAW --output_dir {data_path}")
    return json.loads(path.read_text(encoding="utf-8"))


def check_same_labels(data_path, tasks):
    """UserError if a data folder's tasks and labels are not those that a model was trained with."""
    here = load_labels(data_path)
    for name in here.keys() | tasks.keys():
        theirs, ours = (set(side.get(name, {}).get("labels", ())) for side in (here, tasks))
        if theirs != ours:
            raise UserError(f"{data_path}: its labels of {name!r} are not the model's: only in the data: {shorten(theirs - ours) or 'none'}; "
                            f"only in the model: {shorten(ours - theirs) or 'none'}")


def read_texts(path, config):
    """Examples to predict on, without labels: a text a row (.txt), or the text columns of CSV, TSV or JSONL."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix in (".csv", ".tsv", ".jsonl"):
        examples = list(READERS[path.suffix[1:]](path, config))
    else:
        examples = [{"at": f"{path}, row {number}", "text": row} for number, row in read_rows(path)]
    if not examples:
        raise UserError(f"{path}: empty; there is nothing to predict")
    return [{"id": str(e.pop("id", number))} | {key: value for key, value in e.items() if key in ("text", "tokens", "text_pair")}
            for number, e in enumerate(examples)]


if __name__ == "__main__":
    try:
        process(parse_args(DataConfig))
    except (UserError, OSError) as mistake:
        sys.exit(print(f"error: {mistake}", file=sys.stderr) or 2)
