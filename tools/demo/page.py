"""The web page of `python -m tools.demo`, which labels typed text.

    GET  /         the page, which does not load anything from other hosts
    GET  /example  a random row of the test split, in the format of `Examples.shown`
    POST /label    {"texts": [a string, or {"text" or "tokens", "text_pair"?, "extras"?, "id"?}]}
                   -> {"answers": [results of a Labeller]}, or {"error": message} with status 400 if the request is
                   invalid and 413 if it is too long

The server listens on the loopback address unless --address is set. On a loopback address, it only accepts requests for
its own host names, which prevents DNS rebinding attacks by other sites in the browser.
"""

import json
import logging
import signal
import socket
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route

from engine.data.own_inputs import input_columns
from engine.errors import UserError
from engine.task.task import pairs_of
from tools.demo.typed import KEYS, MAX_CHARACTERS, MAX_TEXTS, Examples, Labeller
from tools.report.page import environment, json_in_page, raw
from tools.report.texts import Words, language_of
from tools.serve import connections

logger = logging.getLogger("template")
MAX_BYTES = 8_000_000  # per request; enough for MAX_TEXTS pairs of MAX_CHARACTERS in most scripts
FIELDS = ("text", "send", "another", "examples", "gold", "cut", "none", "unreachable")


def parse_address(text: str) -> tuple[str, int]:
    """Parses an address such as '127.0.0.1:8000', '[::1]:8000' or 'localhost:0' as (host, port). Raises UserError if it
    is invalid."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UserError(f"--address={text} must look like 127.0.0.1:8000")
    return host, int(port)


def listen(address: str) -> socket.socket:
    """Opens a listening socket at --address. Raises UserError if this fails."""
    host, port = parse_address(address)
    try:
        return connections.listen(host, port)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0].lower()
        raise UserError(f"--address={address}: {reason}; choose another address") from None


def run_demo(label: Labeller, examples: Examples, listening: socket.socket, address: str, language: str) -> int:
    """Serves the page until Ctrl-C or SIGTERM, then returns 0. listening: the socket from `listen`."""
    host, port = parse_address(address)[0], listening.getsockname()[1]
    app = build_app(label, examples, connections.host_names(host, listening), language)
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=3)
    server = uvicorn.Server(config)
    for number in (signal.SIGINT, signal.SIGTERM):
        # uvicorn shuts down on a signal and then re-raises it for the previous handler, so this handler must not exit
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    logger.info(f"http://{f'[{host}]' if ':' in host else host}:{port}  (Ctrl-C stops the server)")
    server.run(sockets=[listening])
    logger.info("the server has stopped")
    return 0


def page(label: Labeller, examples: Examples, language: str) -> str:
    first = examples.first()
    words = Words(language_of(language, [item["given"]["text"] for item in first]))
    shown = {"pairs": pairs_of(label.tasks), "columns": input_columns(label.tasks), "examples": first}
    data = json_in_page(shown | {"words": {name: words(f"demo_{name}") for name in FIELDS}})
    view = {"style": raw("page.css") + raw("demo.css"), "script": raw("demo.js"), "data": data}
    template = environment(words).get_template("demo.html.jinja")
    return template.render(view | shown, words=words, most=MAX_CHARACTERS)


def texts_of(body: bytes) -> list[Any]:
    """Returns the texts of a request. Raises UserError if it is invalid."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise UserError("the request is not valid JSON") from None
    texts = given.get("texts") if isinstance(given, dict) else None
    if not isinstance(texts, list) or not texts:
        raise UserError('the request must be {"texts": [one or more texts]}')
    return texts


def build_app(label: Labeller, examples: Examples, hosts: list[str], language: str) -> Starlette:
    """Builds the ASGI application. hosts: host names that requests may use."""
    html, reader = page(label, examples, language), connections.BodyReader(MAX_BYTES)

    def show(_: Request) -> HTMLResponse:
        return HTMLResponse(html, headers={"X-Frame-Options": "DENY", "Cache-Control": "no-store"})

    def example(_: Request) -> JSONResponse:
        row = examples.random_row()
        return JSONResponse(row) if row else JSONResponse({"error": "there are no examples"}, 404)

    async def predict(request: Request) -> JSONResponse:
        try:
            texts = texts_of(await reader.read(request.receive))
            if len(texts) > MAX_TEXTS or any(map(is_too_long, texts)):
                limits = f"a request may have at most {MAX_TEXTS} texts of {MAX_CHARACTERS:,} characters each"
                return JSONResponse({"error": limits}, 413)
            return JSONResponse({"answers": await run_in_threadpool(label, texts)})
        except connections.TooLarge as error:
            return JSONResponse({"error": str(error)}, error.status)
        except UserError as error:  # the message may contain lone surrogates
            return JSONResponse({"error": str(error).encode("utf-8", "replace").decode()}, 400)
        except ValueError:  # raised for NaN, which JSON does not support
            return JSONResponse({"error": "the model returns NaN because training diverged; train it again"}, 500)

    return Starlette(
        routes=[Route("/", show), Route("/example", example), Route("/label", predict, methods=["POST"])],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)],
    )


def is_too_long(given: Any) -> bool:
    texts = [given.get(key) for key in KEYS] if isinstance(given, dict) else [given]
    return any(isinstance(text, str | list) and len(text) > MAX_CHARACTERS for text in texts)
