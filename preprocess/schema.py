"""The processed folder: reads, checks and writes its rows and labels.

labels.json is {task: {"type", "labels", "counts", …}}; train.jsonl, dev.jsonl and test.jsonl have one example per line
(see data_process.py). Training and prediction read nothing else of the data.
"""

import json
import re
from bisect import bisect_right
from collections import Counter
from itertools import accumulate
from pathlib import Path

from engine.errors import UserError
from engine.run.command_line import first_line
from engine.run.files import digest, require_file
from engine.schema import parse_json
from engine.task.extras import extras_of, require_extras
from engine.task.tags import kind_of, needs_words, read_tasks
from engine.task.task import tasks_to_json
from engine.task.text import text_of
from preprocess.labels import kinds as labels

PARTS = ("train", "dev", "test")
TEXT_KEYS = ("text", "tokens", "text_pair")


def check_text(example, may_be_empty=False):
    """Raises UserError unless the example has a usable text or tokens."""
    where, tokens, text = example["_where"], example.get("tokens"), example.get("text")
    if "tokens" in example:
        if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
            raise UserError(f"{where}: `tokens` must be a list of one or more strings")
    elif not isinstance(text, str):
        raise UserError(f"{where}: the text {text!r} is not a string")
    elif not text.strip() and not may_be_empty:
        raise UserError(f"{where}: the text is empty")
    if not isinstance(example.get("text_pair", ""), str):
        raise UserError(f"{where}: text_pair must be a string")


def check_characters(example):
    """Raises UserError for a lone surrogate, which JSON can store, but UTF-8 and tokenizers cannot."""
    for value in example.values():
        if isinstance(value, list) and all(map(labels.is_string, value)):
            value = "".join(value)
        elif not isinstance(value, str):
            value = json.dumps(value, ensure_ascii=False)
        if not value.isascii():
            encode(value, example["_where"])


def load_labels(data_path):
    """labels.json of a processed folder: {task: {"type", "labels", …}}."""
    path = Path(data_path) / "labels.json"
    if not path.exists():
        command = f"python data_process.py --input RAW --output_dir {data_path}"
        raise UserError(f"{data_path}: contains no labels.json; make the folder with: {command}")
    for part in PARTS:
        require_file(path.with_name(f"{part}.jsonl"))
    return read_tasks(path)


def data_and_model(data_path, model_path):
    """What a run depends on in addition to its options: {"data": …, "model": …}, digests of both; for a hub model its
    name."""
    load_labels(data_path)
    data, model = Path(data_path), Path(model_path)
    name = "/".join(model.parts[-2:]) or "from scratch"
    if model_path and model.is_dir():
        name += f" {digest(model, sorted(path.name for path in model.iterdir()))}"
    return {"data": digest(data, ["labels.json", *(f"{part}.jsonl" for part in PARTS)]), "model": name}


def check_row(example, tasks, where, needs_labels=True):
    """Raises UserError unless a row of a processed file, or one to predict on, has what these tasks need. A label may
    be missing (null)."""
    if not isinstance(example, dict) or not ("text" in example or "tokens" in example):
        raise UserError(f"{where}: must be a JSON object with `text` or `tokens`")
    check_text({"_where": where, **example}, may_be_empty=not needs_labels)
    if extras := extras_of(tasks):
        require_extras(example, extras, where)
    for name, task in tasks.items():
        if needs_labels:
            if name not in example:
                raise UserError(f"{where}: has no label for the task {name!r}; use null for a missing label")
            labels.check_label({"_where": where, **example}, name, kind_of(task))
        if needs_words(kind_of(task)) and "tokens" not in example:
            raise UserError(f"{where}: has no `tokens`, which the task {name!r} needs")


def require_known_labels(example: dict, known: dict[str, set], where: str) -> None:
    """Raises UserError for a label that labels.json lacks: training would ignore it. known: {task: its labels}"""
    for name, labels_of_task in known.items():
        label = example[name]
        items = label if isinstance(label, list) else [] if label is None else [label]
        for item in items:
            item = item[2] if isinstance(item, list) else item  # a span is [first token, last token, type]
            if item not in labels_of_task:
                raise UserError(
                    f"{where}: the label {item!r} of {name!r} is not in labels.json, so nothing would be learned from "
                    "it; correct it, or make the folder again with data_process.py"
                )


def read_processed(path, tasks, start=0, stop=None, strict=False):
    """Yields (where, example) of a processed .jsonl between two byte positions, each checked.

    strict: also check that labels.json has all labels, which is required for training; dev and test may have others.
    """
    known = {name: set(task["labels"]) for name, task in tasks.items() if kind_of(task) != "regression"}
    with open(path, "rb") as file:
        file.seek(start)
        for number, line in enumerate(file, 1):
            where = f"{path}, row {number}" + (f" after byte {start}" if start else "")
            try:
                example = parse_json(line.decode())
            except (ValueError, RecursionError) as error:
                made = "make the folder again with data_process.py"
                raise UserError(f"{where}: not JSON ({first_line(error)}); {made}") from None
            check_row(example, tasks, where)
            if b"\\ud" in line.lower() or b"\xed" in line:  # either may be half a character
                check_characters({"_where": where, **example})
            if strict:
                require_known_labels(example, known, where)
            example.setdefault("id", str(number - 1))
            yield where, example
            if stop is not None and file.tell() >= stop:
                return


