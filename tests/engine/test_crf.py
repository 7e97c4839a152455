"""The CRF's GPU code paths, and the CPU's for few tags: values, first and second derivatives, launches, memory,
decoding."""

import itertools
import subprocess
import sys

import pytest
import torch
import torchcrf
from conftest import ROOT

from engine.model import crf_scan, viterbi
from engine.model.crf import CRF, MAX_CALLS
from engine.task.tags import may_follow

sys.path.insert(0, str(ROOT / "benchmarks"))
import launches

ON_GPU = ()  # for `launch_free`: treat the CPU like a GPU


def case(num_tags, num_words, batch=4, scale=1.0, spread=0.5, seed=0, labels=None):
    """Returns (a CRF with transitions up to `spread`, emissions, mask, lengths); the first text has the maximum
    length."""
    torch.manual_seed(seed)
    crf = CRF(labels or [f"B-{i}" for i in range(num_tags)])
    crf.launch_free = ON_GPU
    for parameter in crf.parameters():
        torch.nn.init.uniform_(parameter, -spread, spread)
    lengths = [num_words, *torch.randint(1, num_words + 1, (batch - 1,)).tolist()]
    mask = torch.arange(num_words) < torch.tensor(lengths)[:, None]
    return crf, torch.randn(batch, num_words, num_tags) * scale, mask, lengths


def with_gradients(function, emissions, crf, weights):
    """Returns [value, its gradients by emissions and parameters] in float64."""
    emissions = emissions.clone().requires_grad_()
    value = function(emissions)
    inputs = [emissions, crf.start_transitions, crf.transitions, crf.end_transitions]
    found = torch.autograd.grad((value * weights).sum(), inputs, allow_unused=True, materialize_grads=True)
    return [tensor.detach().double() for tensor in (value, *found)]


def by_adding_logs(crf, emissions, mask):
    """Computes the forward algorithm like textbooks define it."""
    alpha = crf.start_transitions + emissions[:, 0]
    for t in range(1, emissions.shape[1]):
        step = (alpha.unsqueeze(2) + crf.transitions).logsumexp(1) + emissions[:, t]
        alpha = torch.where(mask[:, t, None], step, alpha)
    return (alpha + crf.end_transitions).logsumexp(1)


def in_doubles(crf):
    copy = CRF([f"B-{i}" for i in range(len(crf.transitions))])
    copy.load_state_dict(crf.state_dict())
    return copy.double()


@pytest.mark.parametrize("spread", [0.5, 5.9, 29.9])  # float32 twice, float64
@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0])
def test_the_scan_equals_the_forward_algorithm_in_value_and_gradient(scale, spread):
    for seed, (num_tags, num_words) in enumerate(
        itertools.product((1, 2, 9), (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33, 100))
    ):
        crf, emissions, mask, _ = case(num_tags, num_words, scale=scale, spread=spread, seed=seed)
        if seed % 2:
            with torch.no_grad():
                crf.transitions.copy_(crf.transitions.sign() * spread)  # the largest allowed spread
        weights = torch.randn(len(mask))
        ours = with_gradients(lambda e: crf.log_partition(e, mask), emissions, crf, weights)  # noqa: B023
        exact = in_doubles(crf)
        expected = with_gradients(
            lambda e: by_adding_logs(exact, e, mask),  # noqa: B023
            emissions.double(),
            exact,
            weights.double(),
        )
        for one, other in zip(ours, expected):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4 if scale == 300 else 2e-5)


@pytest.mark.parametrize("change", ["forbidden", "-100 to 100", "start and end"])
@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0])
def test_large_transitions_lose_no_path(scale, change):
    for seed, num_words in enumerate((1, 2, 7, 33)):
        crf, emissions, mask, _ = case(9, num_words, scale=scale, seed=seed)
        with torch.no_grad():
            if change == "forbidden":
                crf.transitions[torch.rand(9, 9) < 0.5] = -1e4
            elif change == "-100 to 100":
                crf.transitions.uniform_(-100, 100)
            else:
                crf.start_transitions[::2], crf.end_transitions[1::2] = -1e4, -1e4
        reference = torchcrf.CRF(9, batch_first=True)
        reference.load_state_dict(crf.state_dict())
        tags, weights = torch.randint(9, mask.shape), torch.randn(4)
        ours = with_gradients(
            lambda e: crf.path_score(e, tags, mask) - crf.log_partition(e, mask),  # noqa: B023
            emissions,
            crf,
            weights,
        )
        theirs = with_gradients(
            lambda e: reference(e, tags, mask, reduction="none"),  # noqa: B023
            emissions.double(),
            reference.double(),
            weights.double(),
        )
        for one, other in zip(ours, theirs):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("seed", range(3))
