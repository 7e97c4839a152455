"""Functions and options that differ between the supported versions of torch and transformers."""

from collections.abc import Iterable
from typing import Any

import torch


def get_total_norm(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Computes the norm over all values of all tensors: torch.nn.utils.get_total_norm, added in torch 2.6."""
    tensors = list(tensors)
    if hasattr(torch.nn.utils, "get_total_norm"):
        return torch.nn.utils.get_total_norm(tensors)
    if not tensors:
        return torch.tensor(0.0)
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors]))


@torch.no_grad()
def clip_grads_with_norm_(parameters: Iterable[torch.nn.Parameter], limit: float, norm: torch.Tensor) -> None:
    """Scales gradients with this total norm down to the limit: torch.nn.utils.clip_grads_with_norm_, torch >= 2.6."""
    if hasattr(torch.nn.utils, "clip_grads_with_norm_"):
        return torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    scale = (limit / (norm + 1e-6)).clamp(max=1)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(scale)


def dtype_option(dtype: Any) -> dict[str, Any]:
    """Returns the dtype argument of from_pretrained and from_config, named `torch_dtype` before transformers 4.56."""
    from transformers import PretrainedConfig  # imported here because it takes seconds

    return {"dtype" if hasattr(PretrainedConfig(), "dtype") else "torch_dtype": dtype}


def warmup_option(share: float) -> dict[str, float]:
    """Returns the TrainingArguments argument for warmup over a fraction of the steps: `warmup_ratio` before
    transformers 5."""
    from transformers import TrainingArguments

    has_ratio = getattr(TrainingArguments, "warmup_ratio", None) is not None  # 5.0 has it with the default None
    return {"warmup_ratio" if has_ratio else "warmup_steps": share}


def accept_words(tokenizer: Any) -> Any:
    """Makes a GPT-2 or RoBERTa tokenizer accept lists of words, and returns it. Before transformers 5, it requires
    add_prefix_space for them, which would add a second space to words that begin with one."""
    if getattr(tokenizer, "add_prefix_space", None) is False:
        try:
            tokenizer(["a"], is_split_into_words=True)
        except AssertionError:
            tokenizer.add_prefix_space = True  # only the check reads it; the Rust tokenizer has its own setting
            tokenizer.init_kwargs.pop("add_prefix_space", None)  # not saved: it would change the Rust tokenizer
    return tokenizer


def takes_4d_mask() -> bool:
    """Returns whether BERT-like models take a (B, 1, L, L) attention mask, as in transformers 5, or a (B, L, L) one."""
    from transformers.models.bert import modeling_bert

    return hasattr(modeling_bert, "create_bidirectional_mask")
