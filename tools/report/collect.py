"""Collects all figures of a run's page from the files in its folder."""

import math
from pathlib import Path

from engine.errors import UserError
from engine.predict.answers import PARTS, read_about, read_rows
from engine.run.run_folder import EVALUATE, SCORES, read_result
from engine.schema import Optional
from tools.report import bootstrap, course, entities, figures, suspects

REMAKE = "make the folder again with data_process.py"
NOTES = [{"what": str, "count": int, "rows": [str], "advice": str}]
FOLDS = {Optional("out_of_fold"): SCORES, Optional("test_of_all_folds"): SCORES}
LISTED = 200  # most suspicious rows, confident mistakes and confused pairs in the page; the files have all


def collect(folder):
    """(figures that can be written as JSON, {part: rows}) of a run folder or a cross-validation folder."""
    folder = Path(folder)
    about = read_about(folder)
    kinds = about["kinds"]
    rows = {part: read_rows(folder, part, kinds) for part in PARTS if part in about["parts"]}
    main = next((part for part in PARTS if rows.get(part)), None)
    if main is None:
        raise UserError(f"{folder}: its answers have no rows; {EVALUATE}")
    seen, whole = suspects.training_rows(about["data_path"], kinds)
    checks = Path(about["data_path"]) / "checks.json"
    found = {
        "name": folder.resolve().name,
        "about": {key: value for key, value in about.items() if key != "tasks"},
        "types": {name: task["type"] for name, task in about["tasks"].items()},
        "main": main,
        "sizes": sizes_of(about, rows),
        "scores": scores_of(folder, about, rows),
        "learning": learning_of(folder, about),
        "log": course.read_log(about["log"]),
        "checks": read_result(checks, NOTES, "make the folder again with data_process.py")
        if checks.is_file()
        else None,
        "training": {"read": len(seen), "whole": whole},
    }
    details = rows.get(main, [])
    training = [] if main == "out_of_fold" else seen  # the out-of-fold rows are training rows themselves
    found["tasks"] = {n: task_figures(n, kind, details, about["tasks"][n], training) for n, kind in kinds.items()}
    found["tasks"] = {name: values for name, values in found["tasks"].items() if values}
    found["slices"] = slice_figures(details, kinds, found["scores"].get(main, []))
    found |= error_figures(rows, kinds, seen)
    return found, rows


def sizes_of(about, rows):
    """{part: number of rows}; for train, the lines of its file, or None if it no longer exists."""
    path = Path(about["data_path"]) / "train.jsonl"
    train = None
    if path.is_file():
        with open(path, "rb") as file:
            train = sum(1 for _ in file)
    return {"train": train} | {part: len(found) for part, found in rows.items()}


# ---- scores ----------------------------------------------------------------------------------------------------------


def scores_of(folder, about, rows):
    """{part: [{"name", "value", "low", "high"}]} as in eval.json or folds.json.

    A score has an interval only if its value computed from the rows equals that in the file; custom metrics, and scores
    of another evaluation, have none.
    """
    told = {}
    if (folder / "eval.json").is_file():
        told = read_result(folder / "eval.json", {str: SCORES})
    elif (folder / "folds.json").is_file():
        told = fold_scores(read_result(folder / "folds.json", FOLDS))
    found = {}
    for part, scores in told.items():
        if part not in PARTS:
            continue
        statistics = bootstrap.statistics_of(rows[part], about["kinds"]) if rows.get(part) else []
        size = len(rows.get(part, ()))
        own = bootstrap.point(statistics, size) if statistics else {}
        draws = bootstrap.resample(statistics, size) if statistics else {}
        mains = [f"{name}_{about['main_scores'][name]}" for name in about["kinds"]]
        for values in (own, draws) if "mean_score" in scores else ():
            bootstrap.add_mean_score(values, mains)
        found[part] = []
        for name, value in scores.items():
            same = name in own and math.isclose(own[name], value, rel_tol=1e-6, abs_tol=1e-6)
            low, high = bootstrap.interval(draws[name]) if same else (None, None)
            found[part].append({"name": name, "value": value, "low": low, "high": high})
    return found


def fold_scores(folds):
    """folds.json as {part: scores}: out-of-fold rows, and test scored with the mean of all folds."""
    parts = {"out_of_fold": folds.get("out_of_fold"), "test": folds.get("test_of_all_folds")}
    return {part: scores for part, scores in parts.items() if scores}


def learning_of(folder, about):
    """The learning curves of the run, or of each fold."""
    monitor, runs = about["monitor"], about.get("folds") or [folder.name]
    found = []
    for name in runs:
        one = course.read_course(folder.parent / name)
        if not one["steps"] and not one["epochs"]:
            continue
        said, numbers = course.verdict(one, monitor)
        log = folder.parent / name / "train.log" if about.get("folds") else about["log"]
        one |= {"name": name, "losses": course.epoch_losses(one), "verdict": said, "numbers": numbers}
        one |= {"best": course.best_epoch(one, monitor), "monitor": monitor, "shown": about["shown_scores"]}
        found.append(one | {"stopped_early": course.read_log(log)["stopped_early"]})
    return found


# ---- tasks -----------------------------------------------------------------------------------------------------------


