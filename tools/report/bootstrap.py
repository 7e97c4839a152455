"""Confidence intervals of scores by the percentile bootstrap over the rows of a part.

Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13. A resample draws N of N rows with replacement;
here it is a vector of weights, the number of times each row was drawn. All scores except Spearman's are functions of
sums over rows, so a resample is a product of the weights and the rows' statistics: 100,000 rows take seconds. All
scores and all runs of a comparison use the same resamples, so differences are paired.
"""

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix

from tools.report.entities import entity_sets

TIMES, SEED, SHARE = 1000, 20240101, 0.95


class Statistic(NamedTuple):
    """Scores that are functions of sums over rows."""

    columns: csr_matrix  # (N, S), statistics of each row
    scores: object  # sums (R, S) -> {name: (R,)}


class OfWeights(NamedTuple):
    """Scores that are not functions of sums."""

    scores: object  # weights (R, N) -> {name: (R,)}


def weights_of(num_rows, times=TIMES, seed=SEED, cells=2**22):
    """Yields chunks (R, N) of row counts, `times` resamples in all."""
    rng = np.random.default_rng(seed)
    size = max(1, cells // max(1, num_rows))
    for start in range(0, times, size):
        draws = range(min(size, times - start))
        yield np.stack([np.bincount(rng.integers(0, num_rows, num_rows), minlength=num_rows) for _ in draws])


def evaluate(statistics, weights):
    """{score: (R,)} for resamples with these weights (R, N)."""
    scores = {}
    for statistic in statistics:
        if isinstance(statistic, OfWeights):
            scores |= statistic.scores(weights)
        else:
            scores |= statistic.scores((statistic.columns.T @ weights.T).T)
    return scores


def point(statistics, num_rows):
    """{score: value on the original rows}."""
    return {name: float(values[0]) for name, values in evaluate(statistics, np.ones((1, num_rows))).items()}


def resample(statistics, num_rows, times=TIMES, seed=SEED):
    """{score: values (times,) of the resamples}"""
    found = [evaluate(statistics, weights) for weights in weights_of(num_rows, times, seed)]
    return {name: np.concatenate([scores[name] for scores in found]) for name in found[0]}


def interval(values, share=SHARE):
    """[low, high], with (1 - share) / 2 of the resamples outside on each side."""
    low, high = np.quantile(values, [(1 - share) / 2, (1 + share) / 2])
    return [float(low), float(high)]


def add_mean_score(scores, mains):
    """Adds mean_score, the mean of the tasks' main scores, to {score: value or values} if all of them exist."""
    if len(mains) > 1 and all(name in scores for name in mains):
        scores["mean_score"] = sum(scores[name] for name in mains) / len(mains)


# ---- statistics of the scores in metrics.py --------------------------------------------------------------------------


def ratio(top, bottom):
    """top / bottom, 0 where bottom is 0."""
    return np.divide(top, bottom, out=np.zeros(np.broadcast(top, bottom).shape), where=bottom > 0)


def per_label(tables, labels):
    """(N, 3K) counts for each row: right, predicted and gold of each label. tables: for each row three lists of labels,
    possibly with repetitions"""
    number = {label: i for i, label in enumerate(labels)}
    rows, columns = [], []
    for row, lists in enumerate(tables):
        for offset, names in zip((0, len(labels), 2 * len(labels)), lists):
            columns += [offset + number[name] for name in names]
            rows += [row] * len(names)
    ones = np.ones(len(rows))
    return csr_matrix((ones, (rows, columns)), shape=(len(tables), 3 * len(labels)))


def f1_by_label(sums):
    """F1 (R, K), gold counts (R, K) and which labels occur (R, K), from sums (R, 3K)."""
    right, guessed, there = np.split(np.asarray(sums, float), 3, 1)
    return ratio(2 * right, guessed + there), there, guessed + there > 0


def averages(sums):
    f1, there, occurs = f1_by_label(sums)
    macro = ratio(f1.sum(1), occurs.sum(1))
    return {"macro_f1": macro, "weighted_f1": ratio((f1 * there).sum(1), there.sum(1))}


def label_statistics(kind, pairs):
    """Statistics for classification, words and multilabel. pairs: [(gold, predicted)] of the rows, gold may be None"""
    tables, sets = [], []
    for gold, predicted in pairs:
        if gold is None:
            tables.append(((), (), ()))
        elif kind == "multilabel":
            tables.append((set(gold) & set(predicted), set(predicted), set(gold)))
        elif kind == "words":
            tables.append(([g for g, p in zip(gold, predicted) if g == p], predicted, gold))
        else:
            tables.append(((gold,) if gold == predicted else (), (predicted,), (gold,)))
        sets.append(kind == "multilabel" and gold is not None and set(gold) == set(predicted))
    labels = sorted({label for lists in tables for label in (*lists[1], *lists[2])})
    counts = per_label(tables, labels)
    if kind != "multilabel":
        return [
            Statistic(
                counts,
                lambda sums: (
                    {"accuracy": ratio(sums[:, : len(labels)].sum(1), sums[:, 2 * len(labels) :].sum(1))}
                    | averages(sums)
                ),
            )
        ]
    there = np.array([gold is not None for gold, _ in pairs])
    return [
        Statistic(counts, lambda sums: {"micro_f1": micro_f1(sums)} | averages(sums)),
        Statistic(csr_matrix(np.stack([sets, there], 1).astype(float)), share_of),
    ]


def micro_f1(sums):
    right, guessed, there = (part.sum(1) for part in np.split(np.asarray(sums, float), 3, 1))
    return ratio(2 * right, guessed + there)


def share_of(sums, name="accuracy"):
    return {name: ratio(sums[:, 0], sums[:, 1])}


def entity_statistics(pairs):
    """Statistics for entities. pairs: for each row the sets of gold and predicted entities, or None"""
    rows = [(0, 0, 0) if p is None else (len(p[0] & p[1]), len(p[1]), len(p[0])) for p in pairs]

    def scores(sums):
        right, guessed, there = sums[:, 0], sums[:, 1], sums[:, 2]
        return {
            "precision": ratio(right, guessed),
            "recall": ratio(right, there),
            "f1": ratio(2 * right, guessed + there),
        }

    return [Statistic(csr_matrix(np.array(rows, float).reshape(len(pairs), 3)), scores)]


def regression_statistics(pairs):
    """Statistics for regression. pairs: (gold, predicted) of each row, gold None if missing"""
    there = np.array([gold is not None for gold, _ in pairs])
    gold, predicted = (np.array([0.0 if p[0] is None else p[side] for p in pairs], float) for side in (0, 1))
    x, y = (np.where(there, v - v[there].mean(), 0.0) for v in (gold, predicted))  # centred for precision
    columns = np.stack([there, x, y, x * x, y * y, x * y, np.where(there, abs(gold - predicted), 0.0)], 1)

    def scores(sums):
        n, sx, sy, sxx, syy, sxy, error = np.asarray(sums, float).T
        n = np.maximum(n, 1)
        return {"pearson": correlation(sxy - sx * sy / n, sxx - sx**2 / n, syy - sy**2 / n), "mae": error / n}

    return [Statistic(csr_matrix(columns.astype(float)), scores), OfWeights(Spearman(gold, predicted, there))]


def correlation(products, first, second):
    """Correlation from centred sums; 0 if one side is constant."""
    scale = np.sqrt(np.maximum(first, 0) * np.maximum(second, 0))
    return np.divide(products, scale, out=np.zeros_like(products), where=scale > 1e-12)


class Spearman:
    """Spearman's correlation of resamples: Pearson's of the ranks within each resample."""

    def __init__(self, gold, predicted, there):
        self.there, self.values = there, (gold[there], predicted[there])

    def __call__(self, weights):
        weights = np.asarray(weights[:, self.there], float)
        total = np.maximum(weights.sum(1, keepdims=True), 1)
        x, y = (mid_ranks(values, weights) - (total + 1) / 2 for values in self.values)
        return {"spearman": correlation(*((weights * a * b).sum(1) for a, b in ((x, y), (x, x), (y, y))))}


def mid_ranks(values, weights):
    """(R, N) ranks of values (N,) with multiplicities `weights`; equal values share their mean rank."""
    group = np.unique(values, return_inverse=True)[1]
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    counts = np.add.reduceat(weights[:, order], starts, axis=1)
    return (counts.cumsum(1) - (counts - 1) / 2)[:, group]


def statistics_for(kind, answers):
    """The statistics of a task's main scores. answers: the task's answer of each row, from answers.py"""
    pairs = [(answer["gold"], answer["predicted"]) for answer in answers]
    if kind in ("tagging", "spans"):
        return entity_statistics([None if g is None else entity_sets(kind, g, p) for g, p in pairs])
    return regression_statistics(pairs) if kind == "regression" else label_statistics(kind, pairs)


class Named:
    """The scores of a task, with their names in eval.json."""

    def __init__(self, task, scores):
        self.task, self.scores = task, scores

    def __call__(self, sums):
        return {f"{self.task}_{name}": values for name, values in self.scores(sums).items()}


def statistics_of(rows, kinds):
    """All statistics of a part's rows: those of each task that has labels, and sentence_accuracy."""
    found = []
    for task, kind in kinds.items():
        answers = [row["answers"][task] for row in rows]
        if any(answer["gold"] is not None for answer in answers):
            found += [one._replace(scores=Named(task, one.scores)) for one in statistics_for(kind, answers)]
    verdicts = np.array([row_verdict(row) for row in rows], float).reshape(len(rows), 2)
    if verdicts[:, 1].any():
        found.append(Statistic(csr_matrix(verdicts), lambda sums: share_of(sums, "sentence_accuracy")))
    return found


def row_verdict(row):
    """(1 if all answers of a row are right, 1 if it has labels)."""
    known = [answer["right"] for answer in row["answers"].values() if answer["right"] is not None]
    return int(bool(known) and all(known)), int(bool(known))
