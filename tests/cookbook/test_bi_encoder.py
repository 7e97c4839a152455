"""docs/cookbook/bi_encoder.md: a text's vector is that of the text alone, whatever its partner, its place in the pair,
the padding or the tokenizer; computed again with transformers alone."""

import copy
import json

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from test_cookbook import Road, edits_of
from test_families import FAMILIES, save_family
from test_relation import plain_encoder

import model_utils
from config import Config
from data_loader import MyDataset
from engine.data.features import Featurizer
from engine.errors import UserError
from engine.model.pooling import separate_pairs
from engine.task.task import Task
from main import build_trainer, load_data

PAGE = ROOT / "docs/cookbook/bi_encoder.md"
CPU = torch.device("cpu")
LONG = "the quick brown fox jumps over a lazy dog and then some more of it " * 6
TEXTS = ["a good film", "the book", LONG, "", "song of song", "great " * 21, "great " * 22, "great " * 23]


def plain_vector(tokenizer, encoder, text, max_length):
    """The mean over the tokens of a text, alone, truncated as transformers does."""
    encoded = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
    return encoder(**encoded).last_hidden_state[0].mean(0)


@pytest.mark.slow
@torch.no_grad()
def test_the_answers_are_cosines_of_the_texts_encoded_alone(sample, tmp_path, fork_server):
    road = Road(PAGE, sample, tmp_path, fork_server)
    pairs = [(first, second) for first in TEXTS for second in TEXTS if first and second]
    with road.forks:
        road.forks.run([*road.train("run"), "--precision", "fp32"])
        lines = [json.dumps({"sentence1": first, "sentence2": second}) + "\n" for first, second in pairs]
        (road.folder / "more.jsonl").write_text("".join(lines), encoding="utf-8")
        flags = ["--checkpoint", "output/run/checkpoints/best", "--precision", "fp32", "--predict_file", "more.jsonl"]
        road.forks.run(["main.py", "--do_predict", "--device", "cpu", *flags, "--predict_output", "answers.jsonl"])
    best = road.folder / "output/run/checkpoints/best"
    tokenizer, encoder, tensors = plain_encoder(best)
    task = json.loads((best / "labels.json").read_text(encoding="utf-8"))["score"]
    vectors = {text: plain_vector(tokenizer, encoder, text, 24) for text in TEXTS if text}  # half of --max_length 48
    weight, bias = (tensors[f"output_layer.heads.score.linear.{name}"] for name in ("weight", "bias"))
    answers = [json.loads(line)["score"] for line in (road.folder / "answers.jsonl").read_text("utf-8").splitlines()]
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


def folder_of(tmp_path, pairs=True, **tasks):
    folder = tmp_path / "pairs"
    folder.mkdir()
    second = {"text_pair": "b"} if pairs else {}
    rows = [{"id": str(n), "text": f"a {n}", **second, "score": float(n)} for n in range(4)]
    for part in ("train", "dev"):
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {"score": {"type": "regression", "labels": [], "mean": 1.5, "std": 1.2, "pairs": pairs} | tasks}
    (folder / "labels.json").write_text(json.dumps(task), encoding="utf-8")
    return folder
