"""Tag schemes: which one the tags of a task are written in, and their conversion to another.

Edit here to read another tag scheme.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from engine.errors import UserError
from engine.task.tags import TagFacts
from preprocess.storage.facts import Note, Sample


def file_of(where: str) -> str:
    """The file of "FILE, row 7"."""
    head, _, number = where.rpartition(" ")
    return without_last_word(head) if number.isdecimal() else where


@lru_cache(1000)
def without_last_word(head: str) -> str:
    return re.sub(r", \S+$", "", head)


@dataclass(frozen=True)
class Scheme:
    """Converts the tags of a task to another scheme. sources: {file: its scheme}; runs: the tags have no B- and I-."""

    sources: Mapping[str, str | None]
    target: str
    runs: bool

    def convert(self, tags: Sequence[str], where: str) -> Sequence[str]:
        if self.runs:
            tags = runs_to_bio(tags)
        source = self.sources.get(file_of(where))
        return convert_tags(tags, source, self.target) if source and source != self.target else tags


def runs_to_bio(tags: Sequence[str]) -> list[str]:
    """Tags without B- and I-, such as PER and O, as BIO: a run of equal tags is an entity."""
    return [tag if tag == "O" else f"{'I' if tag == before else 'B'}-{tag}" for before, tag in zip(["O", *tags], tags)]


def convert_tags(tags: Sequence[str], source: str, target: str) -> list[str]:
    """Tags converted from one scheme to another. target: "bio" or "bioes"."""
    letters = {"bmes": {"M": "I"}, "bilou": {"L": "E", "U": "S"}}.get(source, {})
    tags = [letters.get(tag[0], tag[0]) + tag[1:] for tag in tags]
    if source == "iob1":
        tags = [
            f"B{tag[1:]}" if tag[0] == "I" and (before == "O" or before[2:] != tag[2:]) else tag
            for before, tag in zip(["O", *tags], tags)
        ]
    if source in ("bio", "iob1") and target == "bioes":
        ends = [after != f"I{tag[1:]}" for tag, after in zip(tags, [*tags[1:], "O"])]
        tags = [{"B": "S", "I": "E"}.get(tag[0], tag[0]) + tag[1:] if end else tag for tag, end in zip(tags, ends)]
    if source not in ("bio", "iob1") and target == "bio":
        tags = [{"S": "B", "E": "I"}.get(tag[0], tag[0]) + tag[1:] for tag in tags]
    return tags


def choose_scheme(
    name: str,
    files: Mapping[str, TagFacts],
    wanted: str,
    to_spans: bool,
    find_rows: Callable[[Collection[str]], Sample],
) -> tuple[Scheme | None, list[Note]]:
    """How to convert the tags of a task, None if not at all; and notes.

    wanted: "keep", a scheme, or "auto": BIO, or BIOES if all files use BIOES, BMES or BILOU. to_spans: the tags become
    spans. find_rows: finds the rows with any of these tags.
    """
    sources = {file: facts.scheme for file, facts in files.items()}
    tags = {tag for facts in files.values() for tag in facts.tags}
    strange = {tag for tag in tags if tag != "O" and not re.match(r"[BIESMLU]-.", tag)}
    runs, notes = False, []
    if wanted != "keep" and "O" in tags and len(tags) > 1 and not any(sources.values()):
        if len(strange) < len(tags) / 2:
            advice = "entities cannot be recognised until they are corrected"
            notes = [Note(f"{name}: some tags do not follow the tag scheme", find_rows(strange), advice)]
        else:
            print(f"the tags of {name!r} have no B- and I-: runs of equal tags are written as entities in BIO")
            runs, sources = True, dict.fromkeys(files, "bio")
    if to_spans and not runs and (strange or not any(sources.values())):
        raise UserError(f"--label_type {name}=spans: its tags are not entities (B-, I-, …), so there are no spans")
    if wanted == "keep" or not any(sources.values()):
        return None, notes
    present = set(sources.values()) - {None}
    target = wanted if wanted != "auto" else ("bio" if present & {"bio", "iob1"} else "bioes")
    for file, source in sources.items():
        if source and source != target:
            print(f"{file}: the tags of {name!r} are {source.upper()}, written as {target.upper()}")
    mixed = [f"{file}: {source.upper()}" for file, source in sources.items() if source] if len(present) > 1 else []
    note = Note(f"{name}: files have different tag schemes", mixed, f"all were written as {target.upper()}")
    return Scheme(sources, target, runs), [note]
