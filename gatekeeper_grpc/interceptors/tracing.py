"""Which trace a call belongs to, as its client says: `traceparent` (W3C Trace Context), or else `x-request-id`."""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from gatekeeper_grpc.instrumentation.spans import TRACES, Trace

REQUEST_ID_KEY: Final = "x-request-id"
_TRACEPARENT: Final = re.compile("[0-9a-f]{2}-(?!0{32})(?P<trace_id>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_REQUEST_ID: Final = re.compile("[A-Za-z0-9._-]{1,64}")
_CARRIED: Final = frozenset({"traceparent", "tracestate"})

Metadata = Iterable[tuple[str, str | bytes]]


def trace_id_of(metadata: Metadata) -> str:
    """Return the id of the trace that a call belongs to; empty if its client names none that is valid."""
    request_id = ""
    for key, value in metadata:
        if key == "traceparent" and (found := _TRACEPARENT.fullmatch(str(value))):
            return found["trace_id"]
        if key == REQUEST_ID_KEY and _REQUEST_ID.fullmatch(str(value)):
            request_id = str(value)
    return request_id


def echo(trace_id: str) -> tuple[tuple[str, str], ...]:
    """Return the metadata that tells a client the id by which its call is found in the log."""
    return ((REQUEST_ID_KEY, trace_id),) if trace_id else ()


def begin_trace(method: str, metadata: Metadata, *, arrived_at: float) -> Trace | None:
    """Begin the trace of the current call, as its client says; None if it is not traced.

    Args:
        method: "/package.Service/Method".
        metadata: Of the call.
        arrived_at: When it arrived, in monotonic seconds.
    """
    if (sink := TRACES.sink) is None:
        return None
    carrier = {key: str(value) for key, value in metadata if key in _CARRIED}
    return TRACES.begin_call(sink, method.removeprefix("/"), _valid(carrier), arrived_at=arrived_at)


def _valid(carrier: Mapping[str, str]) -> Mapping[str, str]:
    """Return what a client carried if we read it as the log does, so that log and trace have one id."""
    return carrier if _TRACEPARENT.fullmatch(carrier.get("traceparent", "")) else {}
