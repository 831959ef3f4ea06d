"""The logic of logging in: one answer and one amount of work for every failure."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gatekeeper_grpc.auth.lockout import Account
from gatekeeper_grpc.auth.sessions import Sessions
from gatekeeper_grpc.auth.tokens import Token
from gatekeeper_grpc.domain.admin_user import Credentials, Exchange, Exchanged
from gatekeeper_grpc.domain.caller import Caller, Role
from gatekeeper_grpc.domain.errors import FailedPrecondition, ResourceExhausted, Unauthenticated, Unavailable

pytestmark = pytest.mark.promise("D4", "D7")

NOW = datetime(2026, 11, 23, 7, 0, tzinfo=UTC)
CALLER = Caller(admin_id=7, username="ada", role=Role.EDITOR, token_epoch=3)
PEER = "ipv4:127.0.0.1:1"


class World:
    """Everything that a login needs: one admin user, and a list of what was done."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []
        self.refusing = False
        self.hash = "hash of right"
        self.outdated = False
        self.nonce = b""
        self.must_change = False
        self.costs: list[int] = []

    def credentials(self, username: str) -> Credentials:
        is_ada = username == "ada"
        return Credentials(admin_id=7 if is_ada else None, password_hash=self.hash if is_ada else None, highest_cost=13)

    def verify(self, password: str, password_hash: str | None, *, highest_cost: int = 10) -> bool:
        self.done.append(("verify", password_hash))
        self.costs.append(highest_cost)
        return password_hash in (f"hash of {password}", f"newer hash of {password}")

    def is_outdated(self, password_hash: str) -> bool:
        return self.outdated and not password_hash.startswith("newer")

    def rehash(self, password: str) -> str:
        return f"newer hash of {password}"

    def issue(self, caller: Caller) -> Token:
        return Token(text=f"access of {caller.username}", expire_time=NOW)

    def begin(
        self,
        username: str,
        *,
        password_hash: str,
        new_hash: str | None,
        refresh_token: str,
        expire_time: datetime,
        peer: str,
        address: str,
        to_change_password: bool,
    ) -> Caller:
        if password_hash != self.hash:
            raise Unauthenticated.credentials()
        if self.must_change and not to_change_password:
            raise FailedPrecondition.password_change_required(username)
        self.done.append(("begin", username, password_hash, new_hash, refresh_token, expire_time, peer, address))
        return CALLER

    def redeem(self, exchange: Exchange, *, peer: str, is_awaited: Callable[[], bool]) -> Exchanged:
        assert is_awaited()
        spent = (exchange.token, exchange.successor, exchange.expire_time, exchange.address)
        self.done.append(("redeem", *spent, peer))
        return Exchanged(caller=CALLER, nonce=self.nonce or exchange.nonce, expire_time=exchange.expire_time)

    def revoke(self, refresh_token: str, *, peer: str) -> None:
        self.done.append(("revoke", refresh_token, peer))

    def record_failure(self, username: str, *, peer: str, locked_out: bool) -> None:
        self.done.append(("failure", username, peer, locked_out))

    def admit(self, _account: Account, _peer: str) -> None:
        if self.refusing:
            raise ResourceExhausted("wait", retry_after_s=7)

    def failed(self, account: Account, peer: str) -> bool:
        self.done.append(("failed", account, peer))
        return True

    def succeeded(self, account: Account, peer: str) -> None:
        self.done.append(("succeeded", account, peer))


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def sessions(world: Any) -> Sessions:
    return Sessions(world, world, world, world, refresh_ttl=timedelta(days=1), clock=lambda: NOW)


def test_right_password_begins_a_login_against_the_hash_that_was_checked(sessions: Sessions, world: World) -> None:
    issued = sessions.log_in("ada", "right", peer=PEER)

    tomorrow = NOW + timedelta(days=1)
    begun = ("begin", "ada", "hash of right", None, issued.refresh.text, tomorrow, PEER, "127.0.0.1")
    assert world.done == [("verify", "hash of right"), begun, ("succeeded", 7, PEER)]
    assert (issued.access.text, issued.refresh.expire_time, issued.role) == ("access of ada", tomorrow, Role.EDITOR)


