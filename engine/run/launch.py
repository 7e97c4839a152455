"""Reads the environment variables that torchrun sets for its processes. Nothing slow is imported here."""

import logging
import os
import sys
import time

from engine.errors import UserError

REPORT_WAIT = 20.0  # seconds for another process to report an error and for torchrun to end this one


def is_launched() -> bool:
    """Whether torchrun, or a launcher that sets the same variables, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def local_rank() -> int:
    """The rank of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0))


def restarts() -> int:
    """How often torchrun has restarted this run (--max_restarts)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def select_gpus(gpus: str) -> None:
    """Makes only these GPUs, '0' or '0,1' as numbered by nvidia-smi, visible to torch, which is not imported yet."""
    os.environ |= {"CUDA_VISIBLE_DEVICES": gpus, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def require_gpus(gpus: str) -> None:
    """Raises UserError unless torch sees all GPUs of --gpus; it would otherwise use fewer of them, or the CPU."""
    import torch

    if gpus and (found := torch.cuda.device_count()) < len(gpus.split(",")):
        raise UserError(f"--gpus={gpus}: torch finds {found} of them; see nvidia-smi for the numbers of this machine")


def end_process(code: int) -> int:
    """Ends one of several processes at once, after flushing its output: Python tears down gloo's threads in no fixed
    order, which could abort a process after its work is done. In a single process, returns the exit code."""
    if is_launched():
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def claims_error_report(patience: float = 0) -> bool:
    """Whether this process should report why the run ends, so an error is one line, not one per process.

    A process that leaves the report to another one first waits for it, because torchrun ends all processes as soon as
    one has ended. patience: seconds that this process itself waits for a process with more information.
    """
    if not is_launched():
        return True
    import torch.distributed as dist  # here, because it takes a second that a single process can save

    if not dist.is_initialized():  # each machine has its own errors, and its own terminal
        if local_rank():
            time.sleep(REPORT_WAIT)
        return True  # process 0, or no other process ended this one: then only this process has the error
    time.sleep(patience)
    try:
        claimed = dist.distributed_c10d._get_default_store().add("mistake", 1) == 1
    except RuntimeError:  # the process that held the store has ended
        return True
    if not claimed:
        time.sleep(REPORT_WAIT)
    return claimed
