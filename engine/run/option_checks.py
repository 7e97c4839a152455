"""Checks the options of main.py and their combinations. Imports nothing slow, because every command imports it."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import UserError
from engine.run.command_line import check_values, options_without_switch
from engine.run.launch import is_launched
from engine.task.task import PLACES, needs_words
from engine.task.words import shares_by_task

if TYPE_CHECKING:
    from config import Config


class CheckedOptions:
    """Methods inherited by the options of main.py."""

    def task_weights_by_name(self: Any) -> dict[str, float]:
        """Parses --task_weights: 'intent=1,slots=2' becomes {'intent': 1.0, 'slots': 2.0}."""
        text = self.task_weights
        try:
            pairs = [pair.rsplit("=", 1) for pair in text.split(",") if pair.strip()]
            weights = {name.strip(): float(value) for name, value in pairs}
        except ValueError:
            raise UserError(f"--task_weights={text!r} must look like 'intent=1,slots=2'") from None
        if not all(0 <= weight < float("inf") for weight in weights.values()):
            raise UserError(f"--task_weights={text!r}: weights must be finite and not negative")
        return weights

    def unused_options(self: Any, kinds: Sequence[str] = ("tagging", "classification")) -> list[str]:
        """Returns one line per option that has no effect, or that disables another one. kinds: of the tasks."""
        unused = options_without_switch(self)
        for field in dataclasses.fields(self) if self.encoder == "none" else ():
            if field.name in OF_TEXTS.split() and getattr(self, field.name) != field.default:
                unused.append(f"--{field.name}={getattr(self, field.name)} has no effect with --encoder none")
        if self.class_weights != "none" or self.label_smoothing or self.focal_gamma:
            imbalance = "--class_weights, --label_smoothing and --focal_gamma have no effect on"
            if self.use_crf and "tagging" in kinds:
                unused.append(f"{imbalance} tagging with a CRF (add --no_use_crf)")
            unused += [f"{imbalance} {kind}" for kind in PLACES if kind in kinds]
        if self.pooling != "auto" and all(map(needs_words, kinds)):
            unused.append(f"--pooling={self.pooling} has no effect: all tasks are tagging")
        if self.long_text not in ("auto", "head") and all(map(needs_words, kinds)):
            unused.append(f"--long_text={self.long_text} has no effect: all tasks are tagging (see --window_stride)")
        if self.word_pooling != "auto" and not any(map(needs_words, kinds)):
            unused.append(f"--word_pooling={self.word_pooling} has no effect: none of the tasks is tagging")
        if self.word_shapes and not any(map(needs_words, kinds)):
            unused.append("--word_shapes has no effect: none of the tasks is tagging")
        return unused


def check_options(config: Config) -> None:
    """Raises UserError for invalid or mutually exclusive options of main.py."""
    check_values(config)
    check_combinations(config)
    check_tricks(config)
    check_teachers(config)
    check_text_options(config)
    check_encoder(config)
    config.task_weights_by_name()
    check_thresholds(config)


def check_thresholds(config: Config) -> None:
    """Raises UserError for invalid confidence thresholds."""
    for name in ("abstain_below", "target_precision"):
        try:
            shares_by_task(getattr(config, name))
        except ValueError as error:
            raise UserError(f"--{name}={getattr(config, name)}: {error}") from None
    if config.target_precision and not config.do_eval:
        advice = "add --do_eval, or pass the thresholds of an earlier evaluation to --abstain_below"
        raise UserError(f"--target_precision chooses thresholds on dev; {advice}")


def check_teachers(config: Config) -> None:
    """Raises UserError for invalid teacher options."""
    if config.unlabelled and not config.teacher.strip(", "):
        raise UserError("--unlabelled requires --teacher, which labels the texts")
    if config.unlabelled and config.streaming:
        raise UserError("--unlabelled is read into memory; leave out --streaming")
    if config.unlabelled and not config.teacher_weight:
        raise UserError("--teacher_weight=0 ignores the --unlabelled texts; raise it")


# Options that cannot be combined with --encoder none, which reads no text
FOR_TEXTS = "pretrain_model_path init_from special_tokens shared_layers freeze_layers unlabelled teacher compile"
# {trait of a trick's option: what the trick does}. The combinations of tricks are checked by these, not by name
TRAITS = {
    "adversarial": "perturbs inputs or weights; excludes the other adversarial methods",
    "embeddings": "perturbs the word embeddings along their gradient",
    "noise": "adds noise to the word vectors of one input",
}
# Options that have no effect with --encoder none
OF_TEXTS = "max_length long_text window_stride vocab_size hidden_size num_layers pooling word_pooling word_shapes"


def with_trait(config: Config, trait: str) -> list[str]:
    """Returns the names of the options with one of TRAITS."""
    return [f.name for f in dataclasses.fields(config) if trait in f.metadata["traits"]]


def check_text_options(config: Config) -> None:
    """Raises UserError for options that need texts, if --encoder none is set."""
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    names = [*FOR_TEXTS.split(), *with_trait(config, "embeddings"), *with_trait(config, "noise")]
    for name in names if config.encoder == "none" else ():
        if getattr(config, name) != defaults[name]:
            raise UserError(f"--{name}: --encoder none reads no text and has no layers; leave out one of them")


def is_given(config: Config) -> bool:
    """Returns whether the encoder is loaded from --pretrain_model_path or --init_from, not built from scratch."""
    return bool(config.pretrain_model_path or config.init_from)


def check_encoder(config: Config) -> None:
    """Raises UserError for mutually exclusive options of the encoder and its LoRA adapter."""
    pretrained = config.encoder == "transformer" and (is_given(config) or not config.do_train)
    if config.lora_rank and not pretrained:
        raise UserError("--lora_rank requires a pretrained encoder: add --pretrain_model_path")
    if config.keep_layers and (config.lora_rank or config.init_from or not pretrained):
        needed = "--pretrain_model_path, and cannot be combined with --lora_rank or --init_from"
        raise UserError(f"--keep_layers needs {needed}")
    if config.lora_rank and config.special_tokens:
        added = "--special_tokens adds word embeddings, which --lora_rank would neither train nor save"
        raise UserError(f"{added}; drop one of them")
    if config.lora_rank and (config.freeze_layers or config.unfreeze_layers):
        raise UserError("--lora_rank already freezes the encoder; leave out --freeze_layers and --unfreeze_layers")
    if config.load_dtype == "bf16" and not config.lora_rank and config.freeze_layers != -1:
        raise UserError("--load_dtype=bf16 requires frozen weights: add --lora_rank or --freeze_layers all")
    if config.load_dtype == "bf16" and not pretrained:
        raise UserError("--load_dtype=bf16 requires pretrained weights: add --pretrain_model_path")
    if config.load_dtype == "bf16" and config.use_smart:
        coarse = "--load_dtype=bf16 is too coarse for the small noise of --use_smart"
        raise UserError(f"{coarse}; use fp32, or --use_freelb")
    if config.gradient_checkpointing and config.encoder != "transformer":
        kind = "a BiLSTM" if config.encoder == "bilstm" else f"--encoder {config.encoder}"
        raise UserError(f"--gradient_checkpointing: {kind} does not support it; leave it out")


def check_tricks(config: Config) -> None:
    """Raises UserError for options of training tricks that exclude each other or would have no effect."""
    adversaries = [f"--{name}" for name in with_trait(config, "adversarial") if getattr(config, name)]
    pretrained = is_given(config) and config.encoder == "transformer"
    if len(adversaries) > 1:
        raise UserError(f"{' and '.join(adversaries)} are all adversarial methods; choose one")
    averages = [f"--{name}" for name in ("use_ema", "use_swa", "use_soup") if getattr(config, name)]
    if len(averages) > 1:
        raise UserError(f"{' and '.join(averages)} all replace the evaluated weights; choose one")
    if config.use_ema and config.ema_decay == 1:
        raise UserError("--ema_decay=1 would never update the average; it must be below 1")
    if config.use_swa and 0 < config.epochs < math.floor(config.swa_start * config.epochs) + 2:
        fewer = f"--use_swa would average fewer than two of {config.epochs} epochs"
        raise UserError(f"{fewer}; lower --swa_start={config.swa_start:g}")
    if config.use_awp and 0 < config.epochs <= math.ceil(config.awp_start * config.epochs - 1e-9):
        raise UserError(f"--awp_start={config.awp_start:g} leaves no epoch of {config.epochs} for AWP")
    if config.unfreeze_layers and config.compile:
        raise UserError("--unfreeze_layers changes the trained layers, so --compile would recompile; drop one of them")
    if config.unfreeze_layers and config.epochs == 1:
        raise UserError("--unfreeze_layers trains only the heads in the first epoch; --epochs=1 has no second one")
    if config.dropout_samples > 1 and not config.dropout:
        raise UserError("--dropout_samples uses several dropout masks, but --dropout is 0")
    if config.layer_decay == 0:
        raise UserError("--layer_decay=0 would freeze all layers but the last; see --freeze_layers")
    if (config.layer_decay < 1 or config.unfreeze_layers) and (not pretrained or config.freeze_layers == -1):
        needed = "they need --pretrain_model_path, and layers that are not frozen"
        raise UserError(f"--layer_decay and --unfreeze_layers protect pretrained layers: {needed}")
    on_embeddings = [f"--{name}" for name in with_trait(config, "embeddings") if getattr(config, name)]
    if (config.freeze_layers or config.unfreeze_layers or config.lora_rank) and on_embeddings:
        frozen = "which --freeze_layers, --unfreeze_layers and --lora_rank freeze; try --use_freelb"
        raise UserError(f"{' and '.join(on_embeddings)} needs the gradient of the word embeddings, {frozen}")


def check_warmup(config: Config) -> None:
    """Raises UserError if the warmup is longer than training, or if its two options contradict each other. A saved run
    has both of them."""
    warmup, ratio, epochs = config.warmup_epochs, config.warmup_ratio, config.epochs
    if warmup is not None and ratio is not None and not (epochs >= 0 and math.isclose(warmup, ratio * epochs)):
        raise UserError(f"--warmup_ratio={ratio:g} and --warmup_epochs={warmup:g} contradict each other; pass only one")
    if warmup is not None and warmup > epochs > 0:
        longer = f"--warmup_epochs={warmup:g} is longer than --epochs={epochs}"
        raise UserError(f"{longer}: the learning rate would never reach its peak")


def check_gpus(config: Config) -> None:
    """Raises UserError if --gpus is not a list of GPU numbers, or this command cannot use them."""
    given, ids = f"--gpus={config.gpus}", config.gpus.split(",")
    if not all(re.fullmatch("[0-9]{1,4}", number) for number in ids) or len({*map(int, ids)}) < len(ids):
        raise UserError(f"{given} must be the number of a GPU, or several different numbers: 0,1")
    if len(ids) > 1 and not is_launched():
        launch = f"use `sh run.sh --gpus {config.gpus} …` or `torchrun --nproc_per_node {len(ids)} main.py …`"
        raise UserError(f"{given} needs one process per GPU: {launch}")
    if config.device == "cpu" or ":" in config.device:
        raise UserError(f"{given} and --device={config.device} exclude each other; leave one of them out")


def check_combinations(config: Config) -> None:
    """Raises UserError for options that exclude each other."""
    check_warmup(config)
    if config.gpus:
        check_gpus(config)
    if config.debug and is_launched():
        raise UserError("--debug works in a single process; start it without torchrun")
    if config.encoder == "bilstm" and config.hidden_size % 2:
        raise UserError(f"--hidden_size={config.hidden_size} must be even: each direction of a BiLSTM gets half of it")
    if config.encoder == "transformer" and not is_given(config) and config.hidden_size % 32:
        raise UserError(f"--hidden_size={config.hidden_size} must be a multiple of 32, the size of an attention head")
    if config.pooling not in ("auto", "first") and config.encoder == "bilstm":
        raise UserError(f"--pooling={config.pooling}: a BiLSTM classifies from its two final states; leave it at auto")
    if config.window_stride is not None and not -1 <= config.window_stride <= config.max_length // 2:
        raise UserError(f"--window_stride={config.window_stride} must be at most half of --max_length, or -1")
    if config.predict_output and Path(config.predict_output).suffix not in (".csv", ".jsonl"):
        raise UserError(f"--predict_output={config.predict_output} must end in .csv or .jsonl")
    check_shards(config)
    check_embed(config)
    if os.sep in config.model_version or config.model_version in (".", ".."):
        name = f"--model_version={config.model_version}"
        raise UserError(f"{name} must be a plain name; --output_dir sets where runs are saved")


def parse_shard(text: str) -> tuple[int, int]:
    """Parses '3/16' as (3, 16) and '' as (1, 1). Raises UserError for anything else."""
    number, slash, shards = (text or "1/1").partition("/")
    if not (slash and number.isascii() and number.isdigit() and shards.isascii() and shards.isdigit()):
        raise UserError(f"--shard={text} must look like 3/16, the third of sixteen shards")
    if not 1 <= int(number) <= int(shards):
        raise UserError(f"--shard={text}: shards are numbered from 1 to {int(shards)}")
    return int(number), int(shards)


def check_shards(config: Config) -> None:
    """Raises UserError for labelling options that are invalid or have no effect."""
    parse_shard(config.shard)
    if config.shard and (config.do_train or config.do_eval or not config.do_predict):
        needed = "requires --do_predict and cannot be combined with --do_train or --do_eval"
        raise UserError(f"--shard={config.shard} {needed}")
    if config.spreadsheet_safe and config.predict_output.endswith(".jsonl"):
        raise UserError("--spreadsheet_safe requires a .csv file and cannot be combined with .jsonl")


def check_embed(config: Config) -> None:
    """Raises UserError if --embed does not name a .npy file, or contradicts another option."""
    given = f"--embed={config.embed}"
    if config.embed and not config.embed.endswith(".npy"):
        raise UserError(f"{given} must end in .npy")
    if config.embed and (not config.do_predict or config.predict_output):
        raise UserError(f"{given} needs --do_predict, and cannot be combined with --predict_output")
    if config.embed and is_launched():
        raise UserError(f"{given} works in a single process; start it without torchrun, or start several with --shard")
