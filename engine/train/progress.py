"""The progress of a run, its losses since the last log line, and the progress bar."""

import json
import logging
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from engine.errors import UserError
from engine.run import distributed
from engine.schema import AnyOf, Number, Range, mismatch

logger = logging.getLogger("template")


@dataclass
class Progress:
    """The progress of a run. Every checkpoint stores it, so a resumed run has byte-identical results."""

    step: int = 0  # completed optimizer steps
    epoch: int = 0  # completed and evaluated epochs
    batch: int = 0  # completed micro-batches of the current epoch
    best_score: float | None = None  # of the monitored metric
    best_epoch: int = 0
    bad_epochs: int = 0  # evaluations since the best one
    sums: dict = field(default_factory=dict)  # losses since the last log line
    sum_steps: int = 0
    skipped_steps: int = 0  # steps since the last log line whose gradient was not finite
    metrics_bytes: int = 0  # length of metrics.jsonl
    data: str = ""  # the fingerprint of the rows and their encoding

    @classmethod
    def load(cls, values: dict[str, Any], folder: Path) -> "Progress":
        """Creates Progress from a checkpoint's values. Raises UserError if they are damaged or from another version."""
        if values.keys() != {f.name for f in fields(cls)}:
            advice = "start a new run with another --model_version"
            raise UserError(f"{folder}: was written by another version of this template; {advice}")
        kinds: dict[Any, Any] = {int: Range(0, 2**53), float | None: AnyOf(Number, None), dict: {str: Number}, str: str}
        if wrong := mismatch(values, {f.name: kinds[f.type] for f in fields(cls)}):
            raise UserError(f"{folder}: its training.json is damaged: {wrong}; remove that checkpoint")
        return cls(**values)

    def share_among(self, processes: int, before: int, schedule: tuple[Any, float], batches: int, in_step: int) -> None:
        """Adapts the position in data and schedule, rounded down to a whole step, to a new number of processes.

        processes, before: the current number of processes and the number in the saved run. schedule: (scheduler, its
        last step, see `rate_held_from`). batches: current micro-batches per epoch; in_step: micro-batches per step.
        """
        scheduler, last = schedule
        # Other schedulers derive each rate from the previous one
        if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
            advice = f"resume with {before} processes, or use a LambdaLR"
            raise UserError(f"{type(scheduler).__name__} cannot continue with another number of processes; {advice}")
        self.batch = self.batch * before // processes // in_step * in_step
        scheduler.last_epoch = int(min(self.epoch * -(-batches // in_step) + self.batch // in_step, last)) - 1
        with warnings.catch_warnings():  # torch expects an optimizer step first
            warnings.simplefilter("ignore", UserWarning)
            scheduler.step()


class RunningLosses:
    """Accumulates losses and gradient norms since the last log line. They stay on the device until the next line is
    logged, so the host does not wait for them."""

    def __init__(self, progress: Progress, device: torch.device | str):
        self.progress = progress
        self.sums = {name: torch.tensor(value, device=device) for name, value in progress.sums.items()}
        self.group_sums: dict[str, Any] = {}
        self.unseen_steps: list[tuple[torch.Tensor, list[int]]] = []
        self.examples, self.seconds, self.shown = 0, 0.0, ""  # not saved: they depend on the clock (see `EpochBar`)

    def add(self, outputs: list[Any]) -> None:
        """Adds the losses of a micro-batch, as shares of the group's loss. outputs: one per pass, to be averaged."""
        sums: dict[str, Any] = {}
        for output in outputs:
            losses = {"loss": output.total_loss} | {f"{task}_loss": loss for task, loss in output.losses.items()}
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0) + loss.detach()
        for name, loss in sums.items():
            self.group_sums[name] = self.group_sums.get(name, 0.0) + (loss / len(outputs) if len(outputs) > 1 else loss)

    def end_step(self, norm: torch.Tensor, finite: torch.Tensor, rows: list[int]) -> None:
        """Ends a group of micro-batches. norm: gradient norm before clipping, (); finite: whether it is finite, ();
        rows: row numbers of the examples."""
        for name, value in (*self.group_sums.items(), ("gradient_norm", norm / distributed.size())):
            self.sums[name] = self.sums.get(name, 0.0) + torch.where(finite, value, 0.0)
        self.group_sums = {}
        self.progress.sum_steps += 1
        self.unseen_steps.append((~finite, rows))

    def sync_losses(self) -> None:
        """Copies the sums to `progress` on the host, and logs the skipped steps.

        This is the only synchronisation with the device, apart from the gradient scaler of fp16.
        """
        progress = self.progress
        progress.sums = {name: value.item() for name, value in self.sums.items()}
        skipped = torch.stack([skip for skip, _ in self.unseen_steps]).tolist() if self.unseen_steps else []
        for (_, rows), skip in zip(self.unseen_steps, skipped):
            if skip:
                rows = [row for of_process in distributed.gather(rows) for row in of_process]
                shown = ", ".join(map(str, rows[:8])) + (", …" if len(rows) > 8 else "")
                where = f"up to step {progress.step}"
                logger.warning(f"{where}: the gradient of rows {shown} was not finite; that step was skipped")
        progress.skipped_steps += sum(skipped)
        self.unseen_steps = []

    def mean(self) -> dict[str, float]:
        """Returns {name: mean} since the last call and resets the sums. Raises UserError if all steps were skipped."""
        self.sync_losses()
        progress = self.progress
        steps = progress.sum_steps - progress.skipped_steps
        if steps == 0 and progress.sum_steps > 1:
            raise UserError(
                f"none of the last {progress.sum_steps} steps had a finite gradient: the training has diverged; "
                "lower --lr, or use --precision bf16 or fp32"
            )
        shares = distributed.gather(progress.sums)
        means = {name: sum(share[name] for share in shares) / max(1, steps) for name in progress.sums}
        self.sums, progress.sums, progress.sum_steps, progress.skipped_steps = {}, {}, 0, 0
        return means


class EpochBar:
    """The progress bar of an epoch, with loss, learning rate, examples/s and remaining time.

    The speed is logged to throughput.jsonl, because a resumed run must reproduce other files byte for byte. It has a
    line for each line of metrics.jsonl: step, epoch, examples_per_second, and seconds, which exclude evaluation.
    """

    FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"

    def __init__(self, title: str, num_batches: int, progress: Progress, losses: RunningLosses, folder: Path):
        self.progress, self.losses, self.path = progress, losses, folder / "throughput.jsonl"
        options: dict[str, Any] = dict(
            total=num_batches, initial=progress.batch, desc=title, leave=False, bar_format=self.FORMAT
        )
        self.bar, self.clock = tqdm(**options), time.perf_counter()

    def update(self, group: list) -> None:
        """Advances the bar by a completed step. group: its batches."""
        now, losses = time.perf_counter(), self.losses
        losses.examples += sum(len(batch.rows) for batch in group) * distributed.size()  # others have about as many
        losses.seconds, self.clock = losses.seconds + now - self.clock, now
        pace = f"{losses.examples / max(losses.seconds, 1e-9):.0f} examples/s"
        self.bar.set_postfix_str(f"{losses.shown}{pace}", refresh=False)
        self.bar.update(len(group))

    def log(self, loss: float, rate: float) -> None:
        """Logs the speed since the last call. The host must be in sync with the device. loss: the mean loss."""
        losses, progress = self.losses, self.progress
        now = time.perf_counter()
        losses.seconds, self.clock = losses.seconds + now - self.clock, now
        pace = {"examples_per_second": losses.examples / max(losses.seconds, 1e-9), "seconds": losses.seconds}
        if not distributed.is_main_process():
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": progress.step, "epoch": progress.epoch} | pace) + "\n")
        losses.examples, losses.seconds, losses.shown = 0, 0.0, f"loss {loss:.4f}, lr {rate:.1e}, "

    def close(self) -> None:
        self.bar.close()


def line_of_scores(scores: dict[str, float], names: Iterable[str], width: int = 67) -> str:
    """Formats as many of the named scores as fit on a line: "intent_accuracy 0.8250  slots_f1 0.6851  loss 1.5932".

    width: available columns in a terminal of 100 columns, after "12:34:56 epoch 100  dev: " and before "  (best)".
    All scores are in metrics.jsonl.
    """
    line = ""
    for name in dict.fromkeys(name for name in names if name in scores):
        longer = f"{line}  {name} {scores[name]:.4f}".strip()
        line = longer if len(longer) <= width or not line else line
    return line
