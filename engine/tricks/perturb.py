"""Helpers for adversarial and consistency training: noise on word vectors, saving and adding gradients, checks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from engine.errors import UserError


class WordNoise:
    """Adds noise to the encoder's word vectors through a forward hook. The encoder needs `get_input_embeddings`."""

    def __init__(self, model: Any):
        encoder = model.encoder
        self.value: torch.Tensor | None = None
        if getattr(getattr(encoder, "config", None), "is_encoder_decoder", False):
            encoder = encoder.get_encoder()  # BART's encoder and decoder each have an embedding table
        table = encoder.get_input_embeddings()
        self.width = table.embedding_dim
        self.require_lookup(model.encoder, table)
        table.register_forward_hook(self.add)

    @staticmethod
    def require_lookup(encoder: Any, table: torch.nn.Embedding) -> None:
        """Raises UserError unless the encoder looks up word vectors (B, L, width) in `table`, which XLNet does not."""
        shapes, training, ids = [], encoder.training, torch.ones(1, 3, dtype=torch.long, device=table.weight.device)
        hook = table.register_forward_hook(lambda table, inputs, output: shapes.append(output.shape[:2]))
        encoder.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            encoder(input_ids=ids, attention_mask=ids)
        encoder.train(training)
        hook.remove()
        if not shapes or shapes[0][0] != 1:
            raise UserError(
                "--use_smart and --use_freelb cannot add noise to this encoder's word vectors; try --use_fgm"
            )

    def add(self, table: torch.nn.Embedding, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if self.value is None:
            return output
        padding = output.shape[1] - self.value.shape[1]  # Longformer pads its input
        return (output + F.pad(self.value, (0, 0, 0, padding))).to(output.dtype)  # weights may be bf16

    @contextmanager
    def added(self, value: torch.Tensor | None) -> Iterator[None]:
        """Context manager that adds `value`, (B, L, width), to the word vectors; None adds nothing."""
        self.value = value
        try:
            yield
        finally:
            self.value = None


def safe_normalize(direction: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """Returns direction / length, or 0 where the length is 0 or not finite."""
    usable = torch.isfinite(length) & (length > 0)
    return torch.where(usable, direction / length, 0.0)


def norm_by_text(delta: torch.Tensor) -> torch.Tensor:
    """Returns the Frobenius norm of the noise for each text, (B, 1, 1)."""
    return torch.linalg.vector_norm(delta, dim=(1, 2), keepdim=True)


def take_gradients(model: torch.nn.Module) -> list[tuple[torch.nn.Parameter, torch.Tensor | None]]:
    """Removes the gradients of all parameters. Returns them as [(parameter, gradient)]."""
    gradients = [(p, p.grad) for p in model.parameters()]
    for p, _ in gradients:
        p.grad = None
    return gradients


def add_gradients(gradients: list[tuple[torch.nn.Parameter, torch.Tensor | None]], share: float = 1.0) -> None:
    for p, grad in gradients:
        if grad is not None:
            p.grad = grad.mul_(share) if p.grad is None else p.grad.add_(grad, alpha=share)


def require_dropout(model: torch.nn.Module, why: str) -> None:
    if not any(isinstance(module, torch.nn.Dropout) and module.p for module in model.modules()):
        raise UserError(f"{why}, but this model has no dropout")
