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
    kinds = ("classification", "multilabel", "regression")
    name = next((name for kind in kinds for name in tasks if tasks[name] == kind), None)
    if name is None:
        return None, {}
    values = {id(e): e[name] for e in examples if e[name] is not None}
    if tasks[name] == "multilabel":
        counts = Counter(label for labels in values.values() for label in labels)
        values = {key: min(labels, key=lambda x: (counts[x], x), default="") for key, labels in values.items()}
    elif tasks[name] == "regression":
        ordered = sorted(values.values())
        values = {key: 10 * bisect_left(ordered, value) // len(ordered) for key, value in values.items()}
    return name, {id(e): str(values.get(id(e))) for e in examples}


def split_examples(examples, tasks, config):
    """{part: examples}: the given split where there is one, else a seeded one, stratified (see strata_of)."""
    parts = {part: [e for e in examples if e.get("split") == part] for part in PARTS}
    stratify_by, strata = strata_of(examples, tasks)
    ratios = {"dev": config.dev_ratio}
    if not any(parts.values()):
        parts["train"], ratios = examples, {"test": config.test_ratio, "dev": config.dev_ratio}
    if not parts["train"]:
        raise UserError(f"{config.input}: parts {[part for part in PARTS if parts[part]]}, but none to train on")
    for part, ratio in ratios.items():
        if ratio and not parts[part]:
            size = max(1, round(ratio * len(examples)))
            parts["train"], parts[part] = set_aside(parts["train"], size, part, stratify_by, strata, config)
    return {part: rows for part, rows in parts.items() if rows}


def set_aside(examples, size, part, stratify_by, strata, config):
    """(examples that stay, about `size` examples for a part), by groups if asked, else stratified if possible."""
    from sklearn.model_selection import GroupShuffleSplit, train_test_split

    seed = config.random_seed
    if config.group_column:
        splitter = GroupShuffleSplit(1, test_size=min(0.9, size / len(examples)), random_state=seed)
        kept, taken = next(splitter.split(examples, groups=[group_of(e) for e in examples]))
        print(f"no {part} part given: {len(taken)} examples set aside by {config.group_column!r}, seed {seed}")
        return [examples[i] for i in kept], [examples[i] for i in taken]
    counts = Counter(strata.get(id(e)) for e in examples)
    rare = [e for e in examples if counts[strata.get(id(e))] < 2]  # too few to share: these stay
    shared = [e for e in examples if counts[strata.get(id(e))] >= 2]
    if size >= len(shared):
        reason = f"{len(examples)} examples are too few to split; give train, dev and test yourself"
        if len(examples) >= 20 and len(rare) > len(examples) / 2:
            reason = f"most labels of {stratify_by!r} occur only once; of numbers --label_type {stratify_by}=regression"
        raise UserError(f"{config.input}: {reason}")
    keys = [strata[id(e)] for e in shared] if stratify_by else None
    if keys and min(size, len(shared) - size) < len(set(keys)):
        keys = None
    kept, taken = train_test_split(shared, test_size=size, random_state=seed, stratify=keys)
    how = f"stratified by {stratify_by!r}" if keys else "at random"
    print(f"no {part} part given: {len(taken)} examples set aside {how}, seed {seed}")
    return kept + rare, taken


def group_of(example):
    """What must stay together with this example; one without a group is a group of its own."""
    return example["_where"] if example.get("group") in (None, "") else str(example["group"])


def split_folds(parts, kinds, config):
    """[(train, dev) examples of each fold]: train and dev together, each row in one dev part. kinds: {task: kind}"""
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    pool = [*parts["train"], *parts.get("dev", [])]
    _, strata = strata_of(pool, kinds)
    keys = [strata.get(id(e), "") for e in pool]
    groups = [group_of(e) for e in pool] if config.group_column else None
    most = len(set(groups)) if groups else len(pool)
    if config.n_splits > most:
        raise UserError(f"--n_splits {config.n_splits} is more than the {most} {'groups' if groups else 'examples'}")
    counts = Counter(keys)
    # Classes with fewer examples than folds go where there is room
    keys = [key if counts[key] >= config.n_splits else "" for key in keys]
    stratified, plain = (StratifiedGroupKFold, GroupKFold) if groups else (StratifiedKFold, KFold)
    splitter = stratified if len(set(keys)) > 1 else plain
    folds = splitter(config.n_splits, shuffle=True, random_state=config.random_seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes smaller than the folds: see above
        split = list(folds.split(pool, keys, groups))
    return [([pool[i] for i in train], [pool[i] for i in dev]) for train, dev in split]
