"""Relations in report.html: errors compared with enumeration, intervals compared with metrics.py, and the page."""

import json
import random
import re
from itertools import product

import pytest
from browser import CHROMIUM, Browser
from test_report import answer, check_in_browser, figures_in, make_run

import metrics
from engine.errors import UserError
from engine.task.task import Task
from tools.report import bootstrap, compare, entities, look, relations, suspects
from tools.report.collect import collect
from tools.report.page import make_report, short
from tools.report.texts import Words

FACTS = Task("relations", labels=["in", "knows", "sees"], entities="things")
TASKS = {"facts": FACTS, "things": Task("spans", labels=["loc", "per"])}
KINDS = {"facts": "relations", "things": "spans"}


def triple(rng, size=8):
    spans = [(s := rng.randrange(size), min(size - 1, s + rng.randrange(3))) for _ in range(2)]
    return [*spans[0], *spans[1], rng.choice(FACTS.labels)]


def changed(item, rng):
    """Returns the relation unchanged or with one of the classified errors."""
    a, b, c, d, predicate = item
    return rng.choice([item, item, [c, d, a, b, predicate], [a, b, c, d, "in"], [a, min(7, b + 1), c, d, predicate]])


def unique(items):
    return sorted(map(list, {tuple(item) for item in items}))


def rows_of(size, seed=0, labels=None):
    """Returns stored rows of both tasks with all kinds of errors. Some are unlabelled. labels: names of the
    predicates."""
    rng, rows, names = random.Random(seed), [], dict(zip(FACTS.labels, labels or FACTS.labels))
    for number in range(size):
        words = [rng.choice(["Ana", "Bo", "Oslo", "met", "the", "old"]) for _ in range(8)]
        gold = unique(triple(rng) for _ in range(rng.randrange(4)))
        found = unique([changed(item, rng) for item in gold if rng.random() < 0.8] + [triple(rng)] * (number % 3 == 0))
        spans = [unique([*item[i : i + 2], rng.choice(["loc", "per"])] for item in gold for i in (0, 2))]
        spans.append(unique([*s[:2], rng.choice(["loc", "per"])] for s in spans[0] if rng.random() < 0.8))
        gold, found = ([[*item[:4], names[item[4]]] for item in side] for side in (gold, found))
        task = Task("relations", labels=list(names.values()), entities="things")
        unlabelled = number % 10 == 9
        sides = {"facts": (task, None if unlabelled else gold, found), "things": (TASKS["things"], *spans)}
        answers = {
            name: answer(task, task.kind, *side, [round(rng.uniform(0.5, 1), 6) for _ in side[1]])
            for name, (task, *side) in sides.items()
        }
        starts = [sum(len(w) + 1 for w in words[:i]) for i in range(8)]
        row = {"id": str(number), "text": " ".join(words), "cut": 0, "windows": 1, "answers": answers}
        rows.append(row | {"places": [[s, s + len(w)] for s, w in zip(starts, words)]})
    return rows


def sides_of(rows, name):
    return [[row["answers"][name][side] for row in rows] for side in ("gold", "predicted")]


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_classifying_relation_errors():
    gold = {("in", 0, 0, 2, 3), ("knows", 0, 0, 5, 5), ("sees", 7, 8, 10, 11), ("sees", 12, 12, 14, 14)}
    gold |= {("in", 0, 0, 20, 20), ("in", 30, 30, 2, 3)}
    predicted = {("in", 0, 0, 2, 3), ("knows", 5, 5, 0, 0), ("sees", 7, 7, 11, 11), ("in", 12, 12, 14, 14)}
    predicted |= {("knows", 20, 20, 2, 3)}
    found = {(m.gold, m.predicted): m.verdict for m in relations.match(gold, predicted)}
    assert found == {
        (("in", 0, 0, 2, 3), ("in", 0, 0, 2, 3)): "right",
        (("knows", 0, 0, 5, 5), ("knows", 5, 5, 0, 0)): "wrong_direction",
        (("sees", 7, 8, 10, 11), ("sees", 7, 7, 11, 11)): "boundary_error",
        (("sees", 12, 12, 14, 14), ("in", 12, 12, 14, 14)): "wrong_predicate",
        (("in", 0, 0, 20, 20), None): "missed",  # both entities are in other predicted relations
        (("in", 30, 30, 2, 3), None): "missed_entity",
        (None, ("knows", 20, 20, 2, 3)): "false_positive",
    }
    known = relations.match(gold, predicted, {(30, 30)})
    assert next(m.verdict for m in known if m.gold == ("in", 30, 30, 2, 3)) == "missed"


