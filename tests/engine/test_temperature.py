"""Temperatures compared with scipy and brute force; entity probabilities compared with enumeration of all paths."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine.model.crf import CRF
from engine.model.temperature import HIGHEST, Sample, fit_temperature
from engine.task.tags import may_follow
from engine.task.task import Task
from engine.task.words import entities_in, word_probabilities
from model_utils import HEADS, ClassificationHead, CRFTaggingHead, Head, MultilabelHead, TaggingHead

BIO = ("O", "B-x", "I-x", "B-y", "I-y")
BIOES = ("O", "B-x", "I-x", "E-x", "S-x")


def crf_of(labels, seed):
    torch.manual_seed(seed)
    crf = CRF(labels)
    for parameter in crf.parameters():
        torch.nn.init.normal_(parameter)
    return crf


def legal_paths(labels, width):
    bioes = any(label[:2] in ("E-", "S-") for label in labels)
    for path in itertools.product(range(len(labels)), repeat=width):
        names = ["O", *(labels[tag] for tag in path), "O"]
        if all(may_follow(a, b, bioes) for a, b in itertools.pairwise(names)):
            yield path


def entity_shares(labels, width, score):
    """Returns {entity: its share of exp(score(path)) over all valid paths}."""
    shares, total = {}, 0.0
    for path in legal_paths(labels, width):
        weight = np.exp(score(path))
        total += weight
        for entity in entities_in([labels[tag] for tag in path]):
            shares[entity] = shares.get(entity, 0.0) + weight
    return {entity: share / total for entity, share in shares.items()}


@pytest.mark.parametrize("labels", [BIO, BIOES])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.5])
def test_entity_probability_is_its_share_of_all_paths(labels, temperature):
    head = CRFTaggingHead(4, Task("tagging", labels))
    head.crf = crf_of(labels, 1)
    head.temperature.fill_(temperature)
    logits, sizes = 2 * torch.randn(12, 5, len(labels)), [5, 4, 3, 2, 1, 5] * 2
    mask = torch.arange(5) < torch.tensor(sizes)[:, None]
    tags, probabilities = head.decode(logits, {"word_mask": mask})
    start, between, end = (p.double().detach().numpy() for p in
                           (head.crf.start_transitions, head.crf.transitions, head.crf.end_transitions))  # fmt: skip
    checked = 0
    for row, size, path, chance in zip(logits.double().numpy(), sizes, tags.tolist(), probabilities.tolist()):

        def score(tags, row=row):
            inside = sum(row[i, tag] for i, tag in enumerate(tags)) + sum(
                between[a, b] for a, b in itertools.pairwise(tags)
            )
            return (inside + start[tags[0]] + end[tags[-1]]) / temperature

        shares = entity_shares(labels, size, score)
        names = [labels[tag] for tag in path[:size]]
        expected = [shares[entity] for entity in entities_in(names)]
        checked += len(expected)
        np.testing.assert_allclose(word_probabilities(names, chance[:size], True), expected, rtol=1e-6)
    assert checked > 8


@pytest.mark.parametrize("labels", [BIO, BIOES])
def test_without_a_crf_words_are_independent(labels):
    torch.manual_seed(2)
    head = TaggingHead(4, Task("tagging", labels))
    logits, sizes = 3 * torch.randn(40, 4, len(labels)), [4, 3, 2, 1] * 10
    mask = torch.arange(4) < torch.tensor(sizes)[:, None]
    tags, probabilities = head.decode(logits, {"word_mask": mask})
    checked = 0
    for row, size, path, chance in zip(
        logits.double().softmax(-1).numpy(), sizes, tags.tolist(), probabilities.tolist()
    ):
        names = [labels[tag] for tag in path[:size]]
        for entity, p in zip(entities_in(names), word_probabilities(names, chance[:size], True)):
            _, first, last = entity
            # all paths in which these tags form this entity
            total = sum(
                np.prod([row[i, tag] for i, tag in enumerate(other)])
                for other in itertools.product(range(len(labels)), repeat=size)
                if list(other[first : last + 1]) == path[first : last + 1]
                and entity in entities_in([labels[tag] for tag in other])
            )
            checked += 1
            np.testing.assert_allclose(p, total, rtol=1e-5)
    assert checked > 30


def test_probability_of_tags_without_entities_is_per_word():
    crf = crf_of(("N", "V", "A"), 3)
    emissions, mask = torch.randn(2, 4, 3), torch.ones(2, 4, dtype=torch.bool)
    tags = crf.viterbi(emissions, mask)
    probabilities = crf.chain(emissions, mask, tags)
    expected = crf.marginals(emissions, mask).gather(2, tags.unsqueeze(2)).squeeze(2)
    for row, path, chance in zip(expected, tags.tolist(), probabilities.tolist()):
        words = word_probabilities(["NVA"[tag] for tag in path], chance, False)
        np.testing.assert_allclose(words, row.detach(), rtol=1e-5)


def test_old_head_without_entity_temperature_multiplies_word_probabilities():
    tags = ["B-x", "I-x", "O", "B-y"]
    assert word_probabilities(tags, [0.5, 0.5, 0.9, 0.25], True) == [0.25, 0.25]
    assert word_probabilities(tags, None, True) is None


def softmax_samples(temperature, size=4000):
    """Draws labels from softmax(logits / temperature), so that this is the optimal temperature."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(size, 5)) * 4
    p = np.exp(logits / temperature)
    labels = (rng.random(size)[:, None] > (p / p.sum(1, keepdims=True)).cumsum(1)).sum(1)
    return [Sample(torch.tensor(logits).float(), torch.tensor(labels), {})]


