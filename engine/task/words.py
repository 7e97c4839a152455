"""Joins words into texts, locates words and entities in texts, and builds output columns.

Uses only the standard library, because every exported folder has a copy of this file.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple
from unicodedata import category

Offsets = list[tuple[int, int]]  # (start, end) of each token in its text
INVISIBLE = ("Cc", "Cf", "Zl", "Zp", "Zs")  # Unicode categories of control and format characters, and whitespace
# Limits for spans and relations, because an untrained model accepts half of all candidates: the minimum score (a
# probability of 1.8 %), even if the threshold fitted on dev is lower, and the maximum number of spans or relations per
# word
LOWEST_SCORE, SPANS_PER_WORD = -4.0, 4
NUM_SHAPES = 7  # word shapes, see `shape_of`; 0 is padding
SUBJECTS_PER_WORD = 2  # maximum number of subjects, and of objects, per word of a text that are paired


def join_tokens(tokens: Iterable[str], unit: str, han: Any) -> tuple[str, Offsets]:
    """Joins tokens into a text -> (text, offsets). Words are separated by spaces, but Chinese characters are not.

    han: compiled pattern of a Chinese character (`re` or `regex`).
    """
    text, offsets, end, last = [], [], 0, ""
    for token in tokens:
        if unit == "word" and last and token and not (han.match(last) or han.match(token[0])):
            text.append(" ")
            end += 1
        offsets.append((end, end + len(token)))
        text.append(token)
        end += len(token)
        last = token[-1:] or last
    return "".join(text), offsets


def place_tokens(text: str, tokens: Iterable[str]) -> Offsets | None:
    """Returns the offsets of tokens that occur in the text in this order; None if they do not."""
    offsets, end = [], 0
    for token in tokens:
        start = text.find(token, end)
        if start < 0:
            return None
        end = start + len(token)
        offsets.append((start, end))
    return offsets


def id_of(given: Any, number: int) -> str:
    """Returns the id of an input row: the given one, or else the zero-based row number."""
    return str(number if given is None else given)


def text_or_tokens(value: Any, text: Any) -> dict[str, Any]:
    """Returns the text or tokens of an input row. text: the text of a row with tokens; kept if it contains them"""
    if not isinstance(value, list):
        return {"text": value}
    words = [token for token in value if isinstance(token, str)]
    is_whole = isinstance(text, str) and place_tokens(text, words) is not None
    return {"text": text, "tokens": value} if is_whole else {"tokens": value}


@lru_cache(1 << 16)
def shape_of(word: str) -> int:
    """Returns the shape of a word: 1 lower case, or a script without case such as Chinese; 2 capitalised; 3 upper case;
    4 other mixed case; 5 with digits; 6 no letters or digits. Less than NUM_SHAPES."""
    if any(map(str.isdigit, word)):
        return 5
    letters = "".join(filter(str.isalpha, word))
    if not letters:
        return 6
    if not any(letter.isupper() or letter.istitle() for letter in letters):
        return 1
    if letters[1:] == letters[1:].lower():
        return 2
    return 3 if letters == letters.upper() else 4


def has_capitals(words: Iterable[str]) -> bool:
    """Whether some, but not all, of the words with letters have capitals."""
    shapes = {shape_of(word) for word in words}
    return 1 in shapes and bool(shapes & {2, 3, 4})


def text_and_offsets(example: dict[str, Any], unit: str, han: Any) -> tuple[str, Offsets | None]:
    """Returns the text of an example and the offsets of its tokens; the offsets are None if it has no tokens."""
    text, tokens = example.get("text"), example.get("tokens")
    if tokens is None:
        return example["text"], None
    if text is not None and (offsets := place_tokens(text, tokens)) is not None:
        return text, offsets
    return join_tokens(tokens, unit, han)  # there is no text, or it does not contain the tokens


def texts_to_encode(
    example: dict[str, Any], by_words: bool, unit: str, han: Any, blanks: bool, separator: str | None
) -> tuple[Any, Any]:
    """Returns the first and the second text (or None) to pass to the tokenizer; by_words: as lists of words.

    blanks: words keep their leading space; separator: prepended to the second text, if the tokenizer adds none.
    """
    first, second = example["tokens" if by_words else "text"], example.get("text_pair")
    if by_words:
        second = None if second is None else second.split()
        if blanks:
            first, second = with_blanks(first, unit, han), second and with_blanks(second, "word", han)
    if second is not None and separator:
        second = [separator, *second] if by_words else f"{separator}{second}"
    return first, second


def with_blanks(words: list[str], unit: str, han: Any) -> list[str]:
    """Adds a leading space to the words that `join_tokens` would separate by one."""
    _, offsets = join_tokens(words, unit, han)
    gaps = [False, *(after[0] > before[1] for before, after in pairwise(offsets))]
    return [f" {word}" if gap else word for word, gap in zip(words, gaps)]


def entities_in(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Returns [(type, first token, last token)] for a list of tags, by the rules of seqeval's get_entities.

    This version does not need scikit-learn and skips tokens outside entities.
    """
    spans, before, kind_before, begin = [], "O", "_", 0
    for i, chunk in enumerate([*tags, "O"]):
        if chunk == before == "O":
            kind_before = "_"
            continue
        tag, kind = chunk[0], chunk[1:].split("-", 1)[-1] or "_"
        another = kind != kind_before
        if before in "ES" or (before in "BI" and tag in "BSO") or (another and before not in "O."):
            spans.append((kind_before, begin, i - 1))
        if tag in "BS" or (tag in "EI" and before in "ESO") or (another and tag not in "O."):
            begin = i
        before, kind_before = tag, kind
    return spans


