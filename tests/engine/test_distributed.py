"""Distributed training, started by real torchrun with gloo: gradients, written files, and termination."""

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import pytest
import torch
from conftest import ROOT, read_json
from forks import Forks
from relation_rows import add_relations, with_relations
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from engine.data.tokenizer import train_tokenizer
from engine.errors import UserError
from engine.train.progress import Progress
from preprocess.schema import training_texts

TINY = "--hidden_size 32 --num_layers 1 --vocab_size 400 --device cpu --lr 1e-12 --epochs 1 --log_steps 2".split()
TRICKS = {
    "fgm": ["--use_fgm"],
    "pgd": ["--use_pgd", "--pgd_steps", "2"],
    "freelb": ["--use_freelb", "--freelb_steps", "2"],
    "awp": ["--use_awp", "--awp_start", "0"],
    "smart": ["--use_smart"],
    "rdrop": ["--use_rdrop"],
    "few_shot": ["--few_shot"],
    "samples": ["--dropout_samples", "2"],
    "distillation": ["--use_crf", "--teacher", "teachers/run", "--unlabelled", "more.txt"],
    "ema": ["--use_ema"],
    "swa": ["--use_swa", "--swa_start", "0", "--epochs", "2"],
    "layer_decay": ["--layer_decay", "0.9", "--pretrain_model_path", "pretrained"],
    "unfreezing": ["--unfreeze_layers", "1", "--epochs", "2", "--pretrain_model_path", "pretrained"],
}


def torchrun(python, processes, script, *words, cwd, env=None, check=0, **options):
    """Runs a script under torchrun. python: executable of the agent and the workers. Returns the output."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes, ROOT / script]
    done = subprocess.run(
        [python, *map(str, launch), *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        **options,
    )
    assert check is None or done.returncode == check, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def started(fork_server, tmp_path_factory):
    """Returns forks that run several processes without the start-up time of torchrun."""
    with Forks(ROOT, tmp_path_factory.mktemp("several"), fork_server) as forks:
        yield forks


@pytest.fixture(scope="module")
def few(sample, tmp_path_factory):
    """Returns 33 sentences, most of which lack a label: with four processes and two rows each, some have no labels or
    no rows."""
    folder = tmp_path_factory.mktemp("few")
    for name in ("labels.json", "dev.jsonl", "test.jsonl"):
        (folder / name).write_bytes((sample / name).read_bytes())
    rows = [json.loads(line) for line in (sample / "train.jsonl").read_text(encoding="utf-8").splitlines()][:33]
    for number, row in enumerate(rows):
        if number % 5:
            row["intent"] = None
        if number % 3:
            row["slots"] = None
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def gradients_of(started, how, tmp_path, processes, runs):
    """Returns {name: (gradients, rows of each step of each process)}. runs: {name: flags}"""
    folder = tmp_path / how
    folder.mkdir()
    flags = json.dumps({name: [str(word) for word in words] for name, words in runs.items()})
    words = [folder, {"several": 0, "in turn": processes, "at once": 1}[how], flags]
    if how == "several":
        started.several(processes, ["tests/engine/gradients.py", *words], tmp_path)
    else:
        started.several(1, ["tests/engine/gradients.py", *words], tmp_path)
    return {name: (load_file(folder / f"{name}.safetensors"), read_json(folder / f"{name}.json")) for name in runs}


def require_equal(several, one, tolerance=1e-5):
    """Asserts that each parameter's gradients are equal in each step, up to an error relative to the norm of the whole
    step's gradient."""
    assert several.keys() == one.keys() and several
    lengths = []
    for step in {name.split(".")[0] for name in one}:
        names = [name for name in one if name.split(".")[0] == step]
        whole = sum(one[name].double().pow(2).sum() for name in names).sqrt()
        lengths.append(float(whole))
        for name in names:
            assert (several[name] - one[name]).double().norm() <= tolerance * whole, name
    assert sum(length > 0.01 for length in lengths) >= len(lengths) / 2  # some steps have no labels


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_distributed_gradients_equal_one_process_with_the_same_rows(few, tmp_path, processes, started):
    """Also with missing labels, in a short last batch, in a process without rows, with accumulation and with a CRF."""
    common = ["--data_path", few, *TINY, "--dropout", "0"]
    accumulated = ["--gradient_accumulation_steps", "2"]
    kinds = {"plain": [], "accumulated": accumulated, "crf": ["--use_crf"], "both": ["--use_crf", *accumulated]}
    runs = {name: [*common, *flags, "--batch_size", "2"] for name, flags in kinds.items()}
    several = gradients_of(started, "several", tmp_path, processes, runs)
    one = gradients_of(started, "at once", tmp_path, processes, {n: [*r[:-1], 2 * processes] for n, r in runs.items()})
    for name in kinds:
        (gradients, rows), (expected, whole) = several[name], one[name]
        assert [sorted(chain(*step)) for step in zip(*rows)] == [sorted(step) for step in whole[0]]
        assert (processes, name) != (4, "plain") or not all(chain(*rows))  # one process had no row
        require_equal(gradients, expected)


