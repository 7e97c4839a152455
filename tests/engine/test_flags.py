"""Flags named as in other scripts, mistyped flags, the --config file, and the choice of GPUs."""

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, read_json

from config import Config
from data_process import DataConfig
from engine.run.command_line import flag_names, parse_args
from engine.run.field_flags import ALIASES, INSTEAD
from engine.run.flags import OneLineParser
from engine.train.optimization import warmup_steps
from tools.export.__main__ import ExportConfig
from tools.report.__main__ import ReportConfig


def parsed(flags):
    return parse_args(Config, flags.split())


def refusal(capsys, flags, config_class=Config):
    """Returns the one-line error for these flags."""
    with pytest.raises(SystemExit) as stop:
        parse_args(config_class, flags.split() if isinstance(flags, str) else flags)
    message = capsys.readouterr().err
    assert stop.value.code == 2 and message.count("\n") == 1
    return message.removeprefix("error: ").removesuffix(" (--help lists all flags)\n")


def test_aliases_of_other_scripts_are_accepted():
    config = parsed(
        "--model_name_or_path bert --max_seq_length 48 --per_device_train_batch_size 8 --per_device_eval_batch_size=9 "
        "--learning_rate 3e-5 --num_train_epochs 3.0 --lr_scheduler_type linear --logging_steps 7 --seed 4 --bf16 "
        "--dataloader_num_workers 1 --label_smoothing_factor 0.1 --early_stopping_patience 2 --output-dir out "
        "--lora-rank=4"
    )
    assert (config.pretrain_model_path, config.max_length, config.batch_size, config.eval_batch_size) == (
        "bert",
        48,
        8,
        9,
    )
    assert (config.lr, config.epochs, config.scheduler, config.log_steps, config.random_seed) == (
        3e-5,
        3,
        "linear",
        7,
        4,
    )
    assert (config.precision, config.num_workers, config.label_smoothing, config.early_stop_patience) == (
        "bf16",
        1,
        0.1,
        2,
    )
    assert (config.output_dir, config.lora_rank) == ("out", 4)
    data = parse_args(DataConfig, "--input a --output-dir b --max_seq_len 9 --model_name_or_path m --seed 3".split())
    assert (data.max_length, data.pretrain_model_path, data.random_seed) == (9, "m", 3)


def test_every_alias_belongs_to_an_option_and_hides_none():
    options = {f.name for f in dataclasses.fields(Config)}
    assert {*ALIASES} <= options and not options & {alias for names in ALIASES.values() for alias in names}
    refused = {flag for flags, _ in INSTEAD for flag in flags.split()}
    assert not refused & {*flag_names(Config)}


@pytest.mark.parametrize(
    "flags, precision",
    [
        ("--fp16", "fp16"),
        ("--bf16=True --fp16 False", "bf16"),
        ("--fp16 False", "fp32"),
        ("--fp16 --precision fp16", "fp16"),
        ("--fp16 False --precision auto", "auto"),
        ("--no-fp16 --no_bf16", "fp32"),
        ("--no_fp16 --bf16", "bf16"),
        ("--no_fp16=false", "fp16"),
        ("", "auto"),
    ],
)
def test_half_precision_switches(flags, precision):
    assert parsed(flags).precision == precision


