"""Calibration errors and thresholds compared with brute force, and a small calibrated run with abstention."""

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import TINY, read_json
from safetensors.torch import load_file, save_file
from scipy.stats import binomtest

from config import Config
from engine.errors import UserError
from engine.predict import load
from engine.predict.uncertainty import (
    Abstention,
    abstention_scores,
    calibration,
    decisions_of,
    interval,
    lowest_threshold,
    thresholds_of,
)
from engine.run.files import seal
from engine.task.task import Task
from engine.task.words import entities_in, shares_by_task, with_abstention
from main import main

TASKS = {"intent": Task("classification", ("a", "b")), "slots": Task("tagging", ("O", "B-x"))}


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ece_by_hand(pairs, bins=15):
    inside = [[] for _ in range(bins)]
    for p, right in pairs:
        number = next(i for i in range(bins) if p <= (i + 1) / bins + 1e-12)
        inside[number].append((p, right))
    gaps = [abs(sum(r for _, r in one) - sum(p for p, _ in one)) for one in inside if one]
    return sum(gaps) / len(pairs)


def drawn(size, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    p = rng.random(size)
    return [(float(a), bool(b)) for a, b in zip(p, rng.random(size) < p - shift)]


def test_ece_equals_a_plain_loop():
    pairs = drawn(500, shift=0.15)
    assert calibration(*zip(*pairs))["ece"] == pytest.approx(ece_by_hand(pairs))
    assert calibration(*zip(*drawn(50_000)))["ece"] < 0.01


def test_confidences_of_each_task_type():
    assert decisions_of("classification", "a", "b", 0.7) == [(0.7, False)]
    assert decisions_of("multilabel", ["a"], ["a", "b"], [0.9, 0.6]) == [(0.9, True), (0.6, False)]
    assert decisions_of("spans", [[0, 1, "x"]], [[0, 1, "x"], [0, 1, "y"]], [0.8, 0.4]) == [(0.8, True), (0.4, False)]
    tags = ["B-x", "I-x", "O", "B-y"]
    assert decisions_of("tagging", ["B-x", "I-x", "O", "O"], tags, [0.8, 0.4]) == [(0.8, True), (0.4, False)]
    assert decisions_of("tagging", tags, tags, [0.8, 0.4, 0.9, 0.9]) == []  # of words, in a run of an earlier version
    assert decisions_of("words", ["N", "V"], ["N", "N"], [0.8, 0.4]) == [(0.8, True), (0.4, False)]
    assert decisions_of("regression", 1.0, 2.0, None) == decisions_of("classification", "a", "a", None) == []


@pytest.mark.parametrize("target", [0.6, 0.7, 0.8])
def test_lowest_threshold_equals_exhaustive_search(target):
    pairs = [(round(p, 2), right) for p, right in drawn(400, seed=3)]  # including ties
    allowed = []
    for threshold in {p for p, _ in pairs}:
        kept = [right for p, right in pairs if p >= threshold]
        test = binomtest(sum(kept), len(kept)).proportion_ci(0.9, "exact")  # one-sided 95 %
        allowed += [threshold] if test.low >= target else []
    assert lowest_threshold(pairs, target) == pytest.approx(min(allowed), abs=1e-6)


def test_59_correct_predictions_are_needed_for_95_percent():
    assert lowest_threshold([(0.9, True)] * 58, 0.95) is None and lowest_threshold([], 0.5) is None
    assert lowest_threshold([(0.9, True)] * 59 + [(0.2, False)], 0.95) == 0.9


@pytest.mark.parametrize("hits, total", [(0, 7), (7, 7), (3, 11)])
def test_confidence_interval_of_a_proportion(hits, total):
    expected = binomtest(hits, total).proportion_ci(0.95, "exact")
    assert interval(hits, total) == pytest.approx((expected.low, expected.high))


def test_thresholds_per_task():
    assert shares_by_task("0.5") == shares_by_task(0.5) == {"": 0.5}
    assert shares_by_task("intent=.9, slots=1") == {"intent": 0.9, "slots": 1}
    assert shares_by_task("") == {}
    for wrong in ("1.5", "intent", "intent=-1", "nan", "intent=0.5,intent=0.6"):
        with pytest.raises(ValueError, match="0 to 1"):
            shares_by_task(wrong)
    with pytest.raises(UserError, match="no task 'slot'; the tasks are intent, slots"):
        thresholds_of("slot=0.5", "abstain_below", TASKS)
    assert thresholds_of("0.5,slots=0.9", "abstain_below", TASKS) == {"": 0.5, "slots": 0.9}


@pytest.mark.parametrize("name", ["price", "pos"])
def test_predictions_that_cannot_be_omitted_have_no_threshold(name):
    tasks = TASKS | {"price": Task("regression", ()), "pos": Task("tagging", ("N", "V"))}
    assert thresholds_of("0.5", "abstain_below", tasks) == {"": 0.5}
    with pytest.raises(UserError, match=f"--abstain_below={name}=0.5: '{name}' has numbers, or tags .* never omitted"):
        thresholds_of(f"{name}=0.5", "abstain_below", tasks)
    abstention = Abstention({"": 0.5})
    assert abstention("pos", "tags", ["N"], [0.1]) == (["N"], [0.1]) and not abstention.counts
    predictions = SimpleNamespace(labels={"pos": [["N", "V"]]}, probabilities={"pos": [[0.9, 0.8]]})
    gold = {"pos": [["N", "N"]]}
    assert abstention_scores("dev", {"pos": "words"}, gold, predictions, abstention, {"": 0.1}) == ({}, [])


def test_abstained_predictions():
    assert (
        with_abstention("label", "a", 0.4, 0.5) == (None, 0.4, 1, 1)
        and with_abstention("label", "a", 0.5, 0.5)[0] == "a"
    )
    assert with_abstention("label", ["a", "b"], [0.9, 0.2], 0.5) == (["a"], [0.9], 1, 2)
    assert with_abstention("spans", [[0, 0, "x"]], [0.2], 0.5) == ([], [], 1, 1)
    tags = ["B-x", "I-y", "O", "B-x", "I-x", "B-x"]  # I-y begins an entity
    left, p, num_left_out, total = with_abstention("entities", tags, [0.9, 0.1, 0.2, 0.8], 0.5)
    assert left == ["B-x", "O", "O", "O", "O", "B-x"] and (p, num_left_out, total) == ([0.9, 0.8], 2, 4)
    assert len(entities_in(left)) == 2
    assert with_abstention("label", 3.2, None, 0.5) == (3.2, None, 0, 0)  # regression
    assert with_abstention("tags", ["N"], [0.1], 0.5) == (["N"], [0.1], 0, 0)


@pytest.fixture(scope="module")
def run(sample, tmp_path_factory):
    """Returns (options of a trained and evaluated run, its folder)."""
    output = tmp_path_factory.mktemp("calibrated")
    flags = {
        **TINY,
        "epochs": 30,
        "lr": 1e-2,
        "hidden_size": 64,
        "precision": "fp32",
        "data_path": str(sample),
        "output_dir": str(output),
    }
    main(Config(**flags, model_version="run", do_train=True, do_eval=True))
    return flags, output / "run"


def test_scores_equal_the_stored_predictions(run):
    scores = read_json(run[1] / "eval.json")
    for split in ("dev", "test"):
        rows = lines(run[1] / f"answers/{split}.jsonl")
        predictions = [row["answers"]["intent"] for row in rows]
        for name, key in (("ece", "probability"), ("ece_untempered", "untempered")):
            pairs = [(a[key], a["gold"] == a["predicted"]) for a in predictions]
            assert scores[split][f"intent_{name}"] == pytest.approx(ece_by_hand(pairs), abs=1e-5)
        nll = [-math.log(a["probabilities"].get(a["gold"], 1e-5)) for a in predictions]
        assert scores[split]["intent_nll"] == pytest.approx(np.mean(nll), rel=0.02)
        slots = [row["answers"]["slots"] for row in rows]
        for name, key in (("ece", "probability"), ("ece_untempered", "untempered")):
            pairs = [
                (p, entity in entities_in(a["gold"]))
                for a in slots
                for entity, p in zip(entities_in(a["predicted"]), a[key])
            ]
            assert scores[split][f"slots_{name}"] == pytest.approx(ece_by_hand(pairs), abs=1e-5)
    before = scores["dev"]["intent_nll_untempered"]
    assert scores["dev"]["intent_nll"] < before == pytest.approx(scores["dev"]["intent_loss"], abs=1e-5)


def test_calibration_changes_only_the_temperature(run):
    flags, folder = run
    main(Config(**flags, model_version="plain", do_train=True, do_eval=True, calibrate=False))
    plain = folder.with_name("plain")
    one, other = (load_file(f / "checkpoints/best/weights.safetensors") for f in (folder, plain))
    temperatures = {name for name in one if name.endswith(".temperature")}
    assert one.keys() == other.keys() and len(temperatures) == 2
    for name in one:
        assert (one[name] == other[name]).all() != (name in temperatures), name
        assert name not in temperatures or other[name] == 1
    scores = [read_json(f / "eval.json")["test"] for f in (folder, plain)]
    for name in scores[0]:
        if "ece" not in name and "nll" not in name:
            assert scores[0][name] == scores[1][name], name
        if name.endswith("untempered"):
            assert scores[0][name] == scores[1][name] == scores[1][name.removesuffix("_untempered")], name


def test_checkpoint_without_temperatures_uses_1(run, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(run[1] / "checkpoints/best", old)
    tensors = load_file(old / "weights.safetensors")
    save_file(
        {name: t for name, t in tensors.items() if not name.endswith(".temperature")}, old / "weights.safetensors"
    )
    seal(old)
    heads = load(old, device="cpu").trainer.model.output_layer.heads
    assert [float(head.temperature) for head in heads.values()] == [1, 1]


def test_abstain_below_omits_predictions(run, sample, caplog):
    flags, folder = run
    words = dict(flags, model_version="run", do_predict=True)
    main(Config(**words, predict_output=str(folder / "all.jsonl")))
    whole = lines(folder / "all.jsonl")
    middle = [row["intent_probability"] for row in whole], [e["probability"] for row in whole for e in row["slots"]]
    low = dict(zip(("intent", "slots"), (round(float(np.median(values)), 3) for values in middle)))
    text = f"intent={low['intent']},slots={low['slots']}"
    main(Config(**words, predict_output=str(folder / "less.jsonl"), abstain_below=text))
    less = lines(folder / "less.jsonl")
    empty = kept = 0
    for a, b in zip(less, whole):
        assert a["intent"] == (b["intent"] if b["intent_probability"] >= low["intent"] else None)
        assert a["slots"] == [entity for entity in b["slots"] if entity["probability"] >= low["slots"]]
        assert len(entities_in(a["slots_tags"])) == len(a["slots"])
        assert a["intent_right"] is (None if a["intent"] is None else b["intent_right"])
        empty, kept = empty + (a["intent"] is None), kept + (a["intent"] is not None)
    assert empty and kept
    assert f"intent: {empty} of {len(whole)} predictions are omitted" in caplog.text
    texts = [{"tokens": row["tokens"]} for row in lines(sample / "test.jsonl")]
    model = load(folder, device="cpu", precision="fp32", abstain_below=text)
    assert [row["intent"] for row in model(texts)] == [row["intent"] for row in less]


def test_target_precision_chooses_thresholds_on_dev(run, caplog):
    flags, folder = run
    main(Config(**flags, model_version="run", do_eval=True, do_predict=True, target_precision="intent=0.1"))
    scores = read_json(folder / "eval.json")
    threshold = scores["dev"]["intent_abstain_below"]
    for split in ("dev", "test"):
        rows = [row["answers"]["intent"] for row in lines(folder / f"answers/{split}.jsonl")]
        kept = [a["right"] for a in rows if a["probability"] >= threshold - 1e-6]
        assert scores[split]["intent_coverage"] == pytest.approx(len(kept) / len(rows))
        assert scores[split]["intent_answered_precision"] == pytest.approx(sum(kept) / len(kept))
    assert "slots_coverage" not in scores["dev"] and f"{threshold:g}" in caplog.text
    with pytest.raises(
        UserError, match=r"24 predictions of 'intent' in dev a precision of at least 0.99 with 95% confidence"
    ):
        main(Config(**flags, model_version="run", do_eval=True, target_precision="intent=0.99"))
    with pytest.raises(UserError, match=r"--target_precision=slot=0.9: no task 'slot'"):  # before training
        main(Config(**flags, model_version="never", do_train=True, do_eval=True, target_precision="slot=0.9"))
    assert not (folder.with_name("never") / "metrics.jsonl").exists()
    with pytest.raises(UserError, match="chooses thresholds on dev; add --do_eval"):
        Config(do_predict=True, target_precision="0.9")
