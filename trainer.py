"""The training loop, evaluation and prediction, saving and resuming.

Edit here for another optimizer or schedule (`build_optimizer`, `build_scheduler`), another training step
(`train_one_epoch`), or another rule for the best checkpoint (`keep_best`). The scores are in metrics.py.
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
from engine.predict.answers import report_kinds
from engine.predict.predictions import Answers, Averages, Predictions, prediction_rows, write_predictions
from engine.predict.uncertainty import Abstention, calibration_scores, thresholds_of
from engine.run import compat, distributed
from engine.run.device import can_pin, to_double
from engine.run.signals import Interrupted, StopSignals
from engine.train import checkpoint
from engine.train.frozen import kept_outputs
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
    from model_utils import MyModel

logger = logging.getLogger("template")


def build_optimizer(
    param_groups: list[dict[str, Any]], config: Config, device: torch.device | str
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019) in torch's fused form. Any other torch.optim.Optimizer works as well.

    param_groups: one per parameter, with "name", "layer", "lr" and "weight_decay" (see `parameter_groups`); change them
    here. Equal ones are merged afterwards.
    """
    fused = torch.device(device).type in ("cpu", "cuda")  # others may ignore grad_scale, which clips here
    return torch.optim.AdamW(param_groups, betas=(0.9, 0.999), eps=1e-8, fused=fused)


