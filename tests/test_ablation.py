"""benchmarks/ablation.py: its statistics compared with simulations, and real runs."""

import csv
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import ablation

STORED = ROOT / "benchmarks/results/atis/runs.csv"


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [5, 8])
def test_false_positive_rate_is_five_percent(seeds):
    rng, rounds = np.random.default_rng(1), 2000
    differences = rng.normal(size=(rounds, seeds))
    wrong = sum(ablation.verdict(ablation.interval(row)) == "significant" for row in differences) / rounds
    assert 0.02 < wrong < 0.065


@pytest.mark.parametrize("seeds, share", [(5, 0.8), (8, 0.98)])
def test_large_differences_are_detected(seeds, share):
    """The paired t-test, which assumes normal differences, would detect 0.92 and 1.00 of them; the unsmoothed
    bootstrap-t 0.74 and 0.96."""
    differences = 2 + np.random.default_rng(2).normal(size=(500, seeds))
    assert np.mean([ablation.verdict(ablation.interval(row)) == "significant" for row in differences]) > share


def test_percentile_bootstrap_is_anticonservative():
    """Shows why the interval above is used: with 5 seeds, the usual interval has three times its nominal error rate."""
    rng, wrong = np.random.default_rng(1), 0
    for values in rng.normal(size=(500, 5)):
        means = values[rng.integers(0, 5, (1000, 5))].mean(1)
        low, high = np.quantile(means, [0.025, 0.975])
        wrong += low > 0 or high < 0
    assert wrong / 500 > 0.1


def test_real_difference_needs_enough_seeds():
    values = np.array([0.9, 1.1, 1.0, 1.2, 0.8])
    low, high = ablation.interval(values)
    assert 0 < low < values.mean() < high and ablation.verdict((low, high)) == "significant"
    assert np.allclose(ablation.interval(values + 3), (low + 3, high + 3)) and np.allclose(
        ablation.interval(-values), (-high, -low)
    )
    assert ablation.interval(values[:4]) is None and "no interval" in ablation.verdict(None)
    assert ablation.interval([0.0] * 5) is None and ablation.interval([1.0] * 5) is None
    assert np.isfinite(ablation.interval([1.0, 1.0, 1.0, 1.0, 0.0])).all()


@pytest.mark.skipif(not STORED.exists(), reason="no stored scores")
@pytest.mark.parametrize("score", ["intent_accuracy", "slots_f1", "sentence_accuracy"])
def test_false_positives_of_stored_scores(score):
    rows = list(csv.DictReader(STORED.read_text(encoding="utf-8").splitlines()))
    baseline = {"variant": "baseline", "epochs": "10", "pooling": "first", "precision": "fp32", "batch_size": "32"}
    scores = [float(row[f"test_{score}"]) for row in rows if baseline.items() <= row.items()]
    assert len(scores) == 5 and ablation.false_positives(scores, 5, rounds=1000) <= 0.065


@pytest.mark.slow
def test_ablation_resumes(sample, command, tmp_path):
    flags = [
        "benchmarks/ablation.py",
        "--data_path",
        sample,
        "--seeds",
        1,
        "--jobs",
        2,
        "--work",
        "work",
        "--results",
        "results",
    ]
    flags += ["--tricks", "ema+lr=1e-3", "--options", "--epochs 1 --hidden_size 32 --num_layers 1 --vocab_size 500"]
    path = tmp_path / "results/runs.csv"

    def rows():
        return {row["variant"]: row for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines())}

    done = command(*flags)
    assert done.returncode == 0, done.stderr
    assert "not significant (no interval)" in done.stdout and (tmp_path / "results/summary.csv").exists()
    assert (tmp_path / "results/differences.png").read_bytes()[:4] == b"\x89PNG"
    first = rows()
    assert set(first) == {"baseline", "ema+lr=1e-3"} and "--epochs" not in first["baseline"]
    assert (first["ema+lr=1e-3"]["use_ema"], first["ema+lr=1e-3"]["lr"], first["baseline"]["epochs"]) == (
        "True",
        "0.001",
        "1",
    )
    assert done.stdout.index("\ndev:") < done.stdout.index("\ntest:")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("baseline")), encoding="utf-8")
    done = command(*flags)
    again = rows()
    assert done.returncode == 0 and again["ema+lr=1e-3"] == first["ema+lr=1e-3"]
    assert {name: value for name, value in again["baseline"].items() if "seconds" not in name} == {
        name: value for name, value in first["baseline"].items() if "seconds" not in name
    }


