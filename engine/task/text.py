"""Text <-> tokens."""

from collections.abc import Iterable
from typing import Any

import regex

from engine.task import words
from engine.task.task import Task
from engine.task.words import Offsets

HAN = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
# Format characters, such as U+200C in Persian, U+200D in Hindi and soft hyphens, are part of a word like a letter;
# those that bracket text of another direction are symbols, and U+200B only joins (see JOINER)
LETTER = rf"[[\p{{L}}\p{{M}}\p{{N}}_\p{{Cf}}]--{HAN}--[\u200b\u202a-\u202e\u2066-\u2069]]"
SPACELESS = r"\p{Line_Break=Complex_Context}"  # letters of Thai, Lao, Khmer, …, where U+200B separates words
PICTURE, FLAG = r"\p{Extended_Pictographic}", r"\p{Regional_Indicator}"
VARIANT = r"[\p{Emoji_Modifier}\ufe0e\ufe0f\u20e3\U000e0020-\U000e007f]"  # modifies the emoji before it
SYMBOL = rf"{FLAG}{{2}}|[^\s]{VARIANT}*(?:\u200d{PICTURE}{VARIANT}*)*"
JOINER = rf"[-'’.:/@&]|(?<=\d),(?=\d)|(?<!{SPACELESS})\u200b"
WORD = rf"(?V1){HAN}|{LETTER}+(?:(?:{JOINER}){LETTER}+)*|{SYMBOL}"
CLASSES = (HAN, LETTER, SPACELESS, PICTURE, FLAG, VARIANT, r"[^\s]", r"\d")  # classes of characters in WORD
HAN_CHARACTER = regex.compile(HAN)


def split_text(text: str, unit: str) -> list[tuple[str, int, int]]:
    """[(token, start, end)] of a raw text: characters, or words, where each Chinese character and symbol is one.

    An empty text is one empty token, which the loader turns into [UNK].
    """
    pattern = {"word": WORD, "character": r"\S", "character+blank": r"(?s)."}[unit]
    return [(m.group(), m.start(), m.end()) for m in regex.finditer(pattern, text)] or [("", 0, 0)]


def join_tokens(tokens: Iterable[str], unit: str) -> tuple[str, Offsets]:
    """The text of tokens and their offsets. A space separates words, but not Chinese characters."""
    return words.join_tokens(tokens, unit, HAN_CHARACTER)


def token_unit(tasks: dict[str, Task]) -> str | None:
    """The unit of tokens in tasks of tags or spans: "word", "character", "character+blank"; None without such tasks."""
    return next((task.unit for task in tasks.values() if task.needs_words), None)


def text_and_offsets(example: dict[str, Any], tasks: dict[str, Task]) -> tuple[str, Offsets | None]:
    """The text of an example, and the offsets of its tokens in it, None without tokens."""
    return words.text_and_offsets(example, token_unit(tasks) or "word", HAN_CHARACTER)


def text_of(example: dict[str, Any], with_pair: bool = False) -> str:
    """The text of an example, or its tokens joined by spaces; with_pair: also its second text."""
    if "tokens" in example:
        return " ".join(example["tokens"])
    return " ".join(filter(None, (example["text"], example.get("text_pair")))) if with_pair else example["text"]
