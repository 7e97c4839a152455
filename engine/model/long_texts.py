"""Long texts: the windows of a text are encoded separately, then pooled into one vector per text.

A row contains all windows of a text, concatenated, all but the last of the same size (`Cutter.joined`). So a long
text has one label, one loss and one prediction, like a short one. Shapes: B texts, N windows, L tokens, H hidden size.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

Inputs = dict[str, torch.Tensor]
AT_ONCE = 8192  # number of tokens: 32 texts of 256 tokens, the default batch
OF_TOKENS = ("input_ids", "attention_mask", "token_type_ids")


def windows_of(tensor: torch.Tensor, size: int) -> torch.Tensor:
    """Splits (B, L, …) into windows, (B, N, size, …), padded with zeros."""
    missing = -tensor.shape[1] % size
    padded = F.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, missing)) if missing else tensor
    return padded.unflatten(1, (-1, size))


def encode_windows(encode: Callable[[Inputs], torch.Tensor], inputs: Inputs, size: int) -> torch.Tensor:
    """Computes the hidden states of texts in windows of `size` tokens, (B, L, H); 0 for empty windows.

    encode(inputs) -> hidden states. Each call processes B windows, or AT_ONCE tokens if that is more windows.
    In training, only the outputs of each call are stored; activations are recomputed (Chen et al., 2016,
    arXiv:1604.06174). So a batch of long texts needs about as much memory as a batch of short ones.
    """
    rows = {name: windows_of(inputs[name], size).flatten(0, 1) for name in OF_TOKENS}
    batch, length = inputs["input_ids"].shape
    real = rows["attention_mask"][:, 0].nonzero().squeeze(1)
    parts, hidden = real.split(max(batch, AT_ONCE // size)), []
    for part in parts:
        windows = {name: tensor[part] for name, tensor in rows.items()}
        again = torch.is_grad_enabled() and len(parts) > 1
        hidden.append(checkpoint(encode, windows, use_reentrant=False) if again else encode(windows))
    found = torch.cat(hidden)
    whole = found.new_zeros(len(rows["input_ids"]), *found.shape[1:]).index_copy(0, real, found)
    return whole.unflatten(0, (batch, -1)).flatten(1, 2)[:, :length]
