"""Selects the three most important findings of a run."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import metrics
from tools.report.relations import are_relations
from tools.report.texts import Words

Finding = tuple[float, str, str, dict[str, Any]]  # weight, page section, key in templates/, values
Shorten = Callable[[Any], str]  # shortens text from the data


def candidates(figures: dict[str, Any]) -> list[Finding]:
    """Returns all candidate findings. The weight is approximately the share of errors that a finding explains."""
    result: list[Finding] = []
    if figures["unread"]:  # always first
        result.append((float("inf"), "slices", "look_unread", figures["unread"]))
    for name, task in figures["tasks"].items():
        wrong = max(1, task["rows"] - task["right"])
        result += task_candidates(name, task, wrong)
    suspects = figures["suspects"]
    if suspects:
        first, rows = suspects[0], max(1, sum(size for split, size in figures["sizes"].items() if split != "train"))
        values = {"n": len(suspects), "part": first["part"], "id": first["id"]}
        values |= {"given": first["gold_shown"], "likely": first["likely_shown"]}
        if len(suspects) <= 0.05 * rows:  # if there are more, most are false alarms of a weak model
            result.append((0.6, "errors", "look_suspects", values))
    for history in figures["learning"][:1]:
        if history["verdict"] in ("overfit", "underfit"):
            result.append((0.35, "learning", history["verdict"], history["numbers"]))
    result += slice_candidates(figures)
    for message, _ in figures["log"]["warnings"][:1]:
        result.append((0.15, "glance", "look_warning", {"message": message}))
    return result


def task_candidates(name: str, task: dict[str, Any], wrong: int) -> list[Finding]:
    result: list[Finding] = []
    if task.get("confusions") and "errors" not in task:
        gold, predicted, count, share = task["confusions"][0]
        values = dict(task=name, gold=gold, predicted=predicted, count=count, share=share)
        of_errors = count / max(1, sum(pair[2] for pair in task["confusions"]))
        if count >= 2:
            result.append((of_errors, name, "look_confused", values | {"of_errors": of_errors}))
    if isinstance(task.get("errors"), dict):
        result += entity_candidates(name, task)
    if task.get("pairs"):
        missed, extra, count = task["pairs"][0]
        values = dict(task=name, missed=missed, false_positive=extra, count=count)
        result.append((count / wrong, name, "look_together", values))
    zero = [x for x, s in task.get("per_label", {}).items() if s["f1"] == 0 and s["support"] >= 5]
    if zero:
        worst = max(zero, key=lambda label: task["per_label"][label]["support"])
        values = dict(task=name, n=len(zero), label=worst)
        result.append((0.5, name, "look_zero", values))
    if task.get("calibration") and "coverage" in task and task["calibration"]["ece"] > 0.05:
        bins = [cell for cell in task["calibration"]["bins"] if cell["count"]]
        rows = sum(cell["count"] for cell in bins)
        sure, right = (sum(cell["count"] * cell[key] for cell in bins) / rows for key in ("confidence", "accuracy"))
        values = dict(task=name, confidence=sure, accuracy=right, ece=task["calibration"]["ece"])
        result.append((values["ece"] * 3, name, "look_overconfident", values | {"more": sure > right}))
    return result


def entity_candidates(name: str, task: dict[str, Any]) -> list[Finding]:
    result: list[Finding] = []
    what = "relations" if are_relations(task["kind"]) else "entities"
    totals: Counter[str] = Counter()
    for counts in task["errors"].values():
        totals.update(counts)
    del totals["right"]
    if all_errors := totals.total():
        verdict = max(totals, key=lambda verdict: totals[verdict])
        worst = max(task["errors"], key=lambda kind: task["errors"][kind][verdict])
        values = dict(task=name, count=totals[verdict], all=all_errors, verdict=verdict, type=worst)
        result.append((0.8 * totals[verdict] / all_errors, name, f"look_{what}", values))
    seen = task.get("by_seen")
    if seen and min(cell["gold"] for cell in seen.values()) >= 10:
        shares = {key: cell["found"] / cell["gold"] for key, cell in seen.items()}
        if shares["seen"] - shares["unseen"] > 0.1:
            result.append((shares["seen"] - shares["unseen"], name, f"look_unseen_{what}", dict(task=name) | shares))
    return result


def slice_candidates(figures: dict[str, Any]) -> list[Finding]:
    """Returns the slice with the worst main score, among slices of at least 20 rows whose interval is below the overall
    score."""
    whole = {entry["name"]: entry["value"] for entry in figures["scores"].get(figures["main"], ())}
    score = next((name for name in figures["about"]["shown_scores"] if name in whole), None)
    worst: list[Finding] = []
    for table in figures["slices"]:
        for group in table["groups"]:
            cell = group["scores"].get(score)
            if (
                score
                and cell
                and group["rows"] >= 20
                and cell["high"] < whole[score]
                and not metrics.lower_is_better(score)
            ):
                values = dict(score=score, value=cell["value"], by=table["by"], name=group["name"], rows=group["rows"])
                worst.append((whole[score] - cell["value"], "slices", "look_slice", values | {"whole": whole[score]}))
    return sorted(worst, key=lambda item: -item[0])[:1]


def worth_a_look(figures: dict[str, Any], most: int = 3) -> list[Finding]:
    """Returns the candidates with the largest weights, one per kind."""
    chosen: list[Finding] = []
    for item in sorted(candidates(figures), key=lambda item: -item[0]):
        if item[2] not in [other[2] for other in chosen]:
            chosen.append(item)
    return chosen[:most]


def sentence(item: Finding, words: Words, short: Shorten) -> str:
    _, _, key, values = item
    return words(key, **{name: shown(name, value, words, short) for name, value in values.items()})


def shown(name: str, value: Any, words: Words, short: Shorten) -> Any:
    """Formats a value for a sentence, and translates it if a translation exists."""
    if name == "more":
        return words("more_sure" if value else "less_sure")
    if name == "verdict" or (name == "part" and value in ("train", "dev", "test", "out_of_fold")):
        return words(value)
    if name == "by":
        return slice_title(value, words, short)
    if name == "name" and value in ("yes", "no"):
        return words(value)
    return short(value) if isinstance(value, str | list) else value


def slice_title(by: str, words: Words, short: Shorten) -> str:
    titles = {"length": "by_text_length", "cut": "by_cut", "windows": "by_windows"}
    return words(titles[by]) if by in titles else words("by_column", name=short(by))
