"""The prompt of `python -m tools.demo --terminal`, which labels typed text.

If stdin is not a terminal, each line is a text and no prompt is shown. Colours are used only in terminals, unless
NO_COLOR is set (https://no-color.org).
"""

import contextlib
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from engine.data.own_inputs import input_columns
from engine.errors import UserError
from engine.run.command_line import one_line
from engine.task.task import pairs_of
from tools.demo.typed import Labeller, Tasks

COLOURS = (34, 33, 32, 35, 31, 36, 94, 95)  # SGR codes, one per entity type
BOLD, DIM = "1", "2"
Paint = Callable[..., str]  # from `painter`


def run_prompt(label: Labeller) -> int:
    """Reads texts and prints their labels until Ctrl-D, then returns 0. Ctrl-C raises KeyboardInterrupt."""
    stdin: Any = sys.stdin
    stdout: Any = sys.stdout
    stdin.reconfigure(errors="surrogateescape")
    stdout.reconfigure(errors="replace")
    stdout.styled = True  # see PrintableOutput; all escape sequences come from `painter`
    is_terminal = stdin.isatty()
    paint = painter(stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb")
    if is_terminal:
        with contextlib.suppress(ImportError):  # enables arrow keys and long lines
            import readline  # noqa: F401
        print("Type a text; Ctrl-D quits.")
    while True:
        try:
            given = ask(label.tasks, is_terminal)
            if given is not None:
                print(format_result(label([given])[0], paint), flush=True)
        except EOFError:
            if is_terminal:
                print()
            return 0
        except KeyboardInterrupt:
            print()
            raise
        except UserError as error:
            print(one_line(f"error: {error}"), file=sys.stderr, flush=True)


def ask(tasks: Tasks, is_terminal: bool) -> dict[str, Any] | None:
    """Reads the text, the second text and the numeric columns from one line each. Returns None if the text is empty."""

    def read(name: str) -> str:
        return input(f"{name}> " if is_terminal else "").removesuffix("\r")

    given: dict[str, Any] = {"text": read("text")}
    if not given["text"].strip():
        return None
    if pairs_of(tasks):
        given["text_pair"] = read("second text")
    if columns := input_columns(tasks):
        given["extras"] = {name: read(name) for name in columns}
    return given


def painter(colours: bool) -> Paint:
    """Returns paint(text, SGR codes), which colours a text and replaces its control characters with U+FFFD."""

    def paint(text: str, *codes: object) -> str:
        plain = "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in text)
        return f"\x1b[{';'.join(map(str, codes))}m{plain}\x1b[0m" if colours and codes else plain

    return paint


def format_result(result: dict[str, Any], paint: Paint) -> str:
    """Formats a result of a Labeller for a terminal."""
    width = max(len(task["task"]) for task in result["tasks"])
    lines = [f"  {paint(task['task'].ljust(width), DIM)}  {format_task(task, paint)}" for task in result["tasks"]]
    if result["cut"]:
        lines.append(f"  the text is longer than --max_length; truncated sub-tokens: {result['cut']}")
    return "\n".join(lines)


def format_task(task: dict[str, Any], paint: Paint) -> str:
    if "marked" in task:
        return "\n".join([marked_line(task["marked"], paint), *relation_lines(task.get("relations", ()), paint)])
    if "value" in task:
        return paint(f"{task['value']:.6g}", BOLD)
    labels = [
        paint(name if p is None else f"{name} {p:.4f}", BOLD if chosen else DIM) for name, p, chosen in task["labels"]
    ]
    none = "" if any(chosen for _, _, chosen in task["labels"]) else paint("none", BOLD) + "  "
    return none + "  ".join(labels)


def relation_lines(relations: Sequence[list], paint: Paint) -> Iterator[str]:
    """Yields one line per relation to show below the text: subject, predicate, object, probability."""
    for subject, one, predicate, object_, other, probability in relations:
        sure = "" if probability is None else f" {probability:.4f}"
        arrow = paint(f"— {predicate} →", BOLD)
        yield f"    {paint(subject)} {paint(str(one), DIM)} {arrow} {paint(object_)} {paint(str(other), DIM)}{sure}"


def marked_line(pieces: list, paint: Paint, colours: Sequence[object] = ()) -> str:
    """Formats a text with entities as [text type], coloured by type. Entities can be nested."""
    line = ""
    for piece in pieces:
        if isinstance(piece, str):
            line += paint(piece, *colours)
            continue
        inner = (BOLD, COLOURS[piece["colour"]])
        line += paint("[" if piece["first"] else "[…", *inner) + marked_line(piece["inside"], paint, inner)
        line += paint(f" {piece['label']}]", *inner)
    return line
