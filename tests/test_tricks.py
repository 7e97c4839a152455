"""Compares each trick with gradients or weights computed by plain autograd, in which perturbations are inputs of the
forward pass, and no weight is changed.

Each trick also has a broken version, with one changed line in tricks.py or engine/tricks/averages.py, which must fail
the same comparison.
"""

import inspect
import itertools
import logging
import math
import operator
from dataclasses import asdict, dataclass, replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from test_trainer import fingerprints, forward_backward, make_trainer, train
from torch import nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel
from transformers import BertConfig, BertModel

import tricks
from config import Config, seed_torch
from data_loader import Batch
from engine.errors import UserError
from engine.run.command_line import option
from engine.run.signals import Interrupted
from engine.task.task import Task
from engine.train import checkpoint
from engine.train.optimization import ema_decay_of, merge_groups, parameter_groups
from engine.tricks import averages
from model_utils import HeadOptions, MyModel, load_checkpoint
from trainer import Trainer, TrainingSetup, build_optimizer, build_scheduler
from tricks import FGM, Trick

TASKS = {
    "intent": Task("classification", labels=["a", "b", "c"]),
    "slots": Task("tagging", labels=["O", "B-x", "I-x"], unit="word"),
}
NAMES = ("fp32", "bf16")
SAME = {"fp32": 1e-5, "bf16": 2e-3, "fp16": 2e-3}  # maximum relative error of a whole gradient by rounding alone


def tiny_model():
    torch.manual_seed(0)
    shape = dict(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, initializer_range=0.2
    )
    model = MyModel(
        BertModel(BertConfig(vocab_size=30, **shape), add_pooling_layer=False), 16, TASKS, HeadOptions(use_crf=True)
    )
    for parameter in model.output_layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.train()