def enumerated(gold, predicted):
    """Returns [(verdict, gold, predicted)] according to the module docstring, by repeatedly choosing the best pair."""
    gold, predicted, found = set(gold), set(predicted), []

    def closeness(verdict, g, p):
        if verdict == "wrong_direction":
            return float(g[0] == p[0] and (g[1:3], g[3:5]) == (p[3:5], p[1:3]))
        if verdict == "wrong_predicate":
            return float(g[1:] == p[1:])
        value = float(g[0] == p[0])
        for i in (1, 3):
            one, other = set(range(g[i], g[i + 1] + 1)), set(range(p[i], p[i + 1] + 1))
            value *= len(one & other) / len(one | other)
        return value

    for item in gold & predicted:
        found.append(("right", item, item))
    gold, predicted = gold - set(predicted), predicted - {x for _, x, _ in found}
    known = {span for _, _, p in found for span in (p[1:3], p[3:5])} | {s for p in predicted for s in (p[1:3], p[3:5])}
    for verdict in ("wrong_direction", "wrong_predicate", "boundary_error"):
        while True:
            pairs = [(-closeness(verdict, g, p), g[1:], g[0], p[1:], p[0], g, p) for g, p in product(gold, predicted)]
            if not pairs or not min(pairs)[0]:
                break
            *_, g, p = min(pairs)
            found.append((verdict, g, p))
            gold.remove(g)
            predicted.remove(p)
    found += [("missed" if {g[1:3], g[3:5]} <= known else "missed_entity", g, None) for g in gold]
    return found + [("false_positive", None, p) for p in predicted]


def test_matching_agrees_with_enumeration_and_metrics():
    rng, verdicts = random.Random(5), set()
    for _ in range(1500):
        gold = unique(triple(rng, 5) for _ in range(rng.randrange(6)))
        found = unique([changed(item, rng) for item in gold if rng.random() < 0.7] + [triple(rng, 5) for _ in range(2)])
        sides = [metrics.items_in("relations", side) for side in (gold, found)]
        matches = relations.match(*sides)
        assert sorted(map(repr, enumerated(*sides))) == sorted(repr(tuple(m)) for m in matches)
        for side, items in zip(("gold", "predicted"), sides):
            assert sorted(getattr(m, side) for m in matches if getattr(m, side)) == sorted(items)
        assert sum(m.verdict == "right" for m in matches) == len(sides[0] & sides[1])
        verdicts |= {m.verdict for m in matches}
    assert verdicts == {*relations.VERDICTS}


def test_relations_by_distance_and_occurrence_in_training():
    row = {"text": "Ana met Bo in old Oslo", "places": [[0, 3], [4, 7], [8, 10], [11, 13], [14, 17], [18, 22]]}
    gold = {("knows", 0, 0, 2, 2), ("in", 0, 0, 4, 5), ("in", 4, 5, 4, 4)}
    found = [relations.match(gold, {("in", 0, 0, 4, 5)})]
    cells = entities.by_size(found, relations.distance, relations.DISTANCES)
    assert [(cell["size"], cell["gold"], cell["found"]) for cell in cells] == [("0–2", 2, 0), ("3–5", 1, 1)]
    seen = {("in", ("Ana",), ("old", "Oslo")), ("knows", ("Bo",), ("Ana",))}
    assert entities.by_seen([row], found, seen) == {"seen": {"gold": 1, "found": 1}, "unseen": {"gold": 2, "found": 0}}


def test_confident_unlabelled_relations_are_suspicious():
    one = {"gold": [[0, 0, 2, 2, "in"]], "predicted": [[0, 0, 2, 2, "in"], [1, 1, 2, 2, "in"]], "right": False}
    rows = [{"answers": {"facts": one | {"probability": [0.9, p]}}} for p in (0.95, 0.85)]
    assert [item["row"] for item in suspects.suspicious(rows, {"facts": "relations"})] == [0]


# ---- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("typed", [True, False])
def test_resampled_scores_match_metrics(typed):
    rows = rows_of(60)
    names = ["facts", "things"] if typed else ["facts"]
    tasks, kinds = {n: TASKS[n] for n in names}, {n: KINDS[n] for n in names}
    links = bootstrap.links_of({name: task.to_json() for name, task in tasks.items()})
    assert links == ({"facts": "things"} if typed else {})
    rows = [row | {"answers": {n: row["answers"][n] for n in names}} for row in rows]
    statistics = bootstrap.statistics_of(rows, kinds, links)

    def scores_on(numbers):
        gold, predicted = ({n: [sides_of(rows, n)[i][r] for r in numbers] for n in names} for i in (0, 1))
        scores = metrics.score(tasks, gold, predicted)
        return {name: value for name, value in scores.items() if name != "mean_score"}  # add_mean_score adds it

    assert bootstrap.point(statistics, len(rows)) == pytest.approx(scores_on(range(60)))
    assert "facts_typed_f1" in scores_on(range(60)) or not typed
    (weights,) = bootstrap.weights_of(len(rows), times=4, seed=1)
    values = bootstrap.evaluate(statistics, weights)
    for number, counts in enumerate(weights):
        drawn = [i for i, count in enumerate(counts) for _ in range(count)]
        assert {name: column[number] for name, column in values.items()} == pytest.approx(scores_on(drawn))


