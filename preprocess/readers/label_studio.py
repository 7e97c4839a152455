"""Converts tasks of Label Studio's JSON export to objects with one key per label."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import UserError
from engine.run.command_line import first_line
from engine.task.signs import PAIR_NAMES, TEXT_NAMES, alike
from preprocess.labels.spans import StoredSpan, from_utf16
from preprocess.readers.archives import note
from preprocess.readers.options import ReadOptions

KINDS = ("choices", "several choices", "spans", "number")  # supported kinds of results


class Result(NamedTuple):
    """An annotation result: the values of one control. kind: one of KINDS, or an unsupported type"""

    control: str
    kind: str
    values: list[Any]


def is_label_studio(item: object, labelled: bool) -> bool:
    """Whether an item is a task of Label Studio's JSON export, or of its import format if labels are not needed."""
    if not isinstance(item, dict) or not isinstance(item.get("data"), dict):
        return False
    return annotations_of(item) is not None or not (labelled or alike(TEXT_NAMES, item))


def annotations_of(item: dict[str, Any]) -> list[dict[str, Any]] | None:
    found = item.get("annotations", item.get("completions"))
    return found if isinstance(found, list) and all(isinstance(each, dict) for each in found) else None


def used_annotations(item: dict[str, Any]) -> list[dict[str, Any]]:
    """The annotations of a task that were not cancelled; the first is used."""
    return [annotation for annotation in annotations_of(item) or [] if not annotation.get("was_cancelled")]


def tasks_to_objects(
    path: Path, items: Callable[[], Iterator[tuple[str, Any]]], options: ReadOptions
) -> tuple[Iterator[tuple[str, Any]], list[str]]:
    """((where, object) of each task, the keys of the labels).

    Choices become a class, or a set if any text has several; labels become spans; ratings and numbers become numbers.
    items: yields (where, task) from the beginning; it is called twice, first to find the kinds.
    """
    kinds: dict[str, str] = {}
    several, unread = 0, Counter[str]()

    def tasks() -> Iterator[tuple[str, Any]]:
        for where, item in items():
            if not is_label_studio(item, options.labelled):
                raise UserError(f"{where}: lacks `data` or `annotations`, so it is not a task of Label Studio")
            yield where, item if options.labelled else item | {"annotations": []}

    for where, item in tasks():
        several += len(used_annotations(item)) > 1
        for control, kind, values in results_of(item, where):
            if kind not in KINDS:
                unread[kind] += 1
            elif kinds.get(control) != "several choices":
                kinds[control] = "several choices" if kind == "choices" and len(values) > 1 else kind
    if several:
        note(f"{path}: {several} texts have several annotations; the first that was not cancelled is used")
    if unread:
        note(f"{path}: ignored: {', '.join(f'{kind} ({number})' for kind, number in unread.items())}")
    objects = ((where, task_to_object(item, kinds, where, options.text_column)) for where, item in tasks())
    return objects, [key_of(name) for name in kinds]


def key_of(control: str) -> str:
    """The label key of a Label Studio control."""
    name = "".join("_" if sign in ".,=" else sign for sign in control)
    return f"{name}_label" if name in ("id", "split", "tokens", *TEXT_NAMES, *PAIR_NAMES) else name


def results_of(item: dict[str, Any], where: str) -> list[Result]:
    """The results of the used annotation; empty without one."""
    annotation = next(iter(used_annotations(item)), {})
    try:
        return [read_result(result) for result in annotation.get("result") or []]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        wrong = f"unexpected form of a Label Studio result ({type(error).__name__}: {first_line(error)})"
        raise UserError(f"{where}: {wrong}") from None


def read_result(result: dict[str, Any]) -> Result:
    kind, value, control = result["type"], result.get("value", {}), result.get("from_name", "")
    if kind == "choices" and "start" not in value:
        return Result(control, "choices", value["choices"])
    if kind == "taxonomy" and "start" not in value:
        return Result(control, "choices", ["/".join(path) for path in value["taxonomy"]])
    if kind == "labels":
        place = value["start"], value["end"]
        return Result(control, "spans", [StoredSpan(*place, label, value.get("text")) for label in value["labels"]])
    if kind in ("rating", "number"):
        return Result(control, "number", [float(value[kind])])
    return Result(control, kind, [])


def task_to_object(item: dict[str, Any], kinds: dict[str, str], where: str, text_column: str) -> dict[str, Any]:
    """Converts a task to one object with its data and a label per control. kinds: of all controls"""
    data = dict(item["data"])
    texts = [key for key in (text_column, *TEXT_NAMES) if isinstance(data.get(key), str)]
    texts = texts or [key for key, value in data.items() if isinstance(value, str)]
    if len(texts) == 1 and texts[0] not in (text_column, *TEXT_NAMES):
        data["text"] = data.pop(texts[0])  # the only text, under any name
        texts = ["text"]
    annotated = bool(used_annotations(item))
    labels: dict[str, Any] = {name: [] if kind == "spans" and annotated else None for name, kind in kinds.items()}
    for name, kind, values in results_of(item, where):
        if kind == "spans":
            labels[name] += [span_in_text(data[texts[0]] if texts else "", span) for span in values]
        elif kind == "choices" and kinds[name] == "several choices":
            labels[name] = [*(labels[name] or []), *values]
        elif kind in kinds.get(name, ""):
            labels[name] = values[0] if values else None
    number = {"id": item["id"]} if "id" in item else {}
    return data | number | {key_of(name): label for name, label in labels.items()}


def span_in_text(text: str, span: StoredSpan) -> dict[str, Any]:
    """A span of Label Studio. Browsers count UTF-16 units (an emoji is two); the offsets are converted if the surface
    shows that this was the case."""
    start, end, label, surface, _ = span
    if span.has_place() and surface and max(text[:end], default="") > "\uffff":
        ends = from_utf16(text, start, end)
        if ends and text[slice(*ends)] == surface:
            start, end = ends
    return {"start": start, "end": end, "label": label, "text": surface}
