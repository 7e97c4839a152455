"""Loading files executes no code, and no input shifts tags: canaries, and arbitrary text from hypothesis (SOAK_EXAMPLES
sets the number of examples)."""

import ast
import contextlib
import io
import json
import os
import pickle
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_trainer import train
from transformers import BertConfig, BertModel

from config import Config
from data_loader import MyDataset
from data_process import DataConfig, process
from engine.data.features import Featurizer
from engine.data.tokenizer import load_tokenizer, train_tokenizer
from engine.errors import UserError
from engine.model.encoders import load_pretrained
from engine.run import files
from engine.run.command_line import parse_args
from engine.task.task import Task
from engine.task.text import join_tokens, split_text
from engine.train import checkpoint
from huggingface_hands_on.continue_pretrain_task import PretrainConfig
from huggingface_hands_on.continue_pretrain_task import main as pretrain
from huggingface_hands_on.encoder import load_model
from model_utils import load_checkpoint
from preprocess.schema import load_labels

EXAMPLES = settings(
    max_examples=int(os.environ.get("SOAK_EXAMPLES", 60)), deadline=None, suppress_health_check=list(HealthCheck)
)
TOKENIZER = train_tokenizer(lambda: ["play a song 播放音乐 é ü 7.7", "stop it now 你好 ok 7.7"] * 3, 200)
TASKS = {"slots": Task("tagging", labels=["O", "B-x", "I-x"], unit="word")}


class Canary:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def pretrained(folder):
    BertModel(BertConfig(vocab_size=200, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(
        folder
    )
    TOKENIZER.save_pretrained(folder)
    return folder


def edit_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("kind", ["pytorch_model.bin", "zipped pytorch_model.bin", "model code", "tokenizer code"])
def test_pretrained_folder_cannot_execute_code(kind, tmp_path):
    folder, canary = pretrained(tmp_path / "model"), tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w')\n"
    if "bin" in kind:
        (folder / "model.safetensors").unlink()
        if kind.startswith("zipped"):
            torch.save({"w": Canary(canary)}, folder / "pytorch_model.bin")
        else:
            (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(canary)))
        with pytest.raises(UserError, match="pretrain_model_path"):
            load_pretrained(str(folder))
    elif kind == "model code":
        (folder / "evil.py").write_text(code)
        edit_json(
            folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
        )
        with pytest.raises(UserError, match="pretrain_model_path"):
            load_pretrained(str(folder))
    else:
        (folder / "evil.py").write_text(code)
        edit_json(
            folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]}
        )
        try:
            load_tokenizer(Config(pretrain_model_path=str(folder)), None)
        except UserError as error:
            assert "pretrain_model_path" in str(error)
    assert not canary.exists()


EVIL = {
    "config.json": dict(
        model_type="evil",
        auto_map={**{name: f"evil.{name}" for name in ("AutoConfig", "AutoModel", "AutoModelForMaskedLM")}},
    ),
    "tokenizer_config.json": dict(tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]}),
}


def poison(folder, canary, name):
    """Adds code to a folder, and refers to it in the config, for trust_remote_code."""
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    place = "encoder.json" if (folder / "encoder.json").exists() and name == "config.json" else name
    edit_json(folder / place, **EVIL[name])


