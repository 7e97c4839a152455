"""The checks of `main.py --debug`: does an edited model still have the properties that every model must have?

A check is a function of a Case that returns None or a description of the error; its entry in CHECKS has its name and
what to inspect if it fails. An exception is a failure too. Add checks here for properties of your own model.
"""

import copy
import json
import logging
import math
import random
import subprocess
import tempfile
import time
import traceback
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from engine.errors import UserError
from engine.model import lora
from engine.model.encoders import is_causal, num_positions
from engine.predict.predictions import prediction_row
from engine.run.command_line import first_line
from engine.run.device import random_state, set_random_state
from engine.run.files import write_json
from engine.run.signals import Interrupted, StopSignals
from engine.task.tags import IGNORE, is_tagging
from engine.train import checkpoint
from engine.train.optimization import default_lr, parameter_groups
from engine.tricks.trick import Trick

logger = logging.getLogger("template")
MIXES_PADDING = ("fnet", "convbert", "nystromformer", "yoso")  # families whose answers depend on padding by design
BY_HEART, SECONDS = 20, 25  # texts to overfit, and the time limit for it in seconds
ROOT = Path(__file__).resolve().parents[2]


class Skipped(Exception):
    """Raised by a check that does not apply, with the reason."""


class Check(NamedTuple):
    name: str  # the property that holds if it passes
    run: object  # function(Case) -> None or the error
    look_at: str


@dataclass
class Case:
    """What is checked.

    build(**changes): a new Trainer with the user's options and these changes; data, tokenizer and seed are those of the
    run. data: a MyDataset of some rows of train. best: the checkpoint of the trial run, or None. command: the command
    that starts main.py.
    """

    build: object
    data: object
    best: Path | None
    command: list
    notes: list = field(default_factory=list)  # unusual behaviour that is by design
    learnt: nn.Module | None = None  # the model that was overfitted to some texts
    other: object = None  # OtherProcess

    @cached_property
    def trainer(self):
        """A new trainer with an untrained model."""
        return self.build(compile=False)

    @cached_property
    def trained(self):
        """The model with the weights of the trial run, or an untrained one. Copy it before changing it."""
        model = copy.deepcopy(self.trainer.model)
        if self.best is not None:
            with suppress(UserError):  # another check reports a checkpoint that cannot be loaded
                checkpoint.load_weights(model, self.best)
        return in_full_precision(model)

    @property
    def heads(self):
        return self.trainer.model.output_layer.heads

    def model_and_batch(self, num_rows):
        """A copy of the trained model in eval mode, and a batch for it."""
        return copy.deepcopy(self.trained).eval(), self.batch(self.rows[:num_rows])

    def batch(self, rows):
        return self.data.batch(list(rows)).to(self.trainer.device)

    @cached_property
    def rows(self):
        """Up to 16 rows that leave room for padding; those with labels of the most tasks come first."""
        room = min(self.data.featurizer.max_length, num_positions(self.trained.encoder) or 10**6) - 8
        short = [row for row in range(len(self.data.lengths)) if self.data.lengths[row] <= room]
        return sorted(short or range(len(self.data.lengths)), key=lambda row: -self.num_labels(row))[:16]

    def num_labels(self, row):
        return sum(bool(has_label(labels).any()) for labels in self.data.batch([row]).labels.values())


def in_full_precision(model):
    """The model with its encoder in fp32, so that bf16 rounding is not reported as an error."""
    model.encoder.float()
    return model


def has_label(labels):
    return ~labels.isnan() if labels.is_floating_point() else labels != IGNORE


def answers_of(model, batch, with_labels=False):
    """{task: logits} without the positions of padding words."""
    output = model(batch.inputs, batch.labels if with_labels else None)
    heads = model.output_layer.heads
    return {name: heads[name].real_logits(logits, batch.inputs) for name, logits in output.logits.items()}


def difference(first, second, tolerance=1e-3):
    """None, or a message with the first task whose logits differ, and their relative difference."""
    for name, logits in first.items():
        gap = float((logits - second[name]).abs().max() / logits.abs().max().clamp(min=1e-6)) if logits.numel() else 0.0
        if not gap <= tolerance:
            return f"the logits of {name!r} differ by {gap:.1%} of their size"


def rows_of(batch, keep):
    """A Batch of these rows in this order, with the same padding."""
    keep = torch.tensor(list(keep))
    parts = [{name: tensor[keep.to(tensor.device)] for name, tensor in part.items()} for part in batch[:2]]
    return type(batch)(*parts, batch.rows[keep])


def padded(batch, pad_id, more):
    """The same texts with `more` additional padding tokens."""
    fill = {"input_ids": pad_id}
    inputs = {
        name: nn.functional.pad(tensor, (0, more), value=fill.get(name, 0)) if name != "extras" else tensor
        for name, tensor in batch.inputs.items()
    }
    labels = {
        name: nn.functional.pad(labels, (0, more), value=IGNORE) if labels.shape == batch_words(batch) else labels
        for name, labels in batch.labels.items()
    }
    return type(batch)(inputs, labels, batch.rows)


