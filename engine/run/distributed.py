"""Data-parallel training in several processes started by torchrun: one per GPU, or several on one CPU.

    torchrun --nproc_per_node 4 main.py --do_train ...

All processes run the same program. A training batch has --batch_size rows per process. It is built as in a single
process, then split across the processes by length. Gradients are summed, and losses are divided by the number of labels
in the whole step, so N processes are equivalent to one process with an N times larger --batch_size. Tricks that act on
each micro-batch treat the N shares like N accumulated micro-batches. In evaluation, whole batches are distributed over
the processes and their predictions gathered. Only process 0 logs and writes.

In a single process, all functions here do nothing or return their input.
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
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from engine.errors import UserError
from engine.run.command_line import first_line
from engine.run.device import count_of, module_of, to_device
from engine.run.launch import is_launched, local_rank, restarts

if TYPE_CHECKING:
    from config import Config

ROOT = Path(__file__).resolve().parents[2]
ALONE = ContextVar("alone", default=False)
# Keeps replicas alive until exit: their destructor joins threads of gloo, which can block forever
REPLICAS: list[DistributedDataParallel] = []
BUCKET = 2**24  # number of values in one all-reduce
SPARSE_FROM = 2**20  # in larger matrices (number of values), only the non-zero rows are all-reduced


def rank() -> int:
    """Returns the rank of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() and not ALONE.get() else 0


def size() -> int:
    """Returns the number of processes."""
    return dist.get_world_size() if dist.is_initialized() and not ALONE.get() else 1


@contextmanager
def alone() -> Iterator[None]:
    """Makes this thread act as a single process, even if the calling program has joined a process group."""
    token = ALONE.set(True)
    try:
        yield
    finally:
        ALONE.reset(token)


def is_main_process() -> bool:
    """Returns whether this is the process that logs and writes."""
    return rank() == 0


# ---- start and end -------------------------------------------------------------------------------------------------


def join(device_name: str, timeout: float) -> torch.device:
    """Joins the process group, if torchrun started several processes, and returns this process's device.

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
            f"the processes cannot connect to each other at {where} ({first_line(error)}); check that the port "
            "is free, and the same on every node"
        ) from None
    if device.type != "cpu":
        module_of(device).set_device(device)
    if not is_main_process():  # process 0 logs for all
        logging.getLogger("template").setLevel(logging.ERROR)
        os.environ["TRANSFORMERS_VERBOSITY"] = "error"
        tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)
    return device


def seed_each(seed: int) -> None:
    """Seeds Python's generator at the start of training and, in processes 1, 2, …, torch's with seed and rank."""
    random.seed(seed)
    if rank():
        torch.manual_seed(seed + rank() * 1_000_003)


def local_device(name: str, local: int) -> torch.device:
    """Returns the device of the process with this local rank: one GPU per process, or the CPU for all."""
    device = to_device(name)
    if device.type == "cpu":
        return device
    if device.index is not None:
        raise UserError(f"--device {name}: each process needs its own GPU; use --device {device.type} or auto")
    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", local + 1)), count_of(device.type)
    if processes > gpus:  # all processes raise this; only the first one on each machine prints it
        started = f"{processes} processes were started on this machine, which has {gpus} GPUs"
        raise UserError(f"{started}; start one per GPU, or add --device cpu")
    return torch.device(device.type, local)


def backend_of(device: torch.device) -> str:
    """Returns the torch.distributed backends: gloo for CPU tensors and, on a GPU, its own backend, such as nccl."""
    if device.type == "cpu":
        return "gloo"
    choose: Any = getattr(dist, "get_default_backend_for_device", {"cuda": "nccl"}.__getitem__)  # torch < 2.7 has none
    try:
        own = choose(device.type)
    except (ValueError, KeyError):
        own = "gloo"
    if own == "gloo" or not dist.is_backend_available(own):  # gloo supports only CPU and CUDA tensors
        problem = f"this build of torch cannot connect processes on {device.type}"
        raise UserError(f"{problem}; start only one, or add --device cpu")
    return f"cpu:gloo,{device.type}:{own}"


def end_with_parent() -> None:
    """Makes Linux send SIGTERM to this process when torchrun dies, so it saves and exits instead of continuing."""
    with suppress(OSError, AttributeError):  # other systems have no prctl
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def leave(device: torch.device) -> None:
    """Waits for the other processes, then leaves the process group. device: the return value of `join`.

    Gloo stays active until the process ends (see REPLICAS).
    """
    if dist.is_initialized():
        barrier()
        if device.type != "cpu":  # NCCL warns if its process group still exists at exit
            dist.destroy_process_group()


# ---- communication -------------------------------------------------------------------------------------------------


def gather(value: Any) -> list[Any]:
    """Returns [value of process 0, value of process 1, …]. The values must be picklable."""
    if size() == 1:
        return [value]
    values = [None] * size()
    dist.all_gather_object(values, value)
    return values


def gather_in_turn(items: list[Any]) -> list[Any]:
    """Interleaves the lists of all processes, one item from each at a time: the inverse of `share`."""
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
    """Returns the maximum of an integer over all processes."""
    if size() == 1:
        return number
    numbers = torch.tensor(number)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return int(numbers)


def all_reduce_sum(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the sum of each value over all processes. values: {name: scalar tensor on the CPU}"""
    if size() == 1:
        return values
    numbers = torch.stack([value.double() for value in values.values()])
    dist.all_reduce(numbers)
    return dict(zip(values, numbers.float()))


