"""The base class of training tricks, and a list of tricks with the same hooks."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Trick:
    """Base class of tricks. The hooks do nothing by default; override the ones you need. batch: data_loader.Batch."""

    switch = ""  # the option that enables the trick
    options: tuple[str, ...] = ()  # the options passed to __init__ after the model

    @classmethod
    def build(cls: Any, model: Any, config: Any) -> Trick | None:
        """Creates the trick from the options; returns None if it is disabled."""
        if not getattr(config, cls.switch):
            return None
        return cls(model, *(getattr(config, name) for name in cls.options))

    def start_epoch(self) -> int:
        """Returns the first epoch in which the trick is active; early stopping starts counting there."""
        return 0

    def param_groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns the parameter groups to use instead of `groups`."""
        return groups

    def begin(self, train_loader: Any, dev_loader: Any, config: Any) -> None:
        """Called once after the data is loaded, before a run is resumed. Must not use random numbers."""

    def before_step(self, group: list) -> None:
        """Called before each optimizer step. group: its micro-batches, as yielded by the loader."""

    def before_epoch(self, epoch: int) -> None:
        """Called before each epoch, and again when a run resumes in the middle of it. epoch: zero-based."""

    def wrap_forward(self, forward: Callable[[], Any], batch: Any) -> Any:
        """Runs the forward pass of a micro-batch. Returns the MyModelOutput whose total_loss is backpropagated.

        forward() -> MyModelOutput.
        """
        return forward()

    def passes(self, batch: Any) -> Generator[bool, None, None]:
        """Yields once for each forward and backward pass of a micro-batch: True if the losses of the pass are logged.

        The gradients of all passes accumulate. Code after a `yield` runs when the pass has finished or failed.
        """
        yield True

    def rate_held_from(self) -> float:
        """Returns the step from which the learning rate is constant."""
        return math.inf

    def after_step(self, finite: torch.Tensor) -> None:
        """Called after an optimizer step. finite: (), False if the step was skipped."""

    def after_epoch(self, epoch: int) -> None:
        """Called after each epoch, before the evaluation on dev, and again when a run resumes in that evaluation."""

    def choose_weights(self, epoch: int, score: Callable[[], float], is_better: Callable[[float, float], bool]) -> None:
        """Called after `after_epoch`, for tricks that choose the weights for `swap_weights` by their dev score.

        score() -> score of --monitor on dev with the model's current weights; is_better(new, old) -> bool.
        """

    def swap_weights(self) -> AbstractContextManager[None]:
        """Returns a context manager in which the model has the weights that are evaluated and saved as the best."""
        return nullcontext()

    def adapt_to_dev(self, logits_of_dev: Callable[[], dict[str, Any]]) -> None:
        """Called within `swap_weights`, before the evaluation on dev, for tricks that adapt these weights to dev.

        logits_of_dev() -> {task: (logits, labels)} for all of dev, with the current weights, on the CPU, for tasks with
        text-level labels.
        """

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Returns all state that later steps depend on, as {name: tensor}."""
        return {}

    def load_state_dict(self, tensors: dict[str, torch.Tensor]) -> None:
        pass


class Tricks(list[Trick]):
    """A list of tricks. Calling a hook calls the hook of each trick, in order."""

    def start_epoch(self) -> int:
        return max((trick.start_epoch() for trick in self), default=0)

    def rate_held_from(self) -> float:
        return min((trick.rate_held_from() for trick in self), default=math.inf)

    def param_groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for trick in self:
            groups = trick.param_groups(groups)
        return groups

    def begin(self, train_loader: Any, dev_loader: Any, config: Any) -> None:
        for trick in self:
            trick.begin(train_loader, dev_loader, config)

    def before_step(self, group: list) -> None:
        for trick in self:
            trick.before_step(group)

    def change_gradients(self) -> bool:
        """Returns whether a trick adds forward or backward passes, or changes which parameters are trained."""
        hooks = ("wrap_forward", "passes", "before_epoch")
        return any(getattr(type(trick), hook) is not getattr(Trick, hook) for trick in self for hook in hooks)

    def before_epoch(self, epoch: int) -> None:
        for trick in self:
            trick.before_epoch(epoch)

    def forward(self, forward: Callable[[], Any], batch: Any) -> Any:
        """Runs the forward pass wrapped by all tricks; later tricks wrap earlier ones."""
        for trick in self:
            if type(trick).wrap_forward is not Trick.wrap_forward:
                forward = partial(trick.wrap_forward, forward, batch)
        return forward()

    def passes(self, batch: Any) -> Generator[bool, None, None]:
        """Yields the nested passes of all tricks: each pass of a later trick runs all passes of the earlier ones."""
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

    def adapt_to_dev(self, logits_of_dev: Callable[[], dict[str, Any]]) -> None:
        for trick in self:
            trick.adapt_to_dev(logits_of_dev)

    def state_dict(self) -> dict[str, torch.Tensor]:
        states = {type(trick).__name__: trick.state_dict() for trick in self}
        return {f"{kind}.{name}": tensor for kind, state in states.items() for name, tensor in state.items()}

    def load_state_dict(self, tensors: dict[str, torch.Tensor]) -> None:
        for trick in self:
            prefix = f"{type(trick).__name__}."
            own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            trick.load_state_dict(own)
