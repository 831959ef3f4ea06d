"""A receiver of traces, as the OpenTelemetry Collector is one: OTLP over gRPC on a real socket."""

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as pb_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.support.waiting import eventually


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedSpan:
    """A span as the receiver got it."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    began_at: int
    ended_at: int
    attributes: Mapping[str, Any]
    resource: Mapping[str, Any]
    events: tuple[tuple[str, Mapping[str, Any]], ...]
    links: tuple[tuple[str, str], ...]
    is_error: bool
    kind: str


class Receiver(pb_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the rest
        self._spans: list[ReceivedSpan] = []
        self.headers: dict[str, str | bytes] = {}
        self.raw = b""
        self.port = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def Export(self, request: Any, context: grpc.ServicerContext) -> pb.ExportTraceServiceResponse:  # noqa: N802
        with self._lock:
            self._spans += _spans_of(request)
            self.headers = dict(context.invocation_metadata())
            self.raw += request.SerializeToString()
        return pb.ExportTraceServiceResponse()

    def spans(self, **of: str) -> list[ReceivedSpan]:
        """What has come so far, in the order in which it began; with these fields."""
        with self._lock:
            found = [span for span in self._spans if all(getattr(span, name) == value for name, value in of.items())]
        return sorted(found, key=lambda span: span.began_at)

    def one(self, name: str, **of: str) -> ReceivedSpan:
        """The only span of a name; waits for it."""
        assert eventually(lambda: self.spans(name=name, **of)), [span.name for span in self.spans()]
        (span,) = self.spans(name=name, **of)
        return span


@contextmanager
def receiving(receiver: Receiver | None = None, *, port: int = 0) -> Iterator[Receiver]:
    """Run a receiver for the length of a block."""
    receiver = receiver or Receiver()
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    pb_grpc.add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
    receiver.port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield receiver
    finally:
        server.stop(0).wait()


def _spans_of(request: Any) -> Iterator[ReceivedSpan]:
    for of_resource in request.resource_spans:
        resource = _values(of_resource.resource.attributes)
        for scope in of_resource.scope_spans:
            yield from (_received(span, resource) for span in scope.spans)


def _received(span: Span, resource: Mapping[str, Any]) -> ReceivedSpan:
    return ReceivedSpan(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        began_at=span.start_time_unix_nano,
        ended_at=span.end_time_unix_nano,
        attributes=_values(span.attributes),
        resource=resource,
        events=tuple((event.name, _values(event.attributes)) for event in span.events),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        is_error=span.status.code == Status.STATUS_CODE_ERROR,
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
