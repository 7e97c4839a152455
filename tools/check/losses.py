"""Checks of the outputs and losses of the heads."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch

from data_loader import Batch, without_labels
from model_utils import MyModel
from tools.check.case import Case, Failed, Skipped, has_label, is_usable, shorten


def check_shapes(case: Case) -> None:
    model, batch = case.model_and_batch(7)
    output = model(batch.inputs, batch.labels)
    for name, head in model.output_layer.heads.items():
        logits, labels = output.logits[name], batch.labels[name]
        if not is_usable(logits):
            raise Failed(f"the logits of {name!r} are not finite")
        if wrong := (wrong_spans if head.finds_spans else wrong_labels)(head, logits, batch):
            raise Failed(f"{name!r}: decode {wrong}")
        weights = head.label_weights(labels, batch.inputs)
        if weights.dtype == torch.bool and (weights & ~has_label(labels).view_as(weights)).any():
            raise Failed(f"{name!r}: label_mask includes missing labels")


def wrong_labels(head: Any, logits: torch.Tensor, batch: Batch) -> str | None:
    """Returns a description of an error of `decode` on the given, random or extreme logits, or None."""
    labels = head.task.labels
    seen: set[int] = set()
    shape = batch.inputs["word_mask"].shape if head.by_words else batch.rows.shape
    for chosen in (logits, 10 * torch.randn_like(logits), *extreme_logits(logits)):
        decoded, probabilities = head.decode(chosen, batch.inputs)
        if decoded.shape[: len(shape)] != shape:
            return f"returns predictions of shape {tuple(decoded.shape)}, not {tuple(shape)}"
        if not ((probabilities >= 0) & (probabilities <= 1 + 1e-5)).all():
            return "returns probabilities that are not between 0 and 1"
        if labels and not decoded.is_floating_point() and decoded.dtype != torch.bool:
            if decoded.min() < 0 or decoded.max() >= len(labels):
                return f"returns label {int(decoded.max())} of {len(labels)}; the head must have one logit per label"
            seen |= set(decoded.flatten().tolist())
        for label, probability in zip(decoded.tolist(), probabilities.tolist()):
            head.to_labels(label, probability)
    if seen and logits.ndim == 2 and len(seen) < len(labels):
        return f"never returns {labels[min(set(range(len(labels))) - seen)]!r} for any of the tested logits"
    return None


def extreme_logits(logits: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yields logits (B, C) in which one class, or the first classes, dominate. Together, they cover all labels."""
    if logits.ndim == 2:
        size = logits.shape[1]
        signs = torch.cat([2 * torch.eye(size) - 1, 1 - 2 * torch.ones(size + 1, size).triu()]).to(logits.device)
        for start in range(0, len(signs), len(logits)):
            yield 10 * signs[torch.arange(start, start + len(logits)).clamp(max=len(signs) - 1)]


def wrong_spans(head: Any, logits: torch.Tensor, batch: Batch) -> str | None:
    """Returns a description of an error of `decode` on the given or random logits of spans or relations, or None."""
    sizes = batch.inputs["word_mask"].sum(1).tolist()
    for chosen in (logits, 10 * torch.randn_like(logits)):
        decoded, probabilities = head.decode(chosen, batch.inputs)
        if len(decoded) != len(sizes):
            return f"returns predictions for {len(decoded)} texts, not for {len(sizes)}"
        for size, items, probability in zip(sizes, decoded, probabilities):
            if not all(0 <= p <= 1 for p in probability):
                return "returns probabilities that are not between 0 and 1"
            for *places, label in items:
                for first, last in zip(places[::2], places[1::2]):
                    if not 0 <= first <= last < size:
                        return f"returns the span {first} to {last} in a text of {size} words"
                if not 0 <= label < len(head.task.labels):
                    return f"returns label {label} of {len(head.task.labels)}"
            head.to_labels(items, probability)
    return None


def check_first_loss(case: Case) -> None:
    model, batch = copy.deepcopy(case.trainer.model).eval(), case.batch(case.rows)
    output = model(batch.inputs, batch.labels)
    for name, loss in output.losses.items():
        head, labels = model.output_layer.heads[name], batch.labels[name]
        kind = head.task.type
        if not torch.isfinite(loss):
            raise Failed(f"the loss of {name!r} is {loss.item():g}")
        if case.trainer.config.init_from:
            continue  # the weights are already trained
        if not has_label(labels).any() or kind not in ("classification", "tagging", "multilabel", "regression"):
            continue
        if kind == "multilabel" and case.trainer.config.class_weights == "balanced":
            continue  # the weights of rare labels are unbounded
        expected, shown = expected_first_loss(head, labels)
        minimum = 0.0 if kind == "regression" else 0.4 * expected
        if minimum <= loss.item() <= 2.5 * expected + 0.3:
            continue
        factor = factor_of_cross_entropy(head, output.logits[name], batch, name)
        if head.first_loss is None and factor and not 0.4 <= factor <= 2.5:
            raise Failed(f"the loss of {name!r} is {factor:.3g} times the cross-entropy; are weights normalised twice?")
        if head.first_loss is not None or not is_another_loss(model, head, batch, name, loss.item()):
            advice = "if it is not a cross-entropy, set first_loss in the head"
            raise Failed(f"the loss of {name!r} starts at {loss.item():.3g}, not {shown}; {advice}")


