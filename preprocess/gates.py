"""Gates: refuse data that was parsed without an error but probably misread.

Edit here to add a gate: a function of the Evidence, and a line in GATES. `--accept NAME` turns a gate off.
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
from preprocess.labels.form import Form
from preprocess.labels.kinds import as_list, is_number
from preprocess.labels.literals import literal
from preprocess.labels.positions import marks_width, names_of_positions
from preprocess.labels.schemes import is_prefixed, read_tags
from preprocess.labels.spans import is_spans, read_spans
from preprocess.readers.cells import tags_in
from preprocess.storage.arrow import Store

SAMPLE = 5000  # rows that the gates inspect, spread evenly over the data
FEW = 20  # with fewer rows, a share may be due to chance
# Maximum shares of implausible rows: correct data has few, while nearly all rows of misread data are implausible
MOST, MANY, NEARLY_ALL = 0.8, 0.9, 0.98
LONGEST_WORD = 30  # characters
POS = set("ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X".split())
POS |= set("NN NNS NNP VB VBD VBG VBN VBZ JJ RB IN DT PRP CC CD TO VV NR PU AD".split())
ID = re.compile(
    r"[-+]?\d+([.,:/ -]\d+)*|[0-9a-f]{8}-[0-9a-f-]{15,}|(?=\S*\d)[0-9a-f]{16,}|[a-z]{0,12}[-_#:]\d+"
    r"|\S+\.(jpe?g|png|gif|wav|mp3)",
    re.I,
)
COUNTER = re.compile(r"\S*[\W_](?=\d+$)")  # what precedes the number in s1.2
NUMBERED = regex.compile(rf"{HAN}\d+")  # 科0
CONTAINER = re.compile(
    r"""\s*(?s:\[\s*['"\[{(].*\]|\{\s*['"\[{(].*\}|\(\s*['"\[{(].*\))\s*"""
)  # also if it does not parse
BRACKETED = re.compile(r"\s*[\[{(].*[\])}]\s*")
NUMBERS = re.compile(r"\s*\d+(\s*[;,|]\s*\d+){2,}\s*|\d+\s+\d+\s+[^\W\d]\w*")  # 9;10;11, or 2 7 PER
OFFSETS = re.compile(r"\(?\d+[^\w\s]\s*\d+[^\w\s]\s*[^\W\d]\w*\)?([;|,\s]+\(?\d+[^\w\s]\s*\d+[^\w\s]\s*[^\W\d]\w*\)?)*")


@dataclass
class Evidence:
    """The input of the gates: a sample of the raw rows, and the tags of all rows."""

    form: Form
    rows: list[Example]
    short_files: list[list[Example]]  # the rows of files with up to three rows, if there are few files
    store: Store
    text_column: str  # --text_column
    broken: Mapping[str, str | None]  # {task: a label with a line break or tab}
    regression: set[str]  # tasks whose labels are numbers with decimal points
    tags: Mapping[str, Mapping[str, TagFacts]] = field(default_factory=dict)  # {task: {file: tags}}; unknown at first

    def labels(self, name: str) -> list[tuple[Example, Any]]:
        """(row, label) of the labelled rows in the sample."""
        return [(row, row[name]) for row in self.rows if row.get(name) not in (None, "")]

    def distinct(self, name: str) -> float:
        """The share of distinct labels; rereads all rows if that of the sample exceeds the limit."""
        labels = [item for _, label in self.labels(name) for item in names_in(label)]
        if len(self.rows) < len(self.store) and len({*labels}) > MOST * len(labels):
            hashes = [hash(item) for row in self.store for item in names_in(row.get(name))]
            return len({*hashes}) / max(1, len(hashes))
        return len({*labels}) / max(1, len(labels))

    def free(self) -> Iterator[tuple[str, list[tuple[Example, Any]]]]:
        """(task, its labels) of the tasks without --label_type."""
        for name in self.form.names:
            if name not in self.form.chosen and (labels := self.labels(name)):
                yield name, labels


class Gate(NamedTuple):
    name: str  # for --accept
    look: Callable[[Evidence], str | None]  # a description of the implausible data with its row, or None
    advice: str  # the options that solve it
    after_labels: bool = False  # whether it needs the tags of all rows


def short_files(store: Store, most: int = 3) -> list[list[Example]]:
    """The examples of each file with at most three; empty if there are many files."""
    files = store.rows_of_files()
    return [store.pick(rows) for rows in files.values() if len(rows) <= most] if len(files) <= 9 else []


def gather(store: Store, form: Form, values: Mapping[str, Any], text_column: str) -> Evidence:
    """The Evidence of a filled store. values: {task: Values}"""
    numbers = np.unique(np.linspace(0, len(store) - 1, min(len(store), SAMPLE)).astype(np.int64))
    return Evidence(
        form=form,
        rows=store.pick(numbers),
        store=store,
        short_files=short_files(store),
        text_column=text_column,
        broken={name: of_task.broken for name, of_task in values.items()},
        regression={name for name, of_task in values.items() if of_task.kind == "regression"},
    )


def name_positions(evidence: Evidence, config: Any) -> None:
    """Converts lists of 0 and 1 to sets of labels, if the names of their positions are known."""
    for name in evidence.form.names:
        width = width_of_marks(evidence, name)
        if width and (names := names_of_positions(config.label_names, Path(config.input), width, name)):
            evidence.form.positions[name] = names
            evidence.form.chosen[name] = "multilabel"


def refuse(evidence: Evidence, accepted: Sequence[str], after_labels: bool) -> None:
    """Raises UserError for the first gate that the data fails. accepted: the gates in --accept"""
    for gate in GATES:
        if gate.name not in accepted and gate.after_labels == after_labels and (found := gate.look(evidence)):
            raise UserError(f"{found}; {gate.advice}; if the data is correct: --accept {gate.name}")


def check_accepted(option: str) -> list[str]:
    """The gates in --accept. Raises UserError for an unknown one."""
    names = [name.strip() for name in option.split(",") if name.strip()]
    if unknown := sorted({*names} - {gate.name for gate in GATES}):
        raise UserError(f"--accept {unknown[0]}: no such gate; they are {', '.join(gate.name for gate in GATES)}")
    return names


def where(row: Example) -> str:
    return str(row["_where"])


def share(flags: Sequence[object]) -> float:
    return sum(map(bool, flags)) / max(1, len(flags))


# ---- tokens and texts ----------------------------------------------------------------------------------------------


def tagged(evidence: Evidence) -> list[str]:
    """The tasks whose labels are lists of strings next to tokens."""
    with_tokens = evidence.rows and "tokens" in evidence.rows[0]
    return [name for name in evidence.form.names if with_tokens and any(map(is_per_token, evidence.labels(name)))]


def is_per_token(row_and_label: tuple[Example, Any]) -> bool:
    row, label = row_and_label
    return isinstance(label, list) and len(label) == len(row["tokens"])


def one_word(evidence: Evidence) -> str | None:
    """Whether each row is a single word instead of a sentence."""
    rows = evidence.rows
    if len(rows) < 5 or "text_pair" in rows[0]:
        return None
    with_tokens = "tokens" in rows[0]
    words = [row["tokens"][0] if with_tokens else row["text"].strip() for row in rows]
    alone = [len(row["tokens"]) == 1 if with_tokens else is_word(word) for row, word in zip(rows, words)]
    if share(alone) < NEARLY_ALL:
        return None
    if with_tokens:
        is_odd = bool(tagged(evidence))
    else:
        signs = share([not any(map(str.isalnum, word)) for word in words])
        as_in_sentences = len(rows) >= FEW and signs > 1 - NEARLY_ALL and len({*words}) < NEARLY_ALL * len(words)
        is_odd = as_in_sentences or any(are_tags([str(x) for _, x in labels]) for _, labels in evidence.free())
    return f"{where(rows[0])}: every row is one word, such as {shown(words[0])}, not a sentence" if is_odd else None


def is_word(text: str) -> bool:
    return len(text) <= LONGEST_WORD and text.split() == [text]


def are_tags(labels: Sequence[str]) -> bool:
    """Whether these are tags of words rather than text classes."""
    names = {label.strip() for label in labels}
    if "O" in names or len(names) < 2:
        return "O" in names
    letters = {*"Bb"} & names and {*"IMEime"} & names and all(len(name) == 1 for name in names)
    found = [parse_tag(name) for name in names]
    prefixed = share([tag is not None and (tag.letter.isupper() or tag.letter in "bi") for tag in found]) > 0.5
    return bool(letters) or prefixed or (len(names & POS) >= 3 and share([x.strip() in POS for x in labels]) >= MOST)


def one_example(evidence: Evidence) -> str | None:
    """Whether a file was read as a few very long examples because it has no known delimiter."""
    for rows in evidence.short_files:
        if where(rows[0])[-1:].isdecimal() and is_whole_file(rows):  # otherwise the folder has one text per file
            unit = "tokens" if "tokens" in rows[0] else "characters"
            what = "one example" if len(rows) == 1 else f"only {len(rows)} examples"
            return f"{where(rows[0])}: the whole file is {what}, of {max(map(length_of, rows)):,} {unit}"
    return None


def counted(evidence: Evidence) -> str | None:
    """Whether the tokens are the row numbers 1, 2, 3, …"""
    rows = [row for row in evidence.rows if len(row.get("tokens", ())) > 1]
    if len(rows) >= 3 and share([counts_up([COUNTER.sub("", x) for x in row["tokens"]]) for row in rows]) > MANY:
        return f"{where(rows[0])}: the tokens count {shown(' '.join(rows[0]['tokens'][:4]))[1:-1]} …"
    return None


def numbers_as_texts(evidence: Evidence) -> str | None:
    """Whether the texts are ids, numbers, times or file names."""
    texts = [row["text"].strip() for row in evidence.rows if "text" in row]
    if evidence.text_column or len(texts) < 10 or share([ID.fullmatch(text) for text in texts]) < MANY:
        return None
    return f"{where(evidence.rows[0])}: the texts are ids or numbers, such as {shown(texts[0])}"


def glued(evidence: Evidence) -> str | None:
    """Whether tokens are characters with a number appended."""
    tokens = [(row, token) for row in evidence.rows[:1000] for token in row.get("tokens", ())]
    found = [(row, token) for row, token in tokens if NUMBERED.fullmatch(token)]
    if len(tokens) > 10 and len(found) > 0.5 * len(tokens):
        row, token = found[0]
        return f"{where(row)}: tokens are characters with a number appended, such as {shown(token)}"
    return None


def csv_quotes(evidence: Evidence) -> str | None:
    quoted = [row for row in evidence.rows if is_quoted(row)]
    if len(quoted) < 3 or len(quoted) < 0.01 * len(evidence.rows):  # a few texts may be quotations
        return None
    return f"{where(quoted[0])}: {len(quoted)} texts are in CSV quotes, such as {shown(text_of(quoted[0]))}"


def wrong_encoding(evidence: Evidence) -> str | None:
    texts = [(row, text_of(row)) for row in evidence.rows]
    odd = [(row, text) for row, text in texts if not text.isascii() and (undecodable(text) or garbled(text))]
    if len(odd) < 5 or len(odd) < 0.3 * len(texts):  # the data checks report individual texts
        return None
    return f"{where(odd[0][0])}: texts look decoded with the wrong encoding, such as {shown(odd[0][1])}"


# ---- raw labels ----------------------------------------------------------------------------------------------------


def multihot(evidence: Evidence) -> str | None:
    for name in evidence.form.names:
        if width := width_of_marks(evidence, name):
            row, label = evidence.labels(name)[0]
            what = f"multi-hot lists of length {width} without label names"
            return f"{where(row)}: {name}={shown(label)}: {what}"
    return None


def width_of_marks(evidence: Evidence, name: str) -> int:
    """The number of positions if the labels of a task are lists of 0 and 1 (multi-hot), otherwise 0."""
    labels = evidence.labels(name)
    if evidence.form.chosen.get(name, "multilabel") != "multilabel" or name in evidence.form.positions or not labels:
        return 0
    if "tokens" in labels[0][0] and all(map(is_per_token, labels)):
        return 0
    return marks_width([label for _, label in labels])


def structured(evidence: Evidence) -> str | None:
    """Whether labels are written as JSON or Python lists or dicts, or are offsets."""
    for name in evidence.form.names:
        chosen, labels = evidence.form.chosen.get(name), evidence.labels(name)
        items = [(row, item) for row, x in labels for item in (x if isinstance(x, list) and "text" in row else [x])]
        odd = [(row, item) for row, item in items if isinstance(item, str) and is_structured(item, chosen)]
        bracketed = [(row, x) for row, x in labels if isinstance(x, str) and BRACKETED.fullmatch(x)]
        several = any(sign in x for _, x in bracketed for sign in ",;|")
        odd = bracketed if several and not chosen and len(bracketed) > MANY * len(labels) else odd
        if chosen in (None, "multilabel") and len(odd) > 0.3 * len(items):  # the name of a class may have brackets
            row, label = odd[0]
            return f"{where(row)}: {name}={shown(label)} is a list, dict or offsets, not a label"
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
    """Whether labels are lists of character positions."""
    for name, labels in evidence.free() if "text" in evidence.rows[0] else ():
        lists = [(row, x) for row, x in labels if isinstance(x, list) and len(x) > 2 and {*map(type, x)} == {int}]
        runs = share([sum(b == a + 1 for a, b in pairwise(x)) > 0.6 * (len(x) - 1) for _, x in lists])
        inside = all(max(x) < len(text_of(row)) for row, x in lists)
        if (
            len(lists) > 4 and runs > MOST and inside and len(lists) > 0.2 * len(labels)
        ):  # many texts may have an empty list
            row, label = lists[0]
            return f"{where(row)}: {name}={shown(label)} lists positions of characters, not labels"
    return None


def whole_texts(evidence: Evidence) -> str | None:
    """Wit stores intents as spans called `intent` over the whole text, which are labels of the text."""
    for name, labels in evidence.free() if "tokens" not in evidence.rows[0] else ():
        spans = [(e, span) for e, x in labels if is_spans(x) for span in read_spans(x, text_of(e), where(e))]
        spans = [(e, span) for e, span in spans if span[2].lower() in ("intent", "class", "category", "sentiment")]
        if spans and all(span[:2] == (0, len(text_of(e))) for e, span in spans):
            row, (_, _, label) = spans[0]
            return f"{where(row)}: {label!r} in {name!r} is the whole text: a label of the text, not a span"
    return None


def broken_labels(evidence: Evidence) -> str | None:
    for name, label in evidence.broken.items():
        kind, form = evidence.form.chosen.get(name), evidence.form
        parts = as_list(label, form.separator) if label and kind == "multilabel" else [label or ""]
        if any(re.search(r"[\t\n\r]", str(part).strip()) for part in parts):
            row = next((row for row, x in evidence.labels(name) if x == label), None)
            at = f"{where(row)}: " if row else ""
            return f"{at}the label {shown(label)} of {name!r} contains a line break or tab"
    return None


def joined(evidence: Evidence) -> str | None:
    """Whether labels such as `red|blue` are several, which also occur alone."""
    for name, labels in evidence.free():
        plain = [(row, label) for row, label in labels if isinstance(label, str)]
        alone = {label.strip() for _, label in plain}
        for sign in "|;,/#+&":
            several = [(row, x) for row, x in plain if sign in x and {part.strip() for part in x.split(sign)} <= alone]
            if len(several) > 0.1 * len(plain):
                row, label = several[0]
                advice = f"--label_type {name}=multilabel --label_separator '{sign}' reads them"
                return (
                    f"{where(row)}: {name}={shown(label)} looks like several labels, which also occur alone; {advice}"
                )
    return None


def repeated(evidence: Evidence) -> str | None:
    """Whether the labels of texts are lists that repeat items, as tags of words and marks do, but sets do not."""
    for name, labels in evidence.free() if "tokens" not in evidence.rows[0] else ():
        lists = [(row, x if isinstance(x, list) else tags_in(str(x)) or []) for row, x in labels]
        odd = [(row, x) for row, x in lists if len({*map(str, x)}) < len(x)]
        if width_of_marks(evidence, name):  # the gate before this one
            continue
        if len(odd) > 0.3 * len(labels) and all(isinstance(item, str | int | float) for _, x in odd for item in x):
            return f"{where(odd[0][0])}: {name}={shown(odd[0][1])} repeats items, which a set of labels does not"
    return None


def names_in(label: Any) -> list[str]:
    """The class names in a label; empty for spans and numbers with a decimal point."""
    items = label if isinstance(label, list) else [label]
    return [str(item) for item in items if isinstance(item, str | int) and not isinstance(item, bool)]


def free_text(evidence: Evidence) -> str | None:
    """Whether nearly all labels are different."""
    for name, labels in evidence.free():
        plain = [item for _, label in labels for item in names_in(label)]
        if len(plain) < max(FEW, 0.5 * len(labels)) or name in {*evidence.regression, *tagged(evidence)}:
            continue
        if (different := evidence.distinct(name)) > MOST:
            row, label = labels[0]
            numeric = share([is_number(item) for item in plain]) > MANY
            advice = f"; if they are numbers: --label_type {name}=regression" if numeric else ""
            what = f"the labels {name}={shown(label)}, … are nearly all different ({different:.0%})"
            return f"{where(row)}: {what}{advice}"
    return None


# ---- tags of all rows ----------------------------------------------------------------------------------------------


def only_outside(evidence: Evidence) -> str | None:
    for name, files in evidence.tags.items():
        tags = {tag.strip() for facts in files.values() for tag in facts.tags}
        if tags and (len(tags) == 1 or not any(map(str.isalnum, "".join(tags)))):
            named = ", ".join(sorted(map(shown, tags))[:4])
            return f"{next(iter(files))}: the tags of {name!r} are only {named}: there is nothing to learn"
    return None


def as_read(tags: Collection[str]) -> set[str] | None:
    """Tags converted to B-X and O; None if their notation is inconsistent."""
    written = read_tags(tags)
    return written and {*(written[0].values() or tags)}


def mixed_tags(evidence: Evidence) -> str | None:
    for name, files in evidence.tags.items() if evidence.form.tag_scheme != "keep" else ():
        together: set[str] = set()
        for file, facts in files.items():
            if (read := as_read(facts.tags)) is None:
                return f"{file}: {some_of(name, facts.tags)}"
            together |= read
        if as_read(together) is None:
            first, *others = files
            return f"{first} (and {', '.join(Path(file).name for file in others[:2])}): {some_of(name, together)}"
    return None


def some_of(name: str, tags: set[str]) -> str:
    """Formats a message with examples of inconsistent tags."""
    prefixed = [tag for tag in sorted(tags - {"O"}) if is_prefixed(tag)]
    others = sorted(tags - {"O", *prefixed})
    mixed = ", ".join(map(shown, [*prefixed[:2], *others[:2]]))
    return f"only some tags of {name!r} have B- and I-, or their notation is inconsistent: {mixed}"


def double_prefix(evidence: Evidence) -> str | None:
    for name, files in evidence.tags.items():
        for file, facts in files.items():
            tags = {tag: STANDARD.parse(tag) for tag in sorted(as_read(facts.tags) or facts.tags)}
            found = {tag: inner for tag, outer in tags.items() if outer and (inner := USUAL.parse(outer.kind))}
            inside = {*found.values()}
            several = len(inside) > len({tag.kind for tag in inside})
            if several or (inside and {tag.letter for tag in inside} <= {"B", "I"}):
                return f"{file}: tags of {name!r} have two prefixes, such as {shown(next(iter(found)))}"
    return None


def many_tags(evidence: Evidence) -> str | None:
    """Whether nearly all tags are different, like lemmas and head numbers of a dependency parse."""
    for name in evidence.tags:
        tags = [tag for _, label in evidence.labels(name) if isinstance(label, list) for tag in label]
        tags = [tag for tag in tags if isinstance(tag, str)]
        if len(tags) >= 100 and len({*tags}) > max(50, 0.3 * len(tags)):  # tag sets of morphology have hundreds of tags
            row = evidence.rows[0]
            return f"{where(row)}: the tags of {name!r}, such as {shown(tags[0])}, are nearly all different"
    return None


COLUMN = "name the columns with --token_column and --tag_column"
TEXT = "name the columns with --text_column and --label_column"
SEVERAL = "several labels: --label_type TASK=multilabel --label_separator '\\n'; otherwise check for an open quote"
GATES = [
    Gate("one_word", one_word, f"{COLUMN}, and the sentences with --sentence_column or blank rows"),
    Gate("one_example", one_example, "a blank row, --sentence_end '.' or --sentence_column NAME ends a sentence"),
    Gate("counted_tokens", counted, COLUMN),
    Gate("id_text", numbers_as_texts, "name the text column with --text_column"),
    Gate("glued", glued, f"remove the number, or {COLUMN}"),
    Gate("csv_quotes", csv_quotes, "--format csv --delimiter '\\t' reads quotes, also around line breaks"),
    Gate("encoding", wrong_encoding, "name the encoding with --encoding"),
    Gate("multihot", multihot, "name them, in order, with --label_names a,b,c or in labels.txt next to the data"),
    Gate("structured", structured, f"{TEXT}; --label_type TASK=multilabel reads lists of labels, =spans spans"),
    Gate("offsets", offsets, "write spans as [[start, end, label]]"),
    Gate("whole_texts", whole_texts, "write it under a separate key"),
    Gate("broken_labels", broken_labels, SEVERAL),
    Gate(
        "repeated",
        repeated,
        "for tags of words, write the words as a list under `tokens`; lists of 0 and 1 need one length",
    ),
    Gate("joined", joined, "or name another column with --label_column"),
    Gate("free_text", free_text, "name the label column with --label_column, or its type with --label_type"),
    Gate("only_O", only_outside, COLUMN, True),
    Gate(
        "mixed_tags", mixed_tags, f"{COLUMN}; --comment PREFIX skips rows with it; --tag_scheme keep keeps tags", True
    ),
    Gate("double_prefix", double_prefix, f"{COLUMN}, or correct the tags", True),
    Gate("many_tags", many_tags, COLUMN, True),
]
