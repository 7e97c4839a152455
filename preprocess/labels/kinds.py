"""Labels in the raw data: the kinds of task, the checks of each label, tag schemes and spans.

Kinds: "classification" (a string), "multilabel" (a list of strings), "regression" (a number), "tagging" (one tag per
token), "spans" (a list of [first token, last token, type], both ends included). Spans of characters become tags of
tokens, so their task is tagging too, unless some spans overlap.
Edit here to read labels in another form, or another tag scheme.
"""

import ast
import math
import re
from bisect import bisect_left, bisect_right
from contextlib import suppress

import regex

from engine.errors import UserError
from engine.task.extras import MOST_NUMBER
from engine.task.tags import has_spans, is_tagging
from engine.task.text import HAN

# Each kind of task, and the kind whose label format it uses: KINDS["ordinal"] = "classification" adds a custom kind
KINDS = {kind: kind for kind in ("classification", "multilabel", "regression", "tagging", "spans")}
TAG_NAMES = ("slots", "tags", "ner", "ner_tags")  # labels with these names are tags, never sets of labels
MOST_LABELS = 100_000  # per task
NO_LABEL = ("", "nan", "null", "na", "n/a", "#n/a")  # what --drop_unlabelled treats as no label
SPAN_KEYS = [  # the usual names of a span's start, end, label and surface
    ("start", "start_offset", "start_idx", "begin"),
    ("end", "end_offset", "end_idx"),
    ("label", "labels", "type", "entity_type", "entity_group", "tag"),
    ("text", "entity", "word", "surface", "mention"),
]


def is_spans(value):
    """Whether a label is a list of spans, or CLUENER's dict of them."""
    if isinstance(value, dict):
        return True
    return isinstance(value, list) and any(isinstance(item, dict | list) for item in value)


def as_list(cell, separator):
    """The labels in a cell: a JSON or Python list, or a string split at the separator."""
    if cell.strip().startswith("[") and cell.strip().endswith("]"):
        with suppress(ValueError, SyntaxError):
            return list(ast.literal_eval(cell.strip()))
    return [part for part in cell.split(separator) if part.strip()]


