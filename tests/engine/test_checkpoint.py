import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import ROOT, read_json
from safetensors.torch import load_file, save_file
from test_trainer import make_trainer, train

from config import seed_torch
from engine.data.tokenizer import train_tokenizer
from engine.errors import UserError
from engine.run import files
from engine.run.run_folder import claim_run_dir
from engine.train import checkpoint
from main import main
from model_utils import load_checkpoint


def filled(folder, text):
    files.replace_folder(folder, lambda temporary: (temporary / "a.txt").write_text(text))


def test_folder_is_replaced_atomically_and_damage_is_detected(tmp_path):
    folder = tmp_path / "best"
    for text in ("one", "two"):
        filled(folder, text)
        assert (folder / "a.txt").read_text() == text and files.verify(folder) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best"]
    (folder / "a.txt").write_text("twO")
    assert "a.txt" in files.verify(folder)
    (folder / "a.txt").unlink()
    assert "missing" in files.verify(folder)
    (folder / "manifest.json").write_text("{")
    assert "manifest" in files.verify(folder)


VICTIM = """
import builtins, io, os, pathlib, runpy, signal, sys
sys.path.insert(0, sys.argv[1])
from engine.run import files
from engine.train import checkpoint

def life(root, nth):
    calls = [0]
    def count(event, details):
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "fsync", "write"):
            calls[0] += 1
            if calls[0] == nth:
                os.kill(os.getpid(), signal.SIGKILL)
    fsync, real_open = os.fsync, open
    os.fsync = lambda descriptor: (count("fsync", ()), fsync(descriptor))
    def killed_half_way(path, mode="r", *args, **options):
        file = real_open(path, mode, *args, **options)
        if mode == "w":
            write = file.write
            def half_way(text):
                write(text[: len(text) // 2])
                file.flush()
                count("write", ())
                return write(text[len(text) // 2 :])
            file.write = half_way
        return file
    builtins.open = io.open = killed_half_way
    sys.addaudithook(count)
    fill = lambda folder: [(folder / name).write_text("new " + name) for name in "ab"]
    files.replace_folder(root / "best", fill)
    files.replace_folder(root / "step_00000003", fill)
    checkpoint.rotate(root)

for nth in range(1, 500):
    child = os.fork()
    if not child:
        life(pathlib.Path(sys.argv[2]) / str(nth), nth)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
print(nth)
"""


