"""LoRA: which parameters are trained, what a checkpoint contains, and that it works only with its own base model."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import read_json
from safetensors.torch import load_file, save_file
from test_families import build, close, logits_of, same_answers, save_family

from config import Config
from engine.errors import UserError
from engine.model import lora
from engine.model.encoders import is_causal
from engine.run.files import seal
from engine.train.optimization import learning_rates, parameter_groups
from model_utils import load_checkpoint
from tools.check.checkpoints import run_until

CPU = torch.device("cpu")


@pytest.fixture
def adapted(tiny, tmp_path, sample):
    """Returns adapted(name of a family, **options) -> the Config of a run with LoRA on a tiny model."""

    def make(name="BERT", **options):
        folder = tmp_path / name
        path = str(folder) if folder.exists() else save_family(name, folder, sample)
        defaults = dict(lora_rank=4, epochs=1, max_length=64, use_crf=True, lr=None)
        return tiny(pretrain_model_path=path, **{**defaults, **options})

    return make


def trained(config):
    trainer = build(config)
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", ["BERT", "GPT-2", "Llama", "BART"])
def test_only_adapter_and_heads_have_gradients(name, adapted):
    trainer = build(adapted(name))
    model, batch = trainer.model.train(), trainer.dev_loader.dataset.batch(range(4))
    with torch.no_grad():
        for key, p in model.named_parameters():
            if ".lora_B." in key:  # if B were 0, the gradient of A would be 0
                torch.nn.init.normal_(p, std=0.1)
    model(batch.inputs, batch.labels).total_loss.backward()
    for key, p in model.named_parameters():
        if lora.is_adapter(key) or not key.startswith("encoder."):
            assert p.requires_grad and p.grad.any(), key
        else:
            assert not p.requires_grad and p.grad is None, key
    in_groups = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert in_groups == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("name", ["BERT", "GPT-2", "Qwen3"])
def test_merged_equals_unmerged(name, adapted, tmp_path):
    trainer = trained(adapted(name, merge_lora=True))
    merged = load_file(trainer.checkpoints / "best/weights.safetensors")
    assert not any("lora" in key or "base_layer" in key for key in merged)
    assert not (trainer.checkpoints / "best" / lora.BASE_FILE).exists()
    shutil.rmtree(trainer.config.pretrain_model_path)  # the base is not needed
    same_answers(trainer, tmp_path)
    again = build_elsewhere(trainer, name, adapted)
    data = trainer.dev_loader.dataset
    close(logits_of(trainer.model.eval(), data, range(8)), logits_of(again.model.eval(), data, range(8)), 1e-5)


def build_elsewhere(trainer, name, adapted):
    """Builds the same run without --merge_lora, whose `best` contains only the adapter."""
    again = trained(adapted(name, model_version="unmerged"))
    assert (again.checkpoints / "best" / lora.BASE_FILE).exists()
    return again


def test_merged_checkpoint_loads_without_peft(adapted, monkeypatch):
    trainer = trained(adapted(merge_lora=True))
    monkeypatch.setitem(sys.modules, "peft", None)
    load_checkpoint(trainer.checkpoints / "best")
    with pytest.raises(UserError, match=r"pip install -r requirements-lora\.txt"):
        build(adapted(model_version="other"))


def test_adapter_checkpoint_is_small_and_names_its_base(adapted):
    trainer = trained(adapted("Llama"))
    best, last = trainer.checkpoints / "best", trainer.checkpoints / "step_00000003"
    for folder in (best, last):
        kept = load_file(folder / "weights.safetensors")
        assert kept.keys() == lora.kept_tensors(trainer.model).keys()
        assert sum(t.numel() for t in kept.values()) < sum(p.numel() for p in trainer.model.parameters()) / 2
        base = read_json(folder / lora.BASE_FILE)
        assert base["name"] == trainer.config.pretrain_model_path and base["revision"] is None
        assert list(base["sha256"]) == ["model.safetensors"] and len(base["sha256"]["model.safetensors"]) == 64


def test_another_base_model_is_rejected(adapted, tmp_path):
    trainer = trained(adapted())
    best, base = trainer.checkpoints / "best", Path(trainer.config.pretrain_model_path)
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(
        UserError, match=r"contains only a LoRA adapter, which was trained on .* does not exist"
    ) as error:
        load_checkpoint(best)
    assert "--pretrain_model_path" in str(error.value) and "\n" not in str(error.value)
    model, *_ = load_checkpoint(best, str(moved))
    data = trainer.dev_loader.dataset
    close(logits_of(trainer.model.eval(), data, range(8)), logits_of(model.eval(), data, range(8)), 1e-6)
    tensors = load_file(moved / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][0, 0] += 1
    save_file(tensors, moved / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"is now a different model \(model.safetensors differs") as error:
        load_checkpoint(best, str(moved))
    assert "\n" not in str(error.value)
    moved.rename(base)
    with pytest.raises(UserError, match="is now a different model"):
        build(adapted()).resume()


def test_hub_base_is_saved_with_its_revision(adapted, tmp_path, monkeypatch):
    """Reads a cache with huggingface_hub's layout, without network access."""
    config = adapted()
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "cache/models--someone--tiny"
    shutil.copytree(config.pretrain_model_path, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.utils.hub.HF_HUB_CACHE", str(tmp_path / "cache"), raising=False)
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path / "cache"), raising=False)
    config = replace(config, pretrain_model_path="someone/tiny")
    trainer = trained(config)
    base = read_json(trainer.checkpoints / "best" / lora.BASE_FILE)
    assert (base["name"], base["revision"]) == ("someone/tiny", commit) and base["sha256"]
    load_checkpoint(trainer.checkpoints / "best")
    shutil.rmtree(cache)
    with pytest.raises(UserError, match=r"trained on someone/tiny \(revision 0123") as error:
        load_checkpoint(trainer.checkpoints / "best")
    assert "\n" not in str(error.value)


