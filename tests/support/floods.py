"""What floods are made of: calls that send nothing, methods that do not end, and what a refused client reads."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Self

import grpc
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc import error_details_pb2  # type: ignore[import-untyped] # Published without py.typed.
from grpc_status import rpc_status

from tests.support.stages import TIMEOUT_S, Server


class HalfOpen:
    """Calls that send their headers and no message until the end of the block."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._left = threading.Event()
        self._channels = ExitStack()
        self._calls: list[Any] = []  # grpcio cancels a call that nobody holds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._left.set()
        self._channels.close()

    def open(self, count: int, *, method: str = "Echo", metadata: Any = (), first: tuple[bytes, ...] = ()) -> list[Any]:
        """Open `count` calls, 100 a connection; each sends `first` and no more."""
        calls = []
        for start in range(0, count, 100):
            option = ("grpc.use_local_subchannel_pool", 1)
            channel = self._channels.enter_context(grpc.insecure_channel(self._server.target, options=[option]))
            call: Any = channel.stream_unary(f"/test.v1.TestService/{method}", None, StringValue.FromString)
            calls += [call.future(self._silence(first), metadata=metadata) for _ in range(min(100, count - start))]
        self._calls += calls
        return calls

    def _silence(self, first: tuple[bytes, ...]) -> Iterator[bytes]:
        yield from first
        self._left.wait()


class Blocking:
    """A method that keeps its worker until it is released."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.released = threading.Event()

    def __call__(self, request: StringValue, _context: Any) -> StringValue:
        self.entered.release()
        assert self.released.wait(TIMEOUT_S)
        return request


def retry_after_s(error: Any) -> float:
    retry = error_details_pb2.RetryInfo()
    status = rpc_status.from_call(error)
    assert status is not None
    assert status.details[1].Unpack(retry)
    return float(retry.retry_delay.ToTimedelta().total_seconds())
