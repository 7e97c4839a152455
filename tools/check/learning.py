"""Checks that the model can learn: it overfits a few texts, and its answers become right and have the right names."""

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

# The budget is one of steps, not of seconds, so that the verdict is the same on every machine: about WORK / (trained
# parameters x tokens) of them. 60 steps of BERT-base on 8 short texts take two to four minutes on a slow core.
WORK, FEWEST, MOST = 5e11, 60, 1000
MANY, FEW, LARGE = 16, 8, 5e6  # number of texts, of texts for large models, trained parameters of a large model
# (factor of the learning rates, whether only the heads are trained, share of the steps), one after another
ATTEMPTS = ((1.0, False, 0.35), (5.0, False, 0.35), (0.2, False, 0.1), (1.0, True, 0.2))
RIGHT, SURE = 0.89, 0.8  # share of right answers, their mean probability
LOW, LOWEST = 0.35, 0.02  # shares of the first loss


@dataclass
class Progress:
    """What the training of a few texts has shown of a task."""

    first: float  # the first loss
    losses: list[float] = field(default_factory=list)  # of each step
    hits: list[float] = field(default_factory=list)  # share of right answers, every ten steps
    sure: float = 0.0  # mean probability of the answers
    falls: bool = False  # whether the loss was still falling at the end of an attempt

    @property
    def right(self) -> float:
        return self.hits[-1] if self.hits else 0.0

    @property
    def ratio(self) -> float:
        return self.losses[-1] / self.first if self.losses else 1.0

    def is_learnt(self, smoothed: bool) -> bool:
        """Whether answers are right and the loss is low, or as low as a loss with a positive minimum can be."""
        return self.right > RIGHT and (self.ratio < LOW or self.sure > SURE or smoothed)


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
    progress = first_losses(model, batch, bool(config.init_from))
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    smoothed, done = config.label_smoothing > 0, 0
    for factor, heads_only, share in ATTEMPTS:
        done += attempt(model, batch, groups(model, config, factor, heads_only), progress, int(share * steps), smoothed)
        if all(task.is_learnt(smoothed) or task.ratio < LOWEST for task in progress.values()):
            break
        if not all(math.isfinite(task.losses[-1]) for task in progress.values()):
            model.load_state_dict(start)
    if heads_only:
        case.notes.append("learnt with the encoder's weights fixed")
    case.overfitted = model
    for name, task in progress.items():
        judge(case, model, batch, name, task, f"after {done} steps on {len(rows)} texts", smoothed)
    require_names(case, trainer, rows, [name for name, task in progress.items() if task.right > RIGHT])


def groups(model: MyModel, config: Any, factor: float, heads_only: bool) -> list[dict[str, Any]]:
    encoder = {id(p) for p in model.encoder.parameters()} if heads_only else set()
    found = []
    for group in parameter_groups(model, config):
        kept = [p for p in group["params"] if id(p) not in encoder]
        if kept:
            found.append({"params": kept, "lr": factor * group["lr"], "weight_decay": 0.0})
    return found


def first_losses(model: MyModel, batch: Batch, trained: bool) -> dict[str, Progress]:
    losses = model.train()(batch.inputs, batch.labels).losses
    labelled = {name: loss.item() for name, loss in losses.items() if has_label(batch.labels[name]).any()}
    return {name: Progress(max(loss, 1.0) if trained else loss) for name, loss in labelled.items()}


def attempt(
    model: MyModel, batch: Batch, groups: list[Any], progress: dict[str, Progress], steps: int, smoothed: bool
) -> int:
    """Trains for some steps, and less if all is learnt or the losses stop falling. Returns the number of steps."""
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
            task.falls = task.ratio > LOWEST and is_falling(task.losses[begin[name] :], window)
        learnt = all(task.is_learnt(smoothed) for task in progress.values())
        decided = all(task.ratio < LOWEST for task in progress.values()) or step >= 2 * window
        stuck = decided and not any(task.falls for task in progress.values())
        if learnt or stuck:
            return step
    return steps


