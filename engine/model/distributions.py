"""Distributions that the logits of a head parametrise, for R-Drop, SMART, distillation and ensembles.

Each is an exponential family, log p(y) = <statistics of y, logits> - log normaliser (Amari, Information Geometry and
Its Applications, 2016). So divergences and distillation losses need only log normalisers and expected statistics.
Shapes: B texts, W words (1 for labels of whole texts), N statistics per word.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from engine.model import relations, span_pointer
from engine.run.device import to_double
from engine.task.task import IGNORE

Inputs = dict[str, torch.Tensor]
DENSE = 2**25  # maximum number of scores of word pairs in memory at a time, unless a single text has more


class Distribution:
    """The base class of all distributions. head: the Head that computes the logits."""

    has_temperature = True
    wants_pairs = False  # whether distillation also uses the probabilities of pairs of adjacent tags
    smallest = 1e-5  # a teacher's expected statistics below this are not stored

    def __init__(self, head: Any):
        self.head = head

    @property
    def stride(self) -> int:
        """The offset between the indices of a teacher's statistics for adjacent words; 0: none."""
        return 0

    def statistics(self, logits: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        """Returns the expected statistics: the gradient of the log normaliser, with the shape of the logits."""
        raise NotImplementedError

    def log_normalizers(self, logits: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        """Returns the log normalisers, with the shape of the logits without the last dimension."""
        raise NotImplementedError

    def to_average(self, logits: torch.Tensor) -> torch.Tensor:
        """Maps logits to a representation that can be averaged over models."""
        return logits

    def from_average(self, average: torch.Tensor) -> torch.Tensor:
        """Converts the mean of several outputs of `to_average` to logits for `decode`."""
        return average

    def nll(self, logits: torch.Tensor, labels: torch.Tensor, inputs: Inputs, temperature: float) -> torch.Tensor:
        """Returns the sum of -log p(label) at a temperature. -> ()"""
        raise NotImplementedError

    def describes(self, probabilities: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> bool:
        """Returns whether `decode` returns probabilities of this distribution, so a temperature applies to them."""
        return False

    def decode(self, logits: torch.Tensor, inputs: Inputs) -> tuple[Any, Any]:
        """Returns the predictions of the head's `decode`, with probabilities at the head's temperature. The temperature
        does not change the predictions."""
        predictions, probabilities = self.head.decode(logits, inputs)
        if self.has_temperature and (temperature := float(self.head.temperature)) != 1:
            probabilities = self.head.decode(logits / temperature, inputs)[1]
        return predictions, probabilities

    def tag_probs(self, logits: torch.Tensor, inputs: Inputs, tags: torch.Tensor, temperature: float) -> torch.Tensor:
        """Returns the probabilities from `decode` of a tagging head, (B, W, 3), at a temperature. tags: the predicted
        tags, (B, W)"""
        return self.head.decode(logits / temperature, inputs)[1]

    def divergence(
        self, first: torch.Tensor, second: torch.Tensor, labels: torch.Tensor, inputs: Inputs
    ) -> torch.Tensor:
        """Returns KL(p || q) + KL(q || p), weighted and summed over labelled positions. -> ()

        This equals <statistics of p - statistics of q, logits of p - logits of q>.
        """
        products = (self.statistics(first, inputs) - self.statistics(second, inputs)) * (first - second)
        weights = self.head.label_weights(labels, inputs)
        return (products * weights.view(*weights.shape, *[1] * (products.ndim - weights.ndim))).sum()

    def tempered_average(self, average: torch.Tensor) -> torch.Tensor:
        """Applies the head's temperature to an output of `to_average`."""
        temperature = float(self.head.temperature)
        return average if temperature == 1 else self.to_average(self.from_average(average) / temperature)

    # ---- teacher and student (engine/tricks/soft_targets.py) ----

    def parts(self, logits: torch.Tensor) -> list[slice]:
        """Splits a batch into slices that fit in memory and are processed sequentially."""
        return [slice(0, len(logits))]

    def teach_parts(self, logits: torch.Tensor, inputs: Inputs, *options: Any) -> Iterator[tuple[Inputs, Any]]:
        """Yields (inputs, output of `teach`) for each slice of the batch."""
        for part in self.parts(logits):
            own = {name: tensor[part] for name, tensor in inputs.items()}
            yield own, self.teach(logits[part], own, *options)

    def by_word(self, logits: torch.Tensor) -> torch.Tensor:
        """Reshapes logits to (B, W, N)."""
        return logits.reshape(len(logits), logits.shape[1] if self.head.by_words else 1, -1)

    def teach(
        self, logits: torch.Tensor, inputs: Inputs, temperature: float, pairs: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Computes a teacher's output: (statistics (B, W, N), entropies (B, W), before). With `pairs`, `before` is
        (B, W, C), see soft_targets.py, otherwise None."""
        scores = self.by_word(logits) / (temperature if self.has_temperature else 1.0)
        statistics = self.statistics(scores, inputs)
        entropies = self.log_normalizers(scores, inputs) - (statistics * scores).sum(2)
        return statistics, entropies, statistics if pairs else None

    def num_taught(self, targets: Any, inputs: Inputs) -> torch.Tensor:
        """Returns the number of texts or words that the teachers labelled, the divisor of the distillation loss. -> ()
        targets: SoftTargets"""
        return targets.taught.sum()

    def distillation(self, logits: torch.Tensor, targets: Any, inputs: Inputs, temperature: float) -> torch.Tensor:
        """Returns temperature^2 * KL(teacher || student) at the temperature, averaged over teachers and summed over the
        texts or words that they labelled. -> ()

        This equals A(student) - <statistics of the teacher, student> - entropy of the teacher, with the log normaliser
        A.
        """
        temperature = temperature if self.has_temperature else 1.0
        scores = self.by_word(logits) / temperature
        _, rows, words, numbers = targets.positions
        expected = (scores[rows, words, numbers + words * self.stride] * targets.values).sum()
        normalizers = (self.log_normalizers(scores, inputs) * targets.taught).sum()
        return temperature**2 * (normalizers - expected - targets.entropies.sum())


class Softmax(Distribution):
    """A distribution over C classes, per text or per word."""

    def statistics(self, logits: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        return logits.softmax(-1)

    def log_normalizers(self, logits: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        return logits.logsumexp(-1)

    def nll(self, logits: torch.Tensor, labels: torch.Tensor, inputs: Inputs, temperature: float) -> torch.Tensor:
        scores = to_double(logits).flatten(0, -2) / temperature
        return F.cross_entropy(scores, labels.to(scores.device).flatten(), ignore_index=IGNORE, reduction="sum")

    def describes(self, probabilities: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> bool:
        there = labels != IGNORE
        if labels.shape != logits.shape[:-1]:
            return False
        given = probabilities if probabilities.ndim == labels.ndim else probabilities[..., 1]  # see TaggingHead
        return torch.allclose(given[there].float(), logits.softmax(-1).amax(-1)[there], atol=1e-4)

    def to_average(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.softmax(-1)

    def from_average(self, average: torch.Tensor) -> torch.Tensor:
        return average.clamp(min=1e-12).log()


class Bernoulli(Distribution):
    """Independent labels, each present with probability sigmoid(logit)."""

    def statistics(self, logits: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        return logits.sigmoid()

    def log_normalizers(self, logits: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        return F.softplus(logits).sum(-1)

    def nll(self, logits: torch.Tensor, labels: torch.Tensor, inputs: Inputs, temperature: float) -> torch.Tensor:
        scores, there = to_double(logits), labels.to(to_double(logits).device) != IGNORE
        targets = labels.to(scores).clamp(min=0)
        losses = F.binary_cross_entropy_with_logits(scores / temperature, targets, reduction="none")
        return (losses * there).sum()

    def describes(self, probabilities: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> bool:
        return labels.shape == logits.shape and torch.allclose(probabilities, logits.sigmoid(), atol=1e-4)

    def to_average(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid()

    def from_average(self, average: torch.Tensor) -> torch.Tensor:
        return average.clamp(1e-7, 1 - 1e-7).logit()


class Normal(Distribution):
    """Normal distributions of variance 1, whose means are the predicted values. They have no temperature."""

    has_temperature = False
    smallest = -1.0  # all values are stored

    def statistics(self, logits: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        return logits

    def log_normalizers(self, logits: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        return (logits**2).sum(-1) / 2


class Paths(Distribution):
    """Distributions over tag paths from `head.crf`. Emissions can be averaged: path scores are linear in them."""

    wants_pairs = True

    def statistics(self, logits: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        return self.head.crf.marginals(logits, inputs["word_mask"])

    def nll(self, logits: torch.Tensor, labels: torch.Tensor, inputs: Inputs, temperature: float) -> torch.Tensor:
        crf, mask = self.head.crf, inputs["word_mask"]
        scores = crf.path_score(logits, labels.clamp(min=0), mask) / temperature
        whole = ((labels != IGNORE) >= mask).all(1)
        return (to_double(crf.log_partition(logits, mask, temperature) - scores) * whole).sum()

    def describes(self, probabilities: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> bool:
        return probabilities.ndim == 3  # from CRF.chain

    def tag_probs(self, logits: torch.Tensor, inputs: Inputs, tags: torch.Tensor, temperature: float) -> torch.Tensor:
        return self.head.crf.chain(logits, inputs["word_mask"], tags, temperature)

    def decode(self, logits: torch.Tensor, inputs: Inputs) -> tuple[Any, Any]:
        return self.head.decode(logits, inputs)  # `CRF.chain` also divides the transitions by the temperature

    def teach(
        self, logits: torch.Tensor, inputs: Inputs, temperature: float, pairs: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        statistics, entropies, before = self.head.crf.path_statistics(logits, inputs["word_mask"], temperature)
        entropies = F.pad(entropies.unsqueeze(1), (0, logits.shape[1] - 1))  # stored at the first word
        return statistics.float(), entropies.float(), before if pairs else None

    def num_taught(self, targets: Any, inputs: Inputs) -> torch.Tensor:
        """Returns the number of words in texts that the teachers labelled completely. -> ()"""
        mask = inputs["word_mask"]
        return (mask * targets.whole(mask).unsqueeze(1)).sum()

    def distillation(self, logits: torch.Tensor, targets: Any, inputs: Inputs, temperature: float) -> torch.Tensor:
        crf, mask = self.head.crf, inputs["word_mask"]
        whole, last = targets.whole(mask).to(logits.dtype), mask.sum(1) - 1
        _, rows, words, tags = targets.positions
        by_tag = logits[rows, words, tags] + torch.where(words == 0, crf.start_transitions[tags], 0.0)
        by_tag = by_tag + torch.where(words == last[rows], crf.end_transitions[tags], 0.0)
        expected = (by_tag * targets.values * whole[rows]).sum() + self.expected_transitions(targets, whole)
        partitions = (crf.log_partition(logits, mask, temperature) * whole).sum()
        entropies = (targets.entropies * whole.unsqueeze(1)).sum()
        return temperature**2 * (partitions - expected / temperature - entropies)

    def expected_transitions(self, targets: Any, whole: torch.Tensor) -> torch.Tensor:
        """Returns the teachers' expected transition scores, summed over texts with weights `whole` (B,). -> ()"""
        transitions = self.head.crf.transitions
        shares, before = targets.pairs(len(transitions))
        before, factors = before[:, :, :-1].flatten(1, 2), targets.factors  # (T, B * (W - 1), C), (T, C, C), T teachers
        shares = (shares[:, :, 1:] * whole[:, None, None]).flatten(1, 2)
        given = shares / (before @ factors).clamp(min=1e-30)
        return ((before @ (factors * transitions)) * given).sum()


class Spans(Distribution):
    """Independent spans, each present with probability sigmoid(score) (engine/model/span_pointer.py)."""

    smallest = 1e-3  # most of the W * W spans have a tiny probability

    @property
    def stride(self) -> int:
        return len(self.head.task.labels)

    def by_word(self, logits: torch.Tensor) -> torch.Tensor:
        """Returns the scores of all spans by first word, (B, W, W * T), with last word j and type t at j * T + t."""
        return self.dense(logits).permute(0, 2, 3, 1).flatten(2)

    def statistics(self, scores: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        return scores.sigmoid() * self.by_cell(inputs)

    def log_normalizers(self, scores: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        return (F.softplus(scores) * self.by_cell(inputs)).sum(2)

    def parts(self, logits: torch.Tensor) -> list[slice]:
        size = max(1, DENSE // (logits.shape[1] ** 2 * self.stride))
        return [slice(begin, begin + size) for begin in range(0, len(logits), size)]

    def sum_of_parts(self, function: Callable[[slice], torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
        """Returns the sum of function(slice) over `parts`. If there are several, the scores of each slice are
        recomputed in the backward pass instead of stored."""
        parts = self.parts(logits)
        if len(parts) == 1:
            return function(parts[0])
        losses = [checkpoint(function, part, use_reentrant=False, preserve_rng_state=False) for part in parts]
        return torch.stack(losses).sum()

    def dense(self, logits: torch.Tensor) -> torch.Tensor:
        """Returns the scores of all pairs of words, (B, T, W, W)."""
        return span_pointer.dense(logits)

    def are_cells(self, inputs: Inputs) -> torch.Tensor:
        """Returns the mask of the valid scores, (B, T, W, W)."""
        return span_pointer.spans_of(inputs["word_mask"]).unsqueeze(1).expand(-1, self.stride, -1, -1)

    def by_cell(self, inputs: Inputs) -> torch.Tensor:
        return self.are_cells(inputs).permute(0, 2, 3, 1).flatten(2)

    def decode(self, logits: torch.Tensor, inputs: Inputs) -> tuple[Any, Any]:
        return self.head.decode(logits, inputs)  # `at_temperature` is applied after the threshold

    def at_temperature(self, probabilities: list[float], temperature: float) -> list[float]:
        """Converts each probability sigmoid(score) to sigmoid(score / temperature)."""
        odds = torch.tensor(probabilities, dtype=torch.float64).logit(eps=1e-15)
        return probabilities if temperature == 1 else (odds / temperature).sigmoid().tolist()

    def num_taught(self, targets: Any, inputs: Inputs) -> torch.Tensor:
        """Returns the number of labelled texts. -> ()"""
        return targets.taught.amax(1).sum()

    def divergence(
        self, first: torch.Tensor, second: torch.Tensor, labels: torch.Tensor, inputs: Inputs
    ) -> torch.Tensor:
        def divergence_of(part: slice) -> torch.Tensor:
            labelled = span_pointer.has_labels(labels[part])[:, None, None, None]
            where = self.are_cells({"word_mask": inputs["word_mask"][part]}) & labelled
            return span_pointer.divergence(self.dense(first[part]), self.dense(second[part]), where)

        return self.sum_of_parts(divergence_of, first)

    def distillation(self, logits: torch.Tensor, targets: Any, inputs: Inputs, temperature: float) -> torch.Tensor:
        """Computes the loss for one slice of the batch at a time, see Distribution."""

        def distillation_of(part: slice) -> torch.Tensor:
            own = targets if part.stop >= len(logits) and not part.start else targets.of_rows(part)
            mask = {"word_mask": inputs["word_mask"][part]}
            return Distribution.distillation(self, logits[part], own, mask, temperature)

        return self.sum_of_parts(distillation_of, logits)


class Relations(Spans):
    """Relations as independent pairs of words in the three tables of engine/model/relations.py, each present with
    probability sigmoid(score)."""

    @property
    def stride(self) -> int:
        return 2 + 2 * len(self.head.task.labels)

    def dense(self, logits: torch.Tensor) -> torch.Tensor:
        return relations.dense(logits, len(self.head.task.labels))

    def are_cells(self, inputs: Inputs) -> torch.Tensor:
        return relations.are_cells(inputs["word_mask"], len(self.head.task.labels))