RESUMED = {
    "accumulation": dict(gradient_accumulation_steps=2, batch_size=4),
    "bf16": dict(precision="bf16"),
    "base in bf16": dict(load_dtype="bf16"),
    "dropout, R-Drop, EMA": dict(lora_dropout=0.2, use_rdrop=True, use_ema=True),
    "gradient checkpointing": dict(gradient_checkpointing=True),
    "SWA, AWP": dict(use_swa=True, epochs=3, swa_start=0.0, use_awp=True, awp_start=0.0),
    "FreeLB, merged": dict(use_freelb=True, merge_lora=True),
    "SMART, layer decay": dict(use_smart=True, layer_decay=0.8),
}


@pytest.mark.parametrize("what", RESUMED)
@pytest.mark.parametrize("name", ["BERT", pytest.param("Llama", marks=pytest.mark.slow)])
def test_lora_resume_is_bit_exact(name, what, adapted):
    options = dict(early_stop_patience=0, **RESUMED[what])
    run_until(whole := build(adapted(name, model_version="whole", **options)), 2)
    run_until(build(adapted(name, model_version="stopped", **options)), 1)
    run_until(again := build(adapted(name, model_version="stopped", **options)), 2)
    sums = [read_json(run.checkpoints / "step_00000002/manifest.json") for run in (whole, again)]
    assert all(sums[0][file] == sums[1][file] for file in ("weights.safetensors", "training.safetensors"))
    for key, p in again.model.named_parameters():
        assert (p.dtype == torch.float32) == (what != "base in bf16" or p.requires_grad), key


def test_awp_perturbs_only_trained_weights(adapted):
    trainer = build(adapted(use_awp=True, awp_start=0.0))
    model, batch = trainer.model.train(), trainer.dev_loader.dataset.batch(range(4))
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    model(batch.inputs, batch.labels).total_loss.backward()
    (awp,) = trainer.tricks
    with awp.perturbed():
        moved = {key for key, p in model.named_parameters() if not torch.equal(p, before[key])}
    assert moved and all(lora.is_adapter(key) or not key.startswith("encoder.") for key in moved)
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())