def is_falling(losses: list[float], window: int) -> bool:
    """Whether the lowest loss of the last steps is at least 2% below that of the steps before."""
    if len(losses) < 2 * window:
        return True
    before, last = min(losses[:-window]), min(losses[-window:])
    return last < before - 0.02 * abs(before)


@torch.no_grad()
def examine(model: MyModel, batch: Batch, progress: dict[str, Progress]) -> None:
    """Updates the share of right answers, as counted by the head in eval mode, and their mean probability."""
    model.eval()
    for name, answer in model.decode(model(batch.inputs).logits, batch.inputs).items():
        head, labels = model.output_layer.heads[name], batch.labels[name]
        hits, number = head.hits(*answer, labels)
        if name in progress and number:
            progress[name].hits.append(hits / number)
            progress[name].sure = mean_probability(*answer, labels)


def mean_probability(answers: Any, probabilities: Any, labels: torch.Tensor) -> float:
    """Returns the mean probability of the answers; 0 if they have none."""
    if not isinstance(answers, torch.Tensor) or answers.is_floating_point() or answers.shape != labels.shape:
        return 0.0
    if answers.dtype == torch.bool:
        probabilities = torch.where(answers, probabilities, 1 - probabilities)
    return float(probabilities[has_label(labels)].float().mean())


def judge(case: Case, model: MyModel, batch: Batch, name: str, task: Progress, when: str, smoothed: bool) -> None:
    """Raises Failed or Undecided if the task has not been learnt."""
    if task.is_learnt(smoothed):
        return
    change = f"{task.losses[-1]:.3g} (initially {task.first:.3g}) {when}"
    message = f"{name!r}: the loss is {change}, and {task.right:.0%} of the answers are right"
    improves = max(task.hits[-len(task.hits) // 3 :]) > max(task.hits[: -len(task.hits) // 3], default=0.0)
    # With a decode that fits the loss, a wrong answer costs more: 0.69, or half of the largest loss
    limit = (0.05 if improves else 0.1) * task.first
    if task.right <= RIGHT and losses_of_wrong(model, batch, name) < limit:
        advice = "loss and decode disagree: shifted or reversed labels, argmin, a threshold on the wrong side"
        raise Failed(f"{message}; {advice}")
    if not any(p.requires_grad for p in model.encoder.parameters()) and any(True for _ in model.encoder.parameters()):
        case.notes.append(f"{name!r}: with the frozen encoder {task.right:.0%} of the texts are right")
    elif task.falls or task.ratio < LOWEST:
        raise Undecided(f"{message}; it is still falling, or too low to judge")
    elif task.right > RIGHT:
        advice = "the logits are bounded: softmax or sigmoid before the loss, softmax twice, cosines without a scale"
        raise Failed(f"{message}, but with a probability of only {task.sure:.2f}; {advice}")
    else:
        advice = "the logits are bounded (softmax or sigmoid before the loss), or do not depend on the text"
        raise Failed(f"{message}; it no longer falls: {advice}")


@torch.no_grad()
def losses_of_wrong(model: MyModel, batch: Batch, name: str) -> float:
    """Returns the median loss of the rows with a wrong answer, each per label; infinity if there are none."""
    head, found = model.output_layer.heads[name], []
    for row in range(len(batch.rows)):
        inputs, labels = [{k: v[row : row + 1] for k, v in part.items()} for part in (batch.inputs, batch.labels)]
        output = model.eval()(inputs, labels)
        hits, number = head.hits(*head.decode(output.logits[name], inputs), labels[name])
        if hits < number:
            found.append(float(output.losses[name]))
    return sorted(found)[len(found) // 2] if found else math.inf


def require_names(case: Case, trainer: Trainer, rows: list[int], names: list[str]) -> None:
    """Raises Failed if `to_labels` turns right answers into other labels than those of the data."""
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
            answer = f"{wrong[0][1]!r} where the label is {wrong[0][0]!r}"
            raise Failed(f"{name!r}: decode returns right answers, but to_labels returns {answer}")


def distinct_rows(case: Case, number: int = MANY) -> list[int]:
    """Returns up to `number` short rows with distinct inputs, as equal ones may differ in labels: first those with the
    labels of most tasks, and among these rows with labels that no row before them has."""
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
