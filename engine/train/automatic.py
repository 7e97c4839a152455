"""Resolves options set to `auto`, once, when the data and the machine are known. A resumed run keeps the values.

The returned options and args.json have these values, so code that reads the run need not handle auto.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import UserError
from engine.model.encoders import overflows, refuse_precision
from engine.model.hub import locate
from engine.model.pooling import stored_pooling
from engine.run import distributed
from engine.run.device import has_bf16, require_precision
from engine.run.run_folder import read_options
from engine.task.task import classifies_texts, needs_words
from engine.task.words import has_capitals
from engine.train.optimization import (
    BATCH_SIZES,
    batch_size_of,
    ema_decay_of,
    epochs_of,
    is_pretrained,
    learning_rates,
    patience_of,
    steps_per_epoch,
    warmup_epochs,
)

if TYPE_CHECKING:
    import torch

    from engine.task.task import Task

logger = logging.getLogger("template")
# bf16 makes a training step of an encoder this wide 1.4 times as fast, one of hidden size 128 only 1.16 times
# (docs/performance.md); smaller encoders stay in fp32, so that their scores are the same on every machine
BF16_HIDDEN_SIZE = 256
# --few_shot auto is on up to this number of labelled training texts. On ATIS it helps with up to 16 texts for each of
# 21 intents, but not with up to 64, which are 600 texts (benchmarks/RESULTS.md)
FEW_TEXTS = 400
FORMERLY = {"few_shot": False, "word_shapes": False}  # values of options in runs from before the options existed
MANY, ROWS = 0.05, 5000  # share of long training texts from which --long_text auto chooses windows; texts inspected
REHEARSAL = 10  # epochs of --debug, which uses 64 examples of data of any size


def inherit_auto_options(config: Any, run_dir: Path, device: torch.device) -> Any:
    """The options; a resumed run keeps the resolved values of options at auto, even on another machine, with another
    number of processes, or if it started before auto was the default."""
    path = run_dir / "args.json"
    if not config.do_train or config.debug:
        return config
    before = distributed.from_first(lambda: FORMERLY | read_options(path, type(config)) if path.exists() else {})
    kept = {}
    for name, auto in config.auto_values().items():
        idle = name == "ema_decay" and not config.use_ema
        if getattr(config, name) == auto and before.get(name, auto) != auto and not idle:
            kept[name] = before[name]
            slow = "" if name != "precision" or is_fast(before[name], device) else "; it is slow on this machine"
            logger.info(f"--{name} auto: {before[name]}, as when the run began{slow}")
    return replace(config, **kept)


def resolve_pooling(config: Any, kinds: Iterable[str]) -> Any:
    """The options with a value for --pooling auto, if the folder of the pretrained model specifies its pooling.
    Otherwise, and in runs from before this was read, it stays auto, and `pooling_of` resolves it by model family.
    kinds: of the tasks."""
    started = (config.run_dir / "args.json").exists() and not config.debug
    words_only = all(map(needs_words, kinds))
    if not config.is_auto("pooling") or not is_pretrained(config) or config.init_from or words_only:
        return config
    place = locate(config.pretrain_model_path, config.model_hub)
    pooling, mode = distributed.from_first(lambda: (not started and stored_pooling(place)) or ("", ""))
    if mode:
        found = f"the model was trained with {mode} pooling"
        logger.info(
            f"--pooling auto: {pooling}; {found}" if pooling else f"--pooling: {found}, which does not exist here"
        )
    return replace(config, pooling=pooling or "auto")


def resolve(
    config: Any, encoder: Any, device: torch.device, num_batches: int, tasks: dict[str, Task] | None = None
) -> Any:
    """The options for training, with values for those at auto. num_batches: micro-batches in an epoch.

    Raises UserError if other options contradict these values, or if the encoder cannot train in this precision.
    """
    config = resolve_few_shot(resolve_precision(config, encoder, device), tasks or {})
    steps = steps_per_epoch(num_batches, config)  # of all processes together
    if config.is_auto("epochs"):
        config = replace(config, epochs=REHEARSAL if config.debug else epochs_of(steps, is_pretrained(config)))
        logger.info(f"--epochs auto: {config.epochs} for {steps} steps per epoch")
    lr, head_lr = learning_rates(encoder, config)
    config = replace(config, lr=lr, head_lr=head_lr, warmup_epochs=warmup_epochs(config))
    if config.is_auto("early_stop_patience"):
        config = replace(config, early_stop_patience=patience_of(config.epochs))
    if config.use_ema and config.is_auto("ema_decay"):
        config = replace(config, ema_decay=ema_decay_of(config.epochs * steps))
        logger.info(f"--ema_decay auto: {config.ema_decay:.4f} for {config.epochs * steps} steps")
    return config


def resolve_few_shot(config: Any, tasks: dict[str, Task]) -> Any:
    """The options with a value for --few_shot auto: on for a pretrained encoder and few labels, if all tasks classify
    texts; combinations with other tasks have not been measured."""
    if not config.is_auto("few_shot"):
        return config
    measured = is_pretrained(config) and all(classifies_texts(task.kind) for task in tasks.values())
    rows = max((task.rows or sum(task.counts or ()) for task in tasks.values()), default=0) if measured else 0
    on = 0 < rows <= FEW_TEXTS
    if rows:
        logger.info(f"--few_shot auto: {'on' if on else 'off'} for {rows} labelled texts")
    return replace(config, few_shot=on)


def resolve_batch_size(config: Any, dataset: Any) -> Any:
    """The options with a value for --batch_size auto: the batch size of this training set's loader."""
    size = batch_size_of(config, dataset.tasks, dataset.num_labelled_rows)
    if config.is_auto("batch_size") and size < BATCH_SIZES[0]:
        logger.info(f"--batch_size auto: {size}, as there are few texts to tag")
    return replace(config, batch_size=size)


