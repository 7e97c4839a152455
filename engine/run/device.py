"""Chooses the device, and settings that depend on it."""

import ctypes
from contextlib import suppress
from typing import Any

import torch

from engine.errors import UserError
from engine.run.environment import gpu_problem


def to_device(name: str) -> torch.device:
    """'auto', 'cpu', 'cuda:0', … -> torch.device. Raises UserError if this machine does not have it."""
    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else torch.device(name)
    except (RuntimeError, ValueError):
        raise UserError(f"--device {name} is not a device; use auto, cpu, cuda or cuda:0") from None
    number = count_of(device.type)
    if not 0 <= (device.index or 0) < number:
        build = "" if torch.version.cuda or device.type != "cuda" else "; this torch is a CPU build"
        found = f"--device {name}: {number} {device.type.upper()} devices found{build}; use --device cpu or auto"
        problem = gpu_problem() if device.type == "cuda" else None
        raise UserError(f"{found} ({problem})" if problem else found)
    return device


def describe(device: torch.device) -> str:
    """A device as logs name it: a GPU with its name and memory."""
    properties = getattr(getattr(torch, device.type, None), "get_device_properties", None)
    if device.type == "cpu" or properties is None:
        return str(device)
    return f"{device} ({properties(device).name}, {properties(device).total_memory / 2**30:.0f} GiB)"


def count_of(kind: str) -> int:
    """The number of devices of a kind on this machine; `meta`, which holds no values, does not count."""
    module: Any = getattr(torch, kind, None)
    if kind == "cpu" or not hasattr(module, "device_count"):
        return int(kind == "cpu")
    return module.device_count() if module.is_available() else 0


def has_bf16(device: torch.device) -> bool:
    """Whether a device is faster in bf16 than in fp32: a CPU with AMX or AVX512-BF16, a GPU of compute capability 8
    (Ampere) or later. Others emulate it or, like Arm CPUs, are not known to gain from it in training."""
    if device.type == "cuda":
        return bool(torch.version.hip) or torch.cuda.get_device_capability(device)[0] >= 8
    # old versions of torch have no get_capabilities
    there: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return any(there.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


def keep_freed_memory(device: torch.device | None = None) -> None:
    """Makes glibc keep memory freed by a batch for the next one, instead of returning it to the system; faster on a
    CPU, and skipped for other devices."""
    if device is not None and device.type != "cpu":
        return
    with suppress(OSError, AttributeError):  # other systems have no glibc
        libc = ctypes.CDLL("libc.so.6")
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 64 << 20)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
            libc.mallopt(option, value)


def random_state(device: torch.device) -> torch.Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_random_state(state: torch.Tensor, device: torch.device) -> None:
    torch.cuda.set_rng_state(state, device) if device.type == "cuda" else torch.set_rng_state(state)
