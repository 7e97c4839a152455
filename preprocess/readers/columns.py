"""Finds the table columns or JSON keys of the text, the labels and other inputs.

To recognise other column names automatically, edit this file or engine/task/signs.py.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from engine.data.fields import FIELDS, describe
from engine.errors import UserError
from engine.task.signs import LABEL_NAMES, PAIR_NAMES, PAIRS, TEXT_NAMES, alike, by_usual, inline_syntax
from engine.task.words import text_or_tokens
from preprocess.example import RESERVED, SPLIT_ALIASES, Example, abbreviate
from preprocess.readers.archives import note
from preprocess.readers.inline import without_marks
from preprocess.readers.options import ReadOptions, split_names

NUMBER_NAMES = "score rating stars similarity".split()  # labels if no column is in LABEL_NAMES
# Labels if no column is in NUMBER_NAMES either; the first match is used
OTHER_LABEL_NAMES = "sentiment emotion topic polarity 情感 情感标签 情感倾向 情感极性 情绪 分类 类型 意图 实体".split()
OTHER_LABEL_NAMES += "relations events 评分 星级 得分 打分 分数 相似度 gold_label is_duplicate".split()
# Columns with these names are used only if all their values are names of splits
PART_COLUMNS = "split partition set subset dataset part data_split 划分 数据集".split()
# Unsupported tasks, and sets of keys that identify their data
OTHER_TASKS: dict[str, list[set[str]]] = {
    "questions with answers in a text (as in SQuAD)": [{"paragraphs"}, {"qas"}, {"question", "context", "answers"}],
    "relations between two given entities": [
        {"head", "tail", "relation"},
        {"h", "t", "relation"},
        {"subj", "obj", "relation"},
        {"subj_start", "obj_start", "relation"},
    ],
    "relations between entities with several mentions (as in DocRED)": [{"vertexSet"}],
    "relations in an unknown form, or no relations": [
        {"relationMentions"},
        {"spo_list"},
        {"triples"},
        {"triple_list"},
        {"relation_list"},
    ],
    "events in an unknown form, or no events": [
        {"event_list"},
        {"event_mentions"},
        {"golden-event-mentions"},
        {"event_type", "trigger"},
    ],
    "texts and their summaries or translations": [
        {"article", "highlights"},
        {"document", "summary"},
        {"text", "summary"},
        {"translation"},
    ],
}
# How to convert data of unsupported tasks
TRIPLES = 'write each as {"subject": {"start": …, "end": …}, "predicate": …, "object": {…}} in a list under `relations`'
HELP = {
    "relations between two given entities": "mark the two entities in the text as <e1>…</e1> and <e2>…</e2>, and use "
    "the relation as its label (docs/cookbook/relation.md)",
    "relations between entities with several mentions (as in DocRED)": f"choose a mention of each, and {TRIPLES}",
    "relations in an unknown form, or no relations": TRIPLES,
    "events in an unknown form, or no events": 'write each as {"type": …, "trigger": {"start": …, "end": …} or null, '
    '"arguments": [{"role": …, "start": …, "end": …}]} in a list under `events`',
    "questions with answers in a text (as in SQuAD)": "answers can be read as spans of a text: "
    'convert each to {"start": …, "end": …, "label": "answer"} in a list under `entities`',
}
USUAL_ROLES = [*TEXT_NAMES, *LABEL_NAMES, *NUMBER_NAMES, *OTHER_LABEL_NAMES]
JOINED_INTENTS = re.compile(r"[^\W\d][^\s#]*(#[^\W\d][^\s#]*)+")  # but neither "C#" nor "topic#1"
YES = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}


class NoLabels(UserError):
    """Raised for a file without a label column. names: the columns of the file."""

    def __init__(self, message: str, names: Iterable[str]) -> None:
        super().__init__(message)
        self.names = {*names}


class Columns(NamedTuple):
    """The roles of the columns. labels: {task: label column, or list of columns of 0 and 1}."""

    text: str | None  # None: the rows have no text
    pair: str | None
    labels: dict[str, str | list[str]]
    extras: list[str]
    kept: list[str]
    group: str | None = None
    split: str | None = "split"  # the column with the split of each row
    inline: str | None = None  # the syntax (a key of INLINE) of entity markup in the text

    @property
    def sources(self) -> list[str]:
        """Returns all label columns."""
        return [name for source in self.labels.values() for name in ([source] if isinstance(source, str) else source)]

    def order(self, names: Sequence[str]) -> list[str]:
        """Returns the keys of an example in the order of the table, or [] if `example` already uses this order."""
        roles = {self.split: ["split"], "id": ["id"], self.text: ["text", "tokens"], self.pair: ["text_pair"]}
        roles |= {source: [task] for task, source in self.labels.items() if isinstance(source, str)}
        default = ["id", "split", "text", "tokens", "text_pair", *self.labels]
        order = [key for name in names for key in roles.get(name, ())]
        return ["_where", *order] if order != [key for key in default if key in order] else []

    def example(self, values: Mapping[str, Any], where: str) -> Example:
        """Converts a row to an Example. Roles set by options take precedence, even for a column called `id`."""
        example: Example = {"_where": where}
        for key, column in (("id", "id"), ("split", self.split)):
            if column and values.get(column) is not None and column not in (self.text, self.pair, *self.sources):
                example[key] = values[column]
        if self.text:
            example |= text_or_tokens(values[self.text], values.get("text"))
        elif self.labels:
            example["text"] = describe(values, self.extras)
        if self.pair:
            example["text_pair"] = values[self.pair]
        if self.group:
            example["group"] = values.get(self.group)
        if self.extras:
            example["extras"] = {name: values.get(name) for name in self.extras}
        if self.kept:
            example["kept"] = {name: values.get(name) for name in self.kept}
        if self.inline and self.text:
            example["text"], example["slots"] = without_marks(str(values[self.text] or ""), self.inline, where)
        for task, source in self.labels.items():
            example[task] = values.get(source) if isinstance(source, str) else names_marked(source, values, where)
        return example


@dataclass(frozen=True)
class Head:
    """The column names of a table (or the keys of objects), and the first rows with their values in that order."""

    path: str | Path
    names: list[str]
    rows: list[list[Any]]
    listed: str  # the names, formatted for messages
    origins: Mapping[str, str] = field(default_factory=dict)  # {converted key: the key that it was read from}

    def pick(self, flag: str, selected: Iterable[str], usual: Iterable[str] = (), needed: bool = True) -> list[str]:
        """Returns the columns named by an option, or else all columns with usual names."""
        selected = [name for name in selected if name]
        if missing := [name for name in selected if name not in self.names]:
            no_header = "if row 1 is not a header, add --no_header: columns are then numbered; "
            advice = no_header if missing[0].isdigit() and self.names[0] != "0" else ""
            of = flag if " " in flag else f"--{flag}"
            raise self.lacks(flag, f"no column {missing[0]!r} ({of}); {advice}{self.listed}")
        columns = selected or by_usual(usual, self.names)
        if needed and not columns:
            raise self.lacks(flag, f"no column has a usual name; add --{flag}; {self.listed}")
        return columns

    def lacks(self, flag: str, reason: str) -> UserError:
        message = f"{self.path}: {reason}"
        return NoLabels(message, self.names) if flag == "label_column" else UserError(message)

    def columns_of_marks(self) -> list[str]:
        """Returns the columns that contain only 0 and 1 in the first rows."""
        columns = {name: {str(row[i]).strip().lower() for row in self.rows} for i, name in enumerate(self.names)}
        binary = [name for name, cells in columns.items() if cells and cells <= YES.keys()]
        return binary if any(YES[cell] for name in binary for cell in columns[name]) else []


def reject_other_tasks(head: Head, options: ReadOptions) -> None:
    """Raises UserError if the columns show that the data is for an unsupported task."""
    names = {*head.names}
    if not options.labelled or options.label_column or {*LABEL_NAMES} & names:
        return
    for task, identifying in OTHER_TASKS.items():
        if any(keys <= names for keys in identifying):
            kinds = "classification, multilabel, regression, tagging, spans, relations and events"
            advice = "a column with one label per text can be read with --label_column NAME"
            advice += f"; {HELP[task]}" if task in HELP else ""
            raise UserError(f"{head.path}: contains {task}, but the supported tasks are {kinds}; {advice}")


def find_columns(head: Head, options: ReadOptions, known: Sequence[str] = ()) -> Columns:
    """Finds and prints the columns: those named by options, or else those with usual names. known: label columns
    defined by the file format."""
    path, names, listed = head.path, head.names, head.listed
    if not known:
        reject_other_tasks(head, options)
    text, pair = find_texts(head, options)
    inline = find_inline(head, options, text, known) if text else None
    if not options.labelled:  # the trained model defines the extra columns
        options.understood.add_columns(
            text=text and repr(text), pair=pair, entities=inline and f"marks {inline}, removed"
        )
        extras = [name for name in names if name not in (text, pair, "id", "split")]
        options.understood.unread.update(alike([*LABEL_NAMES, *NUMBER_NAMES, *OTHER_LABEL_NAMES], extras))
        return Columns(text, pair, {}, extras, [], inline=inline)
    split = find_split(head, options)
    labels = find_labels(head, options, known, {text, pair, split}, needed=not inline)
    group = next(iter(head.pick("group_column", [options.group_column], needed=False)), None)
    extras = head.pick("extra_columns", split_names(options.extra_columns), needed=False)
    own = [column for field in FIELDS.values() for column in field.columns]
    extras = list(dict.fromkeys(extras + head.pick("FIELDS in data_loader.py", own, needed=False)))
    kept = head.pick("keep_columns", split_names(options.keep_columns), needed=False)
    columns = Columns(text, pair, labels, extras, kept, group, split, inline)
    used = columns.sources
    if text in used or pair in used:
        raise UserError(f"{path}: --label_column is a text column; {listed}")
    for task in labels:
        if task in RESERVED or set(task) & set(".,="):
            raise UserError(f"{path}: {task!r} is not allowed as the name of a label column; rename it")
    if both := sorted({*extras} & {text, pair, *used}):
        raise UserError(f"{path}: --extra_columns or FIELDS: {both[0]!r} is the text or a label; {listed}")
    origins = {name: head.origins.get(name, name) for name in used}
    used_columns = {text, pair, *used, *origins.values(), *extras, *kept, group, split, "id"}
    unused = [name for name in names if name not in used_columns]
    shown = f", second text from {pair!r}" if pair else ""
    shown += f", extra inputs from {abbreviate(map(repr, extras))}" if extras else ""
    shown += f", splits from {split!r}" if split else ""
    shown += f", entities marked as {inline} (--shape none keeps the marks)" if inline else ""
    shown += f", stored for the report: {', '.join(map(repr, kept))}" if kept else ""
    not_used = f"; not used: {abbreviate(unused)}" if unused else ""
    options.understood.columns.update(names)
    options.understood.add_columns(text=text and repr(text), pair=pair, labels=abbreviate(map(repr, used)))
    source = f"text from {text!r}" if text else "no text"
    note(f"{path}: {source}{shown}, labels from {shown_origins(origins)}{not_used}")
    return columns


def shown_origins(origins: Mapping[str, str]) -> str:
    """Formats the keys that labels were read from, with the names of labels that differ from their key."""
    names: dict[str, list[str]] = {}
    for name, origin in origins.items():
        names.setdefault(origin, []).append(name)
    renamed = {key: f" ({', '.join(of_key)})" * (of_key != [key]) for key, of_key in names.items()}
    return abbreviate(f"{key!r}{tasks}" for key, tasks in renamed.items())


def find_texts(head: Head, options: ReadOptions) -> tuple[str | None, str | None]:
    """Returns the columns of the text and of the second text (for pairs), or None for a missing one."""
    usual = ["tokens", *TEXT_NAMES, "words"]
    named = options.text_column or options.text_pair_column
    if not options.text:
        return None, None
    if not options.needs_text and FIELDS and not named and not by_usual(usual, head.names):
        return None, None  # the model reads no text
    if not (options.text_column or options.text_pair_column or "tokens" in head.names):
        for pair in PAIRS:
            if len(both := alike(pair, head.names)) == 2:
                return both[0], both[1]
    text = head.pick("text_column", [options.text_column], usual)[0]
    return text, next(iter(head.pick("text_pair_column", [options.text_pair_column], PAIR_NAMES, needed=False)), None)


def find_split(head: Head, options: ReadOptions) -> str | None:
    """Returns the split column: --split_column, `split`, or a column whose values are all names of splits. A column
    with an unusual name must also contain train."""
    if options.split_column:
        return head.pick("split_column", [options.split_column])[0]
    if "split" in head.names:
        return "split"
    usual, other_roles = alike(PART_COLUMNS, head.names), split_names(options.label_column) + [options.text_column]
    for name in dict.fromkeys([*usual, *head.names]):
        position = head.names.index(name)
        values = {str(row[position]).strip().lower() for row in head.rows if position < len(row)}
        splits = {SPLIT_ALIASES.get(value) for value in values} if name not in other_roles else {None}
        if splits and None not in splits and (name in usual or ("train" in splits and not alike([name], USUAL_ROLES))):
            return name
    return None


def find_inline(head: Head, options: ReadOptions, text: str, known: Sequence[str]) -> str | None:
    """Returns the syntax of inline entity markup in the texts, which becomes the task `slots`, or None."""
    selected = split_names(options.label_column)
    if options.shape == "none" or known or "slots" in head.names or (selected and "slots" not in selected):
        return None
    position = head.names.index(text)
    texts = [row[position] for row in head.rows if position < len(row)]
    return inline_syntax(texts) if texts and all(isinstance(each, str) for each in texts) else None


def find_labels(
    head: Head, options: ReadOptions, known: Sequence[str], texts: set[str | None], needed: bool = True
) -> dict[str, str | list[str]]:
    """Returns {task: its column, or columns of 0 and 1} from --label_column, or else from usual names. needed: whether
    a label column is required; if not, the texts have inline entity markup."""
    names = [name for name in head.names if name not in texts]
    selected = [name for name in split_names(options.label_column) if needed or name != "slots"]
    usual = [name for name in known or LABEL_NAMES if name in names] or [name for name in NUMBER_NAMES if name in names]
    usual = usual or alike(OTHER_LABEL_NAMES, names)[:1] or alike([*LABEL_NAMES, *NUMBER_NAMES], names)[:1]
    if needed and not selected and not usual and len(binary := head.columns_of_marks()) > 1:
        advice = f"--label_column labels={'+'.join(binary)} combines them into one multilabel task"
        problem = f"no column has a usual label name, but {len(binary)} columns contain only 0 and 1"
        raise UserError(f"{head.path}: {problem}; {advice}")
    labels: dict[str, str | list[str]] = {}
    for name in selected:
        task, joined, columns = name.partition("=")
        if joined and name not in head.names:
            labels[task.strip()] = head.pick("label_column", [column.strip() for column in columns.split("+")])
        else:
            labels[name] = head.pick("label_column", [name])[0]
    return labels or {name: name for name in head.pick("label_column", [], usual, needed)}


def names_marked(columns: list[str], values: Mapping[str, Any], where: str) -> list[str] | None:
    """Returns the names of the columns that contain 1, or None if all cells are empty or -1 (unknown)."""
    cells = [str(values.get(name) if values.get(name) is not None else "").strip().lower() for name in columns]
    if all(cell in ("", "-1", "nan") for cell in cells):
        return None
    for name, cell in zip(columns, cells):
        if cell not in YES:
            raise UserError(f"{where}: {name!r} is {cell!r}, but columns combined into one task must contain 0 or 1")
    return [name for name, cell in zip(columns, cells) if YES[cell]]


def are_joined_intents(names: Iterable[Any], options: ReadOptions) -> bool:
    """Returns True if intents such as `a#b` are two intents each (as in MixATIS), so that labels are lists. names: the
    intents of all rows or of the first rows."""
    is_single = options.label_types.get("intent") == "classification"
    return not is_single and any(isinstance(name, str) and JOINED_INTENTS.fullmatch(name) for name in names)
