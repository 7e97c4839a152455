"""Finds probably mislabelled rows, and near duplicates in training with a different label."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from engine.predict.answers import ANSWERS
from engine.schema import AnyOf, Optional, SchemaError, read_json_lines
from engine.task.text import text_of
from tools.report.figures import Answer, Row, with_probability

logger = logging.getLogger("template")
NEAR = 0.8  # minimum cosine of character trigrams of near duplicates
MAX_TEXTS = 200_000  # maximum number of training texts to compare


def class_thresholds(rows: Sequence[tuple[str, dict[str, float]]]) -> dict[str, float]:
    """{label: mean probability of the label over the rows with this given label}, t_j of confident learning."""
    given = defaultdict(list)
    for gold, probabilities in rows:
        given[gold].append(probabilities.get(gold, 0.0))
    return {label: float(np.mean(values)) for label, values in given.items()}


def confident_learning(rows: Sequence[tuple[str, dict[str, float]]]) -> list[tuple[int, str, float]]:
    """[(row number, likely label, margin)], most suspicious first.

    rows: (given label, {label: probability from a model not trained on the row}). Northcutt et al., Confident Learning,
    2021 (JAIR 70; arXiv:1911.00068), equations 1 and 2: the likely label j of a row is the one with the largest p_j
    among those with p_j at least the mean p_j of the rows with given label j. Rows whose likely label is not the given
    one are issues (off the diagonal of the confident joint), ranked by the normalised margin p_given - p_likely, lowest
    first. The authors' library also does this, but its AGPL licence would extend to this template.
    """
    thresholds, found = class_thresholds(rows), []
    for number, (gold, probabilities) in enumerate(rows):
        likely = [(p, label) for label, p in probabilities.items() if p >= thresholds.get(label, 2.0)]
        if likely and (best := max(likely))[1] != gold:
            found.append((number, best[1], probabilities.get(gold, 0.0) - best[0]))
    return sorted(found, key=lambda item: (item[2], item[0]))


def suspicious(rows: Sequence[Row], kinds: dict[str, str]) -> list[dict[str, Any]]:
    """[{"row", "task", "likely", "score"}] of probably mislabelled rows, worst first.

    Classification: by confident learning; score: p_likely - p_given. Tags, spans and several labels: rows with a wrong
    decision whose probability is at least 0.9 and at least the median of the right decisions of the same kind (the same
    tag, the same type, the same label present or absent); score: that probability. Regression: rows with an error of
    more than 3 RMSE; score: error / (3 RMSE).
    """
    found = []
    for name, kind in kinds.items():
        answers = [(number, row["answers"][name]) for number, row in enumerate(rows)]
        answers = [(number, answer) for number, answer in answers if answer["gold"] is not None]
        if kind == "classification" and answers and all("probabilities" in answer for _, answer in answers):
            issues = confident_learning([(answer["gold"], answer["probabilities"]) for _, answer in answers])
            found += [issue(answers[i][0], name, likely, -margin) for i, likely, margin in issues]
            continue
        sure = large_errors(answers) if kind == "regression" else sure_errors(kind, answers)
        found += [issue(number, name, answer["predicted"], value) for number, answer, value in sure]
    return sorted(found, key=lambda item: -item["score"])


def large_errors(answers: Sequence[tuple[int, Answer]]) -> list[tuple[int, Answer, float]]:
    """[(row number, answer, error / (3 RMSE))] of rows with an error above 3 RMSE."""
    sizes = [abs(answer["predicted"] - answer["gold"]) for _, answer in answers]
    scale = 3 * float(np.sqrt(np.mean(np.square(sizes)))) if sizes else 0.0
    return [(number, answer, size / scale) for (number, answer), size in zip(answers, sizes) if size > scale > 0]


def sure_errors(kind: str, answers: Sequence[tuple[int, Answer]]) -> list[tuple[int, Answer, float]]:
    """[(row number, answer, probability of the most confident wrong decision)]; see `suspicious`."""
    decided = [(number, answer, decisions(kind, answer)) for number, answer in answers]
    right = defaultdict(list)
    for *_, items in decided:
        for key, p, is_right in items:
            if is_right:
                right[key].append(p)
    least = {key: max(0.9, float(np.median(values))) for key, values in right.items()}
    found: list[tuple[int, Answer, float]] = []
    for number, answer, items in decided:
        wrong = [p for key, p, is_right in items if not is_right and p >= least.get(key, 0.9)]
        found += [(number, answer, max(wrong))] if wrong else []
    return found


def decisions(kind: str, answer: Answer) -> list[tuple[Any, float, bool]]:
    """[(decision, probability, whether it is correct)] of an answer with several decisions."""
    gold, predicted, p = answer["gold"], answer["predicted"], answer["probability"]
    if kind == "classification":
        return [] if p is None else [(predicted, p, gold == predicted)]
    if kind == "multilabel":
        several = answer.get("probabilities") or dict(with_probability(predicted, p))
        labels = {*several, *gold}
        taken = [(label, label in predicted, several.get(label, 0.0)) for label in labels]
        return [((label, yes), v if yes else 1 - v, yes == (label in gold)) for label, yes, v in taken]
    if kind == "spans":
        gold_spans = {tuple(span) for span in gold}
        return [(span[2], v, tuple(span) in gold_spans) for span, v in with_probability(predicted, p)]
    tags = with_probability(list(zip(gold, predicted)), p)
    return [(guess, v, label == guess) for (label, guess), v in tags]


def issue(number: int, task: str, likely: Any, score: float) -> dict[str, Any]:
    return {"row": number, "task": task, "likely": likely, "score": score}


def training_rows(data_path: str | Path, kinds: dict[str, str], most: int = MAX_TEXTS) -> tuple[list[dict], bool]:
    """(the first `most` rows of the training part, whether these are all). ([], True) if it no longer exists or lacks
    these tasks. kinds: {task: one of ANSWERS in answers.py}"""
    path = Path(data_path) / "train.jsonl"
    if not path.is_file():
        return [], True
    shape = {Optional("text"): str, Optional("text_pair"): str, Optional("tokens"): [str]}
    shape |= {Optional(name): AnyOf(ANSWERS[kind], None) for name, kind in kinds.items()}
    try:
        rows = list(islice(read_json_lines(path, shape), most + 1))
    except SchemaError as error:
        logger.warning(f"the report leaves out the training part: {error}")
        return [], True
    return rows[:most], len(rows) <= most


def near_duplicates(
    queries: Sequence[str], training: Sequence[Row], block: int = 20_000
) -> list[list[tuple[float, int]]]:
    """[[(cosine, training row number)]] per query text: cosines of at least NEAR, nearest first.

    The cosine of lower-case character trigram counts, hashed into 2^18 columns (scikit-learn's HashingVectorizer). The
    caller bounds the number of training texts.
    """
    from sklearn.feature_extraction.text import HashingVectorizer  # imported lazily: it takes a second

    if not queries or not training:
        return [[] for _ in queries]
    options: dict[str, Any] = dict(analyzer="char", ngram_range=(3, 3), n_features=2**18, alternate_sign=False)
    vectors = HashingVectorizer(**options)
    found: list[list[tuple[float, int]]] = [[] for _ in queries]
    wanted = vectors.transform([f" {text[:1000]} " for text in queries])
    for start in range(0, len(training), block):
        texts = [f" {text_of(row, with_pair=True)[:1000]} " for row in training[start : start + block]]
        near = (wanted @ vectors.transform(texts).T).tocoo()
        for query, number, value in zip(near.row, near.col, near.data):
            if value >= NEAR:
                found[query].append((float(value), start + int(number)))
    return [sorted(pairs, key=lambda pair: (-pair[0], pair[1])) for pairs in found]


def contradicted(
    rows: Sequence[Row], numbers: Sequence[int], kinds: dict[str, str], training: Sequence[Row], most: int = 3
) -> dict[int, list[dict[str, Any]]]:
    """{row number: [{"id", "text", "task", "label", "cosine"}]}: near duplicates in training whose label in a text
    task differs from that of the row."""
    tasks = [name for name, kind in kinds.items() if kind in ("classification", "multilabel")]
    if not tasks:
        return {}
    queries = [" ".join(filter(None, (rows[i]["text"], rows[i].get("text_pair")))) for i in numbers]
    found: dict[int, list[dict[str, Any]]] = {}
    for i, pairs in zip(numbers, near_duplicates(queries, training)):
        for value, number in pairs:
            other = training[number]
            for name in tasks:
                gold = rows[i]["answers"][name]["gold"]
                if gold is not None and other.get(name) not in (None, gold) and other.get("id") != rows[i]["id"]:
                    seen = {"id": other.get("id", str(number)), "text": text_of(other), "task": name}
                    found.setdefault(i, []).append(seen | {"label": other[name], "cosine": value})
    return {i: others[:most] for i, others in found.items()}
