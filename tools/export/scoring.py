"""Finds the best tags, spans and relations in arrays of logits, and computes their probabilities.

Shapes: B texts, W words, C labels, T span types, P predicates.
"""

from collections.abc import Sequence

import numpy as np

from engine.task.words import SPANS_PER_WORD, SUBJECTS_PER_WORD


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(np.zeros_like(logits), -logits))


def viterbi(scores: Sequence[np.ndarray], mask: np.ndarray) -> np.ndarray:
    """Returns the Viterbi paths (B, W) of a linear-chain CRF. Forbidden transitions have a score of -10,000.

    scores: emissions (B, W, C), start (C,), transitions (C, C) and end (C,); mask: (B, W), right-padded.
    """
    emissions, start, transitions, end = scores
    batch, width, num_tags = emissions.shape
    into = np.ascontiguousarray(transitions.T)  # into[j, i]: transition from i to j
    score = start + emissions[:, 0]
    scores, paths = [score], np.empty((batch, num_tags, num_tags), np.float32)
    for t in range(1, width):
        np.add(score[:, :, None], transitions, out=paths)
        score = np.where(mask[:, t, None], paths.max(1) + emissions[:, t], score)
        scores.append(score)
    tag = (score + end).argmax(1)
    tags = np.empty((batch, width), np.int64)
    tags[:, -1] = tag
    for t in range(width - 1, 0, -1):  # backtrack
        tag = np.where(mask[:, t], (scores[t - 1] + into[tag]).argmax(1), tag)
        tags[:, t - 1] = tag
    return tags


def tag_probabilities(logits: np.ndarray, mask: np.ndarray, tags: np.ndarray, continues: np.ndarray) -> np.ndarray:
    """Computes the probabilities of TaggingHead (model_utils.py) -> (B, W, 3). continues: see `continuations`"""
    probabilities = softmax(logits)
    found = np.ones((*tags.shape, 3))
    found[..., :2] = np.take_along_axis(probabilities, tags[..., None], 2)
    found[:, 1:, 0] *= 1 - (probabilities[:, :-1] * continues.T[tags[:, 1:]]).sum(2)
    found[:, :-1, 2] -= (probabilities[:, 1:] * continues[tags[:, :-1]]).sum(2) * mask[:, 1:]
    return found.clip(0, 1)


def path_probabilities(
    scores: Sequence[np.ndarray], mask: np.ndarray, tags: np.ndarray, continues: np.ndarray
) -> np.ndarray:
    """Computes the probabilities of CRF.chain (engine/model/crf.py) -> (B, W, 3).

    scores: as for `viterbi`, in fp64 and divided by the temperature.
    """
    emissions, start, transitions, end = scores
    factors, emissions = np.exp(transitions - transitions.max()), emissions.copy()
    emissions[:, 0] += start
    emissions[np.arange(len(tags)), mask.sum(1) - 1] += end
    words = np.exp(emissions - emissions.max(2, keepdims=True))
    before, after = words.copy(), np.ones_like(words)
    for t in range(1, tags.shape[1]):
        step = (before[:, t - 1] @ factors) * words[:, t]
        before[:, t] = np.where(mask[:, t, None], step / step.sum(1, keepdims=True).clip(1e-300), before[:, t - 1])
    for t in range(tags.shape[1] - 1, 0, -1):
        step = (words[:, t] * after[:, t]) @ factors.T
        after[:, t - 1] = np.where(mask[:, t, None], step / step.sum(1, keepdims=True).clip(1e-300), after[:, t])
    joint, found = before * after, np.ones((*tags.shape, 3))
    found[..., 0] = np.take_along_axis(joint, tags[..., None], 2)[..., 0] / joint.sum(2).clip(1e-300)
    following = factors[tags[:, :-1]] * (words * after)[:, 1:]
    following /= following.sum(2, keepdims=True).clip(1e-300)
    found[:, 1:, 1] = np.take_along_axis(following, tags[:, 1:, None], 2)[..., 0]
    found[:, :-1, 2] -= (following * continues[tags[:, :-1]]).sum(2) * mask[:, 1:]
    return found.clip(0, 1)


def split_scores(logits: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Splits the scores (W, W + 2T) of a text of `size` words into the scores of word pairs (size, size), and of the
    first and the second word of a pair for each type, both (size, T)."""
    width = len(logits)
    pairs, starts, ends = np.split(logits[:size], [width, (width + logits.shape[1]) // 2], axis=1)
    return pairs[:, :size], starts, ends


def best_spans(
    logits: np.ndarray, size: int, lowest: float, most: int, of_any_type: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the spans (N, 3) with a score above `lowest`, as first word, last word and type id, and the scores (N,).

    Returns the `most` best spans in text order, and more if several have the lowest of their scores. logits: (W, W +
    2T); of_any_type: a span has the score of its best type, and the type id 0.
    """
    pairs, starts, ends = split_scores(logits, size)
    scores = pairs[:, :, None] + starts[:, None] + ends[None]
    scores = scores.max(2, keepdims=True) if of_any_type else scores
    scores[np.tril_indices(size, -1)] = -np.inf
    is_kept = scores > lowest
    if is_kept.sum() > most:
        is_kept &= scores >= np.partition(scores.ravel(), -most)[-most]
    return np.argwhere(is_kept), scores[is_kept]


def best_items(items: np.ndarray, scores: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the `most` best items in their original order, and their scores. Ties are decided by the order."""
    best = np.sort(np.argsort(-scores, kind="stable")[:most])
    return items[best], scores[best]


def best_relations(logits: np.ndarray, size: int, lowest: float, num_predicates: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the relations (N, 5) of a text of `size` words, and their scores (N,), as engine/model/relations.py.

    A relation is the first and last word of the subject, the first and last word of the object, and the predicate id.
    logits: (W, 3W + 4 + 4P), or (W, 4W + 4 + 4P + 2T) if they are followed by the scores of entities.
    """
    width = len(logits)
    boundaries = np.cumsum([width + 4, width + 2 * num_predicates, width + 2 * num_predicates])
    entities, heads, tails, typed = np.split(logits, boundaries, axis=1)
    sides = [entities[:, [*range(width), width + side, width + 2 + side]] for side in (0, 1)]
    (subjects, s_scores), (objects, o_scores) = (
        best_spans(side, size, lowest, SUBJECTS_PER_WORD * size, of_any_type=True)
        for side in ([typed, typed] if typed.size else sides)
    )
    most = SPANS_PER_WORD * size
    tables = [(*split_scores(table, size), place) for place, table in enumerate((heads, tails))]
    found, scores = [np.zeros((0, 5), np.int64)], [np.zeros(0, np.float32)]
    for subject, score in zip(subjects, s_scores):
        by_predicate = np.minimum(score, o_scores)[:, None]
        for pairs, starts, ends, place in tables:
            one, others = subject[place], objects[:, place]
            by_predicate = np.minimum(by_predicate, pairs[one, others][:, None] + starts[one] + ends[others])
        row, predicate = np.nonzero(by_predicate > lowest)
        items = np.column_stack([np.tile(subject[:2], (len(row), 1)), objects[row, :2], predicate])
        items, values = best_items(items, by_predicate[row, predicate], most)
        found.append(items)
        scores.append(values)
    return best_items(np.concatenate(found), np.concatenate(scores), most)
