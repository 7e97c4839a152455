"""Regression tests for faults found with hostile commands: other people's files, damaged folders, unusual inputs."""

import copy
import csv
import gzip
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, read_json
from safetensors.torch import load_file, save_file
from test_trainer import train

from engine.data.token_cache import clear
from engine.errors import UserError
from engine.run import files
from engine.run.atomic import atomic_file, open_nofollow
from engine.run.files import atomic_folder, clean_temporaries, seal
from engine.task.task import Task
from engine.train.checkpoint import newest_intact
from model_utils import load_checkpoint

ODD = [None, True, -1, 10**400, 1e308, "", "x", [], [[]], {}, {"a": None}, [None], "../../x", "\ud800"[:0]]


@pytest.fixture(scope="module")
def run(sample, tmp_path_factory):
    """Returns (a tiny trained run with a CRF, the folder of its export)."""
    pytest.importorskip("onnxruntime", reason="pip install -r tools/export/requirements.txt")
    from conftest import TINY

    from config import Config
    from tools.export.__main__ import ExportConfig, export

    output = tmp_path_factory.mktemp("hostile")
    options = TINY | dict(data_path=str(sample), output_dir=str(output), model_version="run", use_crf=True, epochs=1)
    config = Config(**options)
    train(config)
    export(ExportConfig(checkpoint=str(config.run_dir / "checkpoints/best"), output_dir=str(output / "shipped")))
    return config.run_dir, output / "shipped"


@pytest.fixture(scope="module")
def evaluated(run, sample, tmp_path_factory):
    """Returns an evaluated copy of the run."""
    from config import Config
    from main import main

    output = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(run[0], output / "run")
    flags = dict(data_path=str(sample), output_dir=str(output), model_version="run", device="cpu")
    main(Config(do_eval=True, **flags))
    return output / "run"


def tree(folder):
    """Returns {path: bytes} of all files in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def places_of(value, place=()):
    """Yields the path of each value in a JSON value, as a tuple of keys."""
    yield place
    items = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, item in items:
        yield from places_of(item, (*place, key))


def mutated(value, rng):
    """Returns a copy of a JSON value in which one value has another type, or one key is removed."""
    place = rng.choice(list(places_of(value)))
    value, odd = copy.deepcopy(value), rng.choice(ODD)
    if not place:
        return odd
    inside = value
    for key in place[:-1]:
        inside = inside[key]
    if isinstance(inside, dict) and rng.random() < 0.3:
        del inside[place[-1]]
    else:
        inside[place[-1]] = odd
    return value


# ---- other people's files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strange", ["my_notes.txt", "eval/a.csv", "__pycache__/mine.pyc", ".hidden"])
def test_export_does_not_overwrite_foreign_files(strange, run, tmp_path):
    from tools.export.__main__ import ExportConfig, export

    folder = tmp_path / "ship"
    shutil.copytree(run[1], folder)
    (folder / strange).parent.mkdir(exist_ok=True)
    (folder / strange).write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"contains other files \((my_notes.txt|eval|mine.pyc|.hidden)\)"):
        export(ExportConfig(checkpoint=str(run[0] / "checkpoints/best"), output_dir=str(folder)))
    assert tree(tmp_path) == before


def test_link_target_is_replaced_and_other_files_stay(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/old.txt").write_text("old")
    (tmp_path / "link").symlink_to("real")
    for name in (".real.tmp", ".real.old", ".link.tmp", ".link.old"):  # names that users may give to folders
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    with atomic_folder(tmp_path / "link") as new:
        (new / "new.txt").write_text("new")
    assert (tmp_path / "link").is_symlink() and [path.name for path in (tmp_path / "real").iterdir()] == ["new.txt"]
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".link.old", ".link.tmp", ".real.old", ".real.tmp", "link", "real"]
    assert all((tmp_path / name / "mine").exists() for name in left[:4])


def test_the_working_folder_can_be_replaced(tmp_path, monkeypatch):
    (tmp_path / "old.txt").write_text("old")
    monkeypatch.chdir(tmp_path)
    with atomic_folder(".") as new:
        (new / "labels.json").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["labels.json"]


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from engine.run.files import atomic_folder
folder, number = Path(sys.argv[2]), int(sys.argv[3])
for name in ("rename", "mkdir", "fsync", "unlink", "rmdir"):
    def counted(*given, call=getattr(os, name), **more):
        global number
        number -= 1
        if number == 0:
            os._exit(9)
        return call(*given, **more)
    setattr(os, name, counted)
with atomic_folder(folder, keeps=["kept"]) as new:
    (new / "a.txt").write_text("new")
    (new / "b.txt").write_text("new")
"""


