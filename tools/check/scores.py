"""Check of the metrics: they are finite for all answers, and the monitored metric prefers right answers."""

import math
from typing import Any

import metrics
from engine.task.task import Task
from tools.check.case import Case, Failed


def check_scores(case: Case) -> None:
    trainer, examples = case.trainer, [case.data[i] for i in range(len(case.data))]
    gold = {name: [example.get(name) for example in examples] for name in trainer.tasks}
    answers: dict[str, dict[str, list[Any]]] = {"right": {}, "wrong": {}, "equal": {}}
    for name, task in trainer.tasks.items():
        labelled = [label for label in gold[name] if label is not None]
        if not labelled:
            continue
        answers["right"][name] = [labelled[0] if label is None else label for label in gold[name]]
        answers["wrong"][name] = [wrong_label(task, label) for label in answers["right"][name]]
        answers["equal"][name] = [equal_label(task, label) for label in answers["right"][name]]
    if len(answers["right"]) < len(trainer.tasks):
        return  # a task without labels
    scores = {kind: trainer.metric_function(gold, predicted) for kind, predicted in answers.items()}
    for i in range(min(2, len(examples))):  # a single text
        for kind in ("right", "wrong"):  # a wrong answer can be a label that does not occur in gold
            trainer.metric_function(*({name: side[name][i : i + 1] for name in side} for side in (gold, answers[kind])))
    for name, value in scores["right"].items():
        if not math.isfinite(value):
            raise Failed(f"{name} is {value:g} if all answers are right")
        if not math.isfinite(scores["equal"].get(name, 0.0)):
            case.notes.append(f"{name} is not finite if all answers are the same")
    monitor = trainer.monitor
    if monitor in scores["right"] and metrics.is_better(monitor, scores["wrong"][monitor], scores["right"][monitor]):
        values = f"{scores['right'][monitor]:.4g} for right answers and {scores['wrong'][monitor]:.4g} for wrong ones"
        raise Failed(f"{monitor}, which selects the best checkpoint, is {values}; is lower better?")


def wrong_label(task: Task, label: Any) -> Any:
    """Returns an answer that is wrong wherever possible."""
    if task.kind == "regression":
        return 2 * task.mean - label + task.std
    if task.kind == "multilabel":
        return [other for other in task.labels if other not in label]
    if task.num_places:
        return []
    next_label = dict(zip(task.labels, (*task.labels[1:], task.labels[0])))
    return [next_label.get(tag, tag) for tag in label] if task.kind == "tagging" else next_label.get(label, label)


def equal_label(task: Task, label: Any) -> Any:
    """Returns the same answer for all texts."""
    if task.kind == "multilabel" or task.num_places:
        return []
    if task.kind == "tagging":
        return [task.labels[0]] * len(label)
    return task.mean if task.kind == "regression" else task.labels[0]
