"""`main.py --debug`: each broken model fails the intended check, and correct models pass."""

import json
import shutil

import broken_models  # noqa: F401 (fills BROKEN)
import correct_models  # noqa: F401 (fills CORRECT)
import pytest
import torch
from collection import BROKEN, CHECKS, CORRECT, case_of, is_found, run
from conftest import ROOT, TINY, read_json

import main as main_module
import model_utils
from config import Config
from data_process import DataConfig, process
from engine.task.task import Task
from model_utils import ClassificationHead
from tools.check.model_check import check_model

NAMES = {check: name for check, (name, _) in CHECKS.items()}
SLOW = {"overfitting", "resume", "prediction"}


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Returns the folder of the collection's data."""
    return str(tmp_path_factory.mktemp("collection"))


def checked(case):
    """Returns {check: message} of the failed checks, and of the undecided checks."""
    failed = check_model(case)
    return [
        {check: found[name] for check, name in NAMES.items() if name in found} for found in (failed, case.undecided)
    ]


# ---- the collection --------------------------------------------------------------------------------------------------

FAST = [pytest.param(model, marks=[pytest.mark.slow] * (model.check in SLOW), id=model.name) for model in BROKEN]


@pytest.mark.parametrize("model", FAST)
def test_broken_models_fail_their_check(model, root):
    failed, _ = run(model, root, only=model.check)
    assert is_found(model, failed), failed


@pytest.mark.slow
@pytest.mark.parametrize("model", CORRECT, ids=lambda model: model.name)
def test_unusual_correct_models_pass(model, root):
    assert run(model, root) == ({}, {})


def test_size_of_the_collection():
    assert len(BROKEN) >= 60 and len(CORRECT) >= 40
    assert {model.check for model in BROKEN} == {*CHECKS} - {"other_process"}  # the command's test uses another one


def test_a_build_error_ends_the_checks(root):
    """If the model cannot be built, only this error is reported."""
    model = next(model for model in BROKEN if model.check == "build")
    failed, undecided = run(model, root)
    assert [*failed] == ["build"] and not undecided
    assert "KeyError: '1' (broken_models.py:" in failed["build"]


def test_non_finite_logits_end_the_checks(root):
    model = next(model for model in BROKEN if model.name == "NotFinite")
    failed, _ = run(model, root)
    assert [*failed] == ["shapes"] and "'stars' are not finite" in failed["shapes"]


def test_too_few_steps_are_undecided(root, monkeypatch):
    """With only a few steps, a correct model neither passes nor fails."""
    monkeypatch.setattr("tools.check.learning.WORK", 0.0)
    monkeypatch.setattr("tools.check.learning.FEWEST", 20)
    model = next(model for model in CORRECT if model.name == "Coral")
    failed, undecided = run(model, root, only="overfitting")
    assert failed == {} and [*undecided] == ["overfitting"], (failed, undecided)
    assert "the loss is still falling" in undecided["overfitting"]


# ---- models that pass ------------------------------------------------------------------------------------------------


