"""`GrpcResponseStream`: it sends without a thread that waits, and its call ends like any other.

These tests notice when the private names of grpcio that it uses come to mean something else.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from gatekeeper_grpc.domain.errors import NotFound, Unavailable
from gatekeeper_grpc.interceptors.policy import Access, Policy
from gatekeeper_grpc.interceptors.request_scope import CALL_ID_KEY
from gatekeeper_grpc.transport.admission import PoolName
from gatekeeper_grpc.transport.grpcio_internals import GrpcResponseStream
from gatekeeper_grpc.transport.shares import PoolSize
from tests.support.stages import TIMEOUT_S, Server, error_info, serve, text
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("C5")

WATCH = Policy(access=Access.PUBLIC, pool=PoolName.WATCH)
# More than the buffers on the way to a client hold.
LONG = "x" * 1_000_000


class Method:
    """Keeps the stream of each call, and fails if the request says so."""

    sends_by_response_stream = True

    def __init__(self) -> None:
        self.streams: SimpleQueue[GrpcResponseStream] = SimpleQueue()
        self.over = threading.Semaphore(0)

    def __call__(self, request: StringValue, context: Any, stream: GrpcResponseStream) -> None:
        if request.value == "fail":
            raise NotFound.flag("nowhere")
        context.add_callback(self.over.release)
        self.streams.put(stream)


@contextmanager
def calling(value: str = "") -> Iterator[tuple[Server, Any, GrpcResponseStream]]:
    """Call the method on a server with one worker for it; yields the client's end and the servicer's."""
    method = Method()
    handler = grpc.unary_stream_rpc_method_handler(method, StringValue.FromString, StringValue.SerializeToString)
    with serve({"Watch": (handler, WATCH)}, sizes={PoolName.WATCH: PoolSize(workers=1, queue=8)}) as server:
        call = open_call(server, value)
        yield server, call, method.streams.get(timeout=TIMEOUT_S)
        call.cancel()


def open_call(server: Server, value: str = "") -> Any:
    path = "/test.v1.TestService/Watch"
    stub: Any = server.channel.unary_stream(path, StringValue.SerializeToString, StringValue.FromString)
    return stub(text(value), timeout=TIMEOUT_S)


def message(value: str) -> bytes:
    return text(value).SerializeToString()


def send(stream: GrpcResponseStream, value: str) -> threading.Event:
    sent = threading.Event()
    assert stream.send(message(value), sent.set)
    return sent


def fill(stream: GrpcResponseStream) -> tuple[int, threading.Event]:
    """Send as much as a client that does not read accepts, and one message more, which stays in transit.

    Returns how many messages these are, and the event of the last.
    """
    for count in range(1, 100):
        sent = send(stream, LONG)
        if not sent.wait(0.3):
            return count, sent
    raise AssertionError("nothing fills up")


def test_messages_arrive_in_order_and_each_is_reported_sent() -> None:
    with calling() as (_, call, stream):
        for number in range(100):
            assert send(stream, str(number)).wait(TIMEOUT_S)

        assert [next(call).value for _ in range(100)] == [str(number) for number in range(100)]


def test_sending_to_a_client_that_does_not_read_returns_at_once() -> None:
    with calling() as (_, call, stream):
        count, sent = fill(stream)

        assert [next(call).value for _ in range(count)] == [LONG] * count
        assert sent.wait(TIMEOUT_S)


def test_twin_send_response_of_grpcio_waits_until_the_client_reads() -> None:
    senders: SimpleQueue[Callable[[StringValue], None]] = SimpleQueue()

    def watch(_request: StringValue, _context: Any, send_response: Callable[[StringValue], None]) -> None:
        senders.put(send_response)

    watch.experimental_non_blocking = True  # type: ignore[attr-defined] # What grpcio looks for.
    handler = grpc.unary_stream_rpc_method_handler(watch, StringValue.FromString, StringValue.SerializeToString)
    with serve({"Watch": (handler, WATCH)}) as server, ThreadPoolExecutor(1) as sender:
        call = open_call(server)
        send_response = senders.get(timeout=TIMEOUT_S)
        sending = [sender.submit(send_response, text(LONG)) for _ in range(10)]
        with pytest.raises(TimeoutError):
            sending[-1].result(timeout=0.5)
        call.cancel()
        for each in sending:
            each.result(TIMEOUT_S)


def test_open_streams_keep_no_worker() -> None:
    with calling() as (server, _, stream):
        others = [open_call(server) for _ in range(5)]
        assert send(stream, "still here").wait(TIMEOUT_S)
        for other in others:
            other.cancel()


def end_by_client(_stream: GrpcResponseStream, call: Any) -> None:
    call.cancel()


def end_by_server(stream: GrpcResponseStream, _call: Any) -> None:
    stream.end(Unavailable("going away"))


def cancel_by_server(stream: GrpcResponseStream, _call: Any) -> None:
    stream.cancel()


ENDS: dict[Callable[[GrpcResponseStream, Any], None], grpc.StatusCode] = {
    end_by_client: grpc.StatusCode.CANCELLED,
    end_by_server: grpc.StatusCode.UNAVAILABLE,
    cancel_by_server: grpc.StatusCode.CANCELLED,
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("unread", [False, True], ids=["idle", "with a message in transit"])
def test_an_ended_call_leaves_nothing_behind(end: Callable[[GrpcResponseStream, Any], None], unread: bool) -> None:
    with calling() as (server, call, stream):
        sent = fill(stream)[1] if unread else send(stream, "read")
        assert unread or next(call).value == "read"
        end(stream, call)
        for _ in iterate(call):
            pass

        calls_known_to_grpcio = server.grpc_server._state.rpc_states  # type: ignore[attr-defined]
        assert eventually(lambda: not calls_known_to_grpcio)
        assert sent.wait(TIMEOUT_S)
        assert not stream.send(message("too late"), sent.clear)
        stream.end(Unavailable("once more"))
        stream.cancel()
        assert sent.is_set()
    assert call.code() is ENDS[end]


def iterate(call: Any) -> Iterator[Any]:
    try:
        yield from call
    except grpc.RpcError:
        return


def test_the_end_carries_its_error_and_the_id_of_the_call() -> None:
    with calling() as (_, call, stream):
        send(stream, "last")
        stream.end(Unavailable("going away", retry_after_s=1.0))
        assert next(call).value == "last"
        with pytest.raises(grpc.RpcError) as ended:
            next(call)

    assert (ended.value.code(), error_info(ended.value).reason) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")
    assert CALL_ID_KEY in dict(call.trailing_metadata())


def test_a_call_that_is_refused_has_its_status() -> None:
    with calling() as (server, _, _):
        refused = open_call(server, "fail")
        with pytest.raises(grpc.RpcError) as failure:
            next(refused)

    assert (failure.value.code(), error_info(failure.value).reason) == (grpc.StatusCode.NOT_FOUND, "FLAG_NOT_FOUND")
