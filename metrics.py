"""Standard metrics, computed from label names instead of ids, so they can be recomputed from predictions.csv.

To add a metric, add it to the result of the scoring function for its task type. It appears in eval.json as
`<task>_<name>`. If lower values are better, add its name to LOWER_IS_BETTER.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error

from engine.errors import UserError
from engine.task.hierarchy import depth_of, most_specific, with_ancestors
from engine.task.tags import names_entities
from engine.task.task import PLACES, Task
from engine.task.words import ROLE, entities_in, events_in

LOWER_IS_BETTER = ("loss", "mae")


def lower_is_better(name: str) -> bool:
    """Returns whether lower values of a score, such as `intent_loss`, are better."""
    return name == "loss" or name.endswith(tuple(f"_{one}" for one in LOWER_IS_BETTER))


def is_better(name: str, new: float, old: float | None) -> bool:
    """Returns whether a score improved. Any value is better than None, and any number is better than NaN."""
    if old is None or math.isnan(old):
        return old is None or not math.isnan(new)
    return new < old if lower_is_better(name) else new > old


def classification_scores(gold: list[str], predicted: list[str]) -> dict[str, float]:
    """Scores one label per text. Macro F1 is averaged over all labels that occur in gold or predicted."""
    averages = {
        f"{kind}_f1": f1_score(gold, predicted, average=kind, zero_division=0) for kind in ("macro", "weighted")
    }
    return {"accuracy": accuracy_score(gold, predicted)} | averages


def multilabel_scores(gold: list[list[str]], predicted: list[list[str]]) -> dict[str, float]:
    """Scores a list of labels per text. Accuracy is the fraction of texts whose label sets match exactly. Micro F1
    pools all labels; macro F1 is averaged over them."""
    counts = count_matches("multilabel", gold, predicted)
    by_label = label_scores(*counts).values()
    support = counts[2].total()
    return {
        "micro_f1": micro_scores(*counts)["f1"],
        "macro_f1": sum(scores["f1"] for scores in by_label) / max(1, len(by_label)),
        "weighted_f1": sum(scores["f1"] * scores["support"] for scores in by_label) / max(1, support),
        "accuracy": sum(set(g) == set(p) for g, p in zip(gold, predicted)) / len(gold),
    }


def regression_scores(gold: list[float], predicted: list[float]) -> dict[str, float]:
    """Scores one number per text. A correlation is 0 if all gold or all predicted values are equal."""
    constant = len(set(gold)) == 1 or len(set(predicted)) == 1
    return {
        "pearson": 0.0 if constant else pearsonr(gold, predicted).statistic,
        "spearman": 0.0 if constant else spearmanr(gold, predicted).statistic,
        "mae": mean_absolute_error(gold, predicted),
    }


def tagging_scores(gold: list[list[str]], predicted: list[list[str]]) -> dict[str, float]:
    """Scores a list of tags per text by entity, as in seqeval: the type and both boundaries must match."""
    return micro_scores(*count_matches("tagging", gold, predicted))


def span_scores(gold: list[list], predicted: list[list]) -> dict[str, float]:
    """Scores a list of [word index, …, label] per text (see PLACES). All fields must match."""
    return micro_scores(*count_matches("spans", gold, predicted))


def relation_scores(gold: list[list], predicted: list[list]) -> dict[str, float]:
    """Scores a list of relations per text: [first and last word of the subject, of the object, predicate].

    precision, recall, f1: both spans and the predicate must match. relaxed_f1: the predicate and the last words of both
    spans must match (the partial match of Wei et al., 2020, arXiv:1909.03227). entities_f1: subject and object spans.
    """
    relaxed, entities = ([list(map(view, side)) for side in (gold, predicted)] for view in (relaxed_of, ends_of))
    scores = span_scores(gold, predicted)
    return scores | {"relaxed_f1": span_scores(*relaxed)["f1"], "entities_f1": span_scores(*entities)["f1"]}


def relaxed_of(relations: Sequence[Any]) -> list[list]:
    """Returns [last word of the subject, last word of the object, predicate] for each relation of a text."""
    return [[s_last, o_last, predicate] for _, s_last, _, o_last, predicate in relations]


def ends_of(relations: Sequence[Any]) -> list[list]:
    """Returns [first word, last word, ""] for the subject and the object of each relation of a text."""
    return [[*relation[i : i + 2], ""] for relation in relations for i in (0, 2)]


def typed_sides(relations: Sequence[Sequence[Any]], entities: Sequence[Sequence[Any]]) -> list[list[list]]:
    """Returns [gold, predicted] relations with the types of subjects and objects, see `typed_relations`. A text without
    gold entities (None) has no typed relations. relations, entities: [gold, predicted]"""
    known = [spans is not None for spans in entities[0]]
    return [
        typed_relations(*([x if k else [] for x, k in zip(y, known)] for y in pair))
        for pair in zip(relations, entities)
    ]


def typed_relations(relations: Sequence[Any], entities: Sequence[Any]) -> list[list]:
    """Replaces each predicate by (predicate, types of the subject, types of the object). The types come from the
    text's `entities`; a span that is not one of them has no type."""
    typed = []
    for label, spans in zip(relations, entities):
        types: dict[tuple, tuple] = {}
        for first, last, name in sorted(spans):
            types[first, last] = (*types.get((first, last), ()), name)
        ends = [(places, [types.get(tuple(places[i : i + 2]), ()) for i in (0, 2)], name) for *places, name in label]
        typed.append([[*places, (name, *kinds)] for places, kinds, name in ends])
    return typed


