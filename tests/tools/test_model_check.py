"""`main.py --debug`: each broken model is found by the check meant for it, and the template's own models pass."""

import dataclasses
import json
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, TINY, read_json
from torch import nn

import main as main_module
import model_utils
from config import Config, seed_torch
from data_loader import MyDataset
from data_process import DataConfig, process
from engine.task.task import IGNORE, Task
from model_utils import ClassificationHead, MultilabelHead, MyModel
from tools.check.case import Case
from tools.check.model_check import CHECKS, check_model

NAMES = {check.__name__.removeprefix("check_"): name for name, check, _ in CHECKS}
SLOW = {"overfitting", "resume", "prediction"}


def case_of(config, after=lambda trainer: None):
    """A Case as main.py makes it, without the rehearsal. after: what is done to each new trainer."""
    device, data = torch.device("cpu"), main_module.load_data(config, torch.device("cpu"), 64)

    def build(**changes):
        changed = dataclasses.replace(config, **changes)
        seed_torch(changed.random_seed)
        trainer = main_module.build_trainer(changed, device, data)
        after(trainer)
        return trainer

    rows = MyDataset(config.data_dir / "train.jsonl", data[3].dataset.featurizer, 64)
    return Case(build, rows, None, [])


def failed_checks(case, monkeypatch, wanted=()):
    """Names of the checks that fail, of all, or of the quick ones and those that are wanted."""
    if wanted:
        skipped = {NAMES[check] for check in SLOW - set(wanted)}
        monkeypatch.setattr("tools.check.model_check.CHECKS", [check for check in CHECKS if check[0] not in skipped])
    failed = check_model(case)
    return {check: failed[name] for check, name in NAMES.items() if name in failed}


# ---- broken models, each with the check that must find it ------------------------------------------------------------


class MeanOverPadding(ClassificationHead):
    level = "tokens"

    def forward(self, hidden, inputs):
        return self.linear(hidden.mean(1))


class LastTokenOfPaddedText(ClassificationHead):
    level = "tokens"

    def forward(self, hidden, inputs):
        return self.linear(hidden[:, -1])


