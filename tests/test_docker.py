"""The steps of Dockerfile.train, run without Docker in this environment instead of the base image."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import ROOT, read_json

FILE = ROOT / "Dockerfile.train"


def steps():
    """Returns [(instruction, its text)]."""
    lines = [line for line in FILE.read_text().splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(" ", 1)) for line in lines]


def is_sent(source):
    """Returns whether Dockerfile.train.dockerignore includes a file or folder."""
    rules = (ROOT / f"{FILE.name}.dockerignore").read_text().splitlines()
    assert rules[0] == "*"
    return any(Path(source).match(rule[1:]) for rule in rules if rule.startswith("!"))


def copy(sources, target, app):
    for pattern in sources:
        found = [path for path in ROOT.glob(pattern) if is_sent(path.relative_to(ROOT))]
        assert found, f"COPY {pattern}: nothing is sent"
        for path in found:
            if path.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(path, app / target, ignore=ignored, dirs_exist_ok=True)
            else:
                shutil.copy(path, app / target)


def base_image(folder):
    """Returns the environment variables of a Python with this environment's packages, in which pip installs nothing
    else."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    [packages] = folder.glob("lib/*/site-packages")
    (packages / "base.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}


@pytest.mark.slow
def test_steps_of_the_training_dockerfile(tmp_path):
    app, entry, user = tmp_path / "app", None, "root"
    environment = base_image(tmp_path / "base")
    for word, rest in steps():
        if word == "COPY":
            *sources, target = rest.split()
            copy(sources, target, app)
        elif word == "RUN":
            done = subprocess.run(rest, shell=True, cwd=app, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        elif word == "ENV":
            environment |= dict(pair.split("=") for pair in rest.split())
        elif word == "WORKDIR":
            assert rest == "/app"
            app.mkdir()
        elif word == "USER":
            user = rest
        elif word == "ENTRYPOINT":
            entry = json.loads(rest)
        else:
            assert word in ("ARG", "FROM", "CMD"), word
    assert user != "root" and (app / "output").stat().st_mode & 0o777 == 0o777
    assert not list((tmp_path / "base").glob("lib/*/site-packages/torch"))  # the version of the image is kept
    flags = "--do_train --do_eval --do_predict --epochs 1 --hidden_size 32 --num_layers 1 --device cpu".split()
    done = subprocess.run([*entry, *flags], cwd=app, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert read_json(app / "output/sample/eval.json")["test"] and (app / "output/sample/report.html").exists()
    assert (app / "dataset/sample/labels.json").exists()


def test_base_image_is_an_argument_and_keeps_its_torch():
    text = FILE.read_text()
    base = re.search(r"^ARG BASE=pytorch/pytorch:(\d+)\.(\d+)\.\d+-cuda\S+-runtime\nFROM \$\{BASE\}$", text, re.M)
    assert base and (int(base[1]), int(base[2])) >= (2, 6)
    assert "-c torch.txt" in text
