"""The predictions, labels and settings that an evaluation stores in a run folder for its report.

    answers/about.json     the tasks, the options that differ from the defaults, machine and date
    answers/<split>.jsonl  one line per row of dev, test or (in a cross-validation) out_of_fold:

{"id", "text", "text_pair"?, "places"?: [[start, end] of each token in the text], "cut": number of truncated sub-tokens,
"tokens": number of sub-tokens (counted twice if in two windows), "windows": number of inputs that the text was split
into, "columns"?: other columns of the row, "answers": {task: {"gold", "predicted", "right", "probability",
"untempered"?, "probabilities"?}}}

gold: the label, or null. Spans are [first token, last token, type]; relations have four tokens before the predicate.
probability: of the predicted label; a list for entities, tags, spans and relations. untempered: the probability at
temperature 1. probabilities: of the labels of a text, if at least SMALLEST. Reports can be created from these files
without the model.
"""

import dataclasses
import json
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from engine.data.cuts import num_windows
from engine.data.own_inputs import fields_of
from engine.errors import UserError
from engine.predict.collector import Predictions
from engine.run.atomic import atomic_file
from engine.run.device import name_of
from engine.run.files import write_json
from engine.run.run_folder import EVALUATE, read_result, read_result_lines
from engine.schema import AnyOf, Optional, Range
from engine.task.task import EXAMPLE_KEYS, PLACES, TASK, Task, tasks_to_json
from engine.task.text import text_and_offsets

FEW = 8  # custom inputs with more numbers are not stored
SMALLEST = 1e-4  # labels below this probability are omitted
REPORT_SPLITS = ("out_of_fold", "test", "dev")  # a report shows details of the first one that exists
# Options that do not affect the model
UNLISTED = frozenset("do_train do_eval do_predict report_language resume clear_cache output_dir model_version".split())


