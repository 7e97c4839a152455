"""Marks entities in texts, including nested and crossing entities."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from tools.report.entities import Match
from tools.report.figures import Row


class Mark(NamedTuple):
    start: int  # in characters
    end: int
    label: str
    verdict: str  # one of entities.VERDICTS, or ""
    first: bool = True  # False for the later pieces of a split entity


def split_crossing(marks: Sequence[Mark]) -> list[Mark]:
    """Splits marks so that any two pieces are disjoint or nested. Returns the pieces, outer ones first."""
    todo = sorted(marks, key=outer_first)
    done: list[Mark] = []
    while todo:
        mark = todo.pop(0)
        boundary = min((d.end for d in done if d.start <= mark.start < d.end < mark.end), default=None)
        if boundary is None:
            done.append(mark)
            continue
        done.append(mark._replace(end=boundary))
        todo.append(mark._replace(start=boundary, first=False))
        todo.sort(key=outer_first)
    return sorted(done, key=outer_first)


def outer_first(mark: Mark) -> tuple[int, int]:
    return mark.start, -mark.end


def tree(text: str, marks: Sequence[Mark], start: int = 0, end: int | None = None) -> list:
    """Returns a slice of a text as a nested list of strings and (Mark, content) pairs, where content is again such a
    list. marks: from `split_crossing`."""
    end = len(text) if end is None else end
    parts: list[Any] = []
    position = start
    marks = [mark for mark in marks if start <= mark.start and mark.end <= end]
    while marks:
        mark = marks[0]
        inside = [inner for inner in marks[1:] if inner.start < mark.end]
        if mark.start > position:
            parts.append(text[position : mark.start])
        parts.append((mark, tree(text, inside, mark.start, mark.end)))
        position, marks = mark.end, marks[1 + len(inside) :]
    return [*parts, text[position:end]] if position < end else parts


def marks_of(row: Row, matches: Sequence[Match], side: str) -> list[Mark]:
    """Returns the marks of a row's entities. side: "gold" or "predicted"."""
    found = [(match.verdict, *entity) for match in matches if (entity := getattr(match, side))]
    return [mark_of(row, first, last, kind, verdict) for verdict, kind, first, last in found]


def mark_of(row: Row, first: int, last: int, label: str, verdict: str = "") -> Mark:
    """Returns the mark of a token span. verdict: "" for subjects and objects of relations."""
    return Mark(row["places"][first][0], row["places"][last][1], label, verdict)


def window(row: Row, matches: Sequence[Match], most: int = 600, before: int = 120) -> tuple[int, int]:
    """Returns (start, end) of an excerpt of a long text that starts shortly before the first error."""
    size = len(row["text"])
    if size <= most:
        return 0, size
    wrong = [match.either for match in matches if match.verdict != "right"]
    first = min((row["places"][min(places)][0] for _, *places in wrong), default=0)
    start = max(0, min(first - before, size - most)) if first > most - before else 0
    return start, start + most


def drawn(row: Row, marks: Sequence[Mark], start: int, end: int) -> list:
    """Returns an excerpt of a row's text with these marks as a `tree`."""
    inside = [m for m in marks if m.start < end and m.end > start and m.start < m.end]
    cut = [m._replace(start=max(m.start, start), end=min(m.end, end)) for m in inside]
    return tree(row["text"], split_crossing(cut), start, end)