def event_scores(gold: list[list], predicted: list[list]) -> dict[str, float]:
    """Scores a list of event items per text, see `events_in`.

    precision, recall, f1: the event type, role and span of each argument must match (argument classification, Li, Ji
    and Huang, 2013, ACL); data without any arguments is scored on triggers. trigger_f1: the type and span of each
    trigger must match, or only the type if an event has no trigger. whole_f1: the type, trigger and all arguments of
    each event must match.
    """
    scores = {prefix: set_scores(*sides) for prefix, sides in event_views(gold, predicted).items()}
    return scores.pop("") | {f"{prefix}f1": values["f1"] for prefix, values in scores.items()}


def event_views(gold: Sequence[Any], predicted: Sequence[Any]) -> dict[str, list[list[set]]]:
    """Returns {prefix of the scores: [gold, predicted]}, each with one set of items to match per text."""
    mentions = [[items_in("events", label) for label in side] for side in (gold, predicted)]
    arguments = [[{item for item in items if ROLE in item[0]} for items in side] for side in mentions]
    whole = [[whole_events(label) for label in side] for side in (gold, predicted)]
    triggers = [[{event[:2] for event in events} for events in side] for side in whole]
    return {"": arguments if any(map(any, arguments)) else mentions, "trigger_": triggers, "whole_": whole}


def whole_events(label: Sequence[Any]) -> set[tuple]:
    """Returns {(type, triggers, arguments) of each event}. triggers: ((first word, last word),) or (); arguments:
    {(label, first word, last word)}."""
    return {
        (
            event.type,
            tuple(tuple(label[i][2:4]) for i in event.triggers),
            frozenset((label[i][4], *label[i][2:4]) for i in event.arguments),
        )
        for event in events_in(label)
    }


def set_scores(gold: list[set], predicted: list[set]) -> dict[str, float]:
    """Returns micro-averaged precision, recall and F1, given one set of items per text."""
    right = sum(len(g & p) for g, p in zip(gold, predicted))
    return precision_recall_f1(right, sum(map(len, predicted)), sum(map(len, gold)))


def word_scores(gold: list[list[str]], predicted: list[list[str]]) -> dict[str, float]:
    """Scores each word as a classification, for tags that do not mark entities, such as parts of speech."""
    return classification_scores(*([tag for tags in side for tag in tags] for side in (gold, predicted)))


def hierarchy_scores(task: Task, gold: Sequence[Any], predicted: Sequence[Any]) -> dict[str, float]:
    """Scores one label, or a list of labels, per text in a label hierarchy (engine/task/hierarchy.py).

    hierarchical_precision, _recall and _f1 pool the nodes of all labels together with their ancestors (Kiritchenko,
    Matwin and Famili, 2005). level_<n>_f1 pools the nodes at depth n; it equals the accuracy if every text has exactly
    one node at that depth. For lists of labels, flat_f1 pools the most specific labels.
    """
    scores = {f"hierarchical_{name}": x for name, x in micro_scores(*counts_of("", task, gold, predicted)).items()}
    scores |= {f"level_{depth}_f1": level["f1"] for depth, level in level_scores(task, gold, predicted).items()}
    if task.kind == "multilabel":
        leaves = [[most_specific(label, task.hierarchy) for label in side] for side in (gold, predicted)]
        scores["flat_f1"] = micro_scores(*count_matches("multilabel", *leaves))["f1"]
    return scores