def training_texts(path):
    """The texts of a processed file, one at a time, to train a tokenizer on."""
    for _, example in read_processed(path, {}):
        yield text_of(example, with_pair=True)


def part_of(data_path, part):
    path = Path(data_path) / f"{part}.jsonl"
    if not path.exists():
        raise UserError(f"{path}: no such part; name the texts to predict on with --predict_file")
    return path


def check_same_labels(data_path, tasks):
    """Raises UserError if a data folder's tasks and labels differ from those that a model was trained with."""
    here = load_labels(data_path)
    for name in here.keys() | tasks.keys():
        theirs, ours = (set(side.get(name, {}).get("labels", ())) for side in (here, tasks))
        if theirs != ours:
            added, lacking = (shorten(names) or "none" for names in (theirs - ours, ours - theirs))
            only = f"only in the data: {added}; only in the model: {lacking}"
            raise UserError(f"{data_path}: its labels of {name!r} differ from the model's: {only}")


def length_of(example):
    """The length of an example in tokens, or in characters if it has no tokens."""
    return len(example.get("tokens") or example["text"])


def shorten(names, most=8):
    names = sorted(names)
    return ", ".join(names[:most]) + (f", … ({len(names) - most} more)" if len(names) > most else "")


def encode(text, where):
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: has half a character (a lone surrogate, \\ud800 to \\udfff); remove it") from None


LINE = json.JSONEncoder(ensure_ascii=False).encode
HIDDEN = ("_where", "split", "group")  # keys that are not written


def encode_rows(examples):
    """The lines of a processed file for these examples, as bytes."""
    return "".join([LINE({k: e[k] for k in e if k not in HIDDEN}) + "\n" for e in examples]).encode()


def write_labels(folder, tasks):
    (folder / "labels.json").write_bytes((json.dumps(tasks_to_json(tasks), ensure_ascii=False, indent=1) + "\n").encode())


def require_own_folder(folder, source):
    """Raises UserError if the output folder is not a folder, or contains anything but an earlier processed folder."""
    inside = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    parts = {f"{part}.jsonl" for part in PARTS}
    ours = r"(?s)labels\.json|checks\.json|\.cache|fold_\d+|\.template-new|\.(.*\.)?tmp"
    strange = {name for name in inside - parts if not re.fullmatch(ours, name)}
    if not strange and "labels.json" not in inside:
        strange = {name for name in inside if name in parts or name.startswith("fold_")}
    for fold in folder.glob("fold_*/*") if not strange else ():
        if fold.name not in parts and not re.fullmatch(ours, fold.name):
            strange.add(f"{fold.parent.name}/{fold.name}")
    if strange or (folder.exists() and not folder.is_dir()):
        found = shorten(strange) or "it is not a folder"
        raise UserError(f"--output_dir {folder}: holds other files ({found}); choose an empty or new folder")
    if folder.resolve() in (source.resolve(), *source.resolve().parents):
        raise UserError(f"--output_dir {folder}: contains the input; choose another folder")


def quantiles(counts, shares):
    """The quantiles of values at these shares. counts: {value: count}"""
    ordered, number = sorted(counts), sum(counts.values())
    up_to = list(accumulate(counts[value] for value in ordered))
    return [ordered[bisect_right(up_to, min(number - 1, int(share * number)))] for share in shares]


def summary(parts, tasks, found):
    """Prints an overview of the data: sizes, lengths, labels. found: from `look_labels`"""
    unit = "tokens" if "tokens" in parts["train"][0] else "characters"
    print(f"{'part':<8}{'examples':>9}   length in {unit}: median   95 %   99 %   most")
    for part, rows in parts.items():
        shown = quantiles(found.counts["lengths", part], (0.5, 0.95, 0.99, 1))
        width = 18 if "tokens" in rows[0] else 22
        print(f"{part:<8}{len(rows):>9}   {'':<{width}} " + " ".join(f"{length:>6}" for length in shown))
    for name, info in tasks.items():
        if kind_of(info) == "regression":
            print(f"task {name}: regression, mean {info['mean']:.4g}, standard deviation {info['std']:.4g}")
            continue
        counts = Counter(dict(zip(info["labels"], info["counts"])))
        common = ", ".join(f"{label} {count / counts.total():.0%}" for label, count in counts.most_common(3))
        print(f"task {name}: {info['type']}, {len(counts)} labels ({common}{', …' if len(counts) > 3 else ''})")
        if kind_of(info) == "multilabel":
            none = {part: found.counts["none", name][part] for part in parts}
            print(f"task {name}: rows with none of the labels, which are kept: {none}")
        missing = {part: found.counts["missing", name][part] for part in parts}
        if any(missing.values()):
            print(f"task {name}: rows without a label, which this task ignores: {missing}")
