"""Where a run stands, the losses since its last log line, and the bar that shows both."""

import json
import logging
import time
import warnings
from dataclasses import dataclass, field, fields

import torch
from tqdm import tqdm

from engine.errors import UserError
from engine.run import distributed
from engine.schema import AnyOf, Number, Range, mismatch

logger = logging.getLogger("template")


@dataclass
class Progress:
    """Where a run stands. All of it is in every checkpoint, so that a resumed run ends with the same bytes."""

    step: int = 0  # optimizer steps done
    epoch: int = 0  # epochs done and evaluated
    batch: int = 0  # micro-batches of the current epoch done
    best_score: float | None = None  # of the monitored metric
    best_epoch: int = 0
    bad_epochs: int = 0  # evaluations since the best
    sums: dict = field(default_factory=dict)  # losses since the last log line
    sum_steps: int = 0
    skipped_steps: int = 0  # of these steps, those whose gradient was not finite
    metrics_bytes: int = 0  # length of metrics.jsonl
    data: str = ""  # the fingerprint of the rows and their encoding

    @classmethod
    def load(cls, values, folder):
        """From what a checkpoint holds. UserError if another version of this template wrote it, or nobody did."""
        if values.keys() != {part.name for part in fields(cls)}:
            raise UserError(f"{folder}: another version of this template wrote it; train a new --model_version")
        kinds = {int: Range(0, 2**53), float | None: AnyOf(Number, None), dict: {str: Number}, str: str}
        if wrong := mismatch(values, {part.name: kinds[part.type] for part in fields(cls)}):
            raise UserError(f"{folder}: its training.json is damaged: {wrong}; remove that checkpoint")
        return cls(**values)

    def share_among(self, processes, before, scheduler, batches, in_step):
        """Goes on at the same place of data and schedule with another number of processes, as near as whole steps
        allow.

        processes: how many there are now; before: there were. batches: those of an epoch now; in_step: of a step.
        """
        self.batch = self.batch * before // processes // in_step * in_step
        scheduler.last_epoch = self.epoch * -(-batches // in_step) + self.batch // in_step - 1
        with warnings.catch_warnings():  # torch wants a step of the optimizer before
            warnings.simplefilter("ignore", UserWarning)
            scheduler.step()


class RunningLosses:
    """Losses and gradient norms since the last log line, on the device until it is written, so that the host never
    waits for them."""

    def __init__(self, progress, device):
        self.progress = progress
        self.sums = {name: torch.tensor(value, device=device) for name, value in progress.sums.items()}
        self.group_sums, self.unseen_steps = {}, []
        self.examples, self.seconds, self.shown = 0, 0.0, ""  # by the clock: in no checkpoint, see `EpochBar`

    def add(self, output):
        """The losses of a micro-batch, each its share of its group's."""
        for name, loss in (("loss", output.total_loss), *((f"{task}_loss", v) for task, v in output.losses.items())):
            self.group_sums[name] = self.group_sums.get(name, 0.0) + loss.detach()

    def end_step(self, norm, finite, rows):
        """Ends a group. norm: (), of its gradient before it is clipped; finite: (), whether it is; rows: the numbers of
        its examples."""
        for name, value in (*self.group_sums.items(), ("gradient_norm", norm / distributed.size())):
            self.sums[name] = self.sums.get(name, 0.0) + torch.where(finite, value, 0.0)
        self.group_sums = {}
        self.progress.sum_steps += 1
        self.unseen_steps.append((~finite, rows))

    def sync_losses(self):
        """Brings the sums to the host, into `progress`, and names the batches that were skipped. The only host sync."""
        progress = self.progress
        progress.sums = {name: value.item() for name, value in self.sums.items()}
        skipped = torch.stack([skip for skip, _ in self.unseen_steps]).tolist() if self.unseen_steps else []
        for (_, rows), skip in zip(self.unseen_steps, skipped):
            if skip:
                rows = [row for part in distributed.gather(rows) for row in part]
                shown = ", ".join(map(str, rows[:8])) + (", …" if len(rows) > 8 else "")
                where = f"up to step {progress.step}"
                logger.warning(f"{where}: the gradient of rows {shown} was not finite; that step was left out")
        progress.skipped_steps += sum(skipped)
        self.unseen_steps = []

    def mean(self):
        """{name: mean} over the steps that were made; begins anew. UserError if there were none."""
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
    """The progress bar of an epoch: loss, rate, examples/s and time left.

    How fast a run is depends on the clock, so it goes into a file of its own, throughput.jsonl (a line for each of
    metrics.jsonl: step, epoch, examples_per_second, seconds), and never into what a resumed run must repeat to the
    byte. Seconds are those of training alone, without evaluation and what a killed run did twice.
    """

    FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"

    def __init__(self, title, num_batches, progress, losses, folder):
        self.progress, self.losses, self.path = progress, losses, folder / "throughput.jsonl"
        options = dict(total=num_batches, initial=progress.batch, desc=title, leave=False, bar_format=self.FORMAT)
        self.bar, self.clock = tqdm(**options), time.perf_counter()

    def update(self, group):
        """A step is done. group: its batches."""
        now, losses = time.perf_counter(), self.losses
        losses.examples += sum(len(batch.rows) for batch in group) * distributed.size()  # in each about as many
        losses.seconds, self.clock = losses.seconds + now - self.clock, now
        pace = f"{losses.examples / max(losses.seconds, 1e-9):.0f} examples/s"
        self.bar.set_postfix_str(f"{losses.shown}{pace}", refresh=False)
        self.bar.update(len(group))

    def log(self, loss, rate):
        """A log line is due, for which the host has waited for the device. loss: the mean since the last one."""
        losses, progress = self.losses, self.progress
        now = time.perf_counter()
        losses.seconds, self.clock = losses.seconds + now - self.clock, now
        pace = {"examples_per_second": losses.examples / max(losses.seconds, 1e-9), "seconds": losses.seconds}
        if not distributed.is_first():
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": progress.step, "epoch": progress.epoch} | pace) + "\n")
        losses.examples, losses.seconds, losses.shown = 0, 0.0, f"loss {loss:.4f}, lr {rate:.1e}, "

    def close(self):
        self.bar.close()


def line_of_scores(scores, names, width=67):
    """The scores of these names that there are, as many as fit: "intent_accuracy 0.8250  slots_f1 0.6851  loss 1.5932".

    width: what a terminal of 100 columns leaves beside "12:34:56 epoch 100  dev: " and "  (best)"; metrics.jsonl has
    all of them.
    """
    line = ""
    for name in dict.fromkeys(name for name in names if name in scores):
        longer = f"{line}  {name} {scores[name]:.4f}".strip()
        line = longer if len(longer) <= width or not line else line
    return line
