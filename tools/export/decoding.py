"""Decodes logits with numpy: one class per head, all listed in HEADS.

To export a custom head that overrides `decode` or `to_labels`, add a class here and an entry to HEADS, and one to HEADS
of settings.py. Shapes: B texts, W words, C labels.
"""

from itertools import compress
from typing import Any

import numpy as np

from engine.data.windows import merge_spans, merge_windows, pick
from engine.task.tags import continuations
from engine.task.words import LOWEST_SCORE, SPANS_PER_WORD, in_events, word_probabilities
from tools.export.scoring import (
    best_relations,
    best_spans,
    path_probabilities,
    sigmoid,
    softmax,
    tag_probabilities,
    viterbi,
)

Task = dict[str, Any]  # a task of predictor.json
Prediction = tuple[Any, Any]  # (label, probability)
Window = tuple[int, int, Any]  # (first word, number of words, what `decode` returned for the window)


class Head:
    """Base class of all heads, for tasks with one label per text.

    task: from predictor.json; tasks: all tasks, {name: task}; arrays: the CRF parameters of all tasks.
    """

    required: tuple[str, ...] = ()  # additional keys of the task
    needs_labels = True
    labels_words = False
    kind = "label"  # the argument `kind` of `columns_of`
    can_abstain = True  # the option `abstain_below` applies

    def __init__(self, task: Task, tasks: dict[str, Task], arrays: dict[str, np.ndarray]):
        self.task, self.tasks, self.labels = task, tasks, task["labels"]

    @property
    def temperature(self) -> np.float32:
        return np.float32(self.task.get("temperature", 1))

    def matches(self, logits: np.ndarray) -> bool:
        """Returns whether the logits of a batch have a shape that matches the labels."""
        return logits.shape[-1] == self.num_logits(logits.shape[1] if logits.ndim == 3 else 0)

    def num_logits(self, num_words: int) -> int:
        """Returns the number of logits per text, or per word of a batch that is padded to `num_words` words."""
        return len(self.labels)

    def decode(self, logits: np.ndarray, mask: np.ndarray, sizes: list[int]) -> list[Any]:
        """Returns (labels, probabilities) for each window of a batch. mask: (B, W); sizes: (B,) numbers of words"""
        raise NotImplementedError

    def merge(self, windows: list[Window], num_words: int) -> Prediction:
        """Merges the windows of a text of `num_words` words. Labels of texts are predicted from the first window."""
        return min(windows, key=lambda window: window[0])[2]


class Classification(Head):
    """One label per text."""

    def decode(self, logits: np.ndarray, mask: np.ndarray, sizes: list[int]) -> list[Prediction]:
        best = softmax(logits).argmax(-1)
        probabilities = softmax(logits / self.temperature)[np.arange(len(best)), best]
        return list(zip(pick(self.labels, best.tolist()), probabilities.tolist()))


class Multilabel(Head):
    """A set of labels per text."""

    required = ("threshold",)

    def decode(self, logits: np.ndarray, mask: np.ndarray, sizes: list[int]) -> list[Prediction]:
        chosen = self.in_hierarchy(sigmoid(logits)) >= np.float32(self.task["threshold"])
        rows = zip(chosen.tolist(), self.in_hierarchy(sigmoid(logits / self.temperature)).tolist())
        return [(list(compress(self.labels, is_chosen)), list(compress(row, is_chosen))) for is_chosen, row in rows]

    def in_hierarchy(self, probabilities: np.ndarray) -> np.ndarray:
        """Limits the probability of each label to the lowest probability on its path in the hierarchy, if there is one.

        Paths are lists of label ids, padded with C.
        """
        if "paths" not in self.task:
            return probabilities
        padded = np.concatenate([probabilities, np.ones_like(probabilities[:, :1])], 1)
        return padded[:, self.task["paths"]].min(2)


class Regression(Head):
    """One number per text."""

    required = ("mean", "std")
    needs_labels = False
    can_abstain = False

    def matches(self, logits: np.ndarray) -> bool:
        return logits.ndim == 1

    def decode(self, logits: np.ndarray, mask: np.ndarray, sizes: list[int]) -> list[Prediction]:
        values = logits.astype(np.float64) * self.task["std"] + self.task["mean"]
        return [(value, None) for value in values.tolist()]


