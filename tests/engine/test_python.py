"""The Python interface compared with main.py, transformers and independent attributions; use in a program with modules
of the same names; error messages."""

import ast
import json
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import threading
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as hf
from conftest import ROOT, TINY, read_json
from relation_rows import add_relations
from test_families import decoders_tokenizer, save_family
from torch import nn

from config import Config
from data_process import DataConfig, process
from engine.data.features import Featurizer
from engine.errors import UserError
from engine.predict import labelling, load
from engine.predict.attributions import words_of
from engine.predict.given import examples_of, row_of
from engine.task.task import Task
from engine.task.text import split_text
from main import main

PAIRS = [("a good film indeed", "a bad film"), ("the meal was fine", "it was fine"), ("good", "awful, awful songs")]


def raw_rows(kind):
    """Returns the rows of a raw file, 60 of each kind."""
    rng = random.Random(0)
    for n in range(60):
        good, noun = n % 3 == 0, rng.choice(["film", "book", "song"])
        text = f"a {'good' if good else 'bad'} {noun} number {n % 7}" + " indeed" * (n % 4)
        if kind == "pairs":
            yield {"text": text, "text_pair": f"the {noun} of {n % 5}", "score": n % 5 + 0.5, "age": n, "price": n / 7}
        elif kind == "multilabel":
            yield {"text": text, "topics": [noun, "good" if good else "bad"][: 1 + n % 2]}
        else:  # nested spans
            end = text.index("number") - 1
            spans = [
                {"start": 2, "end": end, "label": "thing"},
                {"start": end - len(noun), "end": end, "label": "noun"},
            ]
            yield {"text": text, "spans": spans}


@pytest.fixture(scope="module")
def runs(sample, tmp_path_factory):
    """Returns runs(name) -> (processed folder, options of its run, the test rows without labels), created once."""
    base = tmp_path_factory.mktemp("runs")
    kinds = {
        "sample": dict(use_crf=True),
        "bilstm": dict(encoder="bilstm"),
        "BERT": dict(pooling="mean", max_length=16, window_stride=4, long_text="head"),
        "GPT-2": dict(max_length=64),
        "pairs": dict(max_length=24),
        "multilabel": {},
        "spans": {},
        "relations": dict(max_length=16),
    }

    def make(name):
        folder, options = base / name, kinds[name]
        if name in ("pairs", "multilabel", "spans", "relations"):
            folder.mkdir()
            lines = [json.dumps(row) + "\n" for row in raw_rows(name)]
            (folder / "raw.jsonl").write_text("".join(lines), encoding="utf-8")
            more = dict(extra_columns="age,price") if name == "pairs" else {}
            more |= dict(label_type="spans=spans") if name in ("spans", "relations") else {}
            more |= dict(label_column="topics") if name == "multilabel" else {}
            process(DataConfig(input=str(folder / "raw.jsonl"), output_dir=str(folder / "data"), **more))
        if name == "relations":
            add_relations(folder / "data", "spans")
        data = folder / "data" if folder.exists() else sample
        if name in ("BERT", "GPT-2"):
            options = options | dict(pretrain_model_path=save_family(name, folder / "model", sample), epochs=0)
        flags = TINY | dict(data_path=str(data), output_dir=str(base), model_version=f"{name}-run", precision="fp32")
        config = Config(**flags | dict(epochs=2) | options, do_train=True, do_eval=True)
        main(config)
        names = set(read_json(data / "labels.json"))
        rows = [json.loads(line) for line in (data / "test.jsonl").read_text(encoding="utf-8").splitlines()]
        inputs = [{key: value for key, value in row.items() if key not in {"extras", *names}} for row in rows]
        return config, [row | all_of.get("extras", {}) for row, all_of in zip(inputs, rows)], rows

    return lru_cache(None)(make)


def model_of(config, **options):
    return load(config.run_dir / "checkpoints/best", device="cpu", precision="fp32", **options)


KINDS = ["sample", "bilstm", "BERT", "GPT-2", "pairs", "multilabel", "spans", "relations"]


