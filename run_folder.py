"""The run folder: one run each, one process at a time, and never overwritten by mistake.

Edit here when a run should start, stop or be named differently.
"""

import json
import os
import shutil
import sys
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout

from config import Config, UserError

# Options that may differ when a run is resumed: they do not change the result. All others must be what they were.
FREE = {"do_train", "do_eval", "do_predict", "resume", "debug", "output_dir", "model_version", "log_output_path", "log_output_file", "checkpoint",
        "predict_file", "predict_output", "text_column", "text_pair_column", "num_workers", "eval_batch_size", "log_steps", "save_epoch", "save_steps", "device"}


@contextmanager
def locked(config):
    """`with locked(config) as run_dir:` — the folder exists, can be written, is ours alone, and holds no other run."""
    run_dir = config.run_dir
    if not (config.do_train or config.do_eval or config.do_predict):
        raise UserError("nothing to do: add --do_train, --do_eval or --do_predict")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(run_dir / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{run_dir} is in use by another process; wait for it, or name another run with --model_version") from None
    except OSError as error:
        raise UserError(f"{run_dir} cannot be written ({error.strerror}); choose another --output_dir") from None
    try:
        if config.do_train:
            claim(config, run_dir)
        yield run_dir
    finally:
        lock.release()


def claim(config, run_dir):
    """Makes the folder this run's: refuses one that holds a run, unless it is to be resumed with the same options."""
    args = run_dir / "args.json"
    if config.debug:
        for path in (run_dir / "checkpoints", run_dir / "tensorboard"):
            shutil.rmtree(path, ignore_errors=True)
    elif args.exists():
        if not config.resume:
            raise UserError(f"{run_dir} already holds a run: add --resume to go on with it, choose another --model_version, or remove the folder")
        before, now = asdict(Config.load(args)), asdict(config)
        differ = [f"{name} was {before[name]!r}, is {now[name]!r}" for name in now if name not in FREE and before[name] != now[name]]
        if differ:
            raise UserError(f"{run_dir} cannot be resumed with other options: {'; '.join(differ)}")
    config.save(args)
