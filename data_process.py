"""Raw files in any accepted format -> one validated, split, human-readable folder that `main.py` trains on.

    python data_process.py --input FILE_OR_FOLDER --output_dir dataset/NAME

The folder holds train.jsonl, dev.jsonl, (test.jsonl) and labels.json. An example is one line:
`id`; `text`, or `tokens`; optional `text_pair`; and one key per task: a string, or one tag per token.
Edit here when another check, split or report is wanted; the formats themselves are in readers.py.
"""

import hashlib
import json
import os
import random
import re
import sys
from collections import Counter
from glob import glob
from pathlib import Path
from zlib import crc32

import regex

from config import DataConfig, UserError, is_tagging, parse_args
from readers import READERS, RESERVED, SUFFIXES, find_format, read_txt

PARTS = ("train", "dev", "test")
PART_NAMES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "dev": "dev",
    "valid": "dev",
    "val": "dev",
    "validation": "dev",
    "eval": "dev",
}


# ---- from files to examples with a part ---------------------------------------------------------------------------------


def find_sources(folder):
    """[(part or None, path)] of the data below a file or folder: parts are told by their names, train/dev(valid)/test."""
    if not folder.exists():
        raise UserError(f"{folder}: no such file or folder")
    if folder.is_file():
        return [(None, folder)]

    def data_in(directory):
        if (directory / "seq.in").exists():
            return [directory]
        return [
            path
            for path in sorted(directory.iterdir())
            if path.is_file()
            and not path.name.startswith((".", "README"))
            and path.suffix not in (".intent", ".py", ".md")
            and path.name != "labels.json"
        ]

    directories = [
        (PART_NAMES[path.name.lower()], path) for path in sorted(folder.iterdir()) if path.is_dir() and path.name.lower() in PART_NAMES
    ]
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
    names = [key for key in first if key not in RESERVED]
    tasks = {name: "tagging" if isinstance(first[name], list) else "classification" for name in names}
    for example in examples:
        at = example["at"]
        if list(example) != list(first) and set(example) != set(first):
            raise UserError(f"{at}: has {sorted(set(example) - {'at'})}, but {first['at']} has {sorted(set(first) - {'at'})}")
        check_text(example)
        check_characters(example)
        for name, kind in tasks.items():
            example[name] = check_label(example, name, kind)
        if "split" in example:
            part = PART_NAMES.get(str(example["split"]).lower())
            if part is None:
                raise UserError(f"{at}: split {example['split']!r} is none of train, dev, test")
            example["split"] = part
    return tasks


def check_label(example, name, kind):
    """The label as it is to be kept, or a UserError that says why it cannot be one."""
    at, label = example["at"], example[name]
    if not is_tagging(kind):
        if not isinstance(label, str):
            raise UserError(f"{at}: the label {name}={label!r} is not a string")
        if not label.strip():
            raise UserError(f"{at}: the label {name!r} is empty")
        return label.strip()
    if "tokens" not in example:
        raise UserError(f"{at}: {name!r} is a list; tags need `tokens`, a list as well")
    if not isinstance(label, list) or not all(isinstance(tag, str) and tag for tag in label):
        raise UserError(f"{at}: {name!r} must be a list of tags, strings that are not empty")
    if len(label) != len(example["tokens"]):
        raise UserError(f"{at}: {len(example['tokens'])} tokens, but {len(label)} tags in {name!r}")
    return label


def check_text(example, may_be_empty=False):
    """UserError unless the example has a text or tokens that can be used."""
    at, tokens, text = example["at"], example.get("tokens"), example.get("text")
    if "tokens" in example:
        if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
            raise UserError(f"{at}: `tokens` must be a list of one or more strings")
    elif not isinstance(text, str):
        raise UserError(f"{at}: the text {text!r} is not a string")
    elif not text.strip() and not may_be_empty:
        raise UserError(f"{at}: the text is empty")
    if not isinstance(example.get("text_pair", ""), str):
        raise UserError(f"{at}: text_pair must be a string")


