"""Training tricks: one class for each, with its formula and paper.

The training step only calls the hooks of `Trick` (engine/tricks/trick.py). To add a trick, write a subclass of `Trick`
that overrides some hooks and sets `switch`, add it to TRICKS at the end of this file, and add its option to config.py.
Weight averaging (EMA, SWA, Soup) is in engine/tricks/averages.py; tricks for few labels are in
engine/tricks/few_labels.py.

Tricks can be combined. Tricks that change the loss (`wrap_forward`) run inside tricks that repeat the pass (`passes`);
within each group, later tricks in TRICKS wrap earlier ones. With gradient accumulation, each trick acts on every
micro-batch separately, and the gradients it adds are scaled like the gradients of the clean loss.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from config import Config
from data_loader import Batch, MyDataLoader, MyDataset, MyIterableDataLoader
from engine.data.features import Featurizer
from engine.errors import UserError
from engine.model.encoders import layer_ids
from engine.run.device import random_state, set_random_state
from engine.tricks.averages import EMA, SWA, Soup
from engine.tricks.few_labels import Contrast, LabelShift
from engine.tricks.perturb import (
    WordNoise,
    add_gradients,
    norm_by_text,
    require_dropout,
    safe_normalize,
    take_gradients,
)
from engine.tricks.teachers import MultiTeacher
from engine.tricks.trick import Trick, Tricks
from model_utils import MyModel, MyModelOutput, load_with_featurizer, mean_output

logger = logging.getLogger("template")


# ---- adversarial training: gradients at a nearby point with a higher loss --------------------------------------------


class FGM(Trick):
    """Fast gradient method: adds the gradient at x + r, where r = eps * g / ||g||_2 and g is the gradient of the word
    embeddings x.

    Miyato et al., Adversarial Training Methods for Semi-Supervised Text Classification, 2017 (arXiv:1605.07725). Like
    common implementations, it takes the norm over the whole embedding matrix. Only rows of tokens in the batch have
    gradients, so only these rows are perturbed; they are restored exactly.

    model: must have `get_input_embeddings`, or an `encoder` that has it, unless emb_name names the parameter.
    """

    options: tuple[str, ...]
    saved: Any
    switch, options = "use_fgm", ("fgm_eps",)

    def __init__(self, model: Any, eps: float = 1.0, emb_name: str | None = None):
        self.model, self.eps, self.alpha, self.saved = model, eps, eps, None
        if emb_name is None:
            self.weight = getattr(model, "encoder", model).get_input_embeddings().weight
        else:
            matching = {name: p for name, p in model.named_parameters() if emb_name in name and p.ndim == 2}
            if len(matching) != 1:
                names = sorted(matching) or "none"
                raise UserError(f"emb_name={emb_name!r} must match one embedding matrix, but matches {names}")
            (self.weight,) = matching.values()
        if not self.weight.requires_grad:
            raise UserError(f"{type(self).__name__} needs the gradient of the word embeddings, but they are frozen")

    @torch.no_grad()
    def attack(self, input_ids: torch.Tensor | None = None) -> None:
        """Adds r to the embeddings. input_ids: the batch's tokens, of any shape; None: all rows with a gradient.

        Duplicate tokens are masked instead of removed with `unique`, which would need a host sync. r is zero if the
        norm of the gradient is zero or not finite.
        """
        if self.saved is not None:
            raise RuntimeError("attack() twice without restore()")
        if self.weight.grad is None:
            raise RuntimeError("attack() needs the gradient of a backward pass")
        rows = self.weight.grad.any(1).nonzero().squeeze(1) if input_ids is None else input_ids.flatten().sort().values
        first = torch.ones_like(rows, dtype=torch.bool)
        first[1:] = rows[1:] != rows[:-1]
        self.saved = rows, first.unsqueeze(1), self.weight[rows]
        self.r: Any = 0.0
        self.ascend()

    @torch.no_grad()
    def ascend(self) -> None:
        """Updates r <- r + alpha * g / ||g||, projects r onto ||r|| <= eps, and sets the rows to x + r."""
        rows, first, values = self.saved
        direction = self.weight.grad[rows].to(torch.promote_types(self.weight.dtype, torch.float32)) * first
        r = self.r + self.alpha * safe_normalize(direction, torch.linalg.vector_norm(direction))
        self.r = r * (self.eps / torch.linalg.vector_norm(r).clamp(min=max(self.eps, 1e-12)))
        self.weight[rows] = values
        self.weight.index_add_(0, rows, self.r.to(self.weight.dtype))

    @torch.no_grad()
    def restore(self) -> None:
        """Restores the embeddings, if they are perturbed."""
        if self.saved is not None:
            rows, _, values = self.saved
            self.weight[rows] = values
            self.saved = None

    @contextmanager
    def perturbed(self, input_ids: torch.Tensor | None = None) -> Iterator[None]:
        """Context manager that attacks the embeddings and restores them on exit, even after an exception."""
        self.attack(input_ids)
        try:
            yield
        finally:
            self.restore()

    def passes(self, batch: Batch) -> Generator[bool, None, None]:
        earlier, self.weight.grad = self.weight.grad, None  # r depends only on this micro-batch's gradient
        yield True
        with self.perturbed(batch.inputs["input_ids"]):
            yield False
        if earlier is not None:
            self.weight.grad += earlier


class PGD(FGM):
    """Projected gradient descent on the word embeddings: K steps r <- P(r + alpha * g / ||g||_2), where g is the
    gradient at x + r and P the projection onto ||r||_2 <= eps. Adds the gradient at the last x + r to the clean one.

    Madry et al., 2018 (arXiv:1706.06083), with the norm of FGM.
    """

    switch, options = "use_pgd", ("fgm_eps", "pgd_alpha", "pgd_steps")

    def __init__(self, model: Any, eps: float = 1.0, alpha: float = 0.4, steps: int = 3, emb_name: str | None = None):
        super().__init__(model, eps, emb_name)
        self.alpha, self.steps = alpha, steps

    def passes(self, batch: Batch) -> Generator[bool, None, None]:
        earlier = take_gradients(self.model)
        yield True
        with self.perturbed(batch.inputs["input_ids"]):  # the first of the K steps
            clean = take_gradients(self.model)
            yield False
            for _ in range(self.steps - 1):
                self.ascend()
                take_gradients(self.model)
                yield False
        add_gradients(clean)
        add_gradients(earlier)


class FreeLB(Trick):
    """Takes K ascent steps on noise d that is added to each text's word vectors, and averages the K gradients. There is
    no clean pass.

    d_0 = U(-1, 1) * magnitude / sqrt(L * H) and d_k+1 = P(d_k + alpha * g / ||g||_F), where g is the gradient of the
    loss with respect to d_k, and P the projection onto ||d||_F <= eps of each text. The gradient of the weights is the
    mean of grad loss(x + d_k) over k. All passes use the same dropout mask. Zhu et al., 2020 (arXiv:1909.11764).
    """

    switch, options = "use_freelb", ("freelb_steps", "freelb_alpha")

    def __init__(self, model: MyModel, steps: int = 3, alpha: float = 0.1, magnitude: float = 0.2, eps: float = 0.6):
        self.model, self.steps, self.alpha, self.magnitude, self.eps = model, steps, alpha, magnitude, eps
        self.noise = WordNoise(model)

    def passes(self, batch: Batch) -> Generator[bool, None, None]:
        earlier = take_gradients(self.model)
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"].unsqueeze(2)
        size = (mask.sum(1, keepdim=True) * self.noise.width) ** 0.5
        delta: Any = (
            (2 * torch.rand(*ids.shape, self.noise.width, device=ids.device) - 1) * mask * self.magnitude / size
        )
        dropout = random_state(ids.device)
        for _ in range(self.steps):
            set_random_state(dropout, ids.device)
            with self.noise.added(delta.requires_grad_()):
                yield True
            with torch.no_grad():
                delta = delta + self.alpha * safe_normalize(delta.grad, norm_by_text(delta.grad))
                delta = delta * (self.eps / norm_by_text(delta).clamp(min=self.eps))
        gradients = take_gradients(self.model)
        add_gradients(earlier)
        add_gradients(gradients, 1 / self.steps)


class AWP(Trick):
    """Adversarial weight perturbation: replaces the gradient at the weights w by the gradient at w + v, where
    v = gamma * ||w|| * g / ||g|| for each matrix w with gradient g. Active from epoch `start`.

    Wu et al., 2020 (arXiv:2004.05884). Their gamma of 0.005, for image classifiers trained from scratch, is far too
    large for fine-tuning (benchmarks/RESULTS.md).
    """

    @classmethod
    def build(cls, model: MyModel, config: Config) -> AWP | None:
        start = math.ceil(config.awp_start * config.epochs - 1e-9)
        return cls(model, config.awp_gamma, start) if config.use_awp else None

    def __init__(self, model: MyModel, gamma: float = 0.0002, start: int = 0):
        self.model, self.gamma, self.start, self.on = model, gamma, start, start == 0

    def start_epoch(self) -> int:
        return self.start

    def before_epoch(self, epoch: int) -> None:
        self.on = epoch >= self.start

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        with torch.no_grad():
            saved: list[Any] = [
                (p, p.clone(), p.grad) for p in self.model.parameters() if p.ndim > 1 and p.grad is not None
            ]
            for p, _, grad in saved:
                p += self.gamma * torch.linalg.vector_norm(p) * safe_normalize(grad, torch.linalg.vector_norm(grad))
        try:
            yield
        finally:
            with torch.no_grad():
                for p, before, _ in saved:
                    p.copy_(before)

    def passes(self, batch: Batch) -> Generator[bool, None, None]:
        earlier = take_gradients(self.model) if self.on else []
        yield True
        if self.on:
            with self.perturbed():
                take_gradients(self.model)
                yield False
        add_gradients(earlier)


# ---- consistency regularisation: predictions must not change under noise ---------------------------------------------


class SMART(Trick):
    """Smoothness-inducing regularisation: adds weight * [KL(p || q) + KL(q || p)], where p and q are the model's
    distributions for the word vectors x and for x + r.

    r = r_0 + step * g / ||g|| for each token, where r_0 ~ N(0, sigma^2) and g is the gradient of the divergence with
    respect to r_0. p and q use the same dropout mask and full precision, because half precision cannot represent r.
    Jiang et al., 2020 (arXiv:1911.03437); Miyato et al., Virtual Adversarial Training, 2017 (arXiv:1704.03976).
    """

    switch, options = "use_smart", ("smart_weight",)

    def __init__(self, model: MyModel, weight: float = 1.0, step: float = 1e-3, sigma: float = 1e-5):
        self.model, self.weight, self.step, self.sigma = model, weight, step, sigma
        self.noise = WordNoise(model)

    def wrap_forward(self, forward: Callable[[], MyModelOutput], batch: Batch) -> MyModelOutput:
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"].unsqueeze(2)
        dropout, in_half_precision = random_state(ids.device), torch.is_autocast_enabled(ids.device.type)
        output = forward()
        with torch.autocast(ids.device.type, enabled=False):
            clean = self.forward_with_noise(forward, None, dropout) if in_half_precision else output
            logits = {name: logits.detach() for name, logits in clean.logits.items()}
            fixed = MyModelOutput(logits=logits, counts=clean.counts)
            noise = self.sigma * torch.randn(*ids.shape, self.noise.width, device=ids.device) * mask
            after = random_state(ids.device)
            noisy = self.forward_with_noise(forward, noise.requires_grad_(), dropout)
            (gradient,) = torch.autograd.grad(self.model.divergence(noisy, fixed, batch), noise)
            length = torch.linalg.vector_norm(gradient, dim=2, keepdim=True)
            r = noise.detach() + self.step * safe_normalize(gradient, length)
            noisy = self.forward_with_noise(forward, r, dropout)
            output.total_loss = output.total_loss + self.weight * self.model.divergence(noisy, clean, batch)
        set_random_state(after, ids.device)
        return output

    def forward_with_noise(
        self, forward: Callable[[], MyModelOutput], noise: torch.Tensor | None, dropout: torch.Tensor
    ) -> MyModelOutput:
        """Runs the forward pass with noise on the word vectors. dropout: random state for the dropout mask"""
        set_random_state(dropout, next(self.model.parameters()).device)
        with self.noise.added(noise):
            return forward()


class RDrop(Trick):
    """R-Drop: runs two passes with independent dropout masks. The loss is (loss_1 + loss_2) / 2
    + alpha / 2 * [KL(p_1 || p_2) + KL(p_2 || p_1)].

    Liang et al., 2021 (arXiv:2106.14448), but with the mean of the two losses instead of the sum, so that learning
    rates remain comparable. The divergence is averaged over labels, like the loss; for a CRF, it is between
    distributions over paths.
    """

    switch, options = "use_rdrop", ("rdrop_alpha",)

    def __init__(self, model: MyModel, alpha: float = 1.0):
        require_dropout(model, "--use_rdrop compares two dropout masks")
        self.model, self.alpha = model, alpha

    def wrap_forward(self, forward: Callable[[], MyModelOutput], batch: Batch) -> MyModelOutput:
        first = forward()
        torch.clear_autocast_cache()  # otherwise, the gradients of both passes would be summed in half precision
        second = forward()
        output = mean_output([first, second])
        output.total_loss = output.total_loss + self.alpha / 2 * self.model.divergence(first, second, batch)
        return output


# ---- teachers --------------------------------------------------------------------------------------------------------


class Distillation(MultiTeacher):
    """Knowledge distillation: the loss is (1 - weight) * loss + weight * temperature^2 * KL(teacher || student).

    Both distributions are at the same temperature; for a CRF, they are over whole paths. The divergence is the mean
    over the teachers, which has the same gradient as the divergence from their mean distribution. It is averaged over
    all texts or words with teacher predictions, labelled or not. The loss of tasks without a teacher is unchanged.

    Hinton et al., 2015 (arXiv:1503.02531); Wang et al., Structural Knowledge Distillation, 2020 (arXiv:2010.05010).
    folders: runs or checkpoints of this template, with any encoder and tokenizer.
    """

    @classmethod
    def build(cls, model: MyModel, config: Config) -> Distillation | None:
        folders = [path.strip() for path in config.teacher.split(",") if path.strip()]
        return cls(model, folders, config.teacher_weight, config.temperature) if folders else None

    def __init__(
        self, model: MyModel, folders: Sequence[str | Path] = (), weight: float = 0.5, temperature: float = 1.0
    ):
        super().__init__(model, folders, temperature)
        self.weight = weight

    def wrap_forward(self, forward: Callable[[], MyModelOutput], batch: Batch) -> MyModelOutput:
        output = forward()
        difference = self.divergence(output.logits, batch) - self.loss_of_labels(output.losses)
        output.total_loss = output.total_loss + self.weight * difference
        return output

    def begin(
        self, train_loader: MyDataLoader | MyIterableDataLoader, dev_loader: MyDataLoader, config: Config
    ) -> None:
        if train_loader.dataset.augment and any(self.heads[name].task.needs_words for name in self.taught):
            raise UserError(
                "the teachers label each word as it is in the file, but `augment` changes it; use only one of the two"
            )

        def batches_of(examples: list[dict[str, Any]], featurizer: Featurizer) -> MyDataLoader:
            return MyDataLoader(MyDataset(examples, featurizer, quiet=True), config.eval_batch_size)

        self.run_teachers(train_loader.dataset, load_with_featurizer, batches_of, config)


# ---- learning rates and unfreezing by layer --------------------------------------------------------------------------


class LayerwiseDecay(Trick):
    """Layer-wise learning rate decay: the rate is lr * decay^(n - l) for layer l of n, and lr * decay^n for the
    embeddings. The learning rate of the heads is unchanged.

    Discriminative fine-tuning, Howard and Ruder, 2018 (arXiv:1801.06146), in the form of Clark et al., ELECTRA, 2020.
    """

    @classmethod
    def build(cls, model: MyModel, config: Config) -> LayerwiseDecay | None:
        return cls(model, config.layer_decay) if config.layer_decay < 1 else None

    def __init__(self, model: MyModel, decay: float = 0.9):
        self.decay, self.num_layers = decay, layer_ids(model.encoder)[1]

    def param_groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        def layers_above(group: dict[str, Any]) -> int:
            return max(0, self.num_layers - group["layer"])

        for group in groups:
            group["lr"] *= self.decay ** layers_above(group)
        parts = list(dict.fromkeys(group["part"] for group in groups))
        # The top layer comes first, because the learning rate of the first group is logged
        return sorted(groups, key=lambda group: (parts.index(group["part"]), layers_above(group)))


class GradualUnfreezing(Trick):
    """Gradual unfreezing: trains only the heads in the first epoch, and unfreezes `step` more encoder layers in each
    later epoch, from the top layer down to the embeddings. Howard and Ruder, 2018 (arXiv:1801.06146)."""

    @classmethod
    def build(cls, model: MyModel, config: Config) -> GradualUnfreezing | None:
        if not config.unfreeze_layers:
            return None
        trick = cls(model, config.unfreeze_layers)
        lowest = min((layer for _, layer in trick.layers), default=0)
        if lowest <= trick.num_layers - config.unfreeze_layers * (config.epochs - 1):
            option = f"--unfreeze_layers={config.unfreeze_layers}"
            logger.warning(f"{option}: {config.epochs} epochs are too few to unfreeze the lowest layers")
        return trick

    def __init__(self, model: MyModel, step: int = 1):
        named = {name: p for name, p in model.encoder.named_parameters() if p.requires_grad}
        layers, self.num_layers = layer_ids(model.encoder)
        self.step, self.layers = step, [(p, layers[name]) for name, p in named.items()]

    def before_epoch(self, epoch: int) -> None:
        for p, layer in self.layers:
            p.requires_grad_(layer > self.num_layers - self.step * epoch)


# ---- all tricks ------------------------------------------------------------------------------------------------------

# In order of application
TRICKS: list[type[Trick]] = [Contrast, FGM, PGD, FreeLB, AWP, Distillation, SMART, RDrop]
TRICKS += [EMA, SWA, Soup, LayerwiseDecay, GradualUnfreezing, LabelShift]


def build_tricks(model: MyModel, config: Config) -> Tricks:
    """Builds all tricks that are enabled in the options."""
    return Tricks(trick for trick in (kind.build(model, config) for kind in TRICKS) if trick)
