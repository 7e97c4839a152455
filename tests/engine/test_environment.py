"""Package versions and GPUs: old libraries, incomplete environments, and their error messages."""

import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version

import pytest
import torch
from conftest import ROOT
from packaging.specifiers import SpecifierSet
from safetensors.torch import load_file
from test_trainer import make_trainer

import main as main_module
from engine.errors import UserError
from engine.run import compat
from engine.run.device import to_device
from engine.run.environment import Requirement, gpu_problem, pins, read_requirements

FILES = ["requirements.txt", "requirements-test.txt", "requirements-lora.txt", "requirements-excel.txt"]
FILES += [f"tools/{name}/requirements.txt" for name in ("demo", "export", "search", "serve")]
slow = pytest.mark.slow


# ---- torch 2.4 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[[3.0, 4.0], [12.0]], [[1e30, 1.0]], [[float("inf")], [1.0]], [[float("nan")]], []])
def test_norms_agree_with_torch_before_2_6(values, monkeypatch):
    parameters = [torch.nn.Parameter(torch.zeros(len(row))) for row in values]
    grads = [torch.tensor(row) for row in values]
    found = []
    for _ in range(2):
        for parameter, grad in zip(parameters, grads):
            parameter.grad = grad.clone()
        norm = compat.get_total_norm(grads)
        compat.clip_grads_with_norm_([*parameters, torch.nn.Parameter(torch.zeros(1))], 2.0, norm)
        found.append([norm, *(parameter.grad for parameter in parameters)])
        monkeypatch.delattr(torch.nn.utils, "get_total_norm", raising=False)
        monkeypatch.delattr(torch.nn.utils, "clip_grads_with_norm_", raising=False)
    torch.testing.assert_close(*found, rtol=0, atol=0, equal_nan=True)
    if values and values[0] == [3.0, 4.0]:
        assert found[1][0] == 13 and abs(found[1][1][0] - 6 / 13) < 1e-6


