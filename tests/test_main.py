"""The command line, in separate processes started in an empty folder, like a user would."""

import csv
import json
import re
import shutil
import signal

import pytest
from conftest import ROOT, read_json
from forks import Forks
from transformers import BertConfig, BertModel

from engine.data.tokenizer import train_tokenizer

FAST = ["--hidden_size", 32, "--num_layers", 1, "--epochs", 1]


@pytest.mark.slow
def test_first_command_works_after_the_clone(command, tmp_path):
    done = command("main.py", "--do_train", "--do_eval", "--do_predict", *FAST, fresh=True)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "output/sample"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "output"
    ]  # the sample is written to the repository, not here
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "args.json",
        "train.log",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "eval.json",
        "predictions.csv",
        "report.html",
    }
    scores = read_json(run / "eval.json")
    assert set(scores) == {"dev", "test"}
    assert set(scores["test"]) >= {
        "intent_accuracy",
        "intent_macro_f1",
        "slots_precision",
        "slots_recall",
        "slots_f1",
        "sentence_accuracy",
    }
    gold = [json.loads(line) for line in (ROOT / "dataset/sample/test.jsonl").read_text(encoding="utf-8").splitlines()]
    with open(run / "predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [example["id"] for example in gold]
    accuracy = sum(row["intent"] == example["intent"] for row, example in zip(rows, gold)) / len(gold)
    assert accuracy == pytest.approx(scores["test"]["intent_accuracy"])
    for row in rows:
        for entity in json.loads(row["slots"]):
            assert row["text"][entity["start"] : entity["end"]] == entity["text"]
    first, second, *_, report = [line for line in done.stderr.splitlines() if not re.match(r"\S+   \d\. ", line)]
    assert " template " in first and "training a tokenizer" in second and report.endswith("report.html")
    assert done.stderr.count("predictions in") == 1  # each message once, on the console

    (tmp_path / "mine.txt").write_text("play Yesterday by Adele\n\n明天北京天气怎么样\n", encoding="utf-8")
    done = command("main.py", "--do_predict", "--predict_file", "mine.txt", "--predict_output", "mine.jsonl")
    assert done.returncode == 0, done.stderr
    labelled = [json.loads(line) for line in (tmp_path / "mine.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in labelled] == ["play Yesterday by Adele", "", "明天北京天气怎么样"]
    assert [len(row["slots_tags"]) for row in labelled] == [4, 0, 9]

    for name, body in (("a.csv", "text\n1\n"), ("a.tsv", "query\n1\n"), ("a.jsonl", '{"text": "1"}\n')):
        (tmp_path / name).write_text(body)
        assert command("main.py", "--do_predict", "--predict_file", name, "--predict_output", "b.csv").returncode == 0
        assert (tmp_path / "b.csv").read_text().splitlines()[1].startswith("0,1,")

    done = command("main.py", "--do_train", *FAST)
    assert done.returncode == 2 and "--resume" in done.stderr and "--model_version" in done.stderr
    done = command("main.py", "--do_train", "--resume", *FAST, "--lr", "0.01")
    assert done.returncode == 2 and "lr was 0.001, is 0.01" in done.stderr


def test_original_command_line_runs(command, sample, tmp_path):
    words = train_tokenizer(lambda: ["play a song", "播放音乐"] * 3, 200)
    BertModel(
        BertConfig(
            vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
        )
    ).save_pretrained(tmp_path / "bert")
    words.save_pretrained(tmp_path / "bert")
    done = command(
        *(
            "main.py",
            "--pretrain_model_path=bert",
            "--device=cpu",
            "--do_train=True",
            "--batch_size=64",
            "--lr=5e-5",
            "--epochs=100",
        ),
        *("--use_fgm=True", f"--data_path={sample}", "--model_version=v1", "--warm_up_epochs=5", "--random_seed=666"),
        *(
            "--earlystop_patient=2",
            "--save_epoch=50",
            "--model_output_path=models",
            "--log_output_path=logs",
            "--log_output_file=a.log",
            "--lrf=0.01",
        ),
    )
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "logs/a.log").read_text()
    assert (tmp_path / "models/v1/checkpoints/best/weights.safetensors").exists() and "peak rates" in log
    version = (ROOT / "VERSION").read_text().strip()
    assert f"INFO version {version}: " in log.splitlines()[0] and "--save_epoch=50" in log.splitlines()[0]
    assert command("main.py", "--version").stdout.strip() == version
    assert read_json(tmp_path / "models/v1/args.json")["version"] == version


MISTAKES = {
    "nothing to do": ([], "--do_train"),
    "no such data": (["--do_train", "--data_path", "nowhere"], "nowhere"),
    "no such model folder": (
        ["--do_train", "--pretrain_model_path", "./nowhere", "--data_path", "SAMPLE"],
        "./nowhere",
    ),
    "no such hub model": (
        ["--do_train", "--pretrain_model_path", "nobody/no-model", "--data_path", "SAMPLE"],
        "nobody/no-model",
    ),
    "no such device": (["--do_train", "--device", "cuda:9", "--data_path", "SAMPLE"], "cuda:9"),
    "no such predict file": (["--do_predict", "--predict_file", "nowhere.txt"], "nowhere.txt"),
    "no checkpoint": (["--do_eval", "--data_path", "SAMPLE"], "checkpoints/best"),
    "no such checkpoint": (["--do_predict", "--checkpoint", "nowhere", "--predict_file", "texts.txt"], "nowhere"),
    "unwritable": (["--do_train", "--data_path", "SAMPLE", "--output_dir", "texts.txt"], "texts.txt"),
    "unknown task": (["--do_train", "--data_path", "SAMPLE", "--task_weights", "mood=1"], "mood"),
    "too long": (
        ["--do_train", "--data_path", "SAMPLE", "--pretrain_model_path", "SMALL", "--max_length", 999],
        "--max_length=999",
    ),
    "too many layers": (["--do_train", "--data_path", "SAMPLE", "--freeze_layers", 9], "--freeze_layers=9"),
    "unknown score": (["--do_train", "--data_path", "SAMPLE", "--monitor", "bleu", *FAST], "--monitor=bleu"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_bad_input_is_a_one_line_error_with_exit_code_2(name, sample, tmp_path, monkeypatch, capsys):
    import main
    from config import Config
    from engine.errors import UserError
    from engine.run.command_line import parse_args

    (tmp_path / "texts.txt").write_text("a\n")
    if "SMALL" in MISTAKES[name][0]:
        words = train_tokenizer(lambda: ["a b"] * 3, 100)
        BertModel(
            BertConfig(vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
        ).save_pretrained(tmp_path / "small")
        words.save_pretrained(tmp_path / "small")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    flags, named = MISTAKES[name]
    flags = [{"SAMPLE": str(sample), "SMALL": "./small"}.get(flag, str(flag)) for flag in flags]
    with pytest.raises(UserError) as error:
        main.main(parse_args(Config, flags))
    assert named in str(error.value) and "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_input_error_reaches_the_shell(command):
    for flags in (["--do_train", "--data_path", "nowhere"], ["--do_eval", "--batch_size", "0"], ["--no_such_flag"]):
        done = command("main.py", *flags)
        assert (
            done.returncode == 2
            and done.stderr.startswith("error: ")
            and done.stderr.count("\n") == 1
            and not done.stdout
        )


def test_help_and_errors_import_nothing_heavy(command):
    done = command("main.py", "--help", env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.returncode == 0 and "--pretrain_model_path" in done.stdout
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "transformers", "datasets", "sklearn", "numpy"}


def test_sh_scripts_have_unix_endings_and_parse():
    import subprocess

    for name in ("run.sh", "test.sh", "setup_env.sh", ".ci/run"):
        assert b"\r" not in (ROOT / name).read_bytes()
        subprocess.run(["sh", "-n", ROOT / name], check=True)


def test_ruff():
    import subprocess
    import sys

    for check in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *check, "."], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_mypy(tmp_path):
    import subprocess
    import sys

    words = [sys.executable, "-m", "mypy", "--cache-dir", tmp_path]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_without_tools_it_trains_resumes_evaluates_and_predicts(sample, tmp_path, fork_server):
    """In a copy without tools/, a run that is killed and resumed is bit-exact with an uninterrupted run in the full
    repository."""
    copy, work = tmp_path / "copy", tmp_path / "work"
    left_out = shutil.ignore_patterns(".*", "output", "__pycache__", "tests", "benchmarks", "docs", "tools")
    shutil.copytree(ROOT, copy, ignore=left_out)
    work.mkdir()
    flags = ["--data_path", sample, "--batch_size", 8, "--vocab_size", 400, "--save_steps", 1, "--device", "cpu", *FAST]
    train = ["main.py", "--do_train", "--do_eval", "--do_predict", "--resume", *flags, "--model_version"]
    with Forks(ROOT, work, fork_server) as forks:
        forks.run([*train, "whole"])
    with Forks(copy, work, fork_server) as forks:
        forks.run([*train, "cut"], code=-signal.SIGKILL, kill_at=[str(work / "output/cut/checkpoints"), 4])
        printed = forks.run([*train, "cut"])
        assert "resumed from" in printed and "no report: tools/report is missing" in printed
        printed = forks.run(["main.py", "--debug", *flags], code=2)
        assert printed.splitlines()[-1].startswith("error: --debug needs tools/check")
    for name in ("checkpoints/best/weights.safetensors", "metrics.jsonl", "eval.json", "predictions.csv"):
        assert (work / "output/cut" / name).read_bytes() == (work / "output/whole" / name).read_bytes(), name
    assert not (work / "output/cut/report.html").exists() and (work / "output/whole/report.html").exists()
