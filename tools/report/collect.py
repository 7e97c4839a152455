"""Collects all figures for a run's page from its folder."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.predict.answers import PARTS, read_about, read_rows
from engine.run.run_folder import EVALUATE, SCORES, read_result
from engine.schema import Optional
from engine.task.task import Task, tasks_of
from metrics import count_matches, items_in, label_scores
from tools.report import bootstrap, entities, figures, history, suspects
from tools.report.figures import Answer, Row

About = dict[str, Any]  # answers/about.json
PROCESS_AGAIN = "make the folder again with data_process.py"
NOTES = [{"what": str, "count": int, "rows": [str], "advice": str}]
FOLDS = {Optional("out_of_fold"): SCORES, Optional("test_of_all_folds"): SCORES}
LISTED = 200  # most suspicious rows, confident errors and confused pairs on the page; the files contain all


def collect(folder: str | Path) -> tuple[dict[str, Any], dict[str, list[Row]]]:
    """(JSON-serialisable figures, {part: rows}) of a run folder or a cross-validation folder."""
    folder = Path(folder)
    about = read_about(folder)
    kinds, described = about["kinds"], tasks_of(about["tasks"])
    rows = {part: read_rows(folder, part, kinds) for part in PARTS if part in about["parts"]}
    main = next((part for part in PARTS if rows.get(part)), None)
    if main is None:
        raise UserError(f"{folder}: its answers have no rows; {EVALUATE}")
    training, whole = suspects.training_rows(about["data_path"], kinds)
    checks = Path(about["data_path"]) / "checks.json"
    found: dict[str, Any] = {
        "name": folder.resolve().name,
        "about": {key: value for key, value in about.items() if key != "tasks"},
        "types": {name: task.type for name, task in described.items()},
        "main": main,
        "sizes": sizes_of(about, rows),
        "scores": scores_of(folder, about, rows),
        "learning": learning_of(folder, about),
        "log": history.read_log(about["log"]),
        "checks": read_result(checks, NOTES, PROCESS_AGAIN) if checks.is_file() else None,
        "training": {"read": len(training), "whole": whole},
    }
    seen = [] if main == "out_of_fold" else training  # the out-of-fold rows are training rows themselves
    tasks = {n: task_figures(n, kind, rows[main], described[n], seen) for n, kind in kinds.items()}
    found["tasks"] = {name: values for name, values in tasks.items() if values}
    found["slices"] = slice_figures(rows[main], kinds, found["scores"].get(main, []))
    return found | error_figures(rows, kinds, training), rows


def sizes_of(about: About, rows: dict[str, list[Row]]) -> dict[str, int | None]:
    """{part: number of rows}; for train, the lines of its file, or None if it no longer exists."""
    path = Path(about["data_path"]) / "train.jsonl"
    train = None
    if path.is_file():
        with open(path, "rb") as file:
            train = sum(1 for _ in file)
    return {"train": train} | {part: len(found) for part, found in rows.items()}


# ---- scores ----------------------------------------------------------------------------------------------------------


def scores_of(folder: Path, about: About, rows: dict[str, list[Row]]) -> dict[str, list[dict[str, Any]]]:
    """{part: [{"name", "value", "low", "high"}]} as in eval.json or folds.json.

    A score has an interval only if the value computed from the rows matches the file; custom metrics and scores of
    another evaluation have none.
    """
    mains = [f"{name}_{about['main_scores'][name]}" for name in about["kinds"]]
    found: dict[str, list[dict[str, Any]]] = {}
    for part, scores in written_scores(folder).items():
        if part not in PARTS:
            continue
        own: dict[str, float] = {}
        draws: dict[str, Any] = {}
        part_rows = rows.get(part, [])
        if statistics := bootstrap.statistics_of(part_rows, about["kinds"]):
            own = bootstrap.point(statistics, len(part_rows))
            draws = bootstrap.resample(statistics, len(part_rows))
        if "mean_score" in scores:
            bootstrap.add_mean_score(own, mains)
            bootstrap.add_mean_score(draws, mains)
        found[part] = []
        for name, value in scores.items():
            same = name in own and math.isclose(own[name], value, rel_tol=1e-6, abs_tol=1e-6)
            low, high = bootstrap.interval(draws[name]) if same else (None, None)
            found[part].append({"name": name, "value": value, "low": low, "high": high})
    return found


def written_scores(folder: Path) -> dict[str, dict[str, float]]:
    """{part: scores} of eval.json, or of folds.json: of the out-of-fold rows, and of test with the folds' mean."""
    if (folder / "eval.json").is_file():
        return read_result(folder / "eval.json", {str: SCORES})
    if not (folder / "folds.json").is_file():
        return {}
    folds = read_result(folder / "folds.json", FOLDS)
    parts = {"out_of_fold": folds.get("out_of_fold"), "test": folds.get("test_of_all_folds")}
    return {part: scores for part, scores in parts.items() if scores}


