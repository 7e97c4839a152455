"""The models of a server. A folder that has changed is loaded again while the server answers: until the new model is
ready, the old one answers, and goes on if the new one cannot be loaded. No request is lost."""

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

IMPORTING = threading.Lock()  # for sys.path and sys.modules
OLD = "was exported by an earlier version, without this option; export the model again"


class ModelError(ValueError):
    """Raised for a folder that cannot be loaded, with one line."""


class InvalidText(ValueError):
    """Raised for a text that a model cannot label."""


class Loaded(NamedTuple):
    """A model in memory, with the queue of its texts. stamp, sha256: of its folder and manifest when it was loaded"""

    predictor: Any
    input_error: type[Exception]
    batcher: Batcher
    stamp: str
    sha256: str
    since: float


def import_predictor(folder: Path) -> Any:
    """Imports predictor.py of an exported folder with the modules beside it, which may be of another version than those
    of other folders."""
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
    """Returns what changes with a folder's files, also while they are copied: their names, sizes and times, as text;
    "" without a manifest."""
    try:
        files = sorted((entry.name, entry.stat()) for entry in os.scandir(folder) if entry.is_file())
    except OSError:
        return ""
    found = [(name, about.st_size, about.st_mtime_ns, about.st_ino) for name, about in files]
    return str(found) if "manifest.json" in dict(files) else ""


def sha256_of(folder: Path) -> str:
    """Returns the hash of a folder's manifest, which has those of all its files."""
    return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()


def load(folder: Path, options: Namespace, metrics: Metrics) -> Loaded:
    """Loads an exported folder and labels a text with it. Raises ModelError."""
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
    batcher.warm_up(first_row(predictor))
    if stamp_of(folder) != stamp:  # some of its files may have been read before, and some after
        raise ModelError(f"{folder}: was replaced while it was loaded")
    return Loaded(predictor, module.InputError, batcher, stamp, sha256_of(folder), time.time())


def first_row(predictor: Any) -> Row:
    """Returns a row to begin with."""
    row: dict[str, Any] = {"text": "a text of ten words or so, to begin with"}
    if predictor.encode.pairs:
        row["text_pair"] = "and a second one"
    words = row["text"].split()
    row["extras"] = {}
    for field in predictor.encode.fields.values():
        row["extras"] |= field.example(len(words))
        row |= {"tokens": words} if field.level == "words" else {}
    return row


class Model:
    """A name for the model in a folder. `current` is what answers now."""

    def __init__(self, name: str, folder: Path, options: Namespace, metrics: Metrics) -> None:
        self.name, self.folder, self.options, self.metrics = name, folder, options, metrics
        self.current = load(folder, options, metrics)
        self.tasks: dict[Batcher, asyncio.Task] = {}
        self.failed = ""  # the stamp of what could not be loaded, which is not tried again
        self.reloading = asyncio.Lock()

    def start(self, batcher: Batcher) -> None:
        self.tasks[batcher] = asyncio.create_task(batcher.run())

    async def reload(self) -> None:
        """Loads the folder again, and lets the model in memory answer what it has accepted."""
        async with self.reloading:
            loop, stamp = asyncio.get_running_loop(), stamp_of(self.folder)
            try:
                new = await loop.run_in_executor(None, load, self.folder, self.options, self.metrics)
            except Exception as error:  # of a folder that is being written, or is damaged
                self.failed = stamp
                return print(one_line(f"{self.name}: the old model goes on: {error}"), flush=True)
            self.start(new.batcher)
            old, self.current = self.current, new
            print(f"{self.name}: {self.folder} is loaded again", flush=True)
        while old.batcher.waiting or old.batcher.running:
            await asyncio.sleep(0.05)
        self.tasks.pop(old.batcher).cancel()
        old.batcher.thread.shutdown(wait=False)

    async def reload_if_changed(self) -> None:
        stamp = stamp_of(self.folder)
        if stamp and stamp not in (self.current.stamp, self.failed):
            await self.reload()

    async def ask(self, current: Loaded, rows: list[Row]) -> list[Any]:
        """Returns the answers to rows that `check` has accepted. Raises InvalidText and Busy."""
        try:
            return await current.batcher.ask(rows)
        except current.input_error as error:
            raise InvalidText(str(error)) from None

    def check(self, current: Loaded, row: Row, where: str) -> None:
        """Raises InvalidText here, before a row is batched with those of other requests."""
        try:
            current.predictor.encode.example(row, where)
        except current.input_error as error:
            raise InvalidText(str(error)) from None


def models_of(words: list[str], options: Namespace, metrics: Metrics) -> dict[str, Model]:
    """Loads the models of a command line, FOLDER or NAME=FOLDER each -> {name: Model}. Raises ModelError."""
    models: dict[str, Model] = {}
    for word in words:
        name, is_named, folder = word.partition("=")
        path = Path(folder if is_named and not Path(word).exists() else word)
        name = name if is_named and not Path(word).exists() else path.resolve().name
        if name in models:
            raise ModelError(f"two models are named {name}; name them: NAME={path}")
        models[name] = Model(name, path, options, metrics)
    return models
