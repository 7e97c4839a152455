"""Raw files in any accepted format -> one validated, split, human-readable folder that `main.py` trains on.

    python data_process.py --input FILE_OR_FOLDER --output_dir dataset/NAME

The folder holds train.jsonl, dev.jsonl, (test.jsonl) and labels.json. An example is one line:
`id`; `text`, or `tokens`; optional `text_pair`; and one key per task: a string, or one tag per token.
Edit here when another check or report is wanted; formats are in readers.py, how parts are split off in splits.py.
"""

import json
import os
import random
import re
import shutil
import statistics
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from config import ROOT, Config
from engine.command_line import UserError, option, os_error_line, parse_args, require_seed
from engine.tags import find_scheme, is_tagging
from engine.text import split_text
from preprocess import checks, labels
from preprocess.checks import Note
from preprocess.readers import FORMATS, READERS, RESERVED, SUFFIXES, find_format, read_txt, suffix_of
from preprocess.schema import PARTS, check_characters, check_row, check_text, load_labels, read_processed, shorten
from preprocess.splits import split_examples, split_folds


@dataclass
class DataConfig:
    """Options of `data_process.py`."""

    input: str = option("", "file or folder of raw data")
    output_dir: str = option("", "processed folder to write, such as dataset/NAME")
    format: str = option(
        "auto",
        "what the input is; auto finds it by its names and first rows; hf: a Hugging Face dataset",
        choices=["auto", *FORMATS, "hf"],
    )
    encoding: str = option("auto", "of the input: auto (UTF-8 or UTF-16 by its mark), gb18030, …")
    text_column: str = option("", "column or key of the text (default: found by its name)")
    text_pair_column: str = option("", "column or key of the second text of a pair")
    label_column: str = option(
        "", "column or key of the label, or several, comma-separated; each becomes a task (default: found by its name)"
    )
    label_type: str = option(
        "",
        "types of tasks where they should not be guessed, such as 'score=regression,topics=multilabel' (else classification, tagging)",
    )
    label_separator: str = option(",", "what parts the labels in a cell of a multilabel column")
    tag_scheme: str = option(
        "auto",
        "how entities' tags are written: auto is BIO, or BIOES if the data has ends",
        choices=["auto", "bio", "bioes", "keep"],
    )
    unit: str = option(
        "auto",
        "what a token of a text with spans is (auto: characters if most are Chinese)",
        choices=["auto", "word", "character"],
    )
    n_splits: int = option(0, "make so many folds of train and dev for cross-validation; 0: none")
    group_column: str = option("", "column whose equal values stay in one part and one fold")
    check: bool = option(False, "only examine the input, raw or processed, and write nothing")
    max_length: int = option(256, "for --check: the length that training will use")
    pretrain_model_path: str = option("", "for --check: the model whose tokenizer training will use")
    dev_ratio: float = option(0.1, "share of examples for dev, if the data has no dev part")
    test_ratio: float = option(0.1, "share of examples for test, if the data is a single part")
    random_seed: int = option(666, "seed of the split", aliases=["seed"])

    def __post_init__(self):
        if not self.input or not (self.output_dir or self.check):
            raise UserError("both --input FILE_OR_FOLDER and --output_dir dataset/NAME are needed")
        require_seed(self.random_seed)
        self.label_types_by_name()
        if self.n_splits < 0 or self.n_splits == 1:
            raise UserError(f"--n_splits={self.n_splits} must be at least 2")
        if not self.label_separator:
            raise UserError("--label_separator must not be empty")
        if not (self.dev_ratio > 0 and self.test_ratio >= 0 and self.dev_ratio + self.test_ratio < 1):
            raise UserError(
                f"--dev_ratio={self.dev_ratio} and --test_ratio={self.test_ratio} must leave something to train on"
            )

    def label_types_by_name(self):
        """'score=regression,tags=multilabel' -> {'score': 'regression', 'tags': 'multilabel'}"""
        types = dict(part.strip().rpartition("=")[::2] for part in self.label_type.split(",") if part.strip())
        if "" in types or not set(types.values()) <= {"classification", "multilabel", "regression", "tagging"}:
            raise UserError(
                f"--label_type={self.label_type!r} must look like 'score=regression,topics=multilabel,mood=classification'"
            )
        return types


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


