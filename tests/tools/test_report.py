"""report.html: its numbers compared with hand computations and the run's files, escaping of data, and the page in a
browser (skipped without Chromium)."""

import csv
import io
import json
import math
import random
import re
import shutil
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from conftest import ROOT, read_json
from sklearn.metrics import classification_report
from tqdm import tqdm

import metrics
from config import Config
from data_process import DataConfig, process
from engine.errors import UserError
from engine.predict.uncertainty import calibration
from engine.task.task import Task
from main import main
from tools.report import bootstrap, compare, entities, figures, history, look, marked, suspects, svg
from tools.report.__main__ import ReportConfig
from tools.report.__main__ import main as report
from tools.report.collect import collect
from tools.report.page import json_in_page, make_report, short
from tools.report.texts import TEXTS, Words, language_of

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package `chromium`)")
LABELS = ["a", "b", "c"]


# ---- runs without a model --------------------------------------------------------------------------------------------


def answer(task, kind, gold, predicted, probability, **more):
    right = metrics.is_right(task, gold, predicted)
    return {"gold": gold, "predicted": predicted, "right": right, "probability": probability, **more}


def class_rows(size, seed=0, labels=LABELS, accuracy=0.8, texts=None):
    """Returns rows of a classification task `mood` with plausible probabilities."""
    rng, task, rows = random.Random(seed), Task("classification", labels=labels), []
    for i in range(size):
        gold = rng.choice(labels)
        predicted = gold if rng.random() < accuracy else rng.choice([x for x in labels if x != gold])
        p = round(rng.uniform(0.5, 1), 6)
        rest = {x: round((1 - p) / (len(labels) - 1), 6) for x in labels[:40] if x != predicted}
        text = texts[i % len(texts)] if texts else f"text number {i} " + "word " * (i % 9)
        one = answer(task, "classification", gold, predicted, p, probabilities={predicted: p} | rest)
        rows.append({"id": str(i), "text": text, "cut": 0, "windows": 1, "answers": {"mood": one}})
    return rows


def make_run(folder, splits, tasks, **about):
    """Creates a run folder like an evaluation does. splits: {split: rows}."""
    (folder / "answers").mkdir(parents=True)
    scores = {}
    for split, rows in splits.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"answers/{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        sides = ({n: [row["answers"][n][side] for row in rows] for n in tasks} for side in ("gold", "predicted"))
        scores[split] = {"loss": 0.5} | metrics.score(tasks, *sides)
    (folder / "eval.json").write_text(json.dumps(scores), encoding="utf-8")
    facts = {
        "tasks": {name: task.to_json() for name, task in tasks.items()},
        "kinds": {name: metrics.scoring_kind(task) for name, task in tasks.items()},
        "main_scores": {name: metrics.MAIN[metrics.scoring_kind(task)] for name, task in tasks.items()},
        "shown_scores": metrics.main_scores(tasks),
        "monitor": metrics.default_monitor(tasks),
        "parts": list(splits),
        "data_path": str(folder / "no-data"),
        "options": {"lr": 0.001},
        "log": str(folder / "train.log"),
        **dict(seed=666, by_tokens=False, device="cpu", torch="2", commit="abc", evaluated="2026-01-01 00:00"),
    }
    (folder / "answers/about.json").write_text(json.dumps(facts | about, ensure_ascii=False), encoding="utf-8")
    return folder


MOOD = {"mood": Task("classification", labels=LABELS)}


# ---- figures --------------------------------------------------------------------------------------------------------


def test_expected_calibration_error():
    """There are two non-empty bins of ten: 0.95 and 0.91 with one of two right, and 0.3 with one of one right, so the
    ECE is 2/3 |0.5 - 0.93| + 1/3 |1 - 0.3|."""
    found = calibration([0.95, 0.91, 0.3], [True, False, True], 10)
    assert found["ece"] == pytest.approx(2 / 3 * 0.43 + 1 / 3 * 0.7)
    full = {cell["low"]: cell for cell in found["bins"] if cell["count"]}
    assert {low: cell["count"] for low, cell in full.items()} == {0.2: 1, 0.9: 2}
    assert full[0.9]["accuracy"] == 0.5 and full[0.9]["confidence"] == pytest.approx(0.93)
    assert calibration([0.0, 1.0], [False, True])["ece"] == 0
    assert calibration([0.5], [True], 10)["bins"][4]["count"] == 1  # the upper edge belongs to a bin


def test_coverage_and_accuracy():
    """Rows with equal confidence share a threshold."""
    thresholds, share, accuracy = figures.coverage([0.9, 0.5, 0.9, 0.2], [True, True, False, False])
    assert thresholds.tolist() == [0.9, 0.5, 0.2] and share.tolist() == [0.5, 0.75, 1.0]
    assert accuracy.tolist() == pytest.approx([1 / 2, 2 / 3, 2 / 4])
    table = figures.coverage_table([0.9, 0.5, 0.95, 0.2], [True, True, False, False], thresholds=(0.5, 0.9, 0.99))
    assert [row["coverage"] for row in table] == [0.75, 0.5, 0.0]
    assert [row["accuracy"] for row in table] == [pytest.approx(2 / 3), 0.5, None]


