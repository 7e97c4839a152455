"""Detects the tag scheme of a task, and converts tags to another.

Edit here to read another tag scheme.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from engine.errors import UserError
from engine.task.tags import LETTERS, STANDARD, Notation, TagFacts, parse_tag
from preprocess.example import cut, file_of
from preprocess.storage.facts import Note, Sample


@dataclass(frozen=True)
class Scheme:
    """Converts the tags of a task to another scheme.

    sources: {file: its scheme}; runs: tags are bare types, and adjacent equal tags form one entity; written: {file:
    {tag: normalised to B-X or O}}, see `read_tags`
    """

    sources: Mapping[str, str | None]
    target: str
    runs: bool
    written: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def convert(self, tags: Sequence[str], where: str) -> Sequence[str]:
        file = file_of(where)
        if same := self.written.get(file):
            tags = [same[tag] for tag in tags]
        if self.runs:
            tags = runs_to_bio(tags)
        source = self.sources.get(file)
        return convert_tags(tags, source, self.target) if source and source != self.target else tags


SIGNS = "-_:/.|–—−"  # between letter and type
ORDERS = ((False, False), (False, True), (True, False), (True, True))  # (the letter is a suffix, it is lower case)
WRITTEN = [Notation(behind, lower, sign) for behind, lower in ORDERS for sign in SIGNS]
ONLY_TYPE = "entity"  # the type of entities tagged B, I and O without types


def read_tags(tags: Collection[str]) -> tuple[dict[str, str], str] | None:
    """({tag: normalised to B-X or O}, notation of a file's tags); None if only some tags look like B-X or X-B.

    The dict is empty if nothing changes. Tags that are not entities, such as parts of speech, are only stripped.
    """
    bare = {tag: tag.strip() for tag in tags}
    outside = {tag for tag in bare.values() if tag in ("O", "o", "-")}
    marked = {*bare.values()} - outside
    standard, how = dict[str, str](), ""
    if marked and len(outside) < 2:
        found = ((as_prefixes(marked, notation, bool(outside)), notation.name) for notation in WRITTEN)
        standard, how = next((pair for pair in found if pair[0]), ({}, ""))
    if not how and len(outside) == 1 and marked & {*"BIbi"} and {tag.upper() for tag in marked} <= LETTERS:
        standard, how = {tag: f"{tag.upper()}-{ONLY_TYPE}" for tag in marked}, "B"
    if not how and any(map(is_prefixed, marked)) and (outside or has_both_letters(marked)):
        return None
    written = {tag: standard.get(name, "O") if how else name for tag, name in bare.items()}
    if all(tag == name for tag, name in written.items()):
        return {}, ""
    return written, how if any(bare[tag] != name for tag, name in written.items()) else "B-X with blanks"


def is_prefixed(tag: str) -> bool:
    """Whether a tag looks like one with B or I."""
    found = parse_tag(tag)
    return found is not None and found.letter in "BIbi"


def as_prefixes(tags: Collection[str], notation: Notation, outside: bool) -> dict[str, str]:
    """{tag: as B-X} if all tags fit the notation and are entities, otherwise {}. outside: whether others are O"""
    parts = {tag: found for tag in tags if (found := notation.parse(tag))}
    if len(parts) < len(tags):
        return {}
    letters = {part.letter.upper() for part in parts.values()}
    several = len({*parts.values()}) > len({part.kind for part in parts.values()})  # some type has two letters
    enough = several or (outside and not notation.behind and len(parts) > 1 and letters <= {*"BISU"})
    is_usual = notation == STANDARD
    return {tag: f"{part.letter.upper()}-{part.kind}" for tag, part in parts.items()} if is_usual or enough else {}


def has_both_letters(tags: Collection[str]) -> bool:
    """Whether any type occurs with both B and I."""
    return any(f"I{tag[1:]}" in tags for tag in tags if tag[:1] == "B") or any(
        f"{tag[:-1]}I" in tags for tag in tags if tag[-1:] == "B"
    )


def runs_to_bio(tags: Sequence[str]) -> list[str]:
    """Converts bare types, such as PER and O, to BIO: a run of equal tags is an entity."""
    return [tag if tag == "O" else f"{'I' if tag == before else 'B'}-{tag}" for before, tag in zip(["O", *tags], tags)]


def convert_tags(tags: Sequence[str], source: str, target: str) -> list[str]:
    """Converts tags from one scheme to another. target: "bio" or "bioes"."""
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


def written_tags(name: str, files: Mapping[str, TagFacts], wanted: str) -> dict[str, dict[str, str]]:
    """{file: {tag: normalised to B-X or O}} of files whose tags use another notation, which is printed."""
    result = {}
    for file, facts in files.items():
        if wanted == "keep":
            same, how = {tag: tag.strip() for tag in facts.tags}, ""
            same = same if any(tag != bare for tag, bare in same.items()) else {}
        else:
            same, how = read_tags(facts.tags) or ({}, "")
        if same:
            result[file] = same
            example = next(f"{tag!r} is read as {bare!r}" for tag, bare in sorted(same.items()) if tag != bare)
            kinds = f"; they name no type, which is called {ONLY_TYPE!r}" if how == "B" else ""
            kept = "" if wanted == "keep" else " (--tag_scheme keep keeps them)"
            print(f"{file}: the tags of {name!r} are not written as B-X: {cut(example, 200)}{kept}{kinds}")
    return result


def choose_scheme(
    name: str,
    files: Mapping[str, TagFacts],
    wanted: str,
    to_spans: bool,
    find_rows: Callable[[Collection[str]], Sample],
) -> tuple[Scheme | None, list[Note]]:
    """The conversion of a task's tags, or None; and notes.

    wanted: "keep", a scheme, or "auto": BIO, or BIOES if all files use BIOES, BMES or BILOU. to_spans: the tags become
    spans. find_rows: returns the rows with any of these tags.
    """
    sources = {file: facts.scheme for file, facts in files.items()}
    tags = {tag for facts in files.values() for tag in facts.tags}
    strange = {tag for tag in tags if not STANDARD.parse(tag)}
    runs, notes = False, []
    if wanted != "keep" and "O" in tags and len(tags) > 1 and not any(sources.values()):
        if len(strange) < len(tags) / 2 or any(map(is_prefixed, tags)):
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
