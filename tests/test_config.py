import argparse
import dataclasses
import json
import logging
import re

import pytest

from config import Config
from data_process import DataConfig
from engine.errors import UserError
from engine.run.command_line import os_error_line, parse_args, parse_bool
from engine.run.option_checks import TRAITS

ORIGINAL = (
    "--pretrain_model_path=bert --device=cuda:0 --do_train=True --batch_size=64 --lr=5e-5 --epochs=100 "
    "--use_fgm=True --data_path=data "
    "--model_version=v1 --warm_up_epochs=5 --random_seed=666"
)


def test_original_command_line_is_parsed():
    config = parse_args(Config, ORIGINAL.split())
    assert (config.do_train, config.use_fgm, config.do_eval) == (True, True, False)
    assert (config.lr, config.epochs, config.warmup_epochs, config.random_seed, config.batch_size) == (
        5e-5,
        100,
        5.0,
        666,
        64,
    )
    config = parse_args(
        Config,
        [
            "--debug=False",
            "--lrf=0.1",
            "--earlystop_patient=3",
            "--save_epoch=2",
            "--freeze_layers=True",
            "--fgm_eps=0.5",
            "--model_output_path=out",
            "--log_output_path=logs",
            "--log_output_file=a.log",
        ],
    )
    assert (config.debug, config.lrf, config.early_stop_patience, config.save_epoch, config.freeze_layers) == (
        False,
        0.1,
        3,
        2,
        -1,
    )
    assert (config.fgm_eps, config.output_dir, config.log_output_path, config.log_output_file) == (
        0.5,
        "out",
        "logs",
        "a.log",
    )


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("--use_crf", True),
        ("--use_crf=True", True),
        ("--use_crf=False", False),
        ("--use_crf false", False),
        ("--no_use_crf", False),
        ("", True),
        ("--use_crf --no_use_crf", False),
        ("--use_crf=1", True),
    ],
)
def test_four_ways_to_write_a_bool(flags, expected):
    assert parse_args(Config, flags.split()).use_crf is expected


def test_parse_bool_rejects_other_values():
    with pytest.raises(argparse.ArgumentTypeError):
        parse_bool("maybe")


