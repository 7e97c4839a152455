"""Splits examples into train, dev and test, or into cross-validation folds: seeded and stratified.

Examples are zero-based row numbers. Strata and groups are arrays with a few bytes per example.
"""

import random
import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from engine.errors import UserError
from engine.task.task import KINDS, PLACES
from preprocess.example import SPLITS, counted

STEP = 1 << 18  # rows per counting step


class Strata:
    """The strata and groups for splits. A group must not be split. One task determines the strata, the first of:
    classification (its classes), multilabel (the rarest label of each set), regression (deciles), relations (the rarest
    predicate of each text), events (the rarest label of each text)."""

    def __init__(self, kinds: Mapping[str, str]) -> None:
        order = [kind for kind in KINDS if kind not in ("tagging", "spans")]
        self.name = next((name for kind in order for name in kinds if kinds[name] == kind), None)
        self.kind = None if self.name is None else kinds[self.name]
        self.known: dict[Any, int] = {}  # {class or tuple of labels: number}
        self.known_groups: dict[str, int] = {}
        self.values: list[np.ndarray] = []  # one array per block, as in self.groups
        self.groups: list[np.ndarray] = []

    def add(self, values: list[Any] | None, groups: list[str] | None) -> None:
        """Adds the labels and groups of the next rows."""
        if values is not None and self.kind == "regression":
            self.values.append(np.array([float("nan") if value is None else value for value in values], np.float64))
        elif values is not None:
            if self.kind in PLACES:
                values = [value and sorted({item[-1] for item in value}) for value in values]
            classes = [tuple(value) if isinstance(value, list) else value for value in values]
            self.values.append(numbered(classes, self.known))
        if groups is not None:
            self.groups.append(numbered(groups, self.known_groups))

    def of(self, rows: np.ndarray | slice) -> np.ndarray | None:
        """Returns the stratum of each row (N,), numbered in the order of names, or None if there are no strata."""
        if self.name is None:
            return None
        self.values = [np.concatenate(self.values)]
        values = self.values[0][rows]
        if self.kind == "regression":
            return deciles(values)
        names = list(self.known)
        if self.kind == "multilabel" or self.kind in PLACES:
            counts: Counter[str] = Counter()
            for labels, number in zip(names, count(values, len(names)).tolist()):
                counts.update(dict.fromkeys(labels or (), number))
            rarest = partial(min, key=lambda label: (counts[label], label), default="")
            names = [None if labels is None else rarest(labels) for labels in names]
        return ranks(map(str, names))[values]

    def groups_of(self, rows: np.ndarray) -> np.ndarray:
        """Returns the group of each row (N,), numbered in the order of names."""
        return ranks(self.known_groups)[np.concatenate(self.groups)[rows]]


def numbered(names: Iterable[Hashable], known: dict[Any, int]) -> np.ndarray:
    """Returns the number of each name in `known` (N,), in the smallest sufficient dtype. Adds new names to `known`."""
    numbers = [known.setdefault(name, len(known)) for name in names]
    return np.array(numbers, np.min_scalar_type(len(known)))


def ranks(names: Iterable[str]) -> np.ndarray:
    """Returns the rank of each name among the sorted names (N,), so that a split does not depend on row order."""
    names = list(names)
    rank_of = {name: rank for rank, name in enumerate(sorted(set(names)))}
    return np.array([rank_of[name] for name in names], np.uint8 if len(rank_of) < 256 else np.uint32)


def deciles(values: np.ndarray) -> np.ndarray:
    """Returns the decile of each value (N,), from 0 to 9, or 10 if the value is missing."""
    ordered = np.sort(values[~np.isnan(values)])
    tenths = 10 * np.searchsorted(ordered, values) // max(1, len(ordered))
    return np.where(np.isnan(values), 10, tenths).astype(np.uint8)


def count(codes: np.ndarray, minimum: int = 0) -> np.ndarray:
    """Calls np.bincount in chunks, because it would convert the whole array to int64."""
    result = np.zeros(max(minimum, int(codes.max()) + 1 if len(codes) else 0), np.int64)
    for start in range(0, len(codes), STEP):
        result += np.bincount(codes[start : start + STEP], minlength=len(result))
    return result


