"""Examples as the readers yield them: dicts with "_where" (the source), "text" or "tokens", and one key per task.

Defines the names of the other keys and of the splits, and checks texts.
"""

import json
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.task.task import EXAMPLE_KEYS

Example = dict[str, Any]
SPLITS = ("train", "dev", "test")
SPLIT_ALIASES = {
    **dict.fromkeys(("train", "training", "训练", "训练集"), "train"),
    **dict.fromkeys(("dev", "devel", "development", "valid", "val", "validation", "validate", "eval"), "dev"),
    **dict.fromkeys(("testa", "验证集", "开发集"), "dev"),  # testa, testb: CoNLL-2003
    **dict.fromkeys(("test", "testing", "testb", "测试", "测试集"), "test"),
}
SPLIT_NUMBER = re.compile(r"^.*\d(?=[a-z])|\d+$")  # numbers before or after the name of a split: wnut17train, train2
CAPITAL = re.compile(r"(?<=[a-z])(?=(?:Train|Dev|Valid|Val|Test|Data|Set)(?![a-z]))")  # trainData
TEXT_KEYS = ("text", "tokens", "text_pair")
HIDDEN = ("_where", "split", "group")  # keys that are not stored
RESERVED = (*EXAMPLE_KEYS, *HIDDEN)  # keys other than labels
SENTENCE_ENDS = frozenset(".。!！?？…")
MAX_TOKENS, MAX_CHARACTERS = 50, 2000  # a file with a single example of this length was probably misread


def aliases_in(path: str | Path) -> list[str]:
    """Returns the words of a file name or key that are in SPLIT_ALIASES."""
    words = [word.lower() for piece in re.split(r"[._\-\s]+", Path(path).name) for word in CAPITAL.split(piece)]
    words = [word if word in SPLIT_ALIASES else SPLIT_NUMBER.sub("", word) for word in words]
    return [word for word in words if word in SPLIT_ALIASES]


def split_from_name(path: str | Path) -> str | None:
    """Returns the split in a file name (train.csv, atis.dev.txt, wnut17train.conll, test-00000-of-00001.parquet) or key
    (oos_val), or None if there is none or more than one."""
    splits = {SPLIT_ALIASES[word] for word in aliases_in(path)}
    return splits.pop() if len(splits) == 1 else None


def cut(text: str, limit: int = 60) -> str:
    """Truncates a long text for a one-line message."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text):,} characters)"


def counted(number: int, noun: str) -> str:
    """Formats a count: 1 label, 2 labels."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def shown(value: Any) -> str:
    """Formats a value for an error message: quoted, and truncated if it is long."""
    return cut(repr(value))


def file_of(where: str) -> str:
    """Returns the file of a source such as "FILE, row 7". A source without a row number is a file."""
    head, _, number = where.rpartition(" ")
    file, comma, word = head.rpartition(", ")
    return file if comma and number.isdecimal() and " " not in word else where


def abbreviate(names: Iterable[object], limit: int = 12, width: int = 60) -> str:
    """Formats the first of many names for a one-line message. width: maximum number of characters per name."""
    shown = [cut(str(name) if str(name).isprintable() else repr(name), width) for name in names]
    return ", ".join(shown[:limit]) + (f", … ({len(shown) - limit:,} more)" if len(shown) > limit else "")


def same_file(where: str, other: str) -> str:
    """Removes the path from `other` if `where` contains it too, so that a message states the path once."""
    head, comma, row = other.rpartition(", ")
    if comma and where.startswith(f"{head}, "):
        return row
    folder = re.match(r".*/", where)
    return other.removeprefix(folder[0]) if folder else other


def check_text(example: Example, may_be_empty: bool = False, advice: str = "") -> None:
    """Raises UserError unless the example has a usable text or tokens. advice: appended if the text is empty."""
    where, tokens, text = example["_where"], example.get("tokens"), example.get("text")
    if "tokens" in example:
        if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
            raise UserError(f"{where}: `tokens` must be a list of one or more strings{advice * (tokens == [])}")
    elif not isinstance(text, str):
        raise UserError(f"{where}: the text {shown(text)} is not a string")
    elif not text.strip() and not may_be_empty:
        raise UserError(f"{where}: the text is empty{advice}")
    if not isinstance(example.get("text_pair", ""), str):
        raise UserError(f"{where}: text_pair must be a string")


def check_characters(example: Example) -> None:
    """Raises UserError for a lone surrogate, which JSON can store but UTF-8 and tokenizers cannot."""
    for value in example.values():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            value = "".join(value)
        elif not isinstance(value, str):
            value = json.dumps(value, ensure_ascii=False)
        if not value.isascii():
            encode(value, example["_where"])


def encode(text: str, where: str) -> bytes:
    """Encodes a text as UTF-8. Raises UserError for a lone surrogate."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: contains a lone surrogate (\\ud800 to \\udfff); remove it") from None


def length_of(example: Example) -> int:
    """Returns the number of tokens of an example, or of characters if it has no tokens."""
    return len(example.get("tokens") or example["text"])


def is_whole_file(examples: Sequence[Example]) -> bool:
    """Returns True if the one to three examples of a file are so long that its delimiter was probably not recognized.
    A single example must be very long or contain several sentence ends. Of two or three, the longest must contain
    many."""
    longest = max(examples, key=length_of)
    length, tokens = length_of(longest), longest.get("tokens")
    if tokens is None:
        return len(examples) == 1 and length >= MAX_CHARACTERS
    ends = sum(token in SENTENCE_ENDS for token in tokens[:-1])
    if len(examples) > 1:
        return length >= 4 * MAX_TOKENS and ends >= 10
    return length >= MAX_TOKENS or (ends > 1 and length > 20)


def counts_up(cells: Sequence[str]) -> bool:
    """Returns True if the cells are consecutive whole numbers."""
    if not all(cell.isdecimal() and len(cell) < 16 for cell in cells):
        return False
    return all(int(after) == int(before) + 1 for before, after in pairwise(cells))
