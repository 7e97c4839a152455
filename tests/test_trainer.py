import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import read_json
from lion_pytorch import Lion
from safetensors.torch import load_file

import main as main_module
from config import Config, seed_torch
from data_loader import LengthSampler, MyDataLoader, MyDataset, build_loaders
from engine.data.features import Featurizer
from engine.data.tokenizer import load_tokenizer
from engine.data.windows import merge_windows
from engine.errors import UserError
from engine.run.signals import Interrupted
from engine.train import checkpoint
from engine.train.automatic import TrainingFacts, resolve_training_options
from engine.train.optimization import merge_groups, parameter_groups, with_warmup
from model_utils import MyModelOutput, build_model, mean_output
from preprocess.schema import load_labels, training_texts
from trainer import Evaluation, Trainer, TrainingSetup, build_optimizer, build_scheduler
from tricks import build_tricks


def make_trainer(config, rows=None, own_optimizer=None):
    """Builds a trainer like main.py. own_optimizer: function from parameter groups to another optimizer."""
    config.run_dir.mkdir(parents=True, exist_ok=True)
    data = Path(config.data_path)
    seed_torch(config.random_seed)
    tasks = load_labels(data)
    tokenizer = load_tokenizer(config, lambda: training_texts(data / "train.jsonl"))
    encoder = Featurizer(tokenizer, tasks, config.max_length)
    if rows is not None:  # dev is train, to be overfitted
        data_set = MyDataset(data / "train.jsonl", encoder, rows)
        train_loader, dev_loader = (
            MyDataLoader(data_set, config.batch_size, config.random_seed),
            MyDataLoader(data_set, config.eval_batch_size),
        )
    else:
        train_loader, dev_loader = build_loaders(config, data, encoder, torch.device("cpu"))
    model = build_model(config, tokenizer, tasks)
    num_rows = train_loader.dataset.num_labelled_rows
    facts = TrainingFacts(model.encoder, torch.device("cpu"), tasks, num_rows, len(train_loader))
    config = resolve_training_options(config, facts)
    tricks = build_tricks(model, config)
    make = own_optimizer or (lambda groups: build_optimizer(groups, config, "cpu"))
    optimizer = merge_groups(make(tricks.param_groups(parameter_groups(model, config))))
    scheduler = build_scheduler(optimizer, config, -(-len(train_loader) // config.gradient_accumulation_steps))
    tricks.begin(train_loader, dev_loader, config)
    setup = TrainingSetup(train_loader, dev_loader, optimizer, scheduler, tricks)
    return Trainer(model, tokenizer, tasks, config, torch.device("cpu"), setup)


def forward_backward(trainer, batch, label_counts):
    """Adds one micro-batch's gradient, with all tricks, like `train_one_epoch`. Returns the MyModelOutput."""
    outputs = []
    for is_logged in trainer.tricks.passes(batch):
        forward = partial(trainer.model, batch.inputs, batch.labels, label_counts)
        with torch.autocast("cpu", trainer.dtype, enabled=trainer.dtype is not None):
            output = trainer.tricks.forward(forward, batch) if trainer.tricks else forward()
        trainer.scaler.scale(output.total_loss).backward()
        outputs += [output] if is_logged else []
    return outputs[0] if len(outputs) == 1 else mean_output(outputs)


def train(config, **own):
    trainer = make_trainer(config, **own)
    trainer.resume()
    trainer.train()
    return trainer


def fingerprints(config):
    """Returns hashes of everything that must be identical after an interruption: final and best weights, optimizer
    state, other saved state, metrics.jsonl."""
    last = sorted((config.run_dir / "checkpoints").glob("step_*"))[-1]
    state = read_json(last / "training.json")
    return {
        "last": read_json(last / "manifest.json") | {"args.json": None},
        "best": read_json(config.run_dir / "checkpoints/best/manifest.json") | {"args.json": None},
        "progress": state["progress"],
        "metrics": (config.run_dir / "metrics.jsonl").read_text(),
    }


@pytest.mark.parametrize("options", [dict(), dict(use_crf=True)])
def test_accumulation_equals_one_large_batch(options, tiny):
    """Without dropout, 4 micro-batches of 8 have the gradient of one batch of 32, although lengths and label counts
    differ."""
    gradients = []
    for batch_size, steps in ((32, 1), (8, 4)):
        trainer = make_trainer(tiny(batch_size=32, dropout=0.0, max_grad_norm=0, **options))
        trainer.train_loader.set_position(0)
        whole = next(iter(trainer.train_loader)).rows.numpy()
        data = trainer.train_loader.dataset
        group = [data.batch(whole[i : i + batch_size]) for i in range(0, 32, batch_size)]
        totals = {
            name: sum(trainer.model.count_labels(b.inputs, b.labels)[name] for b in group) for name in trainer.tasks
        }
        losses = [forward_backward(trainer, batch, totals).total_loss.item() for batch in group]
        assert len(group) == steps
        gradients.append(
            (sum(losses), {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None})
        )
    (loss, one), (sum_of_losses, four) = gradients
    assert sum_of_losses == pytest.approx(loss, rel=1e-5)
    for name in one:
        torch.testing.assert_close(four[name], one[name], rtol=1e-3, atol=1e-6, msg=name)


def test_run_with_accumulation_equals_large_batches(tiny, monkeypatch):
    """Tests the same through train(), including the short last group (60 rows, groups of 32)."""
    results, plain = [], LengthSampler.__iter__
    for batch_size, k in ((32, 1), (8, 4)):
        config = tiny(
            batch_size=batch_size,
            gradient_accumulation_steps=k,
            dropout=0.0,
            epochs=1,
            log_steps=1,
            model_version=f"k{k}",
        )
        trainer = make_trainer(config)
        order = [np.arange(32), np.arange(32, 60)]
        batches = [rows[i : i + batch_size] for rows in order for i in range(0, len(rows), batch_size)]
        monkeypatch.setattr(
            LengthSampler,
            "__iter__",
            lambda self, batches=batches: iter(batches) if self.seed is not None else plain(self),
        )
        trainer.train()
        results.append([json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()])
    assert len(results[0]) == len(results[1]) == 3
    for one, four in zip(*results):
        assert one.keys() == four.keys()
        for name in one:
            assert four[name] == pytest.approx(one[name], rel=2e-3), name


@pytest.mark.parametrize(
    "options", [dict(), dict(use_crf=True), dict(encoder="bilstm", use_fgm=True, fgm_eps=0.1, lr=1e-2)]
)
def test_twenty_examples_are_overfitted(options, tiny):
    trainer = make_trainer(
        tiny(
            **{
                "epochs": 40,
                "early_stop_patience": 0,
                "save_epoch": 0,
                "hidden_size": 64,
                "batch_size": 5,
                "dropout": 0.0,
                **options,
            }
        ),
        rows=20,
    )
    assert trainer.train() == 1.0
    assert trainer.eval(trainer.dev_loader).scores["sentence_accuracy"] == 1.0


def test_warmup_then_cosine_linear_or_constant():
    def rates(**options):
        config = Config(epochs=10, lr=1e-3, **options)
        optimizer = build_optimizer([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": 1.0}], Config(), "cpu")
        scheduler = build_scheduler(optimizer, config, 10)
        seen = []
        for _ in range(100):
            seen.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        return seen, scheduler.get_last_lr()[0]

    seen, end = rates(warmup_epochs=2, lrf=0.1)
    assert (
        seen[:20] == pytest.approx([(i + 1) / 21 for i in range(20)]) and seen[20] == 1.0 and end == pytest.approx(0.1)
    )
    assert seen[60] == pytest.approx(0.1 + 0.9 * 0.5)
    seen, end = rates(scheduler="linear", lrf=0.0)
    assert seen[9] < 1 == seen[10] and seen[55] == pytest.approx(0.5) and end == pytest.approx(0.0, abs=1e-9)
    seen, end = rates(scheduler="constant", warmup_epochs=0)
    assert set(seen) == {1.0} and end == 1.0


def test_clipping_divides_by_the_norm_and_a_non_finite_gradient_changes_nothing(tiny, caplog):
    trainer = make_trainer(tiny(max_grad_norm=0.5))
    reference = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for p in trainer.trained:
        p.grad = torch.randn(p.shape, generator=generator)
    gradients = {id(p): p.grad.clone() for p in trainer.trained}
    batch = trainer.train_loader.dataset.batch([0, 1])
    trainer.optimizer_step([batch])
    norm = torch.sqrt(sum(g.double().pow(2).sum() for g in gradients.values()))
    slots = trainer.optimizer.state
    for p in trainer.trained:  # AdamW's first moment is (1 - beta1) times the clipped gradient
        torch.testing.assert_close(
            slots[p]["exp_avg"], 0.1 * gradients[id(p)] * (0.5 / norm).float(), rtol=1e-4, atol=1e-8
        )
    assert any(not torch.equal(p, reference[name]) for name, p in trainer.model.named_parameters())

    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    moments = {p: slots[p]["exp_avg"].clone() for p in trainer.trained}
    for p in trainer.trained:
        p.grad = torch.ones_like(p)
    trainer.trained[0].grad[0] = float("nan")
    trainer.optimizer_step([batch])
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert all(torch.equal(slots[p]["exp_avg"], moments[p]) for p in trainer.trained)
    assert [bool(flag) for flag, _ in trainer.losses.unseen_steps] == [False, True] and trainer.losses.unseen_steps[1][
        1
    ] == [0, 1]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_finite_gradients_whose_norm_overflows_change_nothing(precision, tiny):
    trainer = make_trainer(tiny(max_grad_norm=0.5, precision=precision))
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=1.0, enabled=precision == "fp16")
    trainer.scaler.scale(torch.zeros(()))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    for p in trainer.trained:
        p.grad = torch.full_like(p, 3e38)
    trainer.optimizer_step([trainer.train_loader.dataset.batch([0, 1])])
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert [bool(is_bad) for is_bad, _ in trainer.losses.unseen_steps] == [True]


OPTIMIZERS = {  # all without a closure; SparseAdam rejects dense gradients
    **{
        name: getattr(torch.optim, name)
        for name in (
            "ASGD",
            "Adadelta",
            "Adafactor",
            "Adagrad",
            "Adam",
            "AdamW",
            "Adamax",
            "Muon",
            "NAdam",
            "RAdam",
            "RMSprop",
            "Rprop",
        )
    },
    "SGD": lambda groups: torch.optim.SGD(groups, momentum=0.9),
    "fused SGD": lambda groups: torch.optim.SGD(groups, momentum=0.9, fused=True),
    "fused Adam": lambda groups: torch.optim.Adam(groups, fused=True),
    "AdamW, rates as tensors": lambda groups: torch.optim.AdamW(
        [{**group, "lr": torch.tensor(group["lr"])} for group in groups], foreach=False
    ),
    "Adafactor of transformers": lambda groups: transformers.Adafactor(
        groups, scale_parameter=False, relative_step=False
    ),
    "Lion of lion-pytorch": Lion,
}


def matrices_only(groups):
    """Returns the parameters that are matrices; Muon accepts no others."""
    for p in (p for group in groups for p in group["params"]):
        p.requires_grad_(p.ndim == 2)
    return [{**group, "params": kept} for group in groups if (kept := [p for p in group["params"] if p.ndim == 2])]


def test_every_torch_optimizer_is_tested():
    kinds = {name for name in dir(torch.optim) if isinstance(getattr(torch.optim, name), type)}
    kinds = {name for name in kinds if issubclass(getattr(torch.optim, name), torch.optim.Optimizer)}
    assert kinds - set(OPTIMIZERS) == {"Optimizer", "SparseAdam", "LBFGS"}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_clipped_guarded_and_resumed(name, tiny, monkeypatch):
    def own(groups):
        return OPTIMIZERS[name](matrices_only(groups) if name == "Muon" else groups)

    trainer = make_trainer(tiny(max_grad_norm=0.5), own_optimizer=own)
    model = trainer.model
    copies = [
        {**group, "params": [p.detach().clone().requires_grad_() for p in group["params"]]}
        for group in trainer.optimizer.param_groups
    ]
    pairs = [
        (p, copy)
        for group, plain in zip(trainer.optimizer.param_groups, copies)
        for p, copy in zip(group["params"], plain["params"])
    ]
    expected = type(trainer.optimizer)(copies)  # its options are in the parameter groups
    generator = torch.Generator().manual_seed(0)
    batch = trainer.train_loader.dataset.batch([0, 1])
    for _ in range(2):
        for p, copy in pairs:
            p.grad = torch.randn(p.shape, generator=generator)
            copy.grad = p.grad.clone()
        rates = [float(group["lr"]) for group in trainer.optimizer.param_groups]
        torch.nn.utils.clip_grad_norm_([copy for _, copy in pairs], 0.5)
        for group, lr in zip(expected.param_groups, rates):
            group["lr"] = torch.tensor(lr) if isinstance(group["lr"], torch.Tensor) else lr
        expected.step()
        trainer.optimizer_step([batch])
        for p, copy in pairs:
            torch.testing.assert_close(p, copy, rtol=1e-4, atol=1e-7)
    state = {
        k: v.clone()
        for k, v in checkpoint.training_state(*trainer.training_state, {"sums": {}}, trainer.device)[0].items()
        if k.startswith("optimizer")
    }
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    for bad in (float("nan"), float("inf")):
        for p, _ in pairs:
            p.grad = torch.ones_like(p)
        pairs[0][0].grad.view(-1)[0] = bad
        trainer.optimizer_step([batch])
    after = checkpoint.training_state(*trainer.training_state, {"sums": {}}, trainer.device)[0]
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())
    assert all(torch.equal(after[key], tensor) for key, tensor in state.items())

    whole, stopped = tiny(model_version="whole", epochs=1), tiny(model_version="stopped", epochs=1)
    train(whole, own_optimizer=own)
    trainer = make_trainer(stopped, own_optimizer=own)
    trainer.resume()
    stop_after(trainer, 3, monkeypatch)
    with pytest.raises(Interrupted):
        trainer.train()
    seed_torch(99)
    train(stopped, own_optimizer=own)
    assert fingerprints(stopped) == fingerprints(whole)


def test_first_step_of_fused_sgd_can_be_skipped(tiny):
    """Its kernel would leave the momentum as uninitialised memory."""
    trainer = make_trainer(tiny(), own_optimizer=OPTIMIZERS["fused SGD"])
    batch = trainer.train_loader.dataset.batch([0, 1])
    for value in (float("nan"), 1.0):
        for p in trainer.trained:
            p.grad = torch.full_like(p, value)
        trainer.optimizer_step([batch])
    assert all(
        torch.isfinite(p).all() and slots["momentum_buffer"].abs().max() <= 1
        for p, slots in trainer.optimizer.state.items()
    )


@pytest.mark.parametrize(
    "kind", ["CosineAnnealingWarmRestarts", "OneCycleLR", "SequentialLR", "ChainedScheduler", "LambdaLR"]
)
def test_every_schedule_is_resumed(kind, tiny, monkeypatch):
    def own_schedule(trainer):
        schedules, optimizer = torch.optim.lr_scheduler, trainer.optimizer
        trainer.scheduler = {
            "CosineAnnealingWarmRestarts": lambda: schedules.CosineAnnealingWarmRestarts(optimizer, 3),
            "OneCycleLR": lambda: schedules.OneCycleLR(optimizer, [1e-3] * len(optimizer.param_groups), total_steps=20),
            "SequentialLR": lambda: schedules.SequentialLR(
                optimizer, [schedules.ConstantLR(optimizer, 0.1), schedules.ExponentialLR(optimizer, 0.9)], [2]
            ),
            "ChainedScheduler": lambda: schedules.ChainedScheduler(
                [schedules.LinearLR(optimizer, 0.1), schedules.ExponentialLR(optimizer, 0.9)]
            ),
            "LambdaLR": lambda: schedules.LambdaLR(optimizer, lambda step: 0.9**step),
        }[kind]()
        trainer.scheduler = with_warmup(trainer.scheduler, trainer.config, trainer.train_loader, trainer.monitor, False)
        return trainer

    whole, stopped = tiny(model_version="whole", epochs=1), tiny(model_version="stopped", epochs=1)
    trainer = own_schedule(make_trainer(whole))
    trainer.resume()
    trainer.train()
    trainer = own_schedule(make_trainer(stopped))
    stop_after(trainer, 3, monkeypatch)
    with pytest.raises(Interrupted):
        trainer.train()
    trainer = own_schedule(make_trainer(stopped))
    assert trainer.resume()
    trainer.train()
    assert fingerprints(stopped) == fingerprints(whole)


def test_unserializable_state_is_a_one_line_error(tiny):
    trainer = make_trainer(tiny())
    trainer.optimizer.param_groups[0]["hook"] = print
    with pytest.raises(UserError, match="AdamW or LambdaLR has values that a checkpoint cannot store"):
        trainer.save_model("step_00000000", resumable=True)


def stop_after(trainer, step, monkeypatch):
    """Simulates SIGTERM during that optimizer step."""
    step_of = trainer.optimizer_step

    def signalled(group):
        step_of(group)
        if trainer.progress.step + 1 == step:
            trainer.stop.number = 15

    monkeypatch.setattr(trainer, "optimizer_step", signalled)


def test_non_finite_loss_is_reported_and_divergence_is_an_error(tiny, monkeypatch):
    trainer = make_trainer(tiny(epochs=3, log_steps=4))
    logged = []
    monkeypatch.setattr("trainer.logger.warning", logged.append)
    forward, calls = trainer.model.forward, []

    def poisoned(*args):
        output = forward(*args)
        calls.append(1)
        if len(calls) == 2 or len(calls) > 8:
            output.total_loss = output.total_loss * float("nan")
        return output

    monkeypatch.setattr(trainer.model, "forward", poisoned)
    with pytest.raises(UserError, match="diverged"):
        trainer.train()
    assert "not finite" in logged[0] and "rows" in logged[0]
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_early_stopping_and_best_checkpoint(tiny, monkeypatch):
    config = tiny(epochs=9, early_stop_patience=2, monitor="intent_accuracy")
    trainer = make_trainer(config)
    scores, weights = iter([0.2, 0.5, 0.5, 0.4, 0.9]), []

    def scripted(loader, calibrate):
        weights.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})
        return Evaluation({"intent_accuracy": next(scores)}, {}, {})

    monkeypatch.setattr(trainer, "eval", scripted)
    assert (
        trainer.train() == 0.5 and len(weights) == 4
    )  # the tie and the lower score are two epochs without improvement
    assert all(torch.equal(p, weights[1][name]) for name, p in trainer.model.named_parameters())
    with pytest.raises(UserError, match="monitor=nothing"):
        make_trainer(tiny(monitor="nothing", model_version="other")).train()