def level_scores(task: Task, gold: Sequence[Any], predicted: Sequence[Any]) -> dict[int, dict[str, float]]:
    """Returns {depth: {"precision", "recall", "f1", "support"}} for all depths of a task's label hierarchy."""
    counts = counts_of("", task, gold, predicted)
    levels = {}
    for depth in sorted({depth_of(node, task.hierarchy) for node in task.nodes}):
        here = [Counter({n: c[n] for n in c if depth_of(n, task.hierarchy) == depth}) for c in counts]
        levels[depth] = micro_scores(*here) | {"support": here[2].total()}
    return levels


SCORES: dict[str, Callable[..., dict[str, float]]] = {
    "words": word_scores,
    "classification": classification_scores,
    "multilabel": multilabel_scores,
    "regression": regression_scores,
    "tagging": tagging_scores,
    "spans": span_scores,
    "relations": relation_scores,
    "events": event_scores,
}
MAIN = {
    "words": "accuracy",
    "classification": "accuracy",
    "multilabel": "micro_f1",
    "regression": "spearman",
    "tagging": "f1",
    "spans": "f1",
    "relations": "f1",
    "events": "f1",
}


# ---- counts, F1 and scores per label ---------------------------------------------------------------------------------


def items_in(kind: str, label: Any) -> set[tuple]:
    """Returns the items of a text's label that must match: {(label, word index, …)} for entities, spans and relations;
    {(label, first word, last word)} for triggers and arguments of events; {(tag, position)} for words; else
    {(label,)}."""
    if kind == "tagging":
        return set(entities_in(label))
    if kind == "events":
        items = (label[i] for event in events_in(label) for i in (*event.triggers, *event.arguments))
        return {(name, *places[2:]) for *places, name in items}
    if kind in PLACES:
        return {(name, *places) for *places, name in label}
    if kind == "words":
        return {(tag, position) for position, tag in enumerate(label)}
    return {(name,) for name in label} if kind == "multilabel" else {(label,)}


def count_matches(
    kind: str, gold: Sequence[Any], predicted: Sequence[Any]
) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Counts the items of each label or entity type. Returns (correct, predicted, gold), each {label: count}."""
    counters: tuple[Counter[str], Counter[str], Counter[str]] = (Counter(), Counter(), Counter())
    for g, p in zip(gold, predicted):
        gold_items, predicted_items = items_in(kind, g), items_in(kind, p)
        for counter, items in zip(counters, (gold_items & predicted_items, predicted_items, gold_items)):
            counter.update(item[0] for item in items)
    return counters


def counts_of(
    kind: str, task: Task, gold: Sequence[Any], predicted: Sequence[Any]
) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Like `count_matches`, but with a label hierarchy, counts all nodes of the labels, including their ancestors."""
    if not task.hierarchy:
        return count_matches(kind, gold, predicted)
    return count_matches(
        "multilabel", *([with_ancestors(x, task.hierarchy) for x in side] for side in (gold, predicted))
    )


def precision_recall_f1(right: int, predicted: int, gold: int) -> dict[str, float]:
    return {
        "precision": right / max(1, predicted),
        "recall": right / max(1, gold),
        "f1": 2 * right / max(1, predicted + gold),
    }


def micro_scores(*counters: Counter[str]) -> dict[str, float]:
    """Returns micro-averaged precision, recall and F1. counters: from `count_matches`."""
    return precision_recall_f1(*(counter.total() for counter in counters))


def label_scores(right: Counter[str], predicted: Counter[str], gold: Counter[str]) -> dict[str, dict[str, float]]:
    """Returns {label or entity type: {"precision", "recall", "f1", "support"}}. Arguments: from `count_matches`."""
    return {
        label: precision_recall_f1(right[label], predicted[label], gold[label]) | {"support": gold[label]}
        for label in sorted({*predicted, *gold})
    }


