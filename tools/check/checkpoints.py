"""Checks that resumed runs end with the same checkpoints, and that a new process makes the same predictions."""

import json
import math
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import metrics
from data_loader import Batch, MyDataLoader
from engine.errors import UserError
from engine.model import lora
from engine.predict.predictions import prediction_row, without_probabilities
from engine.run.files import write_json
from engine.run.signals import Interrupted
from engine.task.task import IGNORE, tasks_to_json
from engine.train import checkpoint
from tools.check.case import Case, Failed, Skipped, padding_mixer
from trainer import Trainer

NO_SIGNAL = 1000  # a signal number that does not exist


class Killed(Exception):
    """Simulates SIGKILL: everything that has not been saved is lost."""


class FewBatches:
    """A training loader whose epochs end after a few batches."""

    def __init__(self, loader: Any, number: int):
        self.loader, self.number, self.start = loader, min(number, len(loader)), 0

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[Batch]:
        return islice(iter(self.loader), self.number - self.start)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def set_position(self, epoch: int, batch: int = 0) -> None:
        self.start = batch
        self.loader.set_position(epoch, batch)


class FixedBatches(FewBatches):
    """A training loader whose epochs consist of the given batches."""

    def __init__(self, loader: Any, batches: list[Batch]):
        super().__init__(loader, len(batches))
        self.batches, self.number = batches, len(batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


@torch.enable_grad()
def check_resume(case: Case) -> None:
    """Stops a run in the first epoch, kills it in the second, and compares the result with an uninterrupted run."""
    config, loader = case.trainer.config, case.trainer.train_loader
    if case.trainer.device.type != "cpu" and not config.deterministic:
        raise Skipped("on a GPU, bit-exact results need --deterministic")
    batches = min(len(loader), 2 * max(2, config.gradient_accumulation_steps))
    # micro-batches per step, at least 2 if there are enough batches
    accumulated = max(config.gradient_accumulation_steps, min(2, batches // 2))
    of_epoch = -(-batches // accumulated)  # steps
    config.run_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.run_dir) as folder:

        def build(name: str) -> Trainer:
            options = dict(output_dir=folder, model_version=name, early_stop_patience=0, compile=False)
            options |= dict(save_steps=1, save_epoch=1, epochs=max(2, config.epochs))
            trainer = case.build(**options, gradient_accumulation_steps=accumulated)
            trainer.train_loader = FewBatches(trainer.train_loader, batches)  # type: ignore[assignment]
            return trainer

        whole = build("whole")
        run_until(whole, of_epoch + 1)
        run_until(build("stopped"), 1)
        run_until(zeroed(build("stopped")), of_epoch + 1, killed=True)
        resumed = zeroed(build("stopped"))
        run_until(resumed, of_epoch + 1)
        expected, actual = sums(whole, of_epoch + 1), sums(resumed, of_epoch + 1)
    if differ := [file for file in expected if expected[file] != actual[file]]:
        when = f"stopped at step 1, resumed, killed after step {of_epoch} (the end of an epoch) and resumed again"
        raise Failed(f"in a run that was {when}, {', '.join(differ)} differ from an uninterrupted run")


def sums(trainer: Trainer, step: int) -> dict[str, str]:
    """Returns {file: SHA-256} for the weights and training states of the best checkpoint and of the one at a step."""
    found: dict[str, str] = {}
    for name in ("best", f"step_{step:08d}"):
        manifest = json.loads((trainer.checkpoints / name / "manifest.json").read_text(encoding="utf-8"))
        found |= {f"{name}/{file}": value for file, value in manifest.items() if file.endswith(".safetensors")}
    return found


def zeroed(trainer: Trainer) -> Trainer:
    """Sets all parameters that are stored in a checkpoint to 0, because resuming must restore them."""
    with torch.no_grad():
        for name in dict(trainer.model.named_parameters()).keys() & lora.kept_tensors(trainer.model).keys():
            trainer.model.get_parameter(name).zero_()
    return trainer


def run_until(trainer: Trainer, step: int, killed: bool = False) -> None:
    """Trains up to a step, where the run saves or is killed. Resumes from the latest checkpoint if there is one."""
    trainer.config.run_dir.mkdir(parents=True, exist_ok=True)
    agree = trainer.stop.agree

    def stop(number: int) -> int:
        if killed and trainer.progress.step == step:
            raise Killed
        return agree(number or NO_SIGNAL * (trainer.progress.step == step))

    trainer.stop.agree = stop
    trainer.tracker_kinds = []
    trainer.resume()
    with suppress(Killed):
        try:
            trainer.train()
        except Interrupted as stopped:
            if stopped.signal_number != NO_SIGNAL:
                raise


def check_prediction(case: Case) -> None:
    trainer = case.build(compile=False)
    trainer.model.encoder.float()
    trainer.model.load_state_dict(case.trained.state_dict())
    evaluation = trainer.eval(MyDataLoader(case.data, 64))
    if trainer.model.training:
        raise Failed("evaluation runs in training mode, with dropout; call self.model.eval() in infer")
    predicted = trainer.infer(MyDataLoader(case.data, 5), "predicting")[0].labels
    for name, labels in predicted.items():
        differ = sum(not is_same(*pair) for pair in zip(labels, evaluation.predicted[name]))
        if differ and (family := padding_mixer(trainer.model.encoder)):
            case.notes.append(f"{family} outputs depend on padding by design; differing predictions: {differ}")
            return
        if differ:
            raise Failed(f"{differ} of {len(labels)} predictions for {name!r} differ between batch sizes 64 and 5")
    require_fitted_threshold(case)
    for name, value in trainer.metric_function(evaluation.gold, predicted).items():
        if not math.isclose(value, evaluation.scores[name], abs_tol=1e-4):
            raise Failed(f"{name} differs between the evaluation and the predictions")


def check_best(case: Case) -> None:
    """Calls `keep_best` with the scores of three epochs. All scores get worse in the second and better in the third."""
    case.trainer.config.run_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=case.trainer.config.run_dir) as folder:
        trainer, saved = case.build(output_dir=folder, compile=False), list[int]()
        trainer.config.run_dir.mkdir(parents=True)
        scores = trainer.eval(MyDataLoader(case.data, 64)).scores
        if trainer.monitor not in scores:
            raise Skipped(f"these rows have no labels for {trainer.monitor}")
        vars(trainer)["save_model"] = lambda *_, **__: saved.append(trainer.progress.epoch)
        for epoch, change in enumerate((0.0, -0.1, 0.2), 1):
            trainer.progress.epoch = epoch
            signed = {name: -change if metrics.lower_is_better(name) else change for name in scores}
            trainer.keep_best({name: value + signed[name] for name, value in scores.items()})
    if 2 in saved:
        raise Failed("keep_best replaces the best checkpoint with one that is worse in every score")
    if 1 in saved and 3 not in saved:
        raise Failed("keep_best does not save a checkpoint that is better in every score")


def require_fitted_threshold(case: Case) -> None:
    """Raises Failed if `decode` does not separate the labels after `calibrate` is called with separable logits."""
    model, batch = case.model_and_batch(len(case.rows))
    for name, head in model.output_layer.heads.items():
        labels = batch.labels[name]
        if not head.needs_calibration or head.finds_spans or not (labels == 1).any():
            continue
        if model(batch.inputs).logits[name].shape != labels.shape:
            continue
        for right, wrong in ((-1.0, -4.0), (4.0, 1.0)):
            logits = torch.where(labels == 1, right, wrong)
            head.calibrate(logits, labels)
            if (reached := f1_of(head.decode(logits, batch.inputs)[0], labels)) < 0.95:
                given = f"logits of {right:g} for right labels and {wrong:g} for others"
                advice = "do both compare the threshold with the same values (logits or probabilities)?"
                raise Failed(f"{name!r}: after calibrating with {given}, decode has F1 {reached:.2f}; {advice}")


def f1_of(predicted: torch.Tensor, labels: torch.Tensor) -> float:
    right = int((predicted & (labels == 1)).sum())
    return 2 * right / max(1, int(predicted[labels != IGNORE].sum() + (labels == 1).sum()))


def is_same(first: Any, second: Any) -> bool:
    return math.isclose(first, second, rel_tol=1e-3, abs_tol=1e-3) if isinstance(first, float) else first == second


@contextmanager
def other_process(case: Case) -> Iterator[tuple[subprocess.Popen, Path]]:
    """Starts a process that evaluates the checkpoint and labels the rows. Yields (process, its folder)."""
    config = case.trainer.config
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        rows = [json.dumps(case.data[i], ensure_ascii=False) + "\n" for i in range(len(case.data))]
        for split in ("dev", "test"):
            (data / f"{split}.jsonl").write_text("".join(rows), encoding="utf-8")
        write_json(data / "labels.json", tasks_to_json(case.trainer.tasks))
        flags = {"data_path": data, "checkpoint": case.best, "output_dir": folder, "model_version": "other"}
        flags |= {"device": config.device, "precision": config.precision, "predict_output": data / "predictions.jsonl"}
        command = [*case.command, "--do_eval", "--do_predict", *(f"--{name}={value}" for name, value in flags.items())]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            try:
                yield process, Path(folder)
            finally:
                process.kill()


def check_other_process(case: Case) -> None:
    if case.other is None or case.best is None:
        raise Skipped("the trial run saved no checkpoint")
    process, folder = case.other
    _, errors = process.communicate()
    if process.returncode:
        last = (errors.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        raise UserError(f"a new process cannot use the checkpoint: {last}")
    scores = json.loads((folder / "other/eval.json").read_text(encoding="utf-8"))["dev"]
    lines = (folder / "data/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    trainer = case.build(compile=False)
    checkpoint.load_weights(trainer.model, case.best)
    own = trainer.eval(MyDataLoader(case.data, 64))
    for name, value in own.scores.items():
        if not math.isclose(value, scores[name], rel_tol=1e-3, abs_tol=1e-4):
            raise Failed(f"{name} is {value:.4f} here and {scores[name]:.4f} in a new process")
    for name, labels in own.predicted.items():
        column = f"{name}_tags" if trainer.tasks[name].is_tagging else name
        written = [row[column] for row in rows]
        if trainer.model.output_layer.heads[name].finds_spans:
            decoded = [{name: (spans, [1.0] * len(spans))} for spans in labels]
            labels = [prediction_row(case.data[i], one, trainer.tasks)[name] for i, one in enumerate(decoded)]
            labels, written = without_probabilities(labels), without_probabilities(written)
        if not all(map(is_same, labels, written)):
            raise Failed(f"predictions for {name!r} differ in a new process")
