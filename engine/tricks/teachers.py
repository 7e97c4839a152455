"""Internals of distillation: the teachers and their predictions for each step."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from engine.errors import UserError
from engine.run import distributed
from engine.run.run_folder import checkpoint_of
from engine.task.task import Task, read_tasks
from engine.train import checkpoint
from engine.tricks.soft_targets import SoftTargets, Teacher, Windows, soft_targets
from engine.tricks.trick import Trick


def shared_tasks(folder: Path, teacher_tasks: Any, student_tasks: dict[str, Task]) -> list[str]:
    """Returns the tasks that teacher and student share. Raises UserError if there are none or if they differ."""
    names = [name for name in student_tasks if name in teacher_tasks]
    if not names:
        tasks = f"none of the tasks {', '.join(student_tasks)}, only {', '.join(teacher_tasks)}"
        raise UserError(f"--teacher: {folder} has {tasks}")
    for name in names:
        own, other = student_tasks[name], teacher_tasks[name]
        if own.kind != other.kind:
            raise UserError(f"--teacher: {name!r} is {other.kind} in {folder}, but {own.kind} here")
        if own.pairs != other.pairs:
            texts = {True: "pairs of texts", False: "single texts"}
            raise UserError(f"--teacher: {folder} reads {texts[other.pairs]}, but the data has {texts[own.pairs]}")
        if own.unit != other.unit:
            raise UserError(f"--teacher: the token unit of {name!r} is {other.unit} in {folder}, not {own.unit}")
        if own.labels != other.labels:
            differ = sorted(set(own.labels) ^ set(other.labels)) or ["their order"]
            raise UserError(f"--teacher: {folder} has different labels for {name!r} ({', '.join(differ[:8])})")
    return names


@contextmanager
def unchanged_random_states(device: torch.device) -> Iterator[None]:
    """Context manager that restores the state of all random number generators on exit."""
    states = checkpoint.random_states(device)
    try:
        yield
    finally:
        checkpoint.set_random_states(*states, device)


class MultiTeacher(Trick):
    """Computes the mean divergence of a model from several teachers. Each teacher runs only once, before training.

    folders: runs or checkpoints. See Distillation in tricks.py.
    """

    def __init__(self, model: Any, folders: Iterable[str | Path], temperature: float):
        self.model, self.temperature, self.heads = model, temperature, model.output_layer.heads
        self.step_targets: list[tuple[torch.Tensor, dict[str, SoftTargets]]] = []
        self.counts: dict[str, torch.Tensor] = {}
        self.force, self.teachers = False, list[Teacher]()
        tasks = {name: head.task for name, head in self.heads.items()}
        for folder in (checkpoint_of(Path(folder)) for folder in folders):
            shared = shared_tasks(folder, read_tasks(folder / "labels.json"), tasks)
            self.teachers.append(Teacher(folder, self.heads, shared, temperature))
        self.taught = [name for name in self.heads if any(name in teacher.tasks for teacher in self.teachers)]

    def run_teachers(self, data: Any, load: Callable[[Path], Any], batches_of: Callable[..., Any], config: Any) -> None:
        """Computes the teachers' predictions on the training set, or loads them from the cache.

        load(folder) -> (model, featurizer, its options); batches_of(examples, featurizer) -> a MyDataLoader.
        """
        self.windows, self.force = Windows(data), config.force_resume
        device = next(self.model.parameters()).device
        with unchanged_random_states(device):
            for teacher in self.teachers:
                teacher.predict(data, partial(load, teacher.folder), config.precision, device, batches_of)

    def before_step(self, group: list) -> None:
        self.step_targets = [(batch.rows, self.targets_of(batch)) for batch in group]
        self.counts = distributed.all_reduce_sum(
            self.count([(step[1], batch) for step, batch in zip(self.step_targets, group)])
        )

    def targets_of(self, batch: Any) -> dict[str, SoftTargets]:
        """Returns {task: SoftTargets} for a batch on the CPU."""
        return {name: soft_targets(self.teachers, name, self.heads[name], batch, self.windows) for name in self.taught}

    def count(self, pairs: list[tuple[dict[str, SoftTargets], Any]]) -> dict[str, torch.Tensor]:
        """Counts the texts or words with soft targets per task. pairs: [(targets, batch)]"""
        counts = []
        for targets, batch in pairs:
            distributions = {name: self.heads[name].distribution for name in targets}
            counts.append({name: distributions[name].num_taught(soft, batch.inputs) for name, soft in targets.items()})
        return {name: sum(count[name] for count in counts) for name in counts[0]}

    def loss_of_labels(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns the weighted sum of the losses over the tasks with teachers, ()."""
        weights = self.model.loss.task_weights
        return sum(weights.get(name, 1.0) * losses[name] for name in self.taught if name in losses)

    def divergence(self, logits: dict[str, torch.Tensor], batch: Any) -> torch.Tensor:
        """Returns the micro-batch's share of the mean divergence over its optimizer step, weighted by task, ()."""
        targets = next((targets for rows, targets in self.step_targets if rows is batch.rows), None)
        counts, total = self.counts, torch.zeros(())
        if targets is None:  # a batch outside of an optimizer step
            host = batch.to("cpu")
            targets = self.targets_of(host)
            counts = self.count([(targets, host)])
        with torch.autocast(batch.inputs["input_ids"].device.type, enabled=False):
            for name, taught in targets.items():
                taught, count = taught.to(logits[name].device), counts[name].clamp(min=1).to(logits[name].device)
                loss = self.heads[name].distribution.distillation(logits[name], taught, batch.inputs, self.temperature)
                total = total + self.model.loss.task_weights.get(name, 1.0) * loss / count
        return total

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Returns the teachers' checksums, because a run must be resumed with the same teachers."""
        return {"teachers": torch.tensor([list(bytes.fromhex(teacher.sha256)) for teacher in self.teachers])}

    def load_state_dict(self, tensors: dict[str, torch.Tensor]) -> None:
        if not (self.force or torch.equal(tensors["teachers"], self.state_dict()["teachers"])):
            changed = "--teacher: the teachers' checkpoints have changed since the run started"
            raise UserError(f"{changed}; start a new run with another --model_version, or add --force_resume")
