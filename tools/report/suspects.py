"""Rows whose label is probably wrong, and training texts that are nearly the same and say something else."""

import logging
from collections import defaultdict
from itertools import islice
from pathlib import Path

import numpy as np

from engine.predict.answers import ANSWERS
from engine.schema import AnyOf, Optional, SchemaError, read_json_lines
from engine.task.text import text_of
from tools.report.figures import with_probability

logger = logging.getLogger("template")
NEAR = 0.8  # cosine of the texts' character trigrams from which on they are near duplicates
MOST_TEXTS = 200_000  # of training that are compared


def class_thresholds(rows):
    """{label: mean probability of the label over the rows that were given it}: t_j of confident learning."""
    given = defaultdict(list)
    for gold, probabilities in rows:
        given[gold].append(probabilities.get(gold, 0.0))
    return {label: float(np.mean(values)) for label, values in given.items()}


def confident_learning(rows):
    """[(row number, label that it probably has, margin)], the most suspicious first.

    rows: of each (given label, {label: probability by a model that never saw the row}). Northcutt et al., Confident
    Learning, 2021 (JAIR 70; arXiv:1911.00068), equations 1 and 2: a row counts to the likely label j, if p_j is at
    least the mean p_j of the rows that were given j, and of several such the one with the largest p_j. Rows that
    count to another label than their own are the issues ("confident joint, off the diagonal"); they are ranked by the
    normalised margin p_given - p_likely, the lowest first. The library of its authors does the same and more, under a
    licence (AGPL) that would bind this template.
    """
    thresholds, found = class_thresholds(rows), []
    for number, (gold, probabilities) in enumerate(rows):
        likely = [(p, label) for label, p in probabilities.items() if p >= thresholds.get(label, 2.0)]
        if likely and (best := max(likely))[1] != gold:
            found.append((number, best[1], probabilities.get(gold, 0.0) - best[0]))
    return sorted(found, key=lambda item: (item[2], item[0]))


def suspicious(rows, kinds):
    """[{"row", "task", "likely", "score"}] of rows with a label that is probably wrong, the worst first.

    Of classification by confident learning, score p_likely - p_given. Of tags, spans and several labels the rows with a
    wrong decision of which the model is at least as sure as of half of its right ones of the same kind (the same tag,
    the same type, the same label there or not there), and at 0.9 or more; score: its probability. Of numbers the rows
    whose error is more than three times the root of the mean square of all, score: in these three.
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


def large_errors(answers):
    """[(row number, answer, error in three root mean squares)] of the numbers that are that far from what is given."""
    sizes = [abs(answer["predicted"] - answer["gold"]) for _, answer in answers]
    scale = 3 * float(np.sqrt(np.mean(np.square(sizes)))) if sizes else 0.0
    return [(number, answer, size / scale) for (number, answer), size in zip(answers, sizes) if size > scale > 0]


def sure_errors(kind, answers):
    """[(row number, answer, probability of the surest wrong decision)]; see `suspicious`."""
    decided = [(number, answer, decisions(kind, answer)) for number, answer in answers]
    right = defaultdict(list)
    for *_, items in decided:
        for key, p, good in items:
            if good:
                right[key].append(p)
    least = {key: max(0.9, float(np.median(values))) for key, values in right.items()}
    found = []
    for number, answer, items in decided:
        wrong = [p for key, p, good in items if not good and p >= least.get(key, 0.9)]
        found += [(number, answer, max(wrong))] if wrong else []
    return found


def decisions(kind, answer):
    """[(what was decided, its probability, whether it is right)] of an answer with several decisions."""
    gold, predicted, p = answer["gold"], answer["predicted"], answer["probability"]
    if kind == "classification":
        return [] if p is None else [(predicted, p, gold == predicted)]
    if kind == "multilabel":
        several = answer.get("probabilities") or dict(with_probability(predicted, p))
        labels = {*several, *gold}
        taken = [(label, label in predicted, several.get(label, 0.0)) for label in labels]
        return [((label, yes), v if yes else 1 - v, yes == (label in gold)) for label, yes, v in taken]
    if kind == "spans":
        there = {tuple(span) for span in gold}
        return [(span[2], v, tuple(span) in there) for span, v in with_probability(predicted, p)]
    tags = with_probability(list(zip(gold, predicted)), p)
    return [(guess, v, label == guess) for (label, guess), v in tags]


def issue(number, task, likely, score):
    return {"row": number, "task": task, "likely": likely, "score": score}


def training_rows(data_path: str | Path, kinds: dict[str, str], most: int = MOST_TEXTS) -> tuple[list[dict], bool]:
    """The first rows of the training part, and whether that is all; ([], True) where it is no longer there, or has
    changed so that it does not have these tasks. kinds: {task: one of KINDS of answers.py}"""
    path = Path(data_path) / "train.jsonl"
    if not path.is_file():
        return [], True
    shape = {Optional("text"): str, Optional("text_pair"): str, Optional("tokens"): [str]}
    shape |= {Optional(name): AnyOf(ANSWERS[kind], None) for name, kind in kinds.items()}
    try:
        rows = list(islice(read_json_lines(path, shape), most + 1))
    except SchemaError as error:
        logger.warning(f"the report leaves the training part out: {error}")
        return [], True
    return rows[:most], len(rows) <= most


def near_duplicates(queries, training, block=20_000):
    """[[(cosine, training row number)]] of each query text: those of at least NEAR, nearest first.

    Cosine of the counts of character trigrams in lower case, hashed into 2^18 columns (scikit-learn's
    HashingVectorizer); the number of training texts is bounded by whoever reads them.
    """
    from sklearn.feature_extraction.text import HashingVectorizer  # here: it takes a second

    if not queries or not training:
        return [[] for _ in queries]
    options = dict(analyzer="char", ngram_range=(3, 3), n_features=2**18, alternate_sign=False, norm="l2")
    vectors, found = HashingVectorizer(**options), [[] for _ in queries]
    wanted = vectors.transform([f" {text[:1000]} " for text in queries])
    for start in range(0, len(training), block):
        texts = [f" {text_of(row, with_pair=True)[:1000]} " for row in training[start : start + block]]
        near = (wanted @ vectors.transform(texts).T).tocoo()
        for query, number, value in zip(near.row, near.col, near.data):
            if value >= NEAR:
                found[query].append((float(value), start + int(number)))
    return [sorted(pairs, key=lambda pair: (-pair[0], pair[1])) for pairs in found]


def contradicted(rows, numbers, kinds, training, most=3):
    """{row number: [{"id", "text", "task", "label", "cosine"}]}: near duplicates in training that have another label of
    a text task than the row itself."""
    tasks = [name for name, kind in kinds.items() if kind in ("classification", "multilabel")]
    found, queries = {}, [" ".join(filter(None, (rows[i]["text"], rows[i].get("text_pair")))) for i in numbers]
    if not tasks:
        return found
    for i, pairs in zip(numbers, near_duplicates(queries, training)):
        for value, number in pairs:
            other = training[number]
            for name in tasks:
                gold = rows[i]["answers"][name]["gold"]
                if gold is not None and other.get(name) not in (None, gold) and other.get("id") != rows[i]["id"]:
                    seen = {"id": other.get("id", str(number)), "text": text_of(other), "task": name}
                    found.setdefault(i, []).append(seen | {"label": other[name], "cosine": value})
    return {i: others[:most] for i, others in found.items()}