def part_of_name(path):
    """The part that a file's name tells: that of train.csv, atis.dev.txt, test-00000-of-00001.parquet; or None."""
    return next((PART_NAMES[word] for word in re.split(r"[._\-]", path.name.lower()) if word in PART_NAMES), None)


def find_sources(folder):
    """[(part or None, path)] of the data below a file or folder: parts are told by their names, train/dev(valid)/test."""
    if not folder.exists():
        raise UserError(f"{folder}: no such file or folder (the name of a Hugging Face dataset needs --format hf)")
    if folder.is_file() or any(
        (folder / name).exists() for name in ("dataset_dict.json", "dataset_info.json", "state.json")
    ):
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
        (PART_NAMES[path.name.lower()], path)
        for path in sorted(folder.iterdir())
        if path.is_dir() and path.name.lower() in PART_NAMES
    ]
    if directories:
        sources = [(part, path) for part, directory in directories for path in data_in(directory)]
    else:
        sources = []
        for path in data_in(folder):
            sources.append((part_of_name(path), path))
    if not sources:
        raise UserError(f"{folder}: no data files in it")
    parts = {part for part, _ in sources}
    if None in parts and len(parts) > 1:
        stray = next(path for part, path in sources if part is None)
        raise UserError(
            f"{stray}: belongs to none of train, dev (valid), test, as its neighbours do; rename or remove it"
        )
    return sorted(sources, key=lambda source: PARTS.index(source[0] or "train"))


def read_examples(config):
    """All examples of the input, each with "at" and, if the data has parts, "split". UserError on the first bad row."""
    examples = []
    sources = [(None, config.input)] if config.format == "hf" else find_sources(Path(config.input))
    for part, path in sources:
        name = config.format if config.format != "auto" else find_format(path)
        found = list(READERS[name](path, config))
        if not found:
            raise UserError(f"{path}: no examples in it")
        for example in found:
            if part:
                example["split"] = part
            examples.append(example)
    return examples


# ---- checks and labels ---------------------------------------------------------------------------------------------------


def check_examples(examples, config):
    """Refuses rows that cannot be trained on, and makes their labels what the processed folder holds.

    -> ({task: type}, notes: what was changed on the way, for the doctor's report). A row may lack the labels of some tasks
    if it has those of another.
    """
    first, notes = examples[0], []
    names = list(dict.fromkeys(key for example in examples for key in example if key not in RESERVED))
    chosen, texts = config.label_types_by_name(), {"text", "tokens", "text_pair"}
    for example in examples:
        at = example["at"]
        if (has := texts & example.keys()) != (wanted := texts & first.keys()):
            raise UserError(
                f"{at}: has {' and '.join(sorted(has))}, but {first['at']} has {' and '.join(sorted(wanted))}"
            )
        check_text(example)
        check_characters(example)
        if "split" in example:
            part = PART_NAMES.get(str(example["split"]).lower())
            if part is None:
                raise UserError(f"{at}: split {example['split']!r} is none of train, dev, test")
            example["split"] = part
        if ("split" in example) != ("split" in first):
            without = at if "split" in first else first["at"]
            raise UserError(f"{without}: has no part (train, dev, test), but other rows have one")
        for name in names:
            empty = isinstance(example.get(name), str) and not example[name].strip()
            if len(names) > 1 and empty and chosen.get(name) != "multilabel":  # a cell without labels is just that
                example[name] = None
    if unknown := sorted(set(chosen) - set(names)):
        raise UserError(f"--label_type names {', '.join(unknown)}, but the labels are {', '.join(names)}")
    for name in names:
        if name not in chosen:
            notes += drop_dashes(examples, name, alone=len(names) == 1)
    tasks, spans = {}, []
    for name in names:
        values = [example[name] for example in examples if example.get(name) is not None]
        kind = labels.find_kind(name, values) if chosen.get(name, "tagging") == "tagging" else chosen[name]
        if name not in chosen:
            notes += odd_numbers(name, kind, examples)
        if kind == "spans":
            spans.append(name)
        elif kind == "list":
            kind = "tagging" if "tokens" in first or name in labels.TAG_NAMES else "multilabel"
        tasks[name] = "tagging" if kind == "spans" else kind
    if spans:
        notes += spans_to_tokens(examples, spans, config.unit)
    for example in examples:
        for name, kind in tasks.items():
            if kind == "multilabel" and isinstance(example.get(name), str):
                example[name] = labels.as_list(example[name], config.label_separator)
            if example.get(name) is None and len(names) == 1:
                raise UserError(
                    f"{example['at']}: has no label {name!r} (it is null); texts without labels are for --predict_file"
                )
            example[name] = labels.check_label(example, name, kind)
        if all(example[name] is None for name in names):
            raise UserError(f"{example['at']}: has no label of any task ({', '.join(names)})")
    for name, kind in tasks.items():
        if is_tagging(kind):
            notes += convert_schemes(examples, name, config.tag_scheme)
    return tasks, notes


