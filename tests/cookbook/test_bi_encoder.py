"""docs/cookbook/bi_encoder.md: a text's vector does not depend on the other text, its position in the pair, the padding
or the tokenizer. Compared with vectors computed by transformers."""

import copy
import json

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from test_cookbook import RecipeRun, edits_of
from test_families import FAMILIES, save_family
from test_relation import plain_encoder
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

import model_utils
from config import Config
from data_loader import MyDataLoader, MyDataset
from engine.data.tokenizer import SPECIAL, train_tokenizer
from engine.errors import UserError
from engine.model.pooling import separate_pairs
from engine.predict import load
from engine.run.command_line import parse_args
from main import build_trainer, load_data, load_trained, main

PAGE = ROOT / "docs/cookbook/bi_encoder.md"
CPU = torch.device("cpu")
LONG = "the quick brown fox jumps over a lazy dog and then some more of it " * 6
TEXTS = ["a good film", "the book", LONG, "", "song of song", "great " * 21, "great " * 22, "great " * 23]


def plain_vector(tokenizer, encoder, text, max_length):
    """Returns the mean over the tokens of a single text, truncated by transformers."""
    encoded = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
    return encoder(**encoded).last_hidden_state[0].mean(0)


@pytest.mark.slow
@torch.no_grad()
def test_predictions_are_cosines_of_separately_encoded_texts(sample, tmp_path, fork_server):
    recipe = RecipeRun(PAGE, sample, tmp_path, fork_server)
    pairs = [(first, second) for first in TEXTS for second in TEXTS if first and second]
    with recipe.forks:
        recipe.forks.run([*recipe.train("run"), "--precision", "fp32"])
        lines = [json.dumps({"sentence1": first, "sentence2": second}) + "\n" for first, second in pairs]
        (recipe.folder / "more.jsonl").write_text("".join(lines), encoding="utf-8")
        flags = ["--checkpoint", "output/run/checkpoints/best", "--precision", "fp32", "--predict_file", "more.jsonl"]
        recipe.forks.run(["main.py", "--do_predict", "--device", "cpu", *flags, "--predict_output", "answers.jsonl"])
    best = recipe.folder / "output/run/checkpoints/best"
    tokenizer, encoder, tensors = plain_encoder(best)
    task = json.loads((best / "labels.json").read_text(encoding="utf-8"))["score"]
    vectors = {text: plain_vector(tokenizer, encoder, text, 24) for text in TEXTS if text}  # half of --max_length 48
    weight, bias = (tensors[f"output_layer.heads.score.linear.{name}"] for name in ("weight", "bias"))
    answers = [json.loads(line)["score"] for line in (recipe.folder / "answers.jsonl").read_text("utf-8").splitlines()]
    cosines = (np.array(answers) - task["mean"]) / task["std"]
    cosines = (cosines - float(bias)) / float(weight)
    expected = [float(torch.cosine_similarity(vectors[first], vectors[second], dim=0)) for first, second in pairs]
    assert np.abs(cosines - expected).max() < 1e-5
    table = cosines.reshape(len(vectors), -1)
    assert np.abs(np.diag(table) - 1).max() < 1e-5 and np.abs(table - table.T).max() < 1e-5
    assert table.min() < 0.999  # the texts differ


# ---- in this process: families of encoders and tokenizers -----------------------------------------------------------


@pytest.fixture
def page_head(monkeypatch):
    monkeypatch.setattr(model_utils, "HEADS", dict(model_utils.HEADS))
    exec(edits_of(PAGE)[0][3], vars(model_utils))
    monkeypatch.delattr(model_utils, "CosineHead")


def folder_of(tmp_path, pairs=True):
    folder = tmp_path / "pairs"
    folder.mkdir()
    second = {"text_pair": "b"} if pairs else {}
    rows = [{"id": str(n), "text": f"a {n}", **second, "score": float(n)} for n in range(4)]
    for part in ("train", "dev", "test"):
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {"score": {"type": "regression", "labels": [], "mean": 1.5, "std": 1.2, "pairs": pairs}}
    (folder / "labels.json").write_text(json.dumps(task), encoding="utf-8")
    return folder