def rows_of(given: np.ndarray, number: int) -> np.ndarray:
    """Returns the rows (N,) where `given` equals `number`."""
    starts = range(0, len(given), STEP)
    blocks = [start + np.flatnonzero(given[start : start + STEP] == number) for start in starts]
    return np.concatenate([rows.astype(np.uint32) for rows in blocks] or [np.zeros(0, np.uint32)])


def split_rows(given: np.ndarray, size: int, strata: Strata, config: Any) -> dict[str, np.ndarray]:
    """Returns {split: rows (N,)}: the given splits, and missing ones drawn from train (seeded, stratified). given: 1, 2
    or 3 (train, dev, test) for each row, or an empty array. If it is empty, the rows are also shuffled."""
    splits = {split: rows_of(given, number) for number, split in enumerate(SPLITS, 1)}
    if len(given) and not len(splits["train"]):
        raise UserError(f"{config.input}: has {[split for split in SPLITS if len(splits[split])]}, but no train split")
    train = splits.pop("train") if len(given) else None
    ratios = {"dev": config.dev_ratio} if len(given) else {"test": config.test_ratio, "dev": config.dev_ratio}
    missing = {split: ratio for split, ratio in ratios.items() if ratio and not len(splits[split])}
    codes = strata.of(slice(None)) if missing else None
    if not config.n_splits:
        strata.values = []  # no longer needed, and as large as `codes`
    total = size if train is None else len(train)
    for split, ratio in missing.items():
        train_codes = codes if codes is None or train is None else codes[train]
        codes = None if split == "dev" else codes  # dev is the last split
        number = max(1, round(ratio * total))
        train, splits[split] = set_aside(train, train_codes, (size, number), split, strata, config)
    splits["train"] = np.arange(size, dtype=np.uint32) if train is None else train
    splits = {split: splits[split] for split in SPLITS if len(splits[split])}
    if not len(given):
        random_order = random.Random(config.random_seed)
        for rows in splits.values():
            random_order.shuffle(memoryview(rows))  # type: ignore[arg-type]
    return splits


