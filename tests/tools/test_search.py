"""tools.search: the syntax of spaces, proposals and pruning, and real searches that are stopped, killed and resumed."""

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, read_json

pytest.importorskip("optuna", reason="pip install -r tools/search/requirements.txt")
sys.path.insert(0, str(ROOT / "benchmarks"))
import ablation

from engine.errors import UserError
from engine.run.command_line import parse_args
from engine.train.optimization import epochs_of
from tools.search import __main__ as search
from tools.search import outcome, picture
from tools.search.finals import FinalStage
from tools.search.study import Study

SMALL = "--hidden_size 32 --num_layers 1 --vocab_size 500 --batch_size 8"
SPACE = "lr=1e-6..1e-2:log pooling=first,mean"


def make_plan(sample, **options):
    return search.make_plan(search.SearchConfig(**{"data_path": str(sample), "options": SMALL, **options}))


# ---- the space -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "space, message",
    [
        ("lrr=1e-4..1e-3", "lrr is not an option of main.py that changes the result; did you mean lr?"),
        ("lr", "'lr' must look like"),
        ("lr=1e-3", "at least two"),
        ("pooling=mean,mean", "at least two"),
        ("lr=fast..1e-3", "'fast' is not a number"),
        ("epochs=3,2.5", "'2.5' is not a whole number"),
        ("epochs=3,auto", "auto cannot be searched"),
        ("use_fgm=True,maybe", "'maybe' is not True or False"),
        ("pooling=first,max", "'max' must be one of auto, first, mean, last"),
        ("pooling=first..mean", "has no range"),
        ("lr=1e-3..1e-4", "the range is empty"),
        ("weight_decay=0..0.1:log", "must start above 0"),
        ("lr=1e-4..1e-3:ln", "only :log may follow"),
        ("lr=1e-4..inf", "'inf' is not finite"),
        ("lr=1e-4..2", "--lr=2.0 must be between 0 and 1"),
        ("dropout=0,1.5", "--dropout=1.5 must be between 0 and 1"),
        ("batch_size=8,16", "batch_size is already set"),
        ("lr=1e-4..1e-3 lr=1e-3..1e-2", "lr is given twice"),
        ("head_lr=1e-4..1e-3 head_multiple=1..10", "head_lr is already set"),
        ("fgm_eps=0.5..2", "no effect without use_fgm or use_pgd"),
        ("random_seed=1,2", "random_seed is not a hyperparameter"),
        ("num_workers=0,2", "not an option of main.py that changes the result"),
        ("layer_decay=0.8..0.95", "need --pretrain_model_path"),
    ],
)
def test_errors_in_the_space_raise_a_one_line_error(space, message, sample):
    with pytest.raises(UserError) as error:
        make_plan(sample, space=space)
    assert message in str(error.value) and "\n" not in str(error.value) and str(error.value).startswith("--space: ")


def test_all_trials_use_the_automatic_number_of_epochs(sample):
    """60 rows take 60 steps per epoch with batches of 1, or 30 with two batches per step. An explicit --epochs is
    unchanged."""
    for more, steps, epochs in (("", 60, 25), ("--epochs auto --gradient_accumulation_steps 2", 30, 50)):
        plan = make_plan(sample, options=f"--batch_size 1 {more}")
        assert plan.flags[-2:] == ["--epochs", str(epochs)] and plan.resolver.base.epochs == epochs
        assert epochs == epochs_of(steps, False)
    plan = make_plan(sample, options="--epochs 4")
    assert plan.flags.count("--epochs") == 1 and plan.resolver.base.epochs == 4


