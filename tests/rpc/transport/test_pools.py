"""Who shares workers, and that nobody takes what others need. Twins show the harm without shares."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.interceptors import chain
from gatekeeper_grpc.interceptors.policy import POLICIES, Access, Policy
from gatekeeper_grpc.transport.admission import PoolName, Refusal
from gatekeeper_grpc.transport.arrival import Arrival, stranger
from gatekeeper_grpc.transport.message_timeout import MessageTimeout
from gatekeeper_grpc.transport.shares import PoolSize
from tests.support.addresses import seen_from
from tests.support.floods import Blocking, HalfOpen, retry_after_s
from tests.support.stages import (
    EDITOR_TOKEN,
    OPEN,
    SERVICE,
    STREAM,
    TIMEOUT_S,
    VIEWER_TOKEN,
    Server,
    echo,
    echo_stream,
    serve,
    stream,
    text,
    unary,
)
from tests.support.waiting import eventually

pytestmark = [pytest.mark.promise("C1"), pytest.mark.usefixtures("either_state")]


def pools_of(*, public: bool) -> set[PoolName]:
    return {row.pool for row in POLICIES.values() if (row.access is Access.PUBLIC) is public}


def test_calls_with_a_token_share_no_workers_with_public_ones() -> None:
    assert pools_of(public=True) & pools_of(public=False) == set()


@pytest.mark.parametrize(
    "method",
    [
        "/gatekeeper.v1.AuthService/Login",
        "/gatekeeper.v1.AuthService/RefreshToken",
        "/gatekeeper.v1.AuthService/Logout",
        "/gatekeeper.v1.AdminService/ChangePassword",
        "/gatekeeper.v1.EvaluationService/BulkEvaluateFlags",
        "/gatekeeper.v1.AdminService/PreviewFlagChange",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    ],
)
def test_a_method_that_can_be_flooded_has_its_workers_to_itself(method: str) -> None:
    # The two versions of reflection are one method.
    methods = {name.replace("v1alpha", "v1") for name, row in POLICIES.items() if row.pool is POLICIES[method].pool}
    assert methods == {method}


BULK = "/gatekeeper.v1.EvaluationService/BulkEvaluateFlags"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
LOGIN = "/gatekeeper.v1.AuthService/Login"
REFRESH = "/gatekeeper.v1.AuthService/RefreshToken"
APART = [
    (REFLECTION, BULK),
    (BULK, "/gatekeeper.v1.EvaluationService/EvaluateFlags"),
    (BULK, "/gatekeeper.v1.AdminService/ImportTargets"),
    (LOGIN, "/gatekeeper.v1.AdminService/ChangePassword"),
    (LOGIN, REFRESH),
    (REFRESH, "/gatekeeper.v1.AuthService/Logout"),
]


@contextmanager
def flooded(flooded_method: str, victim: Policy) -> Iterator[Any]:
    """Occupy the only worker of a method, by its row of the policies; yields the stub of a victim with another row."""
    blocking, row = Blocking(), POLICIES[flooded_method]
    sizes = dict.fromkeys((row.pool, victim.pool), PoolSize(workers=1, queue=0))
    methods = {"Flood": (unary(blocking), row), "Victim": (unary(echo), victim)}
    with serve(methods, sizes=sizes) as server:
        flood = server.unary("Flood").future(text(), metadata=EDITOR_TOKEN, timeout=TIMEOUT_S)
        assert blocking.entered.acquire(timeout=TIMEOUT_S)
        yield server.unary("Victim")
        blocking.released.set()
        assert flood.result() == text()


@pytest.mark.parametrize(("flood", "victim"), APART)
def test_a_method_is_served_while_one_of_another_pool_is_flooded(flood: str, victim: str) -> None:
    with flooded(flood, POLICIES[victim]) as call:
        assert call(text("victim"), metadata=EDITOR_TOKEN, timeout=TIMEOUT_S) == text("victim")


@pytest.mark.parametrize(("flood", "victim"), APART)
def test_twin_in_one_pool_with_the_flooded_method_it_is_refused(flood: str, victim: str) -> None:
    together = replace(POLICIES[victim], pool=POLICIES[flood].pool)
    with flooded(flood, together) as call:
        refused = call.future(text(), metadata=EDITOR_TOKEN, timeout=TIMEOUT_S)
        assert refusal(refused)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


# --- Shares -----------------------------------------------------------------------------------------------------------

EVALUATION = PoolName.EVALUATION
ENDLESS = MessageTimeout(limit_s=60.0, limit_when_saturated_s=60.0)
READ = Policy(access=Role.VIEWER, pool=PoolName.ADMIN_READ)


@contextmanager
def full_of_one_address(blocking: Blocking) -> Iterator[tuple[Server, Any, Any]]:
    """A pool of four slots that the calls of one address take; yields its stub, and that of another address."""
    sizes = {EVALUATION: PoolSize(workers=1, queue=3)}
    with serve({"Block": (unary(blocking), OPEN)}, sizes=sizes) as server, ExitStack() as stack:
        flooder, victim = (stub_from(address, server, stack) for address in ("127.0.1.1", "127.0.2.1"))
        flood = [flooder.future(text(f"flood {number}"), timeout=TIMEOUT_S) for number in range(4)]
        assert eventually(lambda: server.pools[EVALUATION].in_flight == 4)
        yield server, flooder, victim
        blocking.released.set()
        for call in flood:
            call.exception()


def stub_from(address: str, server: Server, stack: ExitStack) -> Any:
    target = stack.enter_context(seen_from(address, int(server.target.rpartition(":")[2])))
    channel = stack.enter_context(grpc.insecure_channel(target))
    return channel.unary_unary(f"/{SERVICE}/Block", StringValue.SerializeToString, StringValue.FromString)


def refusal(call: Any) -> tuple[grpc.StatusCode, str, float]:
    error = call.exception(timeout=TIMEOUT_S)
    return error.code(), error.details(), retry_after_s(error)


def test_address_that_fills_a_pool_is_refused_in_words_another_is_served() -> None:
    blocking = Blocking()
    with full_of_one_address(blocking) as (server, flooder, victim):
        more = refusal(flooder.future(text(), timeout=TIMEOUT_S))
        served = victim.future(text("victim"), timeout=TIMEOUT_S)
        assert eventually(lambda: server.pools[EVALUATION].refused[Refusal.SHARE] == 2)
        blocking.released.set()

        assert served.result() == text("victim")

    words = "this address already has 4 evaluation calls, and others wait; retry later"
    assert more == (grpc.StatusCode.RESOURCE_EXHAUSTED, words, 1.0)
    assert server.pools[EVALUATION].refused[Refusal.FULL] == 0


def test_twin_without_shares_the_flood_of_another_refuses_the_victim(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def from_one_address(_peer: str) -> Arrival:
        return stranger("ipv4:127.0.0.1:1")

    monkeypatch.setattr(chain, "stranger", from_one_address)
    with full_of_one_address(Blocking()) as (_server, _flooder, victim):
        assert refusal(victim.future(text(), timeout=TIMEOUT_S))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


@contextmanager
def busy_viewer(share: float) -> Iterator[Any]:
    """Two workers for reads, and a viewer whose calls do not end; yields the stub."""
    blocking = Blocking()
    sizes = {PoolName.ADMIN_READ: PoolSize(workers=2, queue=8, share=share)}
    methods = {"Block": (unary(blocking), READ), "Read": (unary(lambda request, _context: request), READ)}
    with serve(methods, sizes=sizes) as server:
        calls = [server.unary("Block").future(text(), metadata=VIEWER_TOKEN) for _ in range(4)]
        assert eventually(lambda: server.pools[PoolName.ADMIN_READ].in_flight == 4)
        yield server.unary("Read")
        blocking.released.set()
        for call in calls:
            assert call.result() == text()


def test_slow_reads_of_one_admin_leave_workers_to_another() -> None:
    with busy_viewer(share=0.5) as read:
        assert read(text("other"), metadata=EDITOR_TOKEN, timeout=TIMEOUT_S) == text("other")


def test_twin_without_a_share_of_the_workers_another_admin_waits() -> None:
    with busy_viewer(share=1.0) as read:
        late = read.future(text("other"), metadata=EDITOR_TOKEN, timeout=0.3)
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def held_streams(server: Server, address: str, count: int, stack: ExitStack) -> list[Any]:
    """Open streams from an address, which send one message and no more."""
    target = stack.enter_context(seen_from(address, int(server.target.rpartition(":")[2])))
    crowd = stack.enter_context(HalfOpen(replace(server, target=target)))
    return crowd.open(count, method="Stream", first=(b"",))


@contextmanager
def held_by_two_addresses(*, is_preemptive: bool) -> Iterator[tuple[Server, list[Any]]]:
    """Four workers, two occupied by the streams of each of two addresses."""
    size = PoolSize(workers=4, queue=4, share=0.5, is_preemptive=is_preemptive)
    serving = serve({"Stream": (stream(echo_stream), STREAM)}, sizes={STREAM.pool: size}, stream_timeout=ENDLESS)
    with serving as server, ExitStack() as stack:
        held = [call for address in ("127.0.1.1", "127.0.1.2") for call in held_streams(server, address, 2, stack)]
        assert eventually(lambda: server.pools[STREAM.pool].in_flight == 4)
        yield server, held


def test_an_open_stream_of_the_address_with_most_ends_for_another() -> None:
    with held_by_two_addresses(is_preemptive=True) as (server, held):
        assert list(server.stream("Stream")(iter([text()]), timeout=TIMEOUT_S)) == [text()]
        assert eventually(lambda: any(call.done() for call in held))
        (ended,) = [call for call in held if call.done()]

    words = "this address has the most open bulk calls, and others wait; retry later"
    assert refusal(ended) == (grpc.StatusCode.RESOURCE_EXHAUSTED, words, 1.0)
    assert server.pools[STREAM.pool].refused[Refusal.SHARE] == 1


def test_twin_without_preemption_held_streams_keep_another_waiting() -> None:
    with held_by_two_addresses(is_preemptive=False) as (server, _held), pytest.raises(grpc.RpcError, match="Exceeded"):
        list(server.stream("Stream")(iter([text()]), timeout=0.5))


# --- Authentication on arrival ----------------------------------------------------------------------------------------


def test_a_full_pool_refuses_a_call_without_a_token_for_that_reason() -> None:
    blocking = Blocking()
    sizes = {READ.pool: PoolSize(workers=1, queue=0)}
    with serve({"Block": (unary(blocking), READ)}, sizes=sizes) as server, HalfOpen(server) as crowd:
        running = server.unary("Block").future(text(), metadata=VIEWER_TOKEN)
        assert blocking.entered.acquire(timeout=TIMEOUT_S)

        unknown = crowd.open(20, method="Block")
        assert {call.exception(timeout=TIMEOUT_S).code() for call in unknown} == {grpc.StatusCode.UNAUTHENTICATED}
        assert server.pools[READ.pool].refused[Refusal.UNAUTHENTICATED] == 20

        blocking.released.set()
        assert running.result() == text()


def test_a_role_that_does_not_suffice_is_refused_before_the_message() -> None:
    manage = replace(READ, access=Role.ADMIN)
    with serve({"Block": (unary(Blocking()), manage)}) as server, HalfOpen(server) as crowd:
        (call,) = crowd.open(1, method="Block", metadata=VIEWER_TOKEN)
        assert call.exception(timeout=TIMEOUT_S).code() is grpc.StatusCode.PERMISSION_DENIED
