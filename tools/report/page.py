"""Writes report.html from figures, plots and words.

    python -m tools.report NAME

The page is a single file with its style, script and plots, and makes no network requests. Text from the data is escaped
by jinja2 (within JSON by `json_in_page`). Its size is bounded for any amount of data.
"""

import csv
import json
import logging
import math
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from engine.predict.predictions import harmless
from engine.run.files import appearing_whole
from tools.report import bootstrap, entities, figures, look, marked, svg
from tools.report.collect import LISTED, collect
from tools.report.texts import Words, language_of

logger = logging.getLogger("template")
TEMPLATES = Path(__file__).parent / "templates"
TABLE_BYTES = 6_000_000  # maximum size of the table of rows
GALLERY = 40  # texts shown with their entities


def short(value, most=80):
    """Text from the data, cut to `most` characters with its length appended."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,})"


def show(value, most=160):
    """A label of any kind as a readable string."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return short(", ".join(value) or "–", most)
    return short(value, most)


def json_in_page(value):
    """JSON that cannot close its script element or open a comment in it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def plain(value, most=300):
    """Figures for the page, with long strings cut and non-finite numbers as None."""
    if isinstance(value, dict):
        return {short(str(key), most): plain(item, most) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, most) for item in value]
    if isinstance(value, str):
        return short(value, most)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def environment(words):
    found = Environment(
        loader=FileSystemLoader(TEMPLATES, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals |= {"t": words, "json_in_page": json_in_page, "zip": zip, "verdicts": entities.VERDICTS}
    found.filters |= {"short": short, "show": show, "score": lambda x: "–" if x is None else f"{x:.4f}"}
    found.filters |= {"percent": lambda x: "–" if x is None else f"{100 * x:.1f}"}
    return found


def raw(name):
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


# ---- one run ---------------------------------------------------------------------------------------------------------


def make_report(folder, language="auto", spreadsheet_safe=False):
    """Writes report.html and suspicious.csv into a run folder. -> (path, [the main findings in English]). Raises
    UserError if the folder has no answers."""
    found, rows = collect(folder)
    everything = [row for part in rows.values() for row in part]
    words = Words(language_of(language, [row["text"] for row in everything]))
    for item in [*found["suspects"], *found["mistakes"][:LISTED]]:
        item |= differences(found["about"]["kinds"][item["task"]], everything[item["row"]], item)
    chosen = look.worth_a_look(found)
    suspicious = Path(folder) / "suspicious.csv"
    write_suspicious(suspicious, found["suspects"], everything_by_part(rows), spreadsheet_safe)
    view = {
        "found": found,
        "listed": {key: found.pop(key) for key in ("suspects", "mistakes")},
        "texts": everything,
        "look": [(item[1], look.sentence(item, words, short)) for item in chosen],
        "slice_title": lambda by: look.slice_title(by, words, short),
        "learning": [learning_pictures(course, words) for course in found["learning"]],
        "tasks": {name: task_view(name, task, rows[found["main"]], words) for name, task in found["tasks"].items()},
        "table": table_of(rows, found["about"]["kinds"]),
        "most": LISTED // 4,
        "times": bootstrap.TIMES,
        "seed": bootstrap.SEED,
    }
    html = (
        environment(words)
        .get_template("page.html.jinja")
        .render(view, words=words, style=raw("page.css"), script=raw("page.js"), figures=plain(found))
    )
    path = Path(folder) / "report.html"
    with appearing_whole(path) as file:
        file.write(html)
    return path, [look.sentence(item, Words("en"), short) for item in chosen]


def show_report(folder, language="auto", spreadsheet_safe=False):
    """Writes the page, and logs its path and the main findings."""
    path, sentences = make_report(folder, language, spreadsheet_safe)
    logger.info(f"report: {path}")
    for number, line in enumerate(sentences, 1):
        logger.info(f"  {number}. {line}")


def everything_by_part(rows):
    return [(part, row) for part, found in rows.items() for row in found]


def write_suspicious(path, suspects, rows, spreadsheet_safe=False):
    """Writes suspicious.csv: rows whose label is probably wrong, the worst first. spreadsheet_safe: see `harmless`"""
    safe = harmless if spreadsheet_safe else lambda cell: cell
    with appearing_whole(path) as file:
        writer = csv.writer(file)
        writer.writerow(["id", "part", "task", "text", "given", "likely", "score"])
        for one in suspects:
            part, row = rows[one["row"]]
            labels = (one["gold_shown"], one["likely_shown"])
            cells = [row["id"], part, one["task"], row["text"], *labels, round(one["score"], 6)]
            writer.writerow(map(safe, cells))


# ---- plots -----------------------------------------------------------------------------------------------------------


def learning_pictures(course, words):
    """{"name", "pictures": [(title, plot, [names of its lines])], "said": the diagnosis} of one training."""
    steps, epochs, pace = course["steps"], course["epochs"], course["pace"]
    ends = [record["step"] for record in epochs]
    best = [(ends[course["best"] - epochs[0]["epoch"] - 1], words("best"))] if course["best"] and ends else []
    best += [(ends[-1], words("stopped_early"))] if course["stopped_early"] and ends else []
    pictures = []

    def add(title, series, names, marks=best, **options):
        if any(len(points) for points, _ in series):
            picture = svg.lines(series, words("step"), "", title, marks=marks, **options)
            pictures.append((title, picture, names))

    losses = [([r["step"] for r in steps], [r.get("loss") for r in steps])]
    add(words("loss"), [*losses, (ends, [r.get("dev_loss") for r in epochs])], [words("train_loss"), words("dev_loss")])
    names = [name for name in (epochs[0] if epochs else {}) if name.startswith("dev_") and not name.endswith("loss")]
    main = [f"dev_{name}" for name in dict.fromkeys([course["monitor"], *course["shown"]])]
    names = [name for name in main if name in names][:6] or names[:6]
    add(words("dev_scores"), [(ends, [r.get(name) for r in epochs]) for name in names], [name[4:] for name in names])
    for key in ("lr", "gradient_norm"):
        there = [r for r in steps if key in r]
        add(words(key), [([r["step"] for r in there], [r[key] for r in there])], [], marks=[])
    speed = [r["examples_per_second"] for r in pace]
    add(
        words("throughput"),
        [([r["step"] for r in pace], speed)],
        [],
        marks=[],
        y_range=(0, 1.1 * max(speed, default=1)),
    )
    return {"name": course["name"], "pictures": pictures, "said": words(course["verdict"], **course["numbers"])}


def task_view(name, task, rows, words):
    """The plots and marked texts of a task."""
    view = {"pictures": []}

    def add(title, picture, names=(), kinds="s"):
        view["pictures"].append((title, picture, list(names), kinds))

    if task.get("calibration"):
        title = f"{words('calibration')} · {words('ece', ece=task['calibration']['ece'])}"
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
        found = task["residuals"]
        add(words("against"), svg.scatter(found["points"], words("gold"), words("predicted"), words("against")))
        counts = [[count] for count in found["counts"]]
        title = words("residuals")
        add(title, svg.stacked(counts, found["edges"], title, words("count"), title))
    if isinstance(task.get("errors"), dict):
        view["gallery"] = gallery(name, task["kind"], rows)
    return view


def gallery(name, kind, rows):
    """{"texts": [{"id", "verdicts", "kinds", "cut", "gold", "predicted"}], "all", "types"}: texts with entity errors,
    the most confident mistakes first; each side as from `marked.tree`."""
    wrong = [(figures.mistake_confidence(kind, row["answers"][name]), i) for i, row in enumerate(rows)]
    wrong = sorted(((sure, i) for sure, i in wrong if sure is not None), key=lambda item: (-item[0], item[1]))
    found = []
    for _, i in wrong[:GALLERY]:
        row = rows[i]
        matches = entities.matches_of(kind, row["answers"][name])
        start, end = marked.window(row, matches)
        sides = {side: marked.drawn(row, matches, side) for side in ("gold", "predicted")}
        verdicts = sorted({one.verdict for one in matches})
        kinds = sorted({(one.gold or one.predicted)[0] for one in matches})
        found.append(
            {"id": row["id"], "verdicts": verdicts, "kinds": kinds, "cut": (start, end, len(row["text"]))} | sides
        )
    return {"texts": found, "all": len(wrong), "types": type_numbers(name, kind, rows)}


def type_numbers(name, kind, rows):
    """{type: number}, numbered by frequency; the number sets its colour."""
    counts = {}
    for row in rows:
        answer = row["answers"][name]
        for side in ("gold", "predicted"):
            for entity in entities.entities_in(kind, answer[side]) if answer[side] is not None else ():
                counts[entity[0]] = counts.get(entity[0], 0) + 1
    return {label: number for number, label in enumerate(sorted(counts, key=lambda label: (-counts[label], label)))}


# ---- the table of rows -----------------------------------------------------------------------------------------------


def shown_answer(kind, row, label):
    """A label in the table; for tags and spans, the entities."""
    if label is None or kind not in ("tagging", "spans"):
        return show(label)
    return short(entity_list(row, entities.entities_in(kind, label)), 160)


def differences(kind, row, item):
    """{"gold_shown", "predicted_shown", "likely_shown"}: labels as strings; for entities only those that differ."""
    sides = {side: item[side] for side in ("gold", "predicted", "likely") if side in item}
    if kind not in ("tagging", "spans"):
        cut = str if kind == "classification" else show
        return {f"{side}_shown": cut(label) for side, label in sides.items()}
    sets = {side: entities.entities_in(kind, label) for side, label in sides.items()}
    other = sets["predicted"]
    return {
        f"{side}_shown": entity_list(row, found - (sets["gold"] if found is other or side == "likely" else other))
        for side, found in sets.items()
    }


def entity_list(row, found):
    """ "city: Oslo; time: noon": entities as a string."""
    ordered = sorted(found, key=entities.place)
    places = [(kind, row["places"][first][0], row["places"][last][1]) for kind, first, last in ordered]
    return "; ".join(f"{kind}: {row['text'][start:end]}" for kind, start, end in places) or "–"


def labels_of(kind, label):
    """The labels by which a row of the table can be filtered."""
    if label is None or kind == "regression":
        return set()
    if kind in ("tagging", "spans"):
        return {e[0] for e in entities.entities_in(kind, label)}
    return set(label) if isinstance(label, list) else {label}


def table_of(rows, kinds):
    """{"tasks", "labels", "rows", "all"}: rows for the page's script, wrong ones first, up to TABLE_BYTES.

    A row is [part, id, text, right, [[gold, [[predicted, right, confidence]]] of each task], [numbers of labels]];
    right is 1, 0 or null. The selected rows are then in file order again.
    """
    names, numbers, size, kept = list(kinds), {}, 0, []
    flat = everything_by_part(rows)
    verdict = [bootstrap.row_verdict(row) for _, row in flat]
    order = sorted(range(len(flat)), key=lambda i: verdict[i][0] >= verdict[i][1])
    for i in order:
        part, row = flat[i]
        cells, labels = [], set()
        for name in names:
            kind, answer = kinds[name], row["answers"][name]
            sure = figures.row_confidence(kind, answer)
            sides = (shown_answer(kind, row, answer[side]) for side in ("gold", "predicted"))
            sure = sure if sure is None or not math.isfinite(sure) else round(sure, 4)
            gold, predicted = sides
            cells.append([gold, [[predicted, answer["right"], sure]]])
            labels |= {(name, label) for side in ("gold", "predicted") for label in labels_of(kind, answer[side])}
        size -= 80 * len(numbers)
        found = [numbers.setdefault((name, short(label, 60)), len(numbers)) for name, label in sorted(labels)[:20]]
        size += 80 * len(numbers)
        right = verdict[i][0] if verdict[i][1] else None
        text = short(row["text"] + (f" ⏐ {row['text_pair']}" if "text_pair" in row else ""), 280)
        record = [part, short(str(row["id"]), 60), text, right, cells, found]
        size += size_of(record)
        if size > TABLE_BYTES:
            break
        kept.append((i, record))
    labels = [list(pair) for pair in numbers]
    return {"tasks": names, "labels": labels, "rows": [record for _, record in sorted(kept)], "all": len(flat)}


def size_of(record):
    """The approximate size of a row in the page, in bytes."""
    return len(json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))
