"""Fits the temperature of a head: one number that divides its logits before they become probabilities.

Guo et al., On Calibration of Modern Neural Networks, 2017. It minimises the negative log likelihood of dev, changes no
answer and no loss, and is saved with the weights. Dev also chose the epoch, so its own figures are slightly optimistic.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from engine.task.tags import are_of_entities
from engine.task.task import IGNORE
from engine.task.words import entities_in

MOST_TEXTS = 2000  # more would hardly change one number
FEWEST = 20  # labelled texts; with fewer, the temperature stays 1
LOWEST, HIGHEST = 0.1, 10.0  # bounds of the fit; a result at a bound is rejected


class Sample(NamedTuple):
    """Logits of some rows of dev, with their labels and inputs."""

    logits: torch.Tensor
    labels: torch.Tensor
    inputs: dict[str, torch.Tensor]

    def to(self, device: Any) -> "Sample":
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return Sample(self.logits.to(device), self.labels.to(device), inputs)


def best_temperature(nll: Any) -> float:
    """The minimum of nll(temperature); 1 if it is at a bound, as when every answer is right.

    -log p of an exponential family is convex in 1 / temperature, so there is only one minimum; for
    products over the words of entities, this holds approximately.
    """
    bounds = np.log(LOWEST), np.log(HIGHEST)
    found = minimize_scalar(lambda t: float(nll(float(np.exp(t)))), bounds=bounds, options={"xatol": 1e-3})
    inside = bounds[0] + 0.01 < found.x < bounds[1] - 0.01
    return float(np.exp(found.x)) if inside else 1.0


def fit_temperature(head: Any, samples: list[Sample]) -> None:
    """Sets the temperature of a head. It stays 1 with few labels, if all answers are right, and for a head whose
    `decode` returns other probabilities."""
    head.temperature.fill_(1)
    distribution, texts, right, total = head.distribution, 0, 0, 0
    if not distribution.has_temperature:
        return
    for logits, labels, inputs in samples:
        answers, probabilities = head.decode(logits, inputs)
        if not distribution.describes(probabilities, logits, labels):
            return
        there = head.label_mask(labels, inputs)
        texts += int(there.flatten(1).any(1).sum() if there.ndim > 1 else there.sum())
        right, total = (a + b for a, b in zip((right, total), head.hits(answers, probabilities, labels)))
    if texts < FEWEST or right == total:
        return
    if head.task.is_tagging and probabilities.ndim == 3 and are_of_entities(tuple(head.task.labels)):
        fit_temperature_on_entities(head, samples)
    else:
        head.temperature.fill_(best_temperature(lambda t: sum(distribution.nll(*sample, t) for sample in samples)))


def fit_temperature_on_entities(head: Any, samples: list[Sample]) -> None:
    """Like `fit_temperature`, but maximises the likelihood that the right predicted entities are right and the wrong
    ones are wrong."""
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
        p = np.concatenate([of_entities(head.distribution.chances(*part[:3], temperature), part[3]) for part in parts])
        return -np.log(np.where(sign, p, 1 - p).clip(1e-12)).sum()

    head.temperature.fill_(best_temperature(nll))


def of_entities(chances: torch.Tensor, where: np.ndarray) -> np.ndarray:
    """The products of `word_probabilities` for E entities. chances: (B, W, 3); where: (row, first, last), (3, E)"""
    logs = np.log(chances.double().cpu().numpy().clip(1e-300))
    inside, (row, first, last) = logs[..., 1].cumsum(1), where
    return np.exp(logs[row, first, 0] + inside[row, last] - inside[row, first] + logs[row, last, 2])


def fit_temperature_on_spans(head: Any, found: list[tuple[list, list]], labels: list) -> None:
    """Sets the temperature of a head that finds spans or relations, from whether its candidates are right. found:
    (candidates, probabilities) of each text; labels: of each text as in the file, None if unlabelled."""
    head.temperature.fill_(1)
    known = [(pair, {tuple(span) for span in gold}) for pair, gold in zip(found, labels) if gold is not None]
    names = head.task.labels
    pairs = [
        (p, (*places, names[kind]) in gold)
        for (spans, chances), gold in known
        for (*places, kind), p in zip(spans, chances)
    ]
    if (
        len(known) < FEWEST
        or len({right for _, right in pairs}) < 2
        or not hasattr(head.distribution, "at_temperature")
    ):
        return
    p, right = np.array(pairs, float).T
    odds, sign = np.log(p.clip(1e-15, 1 - 1e-15)) - np.log1p(-p.clip(1e-15, 1 - 1e-15)), np.where(right, 1, -1)
    head.temperature.fill_(best_temperature(lambda t: np.logaddexp(0, -sign * odds / t).sum()))
