"""Events: decoding compared with enumeration, scores by counting, and consistent predictions of the head."""

import json
import random
import sys
from itertools import product

import pytest
import torch
from conftest import ROOT

from config import Config
from data_process import DataConfig, prepare, process
from engine.errors import UserError
from engine.run.command_line import parse_args
from engine.task.task import Task
from engine.task.words import columns_of, events_in, in_events, with_abstention
from main import main
from metrics import is_right, score, whole_events
from model_utils import HEADS, EventHead
from preprocess.labels.kinds import check_label

sys.path.insert(0, str(ROOT / "benchmarks"))
import events as generated

TEXT = "Ana paid Ben in May and June"
OFFSETS = [(0, 3), (4, 8), (9, 12), (13, 15), (16, 19), (20, 23), (24, 28)]
PAID = [(1, 1, 0, 0, "pay|payer"), (1, 1, 1, 1, "pay"), (1, 1, 2, 2, "pay|payee"), (1, 1, 2, 2, "pay|witness")]
DATES = [(4, 4, 4, 4, "date|month"), (4, 4, 1, 1, "date"), (6, 6, 6, 6, "date|month")]


def test_label_events_as_objects():
    label = [*PAID, *DATES]
    ana, paid, ben, may, june = (
        {"text": TEXT[a:b], "start": a, "end": b} for a, b in (OFFSETS[i] for i in (0, 1, 2, 4, 6))
    )
    expected = [
        {
            "type": "pay",
            "trigger": paid,
            "arguments": [{"role": "payer", **ana}, {"role": "payee", **ben}, {"role": "witness", **ben}],
        },
        {"type": "date", "trigger": paid, "arguments": [{"role": "month", **may}]},
        {"type": "date", "trigger": None, "arguments": [{"role": "month", **june}]},
    ]
    assert columns_of("e", "events", label, OFFSETS, TEXT) == {"e": expected}
    assert columns_of("e", "events", [], OFFSETS, TEXT) == {"e": []}
    assert columns_of("e", "events", None, OFFSETS, TEXT) == {"e": None}
    found = columns_of("e", "events", label, OFFSETS, TEXT, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])["e"]
    assert [event["probability"] for event in found] == [0.8, 0.5, 0.3]
    assert [one["probability"] for event in found for one in event["arguments"]] == [0.9, 0.7, 0.6, 0.5, 0.3]


def test_items_without_an_anchor_are_ignored():
    """An item is used only if its anchor has an item itself; of several triggers, one is used."""
    draw = random.Random(0)
    spans, names = [(0, 0), (0, 1), (2, 2)], ["t", "t|a", "t|b", "u|a"]
    everything = [(*one, *other, name) for one, other, name in product(spans, spans, names)]
    for _ in range(300):
        label = sorted(draw.sample(everything, draw.randint(0, 12)))
        stays = [draw.random() < 0.7 for _ in label]
        kept = [item for item, stay in zip(label, stays) if stay]
        expected = []
        for item in kept:
            same = [x for x in kept if x[:2] == item[:2] and x[4].split("|")[0] == item[4].split("|")[0]]
            triggers = sorted((x for x in same if "|" not in x[4]), key=lambda x: (x[:2] != x[2:4], x))
            has_anchor = any(x[:2] == x[2:4] for x in same)
            expected += [item] * (has_anchor and ("|" in item[4] or item == triggers[0]))
        assert [item for item, stay in zip(label, in_events(label, stays)) if stay] == expected
        numbers = [i for event in events_in(label) for i in (*event.triggers, *event.arguments)]
        assert sorted(numbers) == [i for i, stay in enumerate(in_events(label, [True] * len(label))) if stay]


def test_arguments_of_an_omitted_event_are_omitted():
    label, p = [*PAID, *DATES], [0.9, 0.2, 0.9, 0.9, 0.9, 0.1, 0.9]
    rest, probabilities, left_out, total = with_abstention("events", label, p, 0.5)
    assert rest == [DATES[0], DATES[2]] and probabilities == [0.9, 0.9] and (left_out, total) == (5, 7)