def test_export_has_its_own_fp16_flag():
    config = parse_args(ExportConfig, "--checkpoint a --output_dir b --fp16".split())
    assert config.fp16 and config.kind == "fp16"


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("--batchsize 3", "--batchsize is not an option; did you mean --batch_size?"),
        ("--use-crff", "--use_crff is not an option; did you mean --use_crf?"),
        ("--learnin_rate=3", "--learnin_rate is not an option; did you mean --learning_rate?"),
        ("--use_wandb", "--use_wandb is not an option here: use --report_to wandb"),
        ("--wandb_projct x", "--wandb_projct is not an option (--help"),
        ("--patience 3", "did you mean --earlystop_patience?"),
        ("--crf", "did you mean --use_crf?"),
        ("-epochs 3", "-epochs is not an option; did you mean --epochs?"),
        ("\u2014fp16", "did you mean --fp16?"),
        ("-ephocs 3", "did you mean --epochs?"),
        ("epochs=3", "did you mean --epochs?"),
        ("--report_to tensorboard wandb", "unexpected argument wandb; quote values that contain spaces"),
        ("--lr abc", "argument --lr: 'abc' is not a number"),
        ("--lr 0", "--lr=0.0 must be between 0 and 1 (exclusive)"),
        ("--config a --config b", "--config is given more than once"),
        ("--config=", "--config: no such file"),
        ("--save_strategy epoch", "use --save_epoch N or --save_steps N"),
        ("--load_best_model_at_end", "leave it out"),
        ("--no_fp16 --precision fp16", "contradict each other"),
        ("--xyzzy", "--xyzzy is not an option"),
        ("--precision bf61", "'bf61' must be one of auto, fp32, bf16, fp16; did you mean bf16?"),
        ("--lr_scheduler_type polynomial", "'polynomial' must be one of cosine, linear, constant"),
        ("--fp16 --bf16", "--fp16=True and --bf16=True contradict each other; choose one"),
        ("--fp16 --precision bf16", "--fp16=True and --precision=bf16 contradict each other; choose one"),
        ("--fp16 False --precision fp16", "--fp16=False and --precision=fp16 contradict each other; choose one"),
        ("--warmup_ratio 0.1 --warmup_epochs 2", "contradict each other; pass only one"),
        ("--warmup_ratio 2", "--warmup_ratio=2.0 must be between 0 and 1"),
        ("--warmup_steps 100", "use --warmup_ratio"),
        ("--resume_from_checkpoint x", "use --resume"),
        ("--train_file x", "run data_process.py, then use --data_path"),
        ("--gpus 0,1", "use `sh run.sh --gpus 0,1 …` or `torchrun --nproc_per_node 2 main.py …`"),
        ("--gpus 0,", "--gpus=0, must be the number of a GPU, or several different numbers: 0,1"),
        ("--gpu_ids 1,01", "--gpus=1,01 must be the number of a GPU"),
        ("--gpus all", "--gpus=all must be the number of a GPU"),
        ("--gpus 0 --device cuda:1", "--gpus=0 and --device=cuda:1 exclude each other"),
    ],
)
def test_unknown_flag_suggests_the_alternative(flags, expected, capsys):
    assert expected in refusal(capsys, flags) + " (--help"


def test_typo_in_a_plain_argparse_command_gets_a_suggestion(capsys):
    parser = OneLineParser()
    parser.add_argument("--port")
    for words, expected in ((["--porrt=3"], "--porrt=3; did you mean --port? ("), (["--xyz", "3"], "--xyz 3 (")):
        with pytest.raises(SystemExit):
            parser.parse_args(words)
        assert capsys.readouterr().err.startswith(f"error: unrecognized arguments: {expected}")


def test_advice_mentions_only_flags_of_the_command(capsys):
    assert refusal(capsys, "--train_file x", DataConfig).endswith("use --input; put several files into one folder")
    assert refusal(capsys, "--warmup_steps 3", DataConfig) == "--warmup_steps is not an option"


def test_warmup_ratio_is_a_share_of_the_epochs():
    for epochs in (3, 10, 7):
        ratio = Config(epochs=epochs, warmup_ratio=0.3)
        assert warmup_steps(ratio, 50) == warmup_steps(Config(epochs=epochs, warmup_epochs=0.3 * epochs), 50) > 0
    assert warmup_steps(Config(epochs=10, warmup_ratio=0.0), 50) == 0
    assert Config(epochs=10, warmup_ratio=0.1, warmup_epochs=1.0).warmup_ratio == 0.1  # like in args.json


def test_help_lists_each_flag_once(capsys):
    with pytest.raises(SystemExit):
        parse_args(Config, ["--help"])
    text = capsys.readouterr().out
    assert text.count("--max_seq_length") == text.count("--fp16") == text.count("--config FILE") == 1


# ---- the file of --config ------------------------------------------------------------------------------------------

YAML = """
# a comment
model_name_or_path: bert
per-device-train-batch-size: 8
learning_rate: 5e-5
num_train_epochs: 3.0
use_crf: no
bf16: true
lora_rank: ~
no_do_train: true
model_version: 0123
"""


