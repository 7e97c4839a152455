"""Computes the figures of the page from the rows that answers.py stores. Shares are between 0 and 1.

Each docstring is a complete definition, so that tests can compute the figure independently.
"""

from collections import Counter

import numpy as np

BINS = 10  # for calibration
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def per_label(gold, predicted):
    """{label: {"precision", "recall", "f1", "support"}} from lists of label sets, one set per text."""
    right, guessed, there = Counter(), Counter(), Counter()
    for g, p in zip(gold, predicted):
        right.update(g & p)
        guessed.update(p)
        there.update(g)
    return scores_by_label(right, guessed, there)


def scores_by_label(right, guessed, there):
    """{label: {"precision", "recall", "f1", "support"}} from Counters of labels."""
    return {
        label: {
            "precision": right[label] / max(1, guessed[label]),
            "recall": right[label] / max(1, there[label]),
            "f1": 2 * right[label] / (guessed[label] + there[label]),
            "support": there[label],
        }
        for label in sorted({*guessed, *there})
    }


def confusions(gold, predicted):
    """[[gold label, predicted label, count, share of the gold label]] of the errors, most frequent first."""
    there = Counter(gold)
    pairs = Counter((g, p) for g, p in zip(gold, predicted) if g != p)
    ordered = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return [[g, p, count, count / there[g]] for (g, p), count in ordered]


def matrix(gold, predicted, most=16):
    """{"labels", "counts", "all"} of the confusion matrix, with gold labels as rows. With more than `most` labels, only
    those confused most often are kept, in order of frequency."""
    there = Counter(gold) + Counter(predicted)
    wrong = Counter(label for g, p in zip(gold, predicted) if g != p for label in (g, p))
    chosen = sorted(there, key=lambda label: (-wrong[label], -there[label], label))[:most]
    labels = sorted(chosen, key=lambda label: (-there[label], label))
    counts = Counter(zip(gold, predicted))
    return {"labels": labels, "counts": [[counts[g, p] for p in labels] for g in labels], "all": len(there)}


def calibration(confidence, right, bins=BINS):
    """{"ece", "bins": [{"low", "high", "count", "confidence", "accuracy"}]}.

    ECE, the expected calibration error (Naeini et al., 2015; Guo et al., 2017, equation 3): the mean over the rows of
    |accuracy - mean confidence| of their bin; the bins are [0, 1/10], (1/10, 2/10], …
    """
    confidence, right = np.asarray(confidence, float), np.asarray(right, float)
    number = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    table, ece = [], 0.0
    for i in range(bins):
        inside = number == i
        count = int(inside.sum())
        means = (float(values[inside].mean()) if count else None for values in (confidence, right))
        cell = dict(zip(("low", "high", "count", "confidence", "accuracy"), (i / bins, (i + 1) / bins, count, *means)))
        ece += count / len(confidence) * abs(cell["accuracy"] - cell["confidence"]) if count else 0.0
        table.append(cell)
    return {"ece": ece, "bins": table}


def histogram(confidence, right, bins=20):
    """[[right, wrong] counts of each of `bins` equal parts of 0 to 1]."""
    number = np.clip(np.ceil(np.asarray(confidence) * bins).astype(int) - 1, 0, bins - 1)
    right = np.asarray(right, bool)
    return np.stack([np.bincount(number[side], minlength=bins) for side in (right, ~right)], 1).tolist()


def coverage(confidence, right):
    """(thresholds, coverages, accuracies) for abstaining below each confidence that occurs, highest first.

    Coverage is the share of rows with at least this confidence; accuracy is the share of right ones among them.
    """
    confidence, right = np.asarray(confidence, float), np.asarray(right, float)
    order = np.argsort(-confidence, kind="stable")
    confidence, right = confidence[order], right[order].cumsum()
    last = np.flatnonzero(np.diff(confidence, append=-1) != 0)  # the last of equal values
    return confidence[last], (last + 1) / len(confidence), right[last] / (last + 1)


def coverage_table(confidence, right, thresholds=THRESHOLDS):
    """[{"threshold", "coverage", "accuracy"}]; accuracy is None if no row reaches the threshold."""
    confidence, right, table = np.asarray(confidence, float), np.asarray(right, float), []
    for threshold in thresholds:
        sure = confidence >= threshold
        accuracy = float(right[sure].mean()) if sure.any() else None
        table.append({"threshold": threshold, "coverage": float(sure.mean()), "accuracy": accuracy})
    return table


def thinned(*columns, most=160):
    """The columns of a curve's points, evenly subsampled to `most`; both ends are kept."""
    size = len(columns[0])
    kept = np.unique(np.linspace(0, size - 1, min(size, most)).round().astype(int)) if size else []
    return [np.asarray(column)[kept].tolist() for column in columns]


def threshold_curve(probabilities, gold, labels):
    """{"thresholds", "precision", "recall", "f1", "best": {"threshold", "f1"}} of a multilabel task: micro-averaged
    scores of the labels with at least the threshold as probability. probabilities: {label: p} of each text"""
    pairs = [(p, label in g) for row, g in zip(probabilities, gold) for label, p in row.items()]
    there, empty = sum(map(len, gold)), {"thresholds": [], "precision": [], "recall": [], "f1": [], "best": None}
    if not pairs or not there:
        return empty
    values = np.array([p for p, _ in pairs])
    order = np.argsort(-values, kind="stable")
    values, right = values[order], np.array([r for _, r in pairs], float)[order].cumsum()
    last = np.flatnonzero(np.diff(values, append=-1) != 0)
    taken, right, values = last + 1, right[last], values[last]
    f1 = 2 * right / (taken + there)
    best = {"threshold": float(values[f1.argmax()]), "f1": float(f1.max())}
    columns = thinned(values, right / taken, right / there, f1)
    return dict(zip(("thresholds", "precision", "recall", "f1"), columns)) | {"best": best}