def roberta_tokenizer(folder):
    """Replaces a folder's tokenizer with one like RoBERTa's: <s> A </s></s> B </s>, and no token types."""
    tokenizer = train_tokenizer(lambda: iter(TEXTS), 400, model="bpe").backend_tokenizer
    ends = [("[SEP]", tokenizer.token_to_id("[SEP]")), ("[CLS]", tokenizer.token_to_id("[CLS]"))]
    tokenizer.post_processor = processors.RobertaProcessing(*ends)
    options = dict(model_input_names=["input_ids", "attention_mask"], **SPECIAL)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options).save_pretrained(folder)


@pytest.fixture
def built(page_head, tmp_path, sample):
    """Returns built(family, **options) -> (model in evaluation mode, its training data)."""

    def build(name, **options):
        if name in FAMILIES or name == "RoBERTa's tokenizer":
            options["pretrain_model_path"] = save_family(name.partition("'")[0], tmp_path / "pretrained", sample)
        if name == "RoBERTa's tokenizer":
            roberta_tokenizer(tmp_path / "pretrained")
        paths = dict(data_path=str(folder_of(tmp_path)), output_dir=str(tmp_path / "output"), model_version="run")
        config = Config(**TINY | paths | dict(do_train=True, pooling="mean", max_length=32) | options)
        data = load_data(config, CPU)
        return build_trainer(data, CPU).model.eval(), data.train_loader.dataset

    return build


