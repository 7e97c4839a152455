"""Scores against scikit-learn, scipy and seqeval called directly, and against counting by hand."""

import numpy as np
import pytest
from scipy import stats
from seqeval.metrics import classification_report as entity_report
from sklearn.metrics import classification_report, f1_score, mean_absolute_error

import metrics
from engine.task.task import Task

rng = np.random.default_rng(0)


def test_classification():
    gold, predicted = rng.choice(list("aabbc"), 60).tolist(), rng.choice(list("abcd"), 60).tolist()
    scores = metrics.score({"x": Task("classification")}, {"x": gold}, {"x": predicted})
    assert scores["x_accuracy"] == scores["sentence_accuracy"] == sum(g == p for g, p in zip(gold, predicted)) / 60
    for kind in ("macro", "weighted"):
        assert scores[f"x_{kind}_f1"] == pytest.approx(f1_score(gold, predicted, average=kind, zero_division=0))
    report = metrics.report({"x": Task("classification")}, {"x": gold}, {"x": predicted})["x"]
    for label, expected in classification_report(gold, predicted, output_dict=True, zero_division=0).items():
        if label in report:
            assert report[label] == pytest.approx(
                dict(zip(("precision", "recall", "f1", "support"), expected.values()))
            )
    assert "support" in metrics.table(report) and len(metrics.table(report, most=2).splitlines()) == 4


def test_multilabel():
    gold = [sorted(set(rng.choice(list("abc"), rng.integers(0, 3)).tolist())) for _ in range(50)]
    predicted = [sorted(set(rng.choice(list("abcd"), rng.integers(0, 3)).tolist())) for _ in range(50)]
    scores = metrics.score({"x": Task("multilabel")}, {"x": gold}, {"x": predicted})
    both = sum(len(set(g) & set(p)) for g, p in zip(gold, predicted))
    assert scores["x_micro_f1"] == pytest.approx(2 * both / (sum(map(len, gold)) + sum(map(len, predicted))))
    each = []
    for label in "abcd":
        g, p = ([label in one for one in side] for side in (gold, predicted))
        each.append(f1_score(g, p, zero_division=0))
    assert scores["x_macro_f1"] == pytest.approx(np.mean(each))
    assert scores["x_accuracy"] == sum(g == p for g, p in zip(gold, predicted)) / 50
    none = metrics.score({"x": Task("multilabel")}, {"x": [[], []]}, {"x": [[], []]})
    assert none["x_accuracy"] == 1 and none["x_micro_f1"] == 0


def test_regression():
    gold, predicted = rng.normal(size=40).tolist(), rng.normal(size=40).tolist()
    scores = metrics.score({"x": Task("regression")}, {"x": gold}, {"x": predicted})
    assert scores["x_pearson"] == pytest.approx(np.corrcoef(gold, predicted)[0, 1])
    ranks = [stats.rankdata(side) for side in (gold, predicted)]
    assert scores["x_spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert scores["x_mae"] == pytest.approx(mean_absolute_error(gold, predicted)) and "sentence_accuracy" not in scores
    assert metrics.score({"x": Task("regression")}, {"x": [1.0, 2.0]}, {"x": [3.0, 3.0]})["x_pearson"] == 0
    assert metrics.is_better("x_mae", 1.0, 2.0) and not metrics.is_better("x_pearson", 0.1, 0.2)


def test_entities_by_type():
    gold = [["B-a", "I-a", "O", "B-b"], ["O", "B-b"], ["B-a", "O"]]
    predicted = [["B-a", "I-a", "O", "B-a"], ["O", "B-b"], ["O", "O"]]
    report = metrics.report({"x": Task("tagging")}, {"x": gold}, {"x": predicted})["x"]
    expected = entity_report(gold, predicted, output_dict=True)
    for label in "ab":
        assert report[label] == pytest.approx(
            dict(zip(("precision", "recall", "f1", "support"), expected[label].values()))
        )
    assert metrics.score({"x": Task("tagging")}, {"x": gold}, {"x": predicted})["x_f1"] == pytest.approx(
        expected["micro avg"]["f1-score"]
    )


def test_missing_labels_are_ignored_and_tasks_are_combined():
    tasks = {"a": Task("classification"), "b": Task("tagging"), "c": Task("regression")}
    gold = {"a": ["x", None, "y"], "b": [["O"], ["B-e"], None], "c": [1.0, 2.0, None]}
    predicted = {"a": ["x", "x", "x"], "b": [["O"], ["B-e"], ["B-e"]], "c": [1.0, 3.0, 0.0]}
    scores = metrics.score(tasks, gold, predicted)
    assert scores["a_accuracy"] == 0.5 and scores["b_f1"] == 1 and scores["c_mae"] == 0.5
    assert scores["sentence_accuracy"] == 2 / 3
    assert scores["mean_score"] == pytest.approx((0.5 + 1 + scores["c_spearman"]) / 3)


def test_default_monitors():
    kinds = {"classification": "x_accuracy", "multilabel": "x_micro_f1", "regression": "x_spearman", "tagging": "x_f1"}
    for kind, monitor in kinds.items():
        tasks = {"x": Task(kind)}
        assert metrics.default_monitor(tasks) == monitor and monitor in metrics.score_names(tasks)
    both = {"x": Task("classification"), "y": Task("tagging")}
    assert metrics.default_monitor(both) == "sentence_accuracy" in metrics.score_names(both)
    mixed = both | {"z": Task("regression")}
    assert metrics.default_monitor(mixed) == "mean_score" in metrics.score_names(mixed)


def test_a_single_label_stays_multilabel_and_unlabelled_rows_are_ignored():
    tasks = {"x": Task("multilabel")}
    sides = {"x": [["a"], [], [], []]}, {"x": [["a"], ["a"], [], []]}
    scores = metrics.score(tasks, *sides)
    assert metrics.report(tasks, *sides)["x"]["a"] == {"precision": 0.5, "recall": 1, "f1": 2 / 3, "support": 1}
    assert scores["x_micro_f1"] == pytest.approx(2 / 3) and scores["x_accuracy"] == scores["sentence_accuracy"] == 0.75
    tasks = {"x": Task("classification"), "y": Task("regression")}
    scores = metrics.score(
        tasks,
        {"x": ["a", None, "a", None], "y": [1.0, 2.0, 3.0, 4.0]},
        {"x": ["a", "a", "b", "b"], "y": [1.0, 2.0, 3.0, 5.0]},
    )
    assert scores["x_accuracy"] == scores["sentence_accuracy"] == 0.5
    assert metrics.score({"x": Task("multilabel")}, {"x": [["A", "O"]]}, {"x": [["O", "A"]]})["sentence_accuracy"] == 1