def test_each_error_in_the_space_is_on_its_own_line(sample):
    with pytest.raises(UserError) as error:
        make_plan(sample, space="lrr=1..2 lr=a..b dropout=0..3")
    lines = str(error.value).splitlines()
    assert len(lines) == 3 and all(line.removeprefix("error: ").startswith("--space: ") for line in lines)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"options": "--random_seed 3"}, "--random_seed"),
        ({"options": "--do_predict"}, "--do_predict"),
        ({"options": "--monitor loss"}, "--monitor"),
        ({"options": "--fgm_eps 2"}, "no effect without --use_fgm"),
        ({"options": "'"}, "cannot be read"),
        ({"monitor": "slots_f2"}, "--monitor=slots_f2"),
        ({"data_path": "nowhere"}, "labels.json"),
        ({"pretrain_model_path": "nowhere", "options": ""}, "is not in the cache"),
        ({"seeds": 0}, "--seeds=0"),
        ({"hours": -1.0}, "--hours=-1.0"),
    ],
)
def test_other_invalid_options_raise_a_one_line_error(options, message, sample):
    with pytest.raises(UserError) as error:
        make_plan(sample, **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_points_are_converted_to_options(sample):
    space = "lr=1e-4..1e-3:log head_multiple=3..30:log warmup_share=0..0.5 epochs=4,8 use_fgm=True,False fgm_eps=0.5..2"
    plan = make_plan(sample, space=space)
    resolver = plan.resolver
    assert " ".join(f"{name}={dimension}" for name, dimension in plan.space.items()).startswith(
        "lr=0.0001..0.001:log head_multiple=3..30:log warmup_share=0..0.5 epochs=4,8 use_fgm=True,False"
    )
    point = {"lr": 5e-4, "head_multiple": 4.0, "warmup_share": 0.25, "epochs": 8, "use_fgm": True, "fgm_eps": 1.5}
    values = resolver.values(point)
    assert values == {"lr": 5e-4, "epochs": 8, "use_fgm": True, "fgm_eps": 1.5, "head_lr": 2e-3, "warmup_epochs": 2.0}
    assert "fgm_eps" not in resolver.values(point | {"use_fgm": False})  # because it has no effect
    assert resolver.config(point).head_lr == 2e-3


def test_the_default_space_contains_the_defaults(sample, tmp_path):
    """Tests training from scratch, a pretrained encoder, and options that --options sets."""
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(vocab_size=100, num_hidden_layers=1, intermediate_size=64)).save_pretrained(tmp_path / "model")
    for model, lr, multiple in (("", 1e-3, 1.0), (str(tmp_path / "model"), 7.5e-5, 10.0)):
        plan = make_plan(sample, pretrain_model_path=model, options="")
        space, default = plan.space, plan.resolver.default(plan.space)
        assert default.keys() == space.keys() and (default["lr"], default["head_multiple"]) == (lr, multiple)
        assert space["lr"].low < lr < space["lr"].high
    assert not {"lr", "head_multiple"} & make_plan(sample, options="--lr 1e-3 --head_lr 1e-3").space.keys()


def test_the_default_space_depends_on_the_tasks(sample, tmp_path):
    labels = read_json(sample / "labels.json")
    for task, without in (("intent", "word_pooling"), ("slots", "pooling")):
        folder = tmp_path / task
        shutil.copytree(sample, folder)
        (folder / "labels.json").write_text(json.dumps({task: labels[task]}))
        assert without not in make_plan(folder).space
        with pytest.raises(UserError, match="has no effect"):
            make_plan(folder, space=f"{without}=first,mean")


# ---- the study -------------------------------------------------------------------------------------------------------


def make_study(path, sample, **options):
    space = make_plan(sample, space="lr=1e-5..1e-2:log dropout=0..0.5 pooling=first,mean").space
    return Study(path, space, **{"lower": False, "seed": 1, "startup": 3, "prune_after": 2, **options})


@pytest.mark.parametrize(
    "content",
    [
        b"\x00\x01\xff",
        b"no journal",
        b"{}\n",
        b"[1]\n",
        b'{"op_code": 99}\n',
        b'{"op_code": "a"}\n{',
        b"[" * 99_999 + b"\n",
        None,
    ],
)
def test_other_files_are_not_overwritten(content, sample, tmp_path):
    path = tmp_path / "search.journal"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=r"search\.journal: (is not the journal|cannot be read)"):
        make_study(path, sample)
    if content is not None:
        assert path.read_bytes().startswith(content.rsplit(b"\n", 1)[0])


def objective(params):
    return 1 - abs(np.log10(params["lr"]) + 3) / 10 + 0.01 * (params["pooling"] == "mean")


def test_a_restarted_search_makes_the_same_proposals(sample, tmp_path):
    """Also if the process was killed while writing the journal, which leaves a partial line and a lock."""
    one, other = make_study(tmp_path / "one.journal", sample), None
    for number in range(9):
        params = one.propose(number)
        one.end(one.add(params, values={}, epochs=3), "finished", objective(params))
    path = tmp_path / "other.journal"
    for number in range(9):
        other = make_study(path, sample)
        if number % 3 == 1:
            other.propose(number)  # proposals are not stored
        if number % 3 == 2:
            with open(path, "ab") as file:
                file.write(b'{"op_code":8,"worker')
            os.symlink(path, f"{path}.lock")
            other = make_study(path, sample)
        params = other.propose(number)
        other.end(other.add(params, values={}, epochs=3), "finished", objective(params))
    assert [trial.params for trial in one.trials] == [trial.params for trial in other.trials]
    assert len({str(trial.params) for trial in one.trials}) == 9
    assert make_study(tmp_path / "third.journal", sample, seed=2).propose(0) != one.trials[0].params