def test_loss_can_be_monitored(tiny, monkeypatch):
    trainer = make_trainer(tiny(epochs=3, monitor="slots_loss"))
    scores = iter([0.5, 0.2, 0.4])
    monkeypatch.setattr(trainer, "eval", lambda loader, calibrate: Evaluation({"slots_loss": next(scores)}, {}, {}))
    assert trainer.train() == 0.2 and trainer.progress.best_epoch == 2


@pytest.mark.parametrize("options", [dict(), dict(use_crf=True, encoder="bilstm"), dict(precision="bf16")])
def test_scores_do_not_depend_on_batch_size_and_predictions_give_the_same_scores(options, tiny, tmp_path):
    config = tiny(epochs=6, **options)
    trainer = train(config)
    data = trainer.dev_loader.dataset
    scores = [trainer.eval(MyDataLoader(data, size)).scores for size in (1, 7, 64)]
    tolerance = dict(rel=1e-5) if not options.get("precision") else dict(rel=0.05)
    for other in scores[1:]:
        for name, value in scores[0].items():
            assert other[name] == pytest.approx(value, **tolerance), name
    trainer.predict(trainer.dev_loader, tmp_path / "p.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    examples = [data[i] for i in range(len(data))]
    assert [row["id"] for row in rows] == [e["id"] for e in examples]
    right = [row["intent"] == e["intent"] and row["slots_tags"] == e["slots"] for row, e in zip(rows, examples)]
    accuracy = np.mean([row["intent"] == e["intent"] for row, e in zip(rows, examples)])
    again = trainer.eval(trainer.dev_loader).scores
    assert accuracy == pytest.approx(again["intent_accuracy"]) and np.mean(right) == pytest.approx(
        again["sentence_accuracy"]
    )
    for row in rows:
        for entity in row["slots"]:
            assert row["text"][entity["start"] : entity["end"]] == entity["text"]
        assert 0 < row["intent_probability"] <= 1


def test_long_texts_are_scored_against_all_gold_labels(tiny):
    config = tiny(epochs=1)
    trainer = make_trainer(config)
    words = ["play"] * 300
    example = {
        "id": "0",
        "tokens": words,
        "intent": trainer.tasks["intent"].labels[0],
        "slots": ["O"] * 299 + ["B-city"],
    }
    loader = MyDataLoader(MyDataset([example], trainer.train_loader.dataset.featurizer), 1)
    predicted = trainer.infer(loader, "")[0].labels
    assert len(predicted["slots"][0]) == 300 and predicted["slots"][0][-1] == "O"
    assert (
        trainer.eval(loader).scores["slots_recall"] == 0.0 and trainer.eval(loader).scores["sentence_accuracy"] == 0.0
    )


VARIANTS = [
    dict(),
    dict(streaming=True, num_workers=2),
    dict(use_fgm=True, gradient_accumulation_steps=3, use_crf=True),
    dict(precision="fp16"),
    dict(streaming=True, encoder="bilstm", shuffle_buffer=16),
    dict(use_ema=True, use_rdrop=True, use_crf=True, dropout_samples=2, gradient_accumulation_steps=2),
    dict(use_swa=True, swa_start=0.3, use_freelb=True, epochs=3, batch_size=16),
    dict(use_soup=True, epochs=3, batch_size=16, lr=2e-2),
    dict(use_smart=True, streaming=True, precision="bf16"),
]


QUICK = (VARIANTS[0], VARIANTS[2])


@pytest.mark.parametrize(
    "options", [pytest.param(one, marks=() if one in QUICK else pytest.mark.slow) for one in VARIANTS]
)
def test_resume_after_any_step_is_bit_exact(options, tiny, monkeypatch):
    whole = tiny(model_version="whole", **options)
    train(whole)
    expected = fingerprints(whole)
    total = expected["progress"]["step"]
    for stop in range(1, total, 1 if not options else 3):
        config = tiny(model_version=f"stopped{stop}", **options)
        trainer = make_trainer(config)
        trainer.resume()
        step_of = trainer.optimizer_step

        def signalled(group, trainer=trainer, step_of=step_of, stop=stop):
            step_of(group)
            if trainer.progress.step + 1 == stop:
                trainer.stop.number = 15

        monkeypatch.setattr(trainer, "optimizer_step", signalled)
        with pytest.raises(Interrupted):
            trainer.train()
        seed_torch(99)  # a new process does not inherit random states
        train(config)
        assert fingerprints(config) == expected, f"stopped after step {stop}"


def test_damaged_checkpoint_falls_back_to_the_previous_one(tiny):
    whole = tiny(model_version="whole", epochs=3)
    train(whole)
    config = tiny(model_version="hurt", epochs=3)
    train(config)
    newest = sorted((config.run_dir / "checkpoints").glob("step_*"))[-1]
    data = bytearray((newest / "training.safetensors").read_bytes())
    data[-5] ^= 1
    (newest / "training.safetensors").write_bytes(bytes(data))
    train(config)
    assert fingerprints(config) == fingerprints(whole)


@pytest.mark.slow
def test_saved_best_gives_the_training_scores_in_a_new_process(tiny, command, tmp_path):
    config = tiny(epochs=4, use_crf=True)
    train(config)
    lines = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    dev = [
        {name[4:]: value for name, value in line.items() if name.startswith("dev_")}
        for line in lines
        if "dev_loss" in line
    ]
    best = max(dev, key=lambda scores: scores["sentence_accuracy"])
    moved = tmp_path / "elsewhere"
    shutil.copytree(config.run_dir / "checkpoints/best", moved)
    done = command(
        "main.py",
        "--do_eval",
        "--do_predict",
        "--data_path",
        config.data_path,
        "--checkpoint",
        moved,
        "--model_version",
        "new",
        "--eval_batch_size",
        5,
    )
    assert done.returncode == 0, done.stderr
    scores = read_json(tmp_path / "output/new/eval.json")["dev"]
    for name, value in best.items():
        assert scores[name] == pytest.approx(value, rel=1e-5), name


def test_frozen_layers_do_not_change(tiny):
    config = tiny(freeze_layers=-1, epochs=1)
    trainer = make_trainer(config)
    before = {name: p.detach().clone() for name, p in trainer.model.encoder.named_parameters()}
    head = trainer.model.output_layer.heads["intent"].linear.weight.detach().clone()
    trainer.train()
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.encoder.named_parameters())
    assert not torch.equal(head, trainer.model.output_layer.heads["intent"].linear.weight)


