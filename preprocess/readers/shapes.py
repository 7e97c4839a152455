"""The JSON layouts. Each entry of SHAPES defines the paths of the text, the spans and the labels.

To add a shape, add one entry (docs/cookbook/json_shape.md). A shape fits if the first objects have all its paths, with
values of the right type. If several shapes fit, the one with the most paths is used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from engine.task.signs import LABEL_NAMES
from preprocess.readers.inline import find_chunks, find_marked
from preprocess.readers.instructions import find_dialogue, find_instructions
from preprocess.readers.options import ReadOptions
from preprocess.readers.paths import Convert, Values

KEY = "@key"  # the label of a span is its key in a dict of spans
VALUE = "@value"  # the item is the span's text


@dataclass(frozen=True)
class Spans:
    """The paths of an object's spans, and the meaning of their offsets.

    A path consists of keys and list positions, joined by dots; `a|b` is `a`, or `b` if `a` is absent. Paths such as
    `start` are relative to a span. A span needs an end or a length.
    """

    path: str  # list or dict of spans; its last key is the name of the task. With `a|b`, an object may have both tasks
    start: str = "start"  # "" if not stored; the span's text must then occur exactly once
    end: str = "end"
    label: str = "label"
    surface: str = ""
    length: str = ""
    pieces: str = ""  # replaces start and end: all positions or ranges of a span, which may be discontinuous
    inclusive: bool | None = False  # whether the end is inclusive; None infers it from the data
    default_start: int | None = None  # start of spans without a start; protocol buffers omit zeros
    may_lack: bool = False  # whether an object without the key has zero spans (instead of no label)
    without: str = ""  # if a span has one of these keys, the shape does not fit
    columns: bool = False  # whether spans are stored as an object with one list per key


@dataclass(frozen=True)
class Relations:
    """The paths of an object's relations. Paths other than `path` are relative to a relation.

    The subject and the object are mentions (offsets, or only words; their label is the type of the entity), or paths
    (strings) of references to the object's spans: by position or, if `refer` is set, by that key of a span.
    """

    path: str  # list of relations
    predicate: str
    subject: Spans | str
    object: Spans | str
    refer: str = ""
    none: str = ""  # predicate of pairs without a relation
    may_lack: bool = False  # whether the shape also fits objects without relations


@dataclass(frozen=True)
class Shape:
    """One JSON layout. Paths have the same format as in Spans."""

    name: str
    text: str = ""
    tokens: str = ""  # if set, span offsets are token indices, not character offsets
    spans: Spans | None = None  # if there are relations, spans are optional, unless relations refer to them
    relations: Relations | None = None
    labels: tuple[str, ...] = ()  # other labels, optional; the last key is the name of the task
    also: tuple[str, ...] = ()  # other required paths
    find: Callable[[Sequence[Values], ReadOptions], Convert | None] | None = None  # if paths are not sufficient


TEXT = "text|sentence|content|originalText|query|utterance|document|context"
TOKENS = "tokens|sentence|words"
UNDER = "entities|spans|labels|label|annotations|annotation|entity|entity_list|mentions|ner"  # usual keys of span lists
TOKEN_SPANS = "|".join(["entity_mentions", "mentions", *LABEL_NAMES])
START = "start|start_offset|start_idx|begin|start_char|char_start|startOffset|beginOffset|startIndex|startPos|start_pos"
END = "end|end_offset|end_idx|end_char|char_end|endOffset|endIndex|endPos|end_pos|to"
LABEL = "label|type|entity_type|label_type|category|tag|displayName|class"
WORDS = "name|text|word|mention"
PLACES = f"{START}|span|offset|offsets|index|points|pos|position|valueSpan|token_start|start_token"
OTHER_START = "start_char|startOffset|beginOffset|start_pos|from|char_start|startIndex"
OTHER_END = "end_char|endOffset|end_pos|to|char_end|endIndex"
TOKEN_START, TOKEN_END = "start|start_token|token_start|begin|span.0|pos.0", "end|end_token|token_end|span.1|pos.1"
POSITION_START, POSITION_END = "position.0|pos.0|offset.0", "position.1|pos.1|offset.1"
VALUE_START, VALUE_END = "valueSpan.startIndex|valueSpan.start", "valueSpan.endIndex|valueSpan.end"
INTENT = ("domain", "intent")
MENTION = (  # start, end, type and words of a relation's subject or object
    "{0}.start|{0}.start_offset|{0}.char_span.0|{0}.boundaries.0|{0}.pos.0|{0}_start|{0}_char_span.0|{0}_pos.0",
    "{0}.end|{0}.end_offset|{0}.char_span.1|{0}.boundaries.1|{0}.pos.1|{0}_end|{0}_char_span.1|{0}_pos.1",
    "{0}_type.@value|{0}_type|{0}.type|{0}.label",
    "{0}.text|{0}.name|{0}.surfaceform|{0}",
)


def mention(*names: str) -> Spans:
    """Returns the paths of a relation's subject or object. names: prefixes of its keys."""
    start, end, label, surface = (
        "|".join(path.format(name) for name in names for path in paths.split("|")) for paths in MENTION
    )
    return Spans("", start, end, label, surface)


def words_at(path: str) -> Spans:
    return Spans("", "", "", "", path)


