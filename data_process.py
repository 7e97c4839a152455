"""Converts raw files in any supported format to one validated, split, human-readable folder for `main.py`.

    python data_process.py --input FILE_OR_FOLDER --output_dir dataset/NAME

The folder contains train.jsonl, dev.jsonl, (test.jsonl) and labels.json. An example is one line:
`id`; `text` or `tokens`; optional `text_pair`; and one key per task: a string, one tag per token, spans of tokens, ...
Edit here to change the sequence of stages. The stages are in preprocess/: formats in readers.py, labels in
labelling.py, splits in splits.py, data checks in checks.py.
"""

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock

from config import ROOT, Config
from engine.run.command_line import option, run_command
from engine.run.files import appearing_folder
from engine.task.text import text_of
from preprocess.checks import checks
from preprocess.labels.kinds import KINDS
from preprocess.labels.labelling import collect_labels, label_info
from preprocess.option_checks import check_options, label_types_by_name
from preprocess.prepared import Prepared, write_parts
from preprocess.readers.formats import READERS
from preprocess.schema import require_own_folder, summary, write_labels
from preprocess.storage.facts import Note

if TYPE_CHECKING:
    from engine.data.features import Featurizer


@dataclass
class DataConfig:
    """Options of `data_process.py`."""

    input: str = option("", "file or folder of raw data")
    output_dir: str = option("", "processed folder to write, such as dataset/NAME")
    format: str = option(
        "auto",
        "format of the input; auto detects it from file names and first rows; hf: a Hugging Face dataset",
        choices=["auto", *READERS],
    )
    encoding: str = option("auto", "of the input: auto (UTF-8, UTF-16 with a BOM, GB18030 if it is Chinese), …")
    delimiter: str = option("", "delimiter of tables, such as ';', '|', '_!_' (default: detected)")
    header: bool = option(True, "the first row of a table names its columns; with --no_header they are called 0, 1, …")
    sheet: str = option("", "sheet of an Excel workbook with several sheets")
    max_rows: int = option(0, "read only the first N rows of each file, and stream a dataset of the hub; 0: all", low=0)
    drop_unlabelled: bool = option(False, "drop rows whose label is empty, null or NaN, and count them")
    text_column: str = option("", "column or key of the text (default: by usual names)")
    text_pair_column: str = option("", "column or key of the second text of a pair")
    label_column: str = option(
        "",
        "column or key of the label, or several, comma-separated; each becomes a task (default: by usual names); "
        "TASK=COLUMN+COLUMN+… combines columns of 0 and 1 into one multilabel task: 'topics=toxic+obscene+threat'",
    )
    label_type: str = option(
        "",
        "types of tasks, if not detected correctly, such as 'score=regression,topics=multilabel,entities=spans'; "
        "also classification, tagging, or a custom kind",
    )
    extra_columns: str = option("", "numeric columns, comma-separated, that are model inputs in addition to the text")
    keep_columns: str = option("", "columns, comma-separated, to keep: the report has scores for each of their values")
    label_separator: str = option(",", "separator of the labels in a cell of a multilabel column")
    tag_scheme: Literal["auto", "bio", "bioes", "keep"] = option(
        "auto", "scheme in which entity tags are written: auto is BIO, or BIOES if the data has end tags"
    )
    unit: Literal["auto", "word", "character"] = option(
        "auto", "token unit of texts with spans (auto: character if most of the text is Chinese)"
    )
    n_splits: int = option(0, "number of folds of train and dev for cross-validation; 0: none")
    group_column: str = option("", "column whose equal values stay in one part and one fold")
    check: bool = option(False, "only check the input, raw or processed, and write nothing")
    max_length: int = option(256, "for --check: the maximum length that training will use")
    pretrain_model_path: str = option("", "for --check: the model whose tokenizer training will use")
    dev_ratio: float = option(0.1, "share of examples for dev, if the data has no dev part")
    test_ratio: float = option(0.1, "share of examples for test, if the data is a single part")
    random_seed: int = option(666, "seed of the split", aliases=["seed"], low=0, high=2**32 - 1)

    def __post_init__(self):
        check_options(self)

    def label_types_by_name(self) -> dict[str, str]:
        return label_types_by_name(self.label_type)


def prepare(config: DataConfig) -> tuple[dict[str, list[dict[str, Any]]], dict[str, dict[str, Any]], list[Note]]:
    """(parts, tasks, notes) of raw input or a processed folder, as lists. Every example has "_where", its source."""
    with Prepared(config) as data:
        parts, notes = {part: list(rows) for part, rows in data.parts.items()}, data.notes
    types = data.kinds | config.label_types_by_name()
    return parts, data.tasks or with_own_kinds(collect_labels(parts, data.kinds), types), notes


