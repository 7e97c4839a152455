"""Checks that metrics are finite for all predictions, and that the monitored metric prefers correct predictions."""

import math
from typing import Any

import metrics
from engine.task.task import Task
from tools.check.case import Case, Failed


def check_scores(case: Case) -> None:
    trainer, examples = case.trainer, [case.data[i] for i in range(len(case.data))]
    gold = {name: [example.get(name) for example in examples] for name in trainer.tasks}
    predictions: dict[str, dict[str, list[Any]]] = {"right": {}, "wrong": {}, "equal": {}}
    for name, task in trainer.tasks.items():
        labelled = [label for label in gold[name] if label is not None]
        if not labelled:
            continue
        predictions["right"][name] = [labelled[0] if label is None else label for label in gold[name]]
        predictions["wrong"][name] = [wrong_label(task, label) for label in predictions["right"][name]]
        predictions["equal"][name] = [equal_label(task, label) for label in predictions["right"][name]]
    if len(predictions["right"]) < len(trainer.tasks):
        return  # some task has no labels
    scores = {kind: trainer.metric_function(gold, predicted) for kind, predicted in predictions.items()}
    for i in range(min(2, len(examples))):  # a single text
        for kind in ("right", "wrong"):  # a wrong prediction can be a label that is not in gold
            one_text = ({name: side[name][i : i + 1] for name in side} for side in (gold, predictions[kind]))
            trainer.metric_function(*one_text)
    for name, value in scores["right"].items():
        if not math.isfinite(value):
            raise Failed(f"{name} is {value:g} if all predictions are correct")
        if not math.isfinite(scores["equal"].get(name, 0.0)):
            case.notes.append(f"{name} is not finite if all predictions are the same")
    monitor = trainer.monitor
    if monitor in scores["right"] and metrics.is_better(monitor, scores["wrong"][monitor], scores["right"][monitor]):
        right, wrong = (f"{scores[kind][monitor]:.4g} for {kind} predictions" for kind in ("right", "wrong"))
        raise Failed(f"{monitor}, which selects the best checkpoint, is {right} and {wrong}; is lower better?")


def wrong_label(task: Task, label: Any) -> Any:
    """Returns a prediction that is wrong, if possible in all positions."""
    if task.kind == "regression":
        return 2 * task.mean - label + task.std
    if task.kind == "multilabel":
        return [other for other in task.labels if other not in label]
    if task.num_places:
        return []
    next_label = dict(zip(task.labels, (*task.labels[1:], task.labels[0])))
    return [next_label.get(tag, tag) for tag in label] if task.kind == "tagging" else next_label.get(label, label)


def equal_label(task: Task, label: Any) -> Any:
    """Returns a prediction that is the same for all texts."""
    if task.kind == "multilabel" or task.num_places:
        return []
    if task.kind == "tagging":
        return [task.labels[0]] * len(label)
    return task.mean if task.kind == "regression" else task.labels[0]
