"""Exports a checkpoint to a folder that labels texts without torch and gives the same predictions.

    python -m tools.export --checkpoint output/sample/checkpoints/best --output_dir shipped
    python -m tools.export --checkpoint output/mine/checkpoints/best --output_dir shipped --int8 --data_path DATA
    pip install -r shipped/requirements.txt && python shipped/predictor.py texts.txt labelled.jsonl

Encoder and heads are exported as an ONNX graph. The folder also contains the tokenizer, the decoding settings and
predictor.py, which only needs onnxruntime, tokenizers and numpy (docs/export.md). The export is checked on dev before
it is written: fp32 must give the same predictions as torch, and with --int8 and --fp16 the main score may drop by at
most --max_drop.
"""

import logging
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from config import ROOT, Config
from engine.errors import UserError
from engine.run.command_line import check_values, option, run_command
from engine.run.files import TEMPORARY, replace_folder, verify, write_json
from engine.schema import read_json
from logging_config import get_logger

if TYPE_CHECKING:
    from data_loader import MyDataset
    from engine.data.features import Featurizer
    from trainer import Trainer

logger = logging.getLogger("template")
# Modules that an exported folder contains as predictor_*.py, because predictor.py imports them
MODULES = "errors schema run/atomic run/flags task/signs task/tags task/words data/fields data/windows predict/rows"
SOURCES = [ROOT / "engine" / f"{name}.py" for name in MODULES.split()]
SOURCES += [
    Path(__file__).with_name(f"{name}.py") for name in ("decoding", "encoding", "loading", "reading", "scoring")
]
CODE = {f"predictor_{path.name}": path for path in SOURCES} | {"predictor.py": Path(__file__).with_name("predictor.py")}
# All files of an ONNX export
NAMES = {*CODE, "predictor.json", "requirements.txt", "tokenizer.json", "arrays.npz", "manifest.json", "README.md"}
NAMES |= {"model.onnx", "model.onnx.data"}
MARK = "export.json"  # marks an export for another library


@dataclass
class ExportConfig:
    """Options of `tools.export`."""

    checkpoint: str = option("", "checkpoint folder, such as output/NAME/checkpoints/best")
    output_dir: str = option("", "output folder; an earlier export is replaced")
    to: Literal["onnx", "transformers", "sentence-transformers"] = option(
        "onnx",
        "onnx: a folder with its own predictor, for every model; transformers: a folder for pipeline(…) and "
        "AutoModelFor…, if transformers has an equivalent class; sentence-transformers: the encoder with its pooling",
    )
    int8: bool = option(False, "quantise the weights to int8: a quarter of the size, and faster on a CPU")
    fp16: bool = option(False, "fp16 graph: half the size; for GPUs, because CPUs still compute in fp32")
    data_path: str = option(
        "", "processed folder whose dev split is used to check the export (default: the data of the run)"
    )
    max_drop: float = option(
        0.005,
        "maximum drop of the main dev score with --int8 and --fp16. --int8 tries more and more precise methods until "
        "the drop is small enough; if none succeeds, exits with code 2",
        low=0,
    )
    push_to_hub: str = option("", "upload the export to a hub as a private model with this name (OWNER/NAME)")
    model_hub: Literal["hf", "modelscope"] = option(
        "hf", "hub to upload to: Hugging Face or ModelScope", needs="push_to_hub"
    )
    public: bool = option(False, "create a public model", needs="push_to_hub")
    pretrain_model_path: str = option("", "path of the base model of a LoRA adapter, if it has moved")

    def __post_init__(self) -> None:
        if not self.checkpoint or not self.output_dir:
            raise UserError("--checkpoint FOLDER and --output_dir FOLDER are required")
        if self.int8 and self.fp16:
            raise UserError("--int8 and --fp16 cannot be combined; export two folders")
        if self.to != "onnx" and (self.int8 or self.fp16):
            raise UserError(f"--int8 and --fp16 need --to onnx, but this is --to {self.to}")
        check_values(self)

    @property
    def kind(self) -> str:
        return "int8" if self.int8 else "fp16" if self.fp16 else "fp32"


