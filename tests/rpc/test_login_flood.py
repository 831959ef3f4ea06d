"""Logins while others flood the server with logins: from many addresses, and from one. Twins show the harm."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import psycopg
import pytest

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.auth_service_pb2 import LoginRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_grpc.auth.lockout import LoginGuard
from gatekeeper_grpc.auth.passwords import MIN_COST, Passwords
from gatekeeper_grpc.interceptors.login_checks import LoginChecks
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.transport.admission import DEFAULT_SIZES, PoolName, Refusal
from tests.support.addresses import seen_from
from tests.support.servers import StartServer, access_token, connect
from tests.support.waiting import TIMEOUT_S, eventually

pytestmark = pytest.mark.promise("C3", "D4")

PASSWORD = "canary-password-of-anna"
ATTACKERS = [f"127.0.1.{number}" for number in range(1, 14)]
SLOTS = DEFAULT_SIZES[PoolName.LOGIN].slots
KEPT = DEFAULT_SIZES[PoolName.LOGIN].kept


@dataclass(frozen=True, kw_only=True)
class Logins:
    """A server with one admin user, anna, whose password checks a test can stop."""

    server: GatekeeperServer
    stack: ExitStack

    def log_in_from(self, address: str, *, password: str = "wrong", username: str = "anna") -> Any:
        """Start a login from an address of its own."""
        target = self.stack.enter_context(seen_from(address, self.server.port))
        stub = AuthServiceStub(self.stack.enter_context(grpc.insecure_channel(target)))
        return stub.Login.future(LoginRequest(username=username, password=password), timeout=TIMEOUT_S)

    def fail_from(self, address: str, *, username: str = "anna") -> None:
        assert self.log_in_from(address, username=username).code() is grpc.StatusCode.UNAUTHENTICATED

    def in_flight(self) -> int:
        return self.server.pools[PoolName.LOGIN].in_flight

    def refused(self, reason: Refusal) -> int:
        return self.server.pools[PoolName.LOGIN].refused[reason]

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Let no password check end within the block."""
        with self.server._passwords._turn:
            yield


@pytest.fixture
def logins(start_server: StartServer, dsn: str) -> Iterator[Logins]:
    with psycopg.connect(dsn) as conn:
        conn.execute(
            "INSERT INTO admin_user (username, password_hash, role, create_time, update_time)"
            " VALUES ('anna', %s, 'admin', now(), now())",
            [Passwords(cost=MIN_COST).hash(PASSWORD)],
        )
    with ExitStack() as stack:
        yield Logins(server=start_server(), stack=stack)


def flood(logins: Logins, attackers: list[str], *, each: int) -> list[Any]:
    """Fill all slots that the attackers can have with logins that wait."""
    calls = [logins.log_in_from(address) for _ in range(each) for address in attackers]
    assert eventually(
        lambda: logins.in_flight() + logins.refused(Refusal.FULL) + logins.refused(Refusal.SHARE) == len(calls)
    )
    assert logins.in_flight() == SLOTS - KEPT
    return calls


def test_logins_of_those_who_failed_keep_nobody_out_who_did_not(logins: Logins) -> None:
    for address in ATTACKERS:
        logins.fail_from(address, username=f"nobody at {address}")
    with logins.stopped():
        flood(logins, ATTACKERS, each=1)
        victim = logins.log_in_from("127.0.2.1", password=PASSWORD)
        assert eventually(lambda: victim.done() or logins.refused(Refusal.FULL) == len(ATTACKERS) + 1 - (SLOTS - KEPT))
        assert not victim.done()

    assert victim.result().access_token


def test_twin_if_failures_do_not_count_the_flood_keeps_the_victim_out(
    logins: Logins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoginGuard, "has_failed", lambda _self, _peer: False)
    for address in ATTACKERS:
        logins.fail_from(address, username=f"nobody at {address}")
    with logins.stopped():
        flood(logins, ATTACKERS, each=1)
        assert logins.log_in_from("127.0.2.1", password=PASSWORD).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_forty_logins_of_one_address_keep_no_other_address_waiting(logins: Logins) -> None:
    with logins.stopped():
        calls = flood(logins, ["127.0.1.1"], each=40)
        victim = logins.log_in_from("127.0.2.1", password=PASSWORD)
        assert eventually(lambda: logins.refused(Refusal.SHARE) == 40 + 1 - (SLOTS - KEPT))

    assert victim.result().access_token
    assert sum(not call.done() for call in calls) > 0, "the victim waited for all of them"


def test_slots_are_kept_for_an_address_whose_last_login_succeeded(logins: Logins) -> None:
    assert logins.log_in_from("127.0.2.1", password=PASSWORD).result().access_token
    with logins.stopped():
        flood(logins, ATTACKERS, each=1)
        newcomer = logins.log_in_from("127.0.2.2", password=PASSWORD)
        known = logins.log_in_from("127.0.2.1", password=PASSWORD)

        assert newcomer.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert eventually(lambda: logins.in_flight() == SLOTS - KEPT + 1)
    assert known.result().access_token


def exhaust_tries(logins: Logins, address: str) -> None:
    for number in range(30):
        logins.server.login_guard.failed(f"nobody-{number}", f"ipv4:{address}:1")


def slots_of_a_login_that_has_to_wait(logins: Logins) -> int:
    """Try from an address that has to wait, while nothing is served; return how many slots it takes."""
    exhaust_tries(logins, "127.0.1.1")
    with logins.stopped():
        late = logins.log_in_from("127.0.1.1")
        assert eventually(lambda: late.done() or logins.in_flight() == 1)
        slots = logins.in_flight()
    assert late.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    return slots


def test_a_login_that_has_to_wait_takes_no_slot(logins: Logins) -> None:
    assert slots_of_a_login_that_has_to_wait(logins) == 0
    assert logins.refused(Refusal.LOCKED_OUT) == 1


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the guard to the workers."""
    monkeypatch.setattr(LoginChecks, "by_method", lambda _self: {})


@pytest.mark.usefixtures("unchecked")
def test_twin_a_guard_behind_the_queue_lets_it_take_a_slot(logins: Logins) -> None:
    with logins.stopped():
        flood(logins, ["127.0.2.1"], each=SLOTS - KEPT)
        exhaust_tries(logins, "127.0.1.1")
        late = logins.log_in_from("127.0.1.1")
        assert eventually(lambda: logins.refused(Refusal.SHARE) == 1)  # It took the slot of another.
    assert late.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_change_of_password_that_has_to_wait_takes_no_slot(logins: Logins, dsn: str) -> None:
    exhaust_tries(logins, "127.0.0.1")
    channel = logins.stack.enter_context(connect(logins.server, token=access_token(dsn, "anna")))
    request = pb.ChangePasswordRequest(current_password=PASSWORD, new_password="another-long-password")
    with logins.stopped():
        change = AdminServiceStub(channel).ChangePassword.future(request, timeout=TIMEOUT_S)
        assert change.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert logins.server.pools[PoolName.OWN_PASSWORD].refused[Refusal.LOCKED_OUT] == 1
