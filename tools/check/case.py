"""What the checks of --debug share: the model and data to check, and comparisons of logits."""

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

MIXES_PADDING = ("fnet", "convbert", "nystromformer", "yoso")  # families whose answers depend on padding by design
ROOT = Path(__file__).resolve().parents[2]
Tensors = dict[str, torch.Tensor]  # inputs by name; labels or logits by task


class Failed(Exception):
    """Raised by a check that finds an error, with its description."""


class Skipped(Exception):
    """Raised by a check that does not apply, with the reason."""


@dataclass
class Case:
    """What is checked.

    build(**changes): a new Trainer with the user's options and these changes; data, tokenizer and seed are those of the
    run. data: some rows of train. best: the checkpoint of the trial run, or None. command: the command that starts
    main.py.
    """

    build: Callable[..., Trainer]
    data: MyDataset
    best: Path | None
    command: list
    notes: list[str] = field(default_factory=list)  # unusual behaviour that is by design
    overfitted: MyModel | None = None  # the model that was overfitted to some texts
    other: tuple[subprocess.Popen, Path] | None = None  # see other_process in checkpoints.py

    @cached_property
    def trainer(self) -> Trainer:
        """A new trainer with an untrained model."""
        return self.build(compile=False)

    @cached_property
    def trained(self) -> MyModel:
        """The model with the weights of the trial run, or an untrained one. Copy it before changing it."""
        model = copy.deepcopy(self.trainer.model)
        if self.best is not None:
            with suppress(UserError):  # another check reports a checkpoint that cannot be loaded
                checkpoint.load_weights(model, self.best)
        model.encoder.float()  # so that bf16 rounding is not reported as an error
        return model

    def model_and_batch(self, num_rows: int = 8, training: bool = False) -> tuple[MyModel, Batch]:
        """A copy of the trained model, in this mode, and a batch for it."""
        return copy.deepcopy(self.trained).train(training), self.batch(self.rows[:num_rows])

    def batch(self, rows: Iterable[int]) -> Batch:
        return self.data.batch(list(rows)).to(self.trainer.device)

    @cached_property
    def rows(self) -> list[int]:
        """Up to 16 rows that leave room for padding; those with labels of the most tasks come first."""
        longest = min(self.data.featurizer.max_length, num_positions(self.trained.encoder) or 10**6) - 8
        every = range(len(self.data.lengths))
        short = [row for row in every if self.data.lengths[row] <= longest]
        return sorted(short or every, key=self.num_labels, reverse=True)[:16]

    def num_labels(self, row: int) -> int:
        return sum(bool(has_label(labels).any()) for labels in self.data.batch([row]).labels.values())


def has_label(labels: torch.Tensor) -> torch.Tensor:
    return ~labels.isnan() if labels.is_floating_point() else labels != IGNORE


def logits_of(model: MyModel, inputs: Tensors, labels: Tensors | None = None) -> Tensors:
    """{task: logits} without the positions of padding words."""
    heads = model.output_layer.heads
    return {name: heads[name].real_logits(logits, inputs) for name, logits in model(inputs, labels).logits.items()}


def difference(first: Tensors, second: Tensors, tolerance: float = 1e-3) -> str | None:
    """None, or a message with the first task whose logits differ, and their relative difference."""
    for name, logits in first.items():
        gap = float((logits - second[name]).abs().max() / logits.abs().max().clamp(min=1e-6)) if logits.numel() else 0.0
        if not gap <= tolerance:
            return f"the logits of {name!r} differ by {gap:.1%} of their size"
    return None


def require_same(change: str, first: Tensors, second: Tensors, tolerance: float = 1e-3) -> None:
    """Raises Failed if logits differ. change: what differs between the two runs, for the message."""
    if wrong := difference(first, second, tolerance):
        raise Failed(f"{change} {wrong}")


def padding_mixer(encoder: nn.Module) -> str | None:
    """The encoder's family if its answers depend on padding by design, or None."""
    family = getattr(getattr(encoder, "config", None), "model_type", None)
    return family if family in MIXES_PADDING else None


def shorten(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def is_own(filename: str) -> bool:
    """Whether a file belongs to this repository, and not to a virtual environment in it."""
    path = Path(filename)
    return path.is_relative_to(ROOT) and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
