"""Standard scores, computed from label names (never ids), so that anyone can recompute them from predictions.csv.

Edit here when you want another metric: add it to the dict of its task type; it appears in eval.json as `<task>_<name>`.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scipy.stats import pearsonr, spearmanr
from seqeval.metrics import classification_report as entity_report
from seqeval.metrics.sequence_labeling import get_entities
from sklearn.metrics import accuracy_score, classification_report, f1_score, mean_absolute_error
from sklearn.preprocessing import MultiLabelBinarizer

from engine.errors import UserError
from engine.predict.predictions import names_entities
from engine.task import tags
from engine.task.tags import has_spans, is_tagging


def is_better(name: str, new: float, old: float | None) -> bool:
    """Whether a score has risen, or a loss has fallen. Anything is better than None, and any number than NaN."""
    if old is None or math.isnan(old):
        return old is None or not math.isnan(new)
    return new < old if name.endswith(("loss", "_mae")) else new > old


def classification_scores(gold: list[str], predicted: list[str]) -> dict[str, float]:
    """gold, predicted: one label per text. Macro F1 is over all labels that occur in either."""
    averages = {
        f"{kind}_f1": f1_score(gold, predicted, average=kind, zero_division=0) for kind in ("macro", "weighted")
    }
    return {"accuracy": accuracy_score(gold, predicted)} | averages


def multilabel_scores(gold: list[list[str]], predicted: list[list[str]]) -> dict[str, float]:
    """gold, predicted: a list of labels per text. Accuracy: the whole set is right. Micro F1 pools all labels, macro F1
    averages over them."""
    right, guessed, there = matches("multilabel", gold, predicted)
    f1 = {label: 2 * right[label] / (guessed[label] + there[label]) for label in sorted(guessed.keys() | there.keys())}
    return {
        "micro_f1": 2 * right.total() / max(1, guessed.total() + there.total()),
        "macro_f1": sum(f1.values()) / max(1, len(f1)),
        "weighted_f1": sum(f1[label] * there[label] for label in f1) / max(1, there.total()),
        "accuracy": sum(set(g) == set(p) for g, p in zip(gold, predicted)) / len(gold),
    }


def regression_scores(gold: list[float], predicted: list[float]) -> dict[str, float]:
    """gold, predicted: one number per text. A correlation with a constant is 0."""
    constant = len(set(gold)) == 1 or len(set(predicted)) == 1
    return {
        "pearson": 0.0 if constant else pearsonr(gold, predicted).statistic,
        "spearman": 0.0 if constant else spearmanr(gold, predicted).statistic,
        "mae": mean_absolute_error(gold, predicted),
    }


def tagging_scores(gold: list[list[str]], predicted: list[list[str]]) -> dict[str, float]:
    """gold, predicted: a list of tags per text. Entities count as in seqeval: type and both boundaries are right."""
    return entity_scores(*matches("tagging", gold, predicted))


def span_scores(gold: list[list], predicted: list[list]) -> dict[str, float]:
    """gold, predicted: a list of [first token, last token, type] per text, counted like entities."""
    return entity_scores(*matches("spans", gold, predicted))


def entity_scores(*counters: Counter[str]) -> dict[str, float]:
    right, guessed, there = (counter.total() for counter in counters)
    return {
        "precision": right / max(1, guessed),
        "recall": right / max(1, there),
        "f1": 2 * right / max(1, guessed + there),
    }


def matches(
    kind: str, gold: Sequence[Any], predicted: Sequence[Any]
) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """{label or entity type: how many}: right, predicted, in gold."""
    right: Counter[str] = Counter()
    guessed: Counter[str] = Counter()
    there: Counter[str] = Counter()
    for g, p in zip(gold, predicted):
        if kind in ("tagging", "spans"):
            g, p = entities_in(kind, g), entities_in(kind, p)
        else:
            g, p = ({g}, {p}) if kind == "classification" else (set(g), set(p))
        for counter, items in ((right, g & p), (guessed, p), (there, g)):
            counter.update(item[0] for item in items) if kind in ("tagging", "spans") else counter.update(items)
    return right, guessed, there


def entities_in(kind: str, label: list) -> set[tuple[str, int, int]]:
    """{(type, first token, last token)} of a text's tags or spans."""
    return {(kind, first, last) for first, last, kind in label} if kind == "spans" else set(get_entities(label))


def word_scores(gold: list[list[str]], predicted: list[list[str]]) -> dict[str, float]:
    """As classification, over all words together: for tags that are not entities, such as parts of speech."""
    return classification_scores(*([tag for tags in side for tag in tags] for side in (gold, predicted)))


