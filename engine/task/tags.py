"""Tags of words: schemes such as BIO and BIOES, and which tag may follow which."""

import re
from collections.abc import Iterable, Sequence


class TagFacts:
    """What lists of tags reveal about their scheme; facts of several blocks of rows can be merged."""

    def __init__(self) -> None:
        self.tags: set[str] = set()
        self.starts: set[str] = set()  # first letters of tags that no tag of their type precedes

    def add(self, tags: Sequence[str]) -> None:
        self.tags.update(tags)
        for before, tag in zip(["O", *tags], tags):
            if tag != "O" and (before == "O" or before[2:] != tag[2:]):
                self.starts.add(tag[0])

    def merge(self, other: "TagFacts") -> None:
        self.tags |= other.tags
        self.starts |= other.starts

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
        return "iob1" if "I" in self.starts and "B" not in self.starts else "bio"


def find_scheme(tag_lists: Iterable[Sequence[str]]) -> str | None:
    """ "bio", "iob1", "bioes", "bmes" or "bilou"; None if the tags do not mark entities (parts of speech, say).

    IOB1 writes B- only where an entity follows one of its own type directly (Ramshaw and Marcus, 1995).
    """
    facts = TagFacts()
    for tags in tag_lists:
        facts.add(tags)
    return facts.scheme


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