def export(config: ExportConfig) -> None:
    """Exports a checkpoint. Writes nothing unless all checks pass."""
    from tools.export import card, graph

    get_logger()
    if config.to == "onnx":
        graph.require_packages()
    folder = Path(config.output_dir)
    require_own_folder(folder)
    require_checkpoint(Path(config.checkpoint))
    trainer, featurizer, data = load(config)
    replace_folder(
        folder,
        lambda temporary: write(temporary, config, trainer, featurizer, data),
        owns=require_own_folder,
        unharmed="an earlier export is unchanged",
    )
    size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    if config.push_to_hub:
        print(f"uploaded to {card.push(folder, config.push_to_hub, config.public, config.model_hub)}")
    print(f"wrote {folder} ({config.kind}, {size:.1f} MB); {use_of(folder, config.to)}")


def write(
    folder: Path, config: ExportConfig, trainer: "Trainer", featurizer: "Featurizer", data: "MyDataset | None"
) -> None:
    """Writes an export to a folder and checks it on dev."""
    from tools.export import card, graph, to_transformers

    if config.to == "onnx":
        fill(folder, config, trainer, featurizer, data)
    else:
        assert data is not None  # `load` requires it
        to_transformers.write(folder, config.to, graph.prepare(trainer.model), featurizer, data)
        write_json(folder / MARK, {"to": config.to, "checkpoint": Path(config.checkpoint).name})
    card.write_card(folder, config.to, Path(config.checkpoint), featurizer.tasks)


def load(config: ExportConfig) -> "tuple[Trainer, Featurizer, MyDataset | None]":
    """Loads the Trainer and Featurizer of the checkpoint, and the dev split if there is one."""
    import torch

    from data_loader import MyDataset
    from main import load_trained
    from preprocess.schema import check_same_labels

    checkpoint = Path(config.checkpoint)
    options = Config(device="cpu", precision="fp32", pretrain_model_path=config.pretrain_model_path)
    trainer, featurizer = load_trained(checkpoint, options, torch.device("cpu"))
    trainer.model.float()  # undoes --load_dtype bf16; the export computes in fp32
    trained = Config.load(checkpoint / "args.json")
    data_path = Path(config.data_path) if config.data_path else trained.data_dir
    if config.data_path or (data_path / "labels.json").exists():
        check_same_labels(data_path, trainer.tasks)
        if (data_path / "dev.jsonl").exists():
            return trainer, featurizer, MyDataset(data_path / "dev.jsonl", featurizer)
    if config.kind != "fp32" or config.to != "onnx":
        flag = f"--to {config.to}" if config.kind == "fp32" else f"--{config.kind}"
        raise UserError(f"{flag}: {data_path} has no dev split for the comparison; pass another --data_path")
    logger.warning(f"{data_path}: no dev split, so the export is not checked; pass --data_path to check it")
    return trainer, featurizer, None


def fill(
    folder: Path, config: ExportConfig, trainer: "Trainer", featurizer: "Featurizer", data: "MyDataset | None"
) -> None:
    """Writes the files of an ONNX export."""
    import metrics
    from data_loader import MyDataLoader, MyDataset
    from tools.export import compare, graph, settings, shrink

    expected = trainer.infer(MyDataLoader(data, trainer.config.eval_batch_size), "dev in torch")[0] if data else None
    settings.write_settings(folder, trainer.model, featurizer)
    for name, path in CODE.items():
        (folder / name).write_text(exported_code(path), encoding="utf-8", newline="\n")
    shutil.copyfile(Path(__file__).parent / "predictor_requirements.txt", folder / "requirements.txt")
    inputs = graph.example_inputs(featurizer, lambda examples: MyDataset(examples, featurizer).batch([0, 1]))
    graph.write_graph(graph.prepare(trainer.model), inputs, folder / "model.onnx")
    if not data or not expected:
        return
    predictor = compare.load_predictor(folder)
    compare.require_same(predictor, expected, compare.predict(predictor, data))
    if config.kind == "fp32":
        return
    drops: dict[str, float] = {}
    for method in shrink.versions(folder / "model.onnx", config.kind, lambda: compare.inputs_of(predictor, data)):
        labels = compare.predict(compare.load_predictor(folder), data)[0]
        drops[method] = drop_of_score(method, trainer.tasks, data, expected.labels, labels)
        if not drops[method] > config.max_drop:
            return
    listed = ", ".join(f"{drop:.4f} ({method})" for method, drop in drops.items())
    limit = f"{listed}, more than --max_drop {config.max_drop:g}"
    metric = metrics.default_monitor(trainer.tasks)
    raise UserError(f"--{config.kind} lowers {metric} on dev by {limit}; nothing was written")


