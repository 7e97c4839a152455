"""Refuses data that was read, but implausibly: what was read is probably not what the file says.

Edit here to add a gate: a function of the Evidence, and a line in GATES. `--accept NAME` lets data through one of them.
"""

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import regex

from engine.errors import UserError
from engine.task.tags import TagFacts
from engine.task.text import HAN, text_of
from preprocess.checks.texts import garbled, is_quoted, undecodable
from preprocess.example import Example, shown
from preprocess.labels.form import Form
from preprocess.labels.kinds import as_list, is_number
from preprocess.labels.positions import marks_width, names_of_positions
from preprocess.labels.schemes import read_tags
from preprocess.labels.spans import is_spans, read_spans
from preprocess.storage.arrow import Store

SAMPLE = 5000  # rows at which the gates look, spread evenly over all
FEW = 20  # rows below which shares say nothing
SENTENCE_END = frozenset(".!?。！？")
POS = set("ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X".split())
POS |= set("NN NNS NNP VB VBD VBG VBN VBZ JJ RB IN DT PRP CC CD TO VV NR PU AD".split())
ID = re.compile(
    r"[-+]?\d+([.,:/ -]\d+)*|[0-9a-f]{8}-[0-9a-f-]{15,}|(?=\S*\d)[0-9a-f]{16,}|[a-z]{0,12}[-_#:]\d+"
    r"|\S+\.(jpe?g|png|gif|wav|mp3)",
    re.I,
)
CONTAINER = re.compile(r"\s*(\[.*\]|\{.*\}|\(.*\))\s*", re.S)
OFFSETS = re.compile(r"\(?\d+[^\w\s]\s*\d+[^\w\s]\s*[^\W\d]\w*\)?([;|,\s]+\(?\d+[^\w\s]\s*\d+[^\w\s]\s*[^\W\d]\w*\)?)*")


@dataclass
class Evidence:
    """What the gates look at: a sample of the rows as they were read, and the tags of all rows."""

    form: Form
    rows: list[Example]
    short_files: list[list[Example]]  # the rows of files with up to three
    store: Store
    text_column: str  # --text_column
    broken: Mapping[str, str | None]  # {task: a label with a line break or tab}
    regression: set[str]  # tasks whose labels are numbers with decimal points
    tags: Mapping[str, Mapping[str, TagFacts]] = field(default_factory=dict)  # {task: {file: tags}}; not known at first

    def labels(self, name: str) -> list[tuple[Example, Any]]:
        """(row, label) of the rows of the sample with a label."""
        return [(row, row[name]) for row in self.rows if row.get(name) not in (None, "")]

    def distinct(self, name: str) -> float:
        """The share of different labels among all rows, which are read again if the sample does not decide."""
        labels = [item for _, label in self.labels(name) for item in names_in(label)]
        if len(self.rows) < len(self.store) and len({*labels}) > 0.8 * len(labels):
            hashes = [hash(item) for row in self.store for item in names_in(row.get(name))]
            return len({*hashes}) / max(1, len(hashes))
        return len({*labels}) / max(1, len(labels))

    def free(self) -> Iterator[tuple[str, list[tuple[Example, Any]]]]:
        """(task, its labels) of the tasks whose type was not chosen."""
        for name in self.form.names:
            if name not in self.form.chosen and (labels := self.labels(name)):
                yield name, labels


class Gate(NamedTuple):
    name: str  # for --accept
    look: Callable[[Evidence], str | None]  # what is implausible, with its row; None if nothing
    advice: str  # the options that decide
    after_labels: bool = False  # whether it needs the tags of all rows


def short_files(store: Store, most: int = 3) -> list[list[Example]]:
    """The examples of each file with up to three, if the files are few."""
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
    """Makes label sets of lists of 0 and 1, if the names of their positions are known."""
    for name in evidence.form.names:
        width = width_of_marks(evidence, name)
        if width and (names := names_of_positions(config.label_names, Path(config.input), width, name)):
            evidence.form.positions[name] = names
            evidence.form.chosen[name] = "multilabel"