@pytest.mark.parametrize(
    "flags, named",
    [
        ("--batch_size 0", "--batch_size"),
        ("--lr nan", "--lr"),
        ("--lr 5", "--lr"),
        ("--epochs -1", "--epochs"),
        ("--epochs many", "--epochs"),
        ("--epochs 2.5", "--epochs"),
        ("--epochs auto --warmup_epochs -1", "--warmup_epochs"),
        ("--precision fp8", "--precision"),
        ("--dropout 1.5", "--dropout"),
        ("--use_crf=maybe", "--use_crf"),
        ("--learningrate 1", "--learningrate"),
        ("--warmup_epochs 9 --epochs 3", "--warmup_epochs"),
        ("--task_weights intent", "--task_weights"),
        ("--task_weights intent=inf", "--task_weights"),
        ("--predict_output a.xlsx", "--predict_output"),
        ("--model_version a/b", "--model_version"),
        ("--use_fgm --freeze_layers 1", "--use_fgm"),
        ("--use_pgd --freeze_layers all", "--use_pgd"),
        ("--use_fgm --use_awp", "--use_fgm and --use_awp"),
        ("--use_ema --use_swa", "--use_ema and --use_swa"),
        ("--use_ema --use_soup", "--use_ema and --use_soup"),
        ("--use_ema --ema_decay 1", "--ema_decay"),
        ("--use_ema --ema_decay -0.1", "--ema_decay"),
        ("--use_swa --swa_start 1 --epochs 10", "--swa_start"),
        ("--use_swa --epochs 3", "--swa_start"),
        ("--use_awp --epochs 1", "--awp_start"),
        ("--encoder bilstm --pooling mean", "--pooling"),
        ("--layer_decay 0.9", "--pretrain_model_path"),
        ("--unfreeze_layers 1 --encoder bilstm --pretrain_model_path x", "--pretrain_model_path"),
        ("--unfreeze_layers 1 --use_fgm --pretrain_model_path x", "--use_fgm"),
        ("--layer_decay 0 --pretrain_model_path x", "--layer_decay"),
        ("--pgd_steps 0", "--pgd_steps"),
        ("--rdrop_alpha -1", "--rdrop_alpha"),
        ("--hidden_size 50", "--hidden_size"),
        ("--max_length 2", "--max_length"),
        ("--freeze_layers some", "--freeze_layers"),
        ("--max_grad_norm inf", "--max_grad_norm"),
        ("--random_seed -1", "--random_seed"),
        ("--random_seed 4294967296", "--random_seed"),
        ("--encoder bilstm --hidden_size 33", "--hidden_size"),
        ("--encoder bilstm --gradient_checkpointing", "--gradient_checkpointing"),
        ("--do_train --lora_rank 8", "--pretrain_model_path"),
        ("--lora_rank 8 --use_fgm --pretrain_model_path x", "--use_freelb"),
        ("--lora_rank 8 --use_pgd --pretrain_model_path x", "--lora_rank"),
        ("--lora_rank 8 --unfreeze_layers 1 --pretrain_model_path x", "--unfreeze_layers"),
        ("--lora_rank 8 --freeze_layers all --pretrain_model_path x", "--freeze_layers"),
        ("--lora_rank 8 --special_tokens <a> --pretrain_model_path x", "--special_tokens"),
        ("--lora_rank -1", "--lora_rank"),
        ("--load_dtype bf16 --pretrain_model_path x", "--lora_rank"),
        ("--load_dtype bf16 --lora_rank 8 --use_smart --pretrain_model_path x", "--use_smart"),
        ("--load_dtype bf16 --do_train --freeze_layers all", "--pretrain_model_path"),
        ("--pooling middle", "--pooling"),
    ],
)
def test_bad_input_error_names_the_flag(flags, named, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_args(Config, flags.split())
    message = capsys.readouterr().err
    assert stop.value.code == 2 and named in message and message.count("\n") == 1


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"encoder": "foo"}, "--encoder=foo must be one of transformer, bilstm"),
        ({"dropout": 1.5}, "--dropout=1.5 must be between 0 and 1"),
        ({"lr": 1.0}, "--lr=1.0 must be between 0 and 1"),
        ({"batch_size": 0}, "--batch_size=0 must be at least 1"),
        ({"batch_size": 10**10}, "--batch_size=10000000000 must be between 1 and 1000000000"),
        ({"fgm_eps": float("inf")}, "--fgm_eps=inf must be at least 0"),
        ({"fgm_eps": float("nan")}, "--fgm_eps=nan must be at least 0"),
        ({"random_seed": 2**32}, "--random_seed=4294967296 must be between 0 and 4294967295"),
    ],
)
def test_values_are_validated_in_python(options, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        Config(**options)


def test_traits_of_options_are_known():
    traits = {trait for f in dataclasses.fields(Config) for trait in f.metadata["traits"]}
    assert traits == {*TRAITS}


def test_options_without_effect_are_reported():
    assert Config(use_pgd=True, fgm_eps=0.5, pgd_alpha=0.2, use_swa=True, swa_start=0.0).unused_options() == []
    assert Config(rdrop_alpha=4.0).unused_options() == ["--rdrop_alpha=4 has no effect without --use_rdrop"]
    assert Config(merge_lora=True).unused_options() == ["--merge_lora=True has no effect without --lora_rank"]
    assert Config(lora_rank=8, lora_alpha=0.0).unused_options() == ["--lora_alpha=0 leaves --lora_rank without effect"]
    assert Config(lora_targets="query").unused_options() == ["--lora_targets=query has no effect without --lora_rank"]
    assert Config(lora_rank=8).unused_options() == []
    assert Config(fgm_eps=0.5).unused_options() == ["--fgm_eps=0.5 has no effect without --use_fgm or --use_pgd"]
    assert Config(use_smart=True, smart_weight=0.0).unused_options() == [
        "--smart_weight=0 leaves --use_smart without effect"
    ]
    switched = {name for name in vars(Config()) if name.startswith("use_")} - {"use_crf", "use_soup"}
    switched |= {"lora_rank", "teacher", "unlabelled"}
    assert {switch for option in dataclasses.fields(Config) for switch in option.metadata["needs"]} == switched


def test_help_documents_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_args(Config, ["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for name in Config.__dataclass_fields__:
        assert f"--{name}" in text


def test_saved_options_are_restored(tmp_path):
    config = Config(lr=3e-4, use_crf=True, task_weights="intent=2")
    config.save(tmp_path / "args.json")
    assert Config.load(tmp_path / "args.json") == config and config.task_weights_by_name() == {"intent": 2.0}


def test_removed_option_is_ignored_for_prediction_and_rejected_on_resume(tmp_path, caplog):
    Config(lr=3e-4).save(tmp_path / "args.json")
    before = json.loads((tmp_path / "args.json").read_text()) | {"use_magic": 3}
    assert before.pop("version")
    del before["use_fgm"]  # and one that did not exist for the run
    (tmp_path / "args.json").write_text(json.dumps(before))
    logging.getLogger("template").propagate = True
    assert Config.load(tmp_path / "args.json") == Config(lr=3e-4)
    assert "no longer exist and are ignored: use_magic=3" in caplog.text
    assert Config(lr=3e-4).changes_since(before) == ["use_magic was 3, which no longer exists"]
    assert Config(lr=3e-4, use_fgm=True).changes_since(before)[1:] == ["use_fgm was False, is True"]


def test_options_without_effect_on_the_tasks_are_reported():
    assert Config(pooling="mean").unused_options(["tagging"]) == ["--pooling=mean has no effect: all tasks are tagging"]
    assert Config(pooling="mean").unused_options(["tagging", "classification"]) == []
    (line,) = Config(word_pooling="mean").unused_options(["classification"])
    assert "none of the tasks is tagging" in line
    (line,) = Config(focal_gamma=2.0).unused_options(["tagging"])
    assert "no effect on tagging with a CRF (add --no_use_crf)" in line
    assert Config(focal_gamma=2.0, use_crf=False).unused_options(["tagging"]) == []
    assert Config(focal_gamma=2.0).unused_options(["classification"]) == []


def test_run_from_before_auto_pooling_resumes():
    before = vars(Config()) | {"pooling": "first"}
    for new in ("word_pooling", "load_dtype", "lora_rank", "lora_alpha", "lora_targets", "gradient_checkpointing"):
        del before[new]
    assert Config().changes_since(before) == []
    assert Config(pooling="mean").changes_since(before) == ["pooling was 'first', is 'mean'"]
    assert Config(lora_rank=8).changes_since(before) == ["lora_rank was 0, is 8"]


def test_auto_is_compatible_with_the_resolved_value():
    auto = parse_args(Config, "--epochs auto --precision auto --use_ema".split())
    before = vars(Config(epochs=12, precision="bf16", use_ema=True, ema_decay=0.99))
    assert auto.changes_since(before) == []
    assert Config(epochs=auto.epochs, precision="auto").changes_since(before) == ["use_ema was True, is False"]
    assert Config(epochs=10, precision="fp32", use_ema=True).changes_since(before) == [
        "epochs was 12, is 10",
        "precision was 'bf16', is 'fp32'",
    ]
    assert Config(epochs=12, precision="bf16", use_ema=True, ema_decay=0.9).changes_since(before) == [
        "ema_decay was 0.99, is 0.9"
    ]


def test_ratios_must_leave_something_to_train_on():
    with pytest.raises(UserError):
        DataConfig(input="a", output_dir="b", dev_ratio=0.6, test_ratio=0.4)


def test_os_error_names_the_file_and_advice(tmp_path):
    (tmp_path / "file").write_text("")
    for action, named, advice in (
        (lambda: (tmp_path / "file").mkdir(), "file", "in the way"),
        (lambda: (tmp_path / "none").read_text(), "none", "check the name"),
        (lambda: (tmp_path / "file" / "a").mkdir(), "a", "part of that path is a file"),
        (lambda: tmp_path.read_text(), tmp_path.name, "choose a file"),
    ):
        with pytest.raises(OSError) as error:
            action()
        line = os_error_line(error.value)
        assert str(tmp_path) in line and named in line and advice in line and "Errno" not in line and "\n" not in line
    assert os_error_line(OSError("something\nelse")) == "something"
