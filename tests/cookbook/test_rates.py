"""docs/cookbook/rates.md: the rate and weight decay of each parameter, compared with an independent implementation."""

import json

import pytest
import torch
from conftest import ROOT, read_json
from safetensors.torch import load_file
from test_cookbook import RecipeRun

from engine.train.optimization import describe_rates, merge_groups

PAGE = ROOT / "docs/cookbook/rates.md"


@pytest.mark.slow
def test_each_parameter_has_the_rate_and_the_decay_of_its_name(sample, tmp_path, fork_server):
    recipe = RecipeRun(PAGE, sample, tmp_path, fork_server)
    flags = [*recipe.train("run"), "--lr=1e-3", "--warmup_epochs=0.5", "--scheduler=linear", "--lrf=0.1", "--epochs=1"]
    with recipe.forks:
        printed = recipe.forks.run(flags)
    assert "peak rates 0.0e+00 (1 tensor: encoder.embeddings.word_embeddings.weight), 1.0e-03" in printed
    logged = [json.loads(line) for line in (recipe.folder / "output/run/metrics.jsonl").read_text().splitlines()]
    assert all(row["lr"] > 0 for row in logged if "lr" in row)  # of trainable weights
    first, *_, last = sorted((recipe.folder / "output/run/checkpoints").glob("step_*"), key=lambda path: path.name)
    groups = read_json(last / "training.json")["optimizer"]
    found = {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}
    done = int(last.name.removeprefix("step_"))
    factor = 0.1 + 0.9 * (1 - (done - 4) / (8 - 4))  # 60 rows in batches of 8, half of the 8 steps are warmup
    before, after = (load_file(path / "weights.safetensors") for path in (first, last))
    after = {name: weights for name, weights in after.items() if not name.endswith("temperature")}  # buffers
    assert len(found) == len(after) and len(groups) == 9
    for name, weights in after.items():
        lr = 2e-3 if ".layer.1." in name else 5e-3 if ".slots." in name else 0 if "word_emb" in name else 1e-3
        decays = weights.ndim > 1 and not name.endswith("bias") and ".slots." not in name
        assert found[name] == (pytest.approx(lr * factor), 0.01 if decays else 0), name
        assert torch.equal(weights, before[name]) == (lr == 0) or not weights.any(), name


@pytest.mark.parametrize("options", [{}, {"betas": (0.5, 0.9)}])
def test_merged_groups_train_like_one_group_per_parameter(options):
    """Weights are bit-exact after some steps, with one group per distinct set of options."""
    weights = []
    for merged in (False, True):
        generator = torch.Generator().manual_seed(0)
        parameters = [torch.randn(3, 4, generator=generator, requires_grad=True) for _ in range(6)]
        groups = [
            {"params": [p], "name": f"part_{n % 2}.{n}", "layer": n, "lr": 0.1 / (1 + n % 2)} | (options if n else {})
            for n, p in enumerate(parameters)
        ]
        optimizer = torch.optim.AdamW(groups, lr=1.0)
        if merged:
            merge_groups(optimizer)
            assert [len(group["params"]) for group in optimizer.param_groups] == ([1, 3, 2] if options else [3, 3])
            assert [name for group in optimizer.param_groups for name in group["names"]][-1] == (
                "part_0.4" if options else "part_1.5"
            )
            assert describe_rates(optimizer) == "peak rates 5.0e-02 (3 tensors: part_1), 1.0e-01 (3 tensors: part_0)"
        for _ in range(3):
            for p in parameters:
                p.grad = torch.randn(3, 4, generator=generator)
            optimizer.step()
        weights.append(parameters)
    assert all(torch.equal(*pair) for pair in zip(*weights))
