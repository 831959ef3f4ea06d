"""Supervises a fleet: starts the workers, keeps them alive, rolls and drains them, and reports on all of them."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPException

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from gatekeeper_grpc.config.settings import Settings, variable_of
from gatekeeper_grpc.fleet.aggregate import FleetReadiness, fleet_readiness, merge, merged
from gatekeeper_grpc.fleet.probe import fetch
from gatekeeper_grpc.fleet.slot import Slot
from gatekeeper_grpc.fleet.worker import Command, Worker
from gatekeeper_grpc.operations.bearer_token import BearerToken
from gatekeeper_grpc.operations.health import HealthReporter
from gatekeeper_grpc.operations.health_server import HealthServer
from gatekeeper_grpc.operations.http_server import HttpServer
from gatekeeper_grpc.operations.tls_metrics import TlsMetrics
from gatekeeper_grpc.scheduler import Scheduler
from gatekeeper_grpc.transport.connections import CHECK_CONNECTIONS_EVERY_S
from gatekeeper_grpc.transport.core import CORE_LOG
from gatekeeper_grpc.transport.tls import CHECK_CERTIFICATE_EVERY_S, ServerTls

_log = structlog.get_logger(__name__)

_POLL_S = 0.02
# If the workers were not reconciled for this long, the supervisor itself counts as hung.
_HUNG_AFTER_S = 10.0
# After the drain and grace periods, workers that still run are killed.
_KILL_MARGIN_S = 0.5
_SCRAPERS = 8


class FleetError(Exception):
    """No worker serves; the message says why."""


class WorkerSupervisor(Collector):
    """Keeps `settings.workers` workers alive, from `start` to `stop`.

    One thread starts the workers, outlives them and calls all methods; any thread may call `collect` and `readiness`.
    `health_port` and `ops_port` are the ports that the supervisor itself serves.
    """

    health_port: int
    ops_port: int

    def __init__(self, settings: Settings, command: Command, token: BearerToken) -> None:
        self._settings = settings
        self._workers_token = command.secrets.get(variable_of("metrics_token"), "")
        self._drains_within_s = settings.drain_s + settings.grace_s + _KILL_MARGIN_S
        leave_within_s = settings.grace_s + _KILL_MARGIN_S
        start: Callable[[int, bool], Worker] = lambda number, replaces: Worker(number, command, replaces=replaces)  # noqa: E731
        self._slots = [Slot(n, start, leave_within_s=leave_within_s) for n in range(1, settings.workers + 1)]
        self._to_roll: deque[Slot] = deque()
        self._rolling: Slot | None = None
        self._roll_began_s = 0.0
        self._draining = False
        self._reconciled_s = time.monotonic()
        self._tls = ServerTls.of(settings) if settings.health_tls or settings.ops_tls else None
        """Of its own listeners; the workers have theirs."""
        self._own: list[Collector] = [ProcessCollector(registry=CollectorRegistry())]
        if self._tls:
            self._own.append(TlsMetrics(self._tls, CORE_LOG.failed_handshakes))
        self._health = HealthReporter(self.readiness)
        self._health_server = HealthServer(self._health, reflection=settings.reflection)
        self.scheduler = Scheduler()
        self._ops = HttpServer(self, is_alive=self.is_alive, readiness=self.readiness, token=token)

    def start(self) -> None:
        """Start the first worker, then the others, and wait until each serves or has failed.

        Raises:
            ListenError: A port is in use.
            FleetError: The first worker does not serve.
        """
        self._listen(self._settings, self._tls)
        self.scheduler.start()
        self._health.start(self.scheduler)
        sweeper = self._health_server.sweeper
        self.scheduler.add("connections", sweeper.check, interval_s=CHECK_CONNECTIONS_EVERY_S, blocks=False)
        self._health_server.start()
        # Alone, so that a cause that affects all workers is reported once.
        first, *others = self._slots
        self._reconcile_until(lambda: first.serves or first.has_failed, [first])
        if not first.serves:
            raise FleetError(
                first.last_error or "the first worker ended before it served; its error is in the log above"
            )
        self._reconcile_until(lambda: all(slot.serves or slot.has_failed for slot in others), self._slots)

    def _listen(self, settings: Settings, tls: ServerTls | None) -> None:
        self.health_port = self._health_server.bind(settings.health_listen, tls if settings.health_tls else None)
        self.ops_port = self._ops.start(settings.ops_listen, tls.http_context if tls and settings.ops_tls else None)
        if tls:
            self.scheduler.add("certificate", tls.check, interval_s=CHECK_CERTIFICATE_EVERY_S, blocks=True)

    def reconcile(self) -> None:
        """Restart, kill and replace workers as needed, once; call it many times a second."""
        self._reconcile(self._slots)

    def roll(self) -> None:
        """Begin to replace the workers, one after the other; a second call starts from the first worker again."""
        if not self._to_roll and self._rolling is None:
            self._roll_began_s = time.monotonic()
        self._to_roll = deque(self._slots)
        _log.info("roll_started", workers=len(self._slots))

    def stop(self) -> None:
        """Drain all workers at once; kill workers that run half a second beyond the drain and grace periods."""
        self._draining = True
        self._health.drain()
        deadline = time.monotonic() + self._drains_within_s
        workers = [worker for slot in self._slots for worker in slot.workers]
        for worker in workers:
            worker.terminate()
        _wait_until_ended(workers, deadline)
        for worker in workers:
            worker.kill()
        _wait_until_ended(workers, time.monotonic() + _KILL_MARGIN_S)
        for worker in workers:
            worker.close()
        self._health.close()
        self.scheduler.close()
        self._health_server.stop()
        self._ops.close()
        _log.info("stopped")

    def is_alive(self) -> bool:
        """Whether the workers are reconciled regularly."""
        return self._draining or time.monotonic() - self._reconciled_s < _HUNG_AFTER_S

    def readiness(self) -> FleetReadiness:
        """Return the merged readiness of all workers."""
        return fleet_readiness({slot.number: slot.readiness() for slot in self._slots}, draining=self._draining)

    def collect(self) -> Iterator[Metric]:
        """Return the metrics of the fleet, and the merged metrics of its workers and of this process."""
        families = {metric.name: metric for metric in merged(self._scraped())}
        for metric in (metric for collector in self._own for metric in collector.collect()):
            merge(families, metric, worker="supervisor")
        yield from families.values()
        yield GaugeMetricFamily("gatekeeper_workers", "Configured workers.", value=len(self._slots))
        up = sum(slot.readiness() is not None for slot in self._slots)
        yield GaugeMetricFamily("gatekeeper_workers_up", "Workers that serve and answer their probe.", value=up)
        yield self._restarts()

    def _restarts(self) -> Metric:
        restarts = CounterMetricFamily(
            "gatekeeper_worker_restarts", "Workers that died, or that hung and were killed.", labels=["worker", "cause"]
        )
        for slot in self._slots:
            for cause, count in slot.restarts.items():
                restarts.add_metric([str(slot.number), cause], count)
        return restarts

    def _scraped(self) -> dict[str, str]:
        ports = {str(slot.number): slot.ops_port for slot in self._slots}
        asked = {worker: port for worker, port in ports.items() if port is not None}
        with ThreadPoolExecutor(_SCRAPERS, thread_name_prefix="gatekeeper-scrape") as scrapers:
            texts = scrapers.map(partial(_metrics_of, token=self._workers_token), asked.values())
            return {worker: text for worker, text in zip(asked, texts, strict=True) if text}

    def _reconcile_until(self, condition: Callable[[], bool], slots: list[Slot]) -> None:
        while not condition():
            self._reconcile(slots)
            time.sleep(_POLL_S)

    def _reconcile(self, slots: list[Slot]) -> None:
        self._reconciled_s = time.monotonic()
        for slot in slots:
            slot.reconcile()
        self._continue_roll()

    def _continue_roll(self) -> None:
        if self._rolling is not None:
            if self._rolling.is_replacing:
                return
            if self._rolling.failed_replacement:
                self._abandon_roll(self._rolling)
                return
            self._rolling = None
            if not self._to_roll:
                took_s = round(time.monotonic() - self._roll_began_s, 3)
                _log.info("roll_finished", workers=len(self._slots), took_s=took_s)
        if self._to_roll:
            self._rolling = self._to_roll.popleft()
            self._rolling.replace()

    def _abandon_roll(self, slot: Slot) -> None:
        _log.error("roll_abandoned", worker=slot.number, not_rolled=[slot.number, *(s.number for s in self._to_roll)])
        self._rolling = None
        self._to_roll.clear()


def _wait_until_ended(workers: Iterable[Worker], deadline_s: float) -> None:
    while any(worker.exit_code() is None for worker in workers) and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)


def _metrics_of(ops_port: int, *, token: str) -> str:
    """Read a worker's metrics; empty if it does not answer: the next scrape has its metrics, or its replacement's."""
    try:
        return fetch(ops_port, "/metrics", token=token)[1]
    except (OSError, HTTPException):
        return ""
