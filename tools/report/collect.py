"""Collects the data for the report of a run from its folder."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.predict.stored import REPORT_SPLITS, read_about, read_rows
from engine.predict.uncertainty import calibration, decisions_of
from engine.run.run_folder import EVALUATE, SCORES, read_result
from engine.schema import Optional
from engine.task.hierarchy import depth_of
from engine.task.task import Task, needs_words, tasks_of
from metrics import counts_of, items_in, label_scores, level_scores
from tools.report import bootstrap, entities, figures, history, relations, suspects
from tools.report.figures import Outcome, Row

About = dict[str, Any]  # answers/about.json
PROCESS_AGAIN = "recreate the folder with data_process.py"
NOTES = [{"what": str, "count": int, "rows": [str], "advice": str}]
FOLDS = {Optional("out_of_fold"): SCORES, Optional("test_of_all_folds"): SCORES}
LISTED = 200  # maximum number of suspicious rows, confident errors and confusions on the page; files contain all


def collect(folder: str | Path) -> tuple[dict[str, Any], dict[str, list[Row]]]:
    """Returns (JSON-serialisable results, {split: rows}) for a run folder or a cross-validation folder."""
    folder = Path(folder)
    about = read_about(folder)
    kinds, described = about["kinds"], tasks_of(about["tasks"])
    rows = {split: read_rows(folder, split, kinds) for split in REPORT_SPLITS if split in about["parts"]}
    main = next((split for split in REPORT_SPLITS if rows.get(split)), None)
    if main is None:
        raise UserError(f"{folder}: no rows are stored in answers/; {EVALUATE}")
    training, whole = suspects.training_rows(about["data_path"], kinds)
    checks = Path(about["data_path"]) / "checks.json"
    result: dict[str, Any] = {
        "name": folder.resolve().name,
        "about": {key: value for key, value in about.items() if key != "tasks"},
        "types": {name: task.type for name, task in described.items()},
        "main": main,
        "sizes": sizes_of(about, rows),
        "unread": figures.unread(
            rows[main],
            any(task.needs_words for task in described.values()),
            about["options"].get("long_text") == "windows",
        ),
        "scores": scores_of(folder, about, rows),
        "learning": learning_of(folder, about),
        "log": history.read_log(about["log"]),
        "checks": read_result(checks, NOTES, PROCESS_AGAIN) if checks.is_file() else None,
        "training": {"read": len(training), "whole": whole},
    }
    seen = [] if main == "out_of_fold" else training  # out-of-fold rows are training rows
    tasks = {n: task_figures(n, kind, rows[main], described[n], seen) for n, kind in kinds.items()}
    result["tasks"] = {name: values for name, values in tasks.items() if values}
    links = bootstrap.links_of(about["tasks"])
    result["slices"] = slice_figures(rows[main], kinds, links, result["scores"].get(main, []))
    return result | error_figures(rows, kinds, training), rows


def sizes_of(about: About, rows: dict[str, list[Row]]) -> dict[str, int | None]:
    """Returns {split: number of rows}, with None for train if its file no longer exists."""
    path = Path(about["data_path"]) / "train.jsonl"
    train = None
    if path.is_file():
        with open(path, "rb") as file:
            train = sum(1 for _ in file)
    return {"train": train} | {split: len(split_rows) for split, split_rows in rows.items()}


# ---- scores ----------------------------------------------------------------------------------------------------------


def scores_of(folder: Path, about: About, rows: dict[str, list[Row]]) -> dict[str, list[dict[str, Any]]]:
    """Returns {split: [{"name", "value", "low", "high"}]} with the values of eval.json or folds.json.

    A score has an interval only if the value computed from the rows matches the file. Custom metrics and scores from
    another evaluation have none.
    """
    mains = [f"{name}_{about['main_scores'][name]}" for name in about["kinds"]]
    result: dict[str, list[dict[str, Any]]] = {}
    for split, scores in written_scores(folder).items():
        if split not in REPORT_SPLITS:
            continue
        own: dict[str, float] = {}
        draws: dict[str, Any] = {}
        split_rows = rows.get(split, [])
        if statistics := bootstrap.statistics_of(split_rows, about["kinds"], bootstrap.links_of(about["tasks"])):
            own = bootstrap.point(statistics, len(split_rows))
            draws = bootstrap.resample(statistics, len(split_rows))
        if "mean_score" in scores:
            bootstrap.add_mean_score(own, mains)
            bootstrap.add_mean_score(draws, mains)
        result[split] = []
        for name, value in scores.items():
            matches = name in own and math.isclose(own[name], value, rel_tol=1e-6, abs_tol=1e-6)
            low, high = bootstrap.interval(draws[name]) if matches else (None, None)
            result[split].append({"name": name, "value": value, "low": low, "high": high})
    return result


def written_scores(folder: Path) -> dict[str, dict[str, float]]:
    """Reads {split: scores} from eval.json or, for a cross-validation, from folds.json (out-of-fold rows, and all folds
    on test)."""
    if (folder / "eval.json").is_file():
        return read_result(folder / "eval.json", {str: SCORES})
    if not (folder / "folds.json").is_file():
        return {}
    folds = read_result(folder / "folds.json", FOLDS)
    splits = {"out_of_fold": folds.get("out_of_fold"), "test": folds.get("test_of_all_folds")}
    return {split: scores for split, scores in splits.items() if scores}


def learning_of(folder: Path, about: About) -> list[dict[str, Any]]:
    """Returns the learning curves of the run, or of each fold."""
    monitor, runs = about["monitor"], about.get("folds") or [folder.name]
    result = []
    for name in runs:
        curves = history.read_history(folder.parent / name)
        if not curves["steps"] and not curves["epochs"]:
            continue
        verdict, numbers = history.verdict(curves, monitor)
        log = folder.parent / name / "train.log" if about.get("folds") else about["log"]
        curves |= {"name": name, "losses": history.epoch_losses(curves), "verdict": verdict, "numbers": numbers}
        curves |= {"best": history.best_epoch(curves, monitor), "monitor": monitor, "shown": about["shown_scores"]}
        result.append(curves | {"stopped_early": history.read_log(log)["stopped_early"]})
    return result


# ---- tasks -----------------------------------------------------------------------------------------------------------


def task_figures(
    name: str, kind: str, rows: Sequence[Row], task: Task, training: Sequence[Row]
) -> dict[str, Any] | None:
    """Computes the statistics of a task on its labelled rows. Returns None if there are no labelled rows."""
    labelled = [row for row in rows if row["answers"][name]["gold"] is not None]
    outcomes = [row["answers"][name] for row in labelled]
    if not outcomes:
        return None
    result: dict[str, Any] = {"kind": kind, "rows": len(outcomes), "right": sum(bool(a["right"]) for a in outcomes)}
    gold, predicted, sure = ([outcome[key] for outcome in outcomes] for key in ("gold", "predicted", "probability"))
    if kind == "regression":
        return result | {"residuals": figures.residuals(gold, predicted)}
    if kind == "words":
        result["words"] = sum(map(len, gold))
    result["per_label"] = label_scores(*counts_of(kind, task, gold, predicted))
    if task.hierarchy:
        result["levels"] = level_scores(task, gold, predicted)
        result["depths"] = {node: depth_of(node, task.hierarchy) for node in result["per_label"]}
    earlier = [outcome.get("untempered") for outcome in outcomes]
    if needs_words(kind):
        pairs, before = (
            [pair for g, p, values in zip(gold, predicted, side) for pair in decisions_of(kind, g, p, values)]
            for side in (sure, earlier)
        )
        of_entities = [p for p, _ in pairs], [is_right for _, is_right in pairs], [p for p, _ in before]
        result |= confidence_figures(*of_entities)
        link = task.entities if task.entities in labelled[0]["answers"] else ""
        return result | entity_figures(name, kind, labelled, training, link)
    if kind == "multilabel":
        return result | multilabel_figures(outcomes, task.labels)
    if kind == "words":
        columns = (gold, predicted, sure, [values or [] for values in earlier])
        gold, predicted, sure, earlier = ([item for items in column for item in items] for column in columns)
    result |= {"confusions": figures.confusions(gold, predicted)[:LISTED], "matrix": figures.matrix(gold, predicted)}
    return result | confidence_figures(sure, [g == p for g, p in zip(gold, predicted)], earlier)


def confidence_figures(sure: Sequence[float], right: Sequence[bool], earlier: Sequence[Any] = ()) -> dict[str, Any]:
    """Computes calibration, histogram and coverage. Returns {} if a probability is missing or invalid. earlier: the
    probabilities at temperature 1, if known."""
    if not is_valid(sure):
        return {}
    curve = dict(zip(("thresholds", "coverage", "accuracy"), figures.thinned(*figures.coverage(sure, right))))
    return {
        "calibration": calibration(sure, right)
        | ({"untempered": calibration(earlier, right)["ece"]} if is_valid(earlier, len(sure)) else {}),
        "histogram": figures.histogram(sure, right),
        "coverage": curve,
        "coverage_table": figures.coverage_table(sure, right),
    }


def is_valid(sure: Sequence[Any], size: int | None = None) -> bool:
    fits = len(sure) > 0 and size in (None, len(sure))
    return fits and all(isinstance(p, float | int) and 0 <= p <= 1 + 1e-6 for p in sure)


def multilabel_figures(outcomes: Sequence[Outcome], labels: Sequence[str]) -> dict[str, Any]:
    gold, predicted = ([set(outcome[side]) for outcome in outcomes] for side in ("gold", "predicted"))
    pairs, errors = figures.error_pairs(gold, predicted)
    result: dict[str, Any] = {"pairs": pairs[:LISTED], "errors": errors[:LISTED]}
    if all("probabilities" in outcome for outcome in outcomes):
        probabilities = [outcome["probabilities"] for outcome in outcomes]
        result["threshold"] = figures.threshold_curve(probabilities, gold)
        sure = [row.get(label, 0.0) for row in probabilities for label in labels]
        right = [label in gold_labels for gold_labels in gold for label in labels]
        result["calibration"] = calibration(sure, right)
    return result


def entity_figures(
    name: str, kind: str, rows: Sequence[Row], training: Sequence[Row], of_entities: str
) -> dict[str, Any]:
    """Computes statistics of entity or relation errors. of_entities: see `relations.matches_of`."""
    all_matches = [relations.matches_of(kind, row, name, of_entities) for row in rows]
    labelled = [example for example in training if example.get(name)]
    seen = {entities.key_of(row["tokens"], item) for row in labelled for item in items_in(kind, row[name])}
    related = relations.are_relations(kind)
    sizes = (relations.distance, relations.DISTANCES) if related else (entities.length, entities.LENGTHS)
    wrong = "wrong_predicate" if related else "wrong_type"
    return {
        "errors": entities.error_counts(all_matches, relations.verdicts_of(kind)),
        "confusions": entities.confused_types(all_matches, wrong)[:LISTED],
        "by_size": entities.by_size(all_matches, *sizes),
        "by_seen": entities.by_seen(rows, all_matches, seen) if training else None,
        "texts_wrong": sum(any(match.verdict != "right" for match in matches) for matches in all_matches),
        "of_entities": of_entities,
    }


# ---- slices and errors -----------------------------------------------------------------------------------------------


def slice_figures(
    rows: Sequence[Row], kinds: dict[str, str], links: dict[str, str], scores: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Computes the scores of each slice, if they have an interval over all rows. Returns [{"by", "groups": [{"name",
    "rows", "scores": {score: {"value", "low", "high"}}}]}]."""
    with_interval = [score["name"] for score in scores if score["low"] is not None]
    result = []
    for by, groups in figures.slices(rows):
        table = []
        for name, numbers in groups:
            inside = [rows[i] for i in numbers]
            statistics = bootstrap.statistics_of(inside, kinds, links)
            values = bootstrap.point(statistics, len(inside)) if statistics else {}
            draws = bootstrap.resample(statistics, len(inside), times=400) if statistics else {}
            cells = {
                score: dict(zip(("value", "low", "high"), (values[score], *bootstrap.interval(draws[score]))))
                for score in with_interval
                if score in values
            }
            table.append({"name": name, "rows": len(inside), "scores": cells})
        result.append({"by": by, "groups": table})
    return result