@pytest.fixture
def kinds(tmp_path):
    """Returns kinds(**options), which creates a Config for pairs with a multilabel, a regression and a classification
    task, and an extra column."""
    words = ["red", "green", "blue", "loud", "soft", "fast", "slow", "old", "new", "warm"]
    rows = []
    for n in range(90):
        first, second = words[n % 10], words[(n * 7 + n // 10) % 10]
        topics = sorted({first, second} & {"red", "loud", "fast"})
        row = {"text": f"the {first} thing is {second}", "text_pair": f"{second} " * (1 + n % 4) + "it was"}
        rows.append(row | {"topics": topics, "score": n % 10 + 0.5, "mood": "ab"[n % 2], "age": n})
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = dict(label_column="topics,score,mood", text_pair_column="text_pair", extra_columns="age")
    process(DataConfig(input=str(tmp_path / "raw.jsonl"), output_dir=str(tmp_path / "kinds"), **options))

    def make(**more):
        return Config(**{**TINY, "data_path": str(tmp_path / "kinds"), "output_dir": str(tmp_path / "output"), **more})

    return make


class ReadsExtras(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size + len(task.extras), task)

    def forward(self, vectors, inputs):
        return self.linear(torch.cat([vectors, inputs["extras"]], 1))


OPTIONS = {
    "plain": dict(),
    "crf, fgm, accumulation": dict(use_crf=True, use_fgm=True, gradient_accumulation_steps=2),
    "bilstm": dict(encoder="bilstm", use_crf=True, hidden_size=64),
    "mean pooling, shared layers": dict(pooling="mean", shared_layers=1),
    "imbalance": dict(class_weights="balanced", label_smoothing=0.1, focal_gamma=2.0),
    "pgd, dropout samples": dict(use_pgd=True, dropout_samples=3),
    "freelb": dict(use_freelb=True),
    "awp, ema": dict(use_awp=True, awp_start=0.0, use_ema=True),
    "smart": dict(use_smart=True),
    "rdrop, swa, streaming": dict(use_rdrop=True, use_swa=True, swa_start=0.0, streaming=True),
    "frozen": dict(freeze_layers=-1),
    "frozen by number": dict(num_layers=2, freeze_layers=2),
    "crf, focal": dict(use_crf=True, focal_gamma=4.0),
    "bf16": dict(precision="bf16"),
    "windows": dict(max_length=8, window_stride=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_options_pass(name, tiny):
    assert checked(case_of(tiny(**{"max_length": 32, "epochs": 3, **OPTIONS[name]}))) == [{}, {}]


@pytest.mark.slow
@pytest.mark.parametrize("options", [dict(), dict(class_weights="balanced")])
def test_kinds_of_tasks_pass(options, kinds, monkeypatch):
    monkeypatch.setitem(model_utils.HEADS, "classification", ReadsExtras)
    assert checked(case_of(kinds(**options))) == [{}, {}]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows", "options"),
    [
        ("two rows", [("a b", "x", None), ("b c d", "y", None)], dict()),
        ("a task without a label in the first 64 rows", [("a b c", "xy"[n % 2], None) for n in range(70)], dict()),
        (
            "texts as long as may be",
            [("a b " * 40 + str(n), "xy"[n % 2], None) for n in range(20)],
            dict(max_length=16),
        ),
        (
            "numbers in half precision",
            [(f"a {n % 7} b", "xy"[n % 2], n % 5 + 0.5) for n in range(80)],
            {"precision": "bf16"},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unusual_data_passes(name, rows, options, tmp_path):
    """Uses a hand-written folder with an unusual order of keys and rows."""
    tasks = {"kind": Task("classification", labels=["x", "y"], counts=[1, 1])}
    tasks["score"] = Task("regression", mean=2.5, std=1.4)
    lines = [json.dumps({"text": text, "kind": kind, "score": score}) for text, kind, score in rows]
    lines += [json.dumps({"text": "a", "kind": None, "score": 3.0})]
    for split in ("train", "dev"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "labels.json").write_text(json.dumps({name: task.to_json() for name, task in tasks.items()}))
    config = Config(**{**TINY, "data_path": str(tmp_path), "output_dir": str(tmp_path / "output"), **options})
    assert checked(case_of(config)) == [{}, {}]


@pytest.mark.slow
def test_pretrained_encoders_pass(tiny, tmp_path, monkeypatch):
    """Tests frozen layers, gradual unfreezing and layer-wise rates, and FNet, which is exempt from the padding
    check."""
    from transformers import FNetConfig, FNetModel

    source = tiny(do_train=True, epochs=1, num_layers=2, hidden_size=64)
    main_module.main(source)
    best = source.run_dir / "checkpoints/best"
    folder = tmp_path / "encoder"
    model, tokenizer, _, _ = model_utils.load_checkpoint(best)
    model.encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for options in (dict(freeze_layers=1), dict(unfreeze_layers=1), dict(layer_decay=0.9)):
        config = tiny(pretrain_model_path=str(folder), max_length=32, epochs=3, **options)
        assert checked(case_of(config)) == [{}, {}], options
    shape = FNetConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, intermediate_size=64)
    FNetModel(shape).save_pretrained(folder)
    case = case_of(tiny(pretrain_model_path=str(folder), max_length=32, epochs=3))
    logged = []
    monkeypatch.setattr("tools.check.model_check.logger.info", logged.append)
    failed = checked(case)
    assert any("fnet outputs depend on padding by design" in line for line in logged)
    assert failed == [{}, {}]


# ---- the command -----------------------------------------------------------------------------------------------------


PROCESS_STATE = """

class ProcessState(ClassificationHead):
    offset = 10 * torch.rand(99, generator=torch.Generator().manual_seed(time.time_ns()))

    def forward(self, vectors, inputs):
        return self.linear(vectors) + self.offset.to(vectors.device)[: len(self.task.labels)]


HEADS["classification"] = ProcessState
"""
PROCESS_STATE = PROCESS_STATE.replace("time.time_ns()", "__import__('time').time_ns()")

CRASH = """

class Crashes(ClassificationHead):
    def loss(self, logits, labels, inputs):
        raise ValueError("not enough logits")


HEADS["classification"] = Crashes
"""


@pytest.mark.slow
def test_debug_runs_the_checks_after_the_trial_run(sample, command, tmp_path):
    """--debug runs all steps and logs one line per check. The exit code is 0 if all pass and 3 if one fails."""
    flags = ["--debug", "--data_path", sample, "--epochs", 3, "--hidden_size", 32, "--num_layers", 1, "--device", "cpu"]
    done = command("main.py", *flags)
    assert done.returncode == 0, done.stderr
    assert "25 checks passed, 4 skipped as not applicable" in done.stderr and "FAILED" not in done.stderr
    assert (tmp_path / "output/tiny-debug/predictions.csv").exists()
    copied = tmp_path / "copy"
    ignored = shutil.ignore_patterns(".*", "output", "__pycache__", "tests", "dataset", "benchmarks")
    shutil.copytree(ROOT, copied, ignore=ignored)
    path = copied / "model_utils.py"
    text = path.read_text().replace("hidden = self.encode(inputs)\n", "hidden = self.encode(inputs).detach()\n")
    path.write_text(text)
    broken = command(copied / "main.py", *flags)
    assert broken.returncode == 3, broken.stderr
    lines = [line for line in broken.stderr.splitlines() if "FAILED" in line]
    assert NAMES["gradients"] in lines[0] and "Look at: .detach()" in lines[0]
    path.write_text(text.replace(".detach()", "") + CRASH)
    crashed = command(copied / "main.py", *flags)
    path.write_text(text.replace(".detach()", "") + PROCESS_STATE)
    other_process = command(copied / "main.py", *flags)
    lines = [line for line in other_process.stderr.splitlines() if "FAILED" in line]
    # random numbers per process may also change the first loss
    assert other_process.returncode == 3 and any(NAMES["other_process"] in line for line in lines), lines
    assert crashed.returncode == 3 and "Traceback" not in crashed.stderr, crashed.stderr
    line = "the trial run FAILED: ValueError: not enough logits (model_utils.py:"
    assert line in crashed.stderr and "FAILED    shapes, labels and label counts: ValueError" in crashed.stderr
    assert "Traceback (most recent call last)" in (tmp_path / "output/tiny-debug/train.log").read_text()
    assert read_json(tmp_path / "output/tiny-debug/eval.json")