def test_small_cases_equal_brute_force(seed):
    labels = ["O", "B-x", "I-x"]
    crf, emissions, mask, lengths = case(3, 5, seed=seed, spread=2.0, labels=labels)
    tags = torch.randint(3, mask.shape)
    total, score = crf.log_partition(emissions, mask), crf.path_score(emissions, tags, mask)
    decoded = crf.viterbi(emissions, mask)
    for row, length in enumerate(lengths):
        paths = torch.tensor(list(itertools.product(range(3), repeat=length)))
        scores = crf.path_score(
            emissions[row, :length].expand(len(paths), -1, -1), paths, torch.ones(paths.shape, dtype=torch.bool)
        )
        torch.testing.assert_close(total[row], scores.logsumexp(0))
        torch.testing.assert_close(score[row], scores[(paths == tags[row, :length]).all(1)].squeeze(0))
        legal = [all(may_follow(labels[a], labels[b], False) for a, b in zip([0, *p], p)) for p in paths.tolist()]
        best = paths[scores.masked_fill(~torch.tensor(legal), -torch.inf).argmax()]
        assert decoded[row].tolist() == best.tolist() + [0] * (5 - length)


@pytest.mark.slow
def test_first_and_second_derivatives_also_in_groups_of_texts(monkeypatch):
    crf, emissions, mask, _ = case(4, 7, batch=5, spread=2.0)
    inputs = [p.detach().double().requires_grad_() for p in (emissions, *crf.parameters())]

    def function(emissions, start, end, transitions):
        return crf_scan.log_partition(emissions, mask, start, transitions, end)

    whole = torch.autograd.functional.vhp(lambda *i: function(*i).sum(), tuple(inputs), tuple(map(torch.sin, inputs)))
    for most in (crf_scan.MAX_BYTES, 2 * 2 * 16 * 8 * 8):  # all at once; two texts at once, and one in the second pass
        monkeypatch.setattr(crf_scan, "MAX_BYTES", most)
        assert torch.autograd.gradcheck(function, inputs) and torch.autograd.gradgradcheck(function, inputs)
        again = torch.autograd.functional.vhp(
            lambda *i: function(*i).sum(), tuple(inputs), tuple(map(torch.sin, inputs))
        )
        for one, other in zip(whole[1], again[1]):
            torch.testing.assert_close(one, other)
    assert crf_scan.texts_at_once(inputs[0], torch.float64, most) == 2 * 2 * 16 * 64 // (2 * 16 * 8)


def test_marginals_equal_autograd_and_are_differentiable():
    crf, emissions, mask, _ = case(5, 20, spread=1.0)
    results = []
    for model in (crf, in_doubles(crf)):
        e = emissions.to(model.transitions.dtype, copy=True).requires_grad_()
        if model is crf:
            found = model.marginals(e, mask)
        else:
            found = torch.autograd.grad(by_adding_logs(model, e, mask).sum(), e, create_graph=True)[0]
        (found * emissions.cos()).square().sum().backward()
        results.append([tensor.double() for tensor in (found.detach(), e.grad, *(p.grad for p in model.parameters()))])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# ---- launches and memory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [0.1, 10.0])  # float32, float64
@pytest.mark.parametrize("length", [*launches.LENGTHS, 1, 33, 500])
def test_crf_adds_at_most_150_launches_at_any_length(length, largest):
    plain, crf = (launches.count(use_crf, length, 9, largest=largest)[0] for use_crf in (False, True))
    assert 0 < crf - plain <= 150


def test_decoding_launches_do_not_grow_with_operations_per_word():
    few, many = launches.count(True, 512, 9)[1], launches.count(True, 512, 40, batch=128)[1]
    assert few <= 6 * 512 + 160 and many <= 9 * 512 + 120  # six per word for the probabilities


