"""Maps a function over blocks of rows on all cores. Results keep the order of the blocks."""

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Any, TypeVar

from engine.errors import UserError

Block = TypeVar("Block")
Result = TypeVar("Result")
MAX_PROCESSES = 8  # more would wait for the parent, which reads and writes
FEW_BLOCKS = 4  # up to this number, starting processes takes longer than the task itself
_task: Callable[[Any], Any] | None = None  # run by the workers, which inherit it by fork


def num_processes() -> int:
    """Returns the number of worker processes, or 1 to use this process. Only Linux forks safely."""
    if not sys.platform.startswith("linux") or multiprocessing.current_process().daemon:
        return 1
    return min(MAX_PROCESSES, len(os.sched_getaffinity(0)))


def in_order(task: Callable[[Block], Result], blocks: Iterable[Block]) -> Iterator[Result]:
    """Yields task(block) for each block, in order. Reads `blocks` only as far ahead as needed.

    Blocks and results are pickled; the task is not. An exception in a task is raised here, in block order. The workers
    end with this process, even if it is killed.
    """
    global _task
    rest, processes = iter(blocks), num_processes()
    head = list(islice(rest, FEW_BLOCKS + 1))
    if processes < 2 or len(head) <= FEW_BLOCKS:
        yield from map(task, chain(head, rest))
        return
    _task = task
    alive, lifeline = os.pipe()
    context = multiprocessing.get_context("fork")
    gc.freeze()  # garbage collection would write to memory shared with the workers, and so copy it
    pool = ProcessPoolExecutor(processes, context, initializer=live_with, initargs=(alive, lifeline))
    waiting: deque[Future] = deque()
    try:
        for block in chain(head, rest):
            waiting.append(pool.submit(do, block))
            if len(waiting) > 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError("a worker process was killed (out of memory?)") from None
    finally:
        pool.shutdown(cancel_futures=True)
        os.close(alive)
        os.close(lifeline)
        _task = None
        gc.unfreeze()


def do(block: Any) -> Any:
    assert _task is not None
    return _task(block)


def live_with(alive: int, lifeline: int) -> None:
    """Ends this process when the other end of the pipe is closed, that is, when the parent ends."""
    gc.set_threshold(200_000, 20, 100)  # blocks of rows have many objects but no reference cycles
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    os.close(lifeline)
    threading.Thread(target=end_with, args=(alive,), daemon=True).start()


def end_with(alive: int) -> None:
    os.read(alive, 1)
    os._exit(1)
