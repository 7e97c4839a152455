"""Resolves options set to `auto` in two steps: `resolve_data_options`, before texts are encoded, and
`resolve_training_options`, once model and data loaders exist. args.json has the resolved values, which a resumed run
reuses. Only --pooling may stay `auto`: `pooling_of` then resolves it by model family.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.data.features import Featurizer
from engine.errors import UserError
from engine.model.encoders import check_overflow, overflows
from engine.model.hub import locate
from engine.model.pooling import stored_pooling
from engine.run import distributed
from engine.run.device import has_bf16, require_precision
from engine.run.option_checks import with_trait
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

    from config import Config
    from engine.model.head import Head
    from engine.task.task import Task

logger = logging.getLogger("template")
# In bf16, a training step is 1.4 times as fast at this hidden size, but only 1.16 times at 128
# (docs/performance.md). Smaller encoders stay in fp32, so their scores are the same on every machine
BF16_HIDDEN_SIZE = 256
# --few_shot auto is on up to this number of labelled training texts. On ATIS it helps with up to 16 texts for each of
# 21 intents, but not with up to 64, which are 600 texts (benchmarks/RESULTS.md)
FEW_TEXTS = 400
OLD_DEFAULTS = {"few_shot": False, "word_shapes": False}  # values of these options in runs that predate them
# --long_text auto chooses windows if at least this fraction of the first training texts is too long
LONG_SHARE, INSPECTED_TEXTS = 0.05, 5000
DEBUG_EPOCHS = 10  # of --debug, which uses 64 examples of any data


@dataclass(frozen=True)
class DataFacts:
    """What is known about a run before its texts are encoded."""

    tokenizer: Any  # None if no text is read
    tasks: dict[str, Task]
    heads: Sequence[type[Head]]
    rows: Callable[[], Iterator[tuple[Any, dict[str, Any]]]]  # () -> (position, example) of each training example

    def first_examples(self) -> Iterator[dict[str, Any]]:
        """Yields the first training examples."""
        return (example for _, example in islice(self.rows(), INSPECTED_TEXTS))


@dataclass(frozen=True)
class TrainingFacts:
    """What is known about a run once its model and data loaders exist."""

    encoder: Any
    device: torch.device
    tasks: dict[str, Task]
    num_rows: int  # labelled training rows
    num_batches: int  # micro-batches per epoch


def inherit_auto_options(config: Config, run_dir: Path, device: torch.device) -> Config:
    """Returns the options, in a resumed run with its resolved values for those set to `auto`, even on another machine,
    with another number of processes, or if the run predates an option's `auto`."""
    path = run_dir / "args.json"
    if not config.do_train or config.debug:
        return config
    before = distributed.from_rank_0(lambda: OLD_DEFAULTS | read_options(path, type(config)) if path.exists() else {})
    kept = {}
    for name, auto in config.auto_values().items():
        unused = name == "ema_decay" and not config.use_ema
        if config.is_auto(name) and before.get(name, auto) != auto and not unused:
            kept[name] = before[name]
            slow = "" if name != "precision" or is_fast(before[name], device) else "; it is slow on this machine"
            logger.info(f"--{name} auto: {before[name]}, as when the run began{slow}")
    return replace(config, **kept)


def resolve_data_options(config: Config, facts: DataFacts) -> Config:
    """Returns the options with values for --long_text and --word_shapes, and for --pooling if the folder of the
    pretrained model specifies it. Raises UserError if a head does not support windows that --long_text requests."""
    config = replace(config, long_text=choose_long_text(config, facts), word_shapes=choose_word_shapes(config, facts))
    return resolve_pooling(config, [task.kind for task in facts.tasks.values()])


