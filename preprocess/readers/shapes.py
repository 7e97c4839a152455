"""The shapes of JSON objects: one row of SHAPES says where the text, its spans and its labels are.

Edit here to have a shape of your own read: one more row (docs/cookbook/json_shape.md). A row is chosen by evidence: all
that it names must be there, with values of the right kind, in the first objects. Of several that fit, the one that
names the most is used. Every span becomes {"start", "end", "label", "text"} in characters, or [first token, last
token, label].
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.task.signs import INLINE, LABEL_NAMES, TEXT_NAMES
from preprocess.example import shown
from preprocess.readers.inline import chunks_to_text, without_marks
from preprocess.readers.instructions import find_dialogue, find_instructions
from preprocess.readers.options import ReadOptions, split_names

Values = dict[str, Any]
Item = tuple[Any, Any, Any, Any, bool]  # start, end, label, surface of a span as stored; whether it is continuous
HEAD = 200  # objects that decide
MISSING = object()


@dataclass(frozen=True)
class Spans:
    """Where the spans of an object are, and how they count.

    A path is keys and positions in lists, joined by dots; `a|b` is a, or b if a is absent. Paths of `start` and
    so on are those within a span; in a dict of spans, "@" is the key of a span. A span needs an end or a length.
    """

    path: str  # the list or dict of spans; its last key is the name of the task. With `a|b`, each may be a task
    start: str = "start"  # "": not stored, so the surface must occur once in the text
    end: str = "end"
    label: str = "label"
    surface: str = ""  # "@value": the span is its surface
    length: str = ""
    pieces: str = ""  # all positions, or ranges, of a span that may be discontinuous; instead of start and end
    inclusive: bool | None = False  # whether the end belongs to the span; None: inferred from the spans
    may_lack: bool = False  # an object without the key has no spans, instead of being unlabelled
    without: str = ""  # keys whose presence rules this shape out
    columns: bool = False  # an object of lists, one per key, instead of a list of objects


@dataclass(frozen=True)
class Shape:
    """One kind of JSON object. Paths as in Spans."""

    name: str
    text: str = ""
    tokens: str = ""  # spans then count tokens, otherwise characters
    spans: Spans | None = None
    labels: tuple[str, ...] = ()  # further labels, if they are there; the last key is the name of the task
    also: tuple[str, ...] = ()  # what else must be there
    inline: str = ""  # a syntax of INLINE: the spans are marked in the text
    chunks: str = ""  # the text in pieces, some of them named
    find: Callable[[Sequence[Values], bool], Callable[[Values], Values] | None] | None = None  # without paths


TEXT = "text|sentence|content|originalText|query|utterance|document|context"
UNDER = "entities|spans|labels|label|annotations|annotation|entity|entity_list|mentions|ner"  # keys of lists of spans
TOKEN_SPANS = "|".join(["entity_mentions", "mentions", *LABEL_NAMES])
START = "start|start_offset|start_idx|begin|start_char|char_start|startOffset|beginOffset|startIndex|startPos|start_pos"
END = "end|end_offset|end_idx|end_char|char_end|endOffset|endIndex|endPos|end_pos|to"
LABEL = "label|type|entity_type|label_type|category|tag|displayName|class"
PLACES = f"{START}|span|offset|offsets|index|points|pos|position|valueSpan|token_start|start_token"
SHAPES = [
    Shape("SpERT", tokens="tokens", spans=Spans(TOKEN_SPANS, label="type", surface="text")),
    Shape("W2NER", tokens="sentence|tokens", spans=Spans(TOKEN_SPANS, label="type", pieces="index", inclusive=True)),
    Shape("GLiNER", tokens="tokenized_text", spans=Spans("ner", "0", "1", "2", inclusive=True)),
    Shape("spans of tokens", tokens="tokens|sentence|words", spans=Spans(TOKEN_SPANS, "0", "1", "2", inclusive=None)),
    Shape("our processed folder", "text", "tokens", Spans(TOKEN_SPANS, "0", "1", "2", inclusive=True), also=("id",)),
    Shape(
        "spans of tokens as objects",
        tokens="tokens|sentence|words",
        spans=Spans(
            TOKEN_SPANS,
            "start|start_token|token_start|begin|span.0|pos.0",
            "end|end_token|token_end|span.1|pos.1",
            "label|entity_type|tag|category",
            "text|name|word|entity|mention|surface",
            inclusive=None,
        ),
    ),
    Shape("span: [start, end]", TEXT, spans=Spans(UNDER, "span.0", "span.1", LABEL, "name|text|word|mention")),
    Shape(
        "position: [start, end]",
        TEXT,
        spans=Spans(UNDER, "position.0|pos.0|offset.0", "position.1|pos.1|offset.1", LABEL, "name|text|word|mention"),
    ),
    Shape("NLU++", TEXT, spans=Spans("slots", "span.0", "span.1", "@", "text", may_lack=True), labels=("intents",)),
    Shape(
        "valueSpan",
        f"userInput.text|{TEXT}",
        spans=Spans(
            "labels|slots|entities",
            "valueSpan.startIndex|valueSpan.start",
            "valueSpan.endIndex|valueSpan.end",
            "slot|label",
        ),
    ),
    Shape(
        "valueSpan of protocol buffers",  # which leave out a 0, and an empty list
        "userInput.text",
        spans=Spans("labels", "valueSpan.startIndex|=0", "valueSpan.endIndex", "slot", may_lack=True),
    ),
    Shape("ranges by label", TEXT, spans=Spans(UNDER, "0", "1", "@")),
    Shape("columns of spans", TEXT, spans=Spans(UNDER, START, END, LABEL, "text|word|surface", columns=True)),
    Shape("BigBio", TEXT, spans=Spans(UNDER, label="type", pieces="offsets")),
    Shape(
        "Dataturks", "content", spans=Spans("annotation", "points.0.start", "points.0.end", "label.0", inclusive=True)
    ),
    Shape(
        "Vertex AI",
        "textContent",
        spans=Spans("textSegmentAnnotations", "startOffset|=0", "endOffset", "displayName", may_lack=True),
    ),
    Shape("entity_index", TEXT, spans=Spans(UNDER, "entity_index.begin", "entity_index.end", "entity_type", "entity")),
    Shape(
        "Rasa",
        "text",
        spans=Spans("entities", label="entity", may_lack=True, without="label|type|labels|tag|entity_type"),
        labels=("intent",),
        also=("intent",),
    ),
    Shape("LUIS", "text", spans=Spans("entities", "startPos", "endPos", "entity", inclusive=True), labels=("intent",)),
    Shape(
        "Azure's conversations",
        "text",
        spans=Spans("entities", "offset", label="category", length="length"),
        labels=("intent",),
    ),
    Shape(
        "offset and length", TEXT, spans=Spans(UNDER, "offset|start", label="label|type|entity_type", length="length")
    ),
    Shape(
        "start and end under other names",
        TEXT,
        spans=Spans(
            UNDER,
            "start_char|startOffset|beginOffset|start_pos|from|char_start|startIndex",
            "end_char|endOffset|end_pos|to|char_end|endIndex",
            LABEL,
            "text|word|surface|mention",
        ),
    ),
    Shape("Snips", chunks="data", labels=("intent",)),
    Shape("values by slot", TEXT, spans=Spans("slots|entities", "", "", "@", "@value"), labels=("domain", "intent")),
    Shape(
        "slots and values",
        TEXT,
        spans=Spans("slots|entities", "", "", "slot|name", "value", without=PLACES),
        labels=("domain", "intent"),
    ),
    Shape(
        "entities by their words",
        TEXT,
        spans=Spans(
            "entities|slots", "", "", "type|label|entity_type", "name|text|word|mention|entity|value", without=PLACES
        ),
        labels=("domain", "intent"),
    ),
    Shape("MASSIVE", "annot_utt", inline="[time : nine am]", labels=("intent",), also=("utt",)),
    Shape("doccano", "text", labels=("entities", "cats"), also=("entities", "cats")),
    Shape("instructions", find=find_instructions),
    Shape("dialogues", find=find_dialogue),
]


# ---- paths ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def steps_of(path: str) -> list[list[str]]:
    return [one.split(".") for one in path.split("|")]


def at(value: Any, path: str) -> Any:
    """What is at a path, or MISSING; a step "=N" is the number N itself."""
    for steps in steps_of(path):
        found = value
        for step in steps:
            if isinstance(found, dict) and step in found:
                found = found[step]
            elif isinstance(found, list) and step.isdecimal() and int(step) < len(found):
                found = found[int(step)]
            else:
                found = int(step[1:]) if step[0] == "=" else MISSING
                break
        if found is not MISSING:
            return found
    return MISSING


def key_of(path: str, values: Values) -> str:
    """The first key of the alternative of a path that matches, otherwise of the first."""
    return next((s[0] for s in steps_of(path) if at(values, ".".join(s)) is not MISSING), steps_of(path)[0][0])


def with_dotted(names: Sequence[str], rows: Sequence[Values]) -> list[str]:
    """Those of some names that are paths into the objects, such as `labels.label`, and not keys."""
    return [
        name
        for name in names
        if "." in name and not any(name in row for row in rows) and any(at(row, name) is not MISSING for row in rows)
    ]


# ---- spans ---------------------------------------------------------------------------------------------------------


def items_of(spans: Spans, found: Any) -> Iterator[Item]:
    """The spans of one object as they are stored."""
    if spans.columns:
        found = transposed(found)
    pairs = [("", item) for item in found] if isinstance(found, list) else []
    for key, items in found.items() if isinstance(found, dict) else ():
        several = isinstance(items, list) and not (items and type(items[0]) is int)
        pairs += [(key, item) for item in (items if several else [items])]
    for key, item in pairs:
        label = key if spans.label == "@" else at(item, spans.label)
        surface = item if spans.surface == "@value" else at(item, spans.surface) if spans.surface else None
        surface = surface if isinstance(surface, str) else None
        if spans.pieces:
            yield *ends_of(at(item, spans.pieces)), label, surface, is_whole(at(item, spans.pieces))
        elif not spans.start:
            yield None, None, label, surface, True
        else:
            start = at(item, spans.start)
            end = at(item, spans.length) if spans.length else at(item, spans.end)
            whole = type(start) is int and type(end) is int
            yield start, start + end if spans.length and whole else end, label, surface, True


def transposed(found: Any) -> Any:
    """[{"start", "end", …}] of {"start": […], "end": […], …}; other values as they are."""
    lists = isinstance(found, dict) and found and all(isinstance(value, list) for value in found.values())
    if not lists or len({len(value) for value in found.values()}) > 1:
        return [MISSING]
    return [dict(zip(found, row)) for row in zip(*found.values())]


def ends_of(pieces: Any) -> tuple[Any, Any]:
    """The first and the last position of [0, 1, 2], or of [[0, 4], [6, 9]]."""
    first, last = (pieces[0], pieces[-1]) if isinstance(pieces, list) and pieces else (MISSING, MISSING)
    return at(first, "0") if isinstance(first, list) else first, at(last, "1") if isinstance(last, list) else last


def is_whole(pieces: Any) -> bool:
    """Whether positions, or ranges, follow each other without a gap."""
    if not isinstance(pieces, list) or not pieces:
        return True
    ranges = pieces if isinstance(pieces[0], list) else [[place, place + 1] for place in pieces if type(place) is int]
    return all(after[0] == before[1] for before, after in pairwise(ranges))


def is_surface(tokens: Sequence[str], surface: str) -> bool:
    """Whether tokens are a surface, ignoring whitespace."""
    return "".join("".join(tokens).split()) == "".join(surface.split())


def is_well_formed(item: Item, spans: Spans) -> bool:
    start, end, label, surface, _ = item
    if not isinstance(label, str) or not label:
        return False
    return bool(surface) if not spans.start and not spans.pieces else type(start) is int and type(end) is int


# ---- which shape ---------------------------------------------------------------------------------------------------


@dataclass
class Reading:
    """How the objects of a file are read: a shape, and what the spans of the first ones show."""

    path: str | Path
    shape: Shape
    spans: dict[str, bool] = field(default_factory=dict)  # {task of spans: whether their ends are inclusive}
    paths: dict[str, str] = field(default_factory=dict)  # {task of spans: their path}
    convert: Callable[[Values], Values] | None = None  # of shapes with `find`
    tasks: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # of what is left out
    weight: int = 0  # how much of the objects the shape names
    open_ends: list[str] = field(default_factory=list)  # tasks whose spans do not tell whether ends are inclusive

    def __call__(self, values: Values, where: str) -> Values:
        """The object with `text` or `tokens`, and the labels under the names of their tasks."""
        shape = self.shape
        if self.convert:
            try:
                return values | self.convert(values)
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
        found: Values
        found = {task: at(values, path) for task, path in self.label_paths() if at(values, path) is not MISSING}
        if shape.inline:
            return values | found | self.read_inline(values, where)
        if shape.chunks:
            joined, spans = chunks_to_text(at(values, shape.chunks), where)
            return values | found | {"text": joined, "slots": spans}
        text: Any = at(values, shape.text) if shape.text else MISSING
        tokens: Any = at(values, shape.tokens) if shape.tokens else MISSING
        found |= {"text": text} if text is not MISSING else {}
        found |= {"tokens": tokens} if tokens is not MISSING else {}
        if (tokens if shape.tokens else text) is not MISSING:
            for task in self.spans:
                found[task] = self.read_spans(task, at(values, self.paths[task]), text, tokens, where)
        return values | found

    def label_paths(self) -> list[tuple[str, str]]:
        return [(path.split(".")[-1], path) for path in self.shape.labels]

    def read_inline(self, values: Values, where: str) -> Values:
        plain, spans = without_marks(at(values, self.shape.text), self.shape.inline, where)
        stored = next((at(values, path) for path in self.shape.also), plain)
        if isinstance(stored, str) and stored.split() != plain.split():
            raise UserError(f"{where}: {self.shape.text!r} without its marks is not {self.shape.also[0]!r}")
        return {"text": plain, "slots": spans}

    def read_spans(self, task: str, stored: Any, text: Any, tokens: Any, where: str) -> list[Any] | None:
        spans, found = self.shape.spans, list[Any]()
        assert spans
        if stored is MISSING or stored is None:
            return [] if spans.may_lack else None
        for item in items_of(spans, stored):
            start, end, label, surface, whole = item
            if not is_well_formed(item, spans):
                raise UserError(f"{where}: a span of {task!r} needs a start, an end and a label, as in other rows")
            if not whole:
                self.counts["discontinuous spans, which are left out"] += 1
            elif not spans.start and not spans.pieces:
                if surface not in text or text.find(surface) != text.rfind(surface):
                    self.counts[f"texts with a value that does not occur once; they have no {task}"] += 1
                    return None
                start = text.index(surface)
                found.append({"start": start, "end": start + len(surface), "label": label, "text": surface})
            else:
                end += self.spans[task]
                span = {"start": start, "end": end, "label": label, "text": surface}
                if tokens is not MISSING:
                    self.check_tokens(span, tokens, self.spans[task], where)
                found.append(span if tokens is MISSING else [start, end - 1, label])
        return found

    def check_tokens(self, span: Values, tokens: list[str], inclusive: bool, where: str) -> None:
        start, end, label, surface = span.values()
        how = f"with its end {'inclusive' if inclusive else 'exclusive'} (--span_end overrides)"
        place = f"{where}: the span {start} to {end - inclusive} of {shown(label)}"
        if not 0 <= start < end <= len(tokens):
            raise UserError(f"{place} lies outside the {len(tokens)} tokens, or is empty, {how}")
        if surface and not is_surface(tokens[start:end], surface):
            called = f"is {shown(' '.join(tokens[start:end]))}, but the data gives {shown(surface)}"
            raise UserError(f"{place} {called}, {how}")

    def report(self) -> None:
        for what, number in self.counts.items():
            print(f"{self.path}: {number:,} {what}")


def find_reading(path: str | Path, objects: Sequence[Values], options: ReadOptions) -> Reading | None:
    """The Reading that the first objects of a file fit; None if they have text, tokens and labels under usual keys, or
    fit no shape. Raises UserError if they fit several shapes equally well, and these differ."""
    rows = [values for values in objects[:HEAD] if isinstance(values, dict)]
    wanted = [shape for shape in SHAPES if options.shape in ("auto", shape.name)]
    if options.shape == "none" or not rows:
        return None
    if not wanted:
        names = ", ".join(shape.name for shape in SHAPES)
        raise UserError(f"--shape {options.shape!r} is not one of: auto, none, {names}")
    readings = [reading for shape in wanted if (reading := fitting(path, shape, rows, options))]
    usual = any({"tokens", *TEXT_NAMES} & row.keys() for row in rows)
    if not options.labelled and not readings and (not usual or options.shape != "auto"):
        readings = [found for shape in wanted if (found := fitting(path, shape, rows, options, needs_spans=False))]
    for reading in readings if not options.labelled else ():
        reading.spans.clear()
    if options.shape != "auto" and not readings:
        raise UserError(f"{path}: the first {len(rows)} objects do not fit --shape {options.shape!r}")
    best = max((reading.weight for reading in readings), default=0)
    fit = [reading for reading in readings if reading.weight == best]
    for other in fit[1:]:
        if [outcome(fit[0], row) for row in rows] != [outcome(other, row) for row in rows]:
            both = f"{fit[0].shape.name!r} and {other.shape.name!r}"
            raise UserError(f"{path}: the objects fit the shapes {both} equally well; name one with --shape")
    if fit:
        settle(fit[0], rows[0], options)
    return fit[0] if fit else None


def outcome(reading: Reading, row: Values) -> Any:
    """What a Reading makes of an object, or its message."""
    try:
        return reading(row, "")
    except UserError as error:
        return str(error)


def settle(reading: Reading, row: Values, options: ReadOptions) -> None:
    """Finalises the chosen Reading. Raises UserError if nothing shows whether its spans' ends are inclusive."""
    reading.counts.clear()
    wanted = split_names(options.label_column)
    reading.spans = {task: ends for task, ends in reading.spans.items() if not wanted or task in wanted}
    if open_ends := [task for task in reading.open_ends if task in reading.spans]:
        doubt = "do not show whether their ends are inclusive (no span of one token, none up to the last token)"
        advice = "add --span_end inclusive or --span_end exclusive"
        raise UserError(f"{reading.path}: the spans of {open_ends[0]!r} {doubt}; {advice}")
    shape, unit = reading.shape, "tokens" if reading.shape.tokens else "characters"
    how = {task: f" ({unit}, ends {'inclusive' if ends else 'exclusive'})" for task, ends in reading.spans.items()}
    labels = ", ".join(f"{task}{how.get(task, '')}" for task in reading.tasks)
    text = key_of(path, row) if (path := shape.tokens or shape.text or shape.chunks) else None
    if not options.labelled:
        options.understood.unread.update(reading.tasks)
    options.understood.add(reading.path, shape.name, text=text, labels=labels if options.labelled else None)


