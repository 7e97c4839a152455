"""Limits request bodies and records the metrics of all responses."""

import asyncio
import json
import time
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tools.serve.connections import BodyReader, TooLarge
from tools.serve.metrics import Metrics

BODIES_IN_TRANSIT = 16  # maximum number of full-size bodies in transit at the same time


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")
    return Response(body, status, headers, "application/json")


class Limits:
    """ASGI middleware that limits request bodies and counts responses. Responds with 413 if a body is too long, with
    408 if it does not arrive in time, and with 503 if too many bodies are in transit.

    most_bytes: maximum size of a body. seconds: time limit for receiving a body.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, most_bytes: int, seconds: float) -> None:
        self.app, self.metrics, self.seconds = app, metrics, seconds
        self.reader = BodyReader(most_bytes, BODIES_IN_TRANSIT * most_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status, app = time.perf_counter(), 500, self.app
        messages: list[Message] = []

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.metrics.stopping is not None:
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        try:
            body = await asyncio.wait_for(self.reader.read(receive), self.seconds)
            messages.append({"type": "http.request", "body": body, "more_body": False})
        except TooLarge as error:
            app = json_response({"detail": str(error)}, error.status, {"Connection": "close"})
        except asyncio.TimeoutError:  # is not a TimeoutError in Python 3.10
            timeout = {"detail": f"the request did not arrive within {self.seconds:g} seconds"}
            app = json_response(timeout, 408, {"Connection": "close"})
        try:
            await app(scope, replay, counted)
        except asyncio.CancelledError:
            self.metrics.cut_off += 1
            raise
        finally:  # also after an exception in the model, which causes a 500
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - start)