def test_label_scores_confusions_and_histogram():
    gold, predicted = list("aabbcca"), list("abbbcaa")
    expected = classification_report(gold, predicted, output_dict=True)
    for label, scores in metrics.label_scores(*metrics.count_matches("classification", gold, predicted)).items():
        assert scores["f1"] == expected[label]["f1-score"] and scores["support"] == expected[label]["support"]
        assert scores["precision"] == expected[label]["precision"]
    assert figures.confusions(gold, predicted) == [["a", "b", 1, 1 / 3], ["c", "a", 1, 1 / 2]]
    assert figures.matrix(gold, predicted)["counts"] == [[2, 1, 0], [0, 2, 0], [1, 0, 1]]
    assert figures.matrix(gold, predicted, most=2) | {"all": 0} == {
        "labels": ["a", "b"],
        "counts": [[2, 1], [0, 2]],
        "all": 0,
    }
    bars = figures.histogram([0.01, 0.99, 1.0], [False, True, False])
    assert bars[0] == [0, 1] and bars[19] == [1, 1] and sum(map(sum, bars)) == 3


def test_multilabel_threshold_curve_and_errors():
    probabilities, gold = [{"x": 0.9, "y": 0.4}, {"x": 0.8, "y": 0.1}], [{"x", "y"}, {"y"}]
    curve = figures.threshold_curve(probabilities, gold)
    assert curve["thresholds"] == [0.9, 0.8, 0.4, 0.1] and curve["precision"] == pytest.approx([1, 1 / 2, 2 / 3, 3 / 4])
    assert curve["recall"] == pytest.approx([1 / 3, 1 / 3, 2 / 3, 1])
    assert curve["best"] == {"threshold": 0.1, "f1": pytest.approx(6 / 7)}
    pairs, by_label = figures.error_pairs([{"x"}, {"x", "y"}, {"z"}], [{"y"}, {"y", "z"}, {"z"}])
    assert pairs == [["x", "y", 1], ["x", "z", 1]] and by_label == [["x", 2, 0], ["y", 0, 1], ["z", 0, 1]]


def test_residuals():
    found = figures.residuals([1.0, 2.0, 3.0], [1.5, 2.0, 2.0])
    assert found["mean"] == pytest.approx(-0.5 / 3) and found["rmse"] == pytest.approx(math.sqrt(1.25 / 3))
    assert found["r2"] == pytest.approx(1 - 1.25 / 2) and sum(found["counts"]) == 3
    assert figures.residuals([1.0, 1.0], [1.0, 2.0])["r2"] is None
    assert figures.residuals([1.0, 2.0], [float("nan"), 2.0])["rmse"] == 0  # from a model that has diverged
    assert figures.residuals([1.0], [float("inf")]) is None


def test_slices_by_length_quartile_and_column():
    rows = [
        {"text": "x" * n, "cut": int(n == 8), "windows": 1, "columns": {"source": "web" if n % 2 else "news"}}
        for n in range(1, 9)
    ]
    found = dict(figures.slices(rows))
    assert [name for name, _ in found["length"]] == ["1 – 3", "4 – 5", "6 – 7", "8"] and "windows" not in found
    assert sorted(i for _, inside in found["length"] for i in inside) == list(range(8))
    assert found["cut"] == [("yes", [7]), ("no", list(range(7)))] and dict(found["source"])["web"] == [0, 2, 4, 6]
    assert figures.slices([{"text": "same", "cut": 0, "windows": 1}] * 9) == []


# ---- intervals ------------------------------------------------------------------------------------------------------


def random_answers(kind, rng, size=60):
    """Returns (task, gold labels, predicted labels) for a kind. Some rows have no label."""
    tags = ["O", "B-p", "I-p", "B-q"]
    task = Task(kind, labels=tags if kind == "tagging" else LABELS)
    if kind == "words":
        task = Task("tagging", labels=["N", "V"])

    def label():
        if kind in ("tagging", "words"):
            return [rng.choice(task.labels) for _ in range(6)]
        if kind == "spans":
            return sorted(
                [s := rng.randrange(3), s + rng.randrange(3), rng.choice(LABELS)] for _ in range(rng.randrange(3))
            )
        if kind == "multilabel":
            return sorted(x for x in LABELS if rng.random() < 0.4)
        return rng.choice(LABELS) if kind == "classification" else round(rng.gauss(0, 1), 1)

    gold = [None if rng.random() < 0.1 else label() for _ in range(size)]
    return task, gold, [g if g is not None and rng.random() < 0.6 else label() for g in gold]


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression", "tagging", "spans", "words"])
def test_resampled_scores_match_metrics(kind):
    rng = random.Random(3)
    task, gold, predicted = random_answers(kind, rng)
    rows = [{"answers": {"t": answer(task, kind, g, p, None)}} for g, p in zip(gold, predicted)]
    statistics = bootstrap.statistics_of(rows, {"t": kind})
    logged = metrics.score({"t": task}, {"t": gold}, {"t": predicted})
    assert bootstrap.point(statistics, len(rows)) == pytest.approx(logged)
    for weights in bootstrap.weights_of(len(rows), times=4, seed=1):
        assert weights.sum(1).tolist() == [len(rows)] * len(weights)
        values = bootstrap.evaluate(statistics, weights)
        for number, counts in enumerate(weights):
            drawn = [i for i, count in enumerate(counts) for _ in range(count)]
            sides = ({"t": [side[i] for i in drawn]} for side in (gold, predicted))
            own = {name: column[number] for name, column in values.items()}
            assert own == pytest.approx(metrics.score({"t": task}, *sides)), kind