def task_figures(name, kind, rows, task, training):
    """The figures of a task on the rows that have its label; None if no row has."""
    labelled = [row for row in rows if row["answers"][name]["gold"] is not None]
    answers = [row["answers"][name] for row in labelled]
    if not answers:
        return None
    found = {"kind": kind, "rows": len(answers), "right": sum(bool(answer["right"]) for answer in answers)}
    gold, predicted = ([answer[side] for answer in answers] for side in ("gold", "predicted"))
    if kind == "regression":
        return found | {"residuals": figures.residuals(gold, predicted)}
    if kind in ("tagging", "spans"):
        return found | entity_figures(name, kind, labelled, answers, training)
    if kind == "multilabel":
        return found | multilabel_figures(answers, gold, predicted, task["labels"])
    if kind == "words":
        gold, predicted = ([tag for tags in side for tag in tags] for side in (gold, predicted))
        found["words"] = len(gold)
    found |= {
        "per_label": figures.per_label([{g} for g in gold], [{p} for p in predicted]),
        "confusions": figures.confusions(gold, predicted)[:LISTED],
        "matrix": figures.matrix(gold, predicted),
    }
    sure = [answer["probability"] for answer in answers]
    if kind == "words":
        sure = [p for values in sure for p in values]
    return found | confidence_figures(sure, [g == p for g, p in zip(gold, predicted)])


def confidence_figures(sure, right):
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


def multilabel_figures(answers, gold, predicted, labels):
    gold, predicted = [set(labels) for labels in gold], [set(labels) for labels in predicted]
    pairs, errors = figures.error_pairs(gold, predicted)
    found = {"per_label": figures.per_label(gold, predicted), "pairs": pairs[:LISTED], "errors": errors[:LISTED]}
    if all("probabilities" in answer for answer in answers):
        probabilities = [answer["probabilities"] for answer in answers]
        found["threshold"] = figures.threshold_curve(probabilities, gold, labels)
        sure = [row.get(label, 0.0) for row in probabilities for label in labels]
        right = [label in there for there in gold for label in labels]
        found["calibration"] = figures.calibration(sure, right)
    return found


def entity_figures(name, kind, rows, answers, training):
    found = [entities.matches_of(kind, answer) for answer in answers]
    seen = known_entities(name, kind, training)
    return {
        "per_label": entities.per_type(found),
        "errors": entities.error_counts(found),
        "confusions": entities.confused_types(found)[:LISTED],
        "by_length": entities.by_length(found),
        "by_seen": entities.by_seen(rows, found, seen) if training else None,
        "texts_wrong": sum(any(one.verdict != "right" for one in matches) for matches in found),
    }


def known_entities(name, kind, training):
    """{(type, tokens)} of the entities in training."""
    return {
        (label, tuple(example["tokens"][first : last + 1]))
        for example in training
        for label, first, last in (entities.entities_in(kind, example[name]) if example.get(name) else ())
    }


# ---- slices and errors -----------------------------------------------------------------------------------------------


def slice_figures(rows, kinds, scores):
    """[{"by", "groups": [{"name", "rows", "scores": {score: {"value", "low", "high"}}}]}], for the scores that have
    an interval over all rows."""
    told = [one["name"] for one in scores if one["low"] is not None]
    found = []
    for by, groups in figures.slices(rows) if rows else []:
        table = []
        for name, numbers in groups:
            inside = [rows[i] for i in numbers]
            statistics = bootstrap.statistics_of(inside, kinds)
            values = bootstrap.point(statistics, len(inside)) if statistics else {}
            draws = bootstrap.resample(statistics, len(inside), times=400) if statistics else {}
            cells = {
                score: dict(zip(("value", "low", "high"), (values[score], *bootstrap.interval(draws[score]))))
                for score in told
                if score in values
            }
            table.append({"name": name, "rows": len(inside), "scores": cells})
        found.append({"by": by, "groups": table})
    return found


def error_figures(rows, kinds, training):
    """{"suspects", "mistakes"}: rows whose label is probably wrong, and the most confident mistakes, each with near
    duplicates in training that have another label."""
    pool = [(part, row) for part, part_rows in rows.items() for row in part_rows]
    flat = [row for _, row in pool]
    found = suspects.suspicious(flat, kinds)
    mistakes = []
    for name, kind in kinds.items():
        sure = ((i, figures.mistake_confidence(kind, row["answers"][name])) for i, row in enumerate(flat))
        mistakes += [{"row": i, "task": name, "score": score} for i, score in sure if score is not None]
    mistakes.sort(key=lambda item: -item["score"])
    numbers = list(dict.fromkeys(item["row"] for item in [*found[:LISTED], *mistakes[:LISTED]]))
    near = suspects.contradicted(flat, numbers, kinds, training)
    tables = {}
    for key, items in (("suspects", found), ("mistakes", mistakes)):
        tables[key] = [
            item
            | {"part": pool[item["row"]][0], "id": flat[item["row"]]["id"]}
            | {side: flat[item["row"]]["answers"][item["task"]][side] for side in ("gold", "predicted", "probability")}
            | ({"near": near[item["row"]]} if item["row"] in near else {})
            for item in items
        ]
    return tables