# ---- pages -----------------------------------------------------------------------------------------------------------


def run_of(folder, rows, tasks=TASKS):
    """Creates a run folder with these rows, and training data with the relations of the first two rows."""
    data = folder / "no-data"
    data.mkdir(parents=True)
    examples = [
        {"id": row["id"], "tokens": row["text"].split()} | {n: row["answers"][n]["gold"] for n in tasks}
        for row in rows[:2]
    ]
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples))
    return make_run(folder, {"test": rows}, tasks)


def test_the_report_shows_relations_with_their_errors(tmp_path):
    rows = rows_of(80)
    run = run_of(tmp_path / "run", rows)
    path, _ = make_report(run)
    html, found = path.read_text(encoding="utf-8"), figures_in(path)
    scores = {one["name"]: one for one in found["scores"]["test"]}
    for name in ("f1", "relaxed_f1", "entities_f1", "typed_f1"):
        assert scores[f"facts_{name}"]["low"] <= scores[f"facts_{name}"]["value"] <= scores[f"facts_{name}"]["high"]
    task, counted = found["tasks"]["facts"], {}
    for row in rows:
        spans = {tuple(span[:2]) for span in row["answers"]["things"]["predicted"]}
        if row["answers"]["facts"]["gold"] is not None:
            sides = [metrics.items_in("relations", row["answers"]["facts"][side]) for side in ("gold", "predicted")]
            for m in relations.match(*sides, spans):
                cell = counted.setdefault(m.either[0], dict.fromkeys(relations.VERDICTS, 0))
                cell[m.verdict] += 1
    assert task["errors"] == counted and all(sum(cell[v] for cell in counted.values()) for v in relations.VERDICTS)
    assert task["by_seen"]["seen"]["gold"] > 0 and task["by_seen"]["unseen"]["gold"] > 0
    assert sum(pair[2] for pair in task["confusions"]) == sum(cell["wrong_predicate"] for cell in counted.values())
    labelled = [i for i, gold in enumerate(sides_of(rows, "facts")[0]) if gold is not None]
    sides = [[side[i] for i in labelled] for side in sides_of(rows, "facts")]
    assert task["per_label"] == metrics.label_scores(*metrics.count_matches("relations", *sides))
    for verdict in set(relations.VERDICTS) - {"right"}:
        assert f'class="triple {verdict}"' in html and Words("en")(verdict) in html
    assert re.search(r"Oslo<sub>\d</sub> <i>— knows →</i> ", html)
    assert "Confused predicates" in html and "By predicate" in html and "Words between" in html


def test_relation_findings_in_both_languages(tmp_path):
    found, _ = collect(run_of(tmp_path / "run", rows_of(200)))
    found["suspects"] = []
    chosen = [item for item in look.candidates(found) if item[2] in ("look_relations", "look_unseen_relations")]
    assert chosen
    assert all(look.sentence(item, words, short) for item in chosen for words in (Words("en"), Words("zh")))
    name, task = "facts", dict(found["tasks"]["facts"])
    task["by_seen"] = {"seen": {"gold": 20, "found": 18}, "unseen": {"gold": 20, "found": 2}}
    unseen = [item for item in look.entity_candidates(name, task) if item[2] == "look_unseen_relations"]
    assert "10% of the relations unseen in training are found, compared with 90%" in look.sentence(
        unseen[0], Words("en"), short
    )


def test_many_relations_are_truncated_and_escaped(tmp_path):
    rows = rows_of(20, labels=["<b>in</b>", "</script>", "{{ 7 * 7 }}"])
    many = [[i, i, j, j, "</script>"] for i in range(8) for j in range(8)]
    for row in rows:
        row["text"] = row["text"].replace("Ana", "<i>")
    rows[0]["answers"]["facts"] |= {"gold": [], "predicted": many, "probability": [0.9] * 64, "right": False}
    tasks = TASKS | {"facts": Task("relations", labels=["<b>in</b>", "</script>", "{{ 7 * 7 }}"], entities="things")}
    path, _ = make_report(run_of(tmp_path / "run", rows, tasks))
    html = path.read_text(encoding="utf-8")
    assert (
        "<b>in<" not in html
        and "<i>M" not in html
        and "<i> " not in html
        and html.count("<script") == html.count("</script>") == 4
    )
    assert "and 24 more" in html


