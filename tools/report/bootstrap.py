"""Confidence intervals of scores by the percentile bootstrap over rows.

Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13. A resample draws N of N rows with replacement
and is represented by weights: the number of times each row was drawn. All scores except Spearman's correlation are
functions of sums over rows, so they are computed from the product of the weights and per-row statistics. This takes
seconds for 100,000 rows. All scores and all runs of a comparison use the same resamples, so differences are paired.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_matrix

from engine.task.task import needs_words
from metrics import ends_of, event_views, items_in, relaxed_of, typed_sides
from tools.report.figures import Outcome

TIMES, SEED, SHARE = 1000, 20240101, 0.95
F1 = {name: name for name in ("precision", "recall", "f1")}
VIEWS: dict[str, Callable] = {"relaxed_": relaxed_of, "entities_": ends_of}  # see metrics.relation_scores
Scores = dict[str, np.ndarray]  # {score: values (R,) in R resamples}


class Statistic(NamedTuple):
    """Scores that are functions of sums over rows."""

    columns: csr_matrix  # (N, S), S statistics per row
    scores: Callable[[np.ndarray], Scores]  # from sums (R, S)


class OfWeights(NamedTuple):
    """Scores that are not functions of sums over rows."""

    scores: Callable[[np.ndarray], Scores]  # from weights (R, N)


def weights_of(num_rows: int, times: int = TIMES, seed: int = SEED, cells: int = 2**22) -> Iterator[np.ndarray]:
    """Yields the weights of `times` resamples in chunks (R, N)."""
    rng = np.random.default_rng(seed)
    size = max(1, cells // max(1, num_rows))
    for start in range(0, times, size):
        draws = range(min(size, times - start))
        yield np.stack([np.bincount(rng.integers(0, num_rows, num_rows), minlength=num_rows) for _ in draws])


def evaluate(statistics: Sequence[Statistic | OfWeights], weights: np.ndarray) -> Scores:
    """Computes the scores of resamples with these weights (R, N)."""
    scores: Scores = {}
    for statistic in statistics:
        if isinstance(statistic, OfWeights):
            scores |= statistic.scores(weights)
        else:
            scores |= statistic.scores((statistic.columns.T @ weights.T).T)
    return scores


def point(statistics: Sequence[Statistic | OfWeights], num_rows: int) -> dict[str, float]:
    """Returns {score: value on the original rows}."""
    return {name: float(values[0]) for name, values in evaluate(statistics, np.ones((1, num_rows))).items()}


def resample(
    statistics: Sequence[Statistic | OfWeights], num_rows: int, times: int = TIMES, seed: int = SEED
) -> Scores:
    chunks = [evaluate(statistics, weights) for weights in weights_of(num_rows, times, seed)]
    return {name: np.concatenate([scores[name] for scores in chunks]) for name in chunks[0]}


def interval(values: np.ndarray, share: float = SHARE) -> list[float]:
    """Returns the percentile interval [low, high] that covers `share` of the resamples."""
    low, high = np.quantile(values, [(1 - share) / 2, (1 + share) / 2])
    return [float(low), float(high)]


def add_mean_score(scores: dict[str, Any], mains: Sequence[str]) -> None:
    """Adds mean_score, the mean of the main scores `mains`, to {score: value or values} if all main scores exist."""
    if len(mains) > 1 and all(name in scores for name in mains):
        scores["mean_score"] = sum(scores[name] for name in mains) / len(mains)


# ---- statistics of the scores in metrics.py --------------------------------------------------------------------------


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Returns top / bottom, or 0 where bottom is 0."""
    return np.divide(top, bottom, out=np.zeros(np.broadcast(top, bottom).shape), where=bottom > 0)


def per_label(tables: Sequence[Sequence[Collection[str]]], labels: Sequence[str]) -> csr_matrix:
    """Returns counts per row (N, 3K): right, predicted and gold for each of K labels. tables: three lists of labels per
    row, which may contain duplicates."""
    number = {label: i for i, label in enumerate(labels)}
    rows: list[int] = []
    columns: list[int] = []
    for row, lists in enumerate(tables):
        for offset, names in zip((0, len(labels), 2 * len(labels)), lists):
            columns += [offset + number[name] for name in names]
            rows += [row] * len(names)
    ones = np.ones(len(rows))
    return csr_matrix((ones, (rows, columns)), shape=(len(tables), 3 * len(labels)))