def test_runs_are_identified_by_data_model_and_options(sample, tmp_path):
    """The same options in another form identify the same runs; another dev set, model or default does not."""
    data, model = tmp_path / "data", tmp_path / "models/mine"
    shutil.copytree(sample, data)
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")

    def keys(*variants, flags=""):
        options = SimpleNamespace(data_path=str(data), pretrain_model_path=str(model), options=flags)
        same = ablation.data_and_model(data, model)
        return {variant: same | ablation.settings(variant, options) for variant in variants}

    first = keys("baseline", "fgm", "layer_decay")
    runs = ablation.Runs(tmp_path / "runs.csv", first)
    runs.add({"variant": "baseline", "seed": "1"} | first["baseline"])
    runs.add(
        {"variant": "baseline", "seed": "1", **keys("baseline", flags="--use_fgm")["baseline"], "pooling": ""}
    )  # older than --pooling

    def found(variant, **changed):
        again = ablation.Runs(tmp_path / "runs.csv", keys(variant) | changed)
        return again.find(variant, 1)

    assert (
        found("baseline")["use_fgm"] == "False" and found("fgm")["use_fgm"] == "True" and found("layer_decay") is None
    )
    runs.add({"variant": "ema", "seed": "1"} | keys("ema")["ema"])
    older = {"variant": "baseline", "seed": "2", "ema_decay": "0.99"}  # when that was the default
    runs.add(older | keys("baseline")["baseline"])
    assert ablation.Runs(tmp_path / "runs.csv", keys("baseline")).find("baseline", 2)
    assert found("ema") and found("ema+ema_decay=0.99") is None
    assert (
        found("lr=1e-4") is None and found("fgm+pooling=mean") is None and found("num_workers=2") == found("baseline")
    )
    for path in (data / "dev.jsonl", model / "config.json"):
        before = path.read_text(encoding="utf-8")
        path.write_text(before + "\n", encoding="utf-8")
        assert found("baseline") is None
        path.write_text(before, encoding="utf-8")
    assert found("baseline") is not None


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("--tricks magic", "magic is neither"),
        ("--seeds 0", "--seeds"),
        ("--options=--debug", "--debug"),
        ("--tricks ema fold=1", "--fold"),
        ("--tricks random_seed=3", "--random_seed"),
        ("--tricks dropuot=0.1", "--dropuot"),
        ("--tricks rdrop_alpha=4", "--use_rdrop"),
        ("--scores slots_f2", "slots_f2"),
        ("--data_path nowhere", "labels.json"),
        ("--false_positives", "no baseline"),
        ("--tricks ema+swa", "--use_ema and --use_swa"),
    ],
)
def test_invalid_ablation_options_raise_a_one_line_error(flags, expected, sample, command):
    done = command("benchmarks/ablation.py", "--data_path", sample, "--seeds", 1, *flags.split())
    lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert done.returncode == 2 and len(lines) == 1 and expected in lines[0] and "Traceback" not in done.stderr


@pytest.mark.slow
def test_signal_stops_active_runs_and_starts_no_others(sample, tmp_path, python):
    flags = [
        "--data_path",
        sample,
        "--seeds",
        "9",
        "--options",
        "--epochs 50 --hidden_size 32 --num_layers 1 --vocab_size 500",
    ]
    process = subprocess.Popen(
        [python, ROOT / "benchmarks/ablation.py", *flags], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    log = tmp_path / "output/ablation/baseline-1.log"
    while not (log.exists() and "epoch 1" in log.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert "stopped and saved" in log.read_text() and not (tmp_path / "output/ablation/baseline-2.log").exists()