OLD_TORCH = """
import runpy, sys, torch, torch.nn.utils, transformers
for owner, names in ((torch.nn.utils, ["get_total_norm", "clip_grads_with_norm_"]), (torch.onnx, ["ops"])):
    for name in names:
        delattr(owner, name)
sys.path.insert(0, sys.argv[1])
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@slow
def test_run_without_functions_missing_in_torch_2_4_is_identical(tiny, sample, tmp_path):
    options = dict(epochs=1, max_grad_norm=0.1)
    trainer = make_trainer(tiny(**options))
    trainer.train()
    flags = [f"--{name}={value}" for name, value in {**vars(trainer.config), **options}.items() if name in FLAGS]
    flags += ["--do_train", "--do_eval", f"--data_path={sample}", f"--output_dir={tmp_path / 'old'}"]
    words = [sys.executable, "-c", OLD_TORCH, ROOT, ROOT / "main.py", *flags, "--model_version=run"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    weights = [load_file(tmp_path / name / "run/checkpoints/best/weights.safetensors") for name in ("output", "old")]
    assert weights[0].keys() == weights[1].keys()
    torch.testing.assert_close(*weights)


FLAGS = "hidden_size num_layers epochs batch_size vocab_size lr device use_crf max_grad_norm precision".split()


# ---- datasets 3 ------------------------------------------------------------------------------------------------------


def test_class_labels_of_a_saved_dataset_are_names(tmp_path):
    import datasets

    from data_process import DataConfig, process

    several = getattr(datasets, "List", datasets.Sequence)
    tag, mood = datasets.ClassLabel(names=["O", "B-x"]), datasets.ClassLabel(names=["bad", "good"])
    of_tags = {"tokens": several(datasets.Value("string")), "tags": several(tag)}
    of_texts = {"text": datasets.Value("string"), "label": mood}
    tagged = [{"tokens": ["a", f"b{n}"], "tags": [0, 1]} for n in range(40)]
    texts = [{"text": f"some words {n}", "label": n % 2} for n in range(40)]
    found = []
    for key, features, rows in (("tags", of_tags, tagged), ("label", of_texts, texts)):
        folder = str(tmp_path / key)
        datasets.Dataset.from_list(rows, features=datasets.Features(features)).save_to_disk(folder)
        process(DataConfig(input=folder, output_dir=f"{folder}-out"))
        written = [json.loads(line) for line in (tmp_path / f"{key}-out/train.jsonl").read_text().splitlines()]
        found.append({str(row[key]) for row in written})
    assert found == [{"['O', 'B-x']"}, {"bad", "good"}]


def test_dataset_script_is_not_executed_without_a_prompt(tmp_path, monkeypatch):
    from data_process import DataConfig, process

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    (tmp_path / "set/set.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with pytest.raises(UserError):
        process(DataConfig(input=str(tmp_path / "set"), output_dir=str(tmp_path / "out"), format="hf"))
    assert not (tmp_path / "ran").exists()


# ---- versions --------------------------------------------------------------------------------------------------------


VERSIONS = "2.3.9 2.4 2.4.0 2.4.1+cu121 2.10.0 3 3.0.0 3.1 4.48.0 4.48.3 4.47.9 5.23.0 6.0".split()


@pytest.mark.parametrize("bounds", [">=2.4,<3", ">=4.48,<6", ">=3", "==2.4", "!=2.4.0,>=2", ""])
def test_version_ranges_agree_with_packaging(bounds, monkeypatch):
    for have in VERSIONS:
        monkeypatch.setattr("engine.run.environment.version", lambda name, have=have: have)
        inside = SpecifierSet(bounds).contains(have.partition("+")[0])
        assert (Requirement("x", bounds).problem() is None) == inside, have


def test_vendor_build_counts_as_its_version(monkeypatch):
    monkeypatch.setattr("engine.run.environment.version", lambda name: "2.4.0a0+145a3a7bda.nv24.10")
    assert Requirement("torch", ">=2.4,<3").problem() is None


def test_constraints_are_within_the_ranges_and_complete():
    ranges = {one.name.lower(): one for name in FILES for one in read_requirements(ROOT / name)}
    tested = {pin.name: pin for pin in read_requirements(ROOT / "constraints.txt")}
    assert tested and set(tested) <= set(ranges)
    for name, pin in tested.items():
        assert pin.bounds.startswith("==") and SpecifierSet(ranges[name].bounds).contains(pin.bounds[2:]), name
    direct = {"numpy", "scipy", "pyarrow", "tokenizers", "markupsafe", "filelock", "jinja2", "regex", "ftfy"}
    assert set(ranges) - set(tested) == direct  # dependencies of the pinned packages
    together = {one.name: one.bounds for one in read_requirements(ROOT / "requirements-test.txt")}
    for name in FILES[2:]:
        assert all(together[one.name] == one.bounds for one in read_requirements(ROOT / name)), name


def test_python_version_markers(tmp_path):
    (tmp_path / "a.txt").write_text('# x\na==1; python_version >= "3.9"\na==2; python_version < "3.9"\n\nb[c]>=2 # y\n')
    assert read_requirements(tmp_path / "a.txt") == [Requirement("a", "==1"), Requirement("b", ">=2")]


def installed(folder, name, number, requires=""):
    """Creates the metadata of an installed package without code, like pip's."""
    place = folder / f"{name}-{number}.dist-info"
    place.mkdir(parents=True)
    requires = f"Requires-Dist: {requires}\n" if requires else ""
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n{requires}")
    (place / "WHEEL").write_text("Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    (place / "RECORD").write_text("".join(f"{place.name}/{part},,\n" for part in ("METADATA", "WHEEL", "RECORD")))
    (place / "INSTALLER").write_text("pip\n")
    return place


def test_incompatible_version_is_a_one_line_error_before_imports(command, tmp_path):
    installed(tmp_path / "old", "transformers", "4.40.1")
    done = command("main.py", "--do_train", env={"PYTHONPATH": str(tmp_path / "old")})
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not (tmp_path / "output").exists()
    assert "transformers is 4.40.1, but must be >=4.48,<6" in done.stderr and "pip install" in done.stderr


COMMANDS = ["main.py", "data_process.py", "huggingface_hands_on/continue_pretrain_task.py"]
COMMANDS += ["huggingface_hands_on/train_tokenizer_from_scratch.py", "-m tools.export", "-m tools.search"]


@pytest.fixture(scope="session")
def bare(tmp_path_factory):
    """Returns a Python without any packages."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin/python"


@pytest.mark.parametrize("name", COMMANDS)
def test_missing_packages_are_a_one_line_error(name, bare, tmp_path):
    words = name.split()[:-1] + [name.split()[-1] if name.startswith("-m") else str(ROOT / name)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([bare, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not any(tmp_path.iterdir())
    assert done.stderr.startswith("error: missing: torch, transformers") and "pip install -r" in done.stderr


def test_missing_package_is_reported_before_anything_is_written(command, tmp_path):
    hidden = """
import importlib.metadata as metadata, importlib.util as util
version, spec = metadata.version, util.find_spec
def of(name):
    if name == "pytorch-crf":
        raise metadata.PackageNotFoundError(name)
    return version(name)
metadata.version, util.find_spec = of, lambda name, *rest: None if name == "torchcrf" else spec(name, *rest)
"""
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide/sitecustomize.py").write_text(hidden)
    done = command("main.py", "--do_train", env={"PYTHONPATH": str(tmp_path / "hide")})
    assert done.returncode == 2 and "error: missing: pytorch-crf (" in done.stderr, done.stderr
    assert not (tmp_path / "output").exists()


def test_import_error_in_user_code_keeps_its_traceback(tmp_path):
    code = "from engine.run.environment import line_of_import_error as line\n"
    code += (
        "print(line(ModuleNotFoundError('', name='own_module')), line(ModuleNotFoundError('', name='torch.absent')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "None None\n", done.stderr


# ---- GPU -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Returns driver("535.1"), which puts an nvidia-smi that lists a GPU with this driver first on the PATH."""

    def make(number, code=0):
        (tmp_path / "bin").mkdir(exist_ok=True)
        program = tmp_path / "bin/nvidia-smi"
        program.write_text(f"#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, {number}'\nexit {code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return make


@pytest.mark.parametrize(
    ("cuda", "number", "message"),
    [
        ("13.0", "535.104.05", "is built for CUDA 13.0, which needs driver 580 or newer: update the driver, or"),
        ("12.4", "470.57", "needs driver 525 or newer"),
        ("12.4", "470.57", "for CUDA 11.8 (https"),  # torch for CUDA 12 would not work
        ("13.0", "580.65.06", "sees no GPU: python -c"),
        (None, "580.65.06", "is built without CUDA"),
    ],
)
def test_unusable_gpu_is_reported_with_advice(cuda, number, message, driver, tiny, monkeypatch):
    driver(number)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    problem = gpu_problem()
    assert message in problem and problem.startswith(
        f"nvidia-smi lists NVIDIA H100 80GB HBM3 with driver {number}, but"
    )
    assert f"torch {torch.__version__}" in problem and "\n" not in problem
    with pytest.raises(UserError, match="--device cuda: 0 CUDA devices found") as refused:
        to_device("cuda")
    assert problem in str(refused.value)


def test_no_gpu_or_a_hidden_one_is_not_reported(driver, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert gpu_problem() is None
    driver("535.104.05", code=9)  # like when the driver is not running
    assert gpu_problem() is None
    driver("[N/A]")
    assert gpu_problem() is None
    driver("535.104.05")
    assert gpu_problem()
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert gpu_problem() is None


def test_log_starts_with_versions_device_and_unused_gpu(driver, tiny):
    driver("535.104.05")
    for device in ("cpu", "auto"):
        config = tiny(device=device, do_train=True, epochs=1, model_version=device)
        main_module.main(config)
        lines = (config.run_dir / "train.log").read_text(encoding="utf-8").splitlines()
        first = f"torch {torch.__version__}, transformers {version('transformers')}, Python {platform.python_version()}"
        assert f", {first}; cpu, {torch.get_num_threads()} threads" in lines[1] and " template " in lines[1]
        warned = [line for line in lines if "this run uses the CPU: nvidia-smi lists" in line]
        assert warned == (lines[2:3] if device == "auto" else [])


# ---- setup_env.sh ----------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Returns a clone with few requirements, wheels to install offline, and an active Python with its own torch.

    server(torch version) -> function that sources setup_env.sh.
    """
    monkeypatch.chdir(tmp_path)
    for name in ("setup_env.sh", "engine/__init__.py", "engine/errors.py", "engine/run/environment.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "requirements.txt").write_text("torch>=2.4,<3\nsmall>=2\nextra>=1\n")
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\nsmall==2.0\nextra==2.0\n")
    (tmp_path / "wheels").mkdir()
    found = [("torch", "2.13.0", ""), ("small", "2.0", ""), ("small", "2.1", ""), ("extra", "1.0", "torch>=2")]
    for name, number, requires in [*found, ("extra", "2.0", "torch>=2.10")]:
        place = installed(tmp_path / "sources", name, number, requires)
        with zipfile.ZipFile(tmp_path / f"wheels/{name}-{number}-py3-none-any.whl", "w") as wheel:
            for path in sorted(place.iterdir()):
                wheel.write(path, f"{place.name}/{path.name}")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "active"], check=True)
    site = next((tmp_path / "active/lib").glob("python*/site-packages"))
    installed(site, "small", "1.0")

    def set_up(**more):
        script = 'set -eu; requirements="requirements.txt"; . ./setup_env.sh; echo "$PYTHON"'
        path = f"{more.pop('PATH', '')}{tmp_path / 'active/bin'}{os.pathsep}{os.environ['PATH']}"
        wheels = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "wheels")}
        environment = {**os.environ, "FORCE_VENV": "", **wheels, "PATH": path, "PIP_CONFIG_FILE": os.devnull, **more}
        return subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, timeout=300)

    def make(torch_version):
        installed(site, "torch", torch_version)
        return set_up

    return make


def versions_in(python):
    code = "from importlib.metadata import version as v; print(v('torch'), v('small'), v('extra'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.split()


@slow
def test_setup_keeps_the_installed_torch_and_adds_missing_packages(server, tmp_path):
    set_up = server("2.5.1+cu121")
    done = set_up()
    python = str(tmp_path / ".venv/bin/python")
    assert done.returncode == 0 and done.stdout.split() == [python], done.stderr
    assert "small is 1.0, but must be >=2; missing: extra" in done.stderr and "which uses the torch of" in done.stderr
    # the tested extra 2.0 needs a newer torch, so a compatible version is installed
    assert versions_in(python) == ["2.5.1+cu121", "2.1", "1.0"]
    own = {path.name for path in next((tmp_path / ".venv/lib").glob("python*/site-packages")).glob("*.dist-info")}
    assert {name for name in own if not name.startswith(("pip", "setuptools"))} == {
        "small-2.1.dist-info",
        "extra-1.0.dist-info",
    }
    assert len(list(tmp_path.glob("active/lib/python*/site-packages/*.dist-info"))) == 2
    again = set_up(PIP_FIND_LINKS="/nowhere")
    assert again.returncode == 0 and again.stdout.split() == [python] and again.stderr == ""


@slow
def test_setup_with_an_old_torch_installs_all_unless_the_driver_is_old(server, tmp_path, driver):
    set_up = server("2.1.0")
    driver("535.104.05")
    done = set_up()
    assert done.returncode == 2 and not (tmp_path / ".venv").exists()
    assert "torch is 2.1.0, but must be >=2.4,<3" in done.stderr and "needs driver 580 or newer" in done.stderr
    driver("[N/A]")
    done = set_up()
    assert done.returncode == 0, done.stderr
    assert versions_in(done.stdout.strip()) == ["2.13.0", "2.0", "2.0"]


@slow
def test_setup_keeps_a_vendor_preview_that_pip_considers_older(server, tmp_path):
    done = server("2.4.0a0+07cecf4168.nv24.5")()
    assert done.returncode == 0, done.stderr
    assert versions_in(tmp_path / ".venv/bin/python") == ["2.4.0a0+07cecf4168.nv24.5", "2.1", "1.0"]


@slow
@pytest.mark.parametrize("damage", ["python", "pip"])
def test_damaged_environment_is_rebuilt(damage, server, tmp_path):
    set_up, folder = server("2.5.1+cu121"), tmp_path / ".venv"
    assert set_up().returncode == 0
    if damage == "python":  # its base Python was removed
        for path in folder.glob("bin/python*"):
            path.unlink()
        (folder / "bin/python").symlink_to("/nowhere/python")
    else:  # interrupted
        for path in [*folder.glob("lib/python*/site-packages/pip*"), *folder.glob("lib/python*/site-packages/small*")]:
            shutil.rmtree(path)
    done = set_up()
    assert done.returncode == 0, done.stderr
    torch_here, small, extra = versions_in(folder / "bin/python")
    assert (torch_here, extra) == ("2.5.1+cu121", "1.0") and small.startswith("2.")


def test_compatible_environment_is_used_unchanged(server, tmp_path):
    set_up = server("2.4.0")
    site = next((tmp_path / "active/lib").glob("python*/site-packages"))
    for path in (site / "small-1.0.dist-info").iterdir():
        path.unlink()
    (site / "small-1.0.dist-info").rmdir()
    installed(site, "small", "3.0")
    installed(site, "extra", "1.5")
    done = set_up()
    assert done.stdout.split() == [str(tmp_path / "active/bin/python3")] and done.stderr == ""
    assert not (tmp_path / ".venv").exists()


def test_pins_prefer_installed_versions_over_tested_ones(tmp_path):
    (tmp_path / "needs.txt").write_text("torch>=2\nabsent>=1\npip>=1\n")
    (tmp_path / "tested.txt").write_text("torch==1.0\nabsent==1.5\n")
    found = pins(str(tmp_path / "tested.txt"), [str(tmp_path / "needs.txt")])
    assert found == ["absent==1.5", f"pip=={version('pip')}", f"torch=={version('torch')}"]
