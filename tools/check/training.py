"""Checks of training: gradients, module registration, label leakage and the optimizer step."""

import copy
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from config import Config
from data_loader import Batch, without_labels
from engine.model import lora
from engine.tricks.trick import Tricks
from model_utils import MyModel
from tools.check.case import Case, Failed, has_label, logits_of, padding_mixer, require_same, shorten, with_other_rows
from tools.check.checkpoints import FewBatches, FixedBatches
from tools.check.learning import distinct_rows


@torch.enable_grad()
def check_gradients(case: Case) -> None:
    model = copy.deepcopy(case.trained).train()
    for start in range(0, len(case.data.lengths), 16):
        batch = case.batch(range(start, min(start + 16, len(case.data.lengths))))
        model(batch.inputs, batch.labels).total_loss.backward()
    require_encoder_gradients(model, batch)
    require_frozen(model, case.trainer.config)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if not_finite := [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()]:
        raise Failed(f"the gradient of {shorten(not_finite)} is not finite")
    if zero := [name for name, gradient in gradients.items() if not gradient.any()]:
        require_nonzero_gradients(case, [name for name in zero if not name.startswith("encoder.")])
        case.notes.append(f"{shorten(zero)} have zero gradients; their labels may not occur in these rows")
    require_used(case, model)
    optimized = {id(p) for group in case.trainer.optimizer.param_groups for p in group["params"]}
    trained = [(name, p) for name, p in case.trainer.model.named_parameters() if p.requires_grad]
    if missing := [name for name, p in trained if id(p) not in optimized]:
        raise Failed(f"the optimizer does not contain {shorten(missing)}")


def require_nonzero_gradients(case: Case, names: list[str]) -> None:
    """Raises Failed if the gradients of these weight matrices are still 0 after the weights of the model are perturbed.
    Biases are ignored, because a factor of 0 may disable them."""
    model, generator = copy.deepcopy(case.trained).train(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator).to(p))
    batch = case.batch(range(len(case.data.lengths)))
    model(batch.inputs, batch.labels).total_loss.backward()
    matrices = [name for name in names if model.get_parameter(name).ndim > 1]
    zero = [name for name in matrices if (grad := model.get_parameter(name).grad) is not None and not grad.any()]
    if zero and all(has_label(labels).any() for labels in batch.labels.values()):
        advice = "softmax over a dimension of size 1, rounding, a factor of 0"
        raise Failed(f"{shorten(zero)}: the gradient is 0 for all texts; look for {advice}")


def require_encoder_gradients(model: MyModel, batch: Batch) -> None:
    """Raises Failed if the loss of a task has no gradient with respect to the encoder."""
    encoder = [p for p in model.encoder.parameters() if p.requires_grad]
    for name, loss in model(batch.inputs, batch.labels).losses.items():
        if encoder and has_label(batch.labels[name]).any():
            gradients = torch.autograd.grad(loss, encoder, retain_graph=True, allow_unused=True)
            if not any(gradient is not None and gradient.any() for gradient in gradients):
                raise Failed(f"the loss of {name!r} has no gradient with respect to the encoder")


def require_frozen(model: MyModel, config: Config) -> None:
    """Raises Failed if a frozen parameter has a gradient, or if a parameter is frozen that no option freezes."""
    parameters = dict(model.named_parameters())
    frozen = [name for name, p in parameters.items() if not p.requires_grad]
    if wrong := [name for name in frozen if parameters[name].grad is not None]:
        raise Failed(f"{wrong[0]} is frozen, but has a gradient")
    if lora.base_of(model):
        base = [name for name in parameters if name.startswith("encoder.") and not lora.is_adapter(name)]
        if trained := [name for name in base if parameters[name].requires_grad]:
            raise Failed(f"base model parameters are trained: {shorten(trained)}; with LoRA, only adapters should be")
        frozen = [name for name in frozen if name not in base]
    if frozen and not (config.freeze_layers or config.unfreeze_layers):
        raise Failed(f"{shorten(frozen)} are frozen, but --freeze_layers is 0")


def require_used(case: Case, model: MyModel) -> None:
    """Raises Failed if trainable parameters have no gradient, or adds a note if these are only a few parameters of a
    library's encoder."""
    batch = case.batch(case.rows)
    # other inputs may be routed to other experts
    for _ in range(8 * any(p.requires_grad and p.grad is None for p in model.parameters())):
        inputs = with_other_rows(batch, num_unchanged=0)
        batch = Batch(inputs, batch.labels, batch.rows)
        model(inputs, batch.labels).total_loss.backward()
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    in_encoder = [name for name in unused if name.startswith("encoder.")]
    few = len(in_encoder) < len(list(model.encoder.parameters())) / 2
    if in_encoder and few and is_from_library(model.encoder):
        case.notes.append(f"encoder parameters without gradient: {shorten(in_encoder)}; some models have unused ones")
        unused = [name for name in unused if name not in in_encoder]
    if unused:
        raise Failed(f"parameters without gradient: {shorten(unused)}")


def is_from_library(module: nn.Module) -> bool:
    return type(module).__module__.split(".")[0] in ("transformers", "torch", "peft")


