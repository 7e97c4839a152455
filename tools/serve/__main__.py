"""Serves an exported model (tools.export) over HTTP: texts in, labels out.

    pip install -r tools/serve/requirements.txt
    python -m tools.serve shipped --port 8000

    POST /predict  {"texts": "a text"} or {"texts": [one or more]}  -> {"answers": [the columns of each text]}
    GET  /labels   the tasks and their labels
    GET  /health   whether the server is up
    GET  /metrics  metrics for Prometheus
    GET  /docs     an interactive page of the API (OpenAPI)

Texts of all requests are batched together: while the model is busy, the next batch is collected from texts of similar
length. A request that could not be answered within --max_latency_ms is refused with 503 at once, so the queue stays
short. On SIGTERM the server answers all accepted requests, then exits. A server needs only this file and the exported
folder (see Dockerfile). Edit this file to change the format of requests, or to require a key.
"""

import argparse
import asyncio
import contextlib
import ctypes
import importlib
import ipaddress
import json
import math
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

try:
    import uvicorn
    from fastapi import FastAPI, HTTPException
    from fastapi.exceptions import RequestValidationError
    from fastapi.middleware.trustedhost import TrustedHostMiddleware
    from fastapi.openapi.docs import get_swagger_ui_html
    from fastapi.responses import Response
    from fastapi.staticfiles import StaticFiles
    from prometheus_client import (
        CONTENT_TYPE_LATEST,
        CollectorRegistry,
        Counter,
        Gauge,
        Histogram,
        ProcessCollector,
        generate_latest,
    )
    from pydantic import BaseModel, ConfigDict
    from swagger_ui_bundle import swagger_ui_path
except ImportError as error:
    print(f"error: {error.name} is missing: pip install -r tools/serve/requirements.txt", file=sys.stderr)
    sys.exit(2)

MOST_BODIES = 16  # bodies of the maximum length that may be in transit at once
PER_TEXT = 40  # fixed cost of a text, in characters
LAST_CALL = 5  # seconds after SIGTERM in which a partly received request may still be completed and answered
MOST_CONNECTIONS = 512  # beyond this the longest idle ones are closed
DRAIN = 1.0  # seconds after SIGTERM in which open connections are still answered; then they are closed


class Mistake(Exception):
    """An error of the command line or the setup, in one line."""


class TooMuch(Exception):
    """A body that is not read to the end. status: HTTP status of the answer"""

    def __init__(self, status: int, detail: str):
        super().__init__(detail)
        self.status = status


class Busy(Exception):
    """The server is overloaded. Its argument is the number of seconds after which to retry."""


# ---- batches ---------------------------------------------------------------------------------------------------------


class Waiting(NamedTuple):
    """A text in the queue."""

    row: object
    cost: int  # from `cost_of`
    answer: asyncio.Future


def cost_of(row):
    """Cost of a text: its characters, one more per token if tokens are given, and a constant."""
    parts = row.values() if isinstance(row, dict) else [row]
    return PER_TEXT + sum(len(part) + (sum(map(len, part)) if isinstance(part, list) else 0) for part in parts)


