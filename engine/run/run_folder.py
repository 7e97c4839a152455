"""The run folder: one run per folder, used by one process at a time, never overwritten by accident."""

import dataclasses
import logging
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args, get_origin

from filelock import FileLock, Timeout

from engine.errors import UserError
from engine.run.command_line import VERSION, choices_of
from engine.run.files import verify, write_json
from engine.run.launch import restarts
from engine.schema import AnyOf, Number, Optional, SchemaError, read_json, read_json_lines

if TYPE_CHECKING:
    from config import Config

logger = logging.getLogger("template")
EVALUATE = "evaluate the run again: python main.py --do_eval --model_version NAME"
REMOVED_OPTIONS = {"interactive", "demo", "demo_address", "do_report", "compare"}  # they did not affect a run
SCORES = {str: Number}  # scores of one split, in eval.json
# Not model.safetensors: AutoModel.from_pretrained would find no encoder weights in it (they have a prefix here), and
# return a randomly initialised model
WEIGHTS_FILE = "weights.safetensors"


def close_log() -> None:
    """Closes the log file, if there is one."""
    for handler in [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]:
        logger.removeHandler(handler)
        handler.close()


@contextmanager
def hold(lock_path: Path, what: str | Path, otherwise: str, elsewhere: str) -> Iterator[None]:
    """Holds a file lock, whose folder is created if needed.

    what: the protected path, for error messages. otherwise: advice if another process holds the lock. elsewhere:
    advice if the path is not writable.
    """
    lock = FileLock(lock_path)
    try:
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        # Workers of a killed run and processes started by torchrun release the lock a moment later
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
def lock_folder(folder: Path, advice: str) -> Iterator[Path]:
    """Holds the lock of a folder, and yields the folder. advice: what to do if another process holds the lock."""
    with hold(folder / ".lock", folder, advice, "choose another --output_dir"):
        yield folder


@contextmanager
def claim_run_dir(config: "Config") -> Iterator[Path]:
    """Locks the run folder and yields it. Raises UserError if it is in use, not writable, or contains another run.

    Processes that label different --shards share the folder: each locks its own files, and all append to the log.
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
                require_own_run(config, run_dir)
            yield run_dir
        except (UserError, OSError):
            if made and not (run_dir / "args.json").exists() and not any(run_dir.glob("*.partial")):
                close_log()
                shutil.rmtree(run_dir)
                with suppress(OSError):  # removes the parent folders that we made, if empty
                    for path in made[1:]:
                        path.rmdir()
            raise


def require_own_run(config: "Config", run_dir: Path) -> None:
    """Raises UserError if the folder contains a run, unless this command resumes it with the same options."""
    args = run_dir / "args.json"
    if config.debug:
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
    elif args.exists():
        if not config.resume and not restarts():
            raise UserError(
                f"{run_dir} already contains a run: add --resume to continue it, choose another --model_version, "
                "or remove the folder"
            )
        changes = config.changes_since(read_options(args, type(config)))
        if changes and not config.force_resume:
            raise UserError(
                f"{run_dir} cannot be resumed with other options: {'; '.join(changes)} (use --force_resume "
                "to resume it anyway)"
            )


class SavedOptions:
    """Base class of an options dataclass that saves a run's options to a file and loads them."""

    given: ClassVar[frozenset[str]] = frozenset()  # options set on the command line, even if to their defaults

    def save(self, path: str | Path) -> None:
        """Writes the options as JSON."""
        write_json(path, self.kept())

    @classmethod
    def auto_values(cls: Any) -> dict[str, Any]:
        """Returns {option: value that means auto} for the options that engine/train/automatic.py resolves."""
        return {
            f.name: f.metadata["auto"] for f in dataclasses.fields(cls) if f.metadata["auto"] is not dataclasses.MISSING
        }

    def is_auto(self: Any, name: str) -> bool:
        """Returns whether an option still has the value that means auto."""
        return bool(getattr(self, name) == self.auto_values()[name])

    def kept(self: Any) -> dict:
        """Returns {option: value} to save, with the current version."""
        return {"version": VERSION} | dataclasses.asdict(self)

    @classmethod
    def load(cls: Any, path: str | Path) -> Any:
        """Loads options written by `save`. Options that no longer exist are logged and ignored.

        Raises UserError for a value that the command line would also reject.
        """
        values = {name: value for name, value in read_options(path, cls).items() if name not in REMOVED_OPTIONS}
        unknown = sorted(set(values) - {option_field.name for option_field in dataclasses.fields(cls)})
        if unknown:
            gone = ", ".join(f"{name}={values[name]!r}" for name in unknown)
            logger.warning(f"{path}: these options no longer exist and are ignored: {gone}")
        try:
            return cls(**{name: value for name, value in values.items() if name not in unknown})
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def read_options(path: str | Path, options: type) -> dict:
    """Reads {option: value} from a saved args.json of any version. Raises UserError if a value has the wrong type."""
    shapes = {f.name: shape_of(f) for f in dataclasses.fields(options)}
    now = {alias: f.name for f in dataclasses.fields(options) for alias in f.metadata["aliases"]}  # {old name: new}
    shapes |= {alias: shapes[name] for alias, name in now.items()}
    try:
        values = read_json(path, {Optional(name): shape for name, shape in shapes.items()} | {Optional("version"): str})
        values.pop("version", None)
        return {now.get(name, name): value for name, value in values.items()}
    except SchemaError as error:
        raise UserError(f"{error}; the file was edited, is damaged, or was written by other code") from None


