"""The base class of all heads. A custom head, in model_utils.py, implements `forward`, `loss` and `decode`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from engine.errors import UserError
from engine.model.distributions import Distribution, Softmax
from engine.task.hierarchy import nodes_on
from engine.task.task import IGNORE, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from config import Config

TEMPERATURE, READS_ENTITIES = "temperature", "reads_entities"  # names of buffers
SINCE = {TEMPERATURE: 1.0, READS_ENTITIES: 0.0}  # {buffer that older checkpoints lack: its value for them}
LEVELS = ("text", "words", "tokens", "pair")


def token_ids(tokenizer: "PreTrainedTokenizerBase", names: Sequence[str]) -> list[int]:
    """The ids of tokens such as "<e1>". Raises UserError unless the tokenizer reads each name as one known token."""
    ids = [tokenizer.encode(name, add_special_tokens=False) for name in names]
    if wrong := [name for name, pieces in zip(names, ids) if len(pieces) != 1 or tokenizer.unk_token_id in pieces]:
        needed = f"--special_tokens '{','.join(names)}'"
        raise UserError(f"{', '.join(wrong)}: not a token of this tokenizer, but a head reads it; add {needed}")
    return [token for (token,) in ids]


class Head(nn.Module):
    """The base class of all heads: a linear layer from vectors to logits.

    A custom head implements `loss` and `decode`, and often `forward`. The other methods suit labels that are class ids,
    IGNORE if unlabelled; override those that differ, and name the `family` if it is not Softmax.
    """

    # The input `vectors`: "text", one vector per text (B, H); "words", one vector per word (B, W, H); "tokens", the
    # encoder's hidden states (B, L, H) unchanged, for a head that does its own pooling; or "pair", the vectors of both
    # texts of a pair, encoded separately (B, 2, H)
    level = "text"
    # tokens that each text must have once, such as "<e1>"; `self.marker_ids` has their ids. See `vector_at`
    markers: tuple[str, ...] = ()
    family: type[Distribution] = Softmax  # the distributions that the logits parametrise
    needs_calibration = False  # whether `calibrate` fits something on dev, such as a threshold
    # whether answers are lists of (first word, last word, type id) or, for relations, with four words, and labels have
    # the format of SpanHead
    finds_spans = False
    first_loss: float | None = None  # approximate loss before training; None: cross-entropy of random guessing
    compares_rows = False  # whether the loss of a row depends on the other rows of its batch, as in contrastive losses
    # the task whose logits (B, W, N) are appended to the head's own (B, W, M); "": none. See OutputLayer
    reads_task = ""
    # {parameter: N}: parameters with N rows per label, in N blocks of all labels; other parameters have one block (see
    # `start_from`)
    rows_per_label: ClassVar[dict[str, int]] = {}

    temperature: torch.Tensor

    def __init__(self, hidden_size: int, task: Task, num_logits: int | None = None):
        super().__init__()
        assert self.level in LEVELS, f"{type(self).__name__}.level is {self.level!r}; it must be one of {LEVELS}"
        self.task, self.distribution = task, self.family(self)
        self.linear = nn.Linear(hidden_size, num_logits or len(task.labels))
        self.register_buffer(TEMPERATURE, torch.ones(()))  # divides logits before probabilities (temperature.py)

    @property
    def by_words(self) -> bool:
        """Whether the head has labels per word. So can a head of level "tokens", if it pools words itself."""
        return self.level == "words" or self.task.needs_words

    def forward(self, vectors: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """(B, H) or (B, W, H), depending on `level` -> logits, with C in place of H. inputs: the whole batch."""
        return self.linear(vectors)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Sum, not mean, of the losses of all existing labels. -> ()"""
        raise NotImplementedError(f"{type(self).__name__} has no loss(logits, labels, inputs)")

    def decode(self, logits: torch.Tensor, inputs: dict[str, torch.Tensor]) -> tuple[Any, Any]:
        """(answers, their probabilities), each (B,), (B, W) or (B, C), or lists of spans: the input of `to_labels`."""
        raise NotImplementedError(f"{type(self).__name__} has no decode(logits, inputs)")

    def to_labels(self, answer: Any, probability: Any) -> tuple[Any, Any]:
        """(label, probability) of one text, from its part of the output of `decode`, as Python values."""
        return self.task.labels[answer], probability

    def label_mask(self, labels: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mask of the labels that have a loss, in the labels' shape."""
        return labels != IGNORE

    def label_weights(self, labels: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The weight of each label in the loss, in the labels' shape; `loss` is divided by their sum."""
        return self.label_mask(labels, inputs)

    def calibrate(self, logits: Any, labels: Any) -> None:
        """Fits a threshold on dev, if `needs_calibration`. logits, labels: for all of dev. A head that finds spans gets
        (spans, probabilities) of each text, with its windows merged, and the texts' labels as in the file."""

    def read_task(self, name: str) -> None:
        """Called once, when the model is built, with the name of the task that has the types of the labels, if there is
        one. A head that needs the logits of that task, appended to its own, sets `reads_task`."""

    def set_tokenizer(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Looks up the ids of `markers`; called once, when the model is built, before `set_options`."""
        self.marker_ids = token_ids(tokenizer, self.markers)

    def set_options(self, config: "Config", task_name: str) -> None:
        """Reads the options that this head needs; called once, when the model is built."""

    def start_from(self, before: dict[str, torch.Tensor], task: Task, larger: "Head") -> list[str]:
        """--init_from: copies the parameters of a head of the same kind, trained for another `task`. In a dimension
        with one row per label, it copies the rows of the labels that both tasks have.

        before: {name: tensor} of the other head. larger: this head, built for more labels, to find these dimensions:
        their sizes differ. Returns the names of parameters that do not fit and keep their initial values.
        """
        own, grown, fresh = self.state_dict(), larger.state_dict(), []
        sizes = [len(one.nodes) for one in (self.task, task, larger.task)]
        there = {label: row for row, label in enumerate(task.nodes)}
        shared = [(row, there[label]) for row, label in enumerate(self.task.nodes) if label in there]
        # the new head decides for itself which task it reads; older checkpoints have no temperature
        before = {TEMPERATURE: own[TEMPERATURE]} | before | {n: own[n] for n in (READS_ENTITIES,) if n in own}
        for name, tensor in own.items():
            number, shape, rows = self.rows_per_label.get(name, 1), [], []
            for size, large in zip(tensor.shape, grown[name].shape):
                if size == large:
                    shape.append(size)
                    rows.append([(row, row) for row in range(size)])
                elif (size, large) == (number * sizes[0], number * sizes[2]):
                    shape.append(number * sizes[1])
                    rows.append([(a + i * sizes[0], b + i * sizes[1]) for i in range(number) for a, b in shared])
            if name not in before or list(before[name].shape) != shape or len(shape) < tensor.ndim:
                fresh.append(name)
                continue
            new, old = (np.ix_(*([pair[side] for pair in pairs] for pairs in rows)) for side in (0, 1))
            own[name] = tensor.clone()
            own[name][new] = before[name][old].to(tensor.dtype)
        self.load_state_dict(own)
        return fresh

    def real_logits(self, logits: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The logits of real texts and words, without padding."""
        return logits[inputs["word_mask"]] if self.by_words else logits

    def hits(self, answers: Any, probabilities: Any, labels: torch.Tensor) -> tuple[int, int]:
        """(number of a batch's labels that the answers of `decode` match, number of labels); a regression value matches
        within half a standard deviation."""
        numbers = labels.is_floating_point()
        there = ~labels.isnan() if numbers else labels != IGNORE
        right = (answers - labels).abs() < 0.5 * self.task.std if numbers else answers == labels
        return int((right & there).sum()), int(there.sum())


class ImbalanceHead(Head):
    """Base class of heads with options for imbalanced labels: label_smoothing (Szegedy et al., 2016), focal_gamma (Lin
    et al., 2017, arXiv:1708.02002: each loss times (1 - p)^gamma) and class_weights (C,)."""

    label_smoothing, focal_gamma = 0.0, 0.0

    class_weights: torch.Tensor | None

    def __init__(self, hidden_size: int, task: Task, num_logits: int | None = None):
        super().__init__(hidden_size, task, num_logits)
        self.register_buffer("class_weights", None, persistent=False)

    def balanced_weights(self, counts: torch.Tensor) -> torch.Tensor:
        """The weights of --class_weights balanced, from the labels' counts in train. (C,) -> (C,)"""
        raise NotImplementedError

    def set_options(self, config: "Config", task_name: str) -> None:
        self.label_smoothing, self.focal_gamma = config.label_smoothing, config.focal_gamma
        if config.class_weights == "balanced":
            if self.task.counts is None:
                raise UserError(
                    f"--class_weights: labels.json has no counts for {task_name!r}; "
                    "create the folder again with data_process.py"
                )
            counts = torch.tensor(self.task.counts, dtype=torch.float32).clamp(min=1)
            self.class_weights = self.balanced_weights(counts)
            # with a GPU, labels are counted before they are moved there
            self.class_weights_on_host = self.class_weights.numpy().copy()


def paths_of(task: Task) -> torch.Tensor:
    """For each label, the indices in `task.nodes` of the nodes on its path, from the top, padded with the number of
    nodes. -> (C, depth)"""
    number = {node: i for i, node in enumerate(task.nodes)}
    paths = [torch.tensor([number[node] for node in nodes_on(label, task.hierarchy)]) for label in task.labels]
    return nn.utils.rnn.pad_sequence(paths, batch_first=True, padding_value=len(number))


class TaskDict(nn.ModuleDict):
    """A ModuleDict that accepts task names such as 'type' or 'items', which torch reserves."""

    def add_module(self, name: str, module: Any) -> None:
        self._modules[name] = module

    def __setattr__(self, name: str, value: Any) -> None:
        # `train` and `eval` set the attribute `training`; a task of that name must not interfere
        object.__setattr__(self, name, value)
