"""Computes the statistics of the report from stored rows. Shares are between 0 and 1.

Each docstring is a complete definition, from which tests compute the values independently.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.predict.uncertainty import bin_numbers
from engine.task.task import PLACES, needs_words
from engine.task.words import entities_in

Row = dict[str, Any]  # as stored by stored.py
Outcome = dict[str, Any]  # the gold and predicted label of a row for a task
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def confusions(gold: Sequence[str], predicted: Sequence[str]) -> list[list]:
    """Counts errors. Returns [[gold label, predicted label, count, share of the gold label]], most frequent first."""
    support = Counter(gold)
    pairs = Counter((g, p) for g, p in zip(gold, predicted) if g != p)
    return [[g, p, count, count / support[g]] for (g, p), count in most_frequent(pairs)]


def most_frequent(counts: Counter) -> list[tuple[Any, int]]:
    """Returns [(item, count)], most frequent first; ties are sorted by item."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def matrix(gold: Sequence[str], predicted: Sequence[str], most: int = 16) -> dict[str, Any]:
    """Returns {"labels", "counts", "all"} of the confusion matrix, whose rows are gold labels. If there are more than
    `most` labels, it contains only the most frequently confused ones. Labels are ordered by frequency."""
    frequency = Counter(gold) + Counter(predicted)
    wrong = Counter(label for g, p in zip(gold, predicted) if g != p for label in (g, p))
    chosen = sorted(frequency, key=lambda label: (-wrong[label], -frequency[label], label))[:most]
    labels = sorted(chosen, key=lambda label: (-frequency[label], label))
    counts = Counter(zip(gold, predicted))
    return {"labels": labels, "counts": [[counts[g, p] for p in labels] for g in labels], "all": len(frequency)}


def histogram(confidence: Sequence[float], right: Sequence[bool], bins: int = 20) -> list[list[int]]:
    """Counts right and wrong predictions in bins of equal width from 0 to 1. Returns [[right, wrong] per bin]."""
    number, is_right = bin_numbers(confidence, bins), np.asarray(right, bool)
    return np.stack([np.bincount(number[side], minlength=bins) for side in (is_right, ~is_right)], 1).tolist()


