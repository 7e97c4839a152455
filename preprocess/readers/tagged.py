"""Reads files with one tagged sentence per row: 我/r 爱/v, word:tag pairs, columns of words and tags, seq.in."""

import re
from collections.abc import Iterable, Iterator
from itertools import islice, permutations
from pathlib import Path
from typing import NamedTuple

import regex

from engine.errors import UserError
from engine.task.signs import TAG
from engine.task.tags import USUAL, Notation
from preprocess.example import Example
from preprocess.readers.columns import are_joined_intents
from preprocess.readers.inline import join_pieces
from preprocess.readers.options import ReadOptions
from preprocess.readers.raw_files import named_rows, rows_side_by_side, split_words

HEAD_ROWS = 5000  # rows used to detect the format
WORD_TAG = re.compile(r"([^ \t\u3000]+)/([A-Za-z][\w$-]*|[^\w\s]{1,2})")
# Brackets around several words, optionally followed by a tag: [中央/n 电视台/n]nt
BRACKETS = re.compile(r"(?<![^ \t\u3000])\[(?=[^/\s])(.*?/[A-Za-z]+)\](?:/?[A-Za-z]+)?(?![^ \t\u3000])")
# Patterns of clauses. Files of words can contain a few false matches, so minimum shares are required
PUNCTUATED = regex.compile(r"\p{Han}[，。！？；：、]|[，。！？；：、]\p{Han}")
LONG = regex.compile(r"\p{Han}{6}")
LEAST_PUNCTUATED, LEAST_LONG, LEAST_ROWS = 0.02, 0.05, 0.3
Pairs = list[tuple[str, str]]  # (word, tag)


def read_word_tags(path: Path, options: ReadOptions) -> Iterator[Example]:
    """Reads one sentence per row, with a part-of-speech tag after each word: 我/r 爱/v 北京/ns.

    Removes brackets around several words, as in [中央/n 电视台/n]nt. If the pieces are clauses instead of words, an
    example is the whole text with its entities; /o means no entity.
    """
    clauses = has_clauses(path, options.encoding)
    options.understood.add(path, "pieces of text with the type of entity" if clauses else "words with tags")
    for where, row in named_rows(path, options.encoding):
        pairs = word_tag_pairs(row, where)
        if clauses:
            text, spans = join_pieces((piece, "" if tag.lower() == "o" else tag) for piece, tag in pairs)
            yield {"_where": where, "text": text, "entities": spans}
        elif pairs:
            yield {"_where": where, "tokens": [word for word, _ in pairs], "tags": [tag for _, tag in pairs]}


def pieces_of(row: str) -> list[str]:
    """Returns the word/tag pieces of a row, without brackets around several words."""
    return re.findall(r"[^ \t\r\u3000]+", BRACKETS.sub(r"\1", row))


def word_tag_pairs(row: str, where: str) -> Pairs:
    pieces = pieces_of(row)
    matches = [WORD_TAG.fullmatch(piece) for piece in pieces]
    if None in matches:
        raise UserError(f"{where}: expected word/tag, found {pieces[matches.index(None)][:60]!r}")
    return [(match[1], match[2]) for match in matches if match]


def has_clauses(path: Path, encoding: str) -> bool:
    """Returns True if the pieces of a word/tag file are clauses: several are long or contain Chinese punctuation."""
    head = islice(named_rows(path, encoding), HEAD_ROWS)
    rows = [word_tag_pairs(row, where) for where, row in head]
    pairs = [pair for row in rows for pair in row]
    punctuated = [(piece, tag) for piece, tag in pairs if PUNCTUATED.search(piece)]
    long = [piece for piece, tag in pairs if tag.lower() == "o" and LONG.search(piece)]
    # Long rows have a low share of clauses, but most of them have at least one
    with_clause = sum(any(tag.lower() == "o" and PUNCTUATED.search(piece) for piece, tag in row) for row in rows)
    few_pieces = len(punctuated) < max(1, LEAST_PUNCTUATED * len(pairs)) and len(long) < max(1, LEAST_LONG * len(pairs))
    if few_pieces and with_clause < LEAST_ROWS * len(rows):
        return False
    if other := [piece for piece, tag in punctuated if tag.lower() != "o"]:
        raise UserError(f"{path}: {other[0][:30]!r} is not a word; the tag of a clause without entities must be /o")
    return True


def read_seq(path: Path, options: ReadOptions) -> Iterator[Example]:
    """Reads a folder with seq.in (words), seq.out (tags) and label (intents), one sentence per row."""
    names = [name for name in ("seq.in", "seq.out", "label") if (path / name).exists()]
    if len(names) < 2 or names[0] != "seq.in":
        raise UserError(f"{path}: needs seq.in and at least one of seq.out and label")
    for where, rows in rows_side_by_side([path / name for name in names], options.encoding):
        columns = dict(zip(names, rows))
        example: Example = {"_where": where, "tokens": split_words(columns["seq.in"])}
        if "label" in names:
            example["intent"] = columns["label"].strip()
        if "seq.out" in names:
            example["slots"] = split_words(columns["seq.out"])
        yield example


