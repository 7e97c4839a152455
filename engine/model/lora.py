"""LoRA (Hu et al., 2021, arXiv:2106.09685) with peft: W + alpha / r * B A in each linear layer. Only A and B are
trained and saved in checkpoints.

An adapter works only with the exact weights it was trained with. So a checkpoint names its base model (folder or hub
name, revision, SHA-256 of the weight files), and a different one is rejected.
"""

import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from engine.errors import UserError
from engine.model.hub import locate
from engine.run.atomic import sha256
from engine.run.command_line import first_line
from engine.schema import AnyOf, SchemaError, read_json

if TYPE_CHECKING:
    from config import Config

BASE_FILE = "lora_base.json"
ADAPTER = "default"  # peft's name for the one adapter


def add_adapter(encoder: nn.Module, config: "Config") -> None:
    """Freezes the encoder and adds trainable A and B to the layers of --lora_targets."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        command = "pip install -r requirements-lora.txt"
        raise UserError(f"--lora_rank, and checkpoints made with it, need the package peft: {command}") from None
    targets = find_targets(encoder, config.lora_targets)
    modules = dict(encoder.named_modules())
    shape = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        fan_in_fan_out=all(isinstance(modules[name], Conv1D) for name in targets),  # GPT-2 stores W transposed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about mixed layer types; peft detects which are transposed
        inject_adapter_in_model(shape, encoder)
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(is_adapter(name))
        if is_adapter(name):
            parameter.data = parameter.data.float()  # bf16 would lose small updates


def is_adapter(name: str) -> bool:
    return ".lora_" in name


def find_targets(encoder: nn.Module, lora_targets: str) -> list[str]:
    """Returns the names of the linear layers that get an adapter.

    auto: all linear layers of attention and feed-forward blocks. With adapters on attention alone, LoRA does not match
    full fine-tuning (Dettmers et al., QLoRA, 2023, arXiv:2305.14314, section 4).
    """
    stacks = [name for name, module in encoder.named_modules() if isinstance(module, nn.ModuleList)]
    linear = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    inside = [name for name in linear if any(name.startswith(f"{stack}.") for stack in stacks)]
    if lora_targets != "auto":
        endings = [name.strip() for name in lora_targets.split(",") if name.strip()]
        inside = [name for name in linear if any(f".{name}".endswith(f".{ending}") for ending in endings)]
    if not inside:
        known = sorted({name.rpartition(".")[2] for name in linear})
        found = ", ".join(known) or "none"
        raise UserError(f"--lora_targets={lora_targets}: no such linear layer; this encoder has {found}")
    return inside


# ---- the base --------------------------------------------------------------------------------------------------------


BASE = {"name": str, "revision": AnyOf(str, None), "sha256": {str: str}}


def describe_base(name: str, model_hub: str) -> dict[str, Any]:
    """Returns {"name", "revision", "sha256": {file: checksum}} of the model that an adapter is trained with."""
    folder = folder_of(locate(name, model_hub, weights=True))
    if Path(name).is_dir():
        return {"name": str(folder.resolve()), "revision": None, "sha256": sums_of_weights(folder)}
    revision = folder.name if model_hub == "hf" else None  # ModelScope's folders do not contain it
    return {"name": name, "revision": revision, "sha256": sums_of_weights(folder)}


def folder_of(name: str, revision: str | None = None) -> Path:
    """Returns the folder of a model; for a hub name, this is the snapshot folder, which is named after the revision."""
    if Path(name).is_dir():
        return Path(name)
    from transformers.utils import cached_file

    # cached_file raises OSError instead of returning None
    return Path(cached_file(name, "config.json", revision=revision)).parent  # type: ignore[arg-type]


def sums_of_weights(folder: Path) -> dict[str, str]:
    """Returns {file: SHA-256} of the weight files of a model."""
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    return {path.name: sum_of(path, path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@lru_cache
def sum_of(path: Path, size: int, changed: int) -> str:
    """Returns the SHA-256 of a file with this size and modification time. It is computed once per process."""
    return sha256(path)


def read_base(folder: str | Path) -> dict[str, Any] | None:
    """Reads the output of `describe_base` from a checkpoint. Returns None if there is none."""
    path = Path(folder) / BASE_FILE
    try:
        return read_json(path, BASE) if path.exists() else None
    except SchemaError as error:
        raise UserError(f"{error}; the file was edited or is damaged") from None


def load_base(
    folder: str | Path, base: dict[str, Any], moved_to: str | None, model_hub: str, load: Callable[..., Any]
) -> Any:
    """Loads the base model of a checkpoint's adapter with load(name, revision). Raises UserError if it cannot be loaded
    or is not the original one. moved_to: its new location, if it was moved; model_hub: where names are looked up."""
    name = moved_to or base["name"]
    revision = None if Path(name).is_dir() else base["revision"]
    needs = f"{folder}: contains only a LoRA adapter, which was trained on {base['name']}"
    needs += f" (revision {base['revision']})" if base["revision"] else ""
    advice = "pass its location with --pretrain_model_path, or train with --merge_lora"
    if name.startswith(("/", ".", "~")) and not Path(name).is_dir():
        raise UserError(f"{needs}, and {name} does not exist; {advice}")
    try:
        place = locate(name, model_hub, revision, weights=True)
        revision = None if Path(place).is_dir() else revision
        encoder, sums = load(place, revision), sums_of_weights(folder_of(place, revision))
    except (UserError, OSError) as error:
        raise UserError(f"{needs}, which cannot be loaded ({first_line(error)}); {advice}") from None
    require_same_base(folder, base, sums, name)
    return encoder


def require_same_base(folder: str | Path, base: dict[str, Any], sums: dict[str, str], name: str) -> None:
    """Raises UserError unless the weight files at `name`, with checksums `sums`, match the adapter's base."""
    if sums != base["sha256"]:
        differs = next((file for file in base["sha256"] if sums.get(file) != base["sha256"][file]), "number of files")
        other = f"{name} is now a different model ({differs} differs; compared by SHA-256)"
        raise UserError(
            f"{folder}: its LoRA adapter was trained on {base['name']}, but {other}; restore the original there"
        )


# ---- tensors in a checkpoint -----------------------------------------------------------------------------------------


def base_of(model: nn.Module) -> dict[str, Any] | None:
    """Returns the output of `describe_base` for the base of a model with an adapter, otherwise None."""
    return getattr(model.encoder, "lora_base", None)


def kept_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns {name: tensor} of the weights to save: all, or with LoRA only the adapter and the layers after the
    encoder."""
    state = model.state_dict()
    if base_of(model) is None:
        return state
    return {name: tensor for name, tensor in state.items() if is_adapter(name) or not name.startswith("encoder.")}


@torch.no_grad()
def merged_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Returns {name: tensor} of the model with its adapter merged: W + alpha / r * B A instead of W."""
    merged = {}
    for name, tensor in model.state_dict().items():
        owner, _, last = name.rpartition(".base_layer.")
        if owner and last == "weight":
            tensor = tensor + model.get_submodule(owner).get_delta_weight(ADAPTER).to(tensor.dtype)
        if not is_adapter(name):
            merged[name.replace(".base_layer.", ".")] = tensor
    return merged


def split_merged(model: nn.Module, merged: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Converts the output of `merged_tensors` to tensors of a model with an adapter with B = 0."""
    own = model.state_dict()
    plain = {name: merged.get(name.replace(".base_layer.", ".")) for name in own}
    adapter = {name: 0 * p if ".lora_B." in name else p for name, p in own.items() if is_adapter(name)}
    return {name: tensor for name, tensor in plain.items() if tensor is not None} | adapter