@pytest.mark.slow
def test_debug_does_not_touch_the_real_run(tiny):
    config = tiny(debug=True, do_train=True, do_eval=True, do_predict=True, epochs=1)
    main_module.main(config)
    assert (
        config.run_dir.name == "run-debug"
        and (config.run_dir / "eval.json").exists()
        and (config.run_dir / "predictions.csv").exists()
    )
    main_module.main(config)
    assert load_file(config.run_dir / "checkpoints/best/weights.safetensors")


def test_zero_epochs_evaluate_the_untrained_model(tiny):
    config = tiny(epochs=0, do_train=True, do_eval=True)
    main_module.main(config)
    saved, fresh = (
        load_file(config.run_dir / "checkpoints/best/weights.safetensors"),
        make_trainer(tiny(epochs=0)).model,
    )
    assert all(torch.equal(saved[name], p) for name, p in fresh.named_parameters())
    assert read_json(config.run_dir / "eval.json")["dev"]["loss"] > 0


@pytest.mark.parametrize("when", ["dev evaluation", "last checkpoint"])
def test_signal_between_steps_loses_nothing(when, tiny, monkeypatch):
    whole = tiny(model_version="whole")
    train(whole)
    config = tiny(model_version="cut")
    trainer = make_trainer(config)
    trainer.resume()
    method = "infer" if when == "dev evaluation" else "keep_best"
    original = getattr(trainer, method)

    def signalled(*args):
        trainer.stop.number = 15
        return original(*args)

    monkeypatch.setattr(trainer, method, signalled)
    with pytest.raises(Interrupted):
        trainer.train()
    seed_torch(99)
    train(config)
    assert fingerprints(config) == fingerprints(whole)


