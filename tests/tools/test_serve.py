"""tools.serve: a real server with a small exported model, on the loopback address."""

import asyncio
import contextlib
import http.client
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT
from relation_rows import with_relations

pytest.importorskip("onnxruntime", reason="needs tools/export/requirements.txt")
pytest.importorskip("fastapi", reason="needs tools/serve/requirements.txt")
from benchmarks.reload import replace
from engine.run.files import seal
from tools.serve.batcher import Batcher, Busy, labeller
from tools.serve.metrics import Metrics

slow = pytest.mark.slow  # a model is trained and exported first

LABEL = "set_alarm"
TEXTS = ["turn on the lamp", "", "打开卧室的灯", "wake me at seven 🙂 please", "x " * 300]


# ---- batches, with a model that only sleeps --------------------------------------------------------------------------


class BadRow(ValueError):
    """Stands for the predictor's InputError."""


class Sleeper:
    """A model that takes `fixed` seconds per batch plus `each` seconds per text, and raises `error` once."""

    def __init__(self, fixed=0.02, each=0.001):
        self.fixed, self.each, self.sizes, self.error = fixed, each, [], None

    def __call__(self, rows, batch_size=None):
        self.sizes.append(len(rows))
        time.sleep(self.fixed + self.each * len(rows))
        if "bad" in rows:
            raise BadRow(f"row {rows.index('bad') + 1}: bad")
        error, self.error = self.error, None
        if error:
            raise error
        return [row.upper() for row in rows]


def with_batcher(model, work, seconds=1.0, label=None):
    """Returns `await work(batcher)` with a running Batcher of the model."""

    async def run():
        batcher = Batcher(label or model, 32, 1024, seconds, Metrics())
        batcher.warm_up("a text")
        running = asyncio.create_task(batcher.run())
        try:
            return await asyncio.wait_for(work(batcher), 30)
        finally:
            running.cancel()

    return asyncio.run(run())


def test_requests_are_batched_while_the_model_is_busy():
    async def work(batcher):
        return await asyncio.gather(*(batcher.ask([f"text {i}", "x" * i]) for i in range(40)))

    model = Sleeper()
    assert with_batcher(model, work) == [[f"TEXT {i}", "X" * i] for i in range(40)]
    assert max(model.sizes) == 32 and len(model.sizes) < 10


def test_an_error_fails_only_the_requests_of_its_batch():
    async def work(batcher):
        model.error = RuntimeError("broken")
        results = await asyncio.gather(*(batcher.ask(["a", "b"]) for _ in range(3)), return_exceptions=True)
        return results, await batcher.ask(["c"])

    model = Sleeper()
    results, after = with_batcher(model, work)
    assert any(isinstance(one, RuntimeError) for one in results) and after == ["C"]


def test_an_invalid_row_fails_alone():
    async def work(batcher):
        return await asyncio.gather(*(batcher.ask([text]) for text in ("a", "bad", "c")), return_exceptions=True)

    model = Sleeper()
    one, bad, other = with_batcher(model, work, label=labeller(model, 32, BadRow))
    assert (one, other) == (["A"], ["C"]) and isinstance(bad, BadRow) and str(bad) == "bad"


def test_requests_that_would_take_too_long_are_rejected():
    async def work(batcher):
        long = asyncio.create_task(batcher.ask(["x" * 100_000]))
        await asyncio.sleep(0.05)
        assert not batcher.waiting and batcher.running
        with pytest.raises(Busy) as rejected:
            await batcher.ask(["y"])
        await long
        return rejected.value.args[0], await batcher.ask(["y"])

    seconds, after = with_batcher(Sleeper(0.3, 0), work)
    assert seconds > 0.5 and after == ["Y"]


