"""Messages of strangers: few are received at once, the slow ones make way, and other addresses are served."""

import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc import error_details_pb2  # type: ignore[import-untyped] # Published without py.typed.
from grpc_status import rpc_status

from gatekeeper_grpc.interceptors.policy import Access, Policy
from gatekeeper_grpc.transport.admission import PoolName
from gatekeeper_grpc.transport.listener import LOOKAHEAD_BYTES, MAX_RECEIVED_BYTES
from gatekeeper_grpc.transport.message_timeout import MessageTimeout
from gatekeeper_grpc.transport.pending_calls import PendingLimits
from gatekeeper_grpc.transport.receive_slots import ReceiveSlots
from gatekeeper_grpc.transport.shares import PoolSize
from tests.support.floods import HalfOpen
from tests.support.http2 import INITIAL_WINDOW_SIZE, SETTINGS, WINDOW_UPDATE, Http2
from tests.support.stages import OPEN, SERVICE, STREAM, TIMEOUT_S, Server, echo, error_info, fails, serve, text, unary
from tests.support.waiting import eventually

pytestmark = [pytest.mark.promise("C1", "F1"), pytest.mark.usefixtures("either_state")]

ENDLESS = MessageTimeout(limit_s=60.0, limit_when_saturated_s=60.0)
SLOTS = PendingLimits().receiving
ANNOUNCED = 4 << 20


@contextmanager
def unfinished(server: Server, *, addresses: int, calls: int) -> Iterator[list[Http2]]:
    """Clients at several addresses, each with calls that announce a large message and send what they may of it."""
    with ExitStack() as stack:
        clients = []
        for number in range(addresses):
            client = stack.enter_context(Http2.connected(server.port, source=f"127.0.1.{number + 1}"))
            client.read_for(0.05)
            streams = [client.open_call(f"/{SERVICE}/Echo") for _ in range(calls)]
            for stream in streams:
                client.announce(stream, ANNOUNCED)
                client.fill(stream, LOOKAHEAD_BYTES)
            clients.append(client)
        yield clients


def served(server: Server, *, calls: int = 20) -> int:
    """How many of a victim's calls are served; the others end in any way."""
    outcomes = [server.unary("Echo").future(text(), timeout=5.0).code() for _ in range(calls)]
    return outcomes.count(grpc.StatusCode.OK)


@pytest.mark.parametrize("addresses", [1, 3, 40])
def test_unfinished_messages_delay_no_other_address(addresses: int) -> None:
    with (
        serve({"Echo": (unary(echo), OPEN)}, message_timeout=ENDLESS) as server,
        unfinished(server, addresses=addresses, calls=10),
        server.seen_from("127.0.2.1") as victim,
    ):
        assert served(victim) == 20


