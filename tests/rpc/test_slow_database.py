"""While a database is slow, each call is served or refused in time, and reads, logins and refreshes are served."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import psycopg
import pytest

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.auth_service_pb2 import LoginRequest, RefreshTokenRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.auth.passwords import Passwords
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.store.postgres import database as database_module
from tests.support.clients import TIMEOUT_S, refusal_of
from tests.support.servers import StartServer, connect, token_for
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("B2", "F5")

EDITORS = 12
# A machine that runs other tests as well; without the mitigations, calls wait for as long as the lock is held.
WITHIN_S = 6.0
LOCK_HEAD = "SELECT FROM revision_head FOR UPDATE"


@contextmanager
def held(dsn: str, statement: str) -> Iterator[None]:
    """A session of somebody else that keeps what a statement locks."""
    with psycopg.connect(dsn, application_name="psql") as conn:
        conn.execute(statement.encode())
        yield
        conn.rollback()


def outcome(act: Callable[[], object]) -> tuple[str, float]:
    began_at = time.monotonic()
    try:
        act()
    except grpc.RpcError as error:
        return error.code().name, time.monotonic() - began_at
    return "OK", time.monotonic() - began_at


@contextmanager
def editing(admin: AdminServiceStub, outcomes: list[tuple[str, float]]) -> Iterator[None]:
    """Editors who make flags one after the other for the length of a block."""
    ending = threading.Event()

    def edit(number: int) -> None:
        for count in range(10_000):
            if ending.is_set():
                return
            flag = pb.CreateFlagRequest(flag=Flag(key=f"f-{number}-{count}"))
            outcomes.append(outcome(lambda flag=flag: admin.CreateFlag(flag, timeout=TIMEOUT_S)))  # type: ignore[misc]

    with ThreadPoolExecutor(EDITORS) as editors:
        for number in range(EDITORS):
            editors.submit(edit, number)
        try:
            yield
        finally:
            ending.set()


def under_a_lock(server: GatekeeperServer, dsn: str) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """What editors, and readers and logins, meet while somebody else locks the head row: two lists of outcomes."""
    token = token_for(dsn, Role.EDITOR)
    with psycopg.connect(dsn) as conn:
        conn.execute("UPDATE admin_user SET password_hash = %s", [Passwords(cost=10).hash("correct horse battery")])
    writes: list[tuple[str, float]] = []
    with connect(server, token=token) as channel, connect(server) as anonymous:
        admin, auth = AdminServiceStub(channel), AuthServiceStub(anonymous)
        login = LoginRequest(username="editor", password="correct horse battery")
        refresh = auth.Login(login, timeout=TIMEOUT_S).refresh_token
        with editing(admin, writes), held(dsn, LOCK_HEAD):
            time.sleep(0.5)  # The lock is waited for.
            others = [outcome(lambda: admin.ListFlags(pb.ListFlagsRequest(), timeout=TIMEOUT_S)) for _ in range(5)]
            others.append(outcome(lambda: auth.Login(login, timeout=TIMEOUT_S)))
            others.append(
                outcome(lambda: auth.RefreshToken(RefreshTokenRequest(refresh_token=refresh), timeout=TIMEOUT_S))
            )
            eventually(lambda: len(writes) > 3 * EDITORS, timeout_s=3.0)
    return writes, others


def test_under_a_foreign_lock_all_is_refused_or_served_in_time(start_server: StartServer, dsn: str) -> None:
    server = start_server()
    writes, others = under_a_lock(server, dsn)

    during = [each for each in writes if each[0] != "OK"]
    assert Counter(code for code, _ in during).keys() == {"RESOURCE_EXHAUSTED"}
    assert max(took_s for _, took_s in during) < WITHIN_S
    assert [code for code, _ in others] == ["OK"] * 7
    assert max(took_s for _, took_s in others) < WITHIN_S


def test_twin_without_a_bound_for_locks_no_write_is_answered(
    start_server: StartServer, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_LOCK_TIMEOUT_S", TIMEOUT_S)
    writes, _ = under_a_lock(start_server(), dsn)

    assert {code for code, _ in writes} == {"OK"}  # Before the lock, or after its end.
    assert max(took_s for _, took_s in writes) > 3.0


def test_a_write_refused_by_a_lock_says_so(admin: AdminServiceStub, dsn: str) -> None:
    with held(dsn, LOCK_HEAD):
        refusal = refusal_of(lambda: admin.CreateFlag(pb.CreateFlagRequest(flag=Flag(key="x")), timeout=TIMEOUT_S))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DATABASE_LOCKED")


def test_a_write_whose_caller_has_gone_is_not_made(admin: AdminServiceStub, dsn: str) -> None:
    with held(dsn, LOCK_HEAD):
        code, _ = outcome(lambda: admin.CreateFlag(pb.CreateFlagRequest(flag=Flag(key="x")), timeout=0.5))
    admin.CreateFlag(pb.CreateFlagRequest(flag=Flag(key="y")), timeout=TIMEOUT_S)
    with psycopg.connect(dsn) as conn:
        keys = [key for (key,) in conn.execute("SELECT key FROM feature_flags")]

    assert (code != "OK", keys) == (True, ["y"])
