"""Compares several runs on one page.

    python -m tools.report baseline with_crf other_seed

The first run is the baseline. Scores have confidence intervals. Differences are paired: both runs are scored on the
same resamples of the same rows (bootstrap.py).
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import metrics
from engine.errors import UserError
from engine.predict.stored import REPORT_SPLITS, read_about, read_rows
from engine.run.run_folder import distinct
from tools.report import bootstrap, svg
from tools.report.collect import learning_of
from tools.report.figures import Row
from tools.report.page import TABLE_BYTES, labels_of, short, shown_label, size_of, write_page
from tools.report.texts import Words, language_of

logger = logging.getLogger("template")


def compare_runs(output_dir: str | Path, names: Sequence[str], language: str = "auto") -> Path:
    """Writes a comparison of runs to output_dir. Returns its path. names: paths, or names of runs in output_dir."""
    folders = [folder_of(output_dir, name) for name in names]
    if len(set(folders)) < 2:
        raise UserError(f"{' '.join(names)}: these are the same run; pass at least two different runs")
    results, rows = figures_of(folders)
    words = Words(language_of(language, [row["text"] for row in rows[0]]))
    view = {"found": results, "pictures": pictures(results, words), "table": table_of(results, rows)}
    path = Path(output_dir) / f"comparison-{'-'.join(folder.name for folder in folders)}"[:200]
    path = path.with_name(path.name + ".html")
    write_page(path, "compare.html.jinja", words, view | {"times": bootstrap.TIMES})
    return path


def show_comparison(output_dir: str | Path, names: Sequence[str], language: str = "auto") -> None:
    """Writes the page and logs its path."""
    logger.info(f"comparison: {compare_runs(output_dir, names, language)}")


def folder_of(output_dir: str | Path, name: str) -> Path:
    """Returns the folder of a run. Raises UserError if the run does not exist or was not evaluated."""
    folder = next((path for path in (Path(output_dir) / name, Path(name)) if path.is_dir()), None)
    if folder is None:
        raise UserError(f"{name}: no such run in {output_dir}, and no such folder")
    read_about(folder)
    return folder


def figures_of(folders: Sequence[Path]) -> tuple[dict[str, Any], list[list[Row]]]:
    """Returns (JSON-serialisable results, rows of each run), restricted to the rows that all runs share."""
    abouts = [read_about(folder) for folder in folders]
    kinds = {n: kind for n, kind in abouts[0]["kinds"].items() if all(a["kinds"].get(n) == kind for a in abouts)}
    split = next((split for split in REPORT_SPLITS if all(split in about["parts"] for about in abouts)), None)
    if not kinds or split is None:
        raise UserError(f"{folders[0]} and the other runs share no task and split; compare runs on the same data")
    rows = [read_rows(folder, split, kinds) for folder in folders]
    most, rows = max(map(len, rows)), common(rows, kinds)
    if not rows[0]:
        raise UserError(f"{folders[0]} and the other runs share no {split} rows; compare runs on the same data")
    names = distinct([folder.resolve().name for folder in folders])
    options = [about["options"] | {"random_seed": about["seed"]} for about in abouts]
    differ = {n: [o.get(n) for o in options] for n in sorted({n for o in options for n in o})}
    links = bootstrap.links_of({name: abouts[0]["tasks"][name] for name in kinds})
    statistics = [bootstrap.statistics_of(run_rows, kinds, links) for run_rows in rows]
    return {
        "names": names,
        "kinds": kinds,
        "part": split,
        "rows": len(rows[0]),
        "left_out": most - len(rows[0]),
        "abouts": [{k: a[k] for k in ("device", "commit", "evaluated", "data_path", "monitor")} for a in abouts],
        "options": {name: values for name, values in differ.items() if any(v != values[0] for v in values)},
        "scores": paired(statistics, len(rows[0])),
        "learning": [learning_of(folder, about) for folder, about in zip(folders, abouts)],
    }, rows


def key_of(row: Row, kinds: dict[str, str]) -> tuple[str | None, ...]:
    """Returns a key that identifies a row across runs: its id, texts and labels."""
    gold = [str(row["answers"][name]["gold"]) for name in kinds]
    return str(row["id"]), row["text"], row.get("text_pair"), *gold


def common(rows: Sequence[Sequence[Row]], kinds: dict[str, str]) -> list[list[Row]]:
    """Returns, for each run, the rows that all runs share, one per key, in the order of the first run."""
    tables = [{key_of(row, kinds): row for row in run_rows} for run_rows in rows]
    keys = [key for key in tables[0] if all(key in table for table in tables)]
    return [[table[key] for key in keys] for table in tables]


def paired(
    statistics: Sequence[Sequence[bootstrap.Statistic | bootstrap.OfWeights]], size: int, mains: Sequence[str] = ()
) -> dict[str, list[dict[str, float]]]:
    """Returns {score: [{"value", "low", "high"} per run]}. All runs but the first also have "difference",
    "difference_low", "difference_high" and "better": 0 if the interval contains 0, 1 if the run is better, -1 if it is
    worse. mains: the main scores, which mean_score averages."""
    draws = [bootstrap.resample(own, size) for own in statistics]
    points = [bootstrap.point(own, size) for own in statistics]
    for draw, scores in zip(draws, points):
        bootstrap.add_mean_score(draw, mains)
        bootstrap.add_mean_score(scores, mains)
    table: dict[str, list[dict[str, float]]] = {}
    for name in points[0]:
        table[name] = []
        for number, (values, own) in enumerate(zip(draws, points)):
            low, high = bootstrap.interval(values[name])
            cell = {"value": own[name], "low": low, "high": high}
            if number:
                cell["difference"] = own[name] - points[0][name]
                ends = bootstrap.interval(values[name] - draws[0][name])
                cell["difference_low"], cell["difference_high"] = ends
                sign = 1 if ends[0] > 0 else -1 if ends[1] < 0 else 0
                cell["better"] = -sign if metrics.lower_is_better(name) else sign
            table[name].append(cell)
    return table


def pictures(figures: dict[str, Any], words: Words) -> list[tuple[str, svg.Plot, list[str]]]:
    """Plots training loss, dev loss, monitored score and throughput of all runs. Returns [(title, plot, names)]."""
    runs = [(name, history) for name, histories in zip(figures["names"], figures["learning"]) for history in histories]
    labels = [name if name.split(" (")[0] == run["name"] else f"{name} · {run['name']}" for name, run in runs]
    monitor = figures["abouts"][0]["monitor"]
    curves = [
        (f"{words('loss')} · {words('train_loss')}", "steps", "loss"),
        (f"{words('loss')} · {words('dev_loss')}", "epochs", "dev_loss"),
        (words("monitored", monitor=monitor), "epochs", f"dev_{monitor}"),
        (words("throughput"), "pace", "examples_per_second"),
    ]
    result = []
    for title, kind, key in curves:
        series = [([r["step"] for r in run[kind]], [r.get(key) for r in run[kind]]) for _, run in runs]
        if any(svg.finite(values) for _, values in series):
            result.append((title, svg.lines(series, words("step"), "", title), labels))
    return result


def table_of(figures: dict[str, Any], rows: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """Selects rows that only some runs label correctly, like page.table_of, with the predictions of all runs."""
    numbers: dict[tuple[str, str], int] = {}
    kinds, kept, size, count = figures["kinds"], [], 0, 0
    for run_rows in zip(*rows):
        verdicts = {name: [row["answers"][name]["right"] for row in run_rows] for name in kinds}
        if all(len(set(values)) == 1 for values in verdicts.values()):
            continue
        count += 1
        first, cells = run_rows[0], []
        labels: set[tuple[str, str]] = set()
        for name, kind in kinds.items():
            gold = first["answers"][name]["gold"]
            outcomes = [row["answers"][name] for row in run_rows]
            shown = [[shown_label(kind, first, a["predicted"]), a["right"], None] for a in outcomes]
            cells.append([shown_label(kind, first, gold), shown])
            labels |= {(name, label) for label in labels_of(kind, gold)}
        label_numbers = [numbers.setdefault((n, short(x, 60)), len(numbers)) for n, x in sorted(labels)[:20]]
        right = int(all(values[0] is not False for values in verdicts.values()))
        record = [figures["part"], short(str(first["id"]), 60), short(first["text"], 280), right, cells, label_numbers]
        size += size_of(record)
        if size + 80 * len(numbers) <= TABLE_BYTES:
            kept.append(record)
    label_names = list(map(list, numbers))
    return {"tasks": list(kinds), "labels": label_names, "rows": kept, "all": count, "runs": figures["names"]}
