"""Writes report.html from statistics, plots and strings.

    python -m tools.report NAME

The page is a single file with style, script and plots, and makes no network requests. Text from the data is escaped by
jinja2 or, in JSON, by `json_in_page`. The size of the page is bounded for any amount of data.
"""

import csv
import json
import logging
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from engine.predict.rows import harmless
from engine.run.atomic import atomic_file
from engine.task.task import needs_words
from metrics import items_in
from tools.report import bootstrap, entities, figures, look, marked, relations, svg
from tools.report.collect import LISTED, collect
from tools.report.figures import Row
from tools.report.texts import Words, language_of

logger = logging.getLogger("template")
TEMPLATES = Path(__file__).parent / "templates"
TABLE_BYTES = 6_000_000  # maximum size of the table of rows
GALLERY = 40  # texts shown with their entities


def short(value: Any, most: int = 80) -> str:
    """Truncates text from the data to `most` characters and appends its length."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,})"


def show(value: Any, most: int = 160) -> str:
    """Formats a label of any kind as a readable string."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return short(", ".join(value) or "–", most)
    return short(value, most)


def json_in_page(value: Any) -> Markup:
    """Encodes a value as JSON that is safe in a script element, where it cannot close the element or open a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def plain(value: Any, most: int = 300) -> Any:
    """Truncates long strings in nested data, and replaces non-finite numbers with None."""
    if isinstance(value, dict):
        return {short(str(key), most): plain(item, most) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, most) for item in value]
    if isinstance(value, str):
        return short(value, most)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def environment(words: Words) -> Environment:
    loader = FileSystemLoader(TEMPLATES, encoding="utf-8")
    env = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    env.globals |= {"t": words, "json_in_page": json_in_page, "zip": zip, "verdicts_of": relations.verdicts_of}
    env.globals |= {"are_relations": relations.are_relations}
    env.filters |= {"short": short, "show": show, "score": lambda x: "–" if x is None else f"{x:.4f}"}
    env.filters |= {"percent": lambda x: "–" if x is None else f"{100 * x:.1f}"}
    return env


def raw(name: str) -> Markup:
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def write_page(path: Path, template: str, words: Words, view: dict[str, Any]) -> None:
    """Renders a template with the style and script of the page. view: variables, with the results as "found"."""
    shared = {"words": words, "style": raw("page.css"), "script": raw("page.js"), "figures": plain(view["found"])}
    html = environment(words).get_template(template).render(view | shared)
    with atomic_file(path) as file:
        file.write(html)


# ---- one run ---------------------------------------------------------------------------------------------------------


def make_report(folder: str | Path, language: str = "auto", spreadsheet_safe: bool = False) -> tuple[Path, list[str]]:
    """Writes report.html and suspicious.csv to a run folder. Returns (path, main findings in English). Raises UserError
    if the folder has no stored predictions."""
    results, rows = collect(folder)
    everything = [row for split_rows in rows.values() for row in split_rows]
    words = Words(language_of(language, [row["text"] for row in everything]))
    for item in [*results["suspects"], *results["confident_errors"][:LISTED]]:
        item |= differences(results["about"]["kinds"][item["task"]], everything[item["row"]], item)
    findings = look.worth_a_look(results)
    suspicious = Path(folder) / "suspicious.csv"
    write_suspicious(suspicious, results["suspects"], rows_with_split(rows), spreadsheet_safe)
    view = {
        "found": results,
        "listed": {key: results.pop(key) for key in ("suspects", "confident_errors")},
        "texts": everything,
        "look": [(item[1], look.sentence(item, words, short)) for item in findings],
        "slice_title": lambda by: look.slice_title(by, words, short),
        "learning": [learning_pictures(history, words) for history in results["learning"]],
        "tasks": {name: task_view(name, task, rows[results["main"]], words) for name, task in results["tasks"].items()},
        "table": table_of(rows, results["about"]["kinds"]),
        "most": LISTED // 4,
        "times": bootstrap.TIMES,
        "seed": bootstrap.SEED,
    }
    path = Path(folder) / "report.html"
    write_page(path, "page.html.jinja", words, view)
    return path, [look.sentence(item, Words("en"), short) for item in findings]


def show_report(folder: str | Path, language: str = "auto", spreadsheet_safe: bool = False) -> None:
    """Writes the page, and logs its path and the main findings."""
    path, sentences = make_report(folder, language, spreadsheet_safe)
    logger.info(f"report: {path}")
    for number, line in enumerate(sentences, 1):
        logger.info(f"  {number}. {line}")


def rows_with_split(rows: dict[str, list[Row]]) -> list[tuple[str, Row]]:
    return [(split, row) for split, split_rows in rows.items() for row in split_rows]


def write_suspicious(
    path: Path, suspects: Sequence[dict[str, Any]], rows: Sequence[tuple[str, Row]], spreadsheet_safe: bool = False
) -> None:
    """Writes suspicious.csv with the probably mislabelled rows, worst first. spreadsheet_safe: see `harmless`."""
    safe = harmless if spreadsheet_safe else lambda cell: cell
    with atomic_file(path) as file:
        writer = csv.writer(file)
        writer.writerow(["id", "part", "task", "text", "given", "likely", "score"])
        for suspect in suspects:
            split, row = rows[suspect["row"]]
            labels = (suspect["gold_shown"], suspect["likely_shown"])
            cells = [row["id"], split, suspect["task"], row["text"], *labels, round(suspect["score"], 6)]
            writer.writerow(map(safe, cells))


# ---- plots -----------------------------------------------------------------------------------------------------------


def learning_pictures(history: dict[str, Any], words: Words) -> dict[str, Any]:
    """Plots a training run. Returns {"name", "pictures": [(title, plot, [line names])], "diagnosis": sentence}."""
    steps, epochs, pace = history["steps"], history["epochs"], history["pace"]
    ends = [record["step"] for record in epochs]
    best = [(ends[history["best"] - epochs[0]["epoch"] - 1], words("best"))] if history["best"] and ends else []
    best += [(ends[-1], words("stopped_early"))] if history["stopped_early"] and ends else []
    pictures: list[tuple[str, svg.Plot, list[str]]] = []

    def add(title: str, series: list, names: list[str], marks: list = best, **options: Any) -> None:
        if any(len(points) for points, _ in series):
            picture = svg.lines(series, words("step"), "", title, marks=marks, **options)
            pictures.append((title, picture, names))

    losses = [([r["step"] for r in steps], [r.get("loss") for r in steps])]
    add(words("loss"), [*losses, (ends, [r.get("dev_loss") for r in epochs])], [words("train_loss"), words("dev_loss")])
    names = [name for name in (epochs[0] if epochs else {}) if name.startswith("dev_") and not name.endswith("loss")]
    main = [f"dev_{name}" for name in dict.fromkeys([history["monitor"], *history["shown"]])]
    names = [name for name in main if name in names][:6] or names[:6]
    add(words("dev_scores"), [(ends, [r.get(name) for r in epochs]) for name in names], [name[4:] for name in names])
    for key in ("lr", "gradient_norm"):
        known = [r for r in steps if key in r]
        add(words(key), [([r["step"] for r in known], [r[key] for r in known])], [], marks=[])
    speed = [r["examples_per_second"] for r in pace]
    throughput = [([r["step"] for r in pace], speed)]
    add(words("throughput"), throughput, [], marks=[], y_range=(0, 1.1 * max(speed, default=1)))
    return {"name": history["name"], "pictures": pictures, "diagnosis": words(history["verdict"], **history["numbers"])}


def task_view(name: str, task: dict[str, Any], rows: Sequence[Row], words: Words) -> dict[str, Any]:
    """Returns the plots and marked texts of a task."""
    view: dict[str, Any] = {"pictures": []}

    def add(title: str, picture: svg.Plot, names: Sequence[str] = (), kinds: str = "s") -> None:
        view["pictures"].append((title, picture, list(names), kinds))

    if task.get("calibration"):
        title = f"{words('calibration')} · {words('ece', ece=task['calibration']['ece'])}"
        if (untempered := task["calibration"].get("untempered")) is not None:
            title += words("ece_untempered", ece=untempered)
        bins = task["calibration"]["bins"]
        add(title, svg.reliability(bins, words("confidence"), words("accuracy"), title))
    if task.get("histogram"):
        edges = [i / 20 for i in range(21)]
        labels = [words("right"), words("wrong")]
        picture = svg.stacked(task["histogram"], edges, words("confidence"), words("count"), words("histogram"))
        add(words("histogram"), picture, labels, "k")
    if task.get("coverage"):
        points = [(task["coverage"]["coverage"], task["coverage"]["accuracy"])]
        title = words("coverage")
        add(title, svg.lines(points, words("coverage_axis"), words("accuracy"), title, x_range=(0, 1)))
    if task.get("threshold") and task["threshold"]["thresholds"]:
        curve = task["threshold"]
        points = [(curve["thresholds"], curve[key]) for key in ("precision", "recall", "f1")]
        mark = [(curve["best"]["threshold"], words("best"))]
        title = words("threshold_curve")
        picture = svg.lines(points, words("threshold"), "", title, y_range=(0, 1.05), x_range=(0, 1), marks=mark)
        add(title, picture, [words(key) for key in ("precision", "recall", "f1")])
    if task.get("residuals"):
        residuals = task["residuals"]
        add(words("against"), svg.scatter(residuals["points"], words("gold"), words("predicted"), words("against")))
        counts = [[count] for count in residuals["counts"]]
        title = words("residuals")
        add(title, svg.stacked(counts, residuals["edges"], title, words("count"), title))
    if isinstance(task.get("errors"), dict):
        view["gallery"] = gallery(name, task["kind"], rows, task["of_entities"])
    return view


def gallery(name: str, kind: str, rows: Sequence[Row], of_entities: str = "") -> dict[str, Any]:
    """Returns {"texts": [{"id", "verdicts", "kinds", "cut", "gold", "predicted", "triples"}], "all", "types"} for the
    texts with entity or relation errors, most confident errors first. gold, predicted: from `marked.tree`. triples:
    from `relations.triples_of`; None for entities."""
    confidences = [(figures.error_confidence(kind, row["answers"][name]), row) for row in rows]
    wrong = [(sure, row) for sure, row in confidences if sure is not None]
    texts = []
    for _, row in sorted(wrong, key=lambda pair: pair[0], reverse=True)[:GALLERY]:
        matches = relations.matches_of(kind, row, name, of_entities)
        start, end = marked.window(row, matches)
        triples = relations.triples_of(row, matches) if relations.are_relations(kind) else None
        shown: dict[str, Any] = {"triples": triples, "cut": (start, end, len(row["text"])), "id": row["id"]}
        for side in ("gold", "predicted"):
            marks = relation_marks(row, triples, side) if triples else marked.marks_of(row, matches, side)
            shown[side] = marked.drawn(row, marks, start, end)
        verdicts = sorted({match.verdict for match in matches})
        kinds = sorted({match.either[0] for match in matches})
        texts.append(shown | {"verdicts": verdicts, "kinds": kinds})
    return {"texts": texts, "all": len(wrong), "types": type_numbers(name, kind, rows)}


def relation_marks(row: Row, triples: dict[str, Any], side: str) -> list[marked.Mark]:
    """Returns the marks of the subjects and objects of one side, labelled with their numbers."""
    numbers = {number for triple in triples[side] for _, number in (triple["subject"], triple["object"])}
    spans = [(*span, number) for span, number in triples["spans"].items() if number in numbers]
    return [marked.mark_of(row, first, last, str(number)) for first, last, number in spans]


def type_numbers(name: str, kind: str, rows: Sequence[Row]) -> dict[str, int]:
    """Numbers entity types by frequency. Returns {type: number}. The number determines the colour."""
    sides = [row["answers"][name][side] for row in rows for side in ("gold", "predicted")]
    counts = Counter(entity[0] for side in sides if side is not None for entity in items_in(kind, side))
    return {label: number for number, (label, _) in enumerate(figures.most_frequent(counts))}


# ---- the table of rows -----------------------------------------------------------------------------------------------


def shown_label(kind: str, row: Row, label: Any) -> str:
    """Formats a label for the table, tags and spans as entities."""
    if label is None or not needs_words(kind):
        return show(label)
    return short(entity_list(row, items_in(kind, label)), 160)


def differences(kind: str, row: Row, item: dict[str, Any]) -> dict[str, str]:
    """Formats the labels of a row. Entities and relations are separated into those that differ and the correct ones.
    Returns {"gold_shown", "predicted_shown", "likely_shown", "right_shown" (if there are correct ones)}."""
    sides = {side: item[side] for side in ("gold", "predicted", "likely") if side in item}
    if not needs_words(kind):
        cut = str if kind == "classification" else show
        return {f"{side}_shown": cut(label) for side, label in sides.items()}
    sets = {side: items_in(kind, label) for side, label in sides.items()}
    other = sets["predicted"]
    right = sets["gold"] & other
    shown = {"right_shown": entity_list(row, right)} if right else {}
    return shown | {
        f"{side}_shown": entity_list(row, own - (sets["gold"] if own is other or side == "likely" else other))
        for side, own in sets.items()
    }


def entity_list(row: Row, items: set[entities.Entity]) -> str:
    """Formats entities as "city: Oslo; time: noon", and relations as "lives in: Ana → Oslo"."""
    shown = []
    for label, *places in sorted(items, key=entities.position):
        ends = zip(places[::2], places[1::2])
        texts = [row["text"][row["places"][first][0] : row["places"][last][1]] for first, last in ends]
        shown.append(f"{label}: {' → '.join(texts)}")
    return "; ".join(shown) or "–"


def labels_of(kind: str, label: Any) -> set[str]:
    """Returns the labels of a row by which the table can be filtered."""
    if label is None or kind == "regression":
        return set()
    if needs_words(kind):
        return {e[0] for e in items_in(kind, label)}
    return set(label) if isinstance(label, list) else {label}


def table_of(rows: dict[str, list[Row]], kinds: dict[str, str]) -> dict[str, Any]:
    """Selects rows for the page's script, wrong rows first, up to TABLE_BYTES. Returns {"tasks", "labels", "rows",
    "all"}.

    A row is [split, id, text, right, [[gold, [[predicted, right, confidence]]] per task], [label numbers]]; right is 1,
    0 or null. The selected rows are in file order.
    """
    numbers: dict[tuple[str, str], int] = {}
    names, size, kept = list(kinds), 0, []
    flat = rows_with_split(rows)
    verdict = [bootstrap.row_verdict(row) for _, row in flat]
    order = sorted(range(len(flat)), key=lambda i: verdict[i][0] >= verdict[i][1])
    for i in order:
        split, row = flat[i]
        cells = []
        labels: set[tuple[str, str]] = set()
        for name in names:
            kind, outcome = kinds[name], row["answers"][name]
            sure = figures.row_confidence(kind, outcome)
            gold, predicted = (shown_label(kind, row, outcome[side]) for side in ("gold", "predicted"))
            sure = sure if sure is None or not math.isfinite(sure) else round(sure, 4)
            cells.append([gold, [[predicted, outcome["right"], sure]]])
            labels |= {(name, label) for side in ("gold", "predicted") for label in labels_of(kind, outcome[side])}
        size -= 80 * len(numbers)
        label_numbers = [numbers.setdefault((n, short(x, 60)), len(numbers)) for n, x in sorted(labels)[:20]]
        size += 80 * len(numbers)
        right = verdict[i][0] if verdict[i][1] else None
        text = short(row["text"] + (f" ⏐ {row['text_pair']}" if "text_pair" in row else ""), 280)
        record = [split, short(str(row["id"]), 60), text, right, cells, label_numbers]
        size += size_of(record)
        if size > TABLE_BYTES:
            break
        kept.append((i, record))
    records = [record for _, record in sorted(kept)]
    return {"tasks": names, "labels": list(map(list, numbers)), "rows": records, "all": len(flat)}


def size_of(record: list) -> int:
    """Returns the approximate size of a row in the page, in bytes."""
    return len(json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))