def test_head_predicts_complete_events():
    head = EventHead(8, Task("events", ("date", "date|month", "pay", "pay|payee", "pay|payer", "pay|witness")))
    assert HEADS["events"] is EventHead
    ids = [(*places, head.task.labels.index(name)) for *places, name in [*PAID, *DATES]]
    head.threshold.copy_(torch.tensor(0.5).logit())
    label, p = head.to_labels(ids, [0.9, 0.6, 0.8, 0.3, 0.7, 0.7, 0.2])
    assert label == [list(item) for item in (*PAID[:3], *DATES[:2])] and p == [0.9, 0.6, 0.8, 0.7, 0.7]
    assert head.to_labels(ids, [0.9, 0.4, 0.8, 0.3, 0.3, 0.7, 0.2]) == ([], [])


def test_event_scores_equal_counting():
    """Compares with sets written from the definition, for random predictions."""
    draw = random.Random(1)
    spans = [(0, 0), (1, 2), (3, 3)]
    everything = [[*one, *other, name] for one, other, name in product(spans, spans, ["t", "t|a", "t|b", "u", "u|a"])]

    def random_label():
        label = sorted(draw.sample(everything, draw.randint(0, 25)))
        return [item for item, stay in zip(label, in_events(label, [True] * len(label))) if stay]

    def sets(label):
        groups = {}
        for *places, name in label:
            groups.setdefault((tuple(places[:2]), name.split("|")[0]), set()).add((name, *places[2:]))
        arguments = {x for items in groups.values() for x in items if "|" in x[0]}
        triggers = {(kind, next((x for x in items if x[0] == kind), None)) for (_, kind), items in groups.items()}
        return arguments, triggers, {(kind, frozenset(items)) for (_, kind), items in groups.items()}

    gold, predicted = [random_label() for _ in range(60)], [random_label() for _ in range(60)]
    gold[:10] = [[item for item in label if draw.random() < 0.9] for label in predicted[:10]]
    gold = [[item for item, stay in zip(x, in_events(x, [True] * len(x))) if stay] for x in gold]
    task = Task("events", ("t", "t|a", "t|b", "u", "u|a"))
    scores = score({"e": task}, {"e": gold}, {"e": predicted})
    for number, name in enumerate(("f1", "trigger_f1", "whole_f1")):
        pairs = [(sets(g)[number], sets(p)[number]) for g, p in zip(gold, predicted)]
        right, one, other = (sum(map(len, x)) for x in ([g & p for g, p in pairs], *zip(*pairs)))
        assert scores[f"e_{name}"] == pytest.approx(2 * right / (one + other)) and 0 < scores[f"e_{name}"] < 1
        if name == "f1":
            assert (scores["e_precision"], scores["e_recall"]) == pytest.approx((right / other, right / one))
    right = [sets(g)[2] == sets(p)[2] for g, p in zip(gold, predicted)]
    assert right == [is_right(task, g, p) for g, p in zip(gold, predicted)]


def test_anchor_without_a_trigger_is_not_scored():
    one = [[0, 0, 0, 0, "t|a"], [0, 0, 2, 2, "t|b"]]
    other = [[2, 2, 0, 0, "t|a"], [2, 2, 2, 2, "t|b"]]
    scores = score({"e": Task("events", ("t|a", "t|b"))}, {"e": [one]}, {"e": [other]})
    assert {scores[f"e_{name}"] for name in ("f1", "trigger_f1", "whole_f1")} == {1.0} == {scores["sentence_accuracy"]}


def test_events_without_arguments_are_scored_by_their_triggers():
    gold, found = [[0, 0, 0, 0, "t"], [2, 2, 2, 2, "u"]], [[0, 0, 0, 0, "t"]]
    scores = score({"e": Task("events", ("t", "u"))}, {"e": [gold]}, {"e": [found]})
    assert scores["e_f1"] == scores["e_trigger_f1"] == pytest.approx(2 / 3)


def test_processed_labels_are_checked():
    example = {"_where": "row 1", "tokens": TEXT.split(), "e": [*PAID, PAID[0]]}
    assert check_label(example, "e", "events") == sorted(map(list, PAID))
    for wrong, problem in (
        ([PAID[0]], "belongs to no event; an event needs an item"),
        ([*PAID, (1, 1, 3, 3, "pay")], "belongs to no event"),
        ([(1, 1, 1, 1)], "must be a list of"),
        ([(1, 1, 7, 7, "pay")], "is outside the 7 tokens"),
        *[([(1, 1, 1, 1, name)], "lacks a type or a role") for name in ("|payer", "pay|", "|")],
    ):
        with pytest.raises(UserError, match=problem):
            check_label(example | {"e": wrong}, "e", "events")


