"""The standard gRPC health service: which services this instance can serve now."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2

from gatekeeper_grpc.operations.readiness import Readiness
from gatekeeper_grpc.scheduler import Scheduler, Task

ADMIN = "gatekeeper.v1.AdminService"
AUTH = "gatekeeper.v1.AuthService"
EVALUATION = "gatekeeper.v1.EvaluationService"
HEALTH = "grpc.health.v1.Health"
SERVICES = ("", EVALUATION, ADMIN, AUTH)
"""What health is reported of; "" is the server."""

_log = structlog.get_logger(__name__)

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_CHECK_EVERY_S = 0.25


class _HealthServicer(health.HealthServicer):  # type: ignore[misc]  # Published without types.
    """Adds to the published servicer what it lacks: List, and an end of its Watch streams, which delay a shutdown."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _watches
        self._watches: dict[grpc.ServicerContext, Callable[[Any], None]] = {}
        super().__init__(experimental_non_blocking=True)

    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:
        response = super().Check(request, context)
        if request.service not in SERVICES:
            context.set_details(f"no such service; health is reported of {', '.join(filter(None, SERVICES))}")
        return response

    def List(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: ARG002 - it is empty
        statuses = {name: self.Check(health_pb2.HealthCheckRequest(service=name), context) for name in SERVICES}
        # The published types lack this message.
        return health_pb2.HealthListResponse(statuses=statuses)  # pyright: ignore[reportAttributeAccessIssue]

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
    """Keeps the health service current, from `start` to `close`.

    The server ("") and EvaluationService are SERVING while the instance is ready, as in `/readyz`. An old snapshot is
    enough for that: a database outage must not make an orchestrator drain every instance. AdminService and AuthService
    are SERVING while the database answers.

    Args:
        readiness: Whether evaluation can be served, and whether the database answered recently.
    """

    def __init__(self, readiness: Callable[[], Readiness]) -> None:
        self.servicer = _HealthServicer()
        self._readiness = readiness
        self._reported: dict[str, bool] = {}
        self._logged: tuple[bool, tuple[str, ...]] | None = None
        self._task: Task | None = None

    def start(self, scheduler: Scheduler) -> None:
        """Report now, and whenever the readiness has changed."""
        self._check()
        self._task = scheduler.add("health", self._check, interval_s=_CHECK_EVERY_S, blocks=False)

    def drain(self) -> None:
        """Report NOT_SERVING from now on, so that clients and load balancers use other instances."""
        self._stop_checking()
        self.servicer.enter_graceful_shutdown()

    def close(self) -> None:
        """End the Watch streams, so that they do not delay the shutdown."""
        self._stop_checking()
        self.servicer.end_watches()

    def _stop_checking(self) -> None:
        if self._task:
            self._task.close()

    def _check(self) -> None:
        readiness = self._readiness()
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
