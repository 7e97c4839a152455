"""--init_from: starts a new run from the weights of a trained run, even if its labels or tasks differ.

The new run loads the encoder, the tokenizer and, for each head, the rows of labels with the same name
(`Head.start_from`), but no optimizer state. Once it has a checkpoint, it no longer reads the old run.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from engine.errors import UserError
from engine.model import lora
from engine.model.encoders import fit_vocabulary
from engine.model.head import Head
from engine.run import distributed
from engine.run.command_line import first_line
from engine.run.launch import restarts
from engine.run.run_folder import checkpoint_of, read_options
from engine.task.task import Task, read_tasks
from engine.train import checkpoint

if TYPE_CHECKING:
    from config import Config

logger = logging.getLogger("template")
ADAPTER = ("lora_rank", "lora_alpha", "lora_targets")
# Options that describe the weights. They are inherited from the run of --init_from
OF_THE_RUN = (
    *"encoder hidden_size num_layers vocab_size shared_layers pooling word_pooling word_shapes".split(),
    *ADAPTER,
)
HEADS = "output_layer.heads."


def resumes(config: Config) -> bool:
    """Returns whether this command resumes a run that started from --init_from."""
    started = (config.run_dir / "args.json").exists() and not config.debug
    return bool(config.init_from and config.do_train and started and (config.resume or restarts()))


def own_checkpoint(config: Config) -> Path | None:
    """Returns the checkpoint from which a run that started from --init_from resumes, or None."""
    return checkpoint.newest_intact(config.run_dir / "checkpoints")[0] if resumes(config) else None


def inherit_run_options(config: Config, typed: Collection[str] = ()) -> Config:
    """Returns the options, with those that describe the weights and unset learning rates inherited from --init_from.
    Raises UserError for options that contradict the weights. typed: options that the command line sets, including those
    set to their default."""
    return replace(config, **distributed.from_rank_0(lambda: options_to_inherit(config, typed)))


def options_to_inherit(config: Config, typed: Collection[str]) -> dict[str, Any]:
    """Returns {option: value} to inherit from --init_from, or from the args.json of a resumed run."""
    if not (config.init_from and config.do_train):
        return {}
    defaults, resumed = {f.name: f.default for f in fields(config)}, resumes(config)
    own = config.run_dir / "args.json"
    taken, before = {}, defaults | (read_options(own, type(config)) if resumed else options_of_run(config))
    for name in OF_THE_RUN:
        given = getattr(config, name)
        if given == defaults[name] and (given == "auto" or name not in typed or resumed):
            taken[name] = before[name]
        elif given != before[name] and not resumed:
            theirs = f"the weights of --init_from {config.init_from}, with {name}={before[name]}"
            raise UserError(f"--{name}={given} contradicts {theirs}; leave it out")
    if not resumed and before["lr"] and before["head_lr"]:
        taken["lr"] = config.lr or before["lr"]
        ratio = before["head_lr"] / before["lr"]
        taken["head_lr"] = config.head_lr or min(taken["lr"] * ratio, max(taken["lr"], 1e-2))
    return taken


def options_of_run(config: Config) -> dict[str, Any]:
    """Returns the options of the run of --init_from, as they apply to its checkpoint. Raises UserError if there is no
    such run, or if it is this run."""
    pretrained = "pass another folder, or a pretrained model with --pretrain_model_path"
    folder = checkpoint_of(config.init_from, pretrained)
    if config.run_dir.resolve() in folder.resolve().parents:
        raise UserError(
            f"--init_from {config.init_from}: this is the run itself; name the new run with --model_version"
        )
    before = read_options(folder / "args.json", type(config))
    if not lora.read_base(folder):  # trained in full or merged; learning rates of a merged run are for an adapter
        merged = before.get("lora_rank", 0) > 0
        before = {name: value for name, value in before.items() if name not in ADAPTER}
        before |= {"lr": None, "head_lr": None} if merged else {}
        if config.pretrain_model_path:
            raise UserError("--init_from and --pretrain_model_path each name the encoder; leave one of them out")
        if config.lora_rank:
            problem = f"--lora_rank: {config.init_from} contains a full encoder, but LoRA needs a separate base"
            raise UserError(f"{problem}; leave it out, or start from a run with an unmerged adapter")
    return before


def start_from(model: Any, folder: Path, hidden_size: int, tokenizer: Any, config: Config) -> None:
    """Copies the weights of a checkpoint to a new model with the same encoder, and logs what was copied."""
    tensors, before = checkpoint.read_weights(folder, model), read_tasks(folder / "labels.json")
    taken = encoder_weights(model, folder, tensors)
    rest = {name: t for name, t in model.state_dict().items() if not name.startswith(("encoder.", HEADS))}
    kept = {name: tensors[name] for name, t in rest.items() if name in tensors and tensors[name].shape == t.shape}
    model.load_state_dict(taken | kept, strict=False)
    if config.special_tokens and config.encoder == "transformer":
        fit_vocabulary(model.encoder, tokenizer, config)
    lines = ["encoder and tokenizer", *named("newly initialised", sorted(rest.keys() - kept.keys()))]
    heads = model.output_layer.heads
    lines += [f"{name}: {start_head(name, head, before, tensors, hidden_size)}" for name, head in heads.items()]
    lines += named("removed", [name for name in before if name not in heads])
    logger.info(f"--init_from {config.init_from}: {'; '.join(lines)}")


def encoder_weights(model: Any, folder: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns {name: tensor} of the encoder, or of its adapter. Rows of the word embedding that the checkpoint lacks,
    for --special_tokens, have their initial values. Raises UserError if the encoders differ."""
    own = {name: tensor for name, tensor in lora.kept_tensors(model).items() if name.startswith("encoder.")}
    taken = {name: tensor for name, tensor in tensors.items() if name.startswith("encoder.")}
    words = model.encoder.get_input_embeddings() if hasattr(model.encoder, "get_input_embeddings") else None
    for name in own.keys() & taken.keys():
        here, there = own[name], taken[name]
        if words is not None and here.data_ptr() == words.weight.data_ptr() and here.shape[1:] == there.shape[1:]:
            taken[name] = torch.cat([there, here[len(there) :]])
    shape_of = checkpoint.shape_of
    if wrong := sorted(name for name in own | taken if shape_of(own, name) != shape_of(taken, name)):
        shapes = f"{shape_of(tensors, wrong[0])} there, {shape_of(own, wrong[0])} here"
        differ = f"{len(wrong)} tensors differ, such as {wrong[0]} ({shapes})"
        raise UserError(f"--init_from {folder}: contains an encoder that this code and options do not build: {differ}")
    return taken