def check_characters(example):
    """UserError for a lone surrogate: JSON can write one, UTF-8 and the tokenizers cannot."""
    encode(json.dumps(example, ensure_ascii=False), example["at"])


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
    return {part: rows for part, rows in parts.items() if rows}


def collect_labels(parts, tasks):
    """labels.json: each task's type and its labels in order, from the training part; of tags, what a token is."""
    info = {}
    for name, kind in tasks.items():
        seen = {label for e in parts["train"] for label in (e[name] if is_tagging(kind) else [e[name]])}
        labels = sorted(seen, key=lambda label: (label != "O", label))
        if kind == "classification" and len(labels) < 2:
            raise UserError(f"the task {name!r} has the single label {labels[0]!r} in train: there is nothing to learn")
        info[name] = {"type": kind, "labels": labels}
        if is_tagging(kind):
            info[name]["unit"] = token_unit(parts["train"])
    return info


def token_unit(examples):
    """How a raw text is to be cut into tokens like these: "word", "character", or "character+blank"."""
    tokens = {token for e in examples for token in e["tokens"]}
    if any(len(token) > 1 for token in tokens):
        return "word"
    return "character+blank" if any(token.isspace() for token in tokens) else "character"


# ---- text <-> tokens -----------------------------------------------------------------------------------------------------

HAN = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
LETTER = rf"[[\p{{L}}\p{{M}}\p{{N}}_]--{HAN}]"
WORD = rf"(?V1){HAN}|{LETTER}+(?:(?:[-'’.:/@&]|(?<=\d),(?=\d)){LETTER}+)*|[^\s]"


def split_text(text, unit):
    """[(token, start, end)] of a raw text: characters, or words with Chinese characters and punctuation apart ("7:30" stays whole).

    A text with nothing in it is one empty token, which the loader turns into [UNK].
    """
    pattern = {"word": WORD, "character": r"\S", "character+blank": r"(?s)."}[unit]
    found = regex.finditer(pattern, text)
    return [(m.group(), m.start(), m.end()) for m in found] or [("", 0, 0)]


def join_tokens(tokens, unit):
    """(text, [(start, end)]): tokens written as a text. Words are parted by a blank, but Chinese is not."""
    text, spans = "", []
    for token in tokens:
        if unit == "word" and text and token and not (regex.match(HAN, text[-1]) or regex.match(HAN, token[0])):
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
    print(
        f"{'part':<8}{'examples':>9}   length in {'tokens' if 'tokens' in parts['train'][0] else 'characters'}: "
        f"{'median':>6} {'95 %':>6} {'99 %':>6} {'most':>6}"
    )
    for part, rows in parts.items():
        lengths = sorted(len(e.get("tokens") or e["text"]) for e in rows)
        shown = [lengths[min(len(lengths) - 1, int(share * len(lengths)))] for share in (0.5, 0.95, 0.99, 1)]
        print(
            f"{part:<8}{len(rows):>9}   {'':<{18 if 'tokens' in rows[0] else 22}} {shown[0]:>6} {shown[1]:>6} {shown[2]:>6} {shown[3]:>6}"
        )
    odd = []
    for name, info in labels.items():
        flat = {
            part: Counter(x for e in rows for x in (e[name] if is_tagging(info["type"]) else [e[name]])) for part, rows in parts.items()
        }
        common = ", ".join(f"{label} {count / flat['train'].total():.0%}" for label, count in flat["train"].most_common(3))
        print(f"task {name}: {info['type']}, {len(info['labels'])} labels ({common}{', …' if len(info['labels']) > 3 else ''})")
        once = [label for label, count in flat["train"].items() if count == 1]
        if once:
            odd.append(f"{name}: {len(once)} labels occur only once in train: {shorten(once)}")
        for part in ("dev", "test"):
            unseen = {label: count for label, count in flat.get(part, {}).items() if label not in flat["train"]}
            if unseen:
                uses = f"their {sum(unseen.values())} uses will count as wrong"
                odd.append(f"{name}: {len(unseen)} labels of {part} never occur in train; {uses}: {shorten(unseen)}")
        if is_tagging(info["type"]):
            bad = {part: sum(illegal_tags(e[name]) for e in rows) for part, rows in parts.items()}
            if any(bad.values()):
                odd.append(f"{name}: tags that continue no entity (an I- after O, say): {bad}")
    repeated = Counter(e["id"] for rows in parts.values() for e in rows)
    if len(repeated) < repeated.total():
        odd.append(f"{sum(count > 1 for count in repeated.values())} ids are used more than once")
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
    files = {f"{part}.jsonl": (json.dumps(e, ensure_ascii=False) + "\n" for e in rows) for part, rows in parts.items()}
    files["labels.json"] = [json.dumps(labels, ensure_ascii=False, indent=1) + "\n"]
    for name, rows in files.items():
        with open(folder / f".{name}.tmp", "w", encoding="utf-8", newline="\n") as file:
            file.writelines(rows)
    (folder / "labels.json").unlink(missing_ok=True)
    for name in files:
        os.replace(folder / f".{name}.tmp", folder / name)
    for part in set(PARTS) - set(parts):
        (folder / f"{part}.jsonl").unlink(missing_ok=True)


