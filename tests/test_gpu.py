"""Tests for a GPU or another accelerator: `sh test.sh -m gpu`. Without one, they run on the CPU to test themselves."""

import json

import pytest
import torch
import torchcrf
from test_trainer import fingerprints

import main as main_module
from engine.model.crf import CRF
from engine.run.command_line import OUT_OF_MEMORY, exit_code
from engine.run.device import accelerator
from engine.run.signals import Interrupted
from trainer import Trainer

KIND = (accelerator() or torch.device("cuda")).type
NO_GPU = pytest.mark.skipif(accelerator() is None, reason="needs a GPU")


@pytest.fixture(params=["cpu", pytest.param(KIND, marks=[pytest.mark.gpu, NO_GPU])])
def device(request):
    return request.param


def predictions(config):
    rows = [json.loads(line) for line in (config.run_dir / "predictions.jsonl").read_text().splitlines()]
    return [(row["id"], row["intent"], row["slots_tags"]) for row in rows]


def test_device_and_cpu_predictions_are_equal(tiny, device):
    config = tiny(device=device, epochs=12, use_crf=True, do_train=True)
    main_module.main(config)
    labelled = []
    for where in (device, "cpu"):
        output = str(config.run_dir / "predictions.jsonl")
        main_module.main(tiny(device=where, do_predict=True, predict_output=output))
        labelled.append(predictions(config))
    assert labelled[0] == labelled[1] and len(labelled[0]) == 24


@pytest.mark.parametrize("options", [dict(), dict(precision="bf16", use_fgm=True, gradient_accumulation_steps=2)])
def test_resume_on_the_device_is_bit_exact(options, tiny, device, monkeypatch):
    options = dict(options, device=device, do_train=True, use_crf=True, deterministic=True)
    whole, stopped = tiny(model_version="whole", **options), tiny(model_version="stopped", **options)
    main_module.main(whole)
    step_of = Trainer.optimizer_step

    def signalled(trainer, group):
        step_of(trainer, group)
        if trainer.progress.step + 1 == 3:
            trainer.stop.number = 15

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Trainer, "optimizer_step", signalled)
        main_module.main(stopped)
    main_module.main(tiny(model_version="stopped", resume=True, **options))
    assert fingerprints(stopped) == fingerprints(whole)


def test_crf_on_the_device_equals_pytorch_crf(device):
    torch.manual_seed(0)
    ours, oracle = CRF(["O", "a", "b", "c", "d"]).to(device), torchcrf.CRF(5, batch_first=True)
    for name, parameter in oracle.named_parameters():
        torch.nn.init.normal_(parameter)
        getattr(ours, name).data.copy_(parameter)
    emissions, tags = torch.randn(3, 40, 5), torch.randint(0, 5, (3, 40))
    mask = torch.arange(40) < torch.tensor([40, 7, 1])[:, None]
    here, there = (emissions.clone().to(place).requires_grad_() for place in (device, "cpu"))
    loss = -ours(here, tags.to(device), mask.to(device)).sum()
    expected = -oracle(there, tags, mask, reduction="none").sum()
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss.cpu(), expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(here.grad.cpu(), there.grad, rtol=1e-3, atol=1e-4)


def test_non_finite_loss_changes_no_weight_on_the_device(tiny, device, monkeypatch):
    """On a GPU, the update is masked and reported at the next log, without waiting for the loss."""
    reported, batches = [], []
    monkeypatch.setattr("trainer.logger.warning", reported.append)
    step_of = Trainer.optimizer_step

    def poisoned(trainer, group):
        batches.append(group)
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        if len(batches) == 2:
            trainer.model.output_layer.heads["intent"].linear.bias.grad[0] = float("nan")
        step_of(trainer, group)
        same = [torch.equal(p, before[name]) for name, p in trainer.model.named_parameters()]
        assert all(same) if len(batches) == 2 else not any(same)

    monkeypatch.setattr(Trainer, "optimizer_step", poisoned)
    main_module.main(tiny(device=device, do_train=True, epochs=1, log_steps=1))
    assert any("not finite" in line for line in reported) and len(batches) > 4


@pytest.mark.gpu
@NO_GPU
def test_device_out_of_memory_is_a_one_line_error(capsys):
    def fill(_):
        torch.empty(2**50, device=KIND)

    assert exit_code(fill, None) == 2 and capsys.readouterr().err == f"error: {OUT_OF_MEMORY}\n"
