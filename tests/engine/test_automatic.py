"""Options with the value auto: how they are resolved, that this happens once, and that a resumed run keeps the
value."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY, read_json
from test_distributed import torchrun
from test_trainer import fingerprints, make_trainer
from torch import nn
from transformers import BertConfig, BertModel, DebertaConfig, DebertaModel, GPT2Config, GPT2Model

import main as main_module
from config import Config
from data_process import DataConfig, process
from engine.data.tokenizer import train_tokenizer
from engine.errors import UserError
from engine.model.encoders import bert_config
from engine.model.pooling import stored_pooling
from engine.run.command_line import parse_args
from engine.run.device import has_bf16
from engine.run.signals import Interrupted
from engine.task.task import Task
from engine.train import automatic, optimization
from engine.train.automatic import TrainingFacts, resolve_precision, resolve_training_options
from engine.train.optimization import batch_size_of, epochs_of
from model_utils import BiLSTM, load_checkpoint
from preprocess.schema import training_texts
from tools.cross_validate import __main__ as cross_validate
from trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture
def two_epochs(monkeypatch):
    """Limits the epochs to 2; on data of 60 rows, auto would choose the maximum."""
    monkeypatch.setattr(optimization, "FROM_SCRATCH", (16, 1, 5))


def run(config):
    """Runs the whole command. Returns its log."""
    main_module.main(config)
    return (config.run_dir / "train.log").read_text()


def stop_run(config, step, monkeypatch):
    """Runs the command and sends a signal during an optimizer step. Returns its log."""
    step_of = Trainer.optimizer_step

    def signalled(trainer, group):
        step_of(trainer, group)
        if trainer.progress.step + 1 == step:
            trainer.stop.number = 15

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Trainer, "optimizer_step", signalled)
        main_module.main(config)
    return (config.run_dir / "train.log").read_text()


def a_machine_that(monkeypatch, is_fast):
    monkeypatch.setattr(automatic, "has_bf16", lambda device: is_fast)
    monkeypatch.setattr(automatic, "BF16_HIDDEN_SIZE", 32)  # type of the encoders in these tests


# ---- epochs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pretrained", [True, False])
def test_auto_epochs_reach_a_number_of_steps_within_bounds(pretrained):
    aim, fewest, most = optimization.PRETRAINED if pretrained else optimization.FROM_SCRATCH
    for steps in range(1, 3 * aim):
        epochs = epochs_of(steps, pretrained)
        assert fewest <= epochs <= most
        if epochs > fewest:  # required number
            assert (epochs - 1) * steps < aim
        if epochs < most:  # and sufficient
            assert epochs * steps >= aim
    assert epochs_of(0, pretrained) == most


def test_auto_epochs_are_resolved_before_use(tiny, two_epochs):
    """Checks the schedule, the log, the checkpoints and args.json, also with accumulation."""
    config = tiny(do_train=True, gradient_accumulation_steps=3, epochs=parse_args(Config, ["--epochs=auto"]).epochs)
    assert "--epochs auto: 5 for 3 steps per epoch" in run(config)  # 8 micro-batches
    saved = read_json(config.run_dir / "args.json")
    assert (saved["epochs"], saved["early_stop_patience"]) == (5, 5)
    assert read_json(config.run_dir / "checkpoints/best/args.json")["epochs"] == 5
    assert (config.run_dir / "checkpoints/step_00000015").is_dir()
    expected = tiny(do_train=True, gradient_accumulation_steps=3, epochs=5, model_version="given")
    run(expected)
    assert fingerprints(config) == fingerprints(expected)


def test_resume_keeps_the_resolved_epochs(tiny, two_epochs, monkeypatch):
    """Another number of processes, or a later version, would choose other epochs."""
    whole = tiny(do_train=True, epochs=-1, model_version="whole")
    run(whole)
    stop_run(tiny(do_train=True, epochs=-1), 5, monkeypatch)
    monkeypatch.setattr(optimization, "FROM_SCRATCH", (24, 1, 5))
    again = tiny(do_train=True, epochs=-1, resume=True)
    assert "--epochs auto: 2, as when the run began" in run(again)
    assert fingerprints(again) == fingerprints(whole)
    with pytest.raises(UserError, match="epochs was 2, is 3"):
        main_module.main(tiny(do_train=True, epochs=3, resume=True))


@pytest.mark.parametrize(
    "options, named",
    [
        (dict(use_swa=True), "swa_start"),
        (dict(use_awp=True, awp_start=0.9), "awp_start"),
        (dict(warmup_epochs=3.0), "warmup_epochs"),
    ],
)
def test_options_are_checked_against_the_resolved_epochs(options, named, tiny, two_epochs):
    config = tiny(epochs=-1, **options)  # not resolved yet
    with pytest.raises(UserError, match=f"--{named}"):
        make_trainer(config)


def test_debug_run_uses_the_default_epochs():
    config = Config(epochs=-1, debug=True, use_swa=True)
    assert resolve_training_options(config, TrainingFacts(nn.Linear(2, 2), CPU, {}, 8, 2)).epochs == 10


@pytest.mark.parametrize(
    "epochs, given, expected", [(0, None, 5), (10, None, 5), (24, None, 6), (60, None, 15), (60, 3, 3), (60, 0, 0)]
)
def test_default_patience_grows_with_the_epochs(epochs, given, expected):
    config = Config(epochs=epochs, early_stop_patience=given)
    assert (
        resolve_training_options(config, TrainingFacts(nn.Linear(2, 2), CPU, {}, 8, 2)).early_stop_patience == expected
    )


def test_resume_keeps_the_resolved_patience(tiny, monkeypatch):
    stop_run(tiny(do_train=True, early_stop_patience=4), 5, monkeypatch)
    again = tiny(do_train=True, resume=True)
    assert "--early_stop_patience auto: 4, as when the run began" in run(again)
    assert read_json(again.run_dir / "args.json")["early_stop_patience"] == 4


def test_each_fold_resolves_and_keeps_its_epochs(tmp_path, two_epochs, monkeypatch):
    rows = [{"text": f"a {word} film {i}", "label": word} for i in range(24) for word in ("good", "bad")]
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = tmp_path / "data"
    process(DataConfig(input=str(tmp_path / "raw.jsonl"), output_dir=str(data), n_splits=2, test_ratio=0.0))
    auto = dict(epochs=-1, precision="auto", use_ema=True)

    def train_folds():
        config = Config(**{**TINY, **auto}, data_path=str(data), output_dir=str(tmp_path), model_version="cv")
        cross_validate.main(config)
        return [read_json(tmp_path / f"cv-fold_{number}/args.json") for number in (0, 1)]

    a_machine_that(monkeypatch, True)
    first = train_folds()
    assert [(fold["epochs"], fold["precision"]) for fold in first] == [(5, "bf16")] * 2  # 3 steps per epoch
    weights = [(tmp_path / f"cv-fold_{number}/checkpoints/best/manifest.json").read_text() for number in (0, 1)]
    monkeypatch.setattr(optimization, "FROM_SCRATCH", (24, 1, 9))
    a_machine_that(monkeypatch, False)
    assert train_folds() == first  # no more training
    assert weights == [(tmp_path / f"cv-fold_{n}/checkpoints/best/manifest.json").read_text() for n in (0, 1)]


@pytest.mark.slow
def test_resolved_epochs_are_equal_in_two_processes_and_kept_by_one(sample, tmp_path, command, python):
    """Two processes have half as many steps per epoch, so one process would choose another number of epochs."""
    rows = (sample / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    data = tmp_path / "data"
    data.mkdir()
    for name in ("labels.json", "dev.jsonl"):
        (data / name).write_bytes((sample / name).read_bytes())
    (data / "train.jsonl").write_text("".join(rows * 11), encoding="utf-8")
    flags = "--hidden_size 32 --num_layers 1 --vocab_size 400 --device cpu --do_train --resume --log_steps 100".split()
    flags += ["--data_path", data, "--output_dir", tmp_path, "--model_version", "run", "--epochs", "auto"]
    flags += ["--precision", "auto", "--lr", "1e-12", "--early_stop_patience", "1"]
    printed = torchrun(python, 2, "main.py", *flags, "--batch_size", "5", cwd=tmp_path)
    steps, epochs = 66, epochs_of(66, False)
    assert f"--epochs auto: {epochs} for {steps} steps per epoch" in printed
    assert read_json(tmp_path / "run/args.json")["epochs"] == epochs != epochs_of(132, False)
    done = command("main.py", *flags, "--batch_size", "5")
    assert done.returncode == 0 and f"--epochs auto: {epochs}, as when the run began" in done.stderr


# ---- batch size ------------------------------------------------------------------------------------------------------

TAGGING = {"slots": Task("tagging", ("O", "B-x")), "chunks": Task("tagging", ("O", "B-y"))}
INTENT = {"intent": Task("classification", ("a", "b"))}


@pytest.fixture
def bert(sample, tmp_path):
    """Returns the folder of a small pretrained encoder."""
    tokenizer = train_tokenizer(lambda: training_texts(sample / "train.jsonl"), 300)
    BertModel(bert_config(tokenizer, 1, 32, 256)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return str(tmp_path / "bert")


@pytest.mark.parametrize("accumulated, processes", [(1, 1), (2, 1), (1, 2), (2, 3)])
def test_small_tagging_data_gets_the_largest_batch_with_enough_steps(accumulated, processes, monkeypatch):
    monkeypatch.setattr(optimization.distributed, "size", lambda: processes)
    config = Config(pretrain_model_path="bert", gradient_accumulation_steps=accumulated)
    for rows in range(1, 4000):
        enough = [size for size in (8, 16, 32) if 30 * rows / (size * accumulated * processes) >= 500]
        assert batch_size_of(config, TAGGING, rows) == max(enough, default=8)


def test_unlabelled_texts_count_as_often_as_an_epoch_reads_them():
    config = Config(pretrain_model_path="bert", teacher="run", unlabelled="more.txt", unlabelled_ratio=4.0)
    plain = Config(pretrain_model_path="bert")
    for rows in (50, 100, 200, 300, 400):
        assert batch_size_of(config, TAGGING, rows) == batch_size_of(plain, TAGGING, 5 * rows)


@pytest.mark.parametrize(
    "options, tasks, expected",
    [
        ({}, TAGGING, 8),
        ({"batch_size": 5}, TAGGING, 5),
        ({"debug": True}, TAGGING, 32),
        ({"streaming": True}, TAGGING, 32),
        ({"pretrain_model_path": ""}, TAGGING, 32),
        ({}, INTENT, 32),
        ({}, INTENT | TAGGING, 32),  # not measured
    ],
)
def test_default_batch_size_is_32(options, tasks, expected):
    assert batch_size_of(Config(**{"pretrain_model_path": "bert", **options}), tasks, 60) == expected


def test_auto_batch_size_is_logged_saved_and_kept_on_resume(tiny, bert, sample, tmp_path, monkeypatch):
    rows = map(json.loads, (sample / "train.jsonl").read_text(encoding="utf-8").splitlines())
    words = [{"tokens": row["tokens"], "slots": row["slots"]} for row in rows]
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in words))
    process(DataConfig(input=str(tmp_path / "raw.jsonl"), output_dir=str(tmp_path / "slots")))
    options = dict(do_train=True, epochs=2, pretrain_model_path=bert, data_path=str(tmp_path / "slots"))
    whole = tiny(batch_size=8, model_version="whole", **options)
    assert "--batch_size auto" not in run(whole)
    config = tiny(batch_size=None, **options)
    assert "--batch_size auto: 8, for a small tagging data set" in stop_run(config, 5, monkeypatch)
    assert read_json(config.run_dir / "args.json")["batch_size"] == 8
    monkeypatch.setattr(optimization, "ENOUGH_STEPS", 1)  # a later version would choose 32
    again = tiny(batch_size=None, resume=True, **options)
    assert "--batch_size auto: 8, as when the run began" in run(again)
    assert fingerprints(again) == fingerprints(whole)
    with pytest.raises(UserError, match="batch_size was 8, is 16"):
        main_module.main(tiny(batch_size=16, resume=True, **options))


# ---- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux tells there what a CPU has")
def test_auto_precision_depends_on_cpu_features():
    flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text()))
    assert has_bf16(CPU) == bool({"amx_bf16", "avx512_bf16"} & flags)
    assert not has_bf16(torch.device("meta"))


@pytest.mark.parametrize("is_fast", [True, False])
def test_resume_keeps_the_resolved_precision(is_fast, tiny, monkeypatch):
    expected, other = ("bf16", "fp32") if is_fast else ("fp32", "bf16")
    a_machine_that(monkeypatch, is_fast)
    options = dict(epochs=1, do_train=True)
    config = tiny(precision="auto", **options)
    assert f"--precision auto: {expected}" in stop_run(config, 3, monkeypatch)
    assert read_json(config.run_dir / "args.json")["precision"] == expected
    a_machine_that(monkeypatch, not is_fast)
    again = tiny(precision="auto", resume=True, **options)
    slow = "; it is slow on this machine" if is_fast else ""
    assert f"--precision auto: {expected}, as when the run began{slow}\n" in run(again)
    assert read_json(again.run_dir / "args.json")["precision"] == expected
    given = {
        precision: tiny(precision=precision, model_version=precision, **options) for precision in (expected, other)
    }
    for one in given.values():
        run(one)
    assert fingerprints(again) == fingerprints(given[expected]) != fingerprints(given[other])
    with pytest.raises(UserError, match=f"precision was '{expected}', is '{other}'"):
        run(tiny(precision=other, resume=True, **options))


def test_encoder_that_overflows_gets_fp32(logged, monkeypatch):
    a_machine_that(monkeypatch, True)
    shape = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=1, intermediate_size=32, vocab_size=20)
    config = Config(precision="auto")
    config = resolve_precision(config, DebertaModel(DebertaConfig(**shape)), CPU)
    assert config.precision == "fp32" and "fp32: deberta overflows in bf16" in logged.text
    with pytest.raises(UserError, match="DeBERTa v1 overflows"):
        resolve_precision(Config(precision="bf16"), DebertaModel(DebertaConfig(**shape)), CPU)


@pytest.mark.parametrize(
    "trained, is_fast, expected",
    [("bf16", True, "bf16"), ("bf16", False, "fp32"), ("fp32", True, "fp32"), ("fp16", True, "fp32")],
)
def test_checkpoint_is_evaluated_in_its_training_precision_if_fast(trained, is_fast, expected, monkeypatch):
    a_machine_that(monkeypatch, is_fast)
    assert resolve_precision(Config(precision="auto"), nn.Linear(2, 2), CPU, trained).precision == expected


@pytest.mark.parametrize("size, expected", [(224, "fp32"), (256, "bf16"), (None, "fp32")])
def test_bf16_is_the_default_only_for_wide_transformers(size, expected, logged, monkeypatch):
    monkeypatch.setattr(automatic, "has_bf16", lambda device: True)
    shape = dict(num_hidden_layers=1, num_attention_heads=1, intermediate_size=32, vocab_size=20)
    encoder = BertModel(BertConfig(hidden_size=size, **shape)) if size else BiLSTM(20, 256, 1, 0.1, 0)
    assert resolve_precision(Config(), encoder, CPU).precision == expected
    assert ("bf16 hardly speeds up" in logged.text) == (expected == "fp32")


# ---- averages --------------------------------------------------------------------------------------------------------


def test_run_from_before_auto_ema_decay_keeps_its_decay(tiny, monkeypatch):
    options = dict(use_ema=True, epochs=1, do_train=True)
    whole = tiny(ema_decay=0.99, model_version="whole", **options)
    run(whole)
    stop_run(tiny(ema_decay=0.99, **options), 3, monkeypatch)
    again = tiny(resume=True, **options)
    assert "--ema_decay auto: 0.99, as when the run began" in run(again)
    assert fingerprints(again) == fingerprints(whole)


def test_resume_keeps_the_resolved_ema_decay(tiny, monkeypatch):
    """Also if it is resumed for more epochs, which a constant learning rate allows."""
    monkeypatch.setattr(optimization, "EMA_SHARE", 1.0)
    options = dict(use_ema=True, do_train=True, scheduler="constant", warmup_epochs=0.0)
    whole = tiny(model_version="whole", ema_decay=1 - 1 / 16, epochs=3, **options)
    run(whole)
    config = tiny(epochs=2, **options)
    assert "--ema_decay auto: 0.9375 for 16 steps" in stop_run(config, 3, monkeypatch)
    assert read_json(config.run_dir / "args.json")["ema_decay"] == 1 - 1 / 16
    again = tiny(epochs=3, resume=True, **options)
    assert "--ema_decay auto: 0.9375, as when the run began" in run(again)
    assert fingerprints(again) == fingerprints(whole)


def test_unused_decay_of_an_old_run_is_not_logged(tiny):
    """The user who resumes the run has not asked for it."""
    options = dict(epochs=1, do_train=True)
    assert "--ema_decay=0.99 has no effect" in run(tiny(ema_decay=0.99, **options))
    (tiny().run_dir / "train.log").unlink()
    assert "ema_decay" not in run(tiny(resume=True, **options))


def test_resume_without_learning_rate_flags_keeps_the_rates(tiny):
    run(tiny(do_train=True, epochs=1, lr=2e-3, head_lr=5e-3))
    log = run(tiny(do_train=True, epochs=1, lr=None, resume=True))
    assert "--lr auto: 0.002, as when the run began" in log and "--head_lr auto: 0.005" in log
    assert read_json(tiny().run_dir / "args.json")["lr"] == 2e-3


# ---- pooling ---------------------------------------------------------------------------------------------------------

POOLING_MODULE = {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}
SAYS_MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}


def says(folder, options, module=POOLING_MODULE):
    """Adds a pooling configuration, in the format of sentence-transformers, to a model folder."""
    modules = [{"type": "sentence_transformers.models.Transformer", "path": ""}, module]
    (folder / "modules.json").write_text(json.dumps(modules))
    if options is not None:
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "1_Pooling/config.json").write_text(json.dumps(options))


@pytest.fixture
def pretrained(tmp_path):
    """Returns a folder with a tiny encoder, whose tokenizer is trained on the sample's words."""
    folder = tmp_path / "model"
    tokenizer = train_tokenizer(lambda: iter(["book a flight", "play some music", "set an alarm"] * 9), 200)
    BertModel(bert_config(tokenizer, 1, 32, 256)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "options, expected",
    [
        (SAYS_MEAN, ("mean", "mean")),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("first", "cls")),
        ({"pooling_mode_lasttoken": True}, ("last", "lasttoken")),
        ({"pooling_mode_max_tokens": True}, ("", "max")),
        (SAYS_MEAN | {"pooling_mode_max_tokens": True}, ("", "max and mean")),
        ({"pooling_mode": "lasttoken", "include_prompt": True}, ("last", "lasttoken")),
        ({"pooling_mode": ["cls", "mean"]}, ("", "cls and mean")),
        ({"pooling_mode": ["cls"]}, ("first", "cls")),
        ({"pooling_mode": "one of the future"}, ("", "one of the future")),
        ({"word_embedding_dimension": 32}, ("mean", "mean")),
        (None, None),
        ({"pooling_mode": 3}, None),
        ({"pooling_mode_cls_token": "yes"}, None),
    ],
)
def test_pooling_is_read_from_the_model_folder(options, expected, tmp_path):
    says(tmp_path, options)
    assert stored_pooling(str(tmp_path)) == expected


