"""docs/cookbook/relation.md: compares predictions with those computed by transformers from the checkpoint files;
rejects texts whose markers the head cannot read."""

import json
import random
import re
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, TINY, read_json
from safetensors.torch import load_file
from test_cookbook import RecipeRun, edits_of
from test_families import save_family
from transformers import AutoTokenizer, BertConfig, BertModel

import model_utils
from config import Config
from data_loader import MyDataset
from engine.errors import UserError
from engine.model.head import token_ids
from engine.model.pooling import vector_at
from main import build_trainer, load_data, load_trained

sys.path.insert(0, str(ROOT / "benchmarks"))
import semeval

PAGE = ROOT / "docs/cookbook/relation.md"
CPU = torch.device("cpu")
MARKERS = "<e1>,</e1>,<e2>,</e2>"


def plain_encoder(best):
    """Returns (tokenizer, encoder, all tensors) of a checkpoint, without this project's code."""
    tensors = load_file(best / "weights.safetensors")
    encoder = BertModel(BertConfig.from_json_file(best / "encoder.json"), add_pooling_layer=False).eval()
    encoder.load_state_dict({k.removeprefix("encoder."): v for k, v in tensors.items() if k.startswith("encoder.")})
    return AutoTokenizer.from_pretrained(best), encoder, tensors