def set_aside(
    rows: np.ndarray | None, codes: np.ndarray | None, sizes: tuple[int, int], split: str, strata: Strata, config: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (remaining rows, held-out rows): by group if requested, otherwise stratified if possible. rows: (N,), or
    None for all. codes: their strata (N,), or None. sizes: (total, approximate number of rows to hold out)."""
    total, size = sizes
    seed, number = config.random_seed, total if rows is None else len(rows)
    if config.group_column:
        from sklearn.model_selection import GroupShuffleSplit

        rows = np.arange(total, dtype=np.uint32) if rows is None else rows
        if len(np.unique(groups := strata.groups_of(rows))) < 2:
            problem = f"{config.group_column!r} has too few groups to hold out {split}"
            raise UserError(f"{config.input}: {problem}; provide separate train, dev and test files")
        splitter = GroupShuffleSplit(1, test_size=min(0.9, size / len(rows)), random_state=seed)
        kept, held_out = next(splitter.split(rows, groups=groups))
        held = counted(len(held_out), "example")
        print(f"no {split} split given: {held} held out by {config.group_column!r}, seed {seed}")
        return rows[kept], rows[held_out]
    counts, rare = np.array([number]) if codes is None else count(codes), np.zeros(0, np.uint32)
    if (counts == 1).any():  # classes with one example stay in train
        rows = np.arange(total, dtype=np.uint32) if rows is None else rows
        is_rare = (counts == 1)[np.zeros(number, np.uint8) if codes is None else codes]
        rare, rows, codes = rows[is_rare], rows[~is_rare], codes if codes is None else codes[~is_rare]
    shared = number - len(rare)
    if size >= shared:
        reason = f"{number} examples are too few to split; provide separate train, dev and test files"
        if number >= 20 and len(rare) > number / 2:
            problem = f"most labels of {strata.name!r} occur only once"
            reason = f"{problem}; if they are numbers, add --label_type {strata.name}=regression"
        raise UserError(f"{config.input}: {reason}")
    stratified = codes is not None and min(size, shared - size) >= (counts >= 2).sum()
    kept, held_out = draw(shared if rows is None else rows, codes if stratified else None, size, seed)
    method = f"stratified by {strata.name!r}" if stratified else "at random"
    print(f"no {split} split given: {counted(len(held_out), 'example')} held out {method}, seed {seed}")
    return np.concatenate([kept, rare]) if len(rare) else kept, held_out


def draw(rows: np.ndarray | int, codes: np.ndarray | None, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (remaining rows, `size` drawn rows), exactly as scikit-learn's train_test_split does.

    That function builds lists of Python integers, which would use more memory than everything else here. rows: (N,), or
    N for rows 0 to N - 1. codes: strata (N,), or None.
    """
    random_state = np.random.RandomState(seed)
    if codes is None:
        shuffled = np.arange(rows, dtype=np.uint32) if isinstance(rows, int) else rows.copy()
        random_state.shuffle(shuffled)
        return shuffled[size:].copy(), shuffled[:size].copy()
    counts = count(codes)
    (present,) = np.nonzero(counts)
    num_kept = shares(counts[present], len(codes) - size, random_state)
    num_drawn = shares(counts[present] - num_kept, size, random_state)
    kept, drawn = np.empty(len(codes) - size, np.uint32), np.empty(size, np.uint32)
    for shuffled, keep, take, before, drawn_before in zip(
        by_stratum(None if isinstance(rows, int) else rows, codes, present, counts),
        num_kept,
        num_drawn,
        np.cumsum(num_kept) - num_kept,
        np.cumsum(num_drawn) - num_drawn,
    ):
        random_state.shuffle(shuffled)
        kept[before : before + keep] = shuffled[:keep]
        drawn[drawn_before : drawn_before + take] = shuffled[keep : keep + take]
    random_state.shuffle(kept)
    random_state.shuffle(drawn)
    return kept, drawn


def by_stratum(
    rows: np.ndarray | None, codes: np.ndarray, present: np.ndarray, counts: np.ndarray
) -> Iterator[np.ndarray]:
    """Yields the rows of each stratum, in order. rows: None for all rows."""
    if len(present) <= 100:
        for stratum in present:
            yield rows_of(codes, stratum) if rows is None else rows[codes == stratum]
    else:
        ordered = np.argsort(codes, kind="stable").astype(np.uint32)
        ordered = ordered if rows is None else rows[ordered]
        for end, number in zip(np.cumsum(counts[present]), counts[present]):
            yield ordered[end - number : end]


def shares(counts: np.ndarray, size: int, random_state: np.random.RandomState) -> np.ndarray:
    """Returns the number of rows to draw from each stratum (N,): `size` in total, proportional to `counts`. The
    remainder goes to the largest fractions. Ties are broken at random."""
    exact = counts / counts.sum() * size
    result = np.floor(exact)
    fractions = exact - result
    remaining = int(size - result.sum())
    for value in np.sort(np.unique(fractions))[::-1] if remaining > 0 else ():
        (tied,) = np.where(fractions == value)
        chosen = random_state.choice(tied, size=min(len(tied), remaining), replace=False)
        result[chosen] += 1
        remaining -= len(chosen)
        if remaining == 0:
            break
    return result.astype(int)


def split_folds(pool: np.ndarray, strata: Strata, config: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns (train, dev) rows for each fold. Each row of `pool` is in exactly one dev split."""
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    codes = strata.of(pool)
    codes = np.zeros(len(pool), np.int64) if codes is None else codes.astype(np.int64)
    groups = strata.groups_of(pool) if config.group_column else None
    limit, unit = (len(pool), "examples") if groups is None else (len(np.unique(groups)), "groups")
    if config.n_splits > limit:
        raise UserError(f"--n_splits {config.n_splits} is more than the number of {unit} ({limit})")
    # Classes with fewer examples than folds form one stratum
    codes = np.where(count(codes)[codes] >= config.n_splits, codes, -1)
    stratified, plain = (StratifiedGroupKFold, GroupKFold) if config.group_column else (StratifiedKFold, KFold)
    splitter = stratified if len(np.unique(codes)) > 1 else plain
    folds = splitter(config.n_splits, shuffle=True, random_state=config.random_seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes with fewer examples than folds, see above
        return [(pool[train], pool[dev]) for train, dev in folds.split(pool, codes, groups)]
