"""The best path through a linear-chain CRF on a GPU, with few kernel launches.

`by_scan` computes a tree of products like crf_scan.py, in the max-plus semiring. It takes about a hundred launches at
any length, but C times the operations of the Viterbi algorithm. `by_words` is the Viterbi algorithm with three launches
per word; all other operations process all words together. Shapes: emissions (B, W, C), transitions (C, C), mask (B, W).
"""

import torch
import torch.nn.functional as F

MAX_NUMBERS = 2**27  # maximum number of values in memory at a time: half a GB
# Up to this size, the scan's memory traffic costs less than the kernel launches of by_words (estimate)
MAX_WORK = 2**22


def is_for_scan(batch: int, num_tags: int) -> bool:
    return batch * num_tags**3 <= MAX_WORK


def by_scan(
    emissions: torch.Tensor, start: torch.Tensor, transitions: torch.Tensor, end: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Returns the tags of the best path of each text, (B, W). If the scores of several paths differ only by rounding
    error, it is unspecified which one is returned."""
    _, num_words, num_tags = emissions.shape
    width = 1 << (num_words - 1).bit_length()
    size = max(1, MAX_NUMBERS // (max(1, width // 2) * num_tags**3))
    tags = [scan_of(e, start, transitions, end, m, width) for e, m in zip(emissions.split(size), mask.split(size))]
    return torch.cat(tags) if len(tags) > 1 else tags[0]


def scan_of(
    emissions: torch.Tensor,
    start: torch.Tensor,
    transitions: torch.Tensor,
    end: torch.Tensor,
    mask: torch.Tensor,
    width: int,
) -> torch.Tensor:
    batch, num_words, num_tags = emissions.shape
    last = torch.arange(batch, device=mask.device), mask.sum(1) - 1
    scores = emissions + F.pad(start.unsqueeze(0), (0, 0, 0, num_words - 1))
    scores = F.pad(scores.index_put(last, end, accumulate=True), (0, 0, 0, width - num_words)).unsqueeze(2)
    there = F.pad(mask, (0, width - num_words))[..., None, None]
    identity = torch.full_like(transitions, -torch.inf).fill_diagonal_(0)
    steps = torch.cat([torch.zeros_like(transitions).unsqueeze(0), transitions.expand(width - 1, -1, -1)])
    product, tree = torch.where(there, steps + scores, identity), []  # (B, width, C, C)
    while product.shape[1] > 1:
        tree.append(product.unflatten(1, (-1, 2)))
        left, right = tree[-1].unbind(2)
        product = (left.unsqueeze(4) + right.unsqueeze(2)).amax(3)
    ends = product[:, 0, 0].argmax(1)  # all rows are equal, because the first word's matrix has equal rows
    ends = torch.stack([torch.zeros_like(ends), ends], 1).unsqueeze(1)  # the tags before each node and at its end
    for pairs in reversed(tree):
        left, right = pairs.unbind(2)
        first, final = ends.unbind(2)
        row = left.gather(2, first[..., None, None].expand(-1, -1, 1, num_tags)).squeeze(2)
        column = right.gather(3, final[..., None, None].expand(-1, -1, num_tags, 1)).squeeze(3)
        middle = (row + column).argmax(2)
        ends = torch.stack([first, middle, middle, final], 2).view(batch, 2 * ends.shape[1], 2)
    return ends[:, :num_words, 1] * mask


def by_words(
    emissions: torch.Tensor, start: torch.Tensor, transitions: torch.Tensor, end: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Returns the tags of the best path of each text, (B, W), the same as the loop in CRF.viterbi, including ties."""
    batch, num_words, num_tags = emissions.shape
    emissions, mask = emissions.transpose(0, 1).contiguous(), mask.T
    into = transitions.T.contiguous()  # into[j, i]: from i to j
    scores, paths = torch.empty_like(emissions), emissions.new_empty(batch, num_tags, num_tags)
    torch.add(emissions[0], start, out=scores[0])
    for t in range(1, num_words):  # the results at padded positions are not used
        torch.add(scores[t - 1].unsqueeze(1), into, out=paths)
        torch.amax(paths, 2, out=scores[t])
        scores[t].add_(emissions[t])
    last = scores[mask.sum(0) - 1, torch.arange(batch, device=mask.device)]
    tag = (last + end).argmax(1)
    parts = scores[:-1].split(max(1, MAX_NUMBERS // max(1, batch * num_tags**2)))
    if num_words == 1:
        return tag.unsqueeze(1)
    back = torch.cat([(part.unsqueeze(2) + into).argmax(3) for part in parts])  # (W - 1, B, C): the tag before each tag
    back = torch.where(mask[1:, :, None], back, torch.arange(num_tags, device=mask.device))
    step = 1
    while step < num_words - 1:  # each iteration doubles the number of words that `back` covers
        back = torch.cat([back[:-step].gather(2, back[step:]), back[-step:]])
        step *= 2
    tags = back.gather(2, tag[None, :, None].expand(num_words - 1, -1, 1)).squeeze(2)
    return torch.cat([tags, tag.unsqueeze(0)]).T * mask.T