def test_model_without_pooling_config(tmp_path):
    """Or whose configuration names a folder outside its own."""
    assert stored_pooling(str(tmp_path)) is None
    for path in ("../1_Pooling", "/1_Pooling", "1_Pooling" * 999):
        says(tmp_path, SAYS_MEAN, POOLING_MODULE | {"path": path})
        assert stored_pooling(str(tmp_path)) is None
    says(tmp_path, SAYS_MEAN, {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"})
    assert stored_pooling(str(tmp_path)) is None
    (tmp_path / "modules.json").write_text("{")
    assert stored_pooling(str(tmp_path)) is None


@pytest.mark.parametrize("encoder_type", [BertModel, GPT2Model])
@pytest.mark.parametrize("options, expected", [(SAYS_MEAN, "mean"), ({"pooling_mode": "max"}, "auto"), (None, "auto")])
def test_run_uses_the_pooling_of_the_pretrained_model(encoder_type, options, expected, tiny, pretrained):
    """The run's checkpoint, and a run that starts from it, use the same pooling."""
    if encoder_type is GPT2Model:
        vocabulary = read_json(pretrained / "config.json")["vocab_size"]
        shape = dict(n_embd=32, n_layer=1, n_head=1, n_positions=256, vocab_size=vocabulary)
        GPT2Model(GPT2Config(**shape)).save_pretrained(pretrained)
    if options:
        says(pretrained, options)
    config = tiny(pretrain_model_path=str(pretrained), do_train=True, epochs=1)
    log = run(config)
    best = config.run_dir / "checkpoints/best"
    assert read_json(config.run_dir / "args.json")["pooling"] == read_json(best / "args.json")["pooling"] == expected
    used = expected if expected != "auto" else "last" if encoder_type is GPT2Model else "first"
    assert load_checkpoint(best)[0].output_layer.pooling == used
    assert ("--pooling auto: mean; the model was trained with mean pooling" in log) == (expected == "mean")
    assert ("trained with max pooling, which is not supported" in log) == (options == {"pooling_mode": "max"})
    later = tiny(init_from=str(config.run_dir), do_train=True, epochs=1, model_version="later")
    main_module.main(later)
    assert load_checkpoint(later.run_dir / "checkpoints/best")[0].output_layer.pooling == used


def test_resume_keeps_the_resolved_pooling(tiny, pretrained, monkeypatch):
    """Also a run that started before the model's folder was read."""
    before = tiny(pretrain_model_path=str(pretrained), do_train=True, model_version="before")
    stop_run(before, 5, monkeypatch)
    says(pretrained, SAYS_MEAN)
    main_module.main(replace(before, resume=True))
    assert load_checkpoint(before.run_dir / "checkpoints/best")[0].output_layer.pooling == "first"
    whole = replace(before, model_version="whole")
    main_module.main(whole)
    stop_run(replace(before, model_version="run"), 5, monkeypatch)
    says(pretrained, {"pooling_mode": "cls"})
    again = replace(before, model_version="run", resume=True)
    assert "--pooling auto: mean, as when the run began" in run(again)
    assert fingerprints(again) == fingerprints(whole)
    with pytest.raises(UserError, match="pooling was 'mean', is 'first'"):
        main_module.main(replace(again, pooling="first"))


def test_pooling_stays_auto_without_a_text_vector(tiny, pretrained, tmp_path):
    says(pretrained, SAYS_MEAN)
    config = tiny(pretrain_model_path=str(pretrained))
    assert automatic.resolve_pooling(config, ["tagging", "spans"]) is config
    assert automatic.resolve_pooling(config, ["tagging", "classification"]).pooling == "mean"
    assert automatic.resolve_pooling(replace(config, pooling="last"), ["classification"]).pooling == "last"
    assert automatic.resolve_pooling(replace(config, encoder="bilstm"), ["classification"]).pooling == "auto"
