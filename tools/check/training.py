"""Checks of training: gradients, registered modules, and overfitting a few texts."""

import copy
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from config import Config
from data_loader import Batch, without_labels
from engine.model import lora
from engine.train.optimization import parameter_groups
from model_utils import MyModel
from tools.check.case import Case, Failed, Skipped, has_label, logits_of, require_same, shorten

NUM_TEXTS, SECONDS = 20, 25  # number of texts to overfit and time limit


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
        case.notes.append(f"{shorten(zero)} have zero gradients; perhaps these rows have none of their labels")
    require_used(case, model)
    optimized = {id(p) for group in case.trainer.optimizer.param_groups for p in group["params"]}
    trained = [(name, p) for name, p in case.trainer.model.named_parameters() if p.requires_grad]
    if missing := [name for name, p in trained if id(p) not in optimized]:
        raise Failed(f"the optimizer does not contain {shorten(missing)}")


def require_encoder_gradients(model: MyModel, batch: Batch) -> None:
    """Raises Failed if the loss of a task gives the encoder no gradient."""
    encoder = [p for p in model.encoder.parameters() if p.requires_grad]
    for name, loss in model(batch.inputs, batch.labels).losses.items():
        if encoder and has_label(batch.labels[name]).any():
            gradients = torch.autograd.grad(loss, encoder, retain_graph=True, allow_unused=True)
            if not any(gradient is not None and gradient.any() for gradient in gradients):
                raise Failed(f"the loss of {name!r} gives the encoder no gradient")


def require_frozen(model: MyModel, config: Config) -> None:
    """Raises Failed if a frozen parameter has a gradient, or if a parameter is frozen without an option."""
    parameters = dict(model.named_parameters())
    frozen = [name for name, p in parameters.items() if not p.requires_grad]
    if wrong := [name for name in frozen if parameters[name].grad is not None]:
        raise Failed(f"{wrong[0]} is frozen, but has a gradient")
    if lora.base_of(model):
        base = [name for name in parameters if name.startswith("encoder.") and not lora.is_adapter(name)]
        if trained := [name for name in base if parameters[name].requires_grad]:
            raise Failed(f"{shorten(trained)} of the base model are trained, but only LoRA's matrices should be")
        frozen = [name for name in frozen if name not in base]
    if frozen and not (config.freeze_layers or config.unfreeze_layers):
        raise Failed(f"{shorten(frozen)} are frozen, but --freeze_layers is 0")


def require_used(case: Case, model: MyModel) -> None:
    """Raises Failed if trained parameters have no gradient. A few in a library's encoder only add a note."""
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    in_encoder = [name for name in unused if name.startswith("encoder.")]
    few = len(in_encoder) < len(list(model.encoder.parameters())) / 2
    if in_encoder and few and is_of_a_library(model.encoder):
        case.notes.append(f"{shorten(in_encoder)} of this encoder get no gradient; some families have unused weights")
        unused = [name for name in unused if name not in in_encoder]
    if unused:
        raise Failed(f"{shorten(unused)} get no gradient")


def is_of_a_library(module: nn.Module) -> bool:
    return type(module).__module__.split(".")[0] in ("transformers", "torch", "peft")


def check_registered(case: Case) -> None:
    model = case.trainer.model
    known = {id(item) for item in (*model.modules(), *model.parameters(), *model.buffers())}
    for name, module in model.named_modules():
        own = {} if is_of_a_library(module) else vars(module)
        for attribute, value in own.items():
            if attribute in ("_parameters", "_buffers", "_modules") or attribute.startswith("_forward"):
                continue
            for path, item in unregistered(value, known, f"{name or 'the model'}.{attribute}"):
                kind = "a module" if isinstance(item, nn.Module) else "a tensor"
                raise Failed(f"{path} is not registered; {kind} in a plain attribute is not saved, moved or trained")