def error_figures(
    rows: dict[str, list[Row]], kinds: dict[str, str], training: Sequence[Row]
) -> dict[str, list[dict[str, Any]]]:
    """Returns {"suspects", "confident_errors"}: probably mislabelled rows and the most confident errors, with near
    duplicates in training that have a different label."""
    pool = [(split, row) for split, split_rows in rows.items() for row in split_rows]
    flat = [row for _, row in pool]
    suspicious = suspects.suspicious(flat, kinds)
    errors: list[dict[str, Any]] = []
    for name, kind in kinds.items():
        sure = ((i, figures.error_confidence(kind, row["answers"][name])) for i, row in enumerate(flat))
        errors += [{"row": i, "task": name, "score": score} for i, score in sure if score is not None]
    errors.sort(key=lambda item: -item["score"])
    numbers = list(dict.fromkeys(item["row"] for item in [*suspicious[:LISTED], *errors[:LISTED]]))
    near = suspects.contradicted(flat, numbers, kinds, training)
    tables = {}
    for key, items in (("suspects", suspicious), ("confident_errors", errors)):
        tables[key] = [
            item
            | {"part": pool[item["row"]][0], "id": flat[item["row"]]["id"]}
            | {side: flat[item["row"]]["answers"][item["task"]][side] for side in ("gold", "predicted", "probability")}
            | ({"near": near[item["row"]]} if item["row"] in near else {})
            for item in items
        ]
    return tables
