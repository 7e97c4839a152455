"""Tags of words: schemes such as BIO and BIOES, and which tag may follow which."""

import re
from collections.abc import Iterable, Sequence

from engine.task.task import (  # noqa: F401 (during a move)
    IGNORE,
    PARTS_OF_A_ROW,
    TASK,
    Task,
    needs_words,
    read_tasks,
    require_distinct,
)


def is_tagging(kind: str) -> bool:
    return kind == "tagging"


def has_spans(kind: str) -> bool:
    return kind == "spans"


def kind_of(task: Task) -> str:
    return task.kind if isinstance(task, Task) else task.get("kind", task["type"])


class TagFacts:
    """What lists of tags reveal about their scheme; facts of several blocks of rows can be merged."""

    def __init__(self):
        self.tags, self.i_starts, self.b_starts = set(), False, False

    def add(self, tags: Sequence[str]) -> None:
        """Records the tags, and whether entities begin with I- or with B- when none of their type precedes."""
        self.tags.update(tags)
        before = "O"
        for tag in tags:
            if tag != "O" and (before == "O" or before[2:] != tag[2:]):
                if tag[0] == "I":
                    self.i_starts = True
                elif tag[0] == "B":
                    self.b_starts = True
            before = tag

    def merge(self, other: "TagFacts") -> None:
        self.tags |= other.tags
        self.i_starts |= other.i_starts
        self.b_starts |= other.b_starts

    @property
    def scheme(self) -> str | None:
        """See find_scheme."""
        letters = {tag[0] if re.match(r"[BIESMLU]-.", tag) else "" for tag in self.tags - {"O"}}
        if not letters or "" in letters:
            return None
        if letters & {"L", "U"}:
            return "bilou"
        if "M" in letters:
            return "bmes"
        if letters & {"E", "S"}:
            return "bioes"
        return "iob1" if self.i_starts and not self.b_starts else "bio"


def find_scheme(tag_lists: Iterable[Sequence[str]]) -> str | None:
    """ "bio", "iob1", "bioes", "bmes" or "bilou"; None if the tags do not mark entities (parts of speech, say).

    IOB1 writes B- only where an entity follows one of its own type directly (Ramshaw and Marcus, 1995).
    """
    facts = TagFacts()
    for tags in tag_lists:
        facts.add(tags)
    return facts.scheme


def entities_in(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """[(type, first token, last token)] of a list of tags, as seqeval's get_entities reads them.

    This version needs no scikit-learn and skips tokens outside entities.
    """
    found, before, kind_before, begin = [], "O", "_", 0
    for i, chunk in enumerate([*tags, "O"]):
        if chunk == before == "O":
            kind_before = "_"
            continue
        tag, kind = chunk[0], chunk[1:].split("-", 1)[-1] or "_"
        another = kind != kind_before
        if before in "ES" or (before in "BI" and tag in "BSO") or (another and before not in "O."):
            found.append((kind_before, begin, i - 1))
        if tag in "BS" or (tag in "EI" and before in "ESO") or (another and tag not in "O."):
            begin = i
        before, kind_before = tag, kind
    return found


def may_follow(before: str, tag: str, bioes: bool) -> bool:
    """Whether `tag` may follow `before`; "O" stands for the start and the end of a text.

    BIO: an I- continues a B- or I- of its type. BIOES (BMES): in addition, an open entity must be closed by an E-.
    """
    is_open = before[:2] in ("B-", "I-", "M-")
    if tag[:2] in ("I-", "E-", "M-"):
        return is_open and before[2:] == tag[2:]
    return not (bioes and is_open)


def illegal_tags(tags: Sequence[str]) -> list[int]:
    """Positions of tags that break BIO or BIOES: an I-, E- or M- that continues no entity of its type."""
    return [i for i, (before, tag) in enumerate(zip(["O", *tags], tags)) if not may_follow(before, tag, bioes=False)]