def fitting(
    path: str | Path, shape: Shape, rows: Sequence[Values], options: ReadOptions, needs_spans: bool = True
) -> Reading | None:
    """The Reading of a shape, or None if some object lacks what it names, its spans only if they are needed."""
    if shape.find:
        named = options.label_column or options.text_column
        convert = None if named else shape.find(rows, options.labelled)
        return convert and Reading(path, shape, convert=convert, tasks=["label"] * options.labelled, weight=2)
    if any(at(row, needed) is MISSING for needed in shape.also for row in rows):
        return None
    if any(not isinstance(at(row, shape.text), str) for row in rows if shape.text):
        return None
    if any(not is_tokens(at(row, shape.tokens)) for row in rows if shape.tokens):
        return None
    tasks = [
        name for name, label in Reading(path, shape).label_paths() if any(at(r, label) is not MISSING for r in rows)
    ]
    weight = 2 * (bool(shape.text) + bool(shape.tokens) + len(shape.also)) + len(tasks)
    reading = Reading(path, shape, tasks=tasks, weight=weight)
    if shape.inline:
        marked = sum(bool(re.search(INLINE[shape.inline], at(row, shape.text))) for row in rows)
        reading.tasks.append("slots")
        return reading if marked else None
    if shape.chunks:
        reading.tasks.append("slots")
        return reading if all(is_chunks(at(row, shape.chunks)) for row in rows) else None
    return with_spans(reading, shape.spans, rows, options) if shape.spans and needs_spans else reading