MEMORY = """
import resource, sys, torch
from engine.model.crf import CRF, MAX_CALLS
crf = CRF([f"B-{i}" for i in range(120)])
crf.launch_free = ()
emissions = torch.randn(32, 512, 120, requires_grad=True)
mask = torch.ones(32, 512, dtype=torch.bool)
if sys.argv[1] == "first":
    crf.log_partition(emissions, mask).sum().backward()
else:
    crf.marginals(emissions, mask).square().sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.slow
@pytest.mark.parametrize("derivative", ["first", "second"])
def test_32_texts_of_512_words_and_120_tags_fit_in_4_gb(derivative):
    done = subprocess.run([sys.executable, "-c", MEMORY, derivative], cwd=ROOT, capture_output=True, text=True)
    assert float(done.stdout) < 4, done.stderr


@pytest.mark.slow
def test_gpu_benchmark_runs_on_cpu(tmp_path, python):
    command = [python, ROOT / "benchmarks/gpu.py", "--device", "cpu", "--minutes", "60"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("NO GPU") and "`--deterministic` (weights, log; the run was killed) | yes" in (
        done.stdout
    )
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert all(any(word in row for row in rows) for word in ("BERT-base", "MiniLM", "pytorch-crf", "by scan"))


# ---- what the host asks of a GPU -------------------------------------------------------------------------------------


def test_crf_method_does_not_depend_on_when_the_run_was_resumed():
    """A run resumed at any call uses the same method (float32, float64 or log space) as an uninterrupted one."""

    def way(crf):
        largest = crf.largest_transition()
        return sum(largest > border for border in crf_scan.MAX_TRANSITION.values())

    going_on, resumed = case(3, 4)[0], case(3, 4)[0]
    asked, ways = [], []
    for call in range(1100):  # across the limits at 6 and 30, in both directions
        with torch.no_grad():
            size = 0.6 + 0.06 * min(call, 1100 - call)  # changes by less than engine.model.crf.MOVE + rounding
            for crf in (going_on, resumed):
                crf.transitions.fill_(0.8 * size)
        resumed.largest.reset()
        asked.append(going_on.largest.calls_left == 0)
        ways.append((way(going_on), way(resumed)))
    assert all(one == other for one, other in ways) and {one for one, _ in ways} == {0, 1}
    assert sum(asked) < 200


def test_new_weights_are_checked_immediately():
    crf = case(3, 4)[0]
    crf.largest_transition()
    assert crf.largest.calls_left == MAX_CALLS
    wide = {name: 100 + tensor for name, tensor in crf.state_dict().items()}
    crf.load_state_dict(wide)
    assert crf.largest_transition() > 99
    with torch.no_grad():
        crf.transitions.zero_()
    assert crf.largest_transition() > 99 and crf.eval().largest_transition() == 0


def test_empty_batch_is_no_error():
    """A process may have no row of a batch that is split across processes."""
    for num_tags in (9, 40):
        crf, emissions, mask, _ = case(num_tags, 6, batch=1)
        emissions, mask = emissions[:0].requires_grad_(), mask[:0]
        (crf.log_partition(emissions, mask) - crf.path_score(emissions, mask.long(), mask)).sum().backward()
        assert not crf.transitions.grad.any() and emissions.grad.shape == emissions.shape
        for way in (viterbi.by_scan, viterbi.by_words):
            with torch.no_grad():
                found = way(emissions, crf.start_transitions, crf.transitions, crf.end_transitions, mask)
            assert found.shape == (0, 6)


# ---- decoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [["O", "B-x", "I-x", "B-y", "I-y"], ["O", "B-x", "I-x", "E-x", "S-x"]])
@pytest.mark.parametrize("num_words", [1, 2, 3, 8, 13, 32])
def test_gpu_decoding_equals_the_loop(labels, num_words, monkeypatch):
    for seed in range(4):
        crf, emissions, mask, _ = case(5, num_words, batch=20, scale=2.0, seed=seed, spread=2.0, labels=labels)
        if seed % 2:  # many ties, and exact sums
            emissions = emissions.round()
            with torch.no_grad():
                for parameter in crf.parameters():
                    parameter.round_()
        crf.launch_free = ("cpu",)
        expected = crf.viterbi(emissions, mask)
        crf.launch_free = ON_GPU
        monkeypatch.setattr(viterbi, "MAX_WORK", 0)
        monkeypatch.setattr(viterbi, "MAX_NUMBERS", 3 * 20 * 25)  # three words, or two texts at once
        assert torch.equal(crf.viterbi(emissions, mask), expected)  # the same one of several best paths
        monkeypatch.setattr(viterbi, "MAX_WORK", 10**9)
        found = crf.viterbi(emissions, mask)
        scores = [crf.path_score(emissions, tags, mask) for tags in (found, expected)]
        torch.testing.assert_close(*scores, rtol=0, atol=0 if seed % 2 else 1e-4)
        assert not found[~mask].any()
        for tags, there in zip(found, mask):
            names = ["O", *(labels[tag] for tag in tags[there])]
            assert all(may_follow(a, b, "S-x" in labels) for a, b in itertools.pairwise([*names, "O"]))
        if seed % 2 == 0:
            assert torch.equal(found, expected)
