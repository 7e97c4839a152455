"""Saves and loads checkpoints: folders that are never partially written, and contain nothing that can be executed.

Tensors are stored as safetensors, everything else as JSON. While training continues, a thread writes a copy under a
temporary name, syncs it to disk, adds a manifest of SHA-256 sums, and renames it. `best` is sufficient for prediction;
`step_N` also has all state that the next training step depends on. To save more or other checkpoints, edit this file.
"""

import copy
import json
import logging
import random
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from engine.errors import UserError
from engine.model import lora
from engine.model.encoders import ENCODER_FILE
from engine.model.head import SINCE
from engine.run import distributed
from engine.run.command_line import first_line, torch_error_message
from engine.run.device import name_of, random_state, set_random_state
from engine.run.files import clean_temporaries, replace_folder, sync, verify, write_json
from engine.run.run_folder import WEIGHTS_FILE, weights_file
from engine.schema import AnyOf, Number, Optional, Range, SchemaError, like, mismatch, read_json
from engine.task.task import Task, read_tasks, tasks_to_json

if TYPE_CHECKING:
    from config import Config

logger = logging.getLogger("template")
KEEP = 2  # number of resumable checkpoints to retain; one more during training


def step_folders(root: Path) -> list[Path]:
    """Returns the resumable checkpoints, newest first."""
    found = [path for path in root.glob("step_*") if re.fullmatch(r"step_\d+", path.name)]
    return sorted(found, key=lambda path: -int(path.name[5:]))


def rotate(root: Path) -> None:
    for path in step_folders(root)[KEEP:]:
        shutil.rmtree(path)


# ---- contents of a checkpoint ----------------------------------------------------------------------------------------


class Writer:
    """Writes checkpoints to `root` in a background thread. `save` returns as soon as it has copied the tensors.

    At most two checkpoints are pending. If writing fails, a later `save` or `wait` raises the UserError. As a context
    manager, it waits for pending checkpoints on exit.
    """

    def __init__(self, root: Path, tokenizer: Any, tasks: dict[str, Task], config: "Config"):
        self.root, self.tokenizer, self.tasks, self.config = root, copy.deepcopy(tokenizer), tasks, config
        self.thread, self.pending = ThreadPoolExecutor(1), list[Any]()

    def save(
        self,
        name: str,
        model: Any,
        training: tuple[dict[str, torch.Tensor], dict[str, Any]] | None = None,
        log: Path | None = None,
    ) -> None:
        """Queues a checkpoint. training: (tensors, values) from `training_state`, to make it resumable; log: a file to
        sync to disk before the checkpoint appears."""
        self.wait(leave=1)
        encoder, base = model.encoder, lora.base_of(model)
        merge = base and self.config.merge_lora and not training
        weights = snapshot(lora.merged_tensors(model) if merge else lora.kept_tensors(model))
        tensors, values = (snapshot(training[0]), copy.deepcopy(training[1])) if training else (None, None)

        def fill(temporary: Path) -> None:
            save_file(weights, temporary / WEIGHTS_FILE)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(temporary)
            if hasattr(encoder, "config"):
                encoder.config.to_json_file(temporary / ENCODER_FILE)
            if base and not merge:
                write_json(temporary / lora.BASE_FILE, base)
            write_json(temporary / "labels.json", tasks_to_json(self.tasks))
            # without the flags for resuming, so `best` of a resumed run is byte-identical
            write_json(temporary / "args.json", self.config.kept() | {"resume": False, "force_resume": False})
            if training:
                save_file(cast(dict, tensors), temporary / "training.safetensors")
                write_json(temporary / "training.json", values)

        def write() -> None:
            if training:
                # before writing, so that the page cache can reuse pages; allocating new ones can dominate the time
                rotate(self.root)
            if log and log.exists():
                sync(log)
            replace_folder(self.root / name, fill)

        self.pending.append(self.thread.submit(write))

    def wait(self, leave: int = 0) -> None:
        """Waits until all but the last `leave` checkpoints are complete on disk."""
        while len(self.pending) > leave:
            self.pending.pop(0).result()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        errors = [error for error in (write.exception() for write in self.pending) if error]  # waits for all of them
        self.pending = []
        for error in errors:
            logger.error(error)
        if errors and kind is None:
            raise errors[0]
        if distributed.is_main_process():
            rotate(self.root)


