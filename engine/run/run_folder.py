"""The run folder: one run each, one process at a time, never overwritten by mistake."""

import dataclasses
import logging
import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, get_args, get_origin

from filelock import FileLock, Timeout

from engine.errors import UserError
from engine.run.command_line import VERSION, choices_of
from engine.run.files import write_json
from engine.run.launch import restarts
from engine.schema import AnyOf, Number, Optional, SchemaError, read_json, read_json_lines

logger = logging.getLogger("template")
EVALUATE = "evaluate the run again: python main.py --do_eval --model_version NAME"
GONE = {"interactive", "demo", "demo_address", "do_report", "compare"}  # options of before that no run depends on
SCORES = {str: Number}  # of a part, in eval.json
AUTO = {
    "epochs": -1,
    "early_stop_patience": None,
    "precision": "auto",
    "ema_decay": None,
}  # see engine/train/automatic.py


def close_log():
    """Lets go of the log file, if there is one."""
    for handler in [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]:
        logger.removeHandler(handler)
        handler.close()


@contextmanager
def hold(lock_path, what, otherwise, elsewhere):
    """The folder of a lock file exists, can be written, and the lock is this process's alone.

    what: it stands for; otherwise, elsewhere: what to do if another process has it, or it cannot be written.
    """
    lock = FileLock(lock_path)
    try:
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        # The workers of a run that was killed let go a moment after it; so do processes that torchrun had started
        lock.acquire(timeout=60 if "TORCHELASTIC_RUN_ID" in os.environ else 3)
    except Timeout:
        raise UserError(f"{what} is in use by another process; wait for it, or {otherwise}") from None
    except OSError as error:
        raise UserError(f"{what} cannot be written ({error.strerror}); {elsewhere}") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def lock_folder(folder, advice):
    """The folder exists, can be written, and is this process's alone. advice: what to do if it cannot be had."""
    with hold(folder / ".lock", folder, advice, "choose another --output_dir"):
        yield folder


@contextmanager
def claim_run_dir(config):
    """`with claim_run_dir(config) as run_dir:` — the folder is locked, can be written, and holds no other run.

    Those that label a --shard each share it: they write only files of their own, which they lock, and its log.
    """
    run_dir = config.run_dir
    if config.shard:
        run_dir.mkdir(parents=True, exist_ok=True)
        yield run_dir
        return
    made = [path for path in (run_dir, *run_dir.parents) if not path.exists()]
    with lock_folder(run_dir, "name another run with --model_version"):
        try:
            if config.do_train:
                refuse_other_run(config, run_dir)
            yield run_dir
        except (UserError, OSError):
            if made and not (run_dir / "args.json").exists() and not any(run_dir.glob("*.partial")):
                close_log()
                shutil.rmtree(run_dir)
                with suppress(OSError):  # of the folders above, those that we made and that are empty
                    for path in made[1:]:
                        path.rmdir()
            raise


def refuse_other_run(config, run_dir):
    """UserError if the folder holds a run, unless it is to be resumed with the same options."""
    args = run_dir / "args.json"
    if config.debug:
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
    elif args.exists():
        if not config.resume and not restarts():
            raise UserError(
                f"{run_dir} already holds a run: add --resume to go on with it, choose another --model_version, "
                "or remove the folder"
            )
        changes = config.changes_since(read_options(args, type(config)))
        if changes and not config.force_resume:
            raise UserError(
                f"{run_dir} cannot be resumed with other options: {'; '.join(changes)} (--force_resume goes on "
                "all the same)"
            )


class SavedOptions:
    """What a dataclass of options inherits, so that a run's options can be kept in a file."""

    def save(self, path):
        """Writes the options as JSON."""
        write_json(path, self.kept())

    def kept(self) -> dict:
        """{name: value} of the options, with the version that they are of."""
        return {"version": VERSION} | dataclasses.asdict(self)

    @classmethod
    def load(cls, path):
        """Options as `save` wrote them. Those that this version no longer has are logged and left out.

        UserError for a value that the command line would refuse too.
        """
        values = {name: value for name, value in read_options(path, cls).items() if name not in GONE}
        unknown = sorted(set(values) - {option_field.name for option_field in dataclasses.fields(cls)})
        if unknown:
            gone = ", ".join(f"{name}={values[name]!r}" for name in unknown)
            logger.warning(f"{path}: these options no longer exist and are left out: {gone}")
        try:
            return cls(**{name: value for name, value in values.items() if name not in unknown})
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def read_options(path: str | Path, options: type) -> dict:
    """{option: value} of a file of options, written by any version. UserError if one has another type than its field of
    the dataclass."""
    shape = {Optional(f.name): shape_of(f) for f in dataclasses.fields(options)} | {Optional("version"): str}
    try:
        values = read_json(path, shape)
        values.pop("version", None)
        return values
    except SchemaError as error:
        raise UserError(f"{error}; the file was edited or is damaged") from None


def read_result(path: str | Path, shape: Any, advice: str = EVALUATE) -> Any:
    """What a JSON file of a run folder holds. UserError with this advice if it has not this shape."""
    try:
        return read_json(path, shape)
    except SchemaError as error:
        raise UserError(f"{error}; {advice}") from None


def read_result_lines(path: str | Path, shape: Any) -> list:
    """The rows of a .jsonl file of a run folder. UserError if one has not this shape."""
    try:
        return list(read_json_lines(path, shape))
    except SchemaError as error:
        raise UserError(f"{error}; {EVALUATE}") from None


def shape_of(option_field: dataclasses.Field) -> Any:
    """The shape of an option's value in JSON, by its annotation and its choices."""
    if choices := choices_of(option_field):
        return AnyOf(*choices)
    kinds = get_args(option_field.type) or (option_field.type,)
    if get_origin(option_field.type) is tuple:
        return [str]
    return AnyOf(*(None if kind is type(None) else kind for kind in kinds))


def changed_options(before, now, resume_safe):
    """['lr was 0.001, is 0.01', …] of the options, both {name: value}, that must be what they were."""
    gone = [f"{name} was {before[name]!r}, which no longer exists" for name in sorted(before.keys() - now.keys())]
    return gone + [
        f"{name} was {before.get(name)!r}, is {now[name]!r}"
        for name in now
        if name not in resume_safe and before.get(name) != now[name]
    ]