def word_probabilities(tags: Sequence[str], chances: Any, of_entities: bool) -> Any:
    """Returns the probability of each entity in the tags, in text order, or else of each tag.

    chances: for each word, the probabilities that an entity begins with its tag, continues with it, and ends after it,
    which are multiplied (`CRF.chain`); or one number, for heads that only return the probability of each tag.
    """
    if not isinstance(chances, list) or len(chances) != len(tags):
        return chances
    words = [chance if isinstance(chance, list) else [chance, chance, 1.0] for chance in chances]
    if not of_entities:
        return [begins for begins, _, _ in words]
    found = [(first, last) for _, first, last in entities_in(tags)]
    if any(None in words[i] for first, last in found for i in range(first, last + 1)):
        return None
    return [
        words[first][0] * prod(words[i][1] for i in range(first + 1, last + 1)) * words[last][2]
        for first, last in found
    ]


def entity(label: str, start: int, end: int, text: str) -> dict[str, Any]:
    return {"label": label, "text": text[start:end], "start": start, "end": end}


def entities(tags: Sequence[str], offsets: Offsets, text: str) -> list[dict[str, Any]]:
    return [entity(label, offsets[first][0], offsets[last][1], text) for label, first, last in entities_in(tags)]


def shares_by_task(text: str | float) -> dict[str, float]:
    """0.9 or "0.9" -> {"": 0.9}; "intent=0.9,slots=0.8" -> {"intent": 0.9, "slots": 0.8}. Raises ValueError."""
    pairs = [part.rpartition("=") for part in str(text).split(",") if part.strip()]
    try:
        shares = {name.strip(): float(share) for name, _, share in pairs}
    except ValueError:
        shares = {"": -1.0}
    if not all(0 <= share <= 1 for share in shares.values()) or len(shares) < len(pairs):
        raise ValueError("give a number from 0 to 1, or one per task, such as intent=0.9,slots=0.8")
    return shares


def why_no_threshold(shares: Iterable[str], tasks: Iterable[str], always: Iterable[str]) -> str:
    """The error message for names in `shares_by_task` that are not tasks whose answers can be left out, or "". always:
    tasks whose answers are never left out"""
    if unknown := {*shares} - {*tasks, ""}:
        return f"no task {min(unknown)!r}; the tasks are {', '.join(tasks)}"
    if stay := {*shares} & {*always}:
        return f"{min(stay)!r} has numbers, or tags that mark no entities, and these are never left out"
    return ""


def answered(kind: str, label: Any, probability: Any, lowest: float) -> tuple[Any, Any, int, int]:
    """Leaves out answers less probable than `lowest` -> (label, probability, number left out, number of answers).

    kind: as for `columns_of`. If left out, the label of a text becomes None, and the words of an entity are tagged O;
    numbers, and tags that mark no entities, always stay.
    """
    if probability is None or kind == "tags":
        return label, probability, 0, 0
    if not isinstance(probability, list):
        is_left_out = probability < lowest
        return None if is_left_out else label, probability, int(is_left_out), 1
    stays = [p is None or p >= lowest for p in probability]
    if kind == "entities":
        rest = list(label)
        for (_, first, last), is_kept in zip(entities_in(label), stays):
            rest[first : last + 1] = rest[first : last + 1] if is_kept else ["O"] * (last + 1 - first)
    else:
        stays = in_events(label, stays) if kind == "events" else stays
        rest = [item for item, is_kept in zip(label, stays) if is_kept]
    return rest, [p for p, is_kept in zip(probability, stays) if is_kept], stays.count(False), len(stays)


def is_wordless(example: dict[str, Any]) -> bool:
    """Whether a text has only whitespace and invisible characters. Its tags and spans are then empty, although the
    model reads an [UNK]."""
    pieces = (*(example.get("tokens") or ()), example.get("text") or "")
    return all(category(character) in INVISIBLE for piece in pieces for character in piece)