def test_folder_replacement_is_atomic_at_every_system_call(tmp_path):
    """Kills the process at each call that changes the disk, one after another."""
    (tmp_path / "script.py").write_text(KILLED)
    ways = set()
    for number in range(1, 60):
        folder = tmp_path / str(number) / "ship"
        folder.mkdir(parents=True)
        for name in ("a.txt", "b.txt", "kept"):
            (folder / name).write_text("old")
        words = [sys.executable, "-S", tmp_path / "script.py", ROOT, folder, number]
        ended = fork_and_run(words)
        clean_temporaries(folder.parent)
        found = tree(folder)
        kept = found.pop("kept", "lost")
        assert found in ({"a.txt": b"old", "b.txt": b"old"}, {"a.txt": b"new", "b.txt": b"new"}), number
        assert [path.name for path in folder.parent.iterdir()] == ["ship"], number
        ways.add((ended, next(iter(found.values())), kept))
        if ended == 0:
            break
    assert (9, b"old", b"old") in ways and (9, b"new", b"old") in ways and (0, b"new", b"old") in ways
    assert (9, b"old", "lost") not in ways


def fork_and_run(words):
    """Runs a script in a fork of this process, with the libraries already imported. Returns the exit code."""
    child = os.fork()
    if child == 0:
        try:
            sys.argv = [str(word) for word in words[2:]]
            exec(compile(Path(words[2]).read_text(), str(words[2]), "exec"), {"__name__": "__main__"})
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_files_are_never_written_through_a_link(tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / ".out.jsonl.tmp").symlink_to("theirs")
    (tmp_path / "out.csv.partial").symlink_to("theirs")
    with atomic_file(tmp_path / "out.jsonl") as file:
        file.write("ours")
    with pytest.raises(OSError):
        open_nofollow(tmp_path / "out.csv.partial", append=True)
    assert (tmp_path / "theirs").read_text() == "theirs" and (tmp_path / "out.jsonl").read_text() == "ours"


def test_clear_cache_removes_only_own_caches(tmp_path):
    ours = f"train-{'a' * 20}.{'b' * 16}.arrow"
    for name in (ours, "mine.arrow", "train-mine.arrow", f"{ours}.bak"):
        (tmp_path / name).write_text("x")
    clear(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["mine.arrow", "train-mine.arrow", f"{ours}.bak"])


def test_clear_cache_needs_a_processed_folder(command, tmp_path):
    cache = tmp_path / "home/.cache" / f"train-{'a' * 20}.{'b' * 16}.arrow"
    cache.parent.mkdir(parents=True)
    cache.write_text("x")
    done = command("main.py", "--do_eval", "--clear_cache", "--data_path", tmp_path / "home")
    assert done.returncode == 2 and "no labels.json" in done.stderr and cache.exists()


@pytest.mark.parametrize("way", ["same name", "link", "hard link", "./"])
def test_predictions_never_overwrite_input_files(way, run, command, tmp_path):
    given, output = tmp_path / "k.csv", tmp_path / "o.csv"
    given.write_text("text,mine\nplay a song,1\n")
    if way == "link":
        output.symlink_to(given)
    elif way == "hard link":
        os.link(given, output)
    else:
        output = given if way == "same name" else Path(f"{tmp_path}/./k.csv")
    flags = ["--predict_file", given, "--predict_output", output, "--checkpoint", run[0] / "checkpoints/best"]
    done = command("main.py", "--do_predict", *flags, "--output_dir", tmp_path / "out")
    assert done.returncode == 2 and "is the input file (" in done.stderr, done.stderr
    done = subprocess.run([sys.executable, run[1] / "predictor.py", given, output], capture_output=True, text=True)
    assert done.returncode == 2 and "is the input file" in done.stderr, done.stderr
    assert given.read_text() == "text,mine\nplay a song,1\n"


