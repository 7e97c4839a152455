"""Converts raw files in any supported format to one validated, split, human-readable folder for `main.py`.

    python data_process.py --input FILE_OR_FOLDER --output_dir dataset/NAME

The folder contains train.jsonl, dev.jsonl, labels.json and optionally test.jsonl. Each line is one example with `id`,
`text` or `tokens`, optionally `text_pair`, and the label of each task: a string, one tag per token, spans of tokens, …
This file runs the stages, which are in preprocess/: file formats in readers/, labels in labels/, splits in splits.py,
and data checks in checks/.
"""

import ast
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from config import ROOT, Config
from engine.errors import UserError
from engine.run.command_line import check_values, option, run_command
from engine.run.files import atomic_folder
from engine.task.task import Task, has_no_text
from engine.task.text import text_of
from preprocess.checks.run import inspect_splits, print_notes, run_checks, save_notes, with_rows
from preprocess.checks.tokenizer import check_encoding
from preprocess.gates import check_accepted
from preprocess.labels.kinds import KINDS
from preprocess.labels.statistics import collect_labels, label_info, print_summary
from preprocess.prepared import Prepared, write_splits
from preprocess.preview import show_data
from preprocess.readers.options import RawOptions
from preprocess.schema import require_own_folder, write_labels
from preprocess.shots import parse_shots
from preprocess.storage.facts import Note

if TYPE_CHECKING:
    from engine.data.features import Featurizer


@dataclass(frozen=True)
class DataConfig(RawOptions):
    """Options of `data_process.py`."""

    input: str = option("", "file or folder of raw data")
    output_dir: str = option("", "processed folder to write, for example dataset/NAME")
    label_type: str = option(
        "",
        "types of tasks, if detected incorrectly: 'score=regression,topics=multilabel,entities=spans'; "
        "also classification, tagging, relations, or a custom type",
    )
    label_separator: str = option(",", "separator between labels in a multilabel cell")
    label_hierarchy: str = option(
        "", "separator of levels in hierarchical labels: '##' for 体育##足球 (docs/data.md#label-hierarchies)"
    )
    tag_scheme: Literal["auto", "bio", "bioes", "keep"] = option(
        "auto", "tag scheme of the output; auto: BIO, or BIOES if the input has end tags"
    )
    unit: Literal["auto", "word", "character"] = option(
        "auto", "token unit of texts with spans; auto: character if most of the text is Chinese"
    )
    n_splits: int = option(0, "number of cross-validation folds of train and dev; 0: no folds", low=0)
    shots: str = option(
        "", "few-shot: keep this many training examples per class or entity type, such as 8, or 'intent=8,slots=5'"
    )
    label_names: str = option(
        "", "names of labels that are lists of 0 and 1, in order, comma-separated (or in labels.txt)"
    )
    preview: bool = option(False, "print how the input is read, with ten examples; writes nothing")
    check: bool = option(False, "check the input, raw or processed; writes nothing")
    max_length: int = option(256, "with --check: maximum length in training", low=8, high=2**20)
    pretrain_model_path: str = option("", "with --check: model whose tokenizer is used")
    model_hub: Literal["hf", "modelscope"] = option("hf", "hub to download the model from (docs/download.md)")
    dev_ratio: float = option(0.1, "fraction of the training examples for dev, if the data has no dev split")
    test_ratio: float = option(0.1, "fraction of the examples for test, if the data has no splits")
    random_seed: int = option(666, "seed of random splits and of --shots", low=0, high=2**32 - 1)

    def __post_init__(self) -> None:
        if not self.input or not (self.output_dir or self.check or self.preview):
            raise UserError("--input FILE_OR_FOLDER and --output_dir dataset/NAME are required")
        check_values(self)
        self.check_reading()
        self.label_types_by_name()
        check_accepted(self.accept)
        if self.n_splits == 1:
            raise UserError(f"--n_splits={self.n_splits} must be at least 2")
        if parse_shots(self.shots) and self.n_splits:
            raise UserError("--shots samples train and leaves dev unchanged, but --n_splits makes folds of both")
        if not self.label_separator:
            raise UserError("--label_separator must not be empty")
        if self.label_hierarchy and not self.label_hierarchy.strip():
            raise UserError("--label_hierarchy must not be blank")
        if self.label_hierarchy and self.label_separator in self.label_hierarchy:
            problem = f"--label_hierarchy={self.label_hierarchy!r} contains the separator of labels in a cell"
            raise UserError(f"{problem}; choose another --label_separator")
        if self.dev_ratio <= 0:
            raise UserError(f"--dev_ratio={self.dev_ratio} must be above 0: each run chooses its best epoch on dev")
        if not (self.dev_ratio > 0 and self.test_ratio >= 0 and self.dev_ratio + self.test_ratio < 1):
            raise UserError(
                f"--dev_ratio={self.dev_ratio} and --test_ratio={self.test_ratio} must leave examples to train on"
            )

    def label_types_by_name(self) -> dict[str, str]:
        """Returns {task: type} from --label_type."""
        pairs = [pair.strip() for pair in self.label_type.split(",") if pair.strip()]
        types = dict(pair.rpartition("=")[::2] for pair in pairs)
        if "" in types or not set(types.values()) <= set(KINDS):
            raise UserError(
                f"--label_type={self.label_type!r} must look like 'score=regression,topics=multilabel,"
                f"mood=classification'; the types are {', '.join(KINDS)}"
            )
        return types


