"""Selects the texts of an unlabelled file that are worth labelling next, and writes them to a file for annotation.

    python -m tools.select --checkpoint output/mine --pool texts.txt --number 200
    python -m tools.select --checkpoint output/mine --pool texts.txt --number 200 --output_format label_studio

Selects texts that the model is uncertain about and that differ from each other. Skips texts that are duplicates, have
no words, or are already in the run's data. The output contains the model's predictions for annotators to correct
(docs/select.md). After annotation, data_process.py reads it.
"""

import dataclasses
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from config import Config
from engine.errors import UserError
from engine.run.command_line import check_values, option, run_command
from engine.run.launch import is_launched
from engine.run.reading import ReadingOptions
from engine.task.task import has_no_text
from logging_config import get_logger

if TYPE_CHECKING:  # imported lazily to keep `--help` fast
    from engine.predict.interface import Model
    from tools.select.choose import Strategy

logger = logging.getLogger("template")
SUFFIXES = {"jsonl": ".jsonl", "csv": ".csv", "doccano": ".jsonl", "label_studio": ".json"}


@dataclass(frozen=True)
class SelectConfig(ReadingOptions):
    """Options of `tools.select`."""

    checkpoint: str = option("", "run folder or checkpoint folder (not needed for --strategy random)")
    pool: str = option("", "file of unlabelled texts, in any format that data_process.py reads; labels are ignored")
    number: int = option(200, "number of texts to select", low=1)
    output: str = option("", "file to write (default: to_label.jsonl, or .csv or .json, depending on --output_format)")
    output_format: Literal["auto", "jsonl", "csv", "doccano", "label_studio"] = option(
        "auto", "format of the output; auto: csv if --output ends with .csv, otherwise jsonl"
    )
    answers: bool = option(True, "write the model's predictions for correction; --no_answers: texts without labels")
    strategy: Literal["auto", "both", "uncertainty", "diversity", "random"] = option(
        "auto",
        "both: diverse texts among the most uncertain ones; uncertainty, diversity: only one criterion; "
        "auto: both, or the one that the model supports",
    )
    data_path: str = option("", "processed folder whose texts are not selected (default: the data of the run)")
    random_seed: int = option(666, "seed for --strategy random and for clustering", low=0, high=2**32 - 1)
    device: str = option("auto", "auto, cpu, cuda:0, mps, xpu, npu", group="machine")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option("auto", "autocast to half precision, as in main.py")
    eval_batch_size: int = option(64, "texts per batch", low=1)
    pretrain_model_path: str = option("", "path of the base model of a LoRA adapter, if it has moved")

    def __post_init__(self) -> None:
        if not self.pool:
            raise UserError("--pool FILE is required; it contains the texts to select from")
        if not self.checkpoint and self.strategy != "random":
            raise UserError("--checkpoint RUN is required; without a trained run, only --strategy random can select")
        check_values(self)
        if self.path.suffix != (suffix := SUFFIXES[self.form]):
            raise UserError(f"--output {self.output} must end in {suffix} (--output_format {self.form})")
        self.for_texts()

    @property
    def form(self) -> str:
        """The format of the output."""
        return (
            self.output_format if self.output_format != "auto" else "csv" if self.output.endswith(".csv") else "jsonl"
        )

    @property
    def path(self) -> Path:
        """The file to write."""
        return Path(self.output or f"to_label{SUFFIXES[self.form]}")

    @property
    def files(self) -> list[Path]:
        """The files to write: the output and, for Label Studio, the labelling interface."""
        return [self.path, self.path.with_suffix(".xml")][: 1 + (self.form == "label_studio")]

    def for_texts(self) -> Config:
        """Returns the options of main.py for reading the pool."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(ReadingOptions)}
        return Config(do_predict=True, predict_file=self.pool, eval_batch_size=self.eval_batch_size, **values)


def main(config: SelectConfig) -> None:
    from engine.predict import load
    from engine.predict.labelling import check_all
    from preprocess.readers.sources import texts_of
    from tools.select.annotate import require_format, write
    from tools.select.choose import choose, survey

    if is_launched():
        raise UserError("tools.select runs in one process; start it without torchrun")
    get_logger()
    for path in config.files:
        if path.exists():  # it may contain hours of annotation work
            raise UserError(f"--output {config.path}: {path} exists; move it, or choose another file")
    config.path.parent.mkdir(parents=True, exist_ok=True)  # before reading the pool, because it may fail
    model = None
    if config.checkpoint:
        own = dict(eval_batch_size=config.eval_batch_size, pretrain_model_path=config.pretrain_model_path)
        model = load(config.checkpoint, config.device, config.precision, **own)
    tasks = model.tasks if model else {}
    if has_no_text(tasks):
        raise UserError("the rows of this model have no texts to annotate")
    require_format(config.form, tasks)
    strategy = strategy_of(config, model)
    rows = texts_of(config.for_texts())
    check_all(rows, tasks)
    pool = survey(rows, model, strategy in ("both", "uncertainty"), labelled_texts(config, model))
    left_out = "".join(f", {number:,} {reason}" for reason, number in pool.left_out.items())
    logger.info(f"{config.pool}: {rows.size:,} texts{left_out}")
    if not len(pool.kept):
        raise UserError(f"{config.pool}: no texts are left to select; no file was written")
    if len(pool.kept) < config.number:
        logger.warning(f"--number {config.number:,}: selecting all of the remaining texts ({len(pool.kept):,})")
    places, examples = choose(pool, model, strategy, config.number, config.random_seed)
    scores = pool.uncertainty[places].tolist() if len(pool.uncertainty) else []
    facts = [{"uncertainty": round(score, 6)} for score in scores] or [{} for _ in examples]
    write(config.path, config.form, examples, facts, model, config.answers)
    logger.info(f"{len(examples):,} texts in {config.path}, selected by {strategy}")


def strategy_of(config: SelectConfig, model: "Model | None") -> "Strategy":
    """Resolves --strategy auto. Raises UserError for a strategy that the model does not support."""
    from tools.select.choose import uncertain_tasks

    if model is None:
        return "random"
    scores, network = bool(uncertain_tasks(model.tasks)), model.trainer.model
    embeds = bool(network.hidden_size) and not network.output_layer.reads_pairs
    possible = {"both": scores and embeds, "uncertainty": scores, "diversity": embeds, "random": True}
    allowed: list[Any] = [name for name, can in possible.items() if can]
    lacks = "has no probabilities (regression)" if not scores else "has no text embeddings"
    if config.strategy != "auto" and config.strategy not in allowed:
        raise UserError(f"--strategy {config.strategy}: this model {lacks}; choose {', '.join(allowed)}")
    if config.strategy == "auto" and not possible["both"]:
        logger.info(f"--strategy {allowed[0]}, because this model {lacks}")
    return allowed[0] if config.strategy == "auto" else config.strategy


def labelled_texts(config: SelectConfig, model: "Model | None") -> set[int]:
    """Returns the hashes of all texts in the data, including test texts, which must not be used for training."""
    from preprocess.checks.duplicates import plain
    from preprocess.example import SPLITS
    from preprocess.schema import read_processed

    folder = Path(config.data_path)
    if model and not config.data_path:
        folder = Config.load(model.checkpoint / "args.json").data_dir
        if folder.name.startswith("fold_"):  # the test split is in the parent folder
            folder = folder.parent
    elif not config.data_path:
        return set()
    paths = [path for split in SPLITS if (path := folder / f"{split}.jsonl").exists()]
    if not paths and config.data_path:
        raise UserError(f"--data_path {folder}: not a processed folder")
    if not paths:
        logger.warning(f"{folder}, the data of the run, does not exist; labelled texts may be selected again")
    return {hash(plain(example)) for path in paths for _, example in read_processed(path, {})}


if __name__ == "__main__":
    sys.exit(run_command(main, SelectConfig))
