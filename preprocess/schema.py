"""The processed folder: reads, checks and writes its rows and labels.

labels.json is {task: {"type", "labels", "counts", …}}. train.jsonl, dev.jsonl and test.jsonl have one example per line
(see data_process.py). Training and prediction read no other data files.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from engine.data.own_inputs import fields_of, require_fields
from engine.errors import UserError
from engine.run.atomic import require_file
from engine.run.command_line import first_line
from engine.run.files import digest
from engine.schema import parse_json
from engine.task.task import Task, read_tasks, tasks_to_json
from engine.task.text import text_of
from preprocess.example import HIDDEN, SPLITS, Example, check_characters, check_text
from preprocess.labels.kinds import check_label, check_paths

Tasks = dict[str, Task]
LINE = json.JSONEncoder(ensure_ascii=False).encode


def load_labels(data_path: str | Path) -> Tasks:
    path = Path(data_path) / "labels.json"
    if not path.exists():
        command = f"python data_process.py --input RAW --output_dir {data_path}"
        raise UserError(f"{data_path}: contains no labels.json; create the folder with: {command}")
    for split in SPLITS:
        require_file(path.with_name(f"{split}.jsonl"))
    return read_tasks(path)


def data_and_model(data_path: str | Path, model_path: str) -> dict[str, str]:
    """Identifies the inputs of a run: {"data": digest, "model": name, with a digest if it is a local folder}."""
    load_labels(data_path)
    data, model = Path(data_path), Path(model_path)
    name = "/".join(model.parts[-2:]) or "from scratch"
    if model_path and model.is_dir():
        name += f" {digest(model, sorted(path.name for path in model.iterdir()))}"
    return {"data": digest(data, ["labels.json", *(f"{split}.jsonl" for split in SPLITS)]), "model": name}


def check_row(example: Any, tasks: Tasks, where: str, needs_labels: bool = True) -> None:
    """Raises UserError unless a row has all inputs of these tasks. Labels can be missing (null)."""
    if not isinstance(example, dict) or not ("text" in example or "tokens" in example):
        raise UserError(f"{where}: expected a JSON object with `text` or `tokens`")
    check_text({"_where": where, **example}, may_be_empty=not needs_labels)
    if fields := fields_of(tasks):
        require_fields(example, fields, where)
    for name, task in tasks.items():
        if needs_labels:
            if name not in example:
                raise UserError(f"{where}: has no label for the task {name!r}; use null if it is missing")
            label = check_label({"_where": where, **example}, name, task.kind)
            if task.hierarchy and label != check_paths(label, name, task.hierarchy, where):
                raise UserError(
                    f"{where}: {name!r} lacks parents of its labels; create the folder with data_process.py"
                )
        if task.needs_words and "tokens" not in example:
            raise UserError(f"{where}: has no `tokens`, which the task {name!r} requires")


def require_known_labels(example: dict, known: dict[str, set], where: str) -> None:
    """Raises UserError for a label that is not in labels.json: training would ignore it. known: {task: labels}."""
    for name, labels_of_task in known.items():
        label = example[name]
        for item in label if isinstance(label, list) else [label]:
            item = item[-1] if isinstance(item, list) else item  # the label of a span or relation is its last part
            if item is not None and item not in labels_of_task:
                problem = f"the label {item!r} of {name!r} is not in labels.json"
                raise UserError(f"{where}: {problem}; correct it, or create the folder again with data_process.py")


def read_processed(
    path: str | Path, tasks: Tasks, start: int = 0, stop: int | None = None, strict: bool = False
) -> Iterator[tuple[str, Example]]:
    """Yields (source, example) for each row of a processed .jsonl file between two byte offsets, and checks it. strict:
    raise for labels that are not in labels.json (for training; dev and test may contain such labels)."""
    known = {name: set(task.labels) for name, task in tasks.items() if task.kind != "regression"}
    with open(path, "rb") as file:
        file.seek(start)
        for number, line in enumerate(file, 1):
            where = f"{path}, row {number}" + (f" after byte {start}" if start else "")
            try:
                example = parse_json(line.decode())
            except (ValueError, RecursionError) as error:
                advice = "create the folder again with data_process.py"
                raise UserError(f"{where}: not JSON ({first_line(error)}); {advice}") from None
            check_row(example, tasks, where)
            if b"\\ud" in line.lower() or b"\xed" in line:  # could be a lone surrogate
                check_characters({"_where": where, **example})
            if strict:
                require_known_labels(example, known, where)
            example.setdefault("id", str(number - 1))
            yield where, example
            if stop is not None and file.tell() >= stop:
                return


def training_texts(path: str | Path) -> Iterator[str]:
    """Yields the texts of a processed file, to train a tokenizer."""
    for _, example in read_processed(path, {}):
        yield text_of(example, with_pair=True)


def part_of(data_path: str | Path, split: str) -> Path:
    path = Path(data_path) / f"{split}.jsonl"
    if not path.exists():
        raise UserError(f"{path}: no such file; to predict on other texts, add --predict_file")
    return path


def check_same_labels(data_path: str | Path, tasks: Tasks) -> None:
    """Raises UserError if the tasks and labels of a data folder differ from those of a trained model."""
    data_tasks = load_labels(data_path)
    for name in data_tasks.keys() | tasks.keys():
        in_data, in_model = (set(side[name].labels if name in side else ()) for side in (data_tasks, tasks))
        if in_data != in_model:
            added, missing = (shorten(names) or "none" for names in (in_data - in_model, in_model - in_data))
            difference = f"only in the data: {added}; only in the model: {missing}"
            raise UserError(f"{data_path}: the labels of {name!r} differ from the model's; {difference}")


def shorten(names: Collection[str], limit: int = 8) -> str:
    return ", ".join(sorted(names)[:limit]) + (f", … ({len(names) - limit} more)" if len(names) > limit else "")


def encode_rows(examples: Iterable[Example]) -> bytes:
    """Encodes examples as the lines of a processed file."""
    return "".join([LINE({k: e[k] for k in e if k not in HIDDEN}) + "\n" for e in examples]).encode()


def write_labels(folder: Path, tasks: Tasks) -> None:
    content = json.dumps(tasks_to_json(tasks), ensure_ascii=False, indent=1) + "\n"
    (folder / "labels.json").write_bytes(content.encode())


def require_own_folder(folder: Path, source: Path) -> None:
    """Raises UserError unless the output folder is new, empty, or an earlier processed folder."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    splits = {f"{split}.jsonl" for split in SPLITS}
    own_names = r"(?s)labels\.json|checks\.json|\.cache|fold_\d+|\.template-new|\.(.*\.)?tmp"
    foreign = {name for name in names - splits if not re.fullmatch(own_names, name)}
    if not foreign and "labels.json" not in names:
        foreign = {name for name in names if name in splits or name.startswith("fold_")}
    for fold in folder.glob("fold_*/*") if not foreign else ():
        if fold.name not in splits and not re.fullmatch(own_names, fold.name):
            foreign.add(f"{fold.parent.name}/{fold.name}")
    if foreign or (folder.exists() and not folder.is_dir()):
        problem = shorten(foreign) or "it is not a folder"
        raise UserError(f"--output_dir {folder}: contains other files ({problem}); choose an empty or new folder")
    if folder.resolve() in (source.resolve(), *source.resolve().parents):
        raise UserError(f"--output_dir {folder}: contains the input; choose another folder")
