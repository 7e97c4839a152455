"""docs/quickstart.ipynb runs from an empty folder to the labels of new texts, and is stored without outputs."""

import csv
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, read_json

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOK = ROOT / "docs/quickstart.ipynb"
ADDRESS = "https://github.com/OWNER/REPO"


def executed(notebook, folder):
    nbclient.NotebookClient(
        notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return notebook


def printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs).replace("\r\n", "\n")  # of a terminal


@pytest.fixture
def clone(tmp_path):
    """A copy of this repository without what git ignores."""
    names = ("*.pyc", "__pycache__", ".*", "output", "shipped", "tests", "benchmarks", "*.log")
    folder = tmp_path / "repository"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*names))
    for path in (folder / "dataset").iterdir():
        if path.name != "sample_raw":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


def test_the_notebook_is_valid_and_has_no_outputs():
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3" and len(notebook.cells) > 10
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


def test_both_readmes_link_to_the_notebook_and_the_services_that_run_it():
    for name in ("README.md", "README.zh.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for address in ("colab.research.google.com/", "www.kaggle.com/code", "www.modelscope.cn/my/mynotebook"):
            assert f"](https://{address})" in text
        assert "](docs/quickstart.ipynb)" in text


def test_the_installation_leaves_torch_alone(tmp_path):
    source = next(cell.source for cell in nbformat.read(NOTEBOOK, 4).cells if cell.id == "install")
    line = re.search(r"!(grep .*) > ", source)[1]
    kept = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = set(re.findall(r"^[\w-]+", kept, re.M))
    assert "torch" not in names and {"transformers", "pytorch-crf", "datasets", "safetensors"} <= names


@pytest.mark.slow
def test_the_notebook_runs_from_an_empty_folder(clone, tmp_path, monkeypatch):
    """It clones what stands at ADDRESS, here a local repository."""
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.com", "-C", str(clone)]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.file://{clone}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", ADDRESS)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    empty = tmp_path / "empty"
    empty.mkdir()
    notebook = executed(nbformat.read(NOTEBOOK, 4), empty)
    folder, cells = empty / "template", {cell.id: cell for cell in notebook.cells}
    assert len(list((folder / "dataset/messages").glob("*.jsonl"))) == 3, printed(cells["process"])
    assert read_json(folder / "output/messages/eval.json")["test"], printed(cells["train"])
    [shown] = [output.data["text/html"] for output in cells["report"].outputs if "data" in output]
    assert shown.startswith("<iframe srcdoc=") and "output/messages" in shown
    table = printed(cells["predict"]).partition("output/labelled.csv\n")[2].strip()
    labels = [row["label"] for row in csv.DictReader(io.StringIO(table))]
    assert labels == ["delivery", "payment", "praise"], printed(cells["predict"])
    in_python = [line.split()[0] for line in printed(cells["python"]).splitlines()[-3:]]
    assert in_python == labels, printed(cells["python"])
    (shown,) = [output.data["text/html"] for output in cells["python"].outputs if "data" in output]
    assert "Where</span>" in shown


@pytest.mark.slow
def test_within_the_repository_nothing_is_cloned(clone):
    notebook = nbformat.read(NOTEBOOK, 4)
    notebook.cells = [cell for cell in notebook.cells if cell.id in ("get", "install", "data")]
    executed(notebook, clone / "docs")
    assert (clone / "dataset/messages.csv").read_text().count("\n") == 61
    assert not list(clone.rglob("template/main.py"))