def is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(token, str) for token in value)


def is_chunks(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(at(piece, "text"), str) for piece in value)


def with_spans(reading: Reading, spans: Spans, rows: Sequence[Values], options: ReadOptions) -> Reading | None:
    """The Reading with the tasks whose values in some objects are such spans; None if there are none."""
    wanted = split_names(options.label_column)
    for path in dict.fromkeys([*spans.path.split("|"), *wanted]):
        task = path.split(".")[-1]
        items = items_in(spans, [(row, at(row, path)) for row in rows])
        if not items or task in (reading.shape.text, reading.shape.tokens):
            continue
        inclusive = False
        if spans.start or spans.pieces:
            found = inclusive_ends(reading, task, [(item, row) for item, row in items if item[4]], options)
            if found is None:
                continue
            inclusive = found
        elif sum(str(item[3]) in at(row, reading.shape.text) for item, row in items) < 0.8 * len(items):
            continue  # values that are not from the texts
        reading.tasks.append(task)
        reading.spans[task], reading.paths[task] = inclusive, path
        seen = any(item[3] for item, _ in items) and spans.surface
        steps = [spans.start or spans.surface, spans.end if spans.start else "", spans.label, spans.pieces, seen]
        reading.weight += sum(map(bool, steps))
    return reading if reading.spans else None