def f1_by_label(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (F1, gold counts, mask of labels that occur), each (R, K), from sums (R, 3K)."""
    right, predicted, gold = np.split(np.asarray(sums, float), 3, 1)
    return ratio(2 * right, predicted + gold), gold, predicted + gold > 0


def averages(sums: np.ndarray) -> Scores:
    f1, support, occurs = f1_by_label(sums)
    macro = ratio(f1.sum(1), occurs.sum(1))
    return {"macro_f1": macro, "weighted_f1": ratio((f1 * support).sum(1), support.sum(1))}


def label_statistics(kind: str, pairs: Sequence[tuple[Any, Any]]) -> list[Statistic]:
    """Returns statistics for classification, words and multilabel. pairs: (gold or None, predicted) per row."""
    tables: list[tuple[Collection[str], Collection[str], Collection[str]]] = []
    is_exact = []
    for gold, predicted in pairs:
        if gold is None:
            tables.append(((), (), ()))
        elif kind == "multilabel":
            tables.append((set(gold) & set(predicted), set(predicted), set(gold)))
        elif kind == "words":
            tables.append(([g for g, p in zip(gold, predicted) if g == p], predicted, gold))
        else:
            tables.append(((gold,) if gold == predicted else (), (predicted,), (gold,)))
        is_exact.append(kind == "multilabel" and gold is not None and set(gold) == set(predicted))
    labels = sorted({label for lists in tables for label in (*lists[1], *lists[2])})
    counts = per_label(tables, labels)
    if kind != "multilabel":
        return [Statistic(counts, lambda sums: {"accuracy": accuracy(sums)} | averages(sums))]
    has_gold = [gold is not None for gold, _ in pairs]
    return [
        Statistic(counts, lambda sums: {"micro_f1": micro_f1(sums)} | averages(sums)),
        Statistic(csr_matrix(np.stack([is_exact, has_gold], 1).astype(float)), share_of),
    ]


def accuracy(sums: np.ndarray) -> np.ndarray:
    right, _, gold = (counts.sum(1) for counts in np.split(np.asarray(sums, float), 3, 1))
    return ratio(right, gold)


def micro_f1(sums: np.ndarray) -> np.ndarray:
    right, predicted, gold = (counts.sum(1) for counts in np.split(np.asarray(sums, float), 3, 1))
    return ratio(2 * right, predicted + gold)


def share_of(sums: np.ndarray, name: str = "accuracy") -> Scores:
    return {name: ratio(sums[:, 0], sums[:, 1])}


def entity_statistics(pairs: Sequence[tuple[set, set] | None], names: Mapping[str, str] = F1) -> list[Statistic]:
    """Returns statistics for entities. pairs: (set of gold entities, set of predicted entities) per row, or None.
    names: {score: name in the result}."""
    rows = [(0, 0, 0) if p is None else (len(p[0] & p[1]), len(p[1]), len(p[0])) for p in pairs]

    def scores(sums: np.ndarray) -> Scores:
        right, predicted, gold = np.asarray(sums, float).T
        f1 = ratio(2 * right, predicted + gold)
        values = {"precision": ratio(right, predicted), "recall": ratio(right, gold), "f1": f1}
        return {name: values[score] for score, name in names.items()}

    return [Statistic(csr_matrix(np.array(rows, float).reshape(len(pairs), 3)), scores)]


def relation_statistics(pairs: Sequence[tuple[Any, Any]], spans: Sequence[tuple[Any, Any]] | None) -> list[Statistic]:
    """Returns statistics for relations. pairs: (gold or None, predicted) per row. spans: the same for the task with the
    types of subjects and objects, or None if there is no such task."""
    sides = [[[] if pair[0] is None else pair[i] for pair in pairs] for i in (0, 1)]
    views = {"": sides} | {name: [list(map(view, side)) for side in sides] for name, view in VIEWS.items()}
    if spans is not None:
        views["typed_"] = typed_sides(sides, list(zip(*spans)))
    statistics = []
    for prefix, (gold, predicted) in views.items():
        names = {score: prefix + score for score in F1 if score == "f1" or prefix not in VIEWS}
        sets = [(items_in("relations", g), items_in("relations", p)) for g, p in zip(gold, predicted)]
        statistics += entity_statistics(sets, names)
    return statistics


def event_statistics(pairs: Sequence[tuple[Any, Any]]) -> list[Statistic]:
    """Returns statistics for events. pairs: (gold or None, predicted) per row."""
    sides = [[[] if pair[0] is None else pair[i] for pair in pairs] for i in (0, 1)]
    statistics = []
    for prefix, (gold, predicted) in event_views(*sides).items():
        names = {score: prefix + score for score in F1 if score == "f1" or not prefix}
        statistics += entity_statistics(list(zip(gold, predicted)), names)
    return statistics


def regression_statistics(pairs: Sequence[tuple[float | None, float]]) -> list[Statistic | OfWeights]:
    """Returns statistics for regression. pairs: (gold or None, predicted) per row."""
    has_gold = np.array([gold is not None for gold, _ in pairs])
    gold, predicted = (np.array([0.0 if p[0] is None else p[side] for p in pairs], float) for side in (0, 1))
    x, y = (np.where(has_gold, v - v[has_gold].mean(), 0.0) for v in (gold, predicted))  # centred to avoid cancellation
    columns = np.stack([has_gold, x, y, x * x, y * y, x * y, np.where(has_gold, abs(gold - predicted), 0.0)], 1)

    def scores(sums: np.ndarray) -> Scores:
        n, sx, sy, sxx, syy, sxy, error = np.asarray(sums, float).T
        n = np.maximum(n, 1)
        return {"pearson": correlation(sxy - sx * sy / n, sxx - sx**2 / n, syy - sy**2 / n), "mae": error / n}

    def spearman(weights: np.ndarray) -> Scores:
        """Computes Pearson's correlation of the ranks within each resample."""
        weights = np.asarray(weights[:, has_gold], float)
        total = np.maximum(weights.sum(1, keepdims=True), 1)
        x, y = (mid_ranks(values[has_gold], weights) - (total + 1) / 2 for values in (gold, predicted))
        return {"spearman": correlation(*((weights * a * b).sum(1) for a, b in ((x, y), (x, x), (y, y))))}

    return [Statistic(csr_matrix(columns.astype(float)), scores), OfWeights(spearman)]


def correlation(products: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Computes a correlation from centred sums; 0 if one side is constant."""
    scale = np.sqrt(np.maximum(first, 0) * np.maximum(second, 0))
    return np.divide(products, scale, out=np.zeros_like(products), where=scale > 1e-12)


def mid_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the ranks (R, N) of values (N,) that occur `weights` (R, N) times. Ties get their mean rank."""
    group = np.unique(values, return_inverse=True)[1]
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    counts = np.add.reduceat(weights[:, order], starts, axis=1)
    return (counts.cumsum(1) - (counts - 1) / 2)[:, group]


def statistics_for(kind: str, outcomes: Sequence[Outcome], typed: Sequence[Outcome] | None = None) -> Sequence[Any]:
    """Returns the statistics of a task's scores. outcomes: labels per row, from stored.py. typed: the same for the task
    with the types of the subjects and objects of relations."""
    pairs = [(outcome["gold"], outcome["predicted"]) for outcome in outcomes]
    if kind == "relations":
        spans = None if typed is None else [(outcome["gold"], outcome["predicted"]) for outcome in typed]
        return relation_statistics(pairs, spans)
    if kind == "events":
        return event_statistics(pairs)
    if needs_words(kind):
        return entity_statistics([None if g is None else (items_in(kind, g), items_in(kind, p)) for g, p in pairs])
    return regression_statistics(pairs) if kind == "regression" else label_statistics(kind, pairs)


def named(task: str, scores: Callable[[np.ndarray], Scores]) -> Callable[[np.ndarray], Scores]:
    """Wraps a function to return scores with the names that they have in eval.json."""
    return lambda sums: {f"{task}_{name}": values for name, values in scores(sums).items()}


def links_of(tasks: Mapping[str, Any]) -> dict[str, str]:
    """Returns {relations task: task with the types of its subjects and objects}. tasks: as in about.json."""
    return {name: task["entities"] for name, task in tasks.items() if task.get("entities") in tasks}


def statistics_of(
    rows: Sequence[dict[str, Any]], kinds: dict[str, str], links: Mapping[str, str] | None = None
) -> list[Statistic | OfWeights]:
    """Returns the statistics of all tasks with labels, and of sentence_accuracy. links: from `links_of`."""
    statistics: list[Statistic | OfWeights] = []
    for task, kind in kinds.items():
        outcomes = [row["answers"][task] for row in rows]
        if any(outcome["gold"] is not None for outcome in outcomes):
            other = (links or {}).get(task, "")
            typed = [row["answers"][other] for row in rows] if other in kinds else None
            own = statistics_for(kind, outcomes, typed)
            statistics += [item._replace(scores=named(task, item.scores)) for item in own]
    verdicts = np.array([row_verdict(row) for row in rows], float).reshape(len(rows), 2)
    if verdicts[:, 1].any():
        statistics.append(Statistic(csr_matrix(verdicts), lambda sums: share_of(sums, "sentence_accuracy")))
    return statistics


def row_verdict(row: dict[str, Any]) -> tuple[int, int]:
    """Returns two flags (1 or 0): whether all predictions for a row are right, and whether the row has labels."""
    known = [outcome["right"] for outcome in row["answers"].values() if outcome["right"] is not None]
    return int(bool(known) and all(known)), int(bool(known))
