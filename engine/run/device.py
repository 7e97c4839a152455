"""Chooses the device and the settings that depend on it.

The accelerator is the device that torch.accelerator reports; only those that need special handling are named here.
"""

import ctypes
import warnings
from contextlib import suppress
from functools import cache
from typing import Any

import torch

from engine.errors import UserError
from engine.run.command_line import first_line
from engine.run.environment import gpu_problem


def accelerator() -> torch.device | None:
    """Returns this machine's accelerator: cuda (also for ROCm), mps, xpu, or one added by a package, such as npu."""
    if hasattr(torch, "accelerator"):  # since torch 2.6
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cuda") if torch.cuda.is_available() else None


def to_device(name: str) -> torch.device:
    """Converts 'auto', 'cpu', 'cuda:0', 'mps', … to a device. Raises UserError if this machine does not have it."""
    try:
        device = (accelerator() or torch.device("cpu")) if name == "auto" else torch.device(name)
    except (RuntimeError, ValueError):
        package = "; npu needs the package torch_npu" if name.startswith("npu") else ""
        raise UserError(f"--device {name} is not a device; use {devices_here()}{package}") from None
    number = count_of(device.type)
    if not 0 <= (device.index or 0) < number:
        is_cpu_build = hasattr(torch, "accelerator") and torch.accelerator.current_accelerator() is None
        build = "; this torch is a CPU build" if is_cpu_build and device.type != "cpu" else ""
        found = f"--device {name}: {number} {device.type.upper()} devices found{build}; use {devices_here()}"
        problem = gpu_problem() if device.type == "cuda" else None
        raise UserError(f"{found} ({problem})" if problem else found)
    return device


def count_of(kind: str) -> int:
    """Returns the number of devices of a type on this machine; 0 for `meta`, which has no data."""
    own = accelerator()
    if own is None or kind != own.type:
        return int(kind == "cpu")
    return module_of(own).device_count()


def devices_here() -> str:
    """Returns the values of --device that work on this machine, comma-separated."""
    own = accelerator()
    return ", ".join(["auto", "cpu", *([f"{own.type}:{i}" for i in range(count_of(own.type))] if own else [])])


def module_of(device: torch.device) -> Any:
    """Returns the torch module of a device, such as torch.cuda or torch.mps."""
    return getattr(torch, device.type)


def name_of(device: torch.device) -> str:
    """Returns a device's name, such as 'NVIDIA H200', or its type if its torch module reports no names."""
    name = None if device.type == "cpu" else getattr(module_of(device), "get_device_name", None)
    return name(device) if name else device.type


def describe(device: torch.device) -> str:
    """Describes a device for logs; for an accelerator, with its name and memory."""
    properties = None if device.type == "cpu" else getattr(module_of(device), "get_device_properties", None)
    memory = getattr(properties(device), "total_memory", 0) if properties else 0
    return f"{device} ({name_of(device)}, {memory / 2**30:.0f} GiB)" if memory else str(device)


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished all queued work."""
    if device.type != "cpu":
        module_of(device).synchronize()


# ---- capabilities ----------------------------------------------------------------------------------------------------


def has_bf16(device: torch.device) -> bool:
    """Returns whether a device is known to be faster in bf16 than in fp32.

    This holds for CPUs with AMX or AVX512-BF16, NVIDIA GPUs from compute capability 8 (Ampere), AMD GPUs, and other
    accelerators whose torch module reports bf16 support. Other devices emulate bf16 or were not measured (Arm CPUs).
    """
    if device.type == "cuda":  # torch.cuda.is_bf16_supported() is also True if bf16 is emulated
        return bool(torch.version.hip) or torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":  # old versions of torch have no get_capabilities
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))
    return bool(getattr(getattr(torch, device.type, None), "is_bf16_supported", bool)())  # neither mps nor meta has it


def require_precision(precision: str, device: torch.device) -> None:
    """Raises UserError if the device does not support this precision; autocast would only warn and use fp32."""
    if precision == "fp32":
        return
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            torch.autocast(device.type, dtype)
        torch.ones(1, dtype=dtype, device=device).add(1)
    except (RuntimeError, TypeError, AssertionError, UserWarning) as error:
        raise UserError(
            f"--precision {precision}: not supported on this {device.type} ({first_line(error)}); use --precision fp32"
        ) from None


@cache
def has_double(kind: str) -> bool:
    """Returns whether devices of this type support float64: mps and small xpu devices do not."""
    if kind in ("cpu", "cuda"):
        return True
    try:
        torch.ones(1, dtype=torch.float32, device=kind).double().add(1)
    except (RuntimeError, TypeError):
        return False
    return True


def to_double(tensor: torch.Tensor) -> torch.Tensor:
    """Converts a tensor to float64; moves it to the CPU if its device does not support float64."""
    return (tensor if has_double(tensor.device.type) else tensor.cpu()).double()


@cache
def can_pin(kind: str) -> bool:
    """Returns whether copies from pinned host memory to devices of this type can be asynchronous. On mps they cannot:
    such a copy may read memory that has already been freed (pytorch#189690)."""
    if kind in ("cpu", "cuda", "mps"):
        return kind == "cuda"
    try:
        torch.empty(1).pin_memory()
    except RuntimeError:
        return False
    return True


def keep_freed_memory(device: torch.device | None = None) -> None:
    """Makes glibc reuse memory freed by a batch for the next one, instead of returning it to the system. This makes
    training on a CPU faster; it is skipped for other devices."""
    if device is not None and device.type != "cpu":
        return
    with suppress(OSError, AttributeError):  # other systems have no glibc
        libc = ctypes.CDLL("libc.so.6")
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 64 << 20)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
            libc.mallopt(option, value)


def random_state(device: torch.device) -> torch.Tensor:
    """Returns the state of a device's random number generator."""
    return torch.get_rng_state() if device.type == "cpu" else module_of(device).get_rng_state(*index_of(device))


def set_random_state(state: torch.Tensor, device: torch.device) -> None:
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        module_of(device).set_rng_state(state, *index_of(device))


def index_of(device: torch.device) -> list[torch.device]:
    """Returns the device as an argument list, empty for torch.mps, whose functions take no device."""
    return [] if device.type == "mps" else [device]