def rows_in(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def arguments_of(row):
    return {(e["type"], one["role"], one["start"], one["end"]) for e in row["events"] for one in e["arguments"]}


def test_generated_events_are_processed_trained_and_predicted(tmp_path, monkeypatch):
    """Processes raw data, trains and predicts. Processing the predictions as labels gives the same events."""
    few = [generated.SENTENCES["en"][number] for number in (1, 4, 9, 11)]
    monkeypatch.setitem(generated.SENTENCES, "en", few)
    rows = [generated.row_of(*text) for text in generated.texts_of("en", 330)]
    for split, chosen in (("train", rows[:250]), ("dev", rows[250:290]), ("test", rows[290:])):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    process(DataConfig(input=str(tmp_path), output_dir=str(tmp_path / "data")))
    flags = ["--data_path", tmp_path / "data", "--output_dir", tmp_path, "--model_version", "e", "--epochs", "8"]
    flags += ["--hidden_size", "64", "--num_layers", "1", "--lr", "4e-3", "--batch_size", "8", "--max_length", "64"]
    flags += ["--do_train", "--do_eval", "--do_predict", "--predict_output", tmp_path / "found/found.jsonl"]
    main(parse_args(Config, [*map(str, flags)]))
    scores = json.loads((tmp_path / "e/eval.json").read_text())["test"]
    assert scores["events_f1"] > 0.9 and scores["events_whole_f1"] > 0.5

    found, gold = rows_in(tmp_path / "found/found.jsonl"), rows[290:]
    assert [row["text"] for row in found] == [row["text"] for row in gold]
    pairs = [(arguments_of(g), arguments_of(p)) for g, p in zip(gold, found)]
    sizes = [sum(map(len, side)) for side in zip(*pairs)]
    assert scores["events_f1"] == pytest.approx(2 * sum(len(g & p) for g, p in pairs) / sum(sizes))
    for row in found:
        for event in row["events"]:
            for one in (event["trigger"], *event["arguments"]):
                assert one is None or row["text"][one["start"] : one["end"]] == one["text"]
            assert all(0 < one["probability"] <= 1 for one in (event, *event["arguments"]))

    options = {"dev_ratio": 0.5, "test_ratio": 0.0, "label_column": "events"}
    splits = prepare(DataConfig(input=str(tmp_path / "found/found.jsonl"), output_dir="unused", **options))[0]
    again = {row["id"]: row["events"] for rows in splits.values() for row in rows}
    predictions = {
        row["id"]: row["answers"]["events"]["predicted"] for row in rows_in(tmp_path / "e/answers/test.jsonl")
    }
    assert len(again) == 40 and {key: whole_events(x) for key, x in again.items()} == {
        key: whole_events(x) for key, x in predictions.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "zh"])
def test_generated_events_are_learned(language, tmp_path):
    for split, seed, number in (("train", 0, 1500), ("dev", 1, 200), ("test", 2, 400)):
        rows = [generated.row_of(*text) for text in generated.texts_of(language, number, seed)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    process(DataConfig(input=str(tmp_path), output_dir=str(tmp_path / "data")))
    flags = ["--data_path", tmp_path / "data", "--output_dir", tmp_path, "--model_version", "e", "--epochs", "20"]
    flags += ["--hidden_size", "64", "--num_layers", "2", "--lr", "2e-3", "--max_length", "96", "--batch_size", "16"]
    main(parse_args(Config, [*map(str, flags), "--do_train", "--do_eval"]))
    assert json.loads((tmp_path / "e/eval.json").read_text())["test"]["events_f1"] > 0.95


@pytest.mark.parametrize("language", ["en", "zh"])
def test_events_lost_by_each_way_to_store_them(language):
    found = generated.shares(list(generated.texts_of(language, 150)))
    assert found["anchor"] == found["clique"] == (1.0, 1.0) and 0.6 < found["trigger"][0] < 0.8
    found = generated.shares(generated.shared_mentions(300))
    assert 0.4 < found["trigger"][0] < 0.7 and 0.9 < found["anchor"][0] < 1 and 0.9 < found["clique"][0] < 1
    one = [("t", frozenset({("t", (0, 1)), ("t|a", (2, 3)), ("t|b", (2, 3))}))]
    assert all(read(store(one, ["t", "t|a", "t|b"])) == set(one) for store, read, _ in generated.WAYS.values())
