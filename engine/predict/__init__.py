"""Predictions from model outputs: prediction files, labelling of large files, ensembles, and the Python interface
`load` (docs/python.md)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.predict.interface import Model


def load(checkpoint: str | Path, device: str = "auto", precision: str = "auto", **options: Any) -> "Model":
    """Loads a trained model for use in Python. Raises UserError, a subclass of ValueError, if that fails.

    checkpoint: a run folder or its checkpoints/best; options: other options of main.py, such as eval_batch_size,
    compile, or pretrain_model_path if the base model of a LoRA adapter has moved. Random states are unchanged.
    """
    import random

    state = random.getstate()  # before the imports, because some libraries draw from Python's generator
    try:
        from engine.predict.interface import load_model

        return load_model(checkpoint, {"device": str(device), "precision": precision} | options)
    finally:
        random.setstate(state)
