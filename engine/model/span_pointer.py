"""Efficient GlobalPointer: a score for every span of words and every type, so spans may nest and overlap.

Su et al., Global Pointer, 2022 (arXiv:2208.03054). The score of the span of type t from word i to word j, i <= j, is

    s[i, j, t] = q_i . k_j / sqrt(D) + starts[i, t] + ends[j, t]

where q and k (D values per word, shared by all types) are rotated by the positions of the words (RoPE, Su et al., 2021,
arXiv:2104.09864), so q_i . k_j depends on j - i, but not on where the text or its window begins.

The logits are the terms of this sum, (B, W, W + 2T): q_i . k_j / sqrt(D), then starts and ends. So a batch takes
B x W x W memory, independent of the number of types T.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch

from engine.run.device import to_double
from engine.task.task import IGNORE
from engine.task.words import LOWEST_SCORE, SPANS_PER_WORD

CELLS = 2**22  # maximum number of scores in memory at a time when finding spans


def rotate(vectors: torch.Tensor) -> torch.Tensor:
    """Rotates the i-th pair of values of word m by the angle m * 10000^(-2i / D) (RoPE). (B, W, D) -> (B, W, D)"""
    width, size = vectors.shape[1:]
    rates = 10000 ** (-torch.arange(0, size, 2, device=vectors.device) / size)
    angles = torch.arange(width, device=vectors.device).unsqueeze(1) * rates
    cos, sin = angles.cos(), angles.sin()
    even, odd = vectors.unflatten(2, (-1, 2)).unbind(3)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], 3).flatten(2)


def scores_of_pairs(vectors: torch.Tensor) -> torch.Tensor:
    """Computes q_i . k_j / sqrt(D), (B, W, W). vectors: q and k of each word, (B, W, 2D)"""
    q, k = vectors.chunk(2, 2)
    return rotate(q / math.sqrt(q.shape[2])) @ rotate(k).transpose(1, 2)


def parts_of(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Splits the logits into their terms: pairs (B, W, W), starts (B, W, T), ends (B, W, T)."""
    width = logits.shape[1]
    return logits.split([width, *[(logits.shape[2] - width) // 2] * 2], 2)


def dense(logits: torch.Tensor) -> torch.Tensor:
    """Returns the scores, (B, T, W, W). Only for small batches, because of the memory; see `loss`."""
    pairs, starts, ends = parts_of(logits)
    return pairs.unsqueeze(1) + starts.transpose(1, 2).unsqueeze(3) + ends.transpose(1, 2).unsqueeze(2)


def spans_of(mask: torch.Tensor) -> torch.Tensor:
    """Returns the mask of the valid spans, by first and last word, (B, W, W). mask: of the real words, (B, W)"""
    return (mask.unsqueeze(2) & mask.unsqueeze(1)).triu()


def has_labels(labels: torch.Tensor) -> torch.Tensor:
    """Returns the mask of the labelled texts, (B,). labels: a padded batch from `encode`"""
    return labels[:, 0] != IGNORE


def encode(spans: Iterable[tuple[int, ...]] | None) -> list[int]:
    """Flattens the spans of a text, [(word index, …, label id)], to [0, …], the labels of one row. An unlabelled text
    (None) becomes [IGNORE]. Batches are padded with IGNORE."""
    return [IGNORE] if spans is None else [0, *(number for span in spans for number in span)]


def items_of(labels: torch.Tensor, mask: torch.Tensor, places: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Restores the spans from the labels of a batch. Returns the spans, (B, N, places + 1), and the mask of the valid
    ones, (B, N). places: the number of word indices per span"""
    number = (labels.shape[1] - 1) // (places + 1)
    items = labels[:, 1 : 1 + (places + 1) * number].unflatten(1, (number, places + 1))
    first, last = items[..., :-1:2], items[..., 1:-1:2]
    inside = (first >= 0) & (first <= last) & (last < mask.sum(1)[:, None, None])
    there = (items[..., -1] >= 0) & inside.all(2)
    return torch.where(there.unsqueeze(2), items, 0), there


def loss(logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the multi-label cross-entropy of each text (Su, 2020, kexue.fm/archives/7359), summed over types, (B,):

        sum over t of log(1 + sum of e^s over spans without type t) + log(1 + sum of e^-s over spans with type t)

    It is 0 for unlabelled texts.
    """
    items, there = items_of(labels, mask, 2)
    by_text = loss_of_cells(logits, (*items.unbind(2), there), spans_of(mask))
    return torch.where(has_labels(labels), by_text, 0.0)


def loss_of_cells(logits: torch.Tensor, gold: tuple[torch.Tensor, ...], valid: torch.Tensor) -> torch.Tensor:
    """Returns the loss of each text over the `valid` pairs of words (B, W, W), summed over types, (B,). gold: the pairs
    that have types, as (first words, second words, types, mask of real pairs), each (B, N); a pair may occur more than
    once.

    Nearly all pairs have no type. Their e^s are summed by a matrix product in fp64, which underflows only below
    s = -700.
    """
    first, last, kind, there = gold
    pairs, starts, ends = parts_of(logits)
    width, low = pairs.shape[1], -1e30  # low: the score of masked spans; finite, so gradients are finite
    cell = first * width + last
    at_cells = pairs.flatten(1).gather(1, cell).unsqueeze(2) + rows_at(starts, first) + rows_at(ends, last)  # (B, N, T)
    same = (cell.unsqueeze(2) == cell.unsqueeze(1)) & there.unsqueeze(2) & there.unsqueeze(1)
    counts = there & ~same.tril(-1).any(2)  # a span with two types occurs twice; counts only the first
    types = torch.arange(starts.shape[2], device=kind.device)
    is_gold = (same.float() @ (kind.unsqueeze(2) == types).float()) > 0  # (B, N, T)
    wrong = at_cells.masked_fill(is_gold | ~counts.unsqueeze(2), low)
    right = (-at_cells).masked_fill(~is_gold | ~counts.unsqueeze(2), low)
    gold_cells = torch.zeros(len(cell), width * width + 1, dtype=torch.bool, device=cell.device)
    gold_cells.scatter_(1, torch.where(there, cell, width * width), True)
    others = valid & ~gold_cells[:, :-1].unflatten(1, (width, width))
    rest = log_sum(pairs, starts, ends, others).unsqueeze(1)
    one = torch.zeros_like(rest)
    return (torch.cat([one, rest, wrong], 1).logsumexp(1) + torch.cat([one, right], 1).logsumexp(1)).sum(1)


def rows_at(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Gathers the rows of values (B, W, T) at places (B, N). -> (B, N, T)"""
    return values.gather(1, places.unsqueeze(2).expand(-1, -1, values.shape[2]))


def log_sum(pairs: torch.Tensor, starts: torch.Tensor, ends: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Returns the log of the sum of e^s over the spans in the mask `where` (B, W, W), per type, (B, T); about -1e30 for
    an empty mask."""
    like = starts
    pairs, starts, ends = (to_double(scores) for scores in (pairs, starts, ends))
    where = where.to(pairs.device)
    pairs = pairs.masked_fill(~where, -math.inf)
    tops = pairs.detach().amax(2, keepdim=True).clamp(min=-1e30)  # per first word, so e^x does not overflow
    top_ends = ends.detach().amax(1, keepdim=True)
    sums = (pairs - tops).exp() @ (ends - top_ends).exp()
    logs = sums.clamp(min=1e-300).log() + tops + top_ends + starts
    return logs.masked_fill(~where.any(2, keepdim=True), -1e30).logsumexp(1).to(like)


def divergence(one: torch.Tensor, other: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Returns KL(p || q) + KL(q || p), (), if each span of each type is independently present with probability
    sigmoid(score): the sum of (sigmoid(s) - sigmoid(s')) (s - s') over the scores in the mask `where`. one, other,
    where: (B, T, W, W)"""
    return torch.where(where, (one.sigmoid() - other.sigmoid()) * (one - other), 0.0).sum()


@torch.no_grad()
def find(
    logits: torch.Tensor, mask: torch.Tensor, lowest: float = LOWEST_SCORE, most: int = SPANS_PER_WORD
) -> tuple[list[list[tuple[int, int, int]]], list[list[float]]]:
    """Finds the spans of each text with a score above `lowest`, at most the best `most` per word. Returns two
    lists per text: the sorted spans, (first word, last word, type id), and their probabilities, the sigmoids of the
    scores."""
    spans: list[list[Any]] = [[] for _ in mask]
    probabilities: list[list[float]] = [[] for _ in mask]
    width, types = mask.shape[1], (logits.shape[2] - mask.shape[1]) // 2
    size = max(1, CELLS // (width * width * types))
    for begin in range(0, len(logits), size):
        part = slice(begin, begin + size)
        where = spans_of(mask[part]).unsqueeze(1)
        scores = dense(logits[part]).masked_fill(~where, -math.inf).permute(0, 2, 3, 1)  # (b, W, W, T)
        taken = scores > lowest
        limits = most * mask[part].sum(1)
        for text in (taken.flatten(1).sum(1) > limits).nonzero().flatten().tolist():
            lowest_kept = scores[text].flatten().topk(int(limits[text])).values[-1]
            taken[text] &= scores[text] >= lowest_kept
        for (text, *span), p in zip(taken.nonzero().tolist(), to_double(scores[taken]).sigmoid().tolist()):
            spans[begin + text].append(tuple(span))
            probabilities[begin + text].append(p)
    return spans, probabilities


def mean_of(
    predictions: Sequence[tuple[list[Any], list[float]]], seen: Sequence[float] | None = None
) -> tuple[list[tuple[int, ...]], list[float]]:
    """Averages the predictions of several models for one text, (spans or relations, probabilities). If a model did not
    find a span, its probability is 0.

    seen: the number of words that each model read, if the text was truncated. The average for a span is taken over the
    models that read all its words.
    """
    sums, seen = cast(dict[Any, float], {}), seen or [math.inf] * len(predictions)
    for spans, probabilities in predictions:
        for span, p in zip(spans, probabilities):
            sums[span] = sums.get(span, 0.0) + p / sum(max(span[:-1]) < size for size in seen)
    return sorted(sums), [sums[span] for span in sorted(sums)]


def best_threshold(
    scores: torch.Tensor, right: torch.Tensor, lowest: float, num_gold: int | None = None
) -> torch.Tensor | None:
    """Returns the score threshold that maximises F1, halfway between the lowest accepted score and the next one; None
    if no prediction is correct.

    scores, right: (N,), right is 1 for correct predictions. lowest: a lower bound of the scores. num_gold: the number
    of gold labels; default: the sum of `right`.
    """
    scores, order = scores.sort(descending=True)
    right = right[order].cumsum(0)
    if not len(right) or not right[-1] > 0:
        return None
    num_accepted = torch.arange(1, len(right) + 1, device=right.device)
    f1 = 2 * right / (num_accepted + (right[-1] if num_gold is None else num_gold))
    f1[:-1][scores[:-1] == scores[1:]] = 0  # no threshold can separate equal scores
    best = f1.argmax()
    following = scores[best + 1] if best + 1 < len(scores) else torch.full_like(scores[0], lowest)
    return (scores[best] + following) / 2


def threshold_of(
    found: Iterable[tuple[list[Any], list[float]]], labels: Iterable[Any], names: Sequence[str]
) -> torch.Tensor | None:
    """Returns the score threshold that maximises F1 on dev, see `best_threshold`.

    found: (spans or relations, probabilities) per text; labels: of each text as in the file, None if unlabelled.
    """
    pairs: list[tuple[float, bool]] = []
    num_gold = 0
    for (spans, probabilities), gold in zip(found, labels):
        if gold is not None:
            gold = {tuple(span) for span in gold}
            num_gold += len(gold)
            pairs += zip(probabilities, [(*places, names[kind]) in gold for *places, kind in spans])
    if not pairs:
        return None
    probabilities, right = torch.tensor(pairs, dtype=torch.float64).T
    return best_threshold(probabilities.logit(eps=1e-15), right, LOWEST_SCORE, num_gold)
