"""Joins words into texts, finds words and entities in texts, and creates output columns.

Uses only the standard library, because every exported folder has a copy of this file.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple
from unicodedata import category

Offsets = list[tuple[int, int]]  # (start, end) of each token in its text
INVISIBLE = ("Cc", "Cf", "Zl", "Zp", "Zs")  # Unicode categories of control and format characters, and of whitespace
# Limits for spans and relations, because an untrained model accepts half of all candidates
LOWEST_SCORE = -4.0  # minimum score (a probability of 1.8 %), even if the threshold fitted on dev is lower
SPANS_PER_WORD = 4  # maximum number of spans or relations per word of a text
SUBJECTS_PER_WORD = 2  # maximum number of candidates for subjects, and for objects, per word of a text
NUM_SHAPES = 7  # number of word shapes, see `shape_of`, including 0 for padding


def join_tokens(tokens: Iterable[str], unit: str, han: Any) -> tuple[str, Offsets]:
    """Joins tokens into a text. Returns (text, offsets). Words are separated by spaces, except Chinese characters.

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
    """Returns the offsets of the tokens in the text; None if they do not all occur there in this order."""
    offsets, end = [], 0
    for token in tokens:
        start = text.find(token, end)
        if start < 0:
            return None
        end = start + len(token)
        offsets.append((start, end))
    return offsets


def id_of(given: Any, number: int) -> str:
    """Returns the id of an input row: the given one, or by default the zero-based row number."""
    return str(number if given is None else given)


def text_or_tokens(value: Any, text: Any) -> dict[str, Any]:
    """Returns the text or the tokens of an input row. text: for a row with tokens, its text, which is returned as well
    if it contains the tokens."""
    if not isinstance(value, list):
        return {"text": value}
    words = [token for token in value if isinstance(token, str)]
    is_whole = isinstance(text, str) and place_tokens(text, words) is not None
    return {"text": text, "tokens": value} if is_whole else {"tokens": value}


@lru_cache(1 << 16)
def shape_of(word: str) -> int:
    """Returns the shape of a word: 1 lower case, or a script without case such as Chinese; 2 capitalised; 3 upper case;
    4 mixed case; 5 has digits; 6 has neither letters nor digits."""
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
    """Returns whether some, but not all, of the words with letters have capital letters."""
    shapes = {shape_of(word) for word in words}
    return 1 in shapes and bool(shapes & {2, 3, 4})


def text_and_offsets(example: dict[str, Any], unit: str, han: Any) -> tuple[str, Offsets | None]:
    """Returns the text of an example and the offsets of its tokens; the offsets are None if it has no tokens."""
    text, tokens = example.get("text"), example.get("tokens")
    if tokens is None:
        return example["text"], None
    if text is not None and (offsets := place_tokens(text, tokens)) is not None:
        return text, offsets
    return join_tokens(tokens, unit, han)


def texts_to_encode(
    example: dict[str, Any], by_words: bool, unit: str, han: Any, blanks: bool, separator: str | None
) -> tuple[Any, Any]:
    """Returns the first and the second text (or None) for the tokenizer, as lists of words if `by_words`.

    blanks: whether words have a leading space, as byte-level tokenizers need; separator: put before the second text, if
    the tokenizer adds none.
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
    """Adds a leading space to the words before which `join_tokens` inserts one."""
    _, offsets = join_tokens(words, unit, han)
    gaps = [False, *(after[0] > before[1] for before, after in pairwise(offsets))]
    return [f" {word}" if gap else word for word, gap in zip(words, gaps)]


def entities_in(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Returns the entities in a list of tags, [(type, first token, last token)], by the rules of seqeval's
    get_entities.

    Unlike seqeval, it does not need scikit-learn and skips tokens outside entities.
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


def word_probabilities(tags: Sequence[str], probabilities: Any, of_entities: bool) -> Any:
    """Returns the probability of each entity, in text order, or of each tag if the tags do not mark entities.

    probabilities: for each word, the probabilities that an entity begins with its tag, continues with it, and ends
    after it (`CRF.chain`). An entity's probability is a product of them. Heads that return only the probability of each
    tag have one number per word.
    """
    if not isinstance(probabilities, list) or len(probabilities) != len(tags):
        return probabilities
    words = [p if isinstance(p, list) else [p, p, 1.0] for p in probabilities]
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
    """Parses thresholds: 0.9 or "0.9" -> {"": 0.9}; "intent=0.9,slots=0.8" -> {"intent": 0.9, "slots": 0.8}. Raises
    ValueError if they are invalid."""
    pairs = [item.rpartition("=") for item in str(text).split(",") if item.strip()]
    try:
        shares = {name.strip(): float(share) for name, _, share in pairs}
    except ValueError:
        shares = {"": -1.0}
    if not all(0 <= share <= 1 for share in shares.values()) or len(shares) < len(pairs):
        raise ValueError("pass a number from 0 to 1, or one per task, such as intent=0.9,slots=0.8")
    return shares


def why_no_threshold(shares: Iterable[str], tasks: Iterable[str], always: Iterable[str]) -> str:
    """Returns an error message if a name in `shares_by_task` is not a task that supports thresholds, otherwise "".
    always: the tasks that do not support thresholds"""
    if unknown := {*shares} - {*tasks, ""}:
        return f"no task {min(unknown)!r}; the tasks are {', '.join(tasks)}"
    if stay := {*shares} & {*always}:
        return f"{min(stay)!r} has numbers, or tags that do not mark entities, which are never omitted"
    return ""


def with_abstention(kind: str, label: Any, probability: Any, lowest: float) -> tuple[Any, Any, int, int]:
    """Removes predictions with a probability below `lowest`. Returns (label, probability, number of removed
    predictions, number of predictions).

    kind: see `columns_of`. A removed label of a text becomes None, and the words of a removed entity become O. Numbers,
    and tags that do not mark entities, are never removed.
    """
    if probability is None or kind == "tags":
        return label, probability, 0, 0
    if not isinstance(probability, list):
        is_removed = probability < lowest
        return None if is_removed else label, probability, int(is_removed), 1
    kept = [p is None or p >= lowest for p in probability]
    if kind == "entities":
        rest = list(label)
        for (_, first, last), is_kept in zip(entities_in(label), kept):
            rest[first : last + 1] = rest[first : last + 1] if is_kept else ["O"] * (last + 1 - first)
    else:
        kept = in_events(label, kept) if kind == "events" else kept
        rest = [item for item, is_kept in zip(label, kept) if is_kept]
    return rest, [p for p, is_kept in zip(probability, kept) if is_kept], kept.count(False), len(kept)


def is_wordless(example: dict[str, Any]) -> bool:
    """Returns whether a text has only whitespace and invisible characters. It then has no tags or spans, although the
    model reads an [UNK] token."""
    pieces = (*(example.get("tokens") or ()), example.get("text") or "")
    return all(category(character) in INVISIBLE for piece in pieces for character in piece)


def columns_of(name: str, kind: str, label: Any, offsets: Any, text: str, probability: Any = None) -> dict[str, Any]:
    """Returns the output columns for the gold or predicted label of a task; a missing label is None.

    kind: "spans", "relations", "events", "entities" (tags that mark entities), "tags" (other tags), or any other string
    for labels of texts.
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
    """Converts a relation to a JSON object. item: [first and last word of the subject, first and last word of the
    object, predicate]"""
    *places, predicate = item
    one, other = (mention(ends, offsets, text) for ends in (places[:2], places[2:]))
    return {"subject": one, "predicate": predicate, "object": other}


