"""New calls are taken in turn of the addresses that they come from, however many one address has sent before."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_network
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_grpc import testing
from gatekeeper_grpc.auth.addresses import address_of
from gatekeeper_grpc.instrumentation.counters import RPC_DURATION, SURPLUS_CALLS
from gatekeeper_grpc.interceptors.line_samples import LINES_A_MINUTE
from gatekeeper_grpc.interceptors.tracing import REQUEST_ID_KEY
from gatekeeper_grpc.transport import admission, listener
from gatekeeper_grpc.transport.admission import Refusal
from gatekeeper_grpc.transport.grpcio_internals import ArrivedCall
from gatekeeper_grpc.transport.listener import NewCallLimits
from gatekeeper_grpc.transport.turns import Turns
from tests.support.floods import retry_after_s
from tests.support.http2 import PING, Http2
from tests.support.stages import OPEN, SERVICE, TIMEOUT_S, Server, echo, error_info, fails, serve, text, unary
from tests.support.waiting import eventually

pytestmark = [pytest.mark.promise("C1", "F2"), pytest.mark.usefixtures("either_state")]

EVALUATE = "/gatekeeper.v1.EvaluationService/EvaluateFlags"
ATTACKER, VICTIM = "127.0.1.1", "127.0.2.1"
CONNECTIONS, CALLS = 3, 100


class Stuck:
    """A server whose serving thread waits with the first call, until it is released."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.released = threading.Event()
        self.taken: list[str] = []
        """The addresses of the calls in the order in which they were taken, the first left out."""
        self.when_taken: Callable[[], object] = lambda: None
        """What the serving thread does with each of them first."""
        self._entered = threading.Event()
        pool = server.pools[OPEN.pool]
        self._take = pool.take
        pool.take = self._wait_first  # type: ignore[method-assign] # A spy.
        self._first = server.unary("Echo").future(text())
        assert self._entered.wait(TIMEOUT_S)

    def _wait_first(self, call: ArrivedCall) -> None:
        if self._entered.is_set():
            self.taken.append(address_of(call.peer))
            self.when_taken()
        self._entered.set()
        assert self.released.wait(TIMEOUT_S)
        self._take(call)


@contextmanager
def flooded() -> Iterator[Stuck]:
    """A server whose serving thread is stuck, an attacker's calls that wait for it, and, behind them, a victim's."""
    with serve({"Echo": (unary(echo), OPEN)}) as server, ExitStack() as clients:
        stuck = Stuck(server)
        for source, calls in [(ATTACKER, CALLS)] * CONNECTIONS + [(VICTIM, 1)]:
            open_calls(clients.enter_context(Http2.connected(server.port, source=source)), calls)
        yield stuck
        stuck.released.set()


def open_calls(client: Http2, count: int) -> None:
    """Open calls, and wait until the server has read them all."""
    client.read_for(0.05)
    for _ in range(count):
        client.send_message(client.open_call(f"/{SERVICE}/Echo"), b"")
    client.send(PING, bytes(8))
    client.receive(PING)


def taken_before_victim(stuck: Stuck) -> int:
    """Release the serving thread; return how many calls were taken before the victim's."""
    stuck.released.set()
    assert eventually(lambda: len(stuck.taken) == CONNECTIONS * CALLS + 1)
    return stuck.taken.index(VICTIM)


def test_a_call_does_not_wait_behind_all_calls_of_another_address() -> None:
    with flooded() as stuck:
        assert taken_before_victim(stuck) < CALLS // 10


def test_twin_without_turns_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "take_in_turn", lambda *_: None)
    with flooded() as stuck:
        assert taken_before_victim(stuck) >= CONNECTIONS * CALLS - 1