def resolve_pooling(config: Config, kinds: Iterable[str]) -> Config:
    """Returns the options with a value for --pooling auto, if the folder of the pretrained model specifies its pooling.
    Otherwise, and in runs that predate this rule, it stays auto, and `pooling_of` resolves it by model family.
    kinds: the kind of each task."""
    started = (config.run_dir / "args.json").exists() and not config.debug
    words_only = all(map(needs_words, kinds))
    if not config.is_auto("pooling") or not is_pretrained(config) or config.init_from or words_only:
        return config
    place = locate(config.pretrain_model_path, config.model_hub)
    pooling, mode = distributed.from_rank_0(lambda: (not started and stored_pooling(place)) or ("", ""))
    if mode:
        found = f"the model was trained with {mode} pooling"
        logger.info(f"--pooling auto: {pooling}; {found}" if pooling else f"--pooling: {found}, which is not supported")
    return replace(config, pooling=pooling or "auto")


def choose_long_text(config: Config, facts: DataFacts) -> Any:
    """Returns the value of --long_text: for auto, windows if at least LONG_SHARE of the first training texts are longer
    than --max_length, otherwise head. Raises UserError if windows are requested but not supported."""
    if not facts.tokenizer or all(task.needs_words for task in facts.tasks.values()):
        return "head" if config.long_text in ("auto", "windows") else config.long_text  # tagging has its own windows
    featurizer = Featurizer.from_config(config, facts.tokenizer, facts.tasks, facts.heads, False)
    reason = why_no_windows(config, featurizer, facts.heads)
    if config.long_text == "windows" and reason:
        raise UserError(f"--long_text windows: {reason}; choose head, tail or head_tail")
    if config.long_text != "auto":
        return config.long_text
    if not reason and any(head.level == "tokens" for head in facts.heads):
        reason = "a head pools tokens itself; if it supports concatenated windows, add --long_text windows"
    return distributed.from_rank_0(lambda: long_text_of(featurizer, [*facts.first_examples()], reason))


def long_text_of(featurizer: Featurizer, examples: list[dict[str, Any]], reason: str) -> str:
    """Returns the value of --long_text auto for these training examples, and logs it unless it is the default.
    reason: why windows are not supported, or ""."""
    share = featurizer.num_longer(examples) / max(1, len(examples))
    if share < LONG_SHARE:
        return "head"
    long = f"{share:.0%} of the training texts are longer than {featurizer.max_length} tokens"
    if reason:
        logger.warning(f"--long_text auto: {long}, but only their start is read: {reason}")
        return "head"
    logger.info(f"--long_text auto: {long}; they are read in windows (--long_text head reads only their start)")
    return "windows"


def why_no_windows(config: Config, featurizer: Featurizer, heads: Iterable[type[Head]]) -> str:
    """Returns why a long text cannot be read in windows, or ""."""
    if featurizer.tagging and featurizer.stride < 0:
        return "--window_stride -1 truncates long texts in tagging tasks"
    if featurizer.markers or featurizer.apart:
        return "a head needs its markers in one input" if featurizer.markers else "a head encodes texts separately"
    if any(head.finds_spans for head in heads):
        return "the scores of all spans of a long text would need too much memory"
    if any(field.level == "spans" for field in featurizer.fields.values()):
        return "a Field has positions in one input"
    if noise := [f"--{name}" for name in with_trait(config, "noise") if getattr(config, name)]:
        return f"{' and '.join(noise)} adds noise to one input"
    return ""


def choose_word_shapes(config: Config, facts: DataFacts) -> bool:
    """Returns the value of --word_shapes: for auto, True if a pretrained encoder's tokenizer ignores case and the first
    training texts have words with and without capitals."""
    if not facts.tokenizer or not any(task.needs_words for task in facts.tasks.values()):
        return False
    if config.word_shapes is not None:
        return config.word_shapes
    # with --init_from, heads keep their inputs; from scratch, word shapes have not been measured
    ignored = bool(config.pretrain_model_path) and is_pretrained(config) and ignores_case(facts.tokenizer)
    words = chain.from_iterable(example["tokens"] for example in (facts.first_examples() if ignored else ()))
    chosen = bool(distributed.from_rank_0(lambda: has_capitals(words)))
    if chosen:
        logger.info("--word_shapes auto: on, because the tokenizer ignores case (--word_shapes False: off)")
    return chosen


