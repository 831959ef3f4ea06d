"""The standard gRPC health service: what this instance can do right now, per service."""

import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import grpc
import structlog
from grpc_health.v1 import health, health_pb2

from gatekeeper_grpc.operations.readiness import Readiness
from gatekeeper_grpc.periodic import Periodic

ADMIN = "gatekeeper.v1.AdminService"
AUTH = "gatekeeper.v1.AuthService"
EVALUATION = "gatekeeper.v1.EvaluationService"

_log = structlog.get_logger(__name__)

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_LOOK_EVERY_S = 0.25


class ReadinessSource(Protocol):
    """What health depends on."""

    def readiness(self) -> Readiness:
        """Whether evaluation can answer, and whether the database answered lately."""
        ...


class _HealthServicer(health.HealthServicer):  # type: ignore[misc]  # Published without types.
    """The published servicer, which cannot end its Watch streams: open ones would hold up every shutdown."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _watches
        self._watches: dict[grpc.ServicerContext, Callable[[Any], None]] = {}
        super().__init__(experimental_non_blocking=True)

    # pyright reads the base's untyped default, None, as its type.
    def Watch(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, request: Any, context: grpc.ServicerContext, send_response_callback: Callable[[Any], None]
    ) -> None:
        with self._lock:
            self._watches[context] = send_response_callback
        context.add_callback(lambda: self._forget(context))
        super().Watch(request, context, send_response_callback)

    def end_watches(self) -> None:
        """End every Watch stream with UNAVAILABLE: after OK some clients would never watch again."""
        with self._lock:
            watches = dict(self._watches)
        for context, send in watches.items():
            context.set_code(grpc.StatusCode.UNAVAILABLE)
            context.set_details("the server is shutting down")
            send(None)

    def _forget(self, context: grpc.ServicerContext) -> None:
        with self._lock:
            self._watches.pop(context, None)


class HealthReporter:
    """Keeps the health service true, from `start` to `close`.

    The whole ("") and EvaluationService serve while the instance is ready, as `/ready` says: even from an old snapshot,
    for losing the database must not make an orchestrator drain every instance. AdminService and AuthService need the
    database.
    """

    def __init__(self, source: ReadinessSource) -> None:
        self.servicer = _HealthServicer()
        self._source = source
        self._reported: dict[str, bool] = {}
        self._logged: tuple[bool, tuple[str, ...]] | None = None
        self._looking = Periodic("health", self._look, interval_s=_LOOK_EVERY_S)

    def start(self) -> None:
        """Report once, then keep looking."""
        self._look()
        self._looking.start()

    def drain(self) -> None:
        """Say NOT_SERVING for good, so that clients and load balancers go elsewhere."""
        self._looking.close()
        self.servicer.enter_graceful_shutdown()

    def close(self) -> None:
        """End what watches health, so that it does not hold up the shutdown."""
        self._looking.close()
        self.servicer.end_watches()

    def _look(self) -> None:
        readiness = self._source.readiness()
        evaluation, database = readiness.ready, readiness.database
        self._report({"": evaluation, EVALUATION: evaluation, ADMIN: database, AUTH: database})
        self._log_change(readiness)

    def _log_change(self, readiness: Readiness) -> None:
        state = (readiness.ready, readiness.reasons)
        if state != self._logged:
            self._logged = state
            _log.info("readiness", ready=readiness.ready, stale=readiness.stale, reasons=readiness.reasons)

    def _report(self, serving: Mapping[str, bool]) -> None:
        for service, is_serving in serving.items():
            if self._reported.get(service) is not is_serving:
                self._reported[service] = is_serving
                self.servicer.set(service, _SERVING if is_serving else _NOT_SERVING)
                _log.info("health", service=service or "(all)", serving=is_serving)
