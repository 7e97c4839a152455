"""A uvicorn server that finishes all accepted requests before it exits, and closes idle connections."""

import asyncio
import contextlib
import ctypes
import socket
import struct
import sys
import time
from types import FrameType
from typing import Any

import uvicorn

from tools.serve.metrics import Metrics

MAX_CONNECTIONS = 512  # beyond this, the connections that have been idle longest are closed
DRAIN = 1.0  # seconds after SIGTERM before open connections are closed


class Server(uvicorn.Server):
    """A server that, on the first signal, stops accepting connections, responds on open ones with `Connection: close`,
    and exits. A second signal makes it exit sooner.

    idle: seconds after which a connection is closed if the client neither sends a request nor reads the response.
    """

    def __init__(self, config: uvicorn.Config, listening: socket.socket, idle: float, metrics: Metrics) -> None:
        super().__init__(config)
        self.listening, self.idle, self.metrics = listening, idle, metrics
        self.waits: dict[Any, tuple] = {}  # {connection: (result of `awaited`, start time)}

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.metrics.stopping is not None:
            return super().handle_exit(sig, frame)
        self.metrics.stopping = time.monotonic()
        refuse_new_connections(self.listening)

    async def on_tick(self, counter: int) -> bool:
        seconds = 0.0 if self.metrics.stopping is None else time.monotonic() - self.metrics.stopping
        if seconds > 0.1:
            for server in self.servers:
                server.close()
        self.close_idle()
        ends = await super().on_tick(counter) or seconds > DRAIN
        for _ in range(2 * ends):  # let the loop read pending requests, which closing their connections would lose
            await asyncio.sleep(0)
        return ends

    def close_idle(self) -> None:
        """Aborts connections whose client has been idle too long, and the oldest connections if there are too many."""
        now, before, connections = time.monotonic(), self.waits, self.server_state.connections
        self.waits = {}
        for connection in connections:
            if wait := awaited(connection):
                known = before.get(connection)
                self.waits[connection] = known if known and known[0] == wait else (wait, now)
        oldest = sorted(self.waits, key=lambda connection: self.waits[connection][1])
        surplus = max(0, len(connections) - MAX_CONNECTIONS)
        for i, connection in enumerate(oldest):
            if i < surplus or now - self.waits[connection][1] > self.idle:
                connection.transport.abort()


def awaited(connection: Any) -> tuple[str, int] | None:
    """Returns the client action that a connection is waiting for, ("a request" or "reading", id), or None."""
    cycle = connection.cycle
    if cycle is None or cycle.response_complete:
        return "a request", id(cycle)
    return ("reading", id(cycle)) if connection.flow.write_paused else None


def refuse_new_connections(listening: socket.socket) -> None:
    """Makes the kernel drop all further SYNs (Linux only). Otherwise a client could be connected but not accepted when
    the socket is closed, and its request would be lost. `listen(0)` does not prevent this.

    The filter is a classic BPF program on the TCP header (man 7 socket, SO_ATTACH_FILTER).
    """
    if sys.platform != "linux":
        return
    program = [(0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 2**32 - 1)]
    #          load the flags    SYN: next, else skip  drop           accept
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    with contextlib.suppress(OSError):  # some sandboxes do not support it
        listening.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HP", len(program), ctypes.addressof(code)))
