"""Logins while others flood the server with logins: from many addresses, and from one. Twins show the harm."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Event
from typing import Any

import grpc
import psycopg
import pytest

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.auth_service_pb2 import LoginRequest, RefreshTokenRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_grpc.auth.passwords import MIN_COST, Passwords
from gatekeeper_grpc.domain.admin_user import Exchange, Exchanged
from gatekeeper_grpc.interceptors.login_checks import LoginChecks
from gatekeeper_grpc.lifecycle import limits
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.store.logins import LoginStore
from gatekeeper_grpc.transport import login_slots
from gatekeeper_grpc.transport.admission import DEFAULT_SIZES, PoolName, Refusal
from gatekeeper_grpc.transport.grpcio_internals import ArrivedCall
from gatekeeper_grpc.transport.shares import PoolSize
from tests.support.addresses import seen_from
from tests.support.servers import StartServer, access_token, connect
from tests.support.waiting import TIMEOUT_S, eventually

pytestmark = pytest.mark.promise("C3", "D4")

PASSWORD = "canary-password-of-anna"
SIZE = PoolSize(workers=1, queue=16, kept=4)
"""Of the pool of logins here."""
ROOM = SIZE.slots - SIZE.kept
"""That strangers can have, with the one whose password is being checked."""
NEIGHBOURS = [f"127.0.1.{number}" for number in range(1, ROOM + 2)]
NETWORKS = [f"127.1.{number}.1" for number in range(1, ROOM + 2)]
FLOODS = [
    pytest.param(["127.0.1.1"], 40, id="of one address"),
    pytest.param(NEIGHBOURS, 1, id="of one network"),
    pytest.param(NETWORKS, 1, id="of many networks"),
]


@dataclass(frozen=True, kw_only=True)
class Logins:
    """A server with one admin user, anna, whose password checks a test can stop."""

    server: GatekeeperServer
    stack: ExitStack

    def log_in_from(self, address: str, *, password: str = "wrong", username: str = "anna") -> Any:
        """Start a login from an address of its own."""
        request = LoginRequest(username=username, password=password)
        return AuthServiceStub(self.channel_from(address)).Login.future(request, timeout=TIMEOUT_S)

    def channel_from(self, address: str) -> grpc.Channel:
        target = self.stack.enter_context(seen_from(address, self.server.port))
        return self.stack.enter_context(grpc.insecure_channel(target))

    def in_flight(self) -> int:
        return self.server.pools[PoolName.LOGIN].in_flight

    def running(self) -> int:
        return self.server.pools[PoolName.LOGIN]._slots.running

    def refused(self, reason: Refusal) -> int:
        return self.server.pools[PoolName.LOGIN].refused[reason]

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Let no password check end within the block."""
        with self.server._passwords._turn:
            yield


@pytest.fixture
def sizes() -> dict[PoolName, PoolSize]:
    """Of the pools of the server."""
    return {**DEFAULT_SIZES, PoolName.LOGIN: SIZE}


@pytest.fixture
def logins(
    start_server: StartServer, dsn: str, sizes: dict[PoolName, PoolSize], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Logins]:
    with psycopg.connect(dsn) as conn:
        conn.execute(
            "INSERT INTO admin_user (username, password_hash, role, create_time, update_time)"
            " VALUES ('anna', %s, 'admin', now(), now())",
            [Passwords(cost=MIN_COST).hash(PASSWORD)],
        )
    monkeypatch.setattr(limits, "DEFAULT_SIZES", sizes)
    with ExitStack() as stack:
        yield Logins(server=start_server(), stack=stack)


@pytest.fixture
def first_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sabotage: the first login is served first, and an address may have the whole queue."""
    monkeypatch.setattr(login_slots, "bisect_left", lambda queue, *_standing, **_key: len(queue))
    monkeypatch.setattr(login_slots, "_count", lambda _queue, _owner: 0)


@pytest.fixture
def unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sabotage: no place is kept for anybody."""
    note = LoginChecks._note
    monkeypatch.setattr(LoginChecks, "_note", lambda checks, call, **_is_proven: note(checks, call, is_proven=False))


