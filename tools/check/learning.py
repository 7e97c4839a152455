"""Checks that the model can overfit a few texts, and that its predictions are converted to the correct labels."""

import copy
import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from data_loader import Batch, MyDataLoader, MyDataset
from engine.train.optimization import parameter_groups
from model_utils import MyModel
from tools.check.case import Case, Failed, Undecided, has_label
from trainer import Trainer

# The budget is a number of steps, not seconds, so the result is the same on every machine. It is about
# WORK / (trainable parameters x tokens) steps. A step of BERT-base on 8 texts of 10 tokens takes 1.3 s on one core.
WORK, FEWEST, MOST = 5e11, 60, 1000
MANY, FEW, LARGE = 16, 8, 5e6  # texts; texts for models with more than LARGE trainable parameters
# (factor for the encoder's learning rates, factor for the others, share of the steps) per attempt. The last attempt
# trains only the heads
ATTEMPTS = ((1.0, 1.0, 0.3), (5.0, 20.0, 0.4), (0.2, 0.2, 0.1), (0.0, 5.0, 0.2))
RIGHT, SURE = 0.89, 0.8  # accuracy; mean probability of the predictions
LOW, LOWEST = 0.35, 0.02  # fractions of the first loss
MOST_RIGHT, SMALL = 0.8, 0.15  # weaker limits if wrong predictions have high losses, that is, loss and decode agree
NOISE = 0.05  # losses below this are too small to compare


@dataclass
class Progress:
    """The progress of one task while the model is trained on a few texts."""

    first: float  # the first loss
    losses: list[float] = field(default_factory=list)  # the loss of each step
    hits: list[float] = field(default_factory=list)  # accuracy, every ten steps
    sure: float = 0.0  # mean probability of the predictions
    enough: float = SURE  # the required mean probability
    falls: bool = False  # whether the loss was still falling at the end of an attempt
    of_numbers: bool = False  # regression, whose loss has no fixed scale or minimum

    @property
    def right(self) -> float:
        return self.hits[-1] if self.hits else 0.0

    @property
    def ratio(self) -> float:
        """The last loss relative to the first. It decreases with the loss, even if the loss is negative."""
        return 1 - (self.first - self.losses[-1]) / max(abs(self.first), 1e-9) if self.losses else 1.0

    @property
    def is_lowest(self) -> bool:
        return self.ratio < LOWEST and not self.of_numbers

    def is_learned(self) -> bool:
        """Returns whether the predictions are correct, and either the loss is low or the predictions are confident."""
        return self.right > RIGHT and (self.ratio < LOW or self.sure > self.enough)


@torch.enable_grad()
def check_overfitting(case: Case) -> None:
    trainer = case.build(compile=False)
    model, config = trainer.model, replace(trainer.config, lr=None, head_lr=None)
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    size -= sum(p.numel() for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters())
    rows = distinct_rows(case, FEW if size > LARGE else MANY)
    batch = case.batch(rows)
    tokens = batch.inputs["input_ids"].numel() if "input_ids" in batch.inputs else len(rows)
    steps = int(min(max(WORK / (max(size, 1) * tokens), FEWEST), MOST))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    progress = first_losses(model, batch, bool(config.init_from), 0.0 if config.label_smoothing else SURE)
    done = train(case, model, batch, config, progress, steps)
    case.overfitted = model
    for name, task in progress.items():
        judge(case, model, batch, name, task, f"after {done} steps on {len(rows)} texts")
    require_names(case, trainer, rows, [name for name, task in progress.items() if task.right > RIGHT])


def train(case: Case, model: MyModel, batch: Batch, config: Any, progress: dict[str, Progress], steps: int) -> int:
    """Trains in up to len(ATTEMPTS) attempts, until all tasks are learned. Returns the number of steps."""
    start, done = copy.deepcopy(model.state_dict()), 0
    for factor, of_heads, share in ATTEMPTS:
        before, earlier = copy.deepcopy(model.state_dict()), copy.deepcopy(progress)
        if not factor:
            model.load_state_dict(start)  # the encoder may have collapsed at these learning rates
        if chosen := groups(model, config, factor, of_heads):
            done += attempt(model, batch, chosen, progress, int(share * steps))
        if all(task.is_learned() or task.is_lowest for task in progress.values()):
            if not factor:
                case.notes.append("learned only with a frozen encoder")
            break
        if not sum(task.ratio for task in progress.values()) <= sum(task.ratio for task in earlier.values()):
            model.load_state_dict(before)
            progress.update({name: task for name, task in earlier.items() if task.losses})
        for name, task in progress.items():
            task.falls |= factor < 1 and earlier[name].falls  # at low learning rates, the loss decreases slowly
    return done