def drop_dashes(examples, name, alone):
    """Takes the label "-" among words, as OCNLI and SNLI write it, for no label: of a single task the row is left out. -> notes.

    Beside other signs ("+") it is a label like any other.
    """
    found = {e[name] for e in examples if isinstance(e.get(name), str)} - {"-"}
    dashed = [e for e in examples if e.get(name) == "-"]
    if not dashed or len(found) < 2 or not all(re.search(r"\w", label) for label in found):
        return []
    if alone:
        examples[:] = [e for e in examples if e.get(name) != "-"]
    for example in dashed:
        example[name] = None
    done = "these rows are left out" if alone else "they count as unlabelled"
    advice = f"{done}; if it is a class: --label_type {name}=classification"
    return [Note(f"{name}: the label '-' means that there is no gold label", [e["at"] for e in dashed], advice)]


def odd_numbers(name, kind, examples):
    """Notes on labels of which it is not clear whether they are numbers or names."""
    known = [(e["at"], e[name]) for e in examples if e.get(name) is not None]
    if kind == "regression":
        whole = {float(value) for _, value in known}
        few = (
            [f"{known[0][0]}: {', '.join(f'{one:g}' for one in sorted(whole))}"]
            if len(whole) <= 10 and all(map(float.is_integer, whole))
            else []
        )
        advice = f"if they are names of classes: --label_type {name}=classification"
        return [Note(f"{name}: numbers of few whole values", few if len(known) >= 20 else [], advice)]
    if kind == "classification":
        others = [f"{at}: {value!r}" for at, value in known if not labels.is_number(str(value))]
        decimals = sum("." in str(value) and labels.is_number(str(value)) for _, value in known)
        advice = f"if it is a score, leave these empty (with other tasks) or correct them, and add --label_type {name}=regression"
        return [
            Note(
                f"{name}: nearly all labels are numbers, but not these",
                others if decimals > 0.8 * len(known) else [],
                advice,
            )
        ]
    return []


def spans_to_tokens(examples, names, unit):
    """Turns labels that are spans over `text` into tags over `tokens`, which it adds; `text` stays. -> notes."""
    if "text" not in examples[0]:
        raise UserError(f"{examples[0]['at']}: {names[0]!r} is spans over characters; they need a text, not tokens")
    if unit == "auto":
        unit = "character" if labels.mostly_chinese(example["text"] for example in examples[:2000]) else "word"
    overlapping, inside, blank = [], [], []
    for example in examples:
        at, text, spans = example["at"], example["text"], {}
        for name in names:
            if example.get(name) is not None:
                spans[name], dropped = labels.without_overlaps(labels.read_spans(example[name], text, at))
                overlapping += [f"{at}: {text[start:end]!r} ({label})" for start, end, label in dropped]
        whole = split_text(text, unit)
        pieces = labels.cut_at(
            whole, {border for found in spans.values() for start, end, _ in found for border in (start, end)}
        )
        if len(pieces) > len(whole):
            inside.append(at)
        example["tokens"] = [token for token, _, _ in pieces]
        for name, found in spans.items():
            example[name] = labels.spans_to_tags(found, pieces)
            if sum(tag[0] == "B" for tag in example[name]) < len(found):
                blank.append(at)
    return [
        Note(
            f"{names[0]}: spans overlap",
            overlapping,
            "of each two the longer was kept; nested entities need a task of their own",
        ),
        Note(f"{names[0]}: spans begin or end inside a word", inside, "the words were cut there; try --unit character"),
        Note(f"{names[0]}: spans hold nothing but blanks", blank, "they were left out; correct the data"),
    ]