def micro_batches(count):
    """Returns micro-batches with texts of different lengths, words of two sub-tokens, and texts without an intent."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for number in range(count):
        lengths = torch.randint(4, 9, (5,), generator=generator)
        mask = torch.arange(8) < lengths.unsqueeze(1)
        ids = torch.randint(1, 20, (5, 8), generator=generator) * mask
        words = ((lengths - 2) // 2).clamp(min=1)
        word_mask = torch.arange(3) < words.unsqueeze(1)
        intent, slots = (torch.randint(0, 3, size, generator=generator) for size in ((5,), (5, 3)))
        intent[number % 5] = -100
        inputs = {"input_ids": ids, "attention_mask": mask.long(), "token_type_ids": torch.zeros_like(ids)}
        inputs |= {"word_starts": torch.tensor([[1, 3, 5]]) * word_mask, "word_mask": word_mask}
        batches.append(Batch(inputs, {"intent": intent, "slots": slots.masked_fill(~word_mask, -100)}, torch.arange(5)))
    return batches


def totals_of(batches):
    return {
        "intent": sum((batch.labels["intent"] != -100).sum() for batch in batches),
        "slots": sum(batch.inputs["word_mask"].sum() for batch in batches),
    }


def trainer_of(model, make_trick, precision, tmp_path, **options):
    """Returns a real trainer without data."""
    config = Config(
        precision=precision, output_dir=str(tmp_path), model_version="x", pretrain_model_path="x", lr=1e-2, **options
    )
    made = make_trick(model)
    switched_on = tricks.Tricks(made if isinstance(made, list) else [made] if made else [])
    groups = switched_on.param_groups(parameter_groups(model, config))
    optimizer = merge_groups(build_optimizer(groups, config, "cpu"))
    scheduler = build_scheduler(optimizer, config, 10)
    no_data = SimpleNamespace(dataset=SimpleNamespace(fingerprint=""))
    setup = TrainingSetup(no_data, no_data, optimizer, scheduler, switched_on)
    return Trainer(model, None, TASKS, config, torch.device("cpu"), setup)


def relative_error(found, expected):
    """Returns ||found - expected|| / ||expected|| over all parameters."""
    difference = sum((f - w).double().square().sum() for f, w in zip(found, expected))
    return (difference / sum(w.double().square().sum() for w in expected)).sqrt().item()


# ---- gradients -------------------------------------------------------------------------------------------------------


class Oracle:
    """The tiny model in plain torch. Every perturbation is an argument, and every loss is computed explicitly."""

    def __init__(self, model, totals, precision):
        self.model, self.totals, self.half = (
            model,
            totals,
            {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision),
        )
        self.parameters = dict(model.named_parameters())

    def outputs(self, batch, weights=None, noise=0.0, samples=1, half=None):
        """Returns [(loss, intent logits, emissions)], one per dropout sample of the heads."""
        half = self.half if half is None else half
        weights = {**self.parameters, **(weights or {})}
        with torch.autocast("cpu", half or None, enabled=bool(half)):
            table = weights["encoder.embeddings.word_embeddings.weight"]
            vectors = F.embedding(batch.inputs["input_ids"], table) + noise
            encoder = {
                name.removeprefix("encoder."): weight for name, weight in weights.items() if name.startswith("encoder.")
            }
            arguments = {"inputs_embeds": vectors, "attention_mask": batch.inputs["attention_mask"]}
            hidden = functional_call(self.model.encoder, encoder, kwargs=arguments).last_hidden_state
            return [self.read(hidden, batch, weights) for _ in range(samples)]

    def read(self, hidden, batch, weights):
        heads = {
            name.removeprefix("output_layer.heads."): weight for name, weight in weights.items() if "heads" in name
        }
        text = F.dropout(hidden[:, 0], 0.1)
        places = batch.inputs["word_starts"]
        words = F.dropout(torch.stack([hidden[i, places[i]] for i in range(len(places))]), 0.1)
        intent = F.linear(text, heads["intent.linear.weight"], heads["intent.linear.bias"]).float()
        emissions = F.linear(words, heads["slots.linear.weight"], heads["slots.linear.bias"]).float()
        with torch.autocast("cpu", enabled=False):
            losses = F.cross_entropy(intent, batch.labels["intent"], reduction="sum") / self.totals["intent"]
            for i, length in enumerate(batch.inputs["word_mask"].sum(1)):
                scores = self.paths(emissions[i, :length], heads)
                right = sum(int(tag) * 3 ** (length - 1 - t) for t, tag in enumerate(batch.labels["slots"][i, :length]))
                losses = losses - (scores[right] - scores.logsumexp(0)) / self.totals["slots"]
        return losses, intent, emissions, heads

    @staticmethod
    def paths(emissions, heads):
        """Computes the score of every path separately."""
        start, end, between = (heads[f"slots.crf.{name}transitions"] for name in ("start_", "end_", ""))
        scores = []
        for path in itertools.product(range(3), repeat=len(emissions)):
            score = start[path[0]] + end[path[-1]] + sum(emissions[t, tag] for t, tag in enumerate(path))
            scores.append(score + sum(between[a, b] for a, b in itertools.pairwise(path)))
        return torch.stack(scores)

    def divergence(self, one, other, batch):
        """Computes the symmetric KL divergence over the intents and over all paths."""

        def both(p, q):  # log-probabilities
            return (p.exp() * (p - q)).sum() + (q.exp() * (q - p)).sum()

        known = batch.labels["intent"] != -100
        total = both(one[1].log_softmax(1)[known], other[1].log_softmax(1)[known]) / self.totals["intent"]
        for i, length in enumerate(batch.inputs["word_mask"].sum(1)):
            p, q = (self.paths(output[2][i, :length], output[3]).log_softmax(0) for output in (one, other))
            total = total + both(p, q) / self.totals["slots"]
        return total

    def gradient(self, loss, of=None):
        expected = list((of or self.parameters).values()) if not isinstance(of, torch.Tensor) else [of]
        found = torch.autograd.grad(loss, expected, allow_unused=True)
        return [torch.zeros_like(w) if f is None else f for f, w in zip(found, expected)]


WORDS = "encoder.embeddings.word_embeddings.weight"


def plus(*gradients):
    return [sum(parts) for parts in zip(*gradients)]


def plain_loss(oracle, batch, *place, **noise):
    return oracle.outputs(batch, *place, **noise)[0][0]


def rdrop_loss(oracle, batch, *place, **noise):
    (one,), (other,) = (oracle.outputs(batch, *place, **noise) for _ in range(2))
    return (one[0] + other[0]) / 2 + 2.0 / 2 * oracle.divergence(one, other, batch)


def fgm(oracle, batch, loss=plain_loss):
    clean = oracle.gradient(loss(oracle, batch))
    g = dict(zip(oracle.parameters, clean))[WORDS]
    moved = {WORDS: oracle.parameters[WORDS] + 0.7 * g / g.norm()}
    return plus(clean, oracle.gradient(loss(oracle, batch, moved)))


def pgd(oracle, batch):
    clean = oracle.gradient(oracle.outputs(batch)[0][0])
    found, r = clean, 0.0
    for _ in range(3):
        g = dict(zip(oracle.parameters, found))[WORDS]
        r = r + 0.5 * g / g.norm()
        r = r * min(1.0, 0.7 / r.norm().item())
        found = oracle.gradient(oracle.outputs(batch, {WORDS: oracle.parameters[WORDS] + r})[0][0])
    return plus(clean, found)


def freelb(oracle, batch, loss=plain_loss):
    mask = batch.inputs["attention_mask"]
    delta = torch.rand(5, 8, 16) * 2 - 1
    delta = torch.stack([delta[i] * mask[i, :, None] * 0.4 / (mask[i].sum() * 16).sqrt() for i in range(5)])
    state, total = torch.get_rng_state(), None
    for _ in range(3):
        torch.set_rng_state(state)
        delta = delta.detach().requires_grad_()
        *parameters, g = oracle.gradient(loss(oracle, batch, noise=delta), {**oracle.parameters, "delta": delta})
        total = parameters if total is None else plus(total, parameters)
        steps = []
        for i in range(5):
            one = delta[i] + 0.3 * g[i] / g[i].norm()
            steps.append(one * min(1.0, 0.5 / one.norm().item()))
        delta = torch.stack(steps)
    return [part / 3 for part in total]


def awp(oracle, batch, loss=plain_loss):
    clean = dict(zip(oracle.parameters, oracle.gradient(loss(oracle, batch))))
    moved = {
        n: w + 0.1 * w.norm().item() * clean[n] / clean[n].norm()
        for n, w in oracle.parameters.items()
        if w.ndim > 1 and clean[n].any()
    }
    return oracle.gradient(loss(oracle, batch, moved))


def smart(oracle, batch):
    state, mask = torch.get_rng_state(), batch.inputs["attention_mask"].unsqueeze(2)
    loss = oracle.outputs(batch)[0][0]

    def again(noise):
        torch.set_rng_state(state)
        return oracle.outputs(batch, noise=noise, half=False)[0]

    drawn = torch.get_rng_state()
    plain = again(0.0)
    torch.set_rng_state(drawn)
    noise = (torch.randn(5, 8, 16) * 1e-2 * mask).requires_grad_()
    end = torch.get_rng_state()
    fixed = [part.detach() if isinstance(part, torch.Tensor) else part for part in plain]
    (g,) = torch.autograd.grad(oracle.divergence(again(noise), fixed, batch), noise)
    norms = g.norm(dim=2, keepdim=True)
    r = noise.detach() + 0.05 * torch.where(norms > 0, g / norms, 0.0)
    found = oracle.gradient(loss + 3 * oracle.divergence(again(r), plain, batch))
    torch.set_rng_state(end)
    return found


def rdrop(oracle, batch):
    return oracle.gradient(rdrop_loss(oracle, batch))


def dropout_samples(oracle, batch):
    return oracle.gradient(sum(output[0] for output in oracle.outputs(batch, samples=4)) / 4)


# {trick: (options of the trainer, oracle, [line of tricks.py, broken line])}
GRADIENTS = {
    "plain": (lambda room, model: None, lambda oracle, batch: oracle.gradient(oracle.outputs(batch)[0][0]), []),
    "FGM": (
        lambda room, model: room.FGM(model, 0.7),
        fgm,
        [
            ("earlier, self.weight.grad = self.weight.grad, None", "earlier = None"),  # r from the accumulated gradient
            ("self.alpha * safe_normalize(direction, torch.linalg.vector_norm(direction))", "self.alpha * direction"),
            ("            self.weight.grad += earlier", "            pass"),
            ("self.weight[rows] = values\n            self.saved = None", "self.saved = None"),  # never restored
        ],
    ),
    "PGD": (
        lambda room, model: room.PGD(model, 0.7, 0.5, 3),
        pgd,
        [
            ("range(self.steps - 1)", "range(self.steps)"),
            (
                "self.ascend()\n                take_gradients(self.model)",
                "self.ascend()",
            ),  # gradients of all steps are summed
            ("r = self.r + self.alpha", "r = self.alpha"),
            ("        add_gradients(clean)\n", ""),
            ("(self.eps / torch.linalg.vector_norm(r).clamp(min=max(self.eps, 1e-12)))", "1"),  # no projection
        ],
    ),
    "FreeLB": (
        lambda room, model: room.FreeLB(model, 3, 0.3, 0.4, 0.5),
        freelb,
        [
            (
                "            set_random_state(dropout, ids.device)\n            with self.noise.added(delta",
                "            with self.noise.added(delta",
            ),
            ("add_gradients(gradients, 1 / self.steps)", "add_gradients(gradients)"),
            (
                "safe_normalize(delta.grad, norm_by_text(delta.grad))",
                "safe_normalize(delta.grad, delta.grad.norm())",
            ),  # over the batch instead of each text
            ("(mask.sum(1, keepdim=True) * self.noise.width)", "(mask.shape[1] * self.noise.width)"),
        ],
    ),
    "AWP": (
        lambda room, model: room.AWP(model, 0.1),
        awp,
        [
            ("self.gamma * torch.linalg.vector_norm(p) *", "self.gamma *"),
            ("                    p.copy_(before)", "                    pass"),
            ("with self.perturbed():\n                take_gradients(self.model)\n", "with self.perturbed():\n"),
            ("if p.ndim > 1 and", "if"),
        ],
    ),
    "SMART": (
        lambda room, model: room.SMART(model, 3.0, 0.05, 1e-2),
        smart,
        [
            ("noise.detach() + self.step * safe", "noise.detach() + self.step * 0 * safe"),
            (
                "self.weight * self.model.divergence(noisy, clean, batch)",
                "self.weight * self.model.divergence(noisy, fixed, batch)",
            ),
            (
                "        set_random_state(dropout, next(self.model.parameters()).device)\n        with "
                "self.noise.added(noise)",
                "        with self.noise.added(noise)",
            ),
            ("torch.linalg.vector_norm(gradient, dim=2, keepdim=True)", "torch.linalg.vector_norm(gradient)"),
        ],
    ),
    "RDrop": (
        lambda room, model: room.RDrop(model, 2.0),
        rdrop,
        [
            ("self.alpha / 2 * self.model", "self.alpha * self.model"),
            ("mean_output([first, second])", "mean_output([first])"),
            ("        second = forward()", "        second = first"),
        ],
    ),
    "dropout samples": (lambda room, model: setattr(model, "dropout_samples", 4), dropout_samples, []),
    "FGM + RDrop": (
        lambda room, model: [room.FGM(model, 0.7), room.RDrop(model, 2.0)],
        lambda oracle, batch: fgm(oracle, batch, rdrop_loss),
        [],
    ),
    "FreeLB + RDrop": (
        lambda room, model: [room.FreeLB(model, 3, 0.3, 0.4, 0.5), room.RDrop(model, 2.0)],
        lambda oracle, batch: freelb(oracle, batch, rdrop_loss),
        [],
    ),
    "AWP + RDrop": (
        lambda room, model: [room.AWP(model, 0.1), room.RDrop(model, 2.0)],
        lambda oracle, batch: awp(oracle, batch, rdrop_loss),
        [],
    ),
}


def gradient_error(name, precision, accumulation, room, tmp_path):
    """Returns the relative error of the trainer's gradient of a group of micro-batches, plus 1 if the weights are not
    bit-exact."""
    make, oracle, _ = GRADIENTS[name]
    model, batches = tiny_model(), micro_batches(accumulation)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer = trainer_of(model, lambda model: make(room, model), precision, tmp_path)
    trainer.scaler = torch.amp.GradScaler(
        "cpu", init_scale=16.0, enabled=precision == "fp16"
    )  # the default, 65536, would overflow at first
    torch.manual_seed(7)
    for batch in batches:
        forward_backward(trainer, batch, totals_of(batches))
    trainer.scaler.unscale_(trainer.optimizer)
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    same = all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    fresh = tiny_model()
    plain = Oracle(fresh, totals_of(batches), precision)
    torch.manual_seed(7)
    expected = plus(*[oracle(plain, batch) for batch in batches])
    return relative_error(found, expected) + (0 if same else 1)


def broken(old, new):
    """Returns tricks.py or engine/tricks/averages.py with one line changed."""
    sources = [inspect.getsource(module) for module in (tricks, averages)]
    counts = [source.count(old) for source in sources]
    assert sorted(counts) == [0, 1], f"{counts} times in tricks.py and engine/tricks/averages.py: {old}"
    source = sources[counts.index(1)]
    room = ModuleType("broken")
    exec(compile(source.replace(old, new), "broken", "exec"), room.__dict__)
    return room


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("precision", SAME)
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient_equals_the_oracle(name, precision, accumulation, tmp_path):
    assert gradient_error(name, precision, accumulation, tricks, tmp_path) < SAME[precision]


@pytest.mark.slow
@pytest.mark.parametrize("precision", NAMES)
@pytest.mark.parametrize(
    "name, old, new", [(name, *line) for name, (_, _, lines) in GRADIENTS.items() for line in lines]
)
def test_a_broken_trick_is_rejected(name, old, new, precision, tmp_path):
    assert gradient_error(name, precision, 4, broken(old, new), tmp_path) > 2 * SAME[precision]


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0.0])
@pytest.mark.parametrize("name", ["FGM", "PGD", "FreeLB", "AWP"])
def test_a_non_finite_perturbation_changes_nothing(name, value):
    """If the gradient of an adversarial method is not finite, its second forward pass uses unperturbed weights and
    vectors."""
    model, (batch,) = tiny_model().eval(), micro_batches(1)
    trick = {
        "FGM": tricks.FGM,
        "PGD": tricks.PGD,
        "FreeLB": lambda m: tricks.FreeLB(m, magnitude=0.0),
        "AWP": tricks.AWP,
    }[name](model)
    losses = []

    def compute():
        output = model(batch.inputs, batch.labels)
        losses.append(output.total_loss.item())
        output.total_loss.backward()
        for tensor in [*model.parameters(), trick.noise.value] if name == "FreeLB" else model.parameters():
            if tensor.grad is not None:
                tensor.grad.fill_(value)

    for _ in trick.passes(batch):
        compute()
    assert len(losses) > 1 and set(losses) == {losses[0]}


def test_no_divergence_without_dropout_or_noise(tmp_path):
    model, (batch,) = tiny_model().eval(), micro_batches(1)
    one, other = model(batch.inputs, batch.labels), model(batch.inputs, batch.labels)
    assert model.divergence(one, other, batch).item() == 0
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with pytest.raises(UserError, match="has no dropout"):
        tricks.RDrop(model)
    with pytest.raises(UserError, match="--dropout is 0"):
        Config(dropout_samples=2, dropout=0.0)


@pytest.mark.parametrize("kind", ["multilabel", "regression", "tagging"])
def test_divergence_of_other_heads(kind):
    """Compares Bernoulli, normal and per-word categorical divergences with torch.distributions."""
    from model_utils import HEADS

    torch.manual_seed(0)
    task = Task(kind, labels=["a", "b", "c"], mean=1.0, std=2.0)
    head = HEADS[kind](4, task)
    one, other = torch.randn(2, *{"multilabel": (5, 3), "regression": (5,), "tagging": (5, 2, 3)}[kind])
    made = {
        "multilabel": lambda logits: torch.distributions.Bernoulli(logits=logits),
        "regression": lambda logits: torch.distributions.Normal(logits, 1.0),
        "tagging": lambda logits: torch.distributions.Categorical(logits=logits),
    }[kind]
    p, q = made(one), made(other)
    both = torch.distributions.kl_divergence(p, q) + torch.distributions.kl_divergence(q, p)
    labels = {
        "multilabel": torch.zeros(5, 3).long(),
        "regression": torch.zeros(5),
        "tagging": torch.zeros(5, 2).long(),
    }[kind]
    labels[2] = float("nan") if kind == "regression" else -100
    both[2] = 0
    assert head.distribution.divergence(one, other, labels, {}).item() == pytest.approx(both.sum().item(), rel=1e-5)


def test_divergence_uses_the_class_weights_of_the_loss():
    """With class weights, the divergence of each text has the same weight as its loss, and both are divided by the sum
    of the weights."""
    model, (batch,) = tiny_model().eval(), micro_batches(1)
    head = model.output_layer.heads["intent"]
    head.task = replace(head.task, counts=(28, 7, 2))
    head.set_options(Config(class_weights="balanced"), "intent")
    del batch.labels["slots"]
    one, other = model(batch.inputs, batch.labels), model(batch.inputs, batch.labels)
    other.logits = {"intent": one.logits["intent"] + torch.randn(5, 3, generator=torch.Generator().manual_seed(0))}
    labels = batch.labels["intent"]
    p, q = one.logits["intent"].log_softmax(1), other.logits["intent"].log_softmax(1)
    each = (p.exp() * (p - q) + q.exp() * (q - p)).sum(1)
    weight = torch.where(labels == -100, 0.0, (37 / (3 * torch.tensor([28.0, 7.0, 2.0])))[labels.clamp(min=0)])
    expected = (each * weight).sum() / weight.sum()
    assert model.divergence(one, other, batch).item() == pytest.approx(expected.item(), rel=1e-5)


# ---- weights: averages, rates, unfreezing ----------------------------------------------------------------------------


# AdamW's epsilon: with 1e-8, gradients that are only rounding errors, such as those of the keys' biases, would change
# their weights as much as other gradients
EPS = 1e-3


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def plain_training(precision, accumulation, steps, rate=None, trains=None):
    """Returns the weights after each step of a plain loop: autograd.grad, AdamW's for-loop, no clipping. rate, trains:
    functions of the parameter's name."""
    model, found = tiny_model(), []
    named = dict(model.named_parameters())
    groups = [
        {
            "params": [p],
            "lr": rate(n) if rate else 1e-2,
            "weight_decay": 0.01 if p.ndim > 1 and ".crf." not in n else 0.0,
        }
        for n, p in named.items()
    ]
    optimizer = torch.optim.AdamW(groups, eps=EPS, foreach=False)
    torch.manual_seed(7)
    for step in range(steps):
        batches = micro_batches(accumulation)
        oracle = Oracle(model, totals_of(batches), precision)
        gradient = plus(*[oracle.gradient(oracle.outputs(batch)[0][0]) for batch in batches])
        for (name, p), g in zip(named.items(), gradient):
            p.grad = g if trains is None or trains(name, step) else None
        optimizer.step()
        found.append(weights(model))
    return found


