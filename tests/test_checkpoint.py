import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file
from test_trainer import make_trainer, train

import checkpoint
from config import UserError
from run_folder import locked


def filled(folder, text):
    checkpoint.write_folder(folder, lambda temporary: (temporary / "a.txt").write_text(text))


def test_a_folder_replaces_another_whole_and_damage_is_noticed(tmp_path):
    folder = tmp_path / "best"
    for text in ("one", "two"):
        filled(folder, text)
        assert (folder / "a.txt").read_text() == text and checkpoint.damage(folder) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best"]
    (folder / "a.txt").write_text("twO")
    assert "a.txt" in checkpoint.damage(folder)
    (folder / "a.txt").unlink()
    assert "missing" in checkpoint.damage(folder)
    (folder / "manifest.json").write_text("{")
    assert "manifest" in checkpoint.damage(folder)


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import checkpoint
from pathlib import Path
calls, wanted = 0, int(sys.argv[3])
def deadly(function):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == wanted:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call
root = Path(sys.argv[2])
fill = lambda text: lambda folder: [(folder / name).write_text(text) for name in "abc"]
for name in ("open", "fsync", "rename", "mkdir", "unlink", "rmdir"):
    setattr(os, name, deadly(getattr(os, name)))
checkpoint.write_folder(root / "best", fill("new"))
print("survived", calls)
"""


def test_killed_at_any_system_call_of_a_save_an_intact_folder_remains(tmp_path):
    """In one process a fork is killed at its n-th call, for every n; what is left must verify after `sweep`."""
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, sys, runpy\n"
        f"sys.path.insert(0, {str(ROOT)!r})\nimport checkpoint\n"
        "for n in range(1, 200):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        f"        sys.argv = ['x', {str(ROOT)!r}, os.path.join({str(tmp_path)!r}, 'runs', str(n)), str(n)]\n"
        f"        runpy.run_path({str(tmp_path / 'victim.py')!r}); os._exit(0)\n"
        "    if os.waitpid(child, 0)[1] == 0: break\n"
        "print(n)\n"
    )
    (tmp_path / "victim.py").write_text(KILLED)
    for n in range(1, 200):
        filled(tmp_path / "runs" / str(n) / "best", "old")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    survived = int(done.stdout.split()[-1])
    assert 15 < survived < 199
    outcomes = set()
    for n in range(1, survived + 1):
        root = tmp_path / "runs" / str(n)
        checkpoint.sweep(root)
        assert checkpoint.damage(root / "best") is None, n
        assert [path.name for path in root.iterdir()] == ["best"], n
        outcomes.add((root / "best" / ("a.txt" if (root / "best/a.txt").exists() else "a")).read_text())
    assert outcomes == {"old", "new"}


def test_rotation_keeps_the_newest(tmp_path):
    for step in (5, 40, 300):
        filled(tmp_path / f"step_{step:08d}", "x")
    checkpoint.rotate(tmp_path)
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["step_00000300", "step_00000040"]


def test_a_full_disk_ends_in_one_line_and_the_old_checkpoint_stays(tmp_path):
    """Beyond RLIMIT_FSIZE a write fails as on a full disk (EFBIG in the place of ENOSPC)."""
    folder = tmp_path / "best"
    filled(folder, "old")

    def fill(temporary):
        from safetensors.torch import save_file

        save_file({"w": torch.zeros(1 << 18)}, temporary / "model.safetensors")

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(UserError, match="cannot be written"):
            checkpoint.write_folder(folder, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert checkpoint.damage(folder) is None and (folder / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


@pytest.mark.parametrize("options", [dict(), dict(encoder="bilstm", use_crf=True, special_tokens="<e1>", shared_layers=1)])
def test_a_checkpoint_alone_brings_back_the_model(options, tiny):
    config = tiny(epochs=1, **options)
    trainer = train(config)
    model, tokenizer, tasks, loaded = checkpoint.load(config.run_dir / "checkpoints/best")
    assert loaded == config and tasks == trainer.tasks
    assert tokenizer.get_vocab() == trainer.tokenizer.get_vocab()
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_another_models_weights_and_damage_are_refused(tiny):
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
    with pytest.raises(UserError, match=r"labels\.json is not what was written"):
        checkpoint.load(best)
    with pytest.raises(UserError, match="no checkpoint there"):
        checkpoint.load(config.run_dir / "nowhere")


def test_nothing_in_a_checkpoint_can_execute(tiny):
    config = tiny(epochs=1)
    train(config)
    kinds = {path.suffix for folder in (config.run_dir / "checkpoints").iterdir() for path in folder.iterdir()}
    assert kinds == {".json", ".safetensors"}
    assert load_file(config.run_dir / "checkpoints/best/model.safetensors")


def test_two_processes_cannot_share_a_run_folder_and_a_kill_frees_it(tiny, tmp_path):
    config = tiny(do_train=True)
    config.run_dir.mkdir(parents=True)
    code = "import filelock, sys, time; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, config.run_dir / ".lock"], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="in use"), locked(config):
        pass
    holder.kill()
    holder.wait()
    with locked(config) as run_dir:
        assert run_dir == config.run_dir


def test_a_killed_and_repeated_command_ends_like_one_that_was_left_alone(sample, command, tmp_path):
    """The whole command line, with real signals: SIGTERM saves and exits with 143, SIGKILL loses steps but no bytes."""
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
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "main.py"), *map(str, flags), "--model_version", "cut"],
            cwd=tmp_path,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        logged = (cut / "metrics.jsonl").stat().st_size if (cut / "metrics.jsonl").exists() else 0
        while number and process.poll() is None:
            if (cut / "metrics.jsonl").exists() and (cut / "metrics.jsonl").stat().st_size > logged + 300:
                process.send_signal(number)
                break
            time.sleep(0.01)
        codes.append(process.wait())
    assert codes[0] == 143 and codes[1] == -9 and codes[2] == 0
    for name in ("metrics.jsonl", "eval.json", "predictions.csv", "checkpoints/best/model.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    assert (
        command("main.py", *flags[:3], *flags[4:], "--model_version", "whole").returncode == 2
    )  # without --resume a finished run is not overwritten
