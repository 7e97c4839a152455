"""Stops a run on SIGTERM or SIGINT at a step boundary, after everything needed to resume is saved."""

import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

GRACE = 1.0  # seconds during which further signals are ignored: if torchrun is killed, each of its threads sends one


class Interrupted(Exception):
    """A signal arrived and everything is saved. `signal_number` is its number."""

    def __init__(self, signal_number: int):
        super().__init__(signal_number)
        self.signal_number = signal_number


class StopSignals:
    """Context manager that defers signals: the first one only sets `number`; another one, more than GRACE
    seconds later, ends the process.

    say: function that prints the message about the signal. agree: combines the signal numbers of several processes
    (0: no signal). then: what happens next, for the message.
    """

    def __init__(
        self,
        say: Callable[[str], object] = print,
        agree: Callable[[int], int] = int,
        then: str = "saving at the next step boundary",
    ):
        self.say, self.agree, self.then = say, agree, then
        self.number: int | None = None
        self.since, self.handlers = 0.0, dict[int, Any]()

    def __enter__(self) -> "StopSignals":
        self.handlers = {number: signal.signal(number, self.remember) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def remember(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            if time.monotonic() - self.since > GRACE:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.number, self.since = number, time.monotonic()
        self.say(f"{signal.Signals(number).name}: {self.then}; a second signal ends the process immediately")

    def check(self) -> None:
        """Raises Interrupted if any process has received a signal; all processes must call this at the same point."""
        if number := self.agree(self.number or 0):
            raise Interrupted(number)
