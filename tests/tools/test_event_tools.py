"""Events in report.html, the demo, and files for annotation tools."""

import random
from itertools import product

import pytest
from test_report import answer, figures_in, make_run

import metrics
from engine.errors import UserError
from engine.task.task import Task
from engine.task.words import in_events
from tools.demo.typed import view
from tools.report import bootstrap, entities
from tools.report.page import make_report
from tools.select.annotate import plain_row, require_format

ACTS = Task("events", labels=["meet", "meet|place", "meet|who", "sell", "sell|who"])
WORDS = ["Ana", "Bo", "Oslo", "met", "sold", "old"]


def consistent(items):
    label = sorted(map(list, {tuple(item) for item in items}))
    return [item for item, stay in zip(label, in_events(label, [True] * len(label))) if stay]


def rows_of(size, seed=0):
    """Returns stored rows of random events with all kinds of errors. Some rows are unlabelled."""
    rng, rows = random.Random(seed), []
    spans = [(0, 0), (1, 2), (3, 3), (5, 6)]
    everything = [(*a, *b, name) for a, b, name in product(spans, spans, ACTS.labels)]
    for number in range(size):
        words = [rng.choice(WORDS) for _ in range(8)]
        gold = consistent(rng.sample(everything, rng.randrange(16)))
        found = consistent([item for item in gold if rng.random() < 0.8] + rng.sample(everything, rng.randrange(4)))
        chances = [round(rng.uniform(0.5, 1), 6) for _ in found]
        answers = {"acts": answer(ACTS, "events", None if number % 10 == 9 else gold, found, chances)}
        starts = [sum(len(word) + 1 for word in words[:i]) for i in range(8)]
        row = {"id": str(number), "text": " ".join(words), "cut": 0, "windows": 1, "answers": answers}
        rows.append(row | {"places": [[start, start + len(word)] for start, word in zip(starts, words)]})
    return rows


def scores_of(rows):
    gold, predicted = ({"acts": [row["answers"]["acts"][side] for row in rows]} for side in ("gold", "predicted"))
    return metrics.score({"acts": ACTS}, gold, predicted)


def test_resampled_scores_match_metrics():
    rows = rows_of(60)
    statistics = bootstrap.statistics_of(rows, {"acts": "events"})
    assert bootstrap.point(statistics, len(rows)) == pytest.approx(scores_of(rows))
    (weights,) = bootstrap.weights_of(len(rows), times=4, seed=1)
    values = bootstrap.evaluate(statistics, weights)
    for number, counts in enumerate(weights):
        drawn = [rows[i] for i, count in enumerate(counts) for _ in range(count)]
        assert {name: column[number] for name, column in values.items()} == pytest.approx(scores_of(drawn))


def test_the_report_shows_triggers_and_arguments(tmp_path):
    rows = rows_of(80)
    (tmp_path / "run/no-data").mkdir(parents=True)
    path, _ = make_report(make_run(tmp_path / "run", {"test": rows}, {"acts": ACTS}))
    found = figures_in(path)
    scores = {one["name"]: one for one in found["scores"]["test"]}
    for name in ("f1", "trigger_f1", "whole_f1"):
        assert scores[f"acts_{name}"]["low"] <= scores[f"acts_{name}"]["value"] <= scores[f"acts_{name}"]["high"]
    counted = {}
    for one in (row["answers"]["acts"] for row in rows if row["answers"]["acts"]["gold"] is not None):
        for match in entities.match(*(metrics.items_in("events", one[side]) for side in ("gold", "predicted"))):
            cell = counted.setdefault(match.either[0], dict.fromkeys(entities.VERDICTS, 0))
            cell[match.verdict] += 1
    assert found["tasks"]["acts"]["errors"] == counted and set(counted) == {*ACTS.labels}
    labelled = [row["answers"]["acts"] for row in rows if row["answers"]["acts"]["gold"] is not None]
    sides = [[one[side] for one in labelled] for side in ("gold", "predicted")]
    assert found["tasks"]["acts"]["per_label"] == metrics.label_scores(*metrics.count_matches("events", *sides))


def test_the_demo_shows_events():
    label = [[1, 1, 0, 0, "meet|who"], [1, 1, 1, 1, "meet"]]
    example = {"tokens": ["Ana", "met"]}
    shown = view(example, "acts", {"acts": ACTS}, label, [0.9, 0.8], None)
    assert shown["relations"] == [["met", 2, "meet|who", "Ana", 1, 0.9], ["met", 2, "meet", "met", 2, 0.8]]


def test_files_for_annotation_tools():
    for form in ("doccano", "label_studio"):
        with pytest.raises(UserError, match="'acts' has events; choose another format"):
            require_format(form, {"acts": ACTS})
    require_format("jsonl", {"acts": ACTS})
    event = {"type": "meet", "trigger": {"text": "met", "start": 4, "end": 7}, "arguments": []}
    argument = {"role": "who", "text": "Ana", "start": 0, "end": 3}
    found = event | {"arguments": [argument | {"probability": 0.9}], "probability": 0.8}
    assert plain_row({}, {"acts": [found]}, None, {"acts": ACTS}) == {"acts": [event | {"arguments": [argument]}]}