def require_own_folder(folder, source):
    """UserError if the output folder holds, or is, anything but an earlier processed folder."""
    inside = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    ours = {"labels.json", ".cache", *(f"{part}.jsonl" for part in PARTS)}
    strange = sorted(name for name in inside - ours if not (name.startswith(".") and name.endswith(".tmp")))
    if not strange and "labels.json" not in inside:
        strange = sorted(inside & {f"{part}.jsonl" for part in PARTS})
    if folder.is_file() or strange:
        raise UserError(f"--output_dir {folder}: holds other things ({shorten(strange) or 'it is a file'}); choose an empty or new folder")
    if folder.resolve() in (source.resolve(), source.resolve().parent):
        raise UserError(f"--output_dir {folder}: is where the input lies; choose another folder")


def process(config):
    """Raw input -> processed folder, as `config` (a DataConfig) says. Nothing is written unless all of it is good."""
    folder = Path(config.output_dir)
    require_own_folder(folder, Path(config.input))
    examples = read_examples(config)
    tasks = check_examples(examples)
    for number, example in enumerate(examples):
        del example["at"]
        examples[number] = {"id": str(example.pop("id", number)), **example}
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
        raise UserError(
            f"{data_path}: no labels.json in it; make the folder with: python data_process.py --input RAW --output_dir {data_path}"
        )
    try:
        tasks = json.loads(path.read_text(encoding="utf-8"))
        known = all(isinstance(task["type"], str) and len(task["labels"]) > 0 for task in tasks.values())
    except (ValueError, TypeError, KeyError, AttributeError):
        known = False
    if not known or not tasks:
        raise UserError(f'{path}: must be {{"task": {{"type": "classification" or "tagging", "labels": [...]}}, …}}')
    for task in tasks.values():
        if is_tagging(task["type"]):
            task.setdefault("unit", "word")
    return tasks


def check_row(example, tasks, at, needs_labels=True):
    """UserError unless a row of a processed file, or one to predict on, has what these tasks need."""
    if not isinstance(example, dict) or not ("text" in example or "tokens" in example):
        raise UserError(f"{at}: must be a JSON object with `text` or `tokens`")
    check_text({"at": at, **example}, may_be_empty=not needs_labels)
    for name, task in tasks.items():
        if needs_labels and name not in example:
            raise UserError(f"{at}: has no label for the task {name!r}")
        if name in example and needs_labels:
            check_label({"at": at, **example}, name, task["type"])
        if is_tagging(task["type"]) and "tokens" not in example:
            raise UserError(f"{at}: has no `tokens`, which the task {name!r} tags")


