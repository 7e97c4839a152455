"""A frozen encoder runs once: its outputs are cached, and training is the same as without the cache."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_automatic import run, stop_run
from test_distributed import torchrun
from test_trainer import fingerprints

import main as main_module
from engine.data.ragged import Ragged
from engine.train import frozen
from model_utils import MyModel
from trainer import Trainer

FROZEN = dict(freeze_layers=-1, do_train=True, log_steps=1)


def losses(config):
    lines = (config.run_dir / "metrics.jsonl").read_text().splitlines()
    return [value for line in lines for name, value in json.loads(line).items() if "loss" in name]


@pytest.fixture
def rows_read(monkeypatch):
    """Returns a list to which the number of rows of each encoder pass is appended."""
    sizes, encode = [], MyModel.encode

    def counted(model, inputs):
        sizes.append(len(inputs["input_ids"]))
        return encode(model, inputs)

    monkeypatch.setattr(MyModel, "encode", counted)
    return sizes


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(use_crf=True, pooling="mean", word_pooling="mean", shared_layers=1),
        dict(use_rdrop=True, dropout_samples=2, gradient_accumulation_steps=2, num_workers=1),
        dict(max_length=12, window_stride=3, long_text="head"),
        dict(encoder="bilstm", use_ema=True),
    ],
)
def test_cached_outputs_do_not_change_the_run(options, tiny, rows_read, monkeypatch):
    kept = tiny(**FROZEN, **options, epochs=3, model_version="kept")
    log = run(kept)
    assert "the frozen encoder runs once: " in log
    num_rows = sum(rows_read)
    assert num_rows == 84 if "max_length" not in options else num_rows > 84  # 60 + 24 texts
    rows_read.clear()
    monkeypatch.setattr(frozen, "MAX_BYTES", 0)
    every = replace(kept, model_version="every")
    assert "the frozen encoder runs in every step: its outputs are " in run(every)
    assert sum(rows_read) == (3 * (2 * 60 + 24) if kept.use_rdrop else 3 * num_rows)
    np.testing.assert_allclose(losses(kept), losses(every), rtol=2e-4)


def of_one_task(sample, task, folder):
    """Copies the sample with one of its tasks. Returns (its folder, its number of words)."""
    folder.mkdir()
    labels, words = json.loads((sample / "labels.json").read_text()), 0
    (folder / "labels.json").write_text(json.dumps({task: labels[task]}))
    for split in ("train", "dev"):
        rows = [json.loads(line) for line in (sample / f"{split}.jsonl").read_text().splitlines()]
        words += sum(len(row["tokens"]) for row in rows)
        rows = [{name: row[name] for name in ("id", "tokens", task)} for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder), words


@pytest.mark.parametrize("task", ["intent", "slots"])
def test_one_task_caches_only_the_outputs_it_reads(task, tiny, tmp_path, sample):
    data, words = of_one_task(sample, task, tmp_path / "data")
    size = {"intent": 84, "slots": words}[task] * 32 * 4
    log = run(tiny(**FROZEN, data_path=data, epochs=1))
    assert f"the frozen encoder runs once: {size / 1e6:.1f} MB" in log


def test_windows_are_not_cached(tiny, tmp_path, sample):
    """They are pooled with trained weights."""
    data, _ = of_one_task(sample, "intent", tmp_path / "data")
    windows = dict(data_path=data, epochs=1, long_text="windows")
    assert "because of texts in windows" in run(tiny(**FROZEN, **windows, max_length=8, model_version="short"))
    assert "the frozen encoder runs once" in run(tiny(**FROZEN, **windows, max_length=200))


@pytest.mark.parametrize("accumulated", [1, 2])
def test_resume_with_a_frozen_encoder_is_bit_exact(accumulated, tiny, monkeypatch):
    options = dict(FROZEN, use_crf=True, epochs=3, gradient_accumulation_steps=accumulated)
    whole = tiny(**options, model_version="whole")
    main_module.main(whole)
    stop_run(tiny(**options), 5, monkeypatch)
    again = tiny(**options, resume=True)
    main_module.main(again)
    assert fingerprints(again) == fingerprints(whole)


def test_frozen_encoder_has_no_dropout_and_cache_is_freed(tiny, monkeypatch):
    seen = []
    step = Trainer.optimizer_step

    def looked_at(trainer, group):
        seen.append((trainer.model.encoder.training, trainer.model.output_layer.training))
        assert trainer.train_loader.dataset.encoded and trainer.dev_loader.dataset.encoded
        step(trainer, group)
        seen.append(trainer)

    monkeypatch.setattr(Trainer, "optimizer_step", looked_at)
    config = tiny(**FROZEN, epochs=1)
    main_module.main(config)
    assert seen[0] == (False, True)
    assert seen[1].train_loader.dataset.encoded is None and seen[1].dev_loader.dataset.encoded is None


@pytest.mark.parametrize(
    "options, reason",
    [
        (dict(streaming=True), "because of --streaming"),
        (dict(use_freelb=True), "because of --use_freelb"),
        (dict(use_smart=True), "because of --use_smart"),
    ],
)
def test_options_that_prevent_caching(options, reason, tiny):
    assert f"the frozen encoder runs in every step, {reason}" in run(tiny(**FROZEN, **options, epochs=1))


def test_augmented_rows_are_encoded(tiny, monkeypatch):
    import data_loader

    monkeypatch.setattr(data_loader, "augment", lambda example, rng: example)
    assert "because of augment in data_loader.py" in run(tiny(**FROZEN, epochs=1))


def test_trained_encoder_is_not_cached(tiny):
    assert "the frozen encoder" not in run(tiny(do_train=True, epochs=1)) + run(
        tiny(do_train=True, freeze_layers=1, epochs=1, model_version="other")
    )


@pytest.mark.slow
def test_cached_outputs_in_several_processes(tiny, sample, tmp_path, python, command):
    """Two processes with half the batch size train like one."""
    flags = "--freeze_layers all --hidden_size 32 --num_layers 1 --vocab_size 500 --epochs 3 --dropout 0 --lr 3e-3 "
    flags = (flags + "--do_train --device cpu --log_steps 1 --no_use_crf --precision fp32").split()
    flags += ["--data_path", sample, "--output_dir", tmp_path]
    printed = torchrun(python, 2, "main.py", *flags, "--model_version", "two", "--batch_size", "4", cwd=tmp_path)
    assert "the frozen encoder runs once" in printed
    done = command("main.py", *flags, "--model_version", "one", "--batch_size", "8")
    assert done.returncode == 0, done.stderr
    one, two = (losses(tiny(output_dir=str(tmp_path), model_version=name)) for name in ("one", "two"))
    np.testing.assert_allclose(one, two, rtol=1e-3)


def test_cached_rows_are_read_in_any_order_and_padded():
    """Vectors can be read in any order."""
    lengths = np.array([3, 1, 2])
    words = Ragged(np.zeros(6, int), np.concatenate([[0], lengths.cumsum()]))
    outputs = frozen.Outputs(SimpleNamespace(lengths=lengths, columns={"word_starts": words}), ["text", "words"], 4)
    text, of_words = torch.randn(3, 4), torch.randn(3, 3, 4)
    order = np.array([2, 0, 1])
    outputs.add(order, "text", text[order])
    outputs.add(order, "words", of_words[order])
    found = outputs(np.array([1, 0]))
    assert torch.equal(found["encoded_text"], text[[1, 0]])
    assert torch.equal(found["encoded_words"][0, :1], of_words[1, :1])
    assert torch.equal(found["encoded_words"][1], of_words[0])
    assert outputs(np.array([1]))["encoded_words"].shape == (1, 1, 4)