# ---- the same as main.py ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_and_scores_equal_main(kind, runs, tmp_path):
    config, rows, labelled = runs(kind)
    path = tmp_path / "out.jsonl"
    given = dict(predict_file=str(tmp_path / "in.jsonl"), predict_output=str(path), eval_batch_size=8)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    flags = dict(data_path=config.data_path, output_dir=config.output_dir, model_version=config.model_version)
    main(Config(**flags | given, do_predict=True, device="cpu", precision="fp32"))
    expected = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    model = model_of(config, eval_batch_size=8)
    assert model(rows) == expected and len(expected) == len(rows) > 5
    assert list(model(row for row in rows)) == expected
    without_id = [{key: value for key, value in row.items() if key != "id"} for row in rows]
    assert model(without_id) == [{key: value for key, value in row.items() if key != "id"} for row in expected]
    whole = model_of(config)  # the batches of main's evaluation
    assert whole.evaluate(labelled) == read_json(config.run_dir / "eval.json")["test"]


def test_single_text_pair_and_words_are_accepted(runs):
    model = model_of(runs("sample")[0])
    text = "play a song by Adele"
    (row,) = model([{"text": text}])
    assert model(text) == row == model({"text": text, "unknown": 1}) and "id" not in row
    assert model([text.split()])[0]["intent"] == row["intent"]
    assert model(np.array([text, text])) == [row, row] and model([]) == [] and list(model(iter(()))) == []
    pairs = model_of(runs("pairs")[0])
    one = {"text": "a good film", "text_pair": "the film of 3", "age": 3, "price": 0.5}
    assert (
        pairs(one)
        == pairs([{"text": one["text"], "text_pair": one["text_pair"], "extras": {"age": 3, "price": 0.5}}])[0]
    )


def test_rows_with_arrays_and_a_column_named_extras(runs):
    row = {"text": "a", "spans": [(np.int64(0), 1)], "image": [np.array([0.5, 1]), torch.tensor([2.0, 3])]}
    given = row_of(row | {"size": np.float32(2)}, "text 1")
    assert json.loads(json.dumps(given)) == {"text": "a", "spans": [[0, 1]], "image": [[0.5, 1], [2, 3]], "size": 2}
    model = model_of(runs("sample")[0])
    assert model({"text": "play", "extras": "large"}) == model("play")


def test_raw_rows_are_scored_like_processed_ones(runs):
    """Spans have character offsets, and labels are numbers, as in the raw file."""
    model, rows = model_of(runs("spans")[0]), list(raw_rows("spans"))
    by_text = {row["text"]: row for row in runs("spans")[2]}
    raw = [row for row in rows if row["text"] in by_text]
    assert raw and model.evaluate(raw) == model.evaluate([by_text[row["text"]] for row in raw])
    pairs = model_of(runs("pairs")[0])
    rows = runs("pairs")[2]
    assert pairs.evaluate([row | {"score": str(row["score"])} for row in rows]) == pairs.evaluate(rows)


def test_iterator_is_read_one_pool_at_a_time(runs, monkeypatch):
    monkeypatch.setattr(labelling, "POOL", 4)
    model, taken = model_of(runs("sample")[0], eval_batch_size=4), []
    texts = [f"play song number {n}" + " please" * (7 * n % 5) for n in range(18)]

    def stream():
        for text in texts:
            taken.append(text)
            yield text

    predictions = model(stream())
    assert next(predictions)["text"] == texts[0] and len(taken) == 4
    assert [row["text"] for row in predictions] == texts[1:]


# ---- vectors ---------------------------------------------------------------------------------------------------------


def test_vectors_equal_the_mean_of_transformers_hidden_states(runs):
    """Uses an untrained encoder, loaded from its save_pretrained folder. Texts longer than max_length are truncated."""
    config, *_ = runs("BERT")
    tokenizer = hf.AutoTokenizer.from_pretrained(config.pretrain_model_path)
    encoder = hf.AutoModel.from_pretrained(config.pretrain_model_path).eval()
    texts = ["play a song", "明天 北京", "set an alarm for seven in the morning, please, and one for the night"]
    words = [text.replace(",", " ,").split() for text in texts]
    model = model_of(config)
    vectors = model.embed(words)
    for given, vector in zip(words, vectors):
        parts = tokenizer([given], is_split_into_words=True, truncation=True, max_length=16, return_tensors="pt")
        with torch.no_grad():
            expected = encoder(**parts).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, expected, atol=1e-5)
    assert vectors.dtype == np.float32 and vectors.shape == (3, 32)
    np.testing.assert_allclose(model.embed({"tokens": words[0]}), vectors[0], atol=1e-5)
    assert model.embed([]).shape == (0, 32) and len(list(model.embed(iter(words)))) == 3


