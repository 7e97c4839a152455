"""Tags of words: schemes such as BIO and BIOES, and which tag may follow which."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.schema import AnyOf, Optional, Range, SchemaError, read_json
from engine.task.words import entities_in as entities_in  # also for those who import it from here

PARTS_OF_A_ROW = ("id", "text", "tokens", "text_pair", "extras", "kept")
IGNORE = -100  # label id where there is no label: torch's ignore_index


STATISTICS = {"mean": float, "std": Range(1e-300, 1e300)}
TASK = {
    "type": str,
    "labels": [str],
    Optional("kind"): str,
    Optional("counts"): [Range(0)],
    Optional("rows"): Range(0),
    Optional("unit"): AnyOf("word", "character", "character+blank"),
    Optional("pairs"): AnyOf(bool, None),
    Optional("extras"): {str: STATISTICS},
}


def read_tasks(path: str | Path) -> dict[str, dict]:
    """labels.json of a processed folder or a checkpoint: {task: {"type", "labels", …}}. Raises UserError for any
    other form."""
    try:
        tasks = read_json(path, {str: TASK})
        for name, task in tasks.items():
            if not task["labels"]:  # regression
                read_json(path, {name: STATISTICS})
            elif "" in task["labels"]:
                raise SchemaError(f"{path}: {name}.labels has an empty label")
            elif len(task.get("counts", task["labels"])) != len(task["labels"]):
                raise SchemaError(f"{path}: {name}.counts and {name}.labels differ in length")
            if needs_words(task["type"]):
                task.setdefault("unit", "word")
    except SchemaError as error:
        raise UserError(f"{error}; create it again, or use an intact one") from None
    if not tasks:
        raise UserError(f"{path}: lists no task")
    require_distinct(path, tasks)
    return tasks


def require_distinct(path: str | Path, names: Iterable[str]) -> None:
    """Raises UserError if two columns of the predictions would have the same name: a task's, or a field of a row."""
    owners = dict.fromkeys(PARTS_OF_A_ROW, "the row itself")
    for name in names:
        for column in (name, f"{name}_tags", f"{name}_probability"):
            if column in owners:
                both = f"the column {column!r} would belong to {name!r} and to {owners[column]!r}"
                raise UserError(f"{path}: {both}; rename the label column")
            owners[column] = name


def is_tagging(kind: str) -> bool:
    """Whether a task of this type has one label per word. Custom types of this kind end in "tagging"."""
    return kind.endswith("tagging")


def kind_of(task: dict[str, Any]) -> str:
    """What a task's labels look like: its type, or for a custom type the kind that it names."""
    return task.get("kind", task["type"])


def has_spans(kind: str) -> bool:
    """Whether the labels of a task of this type are spans of words, which may overlap. Custom types of this kind end
    in "spans"."""
    return kind.endswith("spans")


def needs_words(kind: str) -> bool:
    """Whether a task of this type needs texts split into tokens."""
    return is_tagging(kind) or has_spans(kind)


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
