"""Readers of tokenized texts with one tag per token: CoNLL, CoNLL-U, word/pos, and folders of seq.in."""

import re
from collections.abc import Iterator
from itertools import chain, islice, zip_longest
from pathlib import Path

from engine.errors import UserError
from preprocess.example import Example
from preprocess.readers.options import ReadOptions, split_names
from preprocess.readers.raw_files import read_rows

MAX_TOKENS = 1_000_000  # per sentence: a file without blank rows must not fill the memory
CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
WORD_TAG = re.compile(r"(\S+)/([A-Za-z][\w$-]*|[^\w\s]{1,2})")


def read_conll(path: Path, options: ReadOptions) -> Iterator[Example]:
    """One token and tag per row, a blank row between sentences; optionally PATH.intent, with one intent per sentence.

    The token is the first column, the tag the last. A token may itself be a space: `' ' + ' ' + 'O'`.
    """
    intents = None
    if Path(f"{path}.intent").exists():
        intents = [row.strip() for _, row in read_rows(f"{path}.intent", options.encoding)]
        while intents and not intents[-1]:
            intents.pop()
    number = 0
    for number, (start, tokens, tags) in enumerate(conll_sentences(path, options.encoding), 1):
        example: Example = {"_where": f"{path}, row {start}", "tokens": tokens}
        if intents is not None:
            if number > len(intents):
                more = f"more sentences (the next begins in row {start})"
                raise UserError(f"{path}.intent: {len(intents)} rows, but {path} has {more}")
            example["intent"] = intents[number - 1]
        example["slots"] = tags
        yield example
    if intents is not None and number != len(intents):
        raise UserError(f"{path}.intent: {len(intents)} rows, but {path} has {number} sentences")


def conll_sentences(path: Path, encoding: str) -> Iterator[tuple[int, list[str], list[str]]]:
    """Yields (number of the first row, tokens, tags) of each sentence."""
    numbered = has_numbered_characters(path, encoding)
    if numbered:
        print(f"{path}: each character is followed by its position in its word (科0 技1), which is removed")
    start = 0
    tokens: list[str] = []
    tags: list[str] = []
    for number, row in chain(read_rows(path, encoding), [(0, "")]):
        if not tokens and row.startswith("# ") and "=" in row:
            continue  # a comment, as in CoNLL-U: "# text = …"
        if row.strip(" \t") and not row.startswith("-DOCSTART-"):
            delimiter = "\t" if "\t" in row else " "
            head, _, tag = row.rstrip(delimiter).rpartition(delimiter)
            token = head.split(delimiter)[0] or head[:1]
            if not token or not tag:
                raise UserError(f"{path}, row {number}: needs a token and a tag, found {row!r}")
            require_end(path, number, len(tokens))
            start = start if tokens else number
            tokens.append(token[0] if numbered else token)
            tags.append(tag)
        elif tokens:
            yield start, tokens, tags
            tokens, tags = [], []


def require_end(path: Path, number: int, length: int) -> None:
    """Raises UserError for a sentence that is too long. number: of the row that is read; length: tokens before it"""
    if length == MAX_TOKENS:
        raise UserError(f"{path}, row {number}: {MAX_TOKENS:,} rows without a blank row, which ends a sentence")


def has_numbered_characters(path: Path, encoding: str) -> bool:
    """Whether every token of a CoNLL file is a character plus its position in its word, as in Weibo NER: 科0 技1."""
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


def read_conllu(path: Path, options: ReadOptions) -> Iterator[Example]:
    """CoNLL-U: ten columns per token; the tags are --label_column, otherwise UPOS, or XPOS if there is no UPOS.

    Ranges (1-2) and empty nodes (1.1) are skipped.
    """
    wanted = split_names(options.label_column)
    if unknown := [name for name in wanted if name not in CONLLU[2:]]:
        raise UserError(f"{path}: no column {unknown[0]!r} (--label_column); CoNLL-U has {', '.join(CONLLU[2:])}")
    if not wanted:
        head = islice(conllu_sentences(path, options.encoding), 1000)
        wanted = ["xpos" if all(token["upos"] == "_" for _, tokens in head for token in tokens) else "upos"]
    for start, tokens in conllu_sentences(path, options.encoding):
        example: Example = {"_where": f"{path}, row {start}", "tokens": [token["form"] for token in tokens]}
        for name in wanted:
            tags = [token[name] for token in tokens]
            example[name] = None if set(tags) == {"_"} else tags
        yield example