def test_proposals_depend_on_the_scores(sample, tmp_path):
    study = make_study(tmp_path / "journal", sample, startup=8)
    for number in range(40):
        params = study.propose(number)
        study.end(study.add(params, values={}, epochs=3), "finished", objective(params))
    distance = [abs(np.log10(trial.params["lr"]) + 3) for trial in study.trials]
    assert np.median(distance[20:]) < 0.5 * np.median(distance[:8])


@pytest.mark.parametrize("lower", [False, True])
def test_trials_are_compared_with_trials_of_equal_length(lower, sample, tmp_path):
    study, sign = make_study(tmp_path / "journal", sample, lower=lower), -1 if lower else 1

    def trial(epochs, scores):
        number = study.add(study.propose(len(study.trials)), values={}, epochs=epochs)
        for epoch, score in enumerate(scores, 1):
            study.report(number, epoch, sign * score)
        return number

    for i in range(5):
        study.end(trial(4, [0.1, 0.5 + i / 100, 0.6, 0.7]), "finished", sign * 0.7)
    assert not study.should_prune(trial(4, [0.0]))  # every trial runs two epochs
    assert study.should_prune(trial(4, [0.0, 0.51])) and not study.should_prune(trial(4, [0.0, 0.53]))
    assert not study.should_prune(trial(8, [0.0, 0.1]))  # no comparable trial
    study.prune_after = None
    assert not study.should_prune(trial(4, [0.0, 0.1]))


def test_the_interval_of_the_gain_matches_the_ablation(sample, tmp_path):
    study = make_study(tmp_path / "journal", sample)
    rng, seeds = np.random.default_rng(3), range(1, 6)
    default, winner = rng.normal(0.8, 0.01, 5), rng.normal(0.85, 0.01, 5)
    for number, scores in ((0, default), (3, winner)):
        for seed, score in zip(seeds, scores):
            study.set(f"final {number} {seed}", {"dev": {"f1": 0.5}})
            study.set(f"test {number} {seed}", {"f1": score, "loss": 1 - score})
    stage = FinalStage(SimpleNamespace(has_test=True), study, [0, 3], seeds, None)
    found = outcome.compare(stage, 3, ["f1", "loss"])
    low, high = ablation.interval(winner - default)
    assert (found["f1"]["low"], found["f1"]["high"]) == pytest.approx((low, high)) and low > 0
    assert found["f1"]["verdict"] == "significant" and found["f1"]["part"] == "test"
    assert found["loss"]["gain"] == pytest.approx(found["f1"]["gain"])  # a lower loss is a gain
    stage.plan.has_test = False
    assert outcome.compare(stage, 3, ["f1"])["f1"]["part"] == "dev"


def test_the_plot_contains_every_trial(sample):
    space = make_plan(sample, space="lr=1e-5..1e-2:log epochs=2,3 dropout=0..0.5").space
    states = ["finished", "pruned", "finished", "failed"]
    trials = [
        {"number": i, "state": state, "score": 0.1 * i, "default": i == 0, "params": {"lr": 1e-4, "dropout": 0.1 * i}}
        for i, state in enumerate(states)
    ]
    tree = xml.fromstring(picture.draw(trials, space, "a<b", False))
    titles = [title.text for title in tree.iter("{http://www.w3.org/2000/svg}title")]
    dots = 3 * (1 + len(["lr", "dropout"]))  # "epochs" is in no trial, and the failed trial has no score
    assert len(titles) == dots + 3 and titles.count("trial 2: 0.2000") == 6  # the best trial also has a ring
    assert not any("nan" in str(element.attrib) for element in tree.iter())


# ---- real searches ---------------------------------------------------------------------------------------------------


def flags(sample, epochs=5, **options):
    options = {"data_path": sample, "results": "results", "space": SPACE, "monitor": "loss", "jobs": 2, **options}
    return [f"--options={SMALL} --epochs {epochs}", *(f"--{name}={value}" for name, value in options.items())]


def rows_of(folder):
    """Returns the rows of trials.csv without durations."""
    rows = list(csv.DictReader((folder / "trials.csv").read_text(encoding="utf-8").splitlines()))
    return [{name: cell for name, cell in row.items() if "seconds" not in name} for row in rows]


