"""Sockets, accepted host names and request bodies of tools.serve and tools.demo. Needs no extra packages."""

import ipaddress
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]  # of ASGI


class TooLarge(Exception):
    """Raised if a body is not read completely. status: HTTP status of the response."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


def listen(host: str, port: int, backlog: int | None = None) -> socket.socket:
    """Opens a listening socket. Raises OSError if the address does not exist or is in use."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.create_server(address[:2], family=family, backlog=backlog)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # otherwise responses wait 40 ms for an ACK
    return listening


def host_names(host: str, listening: socket.socket) -> list[str]:
    """Returns the host names that requests may use: "*", or only the names of this machine if the socket listens on a
    loopback address, which prevents DNS rebinding by other sites in the browser."""
    if not ipaddress.ip_address(listening.getsockname()[0]).is_loopback:
        return ["*"]
    return [f"[{host}]" if ":" in host else host, "localhost", "127.0.0.1", "[::1]"]


async def discard(receive: Receive, most: int = 1 << 25) -> None:
    """Drains up to `most` bytes of a body, because a client that is still sending may not read the response."""
    while most > 0:
        message = await receive()
        most -= len(message.get("body", b""))
        if not message.get("more_body", False):
            return


class BodyReader:
    """Reads request bodies of up to `most_bytes` each, and `most_in_transit` in total at the same time."""

    def __init__(self, most_bytes: int, most_in_transit: float = float("inf")) -> None:
        self.most_bytes, self.most_in_transit = most_bytes, most_in_transit
        self.in_transit = 0

    async def read(self, receive: Receive) -> bytes:
        """Reads the body of a request, or the beginning of it if the client disconnects. Raises TooLarge."""
        parts: list[bytes] = []
        size, more = 0, True
        try:
            while more:
                message = await receive()
                parts.append(message.get("body", b""))
                size, self.in_transit = size + len(parts[-1]), self.in_transit + len(parts[-1])
                more = message.get("more_body", False)
                if size > self.most_bytes:
                    if more:
                        await discard(receive)
                    raise TooLarge(413, f"a request may have at most {self.most_bytes:,} bytes")
                if more and self.in_transit > self.most_in_transit:
                    raise TooLarge(503, "too many requests are in transit; retry later")
            return b"".join(parts)
        finally:
            self.in_transit -= size