def convert_schemes(examples, name, wanted):
    """Writes a task's tags in one scheme, file by file; "auto": BIO, or BIOES where all files have it or its kin. -> notes."""
    files = {}
    for example in examples:
        if example[name] is not None:
            files.setdefault(re.sub(r", \S+ \d+$", "", example["at"]), []).append(example)
    schemes = {file: find_scheme(example[name] for example in found) for file, found in files.items()}
    found = set(schemes.values()) - {None}
    tags = {tag for rows in files.values() for example in rows for tag in example[name]}
    if wanted != "keep" and not found and "O" in tags and len(tags) > 1:
        prefixed = [tag for tag in tags if tag == "O" or re.match(r"[BIESMLU]-.", tag)]
        if len(prefixed) > len(tags) / 2:
            strange = [f"{e['at']}: {t}" for rows in files.values() for e in rows for t in e[name] if t not in prefixed]
            return [
                Note(
                    f"{name}: tags of no scheme among those of one",
                    strange,
                    "no entity can be told while they are there: correct them",
                )
            ]
        print(f"the tags of {name!r} have no B- and I-: runs of equal tags are written as entities in BIO")
        for rows in files.values():
            for example in rows:
                example[name] = labels.bare_to_bio(example[name])
        schemes, found = dict.fromkeys(files, "bio"), {"bio"}
    if wanted == "keep" or not found:
        return []
    target = wanted if wanted != "auto" else ("bio" if found & {"bio", "iob1"} else "bioes")
    for file, source in schemes.items():
        if source and source != target:
            print(f"{file}: the tags of {name!r} are {source.upper()}, written as {target.upper()}")
            for example in files[file]:
                example[name] = labels.convert_tags(example[name], source, target)
    mixed = [f"{file}: {source.upper()}" for file, source in schemes.items() if source]
    return [
        Note(
            f"{name}: files have different tag schemes",
            mixed if len(found) > 1 else [],
            f"all were written as {target.upper()}",
        )
    ]


def collect_labels(parts, tasks):
    """labels.json: each task's type and its labels in order with their counts, from the training part.

    Of tags also what a token is ("unit"); of numbers their mean and standard deviation instead of labels; whether texts are pairs.
    """
    info = {}
    for name, kind in tasks.items():
        for part, rows in parts.items():
            if all(e[name] is None for e in rows):
                raise UserError(f"{part} has no label of the task {name!r} at all")
        known = [e[name] for e in parts["train"] if e[name] is not None]
        if kind == "regression":
            mean, deviation = statistics.fmean(known), statistics.pstdev(known)
            if deviation == 0:
                raise UserError(f"the task {name!r} has the single value {mean:g} in train: there is nothing to learn")
            info[name] = {"type": kind, "labels": [], "mean": mean, "std": deviation}
            continue
        counts = Counter(label for value in known for label in ([value] if kind == "classification" else value))
        found = sorted(counts, key=lambda label: (label != "O", label))
        if kind == "classification" and len(found) < 2:
            raise UserError(f"the task {name!r} has the single label {found[0]!r} in train: there is nothing to learn")
        if not found:
            raise UserError(f"the task {name!r} has no label in train: all its lists are empty")
        info[name] = {"type": kind, "labels": found, "counts": [counts[label] for label in found]}
        if kind == "multilabel":
            info[name]["rows"] = len(known)
        if is_tagging(kind):
            info[name]["unit"] = token_unit(parts["train"])
    if "text_pair" in parts["train"][0]:
        for task in info.values():
            task["pairs"] = True
    return info


