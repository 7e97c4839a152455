"""python -m tools.demo --terminal: a prompt in the terminal that labels each typed text.

If stdin is not a terminal, each line is a text and there is no prompt. Colours are used only in terminals, unless
NO_COLOR is set (https://no-color.org).
"""

import contextlib
import os
import sys
import unicodedata

from engine.errors import UserError
from engine.run.command_line import one_line
from engine.task.extras import extras_of, pairs_of

COLOURS = (34, 33, 32, 35, 31, 36, 94, 95)  # SGR codes, one per entity type
BOLD, DIM = "1", "2"


def run_prompt(label):
    """Reads texts and prints their labels until Ctrl-D. label: a Labeller. Ctrl-C raises KeyboardInterrupt."""
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(errors="surrogateescape" if stream is sys.stdin else "replace")
    sys.stdout.styled = True  # see PrintableOutput; the only escape sequences are those of `painter`
    asks = sys.stdin.isatty()
    paint = painter(sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb")
    if asks:
        with contextlib.suppress(ImportError):  # arrow keys, and lines longer than the terminal's limit
            import readline  # noqa: F401
        print("Type a text; Ctrl-D quits.")
    while True:
        try:
            given = ask(label.tasks, asks)
            if given is None:
                continue
            print(drawn(label([given])[0], paint), flush=True)
        except EOFError:
            return print() if asks else None
        except KeyboardInterrupt:
            print()
            raise
        except UserError as error:
            print(one_line(f"error: {error}"), file=sys.stderr, flush=True)


def ask(tasks, asks):
    """Reads one line for each input: the text, a second text, each column. None if the text is empty."""
    given = {"text": read("text> ", asks)}
    if not given["text"].strip():
        return None
    if pairs_of(tasks):
        given["text_pair"] = read("second text> ", asks)
    if columns := extras_of(tasks):
        given["extras"] = {name: read(f"{name}> ", asks) for name in columns}
    return given


def read(question, asks):
    return input(question if asks else "").removesuffix("\r")


def painter(colours):
    """paint(text, SGR codes) -> the text, in colour or plain, with control characters replaced by U+FFFD."""

    def paint(text, *codes):
        plain = "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in text)
        return f"\x1b[{';'.join(map(str, codes))}m{plain}\x1b[0m" if colours and codes else plain

    return paint


def drawn(answer, paint):
    """An answer of a Labeller as lines for a terminal."""
    width = max(len(task["task"]) for task in answer["tasks"])
    lines = [f"  {paint(task['task'].ljust(width), DIM)}  {answer_line(task, paint)}" for task in answer["tasks"]]
    if answer["cut"]:
        lines.append(f"  {answer['cut']} sub-tokens at the end were cut off: the text is longer than --max_length")
    return "\n".join(lines)


def answer_line(task, paint):
    if "marked" in task:
        return marked_line(task["marked"], paint)
    if "value" in task:
        return paint(f"{task['value']:.6g}", BOLD)
    parts = [
        paint(name if p is None else f"{name} {p:.4f}", BOLD if chosen else DIM) for name, p, chosen in task["labels"]
    ]
    none = "" if any(chosen for _, _, chosen in task["labels"]) else paint("none", BOLD) + "  "
    return none + "  ".join(parts)


def marked_line(pieces, paint, colours=()):
    """A line with entities as [text type], also nested, coloured by type."""
    line = ""
    for piece in pieces:
        if isinstance(piece, str):
            line += paint(piece, *colours)
            continue
        inner = (BOLD, COLOURS[piece["colour"]])
        line += paint("[" if piece["first"] else "[…", *inner) + marked_line(piece["inside"], paint, inner)
        line += paint(f" {piece['label']}]", *inner)
    return line
