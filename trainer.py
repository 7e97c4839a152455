"""The training loop, evaluation, prediction, checkpointing and resuming.

To change the optimizer or the schedule, edit `build_optimizer` or `build_scheduler`. The training step is in
`train_one_epoch`, the choice of the best checkpoint in `keep_best`, and the metrics are in metrics.py.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import metrics
from engine.errors import UserError
from engine.predict.collector import Averages, PredictionCollector, Predictions
from engine.predict.predictions import prediction_rows
from engine.predict.rows import write_predictions
from engine.predict.stored import report_kinds
from engine.predict.uncertainty import Abstention, calibration_scores, thresholds_of
from engine.run import compat, distributed
from engine.run.device import can_pin, to_double
from engine.run.signals import Interrupted, StopSignals
from engine.train import checkpoint
from engine.train.frozen import cached_outputs
from engine.train.optimization import ScoreScheduler, describe, describe_rates, peak_rate, warmup_steps, with_warmup
from engine.train.progress import EpochBar, Progress, RunningLosses, line_of_scores
from engine.train.tracking import Tracking
from engine.tricks.trick import Tricks
from logging_config import TRACKERS, chosen_trackers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from config import Config
    from data_loader import Batch, MyDataLoader, MyIterableDataLoader
    from engine.task.task import Task
    from model_utils import MyModel, MyModelOutput

logger = logging.getLogger("template")


def build_optimizer(
    param_groups: list[dict[str, Any]], config: Config, device: torch.device | str
) -> torch.optim.Optimizer:
    """Builds a fused AdamW (Loshchilov and Hutter, 2019). Any other torch.optim.Optimizer works as well.

    param_groups: one group per parameter, with "name", "layer", "lr" and "weight_decay" (see `parameter_groups`), which
    you can change here. Groups with equal settings are merged afterwards.
    """
    fused = torch.device(device).type in ("cpu", "cuda")  # other devices may ignore grad_scale, used for clipping
    return torch.optim.AdamW(param_groups, betas=(0.9, 0.999), eps=1e-8, fused=fused)


def build_scheduler(
    optimizer: torch.optim.Optimizer, config: Config, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Builds a schedule with one learning rate per optimizer step: linear warmup, then a cosine or linear decay to
    --lrf times the peak, or a constant rate.

    To use another schedule, edit `factor` or return another scheduler. A scheduler whose `step` takes a score, such as
    ReduceLROnPlateau, steps after each evaluation on dev with the score of --monitor, and has the same warmup.
    """
    if config.scheduler == "plateau":
        mode: Any = "min" if metrics.lower_is_better(config.monitor) else "max"
        lowest = [config.lrf * group["lr"] for group in optimizer.param_groups]
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode, 0.5, 1, threshold=0, min_lr=lowest, eps=0)
    total, warmup = max(1, config.epochs * steps_per_epoch), warmup_steps(config, steps_per_epoch)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min(1.0, (step - warmup) / max(1, total - warmup))
        left = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}[config.scheduler]
        return config.lrf + (1 - config.lrf) * left

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


@dataclass
class TrainingSetup:
    """The objects that a Trainer needs only for training."""

    train_loader: MyDataLoader | MyIterableDataLoader
    dev_loader: MyDataLoader
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    tricks: Tricks = field(default_factory=Tricks)


class Evaluation(NamedTuple):
    """The result of `Trainer.eval`."""

    scores: dict[str, float]  # including the losses
    gold: dict[str, list[Any]]  # {task: one label or list of tags per example}
    predicted: dict[str, list[Any]]
    predictions: Any = None  # Predictions, including probabilities


