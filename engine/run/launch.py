"""What torchrun tells the processes that it starts, in the environment. Nothing slow is imported here."""

import logging
import os
import sys
import time


def is_launched():
    """Whether torchrun, or what sets the same variables, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def local_rank():
    """The number of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0))


def restarts():
    """How often torchrun has started this run anew (--max_restarts)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def end_process(code):
    """Ends one of several processes at once, all that it wrote flushed: threads of gloo, which Python would tear down
    in any order, could abort it after its work is done. A single process gets its exit code back."""
    if is_launched():
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def is_first_to_say(patience):
    """Whether no other process has told yet why the run ends: a mistake is one line, not one a process.

    patience: seconds to wait before, for another process that knows more.
    """
    if not is_launched():
        return True
    import torch.distributed as dist  # here, as it takes a second that a single process need not wait

    if not dist.is_initialized():
        return local_rank() == 0  # each machine has its own mistakes, and its own terminal
    time.sleep(patience)
    try:
        return dist.distributed_c10d._get_default_store().add("mistake", 1) == 1
    except RuntimeError:  # the store is gone with the process that held it
        return True