class BatchNormOverRows(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.norm = nn.BatchNorm1d(hidden_size)

    def forward(self, vectors, inputs):
        return self.linear(self.norm(vectors))


class MeanOverRows(ClassificationHead):
    def forward(self, vectors, inputs):
        return self.linear(vectors - vectors.mean(0))


class SumOverEarlierRows(ClassificationHead):
    def forward(self, vectors, inputs):
        return self.linear(vectors.cumsum(0))


class DropoutLeftOn(ClassificationHead):
    def forward(self, vectors, inputs):
        return self.linear(F.dropout(vectors, 0.1))


class RandomAtEvaluation(ClassificationHead):
    def forward(self, vectors, inputs):
        return self.linear(vectors + 0.1 * torch.randn_like(vectors))


class LabelsShifted(ClassificationHead):
    def loss(self, logits, labels, inputs):
        shifted = torch.where(labels == IGNORE, labels, (labels + 1) % logits.shape[-1])
        return super().loss(logits, shifted, inputs)


class SoftmaxTwice(ClassificationHead):
    def forward(self, vectors, inputs):
        return self.linear(vectors).softmax(-1)


class LayerInAList(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.layers = [nn.Linear(hidden_size, hidden_size)]

    def forward(self, vectors, inputs):
        return self.linear(self.layers[0](vectors).relu())


class TensorInADict(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.scales = {"text": torch.full((hidden_size,), 0.5)}

    def forward(self, vectors, inputs):
        return self.linear(vectors * self.scales["text"])


class BufferNotRegistered(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.scale = torch.full((hidden_size,), 0.5)

    def forward(self, vectors, inputs):
        return self.linear(vectors * self.scale)


class StateInAnAttribute(ClassificationHead):
    steps = 0

    def forward(self, vectors, inputs):
        self.steps = self.steps + self.training
        return self.linear(vectors) * (1 - 0.5**self.steps if self.training else 1)


class BufferNotSaved(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.register_buffer("mean", torch.zeros(hidden_size), persistent=False)

    def forward(self, vectors, inputs):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * vectors.detach().mean(0)
        return self.linear(vectors - self.mean)


class LossAveragedTwice(ClassificationHead):
    def loss(self, logits, labels, inputs):
        return F.cross_entropy(logits, labels, ignore_index=IGNORE)


class LossTimesTheBatch(ClassificationHead):
    def loss(self, logits, labels, inputs):
        return super().loss(logits, labels, inputs) * len(labels)


class NanWithoutLabels(ClassificationHead):
    def loss(self, logits, labels, inputs):
        known = labels != IGNORE
        return super().loss(logits, labels, inputs) * len(labels[known]) / known.sum()


class NanInUnusedBranch(ClassificationHead):
    """The loss is right, its gradient NaN: 0 * inf behind torch.where."""

    def loss(self, logits, labels, inputs):
        right = logits.softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        known = labels != IGNORE
        return torch.where(known, -(right * known).log(), 0.0).sum()


class ContrastOfRows(ClassificationHead):
    def loss(self, logits, labels, inputs):
        return super().loss(logits, labels, inputs) + (logits @ logits.T).mean()


class AnotherDevice(ClassificationHead):
    def forward(self, vectors, inputs):
        return self.linear(vectors) + torch.zeros(len(vectors), 1)


class LogitsOnAnotherDevice(ClassificationHead):
    def forward(self, vectors, inputs):
        return torch.zeros(len(vectors), len(self.task.labels)).copy_(self.linear(vectors))


class MaskChangedInPlace(ClassificationHead):
    def forward(self, vectors, inputs):
        inputs["attention_mask"].clamp_(max=0)
        return self.linear(vectors)


class ArgmaxOverTheWrongAxis(ClassificationHead):
    def decode(self, logits, inputs):
        probabilities, label_ids = logits.softmax(-1).max(0)
        return label_ids, probabilities


class OneClassTooMany(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.linear = nn.Linear(hidden_size, len(task.labels) + 1)


class OneClassTooFew(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.linear = nn.Linear(hidden_size, len(task.labels) - 1)

    def loss(self, logits, labels, inputs):
        return super().loss(logits, labels.clamp(max=logits.shape[-1] - 1), inputs)


class CutByData(ClassificationHead):
    def forward(self, vectors, inputs):
        return self.linear(vectors.data)


class FarFromZero(ClassificationHead):
    def forward(self, vectors, inputs):
        return (self.linear(vectors) + 1000) - 1000


class HugeWeights(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        nn.init.normal_(self.linear.weight, std=10.0)


class ThresholdOfTheBatch(MultilabelHead):
    def decode(self, logits, inputs):
        probabilities = logits.sigmoid()
        return probabilities >= probabilities.mean(0), probabilities


HEADS = {
    MeanOverPadding: "padding",
    LastTokenOfPaddedText: "padding",
    BatchNormOverRows: "other_rows",
    MeanOverRows: "other_rows",
    SumOverEarlierRows: "order",
    DropoutLeftOn: "determinism",
    RandomAtEvaluation: "determinism",
    LabelsShifted: "overfitting",
    SoftmaxTwice: "overfitting",
    LayerInAList: "registered",
    TensorInADict: "registered",
    BufferNotRegistered: "registered",
    StateInAnAttribute: "resume",
    BufferNotSaved: "resume",
    LossAveragedTwice: "mean_loss",
    LossTimesTheBatch: "mean_loss",
    NanWithoutLabels: "no_labels",
    NanInUnusedBranch: "no_labels",
    ContrastOfRows: "accumulation",
    AnotherDevice: "device",
    LogitsOnAnotherDevice: "device",
    MaskChangedInPlace: "inputs_unchanged",
    ArgmaxOverTheWrongAxis: "shapes",
    OneClassTooMany: "shapes",
    OneClassTooFew: "shapes",
    CutByData: "gradients",
    FarFromZero: "half_precision",
    HugeWeights: "first_loss",
}


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_a_broken_head_is_found(head, tiny, monkeypatch):
    monkeypatch.setitem(model_utils.HEADS, "classification", head)
    failed = failed_checks(case_of(tiny(max_length=32)), monkeypatch, [HEADS[head]])
    assert HEADS[head] in failed, failed


def ignores_the_mask(model, inputs):
    return model.encoder(inputs["input_ids"], torch.ones_like(inputs["attention_mask"])).last_hidden_state


def detached(model, inputs):
    return model.encoder(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state.detach()


def scaled_by_the_longest(model, inputs):
    hidden = model.encoder(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
    return hidden * (1 + 0.1 * hidden.shape[1])


ENCODES = {ignores_the_mask: "padding", detached: "gradients", scaled_by_the_longest: "padding"}


@pytest.mark.parametrize("encode", ENCODES, ids=lambda encode: encode.__name__)
def test_a_broken_encoder_is_found(encode, tiny, monkeypatch):
    monkeypatch.setattr(MyModel, "encode", encode)
    failed = failed_checks(case_of(tiny(max_length=32)), monkeypatch, [ENCODES[encode]])
    assert ENCODES[encode] in failed, failed


def frozen_by_accident(trainer):
    trainer.model.encoder.embeddings.requires_grad_(False)


def not_in_the_optimizer(trainer):
    trainer.optimizer.param_groups[0]["params"].pop()


def sees_the_labels(trainer):
    plain = trainer.model.forward

    def forward(inputs, labels=None, label_counts=None):
        output = plain(inputs, labels, label_counts)
        if labels is not None:
            known = labels["intent"].clamp(min=0)
            output.logits["intent"] = output.logits["intent"] + F.one_hot(known, output.logits["intent"].shape[1])
        return output

    trainer.model.forward = forward


def claims_to_be_causal(trainer):
    trainer.model.encoder.is_causal = True


AFTER = {
    frozen_by_accident: "gradients",
    not_in_the_optimizer: "gradients",
    sees_the_labels: "labels_unseen",
    claims_to_be_causal: "later_words",
}


@pytest.mark.parametrize("after", AFTER, ids=lambda after: after.__name__)
def test_a_broken_trainer_is_found(after, tiny, monkeypatch):
    failed = failed_checks(case_of(tiny(max_length=32), after), monkeypatch, [AFTER[after]])
    assert AFTER[after] in failed, failed


def test_an_answer_that_depends_on_its_batch_is_found(kinds, monkeypatch):
    monkeypatch.setitem(model_utils.HEADS, "multilabel", ThresholdOfTheBatch)
    failed = failed_checks(case_of(kinds()), monkeypatch, ["prediction"])
    assert "prediction" in failed, failed


@pytest.mark.parametrize("logits", [math.nan, math.inf])
def test_logits_that_are_not_finite_end_the_checks(logits, tiny, monkeypatch):
    class Broken(ClassificationHead):
        def forward(self, vectors, inputs):
            return self.linear(vectors) * logits

    monkeypatch.setitem(model_utils.HEADS, "classification", Broken)
    failed = failed_checks(case_of(tiny(max_length=32)), monkeypatch)
    assert list(failed) == ["shapes"] and "'intent' are not finite" in failed["shapes"]


def test_columns_that_no_head_reads_are_found(kinds, monkeypatch):
    failed = failed_checks(case_of(kinds()), monkeypatch, ["extras"])
    assert failed == {"extras": "no answer changes when age change; no head reads them"}


def test_a_loss_of_another_size_is_reported_with_advice(tiny, monkeypatch):
    """A bounded loss is no cross-entropy: first_loss gives the expected value."""

    class Bounded(ClassificationHead):
        def loss(self, logits, labels, inputs):
            right = logits.softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
            return torch.where(labels == IGNORE, 0.0, 1 - right).sum()

    monkeypatch.setitem(model_utils.HEADS, "classification", Bounded)
    assert "set first_loss in the head" in failed_checks(case_of(tiny()), monkeypatch, ["first_loss"])["first_loss"]
    monkeypatch.setattr(Bounded, "first_loss", 1.0)
    assert "first_loss" not in failed_checks(case_of(tiny()), monkeypatch, ["first_loss"])


# ---- models that pass ------------------------------------------------------------------------------------------------


@pytest.fixture
def kinds(tmp_path):
    """kinds(**options) -> a Config on pairs with a multilabel, a regression and a text task, and an extra column."""
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
def test_the_templates_own_options_pass(name, tiny, monkeypatch):
    assert failed_checks(case_of(tiny(**{"max_length": 32, "epochs": 3, **OPTIONS[name]})), monkeypatch) == {}


@pytest.mark.slow
@pytest.mark.parametrize("options", [dict(), dict(class_weights="balanced")])
def test_other_kinds_of_task_pass(options, kinds, monkeypatch):
    monkeypatch.setitem(model_utils.HEADS, "classification", ReadsExtras)
    assert failed_checks(case_of(kinds(**options)), monkeypatch) == {}


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
def test_odd_data_passes(name, rows, options, tmp_path, monkeypatch):
    """A folder that was written by hand, in an order of its own."""
    tasks = {"kind": Task("classification", labels=["x", "y"], counts=[1, 1])}
    tasks["score"] = Task("regression", mean=2.5, std=1.4)
    lines = [json.dumps({"text": text, "kind": kind, "score": score}) for text, kind, score in rows]
    lines += [json.dumps({"text": "a", "kind": None, "score": 3.0})]
    for part in ("train", "dev"):
        (tmp_path / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "labels.json").write_text(json.dumps({name: task.to_json() for name, task in tasks.items()}))
    config = Config(**{**TINY, "data_path": str(tmp_path), "output_dir": str(tmp_path / "output"), **options})
    assert failed_checks(case_of(config), monkeypatch) == {}


@pytest.mark.slow
def test_a_pretrained_encoder_passes(tiny, tmp_path, monkeypatch):
    """Frozen layers, layers that join, rates by layer; and FNet, whose answers depend on padding: let off by name."""
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
        assert failed_checks(case_of(config), monkeypatch) == {}, options
    shape = FNetConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, intermediate_size=64)
    FNetModel(shape).save_pretrained(folder)
    case = case_of(tiny(pretrain_model_path=str(folder), max_length=32, epochs=3))
    logged = []
    monkeypatch.setattr("tools.check.model_check.logger.info", logged.append)
    failed = failed_checks(case, monkeypatch)
    assert any("fnet mixes padding into its answers by design" in line for line in logged)
    assert failed == {}


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
def test_the_command_checks_after_its_rehearsal(sample, command, tmp_path):
    """--debug alone: all steps, then one line per check; exit code 0 if all pass, 3 if one fails in an edited copy."""
    flags = ["--debug", "--data_path", sample, "--epochs", 3, "--hidden_size", 32, "--num_layers", 1, "--device", "cpu"]
    done = command("main.py", *flags)
    assert done.returncode == 0, done.stderr
    assert "19 checks passed, 2 skipped as they do not apply" in done.stderr and "FAILED" not in done.stderr
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
    # What differs from process to process may also spoil the first loss
    assert other_process.returncode == 3 and any(NAMES["other_process"] in line for line in lines), lines
    assert crashed.returncode == 3 and "Traceback" not in crashed.stderr, crashed.stderr
    line = "the trial run FAILED: ValueError: not enough logits (model_utils.py:"
    assert line in crashed.stderr and "FAILED  shapes, labels and label counts: ValueError" in crashed.stderr
    assert "Traceback (most recent call last)" in (tmp_path / "output/tiny-debug/train.log").read_text()
    assert read_json(tmp_path / "output/tiny-debug/eval.json")
