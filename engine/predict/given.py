"""What the Python interface is given (texts, pairs, words, rows) -> examples, as the data loader reads them."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from engine.data.own_inputs import input_columns
from engine.errors import UserError
from engine.predict.isolation import own_module
from engine.predict.predictions import prepare_inputs
from engine.task.task import Task, pairs_of
from engine.task.text import token_unit
from engine.task.words import id_of

ACCEPTED = (
    "give a string, two strings as a tuple (a pair), words as a list inside a list, a row as a dict, or a list or "
    "iterator of these"
)
FILES = (".csv", ".tsv", ".json", ".jsonl", ".txt", ".md", ".parquet", ".xlsx", ".conll", ".zip", ".gz")


def form_of(given: Any) -> Literal["one", "list", "stream"]:
    """Whether it is a single text, several, or an iterator. Raises UserError for anything else."""
    if isinstance(given, str):
        if given.lower().endswith(FILES) and Path(given).is_file():
            advice = f"label it with main.py --predict_file, or give its text as {{'text': {given!r}}}"
            raise UserError(f"{given!r} is a file; {advice}")
        return "one"
    if isinstance(given, tuple | Mapping):
        return "one"
    if hasattr(given, "to_dict") and hasattr(given, "columns"):  # a pandas.DataFrame iterates over its column names
        raise UserError('a DataFrame is not a list of rows; give frame.to_dict("records"), or one column')
    if isinstance(given, bytes | set | frozenset) or not isinstance(given, Iterable):
        raise UserError(f"{shown(given)} is not a text; {ACCEPTED}")
    return "list" if hasattr(given, "__len__") else "stream"


def shown(value: Any) -> str:
    return own_module("preprocess.example").shown(value)


def row_of(item: Any, where: str) -> dict[str, Any]:
    """Returns the row that one item stands for."""
    if isinstance(item, str):
        if not item.strip():
            raise UserError(f"{where} is empty; leave it out, or give the row {{'text': ''}}")
        return {"text": item}
    if isinstance(item, tuple) and len(item) == 2:
        return {"text": item[0], "text_pair": item[1]}
    if isinstance(item, list):
        return {"tokens": item}
    if isinstance(item, Mapping):
        return {name: value for name, value in item.items() if name != "text_pair" or value is not None}
    raise UserError(f"{where}: {shown(item)} is not a text; {ACCEPTED}")


def examples_of(items: Iterable[Any], tasks: dict[str, Task], labelled: bool = False) -> Iterator[dict[str, Any]]:
    """Yields the examples of texts or rows for these tasks. labelled: with the labels that the rows have. An example
    has an id only if its row has one. Raises UserError for the first text that these tasks cannot read."""
    schema, form = own_module("preprocess.schema"), None
    for number, item in enumerate(items):
        where = f"text {number + 1}"
        example = example_of(row_of(item, where), where, tasks, labelled)
        if isinstance(item, tuple) and not pairs_of(tasks):
            raise UserError(f"{where} is a pair, but this model reads single texts; give several texts as a list")
        schema.check_row(example, tasks if labelled else {}, where, needs_labels=labelled)
        schema.check_characters({"_where": where, **example})
        kinds = example.keys() & {"tokens", "text_pair"}
        if kinds != (form := kinds if form is None else form):
            has, first = (" and ".join(sorted(keys)) or "a text" for keys in (kinds, form))
            raise UserError(f"{where} has {has}, but the first one has {first}; give them separately")
        yield example


def example_of(row: dict[str, Any], where: str, tasks: dict[str, Task], labelled: bool) -> dict[str, Any]:
    """Returns the example of a row: its text or words, the columns that the model reads and, if wanted, its labels."""
    own_module("preprocess.schema").check_row(row, {}, where, needs_labels=False)
    if pairs_of(tasks) and "text_pair" not in row:
        raise UserError(f"{where}: this model reads pairs of texts; give tuples of two, or rows with text_pair")
    example: dict[str, Any] = {name: row[name] for name in ("text", "tokens", "text_pair") if name in row}
    columns = {name: row[name] for name in input_columns(tasks) if name in row}
    example["extras"] = columns | (row.get("extras") or {})
    if "id" in row:
        example["id"] = id_of(row["id"], 0)
    if labelled:
        example |= labels_of(row, where, tasks)
    (example,) = prepare_inputs([example], tasks, "given", int(where.rpartition(" ")[2]))
    for name, task in tasks.items() if labelled else ():
        if name in example:
            kinds = own_module("preprocess.labels.kinds")
            example[name] = kinds.check_label(example | {"_where": where}, name, task.kind)
    return example


def labels_of(row: dict[str, Any], where: str, tasks: dict[str, Task]) -> dict[str, Any]:
    """Returns the labels of a row, and its tokens if spans over its text are among them ({"start", "end", "label"})."""
    spans = own_module("preprocess.labels.spans")
    labels = {name: row[name] for name in tasks if name in row}
    over_text = [n for n in labels if tasks[n].needs_words and "tokens" not in row and is_over_text(labels[n])]
    if not over_text:
        return labels
    example = {"_where": where, "text": row["text"], **labels}
    spans.read_all_spans([example], over_text)
    spans.tokenize_spans([example], over_text, token_unit(tasks), [n for n in over_text if tasks[n].has_spans])
    return {name: example[name] for name in ("tokens", *labels)}


def is_over_text(label: Any) -> bool:
    """Whether a label is a list of spans over the characters of a text."""
    return isinstance(label, list) and all(isinstance(span, dict) for span in label)
