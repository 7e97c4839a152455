"""docs/cookbook/hierarchy.md: predictions compared with enumeration of all pairs of labels."""

import json
import os
import subprocess
import sys
from math import log

import pytest
from conftest import ROOT
from test_cookbook import RecipeRun

PAGE = ROOT / "docs/cookbook/hierarchy.md"
TOPICS = {"sport": ["tennis", "rowing"], "arts": ["opera", "dance"]}

# Runs in the edited copy: prints the probabilities of each head's own logits, and the losses with dropout off
SCRIPT = """
import json, sys
import torch
from data_loader import MyDataset
from engine.model.pooling import text_vectors
from model_utils import load_with_featurizer
model, featurizer, _ = load_with_featurizer(sys.argv[1])
data = MyDataset(sys.argv[2], featurizer)
batch = data.batch(range(len(data)))
with torch.no_grad():
    layer = model.eval().output_layer
    vectors = text_vectors(model.encode(batch.inputs), batch.inputs, layer.pooling)
    own = {name: head(vectors, batch.inputs).double().softmax(1).tolist() for name, head in layer.heads.items()}
    evaluated = model(batch.inputs, batch.labels).losses
    for module in model.modules():
        module.training = isinstance(module, type(model))
    trained = model(batch.inputs, batch.labels).losses
losses = [{name: loss.item() for name, loss in losses.items()} for losses in (evaluated, trained)]
print(json.dumps({"own": own, "losses": losses, "names": {n: h.task.labels for n, h in layer.heads.items()}}))
"""


def pairs_of(own, names, row):
    """Returns {(section, topic): p(section) p(topic | section)}, normalised over the topics of each section."""
    p = {name: dict(zip(names[name], own[name][row])) for name in names}
    return {
        (section, topic): p["section"][section] * p["topic"][topic] / sum(p["topic"][one] for one in TOPICS[section])
        for section in TOPICS
        for topic in TOPICS[section]
    }


@pytest.mark.slow
def test_predictions_equal_enumeration_of_all_pairs(sample, tmp_path, fork_server):
    recipe = RecipeRun(PAGE, sample, tmp_path, fork_server)
    with recipe.forks:
        recipe.forks.run([*recipe.train("made"), "--lr", "3e-3", "--epochs", "6"])
        best, test = recipe.folder / "output/made/checkpoints/best", recipe.folder / "dataset/sections/test.jsonl"
        flags = ["--checkpoint", best, "--data_path", "dataset/sections", "--predict_output", "labelled.jsonl"]
        recipe.forks.run(["main.py", "--do_predict", "--device", "cpu", *flags])
        exported = ["tools.export", *flags[:4], "--output_dir", "shipped"]
        assert "12 of 12 dev examples have the same predictions" in recipe.forks.run(exported)
        tricks = "--use_rdrop --use_smart --dropout_samples 2 --teacher output/made --epochs 1".split()
        recipe.forks.run([*recipe.train("student"), *tricks])
    environment = os.environ | {"PYTHONPATH": str(recipe.copy)}
    words, options = [sys.executable, "-c", SCRIPT, best, test], {"capture_output": True, "text": True, "check": True}
    found = json.loads(subprocess.run(words, cwd=recipe.folder, env=environment, **options).stdout)
    rows = [json.loads(line) for line in (recipe.folder / "labelled.jsonl").read_text(encoding="utf-8").splitlines()]
    gold = [json.loads(line) for line in test.read_text(encoding="utf-8").splitlines()]
    expected = {"section": [0.0, 0.0], "topic": [0.0, 0.0]}
    for number, (row, labels) in enumerate(zip(rows, gold)):
        pairs = pairs_of(found["own"], found["names"], number)
        assert sum(pairs.values()) == pytest.approx(1)
        section, topic = max(pairs, key=pairs.get)
        assert (row["section"], row["topic"]) == (section, topic) and topic in TOPICS[section]
        assert row["topic_probability"] == pytest.approx(pairs[section, topic], abs=2e-6)
        best_of = {one: max(p for (s, _), p in pairs.items() if s == one) for one in TOPICS}
        assert row["section_probability"] == pytest.approx(best_of[section] / sum(best_of.values()), abs=2e-6)
        gold_pair = pairs[labels["section"], labels["topic"]]
        of_section = sum(p for (s, _), p in pairs.items() if s == labels["section"])
        terms = {
            "section": (best_of[labels["section"]] / sum(best_of.values()), of_section),
            "topic": (gold_pair, gold_pair / of_section),  # in training the section is certain
        }
        for name, both in terms.items():
            expected[name] = [total - log(p) / len(gold) for total, p in zip(expected[name], both)]
    assert len(rows) == len(gold) > 10
    assert sum(row["topic"] == labels["topic"] for row, labels in zip(rows, gold)) > 0.6 * len(gold)
    for mode, losses in enumerate(found["losses"]):
        assert losses == pytest.approx({name: expected[name][mode] for name in expected}, rel=1e-4)
