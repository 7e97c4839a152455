"""Custom inputs of the model, and how they are read from the rows of the data.

A Field in FIELDS (data_loader.py) converts columns of the raw rows to `inputs[NAME]`. Uses only numpy, because every
exported folder has a copy of this file.
"""

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np

MAX_NUMBER = 1e30  # single precision overflows at 3e38
MAX_INT = 2**53  # larger integers are not exact as floats
DTYPES = {"float": np.float32, "int": np.int64, "bool": np.bool_, "name": np.int64}
SHOWN = 160  # maximum length of the description of a row without text, in characters


class FieldError(ValueError):
    """Raised for an invalid value or declaration; the message is a one-line reason."""


@dataclass(frozen=True)
class Field:
    """The declaration of a custom input.

    columns: the column or JSON key of the value, or several columns with one number each. shape: the shape of a value,
    () for one number (default: one number per column). dtype: "name" (a categorical value) maps strings to ids starting
    at 1, in the order of labels.json; 0 is for strings that do not occur in train. level: "text": one value per row,
    (B, *shape); "list": any number of values, (B, N, *shape), and `NAME_mask` (B, N); "words": one value per word,
    (B, W, *shape), split into windows like the text; "spans": any number of spans [begin, end) in characters or words
    of the text (unit), converted to first and last token indices, (B, N, 2), or word indices in word-level tasks;
    `NAME_mask` is False for truncated spans. standardize: subtract each column's mean in train and divide by its
    standard deviation; an empty cell becomes 0. missing: the value of an empty cell (default: raise an error). read: a
    function that returns the value, given the cells of a row; for example, it reads an image, given its path.
    """

    columns: str | Sequence[str]
    shape: Sequence[int] | None = None
    dtype: Literal["float", "int", "bool", "name"] = "float"
    level: Literal["text", "list", "words", "spans"] = "text"
    unit: Literal["characters", "words"] = "characters"
    standardize: bool = False
    missing: float | str | None = None
    read: Callable[..., Any] | None = None
    # set by data_process.py
    statistics: Mapping[str, Mapping[str, float]] | None = None  # {column: {"mean", "std"}} of the values in train
    names: Sequence[str] = ()
    function: str = ""  # identifies the source of `read`

    def __post_init__(self) -> None:
        columns = as_tuple(self.columns)
        several = (len(columns),) if len(columns) > 1 and not self.read else ()
        if self.level == "spans":
            several = (2,)
            object.__setattr__(self, "dtype", "int")
        for name, value in (("columns", columns), ("shape", several if self.shape is None else as_tuple(self.shape))):
            object.__setattr__(self, name, value)
        if self.read and not self.function:
            try:
                source = inspect.getsource(self.read)
            except (OSError, TypeError):  # a built-in function, or one defined in an interactive session
                source = getattr(self.read, "__qualname__", repr(type(self.read)))
            object.__setattr__(self, "function", hashlib.sha256(source.encode()).hexdigest()[:16])

    @property
    def size(self) -> int:
        """The number of elements in a value."""
        return math.prod(self.shape or ())

    @property
    def has_mask(self) -> bool:
        """Whether a batch also has `NAME_mask`."""
        return self.level in ("list", "spans")

    @property
    def by_cell(self) -> bool:
        """Whether each cell contains one number or string, not an array."""
        return self.level == "text" and not self.read and (len(self.columns) > 1 or self.size == 1)

    def check(self) -> None:
        """Raises FieldError if the declaration is invalid."""
        strings = all(isinstance(column, str) and column for column in self.columns)
        if not self.columns or not strings or len({*self.columns}) < len(self.columns):
            raise FieldError("columns must be a column name, or several different column names")
        if not all(type(n) is int and n > 0 for n in self.shape or ()):
            raise FieldError(f"shape={self.shape} must contain only positive integers")
        if self.dtype not in DTYPES or self.level not in ("text", "list", "words", "spans"):
            problem = f"invalid dtype={self.dtype!r} or level={self.level!r}"
            raise FieldError(f"{problem}; Field in engine/data/fields.py lists the allowed values")
        if self.standardize and (self.dtype != "float" or self.read):
            raise FieldError("standardize requires float columns and cannot be combined with `read`")
        if len(self.columns) > 1 and not self.read and (self.level != "text" or self.size != len(self.columns)):
            problem = f"{len(self.columns)} columns have one number each, which does not fit shape={self.shape}"
            raise FieldError(f"{problem} and level={self.level!r}")
        if self.missing is not None and not (self.by_cell and not self.standardize):
            needed = "columns with one number or string per cell"
            raise FieldError(f"missing requires {needed}, and cannot be combined with standardize")
        if self.missing is not None and not (self.dtype == "name" and isinstance(self.missing, str)):
            replace(self, missing=None).cell(self.missing, "missing")

    def to_json(self) -> dict[str, Any]:
        """Returns the declaration as stored in labels.json, without default values."""
        own = [(f.name, getattr(self, f.name), f.default) for f in fields(self) if f.name != "read"]
        changed = {name: value for name, value, default in own if value is not default and value != default}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in changed.items() if v != ()}

    def declared(self) -> dict[str, Any]:
        """Returns the user's part of the declaration, for comparison with labels.json."""
        return {name: value for name, value in self.to_json().items() if name not in ("statistics", "names")}

    # ---- cells of a row ----------------------------------------------------------------------------------------------

    def clean(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the cells of a row as they are stored: numbers, strings or lists of these. Raises FieldError."""
        if missing := [column for column in self.columns if column not in given]:
            names = ", ".join([*given][:12]) + (", …" if len(given) > 12 else "")
            has = f"the columns: {names}" if given else "no columns besides the text"
            raise FieldError(f"no column {missing[0]!r}, which this model needs; the row has {has}")
        if self.read:
            return {column: given[column] for column in self.columns}
        return {column: self.cell(given[column], column) for column in self.columns}

    def cell(self, value: Any, column: str) -> Any:
        """Converts a cell. Raises FieldError if it does not fit the declaration."""
        if not self.by_cell:
            value = parsed(value)
            if self.level == "spans" and isinstance(value, list) and value and not isinstance(value[0], list | tuple):
                value = [value]  # a single span
            self.array(value, column)
            return value
        if is_empty(value):
            if self.missing is None and not self.standardize:
                advice = "fill it, or declare the Field with missing=…, the value of empty cells"
                raise FieldError(f"{column} is empty; {advice}")
            return self.missing
        if self.dtype == "name":
            if not isinstance(value, str):
                raise FieldError(f"{column} is {shown(value)}, but must be a string (dtype='name')")
            return value
        number = to_number(value, column)
        if number is None and self.missing is None and not self.standardize:
            raise FieldError(f"{column} is {shown(value)}, which is not a number")
        if number is None or self.dtype == "float":
            return self.missing if number is None else number
        self.require_whole(np.array(number), column)
        return bool(number) if self.dtype == "bool" else int(number)

    def array(self, value: Any, column: str) -> np.ndarray:
        """Converts lists of numbers or strings to an array (N, *shape); N = 1 for one value per text."""
        dtype = object if self.dtype == "name" else np.float64
        try:
            array = np.array(value, dtype)
        except (TypeError, ValueError, OverflowError):
            needed = "a list of numbers, or nested lists of equal length"
            raise FieldError(f"{column} is {shown(value)}, but must be {needed}") from None
        shape = tuple(self.shape or ())
        if self.level != "text" and array.size == 0 and array.ndim > 0 and len(array) == 0:
            array = array.reshape(0, *shape)
        if self.level != "text" and not array.ndim:
            raise FieldError(f"{column} is {shown(value)}, but must be a list (level={self.level!r})")
        found = array.shape if self.level == "text" else array.shape[1:]
        if found != shape:
            each = "" if self.level == "text" else " of each item"
            advice = f"the declared shape{each} is {shape}"
            raise FieldError(f"{column} is {shown(value)}, an array of shape {array.shape}, but {advice}")
        if self.dtype == "name":
            if not all(isinstance(name, str) for name in array.flat):
                raise FieldError(f"{column} is {shown(value)}, but must be strings (dtype='name')")
        elif not np.isfinite(array).all():
            raise FieldError(f"{column} is {shown(value)}, which contains a missing or infinite value")
        elif (abs(array) > MAX_NUMBER).any():
            raise FieldError(f"{column} is {shown(value)}, but must be at most {MAX_NUMBER:g} in absolute value")
        elif self.dtype != "float":
            self.require_whole(array, column)
        if self.level == "spans" and not (array[:, 0] >= 0).all() & (array[:, 0] < array[:, 1]).all():
            raise FieldError(f"{column} is {shown(value)}, but a span is [begin, end], 0 <= begin < end")
        return array[None] if self.level == "text" else array

    def require_whole(self, array: np.ndarray, column: str) -> None:
        """Raises FieldError for numbers that are not integers or, with dtype "bool", not 0 or 1."""
        wrong = array[(array != np.round(array)) | (abs(array) > MAX_INT)]
        if self.dtype == "bool":
            wrong = array[(array != 0) & (array != 1)]
        if wrong.size:
            needed = "0 or 1" if self.dtype == "bool" else "an integer of at most 2**53"
            advice = "" if self.dtype == "bool" else "; declare the Field with dtype='float'"
            problem = f"{column} contains {wrong.flat[0]:g}, but every value must be {needed}"
            raise FieldError(f"{problem} (dtype={self.dtype!r}){advice}")

    def present(self, column: str, cell: Any) -> list[Any]:
        """Returns the numbers or strings in a stored cell, without missing values, for statistics of train."""
        if self.by_cell:
            return [] if cell is None else [cell]
        return self.array(cell, column).ravel().tolist()

    def example(self, number: int) -> dict[str, Any]:
        """Returns the cells of an example with `number` values, for tracing a model."""
        one = "a" if self.dtype == "name" else 0
        if self.by_cell:
            return dict.fromkeys(self.columns, one)
        value = np.full(tuple(self.shape or ()), one, object)
        return {self.columns[0]: value.tolist() if self.level == "text" else [value.tolist()] * number}

    # ---- values of a row ---------------------------------------------------------------------------------------------

    def value(self, cells: Mapping[str, Any]) -> np.ndarray:
        """Computes the value of a row, (N, *shape), from its stored cells. Raises FieldError."""
        if self.function:
            if self.read is None:
                raise FieldError("is read by a function that this folder does not have")
            array = self.array(self.read(*(cells[column] for column in self.columns)), ", ".join(self.columns))
        elif self.by_cell:
            values = [cells[column] for column in self.columns]
            if self.standardize:
                values = [self.standardized(column, cell) for column, cell in zip(self.columns, values)]
            array = np.array(values, object).reshape(1, *(self.shape or ()))
        else:
            column = self.columns[0]
            array = self.array(cells[column], column)
            if self.standardize:
                array = self.standardized(column, array)
        if self.dtype == "name":
            ids = {name: i for i, name in enumerate(self.names, 1)}
            array = np.array([ids.get(name, 0) for name in array.flat], np.int64).reshape(array.shape)
        return array.astype(DTYPES[self.dtype])

    def standardized(self, column: str, value: Any) -> Any:
        of_train = (self.statistics or {})[column]
        return 0.0 if value is None else (value - of_train["mean"]) / of_train["std"]

    def batch(self, name: str, values: np.ndarray, lengths: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the arrays of a batch. values: the values of all rows, concatenated; lengths: the number of values
        in each row, (B,)."""
        shape = tuple(self.shape or ())
        if self.level == "text":
            return {name: values.reshape(len(lengths), *shape).astype(DTYPES[self.dtype])}
        lengths = lengths // self.size
        mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
        padded = np.zeros((*mask.shape, *shape), DTYPES[self.dtype])
        padded[mask] = values.reshape(-1, *shape)
        if self.level == "spans":
            mask, padded = mask & (padded[..., 0] >= 0), padded.clip(min=0)
        return {name: padded} | ({f"{name}_mask": mask} if self.has_mask else {})


# The custom inputs of the model, {name: Field}. Add entries in data_loader.py
FIELDS: dict[str, Field] = {}


def as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)


