"""Loads and validates the files of an exported folder: its settings, CRF parameters and graph."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from engine.errors import UserError
from engine.run.atomic import sha256
from engine.schema import AnyOf, Optional, Range, SchemaError, read_json
from tools.export.decoding import HEADS, Task

TASK = {
    "head": AnyOf(*HEADS),
    "type": str,
    "labels": [str],
    Optional("threshold"): float,
    Optional("temperature"): Range(1e-6, 1e6),  # older exports have none, which means 1
    Optional("paths"): [[Range(0)]],
    Optional("outside"): Range(0),
    Optional("entities"): bool,
    Optional("crf"): Range(0),
    Optional("reads_task"): str,  # the task whose logits follow those of this task
    Optional("mean"): float,
    Optional("std"): float,
}
SETTINGS = {
    "tasks": {str: TASK},
    "max_length": Range(8, 2**31),
    "stride": Range(-1, 2**31),
    "long_text": AnyOf("windows", "head", "tail", "head_tail"),
    "word_ends": bool,
    Optional("word_shapes"): bool,  # older exports have none, which means False
    "unit": AnyOf("word", "character", "character+blank", None),
    "pairs": bool,
    "apart": bool,
    "markers": {str: Range(0, 2**31)},
    "fields": {str: object},
    "reads_text": bool,
    "pad_id": Range(0, 2**31),
    "filler": AnyOf(str, None),
    "separator": AnyOf(str, None),
    "blanks": bool,
    "patterns": {"word": str, "character": str, "character+blank": str},
    "han": str,
}
PROVIDERS = {  # {name: (onnxruntime's name, the package that contains the provider)}
    "cpu": ("CPUExecutionProvider", "onnxruntime"),
    "cuda": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    "tensorrt": ("TensorrtExecutionProvider", "onnxruntime-gpu, and TensorRT"),
    "openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
}


class InputError(UserError):
    """An invalid row, file or option."""


def load_settings(folder: Path) -> dict[str, Any]:
    """Reads predictor.json. Raises InputError if a file of the folder is missing, changed or malformed."""
    try:
        manifest = read_json(folder / "manifest.json", {str: str})
        for name in sorted({"model.onnx", "predictor.json", *manifest} - {"README.md"}):  # users may edit README.md
            if Path(name).name != name or not os.path.isfile(folder / name):
                raise InputError(f"{folder / name}: is missing; export the model again")
            if manifest.get(name) != sha256(folder / name):
                raise InputError(f"{folder / name}: has changed since the export; export the model again")
        settings = read_json(folder / "predictor.json", SETTINGS)
    except SchemaError as error:
        raise InputError(f"{error}; export the model again") from None
    problems = [f"{key!r} of the task {name!r} is missing or invalid" for name, key in invalid_keys(settings["tasks"])]
    if settings["unit"] is None and any(HEADS[task["head"]].labels_words for task in settings["tasks"].values()):
        problems.append("tasks that label words need a 'unit'")
    if problems:
        raise InputError(f"{folder / 'predictor.json'}: {problems[0]}; export the model again")
    return settings


def invalid_keys(tasks: dict[str, Task]) -> list[tuple[str, str]]:
    """Returns (task, key) for each key that a task's head requires and that is missing or invalid."""
    found = []
    for name, task in tasks.items():
        kind, size = HEADS[task["head"]], len(task["labels"])
        found += [(name, key) for key in kind.required if key not in task]
        if (kind.needs_labels and not size) or "" in task["labels"]:
            found.append((name, "labels"))
        paths = task.get("paths", [[0]] * size)
        if len(paths) != size or any(len(path) != len(paths[0]) or max(path, default=0) > size for path in paths):
            found.append((name, "paths"))
        if task.get("outside", 0) >= max(1, size):
            found.append((name, "outside"))
    return found


def load_part(path: Path, load: Callable[[Path], Any]) -> Any:
    """Returns load(path). Converts the exceptions of libraries to InputError."""
    try:
        return load(path)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: cannot be loaded ({reason[:200]}); export the model again") from None


def load_arrays(path: Path, tasks: dict[str, Task]) -> dict[str, np.ndarray]:
    """Loads the CRF parameters {name: array} of all tasks. Raises InputError if a shape does not match the labels."""
    crfs = [task for task in tasks.values() if task["head"] == "crf"]
    arrays: dict[str, np.ndarray] = {}
    if crfs:
        arrays = load_part(path, lambda path: dict(np.load(path, allow_pickle=False)))
    for task in crfs:
        size, number = len(task["labels"]), task["crf"]
        for part, shape in (("start", (size,)), ("transitions", (size, size)), ("end", (size,))):
            if getattr(arrays.get(f"{number}.{part}"), "shape", None) != shape:
                raise InputError(f"{path}: {number}.{part} does not fit {size} labels; export the model again")
    return arrays


def load_session(path: Path, threads: int, provider: str) -> onnxruntime.InferenceSession:
    """Loads a graph.

    provider: a key of PROVIDERS, or auto: CUDA if onnxruntime supports it, otherwise the CPU. Raises InputError if the
    provider is not installed or fails to start.
    """
    available, key = onnxruntime.get_available_providers(), "cuda" if provider == "auto" else provider
    if key not in PROVIDERS:
        raise InputError(f"provider {provider!r}: must be auto, {', '.join(PROVIDERS)}")
    name, package = PROVIDERS[key]
    if name not in available and provider != "auto":
        raise InputError(f"provider {provider}: is not in this onnxruntime; pip install {package} instead")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    openvino = {"device_type": "CPU", "precision": "FP32", "num_of_threads": str(threads)}
    preferred = {name: openvino if key == "openvino" else {}} if name in available else {}
    providers: Any = list((preferred | {PROVIDERS["cpu"][0]: {}}).items())
    session = load_part(path, lambda path: onnxruntime.InferenceSession(str(path), options, providers=providers))
    if provider != "auto" and session.get_providers()[0] != name:  # onnxruntime falls back to the next provider
        raise InputError(f"provider {provider}: fails to start (see onnxruntime's message above)")
    return session


def num_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
