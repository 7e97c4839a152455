"""Counts and logs what is truncated in texts longer than --max_length, so nothing is truncated silently."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.task.task import Task

logger = logging.getLogger("template")


def warn_of_cuts(data: Any, where: str | Path) -> None:
    """Logs how much of a MyDataset is truncated."""
    cuts = Cuts()
    cuts.add(data)
    cuts.log(where, data.tasks)


class Cuts:
    """Counts the truncated examples, words and tokens of one or more MyDatasets. counts: {name: initial count}."""

    def __init__(self, counts: Mapping[str, int] | Iterable[tuple[str, int]] = ()):
        self.counts = Counter(dict(counts))

    def add(self, data: Any) -> None:
        columns, counts = data.columns, self.counts
        is_cut = columns["num_cut"] > 0
        counts["examples"] += len(data)
        counts["max_length"] = data.featurizer.max_length
        counts["joined"] = int(data.featurizer.long_text == "windows")
        counts["cut"] += int(is_cut.sum())
        counts["tokens"] += int(columns["num_cut"].sum())
        if "num_words" in columns:
            counts["words"] += int((columns["num_words"] - columns["word_starts"].lengths)[is_cut].sum())
        windows = num_windows(data)
        counts["windows"] += int(windows[windows > 1].sum())
        counts["in windows"] += int((windows > 1).sum())
        if len(data.lengths) > len(data):
            counts["apart"] = 1
            for name in [name for name, task in data.tasks.items() if task.num_places]:
                counts[f"outside {name}"] += num_outside(data, name)

    def log(self, where: str | Path, tasks: dict[str, Task]) -> None:
        """Logs what was truncated or, if nothing was, the number of windows."""
        counts, max_length = self.counts, self.counts["max_length"]
        longer = f"{where}: {counts['cut']} of {counts['examples']} examples are longer than --max_length {max_length}"
        if counts["cut"] and any(task.needs_words for task in tasks.values()):
            logger.warning(f"{longer}; their last {counts['words']} words are truncated and tagged O")
        elif counts["cut"]:
            advice = "--long_text windows reads all of them, if the heads support it"
            if counts["joined"]:
                advice = "no space for windows: raise --max_length"
            logger.warning(f"{longer}; {counts['tokens']} sub-tokens are not read ({advice})")
        elif counts["windows"]:
            text_labels = any(not task.needs_words for task in tasks.values())
            first = "; text-level labels are predicted from the first one" if counts["apart"] and text_labels else ""
            logger.info(
                f"{where}: {counts['in windows']} examples longer than --max_length {max_length} are read in "
                f"{counts['windows']} windows{first}"
            )
            for name in tasks:
                if lost := counts[f"outside {name}"]:
                    items = {"events": "mentions of events"}.get(tasks[name].kind, tasks[name].kind)
                    logger.warning(f"{where}: {lost} {items} of {name!r} do not fit in a window; raise --window_stride")


def num_windows(data: Any) -> np.ndarray:
    """Returns the number of windows of each example of a MyDataset, (N,), whether they are separate rows or
    concatenated in one row."""
    size = data.featurizer.max_length if data.featurizer.long_text == "windows" else np.inf
    windows = np.ceil(data.lengths / size).clip(1)
    return np.bincount(data.example_index, windows, len(data)).astype(int)


def num_outside(data: Any, name: str) -> int:
    """Counts the spans or relations of a task that do not fit into any window of their text. data: a MyDataset"""
    windows: dict[int, list[tuple[int, int]]] = {}
    for example, first, size in zip(
        data.example_index.tolist(), data.columns["first_word"].tolist(), data.columns["word_starts"].lengths.tolist()
    ):
        windows.setdefault(example, []).append((first, first + size))
    split = {example: bounds for example, bounds in windows.items() if len(bounds) > 1}
    return sum(
        not any(begin <= min(places) and max(places) < end for begin, end in bounds)
        for example, bounds in split.items()
        for *places, _ in data[example].get(name) or ()
    )
