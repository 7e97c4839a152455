"""Who may ask, and what is logged of it: a token, and an id for each request."""

import hmac
import re
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tools.serve.limits import answered

OPEN = ("/health",)  # for load balancers, without a token
ID = re.compile(rb"[\w.:-]{1,64}")


class Access:
    """ASGI middleware. Every answer has the header X-Request-Id: that of the request, or a new one.

    token: answers 401 unless a request has `Authorization: Bearer TOKEN`; "": everyone may ask. log: print a line for
    each request, without its texts
    """

    def __init__(self, app: ASGIApp, token: str = "", log: bool = False) -> None:
        self.app, self.token, self.log = app, token.encode(), log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers, start, status, app = dict(scope["headers"]), time.perf_counter(), 500, self.app
        given = headers.get(b"x-request-id", b"")
        name = given if ID.fullmatch(given) else uuid.uuid4().hex.encode()

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", name)]
            await send(message)

        kind, _, token = headers.get(b"authorization", b"").partition(b" ")
        allowed = kind.lower() == b"bearer" and hmac.compare_digest(token.strip(), self.token)
        if self.token and not allowed and scope["path"] not in OPEN:
            needed = "a token is needed: Authorization: Bearer TOKEN"
            app = answered({"detail": needed}, 401, {"WWW-Authenticate": "Bearer"})
        try:
            await app(scope, receive, named)
        finally:
            if self.log:
                took = 1000 * (time.perf_counter() - start)
                now = time.strftime("%Y-%m-%d %H:%M:%S")
                what = f"{scope['method']} {scope['path']!r}"
                print(f"{now} {name.decode()} {what} {status} {took:.1f} ms", flush=True)
