"""What `auto` of an option is: settled once, when the data and the machine are known, and kept to when a run goes on.

From then on the option has its number or name, in args.json too: whatever reads the run need not know of auto.
"""

import logging

from engine.model.encoders import overflows
from engine.run import distributed
from engine.run.device import has_bf16
from engine.run.option_checks import check_options
from engine.run.run_folder import AUTO, read_options
from engine.train.optimization import epochs_of, is_pretrained, patience_of, steps_per_epoch

logger = logging.getLogger("template")
REHEARSAL = 10  # epochs of --debug, whose 64 examples say nothing of the data's size


def keep_to_run(config, run_dir, device):
    """Gives options that are auto what the run in this folder has, if it is to go on: on another machine, with another
    number of processes, and also if it began when auto was not yet the default."""
    path = run_dir / "args.json"
    if not config.do_train or config.debug:
        return
    before = distributed.from_first(lambda: read_options(path, type(config)) if path.exists() else {})
    for name, auto in AUTO.items():
        idle = name == "ema_decay" and not config.use_ema
        if getattr(config, name) == auto and before.get(name, auto) != auto and not idle:
            setattr(config, name, before[name])
            slow = "" if name != "precision" or is_fast(before[name], device) else "; this machine is slow in it"
            logger.info(f"--{name} auto: {before[name]}, as the run began{slow}")


def settle(config, encoder, device, num_batches):
    """Settles --epochs auto and --precision auto for a training. num_batches: micro-batches in an epoch.

    UserError if other options contradict what they are then.
    """
    settle_precision(config, encoder, device)
    if config.epochs == AUTO["epochs"]:
        steps = steps_per_epoch(num_batches, config)  # of all processes together
        config.epochs = REHEARSAL if config.debug else epochs_of(steps, is_pretrained(config))
        logger.info(f"--epochs auto: {config.epochs} for {steps} steps an epoch")
        check_options(config)


def settle_patience(config):
    """Settles --early_stop_patience, if the number of epochs is known: for a training it is."""
    if config.early_stop_patience == AUTO["early_stop_patience"] and config.epochs != AUTO["epochs"]:
        config.early_stop_patience = patience_of(config.epochs)


def settle_precision(config, encoder, device, trained="bf16"):
    """Settles --precision auto: what a checkpoint was trained in, for a new run bf16, where the device is fast in it
    and the encoder bears it; else fp32."""
    if config.precision == AUTO["precision"]:
        chosen, why = trained, ""
        if trained != "fp32" and not is_fast(trained, device):
            chosen, why = "fp32", f": this {device.type} is not fast in {trained}"
        elif trained != "fp32" and overflows(encoder):
            chosen, why = "fp32", f": {encoder.config.model_type} overflows in {trained}"
        config.precision, why = distributed.from_first(lambda: (chosen, why))
        logger.info(f"--precision auto: {config.precision}{why}")


def is_fast(precision, device):
    """Whether a device is faster in a precision than in fp32, or it is that."""
    return precision == "fp32" or (has_bf16(device) if precision == "bf16" else device.type == "cuda")
