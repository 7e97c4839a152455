"""docs/cookbook/digits.md: its network is the same as one in plain torch, and it learns."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import ROOT, read_json
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from test_cookbook import RecipeRun
from torch import nn

PAGE = ROOT / "docs/cookbook/digits.md"


@pytest.mark.slow
def test_digits_without_a_text(sample, tmp_path, fork_server, monkeypatch):
    monkeypatch.setattr("test_cookbook.NUM_DIGITS", None)
    recipe = RecipeRun(PAGE, sample, tmp_path, fork_server)
    with recipe.forks:
        flags = recipe.flags[recipe.flags.index("--do_train") :]  # the page's options, unchanged
        recipe.forks.run(["main.py", *flags, "--data_path", "dataset/digits", "--device", "cpu"])
    run = recipe.folder / "output/digits"
    assert read_json(run / "eval.json")["test"]["target_accuracy"] >= 0.95
    labels = read_json(run / "checkpoints/best/labels.json")["target"]["labels"]
    pixels, digits = load_digits(return_X_y=True)
    with open(run / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = [int(row["id"]) for row in rows]
    logits = plain_network(load_file(run / "checkpoints/best/weights.safetensors"), pixels[numbers]).double()
    probabilities, best = logits.softmax(1).max(1)
    assert [row["target"] for row in rows] == [labels[i] for i in best]
    assert np.allclose([float(row["target_probability"]) for row in rows], probabilities, atol=2e-6)
    assert [row["target_gold"] for row in rows] == [str(digits[number]) for number in numbers]
    train = [json.loads(line) for line in (recipe.folder / "dataset/digits/train.jsonl").read_text().splitlines()]
    assert not {row["id"] for row in train} & {row["id"] for row in rows}


def plain_network(weights, pixels):
    """Computes the logits of the page's network, divided by its temperature, without this repository."""
    layers = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)]
    network = nn.Sequential(*layers)
    for parameter, tensor in zip(network.parameters(), in_order(weights)):
        parameter.data = tensor
    with torch.no_grad():
        logits = network(torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16)
    return logits / weights["output_layer.heads.target.temperature"]


def in_order(weights):
    head = "output_layer.heads.target."
    names = [f"{head}layers.{layer}.{kind}" for layer in (0, 3) for kind in ("weight", "bias")]
    names += [f"{head}linear.{kind}" for kind in ("weight", "bias")]
    assert sorted(weights) == sorted([*names, f"{head}temperature"])
    return [weights[name] for name in names]