@contextmanager
def surplus() -> Iterator[Stuck]:
    """As `flooded`, where twenty calls wait at most."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listener, "NEW_CALLS", NewCallLimits(waiting=20))
        with flooded() as stuck:
            yield stuck


def test_of_too_many_calls_those_of_the_flood_are_refused_and_counted() -> None:
    before = refused_calls()
    with surplus() as stuck:
        stuck.released.set()
        assert eventually(lambda: VICTIM in stuck.taken)
        assert eventually(lambda: len(stuck.taken) + refused_calls() - before == CONNECTIONS * CALLS + 1)
        assert refused_calls() - before > CONNECTIONS * CALLS - 50


def test_twin_if_the_newest_call_gave_way_the_victim_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Turns, "_gives_way_to", lambda _turns, owner: owner)
    before = refused_calls()
    with surplus() as stuck:
        stuck.released.set()
        assert eventually(lambda: len(stuck.taken) + refused_calls() - before == CONNECTIONS * CALLS + 1)
        assert VICTIM not in stuck.taken


def test_no_more_calls_wait_than_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, add = list[int](), Turns.add

    def counted(turns: Turns[Any], owner: Any, item: Any) -> Any:
        gives_way = add(turns, owner, item)
        waiting.append(len(turns))
        return gives_way

    monkeypatch.setattr(Turns, "add", counted)
    with surplus() as stuck:
        stuck.released.set()
        assert eventually(lambda: VICTIM in stuck.taken)

    assert max(waiting) == 20


def test_a_surplus_call_is_told_so_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "NEW_CALLS", NewCallLimits(waiting=0))
    with serve({"Echo": (unary(echo), OPEN)}) as server:
        error = fails(server.unary("Echo"), text())

    assert (error.code(), error_info(error).reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED")
    assert error.details() == "too many calls wait for their turn; retry later"
    assert retry_after_s(error) == 1.0


def test_a_surplus_call_is_timed_logged_and_told_its_request_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "NEW_CALLS", NewCallLimits(waiting=0))
    before = durations_counted(f"/{SERVICE}/Surplus")
    with serve({"Surplus": (unary(echo), OPEN)}) as server, capture_logs() as logs:
        error = fails(server.unary("Surplus"), text(), metadata=((REQUEST_ID_KEY, "order-7"),))

    (line,) = (line for line in logs if line["event"] == "rpc")
    assert (line["method"], line["code"]) == (f"/{SERVICE}/Surplus", "RESOURCE_EXHAUSTED")
    assert (line["reason"], line["trace_id"]) == ("RESOURCE_EXHAUSTED", "order-7")
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    assert (REQUEST_ID_KEY, "order-7") in error.trailing_metadata()
    assert durations_counted(f"/{SERVICE}/Surplus") == before + 1


def test_a_surplus_call_of_a_method_with_a_queue_of_its_own_is_timed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "NEW_CALLS", NewCallLimits(waiting=0))
    before = durations_counted(EVALUATE)
    with testing.serve([]) as server, grpc.insecure_channel(server.address) as channel:
        error = fails(EvaluationServiceStub(channel).EvaluateFlags, EvaluateFlagsRequest())

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert durations_counted(EVALUATE) == before + 1


def test_of_a_flood_of_surplus_calls_some_are_logged_and_all_are_timed() -> None:
    before, counted = refused_calls(), durations_counted(f"/{SERVICE}/Echo")
    with capture_logs() as logs, surplus() as stuck:
        stuck.released.set()
        assert eventually(lambda: len(stuck.taken) + refused_calls() - before == CONNECTIONS * CALLS + 1)

    lines = [line for line in logs if line["event"] == "rpc" and line["code"] == "RESOURCE_EXHAUSTED"]
    assert len(lines) == LINES_A_MINUTE
    assert durations_counted(f"/{SERVICE}/Echo") - counted == refused_calls() - before


def test_of_a_surplus_call_of_no_method_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "NEW_CALLS", NewCallLimits(waiting=0))
    with serve({"Echo": (unary(echo), OPEN)}) as server, capture_logs() as logs:
        error = fails(server.unary("Nowhere"), text())

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not logs
    assert durations_counted(f"/{SERVICE}/Nowhere") == 0


def test_a_surplus_call_of_an_odd_method_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is no UTF-8, and the serving thread must not end for that."""
    monkeypatch.setattr(listener, "NEW_CALLS", NewCallLimits(waiting=0))
    before = refused_calls()
    with serve({"Echo": (unary(echo), OPEN)}) as server:
        with Http2.connected(server.port) as client:
            client.open_call(f"/{SERVICE}/\udcff\udcfe")
            client.send(PING, bytes(8))
            client.receive(PING)
            assert eventually(lambda: refused_calls() > before)
        error = fails(server.unary("Echo"), text())

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def durations_counted(method: str) -> int:
    """How many refused calls of a method are in the durations."""
    return sum(RPC_DURATION.labels(method, "RESOURCE_EXHAUSTED").counts)


