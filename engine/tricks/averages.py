"""Weight averaging with formulas and papers: EMA, SWA and model soups.

The averaged weights are evaluated on dev and saved in the best checkpoint. Training continues with the original
weights.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from engine.run.device import has_double
from engine.train.optimization import steps_per_epoch, warmup_steps
from engine.tricks.trick import Trick

logger = logging.getLogger("template")


class Average(Trick):
    """Base class: maintains an average of the trained weights, which is evaluated but not trained."""

    def __init__(self, model: torch.nn.Module):
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        device = next(model.parameters()).device
        # the number of terms in the average
        self.count = torch.zeros((), dtype=torch.float64 if has_double(device.type) else torch.float32, device=device)

    @torch.no_grad()
    def update(self, share: torch.Tensor) -> None:
        """Updates average <- average + share * (weights - average). share: ()."""
        for name, p in self.parameters.items():
            self.average[name].lerp_(p, share.to(p.dtype))

    def swap_weights(self) -> AbstractContextManager[None]:
        return self.swapped(self.average if self.count > 0 else {})

    @contextmanager
    def swapped(self, weights: dict[str, torch.Tensor]) -> Iterator[None]:
        """Context manager that temporarily replaces weights of the model. weights: {name: tensor}"""
        swapped = [(self.parameters[name], weight) for name, weight in weights.items()]
        own = [p.data for p, _ in swapped]
        for p, weight in swapped:
            p.data = weight
        try:
            yield
        finally:
            for (p, _), data in zip(swapped, own):
                p.data = data

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"count": self.count} | {f"average.{name}": average for name, average in self.average.items()}

    def load_state_dict(self, tensors: dict[str, torch.Tensor]) -> None:
        self.count.copy_(tensors["count"])
        for name, average in self.average.items():
            average.copy_(tensors[f"average.{name}"])


class EMA(Average):
    """Exponential moving average: a <- beta * a + (1 - beta) * w after each step, divided by 1 - beta^t (Adam's bias
    correction). After t steps, it is sum_i beta^(t-i) * w_i / sum_i beta^(t-i); it excludes the initial weights.

    Polyak and Juditsky, 1992; Kingma and Ba, 2015 (arXiv:1412.6980), section 7.2.
    """

    switch, options = "use_ema", ("ema_decay",)

    def __init__(self, model: torch.nn.Module, decay: float = 0.99):
        super().__init__(model)
        self.decay = decay

    def after_step(self, finite: torch.Tensor) -> None:
        self.count += finite
        share = (1 - self.decay) / (1 - self.decay ** self.count.clamp(min=1))
        self.update(torch.where(finite, share, 0.0))


class SWA(Average):
    """Stochastic weight averaging: a <- (n * a + w) / (n + 1) after each of the last epochs, in which the learning rate
    is constant. Izmailov et al., 2018 (arXiv:1803.05407)."""

    @classmethod
    def build(cls, model: torch.nn.Module, config: Any) -> "SWA | None":
        return cls(model, config.swa_start * config.epochs) if config.use_swa else None

    def __init__(self, model: torch.nn.Module, start: float = 0):
        super().__init__(model)
        self.start, self.last, self.first_step = start, -1, math.inf

    def begin(self, train_loader: Any, dev_loader: Any, config: Any) -> None:
        steps = steps_per_epoch(len(train_loader), config)
        self.first_step = max(warmup_steps(config, steps), round(config.swa_start * max(1, config.epochs * steps)))

    def rate_held_from(self) -> float:
        return self.first_step

    def start_epoch(self) -> int:
        return math.floor(self.start)

    def after_epoch(self, epoch: int) -> None:
        if epoch + 1 > self.start and epoch > self.last:
            self.count, self.last = self.count + 1, epoch
            self.update(1 / self.count)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return super().state_dict() | {"last": torch.tensor(self.last)}

    def load_state_dict(self, tensors: dict[str, torch.Tensor]) -> None:
        super().load_state_dict(tensors)
        self.last = int(tensors["last"])


class Soup(Average):
    """Greedy model soup: averages the weights of the epochs that do not lower its dev score.

    After an epoch with weights w, compares three candidates on dev, where s is the soup of n epochs: the larger soup
    (n * s + w) / (n + 1); w, which starts a new soup; and s. Ties go to the first of them. This takes a copy of the
    weights, a second copy during the evaluation, and two more evaluations per epoch.

    Wortsman et al., 2022 (arXiv:2203.05482), applied to the epochs of one run in chronological order. The paper adds
    models in order of their scores, which would require the weights of all epochs.
    """

    switch = "use_soup"

    def __init__(self, model: torch.nn.Module):
        super().__init__(model)
        self.score, self.last = math.nan, -1  # NaN is worse than any number

    @torch.no_grad()
    def choose_weights(self, epoch: int, score: Callable[[], float], is_better: Callable[[float, float], bool]) -> None:
        if epoch <= self.last:
            return
        alone, share = score(), 1 / (self.count + 1)
        mixed = {name: self.average[name].lerp(p, share.to(p.dtype)) for name, p in self.parameters.items()}
        with self.swapped(mixed):
            together = score() if self.count > 0 else alone
        if not is_better(alone, together) and not is_better(self.score, together):
            self.average, self.count, self.score = mixed, self.count + 1, together
        elif is_better(alone, self.score):
            self.average = {name: p.clone() for name, p in self.parameters.items()}
            self.count, self.score = torch.ones_like(self.count), alone
        self.last = epoch
        epochs = f"{int(self.count)} epochs" if self.count > 1 else "one epoch"
        logger.info(f"soup of {epochs}, dev {self.score:.4f} (this epoch alone {alone:.4f}, with it {together:.4f})")

    def state_dict(self) -> dict[str, torch.Tensor]:
        own = {"score": torch.tensor(self.score, dtype=torch.float64), "last": torch.tensor(self.last)}
        return super().state_dict() | own

    def load_state_dict(self, tensors: dict[str, torch.Tensor]) -> None:
        super().load_state_dict(tensors)
        self.score, self.last = float(tensors["score"]), int(tensors["last"])