def test_skipped_steps_are_counted_across_a_resume(tiny, monkeypatch):
    """The logged mean is over the applied steps, whether or not the run stops between a skipped step and the log
    line."""
    results = []
    for stop in (None, 3):
        config = tiny(model_version=f"stop{stop}", epochs=1, log_steps=6)
        trainer = make_trainer(config)
        for _ in range(2):
            trainer.resume()
            forward = trainer.model.forward

            def poisoned(*args, trainer=trainer, forward=forward):
                output = forward(*args)
                if trainer.progress.step == 1 and trainer.model.training:
                    output.total_loss = output.total_loss * float("inf")
                return output

            step_of = trainer.optimizer_step

            def stopping(group, trainer=trainer, step_of=step_of, stop=stop):
                step_of(group)
                if trainer.progress.step + 1 == stop:
                    trainer.stop.number = 15

            monkeypatch.setattr(trainer.model, "forward", poisoned)
            monkeypatch.setattr(trainer, "optimizer_step", stopping)
            try:
                trainer.train()
                break
            except Interrupted:
                trainer = make_trainer(config)
        results.append((config.run_dir / "metrics.jsonl").read_text())
    assert results[0] == results[1] and json.loads(results[0].splitlines()[0])["step"] == 6


def test_logged_loss_is_the_mean_over_applied_steps(tiny):
    trainer = make_trainer(tiny(log_steps=2))
    batch = trainer.train_loader.dataset.batch([0, 1])
    for value in (2.0, 2.0):
        trainer.losses.add([MyModelOutput(torch.tensor(value))])
        for p in trainer.trained:
            p.grad = torch.ones_like(p) * (float("inf") if len(trainer.losses.unseen_steps) else 1)
        trainer.optimizer_step([batch])
    assert trainer.log_losses(0) == 2.0


