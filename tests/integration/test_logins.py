"""Logins against a real PostgreSQL: one winner per refresh token, dead families, a bounded record."""

import math
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any, LiteralString

import pytest

from gatekeeper_grpc.domain.admin_user import Credentials, Exchange, Exchanged
from gatekeeper_grpc.domain.caller import NO_SESSION, Caller, Role
from gatekeeper_grpc.domain.errors import InvalidArgument, Unauthenticated, Unavailable
from gatekeeper_grpc.store import logins as module
from gatekeeper_grpc.store.logins import LoginStore, Pruned, revoke_logins
from gatekeeper_grpc.store.postgres.database import Database

pytestmark = pytest.mark.promise("D3", "D7")

TIMEOUT_S = 60.0
HASH = "hash of ada's password"
PEER = "ipv4:127.0.0.1:1"
ADA = Caller(admin_id=1, username="ada", role=Role.EDITOR, token_epoch=1)


def in_a_month() -> datetime:
    return datetime.now(UTC) + timedelta(days=30)


class Access:
    """What a test does with logins, and what it looks up behind them."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.store = LoginStore(database)

    def run(self, query: LiteralString, **values: object) -> None:
        with self.database.write() as conn:
            conn.execute(query, values)

    def rows(self, query: LiteralString, **values: object) -> list[tuple[Any, ...]]:
        with self.database.read() as conn:
            return conn.execute(query, values).fetchall()

    def log_in(self, token: str) -> Caller:
        begun = self.store.begin("ada", password_hash=HASH, refresh_token=token, expire_time=in_a_month(), peer=PEER)
        return replace(begun, session_id=NO_SESSION)

    def redeem(self, token: str, successor: str) -> Caller:
        return replace(self.exchange(token, successor).caller, session_id=NO_SESSION)

    def exchange(
        self,
        token: str,
        successor: str,
        *,
        nonce: bytes = b"",
        arrived_at: float = math.inf,
        is_awaited: Callable[[], bool] = lambda: True,
    ) -> Exchanged:
        exchange = Exchange(
            token=token,
            successor=successor,
            nonce=nonce or successor.encode(),
            expire_time=in_a_month(),
            arrived_at=min(arrived_at, time.monotonic()),
        )
        return self.store.redeem(exchange, peer=PEER, is_awaited=is_awaited)

    def refuses(self, token: str) -> bool:
        try:
            self.redeem(token, f"successor of {token}")
        except Unauthenticated as refusal:
            return str(refusal) == "these credentials are not valid"
        return False

    def events(self) -> list[tuple[str, str, str]]:
        rows = self.rows("SELECT event, username, peer FROM auth_events ORDER BY event_id")
        return [(event, username, peer) for event, username, peer in rows]

    def count_tokens(self) -> int:
        return len(self.rows("SELECT FROM refresh_tokens"))


@pytest.fixture
def logins(database: Database) -> Access:
    """A database with one admin user: ada, an editor."""
    logins = Access(database)
    logins.run(
        "INSERT INTO admin_user (username, password_hash, role, create_time, update_time)"
        " VALUES ('ada', %(hash)s, 'editor', now(), now())",
        hash=HASH,
    )
    return logins


def at_once(count: int, act: Callable[[int], object]) -> list[object]:
    """Call `act` from many threads at the same moment; return what each returned or raised."""
    barrier = Barrier(count)

    def run(number: int) -> object:
        barrier.wait(TIMEOUT_S)
        try:
            return act(number)
        except Unauthenticated as refusal:
            return refusal

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


# --- who may log in ---------------------------------------------------------------------------------------------------


def test_hash_is_found_by_exact_name_of_an_enabled_admin_only(logins: Access) -> None:
    nobody = Credentials(admin_id=None, password_hash=None, highest_cost=0)
    assert logins.store.credentials("ada") == Credentials(admin_id=1, password_hash=HASH, highest_cost=0)
    assert [logins.store.credentials(name) for name in ("Ada", "ada ", "", "ada\0", "a" * 100_000)] == [nobody] * 5

    logins.run("UPDATE admin_user SET enabled = false")
    assert logins.store.credentials("ada") == nobody


def test_the_highest_cost_of_any_enabled_admin_is_told_to_every_login(logins: Access) -> None:
    logins.run("""
        INSERT INTO admin_user (username, password_hash, role, enabled, create_time, update_time) VALUES
        ('ann', '$2b$11$' || repeat('a', 53), 'viewer', true, now(), now()),
        ('bob', 'hmac-sha256:$2b$13$' || repeat('a', 53), 'viewer', true, now(), now()),
        ('eve', '$2b$16$' || repeat('a', 53), 'viewer', false, now(), now())
    """)

    assert {logins.store.credentials(name).highest_cost for name in ("ada", "ann", "eve", "nobody")} == {13}


def test_login_replaces_an_outdated_hash_and_changes_nothing_else(logins: Access) -> None:
    state = "SELECT username, role, enabled, token_epoch, update_time, revision FROM admin_user"
    before = logins.rows(state)

    logins.store.begin("ada", password_hash=HASH, new_hash="newer", refresh_token="t", expire_time=in_a_month())

    assert (logins.store.credentials("ada").password_hash, logins.rows(state)) == ("newer", before)


def test_login_returns_who_it_is_and_is_recorded(logins: Access) -> None:
    assert logins.log_in("token") == ADA
    assert logins.events() == [("login_succeeded", "ada", PEER)]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE admin_user SET password_hash = 'another'",
        "UPDATE admin_user SET enabled = false",
        "DELETE FROM admin_user",
    ],
)
def test_login_is_refused_if_the_admin_changed_during_the_password_check(logins: Access, change: LiteralString) -> None:
    logins.run(change)

    with pytest.raises(Unauthenticated, match=r"^these credentials are not valid$"):
        logins.log_in("token")
    assert (logins.count_tokens(), logins.events()) == (0, [])


# --- refreshing -------------------------------------------------------------------------------------------------------


def test_refresh_spends_the_token_and_returns_role_and_epoch_of_now(logins: Access) -> None:
    logins.log_in("first")
    logins.run("UPDATE admin_user SET role = 'viewer', token_epoch = 2")

    caller = logins.redeem("first", "second")

    assert caller == Caller(admin_id=1, username="ada", role=Role.VIEWER, token_epoch=2)
    assert logins.redeem("second", "third") == caller


def sessions_after(logins: Access, count: int) -> list[bool]:
    """Log in so often; return whether the session of each login has ended."""
    for number in range(count):
        logins.log_in(f"token {number}")
    return [logins.refuses(f"token {number}") for number in range(count)]


def test_of_too_many_sessions_the_oldest_ends_and_is_recorded(logins: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SESSIONS", 3)

    assert sessions_after(logins, 5) == [True, True, False, False, False]
    assert Counter(event for event, _, _ in logins.events())["session_displaced"] == 2


def test_twin_without_a_limit_no_session_ends(logins: Access) -> None:
    assert sessions_after(logins, 5) == [False] * 5


def test_reuse_of_a_spent_token_kills_only_its_family_and_is_recorded(logins: Access) -> None:
    logins.log_in("first")
    logins.log_in("other")
    logins.redeem("first", "second")
    logins.redeem("second", "third")

    assert logins.refuses("first")
    assert logins.refuses("first")
    assert logins.refuses("third")
    assert logins.redeem("other", "other's successor") == ADA
    assert logins.events()[2:] == [("refresh_reused", "ada", PEER)]


def test_of_32_racing_redeemers_one_wins_and_the_family_dies(logins: Access) -> None:
    logins.log_in("first")
    arrived_at = time.monotonic()

    outcomes = at_once(32, lambda number: (logins.exchange("first", f"second {number}", arrived_at=arrived_at), number))

    winners = [outcome for outcome in outcomes if isinstance(outcome, tuple)]
    assert len(winners) == 1
    assert logins.refuses(f"second {winners[0][1]}")
    assert logins.count_tokens() == 0
    assert logins.events() == [("login_succeeded", "ada", PEER), ("refresh_reused", "ada", PEER)]


def test_without_the_check_for_spent_tokens_every_racer_would_win(
    logins: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_EXCHANGE", module._EXCHANGE.replace("AND spent_time IS NULL", ""))
    logins.log_in("first")

    outcomes = at_once(32, lambda number: logins.redeem("first", f"second {number}"))

    assert outcomes == [ADA] * 32


# --- a lost response --------------------------------------------------------------------------------------------------


def test_an_exchange_may_be_repeated_once_and_gives_the_same_successor(logins: Access) -> None:
    logins.log_in("first")
    first = logins.exchange("first", "second", nonce=b"n1")

    assert logins.exchange("first", "never used", nonce=b"n2") == first
    assert logins.redeem("second", "third") == ADA
    assert [event for event, _, _ in logins.events()] == ["login_succeeded", "refresh_repeated"]


NO_REPETITIONS: dict[str, Callable[[Access], object]] = {
    "a second repetition": lambda logins: logins.redeem("first", "again"),
    "its successor was used": lambda logins: logins.redeem("second", "third"),
    "more than 10 s later": lambda logins: logins.run(
        "UPDATE refresh_tokens SET spent_time = spent_time - interval '10 s' WHERE spent_time IS NOT NULL"
    ),
    "from another address": lambda logins: logins.run("UPDATE refresh_tokens SET address = '192.0.2.1'"),
    "it arrived before the token was spent": lambda logins: logins.run(
        "UPDATE refresh_tokens SET spent_time = clock_timestamp() + interval '60 s' WHERE spent_time IS NOT NULL"
    ),
}


@pytest.mark.parametrize("change", NO_REPETITIONS.values(), ids=NO_REPETITIONS.keys())
def test_any_other_reuse_ends_the_login_and_is_recorded(logins: Access, change: Callable[[Access], object]) -> None:
    logins.log_in("first")
    logins.redeem("first", "second")
    change(logins)

    assert logins.refuses("first")
    assert logins.count_tokens() == 0
    assert logins.events()[-1] == ("refresh_reused", "ada", PEER)


def test_a_repetition_is_refused_once_the_admin_is_disabled(logins: Access) -> None:
    logins.log_in("first")
    logins.redeem("first", "second")
    logins.run("UPDATE admin_user SET enabled = false")

    assert logins.refuses("first")


def test_a_client_that_has_left_spends_nothing(logins: Access) -> None:
    logins.log_in("first")

    with pytest.raises(Unavailable):
        logins.exchange("first", "lost", is_awaited=lambda: False)

    assert logins.redeem("first", "second") == ADA


def test_only_the_newest_successor_has_a_nonce(logins: Access) -> None:
    logins.log_in("first")
    logins.redeem("first", "second")
    logins.redeem("second", "third")

    assert logins.rows("SELECT successor_nonce FROM refresh_tokens WHERE successor_nonce IS NOT NULL") == [(b"third",)]


def test_refused_tokens_leave_no_trace(logins: Access) -> None:
    logins.log_in("expired")
    logins.run("UPDATE refresh_tokens SET expire_time = clock_timestamp()")

    assert logins.refuses("expired")
    assert logins.refuses("unknown")
    assert logins.refuses("")
    assert logins.refuses("\0" * 1_000)
    assert (logins.count_tokens(), len(logins.events())) == (1, 1)


def test_disabled_admin_cannot_refresh(logins: Access) -> None:
    logins.log_in("first")
    logins.run("UPDATE admin_user SET enabled = false")

    assert logins.refuses("first")
    assert logins.count_tokens() == 1


def test_deleted_admin_leaves_no_tokens(logins: Access) -> None:
    logins.log_in("first")
    logins.run("DELETE FROM admin_user")

    assert logins.refuses("first")
    assert logins.count_tokens() == 0


# --- logging out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["first", "second"], ids=["spent", "latest"])
def test_logout_with_any_token_ends_that_login_alone(logins: Access, token: str) -> None:
    logins.log_in("first")
    logins.redeem("first", "second")
    logins.log_in("other")

    logins.store.revoke(token, peer=PEER)

    assert logins.refuses("second")
    assert logins.redeem("other", "other's successor") == ADA
    assert logins.events()[2:] == [("logged_out", "ada", PEER)]


def test_logout_of_an_unknown_token_does_nothing(logins: Access) -> None:
    logins.log_in("first")

    logins.store.revoke("unknown", peer=PEER)
    logins.store.revoke("", peer=PEER)

    assert (logins.count_tokens(), len(logins.events())) == (1, 1)


def wait_until_blocked(logins: Access, call: Future[None]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    while not logins.rows(waiting):
        assert not call.done()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def revoke_while_redeeming(logins: Access, revoke: Callable[[], None]) -> None:
    """Revoke while an exchange has inserted the successor and not yet committed."""
    token = {"token_hash": module._sha256("first")}
    successor = {"successor_hash": module._sha256("second"), "nonce": b"n", "address": ""}
    exchange = {**token, **successor, "expire_time": in_a_month(), "max_age": timedelta(days=90)}
    with ThreadPoolExecutor(1) as pool:
        with logins.database.write() as conn:
            module._lock_owner(conn, module._OWNER_OF_FAMILY, token)
            assert conn.execute(module._EXCHANGE, exchange).rowcount == 1
            call = pool.submit(revoke)
            wait_until_blocked(logins, call)
        call.result(TIMEOUT_S)


def test_logout_waits_for_a_racing_refresh_and_revokes_its_successor(logins: Access) -> None:
    logins.log_in("first")

    revoke_while_redeeming(logins, lambda: logins.store.revoke("first"))

    assert logins.count_tokens() == 0


def test_without_the_owner_lock_the_successor_would_survive(logins: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_OWNER_OF_FAMILY", module._OWNER_OF_FAMILY.replace("FOR NO KEY UPDATE", ""))
    logins.log_in("first")

    revoke_while_redeeming(logins, lambda: logins.store.revoke("first"))

    assert logins.count_tokens() == 1


def test_change_of_password_revokes_every_login_a_racing_refresh_included(logins: Access) -> None:
    logins.log_in("first")
    logins.log_in("other")

    def change_password() -> None:
        with logins.database.write() as conn:
            conn.execute("UPDATE admin_user SET password_hash = 'another', token_epoch = token_epoch + 1")
            revoke_logins(conn, ADA.admin_id)

    revoke_while_redeeming(logins, change_password)

    assert logins.count_tokens() == 0


# --- the first admin --------------------------------------------------------------------------------------------------


def test_of_16_starters_with_different_names_one_creates_the_first_admin(database: Database) -> None:
    logins = Access(database)
    assert not logins.store.has_admin()

    outcomes = at_once(16, lambda number: logins.store.ensure_first_admin(f"admin{number}", HASH))

    assert sorted(map(bool, outcomes)) == [False] * 15 + [True]
    first = f"admin{outcomes.index(True)}"
    assert logins.rows("SELECT username, password_hash, role, enabled FROM admin_user") == [
        (first, HASH, "admin", True)
    ]
    assert logins.events() == [("first_admin_created", first, "")]
    assert logins.store.has_admin()


def test_first_admin_is_not_created_next_to_a_disabled_one(logins: Access) -> None:
    logins.run("UPDATE admin_user SET enabled = false")

    assert not logins.store.ensure_first_admin("admin", HASH)
    assert logins.rows("SELECT username FROM admin_user") == [("ada",)]


@pytest.mark.parametrize("username", ["", "a" * 65, "a\0", "Admin", "\u0430dmin"])
def test_first_admin_has_a_name_that_people_can_tell_from_another(database: Database, username: str) -> None:
    with pytest.raises(InvalidArgument, match="username must be 1 to 64 characters of a-z 0-9"):
        LoginStore(database).ensure_first_admin(username, HASH)


# --- the record -------------------------------------------------------------------------------------------------------


def test_name_as_typed_is_cut_and_stripped_of_nul(logins: Access) -> None:
    logins.store.record_failure("\0" + "é" * 1_000_000, peer="p" * 1_000)

    assert logins.events() == [("login_failed", "é" * 128, "p" * 128)]


def test_prune_bounds_events_by_age_and_count(logins: Access) -> None:
    for number in range(5):
        logins.store.record_failure(f"n{number}")
    logins.run("UPDATE auth_events SET create_time = create_time - interval '2 days' WHERE username = 'n4'")

    assert logins.store.prune(event_age=timedelta(days=1), max_events=5) == Pruned(events=1, refresh_tokens=0)
    assert logins.store.prune(event_age=timedelta(days=1), max_events=3) == Pruned(events=1, refresh_tokens=0)
    assert [username for _, username, _ in logins.events()] == ["n1", "n2", "n3"]


def test_neither_logins_nor_reads_remove_the_trace_of_an_earlier_read(logins: Access) -> None:
    read = "INSERT INTO auth_events (event, username, subject_ids) VALUES ('user_read', 'anna', '{}')"
    for number in range(5):
        logins.run(read)
        logins.store.record_failure(f"n{number}")

    assert logins.store.prune(max_events=3).events == 2
    assert Counter(event for event, _, _ in logins.events()) == {"user_read": 5, "login_failed": 3}
    logins.run("UPDATE auth_events SET create_time = create_time - interval '91 days' WHERE event = 'user_read'")
    assert logins.store.prune(max_events=3).events == 5
    assert logins.store.prune() == Pruned(events=0, refresh_tokens=0)


def test_prune_deletes_expired_tokens_and_keeps_reusable_spent_ones(logins: Access) -> None:
    logins.log_in("old")
    logins.redeem("old", "old too")
    logins.run("UPDATE refresh_tokens SET expire_time = clock_timestamp()")
    logins.log_in("first")
    logins.redeem("first", "second")

    assert logins.store.prune() == Pruned(events=0, refresh_tokens=2)
    logins.redeem("second", "third")
    assert logins.refuses("first")
    assert logins.refuses("third")


def test_prune_bounds_the_spent_tokens_of_each_session(logins: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SPENT_TOKENS", 2)
    for session in ("a", "b"):
        logins.log_in(f"{session}0")
        for number in range(4):
            logins.redeem(f"{session}{number}", f"{session}{number + 1}")

    assert logins.store.prune().refresh_tokens == 4
    assert logins.refuses("a0")
    assert logins.redeem("a4", "a5") == ADA  # Which a token that was deleted does not end.
    assert logins.refuses("b2")
    assert logins.refuses("b4")  # Which a spent one does.


def test_prune_waits_for_nobody(logins: Access) -> None:
    logins.log_in("locked")
    logins.log_in("free")
    logins.run("UPDATE refresh_tokens SET expire_time = clock_timestamp()")

    with logins.database.write() as conn:
        locked = {"hash": module._sha256("locked")}
        conn.execute("SELECT FROM refresh_tokens WHERE token_hash = %(hash)s FOR UPDATE", locked)
        assert logins.store.prune() == Pruned(events=0, refresh_tokens=1)


def test_no_table_holds_a_refresh_token(logins: Access) -> None:
    canaries = [f"canary-{number}" for number in range(3)]
    logins.log_in(canaries[0])
    logins.exchange(canaries[0], canaries[1], nonce=b"1")
    logins.exchange(canaries[1], canaries[2], nonce=b"2")
    logins.store.revoke("canary-unknown")

    stored = str(logins.rows("SELECT t::text FROM refresh_tokens t UNION ALL SELECT e::text FROM auth_events e"))

    assert stored.count("\\\\x") == 6  # Three hashes, those of two successors, and a nonce.
    assert "canary" not in stored
    assert b"canary".hex() not in stored
