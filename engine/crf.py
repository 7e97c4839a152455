"""A linear-chain conditional random field."""

import torch
import torchcrf

from engine.tags import IGNORE, may_follow

IMPOSSIBLE = -1e4  # score of a transition that decoding must not take


class CRF(torchcrf.CRF):
    """pytorch-crf's linear-chain CRF: its parameters and its results, computed a whole time step at once.

    Masks are (B, W) with every row a prefix of ones, at least one long. Lafferty et al., ICML 2001.
    labels: the tags' names; transitions that BIO or BIOES rule out are never taken when decoding.
    """

    def __init__(self, labels):
        super().__init__(len(labels), batch_first=True)
        self.calls, self.narrow = 0, True
        bioes = any(label[:2] in ("E-", "S-") for label in labels)
        rules = {
            "forbidden": [[not may_follow(a, b, bioes) for b in labels] for a in labels],
            "forbidden_start": [not may_follow("O", b, bioes) for b in labels],
            "forbidden_end": [not may_follow(a, "O", bioes) for a in labels],
        }
        for name, rule in rules.items():
            self.register_buffer(name, torch.tensor(rule), persistent=False)

    def path_score(self, emissions, tags, mask):
        """The score of each text's tags, (B,); log p(tags | emissions) is this minus `log_partition`.

        emissions (B, W, C) in fp32, tags (B, W), mask (B, W).
        """
        last = mask.sum(1, keepdim=True) - 1
        score = (emissions.gather(2, tags.unsqueeze(2)).squeeze(2) * mask).sum(1)
        score = score + (self.transitions[tags[:, :-1], tags[:, 1:]] * mask[:, 1:]).sum(1)
        return score + self.start_transitions[tags[:, 0]] + self.end_transitions[tags.gather(1, last).squeeze(1)]

    def log_partition(self, emissions, mask):
        """log of the sum over all paths, (B,), by the forward algorithm."""
        alpha = self.start_transitions + emissions[:, 0]  # (B, C)
        peak = self.transitions.detach().max()
        every = 1 if emissions.device.type == "cpu" else 100  # on a GPU the host asks rarely: it would wait
        if self.calls % every == 0:
            self.narrow = bool(peak - self.transitions.detach().min() < 60)  # else exp() would lose terms: add logs
        self.calls += 1
        factors = (self.transitions - peak).exp()
        for t in range(1, emissions.shape[1]):
            if self.narrow:
                top = alpha.detach().amax(1, keepdim=True)
                step = ((alpha - top).exp() @ factors).log() + top + peak
            else:
                step = (alpha.unsqueeze(2) + self.transitions).logsumexp(1)
            alpha = torch.where(mask[:, t, None], step + emissions[:, t], alpha)
        return (alpha + self.end_transitions).logsumexp(1)

    def marginals(self, emissions, mask):
        """p(tag of word t = c), (B, W, C), the gradient of the log partition; it can be differentiated again."""
        with torch.enable_grad():
            emissions = emissions if emissions.requires_grad else emissions.clone().requires_grad_()
            return torch.autograd.grad(self.log_partition(emissions, mask).sum(), emissions, create_graph=True)[0]

    @torch.no_grad()
    def viterbi(self, emissions, mask):
        """The best path of each text that breaks no rule of the scheme, (B, W); 0 where the mask is."""
        batch, width, num_tags = emissions.shape
        into = self.transitions.masked_fill(self.forbidden, IMPOSSIBLE).T.contiguous()  # into[j, i]: from i to j
        score = self.start_transitions.masked_fill(self.forbidden_start, IMPOSSIBLE) + emissions[:, 0]
        scores, paths = [score], score.new_empty(batch, num_tags, num_tags)
        for t in range(1, width):
            torch.add(score.unsqueeze(1), into, out=paths)
            score = torch.where(mask[:, t, None], paths.amax(2) + emissions[:, t], score)
            scores.append(score)
        tag = (score + self.end_transitions.masked_fill(self.forbidden_end, IMPOSSIBLE)).argmax(1)
        tags = [tag]
        for t in range(width - 1, 0, -1):  # walk back, all texts at once
            before = (scores[t - 1] + into[tag]).argmax(1)
            tag = torch.where(mask[:, t], before, tag)
            tags.append(tag)
        return torch.stack(tags[::-1], 1) * mask


def has_all_labels(labels, mask):
    """Whether every word of a text has a label, (B,)."""
    return ((labels != IGNORE) | ~mask).all(1)
