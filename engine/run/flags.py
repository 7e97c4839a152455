"""Parses flags with the standard library alone; every exported folder has a copy of this file."""

import argparse
import sys
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, NoReturn


def one_line(text: str) -> str:
    """The text with line breaks, escape sequences and other non-printable characters escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


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
    """A type for argparse: whole numbers from `low` to `high`, in plain digits."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"{text[:30]!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse
