"""Selects the runs of an ensemble on dev, and estimates the gain from the selection without selection bias."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from tqdm import tqdm

from engine.errors import UserError
from engine.predict.collector import Predictions
from engine.predict.ensemble import Committee, SplitOutputs
from engine.predict.stored import report_kinds, rows_of
from engine.task.task import Task
from tools.report.bootstrap import SHARE, TIMES, statistics_of
from tools.report.compare import paired

Order = list[tuple[int, float]]  # (member, score of the selection after adding it), in order of selection
MOST = 50  # maximum number of members in a selection
SHARES, SEED = 5, 20240101  # number of folds for cross-fitting on dev; seed of the split


def select(number: int, score: Callable[[list[int]], float], better: Callable[[float, float], bool]) -> Order:
    """Selects members from 0 … number - 1 by greedy forward selection with replacement (Caruana et al., Ensemble
    Selection from Libraries of Models, 2004).

    Starts with the best member, and adds the member that improves the score most until no member improves it. A member
    that is added repeatedly has a higher weight. On ties, the first member is selected. score(members) -> value;
    better(new, old) -> bool.
    """
    chosen: Order = []
    while len(chosen) < MOST:
        members = [member for member, _ in chosen]
        best = 0, score([*members, 0])
        for member in range(1, number):
            value = score([*members, member])
            if better(value, best[1]):
                best = member, value
        if chosen and not better(best[1], chosen[-1][1]):
            break
        chosen.append(best)
    return chosen


class Selection:
    """Selects members of a committee. dev: the dev split; monitor: the dev score to optimise."""

    def __init__(self, committee: Committee, dev: SplitOutputs, monitor: str) -> None:
        self.committee, self.dev, self.monitor = committee, dev, monitor
        self.gold, self.size = dev.gold(committee.tasks), len(dev.dataset)
        self.cache: dict[tuple, dict[str, list]] = {}
        self.fits = any(head.needs_calibration for head in committee.heads.values())

    def labels(self, members: Collection[int], rows: np.ndarray) -> dict[str, list]:
        """Returns {task: labels} that these members predict for all of dev, with thresholds fitted on `rows`."""
        key = *sorted(members), rows.tobytes() if self.fits else b""
        if key not in self.cache:
            self.committee.decide(members, self.dev, rows)
            self.cache[key] = self.committee.predict(self.dev).labels
        return self.cache[key]

    def order(self, rows: np.ndarray | None = None) -> Order:
        """Selects members on `rows` of dev (default: all). Raises UserError if dev has no labels to score."""
        inside, metrics = np.arange(self.size) if rows is None else rows, self.committee.metrics

        def restrict(labels: dict[str, list]) -> dict[str, list]:
            return {name: [values[i] for i in inside] for name, values in labels.items()}

        gold = restrict(self.gold)

        def value(members: list[int]) -> float:
            scores = metrics.score(self.committee.tasks, gold, restrict(self.labels(members, inside)))
            return scores.get(self.monitor, math.nan)

        order = select(len(self.committee.runs), value, lambda new, old: metrics.is_better(self.monitor, new, old))
        if rows is None and math.isnan(order[0][1]):
            raise UserError(f"--monitor={self.monitor}: dev has no labels to compute it from")
        return order

    def groups(self, order: Order) -> dict[str, list[int]]:
        """Returns {"best", "all", "selected": members}; "best" is the best single run."""
        members = [member for member, _ in order]
        return {"best": members[:1], "all": list(range(len(self.committee.runs))), "selected": members}

    def cross_fitted(self) -> dict[str, dict[str, float]]:
        """Computes {group: scores} on dev by cross-fitting: each fold is labelled with members and thresholds selected
        on the other folds. Returns {} if dev has only one row."""
        predicted: dict[str, dict[str, list]] = {}
        folds = np.array_split(np.random.default_rng(SEED).permutation(self.size), SHARES) if self.size > 1 else []
        for fold in tqdm(folds, desc="cross-fitting on dev", leave=False, delay=2):
            rest = np.setdiff1d(np.arange(self.size), fold)
            for group, members in self.groups(self.order(rest)).items():
                for name, labels in self.labels(members, rest).items():
                    column = predicted.setdefault(group, {}).setdefault(name, [None] * self.size)
                    for i in fold:
                        column[i] = labels[i]
        score = self.committee.metrics.score
        return {group: score(self.committee.tasks, self.gold, labels) for group, labels in predicted.items()}


def monitor_of(requested: str, trained: str, tasks: dict[str, Task], metrics: ModuleType) -> str:
    """Returns the score to optimise: `requested` if it is given, otherwise the run's --monitor or the default. Raises
    UserError if `requested` is a loss or another score that cannot be computed from predictions."""
    names = [name for name in metrics.score_names(tasks) if not name.endswith("loss")]
    if requested and requested not in names:
        raise UserError(f"--monitor={requested} is not one of the scores: {', '.join(names)}")
    return requested or (trained if trained in names else metrics.default_monitor(tasks))


def assess(
    committee: Committee, splits: Mapping[str, SplitOutputs], monitor: str
) -> tuple[dict[str, Any], dict[str, dict[str, Predictions]]]:
    """Scores runs and groups of runs. Returns (content of ensemble.json, {group: {split: Predictions}}).

    splits: "dev", "test" or both. The groups are "all" and, if there is a dev split, "best" (one run) and "selected".
    """
    names, tasks, metrics = [run.name for run in committee.runs], committee.tasks, committee.metrics
    gold, dev = {title: split.gold(tasks) for title, split in splits.items()}, splits.get("dev")

    def scores_of(predictions: Mapping[str, Predictions]) -> dict[str, dict[str, float]]:
        return {title: metrics.score(tasks, gold[title], predictions[title].labels) for title in splits}

    runs: dict[str, dict[str, Any]] = {}
    for number, run in enumerate(committee.runs):
        own = {title: split.predictions[number] for title, split in splits.items()}
        runs[run.name] = {"checkpoint": str(run.folder), **scores_of(own)}
    groups = {"all": list(committee.members)}
    order: Order = []
    crossed: dict[str, dict[str, float]] = {}
    if dev:
        selection = Selection(committee, dev, monitor)
        order, crossed = selection.order(), selection.cross_fitted()
        groups = selection.groups(order)
    result: dict[str, Any] = {"monitor": monitor, "runs": runs}
    predictions: dict[str, dict[str, Predictions]] = {}
    for group, members in groups.items():
        committee.decide(members, dev)
        predictions[group] = {title: committee.predict(split) for title, split in splits.items()}
        result[group] = {"runs": [names[member] for member in members], **scores_of(predictions[group])}
        result[group] |= {"dev_cross_fitted": crossed[group]} if group in crossed else {}
    if order:
        chosen = result["selected"]["runs"]
        result["selected"]["weights"] = {name: chosen.count(name) / len(chosen) for name in dict.fromkeys(chosen)}
        result["selected"][f"dev_{monitor}_with_each"] = [value for _, value in order]
    if order and "test" in splits:
        on_test = {group: by_split["test"] for group, by_split in predictions.items()}
        result["gain_on_test"] = gains(committee, splits["test"].dataset, on_test)
    return result, predictions


def gains(
    committee: Committee, data: Any, predictions: Mapping[str, Predictions]
) -> dict[str, dict[str, dict[str, float]]]:
    """Compares "all" and "selected" with "best" by a paired bootstrap. Returns {group: {score: {"difference", "low",
    "high"}}}, or {} without labels. predictions: {group: Predictions for the MyDataset}."""
    tasks, metrics, groups = committee.tasks, committee.metrics, ("best", "all", "selected")
    kinds, mains = report_kinds(tasks, metrics), metrics.main_scores(tasks)[-len(tasks) :]
    statistics = [statistics_of(list(rows_of(data, predictions[group], tasks, metrics)), kinds) for group in groups]
    if not statistics[0]:
        return {}
    cells = paired(statistics, len(data), () if metrics.all_exact(tasks) else mains)
    keys = {"difference": "difference", "low": "difference_low", "high": "difference_high"}
    return {
        group: {name: {key: cell[number][long_key] for key, long_key in keys.items()} for name, cell in cells.items()}
        for number, group in enumerate(groups[1:], 1)
    }


# ---- log output ------------------------------------------------------------------------------------------------------


def table(title: str, rows: Mapping[str, Mapping[str, str]], names: Sequence[str]) -> str:
    """Formats a plain-text table. rows: {row title: {column: cell}}. names: the columns."""
    width = max(map(len, rows))
    widths = {name: max(len(name), *(len(cells.get(name, "–")) for cells in rows.values())) for name in names}
    lines = [f"{title}:", f"{'':<{width}}  {'  '.join(name.rjust(size) for name, size in widths.items())}"]
    for row, cells in rows.items():
        shown = (cells.get(name, "–").rjust(size) for name, size in widths.items())
        lines.append(f"{row:<{width}}  {'  '.join(shown)}")
    return "\n".join(lines)


def score_table(title: str, rows: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> str:
    """Formats a table of scores. rows: {row title: {score: value}}. names: the scores to show, if a row has them."""
    columns = [name for name in names if any(name in scores for scores in rows.values())]
    if not columns:
        return f"{title}: no labels to score"
    cells = {row: {name: f"{scores[name]:.4f}" for name in columns if name in scores} for row, scores in rows.items()}
    return table(title, cells, columns)


def summary(
    result: dict[str, Any], splits: Mapping[str, SplitOutputs], tasks: dict[str, Task], metrics: ModuleType
) -> list[str]:
    """Formats the results of `assess` for a terminal."""
    runs, names = result["runs"], list(dict.fromkeys([result["monitor"], *metrics.main_scores(tasks)]))
    titles = {"all": f"all {len(runs)}"}
    if "best" in result:
        titles["selected"] = f"selected ({len(result['selected']['weights'])} of {len(runs)})"
    lines = []
    for title, split in splits.items():
        rows = {name: scores[title] for name, scores in runs.items()}
        rows |= {shown: result[group][title] for group, shown in titles.items()}
        lines.append(score_table(f"{title}, {len(split.dataset)} texts", rows, names))
    if "dev_cross_fitted" in result["all"]:
        rows = {title: result[group]["dev_cross_fitted"] for group, title in ({"best": "best run"} | titles).items()}
        lines.append(score_table("dev, cross-fitted (each fifth with the runs selected on the rest)", rows, names))
    if "best" in result:
        lines += selection_summary(result, metrics.is_better)
    if gain := result.get("gain_on_test"):
        rows = {
            titles[group]: {
                name: f"{cell['difference']:+.4f} [{cell['low']:+.4f}, {cell['high']:+.4f}]"
                for name, cell in scores.items()
            }
            for group, scores in gain.items()
        }
        columns = [name for name in names if name in gain["all"]]
        best, intervals = result["best"]["runs"][0], f"{SHARE:.0%} intervals of {TIMES} paired resamples"
        lines.append(table(f"test, gain over {best}, the best run on dev, with {intervals}", rows, columns))
    return lines


def selection_summary(result: dict[str, Any], is_better: Callable[[str, float, float], bool]) -> list[str]:
    """Describes the steps of the selection, its bias on dev, and its comparison with all runs."""
    monitor, chosen, number = result["monitor"], result["selected"], len(result["runs"])
    steps = zip(chosen["runs"], chosen[f"dev_{monitor}_with_each"])
    lines = [
        f"selected on dev, with {monitor} after each: " + ", ".join(f"{name} {value:.4f}" for name, value in steps)
    ]
    selected, every = (result[group].get("dev_cross_fitted", {}).get(monitor) for group in ("selected", "all"))
    if selected is None or every is None:
        return lines
    lines.append(
        f"the selection has a {monitor} of {chosen['dev'][monitor]:.4f} on dev, which is optimistic because the runs "
        f"were selected there; cross-fitted, it has {selected:.4f}, and all {number} have {every:.4f}"
    )
    verdict = ("better", "use --select") if is_better(monitor, selected, every) else ("not better", "use all")
    return [*lines, f"cross-fitted, the selection is {verdict[0]} than all {number}: {verdict[1]}"]
