"""tools.export --to transformers and sentence-transformers: both libraries must give the same predictions as main.py.
Models that cannot be exported end in a one-line error with advice."""

import json
import re

import pytest
import torch
import transformers as hf
from conftest import TINY, read_json
from test_automatic import run
from test_families import save_family
from test_long_texts import write_folder

from config import Config
from engine.errors import UserError
from engine.predict import load
from model_utils import load_checkpoint
from tools.export.__main__ import MARK, ExportConfig, export
from tools.export.to_transformers import moved

WORDS = "the old grey house stands near a small quiet lake and nobody lives there now".split()
TASKS = {
    "classification": {"type": "classification", "labels": ["cold", "warm", "wet"]},
    "multilabel": {"type": "multilabel", "labels": ["cold", "warm", "wet"]},
    "regression": {"type": "regression", "labels": [], "mean": 2.5, "std": 1.7},
    "tagging": {"type": "tagging", "labels": ["O", "B-x", "I-x"], "unit": "word"},
    "hierarchy": {"type": "classification", "labels": ["a", "a/b", "c"], "hierarchy": "/"},
}
FAMILIES = ("BERT", "RoBERTa", "DistilBERT", "ELECTRA", "ALBERT", "DeBERTa v2, v3", "XLM-R", "CamemBERT", "MPNet")
DECODERS = ("GPT-2", "GPT-NeoX", "OPT")  # their last layer is a layer norm with biases


def rows_of(kind, size, pairs):
    """Yields texts whose labels can be derived from their words."""
    generator = torch.Generator().manual_seed(size)
    for number in range(size):
        places = torch.randint(len(WORDS), (int(torch.randint(2, 20, (1,), generator=generator)),), generator=generator)
        words = [WORDS[i] for i in places]
        count = words.count("house") + words.count("lake")
        label = {
            "classification": ["cold", "warm", "wet"][min(count, 2)],
            "multilabel": ["cold", "warm", "wet"][: min(count, 3)],
            "regression": float(count),
            "tagging": ["B-x" if word in ("house", "lake") else "O" for word in words],
            "hierarchy": ["a", "a/b", "c"][min(count, 2)],
        }[kind]
        text = {"tokens": words} if kind == "tagging" else {"text": " ".join(words)}
        yield {"id": str(number), **text, **({"text_pair": "a lake"} if pairs else {}), "it": label}


@pytest.fixture
def trained(tmp_path):
    """trained(kind, family, pairs, **options) trains briefly and returns the best checkpoint."""

    def make(kind="classification", family="BERT", pairs=False, **options):
        splits = {split: list(rows_of(kind, size, pairs)) for split, size in dict(train=60, dev=40).items()}
        data = write_folder(tmp_path / "data", splits, {"it": TASKS[kind] | ({"pairs": True} if pairs else {})})
        encoder = save_family(family, tmp_path / "encoder", data)
        given = dict(data_path=str(data), output_dir=str(tmp_path / "output"), model_version="run", do_train=True)
        given |= dict(pretrain_model_path=encoder, max_length=64, few_shot=False, word_shapes=False)
        config = Config(**TINY | given | options)
        run(config)
        return config.run_dir / "checkpoints/best"

    return make


def exported(best, tmp_path, to="transformers"):
    folder = tmp_path / "out"
    export(ExportConfig(checkpoint=str(best), output_dir=str(folder), to=to))
    return folder


def predictions(best, tmp_path):
    """Returns the rows of dev and the predictions of engine.predict."""
    rows = [json.loads(line) for line in (tmp_path / "data/dev.jsonl").read_text().splitlines()]
    return rows, load(best, device="cpu")([{k: v for k, v in row.items() if k != "it"} for row in rows])


@pytest.mark.parametrize("family", [*FAMILIES, *DECODERS])
def test_a_pipeline_classifies_the_same_as_main(family, trained, tmp_path, capsys):
    best = trained(family=family)
    folder = exported(best, tmp_path)
    assert "40 of 40 dev examples have the same predictions" in "".join(capsys.readouterr())
    pipeline = hf.pipeline("text-classification", model=str(folder), device="cpu", trust_remote_code=False)
    rows, ours = predictions(best, tmp_path)
    texts = [row["text"] for row in rows]
    for theirs in (pipeline(texts), pipeline(texts, batch_size=7)):
        for one, other in zip(ours, theirs, strict=True):
            assert other["label"] == one["it"] and other["score"] == pytest.approx(one["it_probability"], abs=1e-4)
    assert len({round(one["it_probability"], 3) for one in ours}) > 10


