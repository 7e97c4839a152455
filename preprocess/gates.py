"""Gates: reject data that could be parsed but was probably misread.

To add a gate, write a function that takes Evidence and add a line to GATES. `--accept NAME` turns a gate off.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import regex

from engine.errors import UserError
from engine.task.tags import STANDARD, USUAL, TagFacts, parse_tag
from engine.task.text import HAN, text_of
from preprocess.checks.texts import garbled, is_quoted, undecodable
from preprocess.example import Example, counts_up, is_whole_file, length_of, shown
from preprocess.labels.events import MISSING, Problems, is_event, is_events, read_event
from preprocess.labels.form import Form
from preprocess.labels.kinds import as_list, is_number
from preprocess.labels.literals import literal
from preprocess.labels.positions import marks_width, names_of_positions
from preprocess.labels.relations import is_relation, is_relations, read_relation, shown_relation
from preprocess.labels.schemes import is_prefixed, read_tags
from preprocess.labels.spans import is_spans, read_spans
from preprocess.readers.cells import tags_in
from preprocess.readers.options import split_names
from preprocess.storage.arrow import Store

SAMPLE = 5000  # number of rows that the gates inspect, evenly spaced
FEW = 20  # with fewer rows, a high share can be due to chance
# Maximum shares of implausible rows: correct data has few; in misread data, nearly all rows are implausible
MOST, MANY, NEARLY_ALL = 0.8, 0.9, 0.98
MAX_WORD = 30  # maximum length of a word
POS = set("ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X".split())
POS |= set("NN NNS NNP VB VBD VBG VBN VBZ JJ RB IN DT PRP CC CD TO VV NR PU AD".split())
ID = re.compile(
    r"[-+]?\d+([.,:/ -]\d+)*|[0-9a-f]{8}-[0-9a-f-]{15,}|(?=\S*\d)[0-9a-f]{16,}|[a-z]{0,12}[-_#:]\d+"
    r"|\S+\.(jpe?g|png|gif|wav|mp3)",
    re.I,
)
COUNTER = re.compile(r"\S*[\W_](?=\d+$)")  # the part before the last number: s1. in s1.2
NUMBERED = regex.compile(rf"{HAN}\d+")  # 科0
CONTAINER = re.compile(
    r"""\s*(?s:\[\s*['"\[{(].*\]|\{\s*['"\[{(].*\}|\(\s*['"\[{(].*\))\s*"""
)  # matches even if it cannot be parsed
BRACKETED = re.compile(r"\s*[\[{(].*[\])}]\s*")
NUMBERS = re.compile(r"\s*\d+(\s*[;,|]\s*\d+){2,}\s*|\d+\s+\d+\s+[^\W\d]\w*")  # 9;10;11, or 2 7 PER
OFFSETS = re.compile(r"\(?\d+[^\w\s]\s*\d+[^\w\s]\s*[^\W\d]\w*\)?([;|,\s]+\(?\d+[^\w\s]\s*\d+[^\w\s]\s*[^\W\d]\w*\)?)*")


@dataclass
class Evidence:
    """The input of the gates: a sample of the raw rows, and the tags of all rows."""

    form: Form
    rows: list[Example]
    short_files: list[list[Example]]  # the rows of each file with at most three rows, if there are few files
    store: Store
    text_column: str  # --text_column
    broken: Mapping[str, str | None]  # {task: label with a line break or tab}
    regression: set[str]  # tasks whose labels are numbers with decimal points
    tags: Mapping[str, Mapping[str, TagFacts]] = field(default_factory=dict)  # {task: {file: tags}}, set later

    def labels(self, name: str) -> list[tuple[Example, Any]]:
        """Returns (row, label) for each labelled row in the sample."""
        return [(row, row[name]) for row in self.rows if row.get(name) not in (None, "")]

    def distinct(self, name: str) -> float:
        """Returns the share of distinct labels. Reads all rows if the share in the sample exceeds the limit."""
        labels = [item for _, label in self.labels(name) for item in names_in(label)]
        if len(self.rows) < len(self.store) and len({*labels}) > MOST * len(labels):
            hashes = [hash(item) for row in self.store for item in names_in(row.get(name))]
            return len({*hashes}) / max(1, len(hashes))
        return len({*labels}) / max(1, len(labels))

    def inferred(self) -> Iterator[tuple[str, list[tuple[Example, Any]]]]:
        """Yields (task, its labels) for each task without --label_type."""
        for name in self.form.names:
            if name not in self.form.chosen and (labels := self.labels(name)):
                yield name, labels


class Gate(NamedTuple):
    name: str  # the name in --accept
    look: Callable[[Evidence], str | None]  # returns the problem and its row, or None
    advice: str  # the options that fix the problem
    after_labels: bool = False  # whether the gate needs the tags of all rows


def short_files(store: Store, most: int = 3) -> list[list[Example]]:
    """Returns the rows of each file with at most `most` rows, or [] if there are many files."""
    files = store.rows_of_files()
    return [store.pick(rows) for rows in files.values() if len(rows) <= most] if len(files) <= 9 else []


def gather(store: Store, form: Form, values: Mapping[str, Any], text_column: str) -> Evidence:
    """Returns the Evidence of a filled store. values: {task: Values}."""
    numbers = np.unique(np.linspace(0, len(store) - 1, min(len(store), SAMPLE)).astype(np.int64))
    return Evidence(
        form=form,
        rows=store.pick(numbers),
        store=store,
        short_files=short_files(store),
        text_column=text_column,
        broken={name: task_values.broken for name, task_values in values.items()},
        regression={name for name, task_values in values.items() if task_values.kind == "regression"},
    )


def name_positions(evidence: Evidence, config: Any) -> None:
    """Converts multi-hot lists to sets of labels, if the names of the positions are known."""
    for name in evidence.form.names:
        width = width_of_marks(evidence, name)
        if width and (names := names_of_positions(config.label_names, Path(config.input), width, name)):
            evidence.form.positions[name] = names
            evidence.form.chosen[name] = "multilabel"


def apply_gates(evidence: Evidence, accepted: Sequence[str], after_labels: bool) -> None:
    """Raises UserError for the first gate that the data fails. accepted: the gates in --accept."""
    for gate in GATES:
        if gate.name not in accepted and gate.after_labels == after_labels and (problem := gate.look(evidence)):
            raise UserError(f"{problem}; {gate.advice}; if the data is correct, add --accept {gate.name}")


def check_accepted(option: str) -> list[str]:
    """Returns the gates in --accept. Raises UserError for an unknown gate."""
    names = split_names(option)
    if unknown := sorted({*names} - {gate.name for gate in GATES}):
        raise UserError(f"--accept {unknown[0]}: no such gate; the gates are {', '.join(gate.name for gate in GATES)}")
    return names


def where(row: Example) -> str:
    return str(row["_where"])


def share(flags: Sequence[object]) -> float:
    return sum(map(bool, flags)) / max(1, len(flags))


# ---- tokens and texts ----------------------------------------------------------------------------------------------


def tagged(evidence: Evidence) -> list[str]:
    """Returns the tasks whose labels are lists of strings, one per token."""
    with_tokens = evidence.rows and "tokens" in evidence.rows[0]
    return [name for name in evidence.form.names if with_tokens and any(map(is_per_token, evidence.labels(name)))]


def is_per_token(row_and_label: tuple[Example, Any]) -> bool:
    row, label = row_and_label
    return isinstance(label, list) and len(label) == len(row["tokens"])


def one_word(evidence: Evidence) -> str | None:
    """Finds rows that are a single word instead of a sentence."""
    rows = evidence.rows
    if len(rows) < 5 or "text_pair" in rows[0]:
        return None
    with_tokens = "tokens" in rows[0]
    words = [row["tokens"][0] if with_tokens else row["text"].strip() for row in rows]
    is_single = [len(row["tokens"]) == 1 if with_tokens else is_word(word) for row, word in zip(rows, words)]
    if share(is_single) < NEARLY_ALL:
        return None
    if with_tokens:
        is_misread = bool(tagged(evidence))
    else:
        share_of_signs = share([not any(map(str.isalnum, word)) for word in words])
        many_repeat = len(rows) >= FEW and len({*words}) < NEARLY_ALL * len(words)
        as_in_sentences = many_repeat and share_of_signs > 1 - NEARLY_ALL
        is_misread = as_in_sentences or any(are_tags([str(x) for _, x in labels]) for _, labels in evidence.inferred())
    problem = f"every row is a single word (such as {shown(words[0])}) instead of a sentence"
    return f"{where(rows[0])}: {problem}" if is_misread else None


def is_word(text: str) -> bool:
    return len(text) <= MAX_WORD and text.split() == [text]


def are_tags(labels: Sequence[str]) -> bool:
    """Returns True if labels are tags of words rather than classes of texts."""
    names = {label.strip() for label in labels}
    if "O" in names or len(names) < 2:
        return "O" in names
    letters = {*"Bb"} & names and {*"IMEime"} & names and all(len(name) == 1 for name in names)
    parsed = [parse_tag(name) for name in names]
    prefixed = share([tag is not None and (tag.letter.isupper() or tag.letter in "bi") for tag in parsed]) > 0.5
    return bool(letters) or prefixed or (len(names & POS) >= 3 and share([x.strip() in POS for x in labels]) >= MOST)


def one_example(evidence: Evidence) -> str | None:
    """Finds a file that was read as a few very long examples because its delimiter was not recognized."""
    for rows in evidence.short_files:
        if where(rows[0])[-1:].isdecimal() and is_whole_file(rows):  # no row number: a folder with one text per file
            unit = "tokens" if "tokens" in rows[0] else "characters"
            number = "one example" if len(rows) == 1 else f"only {len(rows)} examples"
            return f"{where(rows[0])}: the whole file is {number} of {max(map(length_of, rows)):,} {unit}"
    return None


def counted(evidence: Evidence) -> str | None:
    """Finds tokens that are the row numbers 1, 2, 3, …."""
    rows = [row for row in evidence.rows if len(row.get("tokens", ())) > 1]
    if len(rows) >= 3 and share([counts_up([COUNTER.sub("", x) for x in row["tokens"]]) for row in rows]) > MANY:
        return f"{where(rows[0])}: the tokens are row numbers ({shown(' '.join(rows[0]['tokens'][:4]))[1:-1]} …)"
    return None


def numbers_as_texts(evidence: Evidence) -> str | None:
    """Finds texts that are ids, numbers, times or file names."""
    texts = [row["text"].strip() for row in evidence.rows if "text" in row]
    if evidence.text_column or len(texts) < 10 or share([ID.fullmatch(text) for text in texts]) < MANY:
        return None
    return f"{where(evidence.rows[0])}: the texts are ids or numbers (such as {shown(texts[0])})"


def glued(evidence: Evidence) -> str | None:
    """Finds tokens that are characters with a number appended."""
    tokens = [(row, token) for row in evidence.rows[:1000] for token in row.get("tokens", ())]
    matches = [(row, token) for row, token in tokens if NUMBERED.fullmatch(token)]
    if len(tokens) > 10 and len(matches) > 0.5 * len(tokens):
        row, token = matches[0]
        return f"{where(row)}: tokens are characters with a number appended (such as {shown(token)})"
    return None


def csv_quotes(evidence: Evidence) -> str | None:
    quoted = [row for row in evidence.rows if is_quoted(row)]
    if len(quoted) < 3 or len(quoted) < 0.01 * len(evidence.rows):  # a few texts can be quotations
        return None
    return f"{where(quoted[0])}: {len(quoted)} texts are in CSV quotes (such as {shown(text_of(quoted[0]))})"


def wrong_encoding(evidence: Evidence) -> str | None:
    texts = [(row, text_of(row)) for row in evidence.rows]
    garbled_texts = [(row, text) for row, text in texts if not text.isascii() and (undecodable(text) or garbled(text))]
    if len(garbled_texts) < 5 or len(garbled_texts) < 0.3 * len(texts):  # the data checks report individual texts
        return None
    row, text = garbled_texts[0]
    return f"{where(row)}: texts were probably decoded with the wrong encoding (such as {shown(text)})"


# ---- raw labels ----------------------------------------------------------------------------------------------------


def multihot(evidence: Evidence) -> str | None:
    for name in evidence.form.names:
        if width := width_of_marks(evidence, name):
            row, label = evidence.labels(name)[0]
            problem = f"multi-hot lists of length {width} without label names"
            return f"{where(row)}: {name}={shown(label)}: {problem}"
    return None


def width_of_marks(evidence: Evidence, name: str) -> int:
    """Returns the number of positions if the labels of a task are multi-hot lists, otherwise 0."""
    labels = evidence.labels(name)
    if evidence.form.chosen.get(name, "multilabel") != "multilabel" or name in evidence.form.positions or not labels:
        return 0
    if "tokens" in labels[0][0] and all(map(is_per_token, labels)):
        return 0
    return marks_width([label for _, label in labels])


def structured(evidence: Evidence) -> str | None:
    """Finds labels that are offsets, or lists or dicts in JSON or Python notation."""
    for name in evidence.form.names:
        chosen, labels = evidence.form.chosen.get(name), evidence.labels(name)
        items = [(row, item) for row, x in labels for item in (x if isinstance(x, list) and "text" in row else [x])]
        suspicious = [(row, item) for row, item in items if isinstance(item, str) and is_structured(item, chosen)]
        bracketed = [(row, x) for row, x in labels if isinstance(x, str) and BRACKETED.fullmatch(x)]
        several = any(sign in x for _, x in bracketed for sign in ",;|")
        suspicious = bracketed if several and not chosen and len(bracketed) > MANY * len(labels) else suspicious
        if chosen in (None, "multilabel") and len(suspicious) > 0.3 * len(items):  # class names can have brackets
            row, label = suspicious[0]
            return f"{where(row)}: {name}={shown(label)} is a list, dict or offsets instead of a label"
    return None


def is_structured(cell: str, chosen: str | None) -> bool:
    value = literal(cell)
    if isinstance(value, list | dict):
        is_set = isinstance(value, list) and not any(isinstance(item, list | dict) for item in value)
        return not (chosen == "multilabel" and is_set)
    return bool(CONTAINER.fullmatch(cell)) or (
        chosen is None and bool(OFFSETS.fullmatch(cell.strip()) or NUMBERS.fullmatch(cell))
    )


def offsets(evidence: Evidence) -> str | None:
    """Finds labels that are lists of character positions."""
    for name, labels in evidence.inferred() if "text" in evidence.rows[0] else ():
        lists = [(row, x) for row, x in labels if isinstance(x, list) and len(x) > 2 and {*map(type, x)} == {int}]
        runs = share([sum(b == a + 1 for a, b in pairwise(x)) > 0.6 * (len(x) - 1) for _, x in lists])
        inside = all(max(x) < len(text_of(row)) for row, x in lists)
        if (
            len(lists) > 4 and runs > MOST and inside and len(lists) > 0.2 * len(labels)
        ):  # many texts may have an empty list
            row, label = lists[0]
            return f"{where(row)}: {name}={shown(label)} is a list of character positions instead of labels"
    return None


def whole_texts(evidence: Evidence) -> str | None:
    """Finds spans called `intent` over the whole text, which are classes of the text (Wit)."""
    for name, labels in evidence.inferred() if "tokens" not in evidence.rows[0] else ():
        labels = [(e, x) for e, x in labels if is_spans(x) and not (is_relations(x) or is_events(x))]
        spans = [(e, span) for e, x in labels for span in read_spans(x, text_of(e), where(e))]
        spans = [(e, span) for e, span in spans if span[2].lower() in ("intent", "class", "category", "sentiment")]
        if spans and all(span[:2] == (0, len(text_of(e))) for e, span in spans):
            row, (_, _, label) = spans[0]
            problem = f"the span {label!r} in {name!r} is always the whole text, so it is a label of the text"
            return f"{where(row)}: {problem}"
    return None


def mentions(evidence: Evidence) -> str | None:
    """Finds relations and events whose mentions do not occur in the text."""
    for _, labels in evidence.inferred() if "tokens" not in evidence.rows[0] else ():
        raw = [(e, item) for e, x in labels if is_relations(x) for item in x if is_relation(item)]
        lost = [(e, item) for e, item in raw if read_relation(item, text_of(e), where(e)) is None]
        if len(lost) > max(1, (1 - MOST) * len(raw)):
            row, item = lost[0]
            problem = f"mentions of {len(lost)} of {len(raw)} relations do not occur in their texts"
            return f"{where(row)}: {problem} (such as {shown_relation(item)})"
        problems = Problems(list)
        events = [(e, item) for e, x in labels if is_events(x) for item in x if is_event(item)]
        for e, item in events:
            read_event(item, {**e, "text": text_of(e)}, f"{where(e)}: ", problems)
        missing, number = problems[MISSING], sum(1 + len(item["arguments"]) for _, item in events)
        if len(missing) > max(1, (1 - MOST) * number):
            return f"{missing[0]}: {len(missing)} of {number} mentions of events do not occur in their texts"
    return None


def broken_labels(evidence: Evidence) -> str | None:
    for name, label in evidence.broken.items():
        kind, form = evidence.form.chosen.get(name), evidence.form
        parts = as_list(label, form.separator) if label and kind == "multilabel" else [label or ""]
        if any(re.search(r"[\t\n\r]", str(part).strip()) for part in parts):
            row = next((row for row, x in evidence.labels(name) if x == label), None)
            source = f"{where(row)}: " if row else ""
            return f"{source}the label {shown(label)} of {name!r} contains a line break or tab"
    return None


def joined(evidence: Evidence) -> str | None:
    """Finds labels such as `red|blue`, if both parts also occur alone."""
    for name, labels in evidence.inferred():
        plain = [(row, label) for row, label in labels if isinstance(label, str)]
        alone = {label.strip() for _, label in plain}
        for sign in "|;,/#+&".translate(dict.fromkeys(map(ord, evidence.form.hierarchy))):
            matches = [(row, x) for row, x in plain if sign in x and {part.strip() for part in x.split(sign)} <= alone]
            if len(matches) > 0.1 * len(plain):
                row, label = matches[0]
                advice = f"add --label_type {name}=multilabel --label_separator '{sign}'"
                return (
                    f"{where(row)}: {name}={shown(label)} looks like several labels, which also occur alone; {advice}"
                )
    return None


def repeated(evidence: Evidence) -> str | None:
    """Finds label lists with repeated items: probably tags of words, because a set of labels has no duplicates."""
    for name, labels in evidence.inferred() if "tokens" not in evidence.rows[0] else ():
        lists = [(row, x if isinstance(x, list) else tags_in(str(x)) or []) for row, x in labels]
        repeating = [(row, x) for row, x in lists if len({*map(str, x)}) < len(x)]
        if width_of_marks(evidence, name):  # checked by the gate `multihot`
            continue
        are_names = all(isinstance(item, str | int | float) for _, x in repeating for item in x)
        if len(repeating) > 0.3 * len(labels) and are_names:
            return f"{where(repeating[0][0])}: {name}={shown(repeating[0][1])} repeats items, unlike a set of labels"
    return None


def names_in(label: Any) -> list[str]:
    """Returns the class names in a label, or [] for spans and floats."""
    items = label if isinstance(label, list) else [label]
    return [str(item) for item in items if isinstance(item, str | int) and not isinstance(item, bool)]


def free_text(evidence: Evidence) -> str | None:
    """Finds labels that are nearly all different."""
    for name, labels in evidence.inferred():
        plain = [item for _, label in labels for item in names_in(label)]
        if len(plain) < max(FEW, 0.5 * len(labels)) or name in {*evidence.regression, *tagged(evidence)}:
            continue
        if (distinct := evidence.distinct(name)) > MOST:
            row, label = labels[0]
            numeric = share([is_number(item) for item in plain]) > MANY
            advice = f"; if they are numbers, add --label_type {name}=regression" if numeric else ""
            problem = f"the labels {name}={shown(label)}, … are nearly all different ({distinct:.0%})"
            return f"{where(row)}: {problem}{advice}"
    return None


# ---- tags of all rows ----------------------------------------------------------------------------------------------


def only_outside(evidence: Evidence) -> str | None:
    for name, files in evidence.tags.items():
        tags = {tag.strip() for facts in files.values() for tag in facts.tags}
        if tags and (len(tags) == 1 or not any(map(str.isalnum, "".join(tags)))):
            named = ", ".join(sorted(map(shown, tags))[:4])
            return f"{next(iter(files))}: the tags of {name!r} are only {named}; there is nothing to learn"
    return None


def as_read(tags: Collection[str]) -> set[str] | None:
    """Returns the tags converted to B-X and O, or None if their notation is inconsistent."""
    written = read_tags(tags)
    return written and {*(written[0].values() or tags)}


def mixed_tags(evidence: Evidence) -> str | None:
    for name, files in evidence.tags.items() if evidence.form.tag_scheme != "keep" else ():
        all_tags: set[str] = set()
        for file, facts in files.items():
            if (converted := as_read(facts.tags)) is None:
                return f"{file}: {some_of(name, facts.tags)}"
            all_tags |= converted
        if as_read(all_tags) is None:
            first, *others = files
            return f"{first} (and {', '.join(Path(file).name for file in others[:2])}): {some_of(name, all_tags)}"
    return None


def some_of(name: str, tags: set[str]) -> str:
    """Formats a message with examples of inconsistent tags."""
    prefixed = [tag for tag in sorted(tags - {"O"}) if is_prefixed(tag)]
    others = sorted(tags - {"O", *prefixed})
    mixed = ", ".join(map(shown, [*prefixed[:2], *others[:2]]))
    return f"only some tags of {name!r} have B- and I-, or the notation is inconsistent: {mixed}"


def double_prefix(evidence: Evidence) -> str | None:
    for name, files in evidence.tags.items():
        for file, facts in files.items():
            tags = {tag: STANDARD.parse(tag) for tag in sorted(as_read(facts.tags) or facts.tags)}
            inner_tags = {tag: inner for tag, outer in tags.items() if outer and (inner := USUAL.parse(outer.kind))}
            inside = {*inner_tags.values()}
            has_pair = len(inside) > len({tag.kind for tag in inside})
            if has_pair or (inside and {tag.letter for tag in inside} <= {"B", "I"}):
                return f"{file}: tags of {name!r} have two prefixes (such as {shown(next(iter(inner_tags)))})"
    return None


def many_tags(evidence: Evidence) -> str | None:
    """Finds tags that are nearly all different, such as lemmas or the head indices of a dependency parse."""
    for name in evidence.tags:
        tags = [tag for _, label in evidence.labels(name) if isinstance(label, list) for tag in label]
        tags = [tag for tag in tags if isinstance(tag, str)]
        if len(tags) >= 100 and len({*tags}) > max(50, 0.3 * len(tags)):  # morphological tag sets have hundreds of tags
            row = evidence.rows[0]
            return f"{where(row)}: the tags of {name!r} (such as {shown(tags[0])}) are nearly all different"
    return None


COLUMN = "specify the columns with --token_column and --tag_column"
TEXT = "specify the columns with --text_column and --label_column"
SEVERAL = "for several labels, add --label_type TASK=multilabel --label_separator '\\n'; or check for an unclosed quote"
GATES = [
    Gate("one_word", one_word, f"{COLUMN}, and the sentences with --sentence_column or blank rows"),
    Gate("one_example", one_example, "end sentences with a blank row, --sentence_end '.' or --sentence_column NAME"),
    Gate("counted_tokens", counted, COLUMN),
    Gate("id_text", numbers_as_texts, "specify the text column with --text_column"),
    Gate("glued", glued, f"remove the number, or {COLUMN}"),
    Gate("csv_quotes", csv_quotes, "add --format csv --delimiter '\\t' to read quotes, including around line breaks"),
    Gate("encoding", wrong_encoding, "specify the encoding with --encoding"),
    Gate("multihot", multihot, "list the names in order in --label_names a,b,c or in labels.txt next to the data"),
    Gate("structured", structured, f"{TEXT}; for lists, add --label_type TASK=multilabel or TASK=spans"),
    Gate("offsets", offsets, "write spans as [[start, end, label]]"),
    Gate("whole_texts", whole_texts, "write the label under a separate key"),
    Gate("mentions", mentions, "write the words exactly as in the text, or write their offsets"),
    Gate("broken_labels", broken_labels, SEVERAL),
    Gate(
        "repeated",
        repeated,
        "for tags of words, write the words as a list under `tokens`; lists of 0 and 1 must have the same length",
    ),
    Gate("joined", joined, "or select another column with --label_column"),
    Gate("free_text", free_text, "specify the label column with --label_column, or its type with --label_type"),
    Gate("only_O", only_outside, COLUMN, True),
    Gate(
        "mixed_tags",
        mixed_tags,
        f"{COLUMN}; --comment PREFIX skips rows that start with it; --tag_scheme keep keeps tags",
        True,
    ),
    Gate("double_prefix", double_prefix, f"{COLUMN}, or correct the tags", True),
    Gate("many_tags", many_tags, COLUMN, True),
]
