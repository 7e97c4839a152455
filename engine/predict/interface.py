"""The Python interface: a trained model that predicts, embeds, explains and evaluates (docs/python.md)."""

import os
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from engine.errors import UserError
from engine.predict.attributions import Explanation, explain
from engine.predict.given import examples_of, form_of
from engine.predict.isolation import own_module
from engine.predict.labelling import pool_size
from engine.predict.predictions import prediction_rows
from engine.run import distributed
from engine.run.device import to_device
from engine.run.run_folder import checkpoint_of
from engine.task.task import Task, pairs_of

Examples = list[dict[str, Any]]


class Model:
    """A trained model. It is thread-safe: calls run one at a time.

    A text is a string, a tuple of two strings (a pair), a list of words, or a row of a file as a dict with `text` or
    `tokens`, `text_pair`, `id` and numeric columns; other keys are ignored. One text returns one result, a list
    returns a list, and an iterator returns an iterator, which reads a few thousand texts ahead in constant memory.
    Invalid texts raise UserError.
    """

    def __init__(self, checkpoint: Path, options: dict[str, Any], trainer: Any, featurizer: Any) -> None:
        self.checkpoint, self.options, self.trainer, self.featurizer = checkpoint, options, trainer, featurizer
        self.lock, self.process = RLock(), os.getpid()
        trainer.model.eval()

    @property
    def tasks(self) -> dict[str, Task]:
        """The tasks, as {name: Task}."""
        return self.trainer.tasks

    @property
    def labels(self) -> dict[str, list[str]]:
        """The labels of each task, as {task: labels}; an empty list for regression."""
        return {name: list(task.labels) for name, task in self.tasks.items()}

    def __call__(self, texts: Any) -> Any:
        """Returns predictions as in predictions.jsonl: text, labels, probabilities, entities with offsets."""
        return self.apply(texts, self.label)

    def embed(self, texts: Any) -> Any:
        """Returns the vectors of the texts as a float32 array (N, H), or (H,) for one text.

        A vector is the encoder's pooled output before dropout and shared layers. A pair has one vector. For a text
        longer than max_length, it covers all windows or, with another --long_text, the portion that the model reads.
        """
        vectors = self.apply(texts, lambda examples: self.trainer.embed(self.loader(examples)), embeds=True)
        if not isinstance(vectors, list):
            return vectors
        return np.stack(vectors) if vectors else np.zeros((0, self.trainer.model.hidden_size), np.float32)

    def explain(
        self, text: Any, task: str | None = None, label: str | None = None, word: int | None = None
    ) -> Explanation:
        """Returns the contribution of each word to the logit of a label, by integrated gradients.

        task: by default the only task, or the first one with text-level labels; label: by default the predicted one;
        word: for tagging, the index of the word whose tag is explained.
        """
        examples = number(list(examples_of([text], self.tasks)))
        with self.alone():
            return explain(self.trainer, self.loader(examples), task, label, word)

    def evaluate(self, rows: Iterable[Any]) -> dict[str, float]:
        """Returns scores and losses as in eval.json. rows: dicts with a label for each task (None if unlabelled), as in
        a processed folder. Entities can also be character spans, [{"start", "end", "label"}]."""
        examples = list(examples_of([rows] if form_of(rows) == "one" else rows, self.tasks, labelled=True))
        if not examples:
            raise UserError("there are no rows to evaluate")
        with self.alone():
            return self.trainer.eval(self.loader(number(examples)), keep_averages="texts").scores

    def __repr__(self) -> str:
        labels = {name: f" of {len(task.labels)} labels" if task.labels else "" for name, task in self.tasks.items()}
        kinds = ", ".join(f"{name}: {task.kind}{labels[name]}" for name, task in self.tasks.items())
        return f"<{self.checkpoint}; {kinds}; {self.trainer.device}, {self.trainer.config.precision}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return load_model, (self.checkpoint, self.options)  # unpickling loads the checkpoint again

    # ---- implementation ------------------------------------------------------------------------------------------

    def apply(self, texts: Any, function: Callable[[Examples], Iterable[Any]], embeds: bool = False) -> Any:
        """Applies a function of examples to one text, a list of texts or an iterator."""
        form = form_of(texts)
        tasks = self.trainer.tasks_to_embed if embeds else self.tasks
        results = self.stream([texts] if form == "one" else texts, function, tasks)
        return next(results) if form == "one" else list(results) if form == "list" else results

    def stream(
        self, texts: Iterable[Any], function: Callable[[Examples], Iterable[Any]], tasks: dict[str, Task]
    ) -> Iterator[Any]:
        """Yields the results in order. Texts are batched by length within a pool, as in `label_rows`."""
        total = len(texts) if isinstance(texts, Sized) else None
        single = pairs_of(self.tasks) and not pairs_of(tasks)
        examples, size = examples_of(texts, tasks, single=single), pool_size(self.trainer.config.eval_batch_size)
        with tqdm(total=total, desc="texts", leave=False, delay=2) as bar:
            while pool := list(islice(examples, size)):
                with self.alone():
                    results = list(function(pool))
                bar.update(len(pool))
                yield from results

    def label(self, examples: Examples) -> Iterator[dict[str, Any]]:
        loader = self.loader(number(examples))
        predictions, _ = self.trainer.infer(loader, "predicting")
        rows = prediction_rows(predictions, loader.dataset, self.tasks, abstain=self.trainer.abstention)
        return ({k: v for k, v in row.items() if k != "id" or k in e} for row, e in zip(rows, examples))

    def loader(self, examples: Examples) -> Any:
        data_loader = own_module("data_loader")
        data = data_loader.MyDataset(examples, self.featurizer, quiet=True)
        return data_loader.MyDataLoader(data, self.trainer.config.eval_batch_size)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Context manager that waits until no other thread uses the model."""
        if os.getpid() != self.process:  # after a fork, the thread that holds the lock may not exist
            self.lock, self.process = RLock(), os.getpid()
            torch.set_num_threads(1)  # OpenMP's thread pool does not survive a fork
        with self.lock, distributed.alone():
            yield


def number(examples: Examples) -> Examples:
    """Adds the row number as the id of examples without an id."""
    return [{"id": str(i)} | example for i, example in enumerate(examples)]


def load_model(checkpoint: str | Path, options: dict[str, Any]) -> Model:
    """Loads a Model. options: options of main.py."""
    if not isinstance(checkpoint, str | Path):
        raise UserError(f"load: {checkpoint!r} is not the path of a run folder")
    config, template, _ = own_module("config"), own_module("main"), own_module("data_loader")
    try:
        chosen = config.Config(do_predict=True, **options)
    except TypeError as error:
        raise UserError(f"load: {str(error).partition(') ')[2] or error}; see the options of main.py") from None
    state = np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):  # building a model draws its initial weights
            folder = checkpoint_of(checkpoint)
            return Model(folder, options, *template.load_trained(folder, chosen, to_device(chosen.device)))
    finally:
        np.random.set_state(state)
