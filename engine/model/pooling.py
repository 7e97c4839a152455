"""Pools hidden states into one vector per text or per word. Shapes: B texts, L tokens, W words, H hidden size."""

from pathlib import Path, PurePosixPath

import torch

from engine.model.hub import optional_file, warn
from engine.schema import AnyOf, Optional, SchemaError, read_json

# {mode in sentence-transformers: (its key in older config files, the equivalent --pooling, or "" if there is none)}
MODES = {
    "cls": ("pooling_mode_cls_token", "first"),
    "max": ("pooling_mode_max_tokens", ""),
    "mean": ("pooling_mode_mean_tokens", "mean"),
    "mean_sqrt_len_tokens": ("pooling_mode_mean_sqrt_len_tokens", ""),
    "weightedmean": ("pooling_mode_weightedmean_tokens", ""),
    "lasttoken": ("pooling_mode_lasttoken", "last"),
}
MODULES = [{"type": str, "path": str}]  # modules.json
OPTIONS = {Optional("pooling_mode"): AnyOf(str, [str])} | {Optional(switch): bool for switch, _ in MODES.values()}


def stored_pooling(place: str) -> tuple[str, str] | None:
    """Returns (equivalent --pooling, mode) of a sentence-transformers model; "" if there is no equivalent. Returns None
    if the folder specifies no mode. place: the output of `hub.locate`

    modules.json names the folder of the Pooling module, whose config.json has the mode, or a boolean for each mode.
    """
    try:
        path = optional_file(place, "modules.json")
        modules = read_json(path, MODULES) if path else []
        folders = [PurePosixPath(one["path"]) for one in modules if one["type"].rpartition(".")[2] == "Pooling"]
        if not folders or folders[0].is_absolute() or ".." in folders[0].parts:
            return None
        name = str(folders[0] / "config.json")
        options = read_json(optional_file(place, name) or Path(place, name), OPTIONS)
    except SchemaError as error:
        warn(f"the pooling mode of the model cannot be read: {error}")
        return None
    modes = options.get("pooling_mode") or [mode for mode, (switch, _) in MODES.items() if options.get(switch)]
    modes = [modes] if isinstance(modes, str) else modes or ["mean"]  # the default of sentence-transformers
    return MODES.get(modes[0], ("", ""))[1] if len(modes) == 1 else "", " and ".join(modes)


def text_vectors(hidden: torch.Tensor, inputs: dict[str, torch.Tensor], pooling: str) -> torch.Tensor:
    """Returns the vector of each text, (B, H): its first or last real token, or the mean of all its tokens."""
    if pooling == "first":
        return hidden[:, 0]
    mask = inputs["attention_mask"]
    if pooling == "mean":
        return mean_of_tokens(hidden, mask)
    last = mask.sum(1) - 1  # inputs are always right-padded
    # With hidden[arange, last], an export would fix the number of windows to the example input's
    return hidden.gather(1, last[:, None, None].expand(-1, -1, hidden.shape[2])).squeeze(1)


def pooled_windows(hidden: torch.Tensor, mask: torch.Tensor, pooling: str, query: torch.Tensor) -> torch.Tensor:
    """Returns the average of the vectors of each text's windows, (B, H), weighted by attention, softmax(<query,
    vector>) (Ilse et al., 2018, arXiv:1802.04712, without the hidden layer). hidden: (B, N * L, H), mask: (B, N, L),
    query: (H,)"""
    real = mask[:, :, 0].bool()
    tokens = torch.cat([torch.ones_like(mask[:, :, :1]), mask[:, :, 1:]], 2)  # so no window is empty
    states = hidden.unflatten(1, mask.shape[1:]).flatten(0, 1)
    vectors = text_vectors(states, {"attention_mask": tokens.flatten(0, 1)}, pooling).unflatten(0, real.shape)
    scores = (vectors @ query.to(vectors.dtype)).float().masked_fill(~real, -torch.inf)
    return (vectors * scores.softmax(1).unsqueeze(2)).sum(1)


def mean_of_tokens(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the mean of hidden states (B, L, H) over the real tokens, (B, H), in fp32. mask: (B, L)"""
    weights = mask / mask.sum(1, keepdim=True)
    return (hidden * weights.unsqueeze(-1)).sum(1)


def vector_at(hidden: torch.Tensor, inputs: dict[str, torch.Tensor], token: int) -> torch.Tensor:
    """Returns the hidden state at the token with this id, (B, H). Each text must have it once (see Head.markers)."""
    return (hidden * (inputs["input_ids"] == token).unsqueeze(-1)).sum(1)


def separate_pairs(inputs: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Splits the inputs of pairs that are encoded separately (`Feature.joined_with`) into [inputs of the first texts,
    inputs of the second texts]. The second texts are moved to the start of the row. On a CPU, extra padding is removed.
    """
    ids, mask, second = (inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids"))
    first = mask * (1 - second)
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    moved = ids.gather(1, (places + first.sum(1, keepdim=True)).clamp(max=ids.shape[1] - 1))
    masks = torch.stack([first, (places < second.sum(1, keepdim=True)).to(mask.dtype)])
    if mask.device.type == "cpu" and not torch.compiler.is_compiling():  # on a GPU this would force a sync
        masks = masks[:, :, : int(masks.sum(2).max())]
    return [
        {"input_ids": i[:, : m.shape[1]] * m, "attention_mask": m, "token_type_ids": torch.zeros_like(m)}
        for i, m in zip((ids, moved), masks)
    ]


def word_vectors(hidden: torch.Tensor, inputs: dict[str, torch.Tensor], pooling: str) -> torch.Tensor:
    """Returns the vector of each word, (B, W, H): its first or last sub-token, or the mean of all its sub-tokens."""
    if pooling == "mean":
        places = torch.arange(hidden.shape[1], device=hidden.device)
        starts, ends = inputs["word_starts"].unsqueeze(2), inputs["word_ends"].unsqueeze(2)
        weights = ((places >= starts) & (places <= ends)) / (ends - starts + 1)
        return weights.to(hidden.dtype) @ hidden
    positions = inputs["word_starts" if pooling == "first" else "word_ends"]
    return hidden.gather(1, positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