class Tagging(Head):
    """One tag per word."""

    required: tuple[str, ...] = ("outside", "entities")
    labels_words = True

    def __init__(self, task: Task, tasks: dict[str, Task], arrays: dict[str, np.ndarray]):
        super().__init__(task, tasks, arrays)
        self.kind, self.can_abstain = ("entities" if task["entities"] else "tags"), task["entities"]
        self.continues = np.array(continuations(self.labels))

    def decode(self, logits: np.ndarray, mask: np.ndarray, sizes: list[int]) -> list[Any]:
        tags, probabilities = self.decode_tags(logits, mask)
        rows = zip(tags.tolist(), probabilities.tolist(), sizes)
        return [(row[:size], word_probabilities[:size]) for row, word_probabilities, size in rows]

    def decode_tags(self, logits: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the tag ids (B, W), and for each word the probabilities (B, W, 3) that `word_probabilities` reads."""
        tags = logits.argmax(-1)
        return tags, tag_probabilities(logits / self.temperature, mask, tags, self.continues)

    def merge(self, windows: list[Window], num_words: int) -> Prediction:
        """Merges the tags of windows. Truncated words are tagged O."""
        ids, probabilities = (merge_windows((first, piece[side]) for first, _, piece in windows) for side in (0, 1))
        num_cut = num_words - len(ids)
        tags = pick(self.labels, ids + [self.task["outside"]] * num_cut)
        return tags, word_probabilities(tags, probabilities + [0.0] * num_cut, self.task["entities"])


class CRF(Tagging):
    """One tag per word, decoded with a linear-chain CRF."""

    required = ("outside", "entities", "crf")

    def __init__(self, task: Task, tasks: dict[str, Task], arrays: dict[str, np.ndarray]):
        super().__init__(task, tasks, arrays)
        self.parameters = [arrays[f"{task['crf']}.{name}"] for name in ("start", "transitions", "end")]

    def decode_tags(self, logits: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = [logits, *self.parameters]
        tags = viterbi(scores, mask)
        scaled = [array.astype(np.float64) / float(self.temperature) for array in scores]
        return tags, path_probabilities(scaled, mask, tags, self.continues)


class Spans(Head):
    """Spans of words, which may nest: [first word, last word, type]."""

    required = ("threshold",)
    labels_words = True
    kind = "spans"

    def num_logits(self, num_words: int) -> int:
        return num_words + 2 * len(self.labels)

    def decode(self, logits: np.ndarray, mask: np.ndarray, sizes: list[int]) -> list[Any]:
        lowest = max(LOWEST_SCORE, self.task["threshold"] - 1e-3)
        return [self.accepted(*self.candidates(row, size, lowest)) for row, size in zip(logits, sizes)]

    def candidates(self, logits: np.ndarray, size: int, lowest: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns the items of a text of `size` words with a score above `lowest`, and their scores."""
        return best_spans(logits, size, lowest, SPANS_PER_WORD * size)

    def accepted(self, items: np.ndarray, scores: np.ndarray) -> tuple[list[tuple[int, ...]], list[float]]:
        """Returns the items whose score reaches the threshold, and their probabilities."""
        scores = scores.astype(np.float64)
        is_accepted = sigmoid(scores) >= float(sigmoid(np.array(self.task["threshold"], np.float64)))
        probabilities = sigmoid(scores[is_accepted] / float(self.temperature))
        return list(map(tuple, items[is_accepted].tolist())), probabilities.tolist()

    def merge(self, windows: list[Window], num_words: int) -> Prediction:
        items, probabilities = merge_spans((first, size, *piece) for first, size, piece in windows)
        return [[*places, self.labels[label]] for *places, label in items], probabilities


class Relations(Spans):
    """Relations: [first and last word of the subject, first and last word of the object, predicate]."""

    kind = "relations"

    def num_logits(self, num_words: int) -> int:
        read = num_words + 2 * len(self.tasks[self.task["reads_task"]]["labels"]) if "reads_task" in self.task else 0
        return 3 * num_words + 4 + 4 * len(self.labels) + read

    def candidates(self, logits: np.ndarray, size: int, lowest: float) -> tuple[np.ndarray, np.ndarray]:
        return best_relations(logits, size, lowest, len(self.labels))


class Events(Relations):
    """Events: relations between the trigger and the arguments, see `events_in` in engine/task/words.py."""

    kind = "events"

    def merge(self, windows: list[Window], num_words: int) -> Prediction:
        items, probabilities = super().merge(windows, num_words)
        stays = in_events(items, [True] * len(items))
        return list(compress(items, stays)), list(compress(probabilities, stays))


HEADS: dict[str, type[Head]] = {
    "classification": Classification,
    "multilabel": Multilabel,
    "regression": Regression,
    "tagging": Tagging,
    "crf": CRF,
    "spans": Spans,
    "relations": Relations,
    "events": Events,
}