def test_embed_writes_the_vectors_of_all_rows_in_order(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(labelling, "POOL", 4)
    config, rows, _ = runs("sample")
    flags = dict(data_path=config.data_path, output_dir=config.output_dir, model_version=config.model_version)
    flags |= dict(do_predict=True, device="cpu", precision="fp32", eval_batch_size=4)
    main(Config(**flags, embed=str(tmp_path / "all.npy")))
    vectors = np.load(tmp_path / "all.npy")
    np.testing.assert_array_equal(vectors, model_of(config, eval_batch_size=4).embed(rows))
    for number in (1, 2):
        main(Config(**flags, embed=str(tmp_path / "part.npy"), shard=f"{number}/2"))
    parts = [np.load(tmp_path / f"part-{number}-of-2.npy") for number in (1, 2)]
    np.testing.assert_array_equal(np.concatenate(parts), vectors)
    main(Config(**flags | dict(eval_batch_size=64), embed=str(tmp_path / "empty.npy"), shard="1/9"))
    assert np.load(tmp_path / "empty-1-of-9.npy").shape in ((0, 32), (24, 32))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(do_predict=True, embed="out.csv"), "must end in .npy"),
        (dict(do_train=True, embed="out.npy"), "needs --do_predict"),
        (dict(do_predict=True, embed="out.npy", predict_output="out.csv"), "cannot be combined with --predict_output"),
    ],
)
def test_unwritable_embed_file_is_a_one_line_error(options, message):
    with pytest.raises(UserError, match=message):
        Config(**options)


# ---- attributions ----------------------------------------------------------------------------------------------------


