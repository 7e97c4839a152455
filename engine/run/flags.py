"""Parses flags using only the standard library; every exported folder contains a copy of this file."""

import argparse
import re
import sys
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, NoReturn

# Escape sequences, control characters except \t and \n, bidirectional controls, and Unicode line separators
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")


def printable(text: str) -> str:
    """Escapes characters that would control a terminal or start a new line, such as \\x1b."""
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """Like `printable`, but also escapes line breaks, which a file name may contain."""
    return printable(text).replace("\n", "\\n")


class OneLineParser(argparse.ArgumentParser):
    """Reports a command-line error on one line."""

    def __init__(self, **options: Any):
        spec = getattr(sys.modules["__main__"], "__spec__", None)  # set by `python -m tools.NAME`
        super().__init__(prog=f"python -m {spec.parent}" if spec and spec.parent else None, **options)

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split(" ")[0].split("=")[0]
        if unknown != message and (close := get_close_matches(unknown, self._option_string_actions, n=1)):
            message += f"; did you mean {close[0]}?"
        self.exit(2, one_line(f"error: {message} (--help lists all flags)") + "\n")


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """Returns a parser for whole numbers from `low` to `high`, to be used as an argparse type."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"{text[:30]!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse
