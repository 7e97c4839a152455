"""GPLinker: relations between spans of words that may overlap in any way (Su, 2022, kexue.fm/archives/8888).

A relation (subject, predicate, object) has four word indices: the first and the last word of the subject and of the
object. Three tables contain scores of pairs of words, computed as in `span_pointer` from separate vectors q and k:

    entities  first and last word of a span, with two types: subject and object
    heads     first word of the subject and first word of the object, with one type per predicate
    tails     last word of the subject and last word of the object, with one type per predicate

The score of a relation is the minimum of its four scores, so a relation reaches a threshold if all four do. If the
entities have types, they are a separate task. In decoding, the score of a span in that task (for its best type) then
replaces its score as subject or object, because that task has more entities to learn from; in training, the table of
subjects and objects still trains the encoder.

The logits are the terms of the three tables, concatenated: (B, W, 3W + 4 + 4P) for P predicates. In evaluation, the
logits of the task with the entity types may follow, (B, W, W + 2T) for T types; `tables_of` splits them. Neither the
logits nor the loss need memory proportional to W x W x P.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from engine.model import span_pointer
from engine.run.device import to_double
from engine.task.words import LOWEST_SCORE, SPANS_PER_WORD, SUBJECTS_PER_WORD

Item = tuple[int, ...]  # first and last word of the subject, first and last word of the object, predicate id


class Tables(NamedTuple):
    """The logits of the three tables, and of the task with the entity types if they are appended."""

    entities: torch.Tensor  # (B, W, W + 4)
    heads: torch.Tensor  # (B, W, W + 2P)
    tails: torch.Tensor  # (B, W, W + 2P)
    typed: torch.Tensor | None  # (B, W, W + 2T)


def tables_of(logits: torch.Tensor, num_predicates: int) -> Tables:
    """Splits the logits of a relation head."""
    width = logits.shape[1]
    sizes = [width + 4, *[width + 2 * num_predicates] * 2]
    entities, heads, tails, typed = logits.split([*sizes, logits.shape[2] - sum(sizes)], 2)
    return Tables(entities, heads, tails, typed if typed.shape[2] else None)


def pairs_of(mask: torch.Tensor) -> torch.Tensor:
    """Returns the mask of the pairs of real words, (B, W, W). mask: (B, W)"""
    return mask.unsqueeze(2) & mask.unsqueeze(1)


def dense(logits: torch.Tensor, num_predicates: int) -> torch.Tensor:
    """Returns all scores, (B, 2 + 2P, W, W): subjects, objects, heads by predicate, tails by predicate. Only for small
    batches."""
    return torch.cat([span_pointer.dense(table) for table in tables_of(logits, num_predicates)[:3]], 1)


def are_cells(mask: torch.Tensor, num_predicates: int) -> torch.Tensor:
    """Returns the mask of the scores of `dense` that are of real words, (B, 2 + 2P, W, W)."""
    tables = [(span_pointer.spans_of(mask), 2), (pairs_of(mask), 2 * num_predicates)]
    return torch.cat([where.unsqueeze(1).expand(-1, number, -1, -1) for where, number in tables], 1)


def loss(logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor, num_predicates: int) -> torch.Tensor:
    """Returns the mean over the three tables of the multi-label cross-entropy (see span_pointer.loss), summed over
    types, (B,); 0 for unlabelled texts. labels: encoded by `span_pointer.encode`, with four word indices per item."""
    items, there = span_pointer.items_of(labels, mask, 4)
    s_first, s_last, o_first, o_last, predicate = items.unbind(2)
    entities, heads, tails, _ = tables_of(logits, num_predicates)
    ends = torch.cat([s_first, o_first], 1), torch.cat([s_last, o_last], 1)
    sides = torch.cat([torch.zeros_like(predicate), torch.ones_like(predicate)], 1)
    pairs = pairs_of(mask)
    total = (
        span_pointer.loss_of_cells(entities, (*ends, sides, there.repeat(1, 2)), span_pointer.spans_of(mask))
        + span_pointer.loss_of_cells(heads, (s_first, o_first, predicate, there), pairs)
        + span_pointer.loss_of_cells(tails, (s_last, o_last, predicate, there), pairs)
    )
    return torch.where(span_pointer.has_labels(labels), total / 3, 0.0)


@torch.no_grad()
def find(
    logits: torch.Tensor,
    mask: torch.Tensor,
    num_predicates: int,
    lowest: float = LOWEST_SCORE,
    most: int = SPANS_PER_WORD,
) -> tuple[list[list[Item]], list[list[float]]]:
    """Finds the relations of each text with a score above `lowest`. Returns (relations, probabilities), two lists per
    text; the relations are sorted, and their probabilities are the sigmoids of their scores.

    Only the best SUBJECTS_PER_WORD subjects and objects per word are paired, at most 4 x W x W pairs per text, in
    chunks of CELLS scores. Returns at most the best `most` relations per word.
    """
    entities, heads, tails, typed = tables_of(logits, num_predicates)
    sides: Any = [(entities, [0]), (entities, [1])]
    if typed is not None:
        sides = [(typed, range((typed.shape[2] - typed.shape[1]) // 2))] * 2
    (subjects, s_scores), (objects, o_scores) = (candidates(table, mask, types, lowest) for table, types in sides)
    left, right = pairs_within(subjects[:, 0], objects[:, 0], len(mask))
    pairs = torch.minimum(s_scores[left], o_scores[right])
    found, scores = [], []
    step = max(1, span_pointer.CELLS // max(1, num_predicates))
    for begin in range(0, len(left), step):
        one, other = subjects[left[begin : begin + step]], objects[right[begin : begin + step]]
        by_predicate = torch.minimum(
            *(scores_at(table, one[:, 0], one[:, i], other[:, i]) for table, i in ((heads, 1), (tails, 2)))
        )
        by_predicate = torch.minimum(by_predicate, pairs[begin : begin + step, None])
        row, predicate = (by_predicate > lowest).nonzero().unbind(1)
        items = torch.cat([one[row], other[row, 1:], predicate.unsqueeze(1)], 1)
        items, values = best_items(items, by_predicate[row, predicate], most * mask.sum(1))
        found.append(items)
        scores.append(values)
    if not found:
        return [[] for _ in mask], [[] for _ in mask]
    return by_text(*best_items(torch.cat(found), torch.cat(scores), most * mask.sum(1)), len(mask))


def candidates(
    table: torch.Tensor, mask: torch.Tensor, types: Sequence[int], lowest: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the spans with a score above `lowest`, (N, 3), as sorted (text, first word, last word), and their scores,
    (N,). The score of a span is the maximum over `types`. table: (B, W, W + 2T)"""
    pairs, starts, ends = span_pointer.parts_of(table)
    by_type = (pairs + starts[:, :, kind].unsqueeze(2) + ends[:, :, kind].unsqueeze(1) for kind in types)
    scores = functools.reduce(torch.maximum, by_type)
    scores = scores.masked_fill(~span_pointer.spans_of(mask), -torch.inf)
    taken = best_of_texts(scores.flatten(1), lowest, SUBJECTS_PER_WORD * mask.sum(1)).view_as(scores)
    return taken.nonzero(), scores[taken]