def our_training(make_trick, precision, accumulation, steps, tmp_path, epoch_of_a_step=False, spoil=(), score=None):
    """Returns (trainer, weights after each step) of a real run. spoil: steps with an infinite gradient. score: function
    that scores a model's weights on dev."""
    model = tiny_model()
    options = dict(max_grad_norm=0.0, scheduler="constant", warmup_epochs=0, head_lr=1e-2)
    trainer, found = trainer_of(model, make_trick, precision, tmp_path, **options), []
    for group in trainer.optimizer.param_groups:
        group["eps"] = EPS
    torch.manual_seed(7)
    for step in range(steps):
        batches = micro_batches(accumulation)
        if epoch_of_a_step:
            trainer.tricks.before_epoch(step)
        for batch in batches:
            trainer.losses.add([forward_backward(trainer, batch, totals_of(batches))])
        if step in spoil:
            next(p for p in model.parameters() if p.grad is not None).grad.view(-1)[0] = float("inf")
        trainer.optimizer_step(batches)
        if epoch_of_a_step:
            trainer.tricks.after_epoch(step)
            trainer.tricks.choose_weights(step, lambda: score(weights(model)), operator.gt)
        found.append(weights(model))
    return trainer, found


def distance(found, expected):
    """Returns the relative error of a change of the weights."""
    start = weights(tiny_model())
    return relative_error([f - s for f, s in zip(found, start)], [w - s for w, s in zip(expected, start)])


