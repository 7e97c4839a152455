"""Fixtures shared by the tests of several packages. Run all tests with `sh test.sh`, or the tests of one file with
`python -m pytest tests/test_trainer.py`."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models in tests are too small for more threads

from forks import Forks, Process  # noqa: E402

from config import Config  # noqa: E402
from data_process import DataConfig, process  # noqa: E402

SHARED = ROOT.parent / "shared" / "data"
TINY = dict(hidden_size=32, num_layers=1, epochs=2, batch_size=8, vocab_size=500, log_steps=2, lr=3e-3, device="cpu")
TINY["use_crf"] = False  # tests of the CRF enable it


# The slowest files, which start first so that no worker (--dist loadfile) runs one of them at the end
LONG = (
    "distributed cookbook docs hostile export model_check labelling hands_on report tricks crf size trainer main serve"
)


def pytest_collection_modifyitems(items):
    places = {f"test_{name}.py": place for place, name in enumerate(LONG.split())}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(autouse=True)
def same_environment():
    """Restores the environment after each test: commands fork only with the environment that the server has."""
    before = environment()
    yield
    for name in {*environment(), *before}:
        os.environ.pop(name, None)
    os.environ.update(before)


@pytest.fixture
def logged(caplog):
    """Returns caplog, set to capture all messages of the template's logger."""
    logging.getLogger("template").propagate = True
    caplog.set_level(logging.INFO)
    return caplog


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """Returns a processed folder with 60 + 24 + 24 sentences of the sample, with intent and slots."""
    raw = tmp_path_factory.mktemp("raw") / "sample.jsonl"
    rows = [
        json.loads(line)
        for name in ("zh", "en")
        for line in (ROOT / f"dataset/sample_raw/{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    kept = [
        row
        for split, size in (("train", 30), ("dev", 12), ("test", 12))
        for start in (0, 1020)
        for row in [row for row in rows[start : start + 1020] if row["split"] == split][:size]
    ]
    raw.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")
    folder = tmp_path_factory.mktemp("data") / "tiny"
    process(DataConfig(input=str(raw), output_dir=str(folder)))
    return folder


@pytest.fixture
def tiny(sample, tmp_path):
    """Returns tiny(**options) -> the Config of a small, fast run on `sample`, in its own folder."""

    def make(**options):
        return Config(
            **{
                **TINY,
                "data_path": str(sample),
                "output_dir": str(tmp_path / "output"),
                "model_version": "run",
                **options,
            }
        )

    return make


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory):
    """Returns the address of a server of tests/forks.py that is shared by all workers."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "forks"


@pytest.fixture(scope="session")
def forks(fork_server, tmp_path_factory):
    """Returns (Forks in which the project's commands run, their environment)."""
    with Forks(ROOT, tmp_path_factory.mktemp("commands"), fork_server) as forks:
        yield forks, environment()


@pytest.fixture(scope="session")
def python(forks):
    """Returns the path of an executable that replaces Python (tests/stand_in.py). It saves the import time of the large
    libraries, and behaves like a real process, with signals and streams."""
    return str(forks[0].server) + ".python"


def environment():
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}


@pytest.fixture
def command(tmp_path, forks, python):
    """Returns command('main.py', '--flag', …) -> the finished process, run in an empty folder like a user would;
    command('tools.export', …) runs `python -m tools.export`.

    fresh, or an environment: start a new Python process, not one with the large libraries already imported.
    """

    def run(script, *flags, cwd=tmp_path, env=None, input=None, fresh=False):
        if not env and not fresh and environment() == forks[1]:
            return forks[0].command([script, *flags], cwd, input)
        words = [str(ROOT / script)] if script.endswith(".py") else ["-m", script]
        modules = os.pathsep.join(filter(None, ((env or {}).get("PYTHONPATH"), str(ROOT))))
        return subprocess.run(
            [sys.executable if fresh else python, *words, *map(str, flags)],
            cwd=cwd,
            input=input,
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, **(env or {})} | ({} if script.endswith(".py") else {"PYTHONPATH": modules}),
        )

    return run


@pytest.fixture
def background(tmp_path, fork_server, tmp_path_factory):
    """Returns background('main.py', '--flag', …) -> a Process of tests/forks.py, with the large libraries already
    imported."""

    def run(script, *flags, cwd=tmp_path):
        folder = tmp_path_factory.mktemp("process")
        return Process(Forks(ROOT, folder, fork_server), [script, *flags], cwd, folder / "log.txt")

    return run


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))