def coverage(confidence: Sequence[float], right: Sequence[bool]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (thresholds, coverages, accuracies) for abstaining below each confidence that occurs, highest first.

    Coverage is the share of rows with at least this confidence; accuracy is the share of right rows among these.
    """
    thresholds, counts, num_right = descending(confidence, right)
    return thresholds, counts / len(confidence), num_right / counts


def descending(values: Sequence[float], right: Sequence[bool]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (distinct values, highest first; number of values >= each; number of right predictions among these)."""
    unsorted = np.asarray(values, float)
    order = np.argsort(-unsorted, kind="stable")
    ordered = unsorted[order]
    last = np.flatnonzero(np.diff(ordered, append=-1) != 0)  # last index of each run of equal values
    return ordered[last], last + 1, np.asarray(right, float)[order].cumsum()[last]


def coverage_table(
    confidence: Sequence[float], right: Sequence[bool], thresholds: Sequence[float] = THRESHOLDS
) -> list[dict[str, float | None]]:
    """Returns [{"threshold", "coverage", "accuracy"}], with accuracy None if no row reaches the threshold."""
    table: list[dict[str, float | None]] = []
    for threshold in thresholds:
        sure = np.asarray(confidence, float) >= threshold
        accuracy = float(np.asarray(right, float)[sure].mean()) if sure.any() else None
        table.append({"threshold": threshold, "coverage": float(sure.mean()), "accuracy": accuracy})
    return table


def thinned(*columns: np.ndarray, most: int = 160) -> list[list[float]]:
    """Subsamples a curve evenly to at most `most` points, keeping both ends. columns: the coordinates."""
    size = len(columns[0])
    kept = np.unique(np.linspace(0, size - 1, min(size, most)).round().astype(int))
    return [column[kept].tolist() for column in columns]


def threshold_curve(probabilities: Sequence[dict[str, float]], gold: Sequence[set[str]]) -> dict[str, Any]:
    """Returns {"thresholds", "precision", "recall", "f1", "best": {"threshold", "f1"}} for a multilabel task. Scores
    are micro-averaged; a label is predicted if p >= threshold. probabilities: {label: p} per text."""
    pairs = [(p, label in g) for row, g in zip(probabilities, gold) for label, p in row.items()]
    support = sum(map(len, gold))
    if not pairs or not support:
        return {"thresholds": [], "precision": [], "recall": [], "f1": [], "best": None}
    thresholds, num_predicted, right = descending(*zip(*pairs))
    f1 = 2 * right / (num_predicted + support)
    best = {"threshold": float(thresholds[f1.argmax()]), "f1": float(f1.max())}
    columns = thinned(thresholds, right / num_predicted, right / support, f1)
    return dict(zip(("thresholds", "precision", "recall", "f1"), columns)) | {"best": best}


def error_pairs(gold: Sequence[set[str]], predicted: Sequence[set[str]]) -> tuple[list[list], list[list]]:
    """Counts the errors of a multilabel task. Returns ([[missed label, falsely predicted label, texts with both]],
    [[label, times missed, times falsely predicted]]), most frequent first."""
    together: Counter[tuple[str, str]] = Counter()
    missed: Counter[str] = Counter()
    extra: Counter[str] = Counter()
    for g, p in zip(gold, predicted):
        missed.update(g - p)
        extra.update(p - g)
        together.update((m, i) for m in g - p for i in p - g)
    pairs = [[*pair, count] for pair, count in most_frequent(together)]
    return pairs, [[label, missed[label], extra[label]] for label, _ in most_frequent(missed + extra)]


def residuals(
    gold: Sequence[float], predicted: Sequence[float], bins: int = 20, most: int = 1500
) -> dict[str, Any] | None:
    """Computes statistics of the errors of finite predictions. Returns {"points": [[gold, predicted]] (up to `most`,
    evenly spaced by gold rank), "edges" and "counts" (histogram of predicted - gold), "mean", "std", "rmse", "r2"}, or
    None if no prediction is finite."""
    finite = np.isfinite(np.asarray(predicted, float))
    x, y = np.asarray(gold, float)[finite], np.asarray(predicted, float)[finite]
    if not len(x):
        return None
    error = y - x
    counts, edges = np.histogram(error, bins)
    spread = ((x - x.mean()) ** 2).sum()
    order = np.argsort(x, kind="stable")
    return {
        "points": np.stack(thinned(x[order], y[order], most=most), 1).tolist(),
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "mean": float(error.mean()),
        "std": float(error.std()),
        "rmse": float(np.sqrt((error**2).mean())),
        "r2": float(1 - (error**2).sum() / spread) if spread > 0 else None,
    }


# ---- slices ----------------------------------------------------------------------------------------------------------


def num_tokens(row: Row) -> int:
    """Returns the length in tokens, or in characters if the row has no tokens."""
    return len(row["places"]) if "places" in row else len(row["text"])


def slices(rows: Sequence[Row], max_values: int = 20) -> list[tuple[str, list[tuple[str, list[int]]]]]:
    """Groups rows by length quartile (equal lengths stay together), truncation, windows, and text columns with 2 to
    `max_values` values. Returns [(criterion, [(name, [row numbers])])] without empty groups."""
    lengths = np.array([num_tokens(row) for row in rows])
    edges = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75, 1], method="higher"))
    quartile = np.searchsorted(edges, lengths)
    groups: list[tuple[str, list[int]]] = []
    for number in range(len(edges)):
        inside = np.flatnonzero(quartile == number)
        if len(inside):
            low, high = lengths[inside].min(), lengths[inside].max()
            groups.append((f"{low}" if low == high else f"{low} – {high}", inside.tolist()))
    result = [("length", groups)] if len(groups) > 1 else []
    for name, test in (("cut", lambda row: row["cut"] > 0), ("windows", lambda row: row["windows"] > 1)):
        selected = [i for i, row in enumerate(rows) if test(row)]
        if selected:
            rest = sorted({*range(len(rows))} - {*selected})
            result.append((name, [("yes", selected), *([("no", rest)] if rest else [])]))
    for name in dict.fromkeys(name for row in rows for name in row.get("columns", ())):
        values = [row.get("columns", {}).get(name) for row in rows]
        counts = Counter(value for value in values if isinstance(value, str))
        if 2 <= len(counts) <= max_values:
            groups = [(value, [i for i, v in enumerate(values) if v == value]) for value, _ in counts.most_common()]
            result.append((name, groups))
    return result