@pytest.mark.parametrize("family", ["BERT", "GPT-2"])
@pytest.mark.parametrize("kind", ["multilabel", "regression", "hierarchy"])
def test_other_tasks_with_one_label_per_text(kind, family, trained, tmp_path):
    best = trained(kind, family)
    pipeline = hf.pipeline(
        "text-classification", model=str(exported(best, tmp_path)), device="cpu", trust_remote_code=False
    )
    rows, ours = predictions(best, tmp_path)
    everything = dict(top_k=None) | (dict(function_to_apply="none") if kind == "regression" else {})
    for row, one in zip(rows, ours):
        scores = {each["label"]: each["score"] for each in pipeline(row["text"], **everything)}
        if kind == "regression":
            assert list(scores.values()) == [pytest.approx(one["it"], abs=2e-4)]
        elif kind == "multilabel":
            assert all(
                scores[label] == pytest.approx(p, abs=1e-4) for label, p in zip(one["it"], one["it_probability"])
            )
        else:
            assert scores[one["it"]] == pytest.approx(one["it_probability"], abs=1e-4)


def test_pairs_of_texts(trained, tmp_path):
    best = trained(pairs=True)
    pipeline = hf.pipeline(
        "text-classification", model=str(exported(best, tmp_path)), device="cpu", trust_remote_code=False
    )
    rows, ours = predictions(best, tmp_path)
    for row, one in zip(rows, ours):
        theirs = pipeline({"text": row["text"], "text_pair": row["text_pair"]})
        assert theirs["label"] == one["it"] and theirs["score"] == pytest.approx(one["it_probability"], abs=1e-4)


@pytest.mark.parametrize("family", ["BERT", "RoBERTa", "DistilBERT", "GPT-2", "Llama", "Qwen3"])
def test_a_pipeline_tags_the_same_as_main(family, trained, tmp_path):
    best = trained("tagging", family, epochs=6, word_pooling="first")
    folder = exported(best, tmp_path)
    pipeline = hf.pipeline("token-classification", model=str(folder), device="cpu", trust_remote_code=False)
    rows, ours = predictions(best, tmp_path)
    found = 0
    for row, one in zip(rows, ours):
        theirs = pipeline(" ".join(row["tokens"]), aggregation_strategy="first")
        spans = [(each["start"], each["end"]) for each in theirs]
        found += len(spans)
        assert [(each["start"], each["end"]) for each in one["it"]] == split_spans(spans, one["text"])
    assert found


def split_spans(spans, text):
    """Splits spans into words, because the pipeline joins adjacent words with B- tags."""
    return [
        (start + word_start, start + word_start + len(word))
        for start, end in spans
        for word, word_start in words_in(text[start:end])
    ]


def words_in(text):
    start = 0
    for word in text.split():
        start = text.index(word, start)
        yield word, start
        start += len(word)


@pytest.mark.parametrize("pooling", ["first", "mean", "last"])
def test_sentence_transformers_exports_contain_encoder_and_pooling(pooling, trained, tmp_path):
    best = trained(pooling=pooling)
    folder = exported(best, tmp_path, "sentence-transformers")
    modes = {"first": "cls_token", "mean": "mean_tokens", "last": "lasttoken"}
    options = read_json(folder / "1_Pooling/config.json")
    assert [name for name, value in options.items() if value is True] == [f"pooling_mode_{modes[pooling]}"]
    assert [module["path"] for module in read_json(folder / "modules.json")] == ["", "1_Pooling"]
    encoder = hf.AutoModel.from_pretrained(folder, trust_remote_code=False)
    pooler = [p for name, p in encoder.named_parameters() if "pooler" in name]
    assert pooler and not any(p.any() for p in pooler)  # zeros, not random weights
    own = load_checkpoint(best)[0].encoder
    assert all(torch.equal(dict(encoder.named_parameters())[name], p) for name, p in own.named_parameters())


