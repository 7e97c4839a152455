"""Which example goes to train, dev or test, or to which fold of a cross-validation: seeded, stratified."""

import warnings
from bisect import bisect_left
from collections import Counter

from engine.command_line import UserError
from preprocess.schema import PARTS


def strata_of(examples, tasks):
    """(name of the task that splits are stratified by, or None; {id(example): its class, as a string}).

    The first classification task; else sets of labels by the rarest of each, else numbers by their decile.
    """
    name = next(
        (name for kind in ("classification", "multilabel", "regression") for name in tasks if tasks[name] == kind), None
    )
    if name is None:
        return None, {}
    values = {id(e): e[name] for e in examples if e[name] is not None}
    if tasks[name] == "multilabel":
        counts = Counter(label for found in values.values() for label in found)
        values = {
            key: min(found, key=lambda label: (counts[label], label), default="") for key, found in values.items()
        }
    elif tasks[name] == "regression":
        ordered = sorted(values.values())
        values = {key: 10 * bisect_left(ordered, value) // len(ordered) for key, value in values.items()}
    return name, {id(e): str(values.get(id(e))) for e in examples}


def split_examples(examples, tasks, config):
    """{part: examples}: the given split where there is one, else a seeded one, stratified (see strata_of)."""
    from sklearn.model_selection import GroupShuffleSplit, train_test_split

    parts = {part: [e for e in examples if e.get("split") == part] for part in PARTS}
    stratify_by, strata = strata_of(examples, tasks)

    def carve(pool, size, part):
        """Moves `size` examples of the pool to a part; classes too small to share stay in the pool."""
        counts = Counter(strata[id(e)] for e in pool) if stratify_by else {}
        alone = [e for e in pool if stratify_by and counts[strata[id(e)]] < 2]
        shared = [e for e in pool if not (stratify_by and counts[strata[id(e)]] < 2)]
        size = max(1, round(size))
        if config.group_column:
            splitter = GroupShuffleSplit(1, test_size=min(0.9, size / len(pool)), random_state=config.random_seed)
            kept, taken = next(splitter.split(pool, groups=[group_of(e) for e in pool]))
            print(
                f"no {part} part given: {len(taken)} examples set aside by {config.group_column!r}, seed "
                f"{config.random_seed}"
            )
            return [pool[i] for i in kept], [pool[i] for i in taken]
        if size >= len(shared):
            if len(pool) >= 20 and len(alone) > len(pool) / 2:
                raise UserError(
                    f"{config.input}: most labels of {stratify_by!r} occur only once; of numbers --label_type "
                    f"{stratify_by}=regression"
                )
            raise UserError(
                f"{config.input}: {len(pool)} examples are too few to split; give train, dev and test yourself"
            )
        keys = [strata[id(e)] for e in shared] if stratify_by else None
        if keys and min(size, len(shared) - size) < len(set(keys)):
            keys = None
        kept, taken = train_test_split(shared, test_size=size, random_state=config.random_seed, stratify=keys)
        how = f"stratified by {stratify_by!r}" if keys else "at random"
        print(f"no {part} part given: {len(taken)} examples set aside {how}, seed {config.random_seed}")
        return kept + alone, taken

    if not any(parts.values()):
        parts["train"] = list(examples)
        if config.test_ratio:
            parts["train"], parts["test"] = carve(parts["train"], config.test_ratio * len(examples), "test")
    if not parts["train"]:
        raise UserError(f"{config.input}: parts {[part for part in PARTS if parts[part]]}, but none to train on")
    if not parts["dev"]:
        parts["train"], parts["dev"] = carve(parts["train"], config.dev_ratio * len(examples), "dev")
    return {part: rows for part, rows in parts.items() if rows}


def group_of(example):
    """What must stay together with this example; one without a group is a group of its own."""
    return example["_where"] if example.get("group") in (None, "") else str(example["group"])


def split_folds(parts, tasks, config):
    """[(train, dev) examples of each fold]: train and dev together, each row in one dev part."""
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    pool = [*parts["train"], *parts.get("dev", [])]
    _, strata = strata_of(pool, tasks)
    keys = [strata.get(id(e), "") for e in pool]
    groups = [group_of(e) for e in pool] if config.group_column else None
    if config.n_splits > (many := len(set(groups)) if groups else len(pool)):
        raise UserError(f"--n_splits {config.n_splits} is more than the {many} {'groups' if groups else 'examples'}")
    counts = Counter(keys)
    keys = [
        key if counts[key] >= config.n_splits else "" for key in keys
    ]  # what is rarer than the folds goes where there is room
    stratified = len(set(keys)) > 1
    kind = (
        (StratifiedGroupKFold if stratified else GroupKFold) if groups else (StratifiedKFold if stratified else KFold)
    )
    folds = kind(config.n_splits, shuffle=True, random_state=config.random_seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes smaller than the folds: told above
        split = list(folds.split(pool, keys, groups))
    return [([pool[i] for i in train], [pool[i] for i in dev]) for train, dev in split]