class Batcher:
    """Batches the texts of many requests and labels them in a separate thread.

    label: rows -> answers, with an exception for a row that cannot be labelled. seconds: the longest a text may take;
    requests that would take longer are refused. most_waiting: the maximum number of texts in the queue.
    """

    def __init__(self, label, batch_size, most_waiting, seconds, metrics):
        self.label, self.batch_size, self.most_waiting, self.seconds = label, batch_size, most_waiting, seconds
        self.metrics, self.thread = metrics, ThreadPoolExecutor(1)
        self.waiting, self.running, self.arrived = [], 0, asyncio.Event()
        self.speed = self.ended = None  # recent cost per second; when the last batch ended, if the queue was not empty

    def warm_up(self, row):
        """Labels a text so that the first request is fast, and a batch of it to estimate the speed."""
        self.label([row])
        began = time.perf_counter()
        answers = self.label([row] * self.batch_size)
        self.speed = self.batch_size * cost_of(row) / (time.perf_counter() - began)
        if isinstance(answers[0], Exception):
            raise answers[0]

    async def ask(self, rows):
        """The answers to the rows of a request. Raises Busy if they would take too long."""
        costs = [cost_of(row) for row in rows]
        ahead = self.running + sum(one.cost for one in self.waiting)
        expected = (ahead + sum(costs)) / self.speed
        if ahead and (expected > self.seconds / 2 or len(self.waiting) + len(rows) > self.most_waiting):
            raise Busy(expected)
        loop = asyncio.get_running_loop()
        entries = [Waiting(row, cost, loop.create_future()) for row, cost in zip(rows, costs)]
        self.waiting += entries
        self.metrics.waiting.set(len(self.waiting))
        self.arrived.set()
        return await asyncio.gather(*(one.answer for one in entries))

    def take(self):
        """The next batch: the text that has waited longest, and those nearest to it in length."""
        first = self.waiting[0].cost
        nearest = sorted(range(len(self.waiting)), key=lambda i: abs(self.waiting[i].cost - first))
        chosen = set(nearest[: self.batch_size])
        batch = [one for i, one in enumerate(self.waiting) if i in chosen]
        self.waiting = [one for i, one in enumerate(self.waiting) if i not in chosen]
        return batch

    async def run(self):
        """Labels texts as they arrive, in an endless loop."""
        loop = asyncio.get_running_loop()
        while True:
            await self.arrived.wait()
            batch = self.take()
            self.metrics.waiting.set(len(self.waiting))
            if not self.waiting:
                self.arrived.clear()
            self.running = sum(one.cost for one in batch)
            began = time.perf_counter()
            try:
                answers = await loop.run_in_executor(self.thread, self.label, [one.row for one in batch])
            except Exception as error:  # of the model: all requests of the batch fail, later ones do not
                answers = [error] * len(batch)
            now = time.perf_counter()
            speed = self.running / (now - (self.ended or began))
            if len(batch) > self.batch_size // 4 or speed > self.speed:  # in a small batch fixed costs dominate
                self.speed += 0.2 * (speed - self.speed)
            self.running, self.ended = 0, now if self.waiting else None
            self.metrics.batch_size.observe(len(batch))
            self.metrics.batch_seconds.observe(now - began)
            for one, answer in zip(batch, answers):
                if not one.answer.done():  # done: cancelled because the server is shutting down
                    one.answer.set_exception(answer) if isinstance(answer, Exception) else one.answer.set_result(answer)


def labeller(predictor, batch_size, input_error):
    """A function rows -> answers, with an InputError in place of the answer for a row that cannot be labelled."""

    def label(rows):
        try:
            return predictor(rows, batch_size)
        except input_error as error:
            if len(rows) == 1:
                return [input_error(str(error).removeprefix("row 1: "))]  # not its number in the request
            return [answer for row in rows for answer in label([row])]

    return label


# ---- the server ------------------------------------------------------------------------------------------------------


class Metrics:
    """Metrics for Prometheus."""

    def __init__(self):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        here = {"registry": self.registry}
        fine = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
        self.requests = Counter("requests", "requests by path and status", ["path", "status"], **here)
        self.seconds = Histogram("request_seconds", "from a request to its answer", ["path"], buckets=fine, **here)
        self.texts = Counter("texts", "labelled texts", **here)
        self.waiting = Gauge("texts_waiting", "texts in the queue", **here)
        self.batch_size = Histogram("batch_size", "texts per batch", buckets=(1, 2, 4, 8, 16, 32, 64, 128), **here)
        self.batch_seconds = Histogram("batch_seconds", "seconds the model takes for a batch", buckets=fine, **here)


class Limits:
    """ASGI middleware that limits request bodies and counts answers: 413 for a body that is too long, 408 for one that
    does not arrive in time, 503 if there is no room for it.

    most_bytes: maximum size of a body; seconds: time for a body to arrive. Bodies in transit may have MOST_BODIES times
    most_bytes in total.
    """

    def __init__(self, app, metrics, most_bytes, seconds, server):
        self.app, self.metrics, self.most_bytes, self.seconds, self.server = app, metrics, most_bytes, seconds, server
        self.held = 0  # bytes of bodies in transit

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = time.perf_counter(), [500]

        async def counted(message):
            if message["type"] == "http.response.start":
                status[0] = message["status"]
                if self.server.stopping is not None:
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        async def replay():
            return parts.pop() if parts else await receive()

        app, parts = self.app, []
        try:
            body = await asyncio.wait_for(self.read_body(receive), self.seconds)
            parts.append({"type": "http.request", "body": body, "more_body": False})
        except TooMuch as refusal:
            app = answered({"detail": str(refusal)}, refusal.status, {"Connection": "close"})
        except asyncio.TimeoutError:  # not yet a TimeoutError in Python 3.10
            late = {"detail": f"the request did not arrive within {self.seconds:g} seconds"}
            app = answered(late, 408, {"Connection": "close"})
        try:
            await app(scope, replay, counted)
        except asyncio.CancelledError:
            self.server.cut_off += 1
            raise
        finally:  # also reached by an exception of the model, which becomes a 500
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(path, status[0]).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - began)

    async def read_body(self, receive) -> bytes:
        """The body of a request. Raises TooMuch if it is too long or bodies in transit leave no room."""
        parts, size, more = [], 0, True
        try:
            while more:
                message = await receive()
                parts.append(message.get("body", b""))
                size, self.held = size + len(parts[-1]), self.held + len(parts[-1])
                more = message.get("more_body", False) and message["type"] == "http.request"
                if size > self.most_bytes:
                    raise TooMuch(413, f"a request has at most {self.most_bytes:,} bytes")
                if more and self.held > MOST_BODIES * self.most_bytes:
                    raise TooMuch(503, "too many requests are in transit; try again")
            return b"".join(parts)
        finally:
            self.held -= size


