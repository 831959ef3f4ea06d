"""Limits of evaluation, as clients meet them: by key, by address, through proxies, of bulk streams and watchers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from gatekeeper_client.signing import ClientKey, SignedChannel
from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1 import client_key_pb2 as pb_client_key
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.auth_service_pb2 import LoginRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_client.v1.client_key_pb2 import RATE_TIER_HIGH, RATE_TIER_STANDARD, RATE_TIER_UNLIMITED, RateTier
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import (
    BulkEvaluateFlagsRequest,
    EvaluateFlagsRequest,
    WatchFlagsRequest,
)
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.transport.admission import PoolName
from gatekeeper_grpc.transport.admission import Refusal as Reason
from tests.support.addresses import seen_from
from tests.support.clients import TIMEOUT_S, Refusal, refusal_of
from tests.support.servers import StartServer, connect, token_for
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("answering")

# So slow that no call becomes free while a test runs.
THREE = "1/min burst 3"
ANNA = EvaluateFlagsRequest(context=EvaluationContext(user_id="anna"))
ELSEWHERE = "203.0.113.7"
LOOPBACK = "127.0.0.0/8"
PROXY, STRANGER = "127.0.1.1", "127.0.2.1"
"""Two addresses of loopback."""


def limited(limit: str) -> Refusal:
    """What a client receives that has called too often."""
    return Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", {"limit": limit, "rate": THREE})


def forwarded(address: str) -> tuple[tuple[str, str], ...]:
    """What a proxy sends that calls for an address."""
    return (("x-forwarded-for", address),)


def passed(act: Callable[[], object], calls: int) -> int:
    """Make calls until one is refused; count those that pass, at most `calls`."""
    for number in range(calls):
        try:
            act()
        except grpc.RpcError:
            return number
    return calls


@pytest.fixture
def token(dsn: str) -> str:
    return token_for(dsn, Role.ADMIN)


def new_key(server: GatekeeperServer, token: str, tier: RateTier.ValueType) -> ClientKey:
    key = pb_client_key.ClientKey(name="till", tier=tier, type=pb_client_key.CLIENT_KEY_TYPE_SIGNING)
    with connect(server, token=token) as channel:
        request = pb.CreateClientKeyRequest(client_key=key)
        created = AdminServiceStub(channel).CreateClientKey(request, timeout=TIMEOUT_S)
        return ClientKey(created.client_key.key_id, created.secret)


@contextmanager
def evaluation_with(server: GatekeeperServer, key: ClientKey) -> Iterator[Callable[[], object]]:
    """Evaluate with a client key."""
    with SignedChannel(connect(server), key, authority=f"127.0.0.1:{server.port}") as channel:
        evaluate = EvaluationServiceStub(channel).EvaluateFlags
        yield lambda: evaluate(ANNA, timeout=TIMEOUT_S)


@contextmanager
def evaluation_at(server: GatekeeperServer, address: str, *, forwarded_for: str = "") -> Iterator[Callable[[], object]]:
    """Evaluate from an address, perhaps as a proxy that names its client."""
    metadata = forwarded(forwarded_for) if forwarded_for else ()
    with seen_from(address, server.port) as target, grpc.insecure_channel(target) as channel:
        evaluate = EvaluationServiceStub(channel).EvaluateFlags
        yield lambda: evaluate(ANNA, metadata=metadata, timeout=TIMEOUT_S)


@pytest.mark.parametrize(("tier", "limit"), [(RATE_TIER_STANDARD, "standard_tier"), (RATE_TIER_HIGH, "high_tier")])
def test_the_tier_of_a_key_limits_its_holder(
    tier: RateTier.ValueType, limit: str, start_server: StartServer, token: str
) -> None:
    server = start_server(evaluation_access="signed", standard_tier_rate=THREE, high_tier_rate=THREE)
    with evaluation_with(server, new_key(server, token, tier)) as evaluate:
        assert passed(evaluate, 10) == 3
        assert refusal_of(evaluate) == limited(limit)
    assert server.pools[PoolName.EVALUATION].refused[Reason.RATE_LIMITED] == 2


def test_a_key_of_the_tier_without_limit_has_none(start_server: StartServer, token: str) -> None:
    server = start_server(evaluation_access="signed", standard_tier_rate=THREE, high_tier_rate=THREE)
    with evaluation_with(server, new_key(server, token, RATE_TIER_UNLIMITED)) as evaluate:
        assert passed(evaluate, 10) == 10


def test_a_key_that_is_not_required_has_no_limit(start_server: StartServer, token: str) -> None:
    """Its holder could leave it out."""
    server = start_server(standard_tier_rate=THREE)
    with evaluation_with(server, new_key(server, token, RATE_TIER_STANDARD)) as evaluate:
        assert passed(evaluate, 10) == 10


def test_keys_have_budgets_of_their_own(start_server: StartServer, token: str) -> None:
    server = start_server(evaluation_access="signed", standard_tier_rate=THREE)
    one, other = (new_key(server, token, RATE_TIER_STANDARD) for _ in range(2))
    with evaluation_with(server, one) as evaluate:
        passed(evaluate, 10)
    with evaluation_with(server, other) as evaluate:
        assert passed(evaluate, 10) == 3


def test_an_address_is_not_limited_unless_the_operator_says_so(start_server: StartServer) -> None:
    server = start_server(trusted_cidrs=LOOPBACK)
    with evaluation_at(server, PROXY, forwarded_for=ELSEWHERE) as evaluate:
        assert passed(evaluate, 10) == 10


def test_an_address_that_a_trusted_proxy_names_is_limited(start_server: StartServer) -> None:
    server = start_server(address_rate=THREE, trusted_cidrs=LOOPBACK)
    with evaluation_at(server, PROXY, forwarded_for=ELSEWHERE) as evaluate:
        assert passed(evaluate, 10) == 3
        assert refusal_of(evaluate) == limited("address")
    with evaluation_at(server, PROXY, forwarded_for="203.0.113.8") as evaluate:
        assert passed(evaluate, 10) == 3


def test_an_ipv6_address_counts_by_its_64(start_server: StartServer) -> None:
    server = start_server(address_rate=THREE, trusted_cidrs=LOOPBACK)
    with (
        evaluation_at(server, PROXY, forwarded_for="2001:db8:0:1::1") as one,
        evaluation_at(server, PROXY, forwarded_for="2001:db8:0:1:ffff::2") as neighbour,
        evaluation_at(server, PROXY, forwarded_for="2001:db8:0:2::1") as other,
    ):
        assert passed(one, 2) == 2
        assert passed(neighbour, 10) == 1
        assert passed(other, 10) == 3


def test_loopback_and_trusted_networks_have_no_limit_of_addresses(start_server: StartServer) -> None:
    local = start_server(address_rate=THREE)
    with evaluation_at(local, STRANGER) as evaluate:
        assert passed(evaluate, 10) == 10
    proxies = start_server(address_rate=THREE, trusted_cidrs=f"{LOOPBACK},203.0.113.0/24")
    with evaluation_at(proxies, PROXY, forwarded_for=ELSEWHERE) as evaluate:
        assert passed(evaluate, 10) == 10


def test_what_a_stranger_says_of_itself_is_not_believed(start_server: StartServer) -> None:
    """Otherwise a client could call from a new address each time, and use up the budget of any other."""
    server = start_server(address_rate=THREE, trusted_cidrs=f"{PROXY}/32,{STRANGER}/32", login_rate=THREE)
    with seen_from("127.0.3.1", server.port) as target, grpc.insecure_channel(target) as channel:
        login = AuthServiceStub(channel).Login

        def log_in_as_from(address: str) -> str:
            request = LoginRequest(username="anna", password="wrong")
            return refusal_of(lambda: login(request, metadata=forwarded(address), timeout=TIMEOUT_S)).reason

        assert [log_in_as_from(f"203.0.113.{number}") for number in range(4)][3] == "RATE_LIMITED"


def test_failed_logins_count_for_the_client_of_a_proxy(start_server: StartServer, dsn: str) -> None:
    """The whole of decision 0007 holds behind a trusted proxy: an attacker does not lock out its neighbours."""
    server = start_server(trusted_cidrs=LOOPBACK)
    with seen_from(PROXY, server.port) as target, grpc.insecure_channel(target) as channel:
        login = AuthServiceStub(channel).Login

        def wrong(address: str) -> str:
            request = LoginRequest(username="anna", password="wrong")
            return refusal_of(lambda: login(request, metadata=forwarded(address), timeout=TIMEOUT_S)).reason

        assert [wrong("203.0.113.7") for _ in range(4)][3] == "RESOURCE_EXHAUSTED"
        assert wrong("203.0.113.8") == "UNAUTHENTICATED"
    with connect(server, token=token_for(dsn, Role.ADMIN)) as channel:
        events = AdminServiceStub(channel).ListAuthEvents(pb.ListAuthEventsRequest(), timeout=TIMEOUT_S).auth_events
    assert {event.peer for event in events if event.peer} == {"ipv4:203.0.113.7:0", "ipv4:203.0.113.8:0"}


def bulk(contexts: int, *, messages: int = 1) -> Iterator[BulkEvaluateFlagsRequest]:
    for _ in range(messages):
        yield BulkEvaluateFlagsRequest(
            contexts=[EvaluationContext(user_id=f"user-{number}") for number in range(contexts)]
        )


def test_a_bulk_stream_counts_once_for_each_thousand_contexts(start_server: StartServer) -> None:
    server = start_server(address_rate=THREE, trusted_cidrs=LOOPBACK)
    with _bulk_at(server, "203.0.113.7") as evaluate:
        evaluate(bulk(500, messages=6))  # 3,000 contexts.
        assert refusal_of(lambda: evaluate(bulk(1))) == limited("address")
    with _bulk_at(server, "203.0.113.8") as evaluate:
        assert passed(lambda: evaluate(bulk(1)), 10) == 3


def test_a_bulk_stream_above_the_limit_ends_with_what_was_answered(start_server: StartServer) -> None:
    server = start_server(address_rate=THREE, trusted_cidrs=LOOPBACK)
    with _bulk_at(server, ELSEWHERE) as evaluate:
        answered: list[Any] = []
        refusal = refusal_of(lambda: evaluate(bulk(1_000, messages=5), answered))

    assert refusal == limited("address")
    assert sum(len(message.batch.results) for message in answered) == 3_000


@contextmanager
def _bulk_at(server: GatekeeperServer, client: str) -> Iterator[Callable[..., None]]:
    metadata = forwarded(client)
    with seen_from(PROXY, server.port) as target, grpc.insecure_channel(target) as channel:
        stub = EvaluationServiceStub(channel)

        def evaluate(requests: Iterator[BulkEvaluateFlagsRequest], answered: list[Any] | None = None) -> None:
            for message in stub.BulkEvaluateFlags(requests, metadata=metadata, timeout=TIMEOUT_S):
                (answered if answered is not None else []).append(message)

        yield evaluate


def test_watchers_of_an_address_are_capped_if_the_operator_says_so(start_server: StartServer) -> None:
    server = start_server(max_watchers_per_address=2, trusted_cidrs=LOOPBACK)
    with seen_from(PROXY, server.port) as target, grpc.insecure_channel(target) as channel:
        stub = EvaluationServiceStub(channel)

        def watch(address: str) -> Any:
            call = stub.WatchFlags(WatchFlagsRequest(), metadata=forwarded(address), timeout=TIMEOUT_S)
            next(call)
            return call

        first, second = watch("203.0.113.7"), watch("203.0.113.7")
        assert refusal_of(lambda: watch("203.0.113.7")) == Refusal(
            grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_WATCHERS", {"limit": "2"}
        )
        watch("203.0.113.8")
        first.cancel()

        assert eventually(lambda: passed(lambda: watch("203.0.113.7"), 1) == 1)
        assert second.is_active()
    assert server.pools[PoolName.WATCH].refused[Reason.STREAMS] >= 1


def test_twin_without_the_cap_an_address_watches_as_often_as_it_likes(start_server: StartServer) -> None:
    server = start_server(trusted_cidrs=LOOPBACK)
    with connect(server) as channel:
        calls = [EvaluationServiceStub(channel).WatchFlags(WatchFlagsRequest(), timeout=TIMEOUT_S) for _ in range(5)]
        assert [next(call).revision for call in calls] == [0] * 5