# ---- all tasks together ----------------------------------------------------------------------------------------------


def scoring_kind(task: Task) -> str:
    """Returns the key of a task in SCORES: its type; for a custom type, the kind of its labels; for tags that do not
    mark entities (no B-, I-, …), "words"."""
    kind = task.type if task.type in SCORES else task.kind
    return "words" if kind == "tagging" and not names_entities(task) else kind


def score(tasks: dict[str, Task], gold: dict[str, list[Any]], predicted: dict[str, list[Any]]) -> dict[str, float]:
    """Computes <task>_<metric> for each task over its labelled texts, and two scores over all tasks.

    sentence_accuracy is the fraction of texts whose labels are all correct, except for regression. mean_score is the
    mean of the tasks' main scores; it exists for several tasks, unless all of them are classification, tagging or
    spans. gold, predicted: {task: one entry per text}; gold is None for unlabelled texts.
    """
    scores: dict[str, float] = {}
    mains: list[float] = []
    wrong: set[int] = set()  # row numbers
    with_labels: set[int] = set()
    for name, task in tasks.items():
        kind, labelled = scoring_kind(task), labelled_rows(gold[name])
        if not labelled:
            continue
        sides = [[side[name][i] for i in labelled] for side in (gold, predicted)]
        scores |= {f"{name}_{metric}": float(value) for metric, value in scores_of(task, *sides).items()}
        if task.entities in tasks:
            types = [[side[task.entities][i] for i in labelled] for side in (gold, predicted)]
            typed = span_scores(*typed_sides(sides, types))
            scores |= {f"{name}_typed_{metric}": value for metric, value in typed.items()}
        mains.append(scores[f"{name}_{MAIN[kind]}"])
        if kind != "regression":
            with_labels.update(labelled)
            wrong.update(i for i, g, p in zip(labelled, *sides) if not is_same(kind, g, p))
    if with_labels:
        scores["sentence_accuracy"] = (len(with_labels) - len(wrong)) / len(with_labels)
    if len(tasks) > 1 and not all_exact(tasks):
        scores["mean_score"] = sum(mains) / max(1, len(mains))
    return scores


def scores_of(task: Task, gold: list[Any], predicted: list[Any]) -> dict[str, float]:
    """Returns {metric: value} of a task over its labelled texts."""
    of_levels = hierarchy_scores(task, gold, predicted) if task.hierarchy else {}
    return SCORES[scoring_kind(task)](gold, predicted) | of_levels


def is_same(kind: str, gold: Any, predicted: Any) -> bool:
    """Returns whether a prediction matches exactly, ignoring the order of labels and spans."""
    if kind == "events":
        return whole_events(gold) == whole_events(predicted)
    if kind in PLACES or kind == "multilabel":
        return items_in(kind, gold) == items_in(kind, predicted)
    return gold == predicted


def is_right(task: Task, gold: Any, predicted: Any) -> bool | None:
    """Returns whether the prediction for a text matches exactly; None for regression and unlabelled texts."""
    kind = scoring_kind(task)
    return None if gold is None or kind == "regression" else is_same(kind, gold, predicted)


def main_scores(tasks: dict[str, Task]) -> list[str]:
    """Returns the names of the most important scores: the joint scores, then the main score of each task."""
    mains = [f"{name}_{MAIN[scoring_kind(task)]}" for name, task in tasks.items()]
    mains += [f"{name}_hierarchical_f1" for name, task in tasks.items() if task.hierarchy and task.kind != "multilabel"]
    return ["sentence_accuracy", "mean_score", *mains] if len(tasks) > 1 else mains