def unregistered(value: Any, known: set[int], path: str, depth: int = 3) -> Iterator[tuple[str, Any]]:
    """Yields (path, item) for the modules and tensors in an attribute whose ids are not in `known`."""
    if isinstance(value, nn.Module | torch.Tensor):
        if id(value) not in known:
            yield path, value
    elif depth and isinstance(value, list | tuple | dict):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from unregistered(item, known, f"{path}[{key!r}]", depth - 1)


@torch.enable_grad()
def check_overfitting(case: Case) -> None:
    trainer, rows = case.build(compile=False), distinct_rows(case)
    model, batch = trainer.model, case.batch(rows)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    config = replace(trainer.config, lr=None, head_lr=None)
    optimizer = torch.optim.AdamW(parameter_groups(model, config), weight_decay=0.0)
    first: dict[str, float] = {}
    start = time.monotonic()
    for step in range(1, 301):
        model.train()
        output = model(batch.inputs, batch.labels)
        losses = {name: loss.item() for name, loss in output.losses.items()}
        # trained weights begin low
        first = first or {name: max(loss, 1.0 if config.init_from else 0.0) for name, loss in losses.items()}
        optimizer.zero_grad()
        output.total_loss.backward()
        optimizer.step()
        is_low = step % 10 == 0 and all(losses[name] < 0.1 * first[name] for name in losses)
        if is_low and min(accuracies(model, batch).values(), default=1.0) >= 0.95:
            break
        if time.monotonic() - start > SECONDS and max(losses[name] / first[name] for name in losses) < 0.9:
            raise Skipped(f"the losses fell in {step} steps ({SECONDS} s), but this model needs more time")
    case.overfitted = model
    for name, accuracy in accuracies(model, batch).items():
        if accuracy > 0.89 and (losses[name] < 0.35 * first[name] or config.label_smoothing > 0):
            continue
        if any(p.requires_grad for p in model.encoder.parameters()):
            change = f"{losses[name]:.3g} (initially {first[name]:.3g}) after {step} steps on {len(rows)} texts"
            advice = "; loss and decode disagree" if losses[name] < 0.2 * first[name] else ""
            raise Failed(f"{name!r}: the loss is {change}, and {accuracy:.0%} of the answers are right{advice}")
        case.notes.append(f"{name!r}: with the frozen encoder {accuracy:.0%} of {len(rows)} texts are right")


def distinct_rows(case: Case) -> list[int]:
    """Returns up to NUM_TEXTS rows, labelled ones first, with distinct texts, as equal ones may differ in labels."""
    by_text: dict[tuple[int, ...], int] = {}
    for row in sorted(range(len(case.data.lengths)), key=lambda row: (-case.num_labels(row), case.data.lengths[row])):
        by_text.setdefault(tuple(case.data.batch([row]).inputs["input_ids"][0].tolist()), row)
    return list(by_text.values())[:NUM_TEXTS]


@torch.no_grad()
def accuracies(model: MyModel, batch: Batch) -> dict[str, float]:
    """Returns {task: share of labels predicted correctly in eval mode}, as counted by the head."""
    model.eval()
    decoded = model.decode(model(batch.inputs).logits, batch.inputs)
    heads = model.output_layer.heads
    counts = {name: heads[name].hits(*answer, batch.labels[name]) for name, answer in decoded.items()}
    return {name: hits / num_labels for name, (hits, num_labels) in counts.items() if num_labels}


def check_labels_unseen(case: Case) -> None:
    model = copy.deepcopy(case.overfitted or case.trained).eval()
    batch = case.batch(distinct_rows(case))
    permuted = {name: labels.roll(1, 0) for name, labels in batch.labels.items()}
    plain = logits_of(model, batch.inputs)
    for labels in (batch.labels, permuted, without_labels(batch).labels):
        with_labels = logits_of(model, batch.inputs, labels)
        require_same("with other labels for the same texts", plain, with_labels, tolerance=1e-5)
