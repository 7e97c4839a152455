"""Finds which columns of a table, or keys of JSON objects, are the text, the labels and other inputs.

Edit here to have your own column names found without a flag.
"""

from typing import NamedTuple

from engine.errors import UserError
from engine.task.tags import PARTS_OF_A_ROW
from preprocess.readers.raw_files import some

# The usual names of columns and keys. If several are present, the first in these lists is the text.
TEXT_NAMES = "text sentence content sentence1 text_a premise question review query title 文本 内容".split()
TEXT_NAMES += "正文 评论 评论内容 句子 句子1 语句 文本1 问题1 微博 微博正文 新闻 新闻内容 摘要 问题 标题 题目".split()
TEXT_NAMES += "comment_text comment tweet message utterance body document".split()
PAIR_NAMES = "text_pair sentence2 text_b hypothesis question2 文本2 句子2 问题2".split()
LABEL_NAMES = "label labels entities spans intent class category target slots tags ner ner_tags 标签 类别".split()
NUMBER_NAMES = "score rating stars similarity".split()  # labels if none of the names above is present
# If none of those is present either, the first of these that is
OTHER_LABEL_NAMES = "sentiment emotion topic polarity 情感 情感标签 情感倾向 情感极性 情绪 分类 类型 意图 实体".split()
OTHER_LABEL_NAMES += "评分 星级 得分 打分 分数 相似度".split()
# Keys of an example other than its labels
RESERVED = (*PARTS_OF_A_ROW, "split", "group", "_where")
PART_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "valid", "val", "validation", "eval"), "dev"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Keys that identify data of unsupported tasks, and a description of it
OTHER_TASKS = [
    ({"paragraphs"}, "questions with answers in a text (as in SQuAD)"),
    ({"qas"}, "questions with answers in a text (as in SQuAD)"),
    ({"question", "context", "answers"}, "questions with answers in a text (as in SQuAD)"),
    ({"head", "tail", "relation"}, "relations between two entities"),
    ({"h", "t", "relation"}, "relations between two entities"),
    ({"subj", "obj", "relation"}, "relations between two entities"),
    ({"subj_start", "obj_start", "relation"}, "relations between two entities"),
    ({"spo_list"}, "triples of subject, predicate and object"),
    ({"triples"}, "triples of subject, predicate and object"),
    ({"triple_list"}, "triples of subject, predicate and object"),
    ({"relationMentions"}, "relations between two entities"),
]
YES = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}


class Columns(NamedTuple):
    """The columns that are read of a row. labels: {task: its label column, or a list of columns of 0 and 1}."""

    text: str
    pair: str | None
    labels: dict
    extras: list
    kept: list


def refuse_other_tasks(path, names, options):
    """Raises UserError for data of an unsupported task, and names that task."""
    if getattr(options, "label_column", "") or {*LABEL_NAMES} & {*names}:
        return
    for keys, what in OTHER_TASKS:
        if keys <= {*names}:
            kinds = "classification, multilabel, regression, tagging and spans"
            one = "a column with one label per text can be read with --label_column NAME"
            raise UserError(f"{path}: contains {what}, but the supported tasks are {kinds}; {one}")


def find_columns(path, names, options, listed, known=(), marks=list):
    """The Columns named by the options, otherwise those with usual names.

    known: columns that are certain to be labels, by the file's format. marks: a function that returns the columns of
    only 0 and 1, which are listed if no label is found.
    """
    refuse_other_tasks(path, names, options)
    choices = (path, names, listed)
    text = pick("text_column", [options.text_column], ["tokens", *TEXT_NAMES], *choices)[0]
    pair = next(iter(pick("text_pair_column", [options.text_pair_column], PAIR_NAMES, *choices, needed=False)), None)
    if not hasattr(options, "label_column"):  # prediction: no labels; the model knows its extra columns
        return Columns(text, pair, {}, [name for name in names if name not in (text, pair, "id", "split")], [])
    labels = find_labels([name for name in names if name not in (text, pair)], options, choices, known, marks)
    used = [name for source in labels.values() for name in ([source] if isinstance(source, str) else source)]
    if text in used or pair in used:
        raise UserError(f"{path}: --label_column names a text column; {listed}")
    for task in labels:
        if task in RESERVED or set(task) & set(".,="):
            raise UserError(f"{path}: a label column cannot be called {task!r}; rename it")
    group = pick("group_column", [getattr(options, "group_column", "")], (), *choices, needed=False)
    extras = pick("extra_columns", names_in(options, "extra_columns"), (), *choices, needed=False)
    kept = pick("keep_columns", names_in(options, "keep_columns"), (), *choices, needed=False)
    if both := sorted({*extras} & {text, pair, *used}):
        raise UserError(f"{path}: --extra_columns names {both[0]!r}, which is the text or a label; {listed}")
    taken = {text, pair, *used, *extras, *kept, *group, "id", "split"}
    unused = [name for name in names if name not in taken]
    shown = f", second text from {pair!r}" if pair else ""
    left_out = f"; not used: {some(unused)}" if unused else ""
    shown += f", extra inputs from {', '.join(map(repr, extras))}" if extras else ""
    shown += f", kept for the report: {', '.join(map(repr, kept))}" if kept else ""
    print(f"{path}: text from {text!r}{shown}, labels from {some(map(repr, used))}{left_out}")
    return Columns(text, pair, labels, extras, kept)


