"""Several processes, started by torchrun, train one model: one process per GPU, or per part of a CPU.

    torchrun --nproc_per_node 4 main.py --do_train ...

All processes run the same program. A training batch has --batch_size rows times the number of processes; it is built as
in one process, then split across the processes by length. Gradients are summed, and losses are divided by the number of
labels in the whole step. So N processes are equivalent to one process with an N times larger --batch_size; tricks that
act on each micro-batch treat the N shares like N accumulated micro-batches. In evaluation, whole batches are
distributed over the processes and their predictions gathered. Only process 0 logs and writes.

In a single process all functions here do nothing, or return their input.
"""

import ctypes
import dataclasses
import hashlib
import logging
import multiprocessing
import os
import random
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from datetime import timedelta
from functools import partialmethod
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from engine.errors import UserError
from engine.run.command_line import first_line
from engine.run.device import count_of, module_of, to_device
from engine.run.launch import is_launched, local_rank, restarts

ROOT = Path(__file__).resolve().parents[2]
ALONE = ContextVar("alone", default=False)
# Keeps replicas alive until exit: destroying them joins threads of gloo, which may never return
KEPT: list[DistributedDataParallel] = []
BUCKET = 2**24  # values summed at a time
FEW_ROWS_FROM = 2**20  # only non-zero rows are reduced of matrices at least this large


def rank() -> int:
    """The rank of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() and not ALONE.get() else 0


def size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() and not ALONE.get() else 1


@contextmanager
def alone() -> Iterator[None]:
    """A context in which this thread works alone, even if the surrounding program has joined other processes."""
    token = ALONE.set(True)
    try:
        yield
    finally:
        ALONE.reset(token)


def is_main_process() -> bool:
    """Whether this is the process that logs and writes."""
    return rank() == 0


# ---- beginning and end ---------------------------------------------------------------------------------------------


def join(device_name: str, timeout: float) -> torch.device:
    """Joins the other processes, if there are any, and returns this process's device.

    timeout: seconds after which a process that does not respond ends the run.
    """
    if not is_launched() or dist.is_initialized():
        return to_device(device_name)
    local = local_rank()
    device = local_device(device_name, local)
    end_with_parent()
    backend = backend_of(device)
    wait = timedelta(seconds=timeout)
    try:
        store, number, processes = next(dist.rendezvous("env://", timeout=wait))
        store = dist.PrefixStore(f"start_{restarts()}", store)  # the store still has addresses of earlier starts
        dist.init_process_group(backend, store=store, rank=number, world_size=processes, timeout=wait)
    except (ValueError, RuntimeError) as error:
        where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        raise UserError(
            f"the processes cannot connect to each other at {where} ({first_line(error)}); is the port free, and the "
            "same on every node?"
        ) from None
    if device.type != "cpu":
        module_of(device).set_device(device)
    if not is_main_process():  # process 0 logs for all
        logging.getLogger("template").setLevel(logging.ERROR)
        os.environ["TRANSFORMERS_VERBOSITY"] = "error"
        tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)
    return device


def seed_each(seed: int) -> None:
    """At the start of training, seeds Python's generator and, in processes 1, 2, …, torch's with seed and rank."""
    random.seed(seed)
    if rank():
        torch.manual_seed(seed + rank() * 1_000_003)


def local_device(name: str, local: int) -> torch.device:
    """The device of the process with this rank on its machine: one GPU each, or the CPU for all."""
    device = to_device(name)
    if device.type == "cpu":
        return device
    if device.index is not None:
        raise UserError(f"--device {name}: each process needs its own GPU; use --device {device.type} or auto")
    processes, there = int(os.environ.get("LOCAL_WORLD_SIZE", local + 1)), count_of(device.type)
    if processes > there:  # all processes raise this; only the first one on each machine prints it
        raise UserError(f"{processes} processes here, but {there} GPUs; start one per GPU, or add --device cpu")
    return torch.device(device.type, local)


def backend_of(device: torch.device) -> str:
    """The backends that connect the processes: gloo for CPU tensors, and the device's own, such as nccl."""
    if device.type == "cpu":
        return "gloo"
    choose: Any = getattr(dist, "get_default_backend_for_device", {"cuda": "nccl"}.__getitem__)  # torch < 2.7 has none
    try:
        own = choose(device.type)
    except (ValueError, KeyError):
        own = "gloo"
    if own == "gloo" or not dist.is_backend_available(own):  # gloo copies only from a CPU's memory and CUDA's
        raise UserError(f"this torch cannot connect processes on {device.type}; start only one, or add --device cpu")
    return f"cpu:gloo,{device.type}:{own}"


