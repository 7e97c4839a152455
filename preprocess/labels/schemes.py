"""Detects the tag scheme of a task, and converts tags to another scheme.

To support another tag scheme, edit this file.
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

    sources: {file: scheme}. runs: whether tags are types without prefixes, so that adjacent equal tags form one entity.
    written: {file: {tag: its B-X or O form}}, see `read_tags`.
    """

    sources: Mapping[str, str | None]
    target: str
    runs: bool
    written: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def convert(self, tags: Sequence[str], where: str) -> Sequence[str]:
        file = file_of(where)
        if normalised := self.written.get(file):
            tags = [normalised[tag] for tag in tags]
        if self.runs:
            tags = runs_to_bio(tags)
        source = self.sources.get(file)
        return convert_tags(tags, source, self.target) if source and source != self.target else tags


SIGNS = "-_:/.|–—−"  # delimiters between prefix letter and type
ORDERS = ((False, False), (False, True), (True, False), (True, True))  # (is_suffix, is_lower_case)
WRITTEN = [Notation(behind, lower, sign) for behind, lower in ORDERS for sign in SIGNS]
ONLY_TYPE = "entity"  # entity type for the bare tags B, I and O


def read_tags(tags: Collection[str]) -> tuple[dict[str, str], str] | None:
    """Returns ({tag: its B-X or O form}, notation), or None if only some tags look like B-X or X-B. The dict is empty
    if no tag changes. Tags that do not mark entities, such as parts of speech, are only stripped."""
    bare = {tag: tag.strip() for tag in tags}
    outside = {tag for tag in bare.values() if tag in ("O", "o", "-")}
    marked = {*bare.values()} - outside
    standard, notation_name = dict[str, str](), ""
    if marked and len(outside) < 2:
        candidates = ((as_prefixes(marked, notation, bool(outside)), notation.name) for notation in WRITTEN)
        standard, notation_name = next((pair for pair in candidates if pair[0]), ({}, ""))
    if not notation_name and len(outside) == 1 and marked & {*"BIbi"} and {tag.upper() for tag in marked} <= LETTERS:
        standard, notation_name = {tag: f"{tag.upper()}-{ONLY_TYPE}" for tag in marked}, "B"
    if not notation_name and any(map(is_prefixed, marked)) and (outside or has_both_letters(marked)):
        return None
    written = {tag: standard.get(name, "O") if notation_name else name for tag, name in bare.items()}
    if all(tag == name for tag, name in written.items()):
        return {}, ""
    return written, notation_name if any(bare[tag] != name for tag, name in written.items()) else "B-X with spaces"


def is_prefixed(tag: str) -> bool:
    """Returns True if a tag has the prefix or suffix B or I."""
    parsed = parse_tag(tag)
    return parsed is not None and parsed.letter in "BIbi"


def as_prefixes(tags: Collection[str], notation: Notation, outside: bool) -> dict[str, str]:
    """Returns {tag: its B-X form} if all tags fit the notation and mark entities, or {}. outside: whether O occurs."""
    parts = {tag: parsed for tag in tags if (parsed := notation.parse(tag))}
    if len(parts) < len(tags):
        return {}
    letters = {part.letter.upper() for part in parts.values()}
    # whether a type occurs with two prefix letters
    has_pair = len({*parts.values()}) > len({part.kind for part in parts.values()})
    are_entities = has_pair or (outside and not notation.behind and len(parts) > 1 and letters <= {*"BISU"})
    is_usual = notation == STANDARD
    if not is_usual and not are_entities:
        return {}
    return {tag: f"{part.letter.upper()}-{part.kind}" for tag, part in parts.items()}


def has_both_letters(tags: Collection[str]) -> bool:
    """Returns True if any type occurs with both B and I."""
    return any(f"I{tag[1:]}" in tags for tag in tags if tag[:1] == "B") or any(
        f"{tag[:-1]}I" in tags for tag in tags if tag[-1:] == "B"
    )


def runs_to_bio(tags: Sequence[str]) -> list[str]:
    """Converts tags without prefixes (PER, O) to BIO: each run of equal tags is an entity."""
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


def written_tags(name: str, files: Mapping[str, TagFacts], tag_scheme: str) -> dict[str, dict[str, str]]:
    """Returns {file: {tag: its B-X or O form}} for files that use another notation, and prints the notation."""
    result = {}
    for file, facts in files.items():
        if tag_scheme == "keep":
            normalised, notation_name = {tag: tag.strip() for tag in facts.tags}, ""
            normalised = normalised if any(tag != bare for tag, bare in normalised.items()) else {}
        else:
            normalised, notation_name = read_tags(facts.tags) or ({}, "")
        if normalised:
            result[file] = normalised
            example = next(f"{tag!r} is read as {bare!r}" for tag, bare in sorted(normalised.items()) if tag != bare)
            kinds = f"; they have no types, so the type {ONLY_TYPE!r} is used" if notation_name == "B" else ""
            advice = "" if tag_scheme == "keep" else " (--tag_scheme keep leaves them unchanged)"
            print(f"{file}: the tags of {name!r} do not use the B-X notation: {cut(example, 200)}{advice}{kinds}")
    return result


def choose_scheme(
    name: str,
    files: Mapping[str, TagFacts],
    tag_scheme: str,
    to_spans: bool,
    find_rows: Callable[[Collection[str]], Sample],
) -> tuple[Scheme | None, list[Note]]:
    """Returns (the Scheme that converts a task's tags, or None, and notes).

    tag_scheme: "keep", a scheme, or "auto" (BIO, or BIOES if all files use BIOES, BMES or BILOU). to_spans: whether the
    tags become spans. find_rows: returns the rows with any of the given tags.
    """
    sources = {file: facts.scheme for file, facts in files.items()}
    tags = {tag for facts in files.values() for tag in facts.tags}
    strange = {tag for tag in tags if not STANDARD.parse(tag)}
    runs, notes = False, []
    if tag_scheme != "keep" and "O" in tags and len(tags) > 1 and not any(sources.values()):
        if len(strange) < len(tags) / 2 or any(map(is_prefixed, tags)):
            advice = "correct these tags; otherwise entities are not recognised"
            notes = [Note(f"{name}: some tags do not follow the tag scheme", find_rows(strange), advice)]
        else:
            print(f"the tags of {name!r} have no B- or I- prefixes; converting each run of equal tags to a BIO entity")
            runs, sources = True, dict.fromkeys(files, "bio")
    if to_spans and not runs and (strange or not any(sources.values())):
        raise UserError(f"--label_type {name}=spans: the tags do not mark entities (B-, I-, …), so there are no spans")
    if tag_scheme == "keep" or not any(sources.values()):
        return None, notes
    present = set(sources.values()) - {None}
    target = tag_scheme if tag_scheme != "auto" else ("bio" if present & {"bio", "iob1"} else "bioes")
    for file, source in sources.items():
        if source and source != target:
            print(f"{file}: converting the tags of {name!r} from {source.upper()} to {target.upper()}")
    mixed = [f"{file}: {source.upper()}" for file, source in sources.items() if source] if len(present) > 1 else []
    note = Note(f"{name}: files have different tag schemes", mixed, f"all were converted to {target.upper()}")
    return Scheme(sources, target, runs), [note]
