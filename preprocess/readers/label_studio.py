"""Converts the tasks of a Label Studio JSON export to objects with one key per label."""

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

KINDS = ("choices", "several choices", "spans", "number", "relations")  # supported results
RELATIONS = "relations"  # the label key for relations, which do not belong to a control


class Result(NamedTuple):
    """The values of one control in an annotation. kind: one of KINDS, or the name of an unsupported type."""

    control: str
    kind: str
    values: list[Any]
    id: str = ""


def is_label_studio(item: object, labelled: bool) -> bool:
    """Returns True if an item is a task of a Label Studio export, or of an import file if labels are not needed."""
    if not isinstance(item, dict) or not isinstance(item.get("data"), dict):
        return False
    return annotations_of(item) is not None or not (labelled or alike(TEXT_NAMES, item))


def annotations_of(item: dict[str, Any]) -> list[dict[str, Any]] | None:
    annotations = item.get("annotations", item.get("completions"))
    return (
        annotations if isinstance(annotations, list) and all(isinstance(each, dict) for each in annotations) else None
    )


def used_annotations(item: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the annotations of a task that were not cancelled. Only the first one is used."""
    return [annotation for annotation in annotations_of(item) or [] if not annotation.get("was_cancelled")]


def tasks_to_objects(
    path: Path, items: Callable[[], Iterator[tuple[str, Any]]], options: ReadOptions
) -> tuple[Iterator[tuple[str, Any]], list[str]]:
    """Returns (iterator of (source, object) for each task, label keys).

    Choices become a class, or a set of classes if any text has several. Labels become spans, with relations between
    them. Ratings and numbers become numbers.

    items: yields (source, task). Called twice, because the first pass determines the kinds of labels.
    """
    kinds: dict[str, str] = {}
    num_repeated, ignored = 0, Counter[str]()

    def tasks() -> Iterator[tuple[str, Any]]:
        for where, item in items():
            if not is_label_studio(item, options.labelled):
                raise UserError(f"{where}: not a Label Studio task, because `data` or `annotations` is missing")
            yield where, item if options.labelled else item | {"annotations": []}

    for where, item in tasks():
        num_repeated += len(used_annotations(item)) > 1
        for control, kind, values, _ in results_of(item, where):
            if kind not in KINDS:
                ignored[kind] += 1
            elif kinds.get(control) != "several choices":
                kinds[control] = "several choices" if kind == "choices" and len(values) > 1 else kind
    if num_repeated:
        note(f"{path}: {num_repeated} texts have several annotations; using the first that was not cancelled")
    if ignored:
        note(f"{path}: ignored {', '.join(f'{kind} ({number})' for kind, number in ignored.items())}")
    objects = ((where, task_to_object(item, kinds, where, options.text_column)) for where, item in tasks())
    return objects, [key_of(name) for name in kinds]


def key_of(control: str) -> str:
    """Returns the label key of a Label Studio control."""
    name = "".join("_" if sign in ".,=" else sign for sign in control)
    return f"{name}_label" if name in ("id", "split", "tokens", *TEXT_NAMES, *PAIR_NAMES) else name


def results_of(item: dict[str, Any], where: str) -> list[Result]:
    """Returns the results of the annotation that is used, or [] if there is none."""
    annotation = next(iter(used_annotations(item)), {})
    try:
        return [read_result(result) for result in annotation.get("result") or []]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        problem = f"unexpected format of a Label Studio result ({type(error).__name__}: {first_line(error)})"
        raise UserError(f"{where}: {problem}") from None


def read_result(result: dict[str, Any]) -> Result:
    kind, value, control = result["type"], result.get("value", {}), result.get("from_name", "")
    if not (isinstance(kind, str) and isinstance(control, str)):
        raise TypeError("type and from_name must be strings")
    if kind == "choices" and "start" not in value:
        return Result(control, "choices", value["choices"])
    if kind == "taxonomy" and "start" not in value:
        return Result(control, "choices", ["/".join(path) for path in value["taxonomy"]])
    if kind == "labels":
        offsets = value["start"], value["end"]
        spans = [StoredSpan(*offsets, label, value.get("text")) for label in value["labels"]]
        return Result(control, "spans", spans, str(result.get("id", "")))
    if kind == "relation" and result.get("labels"):
        ends = [str(result["from_id"]), str(result["to_id"])]
        pairs = {"right": [ends], "left": [ends[::-1]], "bi": [ends, ends[::-1]]}[result.get("direction", "right")]
        triples = [(subject, label, obj) for label in result["labels"] for subject, obj in pairs]
        return Result(RELATIONS, "relations", triples)
    if kind in ("rating", "number"):
        return Result(control, "number", [float(value[kind])])
    return Result(control, kind, [])


def task_to_object(item: dict[str, Any], kinds: dict[str, str], where: str, text_column: str) -> dict[str, Any]:
    """Converts a task to an object with its data and one label per control. kinds: {control: kind} in the whole
    file."""
    data = dict(item["data"])
    texts = [key for key in (text_column, *TEXT_NAMES) if isinstance(data.get(key), str)]
    texts = texts or [key for key, value in data.items() if isinstance(value, str)]
    if len(texts) == 1 and texts[0] not in (text_column, *TEXT_NAMES):
        data["text"] = data.pop(texts[0])
        texts = ["text"]
    annotated = bool(used_annotations(item))
    lists = ("spans", "relations") if annotated else ()
    labels: dict[str, Any] = {name: [] if kind in lists else None for name, kind in kinds.items()}
    regions: dict[str, dict[str, Any]] = {}
    results = results_of(item, where)
    for name, kind, values, region in results:
        if kind == "spans":
            labels[name] += (spans := [span_in_text(data[texts[0]] if texts else "", span) for span in values])
            regions |= {region: spans[0]} if spans else {}
        elif kind == "choices" and kinds[name] == "several choices":
            labels[name] = [*(labels[name] or []), *values]
        elif kind in kinds.get(name, "") and kind != "relations":
            labels[name] = values[0] if values else None
    if RELATIONS in kinds and annotated:
        labels[RELATIONS] = relations_between(regions, results, where)
    number = {"id": item["id"]} if "id" in item else {}
    return data | number | {key_of(name): label for name, label in labels.items()}


def relations_between(regions: dict[str, dict[str, Any]], results: list[Result], where: str) -> list[dict[str, Any]]:
    """Returns the relations of an annotation. regions: {id: span}."""
    relations = []
    triples = [triple for result in results if result.kind == "relations" for triple in result.values]
    for subject, predicate, obj in triples:
        if unknown := [end for end in (subject, obj) if end not in regions]:
            raise UserError(f"{where}: a relation refers to the region {unknown[0]!r}, which is not a labelled span")
        ends = [{key: regions[end][key] for key in ("start", "end", "text")} for end in (subject, obj)]
        relations.append({"subject": ends[0], "predicate": predicate, "object": ends[1]})
    return relations


def span_in_text(text: str, span: StoredSpan) -> dict[str, Any]:
    """Converts a span to a dict. Converts its offsets if the surface form shows that they are UTF-16 units (an emoji is
    two)."""
    start, end, label, surface, _ = span
    if span.has_place() and surface and max(text[:end], default="") > "\uffff":
        ends = from_utf16(text, start, end)
        if ends and text[slice(*ends)] == surface:
            start, end = ends
    return {"start": start, "end": end, "label": label, "text": surface}
