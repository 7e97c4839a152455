"""Labels text that you type with the best checkpoint of a run, on a local web page or in the terminal.

pip install -r tools/demo/requirements.txt
python -m tools.demo --model_version sample               # a page at http://127.0.0.1:8000
python -m tools.demo --model_version sample --terminal    # no extra dependencies
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from config import Config
from engine.errors import UserError
from engine.run.command_line import option, run_command
from engine.run.launch import is_launched
from engine.task.task import has_no_text
from logging_config import get_logger


@dataclass
class DemoConfig:
    """Options of `tools.demo`. Options with the same name as in main.py have the same meaning."""

    terminal: bool = option(False, "use a prompt in the terminal instead of a web page")
    address: str = option("127.0.0.1:8000", "address of the page; port 0 selects a free port")
    checkpoint: str = option("", "checkpoint folder (default: best of the run)", group="model")
    model_version: str = option("", "name of the run's folder in --output_dir (default: derived from the data)")
    output_dir: str = option("output", "folder of the runs")
    data_path: str = option(Config.data_path, "processed folder; the page shows examples from its test split")
    pretrain_model_path: str = option("", "path of the base model of a LoRA adapter, if it has moved")
    device: str = option("auto", "auto, cpu, cuda:0, mps, xpu, npu", group="machine")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto", "autocast to half precision; auto: as in training"
    )
    eval_batch_size: int = option(64, "texts per batch")
    report_language: Literal["auto", "en", "zh"] = option("auto", "language of the page; auto: that of the texts")

    def __post_init__(self) -> None:
        if is_launched():
            raise UserError("tools.demo runs in a single process; start it without torchrun")
        self.for_run()  # validates the options

    def for_run(self) -> Config:
        """Returns the options of main.py for loading the checkpoint."""
        names = {field.name for field in dataclasses.fields(Config)}
        return Config(do_predict=True, **{name: value for name, value in vars(self).items() if name in names})


def main(config: DemoConfig) -> int:
    from data_loader import MyDataLoader, MyDataset
    from engine.run.device import to_device
    from main import load_trained
    from tools.demo.prompt import run_prompt
    from tools.demo.typed import Examples, Labeller

    get_logger()
    if not config.terminal:
        try:
            from tools.demo.page import listen, run_demo
        except ImportError as error:
            advice = "pip install -r tools/demo/requirements.txt, or use --terminal, which has no extra dependencies"
            raise UserError(f"the page needs the package {error.name}; {advice}") from None
        listening = listen(config.address)
    options, size = config.for_run(), config.eval_batch_size
    best = Path(config.checkpoint or options.run_dir / "checkpoints/best")
    trainer, featurizer = load_trained(best, options, to_device(config.device))
    if has_no_text(trainer.tasks):
        raise UserError(f"{best}: the model has no text input; label rows with main.py --predict_file")
    label = Labeller(trainer, lambda e: MyDataLoader(MyDataset(e, featurizer, quiet=True), size))
    if config.terminal:
        return run_prompt(label)
    examples = Examples([options.data_dir, Config.load(best / "args.json").data_dir], trainer.tasks)
    return run_demo(label, examples, listening, config.address, config.report_language)


if __name__ == "__main__":
    sys.exit(run_command(main, DemoConfig))