def batch_words(batch):
    return batch.inputs["word_mask"].shape if "word_mask" in batch.inputs else None


def with_other_labels(batch):
    """The same texts, each with the labels of another."""
    return batch._replace(labels={name: labels.roll(1, 0) for name, labels in batch.labels.items()})


def without_labels(batch):
    """The same texts without labels."""
    missing = {
        name: torch.full_like(labels, math.nan if labels.is_floating_point() else IGNORE)
        for name, labels in batch.labels.items()
    }
    return batch._replace(labels=missing)


# ---- heads and losses ------------------------------------------------------------------------------------------------


@torch.no_grad()
def check_shapes(case):
    model, batch = case.model_and_batch(7)
    output = model(batch.inputs, batch.labels)
    for name, head in model.output_layer.heads.items():
        logits = output.logits[name]
        if not torch.isfinite(logits).all():
            return f"the logits of {name!r} are not finite"
        wanted = batch_words(batch) if head.level == "words" else (len(batch.rows),)
        if wrong := wrong_answers(head, logits, batch.inputs, wanted):
            return f"{name!r}: {wrong}"
        labels = batch.labels[name]
        weights = head.label_weights(labels, batch.inputs)
        if weights.dtype == torch.bool and (weights & ~has_label(labels).view_as(weights)).any():
            return f"{name!r}: label_mask counts missing labels"
    return None


def wrong_answers(head, logits, inputs, wanted):
    """The error in the answers that `decode` gives for these logits and for random ones, or None."""
    labels, seen = head.task["labels"], set()
    if head.finds_spans:
        return wrong_spans(head, logits, inputs)
    for chosen in (logits, 10 * torch.randn_like(logits), *extreme_logits(logits)):
        answers, probabilities = head.decode(chosen, inputs)
        if answers.shape[: len(wanted)] != wanted:
            return f"decode gives answers of shape {tuple(answers.shape)}, not {tuple(wanted)}"
        if not ((probabilities >= 0) & (probabilities <= 1 + 1e-5)).all():
            return "decode gives probabilities that are not between 0 and 1"
        if labels and not answers.is_floating_point() and answers.dtype != torch.bool:
            if answers.min() < 0 or answers.max() >= len(labels):
                return (
                    f"decode gives label {int(answers.max())} of {len(labels)}: does the head have one logit per label?"
                )
            seen |= set(answers.flatten().tolist())
        for answer, probability in zip(answers.tolist(), probabilities.tolist()):
            head.to_labels(answer, probability)
    if seen and logits.ndim == 2 and len(seen) < len(labels):
        return f"decode never gives {labels[min(set(range(len(labels))) - seen)]!r}, for any logits"
    return None


def extreme_logits(logits):
    """Yields logits (B, C) with one class, or the first classes, far above the rest: decode must give every label."""
    if logits.ndim == 2:
        size = logits.shape[1]
        signs = torch.cat([2 * torch.eye(size) - 1, 1 - 2 * torch.ones(size + 1, size).triu()]).to(logits.device)
        for start in range(0, len(signs), len(logits)):
            rows = [min(start + i, len(signs) - 1) for i in range(len(logits))]
            yield 10 * signs[rows]


def wrong_spans(head, logits, inputs):
    """The error in the spans that `decode` finds in these logits and in random ones, or None."""
    sizes = inputs["word_mask"].sum(1).tolist()
    for chosen in (logits, 10 * torch.randn_like(logits)):
        answers, probabilities = head.decode(chosen, inputs)
        if len(answers) != len(sizes):
            return f"decode gives answers for {len(answers)} texts, not for {len(sizes)}"
        for size, answer, probability in zip(sizes, answers, probabilities):
            if not all(0 <= p <= 1 for p in probability):
                return "decode gives probabilities that are not between 0 and 1"
            for first, last, _ in answer:
                if not 0 <= first <= last < size:
                    return f"decode gives the span {first} to {last} in a text of {size} words"
            head.to_labels(answer, probability)
    return None