def grid_minimum(nll):
    grid = np.exp(np.linspace(np.log(0.3), np.log(6), 3001))
    return grid[np.argmin([nll(t) for t in grid])]


@pytest.mark.parametrize("temperature", [0.5, 1.7, 3.0])
def test_temperature_of_a_softmax_head(temperature):
    head, samples = ClassificationHead(4, Task("classification", tuple("abcde"))), softmax_samples(temperature)
    fit_temperature(head, samples)
    logits, labels = samples[0].logits.double().numpy(), samples[0].labels.numpy()

    def nll(t):
        z = logits / t
        return (np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)) + z.max(1) - z[range(len(z)), labels]).mean()

    assert float(head.temperature) == pytest.approx(grid_minimum(nll), rel=2e-3)
    assert float(head.temperature) == pytest.approx(temperature, rel=0.1)
    decoded, probabilities = head.distribution.decode(samples[0].logits, {})
    before, _ = head.decode(samples[0].logits, {})
    assert torch.equal(decoded, before)
    z = logits / float(head.temperature)
    expected = (np.exp(z) / np.exp(z).sum(1, keepdims=True)).max(1)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5)


def test_multilabel_temperature_does_not_change_labels():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(3000, 4)) * 3
    labels = torch.tensor((rng.random(logits.shape) < 1 / (1 + np.exp(-logits / 2))).astype(int))
    head = MultilabelHead(4, Task("multilabel", tuple("abcd")))
    head.threshold.fill_(0.3)
    fit_temperature(head, [Sample(torch.tensor(logits).float(), labels, {})])
    assert float(head.temperature) == pytest.approx(2, rel=0.1)
    decoded, probabilities = head.distribution.decode(torch.tensor(logits).float(), {})
    assert torch.equal(decoded, head.decode(torch.tensor(logits).float(), {})[0])
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits / float(head.temperature))), rtol=1e-4)


