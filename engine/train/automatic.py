"""Resolves options set to `auto`: once, when the data and the machine are known. A resumed run keeps the values.

From then on the option holds its value, in args.json too, so code that reads the run need not handle auto.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.model.encoders import overflows
from engine.run import distributed
from engine.run.device import has_bf16
from engine.run.option_checks import check_options
from engine.run.run_folder import AUTO, read_options
from engine.train.optimization import epochs_of, is_pretrained, patience_of, steps_per_epoch

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("template")
REHEARSAL = 10  # epochs of --debug, whose 64 examples say nothing about the size of the data


def keep_to_run(config: Any, run_dir: Path, device: torch.device) -> None:
    """Sets options that are auto to the values of the run in this folder, if that is to be resumed: also on another
    machine, with another number of processes, or if the run began before auto was the default."""
    path = run_dir / "args.json"
    if not config.do_train or config.debug:
        return
    before = distributed.from_first(lambda: read_options(path, type(config)) if path.exists() else {})
    for name, auto in AUTO.items():
        idle = name == "ema_decay" and not config.use_ema
        if getattr(config, name) == auto and before.get(name, auto) != auto and not idle:
            setattr(config, name, before[name])
            slow = "" if name != "precision" or is_fast(before[name], device) else "; it is slow on this machine"
            logger.info(f"--{name} auto: {before[name]}, as when the run began{slow}")


def settle(config: Any, encoder: Any, device: torch.device, num_batches: int) -> None:
    """Resolves --epochs auto and --precision auto for training. num_batches: micro-batches in an epoch.

    Raises UserError if other options contradict the resolved values.
    """
    settle_precision(config, encoder, device)
    if config.epochs == AUTO["epochs"]:
        steps = steps_per_epoch(num_batches, config)  # of all processes together
        config.epochs = REHEARSAL if config.debug else epochs_of(steps, is_pretrained(config))
        logger.info(f"--epochs auto: {config.epochs} for {steps} steps an epoch")
        check_options(config)


def settle_patience(config: Any) -> None:
    """Resolves --early_stop_patience if the number of epochs is known, as it is in training."""
    if config.early_stop_patience == AUTO["early_stop_patience"] and config.epochs != AUTO["epochs"]:
        config.early_stop_patience = patience_of(config.epochs)


def settle_precision(config: Any, encoder: Any, device: torch.device, trained: str = "bf16") -> None:
    """Resolves --precision auto: to `trained`, the precision of the checkpoint (a new run: bf16), if it is fast on the
    device and the encoder does not overflow in it; otherwise to fp32."""
    if config.precision == AUTO["precision"]:
        chosen, why = trained, ""
        if trained != "fp32" and not is_fast(trained, device):
            chosen, why = "fp32", f": {trained} is not fast on this {device.type}"
        elif trained != "fp32" and overflows(encoder):
            chosen, why = "fp32", f": {encoder.config.model_type} overflows in {trained}"
        config.precision, why = distributed.from_first(lambda: (chosen, why))
        logger.info(f"--precision auto: {config.precision}{why}")


def is_fast(precision: str, device: torch.device) -> bool:
    """Whether a precision is fp32, or faster than fp32 on the device."""
    return precision == "fp32" or (has_bf16(device) if precision == "bf16" else device.type == "cuda")