def refuse(evidence: Evidence, accepted: Sequence[str], after_labels: bool) -> None:
    """Raises UserError for the first gate that the data does not pass. accepted: names in --accept"""
    for gate in GATES:
        if gate.name not in accepted and gate.after_labels == after_labels and (found := gate.look(evidence)):
            raise UserError(f"{found}; {gate.advice}; if it is right as it is: --accept {gate.name}")


def check_accepted(option: str) -> list[str]:
    """The names in --accept. Raises UserError for one that is no gate."""
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
    return [
        name
        for name in evidence.form.names
        if with_tokens and any(isinstance(x, list) and len(x) == len(e["tokens"]) for e, x in evidence.labels(name))
    ]


def one_word(evidence: Evidence) -> str | None:
    """Each row is a single word of a sentence, not a sentence."""
    rows = evidence.rows
    if len(rows) < 5 or "text_pair" in rows[0]:
        return None
    words = [row["tokens"][0] if "tokens" in row else row["text"].strip() for row in rows]
    if "tokens" in rows[0]:
        is_odd = share([len(row["tokens"]) == 1 for row in rows]) >= 0.98 and bool(tagged(evidence))
    elif share([len(word) <= 30 and word.split() == [word] for word in words]) < 0.98:
        return None
    else:
        marks = [word for word in words if not any(map(str.isalnum, word))]
        is_odd = any(are_tags([str(x) for _, x in labels]) for _, labels in evidence.free())
        is_odd = is_odd or (len(rows) >= FEW and len(marks) > 0.02 * len(rows) and len({*words}) < 0.98 * len(rows))
    return f"{where(rows[0])}: every row is one word, such as {shown(words[0])}, not a sentence" if is_odd else None


def are_tags(labels: Sequence[str]) -> bool:
    """Whether these are tags of words rather than classes of texts."""
    names = {label.strip() for label in labels}
    if len(names) < 2 and "O" not in names:
        return False
    letters = {*"Bb"} & names and {*"IMEime"} & names and all(len(name) == 1 for name in names)
    prefixed = share([re.fullmatch(r"[BIESMLUbi][-_].+|.+[-_][BIES]", name) for name in names - {"O"}])
    pos = len(names & POS) >= 3 and share([label.strip() in POS for label in labels]) >= 0.8
    return "O" in names or bool(letters) or prefixed > 0.5 or pos


def one_example(evidence: Evidence) -> str | None:
    """A file is one long example, or two or three, because nothing separates them."""
    for rows in evidence.short_files:
        lengths = [len(row.get("tokens") or row["text"]) for row in rows]
        tokens = max(rows, key=lambda row: len(row.get("tokens") or row["text"])).get("tokens")
        ends = sum(token in SENTENCE_END for token in tokens or ())
        limit = (50 if len(rows) == 1 else 200) if tokens else 2000
        if max(lengths) >= limit and (len(rows) == 1 or ends >= 10) and where(rows[0])[-1:].isdecimal():
            unit = "tokens" if tokens else "characters"
            what = "one example" if len(rows) == 1 else f"only {len(rows)} examples"
            return f"{where(rows[0])}: the whole file is {what}, of {max(lengths):,} {unit}"
    return None


def counted(evidence: Evidence) -> str | None:
    """The tokens count 1, 2, 3, …: they are the numbers of rows."""
    rows = [row for row in evidence.rows if len(row.get("tokens", ())) > 1]
    counting = [is_count(row["tokens"]) for row in rows]
    if len(rows) >= 3 and share(counting) > 0.9:
        return f"{where(rows[0])}: the tokens count {shown(' '.join(rows[0]['tokens'][:4]))[1:-1]} …"
    return None


def is_count(tokens: Sequence[str]) -> bool:
    first = tokens[0]
    return len(first) < 10 and first.isdecimal() and [*tokens] == [str(int(first) + n) for n in range(len(tokens))]


