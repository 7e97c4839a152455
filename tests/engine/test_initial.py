"""--init_from: which weights a new run takes from a trained one, bit-exact resuming, and errors."""

import json
import logging
import shutil
import signal

import pytest
import torch
from conftest import ROOT, TINY, read_json
from forks import Forks
from safetensors.torch import load_file
from test_families import save_family
from test_trainer import make_trainer
from torch import nn

from config import Config
from engine.errors import UserError
from engine.run.files import seal
from engine.task.task import Task
from engine.train.initial import inherit_run_options, start_head
from engine.train.optimization import parameter_groups
from model_utils import HEADS, ClassificationHead, load_checkpoint
from tools.search.plan import SearchConfig, make_plan


def trained(config):
    trainer = make_trainer(inherit_run_options(config))
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def run(sample, tmp_path_factory):
    """Returns the folder of a run on `sample`, with a CRF and a shared layer."""
    folder = tmp_path_factory.mktemp("trained")
    options = dict(data_path=str(sample), output_dir=str(folder), model_version="run", use_crf=True, shared_layers=1)
    return trained(Config(**{**TINY, **options, "epochs": 1})).run_dir


@pytest.fixture
def start(tiny, run):
    """Returns start(**options) -> a trainer initialised from `run`."""
    return lambda **options: make_trainer(
        inherit_run_options(tiny(**{"init_from": str(run), "do_train": True, "use_crf": True, "lr": None, **options}))
    )


def other_data(sample, folder, change):
    """Copies a processed folder. change(tasks, rows) edits labels.json and the rows of a split."""
    shutil.copytree(sample, folder, ignore=shutil.ignore_patterns(".*"))
    tasks = read_json(folder / "labels.json")
    for path in folder.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        tasks = change(read_json(sample / "labels.json"), rows)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for task in tasks.values():
        task.pop("counts", None)
    (folder / "labels.json").write_text(json.dumps(tasks), encoding="utf-8")
    return folder


def permuted_and_changed(tasks, rows):
    """Permutes the labels, renames `call` to a new label `phone`, and replaces the tags of artists with tags of
    shops."""
    for row in rows:
        row["intent"] = "phone" if row["intent"] == "call" else row["intent"]
        row["slots"] = ["O" if tag.endswith("artist") else tag for tag in row["slots"]]
    intents, tags = tasks["intent"]["labels"], tasks["slots"]["labels"]
    tasks["intent"]["labels"] = ["phone", *(label for label in reversed(intents) if label != "call")]
    tasks["slots"]["labels"] = ["B-shop", *(tag for tag in reversed(tags) if not tag.endswith("artist")), "I-shop"]
    return tasks


def test_weights_of_common_labels_are_copied(start, run, sample, tmp_path, caplog):
    data = other_data(sample, tmp_path / "changed", permuted_and_changed)
    with caplog.at_level(logging.INFO, "template"):
        trainer = start(data_path=str(data))
    before, now = load_file(run / "checkpoints/best/weights.safetensors"), trainer.model.state_dict()
    heads = "output_layer.heads."
    for name, tensor in before.items():
        if not name.startswith(heads):
            assert torch.equal(now[name], tensor), name
    old, new = read_json(sample / "labels.json"), read_json(data / "labels.json")
    rows_of_labels = {
        "intent": ["linear.weight", "linear.bias"],
        "slots": ["linear.weight", "linear.bias", "crf.start_transitions", "crf.end_transitions"],
    }
    for task, names in rows_of_labels.items():
        there, here = old[task]["labels"], new[task]["labels"]
        both = [label for label in here if label in there]
        assert 2 < len(both) < len(here) and [*both] != [label for label in there if label in here]
        for name in names:
            for label in both:
                row = before[f"{heads}{task}.{name}"][there.index(label)]
                assert torch.equal(now[f"{heads}{task}.{name}"][here.index(label)], row), (name, label)
    for a in both:
        for b in both:
            moved = now[f"{heads}slots.crf.transitions"][here.index(a), here.index(b)]
            assert moved == before[f"{heads}slots.crf.transitions"][there.index(a), there.index(b)]
    fresh_rows = now[f"{heads}intent.linear.weight"][0], now[f"{heads}slots.crf.transitions"][0]
    assert all(row.any() and row.abs().max() < 0.5 for row in fresh_rows)
    (line,) = [record.getMessage() for record in caplog.records if "encoder and tokenizer" in record.getMessage()]
    sizes = [len(new[task]["labels"]) for task in ("intent", "slots")]
    assert line == (
        f"--init_from {run}: encoder and tokenizer; intent: {sizes[0] - 1} of {sizes[0]} labels (new: phone; removed: "
        f"call); slots: {sizes[1] - 2} of {sizes[1]} tags (new: B-shop, I-shop; removed: B-artist, I-artist)"
    )