def test_flags_override_the_config_file(tmp_path):
    (tmp_path / "a.yaml").write_text(YAML, encoding="utf-8")
    config = parse_args(Config, ["--config", str(tmp_path / "a.yaml"), "--epochs", "4", "--precision=fp16"])
    expected = Config(pretrain_model_path="bert", batch_size=8, lr=5e-5, epochs=4, use_crf=False, precision="fp16")
    assert config == dataclasses.replace(expected, model_version="0123")
    text = json.dumps({"lr": 3e-4, "epochs": None, "use_crf": False, "max_length": 64, "monitor": "loss"})
    for number, content in enumerate((text, "\ufeff" + text, text.replace(",", ",\r\n"))):
        path = tmp_path / f"{number}.json"
        path.write_bytes(content.encode())
        assert parse_args(Config, [f"--config={path}"]) == Config(lr=3e-4, use_crf=False, max_length=64, monitor="loss")
    (tmp_path / "data.yaml").write_text("input: a\noutput_dir: b\nseed: 3\n")
    assert parse_args(DataConfig, ["--config", str(tmp_path / "data.yaml")]).random_seed == 3


def test_command_with_positional_arguments_accepts_a_config_file(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("output-dir: there\n")
    config = parse_args(ReportConfig, ["run", "--config", str(tmp_path / "a.yaml"), "other"])
    assert (config.runs, config.output_dir) == (("run", "other"), "there")
    (tmp_path / "a.yaml").write_text("runs: a\n")
    assert "runs is not an option" in refusal(capsys, ["run", "--config", str(tmp_path / "a.yaml")], ReportConfig)
    assert refusal(capsys, "--output_dir x out/run", DataConfig).startswith("unexpected argument out/run")
    assert "required: RUN" in refusal(capsys, "--output_dir x", ReportConfig)


@pytest.mark.parametrize(
    "content, expected",
    [
        ("bach_size: 3", "bach_size is not an option; did you mean batch_size?"),
        ("warmup_steps: 3", "warmup_steps is not an option here: use --warmup_ratio"),
        ("batch_size: many", "argument --batch_size: 'many' is not a whole number"),
        ("batch_size: 0", "--batch_size=0 must be at least 1"),
        ('{"lr": true}', "argument --lr: 'True' is not a number"),
        ("precision: bf61", "did you mean bf16?"),
        ("fp16: true\nbf16: true", "--fp16=True and --bf16=True contradict each other"),
        ("lr: 1e-3\nlearning_rate: 1e-4", "learning_rate is set twice, also as lr"),
        ("lr: 1e-3\nlr: 1e-3", "lr is set twice"),
        ('{"lr": 1e-3, "lr": 1e-3}', "lr is set twice"),
        ("lr: [1, 2]", "lr must be one value, not a list and not a mapping"),
        ('{"lr": {"a": 1}}', "lr must be one value, not a list and not a mapping"),
        ("- lr", "not a mapping; write rows such as `batch_size: 32`"),
        ("lr: 1\n lr: : 2", "not valid YAML: mapping values are not allowed here in row 2"),
        ('{"lr": 1,}', "not valid JSON: "),
        ("", "contains no options"),
        ("{}", "contains no options"),
        ("# only a comment", "contains no options"),
        ("config: b.yaml", "config is not an option"),
        (b"\x00\x01\xff\xfe", "not a text file in UTF-8"),
        (b"PK\x03\x04", "not valid YAML: control characters"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' + "[" * 100_000, "nested too deeply"),
        ("#" * (2**20 + 1), "larger than 1 MB"),
    ],
)
def test_invalid_config_file_error_names_the_file(content, expected, tmp_path, capsys):
    path = tmp_path / "options.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refusal(capsys, ["--config", str(path)])
    assert message.startswith(f"{path}: ") and expected in message


def test_missing_config_file_is_a_one_line_error(tmp_path, capsys):
    assert "no such file" in refusal(capsys, ["--config", str(tmp_path / "none.yaml")])
    assert "is a directory" in refusal(capsys, ["--config", str(tmp_path)])


def test_command_line_error_does_not_name_the_config_file(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("batch_size: 3\ndropout: 0.2\n")
    assert refusal(capsys, ["--config", str(tmp_path / "a.yaml"), "--batch_size=0"]).startswith("--batch_size=0 must")


@pytest.mark.slow
def test_args_json_repeats_a_run(command, sample, tmp_path):
    """The result is bit-exact. The run's actions, name, paths and machine settings are not used."""
    small = "--hidden_size=32 --num_layers=1 --vocab_size=500 --batch_size=8 --log_steps=2 --freeze_layers=all"
    flags = ["--data_path", sample, *small.split(), "--epochs=2", "--warmup_ratio=0.2", "--model_version=a"]
    flags += ["--device=cpu", "--do_eval"]
    done = command("main.py", "--do_train", "--precision=auto", "--log_output_file=a.log", "--num_workers=1", *flags)
    assert done.returncode == 0, done.stderr
    again = command("main.py", "--config", "output/a/args.json", "--model_version", "b", "--do_train", "--device=cpu")
    assert again.returncode == 0, again.stderr
    a, b = (read_json(tmp_path / f"output/{name}/args.json") for name in "ab")
    assert {name for name in a if a[name] != b[name]} == {"model_version", "do_eval", "log_output_file", "num_workers"}
    assert not (tmp_path / "output/b/eval.json").exists()
    for file in ("metrics.jsonl", "checkpoints/best/weights.safetensors"):
        assert (tmp_path / "output/a" / file).read_bytes() == (tmp_path / "output/b" / file).read_bytes()


# ---- GPUs ----------------------------------------------------------------------------------------------------------


def test_gpus_are_selected_before_torch_is_imported(command, sample):
    """On a machine without it, like this one, the run fails instead of training on the CPU."""
    done = command("main.py", "--do_train", "--data_path", sample, "--gpus", "9999")
    assert done.returncode == 2 and done.stderr.startswith("error: --gpus=9999: torch finds 0 of them; nvidia-smi")


@pytest.fixture
def run_sh(tmp_path):
    """Returns run_sh(flags, gpus=N, …) -> the finished run.sh, in a copy whose python prints its arguments and finds N
    GPUs."""
    for name in ("run.sh", "requirements.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "setup_env.sh").write_text(f'touch set_up\nPYTHON="{tmp_path}/bin/python"\n')
    (tmp_path / "bin").mkdir()

    def write(name, lines):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n" + lines)
        (tmp_path / "bin" / name).chmod(0o755)

    def run(flags, gpus=0, **env):
        write("python", f'[ "$1" != -c ] || {{ echo {gpus}; exit; }}\necho "${{CUDA_VISIBLE_DEVICES-unset}} $*"\n')
        if gpus:
            write("nvidia-smi", "")
        env = {**os.environ, "PATH": f"{tmp_path}/bin:/usr/bin:/bin", **env}
        done = subprocess.run(["sh", "run.sh", *flags.split()], cwd=tmp_path, capture_output=True, text=True, env=env)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.parametrize(
    "flags, gpus, visible, processes",
    [
        ("", 0, "unset", 1),
        ("--epochs 3", 4, "unset", 4),
        ("--num_gpus 2 --epochs 3", 4, "unset", 2),
        ("--epochs 3 --num-gpus=1", 4, "unset", 1),
        ("--gpus 0,2", 4, "0,2", 2),
        ("--epochs 3 --gpus=3", 4, "3", 1),
        ("--gpu_ids 1,2,3 --epochs 3", 0, "1,2,3", 3),
    ],
)
def test_run_sh_starts_one_process_per_gpu(flags, gpus, visible, processes, run_sh, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    code, out, err = run_sh(flags, gpus)
    launch = f"-m torch.distributed.run --standalone --nproc_per_node {processes} " if processes > 1 else ""
    assert code == 0 and out.startswith(f"{visible} {launch}main.py --data_path=dataset/sample")
    assert ("gpu" in out.lower()) == (f"--gpus={visible}" in out) == (visible != "unset")
    assert ("--epochs 3" in out) == ("--epochs 3" in flags)
    expected = f"{processes} processes; a step has --batch_size x {processes} x --gradient_accumulation_steps examples"
    assert (expected in err) == (processes > 1)


def test_run_sh_respects_the_visible_gpus(run_sh):
    assert run_sh("", 2, CUDA_VISIBLE_DEVICES="5,6")[1].startswith("5,6 -m torch.distributed.run --standalone")
    assert run_sh("--gpus 1", 2, CUDA_VISIBLE_DEVICES="5,6")[1].startswith("1 main.py")


@pytest.mark.parametrize(
    "flags",
    [
        "--gpus 0,0",
        "--gpus 1,01",
        "--num_gpus 99999999999999999999",
        "--gpus",
        "--gpus 0,a",
        "--gpus=0,,1",
        "--num_gpus 0",
        "--num_gpus=two",
        "--gpus 0 --num_gpus 2",
        "--gpus ,",
    ],
)
def test_run_sh_rejects_invalid_gpu_numbers_before_setup(flags, run_sh, tmp_path):
    code, out, err = run_sh(flags, 2)
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert not (tmp_path / "set_up").exists()


def test_run_sh_explains_batch_size():
    text = Path(ROOT / "run.sh").read_text()
    assert "--batch_size is per process" in text
