"""Reads the environment variables that torchrun sets for its processes. Imports nothing slow."""

import logging
import os
import sys
import time

from engine.errors import UserError

REPORT_WAIT = 20.0  # seconds to wait for another process to report an error, and for torchrun to stop this one


def is_launched() -> bool:
    """Returns whether torchrun, or a launcher that sets the same variables, started several processes."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def local_rank() -> int:
    """Returns the rank of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0))


def restarts() -> int:
    """Returns how many times torchrun has restarted this run (--max_restarts)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def select_gpus(gpus: str) -> None:
    """Makes only these GPUs, such as '0' or '0,1', visible to torch. GPUs are numbered as in nvidia-smi. Must be
    called before torch is imported."""
    os.environ |= {"CUDA_VISIBLE_DEVICES": gpus, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def require_gpus(gpus: str) -> None:
    """Raises UserError if torch does not see all GPUs of --gpus; it would use fewer of them, or the CPU."""
    import torch

    if gpus and (found := torch.cuda.device_count()) < len(gpus.split(",")):
        raise UserError(f"--gpus={gpus}: torch finds {found} of them; nvidia-smi lists the GPUs of this machine")


def end_process(code: int) -> int:
    """Ends one of several processes immediately after flushing its output. A normal exit destroys gloo's threads in an
    undefined order, which can abort a process that has finished. In a single process, returns the exit code."""
    if is_launched():
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def claims_error_report(patience: float = 0) -> bool:
    """Returns whether this process should report the error that ends the run, so that it is printed only once.

    A process that does not report waits first, because torchrun ends all processes as soon as one has exited.
    patience: seconds to wait for a process with more information.
    """
    if not is_launched():
        return True
    import torch.distributed as dist  # here, because the import takes a second

    if not dist.is_initialized():  # each machine reports its own errors
        if local_rank():
            time.sleep(REPORT_WAIT)
        return True  # this is process 0, or only this process has the error
    time.sleep(patience)
    try:
        claimed = dist.distributed_c10d._get_default_store().add("error_report", 1) == 1
    except RuntimeError:  # the process that hosts the store has ended
        return True
    if not claimed:
        time.sleep(REPORT_WAIT)
    return claimed