# ---- damaged exports and checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["predictor.json", "model.onnx", "tokenizer.json", "arrays.npz", "manifest.json"])
def test_edited_export_is_rejected(name, run, tmp_path):
    from tools.export.predictor import InputError, Predictor

    folder = tmp_path / "ship"
    shutil.copytree(run[1], folder)
    content = (folder / name).read_bytes()
    for changed in (content[:-9], content[: len(content) // 2], None):
        (folder / name).unlink()
        if changed is not None:
            (folder / name).write_bytes(changed)
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            Predictor(folder, 1)
        (folder / name).write_bytes(content)
    Predictor(folder, 1)


def fuzz(folder, names, number, use, sealed=True):
    """Mutates the JSON files of a folder in turn (of a .jsonl, one row), updates the manifest, and uses the folder.
    InputError and UserError are ValueErrors with a one-line message. FUZZ_SEED changes the mutations. Returns how many
    could still be used."""
    rng, used = random.Random(int(os.environ.get("FUZZ_SEED", 7))), 0
    for step in range(number):
        path = folder / names[step % len(names)]
        content = path.read_bytes()
        rows = content.splitlines() if path.suffix == ".jsonl" else [content]
        chosen = rng.randrange(len(rows))
        rows[chosen] = json.dumps(mutated(json.loads(rows[chosen]), rng)).encode()
        path.write_bytes(b"\n".join(rows))
        if sealed and path.name != "manifest.json":
            seal(folder)
        try:
            use(folder)
            used += 1
        except ValueError as error:
            assert type(error).__name__ in ("InputError", "UserError") and "\n" not in str(error), error
        path.write_bytes(content)
        if sealed:
            seal(folder)
    return used


def label_with(folder):
    from tools.export.predictor import Predictor

    json.dumps(Predictor(folder, 1)(["play a song", {"tokens": ["播", "放"]}]), allow_nan=False)


NUMBERS = [25, pytest.param(150, marks=pytest.mark.slow)]


@pytest.mark.parametrize("number", NUMBERS)
def test_mutated_json_of_an_export_gives_no_traceback(number, run, tmp_path):
    shutil.copytree(run[1], tmp_path / "ship")
    names = 7 * ["predictor.json"] + 2 * ["tokenizer.json"] + ["manifest.json"]
    assert fuzz(tmp_path / "ship", names, number, label_with) > 0


@pytest.mark.parametrize("number", NUMBERS)
def test_mutated_json_of_a_checkpoint_gives_no_traceback(number, run, tmp_path):
    folder = tmp_path / "best"
    shutil.copytree(run[0] / "checkpoints/best", folder)
    assert fuzz(folder, sorted(path.name for path in folder.glob("*.json")), number, load_checkpoint) > 0


@pytest.mark.parametrize("number", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_mutated_training_state_gives_no_traceback(number, run, sample, tmp_path):
    """If a mutated state can be loaded, training continues."""
    from conftest import TINY

    from config import Config

    (before,) = (run[0] / "checkpoints").glob("step_*")
    options = TINY | dict(data_path=str(sample), output_dir=str(tmp_path), use_crf=True, batch_size=30, epochs=2)

    def go_on(folder):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(run[0], tmp_path / "run")
        shutil.copytree(folder, tmp_path / "run/checkpoints" / before.name, dirs_exist_ok=True)
        train(Config(**options, model_version="run"))

    shutil.copytree(before, tmp_path / "step")
    assert 0 < fuzz(tmp_path / "step", ["training.json"], number, go_on) < number


@pytest.mark.parametrize("number", [20, pytest.param(150, marks=pytest.mark.slow)])
def test_report_of_mutated_results_gives_no_traceback(number, evaluated, tmp_path):
    from tools.report.compare import compare_runs
    from tools.report.page import make_report

    for name in ("run", "twin"):
        shutil.copytree(evaluated, tmp_path / name)

    def show(folder):
        make_report(folder)
        compare_runs(tmp_path, ["run", "twin"])

    names = ["answers/about.json", "answers/dev.jsonl", "answers/test.jsonl", "eval.json", "metrics.jsonl"]
    assert 0 < fuzz(tmp_path / "run", names, number, show, sealed=False) < number


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "[]",
        "5",
        "{}",
        "[" * 50_000,
        '{"../a": "x"}',
        '{"a": 1}',
        '{"\\u0000": "x"}',
        f'{{"{"n" * 5000}": "x"}}',
        "",
    ],
)
def test_damaged_manifest_falls_back_to_the_previous_checkpoint(text, tmp_path):
    for step in (1, 2):
        files.replace_folder(tmp_path / f"step_{step}", lambda new: (new / "a.txt").write_text("x"))
    (tmp_path / "step_2/manifest.json").write_text(text)
    folder, damaged = newest_intact(tmp_path)
    assert folder == tmp_path / "step_1" and damaged == [tmp_path / "step_2"]


@pytest.mark.parametrize(
    "name, change",
    [
        ("args.json", {"encoder": "foo"}),
        ("args.json", {"use_crf": "no"}),
        ("args.json", {"max_length": "a"}),
        ("args.json", {"max_length": True}),
        ("args.json", {"batch_size": 0}),
        ("args.json", {"device": 5}),
        ("args.json", {"shared_layers": 10**400}),
        ("args.json", {"num_layers": 10**9}),
        ("labels.json", []),
        ("labels.json", {"intent": {"type": "classification", "labels": [1]}}),
        ("encoder.json", {"hidden_size": 10**9}),
        ("encoder.json", {"num_hidden_layers": 10**400}),
        ("encoder.json", {"num_hidden_layers": 10**9}),
        ("encoder.json", {"num_labels": 10**12}),
        ("encoder.json", {"vocab_size": "many"}),
    ],
)
def test_invalid_values_in_a_sealed_checkpoint_are_a_one_line_error(name, change, run, tmp_path):
    folder = tmp_path / "best"
    shutil.copytree(run[0] / "checkpoints/best", folder)
    value = read_json(folder / name)
    (folder / name).write_text(json.dumps(value | change if isinstance(change, dict) else change))
    seal(folder)
    with pytest.raises(UserError) as caught:
        load_checkpoint(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_non_finite_weights_are_rejected(run, command, tmp_path):
    from tools.export.__main__ import ExportConfig, export

    folder = tmp_path / "best"
    shutil.copytree(run[0] / "checkpoints/best", folder)
    tensors = load_file(folder / "weights.safetensors")
    tensors["output_layer.heads.intent.linear.weight"][0, 0] = np.nan
    save_file(tensors, folder / "weights.safetensors")
    seal(folder)
    (tmp_path / "texts.txt").write_text("play a song\n")
    flags = ["--checkpoint", folder, "--output_dir", tmp_path / "out"]
    done = command("main.py", "--do_predict", "--predict_file", "texts.txt", *flags)
    assert done.returncode == 2 and "linear.weight are not finite" in done.stderr
    with pytest.raises(UserError, match="not finite"):
        export(ExportConfig(checkpoint=str(folder), output_dir=str(tmp_path / "ship")))
    assert not (tmp_path / "ship").exists()


def test_export_on_a_full_disk_is_a_one_line_error(run, tmp_path, monkeypatch):
    """In this case, tokenizers raises a bare Exception, and torch a RuntimeError."""
    from tools.export import __main__ as export_file

    def full(*_):
        raise Exception("No space left on device (os error 28)")

    monkeypatch.setattr(export_file, "fill", full)
    options = export_file.ExportConfig(checkpoint=str(run[0] / "checkpoints/best"), output_dir=str(tmp_path / "ship"))
    with pytest.raises(UserError, match=r"No space left.*an earlier export is unchanged"):
        export_file.export(options)
    assert not list(tmp_path.iterdir())


def test_checkpoint_files_have_equal_permissions(run):
    assert len({path.stat().st_mode for path in (run[0] / "checkpoints/best").iterdir()}) == 1


def test_run_as_pretrained_model_is_a_one_line_error(run):
    from tools.export.__main__ import ExportConfig, export

    with pytest.raises(UserError, match=r"is a run folder; use its checkpoint .*best"):
        export(ExportConfig(checkpoint=str(run[0]), output_dir="x"))
    with pytest.raises(UserError, match=r"is a run folder; use its checkpoint .*best"):
        load_checkpoint(run[0])


# ---- odd inputs ------------------------------------------------------------------------------------------------------


def predicted(run, tmp_path, name, content, *flags, output="o.jsonl"):
    given = tmp_path / name
    given.write_bytes(content if isinstance(content, bytes) else content.encode())
    words = [sys.executable, run[1] / "predictor.py", given, tmp_path / output, *flags]
    return subprocess.run(list(map(str, words)), capture_output=True, text=True)


TEXT = b"play a song\n" * 500


@pytest.mark.parametrize(
    "name, content, flags, named",
    [
        ("a.txt.gz", gzip.compress(TEXT, mtime=0)[:-30], [], "a.txt.gz"),
        ("b.txt.gz", b"no gzip at all", [], "b.txt.gz"),
        ("c.txt.gz", gzip.compress(TEXT, mtime=0)[:20] + b"\0" * 40, [], "c.txt.gz"),
        ("d.txt", TEXT, ["--encoding", "no-such"], "--encoding no-such"),
        ("e.txt", b"play \xff\xfe\xfd", [], "e.txt"),
        ("f.csv", "text,text\na,b\n", [], "two columns are named 'text'"),
        ("g.jsonl", '{"text": "a", "text": "b"}\n', [], "the key 'text' appears twice"),
        ("h.jsonl", '{"text": ' + "[" * 100_000 + "\n", [], "row 1: not JSON"),
        ("i.jsonl", '{"text": "a", "id": ' + "9" * 5000 + "}\n", [], "row 1: not JSON"),
    ],
)
def test_predictor_rejects_invalid_files(name, content, flags, named, run, tmp_path):
    done = predicted(run, tmp_path, name, content, *flags)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: ") and named in lines[0]
    assert not (tmp_path / "o.jsonl").exists() and not (tmp_path / ".o.jsonl.tmp").exists()


def test_predictor_escapes_spreadsheet_formulas(run, tmp_path):
    done = predicted(run, tmp_path, "a.txt", '=HYPERLINK("x")\nplay\n', "--spreadsheet_safe", output="o.csv")
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "o.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["text"] == '\'=HYPERLINK("x")' and rows[1]["text"] == "play"


@pytest.mark.parametrize("text", ["", "   ", "\u3000"])
def test_text_without_words_has_no_tags_and_entities(text, run, command, tmp_path):
    from tools.export.predictor import Predictor

    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}) + '\n{"text": "play"}\n')
    flags = ["--checkpoint", run[0] / "checkpoints/best", "--output_dir", tmp_path / "out"]
    output = ["--predict_file", "a.jsonl", "--predict_output", tmp_path / "o.jsonl"]
    done = command("main.py", "--do_predict", *output, *flags)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert rows[0]["slots"] == rows[0]["slots_tags"] == [] and rows[0]["intent"] and len(rows[1]["slots_tags"]) == 1
    ours = Predictor(run[1], 1)([text, "play"])
    assert ours[0]["slots"] == ours[0]["slots_tags"] == [] and ours[0]["intent"] == rows[0]["intent"]


