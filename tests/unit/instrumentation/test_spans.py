"""What is noted of traced calls stays within bounds."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest

from gatekeeper_grpc.instrumentation import spans
from gatekeeper_grpc.instrumentation.spans import Note, Trace, Traces, current_note, note_evaluations, noted


class Sink:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.effects: list[list[str]] = []

    def begin(self, name: str, carrier: Mapping[str, str], *, began_at: float) -> Trace:
        assert not carrier
        return Trace(trace_id=name, span=None, note=Note(name=name, began_at=began_at))

    def end(self, trace: Trace) -> None:
        pass

    def add(self, note: Note, causes: Sequence[Trace]) -> None:
        assert note.name == "refresh"
        self.effects.append([cause.trace_id for cause in causes])


def calls(traces: Traces, sink: Sink, *revisions: int) -> None:
    """One traced call for each revision, named after it."""
    for revision in revisions:
        traces.begin_call(sink, str(revision), {}, arrived_at=time.monotonic())
        with traces.causing() as cause:
            cause(revision)


def raise_after(act: Callable[[], object]) -> None:
    act()
    raise ZeroDivisionError


def causes_of(traces: Traces, sink: Sink, *, after: int, upto: int) -> list[str]:
    traces.add_effect(Note(name="refresh"), after=after, upto=upto)
    return sink.effects[-1]


@pytest.fixture(autouse=True)
def end_of_call() -> Iterator[None]:
    """grpcio serves each call in a context of its own; a test has one for all."""
    yield
    spans._trace.set(None)
    spans._note.set(None)


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def traces(sink: Sink) -> Traces:
    traces = Traces()
    traces.use(sink)
    return traces


def test_a_refresh_is_caused_by_the_changes_that_it_shows(traces: Traces, sink: Sink) -> None:
    calls(traces, sink, 4, 5, 6, 7)

    assert causes_of(traces, sink, after=4, upto=6) == ["5", "6"]


def test_a_change_that_was_rolled_back_causes_nothing(traces: Traces, sink: Sink) -> None:
    traces.begin_call(sink, "5", {}, arrived_at=0)
    with pytest.raises(ZeroDivisionError), traces.causing() as cause:
        raise_after(lambda: cause(5))

    assert causes_of(traces, sink, after=4, upto=5) == []


def test_only_the_latest_changes_are_remembered(traces: Traces, sink: Sink) -> None:
    calls(traces, sink, *range(1, 301))

    assert causes_of(traces, sink, after=0, upto=300) == [str(revision) for revision in range(45, 301)]


def test_of_a_call_with_many_statements_the_rest_is_counted() -> None:
    note = Note(name="call")
    for _ in range(200):
        note.add(Note(name="SELECT"))

    assert (len(note.notes), note.attributes) == (128, {"gatekeeper.notes_left_out": 72})


def test_what_a_call_that_is_not_traced_does_is_not_noted() -> None:
    with noted("transaction"):
        note_evaluations([("checkout", None)], flags=1, revision=1)
        assert current_note() is None


def test_a_block_that_raises_has_ended_with_an_error(traces: Traces, sink: Sink) -> None:
    trace = traces.begin_call(sink, "call", {}, arrived_at=time.monotonic())
    assert trace
    with pytest.raises(ZeroDivisionError), noted("transaction"):
        raise_after(lambda: spans.current_note().add(Note(name="SELECT")))  # type: ignore[union-attr]

    (transaction,) = trace.note.notes
    assert transaction.error == "ZeroDivisionError"
    assert trace.note.began_at <= transaction.began_at <= transaction.notes[0].ended_at <= transaction.ended_at
