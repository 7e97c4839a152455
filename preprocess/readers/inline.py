"""Entities that are marked inside a text: `at [nine am](time)`, `at [time : nine am]`, `at {{time:nine am}}`; texts in
pieces (Snips); and Rasa's files of marked examples (Markdown and YAML).

To add another syntax: one line in INLINE of engine/task/signs.py.
"""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.task.signs import INLINE, inline_syntax
from preprocess.example import Example
from preprocess.readers.options import ReadOptions
from preprocess.readers.raw_files import read_rows

RASA_INTENT = re.compile(r"\s*(?:##\s*intent:|-\s*intent:)\s*(.+?)\s*$")
RASA_OTHER = re.compile(
    r"##\s|\s*-\s*(?:synonym|regex|lookup|rule|story)\s*:|\S+:\s*$"
)  # ends the examples of an intent
Span = dict[str, Any]


def without_marks(text: str, syntax: str, where: str) -> tuple[str, list[Span]]:
    """(the plain text, its spans) of a text with marks. Raises UserError for marks that are left."""
    plain, spans, end = "", [], 0
    for match in re.finditer(INLINE[syntax], text):
        plain += text[end : match.start()]
        spans.append({"start": len(plain), "end": len(plain) + len(match["text"]), "label": label_of(match, where)})
        plain, end = plain + match["text"], match.end()
    plain += text[end:]
    if spans and (signs := [sign for sign in ("[", "]", "{{", "}}") if sign in plain and sign in syntax]):
        raise UserError(f"{where}: {signs[0]!r} is left of the marks {syntax!r}; correct it (marks cannot nest)")
    return plain, spans


def label_of(match: re.Match[str], where: str) -> str:
    """The label of a mark; Rasa also writes `[nine am]{"entity": "time", "role": "start"}`."""
    if match["label"]:
        return match["label"]
    try:
        return str(json.loads(match["more"])["entity"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{where}: the mark {match[0][:60]!r} has no entity") from None


def chunks_to_text(chunks: Any, where: str) -> tuple[str, list[Span]]:
    """(text, spans) of Snips's [{"text": "add "}, {"text": "a song", "entity": "title"}]."""
    text, spans = "", []
    for chunk in chunks if isinstance(chunks, list) else [chunks]:
        if not isinstance(chunk, dict) or not isinstance(chunk.get("text"), str):
            raise UserError(f"{where}: a piece of the text has no `text`")
        label, piece = chunk.get("slot_name") or chunk.get("entity") or chunk.get("alias"), chunk["text"]
        if label and piece.strip():
            start = len(text) + len(piece) - len(piece.lstrip())
            spans.append({"start": start, "end": start + len(piece.strip()), "label": label})
        text += piece
    return text, spans


def read_inline(path: Path, options: ReadOptions) -> Iterator[Example]:
    """One text per row, with its entities marked in it."""
    syntax = inline_syntax([row for _, row in islice(read_rows(path, options.encoding), 200) if row.strip()])
    if syntax is None:
        raise UserError(f"{path}: its rows have no marks of entities, such as {' or '.join(INLINE)}")
    options.understood.add(path, "texts with marks", text="rows", slots=syntax)
    for number, row in read_rows(path, options.encoding):
        if row.strip():
            text, spans = without_marks(row, syntax, f"{path}, row {number}")
            yield {"_where": f"{path}, row {number}", "text": text, "slots": spans}


def read_rasa(path: Path, options: ReadOptions) -> Iterator[Example]:
    """Rasa's examples in Markdown (`## intent:greet`, then `- hello`) or YAML (`- intent: greet`, `examples: |`)."""
    options.understood.add(path, "Rasa", text="examples", intent="headings", slots="[text](entity)")
    intent = None
    for number, row in read_rows(path, options.encoding):
        where = f"{path}, row {number}"
        if match := RASA_INTENT.match(row):
            intent = match[1].strip("\"'")
        elif RASA_OTHER.match(row):
            intent = None
        elif intent and (match := re.match(r"\s*[-*]\s+(.+?)\s*$", row)):
            if re.match(r"text:\s*\|?$", match[1]):
                raise UserError(
                    f"{where}: examples with `text:` are not read; write them as `- hello` below `examples: |`"
                )
            text, spans = without_marks(match[1], "[nine am](time)", where)
            yield {"_where": where, "text": text, "intent": intent, "slots": spans}


def is_rasa(rows: Sequence[str]) -> bool:
    """Whether the first rows of a file are Rasa's examples of intents, and not its stories."""
    markdown = any(re.match(r"##\s*intent:", row) for row in rows)
    return markdown or (any(re.match(r"nlu:\s*$", row) for row in rows) and any(map(RASA_INTENT.match, rows)))
