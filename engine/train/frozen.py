"""Computes the outputs of a frozen encoder once and caches them in memory, so that training runs only the heads.

A frozen encoder runs without dropout, so its outputs are the same in every epoch. The cache has the inputs of heads of
level "text" and "words". They are computed in batches that depend only on the data, so they are bit-exact in a resumed
run and in all processes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from engine.data.ragged import Ragged
from engine.model.pooling import text_vectors, word_vectors
from engine.run.option_checks import with_trait

logger = logging.getLogger("template")
MAX_BYTES = 2 << 30  # for all cached vectors of a process
NEED_ENCODER = ("streaming", "teacher")  # options that run the encoder in each step, besides tricks that add noise
POOLED = {"text": text_vectors, "words": word_vectors}


class Outputs:
    """The cached vectors of a data set, float32. levels: the levels of the model's heads."""

    def __init__(self, data: Any, levels: Sequence[str], hidden_size: int) -> None:
        offsets = {"text": np.arange(len(data.lengths) + 1)}
        if "words" in levels:
            offsets["words"] = data.columns["word_starts"].offsets
        self.levels = {
            level: Ragged(np.empty((int(offsets[level][-1]), hidden_size), np.float32), offsets[level])
            for level in levels
        }

    def add(self, rows: np.ndarray, level: str, vectors: torch.Tensor) -> None:
        """Stores the vectors of rows: (B, H), or (B, W, H) with padding."""
        kept, found = self.levels[level], vectors.float().cpu().numpy()
        for row, vector in zip(rows, found):
            start, end = kept.offsets[row : row + 2]
            kept.values[start:end] = vector if level == "text" else vector[: end - start]

    def __call__(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Returns {"encoded_text": (B, H), "encoded_words": (B, W, H)} for these rows."""
        found = {}
        for level, kept in self.levels.items():
            starts = kept.offsets[rows]
            places = np.arange((kept.offsets[rows + 1] - starts).max(initial=0))
            index = np.minimum(starts[:, None] + places, len(kept.values) - 1)  # padding is masked
            found[f"encoded_{level}"] = torch.from_numpy(kept.values[starts if level == "text" else index])
        return found


def bytes_of(data: Any, levels: Sequence[str], hidden_size: int) -> int:
    words = len(data.columns["word_starts"].values) if "words" in levels else 0
    return 4 * hidden_size * (len(data.lengths) * ("text" in levels) + words)


@contextmanager
def cached_outputs(trainer: Any) -> Iterator[None]:
    """Adds the outputs of a frozen encoder to the batches of train and dev within the context, if they fit into
    memory."""
    model, config = trainer.model, trainer.config
    data_sets = [loader.dataset for loader in (trainer.train_loader, trainer.dev_loader)]
    if not model.encoder_is_frozen or not model.hidden_size:
        yield
        return
    levels = sorted({head.level for head in model.output_layer.heads.values()})
    reasons = [f"--{name}" for name in (*NEED_ENCODER, *with_trait(config, "noise")) if getattr(config, name)]
    reasons += ["augment in data_loader.py"] * bool(data_sets[0].augment)
    reasons += [f"a head of level {level!r}" for level in levels if level not in POOLED]
    if model.window and any(data.lengths.max() > model.window for data in data_sets if not config.streaming):
        reasons.append("texts in windows, which are pooled with trained weights")
    if reasons:
        logger.info(f"the frozen encoder runs in every step, because of {', '.join(reasons)}")
    elif (size := sum(bytes_of(data, levels, model.hidden_size) for data in data_sets)) > MAX_BYTES:
        logger.info(f"the frozen encoder runs in every step: its outputs are {size / 1e9:.1f} GB, too large to cache")
    else:
        logger.info(f"the frozen encoder runs once: {size / 1e6:.1f} MB of its outputs are cached in memory")
        for data in data_sets:
            data.encoded = outputs_of(trainer, data, levels)
    try:
        yield
    finally:
        for data in data_sets:
            data.encoded = None


@torch.inference_mode()
def outputs_of(trainer: Any, data: Any, levels: Sequence[str]) -> Outputs:
    """Computes the outputs for all rows of a data set, in every process."""
    model, layer, size = trainer.model, trainer.model.output_layer, trainer.config.eval_batch_size
    poolings = {"text": layer.pooling, "words": layer.word_pooling}
    model.eval()
    order, outputs = np.argsort(-data.lengths, kind="stable"), Outputs(data, levels, model.hidden_size)
    for start in tqdm(range(0, len(order), size), desc="frozen encoder", leave=False, delay=2):
        trainer.stop.check()
        rows = order[start : start + size]
        batch = data.batch(rows).to(trainer.device)
        with torch.autocast(trainer.device.type, trainer.dtype, enabled=trainer.dtype is not None):
            hidden = model.encode(batch.inputs)
            for level in levels:
                outputs.add(rows, level, POOLED[level](hidden, batch.inputs, poolings[level]))
    return outputs