def numbers_as_texts(evidence: Evidence) -> str | None:
    """The texts are ids, numbers, times or names of files."""
    texts = [row["text"].strip() for row in evidence.rows if "text" in row]
    if evidence.text_column or len(texts) < 10 or share([ID.fullmatch(text) for text in texts]) < 0.95:
        return None
    return f"{where(evidence.rows[0])}: the texts are ids or numbers, such as {shown(texts[0])}"


def glued(evidence: Evidence) -> str | None:
    """Tokens are characters with a number appended."""
    tokens = [(row, token) for row in evidence.rows[:1000] for token in row.get("tokens", ())]
    if len(tokens) > 10 and share([regex.fullmatch(rf"{HAN}\d+", token) for _, token in tokens]) > 0.5:
        row, token = next(pair for pair in tokens if regex.fullmatch(rf"{HAN}\d+", pair[1]))
        return f"{where(row)}: tokens are characters with a number appended, such as {shown(token)}"
    return None


def csv_quotes(evidence: Evidence) -> str | None:
    quoted = [row for row in evidence.rows if is_quoted(row)]
    if len(quoted) < 3 or len(quoted) < 0.01 * len(evidence.rows):
        return None
    return f"{where(quoted[0])}: {len(quoted)} texts are in CSV quotes, such as {shown(text_of(quoted[0]))}"


def wrong_encoding(evidence: Evidence) -> str | None:
    odd = [row for row in evidence.rows if (text := text_of(row)) and not text.isascii() and is_garbled(text)]
    if len(odd) < 5 or len(odd) < 0.3 * len(evidence.rows):
        return None
    return f"{where(odd[0])}: texts look decoded with the wrong encoding, such as {shown(text_of(odd[0]))}"


def is_garbled(text: str) -> bool:
    return bool(undecodable(text) or garbled(text))


# ---- labels as they were read --------------------------------------------------------------------------------------


def multihot(evidence: Evidence) -> str | None:
    for name in evidence.form.names:
        if width := width_of_marks(evidence, name):
            row, label = evidence.labels(name)[0]
            what = f"lists of {width} times 0 or 1 are positions of labels, whose names are not known"
            return f"{where(row)}: {name}={shown(label)}: {what}"
    return None


def width_of_marks(evidence: Evidence, name: str) -> int:
    """The number of positions if the labels of a task are lists of 0 and 1 (multi-hot), otherwise 0."""
    labels = evidence.labels(name)
    if evidence.form.chosen.get(name, "multilabel") != "multilabel" or name in evidence.form.positions or not labels:
        return 0
    if "tokens" in labels[0][0] and all(isinstance(x, list) and len(x) == len(e["tokens"]) for e, x in labels):
        return 0
    return marks_width([label for _, label in labels])


def structured(evidence: Evidence) -> str | None:
    """Labels are written as JSON or Python lists or dicts, or are offsets."""
    for name in evidence.form.names:
        chosen, labels = evidence.form.chosen.get(name), evidence.labels(name)
        cells = [(row, label) for row, label in labels if isinstance(label, str)]
        odd = [(row, label) for row, label in cells if is_structured(label, chosen)]
        if chosen in (None, "multilabel") and odd and len(odd) > 0.3 * len(labels):
            row, label = odd[0]
            return f"{where(row)}: {name}={shown(label)} is no label, but a list, dict or offsets"
    return None