@pytest.mark.parametrize(
    "make, why",
    [
        (dict(kind="tagging", use_crf=True), "from a CRF; train with --no_use_crf"),
        (dict(kind="tagging", word_shapes=True), "reads word shapes; train with --word_shapes False"),
        (dict(kind="tagging", word_pooling="mean"), "uses --word_pooling mean"),
        (dict(shared_layers=1), "hidden layers between encoder and head"),
        (dict(pooling="mean"), "40 of 40 dev examples differ|dev examples differ"),
        (dict(family="ModernBERT", pooling="first"), "other layers after the encoder"),
        (dict(family="Qwen3"), "the head in transformers has no biases, and the encoder does not end with biases"),
        (dict(family="GPT-2", pooling="first"), "dev examples differ.*or last for decoders"),
        (
            dict(family="GPT-2", pairs=True),
            "no separator between the texts of a pair, but it was trained with '<|endoftext|>'",
        ),
        (dict(kind="tagging", family="Llama"), "uses --word_pooling last; train with --word_pooling first"),
        (dict(encoder="bilstm"), "not a transformers model"),
    ],
)
def test_models_without_an_equivalent_class_are_rejected(make, why, trained, tmp_path):
    best = trained(**make)
    with pytest.raises(UserError, match=why) as caught:
        exported(best, tmp_path)
    assert "--to onnx" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_layer_norm_can_replace_at_most_as_many_biases_as_hidden_dimensions():
    for number, fits in ((32, True), (40, False)):
        shape = hf.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=20, num_labels=number, pad_token_id=0)
        target = hf.GPT2ForSequenceClassification(shape).eval()
        target.transformer.ln_f.bias.data.normal_()
        weights, biases = target.score.weight.detach().double(), torch.randn(number).double()
        ids = torch.randint(1, 20, (5, 7))
        with torch.no_grad():
            before = target(ids).logits
            if not fits:
                with pytest.raises(UserError, match=r"too many labels \(40\)"):
                    moved(target, weights, biases)
                continue
            bias, numbers = moved(target, weights, biases)
            bias.copy_(numbers)
            torch.testing.assert_close(target(ids).logits, before + biases.float(), atol=1e-3, rtol=0)


def test_several_tasks_are_rejected(sample, tmp_path):
    given = dict(data_path=str(sample), output_dir=str(tmp_path), model_version="run", do_train=True, epochs=1)
    run(Config(**TINY | given))
    with pytest.raises(UserError, match="it has 2 tasks; train a model with one of them"):
        exported(tmp_path / "run/checkpoints/best", tmp_path)


def test_only_an_unchanged_export_is_replaced(trained, tmp_path):
    best = trained()
    folder = exported(best, tmp_path)
    exported(best, tmp_path, "sentence-transformers")
    assert read_json(folder / MARK)["to"] == "sentence-transformers" and (folder / "modules.json").exists()
    (folder / "notes.md").write_text("my notes")
    with pytest.raises(UserError, match=r"contains other files \(notes.md\)"):
        exported(best, tmp_path)
    (folder / "notes.md").unlink()
    (folder / "modules.json").write_text("[]")
    with pytest.raises(UserError, match=r"modules\.json has changed since"):
        exported(best, tmp_path)
    with pytest.raises(UserError, match="--int8 and --fp16 need --to onnx"):
        ExportConfig(checkpoint="x", output_dir="y", to="transformers", int8=True)


def test_an_export_needs_a_dev_split(trained, tmp_path):
    best = trained()
    (tmp_path / "data/dev.jsonl").unlink()
    with pytest.raises(UserError, match=r"--to transformers: .*data has no dev split for the comparison"):
        exported(best, tmp_path)
    assert not (tmp_path / "out").exists()


def test_only_texts_that_fit_into_one_window_are_compared(trained, tmp_path, capsys):
    best = trained("tagging", max_length=12)
    exported(best, tmp_path)
    output = "".join(capsys.readouterr())
    same, number = map(int, re.search(r"(\d+) of (\d+) dev examples have the same predictions", output).groups())
    assert 0 < same == number < 40
