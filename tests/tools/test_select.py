"""Selecting texts to label: uncertainties compared with independent computations, selection, and round trips of
files."""

import csv
import itertools
import json
import math
import random
import shutil
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from conftest import ROOT
from relation_rows import add_relations
from scipy.special import softmax
from scipy.stats import entropy
from test_ensemble import made_data, train

from data_process import DataConfig, process
from engine.errors import UserError
from engine.predict import load
from engine.predict.given import examples_of
from engine.task import words
from engine.task.task import Task
from tools.select import annotate, choose
from tools.select.__main__ import SelectConfig, main

POOL = [
    "play some jazz by Bob Dylan",
    "Play  some jazz by Bob Dylan!",
    "",
    "wake me at seven 😀 tomorrow",
    "😀 book a train from Rome to Oslo for Sunday",
    "what is the weather in Paris",
    "turn off the lamp in the kitchen",
    "明天北京天气怎么样",
]


@pytest.fixture(scope="module")
def run(sample, tmp_path_factory):
    """Returns a run with intents and slots with a CRF, which has learned some slots."""
    return train(tmp_path_factory.mktemp("select"), sample, "run", use_crf=True, epochs=15, lr=1e-2)


@pytest.fixture
def pool(tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps({"id": f"p{i}", "text": text}) + "\n" for i, text in enumerate(POOL)))
    return path


def selected(path, run, pool, **options):
    """Returns the rows of the file that the command writes."""
    path.unlink(missing_ok=True)
    main(SelectConfig(checkpoint=str(run), pool=str(pool), output=str(path), **options))
    return [json.loads(line) for line in path.read_text().splitlines()]


def scores_of(model, texts):
    """Returns the uncertainties of texts, and {task: logits of each text} at the temperature of the head for computing
    them independently."""
    examples = list(examples_of(texts, model.tasks))
    kept = []
    hook = model.trainer.model.register_forward_hook(lambda _, inputs, output: kept.append(output.logits))
    rows = [choose.uncertainties(model, [example])[0] for example in examples]
    hook.remove()
    heads = model.trainer.model.output_layer.heads
    kept = [{name: of_text[name] / heads[name].temperature for name in heads} for of_text in kept]
    assert np.allclose(choose.uncertainties(model, examples), rows, atol=1e-5)  # in a single batch
    return dict(zip(model.tasks, np.transpose(rows))), kept


def test_entropies_of_classes_and_paths(run):
    """For a CRF, all paths are enumerated."""
    model = load(run)
    scores, logits = scores_of(model, ["play some", "book a", "weather"])
    crf = model.trainer.model.output_layer.heads["slots"].crf
    parts = crf.start_transitions, crf.transitions, crf.end_transitions
    temperature = float(model.trainer.model.output_layer.heads["slots"].temperature)
    start, between, end = (part.detach().double().numpy() / temperature for part in parts)
    for row, of_text in enumerate(logits):
        assert scores["intent"][row] == pytest.approx(entropy(softmax(of_text["intent"][0].double().numpy())), abs=1e-4)
        emissions = of_text["slots"][0].double().numpy()
        paths = itertools.product(range(emissions.shape[1]), repeat=len(emissions))
        totals = [
            start[path[0]]
            + end[path[-1]]
            + sum(emissions[i, tag] for i, tag in enumerate(path))
            + sum(between[pair] for pair in itertools.pairwise(path))
            for path in paths
        ]
        assert scores["slots"][row] == pytest.approx(entropy(softmax(totals)) / len(emissions), abs=1e-4)


