"""The run folder: one run each, one process at a time, never overwritten by mistake, and no trace of a run that never began.

Edit here when a run should be named, claimed or refused differently.
"""

import json
import logging
import shutil
from contextlib import contextmanager, suppress

from filelock import FileLock, Timeout

from engine.command_line import UserError


class Interrupted(Exception):
    """A signal came, and everything is saved. `signal_number` says which it was."""

    def __init__(self, signal_number):
        super().__init__(signal_number)
        self.signal_number = signal_number


def close_log():
    """Lets go of the log file, if there is one."""
    logger = logging.getLogger("template")
    for handler in [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]:
        logger.removeHandler(handler)
        handler.close()


@contextmanager
def claim_run_dir(config):
    """`with claim_run_dir(config) as run_dir:` — the folder exists, can be written, is ours alone, and holds no other run."""
    run_dir = config.run_dir
    made = [path for path in (run_dir, *run_dir.parents) if not path.exists()]
    lock = FileLock(run_dir / ".lock")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=3)  # the workers of a run that was killed let go a moment after it
    except Timeout:
        raise UserError(
            f"{run_dir} is in use by another process; wait for it, or name another run with --model_version"
        ) from None
    except OSError as error:
        raise UserError(f"{run_dir} cannot be written ({error.strerror}); choose another --output_dir") from None
    try:
        if config.do_train:
            refuse_other_run(config, run_dir)
        yield run_dir
    except (UserError, OSError):
        if made and not (run_dir / "args.json").exists():
            close_log()
            shutil.rmtree(run_dir)
            with suppress(OSError):  # of the folders above, those that we made and that are empty
                for path in made[1:]:
                    path.rmdir()
        raise
    finally:
        lock.release()


def refuse_other_run(config, run_dir):
    """UserError if the folder holds a run, unless it is to be resumed with the same options. A rehearsal starts anew."""
    args = run_dir / "args.json"
    if config.debug:
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
    elif args.exists():
        if not config.resume:
            raise UserError(
                f"{run_dir} already holds a run: add --resume to go on with it, choose another --model_version, or remove the folder"
            )
        differ = config.differences(json.loads(args.read_text(encoding="utf-8")))
        if differ and not config.force_resume:
            raise UserError(
                f"{run_dir} cannot be resumed with other options: {'; '.join(differ)} (--force_resume goes on all the same)"
            )