def cuts_and_windows(data: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers of truncated sub-tokens and of inputs for each example of a MyDataset, each (N,)."""
    return np.bincount(data.example_index, data.columns["num_cut"], len(data)).astype(int), num_windows(data)


def distribution(
    average: torch.Tensor | None, labels: Sequence[str], predicted: Any, kind: str
) -> dict[str, float] | None:
    """Returns {label: probability} for a text. average: see Prediction; None if it is not a distribution, which is
    possible for a custom head."""
    if average is None or average.ndim != 1 or len(average) != len(labels):
        return None
    values = average.double().tolist()
    if not all(0 <= p <= 1 for p in values):
        return None
    kept = {label: round(p, 6) for label, p in zip(labels, values) if p >= SMALLEST}
    if kind == "multilabel":
        return kept
    is_consistent = labels[values.index(max(values))] == predicted
    return dict(sorted(kept.items(), key=lambda item: -item[1])) if is_consistent else None


def rows_of(
    data: Any, predictions: Predictions, tasks: dict[str, Task], metrics: ModuleType
) -> Iterator[dict[str, Any]]:
    """Yields the rows to store for a MyDataset. metrics: the module metrics.py"""
    kinds, inputs = report_kinds(tasks, metrics), fields_of(tasks).items()
    shown = [field.columns for name, field in inputs if name == "extras" or (field.by_cell and field.size <= FEW)]
    cut, windows = cuts_and_windows(data)
    tokens = cut + np.bincount(data.example_index, data.lengths, len(data)).astype(int)
    labels, probabilities, averages, untempered = predictions
    for i in range(len(data)):
        example = data[i]
        text, offsets = text_and_offsets(example, tasks)
        row = {"id": example["id"], "text": text}
        if "text_pair" in example:
            row["text_pair"] = example["text_pair"]
        if offsets is not None:
            row["places"] = offsets
        row |= {"cut": int(cut[i]), "tokens": int(tokens[i]), "windows": int(windows[i])}
        kept = {name: str(value) for name, value in example.get("kept", {}).items() if value is not None}
        unknown = {name: value for name, value in example.items() if name not in {*EXAMPLE_KEYS, *tasks}}
        own = {column: example["extras"][column] for columns in shown for column in columns}
        columns = own | kept | unknown
        if columns := {name: value for name, value in columns.items() if isinstance(value, str | int | float)}:
            row["columns"] = columns
        row["answers"] = {}
        for name, task in tasks.items():
            gold, label, probability = example[name], labels[name][i], probabilities[name][i]
            stored = {"gold": gold, "predicted": label, "right": metrics.is_right(task, gold, label)}
            stored["probability"] = probability if probability is None else np.round(probability, 6).tolist()
            if (value := untempered_probability(kinds[name], untempered[name][i])) is not None:
                stored["untempered"] = np.round(value, 6).tolist()
            if kinds[name] in ("classification", "multilabel"):
                by_label = distribution(averages[name][i], task.labels, label, kinds[name])
                stored |= {} if by_label is None else {"probabilities": by_label}
            row["answers"][name] = stored
        yield row


def untempered_probability(kind: str, untempered: Any) -> Any:
    """Returns the probability of a label, or of each entity, at temperature 1; None if unknown."""
    if kind == "classification":
        return None if untempered is None or untempered.ndim != 1 else untempered.double().max().item()
    return untempered if kind in WORD_LEVEL else None


def report_kinds(tasks: dict[str, Task], metrics: ModuleType) -> dict[str, str]:
    """Returns {task: key of LABEL_SCHEMAS}, as scored by metrics.py. For custom kinds, it is the kind of labels."""
    kinds = {name: metrics.scoring_kind(task) for name, task in tasks.items()}
    return {name: kind if kind in LABEL_SCHEMAS else tasks[name].kind for name, kind in kinds.items()}


def write_rows(folder: Path, split: str, rows: Iterable[dict[str, Any]]) -> None:
    """Writes answers/<split>.jsonl in a run folder."""
    (folder / "answers").mkdir(exist_ok=True)
    with atomic_file(folder / "answers" / f"{split}.jsonl") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_about(folder: Path, trainer: Any, trained: Any, splits: list[str], metrics: ModuleType, **more: Any) -> None:
    """Writes answers/about.json. trainer: Trainer of the evaluated model; trained: the options it was trained with."""
    tasks, config, device = trainer.tasks, trainer.config, trainer.device
    name = name_of(device)
    root = Path(__file__).resolve().parents[2]
    about = {
        "tasks": tasks_to_json(tasks),
        "kinds": report_kinds(tasks, metrics),
        "monitor": trained.monitor or metrics.default_monitor(tasks),
        "main_scores": {name: metrics.MAIN[metrics.scoring_kind(task)] for name, task in tasks.items()},
        "shown_scores": metrics.main_scores(tasks),
        "parts": splits,
        "data_path": str(config.data_dir),
        "options": options_of(trained),
        "seed": trained.random_seed,
        "by_tokens": any(task.unit for task in tasks.values()),
        "log": str(Path(config.log_output_path or folder) / config.log_output_file),
        "device": f"{name}, {torch.get_num_threads()} threads" if device.type == "cpu" else name,
        "torch": torch.__version__,
        "commit": commit_of(root),
        "evaluated": time.strftime("%Y-%m-%d %H:%M"),
    }
    write_json(folder / "answers/about.json", about | more)


def options_of(trained: Any) -> dict[str, Any]:
    """Returns the training options that affect the model and differ from their defaults."""
    options = {option.name: (getattr(trained, option.name), option.default) for option in dataclasses.fields(trained)}
    return {name: value for name, (value, default) in options.items() if value != default and name not in UNLISTED}


def commit_of(root: Path) -> str:
    """Returns the commit of a clone, with "+" if tracked files are modified; "" if git is not available."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, timeout=10)

    try:
        head, status = git("rev-parse", "--short=10", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return head.stdout.strip() + ("+" if status.stdout.strip() else "") if head.returncode == 0 else ""


WORD_LEVEL = {"tagging", "words", *PLACES}
LABEL_SCHEMAS = {  # schema of a label, by kind
    "classification": str,
    "multilabel": [str],
    "regression": float,
    "tagging": [str],
    "words": [str],
}
LABEL_SCHEMAS |= {kind: [(*[Range(0)] * number, str)] for kind, number in PLACES.items()}
STRINGS = ("monitor", "data_path", "log", "device", "torch", "commit", "evaluated")
ABOUT = dict.fromkeys(STRINGS, str) | {
    "tasks": {str: TASK},
    "kinds": {str: AnyOf(*LABEL_SCHEMAS)},
    "main_scores": {str: str},
    "shown_scores": [str],
    "parts": [AnyOf(*REPORT_SPLITS)],
    "options": {str: object},
    "seed": AnyOf(int, str),  # for an ensemble, the seeds of its runs
    "by_tokens": bool,
    Optional("folds"): [str],
}
PROBABILITY = AnyOf(None, float)


def row_schema(kinds: dict[str, str]) -> dict[Any, Any]:
    """Returns the schema of a row of answers/<split>.jsonl. kinds: {task: key of LABEL_SCHEMAS}"""
    predictions = {
        name: {
            "gold": AnyOf(None, LABEL_SCHEMAS[kind]),
            "predicted": LABEL_SCHEMAS[kind],
            "right": AnyOf(bool, None),
            "probability": AnyOf(PROBABILITY, [PROBABILITY]),
            Optional("probabilities"): {str: float},
            Optional("untempered"): AnyOf(PROBABILITY, [PROBABILITY]),
        }
        for name, kind in kinds.items()
    }
    return {
        "id": AnyOf(str, float),
        "text": str,
        Optional("text_pair"): AnyOf(str, None),
        ("places" if set(kinds.values()) & WORD_LEVEL else Optional("places")): [(Range(0), Range(0))],
        "cut": Range(0),
        Optional("tokens"): Range(0),
        "windows": Range(0),
        Optional("columns"): {str: AnyOf(str, bool, float)},
        "answers": predictions,
    }


def read_about(folder: str | Path) -> dict[str, Any]:
    """Reads answers/about.json of a run folder. Raises UserError if it is missing or damaged."""
    path = Path(folder) / "answers/about.json"
    if not path.is_file():
        raise UserError(f"{folder}: no stored predictions; {EVALUATE}")
    about = read_result(path, ABOUT)
    names = set(about["kinds"])
    if not names or names != set(about["tasks"]) or not names <= set(about["main_scores"]):
        raise UserError(f"{path}: tasks, kinds and main_scores do not match; {EVALUATE}")
    return about


def read_rows(folder: str | Path, split: str, kinds: dict[str, str]) -> list[dict[str, Any]]:
    """Reads the rows of a split. Raises UserError if a row is damaged. kinds: {task: key of LABEL_SCHEMAS}"""
    path = Path(folder) / "answers" / f"{split}.jsonl"
    rows = read_result_lines(path, row_schema(kinds))
    for number, row in enumerate(rows, 1):
        size = len(row.get("places", ()))
        for name, kind in kinds.items():
            for label in (row["answers"][name][side] or [] for side in ("gold", "predicted")):
                if kind in WORD_LEVEL and ("" in label or num_words(kind, label) > size):
                    raise UserError(f"{path}, row {number}: {name!r} does not fit the row's {size} words; {EVALUATE}")
    return rows


def num_words(kind: str, label: list) -> int:
    """Returns the minimum number of words of a text with these tags, spans or relations."""
    return max((max(places) + 1 for *places, _ in label), default=0) if kind in PLACES else len(label)
