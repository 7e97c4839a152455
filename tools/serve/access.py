"""Middleware for token authentication, request IDs and the access log."""

import hmac
import re
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tools.serve.limits import json_response

PUBLIC = ("/health",)  # paths that need no token, for load balancers
REQUEST_ID = re.compile(rb"[\w.:-]{1,64}")


class Access:
    """ASGI middleware that authenticates and logs requests, and adds an X-Request-Id header to every response.

    The ID is taken from the request's X-Request-Id header if it is valid; otherwise, a new one is generated. token:
    requests without `Authorization: Bearer TOKEN` get a 401 response; "" disables authentication. log: whether to print
    one line per request, without its texts.
    """

    def __init__(self, app: ASGIApp, token: str = "", log: bool = False) -> None:
        self.app, self.token, self.log = app, token.encode(), log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers, start, status, app = dict(scope["headers"]), time.perf_counter(), 500, self.app
        received = headers.get(b"x-request-id", b"")
        request_id = received if REQUEST_ID.fullmatch(received) else uuid.uuid4().hex.encode()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        kind, _, token = headers.get(b"authorization", b"").partition(b" ")
        allowed = kind.lower() == b"bearer" and hmac.compare_digest(token.strip(), self.token)
        if self.token and not allowed and scope["path"] not in PUBLIC:
            detail = "a valid token is required: Authorization: Bearer TOKEN"
            app = json_response({"detail": detail}, 401, {"WWW-Authenticate": "Bearer"})
        try:
            await app(scope, receive, send_with_id)
        finally:
            if self.log:
                milliseconds = 1000 * (time.perf_counter() - start)
                now = time.strftime("%Y-%m-%d %H:%M:%S")
                request = f"{scope['method']} {scope['path']!r}"
                print(f"{now} {request_id.decode()} {request} {status} {milliseconds:.1f} ms", flush=True)