def test_interval_coverage():
    """About 95 % of the intervals of 300 simulated test sets should contain the true score, within 3.8 points (three
    standard errors)."""
    rng, covered = np.random.default_rng(0), {"accuracy": 0, "f1": 0}
    for trial in range(300):
        right = rng.random(200) < 0.8
        columns = np.stack([right, np.ones(200)], 1)
        one = bootstrap.Statistic(bootstrap.csr_matrix(columns.astype(float)), bootstrap.share_of)
        low, high = bootstrap.interval(bootstrap.resample([one], 200, times=300, seed=trial)["accuracy"])
        covered["accuracy"] += low <= 0.8 <= high
        # 2 gold entities, each found with p = 0.7, and 0.6 false positives per text: F1 = 2 * 1.4 / (2 + 1.4 + 0.6)
        found, extra = rng.binomial(2, 0.7, 200), rng.binomial(2, 0.3, 200)
        pairs = [
            ({("x", i, i) for i in range(2)}, {("x", i, i) for i in range(f)} | {("x", 9 + i, 9) for i in range(n)})
            for f, n in zip(found.tolist(), extra.tolist())
        ]
        statistics = bootstrap.entity_statistics(pairs)
        low, high = bootstrap.interval(bootstrap.resample(statistics, 200, times=300, seed=trial)["f1"])
        covered["f1"] += low <= 0.7 <= high
    for name, count in covered.items():
        assert 0.91 <= count / 300 <= 0.988, (name, count)


def test_scores_that_rows_do_not_reproduce_have_no_interval(tmp_path):
    """Examples are a custom metric with an existing name, and predictions of another evaluation."""
    run = make_run(tmp_path / "run", {"test": class_rows(50)}, MOOD)
    scores = read_json(run / "eval.json")
    scores["test"] |= {"mood_accuracy": 0.123, "mood_mine": 0.5}
    (run / "eval.json").write_text(json.dumps(scores))
    found = {one["name"]: one for one in collect(run)[0]["scores"]["test"]}
    assert found["mood_accuracy"]["low"] is None and found["mood_mine"]["low"] is None
    assert found["mood_macro_f1"]["low"] < found["mood_macro_f1"]["value"] < found["mood_macro_f1"]["high"]


# ---- entities -------------------------------------------------------------------------------------------------------


def test_classifying_entity_errors():
    gold = {("city", 0, 1), ("date", 3, 5), ("song", 7, 7), ("name", 9, 9), ("time", 11, 12)}
    predicted = {("city", 0, 1), ("date", 4, 6), ("movie", 7, 7), ("room", 20, 20), ("date", 11, 11)}
    found = entities.match(gold, predicted)
    assert [(one.verdict, one.gold, one.predicted) for one in found] == [
        ("right", ("city", 0, 1), ("city", 0, 1)),
        ("boundary_error", ("date", 3, 5), ("date", 4, 6)),
        ("wrong_type", ("song", 7, 7), ("movie", 7, 7)),
        ("missed", ("name", 9, 9), None),
        ("false_positive", None, ("date", 11, 11)),  # overlaps ("time", 11, 12), but differs in type and boundary
        ("missed", ("time", 11, 12), None),
        ("false_positive", None, ("room", 20, 20)),
    ]
    closest = entities.match({("x", 0, 3)}, {("x", 0, 0), ("x", 1, 3)})
    assert [(one.verdict, one.predicted) for one in closest] == [
        ("false_positive", ("x", 0, 0)),
        ("boundary_error", ("x", 1, 3)),
    ]


def test_each_entity_is_in_one_match_and_right_ones_agree_with_metrics():
    rng = random.Random(5)
    for _ in range(300):
        sides = [
            {(rng.choice("xy"), s := rng.randrange(8), s + rng.randrange(4)) for _ in range(rng.randrange(6))}
            for _ in range(2)
        ]
        found = entities.match(*sides)
        for side, entity_set in zip(("gold", "predicted"), sides):
            listed = [getattr(one, side) for one in found if getattr(one, side)]
            assert sorted(listed) == sorted(entity_set)
        assert sum(one.verdict == "right" for one in found) == len(sides[0] & sides[1])
        for one in found:
            if one.verdict == "wrong_type":
                assert one.gold[1:] == one.predicted[1:] and one.gold[0] != one.predicted[0]


def flat(tree):
    return "".join(item if isinstance(item, str) else flat(item[1]) for item in tree)


def test_marking_nested_and_crossing_entities_keeps_the_text():
    nested = [marked.Mark(0, 10, "org", "right"), marked.Mark(4, 10, "place", "missed")]
    tree = marked.tree("Bank of Bosnia!", marked.split_crossing(nested))
    assert tree[0][0].label == "org" and tree[0][1][1][0].label == "place" and tree[-1] == "Bosnia!"[2:][-5:]
    rng, text = random.Random(2), "".join(chr(97 + i % 26) for i in range(40))
    for _ in range(300):
        marks = [
            marked.Mark(s := rng.randrange(39), min(40, s + 1 + rng.randrange(15)), rng.choice("pq"), "right")
            for _ in range(rng.randrange(7))
        ]
        pieces = marked.split_crossing(marks)
        assert flat(marked.tree(text, pieces)) == text
        assert sum(piece.first for piece in pieces) == len(marks)
        assert sum(m.end - m.start for m in marks) == sum(p.end - p.start for p in pieces)
        for a in pieces:
            for b in pieces:
                apart = a.end <= b.start or b.end <= a.start
                inside = (a.start <= b.start and b.end <= a.end) or (b.start <= a.start and a.end <= b.end)
                assert apart or inside