def columns_of(name: str, kind: str, label: Any, offsets: Any, text: str, probability: Any = None) -> dict[str, Any]:
    """Returns the output columns for a task's label, gold or predicted; a missing label stays None.

    kind: "spans", "relations", "events", "entities" (tags that mark entities), "tags" (other tags), or another string
    for text-level labels.
    """
    if kind == "tags":
        return {f"{name}_tags": label}
    if kind == "relations":
        found = label and [relation(item, offsets, text) for item in label]
        return {name: with_probabilities(found, probability)}
    if kind == "events":
        return {name: label and event_objects(label, offsets, text, probability)}
    if kind in ("spans", "entities"):
        items = label if kind == "spans" else label and [(first, last, of) for of, first, last in entities_in(label)]
        spans = items and [entity(of, offsets[first][0], offsets[last][1], text) for first, last, of in items]
        return {name: with_probabilities(spans, probability)} | ({f"{name}_tags": label} if kind == "entities" else {})
    if probability is None:
        return {name: label}
    rounded = [round(p, 6) for p in probability] if isinstance(probability, list) else round(probability, 6)
    return {name: label, f"{name}_probability": rounded}


def relation(item: Any, offsets: Offsets, text: str) -> dict[str, Any]:
    """A relation as an object. item: [first and last word of the subject, first and last of the object, predicate]"""
    *places, predicate = item
    one, other = (mention(ends, offsets, text) for ends in (places[:2], places[2:]))
    return {"subject": one, "predicate": predicate, "object": other}


def mention(places: Sequence[int], offsets: Offsets, text: str) -> dict[str, Any]:
    start, end = offsets[places[0]][0], offsets[places[1]][1]
    return {"text": text[start:end], "start": start, "end": end}


ROLE = "|"  # separator in the label of an argument: event type|role


class Event(NamedTuple):
    """An event in a label of events. Its lists contain indices of items in the label."""

    type: str
    anchor: tuple[int, ...]  # first and last word of its trigger or of an argument
    own: list[int]  # items that pair the anchor with itself, which mark an event
    triggers: list[int]  # at most one
    arguments: list[int]


def events_in(label: Sequence[Any]) -> list[Event]:
    """Returns the events in a label, a list of [first and last word of the anchor, first and last of a mention, name].

    The anchor of an event is one of its mentions. An item pairs the anchor with each mention; its name is the event
    type for the trigger, and type|role for an argument. An anchor that is not paired with itself has no event.
    """
    events: dict[Any, Event] = {}
    for number, (*places, name) in enumerate(label):
        kind, is_argument, _ = name.partition(ROLE)
        event = events.setdefault((kind, *places[:2]), Event(kind, tuple(places[:2]), [], [], []))
        (event.arguments if is_argument else event.triggers).append(number)
        if places[:2] == places[2:]:
            event.own.append(number)
    for event in events.values():  # of several triggers, the one at the anchor counts, or else the first
        event.triggers[:] = ([number for number in event.triggers if number in event.own] or event.triggers)[:1]
    return [event for event in events.values() if event.own]


def in_events(label: Sequence[Any], stays: Iterable[bool]) -> list[bool]:
    """Returns for each item whether it belongs to an event, if the label has only the items with True in `stays`."""
    numbers = [number for number, is_kept in enumerate(stays) if is_kept]
    events = events_in([label[number] for number in numbers])
    kept = {numbers[item] for event in events for item in (*event.triggers, *event.arguments)}
    return [number in kept for number in range(len(label))]


def event_objects(label: Any, offsets: Offsets, text: str, probabilities: Any) -> list[dict[str, Any]]:
    """The events in a label as objects, with arguments in text order. An event has the probability of its anchor."""
    chances = probabilities if isinstance(probabilities, list) and len(probabilities) == len(label) else None

    def with_chance(item: dict[str, Any], numbers: list[int]) -> dict[str, Any]:
        return item | ({"probability": round(max(chances[i] for i in numbers), 6)} if chances else {})

    objects = []
    for event in events_in(label):
        trigger = next((mention(label[i][2:4], offsets, text) for i in event.triggers), None)
        in_order = sorted(event.arguments, key=lambda i: label[i][2:])
        arguments = [
            with_chance({"role": label[i][4].partition(ROLE)[2], **mention(label[i][2:4], offsets, text)}, [i])
            for i in in_order
        ]
        objects.append(with_chance({"type": event.type, "trigger": trigger, "arguments": arguments}, event.own))
    return objects


def with_probabilities(items: Any, probabilities: Any) -> Any:
    """Adds a probability to each object, if there is one for each."""
    if not items or probabilities is None or len(probabilities) != len(items):
        return items
    return [item | {"probability": round(p, 6)} for item, p in zip(items, probabilities)]


def row_of(
    example: dict[str, Any], answers: dict[str, tuple[str, Any, Any]], text: str, offsets: Offsets | None
) -> dict[str, Any]:
    """Returns the output row of an example. answers: {task: (kind in `columns_of`, label, probability)}"""
    example = example | {"text": text}
    row: dict[str, Any] = {key: example[key] for key in ("id", "text", "text_pair") if key in example}
    for name, (kind, label, probability) in answers.items():
        row |= columns_of(name, kind, label, offsets, text, probability)
    return row