class Row(BaseModel):
    """A text or its tokens, and optionally a second text and numeric columns, as the model needs."""

    model_config = ConfigDict(extra="forbid")
    text: str | None = None
    tokens: list[str] | None = None
    text_pair: str | None = None
    extras: dict[str, float | None] | None = None


class Request(BaseModel):
    """One text, or several, answered in the same order."""

    model_config = ConfigDict(extra="forbid")
    texts: str | Row | list[str | Row]


class Service:
    """The handlers of all routes. predictor: from the exported folder's predictor.py, imported as `module`"""

    def __init__(self, predictor, module, options, server):
        self.predictor, self.options, self.server, self.metrics = predictor, options, server, Metrics()
        label = labeller(predictor, options.batch_size, module.InputError)
        limits = (options.batch_size, options.max_queue, options.max_latency_ms / 1000)
        self.batcher = Batcher(label, *limits, self.metrics)
        self.batcher.warm_up(example_row(predictor))

    @contextlib.asynccontextmanager
    async def lifespan(self, app):
        running = asyncio.create_task(self.batcher.run())
        yield
        running.cancel()

    async def predict(self, request: Request):
        """The labels of each text: the columns of `main.py --do_predict`, task by task."""
        rows = self.rows_of(request)
        answers = await self.batcher.ask(rows)
        self.metrics.texts.inc(len(answers))
        return answered({"answers": answers})

    def rows_of(self, request):
        """The texts of a request as rows for the predictor. Raises InputError if one is invalid, before it is batched
        with texts of other requests."""
        given = request.texts if isinstance(request.texts, list) else [request.texts]
        rows = [one if isinstance(one, str) else one.model_dump(exclude_none=True) for one in given]
        if not 0 < len(rows) <= self.options.max_texts:
            raise HTTPException(413 if rows else 422, f"a request has 1 to {self.options.max_texts} texts")
        for number, row in enumerate(rows, 1):
            if cost_of(row) > self.options.max_characters + PER_TEXT:
                raise HTTPException(413, f"text {number} has more than {self.options.max_characters:,} characters")
            self.predictor.encode.example(row, f"text {number}")
        return rows

    async def labels(self):
        """{task: {"type", "labels"}}"""
        tasks = self.predictor.tasks.items()
        return answered({name: {"type": task["type"], "labels": task["labels"]} for name, task in tasks})

    async def health(self):
        """200, or 503 while the server shuts down."""
        status, code = ("ok", 200) if self.server.stopping is None else ("stopping", 503)
        return answered({"status": status, "waiting": len(self.batcher.waiting)}, code)

    async def for_prometheus(self):
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def docs(self):
        names = {"js": "swagger-ui-bundle.js", "css": "swagger-ui.css", "favicon": "favicon-32x32.png"}
        files = {f"swagger_{kind}_url": f"swagger/{name}" for kind, name in names.items()}
        return get_swagger_ui_html(openapi_url="openapi.json", title="Labels", **files)


def answered(value, status=200, headers=None):
    body = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")
    return Response(body, status, headers, "application/json")


async def not_valid(_, error):
    """A 422 that does not repeat the input, which may be long or not text."""
    told = [{"where": ".".join(map(str, one["loc"])), "what": one["msg"]} for one in error.errors()[:3]]
    return answered({"detail": told}, 422)


async def not_labelled(_, error):
    return answered({"detail": str(error)}, 422)


async def busy(_, error):
    return answered({"detail": "the server is busy; try again"}, 503, {"Retry-After": str(math.ceil(error.args[0]))})


