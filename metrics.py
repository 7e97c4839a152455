"""Scores in the field's terms, from names of labels (never numbers), so that anyone can recompute them from predictions.csv.

Edit here when you want another metric: add it to the dict of its task type; it appears in eval.json as `<task>_<name>`.
"""

import math
import warnings

from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities
from sklearn.metrics import accuracy_score
from sklearn.metrics import f1_score as class_f1_score

from config import is_tagging


def is_better(name, new, old):
    """Whether a score has risen, or a loss has fallen. Anything is better than None, and any number than NaN."""
    if old is None or math.isnan(old):
        return old is None or not math.isnan(new)
    return new < old if name.endswith("loss") else new > old


def classification_scores(gold, predicted):
    """gold, predicted: one label a text. Macro F1 is over all labels that occur in either."""
    return {"accuracy": accuracy_score(gold, predicted), "macro_f1": class_f1_score(gold, predicted, average="macro", zero_division=0)}


def tagging_scores(gold, predicted):
    """gold, predicted: one list of tags a text. Entities count as seqeval counts them: type and both borders right."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # seqeval warns of 0/0, which zero_division answers
        return {
            "precision": precision_score(gold, predicted, zero_division=0),
            "recall": recall_score(gold, predicted, zero_division=0),
            "f1": f1_score(gold, predicted, zero_division=0),
        }


SCORES = {"classification": classification_scores, "tagging": tagging_scores}


def scores_of(kind):
    """The function that scores tasks of this type; a type of your own is scored as its kind until it has an entry in SCORES."""
    return SCORES.get(kind, tagging_scores if is_tagging(kind) else classification_scores)


def score(tasks, gold, predicted):
    """{task}_{metric} for each task, and sentence_accuracy: the share of texts with every task right.

    tasks: as in labels.json; gold, predicted: {task: list with an entry for each text}.
    """
    scores = {
        f"{name}_{metric}": float(value)
        for name, task in tasks.items()
        for metric, value in scores_of(task["type"])(gold[name], predicted[name]).items()
    }
    right = [
        all(g == p for g, p in zip(golds, predictions))
        for golds, predictions in zip(zip(*(gold[name] for name in tasks)), zip(*(predicted[name] for name in tasks)))
    ]
    return scores | {"sentence_accuracy": sum(right) / len(right)}


def score_names(tasks):
    """The names of all that `score` and the losses give for these tasks, found by scoring one text."""
    answers = {name: [["O"]] if is_tagging(task["type"]) else [""] for name, task in tasks.items()}
    return ["loss", *(f"{name}_loss" for name in tasks), *score(tasks, answers, answers)]


def default_monitor(tasks):
    """What picks the best checkpoint: sentence accuracy of joint tasks, else the one task's main score."""
    if len(tasks) > 1:
        return "sentence_accuracy"
    name, task = next(iter(tasks.items()))
    return f"{name}_{'f1' if is_tagging(task['type']) else 'accuracy'}"


def entities(tags, spans, text):
    """[{label, text, start, end}] of a list of tags; spans: each token's (start, end) in the text."""
    return [
        {"label": label, "text": text[spans[first][0] : spans[last][1]], "start": spans[first][0], "end": spans[last][1]}
        for label, first, last in get_entities(tags)
    ]
