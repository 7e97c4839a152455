"""Loads encoders with transformers without running third-party code, and handles differences between model families."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, BertConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED
from transformers.utils import logging as transformers_logging

from engine.errors import UserError
from engine.model import lora
from engine.model.hub import locate
from engine.run import compat
from engine.run.command_line import first_line
from engine.run.run_folder import check_not_a_run, checkpoint_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from config import Config

BIDIRECTIONAL = ("xlnet", "bert-generation")  # language models with bidirectional attention
ENDS_WITH_CLS = ("xlnet",)
ENCODER_FILE = "encoder.json"  # the config of the encoder in a checkpoint
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MAX_COUNTED, MAX_SIZE = 2**16, 2**62  # limits for counts of layers, heads, labels, …; and for other numbers
PLAIN_ATTENTION = (None, "eager", "sdpa")
WIDE_MASK = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "albert")


def takes_wide_mask(encoder: nn.Module) -> bool:
    """Returns whether an encoder accepts an attention mask (B, 1, L, L) and does not change it."""
    return getattr(getattr(encoder, "config", None), "model_type", None) in WIDE_MASK and compat.takes_4d_mask()


def is_causal(encoder: Any) -> bool:
    """Returns whether tokens attend only to earlier tokens, as in GPT-2 and Llama. encoder: a module or its config. A
    custom encoder can set an attribute `is_causal`."""
    shape = getattr(encoder, "config", encoder)
    if getattr(encoder, "is_causal", False) or getattr(shape, "is_decoder", False):
        return not getattr(shape, "is_encoder_decoder", False)  # the encoder of BART is bidirectional
    if getattr(shape, "is_encoder_decoder", False) or getattr(shape, "use_bidirectional_attention", None) is True:
        return False
    kind = getattr(shape, "model_type", None)
    return kind in CAUSAL and kind not in MASKED and kind not in BIDIRECTIONAL


def read_shape(name: str | Path, revision: str | None = None) -> PretrainedConfig:
    """Reads the config of a third-party folder or hub name. Removes settings that make transformers download or run
    code.

    If the package `kernels` is installed, transformers downloads and runs the attention code that config.json names as
    "owner/name" or as flash attention. Loading a quantized model also runs code, and an adapter loads another model.
    """
    if (Path(name) / "adapter_config.json").exists():
        raise UserError(f"{name}: contains an adapter (adapter_config.json), which loads another model; merge it first")
    require_plausible(name, revision)
    shape = AutoConfig.from_pretrained(name, trust_remote_code=False, revision=revision)
    restrict_to_builtin_code(shape, name)
    return shape


def shape_file(folder: str | Path) -> Path:
    """Returns the config file of the encoder in a checkpoint folder. It is not named config.json, because transformers
    would then load the folder as an encoder with random weights. Older checkpoints have a config.json."""
    path = Path(folder) / ENCODER_FILE
    return path if path.exists() else path.with_name("config.json")


def require_plausible(name: str | Path, revision: str | None = None) -> None:
    """Raises UserError if a number in config.json would make transformers create an enormous number of layers or label
    names. Call it before loading anything else from this folder: tokenizers create the config, too."""
    values = [PretrainedConfig.get_config_dict(name, revision=revision)[0]]
    while values:
        section = values.pop()
        values += [value for value in section.values() if isinstance(value, dict)]
        require_plausible_numbers(section, name)


def require_plausible_numbers(values: dict, name: str | Path) -> None:
    for key, value in values.items():
        if isinstance(value, int | float):
            counts = "num" in key or "layer" in key or key.startswith("n_")
            if not -MAX_SIZE <= value <= (MAX_COUNTED if counts else MAX_SIZE):
                raise UserError(f"{name}: {key} is {str(value)[:30]}, which is not plausible for a model")


def restrict_to_builtin_code(shape: PretrainedConfig, name: str | Path) -> None:
    """Restricts a config and its sub-configs to code in transformers. Raises UserError if the model is quantized."""
    if getattr(shape, "quantization_config", None) is not None:
        raise UserError(f"{name}: is quantized (quantization_config in config.json); use the unquantized model")
    if shape._attn_implementation not in PLAIN_ATTENTION:
        shape._attn_implementation = None  # the default of the family
    if getattr(shape, "_experts_implementation", None) is not None:
        shape._experts_implementation = None
    for value in vars(shape).values():
        if isinstance(value, PretrainedConfig):
            restrict_to_builtin_code(value, name)


def pretrained_shape(config: Config, own: Path | None = None) -> PretrainedConfig | None:
    """Reads the config of the encoder of --pretrain_model_path or --init_from; None if there is none or it cannot be
    loaded. own: see `load_tokenizer`. Raises UserError if the model cannot be found."""
    if not (config.pretrain_model_path or config.init_from) or config.encoder != "transformer":
        return None
    if own or config.init_from:
        place: str | Path = shape_file(own or checkpoint_of(config.init_from))
    else:
        place = locate(config.pretrain_model_path, config.model_hub)
    try:
        return read_shape(place)
    except Exception:  # reported when its weights are loaded
        return None


def pooling_of(config: Config, shape: PretrainedConfig | None) -> tuple[str, str]:
    """Returns (--pooling, --word_pooling), with "auto" resolved for an encoder with this config."""
    last = is_causal(shape)  # only the last sub-token attends to the whole word, and the last token to the whole text
    text = "last" if last or getattr(shape, "model_type", None) in ENDS_WITH_CLS else "first"
    return (
        text if config.pooling == "auto" else config.pooling,
        ("last" if last else "first") if config.word_pooling == "auto" else config.word_pooling,
    )


def build_transformer(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    checkpoint: str | Path | None = None,
    base_path: str | None = None,
) -> PreTrainedModel:
    """Builds the encoder from the options. checkpoint: a checkpoint folder; only its config is read, not its weights.
    base_path: the new location of the base model of its LoRA adapter, if that was moved."""
    base = lora.read_base(checkpoint) if checkpoint else None
    if checkpoint and base:
        load = partial(load_pretrained, dtype=config.load_dtype)
        encoder = lora.load_base(checkpoint, base, base_path, config.model_hub, load)
    elif checkpoint:
        try:
            shape = read_shape(shape_file(checkpoint))
            encoder = AutoModel.from_config(
                shape, trust_remote_code=False, **compat.dtype_option(DTYPES[config.load_dtype])
            )
        except UserError:
            raise
        except Exception as error:  # transformers can raise anything for a third-party folder
            raise UserError(f"{checkpoint}: its encoder cannot be loaded ({first_line(error)})") from None
    elif config.pretrain_model_path:
        place = locate(config.pretrain_model_path, config.model_hub, weights=True)
        encoder = load_pretrained(place, None, config.load_dtype)
        encoder = keep_evenly_spaced(encoder, config.keep_layers) if config.keep_layers else encoder
        fit_vocabulary(encoder, tokenizer, config)
    else:
        shape = bert_config(tokenizer, config.num_layers, config.hidden_size, config.max_length, config.dropout)
        encoder = AutoModel.from_config(shape, trust_remote_code=False)
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # unused: the heads read the hidden states
    if config.pretrain_model_path and not checkpoint:
        check_encoder(encoder, tokenizer, config.pretrain_model_path)
    if (longest := num_positions(encoder)) and config.max_length > longest:
        raise UserError(f"--max_length={config.max_length} exceeds the {longest} positions of this encoder")
    if hasattr(encoder.config, "use_cache") and (
        is_causal(encoder) or getattr(encoder.config, "is_encoder_decoder", False)
    ):
        encoder.config.use_cache = False  # cached keys and values are useful only for generation
    if base or (config.lora_rank and not checkpoint):
        encoder.lora_base = base or lora.describe_base(config.pretrain_model_path, config.model_hub)
        lora.add_adapter(encoder, config)
    if config.gradient_checkpointing:
        checkpoint_gradients(encoder)
    return encoder


def checkpoint_gradients(encoder: PreTrainedModel) -> None:
    """Makes each layer recompute its activations in the backward pass instead of storing them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # older supported versions do not have the new name
            encoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except Exception:  # each family raises a different error
        kind = getattr(encoder.config, "model_type", type(encoder).__name__)
        raise UserError(
            f"--gradient_checkpointing: transformers' {kind} does not support it; leave it out and lower --batch_size"
        ) from None
    with suppress(AttributeError):  # raised by transformers 4 if there is nothing to disable
        encoder.disable_input_require_grads()  # needed only for reentrant checkpointing; would track frozen layers


