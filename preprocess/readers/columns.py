"""Finds the columns of a table, or keys of JSON objects, for the text, the labels and other inputs.

Edit here, or engine/task/signs.py, to recognise your own column names without a flag.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import UserError
from engine.task.signs import LABEL_NAMES, PAIR_NAMES, PAIRS, TEXT_NAMES, alike, by_usual, inline_syntax
from engine.task.words import text_or_tokens
from preprocess.example import PART_NAMES, RESERVED, Example, abbreviate
from preprocess.readers.archives import note
from preprocess.readers.inline import without_marks
from preprocess.readers.options import ReadOptions, split_names

NUMBER_NAMES = "score rating stars similarity".split()  # labels if none of LABEL_NAMES is present
# Used if none of these is present either; the first match counts
OTHER_LABEL_NAMES = "sentiment emotion topic polarity 情感 情感标签 情感倾向 情感极性 情绪 分类 类型 意图 实体".split()
OTHER_LABEL_NAMES += "评分 星级 得分 打分 分数 相似度 gold_label is_duplicate".split()
PART_COLUMNS = (
    "split partition set subset dataset part data_split 划分 数据集".split()
)  # only if their values are names of parts
# Unsupported tasks, and sets of keys that identify their data
OTHER_TASKS: dict[str, list[set[str]]] = {
    "questions with answers in a text (as in SQuAD)": [{"paragraphs"}, {"qas"}, {"question", "context", "answers"}],
    "relations between two entities": [
        {"head", "tail", "relation"},
        {"h", "t", "relation"},
        {"subj", "obj", "relation"},
        {"subj_start", "obj_start", "relation"},
        {"relationMentions"},
        {"sentText", "relationMentions"},
        {"vertexSet"},
    ],
    "events with triggers and arguments": [
        {"event_list"},
        {"events"},
        {"event_mentions"},
        {"golden-event-mentions"},
        {"event_type", "trigger"},
    ],
    "triples of subject, predicate and object": [{"spo_list"}, {"triples"}, {"triple_list"}],
    "texts and their summaries or translations": [
        {"article", "highlights"},
        {"document", "summary"},
        {"text", "summary"},
        {"translation"},
    ],
}
# Ways to use data of an unsupported task, apart from a column with one label per text
HELP = {
    "events with triggers and arguments": "triggers can be read as spans: "
    'convert each to {"start": …, "end": …, "label": its type} in a list under `entities`',
    "questions with answers in a text (as in SQuAD)": "answers can be read as spans of a text: "
    'convert each to {"start": …, "end": …, "label": "answer"} in a list under `entities`',
}
USUAL_ROLES = [*TEXT_NAMES, *LABEL_NAMES, *NUMBER_NAMES, *OTHER_LABEL_NAMES]
JOINED_INTENTS = re.compile(r"[^\W\d][^\s#]*(#[^\W\d][^\s#]*)+")  # but neither "C#" nor "topic#1"
YES = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}


class NoLabels(UserError):
    """Raised for a file without a label column. names: its columns"""

    def __init__(self, message: str, names: Iterable[str]) -> None:
        super().__init__(message)
        self.names = {*names}


class Columns(NamedTuple):
    """The roles of the columns. labels: {task: its label column, or a list of columns of 0 and 1}."""

    text: str
    pair: str | None
    labels: dict[str, str | list[str]]
    extras: list[str]
    kept: list[str]
    group: str | None = None
    part: str | None = "split"  # the column with the part of each row
    inline: str | None = None  # the syntax (a key of INLINE) of entity markup in the text

    @property
    def sources(self) -> list[str]:
        """All label columns."""
        return [name for source in self.labels.values() for name in ([source] if isinstance(source, str) else source)]

    def order(self, names: Sequence[str]) -> list[str]:
        """The keys of an example in table column order, which the processed folder keeps; empty if `example` already
        returns that order."""
        roles = {self.part: ["split"], "id": ["id"], self.text: ["text", "tokens"], self.pair: ["text_pair"]}
        roles |= {source: [task] for task, source in self.labels.items() if isinstance(source, str)}
        made = ["id", "split", "text", "tokens", "text_pair", *self.labels]
        order = [key for name in names for key in roles.get(name, ())]
        return ["_where", *order] if order != [key for key in made if key in order] else []

    def example(self, values: Mapping[str, Any], where: str) -> Example:
        """The example of a row. A role from an option takes precedence, even for a column called `id`."""
        example: Example = {"_where": where}
        for key, column in (("id", "id"), ("split", self.part)):
            if column and values.get(column) is not None and column not in (self.text, self.pair, *self.sources):
                example[key] = values[column]
        example |= text_or_tokens(values[self.text], values.get("text"))
        if self.pair:
            example["text_pair"] = values[self.pair]
        if self.group:
            example["group"] = values.get(self.group)
        if self.extras:
            example["extras"] = {name: values.get(name) for name in self.extras}
        if self.kept:
            example["kept"] = {name: values.get(name) for name in self.kept}
        if self.inline:
            example["text"], example["slots"] = without_marks(str(values[self.text] or ""), self.inline, where)
        for task, source in self.labels.items():
            example[task] = values.get(source) if isinstance(source, str) else names_marked(source, values, where)
        return example


@dataclass(frozen=True)
class Head:
    """The head of a table or of objects: its column names or keys, and its first rows in that order."""

    path: str | Path
    names: list[str]
    rows: list[list[Any]]
    listed: str  # the names, formatted for messages

    def pick(self, flag: str, wanted: Iterable[str], usual: Iterable[str] = (), needed: bool = True) -> list[str]:
        """The columns that an option names, otherwise all columns with usual names."""
        wanted = [name for name in wanted if name]
        if absent := [name for name in wanted if name not in self.names]:
            headless = "if row 1 is not a header, add --no_header: columns are then numbered; "
            advice = headless if absent[0].isdigit() and self.names[0] != "0" else ""
            raise self.lacks(flag, f"no column {absent[0]!r} (--{flag}); {advice}{self.listed}")
        columns = wanted or by_usual(usual, self.names)
        if needed and not columns:
            raise self.lacks(flag, f"cannot find the column; add --{flag}; {self.listed}")
        return columns

    def lacks(self, flag: str, reason: str) -> UserError:
        message = f"{self.path}: {reason}"
        return NoLabels(message, self.names) if flag == "label_column" else UserError(message)

    def columns_of_marks(self) -> list[str]:
        """The columns that contain only 0 and 1 in the first rows."""
        columns = {name: {str(row[i]).strip().lower() for row in self.rows} for i, name in enumerate(self.names)}
        found = [name for name, cells in columns.items() if cells and cells <= YES.keys()]
        return found if any(YES[cell] for name in found for cell in columns[name]) else []


def refuse_other_tasks(head: Head, options: ReadOptions) -> None:
    """Raises UserError for data of an unsupported task, naming the task."""
    names = {*head.names}
    if not options.labelled or options.label_column or {*LABEL_NAMES} & names:
        return
    for what, identifying in OTHER_TASKS.items():
        if any(keys <= names for keys in identifying):
            kinds = "classification, multilabel, regression, tagging and spans"
            advice = "a column with one label per text can be read with --label_column NAME"
            advice += f"; {HELP[what]}" if what in HELP else ""
            raise UserError(f"{head.path}: contains {what}, but the supported tasks are {kinds}; {advice}")


def find_columns(head: Head, options: ReadOptions, known: Sequence[str] = ()) -> Columns:
    """The Columns named by options, otherwise those with usual names; prints them.

    known: label columns according to the file format.
    """
    path, names, listed = head.path, head.names, head.listed
    if not known:
        refuse_other_tasks(head, options)
    text, pair = find_texts(head, options)
    inline = find_inline(head, options, text, known)
    if not options.labelled:  # a trained model knows which extra columns it needs
        options.understood.add_columns(text=repr(text), pair=pair, entities=inline and f"marks {inline}, removed")
        extras = [name for name in names if name not in (text, pair, "id", "split")]
        options.understood.unread.update(alike([*LABEL_NAMES, *NUMBER_NAMES, *OTHER_LABEL_NAMES], extras))
        return Columns(text, pair, {}, extras, [], inline=inline)
    part = find_part(head, options)
    labels = find_labels(head, options, known, {text, pair, part}, needed=not inline)
    group = next(iter(head.pick("group_column", [options.group_column], needed=False)), None)
    extras = head.pick("extra_columns", split_names(options.extra_columns), needed=False)
    kept = head.pick("keep_columns", split_names(options.keep_columns), needed=False)
    columns = Columns(text, pair, labels, extras, kept, group, part, inline)
    used = columns.sources
    if text in used or pair in used:
        raise UserError(f"{path}: --label_column names a text column; {listed}")
    for task in labels:
        if task in RESERVED or set(task) & set(".,="):
            raise UserError(f"{path}: a label column cannot be called {task!r}; rename it")
    if both := sorted({*extras} & {text, pair, *used}):
        raise UserError(f"{path}: --extra_columns names {both[0]!r}, which is the text or a label; {listed}")
    taken = {text, pair, *used, *extras, *kept, group, part, "id"}
    unused = [name for name in names if name not in taken]
    shown = f", second text from {pair!r}" if pair else ""
    shown += f", extra inputs from {', '.join(map(repr, extras))}" if extras else ""
    shown += f", parts from {part!r}" if part else ""
    shown += f", entities marked as {inline} (--shape none keeps the marks)" if inline else ""
    shown += f", kept for the report: {', '.join(map(repr, kept))}" if kept else ""
    left_out = f"; not used: {abbreviate(unused)}" if unused else ""
    options.understood.columns.update(names)
    options.understood.add_columns(text=repr(text), pair=pair, labels=abbreviate(map(repr, used)))
    note(f"{path}: text from {text!r}{shown}, labels from {abbreviate(map(repr, used))}{left_out}")
    return columns


def find_texts(head: Head, options: ReadOptions) -> tuple[str, str | None]:
    """The columns of the text and, for pairs, of the second text."""
    if not (options.text_column or options.text_pair_column or "tokens" in head.names):
        for pair in PAIRS:
            if len(both := alike(pair, head.names)) == 2:
                return both[0], both[1]
    text = head.pick("text_column", [options.text_column], ["tokens", *TEXT_NAMES, "words"])[0]
    return text, next(iter(head.pick("text_pair_column", [options.text_pair_column], PAIR_NAMES, needed=False)), None)


def find_part(head: Head, options: ReadOptions) -> str | None:
    """The column that names the part of each row: --split_column, `split`, or one whose values are all names of
    parts. Unless its name is usual, train must be among them."""
    if options.split_column:
        return head.pick("split_column", [options.split_column])[0]
    if "split" in head.names:
        return "split"
    usual, taken = alike(PART_COLUMNS, head.names), split_names(options.label_column) + [options.text_column]
    for name in dict.fromkeys([*usual, *head.names]):
        position = head.names.index(name)
        values = {str(row[position]).strip().lower() for row in head.rows if position < len(row)}
        parts = {PART_NAMES.get(value) for value in values} if name not in taken else {None}
        if parts and None not in parts and (name in usual or ("train" in parts and not alike([name], USUAL_ROLES))):
            return name
    return None


def find_inline(head: Head, options: ReadOptions, text: str, known: Sequence[str]) -> str | None:
    """The syntax of inline entity markup, which becomes the task `slots`; None without markup."""
    wanted = split_names(options.label_column)
    if options.shape == "none" or known or "slots" in head.names or (wanted and "slots" not in wanted):
        return None
    position = head.names.index(text)
    texts = [row[position] for row in head.rows if position < len(row)]
    return inline_syntax(texts) if texts and all(isinstance(each, str) for each in texts) else None


def find_labels(
    head: Head, options: ReadOptions, known: Sequence[str], texts: set[str | None], needed: bool = True
) -> dict[str, str | list[str]]:
    """{task: its column, or columns of 0 and 1}: from --label_column, otherwise those with usual names.

    needed: whether one is required; if not, `slots` comes from the texts.
    """
    names = [name for name in head.names if name not in texts]
    wanted = [name for name in split_names(options.label_column) if needed or name != "slots"]
    usual = [name for name in known or LABEL_NAMES if name in names] or [name for name in NUMBER_NAMES if name in names]
    usual = usual or alike(OTHER_LABEL_NAMES, names)[:1] or alike([*LABEL_NAMES, *NUMBER_NAMES], names)[:1]
    if needed and not wanted and not usual and len(binary := head.columns_of_marks()) > 1:
        advice = f"--label_column labels={'+'.join(binary)} combines them into one multilabel task"
        found = f"no column has a usual label name, but {len(binary)} contain only 0 and 1"
        raise UserError(f"{head.path}: {found}; {advice}")
    labels: dict[str, str | list[str]] = {}
    for name in wanted:
        task, joined, columns = name.partition("=")
        if joined and name not in head.names:
            labels[task.strip()] = head.pick("label_column", [column.strip() for column in columns.split("+")])
        else:
            labels[name] = head.pick("label_column", [name])[0]
    return labels or {name: name for name in head.pick("label_column", [], usual, needed)}


def names_marked(columns: list[str], values: Mapping[str, Any], where: str) -> list[str] | None:
    """The names of the columns that contain 1; None if all cells are empty or -1 (unknown)."""
    cells = [str(values.get(name) if values.get(name) is not None else "").strip().lower() for name in columns]
    if all(cell in ("", "-1", "nan") for cell in cells):
        return None
    for name, cell in zip(columns, cells):
        if cell not in YES:
            raise UserError(f"{where}: {name!r} is {cell!r}, but columns combined into one task must contain 0 or 1")
    return [name for name, cell in zip(columns, cells) if YES[cell]]


def are_joined_intents(names: Iterable[Any], options: ReadOptions) -> bool:
    """Whether an intent `a#b` is two intents, as in MixATIS, so labels are lists. names: all, or the first ones"""
    chosen = options.label_types.get("intent") == "classification"
    return not chosen and any(isinstance(name, str) and JOINED_INTENTS.fullmatch(name) for name in names)
