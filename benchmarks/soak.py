"""Stress test: kills runs, damages checkpoints and passes invalid inputs, and prints how many trials pass.

    python benchmarks/soak.py                      all tests, about ten minutes on two cores
    python benchmarks/soak.py --only kill damage   only tests whose function names contain one of these words

Each trial is a real process, forked from this one after the imports, that runs `main.main` on a tiny model. A resumed
run must be bit-exact: final and best weights, optimizer state, metrics.jsonl, eval.json and predictions.csv have the
SHA-256 sums of an uninterrupted run.
"""

import argparse
import contextlib
import copy
import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.update(TQDM_DISABLE="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.utils.tensorboard  # noqa: E402 -- imported once here, not in each of a thousand processes
from relation_rows import add_relations  # noqa: E402
from tqdm import tqdm  # noqa: E402
from transformers import BertModel, PreTrainedTokenizerFast  # noqa: E402, F401

import main as main_module  # noqa: E402
import model_utils  # noqa: E402
import trainer as trainer_module  # noqa: E402
from config import Config  # noqa: E402
from data_process import DataConfig, process  # noqa: E402
from engine.run import files  # noqa: E402
from engine.run.command_line import run_command  # noqa: E402
from engine.train import checkpoint  # noqa: E402

WORK = Path(tempfile.mkdtemp(prefix="soak-"))
RNG = random.Random(0)
TINY = dict(
    hidden_size=32,
    num_layers=1,
    epochs=3,
    batch_size=4,
    vocab_size=400,
    log_steps=2,
    lr=3e-3,
    device="cpu",
    save_steps=3,
    resume=True,
    do_train=True,
    do_eval=True,
    do_predict=True,
    data_path=str(WORK / "data"),
    output_dir=str(WORK / "runs"),
    eval_batch_size=8,
)
FGM = dict(use_fgm=True, gradient_accumulation_steps=3)
STREAM = dict(streaming=True, shuffle_buffer=16)
WORKERS = dict(num_workers=2)
RELATIONS = dict(data_path=str(WORK / "related"))


def make_data():
    rows = [
        json.loads(line) for line in (ROOT / "dataset/sample_raw/en.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    kept = [
        row
        for split, size in (("train", 44), ("dev", 10), ("test", 10))
        for row in [row for row in rows if row["split"] == split][:size]
    ]
    (WORK / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    with contextlib.redirect_stdout(io.StringIO()):
        process(DataConfig(input=str(WORK / "raw.jsonl"), output_dir=str(WORK / "data")))
        spans = dict(output_dir=str(WORK / "related"), label_type="slots=spans")
        process(DataConfig(input=str(WORK / "raw.jsonl"), **spans))
    add_relations(WORK / "related", "slots")


# ---- one run in one process ------------------------------------------------------------------------------------------


def flags(name, options):
    return [f"--{key}={value}" for key, value in {**TINY, "model_version": name, **options}.items()]


def start(name, options, prepare=None):
    """Forks a process, in a new process group, that calls prepare() and then runs main.py. Output goes to NAME.err."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    tqdm.set_lock(threading.RLock())  # the default lock is shared by all forks: a killed one could hold it forever
    torch.set_num_threads(1)
    descriptor = os.open(WORK / f"{name}.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 2)
    os.dup2(descriptor, 1)
    code = 99
    try:
        if prepare:
            prepare()
        code = run_command(main_module.main, Config, flags(name, options))
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def finish(child):
    """Returns the exit code of a process, as a shell reports it."""
    status = os.waitpid(child, 0)[1]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # workers of a killed run
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def run(name, options, prepare=None):
    return finish(start(name, options, prepare))


def digest(name):
    """Returns {file: SHA-256} of the files that must be identical. Times are stored in other files, and args.json may
    differ in options that do not affect the result."""
    folder = WORK / "runs" / name
    last = checkpoint.step_folders(folder / "checkpoints")[0]
    files = [
        *(last / f for f in ("weights.safetensors", "training.safetensors", "training.json")),
        folder / "checkpoints/best/weights.safetensors",
        *(folder / f for f in ("metrics.jsonl", "eval.json", "predictions.csv")),
    ]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files} | {
        "step": last.name
    }


def clean(name):
    shutil.rmtree(WORK / "runs" / name, ignore_errors=True)
    (WORK / f"{name}.err").unlink(missing_ok=True)


REFERENCES = {}


def reference(options, prepare=None, key=None):
    """Returns (digest, seconds) of an uninterrupted run, which is run once per set of options."""
    key = key or json.dumps(options, sort_keys=True)
    if key not in REFERENCES:
        name, began = f"reference{len(REFERENCES)}", time.monotonic()
        code = run(name, options, prepare)
        assert code == 0, (WORK / f"{name}.err").read_text()
        REFERENCES[key] = digest(name.removesuffix(".err")), time.monotonic() - began
    return REFERENCES[key]


def same(name, options):
    """Runs to the end. Returns whether the digest equals the reference."""
    code = run(name, options)
    expected = reference(options)[0]
    if code != 0:
        print((WORK / f"{name}.err").read_text()[-2000:])
        return False
    found = digest(name)
    if found != expected:
        print(f"{name}: {[file for file in expected if found.get(file) != expected[file]]} differ; {options}")
    clean(name)
    return found == expected


# ---- the tests -------------------------------------------------------------------------------------------------------


def kill_at_random_times(trials=200):
    return kill_each([{**a, **b, **c} for a in ({}, STREAM) for b in ({}, FGM) for c in ({}, WORKERS)], trials)


def kill_relations(trials=40):
    return kill_each([{**RELATIONS, **a, **b} for a in ({}, STREAM) for b in ({}, FGM)], trials)


def kill_each(kinds, trials):
    good = 0
    for trial in range(trials):
        options, name = kinds[trial % len(kinds)], f"kill{trial}"
        _, seconds = reference(options)
        child = start(name, options)
        time.sleep(RNG.uniform(0.05, 1.0) * seconds)
        os.killpg(child, signal.SIGKILL)
        finish(child)
        good += same(name, options)
    return good, trials


def die_after(step, written=False):
    """Makes the child kill itself right after this optimizer step. written: wait until checkpoints are on disk."""
    update = trainer_module.Trainer.optimizer_step

    def deadly(self, group):
        update(self, group)
        if self.progress.step + 1 == step:
            if written:
                self.writer.wait()
            os.kill(os.getpid(), signal.SIGKILL)

    trainer_module.Trainer.optimizer_step = deadly


def kill_after_each_step(trials=80):
    good = 0
    for trial in range(trials):
        options, name, step = ({}, STREAM)[trial % 2], f"step{trial}", trial // 2 % 33 + 1
        assert run(name, options, lambda step=step: die_after(step)) == 137
        good += same(name, options)
    return good, trials


def chains_of_kills(trials=10):
    good = 0
    for trial in range(trials):
        options, name = {**({}, STREAM)[trial % 2], **({}, FGM)[trial // 2 % 2]}, f"chain{trial}"
        last = 33 if not options.get("use_fgm") else 12
        for step in sorted(RNG.sample(range(1, last + 1), 5)):
            run(name, options, lambda step=step: die_after(step))
        good += same(name, options)
    return good, trials


def kill_the_command_line(trials=12):
    good, environment = 0, {**os.environ, "OMP_NUM_THREADS": "1"}
    reference({})
    for trial in range(trials):
        name, command = f"command{trial}", [sys.executable, str(ROOT / "main.py")]
        for _ in range(3):
            process = subprocess.Popen(
                [*command, *flags(name, {})],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            folder = WORK / "runs" / name
            while process.poll() is None and not (folder / "args.json").exists():
                time.sleep(0.02)  # past the imports, where there is nothing to lose
            time.sleep(RNG.uniform(0.0, 1.5))
            if process.poll() is None:
                os.killpg(process.pid, RNG.choice([signal.SIGKILL, signal.SIGTERM]))
            process.wait()
        good += same(name, {})
    return good, trials


def left_out(trials=None):
    restore, noisy_forward = checkpoint.restore_training, model_utils.MyModel.forward

    def noisy():
        """Makes the model also draw from Python's and NumPy's generators, as a user's model may."""

        def forward(self, inputs, labels=None, label_counts=None):
            output = noisy_forward(self, inputs, labels, label_counts)
            if self.training:
                output.total_loss = output.total_loss * (1 + 0.1 * random.random() + 0.1 * np.random.rand())
            return output

        model_utils.MyModel.forward = forward

    def tie():
        """Makes every evaluation return the same score, so that early stopping takes effect."""
        evaluate = trainer_module.Trainer.eval

        def tied(self, *given, **more):
            evaluation = evaluate(self, *given, **more)
            return evaluation._replace(scores={**evaluation.scores, "sentence_accuracy": 0.5})

        trainer_module.Trainer.eval = tied

    def without(change):
        def restoring(folder, optimizer, scheduler, scaler, tricks, device):
            keep = (torch.get_rng_state(), random.getstate(), np.random.get_state())
            state = optimizer, scheduler, scaler, tricks
            fresh = copy.deepcopy([one.state_dict() for one in state])
            progress = restore(folder, *state, device)
            change(progress, keep, fresh, state)
            return progress

        checkpoint.restore_training = restoring

    fp16, patient = dict(precision="fp16"), dict(early_stop_patience=2, epochs=6)
    items = {
        "torch's random state": ({}, lambda p, k, f, o: torch.set_rng_state(k[0])),
        "Python's random state": ({}, lambda p, k, f, o: random.setstate(k[1])),
        "NumPy's random state": ({}, lambda p, k, f, o: np.random.set_state(k[2])),
        "optimizer": ({}, lambda p, k, f, o: o[0].load_state_dict(f[0])),
        "scheduler": ({}, lambda p, k, f, o: o[1].load_state_dict(f[1])),
        "scaler": (fp16, lambda p, k, f, o: o[2].load_state_dict(f[2])),
        "averaged weights": (dict(use_ema=True), lambda p, k, f, o: o[3].load_state_dict(f[3])),
        "step": ({}, lambda p, k, f, o: p.update(step=0)),
        "epoch": ({}, lambda p, k, f, o: p.update(epoch=0)),
        "position in the epoch": ({}, lambda p, k, f, o: p.update(batch=0)),
        "best score": (patient, lambda p, k, f, o: p.update(best_score=None)),
        "best epoch": (patient, lambda p, k, f, o: p.update(best_epoch=0)),
        "patience": (patient, lambda p, k, f, o: p.update(bad_epochs=0)),
        "running losses": ({}, lambda p, k, f, o: p.update(sums={})),
        "steps in the running losses": ({}, lambda p, k, f, o: p.update(sum_steps=0)),
        "length of metrics.jsonl": ({}, lambda p, k, f, o: p.update(metrics_bytes=10**6)),
    }
    noticed = 0
    for number, (item, (options, change)) in enumerate(items.items()):

        def prepare(options=options):
            noisy()
            if "early_stop_patience" in options:
                tie()

        expected = reference(options, prepare, f"noisy{options}")[0]
        outcomes = []
        for leave_out in (False, True):  # with all items, the digests must be equal
            name = f"left{number}{leave_out}"
            run(
                name,
                options,
                lambda options=options, prepare=prepare: (
                    prepare(),
                    die_after(23 if "early_stop_patience" in options else 17, written=True),
                ),
            )
            code = run(
                name,
                options,
                lambda leave_out=leave_out, change=change, prepare=prepare: (
                    prepare(),
                    without(change) if leave_out else None,
                ),
            )
            outcomes.append(code == 0 and digest(name) == expected)
            clean(name)
        if outcomes == [True, False]:
            noticed += 1
        else:
            print(f"{item}: bit-exact with it: {outcomes[0]}, without it: {outcomes[1]}")
    return noticed, len(items)


def other_frequencies(trials=6):
    expected = reference({})[0]
    good = 0
    for number, options in enumerate(
        [
            dict(save_steps=1),
            dict(save_steps=0),
            dict(save_epoch=2),
            dict(save_epoch=0),
            dict(log_steps=1),
            dict(log_steps=100),
        ]
    ):
        name = f"frequency{number}"
        run(name, options)
        found = digest(name)
        good += all(
            found[file] == expected[file]
            for file in expected
            if "model" in file or file in (f"checkpoints/{expected['step']}/training.safetensors", "step")
        )
    return good, trials


def damage(trials=200):
    name, good = "damage", 0
    run(name, {}, lambda: die_after(20))
    root = WORK / "runs" / name / "checkpoints"
    newest, before = checkpoint.step_folders(root)[:2]
    paths = sorted(newest.iterdir())
    for trial in range(trials):
        path, kind = RNG.choice(paths), ("flip", "truncate", "delete")[trial % 3]
        original = path.read_bytes()
        if kind == "delete":
            path.unlink()
        elif kind == "truncate":
            path.write_bytes(original[: RNG.randrange(len(original))])
        else:
            changed = bytearray(original)
            changed[RNG.randrange(len(changed))] ^= 1 << RNG.randrange(8)
            path.write_bytes(bytes(changed))
        found = next(folder for folder in checkpoint.step_folders(root) if not files.verify(folder))
        good += found == before
        if trial % 40 == 39:  # sometimes the whole run is resumed from there
            shutil.copytree(WORK / "runs" / name, WORK / "runs" / f"{name}{trial}")
            good -= not same(f"{name}{trial}", {})
        path.write_bytes(original)
    return good, trials


def full_disk(trials=12):
    good = 0
    for trial in range(trials):
        name = f"full{trial}"
        run(name, {}, lambda: die_after(12, written=True))
        folder = WORK / "runs" / name
        for path in checkpoint.step_folders(folder / "checkpoints")[2:]:  # so that the next one needs disk space
            shutil.rmtree(path)
        (WORK / f"{name}.err").write_text("")
        mounted = trial % 2 == 0 and small_disk(folder)
        code = run(name, {}, None if mounted else limit_files)
        messages = (WORK / f"{name}.err").read_text()
        intact = [files.verify(path) for path in checkpoint.step_folders(folder / "checkpoints")] == [None, None]
        one_line = len(re.findall(r"^error: .*$", messages, re.M)) == 1 and "Traceback" not in messages
        if mounted:
            shutil.copytree(folder, f"{folder}.copy")
            subprocess.run(["umount", folder], check=True)
            shutil.rmtree(folder)
            os.rename(f"{folder}.copy", folder)
        if not (code == 2 and intact and one_line):
            print(f"{name}: mounted {mounted}, exit {code}, intact {intact}, one-line error {one_line}")
            print(messages[-1500:])
            continue
        good += same(name, {})
    return good, trials


def small_disk(folder):
    """Moves the run folder to a tmpfs with little free space. Returns whether this process may mount one."""
    used = sum(path.stat().st_size // 4096 * 4 + 4 for path in folder.rglob("*"))
    shutil.copytree(folder, f"{folder}.copy")
    command = ["mount", "-t", "tmpfs", "-o", f"size={used + RNG.randrange(20, 300)}k", "tmpfs", folder]
    allowed = subprocess.run(command, capture_output=True).returncode == 0
    if allowed:
        shutil.copytree(f"{folder}.copy", folder, dirs_exist_ok=True)
    shutil.rmtree(f"{folder}.copy")
    return allowed


def limit_files():
    """Makes the child's writes beyond a random size fail, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (RNG.randrange(2_000, 90_000), resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    )


def signals(trials=30):
    good = 0
    reference({})
    for trial in range(trials):
        name, number = f"signal{trial}", (signal.SIGTERM, signal.SIGINT)[trial % 2]
        done = WORK / f"{name}.steps"

        def prepare(trial=trial, number=number, done=done):
            place = (trial // 2) % 5
            trainer = trainer_module.Trainer
            targets = {
                0: (trainer, "backward", 1),
                1: (trainer, "infer", 2),
                2: (checkpoint.Writer, "save", 3),
                3: (trainer, "optimizer_step", 15),
                4: (checkpoint, "rotate", 2),
            }
            owner, method, nth = targets[place]
            original, calls = getattr(owner, method), []

            def signalled(*args, **kwargs):
                calls.append(1)
                if len(calls) == nth:
                    os.kill(os.getpid(), number)
                return original(*args, **kwargs)

            setattr(owner, method, signalled)
            update = trainer.optimizer_step

            def counted(self, group):
                update(self, group)
                done.write_text(str(self.progress.step + 1))

            trainer.optimizer_step = counted

        code = run(name, {}, prepare)
        saved = int(checkpoint.step_folders(WORK / "runs" / name / "checkpoints")[0].name[5:])
        right = code == 128 + number and saved >= int(done.read_text()) - 1
        if not right:
            print(f"{name}: exit {code}, expected {128 + number}; saved step {saved} of {done.read_text()}")
        good += right and same(name, {})
    return good, trials


def launch(name, options, processes=2):
    """Starts main.py under torchrun in the background."""
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), str(ROOT / "main.py")]
    with open(WORK / f"{name}.err", "a") as log:
        return subprocess.Popen(
            [sys.executable, *words, *flags(name, options)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )


def ranks_of(agent):
    """Returns the process ids of torchrun's workers."""
    listed = subprocess.run(["ps", "--ppid", str(agent.pid), "-o", "pid="], capture_output=True, text=True)
    return [int(number) for number in listed.stdout.split()]


def newest_step(name):
    found = checkpoint.step_folders(WORK / "runs" / name / "checkpoints")
    return int(found[0].name[5:]) if found else 0


def stop_several(name, options, whom, number):
    """Starts or resumes a run and, after some steps, sends a signal to one worker, all workers or torchrun. Returns
    whether they were still running."""
    before, steps, agent = newest_step(name), RNG.randrange(1, 8), launch(name, options)
    while agent.poll() is None and newest_step(name) < before + steps:
        time.sleep(0.01)
    time.sleep(RNG.uniform(0.0, 0.1))
    found = ranks_of(agent) if agent.poll() is None else []
    chosen = {"one": found[-1:], "all": found, "torchrun": [agent.pid]}[whom]
    for rank in chosen if found else []:
        with contextlib.suppress(ProcessLookupError):
            os.kill(rank, number)
    agent.wait()
    return bool(found)


def chain_of_stops(name, options, stops):
    """Runs two processes, stops them once per (whom, signal) in `stops`, and resumes them.

    Returns (number of successful stops: all if the result is bit-exact, otherwise 0; number of stops in the run).
    """
    key = "several" + json.dumps(options, sort_keys=True)
    if key not in REFERENCES:
        assert launch("whole", options).wait() == 0, (WORK / "whole.err").read_text()[-3000:]
        REFERENCES[key] = digest("whole")
        clean("whole")
    done = sum(stop_several(name, options, *stop) for stop in stops)
    code = launch(name, options).wait()
    right = code == 0 and digest(name) == REFERENCES[key]
    if not right:
        print(f"{name}: {done} stops, exit {code}, bit-exact: {right}; {options}")
        print((WORK / f"{name}.err").read_text()[-2000:])
    clean(name)
    return (done if right else 0), max(done, not right)


def several_processes(kind, kinds_of_stops, chains):
    good = trials = 0
    for a, b in (({}, {}), ({}, FGM), (STREAM, {}), (STREAM, FGM)):
        length = dict(epochs=40, save_steps=1) if b else dict(epochs=20, save_steps=3)  # long enough for all stops
        options = {**a, **b, **length, "batch_size": 2, "early_stop_patience": 0}
        for chain in range(chains):
            stops = [kinds_of_stops[(chain + i) % len(kinds_of_stops)] for i in range(6 if kind == "kill" else 3)]
            equal, came = chain_of_stops(f"{kind}s{chain}", options, stops)
            good, trials = good + equal, trials + came
            print(f"  {kind}: {good} of {trials}", flush=True)
    return good, trials


def kill_several(trials=48):
    return several_processes("kill", [(whom, signal.SIGKILL) for whom in ("one", "all", "torchrun")], trials // 24)


def ask_several(trials=12):
    return several_processes("ask", [(whom, signal.SIGTERM) for whom in ("one", "torchrun")], trials // 12)


def pytest_row(selection, **environment):
    """Runs tests with pytest. Returns (number passed, number run)."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *selection],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    passed, failed = (int((re.findall(rf"(\d+) {word}", done.stdout) or [0])[-1]) for word in ("passed", "failed"))
    if done.returncode:
        print(done.stdout[-3000:])
    return passed, passed + failed + (done.returncode != 0 and not failed)  # a collection error counts as a failure


def system_calls(trials=None):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-s", "tests/engine/test_checkpoint.py", "-m", "slow", "-k", "system_call"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    points = int((re.findall(r"(\d+) kill points", done.stdout) or [0])[-1])
    return points, points + (done.returncode != 0)


def malformed(trials=None):
    modules = ("data_process", "main", "config", "model_utils")
    return pytest_row([*(f"tests/test_{module}.py" for module in modules), "-k", "one_line or bad_input"])


def hostile_texts(trials=None):
    return pytest_row(["tests/tools/test_export.py", "-m", "slow or not slow", "-k", "relations_events_and_tags"])


def properties(trials=None):
    passed, total = pytest_row(["tests/test_safety.py", "-k", "shift or offsets or arbitrary"], SOAK_EXAMPLES="2000")
    return passed * 2000, total * 2000


def canaries(trials=None):
    return pytest_row(["tests/test_safety.py", "-k", "execute or pickle"])


TESTS = {  # {title in the table: function}
    "SIGKILL at random times: {memory, streaming} x {plain, FGM + accumulation} x {0, 2 workers}": kill_at_random_times,
    "SIGKILL at random times, relations: {memory, streaming} x {plain, FGM + accumulation}": kill_relations,
    "SIGKILL after each single step: {memory, streaming}": kill_after_each_step,
    "five kills in one run": chains_of_kills,
    "the whole command killed from outside, then repeated with --resume": kill_the_command_line,
    "SIGKILL at every system call of save and rotation: a valid checkpoint always exists": system_calls,
    "each saved item left out on purpose: the comparison detects it": left_out,
    "other save and log frequencies: identical weights": other_frequencies,
    "bits flipped, files truncated or deleted in a checkpoint: detected, and the previous one is used": damage,
    "full disk: a one-line error, old checkpoints intact, resumes afterwards": full_disk,
    "SIGTERM and SIGINT in training, first batch, evaluation, save: correct exit code, bit-exact": signals,
    "torchrun: SIGKILL of one, all, torchrun; {memory, streaming} x {plain, FGM + accumulation}": kill_several,
    "torchrun: SIGTERM to one process or to torchrun, the same four configurations": ask_several,
    "malformed inputs and options: a one-line error that names the place, exit 2, nothing written": malformed,
    "unusual texts (empty, blank, one word, emoji, 5,000 words): main.py and an export agree": hostile_texts,
    "property-based inputs to the readers and the tokenizer alignment (hypothesis), 2,000 each": properties,
    "a canary in every loadable file: nothing is executed": canaries,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="*", default=[""], help="run the tests whose function names contain one of these words"
    )
    options = parser.parse_args()
    make_data()
    table, began = ["| test | passed | trials | seconds |", "| --- | --- | --- | --- |"], time.monotonic()
    failed = False
    for title, test in TESTS.items():
        if any(word in test.__name__ for word in options.only):
            started = time.monotonic()
            good, trials = test()
            failed |= good != trials
            table.append(f"| {title} | {good} | {trials} | {time.monotonic() - started:.0f} |")
            print(table[-1], flush=True)
    print("\n" + "\n".join(table) + f"\n\n{time.monotonic() - began:.0f} s; torch {torch.__version__}")
    shutil.rmtree(WORK, ignore_errors=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
