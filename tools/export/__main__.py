"""Exports a checkpoint as a folder that labels texts without torch, with the same answers.

    python -m tools.export --checkpoint output/sample/checkpoints/best --output_dir shipped
    python -m tools.export --checkpoint output/mine/checkpoints/best --output_dir shipped --int8 --data_path DATA
    pip install -r shipped/requirements.txt && python shipped/predictor.py texts.txt labelled.jsonl

Encoder and heads become an ONNX graph. The folder also has the tokenizer, the settings for decoding, and predictor.py,
which needs only onnxruntime, tokenizers and numpy (docs/export.md). Before the folder appears, its predictor labels the
dev part: fp32 must give the same answers as torch; --int8 and --fp16 may lose at most --max_drop of the main score.
"""

import logging
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import ROOT, Config
from engine.errors import UserError
from engine.run.command_line import check_values, option, run_command
from engine.run.files import TEMPORARY, replace_folder
from logging_config import get_logger

if TYPE_CHECKING:
    from data_loader import MyDataset
    from engine.data.features import Featurizer
    from engine.predict.predictions import Predictions
    from trainer import Trainer

logger = logging.getLogger("template")
# Modules of engine/ that predictor.py imports from its own folder, as predictor_*.py
SHARED = [ROOT / "engine" / name for name in "data/windows predict/rows run/flags schema task/signs task/words".split()]
CODE = {f"predictor_{path.name}.py": path.with_suffix(".py") for path in SHARED}
CODE["predictor.py"] = Path(__file__).parent / "predictor.py"
# All files that an export may write
NAMES = {*CODE, "predictor.json", "requirements.txt", "tokenizer.json", "arrays.npz", "manifest.json"}
NAMES |= {"model.onnx", "model.onnx.data"}


@dataclass
class ExportConfig:
    """Options of `tools.export`."""

    checkpoint: str = option("", "checkpoint folder, such as output/NAME/checkpoints/best")
    output_dir: str = option("", "folder to write; an earlier export is replaced")
    int8: bool = option(False, "int8 weights: a quarter of the size, and faster on a CPU")
    fp16: bool = option(False, "fp16 graph: half the size; meant for GPUs, as a CPU still computes in fp32")
    data_path: str = option("", "processed folder whose dev part is scored (default: the run's)")
    max_drop: float = option(
        0.005, "largest allowed drop of the main dev score with --int8 and --fp16; exit code 2 beyond it", low=0
    )
    pretrain_model_path: str = option("", "path of the base model of a LoRA adapter, if it has moved")

    def __post_init__(self) -> None:
        if not self.checkpoint or not self.output_dir:
            raise UserError("both --checkpoint FOLDER and --output_dir FOLDER are needed")
        if self.int8 and self.fp16:
            raise UserError("--int8 and --fp16 exclude each other: export two folders")
        check_values(self)

    @property
    def kind(self) -> str:
        return "int8" if self.int8 else "fp16" if self.fp16 else "fp32"


def export(config: ExportConfig) -> None:
    """Exports a checkpoint. Nothing is written unless all checks pass."""
    from data_loader import MyDataLoader
    from tools.export import graph

    get_logger()
    graph.require_packages()
    folder = Path(config.output_dir)
    require_own_folder(folder)
    require_checkpoint(Path(config.checkpoint))
    trainer, featurizer, data = load(config)
    loader = MyDataLoader(data, trainer.config.eval_batch_size) if data else None
    theirs = trainer.infer(loader, "dev in torch")[0] if loader else None
    replace_folder(
        folder,
        lambda temporary: fill(temporary, config, trainer, featurizer, data, theirs),
        owns=require_own_folder,
        unharmed="an earlier export is unchanged",
    )
    size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    print(f"wrote {folder} ({config.kind}, {size:.1f} MB); python {folder}/predictor.py texts.txt labelled.jsonl")