def averaged_weights(trainer):
    with trainer.tricks.swap_weights():
        return weights(trainer.model)


def ema_error(room, precision, accumulation, tmp_path):
    trainer, seen = our_training(lambda model: room.EMA(model, 0.7), precision, accumulation, 5, tmp_path)
    plain = plain_training(precision, accumulation, 5)
    shares = [0.7 ** (4 - i) for i in range(5)]
    expected = [sum(share * w for share, w in zip(shares, each)) / sum(shares) for each in zip(*plain)]
    return (
        distance(seen[-1], plain[-1])
        + distance(averaged_weights(trainer), expected)
        + distance(weights(trainer.model), plain[-1])
    )


def swa_error(room, precision, accumulation, tmp_path):
    trainer, _ = our_training(
        lambda model: room.SWA(model, 2), precision, accumulation, 5, tmp_path, epoch_of_a_step=True
    )
    plain = plain_training(precision, accumulation, 5)
    model = tiny_model()
    library = AveragedModel(model)
    for seen in plain[2:]:
        with torch.no_grad():
            for p, w in zip(model.parameters(), seen):
                p.copy_(w)
        library.update_parameters(model)
    return distance(averaged_weights(trainer), weights(library.module)) + distance(weights(trainer.model), plain[-1])


def mean_of(several):
    return [sum(each) / len(several) for each in zip(*several)]