def test_same_data_continues_the_same_model(start, run):
    trainer = start()
    before, now = load_file(run / "checkpoints/best/weights.safetensors"), trainer.model.state_dict()
    assert before.keys() == now.keys() and all(torch.equal(before[name], now[name]) for name in now)
    assert trainer.config.shared_layers == 1 and trainer.config.hidden_size == 32 and trainer.config.num_layers == 1
    assert trainer.progress.step == 0 and not trainer.optimizer.state_dict()["state"]


def test_added_removed_and_changed_tasks(start, run, sample, tmp_path, caplog):
    """intent is removed, slots become spans (another task type), polite is added."""

    def change(tasks, rows):
        for number, row in enumerate(rows):
            row["polite"] = ["yes", "no"][number % 2]
            row["slots"] = []
            del row["intent"]
        slots = {"type": "spans", "labels": ["city", "date"], "unit": "word"}
        return {"slots": slots, "polite": {"type": "classification", "labels": ["no", "yes"]}}

    data = other_data(sample, tmp_path / "tasks", change)
    with caplog.at_level(logging.INFO, "template"):
        trainer = start(data_path=str(data))
    assert "slots: newly initialised (was tagging); polite: newly initialised (a new task)" in caplog.text
    assert "; removed: intent" in caplog.text
    trainer.train()


def start_of(old, new, hidden_size=8):
    tensors = {f"output_layer.heads.x.{name}": tensor for name, tensor in old.state_dict().items()}
    return start_head("x", new, {"x": old.task}, tensors, hidden_size)


LABELS = ("a", "b", "c", "d", "e", "f", "g", "h")  # equal to the hidden size


@pytest.mark.parametrize("kind", ["classification", "multilabel", "spans", "relations", "tagging"])
def test_label_axis_is_found_even_if_hidden_size_equals_num_labels(kind):
    turned = (*LABELS[:0:-1], "new")
    old, new = (HEADS[kind](8, Task(kind, labels)) for labels in (LABELS, turned))
    before = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    assert "7 of 8" in start_of(old, new)
    layers = {"spans": ["borders"], "relations": ["heads", "tails"]}.get(kind, ["linear"])
    for name in (f"{layer}.{part}" for layer in layers for part in ("weight", "bias")):
        here, there = (head.get_parameter(name).unflatten(0, (-1, 8)) for head in (new, old))
        assert torch.equal(here[:, :7], there[:, 1:].flip(1)), name
        assert torch.equal(here[:, 7], before[name].unflatten(0, (-1, 8))[:, 7])
    if layers != ["linear"]:
        assert torch.equal(new.linear.weight, old.linear.weight)  # per word, not per type
    if kind == "relations":
        assert torch.equal(new.borders.weight, old.borders.weight)  # of subjects and objects
    if hasattr(old, "threshold"):
        assert torch.equal(new.threshold, old.threshold)


def test_regression_predictions_are_kept_with_another_mean():
    old, new = (HEADS["regression"](8, Task("regression", mean=m, std=s)) for m, s in ((3.0, 0.7), (5.0, 2.0)))
    assert start_of(old, new) == "its head"
    vectors = torch.randn(20, 8)
    numbers = [head.decode(head(vectors, {}), {})[0] for head in (old, new)]
    torch.testing.assert_close(*numbers, rtol=1e-5, atol=1e-5)
    same = HEADS["regression"](8, old.task)
    start_of(old, same)
    assert torch.equal(same.linear.weight, old.linear.weight) and torch.equal(same.linear.bias, old.linear.bias)


