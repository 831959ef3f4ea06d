"""What a call leaves behind: nothing that waits for the garbage collector, for its HTTP/2 stream would wait with it."""

import gc
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gatekeeper_grpc.domain import current_call
from tests.support.stages import OPEN, STREAM, Server, echo, echo_stream, serve, stream, text, unary
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("either_state")

STATE: Any = importlib.import_module("grpc._server")._RPCState  # not in its published types
CALLS = 60  # Fewer than the 100 streams of a connection, at which it would stand still.
FEW = 20


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def live_calls() -> int:
    return sum(isinstance(thing, STATE) for thing in gc.get_objects())


def remaining_after(call: Callable[[Server], object]) -> int:
    """Make calls one after another, and return how many of them the server still holds."""
    with serve({"Echo": (unary(echo), OPEN), "Stream": (stream(echo_stream), STREAM)}) as server:
        before = live_calls()
        for _ in range(CALLS):
            call(server)
        eventually(lambda: live_calls() - before < FEW, timeout_s=2.0)
        return live_calls() - before


def echo_once(server: Server) -> object:
    return server.unary("Echo")(text())


def stream_once(server: Server) -> object:
    return list(server.stream("Stream")(iter([text()] * 2)))


@pytest.mark.parametrize("call", [echo_once, stream_once])
def test_a_finished_call_is_freed_without_the_garbage_collector(call: Callable[[Server], object]) -> None:
    assert remaining_after(call) < FEW


def test_twin_with_a_strong_reference_from_its_own_context_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    keep = "gatekeeper_grpc.interceptors.request_scope.set_current_call"
    monkeypatch.setattr(keep, lambda call, **_: current_call._current.set(lambda: call))

    assert remaining_after(echo_once) == CALLS
