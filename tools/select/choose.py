"""Scores the texts of a pool by the model's uncertainty, and chooses texts that differ from each other."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from engine.predict.interface import Examples, Model, number
from engine.predict.labelling import POOL, examples_of
from engine.task.task import Task
from engine.task.words import is_wordless
from preprocess.checks.duplicates import plain

Strategy = Literal["both", "uncertainty", "diversity", "random"]
BETA = 10  # "both" clusters this many times the number of texts to select (Zhdanov, 2019)
MOST = 20_000  # maximum number of vectors that "diversity" clusters; from a larger pool, it samples this many texts


@dataclass
class Pool:
    """Information about the rows of a pool. It takes a few bytes per row, so a pool can have millions of rows."""

    rows: Any  # a TextRows of preprocess/readers/sources.py
    kept: np.ndarray  # (K,) numbers of the rows that can be chosen
    uncertainty: np.ndarray  # (K,) entropy in nats, averaged over the tasks; empty if not needed
    ranks: np.ndarray  # (K,) rank of the uncertainty in (0, 1], averaged over the tasks
    left_out: dict[str, int] = field(default_factory=dict)  # {reason: number of rows}


def uncertain_tasks(tasks: dict[str, Task]) -> list[str]:
    """Returns the tasks whose uncertainty can be computed, that is, all except regression."""
    return [name for name, task in tasks.items() if task.kind != "regression"]


@torch.inference_mode()
def uncertainties(model: Model, examples: Examples) -> np.ndarray:
    """Returns the entropies of the predictions in nats, (texts, tasks). For word-level labels, the entropy is divided
    by the number of words, because otherwise long texts would always rank first. For a CRF, it is the entropy over
    paths (Settles and Craven, An Analysis of Active Learning Strategies for Sequence Labeling Tasks, 2008)."""
    trainer, names = model.trainer, uncertain_tasks(model.tasks)
    loader = model.loader(number(examples))
    sums, words = np.zeros((2, len(examples), len(names)))
    trainer.model.eval()
    for batch in loader:
        batch = batch.to(trainer.device)
        with torch.autocast(trainer.device.type, trainer.dtype, enabled=trainer.dtype is not None):
            logits = trainer.model(batch.inputs).logits
        texts = loader.dataset.example_index[batch.rows.tolist()]  # a long text of a tagging task has several rows
        for column, name in enumerate(names):
            head = trainer.model.output_layer.heads[name]
            temperature = float(getattr(head, "temperature", 1.0))
            chunks = head.distribution.teach_parts(logits[name].float(), batch.inputs, temperature)
            entropies = torch.cat([taught[1] for _, taught in chunks])
            mask = batch.inputs["word_mask"] if head.by_words else torch.ones_like(entropies)
            np.add.at(sums[:, column], texts, (entropies * mask).sum(1).double().cpu().numpy())
            np.add.at(words[:, column], texts, mask.sum(1).cpu().numpy())
    return sums / words.clip(min=1)


def ranks_of(scores: np.ndarray) -> np.ndarray:
    """Returns the rank of each text in (0, 1], averaged over the tasks, (texts,). Ranks make tasks with different
    scales comparable. scores: (texts, tasks)."""
    from scipy.stats import rankdata

    return rankdata(scores, axis=0).mean(1) / max(1, len(scores)) if scores.size else np.zeros(len(scores))


def survey(rows: Any, model: Model | None, scored: bool, labelled: set[int]) -> Pool:
    """Reads a pool once. Skips texts without words, texts whose hash is in `labelled`, and duplicates, ignoring case,
    whitespace and punctuation. scored: whether to compute uncertainties."""
    tasks = model.tasks if model else {}
    seen, kept, scores, reasons = set[int](), list[int](), list[np.ndarray](), dict[str, int]()
    examples = enumerate(tqdm(examples_of(rows, tasks, 0, rows.size), "pool", rows.size, False, unit=" rows", delay=2))
    while chunk := list(islice(examples, POOL)):
        fit = []
        for at, example in chunk:
            key = hash(plain(example))
            reason = "no words" if is_wordless(example) else "already labelled" if key in labelled else ""
            reason = reason or ("repeated" if key in seen else "")
            if reason:
                reasons[reason] = reasons.get(reason, 0) + 1
            else:
                seen.add(key)
                kept.append(at)
                fit.append(example)
        if model and scored and fit:
            scores.append(uncertainties(model, fit))
    table = np.concatenate(scores) if scores else np.zeros((0, 0))
    uncertainty = table.mean(1) if table.size else np.zeros(0)
    return Pool(rows, np.array(kept, np.int64), uncertainty, ranks_of(table), reasons)


def choose(pool: Pool, model: Model | None, strategy: Strategy, count: int, seed: int) -> tuple[np.ndarray, Examples]:
    """Returns (indices of the chosen texts in `pool.kept`, most uncertain first; their examples)."""
    size, rng = len(pool.kept), np.random.default_rng(seed)
    count = min(count, size)
    order = np.argsort(-pool.ranks, kind="stable") if len(pool.ranks) else np.arange(size)
    if strategy in ("random", "diversity") and size > (count if strategy == "random" else MOST):
        chosen = count if strategy == "random" else max(MOST, count)
        order = np.sort(rng.choice(size, chosen, replace=False))
    candidates = order[: BETA * count] if strategy == "both" else order
    if strategy in ("both", "diversity") and count < len(candidates):
        assert model
        examples = read(pool, candidates, model)
        vectors = model.trainer.embed(model.loader(number(examples)))
        weights = pool.ranks[candidates] if strategy == "both" else np.ones(len(candidates))
        places = spread(vectors, weights, count, seed)
        return candidates[places], [examples[place] for place in places]
    return candidates[:count], read(pool, candidates[:count], model)


def read(pool: Pool, places: Sequence[int] | np.ndarray, model: Model | None) -> Examples:
    """Reads rows of the pool. places: indices into `pool.kept`. Returns the examples in this order."""
    rows = {int(pool.kept[place]) for place in places}
    examples = enumerate(examples_of(pool.rows, model.tasks if model else {}, 0, pool.rows.size))
    found = {row: example for row, example in examples if row in rows}
    return [found[int(pool.kept[place])] for place in places]


def spread(vectors: np.ndarray, weights: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns the sorted indices (count,) of diverse texts: the texts nearest to the centres of a weighted k-means
    clustering of the normalized vectors (Zhdanov, Diverse mini-batch Active Learning, 2019). vectors: (N, H). weights:
    (N,)."""
    from sklearn.cluster import KMeans
    from sklearn.preprocessing import normalize
    from threadpoolctl import threadpool_limits

    unit = normalize(vectors.astype(np.float64))
    with threadpool_limits(1):  # with several threads, sums are not deterministic
        clusters = KMeans(count, n_init=1, random_state=seed).fit(unit, sample_weight=weights)
    distances = ((unit - clusters.cluster_centers_[clusters.labels_]) ** 2).sum(1)
    nearest = np.lexsort((distances, clusters.labels_))
    _, firsts = np.unique(clusters.labels_[nearest], return_index=True)
    chosen = nearest[firsts]
    rest = np.setdiff1d(np.arange(len(unit)), chosen)  # duplicate vectors leave clusters empty
    return np.sort(np.concatenate([chosen, rest[: count - len(chosen)]]))