def test_best_of_a_resumed_run_is_byte_identical(run, tiny):
    config = tiny(epochs=1, use_crf=True, resume=True)
    train(config)
    theirs, ours = (tree(folder / "checkpoints/best") for folder in (run[0], config.run_dir))
    differ = [name for name in theirs if theirs[name] != ours[name]]
    values = [json.loads(each["args.json"]) for each in (theirs, ours)]
    assert values[0] | {"output_dir": ""} == values[1] | {"output_dir": ""}
    assert set(differ) <= {"args.json", "manifest.json"}  # the two runs have different folders


# ---- the server ------------------------------------------------------------------------------------------------------

HALF = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 900000\r\n\r\n{"


def raw(port, request):
    """Sends bytes to a server, and returns what it sends back before it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        line.sendall(request)
        return line.recv(1 << 16).decode("latin-1")


@pytest.mark.slow
def test_endless_requests_are_rejected_with_little_memory(run):
    pytest.importorskip("fastapi", reason="pip install -r tools/serve/requirements.txt")
    from test_serve import Served

    with Served(run[1], "--max_body_ms", 400, "--max_bytes", 1_000_000) as server:
        status, _ = server.ask("/predict", {"texts": "play a song"})
        before = server.memory()
        lines = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(60)]
        for line in lines:
            with suppress(OSError):  # it may have been rejected already
                line.sendall(HALF + b'"' + b"x" * 890_000)
        statuses = Counter(line.recv(1 << 16).decode("latin-1").split(" ")[1] for line in lines)
        for line in lines:
            line.close()
        assert status == 200 and set(statuses) == {"408", "503"} and statuses["503"] >= 30
        assert server.memory() - before < 60
        assert server.ask("/predict", {"texts": "play a song"})[0] == 200
        for host, code in (("evil.example", "400"), (f"localhost:{server.port}", "200"), ("[::1]", "200")):
            response = raw(server.port, f"GET /labels HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            assert response.split(" ")[1] == code, (host, response)
    assert server.process.returncode == 0 and "Traceback" not in server.output


@pytest.mark.slow
@pytest.mark.parametrize("begun", [HALF, HALF[:30], b""], ids=["half a body", "half a header", "nothing"])
def test_sigterm_ends_a_server_with_open_connections(begun, run):
    pytest.importorskip("fastapi", reason="pip install -r tools/serve/requirements.txt")
    from test_serve import Served

    with Served(run[1]) as server, socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(begun)
        assert server.ask("/labels")[0] == 200  # until the first connection is accepted
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0


@pytest.mark.slow
def test_idle_connections_are_closed_and_others_served(run):
    """Half a header, no data, a missing second request, a response that is never read."""
    pytest.importorskip("fastapi", reason="pip install -r tools/serve/requirements.txt")
    from test_serve import Served

    with Served(run[1], "--max_idle_s", 1, "--max_texts", 20_000) as server:
        lines = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(40)]
        for line, sent in zip(lines, [HALF[:30], b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"] * 20):
            line.sendall(sent)
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", server.port))
        body = json.dumps({"texts": ["play a song"] * 20_000}).encode()
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        deaf.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        for line in lines:
            with suppress(OSError):  # reset, or closed after the response
                while line.recv(1 << 16):
                    pass
            assert server.ask("/health")[0] == 200
            line.close()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        deaf.close()


@pytest.mark.slow
def test_client_that_disconnects_while_sending_prints_nothing(run, sample, tmp_path, python):
    words = [python, "-m", "tools.demo", "--address", "127.0.0.1:0", "--device", "cpu"]
    words += ["--checkpoint", run[0] / "checkpoints/best", "--data_path", sample, "--output_dir", tmp_path]
    with subprocess.Popen(list(map(str, words)), cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        port = int(next(found[1] for line in process.stderr if (found := re.search(r"127.0.0.1:(\d+)", line))))
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port)) as line:
                line.sendall(HALF.replace(b"/predict", b"/label"))
        assert raw(port, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith("HTTP/1.1 200")
        process.terminate()
        assert "Traceback" not in process.communicate(timeout=60)[1] and process.returncode == 0


# ---- terminal, log, memory -------------------------------------------------------------------------------------------


def test_texts_cannot_forge_log_lines_or_move_the_cursor(tmp_path):
    import logging

    from logging_config import get_logger

    logger = get_logger(tmp_path / "train.log")
    try:
        logger.info("label a\x1b[2J\r\x9b1m\u202eb\n2026-11-29 10:00:00,000 INFO forged\n10:00:00 forged\ntable  1.0")
    finally:
        for handler in [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]:
            logger.removeHandler(handler)
            handler.close()
    lines = (tmp_path / "train.log").read_text(encoding="utf-8").splitlines()[1:]  # the first line has the version
    assert lines[0].endswith(r"label a\x1b[2J\r\x9b1m\u202eb") and lines[1:] == [
        "    2026-11-29 10:00:00,000 INFO forged",
        "    10:00:00 forged",
        "table  1.0",
    ]


def test_unwritable_log_is_a_one_line_error(run, command, tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    flags = ["--checkpoint", run[0] / "checkpoints/best", "--output_dir", tmp_path, "--model_version", "new"]
    done = command("main.py", "--do_eval", *flags, "--log_output_path", "/dev", "--log_output_file", "full")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1 and "/dev/full: no space left" in errors[0], done.stderr
    assert "Traceback" not in done.stderr and "Logging error" not in done.stderr


def test_labels_outside_the_terminal_encoding_are_escaped(command, tmp_path):
    rows = [{"text": f"播放 {i}", "label": "音乐" if i % 2 else "天气"} for i in range(12)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    ascii_only = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    done = command("data_process.py", "--input", "a.jsonl", "--output_dir", "out", env=ascii_only)
    assert done.returncode == 0 and r"\u97f3\u4e50" in done.stdout, done.stderr


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory: you tried")])
def test_out_of_memory_error_names_options(error, capsys):
    from engine.run.command_line import exit_code

    def main(_):
        raise error

    assert exit_code(main, None) == 2
    assert "memory: lower --batch_size" in capsys.readouterr().err


@pytest.mark.parametrize("flag", [["--predict_file", "x.txt"], ["--checkpoint", "x"], ["--fold", "0"]])
def test_options_that_folds_ignore_are_rejected(flag, sample):
    from config import Config
    from engine.run.command_line import parse_args
    from tools.cross_validate.__main__ import main

    with pytest.raises(UserError, match=f"{flag[0]} cannot be used with tools.cross_validate"):
        main(parse_args(Config, [*flag, "--data_path", str(sample)]))


def test_suspicious_csv_escapes_spreadsheet_formulas(tmp_path):
    from tools.report.page import write_suspicious

    suspect = {"row": 0, "task": "intent", "gold_shown": "a", "likely_shown": "-b", "score": 0.5}
    for safe, text in ((False, "=1+1"), (True, "'=1+1")):
        write_suspicious(tmp_path / "s.csv", [suspect], [("dev", {"id": "0", "text": "=1+1"})], safe)
        (row,) = csv.DictReader((tmp_path / "s.csv").read_text().splitlines())
        assert row["text"] == text and row["likely"] == ("'-b" if safe else "-b")


@pytest.mark.parametrize("name, value", [("facts", [1]), ("rows", "3"), ("bytes", -1), ("cuts", [[1]]), (None, 5)])
def test_damaged_labelling_record_is_a_one_line_error(name, value, tmp_path):
    from engine.predict.labelling import Output

    output = Output(tmp_path / "o.jsonl", {"rows": 2}, 2)
    with output.opened(resume=False, force=False):
        pass
    saved = read_json(output.progress)
    output.progress.write_text(json.dumps(saved | {name: value} if name else value))
    with pytest.raises(UserError, match=r"partial\.json: damaged"), output.opened(resume=True, force=True):
        pass


def test_error_for_a_file_name_with_a_line_break_is_one_line(command, tmp_path):
    done = command("data_process.py", "--input", "a\nerror: forged\x1b[2J.csv", "--output_dir", "out")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and r"a\nerror: forged\x1b[2J" in done.stderr


def test_saved_options_without_epochs_are_compared(tiny):
    config = tiny(do_train=True, scheduler="constant", warmup_epochs=0.5)
    assert isinstance(config.changes_since({}), list)


def test_multilabel_label_must_be_a_list():
    from engine.data.features import Featurizer
    from engine.data.tokenizer import train_tokenizer

    tasks = {"topics": Task("multilabel", labels=["go", "going"])}
    featurizer = Featurizer(train_tokenizer(lambda: ["a b c"] * 4, 60), tasks, 16)
    columns = featurizer([{"text": "a", "topics": "going"}, {"text": "b", "topics": ["go"]}])
    assert columns["labels.topics"].values.tolist() == [0, 1, 1, 0]


# ---- found by benchmarks/hostile.py ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [os.mkfifo, Path.symlink_to], ids=["a pipe", "a link to a device"])
def test_devices_are_never_replaced(make, run, sample, command, tmp_path):
    """With `--output_dir /dev/null`, data_process.py moved /dev/null away."""
    from data_process import DataConfig, process

    place = tmp_path / "made.csv"
    make(place) if make is os.mkfifo else make(place, "/dev/null")
    before = place.stat()
    with pytest.raises(UserError, match="is not a folder"):
        process(DataConfig(input=str(sample), output_dir=str(place)))
    with pytest.raises(UserError, match="not a folder"), atomic_folder(place):
        pass
    flags = ["--checkpoint", run[0] / "checkpoints/best", "--output_dir", tmp_path / "out", "--predict_output", place]
    done = command("main.py", "--do_predict", "--data_path", sample, *flags)
    assert done.returncode == 2 and "not a file" in done.stderr, done.stderr
    done = predicted(run, tmp_path, "a.txt", "play a song\n", output="made.csv")
    assert done.returncode == 2 and "not a file" in done.stderr, done.stderr
    assert (place.stat().st_ino, place.stat().st_mode) == (before.st_ino, before.st_mode)


@pytest.mark.parametrize("name", ["train.jsonl", "labels.json"])
def test_pipe_in_the_data_folder_does_not_block(name, sample, tmp_path):
    from preprocess.schema import load_labels

    shutil.copytree(sample, tmp_path / "data")
    (tmp_path / "data" / name).unlink()
    os.mkfifo(tmp_path / "data" / name)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        load_labels(tmp_path / "data")


def test_lone_surrogate_in_a_processed_row_is_a_one_line_error(sample, tmp_path):
    from preprocess.schema import load_labels, read_processed

    row = {"id": "1", "text": "a \ud800", "tokens": ["a", "\ud800"], "intent": "play_music", "slots": ["O", "O"]}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"row 1.*lone surrogate"):
        list(read_processed(tmp_path / "train.jsonl", load_labels(sample)))


@pytest.mark.parametrize(
    "name, text, expected",
    [
        ("a.jsonl", '{"text": "a", "text": "b", "label": "x"}\n', "row 1: not JSON.*'text' appears twice"),
        ("a.json", '[{"text": "c", "label": "x"},\n{"text": "a", "label": "y", "label": "x"}]', "row 2.*appears twice"),
        ("a.json", '{"data": [{"text": "a", "text": "b", "label": "x"}]}', "row 1.*appears twice"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": true}\n' * 20, "write yes and no consistently"),
        ("a.csv", "text,label\n" + "a,1\nb,TRUE\nc,0\n" * 20, "write yes and no consistently"),
    ],
)
def test_ambiguous_input_is_rejected(name, text, expected, tmp_path):
    from data_process import DataConfig, process

    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=expected):
        process(DataConfig(input=str(tmp_path / name), output_dir=str(tmp_path / "out")))


@pytest.mark.parametrize("second", ["a_probability", "a_tags", "id", "extras"])
def test_tasks_with_clashing_columns_are_rejected(second, tmp_path):
    from engine.task.task import read_tasks

    task = {"type": "classification", "labels": ["x", "y"]}
    (tmp_path / "labels.json").write_text(json.dumps({"a": task, second: task}))
    with pytest.raises(UserError, match=f"the column '{second}' of the task '.*' clashes with"):
        read_tasks(tmp_path / "labels.json")


def test_tasks_with_clashing_scores_are_rejected():
    from metrics import score_names

    task = Task("classification", labels=["x", "y"])
    assert "a_macro_f1" in score_names({"a": task})
    tags = Task("tagging", labels=["O", "B-x"])
    with pytest.raises(UserError, match="'a_macro' and 'a' would both have a score a_macro_f1"):
        score_names({"a": task, "a_macro": tags})


@pytest.mark.parametrize(
    "flags", ["--max_length 99999999999999999999", "--temperature 1e300 --teacher x", "--batch_size 99999999999999999"]
)
def test_out_of_range_numbers_are_one_line_errors(flags):
    from config import Config
    from engine.run.command_line import parse_args

    with pytest.raises(SystemExit) as caught:
        parse_args(Config, flags.split())
    assert caught.value.code == 2


@pytest.mark.parametrize("script, flags, code", [("main.py", "--help", 0), ("data_process.py", "--check", 128 + 13)])
def test_closed_output_pipe_ends_a_command_silently(script, flags, code, sample):
    words = [sys.executable, "-u", ROOT / script, flags, *(["--input", sample] if flags == "--check" else [])]
    with subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        printed = process.stderr.read()
        # a short output may be written before the pipe closes, or be swallowed by argparse
        assert process.wait(60) in {code, 128 + 13} and not printed


def test_output_cannot_control_the_terminal(command, tmp_path):
    rows = [{"text": f"text {n}", "label": "\x1b[31ma" if n % 2 else "b"} for n in range(30)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = command("data_process.py", "--input", "a.jsonl", "--output_dir", "out")
    assert done.returncode == 0 and r"\x1b[31ma" in done.stdout and "\x1b" not in done.stdout


def test_search_without_a_valid_trial_is_a_one_line_error(sample, tmp_path, monkeypatch):
    pytest.importorskip("optuna", reason="pip install -r tools/search/requirements.txt")
    from tools.search.__main__ import SearchConfig, main

    monkeypatch.chdir(tmp_path)
    for options, expected in (
        (dict(options="--epochs 0"), "must be at least 1"),
        (dict(hours=1e-9), "no trial finished"),
    ):
        with pytest.raises(UserError, match=expected):
            main(SearchConfig(data_path=str(sample), results="found", trials=1, finalists=0, **options))


@pytest.mark.slow
def test_host_out_of_memory_is_a_one_line_error(sample, tmp_path):
    """A real shortage: the process is limited to 6 GB of address space."""
    resource = pytest.importorskip("resource")
    words = "main.py --do_train --epochs 1 --hidden_size 32768 --num_layers 1 --device cpu".split()
    words += ["--data_path", sample, "--output_dir", tmp_path]
    limit = partial(resource.setrlimit, resource.RLIMIT_AS, (6 * 10**9, 6 * 10**9))
    done = subprocess.run(
        [sys.executable, ROOT / words[0], *map(str, words[1:])], preexec_fn=limit, capture_output=True, text=True
    )
    assert done.returncode == 2 and "this machine is out of memory" in done.stderr.splitlines()[-1], done.stderr


def test_lost_process_is_a_one_line_error(monkeypatch, capsys):
    from engine.run.command_line import LOST, exit_code

    monkeypatch.setenv("WORLD_SIZE", "2")
    text = "Got the following error when running the callback: RuntimeError: Application timeout caused pair closure"

    def lose(_):
        raise RuntimeError(text)

    assert exit_code(lose, None) == 2 and capsys.readouterr().err == f"error: {LOST}\n"


def test_own_error_is_not_reported_as_a_lost_process(monkeypatch):
    """Although its message mentions connections and timeouts."""
    from engine.run.command_line import exit_code

    monkeypatch.setenv("WORLD_SIZE", "2")

    def fail(_):
        raise RuntimeError("the connection between both layers timed out")

    with pytest.raises(RuntimeError, match="both layers"):
        exit_code(fail, None)