def flood(logins: Logins, attackers: list[str], *, each: int = 1) -> list[Any]:
    """Take all room that strangers can have with logins that wait."""
    calls = [logins.log_in_from(address) for _ in range(each) for address in attackers]
    assert eventually(
        lambda: logins.in_flight() + logins.refused(Refusal.FULL) + logins.refused(Refusal.SHARE) == len(calls)
    )
    # One address has half of the queue, and the check that is running.
    assert logins.in_flight() in (ROOM, 1 + (ROOM - 1) // 2)
    return calls


def checked_before(victim: Any, calls: list[Any]) -> int:
    """Wait until the victim is logged in; return how many passwords of the flood were checked by then."""
    assert victim.result().access_token
    return sum(call.done() and call.code() is grpc.StatusCode.UNAUTHENTICATED for call in calls)


def flooded_login(logins: Logins, attackers: list[str], *, each: int) -> tuple[Any, list[Any]]:
    """Let a newcomer log in while logins of the attackers fill the queue."""
    with logins.stopped():
        calls = flood(logins, attackers, each=each)
        victim = logins.log_in_from("127.0.2.1", password=PASSWORD)
        assert eventually(
            lambda: logins.in_flight() + logins.refused(Refusal.FULL) + logins.refused(Refusal.SHARE) == len(calls) + 1
        )
    return victim, calls


@pytest.mark.parametrize(("attackers", "each"), FLOODS)
def test_a_newcomer_waits_for_one_check_of_a_flood(logins: Logins, attackers: list[str], each: int) -> None:
    victim, calls = flooded_login(logins, attackers, each=each)

    # The one that was running, and the one that starts while the answer is under way.
    assert checked_before(victim, calls) <= 3


@pytest.mark.parametrize(("attackers", "each"), FLOODS)
@pytest.mark.usefixtures("first_come")
def test_twin_first_come_first_served_a_flood_keeps_it_out(logins: Logins, attackers: list[str], each: int) -> None:
    victim, _calls = flooded_login(logins, attackers, each=each)

    assert victim.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def login_before_newcomers(logins: Logins) -> tuple[Any, list[Any]]:
    """Log in from an address twice; the second time, more newcomers follow than there is room for."""
    assert logins.log_in_from("127.0.2.1", password=PASSWORD).result().access_token
    # What is known of an address is noted after its answer.
    assert eventually(lambda: logins.in_flight() == 0)
    with logins.stopped():
        running = logins.log_in_from("127.0.9.1")
        assert eventually(lambda: logins.running() == 1)
        known = logins.log_in_from("127.0.2.1", password=PASSWORD)
        assert eventually(lambda: logins.in_flight() == 2)
        newcomers = [logins.log_in_from(address) for address in NETWORKS]
        assert eventually(lambda: logins.in_flight() + logins.refused(Refusal.FULL) == len(newcomers) + 2)
    return known, [running, *newcomers]


def test_turns_are_kept_for_an_address_whose_last_login_succeeded(logins: Logins) -> None:
    known, newcomers = login_before_newcomers(logins)

    assert checked_before(known, newcomers) <= 3


@pytest.mark.usefixtures("unproven")
def test_twin_if_nothing_is_kept_newcomers_keep_it_out(logins: Logins) -> None:
    known, _newcomers = login_before_newcomers(logins)

    assert known.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


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
        other = logins.log_in_from("127.0.2.1")
        assert eventually(lambda: logins.in_flight() == 1)
        exhaust_tries(logins, "127.0.1.1")
        late = logins.log_in_from("127.0.1.1")
        assert eventually(lambda: logins.in_flight() == 2)
    assert other.code() is grpc.StatusCode.UNAUTHENTICATED
    assert late.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_change_of_password_that_has_to_wait_takes_no_slot(logins: Logins, dsn: str) -> None:
    exhaust_tries(logins, "127.0.0.1")
    channel = logins.stack.enter_context(connect(logins.server, token=access_token(dsn, "anna")))
    request = pb.ChangePasswordRequest(current_password=PASSWORD, new_password="another-long-password")
    with logins.stopped():
        change = AdminServiceStub(channel).ChangePassword.future(request, timeout=TIMEOUT_S)
        assert change.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert logins.server.pools[PoolName.OWN_PASSWORD].refused[Refusal.LOCKED_OUT] == 1


def change_during_a_flood(logins: Logins, token: str) -> Any:
    """Change the own password while strangers fill the queue for that, before and after it."""
    pool = logins.server.pools[PoolName.OWN_PASSWORD]
    room = DEFAULT_SIZES[PoolName.OWN_PASSWORD].slots
    channels = [logins.channel_from(f"127.1.{number}.1") for number in range(2 * room)]
    channels.insert(room, logins.stack.enter_context(connect(logins.server, token=token)))
    request = pb.ChangePasswordRequest(username="anna", current_password=PASSWORD, new_password="another-long-password")
    changes = []
    with logins.stopped():
        for number, channel in enumerate(channels, start=1):
            changes.append(AdminServiceStub(channel).ChangePassword.future(request, timeout=TIMEOUT_S))
            assert eventually(lambda: pool.in_flight + sum(pool.refused.values()) == number)  # noqa: B023 - called at once
    return changes[room]


def test_strangers_keep_no_one_with_a_token_from_changing_the_password(logins: Logins, dsn: str) -> None:
    assert change_during_a_flood(logins, access_token(dsn, "anna")).result().revision > 0


@pytest.mark.usefixtures("unproven")
def test_twin_if_a_token_counts_for_nothing_strangers_do(logins: Logins, dsn: str) -> None:
    change = change_during_a_flood(logins, access_token(dsn, "anna"))

    assert change.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def bytes_of_waiting_logins(logins: Logins) -> int:
    """Have a dozen logins wait with a password of a mebibyte each; return what they hold."""
    with logins.stopped():
        calls = [logins.log_in_from(address, password="p" * (1 << 20)) for address in NEIGHBOURS[:12]]
        assert eventually(lambda: logins.in_flight() == len(calls))
        held = logins.server.pools.pending.strangers.held_bytes
    assert {call.code() for call in calls} <= {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED}
    return held


def test_logins_wait_without_their_long_passwords(logins: Logins) -> None:
    assert bytes_of_waiting_logins(logins) == 0


def test_twin_each_waits_with_its_whole_password(logins: Logins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ArrivedCall, "replace_message", lambda _call, _message: None)

    assert bytes_of_waiting_logins(logins) > 10 << 20


@pytest.fixture
def short_queue(sizes: dict[PoolName, PoolSize]) -> None:
    """Sabotage: the queue of refreshes is short."""
    sizes[PoolName.REFRESH] = PoolSize(workers=2, queue=32)


def refresh_of_a_newcomer(logins: Logins, monkeypatch: pytest.MonkeyPatch) -> grpc.StatusCode:
    """Refresh while forty addresses have a refresh in flight each; return how it ends."""
    released, redeem = Event(), LoginStore.redeem

    def wait(store: LoginStore, exchange: Exchange, **rest: Any) -> Exchanged:
        assert released.wait(TIMEOUT_S)
        return redeem(store, exchange, **rest)

    monkeypatch.setattr(LoginStore, "redeem", wait)
    token = logins.log_in_from("127.0.2.1", password=PASSWORD).result().refresh_token
    pool, refreshes = logins.server.pools[PoolName.REFRESH], []
    for number in range(40):
        request = RefreshTokenRequest(refresh_token=f"unknown {number}")
        stub = AuthServiceStub(logins.channel_from(f"127.0.1.{number + 1}"))
        refreshes.append(stub.RefreshToken.future(request, timeout=TIMEOUT_S))
    assert eventually(lambda: pool.in_flight + sum(pool.refused.values()) == len(refreshes))
    stub = AuthServiceStub(logins.channel_from("127.0.2.1"))
    refresh = stub.RefreshToken.future(RefreshTokenRequest(refresh_token=token), timeout=TIMEOUT_S)
    assert eventually(lambda: pool.in_flight + sum(pool.refused.values()) == len(refreshes) + 1)
    released.set()
    return refresh.code()


def test_refreshes_of_forty_addresses_keep_nobody_out(logins: Logins, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refresh_of_a_newcomer(logins, monkeypatch) is grpc.StatusCode.OK


@pytest.mark.usefixtures("short_queue")
def test_twin_in_a_short_queue_they_do(logins: Logins, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refresh_of_a_newcomer(logins, monkeypatch) is grpc.StatusCode.RESOURCE_EXHAUSTED