def from_rank_0(function: Callable[[], Any]) -> Any:
    """Calls a function in process 0 and returns its result in all processes. A UserError is also raised in all."""
    if size() == 1:
        return function()
    result: list[Any] = [None, None]  # return value, error message
    if is_main_process():
        try:
            result = [function(), None]
        except UserError as error:
            result = [None, str(error)]
    dist.broadcast_object_list(result)
    if result[1] is not None:
        raise UserError(result[1])
    return result[0]


@contextmanager
def first_of_node() -> Iterator[None]:
    """Makes one process per machine run the `with` block first, then the others."""
    local = local_rank() if size() > 1 else 0
    if local:
        barrier()
    try:
        yield
    finally:
        if not local:
            barrier()


def require_same(facts: dict[str, Any]) -> None:
    """Raises UserError, with the name and the process, if values differ between processes. facts: {name: value}"""
    first, *others = gather(facts)
    for number, other in enumerate(others, 1):
        for name, value in first.items():
            if other[name] != value:
                raise UserError(f"{name} differs between process 0 and process {number}: {value} and {other[name]}")


@contextmanager
def entered_by_first(context: AbstractContextManager[Any]) -> Iterator[Any]:
    """Enters a context in process 0 only, and yields its value in all processes."""
    with ExitStack() as stack:
        yield from_rank_0(lambda: stack.enter_context(context))


def require_same_run(config: "Config", data: str) -> None:
    """Raises UserError if a process's code, options or data differ from process 0's. data: fingerprint of the data"""
    if size() > 1:
        own = [*ROOT.glob("*.py"), *(ROOT / "preprocess").rglob("*.py"), *(ROOT / "engine").rglob("*.py")]
        code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(own))).hexdigest()
        options = {f"--{name}": value for name, value in dataclasses.asdict(config).items()}
        require_same({"the code": code[:16], "torch": torch.__version__, **options, "the data": data})


# ---- training ------------------------------------------------------------------------------------------------------


def share(rows: Any) -> Any:
    """Returns every N-th item, starting at this process's rank. If rows are sorted by length, all processes get similar
    lengths."""
    return rows[rank() :: size()]


def worker_context(num_workers: int) -> multiprocessing.context.BaseContext | None:
    """Returns the start method of DataLoader workers. With several processes, workers are forked from a small server
    process, because gloo threads of this process may hold locks."""
    if size() == 1 or not num_workers:
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_loader"])
    return context


def replicate(model: torch.nn.Module, overlap: bool) -> DistributedDataParallel | None:
    """Broadcasts the weights of process 0, and wraps the model in DistributedDataParallel.

    The wrapper sums (does not average) gradients during the backward pass, except for its `left_out` parameters.
    Returns None in a single process, or if `overlap` is False: `all_reduce_gradients` then sums them afterwards.
    """
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
    REPLICAS.append(replica)
    return replica


def has_few_rows(parameter: torch.Tensor) -> bool:
    """Returns whether to all-reduce only the non-zero rows of a parameter: it is a large matrix with many more rows
    than columns, such as embeddings. On a GPU this is always False, because selecting rows would force a sync."""
    long = parameter.ndim == 2 and parameter.shape[0] > 8 * parameter.shape[1]
    return long and parameter.numel() > SPARSE_FROM and parameter.device.type == "cpu"


def sync_gradients(replica: DistributedDataParallel | None, is_last: bool) -> AbstractContextManager[None]:
    """Returns a context for a micro-batch. Gradients are summed over processes only in the last one of a step."""
    return nullcontext() if replica is None or is_last else replica.no_sync()


def sum_bucket(_: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


def all_reduce_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Sums the gradients over all processes. A missing gradient counts as zero, unless it is missing in all."""
    if size() == 1 or not parameters:
        return
    has_gradients = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
    dist.all_reduce(has_gradients, dist.ReduceOp.MAX)
    bucket, numbers = [], 0
    for p, has_gradient in zip(parameters, has_gradients.tolist()):
        if not has_gradient:
            continue
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        if has_few_rows(p):
            all_reduce_rows(p.grad)
            continue
        bucket.append(p.grad)
        numbers += p.numel()
        if numbers >= BUCKET:
            all_reduce_tensors(bucket)
            bucket, numbers = [], 0
    if bucket:
        all_reduce_tensors(bucket)


def all_reduce_rows(gradient: torch.Tensor) -> None:
    """Sums, over all processes, the rows of a (V, H) gradient that are non-zero in any process."""
    used = ((gradient.amax(1) != 0) | (gradient.amin(1) != 0)).to(torch.uint8)
    dist.all_reduce(used, dist.ReduceOp.MAX)
    rows = used.nonzero().squeeze(1)
    sums = gradient[rows]
    dist.all_reduce(sums)
    gradient.index_copy_(0, rows, sums)


def all_reduce_tensors(tensors: list[torch.Tensor]) -> None:
    flat = torch._utils._flatten_dense_tensors(tensors)
    dist.all_reduce(flat)
    torch._foreach_copy_(tensors, torch._utils._unflatten_dense_tensors(flat, tensors))