SCORES: dict[str, Callable[..., dict[str, float]]] = {
    "words": word_scores,
    "classification": classification_scores,
    "multilabel": multilabel_scores,
    "regression": regression_scores,
    "tagging": tagging_scores,
    "spans": span_scores,
}
MAIN = {
    "words": "accuracy",
    "classification": "accuracy",
    "multilabel": "micro_f1",
    "regression": "spearman",
    "tagging": "f1",
    "spans": "f1",
}


def kind_of(task: dict[str, Any]) -> str:
    """The kind by which a task is scored; a custom type as the kind that its labels fit, until it has an entry in
    SCORES. "words": tagging whose tags are not entities (no B-, I-, …)."""
    kind = task["type"] if task["type"] in SCORES else tags.kind_of(task)
    if is_tagging(kind) and (kind == "tagging" or kind not in SCORES):
        return "tagging" if names_entities(task) else "words"
    unknown = "spans" if has_spans(kind) else "classification"
    return kind if kind in SCORES else unknown


def score(
    tasks: dict[str, dict[str, Any]], gold: dict[str, list[Any]], predicted: dict[str, list[Any]]
) -> dict[str, float]:
    """{task}_{metric} for each task, over the texts that have its label (others are None in gold), and for all tasks
    together:

    sentence_accuracy, the share of texts with all their labels right (without regression), and mean_score, the mean of
    the main scores, if there are several tasks and not all are classification or tagging.
    tasks: as in labels.json; gold, predicted: {task: list with an entry for each text}.
    """
    scores: dict[str, float] = {}
    mains, kinds = [], {name: kind_of(task) for name, task in tasks.items()}
    for name, kind in kinds.items():
        labelled = [i for i, label in enumerate(gold[name]) if label is not None]
        if labelled:
            values = SCORES[kind]([gold[name][i] for i in labelled], [predicted[name][i] for i in labelled])
            scores |= {f"{name}_{metric}": float(value) for metric, value in values.items()}
            mains.append(scores[f"{name}_{MAIN[kind]}"])
    wrong, with_labels = set(), set()  # indices of texts
    for name, kind in kinds.items():
        for i, (g, p) in enumerate(zip(gold[name], predicted[name])):
            if g is not None and kind != "regression":
                with_labels.add(i)
                if not is_same(kind, g, p):
                    wrong.add(i)
    if with_labels:
        scores["sentence_accuracy"] = (len(with_labels) - len(wrong)) / len(with_labels)
    if len(tasks) > 1 and not all_exact(tasks):
        scores["mean_score"] = sum(mains) / max(1, len(mains))
    return scores


def is_same(kind: str, gold: Any, predicted: Any) -> bool:
    """Whether an answer is right as a whole; labels and spans may be in any order."""
    if kind == "spans":
        return entities_in(kind, gold) == entities_in(kind, predicted)
    return set(gold) == set(predicted) if kind == "multilabel" else gold == predicted


def is_right(task: dict[str, Any], gold: Any, predicted: Any) -> bool | None:
    """Whether an answer to a text is right as a whole; None for regression, and where there is no label."""
    kind = kind_of(task)
    return None if gold is None or kind == "regression" else is_same(kind, gold, predicted)


def main_scores(tasks: dict[str, dict[str, Any]]) -> list[str]:
    """The names of the most important scores: those of all tasks together, then the main one of each."""
    mains = [f"{name}_{MAIN[kind_of(task)]}" for name, task in tasks.items()]
    return ["sentence_accuracy", "mean_score", *mains] if len(tasks) > 1 else mains


def report(
    tasks: dict[str, dict[str, Any]], gold: dict[str, list[Any]], predicted: dict[str, list[Any]]
) -> dict[str, dict[str, dict[str, float]]]:
    """{task: {label or entity type: {"precision", "recall", "f1", "support"}}}; regression has no labels."""
    result = {}
    for name, task in tasks.items():
        kind = kind_of(task)
        if kind != "regression":
            labelled = [i for i, label in enumerate(gold[name]) if label is not None]
            by_label = report_of(kind, *([side[name][i] for i in labelled] for side in (gold, predicted)))
            result[name] = {
                label: {
                    "precision": float(values["precision"]),
                    "recall": float(values["recall"]),
                    "f1": float(values["f1-score"]),
                    "support": int(values["support"]),
                }
                for label, values in sorted(by_label.items())
            }
    return result


