"""python -m tools.demo: a web page on this machine that labels typed text.

    GET  /         the page; it loads nothing from other hosts
    GET  /example  a random row of the test part, as returned by `Examples.shown`
    POST /label    {"texts": [a string, or {"text", "text_pair"?, "extras"?}]} -> {"answers": [as from a Labeller]};
                   {"error": a sentence} with 400 for an invalid request, 413 for one that is too long

The server listens on the loopback address unless --address says otherwise. There it only answers requests with its own
host name, so that no other site can read it through the browser under another name (DNS rebinding).
"""

import ipaddress
import json
import logging
import signal
import socket
from contextlib import suppress

from engine.errors import UserError
from engine.task.extras import extras_of, pairs_of
from tools.demo.typed import MOST_CHARACTERS, MOST_TEXTS
from tools.report.page import environment, json_in_page, raw
from tools.report.texts import Words, language_of

logger = logging.getLogger("template")
MOST_BYTES = 8_000_000  # per request: enough for MOST_TEXTS pairs of MOST_CHARACTERS in most scripts
FIELDS = ("text", "send", "another", "examples", "gold", "cut", "none", "unreachable")


def parse_address(text):
    """Parses '127.0.0.1:8000', '[::1]:8000' or 'localhost:0' as (host, port). Raises UserError for anything else."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UserError(f"--address={text} must look like 127.0.0.1:8000")
    return host, int(port)


def listen(address):
    """A socket listening at --address. Raises UserError if that fails or the server's packages are missing."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        needed = "pip install -r tools/demo/requirements.txt"
        raise UserError(f"the page needs the packages starlette and uvicorn: {needed}; --terminal needs none") from None
    host, port = parse_address(address)
    try:
        family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(place[:2], family=family)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # otherwise an answer waits 40 ms for an ACK
        return listening
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0].lower()
        raise UserError(f"--address={address}: {reason}; choose another one") from None


def run_demo(label, examples, listening, address, language="auto"):
    """Serves the page until Ctrl-C or SIGTERM. label: a Labeller; listening: from `listen`. -> 0"""
    import uvicorn

    host, port = parse_address(address)[0], listening.getsockname()[1]
    app = build_app(label, examples, names_of(host, listening), language)
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=3)
    # uvicorn shuts down cleanly on a signal and then raises it again for the previous handlers
    server = uvicorn.Server(config)
    before = {
        number: signal.signal(number, lambda *_: setattr(server, "should_exit", True))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        logger.info(f"http://{f'[{host}]' if ':' in host else host}:{port}  (Ctrl-C stops the server)")
        server.run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    logger.info("the page is closed")
    return 0


def names_of(host, listening):
    """Host names that requests may use: its own, or any if it serves other machines."""
    if not ipaddress.ip_address(listening.getsockname()[0]).is_loopback:
        return ["*"]
    return [f"[{host}]" if ":" in host else host, "localhost", "127.0.0.1", "[::1]"]


def page(label, examples, language):
    """The page as a string."""
    first = examples.first()
    words = Words(language_of(language, [item["given"]["text"] for item in first]))
    data = {
        "pairs": pairs_of(label.tasks),
        "columns": list(extras_of(label.tasks)),
        "examples": first,
        "words": {name: words(f"demo_{name}") for name in FIELDS},
    }
    script = raw("demo.js")
    view = {"style": raw("page.css") + raw("demo.css"), "script": script, "data": json_in_page(data)}
    return (
        environment(words)
        .get_template("demo.html.jinja")
        .render(view, words=words, pairs=data["pairs"], columns=data["columns"], examples=first, most=MOST_CHARACTERS)
    )


async def read_body(request):
    """The body of a request, or None if it is larger than MOST_BYTES."""
    from starlette.requests import ClientDisconnect

    body = b""
    with suppress(ClientDisconnect):  # then the rest is invalid JSON, and no client is left to answer
        async for part in request.stream():
            body += part
            if len(body) > MOST_BYTES:
                return None
    return body


def texts_of(body):
    """The texts of a request. Raises UserError if it is invalid."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise UserError("the request is not JSON") from None
    texts = given.get("texts") if isinstance(given, dict) else None
    if not isinstance(texts, list) or not texts:
        raise UserError('the request must be {"texts": [one or more texts]}')
    return texts


def build_app(label, examples, names, language="auto"):
    """The ASGI application of the server."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, JSONResponse
    from starlette.routing import Route

    html = page(label, examples, language)

    def show(request):
        return HTMLResponse(html, headers={"X-Frame-Options": "DENY", "Cache-Control": "no-store"})

    def another(request):
        found = examples.any()
        return JSONResponse(found) if found else JSONResponse({"error": "there are no examples"}, 404)

    async def answer(request):
        body = await read_body(request)
        if body is None:
            return JSONResponse({"error": f"a request may have at most {MOST_BYTES:,} bytes"}, 413)
        try:
            texts = texts_of(body)
            if len(texts) > MOST_TEXTS or any(map(too_long, texts)):
                limits = f"a request may have at most {MOST_TEXTS} texts of {MOST_CHARACTERS:,} characters each"
                return JSONResponse({"error": limits}, 413)
            return JSONResponse({"answers": await run_in_threadpool(label, texts)})
        except UserError as error:
            return JSONResponse({"error": printable(error)}, 400)
        except ValueError:  # from JSON, which has no NaN
            return JSONResponse({"error": "the model's answer is not a number: its training has diverged"}, 500)

    return Starlette(
        routes=[Route("/", show), Route("/example", another), Route("/label", answer, methods=["POST"])],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False)],
    )


def too_long(given):
    texts = given.values() if isinstance(given, dict) else [given]
    return any(isinstance(text, str) and len(text) > MOST_CHARACTERS for text in texts)


def printable(error):
    """Its message without lone surrogates."""
    return str(error).encode("utf-8", "replace").decode()
