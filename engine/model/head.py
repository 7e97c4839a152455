"""The base class of all heads. Custom heads are in model_utils.py and implement `forward`, `loss` and `decode`."""

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
    """Returns the ids of tokens such as "<e1>". Raises UserError unless each name is a single known token."""
    ids = [tokenizer.encode(name, add_special_tokens=False) for name in names]
    if wrong := [name for name, pieces in zip(names, ids) if len(pieces) != 1 or tokenizer.unk_token_id in pieces]:
        option = f"--special_tokens '{','.join(names)}'"
        raise UserError(f"{', '.join(wrong)}: not a token of this tokenizer, but a head needs it; add {option}")
    return [token for (token,) in ids]


class Head(nn.Module):
    """The base class of all heads: a linear layer from vectors to logits.

    A custom head implements `loss` and `decode`, and often `forward`. The defaults of the other methods are for labels
    that are class ids, or IGNORE if missing. Override them for other labels, and set `family` for logits of other
    distributions than softmax.
    """

    # What `forward` gets as `vectors`: "text", one vector per text (B, H); "words", one vector per word (B, W, H);
    # "tokens", the hidden states of the encoder (B, L, H), for a head that does its own pooling; or "pair", the vectors
    # of the two texts of a pair, encoded separately (B, 2, H)
    level = "text"
    # tokens that must occur once in each text, such as "<e1>"; their ids are in `self.marker_ids`. See `vector_at`
    markers: tuple[str, ...] = ()
    family: type[Distribution] = Softmax  # the distributions that the logits parametrise
    needs_calibration = False  # whether `calibrate` fits parameters on dev, such as a threshold
    # whether a prediction is a list of (first word, last word, type id), or of four words and a type id for relations,
    # and labels have the format of SpanHead
    finds_spans = False
    first_loss: float | None = None  # approximate loss before training; None: the cross-entropy of random guessing
    compares_rows = False  # whether the loss of a row depends on other rows of the batch, as in contrastive losses
    # in evaluation, the logits of this task (B, W, N) are appended to those of the head (B, W, M); "": none
    reads_task = ""
    # {parameter: N} for parameters that have N blocks with one row per label; the others have one block. See
    # `start_from`
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
        """Whether the head predicts word-level labels, also if it has level "tokens" and pools the words itself."""
        return self.level == "words" or self.task.needs_words

    def forward(self, vectors: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Computes logits, (B, C) or (B, W, C), from vectors, (B, H) or (B, W, H), depending on `level`. inputs: all
        inputs of the batch."""
        return self.linear(vectors)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns the sum, not the mean, of the losses of all labels that are present. -> ()"""
        raise NotImplementedError(f"{type(self).__name__} has no loss(logits, labels, inputs)")

    def decode(self, logits: torch.Tensor, inputs: dict[str, torch.Tensor]) -> tuple[Any, Any]:
        """Returns (predictions, probabilities), each (B,), (B, W) or (B, C), or a list of spans per text. `to_labels`
        gets the predictions and probabilities of one text."""
        raise NotImplementedError(f"{type(self).__name__} has no decode(logits, inputs)")

    def to_labels(self, prediction: Any, probability: Any) -> tuple[Any, Any]:
        """Converts the prediction for one text to (label, probability). prediction, probability: from `decode`, as
        Python values."""
        return self.task.labels[prediction], probability

    def label_mask(self, labels: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns the mask of the labels that have a loss, with the shape of the labels."""
        return labels != IGNORE

    def label_weights(self, labels: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns the weight of each label, with the shape of the labels. The loss is divided by their sum."""
        return self.label_mask(labels, inputs)

    def calibrate(self, logits: Any, labels: Any) -> None:
        """Fits a threshold on dev, if `needs_calibration`. logits, labels: of all texts in dev. Instead of logits, a
        head that finds spans gets (spans, probabilities) per text, with windows merged, and the labels as in the file.
        """

    def read_task(self, name: str) -> None:
        """Called when the model is built, with the name of the task that has the entity types, if there is one. A head
        that needs the logits of that task for decoding sets `reads_task`."""

    def set_tokenizer(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Looks up the ids of `markers` when the model is built, before `set_options`."""
        self.marker_ids = token_ids(tokenizer, self.markers)

    def set_options(self, config: "Config", task_name: str) -> None:
        """Reads the options that this head needs when the model is built."""

    def start_from(self, before: dict[str, torch.Tensor], task: Task, larger: "Head") -> list[str]:
        """Copies the parameters of a head of the same class that was trained for another `task` (--init_from). In
        dimensions with one row per label, it copies the rows of the labels that both tasks have.

        before: {name: tensor} of the other head. larger: this head, built for more labels; the dimensions whose sizes
        differ have one row per label. Returns the names of the parameters that do not match, which are not changed.
        """
        own, grown, fresh = self.state_dict(), larger.state_dict(), []
        sizes = [len(one.nodes) for one in (self.task, task, larger.task)]
        there = {label: row for row, label in enumerate(task.nodes)}
        shared = [(row, there[label]) for row, label in enumerate(self.task.nodes) if label in there]
        # `reads_entities` depends on the tasks of the new model; older checkpoints have no temperature
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
        """Returns the logits at real positions, without padding."""
        return logits[inputs["word_mask"]] if self.by_words else logits

    def hits(self, predictions: Any, probabilities: Any, labels: torch.Tensor) -> tuple[int, int]:
        """Counts (correct predictions, labels) of a batch. A regression value is correct within half a standard
        deviation. predictions, probabilities: from `decode`."""
        numbers = labels.is_floating_point()
        there = ~labels.isnan() if numbers else labels != IGNORE
        right = (predictions - labels).abs() < 0.5 * self.task.std if numbers else predictions == labels
        return int((right & there).sum()), int(there.sum())


class ImbalanceHead(Head):
    """The base class of heads with options for imbalanced labels: label_smoothing (Szegedy et al., 2016), focal_gamma
    (Lin et al., 2017, arXiv:1708.02002: each loss is multiplied by (1 - p)^gamma) and class_weights (C,)."""

    label_smoothing, focal_gamma = 0.0, 0.0

    class_weights: torch.Tensor | None

    def __init__(self, hidden_size: int, task: Task, num_logits: int | None = None):
        super().__init__(hidden_size, task, num_logits)
        self.register_buffer("class_weights", None, persistent=False)

    def balanced_weights(self, counts: torch.Tensor) -> torch.Tensor:
        """Returns the weights for --class_weights balanced, (C,). counts: label counts in train, (C,)"""
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
            # Labels are counted on the CPU, before they are moved to the GPU
            self.class_weights_on_host = self.class_weights.numpy().copy()


def paths_of(task: Task) -> torch.Tensor:
    """Returns, for each label, the indices in `task.nodes` of the nodes on its path from the top, padded with the
    number of nodes. -> (C, depth)"""
    number = {node: i for i, node in enumerate(task.nodes)}
    paths = [torch.tensor([number[node] for node in nodes_on(label, task.hierarchy)]) for label in task.labels]
    return nn.utils.rnn.pad_sequence(paths, batch_first=True, padding_value=len(number))


class TaskDict(nn.ModuleDict):
    """A ModuleDict that also accepts names reserved by torch, such as "type" or "items"."""

    def add_module(self, name: str, module: Any) -> None:
        self._modules[name] = module

    def __setattr__(self, name: str, value: Any) -> None:
        # `train` and `eval` set the attribute `training`, which must not interfere with a task named "training"
        object.__setattr__(self, name, value)
