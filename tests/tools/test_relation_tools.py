"""Relations in the demo, in files for annotation, in the Python interface and in --debug, with small models."""

import json
from itertools import product
from xml.etree import ElementTree

import pytest
import torch
from browser import CHROMIUM, Browser
from collection import case_of
from conftest import TINY
from test_demo import labeller_of, wait_for
from test_relations import examples_of
from test_report import check_page
from torch.distributions import Bernoulli

from config import Config
from data_process import DataConfig, process
from engine.errors import UserError
from engine.model import distributions, relations
from engine.predict import load
from engine.predict.given import examples_of as given
from engine.run.files import write_json
from engine.task import words
from engine.task.task import Task
from main import main
from metrics import score
from tools.check.model_check import check_model
from tools.demo.prompt import format_result, painter
from tools.demo.typed import Examples
from tools.select import annotate, choose
from tools.select.__main__ import SelectConfig
from tools.select.__main__ import main as select

FACTS = {"type": "relations", "labels": ["home", "likes"], "counts": [100, 100], "unit": "word"}
THINGS = {"type": "spans", "labels": ["loc", "per"], "counts": [100, 100], "unit": "word"}
FORM = {"type": "classification", "labels": ["few", "many"], "counts": [100, 100]}
TASKS = {
    "alone": {"facts": FACTS},
    "typed": {"facts": FACTS | {"entities": "things"}, "things": THINGS},
    "joint": {"facts": FACTS | {"entities": "things"}, "things": THINGS, "form": FORM},
}
TEXTS = ["Ana likes Ben", "Eva and Finn like each other", "Dan lives in Rome and Oslo", "Cleo was here"]