def error_pairs(gold, predicted):
    """([[missed label, invented label, number of texts]] of errors that occur together in a multilabel task,
    [[label, times missed, times invented]]), most frequent first."""
    together, missed, invented = Counter(), Counter(), Counter()
    for g, p in zip(gold, predicted):
        missed.update(g - p)
        invented.update(p - g)
        together.update((m, i) for m in g - p for i in p - g)
    pairs = [[*pair, count] for pair, count in sorted(together.items(), key=lambda item: (-item[1], item[0]))]
    labels = sorted({*missed, *invented}, key=lambda x: (-missed[x] - invented[x], x))
    return pairs, [[label, missed[label], invented[label]] for label in labels]


def residuals(gold, predicted, bins=20, most=1500):
    """For regression: {"points": [[gold, predicted]], at most `most`, evenly picked by gold value; "edges", "counts" of
    the histogram of predicted - gold; "mean", "std", "rmse", "r2"}. Only finite predictions count; None without any."""
    gold, predicted = np.asarray(gold, float), np.asarray(predicted, float)
    gold, predicted = gold[np.isfinite(predicted)], predicted[np.isfinite(predicted)]
    if not len(gold):
        return None
    error = predicted - gold
    counts, edges = np.histogram(error, bins)
    spread = ((gold - gold.mean()) ** 2).sum()
    order = np.argsort(gold, kind="stable")
    return {
        "points": np.stack(thinned(gold[order], predicted[order], most=most), 1).tolist(),
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "mean": float(error.mean()),
        "std": float(error.std()),
        "rmse": float(np.sqrt((error**2).mean())),
        "r2": float(1 - (error**2).sum() / spread) if spread > 0 else None,
    }


# ---- slices ----------------------------------------------------------------------------------------------------------


def length_of(row):
    """Length in tokens, or in characters if the row has no tokens."""
    return len(row["places"]) if "places" in row else len(row["text"])


def slices(rows, most_values=20):
    """[(criterion, [(name, [row numbers])])]: quartiles of the length (none empty; equal lengths stay together), cut or
    windowed rows if there are any, and text columns with 2 to `most_values` values."""
    lengths = np.array([length_of(row) for row in rows])
    edges = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75, 1], method="higher"))
    part, groups = np.searchsorted(edges, lengths), []
    for number in range(len(edges)):
        inside = np.flatnonzero(part == number)
        if len(inside):
            low, high = lengths[inside].min(), lengths[inside].max()
            groups.append((f"{low}" if low == high else f"{low} – {high}", inside.tolist()))
    found = [("length", groups)] if len(groups) > 1 else []
    for name, test in (("cut", lambda row: row["cut"] > 0), ("windows", lambda row: row["windows"] > 1)):
        chosen = [i for i, row in enumerate(rows) if test(row)]
        if chosen:
            others = sorted({*range(len(rows))} - {*chosen})
            found.append((name, [("yes", chosen), *([("no", others)] if others else [])]))
    for name in dict.fromkeys(name for row in rows for name in row.get("columns", ())):
        values = [row.get("columns", {}).get(name) for row in rows]
        counts = Counter(value for value in values if isinstance(value, str))
        if 2 <= len(counts) <= most_values:
            groups = [(value, [i for i, v in enumerate(values) if v == value]) for value, _ in counts.most_common()]
            found.append((name, groups))
    return found


# ---- confidence and errors -------------------------------------------------------------------------------------------


def row_confidence(kind, answer):
    """The confidence of an answer: the probability of a label; for several labels that of the least confident decision,
    positive or negative; for tags and spans that of the least confident one. None for regression."""
    p, several = answer["probability"], answer.get("probabilities")
    if kind == "multilabel":
        taken = set(answer["predicted"])
        sure = [v if label in taken else 1 - v for label, v in (several or {}).items()]
        return min(sure or known(p), default=1.0)
    if isinstance(p, list):
        return min(known(p), default=None)
    return None if kind == "regression" else p


def known(probability: float | list | None) -> list[float]:
    """A probability, or a list of them, as a list without None; a custom head may give none."""
    values = probability if isinstance(probability, list) else [probability]
    return [value for value in values if value is not None]


def with_probability(predicted: list, probability: list | None) -> list[tuple]:
    """[(label, tag or span, probability)] of those that have a probability."""
    pairs = zip(predicted, probability if isinstance(probability, list) else [])
    return [(label, value) for label, value in pairs if value is not None]


def mistake_confidence(kind, answer):
    """The confidence of the wrong part of an answer; None if nothing is wrong.

    A label: its probability. Several labels: the most confident wrong decision. Tags: the most confident wrong tag.
    Spans: the most confident invented one, 0 if spans are only missed. Regression: the absolute error.
    """
    gold, predicted, p = answer["gold"], answer["predicted"], answer["probability"]
    if gold is None or answer["right"]:
        return None
    if kind == "regression":
        return abs(predicted - gold)
    if kind == "multilabel":
        several = answer.get("probabilities") or dict(with_probability(predicted, p))
        wrong = {*gold} ^ {*predicted}
        return max((several.get(x, 0) if x in predicted else 1 - several.get(x, 0) for x in wrong), default=None)
    if kind == "spans":
        there = {tuple(span) for span in gold}
        sure = (value for span, value in with_probability(predicted, p) if tuple(span) not in there)
        return max(sure, default=0.0)
    if isinstance(p, list):
        return max((v for g, t, v in zip(gold, predicted, p) if g != t and v is not None), default=None)
    return p