def with_own_kinds(tasks: dict[str, dict[str, Any]], types: dict[str, str]) -> dict[str, dict[str, Any]]:
    """labels.json, extended by custom types and the kinds they are based on. types: {task: type}"""
    own = {name: {"type": kind, "kind": KINDS[kind]} for name, kind in types.items() if KINDS.get(kind, kind) != kind}
    return {name: task | own.get(name, {}) for name, task in tasks.items()}


def process(config: DataConfig) -> None:
    """Converts raw input to a processed folder, or with --check only prints the report.

    Nothing is written unless all rows are valid: the folder appears complete, or remains as it was.
    """
    folder = Path(config.output_dir)
    source = Path(config.input)
    if not config.check:
        require_own_folder(folder, source)
    with Prepared(config) as data:
        if config.check:
            examine(config, data)
            return
        with appearing_folder(folder, keeps=[".cache"], owns=partial(require_own_folder, source=source)) as new:
            if config.n_splits:
                write_folds(new, data, config)
            checks.keep(examine(config, data, new), new / "checks.json")
        if config.n_splits:
            folds = f"{config.n_splits} folds in {folder}/fold_0 …"
            print(f"{folds}; python -m tools.cross_validate --data_path {folder} trains them all")
        print(f"wrote {folder}: " + ", ".join(f"{len(rows)} {part}" for part, rows in data.parts.items()))


def examine(config: DataConfig, data: Prepared, folder: Path | None = None) -> list[Note]:
    """Checks all rows in one pass, writes them if there is a folder, and prints summary and notes. -> notes"""
    with ExitStack() as stack:
        paths = {part: folder / f"{part}.jsonl" for part in data.parts} if folder else {}
        files = {part: stack.enter_context(open(path, "wb")) for part, path in paths.items()}
        found = checks.look_through(data.parts, data.kinds, files)
    sizes, first = {part: len(rows) for part, rows in data.parts.items()}, data.parts["train"][0]
    types = data.kinds | config.label_types_by_name()
    tasks = data.tasks or with_own_kinds(label_info(found, sizes, data.kinds, first), types)
    if folder:
        write_labels(folder, tasks)
    summary(data.parts, tasks, found)
    notes = checks.examine(data.parts, tasks, notes=data.notes, found=found)
    if featurizer := featurizer_for_checks(config, data.parts, tasks):  # last: its threads are not fork-safe
        notes += checks.with_rows(checks.check_encoding(data.parts, tasks, featurizer))
    checks.show(notes)
    return notes


def make_sample(folder: Path) -> None:
    """Creates the processed folder of the sample if it does not exist; safe if several processes call it at once."""
    if (folder / "labels.json").exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if not (folder / "labels.json").exists():
            raw = str(ROOT / "dataset/sample_raw")
            process(DataConfig(input=raw, output_dir=str(folder), keep_columns="slice"))


def write_folds(folder: Path, data: Prepared, config: DataConfig) -> None:
    """Writes a processed folder fold_<k> for each fold. The main folder then gets the parts of fold 0.

    The labels are those of all folds together, so that the models of the folds can be averaged.
    """
    pool, folds = data.folds()
    types = data.kinds | {name: task["type"] for name, task in (data.tasks or {}).items()}
    types |= config.label_types_by_name()
    data.tasks = with_own_kinds(collect_labels({"train": pool}, data.kinds), types)
    rest = {"test": data.parts["test"]} if "test" in data.parts else {}
    for number, (train, dev) in enumerate(folds):
        write_parts(folder / f"fold_{number}", {"train": train, "dev": dev, **rest})
        write_labels(folder / f"fold_{number}", data.tasks)
    data.parts = {"train": folds[0][0], "dev": folds[0][1], **rest}


def featurizer_for_checks(
    config: DataConfig, parts: dict[str, Any], tasks: dict[str, dict[str, Any]]
) -> "Featurizer | None":
    """The Featurizer that training would use; None for more than 50,000 examples, except with --check."""
    if not config.check and sum(map(len, parts.values())) > 50_000:
        print("tokenizer checks are skipped for data of this size; --check runs them")
        return None
    from engine.data.features import Featurizer
    from engine.data.tokenizer import load_tokenizer

    options = Config(pretrain_model_path=config.pretrain_model_path)
    tokenizer = load_tokenizer(options, lambda: (text_of(example, with_pair=True) for example in parts["train"]))
    return Featurizer(tokenizer, tasks, config.max_length)


if __name__ == "__main__":
    sys.exit(run_command(process, DataConfig))
