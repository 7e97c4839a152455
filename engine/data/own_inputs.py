"""The Fields of a run: the entries of FIELDS in data_loader.py, and `extras`, the numeric columns of --extra_columns.

Examples store the cells of these columns as "extras": {column: cell}. In labels.json, each task has the declarations,
with names, means and standard deviations from train, as "fields", and the statistics of `extras` as "extras".
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from engine.data.fields import FIELDS, Field, FieldError
from engine.errors import UserError
from engine.task.task import Task, has_no_text

logger = logging.getLogger("template")
OF_WORDS = ("word_starts", "word_ends", "word_mask", "word_shapes")
BUILT_IN = ("input_ids", "attention_mask", "token_type_ids", *OF_WORDS, "extras")


def extra_field(columns: Iterable[str], statistics: Mapping[str, Mapping[str, float]] | None = None) -> Field:
    """Returns the Field of --extra_columns: standardised numbers, (B, number of columns)."""
    columns = list(columns)
    return Field(columns, (len(columns),), standardize=True, statistics=statistics)


def declared_fields(extra_columns: Iterable[str] = ()) -> dict[str, Field]:
    """Returns the Fields of --extra_columns and of FIELDS. Raises UserError for an invalid declaration."""
    columns = list(extra_columns)
    masks = [f"{name}_mask" for name, field in FIELDS.items() if isinstance(field, Field) and field.has_mask]
    for name, field in FIELDS.items():
        try:
            if not isinstance(field, Field):
                raise FieldError(f"{field!r} is not a Field; write Field(COLUMN)")
            if not isinstance(name, str) or not name.isidentifier() or name in (*BUILT_IN, *masks):
                raise FieldError("not allowed as the name of an input; choose another one")
            if field.has_mask and (mask := f"{name}_mask") in BUILT_IN:
                raise FieldError(f"its {mask} would replace the text's; choose another name")
            field.check()
        except FieldError as error:
            raise UserError(f"data_loader.py: FIELDS[{name!r}]: {error}") from None
    return ({"extras": extra_field(columns)} if columns else {}) | FIELDS


def fields_of(tasks: Mapping[str, Task]) -> dict[str, Field]:
    """Returns the Fields that a model of these tasks reads, with the names and statistics of train."""
    task = next((task for task in tasks.values() if task.extras or task.fields), None)
    if task is None:
        return {}
    extras = {"extras": extra_field(task.extras, task.extras)} if task.extras else {}
    functions = {name: field.read for name, field in FIELDS.items()}
    return extras | {name: Field(**one, read=functions.get(name)) for name, one in (task.fields or {}).items()}


def input_columns(tasks: Mapping[str, Task]) -> list[str]:
    """Returns the columns that the custom inputs of a model of these tasks read, in order."""
    return list(dict.fromkeys(column for field in fields_of(tasks).values() for column in field.columns))


def require_same_fields(tasks: Mapping[str, Task], where: Any) -> None:
    """Raises UserError if FIELDS differs from the declarations of a processed folder or checkpoint."""
    declared = {name: field.declared() for name, field in declared_fields().items()}
    found = {name: field.declared() for name, field in fields_of(tasks).items() if name != "extras"}
    for name in (declared | found) if declared != found else ():
        if name not in declared:
            raise UserError(f"{where}: needs the input {name!r}, which FIELDS in data_loader.py does not declare")
        if name not in found:
            advice = "create it again with data_process.py, and train again; or remove the entry"
            raise UserError(f"{where}: has no input {name!r}, which FIELDS in data_loader.py declares; {advice}")
        if declared[name] != found[name]:
            differing = [key for key in declared[name] | found[name] if declared[name].get(key) != found[name].get(key)]
            advice = "create the data again with data_process.py, and train again; or undo the change"
            raise UserError(f"{where}: was made with a different {differing[0]} of FIELDS[{name!r}]; {advice}")


def require_text(tasks: Mapping[str, Task], encoder: str, where: Any) -> None:
    """Raises UserError if the data has no text but the encoder reads one, or if there is nothing to read at all."""
    if has_no_text(tasks) and encoder != "none":
        raise UserError(f"{where}: was made with --no_text, so the encoder has no input; add --encoder none")
    if encoder == "none" and not fields_of(tasks):
        advice = "declare custom inputs in FIELDS of data_loader.py, or add --extra_columns, and create it again"
        raise UserError(f"{where}: has no inputs other than text, which --encoder none needs; {advice}")


def require_fields(example: dict[str, Any], fields: Mapping[str, Field], where: str) -> None:
    """Converts the cells that a model reads, in place. Raises UserError if one is missing or does not fit."""
    given, cells = example.get("extras") or {}, dict[str, Any]()
    for name, field in fields.items():
        try:
            cells |= field.clean(given)
            if field.level in ("words", "spans") and not field.function:
                require_fitting(field, cells[field.columns[0]], example)
        except FieldError as error:
            of = "" if name == "extras" else f" (FIELDS[{name!r}])"
            raise UserError(f"{where}: {error}{of}") from None
    example["extras"] = cells


def require_fitting(field: Field, value: Any, example: Mapping[str, Any]) -> None:
    """Raises FieldError unless there is one value per word, or if a span ends outside the text."""
    column, words = ", ".join(field.columns), example.get("tokens")
    if field.level == "words" and words is not None and len(value) != len(words):
        raise FieldError(f"{column} has {len(value)} values, but the text has {len(words)} words")
    if field.level == "spans":
        if field.unit == "words" and words is None:
            raise FieldError(f"{column} is in words, but the text has no `tokens`; use unit='characters'")
        text = example.get("text") or " ".join(words or ())
        size = len(words or ()) if field.unit == "words" else len(text)
        if wrong := [span for span in value if span[1] > size]:
            raise FieldError(f"{column} has the span {[*map(int, wrong[0])]}, but the text has {size} {field.unit}")


def value_of(name: str, field: Field, example: dict[str, Any]) -> np.ndarray:
    """Returns the value of a Field for an example -> (N, *shape). Raises UserError."""
    try:
        value = field.value(example["extras"])
        require_fitting(field, value, example)
        return value
    except FieldError as error:
        problem = str(error)
    except Exception as error:  # `read` may raise any exception
        problem = f"{getattr(field.read, '__name__', 'read')} raises {type(error).__name__}: {error}".splitlines()[0]
    raise UserError(f"row {example.get('id')}: {problem} (FIELDS[{name!r}])") from None


def column_statistics(name: str, field: Field, values: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Returns {column: {"mean", "std"}} of the values in train. A constant column becomes 0; raises UserError if
    all of them are constant or empty."""
    statistics, constant = {}, []
    for column in field.columns:
        of_train = values[column]
        if not len(of_train) or of_train.min() == of_train.max():
            constant.append(column)
            statistics[column] = {"mean": float(of_train[0]) if len(of_train) else 0.0, "std": 1.0}
        else:
            statistics[column] = {"mean": float(of_train.mean()), "std": float(of_train.std())}
    option = "--extra_columns" if name == "extras" else f"FIELDS[{name!r}]"
    if len(constant) == len(field.columns):
        of_train = values[constant[0]]
        problem = f"is always {of_train[0]:g}" if len(of_train) else "is empty"
        raise UserError(f"{option}: {constant[0]!r} {problem} in train; leave it out")
    if constant:
        print(f"{option}: {', '.join(map(repr, constant[:6]))} (constant or empty in train) will be 0 in the input")
    return statistics