def unread(rows: Sequence[Row], tagging: bool, joined: bool = False) -> dict[str, Any] | None:
    """Returns the number of truncated texts ("n"), their share, the share of all tokens that is truncated ("tokens")
    and an option that avoids it, or None if no text is truncated. tagging: whether words are labelled, in which case
    --window_stride controls the windows of long texts. joined: whether --long_text is windows, but these texts were
    too long for it."""
    n = sum(row["cut"] > 0 for row in rows)
    cut, tokens = (sum(row.get(name, 0) for row in rows) for name in ("cut", "tokens"))
    option = "--window_stride 0" if tagging else "--long_text windows"
    if joined and n:
        option = f"--max_length {max(row.get('tokens', 0) for row in rows if row['cut'])}"
    return {"n": n, "share": n / len(rows), "tokens": cut / max(cut, tokens), "option": option} if n else None


# ---- confidence and errors -------------------------------------------------------------------------------------------


def row_confidence(kind: str, outcome: Outcome) -> float | None:
    """Returns the confidence of a prediction: the probability of its label or, for multilabel, tags and spans, the
    probability of the least confident decision. Not predicting a label is also a decision. Returns None for
    regression."""
    p, by_label = outcome["probability"], outcome.get("probabilities")
    if kind == "tagging":
        return min((value for _, value in with_probability(items_of(kind, outcome["predicted"]), p)), default=None)
    if kind == "multilabel":
        predicted = set(outcome["predicted"])
        sure = [v if label in predicted else 1 - v for label, v in (by_label or {}).items()]
        return min(sure or known(p), default=1.0)
    if isinstance(p, list):
        return min(known(p), default=None)
    return None if kind == "regression" else p


def known(probability: float | list | None) -> list[float]:
    """Returns one or more probabilities as a list. Omits None, which custom heads may return."""
    values = probability if isinstance(probability, list) else [probability]
    return [value for value in values if value is not None]


def items_of(kind: str, label: list) -> list[tuple]:
    """Returns entities, spans or relations in order as [(token indices, …, label)]."""
    if kind in PLACES:
        return [tuple(item) for item in label]
    return [(first, last, of) for of, first, last in entities_in(label)]


def with_probability(predicted: list, probability: list | None) -> list[tuple]:
    """Returns [(label, tag or entity, probability)] without items that have no probability. Returns [] for tagging runs
    of earlier versions, which have one probability per word."""
    has_one_each = isinstance(probability, list) and len(probability) == len(predicted)
    pairs = zip(predicted, probability) if has_one_each and probability else ()
    return [(label, value) for label, value in pairs if value is not None]


def error_confidence(kind: str, outcome: Outcome) -> float | None:
    """Returns the confidence of the error in a prediction, or None if there is no error.

    Classification: the probability of the label. Multilabel: the probability of the most confident wrong decision. Tags
    that do not mark entities: the probability of the most confident wrong tag. Entities, spans and relations: the
    probability of the most confident wrong one, or 0 if some are missed but none is wrong. Regression: the absolute
    error.
    """
    gold, predicted, p = outcome["gold"], outcome["predicted"], outcome["probability"]
    if gold is None or outcome["right"]:
        return None
    if kind == "regression":
        return abs(predicted - gold)
    if kind == "multilabel":
        by_label = outcome.get("probabilities") or dict(with_probability(predicted, p))
        wrong = {*gold} ^ {*predicted}
        return max((by_label.get(x, 0) if x in predicted else 1 - by_label.get(x, 0) for x in wrong), default=None)
    if needs_words(kind):
        known_items = set(items_of(kind, gold))
        found = with_probability(items_of(kind, predicted), p)
        return max((value for item, value in found if item not in known_items), default=0.0)
    if isinstance(p, list):
        return max((v for g, t, v in zip(gold, predicted, p) if g != t and v is not None), default=None)
    return p