def greedy_soup(epochs, score):
    """Returns the epochs in the soup after each epoch, computed from the weights of all epochs. epochs: [weights]."""
    soups, soup, best = [], [], -math.inf
    for number, one in enumerate(epochs):
        larger = [*soup, number]
        together, alone = score(mean_of([epochs[i] for i in larger])), score(one)
        if together >= max(alone, best):
            soup, best = larger, together
        elif alone > best:
            soup, best = [number], alone
        soups.append(soup)
    return soups


def soup_error(room, precision, accumulation, tmp_path):
    plain = plain_training(precision, accumulation, 5)
    target = mean_of(plain[1:3])

    def score(found):
        return -relative_error(found, target)

    assert greedy_soup(plain, score) == [[0], [1], [1, 2], [1, 2], [1, 2]]  # replaced, extended, unchanged
    trainer, _ = our_training(
        lambda model: room.Soup(model), precision, accumulation, 5, tmp_path, epoch_of_a_step=True, score=score
    )
    kept = trainer.tricks[0]
    wrong = abs(int(kept.count) - 2) + abs(kept.score - score(averaged_weights(trainer)))
    return wrong + distance(averaged_weights(trainer), target) + distance(weights(trainer.model), plain[-1])


def rate_of(name):
    """A factor of 0.5 for each layer below the second and last one; 1e-2 for the heads."""
    if not name.startswith("encoder."):
        return 1e-2
    return 1e-2 * 0.5 ** (0 if "layer.1." in name else 1 if "layer.0." in name else 2)