def made_data(folder, name):
    """Writes a processed folder with these tasks."""
    folder.mkdir()
    for part, seed, size in (("train", 0, 160), ("dev", 1, 40), ("test", 2, 40)):
        rows = []
        for number, (tokens, facts) in enumerate(examples_of(seed, size)):
            if number % 4 == 0:
                tokens, facts = ["😀", *tokens], [[*(place + 1 for place in item[:4]), item[4]] for item in facts]
            ends = sorted(
                {(*item[i : i + 2], "loc" if item[4] == "home" and i else "per") for item in facts for i in (0, 2)}
            )
            row = {"facts": facts, "things": [list(end) for end in ends], "form": "many" if len(facts) > 1 else "few"}
            rows.append({"id": str(number), "tokens": tokens} | {task: row[task] for task in TASKS[name]})
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_json(folder / "labels.json", TASKS[name])
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns run(name), which returns (run folder, data folder, rows of test predictions). Each run is trained
    once."""
    root, made = tmp_path_factory.mktemp("runs"), {}

    def run(name):
        if name not in made:
            data, own = made_data(root / f"data_{name}", name), dict(epochs=12, lr=5e-3, max_length=32)
            flags = dict(data_path=str(data), output_dir=str(root), model_version=name, do_train=True, do_eval=True)
            main(Config(**TINY | own | flags, do_predict=True, predict_output=str(root / f"{name}.jsonl")))
            lines = (root / f"{name}.jsonl").read_text().splitlines()
            made[name] = root / name, data, [json.loads(line) for line in lines]
        return made[name]

    return run


def triples_of(text, relations):
    """Returns {(subject, predicate, object)} of a prediction, and checks its offsets."""
    for one in relations:
        for end in (one["subject"], one["object"]):
            assert text[end["start"] : end["end"]] == end["text"]
    return {(one["subject"]["text"], one["predicate"], one["object"]["text"]) for one in relations}


WANTED = [
    {("Ana", "likes", "Ben")},
    {("Eva", "likes", "Finn"), ("Finn", "likes", "Eva")},
    {("Dan", "home", "Rome"), ("Dan", "home", "Oslo")},
    set(),
]

# ---- the Python interface --------------------------------------------------------------------------------------------


def test_python_interface_matches_predictions(runs):
    folder, data, rows = runs("typed")
    model = load(folder)
    found = model(TEXTS)
    assert [triples_of(row["text"], row["facts"]) for row in found] == WANTED
    assert all(0 < one["probability"] <= 1 for row in found for one in row["facts"])
    examples = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    for row, answer in zip(rows, model(examples)):
        assert triples_of(row["text"], row["facts"]) == triples_of(row["text"], answer["facts"])
        for one, other in zip(row["facts"], answer["facts"]):
            assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)
    stored = json.loads((folder / "eval.json").read_text())["test"]
    assert stored["facts_typed_f1"] > 0.9
    scores = model.evaluate(examples)
    assert {name: scores[name] for name in scores if name.startswith("facts")} == pytest.approx(
        {name: stored[name] for name in scores if name.startswith("facts")}, abs=1e-4
    )
    with pytest.raises(UserError, match="'facts' finds relations, whose scores are not label logits"):
        model.explain(TEXTS[0], task="facts")
    with pytest.raises(UserError, match="'things' finds spans, whose"):
        model.explain(TEXTS[0], task="things")
    joint = load(runs("joint")[0])
    assert joint.explain(TEXTS[0]).task == "form"  # the first text that can be explained


# ---- the report ------------------------------------------------------------------------------------------------------


def test_report_scores_match_eval(runs):
    found = check_page(runs("joint")[0])
    intervals = {one["name"]: (one["low"], one["high"]) for one in found["scores"]["test"]}
    for name in ("facts_f1", "facts_relaxed_f1", "facts_entities_f1", "facts_typed_f1", "facts_typed_recall"):
        assert None not in intervals[name], name
    seen = found["tasks"]["facts"]["by_seen"]
    assert sum(cell["gold"] for cell in seen.values()) == sum(
        sum(cell[v] for v in cell if v != "false_positive") for cell in found["tasks"]["facts"]["errors"].values()
    )
    assert found["tasks"]["facts"]["of_entities"] == "things" and seen["seen"]["gold"] > 0


# ---- the demo --------------------------------------------------------------------------------------------------------


def test_the_demo_shows_relations(runs):
    folder, data, _ = runs("typed")
    label = labeller_of(data, folder.parent, "typed")
    for text, expected, answer in zip(TEXTS, WANTED, label(TEXTS)):
        task = answer["tasks"][0]
        shown = {(subject, predicate, other) for subject, _, predicate, other, _, _ in task["relations"]}
        assert shown == expected == triples_of(text, answer["prediction"]["facts"])
        numbers = {n: end for one in task["relations"] for end, n in (one[:2], one[3:5])}
        marks = [piece for piece in task["marked"] if isinstance(piece, dict)]
        assert {int(mark["label"]): mark["inside"][0] for mark in marks} == numbers
        lines = format_result(answer, painter(False))
        for subject, one, predicate, other, two, p in task["relations"]:
            assert f"    {subject} {one} — {predicate} → {other} {two} {p:.4f}" in lines
    gold = [task for one in Examples([data], label.tasks).first() for task in one["gold"] if task["task"] == "facts"]
    assert any(task["relations"] for task in gold) and all(one[5] is None for t in gold for one in t["relations"])


def test_control_characters_in_relations_are_replaced():
    one = ["a\x1b[2J", 1, "p\x07", "b\n", 2, 0.5]
    lines = format_result({"tasks": [{"task": "t", "marked": ["a"], "relations": [one]}], "cut": 0}, painter(False))
    assert "\x1b" not in lines and "\x07" not in lines and lines.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package `chromium`)")
def test_the_demo_page_shows_relations(runs, tmp_path, python):
    from test_demo import Server, end_by

    folder, data, _ = runs("typed")
    flags = dict(data_path=data, output_dir=folder.parent, model_version="typed", device="cpu")
    server = Server(python, [str(x) for name, value in flags.items() for x in (f"--{name}", value)], tmp_path / "log")
    with Browser(tmp_path / "profile") as browser:
        browser.look()
        browser.open(server.url + "/")
        browser.run(f"document.getElementById('text').value = {json.dumps(TEXTS[2])}")
        browser.run("document.getElementById('send').click()")
        wait_for(browser, "document.querySelector('[data-task=facts] .triple')?.textContent", "Dan1 — home → ")
        found = browser.run("[...document.querySelectorAll('[data-task=facts] .triple')].map(one => one.textContent)")
        assert len(found) == 2 and browser.complaints == []
    end_by(server, 15)


# ---- files to annotate -----------------------------------------------------------------------------------------------

POOL = [f"{'😀 ' * (n == 1)}{text}" for n, text in enumerate(TEXTS)]


def selected(runs, tmp_path, name, form, texts=POOL):
    """Returns (rows that tools.select writes for texts, in their order; the file)."""
    suffix = {"label_studio": "json", "csv": "csv"}.get(form, "jsonl")
    pool, path = tmp_path / "pool.txt", tmp_path / f"a.{suffix}"
    pool.write_text("\n".join(texts) + "\n")
    (tmp_path / "labelled").mkdir()
    (tmp_path / "labelled/train.jsonl").write_text(json.dumps({"id": "0", "tokens": ["something", "else"]}) + "\n")
    own = dict(checkpoint=str(runs(name)[0]), pool=str(pool), data_path=str(tmp_path / "labelled"))
    select(SelectConfig(**own, output=str(path), output_format=form))
    if form == "csv":
        return [], path
    rows = json.loads(path.read_text()) if form == "label_studio" else map(json.loads, path.read_text().splitlines())
    return sorted(rows, key=lambda row: texts.index(row.get("data", row)["text"])), path


def in_units(text, start, end):
    """Returns the part of a text between offsets in UTF-16 units."""
    return text.encode("utf-16-le")[2 * start : 2 * end].decode("utf-16-le")


@pytest.mark.parametrize("name", ["alone", "typed"])
def test_relations_for_doccano(name, runs, tmp_path):
    answers = load(runs(name)[0])(POOL)
    assert triples_of(POOL[1], answers[1]["facts"]) == WANTED[1]
    for row, answer in zip(selected(runs, tmp_path, name, "doccano")[0], answers):
        spans = {one["id"]: in_units(row["text"], one["start_offset"], one["end_offset"]) for one in row["entities"]}
        found = {(spans[one["from_id"]], one["type"], spans[one["to_id"]]) for one in row["relations"]}
        assert found == triples_of(answer["text"], answer["facts"])
        types = {spans[one["id"]]: one["label"] for one in row["entities"]}
        if name == "typed":
            assert types == {one["text"]: one["label"] for one in answer["things"]}
        else:
            assert set(types.values()) <= {"entity"}


def results_of(row):
    return row["predictions"][0]["result"] if "predictions" in row else []


@pytest.mark.parametrize("name", ["alone", "joint"])
def test_relations_for_label_studio(name, runs, tmp_path):
    answers = load(runs(name)[0])(POOL)
    rows, path = selected(runs, tmp_path, name, "label_studio")
    for row, answer in zip(rows, answers):
        results = results_of(row)
        regions = {one["id"]: one["value"]["text"] for one in results if one["type"] == "labels"}
        pairs = [(regions[r["from_id"]], *r["labels"], regions[r["to_id"]]) for r in results if r["type"] == "relation"]
        assert {*pairs} == triples_of(answer["text"], answer["facts"]) and len(pairs) == len(answer["facts"])
        assert all(one["direction"] == "right" for one in results if one["type"] == "relation")
        choices = [one["value"]["choices"] for one in results if one["type"] == "choices"]
        assert choices == ([[answer["form"]]] if name == "joint" else [])
    tree = ElementTree.parse(path.with_suffix(".xml")).getroot()
    assert [node.get("value") for node in tree.iter("Relation")] == ["home", "likes"]
    (labels,) = tree.iter("Labels")
    controls = {r["from_name"] for row in rows for r in results_of(row) if r["type"] == "labels"}
    assert {labels.get("name")} == controls == {"facts" if name == "alone" else "things"}
    assert [node.get("value") for node in labels] == (["entity"] if name == "alone" else ["loc", "per"])


def test_relations_in_jsonl_and_csv(runs, tmp_path):
    rows, _ = selected(runs, tmp_path, "typed", "jsonl")
    assert [triples_of(row["text"], row["facts"]) for row in rows] == WANTED
    assert all(one.keys() == {"subject", "predicate", "object"} for row in rows for one in row["facts"])


@pytest.mark.parametrize("cells", [2**25, 1])
def test_relation_uncertainty_is_the_entropy_of_all_cells(cells, runs, monkeypatch):
    monkeypatch.setattr(distributions, "DENSE", cells)
    model = load(runs("alone")[0])
    examples = choose.number(list(given(TEXTS, model.tasks)))
    found, head = choose.uncertainties(model, examples)[:, 0], model.trainer.model.output_layer.heads["facts"]
    for value, example in zip(found, examples):
        inputs = model.loader([example]).dataset.batch([0]).inputs
        with torch.no_grad():
            logits = model.trainer.model(inputs).logits["facts"]
        scores = relations.dense(logits, len(head.task.labels))[0].double() / float(head.temperature)
        size = len(example["tokens"])
        expected = 0.0
        for table, i, j in product(range(2 + 2 * 2), range(size), range(size)):
            if table >= 2 or i <= j:
                expected += Bernoulli(logits=scores[table, i, j]).entropy().item()
        assert value == pytest.approx(expected / size, rel=1e-4)


@pytest.mark.parametrize("name", ["alone", "typed"])
@pytest.mark.parametrize("form", ["jsonl", "csv", "doccano", "label_studio"])
def test_data_process_reads_annotations(name, form, runs, tmp_path):
    """The relations match the predictions, also after an emoji."""
    pool = sorted({" ".join(tokens) for tokens, _ in examples_of(3, 60)} | {*POOL})
    expected = {row["text"]: row for row in load(runs(name)[0])(pool)}
    path = selected(runs, tmp_path, name, form, pool)[1]
    own = dict(label_column="facts" if name == "alone" else "facts,things") if form in ("jsonl", "csv") else {}
    if form == "doccano":
        own = dict(offsets="utf16")
    elif form == "label_studio":
        items = [
            item | {"annotations": [{"was_cancelled": False, "result": results_of(item)}]}
            for item in json.loads(path.read_text())
        ]
        path.write_text(json.dumps(items))
    process(DataConfig(input=str(path), output_dir=str(tmp_path / "data"), **own))
    rows = [json.loads(line) for part in (tmp_path / "data").glob("*.jsonl") for line in part.read_text().splitlines()]
    assert len(rows) == len(expected)
    column, found = "facts" if form in ("jsonl", "csv") else "relations", 0
    for row in rows:
        answer = next(expected[text] for text in expected if text.split() == row["text"].split())
        offsets = words.place_tokens(row["text"], row["tokens"])
        read = [words.relation(item, offsets, row["text"]) for item in row[column]]
        assert triples_of(row["text"], read) == triples_of(answer["text"], answer["facts"])
        found += len(read)
    assert found > 20


def test_relations_without_entity_types_are_omitted():
    tasks = {name: Task(**one) for name, one in TASKS["typed"].items()}
    ends = [{"text": "Ana", "start": 0, "end": 3}, {"text": "Rome", "start": 4, "end": 8}]
    facts = [{"subject": ends[0], "predicate": "home", "object": ends[1]}]
    spans = [{"start": 0, "end": 3, "label": "per", "text": "Ana"}]
    labels, related = annotate.split({"facts": facts, "things": spans}, tasks)
    assert labels == {"things": spans} and related == ("things", [], 1)
    spans.append({"start": 4, "end": 8, "label": "loc", "text": "Rome"})
    assert annotate.split({"facts": facts, "things": spans}, tasks)[1] == ("things", [(0, 1, "home")], 0)


def test_unsupported_relation_projects():
    tasks = {name: Task(**one) for name, one in TASKS["joint"].items()}
    with pytest.raises(UserError, match="a relations project cannot have other labels, but the tasks are facts, thin"):
        annotate.require_format("doccano", tasks)
    annotate.require_format("label_studio", tasks)
    with pytest.raises(UserError, match="a project can have only one relations task, but the tasks are a, b"):
        annotate.require_format("label_studio", {"a": tasks["facts"], "b": tasks["facts"]})


# ---- the checks of --debug -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alone", "joint"])
def test_debug_passes(name, runs, tmp_path):
    _, data, _ = runs(name)
    case = case_of(Config(**TINY | dict(data_path=str(data), output_dir=str(tmp_path), max_length=32)))
    assert check_model(case) == {} and case.undecided == {}


def test_evaluation_matches_metrics(runs):
    """Compares eval.json with scores computed from the written rows."""
    folder, data, rows = runs("alone")
    gold = [json.loads(line)["facts"] for line in (data / "test.jsonl").read_text().splitlines()]
    tokens = [json.loads(line)["tokens"] for line in (data / "test.jsonl").read_text().splitlines()]
    found = [
        [[*place(words, one["subject"]), *place(words, one["object"]), one["predicate"]] for one in row["facts"]]
        for words, row in zip(tokens, rows)
    ]
    stored = json.loads((folder / "eval.json").read_text())["test"]
    for name, value in score({"facts": Task(**FACTS)}, {"facts": gold}, {"facts": found}).items():
        assert stored[name] == pytest.approx(value), name


def place(words, end):
    """Returns the (first, last) token of a span of characters."""
    starts = [len(" ".join(words[:i])) + (i > 0) for i in range(len(words))]
    inside = [i for i, start in enumerate(starts) if end["start"] <= start < end["end"]]
    return inside[0], inside[-1]