def test_lora_targets(adapted):
    def adapted_layers(**options):
        names = dict(build(adapted(**options, model_version=str(options))).model.encoder.named_parameters())
        return {name.split(".lora_")[0].split(".", 2)[2] for name in names if lora.is_adapter(name)}

    inside = {f"attention.self.{part}" for part in ("query", "key", "value")} | {"attention.output.dense"}
    assert {name.partition(".")[2] for name in adapted_layers()} == {*inside, "intermediate.dense", "output.dense"}
    expected = {name.partition(".")[2] for name in adapted_layers(lora_targets="query, value")}
    assert expected == {"attention.self.query", "attention.self.value"}
    with pytest.raises(UserError, match="--lora_targets=q_proj: no such linear layer; this encoder has dense, key"):
        build(adapted(lora_targets="q_proj", model_version="mistaken"))
    gpt = {name for name, _ in build(adapted("GPT-2", model_version="gpt")).model.encoder.named_parameters()}
    assert {name.split(".")[-4] for name in gpt if lora.is_adapter(name)} == {"c_attn", "c_proj", "c_fc"}


def test_learning_rates(adapted):
    config = adapted()
    model = build(config).model
    model.encoder.config.hidden_size = 384
    assert learning_rates(model.encoder, config)[0] == pytest.approx(1.8e-3, rel=0.01)
    rates = {group["lr"] for group in parameter_groups(model, config)}
    assert max(rates) == pytest.approx(3e-3)  # heads have the rate of full training
    model.encoder.config.hidden_size = 4096
    lr, head_lr = learning_rates(model.encoder, config)
    assert lr == head_lr == pytest.approx(2.9e-4, rel=0.02)
    assert {group["lr"] for group in parameter_groups(model, config)} == {lr}


def test_bf16_base_predicts_from_its_checkpoint(adapted, tmp_path):
    trainer = trained(adapted("Llama", load_dtype="bf16"))
    assert is_causal(trainer.model.encoder)
    kept = load_file(trainer.checkpoints / "best/weights.safetensors")
    assert {t.dtype for t in kept.values() if t.is_floating_point()} == {torch.float32}
    same_answers(trainer, tmp_path)
    frozen = dict(lora_rank=0, freeze_layers=-1, model_version="frozen", lr=1e-3)
    trainer = trained(adapted("Llama", load_dtype="bf16", **frozen))
    shutil.rmtree(tmp_path / "copied")
    same_answers(trainer, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, options",
    [
        ("GPT-2", dict(lora_rank=0)),
        ("Llama", dict(use_rdrop=True, lora_dropout=0.1, merge_lora=True)),
        ("Qwen3", dict(load_dtype="bf16", gradient_checkpointing=True)),
    ],
)
def test_all_model_checks_pass(name, options, adapted, command):
    config = adapted(name)
    path, data = config.pretrain_model_path, config.data_path
    flags = [f"--{key}={value}" for key, value in {**dict(lora_rank=4, use_crf=True, epochs=3), **options}.items()]
    done = command("main.py", "--debug", "--data_path", data, "--pretrain_model_path", path, "--max_length", 64, *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "checks passed" in done.stderr


def test_options_of_an_earlier_checkpoint_load(tiny, tmp_path):
    trainer = build(tiny(epochs=1))
    trainer.train()
    args = read_json(trainer.checkpoints / "best/args.json")
    new = "version word_pooling load_dtype lora_rank lora_alpha lora_dropout lora_targets merge_lora "
    new += "gradient_checkpointing"
    before = {name: value for name, value in args.items() if name not in new.split()} | {"pooling": "first"}
    shutil.copytree(trainer.checkpoints / "best", tmp_path / "old")
    (tmp_path / "old/args.json").write_text(json.dumps(before))
    seal(tmp_path / "old")
    assert Config.load(tmp_path / "old/args.json") == Config(**before)
    model, *_ = load_checkpoint(tmp_path / "old")
    data = trainer.dev_loader.dataset
    close(logits_of(trainer.model.eval(), data, range(8)), logits_of(model.eval(), data, range(8)), 1e-6)