def ignores_case(tokenizer: Any) -> bool:
    """Returns whether a tokenizer encodes "Aa" and "aa" as the same tokens."""
    upper, lower = (tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in ("Aa", "aa"))
    return bool(upper == lower and tokenizer.unk_token_id not in lower)


def resolve_training_options(config: Config, facts: TrainingFacts) -> Config:
    """Returns the options with values for all that are still set to `auto`. Raises UserError if other options
    contradict these values, or if the encoder cannot be trained in this precision."""
    batch_size = batch_size_of(config, facts.tasks, facts.num_rows)
    if config.is_auto("batch_size") and batch_size < BATCH_SIZES[0]:
        logger.info(f"--batch_size auto: {batch_size}, for a small tagging data set")
    config = resolve_precision(replace(config, batch_size=batch_size), facts.encoder, facts.device)
    config = resolve_few_shot(config, facts.tasks)
    steps = steps_per_epoch(facts.num_batches, config)  # of all processes together
    if config.is_auto("epochs"):
        config = replace(config, epochs=DEBUG_EPOCHS if config.debug else epochs_of(steps, is_pretrained(config)))
        logger.info(f"--epochs auto: {config.epochs} for {steps} steps per epoch")
    lr, head_lr = learning_rates(facts.encoder, config)
    config = replace(config, lr=lr, head_lr=head_lr, warmup_epochs=warmup_epochs(config))
    if config.is_auto("early_stop_patience"):
        config = replace(config, early_stop_patience=patience_of(config.epochs))
    if config.use_ema and config.is_auto("ema_decay"):
        config = replace(config, ema_decay=ema_decay_of(config.epochs * steps))
        logger.info(f"--ema_decay auto: {config.ema_decay:.4f} for {config.epochs * steps} steps")
    return config


def resolve_few_shot(config: Config, tasks: dict[str, Task]) -> Config:
    """Returns the options with a value for --few_shot auto: on for a pretrained encoder and few labels, if all tasks
    classify texts. It has not been measured together with other tasks."""
    if not config.is_auto("few_shot"):
        return config
    measured = is_pretrained(config) and all(classifies_texts(task.kind) for task in tasks.values())
    texts = max((task.rows or sum(task.counts or ()) for task in tasks.values()), default=0) if measured else 0
    on = 0 < texts <= FEW_TEXTS
    if texts:
        logger.info(f"--few_shot auto: {'on' if on else 'off'} for {texts} labelled texts")
    return replace(config, few_shot=on)


def resolve_precision(config: Config, encoder: Any, device: torch.device, trained: str | None = None) -> Config:
    """Returns the options with a value for --precision auto.

    trained: the precision in which a checkpoint was trained, which is used if it is fast on this device. None: a new
    run, which uses bf16 if it is fast. An encoder that overflows in half precision uses fp32.
    """
    if config.is_auto("precision"):
        chosen, reason = trained or "bf16", ""
        if not is_fast(chosen, device):
            chosen, reason = "fp32", f": {chosen} is not fast on this {device.type}"
        elif chosen != "fp32" and overflows(encoder):
            chosen, reason = "fp32", f": {encoder.config.model_type} overflows in {chosen}"
        elif not trained and not gains_from_bf16(encoder):
            chosen, reason = "fp32", ": bf16 hardly speeds up this encoder"
        chosen, reason = distributed.from_rank_0(lambda: (chosen, reason))
        config = replace(config, precision=chosen)
        logger.info(f"--precision auto: {chosen}{reason}")
    check_overflow(encoder, config.precision)
    require_precision(config.precision, device)
    return config


def gains_from_bf16(encoder: Any) -> bool:
    """Returns whether an encoder is a transformer that is wide enough to be much faster in bf16, where supported."""
    return bool(getattr(getattr(encoder, "config", None), "hidden_size", 0) >= BF16_HIDDEN_SIZE)


def is_fast(precision: str, device: torch.device) -> bool:
    """Returns whether a precision is fp32, or faster than fp32 on the device."""
    return precision == "fp32" or (has_bf16(device) if precision == "bf16" else device.type == "cuda")