@pytest.mark.slow
@torch.no_grad()
def test_predictions_use_the_vectors_at_the_start_markers(sample, tmp_path, fork_server):
    recipe = RecipeRun(PAGE, sample, tmp_path, fork_server)
    with recipe.forks:
        recipe.forks.run([*recipe.train("run"), "--predict_output", "answers.jsonl", "--precision", "fp32"])
    best = recipe.folder / "output/run/checkpoints/best"
    tokenizer, encoder, tensors = plain_encoder(best)
    labels = json.loads((best / "labels.json").read_text(encoding="utf-8"))["relation"]["labels"]
    rows = [json.loads(line) for line in (recipe.folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) > 5
    for row in rows:
        encoded = tokenizer(row["text"], return_tensors="pt")
        hidden, tokens = encoder(**encoded).last_hidden_state[0], tokenizer.convert_ids_to_tokens(encoded.input_ids[0])
        vector = torch.cat([hidden[tokens.index("<e1>")], hidden[tokens.index("<e2>")]])
        head = [tensors[f"output_layer.heads.relation.linear.{name}"] for name in ("weight", "bias")]
        probabilities = torch.nn.functional.linear(vector, *head).softmax(0)
        assert row["relation"] == labels[probabilities.argmax()]
        assert row["relation_probability"] == pytest.approx(float(probabilities.max()), abs=1e-4)


# ---- in this process: unsuitable texts and tokenizers ----------------------------------------------------------


@pytest.fixture
def relations(tmp_path, monkeypatch):
    """Returns (config, trainer, data) with the page's head, on a few texts."""
    monkeypatch.setattr(model_utils, "HEADS", dict(model_utils.HEADS))
    exec(edits_of(PAGE)[0][3], vars(model_utils))
    monkeypatch.delattr(model_utils, "RelationHead")
    folder = tmp_path / "relations"
    folder.mkdir()
    rows = [{"text": f"a <e1>w{n % 3}</e1> of <e2>w{n % 4}</e2>", "relation": "ab"[n % 2], "id": n} for n in range(16)]
    for part in ("train", "dev"):
        lines = (json.dumps(row | {"id": str(row["id"])}) + "\n" for row in rows)
        (folder / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
    task = {"relation": {"type": "classification", "labels": ["a", "b"]}}
    (folder / "labels.json").write_text(json.dumps(task), encoding="utf-8")
    options = dict(data_path=str(folder), output_dir=str(tmp_path / "output"), model_version="run", do_train=True)
    return Config(**TINY | options, special_tokens=MARKERS)


def test_missing_special_tokens_raise_an_error_with_the_option(relations, tmp_path):
    config = Config(**TINY | dict(data_path=relations.data_path, do_train=True))
    with pytest.raises(UserError, match=f"<e1>, </e1>, <e2>, </e2>: .* add --special_tokens '{MARKERS}'"):
        load_data(config, CPU)


def test_a_marker_that_is_not_a_single_token_is_rejected(relations):
    tokenizer = load_data(relations, CPU).tokenizer
    assert token_ids(tokenizer, ["<e1>", "</e2>"]) == [tokenizer.get_vocab()[name] for name in ("<e1>", "</e2>")]
    for name in ("<e3>", "\u9f98", "", "w1 w2"):
        with pytest.raises(UserError, match="--special_tokens"):
            token_ids(tokenizer, ["<e1>", name])


@pytest.mark.parametrize("name", ["BERT", "RoBERTa", "GPT-2", "Llama", "Gemma", "Qwen3"])
@torch.no_grad()
def test_decoders_and_other_tokenizers_find_the_markers(relations, tmp_path, sample, name):
    folder = save_family(name, tmp_path / "pretrained", sample)
    data = load_data(replace(relations, pretrain_model_path=folder), CPU)
    model = build_trainer(data, CPU).model.eval()
    head, tokenizer = model.output_layer.heads["relation"], data.tokenizer
    assert tokenizer.convert_ids_to_tokens(head.marker_ids) == MARKERS.split(",")
    rows = data.train_loader.dataset
    inputs = rows.batch([0, 3, 5]).inputs
    hidden = model.encode(inputs)
    for row, number in enumerate([0, 3, 5]):
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(rows[number]["text"])["input_ids"])
        for marker, token in zip(MARKERS.split(","), head.marker_ids):
            assert torch.equal(vector_at(hidden, inputs, token)[row], hidden[row, tokens.index(marker)])


@pytest.mark.parametrize(
    "text, reason",
    [
        ("no markers", "has 0 <e1>"),
        ("<e1>a</e1> and b", "has 0 <e2>"),
        ("<e1>a</e1> <e1>b</e1> <e2>c</e2>", "has 2 <e1>"),
        ("x " * 40 + "<e1>a</e1> <e2>b</e2>", "--max_length 32 truncates <e1>"),
        ("<e1>a</e1>" + "x " * 40 + "<e2>b</e2>", "--max_length 32 truncates <e2>"),
    ],
)
def test_a_text_with_missing_or_truncated_markers_is_rejected(relations, text, reason):
    data = load_data(relations, CPU)
    config = relations
    trainer = build_trainer(data, CPU)
    trainer.train()
    _, featurizer = load_trained(config.run_dir / "checkpoints/best", config, CPU)
    featurizer = replace(featurizer, max_length=32)
    good = {"id": "6", "text": "<e1>a</e1> <e2>b</e2>"}
    assert len(MyDataset([good], featurizer)) == 1
    with pytest.raises(UserError, match=f"example 7: .*{reason}"):
        MyDataset([good, {"id": "7", "text": text}], featurizer)


@pytest.mark.slow
def test_an_export_reads_the_markers(relations, tmp_path):
    pytest.importorskip("onnxruntime", reason="pip install -r tools/export/requirements.txt")
    pytest.importorskip("onnxscript", reason="pip install -r tools/export/requirements.txt")
    from tools.export.__main__ import ExportConfig, export
    from tools.export.predictor import InputError, Predictor

    build_trainer(load_data(relations, CPU), CPU).train()
    best = relations.run_dir / "checkpoints/best"
    export(ExportConfig(checkpoint=str(best), output_dir=str(tmp_path / "shipped")))  # compares the predictions on dev
    predictor = Predictor(tmp_path / "shipped")
    assert predictor(["<e1>w1</e1> of <e2>w2</e2>"])[0]["relation"] in ("a", "b")
    with pytest.raises(InputError, match="row 2: it has 0 <e2>"):
        predictor(["<e1>w1</e1> of <e2>w2</e2>", "<e1>w1</e1>"])


def test_markers_are_part_of_the_token_cache(relations):
    featurizer = load_data(relations, CPU).dev_loader.dataset.featurizer
    assert replace(featurizer, markers={}).fingerprint() != featurizer.fingerprint()


def test_vector_at_never_reads_another_position():
    hidden = torch.randn(3, 4, 5)
    inputs = {"input_ids": torch.tensor([[7, 1, 9, 1], [9, 7, 0, 0], [1, 2, 3, 4]])}
    vectors = vector_at(hidden, inputs, 7)
    assert torch.equal(vectors, torch.stack([hidden[0, 0], hidden[1, 1], torch.zeros(5)]))


# ---- the Chinese page, and the benchmark ----------------------------------------------------------------------------


def test_the_page_in_chinese_has_the_same_code():
    chinese = ROOT / "docs/zh/cookbook/relation.md"
    assert edits_of(chinese) == edits_of(PAGE)
    commands = [re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.M | re.S) for page in (chinese, PAGE)]
    assert commands[0] == commands[1]


