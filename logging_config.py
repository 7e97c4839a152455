"""One logger for the whole program, console and file, each message once; and the trackers that draw a run's curves.

Edit here when you want another format, another destination or quieter libraries; or another tracker: one class with the
methods of `TensorBoard`, and its place in TRACKERS.
"""

import logging
import sys
from pathlib import Path

from tqdm import tqdm

from engine.run_folder import close_log


class TqdmHandler(logging.StreamHandler):
    """Writes above a running progress bar instead of through it."""

    def emit(self, record):
        tqdm.write(self.format(record), file=sys.stderr)


def get_logger(log_path=None, level=logging.INFO):
    """The project's logger. Calling it again changes its file or level; it never adds a second handler of a kind.

    log_path: file to append to (its folder is made), or None to leave the files as they are.
    """
    logger = logging.getLogger("template")
    logger.setLevel(level)
    logger.propagate = False
    if not any(isinstance(handler, TqdmHandler) for handler in logger.handlers):
        console = TqdmHandler()
        console.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(console)
    if log_path is not None:
        close_log()
        Path(log_path).parent.mkdir(parents=True, exist_ok=True)
        to_file = logging.FileHandler(log_path, encoding="utf-8", delay=True)
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(to_file)
    return logger


class TensorBoard:
    """Curves for `tensorboard --logdir output`."""

    def __init__(self, config, step):
        """config: the run's options. step: optimizer steps done, if a run goes on; what came later is drawn anew."""
        from torch.utils.tensorboard import SummaryWriter  # here, as it takes a second that --help need not wait for

        self.writer = SummaryWriter(config.run_dir / "tensorboard", purge_step=step + 1)

    def log(self, record):
        """record: {"step", "epoch", name: number}, as a line of metrics.jsonl."""
        for name, value in record.items():
            if name not in ("step", "epoch"):
                self.writer.add_scalar(name, value, record["step"])

    def close(self):
        self.writer.close()


TRACKERS = [TensorBoard]