def exported_code(path: Path) -> str:
    """Returns the source of a module, with imports such as `from engine.task.words` as `from predictor_words`."""
    imported = r"^from (?:engine|tools\.export)[\w.]*\.(\w+) import"
    return re.sub(imported, r"from predictor_\1 import", path.read_text(encoding="utf-8"), flags=re.MULTILINE)


def use_of(folder: Path, to: str) -> str:
    """Returns the command or expression that loads an export."""
    if to == "onnx":
        return f"python {folder}/predictor.py texts.txt labelled.jsonl"
    if to == "sentence-transformers":
        return f'SentenceTransformer("{folder}")'
    words = "TokenClassification" in read_json(folder / "config.json")["architectures"][0]
    return f'pipeline("{"token" if words else "text"}-classification", model="{folder}")'


def drop_of_score(
    method: str, tasks: dict[str, Any], data: "MyDataset", before: dict[str, list], after: dict[str, list]
) -> float:
    """Logs the dev scores before and after a graph was made smaller. Returns the drop of the main score."""
    import metrics

    gold = {name: [data[i].get(name) for i in range(len(data))] for name in tasks}
    scores = [metrics.score(tasks, gold, labels) for labels in (before, after)]
    for name in metrics.main_scores(tasks):
        if name in scores[0]:
            old, new = (side[name] for side in scores)
            logger.info(f"dev {name}: {old:.4f} in fp32, {new:.4f} in {method} ({new - old:+.4f})")
    name = metrics.default_monitor(tasks)
    return scores[0][name] - scores[1][name]


def require_own_folder(folder: Path) -> None:
    """Raises UserError if the output folder is a file or contains files other than an unchanged export."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: is not a folder; choose an empty or new folder")
    inside = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    changed = verify(folder) if inside & {MARK, "README.md"} else None
    if changed and (MARK in inside or changed.startswith("README.md")):
        raise UserError(f"--output_dir {folder}: {changed}; choose an empty or new folder")
    compiled = tuple(name.removesuffix("py") for name in CODE)  # compiled when a program imports the predictor
    inside |= {path.name for path in folder.glob("__pycache__/*") if not path.name.startswith(compiled)}
    known = read_json(folder / "manifest.json", {str: str}) if MARK in inside else NAMES
    unknown = inside - {name.partition("/")[0] for name in known} - {"manifest.json", "__pycache__", TEMPORARY}
    if unknown or (inside and not inside & {"predictor.json", MARK}):
        names = ", ".join(sorted(unknown or inside)[:5])
        raise UserError(f"--output_dir {folder}: contains other files ({names}); choose an empty or new folder")


def require_checkpoint(folder: Path) -> None:
    """Raises UserError for a run folder, or for a checkpoint with a tokenizer that cannot be exported."""
    best = folder / "checkpoints/best"
    if best.is_dir():
        raise UserError(f"--checkpoint {folder} is a run folder; use its checkpoint {best}")
    has_options = (folder / "args.json").exists()
    if has_options and not (folder / "tokenizer.json").exists() and Config.load(folder / "args.json").encoder != "none":
        raise UserError(f"{folder}: has a slow tokenizer without tokenizer.json; train with a fast tokenizer")


if __name__ == "__main__":
    sys.exit(run_command(export, ExportConfig))