def conllu_sentences(path: Path, encoding: str) -> Iterator[tuple[int, list[dict[str, str]]]]:
    """Yields (row number, [{column: value} of each token]) of each sentence."""
    start = 0
    tokens: list[dict[str, str]] = []
    for number, row in chain(read_rows(path, encoding), [(0, "")]):
        if not row.strip():
            if tokens:
                yield start, tokens
            tokens = []
        elif not row.startswith("#"):
            cells = row.split("\t")
            if len(cells) != len(CONLLU) or not all(cells) or not re.fullmatch(r"\d+([-.]\d+)?", cells[0]):
                raise UserError(f"{path}, row {number}: needs the ten columns of CoNLL-U, found {row[:80]!r}")
            require_end(path, number, len(tokens))
            start = start if tokens else number
            if cells[0].isdigit():
                tokens.append(dict(zip(CONLLU, cells)))


def read_word_tags(path: Path, options: ReadOptions) -> Iterator[Example]:
    """One sentence per row, words with part-of-speech tags: 我/r 爱/v 北京/ns. Brackets around several words, as in
    [中央/n 电视台/n]nt, are removed."""
    for number, row in read_rows(path, options.encoding):
        pieces, where = re.findall(r"[^ \t\u3000]+", row), f"{path}, row {number}"
        if not pieces:
            continue
        if any(re.fullmatch(r".+\](/?[A-Za-z]+)?", piece) for piece in pieces):
            pieces = without_brackets(pieces)
        pairs = [match.groups() for piece in pieces if (match := WORD_TAG.fullmatch(piece))]
        if len(pairs) < len(pieces):
            wrong = next(piece for piece in pieces if not WORD_TAG.fullmatch(piece))
            raise UserError(f"{where}: {wrong!r} is not word/tag")
        yield {"_where": where, "tokens": [word for word, _ in pairs], "tags": [tag for _, tag in pairs]}


def without_brackets(pieces: list[str]) -> list[str]:
    """word/tag pieces without the brackets that group words into a longer name."""
    result: list[str] = []
    opened = None
    for position, piece in enumerate(pieces):
        if piece[0] == "[" and len(piece) > 1 and piece[1] != "/" and opened is None:
            opened = position
        closed = re.fullmatch(r"(.+/[A-Za-z]+)\](/?[A-Za-z]+)?", piece)
        if closed and opened is not None:
            piece = closed[1]
            if opened == position:
                piece = piece[1:]
            else:
                result[opened] = result[opened][1:]
            opened = None
        result.append(piece)
    return result


def read_seq(path: Path, options: ReadOptions) -> Iterator[Example]:
    """A folder of seq.in, seq.out (words and tags, separated by spaces) and label (intents), one sentence per row."""
    names = [name for name in ("seq.in", "seq.out", "label") if (path / name).exists()]
    if len(names) < 2 or names[0] != "seq.in":
        raise UserError(f"{path}: needs seq.in, and at least one of seq.out and label")
    for rows in zip_longest(*(read_rows(path / name, options.encoding) for name in names)):
        if None in rows:
            counts = {name: sum(1 for _ in read_rows(path / name, options.encoding)) for name in names}
            other = next(name for name in names if counts[name] != counts["seq.in"])
            raise UserError(f"{path}/{other}: {counts[other]} rows, but seq.in has {counts['seq.in']}")
        columns = {name: row for name, (_, row) in zip(names, rows)}
        where = f"{path}/seq.in, row {rows[0][0]}"
        example: Example = {"_where": where, "tokens": re.findall(r"[^ \t]+", columns["seq.in"])}
        if "label" in names:
            example["intent"] = columns["label"].strip()
        if "seq.out" in names:
            example["slots"] = re.findall(r"[^ \t]+", columns["seq.out"])
        yield example
