"""The page of tools/export/browser: predictions in headless Chromium match predictor.py."""

import json
import os
import re
import sys
import time
import unicodedata

import numpy as np
import pages
import pytest
from browser import Browser
from conftest import TINY
from relation_rows import with_relations
from test_automatic import run
from test_families import save_family

pytest.importorskip("onnxruntime", reason="needs tools/export/requirements.txt")
from config import Config
from engine.run.files import seal
from engine.task.tags import continuations
from engine.task.text import join_tokens
from engine.task.words import shape_of
from tools.export.__main__ import ExportConfig, export
from tools.export.predictor import Predictor
from tools.export.scoring import path_probabilities, viterbi

pytestmark = pytest.mark.slow
TEXTS = [
    "",
    "   ",
    "\u200b",
    "👍 a good 👍🏽 film",
    "去北京大学吧，好！" * 3,
    "İ ﬁ e\u0301 ½ 3,000.5 jazz-rock's!",
    "x" * 99,
]
TEXTS += [
    "[SEP] is [MASK] a [UNK] token",
    "ΑΣ ΌΔΟΣ Σ",
    "Flights ①② ٣ ǅ ẞ naïve O'Brien’s",
    "ไทย 한국어 هذا نص שָׁלוֹם",
    "🇩🇪🇫🇷 👨‍👩‍👧 ❤️",
]
TEXTS += ["a\u00adb \ufeff c\u0000d\x1c \ufffd\u2028e"]
# {name: options of a run on the sample}; "family": its encoder is one of test_families.py
MODELS = {
    "joint": dict(use_crf=True),
    "tagger": dict(tasks="slots", word_shapes=True, epochs=8, lr=1e-2),
    "windows": dict(tasks="intent", long_text="windows"),
    "bytes": dict(use_crf=True, family="GPT-2"),
}


def train(name, sample, folder, tasks="", family="", **options):
    """Exports a tiny model with some of the sample's tasks."""
    data = folder / f"data_{name}"
    data.mkdir()
    for path in sample.glob("*.json*"):
        (data / path.name).write_bytes(path.read_bytes())
    labels = json.loads((sample / "labels.json").read_text(encoding="utf-8"))
    kept = {task: labels[task] for task in tasks.split() or labels}
    (data / "labels.json").write_text(json.dumps(kept), encoding="utf-8")
    encoder = dict(pretrain_model_path=save_family(family, folder / f"encoder_{name}", sample)) if family else {}
    given = dict(data_path=str(data), output_dir=str(folder), model_version=name, do_train=True, max_length=128)
    run(Config(**TINY | given | encoder | dict(epochs=1) | options))
    export(ExportConfig(checkpoint=str(folder / name / "checkpoints/best"), output_dir=str(folder / f"out_{name}")))
    return folder / f"out_{name}"


@pytest.fixture(scope="module")
def place(sample, tmp_path_factory):
    """Yields (folder with exports, open Browser, address)."""
    modules, folder = pages.packages(), tmp_path_factory.mktemp("page")
    if isinstance(modules, str):
        pytest.skip(modules)
    exports = {name: train(name, sample, folder, **options) for name, options in MODELS.items()}
    (folder / "site").mkdir()
    with (
        pages.served(folder / "site", modules, shipped=exports["joint"], **exports) as url,
        Browser(folder / "profile") as page,
    ):
        page.open(f"{url}/index.html")
        yield folder, page, url


@pytest.fixture
def page(place):
    """Returns the browser with the page reloaded."""
    _, page, url = place
    page.complaints.clear()
    page.open(f"{url}/index.html")
    return page