@torch.no_grad()
def check_first_loss(case):
    model, batch = copy.deepcopy(case.trainer.model).eval(), case.batch(case.rows)
    losses, config = model(batch.inputs, batch.labels).losses, case.trainer.config
    for name, loss in losses.items():
        task, labels = case.heads[name].task, batch.labels[name]
        if not torch.isfinite(loss):
            return f"the loss of {name!r} is {loss.item():g}"
        if not has_label(labels).any() or task["type"] not in ("classification", "tagging", "multilabel", "regression"):
            continue
        if task["type"] == "multilabel" and config.class_weights == "balanced":
            continue  # the weights of rare labels are unbounded
        if case.heads[name].first_loss is not None:
            expected, shown = case.heads[name].first_loss, f"near {case.heads[name].first_loss:g}"
        elif task["type"] == "regression":
            targets = (labels[has_label(labels)] - task["mean"]) / task["std"]
            expected, shown = float((targets**2).mean()) + 0.3, "about the variance of the labels"
        else:
            size = 2 if task["type"] == "multilabel" else len(task["labels"])
            focus = (1 - 1 / size) ** getattr(case.heads[name], "focal_gamma", 0.0)
            expected, shown = (
                math.log(size) * focus,
                f"near ln {size} = {math.log(size):.2f}" + " x focal" * (focus < 1),
            )
        least = 0.0 if task["type"] == "regression" else 0.4 * expected
        if not least <= loss.item() <= 2.5 * expected + 0.3:
            other = "if it is not a cross-entropy, set first_loss in the head"
            return f"the loss of {name!r} starts at {loss.item():.3g}, not {shown}; {other}"
    return None


@torch.no_grad()
def check_mean_loss(case):
    skip_if_rows_are_compared(case)
    model, batch = case.model_and_batch(8)
    once = model(batch.inputs, batch.labels).total_loss
    twice = rows_of(batch, 2 * list(range(len(batch.rows))))
    again = model(twice.inputs, twice.labels).total_loss
    if not abs(again - once) <= 1e-3 * abs(once):
        return f"with each text twice in the batch the loss is {again.item():.4g}, with each once {once.item():.4g}"
    return None


def skip_if_rows_are_compared(case):
    """Skips the check if the loss of a row depends on other rows by design, as in contrastive learning."""
    names = [name for name, head in case.heads.items() if head.compares_rows]
    if names:
        raise Skipped(f"the loss of {shorten(names)} compares the rows of a batch, so it depends on --batch_size")


