"""Makes spans of what calls have noted, and sends them by OTLP: the only module that imports OpenTelemetry.

Spans are sent by a thread of the SDK, in batches. What it cannot send in time is dropped and counted: no call waits.
"""

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

import structlog
from opentelemetry import trace as api
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gatekeeper_grpc.config.settings import Settings
from gatekeeper_grpc.instrumentation.counters import SPANS_DROPPED, SPANS_SENT
from gatekeeper_grpc.instrumentation.spans import TRACES, Note, Trace

_log = structlog.get_logger(__name__)

_MAX_QUEUED: Final = 2_048
_CLOCK_SET_NS: Final = 1_000_000
_SERVICE: Final = "gatekeeper"
# What the SDK calls a service that the environment does not name.
_NAMELESS: Final = "unknown_service"
_DATABASE: Final = {"db.system.name": "postgresql"}
_RPC: Final = {"rpc.system.name": "grpc"}
_REMEDY: Final = (
    "check OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_HEADERS and the receiver; calls are not affected"
)


class Otlp:
    """Sends the traces of this process to the endpoint of the settings, from `start` to `close`."""

    def __init__(self, settings: Settings) -> None:
        headers = settings.otel_exporter_otlp_headers
        self._words = _LastWords()
        self._exporter = _CountingExporter(
            OTLPSpanExporter(
                endpoint=settings.otel_exporter_otlp_endpoint, headers=headers.get_secret_value() if headers else None
            ),
            self._words,
        )
        self._processor = _BoundedProcessor(self._exporter, max_queue_size=_MAX_QUEUED)
        provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.otel_traces_sampler_arg)),
            resource=_resource(),
            shutdown_on_exit=False,
        )
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer(_SERVICE, version("gatekeeper-grpc"))
        self._propagator = TraceContextTextMapPropagator()
        self._clock = _Clock()

    def start(self) -> None:
        """Trace from now on."""
        TRACES.use(self)

    def close(self, *, timeout_s: float) -> None:
        """Trace no more, and send what is left; what is not sent in time is lost."""
        if TRACES.sink is self:
            TRACES.use(None)
        ending = threading.Thread(target=self._processor.shutdown, name="gatekeeper-traces_end", daemon=True)
        ending.start()
        ending.join(timeout_s)
        if ending.is_alive():
            self._exporter.shutdown()  # It ends an attempt that is under way.
        if lost := self._exporter.room.taken:
            _log.warning("traces_lost_at_end", spans=lost)

    def begin(self, name: str, carrier: Mapping[str, str], *, began_at: float) -> Trace | None:
        """See `Sink`."""
        span = self._tracer.start_span(
            name,
            context=self._propagator.extract(carrier),
            kind=api.SpanKind.SERVER,
            attributes={**_RPC, "rpc.method": name},
            start_time=self._clock.ns(began_at),
        )
        if not span.is_recording():
            return None
        note = Note(name=name, began_at=began_at)
        return Trace(trace_id=api.format_trace_id(span.get_span_context().trace_id), span=span, note=note)

    def end(self, trace: Trace) -> None:
        """See `Sink`."""
        self._finish(trace.span, trace.note)

    def add(self, note: Note, causes: Sequence[Trace]) -> None:
        """See `Sink`."""
        first, *others = [cause.span for cause in causes] or [None]
        links = [api.Link(span.get_span_context()) for span in others]
        self._make(note, api.set_span_in_context(first) if first else None, links=links)

    def _make(self, note: Note, context: Any, *, links: Sequence[api.Link] = ()) -> None:
        span = self._tracer.start_span(
            note.name,
            context=context,
            kind=api.SpanKind.CLIENT if note.is_client else api.SpanKind.INTERNAL,
            attributes=_DATABASE if note.is_client else None,
            links=links,
            start_time=self._clock.ns(note.began_at),
        )
        if span.is_recording():
            self._finish(span, note)

    def _finish(self, span: api.Span, note: Note) -> None:
        """Make the spans of what was done within a note, and end that of the note."""
        context = api.set_span_in_context(span)
        for inner in note.notes:
            self._make(inner, context)
        span.set_attributes(note.attributes)
        ended_at = self._clock.ns(note.ended_at)
        for evaluation in note.evaluations:
            span.add_event("feature_flag.evaluation", evaluation, timestamp=ended_at)
        if note.error:
            span.set_attribute("error.type", note.error)
            span.set_status(api.StatusCode.ERROR)
        span.end(end_time=ended_at)


class _Clock:
    """Converts times so that what lies within a span stays within it, unless the clock of the machine is set."""

    def __init__(self) -> None:
        self._offset_ns = 0

    def ns(self, at: float) -> int:
        """Return nanoseconds since 1970 for monotonic seconds."""
        offset_ns = time.time_ns() - time.monotonic_ns()
        if abs(offset_ns - self._offset_ns) > _CLOCK_SET_NS:
            self._offset_ns = offset_ns
        return self._offset_ns + int(at * 1e9)


def _resource() -> Resource:
    """Return what the spans are of: what the environment says (OTEL_RESOURCE_ATTRIBUTES), and what it leaves open."""
    found = Resource.create({"service.version": version("gatekeeper-grpc"), "process.pid": os.getpid()})
    nameless = str(found.attributes["service.name"]).startswith(_NAMELESS)
    return found.merge(Resource({"service.name": _SERVICE})) if nameless else found


class _Room:
    """The room for spans that wait to be sent. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards `taken`
        self.taken = 0

    def take(self) -> bool:
        """Take room for a span that has ended; return whether there was any."""
        with self._lock:
            has_room = self.taken < _MAX_QUEUED
            self.taken += has_room
            return has_room

    def give_back(self, spans: int) -> None:
        """Return the room of spans that wait no longer."""
        with self._lock:
            self.taken -= spans


class _BoundedProcessor(BatchSpanProcessor):
    """Drops a span that finds the queue full, and counts it. The SDK drops the oldest, and tells nobody how many."""

    def __init__(self, exporter: "_CountingExporter", *, max_queue_size: int) -> None:
        super().__init__(exporter, max_queue_size=max_queue_size)
        self._room = exporter.room

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span that has ended."""
        if self._room.take():
            super().on_end(span)
        else:
            SPANS_DROPPED.inc()


class _CountingExporter(SpanExporter):
    """Counts what is sent, and logs when that begins to fail and when it works again."""

    def __init__(self, exporter: SpanExporter, words: "_LastWords") -> None:
        self._exporter = exporter
        self._words = words
        self._has_failed = False
        self.room = _Room()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch."""
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self._note(len(spans), sent=result is SpanExportResult.SUCCESS)
        return result

    def _note(self, spans: int, *, sent: bool) -> None:
        self.room.give_back(spans)
        (SPANS_SENT if sent else SPANS_DROPPED).inc(spans)
        if sent and self._has_failed:
            _log.info("traces_sent_again")
        elif not sent and not self._has_failed:
            _log.warning("traces_not_sent", error=self._words.text, remedy=_REMEDY)
        self._has_failed = not sent

    def shutdown(self) -> None:
        """Give up what is being sent."""
        self._exporter.shutdown()


class _LastWords(logging.Handler):
    """Keeps the last complaint of the SDK's exporter for our line about it, instead of a line each ten seconds."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""
        for name in ("opentelemetry.exporter", "opentelemetry.sdk"):
            logger = logging.getLogger(name)
            logger.propagate = False
            logger.handlers = [self]

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a complaint."""
        self.text = record.getMessage()