@pytest.mark.slow
def test_tricks_treat_processes_like_micro_batches(few, tmp_path, started):
    """Each process has its own perturbation and its own random numbers."""
    shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=1, intermediate_size=64)
    tokenizer = train_tokenizer(lambda: training_texts(few / "train.jsonl"), 400)
    BertModel(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path / "pretrained")
    tokenizer.save_pretrained(tmp_path / "pretrained")
    made = ["--output_dir", "teachers", "--model_version", "run", "--epochs", "0", "--use_crf"]
    started.several(1, ["main.py", "--do_train", "--data_path", few, *TINY, *made], tmp_path)
    (tmp_path / "more.txt").write_text("wake me at seven\nplay a song\n" * 6, encoding="utf-8")
    flags = ["--data_path", few, *TINY, "--gradient_accumulation_steps", "2"]
    several = gradients_of(
        started, "several", tmp_path, 2, {n: [*flags, "--batch_size", 4, *t] for n, t in TRICKS.items()}
    )
    one = gradients_of(started, "in turn", tmp_path, 2, {n: [*flags, "--batch_size", 8, *t] for n, t in TRICKS.items()})
    for trick in TRICKS:
        require_equal(several[trick][0], one[trick][0])


# ---- from data to predictions ----------------------------------------------------------------------------------------

RUN = (
    "--hidden_size 32 --num_layers 1 --vocab_size 400 --device cpu --lr 3e-3 --log_steps 2 --model_version run".split()
)
ALL = ["--do_train", "--do_eval", "--do_predict", *RUN]


def weights(folder):
    return load_file(folder / "run/checkpoints/best/weights.safetensors")


