"""The program's logger, which writes to the console and a file, and the experiment trackers.

Edit this file to change the log format or destination, to silence libraries, or to add a tracker: a class with the
methods of `TensorBoard`, added to TRACKERS.
"""

import importlib.util
import logging
import os
import platform
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from config import Config
from engine.errors import UserError
from engine.run.command_line import VERSION
from engine.run.field_flags import similar
from engine.run.flags import printable
from engine.run.run_folder import close_log
from engine.train.tracking import saved_id

PROJECT = "fine-tuning"  # default project name for wandb, SwanLab and MLflow
FORGED = re.compile(r"\n(?=(\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d)")  # starts a line that looks like a new record


class OneRecord(logging.Formatter):
    """Formatter that escapes control characters, and indents lines that look like the start of another record."""

    def format(self, record: logging.LogRecord) -> str:
        return FORGED.sub("\n    ", printable(super().format(record)))


class LogFile(logging.FileHandler):
    """Log file that begins with the version, the command and `about`. If it cannot be written, the run ends with a
    one-line error, instead of a traceback per message."""

    about: Sequence[str] = ()

    def emit(self, record: logging.LogRecord) -> None:
        if self.stream is None:  # not opened yet
            for line in (f"version {VERSION}: {' '.join(sys.argv)}", *self.about):
                super().emit(logging.makeLogRecord({"msg": line, "levelname": "INFO"}))
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            return super().handleError(record)
        logging.getLogger("template").removeHandler(self)
        raise OSError(error.errno, error.strerror, self.baseFilename) from None

    def close(self) -> None:
        with suppress(OSError):  # on a full disk, the buffer cannot be flushed
            super().close()


class TqdmHandler(logging.StreamHandler):
    """Console handler that writes above a running progress bar. Writes `about` before the first message."""

    about: Sequence[str] = ()

    def emit(self, record: logging.LogRecord) -> None:
        lines, self.about = self.about, ()
        for line in lines:
            tqdm.write(self.format(logging.makeLogRecord({"msg": line})), file=sys.stderr)
        tqdm.write(self.format(record), file=sys.stderr)


