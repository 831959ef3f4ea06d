"""What traced calls do, noted while they do it and made into spans once it is over: docs/operations/traces.md.

A note is an object in a list. So nothing is made, locked or sent while a call holds the lock of the head row, and a
poll that finds nothing leaves nothing. `TRACES.sink` is None unless an operator wants traces: then a call pays for one
look at it. The reasons: docs/decisions/0047-traces.md.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, Protocol

Value = str | int | float | bool

# A stream may make any number of statements; the queue of the exporter has room for 2,048 spans.
_MAX_NOTES: Final = 128
_MAX_EVALUATIONS: Final = 20
# Changes of this process whose refresh and delivery to watchers may still come.
_MAX_CAUSES: Final = 256


@dataclass(slots=True, kw_only=True)
class Note:
    """One span in the making. Times are in monotonic seconds; `ended_at` 0: it has not ended."""

    name: str
    began_at: float = field(default_factory=time.monotonic)
    ended_at: float = 0.0
    attributes: dict[str, Value] = field(default_factory=dict)
    error: str = ""
    """What kind of error ended it; empty: none."""
    is_client: bool = False
    """Whether it is a call of another server: the database."""
    notes: list["Note"] = field(default_factory=list)
    """What was done within it."""
    evaluations: Sequence[Mapping[str, Value]] = ()
    """The decisions about flags that were made within it."""

    def add(self, note: "Note") -> None:
        """Add what was done within this; of too much, count it."""
        if len(self.notes) < _MAX_NOTES:
            self.notes.append(note)
        else:
            self.attributes["gatekeeper.notes_left_out"] = int(self.attributes.get("gatekeeper.notes_left_out", 0)) + 1

    def end_notes(self) -> None:
        """End what has not ended within this."""
        ended_at = time.monotonic()
        for note in self.notes:
            note.ended_at = note.ended_at or ended_at


@dataclass(slots=True, kw_only=True)
class Trace:
    """A call that is traced."""

    trace_id: str
    """32 lower-case hexadecimal digits."""
    span: Any
    """The span of the call, which belongs to the sink."""
    note: Note
    """The call."""


class Sink(Protocol):
    """Where spans go. No method waits for anything."""

    def begin(self, name: str, carrier: Mapping[str, str], *, began_at: float) -> Trace | None:
        """Begin the trace of a call, or continue that of its client; None: it is not in the sample.

        Args:
            name: The method.
            carrier: `traceparent` and `tracestate` of the client, if it has sent them.
            began_at: When the call arrived, in monotonic seconds.
        """
        ...

    def end(self, trace: Trace) -> None:
        """Send the span of a call that has ended, and those of what was done within it."""
        ...

    def add(self, note: Note, causes: Sequence[Trace]) -> None:
        """Send what another thread has done because of calls: within the first of them, and linked to the others.

        Without causes it is a trace of its own.
        """
        ...


_trace: ContextVar[Trace | None] = ContextVar("gatekeeper_trace", default=None)
_note: ContextVar[Note | None] = ContextVar("gatekeeper_note", default=None)


class Traces:
    """The traces of this process."""

    def __init__(self) -> None:
        self.sink: Sink | None = None
        """None: nothing is traced."""
        self._causes: dict[int, Trace] = {}

    def use(self, sink: Sink | None) -> None:
        """Trace to `sink` from now on; None: no more."""
        self._causes.clear()
        self.sink = sink

    def begin_call(self, sink: Sink, name: str, carrier: Mapping[str, str], *, arrived_at: float) -> Trace | None:
        """Begin the trace of the current call. grpcio serves each call in a context of its own: nothing needs undoing.

        Returns:
            None if the call is not in the sample.
        """
        trace = sink.begin(name, carrier, began_at=arrived_at)
        if trace is not None:
            _trace.set(trace)
            _note.set(trace.note)
        return trace

    def end_call(self, trace: Trace, *, error: str, attributes: Mapping[str, Value]) -> None:
        """End the trace of a call that ends now."""
        if self.sink is not None:
            trace.note.end_notes()
            trace.note.ended_at, trace.note.error = time.monotonic(), error
            trace.note.attributes.update(attributes)
            self.sink.end(trace)
        trace.note.notes.clear()

    @contextmanager
    def causing(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that says which revision the current call makes, before its COMMIT: afterwards is too late.

        If the block raises, the call has made none.
        """
        made: list[int] = []
        try:
            yield lambda revision: self._note_cause(revision, made)
        except BaseException:
            for revision in made:
                self._causes.pop(revision, None)
            raise

    def _note_cause(self, revision: int, made: list[int]) -> None:
        if (trace := _trace.get()) is None:
            return
        self._causes[revision] = trace
        made.append(revision)
        if len(self._causes) > _MAX_CAUSES:
            self._causes.pop(next(iter(self._causes)), None)

    def add_effect(self, note: Note, *, after: int, upto: int) -> None:
        """Send what was done to show the revisions after one, up to another, which calls of this process have made."""
        if self.sink is not None:
            causes = [trace for revision, trace in [*self._causes.items()] if after < revision <= upto]
            self.sink.add(note, causes)


TRACES: Final = Traces()


@contextmanager
def noted(name: str) -> Iterator[None]:
    """Note a block within the traced call, if the current one is traced."""
    outer = _note.get()
    if outer is None:
        yield
        return
    note = Note(name=name)
    outer.add(note)
    token = _note.set(note)
    try:
        yield
    except BaseException as exc:
        note.error = type(exc).__name__
        raise
    finally:
        with suppress(ValueError):  # An abandoned stream is closed wherever the garbage collector runs.
            _note.reset(token)
        note.end_notes()
        note.ended_at = time.monotonic()


@contextmanager
def collected(name: str) -> Iterator[Note | None]:
    """Note a block that belongs to no call; None if nothing is traced. What it was for may show at its end."""
    if TRACES.sink is None:
        yield None
        return
    note = Note(name=name)
    token = _note.set(note)
    try:
        yield note
    finally:
        _note.reset(token)


def current_note() -> Note | None:
    """Return what the current thread does now, if that is traced."""
    return _note.get()


def note_evaluations(keys_and_details: Iterable[tuple[str, Any]], *, flags: int, revision: int) -> None:
    """Note the decisions of the current call: the first 20 of them, and the number of all. Nothing of the user."""
    note = _note.get()
    if note is None:
        return
    note.attributes["gatekeeper.flags"] = flags
    note.attributes["gatekeeper.revision"] = revision
    note.evaluations = [
        {
            "feature_flag.key": key,
            "feature_flag.provider.name": "gatekeeper",
            "feature_flag.result.variant": detail.variant,
            "feature_flag.result.value": detail.value,
            "feature_flag.result.reason": detail.reason.name.lower(),
            "feature_flag.version": str(revision),
        }
        for key, detail in islice(keys_and_details, _MAX_EVALUATIONS)
    ]