def token_unit(examples):
    """How a raw text is to be cut into tokens like these: "word", "character", or "character+blank"."""
    tokens = {token for e in examples for token in e["tokens"]}
    if any(len(token) > 1 for token in tokens):
        return "word"
    return "character+blank" if any(token.isspace() for token in tokens) else "character"


# ---- output ------------------------------------------------------------------------------------------------------------


def summary(parts, tasks):
    """Prints what is in the data: sizes, lengths, labels."""
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
    for name, info in tasks.items():
        if info["type"] == "regression":
            print(f"task {name}: regression, mean {info['mean']:.4g}, standard deviation {info['std']:.4g}")
            continue
        counts = Counter(dict(zip(info["labels"], info["counts"])))
        common = ", ".join(f"{label} {count / counts.total():.0%}" for label, count in counts.most_common(3))
        print(f"task {name}: {info['type']}, {len(counts)} labels ({common}{', …' if len(counts) > 3 else ''})")
        if info["type"] == "multilabel":
            none = {part: sum(e[name] == [] for e in rows) for part, rows in parts.items()}
            print(f"task {name}: rows with none of the labels, learnt as such: {none}")
        missing = {part: sum(e[name] is None for e in rows) for part, rows in parts.items()}
        if any(missing.values()):
            print(f"task {name}: rows without a label, which this task leaves out: {missing}")


def write_processed(folder, parts, tasks):
    """Writes the processed folder. Each file appears whole or not at all; labels.json comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    hidden = ("at", "split", "group")
    files = {
        f"{part}.jsonl": (
            json.dumps({key: e[key] for key in e if key not in hidden}, ensure_ascii=False) + "\n" for e in rows
        )
        for part, rows in parts.items()
    }
    files["labels.json"] = [json.dumps(tasks, ensure_ascii=False, indent=1) + "\n"]
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
    ours = {
        "labels.json",
        ".cache",
        *(f"{part}.jsonl" for part in PARTS),
        *(name for name in inside if re.fullmatch(r"fold_\d+", name)),
    }
    strange = sorted(name for name in inside - ours if not (name.startswith(".") and name.endswith(".tmp")))
    if not strange and "labels.json" not in inside:
        strange = sorted(inside & {f"{part}.jsonl" for part in PARTS})
    if folder.is_file() or strange:
        raise UserError(
            f"--output_dir {folder}: holds other things ({shorten(strange) or 'it is a file'}); choose an empty or new folder"
        )
    if folder.resolve() in (source.resolve(), source.resolve().parent):
        raise UserError(f"--output_dir {folder}: is where the input lies; choose another folder")


def prepare(config):
    """Raw input, or a processed folder -> (parts, tasks, notes). Every example has "at", which says where it came from."""
    source = Path(config.input)
    if config.format == "auto" and (source / "labels.json").exists():
        tasks, parts = load_labels(source), {}
        for path in (path for path in (source / f"{part}.jsonl" for part in PARTS) if path.exists()):
            parts[path.stem] = [{"at": at, **example} for at, example in read_processed(path, tasks)]
        if "train" not in parts:
            raise UserError(f"{source}: has labels.json, but no train.jsonl")
        for name, task in tasks.items():
            for examples in parts.values():
                for example in examples:
                    example.setdefault(name, None)
            if "counts" not in task:
                task.update(collect_labels(parts, {name: task["type"]})[name])
        return parts, tasks, []
    examples = read_examples(config)
    kinds, notes = check_examples(examples, config)
    examples[:] = [{"at": e.pop("at"), "id": str(e.pop("id", number)), **e} for number, e in enumerate(examples)]
    parts = split_examples(examples, kinds, config)
    if not any("split" in e for e in examples):
        random_order = random.Random(config.random_seed)
        for rows in parts.values():
            random_order.shuffle(rows)
    return parts, collect_labels(parts, kinds), notes


def process(config):
    """Raw input -> processed folder, as `config` (a DataConfig) says; with --check, only the report.

    Nothing is written unless all of it is good.
    """
    folder = Path(config.output_dir)
    if not config.check:
        require_own_folder(folder, Path(config.input))
    parts, tasks, notes = prepare(config)
    if config.n_splits and not config.check:
        write_folds(folder, parts, tasks, config)
    elif not config.check:
        write_processed(folder, parts, tasks)
    summary(parts, tasks)
    checks.show(checks.examine(parts, tasks, build_encoder_for_check(config, parts, tasks), notes))
    if not config.check:
        print(f"wrote {folder}: " + ", ".join(f"{len(rows)} {part}" for part, rows in parts.items()))


def make_sample(folder):
    """Makes the sample's processed folder if there is none; of several processes at once only one does."""
    if (folder / "labels.json").exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if not (folder / "labels.json").exists():
            process(DataConfig(input=str(ROOT / "dataset/sample_raw"), output_dir=str(folder)))