def get_logger(
    log_path: str | Path | None = None, level: int = logging.INFO, about: Sequence[str] = ()
) -> logging.Logger:
    """Returns the project's logger. Further calls change its file or level, but never add a second console handler.

    log_path: file to append to (its folder is created), or None to keep the current log file. about: lines to write
    before the first message; a command that fails before it logs anything prints only the error.
    """
    logger = logging.getLogger("template")
    logger.setLevel(level)
    logger.propagate = False
    if not any(isinstance(handler, TqdmHandler) for handler in logger.handlers):
        console = TqdmHandler()
        console.setFormatter(OneRecord("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(console)
    if log_path is not None:
        close_log()
        Path(log_path).parent.mkdir(parents=True, exist_ok=True)
        to_file = LogFile(log_path, encoding="utf-8", errors="backslashreplace", delay=True)
        to_file.setFormatter(OneRecord("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(to_file)
    for handler in logger.handlers if about else ():
        if isinstance(handler, TqdmHandler | LogFile):
            handler.about = about
    return logger


def about_environment(device: Any, requested: str) -> list[str]:
    """Returns log lines with the versions and the device. requested: --device; if auto, says why no GPU is used."""
    import torch

    from engine.run.device import describe
    from engine.run.environment import gpu_problem, version_of

    versions = (
        f"torch {torch.__version__}, transformers {version_of('transformers')}, Python {platform.python_version()}"
    )
    lines = [f"template {VERSION}, {versions}; {describe(device)}, {torch.get_num_threads()} threads"]
    if requested == "auto" and device.type == "cpu" and (problem := gpu_problem()):
        lines.append(f"this run uses the CPU: {problem}")
    return lines


class TensorBoard:
    """Logs to the run folder, for `tensorboard --logdir output`."""

    name = package = "tensorboard"  # name in --report_to, and package to install; trackers without a name are always on
    overwrites = True  # a resumed run can log a step again; with other trackers, each step is logged only once

    def __init__(self, config: Config, step: int):
        """Opens the log of a run. step: number of finished optimizer steps."""
        from torch.utils.tensorboard import SummaryWriter  # here, because the import takes a second

        self.writer = SummaryWriter(config.run_dir / "tensorboard", purge_step=step + 1)

    def log(self, record: dict[str, float]) -> None:
        """Logs a record such as {"step": 10, "epoch": 1, name: value}, like a line of metrics.jsonl."""
        for name, value in scores_of(record).items():
            self.writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self.writer.close()


class WandB:
    """Logs to wandb.ai; with WANDB_MODE=offline, to the run folder until `wandb sync`."""

    name = package = "wandb"
    delay = 60  # seconds after which a record has certainly been sent

    def __init__(self, config: Config, step: int):
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=config.run_dir.name,
            dir=config.run_dir,
            id=saved_id(config.run_dir, self.name),
            resume="allow",
            settings=wandb.Settings(console="off"),
        )
        self.run.config.update(vars(config), allow_val_change=True)
        self.run.define_metric("*", step_metric="step")  # wandb's own step would drop the second record of a step

    def log(self, record: dict[str, float]) -> None:
        self.run.log(record)

    def close(self) -> None:
        self.run.finish()


class SwanLab:
    """Logs to swanlab.cn; with SWANLAB_MODE=offline, to the run folder until `swanlab sync`."""

    name = package = "swanlab"
    delay = 60  # seconds after which a record has certainly been sent

    def __init__(self, config: Config, step: int):
        import swanlab

        self.run = swanlab.init(
            project=os.environ.get("SWANLAB_PROJECT", PROJECT),
            name=config.run_dir.name,
            log_dir=str(config.run_dir / "swanlab"),
            id=saved_id(config.run_dir, self.name),
            resume="allow",
            config=dict(vars(config)),
        )

    def log(self, record: dict[str, float]) -> None:
        self.run.log(scores_of(record), step=int(record["step"]))

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """Logs to MLFLOW_TRACKING_URI: a server, or by default sqlite:///mlflow.db in the current folder."""

    name = package = "mlflow"

    def __init__(self, config: Config, step: int):
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the default would block training for minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        import mlflow
        from mlflow.entities import Param

        self.client = mlflow.MlflowClient()
        project = mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)).experiment_id
        run_name = config.run_dir.name
        self.id = saved_id(
            config.run_dir, self.name, lambda: str(self.client.create_run(project, run_name=run_name).info.run_id)
        )
        if not self.client.get_run(self.id).data.params:  # parameters can be logged only once
            self.client.log_batch(self.id, params=[Param(name, str(value)) for name, value in vars(config).items()])
        self.client.update_run(self.id, status="RUNNING")

    def log(self, record: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now, step = int(time.time() * 1000), int(record["step"])
        self.client.log_batch(self.id, [Metric(name, value, now, step) for name, value in scores_of(record).items()])

    def close(self) -> None:
        self.client.set_terminated(self.id)


TRACKERS: list[Any] = [TensorBoard, WandB, SwanLab, MLflow]


def scores_of(record: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in record.items() if name not in ("step", "epoch")}


def is_installed(package: str) -> bool:
    """Returns whether a package is installed. A folder with its name, such as a tracker's output folder, does not
    count."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def chosen_trackers(config: Config, trackers: Sequence[Any] = TRACKERS) -> list[Any]:
    """Returns the trackers named in --report_to, and those without a name. With --debug, services are skipped.

    Raises UserError for unknown names, and for packages that are not installed.
    """
    named = {kind.name: kind for kind in (*TRACKERS, *trackers) if hasattr(kind, "name")}
    chosen = {name.strip().lower() for name in config.report_to.split(",")} - {""}
    for name in sorted(chosen - {"all", "none"}):
        if name not in named:
            raise UserError(
                f"--report_to={name} must be one of {', '.join(named)}, all, none{similar(name, named, '')}"
            )
        if not is_installed(named[name].package):
            raise UserError(f"--report_to={name} needs a package: pip install {named[name].package}")
    if "none" in chosen and len(chosen) > 1:
        raise UserError(f"--report_to={config.report_to}: none cannot be combined with other trackers")
    if "all" in chosen:
        chosen = {name for name, kind in named.items() if is_installed(kind.package)}
    if config.debug:
        chosen &= {"tensorboard"}
    return [kind for kind in trackers if getattr(kind, "name", None) in {*chosen, None}] if chosen - {"none"} else []
