"""The hooks that a training trick may override, and several tricks as one."""

from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial


class Trick:
    """What a trick may change. The hooks do nothing; override those you need. batch: data_loader.Batch."""

    switch = ""  # the option that switches it on
    options = ()  # the options that are its arguments, after the model

    @classmethod
    def build(cls, model, config):
        """The trick as the options say, or None if they do not ask for it."""
        if not getattr(config, cls.switch):
            return None
        return cls(model, *(getattr(config, name) for name in cls.options))

    def start_epoch(self):
        """How many epochs pass before it acts; early stopping counts from then."""
        return 0

    def param_groups(self, groups):
        """Parameter groups for the optimizer -> what they shall be instead."""
        return groups

    def begin(self, train_loader, config):
        """Once the training data are known, before a run is resumed. Must draw no random number."""

    def before_step(self, group):
        """Before the micro-batches of an optimizer step. group: their Batches, as the loader gave them."""

    def before_epoch(self, epoch):
        """epoch: 0 for the first; called again when a run resumes within it."""

    def wrap_forward(self, forward, batch, exact=False):
        """The forward pass of a micro-batch. forward(exact=False) -> MyModelOutput, of whose total_loss the gradient is
        taken.

        exact: without autocast. Must be passed on.
        """
        return forward(exact=exact)

    def wrap_backward(self, forward_backward, batch):
        """The gradient of a micro-batch. forward_backward() adds it to the gradients and returns its MyModelOutput."""
        return forward_backward()

    def after_step(self, finite):
        """After an optimizer step. finite: (), whether it changed the weights."""

    def after_epoch(self, epoch):
        """Before dev is scored; called again if a run was interrupted while scoring."""

    def choose_weights(self, epoch, score, is_better):
        """After `after_epoch`, for a trick that chooses by dev what `swap_weights` gives; likewise called again.

        score() -> the monitored score of dev with the weights that the model has then. is_better(new, old): of two
        such scores.
        """

    def swap_weights(self):
        """A context in which the model has the weights that are to be scored and kept as the best."""
        return nullcontext()

    def state_dict(self):
        """{name: tensor} of all that the next step depends on."""
        return {}

    def load_state_dict(self, tensors):
        pass


class Tricks(list):
    """Several tricks as one, as the trainer sees them."""

    def start_epoch(self):
        return max((trick.start_epoch() for trick in self), default=0)

    def param_groups(self, groups):
        for trick in self:
            groups = trick.param_groups(groups)
        return groups

    def begin(self, train_loader, config):
        for trick in self:
            trick.begin(train_loader, config)

    def before_step(self, group):
        for trick in self:
            trick.before_step(group)

    def change_gradients(self):
        """Whether one takes more than the usual pass, or other parameters from epoch to epoch."""
        hooks = ("wrap_forward", "wrap_backward", "before_epoch")
        return any(getattr(type(trick), hook) is not getattr(Trick, hook) for trick in self for hook in hooks)

    def before_epoch(self, epoch):
        for trick in self:
            trick.before_epoch(epoch)

    def forward_backward(self, forward, backward, batch, label_counts):
        """What the trainer does without tricks, forward, then backward, wrapped by each."""
        step = partial(self.innermost, partial(forward, batch, label_counts), backward, batch)
        for trick in self:
            step = partial(trick.wrap_backward, step, batch)
        return step()

    def innermost(self, forward, backward, batch):
        for trick in self:
            forward = partial(trick.wrap_forward, forward, batch)
        output = forward()
        backward(output)
        return output

    def after_step(self, finite):
        for trick in self:
            trick.after_step(finite)

    def after_epoch(self, epoch):
        for trick in self:
            trick.after_epoch(epoch)

    def choose_weights(self, epoch, score, is_better):
        for trick in self:
            trick.choose_weights(epoch, score, is_better)

    @contextmanager
    def swap_weights(self):
        with ExitStack() as stack:
            for trick in self:
                stack.enter_context(trick.swap_weights())
            yield

    def state_dict(self):
        states = {type(trick).__name__: trick.state_dict() for trick in self}
        return {f"{kind}.{name}": tensor for kind, state in states.items() for name, tensor in state.items()}

    def load_state_dict(self, tensors):
        for trick in self:
            prefix = f"{type(trick).__name__}."
            own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            trick.load_state_dict(own)
