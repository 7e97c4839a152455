"""Runs the client code of docs/serving.md against a real server and an overloaded one."""

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT

pytest.importorskip("onnxruntime", reason="needs tools/export/requirements.txt")
pytest.importorskip("fastapi", reason="needs tools/serve/requirements.txt")
from test_serve import Served, shipped  # noqa: F401

PAGE = (ROOT / "docs/serving.md").read_text(encoding="utf-8").partition("\n## Clients\n")[2].partition("\n## ")[0]
DEFAULT = "http://127.0.0.1:8000"
NODE = shutil.which("node")


def block(language):
    [code] = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)
    return code


def with_curl(texts, url, token, folder):
    code = block("sh").replace(DEFAULT, url)
    command, found, body = code.partition("""'{"texts": "turn on the lamp"}'""")
    assert found and not body.strip()
    words = ["sh", "-c", f'{command.strip()} "$1"', "sh", json.dumps({"texts": texts})]
    done = subprocess.run(words, capture_output=True, text=True, env={"SERVE_TOKEN": token, "PATH": "/usr/bin:/bin"})
    return json.loads(done.stdout)["answers"] if done.returncode == 0 else done.stderr


def with_python(texts, url, token, folder):
    (folder / "client.py").write_text(block("python"), encoding="utf-8")
    script = f"import json, client; print(json.dumps(client.label({texts!r}, {url!r})))"
    words = [sys.executable, "-S", "-c", script]  # without site-packages
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, env={"SERVE_TOKEN": token})
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr


def with_javascript(texts, url, token, folder):
    (folder / "client.mjs").write_text(block("js"), encoding="utf-8")
    options = json.dumps({"url": url, "token": token})
    show = f"console.log(JSON.stringify(await label({json.dumps(texts)}, {options})))"
    (folder / "use.mjs").write_text(f'import {{ label }} from "./client.mjs"; {show}', encoding="utf-8")
    done = subprocess.run([NODE, "use.mjs"], capture_output=True, text=True, cwd=folder)
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr


CLIENTS = [
    pytest.param(with_curl, marks=pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")),
    with_python,
    pytest.param(with_javascript, marks=pytest.mark.skipif(not NODE, reason="needs node")),
]


@pytest.mark.slow
@pytest.mark.parametrize("client", CLIENTS)
def test_each_client_labels_texts_and_sends_the_token(client, shipped, tmp_path):  # noqa: F811
    (tmp_path / "token").write_text("secret")
    with Served(shipped, "--token_file", tmp_path / "token") as server:
        url, given = f"http://127.0.0.1:{server.port}", {"Authorization": "Bearer secret"}
        for texts in ("turn on the lamp", ["打开灯 🙂", {"id": "7", "text": "play a song"}]):
            expected = server.ask("/predict", {"texts": texts}, **given)[1]["answers"]
            assert client(texts, url, "secret", tmp_path) == expected
        assert "401" in client("turn on", url, "wrong", tmp_path)


class Overloaded(BaseHTTPRequestHandler):
    """Rejects the first `server.num_rejected` requests like an overloaded tools.serve, and accepts the others."""

    def do_POST(self):
        texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["texts"]
        self.server.times.append(time.monotonic())
        busy = len(self.server.times) <= self.server.num_rejected
        content = json.dumps({"detail": "the server is busy"} if busy else {"answers": [{"text": texts}]}).encode()
        self.send_response(503 if busy else 200)
        if busy:
            self.send_header("Retry-After", str(self.server.seconds))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def overloaded(num_rejected, seconds):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Overloaded)
    server.num_rejected, server.seconds, server.times = num_rejected, seconds, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("client", CLIENTS)
def test_each_client_waits_as_long_as_an_overloaded_server_requests(client, tmp_path):
    with overloaded(1, 2) as (server, url):
        assert client("a text", url, "", tmp_path) == [{"text": "a text"}]
        assert len(server.times) == 2 and 2 <= server.times[1] - server.times[0] < 10


@pytest.mark.parametrize("client", CLIENTS[1:])
def test_each_client_gives_up_eventually(client, tmp_path):
    with overloaded(99, 0) as (server, url):
        assert "503" in client("a text", url, "", tmp_path) and len(server.times) == 5