def items_in(spans: Spans, stored: Sequence[tuple[Values, Any]]) -> list[tuple[Item, Values]]:
    """[(span, its object)] of the spans of some objects; empty if some are missing, or no such spans."""
    present = [(row, value) for row, value in stored if value is not MISSING and value is not None]
    if not spans.may_lack and any(value is MISSING for _, value in stored):
        return []
    if not present or any(not isinstance(value, list | dict) for _, value in present):
        return []
    each = [span for _, value in present if isinstance(value, list) for span in value]
    if spans.without and any(at(span, spans.without) is not MISSING for span in each):
        return []
    items = [(item, row) for row, value in present for item in items_of(spans, value)]
    return items if all(is_well_formed(item, spans) for item, _ in items) else []


def inclusive_ends(
    reading: Reading, task: str, items: Sequence[tuple[Item, Values]], options: ReadOptions
) -> bool | None:
    """Whether the ends of spans are inclusive: by --span_end, by surfaces, by the spans, or by the shape. None: they
    can be neither.

    A span that begins where it ends shows that they are, one that ends behind the last token that they are not.
    """
    shape, spans = reading.shape, reading.shape.spans
    assert spans
    wholes = [(item[0], item[1], item[3], at(row, shape.tokens or shape.text)) for item, row in items]
    behind = any(end >= len(whole) for _, end, _, whole in wholes)
    if not shape.tokens:  # offsets.py applies --span_end, and surfaces decide row by row
        return options.span_end == "auto" and bool(spans.inclusive) and not behind
    if any(end > len(whole) for _, end, _, whole in wholes):
        return None
    if options.span_end != "auto":
        return options.span_end == "inclusive"
    named = [(start, end, surface, whole) for start, end, surface, whole in wholes if surface]
    for last in (0, 1):
        if named and all(is_surface(whole[start : end + last], surface) for start, end, surface, whole in named):
            return bool(last)
    same = any(start == end for start, end, _, _ in wholes)
    if behind or same:
        return None if behind and same else same
    if spans.inclusive is None:
        reading.open_ends.append(task)
    return bool(spans.inclusive)