def is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def parsed(cell: Any) -> Any:
    """Converts a cell of a table to a list. The cell contains JSON, or values separated by whitespace."""
    if not isinstance(cell, str):
        return cell
    if not cell.lstrip().startswith("["):
        return cell.split()
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        raise FieldError(f"the list {shown(cell)} is not valid JSON") from None


def to_number(value: Any, name: str) -> float | None:
    """Converts a cell to a float, or None if it is empty. Raises FieldError if it is not a number."""
    if is_empty(value):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer with hundreds of digits
        number = math.inf
    except (TypeError, ValueError):
        advice = "one-hot encode categorical values first (pandas.get_dummies), or declare dtype='name'"
        raise FieldError(f"{name} is {shown(value)}, but must be a number; {advice}") from None
    if math.isinf(number) and not isinstance(value, int):
        raise FieldError(f"{name} is {value!r}, which is not finite")
    if abs(number) > MAX_NUMBER:
        raise FieldError(f"{name} is {str(value)[:60]}, but must be at most {MAX_NUMBER:g} in absolute value")
    return None if math.isnan(number) else number


def describe(cells: Mapping[str, Any], columns: Iterable[str]) -> str:
    """Returns a readable description of a row that has no text. Different rows have different descriptions."""
    text = ", ".join(f"{column} {cells.get(column)}" for column in columns)
    if len(text) <= SHOWN:
        return text
    return f"{text[:SHOWN]}… ({hashlib.sha256(text.encode(errors='replace')).hexdigest()[:8]})"
