"""Loads the models of a server, and reloads folders that have changed without downtime. The old model handles requests
until the new one is ready, and remains in use if the new one cannot be loaded."""

import asyncio
import hashlib
import importlib
import os
import sys
import threading
import time
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

from engine.run.flags import one_line
from tools.serve.batcher import Batcher, Row, labeller
from tools.serve.metrics import Metrics

IMPORTING = threading.Lock()  # held while sys.path and sys.modules are changed
OLD = "was exported by an earlier version, without this option; export the model again"


class ModelError(ValueError):
    """Raised for a folder that cannot be loaded, with a one-line message."""


class InvalidText(ValueError):
    """Raised for a text that a model cannot label."""


class Loaded(NamedTuple):
    """A loaded model with its queue of texts. stamp: result of `stamp_of` when the folder was loaded. sha256: hash of
    the manifest. since: time of loading."""

    predictor: Any
    input_error: type[Exception]
    batcher: Batcher
    stamp: str
    sha256: str
    since: float


def import_predictor(folder: Path) -> Any:
    """Imports predictor.py and its modules from an exported folder. Folders may contain different versions of them."""
    with IMPORTING:
        before, path = forget_predictors(), sys.path.copy()
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
        try:
            return importlib.import_module("predictor")
        finally:
            sys.path[:] = path
            forget_predictors()
            sys.modules.update(before)


def forget_predictors() -> dict[str, Any]:
    names = [name for name in sys.modules if name == "predictor" or name.startswith("predictor_")]
    return {name: sys.modules.pop(name) for name in names}


def stamp_of(folder: Path) -> str:
    """Returns a string that changes if files in the folder change: their names, sizes, modification times and inodes.
    Returns "" if the folder has no manifest."""
    try:
        files = sorted((entry.name, entry.stat()) for entry in os.scandir(folder) if entry.is_file())
    except OSError:
        return ""
    states = [(name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in files]
    return str(states) if "manifest.json" in dict(files) else ""


def sha256_of(folder: Path) -> str:
    """Returns the hash of a folder's manifest, which contains the hashes of all files."""
    return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()


def load(folder: Path, options: Namespace, metrics: Metrics) -> Loaded:
    """Loads an exported folder and warms up the model. Raises ModelError."""
    if not (folder / "predictor.py").is_file():
        advice = "create one: python -m tools.export --checkpoint … --output_dir …"
        raise ModelError(f"{folder}: no exported model; {advice}")
    stamp = stamp_of(folder)
    try:
        module = import_predictor(folder)
    except ImportError as error:
        raise ModelError(f"{error.name} is not installed; pip install -r {folder}/requirements.txt") from None
    more = {} if options.provider == "auto" else {"provider": options.provider}
    try:
        predictor = module.Predictor(folder, options.threads or None, options.abstain_below, **more)
    except TypeError:
        raise ModelError(f"--provider {options.provider}: {folder} {OLD}") from None
    except module.InputError as error:
        raise ModelError(str(error)) from None
    label = labeller(predictor, options.batch_size, module.InputError)
    batcher = Batcher(label, options.batch_size, options.max_queue, options.max_latency_ms / 1000, metrics)
    batcher.warm_up(example_row(predictor))
    if stamp_of(folder) != stamp:  # it may have read both old and new files
        raise ModelError(f"{folder}: was replaced while it was being loaded")
    return Loaded(predictor, module.InputError, batcher, stamp, sha256_of(folder), time.time())


def example_row(predictor: Any) -> Row:
    """Returns a row with all inputs that the model needs, for warming up."""
    row: dict[str, Any] = {"text": "a text of about ten words to warm up"}
    if predictor.encode.pairs:
        row["text_pair"] = "and a second text"
    words = row["text"].split()
    row["extras"] = {}
    for field in predictor.encode.fields.values():
        row["extras"] |= field.example(len(words))
        row |= {"tokens": words} if field.level == "words" else {}
    return row


class Model:
    """A named model, loaded from a folder. current: the loaded version that handles new requests."""

    def __init__(self, name: str, folder: Path, options: Namespace, metrics: Metrics) -> None:
        self.name, self.folder, self.options, self.metrics = name, folder, options, metrics
        self.current = load(folder, options, metrics)
        self.tasks: dict[Batcher, asyncio.Task] = {}
        self.failed = ""  # stamp of a version that could not be loaded and is not tried again
        self.reloading = asyncio.Lock()

    def start(self, batcher: Batcher) -> None:
        self.tasks[batcher] = asyncio.create_task(batcher.run())

    async def reload(self) -> None:
        """Reloads the folder. The old model finishes the requests that it has accepted."""
        async with self.reloading:
            loop, stamp = asyncio.get_running_loop(), stamp_of(self.folder)
            try:
                new = await loop.run_in_executor(None, load, self.folder, self.options, self.metrics)
            except Exception as error:  # the folder is damaged, or is still being written
                self.failed = stamp
                return print(one_line(f"{self.name}: not reloaded, the old model remains in use: {error}"), flush=True)
            self.start(new.batcher)
            old, self.current = self.current, new
            print(f"{self.name}: reloaded {self.folder}", flush=True)
        while old.batcher.waiting or old.batcher.running:
            await asyncio.sleep(0.05)
        self.tasks.pop(old.batcher).cancel()
        old.batcher.thread.shutdown(wait=False)

    async def reload_if_changed(self) -> None:
        stamp = stamp_of(self.folder)
        if stamp and stamp not in (self.current.stamp, self.failed):
            await self.reload()

    async def ask(self, current: Loaded, rows: list[Row]) -> list[Any]:
        """Returns the predictions for rows that passed `check`. Raises InvalidText and Busy."""
        try:
            return await current.batcher.ask(rows)
        except current.input_error as error:
            raise InvalidText(str(error)) from None

    def check(self, current: Loaded, row: Row, where: str) -> None:
        """Raises InvalidText if a row is invalid. Called before the row is batched with rows of other requests."""
        try:
            current.predictor.encode.example(row, where)
        except current.input_error as error:
            raise InvalidText(str(error)) from None


def models_of(words: list[str], options: Namespace, metrics: Metrics) -> dict[str, Model]:
    """Loads models given as FOLDER or NAME=FOLDER. Returns {name: Model}. Raises ModelError."""
    models: dict[str, Model] = {}
    for word in words:
        name, is_named, folder = word.partition("=")
        path = Path(folder if is_named and not Path(word).exists() else word)
        name = name if is_named and not Path(word).exists() else path.resolve().name
        if name in models:
            raise ModelError(f"two models are named {name}; choose names with NAME={path}")
        models[name] = Model(name, path, options, metrics)
    return models