def start_head(
    name: str, head: Head, before: dict[str, Task], tensors: dict[str, torch.Tensor], hidden_size: int
) -> str:
    """Copies the weights that a head can reuse from a checkpoint. Returns a description for the log."""
    task, theirs = head.task, before.get(name)
    if theirs is None or (theirs.kind, theirs.hierarchy) != (task.kind, task.hierarchy):
        was = theirs and f"{theirs.kind} with the hierarchy {theirs.hierarchy!r}".removesuffix(" with the hierarchy ''")
        return f"newly initialised (was {was})" if was else "newly initialised (a new task)"
    larger = head
    if theirs.labels != task.labels:
        more = tuple(f"{label}'" for label in task.labels if label != "O")
        try:
            larger = type(head)(hidden_size, replace(task, labels=task.labels + more, counts=None))
        except Exception as error:  # a user's head
            wrong = f"{type(head).__name__} cannot be built for other labels ({first_line(error)})"
            raise UserError(f"--init_from: {name}: {wrong}; lift this limit, or override `start_from`") from None
    own = {part: tensors[f"{HEADS}{name}.{part}"] for part in head.state_dict() if f"{HEADS}{name}.{part}" in tensors}
    fresh = head.start_from(own, theirs, larger)
    unit = {"tagging": "tags", "spans": "types", "relations": "predicates"}.get(task.kind, "labels")
    both = [label for label in task.labels if label in theirs.labels]
    text = f"{len(both)} of {len(task.labels)} {unit}" if task.labels else "its head"
    changes = named("new", [label for label in task.labels if label not in both])
    changes += named("removed", [label for label in theirs.labels if label not in both])
    changes += named("newly initialised", fresh)
    return text + (f" ({'; '.join(changes)})" if changes else "")


def named(what: str, names: Iterable[str]) -> list[str]:
    """Returns ["new: a, b"], or [] if there are no names."""
    names = list(names)
    return [f"{what}: {', '.join(names[:8])}{', …' if len(names) > 8 else ''}"] if names else []