@pytest.fixture
def yes(monkeypatch):
    """Makes standard input answer yes to all prompts."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 99))


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.parametrize("load", ["checkpoint", "tokenizer", "encoder", "pretraining", "pretraining from scratch"])
def test_remote_code_is_never_executed_even_if_confirmed(load, name, yes, tiny, tmp_path):
    canary = tmp_path / "canary"
    if load == "checkpoint":
        config = tiny(epochs=0)
        train(config)
        folder = config.run_dir / "checkpoints/best"
        poison(folder, canary, name)
        files.seal(folder)  # with a new manifest, like an attacker would write
        loading = partial(load_checkpoint, folder)
    else:
        folder = pretrained(tmp_path / "model")
        poison(folder, canary, name)
        options = PretrainConfig(
            input="x", output_dir="y", pretrain_model_path=str(folder), from_scratch="scratch" in load
        )
        loading = {
            "tokenizer": partial(load_tokenizer, Config(pretrain_model_path=str(folder)), None),
            "encoder": partial(load_pretrained, str(folder)),
        }.get(load, partial(load_model, options))
    with contextlib.suppress(UserError):  # a folder may still load, with the library's own code
        loading()
    assert not canary.exists()


def test_untrusted_checkpoint_cannot_execute_code(tiny, command, tmp_path):
    config = tiny(epochs=0)
    train(config)
    folder, canary = config.run_dir / "checkpoints/best", tmp_path / "canary"
    poison(folder, canary, "config.json")
    files.seal(folder)
    (tmp_path / "texts.txt").write_text("play a song\n")
    done = command("main.py", "--do_predict", "--checkpoint", folder, "--predict_file", "texts.txt", input="y\n" * 9)
    assert done.returncode == 2 and not canary.exists() and "[y/N]" not in done.stdout + done.stderr
    assert (
        len(
            [
                line
                for line in done.stderr.splitlines()
                if line.startswith("error: ") and "its encoder cannot be loaded" in line
            ]
        )
        == 1
    )


def test_dataset_script_is_not_executed(yes, tmp_path):
    folder, canary = tmp_path / "evil", tmp_path / "canary"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    with pytest.raises(UserError, match="cannot load it as a dataset"):
        process(DataConfig(input=str(folder), output_dir=str(tmp_path / "out"), format="hf"))
    assert not canary.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_pretraining_checkpoint_with_a_pickle_is_not_executed(name, tmp_path):
    texts, canary = tmp_path / "texts.txt", tmp_path / "canary"
    texts.write_text("".join(f"play a song now {n}\n" for n in range(60)))
    flags = [
        "--input",
        texts,
        "--output_dir",
        tmp_path / "out",
        "--pretrain_model_path",
        pretrained(tmp_path / "model"),
        "--epochs",
        2,
    ]
    flags += ["--eval_steps", 1, "--batch_size", 2, "--max_length", 16, "--device", "cpu", "--held_out_ratio", 0.5]
    config = parse_args(PretrainConfig, list(map(str, flags)))
    killed = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from engine.run import files
from engine.run.command_line import run_command
from huggingface_hands_on.continue_pretrain_task import PretrainConfig, main
sealed = files.seal
files.seal = lambda folder: (sealed(folder), os._exit(7) if folder.name.startswith("checkpoint-") else None)
run_command(main, PretrainConfig, {list(map(str, flags))!r})
"""
    done = subprocess.run(
        [sys.executable, "-c", killed], capture_output=True, text=True, timeout=120
    )  # dies after its first checkpoint
    assert done.returncode == 7, done.stderr
    (newest,) = (tmp_path / "out/checkpoints").glob("checkpoint-*")
    assert (newest / name).exists()
    (newest / name).write_bytes(pickle.dumps(Canary(canary)))
    files.seal(newest)
    with contextlib.suppress(Exception):  # whatever the error is, nothing may be executed
        pretrain(config)
    assert not canary.exists()


OURS = ("engine", "preprocess", "tools", "huggingface_hands_on", "benchmarks")


def test_every_loader_sets_trust_remote_code_false():
    """Otherwise from_pretrained and from_config would ask on standard input whether to run a folder's code.
    load_dataset no longer runs any."""
    calls = 0
    for path in (*ROOT.glob("*.py"), *(path for name in OURS for path in (ROOT / name).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("from_pretrained", "from_config")
                and ast.unparse(node.func.value) != "Featurizer"  # reads options, no model
            ):
                calls += 1
                expected = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert expected.get("trust_remote_code") == "False", (
                    f"{path.name}, line {node.lineno}: {ast.unparse(node)}"
                )
            assert not (isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node).endswith("pipeline")), (
                path.name
            )
    assert calls > 7


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "training.safetensors", "training.json", "args.json", "labels.json", "encoder.json"]
)
def test_checkpoint_with_a_pickle_in_any_file_is_rejected(name, tiny, tmp_path):
    config = tiny(epochs=1)
    train(config)
    folder, canary = checkpoint.step_folders(config.run_dir / "checkpoints")[0], tmp_path / "canary"
    (folder / name).write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(folder)
    manifest = {path.name: files.sha256(path) for path in folder.iterdir() if path.name != "manifest.json"}
    files.write_json(folder / "manifest.json", manifest)  # with a new manifest, like an attacker would write
    if not name.startswith("training"):
        with pytest.raises(Exception):  # noqa: B017 -- whatever it says, nothing may run
            load_checkpoint(folder)
    else:
        with pytest.raises(Exception):  # noqa: B017
            train(config)
    assert not canary.exists()