# ---- words, tags and an optional intent ----------------------------------------------------------------------------

KOREAN = Notation(behind=True, signs="_")  # PER_B PER_I -
MARKS = (":", "|", "###")  # delimiters between a word and its tag
INTENT = re.compile(r"\s*(?:<=>|\t)\s*")  # the delimiter between word:tag pairs and the intent


class SentenceRow(NamedTuple):
    """A sentence in one row."""

    tokens: list[str]
    tags: list[str]
    intent: str | None


class PairForm(NamedTuple):
    """A row of word:tag pairs: `fly:O to:O Bonn:B-to <=> flight`."""

    mark: str

    @property
    def title(self) -> str:
        return "word:tag pairs"

    def parse(self, row: str) -> SentenceRow | None:
        """Parses a row. Returns None if it has another form."""
        words, *intents = INTENT.split(row.strip(" \t"), maxsplit=1)
        matches = [re.fullmatch(rf"([^ \t]+?){re.escape(self.mark)}({TAG})", piece) for piece in split_words(words)]
        pairs = [match.groups() for match in matches if match]
        if not pairs or len(pairs) < len(matches):
            return None
        return SentenceRow([word for word, _ in pairs], [tag for _, tag in pairs], next(iter(intents), None))


def is_tag(tag: str) -> bool:
    return bool(USUAL.parse(tag) or KOREAN.parse(tag))


class ColumnForm(NamedTuple):
    """A row of tab-separated columns. The words may be enclosed in BOS and EOS; the tag of EOS is then the intent."""

    width: int
    words: int
    tags: int
    intent: int | None

    @property
    def title(self) -> str:
        return f"words = column {self.words}, tags = column {self.tags}"

    def parse(self, row: str) -> SentenceRow | None:
        """Parses a row. Returns None if it has another form."""
        cells = [cell.strip(" ") for cell in row.split("\t")]
        if len(cells) != self.width:
            return None
        tokens, tags = split_words(cells[self.words]), split_words(cells[self.tags])
        intent = None if self.intent is None else cells[self.intent]
        if intent is None and len(tags) > 1 and not is_tag(tags[-1]):
            intent = tags.pop()
            if tokens[-1:] == ["EOS"]:
                tokens.pop()
        if tokens[:1] == ["BOS"] and tags[:1] == ["O"]:
            tokens, tags = tokens[1:], tags[1:]
        if not tokens or len(tokens) != len(tags) or not all(map(is_tag, tags)):
            return None
        return SentenceRow(tokens, tags, intent)


def row_form(rows: list[str]) -> PairForm | ColumnForm | None:
    """Detects the form of rows with one tagged sentence each, or returns None."""
    width = len(rows[0].split("\t"))
    forms: list[PairForm | ColumnForm] = [PairForm(mark) for mark in MARKS]
    if width == 2:
        forms += [ColumnForm(2, words, tags, None) for words, tags in permutations(range(2), 2)]
    if width in (3, 4):
        forms += [ColumnForm(width, *columns) for columns in permutations(range(width), 3)]
    for form in forms:
        parsed = [sentence for row in rows if (sentence := form.parse(row)) is not None]
        if len(parsed) == len(rows) and any(len(row.tokens) > 1 for row in parsed) and are_plausible_intents(parsed):
            return form
    return None


def are_plausible_intents(rows: list[SentenceRow]) -> bool:
    """Returns True if no row has an intent, or if all rows have an intent and some intents repeat."""
    intents = {row.intent for row in rows}
    named = all(intent and " " not in intent for intent in intents)
    return intents == {None} or (named and len(intents) <= max(3, 0.5 * len(rows)))


def read_sentence_rows(path: Path, options: ReadOptions) -> Iterator[Example]:
    """Reads one sentence per row: tab-separated words, tags and an optional intent, or `word:tag … <=> intent`."""
    head = [row for _, row in islice(named_rows(path, options.encoding), HEAD_ROWS)]
    form = row_form(head) if head else None
    if form is None:
        forms = "words<tab>tags<tab>intent, or word:tag word:tag <=> intent"
        raise UserError(f"{path}: expected rows with one tag per word ({forms})")
    options.understood.add(path, f"one sentence per row: {form.title}")
    are_sets = are_joined_intents((row.intent for _, row in parsed(path, options, form)), options)
    for where, row in parsed(path, options, form):
        intent = row.intent.split("#") if row.intent and are_sets else row.intent
        yield {"_where": where, "tokens": row.tokens, **({"intent": intent} if intent else {}), "slots": row.tags}


def parsed(path: Path, options: ReadOptions, form: PairForm | ColumnForm) -> Iterable[tuple[str, SentenceRow]]:
    for where, row in named_rows(path, options.encoding):
        sentence = form.parse(row)
        if sentence is None:
            raise UserError(f"{where}: expected one tag per word, as in other rows, found {row[:60]!r}")
        yield where, sentence