def test_the_estimated_speed_recovers_from_a_slow_start():
    """The estimate rises again after the machine was busy, although few texts are accepted at first."""

    async def work(batcher):
        batcher.speed = start = batcher.speed / 50
        rejected = 0
        for _ in range(300):
            results = await asyncio.gather(*(batcher.ask(["a text"]) for _ in range(16)), return_exceptions=True)
            rejected = sum(isinstance(one, Busy) for one in results)
            if not rejected:
                break
        return start, batcher.speed, rejected

    start, end, rejected = with_batcher(Sleeper(0.005, 0.0001), work, seconds=0.2)
    assert end > 5 * start and rejected == 0


# ---- a server --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped(sample, tmp_path_factory, python):
    """Returns an exported folder with a tiny model that has a CRF and relations."""
    folder = tmp_path_factory.mktemp("serve")
    data = with_relations(sample, folder / "data", "slots")
    flags = "--do_train --epochs 1 --hidden_size 32 --num_layers 1 --vocab_size 500 --use_crf --model_version run"
    for words in (
        [ROOT / "main.py", *flags.split(), "--data_path", data, "--output_dir", folder],
        ["-m", "tools.export", "--checkpoint", folder / "run/checkpoints/best", "--output_dir", folder / "shipped"],
    ):
        done = subprocess.run([python, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder / "shipped"


class Served:
    """A server on a free port: `with Served(folder, flags) as server:`."""

    def __init__(self, folder, *flags, python=sys.executable, cwd=ROOT):
        folders = [folder] if isinstance(folder, str | Path) else folder
        words = [python, "-m", "tools.serve", *map(str, folders), "--port", "0", "--threads", "1", *map(str, flags)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen(words, cwd=cwd, **pipes)
        self.line = self.process.stdout.readline()
        assert self.line.startswith("http://"), self.line + self.process.stdout.read()
        self.port = int(re.search(r":(\d+)/", self.line).group(1))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
        self.output = self.process.communicate(timeout=60)[0]

    def connection(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, path, value=None, connection=None, **more):
        """Returns (status, content) of a GET, or of a POST if there is a value. Bytes are sent unchanged. more:
        headers."""
        with (
            contextlib.closing(connection or self.connection())
            if connection is None
            else contextlib.nullcontext(connection) as line
        ):
            body = value if value is None or isinstance(value, bytes) else json.dumps(value).encode()
            headers = {"Content-Type": "application/json"} | more
            line.request("GET" if value is None else "POST", path, body, headers)
            answer = line.getresponse()
            read = answer.read()
        is_json = answer.headers.get("Content-Type", "").startswith("application/json")
        return answer.status, json.loads(read) if is_json else read.decode(errors="replace")

    def memory(self):
        """Returns the resident memory in megabytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) / 1024


@pytest.fixture(scope="module")
def server(shipped):
    with Served(shipped) as server:
        yield server


@slow
def test_predictions_match_the_predictor(server, shipped):
    script = f"""if True:
        import json, sys
        sys.path.insert(0, {str(shipped)!r})
        from predictor import Predictor
        print(json.dumps(Predictor({str(shipped)!r}, 1)({TEXTS!r})))
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    expected = json.loads(done.stdout)
    status, found = server.ask("/predict", {"texts": TEXTS})
    assert status == 200 and len(found["answers"]) == len(TEXTS)
    for text, one, other in zip(TEXTS, found["answers"], expected):
        assert one["text"] == text and one["slots"] == other["slots"] and one["slots_tags"] == other["slots_tags"]
        assert one["intent"] == other["intent"]
        for fact, same in zip(one["facts"], other["facts"], strict=True):
            assert fact.pop("probability") == pytest.approx(same.pop("probability"), abs=1e-4) and fact == same
        assert one["intent_probability"] == pytest.approx(other["intent_probability"], abs=1e-4)
    assert server.ask("/predict", {"texts": TEXTS[0]})[1]["answers"][0]["intent"] == expected[0]["intent"]
    words = TEXTS[0].split()
    assert (
        server.ask("/predict", {"texts": [{"tokens": words}]})[1]["answers"][0]["slots_tags"]
        == expected[0]["slots_tags"]
    )


@slow
def test_rows_with_tokens_and_ids_and_invalid_rows(server):
    rows = [{"tokens": ["fly", "to", "Oslo"], "id": 7}, {"text": "fly to Oslo", "id": "x"}, {"text": "fly"}]
    status, answer = server.ask("/predict", {"texts": rows})
    assert status == 200 and [row.get("id") for row in answer["answers"]] == ["7", "x", None]
    assert answer["answers"][0]["text"] == "fly to Oslo"
    for body in ({"texts": [{"words": ["a"]}]}, {"text": "a"}, {"texts": [{}]}, {"texts": [{"tokens": "a"}]}, [1]):
        status, answer = server.ask("/predict", body)
        assert status == 400 and "`text` or `tokens`" in answer["detail"] and "\n" not in answer["detail"]


@slow
def test_labels_health_docs_and_metrics(server):
    tasks = server.ask("/labels")[1]
    assert tasks["intent"]["type"] == "classification" and "set_alarm" in tasks["intent"]["labels"]
    assert server.ask("/health") == (200, {"status": "ok", "waiting": 0})
    assert set(server.ask("/openapi.json")[1]["paths"]) == {"/predict", "/labels", "/models", "/health"}
    page = server.ask("/docs")[1]
    for link in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert "//" not in link and server.ask(f"/{link}")[0] == 200, link  # no files from other hosts
    before = float(re.search(r"\ntexts_total (\S+)", server.ask("/metrics")[1]).group(1))
    server.ask("/predict", {"texts": ["one", "two"]})
    results = server.ask("/metrics")[1]
    assert float(re.search(r"\ntexts_total (\S+)", results).group(1)) == before + 2
    assert 'requests_total{path="/predict",status="200"}' in results and "process_resident_memory_bytes" in results


def malformed(rng):
    """Returns the body of an invalid request."""
    deep = b"[" * 100_000
    wrong = [b"", b"{", b"null", b"[]", b"1", b'"text"', deep, b"\xff\xfe", b'{"texts": null}', b'{"texts": []}']
    wrong += [
        b'{"texts": [1]}',
        b'{"texts": [""], "more": 1}',
        b'{"texts": [null]}',
        b'{"texts": {}}',
        b'{"text": "a"}',
    ]
    wrong += [b'{"texts": "\\ud800"}', b'{"texts": [{"text": "a", "other": "b"}]}', b'{"texts": [{"tokens": []}]}']
    wrong += [b'{"texts": [{"tokens": [1]}]}', b'{"texts": "' + b"y" * 10_001 + b'"}', b'{"texts": NaN}']
    wrong += [json.dumps({"texts": [{"tokens": [""] * 10_001}]}).encode()]
    wrong += [json.dumps({"texts": ["a"] * 65}).encode(), b'{"texts": "' + b"z" * 1_000_000 + b'"}', rng.randbytes(99)]
    return rng.choice(wrong)


@slow
def test_malformed_requests_return_client_errors(server):
    rng, found, connection = random.Random(0), Counter(), server.connection()
    for _ in range(1000):
        status, answer = server.ask("/predict", malformed(rng), connection)
        found[status] += 1
        assert answer["detail"]
    assert set(found) == {400, 413} and sum(found.values()) == 1000
    assert server.ask("/nothing")[0] == 404 and server.ask("/labels", {"texts": "a"})[0] == 405
    assert server.ask("/predict", {"texts": "a"})[0] == 200


def in_threads(number, work):
    threads = [threading.Thread(target=work) for _ in range(number)]
    for thread in threads:
        thread.start()
    return threads


@slow
def test_an_overloaded_server_rejects_requests(shipped):
    statuses, answers = Counter(), []

    def ask():
        with contextlib.closing(server.connection()) as connection:
            for number in range(15):
                texts = [f"{word} the lamp {number}" for word in ("turn on", "switch off") * 32]
                status, answer = server.ask("/predict", {"texts": texts}, connection)
                statuses[status] += 1
                answers.extend(zip(texts, answer["answers"])) if status == 200 else None

    with Served(shipped, "--max_latency_ms", 20, "--max_queue", 128) as server:
        memory = []
        for _ in range(2):
            for thread in in_threads(12, ask):
                thread.join()
            memory.append(server.memory())
        assert set(statuses) == {200, 503} and min(statuses.values()) > 5
        assert memory[1] < memory[0] + 20
        assert all(answer["text"] == text for text, answer in answers)
        assert server.ask("/health") == (200, {"status": "ok", "waiting": 0})


@slow
def test_sigterm_finishes_accepted_requests(shipped):
    found, lost = Counter(), []

    def ask():
        while True:
            connection = server.connection()
            try:
                connection.connect()
            except ConnectionRefusedError:
                return
            try:
                while True:
                    status, _ = server.ask("/predict", {"texts": ["turn on the lamp"] * 8}, connection)
                    found[status] += 1
                    if connection.sock is None:  # closed at the request of the server
                        break
            except (OSError, http.client.HTTPException) as error:
                lost.append(error)
                return

    with Served(shipped) as server:
        threads = in_threads(40, ask)
        while found[200] < 50:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)
        for thread in threads:
            thread.join()
    assert server.process.returncode == 0 and "all accepted requests were finished" in server.output
    assert set(found) == {200} and not lost


@pytest.fixture(scope="module")
def other(shipped):
    """Returns the same model with one label renamed."""
    folder = shipped.parent / "other"
    shutil.copytree(shipped, folder)
    path = folder / "predictor.json"
    path.write_text(path.read_text(encoding="utf-8").replace(f'"{LABEL}"', '"other_label"'), encoding="utf-8")
    seal(folder)
    return folder


def labels_of(server, query=""):
    return set(server.ask(f"/labels{query}")[1]["intent"]["labels"])


@slow
def test_several_models_in_one_server(shipped, other):
    with Served([f"a={shipped}", other]) as server:
        models = server.ask("/models")[1]
        assert list(models) == ["a", "other"] and models["a"]["sha256"] != models["other"]["sha256"]
        assert LABEL in labels_of(server) and "other_label" in labels_of(server, "?model=other")
        requests = [{"texts": TEXTS}, {"texts": TEXTS, "model": "a"}, {"texts": TEXTS, "model": "other"}]
        first, named, second = (server.ask("/predict", request)[1]["answers"] for request in requests)
        assert first == named and [row["text"] for row in second] == [row["text"] for row in first]
        status, answer = server.ask("/predict", {"texts": "x", "model": "b"})
        assert status == 404 and answer["detail"] == "no model has this name; the models are a, other"


@slow
def test_token_authentication_and_request_ids(shipped, tmp_path):
    (tmp_path / "token").write_text("secret\n")
    with Served(shipped, "--token_file", tmp_path / "token", "--log_requests") as server:
        given = {"Authorization": "Bearer secret"}
        for path in ("/labels", "/models", "/metrics", "/docs", "/nowhere"):
            assert server.ask(path)[0] == 401 and server.ask(path, Authorization="Bearer wrong")[0] == 401
        assert server.ask("/health")[0] == 200 and server.ask("/labels", **given)[0] == 200
        status, answer = server.ask("/predict", {"texts": "turn on"}, Authorization="bearer  secret")
        assert status == 200 and answer["answers"]
        with contextlib.closing(server.connection()) as connection:
            for sent, echoed in (("abc-1", True), ("a b", False), ("x" * 65, False)):
                more = {"X-Request-Id": sent, "Origin": "http://evil.example"}
                connection.request("GET", "/labels", headers=given | more)
                answer = connection.getresponse()
                answer.read()
                name = answer.headers["X-Request-Id"]
                assert name and (name == sent) is echoed and "Access-Control-Allow-Origin" not in answer.headers
    assert re.search(r"\d abc-1 GET '/labels' 200 [\d.]+ ms", server.output)
    assert server.output.count(" 401 ") == 10 and "secret" not in server.output and "turn on" not in server.output


@slow
@pytest.mark.parametrize("way", ["SIGHUP", "watching"])
def test_reloading_under_load_loses_no_requests(way, shipped, other, tmp_path):
    """Each prediction is from one of the models. A damaged folder does not replace the model."""
    folder, found, lost, done = tmp_path / "served", Counter(), [], threading.Event()
    shutil.copytree(shipped, folder)

    def ask():
        with contextlib.closing(server.connection()) as connection:
            while not done.is_set():
                try:
                    status, answer = server.ask("/predict", {"texts": ["turn on the lamp"] * 4}, connection)
                    found[status, len(answer["answers"])] += 1
                except (OSError, http.client.HTTPException, KeyError) as error:
                    lost.append(error)

    with Served(folder, "--max_latency_ms", 60_000, "--watch_s", int(way == "watching")) as server:
        threads = in_threads(8, ask)
        wait_for(lambda: sum(found.values()) > 100)
        for source, label in ((other, "other_label"), (shipped, LABEL), (other, "other_label")):
            replace(folder, source)
            if way == "SIGHUP":
                server.process.send_signal(signal.SIGHUP)
            wait_for(lambda label=label: label in labels_of(server))
        loaded = server.ask("/models")[1]["served"]["loaded"]
        (folder / "predictor.json").write_text("{}")
        server.process.send_signal(signal.SIGHUP)
        before = sum(found.values())
        wait_for(lambda: sum(found.values()) > before + 100)
        done.set()
        for thread in threads:
            thread.join()
        assert "other_label" in labels_of(server)
        if way == "watching":  # a folder that could not be loaded is tried again when its files are complete
            shutil.copy(other / "predictor.json", folder)
            wait_for(lambda: server.ask("/models")[1]["served"]["loaded"] != loaded)
    assert not lost and set(found) == {(200, 4)}, (lost[:1], found)
    assert server.output.count(": reloaded ") == 3 + (way == "watching") and "the old model remains" in server.output


def wait_for(condition):
    while not condition():
        time.sleep(0.01)


@slow
def test_invalid_options_raise_a_one_line_error(shipped):
    with Served(shipped) as server:
        cases = {
            ("nowhere",): "no exported model",
            (shipped, "--port", server.port): "in use",
            (shipped, "--batch_size", "0"): "not a whole number",
        }
        for words, message in cases.items():
            command = [sys.executable, "-m", "tools.serve", *words]
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
            assert done.returncode == 2 and message in done.stderr.splitlines()[-1], done.stderr


@slow
def test_dockerfile_steps(shipped, tmp_path):
    """Runs the steps without Docker: copies the files, installs the packages in a new environment, and runs the
    command."""
    place, app = tmp_path / "clone", tmp_path / "app"
    place.mkdir()
    app.mkdir()
    shutil.copytree(ROOT / "tools/serve", place / "tools/serve", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(shipped, place / "shipped")
    for folder in (place, app):
        (folder / "engine/run").mkdir(parents=True)
    shutil.copy(ROOT / "engine/run/flags.py", place / "engine/run")
    shutil.copy(ROOT / "constraints.txt", place)
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    environment = {**os.environ, "PATH": f"{tmp_path / 'venv/bin'}:{os.environ['PATH']}"}
    command = None
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        word, _, rest = line.partition(" ")
        if word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                assert any(source == name or source.startswith(f"{name}/") for name in kept)
                copy = shutil.copytree if (place / source).is_dir() else shutil.copy
                copy(place / source, app / target)
        elif word == "RUN":
            subprocess.run(shlex.split(rest), cwd=app, env=environment, check=True, capture_output=True)
        elif word == "CMD":
            command = json.loads(rest)
    assert command[:4] == ["python", "-m", "tools.serve", "shipped"]
    assert not list((tmp_path / "venv/lib").glob("*/site-packages/torch"))
    python = tmp_path / "venv/bin/python"
    with Served("shipped", *command[4:], python=python, cwd=app) as server:
        assert server.ask("/predict", {"texts": TEXTS})[0] == 200
