"""The outermost stage: gives a call its id, and logs the end of the call."""

import logging
import time
from dataclasses import dataclass, field
from random import getrandbits
from typing import Any

import grpc
import structlog

from gatekeeper_grpc.domain.caller import Caller
from gatekeeper_grpc.domain.current_call import set_current_call
from gatekeeper_grpc.instrumentation import RPC_DURATION
from gatekeeper_grpc.transport.grpcio_internals import arrived_at, forwarded_client_of, is_cancelled

# Issuers put what they like into a certificate.
_MAX_IDENTITY_LENGTH = 200
CALL_ID_KEY = "x-gatekeeper-call-id"

_log = structlog.get_logger(__name__)


class MethodDurations:
    """The durations of the calls of one method, by status. The series of those that succeed exists from the start."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._ok = RPC_DURATION.labels(method, grpc.StatusCode.OK.name)

    def observe(self, code: grpc.StatusCode, duration_s: float) -> None:
        """Count a call that has ended."""
        series = self._ok if code is grpc.StatusCode.OK else RPC_DURATION.labels(self._method, code.name)
        series.observe(duration_s)


@dataclass(slots=True, kw_only=True)
class Rpc:
    """What the stages know about one call."""

    method: str
    durations: MethodDurations
    quiet: bool
    call_id: str = field(default_factory=lambda: f"{getrandbits(64):016x}")
    arrived_at: float = 0.0
    """In monotonic seconds."""
    caller: Caller | None = None
    client_key: str | None = None
    """The public name of the client key of the call."""


def open_rpc(rpc: Rpc, context: Any) -> None:
    """Make the call the current one, whose id all its log lines have, and send the client the id.

    It needs no undoing: grpcio runs each call in its own `contextvars.Context`.
    """
    context.set_trailing_metadata(((CALL_ID_KEY, rpc.call_id),))
    rpc.arrived_at = arrived_at(context)
    set_current_call(
        context,
        call_id=rpc.call_id,
        arrived_at=rpc.arrived_at,
        forwarded_client=forwarded_client_of(context),
    )


def log_finished(rpc: Rpc, context: Any) -> None:
    """Time the call, and log it in one line: never a token, a secret or a context value."""
    code = _code(context)
    duration_s = time.monotonic() - rpc.arrived_at
    rpc.durations.observe(code, duration_s)
    level = logging.DEBUG if rpc.quiet and code is grpc.StatusCode.OK else logging.INFO
    if _log.is_enabled_for(level):  # Nearly every line is suppressed; building one costs more than asking.
        _log.log(level, "rpc", **_fields(rpc, code, duration_s), **_certificate_fields(context))


def _code(context: Any) -> grpc.StatusCode:
    """Return the status that the client receives, or would have received."""
    if is_cancelled(context):
        return grpc.StatusCode.CANCELLED
    return context.code() or grpc.StatusCode.OK


def _fields(rpc: Rpc, code: grpc.StatusCode, duration_s: float) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "method": rpc.method,
        "code": code.name,
        "duration_ms": round(duration_s * 1_000, 3),
    }
    if rpc.caller is not None:
        fields["caller"] = rpc.caller.username
        if rpc.caller.api_token is not None:
            fields["api_token"] = rpc.caller.api_token.token_id
    if rpc.client_key is not None:
        fields["client_key"] = rpc.client_key
    return fields


def _certificate_fields(context: Any) -> dict[str, Any]:
    """Return the names in the client's certificate, or its common name if there are none; nothing without one."""
    if (names := context.peer_identities()) is None:
        return {}
    return {"client_certificate": b",".join(names).decode(errors="replace")[:_MAX_IDENTITY_LENGTH]}
