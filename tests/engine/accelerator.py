"""Adds an accelerator to torch, named npu like Ascend's, and runs a command of this repository on it.

    python tests/engine/accelerator.py main.py --do_train ...

Its tensors really are on that device: torch dispatches all their operations to it, and does not allow mixing them with
CPU tensors. It uses the host's memory and the CPU's kernels, so results equal the CPU's. The environment variable
LACKS=float64,bfloat16,… lists dtypes for which it raises an error, like mps."""

import ctypes
import os
import runpy
import sys
from pathlib import Path

import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_map
from torch.utils.dlpack import to_dlpack

NAME, CPU, EXTENSION = "npu", 1, 12  # 1 and 12: DLPack's device types
LACKS = [getattr(torch, name) for name in filter(None, os.environ.get("LACKS", "").split(","))]
TAKE_BOTH = ("aten::_copy_from", "aten::index", "aten::_index_put")  # operations that also accept CPU tensors
pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def at_device(tensor, kind):
    """Returns a tensor that shares the memory of another one, but has another device type."""
    capsule = to_dlpack(tensor.detach())
    ctypes.c_int32.from_address(pointer_of(capsule, b"dltensor") + 8).value = kind  # after the address of the values
    with torch.inference_mode(False):  # a view of a training tensor
        return torch._C._from_dlpack(capsule)


class Module:
    """The module that a package such as torch_npu registers as torch.npu."""

    def __init__(self):
        self.state = torch.Generator()

    is_available = is_initialized = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    synchronize = staticmethod(lambda device=None: None)
    get_device_name = staticmethod(lambda device=None: "a test's npu")
    manual_seed_all = staticmethod(lambda seed: None)  # dropout draws from the CPU's generator
    get_rng_state = staticmethod(lambda device="npu": torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, device="npu": torch.set_rng_state(state))
    get_amp_supported_dtype = staticmethod(lambda: [d for d in (torch.bfloat16, torch.float16) if d not in LACKS])


def kernel(op, *args, **kwargs):
    """Runs an operation with the CPU's kernel."""
    ours = []  # (tensor for the kernel, the given tensor)

    def lower(value):
        if isinstance(value, torch.device):
            return torch.device("cpu")
        if not isinstance(value, torch.Tensor) or value.device.type != NAME:
            if isinstance(value, torch.Tensor) and value.ndim and not op.name().startswith(TAKE_BOTH):
                raise RuntimeError(f"{op}: expected all tensors on {NAME}, found one on {value.device}")
            return value
        refuse(value)
        # the kernel allocates an empty result itself
        ours.append((at_device(value, CPU) if value.numel() else torch.empty_like(value, device="cpu"), value))
        return ours[-1][0]

    def refuse(tensor):
        if tensor.dtype in LACKS:
            raise TypeError(f"Cannot convert to {tensor.dtype}, as this device doesn't support {tensor.dtype}"[:200])

    def lift(value):
        if not isinstance(value, torch.Tensor):
            return value
        same = [given for lowered, given in ours if lowered is value]
        if same:
            return same[0]
        refuse(value)
        return at_device(value, EXTENSION)

    args, kwargs = tree_map(lower, (args, kwargs))
    if op.name() == "aten::_copy_from":
        args[1].copy_(args[0])
        return next((given for lowered, given in ours if lowered is args[1]), args[1])
    results = tree_map(lift, op(*args, **kwargs))
    for lowered, given in ours:
        if lowered.shape != given.shape:
            given.data = at_device(lowered, EXTENSION)
    return results


def deepcopy(tensor, memo, plain=torch.Tensor.__deepcopy__):
    """Copies a tensor. The default deepcopy allocates memory through a function that this device lacks."""
    return tensor.detach().clone() if tensor.device.type == NAME else plain(tensor, memo)


def register():
    torch.Tensor.__deepcopy__ = deepcopy
    backend_registration._setup_privateuseone_for_python_backend(NAME, Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(kernel, "PrivateUse1")
    library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")  # its autocast does nothing
    return library  # which would be undone at its end


if __name__ == "__main__":
    registered = register()
    root = Path(__file__).resolve().parents[2]
    sys.argv, sys.path[0] = sys.argv[1:], str(root)
    runpy.run_path(str(root / sys.argv[0]), run_name="__main__")