class Lookup(nn.Module):
    """An encoder without interaction between tokens: the hidden states are the word vectors."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(last_hidden_state=self.table(input_ids))


def test_attributions_of_a_linear_model_are_exact(runs):
    """With mean pooling and a linear head, word i contributes w . (x_i - padding) / number of tokens."""
    model = model_of(runs("multilabel")[0])
    inner = model.trainer.model
    inner.encoder, inner.output_layer.pooling, inner.takes_token_types = Lookup(nn.Embedding(600, 32)), "mean", False
    text, table = "a good film of unseenwords", inner.encoder.table.weight.detach()
    found = model.explain(text, label="film")
    head = inner.output_layer.heads["topics"]
    weight = head.linear.weight[head.task.labels.index("film")].detach()
    encoding = model.featurizer.tokenizer(text)
    ids, words = encoding["input_ids"], encoding.word_ids()
    each = [(weight @ (table[i] - table[model.featurizer.tokenizer.pad_token_id]) / len(ids)).item() for i in ids]
    expected = [sum(value for value, of in zip(each, words) if of == word) for word in range(5)]
    assert words.count(3) > 1  # a word of several sub-tokens
    np.testing.assert_allclose([word.score for word in found.words], expected, atol=1e-5)
    assert [word.word for word in found.words] == text.split() and found.gap < 1e-3
    assert all(text[word.start : word.end] == word.word for word in found.words)


@pytest.mark.parametrize(
    "kind, text, options",
    [
        ("sample", "book a train from Rome to Oslo", {}),
        ("sample", "明天北京天气怎么样", dict(label=None)),
        ("sample", "set an alarm for seven", dict(task="slots", word=4)),
        ("bilstm", "play some jazz by unheardofnames", {}),
        ("BERT", "a song " * 12 + "for seven", dict(task="slots", word=20)),  # in windows
        ("GPT-2", "play some jazz by unheardofnames", {}),
        ("GPT-2", "播放音乐", {}),
        ("pairs", {"text": "a good film", "text_pair": "the film of 3", "age": 3, "price": 0.5}, {}),
        ("multilabel", "a good song, a bad film", {}),
    ],
)
def test_attributions_sum_to_the_logit_difference(kind, text, options, runs):
    """f(x) and f(x') come from forward passes on the ids; x' has padding in place of all non-special tokens."""
    model = model_of(runs(kind)[0])
    found = model.explain(text, **options)
    tokenizer, names = model.featurizer.tokenizer, model.labels[found.task]
    example = next(examples_of([text], model.tasks))
    data = model.loader([{"id": "0"} | example]).dataset
    first_words = [0] if len(data.lengths) == 1 else data.columns["first_word"].tolist()
    starts = [start for _, start, _ in split_text(example.get("text"), "word")]
    row = first_words.index(starts.index(found.words[0].start))  # the window that starts at the first explained word
    inputs = data.batch([row]).inputs
    ids = inputs["input_ids"]
    special = torch.isin(ids, torch.tensor([id for id in (tokenizer.cls_token_id, tokenizer.sep_token_id) if id]))
    padded = torch.where(special, ids, tokenizer.pad_token_id)
    word = [] if "word" not in options else [options["word"] - first_words[row]]
    index = (0, *word, *([names.index(found.label)] if names else []))
    with torch.no_grad():
        logit = model.trainer.model(inputs).logits[found.task][index].item()
        baseline = model.trainer.model(inputs | {"input_ids": padded}).logits[found.task][index].item()
    assert found.logit == pytest.approx(logit, abs=1e-4) and found.baseline == pytest.approx(baseline, abs=1e-4)
    assert abs(logit - baseline) > 1e-4
    assert abs(sum(word.score for word in found.words) - (logit - baseline)) <= 0.0101 * abs(logit - baseline)
    if "label" not in options and not word and isinstance(model(text)[found.task], str):
        assert found.label == model(text)[found.task]
    for word in found.words:
        source = text if isinstance(text, str) else text["text_pair" if word.pair else "text"]
        assert source[word.start : word.end] == word.word
    assert "background" in found._repr_html_() and found.words[0].word in str(found)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma"])
@pytest.mark.parametrize("words", [False, True])
def test_decoder_tokens_are_assigned_to_words(kind, words):
    """Also for the second text, which follows a separator."""
    tokenizer = decoders_tokenizer(kind, ["turn on the light in the kitchen", "play a song by the beatles"] * 5)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    featurizer = Featurizer(tokenizer, {"a": Task("classification", labels=["x", "y"], pairs=True)}, 64)
    first, second = "play a lightsong", "in the kitchen"
    example = {"tokens": first.split()} if words else {"text": first}
    given, of_token = words_of(example | {"text_pair": second}, 0, featurizer)
    ids = featurizer.features([example | {"text_pair": second}])[0].input_ids
    assert [word.word for word in given] == [*first.split(), *second.split()] and len(of_token) == len(ids)
    spelt = [""] * 6
    for token, numbers in zip(ids, of_token):
        for number in numbers:
            spelt[number] += tokenizer.decode([token]).strip()
    assert spelt == [word.word for word in given]


@pytest.mark.parametrize(
    "kind, options, message",
    [
        ("sample", dict(task="other"), "the tasks are intent, slots"),
        ("sample", dict(label="other"), "there is no label 'other'"),
        ("sample", dict(task="slots"), "select one by its index"),
        ("sample", dict(task="slots", word=9), "numbered 0 to 2"),
        ("sample", dict(task="slots", word="film"), "must be a word index"),
        ("sample", dict(word=0), "requires a word-level task"),
        ("multilabel", dict(word=0), "requires a word-level task"),
        ("spans", {}, "finds spans"),
        ("relations", dict(task="facts"), "finds relations"),
    ],
)
def test_invalid_explain_call_is_a_one_line_error(kind, options, message, runs):
    with pytest.raises(UserError, match=message):
        model_of(runs(kind)[0]).explain("a good film", **options)


def test_text_without_words_has_an_empty_explanation(runs):
    found = model_of(runs("multilabel")[0]).explain("[PAD]")
    assert not found.words and "with them" in str(found) and "<div" in found._repr_html_()


# ---- what is refused, and what stays as it was -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, message",
    [
        (None, "None is not a text"),
        (3.5, "3.5 is not a text"),
        (b"play", "is not a text"),
        ("", "text 1 is empty"),
        (["play", " "], "text 2 is empty"),
        (["play", float("nan")], "text 2: nan is not a text"),
        ([[]], "tokens"),
        ([["play"], ["a", 3]], "text 2: `tokens`"),
        (("a", "b"), "reads single texts"),
        (("a", "b", "c"), "is not a text"),
        ({"txt": "play"}, "`text` or `tokens`"),
        (str(ROOT / "README.md"), "is a file"),
        (ROOT / "README.md", "is not a text"),
        ("a \ud800", "lone surrogate"),
    ],
)
def test_invalid_text_is_a_one_line_error(given, message, runs):
    model = model_of(runs("sample")[0])
    for use in (model, model.embed):
        with pytest.raises(UserError, match=message) as error:
            use(given)
        assert "\n" not in str(error.value) and isinstance(error.value, ValueError)


def test_other_invalid_arguments_are_one_line_errors(runs, tmp_path):
    import pandas

    model, pairs = model_of(runs("sample")[0]), model_of(runs("pairs")[0])
    with pytest.raises(UserError, match="to_dict"):
        model(pandas.DataFrame({"text": ["play"]}))
    with pytest.raises(UserError, match="reads text pairs"):
        pairs("one text")
    with pytest.raises(UserError, match="no column 'age'"):
        pairs(PAIRS)
    with pytest.raises(UserError, match="has no label for the task 'intent'"):
        model.evaluate([{"text": "play"}])
    with pytest.raises(UserError, match="there are no rows"):
        model.evaluate([])
    with pytest.raises(UserError, match="to_dict"):
        model.evaluate(pandas.DataFrame({"text": ["play"]}))
    row = {"text": "play", "intent": "play_music", "slots": None}
    assert model.evaluate(row) == model.evaluate([row])
    with pytest.raises(UserError, match="neither a run"):
        load(tmp_path)
    with pytest.raises(UserError, match="None is not the path of a run folder"):
        load(None)
    with pytest.raises(UserError, match="--device 3 is not a device"):
        load(runs("sample")[0].run_dir, device=3)
    assert load(runs("sample")[0].run_dir, device=torch.device("cpu")).labels == model.labels
    with pytest.raises(UserError, match="colour"):
        load(runs("sample")[0].run_dir, colour="red")


def test_model_has_a_repr_and_can_be_pickled(runs):
    config, rows, _ = runs("sample")
    model = load(config.run_dir, device="cpu")  # the run's folder
    assert "intent: classification" in repr(model) and "best" in repr(model)
    assert list(model.tasks) == ["intent", "slots"] and "O" in model.labels["slots"]
    assert pickle.loads(pickle.dumps(model))(rows) == model(rows)
    assert not model.trainer.model.training


def test_model_is_thread_safe(runs):
    config, rows, _ = runs("sample")
    model, results = model_of(config), [None] * 4
    expected, words = model(rows), model.explain("play a song")

    def use(number):
        explained = model.explain("play a song")
        results[number] = model(rows) == expected and explained == words

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4


# ---- docs/python.md --------------------------------------------------------------------------------------------------


def blocks_of(name):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(encoding="utf-8"), re.M | re.S)


def test_english_and_chinese_pages_have_the_same_code():
    pages = [blocks_of(name) for name in ("docs/python.md", "docs/zh/python.md")]
    english, chinese = ([ast.dump(ast.parse(block)) for block in blocks] for blocks in pages)
    assert english == chinese and len(english) == 6


def test_code_of_the_page_runs(runs, tmp_path, monkeypatch, capsys):
    config, *_ = runs("sample")
    monkeypatch.setattr(sys, "path", sys.path[:])
    (tmp_path / "output").mkdir()
    (tmp_path / "output/mine").symlink_to(config.run_dir.resolve())
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset/mine").symlink_to(config.data_dir.resolve())
    (tmp_path / "texts.txt").write_text("play some jazz\nset an alarm\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names = {}
    *blocks, last = blocks_of("docs/python.md")
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert names["vectors"].shape == (3, 32) and names["found"].task == "intent"
    assert str(read_json(config.run_dir / "eval.json")["test"]) in capsys.readouterr().out
    assert "isolation.py" in last  # tested by a program below


# ---- in another program ----------------------------------------------------------------------------------------------

NAMES = (
    "config metrics trainer tricks main data_loader model_utils logging_config data_process preprocess tools".split()
)
PROGRAM = """
import sys
{first}
import json, logging, os, pickle, random, threading
sys.path.append({template!r})
import numpy, torch

random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
def state():
    parts = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    parts += (torch.get_num_threads(), torch.get_default_dtype(), list(sys.path), sys.excepthook)
    parts += (logging.getLogger().handlers[:], logging.getLogger("template").handlers[:])
    return parts + (torch.is_grad_enabled(), os.getcwd())
before = state()
{load}
model = load({checkpoint!r}, device="cpu", precision="fp32")
predictions = model({texts!r})
model.embed(["a"]), model.explain("play a song")
assert [a == b for a, b in zip(state(), before)] == [True] * len(before), [a == b for a, b in zip(state(), before)]
{second}
for name in {names!r}:
    module = sys.modules[name]
    assert module.OWNER == "theirs", name
thing = config.Thing(3)
assert pickle.loads(pickle.dumps(thing)).value == 3 and metrics.score() == "theirs"
results = []
threads = [threading.Thread(target=lambda: results.append(model({texts!r}))) for _ in range(3)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
assert results == [predictions] * 3
scores = model.evaluate({rows!r})
child = os.fork()
if child == 0:
    os._exit(0 if model({texts!r}) == predictions else 1)
assert os.waitpid(child, 0)[1] == 0
print(json.dumps([predictions, scores]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("order", ["theirs first", "ours first", "theirs with an engine first"])
def test_import_in_a_project_with_the_same_module_names(order, runs, tmp_path):
    config, rows, labelled = runs("sample")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    code = (
        "OWNER = 'theirs'\nclass Thing:\n    def __init__(self, value): self.value = value\ndef score(): return OWNER\n"
    )
    names, load_line = NAMES, "from engine.predict import load"
    if "engine" in order:
        names, load_line = [*NAMES, "engine"], blocks_of("docs/python.md")[-1].replace("/path/to/template", str(ROOT))
    for name in names:
        (theirs / f"{name}.py").write_text(code)
    imports = "\n".join(f"import {name}" for name in names)
    texts = [row["text"] for row in rows if "text" in row] or ["play a song", "明天北京天气怎么样"]
    parts = dict(first=imports, second="") if "theirs" in order else dict(first="", second=imports)
    parts |= dict(
        template=str(ROOT), checkpoint=str(config.run_dir), texts=texts, names=names, rows=labelled, load=load_line
    )
    (theirs / "program.py").write_text(PROGRAM.format(**parts), encoding="utf-8")
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, theirs / "program.py"], capture_output=True, text=True, cwd=tmp_path, env=env, timeout=300
    )
    assert done.returncode == 0, done.stderr
    predictions, scores = json.loads(done.stdout)
    assert [row["intent"] for row in predictions] == [row["intent"] for row in model_of(config)(texts)]
    assert scores == pytest.approx(read_json(config.run_dir / "eval.json")["test"], abs=1e-5)


def in_two_processes(number, store, checkpoint, texts, queue):
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=2)
    model = load(checkpoint, device="cpu", precision="fp32")
    queue.put((number, model(texts[number :: 2 - number]), model.embed(texts[: 1 + number]).shape))
    torch.distributed.barrier()


@pytest.mark.slow
def test_distributed_program_gets_its_own_predictions(runs, tmp_path):
    """Ranks label different numbers of texts; the template's own evaluation would distribute them."""
    config, *_ = runs("sample")
    texts = [f"play song {n}" for n in range(5)]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    arguments = tmp_path / "store", config.run_dir, texts, queue
    processes = [context.Process(target=in_two_processes, args=(number, *arguments)) for number in (0, 1)]
    for process_ in processes:
        process_.start()
    found = sorted(queue.get(timeout=200) for _ in processes)
    for process_ in processes:
        process_.join(60)
    model = model_of(config)
    for number, predictions, shape in found:
        expected = model(texts[number :: 2 - number])
        assert [row["text"] for row in predictions] == [row["text"] for row in expected] and shape == (1 + number, 32)
        assert [row["intent"] for row in predictions] == [row["intent"] for row in expected]


@pytest.mark.slow
def test_edited_copy_of_the_template_is_used(runs, tmp_path):
    """Uses a copy with an edited head, in a program that has its own model_utils.py."""
    config, *_ = runs("sample")
    left_out = shutil.ignore_patterns(".*", "output", "__pycache__", "tests", "sample", "benchmarks", "docs")
    copy = shutil.copytree(ROOT, tmp_path / "copy", ignore=left_out)
    path = copy / "model_utils.py"
    code = path.read_text(encoding="utf-8")
    line = "        probabilities, label_ids = logits.softmax(-1).max(-1)\n"
    assert code.count(line) == 1
    path.write_text(code.replace(line, line + "        label_ids = torch.full_like(label_ids, 2)\n"), encoding="utf-8")
    (tmp_path / "model_utils.py").write_text("OWNER = 'theirs'\n")
    program = f"import sys; sys.path.append({str(copy)!r}); import model_utils; from engine.predict import load\n"
    program += f"print(model_utils.OWNER, load({str(config.run_dir)!r}, device='cpu')('play a song')['intent'])"
    (tmp_path / "program.py").write_text(program)
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"], capture_output=True, text=True, env=env, timeout=300
    )
    assert done.stdout.split() == ["theirs", model_of(config).labels["intent"][2]], done.stderr
