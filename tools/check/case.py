"""Code shared by the checks: the model and data under test, and comparisons of logits."""

import copy
import subprocess
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from data_loader import Batch, MyDataset
from engine.errors import UserError
from engine.model.encoders import num_positions
from engine.task.task import IGNORE
from engine.train import checkpoint
from model_utils import MyModel
from trainer import Trainer

MIXES_PADDING = ("fnet", "convbert", "nystromformer", "yoso")  # families whose outputs depend on padding by design
ROOT = Path(__file__).resolve().parents[2]
BY_TOKEN = ("input_ids", "attention_mask", "token_type_ids")  # inputs with one value per token, including padding
FROM_TEXT = (*BY_TOKEN, "word_starts", "word_ends", "word_mask", "word_shapes")
Tensors = dict[str, torch.Tensor]  # inputs by name; labels or logits by task


class Failed(Exception):
    """Raised by a check that fails. The message describes the error."""


class Skipped(Exception):
    """Raised by a check that does not apply. The message is the reason."""


class Undecided(Exception):
    """Raised by a check without a clear result. The message is the reason."""


@dataclass
class Case:
    """The model and data under test.

    build(**changes): returns a new Trainer with the run's data, tokenizer and seed, and with the user's options after
    these changes. data: some training rows. best: the checkpoint of the trial run, or None. command: the command that
    starts main.py.
    """

    build: Callable[..., Trainer]
    data: MyDataset
    best: Path | None
    command: list
    notes: list[str] = field(default_factory=list)  # unusual but intended behaviour
    undecided: dict[str, str] = field(default_factory=dict)  # {check: reason}
    overfitted: MyModel | None = None  # the model after overfitting a few texts
    other: tuple[subprocess.Popen, Path] | None = None  # see other_process in checkpoints.py

    @cached_property
    def trainer(self) -> Trainer:
        """A new trainer with an untrained model."""
        return self.build(compile=False)

    @cached_property
    def trained(self) -> MyModel:
        """The model with the weights of the trial run, if it saved any. Copy the model before changing it."""
        model = copy.deepcopy(self.trainer.model)
        if self.best is not None:
            with suppress(UserError):  # reported by another check
                checkpoint.load_weights(model, self.best)
        model.encoder.float()  # so that bf16 rounding is not reported as an error
        return model

    def model_and_batch(self, num_rows: int = 8, training: bool = False) -> tuple[MyModel, Batch]:
        """Returns a copy of the trained model in the given mode, and a batch."""
        return copy.deepcopy(self.trained).train(training), self.batch(self.rows[:num_rows])

    def batch(self, rows: Iterable[int]) -> Batch:
        return self.data.batch(list(rows)).to(self.trainer.device)

    @cached_property
    def rows(self) -> list[int]:
        """Up to 16 rows that are short enough to be padded, rows with labels for the most tasks first."""
        longest = min(self.data.featurizer.max_length, num_positions(self.trained.encoder) or 10**6) - 8
        all_rows = range(len(self.data.lengths))
        short = [row for row in all_rows if self.data.lengths[row] <= longest]
        return sorted(short or all_rows, key=self.num_labels, reverse=True)[:16]

    def num_labels(self, row: int) -> int:
        return sum(bool(has_label(labels).any()) for labels in self.data.batch([row]).labels.values())


def is_usable(logits: torch.Tensor) -> bool:
    """Returns True if no logit is NaN or +inf. -inf is allowed, because it excludes a label."""
    return not bool((logits.isnan() | (logits == float("inf"))).any())


def has_label(labels: torch.Tensor) -> torch.Tensor:
    return ~labels.isnan() if labels.is_floating_point() else labels != IGNORE


def logits_of(model: MyModel, inputs: Tensors, labels: Tensors | None = None) -> Tensors:
    """Returns {task: logits}, without the logits of padding positions."""
    heads = model.output_layer.heads
    return {name: heads[name].real_logits(logits, inputs) for name, logits in model(inputs, labels).logits.items()}


def difference(first: Tensors, second: Tensors, tolerance: float = 1e-3) -> str | None:
    """Returns a description of the difference for the first task whose logits differ, or None if no logits differ."""
    for name, logits in first.items():
        change = torch.where(logits == second[name], 0.0, logits - second[name])  # 0 where both are -inf
        size = logits[logits.isfinite()].abs()
        gap = float(change.abs().max() / size.max().clamp(min=1e-6)) if size.numel() else 0.0
        if not gap <= tolerance:
            return f"the logits of {name!r} have a relative difference of {gap:.1%}"
    return None


def require_same(change: str, first: Tensors, second: Tensors, tolerance: float = 1e-3) -> None:
    """Raises Failed if logits differ. change: what differs between the two forward passes, to start the message."""
    if message := difference(first, second, tolerance):
        raise Failed(f"{change} {message}")


def custom_inputs(batch: Batch) -> dict[str, torch.Tensor]:
    """Returns the inputs that are not derived from the text, such as numbers or images, and can have any shape."""
    return {name: tensor for name, tensor in batch.inputs.items() if name not in FROM_TEXT}


def with_other_rows(batch: Batch, num_unchanged: int = 1) -> Tensors:
    """Returns the inputs of a batch with all rows changed but the first `num_unchanged`. Shapes stay the same.

    Tokens are drawn from the batch. Custom inputs are copied from the row that differs most from the first one, so all
    values are valid and statistics over the rows change.
    """
    changed, custom = {name: tensor.clone() for name, tensor in batch.inputs.items()}, custom_inputs(batch)
    if "input_ids" in changed:
        mask = batch.inputs["attention_mask"].bool()
        ids, others = batch.inputs["input_ids"][mask], mask.clone()
        others[:num_unchanged] = False
        drawn = torch.randint(len(ids), (int(others.sum()),), generator=torch.Generator().manual_seed(0))
        changed["input_ids"][others] = ids[drawn.to(ids.device)]
    if custom:
        far = torch.stack(
            [(one.double() - one[:1].double()).abs().reshape(len(one), -1).sum(1) for one in custom.values()]
        ).sum(0)
        for name, tensor in custom.items():
            changed[name][num_unchanged:] = tensor[int(far.argmax())]
    return changed


def padding_mixer(encoder: nn.Module) -> str | None:
    """Returns the model family of an encoder whose outputs depend on padding by design, or None for other encoders."""
    family = getattr(getattr(encoder, "config", None), "model_type", None)
    return family if family in MIXES_PADDING else None


def shorten(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def is_own(filename: str) -> bool:
    """Returns True if a file belongs to this repository, rather than to a virtual environment inside it."""
    path = Path(filename)
    return path.is_relative_to(ROOT) and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