def test_entities_by_length_and_occurrence_in_training():
    row = {"text": "to New York or Oslo", "places": [[0, 2], [3, 6], [7, 11], [12, 14], [15, 19]]}
    found = [entities.match({("city", 1, 2), ("city", 4, 4)}, {("city", 1, 2)})]
    assert entities.by_seen([row], found, {("city", ("New", "York"))}) == {
        "seen": {"gold": 1, "found": 1},
        "unseen": {"gold": 1, "found": 0},
    }
    assert [(cell["size"], cell["gold"], cell["found"]) for cell in entities.by_size(found)] == [
        ("1", 1, 0),
        ("2", 1, 1),
    ]
    assert entities.by_size([entities.match({("city", 1, 6)}, set())])[0]["size"] == "5+"


# ---- training history ---------------------------------------------------------------------------------------------


def curves(train, dev, score):
    steps = [{"step": 10 * e + 5, "epoch": e, "lr": 0.1, "loss": value} for e, value in enumerate(train)]
    pairs = zip(dev, score)
    epochs = [{"step": 10 * e + 10, "epoch": e, "dev_loss": d, "dev_f1": s} for e, (d, s) in enumerate(pairs)]
    return {"steps": steps, "epochs": epochs, "pace": []}


@pytest.mark.parametrize(
    "verdict, train, dev, score",
    [
        ("overfit", [3, 2, 1, 0.5], [2, 1, 1.2, 1.5], [0.5, 0.7, 0.69, 0.6]),
        ("overfit_score_rises", [3, 2, 1, 0.5], [2, 1, 1.2, 1.5], [0.5, 0.7, 0.72, 0.74]),
        ("underfit", [3, 2.5, 2], [3, 2.6, 2.2], [0.2, 0.3, 0.4]),
        ("level", [3, 1, 0.9], [2, 1, 1.02], [0.5, 0.7, 0.7]),  # rose by 2 %
        ("level", [3, 1, 1.2], [2, 1, 1.5], [0.5, 0.7, 0.6]),  # the training loss rose, too: no overfitting
        ("level", [3, 2, 1.5], [2, 1, 0.99], [0.5, 0.7, 0.8]),  # fell by 1 %
        ("short", [3], [2], [0.5]),
    ],
)
def test_diagnosis_of_learning_curves(verdict, train, dev, score):
    found, numbers = history.verdict(curves(train, dev, score), "f1")
    assert found == verdict
    assert Words("en")(found, **numbers) and Words("zh")(found, **numbers)