def check_accumulation(case):
    skip_if_rows_are_compared(case)
    model, batch = case.model_and_batch(9)
    rows = list(range(len(batch.rows)))
    if len(rows) < 2:
        raise Skipped("there is only one row")
    counts = {name: count.to(case.trainer.device) for name, count in model.count_labels(*batch[:2]).items()}
    losses, gradients = [], []
    for parts in ([rows], [rows[: len(rows) // 2], rows[len(rows) // 2 :]]):
        model.zero_grad()
        group = [rows_of(batch, part) for part in parts]
        outputs = [model(part.inputs, part.labels, counts).total_loss for part in group]
        with torch.backends.cudnn.flags(enabled=False):  # cuDNN's LSTM has no backward pass in eval mode
            for loss in outputs:
                loss.backward()
        losses.append(sum(loss.item() for loss in outputs))
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    gap = float((gradients[0] - gradients[1]).norm() / gradients[0].norm().clamp(min=1e-12))
    if not (abs(losses[0] - losses[1]) <= 1e-3 * abs(losses[0]) and gap <= 1e-2):
        parts = f"the same batch in two parts {losses[1]:.4g}, and the gradients differ by {gap:.1%}"
        return f"one batch has a loss of {losses[0]:.4g}, {parts}"
    return None


def check_no_labels(case):
    model, batch = copy.deepcopy(case.trained).train(), without_labels(case.batch(case.rows[:4]))
    loss = model(batch.inputs, batch.labels).total_loss
    if loss != 0:
        return f"texts without labels have a loss of {loss.item():g}, not 0"
    if loss.requires_grad:
        loss.backward()
    wrong = [name for name, p in model.named_parameters() if p.grad is not None and not (p.grad == 0).all()]
    return f"texts without labels give {shorten(wrong)} a gradient: is it NaN behind torch.where?" if wrong else None


# ---- trained parameters ----------------------------------------------------------------------------------------------


def check_gradients(case):
    model, config = copy.deepcopy(case.trained).train(), case.trainer.config
    for start in range(0, len(case.data.lengths), 16):
        batch = case.batch(range(start, min(start + 16, len(case.data.lengths))))
        model(batch.inputs, batch.labels).total_loss.backward()
    if cut := tasks_cut_off(model, batch):
        return cut
    named = dict(model.named_parameters())
    if frozen := [name for name, p in named.items() if not p.requires_grad and p.grad is not None]:
        return f"{frozen[0]} is frozen, but has a gradient"
    still = [name for name, p in named.items() if not p.requires_grad]
    if lora.base_of(model):
        still = [name for name in still if not name.startswith("encoder.") or lora.is_adapter(name)]
        base = [name for name, p in named.items() if p.requires_grad and name.startswith("encoder.")]
        if thawed := [name for name in base if not lora.is_adapter(name)]:
            return f"{shorten(thawed)} of the base model are trained, though only LoRA's matrices should be"
    if still and not (config.freeze_layers or config.unfreeze_layers):
        return f"{shorten(still)} are frozen, though --freeze_layers is 0"
    if odd := [name for name, p in named.items() if p.grad is not None and not torch.isfinite(p.grad).all()]:
        return f"the gradient of {shorten(odd)} is not finite"
    if zero := [name for name, p in named.items() if p.grad is not None and not p.grad.any()]:
        case.notes.append(f"{shorten(zero)} get a gradient of zero: maybe these rows have none of their labels")
    idle = [name for name, p in named.items() if p.requires_grad and p.grad is None]
    inside = [name for name in idle if name.startswith("encoder.")]
    if (
        inside
        and len(inside) < sum(name.startswith("encoder.") for name in named) / 2
        and is_of_a_library(model.encoder)
    ):
        case.notes.append(f"{shorten(inside)} of this encoder get no gradient; some families have unused parts")
        idle = [name for name in idle if name not in inside]
    if idle:
        return f"{shorten(idle)} get no gradient"
    learnt = {id(p) for group in case.trainer.optimizer.param_groups for p in group["params"]}
    forgotten = [name for name, p in case.trainer.model.named_parameters() if p.requires_grad and id(p) not in learnt]
    return f"the optimizer does not have {shorten(forgotten)}" if forgotten else None


def tasks_cut_off(model, batch):
    """An error if the loss of a task gives the encoder no gradient, or None."""
    encoder = [p for p in model.encoder.parameters() if p.requires_grad]
    for name, loss in model(batch.inputs, batch.labels).losses.items():
        if encoder and has_label(batch.labels[name]).any():
            gradients = torch.autograd.grad(loss, encoder, retain_graph=True, allow_unused=True)
            if not any(gradient is not None and gradient.any() for gradient in gradients):
                return f"the loss of {name!r} gives the encoder no gradient"
    return None


def shorten(names):
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def is_of_a_library(module):
    return type(module).__module__.split(".")[0] in ("transformers", "torch", "peft")


def check_registered(case):
    model = case.trainer.model
    known = {id(item) for item in (*model.modules(), *model.parameters(), *model.buffers())}
    for name, module in model.named_modules():
        if not is_of_a_library(module):
            for attribute, value in vars(module).items():
                if attribute not in ("_parameters", "_buffers", "_modules") and not attribute.startswith("_forward"):
                    for place, item in unregistered(value, known, f"{name or 'the model'}.{attribute}"):
                        kind = "a module" if isinstance(item, nn.Module) else "a tensor"
                        return f"{place} is not registered: {kind} in a plain attribute is not saved, moved or trained"
    return None


def unregistered(value, known, place, depth=3):
    """Yields (path, item) for modules and tensors in an attribute that are not in `known`."""
    if isinstance(value, nn.Module | torch.Tensor):
        if id(value) not in known:
            yield place, value
    elif depth and isinstance(value, list | tuple | dict):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from unregistered(item, known, f"{place}[{key!r}]", depth - 1)


def check_by_heart(case):
    trainer, rows = case.build(compile=False), distinct_rows(case)
    model, batch = trainer.model, case.batch(rows)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    config = copy.copy(trainer.config)
    config.lr, config.head_lr = default_lr(model, config), None
    optimizer = torch.optim.AdamW(parameter_groups(model, config), weight_decay=0.0)
    first, began = {}, time.monotonic()
    for step in range(1, 301):
        model.train()
        output = model(batch.inputs, batch.labels)
        losses = {name: loss.item() for name, loss in output.losses.items()}
        first = first or losses
        optimizer.zero_grad()
        output.total_loss.backward()
        optimizer.step()
        learnt = step % 10 == 0 and all(losses[name] < 0.1 * first[name] for name in losses)
        if learnt and min(shares_right(model, batch).values(), default=1.0) >= 0.95:
            break
        if time.monotonic() - began > SECONDS and max(losses[name] / first[name] for name in losses) < 0.9:
            raise Skipped(f"the losses fell in {step} steps ({SECONDS} s), but this model needs more time")
    case.learnt = model
    for name, right in shares_right(model, batch).items():
        fallen = losses[name] < 0.35 * first[name] or config.label_smoothing > 0
        if right > 0.89 and fallen:
            continue
        if not any(p.requires_grad for p in model.encoder.parameters()):
            case.notes.append(f"{name!r}: with the frozen encoder {right:.0%} of {len(rows)} texts are right")
            continue
        told = (
            f"{name!r}: after {step} steps on {len(rows)} texts the loss is {losses[name]:.3g}, first {first[name]:.3g}"
        )
        told += f", with {right:.0%} of the answers right"
        return f"{told}: loss and decode disagree" if losses[name] < 0.2 * first[name] else told
    return None


def distinct_rows(case):
    """Up to BY_HEART rows with different texts, as equal ones may have different labels; rows with labels first."""
    seen, rows = set(), []
    for row in sorted(range(len(case.data.lengths)), key=lambda row: (-case.num_labels(row), case.data.lengths[row])):
        ids = tuple(case.data.batch([row]).inputs["input_ids"][0].tolist())
        if ids not in seen and len(rows) < BY_HEART:
            seen.add(ids)
            rows.append(row)
    return rows


@torch.no_grad()
def shares_right(model, batch):
    """{task: share of its labels that are predicted}, as counted by the head."""
    model.eval()
    shares = {}
    for name, found in model.decode(model(batch.inputs).logits, batch.inputs).items():
        hits, there = model.output_layer.heads[name].hits(*found, batch.labels[name])
        if there:
            shares[name] = hits / there
    return shares


# ---- what answers may depend on --------------------------------------------------------------------------------------


@torch.no_grad()
def check_padding(case):
    model, rows = copy.deepcopy(case.trained).eval(), case.rows[:8]
    batch = case.batch(rows)
    together, width = answers_of(model, batch), batch.inputs["input_ids"].shape[1]
    more = min(8, (num_positions(model.encoder) or 10**6) - width)
    wrong = difference(together, answers_of(model, padded(batch, case.data.pad_id, more)))
    if wrong is None:
        alone = [answers_of(model, case.batch([row])) for row in rows]
        by_task = {name: torch.cat([answers[name] for answers in alone]) for name in together}
        wrong = difference(by_task, together)
    if wrong and (family := padding_mixer(model.encoder)):
        case.notes.append(
            f"{family} mixes padding into its answers by design, so a text alone and in a batch differ: {wrong}"
        )
        return None
    return wrong and f"with {more} more padding tokens, or alone instead of in a batch, {wrong}"


def padding_mixer(encoder):
    """The encoder's family if its answers depend on padding by design, or None."""
    family = getattr(getattr(encoder, "config", None), "model_type", None)
    return family if family in MIXES_PADDING else None


@torch.no_grad()
def check_order(case):
    model, batch = case.model_and_batch(8)
    order = list(range(len(batch.rows)))[::-1]
    turned = rows_of(batch, order)
    first, second = model(batch.inputs).logits, model(turned.inputs).logits
    wrong = difference({name: logits[order] for name, logits in first.items()}, second)
    return wrong and f"with the texts in another order {wrong}"


@torch.no_grad()
def check_other_rows(case):
    model, batch = copy.deepcopy(case.trained), case.batch(case.rows[:8])
    device = case.trainer.device
    inputs = {name: tensor.clone() for name, tensor in batch.inputs.items()}
    inner = inputs["attention_mask"].bool()
    inner[0] = False
    generator = torch.Generator().manual_seed(0)
    ids = batch.inputs["input_ids"][batch.inputs["attention_mask"].bool()]
    drawn = torch.randint(len(ids), (int(inner.sum()),), generator=generator).to(device)
    inputs["input_ids"][inner] = ids[drawn]
    if "extras" in inputs:
        inputs["extras"][1:] += 1.0
    other = batch._replace(inputs=inputs)
    for mode in (False, True):
        model.train(mode)
        state, seen = random_state(device), []
        for one in (batch, other):
            set_random_state(state, device)
            logits = model(one.inputs).logits
            seen.append({name: value[:1] for name, value in logits.items()})
        if wrong := difference(*seen):
            return f"{'in training' if mode else 'in evaluation'}, when the other texts of a batch change, {wrong}"
    model.train()
    one = case.batch(case.rows[:1])
    loss = model(one.inputs, one.labels).total_loss
    return None if torch.isfinite(loss) else f"a batch of one text has a loss of {loss.item():g}"


@torch.no_grad()
def check_later_words(case):
    """For causal encoders: later tokens must not change earlier hidden states."""
    model, batch = case.model_and_batch(4)
    if not is_causal(model.encoder):
        raise Skipped("the encoder is not causal")
    changed = batch.inputs["input_ids"].clone()
    last = batch.inputs["attention_mask"].sum(1) - 1
    changed[range(len(changed)), last] = changed[:, 0]
    first, second = model.encode(batch.inputs), model.encode(batch.inputs | {"input_ids": changed})
    earlier = torch.arange(first.shape[1], device=first.device) < last[:, None]
    gap = (first - second)[earlier].abs().max()
    return None if gap < 1e-3 else "another last token changes the hidden states of earlier ones"


@torch.no_grad()
def check_determinism(case):
    model, batch, seen = copy.deepcopy(case.trained).eval(), case.batch(case.rows[:8]), []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            random.seed(seed)
            seen.append(answers_of(model, batch))
    wrong = difference(*seen, tolerance=1e-5)
    return wrong and f"between two runs of the same batch {wrong}"


@torch.no_grad()
def check_labels_unseen(case):
    model = copy.deepcopy(case.learnt or case.trained).eval()
    batch = case.batch(distinct_rows(case))
    permuted = with_other_labels(batch)
    plain = answers_of(model, batch)
    for other in (batch, permuted, without_labels(batch)):
        if wrong := difference(plain, answers_of(model, other, with_labels=True), 1e-5):
            return f"with other labels for the same texts {wrong}"
    return None


@torch.no_grad()
def check_extras(case):
    model, batch = case.model_and_batch(8)
    if "extras" not in batch.inputs:
        raise Skipped("there are no extra columns")
    first, deaf = model(batch.inputs).logits, []
    for number, name in enumerate(case.data.featurizer.extras):
        changed = batch.inputs | {"extras": batch.inputs["extras"].clone()}
        changed["extras"][:, number] += 1.0
        if difference(first, model(changed).logits, tolerance=1e-7) is None:
            deaf.append(name)
    return f"no answer changes when {shorten(deaf)} change: no head reads them" if deaf else None


@torch.no_grad()
def check_inputs_unchanged(case):
    model, batch = copy.deepcopy(case.trained).train(), case.batch(case.rows[:8])
    before = copy.deepcopy(batch)
    output = model(batch.inputs, batch.labels)
    model.decode(output.logits, batch.inputs)
    for part, earlier in zip(batch[:2], before[:2]):
        for name in part.keys() | earlier.keys():
            if (
                name not in part
                or name not in earlier
                or not torch.equal(part[name].nan_to_num(), earlier[name].nan_to_num())
            ):
                return f"forward or decode changes {name!r} of the batch"
    return None


@torch.no_grad()
def check_device(case):
    """With another default device, tensors created without a device cannot be combined with the model's own."""
    model, batch = case.model_and_batch(4)
    model(batch.inputs, batch.labels)  # lets it create its caches on the right device
    try:
        with torch.device("meta"):
            output = model(batch.inputs, batch.labels)
            model.decode(output.logits, batch.inputs)
    except Exception as error:
        place = own_frame(error)
        if place is None:
            raise Skipped(f"it cannot be checked for this encoder ({first_line(error)})") from None
        return f"{place} uses a tensor that was created without a device ({first_line(error)})"
    if odd := [name for name, logits in output.logits.items() if logits.device != case.trainer.device]:
        return f"the logits of {odd[0]!r} are not on the device of the inputs"
    return None


def own_frame(error):
    """ "file:line" of an error in this repository's files, also if torch raised it; None if another library did."""
    in_torch = Path(torch.__file__).parent
    frames = traceback.extract_tb(error.__traceback__)
    last = [frame for frame in frames if not Path(frame.filename).is_relative_to(in_torch)][-1]
    return f"{Path(last.filename).name}:{last.lineno} ({last.line})" if is_own(last.filename) else None


def is_own(filename):
    """Whether a file belongs to this repository, and not to a virtual environment in it."""
    path = Path(filename)
    return path.is_relative_to(ROOT) and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)


@torch.no_grad()
def check_half_precision(case):
    model, batch = case.model_and_batch(8)
    kind, device = case.trainer.dtype or torch.bfloat16, case.trainer.device
    full = answers_of(model, batch)
    with torch.autocast(device.type, kind):
        half = answers_of(model, batch)
    for name, logits in full.items():
        if not torch.isfinite(half[name]).all():
            return f"in {kind} the logits of {name!r} are not finite"
        gap = float((half[name] - logits).abs().mean() / logits.abs().mean().clamp(min=0.3))
        if not gap <= 0.15:
            return f"in {kind} the logits of {name!r} differ by {gap:.0%} from full precision"
    return None


# ---- checkpoints, prediction -----------------------------------------------------------------------------------------


OURS = 1000  # not the number of any signal


class StopAt(Trick):
    """Stops a run after a given step, as a signal does."""

    def __init__(self, trainer, step):
        self.trainer, self.step = trainer, step

    def after_step(self, finite):
        if self.trainer.progress.step + 1 == self.step:
            self.trainer.stop.number = OURS


def check_resume(case):
    config = case.trainer.config
    if case.trainer.device.type == "cuda" and not config.deterministic:
        raise Skipped("on a GPU, equal bytes need --deterministic")
    config.run_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.run_dir) as folder:
        options = dict(output_dir=folder, early_stop_patience=0, compile=False, save_steps=0, save_epoch=0)
        trainer = case.build(**options, model_version="whole")
        steps = trainer.config.epochs * -(-len(trainer.train_loader) // trainer.config.gradient_accumulation_steps)
        if steps < 3:
            raise Skipped(f"{steps} steps are too few to stop and resume")
        half, whole = 1, min(3, steps - 1)
        run_until(trainer, whole)
        run_until(case.build(**options, model_version="stopped"), half)
        again = case.build(**options, model_version="stopped")
        with torch.no_grad():
            for name in dict(again.model.named_parameters()).keys() & lora.kept_tensors(again.model).keys():
                again.model.get_parameter(name).zero_()  # so that they come from the checkpoint
        run_until(again, whole)
        name = f"step_{whole:08d}"
        manifests = [
            json.loads((run.checkpoints / name / "manifest.json").read_text(encoding="utf-8"))
            for run in (trainer, again)
        ]
    differ = [
        file for file in manifests[0] if file.endswith(".safetensors") and manifests[0][file] != manifests[1][file]
    ]
    told = f"after a stop at step {half} and a resume, {', '.join(differ)} at step {whole} differ from those of"
    return f"{told} an uninterrupted run" if differ else None


def run_until(trainer, step):
    """Trains up to a step and saves there; starts from the newest checkpoint if there is one."""
    trainer.config.run_dir.mkdir(parents=True, exist_ok=True)
    trainer.tricks.append(StopAt(trainer, step))
    trainer.tracker_kinds = ()
    trainer.resume()
    try:
        trainer.train()
    except Interrupted as stopped:
        if stopped.signal_number != OURS:
            raise


def check_prediction(case):
    trainer = case.build(compile=False)
    in_full_precision(trainer.model).load_state_dict(case.trained.state_dict())
    loader = type(trainer.dev_loader)
    evaluation = trainer.eval(loader(case.data, 64))
    labels = trainer.infer(loader(case.data, 5), "predicting")[0].labels
    for name in labels:
        differ = [i for i, pair in enumerate(zip(labels[name], evaluation.predicted[name])) if not same(*pair)]
        if differ and (family := padding_mixer(trainer.model.encoder)):
            case.notes.append(f"{family} mixes padding into its answers: {len(differ)} depend on the batch size")
            return None
        if differ:
            return f"{len(differ)} of {len(labels[name])} answers for {name!r} differ between batches of 64 and of 5"
    recomputed = trainer.metric_function(evaluation.gold, labels)
    differ = [
        name for name, value in recomputed.items() if not math.isclose(value, evaluation.scores[name], abs_tol=1e-4)
    ]
    return f"{differ[0]} of the evaluation is not that of the predictions" if differ else None


def same(one, other):
    return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-3) if isinstance(one, float) else one == other


class OtherProcess:
    """Evaluates and labels the rows of the check in a new process, from the checkpoint only."""

    def __init__(self, case):
        self.folder = tempfile.TemporaryDirectory()
        data, config = Path(self.folder.name) / "data", case.trainer.config
        data.mkdir()
        rows = [json.dumps(case.data[i], ensure_ascii=False) + "\n" for i in range(len(case.data))]
        for part in ("dev", "test"):
            (data / f"{part}.jsonl").write_text("".join(rows), encoding="utf-8")
        write_json(data / "labels.json", case.trainer.tasks)
        flags = {"data_path": data, "checkpoint": case.best, "output_dir": self.folder.name, "model_version": "other"}
        flags |= {"device": config.device, "precision": config.precision, "predict_output": data / "predictions.jsonl"}
        words = [f"--{name}={value}" for name, value in flags.items()]
        options = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.process = subprocess.Popen([*case.command, "--do_eval", "--do_predict", *words], **options)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        self.folder.cleanup()

    def result(self):
        """(dev scores, rows of the prediction file). Raises UserError if the process failed."""
        _, errors = self.process.communicate()
        if self.process.returncode:
            last = (errors.strip().splitlines() or [f"exit code {self.process.returncode}"])[-1]
            raise UserError(f"a new process cannot use the checkpoint: {last}")
        folder = Path(self.folder.name)
        scores = json.loads((folder / "other/eval.json").read_text(encoding="utf-8"))["dev"]
        rows = (folder / "data/predictions.jsonl").read_text(encoding="utf-8").splitlines()
        return scores, [json.loads(row) for row in rows]


def check_other_process(case):
    if case.other is None:
        raise Skipped("the trial run left no checkpoint")
    scores, rows = case.other.result()
    trainer = case.build(compile=False)
    checkpoint.load_weights(trainer.model, case.best)
    own = trainer.eval(type(trainer.dev_loader)(case.data, 64))
    for name, value in own.scores.items():
        if not math.isclose(value, scores[name], rel_tol=1e-3, abs_tol=1e-4):
            return f"{name} is {value:.4f} here and {scores[name]:.4f} in a new process"
    for name, labels in own.predicted.items():
        column = f"{name}_tags" if is_tagging(trainer.tasks[name]["type"]) else name
        written = [row[column] for row in rows]
        if trainer.model.output_layer.heads[name].finds_spans:
            answers = [{name: (spans, [1.0] * len(spans))} for spans in labels]
            labels = [prediction_row(case.data[i], answer, trainer.tasks)[name] for i, answer in enumerate(answers)]
            written = [[one | {"probability": 1.0} for one in found] for found in written]
        if not all(map(same, labels, written)):
            return f"answers for {name!r} differ from those of a new process"
    return None


CHECKS = [
    Check("shapes, labels and label counts", check_shapes, "the head's forward, decode and label_mask"),
    Check("the first loss is near that of random guessing", check_first_loss, "the head's loss; MyLoss"),
    Check(
        "the loss is a mean over labels", check_mean_loss, "the head's loss: a sum, which MyLoss divides by the count"
    ),
    Check("accumulation equals one batch", check_accumulation, "losses that use other rows of their batch"),
    Check("texts without labels have no loss", check_no_labels, "the head's loss where labels are IGNORE or NaN"),
    Check(
        "every trained parameter gets a gradient, frozen ones none",
        check_gradients,
        ".detach(), .data, no_grad, unused layers",
    ),
    Check("all modules and tensors are registered", check_registered, "nn.ModuleDict, nn.ModuleList, register_buffer"),
    Check(
        f"the model can overfit {BY_HEART} texts",
        check_by_heart,
        "the loss against decode: shifted labels, softmax twice",
    ),
    Check("answers do not depend on the labels", check_labels_unseen, "what forward does with labels"),
    Check("extra columns change the answers", check_extras, "inputs['extras'] in the forward of a head"),
    Check("padding changes nothing", check_padding, "attention_mask in encode, pooling and the head"),
    Check("the order in a batch changes nothing", check_order, "sums and norms over dimension 0"),
    Check("other texts of a batch change nothing", check_other_rows, "BatchNorm; means over dimension 0"),
    Check("later words change nothing for a causal encoder", check_later_words, "the encoder's attention mask"),
    Check("evaluation is deterministic", check_determinism, "F.dropout without training=self.training; random numbers"),
    Check("forward does not change its inputs", check_inputs_unchanged, "methods ending in _, assignments into inputs"),
    Check("the model follows .to(device)", check_device, "torch.zeros, arange, tensor without device="),
    Check("half precision is close to full", check_half_precision, "large constants, sums of many terms, exp"),
    Check("predictions equal evaluation", check_prediction, "decode, where it depends on the batch"),
    Check(
        "resuming equals an uninterrupted run",
        check_resume,
        "values in plain attributes, random numbers of another library",
    ),
    Check("a new process gives the same answers", check_other_process, "what load_checkpoint and build_model rebuild"),
]


@contextmanager
def quiet():
    """Context in which only errors are logged."""
    loggers = [logger, logging.getLogger("transformers")]
    levels = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.ERROR)
        yield
    finally:
        for one, level in zip(loggers, levels):
            one.setLevel(level)