def part_of(data_path, part):
    path = Path(data_path) / f"{part}.jsonl"
    if not path.exists():
        raise UserError(f"{path}: no such part; name the texts to predict on with --predict_file")
    return path


def check_same_labels(data_path, tasks):
    """UserError if a data folder's tasks and labels are not those that a model was trained with."""
    here = load_labels(data_path)
    for name in here.keys() | tasks.keys():
        theirs, ours = (set(side.get(name, {}).get("labels", ())) for side in (here, tasks))
        if theirs != ours:
            raise UserError(
                f"{data_path}: its labels of {name!r} are not the model's: only in the data: {shorten(theirs - ours) or 'none'}; "
                f"only in the model: {shorten(ours - theirs) or 'none'}"
            )


def read_texts(path, config):
    """Examples to predict on, without labels: a text a row (.txt), or the text columns of CSV, TSV or JSONL."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        examples = list(READERS[SUFFIXES[suffix]](path, config))
    elif suffix in (".txt", ""):
        examples = list(read_txt(path, config))
    else:
        raise UserError(f"{path}: --predict_file must end in .txt, {', '.join(SUFFIXES)}")
    if not examples:
        raise UserError(f"{path}: empty; there is nothing to predict")
    keys = [[key for key in ("text", "tokens", "text_pair") if key in example] for example in examples]
    for number, example in enumerate(examples):
        if keys[number] != keys[0]:
            raise UserError(f"{example['at']}: has {' and '.join(keys[number])}, but the first row has {' and '.join(keys[0])}")
        check_row(example, {}, example["at"], needs_labels=False)
        check_characters(example)
    return [{"id": str(e.get("id", number)), **{key: e[key] for key in keys[0]}} for number, e in enumerate(examples)]


def read_corpus(config):
    """(train, held out, fingerprint of the files); the first two begin reading a CorpusConfig's texts anew, one at a time.

    A text is a string, or a list of words where the data has `tokens`. Parts are told by the files' names: train to learn
    from, dev as held out; test is never read. Without a dev part a text is held out by its hash, so equal texts stay together.
    """
    pattern = not Path(config.input).exists() and any(sign in config.input for sign in "*?[")
    sources = [(None, Path(name)) for name in sorted(glob(config.input))] if pattern else find_sources(Path(config.input))
    if not sources:
        raise UserError(f"{config.input}: no file has such a name")
    has_dev, limit = any(part == "dev" for part, _ in sources), config.held_out_ratio * 2**32

    def texts(held_out):
        for part, path in sources:
            if part == "test" or (has_dev and held_out != (part == "dev")):
                continue
            name = config.format if config.format != "auto" else find_format(path, labelled=False)
            for example in (read_txt if name == "txt" else READERS[name])(path, config):
                check_text(example, may_be_empty=True)
                for text in (example.get("tokens") or example["text"], example.get("text_pair", "")):
                    whole = text if isinstance(text, str) else " ".join(text)
                    if not whole.isspace() and whole and (has_dev or held_out == (crc32(encode(whole, example["at"])) < limit)):
                        yield text

    for held_out, side in ((False, "to learn from"), (True, "to hold out")):
        if next(texts(held_out), None) is None:
            raise UserError(f"{config.input}: holds no text {side}; empty rows do not count")
    digest = hashlib.sha256()
    for _, path in sources:
        for one in [path] if path.is_file() else sorted(path.iterdir()):
            with open(one, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return lambda: texts(False), lambda: texts(True), digest.hexdigest()


def encode(text, at):
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{at}: holds half a character (a lone surrogate, \\ud800 to \\udfff); remove it") from None


def require_free_folder(folder):
    """UserError if a folder to write has something in it already, or cannot be made."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"--output_dir {folder}: is not empty; choose a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {folder}: cannot be made ({error.strerror})") from None


if __name__ == "__main__":
    try:
        process(parse_args(DataConfig))
    except (UserError, OSError) as mistake:
        sys.exit(print(f"error: {mistake}", file=sys.stderr) or 2)
