"""Converts inputs of the Python interface (texts, pairs, words, rows) to examples for the data loader."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from engine.errors import UserError
from engine.predict.isolation import own_module
from engine.predict.predictions import prepare_inputs
from engine.task.task import EXAMPLE_KEYS, Task, has_no_text
from engine.task.text import token_unit
from engine.task.words import id_of

ACCEPTED = (
    "pass a string, a tuple of two strings (a pair), a list of word lists, a row as a dict, or a list or iterator of "
    "these"
)
FILES = (".csv", ".tsv", ".json", ".jsonl", ".txt", ".md", ".parquet", ".xlsx", ".conll", ".zip", ".gz")


def form_of(given: Any) -> Literal["one", "list", "stream"]:
    """Returns whether `given` is a single text, a list of texts, or an iterator. Raises UserError for anything else."""
    if isinstance(given, str):
        if given.lower().endswith(FILES) and Path(given).is_file():
            advice = f"label it with main.py --predict_file, or pass its text as {{'text': {given!r}}}"
            raise UserError(f"{given!r} is a file; {advice}")
        return "one"
    if isinstance(given, tuple | Mapping):
        return "one"
    if hasattr(given, "to_dict") and hasattr(given, "columns"):  # a pandas.DataFrame iterates over its column names
        raise UserError('a DataFrame is not a list of rows; pass frame.to_dict("records"), or a single column')
    if isinstance(given, bytes | set | frozenset) or not isinstance(given, Iterable):
        raise UserError(f"{shown(given)} is not a text; {ACCEPTED}")
    return "list" if hasattr(given, "__len__") else "stream"


def shown(value: Any) -> str:
    return own_module("preprocess.example").shown(value)


def plain(value: Any) -> Any:
    """Converts NumPy, pandas and torch arrays and numbers, also inside lists, to Python lists and numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def row_of(item: Any, where: str) -> dict[str, Any]:
    """Converts one input item to a row."""
    if isinstance(item, str):
        if not item.strip():
            raise UserError(f"{where} is empty; omit it, or pass the row {{'text': ''}}")
        return {"text": item}
    if isinstance(item, tuple) and len(item) == 2:
        return {"text": item[0], "text_pair": item[1]}
    if isinstance(item, list):
        return {"tokens": item}
    if isinstance(item, Mapping):
        return {name: plain(value) for name, value in item.items() if name != "text_pair" or value is not None}
    raise UserError(f"{where}: {shown(item)} is not a text; {ACCEPTED}")


def examples_of(
    items: Iterable[Any], tasks: dict[str, Task], labelled: bool = False, single: bool = False
) -> Iterator[dict[str, Any]]:
    """Converts texts or rows to examples for these tasks. An example has an id only if its row has one.

    labelled: include the labels of the rows; single: reject pairs. Raises UserError at the first invalid text.
    """
    form, paired = None, any(task.pairs for task in tasks.values())
    for number, item in enumerate(items):
        where = f"text {number + 1}"
        if isinstance(item, tuple) and len(item) == 2 and not paired:
            raise UserError(f"{where} is a pair, but this model reads single texts; pass several texts as a list")
        row = row_of(item, where)
        if paired and "text_pair" not in row:
            raise UserError(f"{where}: this model reads text pairs; pass tuples of two strings, or rows with text_pair")
        if single and "text_pair" in row:
            raise UserError(f"{where} is a pair, but this model embeds single texts; pass its texts as separate items")
        example = example_of(row, where, tasks, labelled)
        kinds = example.keys() & {"tokens", "text_pair"}
        if kinds != (form := kinds if form is None else form):
            has, first = (" and ".join(sorted(keys)) or "a text" for keys in (kinds, form))
            raise UserError(f"{where} has {has}, but the first one has {first}; pass them in separate calls")
        yield example