@pytest.mark.slow
def test_valid_checkpoints_remain_after_a_kill_at_any_system_call(tmp_path):
    """Kills a process at its n-th open, write, fsync, rename or unlink, for every n; afterwards best and two other
    checkpoints must be valid."""
    runs = tmp_path / "runs"
    for n in range(1, 500):
        for name in ("best", "step_00000001", "step_00000002"):
            filled(runs / str(n) / name, "old")
    (tmp_path / "victim.py").write_text(VICTIM)
    done = subprocess.run(
        [sys.executable, tmp_path / "victim.py", ROOT, runs], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    points, outcomes = int(done.stdout.split()[-1]), set()
    assert 50 < points < 499
    for n in range(1, points + 1):
        files.clean_temporaries(runs / str(n))
        assert files.verify(runs / str(n) / "best") is None, n
        outcomes.add((runs / str(n) / "best/a.txt").exists())
        assert sum(files.verify(folder) is None for folder in checkpoint.step_folders(runs / str(n))) >= 2, n
        assert not [path.name for path in (runs / str(n)).iterdir() if path.name.startswith(".")], n
    assert outcomes == {True, False}
    print(f"{points} kill points")


def test_rotation_keeps_the_newest(tmp_path):
    for step in (5, 40, 300):
        filled(tmp_path / f"step_{step:08d}", "x")
    checkpoint.rotate(tmp_path)
    assert [path.name for path in checkpoint.step_folders(tmp_path)] == ["step_00000300", "step_00000040"]


WRITERS = {
    "safetensors": lambda folder: save_file({"w": torch.zeros(1 << 18)}, folder / "weights.safetensors"),
    "tokenizers": lambda folder: train_tokenizer(
        lambda: [f"word{i}" for i in range(20_000)] * 2, 30_000
    ).save_pretrained(folder),
    "json": lambda folder: files.write_json(folder / "big.json", "x" * 200_000),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_full_disk_is_a_one_line_error_and_old_checkpoints_stay(writer, tmp_path):
    """Writes beyond RLIMIT_FSIZE fail like on a full disk (with EFBIG instead of ENOSPC); each library raises a
    different error."""
    folder, fill = tmp_path / "best", WRITERS[writer]
    filled(folder, "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(UserError, match="cannot be written"):
            files.replace_folder(folder, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert files.verify(folder) is None and (folder / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


@pytest.mark.parametrize(
    "options", [dict(pooling="mean"), dict(encoder="bilstm", use_crf=True, special_tokens="<e1>", shared_layers=1)]
)
def test_checkpoint_is_self_contained(options, tiny):
    config = tiny(epochs=1, **options)
    trainer = train(config)
    model, tokenizer, tasks, loaded = load_checkpoint(config.run_dir / "checkpoints/best")
    assert loaded == trainer.config and tasks == trainer.tasks
    assert tokenizer.get_vocab() == trainer.tokenizer.get_vocab()
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_weights_of_another_model_and_damage_are_rejected(tiny):
    config = tiny(epochs=1)
    train(config)
    best = config.run_dir / "checkpoints/best"
    other = make_trainer(tiny(hidden_size=64, model_version="wide"))
    with pytest.raises(UserError, match="another model"):
        checkpoint.load_weights(other.model, best)
    with_crf = make_trainer(tiny(use_crf=True, model_version="crf"))
    with pytest.raises(UserError, match="crf"):
        checkpoint.load_weights(with_crf.model, best)
    (best / "labels.json").write_text("{}")
    with pytest.raises(UserError, match=r"labels\.json has changed since it was written"):
        load_checkpoint(best)
    with pytest.raises(UserError, match="no checkpoint there"):
        load_checkpoint(config.run_dir / "nowhere")


def test_checkpoint_contains_nothing_executable(tiny):
    config = tiny(epochs=1)
    train(config)
    kinds = {path.suffix for folder in (config.run_dir / "checkpoints").iterdir() for path in folder.iterdir()}
    assert kinds == {".json", ".safetensors"}
    assert load_file(config.run_dir / "checkpoints/best/weights.safetensors")


@pytest.mark.slow
def test_run_folder_is_locked_and_released_by_a_kill(tiny, tmp_path):
    config = tiny(do_train=True)
    config.run_dir.mkdir(parents=True)
    code = """
import filelock, sys, time
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code, config.run_dir / ".lock"], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="in use"), claim_run_dir(config):
        pass
    holder.kill()
    holder.wait()
    with claim_run_dir(config) as run_dir:
        assert run_dir == config.run_dir


@pytest.mark.slow
def test_resume_after_signals_is_bit_exact(sample, command, tmp_path, background):
    """Runs the whole command line with real signals: SIGTERM saves and exits with 143; SIGKILL loses steps, but the
    result is bit-exact."""
    flags = [
        "--do_train",
        "--do_eval",
        "--do_predict",
        "--resume",
        "--data_path",
        sample,
        "--hidden_size",
        32,
        "--num_layers",
        1,
        "--batch_size",
        4,
        "--vocab_size",
        500,
        "--epochs",
        6,
        "--save_steps",
        5,
        "--log_steps",
        3,
        "--early_stop_patience",
        0,
    ]
    assert command("main.py", *flags, "--model_version", "whole").returncode == 0
    whole, cut = tmp_path / "output/whole", tmp_path / "output/cut"
    codes = []
    for number in (signal.SIGTERM, signal.SIGKILL, None):
        process = background("main.py", *flags, "--model_version", "cut")
        logged = (cut / "metrics.jsonl").stat().st_size if (cut / "metrics.jsonl").exists() else 0
        while number and process.poll() is None:
            if (cut / "metrics.jsonl").exists() and (cut / "metrics.jsonl").stat().st_size > logged + 300:
                process.send_signal(number)
                break
            time.sleep(0.01)
        codes.append(process.wait())
    assert codes[0] == 143 and codes[1] == -9 and codes[2] == 0
    for name in ("metrics.jsonl", "eval.json", "predictions.csv", "checkpoints/best/weights.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    assert (
        command("main.py", *flags[:3], *flags[4:], "--model_version", "whole").returncode == 2
    )  # without --resume a finished run is not overwritten


def test_resume_with_changes_that_affect_the_result_is_rejected(tiny, sample, tmp_path, caplog):
    """Changed options, data, labels or tokenizer are named in the error. --force_resume ignores them. Options that do
    not affect the result may change."""
    import shutil

    import main

    data = tmp_path / "data"
    shutil.copytree(sample, data, ignore=shutil.ignore_patterns(".cache"))

    def run(**options):
        base = dict(data_path=str(data), do_train=True, resume=True, epochs=1, scheduler="constant", warmup_epochs=0.5)
        main.main(tiny(**{**base, **options}))

    run()
    for name, value in dict(
        lr=0.1, batch_size=4, random_seed=1, use_crf=True, epochs=0, scheduler="cosine", max_length=99, streaming=True
    ).items():
        with pytest.raises(UserError, match=rf"{name} was .*force_resume"):
            run(**{name: value})
    run(epochs=2, log_steps=1, num_workers=1, save_steps=2, device="auto")
    assert checkpoint.step_folders(tiny().run_dir / "checkpoints")[0].name == "step_00000016"
    lines = (data / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (data / "train.jsonl").write_text("".join([*lines[1:], lines[0]]), encoding="utf-8")
    with pytest.raises(UserError, match="data or the tokenizer has changed"):
        run(epochs=3)
    run(epochs=3, force_resume=True)
    assert checkpoint.step_folders(tiny().run_dir / "checkpoints")[0].name == "step_00000024"
    labels = (data / "labels.json").read_text()
    (data / "labels.json").write_text(labels.replace('"call"', '"dial"'))
    renamed = (data / "train.jsonl").read_text(encoding="utf-8").replace('"call"', '"dial"')
    (data / "train.jsonl").write_text(renamed, encoding="utf-8")
    with pytest.raises(UserError, match=r"labels of 'intent' have changed since then \(call, dial\)"):
        run(epochs=4, force_resume=True)
    with pytest.raises(UserError, match=r"only in the data: dial; only in the model: call"):
        run(do_train=False, do_eval=True)


def test_resume_with_another_thread_count_is_logged(tiny, monkeypatch):
    config, logged = tiny(epochs=1), []
    train(config)
    monkeypatch.setattr("engine.train.checkpoint.logger.warning", logged.append)
    monkeypatch.setattr(
        "engine.train.checkpoint.environment", lambda device: {"torch": "9.9", "device": "cpu", "threads": 64}
    )
    train(config)
    assert len(logged) == 2 and "torch was" in logged[0] and "threads was" in logged[1]


def test_failed_run_removes_only_its_own_folder(tiny, tmp_path):
    config = tiny(do_train=True)
    with pytest.raises(UserError), claim_run_dir(config):
        (config.run_dir.parent / "other").mkdir()
        raise UserError("no such data")
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["other"]
    (tmp_path / "output/other").rmdir()
    (tmp_path / "output").rmdir()
    with pytest.raises(OSError), claim_run_dir(config):
        raise OSError("no space")
    assert not (tmp_path / "output").exists()


@pytest.mark.slow
def test_signal_to_the_process_group_saves_despite_workers(sample, tmp_path):
    command = [
        sys.executable,
        str(ROOT / "main.py"),
        "--do_train",
        "--data_path",
        sample,
        "--num_workers",
        "2",
        "--epochs",
        "200",
        "--hidden_size",
        "32",
    ]
    process = subprocess.Popen(
        [*map(str, command), "--early_stop_patience", "0"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    metrics = tmp_path / "output/tiny/metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size > 500):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    _, messages = process.communicate()
    assert process.returncode == 143 and "Traceback" not in messages, messages
    newest = checkpoint.step_folders(tmp_path / "output/tiny/checkpoints")[0]
    assert files.verify(newest) is None and messages.count("saving at the next step") == 1


def test_background_save_is_not_affected_by_further_training(tiny):
    trainer = make_trainer(tiny(epochs=1))
    weight = next(trainer.model.parameters())
    then = weight.detach().clone()
    with trainer.writer:
        for number in range(3):
            trainer.save_model(f"copy_{number}")
            with torch.no_grad():
                weight.mul_(2)
    name = next(iter(trainer.model.state_dict()))
    for number in range(3):
        assert files.verify(trainer.checkpoints / f"copy_{number}") is None
        assert torch.equal(
            load_file(trainer.checkpoints / f"copy_{number}/weights.safetensors")[name], then * 2**number
        )


def test_error_in_the_writer_thread_is_a_one_line_error(tiny):
    trainer = make_trainer(tiny(epochs=1))
    trainer.checkpoints.parent.mkdir(parents=True, exist_ok=True)
    trainer.checkpoints.write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot be written"):
        trainer.train()
    trainer.save_model("best")
    with pytest.raises(UserError, match="cannot be written"):
        trainer.writer.wait()


def test_rotation_ignores_damaged_checkpoints(tiny):
    """If the two newest are damaged, the run resumes from the third, and all checkpoints are valid at the end."""
    config = tiny(epochs=3, save_steps=4)
    train(config)
    root = config.run_dir / "checkpoints"
    newest, _, *_ = checkpoint.step_folders(root)
    for name in ("step_90000000", "step_90000001"):
        shutil.copytree(newest, root / name)
        (root / name / "training.json").write_text("{}")
    train(config)
    assert len(checkpoint.step_folders(root)) == 2 and not any(
        files.verify(folder) for folder in checkpoint.step_folders(root)
    )


def test_resume_with_an_added_trick_is_a_one_line_error(tiny):
    train(tiny(epochs=1))
    with pytest.raises(UserError, match="other options"):
        make_trainer(tiny(epochs=2, use_ema=True, force_resume=True)).resume()


def test_failed_save_does_not_prevent_the_next_one(tiny):
    """The first fails, the second is still written, and the first error is raised."""
    trainer = make_trainer(tiny(epochs=1))
    with pytest.raises(UserError, match="cannot be written"), trainer.writer:
        trainer.checkpoints.parent.mkdir(parents=True, exist_ok=True)
        trainer.checkpoints.write_text("a file where the folder should be")
        trainer.save_model("first")
        trainer.writer.thread.submit(trainer.checkpoints.unlink).result()
        trainer.save_model("second")
    assert files.verify(trainer.checkpoints / "second") is None


def hurt(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(bytes(data))


def test_error_for_a_damaged_best_names_valid_checkpoints(tiny, command, sample):
    config = tiny(epochs=1)
    train(config)
    folder = config.run_dir / "checkpoints"
    (step,) = checkpoint.step_folders(folder)
    hurt(folder / "best/weights.safetensors")
    flags = ["--do_eval", "--data_path", sample, "--output_dir", config.output_dir, "--model_version", "run"]
    done = command("main.py", *flags)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert "weights.safetensors has changed since it was written" in line and f"{step.name} (the same weights)" in line
    assert line.endswith(f"--checkpoint {step}")
    done = command("main.py", *flags, "--checkpoint", step)  # the suggested command
    assert done.returncode == 0, done.stderr
    with pytest.raises(UserError, match="the same weights"):  # resuming a finished run also loads its best
        train(config)
    hurt(step / "weights.safetensors")
    with pytest.raises(UserError, match="none next to it is intact; train again"):
        load_checkpoint(folder / "best")


def test_error_for_other_weights_does_not_claim_equal_weights(tiny):
    config = tiny(epochs=1, use_ema=True)
    train(config)
    hurt(config.run_dir / "checkpoints/best/encoder.json")
    with pytest.raises(UserError) as error:
        load_checkpoint(config.run_dir / "checkpoints/best")
    assert "step_00000008" in str(error.value) and "same weights" not in str(error.value)


def test_signals_within_the_grace_period_count_once_and_a_later_one_kills():
    """If torchrun is killed, each of its threads causes a signal, because the kernel reparents its children one by
    one."""
    script = """if True:
        import os, signal
        from engine.run import signals
        with signals.StopSignals() as stop:
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), number)
            print(stop.number == signal.SIGTERM, flush=True)
            signals.GRACE = 0
            os.kill(os.getpid(), signal.SIGINT)
            print("not reached", flush=True)
    """
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    message = "SIGTERM: saving at the next step boundary; a second signal ends the process immediately"
    assert done.stdout.splitlines() == [message, "True"]
    assert done.returncode == -signal.SIGINT


def damage(path, kind, rng):
    """Damages a file like a failing disk or an interrupted copy would."""
    content = bytearray(path.read_bytes())
    path.unlink()  # not in place: existing memory maps keep the old content
    if kind == "flipped":
        for _ in range(rng.choice([1, 100])):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "truncated":
        content = content[: rng.randrange(len(content))]
    if kind != "deleted":
        path.write_bytes(content)
    if kind == "read-only":
        path.chmod(0o444)


@pytest.mark.slow
def test_random_damage_never_gives_wrong_values(sample, tiny, tmp_path):
    """Damages token caches and the best checkpoint. They are rebuilt, or a one-line error is raised; never other
    numbers or a traceback."""
    data, rng = tmp_path / "data", random.Random(0)
    shutil.copytree(sample, data, ignore=shutil.ignore_patterns(".cache"))
    main(tiny(do_train=True, do_eval=True, data_path=str(data)))
    run, kept = tmp_path / "output/run", tmp_path / "kept"
    expected = read_json(run / "eval.json")
    shutil.copytree(run / "checkpoints/best", kept / "best")
    shutil.copytree(data / ".cache", kept / ".cache")
    kinds, found = ("flipped", "truncated", "deleted", "read-only"), Counter()
    for number in range(60):
        kind, place = kinds[number % 4], (run / "checkpoints/best", data / ".cache")[number // 4 % 2]
        shutil.rmtree(place)
        shutil.copytree(kept / place.name, place)
        damage(rng.choice(sorted(place.iterdir())), kind, rng)
        (run / "eval.json").unlink(missing_ok=True)
        try:
            main(tiny(do_eval=True, data_path=str(data)))
        except UserError as error:
            assert place.name == "best" and "damaged checkpoint" in str(error) and "--checkpoint" in str(error)
            found["logged"] += 1
            continue
        assert read_json(run / "eval.json") == expected, (number, kind)
        found[place.name] += 1
    assert found[".cache"] > 25 and found["logged"] > 15 and sum(found.values()) == 60


def test_all_random_states_are_restored():
    """Includes Python's and NumPy's generators, which user code may use; each may have cached the second number of a
    pair."""

    def draw():
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.normal(), torch.rand(1).item()]

    seed_torch(3)
    draw()
    tensors, values = checkpoint.random_states(torch.device("cpu"))
    values, expected = json.loads(json.dumps(values)), draw()
    draw()
    checkpoint.set_random_states(tensors, values, torch.device("cpu"))
    assert draw() == expected


def test_bug_in_a_user_trick_is_not_reported_as_a_damaged_checkpoint(tiny, monkeypatch):
    train(tiny(epochs=1, use_ema=True))
    trainer = make_trainer(tiny(epochs=2, use_ema=True, force_resume=True))
    monkeypatch.setattr(type(trainer.tricks), "load_state_dict", lambda self, state: state["ema"] + 1)
    with pytest.raises(UserError, match="was made with other options"):  # a KeyError: --force_resume may explain it
        trainer.resume()
    monkeypatch.setattr(type(trainer.tricks), "load_state_dict", lambda self, state: None + 1)
    with pytest.raises(TypeError):
        trainer.resume()