class Own(ClassificationHead):
    """A user's head with a hidden layer, a vector per label, a score per pair of labels, and a parameter of another
    shape."""

    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.hidden = nn.Linear(hidden_size, hidden_size)
        self.names = nn.Embedding(len(task.labels), hidden_size)
        self.pairs = nn.Parameter(torch.randn(len(task.labels), len(task.labels)))
        self.flat = nn.Parameter(torch.randn(len(task.labels) ** 2))


class ForCities(ClassificationHead):
    def __init__(self, hidden_size, task):
        super().__init__(hidden_size, task)
        self.places = [{"bonn": 1, "rome": 2}[label] for label in task.labels]


def test_user_head_needs_no_extra_code():
    old, new = (
        Own(8, Task("own", LABELS, kind="classification")),
        Own(8, Task("own", LABELS[::-1], kind="classification")),
    )
    assert start_of(old, new) == "8 of 8 labels (newly initialised: flat)"
    assert torch.equal(new.hidden.weight, old.hidden.weight) and torch.equal(new.names.weight, old.names.weight.flip(0))
    assert torch.equal(new.pairs, old.pairs.flip(0, 1)) and not torch.equal(new.flat, old.flat)
    again = Own(8, old.task)
    assert start_of(old, again) == "8 of 8 labels" and torch.equal(again.flat, old.flat)
    old, new = (ForCities(8, Task("own", labels, kind="classification")) for labels in (("bonn", "rome"), ("rome",)))
    with pytest.raises(UserError, match=r"ForCities cannot be built for other labels .*override `start_from`"):
        start_of(old, new)


def test_learning_rates_come_from_the_initial_run(start, run, tiny):
    before = read_json(run / "args.json")
    config = start().config
    assert (config.lr, config.head_lr) == (before["lr"], before["head_lr"]) == (3e-3, 3e-3)
    assert start(lr=1e-4, model_version="slower").config.head_lr == pytest.approx(1e-4)
    assert start(epochs=-1, model_version="auto").config.epochs == 30  # like for a pretrained encoder
    assert not inherit_run_options(tiny(init_from="nowhere", do_eval=True)).do_train  # scores `best`, reads no run
    rates = {group["lr"] for group in parameter_groups(start().model, config)}
    assert rates == {3e-3}


def test_search_space_is_centred_on_the_rates_of_the_initial_run(run, sample, tmp_path):
    options = f"--init_from {run} --use_crf --epochs 2"
    plan = make_plan(SearchConfig(data_path=str(sample), options=options, results=str(tmp_path / "results")))
    assert (plan.resolver.lr, plan.resolver.head_lr) == (3e-3, 3e-3) and plan.resolver.shape.hidden_size == 32
    assert "hidden_size" not in plan.space


def test_special_tokens_are_retained_and_added(tiny, tmp_path, sample):
    for encoder in ("transformer", "bilstm"):
        first = trained(tiny(encoder=encoder, special_tokens="<e1>", epochs=0, model_version=f"{encoder}-1"))
        options = dict(do_train=True, init_from=str(first.run_dir), special_tokens="<e2>", epochs=0)
        second = trained(tiny(**options, model_version=f"{encoder}-2"))
        assert second.config.encoder == encoder
        size = len(first.tokenizer)
        assert second.tokenizer.convert_tokens_to_ids(["<e1>", "<e2>"]) == [size - 1, size]
        words = [trainer.model.encoder.get_input_embeddings().weight for trainer in (first, second)]
        assert len(words[1]) == size + 1 and torch.equal(words[1][:size], words[0]) and words[1][size].any()
        shutil.rmtree(first.run_dir)
        model, tokenizer, *_ = load_checkpoint(second.checkpoints / "best")
        assert tokenizer.tokenize("<e2>") == ["<e2>"] and len(model.encoder.get_input_embeddings().weight) == size + 1


