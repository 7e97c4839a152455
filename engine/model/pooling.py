"""Hidden states -> a vector per text and per word. Shapes: B texts, L tokens, W words, H hidden size."""

import torch


def text_vectors(hidden: torch.Tensor, inputs: dict[str, torch.Tensor], pooling: str) -> torch.Tensor:
    """(B, H): the first token of each text, its last real one, or the mean over its tokens."""
    if pooling == "first":
        return hidden[:, 0]
    mask = inputs["attention_mask"]
    if pooling == "mean":
        return mean_of_tokens(hidden, mask)
    last = mask.sum(1) - 1  # inputs are padded on the right, regardless of the tokenizer's setting
    return hidden[torch.arange(len(last), device=last.device), last]


def mean_of_tokens(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Hidden states (B, L, H), mask (B, L) -> their mean over the real tokens (B, H), in fp32."""
    weights = mask / mask.sum(1, keepdim=True)
    return (hidden * weights.unsqueeze(-1)).sum(1)


def vector_at(hidden: torch.Tensor, inputs: dict[str, torch.Tensor], token: int) -> torch.Tensor:
    """(B, H): the hidden state at the token with this id, which each text has once (`markers` of a head)."""
    return (hidden * (inputs["input_ids"] == token).unsqueeze(-1)).sum(1)


def separate_pairs(inputs: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """[inputs of the first texts, inputs of the second texts] of pairs that are read apart (`Feature.beside`). The
    second texts are moved to the front; all tensors keep their shape (B, L)."""
    ids, mask, second = (inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids"))
    first = mask * (1 - second)
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    moved = ids.gather(1, (places + first.sum(1, keepdim=True)).clamp(max=ids.shape[1] - 1))
    texts = (ids, first), (moved, (places < second.sum(1, keepdim=True)).to(mask.dtype))
    return [{"input_ids": i * m, "attention_mask": m, "token_type_ids": torch.zeros_like(m)} for i, m in texts]


def word_vectors(hidden: torch.Tensor, inputs: dict[str, torch.Tensor], pooling: str) -> torch.Tensor:
    """(B, W, H): the first sub-token of each word, its last one, or the mean over them."""
    if pooling == "mean":
        places = torch.arange(hidden.shape[1], device=hidden.device)
        starts, ends = inputs["word_starts"].unsqueeze(2), inputs["word_ends"].unsqueeze(2)
        weights = ((places >= starts) & (places <= ends)) / (ends - starts + 1)
        return weights.to(hidden.dtype) @ hidden
    positions = inputs["word_starts" if pooling == "first" else "word_ends"]
    return hidden.gather(1, positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