def find_labels(names, options, choices, known, marks):
    """{task: its column, or columns of 0 and 1}: those of --label_column, otherwise those with usual names."""
    path, all_names, _ = choices
    wanted = [name.strip() for name in options.label_column.split(",") if name.strip()]
    usual = [name for name in known or LABEL_NAMES if name in names] or [name for name in NUMBER_NAMES if name in names]
    usual = usual or alike(OTHER_LABEL_NAMES, names)[:1] or alike([*LABEL_NAMES, *NUMBER_NAMES], names)[:1]
    if not wanted and not usual and len(binary := marks()) > 1:
        advice = f"--label_column labels={'+'.join(binary)} combines them into one multilabel task"
        raise UserError(f"{path}: no column has a usual label name, but {len(binary)} contain only 0 and 1; {advice}")
    labels = {}
    for name in wanted:
        task, joined, columns = name.partition("=")
        if joined and name not in all_names:
            labels[task.strip()] = pick("label_column", [part.strip() for part in columns.split("+")], (), *choices)
        else:
            labels[name] = pick("label_column", [name], (), *choices)[0]
    return labels or {name: name for name in pick("label_column", [], usual, *choices)}


def names_in(options, flag):
    """The columns that a flag lists, each once."""
    return list(dict.fromkeys(name.strip() for name in getattr(options, flag, "").split(",")))


def alike(usual, names):
    """The names that are among the usual ones, ignoring case, in the order of the usual ones."""
    found = {}
    for name in names:
        found.setdefault(str(name).strip().lower(), name)
    return [found[name] for name in usual if name in found]


def pick(flag, wanted, usual, path, names, listed, needed=True):
    """The columns that an option names, otherwise all columns with usual names."""
    wanted = [name for name in wanted if name]
    if absent := [name for name in wanted if name not in names]:
        headless = f"; if row 1 is not a header, add --no_header: columns are then numbered; {listed}"
        named = headless if absent[0].isdigit() and names[0] != "0" else f"; {listed}"
        raise UserError(f"{path}: no column {absent[0]!r} (--{flag}){named}")
    columns = wanted or [name for name in usual if name in names] or alike(usual, names)
    if needed and not columns:
        raise UserError(f"{path}: cannot find the column; add --{flag}; {listed}")
    return columns


def labels_of_row(labels, values, where):
    """{task: label} of a row. labels: as in Columns; values: {column: its value}."""
    return {
        task: values.get(source) if isinstance(source, str) else names_marked(source, values, where)
        for task, source in labels.items()
    }


def names_marked(columns, values, where):
    """The names of those columns that contain 1; None if all cells are empty or -1, which means unknown."""
    cells = [str(values.get(name) if values.get(name) is not None else "").strip().lower() for name in columns]
    if all(cell in ("", "-1", "nan") for cell in cells):
        return None
    for name, cell in zip(columns, cells):
        if cell not in YES:
            raise UserError(f"{where}: {name!r} is {cell!r}, but columns combined into one task must contain 0 or 1")
    return [name for name, cell in zip(columns, cells) if YES[cell]]


def columns_of_marks(names, rows):
    """The columns that contain only 0 and 1 in these rows. rows: lists of values in the order of the names."""
    columns = {name: {str(row[place]).strip().lower() for row in rows} for place, name in enumerate(names)}
    found = [name for name, cells in columns.items() if cells and cells <= YES.keys()]
    return found if any(YES[cell] for name in found for cell in columns[name]) else []
