"""FGM against gradients written with plain autograd: the perturbation is an input to the forward, no weight is changed."""

import pytest
import torch
from torch import nn

from config import UserError
from tricks import FGM


class Toy(nn.Module):
    """Embedding, a nonlinear layer, a loss; `noise` is added to the embedding matrix, for the oracle."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 6)
        self.linear = nn.Linear(6, 3)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, ids, labels, noise=0.0):
        vectors = nn.functional.embedding(ids, self.embedding.weight + noise)
        return nn.functional.cross_entropy(self.linear(torch.tanh(vectors).mean(1)), labels)


def micro_batches(count):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randint(0, 12, (4, 5), generator=generator), torch.randint(0, 3, (4,), generator=generator)) for _ in range(count)]


def oracle(model, batches, eps):
    """Sum over micro-batches of grad L(x) + grad L(x + r), r = eps g / ||g||, by autograd.grad."""
    parameters = list(model.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for ids, labels in batches:
        clean = torch.autograd.grad(model(ids, labels), parameters)
        r = eps * clean[0] / clean[0].norm()
        adversarial = torch.autograd.grad(model(ids, labels, noise=r), parameters)
        total = [t + a + b for t, a, b in zip(total, clean, adversarial)]
    return total


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("dtype, autocast", [(torch.float64, False), (torch.float32, False), (torch.float32, True)])
def test_gradient_equals_the_oracle(count, dtype, autocast):
    model = Toy().to(dtype)
    fgm = FGM(model, eps=0.7)
    before = model.embedding.weight.clone()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        wanted = oracle(model, micro_batches(count), 0.7)
        for ids, labels in micro_batches(count):
            fgm.around(lambda ids=ids, labels=labels: model(ids, labels).backward(), {"input_ids": ids})()
    tolerance = (
        dict(rtol=1e-9, atol=1e-12) if dtype == torch.float64 else dict(rtol=2e-2, atol=2e-3) if autocast else dict(rtol=1e-4, atol=1e-6)
    )
    for parameter, gradient in zip(model.parameters(), wanted):
        torch.testing.assert_close(parameter.grad, gradient, **tolerance)
    assert torch.equal(model.embedding.weight, before)


@pytest.mark.parametrize("given", [True, False])
def test_perturbation_has_norm_eps_and_weights_return_to_the_bit(given):
    model = Toy()
    fgm, before = FGM(model, eps=0.3), model.embedding.weight.clone()
    ids, labels = micro_batches(1)[0]
    model(ids, labels).backward()
    fgm.attack(ids if given else None)
    assert torch.linalg.vector_norm(model.embedding.weight - before).item() == pytest.approx(0.3, rel=1e-5)
    untouched = [row for row in range(20) if row not in ids]
    assert untouched and torch.equal(model.embedding.weight[untouched], before[untouched])
    fgm.restore()
    assert torch.equal(model.embedding.weight, before)
    fgm.restore()
    assert torch.equal(model.embedding.weight, before)


def test_restored_on_an_error():
    model = Toy()
    fgm, before = FGM(model), model.embedding.weight.clone()
    ids, labels = micro_batches(1)[0]
    model(ids, labels).backward()
    with pytest.raises(ZeroDivisionError), fgm.perturbed(ids):
        assert not torch.equal(model.embedding.weight, before)
        raise ZeroDivisionError
    assert torch.equal(model.embedding.weight, before)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0.0])
def test_a_direction_without_a_finite_norm_moves_nothing(value):
    model = Toy()
    fgm, before = FGM(model), model.embedding.weight.clone()
    ids, labels = micro_batches(1)[0]
    model(ids, labels).backward()
    if value:
        model.embedding.weight.grad[ids[0, 0], 0] = value
    else:
        model.embedding.weight.grad.zero_()
    fgm.attack(ids)
    assert torch.equal(model.embedding.weight, before)


def test_names_that_match_nothing_or_a_norm_or_a_frozen_matrix_are_refused():
    model = nn.ModuleDict({"embeddings": nn.Embedding(4, 2), "emb_norm": nn.LayerNorm(2)})
    assert FGM(model, emb_name="embeddings").weight is model["embeddings"].weight
    for name in ("word_embedding", "emb_norm"):
        with pytest.raises(UserError, match=name):
            FGM(model, emb_name=name)
    model["embeddings"].weight.requires_grad_(False)
    with pytest.raises(UserError, match="frozen"):
        FGM(model, emb_name="embeddings")
