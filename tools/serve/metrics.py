"""The state of the server: Prometheus metrics and the shutdown flag."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        own: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("requests", "requests by path and status", ["path", "status"], **own)
        self.seconds = Histogram("request_seconds", "seconds per request", ["path"], buckets=SECONDS, **own)
        self.texts = Counter("texts", "labelled texts", **own)
        self.waiting = Gauge("texts_waiting", "texts in the queue", **own)
        self.batch_size = Histogram("batch_size", "texts per batch", buckets=(1, 2, 4, 8, 16, 32, 64, 128), **own)
        self.batch_seconds = Histogram("batch_seconds", "seconds spent in the model per batch", buckets=SECONDS, **own)
        self.stopping: float | None = None  # time of the first signal
        self.cut_off = 0  # requests without a response when the server stopped