def is_number(text):
    return bool(re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", text))


def check_label(example, name, kind):
    """The label as it is stored, or None if it is missing. Raises UserError if it is not valid."""
    where, label = example["_where"], example.get(name)
    if label is None or (isinstance(label, float) and math.isnan(label)):
        return None
    if is_tagging(kind):
        return check_tags(label, name, where, example.get("tokens"))
    if has_spans(kind):
        return check_spans(label, name, where, example.get("tokens"))
    check = {"multilabel": check_set, "regression": check_number}.get(kind, check_class)
    return check(label, name, where)


def check_set(label, name, where):
    label = label if isinstance(label, list) else [label]
    label = [str(item) if isinstance(item, int) and not isinstance(item, bool) else item for item in label]
    if not all(isinstance(item, str) and item.strip() for item in label):
        raise UserError(f"{where}: {name!r} must be a list of labels, non-empty strings")
    return sorted({item.strip() for item in label})


def check_tags(label, name, where, tokens):
    if tokens is None:
        raise UserError(f"{where}: {name!r} is a list of tags, which needs a list of `tokens`")
    if not isinstance(label, list) or "" in label or not all(map(is_string, label)):
        raise UserError(f"{where}: {name!r} must be a list of tags, non-empty strings")
    if len(label) != len(tokens):
        raise UserError(f"{where}: {len(tokens)} tokens, but {len(label)} tags in {name!r}")
    return label


def is_string(value):
    return isinstance(value, str)


def check_spans(label, name, where, tokens):
    if tokens is None:
        raise UserError(f"{where}: {name!r} has spans of tokens, which need a list of `tokens`")
    for span in label if isinstance(label, list) else [label]:
        if not (isinstance(span, list | tuple) and len(span) == 3 and isinstance(span[2], str) and span[2]):
            raise UserError(f"{where}: {name!r} must be a list of [first token, last token, type], found {span!r}")
        if not (type(span[0]) is int and type(span[1]) is int and 0 <= span[0] <= span[1] < len(tokens)):
            raise UserError(f"{where}: the span {span!r} of {name!r} lies outside the {len(tokens)} tokens")
    return [list(span) for span in sorted({tuple(span) for span in label})]


def check_number(label, name, where):
    if isinstance(label, bool) or not (isinstance(label, int | float) or (isinstance(label, str) and is_number(label))):
        advice = f"--label_type {name}=classification reads it as a class name"
        if isinstance(label, str) and label.strip().lower() in NO_LABEL:
            advice = "--drop_unlabelled drops such rows"
        raise UserError(f"{where}: the label {name}={label!r} is not a number; {advice}")
    number = math.inf if isinstance(label, int) and abs(label) > MOST_NUMBER else float(label)
    if not abs(number) <= MOST_NUMBER:
        shown = shortened(label)
        raise UserError(
            f"{where}: the label {name}={shown} is not a finite number up to {MOST_NUMBER:g}; scale the column"
        )
    return number


def shortened(value: object) -> str:
    """A value as shown in messages, shortened: an integer may have hundreds of digits."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}… ({len(shown)} characters)"


def check_class(label, name, where):
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, float) and label.is_integer():
        label = int(label)  # pandas stores integers as floats if some are missing
    label = str(label) if isinstance(label, int | float) else label
    if not isinstance(label, str):
        raise UserError(f"{where}: the label {name}={label!r} is not a string")
    if not label.strip():
        raise UserError(f"{where}: the label {name!r} is empty; --drop_unlabelled drops such rows")
    return label.strip()


def refuse_two_ways(name: str, labels: list[str]) -> None:
    """Raises UserError if yes and no are written in two ways, such as 1 and true in JSON: the task would have four
    labels."""
    written = {label.lower() for label in labels}
    if written <= {"true", "false", "1", "0"} and written & {"true", "false"} and written & {"1", "0"}:
        raise UserError(f"the task {name!r} has the labels {', '.join(labels)}: write yes and no consistently")


def require_few(name, labels):
    """Raises UserError for more than MOST_LABELS labels: the column is probably an id or a text."""
    if len(labels) > MOST_LABELS:
        shown = f"such as {labels[0]!r} and {labels[-1]!r}"
        many = f"the task {name!r} has {len(labels):,} labels in train ({shown}), more than {MOST_LABELS:,}"
        raise UserError(f"{many}: name the label column with --label_column")


def runs_to_bio(tags):
    """Tags without B- and I-, such as PER and O, as BIO: a run of equal tags is an entity."""
    return [tag if tag == "O" else f"{'I' if tag == before else 'B'}-{tag}" for before, tag in zip(["O", *tags], tags)]


def convert_tags(tags, source, target):
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


def read_spans(value, text, where):
    """[(start, end, label)] over the characters of the text, end exclusive, in the text's order.

    value: [{"start", "end", "label"}] or other usual names of these, [[start, end, label]] (doccano), or CLUENER's
    {label: {surface: [[first, last]]}}, whose ends are inclusive. A surface in the data must equal the text between the
    ends.
    """
    spans = []
    fields = fields_of_dict(value, where) if isinstance(value, dict) else map(fields_of, value)
    for start, end, label, surface in fields:
        if type(start) is not int or type(end) is not int or not isinstance(label, str) or not label:
            raise UserError(f"{where}: a span needs a start, an end and a label, found {start!r}, {end!r}, {label!r}")
        if surface and text[start:end] != surface and text[start : end + 1] == surface:
            end += 1  # the data counts its ends as inclusive
        if not 0 <= start < end <= len(text):
            outside = f"lies outside the text, which has {len(text)} characters"
            raise UserError(f"{where}: the span {start} to {end} of {label!r} {outside}")
        if surface and text[start:end] != surface:
            called = f"is {text[start:end]!r}, but the data gives {surface!r}"
            raise UserError(f"{where}: the span {start} to {end} {called}")
        spans.append((start, end, label))
    return sorted(set(spans))


def fields_of_dict(value, where):
    """[(start, end, label, surface)] of CLUENER's {label: {surface: [[first, last]]}}."""
    for label, surfaces in value.items():
        if not isinstance(surfaces, dict):
            raise UserError(f"{where}: entities must be {{label: {{surface: [[first, last]]}}}} or a list of spans")
        for surface, ranges in surfaces.items():
            for first_last in ranges if isinstance(ranges, list) else [ranges]:
                start, last = (
                    first_last if isinstance(first_last, list) and len(first_last) == 2 else (first_last, None)
                )
                yield start, last + 1 if isinstance(last, int) else last, label, surface


def fields_of(item):
    """(start, end, label, surface) of one span; None for what is missing."""
    if not isinstance(item, dict):
        return (*item, None) if isinstance(item, list) and len(item) == 3 else (item, None, None, None)
    start, end, label, surface = (next((item[key] for key in keys if key in item), None) for keys in SPAN_KEYS)
    if isinstance(label, list) and len(label) == 1:
        (label,) = label
    return start, end, label, surface


def any_overlap(spans):
    """Whether two spans, in order, share a character."""
    end = 0  # the largest end so far: a span that begins before it overlaps
    for start, stop, _ in spans:
        if start < end:
            return True
        end = max(end, stop)
    return False


def without_overlaps(spans):
    """(spans kept, spans dropped): of two spans that share a character the longer is kept, then the earlier."""
    kept, dropped = [], []
    for span in sorted(spans, key=lambda span: (span[0] - span[1], span[0], span[2])):
        clash = any(span[0] < other[1] and other[0] < span[1] for other in kept)
        (dropped if clash else kept).append(span)
    return sorted(kept), dropped


def split_at_borders(pieces, borders):
    """[(token, start, end)] split further, so that no border lies inside a token."""
    result = []
    for token, start, end in pieces:
        inside = sorted(border for border in borders if start < border < end)
        for a, b in zip([start, *inside], [*inside, end]):
            result.append((token[a - start : b - start], a, b))
    return result


def spans_to_tags(spans, pieces):
    """BIO tags of the pieces [(token, start, end)]; spans are in order, without overlaps."""
    tags, number, last = [], 0, None
    for _, start, end in pieces:
        while number < len(spans) and spans[number][1] <= start:
            number += 1
        span = spans[number] if number < len(spans) and spans[number][0] < end else None
        tags.append("O" if span is None else f"{'I' if span is last else 'B'}-{span[2]}")
        last = span
    return tags


def spans_to_tokens(spans, pieces):
    """[[first token, last token, label]] for spans of characters. No border may lie inside one of the pieces
    [(token, start, end)]; a span that is only whitespace has no token and is dropped."""
    starts, ends = [start for _, start, _ in pieces], [end for _, _, end in pieces]
    found = {(bisect_left(starts, start), bisect_right(ends, end) - 1, label) for start, end, label in spans}
    return [list(span) for span in sorted(found) if span[0] <= span[1]]


def mostly_chinese(texts):
    """Whether most letters of the texts are Chinese or kana."""
    text = "".join(texts)
    letters, chinese = (regex.subn(pattern, "", text)[1] for pattern in (r"\p{L}", HAN))
    return 2 * chinese > letters