def test_error_lists_separate_correct_relations_from_those_that_differ(tmp_path):
    """Each item shows correct relations separately from errors."""
    row = rows_of(1)[0]
    words = row["text"].split()
    right, extra = [0, 0, 1, 1, "in"], [2, 2, 3, 3, "sees"]
    row["answers"]["facts"] |= {
        "gold": [right],
        "predicted": [right, extra],
        "probability": [0.9, 0.95],
        "right": False,
    }
    for language, label, gold in (("en", "Correct", "Given"), ("zh", "预测正确", "标注")):
        path, findings = make_report(run_of(tmp_path / language, [row]), language)
        html = path.read_text(encoding="utf-8")
        assert f'<span>{gold} <b class="gold">–</b></span>' in html
        assert f"<span>{label} <b>in: {words[0]} → {words[1]}</b></span>" in html
        assert f'<b class="pred">sees: {words[2]} → {words[3]}</b>' in html
    assert not any("1 labels" in line for line in findings)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_gold_and_right_have_different_names(language):
    words = Words(language)
    assert len({words(key) for key in ("gold", "predicted", "right", "wrong")}) == 4
    values = {"n": 1, "part": "test", "id": "7", "given": "–", "likely": "in: Ana → Oslo"}
    assert "labels are" not in words("look_suspects", **values)


def test_comparisons_have_paired_differences_of_all_scores(tmp_path):
    rows = rows_of(40)
    for name, seed in (("one", 0), ("two", 3)):
        rng = random.Random(seed)
        own = json.loads(json.dumps(rows))
        for row in own:
            one = row["answers"]["facts"]
            kept = [rng.random() < 0.8 for _ in one["predicted"]]
            for key in ("predicted", "probability"):
                one[key] = [x for x, k in zip(one[key], kept) if k]
            one["right"] = metrics.is_right(FACTS, one["gold"], one["predicted"])
        run_of(tmp_path / name, own)
    path = compare.compare_runs(tmp_path, ("one", "two"))
    found = figures_in(path)
    stored = [json.loads((tmp_path / name / "eval.json").read_text())["test"] for name in ("one", "two")]
    for name in ("facts_f1", "facts_relaxed_f1", "facts_entities_f1", "facts_typed_f1"):
        cells = found["scores"][name]
        assert [cell["value"] for cell in cells] == pytest.approx([scores[name] for scores in stored])
        assert cells[1]["difference"] == pytest.approx(stored[1][name] - stored[0][name])
    with pytest.raises(UserError, match="no such run"):
        compare.compare_runs(tmp_path, ("one", "three"))


# For a text, returns the ends of its arcs and of the marks of its relations, in pixels
ARCS = """(side) => {
  const place = (mark) => { const r = mark.getClientRects()[0]; return Math.round(r.left + r.width / 2); };
  const left = side.getBoundingClientRect().left;
  const arcs = [...side.querySelectorAll("svg.arcs path")].map((path) => {
    const numbers = path.getAttribute("d").match(/-?[\\d.]+/g).map(Number);
    return [numbers[0] + left, numbers[6] + left].map(Math.round);
  });
  const marks = [...side.querySelectorAll("mark")];
  const has = (mark, n) => [...mark.children].some((b) => b.tagName === "B" && b.textContent === n);
  const named = (sub) => place(marks.find((mark) => has(mark, sub.textContent)));
  const triples = [...side.querySelectorAll("span.triple")].map((t) => [...t.querySelectorAll("sub")].map(named));
  return [arcs, triples];
}"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package `chromium`)")
def test_the_page_in_a_browser(tmp_path):
    path, _ = make_report(run_of(tmp_path / "run", rows_of(60)))
    check_in_browser(path, tmp_path / "profile")
    with Browser(tmp_path / "other") as browser:
        browser.look()
        browser.open(path)
        wait = "new Promise(done => requestAnimationFrame(() => setTimeout(done, 100)))"  # until arcs are drawn
        found = browser.run(f"{wait}.then(() => [...document.querySelectorAll('.related')].map({ARCS}))")
        assert len(found) > 20
        for arcs, triples in found:
            assert arcs == [pytest.approx(ends, abs=1) for ends in triples]
        assert sum(len(arcs) for arcs, _ in found) > 20
