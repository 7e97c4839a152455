"""The base class of all heads. A custom head, in model_utils.py, implements `forward`, `loss` and `decode`."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from engine.errors import UserError
from engine.task.tags import IGNORE

LEVELS = ("text", "words", "tokens")


class Head(nn.Module):
    """The base class of all heads: a linear layer from vectors to logits.

    A custom head must implement `forward`, `loss` and `decode`. The defaults of the other methods suit labels that are
    class ids, IGNORE where there is none, and logits that softmax turns into a distribution; override those that
    differ.
    """

    # What `vectors` are: "text", one vector per text (B, H); "words", one vector per word (B, W, H); or "tokens", the
    # encoder's hidden states (B, L, H) unchanged, for a head that does its own pooling
    level = "text"
    needs_calibration = False  # whether `calibrate` sets something on dev
    # whether answers are lists of (first word, last word, type id), and labels are in the format of SpanHead
    finds_spans = False
    first_loss: float | None = None  # approximate loss before training; None: that of guessing, as for a cross-entropy
    compares_rows = False  # whether the loss of a row depends on the other rows of its batch, as contrastive losses do

    def __init__(self, hidden_size: int, task: dict[str, Any], num_logits: int | None = None):
        super().__init__()
        assert self.level in LEVELS, f"{type(self).__name__}.level is {self.level!r}; it must be one of {LEVELS}"
        self.task = task
        self.linear = nn.Linear(hidden_size, num_logits or len(task["labels"]))

    def forward(self, vectors: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """(B, H) or (B, W, H), depending on `level` -> logits, with C in place of H. inputs: the whole batch."""
        return self.linear(vectors)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Sum, not mean, of the losses of the labels that exist. -> ()"""
        raise NotImplementedError(f"{type(self).__name__} has no loss(logits, labels, inputs)")

    def decode(self, logits: torch.Tensor, inputs: dict[str, torch.Tensor]) -> tuple[Any, Any]:
        """(answers, their probabilities), each (B,), (B, W) or (B, C), or lists of spans: the input of `to_labels`."""
        raise NotImplementedError(f"{type(self).__name__} has no decode(logits, inputs)")

    def to_labels(self, answer: Any, probability: Any) -> tuple[Any, Any]:
        """(label, probability) of one text, from its part of the output of `decode`, as Python values."""
        return self.task["labels"][answer], probability

    def label_mask(self, labels: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Which labels have a loss, in the labels' shape."""
        return labels != IGNORE

    def label_weights(self, labels: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The weight of each label in the loss, in the labels' shape; `loss` is divided by their sum."""
        return self.label_mask(labels, inputs)

    def calibrate(self, logits: Any, labels: Any) -> None:
        """Sets something on dev, if `needs_calibration`. logits, labels: of all of dev; for a head that finds spans
        (spans, probabilities) of each text, with its windows merged, and the texts' labels as in the file."""

    def set_options(self, config: Any, task_name: str) -> None:
        """Reads the options that this head needs; called once, when the model is built."""

    def expected_statistics(self, logits: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The gradient of the distribution's log normaliser w.r.t. its logits: for a softmax, the probabilities."""
        return logits.softmax(-1)

    def divergence(
        self, first: torch.Tensor, second: torch.Tensor, labels: torch.Tensor, inputs: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """KL(p || q) + KL(q || p) of the distributions of two logits, summed over labelled positions.

        It is <statistics_p - statistics_q, logits_p - logits_q>, as in any exponential family (Amari, Information
        Geometry and Its Applications, 2016).
        """
        statistics = self.expected_statistics(first, inputs) - self.expected_statistics(second, inputs)
        products = statistics * (first - second)
        weights = self.label_weights(labels, inputs)
        return (products * weights.view(*weights.shape, *[1] * (products.ndim - weights.ndim))).sum()

    # What a student learns from a teacher (engine/tricks/soft_targets.py), and its distillation loss
    wants_pairs = False  # whether it also learns from pairs of tags
    numbers_a_word = 0  # by how much the indices of its statistics rise from word to word
    least = 1e-5  # lower probabilities of a teacher are not stored

    def natural(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits as the parameters of a distribution per word, (B, W, N), with W = 1 for labels of whole texts."""
        return logits.reshape(len(logits), logits.shape[1] if self.level == "words" else 1, -1)

    def log_normalizers(self, scores: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The log normalisers of the distributions with `natural` scores: (B, W, N) -> (B, W)."""
        return scores.logsumexp(2)

    def statistics(self, scores: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The gradient of `log_normalizers`, (B, W, N): the expected statistics under the distribution."""
        return scores.softmax(2)

    def teach(
        self, logits: torch.Tensor, inputs: dict[str, torch.Tensor], temperature: float, pairs: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """What a teacher stores for logits / temperature: (statistics (B, W, N), entropies (B, W), and with `pairs` of
        tags `before` (B, W, C), see soft_targets.py, otherwise None)."""
        scores = self.natural(logits) / temperature
        statistics = self.statistics(scores, inputs)
        entropies = self.log_normalizers(scores, inputs) - (statistics * scores).sum(2)
        return statistics, entropies, statistics if pairs else None

    def num_taught(self, targets: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """How many texts or words teachers answered, (); `distillation` is divided by it. targets: SoftTargets"""
        return targets.taught.sum()

    def distillation(
        self, logits: torch.Tensor, targets: Any, inputs: dict[str, torch.Tensor], temperature: float
    ) -> torch.Tensor:
        """temperature^2 * mean over teachers of KL(teacher || student) at that temperature, summed over all texts
        or words that they answered. -> ()

        It is A(student) - <statistics of the teacher, student> - entropy of the teacher; A is the log normaliser.
        """
        scores = self.natural(logits) / temperature
        _, rows, words, numbers = targets.places
        expected = (scores[rows, words, numbers + words * self.numbers_a_word] * targets.values).sum()
        normalizers = (self.log_normalizers(scores, inputs) * targets.taught).sum()
        return temperature**2 * (normalizers - expected - targets.entropies.sum())

    def real_logits(self, logits: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The logits of real texts and words, without padding."""
        return logits[inputs["word_mask"]] if self.level == "words" else logits

    def hits(self, answers: Any, probabilities: Any, labels: torch.Tensor) -> tuple[int, int]:
        """(number of a batch's labels that the answers of `decode` match, number of labels); a regression value matches
        within half a standard deviation."""
        numbers = labels.is_floating_point()
        there = ~labels.isnan() if numbers else labels != IGNORE
        right = (answers - labels).abs() < 0.5 * self.task["std"] if numbers else answers == labels
        return int((right & there).sum()), int(there.sum())

    def to_average(self, logits: torch.Tensor) -> torch.Tensor:
        """What can be averaged over several models: probabilities."""
        return logits.softmax(-1)

    def from_average(self, average: torch.Tensor) -> torch.Tensor:
        """Logits for `decode`, from a mean of the outputs of `to_average`."""
        return average.clamp(min=1e-12).log()


class ImbalanceOptions:
    """For imbalanced labels: label_smoothing (Szegedy et al., 2016), focal_gamma (Lin et al., 2017, arXiv:1708.02002:
    each loss times (1 - p)^gamma) and class_weights (C,)."""

    label_smoothing, focal_gamma = 0.0, 0.0

    def __init__(self: Any, hidden_size: int, task: dict[str, Any]):
        cast(Any, super()).__init__(hidden_size, task)
        self.register_buffer("class_weights", None, persistent=False)

    def set_options(self: Any, config: Any, task_name: str) -> None:
        self.label_smoothing, self.focal_gamma = config.label_smoothing, config.focal_gamma
        if config.class_weights == "balanced":
            if "counts" not in self.task:
                raise UserError(
                    f"--class_weights: labels.json has no counts for {task_name!r}; "
                    "create the folder again with data_process.py"
                )
            counts = torch.tensor(self.task["counts"], dtype=torch.float32).clamp(min=1)
            self.class_weights = self.balanced_weights(counts)
            # on a GPU labels are counted before they move there
            self.class_weights_on_host = self.class_weights.numpy().copy()


class SigmoidStatistics:
    """For logits that are decided one by one, each by its sigmoid."""

    def expected_statistics(self, logits: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return logits.sigmoid()

    def statistics(self, scores: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return scores.sigmoid()

    def log_normalizers(self, scores: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return F.softplus(scores).sum(2)

    def to_average(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid()

    def from_average(self, average: torch.Tensor) -> torch.Tensor:
        return average.clamp(1e-7, 1 - 1e-7).logit()


class LogitAverages:
    """For logits that can be averaged directly: regression values, and a CRF's emissions, which sum to path scores."""

    def to_average(self, logits: torch.Tensor) -> torch.Tensor:
        return logits

    def from_average(self, average: torch.Tensor) -> torch.Tensor:
        return average


class NormalStatistics(LogitAverages):
    """For regression values, each the mean of a normal distribution of variance 1; temperature does not change it."""

    least = -1.0  # a regression target has no lower bound

    def expected_statistics(self, logits: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return logits

    def statistics(self, scores: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return scores

    def log_normalizers(self, scores: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return (scores**2).sum(2) / 2

    def teach(
        self: Any, logits: torch.Tensor, inputs: dict[str, torch.Tensor], temperature: float, pairs: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        return cast(Head, super()).teach(logits, inputs, 1.0)

    def distillation(
        self: Any, logits: torch.Tensor, targets: Any, inputs: dict[str, torch.Tensor], temperature: float
    ) -> torch.Tensor:
        return cast(Head, super()).distillation(logits, targets, inputs, 1.0)


def best_threshold(
    scores: torch.Tensor, right: torch.Tensor, lowest: float, there: int | None = None
) -> torch.Tensor | None:
    """The score threshold with the best F1: halfway between the last score that is accepted and the next.

    scores, right: (N,), right is 1 where accepting is correct. lowest: a score below all. there: how many should be
    accepted (default: those of `right`). Returns None if none is correct.
    """
    scores, order = scores.sort(descending=True)
    right = right[order].cumsum(0)
    if not len(right) or not right[-1] > 0:
        return None
    f1 = 2 * right / (torch.arange(1, len(right) + 1, device=right.device) + (right[-1] if there is None else there))
    f1[:-1][scores[:-1] == scores[1:]] = 0  # no threshold lies between equal scores
    best = f1.argmax()
    following = scores[best + 1] if best + 1 < len(scores) else torch.full_like(scores[0], lowest)
    return (scores[best] + following) / 2


class TaskDict(nn.ModuleDict):
    """A ModuleDict that accepts task names such as 'type' or 'items', which torch reserves."""

    def add_module(self, name: str, module: Any) -> None:
        self._modules[name] = module

    def __setattr__(self, name, value):
        # `train` and `eval` set the attribute `training`; a task of that name must not interfere
        object.__setattr__(self, name, value)