def test_pickle_in_a_cached_or_processed_file_is_rejected(sample, tmp_path):
    from preprocess.schema import read_processed

    canary = tmp_path / "canary"
    (tmp_path / "train.jsonl").write_bytes(pickle.dumps(Canary(canary)) + b"\n")
    with pytest.raises(UserError, match="row 1"):
        list(read_processed(tmp_path / "train.jsonl", {}))
    assert not canary.exists()


text = st.text(st.characters(codec="utf-8"), max_size=40)
words = st.lists(
    st.one_of(
        text,
        st.sampled_from(["", " ", "\u200b", "\ufe0f", "\u3000", "\u00ad", "\x00", "[SEP]", "[UNK]", "##ing", "👍🏽"]),
    ),
    min_size=1,
    max_size=12,
)


@EXAMPLES
@given(st.lists(words, min_size=1, max_size=4), st.integers(8, 40))
def test_tags_never_shift(rows, max_length):
    """Each retained word is at its own first sub-token, in order, for arbitrary words."""
    examples = [
        {"tokens": tokens, "slots": [["O", "B-x", "I-x"][i % 3] for i in range(len(tokens))]} for tokens in rows
    ]
    inputs, labels, _ = MyDataset(examples, Featurizer(TOKENIZER, TASKS, max_length)).batch(np.arange(len(rows)))
    for row, example in enumerate(examples):
        starts = inputs["word_starts"][row][inputs["word_mask"][row]].tolist()
        assert starts == sorted(set(starts)) and 1 <= len(starts) <= len(example["tokens"])
        ids = inputs["input_ids"][row].tolist()
        for number, (word, start) in enumerate(zip(example["tokens"], starts)):
            alone = TOKENIZER([[word]], is_split_into_words=True)["input_ids"][0][1:-1] or [TOKENIZER.unk_token_id]
            assert ids[start] == alone[0], repr(word)
            assert labels["slots"][row, number] == number % 3
        if max_length == 40 and sum(len(word) + 1 for word in example["tokens"]) < 30:
            assert len(starts) == len(example["tokens"])


@EXAMPLES
@given(text, st.sampled_from(["word", "character", "character+blank"]))
def test_offsets_point_into_the_text(value, unit):
    pieces = split_text(value, unit)
    assert all(value[start:end] == token for token, start, end in pieces)
    assert [start for _, start, _ in pieces] == sorted(start for _, start, _ in pieces)
    kept = {i for _, start, end in pieces for i in range(start, end)}
    assert all(i in kept or value[i].isspace() for i in range(len(value)))
    joined, spans = join_tokens([token for token, _, _ in pieces], unit)
    assert [joined[start:end] for start, end in spans] == [token for token, _, _ in pieces]


@EXAMPLES
@given(
    st.sampled_from(["train.csv", "train.tsv", "train.jsonl", "train.conll", "train.txt"]),
    st.one_of(
        st.binary(max_size=200),
        text.map(lambda s: s.encode()),
        st.lists(st.tuples(text, text), min_size=1, max_size=5).map(
            lambda rows: ("text,label\n" + "".join(f"{a},{b}\n" for a, b in rows)).encode()
        ),
    ),
)
def test_arbitrary_bytes_give_rows_or_an_error_with_the_place(tmp_path_factory, name, content):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / name).write_bytes(content)
    (folder / name.replace("train", "dev")).write_bytes(content)
    try:
        process(DataConfig(input=str(folder), output_dir=str(folder / "out")))
    except UserError as error:
        assert str(folder) in str(error) or "task" in str(error)
        assert not (folder / "out").exists()
    else:
        assert load_labels(folder / "out")


def test_nothing_is_pickled_in_this_repository():
    for path in (*ROOT.glob("*.py"), *ROOT.glob("huggingface_hands_on/*.py"), *ROOT.glob("tools/*/__main__.py")):
        source = path.read_text(encoding="utf-8")
        assert not any(
            word in source for word in ("pickle", "joblib", "torch.load", "torch.save", "trust_remote_code=True")
        ), path.name