class Trainer:
    """Trains, evaluates and predicts with a MyModel. Training requires a `setup`."""

    train_loader: MyDataLoader | MyIterableDataLoader
    dev_loader: MyDataLoader
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler

    def __init__(
        self,
        model: MyModel,
        tokenizer: PreTrainedTokenizerBase,
        tasks: dict[str, Task],
        config: Config,  # with resolved `auto` options, see engine/train/automatic.py
        device: torch.device,
        setup: TrainingSetup | None = None,
    ):
        self.model, self.tokenizer, self.tasks = model.to(device), tokenizer, tasks
        self.config, self.device, self.tricks = config, device, Tricks()
        if setup is not None:
            self.train_loader, self.dev_loader = setup.train_loader, setup.dev_loader
            self.optimizer, self.tricks = setup.optimizer, setup.tricks
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.run_dir, self.checkpoints = config.run_dir, config.run_dir / "checkpoints"
        self.writer = checkpoint.Writer(self.checkpoints, tokenizer, tasks, config)
        self.monitor = metrics.monitor_of(config.monitor, tasks)
        if setup is not None:
            direction = self.monitor, metrics.lower_is_better(self.monitor)
            self.scheduler = with_warmup(setup.scheduler, config, setup.train_loader, *direction)
        loaders = (setup.train_loader, setup.dev_loader) if setup else ()
        self.progress = Progress(data="-".join(loader.dataset.fingerprint for loader in loaders))
        self.losses = RunningLosses(self.progress, device)
        self.abstention = Abstention(thresholds_of(config.abstain_below, "abstain_below", tasks))
        self.target_precisions = thresholds_of(config.target_precision, "target_precision", tasks)
        self.lr = 0.0  # learning rate of the first trainable parameter group at the last step
        self.tracker_kinds, self.trackers = TRACKERS, list[Any]()
        self.stop = StopSignals(logger.warning, distributed.all_reduce_max)
        self.replica: Any = None  # the model in DistributedDataParallel, with several processes
        if config.compile:
            model.encoder.compile(dynamic=True)

    # ---- training --------------------------------------------------------------------------------------------------

    def train(self) -> float | None:
        """Runs the remaining epochs, each followed by an evaluation on dev, or stops early.

        Returns the best dev score; the model then has the weights of the best checkpoint. On SIGTERM or SIGINT, saves a
        checkpoint at the next step boundary and raises Interrupted.
        """
        with self.writer, self.opened_trackers(), self.saved_when_stopped():
            self.start()
            with cached_outputs(self):
                while self.progress.epoch < self.config.epochs and not self.out_of_patience():
                    self.train_one_epoch(self.progress.epoch)
                    self.end_epoch()
            if self.out_of_patience():
                logger.info(f"stopped early: {self.monitor} has not improved for {self.progress.bad_epochs} epochs")
            if self.config.epochs == 0:
                self.save_model("best")
        return self.reload_best()

    def train_one_epoch(self, epoch: int) -> None:
        """Trains for one epoch, from the current position. Each optimizer step uses a group of micro-batches."""
        progress, config, tricks = self.progress, self.config, self.tricks
        self.model.train()
        tricks.before_epoch(epoch)
        self.train_loader.set_position(epoch, progress.batch)
        title, num_batches = f"epoch {epoch + 1}/{config.epochs}", len(self.train_loader)
        bar = EpochBar(title, num_batches, progress, self.losses, self.run_dir)
        batches = iter(self.train_loader)
        while group := list(islice(batches, config.gradient_accumulation_steps)):
            label_counts = self.count_labels(group)
            tricks.before_step(group)
            for number, batch in enumerate(group, 1):
                batch, outputs = batch.to(self.device), []
                forward = partial(self.replica or self.model, batch.inputs, batch.labels, label_counts)
                sync = distributed.sync_gradients(self.replica, number == len(group))
                with sync, closing(tricks.passes(batch)) as passes:
                    for is_logged in passes:  # tricks may add passes with perturbed inputs or weights
                        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                            output = tricks.forward(forward, batch) if tricks else forward()
                        self.scaler.scale(output.total_loss).backward()
                        if is_logged:
                            outputs.append(output)
                self.losses.add(outputs)
            self.optimizer_step(group)
            progress.step, progress.batch = progress.step + 1, progress.batch + len(group)
            bar.update(group)
            if progress.step % config.log_steps == 0:
                bar.log(self.log_losses(epoch), self.lr)
            self.stop.check()
            if config.save_steps and progress.step % config.save_steps == 0:
                self.save_model(f"step_{progress.step:08d}", resumable=True)
        bar.close()

    def optimizer_step(self, group: list[Batch]) -> None:
        """Clips the gradients and updates weights and schedule. Skips the update if a gradient is not finite."""
        distributed.all_reduce_gradients(self.trained if self.replica is None else self.replica.left_out)
        self.scaler.unscale_(self.optimizer)
        norm = compat.get_total_norm([p.grad for p in self.trained if p.grad is not None])
        finite, scale, limit = torch.isfinite(norm), self.scaler.get_scale(), self.config.max_grad_norm
        fused = getattr(self.optimizer, "_step_supports_amp_scaling", False)
        if fused and type(self.optimizer) in (torch.optim.Adam, torch.optim.AdamW):
            # Clips, or skips the update, on the device, without a host sync on `finite`. Not for SGD, whose momentum
            # would be uninitialised after a skipped first step
            if limit:
                self.optimizer.grad_scale = (norm / limit).clamp(min=1)  # type: ignore[attr-defined]
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            self.optimizer.step()  # scaler.step would overwrite found_inf without checking the norm
        elif finite:
            if limit:
                compat.clip_grads_with_norm_(self.trained, limit, norm)
            self.scaler.step(self.optimizer)
        self.scaler.update()
        rates = zip(self.optimizer.param_groups, self.scheduler.get_last_lr())
        self.lr = next((float(rate) for group, rate in rates if peak_rate(group)), 0.0)
        overflow = self.scaler.get_scale() < scale  # fp16 only: without an update, the schedule does not advance
        if not overflow and self.scheduler.last_epoch < self.tricks.rate_held_from():
            self.scheduler.step()
        self.optimizer.zero_grad()
        self.tricks.after_step(finite)
        self.losses.end_step(norm, finite, [row for batch in group for row in batch.rows.tolist()])

    def count_labels(self, group: list[Batch]) -> dict[str, torch.Tensor]:
        """Counts the labels of each task in a group, over all processes: the divisor of the group's loss."""
        counts: Any = [self.model.count_labels(batch.inputs, batch.labels) for batch in group]
        counts = distributed.all_reduce_sum({name: sum(count[name] for count in counts) for name in counts[0]})
        return {name: count.to(self.device, non_blocking=can_pin(self.device.type)) for name, count in counts.items()}

    def start(self) -> None:
        """Saves the options, logs the sizes of model and data, and wraps the model if there are several processes."""
        if distributed.is_main_process():
            self.config.save(self.run_dir / "args.json")
        data = self.train_loader.dataset
        others = f", {len(data) - data.num_labelled} without labels" if data.num_labelled < len(data) else ""
        data_sizes = f"{data.num_labelled} training examples{others}, {len(self.dev_loader.dataset)} dev examples"
        logger.info(f"{describe(self.model, self.device)}; {data_sizes}; {describe_rates(self.optimizer)}")
        distributed.require_same_run(self.config, self.progress.data)
        self.replica = distributed.replicate(self.model, overlap=not self.tricks.change_gradients())
        if self.progress.epoch >= self.config.epochs > 0 or self.out_of_patience():
            advice = f"to train after a code change, add --model_version NAME or remove {self.run_dir}"
            logger.info(f"all epochs of this run are done; {advice}")

    @contextmanager
    def opened_trackers(self) -> Iterator[None]:
        def open_all() -> None:
            for kind in chosen_trackers(self.config, self.tracker_kinds):
                self.trackers.append(stack.enter_context(closing(Tracking(kind, self.config, self.progress.step))))

        with ExitStack() as stack:
            self.trackers = []
            distributed.from_rank_0(open_all)
            yield

    @contextmanager
    def saved_when_stopped(self) -> Iterator[None]:
        """Context manager that saves a resumable checkpoint when `stop.check` raises Interrupted."""
        with self.stop:
            try:
                yield
            except Interrupted:
                self.save_model(f"step_{self.progress.step:08d}", resumable=True)
                self.writer.wait()
                distributed.barrier()
                saved = f"stopped and saved after step {self.progress.step}"
                logger.info(f"{saved}; the same command with --resume continues")
                raise
            except RuntimeError as error:
                if self.stop.number is None or "DataLoader worker" not in str(error):
                    raise
                # The signal also killed data loader workers, so training resumes from the last checkpoint
                raise Interrupted(self.stop.number) from error

    def reload_best(self) -> float | None:
        """Loads the weights of the best checkpoint. Returns its dev score."""
        progress = self.progress
        distributed.barrier()  # waits until the best checkpoint is on disk
        if self.config.epochs > 0:
            checkpoint.require_whole(self.checkpoints / "best")
            checkpoint.load_weights(self.model, self.checkpoints / "best")
            best = f"best: epoch {progress.best_epoch}, dev {self.monitor} {progress.best_score:.4f}"
            heads = self.model.output_layer.heads.items()
            fitted = [f"{name} {head.temperature:.2f}" for name, head in heads if head.distribution.has_temperature]
            logger.info(f"{best}; temperatures: {', '.join(fitted)}" if fitted and self.config.calibrate else best)
        return progress.best_score

    # ---- logs, best, last, resume ----------------------------------------------------------------------------------

    def log_losses(self, epoch: int) -> float:
        """Logs the mean losses since the previous call to metrics.jsonl and the trackers. Returns the total loss."""
        means = self.losses.mean()
        self.log({"step": self.progress.step, "epoch": epoch, "lr": self.lr} | means)
        return means["loss"]

    def log(self, record: dict[str, float]) -> None:
        if not distributed.is_main_process():
            return
        with open(self.run_dir / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            self.progress.metrics_bytes = file.tell()
        for tracker in self.trackers:
            tracker.log(record)

    def end_epoch(self) -> None:
        """Evaluates on dev with the (averaged) weights. Saves the best and the latest checkpoint."""
        config, progress = self.config, self.progress
        self.tricks.after_epoch(progress.epoch)
        is_better = partial(metrics.is_better, self.monitor)
        self.tricks.choose_weights(progress.epoch, lambda: self.score_dev()[self.monitor], is_better)
        with self.tricks.swap_weights():
            self.tricks.adapt_to_dev(self.logits_of_dev)
            scores = self.score_dev()
            progress.epoch, progress.batch = progress.epoch + 1, 0
            self.keep_best(scores)
        if isinstance(self.scheduler, ScoreScheduler) and self.scheduler.last_epoch < self.tricks.rate_held_from():
            self.scheduler.step_on_score(scores[self.monitor])  # before saving, so the checkpoint has the new rate
        last = progress.epoch == config.epochs or self.out_of_patience()
        if last or (config.save_epoch and progress.epoch % config.save_epoch == 0):
            self.save_model(f"step_{progress.step:08d}", resumable=True)
        self.stop.check()

    def score_dev(self) -> dict[str, float]:
        """Returns the scores on dev with the model's current weights."""
        scores = self.eval(self.dev_loader, calibrate=True).scores
        if self.monitor not in scores:
            raise UserError(f"--monitor={self.monitor}: dev has no labels to compute it from")
        return scores

    @torch.inference_mode()
    def logits_of_dev(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Returns {task: (logits, labels)} for all of dev, on the CPU, for tasks with text-level labels."""
        names = [name for name, head in self.model.output_layer.heads.items() if not head.by_words]
        batches: list[Any] = [
            {name: (output.logits[name].cpu(), batch.labels[name].cpu()) for name in names}
            for batch, output in self.run_model(self.dev_loader, "evaluating")
        ]
        batches = distributed.gather_in_turn(batches)
        columns = {name: list(zip(*(batch[name] for batch in batches))) for name in names}
        return {name: (torch.cat(logits), torch.cat(labels)) for name, (logits, labels) in columns.items()}

    def out_of_patience(self) -> bool:
        return 0 < (self.config.early_stop_patience or 0) <= self.progress.bad_epochs

    def keep_best(self, scores: dict[str, float]) -> None:
        """Logs the dev scores. Saves the model if it is the best so far; on a tie, the earlier one remains the best."""
        progress = self.progress
        dev_scores = {f"dev_{name}": score for name, score in scores.items()}
        self.log({"step": progress.step, "epoch": progress.epoch - 1} | dev_scores)
        shown = line_of_scores(scores, [self.monitor, *metrics.main_scores(self.tasks), "loss"])
        if metrics.is_better(self.monitor, scores[self.monitor], progress.best_score):
            progress.best_score, progress.best_epoch, progress.bad_epochs = scores[self.monitor], progress.epoch, 0
            self.save_model("best")
            shown += "  (best)"
        elif progress.epoch > self.tricks.start_epoch():
            progress.bad_epochs += 1
        logger.info(f"epoch {progress.epoch}  dev: {shown}")

    @property
    def training_state(self) -> tuple[Any, Any, torch.amp.GradScaler, Tricks]:
        """Returns the objects whose state a resumable checkpoint stores in addition to the weights and `progress`."""
        return self.optimizer, self.scheduler, self.scaler, self.tricks

    def save_model(self, name: str, resumable: bool = False) -> None:
        """Saves checkpoints/<name> in the background. resumable: include optimizer, schedule and random states."""
        training = None
        if resumable:
            self.losses.sync_losses()
            training = checkpoint.training_state(*self.training_state, asdict(self.progress), self.device)
        if distributed.is_main_process():
            self.writer.save(name, self.model, training, log=self.run_dir / "metrics.jsonl")

    def resume(self) -> bool:
        """Resumes from the newest intact checkpoint. Returns whether there is one."""
        metrics_path = self.run_dir / "metrics.jsonl"
        folder, damaged = distributed.from_rank_0(lambda: checkpoint.newest_intact(self.checkpoints))
        if folder is None:
            # Imports may have drawn random numbers, and each process needs its own dropout masks
            distributed.seed_each(self.config.random_seed)
            if distributed.is_main_process():
                metrics_path.write_bytes(b"")
            return False
        checkpoint.require_labels(folder, self.tasks)
        checkpoint.load_weights(self.model, folder)
        data = self.progress.data
        saved, processes = checkpoint.restore_training(folder, *self.training_state, self.device)
        self.progress = Progress.load(saved, folder)
        if processes != distributed.size():
            batches, accumulated = len(self.train_loader), self.config.gradient_accumulation_steps
            schedule = self.scheduler, self.tricks.rate_held_from()
            self.progress.share_among(distributed.size(), processes, schedule, batches, accumulated)
        if self.progress.data != data and not self.config.force_resume:
            changed = "the data or the tokenizer has changed since this checkpoint was saved"
            raise UserError(f"{folder}: {changed}; start a new run with another --model_version, or add --force_resume")
        self.losses = RunningLosses(self.progress, self.device)
        if distributed.is_main_process():
            checkpoint.truncate_log(self.progress.metrics_bytes, metrics_path, damaged)
        logger.info(f"resumed from {folder}: {self.progress.step} steps done")
        return True

    # ---- evaluation and prediction ---------------------------------------------------------------------------------

    def metric_function(self, gold: dict[str, list[Any]], predicted: dict[str, list[Any]]) -> dict[str, float]:
        """Computes all scores, see metrics.py. gold, predicted: {task: one label or list of tags per example}."""
        return metrics.score(self.tasks, gold, predicted)

    def eval(self, loader: MyDataLoader, calibrate: bool = False, keep_averages: Averages = "none") -> Evaluation:
        """Scores all examples against their gold labels, including truncated words and labels unknown to the model.

        calibrate: first calibrate the heads on these examples, such as the threshold of a multilabel head.
        keep_averages: see PredictionCollector; with "texts", the scores include calibration errors.
        """
        predictions, losses = self.infer(loader, "evaluating", calibrate, keep_averages)
        examples = [loader.dataset[i] for i in range(len(loader.dataset))]
        gold = {name: [example[name] for example in examples] for name in self.tasks}
        scores = losses | self.metric_function(gold, predictions.labels)
        if keep_averages == "texts":
            scores |= calibration_scores(self.tasks, report_kinds(self.tasks, metrics), gold, predictions)
        return Evaluation(scores, gold, predictions.labels, predictions)

    @torch.inference_mode()
    def infer(
        self, loader: MyDataLoader, title: str, calibrate: bool = False, keep_averages: Averages = "none"
    ) -> tuple[Predictions, dict[str, float]]:
        """Returns (predictions in the order of the loader's dataset, {loss: mean}). title: for the progress bar."""
        heads, temper = self.model.output_layer.heads, self.config.calibrate
        collector = PredictionCollector(heads, loader.dataset, calibrate, keep_averages, temper)
        losses: list[Any] = []  # {task: (sum of losses, number of labels)} of each batch
        for batch, output in self.run_model(loader, title):
            counts = self.model.count_labels(batch.inputs, batch.labels)
            counts = {name: to_double(count) for name, count in counts.items()}
            losses.append({name: torch.stack([to_double(output.losses[name]) * n, n]) for name, n in counts.items()})
            collector.add(batch, output.logits)
        collector.gather()
        losses = distributed.gather_in_turn([{name: pair.tolist() for name, pair in row.items()} for row in losses])
        return collector.finish(), metrics.mean_losses(losses, self.model.loss)

    def run_model(self, loader: MyDataLoader, title: str) -> Iterator[tuple[Batch, MyModelOutput]]:
        """Runs the model on each batch of this process. Yields (batch, output), both on the device."""
        self.model.eval()
        for batch in tqdm(distributed.in_step(loader), desc=title, total=len(loader), leave=False, delay=2):
            self.stop.check()
            if batch is None:  # other processes have one more batch
                continue
            batch = batch.to(self.device)
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                output = self.model(batch.inputs, batch.labels or None)
            yield batch, output

    def predict_rows(self, loader: MyDataLoader) -> Iterator[dict[str, Any]]:
        """Yields the `prediction_row` of each example, in input order."""
        predictions, _ = self.infer(loader, "predicting")
        return prediction_rows(predictions, loader.dataset, self.tasks, metrics.is_right, self.abstention)

    @property
    def tasks_to_embed(self) -> dict[str, Task]:
        """The tasks for `embed`. A model that encodes the texts of a pair separately embeds single texts."""
        apart = self.model.output_layer.reads_pairs
        return {name: replace(task, pairs=False) if apart else task for name, task in self.tasks.items()}

    @torch.inference_mode()
    def embed(self, loader: MyDataLoader) -> np.ndarray:
        """Returns the vectors of the texts, (N, H), see MyModel.embed. For tagging, from the first window of each
        text."""
        self.model.eval()
        if not self.model.hidden_size:
            raise UserError("this model has no text input, so it cannot embed texts")
        data, vectors = loader.dataset, np.empty((len(loader.dataset), self.model.hidden_size), np.float32)
        for batch in tqdm(loader, desc="embedding", leave=False, delay=2):
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                output = self.model.embed(batch.to(self.device).inputs).float().cpu().numpy()
            for row, vector in zip(batch.rows.tolist(), output):
                if data.is_first(row):
                    vectors[data.example_index[row]] = vector
        if not np.isfinite(vectors).all():
            raise UserError("the model's vectors contain NaN or infinity; try --precision fp32, or train again")
        return vectors

    def predict(self, loader: MyDataLoader, path: str | Path) -> None:
        """Writes the predictions for all examples to a .csv or .jsonl file. For large files, see `label_rows`."""
        rows = self.predict_rows(loader)
        if distributed.is_main_process():
            write_predictions(rows, path)
            logger.info(f"{len(loader.dataset)} predictions in {path}")
