"""The logic of logging in: one answer and one amount of work for every failure."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gatekeeper_grpc.auth.sessions import Sessions
from gatekeeper_grpc.auth.tokens import Token
from gatekeeper_grpc.domain.caller import Caller, Role
from gatekeeper_grpc.domain.errors import ResourceExhausted, Unauthenticated, Unavailable

pytestmark = pytest.mark.promise("D4", "D7")

NOW = datetime(2026, 11, 23, 7, 0, tzinfo=UTC)
CALLER = Caller(admin_id=7, username="ada", role=Role.EDITOR, token_epoch=3)
PEER = "ipv4:127.0.0.1:1"


class World:
    """Everything that a login needs: one admin user, and a list of what was done."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []
        self.refusing = False

    def password_hash(self, username: str) -> str | None:
        return "hash of right" if username == "ada" else None

    def verify(self, password: str, password_hash: str | None) -> bool:
        self.done.append(("verify", password_hash))
        return password_hash == f"hash of {password}"

    def issue(self, caller: Caller) -> Token:
        return Token(text=f"access of {caller.username}", expire_time=NOW)

    def begin(
        self, username: str, *, password_hash: str, refresh_token: str, expire_time: datetime, peer: str
    ) -> Caller:
        self.done.append(("begin", username, password_hash, refresh_token, expire_time, peer))
        return CALLER

    def redeem(self, refresh_token: str, *, successor: str, expire_time: datetime, peer: str) -> Caller:
        self.done.append(("redeem", refresh_token, successor, expire_time, peer))
        return CALLER

    def revoke(self, refresh_token: str, *, peer: str) -> None:
        self.done.append(("revoke", refresh_token, peer))

    def record_failure(self, username: str, *, peer: str, locked_out: bool) -> None:
        self.done.append(("failure", username, peer, locked_out))

    def admit(self, _username: str, _peer: str) -> None:
        if self.refusing:
            raise ResourceExhausted("wait", retry_after_s=7)

    def failed(self, username: str, peer: str) -> bool:
        self.done.append(("failed", username, peer))
        return True

    def succeeded(self, username: str, peer: str) -> None:
        self.done.append(("succeeded", username, peer))


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def sessions(world: Any) -> Sessions:
    return Sessions(world, world, world, world, refresh_ttl=timedelta(days=1), clock=lambda: NOW)


def test_right_password_begins_a_login_against_the_hash_that_was_checked(sessions: Sessions, world: World) -> None:
    issued = sessions.log_in("ada", "right", peer=PEER)

    tomorrow = NOW + timedelta(days=1)
    begun = ("begin", "ada", "hash of right", issued.refresh.text, tomorrow, PEER)
    assert world.done == [("verify", "hash of right"), begun, ("succeeded", "ada", PEER)]
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

    assert world.done == [("verify", checked), ("failed", username, PEER), ("failure", username, PEER, True)]


@pytest.mark.parametrize("username", ["ada", "eve"])
def test_try_that_has_to_wait_costs_no_password_check_and_no_record(
    sessions: Sessions, world: World, username: str
) -> None:
    world.refusing = True

    with pytest.raises(ResourceExhausted):
        sessions.log_in(username, "right", peer=PEER)

    assert world.done == []


def test_refresh_exchanges_a_token_for_another(sessions: Sessions, world: World) -> None:
    issued = sessions.refresh("spent", peer=PEER)

    assert world.done == [("redeem", "spent", issued.refresh.text, NOW + timedelta(days=1), PEER)]
    assert issued.access.text == "access of ada"


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

    monkeypatch.setattr(world, "password_hash", away)
    for password in ("right", "wrong"):
        with pytest.raises(Unavailable):
            Sessions(world, world, world, world).log_in("ada", password)
    assert world.done == []
