"""Computes learning rates, parameter groups, and numbers of epochs and steps."""

from __future__ import annotations

import inspect
import posixpath
from typing import TYPE_CHECKING, Any

import torch

from engine.errors import UserError
from engine.model.encoders import layer_ids
from engine.run import distributed
from engine.task.task import Task
from engine.train.checkpoint import as_json

if TYPE_CHECKING:
    from config import Config

# --epochs auto: (target number of optimizer steps, minimum of epochs, maximum of epochs)
PRETRAINED, FROM_SCRATCH = (1400, 3, 30), (1500, 10, 60)
BATCH_SIZES = 32, 16, 8  # --batch_size auto: the first, or a smaller one for a small tagging data set
ENOUGH_STEPS = 500  # with 570 steps, batches of 32 are as good as smaller ones; with 180 steps, they are not
EMA_SHARE = 0.05  # fraction of all steps that --use_ema averages over


def steps_per_epoch(num_batches: int, config: Config) -> int:
    """Returns the optimizer steps in an epoch of `num_batches` micro-batches. The last step may have fewer of them."""
    return -(-num_batches // config.gradient_accumulation_steps)


def warmup_steps(config: Config, steps_per_epoch: int) -> int:
    """Returns the number of optimizer steps in --warmup_epochs."""
    return round(warmup_epochs(config) * steps_per_epoch)


def warmup_epochs(config: Config) -> float:
    """Returns --warmup_epochs, or --warmup_ratio (default: a tenth) of all epochs."""
    if config.warmup_epochs is not None:
        return config.warmup_epochs
    return config.epochs / 10 if config.warmup_ratio is None else config.epochs * config.warmup_ratio


def epochs_of(steps: int, pretrained: bool) -> int:
    """Returns the value of --epochs auto: the epochs needed for a target number of steps, within bounds.

    Learning depends more on optimizer steps than on passes over the data: 3 epochs on a million texts are plenty, but 3
    on a thousand do not even cover the warmup. The minimum gives the schedule several epochs that are evaluated on dev;
    the maximum prevents overfitting on few texts. Training from scratch needs more steps. steps: per epoch.
    """
    aim, fewest, most = PRETRAINED if pretrained else FROM_SCRATCH
    return min(max(-(-aim // max(1, steps)), fewest), most)


def batch_size_of(config: Config, tasks: dict[str, Task], rows: int) -> int:
    """Returns --batch_size or, if it is auto, 32; for a pretrained encoder and only tagging tasks, the largest of
    BATCH_SIZES that yields ENOUGH_STEPS in the maximum of --epochs auto, or 8 if none does.

    On a small data set, batches of 32 give few steps, and more epochs would cost more; batches of 8 give four times as
    many steps at about the same cost (benchmarks/RESULTS.md). rows: number of labelled training rows.
    """
    if config.batch_size is not None:
        return config.batch_size
    largest, *smaller = BATCH_SIZES
    few = is_pretrained(config) and not (config.streaming or config.debug)
    if not few or not all(task.is_tagging for task in tasks.values()):
        return largest
    num_rows = rows * (1 + config.unlabelled_ratio * bool(config.unlabelled))
    share = PRETRAINED[-1] * num_rows / (ENOUGH_STEPS * config.gradient_accumulation_steps * distributed.size())
    return next((size for size in (largest, *smaller) if size <= share), smaller[-1])


def patience_of(epochs: int) -> int:
    """Returns the default of --early_stop_patience: a quarter of all epochs, at least 5.

    Under a cosine schedule, scores rise until the end, but not monotonically. Of three runs of 60 epochs on 799 texts,
    a patience of 5 stops two after 22 and 24 epochs, five and seven points below their best score; 15 stops none
    (benchmarks/RESULTS.md).
    """
    return max(5, epochs // 4)


def ema_decay_of(steps: int) -> float:
    """Returns the default of --ema_decay: EMA averages over about 1 / (1 - decay) steps, here EMA_SHARE of all steps.

    A fixed decay would average over all of a short run, including its first, untrained weights, but over a tiny
    fraction of a long run: 0.99, the former default, lowered the scores of three epochs on ATIS
    (benchmarks/RESULTS.md).
    """
    return min(max(1 - 1 / max(1, EMA_SHARE * steps), 0.9), 0.9999)


def lr_of_width(hidden_size: int) -> float:
    """Returns the peak learning rate of a pretrained encoder: 3e-4 at hidden size 384, falling with its square.

    Measured only at 384. The exponent is extrapolated: it gives 7.5e-5 at 768, close to the rates usual for BERT-base.
    """
    return min(1e-3, 3e-4 * (384 / hidden_size) ** 2)


def lr_of_lora(hidden_size: int) -> float:
    """Returns the peak learning rate of LoRA: 1.8e-3 at hidden size 384, 2.9e-4 at 4096. It falls much more slowly than
    in full fine-tuning (Schulman and Thinking Machines Lab, LoRA Without Regret, 2025)."""
    return min(2e-3, 5e-4 * (2000 / hidden_size) ** 0.775)


def lr_of_probe(hidden_size: int) -> float:
    """Returns the peak learning rate of heads on a frozen encoder: 1e-2 at hidden size 384, inversely proportional to
    it, because a step changes the logits in proportion to the hidden size. Measured only at 384, where it is better
    than 3e-3, the rate for heads on a trained encoder (benchmarks/RESULTS.md)."""
    return min(1e-2, 1e-2 * 384 / hidden_size)


def is_pretrained(config: Config) -> bool:
    """Returns whether a transformer's weights come from --pretrain_model_path or --init_from. Other encoders use only
    the tokenizer of --pretrain_model_path."""
    return bool(config.pretrain_model_path or config.init_from) and config.encoder == "transformer"


def learning_rates(encoder: Any, config: Config) -> tuple[float, float]:
    """Returns the peak learning rates of encoder and heads: --lr and --head_lr, or defaults that depend on the encoder.

    Small encoders need much higher rates than the 5e-5 of BERT-base. Pretrained: 3e-4 at hidden size 384, falling with
    its square (7.5e-5 at 768, 4.2e-5 at 1024), and ten times as much for heads; from scratch: 1e-3 for both.
    """
    if not is_pretrained(config):
        lr = config.lr or 1e-3
        return lr, config.head_lr or lr
    full = lr_of_width(encoder.config.hidden_size)
    lr = config.lr or (lr_of_lora(encoder.config.hidden_size) if config.lora_rank else full)
    if config.lora_rank and not config.lr:  # as in full fine-tuning, but at least LoRA's rate
        return lr, config.head_lr or max(lr, min(10 * full, 1e-2))
    if config.freeze_layers == -1 and not config.lr:
        return lr, config.head_lr or lr_of_probe(encoder.config.hidden_size)
    return lr, config.head_lr or min(10 * lr, 1e-2)


def parameter_groups(model: torch.nn.Module, config: Config) -> list[dict[str, Any]]:
    """Returns one group per trainable parameter, for `build_optimizer`. Biases, norms and the CRF have no weight decay.

    Keys: params, name, layer (0: the embeddings, 1 to n: the encoder's layers, n + 1: everything outside the encoder),
    part ("encoder", "encoder, no decay", "heads" or "heads, no decay"), lr and weight_decay.
    """
    lr, head_lr = learning_rates(model.encoder, config)
    layers, num_layers = layer_ids(model.encoder)
    groups = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            in_encoder, decays = name.startswith("encoder."), parameter.ndim > 1 and ".crf." not in name
            layer = min(layers[name.removeprefix("encoder.")], num_layers) if in_encoder else num_layers + 1
            part = ("encoder" if in_encoder else "heads") + ("" if decays else ", no decay")
            options = {"lr": lr if in_encoder else head_lr, "weight_decay": config.weight_decay if decays else 0.0}
            groups.append({"params": [parameter], "name": name, "layer": layer, "part": part, **options})
    return groups


def merge_groups(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Merges groups with equal options, since fewer groups are faster. "names" has the names of the parameters."""
    merged: dict[str, dict[str, Any]] = {}
    for group in optimizer.param_groups:
        options = {key: as_json(value) for key, value in group.items() if key not in ("params", "name", "layer")}
        same = merged.setdefault(repr(sorted(options.items())), group | {"params": [], "names": []})
        same["params"] += group["params"]
        same["names"] += [group["name"]] if "name" in group else []
    for group in merged.values():
        group.pop("name", None)
        group.pop("layer", None)
    optimizer.param_groups[:] = merged.values()
    return optimizer


class ScoreScheduler(torch.optim.lr_scheduler.LambdaLR):
    """Wraps a scheduler whose `step` needs a score, such as ReduceLROnPlateau, and adds a linear warmup.

    Call `step` after each optimizer step, and `step_on_score` after each evaluation on dev.
    """

    def __init__(self, on_score: Any, warmup: int):
        self.on_score = on_score
        super().__init__(on_score.optimizer, lambda step: min(1.0, (step + 1) / (warmup + 1)))

    def step_on_score(self, score: float) -> None:
        groups = self.optimizer.param_groups
        for group, lr in zip(groups, self.base_lrs):
            group["lr"] = lr
        self.on_score.step(score)
        self.base_lrs = [float(group["lr"]) for group in groups]
        for group, lr, factor in zip(groups, self.base_lrs, self.lr_lambdas):
            group["lr"] = lr * factor(self.last_epoch)
        self._last_lr = [group["lr"] for group in groups]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"on_score": self.on_score.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        on_score = self.on_score
        super().load_state_dict(state_dict)
        self.on_score = on_score
        on_score.load_state_dict(state_dict["on_score"])


class Chain(torch.optim.lr_scheduler.ChainedScheduler):
    """A ChainedScheduler with `last_epoch`, which other schedulers have."""

    @property
    def last_epoch(self) -> int:
        return self._schedulers[0].last_epoch

    @last_epoch.setter
    def last_epoch(self, step: int) -> None:
        for scheduler in self._schedulers:
            scheduler.last_epoch = step


def with_warmup(scheduler: Any, config: Config, loader: Any, monitor: str, lower_is_better: bool) -> Any:
    """Wraps a scheduler, if needed, so that the trainer can call its `step` without arguments.

    Raises UserError if it ends before the run, or if a scheduler that needs a score minimises one that should be
    maximised, or vice versa. loader: yields the micro-batches of an epoch; monitor: the name of the score.
    """
    if isinstance(scheduler, type) or not hasattr(scheduler, "step"):
        raise UserError(f"build_scheduler in trainer.py must return a torch scheduler, not {scheduler!r}")
    if hasattr(scheduler, "total_steps"):  # OneCycleLR
        total, most = config.epochs * steps_per_epoch(len(loader), config), scheduler.total_steps
        if most < total:
            advice = "create it with total_steps=config.epochs * steps_per_epoch"
            raise UserError(f"build_scheduler: {type(scheduler).__name__} ends after {most} of {total} steps; {advice}")
    if type(scheduler) is torch.optim.lr_scheduler.ChainedScheduler:
        return Chain(scheduler._schedulers)
    if "metrics" not in inspect.signature(scheduler.step).parameters:
        return scheduler
    mode = "min" if lower_is_better else "max"
    if getattr(scheduler, "mode", mode) != mode:
        better = f"{monitor}, the score of --monitor, is better if it is {'lower' if lower_is_better else 'higher'}"
        raise UserError(f"build_scheduler: {better}; create {type(scheduler).__name__} with mode={mode!r}")
    return ScoreScheduler(scheduler, warmup_steps(config, steps_per_epoch(len(loader), config)))


def describe(model: torch.nn.Module, device: torch.device) -> str:
    """Describes a model: "22.7 M parameters on cpu", and the number of trainable parameters if some are frozen."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    trained = sum(size for size, trains in sizes if trains)
    some = "" if all(trains for _, trains in sizes) else f", {trained / 1e6:.2f} M of them trainable"
    return f"{sum(size for size, _ in sizes) / 1e6:.1f} M parameters on {device}{some}"


def describe_rates(optimizer: torch.optim.Optimizer) -> str:
    """Describes the learning rates, with the number of tensors and their common prefix: "peak rates 3.0e-04 (37
    tensors: encoder), 3.0e-03 (4 tensors: output_layer.heads)"."""
    by_rate: dict[str, list[str]] = {}
    for group in sorted(optimizer.param_groups, key=peak_rate):
        names = [name.replace(".", "/") for name in group.get("names", ())]
        by_rate.setdefault(f"{peak_rate(group):.1e}", []).extend(names)
    shown = []
    for rate, names in by_rate.items():
        begin = posixpath.commonpath(names).replace("/", ".") if names else ""
        number = f"{len(names)} tensor{'s' * (len(names) > 1)}{': ' * bool(begin)}{begin}"
        shown.append(f"{rate} ({number})" if names else rate)
    return f"peak rates {', '.join(shown)}"


def peak_rate(group: dict[str, Any]) -> float:
    return float(group.get("initial_lr", group["lr"]))
