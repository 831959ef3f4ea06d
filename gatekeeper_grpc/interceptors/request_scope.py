"""The outermost stage: gives a call its id, and times and logs the end of the call."""

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import getrandbits
from types import MappingProxyType
from typing import Any

import grpc
import structlog

from gatekeeper_grpc.auth.addresses import address_of
from gatekeeper_grpc.domain.caller import Caller
from gatekeeper_grpc.domain.current_call import set_current_call
from gatekeeper_grpc.domain.errors import GatekeeperError
from gatekeeper_grpc.instrumentation.counters import RPC_DURATION
from gatekeeper_grpc.instrumentation.spans import TRACES, Trace
from gatekeeper_grpc.interceptors.line_samples import LineSamples, Sample
from gatekeeper_grpc.interceptors.tracing import begin_trace, echo, trace_id_of
from gatekeeper_grpc.transport.grpcio_internals import (
    ArrivedCall,
    Metadata,
    SurplusCall,
    arrived_at,
    client_of,
    is_cancelled,
)
from gatekeeper_grpc.wire.status import reason_of

# Issuers put what they like into a certificate.
_MAX_IDENTITY_LENGTH = 200
_MAX_USER_AGENT_LENGTH = 100
# A serving thread that is so late leaves answers to the workers, whose queue refuses what is too much.
_LATE_S = 0.005
CALL_ID_KEY = "x-gatekeeper-call-id"
# What an error says about a resource, and its kind. Not the ids and names of people.
_RESOURCES: Mapping[str, str] = MappingProxyType(
    {
        "flag_key": "flag",
        "segment_key": "segment",
        "key_id": "client_key",
        "token_id": "api_token",
        "session_id": "session",
    }
)
# A client may send anything as the name of a resource. What none can have stays out of the log.
_NAME = re.compile("[A-Za-z0-9._-]{1,128}")

# What the conventions of OpenTelemetry call errors of a server; of the others its client is the cause.
_FAULTS_OF_SERVER = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)

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

    def succeeded(self, duration_s: float) -> None:
        """Count a call that has ended with OK."""
        self._ok.observe(duration_s)


def new_call_id() -> str:
    """Return an id that no other call has, in all likelihood."""
    return f"{getrandbits(64):016x}"


@dataclass(slots=True, kw_only=True)
class Rpc:
    """What the stages know about one call."""

    method: str
    durations: MethodDurations
    quiet: bool
    """Success is logged at DEBUG only, and of many failures some."""
    samples: LineSamples
    call_id: str = field(default_factory=new_call_id)
    arrived_at: float = 0.0
    """In monotonic seconds."""
    caller: Caller | None = None
    client_key: str | None = None
    """The public name of the client key of the call."""
    error: Exception | None = None
    """Why the call failed."""
    request_id: str = ""
    """What the client calls the call, if it names no trace."""
    trace: Trace | None = None
    """None: the call is not traced."""


def open_rpc(rpc: Rpc, context: Any) -> None:
    """Make the call the current one, whose id all its log lines have, and send the client the id.

    It needs no undoing: grpcio runs each call in its own `contextvars.Context`.
    """
    metadata = context.invocation_metadata()
    named = trace_id = trace_id_of(metadata)
    rpc.arrived_at = arrived_at(context)
    if TRACES.sink is not None:
        rpc.trace = begin_trace(rpc.method, metadata, arrived_at=rpc.arrived_at)
    if rpc.trace is not None and named != rpc.trace.trace_id:
        rpc.request_id, trace_id = named, rpc.trace.trace_id
    context.set_trailing_metadata(((CALL_ID_KEY, rpc.call_id), *echo(named or trace_id)))
    set_current_call(
        context,
        call_id=rpc.call_id,
        arrived_at=rpc.arrived_at,
        client=client_of(context),
        trace_id=trace_id,
    )


def log_finished(rpc: Rpc, context: Any) -> None:
    """Time and trace the call, and log it in one line: never a token, a secret or a context value."""
    code = _code(context)
    duration_s = time.monotonic() - rpc.arrived_at
    rpc.durations.observe(code, duration_s)
    if rpc.trace is not None:
        _end_trace(rpc, rpc.trace, code)
    level = logging.DEBUG if rpc.quiet and code is grpc.StatusCode.OK else logging.INFO
    if not _log.is_enabled_for(level):  # Nearly every line is suppressed; building one costs more than asking.
        return
    peer = client_of(context)
    if rpc.quiet and code is not grpc.StatusCode.OK and not _is_in_sample(rpc.samples, rpc.method, code, peer):
        return
    fields = {**_fields(rpc, code, duration_s), **_client_fields(peer, context.invocation_metadata())}
    _log.log(level, "rpc", **fields, **_certificate_fields(context))