def test_a_server_ends_after_it_refused_surplus_calls() -> None:
    with surplus() as stuck:
        stuck.released.set()
        assert stuck.server.grpc_server.stop(grace=0).wait(TIMEOUT_S)


def refused_calls() -> float:
    return float(SURPLUS_CALLS._value.get())


def test_a_call_has_arrived_before_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the wait is part of the duration in the log and in the metrics."""
    arrived, taken = list[float](), list[float]()
    begin = ArrivedCall.__init__

    def noted(call: ArrivedCall, *args: Any) -> None:
        begin(call, *args)
        arrived.append(call.arrived_at)

    monkeypatch.setattr(ArrivedCall, "__init__", noted)
    with flooded() as stuck:
        stuck.when_taken = lambda: taken.append(time.monotonic())
        taken_before_victim(stuck)

    assert sum(at < taken[1] for at in arrived) > CONNECTIONS * CALLS // 2


def test_a_server_ends_while_calls_wait_for_their_turn() -> None:
    with flooded() as stuck:
        stops = list[threading.Event]()
        stuck.when_taken = lambda: stops.append(stuck.server.grpc_server.stop(grace=0))
        stuck.released.set()

        assert eventually(lambda: len(stuck.taken) > CALLS)
        assert stops[0].wait(TIMEOUT_S)


def test_a_call_that_waits_for_long_behind_many_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_MAX_WAIT_S", 0.0)
    monkeypatch.setattr(admission, "_FEW_CALLS", -1)
    with serve({"Echo": (unary(echo), OPEN)}) as server:
        error = fails(server.unary("Echo"), text())
        refused = server.pools[OPEN.pool].refused[Refusal.WAITED]

    assert (error.code(), error_info(error).reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED")
    assert error.details() == "too many calls of this address wait for their turn; retry later"
    assert (retry_after_s(error), refused) == (1.0, 1)


def test_few_calls_that_have_waited_for_long_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process has stood still: nobody calls more than it can do."""
    monkeypatch.setattr(admission, "_MAX_WAIT_S", 0.0)
    with serve({"Echo": (unary(echo), OPEN)}) as server:
        assert server.unary("Echo")(text(), timeout=TIMEOUT_S) == text()


def test_clients_behind_a_trusted_proxy_have_turns_of_their_own() -> None:
    peer, proxies = "ipv4:10.0.0.1:4711", ip_network("10.0.0.0/8")
    named = [(("x-forwarded-for", address),) for address in ("192.0.2.1", "192.0.2.2")]

    trusted = {listener.client_named(peer, metadata, proxies=proxies) for metadata in named}
    untrusted = {listener.client_named(peer, metadata, proxies=None) for metadata in named}

    assert (len(trusted), len(untrusted)) == (2, 1)


def test_a_call_whose_address_cannot_be_told_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise ValueError

    monkeypatch.setattr(listener, "client_named", fail)
    with serve({"Echo": (unary(echo), OPEN)}) as server:
        assert server.unary("Echo")(text(), timeout=TIMEOUT_S) == text()