def report(
    tasks: dict[str, Task], gold: dict[str, list[Any]], predicted: dict[str, list[Any]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Returns {task: {label or entity type: {"precision", "recall", "f1", "support"}}}, except for regression tasks."""
    result = {}
    for name, task in tasks.items():
        kind = scoring_kind(task)
        if kind == "regression":
            continue
        sides = [[side[name][i] for i in labelled_rows(gold[name])] for side in (gold, predicted)]
        result[name] = label_scores(*counts_of(kind, task, *sides))
        if kind == "tagging":  # computed as in seqeval, so that the last digits agree
            for scores in result[name].values():
                precision, recall = scores["precision"], scores["recall"]
                scores["f1"] = 2 * precision * recall / (precision + recall or 1)
    return result


def labelled_rows(gold: Sequence[Any]) -> list[int]:
    return [i for i, label in enumerate(gold) if label is not None]


def table(per_label: dict[str, dict[str, float]], most: int = 40) -> str:
    """Formats one task of `report` as a text table, most frequent labels first. most: the maximum number of rows"""
    ordered = sorted(per_label.items(), key=lambda item: (-item[1]["support"], item[0]))
    width = max(map(len, per_label), default=5)
    lines = [f"{'':<{width}}  precision  recall      f1  support"]
    lines += [
        f"{name:<{width}}  {s['precision']:9.3f}  {s['recall']:6.3f}  {s['f1']:6.3f}  {s['support']:7}"
        for name, s in ordered[:most]
    ]
    return "\n".join(lines + ([f"… and {len(ordered) - most} more"] if len(ordered) > most else []))


def mean_losses(
    batches: Sequence[Mapping[str, Sequence[float]]], combine: Callable[[dict[str, float]], Any]
) -> dict[str, float]:
    """Returns {"loss", "<task>_loss"}, averaged over all labels. batches: {task: (sum of losses, number of labels)} of
    each batch; combine({task: loss}) -> total loss, as in MyLoss."""
    losses = {}
    for name in batches[0] if batches else ():
        total, count = (sum(column) for column in zip(*(batch[name] for batch in batches)))
        losses[name] = total / max(count, 1e-12)
    if not losses:
        return {}
    return {"loss": float(combine(losses))} | {f"{name}_loss": loss for name, loss in losses.items()}


def all_exact(tasks: dict[str, Task]) -> bool:
    return all(scoring_kind(task) in ("classification", "tagging", "spans", "words") for task in tasks.values())


def score_names(tasks: dict[str, Task]) -> list[str]:
    """Returns the names of all scores and losses of these tasks, found by scoring example labels. Raises UserError if
    two scores have the same name, which can happen for tasks named "a" and "a_macro"."""
    examples = example_labels(tasks)
    owners = {"loss": "all tasks", "sentence_accuracy": "all tasks", "mean_score": "all tasks"}
    for name, task in tasks.items():
        for metric in ("loss", *scores_of(task, examples[name], examples[name])):
            other = owners.setdefault(f"{name}_{metric}", name)
            if other != name:
                raise UserError(f"{name!r} and {other!r} would both have a score {name}_{metric}; rename a task")
    return ["loss", *(f"{name}_loss" for name in tasks), *score(tasks, examples, examples)]


def example_labels(tasks: dict[str, Task]) -> dict[str, list[Any]]:
    """Returns {task: labels of some texts}, which include every label of labels.json, because a custom metric may
    reject others."""
    examples: dict[str, list[Any]] = {}
    for name, task in tasks.items():
        labels: Any = list(task.labels) or ["O"]
        by_kind = {"tagging": [labels], "multilabel": [[label] for label in labels]}
        by_kind |= {kind: [[[*[0] * number, label]] for label in labels] for kind, number in PLACES.items()}
        by_kind |= {"regression": [task.mean, task.mean + task.std]}
        examples[name] = by_kind.get(task.kind, labels)
    size = max(map(len, examples.values()))
    return {name: [rows[i % len(rows)] for i in range(size)] for name, rows in examples.items()}


def monitor_of(requested: str, tasks: dict[str, Task]) -> str:
    """Returns the score that selects the best checkpoint. requested: --monitor, or "" for `default_monitor`. Raises
    UserError if there is no such score."""
    monitor, names = requested or default_monitor(tasks), score_names(tasks)
    if monitor not in names:
        raise UserError(f"--monitor={monitor} must be one of the scores: {', '.join(names)}")
    return monitor


def default_monitor(tasks: dict[str, Task]) -> str:
    """Returns the default of --monitor: the main score of a single task, otherwise sentence_accuracy or mean_score."""
    if len(tasks) > 1:
        return "sentence_accuracy" if all_exact(tasks) else "mean_score"
    name, task = next(iter(tasks.items()))
    return f"{name}_{MAIN[scoring_kind(task)]}"