def test_history_of_a_resumed_run_and_log(tmp_path):
    lines = [
        {"step": 2, "epoch": 0, "lr": 1, "loss": 3},
        {"step": 2, "epoch": 0, "lr": 1, "loss": 4},
        {"step": 3, "epoch": 0, "dev_f1": 0.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "ep')
    found = history.read_history(tmp_path)
    assert [r["loss"] for r in found["steps"]] == [4] and history.best_epoch(found, "f1") == 1
    log = "2026-01-01 00:00:00,1 INFO a\n2026-01-01 00:00:01,1 WARNING cut\nmore\n2026-01-01 00:00:02,1 WARNING cut\n"
    (tmp_path / "train.log").write_text(log)
    logged = history.read_log(tmp_path / "train.log")
    assert logged["warnings"] == [["cut", 2]] and logged["ended"] == "2026-01-01 00:00:02"


def test_plots_mark_the_best_epoch_and_early_stopping(tmp_path):
    run = make_run(tmp_path / "run", {"test": class_rows(20)}, MOOD)
    epochs = [{"step": 5 * (i + 1), "epoch": i, "dev_mood_accuracy": score} for i, score in enumerate((0.2, 0.6, 0.5))]
    (run / "metrics.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    (run / "train.log").write_text("2026-01-01 00:00:00,1 INFO best: epoch 2\n")
    drawn = [re.findall(r'class="mark-text"[^>]*>([^<]+)<', make_report(run, "en")[0].read_text())]
    (run / "train.log").write_text("2026-01-01 00:00:00,1 INFO stopped early: mood_accuracy has not improved\n")
    drawn.append(re.findall(r'class="mark-text"[^>]*>([^<]+)<', make_report(run, "en")[0].read_text()))
    assert drawn == [["best"] * 2, ["best", "stopped early"] * 2]  # in two plots


# ---- suspects -------------------------------------------------------------------------------------------------------


def test_confident_learning():
    """t_a = (0.9 + 0.7 + 0.2) / 3 = 0.6 and t_b = (0.8 + 0.4) / 2 = 0.6: row 2 (given a) is likely b, row 4 is
    neither."""
    rows = [("a", {"a": 0.9, "b": 0.1}), ("a", {"a": 0.7, "b": 0.3}), ("a", {"a": 0.2, "b": 0.8})]
    rows += [("b", {"a": 0.2, "b": 0.8}), ("b", {"a": 0.59, "b": 0.4})]
    assert suspects.class_thresholds(rows) == {"a": pytest.approx(0.6), "b": pytest.approx(0.6)}
    assert suspects.confident_learning(rows) == [(2, "b", pytest.approx(-0.6))]


def test_confident_tag_errors_exceed_the_median():
    task = Task("tagging", labels=["O", "B-x"])
    sure = [answer(task, "tagging", ["O", "B-x"], ["O", "B-x"], [p]) for p in (0.95, 0.97, 0.99)]
    wrong = [answer(task, "tagging", ["O", "O"], ["O", "B-x"], [p]) for p in (0.96, 0.98)]
    found = suspects.suspicious([{"answers": {"t": one}} for one in [*sure, *wrong]], {"t": "tagging"})
    assert [(one["row"], one["score"]) for one in found] == [(4, 0.98)]  # the median of the right tags is 0.97


def test_near_duplicates_with_different_labels():
    rows = [
        {"id": "7", "text": "Play some Jazz, please!", "answers": {"mood": answer(MOOD["mood"], "", "a", "b", 0.9)}}
    ]
    training = [
        {"id": "1", "text": "play some jazz please", "mood": "b"},
        {"id": "2", "text": "play some jazz, please", "mood": "a"},
        {"id": "3", "text": "cancel the alarm", "mood": "b"},
    ]
    found = suspects.contradicted(rows, [0], {"mood": "classification"}, training)
    assert [(other["id"], other["label"]) for other in found[0]] == [("1", "b")] and found[0][0]["cosine"] > 0.8


# ---- what the data may hold -----------------------------------------------------------------------------------------

NASTY = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "\"quoted\" 'text' & <!-- comment",
    "{{ 7 * 7 }} {% raw %}",
    "line\u2028separator\u2029 and \u202e reversed",
    "x" * 100_000,
]


def nasty_run(folder):
    labels = [*NASTY[:4], "y" * 100_000]
    task = Task("classification", labels=labels)
    rows = class_rows(60, labels=labels, texts=NASTY)
    for row in rows:
        row["answers"] = {"<u>mood</u>": row["answers"]["mood"]}
        row |= {"id": f"<b>{row['id']}</b>", "columns": {"<i>source": random.Random(row["id"]).choice(NASTY[:3])}}
    (folder / "no-data").mkdir(parents=True)
    checks = [{"what": NASTY[0], "count": 1, "rows": [NASTY[1]], "advice": NASTY[2]}]
    (folder / "no-data/checks.json").write_text(json.dumps(checks))
    (folder / "train.log").write_text(f"2026-01-01 00:00:00,1 WARNING {NASTY[0]}\n")
    return make_run(folder, {"test": rows}, {"<u>mood</u>": task}, options={"data_path": NASTY[1]})


def test_data_is_escaped(tmp_path):
    path, _ = make_report(nasty_run(tmp_path / "<s>run&"))
    html = path.read_text(encoding="utf-8")
    for bad in ("<script>alert", "<img src=x", "<b>1", "<i>source", "<s>run", "<u>mood"):
        assert bad not in html
    assert html.count("<script") == html.count("</script>") == 4 and "{{ 7 * 7 }}" in html
    assert len(html) < 600_000 and "x" * 500 not in html and "(100,000)" in html
    blocks = re.findall(r'<script type="application/json" id="([\w-]+)">(.*?)</script>', html, re.S)
    found = {name: json.loads(text) for name, text in blocks}
    assert found["table-data"]["rows"][0][2] in {short(text, 280) for text in NASTY}
    assert "\u2028" not in blocks[0][1]


def test_embedded_json_does_not_close_the_script():
    value = {"a": NASTY[:5], "b": [1.5, None]}
    assert json.loads(json_in_page(value)) == value and not set("<>&\u2028") & set(json_in_page(value))


@pytest.mark.slow
def test_large_data_makes_a_small_page_in_seconds(tmp_path):
    rows = class_rows(100_000, texts=[f"{'some words of a text ' * 8} {i}" for i in range(1000)])
    run = make_run(tmp_path / "big", {"test": rows}, MOOD)
    began = time.perf_counter()
    path, _ = make_report(run)
    assert time.perf_counter() - began < 90
    html = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 10_000_000 and 'id="left-out"' in html
    table = json.loads(re.search(r'id="table-data">(.*?)</script>', html, re.S).group(1))
    wrong = sum(not row["answers"]["mood"]["right"] for row in rows)
    assert table["all"] == 100_000 and sum(row[3] == 0 for row in table["rows"]) == min(wrong, len(table["rows"]))
    if CHROMIUM:
        with Browser(tmp_path / "profile") as browser:
            browser.open(path)
            assert browser.run("document.querySelectorAll('#rows-table tbody tr').length") == 50
            assert browser.complaints == browser.requests == []


def test_strings_exist_in_both_languages():
    assert TEXTS["en"].keys() == TEXTS["zh"].keys()
    for key, english in TEXTS["en"].items():
        chinese = TEXTS["zh"][key]
        if isinstance(english, str):
            fields = re.findall(r"{(\w+)", english), re.findall(r"{(\w+)", chinese)
            assert set(fields[0]) == set(fields[1]), key
    assert language_of("auto", ["明天北京天气怎么样", "play 音乐"]) == "zh"
    assert language_of("auto", ["play a song"]) == language_of("en", ["明天"]) == "en"
    used = set()
    for path in (ROOT / "tools/report/templates").glob("*.jinja"):
        used |= set(re.findall(r'\bt\("(\w+)"', path.read_text(encoding="utf-8")))
    assert used <= TEXTS["en"].keys()


# ---- from a command -------------------------------------------------------------------------------------------------


def figures_in(path):
    return json.loads(re.search(r'id="figures">(.*?)</script>', path.read_text(encoding="utf-8"), re.S).group(1))


def read_csv(path):
    csv.field_size_limit(10**9)
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def shown_scores(html):
    """Returns {"test.intent_accuracy": (displayed value, exact value)} of a page."""
    found = re.findall(r'data-figure="([^"]+)" data-value="([^"]+)">([^<]+)<', html)
    return {name: (shown, float(value)) for name, value, shown in found}


def check_page(run):
    """Checks that scores on the page match eval.json, scores by label match report.json, and both can be recomputed
    from predictions.csv."""
    html = (run / "report.html").read_text(encoding="utf-8")
    shown, logged = shown_scores(html), read_json(run / "eval.json")
    for split, scores in logged.items():
        for name, value in scores.items():
            assert shown[f"{split}.{name}"] == (f"{value:.4f}", pytest.approx(value)), name
    found, per_label = figures_in(run / "report.html"), read_json(run / "report.json")
    for name, task in found["tasks"].items():
        if name in per_label[found["main"]]:
            assert task["per_label"].keys() == per_label[found["main"]][name].keys()
            for label, scores in per_label[found["main"]][name].items():
                assert task["per_label"][label] == pytest.approx(scores), label
    return found


@pytest.fixture(scope="module")
def trained(sample, tmp_path_factory):
    """Returns a folder with two tiny runs on the sample, "run" and "crf", with evaluations and predictions."""
    output = tmp_path_factory.mktemp("output")
    small = dict(hidden_size=32, num_layers=1, epochs=5, batch_size=8, vocab_size=500, log_steps=2, lr=5e-3)
    for name, options in (("run", {"use_crf": False}), ("crf", {"use_crf": True})):
        todo = dict(do_train=True, do_eval=True, do_predict=True, data_path=str(sample), device="cpu")
        main(Config(**small, **todo, output_dir=str(output), model_version=name, **options))
    return output


def test_report_of_a_run_matches_its_files(trained):
    run = trained / "run"
    found = check_page(run)
    rows = read_csv(run / "predictions.csv")
    right = [row["right"] == "True" for row in rows]
    logged = read_json(run / "eval.json")["test"]
    assert np.mean(right) == pytest.approx(logged["sentence_accuracy"])
    hits = [row["intent"] == row["intent_gold"] for row in rows]
    assert hits == [row["intent_right"] == "True" for row in rows]
    sure = [float(row["intent_probability"]) for row in rows]
    intent = found["tasks"]["intent"]
    assert intent["calibration"].pop("untempered") == pytest.approx(logged["intent_ece_untempered"], abs=1e-5)
    assert intent["calibration"] == calibration(sure, hits)
    assert intent["calibration"]["ece"] == pytest.approx(logged["intent_ece"], abs=1e-5)
    assert intent["coverage_table"] == figures.coverage_table(sure, hits)
    sets = [
        [{(e["label"], e["start"], e["end"]) for e in json.loads(row[key])} for key in ("slots_gold", "slots")]
        for row in rows
    ]
    counted = sum(cell["right"] for cell in found["tasks"]["slots"]["errors"].values())
    assert counted == sum(len(gold & predicted) for gold, predicted in sets)
    all_gold = sum(
        sum(cell[v] for v in ("right", "wrong_type", "boundary_error", "missed"))
        for cell in found["tasks"]["slots"]["errors"].values()
    )
    assert all_gold == sum(len(gold) for gold, _ in sets)


def test_training_writes_the_report_inputs(trained, caplog):
    run = trained / "run"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    norms = [record["gradient_norm"] for record in records if "lr" in record]
    assert norms and all(0 < norm < 1e4 for norm in norms)
    pace = [json.loads(line) for line in (run / "throughput.jsonl").read_text().splitlines()]
    assert [line["step"] for line in pace] == [record["step"] for record in records if "lr" in record]
    assert all(line["examples_per_second"] > 0 and line["seconds"] > 0 for line in pace)
    log = (run / "train.log").read_text(encoding="utf-8").splitlines()
    lines = [line.split(" ", 3)[3] for line in log if re.search(r"epoch \d+  dev: ", line)]
    assert len(lines) == 5 and all(len("00:00:00 " + line) <= 100 for line in lines)
    names = ("sentence_accuracy", "intent_accuracy", "slots_f1")
    assert all(re.search(rf"{name} \d\.\d{{4}}", line) for line in lines for name in names)
    logged = [line for line in log if "report: " in line]
    assert len(logged) == 1 and any(re.search(r"  1\. \w", line) for line in log)


def test_the_report_is_recreated_without_a_model(trained, tmp_path, monkeypatch):
    shutil.copytree(trained / "run", tmp_path / "output/run", ignore=shutil.ignore_patterns("checkpoints", "*.html"))
    monkeypatch.chdir(tmp_path)
    report(ReportConfig(runs=("run",), report_language="zh"))
    page = tmp_path / "output/run/report.html"
    before, after = figures_in(trained / "run/report.html"), figures_in(page)
    assert all(after[key] == before[key] for key in ("scores", "tasks", "slices", "learning"))
    assert "概览" in page.read_text(encoding="utf-8")
    with pytest.raises(UserError, match="never: no such run in output"):
        report(ReportConfig(runs=("never",)))
    (tmp_path / "output/empty").mkdir()
    with pytest.raises(UserError, match="no stored predictions"):
        report(ReportConfig(runs=("empty",)))
    assert not (tmp_path / "output/never").exists()


def test_runs_are_compared_on_shared_rows(trained, tmp_path):
    output = tmp_path / "output"
    shutil.copytree(trained, output)
    report(ReportConfig(runs=("run", "crf"), output_dir=str(output)))
    found = figures_in(output / "comparison-run-crf.html")
    logged = [read_json(output / name / "eval.json")["test"] for name in ("run", "crf")]
    for name, cells in found["scores"].items():
        assert [cell["value"] for cell in cells] == pytest.approx([scores[name] for scores in logged])
        assert cells[1]["difference"] == pytest.approx(logged[1][name] - logged[0][name])
        assert cells[1]["difference_low"] <= cells[1]["difference"] + 1e-9
    assert found["options"] == {"use_crf": [False, None]} and found["left_out"] == 0
    same = compare.paired([bootstrap.statistics_of(class_rows(80), {"mood": "classification"})] * 2, 80)
    assert same["mood_accuracy"][1]["difference_low"] == same["mood_accuracy"][1]["difference_high"] == 0.0
    for names, message in ((("run", "run"), "at least two"), (("run", "none"), "no such run"), ((), "pass one run")):
        with pytest.raises(UserError, match=message):
            report(ReportConfig(runs=names, output_dir=str(output)))


# ---- in a browser ---------------------------------------------------------------------------------------------------

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def check_in_browser(path, folder, sections=("glance", "learning", "errors", "slices", "rows", "how")):
    """Checks that the page opens in both themes and on a phone, logs nothing to the console, makes no requests, and
    that its table can be sorted, filtered and searched."""
    with Browser(folder) as browser:
        for options in ({}, {"dark": True}, {"width": 390, "height": 844, "phone": True}):
            browser.look(**options)
            browser.open(path)
            assert browser.run(OVERFLOW) <= 0, options
        for name in sections:
            assert browser.run(f"document.getElementById({name!r}).getBoundingClientRect().height") > 30, name
        background = browser.run("getComputedStyle(document.body).backgroundColor")
        browser.look(dark=True)
        assert browser.run("getComputedStyle(document.body).backgroundColor") != background
        check_table(browser)
        assert browser.complaints == [] and browser.requests == []


def check_table(browser):
    data = json.loads(browser.run("document.getElementById('table-data').textContent"))
    rows = data["rows"]

    def found():
        return int(re.sub(r"\D", "", browser.run("document.getElementById('found').textContent")))

    def change(name, value, event="change"):
        script = f"(() => {{ const e = document.getElementById({name!r}); e.value = {json.dumps(value)};"
        browser.run(script + f" e.dispatchEvent(new Event({event!r})); }})()")

    assert found() == len(rows)
    for value in ("0", "1"):
        change("verdict", value)
        assert found() == sum(str(row[3]) == value for row in rows)
    change("verdict", "")
    if data["labels"]:
        change("label", "0")
        assert found() == sum(0 in row[5] for row in rows) > 0
        change("label", "")
    if not rows:
        return
    word = rows[0][2][:12]
    change("search", word.upper(), "input")
    assert 0 < found() <= len(rows)
    change("search", "", "input")
    browser.run("document.querySelectorAll('#rows-table th')[2].click()")
    cells = browser.run("[...document.querySelectorAll('#rows-table tbody tr')].map((r) => r.cells[2].textContent)")
    order = browser.run(f"{json.dumps([row[2] for row in rows])}.sort((a, b) => a.localeCompare(b)).slice(0, 50)")
    assert cells == order
    if len(rows) > 50:
        browser.run("document.getElementById('next').click()")
        assert browser.run("document.getElementById('page').textContent").startswith("2 /")


@in_browser
def test_the_page_in_a_browser(trained, tmp_path):
    check_in_browser(trained / "run/report.html", tmp_path / "profile")


@in_browser
def test_adversarial_data_and_a_comparison_in_a_browser(trained, tmp_path):
    path, _ = make_report(nasty_run(tmp_path / "run & <s>"))
    check_in_browser(path, tmp_path / "profile")
    page = compare.compare_runs(trained, ("run", "crf"))
    check_in_browser(page, tmp_path / "other", sections=("scores", "options", "learning", "rows"))
    page.unlink()


# ---- real runs of every kind ----------------------------------------------------------------------------------------

WORDS = "good bad slow fast red blue old new big small".split()


def made_data(kind, folder, size=240):
    """Processes learnable data of a kind. Returns its folder."""
    rng, rows = random.Random(1), []
    for i in range(size):
        words = [rng.choice(WORDS) for _ in range(rng.randrange(3, 12))]
        row = {"split": ("train", "train", "dev", "test")[i % 4], "id": f"r{i}", "text": " ".join(words)}
        row["source"] = ("web", 1999, None)[i % 3]
        if kind == "spans":
            starts = [sum(len(w) + 1 for w in words[:j]) for j in range(len(words) + 1)]
            spans = [[starts[j], starts[j + 1] - 1, "colour"] for j, w in enumerate(words) if w in ("red", "blue")]
            nested = [[starts[j], starts[j + 2] - 1, "thing"] for j, w in enumerate(words[:-1]) if w in ("red", "old")]
            row["entities"] = sorted(spans + nested)
        elif kind == "multilabel":
            row["topics"] = sorted({w for w in words if w in ("red", "fast", "old")})
        elif kind == "regression":
            row["score"] = words.count("good") - words.count("bad") + rng.random()
        else:
            row["mood"] = "up" if words.count("good") > words.count("bad") else "down"
        rows.append(row)
    folder.mkdir()
    raw = folder / "raw.jsonl"
    raw.write_text("".join(json.dumps(row) + "\n" for row in rows))
    column = {"spans": "entities", "multilabel": "topics", "regression": "score", "classification": "mood"}[kind]
    options = dict(label_column=column, label_type=f"{column}={kind}", keep_columns="source")
    process(DataConfig(input=str(raw), output_dir=str(folder / kind), **options))
    return folder / kind


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["multilabel", "regression", "spans", "classification"])
def test_runs_of_all_kinds(kind, tmp_path):
    data = made_data(kind, tmp_path / "data")
    small = dict(hidden_size=64, num_layers=2, epochs=6, batch_size=16, vocab_size=300, log_steps=2, lr=3e-3)
    todo = dict(do_train=True, do_eval=True, do_predict=True, data_path=str(data), device="cpu")
    main(Config(**small, **todo, output_dir=str(tmp_path), model_version="run"))
    run = tmp_path / "run"
    task = next(iter(check_page(run)["tasks"].values()))
    rows = read_csv(run / "predictions.csv")
    name = next(iter(read_json(data / "labels.json")))
    sources = {row["id"]: row["kept"]["source"] for row in map(json.loads, (data / "test.jsonl").open())}
    groups = next(table for table in figures_in(run / "report.html")["slices"] if table["by"] == "source")["groups"]
    assert {group["name"] for group in groups} == {"web", "1999"}
    for group in groups:
        verdicts = [row["right"] == "True" for row in rows if str(sources[row["id"]]) == group["name"]]
        assert group["rows"] == len(verdicts) > 9
        if f"{name}_accuracy" in group["scores"]:
            assert group["scores"][f"{name}_accuracy"]["value"] == pytest.approx(np.mean(verdicts))
    if kind == "regression":
        gold, predicted = ([float(row[key]) for row in rows] for key in (f"{name}_gold", name))
        rmse = math.sqrt(np.mean(np.square(np.subtract(gold, predicted))))
        assert task["residuals"]["rmse"] == pytest.approx(rmse) and rows[0]["right"] == ""
    if kind == "multilabel":
        sides = [[set(json.loads(row[key])) for row in rows] for key in (f"{name}_gold", name)]
        assert task["errors"] == [list(item) for item in figures.error_pairs(*sides)[1]]
        assert task["threshold"]["best"]["f1"] >= read_json(run / "eval.json")["test"][f"{name}_micro_f1"] - 1e-9
    if kind == "spans":
        nested = [row for row in rows if '"thing"' in row[f"{name}_gold"]]
        assert nested and sum(cell["right"] for cell in task["errors"].values()) > 0
    if CHROMIUM:
        check_in_browser(run / "report.html", tmp_path / "profile")


@pytest.mark.slow
def test_cross_validation_finds_corrupted_labels(tmp_path):
    """Corrupts 2 % of the labels. At least half of them must be in the first 5 % of the list."""
    from tools.cross_validate import __main__ as cross_validate

    rng, rows = random.Random(4), []
    for i in range(500):
        words = [rng.choice(WORDS) for _ in range(8)]
        rows.append({"id": str(i), "text": " ".join(words), "label": max(WORDS[:4], key=lambda w: (words.count(w), w))})
    planted = rng.sample(range(500), 10)
    for i in planted:
        rows[i]["label"] = rng.choice([label for label in WORDS[:4] if label != rows[i]["label"]])
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = tmp_path / "data"
    process(DataConfig(input=str(tmp_path / "raw.jsonl"), output_dir=str(data), n_splits=4, test_ratio=0.0))
    small = dict(hidden_size=64, num_layers=2, epochs=25, batch_size=16, vocab_size=300, lr=2e-3, early_stop_patience=0)
    cross_validate.main(
        Config(**small, data_path=str(data), output_dir=str(tmp_path), model_version="cv", device="cpu")
    )
    folder = tmp_path / "cv-folds"
    found = [row["id"] for row in read_csv(folder / "suspicious.csv")][:25]
    assert len({*found} & {str(i) for i in planted}) >= 5
    logged = read_json(folder / "folds.json")["out_of_fold"]
    shown = shown_scores((folder / "report.html").read_text(encoding="utf-8"))
    assert shown["out_of_fold.label_accuracy"] == (
        f"{logged['label_accuracy']:.4f}",
        pytest.approx(logged["label_accuracy"]),
    )
    assert all(row["right"] in ("True", "False") for row in read_csv(folder / "out_of_fold.csv"))
    if CHROMIUM:
        check_in_browser(folder / "report.html", tmp_path / "profile")


# ---- pictures and lines ---------------------------------------------------------------------------------------------


def test_plots_escape_names_and_omit_non_finite_values():
    drawn = svg.lines([([1, 2, 3], [0.5, float("nan"), None])], "<step>", "", 'a "title" <x>').__html__()
    assert "<step>" not in drawn and "&lt;step&gt;" in drawn and "nan" not in drawn.lower() and "<x>" not in drawn
    assert svg.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0] and svg.number(0.00025) == "2.5e-4"
    assert svg.lines([([], [])], "x", "y", "empty").__html__().startswith("<svg")
    assert svg.span([1.0]) != (1.0, 1.0)