def test_entropies_of_sets_words_and_spans(sample, tmp_path):
    words = load(train(tmp_path, sample, "words", epochs=1))
    scores, (first, second) = scores_of(words, ["play some jazz", "明天天气"])
    for row, of_text in enumerate((first, second)):
        each = entropy(softmax(of_text["slots"][0].double().numpy(), axis=1), axis=1)
        assert scores["slots"][row] == pytest.approx(each.mean(), abs=1e-4)
    sets = load(train(tmp_path, made_data(tmp_path / "a", "texts"), "sets", epochs=1))
    assert choose.uncertain_tasks(sets.tasks) == ["intent", "topics"]
    examples = list(examples_of(["red dog", "blue cat sleeps"], sets.tasks))
    found, _ = sets.trainer.infer(sets.loader(choose.number(examples)), "", keep_averages="texts")
    chances = np.array([average.numpy() for average in found.averages["topics"]], np.float64)
    expected = entropy([chances, 1 - chances]).sum(1)
    assert choose.uncertainties(sets, examples)[:, 1] == pytest.approx(expected, abs=1e-4)
    data = made_data(tmp_path / "b", "spans")
    add_relations(data, "places")
    spans = load(train(tmp_path, data, "spans", epochs=1))
    scores, logits = scores_of(spans, ["dog runs in Paris"])
    size = 4
    for name, kinds in (("places", len(spans.labels["places"])), ("facts", 2)):  # facts: subjects and objects
        dense = spans.trainer.model.output_layer.heads[name].distribution.by_word(logits[0][name])[0]
        chances = 1 / (1 + np.exp(-dense.double().numpy().reshape(size, size, -1)))
        chances[np.tril_indices(size, -1)] *= np.arange(chances.shape[2]) >= kinds  # no span ends before it starts
        expected = sum(entropy([p, 1 - p]) for p in chances.flat)
        assert scores[name][0] == pytest.approx(expected / size, abs=1e-4)


def test_long_texts_are_normalised_per_word(run):
    """A long text of equal words, read in windows, has about the same uncertainty as a shorter one."""
    short, long = choose.uncertainties(load(run), [{"text": "", "tokens": ["x"] * size} for size in (40, 400)])[:, 1]
    assert 0.5 < long / short < 2


def test_ranks_weight_tasks_equally():
    scores = np.array([[0.1, 300.0], [0.3, 100.0], [0.2, 100.0]])
    assert choose.ranks_of(scores).tolist() == pytest.approx([(1 + 3) / 6, (3 + 1.5) / 6, (2 + 1.5) / 6])
    assert choose.ranks_of(np.zeros((4, 0))).tolist() == [0.0] * 4