def test_nan_score_is_replaced_as_the_best():
    from metrics import is_better

    nan = float("nan")
    assert (
        is_better("loss", nan, None)
        and is_better("loss", 9.0, nan)
        and not is_better("loss", nan, 9.0)
        and not is_better("f1", nan, nan)
    )
    assert is_better("loss", 1.0, 2.0) and not is_better("f1", 1.0, 2.0) and not is_better("f1", 1.0, 1.0)


def test_lost_metrics_leave_no_zero_bytes(tiny):
    config = tiny(epochs=1)
    train(config)
    path = config.run_dir / "metrics.jsonl"
    first = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(first)
    train(config)
    assert path.read_bytes() == first


def test_signal_while_saving_best_saves_a_checkpoint(tiny, monkeypatch):
    config = tiny(epochs=3, save_epoch=3)
    trainer = make_trainer(config)
    keep = trainer.keep_best
    monkeypatch.setattr(trainer, "keep_best", lambda scores: (keep(scores), setattr(trainer.stop, "number", 15)))
    with pytest.raises(Interrupted):
        trainer.train()
    again = make_trainer(config)
    assert again.resume() and (again.progress.epoch, again.progress.batch) == (1, 0)


@pytest.mark.parametrize("own", ["deep_classification", "deep_tagging"])
def test_user_head_needs_one_class_and_one_line(own, tiny, sample, tmp_path, monkeypatch):
    """A new task type, added to HEADS and labels.json, can be trained, evaluated and used for prediction without other
    changes."""
    from model_utils import HEADS, ClassificationHead, TaggingHead

    task, base = ("intent", ClassificationHead) if own == "deep_classification" else ("slots", TaggingHead)

    class Deep(base):
        def __init__(self, hidden_size, task):
            super().__init__(hidden_size, task)
            self.linear = torch.nn.Sequential(torch.nn.Linear(hidden_size, hidden_size), torch.nn.GELU(), self.linear)

    data = tmp_path / "data"
    shutil.copytree(sample, data)
    labels = read_json(data / "labels.json")
    labels[task] |= {"type": own, "kind": labels[task]["type"]}
    (data / "labels.json").write_text(json.dumps(labels))
    config = tiny(data_path=str(data), do_train=True, do_eval=True, do_predict=True, epochs=1)
    with pytest.raises(UserError, match=f"no head for the type {own}"):
        main_module.main(config)
    monkeypatch.setitem(HEADS, own, Deep)
    main_module.main(config)
    scores = read_json(config.run_dir / "eval.json")["test"]
    assert f"{task}_{'f1' if own == 'deep_tagging' else 'accuracy'}" in scores
    assert any(
        "heads." + task + ".linear.2" in name
        for name in load_file(config.run_dir / "checkpoints/best/weights.safetensors")
    )