def end_with_parent() -> None:
    """Makes the system send SIGTERM to this process when torchrun dies, so it saves and exits instead of continuing."""
    with suppress(OSError, AttributeError):  # not on other systems
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def leave(device: torch.device) -> None:
    """Waits for the other processes, and undoes `join`, which returned the device.

    Gloo stays active until the process ends (see KEPT).
    """
    if dist.is_initialized():
        barrier()
        if device.type != "cpu":  # NCCL warns if this is left to the end of the process
            dist.destroy_process_group()


# ---- communication -------------------------------------------------------------------------------------------------


def gather(value: Any) -> list[Any]:
    """[value of process 0, of process 1, …], for values that can be pickled."""
    if size() == 1:
        return [value]
    values = [None] * size()
    dist.all_gather_object(values, value)
    return values


def gather_in_turn(items: list[Any]) -> list[Any]:
    """Merges the lists of all processes round robin, one item from each in turn: the inverse of `share`."""
    lists = gather(items)
    if len(lists) == 1:
        return items
    missing = object()
    return [item for turn in zip_longest(*lists, fillvalue=missing) for item in turn if item is not missing]


def in_step(loader: Any) -> Iterator[Any]:
    """Yields the items of a loader, then None until the loaders of all processes are exhausted."""
    items = iter(loader)
    for _ in range(all_reduce_max(len(loader))):
        yield next(items, None)


def barrier() -> None:
    if size() > 1:
        dist.all_reduce(torch.zeros(1))


def all_reduce_max(number: int) -> int:
    """The maximum of an integer over all processes."""
    if size() == 1:
        return number
    numbers = torch.tensor(number)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return int(numbers)


def all_reduce_sum(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """{name: () on the CPU} -> the sums over all processes."""
    if size() == 1:
        return values
    numbers = torch.stack([value.double() for value in values.values()])
    dist.all_reduce(numbers)
    return dict(zip(values, numbers.float()))


def from_first(function: Callable[[], Any]) -> Any:
    """Returns process 0's function() in all processes; a UserError there is raised in all."""
    if size() == 1:
        return function()
    answer: list[Any] = [None, None]
    if is_main_process():
        try:
            answer = [function(), None]
        except UserError as error:
            answer = [None, str(error)]
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise UserError(answer[1])
    return answer[0]


@contextmanager
def first_of_node() -> Iterator[None]:
    """`with first_of_node():` — one process per machine runs the block first, then the others."""
    local = local_rank() if size() > 1 else 0
    if local:
        barrier()
    try:
        yield
    finally:
        if not local:
            barrier()


def require_same(facts: dict[str, Any]) -> None:
    """Raises UserError if facts, {name: text or number}, differ between processes; names the fact and the process."""
    everyone = gather(facts)
    for other, theirs in enumerate(everyone):
        for what, ours in everyone[0].items():
            if theirs[what] != ours:
                raise UserError(f"{what} differs between process 0 and process {other}: {ours} and {theirs[what]}")


@contextmanager
def entered_by_first(context: AbstractContextManager[Any]) -> Iterator[Any]:
    """`with entered_by_first(context) as value:` — process 0 enters the context on behalf of all processes."""
    with ExitStack() as stack:
        yield from_first(lambda: stack.enter_context(context))


def require_same_run(config: Any, data: str) -> None:
    """Raises UserError if code, options or data of a process differ from process 0. data: a fingerprint."""
    if size() > 1:
        own = [*ROOT.glob("*.py"), *(ROOT / "preprocess").rglob("*.py"), *(ROOT / "engine").rglob("*.py")]
        code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(own))).hexdigest()
        options = {f"--{name}": value for name, value in dataclasses.asdict(config).items()}
        require_same({"the code": code[:16], "torch": torch.__version__, **options, "the data": data})


