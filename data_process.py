"""Raw files in any accepted format -> one validated, split, human-readable folder that `main.py` trains on.

    python data_process.py --input FILE_OR_FOLDER --output_dir dataset/NAME

The folder holds train.jsonl, dev.jsonl, (test.jsonl) and labels.json. An example is one line:
`id`; `text`, or `tokens`; optional `text_pair`; and one key per task: a string, a tag a token, spans of tokens, ...
Edit here when a stage should do something else. The stages are in preprocess/: formats in readers.py, labels in
labelling.py, splits in splits.py, what would hurt training in checks.py.
"""

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from filelock import FileLock

from config import ROOT, Config
from engine.run.command_line import option, run_command
from engine.run.files import appearing_folder
from engine.task.text import text_of
from preprocess import checks
from preprocess.labelling import collect_labels, label_info
from preprocess.labels import KINDS
from preprocess.option_checks import check_options, label_types_by_name
from preprocess.prepared import Prepared, write_parts
from preprocess.readers import READERS
from preprocess.schema import require_own_folder, summary, write_labels


@dataclass
class DataConfig:
    """Options of `data_process.py`."""

    input: str = option("", "file or folder of raw data")
    output_dir: str = option("", "processed folder to write, such as dataset/NAME")
    format: str = option(
        "auto",
        "what the input is; auto finds it by its names and first rows; hf: a Hugging Face dataset",
        choices=["auto", *READERS],
    )
    encoding: str = option("auto", "of the input: auto (UTF-8, UTF-16 by its mark, GB18030 if it reads as Chinese), …")
    delimiter: str = option("", "what parts the cells of a table, such as ';', '|', '_!_' (default: found by itself)")
    header: bool = option(True, "tables have a row of names; with --no_header columns are called 0, 1, …")
    sheet: str = option("", "sheet of an Excel workbook that has several")
    max_rows: int = option(
        0, "read only the first N rows of each file; a hub's dataset is streamed then; 0: all", low=0
    )
    drop_unlabelled: bool = option(False, "leave out rows whose label is empty, null or NaN, and count them")
    text_column: str = option("", "column or key of the text (default: found by its name)")
    text_pair_column: str = option("", "column or key of the second text of a pair")
    label_column: str = option(
        "",
        "column or key of the label, or several, comma-separated; each becomes a task (default: found by its name); "
        "columns of 0 and 1 make one multilabel task with TASK=COLUMN+COLUMN+…, such as 'topics=toxic+obscene+threat'",
    )
    label_type: str = option(
        "",
        "types of tasks where they should not be guessed, such as 'score=regression,topics=multilabel,entities=spans'; "
        "also classification, tagging, or a kind of your own",
    )
    extra_columns: str = option("", "columns of numbers, comma-separated, that are inputs of the model beside the text")
    keep_columns: str = option("", "columns, comma-separated, that are kept: the report has scores for their values")
    label_separator: str = option(",", "what separates the labels in a cell of a multilabel column")
    tag_scheme: Literal["auto", "bio", "bioes", "keep"] = option(
        "auto", "how entities' tags are written: auto is BIO, or BIOES if the data has ends"
    )
    unit: Literal["auto", "word", "character"] = option(
        "auto", "what a token of a text with spans is (auto: characters if most are Chinese)"
    )
    n_splits: int = option(0, "make so many folds of train and dev for cross-validation; 0: none")
    group_column: str = option("", "column whose equal values stay in one part and one fold")
    check: bool = option(False, "only examine the input, raw or processed, and write nothing")
    max_length: int = option(256, "for --check: the length that training will use")
    pretrain_model_path: str = option("", "for --check: the model whose tokenizer training will use")
    dev_ratio: float = option(0.1, "share of examples for dev, if the data has no dev part")
    test_ratio: float = option(0.1, "share of examples for test, if the data is a single part")
    random_seed: int = option(666, "seed of the split", aliases=["seed"], low=0, high=2**32 - 1)

    def __post_init__(self):
        check_options(self)

    def label_types_by_name(self):
        return label_types_by_name(self.label_type)


def prepare(config):
    """Raw input, or a processed folder -> (parts, tasks, notes), as lists. Every example has "_where" it came from."""
    with Prepared(config) as data:
        parts, notes = {part: list(rows) for part, rows in data.parts.items()}, data.notes
    types = data.kinds | config.label_types_by_name()
    return parts, data.tasks or with_own_kinds(collect_labels(parts, data.kinds), types), notes


def with_own_kinds(tasks, types):
    """labels.json, with the types that are the user's own and the kinds that they look like. types: {task: type}"""
    own = {name: {"type": kind, "kind": KINDS[kind]} for name, kind in types.items() if KINDS.get(kind, kind) != kind}
    return {name: task | own.get(name, {}) for name, task in tasks.items()}


def process(config):
    """Raw input -> processed folder, as `config` (a DataConfig) says; with --check, only the report.

    Nothing is written unless all of it is good: the folder appears whole, or stays as it was.
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


def examine(config, data, folder=None):
    """One look at all rows, which are written into the folder if there is one; what they hold is told. -> notes"""
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
    if featurizer := featurizer_for_checks(config, data.parts, tasks):  # last: its threads would be in a fork's way
        notes += checks.with_rows(checks.check_encoding(data.parts, tasks, featurizer))
    checks.show(notes)
    return notes


def make_sample(folder):
    """Makes the sample's processed folder if there is none; of several processes at once only one does."""
    if (folder / "labels.json").exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if not (folder / "labels.json").exists():
            process(DataConfig(input=str(ROOT / "dataset/sample_raw"), output_dir=str(folder)))


def write_folds(folder, data, config):
    """A processed folder fold_<k> for each fold; beside them the whole will lie, whose dev part is that of the first.

    Labels are those of all folds together, so that the folds' models can be averaged.
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


def featurizer_for_checks(config, parts, tasks):
    """The Featurizer that training would use; None for much data, unless --check asks for it."""
    if not config.check and sum(map(len, parts.values())) > 50_000:
        print("what the tokenizer does to data of this size is examined by --check alone")
        return None
    from engine.data.features import Featurizer
    from engine.data.tokenizer import load_tokenizer

    options = Config(pretrain_model_path=config.pretrain_model_path)
    tokenizer = load_tokenizer(options, lambda: (text_of(example, with_pair=True) for example in parts["train"]))
    return Featurizer(tokenizer, tasks, config.max_length)


if __name__ == "__main__":
    sys.exit(run_command(process, DataConfig))
