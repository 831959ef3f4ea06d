"""Metrics for Prometheus: read from the parts of an instance when they are asked for, never on the hot path."""

from collections.abc import Iterator
from threading import Thread
from typing import Protocol
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class Measured(Protocol):
    """What an instance tells about itself."""

    def gauges(self) -> dict[str, tuple[str, float]]:
        """Return, by name, what each value means, and the value now."""
        ...

    def refused_calls(self) -> dict[str, int]:
        """Return how many calls each pool has turned away because it was full."""
        ...


class MetricsServer:
    """Serves `/metrics` over HTTP, from `start` to `close`. Every name begins with `gatekeeper_`."""

    def __init__(self, measured: Measured) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Collector(measured))
        self._server: WSGIServer | None = None
        self._thread: Thread | None = None

    def start(self, *, host: str, port: int) -> int:
        """Listen, and return the port; `OSError` when the address is taken."""
        self._server, self._thread = start_http_server(port, addr=host, registry=self._registry)
        return int(self._server.server_port)

    def close(self) -> None:
        """Stop listening."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._server = None


class _Collector(Collector):
    def __init__(self, measured: Measured) -> None:
        self._measured = measured

    def collect(self) -> Iterator[Metric]:
        for name, (meaning, value) in self._measured.gauges().items():
            yield GaugeMetricFamily(f"gatekeeper_{name}", meaning, value=value)
        refused = CounterMetricFamily(
            "gatekeeper_refused_calls", "Calls turned away because their pool was full.", labels=["pool"]
        )
        for pool, count in self._measured.refused_calls().items():
            refused.add_metric([pool], count)
        yield refused
