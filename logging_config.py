"""One logger for the whole program: console and file, each message once.

Edit here when you want another format, another destination or quieter libraries.
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