def build_scheduler(
    optimizer: torch.optim.Optimizer, config: Config, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Linear warmup, then cosine or linear decay to --lrf of the peak, or constant; one value for each optimizer step.

    Edit `factor`, or return any other scheduler. One whose `step` needs a score, such as ReduceLROnPlateau, steps after
    each evaluation on dev, with the score of --monitor; it gets the same warmup.
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
    """The objects that only training needs."""

    train_loader: MyDataLoader | MyIterableDataLoader
    dev_loader: MyDataLoader
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    tricks: Tricks = field(default_factory=Tricks)


class Evaluation(NamedTuple):
    scores: dict  # {score: value}, losses too
    gold: dict  # {task: a label or list of tags for each example}
    predicted: dict
    predictions: Any = None  # Predictions, with probabilities


class Trainer:
    """Trains, evaluates and predicts with a MyModel. Without a `setup` it cannot train."""

    train_loader: MyDataLoader | MyIterableDataLoader
    dev_loader: MyDataLoader
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler

    def __init__(
        self,
        model: MyModel,
        tokenizer: PreTrainedTokenizerBase,
        tasks: dict[str, Task],
        config: Config,  # options at auto are resolved, see engine/train/automatic.py
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
        self.monitor = config.monitor or metrics.default_monitor(tasks)
        if self.monitor not in (names := metrics.score_names(tasks)):
            raise UserError(f"--monitor={self.monitor} must be one of the scores: {', '.join(names)}")
        if setup is not None:
            direction = self.monitor, metrics.lower_is_better(self.monitor)
            self.scheduler = with_warmup(setup.scheduler, config, setup.train_loader, *direction)
        loaders = (setup.train_loader, setup.dev_loader) if setup else ()
        self.progress = Progress(data="-".join(loader.dataset.fingerprint for loader in loaders))
        self.losses = RunningLosses(self.progress, device)
        self.abstention = Abstention(thresholds_of(config.abstain_below, "abstain_below", tasks))
        self.target_precisions = thresholds_of(config.target_precision, "target_precision", tasks)
        self.lr = 0.0  # learning rate of the last step, for the first group that is trained
        self.tracker_kinds, self.trackers = TRACKERS, list[Any]()
        self.stop = StopSignals(logger.warning, distributed.all_reduce_max)
        self.replica: Any = None  # the model wrapped so that PyTorch sums the gradients of several processes
        if config.compile:
            model.encoder.compile(dynamic=True)

    # ---- training --------------------------------------------------------------------------------------------------

    def train(self) -> float | None:
        """Runs the remaining epochs, with evaluation on dev, saving and early stopping. Returns the best dev score.

        Afterwards the model has the weights of the best checkpoint. SIGTERM and SIGINT save at the next step boundary
        and raise Interrupted.
        """
        with self.writer, self.opened_trackers(), self.saved_when_stopped():
            self.start()
            with kept_outputs(self):
                while self.progress.epoch < self.config.epochs and not self.out_of_patience():
                    self.train_one_epoch(self.progress.epoch)
                    self.end_epoch()
            if self.out_of_patience():
                logger.info(f"stopped early: {self.monitor} has not improved for {self.progress.bad_epochs} epochs")
            if self.config.epochs == 0:
                self.save_model("best")
        return self.reload_best()

    def train_one_epoch(self, epoch: int) -> None:
        """Runs one pass over the training data, from the current position; a step takes a group of micro-batches."""
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
                    for is_logged in passes:  # a trick may repeat the pass with a perturbation
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
        """Clip, update, schedule. A step with a non-finite gradient leaves the weights unchanged."""
        distributed.all_reduce_gradients(self.trained if self.replica is None else self.replica.left_out)
        self.scaler.unscale_(self.optimizer)
        norm = compat.get_total_norm([p.grad for p in self.trained if p.grad is not None])
        finite, scale, limit = torch.isfinite(norm), self.scaler.get_scale(), self.config.max_grad_norm
        fused = getattr(self.optimizer, "_step_supports_amp_scaling", False)
        if fused and type(self.optimizer) in (torch.optim.Adam, torch.optim.AdamW):  # SGD would not set up its momentum
            # Clips and skips on the device: the host does not wait for `finite`
            if limit:
                self.optimizer.grad_scale = (norm / limit).clamp(min=1)  # type: ignore[attr-defined]
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            self.optimizer.step()  # scaler.step would overwrite found_inf with its own, which ignores the norm
        elif finite:
            if limit:
                compat.clip_grads_with_norm_(self.trained, limit, norm)
            self.scaler.step(self.optimizer)
        self.scaler.update()
        rates = zip(self.optimizer.param_groups, self.scheduler.get_last_lr())
        self.lr = next((float(rate) for group, rate in rates if peak_rate(group)), 0.0)
        overflow = self.scaler.get_scale() < scale  # in fp16; then the schedule does not advance either
        if not overflow and self.scheduler.last_epoch < self.tricks.rate_held_from():
            self.scheduler.step()
        self.optimizer.zero_grad()
        self.tricks.after_step(finite)
        self.losses.end_step(norm, finite, [row for batch in group for row in batch.rows.tolist()])

    def count_labels(self, group: list[Batch]) -> dict[str, torch.Tensor]:
        """{task: number of labels in all micro-batches of a group and all processes}, the divisor of its loss."""
        counts: Any = [self.model.count_labels(batch.inputs, batch.labels) for batch in group]
        counts = distributed.all_reduce_sum({name: sum(count[name] for count in counts) for name in counts[0]})
        return {name: count.to(self.device, non_blocking=can_pin(self.device.type)) for name, count in counts.items()}

    def start(self) -> None:
        """Saves the options, logs the sizes of model and data, and sets up several processes."""
        if distributed.is_main_process():
            self.config.save(self.run_dir / "args.json")
        data = self.train_loader.dataset
        others = f" and {len(data) - data.num_labelled} without labels" if data.num_labelled < len(data) else ""
        data_sizes = f"{data.num_labelled} training examples{others}, {len(self.dev_loader.dataset)} in dev"
        logger.info(f"{describe(self.model, self.device)}; {data_sizes}; {describe_rates(self.optimizer)}")
        distributed.require_same_run(self.config, self.progress.data)
        self.replica = distributed.replicate(self.model, overlap=not self.tricks.change_gradients())
        if self.progress.epoch >= self.config.epochs > 0 or self.out_of_patience():
            again = f"to train edited code, add --model_version NAME or remove {self.run_dir}"
            logger.info(f"all epochs of this run are done, nothing is left to train; {again}")

    @contextmanager
    def opened_trackers(self) -> Iterator[None]:
        def open_all() -> None:
            for kind in chosen_trackers(self.config, self.tracker_kinds):
                self.trackers.append(stack.enter_context(closing(Tracking(kind, self.config, self.progress.step))))

        with ExitStack() as stack:
            self.trackers = []
            distributed.from_first(open_all)
            yield

    @contextmanager
    def saved_when_stopped(self) -> Iterator[None]:
        """A context that saves a checkpoint to resume from, when SIGTERM or SIGINT makes `stop.check` raise."""
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
                # The signal has killed workers of the data loader too; the last checkpoint stays
                raise Interrupted(self.stop.number) from error

    def reload_best(self) -> float | None:
        """Loads the weights of the best checkpoint and returns its dev score."""
        progress = self.progress
        distributed.barrier()  # until the best checkpoint is on disk
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
        """Logs the mean losses since the last line to metrics.jsonl and TensorBoard. Returns the total loss."""
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
        """Scores dev with the (averaged) weights to keep; saves the best and the last checkpoint."""
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
        """{score: value} of dev with the model's current weights."""
        scores = self.eval(self.dev_loader, calibrate=True).scores
        if self.monitor not in scores:
            raise UserError(f"--monitor={self.monitor}: dev has no labels to compute it from")
        return scores

    @torch.inference_mode()
    def logits_of_dev(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """{task: (logits, labels)} of all of dev, on the CPU, for tasks with one label per text."""
        self.model.eval()
        names = [name for name, head in self.model.output_layer.heads.items() if not head.by_words]
        parts: list[Any] = []
        for batch in distributed.in_step(self.dev_loader):
            if batch is not None:
                batch = batch.to(self.device)
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                    logits = self.model(batch.inputs).logits
                parts.append({name: (logits[name].cpu(), batch.labels[name].cpu()) for name in names})
        parts = distributed.gather_in_turn(parts)
        columns = {name: list(zip(*(part[name] for part in parts))) for name in names}
        return {name: (torch.cat(logits), torch.cat(labels)) for name, (logits, labels) in columns.items()}

    def out_of_patience(self) -> bool:
        return 0 < (self.config.early_stop_patience or 0) <= self.progress.bad_epochs

    def keep_best(self, scores: dict[str, float]) -> None:
        """Logs dev scores, and saves the model if it is the best so far (a tie keeps the earlier one)."""
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
        """The state that a resumable checkpoint holds in addition to the weights and `progress`."""
        return self.optimizer, self.scheduler, self.scaler, self.tricks

    def save_model(self, name: str, resumable: bool = False) -> None:
        """Writes checkpoints/<name> while training continues. resumable: with optimizer, schedule, random states."""
        training = None
        if resumable:
            self.losses.sync_losses()
            training = checkpoint.training_state(*self.training_state, asdict(self.progress), self.device)
        if distributed.is_main_process():
            self.writer.save(name, self.model, training, log=self.run_dir / "metrics.jsonl")

    def resume(self) -> bool:
        """Resumes from the newest intact checkpoint. Returns whether one was found."""
        metrics_path = self.run_dir / "metrics.jsonl"
        folder, damaged = distributed.from_first(lambda: checkpoint.newest_intact(self.checkpoints))
        if folder is None:
            # Some libraries draw from Python's generator on import; each process has its own dropout
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
            changed = "the data or the tokenizer has changed since then"
            raise UserError(f"{folder}: {changed}; start a new run with another --model_version, or add --force_resume")
        self.losses = RunningLosses(self.progress, self.device)
        if distributed.is_main_process():
            checkpoint.truncate_log(self.progress.metrics_bytes, metrics_path, damaged)
        logger.info(f"resumed from {folder}: {self.progress.step} steps done")
        return True

    # ---- evaluation and prediction ---------------------------------------------------------------------------------

    def metric_function(self, gold: dict[str, list[Any]], predicted: dict[str, list[Any]]) -> dict[str, float]:
        """Returns {score: value}. gold, predicted: {task: list of labels or tag lists}; see metrics.py."""
        return metrics.score(self.tasks, gold, predicted)

    def eval(self, loader: MyDataLoader, calibrate: bool = False, keep_averages: Averages = "none") -> Evaluation:
        """Scores all examples against the labels in the file, including cut words and labels unknown to the model.

        calibrate: first calibrate the heads on dev (such as the threshold of a multilabel head). keep_averages: if
        "texts", the scores include calibration errors.
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
        """(answers, {loss: mean}), in the order of the loader's dataset."""
        self.model.eval()
        heads, temper = self.model.output_layer.heads, self.config.calibrate
        answers = Answers(heads, loader.dataset, calibrate, keep_averages, temper)
        parts: Any = []  # {task: (loss, number of labels)} of each batch
        for batch in tqdm(distributed.in_step(loader), desc=title, total=len(loader), leave=False, delay=2):
            self.stop.check()
            if batch is None:  # other processes have one more batch
                continue
            batch = batch.to(self.device)
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                output = self.model(batch.inputs, batch.labels or None)
            counts = self.model.count_labels(batch.inputs, batch.labels)
            parts.append(
                {
                    name: torch.stack([to_double(output.losses[name]) * to_double(n), to_double(n)])
                    for name, n in counts.items()
                }
            )
            answers.add(batch, output.logits)
        answers.gather()
        parts = distributed.gather_in_turn([{name: pair.tolist() for name, pair in part.items()} for part in parts])
        return answers.finish(), metrics.mean_losses(parts, self.model.loss)

    def predict_rows(self, loader: MyDataLoader) -> Iterator[dict[str, Any]]:
        """Yields the `prediction_row` of each example, in input order."""
        predictions, _ = self.infer(loader, "predicting")
        return prediction_rows(predictions, loader.dataset, self.tasks, metrics.is_right, self.abstention)

    @property
    def tasks_to_embed(self) -> dict[str, Task]:
        """The tasks for `embed`. If the model encodes the texts of a pair separately, each text is embedded alone."""
        apart = self.model.output_layer.reads_pairs
        return {name: replace(task, pairs=False) if apart else task for name, task in self.tasks.items()}

    @torch.inference_mode()
    def embed(self, loader: MyDataLoader) -> np.ndarray:
        """The vectors (N, H) of the loader's texts, see MyModel.embed; of a text to tag, that of its first window."""
        self.model.eval()
        if not self.model.hidden_size:
            raise UserError("this model reads no text, so there are no vectors of texts")
        data, vectors = loader.dataset, np.empty((len(loader.dataset), self.model.hidden_size), np.float32)
        for batch in tqdm(loader, desc="embedding", leave=False, delay=2):
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                output = self.model.embed(batch.to(self.device).inputs).float().cpu().numpy()
            for row, vector in zip(batch.rows.tolist(), output):
                if data.is_first(row):
                    vectors[data.example_index[row]] = vector
        if not np.isfinite(vectors).all():
            raise UserError("the model's vectors are not finite numbers; try --precision fp32, or train again")
        return vectors

    def predict(self, loader: MyDataLoader, path: str | Path) -> None:
        """Writes predictions for all examples to a .csv or .jsonl; for large files see engine/predict."""
        rows = self.predict_rows(loader)
        if distributed.is_main_process():
            write_predictions(rows, path)
            logger.info(f"{len(loader.dataset)} predictions in {path}")