def build_app(service, module, options):
    """The ASGI application."""
    about = {"title": "Text labelling", "description": "Texts in, labels out.", "lifespan": service.lifespan}
    app = FastAPI(**about, docs_url=None, redoc_url=None)
    app.openapi_version = "3.0.2"  # the version that the bundled Swagger page supports
    limits = {"most_bytes": options.max_bytes, "seconds": options.max_body_ms / 1000, "server": service.server}
    app.add_middleware(Limits, metrics=service.metrics, **limits)
    # outermost: another site may resolve its own name to this address (DNS rebinding)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts(options), www_redirect=False)
    app.mount("/swagger", StaticFiles(directory=swagger_ui_path))
    for kind, handler in ((RequestValidationError, not_valid), (module.InputError, not_labelled), (Busy, busy)):
        app.add_exception_handler(kind, handler)
    refusals = {status: {"description": what} for status, what in ((413, "too long"), (503, "overloaded"))}
    app.add_api_route("/predict", service.predict, methods=["POST"], responses=refusals)
    app.add_api_route("/labels", service.labels)
    app.add_api_route("/health", service.health)
    app.add_api_route("/metrics", service.for_prometheus, include_in_schema=False)
    app.add_api_route("/docs", service.docs, include_in_schema=False)
    return app


def allowed_hosts(options) -> list[str]:
    """Host names that requests may use: --hosts, otherwise its own on a loopback address, otherwise any."""
    if options.hosts:
        return [name.strip() for name in options.hosts.split(",") if name.strip()]
    try:
        address = socket.getaddrinfo(options.host, None)[0][4][0]
    except OSError:  # reported by `listen`
        return ["*"]
    if not ipaddress.ip_address(address).is_loopback:
        return ["*"]
    return [f"[{options.host}]" if ":" in options.host else options.host, "localhost", "127.0.0.1", "[::1]"]


def example_row(predictor):
    """A row that is valid for the model."""
    row = {"text": "a text of ten words or so, to begin with"}
    if predictor.encode.pairs:
        row["text_pair"] = "and a second one"
    if predictor.encode.extras:
        row["extras"] = dict.fromkeys(predictor.encode.extras, 0.0)
    return row


class Server(uvicorn.Server):
    """On the first signal it accepts no more connections, answers the open ones with `Connection: close`, and exits. A
    second signal ends it sooner. stopping: time of the first signal, or None; cut_off: requests that were not answered;
    idle: seconds after which a connection is closed that sends no request or does not read its answer."""

    stopping = listening = None
    cut_off = 0

    def __init__(self, config, idle):
        super().__init__(config)
        self.idle = idle
        self.waits = {}  # {connection: (what it is waiting for, since when)}

    def handle_exit(self, number, frame):
        if self.stopping is not None:
            return super().handle_exit(number, frame)
        self.stopping = time.monotonic()
        refuse_new_connections(self.listening)

    async def on_tick(self, counter):
        seconds = 0.0 if self.stopping is None else time.monotonic() - self.stopping
        if seconds > 0.1:
            for server in self.servers:
                server.close()
        self.close_idle()
        ends = await super().on_tick(counter) or seconds > DRAIN
        for _ in range(2 * ends):  # turns of the loop: a request not yet read when its connection is closed is lost
            await asyncio.sleep(0)
        return ends

    def close_idle(self):
        """Aborts connections that have waited too long for their client, and the oldest if there are too many."""
        now, before = time.monotonic(), self.waits
        waits = {one: wait for one in self.server_state.connections if (wait := awaited(one))}
        self.waits = {
            one: before[one] if one in before and before[one][0] == wait else (wait, now) for one, wait in waits.items()
        }
        oldest = sorted(self.waits, key=lambda one: self.waits[one][1])
        many = max(0, len(self.server_state.connections) - MOST_CONNECTIONS)
        for place, one in enumerate(oldest):
            if place < many or now - self.waits[one][1] > self.idle:
                one.transport.abort()


def refuse_new_connections(listening: socket.socket) -> None:
    """On Linux, makes the kernel drop every SYN from now on, so that no client is connected but not yet accepted when
    the socket is closed: its request would be lost. `listen(0)` does not help: clients beyond that queue believe they
    are connected.

    The filter is a classic BPF program on the TCP header: man 7 socket, SO_ATTACH_FILTER.
    """
    if sys.platform != "linux":
        return
    program = [(0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 2**32 - 1)]
    #          load the flags    SYN: next, else skip  drop           accept
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    with contextlib.suppress(OSError):  # a kernel without it, as in some sandboxes
        listening.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HP", len(program), ctypes.addressof(code)))