def mention(places: Sequence[int], offsets: Offsets, text: str) -> dict[str, Any]:
    start, end = offsets[places[0]][0], offsets[places[1]][1]
    return {"text": text[start:end], "start": start, "end": end}


ROLE = "|"  # separates event type and role in the label of an argument


class Event(NamedTuple):
    """An event in the label of a text. The lists contain indices of the label's items."""

    type: str
    anchor: tuple[int, ...]  # first and last word of the mention that identifies the event
    own: list[int]  # items that pair the anchor with itself
    triggers: list[int]  # at most one
    arguments: list[int]


def events_in(label: Sequence[Any]) -> list[Event]:
    """Returns the events in a label, a list of [first and last word of the anchor, first and last word of a mention,
    name].

    The anchor of an event is its trigger or one of its arguments. The label has one item for each mention, including
    the anchor: it pairs the anchor with the mention, and its name is the event type for the trigger, and type|role for
    an argument. Without an item that pairs the anchor with itself, there is no event.
    """
    events: dict[Any, Event] = {}
    for number, (*places, name) in enumerate(label):
        kind, is_argument, _ = name.partition(ROLE)
        event = events.setdefault((kind, *places[:2]), Event(kind, tuple(places[:2]), [], [], []))
        (event.arguments if is_argument else event.triggers).append(number)
        if places[:2] == places[2:]:
            event.own.append(number)
    for event in events.values():  # if there are several triggers, keeps the one at the anchor, or the first
        event.triggers[:] = ([number for number in event.triggers if number in event.own] or event.triggers)[:1]
    return [event for event in events.values() if event.own]


def in_events(label: Sequence[Any], kept: Iterable[bool]) -> list[bool]:
    """Returns, for each item, whether it belongs to an event if only the items with True in `kept` remain."""
    numbers = [number for number, is_kept in enumerate(kept) if is_kept]
    events = events_in([label[number] for number in numbers])
    members = {numbers[item] for event in events for item in (*event.triggers, *event.arguments)}
    return [number in members for number in range(len(label))]


def event_objects(label: Any, offsets: Offsets, text: str, probabilities: Any) -> list[dict[str, Any]]:
    """Converts the events in a label to JSON objects, with arguments in text order. The probability of an event is
    its anchor's."""
    has_all = isinstance(probabilities, list) and len(probabilities) == len(label)

    def with_probability(item: dict[str, Any], numbers: list[int]) -> dict[str, Any]:
        return item | ({"probability": round(max(probabilities[i] for i in numbers), 6)} if has_all else {})

    objects = []
    for event in events_in(label):
        trigger = next((mention(label[i][2:4], offsets, text) for i in event.triggers), None)
        in_order = sorted(event.arguments, key=lambda i: label[i][2:])
        arguments = [
            with_probability({"role": label[i][4].partition(ROLE)[2], **mention(label[i][2:4], offsets, text)}, [i])
            for i in in_order
        ]
        objects.append(with_probability({"type": event.type, "trigger": trigger, "arguments": arguments}, event.own))
    return objects


def with_probabilities(items: Any, probabilities: Any) -> Any:
    """Adds a probability to each object, if there is one for each."""
    if not items or probabilities is None or len(probabilities) != len(items):
        return items
    return [item | {"probability": round(p, 6)} for item, p in zip(items, probabilities)]


def row_of(
    example: dict[str, Any], predictions: dict[str, tuple[str, Any, Any]], text: str, offsets: Offsets | None
) -> dict[str, Any]:
    """Returns the output row of an example. predictions: {task: (kind, label, probability)}, see `columns_of`"""
    example = example | {"text": text}
    row: dict[str, Any] = {key: example[key] for key in ("id", "text", "text_pair") if key in example}
    for name, (kind, label, probability) in predictions.items():
        row |= columns_of(name, kind, label, offsets, text, probability)
    return row
