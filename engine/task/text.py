"""Splits texts into tokens and joins tokens into texts."""

from collections.abc import Iterable
from typing import Any

import regex

from engine.task import words
from engine.task.task import Task
from engine.task.words import Offsets

HAN = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
# Format characters (U+200C in Persian, U+200D in Hindi, soft hyphens) belong to words, like letters; but the embedding
# and isolate marks of bidirectional text are symbols, and U+200B only joins words (see JOINER)
LETTER = rf"[[\p{{L}}\p{{M}}\p{{N}}_\p{{Cf}}]--{HAN}--[\u200b\u202a-\u202e\u2066-\u2069]]"
SPACELESS = r"\p{Line_Break=Complex_Context}"  # Thai, Lao, Khmer, …: U+200B separates their words
PICTURE, FLAG = r"\p{Extended_Pictographic}", r"\p{Regional_Indicator}"
VARIANT = r"[\p{Emoji_Modifier}\ufe0e\ufe0f\u20e3\U000e0020-\U000e007f]"  # modifiers of the preceding emoji
SYMBOL = rf"{FLAG}{{2}}|[^\s]{VARIANT}*(?:\u200d{PICTURE}{VARIANT}*)*"
JOINER = rf"[-'’.:/@&]|(?<=\d),(?=\d)|(?<!{SPACELESS})\u200b"
WORD = rf"(?V1){HAN}|{LETTER}+(?:(?:{JOINER}){LETTER}+)*|{SYMBOL}"
CLASSES = (HAN, LETTER, SPACELESS, PICTURE, FLAG, VARIANT, r"[^\s]", r"\d")  # character classes in WORD
HAN_CHARACTER = regex.compile(HAN)


def split_text(text: str, unit: str) -> list[tuple[str, int, int]]:
    """Splits a raw text into characters or words, [(token, start, end)]. Each Chinese character and each symbol is a
    word.

    The result for an empty text is one empty token, which the loader replaces with [UNK].
    """
    pattern = {"word": WORD, "character": r"\S", "character+blank": r"(?s)."}[unit]
    return [(m.group(), m.start(), m.end()) for m in regex.finditer(pattern, text)] or [("", 0, 0)]


def join_tokens(tokens: Iterable[str], unit: str) -> tuple[str, Offsets]:
    """Joins tokens into a text. Returns (text, offsets). Words are separated by spaces, except Chinese characters."""
    return words.join_tokens(tokens, unit, HAN_CHARACTER)


def token_unit(tasks: dict[str, Task]) -> str | None:
    """Returns the token unit of the tagging and span tasks ("word", …); None if there are none."""
    return next((task.unit for task in tasks.values() if task.needs_words), None)


def text_and_offsets(example: dict[str, Any], tasks: dict[str, Task]) -> tuple[str, Offsets | None]:
    """Returns the text of an example and the offsets of its tokens; the offsets are None if it has no tokens."""
    return words.text_and_offsets(example, token_unit(tasks) or "word", HAN_CHARACTER)


def text_of(example: dict[str, Any], with_pair: bool = False) -> str:
    """Returns the text of an example, or its tokens joined by spaces; with_pair: followed by the second text."""
    if "tokens" in example:
        return " ".join(example["tokens"])
    return " ".join(filter(None, (example["text"], example.get("text_pair")))) if with_pair else example["text"]