def test_three_findings_of_different_kinds_are_selected(tmp_path):
    run = make_run(tmp_path / "run", {"test": class_rows(200, accuracy=0.5)}, MOOD)
    found, _ = collect(run)
    for item in found["suspects"]:
        item |= {"gold_shown": item["gold"], "likely_shown": item["likely"]}
    chosen = look.worth_a_look(found)
    assert 1 <= len(chosen) <= 3 and len({item[2] for item in chosen}) == len(chosen)
    for words in (Words("en"), Words("zh")):
        assert all(look.sentence(item, words, short) for item in chosen)


def test_progress_bar_shows_loss_rate_speed_and_remaining_time(tmp_path, monkeypatch):
    from engine.train.progress import EpochBar, Progress, RunningLosses

    monkeypatch.setattr("engine.train.progress.tqdm", partial(tqdm, disable=False, file=io.StringIO()))
    progress = Progress()
    losses = RunningLosses(progress, "cpu")
    bar = EpochBar("epoch 1/2", 10, progress, losses, tmp_path)
    bar.log(0.1234, 3e-4)
    bar.update([SimpleNamespace(rows=range(8))])
    line = str(bar.bar)
    bar.close()
    assert "loss 0.1234" in line and "lr 3.0e-04" in line and "examples/s" in line and re.search(r"\d+:\d+<\S", line)
