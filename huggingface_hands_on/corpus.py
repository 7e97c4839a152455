"""Streams texts for tokenizer training and pretraining, in all formats of data_process.py."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from glob import glob
from itertools import islice
from pathlib import Path
from typing import Any
from zlib import crc32

from engine.errors import UserError
from engine.run.atomic import sha256
from engine.run.command_line import check_values, option
from engine.run.reading import ReadingOptions
from preprocess.example import SPLIT_ALIASES, check_text, encode
from preprocess.readers.formats import FORMATS, find_format
from preprocess.readers.options import ReadOptions
from preprocess.readers.raw_files import read_rows
from preprocess.readers.sources import find_sources, split_from_name

Texts = Callable[[], Iterator[str | list[str]]]  # each call streams the texts again


@dataclass(frozen=True)
class CorpusConfig(ReadingOptions):
    """Options of the commands that read texts without labels."""

    input: str = option(
        "", "file, folder or pattern such as 'texts/*.txt': plain text, CSV, JSONL, processed folder, …"
    )
    output_dir: str = option("", "folder to write")
    held_out_ratio: float = option(0.05, "fraction held out if there is no dev split", low=0, high=1, exclusive=True)

    def __post_init__(self) -> None:
        if not self.input or not self.output_dir:
            raise UserError("--input TEXTS and --output_dir FOLDER are required")
        check_values(self)
        self.check_reading()


def read_corpus(config: CorpusConfig) -> tuple[Texts, Texts, str]:
    """Returns (train, held out, fingerprint of the files). A text is a string, or a list of words if the row has
    `tokens`.

    File names determine the split: train is used for training, dev is held out, and test is never read. Without a dev
    split, texts are held out by hash, so identical texts stay together.
    """
    sources: list[tuple[str | None, Path]]
    if config.format == "hf":
        sources = [(None, Path(config.input))]
    elif not Path(config.input).exists() and any(sign in config.input for sign in "*?["):
        sources = [(split_from_name(path), path) for path in map(Path, sorted(glob(config.input))) if path.is_file()]
    else:
        sources = find_sources(Path(config.input))
    if not sources:
        raise UserError(f"{config.input}: no file matches this pattern")
    limit, options = config.held_out_ratio * 2**32, ReadOptions.of(config)

    def with_splits() -> Iterator[tuple[str | None, dict[str, Any]]]:
        for split, path in sources:
            if split != "test":
                name = find_format(path, options)
                for example in FORMATS[name].read(path, options):
                    check_text(example, may_be_empty=True)
                    yield SPLIT_ALIASES.get(str(example.get("split")).lower(), split), example

    has_dev = any(split == "dev" for split, _ in sources)
    # Rows may have a column with their split, including dev
    if any("split" in example for _, example in islice(with_splits(), 1000)):
        has_dev = has_dev or any(split == "dev" for split, _ in with_splits())

    def texts(held_out: bool) -> Iterator[str | list[str]]:
        for split, example in with_splits():
            if split == "test" or (has_dev and held_out != (split == "dev")):
                continue
            for text in (example.get("tokens") or example["text"], example.get("text_pair", "")):
                whole = text if isinstance(text, str) else " ".join(text)
                by_hash = crc32(encode(whole, example["_where"])) < limit
                if not whole.isspace() and whole and (has_dev or held_out == by_hash):
                    yield text

    for held_out, side in ((False, "to train on"), (True, "to hold out")):
        if next(texts(held_out), None) is None:
            raise UserError(f"{config.input}: no texts {side}, not counting empty rows")
    sums = "".join(sha256(path) for _, path in sources)
    return partial(texts, False), partial(texts, True), hashlib.sha256(sums.encode()).hexdigest()


def read_words(source: str, encoding: str) -> list[str]:
    """Returns the distinct words of a list such as 'a,b', or of a file with one word per row."""
    words, is_file = [word.strip() for word in source.split(",")], False
    with suppress(OSError):  # a long list may not be a valid path
        is_file = Path(source).is_file()
    if is_file:
        words = [row.strip() for _, row in read_rows(source, encoding)]
    elif len(words) == 1 and (os.sep in source or Path(source).suffix in (".txt", ".csv", ".tsv")):
        raise UserError(f"--new_tokens {source}: no such file")
    return list(dict.fromkeys(word for word in words if word))


def require_free_folder(folder: Path) -> None:
    """Raises UserError if an output folder is not empty or cannot be created."""
    if folder.is_file() or (folder.is_dir() and any(path.name != ".lock" for path in folder.iterdir())):
        raise UserError(f"--output_dir {folder}: is not empty; choose a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {folder}: cannot be created ({error.strerror})") from None