@pytest.fixture
def no_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets what is being received make no way for what waits."""
    monkeypatch.setattr(ReceiveSlots, "overdue", lambda _slots: [])


def test_twin_without_turns_they_do(no_turns: None) -> None:
    with (
        serve({"Echo": (unary(echo), OPEN)}, message_timeout=ENDLESS) as server,
        unfinished(server, addresses=3, calls=10),
        server.seen_from("127.0.2.1") as victim,
    ):
        assert victim.unary("Echo").future(text(), timeout=0.5).code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_the_messages_of_strangers_hold_at_most_64_mib() -> None:
    with serve({"Echo": (unary(echo), OPEN)}, message_timeout=ENDLESS) as server:
        with unfinished(server, addresses=30, calls=100):
            pending = server.pools.pending.strangers
            assert eventually(lambda: len(pending) >= 500)
            held, most = pending.held_bytes, pending.limits.max_bytes
        assert eventually(lambda: pending.held_bytes == 0)

    assert 16 << 20 < held <= most <= 64 << 20


def silent_call(silent: HalfOpen, server: Server) -> Any:
    """Open a call that sends nothing, and wait until the server has it: calls opened together arrive in any order."""
    pending = server.pools.pending.strangers
    before = len(pending)
    (call,) = silent.open(1)
    assert eventually(lambda: len(pending) > before)
    return call


def test_a_message_that_makes_way_is_refused_in_words_and_counted() -> None:
    silence = serve({"Echo": (unary(echo), OPEN)}, message_timeout=ENDLESS)
    with silence as server, HalfOpen(server) as silent:
        first = silent_call(silent, server)
        silent.open(SLOTS)
        error = first.exception(timeout=TIMEOUT_S)

    assert (error.code(), error_info(error).reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED")
    assert error.details() == "the message did not arrive while others waited; retry later"
    assert has_retry_info(error)
    assert server.pools.pending.strangers.refused >= 1


def test_a_call_too_many_ends_the_oldest_that_waits_at_its_address(no_turns: None) -> None:
    crowded = serve({"Echo": (unary(echo), OPEN)}, pending=PendingLimits(calls=4), message_timeout=ENDLESS)
    with crowded as server, HalfOpen(server) as silent:
        calls = [silent_call(silent, server) for _ in range(SLOTS // 2 + 2)]
        silent.open(1)
        error = calls[SLOTS // 2].exception(timeout=TIMEOUT_S)

        assert [call.done() for call in calls].count(True) == 1

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details() == "too many calls wait for their message; retry later"
    assert has_retry_info(error)


def has_retry_info(error: Any) -> bool:
    status = rpc_status.from_call(error)
    assert status is not None
    return any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details)


def test_a_message_too_long_for_its_method_is_refused_before_the_queue() -> None:
    policy = Policy(access=Access.PUBLIC, pool=PoolName.EVALUATION, max_request_bytes=10)
    sizes = {PoolName.EVALUATION: PoolSize(workers=1, queue=0)}
    entered, leave = threading.Event(), threading.Event()

    def block(request: StringValue, _context: Any) -> StringValue:
        entered.set()
        assert leave.wait(TIMEOUT_S)
        return request

    with serve({"Block": (unary(block), OPEN), "Echo": (unary(echo), policy)}, sizes=sizes) as server:
        blocking = server.unary("Block").future(text())
        assert entered.wait(TIMEOUT_S)
        error = fails(server.unary("Echo"), text("x" * 9))
        leave.set()
        assert blocking.result() == text()

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert sum(server.pools[PoolName.EVALUATION].refused.values()) == 0


def test_queued_messages_are_held_until_workers_take_them() -> None:
    """What does not fit among the queued ones keeps its slot, and makes way when others wait."""
    sizes = {PoolName.BULK: PoolSize(workers=1, queue=100)}
    pending = PendingLimits(queued_bytes=2 << 20)
    leave = threading.Event()

    def block(request: StringValue, _context: Any) -> StringValue:
        assert leave.wait(TIMEOUT_S)
        return request

    methods = {"Block": (unary(block), STREAM), "Echo": (unary(echo), OPEN)}
    with serve(methods, sizes=sizes, pending=pending) as server, server.seen_from("127.0.2.1") as victim:
        calls = [server.unary("Block").future(text("x" * (1 << 20))) for _ in range(12)]
        assert eventually(lambda: server.pools[PoolName.BULK].in_flight >= 6)
        held = server.pools.pending.strangers.held_bytes
        assert served(victim) == 20
        leave.set()
        codes = [call.code() for call in calls]

    assert 2 << 20 <= held <= pending.max_bytes
    assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert codes.count(grpc.StatusCode.OK) >= 3
    assert server.pools.pending.strangers.held_bytes == 0


def test_a_refused_call_whose_client_reads_nothing_frees_its_slot() -> None:
    methods = {"Echo": (unary(echo), OPEN), "Large": (unary(lambda *_: text("x" * (16 << 20))), OPEN)}
    with serve(methods, message_timeout=ENDLESS) as server, Http2.connected(server.port, source="127.0.1.1") as deaf:
        deaf.read_for(0.1)
        ask_and_read_nothing(deaf)
        for _ in range(SLOTS):
            deaf.announce(deaf.open_call(f"/{SERVICE}/Echo"), ANNOUNCED)

        assert eventually(lambda: server.pools.pending.strangers.refused >= SLOTS // 2)
        assert eventually(lambda: len(server.pools.pending.strangers) <= SLOTS // 2)
        assert eventually(lambda: server.pools.pending.strangers.held_bytes <= SLOTS // 2 * MAX_RECEIVED_BYTES)


def ask_and_read_nothing(deaf: Http2) -> None:
    """Have the server write more than the kernel takes: all windows are open."""
    deaf.send(SETTINGS, struct.pack(">HI", INITIAL_WINDOW_SIZE, 1 << 30))
    deaf.send(WINDOW_UPDATE, (1 << 30).to_bytes(4, "big"))
    deaf.send_message(deaf.open_call(f"/{SERVICE}/Large"), b"")