def prepare(config: DataConfig) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Task], list[Note]]:
    """Reads raw input or a processed folder. Returns ({split: examples}, {name: Task}, notes). The key "_where"
    of an example is its source."""
    with Prepared(config) as data:
        tasks = data.tasks or collect_labels(data.splits, data.kinds, data.types, data.hierarchy)
        return {split: list(rows) for split, rows in data.splits.items()}, tasks, data.notes


def process(config: DataConfig) -> None:
    """Converts raw input to a processed folder, which is replaced as a whole, or left unchanged if a row is invalid.
    With --check, only prints the notes; with --preview, only examples."""
    declare_fields()
    folder = Path(config.output_dir)
    source = Path(config.input)
    if not (config.check or config.preview):
        require_own_folder(folder, source)
    with Prepared(config) as data:
        show_data(data, 10 if config.preview else 2)
        if config.preview:
            return
        if config.check:
            check_and_write(config, data)
            return
        with atomic_folder(folder, keeps=[".cache"], owns=partial(require_own_folder, source=source)) as new:
            if config.n_splits:
                write_folds(new, data)
            save_notes(check_and_write(config, data, new), new / "checks.json")
        if config.n_splits:
            folds = f"{config.n_splits} folds in {folder}/fold_0 …"
            print(f"{folds}; to train them all: python -m tools.cross_validate --data_path {folder}")
        print(f"wrote {folder}: " + ", ".join(f"{len(rows)} {split}" for split, rows in data.splits.items()))


def declare_fields() -> None:
    """Imports data_loader.py, but only if it adds entries to FIELDS, because it imports torch, which takes seconds."""
    tree = ast.parse((ROOT / "data_loader.py").read_text(encoding="utf-8"))
    if any(isinstance(node, ast.Name) and node.id == "FIELDS" for node in ast.walk(tree)):
        import data_loader  # noqa: F401


def check_and_write(config: DataConfig, data: Prepared, folder: Path | None = None) -> list[Note]:
    """Checks all rows in one pass, writes them to `folder` if given, and prints a summary. Returns the notes."""
    with ExitStack() as stack:
        paths = {split: folder / f"{split}.jsonl" for split in data.splits} if folder else {}
        files = {split: stack.enter_context(open(path, "wb")) for split, path in paths.items()}
        results = inspect_splits(data.splits, data.kinds, files)
    tasks = data.tasks or label_info(results.labels, data.splits, data.kinds, data.types, data.hierarchy)
    if folder:
        write_labels(folder, tasks)
    print_summary(data.splits, tasks, results.labels)
    for line in [line for check in results.checks.values() for line in check.lines()]:
        print(line)
    notes = run_checks(data.splits, tasks, data.notes, results)
    # The last step, because the tokenizer's threads are not fork-safe
    if not has_no_text(tasks) and (featurizer := featurizer_for_checks(config, data.splits, tasks)):
        notes += with_rows(check_encoding(data.splits, tasks, featurizer))
    print_notes(notes)
    return notes


def make_sample(folder: Path) -> None:
    """Creates the processed folder of the sample if it does not exist. Several processes may call it concurrently."""
    from filelock import FileLock

    if (folder / "labels.json").exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if not (folder / "labels.json").exists():
            raw = str(ROOT / "dataset/sample_raw")
            process(DataConfig(input=raw, output_dir=str(folder), keep_columns="slice"))


def write_folds(folder: Path, data: Prepared) -> None:
    """Writes a processed folder fold_<k> for each fold; fold 0 also becomes train and dev of the main folder. All folds
    have the same labels, so that their models can be averaged."""
    pool, folds = data.folds()
    data.tasks = collect_labels({"train": pool}, data.kinds, data.types, data.hierarchy)
    rest = {"test": data.splits["test"]} if "test" in data.splits else {}
    for number, (train, dev) in enumerate(folds):
        write_splits(folder / f"fold_{number}", {"train": train, "dev": dev, **rest})
        write_labels(folder / f"fold_{number}", data.tasks)
    data.splits = {"train": folds[0][0], "dev": folds[0][1], **rest}


def featurizer_for_checks(config: DataConfig, splits: dict[str, Any], tasks: dict[str, Task]) -> "Featurizer | None":
    """Builds a Featurizer as in training. Returns None for more than 50,000 examples, unless --check is given."""
    if not config.check and sum(map(len, splits.values())) > 50_000:
        print("skipping the tokenizer checks for data of this size; --check runs them")
        return None
    from engine.data.features import Featurizer
    from engine.data.tokenizer import load_tokenizer

    options = Config(pretrain_model_path=config.pretrain_model_path, model_hub=config.model_hub)
    tokenizer = load_tokenizer(options, lambda: (text_of(example, with_pair=True) for example in splits["train"]))
    return Featurizer(tokenizer, tasks, config.max_length)


if __name__ == "__main__":
    sys.exit(run_command(process, DataConfig))
