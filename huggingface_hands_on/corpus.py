"""Texts to train a tokenizer or to pretrain on, read one at a time from any format that data_process.py reads."""

import hashlib
from glob import glob
from itertools import islice
from pathlib import Path
from zlib import crc32

from config import UserError
from data_process import PART_NAMES, find_sources, part_of_name
from processed import check_text, encode, sha256
from readers import READERS, find_format, read_txt


def read_corpus(config):
    """(train, held out, fingerprint of the files); the first two begin reading a CorpusConfig's texts anew, one at a time.

    A text is a string, or a list of words where the data has `tokens`. Parts are told by the files' names: train to learn
    from, dev as held out; test is never read. Without a dev part a text is held out by its hash, so equal texts stay together.
    """
    if config.format == "hf":
        sources = [(None, Path(config.input))]
    elif not Path(config.input).exists() and any(sign in config.input for sign in "*?["):
        sources = [(part_of_name(path), path) for path in map(Path, sorted(glob(config.input))) if path.is_file()]
    else:
        sources = find_sources(Path(config.input))
    if not sources:
        raise UserError(f"{config.input}: no file has such a name")
    limit = config.held_out_ratio * 2**32

    def parted():
        for part, path in sources:
            if part != "test":
                name = config.format if config.format != "auto" else find_format(path, labelled=False)
                for example in (read_txt if name == "txt" else READERS[name])(path, config):
                    check_text(example, may_be_empty=True)
                    yield PART_NAMES.get(str(example.get("split")).lower(), part), example

    has_dev = any(part == "dev" for part, _ in sources)
    if any("split" in example for _, example in islice(parted(), 1000)):  # the rows name their parts: are there any for dev?
        has_dev = has_dev or any(part == "dev" for part, _ in parted())

    def texts(held_out):
        for part, example in parted():
            if part == "test" or (has_dev and held_out != (part == "dev")):
                continue
            for text in (example.get("tokens") or example["text"], example.get("text_pair", "")):
                whole = text if isinstance(text, str) else " ".join(text)
                by_hash = crc32(encode(whole, example["at"])) < limit
                if not whole.isspace() and whole and (has_dev or held_out == by_hash):
                    yield text

    for held_out, side in ((False, "to learn from"), (True, "to hold out")):
        if next(texts(held_out), None) is None:
            raise UserError(f"{config.input}: holds no text {side}; empty rows do not count")
    digest = hashlib.sha256()
    for _, path in sources:
        for one in [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file()):
            digest.update(sha256(one).encode())
    return lambda: texts(False), lambda: texts(True), digest.hexdigest()


def require_free_folder(folder):
    """UserError if a folder to write has something in it already, or cannot be made."""
    if folder.is_file() or (folder.is_dir() and any(path.name != ".lock" for path in folder.iterdir())):
        raise UserError(f"--output_dir {folder}: is not empty; choose a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {folder}: cannot be made ({error.strerror})") from None