def learning_of(folder: Path, about: About) -> list[dict[str, Any]]:
    """The learning curves of the run, or of each fold."""
    monitor, runs = about["monitor"], about.get("folds") or [folder.name]
    found = []
    for name in runs:
        one = history.read_history(folder.parent / name)
        if not one["steps"] and not one["epochs"]:
            continue
        said, numbers = history.verdict(one, monitor)
        log = folder.parent / name / "train.log" if about.get("folds") else about["log"]
        one |= {"name": name, "losses": history.epoch_losses(one), "verdict": said, "numbers": numbers}
        one |= {"best": history.best_epoch(one, monitor), "monitor": monitor, "shown": about["shown_scores"]}
        found.append(one | {"stopped_early": history.read_log(log)["stopped_early"]})
    return found


# ---- tasks -----------------------------------------------------------------------------------------------------------


def task_figures(
    name: str, kind: str, rows: Sequence[Row], task: Task, training: Sequence[Row]
) -> dict[str, Any] | None:
    """The figures of a task on the rows with its label; None without such rows."""
    labelled = [row for row in rows if row["answers"][name]["gold"] is not None]
    answers = [row["answers"][name] for row in labelled]
    if not answers:
        return None
    found: dict[str, Any] = {"kind": kind, "rows": len(answers), "right": sum(bool(a["right"]) for a in answers)}
    gold, predicted, sure = ([answer[key] for answer in answers] for key in ("gold", "predicted", "probability"))
    if kind == "regression":
        return found | {"residuals": figures.residuals(gold, predicted)}
    if kind == "words":
        found["words"] = sum(map(len, gold))
    found["per_label"] = label_scores(*count_matches(kind, gold, predicted))
    if kind in ("tagging", "spans"):
        return found | entity_figures(name, kind, labelled, training)
    if kind == "multilabel":
        return found | multilabel_figures(answers, task.labels)
    if kind == "words":
        gold, predicted, sure = ([item for items in column for item in items] for column in (gold, predicted, sure))
    found |= {"confusions": figures.confusions(gold, predicted)[:LISTED], "matrix": figures.matrix(gold, predicted)}
    return found | confidence_figures(sure, [g == p for g, p in zip(gold, predicted)])


def confidence_figures(sure: Sequence[float], right: Sequence[bool]) -> dict[str, Any]:
    """Calibration, histogram and coverage of answers; {} if a probability is missing or invalid."""
    if not sure or not all(isinstance(p, float | int) and 0 <= p <= 1 + 1e-6 for p in sure):
        return {}
    curve = dict(zip(("thresholds", "coverage", "accuracy"), figures.thinned(*figures.coverage(sure, right))))
    return {
        "calibration": figures.calibration(sure, right),
        "histogram": figures.histogram(sure, right),
        "coverage": curve,
        "coverage_table": figures.coverage_table(sure, right),
    }