def groups(model: MyModel, config: Any, factor: float, of_heads: float) -> list[dict[str, Any]]:
    """Returns parameter groups with learning rates multiplied by these factors for the encoder and the other layers."""
    encoder, found = {id(p) for p in model.encoder.parameters()}, []
    for group in parameter_groups(model, config):
        for inside, times in ((True, factor), (False, of_heads)):
            chosen = [p for p in group["params"] if (id(p) in encoder) == inside]
            if chosen and times:
                found.append({"params": chosen, "lr": times * group["lr"], "weight_decay": 0.0})
    return found


def first_losses(model: MyModel, batch: Batch, trained: bool, enough: float) -> dict[str, Progress]:
    losses = model.train()(batch.inputs, batch.labels).losses
    labelled = {name: loss.item() for name, loss in losses.items() if has_label(batch.labels[name]).any()}
    found = {}
    for name, loss in labelled.items():
        first, of_numbers = max(loss, 1.0) if trained else loss, batch.labels[name].is_floating_point()
        found[name] = Progress(first, enough=enough, of_numbers=of_numbers)
    return found


def attempt(model: MyModel, batch: Batch, groups: list[Any], progress: dict[str, Progress], steps: int) -> int:
    """Trains for up to `steps` steps, or until all tasks are learned or the losses stop falling. Returns the number
    of steps."""
    optimizer = torch.optim.AdamW(groups)
    window = max(10, steps // 4)
    begin = {name: len(task.losses) for name, task in progress.items()}
    for step in range(1, steps + 1):
        output = model.train()(batch.inputs, batch.labels)
        for name, task in progress.items():
            task.losses.append(output.losses[name].item())
        model.zero_grad()
        output.total_loss.backward()
        optimizer.step()
        if step % 10 and step < steps:
            continue
        examine(model, batch, progress)
        for name, task in progress.items():
            task.falls = not task.is_lowest and is_falling(task.losses[begin[name] :], window)
        learned = all(task.is_learned() for task in progress.values())
        decided = all(task.is_lowest for task in progress.values()) or step >= 2 * window
        stuck = decided and not any(task.falls for task in progress.values())
        if learned or stuck:
            return step
    return steps


def is_falling(losses: list[float], window: int) -> bool:
    """Returns whether the lowest loss of the last `window` steps is over 2% below the lowest loss before them."""
    if len(losses) < 2 * window:
        return True
    before, last = min(losses[:-window]), min(losses[-window:])
    return last < before - 0.02 * abs(before)


@torch.no_grad()
def examine(model: MyModel, batch: Batch, progress: dict[str, Progress]) -> None:
    """Updates the accuracy (counted by the head, in eval mode) and the mean probability of the predictions."""
    model.eval()
    for name, decoded in model.decode(model(batch.inputs).logits, batch.inputs).items():
        head, labels = model.output_layer.heads[name], batch.labels[name]
        hits, number = head.hits(*decoded, labels)
        if name in progress and number:
            progress[name].hits.append(hits / number)
            progress[name].sure = mean_probability(*decoded, labels)


def mean_probability(predicted: Any, probabilities: Any, labels: torch.Tensor) -> float:
    """Returns the mean probability of the predictions, or 0 if they have no probabilities."""
    if not isinstance(predicted, torch.Tensor) or predicted.is_floating_point() or predicted.shape != labels.shape:
        return 0.0
    if predicted.dtype == torch.bool:
        probabilities = torch.where(predicted, probabilities, 1 - probabilities)
    return float(probabilities[has_label(labels)].float().mean())


def judge(case: Case, model: MyModel, batch: Batch, name: str, task: Progress, when: str) -> None:
    """Raises Failed or Undecided if the task has not been learned."""
    if task.of_numbers:
        require_lowest_at_labels(model, batch, name)
    require_same_in_evaluation(model, batch, name, task)
    if task.is_learned():
        return
    change = f"{task.losses[-1]:.3g} (initially {task.first:.3g}) {when}"
    message = f"{name!r}: the loss is {change}, and {task.right:.0%} of the predictions are correct"
    improves = max(task.hits[-len(task.hits) // 3 :]) > max(task.hits[: -len(task.hits) // 3], default=0.0)
    # If decode matches the loss, a wrong prediction has a cross-entropy of at least ln 2, or half of the largest loss
    limit = (0.05 if improves else 0.1) * task.first
    if task.right <= RIGHT and not task.of_numbers and losses_of_wrong(model, batch, name) < limit:
        advice = (
            "loss and decode disagree: shifted or reversed labels, argmin, a threshold applied in the wrong direction"
        )
        raise Failed(f"{message}; {advice}")
    if task.right > MOST_RIGHT and task.ratio < SMALL:  # the wrong ones may be texts that differ only in word order
        return
    if has_reversed_gradient(case, batch, name):
        case.notes.append(f"{name!r} reverses the encoder's gradient, which prevents learning; not checked")
    elif not any(p.requires_grad for p in model.encoder.parameters()) and any(True for _ in model.encoder.parameters()):
        case.notes.append(f"{name!r}: with the frozen encoder, {task.right:.0%} of the predictions are correct")
    elif task.right > RIGHT and probabilities_cost(model, batch, name) > LOW * task.first:
        raise Failed(f"{message}; the logits are probabilities: softmax or sigmoid before the loss, or softmax twice")
    elif task.falls or task.is_lowest:
        raise Undecided(f"{message}; the loss is still falling, or is too low to decide")
    elif task.right > RIGHT:
        advice = (
            "the logits are bounded: softmax or sigmoid before the loss, softmax twice, unscaled cosine similarities"
        )
        raise Failed(f"{message}, but with a probability of only {task.sure:.2f}; {advice}")
    else:
        advice = "the logits are bounded (softmax or sigmoid before the loss), or do not depend on the text"
        raise Failed(f"{message}; the loss has stopped falling: {advice}")


@torch.no_grad()
def require_same_in_evaluation(model: MyModel, batch: Batch, name: str, task: Progress) -> None:
    """Raises Failed if the loss of the same texts, without dropout, is low in training mode but not in eval mode."""
    loss = float(model.eval()(batch.inputs, batch.labels).losses[name])
    if task.ratio < LOW / 2 and loss > max(LOW * task.first, NOISE):
        losses = f"the loss of the same texts is {task.losses[-1]:.3g} in training and {loss:.3g} in evaluation"
        raise Failed(f"{name!r}: {losses}; does it depend on self.training, or on the labels passed to joint?")


def require_lowest_at_labels(model: MyModel, batch: Batch, name: str) -> None:
    """Raises Failed if logits that minimise a regression loss are not decoded to the labels."""
    head, labels = model.output_layer.heads[name], batch.labels[name]
    with torch.no_grad():
        logits = model.eval()(batch.inputs).logits[name].clone()
    logits.requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=300, line_search_fn="strong_wolfe", tolerance_change=1e-12)
    sizes: list[float] = []  # gradient norms

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = head.loss(logits, labels, batch.inputs)
        value.backward()
        sizes.append(float(logits.grad.norm()))  # type: ignore[union-attr]
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    loss()
    if not sizes[-1] <= 1e-3 * max(sizes):
        return  # no minimum, or not differentiable there, like the absolute error
    there = has_label(labels)
    decoded = head.decode(logits.detach(), batch.inputs)[0][there]
    gaps = (decoded - labels[there]).abs() / head.task.std
    if gaps.median() > 0.01:
        row = int(gaps.argmax())
        values = f"the loss is lowest for {float(labels[there][row]):.6g}, but decode returns {float(decoded[row]):.6g}"
        raise Failed(f"{name!r}: {values}; loss and decode disagree; do they use the same scale?")


@torch.no_grad()
def probabilities_cost(model: MyModel, batch: Batch, name: str) -> float:
    """Returns the loss of correct predictions with probability 1 if a head's logits are probabilities, otherwise 0."""
    logits, labels = model.eval()(batch.inputs).logits[name], batch.labels[name]
    if labels.ndim != 1 or labels.is_floating_point() or logits.ndim != 2 or logits.min() < 0 or logits.max() > 1:
        return 0.0
    right = nn.functional.one_hot(labels.clamp(min=0), logits.shape[1]).to(logits)
    count = model.count_labels(batch.inputs, batch.labels)[name].clamp(min=1)
    return float(model.output_layer.heads[name].loss(right, labels, batch.inputs) / count)


def has_reversed_gradient(case: Case, batch: Batch, name: str) -> bool:
    """Returns whether moving the encoder along its gradient lowers a task's loss, as with gradient reversal."""
    model = copy.deepcopy(case.trainer.model).eval()
    trained, losses = [p for p in model.encoder.parameters() if p.requires_grad], list[float]()
    if not trained:
        return False
    gradients = torch.autograd.grad(
        model(batch.inputs, batch.labels).losses[name], trained, allow_unused=True, materialize_grads=True
    )
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm().clamp(min=1e-12)
    for step in (1e-2, -2e-2):
        with torch.no_grad():
            for p, gradient in zip(trained, gradients):
                p.add_(step / norm * gradient)
            losses.append(float(model(batch.inputs, batch.labels).losses[name]))
    return losses[0] < losses[1] - 1e-6


@torch.no_grad()
def losses_of_wrong(model: MyModel, batch: Batch, name: str) -> float:
    """Returns the median loss per label of wrongly predicted rows, or infinity if there are none."""
    head, found = model.output_layer.heads[name], []
    for row in range(len(batch.rows)):
        inputs, labels = [{k: v[row : row + 1] for k, v in side.items()} for side in (batch.inputs, batch.labels)]
        output = model.eval()(inputs, labels)
        hits, number = head.hits(*head.decode(output.logits[name], inputs), labels[name])
        if hits < number:
            found.append(float(output.losses[name]))
    return sorted(found)[len(found) // 2] if found else math.inf


def require_names(case: Case, trainer: Trainer, rows: list[int], names: list[str]) -> None:
    """Raises Failed if `to_labels` converts correct predictions to labels that differ from the data."""
    whole = [i for i in map(int, case.data.example_index[rows]) if (case.data.example_index == i).sum() == 1]
    if not whole or not names:
        return
    examples = MyDataset([case.data[i] for i in whole], case.data.featurizer, quiet=True)
    evaluation = trainer.eval(MyDataLoader(examples, 64))
    for name in names:
        pairs = list(zip(evaluation.gold[name], evaluation.predicted[name]))
        if trainer.tasks[name].is_tagging:
            pairs = [pair for gold, predicted in pairs if gold for pair in zip(gold, predicted)]
        wrong = [(gold, predicted) for gold, predicted in pairs if gold is not None and gold != predicted]
        if trainer.tasks[name].kind in ("classification", "tagging") and len(wrong) > len(pairs) / 2:
            predicted = f"{wrong[0][1]!r} where the label is {wrong[0][0]!r}"
            raise Failed(f"{name!r}: decode returns correct predictions, but to_labels returns {predicted}")


def distinct_rows(case: Case, number: int = MANY) -> list[int]:
    """Returns up to `number` rows with distinct inputs, because equal inputs may have different labels. Rows with new
    labels come first, then rows with labels for the most tasks, then short rows."""
    by_input: dict[bytes, int] = {}
    for row in sorted(range(len(case.data.lengths)), key=lambda row: (-case.num_labels(row), case.data.lengths[row])):
        inputs = case.data.batch([row]).inputs.values()
        by_input.setdefault(b"".join(tensor.numpy().tobytes() for tensor in inputs), row)
    new, known, seen = list[int](), list[int](), set[bytes]()
    for row in by_input.values():
        labels = b"".join(tensor.numpy().tobytes() for tensor in case.data.batch([row]).labels.values())
        (known if labels in seen else new).append(row)
        seen.add(labels)
    return (new + known)[:number]