def is_structured(cell: str, chosen: str | None) -> bool:
    if not CONTAINER.fullmatch(cell):
        return chosen is None and bool(OFFSETS.fullmatch(cell.strip()))
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(cell.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        is_set = isinstance(value, list | tuple) and not any(isinstance(item, list | dict | tuple) for item in value)
        return isinstance(value, list | tuple | dict) and not (chosen == "multilabel" and is_set)
    return bool(re.match(r"""\s*[\[({]\s*['"\[{(]""", cell))


def offsets(evidence: Evidence) -> str | None:
    """A label is the list of the positions of its characters."""
    for name, labels in evidence.free() if "text" in evidence.rows[0] else ():
        lists = [(e, x) for e, x in labels if isinstance(x, list) and len(x) > 2 and {*map(type, x)} == {int}]
        runs = [sum(b == a + 1 for a, b in pairwise(x)) > 0.6 * (len(x) - 1) for _, x in lists]
        inside = [max(x) < len(text_of(e)) for e, x in lists]
        if len(lists) > 4 and share(runs) > 0.8 and all(inside) and len(lists) > 0.2 * len(labels):
            row, label = lists[0]
            return f"{where(row)}: {name}={shown(label)} lists positions of characters, not labels"
    return None


def whole_texts(evidence: Evidence) -> str | None:
    """A span called `intent` that is always the whole text, as Wit stores intents, is a label of the text."""
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


def names_in(label: Any) -> list[str]:
    """The names of classes in a label: none in spans and in numbers with a decimal point."""
    items = label if isinstance(label, list) else [label]
    return [str(item) for item in items if isinstance(item, str | int) and not isinstance(item, bool)]


def free_text(evidence: Evidence) -> str | None:
    """Nearly all labels are different."""
    for name, labels in evidence.free():
        plain = [item for _, label in labels for item in names_in(label)]
        if len(plain) < max(FEW, 0.5 * len(labels)) or name in {*evidence.regression, *tagged(evidence)}:
            continue
        if (different := evidence.distinct(name)) > 0.8:
            row, label = labels[0]
            numeric = share([is_number(item) for item in plain]) > 0.9
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


def mixed_tags(evidence: Evidence) -> str | None:
    for name, files in evidence.tags.items() if evidence.form.tag_scheme != "keep" else ():
        as_read: set[str] = set()
        for file, facts in files.items():
            if (written := read_tags(facts.tags)) is None:
                return f"{file}: {some_of(name, facts.tags)}"
            as_read |= {*(written[0].values() or facts.tags)}
        if read_tags(as_read) is None:
            first, *others = files
            return f"{first} (and {', '.join(Path(file).name for file in others[:2])}): {some_of(name, as_read)}"
    return None


def some_of(name: str, tags: set[str]) -> str:
    """Tags that are written in different ways, as shown."""
    prefixed: list[str] = []
    others: list[str] = []
    for tag in sorted(tags - {"O"}):
        (prefixed if re.match(r"[BIbi][-_]", tag) else others).append(tag)
    mixed = ", ".join(map(shown, [*prefixed[:2], *others[:2]]))
    return f"some tags of {name!r} have B- and I-, and others not, or they are written in several ways: {mixed}"


def double_prefix(evidence: Evidence) -> str | None:
    for name, files in evidence.tags.items():
        for file, facts in files.items():
            written = read_tags(facts.tags)
            read = written[0].values() if written and written[0] else facts.tags
            found = [re.fullmatch(r"[BIESMLU]-([BIESMLU])[-_](.+)", tag) for tag in read]
            parts = {match.groups() for match in found if match}
            several = len(parts) > len({kind for _, kind in parts})
            if several or (parts and {letter for letter, _ in parts} <= {"B", "I"}):
                tag = next(match[0] for match in found if match)
                return f"{file}: tags of {name!r} have two prefixes, such as {shown(tag)}"
    return None


def many_tags(evidence: Evidence) -> str | None:
    """The tags are nearly all different: lemmas, numbers of heads."""
    for name in evidence.tags:
        tags = [tag for _, label in evidence.labels(name) if isinstance(label, list) for tag in label]
        tags = [tag for tag in tags if isinstance(tag, str)]
        if len(tags) >= 100 and len({*tags}) > max(50, 0.3 * len(tags)):
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
    Gate("whole_texts", whole_texts, "write it under a key of its own"),
    Gate("broken_labels", broken_labels, SEVERAL),
    Gate("free_text", free_text, "name the label column with --label_column, or its type with --label_type"),
    Gate("only_O", only_outside, COLUMN, True),
    Gate("mixed_tags", mixed_tags, f"{COLUMN}; --comment '#' skips comments; --tag_scheme keep keeps tags", True),
    Gate("double_prefix", double_prefix, f"{COLUMN}, or correct the tags", True),
    Gate("many_tags", many_tags, COLUMN, True),
]