@pytest.mark.parametrize(
    ("username", "password", "checked"),
    [
        pytest.param("ada", "wrong", "hash of right", id="wrong password"),
        pytest.param("eve", "right", None, id="unknown user"),
        pytest.param("a" * 10_000, "right", None, id="absurd name"),
    ],
)
def test_every_failed_login_checks_once_records_once_and_says_the_same(
    sessions: Sessions, world: World, username: str, password: str, checked: str | None
) -> None:
    with pytest.raises(Unauthenticated, match=r"^these credentials are not valid$"):
        sessions.log_in(username, password, peer=PEER)

    account = 7 if username == "ada" else username
    assert world.done == [("verify", checked), ("failed", account, PEER), ("failure", username, PEER, True)]
    assert world.costs == [13]


def test_outdated_hash_is_replaced_when_its_password_is_known(sessions: Sessions, world: World) -> None:
    world.outdated = True

    sessions.log_in("ada", "right", peer=PEER)

    assert [done[3] for done in world.done if done[0] == "begin"] == ["newer hash of right"]


def test_login_succeeds_though_another_one_replaced_the_hash_in_between(
    sessions: Sessions, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = world.credentials("ada")
    answers = iter([found, replace(found, password_hash="newer hash of right")])
    monkeypatch.setattr(world, "credentials", lambda _username: next(answers))
    world.hash, world.outdated = "newer hash of right", True

    assert sessions.log_in("ada", "right", peer=PEER).role is Role.EDITOR


def test_login_is_refused_if_the_password_was_changed_during_its_check(
    sessions: Sessions, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = world.credentials("ada")
    answers = iter([found, replace(found, password_hash="hash of another")])
    monkeypatch.setattr(world, "credentials", lambda _username: next(answers))
    world.hash = "hash of another"

    with pytest.raises(Unauthenticated):
        sessions.log_in("ada", "right", peer=PEER)


@pytest.mark.parametrize("username", ["ada", "eve"])
def test_try_that_has_to_wait_costs_no_password_check_and_no_record(
    sessions: Sessions, world: World, username: str
) -> None:
    world.refusing = True

    with pytest.raises(ResourceExhausted):
        sessions.log_in(username, "right", peer=PEER)

    assert world.done == []


def test_a_password_that_must_be_changed_begins_only_a_session_of_a_minute(sessions: Sessions, world: World) -> None:
    world.must_change = True

    with pytest.raises(FailedPrecondition):
        sessions.log_in("ada", "right", peer=PEER)
    assert sessions.begin_password_change("ada", "right", peer=PEER) == CALLER

    assert [done[5] for done in world.done if done[0] == "begin"] == [NOW + timedelta(minutes=1)]


def test_refresh_exchanges_a_token_for_another(sessions: Sessions, world: World) -> None:
    issued = sessions.refresh("spent", peer=PEER)

    assert world.done == [("redeem", "spent", issued.refresh.text, NOW + timedelta(days=1), "127.0.0.1", PEER)]
    assert issued.access.text == "access of ada"


def test_a_repeated_exchange_gives_the_successor_of_the_first(sessions: Sessions, world: World) -> None:
    world.nonce = b"of the first exchange"

    first, second = (sessions.refresh("spent").refresh.text for _ in range(2))

    assert first == second
    assert sessions.refresh("another").refresh.text != first


def test_logout_revokes(sessions: Sessions, world: World) -> None:
    sessions.log_out("mine", peer=PEER)

    assert world.done == [("revoke", "mine", PEER)]


def test_refresh_tokens_are_256_random_bits(sessions: Sessions) -> None:
    issued = [sessions.refresh("spent").refresh.text for _ in range(100)]

    assert len(set(issued)) == 100
    assert {len(token) for token in issued} == {43}


def test_what_was_issued_does_not_show_its_tokens(sessions: Sessions) -> None:
    issued = sessions.log_in("ada", "right")

    assert issued.refresh.text not in repr(issued)
    assert issued.access.text not in repr(issued)


def test_an_outage_gives_no_hint_whether_a_password_is_right(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_args: object, **_kwargs: object) -> None:
        raise Unavailable("the database is not reachable")

    monkeypatch.setattr(world, "credentials", away)
    for password in ("right", "wrong"):
        with pytest.raises(Unavailable):
            Sessions(world, world, world, world).log_in("ada", password)
    assert world.done == []