@pytest.mark.slow
def test_a_finished_search_is_not_repeated(sample, command, tmp_path, monkeypatch):
    """Runs two parallel trials, then the same command again, another search in the same folder, and one without
    Optuna."""
    words = flags(sample, epochs=2, trials=2, finalists=0)
    done = command("tools.search", *words)
    assert done.returncode == 0, done.stderr
    found = read_json(tmp_path / "results/search.json")
    first, second = rows_of(tmp_path / "results")
    assert (first["default"], first["options"], first["lr"], first["pooling"]) == ("True", "", "0.001", "first")
    assert second["options"].startswith("--lr=") and float(second["lr"]) != 0.001
    for number, row in enumerate((first, second)):
        records = (tmp_path / f"results/runs/000{number}/metrics.jsonl").read_text().splitlines()
        losses = [record["dev_loss"] for record in map(json.loads, records) if "dev_loss" in record]
        assert [float(row["epoch_1"]), float(row["epoch_2"])] == losses and float(row["dev_loss"]) == min(losses)
        assert found["trials"][number]["seconds"] > 0 and found["trials"][number]["cpu_seconds"] > 0
    args = read_json(tmp_path / "results/runs/0001/args.json")
    assert args["lr"] == float(second["lr"]) and args["pooling"] == second["pooling"] and args["epochs"] == 2
    assert not list((tmp_path / "results").rglob("eval.json")) and not list((tmp_path / "results").rglob("checkpoints"))
    assert done.stdout.splitlines()[-1] == found["command"] and "2 finished" in done.stdout

    monkeypatch.chdir(tmp_path)
    journal = (tmp_path / "results/search.journal").read_bytes()
    assert search.main(parse_args(search.SearchConfig, words)) == 0
    assert rows_of(tmp_path / "results") == [first, second]
    assert (tmp_path / "results/search.journal").read_bytes().startswith(journal) and len(
        os.listdir("results/runs")
    ) == 4
    for changed, message in (
        ({"space": "lr=1e-6..1e-2:log"}, "space: pooling was first,mean, is None"),
        ({"seed": 1}, "seed was"),
    ):
        with pytest.raises(UserError, match=f"results contains another search .{message}.*choose another folder with"):
            search.main(parse_args(search.SearchConfig, flags(sample, epochs=2, trials=2, **changed)))
    (tmp_path / "without").mkdir()
    (tmp_path / "without/optuna.py").write_text("raise ModuleNotFoundError(name='optuna')")
    lacking = command("tools.search", *words, env={"PYTHONPATH": str(tmp_path / "without")})
    assert lacking.returncode == 2 and "pip install -r tools/search/requirements.txt" in lacking.stderr
    assert len(lacking.stderr.strip().splitlines()) == 1


def run_search(command, folder, *words):
    """Runs a complete search without a time limit, because the machine may be busy."""
    return command("tools.search", *words, cwd=folder)


@pytest.mark.slow
def test_poor_trials_are_pruned_and_the_winner_is_scored(sample, command, tmp_path):
    done = run_search(command, tmp_path, *flags(sample, trials=8, startup=4, finalists=2, seeds=5))
    assert done.returncode == 0, done.stderr
    found, rows = read_json(tmp_path / "results/search.json"), rows_of(tmp_path / "results")
    pruned = [row for row in rows if row["state"] == "pruned"]
    assert pruned and all(row["epoch_2"] and not row["epoch_5"] for row in pruned)
    assert found["cost"]["pruning_saved_seconds_estimate"] > 0 and "an estimate" in done.stdout
    best = sorted((float(row["dev_loss"]), int(row["number"])) for row in rows if row["state"] == "finished")
    others = [number for _, number in best if number][:2]
    assert [finalist["number"] for finalist in found["finalists"]] == [0, *others]
    means = {f["number"]: np.mean([dev["loss"] for dev in f["dev"]]) for f in found["finalists"]}
    winner = found["winner"]
    assert winner == min(means, key=means.get) != 0
    scored = {path.parent.name for path in (tmp_path / "results").rglob("eval.json")}
    assert scored == {f"final-{number:04d}-seed-{seed}" for number in (0, winner) for seed in range(1, 6)}
    sides = [
        [
            read_json(tmp_path / f"results/runs/final-{number:04d}-seed-{seed}/eval.json")["test"]["loss"]
            for seed in range(1, 6)
        ]
        for number in (0, winner)
    ]
    low, high = ablation.interval(np.subtract(*sides))
    gain = found["gain_over_default"]["loss"]
    assert (gain["low"], gain["high"]) == pytest.approx((low, high)) and gain["verdict"] == ablation.verdict(
        (low, high)
    )
    assert f"test loss: default {np.mean(sides[0]):.4f}" in done.stdout
    script, *words = shlex.split(done.stdout.splitlines()[-1])[1:]
    values = found["trials"][winner]["values"]
    run = command(script, *words, "--random_seed", 1)
    assert run.returncode == 0 and read_json(tmp_path / "output/tiny/args.json")["lr"] == values["lr"]
    assert read_json(tmp_path / "output/tiny/eval.json")["test"]["loss"] == sides[1][0]


