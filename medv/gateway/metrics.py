"""What the server counts, for Prometheus. The only module that knows ``prometheus_client``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_SECONDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Metrics:
    """Counters of one server; they carry no names of users or objects, so that their number is bounded."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "medv_requests", "Answers by kind of object and status.", ["kind", "status"], registry=self._registry
        )
        self.bytes = Counter("medv_sent_bytes", "Bytes of bodies handed to connections.", registry=self._registry)
        self.seconds = Histogram(
            "medv_request_seconds", "Time from request to end of answer.", ["kind"], buckets=_SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self.running = Gauge("medv_running_requests", "Requests being answered.", registry=self._registry)
        self.decisions = Counter(
            "medv_decisions", "Decisions about access by scheme and outcome.", ["scheme", "outcome"],
            registry=self._registry,
        )  # fmt: skip
        self.cut = Counter("medv_cut_connections", "Connections cut, by cause.", ["cause"], registry=self._registry)
        self.limited = Counter("medv_limited_requests", "Requests told to come later.", registry=self._registry)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Show a value that is asked for when the metrics are."""
        Gauge(name, text, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)