# ---- windows ---------------------------------------------------------------------------------------------------------


class WordsAlone(torch.nn.Module):
    """An encoder without interaction between tokens."""

    def __init__(self, vocab_size, width):
        super().__init__()
        self.embeddings = torch.nn.Embedding(vocab_size, width)

    def get_input_embeddings(self):
        return self.embeddings

    def forward(self, input_ids, attention_mask):
        return type("Output", (), {"last_hidden_state": self.embeddings(input_ids)})


@pytest.mark.parametrize(
    ("length", "stride"), [(8, 0), (8, 2), (8, 4), (10, 1), (10, 5), (12, 3), (12, 6), (14, 4), (16, 8), (24, 7)]
)
def test_windows_do_not_change_predictions_without_context(length, stride, tiny):
    from model_utils import MyModel

    config = tiny(precision="fp32")
    tokenizer = make_trainer(config).tokenizer
    tasks = load_labels(config.data_path)
    torch.manual_seed(0)
    model = MyModel(WordsAlone(len(tokenizer), 32), 32, tasks)
    results = []
    for encoder in (Featurizer(tokenizer, tasks, 256), Featurizer(tokenizer, tasks, length, stride)):
        data = MyDataset(Path(config.data_path) / "train.jsonl", encoder)
        trainer = Trainer(model, tokenizer, tasks, config, torch.device("cpu"))
        predicted = trainer.infer(MyDataLoader(data, 7), "")[0].labels
        results.append((predicted, trainer.eval(MyDataLoader(data, 7)).scores))
        rows = len(data.lengths)
    assert rows > len(data) == 60 or length == 24
    assert results[0][0] == results[1][0]  # to the last tag
    assert {name: value for name, value in results[0][1].items() if "loss" not in name} == {
        name: value for name, value in results[1][1].items() if "loss" not in name
    }
    assert results[0][1]["intent_loss"] == pytest.approx(results[1][1]["intent_loss"], rel=1e-5)