def overflows(encoder: nn.Module) -> bool:
    """Returns whether the encoder's code overflows in half precision."""
    return getattr(getattr(encoder, "config", None), "model_type", None) == "deberta"


def check_overflow(encoder: nn.Module, precision: str) -> None:
    """Raises UserError for half precision if the encoder's code overflows in it."""
    if precision != "fp32" and overflows(encoder):
        raise UserError(f"--precision {precision}: DeBERTa v1 overflows in it; use fp32, or a DeBERTa v2 or v3")


def fit_vocabulary(encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: Config) -> None:
    """Adds word embeddings for --special_tokens. Raises UserError if tokenizer and encoder do not match."""
    try:
        num_embeddings = getattr(encoder.get_input_embeddings(), "num_embeddings", None)
    except NotImplementedError:  # speech encoders
        num_embeddings = None
    if num_embeddings is None:
        raise UserError(
            f"{config.pretrain_model_path}: {encoder.config.model_type} does not read text; use an encoder such as BERT"
        )
    if config.special_tokens:
        encoder.resize_token_embeddings(max(len(tokenizer), num_embeddings))
    elif len(tokenizer) > num_embeddings:
        raise UserError(
            f"{config.pretrain_model_path}: its tokenizer has {len(tokenizer)} entries, "
            f"its embedding {num_embeddings} rows; they do not match"
        )