def checkpoint_of(path: str | Path, advice: str = "train it, or name another folder") -> Path:
    """Returns the checkpoint folder of a run, or the folder itself if it is a checkpoint.

    Raises UserError if there is no checkpoint, ending with `advice`, or if it is damaged.
    """
    path = Path(path)
    folder = path / "checkpoints/best" if (path / "checkpoints/best").is_dir() else path
    if not all((folder / f"{name}.json").is_file() for name in ("labels", "args")):
        raise UserError(f"{path}: neither a run with checkpoints/best nor a checkpoint; {advice}")
    if reason := verify(folder):
        raise UserError(f"{folder}: damaged checkpoint, {reason}; name another checkpoint, or train again")
    return folder


def weights_file(folder: Path) -> Path:
    """Returns the weights file of a checkpoint; earlier versions used the file name of transformers."""
    path = folder / WEIGHTS_FILE
    return path if path.exists() else path.with_name("model.safetensors")


def check_not_a_run(name: str | Path, sign: str) -> None:
    """Raises UserError if --pretrain_model_path names a run or a checkpoint. sign: "checkpoints" or "labels.json"."""
    if all((Path(name) / file).exists() for file in ("args.json", sign)):
        raise UserError(f"--pretrain_model_path {name}: a run or checkpoint of this template; use --init_from {name}")


def read_result(path: str | Path, shape: Any, advice: str = EVALUATE) -> Any:
    """Reads a JSON file in a run folder. Raises UserError, ending with `advice`, if it does not have this shape."""
    try:
        return read_json(path, shape)
    except SchemaError as error:
        raise UserError(f"{error}; {advice}") from None


def read_result_lines(path: str | Path, shape: Any) -> list:
    """Reads the rows of a .jsonl file in a run folder. Raises UserError if one does not have this shape."""
    try:
        return list(read_json_lines(path, shape))
    except SchemaError as error:
        raise UserError(f"{error}; {EVALUATE}") from None


def shape_of(option_field: dataclasses.Field) -> Any:
    """Returns the schema of an option's value in JSON, derived from its annotation and choices."""
    if choices := choices_of(option_field):
        return AnyOf(*choices)
    kinds = get_args(option_field.type) or (option_field.type,)
    if get_origin(option_field.type) is tuple:
        return [str]
    return AnyOf(*(None if kind is type(None) else kind for kind in kinds))


def changed_options(before: dict[str, Any], now: dict[str, Any], resume_safe: Collection[str]) -> list[str]:
    """Lists changed options that are not in resume_safe, as 'lr was 0.001, is 0.01'. before, now: {name: value}"""
    gone = [f"{name} was {before[name]!r}, which no longer exists" for name in sorted(before.keys() - now.keys())]
    return gone + [
        f"{name} was {before.get(name)!r}, is {now[name]!r}"
        for name in now
        if name not in resume_safe and before.get(name) != now[name]
    ]


def distinct(names: Sequence[str]) -> list[str]:
    """Adds numbers to names of runs that occur more than once."""
    return [f"{name} ({names[:i].count(name) + 1})" if name in names[:i] else name for i, name in enumerate(names)]