def may_answer_at_once(call: ArrivedCall) -> bool:
    """Return whether the serving thread is in time, and no spans are made of the call."""
    return call.turn.waited_s <= _LATE_S and TRACES.sink is None


def logs_answers() -> bool:
    """Return whether answers get a line in the log: asked once for a method, because to ask costs a microsecond."""
    return bool(_log.is_enabled_for(logging.DEBUG))


def answer_call(
    method: str, durations: MethodDurations, call: ArrivedCall, response: bytes, client_key: str, *, is_logged: bool
) -> bool:
    """Send a call its response, time and log it, as if a worker had served it; False if the call is over."""
    call_id, trace_id = new_call_id(), trace_id_of(call.metadata)
    if not call.answer(response, ((CALL_ID_KEY, call_id), *echo(trace_id))):
        return False
    duration_s = time.monotonic() - call.arrived_at
    durations.succeeded(duration_s)
    if is_logged:
        ids = {"client_key": client_key, "call_id": call_id, "trace_id": trace_id}
        fields = {**_client_fields(call.client, call.metadata), **{key: value for key, value in ids.items() if value}}
        duration_ms = round(duration_s * 1_000, 3)
        _log.debug("rpc", method=method, code="OK", duration_ms=duration_ms, **fields, **_certificate_fields(call))
    return True


def _end_trace(rpc: Rpc, trace: Trace, code: grpc.StatusCode) -> None:
    attributes = {"rpc.response.status_code": code.name, "gatekeeper.call_id": rpc.call_id}
    if isinstance(rpc.error, GatekeeperError):
        attributes["gatekeeper.reason"] = rpc.error.reason
    TRACES.end_call(trace, error=code.name if code in _FAULTS_OF_SERVER else "", attributes=attributes)


def end_refused(
    method: str,
    durations: MethodDurations,
    samples: LineSamples,
    call: ArrivedCall | SurplusCall,
    status: grpc.Status,
) -> None:
    """Time a call that no worker will serve, and log it if it is in the sample: on the serving thread."""
    duration_s = time.monotonic() - call.arrived_at
    durations.observe(status.code, duration_s)
    if not _log.is_enabled_for(logging.INFO) or not _is_in_sample(samples, method, status.code, call.client):
        return
    trace_id, reason = trace_id_of(call.metadata), reason_of(status)
    _log.info(
        "rpc",
        method=method,
        code=status.code.name,
        duration_ms=round(duration_s * 1_000, 3),
        **({"reason": reason} if reason else {}),
        **_client_fields(call.client, call.metadata),
        **({"trace_id": trace_id} if trace_id else {}),
    )


def log_left_out(samples: LineSamples) -> None:
    """Log how many calls got no line of their own in the minute that has ended, if it has."""
    for sample, count in samples.left_out().items():
        _log.info("rpc_left_out", count=count, **sample._asdict())


def _is_in_sample(samples: LineSamples, method: str, code: grpc.StatusCode, peer: str) -> bool:
    return samples.admits(Sample(method, code.name, address_of(peer)))


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
    if isinstance(rpc.error, GatekeeperError):
        fields.update(_error_fields(rpc.error))
    if rpc.caller is not None:
        fields["caller"] = rpc.caller.username
        if rpc.caller.api_token is not None:
            fields["api_token"] = rpc.caller.api_token.token_id
    if rpc.client_key is not None:
        fields["client_key"] = rpc.client_key
    if rpc.request_id:
        fields["request_id"] = rpc.request_id
    return fields


def _error_fields(error: GatekeeperError) -> dict[str, str]:
    """Return why a call failed: the reason, the first field that is wrong, and the resource, but nothing of people."""
    named = ((kind, error.metadata[key]) for key, kind in _RESOURCES.items() if key in error.metadata)
    resource = next((f"{kind}/{name}" for kind, name in named if _NAME.fullmatch(name)), "")
    # What follows is the name of an attribute.
    field = error.violations[0].field.partition("attributes")[0:2] if error.violations else ()
    found = {"reason": error.reason, "field": "".join(field), "resource": resource}
    return {name: value for name, value in found.items() if value}


def _client_fields(peer: str, metadata: Metadata) -> dict[str, str]:
    """Return where a call came from, and the program that made it, as that calls itself."""
    agent = next((str(value) for key, value in metadata if key == "user-agent"), "")
    return {"peer": peer, "user_agent": agent[:_MAX_USER_AGENT_LENGTH]}


def _certificate_fields(context: Any) -> dict[str, Any]:
    """Return the names in the client's certificate, or its common name if there are none; nothing without one."""
    if (names := context.peer_identities()) is None:
        return {}
    return {"client_certificate": b",".join(names).decode(errors="replace")[:_MAX_IDENTITY_LENGTH]}