def check_registered(case: Case) -> None:
    model = case.trainer.model
    known = {id(item) for item in (*model.modules(), *model.parameters(), *model.buffers())}
    for name, module in model.named_modules():
        own = {} if is_from_library(module) else vars(module)
        for attribute, value in own.items():
            if attribute in ("_parameters", "_buffers", "_modules") or attribute.startswith("_forward"):
                continue
            for path, item in unregistered(value, known, f"{name or 'the model'}.{attribute}"):
                kind = "a module" if isinstance(item, nn.Module) else "a tensor"
                raise Failed(f"{path} is not registered; {kind} in a plain attribute is not saved, moved or trained")


def unregistered(value: Any, known: set[int], path: str, depth: int = 3) -> Iterator[tuple[str, Any]]:
    """Yields (path, item) for each module or tensor in an attribute whose id is not in `known`."""
    if isinstance(value, nn.Module | torch.Tensor):
        if id(value) not in known:
            yield path, value
    elif depth and isinstance(value, list | tuple | dict):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from unregistered(item, known, f"{path}[{key!r}]", depth - 1)


def check_labels_unseen(case: Case) -> None:
    model = copy.deepcopy(case.overfitted or case.trained).eval()
    batch = case.batch(distinct_rows(case))
    permuted = {name: labels.roll(1, 0) for name, labels in batch.labels.items()}
    plain = logits_of(model, batch.inputs)
    for labels in (batch.labels, permuted, without_labels(batch).labels):
        with_labels = logits_of(model, batch.inputs, labels)
        require_same("with other labels for the same texts", plain, with_labels, tolerance=1e-5)


def require_same_accumulated(case: Case, folder: str) -> None:
    """Raises Failed if the gradient of a `train_one_epoch` step differs between one batch and two micro-batches.

    Runs in eval mode and without tricks, because dropout and perturbations differ between micro-batches.
    """
    compares = any(head.compares_rows for head in case.trained.output_layer.heads.values())
    if compares or len(case.data.lengths) < 4 or padding_mixer(case.trained.encoder):
        return
    gradients = list[torch.Tensor]()
    for size, number in ((4, 1), (2, 2)):
        options = dict(output_dir=folder, compile=False, save_steps=0, max_grad_norm=0.0)
        trainer = case.build(**options, batch_size=size, gradient_accumulation_steps=number)
        trainer.config.run_dir.mkdir(parents=True, exist_ok=True)
        trainer.tricks = Tricks()
        trainer.model.load_state_dict(case.trained.state_dict())
        vars(trainer.model.eval())["train"] = lambda mode=True: None
        batches = [case.data.batch(range(start, start + size)) for start in range(0, 4, size)]
        trainer.train_loader = FixedBatches(trainer.train_loader, batches)  # type: ignore[assignment]
        record = partial(lambda trained, *_: gradients.append(gradient_of(trained)), trainer.trained)
        trainer.optimizer.register_step_pre_hook(record)
        with torch.backends.cudnn.flags(enabled=False):  # cuDNN's LSTM has no backward pass in eval mode
            trainer.train_one_epoch(0)
    if not gradients or not all(gradient.any() for gradient in gradients):
        labelled = [has_label(values).any() for values in case.data.batch(range(4)).labels.values()]
        if all(labelled):
            raise Failed("the gradients are 0 at the step in train_one_epoch; is zero_grad called before the step?")
        return
    if len(gradients) != 2 or len(gradients[0]) != len(gradients[1]):
        return
    gap = float((gradients[0] - gradients[1]).norm() / gradients[0].norm().clamp(min=1e-12))
    if gap > 0.02:
        advice = "total_loss is already divided by the number of labels in all micro-batches of a step"
        raise Failed(f"the gradient of two micro-batches differs by {gap:.1%} from the gradient of one batch; {advice}")


def gradient_of(parameters: list[nn.Parameter]) -> torch.Tensor:
    return torch.cat([torch.zeros(1), *(p.grad.flatten().cpu() for p in parameters if p.grad is not None)])


@torch.enable_grad()
def check_step(case: Case) -> None:
    """Runs an optimizer step with a learning rate of 0, which must not change weights, and must advance the schedule by
    one step."""
    case.trainer.config.run_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=case.trainer.config.run_dir) as folder:
        trainer = case.build(output_dir=folder, compile=False, save_steps=0)
        trainer.config.run_dir.mkdir(parents=True)
        loader = FewBatches(trainer.train_loader, trainer.config.gradient_accumulation_steps)
        trainer.train_loader = loader  # type: ignore[assignment]
        for group in trainer.optimizer.param_groups:
            group["lr"] = 0.0 * group["lr"]
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        steps = trainer.scheduler.last_epoch
        trainer.train_one_epoch(0)
        require_same_accumulated(case, folder)
    after = dict(trainer.model.named_parameters())
    if changed := [name for name, p in before.items() if not torch.equal(p, after[name])]:
        raise Failed(
            f"{shorten(changed)} change in a step with a learning rate of 0; does a trick restore the weights?"
        )
    if nonzero := [name for name, p in after.items() if p.grad is not None and p.grad.any()]:
        raise Failed(f"gradients that are not reset after a step: {shorten(nonzero)}; call zero_grad")
    if trainer.scheduler.last_epoch - steps > 1:
        raise Failed(f"the schedule advances by {trainer.scheduler.last_epoch - steps} in one optimizer step")
