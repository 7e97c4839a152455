"""Which files the raw data lies in, and which part each of them is."""

import re
from pathlib import Path

from engine.command_line import UserError
from preprocess.readers import READERS, SUFFIXES, find_format, read_txt, suffix_of
from preprocess.schema import PARTS, check_characters, check_row

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


def part_of_name(path):
    """The part that a file's name tells: that of train.csv, atis.dev.txt, test-00000-of-00001.parquet; or None."""
    return next((PART_NAMES[word] for word in re.split(r"[._\-]", path.name.lower()) if word in PART_NAMES), None)


def find_sources(folder):
    """[(part or None, path)] of the data below a file or folder: their names say which part they are,
    train/dev(valid)/test."""
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
    """All examples of the input, each with "_where" and, if the data has parts, "split"."""
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
                f"{example['_where']}: has {' and '.join(keys[number])}, but the first row has {' and '.join(keys[0])}"
            )
        check_row(example, {}, example["_where"], needs_labels=False)
        check_characters(example)
    return [{"id": str(e.get("id", number)), **{key: e[key] for key in keys[0]}} for number, e in enumerate(examples)]
