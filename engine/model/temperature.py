"""Temperature scaling: fits the number that divides the logits of a head before they are converted to probabilities.

Guo et al., On Calibration of Modern Neural Networks, 2017. The temperature minimises the negative log likelihood on dev
and is saved with the weights. It changes neither predictions nor losses. Because the best epoch is also chosen on dev,
calibration metrics on dev are slightly optimistic.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from engine.task.tags import are_of_entities
from engine.task.task import IGNORE
from engine.task.words import entities_in

MAX_TEXTS = 2000  # more texts would hardly change the temperature
MIN_LABELS = 20  # minimum number of labelled texts; with fewer, the temperature is 1
LOWEST, HIGHEST = 0.1, 10.0  # bounds of the fit; a minimum at a bound is rejected


class Sample(NamedTuple):
    """The logits of some rows of dev, with labels and inputs."""

    logits: torch.Tensor
    labels: torch.Tensor
    inputs: dict[str, torch.Tensor]

    def to(self, device: Any) -> "Sample":
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return Sample(self.logits.to(device), self.labels.to(device), inputs)


def best_temperature(nll: Any) -> float:
    """Returns the temperature that minimises nll(temperature), or 1 if that is at a bound, for example because every
    prediction is correct.

    -log p of an exponential family is convex in 1 / temperature, so there is only one minimum. For products over the
    words of entities, this holds approximately.
    """
    bounds = np.log(LOWEST), np.log(HIGHEST)
    found = minimize_scalar(lambda t: float(nll(float(np.exp(t)))), bounds=bounds, options={"xatol": 1e-3})
    inside = bounds[0] + 0.01 < found.x < bounds[1] - 0.01
    return float(np.exp(found.x)) if inside else 1.0


def fit_temperature(head: Any, samples: list[Sample]) -> None:
    """Fits the temperature of a head. It is 1 with few labels, if all predictions are correct, or if `decode` does not
    return the probabilities of the head's distribution."""
    head.temperature.fill_(1)
    distribution, texts, right, total = head.distribution, 0, 0, 0
    if not distribution.has_temperature:
        return
    for logits, labels, inputs in samples:
        predictions, probabilities = head.decode(logits, inputs)
        if not distribution.describes(probabilities, logits, labels):
            return
        there = head.label_mask(labels, inputs)
        texts += int(there.flatten(1).any(1).sum() if there.ndim > 1 else there.sum())
        right, total = (a + b for a, b in zip((right, total), head.hits(predictions, probabilities, labels)))
    if texts < MIN_LABELS or right == total:
        return
    if head.task.is_tagging and probabilities.ndim == 3 and are_of_entities(tuple(head.task.labels)):
        fit_temperature_on_entities(head, samples)
    else:
        head.temperature.fill_(best_temperature(lambda t: sum(distribution.nll(*sample, t) for sample in samples)))


def fit_temperature_on_entities(head: Any, samples: list[Sample]) -> None:
    """Fits the temperature of a tagging head on whether each predicted entity is correct."""
    names, parts, rights = head.task.labels, [], []
    for logits, labels, inputs in samples:
        tags, where = head.decode(logits, inputs)[0], []
        sizes = inputs["word_mask"].sum(1).tolist()
        for row, (path, gold, size) in enumerate(zip(tags.tolist(), labels.tolist(), sizes)):
            if any(tag != IGNORE for tag in gold[:size]):
                known = set(entities_in([names[tag] if tag != IGNORE else "O" for tag in gold[:size]]))
                for entity in entities_in([names[tag] for tag in path[:size]]):
                    where.append((row, *entity[1:]))
                    rights.append(entity in known)
        parts.append((logits, inputs, tags, np.array(where, int).reshape(-1, 3).T))
    if len(set(rights)) < 2:
        return
    sign = np.where(rights, 1, 0)

    def nll(temperature: float) -> float:
        p = np.concatenate(
            [of_entities(head.distribution.tag_probs(*part[:3], temperature), part[3]) for part in parts]
        )
        return -np.log(np.where(sign, p, 1 - p).clip(1e-12)).sum()

    head.temperature.fill_(best_temperature(nll))


def of_entities(probabilities: torch.Tensor, where: np.ndarray) -> np.ndarray:
    """Returns the probabilities of E entities, (E,), see `word_probabilities`. probabilities: (B, W, 3); where: (row,
    first word, last word), (3, E)"""
    logs = np.log(probabilities.double().cpu().numpy().clip(1e-300))
    inside, (row, first, last) = logs[..., 1].cumsum(1), where
    return np.exp(logs[row, first, 0] + inside[row, last] - inside[row, first] + logs[row, last, 2])


def fit_temperature_on_spans(head: Any, found: list[tuple[list, list]], labels: list) -> None:
    """Fits the temperature of a head that finds spans or relations on whether each candidate is correct. found:
    (candidates, probabilities) per text; labels: of each text as in the file, None if unlabelled."""
    head.temperature.fill_(1)
    known = [(pair, {tuple(span) for span in gold}) for pair, gold in zip(found, labels) if gold is not None]
    names = head.task.labels
    pairs = [
        (p, (*places, names[kind]) in gold)
        for (spans, probabilities), gold in known
        for (*places, kind), p in zip(spans, probabilities)
    ]
    if (
        len(known) < MIN_LABELS
        or len({right for _, right in pairs}) < 2
        or not hasattr(head.distribution, "at_temperature")
    ):
        return
    p, right = np.array(pairs, float).T
    odds, sign = np.log(p.clip(1e-15, 1 - 1e-15)) - np.log1p(-p.clip(1e-15, 1 - 1e-15)), np.where(right, 1, -1)
    head.temperature.fill_(best_temperature(lambda t: np.logaddexp(0, -sign * odds / t).sum()))
