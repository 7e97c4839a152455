"""docs/cookbook/task_kind.md: the probabilities of grades, recomputed from the score and the thresholds."""

import json
import os
import subprocess
import sys
from math import exp, log

import pytest
from conftest import ROOT, read_json
from test_cookbook import RecipeRun

PAGE = ROOT / "docs/cookbook/task_kind.md"

# Runs in the edited copy: prints scores, gaps, log p and the loss; and log p of extreme vectors with ten grades
SCRIPT = """
import json, sys
import torch
from data_loader import MyDataset
from engine.model.pooling import text_vectors
from engine.task.task import Task
from model_utils import HEADS, load_with_featurizer
model, featurizer, _ = load_with_featurizer(sys.argv[1])
data = MyDataset(sys.argv[2], featurizer)
batch = data.batch(range(len(data)))
layer = model.eval().output_layer
head = layer.heads["stars"]
with torch.no_grad():
    vectors = text_vectors(model.encode(batch.inputs), batch.inputs, layer.pooling)
    output = model(batch.inputs, batch.labels)
ten = HEADS["ordinal"](4, Task("ordinal", sorted(map(str, range(1, 11))), kind="classification"))
extreme = torch.tensor([[0.0, 0, 0, 0], [1, 2, 3, 4], [-3, 1, 0, 2]]) * 100
loss = ten.loss(ten(extreme, {}), torch.tensor([0, 5, 9]), {})
loss.backward()
found = {
    "labels": head.task.labels,
    "scores": (4 * head.linear(vectors)).squeeze(1).tolist(),
    "gaps": head.gaps.tolist(),
    "logits": output.logits["stars"].tolist(),
    "loss": output.losses["stars"].item(),
    "ten": [ten.task.labels, (4 * ten.linear(extreme / 100)).squeeze(1).tolist(), ten(extreme / 100, {}).tolist()],
    "finite": bool(torch.isfinite(ten.linear.weight.grad).all() and torch.isfinite(ten.gaps.grad).all()),
}
print(json.dumps(found))
"""


def sigmoid(x):
    return 1 / (1 + exp(-x))


def grades(score, gaps, labels):
    """Returns {label: p} as differences of sigmoids, as defined by McCullagh."""
    steps = [4 * log(1 + exp(gap)) for gap in gaps]
    borders = [sum(steps[:k]) for k in range(len(steps) + 1)]
    assert borders == sorted(set(borders))
    middle = sum(borders) / len(borders)
    above = [1.0, *(sigmoid(score - (border - middle)) for border in borders), 0.0]
    return {label: above[k] - above[k + 1] for k, label in enumerate(sorted(labels, key=float))}


@pytest.mark.slow
def test_grades_are_differences_of_sigmoids(sample, tmp_path, fork_server):
    recipe = RecipeRun(PAGE, sample, tmp_path, fork_server)
    with recipe.forks:
        recipe.forks.run([*recipe.train("made"), "--lr", "3e-3", "--epochs", "6"])
        best, test = recipe.folder / "output/made/checkpoints/best", recipe.folder / "dataset/reviews/test.jsonl"
        flags = ["--checkpoint", best, "--data_path", "dataset/reviews", "--predict_output", "labelled.jsonl"]
        recipe.forks.run(["main.py", "--do_predict", "--device", "cpu", *flags])
    words, environment = [sys.executable, "-c", SCRIPT, best, test], os.environ | {"PYTHONPATH": str(recipe.copy)}
    options = {"capture_output": True, "text": True, "check": True}
    found = json.loads(subprocess.run(words, cwd=recipe.folder, env=environment, **options).stdout)
    labels, gaps = found["labels"], found["gaps"]
    assert len(gaps) == len(labels) - 2 == 3 and any(abs(gap) > 1e-4 for gap in gaps)  # they were trained
    assert found["finite"]
    ten, scores, logits = found["ten"]
    assert ten[:3] == ["1", "10", "2"]
    for score, row in zip(scores, logits):
        assert dict(zip(ten, map(exp, row))) == pytest.approx(grades(score, [0.0] * 8, ten), abs=1e-5)
    rows = [json.loads(line) for line in (recipe.folder / "labelled.jsonl").read_text(encoding="utf-8").splitlines()]
    gold = [json.loads(line)["stars"] for line in test.read_text(encoding="utf-8").splitlines()]
    losses = []
    for row, label, score, logits in zip(rows, gold, found["scores"], found["logits"]):
        p = grades(score, gaps, labels)
        assert sum(map(exp, logits)) == pytest.approx(1, abs=1e-5) and min(p.values()) > 0
        assert dict(zip(labels, map(exp, logits))) == pytest.approx(p, abs=1e-5)
        assert row["stars"] == max(p, key=p.get)
        assert row["stars_probability"] == pytest.approx(p[row["stars"]], abs=1e-5)
        losses.append(-log(p[label]))
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    off = [abs(int(row["stars"]) - int(label)) for row, label in zip(rows, gold)]
    assert read_json(recipe.folder / "output/made/eval.json")["test"]["stars_mae"] == pytest.approx(sum(off) / len(off))
