"""A linear-chain conditional random field."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torchcrf

from engine.model import crf_scan, viterbi
from engine.run.device import has_double, to_double
from engine.task.tags import continuations, may_follow
from engine.task.task import IGNORE

IMPOSSIBLE = -1e4  # score of a forbidden transition in decoding
# Above this, sums of exp(score) could underflow, so the forward algorithm works in log space
LOG_TRANSITION = crf_scan.MAX_TRANSITION[torch.float64]
SCAN_TAGS = 15  # on a CPU, the scan is faster up to this number of tags
MAX_CHANGE = 0.05  # default of LargestTransition
MAX_CALLS = 100  # number of calls after which LargestTransition reads the value again


class LargestTransition:
    """Tracks which of several limits the largest absolute transition exceeds, with few device synchronizations.

    Reading the value makes the host wait for the GPU. It is read again only once it could have reached the nearest
    limit, assuming that no call changes a transition by more than `max_change`. Under this assumption, the returned
    value is always on the same side of each limit as the true one, so a resumed run makes the same choices. Call
    `reset` whenever the weights are replaced.
    """

    def __init__(self, limits: Iterable[float], max_change: float = MAX_CHANGE):
        self.limits, self.max_change = tuple(limits), max_change
        self.value, self.calls_left = 0.0, 0

    def reset(self) -> None:
        """Forces a read at the next call."""
        self.calls_left = 0

    def of(self, transitions: torch.Tensor) -> float:
        """Returns the largest absolute value as of the last read."""
        if self.calls_left:
            self.calls_left -= 1
        else:
            self.value = torch.linalg.vector_norm(transitions.detach(), torch.inf).item()
            distance = min(abs(self.value - limit) for limit in self.limits)
            self.calls_left = int(min(MAX_CALLS, distance / self.max_change))
        return self.value


class ForwardBackward:
    """The forward-backward algorithm in probability space, normalised at each word.

    scores (B, W, C): emissions, with the start transitions added at the first word and the end transitions at the last;
    transitions (C, C); mask (B, W). Padding has arbitrary values, except in `forward`, which repeats the last word.
    """

    def __init__(self, scores: torch.Tensor, transitions: torch.Tensor, mask: torch.Tensor):
        self.scores, self.transitions, self.mask = scores, transitions, mask
        self.peaks = scores.amax(2, keepdim=True)
        self.factors = (transitions - transitions.max()).exp()
        self.totals: list[torch.Tensor] = []  # per step, the sums that the messages were divided by, (2, B, 1)
        weights = (scores - self.peaks).exp()
        self.forward, backward = self.messages(weights)  # forward: p(tag of word t | words up to t), (B, W, C)
        self.onwards = weights * backward  # sums over all paths from word t to the end, up to a factor, (B, W, C)
        marginals = self.forward * backward
        self.marginals = marginals / marginals.sum(2, keepdim=True)  # p(tag of word t), (B, W, C)

    def messages(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the forward and the backward messages, (B, W, C). Both directions advance together, the backward one
        from the last word of each text, with six kernel launches per word. weights: exp(scores), up to a factor."""
        steps = torch.arange(weights.shape[1], device=weights.device)
        last = self.mask.sum(1, keepdim=True) - 1
        repeated, reverse = (
            index.unsqueeze(2).expand_as(weights) for index in (steps.minimum(last), (last - steps).clamp(min=0))
        )
        forward_weights, backward_weights = weights.unbind(1), weights.gather(1, reverse).unbind(1)
        messages = weights.new_ones(len(steps), 2, *weights[:, 0].shape)
        forward, backward = messages[0]
        forward.copy_(forward_weights[0])
        for t, message in enumerate(messages[1:], 1):
            before, after = forward, backward * backward_weights[t - 1]
            forward, backward = message
            torch.mm(before, self.factors, out=forward).mul_(forward_weights[t])
            torch.mm(after, self.factors.T, out=backward)
            self.totals.append(message.sum(2, keepdim=True))
            message /= self.totals[-1]
        forward, backward = messages.permute(1, 2, 0, 3)
        return forward.gather(1, repeated), backward.gather(1, reverse)

    def log_partition(self) -> torch.Tensor:
        """Returns the log partition function, (B,)."""
        largest = self.transitions.max()
        totals = [forward.squeeze(1).log() + largest for forward, _ in self.totals]
        by_word = [torch.where(real, total, 0.0) for real, total in zip(self.mask.T[1:], totals)]
        logs = torch.stack([torch.zeros_like(self.peaks[:, 0, 0]), *by_word], 1)
        return logs.sum(1) + self.forward[:, -1].sum(1).log() + (self.peaks.squeeze(2) * self.mask).sum(1)

    def entropy(self) -> torch.Tensor:
        """Returns the entropy of each text's distribution over paths, (B,): the log partition function minus the
        expected score."""
        following = self.onwards[:, 1:]
        crossings = ((self.forward[:, :-1] @ self.factors) * following).sum(2)
        crossed = ((self.forward[:, :-1] @ (self.factors * self.transitions)) * following).sum(2) / crossings
        expected = torch.where(self.mask, (self.marginals * self.scores).sum(2), 0.0).sum(1)
        expected = expected + torch.where(self.mask[:, 1:], crossed, 0.0).sum(1)
        return self.log_partition() - expected


