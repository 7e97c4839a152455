"""--word_shapes: which features of words are used, when, and that an export uses the same."""

import json
import random

import pytest
from conftest import TINY, read_json
from test_automatic import run, stop_run
from test_export import Shipped
from test_families import save_family
from test_long_texts import write_folder
from test_trainer import fingerprints

import main as main_module
from config import Config
from data_loader import MyDataset
from engine.data.features import Featurizer
from engine.data.tokenizer import train_tokenizer
from engine.errors import UserError
from engine.task.task import Task
from engine.task.words import has_capitals, shape_of
from engine.train.automatic import DataFacts, choose_word_shapes, ignores_case

WORDS = "the old grey house stands near a small quiet lake and nobody lives there now".split()
SHAPES = {
    1: ["house", "a", "don't", "straße", "西安", "ʼn", "ª"],
    2: ["House", "A", "Don't", "Élan", "O'neill", "ǅ", "(House"],
    3: ["USA", "U.S.", "AT&T", "ΑΒ", "卡拉OK"],
    4: ["iPhone", "McDonald", "HoUSE", "eBAY"],
    5: ["1994", "FL1402", "3rd", "٣", "1,000.5"],
    6: ["", "-", "...", "👍", " "],
}


@pytest.fixture(scope="module")
def uncased():
    return train_tokenizer(lambda: iter([" ".join(WORDS)] * 5), 300)


@pytest.mark.parametrize("shape", SHAPES)
def test_word_shapes(shape):
    assert [shape_of(word) for word in SHAPES[shape]] == len(SHAPES[shape]) * [shape]


def test_capitals_are_informative_only_if_not_all_words_have_them():
    assert has_capitals(["the", "House"]) and has_capitals(["iPhone", "的"])
    assert not has_capitals(["the", "house"]) and not has_capitals(["THE", "HOUSE", "1"]) and not has_capitals([])


def test_windows_have_their_words_shapes(uncased):
    words = random.Random(0).choices([word for words in SHAPES.values() for word in words], k=40)
    tasks = {"slots": Task("tagging", labels=["O", "B-x", "I-x"], unit="word")}
    data = MyDataset([{"tokens": words, "slots": None}], Featurizer(uncased, tasks, 16, 3, word_shapes=True))
    assert len(data.lengths) > 2
    for row in range(len(data.lengths)):
        inputs, first = data.batch([row]).inputs, data.columns["first_word"][row]
        assert inputs["word_shapes"].shape == inputs["word_mask"].shape
        assert inputs["word_shapes"][0].tolist() == [
            shape_of(word) for word in words[first:][: inputs["word_mask"].sum()]
        ]


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """Returns texts in which names differ from other words only by their capitals."""

    def rows(seed, size):
        rng = random.Random(seed)
        for number in range(size):
            words, tags = rng.choices(WORDS, k=rng.randint(3, 30)), []
            for place, word in enumerate(words):
                kind = rng.choice(["O", "O", "PER", "ORG"])
                words[place] = {"O": word, "PER": word.capitalize(), "ORG": word.upper()}[
                    kind if len(word) > 1 else "O"
                ]
                tags.append("O" if kind == "O" or len(word) == 1 else f"B-{kind}")
            yield {"id": str(number), "tokens": words, "names": tags}

    splits = {
        split: list(rows(seed, size)) for seed, (split, size) in enumerate(dict(train=80, dev=20, test=20).items())
    }
    tags = ["O", "B-ORG", "I-ORG", "B-PER", "I-PER"]
    tasks = {"names": {"type": "tagging", "labels": tags, "unit": "word"}}
    return write_folder(tmp_path_factory.mktemp("named") / "data", splits, tasks)


@pytest.fixture
def on_named(named, tmp_path):
    def make(**options):
        given = TINY | dict(data_path=str(named), output_dir=str(tmp_path / "output"), model_version="run")
        return Config(**given | dict(do_train=True, max_length=24, report_to="none", lr=1e-2, epochs=4) | options)

    return make


def best_f1(config):
    run(config)
    lines = map(json.loads, (config.run_dir / "metrics.jsonl").read_text().splitlines())
    return max(line["dev_names_f1"] for line in lines if "dev_names_f1" in line)


@pytest.mark.parametrize(
    "more", [dict(), dict(freeze_layers=-1, epochs=10, head_lr=0.05), dict(use_crf=True, word_pooling="mean")]
)
def test_capitals_are_learned_with_an_uncased_tokenizer(on_named, more):
    assert best_f1(on_named(word_shapes=True, **more)) == 1
    assert best_f1(on_named(word_shapes=False, model_version="without", **more)) < 0.8


def test_export_predicts_the_same(on_named, tmp_path):
    shipped = Shipped(on_named(word_shapes=True, epochs=2), tmp_path / "shipped")
    assert read_json(tmp_path / "shipped/predictor.json")["word_shapes"] is True
    shipped.require_same("The OLD grey house Stands near 12 small-quiet LAKES")


def test_auto_word_shapes_with_uncased_pretrained_encoders(uncased, logged):
    lower, tasks = uncased, {"slots": Task("tagging", labels=["O", "B-x"], unit="word")}
    assert ignores_case(lower)

    def resolved(words, **options):
        facts = DataFacts(lower, tasks, [], lambda: iter([("", {"tokens": words})]))
        return choose_word_shapes(Config(**options), facts)

    pretrained = dict(pretrain_model_path="some")
    assert resolved(["The", "house"], **pretrained)
    assert "--word_shapes auto: on" in logged.text
    assert not resolved(["the", "house"], **pretrained) and not resolved(["THE", "HOUSE"], **pretrained)
    assert not resolved(["The", "house"]) and not resolved(["The", "house"], **pretrained, encoder="bilstm")


def test_auto_word_shapes_and_runs_of_earlier_versions(named, on_named, tmp_path, monkeypatch):
    """A new run turns it on; a run that started before the option existed is resumed without it, bit-exact."""
    given = dict(pretrain_model_path=save_family("BERT", tmp_path / "encoder", named), save_steps=2, epochs=2)
    assert "--word_shapes auto: on" in run(on_named(**given, model_version="auto"))
    whole, config = (on_named(**given, model_version=name, word_shapes=False) for name in ("whole", "run"))
    run(whole)
    stop_run(config, 11, monkeypatch)
    for path in (config.run_dir / "args.json", *config.run_dir.glob("checkpoints/*/args.json")):
        options = read_json(path)
        del options["word_shapes"]
        path.write_text(json.dumps(options))
    run(on_named(**given, resume=True))
    assert fingerprints(config)["last"] == fingerprints(whole)["last"]


def test_initialised_run_keeps_word_shapes(on_named):
    run(on_named(word_shapes=True, epochs=1))
    first = on_named().run_dir
    log = run(on_named(init_from=str(first), model_version="next", epochs=1, lr=1e-9, head_lr=1e-9))
    assert "fresh" not in log
    assert read_json(first.parent / "next/args.json")["word_shapes"] is True
    with pytest.raises(UserError, match="--word_shapes=False contradicts"):
        main_module.main(on_named(init_from=str(first), model_version="no", word_shapes=False))