# ---- training ------------------------------------------------------------------------------------------------------


def share(rows: Any) -> Any:
    """This process's share, every N-th item: all processes get similar lengths from rows sorted by length."""
    return rows[rank() :: size()]


def worker_context(num_workers: int) -> multiprocessing.context.BaseContext | None:
    """The start method of a loader's workers. With several processes, workers are forked from a small server process,
    because gloo threads of this process may hold locks."""
    if size() == 1 or not num_workers:
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_loader"])
    return context


def replicate(model: torch.nn.Module, overlap: bool) -> DistributedDataParallel | None:
    """Broadcasts the weights of process 0. Returns the model in PyTorch's DistributedDataParallel, which sums (not
    averages) the gradients during the backward pass, except for `left_out`. Returns None in a single process, or if not
    `overlap`: `all_reduce_gradients` then sums the gradients afterwards."""
    if size() == 1:
        return None
    for tensor in model.state_dict().values():
        dist.broadcast(tensor.data, 0)
    if not overlap:
        return None
    left_out = {name: p for name, p in model.named_parameters() if p.requires_grad and has_few_rows(p)}
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(left_out))
    with warnings.catch_warnings():  # torch 2.13 has a new name for broadcast_buffers; older ones lack it
        warnings.simplefilter("ignore", FutureWarning)
        replica: Any = DistributedDataParallel(
            model, broadcast_buffers=False, find_unused_parameters=True, gradient_as_bucket_view=True
        )
    replica.register_comm_hook(None, sum_bucket)
    replica.left_out = list(left_out.values())
    KEPT.append(replica)
    return replica


def has_few_rows(parameter: torch.Tensor) -> bool:
    """Whether to sum only the non-zero rows of a matrix: if it is large and much longer than wide, like embeddings. On
    a GPU all rows are sent, because selecting them would force a sync."""
    long = parameter.ndim == 2 and parameter.shape[0] > 8 * parameter.shape[1]
    return long and parameter.numel() > FEW_ROWS_FROM and parameter.device.type == "cpu"


def sync_gradients(replica: DistributedDataParallel | None, is_last: bool) -> AbstractContextManager[None]:
    """A context for a micro-batch: gradients are summed over the processes at the last micro-batch of a step."""
    return nullcontext() if replica is None or is_last else replica.no_sync()


def sum_bucket(_: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


def all_reduce_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Sums the gradients over all processes; a missing gradient counts as zero, unless it is missing in all."""
    if size() == 1 or not parameters:
        return
    there = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
    dist.all_reduce(there, dist.ReduceOp.MAX)
    bucket, numbers = [], 0
    for p, has_gradient in zip(parameters, there.tolist()):
        if not has_gradient:
            continue
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        if has_few_rows(p):
            add_up_rows(p.grad)
            continue
        bucket.append(p.grad)
        numbers += p.numel()
        if numbers >= BUCKET:
            add_up_tensors(bucket)
            bucket, numbers = [], 0
    if bucket:
        add_up_tensors(bucket)


def add_up_rows(gradient: torch.Tensor) -> None:
    """Sums the rows (V, H) in which any process has a non-zero value."""
    used = ((gradient.amax(1) != 0) | (gradient.amin(1) != 0)).to(torch.uint8)
    dist.all_reduce(used, dist.ReduceOp.MAX)
    rows = used.nonzero().squeeze(1)
    sums = gradient[rows]
    dist.all_reduce(sums)
    gradient.index_copy_(0, rows, sums)


def add_up_tensors(tensors: list[torch.Tensor]) -> None:
    flat = torch._utils._flatten_dense_tensors(tensors)
    dist.all_reduce(flat)
    torch._foreach_copy_(tensors, torch._utils._unflatten_dense_tensors(flat, tensors))
