"""Encoders of the transformers library: loading them safely, and what differs between their families."""

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, BertConfig

from engine.command_line import UserError, first_line

WIDE_MASK = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "albert")


def takes_wide_mask(encoder):
    """Whether an encoder takes an attention mask of (B, 1, L, L) as it is."""
    return getattr(getattr(encoder, "config", None), "model_type", None) in WIDE_MASK


def build_transformer(config, tokenizer, checkpoint=None):
    """An encoder as the options say. checkpoint: a folder of ours that tells its shape, not its weights."""
    if checkpoint:
        try:
            shape = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
            encoder = AutoModel.from_config(shape, trust_remote_code=False).float()
        except Exception as error:  # a foreign folder can make transformers raise anything
            raise UserError(f"{checkpoint}: no encoder loads from it ({first_line(error)})") from None
    elif config.pretrain_model_path:
        encoder = load_pretrained(config.pretrain_model_path)
        fit_vocabulary(encoder, tokenizer, config)
    else:
        shape = bert_config(tokenizer, config.num_layers, config.hidden_size, config.max_length, config.dropout)
        encoder = AutoModel.from_config(shape, trust_remote_code=False)
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # our heads read the hidden states; its work would be thrown away
    if config.pretrain_model_path and not checkpoint:
        check_encoder(encoder, tokenizer, config.pretrain_model_path)
    if (longest := num_positions(encoder)) and config.max_length > longest:
        raise UserError(f"--max_length={config.max_length} is more than the {longest} positions of this encoder")
    return encoder


def fit_vocabulary(encoder, tokenizer, config):
    """Grows the word embeddings for --special_tokens. UserError if tokenizer and encoder do not belong together."""
    num_embeddings = getattr(encoder.get_input_embeddings(), "num_embeddings", None)
    if num_embeddings is None:
        raise UserError(
            f"{config.pretrain_model_path}: {encoder.config.model_type} reads no text; take an encoder such as BERT"
        )
    if config.special_tokens:
        encoder.resize_token_embeddings(max(len(tokenizer), num_embeddings))
    elif len(tokenizer) > num_embeddings:
        raise UserError(
            f"{config.pretrain_model_path}: its tokenizer has {len(tokenizer)} entries, "
            f"its embedding {num_embeddings} rows; they do not belong together"
        )


def load_pretrained(name):
    """An encoder from a folder made by save_pretrained, or from the hub; refused if weights are missing."""
    try:
        encoder, found = AutoModel.from_pretrained(
            name, output_loading_info=True, trust_remote_code=False, dtype=torch.float32
        )
    except Exception as error:  # a foreign folder can make transformers raise anything
        raise UserError(f"--pretrain_model_path {name}: no encoder loads from it ({first_line(error)})") from None
    missing = [key for key in found["missing_keys"] if "pooler" not in key]
    if missing:
        raise UserError(
            f"--pretrain_model_path {name}: has no weights for {len(missing)} tensors of its own config, such as "
            f"{missing[0]}"
        )
    return encoder


def bert_config(tokenizer, num_layers, hidden_size, max_length, dropout=0.1):
    """The shape of a BERT that is built from scratch."""
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


def check_encoder(encoder, tokenizer, name):
    """UserError unless an encoder reads a batch as MyModel gives it and answers with a vector a token."""
    ids = torch.tensor(
        [[tokenizer.cls_token_id, tokenizer.unk_token_id], [tokenizer.cls_token_id, tokenizer.pad_token_id]]
    )
    mask = torch.tensor([[1, 1], [1, 0]])
    training, kind = encoder.training, getattr(encoder.config, "model_type", type(encoder).__name__)
    advice = "take an encoder such as BERT, RoBERTa, DeBERTa or ModernBERT"
    encoder.eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        except Exception as error:  # whatever an unusual architecture raises
            raise UserError(
                f"--pretrain_model_path {name}: {kind} cannot read a text alone ({first_line(error)}); {advice}"
            ) from None
    encoder.train(training)
    width = getattr(encoder.config, "hidden_size", None)
    if hidden.shape != (2, 2, width):
        raise UserError(
            f"--pretrain_model_path {name}: {kind} gives {tuple(hidden.shape)} for 2 texts of 2 tokens; {advice}"
        )


def first_position(encoder):
    """The number of the first token's position: 0, but RoBERTa's kind counts from behind the padding's."""
    positions = next((module for name, module in encoder.named_modules() if name.endswith("position_embeddings")), None)
    padding = getattr(positions, "padding_idx", None)
    return 0 if padding is None else padding + 1


def num_positions(encoder):
    """How many tokens fit, or None if there is no limit."""
    longest = getattr(getattr(encoder, "config", None), "max_position_embeddings", None)
    return longest - first_position(encoder) if longest and longest > 0 else None  # XLNet's -1 means that there is none


def layer_ids(encoder):
    """({name of a parameter: layer}, number n of layers): 0: embeddings, 1 to n: layers, n + 1: after them."""
    lists = [(name, len(module)) for name, module in encoder.named_modules() if isinstance(module, nn.ModuleList)]
    first, num_layers = lists[0] if lists else ("", 0)
    parent = first.rpartition(".")[0]
    # XLM has several lists of layers, side by side
    stacks = [name for name, length in lists if length == num_layers and name.rpartition(".")[0] == parent]
    children = [name for name, _ in encoder.named_children()]
    # What comes before the layers, or lies beside them in the same module as relative positions do, belongs to the
    # embeddings
    below = children[: children.index(first.split(".")[0]) + bool(parent)] if first else []
    layers = {}
    for name, _ in encoder.named_parameters():
        stack = next((stack for stack in stacks if name.startswith(f"{stack}.")), None)
        if stack:
            layers[name] = int(name[len(stack) + 1 :].split(".")[0]) + 1
        else:
            layers[name] = 0 if name.split(".")[0] in below else num_layers + 1
    return layers, num_layers


def freeze_layers(encoder, num_frozen):
    """Takes the gradient from the embeddings and the first `num_frozen` layers; -1: from all; 0: from none."""
    if num_frozen == -1:
        encoder.requires_grad_(False)
    elif num_frozen:
        layers, num_layers = layer_ids(encoder)
        if num_frozen > num_layers:
            raise UserError(
                f"--freeze_layers={num_frozen}: this encoder has {num_layers} layers that can be frozen one by one; "
                "'all' freezes it whole"
            )
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(layers[name] > num_frozen)