def layer_decay_error(room, precision, accumulation, tmp_path):
    _, seen = our_training(lambda model: room.LayerwiseDecay(model, 0.5), precision, accumulation, 3, tmp_path)
    return distance(seen[-1], plain_training(precision, accumulation, 3, rate=rate_of)[-1])


def trains(name, epoch):
    first = 0 if not name.startswith("encoder.") else 1 if "layer.1." in name else 2 if "layer.0." in name else 3
    return epoch >= first


def unfreezing_error(room, precision, accumulation, tmp_path):
    _, seen = our_training(
        lambda model: room.GradualUnfreezing(model, 1), precision, accumulation, 5, tmp_path, epoch_of_a_step=True
    )
    plain = plain_training(precision, accumulation, 5, trains=trains)
    return sum(distance(a, b) for a, b in zip(seen, plain))


WEIGHTS = {
    "EMA": (
        ema_error,
        [
            (
                "(1 - self.decay) / (1 - self.decay ** self.count.clamp(min=1))",
                "torch.tensor(1 - self.decay)",
            ),  # it keeps the first weights
            ("            p.data = weight\n", "            pass\n"),
            ("                p.data = data\n", "                pass\n"),
        ],
    ),
    "SWA": (
        swa_error,
        [
            ("self.update(1 / self.count)", "self.update(1 / (self.count + 1))"),
            ("epoch + 1 > self.start", "epoch > self.start"),
        ],
    ),
    "Soup": (
        soup_error,
        [
            ("share = score(), 1 / (self.count + 1)", "share = score(), 1 / (self.count + 2)"),
            ("elif is_better(alone, self.score):", "elif False:"),  # it would always keep the first epoch
            ("if not is_better(alone, together) and not", "if not"),
            (" and not is_better(self.score, together):", ":"),  # all epochs
            ("self.count + 1, together", "self.count, together"),
        ],
    ),
    "LayerwiseDecay": (
        layer_decay_error,
        [
            ('max(0, self.num_layers - group["layer"])', 'group["layer"]'),
            ("self.decay ** layers_above(group)", "self.decay ** (1 + layers_above(group))"),
        ],
    ),
    "GradualUnfreezing": (
        unfreezing_error,
        [
            ("self.num_layers - self.step * epoch", "self.num_layers - 1 - self.step * epoch"),
            ("layer > self.num_layers", "layer < self.num_layers"),
        ],
    ),
}


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("precision", NAMES)
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_equal_the_oracle(name, precision, accumulation, tmp_path):
    assert WEIGHTS[name][0](tricks, precision, accumulation, tmp_path) < 5 * SAME[precision]


@pytest.mark.slow
@pytest.mark.parametrize("precision", NAMES)
@pytest.mark.parametrize("name, old, new", [(name, *line) for name, (_, lines) in WEIGHTS.items() for line in lines])
def test_broken_weights_are_rejected(name, old, new, precision, tmp_path):
    assert WEIGHTS[name][0](broken(old, new), precision, 4, tmp_path) > 20 * SAME[precision]


def test_a_step_that_is_not_finite_is_not_averaged(tmp_path):
    trainer, seen = our_training(lambda model: tricks.EMA(model, 0.7), "fp32", 1, 4, tmp_path, spoil=(1, 2))
    assert all(torch.equal(a, b) for a, b in zip(seen[0], seen[2])) and not torch.equal(seen[0][0], seen[3][0])
    expected = [(0.7 * first + last) / 1.7 for first, last in zip(seen[0], seen[3])]
    assert distance(averaged_weights(trainer), expected) < 1e-5 and trainer.tricks[0].count == 2


def test_an_interrupted_evaluation_restores_weights_and_random_states(tiny):
    """If scoring with averaged weights is interrupted, the trained weights are restored; the best checkpoint contains
    the average."""
    trainer = make_trainer(tiny(epochs=2, use_ema=True))
    before, check = {}, trainer.stop.check

    def signalled():
        if not trainer.model.training and trainer.progress.step == 2 * len(trainer.train_loader):
            before.update(own=trainer.own, scored=weights(trainer.model))
            trainer.stop.number = 15
        elif trainer.model.training:
            trainer.own = weights(trainer.model)
        check()

    trainer.stop.check = signalled
    with pytest.raises(Interrupted):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(weights(trainer.model), before["own"]))
    assert not torch.equal(before["own"][0], before["scored"][0])
    last = checkpoint.step_folders(trainer.checkpoints)[0]
    saved, training = load_file(last / "weights.safetensors"), load_file(last / "training.safetensors")
    for (name, _), own, average in zip(trainer.model.named_parameters(), before["own"], before["scored"]):
        assert torch.equal(saved[name], own) and torch.equal(training[f"tricks.EMA.average.{name}"], average)


def test_the_best_checkpoint_has_the_averaged_weights_and_their_scores(tiny, tmp_path):
    from data_loader import MyDataLoader

    for options in (dict(use_ema=True, epochs=1), dict(use_swa=True, swa_start=0.0, epochs=2)):
        config = tiny(model_version=str(options), monitor="loss", precision="fp32", **options)
        trainer = train(config)
        best = load_file(config.run_dir / "checkpoints/best/weights.safetensors")
        raw = load_file(checkpoint.step_folders(trainer.checkpoints)[0] / "weights.safetensors")
        average = trainer.tricks[0].average
        assert all(torch.equal(best[name], average[name]) for name in average)
        assert not all(torch.equal(best[name], raw[name]) for name in average)
        assert trainer.progress.best_epoch == trainer.progress.epoch  # the score of the average at its end
        model, tokenizer, tasks, _ = load_checkpoint(config.run_dir / "checkpoints/best")
        evaluation = Trainer(model, tokenizer, tasks, config, torch.device("cpu")).eval(
            MyDataLoader(trainer.dev_loader.dataset, 64)
        )
        assert evaluation.scores[trainer.monitor] == trainer.progress.best_score