def start(background, words, until):
    """Starts a search as a process, and returns it when `until()` is true."""
    process = background("tools.search", *words)
    while not until():
        assert process.poll() is None, process.printed()
        time.sleep(0.02)
    return process


def has_epochs(path, epochs):
    return path.exists() and path.read_text().count("dev_loss") >= epochs


@pytest.mark.slow
def test_a_killed_or_stopped_search_ends_with_the_same_trials(sample, tmp_path, command, background):
    words = flags(sample, epochs=3, trials=4, startup=3, jobs=1, finalists=1, seeds=1)
    whole = tmp_path / "whole"
    whole.mkdir()
    done = run_search(command, whole, *words)
    assert done.returncode == 0, done.stderr
    runs = tmp_path / "results/runs"
    process = start(background, words, lambda: has_epochs(runs / "0001/metrics.jsonl", 1))
    process.kill()
    process.wait()
    process = start(background, words, lambda: has_epochs(runs / "0003/metrics.jsonl", 1))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert "stopped after 3 of 4 trials; the same command resumes" in process.printed()
    process = start(background, words, lambda: has_epochs(runs / "final-0000-seed-1/metrics.jsonl", 1))
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    done = run_search(command, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    for name in ("0003", "final-0000-seed-1"):
        log = (runs / f"{name}.log").read_text()
        assert "stopped and saved" in log and "resumed from" in log
    assert rows_of(tmp_path / "results") == rows_of(whole / "results")
    one, other = (read_json(folder / "results/search.json") for folder in (whole, tmp_path))
    assert one["winner"] == other["winner"] and one["gain_over_default"] == other["gain_over_default"]


@pytest.mark.slow
def test_runs_end_when_the_search_is_killed(sample, tmp_path, background):
    if sys.platform != "linux":
        pytest.skip("only Linux signals a process that its parent has ended")
    path = tmp_path / "results/runs/0000/metrics.jsonl"
    process = start(background, flags(sample, epochs=500, trials=1), lambda: has_epochs(path, 1))
    child = int(subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()[0])
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    state = Path(f"/proc/{child}/stat")
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "stopped and saved" in path.with_name("train.log").read_text()


@pytest.mark.slow
def test_failing_trials_are_reported(sample, tmp_path, command):
    space = "freeze_layers=97,98,99,0 lr=1e-4..1e-2:log"  # this encoder has only one layer
    done = run_search(command, tmp_path, *flags(sample, epochs=1, trials=4, finalists=1, seeds=1, space=space))
    states = {(row["state"], "freeze_layers=9" in row["options"]) for row in rows_of(tmp_path / "results")}
    assert done.returncode == 0 and states == {("finished", False), ("failed", True)}, done.stderr
    assert "failed: --freeze_layers=9" in done.stderr
    words = flags(sample, epochs=1, trials=9, space="lr=1e-4..1e-2:log", results="failed")
    done = run_search(command, tmp_path, words[0] + " --freeze_layers=99", *words[1:])
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert re.match("error: all [56] trials failed, the last one with: --freeze_layers=99: this", last), (
        last
    )  # two in parallel


@pytest.mark.slow
def test_the_time_limit_and_data_without_a_test_split(sample, tmp_path, command):
    """Uses a limit that no trial can meet, then a higher limit, on data without a test split."""
    data = tmp_path / "data"
    shutil.copytree(sample, data)
    (data / "test.jsonl").unlink()
    words = flags(data, epochs=2, trials=2, finalists=1, seeds=1)
    done = run_search(command, tmp_path, *words, "--hours", "0.00005")
    assert done.returncode == 2 and "--hours reached; the search ends after 0 of 2 trials" in done.stderr, done.stderr
    assert "no trial finished within --hours; the same command with more --hours resumes" in done.stderr
    done = run_search(command, tmp_path, *words, "--hours", "1")
    found = read_json(tmp_path / "results/search.json")
    assert done.returncode == 0 and found["cost"]["search"]["seconds"] > 0.18
    assert [trial["state"] for trial in found["trials"]] == ["finished"] * 2
    assert not list((tmp_path / "results").rglob("eval.json"))
    if found["winner"]:
        assert found["gain_over_default"]["loss"]["part"] == "dev" and "so they are optimistic" in done.stdout