def best_of_texts(scores: torch.Tensor, lowest: float, limits: torch.Tensor) -> torch.Tensor:
    """Returns the mask of the scores (B, N) that are above `lowest` and among the best `limits` (B,) of their text,
    including ties."""
    taken = scores > lowest
    for text in (taken.sum(1) > limits).nonzero().flatten().tolist():
        taken[text] &= scores[text] >= scores[text].topk(int(limits[text])).values[-1]
    return taken


def pairs_within(left: torch.Tensor, right: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the row indices, each (N,), of all pairs of rows with equal values in two sorted lists of text indices.
    size: the number of texts"""
    number = torch.bincount(right, minlength=size)
    starts, repeats = number.cumsum(0) - number, number[left]
    rows = torch.arange(len(left), device=left.device).repeat_interleave(repeats)
    before = (repeats.cumsum(0) - repeats)[rows]
    return rows, starts[left[rows]] + torch.arange(len(rows), device=left.device) - before


def scores_at(table: torch.Tensor, text: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Returns the scores of pairs of words for each predicate, (N, P). text, first, second: (N,)"""
    pairs, starts, ends = span_pointer.parts_of(table)
    return pairs[text, first, second].unsqueeze(1) + starts[text, first] + ends[text, second]


def best_items(found: torch.Tensor, scores: torch.Tensor, limits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the best `limits` (B,) relations of each text and their scores, in their original order; earlier ones win
    ties. found: (N, 6), text and relation"""
    counts = torch.bincount(found[:, 0], minlength=len(limits))
    for text in (counts > limits).nonzero().flatten().tolist():
        own = (found[:, 0] == text).nonzero().flatten()
        worse = scores[own].sort(descending=True, stable=True).indices[int(limits[text]) :]
        stays = torch.ones(len(found), dtype=torch.bool, device=found.device).index_fill_(0, own[worse], False)
        found, scores = found[stays], scores[stays]
    return found, scores


def by_text(found: torch.Tensor, scores: torch.Tensor, size: int) -> tuple[list[list], list[list[float]]]:
    """Returns the relations and the probabilities of each text, two lists of `size` lists. found: (N, 6), text and
    relation"""
    relations: list[list[Any]] = [[] for _ in range(size)]
    probabilities: list[list[float]] = [[] for _ in range(size)]
    for (text, *item), p in zip(found.tolist(), to_double(scores).sigmoid().tolist()):
        relations[text].append(tuple(item))
        probabilities[text].append(p)
    return relations, probabilities