def resolve_long_text(
    config: Any, featurizer: Any, heads: Iterable[Any], read: Callable[[], Iterator[tuple[Any, dict]]]
) -> None:
    """Sets how the Featurizer reads long texts. With --long_text auto: windows, if at least MANY of the first ROWS
    training texts are longer than --max_length, otherwise the head. heads: classes; read() -> (place, example) of each
    row. Raises UserError if windows are requested that a head cannot read."""
    if not featurizer.tokenizer or all(task.needs_words for task in featurizer.tasks.values()):
        # texts to tag are always read in windows
        featurizer.long_text = "head" if config.long_text == "windows" else featurizer.long_text
        return
    why = why_no_windows(config, featurizer, heads)
    if config.long_text == "windows" and why:
        raise UserError(f"--long_text windows: {why}; choose head, tail or head_tail")
    if config.long_text != "auto":
        return

    if not why and any(head.level == "tokens" for head in heads):
        why = "a head pools tokens itself; if it supports windows one after another, add --long_text windows"

    def choose() -> str:
        rows = [example for _, example in islice(read(), ROWS)]
        share = featurizer.num_longer(rows) / max(1, len(rows))
        if share < MANY:
            return "head"
        long = f"{share:.0%} of the training texts are longer than {featurizer.max_length} tokens"
        if why:
            logger.warning(f"--long_text auto: {long}, but only their start is read: {why}")
        else:
            logger.info(f"--long_text auto: {long}: read in windows (--long_text head: only their start)")
        return "head" if why else "windows"

    featurizer.long_text = distributed.from_first(choose)


def resolve_word_shapes(config: Any, featurizer: Any, read: Callable[[], Iterator[tuple[Any, dict]]]) -> None:
    """Sets whether the Featurizer returns word shapes. With --word_shapes auto, it does if a pretrained encoder's
    tokenizer ignores case and the first ROWS training texts have words with and without capitals.

    read: as in `resolve_long_text`"""
    if not featurizer.tagging or not featurizer.tokenizer:
        featurizer.word_shapes = False
    elif config.is_auto("word_shapes"):
        # with --init_from it stays unchanged; from scratch it has not been measured
        blind = bool(config.pretrain_model_path) and is_pretrained(config) and ignores_case(featurizer.tokenizer)
        texts = (example["tokens"] for _, example in islice(read() if blind else (), ROWS))
        featurizer.word_shapes = distributed.from_first(lambda: has_capitals(chain.from_iterable(texts)))
        if featurizer.word_shapes:
            logger.info("--word_shapes auto: on, because the tokenizer ignores case (--word_shapes False: off)")


def ignores_case(tokenizer: Any) -> bool:
    """Whether a tokenizer reads "Aa" and "aa" as the same."""
    upper, lower = (tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in ("Aa", "aa"))
    return upper == lower and tokenizer.unk_token_id not in lower


def why_no_windows(config: Any, featurizer: Any, heads: Iterable[Any]) -> str:
    """Why a long text cannot be read in windows, or ""."""
    if featurizer.tagging and featurizer.stride < 0:
        return "--window_stride -1 cuts the texts to tag"
    if featurizer.markers or featurizer.apart:
        return "a head looks for its markers in one input" if featurizer.markers else "a head encodes texts separately"
    if any(head.finds_spans for head in heads):
        return "the scores of all spans of a long text would need too much memory"
    if any(field.level == "spans" for field in featurizer.fields.values()):
        return "a Field has positions in one input"
    if config.use_smart or config.use_freelb:
        return "--use_smart and --use_freelb add noise to one input"
    return ""


def resolve_precision(config: Any, encoder: Any, device: torch.device, trained: str | None = None) -> Any:
    """The options with a value for --precision auto.

    trained: the precision in which a checkpoint was trained, which is kept if it is fast on the device. None: a new
    run, which uses bf16 if that is fast. An encoder that overflows in half precision uses fp32.
    """
    if config.is_auto("precision"):
        chosen, why = trained or "bf16", ""
        if not is_fast(chosen, device):
            chosen, why = "fp32", f": {chosen} is not fast on this {device.type}"
        elif chosen != "fp32" and overflows(encoder):
            chosen, why = "fp32", f": {encoder.config.model_type} overflows in {chosen}"
        elif not trained and not gains_from_bf16(encoder):
            chosen, why = "fp32", ": bf16 hardly speeds up this encoder"
        chosen, why = distributed.from_first(lambda: (chosen, why))
        config = replace(config, precision=chosen)
        logger.info(f"--precision auto: {chosen}{why}")
    refuse_precision(encoder, config.precision)
    require_precision(config.precision, device)
    return config


def gains_from_bf16(encoder: Any) -> bool:
    """Whether an encoder is a transformer, and wide enough to be much faster in bf16 on a device that has it."""
    return getattr(getattr(encoder, "config", None), "hidden_size", 0) >= BF16_HIDDEN_SIZE


def is_fast(precision: str, device: torch.device) -> bool:
    """Whether a precision is fp32, or faster than fp32 on the device."""
    return precision == "fp32" or (has_bf16(device) if precision == "bf16" else device.type == "cuda")
