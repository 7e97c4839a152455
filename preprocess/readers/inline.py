"""Reads entity markup (`at [nine am](time)`, `at [time : nine am]`, `at {{time:nine am}}`), Snips and Rasa files.

To add a syntax, add one line to INLINE of engine/task/signs.py.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.task.signs import INLINE, inline_syntax
from preprocess.example import Example
from preprocess.readers.options import ReadOptions
from preprocess.readers.paths import Convert, Values
from preprocess.readers.raw_files import named_rows

RASA_INTENT = re.compile(r"\s*(?:##\s*intent:|-\s*intent:)\s*(.+?)\s*$")
RASA_OTHER = re.compile(r"##\s|\s*-\s*(?:synonym|regex|lookup|rule|story)\s*:|\S+:\s*$")  # not examples of an intent
HEAD_ROWS = 200  # rows used to detect the syntax
MASSIVE = "[time : nine am]"
Span = dict[str, Any]


def without_marks(text: str, syntax: str, where: str) -> tuple[str, list[Span]]:
    """Removes the marks from a text. Returns (plain text, spans). Raises UserError for unmatched marks."""
    plain, spans, end = "", [], 0
    for match in re.finditer(INLINE[syntax], text):
        plain += text[end : match.start()]
        spans.append({"start": len(plain), "end": len(plain) + len(match["text"]), "label": label_of(match, where)})
        plain, end = plain + match["text"], match.end()
    plain += text[end:]
    if spans and (signs := [sign for sign in ("[", "]", "{{", "}}") if sign in plain and sign in syntax]):
        raise UserError(
            f"{where}: unmatched {signs[0]!r} in a text with marks {syntax!r}; correct it (marks cannot be nested)"
        )
    return plain, spans


def label_of(match: re.Match[str], where: str) -> str:
    """Returns the label of a mark, including Rasa's `[nine am]{"entity": "time", "role": "start"}`."""
    if match["label"]:
        return match["label"]
    try:
        return str(json.loads(match["more"])["entity"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{where}: the mark {match[0][:60]!r} has no entity") from None


def find_marked(rows: Sequence[Values], options: ReadOptions) -> Convert | None:
    """Returns a converter of MASSIVE's `annot_utt`, or None if there are no marks. The text must equal `utt`."""
    if not any(re.search(INLINE[MASSIVE], str(row["annot_utt"])) for row in rows):
        return None

    def convert(values: Values, where: str) -> Values:
        if not isinstance(marked := values.get("annot_utt"), str):
            raise UserError(f"{where}: 'annot_utt' is not a string, unlike in the first rows")
        plain, spans = without_marks(marked, MASSIVE, where)
        stored = values.get("utt", plain)
        if isinstance(stored, str) and stored.split() != plain.split():
            raise UserError(f"{where}: 'annot_utt' without its marks differs from 'utt'")
        return {"text": plain, "slots": spans}

    return convert


def find_chunks(rows: Sequence[Values], options: ReadOptions) -> Convert | None:
    """Returns a converter of Snips's {"data": [{"text": "add "}, {"text": "a song", "entity": "title"}]}, or None."""
    if not all(is_chunks(row.get("data")) for row in rows):
        return None

    def convert(values: Values, where: str) -> Values:
        chunks: Any = values.get("data")
        if not is_chunks(chunks):
            raise UserError(f"{where}: an item of `data` has no `text`")
        pieces = ((c["text"], c.get("slot_name") or c.get("entity") or c.get("alias")) for c in chunks)
        text, spans = join_pieces(pieces)
        return {"text": text, "slots": spans}

    return convert


def is_chunks(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(c, dict) and isinstance(c.get("text"), str) for c in value)


def join_pieces(pieces: Iterable[tuple[str, Any]]) -> tuple[str, list[list[Any]]]:
    """Joins (piece, label) pairs. Returns (text, spans as [start, end, label]) without whitespace around a piece."""
    text, spans = "", []
    for piece, label in pieces:
        if label and (bare := piece.strip()):
            start = len(text) + piece.index(bare)
            spans.append([start, start + len(bare), label])
        text += piece
    return text, spans


def read_inline(path: Path, options: ReadOptions) -> Iterator[Example]:
    """Reads one text per row, with inline entity markup."""
    syntax = inline_syntax([row for _, row in islice(named_rows(path, options.encoding), HEAD_ROWS)])
    if syntax is None:
        raise UserError(f"{path}: no entity markup found; expected {' or '.join(INLINE)}")
    options.understood.add(path, "texts with marks", text="rows", slots=syntax)
    for where, row in named_rows(path, options.encoding):
        text, spans = without_marks(row, syntax, where)
        yield {"_where": where, "text": text, "slots": spans}


def read_rasa(path: Path, options: ReadOptions) -> Iterator[Example]:
    """Reads Rasa's examples in Markdown (`## intent:greet`, `- hello`) or YAML (`- intent: greet`, `examples: |`)."""
    options.understood.add(path, "Rasa", text="examples", intent="headings", slots="[text](entity)")
    intent = None
    for where, row in named_rows(path, options.encoding):
        if match := RASA_INTENT.match(row):
            intent = match[1].strip("\"'")
        elif RASA_OTHER.match(row):
            intent = None
        elif intent and (match := re.match(r"\s*[-*]\s+(.+?)\s*$", row)):
            if re.match(r"text:\s*\|?$", match[1]):
                advice = "write them as `- hello` below `examples: |`"
                raise UserError(f"{where}: examples with `text:` are not supported; {advice}")
            text, spans = without_marks(match[1], "[nine am](time)", where)
            yield {"_where": where, "text": text, "intent": intent, "slots": spans}


def is_rasa(rows: Sequence[str]) -> bool:
    """Returns True if the first rows of a file are Rasa intent examples (and not Rasa stories)."""
    markdown = any(re.match(r"##\s*intent:", row) for row in rows)
    return markdown or (any(re.match(r"nlu:\s*$", row) for row in rows) and any(map(RASA_INTENT.match, rows)))