def write_folds(folder, parts, tasks, config):
    """A processed folder fold_<k> for each fold, and beside them the whole, whose dev part is that of the first fold.

    Labels are those of all folds together, so that the folds' models can be averaged.
    """
    folds = split_folds(parts, tasks, config)
    tasks.update(
        collect_labels(
            {"train": [*parts["train"], *parts.get("dev", [])]}, {name: task["type"] for name, task in tasks.items()}
        )
    )
    for number, fold in enumerate(folds):
        for part, rows in zip(("train", "dev"), fold):
            if lacking := [name for name in tasks if all(e[name] is None for e in rows)]:
                raise UserError(
                    f"--n_splits {config.n_splits}: {part} of fold {number} would have no label of {lacking[0]!r}; take fewer folds"
                )
    rest = {"test": parts["test"]} if "test" in parts else {}
    for number, (train, dev) in enumerate(folds):
        write_processed(folder / f"fold_{number}", {"train": train, "dev": dev, **rest}, tasks)
    for stale in folder.glob("fold_*"):
        if int(stale.name[5:]) >= len(folds):
            shutil.rmtree(stale)
    parts.update(train=folds[0][0], dev=folds[0][1])
    write_processed(folder, parts, tasks)
    print(f"{len(folds)} folds in {folder}/fold_0 …; python cross_validate.py --data_path {folder} trains them all")


def build_encoder_for_check(config, parts, tasks):
    """The Featurizer that training would use; None for data so large that it would take a while, unless --check asks for it."""
    if not config.check and sum(map(len, parts.values())) > 50_000:
        print("what the tokenizer does to data of this size is examined by --check alone")
        return None
    from engine.features import Featurizer
    from engine.text import text_of
    from engine.tokenizer import load_tokenizer, train_tokenizer

    if config.pretrain_model_path:
        tokenizer = load_tokenizer(Config(pretrain_model_path=config.pretrain_model_path), None)
    else:
        tokenizer = train_tokenizer(
            lambda: (text_of(example, with_pair=True) for example in parts["train"]), Config.vocab_size
        )
    return Featurizer(tokenizer, tasks, config.max_length)


def read_texts(path, config):
    """Examples to predict on, without labels: a text a row (.txt), or the text columns of CSV, TSV or JSONL."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    suffix = suffix_of(path)
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
            raise UserError(
                f"{example['at']}: has {' and '.join(keys[number])}, but the first row has {' and '.join(keys[0])}"
            )
        check_row(example, {}, example["at"], needs_labels=False)
        check_characters(example)
    return [{"id": str(e.get("id", number)), **{key: e[key] for key in keys[0]}} for number, e in enumerate(examples)]


if __name__ == "__main__":
    try:
        process(parse_args(DataConfig))
    except (UserError, OSError) as mistake:
        line = os_error_line(mistake) if isinstance(mistake, OSError) else mistake
        sys.exit(print(f"error: {line}", file=sys.stderr) or 2)