@pytest.mark.parametrize(
    "name", [*sorted(set(FAMILIES) - {"FNet", "ConvBERT"}), "RoBERTa's tokenizer", "bilstm", "scratch"]
)
@torch.no_grad()
def test_every_family_encodes_both_texts_separately(built, name):
    """The outputs of FNet and ConvBERT depend on padding."""
    first = name == "bilstm"  # its first state has read the whole text
    model, data = built(name, **({"encoder": "bilstm", "pooling": "first"} if first else {}))
    pairs = [(one, two) for one in TEXTS[:5] for two in TEXTS[2:6]]
    rows = [{"id": str(n), "text": one, "text_pair": two} for n, (one, two) in enumerate(pairs)]
    inputs = MyDataset(rows, data.featurizer).batch(range(len(rows))).inputs
    assert inputs["input_ids"].shape[1] <= 32
    seen = []
    model.output_layer.heads["score"].register_forward_pre_hook(lambda head, given: seen.append(given[0]))
    model(inputs)
    alone = {}
    for text in TEXTS:
        ids = data.featurizer.tokenizer(text, truncation=True, max_length=16)["input_ids"]
        ids = torch.tensor([ids or data.featurizer.tokenizer(data.featurizer.filler)["input_ids"]])
        hidden = model.encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        alone[text] = hidden[0] if first else hidden.mean(0)
    expected = torch.stack([torch.stack([alone[one], alone[two]]) for one, two in pairs])
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-4)
    embedded = MyDataset([{"id": "0", "text": LONG}], data.featurizer).batch([0]).inputs  # without a second text
    hidden = model.encode(embedded)[0]
    torch.testing.assert_close(hidden[0] if first else hidden.mean(0), alone[LONG], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_an_export_has_the_same_predictions(page_head, tmp_path):
    pytest.importorskip("onnxruntime", reason="pip install -r tools/export/requirements.txt")
    pytest.importorskip("onnxscript", reason="pip install -r tools/export/requirements.txt")
    from tools.export.__main__ import ExportConfig, export
    from tools.export.predictor import Predictor

    paths = dict(data_path=str(folder_of(tmp_path)), output_dir=str(tmp_path / "output"), model_version="run")
    config = Config(**TINY | paths | dict(do_train=True, pooling="mean", max_length=32))
    config.run_dir.mkdir(parents=True)
    build_trainer(load_data(config, CPU), CPU).train()
    best = config.run_dir / "checkpoints/best"
    export(ExportConfig(checkpoint=str(best), output_dir=str(tmp_path / "shipped")))
    rows = [{"text": one, "text_pair": two} for one in TEXTS for two in TEXTS[::2]]
    trainer, featurizer = load_trained(best, config, CPU)
    data = MyDataset([{"id": str(n)} | row for n, row in enumerate(rows)], featurizer)
    expected = [row["score"] for row in trainer.predict_rows(MyDataLoader(data, 5))]
    answers = [row["score"] for row in Predictor(tmp_path / "shipped")(rows)]
    np.testing.assert_allclose(answers, expected, atol=1e-4)


def test_embed_returns_the_vectors_that_the_head_compares(page_head, tmp_path):
    paths = dict(data_path=str(folder_of(tmp_path)), output_dir=str(tmp_path / "output"), model_version="run")
    config = Config(**TINY | paths | dict(do_train=True, pooling="mean", max_length=32))
    config.run_dir.mkdir(parents=True)
    build_trainer(load_data(config, CPU), CPU).train()
    model, texts = load(config.run_dir / "checkpoints/best", device="cpu"), [text for text in TEXTS if text]
    vectors, head = model.embed(texts), model.trainer.model.output_layer.heads["score"]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = [row["score"] for row in model([(one, two) for one in texts for two in texts])]
    cosines = (
        (np.array(scores) - head.task.mean) / head.task.std - head.linear.bias.item()
    ) / head.linear.weight.item()
    np.testing.assert_allclose(cosines.reshape(len(texts), -1), vectors @ vectors.T, atol=1e-5)
    with pytest.raises(UserError, match="this model embeds single texts"):
        model.embed({"text": "a", "text_pair": "b"})
    with pytest.raises(UserError, match="single texts"):
        model.embed([("a", "b")])
    with pytest.raises(UserError, match="explain does not support"):
        model.explain(("a", "b"))
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    flags = ["--do_predict", "--device", "cpu", "--output_dir", str(tmp_path / "output"), "--predict_file"]
    flags += [str(tmp_path / "texts.txt"), "--checkpoint", str(model.checkpoint), "--embed", str(tmp_path / "out.npy")]
    main(parse_args(Config, flags))
    written = np.load(tmp_path / "out.npy")
    np.testing.assert_allclose(written / np.linalg.norm(written, axis=1, keepdims=True), vectors, atol=1e-5)


@pytest.mark.parametrize("trick", ["use_freelb", "use_smart", "use_fgm", "use_rdrop"])
def test_tricks_train_the_bi_encoder(page_head, tmp_path, trick):
    paths = dict(data_path=str(folder_of(tmp_path)), output_dir=str(tmp_path / "output"), model_version="trick")
    config = Config(**TINY | paths | {"do_train": True, "epochs": 1, trick: True})
    config.run_dir.mkdir(parents=True)
    trainer = build_trainer(load_data(config, CPU), CPU)
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    assert any(not torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


def test_separate_pairs_removes_the_other_text():
    first, second, none = [5, 6], [5, 7, 8], -1
    ids = torch.tensor([[*first, *second, 0], [*second, *first, 0]])
    types = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 0]])
    one, two = separate_pairs({"input_ids": ids, "attention_mask": (ids > 0).long(), "token_type_ids": types})
    found = [torch.where(text["attention_mask"] == 1, text["input_ids"], none).tolist() for text in (one, two)]
    assert found[0] == [[*first, none], second] and found[1] == [second, [*first, none]]  # without unnecessary padding
    assert not one["token_type_ids"].any() and not two["token_type_ids"].any()
    assert (one["input_ids"][0, 2:] == 0).all()  # for encoders whose outputs depend on masked tokens


def test_data_without_pairs_is_rejected(page_head, tmp_path):
    paths = dict(data_path=str(folder_of(tmp_path, pairs=False)), output_dir=str(tmp_path / "output"))
    config = Config(**TINY | paths | dict(do_train=True))
    with pytest.raises(UserError, match="need pairs of texts"):
        build_trainer(load_data(config, CPU), CPU)