@contextmanager
def silence() -> Iterator[None]:
    """Makes transformers log only errors within the context."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def load_pretrained(name: str | Path, revision: str | None = None, dtype: str = "fp32") -> PreTrainedModel:
    """Loads an encoder from a save_pretrained folder or the hub. Raises UserError if weights are missing."""
    options = dict(output_loading_info=True, revision=revision) | compat.dtype_option(DTYPES[dtype])
    check_not_a_run(name, "labels.json")
    try:
        options["config"] = read_shape(name, revision)
        with silence():  # hides the table of missing and unexpected weights; missing ones are rejected below
            encoder, found = AutoModel.from_pretrained(name, trust_remote_code=False, **options)
    except UserError:
        raise
    except Exception as error:  # transformers can raise anything for a third-party folder
        raise UserError(f"--pretrain_model_path {name}: its encoder cannot be loaded ({first_line(error)})") from None
    missing = [key for key in found["missing_keys"] if "pooler" not in key]
    if missing:
        raise UserError(
            f"--pretrain_model_path {name}: the weights of {len(missing)} tensors of its config are missing, such as "
            f"{missing[0]}"
        )
    return encoder


def keep_evenly_spaced(encoder: PreTrainedModel, number: int) -> PreTrainedModel:
    """Returns an encoder with `number` evenly spaced layers of the given one, including the first and the last (Sanh et
    al., DistilBERT, 2019, arXiv:1910.01108). Raises UserError if it has too few layers, or if its number of layers
    cannot be changed."""
    num_layers = layer_ids(encoder)[1]
    kind = getattr(encoder.config, "model_type", type(encoder).__name__)
    if encoder.config.num_hidden_layers != num_layers:  # ALBERT applies one layer several times
        raise UserError(f"--keep_layers: {kind} shares one layer's weights among all layers; remove this option")
    if not 0 < number <= num_layers:
        raise UserError(f"--keep_layers={number}: this encoder has {num_layers} layers")
    kept = [round(i * (num_layers - 1) / max(1, number - 1)) for i in range(number)]
    shape = copy.deepcopy(encoder.config)
    for name, value in list(vars(shape).items()):
        by_layer = isinstance(value, list) and len(value) == num_layers
        if by_layer and ("layer" in name or name == "attention_window"):  # one item per layer
            setattr(shape, name, [value[i] for i in kept])
    shape.num_hidden_layers = number
    weights, stacks = {}, stacks_of(encoder, num_layers)
    for name, tensor in encoder.state_dict().items():
        stack = next((s for s in stacks if name.startswith(f"{s}.")), None)
        if stack:
            old, _, rest = name[len(stack) + 1 :].partition(".")
            if int(old) not in kept:
                continue
            name = f"{stack}.{kept.index(int(old))}.{rest}"
        weights[name] = tensor
    try:
        smaller = AutoModel.from_config(shape, trust_remote_code=False, **compat.dtype_option(encoder.dtype))
        smaller.load_state_dict(weights)
    except Exception as error:  # each family raises a different error
        raise UserError(f"--keep_layers: {kind} cannot be reduced to fewer layers ({first_line(error)})") from None
    return smaller.train(encoder.training)


def bert_config(
    tokenizer: PreTrainedTokenizerBase, num_layers: int, hidden_size: int, max_length: int, dropout: float = 0.1
) -> BertConfig:
    """Returns the config of a BERT to train from scratch."""
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 32,
        intermediate_size=4 * hidden_size,
        max_position_embeddings=max(512, max_length),
        pad_token_id=tokenizer.pad_token_id,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )


def check_encoder(encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str | Path) -> None:
    """Raises UserError unless an encoder accepts the inputs of MyModel and returns one vector per token."""
    pad = tokenizer.pad_token_id
    first, word = (pad if i is None else i for i in (tokenizer.cls_token_id, tokenizer.unk_token_id))
    ids = torch.tensor([[first, word], [first, pad]])
    mask = torch.tensor([[1, 1], [1, 0]])
    training, kind = encoder.training, getattr(encoder.config, "model_type", type(encoder).__name__)
    advice = "use an encoder such as BERT, RoBERTa, DeBERTa or ModernBERT"
    encoder.eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        except Exception as error:  # an unsupported architecture can raise anything
            raise UserError(
                f"--pretrain_model_path {name}: {kind} cannot read text alone ({first_line(error)}); {advice}"
            ) from None
    encoder.train(training)
    width = getattr(encoder.config, "hidden_size", None)
    if width is None:
        raise UserError(f"--pretrain_model_path {name}: {kind} reads more than text; use its text model alone")
    if hidden.shape != (2, 2, width):
        raise UserError(
            f"--pretrain_model_path {name}: {kind} returns {tuple(hidden.shape)} for 2 texts of 2 tokens; {advice}"
        )


def first_position(encoder: nn.Module) -> int:
    """Returns the position index of the first token: 0, or in models like RoBERTa the padding index + 1."""
    positions = next((module for name, module in encoder.named_modules() if name.endswith("position_embeddings")), None)
    padding = getattr(positions, "padding_idx", None)
    return 0 if padding is None else padding + 1


def num_positions(encoder: nn.Module) -> int | None:
    """Returns the maximum number of tokens, or None if there is no limit."""
    longest = getattr(getattr(encoder, "config", None), "max_position_embeddings", None)
    return longest - first_position(encoder) if longest and longest > 0 else None  # XLNet's -1 means no limit


def layer_ids(encoder: Any) -> tuple[dict[str, int], int]:
    """Returns ({parameter name: layer}, number of layers n). Layer 0 is the embeddings, n + 1 all modules after the
    layers."""
    first = next((name for name, module in encoder.named_modules() if isinstance(module, nn.ModuleList)), "")
    num_layers = len(encoder.get_submodule(first)) if first else 0
    parent, stacks = first.rpartition(".")[0], stacks_of(encoder, num_layers)
    children = [name for name, _ in encoder.named_children()]
    # Modules before the layers, or in the same parent module (such as relative positions), count as embeddings
    below = children[: children.index(first.split(".")[0]) + bool(parent)] if first else []
    layers = {}
    for name, _ in encoder.named_parameters():
        stack = next((stack for stack in stacks if name.startswith(f"{stack}.")), None)
        if stack:
            layers[name] = int(name[len(stack) + 1 :].split(".")[0]) + 1
        else:
            layers[name] = 0 if name.split(".")[0] in below else num_layers + 1
    return layers, num_layers


def stacks_of(encoder: nn.Module, num_layers: int) -> list[str]:
    """Returns the names of the lists of layers; XLM has several parallel lists."""
    lists = [(name, len(module)) for name, module in encoder.named_modules() if isinstance(module, nn.ModuleList)]
    parent = lists[0][0].rpartition(".")[0] if lists else ""
    return [name for name, length in lists if length == num_layers and name.rpartition(".")[0] == parent]


def freeze_layers(encoder: nn.Module, num_frozen: int) -> None:
    """Freezes the embeddings and the first `num_frozen` layers; -1: everything; 0: nothing."""
    if num_frozen == -1:
        encoder.requires_grad_(False)
    elif num_frozen:
        layers, num_layers = layer_ids(encoder)
        if num_frozen > num_layers:
            raise UserError(
                f"--freeze_layers={num_frozen}: this encoder has {num_layers} layers that can be frozen individually; "
                "'all' freezes the whole encoder"
            )
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(layers[name] > num_frozen)