def check_model(case):
    """Runs all checks, and logs a line for each and a summary. -> {name of a failed check: error}

    On SIGTERM and SIGINT it raises Interrupted after the current check.
    """
    failed, skipped = {}, 0
    case.other = OtherProcess(case) if case.best is not None and case.command else None
    try:
        with StopSignals(logger.warning) as stop:
            for number, check in enumerate(CHECKS, 1):
                state, wrong = run_check(check, case)
                told = f"check {number:2d}  {state:7s} {check.name}"
                if state == "FAILED":
                    failed[check.name] = wrong
                    logger.error(f"{told}: {wrong}. Look at: {check.look_at}")
                else:
                    skipped += state == "skipped"
                    logger.info(told + (f": {wrong}" if wrong else "") + "".join(f"; note: {n}" for n in case.notes))
                stop.check()
                if check.run is check_shapes and "not finite" in str(wrong):
                    logger.error("the other checks would fail for the same reason")
                    break
    finally:
        if case.other is not None:
            case.other.close()
    if failed:
        logger.error(f"{len(failed)} of {len(CHECKS)} checks FAILED (exit code 3)")
    else:
        logger.info(f"{len(CHECKS) - skipped} checks passed, {skipped} skipped as they do not apply")
    return failed


def run_check(check, case):
    """("ok", "skipped" or "FAILED", the reason or None)"""
    case.notes.clear()
    try:
        with quiet():
            wrong = check.run(case)
    except Skipped as reason:
        return "skipped", str(reason)
    except Interrupted:
        raise
    except Exception as error:  # an edited model may raise anything
        return "FAILED", f"{type(error).__name__}: {first_line(error)}{place_of(error)}"
    return ("FAILED", wrong) if wrong else ("ok", None)


@contextmanager
def rehearsal():
    """`with rehearsal() as failures:` runs the trial run. An exception becomes one line, with the traceback in the log
    file, so that the checks can find the cause. UserError, Interrupted and OSError are raised as usual."""
    failures = []
    try:
        yield failures
    except (UserError, Interrupted, OSError):
        raise
    except Exception as error:
        failures.append(error)
        told = f"{type(error).__name__}: {first_line(error)}{place_of(error)}"
        logger.error(
            f"the trial run FAILED: {told}. The model is checked nevertheless; the traceback is in the log file"
        )
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handle(logger.makeRecord(logger.name, logging.ERROR, "", 0, traceback.format_exc(), (), None))


def place_of(error):
    """ " (file:line: code)" of the innermost frame in this repository's files except this one."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_own(frame.filename)]
    own = [frame for frame in frames if Path(frame.filename) != Path(__file__)]
    return f" ({Path(own[-1].filename).name}:{own[-1].lineno}: {own[-1].line})" if own else ""