def awaited(connection: asyncio.Protocol) -> tuple | None:
    """What a connection is waiting for: the client's next request, or the client to read the answer. None: nothing"""
    cycle = connection.cycle
    if cycle is None or cycle.response_complete:
        return "a request", id(cycle)
    return ("reading", id(cycle)) if connection.flow.write_paused else None


def build_server(options):
    """A Server for the exported folder, not yet running."""
    module = load_module(Path(options.folder) / "predictor.py")
    try:
        predictor = module.Predictor(options.folder, options.threads or None)
    except module.InputError as error:
        raise Mistake(str(error)) from None
    config = uvicorn.Config(None, log_level="warning", access_log=False, lifespan="on")
    config.timeout_keep_alive, config.timeout_graceful_shutdown = options.max_idle_s, LAST_CALL
    server = Server(config, options.max_idle_s)
    config.app = build_app(Service(predictor, module, options, server), module, options)
    return server


def load_module(path):
    """predictor.py of the exported folder, as a module."""
    if not path.is_file():
        raise Mistake(
            f"{path.parent}: no exported model; create one: python -m tools.export --checkpoint … --output_dir …"
        )
    sys.path.insert(0, str(path.parent))
    try:
        return importlib.import_module("predictor")
    except ImportError as error:
        raise Mistake(f"{error.name} is missing: pip install -r {path.parent}/requirements.txt") from None


def listen(host, port):
    """A listening socket at this address."""
    try:
        family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(place[:2], family=family, backlog=1024)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # otherwise an answer waits 40 ms for an ACK
        return listening
    except OSError as error:
        raise Mistake(f"--host {host} --port {port}: {error.strerror or error}") from None


def serve(options):
    """Serves until SIGTERM or Ctrl-C."""
    listening = listen(options.host, options.port)
    server = build_server(options)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # uvicorn raises it again for the previous handler
    print(f"http://{options.host}:{listening.getsockname()[1]}/docs  (Ctrl-C stops the server)", flush=True)
    if allowed_hosts(options) == ["*"]:
        print("it accepts requests for any host name; restrict them with --hosts NAME,NAME", flush=True)
    server.listening = listening
    server.run(sockets=[listening])
    all_answered = f"{server.cut_off} requests were cut off" if server.cut_off else "all accepted requests are answered"
    print(f"{all_answered}; the server has stopped", flush=True)


def one_line(text: str) -> str:
    """The text with line breaks, escape sequences and other non-printable characters escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class OneLineParser(argparse.ArgumentParser):
    """Reports an error of the command line in one line."""

    def error(self, message):
        self.exit(2, one_line(f"error: {message} (--help lists all flags)") + "\n")


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """A type for argparse: whole numbers from `low` to `high`, in plain digits."""

    def parse(text):
        if not (text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"{text[:30]!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse


def parse(words=None):
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def add(name, default, help, low=1, high=2**40):
        parser.add_argument(name, type=whole_number(low, high), default=default, help=help)

    parser.add_argument("folder", help="folder written by tools.export")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves your network without password [127.0.0.1]")
    add("--port", 8000, "0: a free port [8000]", low=0, high=65535)
    add("--threads", 0, "processor cores for the model [all]", low=0, high=1024)
    add("--batch_size", 32, "maximum number of texts labelled together [32]", high=65536)
    add("--max_latency_ms", 1000, "requests that would take longer are refused with 503 [1000]")
    add("--max_queue", 1024, "maximum number of waiting texts; more are refused with 503 [1024]")
    add("--max_texts", 64, "maximum number of texts in a request [64]")
    add("--max_characters", 10_000, "maximum number of characters in a text [10000]")
    add("--max_bytes", 1_000_000, "maximum size of a request in bytes [1000000]")
    add("--max_body_ms", 10_000, "requests that take longer to arrive are refused with 408 [10000]")
    add("--max_idle_s", 30, "seconds until a connection that sends no request or reads no answer is closed [30]")
    parser.add_argument(
        "--hosts", default="", help="accepted host names, comma-separated [its own on 127.0.0.1, otherwise any]"
    )
    options = parser.parse_args(words)
    if not allowed_hosts(options):
        parser.error(f"--hosts {options.hosts}: contains no host name")
    return options


def main():
    try:
        serve(parse())
    except Mistake as mistake:
        print(one_line(f"error: {mistake}"), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
