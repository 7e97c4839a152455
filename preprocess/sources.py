"""Which files the raw data lies in, and which part each of them is."""

import re
from pathlib import Path

from engine.command_line import UserError
from preprocess.readers import READERS, SUFFIXES, find_format, is_saved_dataset, read_txt, suffix_of
from preprocess.schema import PARTS, TEXT_KEYS, check_characters, check_row

PART_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "valid", "val", "validation", "eval"), "dev"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def part_of_name(path):
    """The part that a file's name tells: that of train.csv, atis.dev.txt, test-00000-of-00001.parquet; or None."""
    return next((PART_NAMES[word] for word in re.split(r"[._\-]", path.name.lower()) if word in PART_NAMES), None)


def data_files(folder):
    """The files with data in a folder; a folder in the form of seq.in, seq.out and label is one source."""
    if (folder / "seq.in").exists():
        return [folder]
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and not path.name.startswith((".", "README"))
        and path.suffix not in (".intent", ".py", ".md")
        and path.name not in ("labels.json", "checks.json")
    ]


def find_sources(source):
    """[(part or None, path)] of the data in a file or folder; their names, such as train.csv, say the part."""
    if not source.exists():
        raise UserError(f"{source}: no such file or folder (the name of a Hugging Face dataset needs --format hf)")
    if source.is_file() or is_saved_dataset(source):
        return [(None, source)]
    folders = [path for path in sorted(source.iterdir()) if path.is_dir() and path.name.lower() in PART_NAMES]
    sources = [(PART_NAMES[folder.name.lower()], path) for folder in folders for path in data_files(folder)]
    if not folders:
        sources = [(part_of_name(path), path) for path in data_files(source)]
    if not sources:
        raise UserError(f"{source}: no data files in it")
    parts = {part for part, _ in sources}
    if None in parts and len(parts) > 1:
        stray = next(path for part, path in sources if part is None)
        reason = "belongs to none of train, dev (valid), test, as its neighbours do"
        raise UserError(f"{stray}: {reason}; rename or remove it")
    return sorted(sources, key=lambda part_and_path: PARTS.index(part_and_path[0] or "train"))


def read_examples(config):
    """All examples of the input, one at a time, each with "_where" and, if the data has parts, "split"."""
    sources = [(None, config.input)] if config.format == "hf" else find_sources(Path(config.input))
    for part, path in sources:
        name, is_empty = config.format if config.format != "auto" else find_format(path), True
        for example in READERS[name](path, config):
            if part:
                example["split"] = part
            yield example
            is_empty = False
        if is_empty:
            raise UserError(f"{path}: no examples in it")


def read_texts(path, config):
    """Examples to predict on, without labels: a text a row (.txt), or the text columns of CSV, TSV or JSONL."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    suffix = suffix_of(path)
    if suffix not in ("", ".txt", *SUFFIXES):
        raise UserError(f"{path}: --predict_file must end in .txt, {', '.join(SUFFIXES)}")
    read = READERS[SUFFIXES[suffix]] if suffix in SUFFIXES else read_txt
    examples = list(read(path, config))
    if not examples:
        raise UserError(f"{path}: empty; there is nothing to predict")
    wanted = [key for key in TEXT_KEYS if key in examples[0]]
    for e in examples:
        keys = [key for key in TEXT_KEYS if key in e]
        if keys != wanted:
            raise UserError(f"{e['_where']}: has {' and '.join(keys)}, but the first row has {' and '.join(wanted)}")
        check_row(e, {}, e["_where"], needs_labels=False)
        check_characters(e)
    kept = [*wanted, *(["extras"] if "extras" in examples[0] else [])]
    return [{"id": str(e.get("id", number)), **{key: e[key] for key in kept}} for number, e in enumerate(examples)]
