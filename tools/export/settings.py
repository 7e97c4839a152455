"""Writes the predictor's settings: predictor.json, arrays.npz with CRF parameters, and tokenizer.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import regex

from engine.data.fields import Field
from engine.errors import UserError
from engine.model.crf import IMPOSSIBLE
from engine.task import text
from engine.task.tags import names_entities, outside_id
from engine.task.task import pairs_of

if TYPE_CHECKING:
    from engine.data.features import Featurizer
    from engine.model.head import Head
    from model_utils import MyModel

# {(methods `decode` and `to_labels`): head in the predictor}. Custom heads that inherit both methods are supported.
# A head that overrides one of them needs a class in tools/export/decoding.py and an entry here
HEADS = {
    ("ClassificationHead.decode", "Head.to_labels"): "classification",
    ("MultilabelHead.decode", "MultilabelHead.to_labels"): "multilabel",
    ("RegressionHead.decode", "RegressionHead.to_labels"): "regression",
    ("TaggingHead.decode", "TaggingHead.to_labels"): "tagging",
    ("CRFTaggingHead.decode", "CRFTaggingHead.to_labels"): "crf",
    ("SpanHead.decode", "SpanHead.to_labels"): "spans",
    ("RelationHead.decode", "SpanHead.to_labels"): "relations",
    ("RelationHead.decode", "EventHead.to_labels"): "events",
}
COPIED = ("type", "kind", "labels", "unit", "mean", "std", "pairs")  # keys of labels.json, exported unchanged


def class_of(pattern: str) -> str:
    """Converts a pattern of the package regex to a character class of re, which does not support \\p{Han}."""
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    runs = [(ord(m.group()[0]), ord(m.group()[-1])) for m in regex.finditer(f"(?V1)(?:{pattern})+", everything)]
    return "[" + "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in runs) + "]"


def patterns() -> tuple[dict[str, str], str]:
    """Returns {unit: pattern of a token in `split_text`} and the pattern of a Chinese character, for Python's re."""
    classes = {pattern: class_of(pattern) for pattern in text.CLASSES}
    word = text.WORD.removeprefix("(?V1)")
    for pattern in sorted(classes, key=len, reverse=True):  # one class may contain another
        word = word.replace(pattern, classes[pattern])
    return {"word": word, "character": classes[r"[^\s]"], "character+blank": "(?s:.)"}, classes[text.HAN]


def kind_of_head(name: str, head: Head) -> str:
    """Returns the key of a head in HEADS of decoding.py. Raises UserError if the head cannot be exported."""
    kind = type(head)
    exported = HEADS.get((kind.decode.__qualname__, kind.to_labels.__qualname__))
    if exported is None:
        raise UserError(
            f"the head of {name!r}, {kind.__name__}, overrides decoding, which an export does not support; "
            "add it to HEADS in tools/export/decoding.py and in tools/export/settings.py"
        )
    return exported


def require_exportable(inputs: dict[str, Field]) -> None:
    """Raises UserError for custom inputs that an exported predictor cannot compute."""
    for name, field in inputs.items():
        if field.function:
            advice = "compute the values in advance and declare a column"
            raise UserError(f"FIELDS[{name!r}] is computed by a function, which cannot be exported; {advice}")
        if field.level == "spans":
            raise UserError(f"FIELDS[{name!r}]: an exported predictor cannot map spans to tokens; use main.py")


def task_of(name: str, head: Any) -> dict[str, Any]:
    """Returns a task of predictor.json: its labels and the settings for decoding."""
    kind, task = kind_of_head(name, head), head.task
    values = task.to_json()
    found = {key: values[key] for key in COPIED if key in values} | {"head": kind}
    if head.distribution.has_temperature:
        found["temperature"] = float(head.temperature)
    if hasattr(head, "threshold"):
        found["threshold"] = float(head.threshold)
    if head.reads_task:
        found["reads_task"] = head.reads_task
    if kind == "multilabel" and hasattr(head, "paths"):
        found["paths"] = head.paths.tolist()
    if task.is_tagging:
        found |= {"outside": outside_id(task), "entities": names_entities(task)}
    return found


def write_settings(folder: Path, model: MyModel, featurizer: Featurizer) -> None:
    """Writes predictor.json, arrays.npz and tokenizer.json of a model to a folder."""
    arrays: dict[str, np.ndarray] = {}
    tasks: dict[str, dict[str, Any]] = {}
    for number, (name, head) in enumerate(model.output_layer.heads.items()):
        tasks[name] = task_of(name, head)
        if tasks[name]["head"] == "crf":
            tasks[name]["crf"] = number  # prefix of its arrays
            crf = head.crf
            for part, rule in (("start", "forbidden_start"), ("transitions", "forbidden"), ("end", "forbidden_end")):
                scores = getattr(crf, "transitions" if part == "transitions" else f"{part}_transitions")
                masked = scores.detach().masked_fill(getattr(crf, rule), IMPOSSIBLE)
                arrays[f"{number}.{part}"] = masked.float().numpy()
    require_exportable(featurizer.fields)
    by_unit, han = patterns()
    settings = {
        "tasks": tasks,
        "max_length": featurizer.max_length,
        "stride": featurizer.stride,
        "long_text": featurizer.long_text,
        "word_ends": featurizer.word_ends,
        "word_shapes": featurizer.word_shapes,
        "unit": text.token_unit(featurizer.tasks),
        "pairs": pairs_of(featurizer.tasks),
        "apart": featurizer.apart,
        "markers": featurizer.markers,
        "fields": {name: field.to_json() for name, field in featurizer.fields.items()},
        "reads_text": featurizer.tokenizer is not None,
        "pad_id": featurizer.pad_id,
        "filler": featurizer.filler,
        "separator": featurizer.separator,
        "blanks": featurizer.blanks,
        "patterns": by_unit,
        "han": han,
    }
    (folder / "predictor.json").write_text(json.dumps(settings, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if arrays:
        np.savez(folder / "arrays.npz", **cast(Any, arrays))
    if featurizer.tokenizer is not None:
        featurizer.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