def report_of(kind: str, gold: Any, predicted: Any) -> dict[str, dict[str, float]]:
    """{label or entity type: scores}, as computed by scikit-learn and seqeval."""
    options: dict[str, Any] = dict(output_dict=True, zero_division=0)
    if kind == "tagging":
        labels: Any = {entity[0] for tags in (*gold, *predicted) for entity in get_entities(tags)}
        found = entity_report(gold, predicted, **options) if labels else {}
        return {label: found[label] for label in labels}
    if kind == "spans":
        return span_report(*matches(kind, gold, predicted))
    if kind == "words":
        gold, predicted = ([tag for tags in side for tag in tags] for side in (gold, predicted))
    if kind == "multilabel":
        labels = sorted({label for labels in (*gold, *predicted) for label in labels})
        binarizer = MultiLabelBinarizer(classes=labels)
        gold, predicted = binarizer.fit_transform(gold), binarizer.transform(predicted)
        numbers = list(range(len(labels)))
        found = classification_report(gold, predicted, labels=numbers, target_names=labels, **options) if labels else {}
    else:
        labels = sorted({*gold, *predicted})
        found = classification_report(gold, predicted, labels=labels, **options) if labels else {}
    return {label: found[label] for label in labels}


def span_report(right: Counter[str], guessed: Counter[str], there: Counter[str]) -> dict[str, dict[str, float]]:
    """{type: scores}, from counts of types."""
    return {
        label: {
            "precision": right[label] / max(1, guessed[label]),
            "recall": right[label] / max(1, there[label]),
            "f1-score": 2 * right[label] / (guessed[label] + there[label]),
            "support": there[label],
        }
        for label in guessed.keys() | there.keys()
    }


def table(per_label: dict[str, dict[str, float]], most: int = 40) -> str:
    """A text table of one task's part of `report`, the most frequent labels first."""
    ordered = sorted(per_label.items(), key=lambda item: (-item[1]["support"], item[0]))
    width = max(map(len, per_label), default=5)
    lines = [f"{'':<{width}}  precision  recall      f1  support"]
    lines += [
        f"{name:<{width}}  {s['precision']:9.3f}  {s['recall']:6.3f}  {s['f1']:6.3f}  {s['support']:7}"
        for name, s in ordered[:most]
    ]
    return "\n".join(lines + ([f"… and {len(ordered) - most} more"] if len(ordered) > most else []))


def mean_losses(parts: Sequence[Mapping[str, Sequence[float]]], task_weights: Mapping[str, float]) -> dict[str, float]:
    """{"loss", "<task>_loss": mean over all labels}. parts: {task: (sum of its losses, number of its labels)} of each
    batch."""
    losses = {}
    for name in parts[0] if parts else ():
        total, count = (sum(column) for column in zip(*(part[name] for part in parts)))
        losses[f"{name}_loss"] = total / max(count, 1e-12)
    total = sum(task_weights.get(name.removesuffix("_loss"), 1.0) * loss for name, loss in losses.items())
    return {"loss": total} | losses if losses else {}


def all_exact(tasks: dict[str, dict[str, Any]]) -> bool:
    return all(kind_of(task) in ("classification", "tagging", "spans", "words") for task in tasks.values())


def score_names(tasks: dict[str, dict[str, Any]]) -> list[str]:
    """The names of all scores and losses of these tasks, found by scoring one text. Raises UserError if two of them
    would be the same, as may happen with tasks "a" and "a_macro"."""
    blank = {"tagging": ["O"], "spans": [], "words": ["X"], "multilabel": ["x"], "regression": 0.0}
    answers = {name: [blank.get(kind_of(task), "")] for name, task in tasks.items()}
    owners = {"loss": "all tasks", "sentence_accuracy": "all tasks", "mean_score": "all tasks"}
    for name, task in tasks.items():
        for metric in ("loss", *SCORES[kind_of(task)](answers[name], answers[name])):
            other = owners.setdefault(f"{name}_{metric}", name)
            if other != name:
                raise UserError(f"the score {name}_{metric} would belong to {name!r} and to {other!r}; rename a task")
    return ["loss", *(f"{name}_loss" for name in tasks), *score(tasks, answers, answers)]


def default_monitor(tasks: dict[str, dict[str, Any]]) -> str:
    """The score that picks the best checkpoint: a single task's main score, or sentence_accuracy or mean_score."""
    if len(tasks) > 1:
        return "sentence_accuracy" if all_exact(tasks) else "mean_score"
    name, task = next(iter(tasks.items()))
    return f"{name}_{MAIN[kind_of(task)]}"
