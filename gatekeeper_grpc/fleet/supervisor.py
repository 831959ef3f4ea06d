"""The supervisor of a fleet: starts the workers, looks after them, rolls and drains them, and answers for all."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from gatekeeper_grpc.config import Settings
from gatekeeper_grpc.fleet.aggregate import FleetReadiness, fleet_readiness, merge, merged
from gatekeeper_grpc.fleet.probe import fetch
from gatekeeper_grpc.fleet.slot import Slot
from gatekeeper_grpc.fleet.worker import Command, Worker
from gatekeeper_grpc.operations.health import HealthReporter
from gatekeeper_grpc.operations.health_server import HealthServer
from gatekeeper_grpc.operations.http_server import HttpServer
from gatekeeper_grpc.scheduler import Scheduler

_log = structlog.get_logger(__name__)

_TICK_S = 0.02
# Without a look at the workers for this long, the supervisor itself counts as hung.
_HUNG_AFTER_S = 10.0
# After the drain and grace periods of the workers; what has not ended by then is killed.
_LAST_MOMENT_S = 0.5
_SCRAPERS = 8


class FleetError(Exception):
    """No worker came to serve; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where a fleet serves."""

    health_port: int
    ops_port: int


class WorkerSupervisor(Collector):
    """Keeps `settings.workers` workers alive, from `start` to `stop`.

    All its methods are for one thread, which starts the workers and outlives them, but `collect` and `readiness`.
    """

    def __init__(self, settings: Settings, command: Command) -> None:
        self._settings = settings
        self._drains_within_s = settings.drain_s + settings.grace_s + _LAST_MOMENT_S
        leave_within_s = settings.grace_s + _LAST_MOMENT_S
        start: Callable[[int], Worker] = lambda number: Worker(number, command)  # noqa: E731
        self._slots = [Slot(n, start, leave_within_s=leave_within_s) for n in range(1, settings.workers + 1)]
        self._to_roll: deque[Slot] = deque()
        self._rolling: Slot | None = None
        self._roll_began_s = 0.0
        self._draining = False
        self._looked_s = time.monotonic()
        self._process = ProcessCollector(registry=CollectorRegistry())
        self._health = HealthReporter(self)
        self._health_server = HealthServer(self._health)
        self._scheduler = Scheduler()
        self._ops = HttpServer(self, is_alive=self.is_alive, readiness=self.readiness)

    def start(self) -> Ports:
        """Start the first worker, then the others, and wait until each serves or has failed.

        Errors: `ListenError`, and `FleetError` when the first worker does not come to serve.
        """
        health_port = self._health_server.bind(self._settings.health_listen)
        ops_port = self._ops.start(self._settings.ops_listen)
        self._scheduler.start()
        self._health.start(self._scheduler)
        self._health_server.start()
        # Alone, so that what keeps all of them from serving is found, and said, once.
        first, *others = self._slots
        self._look_after_until(lambda: first.serves or first.has_failed, [first])
        if not first.serves:
            raise FleetError(first.last_error or "the first worker ended before it served; its error stands above")
        self._look_after_until(lambda: all(slot.serves or slot.has_failed for slot in others), self._slots)
        return Ports(health_port=health_port, ops_port=ops_port)

    def look_after(self) -> None:
        """Look after the workers once; to be called many times a second."""
        self._tick(self._slots)

    def roll(self) -> None:
        """Begin to replace the workers, one after the other; those replaced already by an unfinished roll again."""
        if not self._to_roll and self._rolling is None:
            self._roll_began_s = time.monotonic()
        self._to_roll = deque(self._slots)
        _log.info("rolling", workers=len(self._slots))

    def stop(self) -> None:
        """Drain all workers at once; what has not ended half a second after its time is killed."""
        self._draining = True
        self._health.drain()
        deadline = time.monotonic() + self._drains_within_s
        for slot in self._slots:
            slot.terminate()
        self._wait_until_empty(deadline)
        for slot in self._slots:
            slot.kill()
        self._wait_until_empty(time.monotonic() + _LAST_MOMENT_S)
        for slot in self._slots:
            slot.close()
        self._health.close()
        self._scheduler.close()
        self._health_server.stop()
        self._ops.close()
        _log.info("stopped")

    def is_alive(self) -> bool:
        """Whether the workers are looked after."""
        return self._draining or time.monotonic() - self._looked_s < _HUNG_AFTER_S

    def readiness(self) -> FleetReadiness:
        """Judge the fleet as it is now."""
        return fleet_readiness({slot.number: slot.readiness() for slot in self._slots}, draining=self._draining)

    def collect(self) -> Iterator[Metric]:
        """Measure the fleet, and merge what its workers measure of themselves."""
        families = {metric.name: metric for metric in merged(self._scraped())}
        for metric in self._process.collect():
            merge(families, metric, worker="supervisor")
        yield from families.values()
        yield GaugeMetricFamily("gatekeeper_workers", "Workers there should be.", value=len(self._slots))
        up = sum(slot.readiness() is not None for slot in self._slots)
        yield GaugeMetricFamily("gatekeeper_workers_up", "Workers that serve and answer.", value=up)
        yield self._restarts()

    def _restarts(self) -> Metric:
        restarts = CounterMetricFamily(
            "gatekeeper_worker_restarts", "Workers that died, or hung and were killed.", labels=["worker", "cause"]
        )
        for slot in self._slots:
            for cause, count in slot.restarts.items():
                restarts.add_metric([str(slot.number), cause], count)
        return restarts

    def _scraped(self) -> dict[str, str]:
        ports = {str(slot.number): slot.ops_port for slot in self._slots}
        asked = {worker: port for worker, port in ports.items() if port is not None}
        with ThreadPoolExecutor(_SCRAPERS, thread_name_prefix="gatekeeper-scrape") as scrapers:
            texts = scrapers.map(_metrics_of, asked.values())
            return {worker: text for worker, text in zip(asked, texts, strict=True) if text}

    def _look_after_until(self, condition: Callable[[], bool], slots: list[Slot]) -> None:
        while not condition():
            self._tick(slots)
            time.sleep(_TICK_S)

    def _tick(self, slots: list[Slot]) -> None:
        self._looked_s = time.monotonic()
        for slot in slots:
            slot.tick()
        self._go_on_rolling()

    def _go_on_rolling(self) -> None:
        if self._rolling is not None:
            if self._rolling.is_replacing:
                return
            if self._rolling.failed_replacement:
                self._abandon_roll(self._rolling)
                return
            self._rolling = None
            if not self._to_roll:
                took_s = round(time.monotonic() - self._roll_began_s, 3)
                _log.info("rolled", workers=len(self._slots), took_s=took_s)
        if self._to_roll:
            self._rolling = self._to_roll.popleft()
            self._rolling.replace()

    def _abandon_roll(self, slot: Slot) -> None:
        _log.error("roll_abandoned", worker=slot.number, not_rolled=[slot.number, *(s.number for s in self._to_roll)])
        self._rolling = None
        self._to_roll.clear()

    def _wait_until_empty(self, deadline_s: float) -> None:
        while not all(slot.is_empty() for slot in self._slots) and time.monotonic() < deadline_s:
            time.sleep(_TICK_S)


def _metrics_of(ops_port: int) -> str:
    """Read a worker's metrics; nothing when it does not answer: the next scrape will show it, or its successor."""
    try:
        return fetch(ops_port, "/metrics")[1]
    except (OSError, HTTPException):
        return ""
