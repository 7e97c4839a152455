"""A function over many blocks of rows on all cores, with the results in the order of the blocks."""

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice

from engine.errors import UserError

MOST_PROCESSES = 8  # more would wait for the one that reads and writes
FEW_BLOCKS = 4  # what is no more than this is done sooner than processes start
_task = None  # what the processes do: they are forked, so that it is not copied, be it ever so large


def num_processes():
    """Processes that work on the blocks; 1: this one alone. Only Linux forks safely."""
    if not sys.platform.startswith("linux") or multiprocessing.current_process().daemon:
        return 1
    return min(MOST_PROCESSES, len(os.sched_getaffinity(0)))


def in_order(task, blocks):
    """task(block) of each block, in order, while `blocks` is read no further ahead than needed.

    The blocks and the results are pickled, the task is not. What a task raises is raised here, of several blocks by the
    first. The processes end with this one, however it ends.
    """
    global _task
    blocks, processes = iter(blocks), num_processes()
    head = list(islice(blocks, FEW_BLOCKS + 1))
    if processes < 2 or len(head) <= FEW_BLOCKS:
        yield from map(task, chain(head, blocks))
        return
    _task = task
    alive, lifeline = os.pipe()
    context = multiprocessing.get_context("fork")
    gc.freeze()  # what is shared with the processes is not touched, so that it stays shared
    pool = ProcessPoolExecutor(processes, context, initializer=live_with, initargs=(alive, lifeline))
    waiting = deque()
    try:
        for block in chain(head, blocks):
            waiting.append(pool.submit(do, block))
            if len(waiting) > 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError("a process that worked on the rows was killed; was there too little memory?") from None
    finally:
        pool.shutdown(cancel_futures=True)
        os.close(alive)
        os.close(lifeline)
        _task = None
        gc.unfreeze()


def do(block):
    return _task(block)


def live_with(alive, lifeline):
    """Ends this process as soon as the other end of the pipe is closed, as it is when the parent is gone."""
    gc.set_threshold(200_000, 20, 100)  # blocks of rows are many objects, but no circles of them
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    os.close(lifeline)
    threading.Thread(target=end_with, args=(alive,), daemon=True).start()


def end_with(alive):
    os.read(alive, 1)
    os._exit(1)