def test_the_best_checkpoint_contains_the_greedy_soup(tiny):
    """The reference is the mean of the recorded weights of each subset of epochs, scored by the trainer."""
    config = tiny(use_soup=True, epochs=8, scheduler="constant", lr=5e-3, monitor="slots_f1", early_stop_patience=0)
    trainer, epochs = make_trainer(config), []
    after_epoch = trainer.tricks.after_epoch

    def write_down(epoch):
        epochs.append(weights(trainer.model))
        after_epoch(epoch)

    trainer.tricks.after_epoch = write_down
    trainer.train()

    def score(found):
        for p, w in zip(trainer.model.parameters(), found):
            p.data.copy_(w)
        return trainer.score_dev()["slots_f1"]

    soups = greedy_soup(epochs, score)
    scores = [score(mean_of([epochs[i] for i in soup])) for soup in soups]
    assert max(map(len, soups)) > 1 and trainer.progress.best_score == pytest.approx(max(scores))
    kept = soups[scores.index(max(scores))]
    best = load_file(config.run_dir / "checkpoints/best/weights.safetensors")
    for (name, _), expected in zip(trainer.model.named_parameters(), mean_of([epochs[i] for i in kept])):
        torch.testing.assert_close(best[name], expected, rtol=1e-5, atol=1e-7)


def test_a_soup_stopped_during_an_evaluation_resumes_bit_exactly(tiny, monkeypatch):
    """Stops at every evaluation: of an epoch alone, with the soup, and of the selected weights."""
    options = dict(use_soup=True, epochs=2, lr=2e-2, batch_size=30)
    whole = tiny(model_version="whole", **options)
    train(whole)
    scorings = 2 + 3
    for stop in range(1, scorings + 1):
        config = tiny(model_version=f"stopped{stop}", **options)
        trainer, done = make_trainer(config), []
        trainer.resume()
        infer = trainer.infer

        def signalled(*args, trainer=trainer, infer=infer, done=done, stop=stop):
            done.append(args)
            if len(done) == stop:
                trainer.stop.number = 15
            return infer(*args)

        monkeypatch.setattr(trainer, "infer", signalled)
        with pytest.raises(Interrupted):
            trainer.train()
        seed_torch(99)
        train(config)
        assert fingerprints(config) == fingerprints(whole), f"stopped at scoring {stop}"
    assert len(done) == scorings


def test_a_resumed_soup_keeps_its_score():
    """After a stop, a worse epoch and a worse average do not change it."""
    model = tiny_model()
    before, after = tricks.Soup(model), tricks.Soup(model)
    before.choose_weights(0, lambda: 0.9, operator.gt)
    after.load_state_dict(before.state_dict())
    kept = weights(model)
    with torch.no_grad():
        for p in model.parameters():
            p += 1.0
    after.choose_weights(1, lambda: 0.5, operator.gt)
    with after.swap_weights():
        assert all(torch.equal(p, w) for p, w in zip(model.parameters(), kept))
    assert (after.score, after.count, after.last) == (0.9, 1, 1)


def test_ema_averages_over_a_fraction_of_all_steps(tiny, caplog):
    """Applies to the default; a number is unchanged."""
    short = dict(epochs=3, gradient_accumulation_steps=2)  # 4 steps per epoch
    for steps, expected in ((0, 0.9), (12, 0.9), (400, 0.95), (2800, 1 - 1 / 140), (10**7, 0.9999)):
        assert ema_decay_of(steps) == pytest.approx(expected)
    logging.getLogger("template").propagate = True
    caplog.set_level(logging.INFO)
    assert make_trainer(tiny(use_ema=True, **short)).tricks[0].decay == ema_decay_of(12)
    assert "--ema_decay auto: 0.9000 for 12 steps" in caplog.text
    assert make_trainer(tiny(use_ema=True, ema_decay=0.99, model_version="x")).tricks[0].decay == 0.99


def test_the_rate_stays_where_swa_begins(tiny):
    def rates(**options):
        trainer = make_trainer(tiny(epochs=10, warmup_epochs=1, model_version=f"x{options}", **options), rows=40)
        update, found = trainer.optimizer_step, []
        trainer.optimizer_step = lambda group: (update(group), found.append(trainer.lr))
        for epoch in range(10):
            trainer.train_one_epoch(epoch)
            trainer.progress.batch = 0
        return [rate / max(found) for rate in found]

    plain, swa = rates(), rates(use_swa=True, swa_start=0.6)
    epoch = len(plain) // 10
    assert swa[: 6 * epoch + 1] == plain[: 6 * epoch + 1] and set(swa[6 * epoch :]) == {plain[6 * epoch]}
    assert set(rates(use_swa=True, swa_start=0.0)[epoch:]) == {1.0}  # not before the warmup has ended


def test_early_stopping_waits_for_the_start_of_a_trick(tiny):
    """With a rate near zero, no epoch is better than the first, so runs stop when early stopping becomes active."""
    stopped = {}
    for options in ({}, dict(use_awp=True, awp_start=0.5), dict(use_swa=True, swa_start=0.5)):
        config = tiny(epochs=8, early_stop_patience=2, lr=1e-12, model_version=f"patience{options}", **options)
        stopped[" ".join(options)] = train(config).progress.epoch
    assert stopped == {"": 3, "use_awp awp_start": 6, "use_swa swa_start": 6}


