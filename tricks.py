"""Training tricks, each one class of a few lines beside its formula and paper.

A trick has one way in: `around(compute, inputs)` takes the forward and backward of one micro-batch and returns what is to
be done instead; `compute()` adds to the gradients and returns the model's output. The trainer knows no trick by name.
Edit here when you want one of your own: a class with `around`, an option in config.py, a line in `build_tricks`.
"""

from contextlib import contextmanager

import torch

from config import UserError


class FGM:
    """Fast gradient method: r = eps * g / ||g||_2 with g the gradient of the word embeddings; adds the gradient at x + r.

    Miyato et al., Adversarial Training Methods for Semi-Supervised Text Classification, 2017 (arXiv:1605.07725), in the
    community's form: one norm over the whole embedding matrix. Only rows of tokens in the batch have a gradient, so only
    these are read, changed and put back, to the bit.

    model: its `encoder` (or the model itself) must have `get_input_embeddings`, unless emb_name names the parameter.
    """

    def __init__(self, model, eps=1.0, emb_name=None):
        self.eps, self.saved = eps, None
        if emb_name is None:
            self.weight = getattr(model, "encoder", model).get_input_embeddings().weight
        else:
            found = {name: p for name, p in model.named_parameters() if emb_name in name and p.ndim == 2}
            if len(found) != 1:
                raise UserError(f"emb_name={emb_name!r} must match one embedding matrix, but matches {sorted(found) or 'none'}")
            (self.weight,) = found.values()
        if not self.weight.requires_grad:
            raise UserError("FGM needs the gradient of the word embeddings, but they are frozen")

    @torch.no_grad()
    def attack(self, input_ids=None):
        """Moves the embeddings by r. input_ids: the batch's tokens, any shape; None: look for the rows that have a gradient.

        Without host synchronisation: a token that occurs twice is moved once, by masking instead of `unique`. A gradient
        whose norm is zero or not finite gives no direction, and nothing is moved.
        """
        if self.saved is not None:
            raise RuntimeError("attack() twice without restore()")
        grad = self.weight.grad
        if grad is None:
            raise RuntimeError("attack() needs the gradient of a backward pass")
        rows = grad.any(1).nonzero().squeeze(1) if input_ids is None else input_ids.flatten().sort().values
        first = torch.ones_like(rows, dtype=torch.bool)
        first[1:] = rows[1:] != rows[:-1]
        direction = grad[rows].to(torch.promote_types(grad.dtype, torch.float32)) * first.unsqueeze(1)
        norm = torch.linalg.vector_norm(direction)
        usable = torch.isfinite(norm) & (norm > 0)
        step = torch.where(usable & first.unsqueeze(1), self.eps * direction / norm, 0.0)
        self.saved = rows, self.weight[rows]
        self.weight.index_add_(0, rows, step.to(self.weight.dtype))

    @torch.no_grad()
    def restore(self):
        """Puts the rows back as they were. Without an attack it does nothing."""
        if self.saved is not None:
            rows, values = self.saved
            self.weight[rows] = values
            self.saved = None

    @contextmanager
    def perturbed(self, input_ids=None):
        """`with fgm.perturbed(ids): …` — attacked inside, restored after, also on an error."""
        self.attack(input_ids)
        try:
            yield
        finally:
            self.restore()

    def around(self, compute, inputs):
        def clean_then_adversarial():
            earlier, self.weight.grad = self.weight.grad, None  # r comes from this micro-batch's gradient alone
            output = compute()
            with self.perturbed(inputs["input_ids"]):
                compute()
            if earlier is not None:
                self.weight.grad += earlier
            return output

        return clean_then_adversarial


def build_tricks(model, config):
    """The tricks that the options switch on, in the order in which they wrap each other."""
    return [FGM(model, config.fgm_eps)] if config.use_fgm else []