def load(config: ExportConfig) -> "tuple[Trainer, Featurizer, MyDataset | None]":
    """The Trainer and Featurizer of the checkpoint, and the dev part, if there is one."""
    import torch

    from data_loader import MyDataset
    from main import load_trained
    from preprocess.schema import check_same_labels

    checkpoint = Path(config.checkpoint)
    options = Config(device="cpu", precision="fp32", pretrain_model_path=config.pretrain_model_path)
    trainer, featurizer = load_trained(checkpoint, options, torch.device("cpu"))
    trainer.model.float()  # after --load_dtype bf16; the export computes in fp32
    trained = Config.load(checkpoint / "args.json")
    data_path = Path(config.data_path) if config.data_path else trained.data_dir
    if config.data_path or (data_path / "labels.json").exists():
        check_same_labels(data_path, trainer.tasks)
        if (data_path / "dev.jsonl").exists():
            return trainer, featurizer, MyDataset(data_path / "dev.jsonl", featurizer)
    if config.kind != "fp32":
        raise UserError(f"--{config.kind}: {data_path} has no dev part to score it on; name one with --data_path")
    logger.warning(f"{data_path}: no dev part to check the export on; name one with --data_path")
    return trainer, featurizer, None


def fill(
    folder: Path,
    config: ExportConfig,
    trainer: "Trainer",
    featurizer: "Featurizer",
    data: "MyDataset | None",
    theirs: "Predictions | None",
) -> None:
    """Writes all files of an export into a folder and checks them on dev. theirs: the predictions of torch on dev"""
    from data_loader import MyDataset
    from tools.export import compare, graph, settings, shrink

    settings.write_settings(folder, trainer.model, featurizer)
    for name, path in CODE.items():
        shutil.copyfile(path, folder / name)
    shutil.copyfile(Path(__file__).parent / "predictor_requirements.txt", folder / "requirements.txt")
    inputs = graph.example_inputs(featurizer, lambda examples: MyDataset(examples, featurizer).batch([0, 1]))
    graph.write_graph(graph.prepare(trainer.model), inputs, folder / "model.onnx")
    if not data or not theirs:
        return
    predictor = compare.load_predictor(folder)
    compare.require_same(predictor, theirs, compare.answers_of(predictor, data))
    if config.kind != "fp32":
        {"int8": shrink.to_int8, "fp16": shrink.to_fp16}[config.kind](folder / "model.onnx")
        labels = compare.answers_of(compare.load_predictor(folder), data)[0]
        require_score(config, trainer.tasks, data, theirs.labels, labels)


def require_score(
    config: ExportConfig, tasks: dict[str, Any], data: "MyDataset", before: dict[str, list], after: dict[str, list]
) -> None:
    """Logs the dev scores before and after; raises UserError if the main score dropped by more than --max_drop."""
    import metrics

    gold = {name: [data[i].get(name) for i in range(len(data))] for name in tasks}
    scores = [metrics.score(tasks, gold, labels) for labels in (before, after)]
    for name in metrics.main_scores(tasks):
        if name in scores[0]:
            old, new = (side[name] for side in scores)
            logger.info(f"dev {name}: {old:.4f} in fp32, {new:.4f} in {config.kind} ({new - old:+.4f})")
    name = metrics.default_monitor(tasks)
    lost = scores[0][name] - scores[1][name]
    if lost > config.max_drop:
        raise UserError(
            f"--{config.kind} loses {lost:.4f} of {name} on dev, more than --max_drop {config.max_drop:g}; nothing was "
            "written"
        )


def require_own_folder(folder: Path) -> None:
    """Raises UserError if the output folder is a file or contains anything but an export."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: is not a folder; choose an empty or new folder")
    inside = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    compiled = tuple(name.removesuffix("py") for name in CODE)  # created when the predictor is imported
    inside |= {path.name for path in folder.glob("__pycache__/*") if not path.name.startswith(compiled)}
    strange = inside - NAMES - {"__pycache__", TEMPORARY}
    if strange or (inside and "predictor.json" not in inside):
        found = ", ".join(sorted(strange or inside)[:5])
        raise UserError(f"--output_dir {folder}: contains other files ({found}); choose an empty or new folder")


def require_checkpoint(folder: Path) -> None:
    """Raises UserError if the folder is a run, or has no tokenizer that can be exported."""
    best = folder / "checkpoints/best"
    if best.is_dir():
        raise UserError(f"--checkpoint {folder} is a run; its best checkpoint is {best}")
    if (folder / "args.json").exists() and not (folder / "tokenizer.json").exists():
        raise UserError(f"{folder}: its tokenizer is not a fast one, so there is no tokenizer.json to export")


if __name__ == "__main__":
    sys.exit(run_command(export, ExportConfig))
