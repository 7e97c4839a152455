"""The Task class, and functions that read and write labels.json."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.schema import AnyOf, Optional, Range, SchemaError, read_json
from engine.task.hierarchy import nodes_on

EXAMPLE_KEYS = ("id", "text", "tokens", "text_pair", "extras", "kept")
# {task kind: number of word indices in each label item, [word index, …, label]}: the first and last word of a span, of
# the subject and the object of a relation, or of an event's anchor and a mention (`words.events_in`)
PLACES = {"spans": 2, "relations": 4, "events": 4}
KINDS = ("classification", "multilabel", "regression", "tagging", *PLACES)  # formats of labels
IGNORE = -100  # label id of unlabelled texts and words (torch's ignore_index)
STATISTICS = {"mean": float, "std": Range(1e-300, 1e300)}
FIELD = {  # see engine/data/fields.py
    "columns": [str],
    Optional("shape"): [Range(1)],
    Optional("dtype"): AnyOf("float", "int", "bool", "name"),
    Optional("level"): AnyOf("text", "list", "words", "spans"),
    Optional("unit"): AnyOf("characters", "words"),
    Optional("standardize"): bool,
    Optional("missing"): AnyOf(str, float, bool),
    Optional("statistics"): {str: STATISTICS},
    Optional("names"): [str],
    Optional("function"): str,
}
TASK = {
    "type": str,
    "labels": [str],
    Optional("kind"): str,
    Optional("counts"): [Range(0)],
    Optional("rows"): Range(0),
    Optional("unit"): AnyOf("word", "character", "character+blank"),
    Optional("pairs"): AnyOf(bool, None),
    Optional("hierarchy"): str,
    Optional("extras"): {str: STATISTICS},
    Optional("fields"): {str: FIELD},
    Optional("no_text"): bool,
    Optional("entities"): str,
}


@dataclass(frozen=True)
class Task:
    """A task. `type` is the key of its head in HEADS, and `kind` the format of its labels, one of KINDS."""

    type: str
    labels: tuple[str, ...] = ()  # ordered by id; empty for regression
    counts: tuple[int, ...] | None = None  # frequency of each label in train
    rows: int | None = None  # multilabel: number of labelled texts in train
    unit: str | None = None  # tagging, spans, relations, events: the token unit
    mean: float = 0.0  # regression: mean and standard deviation of the values in train
    std: float = 1.0
    pairs: bool = False  # the inputs are pairs of texts
    extras: dict[str, dict[str, float]] | None = None  # {column: {"mean", "std"}} of --extra_columns
    fields: dict[str, dict[str, Any]] | None = None  # {name: Field as JSON} of other custom inputs
    no_text: bool = False  # rows have only custom inputs; their "text" is a description of those inputs
    kind: str = ""  # default: same as type
    hierarchy: str = ""  # separator, if labels are paths of nodes (engine/task/hierarchy.py)
    entities: str = ""  # relations: name of the span task that provides the entity types, if any

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", self.kind or self.type)
        for name in ("labels", "counts"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.needs_words and not self.unit:
            object.__setattr__(self, "unit", "word")

    @property
    def nodes(self) -> tuple[str, ...]:
        """The labels, followed by their ancestors in the hierarchy that are not labels."""
        paths = [nodes_on(label, self.hierarchy) for label in self.labels if self.hierarchy]
        return tuple(dict.fromkeys([*self.labels, *(node for path in paths for node in path)]))

    @property
    def is_tagging(self) -> bool:
        """Whether the task has one label per word."""
        return self.kind == "tagging"

    @property
    def num_places(self) -> int:
        """The number of word indices in each label item (see PLACES); 0 for other kinds."""
        return PLACES.get(self.kind, 0)

    @property
    def needs_words(self) -> bool:
        """Whether the task needs texts split into tokens."""
        return needs_words(self.kind)

    def to_json(self) -> dict[str, Any]:
        """Returns the task as a JSON object for labels.json, without unset fields."""
        values = asdict(self) | {"kind": None if self.kind == self.type else self.kind}
        if self.kind != "regression":
            del values["mean"], values["std"]
        return {name: value for name, value in values.items() if value not in (None, "", {}) and value is not False}


def pairs_of(tasks: dict[str, Task]) -> bool:
    """Returns whether the inputs of these tasks are pairs of texts."""
    return any(task.pairs for task in tasks.values())


def has_no_text(tasks: Mapping[str, Task]) -> bool:
    """Returns whether the rows of these tasks have no text."""
    return any(task.no_text for task in tasks.values())


def needs_words(kind: str) -> bool:
    """Returns whether tasks of this kind need texts split into tokens."""
    return kind == "tagging" or kind in PLACES


def classifies_texts(kind: str) -> bool:
    """Returns whether tasks of this kind assign one label, or a set of labels, to each text."""
    return kind in ("classification", "multilabel")


def read_tasks(path: str | Path) -> dict[str, Task]:
    """Reads labels.json of a processed folder or a checkpoint. Raises UserError if it is invalid."""
    try:
        tasks = tasks_of(read_json(path, {str: TASK}))
        for name, task in tasks.items():
            if task.kind not in KINDS:
                custom = f"{name}.type is {task.type!r}, and {name}.kind is not one of {', '.join(KINDS)}"
                raise UserError(f"{path}: {custom}; set the kind to the format of its labels")
            if not task.labels:  # regression
                read_json(path, {name: STATISTICS})
            elif "" in task.labels:
                raise SchemaError(f"{path}: {name}.labels has an empty label")
            elif task.counts is not None and len(task.counts) != len(task.labels):
                raise SchemaError(f"{path}: {name}.counts and {name}.labels differ in length")
            elif task.entities in tasks and tasks[task.entities].kind != "spans":
                raise SchemaError(f"{path}: {name}.entities is {task.entities!r}, which is not a task of kind spans")
            elif task.kind == "multilabel" and len(task.nodes) > len(task.labels):
                raise SchemaError(f"{path}: {name}.labels lacks {task.nodes[-1]!r}, the parent of other labels")
    except SchemaError as error:
        raise UserError(f"{error}; recreate the file, or use an intact copy") from None
    if not tasks:
        raise UserError(f"{path}: contains no tasks")
    require_distinct(path, tasks)
    return tasks


def tasks_of(objects: dict[str, dict[str, Any]]) -> dict[str, Task]:
    """Creates the tasks from the content of labels.json. Unknown keys are ignored."""
    known = {field.name for field in fields(Task)}
    return {name: Task(**{key: one[key] for key in one if key in known}) for name, one in objects.items()}


def tasks_to_json(tasks: dict[str, Task]) -> dict[str, dict[str, Any]]:
    """Returns the content of labels.json."""
    return {name: task.to_json() for name, task in tasks.items()}


def require_distinct(path: str | Path, names: Iterable[str]) -> None:
    """Raises UserError if two columns of the prediction files would have the same name."""
    owners = dict.fromkeys(EXAMPLE_KEYS, "the built-in columns")
    for name in names:
        for column in (name, f"{name}_tags", f"{name}_probability"):
            if column in owners:
                clash = f"the column {column!r} of the task {name!r} clashes with {owners[column]}"
                raise UserError(f"{path}: {clash}; rename the label column")
            owners[column] = repr(name)