def test_adapter_continues_as_the_same_adapter(tiny, tmp_path, sample):
    base = save_family("BERT", tmp_path / "base", sample)
    lora = dict(pretrain_model_path=base, lora_rank=4, epochs=1, max_length=64, use_crf=True)
    first = trained(tiny(**lora, model_version="first", lora_targets="query,value"))
    start = dict(do_train=True, init_from=str(first.run_dir), epochs=1, max_length=64, use_crf=True)
    second = make_trainer(inherit_run_options(tiny(**start, model_version="second")))
    before, now = load_file(first.checkpoints / "best/weights.safetensors"), second.model.state_dict()
    assert second.config.lora_rank == 4 and second.config.lora_targets == "query,value"
    assert all(torch.equal(tensor, now[name]) for name, tensor in before.items())
    second.train()
    shutil.rmtree(first.run_dir)
    load_checkpoint(second.checkpoints / "best")
    with pytest.raises(UserError, match=r"--lora_rank=8 contradicts .* lora_rank=4; leave it out"):
        trained(tiny(**{**start, "init_from": str(second.run_dir)}, lora_rank=8, model_version="third"))
    (tmp_path / "base").rename(tmp_path / "moved")
    moved = dict(init_from=str(second.run_dir), pretrain_model_path=str(tmp_path / "moved"))
    third = trained(tiny(**{**start, **moved}, model_version="moved"))
    assert third.config.lora_rank == 4


def test_merged_run_continues_with_full_training(tiny, tmp_path, sample):
    base = save_family("BERT", tmp_path / "base", sample)
    lora = dict(pretrain_model_path=base, lora_rank=4, epochs=1, max_length=64, merge_lora=True, lr=None)
    first = trained(tiny(**lora, model_version="first"))
    start = dict(do_train=True, init_from=str(first.run_dir), epochs=1, max_length=64, lr=None)
    second = make_trainer(inherit_run_options(tiny(**start, model_version="second")))
    assert second.config.lora_rank == 0 and second.config.lr == 1e-3 != first.config.lr
    assert all(p.requires_grad for p in second.model.parameters())
    with pytest.raises(UserError, match="LoRA needs a separate base"):
        trained(tiny(**start, lora_rank=4, model_version="third"))


FLAGS = "--epochs 2 --batch_size 8 --log_steps 2 --device cpu --use_crf --special_tokens <e1> --do_train --do_eval"


@pytest.mark.slow
@pytest.mark.parametrize("more", [["--use_ema"], ["--streaming", "--use_fgm"]])
def test_resume_without_the_initial_run_is_bit_exact(more, run, sample, tmp_path, fork_server):
    data = other_data(sample, tmp_path / "data", permuted_and_changed)
    shutil.copytree(run, tmp_path / "first")
    flags = ["main.py", *FLAGS.split(), "--data_path", str(data), "--init_from", "first", *more, "--model_version"]
    with Forks(ROOT, tmp_path, fork_server) as forks:
        forks.run([*flags, "whole"])
        checkpoints = tmp_path / "output/cut/checkpoints"
        forks.run([*flags, "cut", "--save_steps", "2"], code=-signal.SIGKILL, kill_at=[str(checkpoints), 4])
        shutil.rmtree(tmp_path / "first")
        printed = forks.run([*flags, "cut", "--resume", "--save_steps", "2"])
        assert "resumed from" in printed and "encoder and tokenizer" not in printed
        whole = tmp_path / "output/whole"
        assert read_json(whole / "args.json")["init_from"] == "first"
        for name in ("metrics.jsonl", "eval.json", "answers/test.jsonl"):
            assert (whole / name).read_bytes() == (tmp_path / "output/cut" / name).read_bytes(), name
        last = max(path.name for path in checkpoints.glob("step_*"))
        for folder in ("best", last):
            sums = [read_json(tmp_path / f"output/{r}/checkpoints/{folder}/manifest.json") for r in ("whole", "cut")]
            differ = {name for name in sums[0] if sums[0][name] != sums[1][name]}
            assert differ <= {"args.json", "training.json"}, differ  # name, save_steps
        changed = [*flags, "cut", "--resume", "--save_steps", "2"]
        changed[changed.index("first")] = "second"
        assert "init_from was 'first', is 'second'" in forks.run(changed, code=2)
        predict = ["main.py", "--do_predict", "--checkpoint", str(whole / "checkpoints/best"), "--data_path", str(data)]
        forks.run([*predict, "--model_version", "elsewhere"])


