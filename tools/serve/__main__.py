"""Serves an exported model (tools.export) over HTTP.

    pip install -r tools/serve/requirements.txt
    python -m tools.serve shipped --port 8000

    POST /predict  {"texts": "a text"} or {"texts": [one or more texts]} -> {"answers": [one prediction per text]}
    GET  /labels   the tasks and their labels
    GET  /models   the loaded models
    GET  /health   the state of the server
    GET  /metrics  metrics for Prometheus
    GET  /docs     interactive API documentation (OpenAPI)

To serve several models, name them (python -m tools.serve intents=shipped slots=other) and select one in each request
({"texts": …, "model": "slots"}).

Texts of all requests are batched together: while the model is busy, texts of similar length are collected for the next
batch. A request that cannot be processed within --max_latency_ms is rejected with 503 immediately, which keeps the
queue short. On SIGHUP, the server reloads its folders without losing requests. On SIGTERM, it finishes all accepted
requests and exits. The server only needs this folder, the exported folders and engine/run/flags.py (see Dockerfile).
"""

import argparse
import os
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

try:
    import uvicorn

    from tools.serve.app import Service, build_app
    from tools.serve.metrics import Metrics
    from tools.serve.models import ModelError, models_of
    from tools.serve.server import Server
except ImportError as error:
    print(f"error: {error.name} is not installed; pip install -r tools/serve/requirements.txt", file=sys.stderr)
    sys.exit(2)
from engine.run.flags import OneLineParser, one_line, whole_number
from tools.serve.connections import host_names, listen

LAST_CALL = 5  # seconds after SIGTERM during which partially received requests are still processed


def fail(message: str) -> NoReturn:
    print(one_line(f"error: {message}"), file=sys.stderr)
    sys.exit(2)


def build_server(options: argparse.Namespace, listening: socket.socket, hosts: list[str]) -> Server:
    """Creates the Server without starting it."""
    metrics, idle = Metrics(), options.max_idle_s
    try:
        app = build_app(Service(models_of(options.folder, options, metrics), options, metrics), hosts)
    except ModelError as error:
        fail(str(error))
    timeouts = {"timeout_keep_alive": idle, "timeout_graceful_shutdown": LAST_CALL}
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on", **timeouts)
    return Server(config, listening, idle, metrics)


def parse() -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def add(name: str, default: int, help: str, low: int = 1, high: int = 2**40) -> None:
        parser.add_argument(name, type=whole_number(low, high), default=default, help=help)

    folders = "FOLDER written by tools.export, or NAME=FOLDER; the first one is used if a request names no model"
    parser.add_argument("folder", nargs="+", help=folders)
    parser.add_argument("--host", default="127.0.0.1", help="address; 0.0.0.0 accepts remote connections [127.0.0.1]")
    add("--port", 8000, "0: a free port [8000]", low=0, high=65535)
    add("--threads", 0, "CPU cores for the model [all]", low=0, high=1024)
    add("--batch_size", 32, "maximum number of texts labelled together [32]", high=65536)
    add("--max_latency_ms", 1000, "requests that would take longer are rejected with 503 [1000]")
    add("--max_queue", 1024, "maximum number of waiting texts; more are rejected with 503 [1024]")
    add("--max_texts", 64, "maximum number of texts in a request [64]")
    add("--max_characters", 10_000, "maximum number of characters in a text [10000]")
    add("--max_bytes", 1_000_000, "maximum size of a request in bytes [1000000]")
    add("--max_body_ms", 10_000, "requests that take longer to arrive are rejected with 408 [10000]")
    add("--max_idle_s", 30, "close connections whose client is idle for this many seconds [30]")
    parser.add_argument("--provider", default="auto", help="execution provider: auto, cpu, cuda, tensorrt, openvino")
    parser.add_argument("--abstain_below", default="", help="omit less probable predictions: 0.8, or intent=0.8,…")
    add("--watch_s", 0, "check folders for changes every N seconds and reload them; 0: only on SIGHUP [0]", low=0)
    parser.add_argument("--token_file", default="", help="file with a token that requests must have [SERVE_TOKEN]")
    parser.add_argument("--log_requests", action="store_true", help="print a line for each request, with its id")
    hosts = "accepted host names, comma-separated [names of this machine on 127.0.0.1, otherwise all]"
    parser.add_argument("--hosts", default="", help=hosts)
    options = parser.parse_args()
    names = [name.strip() for name in options.hosts.split(",") if name.strip()]
    if options.hosts and not names:
        parser.error(f"--hosts {options.hosts}: contains no host name")
    options.hosts, options.token = names, token_of(parser, options.token_file)
    return options


def token_of(parser: OneLineParser, path: str) -> str:
    """Returns the token from a file or from the environment variable SERVE_TOKEN, or "" if there is none."""
    try:
        token = Path(path).read_text(encoding="utf-8").strip() if path else os.environ.get("SERVE_TOKEN", "")
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"--token_file {path}: cannot be read ({type(error).__name__})")
    if path and not token:
        parser.error(f"--token_file {path}: is empty")
    return token


def main() -> None:
    options = parse()
    try:
        listening = listen(options.host, options.port, backlog=1024)
    except OSError as error:
        fail(f"--host {options.host} --port {options.port}: {error.strerror or error}")
    hosts = options.hosts or host_names(options.host, listening)
    server = build_server(options, listening, hosts)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # uvicorn re-raises it for the previous handler
    print(f"http://{options.host}:{listening.getsockname()[1]}/docs  (Ctrl-C stops the server)", flush=True)
    if hosts == ["*"]:
        print("requests for any host name are accepted; restrict them with --hosts NAME,NAME", flush=True)
    server.run(sockets=[listening])
    cut_off = server.metrics.cut_off
    result = f"{cut_off} requests were cut off" if cut_off else "all accepted requests were finished"
    print(f"{result}; the server has stopped", flush=True)


if __name__ == "__main__":
    main()