def require_same(found, expected):
    """Compares a column or item. Offsets count UTF-16 units in JavaScript, so the texts at these offsets are
    compared."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected.keys() - {"start", "end"}:
            require_same(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected):
            require_same(one, other)
    else:
        assert found == (pytest.approx(expected, abs=1e-4) if isinstance(expected, float) else expected)


@pytest.mark.parametrize("name", MODELS)
def test_browser_matches_the_predictor(name, place, page, sample):
    rows = [json.loads(line) for line in (sample / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [join_tokens(row["tokens"], "word")[0] for row in rows] + TEXTS
    expected = Predictor(place[0] / f"out_{name}", 1)(texts)
    for batch_size in (1, 32):
        found = page.run(pages.label(name, texts, batch_size))
        for one, other in zip(found, expected, strict=True):
            require_same(one, other)
    entities = [(row["text"], entity) for row in found for entity in row.get("slots", [])]
    assert entities or name != "tagger"
    for text, entity in entities:
        units = text.encode("utf-16-le")
        assert units[2 * entity["start"] : 2 * entity["end"]].decode("utf-16-le") == entity["text"]
    assert not page.complaints


STATUS = "document.querySelector('[role=status]').textContent"


def click(page, texts):
    script = f"document.querySelector('textarea').value = {json.dumps(texts)}; document.querySelector('button').click()"
    page.run(script)


def wait_for(page, words):
    """Waits until the output of the page ends with a text."""
    look = f"if ({STATUS}.endsWith({json.dumps(words)})) done(); else setTimeout(look, 20)"
    page.run(f"new Promise((done) => {{ const look = () => {{ {look} }}; look(); }})")


def test_the_form_labels_texts(place, page):
    """The form works with index.html alone, without requests to other addresses."""
    folder, _, url = place
    page.requests.clear()
    page.complaints.clear()
    page.open(f"{url}/index.html")
    wait_for(page, "ready")
    click(page, "turn on the lamp\n\n<b>打开灯</b>")
    wait_for(page, " ms")
    head, *rows = page.run("[...document.querySelectorAll('tr')].map((row) => [...row.cells].map((c) => c.innerText))")
    expected = Predictor(folder / "out_joint", 1)(["turn on the lamp", "<b>打开灯</b>"])
    assert head == ["text", "intent", "slots"] and [row[0] for row in rows] == [row["text"] for row in expected]
    for (_, intent, slots), row in zip(rows, expected, strict=True):
        assert intent == f"{row['intent']} ({100 * row['intent_probability']:.1f} %)"
        assert slots.count(": ") == len(row["slots"])
    assert not page.complaints and all(request.startswith(url) for request in page.requests)
    click(page, "x y " * 100)
    wait_for(page, "text 1: has 202 tokens, but the page supports at most 128; use predictor.py or tools.serve")


def test_word_shapes_match_python(page):
    """Tests all characters that both languages know, alone and in words."""
    letters = [c for c in map(chr, range(0x20, sys.maxunicode)) if unicodedata.category(c) not in ("Cn", "Cs", "Co")]
    words = [word for c in letters for word in (c, f"A{c}", f"a{c}")]
    script = "import('./predictor.js').then((module) => WORDS.map(module.shapeOf).join(''))"
    found = page.run(script.replace("WORDS", json.dumps(words)))
    different = [word for word, shape in zip(words, found, strict=True) if int(shape) != shape_of(word)]
    assert not different, different[:20]


def test_crf_decoding_matches_python(page):
    """Uses random scores, which differ more between paths than the scores of a trained model."""
    rng, labels = np.random.default_rng(0), ["O", "B-a", "I-a", "B-b", "I-b"]
    for width in (1, 2, 9):
        shapes = {"start": 5, "transitions": (5, 5), "end": 5}
        arrays = {part: rng.normal(0, 3, shape) for part, shape in shapes.items()}
        rows, mask = rng.normal(0, 3, (1, width, 5)), np.ones((1, width), bool)
        scores = [rows, *arrays.values()]
        tags = viterbi(scores, mask)
        chances = path_probabilities([part / 1.5 for part in scores], mask, tags, np.array(continuations(labels)))
        task = json.dumps({"head": "crf", "labels": labels, "crf": 0, "temperature": 1.5})
        given = json.dumps({f"0.{part}": array.ravel().tolist() for part, array in arrays.items()})
        script = f"const tables = module.tablesOf({task}, {given}), rows = {rows[0].tolist()}; "
        script += "const tags = module.viterbi(rows, tables); return [tags, module.onPath(rows, tags, tables, 1.5)];"
        found = page.run(f"import('./predictor.js').then((module) => {{ {script} }})")
        assert found[0] == tags[0].tolist()
        np.testing.assert_allclose(found[1], chances[0], atol=1e-9)


def test_unsupported_models_cause_a_one_line_error(place, page, sample):
    folder, _, _ = place
    (folder / "relations").mkdir()
    data = with_relations(sample, folder / "relations/data", "slots")
    given = dict(data_path=str(data), output_dir=str(folder), model_version="facts", do_train=True, epochs=1)
    run(Config(**TINY | given))
    export(ExportConfig(checkpoint=str(folder / "facts/checkpoints/best"), output_dir=str(folder / "site/facts")))

    def error(name, text="a text"):
        return page.run(f"delete window.{name}, {pages.label(name, [text])}.catch((error) => error.message)")

    assert error("facts") == "the page does not support relations; use predictor.py or tools.serve"
    assert "text 1: has 202 tokens, but the page supports at most 128" in error("joint", "x y " * 100)
    assert error("joint", "\ud800") == "text 1: is not a string of valid Unicode"
    assert error("nothing") == "nothing/manifest.json: cannot be read (404)"
    path = folder / "site/facts/predictor.json"
    whole = path.read_text(encoding="utf-8")
    simple = re.sub('"head": "(relations|events)"', '"head": "classification"', whole)
    path.write_text(simple, encoding="utf-8")
    assert error("facts") == "facts/predictor.json: has changed since the export; export the model again"
    changes = {
        ('"pairs": false', '"pairs": true'): "pairs nor",
        ('"fields": {}', '"fields": {"n": {}}'): "custom inputs",
    }
    for number, (change, message) in enumerate(changes.items(), 1):
        path.write_text(simple.replace(*change), encoding="utf-8")
        seal(path.parent)
        for changed in (path, path.with_name("manifest.json")):  # browsers compare Last-Modified in seconds
            os.utime(changed, 2 * (time.time() + number,))
        assert message in error("facts")
