"""Classification of texts longer than --max_length: what is read, and that a text counts once."""

import json
import logging
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, read_json
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_automatic import run, stop_run
from test_distributed import torchrun
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import main as main_module
from config import Config
from data_loader import MyDataset
from engine.data.cuts import Cuts
from engine.data.windows import Cutter
from engine.errors import UserError
from engine.predict import load
from engine.task.task import Task
from main import load_trained
from model_utils import BiLSTM, HeadOptions, MyModel
from tools.export.__main__ import ExportConfig, export
from tools.export.predictor import Predictor
from tools.report.figures import unread

CPU = torch.device("cpu")
FILLER = "the old grey house stands near a small quiet lake and nobody lives there now".split()
DECISIVE = {"warm": "sunny", "cold": "frozen"}


@pytest.fixture(scope="module")
def tokenizer():
    """Returns a tokenizer with one token per word, or two for words with a hyphen."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(90)), "-"]
    vocabulary = {word: i for i, word in enumerate(words)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("-", "isolated")]
    )
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    core.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", pair, [("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def texts_of(seed, size, words):
    """Returns texts that differ only in one decisive word at a random position."""
    rng = random.Random(seed)
    rows = []
    for number in range(size):
        label = rng.choice(list(DECISIVE))
        text = rng.choices(FILLER, k=words)
        text[rng.randrange(words)] = DECISIVE[label]
        rows.append({"id": str(number), "text": " ".join(text), "weather": label})
    return rows


def write_folder(folder, splits, tasks):
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "labels.json").write_text(json.dumps(tasks), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def long_data(tmp_path_factory):
    """Returns 160 + 40 + 60 texts of 120 words."""
    splits = {
        split: texts_of(seed, size, 120) for seed, (split, size) in enumerate(dict(train=160, dev=40, test=60).items())
    }
    tasks = {"weather": {"type": "classification", "labels": list(DECISIVE)}}
    return write_folder(tmp_path_factory.mktemp("long") / "data", splits, tasks)


@pytest.fixture
def on_long(long_data, tmp_path):
    def make(**options):
        given = TINY | dict(data_path=str(long_data), output_dir=str(tmp_path / "output"), model_version="run")
        return Config(**given | dict(do_train=True, do_eval=True, max_length=32, report_to="none") | options)

    return make


# ---- windows ---------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 90), st.integers(8, 24), st.integers(0, 3), st.booleans(), st.integers(0, 9999))
def test_windows_of_a_text_overlap_by_the_stride(tokenizer, size, max_length, stride, tagging, seed):
    """Windows start `room - stride` tokens apart, and each word belongs to the window in which it is farther from an
    edge. Compared with a search over all windows."""
    rng = random.Random(seed)
    words = [f"w{rng.randrange(90)}" + rng.choice(["", "", "-w1"]) for _ in range(size)]
    [encoding] = tokenizer([words], is_split_into_words=True).encodings
    [feature] = Cutter(max_length, stride, "windows", tagging).features(0, encoding)
    inside, room = encoding.ids[1:-1], max_length - 2
    parts = [feature.input_ids[i : i + max_length] for i in range(0, len(feature.input_ids), max_length)]
    begins = [number * (room - stride) for number in range(len(parts))]
    assert parts == [[2, *inside[begin : begin + room], 3] for begin in begins]
    assert begins[-1] + room >= len(inside) and (len(parts) == 1 or begins[-1] + stride < len(inside))
    assert feature.num_cut == 0 and len(feature.word_starts) == (len(words) if tagging else 0)
    for number, (start, end) in enumerate(zip(feature.word_starts, feature.word_ends)):
        first = encoding.word_ids.index(number) - 1
        window, place = divmod(start, max_length)
        assert begins[window] + place - 1 == first and 0 <= end - start <= 2
        edges = [
            min(first - begin if begin else 999, begin + room - first - 1 if begin != begins[-1] else 999)
            for begin in begins
            if begin <= first < begin + room
        ]
        own = min(
            first - begins[window] if window else 999,
            begins[window] + room - first - 1 if window + 1 < len(begins) else 999,
        )
        assert own >= max(edges) - 1


@pytest.mark.parametrize("first, second, repeated", [(40, 5, 1), (5, 40, 0), (40, 40, None)])
def test_longer_text_of_a_pair_is_split_into_windows(tokenizer, first, second, repeated):
    pair = [" ".join(f"w{i + start}" for i in range(size)) for size, start in ((first, 0), (second, 45))]
    encoding = tokenizer([pair[0]], [pair[1]]).encodings[0]
    [feature] = Cutter(20, 2, "windows", False).features(0, encoding)
    if repeated is None:  # neither fits next to the other: both are truncated
        assert len(feature.input_ids) == 20 and feature.num_cut == 63
        return
    parts = [feature.input_ids[i : i + 20] for i in range(0, len(feature.input_ids), 20)]
    short = tokenizer(pair[repeated], add_special_tokens=False)["input_ids"]
    assert len(parts) > 3 and feature.num_cut == 0
    for part in parts:
        middle = part.index(3)
        assert (part[middle + 1 : -1] if repeated else part[1:middle]) == short
    assert {*encoding.ids} == {*feature.input_ids}
    assert len(feature.token_types) == len(feature.input_ids)


@pytest.mark.parametrize("joined", [True, False])
def test_advice_for_pairs_too_long_for_windows(joined, caplog):
    """The message does not suggest --long_text windows if it is already set."""
    featurizer = SimpleNamespace(max_length=20, long_text="windows" if joined else "head")
    columns = {"num_cut": np.array([63, 0])}
    data = SimpleNamespace(
        columns=columns, featurizer=featurizer, lengths=np.array([20, 9]), example_index=np.array([0, 1])
    )
    data = type("Data", (SimpleNamespace,), {"__len__": lambda self: 2})(**vars(data))
    logging.getLogger("template").propagate = True
    cuts = Cuts()
    cuts.add(data)
    cuts.log("here", {})
    assert ("no space for windows: raise --max_length" in caplog.text) is joined
    assert ("--long_text windows reads all" in caplog.text) is not joined
    rows = [{"cut": 63, "tokens": 83}, {"cut": 0, "tokens": 9}]
    assert unread(rows, False, joined)["option"] == ("--max_length 83" if joined else "--long_text windows")


# ---- the model -------------------------------------------------------------------------------------------------------


def small_model(pooling, window, encoder="bert"):
    from transformers import BertConfig, BertModel

    torch.manual_seed(3)
    if encoder == "bert":
        sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
        body = BertModel(BertConfig(vocab_size=99, max_position_embeddings=16, **sizes), add_pooling_layer=False)
    else:
        body = BiLSTM(99, 16, 1, 0.0, 0)
    tasks = {"weather": Task("classification", ("warm", "cold"))}
    model = MyModel(body, 16, tasks, HeadOptions(pooling=pooling, window=window))
    if window:
        torch.nn.init.normal_(model.output_layer.window_query, std=0.5)
    return model


@pytest.mark.parametrize("pooling, encoder", [("first", "bert"), ("mean", "bert"), ("last", "bert"), ("first", "lstm")])
def test_text_vector_is_the_attention_weighted_mean_of_windows(pooling, encoder):
    """Each window is encoded separately; a text with a single window has the same vector as without windows."""
    model = small_model(pooling, 8, encoder).eval()
    plain = small_model(pooling, 0, encoder).eval()
    plain.load_state_dict({name: v for name, v in model.state_dict().items() if "window_query" not in name})
    lengths = [29, 8, 3, 16, 17]
    ids = torch.randint(4, 99, (5, 29))
    mask = (torch.arange(29) < torch.tensor(lengths)[:, None]).long()
    inputs = {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": 0 * ids}
    query = model.output_layer.window_query
    expected = []
    for row, length in enumerate(lengths):
        alone = [
            {name: v[row : row + 1, i : min(i + 8, length)] for name, v in inputs.items()} for i in range(0, length, 8)
        ]
        vectors = torch.cat([plain.embed(window) for window in alone])
        expected.append(torch.softmax(vectors @ query, 0) @ vectors)
    torch.testing.assert_close(model.embed(inputs), torch.stack(expected), rtol=1e-4, atol=1e-5)
    short = {name: v[1:3, :8] for name, v in inputs.items()}
    assert torch.equal(model.embed(short), plain.embed(short))


def test_recomputed_windows_have_the_same_gradients(monkeypatch):
    ids = torch.randint(4, 99, (3, 40))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": 0 * ids}
    monkeypatch.setattr("engine.model.long_texts.AT_ONCE", 0)
    gradients = []
    for again in (True, False):
        model = small_model("mean", 8).train()
        if not again:
            monkeypatch.setattr("engine.model.long_texts.checkpoint", lambda encode, part, use_reentrant: encode(part))
        torch.manual_seed(0)
        loss = model(inputs, {"weather": torch.tensor([0, 1, 1])}).total_loss
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()} | {"loss": loss.detach()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)
    assert gradients[0]["output_layer.window_query"].abs().sum() > 0


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_decisive_word_anywhere_in_a_long_text_is_learned(on_long):
    """auto chooses windows, and the start of each text is not informative."""
    epochs = dict(epochs=12, lr=5e-3, early_stop_patience=0)
    log = run(on_long(**epochs))
    assert "100% of the training texts are longer than 32 tokens; they are read in windows" in log
    scores = read_json(on_long().run_dir / "eval.json")
    assert scores["test"]["weather_accuracy"] >= 0.95
    assert read_json(on_long().run_dir / "args.json")["long_text"] == "windows"
    run(on_long(long_text="head", model_version="head", **epochs))
    assert read_json(on_long(model_version="head").run_dir / "eval.json")["test"]["weather_accuracy"] < 0.75
    model = load(on_long().run_dir / "checkpoints/best")
    row = texts_of(9, 1, 120)[0]
    assert model(row["text"])["weather"] == row["weather"] and model.embed(row["text"]).shape == (32,)
    with pytest.raises(UserError, match="has several"):
        model.explain(row["text"])


def test_truncated_text_is_the_first_finding(on_long):
    log = run(on_long(long_text="tail", epochs=1))
    assert "1. Texts longer than --max_length: 60 (100%)." in log and "use --long_text windows" in log
    rows = [json.loads(line) for line in (on_long().run_dir / "answers/test.jsonl").read_text().splitlines()]
    share = sum(row["cut"] for row in rows) / sum(row["tokens"] for row in rows)
    assert f"{share:.0%} of all tokens are truncated" in log
    log = run(on_long(model_version="all", epochs=1))
    assert "are truncated" not in log and "40 examples longer than --max_length 32 are read in" in log


STOPPED = [{}, dict(use_rdrop=True, dropout_samples=2), dict(streaming=True, encoder="bilstm"), dict(freeze_layers=-1)]


@pytest.mark.parametrize("more", STOPPED)
def test_resume_with_windows_is_bit_exact(more, on_long, monkeypatch):
    whole = on_long(model_version="whole", **more)
    run(whole)
    run_in_parts = on_long(model_version="parts", resume=True, **more)
    stop_run(run_in_parts, 12, monkeypatch)
    run(run_in_parts)
    weights = [load_file(config.run_dir / "checkpoints/best/weights.safetensors") for config in (whole, run_in_parts)]
    assert weights[0].keys() == weights[1].keys() and "output_layer.window_query" in weights[0]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.slow
def test_two_processes_train_like_one(on_long, python, tmp_path):
    options = dict(dropout=0.0, epochs=1, batch_size=8, log_steps=1)
    run(on_long(model_version="one", **options))
    words = [f"--{name}={value}" for name, value in (TINY | options | dict(batch_size=4, max_length=32)).items()]
    words += ["--data_path", on_long().data_path, "--output_dir", on_long().output_dir, "--model_version", "two"]
    torchrun(python, 2, "main.py", "--do_train", *words, cwd=tmp_path)
    losses = []
    for name in ("one", "two"):
        lines = (on_long(model_version=name).run_dir / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("share, chosen", [(0.04, "head"), (0.06, "windows")])
def test_auto_uses_windows_if_many_texts_are_long(share, chosen, tmp_path):
    splits = {}
    for split in ("train", "dev"):
        splits[split] = texts_of(1, 100, 6)
        for row in splits[split][: round(100 * share)]:
            row["text"] = " ".join(8 * row["text"].split())
    tasks = {"weather": {"type": "classification", "labels": list(DECISIVE)}}
    folder = write_folder(tmp_path / "data", splits, tasks)
    given = TINY | dict(
        data_path=str(folder), output_dir=str(tmp_path / "output"), do_train=True, max_length=32, epochs=1
    )
    log = run(Config(**given, model_version="auto"))
    assert ("read in windows" in log) == (chosen == "windows")
    assert read_json(tmp_path / "output/auto/args.json")["long_text"] == chosen
    run(Config(**given, model_version="given", long_text=chosen))
    weights = [
        load_file(tmp_path / f"output/{name}/checkpoints/best/weights.safetensors") for name in ("auto", "given")
    ]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_run_from_before_windows_keeps_truncation(on_long):
    """Its args.json has `truncation`."""
    config = on_long(long_text="head", epochs=2, early_stop_patience=0)
    run(config)
    path = config.run_dir / "args.json"
    options = read_json(path)
    path.write_text(json.dumps(options | {"truncation": options.pop("long_text")}))
    assert Config.load(config.run_dir / "args.json").long_text == "head"
    log = run(on_long(epochs=2, resume=True, early_stop_patience=0))
    assert "--long_text auto: head, as when the run began" in log and "all epochs of this run are done" in log


def test_tagging_and_classification_of_a_long_text(tiny):
    """A text is one row: its label is predicted from all windows, and each word has its tag."""
    config = tiny(
        max_length=8, window_stride=2, do_train=True, do_eval=True, use_crf=True, word_pooling="mean", epochs=1
    )
    run(config)
    trainer, featurizer = load_trained(config.run_dir / "checkpoints/best", config, CPU)
    data = MyDataset(config.data_dir / "test.jsonl", featurizer)
    assert featurizer.long_text == "windows" and len(data.lengths) == len(data) and data.lengths.max() > 16
    assert data.columns["word_starts"].lengths.tolist() == [len(data[i]["tokens"]) for i in range(len(data))]
    assert np.isfinite(trainer.embed(__import__("data_loader").MyDataLoader(data, 8))).all()


@pytest.mark.parametrize(
    "options, reason", [(dict(use_smart=True), "noise"), (dict(window_stride=-1), "truncates long texts")]
)
def test_conditions_without_windows(options, reason, tiny):
    with pytest.raises(UserError, match=f"--long_text windows: .*{reason}"):
        main_module.main(tiny(max_length=8, do_train=True, long_text="windows", **options))
    log = run(tiny(max_length=8, do_train=True, epochs=1, model_version="auto", **options))
    assert "only their start is read" in log


@pytest.mark.parametrize("options", [{}, dict(encoder="bilstm", num_layers=1), dict(pooling="last")])
def test_export_uses_the_same_windows(options, on_long, tmp_path):
    pytest.importorskip("onnxscript")
    config = on_long(epochs=2, **options)
    run(config)
    best = config.run_dir / "checkpoints/best"
    export(ExportConfig(checkpoint=str(best), output_dir=str(tmp_path / "shipped")))
    rows = [row["text"] for row in texts_of(5, 6, 120)] + ["sunny lake", "frozen " * 31, "lake " * 300]
    ours, theirs = load(best)(rows), Predictor(tmp_path / "shipped", 1)(rows, batch_size=4)
    for one, other in zip(ours, theirs):
        assert one["weather"] == other["weather"]
        assert one["weather_probability"] == pytest.approx(other["weather_probability"], abs=1e-4)
