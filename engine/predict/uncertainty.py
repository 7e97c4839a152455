"""Calibration errors of probabilities, and thresholds below which a model abstains.

A decision is a predicted label of a text or, for tagging and spans, a predicted entity.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import beta

from engine.errors import UserError
from engine.predict.predictions import column_kind
from engine.task.task import PLACES
from engine.task.words import entities_in, shares_by_task, why_no_threshold, with_abstention

BINS = 15
CONFIDENCE = 0.95
Decisions = list[tuple[float, bool]]  # (probability, whether it is correct)


def bin_numbers(confidence: Sequence[float] | np.ndarray, bins: int) -> np.ndarray:
    """Returns the bin of each confidence, with the bins [0, 1/bins], (1/bins, 2/bins], …"""
    return np.clip(np.ceil(np.asarray(confidence, float) * bins).astype(int) - 1, 0, bins - 1)


def calibration(confidence: Sequence[float], right: Sequence[bool], bins: int = BINS) -> dict[str, Any]:
    """Returns {"ece", "bins": [{"low", "high", "count", "confidence", "accuracy"}]}.

    ECE is the expected calibration error (Naeini et al., 2015; Guo et al., 2017, equation 3): the mean over decisions
    of |accuracy - mean confidence| of the bin that contains the decision (`bin_numbers`).
    """
    columns = {"confidence": np.asarray(confidence, float), "accuracy": np.asarray(right, float)}
    number = bin_numbers(confidence, bins)
    table: list[dict[str, Any]] = []
    ece = 0.0
    for i in range(bins):
        inside = number == i
        count = int(inside.sum())
        means = {name: float(values[inside].mean()) if count else None for name, values in columns.items()}
        table.append({"low": i / bins, "high": (i + 1) / bins, "count": count} | means)
        if count:
            ece += count / len(confidence) * abs(table[-1]["accuracy"] - table[-1]["confidence"])
    return {"ece": ece, "bins": table}


def decisions_of(kind: str, gold: Any, predicted: Any, probability: Any) -> Decisions:
    """Returns the decisions for a labelled text that have a probability. kind: key of LABEL_SCHEMAS (stored.py)"""
    if kind in ("classification", "regression"):
        return [] if probability is None or kind == "regression" else [(probability, gold == predicted)]
    if not isinstance(probability, list):
        return []
    if kind == "words":
        return list(zip(probability, [a == b for a, b in zip(gold, predicted)]))
    items, known = (
        entities_in(label) if kind == "tagging" else [tuple(x) if kind in PLACES else x for x in label]
        for label in (predicted, gold)
    )
    return list(zip(probability, [item in set(known) for item in items])) if len(items) == len(probability) else []


def losses_and_decisions(
    kind: str, labels: Sequence[str], gold: Any, predicted: Any, probability: Any, average: Any
) -> tuple[list[float], Decisions]:
    """Returns (negative log likelihoods, decisions) of a text.

    For one label per text, the likelihood is the gold label's; otherwise it is of whether each decision is correct. For
    multilabel, each label of the task is a decision. average: the distribution over a text's labels, if there is one.
    """
    decisions = decisions_of(kind, gold, predicted, probability)
    if average is not None and average.ndim == 1 and len(average) == len(labels):
        by_label = dict(zip(labels, average.double().tolist()))
        if kind == "multilabel":
            decisions = [(p, label in gold) for label, p in by_label.items()]
        elif kind == "classification":
            decisions = [(max(by_label.values()), gold == predicted)]
            return [-math.log(max(by_label[gold], 1e-12))] if gold in by_label else [], decisions
    if not all(isinstance(p, float | int) and 0 <= p <= 1 + 1e-6 for p, _ in decisions):
        return [], []
    return [-math.log(max(p if is_right else 1 - p, 1e-12)) for p, is_right in decisions], decisions


def calibration_scores(
    tasks: Mapping[str, Any], kinds: dict[str, str], gold: dict[str, list], predictions: Any
) -> dict[str, float]:
    """Computes <task>_ece and <task>_nll with the temperature fitted on dev, and <task>_ece_untempered and
    <task>_nll_untempered at temperature 1, for tasks with probabilities."""
    scores: dict[str, float] = {}
    for name, task in tasks.items():
        _, averages = kinds[name], predictions.averages[name]
        columns = gold[name], predictions.labels[name]
        before, of_texts = predictions.untempered[name], kinds[name] in ("classification", "multilabel")
        sides = {"": (predictions.probabilities[name], averages)}
        sides["_untempered"] = ([None] * len(before), before) if of_texts else (before, averages)
        for suffix, (probabilities, of_labels) in sides.items():
            nlls: list[float] = []
            decisions: Decisions = []
            for true, predicted, p, average in zip(*columns, probabilities, of_labels):
                if true is not None:
                    losses, found = losses_and_decisions(kinds[name], task.labels, true, predicted, p, average)
                    nlls += losses
                    decisions += found
            if decisions and nlls:
                scores[f"{name}_ece{suffix}"] = calibration(
                    [p for p, _ in decisions], [is_right for _, is_right in decisions]
                )["ece"]
                scores[f"{name}_nll{suffix}"] = float(np.mean(nlls))
    return scores


# ---- abstention: fewer but more precise predictions ------------------------------------------------------------------


class Abstention:
    """Omits predictions below a probability, and counts them. thresholds: from `shares_by_task`"""

    def __init__(self, thresholds: dict[str, float]):
        self.thresholds, self.counts = thresholds, Counter[str]()

    def __call__(self, name: str, kind: str, label: Any, probability: Any) -> tuple[Any, Any]:
        """Returns (label, probability) without predictions below the task's threshold. kind: as for `columns_of`"""
        if not (lowest := self.thresholds.get(name, self.thresholds.get("", 0.0))):
            return label, probability
        label, probability, omitted, total = with_abstention(kind, label, probability, lowest)
        if total:
            self.counts[f"abstained {name}"] += omitted
            self.counts[f"answers {name}"] += total
        return label, probability