def test_spread_selects_one_text_per_cluster():
    rng = np.random.default_rng(0)
    centres = np.eye(5, 16)
    vectors = np.repeat(centres, 20, axis=0) * rng.uniform(0.5, 2, (100, 1)) + rng.normal(0, 0.01, (100, 16))
    chosen = choose.spread(vectors, np.ones(100), 5, seed=1)
    assert (chosen // 20).tolist() == [0, 1, 2, 3, 4]
    for group, place in enumerate(chosen):  # the member nearest to the mean of its cluster
        unit = vectors[20 * group : 20 * group + 20]
        unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
        assert place - 20 * group == np.linalg.norm(unit - unit.mean(0), axis=1).argmin()
    heavy = np.ones(100)
    heavy[3] = 1e6  # the cluster centre moves there
    assert 3 in choose.spread(vectors, heavy, 5, seed=1)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_spread_of_equal_vectors():
    chosen = choose.spread(np.ones((6, 3)), np.ones(6), 4, seed=1)
    assert len(set(chosen.tolist())) == 4


def test_the_most_uncertain_texts_come_first(run, pool, tmp_path):
    model = load(run)
    texts = [text for i, text in enumerate(POOL) if i not in (1, 2)]
    scores = choose.uncertainties(model, list(examples_of(texts, model.tasks)))
    expected = [texts[i] for i in np.argsort(-choose.ranks_of(scores), kind="stable")]
    rows = selected(tmp_path / "to_label.jsonl", run, pool, number=3, strategy="uncertainty")
    assert [row["text"] for row in rows] == expected[:3]
    means = dict(zip(texts, scores.mean(1)))
    assert [row["uncertainty"] for row in rows] == pytest.approx([means[row["text"]] for row in rows], abs=1e-3)
    every = selected(tmp_path / "to_label.jsonl", run, pool, number=100)
    assert [row["text"] for row in every] == expected


def test_both_selects_diverse_uncertain_texts(run, tmp_path, monkeypatch):
    rng = random.Random(3)
    texts = [" ".join(rng.choices("play book wake jazz train seven the a".split(), k=5)) for _ in range(80)]
    (tmp_path / "pool.txt").write_text("\n".join(texts) + "\n")
    monkeypatch.setattr(choose, "BETA", 4)
    ranked = selected(tmp_path / "a.jsonl", run, tmp_path / "pool.txt", number=200, strategy="uncertainty")
    both = selected(tmp_path / "b.jsonl", run, tmp_path / "pool.txt", number=5, strategy="both")
    again = selected(tmp_path / "b.jsonl", run, tmp_path / "pool.txt", number=5, strategy="both")
    assert both == again and len({row["id"] for row in both}) == 5
    places = [[row["id"] for row in ranked].index(row["id"]) for row in both]
    assert places == sorted(places) and places[-1] < 20 and places != [0, 1, 2, 3, 4]
    drawn = [
        [row["id"] for row in selected(tmp_path / "c.jsonl", run, tmp_path / "pool.txt", number=5, **options)]
        for options in (dict(strategy="random"), dict(strategy="random", random_seed=1), dict(strategy="diversity"))
    ]
    assert all(len(set(ids)) == 5 for ids in drawn) and drawn[0] != drawn[1]


def test_labelled_texts_are_skipped(run, sample, tmp_path, capsys):
    lines = [(sample / f"{part}.jsonl").read_text().splitlines()[0] for part in ("train", "dev", "test")]
    rows = [{"tokens": json.loads(line)["tokens"]} for line in lines] + [{"tokens": ["play", "polka"]}]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = selected(tmp_path / "to_label.jsonl", run, tmp_path / "pool.jsonl", strategy="uncertainty")
    assert [row["text"] for row in rows] == ["play polka"]
    log = capsys.readouterr().err
    assert "3 already labelled" in log and "selecting all of the remaining texts (1)" in log
    (tmp_path / "pool.txt").write_text(" ".join(json.loads(lines[0])["tokens"]) + "\n")
    with pytest.raises(UserError, match="no texts are left to select; no file was written"):
        selected(tmp_path / "none.jsonl", run, tmp_path / "pool.txt")
    assert not (tmp_path / "none.jsonl").exists()


def annotated(path, tmp_path):
    """Returns the export of Label Studio if all predictions are accepted."""
    items = json.loads(path.read_text())
    for number, item in enumerate(items):
        raw = item["data"]["text"].encode("utf-16-le")  # offsets in Label Studio count these units
        for value in (result["value"] for result in item["predictions"][0]["result"] if result["type"] == "labels"):
            assert raw[2 * value["start"] : 2 * value["end"]].decode("utf-16-le") == value["text"]
        item |= {"id": number, "annotations": [{"was_cancelled": False, "result": item["predictions"][0]["result"]}]}
    (tmp_path / "annotated.json").write_text(json.dumps(items, ensure_ascii=False))
    return tmp_path / "annotated.json"


@pytest.mark.parametrize("form", ["jsonl", "csv", "doccano", "label_studio"])
def test_data_process_reads_annotations(form, run, sample, pool, tmp_path):
    """Labels and entities match the predictions, also after an emoji."""
    texts = [text for i, text in enumerate(POOL) if i not in (1, 2)]
    expected = {row["text"]: row for row in load(run)(texts)}
    assert any(span["start"] > row["text"].find("😀") >= 0 for row in expected.values() for span in row["slots"])
    path = tmp_path / {"csv": "to_label.csv", "label_studio": "to_label.json"}.get(form, "to_label.jsonl")
    main(SelectConfig(checkpoint=str(run), pool=str(pool), output=str(path), number=10, output_format=form))
    if form == "label_studio":
        tree = ElementTree.parse(path.with_suffix(".xml")).getroot()
        assert {node.get("name") for node in tree.iter()} >= {"text", "intent", "slots"}
        kinds = {label.split("-", 1)[1] for label in load(run).labels["slots"] if label != "O"}
        assert {node.get("value") for node in tree.iter("Label")} == kinds
        path = annotated(path, tmp_path)
    own = {}
    if form == "doccano":
        renamed = path.read_text().replace('"cats":', '"intent":').replace('"entities":', '"slots":')
        path.write_text(renamed)
        own = dict(label_type="intent=classification", offsets="utf16")
    process(DataConfig(input=str(path), output_dir=str(tmp_path / "data"), **own))
    lines = [line for part in sorted(tmp_path.glob("data/*.jsonl")) for line in part.read_text().splitlines()]
    assert len(lines) == len(expected)
    for row in map(json.loads, lines):
        answer = next(expected[text] for text in expected if text.split() == row["text"].split())
        assert row["intent"] == answer["intent"]
        assert spans_of(row) == [(span["label"], span["text"]) for span in answer["slots"]]
    shutil.copytree(sample, tmp_path / "more", ignore=shutil.ignore_patterns(".cache"))
    with open(tmp_path / "more/train.jsonl", "a") as file:  # as docs/select.md says
        file.writelines(line + "\n" for line in lines)
    assert train(tmp_path, tmp_path / "more", "again", epochs=1).is_dir()


def spans_of(row):
    """Returns [(type, text)] of the entities in a row of words."""
    offsets, spans = words.place_tokens(row["text"], row["tokens"]), words.entities_in(row["slots"])
    return [(kind, row["text"][offsets[first][0] : offsets[last][1]]) for kind, first, last in spans]


def test_files_without_predictions(run, pool, tmp_path, command):
    rows = selected(tmp_path / "to_label.jsonl", run, pool, number=2, answers=False)
    assert all(row["intent"] is None and row["slots"] is None for row in rows)
    done = command("tools.select", "--pool", pool, "--strategy", "random", "--number", "3", "--output", "a.csv")
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "a.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert len(found) == 3 and list(found[0]) == ["id", "text"]
    order = [int(row["id"][1:]) for row in found]
    assert order == sorted(order)


def test_other_tasks(tmp_path, capsys):
    """Tests regression, multilabel, spans, and pairs of texts."""
    data = made_data(tmp_path / "a", "texts")
    run = train(tmp_path, data, "texts", epochs=1)
    (tmp_path / "pool.txt").write_text("red dog\nsmall blue cat\nthe cat sleeps in Paris\n")
    own = dict(checkpoint=str(run), pool=str(tmp_path / "pool.txt"), number=2, output=str(tmp_path / "a.json"))
    main(SelectConfig(**own, output_format="label_studio"))
    (first, _) = json.loads((tmp_path / "a.json").read_text())
    kinds = [(result["from_name"], result["type"]) for result in first["predictions"][0]["result"]]
    assert kinds == [("intent", "choices"), ("topics", "choices"), ("size", "number")]
    for form in ("doccano", "label_studio"):
        tags = {"pos": Task("tagging", ("NOUN", "VERB"))}
        with pytest.raises(UserError, match="'pos' labels every word"):
            annotate.require_format(form, tags)
        with pytest.raises(UserError, match="'deeds' has events; choose another format"):
            annotate.require_format(form, {"deeds": Task("events", ("p",))})
    with pytest.raises(UserError, match="'size' has numbers"):
        annotate.require_format("doccano", load(run).tasks)
    lines = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    raw = "".join(json.dumps({"text": row["text"], "text_pair": "Rome", "size": row["size"]}) + "\n" for row in lines)
    (tmp_path / "pairs.jsonl").write_text(raw)
    options = dict(label_column="size", label_type="size=regression")
    process(DataConfig(input=str(tmp_path / "pairs.jsonl"), output_dir=str(tmp_path / "c"), **options))
    run = train(tmp_path, tmp_path / "c", "pairs", epochs=1)
    with pytest.raises(UserError, match="no probabilities"):
        selected(tmp_path / "a.jsonl", run, tmp_path / "pairs.jsonl", strategy="uncertainty")
    rows = [{"text": f"{word} dog", "text_pair": "Oslo"} for word in "big small red".split()]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = selected(tmp_path / "to_label.jsonl", run, tmp_path / "new.jsonl", number=2)
    assert "--strategy diversity" in capsys.readouterr().err and len(rows) == 2
    assert all(row["text_pair"] == "Oslo" and isinstance(row["size"], float) for row in rows)


@pytest.mark.parametrize("form", ["jsonl", "label_studio"])
def test_projects_of_pairs_without_a_run(form, tmp_path):
    """The second texts are in the file and in the labelling interface."""
    rows = [{"text": "the same", "text_pair": f"{word} dog"} for word in "big small red".split()]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / ("a.json" if form == "label_studio" else "a.jsonl")
    own = dict(strategy="random", output=str(path), output_format=form)
    main(SelectConfig(pool=str(tmp_path / "pool.jsonl"), **own))
    written = path.read_text()
    found = [one["data"] for one in json.loads(written)] if form == "label_studio" else written.splitlines()
    found = [json.loads(one) if isinstance(one, str) else one for one in found]
    assert [{key: row[key] for key in ("text", "text_pair")} for row in found] == rows
    assert form == "jsonl" or 'value="$text_pair"' in path.with_suffix(".xml").read_text()


def test_columns_that_the_model_needs_are_written(tmp_path):
    """The file contains them for training."""
    rows = "".join(f"{word} dog {i},{i},{word}\n" for i in range(20) for word in ("big", "small"))
    (tmp_path / "raw.csv").write_text(f"text,age,label\n{rows}")
    (tmp_path / "pool.csv").write_text("text,age\n" + "".join(f"cat {i} sleeps,{i}\n" for i in range(12)))
    options = dict(input=str(tmp_path / "raw.csv"), output_dir=str(tmp_path / "with"), extra_columns="age")
    process(DataConfig(**options, label_column="label"))
    run = train(tmp_path, tmp_path / "with", "a", epochs=1)
    main(SelectConfig(checkpoint=str(run), pool=str(tmp_path / "pool.csv"), output=str(tmp_path / "to_label.csv")))
    with open(tmp_path / "to_label.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert len(found) == 12 and all(float(row["age"]) == float(row["text"].split()[1]) for row in found)


@pytest.mark.parametrize(
    "flags, says",
    [
        ([], "--pool FILE is required"),
        (["--pool", "pool.jsonl"], "--checkpoint RUN is required"),
        (["--pool", "pool.jsonl", "--checkpoint", "nowhere"], "neither a run"),
        (["--pool", "nowhere.txt", "--strategy", "random"], "no such file"),
        (["--pool", "empty.txt", "--strategy", "random"], "no"),
        (["--pool", "pool.jsonl", "--strategy", "random", "--output", "pool.jsonl"], "exists; move it"),
        (["--pool", "pool.jsonl", "--strategy", "random", "--number", "0"], "--number"),
        (["--pool", "pool.jsonl", "--strategy", "random", "--output", "a.json"], "must end in .jsonl"),
        (["--pool", "pool.jsonl", "--strategy", "random", "--output", "a.jsonl", "--output_format", "csv"], ".csv"),
        (["--pool", "pool.jsonl", "--strategy", "random", "--output", "pool.jsonl/a.jsonl"], "in the way"),
        (["--pool", "pool.jsonl", "--strategy", "random", "--output_format", "label_studio"], "to_label.xml exists"),
    ],
)
def test_invalid_options_raise_a_one_line_error(flags, says, pool, tmp_path, command):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "to_label.xml").write_text("mine")
    done = command("tools.select", *flags)
    assert done.returncode == 2 and says in done.stderr.splitlines()[-1]
    assert not (tmp_path / "to_label.jsonl").exists() and (tmp_path / "to_label.xml").read_text() == "mine"


def test_number_of_labels_in_the_simulation():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from selection import labels_needed

    assert labels_needed([50, 100, 200], [1.0, 2.0, 4.0], 3.0) == 150
    assert labels_needed([50, 100, 200], [1.0, 2.0, 4.0], 2.0) == 100
    assert labels_needed([50, 100, 200], [5.0, 2.0, 4.0], 3.0) == 50
    assert labels_needed([50, 100, 200], [1.0, 2.0, 4.0], 5.0) == math.inf
