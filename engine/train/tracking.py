"""Isolates training from experiment trackers: they cannot end a run with an error or change its random numbers, and a
resumed run does not send a point twice."""

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from engine.errors import UserError
from engine.run.command_line import first_line
from engine.run.files import write_json
from engine.schema import read_json, read_json_lines

if TYPE_CHECKING:
    from config import Config

logger = logging.getLogger("template")
PAUSE = 300  # seconds after an error until the service is tried again


def load_state(run_dir: Path, name: str) -> dict[str, Any]:
    """Returns a tracker's entry in trackers.json: {"id" of its run, "step" and "names" of the last point sent}."""
    path = run_dir / "trackers.json"
    return read_json(path, {str: dict}).get(name, {}) if path.exists() else {}


def update_state(run_dir: Path, name: str, **values: Any) -> None:
    path = run_dir / "trackers.json"
    states = read_json(path, {str: dict}) if path.exists() else {}
    write_json(path, states | {name: states.get(name, {}) | values})


def saved_id(run_dir: Path, name: str, create: Callable[[], str] = lambda: uuid4().hex) -> str:
    """Returns the id of this run at a tracker's service. It is created once, so a resumed run continues its curves."""
    if "id" not in load_state(run_dir, name):
        update_state(run_dir, name, id=create())
    return str(load_state(run_dir, name)["id"])


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Restores the random states of Python, NumPy and torch on exit, because some services draw random names."""
    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class Tracking:
    """The tracker of a run. After an error, points are sent later, at the latest when the run is resumed, because
    metrics.jsonl has all points."""

    def __init__(self, kind: Any, config: "Config", step: int):
        """Starts the tracker after `step` steps. Raises UserError if the tracker of a new run cannot start."""
        self.name, self.run_dir = getattr(kind, "name", kind.__name__), config.run_dir
        self.overwrites, self.delay = getattr(kind, "overwrites", False), getattr(kind, "delay", 0)
        self.underway: list[tuple[float, dict[str, Any]]] = []  # (time of sending, `sent` after it)
        self.pending: list[dict[str, Any]] = []
        self.sent: dict[str, Any] = {"step": -1, "names": []} | load_state(self.run_dir, self.name)
        self.tracker, self.retry_at, path = None, 0.0, self.run_dir / "metrics.jsonl"
        try:
            with same_random_numbers():
                self.tracker = kind(config, step)
        except Exception as error:  # from any library
            if not step:
                advice = "log in, use its offline mode, or choose another --report_to"
                raise UserError(f"{self.name} cannot start: {first_line(error).rstrip('.')}; {advice}") from None
            self.fail(error)
        for record in read_json_lines(path, dict) if path.exists() and not self.overwrites else ():
            self.log(record)

    def log(self, record: dict[str, Any]) -> None:
        """Sends a line of metrics.jsonl: {"step", "epoch", name: number}."""
        if self.overwrites or self.is_new(record):
            self.pending.append(record)
            if time.monotonic() >= self.retry_at:
                self.send()

    def is_new(self, record: dict[str, Any]) -> bool:
        """Returns whether a point has not been sent. A step may have two points: its losses, then its dev scores."""
        same_step = record["step"] == self.sent["step"]
        return not {*record} <= {*self.sent["names"]} if same_step else bool(record["step"] > self.sent["step"])

    def send(self) -> None:
        """Sends the pending points. After an error, the failed point and all later ones stay pending."""
        if self.tracker is None:
            return
        try:
            with same_random_numbers():
                while self.pending:
                    record = self.pending[0]
                    self.tracker.log(record)
                    names = [*self.sent["names"]] if record["step"] == self.sent["step"] else []
                    self.sent = {"step": record["step"], "names": [*names, *record]}
                    self.underway.append((time.monotonic(), self.sent))
                    del self.pending[0]
        except Exception as error:
            self.fail(error)
        self.save(self.delay)

    def save(self, delay: float) -> None:
        """Saves the last point that was sent at least `delay` seconds ago, so that it has arrived at the service. Later
        points may be lost if the run is killed, so a resumed run sends them again."""
        arrived = [sent for when, sent in self.underway if time.monotonic() >= when + delay]
        if arrived and not self.overwrites:
            update_state(self.run_dir, self.name, **arrived[-1])
        del self.underway[: len(arrived)]

    def fail(self, error: Exception) -> None:
        if not self.retry_at:
            later = "training continues; the points are sent later, and metrics.jsonl has them"
            logger.warning(f"{self.name} failed: {first_line(error)}; {later}")
        self.retry_at = time.monotonic() + PAUSE

    def close(self) -> None:
        if self.pending:
            self.send()
        try:
            with same_random_numbers():
                if self.tracker is not None:
                    self.tracker.close()
            self.save(delay=0)
        except Exception as error:
            self.fail(error)
