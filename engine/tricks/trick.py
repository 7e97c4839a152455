"""The hooks that a training trick may override, and several tricks as one."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Trick:
    """Base class of tricks. The hooks do nothing; override those you need. batch: data_loader.Batch."""

    switch = ""  # the option that switches it on
    options: tuple[str, ...] = ()  # the options that are its arguments, after the model

    @classmethod
    def build(cls: Any, model: Any, config: Any) -> Trick | None:
        """The trick, built from the options, or None if they do not switch it on."""
        if not getattr(config, cls.switch):
            return None
        return cls(model, *(getattr(config, name) for name in cls.options))

    def start_epoch(self) -> int:
        """The number of epochs before the trick acts; early stopping counts from then."""
        return 0

    def param_groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer -> the groups to use instead."""
        return groups

    def begin(self, train_loader: Any, config: Any) -> None:
        """Called once the training data is known, before a run is resumed. Must not draw random numbers."""

    def before_step(self, group: list) -> None:
        """Called before the micro-batches of an optimizer step. group: their Batches, as the loader yields them."""

    def before_epoch(self, epoch: int) -> None:
        """Called before each epoch, and again when a run resumes within it. epoch: 0 for the first."""

    def wrap_forward(self, forward: Callable[[], Any], batch: Any) -> Any:
        """Runs the forward pass of a micro-batch. forward() -> MyModelOutput, whose total_loss is differentiated."""
        return forward()

    def passes(self, batch: Any) -> Generator[bool, None, None]:
        """Yields once for each forward and backward pass of a micro-batch: whether its losses are logged.

        The gradients of all passes accumulate. Code after a `yield` runs when that pass is done, or has failed.
        """
        yield True

    def rate_held_from(self) -> float:
        """The step from which the learning rate is constant."""
        return math.inf

    def after_step(self, finite: torch.Tensor) -> None:
        """Called after an optimizer step. finite: (), whether it changed the weights."""

    def after_epoch(self, epoch: int) -> None:
        """Called before dev is scored, and again if a run was interrupted while scoring."""

    def choose_weights(self, epoch: int, score: Callable[[], float], is_better: Callable[[float, float], bool]) -> None:
        """Called after `after_epoch`, and repeated like it, for a trick that chooses on dev the weights to swap in.

        score() -> the monitored score of dev with the model's current weights. is_better(new, old) compares two such
        scores.
        """

    def swap_weights(self) -> AbstractContextManager[None]:
        """A context in which the model has the weights to score and to save as the best."""
        return nullcontext()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """{name: tensor} of all state that the next step depends on."""
        return {}

    def load_state_dict(self, tensors: dict[str, torch.Tensor]) -> None:
        pass


class Tricks(list[Trick]):
    """A list of tricks with the interface of one, for the trainer."""

    def start_epoch(self) -> int:
        return max((trick.start_epoch() for trick in self), default=0)

    def rate_held_from(self) -> float:
        return min((trick.rate_held_from() for trick in self), default=math.inf)

    def param_groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for trick in self:
            groups = trick.param_groups(groups)
        return groups

    def begin(self, train_loader: Any, config: Any) -> None:
        for trick in self:
            trick.begin(train_loader, config)

    def before_step(self, group: list) -> None:
        for trick in self:
            trick.before_step(group)

    def change_gradients(self) -> bool:
        """Whether any trick adds forward or backward passes, or trains other parameters from epoch to epoch."""
        hooks = ("wrap_forward", "passes", "before_epoch")
        return any(getattr(type(trick), hook) is not getattr(Trick, hook) for trick in self for hook in hooks)

    def before_epoch(self, epoch: int) -> None:
        for trick in self:
            trick.before_epoch(epoch)

    def forward(self, forward: Callable[[], Any], batch: Any) -> Any:
        """The forward pass, wrapped by each trick: a later one wraps those before it."""
        *inner, outer = self
        return outer.wrap_forward(partial(Tricks(inner).forward, forward, batch) if inner else forward, batch)

    def passes(self, batch: Any) -> Generator[bool, None, None]:
        """The forward and backward passes of a micro-batch: each pass of a later trick runs all passes of the tricks
        before it."""
        if not self:
            yield True
            return
        *inner, outer = self
        with closing(outer.passes(batch)) as passes:
            for is_logged in passes:
                with closing(Tricks(inner).passes(batch)) as inner_passes:
                    for inner_is_logged in inner_passes:
                        yield is_logged and inner_is_logged

    def after_step(self, finite: torch.Tensor) -> None:
        for trick in self:
            trick.after_step(finite)

    def after_epoch(self, epoch: int) -> None:
        for trick in self:
            trick.after_epoch(epoch)

    def choose_weights(self, epoch: int, score: Callable[[], float], is_better: Callable[[float, float], bool]) -> None:
        for trick in self:
            trick.choose_weights(epoch, score, is_better)

    @contextmanager
    def swap_weights(self) -> Iterator[None]:
        with ExitStack() as stack:
            for trick in self:
                stack.enter_context(trick.swap_weights())
            yield

    def state_dict(self) -> dict[str, torch.Tensor]:
        states = {type(trick).__name__: trick.state_dict() for trick in self}
        return {f"{kind}.{name}": tensor for kind, state in states.items() for name, tensor in state.items()}

    def load_state_dict(self, tensors: dict[str, torch.Tensor]) -> None:
        for trick in self:
            prefix = f"{type(trick).__name__}."
            own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            trick.load_state_dict(own)
