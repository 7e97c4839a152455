"""Readers of tokenized texts with one tag per token: CoNLL, CoNLL-U, word/pos, and folders of seq.in."""

import re
from itertools import chain, islice, zip_longest
from pathlib import Path

from engine.errors import UserError
from preprocess.readers.raw_files import read_rows

MOST_TOKENS = 1_000_000  # per sentence: a file without blank rows must not fill the memory
CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
WORD_TAG = re.compile(r"(\S+)/([A-Za-z][\w$-]*|[^\w\s]{1,2})")


def read_conll(path, options):
    """One token and tag per row, a blank row between sentences; optionally PATH.intent, with one intent per sentence.

    The token is the first column, the tag the last. A token may itself be a space: `' ' + ' ' + 'O'`.
    """
    intents = None
    if Path(f"{path}.intent").exists():
        intents = [row.strip() for _, row in read_rows(f"{path}.intent", options.encoding)]
        while intents and not intents[-1]:
            intents.pop()
    glued = has_glued_places(path, options.encoding)
    if glued:
        print(f"{path}: each character is followed by its position in its word (科0 技1), which is removed")
    tokens, tags, start, num_sentences = [], [], 0, 0
    for number, row in chain(read_rows(path, options.encoding), [(0, "")]):
        if not tokens and row.startswith("# ") and "=" in row:
            continue  # a comment, as in CoNLL-U: "# text = …"
        if row.strip(" \t") and not row.startswith("-DOCSTART-"):
            separator = "\t" if "\t" in row else " "
            head, _, tag = row.rstrip(separator).rpartition(separator)
            token = head.split(separator)[0] or head[:1]
            if not token or not tag:
                raise UserError(f"{path}, row {number}: needs a token and a tag, found {row!r}")
            start = start if tokens else number
            if len(tokens) == MOST_TOKENS:
                raise UserError(
                    f"{path}, row {number}: {MOST_TOKENS:,} rows without a blank row, which ends a sentence"
                )
            tokens.append(token[0] if glued else token)
            tags.append(tag)
        elif tokens:
            if intents is not None and num_sentences >= len(intents):
                more = f"more sentences (the next begins in row {start})"
                raise UserError(f"{path}.intent: {len(intents)} rows, but {path} has {more}")
            intent = {"intent": intents[num_sentences]} if intents is not None else {}
            yield {"_where": f"{path}, row {start}", "tokens": tokens, **intent, "slots": tags}
            tokens, tags, num_sentences = [], [], num_sentences + 1
    if intents is not None and num_sentences != len(intents):
        raise UserError(f"{path}.intent: {len(intents)} rows, but {path} has {num_sentences} sentences")


def has_glued_places(path, encoding):
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


def read_conllu(path, options):
    """CoNLL-U: ten columns per token; the tags are --label_column, otherwise UPOS, or XPOS if there is no UPOS.

    Ranges (1-2) and empty nodes (1.1) are skipped.
    """
    wanted = [name.strip() for name in getattr(options, "label_column", "").split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in CONLLU[2:]]:
        raise UserError(f"{path}: no column {unknown[0]!r} (--label_column); CoNLL-U has {', '.join(CONLLU[2:])}")
    if not wanted:
        head = islice(conllu_sentences(path, options.encoding), 1000)
        wanted = ["xpos" if all(token["upos"] == "_" for _, rows in head for token in rows) else "upos"]
    for start, rows in conllu_sentences(path, options.encoding):
        tags = {name: [token[name] for token in rows] for name in wanted}
        tags = {name: None if set(found) == {"_"} else found for name, found in tags.items()}
        yield {"_where": f"{path}, row {start}", "tokens": [token["form"] for token in rows], **tags}


def conllu_sentences(path, encoding):
    """Yields (row number, [{column: value}]) of each sentence."""
    rows, start = [], 0
    for number, row in chain(read_rows(path, encoding), [(0, "")]):
        if not row.strip():
            if rows:
                yield start, rows
            rows = []
        elif not row.startswith("#"):
            cells = row.split("\t")
            if len(cells) != len(CONLLU) or not all(cells) or not re.fullmatch(r"\d+([-.]\d+)?", cells[0]):
                raise UserError(f"{path}, row {number}: needs the ten columns of CoNLL-U, found {row[:80]!r}")
            if len(rows) == MOST_TOKENS:
                raise UserError(
                    f"{path}, row {number}: {MOST_TOKENS:,} rows without a blank row, which ends a sentence"
                )
            start = start if rows else number
            if cells[0].isdigit():
                rows.append(dict(zip(CONLLU, cells)))


def read_word_tags(path, options):
    """One sentence per row, words with part-of-speech tags: 我/r 爱/v 北京/ns. Brackets around several words, as in
    [中央/n 电视台/n]nt, are removed."""
    for number, row in read_rows(path, options.encoding):
        pieces, where = re.findall(r"[^ \t\u3000]+", row), f"{path}, row {number}"
        if not pieces:
            continue
        if any(re.fullmatch(r".+\](/?[A-Za-z]+)?", piece) for piece in pieces):
            pieces = without_brackets(pieces)
        found = [WORD_TAG.fullmatch(piece) for piece in pieces]
        if None in found:
            raise UserError(f"{where}: {pieces[found.index(None)]!r} is not word/tag")
        yield {"_where": where, "tokens": [match[1] for match in found], "tags": [match[2] for match in found]}


def without_brackets(pieces):
    """word/tag pieces without the brackets that group words into a longer name."""
    result, opened = [], None
    for place, piece in enumerate(pieces):
        if piece[0] == "[" and len(piece) > 1 and piece[1] != "/" and opened is None:
            opened = place
        closed = re.fullmatch(r"(.+/[A-Za-z]+)\](/?[A-Za-z]+)?", piece)
        if closed and opened is not None:
            piece = closed[1]
            result[opened:] = [result[opened][1:], *result[opened + 1 :]] if opened < place else []
            piece = piece[1:] if opened == place else piece
            opened = None
        result.append(piece)
    return result


def read_seq(path, options):
    """A folder of seq.in, seq.out (words and tags, separated by spaces) and label (intents), one sentence per row."""
    names = [name for name in ("seq.in", "seq.out", "label") if (Path(path) / name).exists()]
    if len(names) < 2 or names[0] != "seq.in":
        raise UserError(f"{path}: needs seq.in, and at least one of seq.out and label")
    for rows in zip_longest(*(read_rows(Path(path) / name, options.encoding) for name in names)):
        if None in rows:
            counts = {name: sum(1 for _ in read_rows(Path(path) / name, options.encoding)) for name in names}
            other = next(name for name in names if counts[name] != counts["seq.in"])
            raise UserError(f"{path}/{other}: {counts[other]} rows, but seq.in has {counts['seq.in']}")
        number = rows[0][0]
        columns = {name: row for name, (_, row) in zip(names, rows)}
        example = {"_where": f"{path}/seq.in, row {number}", "tokens": re.findall(r"[^ \t]+", columns["seq.in"])}
        if "label" in names:
            example["intent"] = columns["label"].strip()
        if "seq.out" in names:
            example["slots"] = re.findall(r"[^ \t]+", columns["seq.out"])
        yield example
