"""Where a run stands, and the losses since its last log line."""

import logging
from dataclasses import dataclass, field, fields

import torch

from engine import distributed
from engine.command_line import UserError

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
        """From what a checkpoint holds. UserError if another version of this template wrote it."""
        if values.keys() != {part.name for part in fields(cls)}:
            raise UserError(f"{folder}: another version of this template wrote it; train a new --model_version")
        return cls(**values)

    def share_among(self, processes, before, scheduler, batches, in_step):
        """Goes on at the same place of data and schedule with another number of processes, as near as whole steps
        allow.

        processes: how many there are now; before: there were. batches: those of an epoch now; in_step: of a step.
        """
        self.batch = self.batch * before // processes // in_step * in_step
        scheduler.last_epoch = self.epoch * -(-batches // in_step) + self.batch // in_step - 1
        scheduler.step()


class RunningLosses:
    """Losses since the last log line, on the device until it is written, so that the host never waits for them."""

    def __init__(self, progress, device):
        self.progress = progress
        self.sums = {name: torch.tensor(value, device=device) for name, value in progress.sums.items()}
        self.group_sums, self.unseen_steps = {}, []

    def add(self, output):
        """The losses of a micro-batch, each its share of its group's."""
        for name, loss in (("loss", output.total_loss), *((f"{task}_loss", v) for task, v in output.losses.items())):
            self.group_sums[name] = self.group_sums.get(name, 0.0) + loss.detach()

    def end_step(self, finite, rows):
        """Ends a group. finite: (), whether its gradient was; rows: the numbers of its examples."""
        for name, loss in self.group_sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + torch.where(finite, loss, 0.0)
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