def factor_of_cross_entropy(head: Any, logits: torch.Tensor, batch: Batch, name: str) -> float | None:
    """Returns the mean ratio of loss to cross-entropy over the rows, or None if the loss is not a multiple of the
    cross-entropy, that is, if the ratio depends on the logits."""
    labels = batch.labels[name]
    if labels.ndim > 1 or labels.is_floating_point() or logits.ndim != 2 or head.compares_rows:
        return None
    factors = []
    for chosen in (logits, torch.randn_like(logits)):
        entropy = torch.nn.functional.cross_entropy(chosen, labels, reduction="none")
        alone = [select(batch, [row]) for row in range(len(labels)) if has_label(labels[row])]
        losses = [head.loss(chosen[row : row + 1], one.labels[name], one.inputs) for row, one in enumerate(alone)]
        factors.append(torch.stack(losses) / entropy[: len(losses)])
    return float(factors[0].mean()) if torch.allclose(factors[0], factors[1], rtol=1e-2) else None


def is_another_loss(model: MyModel, head: Any, batch: Batch, name: str, first: float) -> bool:
    """Returns whether the first loss is plausible for a loss other than cross-entropy: it is close to the loss of zero
    logits, or the logits are bounded (angles with a margin) or not positive (distances)."""
    hidden = model.encode(batch.inputs)
    count = model.count_labels(batch.inputs, batch.labels)[name].clamp(min=1)
    logits = model.output_layer(hidden, batch.inputs)[name]
    without = float(head.loss(torch.zeros_like(logits), batch.labels[name], batch.inputs) / count)
    if 0.4 * without <= first <= 2.5 * without + 0.3:
        return True
    scaled = model.output_layer(7 * hidden, batch.inputs)[name]
    return torch.allclose(logits, scaled, rtol=1e-3, atol=1e-3) or bool((logits <= 0).all())


def expected_first_loss(head: Any, labels: torch.Tensor) -> tuple[float, str]:
    """Returns (loss of random guessing, description of it)."""
    task = head.task
    if head.first_loss is not None:
        return head.first_loss, f"near {head.first_loss:g}"
    if task.type == "regression":
        targets = (labels[has_label(labels)] - task.mean) / task.std
        return float((targets**2).mean()) + 0.3, "about the variance of the labels"
    size = 2 if task.type == "multilabel" else len(task.labels)
    focus = (1 - 1 / size) ** getattr(head, "focal_gamma", 0.0)
    return math.log(size) * focus, f"near ln {size} = {math.log(size):.2f}" + " x focal" * (focus < 1)


def check_mean_loss(case: Case) -> None:
    skip_if_rows_are_compared(case)
    model, batch = case.model_and_batch()
    doubled = select(batch, 2 * list(range(len(batch.rows))))
    once, twice = [model(one.inputs, one.labels).total_loss for one in (batch, doubled)]
    if not abs(twice - once) <= 1e-3 * abs(once):
        change = f"from {once.item():.4g} to {twice.item():.4g}"
        raise Failed(f"the loss changes {change} when the batch contains each text twice")


def skip_if_rows_are_compared(case: Case) -> None:
    """Raises Skipped if losses depend on other rows of the batch by design, as in contrastive learning."""
    if names := [name for name, head in case.trained.output_layer.heads.items() if head.compares_rows]:
        raise Skipped(f"the loss of {shorten(names)} compares the rows of a batch, so it depends on --batch_size")


def select(batch: Batch, rows: list[int]) -> Batch:
    """Returns rows of a batch in the given order, with unchanged padding."""
    inputs, labels = [{name: tensor[rows] for name, tensor in side.items()} for side in (batch.inputs, batch.labels)]
    return Batch(inputs, labels, batch.rows[rows])


@torch.enable_grad()
def check_accumulation(case: Case) -> None:
    skip_if_rows_are_compared(case)
    model, batch = case.model_and_batch(9)
    rows = list(range(len(batch.rows)))
    if len(rows) < 2:
        raise Skipped("the data has only one row")
    counts = model.count_labels(batch.inputs, batch.labels)
    losses, gradients = [], []
    for row_groups in ([rows], [rows[: len(rows) // 2], rows[len(rows) // 2 :]]):
        model.zero_grad()
        group = [select(batch, chosen) for chosen in row_groups]
        outputs = [model(one.inputs, one.labels, counts).total_loss for one in group]
        with torch.backends.cudnn.flags(enabled=False):  # cuDNN's LSTM has no backward pass in eval mode
            for loss in outputs:
                loss.backward()
        losses.append(sum(loss.item() for loss in outputs))
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    gap = float((gradients[0] - gradients[1]).norm() / gradients[0].norm().clamp(min=1e-12))
    if not (abs(losses[0] - losses[1]) <= 1e-3 * abs(losses[0]) and gap <= 1e-2):
        values = f"{losses[0]:.4g} in one batch and {losses[1]:.4g} in two micro-batches"
        raise Failed(f"the loss is {values}, and the gradients differ by {gap:.1%}")


@torch.enable_grad()
def check_no_labels(case: Case) -> None:
    model, batch = case.model_and_batch(4, training=True)
    loss = model(batch.inputs, without_labels(batch).labels).total_loss
    if loss != 0:
        raise Failed(f"texts without labels have a loss of {loss.item():g}, not 0")
    if loss.requires_grad:
        loss.backward()
    if wrong := [name for name, p in model.named_parameters() if p.grad is not None and not (p.grad == 0).all()]:
        raise Failed(f"texts without labels cause gradients of {shorten(wrong)}; look for NaN in torch.where")
