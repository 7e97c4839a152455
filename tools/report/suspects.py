"""Finds rows that are probably mislabelled, and near duplicates in the training data with a different label."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from engine.predict.stored import LABEL_SCHEMAS
from engine.schema import AnyOf, Optional, SchemaError, read_json_lines
from engine.task.task import needs_words
from engine.task.text import text_of
from tools.report.figures import Outcome, Row, items_of, with_probability

logger = logging.getLogger("template")
NEAR = 0.8  # minimum cosine similarity (character trigrams) of near duplicates
MAX_TEXTS = 200_000  # maximum number of training texts to compare


def class_thresholds(rows: Sequence[tuple[str, dict[str, float]]]) -> dict[str, float]:
    """Returns the thresholds t_j of confident learning: {label: mean probability of the label over its rows}."""
    given = defaultdict(list)
    for gold, probabilities in rows:
        given[gold].append(probabilities.get(gold, 0.0))
    return {label: float(np.mean(values)) for label, values in given.items()}


def confident_learning(rows: Sequence[tuple[str, dict[str, float]]]) -> list[tuple[int, str, float]]:
    """Finds label issues. Returns [(row number, likely label, margin)], most suspicious first.

    rows: (given label, {label: probability from a model not trained on the row}). Northcutt et al., Confident Learning,
    2021 (JAIR 70; arXiv:1911.00068), equations 1 and 2: the likely label of a row is the label j with the largest p_j
    among those with p_j >= t_j, the mean p_j over rows with given label j. A row is an issue if its likely label
    differs from the given label (off-diagonal in the confident joint). Issues are ranked by the margin p_given -
    p_likely, lowest first. The authors' library is not used because of its AGPL licence.
    """
    thresholds, issues = class_thresholds(rows), []
    for number, (gold, probabilities) in enumerate(rows):
        likely = [(p, label) for label, p in probabilities.items() if p >= thresholds.get(label, 2.0)]
        if likely and (best := max(likely))[1] != gold:
            issues.append((number, best[1], probabilities.get(gold, 0.0) - best[0]))
    return sorted(issues, key=lambda item: (item[2], item[0]))


def suspicious(rows: Sequence[Row], kinds: dict[str, str]) -> list[dict[str, Any]]:
    """Finds rows that are probably mislabelled. Returns [{"row", "task", "likely", "score"}], worst first.

    Classification: by confident learning; the score is p_likely - p_given. Tagging, spans, relations and multilabel:
    rows with a wrong decision whose probability is at least 0.9 and at least the median probability of right decisions
    of the same kind (same tag, type or predicate; same label present or absent); the score is this probability.
    Regression: rows with an error above 3 RMSE; the score is error / (3 RMSE).
    """
    result = []
    for name, kind in kinds.items():
        outcomes = [(number, row["answers"][name]) for number, row in enumerate(rows)]
        outcomes = [(number, outcome) for number, outcome in outcomes if outcome["gold"] is not None]
        if kind == "classification" and outcomes and all("probabilities" in outcome for _, outcome in outcomes):
            issues = confident_learning([(outcome["gold"], outcome["probabilities"]) for _, outcome in outcomes])
            result += [issue(outcomes[i][0], name, likely, -margin) for i, likely, margin in issues]
            continue
        errors = large_errors(outcomes) if kind == "regression" else confident_errors(kind, outcomes)
        result += [issue(number, name, outcome["predicted"], value) for number, outcome, value in errors]
    return sorted(result, key=lambda item: -item["score"])


def large_errors(outcomes: Sequence[tuple[int, Outcome]]) -> list[tuple[int, Outcome, float]]:
    """Finds rows with an error above 3 RMSE. Returns [(row number, outcome, error / (3 RMSE))]."""
    sizes = [abs(outcome["predicted"] - outcome["gold"]) for _, outcome in outcomes]
    scale = 3 * float(np.sqrt(np.mean(np.square(sizes)))) if sizes else 0.0
    return [(number, outcome, size / scale) for (number, outcome), size in zip(outcomes, sizes) if size > scale > 0]


def confident_errors(kind: str, outcomes: Sequence[tuple[int, Outcome]]) -> list[tuple[int, Outcome, float]]:
    """Finds rows with confident errors (see `suspicious`). Returns [(row number, outcome, probability of the most
    confident error)]."""
    rows = [(number, outcome, decisions(kind, outcome)) for number, outcome in outcomes]
    right = defaultdict(list)
    for *_, items in rows:
        for key, p, is_right in items:
            if is_right:
                right[key].append(p)
    thresholds = {key: max(0.9, float(np.median(values))) for key, values in right.items()}
    errors: list[tuple[int, Outcome, float]] = []
    for number, outcome, items in rows:
        wrong = [p for key, p, is_right in items if not is_right and p >= thresholds.get(key, 0.9)]
        errors += [(number, outcome, max(wrong))] if wrong else []
    return errors


def decisions(kind: str, outcome: Outcome) -> list[tuple[Any, float, bool]]:
    """Splits a prediction into decisions. Returns [(decision, probability, is_right)]."""
    gold, predicted, p = outcome["gold"], outcome["predicted"], outcome["probability"]
    if kind == "classification":
        return [] if p is None else [(predicted, p, gold == predicted)]
    if kind == "multilabel":
        by_label = outcome.get("probabilities") or dict(with_probability(predicted, p))
        votes = [(label, label in predicted, by_label.get(label, 0.0)) for label in {*by_label, *gold}]
        return [((label, yes), v if yes else 1 - v, yes == (label in gold)) for label, yes, v in votes]
    if needs_words(kind):
        known, found = set(items_of(kind, gold)), with_probability(items_of(kind, predicted), p)
        return [(item[-1], value, item in known) for item, value in found]
    tags = with_probability(list(zip(gold, predicted)), p)
    return [(guess, v, label == guess) for (label, guess), v in tags]


def issue(number: int, task: str, likely: Any, score: float) -> dict[str, Any]:
    return {"row": number, "task": task, "likely": likely, "score": score}


def training_rows(data_path: str | Path, kinds: dict[str, str], max_rows: int = MAX_TEXTS) -> tuple[list[dict], bool]:
    """Reads up to `max_rows` rows of the training data. Returns (rows, whether these are all rows).

    Returns ([], True) if the file no longer exists or is malformed. kinds: {task: key of LABEL_SCHEMAS}."""
    path = Path(data_path) / "train.jsonl"
    if not path.is_file():
        return [], True
    shape = {Optional("text"): str, Optional("text_pair"): str, Optional("tokens"): [str]}
    shape |= {Optional(name): AnyOf(LABEL_SCHEMAS[kind], None) for name, kind in kinds.items()}
    try:
        rows = list(islice(read_json_lines(path, shape), max_rows + 1))
    except SchemaError as error:
        logger.warning(f"the report omits the training data: {error}")
        return [], True
    return rows[:max_rows], len(rows) <= max_rows


def near_duplicates(
    queries: Sequence[str], training: Sequence[Row], block: int = 20_000
) -> list[list[tuple[float, int]]]:
    """Finds near duplicates of each query text. Returns [[(cosine similarity, training row number)]], nearest first.

    The cosine similarity of lower-case character trigram counts, hashed into 2^18 columns (scikit-learn's
    HashingVectorizer), must be at least NEAR. The caller limits the number of training texts.
    """
    from sklearn.feature_extraction.text import HashingVectorizer  # imported lazily because it takes a second

    if not queries or not training:
        return [[] for _ in queries]
    options: dict[str, Any] = dict(analyzer="char", ngram_range=(3, 3), n_features=2**18, alternate_sign=False)
    vectors = HashingVectorizer(**options)
    result: list[list[tuple[float, int]]] = [[] for _ in queries]
    query_vectors = vectors.transform([f" {text[:1000]} " for text in queries])
    for start in range(0, len(training), block):
        texts = [f" {text_of(row, with_pair=True)[:1000]} " for row in training[start : start + block]]
        similarity = (query_vectors @ vectors.transform(texts).T).tocoo()
        for query, number, value in zip(similarity.row, similarity.col, similarity.data):
            if value >= NEAR:
                result[query].append((float(value), start + int(number)))
    return [sorted(pairs, key=lambda pair: (-pair[0], pair[1])) for pairs in result]


def contradicted(
    rows: Sequence[Row], numbers: Sequence[int], kinds: dict[str, str], training: Sequence[Row], most: int = 3
) -> dict[int, list[dict[str, Any]]]:
    """Finds near duplicates in training whose text-level label differs from the row's. Returns {row number: [{"id",
    "text", "task", "label", "cosine"}]}."""
    tasks = [name for name, kind in kinds.items() if kind in ("classification", "multilabel")]
    if not tasks:
        return {}
    queries = [" ".join(filter(None, (rows[i]["text"], rows[i].get("text_pair")))) for i in numbers]
    result: dict[int, list[dict[str, Any]]] = {}
    for i, pairs in zip(numbers, near_duplicates(queries, training)):
        for value, number in pairs:
            other = training[number]
            for name in tasks:
                gold = rows[i]["answers"][name]["gold"]
                if gold is not None and other.get(name) not in (None, gold) and other.get("id") != rows[i]["id"]:
                    duplicate = {"id": other.get("id", str(number)), "text": text_of(other), "task": name}
                    result.setdefault(i, []).append(duplicate | {"label": other[name], "cosine": value})
    return {i: duplicates[:most] for i, duplicates in result.items()}
