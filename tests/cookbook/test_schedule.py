"""docs/cookbook/schedule.md: the rates of the page, and schedules that depend on the dev score, compared with torch's
ReduceLROnPlateau on the logged scores."""

import json
import math

import pytest
import test_trainer
import torch
from conftest import ROOT, read_json
from test_cookbook import RecipeRun
from test_trainer import fingerprints, make_trainer, stop_after

import data_process
import main
import metrics
from config import Config, seed_torch
from engine.errors import UserError
from engine.run.signals import Interrupted
from engine.train import checkpoint

PAGE = ROOT / "docs/cookbook/schedule.md"
PLATEAU = torch.optim.lr_scheduler.ReduceLROnPlateau
BUILT_IN = dict(factor=0.5, patience=1, threshold=0, eps=0)
STEPS = 8  # per epoch: 60 rows in batches of 8


def lines_of(config):
    return [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]


def rates_by_hand(lines, monitor, mode, peak, warmup, **options):
    """Returns the rate of each step, from torch's scheduler on the logged dev scores, after a linear warmup."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    scheduler, rates = PLATEAU(optimizer, mode, **options), []
    for line in lines:
        if f"dev_{monitor}" in line:
            scheduler.step(line[f"dev_{monitor}"])
        elif "lr" in line:
            rates.append(optimizer.param_groups[0]["lr"] * min(1.0, (len(rates) + 1) / (warmup + 1)))
    return rates


def run(trainer):
    trainer.resume()
    trainer.train()


@pytest.mark.slow
def test_cosine_restarts_begin_at_the_peak(sample, tmp_path, fork_server):
    recipe = RecipeRun(PAGE, sample, tmp_path, fork_server)
    with recipe.forks:
        recipe.forks.run([*recipe.train("run"), "--lr=1e-3", "--log_steps=1", "--warmup_epochs=0.5", "--lrf=0.2"])
    lines = [json.loads(line) for line in (recipe.folder / "output/run/metrics.jsonl").read_text().splitlines()]
    found = {line["step"] - 1: line["lr"] for line in lines if "lr" in line}
    period = (2 * STEPS - 4) / 2
    expected = [(step + 1) / 5 for step in range(4)]
    expected += [0.2 + 0.4 * (1 + math.cos(math.pi * (step % period) / period)) for step in range(12)]
    assert [found[step] for step in range(16)] == pytest.approx([1e-3 * factor for factor in expected])


@pytest.mark.parametrize(
    "options, mode",
    [
        (dict(lr=1e-6), "max"),  # the score does not change: a reduction every second epoch
        (dict(lr=3e-3, warmup_epochs=4.5), "max"),  # reductions within the warmup
        (dict(lr=2e-2, monitor="loss", lrf=0.3), "min"),
        (dict(lr=3e-3, monitor="intent_macro_f1", gradient_accumulation_steps=3, precision="bf16"), "max"),
    ],
)
def test_rates_equal_torch_on_the_logged_scores(options, mode, tiny):
    options = dict(scheduler="plateau", epochs=8, log_steps=1, warmup_epochs=0.5, early_stop_patience=0) | options
    trainer = make_trainer(tiny(**options))
    run(trainer)
    config, steps = trainer.config, -(-STEPS // options.get("gradient_accumulation_steps", 1))
    lines, warmup = lines_of(config), round(config.warmup_epochs * steps)
    found = [line["lr"] for line in lines if "lr" in line]
    expected = rates_by_hand(lines, trainer.monitor, mode, config.lr, warmup, min_lr=config.lrf * config.lr, **BUILT_IN)
    assert found == expected and len(found) == 8 * steps and found[-1] < max(found)
    groups = trainer.optimizer.param_groups
    assert len({group["lr"] / group["initial_lr"] for group in groups}) == 1 and len(groups) > 3


def test_plateau_minimises_a_default_score_for_which_lower_is_better(tmp_path, monkeypatch):
    (tmp_path / "raw.csv").write_text("text,score\n" + "".join(f"{i} apples,{i / 3}\n" for i in range(40)))
    data_process.process(data_process.DataConfig(input=str(tmp_path / "raw.csv"), output_dir=str(tmp_path / "data")))
    config = Config(do_train=True, data_path=str(tmp_path / "data"), output_dir=str(tmp_path), scheduler="plateau")
    monkeypatch.setitem(metrics.MAIN, "regression", "mae")
    device = torch.device("cpu")
    assert main.build_trainer(main.load_data(config, device), device).scheduler.on_score.mode == "min"


# {where a run of 8 steps per epoch stops: the step from which it resumes}
STOPS = {"mid-epoch": 19, "in the evaluation": 24, "between evaluation and save": 16, "after the save": 24}


def stop(trainer, where, monkeypatch):
    """Makes the trainer stop at this point, in the third epoch or after it."""
    save, score = trainer.save_model, trainer.score_dev

    def saved(name, resumable=False):
        ends = resumable and trainer.progress.epoch == 3
        if ends and where == "between evaluation and save":
            raise Interrupted(9)  # as if killed: this step is not saved
        save(name, resumable)
        if ends and where == "after the save":
            trainer.stop.number = 15

    def scored():
        if where == "in the evaluation" and trainer.progress.epoch == 2:
            trainer.stop.number = 15
        return score()

    monkeypatch.setattr(trainer, "save_model", saved)
    monkeypatch.setattr(trainer, "score_dev", scored)
    if where == "mid-epoch":
        stop_after(trainer, 2 * STEPS + 3, monkeypatch)


@pytest.mark.parametrize("where", STOPS)
def test_a_stopped_run_makes_the_same_decisions(where, tiny, monkeypatch):
    options = dict(scheduler="plateau", epochs=6, lr=1e-6, log_steps=1, early_stop_patience=0, warmup_epochs=0.5)
    whole, stopped = (tiny(model_version=name, **options) for name in ("whole", "stopped"))
    run(make_trainer(whole))
    trainer = make_trainer(stopped)
    stop(trainer, where, monkeypatch)
    with pytest.raises(Interrupted):
        run(trainer)
    seed_torch(99)
    trainer = make_trainer(stopped)
    assert checkpoint.newest_intact(trainer.checkpoints)[0].name == f"step_{STOPS[where]:08d}"
    run(trainer)
    assert fingerprints(stopped) == fingerprints(whole)
    assert lines_of(stopped)[-2]["lr"] == 2.5e-7  # halved after the third and the fifth epoch


def test_an_edited_build_scheduler_may_return_any_scheduler_that_needs_a_score(tiny, monkeypatch):
    own = dict(factor=0.3, patience=0, cooldown=1)
    monkeypatch.setattr(test_trainer, "build_scheduler", lambda optimizer, *_: PLATEAU(optimizer, "max", **own))
    trainer = make_trainer(tiny(epochs=6, lr=1e-6, log_steps=1, early_stop_patience=0))
    run(trainer)
    lines = lines_of(trainer.config)
    expected = rates_by_hand(lines, trainer.monitor, "max", 1e-6, round(0.6 * STEPS), **own)
    assert [line["lr"] for line in lines if "lr" in line] == expected and expected[-1] < 1e-6


def test_a_scheduler_with_the_wrong_mode_is_rejected(tiny, monkeypatch):
    monkeypatch.setattr(test_trainer, "build_scheduler", lambda optimizer, *_: PLATEAU(optimizer))
    with pytest.raises(UserError, match=r"sentence_accuracy.* is better if it is higher; .* mode='max'"):
        make_trainer(tiny())
    make_trainer(tiny(monitor="loss"))


def test_rates_of_unfrozen_layers_are_reduced_together(tiny, tmp_path, monkeypatch):
    made = make_trainer(tiny(model_version="made", num_layers=3))
    for part in (made.model.encoder, made.tokenizer):
        part.save_pretrained(tmp_path / "bert")
    options = dict(pretrain_model_path=str(tmp_path / "bert"), unfreeze_layers=1, layer_decay=0.5, head_lr=1e-6)
    options |= dict(scheduler="plateau", epochs=6, lr=1e-6, log_steps=1, early_stop_patience=0)
    whole, stopped = (tiny(model_version=name, **options) for name in ("whole", "stopped"))
    trainer = make_trainer(whole)
    run(trainer)
    lines, groups = lines_of(whole), trainer.optimizer.param_groups
    expected = rates_by_hand(lines, trainer.monitor, "max", 1e-6, round(0.6 * STEPS), min_lr=1e-8, **BUILT_IN)
    assert [line["lr"] for line in lines if "lr" in line] == expected and expected[-1] < 1e-6
    assert sorted({group["lr"] for group in groups}) == pytest.approx([2.5e-7 / 8, 2.5e-7 / 4, 2.5e-7 / 2, 2.5e-7])
    trainer = make_trainer(stopped)
    stop(trainer, "mid-epoch", monkeypatch)
    with pytest.raises(Interrupted):
        run(trainer)
    run(make_trainer(stopped))
    assert fingerprints(stopped) == fingerprints(whole)


def test_the_constant_rate_of_swa_stays_constant(tiny):
    options = dict(scheduler="plateau", use_swa=True, swa_start=0.5, epochs=8, lr=1e-6, log_steps=1)
    trainer = make_trainer(tiny(early_stop_patience=0, **options))
    run(trainer)
    rates = [line["lr"] for line in lines_of(trainer.config) if "lr" in line]
    assert len(set(rates[4 * STEPS :])) == 1 and rates[4 * STEPS] == 5e-7


@pytest.mark.slow
def test_several_processes_reduce_together_and_resume_in_one(sample, tmp_path, forks):
    words = "main.py --do_train --scheduler plateau --lr 1e-6 --batch_size 4 --log_steps 1 --early_stop_patience 0"
    words += (
        " --device cpu --hidden_size 32 --num_layers 1 --vocab_size 500 --warmup_epochs 0.5 --force_resume --resume"
    )
    words = [*words.split(), "--data_path", sample, "--output_dir", tmp_path, "--model_version", "run", "--epochs"]
    forks[0].several(2, [*words, 4], tmp_path)
    forks[0].run([*words, 6, "--output_dir", tmp_path])
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    options = dict(min_lr=0.01 * 1e-6, **BUILT_IN)
    rates = [line["lr"] for line in lines if "lr" in line]
    assert rates == rates_by_hand(lines, "sentence_accuracy", "max", 1e-6, 4, **options)
    assert rates[-1] < rates[4 * STEPS - 1] < max(rates)
    last = sorted((tmp_path / "run/checkpoints").glob("step_*"))[-1]
    assert read_json(last / "training.json")["environment"]["processes"] == 1


def test_a_schedule_that_does_not_cover_the_run_is_rejected(tiny, monkeypatch):
    one_cycle = torch.optim.lr_scheduler.OneCycleLR
    for build, message in (
        (lambda *_: None, "must return a torch scheduler, not None"),
        (lambda *_: one_cycle, "must return a torch scheduler, not <class"),
        (lambda optimizer, *_: one_cycle(optimizer, 1e-3, total_steps=5), "ends after 5 of 16 steps"),
    ):
        monkeypatch.setattr(test_trainer, "build_scheduler", build)
        with pytest.raises(UserError, match=message):
            make_trainer(tiny(epochs=2))