def metrics(folder):
    return [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_train_evaluate_and_predict_like_one(sample, tmp_path, started):
    """Weights are equal up to rounding (which Adam amplifies by dividing by the gradient's magnitude), and two
    processes evaluate and predict like one with the same checkpoint. Covers tagging with windows and a CRF, relations,
    and classification."""
    data = with_relations(sample, tmp_path / "data", "slots")
    train = [*ALL, "--data_path", data, "--dropout", "0", "--epochs", "2", "--use_crf", "--max_length", "8"]
    started.several(2, ["main.py", *train, "--batch_size", "4", "--output_dir", tmp_path / "two"], tmp_path)
    started.several(1, ["main.py", *train, "--batch_size", "8", "--output_dir", tmp_path / "one"], tmp_path)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        small = 5e-4 if name.endswith("window_query") else 1e-4  # its first gradients are close to rounding errors
        assert (one[name] - two[name]).norm() <= 1e-3 * one[name].norm() + small, name
    first, second = (metrics(tmp_path / name) for name in ("one", "two"))
    assert [line.keys() for line in first] == [line.keys() for line in second]
    for ours, theirs in zip(first, second):
        assert theirs == pytest.approx(ours, rel=2e-3, abs=0.06)  # abs: one label of 24 may change
    assert first[0]["loss"] == pytest.approx(second[0]["loss"], rel=1e-5)  # logged: the mean over both processes

    use = ["--do_eval", "--do_predict", "--data_path", data, "--device", "cpu", "--eval_batch_size", "5"]
    use += ["--checkpoint", tmp_path / "one/run/checkpoints/best", "--model_version", "use"]
    started.several(2, ["main.py", *use, "--output_dir", tmp_path / "by two"], tmp_path)
    started.several(1, ["main.py", *use, "--output_dir", tmp_path / "by one"], tmp_path)
    for file in ("eval.json", "report.json", "predictions.csv"):
        assert (tmp_path / "by two/use" / file).read_bytes() == (tmp_path / "by one/use" / file).read_bytes(), file


@pytest.mark.slow
def test_thresholds_are_fitted_on_all_of_dev(command, tmp_path, started):
    """The thresholds for multilabel, spans and relations are the same in two processes as in one."""
    rows = [
        {"text": f"{a} {b}", "topics": [t for t, there in (("x", i % 2), ("y", i % 3)) if there], "split": split,
         "spans": [{"start": 0, "end": len(a), "label": "a"}, {"start": 6, "end": len(a + b) + 1, "label": "b"}]}
        for split, size in (("train", 40), ("dev", 21), ("test", 9))
        for i in range(size)
        for a, b in [(f"word{i % 5}", f"other{i % 7}")]
    ]  # fmt: skip
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = command("data_process.py", "--input", tmp_path / "raw.jsonl", "--output_dir", tmp_path / "data",
                   "--label_column", "topics,spans", "--label_type", "topics=multilabel,spans=spans")  # fmt: skip
    assert done.returncode == 0, done.stderr
    add_relations(tmp_path / "data", "spans")
    train = ["--do_train", *RUN, "--data_path", tmp_path / "data", "--dropout", "0", "--epochs", "1", "--lr", "1e-4"]
    started.several(2, ["main.py", *train, "--batch_size", "4", "--output_dir", tmp_path / "two"], tmp_path)
    started.several(1, ["main.py", *train, "--batch_size", "8", "--output_dir", tmp_path / "one"], tmp_path)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    thresholds = [name for name in one if name.endswith("threshold")]
    assert len(thresholds) == 3
    for name in thresholds:
        assert float(two[name]) == pytest.approx(float(one[name]), rel=1e-3)
    assert any(float(two[name]) not in (0.5, 0.0) for name in thresholds)  # where they begin


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_rows_are_split_across_processes(sample, tmp_path, workers, started):
    flags = ["--data_path", sample, *TINY, "--streaming", "--shuffle_buffer", "16", "--num_workers", workers]
    _, rows = gradients_of(started, "several", tmp_path, 3, {"stream": [*flags, "--batch_size", "3"]})["stream"]
    assert sorted(row for process in rows for step in process for row in step) == list(range(60))
    assert len({len(process) for process in rows}) == 1  # the same number of steps in each
    assert all(len(step) <= 3 for process in rows for step in process)


@pytest.mark.slow
def test_two_torchrun_agents_train_together(sample, tmp_path, python):
    """Two agents connect on the loopback address. If one has different options, the run ends with a one-line error
    instead of hanging."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def node(number, *words):
        launch = f"-m torch.distributed.run --nnodes 2 --node_rank {number} --nproc_per_node 1 --master_addr 127.0.0.1"
        return subprocess.Popen(
            [python, *launch.split(), "--master_port", str(port), str(ROOT / "main.py"), *map(str, words)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    train = [*ALL, "--data_path", sample, "--epochs", "1", "--output_dir", tmp_path / "out"]
    nodes = [node(0, *train), node(1, *train)]
    printed = [process.communicate(timeout=240)[0] for process in nodes]
    assert [process.returncode for process in nodes] == [0, 0], printed
    assert len(read_json(tmp_path / "out/run/eval.json")) == 2

    train[train.index("run")] = "other"
    nodes = [node(0, *train), node(1, *train, "--label_smoothing", "0.1")]
    printed = "".join(process.communicate(timeout=240)[0] for process in nodes)
    errors = [line for line in printed.splitlines() if "error: " in line]
    assert len(errors) == 1 and "--label_smoothing differs between process 0 and process 1" in errors[0], printed


# ---- how they end ----------------------------------------------------------------------------------------------------


class Run:
    """A run of two processes in the background, and their process ids. python: needed because a stand-in ignores
    SIGSTOP and does not notice when its agent is killed."""

    def __init__(self, words, cwd, options=(), python=sys.executable):
        launch = [python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *options]
        self.log = cwd / "log"
        with open(self.log, "w") as log:
            self.agent = subprocess.Popen(
                [*launch, str(ROOT / "main.py"), *map(str, words)],
                cwd=cwd,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def processes(self):
        """Returns the process ids of the ranks, in order."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if str(self.log.parent) in (folder / "cmdline").read_text():
                    variables = dict(
                        part.split("=", 1) for part in (folder / "environ").read_text().split("\0") if "=" in part
                    )
                    if "RANK" in variables:
                        found[int(variables["RANK"])] = int(folder.name)
        return [found[rank] for rank in sorted(found)]

    def wait_for(self, folder, step):
        """Waits until the run has a checkpoint of that step or a later one."""
        while not any(int(path.name[5:]) >= step for path in folder.glob("checkpoints/step_*")):
            assert self.agent.poll() is None, self.log.read_text()
            time.sleep(0.01)

    def wait(self):
        """Waits for the end. Returns the output."""
        self.agent.wait(timeout=240)
        return self.log.read_text()


def digest(folder):
    """Returns hashes of the files that must be identical."""
    last = sorted(folder.glob("run/checkpoints/step_*"))[-1]
    files = [last / f for f in ("weights.safetensors", "training.safetensors", "training.json")]
    files += [folder / "run" / f for f in ("metrics.jsonl", "eval.json", "predictions.csv")]
    files.append(folder / "run/checkpoints/best/weights.safetensors")
    return {path.relative_to(folder): path.read_bytes() for path in files}


STOPS = {
    "one is asked": lambda run: os.kill(run.processes()[1], signal.SIGTERM),
    "torchrun is killed": lambda run: run.agent.kill(),
}


@pytest.mark.slow
def test_distributed_resume_is_bit_exact(sample, tmp_path, started):
    """In these cases, all processes save at the same step. benchmarks/soak.py interrupts runs in more ways, also with
    streaming."""
    train = [*ALL, "--resume", "--data_path", sample, "--epochs", "12", "--batch_size", "4", "--save_steps", "2"]
    train += ["--early_stop_patience", "0", "--use_fgm", "--gradient_accumulation_steps", "2"]
    started.several(2, ["main.py", *train, "--output_dir", tmp_path / "whole"], tmp_path)
    for number, stop in enumerate(STOPS.values()):
        run = Run([*train, "--output_dir", tmp_path / "stopped"], tmp_path)
        run.wait_for(tmp_path / "stopped/run", 4 + 16 * number)
        stop(run)
        run.wait()
    started.several(2, ["main.py", *train, "--output_dir", tmp_path / "stopped"], tmp_path)
    assert (tmp_path / "stopped/run/train.log").read_text().count("stopped and saved after step") == len(STOPS)
    assert digest(tmp_path / "stopped") == digest(tmp_path / "whole")


@pytest.mark.slow
def test_run_sh_starts_the_requested_number_of_processes(tmp_path):
    flags = ["--device=cpu", "--epochs=1", "--hidden_size=32", "--num_layers=1", f"--output_dir={tmp_path}"]
    done = subprocess.run(
        ["sh", str(ROOT / "run.sh"), "--num_gpus", "2", *flags],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stderr
    last = sorted((tmp_path / "sample/checkpoints").glob("step_*"))[-1]
    assert read_json(last / "training.json")["environment"]["processes"] == 2


@pytest.mark.slow
def test_run_restarted_by_torchrun_resumes(sample, tmp_path, started, python):
    """With --max_restarts, --resume is not needed."""
    words = [*ALL, "--data_path", sample, "--epochs", "3", "--batch_size", "4", "--save_steps", "2"]
    started.several(2, ["main.py", *words, "--output_dir", tmp_path / "whole"], tmp_path)
    run = Run([*words, "--output_dir", tmp_path / "out"], tmp_path, ["--max_restarts", "1"], python)
    run.wait_for(tmp_path / "out/run", 6)
    os.kill(run.processes()[0], signal.SIGKILL)
    printed = run.wait()
    assert run.agent.returncode == 0 and "resumed from" in printed, printed
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")


@pytest.mark.slow
def test_unresponsive_process_is_a_one_line_error(sample, tmp_path):
    words = [
        "--do_train",
        *RUN,
        "--data_path",
        sample,
        "--epochs",
        "300",
        "--output_dir",
        tmp_path,
        "--ddp_timeout",
        "6",
    ]
    run = Run(words, tmp_path)
    run.wait_for(tmp_path / "run", 1)
    silent = run.processes()[1]
    os.kill(silent, signal.SIGSTOP)
    while "error: " not in run.log.read_text():
        assert run.agent.poll() is None, run.log.read_text()
        time.sleep(0.05)
    os.kill(silent, signal.SIGKILL)  # like torchrun after half a minute
    printed = run.wait()
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "another process of this run has ended or does not respond" in errors[0], printed


@pytest.mark.slow
def test_resume_with_another_number_of_processes(sample, tmp_path, started):
    """Two processes, then one, then three: each time, the run resumes at the same fraction of the epoch and the
    schedule."""
    words = [*ALL, "--resume", "--data_path", sample, "--batch_size", "4", "--output_dir", tmp_path, "--log_steps", "1"]
    for number, processes in enumerate((2, 1, 3), 2):
        started.several(processes, ["main.py", *words, "--epochs", number, "--force_resume"], tmp_path)
    log = (tmp_path / "run/train.log").read_text()
    assert "processes was 2, is 1" in log and "processes was 1, is 3" in log
    steps = [line for line in metrics(tmp_path) if "lr" in line]
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    assert steps[-1]["lr"] < 0.1 * max(line["lr"] for line in steps)  # the schedule is finished
    epochs = [line["epoch"] for line in steps]
    assert [epochs.count(n) for n in range(4)] == [8, 8, 15, 5]  # 60 rows, 4 in each process


def test_epoch_position_is_converted_to_another_number_of_processes():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step)
    progress = Progress(step=14, epoch=1, batch=10)  # 2 processes, 15 batches per epoch, 2 per step
    progress.share_among(3, 2, (scheduler, math.inf), batches=10, in_step=2)
    assert (progress.batch, progress.step) == (6, 14)  # 20 of 30 shares are done, whole steps of 6
    assert scheduler.last_epoch == 5 + 3 and scheduler.get_last_lr() == [8]


def test_another_number_of_processes_rejects_recursive_schedules():
    """A recursive schedule computes each rate from the previous one, so skipping steps would silently change the
    rate."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    progress = Progress(step=14, epoch=1, batch=10)
    with pytest.raises(UserError, match="ExponentialLR cannot continue with another number of processes"):
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9), math.inf
        progress.share_among(3, 2, schedule, batches=10, in_step=2)
    assert progress.batch == 10


@pytest.mark.slow
def test_error_is_printed_by_one_process(sample, tmp_path, python):
    for words, expected in (
        (["--do_train", "--data_path", tmp_path / "none"], "none"),
        (["--do_train", "--debug", "--data_path", sample], "--debug works in a single process"),
        (["--do_train", "--bach_size", "4"], "--bach_size"),
    ):
        printed = torchrun(python, 2, "main.py", *words, cwd=tmp_path, check=1)
        errors = [line for line in printed.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and expected in errors[0], printed
    assert not (tmp_path / "output").exists()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["everywhere", "in process 1"])
def test_shared_error_is_reported_by_process_0(tmp_path, python, where):
    """torchrun terminates all processes once one has exited, so process 0, which is slow here, must report first."""
    script = tmp_path / "late.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from config import Config
from engine.errors import UserError
from engine.run import launch
from engine.run.command_line import run_command

def main(config):
    if launch.local_rank() == 0:
        sum(range(5 * 10**7))
    if launch.local_rank() == 1 or {where == "everywhere"}:
        raise UserError(f"found by process {{launch.local_rank()}}")
    while True:  # until torchrun ends it
        sum(range(10**6))

if {where == "in process 1"}:
    launch.REPORT_WAIT = 0.2
run_command(main, Config, [])
""")
    printed = torchrun(python, 2, script, cwd=tmp_path, check=1)
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert errors == [f"error: found by process {0 if where == 'everywhere' else 1}"]