def multilabel_figures(answers: Sequence[Answer], labels: Sequence[str]) -> dict[str, Any]:
    gold, predicted = ([set(answer[side]) for answer in answers] for side in ("gold", "predicted"))
    pairs, errors = figures.error_pairs(gold, predicted)
    found: dict[str, Any] = {"pairs": pairs[:LISTED], "errors": errors[:LISTED]}
    if all("probabilities" in answer for answer in answers):
        probabilities = [answer["probabilities"] for answer in answers]
        found["threshold"] = figures.threshold_curve(probabilities, gold)
        sure = [row.get(label, 0.0) for row in probabilities for label in labels]
        right = [label in gold_labels for gold_labels in gold for label in labels]
        found["calibration"] = figures.calibration(sure, right)
    return found


def entity_figures(name: str, kind: str, rows: Sequence[Row], training: Sequence[Row]) -> dict[str, Any]:
    found = [entities.matches_of(kind, row["answers"][name]) for row in rows]
    seen = {
        (label, tuple(example["tokens"][first : last + 1]))
        for example in training
        for label, first, last in (items_in(kind, example[name]) if example.get(name) else ())
    }
    return {
        "errors": entities.error_counts(found),
        "confusions": entities.confused_types(found)[:LISTED],
        "by_length": entities.by_length(found),
        "by_seen": entities.by_seen(rows, found, seen) if training else None,
        "texts_wrong": sum(any(one.verdict != "right" for one in matches) for matches in found),
    }


# ---- slices and errors -----------------------------------------------------------------------------------------------


def slice_figures(rows: Sequence[Row], kinds: dict[str, str], scores: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """[{"by", "groups": [{"name", "rows", "scores": {score: {"value", "low", "high"}}}]}], for scores with an interval
    over all rows."""
    with_interval = [one["name"] for one in scores if one["low"] is not None]
    found = []
    for by, groups in figures.slices(rows):
        table = []
        for name, numbers in groups:
            inside = [rows[i] for i in numbers]
            statistics = bootstrap.statistics_of(inside, kinds)
            values = bootstrap.point(statistics, len(inside)) if statistics else {}
            draws = bootstrap.resample(statistics, len(inside), times=400) if statistics else {}
            cells = {
                score: dict(zip(("value", "low", "high"), (values[score], *bootstrap.interval(draws[score]))))
                for score in with_interval
                if score in values
            }
            table.append({"name": name, "rows": len(inside), "scores": cells})
        found.append({"by": by, "groups": table})
    return found


def error_figures(
    rows: dict[str, list[Row]], kinds: dict[str, str], training: Sequence[Row]
) -> dict[str, list[dict[str, Any]]]:
    """{"suspects", "mistakes"}: rows whose label is probably wrong, and the most confident errors, each with near
    duplicates in training that have a different label."""
    pool = [(part, row) for part, part_rows in rows.items() for row in part_rows]
    flat = [row for _, row in pool]
    found = suspects.suspicious(flat, kinds)
    errors: list[dict[str, Any]] = []
    for name, kind in kinds.items():
        sure = ((i, figures.error_confidence(kind, row["answers"][name])) for i, row in enumerate(flat))
        errors += [{"row": i, "task": name, "score": score} for i, score in sure if score is not None]
    errors.sort(key=lambda item: -item["score"])
    numbers = list(dict.fromkeys(item["row"] for item in [*found[:LISTED], *errors[:LISTED]]))
    near = suspects.contradicted(flat, numbers, kinds, training)
    tables = {}
    for key, items in (("suspects", found), ("mistakes", errors)):
        tables[key] = [
            item
            | {"part": pool[item["row"]][0], "id": flat[item["row"]]["id"]}
            | {side: flat[item["row"]]["answers"][item["task"]][side] for side in ("gold", "predicted", "probability")}
            | ({"near": near[item["row"]]} if item["row"] in near else {})
            for item in items
        ]
    return tables
