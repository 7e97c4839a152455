"""Encoders of the transformers library: loading them safely, and what differs between their families."""

import torch
from torch import nn
from transformers import AutoModel, BertConfig

from engine.command_line import UserError, first_line


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
            f"--pretrain_model_path {name}: has no weights for {len(missing)} tensors of its own config, such as {missing[0]}"
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
    longest = getattr(encoder.config, "max_position_embeddings", None)
    return longest - first_position(encoder) if longest and longest > 0 else None  # XLNet's -1 means that there is none


def layer_ids(encoder):
    """({parameter's name: depth}, number n of layers): 0 for the embeddings, 1 to n for the layers, n + 1 for what follows them."""
    lists = [(name, len(module)) for name, module in encoder.named_modules() if isinstance(module, nn.ModuleList)]
    place, layers = lists[0] if lists else ("", 0)
    parent = place.rpartition(".")[0]
    stacks = [
        name for name, length in lists if length == layers and name.rpartition(".")[0] == parent
    ]  # XLM has several, side by side
    children = [name for name, _ in encoder.named_children()]
    # What comes before the stack, or lies beside it in the same module as relative positions do, belongs to the embeddings
    below = children[: children.index(place.split(".")[0]) + bool(parent)] if place else []
    found = {}
    for name, _ in encoder.named_parameters():
        stack = next((stack for stack in stacks if name.startswith(f"{stack}.")), None)
        if stack:
            found[name] = int(name[len(stack) + 1 :].split(".")[0]) + 1
        else:
            found[name] = 0 if name.split(".")[0] in below else layers + 1
    return found, layers


def lr_of_width(hidden_size):
    return min(1e-3, 3e-4 * (384 / hidden_size) ** 2)
