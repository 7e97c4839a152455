"""SIGTERM and SIGINT stop a run between two steps, once what it needs to go on is saved."""

import os
import signal
import time

GRACE = 1.0  # seconds in which further signals say the same: when torchrun is killed, each of its threads sends one


class Interrupted(Exception):
    """A signal came, and everything is saved. `signal_number` says which it was."""

    def __init__(self, signal_number):
        super().__init__(signal_number)
        self.signal_number = signal_number


class StopSignals:
    """`with StopSignals(say) as stop:` — inside, the first signal only sets `stop.number`; one that comes
    later than GRACE after it ends the process.

    say: a function for the line that tells of it. agree: what several processes make of the signal of each, 0 if none.
    then: what is done about it, for that line.
    """

    def __init__(self, say=print, agree=int, then="saving at the next step boundary"):
        self.say, self.agree, self.then = say, agree, then
        self.number, self.since, self.handlers = None, 0.0, {}

    def __enter__(self):
        self.handlers = {number: signal.signal(number, self.remember) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def remember(self, number, frame):
        if self.number is not None:
            if time.monotonic() - self.since > GRACE:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.number, self.since = number, time.monotonic()
        self.say(f"{signal.Signals(number).name}: {self.then}; once more ends at once")

    def check(self):
        """Raises Interrupted if a signal has come, to any of several processes: all must ask at the same place."""
        if number := self.agree(self.number or 0):
            raise Interrupted(number)