def thresholds_of(text: str, flag: str, tasks: Mapping[str, Any]) -> dict[str, float]:
    """Parses an option such as "0.9" or "intent=0.9,slots=0.8". Returns {task or "": number}. Raises UserError for
    unknown tasks and for tasks that never abstain."""
    shares = shares_by_task(text)
    never_abstain = [name for name, task in tasks.items() if task.kind == "regression" or column_kind(task) == "tags"]
    if wrong := why_no_threshold(shares, tasks, never_abstain):
        raise UserError(f"--{flag}={text}: {wrong}")
    return shares


def interval(hits: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Returns the confidence interval of a proportion (Clopper and Pearson, 1934)."""
    rest = (1 - confidence) / 2
    low = float(beta.ppf(rest, hits, total - hits + 1)) if hits else 0.0
    return low, float(beta.ppf(1 - rest, hits + 1, total - hits)) if hits < total else 1.0


def lowest_threshold(decisions: Decisions, target: float) -> float | None:
    """Returns the lowest threshold, rounded down to six digits, above which decisions have the target precision: the
    lower bound of its one-sided 95 % confidence interval reaches the target. Returns None if there is none."""
    p, right = np.array(sorted(decisions, reverse=True), float).reshape(-1, 2).T
    grid = np.floor(p * 1e6) / 1e6
    ends = np.flatnonzero(np.diff(grid, append=-1.0))  # the last decision at each threshold
    hits = right.cumsum()[ends]
    low = beta.ppf(1 - CONFIDENCE, hits, ends + 2 - hits)
    reached = np.flatnonzero(np.where(hits > 0, low, 0.0) >= target)
    return float(grid[ends[reached[-1]]]) if len(reached) else None


def coverage_scores(name: str, decisions: Decisions, threshold: float) -> tuple[dict[str, float], str]:
    """Scores the decisions that reach a threshold. Returns ({score: value}, a line for the log)."""
    covered = [is_right for p, is_right in decisions if p >= threshold]
    scores = {f"{name}_abstain_below": threshold, f"{name}_coverage": len(covered) / len(decisions)}
    text = f"{name}: {shown(len(covered), len(decisions))} of the predictions have a probability >= {threshold:g}"
    if covered:
        scores[f"{name}_answered_precision"] = sum(covered) / len(covered)
        text += f", and {shown(sum(covered), len(covered))} of these are correct"
    return scores, text


def shown(hits: int, total: int) -> str:
    """Formats a proportion with its confidence interval."""
    low, high = interval(hits, total)
    return f"{hits / total:.4f} [{low:.4f}, {high:.4f}]"


def abstention_scores(
    split: str, kinds: dict[str, str], gold: dict[str, list], predictions: Any, abstention: Abstention, targets: dict
) -> tuple[dict[str, float], list[str]]:
    """Scores the decisions above the thresholds. Returns ({score: value}, lines for the log).

    targets: {task or "": precision}, used on dev to choose the thresholds first. Raises UserError if a target cannot be
    reached.
    """
    scores: dict[str, float] = {}
    lines = []
    for name, kind in kinds.items():
        columns = gold[name], predictions.labels[name], predictions.probabilities[name]
        decisions = [d for row in zip(*columns) if row[0] is not None for d in decisions_of(kind, *row)]
        decisions = [] if kind == "words" else decisions  # word tags are never omitted
        target = targets.get(name, targets.get("", 0.0))
        if target and split == "dev" and (decisions or name in targets):
            threshold = lowest_threshold(decisions, target)
            if threshold is None:
                raise UserError(
                    f"--target_precision: no threshold gives the {len(decisions)} predictions of {name!r} in dev a "
                    f"precision of at least {target:g} with {CONFIDENCE:.0%} confidence; lower it, or add labels to dev"
                )
            abstention.thresholds[name] = threshold
        threshold = abstention.thresholds.get(name, abstention.thresholds.get("", 0.0))
        if threshold and decisions:
            values, line = coverage_scores(name, decisions, threshold)
            scores |= values
            lines.append(f"{split}, {line}")
    return scores, lines