def scorer(gold, predicted):
    """Computes the official score from the confusion matrix of undirected relations, in which predictions with the
    wrong direction have a separate column: P = right / (column + wrong direction), R = right / row."""
    matrix, wrong = Counter(), Counter()
    for answer, label in zip(predicted, gold):
        names = [name.partition("(")[0] for name in (answer, label)]
        if names[0] == names[1] and answer != label:
            wrong[names[1]] += 1
        else:
            matrix[tuple(names)] += 1
    scores = []
    for relation in {label.partition("(")[0] for label in gold} - {"Other"}:
        right = matrix[relation, relation]
        column = sum(n for (answer, _), n in matrix.items() if answer == relation) + wrong[relation]
        row = sum(n for (_, label), n in matrix.items() if label == relation) + wrong[relation]
        precision, recall = right / column if column else 0, right / row
        scores.append(2 * precision * recall / (precision + recall) if right else 0)
    return sum(scores) / len(scores)


def test_the_score_is_the_official_one():
    one, other, part = "Cause-Effect(e1,e2)", "Cause-Effect(e2,e1)", "Component-Whole(e1,e2)"
    assert semeval.official_f1([one, other, "Other"], [one, other, "Other"]) == 1
    assert semeval.official_f1([one, other], [other, one]) == 0  # every direction is wrong
    assert semeval.official_f1([one, one], [one, other]) == 0.5  # P = R = 1 / 2: the wrong direction counts in both
    assert semeval.official_f1([one, "Other"], [one, one]) == pytest.approx(2 / 3)  # P = 1 / 2, R = 1
    assert semeval.official_f1([one, part], [one, "Other"]) == 0.5  # the mean of 1 and 0
    assert semeval.official_f1([one, one], [one, part]) == pytest.approx(2 / 3)  # only gold relations count
    rng = random.Random(0)
    labels = [one, other, part, "Component-Whole(e2,e1)", "Member-Collection(e2,e1)", "Other"]
    for _ in range(50):
        gold = [rng.choice(labels) for _ in range(60)]
        predicted = [label if rng.random() < 0.6 else rng.choice(labels) for label in gold]
        assert semeval.official_f1(gold, predicted) == pytest.approx(scorer(gold, predicted))


@pytest.mark.slow
def test_the_benchmark_runs_from_the_release_to_the_score(tmp_path, sample, command):
    save_family("BERT", tmp_path / "bert", sample)
    rows = [f'{n}\t"The <e1>a{n % 5}</e1> of the <e2>b{n % 3}</e2>."' for n in range(60)]
    names = ["Cause-Effect(e1,e2)", "Cause-Effect(e2,e1)", "Other"]
    blocks = [f"{row}\n{names[n % 3]}\nComment:{' x' * (n % 2)}\n" for n, row in enumerate(rows)]
    (tmp_path / "train.txt").write_text("\n".join(blocks[:48]), encoding="utf-8", newline="\r\n")
    (tmp_path / "test.txt").write_text("\n".join(blocks[48:]), encoding="utf-8")
    flags = ["--data", tmp_path, "--pretrain_model_path", tmp_path / "bert", "--seeds", "1", "2", "--output_dir", "out"]
    options = ["--num_dev", "12", "--options", "--epochs 1 --device cpu"]
    done = command("benchmarks/semeval.py", *flags, *options)
    assert done.returncode == 0, done.stderr
    for seed in (1, 2):
        scores = read_json(tmp_path / f"out/seed-{seed}/semeval.json")
        answers = (tmp_path / f"out/seed-{seed}/answers/test.jsonl").read_text(encoding="utf-8").splitlines()
        labels = [[json.loads(line)["answers"]["relation"][key] for line in answers] for key in ("gold", "predicted")]
        assert len(answers) == 12 and scores["test"] == pytest.approx(100 * scorer(*labels), abs=0.01)
    processed = (tmp_path / "out/data/test.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(processed[0])["text"] == "The <e1>a3</e1> of the <e2>b0</e2>."
    assert json.loads(processed[0])["id"] == "48"
