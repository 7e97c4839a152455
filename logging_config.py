"""The program's logger, which writes each message once to console and file, and the trackers that plot a run's curves.

Edit here to change the format or the destination, to silence libraries, or to add a tracker: one class with the methods
of `TensorBoard`, added to TRACKERS.
"""

import logging
import platform
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from config import Config
from engine.run.command_line import VERSION, printable
from engine.run.run_folder import close_log

FORGED = re.compile(
    r"\n(?=(\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d)"
)  # a line in a message that looks like the start of a record


class OneRecord(logging.Formatter):
    """Escapes control characters in a record, and indents lines that look like the start of another record."""

    def format(self, record: logging.LogRecord) -> str:
        return FORGED.sub("\n    ", printable(super().format(record)))


class LogFile(logging.FileHandler):
    """A log file that begins with the version, the command and `about`. If it cannot be written, the run ends with one
    line instead of a traceback for each message."""

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
        with suppress(OSError):  # the rest of the buffer does not fit on the disk either
            super().close()


class TqdmHandler(logging.StreamHandler):
    """Writes above a running progress bar instead of through it; `about` before the first message."""

    about: Sequence[str] = ()

    def emit(self, record: logging.LogRecord) -> None:
        lines, self.about = self.about, ()
        for line in lines:
            tqdm.write(self.format(logging.makeLogRecord({"msg": line})), file=sys.stderr)
        tqdm.write(self.format(record), file=sys.stderr)


def get_logger(
    log_path: str | Path | None = None, level: int = logging.INFO, about: Sequence[str] = ()
) -> logging.Logger:
    """The project's logger. Calling it again changes its file or level, but adds no second handler of the same kind.

    log_path: file to append to (its folder is created), or None to keep the current log file. about: lines to write
    before the first message, so that a command that ends in an error at once prints only that.
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


def about_environment(device: Any, wanted: str) -> list[str]:
    """Versions and device; also why a GPU is not used, unless --device (`wanted`) says so."""
    import torch

    from engine.run.device import describe
    from engine.run.environment import gpu_problem, version_of

    versions = (
        f"torch {torch.__version__}, transformers {version_of('transformers')}, Python {platform.python_version()}"
    )
    lines = [f"template {VERSION}, {versions}; {describe(device)}, {torch.get_num_threads()} threads"]
    if wanted == "auto" and device.type == "cpu" and (problem := gpu_problem()):
        lines.append(f"this run uses the CPU: {problem}")
    return lines


class TensorBoard:
    """Curves for `tensorboard --logdir output`."""

    def __init__(self, config: Config, step: int):
        """step: optimizer steps done; a resumed run overwrites later points of the curves."""
        from torch.utils.tensorboard import SummaryWriter  # here, as it takes a second, which would delay --help

        self.writer = SummaryWriter(config.run_dir / "tensorboard", purge_step=step + 1)

    def log(self, record: dict[str, float]) -> None:
        """record: {"step", "epoch", name: number}, like a line of metrics.jsonl."""
        for name, value in record.items():
            if name not in ("step", "epoch"):
                self.writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self.writer.close()


TRACKERS = [TensorBoard]