def test_distributed_run_starts_from_it_and_one_process_logs(run, sample, tmp_path, fork_server):
    flags = [
        "main.py",
        "--do_train",
        "--epochs",
        "1",
        "--batch_size",
        "8",
        "--device",
        "cpu",
        "--data_path",
        str(sample),
    ]
    with Forks(ROOT, tmp_path, fork_server) as forks:
        printed = forks.several(2, [*flags, "--init_from", str(run)])
    assert printed.count("encoder and tokenizer; intent: ") == 1


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--init_from", "nowhere"], "nowhere: neither a run with checkpoints/best nor a checkpoint"),
        (["--init_from", "bert-base-uncased"], "a pretrained model with --pretrain_model_path"),
        (["--init_from", "UNFINISHED"], "neither a run with checkpoints/best nor a checkpoint"),
        (["--init_from", "DAMAGED"], "weights.safetensors has changed since it was written"),
        (["--init_from", "RUN", "--pretrain_model_path", "bert"], "each name the encoder"),
        (["--init_from", "RUN", "--encoder", "bilstm"], "--encoder=bilstm contradicts"),
        (["--init_from", "RUN", "--hidden_size", "64"], "--hidden_size=64 contradicts"),
        (
            ["--init_from", "RUN", "--hidden_size", "256"],
            "--hidden_size=256 contradicts",
        ),  # the default, given explicitly
        (["--init_from", "RUN", "--debug", "--vocab_size", "8000"], "--vocab_size=8000 contradicts"),
        (["--init_from", "RUN", "--keep_layers", "1"], "--keep_layers"),
        (["--init_from", "RUN", "--max_length", "600"], "exceeds the 512 positions"),
        (["--init_from", "RUN", "--output_dir", "PARENT", "--model_version", "run"], "is the run itself"),
        (["--init_from", "CUSTOM"], "was written by other code"),
        (["--pretrain_model_path", "RUN"], "use --init_from"),
        (["--pretrain_model_path", "BEST"], "use --init_from"),
    ],
)
def test_invalid_initial_runs_are_one_line_errors(flags, words, run, sample, tmp_path, command):
    places = {"RUN": run, "BEST": run / "checkpoints/best", "PARENT": run.parent, "UNFINISHED": tmp_path / "unfinished"}
    shutil.copytree(run, tmp_path / "unfinished", ignore=shutil.ignore_patterns("best"))
    for name in ("DAMAGED", "CUSTOM"):
        places[name] = shutil.copytree(run / "checkpoints/best", tmp_path / name)
    weights = bytearray((places["DAMAGED"] / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (places["DAMAGED"] / "weights.safetensors").write_bytes(weights)
    (places["CUSTOM"] / "args.json").write_text(json.dumps(read_json(run / "args.json") | {"encoder": "textcnn"}))
    seal(places["CUSTOM"])
    before = sorted(path for path in run.rglob("*"))
    done = command("main.py", "--do_train", "--data_path", sample, *(places.get(flag, flag) for flag in flags))
    *log, line = done.stderr.splitlines()  # the log is written only if the data cache existed
    assert done.returncode == 2 and line.startswith("error: ") and words in line, done.stderr
    assert "error" not in "".join(log)
    assert not (tmp_path / "output").exists() and before == sorted(path for path in run.rglob("*"))


@pytest.mark.slow
def test_debug_run_with_initial_weights(tiny, sample, command):
    """Its losses are low from the start."""
    run = trained(tiny(epochs=40, early_stop_patience=0)).run_dir
    done = command("main.py", "--debug", "--data_path", sample, "--init_from", run, "--batch_size", 8, "--no_use_crf")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