LISTS = "relations|spo_list|relation_list|triple_list|triples|relation"  # usual keys of relation lists
PREDICATE = "predicate.surfaceform|predicate|relation|relation_type|type|label"
SUBJECT = mention("subject", "subj", "sub", "head_span", "head", "h")
OBJECT = mention("object", "obj", "child_span", "tail", "t")
FROM, TO = "from_id|head_id|arg1_id|subject_id|source_id", "to_id|tail_id|arg2_id|object_id|target_id"
REFER = Relations(LISTS, PREDICATE, f"{FROM}|head|from|source|arg1", f"{TO}|tail|to|target|arg2")
NUMBERS = replace(REFER, may_lack=True)
PLACES_OF_TOKENS = Relations("relations", "4", Spans("", "0", "1", ""), Spans("", "2", "3", ""), may_lack=True)
SHAPES = [
    Shape("SpERT", "", "tokens", Spans(TOKEN_SPANS, label="type", surface="text"), NUMBERS),
    Shape("W2NER", "", "sentence|tokens", Spans(TOKEN_SPANS, label="type", pieces="index", inclusive=True)),
    Shape("GLiNER", "", "tokenized_text", Spans("ner", "0", "1", "2", inclusive=True)),
    Shape("spans of tokens", "", TOKENS, Spans(TOKEN_SPANS, "0", "1", "2", inclusive=None), PLACES_OF_TOKENS),
    Shape(
        "our processed folder",
        "text",
        "tokens",
        Spans(TOKEN_SPANS, "0", "1", "2", inclusive=True),
        PLACES_OF_TOKENS,
        also=("id",),
    ),
    Shape(
        "spans of tokens as objects",
        tokens=TOKENS,
        spans=Spans(
            TOKEN_SPANS,
            TOKEN_START,
            TOKEN_END,
            "label|entity_type|tag|category",
            "text|name|word|entity|mention|surface",
            inclusive=None,
        ),
        relations=NUMBERS,
    ),
    Shape("relations between spans", TEXT, "", Spans(UNDER, START, END, LABEL, WORDS), REFER),
    Shape(
        "relations between spans with ids", TEXT, "", Spans(UNDER, START, END, LABEL, WORDS), replace(REFER, refer="id")
    ),
    Shape(
        "relations of mentions",
        TEXT,
        "",
        Spans(f"{UNDER}", f"{START}|char_span.0|span.0", f"{END}|char_span.1|span.1", LABEL, WORDS),
        Relations(LISTS, PREDICATE, SUBJECT, OBJECT),
    ),
    Shape("triples", TEXT, relations=Relations(LISTS, "1", words_at("0"), words_at("2"))),
    Shape(
        "NYT",
        "sentText",
        relations=Relations("relationMentions", "label", words_at("em1Text"), words_at("em2Text"), none="None"),
    ),
    Shape("span: [start, end]", TEXT, spans=Spans(UNDER, "span.0", "span.1", LABEL, WORDS)),
    Shape("position: [start, end]", TEXT, spans=Spans(UNDER, POSITION_START, POSITION_END, LABEL, WORDS)),
    Shape("NLU++", TEXT, spans=Spans("slots", "span.0", "span.1", KEY, "text", may_lack=True), labels=("intents",)),
    Shape(
        "valueSpan",
        f"userInput.text|{TEXT}",
        spans=Spans("labels|slots|entities", VALUE_START, VALUE_END, "slot|label"),
    ),
    Shape(
        "valueSpan of protocol buffers",  # which omit zeros and empty lists
        "userInput.text",
        spans=Spans("labels", "valueSpan.startIndex", "valueSpan.endIndex", "slot", default_start=0, may_lack=True),
    ),
    Shape("ranges by label", TEXT, spans=Spans(UNDER, "0", "1", KEY)),
    Shape("columns of spans", TEXT, spans=Spans(UNDER, START, END, LABEL, "text|word|surface", columns=True)),
    Shape("BigBio", TEXT, spans=Spans(UNDER, label="type", pieces="offsets")),
    Shape(
        "Dataturks", "content", spans=Spans("annotation", "points.0.start", "points.0.end", "label.0", inclusive=True)
    ),
    Shape(
        "Vertex AI",
        "textContent",
        spans=Spans(
            "textSegmentAnnotations", "startOffset", "endOffset", "displayName", default_start=0, may_lack=True
        ),
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
        spans=Spans(UNDER, OTHER_START, OTHER_END, LABEL, "text|word|surface|mention"),
    ),
    Shape("Snips", "data", labels=("intent",), find=find_chunks),
    Shape("values by slot", TEXT, spans=Spans("slots|entities", "", "", KEY, VALUE), labels=INTENT),
    Shape(
        "slots and values",
        TEXT,
        spans=Spans("slots|entities", "", "", "slot|name", "value", without=PLACES),
        labels=INTENT,
    ),
    Shape(
        "entities by their words",
        TEXT,
        spans=Spans(
            "entities|slots", "", "", "type|label|entity_type", "name|text|word|mention|entity|value", without=PLACES
        ),
        labels=INTENT,
    ),
    Shape("MASSIVE", "annot_utt", labels=("intent",), also=("utt",), find=find_marked),
    Shape("doccano", "text", labels=("entities", "cats"), also=("entities", "cats")),
    Shape("instructions", find=find_instructions),
    Shape("dialogues", find=find_dialogue),
]
