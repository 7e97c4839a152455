"""The training loop, evaluation, prediction, and what makes a run resumable.

Edit here when you want to change how a step is taken (`train_one_epoch`), what is scored (`metric_function`) or what
prediction writes (`predict`).
"""

import csv
import json
import logging
import math
import shutil
import signal
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import torch
from torch.nn.utils import get_total_norm
from tqdm import tqdm

import metrics
from engine import checkpoint, files
from engine.command_line import UserError
from engine.run_folder import Interrupted
from engine.tags import is_tagging
from engine.text import join_tokens, place_tokens, split_text
from tricks import Tricks

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
    sum_refused: int = 0  # of these steps, how many were left out
    metrics_bytes: int = 0  # length of metrics.jsonl
    data: str = ""  # what the rows and their encoding are


def build_optimizer(groups, device):
    """AdamW (Loshchilov and Hutter, 2019) in torch's fused form, which also skips a step whose gradient is not finite."""
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=torch.device(device).type in ("cpu", "cuda"))


def build_scheduler(optimizer, config, steps_per_epoch):
    """Linear warmup, then cosine or linear down to --lrf of the peak, or constant; one value for each optimizer step.

    With --use_swa the rate stays, from --swa_start of the steps on, what it is there."""
    total = max(1, config.epochs * steps_per_epoch)
    warmup = round((config.epochs / 10 if config.warmup_epochs is None else config.warmup_epochs) * steps_per_epoch)

    def factor(step):
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if config.use_swa:
            step = min(step, max(warmup, round(config.swa_start * total)))
        done = min(1.0, (step - warmup) / max(1, total - warmup))
        left = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}[config.scheduler]
        return config.lrf + (1 - config.lrf) * left

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class Trainer:
    """Trains, evaluates and predicts with a MyModel.

    tasks: as in labels.json. The loaders, optimizer, scheduler and tricks are needed for `train` alone.
    """

    def __init__(
        self,
        model,
        tokenizer,
        tasks,
        config,
        device,
        train_loader=None,
        dev_loader=None,
        optimizer=None,
        scheduler=None,
        tricks=None,
    ):
        self.model, self.tokenizer, self.tasks, self.config, self.device = (
            model.to(device),
            tokenizer,
            tasks,
            config,
            device,
        )
        self.train_loader, self.dev_loader = train_loader, dev_loader
        self.optimizer, self.scheduler, self.tricks = optimizer, scheduler, Tricks(tricks or ())
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
        self.root = config.run_dir / "checkpoints"
        self.writer = checkpoint.Writer(self.root, tokenizer, tasks, config)
        self.monitor = config.monitor or metrics.default_monitor(tasks)
        if self.monitor not in (names := metrics.score_names(tasks)):
            raise UserError(f"--monitor={self.monitor} is none of the scores: {', '.join(names)}")
        self.data = "-".join(loader.dataset.fingerprint for loader in (train_loader, dev_loader) if loader)
        self.progress = Progress(data=self.data)
        self.sums, self.group_sums, self.refused = {}, {}, []  # on the device until the next log line
        self.signal_number = None
        self.state = (
            optimizer,
            self.scheduler,
            self.scaler,
            self.tricks,
        )  # what a checkpoint to resume from has beside the weights
        self.trained = [p for p in model.parameters() if p.requires_grad]
        if config.compile:
            model.encoder.compile(dynamic=True)

    # ---- training ---------------------------------------------------------------------------------------------------

    def train(self):
        """All epochs that are left, with evaluation on dev, best and last checkpoints and early stopping. -> the best dev score.

        The model then holds the best checkpoint's weights. SIGTERM and SIGINT save at the next step boundary and raise Interrupted.
        """
        from torch.utils.tensorboard import SummaryWriter

        config, progress = self.config, self.progress
        config.save(config.run_dir / "args.json")
        rates = sorted({f"{group['initial_lr']:.1e}" for group in self.optimizer.param_groups})
        logger.info(
            f"{sum(p.numel() for p in self.model.parameters()) / 1e6:.1f} M parameters on {self.device}; "
            f"{len(self.train_loader.dataset)} examples to train on, {len(self.dev_loader.dataset)} in dev; peak rates {', '.join(rates)}"
        )
        for idle in config.unused_options():
            logger.warning(idle)
        if config.use_crf and not any(is_tagging(task["type"]) for task in self.tasks.values()):
            logger.warning("--use_crf has no effect: none of the tasks is tagging")
        elif config.use_crf and (config.class_weights != "none" or config.label_smoothing or config.focal_gamma):
            logger.warning(
                "--class_weights, --label_smoothing and --focal_gamma have no effect on tagging with --use_crf"
            )
        if config.pooling == "mean" and all(is_tagging(task["type"]) for task in self.tasks.values()):
            logger.warning("--pooling=mean has no effect: all tasks are tagging")
        with (
            self.writer,
            self.signals(),
            SummaryWriter(config.run_dir / "tensorboard", purge_step=progress.step + 1) as self.board,
        ):
            while progress.epoch < config.epochs and not self.out_of_patience():
                try:
                    self.train_one_epoch(progress.epoch)
                    self.tricks.after_epoch(progress.epoch)
                    with self.tricks.averaged():
                        scores = self.eval(self.dev_loader, fit=True)
                        progress.epoch, progress.batch = progress.epoch + 1, 0
                        if self.monitor not in scores:
                            raise UserError(
                                f"--monitor={self.monitor}: dev has no label that it could be computed from"
                            )
                        self.keep_best(scores)
                    last = progress.epoch == config.epochs or self.out_of_patience()
                    if last or (config.save_epoch and progress.epoch % config.save_epoch == 0):
                        self.save_model(f"step_{progress.step:08d}", resumable=True)
                    self.check_signal()
                except Interrupted:
                    self.save_model(f"step_{progress.step:08d}", resumable=True)
                    self.writer.wait()
                    logger.info(f"stopped and saved after step {progress.step}; the same command with --resume goes on")
                    raise
                except RuntimeError:
                    if self.signal_number is None:
                        raise
                    raise Interrupted(
                        self.signal_number
                    ) from None  # workers died of the same signal: the last checkpoint counts
            if self.out_of_patience():
                logger.info(f"stopped early: {self.monitor} has not risen for {progress.bad_epochs} epochs")
            if config.epochs == 0:
                self.save_model("best")
        if config.epochs > 0:
            checkpoint.require_whole(self.root / "best")
            checkpoint.load_weights(self.model, self.root / "best")
            logger.info(f"best: epoch {progress.best_epoch}, dev {self.monitor} {progress.best_score:.4f}")
        return progress.best_score

    def train_one_epoch(self, epoch):
        """One pass from where the run stands; a group of micro-batches is one optimizer step."""
        progress, size = self.progress, self.config.gradient_accumulation_steps
        self.model.train()
        self.tricks.before_epoch(epoch)
        self.train_loader.set_position(epoch, progress.batch)
        bar = tqdm(
            total=len(self.train_loader),
            initial=progress.batch,
            desc=f"epoch {epoch + 1}/{self.config.epochs}",
            leave=False,
        )
        batches = iter(self.train_loader)
        while group := list(islice(batches, size)):
            counts = [self.model.count_labels(batch.inputs, batch.labels) for batch in group]
            totals = {
                name: sum(count[name] for count in counts).to(self.device, non_blocking=True) for name in counts[0]
            }
            for batch in group:
                batch = batch.to(self.device)
                self.add_losses(self.forward_backward(batch, totals)())
            self.update(group)
            progress.step, progress.batch = progress.step + 1, progress.batch + len(group)
            bar.update(len(group))
            if progress.step % self.config.log_steps == 0:
                bar.set_postfix(loss=f"{self.log_losses(epoch):.4f}")
            self.check_signal()
            if self.config.save_steps and progress.step % self.config.save_steps == 0:
                self.save_model(f"step_{progress.step:08d}", resumable=True)
        bar.close()

    def forward_backward(self, batch, totals):
        """One micro-batch's share of its group's loss, with all tricks: called, it adds to the gradients and returns the model's output."""

        def forward(exact=False):
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None and not exact):
                return self.model(batch.inputs, batch.labels, totals)

        forward = self.tricks.wrap_forward(forward, batch)

        def compute():
            output = forward()
            self.scaler.scale(output.total_loss).backward()
            return output

        return self.tricks.wrap_backward(compute, batch)

    def update(self, group):
        """Clip, step, schedule, clear. A step whose gradient is not finite changes nothing."""
        self.scaler.unscale_(self.optimizer)
        norm = get_total_norm([p.grad for p in self.trained if p.grad is not None])
        finite = torch.isfinite(norm)
        for name, loss in self.group_sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + torch.where(finite, loss, 0.0)
        self.group_sums = {}
        scale = self.scaler.get_scale()
        self.step_optimizer(norm, finite)
        self.scaler.update()
        self.lr = float(self.scheduler.get_last_lr()[0])
        if self.scaler.get_scale() >= scale:  # after an fp16 overflow the rate waits as well
            self.scheduler.step()
        self.optimizer.zero_grad()
        self.tricks.after_step(finite)
        self.progress.sum_steps += 1
        self.refused.append((~finite, [row for batch in group for row in batch.rows.tolist()]))

    def step_optimizer(self, norm, finite):
        """One step of any optimizer, its gradient clipped to --max_grad_norm, and none if the gradient is not finite.

        Fused Adam and AdamW do both on the device: they divide by `grad_scale` on their way, and `found_inf` tells them to do nothing.
        For every other optimizer the host waits for the answer. (Fused SGD reads them too, but a first step that is left out would
        leave its momentum uninitialised.)
        """
        divisor = (norm / self.config.max_grad_norm).clamp(min=1) if self.config.max_grad_norm else None
        if isinstance(self.optimizer, torch.optim.Adam) and getattr(
            self.optimizer, "_step_supports_amp_scaling", False
        ):
            if divisor is not None:
                self.optimizer.grad_scale = divisor
            self.optimizer.found_inf = (~finite).float()
            self.scaler.step(self.optimizer)
        elif finite:
            if divisor is not None:
                torch._foreach_div_([p.grad for p in self.trained if p.grad is not None], divisor)
            self.scaler.step(self.optimizer)

    # ---- logs -------------------------------------------------------------------------------------------------------

    def add_losses(self, output):
        for name, loss in (
            ("loss", output.total_loss),
            *((f"{task}_loss", loss) for task, loss in output.losses.items()),
        ):
            self.group_sums[name] = self.group_sums.get(name, 0.0) + loss.detach()

    def sync_losses(self):
        """Brings the sums since the last log line to the host, and names batches that were refused. The only host sync."""
        progress = self.progress
        progress.sums = {name: value.item() for name, value in self.sums.items()}
        flags = torch.stack([flag for flag, _ in self.refused]).tolist() if self.refused else []
        for (_, rows), bad in zip(self.refused, flags):
            if bad:
                shown = ", ".join(map(str, rows[:8])) + (", …" if len(rows) > 8 else "")
                logger.warning(
                    f"up to step {progress.step}: the gradient of rows {shown} was not finite; that step was left out"
                )
        progress.sum_refused += sum(flags)
        self.refused = []

    def log_losses(self, epoch):
        """Mean losses since the last line, to metrics.jsonl and TensorBoard."""
        self.sync_losses()
        progress = self.progress
        used = progress.sum_steps - progress.sum_refused
        if used == 0 and progress.sum_steps > 1:
            raise UserError(
                f"none of the last {progress.sum_steps} steps had a finite gradient: the training has diverged; "
                "lower --lr, or use --precision bf16 or fp32"
            )
        record = {"step": progress.step, "epoch": epoch, "lr": self.lr}
        record |= {name: value / max(1, used) for name, value in progress.sums.items()}
        self.sums, progress.sums, progress.sum_steps, progress.sum_refused = {}, {}, 0, 0
        self.log(record)
        return record["loss"]

    def log(self, record):
        with open(self.config.run_dir / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            self.progress.metrics_bytes = file.tell()
        for name, value in record.items():
            if name not in ("step", "epoch"):
                self.board.add_scalar(name, value, record["step"])

    # ---- best, last, resume -----------------------------------------------------------------------------------------

    def out_of_patience(self):
        return 0 < self.config.early_stop_patience <= self.progress.bad_epochs

    def keep_best(self, scores):
        """Logs dev scores, and saves the model if it is the best so far (a tie keeps the earlier)."""
        progress = self.progress
        self.log(
            {"step": progress.step, "epoch": progress.epoch - 1}
            | {f"dev_{name}": score for name, score in scores.items()}
        )
        shown = "  ".join(f"{name} {score:.4f}" for name, score in scores.items())
        if metrics.is_better(self.monitor, scores[self.monitor], progress.best_score):
            progress.best_score, progress.best_epoch, progress.bad_epochs = scores[self.monitor], progress.epoch, 0
            self.save_model("best")
            shown += "  (best)"
        elif progress.epoch > self.tricks.start_epoch():
            progress.bad_epochs += 1
        logger.info(f"epoch {progress.epoch}  dev: {shown}")

    def save_model(self, name, resumable=False):
        """Has checkpoints/<name> written while training goes on; resumable: with all that the next step depends on."""
        training = None
        if resumable:
            self.sync_losses()
            training = checkpoint.training_state(*self.state, asdict(self.progress), self.device)
        self.writer.save(name, self.model, training, log=self.config.run_dir / "metrics.jsonl")

    def resume(self):
        """Goes on from the newest checkpoint that is whole. -> whether there was one."""
        files.clean_temporaries(self.root)
        metrics_path = self.config.run_dir / "metrics.jsonl"
        damaged = []
        for folder in checkpoint.steps(self.root):
            if reason := files.verify(folder):
                logger.warning(f"{folder} is damaged ({reason}); trying the one before")
                damaged.append(folder)
                continue
            checkpoint.require_labels(folder, self.tasks)
            checkpoint.load_weights(self.model, folder)
            self.progress = Progress(**checkpoint.restore_training(folder, *self.state, self.device))
            if self.progress.data != self.data and not self.config.force_resume:
                raise UserError(
                    f"{folder}: the data or the tokenizer has changed since; train a new --model_version, or add --force_resume"
                )
            self.sums = {name: torch.tensor(value, device=self.device) for name, value in self.progress.sums.items()}
            with open(metrics_path, "ab") as file:
                if file.tell() < self.progress.metrics_bytes:
                    logger.warning(f"{metrics_path} is shorter than it was; the lines that are missing stay so")
                file.truncate(min(file.tell(), self.progress.metrics_bytes))
            for useless in damaged:  # else they would count among those that are kept
                shutil.rmtree(useless)
            logger.info(f"resumed from {folder}: {self.progress.step} steps done")
            return True
        metrics_path.write_bytes(b"")
        return False

    @contextmanager
    def signals(self):
        """SIGTERM and SIGINT set a flag that is looked at between steps and batches; a second one ends the process at once."""

        def remember(number, frame):
            self.signal_number = number
            signal.signal(number, signal.SIG_DFL)
            logger.warning(f"{signal.Signals(number).name}: saving at the next step boundary; once more ends at once")

        before = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check_signal(self):
        if self.signal_number is not None:
            raise Interrupted(self.signal_number)

    # ---- evaluation and prediction ----------------------------------------------------------------------------------

    def metric_function(self, gold, predicted):
        """{task: list of labels or tag lists}, twice -> {score: value}; see metrics.py."""
        return metrics.score(self.tasks, gold, predicted)

    def eval(self, loader, fit=False):
        """Scores and mean losses of all examples, against the labels as they are in the file, cut or unknown ones too.

        fit: first let the heads choose what they choose on dev (a multilabel head its threshold). `answers` then holds
        (gold, predicted), for metrics.report.
        """
        predicted, _, losses = self.infer(loader, "evaluating", fit)
        examples = [loader.dataset[i] for i in range(len(loader.dataset))]
        gold = {name: [example[name] for example in examples] for name in self.tasks}
        self.answers = gold, predicted
        return losses | self.metric_function(gold, predicted)

    @torch.inference_mode()
    def infer(self, loader, what, fit=False, keep=None):
        """({task: labels or tag lists}, {task: probabilities}, {loss: mean}) of a MyDataLoader, in the order of its dataset.

        keep: a dict to fill with {task: [what heads average, of each example]}.
        """
        self.model.eval()
        data, heads = loader.dataset, self.model.output_layer.heads
        answers = {
            name: [[] for _ in range(len(data))] for name in self.tasks
        }  # of each example: (first word, answer, probability)
        sizes = data.columns["word_starts"].lengths if "word_starts" in data.columns else None  # words of each row
        sums, counts, waiting = {}, {}, {name: [] for name, head in heads.items() if fit and head.fits}

        def take(name, batch, logits):
            tagging = heads[name].reads == "words"
            numbers, chances = (tensor.tolist() for tensor in heads[name].decode(logits, batch.inputs))
            kept = None if keep is None else heads[name].probabilities(logits).cpu()
            for place, row in enumerate(batch.rows.tolist()):
                first, size = (data.columns["first_word"][row], sizes[row]) if tagging else (0, None)
                if tagging or data.is_first(row):
                    answer = (
                        (numbers[place][:size], chances[place][:size]) if tagging else (numbers[place], chances[place])
                    )
                    answers[name][data.of[row]].append((int(first), *answer))
                    if kept is not None:
                        keep.setdefault(name, {}).setdefault(int(data.of[row]), []).append(
                            (int(first), kept[place][:size] if tagging else kept[place])
                        )

        for batch in tqdm(loader, desc=what, leave=False, delay=2):
            self.check_signal()
            batch = batch.to(self.device)
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                output = self.model(batch.inputs, batch.labels or None)
            for name, count in self.model.count_labels(batch.inputs, batch.labels).items():
                sums[name] = sums.get(name, 0.0) + output.losses[name].double() * count
                counts[name] = counts.get(name, 0) + count
            for name, logits in output.logits.items():
                if name in waiting:
                    waiting[name].append((batch, logits))
                else:
                    take(name, batch, logits)
        for name, batches in waiting.items():
            heads[name].fit(
                torch.cat([logits for _, logits in batches]), torch.cat([batch.labels[name] for batch, _ in batches])
            )
            for batch, logits in batches:
                take(name, batch, logits)
        losses = {f"{name}_loss": (sums[name] / max(counts[name], 1e-12)).item() for name in sums}
        if losses:
            losses = {
                "loss": sum(self.model.loss.task_weights.get(name, 1.0) * losses[f"{name}_loss"] for name in sums)
            } | losses
        predicted, probabilities = {}, {}
        for name, head in heads.items():
            named = [head.named(*self.join(name, pieces, data, i)) for i, pieces in enumerate(answers[name])]
            predicted[name], probabilities[name] = ([one[part] for one in named] for part in (0, 1))
        return predicted, probabilities, losses

    def join(self, name, pieces, data, example):
        """(answer, probability) of an example from those of its windows; words that were cut are O."""
        if self.model.output_layer.heads[name].reads != "words":
            return pieces[0][1:]
        tags, chances = (merge_windows([(first, piece[part]) for first, *piece in pieces]) for part in (0, 1))
        missing = int(data.columns["num_words"][data.first_rows[example]]) - len(tags) if len(pieces) == 1 else 0
        return tags + [outside_id(self.tasks[name])] * missing, chances + [0.0] * missing

    def predict(self, loader, path):
        """Labels every example of a MyDataLoader into a .csv or .jsonl file, in input order; the file appears whole or not at all.

        Columns: id, text, (text_pair,) and for each task its label and probability, or its entities, as JSON with text and
        character offsets into the text column, and its tags.
        """
        predicted, probabilities, _ = self.infer(loader, "predicting")
        data = loader.dataset
        answers = (
            {name: (predicted[name][i], probabilities[name][i]) for name in self.tasks} for i in range(len(data))
        )
        write_predictions((self.prediction(data[i], answer) for i, answer in enumerate(answers)), path)
        logger.info(f"{len(data)} predictions in {path}")

    def prediction(self, example, answers):
        unit = next((task["unit"] for task in self.tasks.values() if is_tagging(task["type"])), "word")
        text, spans = (example["text"], None) if "text" in example else join_tokens(example["tokens"], unit)
        if "text" in example and "tokens" in example:
            spans = place_tokens(text, example["tokens"])
            if spans is None:  # tokens that are not from this text
                text, spans = join_tokens(example["tokens"], unit)
        row = {"id": example["id"], "text": text} | (
            {"text_pair": example["text_pair"]} if "text_pair" in example else {}
        )
        for name, (label, probability) in answers.items():
            if metrics.kind_of(self.tasks[name]) == "words":
                row[f"{name}_tags"] = label
            elif is_tagging(self.tasks[name]["type"]):
                row |= {name: metrics.entities(label, spans, text), f"{name}_tags": label}
            elif probability is None:
                row[name] = label
            else:
                rounded = (
                    [round(one, 6) for one in probability] if isinstance(probability, list) else round(probability, 6)
                )
                row |= {name: label, f"{name}_probability": rounded}
        return row


def write_predictions(rows, path):
    """Dicts -> a .csv or .jsonl file that appears whole or not at all. Lists are JSON in a CSV."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, "w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            for number, row in enumerate(rows):
                row = {
                    name: json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
                    for name, value in row.items()
                }
                if number == 0:
                    writer = csv.DictWriter(file, row)
                    writer.writeheader()
                writer.writerow(row)
    temporary.replace(path)


def outside_id(task):
    """Number of the tag for words that were cut: O, or the first."""
    return task["labels"].index("O") if "O" in task["labels"] else 0


def merge_windows(windows):
    """[(first word, a list with an item a word)] that overlap -> one list; a word of two comes from the one whose edge is farther."""
    (_, whole), *others = sorted(windows, key=lambda window: window[0])
    whole = list(whole)
    for first, items in others:
        middle = (len(whole) - first + 1) // 2  # of the words that both have
        whole = whole[: first + middle] + list(items[middle:])
    return whole


def prepare_inputs(examples, tasks):
    """Texts to predict on -> examples as the model's tasks need them: a tagging model gets tokens, cut as in its training data."""
    if any(task.get("pairs") for task in tasks.values()) and "text_pair" not in examples[0]:
        raise UserError(
            "this model was trained on pairs of texts, but --predict_file has one text a row; add --text_pair_column"
        )
    if "text_pair" in examples[0] and not any(task.get("pairs") for task in tasks.values()):
        logger.warning("this model was trained on single texts: the second texts of --predict_file are not read")
        examples = [{key: value for key, value in example.items() if key != "text_pair"} for example in examples]
    unit = next((task["unit"] for task in tasks.values() if is_tagging(task["type"])), None)
    if unit is not None:
        for example in examples:
            if "tokens" not in example:
                example["tokens"] = [token for token, _, _ in split_text(example["text"], unit)]
    return examples