def test_awp_starts_after_a_fraction_of_the_epochs(tiny):
    for epochs, start in ((3, 1), (10, 2), (30, 6)):
        awp = tricks.AWP.build(nn.Linear(2, 2), Config(use_awp=True, epochs=epochs))
        assert awp.start_epoch() == start
        for epoch in range(epochs):
            awp.before_epoch(epoch)
            assert awp.on == (epoch >= start)


def test_a_custom_trick_needs_one_class_and_an_entry_in_tricks(tiny, monkeypatch):
    """Gradient noise (Neelakantan et al., 2015) needs only the class, an entry in TRICKS and an option."""
    seen = []

    class GradientNoise(Trick):
        @classmethod
        def build(cls, model, config):
            return cls(model) if getattr(config, "gradient_noise", False) else None

        def __init__(self, model):
            self.model = model

        def passes(self, batch):
            yield True
            seen.append(batch.rows)
            for p in self.model.parameters():
                if p.grad is not None:
                    p.grad += 1e-3 * torch.randn_like(p)

    monkeypatch.setattr(tricks, "TRICKS", [*tricks.TRICKS, GradientNoise])

    @dataclass(frozen=True)
    class OwnConfig(Config):
        gradient_noise: bool = option(True, "noise on the gradients")

    trainer = make_trainer(OwnConfig(**asdict(tiny(epochs=1))))
    assert [type(trick) for trick in trainer.tricks] == [GradientNoise]
    trainer.train()
    assert len(seen) == len(trainer.train_loader)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["FreeLB", "SMART"])
def test_noise_reaches_a_compiled_encoder(name, tmp_path):
    """The hook is registered before the first trace, so dynamo sees it: the compiled gradient equals the eager one."""
    gradients = []
    for compiled in (False, True):
        model, (batch,) = tiny_model(), micro_batches(1)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # dynamo draws its own masks
        trick = {
            "FreeLB": lambda m: tricks.FreeLB(m, 3, 0.3, 0.4, 0.5),
            "SMART": lambda m: tricks.SMART(m, 3.0, 0.05, 1e-2),
        }[name]
        trainer = trainer_of(model, trick, "fp32", tmp_path)
        if compiled:
            torch._dynamo.reset()
            model.encoder.compile(dynamic=True, backend="aot_eager")
            with torch.no_grad():
                model(batch.inputs, batch.labels)  # traced without noise first
        torch.manual_seed(7)
        forward_backward(trainer, batch, totals_of([batch]))
        gradients.append([torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()])
    torch._dynamo.reset()
    assert relative_error(gradients[1], gradients[0]) < 1e-4


def test_bilstm_and_frozen_words_take_noise(tiny):
    """FreeLB perturbs word vectors instead of weights, so it works with a frozen matrix and with any encoder."""
    for options in (
        dict(encoder="bilstm", use_freelb=True),
        dict(freeze_layers=1, use_freelb=True),
        dict(encoder="bilstm", use_smart=True),
    ):
        trainer = train(tiny(epochs=1, model_version=f"{options}", **options))
        assert trainer.progress.step == len(trainer.train_loader)
        inputs, noise = next(iter(trainer.train_loader)).inputs, trainer.tricks[0].noise
        trainer.model.eval()
        plain = trainer.model(inputs).logits["intent"]
        with noise.added(torch.full((*inputs["input_ids"].shape, noise.width), 0.1)):
            assert not torch.equal(trainer.model(inputs).logits["intent"], plain)
        assert torch.equal(trainer.model(inputs).logits["intent"], plain)


# ---- FGM in other programs ------------------------------------------------------------------------


class Toy(nn.Module):
    """An embedding, a nonlinear layer and a loss."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 6)
        self.linear = nn.Linear(6, 3)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, ids, labels):
        return F.cross_entropy(self.linear(torch.tanh(self.embedding(ids)).mean(1)), labels)


def toy_batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 12, (4, 5), generator=generator), torch.randint(0, 3, (4,), generator=generator)


@pytest.mark.parametrize("given", [True, False])
def test_perturbation_has_norm_eps_and_weights_are_restored_bit_exactly(given):
    model = Toy()
    fgm, before = FGM(model, eps=0.3), model.embedding.weight.clone()
    ids, labels = toy_batch()
    model(ids, labels).backward()
    fgm.attack(ids if given else None)
    assert torch.linalg.vector_norm(model.embedding.weight - before).item() == pytest.approx(0.3, rel=1e-5)
    untouched = [row for row in range(20) if row not in ids]
    assert untouched and torch.equal(model.embedding.weight[untouched], before[untouched])
    fgm.restore()
    assert torch.equal(model.embedding.weight, before)
    fgm.restore()
    assert torch.equal(model.embedding.weight, before)


def test_an_error_restores_the_weights():
    model = Toy()
    fgm, before = FGM(model), model.embedding.weight.clone()
    ids, labels = toy_batch()
    model(ids, labels).backward()
    with pytest.raises(ZeroDivisionError), fgm.perturbed(ids):
        assert not torch.equal(model.embedding.weight, before)
        raise ZeroDivisionError
    assert torch.equal(model.embedding.weight, before)


def test_fgm_rejects_names_of_unsuitable_parameters():
    model = nn.ModuleDict({"embeddings": nn.Embedding(4, 2), "emb_norm": nn.LayerNorm(2)})
    assert FGM(model, emb_name="embeddings").weight is model["embeddings"].weight
    for name in ("word_embedding", "emb_norm"):
        with pytest.raises(UserError, match=name):
            FGM(model, emb_name=name)
    model["embeddings"].weight.requires_grad_(False)
    with pytest.raises(UserError, match="frozen"):
        FGM(model, emb_name="embeddings")
