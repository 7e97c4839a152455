"""Texts with entities marked in place, also nested and crossing ones."""

from typing import NamedTuple


class Mark(NamedTuple):
    start: int  # characters
    end: int
    label: str
    verdict: str  # one of entities.VERDICTS
    first: bool = True  # whether the entity begins here; False for the later pieces of a split entity


def split_crossing(marks):
    """The marks, split into pieces so that any two are disjoint or nested; outer ones first."""
    todo, done = sorted(marks, key=lambda m: (m.start, -m.end)), []
    while todo:
        mark = todo.pop(0)
        border = min((d.end for d in done if d.start <= mark.start < d.end < mark.end), default=None)
        if border is None:
            done.append(mark)
            continue
        done.append(mark._replace(end=border))
        todo.append(mark._replace(start=border, first=False))
        todo.sort(key=lambda m: (m.start, -m.end))
    return sorted(done, key=lambda m: (m.start, -m.end))


def tree(text, marks, start=0, end=None):
    """A text between two positions as [string, or (Mark, such a list of its inside)]. marks: from `split_crossing`"""
    end = len(text) if end is None else end
    found, position = [], start
    marks = [mark for mark in marks if start <= mark.start and mark.end <= end]
    while marks:
        mark, inside = marks[0], []
        for other in marks[1:]:
            if other.start >= mark.end:
                break
            inside.append(other)
        if mark.start > position:
            found.append(text[position : mark.start])
        found.append((mark, tree(text, inside, mark.start, mark.end)))
        position, marks = mark.end, marks[1 + len(inside) :]
    return [*found, text[position:end]] if position < end else found


def marks_of(row, matches, side):
    """Marks of the gold or predicted entities of a row. matches: [entities.Match]; side: "gold", "predicted"."""
    found, places = [], row["places"]
    for one in matches:
        if entity := getattr(one, side):
            kind, first, last = entity
            found.append(Mark(places[first][0], places[last][1], kind, one.verdict))
    return split_crossing([mark for mark in found if mark.start < mark.end])


def window(row, matches, most=600, before=120):
    """(start, end) of the part of a long text to show; it starts a little before the first error."""
    size = len(row["text"])
    if size <= most:
        return 0, size
    wrong = [one for one in matches if one.verdict != "right"]
    first = min((row["places"][(one.gold or one.predicted)[1]][0] for one in wrong), default=0)
    start = max(0, min(first - before, size - most)) if first > most - before else 0
    return start, start + most


def drawn(row, matches, side):
    """The tree of a row's text, in the part chosen by `window`, with the entities of one side."""
    start, end = window(row, matches)
    marks = [m for m in marks_of(row, matches, side) if m.start < end and m.end > start]
    marks = [m._replace(start=max(m.start, start), end=min(m.end, end)) for m in marks]
    return tree(row["text"], split_crossing(marks), start, end)