def test_word_in_two_windows_comes_from_the_one_with_the_farther_edge():
    assert merge_windows([(0, list("aaaaaa")), (4, list("bbbbbb")), (9, list("cc"))]) == list("aaaaabbbbbc")
    assert merge_windows([(0, list("aaaa")), (4, list("bb"))]) == list("aaaabb")
    assert merge_windows([(3, list("bbbb")), (0, list("aaaaaa"))]) == list("aaaaabb")


def test_training_and_prediction_with_windows(tiny, tmp_path):
    config = tiny(max_length=8, window_stride=3, do_train=True, do_eval=True, do_predict=True, use_crf=True, epochs=1)
    main_module.main(config)
    rows = [
        json.loads(line) for line in (Path(config.data_path) / "test.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    import csv

    with open(config.run_dir / "predictions.csv", encoding="utf-8", newline="") as file:
        tags = [json.loads(row["slots_tags"]) for row in csv.DictReader(file)]
    assert [len(row["tokens"]) for row in rows] == [len(one) for one in tags]
    assert max(len(row["tokens"]) for row in rows) > 8


def test_losses_equal_a_plain_implementation(tiny):
    """Optimizations do not change results: the same batches with pytorch-crf, clip_grad_norm_ and plain AdamW."""
    import torch.nn.functional as F
    import torchcrf

    config = tiny(use_crf=True, epochs=1, log_steps=1, max_grad_norm=0.5, calibrate=False)
    trainer = make_trainer(config)
    groups = parameter_groups(trainer.model, config)
    start = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    random_state = torch.get_rng_state()
    trainer.resume()
    trainer.train()
    ours = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    ours = [line["loss"] for line in ours if "loss" in line]

    model = make_trainer(config).model
    model.load_state_dict(start)
    head = model.output_layer.heads["slots"]
    crf = torchcrf.CRF(len(load_labels(config.data_path)["slots"].labels), batch_first=True)
    crf.start_transitions, crf.end_transitions, crf.transitions = (
        getattr(head.crf, f"{n}transitions") for n in ("start_", "end_", "")
    )
    groups = parameter_groups(model, config)
    optimizer = torch.optim.AdamW(groups, foreach=False, fused=False)
    loader = trainer.train_loader
    scheduler = build_scheduler(optimizer, config, len(loader))
    loader.set_position(0)
    torch.set_rng_state(random_state)
    model.train()
    plain = []
    for inputs, labels, _ in loader:
        logits = model(inputs).logits
        loss = F.cross_entropy(logits["intent"], labels["intent"])
        loss = loss - crf(logits["slots"], labels["slots"].clamp(min=0), inputs["word_mask"], reduction="token_mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        plain.append(loss.item())
    assert len(ours) == len(plain) == 8
    np.testing.assert_allclose(ours, plain, rtol=2e-4)
    for name, tensor in load_file(
        sorted((config.run_dir / "checkpoints").glob("step_*"))[-1] / "weights.safetensors"
    ).items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-3, atol=1e-5)