class CRF(torchcrf.CRF):
    """The linear-chain CRF of pytorch-crf: same parameters and results, but faster.

    Masks are (B, W); each row is a non-empty prefix of ones. Lafferty et al., ICML 2001.
    labels: the names of the tags; decoding never takes a transition that BIO or BIOES forbids.
    """

    forbidden_start: torch.Tensor  # (C,)
    forbidden: torch.Tensor  # (C, C), from the first index to the second
    forbidden_end: torch.Tensor  # (C,)
    continues: torch.Tensor  # (C, C), see `continuations`

    def __init__(self, labels: Sequence[str]):
        super().__init__(len(labels), batch_first=True)
        self.launch_free: tuple[str, ...] = ("cpu",)  # devices without kernel launches; a test empties it
        self.largest = LargestTransition(crf_scan.MAX_TRANSITION.values())
        bioes = any(label[:2] in ("E-", "S-") for label in labels)
        rules = {
            "forbidden": [[not may_follow(a, b, bioes) for b in labels] for a in labels],
            "forbidden_start": [not may_follow("O", b, bioes) for b in labels],
            "forbidden_end": [not may_follow(a, "O", bioes) for a in labels],
        }
        rules["continues"] = continuations(labels)
        for name, rule in rules.items():
            self.register_buffer(name, torch.tensor(rule), persistent=False)

    def path_score(self, emissions: torch.Tensor, tags: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns the score of each text's tags, (B,); log p(tags | emissions) is this minus `log_partition`.

        emissions (B, W, C) in fp32, tags (B, W), mask (B, W).
        """
        edge = len(self.transitions)  # an extra tag, before the first word and after the last
        table = torch.cat([self.transitions, self.end_transitions.unsqueeze(1)], 1)
        table = torch.cat([table, F.pad(self.start_transitions, (0, 1)).unsqueeze(0)])
        path = F.pad(torch.where(mask, tags, edge), (1, 1), value=edge)
        score = (emissions.gather(2, tags.unsqueeze(2)).squeeze(2) * mask).sum(1)
        return score + table[path[:, :-1], path[:, 1:]].sum(1)

    def log_partition(self, emissions: torch.Tensor, mask: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
        """Returns the log partition function, (B,), computed by a scan or sequentially by the forward algorithm.

        temperature: divides emissions and transitions.

        The algorithm depends only on device, shape and `largest_transition`, so a resumed run uses the same one.
        """
        start: Any = self.start_transitions
        transitions: Any = self.transitions
        end: Any = self.end_transitions
        largest = self.largest_transition()
        if temperature != 1:
            emissions, start, transitions, end = (x / temperature for x in (emissions, start, transitions, end))
            largest /= temperature
        dtype = torch.float64 if largest > crf_scan.MAX_TRANSITION[torch.float32] else emissions.dtype
        can_scan = dtype != torch.float64 or has_double(emissions.device.type)
        if largest <= LOG_TRANSITION and can_scan and self.takes_scan(emissions):
            parameters = start, transitions, end
            return crf_scan.log_partition(emissions, mask, *parameters, dtype)
        alpha = start + emissions[:, 0]  # (B, C)
        peak = transitions.detach().max()
        factors = (transitions - peak).exp()
        for t in range(1, emissions.shape[1]):
            if largest <= LOG_TRANSITION:
                top = alpha.detach().amax(1, keepdim=True)
                step = ((alpha - top).exp() @ factors).log() + top + peak
            else:
                step = (alpha.unsqueeze(2) + transitions).logsumexp(1)
            alpha = torch.where(mask[:, t, None], step + emissions[:, t], alpha)
        return (alpha + end).logsumexp(1)

    def takes_scan(self, emissions: torch.Tensor) -> bool:
        """Returns whether the scan is expected to be faster than the loop over the words."""
        return emissions.device.type not in self.launch_free or emissions.shape[2] <= SCAN_TAGS

    def largest_transition(self) -> float:
        """Returns the largest absolute transition: on a CPU the current one, on a GPU see LargestTransition."""
        if self.transitions.device.type in self.launch_free:
            self.largest.reset()
        return self.largest.of(self.transitions)

    def train(self, mode: bool = True) -> "CRF":
        self.largest.reset()  # averages may replace the weights between training and evaluation
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.largest.reset()

    def marginals(self, emissions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns p(tag of word t), (B, W, C), the gradient of the log partition function. It is differentiable."""
        with torch.enable_grad():
            emissions = emissions if emissions.requires_grad else emissions.clone().requires_grad_()
            return torch.autograd.grad(self.log_partition(emissions, mask).sum(), emissions, create_graph=True)[0]

    def forward_backward(
        self, emissions: torch.Tensor, mask: torch.Tensor, temperature: float, constrained: bool = False
    ) -> ForwardBackward:
        """Runs the forward-backward algorithm in fp64. temperature: divides all scores; constrained: leaves out the
        paths with forbidden transitions."""
        found = self.constrained() if constrained else (self.start_transitions, self.transitions, self.end_transitions)
        start, transitions, end = (to_double(scores) / temperature for scores in found)
        scores = to_double(emissions) / temperature
        mask = mask.to(scores.device)
        scores[:, 0] += start
        scores[torch.arange(len(mask), device=mask.device), mask.sum(1) - 1] += end
        return ForwardBackward(scores, transitions, mask)

    def constrained(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns the scores of start, transitions and end, with a very low score for forbidden transitions."""
        return (
            self.start_transitions.masked_fill(self.forbidden_start, IMPOSSIBLE),
            self.transitions.masked_fill(self.forbidden, IMPOSSIBLE),
            self.end_transitions.masked_fill(self.forbidden_end, IMPOSSIBLE),
        )

    @torch.no_grad()
    def path_statistics(
        self, emissions: torch.Tensor, mask: torch.Tensor, temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Computes, at a temperature: p(tag of word t), (B, W, C); the entropy of the distribution over paths, (B,);
        and p(tag of word t | words up to t), (B, W, C). In fp64 if the device supports it."""
        found = self.forward_backward(emissions, mask, temperature)
        statistics = found.marginals, found.entropy(), found.forward
        if has_double(emissions.device.type):
            return statistics
        marginals, entropies, forward = (tensor.to(emissions) for tensor in statistics)
        return marginals, entropies, forward

    @torch.no_grad()
    def chain(
        self, emissions: torch.Tensor, mask: torch.Tensor, tags: torch.Tensor, temperature: float = 1.0
    ) -> torch.Tensor:
        """Computes three probabilities for each word with tag y, over all paths without forbidden transitions: p(y),
        p(y | previous tag), and p(next tag does not continue the entity of y | y).

        The tags of a CRF form a Markov chain. So the probability of an entity that spans exactly words i to j is
        chain[i, 0] * chain[i + 1, 1] * … * chain[j, 1] * chain[j, 2] (Culotta and McCallum, 2004, constrained
        forward-backward). Returns (B, W, 3) in fp64, with arbitrary values at padded positions.
        """
        found = self.forward_backward(emissions, mask, temperature, constrained=True)
        mask, tags = found.mask, tags.to(found.mask.device)
        marginal = found.marginals.gather(2, tags.unsqueeze(2)).squeeze(2)
        following = found.factors[tags[:, :-1]] * found.onwards[:, 1:]
        following = following / following.sum(2, keepdim=True)  # p(next tag | tag), (B, W - 1, C)
        linked = following.gather(2, tags[:, 1:].unsqueeze(2)).squeeze(2)
        continued = (following * self.continues.to(tags.device)[tags[:, :-1]]).sum(2).where(mask[:, 1:], 0.0)
        columns = marginal, F.pad(linked, (1, 0), value=1.0), 1 - F.pad(continued, (0, 1))
        return torch.stack(columns, 2).nan_to_num(0).clamp(0, 1)  # NaN: no path is allowed

    @torch.no_grad()
    def viterbi(self, emissions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns the best path of each text without forbidden transitions, (B, W); 0 at padded positions."""
        batch, width, num_tags = emissions.shape
        start, transitions, end = self.constrained()
        if emissions.device.type not in self.launch_free:
            decode = viterbi.by_scan if viterbi.is_for_scan(batch, num_tags) else viterbi.by_words
            return decode(emissions, start, transitions, end, mask)
        into = transitions.T.contiguous()  # into[j, i]: from i to j
        score = start + emissions[:, 0]
        scores, paths = [score], score.new_empty(batch, num_tags, num_tags)
        for t in range(1, width):
            torch.add(score.unsqueeze(1), into, out=paths)
            score = torch.where(mask[:, t, None], paths.amax(2) + emissions[:, t], score)
            scores.append(score)
        tag = (score + end).argmax(1)
        tags = [tag]
        for t in range(width - 1, 0, -1):  # backtracking, for all texts together
            before = (scores[t - 1] + into[tag]).argmax(1)
            tag = torch.where(mask[:, t], before, tag)
            tags.append(tag)
        return torch.stack(tags[::-1], 1) * mask


def has_all_labels(labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns whether every word of a text has a label, (B,)."""
    return ((labels != IGNORE) >= mask).all(1)
