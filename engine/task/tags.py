"""Tagging schemes (BIO, BIOES, …), notations of tags, and valid transitions."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # exported folders contain this module without engine.task.task
    from engine.task.task import Task

LETTERS = frozenset("BIESMLU")  # letters of BIO, BIOES, BMES and BILOU


class Tag(NamedTuple):
    """An entity tag such as B-LOC. The kind of O is empty."""

    letter: str
    kind: str


class Notation(NamedTuple):
    """A notation of entity tags: B-LOC, LOC-B or b-LOC."""

    behind: bool = False  # LOC-B; Korean corpora with this notation use - instead of O: PER_B PER_I -
    lower: bool = False  # b-LOC
    signs: str = "-_"  # accepted separators between letter and kind

    @property
    def name(self) -> str:
        return f"X{self.signs[0]}B" if self.behind else f"B{self.signs[0]}X"

    def parse(self, tag: str) -> Tag | None:
        """Splits a tag into letter and kind; returns None if it is not in this notation."""
        if tag == "O" or (tag == "o" and self.lower) or (tag == "-" and self.behind):
            return Tag("O", "")
        letter, sign, kind = (tag[-1:], tag[-2:-1], tag[:-2]) if self.behind else (tag[:1], tag[1:2], tag[2:])
        if not kind or kind[0].isspace() or sign not in self.signs or self.lower != letter.islower():
            return None
        return Tag(letter, kind) if letter.upper() in LETTERS else None


STANDARD = Notation(signs="-")  # used in processed folders
USUAL = Notation()
NOTATIONS = [USUAL, Notation(behind=True), Notation(lower=True)]  # the most frequent first


def notation_of(tags: Iterable[str]) -> Notation | None:
    """Returns the notation of the tags; None if they are not all entity tags in the same notation."""
    distinct = set(tags)
    return next((n for n in NOTATIONS if distinct - {"-"} and all(map(n.parse, distinct))), None)


def parse_tag(tag: str) -> Tag | None:
    """Splits a tag by the first notation that matches; returns None if none does."""
    return next(filter(None, (notation.parse(tag) for notation in NOTATIONS)), None)


class TagFacts:
    """Collects evidence for the tagging scheme of lists of tags. Objects can be merged."""

    def __init__(self) -> None:
        self.tags: set[str] = set()
        self.starts: set[str] = set()  # letters of tags that do not follow a tag of their type

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
        """The tagging scheme, see `find_scheme`."""
        tags = [STANDARD.parse(tag) for tag in self.tags - {"O"}]
        letters = {tag.letter for tag in tags if tag}
        if not tags or None in tags:
            return None
        if letters & {"L", "U"}:
            return "bilou"
        if "M" in letters:
            return "bmes"
        if letters & {"E", "S"}:
            return "bioes"
        return "iob1" if "I" in self.starts and "B" not in self.starts else "bio"


def find_scheme(tag_lists: Iterable[Sequence[str]]) -> str | None:
    """Returns "bio", "iob1", "bioes", "bmes" or "bilou"; None for other tags, such as parts of speech.

    IOB1 uses B- only for an entity that directly follows one of the same type (Ramshaw and Marcus, 1995).
    """
    facts = TagFacts()
    for tags in tag_lists:
        facts.add(tags)
    return facts.scheme


@lru_cache  # called for each text
def are_of_entities(labels: tuple[str, ...]) -> bool:
    """Returns whether the tags mark entities (B-, I-, …), rather than, for example, parts of speech."""
    tags = [tag for tag in labels if tag != "O"]
    return not tags or find_scheme([tags]) is not None


def may_follow(before: str, tag: str, bioes: bool) -> bool:
    """Returns whether `tag` may follow `before`; "O" stands for the start and the end of a text.

    BIO: I- must follow B- or I- of the same type. BIOES, BMES: also, an entity that begins with B- must end with E-.
    """
    is_open = before[:2] in ("B-", "I-", "M-")
    if tag[:2] in ("I-", "E-", "M-"):
        return is_open and before[2:] == tag[2:]
    return not (bioes and is_open)


def continuations(labels: Sequence[str]) -> list[list[bool]]:
    """Returns, for each pair of tags (a, b), whether b continues the entity of a: I- or E- after B- or I- of the same
    type. -> (C, C)"""
    return [
        [a[:2] in ("B-", "I-", "M-") and b[:2] in ("I-", "E-", "M-") and a[2:] == b[2:] for b in labels] for a in labels
    ]


def illegal_tags(tags: Sequence[str]) -> list[int]:
    """Returns the positions of I-, E- and M- tags that do not continue an entity of their type."""
    return [i for i, (before, tag) in enumerate(zip(["O", *tags], tags)) if not may_follow(before, tag, bioes=False)]


def names_entities(task: "Task") -> bool:
    """Returns whether the tags of a task mark entities (B-, I-, …) rather than, for example, parts of speech."""
    return are_of_entities(tuple(task.labels))


def outside_id(task: "Task") -> int:
    """Returns the id of O, or 0 if the task has no O."""
    return task.labels.index("O") if "O" in task.labels else 0