def snapshot(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies tensors to the host, so that further training does not change them."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def newest_intact(root: Path) -> tuple[Path | None, list[Path]]:
    """Returns (the newest intact resumable checkpoint or None, the damaged ones that are newer)."""
    clean_temporaries(root)
    damaged: list[Path] = []
    for folder in step_folders(root):
        reason = verify(folder)
        if reason is None:
            return folder, damaged
        logger.warning(f"{folder} is damaged ({reason}); trying the previous one")
        damaged.append(folder)
    return None, damaged


def truncate_log(num_bytes: int, log: Path, damaged: list[Path]) -> None:
    """Truncates a log to its length at a checkpoint, and removes later, damaged checkpoints, which would count towards
    KEEP."""
    with open(log, "ab") as file:
        if file.tell() < num_bytes:
            logger.warning(f"{log} is shorter than at the checkpoint; its missing lines are lost")
        file.truncate(min(file.tell(), num_bytes))
    for path in damaged:
        shutil.rmtree(path)


def require_whole(folder: Path) -> None:
    """Raises UserError if a checkpoint is damaged; the message lists the intact ones next to it."""
    reason = verify(folder)
    if reason is None:
        return
    whole = [
        path for path in (folder.parent / "best", *step_folders(folder.parent)) if path != folder and not verify(path)
    ]
    if not whole:
        raise UserError(f"{folder}: damaged checkpoint, {reason}, and none next to it is intact; train again")
    weights = weights_sum(folder)
    same = [path for path in whole if weights and weights_sum(path) == weights]
    listed = ", ".join(path.name + (" (the same weights)" if path in same else "") for path in whole)
    chosen = (same or whole)[0]
    raise UserError(
        f"{folder}: damaged checkpoint, {reason}; intact next to it: {listed}. To use one: --checkpoint {chosen}"
    )


def weights_sum(folder: Path) -> Any:
    """Returns the SHA-256 of a checkpoint's weights, from its manifest; None if the manifest cannot be read."""
    with suppress(OSError, ValueError, AttributeError):
        sums = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return sums.get(weights_file(folder).name)


def read_weights(folder: Path, model: Any) -> dict[str, torch.Tensor]:
    """Reads {name: tensor} from a checkpoint. Raises UserError if weights are not finite; buffers may be infinite."""
    try:
        tensors = load_file(weights_file(folder))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{weights_file(folder)}: cannot be read ({first_line(error)})") from None
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if torch.isnan(tensor).any() or (name in parameters and not torch.isfinite(tensor).all()):
            raise UserError(f"{folder}: the weights {name} are not finite; train again, or use another checkpoint")
    return tensors


def load_weights(model: Any, folder: Path) -> None:
    """Loads the weights of a checkpoint into a model. Raises UserError if a name or a shape differs."""
    tensors, own = read_weights(folder, model), lora.kept_tensors(model)
    new = {name: name.rpartition(".")[2] for name in own.keys() - tensors.keys()}
    tensors |= {name: torch.tensor(SINCE[buffer]) for name, buffer in new.items() if buffer in SINCE}
    base, own_base = lora.read_base(folder), lora.base_of(model)
    if base and own_base:
        lora.require_same_base(folder, base, own_base["sha256"], own_base["name"])
    elif own_base and any(name.startswith("encoder.") for name in tensors):  # merged
        own, tensors = model.state_dict(), lora.split_merged(model, tensors)
    wrong = sorted(set(tensors) ^ set(own)) or [name for name in own if own[name].shape != tensors[name].shape]
    if wrong:
        raise UserError(
            f"{folder}: contains another model: {len(wrong)} tensors differ, such as {wrong[0]} "
            f"({shape_of(tensors, wrong[0])} in the checkpoint, {shape_of(own, wrong[0])} here); "
            "start a new run with another --model_version"
        )
    model.load_state_dict(tensors, strict=own_base is None)  # the base model's weights are not in the checkpoint


def require_labels(folder: Path, tasks: dict[str, Task]) -> None:
    """Raises UserError if a checkpoint was trained with other tasks or labels."""
    theirs = read_tasks(folder / "labels.json")
    for name in sorted(theirs.keys() | tasks.keys()):
        old, new = (side[name].labels if name in side else () for side in (theirs, tasks))
        separators = {side[name].hierarchy for side in (theirs, tasks) if name in side}
        if old != new or len(separators) > 1:
            differ = sorted(set(old) ^ set(new)) or ["their order" if old != new else "their hierarchy"]
            raise UserError(
                f"{folder}: the labels of {name!r} have changed since then ({', '.join(differ[:8])}); train a new "
                "--model_version"
            )


def shape_of(tensors: dict[str, torch.Tensor], name: str) -> tuple[int, ...] | str:
    return tuple(tensors[name].shape) if name in tensors else "absent"


def training_state(
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    scaler: torch.amp.GradScaler,
    tricks: Any,
    progress: dict[str, Any],
    device: torch.device,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Returns (tensors, JSON values): everything that the next step depends on, except the weights.

    Supports all torch optimizers and schedulers whose state consists of tensors, numbers and strings. progress: the
    fields of Progress.
    """
    # the optimizer's state: tensors, and other values of each parameter
    tensors, numbers = dict[str, torch.Tensor](), dict[str, dict[str, Any]]()
    for number, slots in optimizer.state_dict()["state"].items():
        for name, value in slots.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{number}.{name}"] = value
            else:
                numbers.setdefault(str(number), {})[name] = value
    tensors |= {f"tricks.{name}": tensor for name, tensor in tricks.state_dict().items()}
    own_tensors, own_values = random_states(device)
    _, *others = distributed.gather((own_tensors, own_values, progress["sums"]))
    for number, (states, _, _) in enumerate(others, 1):
        tensors |= {f"process_{number}.{name}": state for name, state in states.items()}
    tensors |= own_tensors
    values = {
        "optimizer": [
            {name: as_json(value) for name, value in group.items()} for group in optimizer.state_dict()["param_groups"]
        ],
        "optimizer_state": numbers,
        "scheduler": {name: as_json(value) for name, value in scheduler.state_dict().items()},
        "scaler": scaler.state_dict(),
        **own_values,
        "other_processes": [{**states, "sums": sums} for _, states, sums in others],
        "progress": progress,
        "environment": environment(device),
    }
    try:
        json.dumps(values)
    except TypeError as error:
        raise UserError(
            f"the state of {type(optimizer).__name__} or {type(scheduler).__name__} has values that a checkpoint "
            f"cannot store ({error}); "
            "only tensors, numbers, strings, and lists and dicts of them can be saved"
        ) from None
    return tensors, values


def random_states(device: torch.device) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Returns (tensors, JSON values): the states of all random number generators of this process."""
    tensors = {"random.torch": torch.get_rng_state()}
    if device.type != "cpu":
        tensors[f"random.{device.type}"] = random_state(device)
    name, keys, *rest = np.random.get_state()
    return tensors, {"random_python": random.getstate(), "random_numpy": [name, keys.tolist(), *rest]}  # type: ignore


def set_random_states(tensors: dict[str, torch.Tensor], values: dict[str, Any], device: torch.device) -> None:
    version, internal, gauss = values["random_python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = values["random_numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    torch.set_rng_state(tensors["random.torch"])
    if f"random.{device.type}" in tensors:
        set_random_state(tensors[f"random.{device.type}"], device)


def as_json(value: Any) -> Any:
    """Converts tensors, also in lists, to numbers or lists for JSON. Returns other values unchanged."""
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


def as_before(value: Any, now: Any) -> Any:
    """Converts a value from JSON, which has no tuples or tensors, to the type of the current value."""
    if isinstance(now, torch.Tensor):
        return torch.tensor(value, dtype=now.dtype, device=now.device)
    if isinstance(now, list | tuple) and len(now) == len(value):
        return type(now)(as_before(*pair) for pair in zip(value, now))
    return value


def environment(device: torch.device) -> dict[str, Any]:
    """Returns the properties of the environment that byte-identical results depend on."""
    here = {"device": name_of(device), "threads": torch.get_num_threads(), "processes": distributed.size()}
    return {"torch": torch.__version__, **here}


RANDOM = {
    "random_python": (int, [Range(0, 2**32)], AnyOf(None, float)),
    "random_numpy": (str, [Range(0, 2**32)], int, int, float),
}
STATE = RANDOM | {  # the schema of training.json
    "optimizer": [{str: object}],  # see `updated`
    Optional("optimizer_state"): {str: {str: AnyOf(float, bool, None, str, [object])}},
    "scheduler": {str: object},
    "scaler": {str: object},
    Optional("other_processes"): [RANDOM | {"sums": {str: Number}}],
    "progress": {str: object},  # see Progress.load
    "environment": {str: object},
}


def restore_training(
    folder: Path,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    scaler: torch.amp.GradScaler,
    tricks: Any,
    device: torch.device,
) -> tuple[dict[str, Any], int]:
    """Restores the output of `training_state`. Returns (progress, former number of processes).

    Raises UserError if the files are damaged or from another version.
    """
    try:
        averages, progress, processes = restore_values(folder, optimizer, scheduler, scaler, device)
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, UserError) or torch_error_message(error):  # such as out of memory
            raise
        if isinstance(error, SchemaError):
            raise UserError(f"{error}; the checkpoint is damaged, remove it") from None
        wrong = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(
            f"{folder}: training.json or training.safetensors is damaged ({wrong}); remove that checkpoint"
        ) from None
    with other_options(folder):
        tricks.load_state_dict(averages)  # errors in the code of a custom trick keep their traceback
    return progress, processes


@contextmanager
def other_options(folder: Path) -> Iterator[None]:
    """Converts ValueError and KeyError, which the state of a run with other options causes, to UserError."""
    try:
        yield
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{folder} was made with other options, so this run cannot resume from it ({first_line(error)})"
        ) from None


def restore_values(
    folder: Path, optimizer: torch.optim.Optimizer, scheduler: Any, scaler: torch.amp.GradScaler, device: torch.device
) -> tuple[dict[str, torch.Tensor], dict[str, Any], int]:
    """Restores everything except the tricks. Returns their state and the output of `restore_process`."""
    tensors = load_file(folder / "training.safetensors")
    values = read_json(folder / "training.json", STATE)
    for name, now in environment(device).items():
        if (before := values["environment"].get(name, now)) != now:
            differ = "its result may not be byte-identical to an uninterrupted run"
            logger.warning(f"{name} was {before}, is {now}: the run continues, but {differ}")
    state = {int(number): dict(slots) for number, slots in values.get("optimizer_state", {}).items()}
    averages: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            number, slot = rest.split(".")
            state.setdefault(int(number), {})[slot] = tensor
        elif kind == "tricks":
            averages[rest] = tensor
    with other_options(folder):
        pairs = zip(optimizer.state_dict()["param_groups"], values["optimizer"], strict=True)
        groups = [updated(now, before, switches=(type(None), bool)) for now, before in pairs]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        scheduler.load_state_dict(updated(scheduler.state_dict(), values["scheduler"]))
    scaler.load_state_dict(values["scaler"])
    return averages, *restore_process(tensors, values, device)


def updated(now: dict, before: dict, switches: tuple = ()) -> dict:
    """Returns an object's current state, updated from a checkpoint. Raises ValueError if its structure differs.

    switches: types of values that are not updated, because an optimizer's switches depend on the device.
    """
    kept = {name: as_json(value) for name, value in now.items() if not isinstance(value, switches)}
    if wrong := mismatch(before, like(kept)):
        raise ValueError(wrong)
    return now | {name: as_before(before[name], now[name]) for name in kept if name in before}


def restore_process(
    tensors: dict[str, torch.Tensor], values: dict[str, Any], device: torch.device
) -> tuple[dict[str, Any], int]:
    """Restores this process's random states and running losses. Returns (progress, former number of processes).

    If the number has changed, additional processes start with new random numbers, and process 0 gets all losses.
    """
    progress, others, rank = values["progress"], values.get("other_processes", []), distributed.rank()
    if rank <= len(others):
        prefix = f"process_{rank}." if rank else ""
        states = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        set_random_states(states, others[rank - 1] if rank else values, device)
    else:
        torch.manual_seed(torch.initial_seed() + rank)
    if len(others) + 1 == distributed.size():
        progress["sums"] = others[rank - 1]["sums"] if rank else progress["sums"]
    else:
        shares = [progress["sums"], *(other["sums"] for other in others)]
        progress["sums"] = {name: 0.0 if rank else sum(share[name] for share in shares) for name in progress["sums"]}
    return progress, len(others) + 1
