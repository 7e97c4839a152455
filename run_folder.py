"""The run folder: one run each, one process at a time, never overwritten by mistake, and no trace of a run that never began.

Edit here when a run should be named, claimed or refused differently.
"""

import shutil
from contextlib import contextmanager, suppress
from dataclasses import asdict

from filelock import FileLock, Timeout

from config import Config, UserError
from logging_config import close_log

# Options that may differ when a run is resumed: they do not change the result. All others must be what they were.
FREE = {
    *(
        "do_train",
        "do_eval",
        "do_predict",
        "resume",
        "force_resume",
        "debug",
        "output_dir",
        "model_version",
        "log_output_path",
        "log_output_file",
    ),
    *("checkpoint", "predict_file", "predict_output", "text_column", "text_pair_column", "encoding"),
    *("num_workers", "log_steps", "save_epoch", "save_steps", "device"),
}


class Interrupted(Exception):
    """A signal came, and everything is saved. `signal_number` says which it was."""

    def __init__(self, signal_number):
        super().__init__(signal_number)
        self.signal_number = signal_number


@contextmanager
def locked(config):
    """`with locked(config) as run_dir:` — the folder exists, can be written, is ours alone, and holds no other run."""
    run_dir = config.run_dir
    made = [path for path in (run_dir, *run_dir.parents) if not path.exists()]
    lock = FileLock(run_dir / ".lock")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=3)  # the workers of a run that was killed let go a moment after it
    except Timeout:
        raise UserError(f"{run_dir} is in use by another process; wait for it, or name another run with --model_version") from None
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
        differ = differences(Config.load(args), config)
        if differ and not config.force_resume:
            raise UserError(f"{run_dir} cannot be resumed with other options: {'; '.join(differ)} (--force_resume goes on all the same)")


def differences(before, now):
    """['lr was 0.001, is 0.01', …] of the options that change the result. More epochs change nothing under a constant rate."""
    same_course = now.scheduler == "constant" and now.warmup_epochs is not None and not (now.use_awp or now.use_swa)
    free = FREE | ({"epochs"} if same_course and now.epochs >= before.epochs else set())
    before, now = asdict(before), asdict(now)
    return [f"{name} was {before[name]!r}, is {now[name]!r}" for name in now if name not in free and before[name] != now[name]]