def example_of(row: dict[str, Any], where: str, tasks: dict[str, Task], labelled: bool) -> dict[str, Any]:
    """Converts a row to an example: text or words, the columns that the model reads and, if `labelled`, labels."""
    schema, kinds = own_module("preprocess.schema"), own_module("preprocess.labels.kinds")
    if row.keys() & {"text", "tokens"} or not has_no_text(tasks):
        schema.check_row(row, {}, where, needs_labels=False)
    example: dict[str, Any] = {name: row[name] for name in ("text", "tokens", "text_pair") if name in row}
    columns = {name: value for name, value in row.items() if name not in {*EXAMPLE_KEYS, *tasks}}
    stored = row.get("extras")  # as in a processed folder
    example["extras"] = columns | (stored if isinstance(stored, dict) else {})
    if "id" in row:
        example["id"] = id_of(row["id"], 0)
    if labelled:
        example |= labels_of(row, where, tasks)
    (example,) = prepare_inputs([example], tasks, "given", int(where.rpartition(" ")[2]))
    for name in [name for name in tasks if labelled and name in example]:
        example[name] = kinds.check_label(example | {"_where": where}, name, tasks[name].kind)
    schema.check_row(example, tasks if labelled else {}, where, needs_labels=labelled)
    schema.check_characters({"_where": where, **example})
    return example


def labels_of(row: dict[str, Any], where: str, tasks: dict[str, Task]) -> dict[str, Any]:
    """Returns the labels of a row. If word-level labels are given as character spans, [{"start", "end", "label"}], or
    as relations or events in a form that data_process.py reads, also returns the tokens."""
    if any(task.kind == "relations" for task in tasks.values()):
        row = with_relations(row, where, tasks)
    events = [name for name, task in tasks.items() if task.kind == "events"]
    row = with_events(row, where, events) if events else row
    labels = {name: row[name] for name in tasks if name in row}
    words = [name for name in labels if tasks[name].needs_words and isinstance(labels[name], list)]
    raw = [name for name in words if name in events or all(isinstance(span, dict) for span in labels[name])]
    if "tokens" in row or not raw:
        return ({"tokens": row["tokens"]} if events and "tokens" in row else {}) | labels
    spans, example = own_module("preprocess.labels.spans"), {"_where": where, "text": row["text"], **labels}
    related = [name for name in raw if tasks[name].kind == "relations"]
    spans.read_all_spans([example], [name for name in raw if name not in (*related, *events)])
    read_relations(example, related)
    spans.tokenize_spans([example], raw, token_unit(tasks), [n for n in raw if tasks[n].num_places])
    return {name: example[name] for name in ("tokens", *labels)}


def with_events(row: dict[str, Any], where: str, names: list[str]) -> dict[str, Any]:
    """Returns a row with its events converted to relations between mentions. The choice of anchors does not change the
    scores. names: the event tasks. Raises UserError if a mention does not occur in the text."""
    readers, labels = own_module("preprocess.readers.events"), own_module("preprocess.labels.events")
    keys = [*names, *readers.LISTS]
    if found := next((key for key in keys if row.get(key) and readers.is_raw(row[key])), None):
        row = readers.convert_events(row, where, key=found, name=found if found in names else names[0])
    elif any(row.get(key) == [] for key in keys):
        row = {name: [] for name in names} | row
    example = {**row, "_where": where}
    for name in [name for name in names if isinstance(row.get(name), list)]:
        missing = labels.read_all_events([example], name)[0].rows
        if missing:
            raise UserError(f"{missing[0]} does not occur in the text")
    return {key: value for key, value in example.items() if key != "_where"}


def with_relations(row: dict[str, Any], where: str, tasks: dict[str, Task]) -> dict[str, Any]:
    """Returns a row with its relations and entities keyed by task name."""
    options = own_module("preprocess.readers.options").ReadOptions(labelled=True)
    reading = own_module("preprocess.readers.by_shape").find_reading(where, [row], options)
    if reading and reading.relations:
        return row | {name: label for name, label in reading(row, where).items() if name in tasks}
    related = {name: task for name, task in tasks.items() if task.kind == "relations"}
    lists = {*own_module("preprocess.readers.shapes").LISTS.split("|")} - related.keys()
    if any(row.get(key) == [] for key in lists):
        names = [*related, *(task.entities for task in related.values() if task.entities)]
        return {name: [] for name in names} | row
    return row


def read_relations(example: dict[str, Any], names: list[str]) -> None:
    """Converts the relations of a row. Raises UserError if a mention does not occur in its text."""
    relations, where = own_module("preprocess.labels.relations"), example["_where"]
    for name in names:
        found = [relations.read_relation(raw, example["text"], where) for raw in example[name]]
        if None in found:
            raw = relations.shown_relation(example[name][found.index(None)])
            raise UserError(f"{where}: a mention of {raw} does not occur in the text")
        example[name] = sorted({relation for relation, _ in found})
