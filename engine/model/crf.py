"""A linear-chain conditional random field."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torchcrf

from engine.model import crf_scan, viterbi
from engine.run.device import has_double, to_double
from engine.task.tags import continuations, may_follow
from engine.task.task import IGNORE

IMPOSSIBLE = -1e4  # score of a forbidden transition in decoding
# With larger transitions a sum of exp(score) could underflow, so it is computed in log space
LOG_TRANSITION = crf_scan.MAX_TRANSITION[torch.float64]
SCAN_TAGS = 15  # on a CPU the scan is faster up to this many tags
MOVE = 0.05  # limit on the change of a transition per call, at rates up to MOVE / 4


class CRF(torchcrf.CRF):
    """pytorch-crf's linear-chain CRF: same parameters and results, computed for a whole time step at once.

    Masks are (B, W); each row is a non-empty prefix of ones. Lafferty et al., ICML 2001.
    labels: the tags' names; decoding never takes a transition that BIO or BIOES forbids.
    """

    def __init__(self, labels: Sequence[str]):
        super().__init__(len(labels), batch_first=True)
        self.launch_free: tuple[str, ...] = ("cpu",)  # no kernel launches to wait for; a test empties it
        self.calls_left, self.largest, self.move = 0, 0.0, MOVE
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
        """The score of each text's tags, (B,); log p(tags | emissions) is this minus `log_partition`.

        emissions (B, W, C) in fp32, tags (B, W), mask (B, W).
        """
        edge = len(self.transitions)  # an extra tag, before the first word and after the last
        table = torch.cat([self.transitions, self.end_transitions.unsqueeze(1)], 1)
        table = torch.cat([table, F.pad(self.start_transitions, (0, 1)).unsqueeze(0)])
        path = F.pad(torch.where(mask, tags, edge), (1, 1), value=edge)
        score = (emissions.gather(2, tags.unsqueeze(2)).squeeze(2) * mask).sum(1)
        return score + table[path[:, :-1], path[:, 1:]].sum(1)

    def log_partition(self, emissions: torch.Tensor, mask: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
        """The log partition function, (B,), by a scan or by the forward algorithm, one word at a time.

        temperature: divides emissions and transitions.

        The algorithm depends only on device, shape and the largest transition, so a resumed run uses the same one.
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
        return emissions.device.type not in self.launch_free or emissions.shape[2] <= SCAN_TAGS

    def largest_transition(self) -> float:
        """The largest absolute transition.

        On a GPU this forces a sync, so it is recomputed only when it might have crossed a limit.
        """
        if self.calls_left == 0 or self.transitions.device.type in self.launch_free:
            self.largest = torch.linalg.vector_norm(self.transitions.detach(), torch.inf).item()
            way = min(abs(self.largest - border) for border in crf_scan.MAX_TRANSITION.values())
            self.calls_left = int(min(100, way / self.move))
        else:
            self.calls_left -= 1
        return self.largest

    def train(self, mode: bool = True) -> "CRF":
        self.calls_left = 0  # between training and evaluation, averages may replace the weights
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.calls_left = 0

    def marginals(self, emissions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The marginals p(tag of word t = c), (B, W, C), the gradient of the log partition; differentiable."""
        with torch.enable_grad():
            emissions = emissions if emissions.requires_grad else emissions.clone().requires_grad_()
            return torch.autograd.grad(self.log_partition(emissions, mask).sum(), emissions, create_graph=True)[0]

    @torch.no_grad()
    def path_statistics(
        self, emissions: torch.Tensor, mask: torch.Tensor, temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Statistics of the paths at a temperature: p(tag of word t) (B, W, C), the entropies (B,), and p(tag of word
        t) if the text ended there, without the transition to the end, (B, W, C).

        Uses the forward-backward algorithm on probabilities in fp64, normalised at each word.
        """
        scores = to_double(emissions) / temperature
        mask = mask.to(scores.device)
        names = ("start_transitions", "transitions", "end_transitions")
        start, between, end = (to_double(getattr(self, name)) / temperature for name in names)
        texts, last = torch.arange(len(mask), device=mask.device), mask.sum(1) - 1
        scores[:, 0] += start
        scores[texts, last] += end
        peaks, factors = scores.amax(2, keepdim=True), (between - between.max()).exp()
        words = (scores - peaks).exp()
        before: Any = [words[:, 0]]
        logs: Any = [torch.zeros_like(mask[:, 0], dtype=words.dtype)]
        for t in range(1, words.shape[1]):
            step = (before[-1] @ factors) * words[:, t]
            total = step.sum(1, keepdim=True)
            before.append(torch.where(mask[:, t, None], step / total, before[-1]))
            logs.append(torch.where(mask[:, t], total.squeeze(1).log() + between.max(), 0.0))
        after: Any = [torch.ones_like(words[:, 0])]
        for t in range(words.shape[1] - 1, 0, -1):
            step = (words[:, t] * after[-1]) @ factors.T
            after.append(torch.where(mask[:, t, None], step / step.sum(1, keepdim=True), after[-1]))
        before, after = torch.stack(before, 1), torch.stack(after[::-1], 1)
        statistics = before * after
        statistics /= statistics.sum(2, keepdim=True)
        # Entropy: the log partition minus the expected score
        onwards = words * after
        crossings = ((before[:, :-1] @ factors) * onwards[:, 1:]).sum(2)
        crossed = ((before[:, :-1] @ (factors * between)) * onwards[:, 1:]).sum(2) / crossings
        total = torch.stack(logs, 1).sum(1) + before[texts, last].sum(1).log() + (peaks.squeeze(2) * mask).sum(1)
        expected = torch.where(mask, (statistics * scores).sum(2), 0.0).sum(1) + torch.where(
            mask[:, 1:], crossed, 0.0
        ).sum(1)

        found = statistics, total - expected, before
        if has_double(emissions.device.type):
            return found
        return tuple(part.to(emissions) for part in found)  # on its device again

    @torch.no_grad()
    def chain(
        self: Any, emissions: torch.Tensor, mask: torch.Tensor, tags: torch.Tensor, temperature: float = 1.0
    ) -> torch.Tensor:
        """For each word with tag y: p(y), p(y | the tag before), and p(the next tag does not continue the entity of y
        | y), over all paths without forbidden transitions. (B, W, 3) in fp64; arbitrary values at padding.

        The tags of a CRF are a Markov chain, so the probability of an entity from word i to j, that is of all its tags
        and of its end, is chain[i, 0] * chain[i + 1, 1] * … * chain[j, 1] * chain[j, 2] (the constrained
        forward-backward algorithm of Culotta and McCallum, 2004). Both directions advance together, with four kernel
        launches per word.
        """
        scores = to_double(emissions) / temperature
        mask, tags = mask.to(scores.device), tags.to(scores.device)
        start, between, end = (
            to_double(part.masked_fill(rule, IMPOSSIBLE)) / temperature
            for part, rule in (
                (self.start_transitions, self.forbidden_start),
                (self.transitions, self.forbidden),
                (self.end_transitions, self.forbidden_end),
            )
        )
        last = mask.sum(1) - 1
        scores[:, 0] += start
        scores[torch.arange(len(mask), device=mask.device), last] += end
        words = (scores - scores.amax(2, keepdim=True)).exp()
        reverse = (last.unsqueeze(1) - torch.arange(mask.shape[1], device=mask.device)).clamp(min=0)
        reverse = reverse.unsqueeze(2).expand_as(words)
        both = torch.stack([words, words.gather(1, reverse)])  # (2, B, W, C), from the first and from the last word on
        factors = (between - between.max()).exp()
        ways, here = torch.stack([factors, factors.T]), both[:, :, 0]
        into, out_of = [torch.ones_like(here)], [here]
        for t in range(1, words.shape[1]):
            into.append(torch.bmm(here, ways))
            here = into[-1] * both[:, :, t]
            here = here / here.sum(2, keepdim=True)
            out_of.append(here)
        after = torch.stack([part[1] for part in out_of], 1).gather(1, reverse)  # exp(scores) from each word on
        joint = torch.stack([part[0] for part in into], 1) * after
        alone = joint.gather(2, tags.unsqueeze(2)).squeeze(2) / joint.sum(2)
        following = factors[tags[:, :-1]] * after[:, 1:]  # (B, W - 1, C)
        following = following / following.sum(2, keepdim=True)
        linked = following.gather(2, tags[:, 1:].unsqueeze(2)).squeeze(2)
        continued = (following * self.continues.to(tags.device)[tags[:, :-1]]).sum(2).where(mask[:, 1:], 0.0)
        parts = alone, F.pad(linked, (1, 0), value=1.0), 1 - F.pad(continued, (0, 1))
        return torch.stack(parts, 2).nan_to_num(0).clamp(0, 1)  # NaN: no path is allowed

    @torch.no_grad()
    def viterbi(self: Any, emissions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The best path of each text without forbidden transitions, (B, W); 0 at padding."""
        batch, width, num_tags = emissions.shape
        start = self.start_transitions.masked_fill(self.forbidden_start, IMPOSSIBLE)
        transitions = self.transitions.masked_fill(self.forbidden, IMPOSSIBLE)
        end = self.end_transitions.masked_fill(self.forbidden_end, IMPOSSIBLE)
        if emissions.device.type not in self.launch_free:
            way = viterbi.by_scan if viterbi.is_for_scan(batch, num_tags) else viterbi.by_words
            return way(emissions, start, transitions, end, mask)
        into = transitions.T.contiguous()  # into[j, i]: from i to j
        score = start + emissions[:, 0]
        scores, paths = [score], score.new_empty(batch, num_tags, num_tags)
        for t in range(1, width):
            torch.add(score.unsqueeze(1), into, out=paths)
            score = torch.where(mask[:, t, None], paths.amax(2) + emissions[:, t], score)
            scores.append(score)
        tag = (score + end).argmax(1)
        tags = [tag]
        for t in range(width - 1, 0, -1):  # backtracking, all texts at once
            before = (scores[t - 1] + into[tag]).argmax(1)
            tag = torch.where(mask[:, t], before, tag)
            tags.append(tag)
        return torch.stack(tags[::-1], 1) * mask


def has_all_labels(labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Whether every word of a text has a label, (B,)."""
    return ((labels != IGNORE) >= mask).all(1)