def test_path_temperature_scales_all_scores():
    labels = ("N", "V", "A")
    head = CRFTaggingHead(4, Task("tagging", labels))
    head.crf = crf_of(labels, 4)
    crf, paths = head.crf, list(itertools.product(range(3), repeat=3))
    emissions, rng = 2 * torch.randn(300, 3, 3), np.random.default_rng(5)
    whole = torch.ones(300, 3, dtype=torch.bool)
    by_path = [crf.path_score(emissions, torch.tensor([path] * 300), whole).detach().numpy() for path in paths]
    scores = np.stack(by_path, 1).astype(float)
    p = np.exp(scores / 1.6)
    drawn = (rng.random(300)[:, None] > (p / p.sum(1, keepdims=True)).cumsum(1)).sum(1)
    gold = torch.tensor([paths[number] for number in drawn])
    with torch.no_grad():
        fit_temperature(head, [Sample(emissions, gold, {"word_mask": whole})])

    def nll(t):
        return (np.log(np.exp(scores / t).sum(1)) - scores[range(300), drawn] / t).mean()

    assert float(head.temperature) == pytest.approx(grid_minimum(nll), rel=5e-3)


@pytest.mark.parametrize("kind", ["crf_tagging", "tagging"])
def test_temperature_of_entities(kind):
    """It maximises the likelihood that predicted entities are right or wrong, according to `word_probabilities`."""
    torch.manual_seed(6)
    head = HEADS[kind](4, Task("tagging", BIO))
    if kind == "crf_tagging":
        head.crf = crf_of(BIO, 6)
    logits, mask = 3 * torch.randn(200, 5, 5), torch.arange(5) < torch.randint(1, 6, (200, 1))
    tags, _ = head.decode(logits, {"word_mask": mask})
    gold = torch.where(torch.rand(200, 5) < 0.25, torch.randint(0, 5, (200, 5)), tags)
    gold[:10] = -100  # unlabelled
    with torch.no_grad():
        fit_temperature(head, [Sample(logits[i : i + 64], gold[i : i + 64], {"word_mask": mask[i : i + 64]})
                               for i in range(0, 200, 64)])  # fmt: skip
    fitted, losses = float(head.temperature), {}
    for t in np.linspace(0.8, 1.2, 81) * fitted:
        head.temperature.fill_(t)
        probabilities, total = head.distribution.decode(logits, {"word_mask": mask})[1].tolist(), 0.0
        for i in range(10, 200):
            size = int(mask[i].sum())
            names, true = ([BIO[tag] for tag in side[i, :size].tolist()] for side in (tags, gold))
            for entity, p in zip(entities_in(names), word_probabilities(names, probabilities[i][:size], True)):
                total -= np.log(p if entity in entities_in(true) else 1 - p)
        losses[t] = total
    assert fitted != 1 and min(losses, key=losses.get) == pytest.approx(fitted, rel=0.011)


class OwnProbabilities(ClassificationHead):
    def decode(self, logits, inputs):
        decoded, _ = super().decode(logits, inputs)
        return decoded, torch.full(decoded.shape, 0.5)


@pytest.mark.parametrize("case", ["few", "all right", "own probabilities", "no information", "regression"])
def test_temperature_stays_1_without_an_optimum(case):
    (logits, labels, _), kind = softmax_samples(2.0, 400)[0], ClassificationHead
    if case == "few":
        labels[19:] = -100
    if case == "all right":
        labels = logits.argmax(1)
    if case == "no information":  # the optimal temperature is infinite
        labels = (logits.argmax(1) + torch.arange(400)) % 5
        logits = logits * 10
    if case == "own probabilities":
        kind = OwnProbabilities
    task = Task("classification", tuple("abcde"))
    head = kind(4, task) if case != "regression" else HEADS["regression"](4, Task("regression"))
    head.temperature.fill_(3)
    fit_temperature(head, [Sample(logits, labels, {})])
    assert float(head.temperature) == 1
    assert HIGHEST == 10


def test_user_head_with_softmax_logits_gets_a_temperature():
    class Own(Head):
        def decode(self, logits, inputs):
            return logits.argmax(-1), logits.softmax(-1).amax(-1)

    head = Own(4, SimpleNamespace(labels=tuple("abcde"), needs_words=False, is_tagging=False))
    fit_temperature(head, softmax_samples(2.0))
    assert float(head.temperature) == pytest.approx(2, rel=0.1)
