"""Instances with Redis and PostgreSQL: either announces, and an outage of Redis stops nothing."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, LiteralString

import pytest
from structlog.testing import capture_logs

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.store import mutations as mutations_module
from tests.support.clients import TIMEOUT_S, send
from tests.support.servers import KEYS, StartServer, connect, settings_for_tests, token_for
from tests.support.traces import live, user_with
from tests.support.valkey import Valkey, valkey
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("B3")

ANNA = EvaluateFlagsRequest(context=EvaluationContext(user_id="anna"))
NEVER_S = 60.0
# What is not seen within this time is not told by anybody: a bus takes milliseconds.
SOON_S = 1.0


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def redis(running: Valkey) -> Iterator[Valkey]:
    with running.client() as client:
        client.flushall()
    yield running
    if not running.answers():
        running.start_again()


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut PostgreSQL's announcements off: everything is written, nobody is notified."""
    silent: LiteralString = mutations_module._RECORD.replace(
        "SELECT pg_notify(%(channel)s, %(head_revision)s::text)", "SELECT 1"
    )
    assert "pg_notify" not in silent
    monkeypatch.setattr(mutations_module, "_RECORD", silent)


@pytest.fixture
def token(dsn: str) -> str:
    return token_for(dsn, Role.ADMIN)


@contextmanager
def admin_of(server: GatekeeperServer, token: str) -> Iterator[AdminServiceStub]:
    with connect(server, token=token) as channel:
        yield AdminServiceStub(channel)


def create(server: GatekeeperServer, token: str, key: str) -> int:
    with admin_of(server, token) as admin:
        request = pb.CreateFlagRequest(flag=Flag(key=key, enabled=True))
        revision: int = send(admin, "CreateFlag", request).revision
        return revision


def serves(server: GatekeeperServer, revision: int, *, within_s: float = TIMEOUT_S) -> bool:
    """Wait, without asking for a refresh, until a server serves a revision."""
    return eventually(lambda: server.cache.current().revision >= revision, timeout_s=within_s)


def told_by_redis_alone(start_server: StartServer, token: str, url: str | None) -> bool:
    """Write on one of two instances without PostgreSQL's announcements; return whether the other one shows it."""
    one, other = (start_server(REDIS_URL=url, refresh_interval_s=NEVER_S) for _ in range(2))
    time.sleep(0.3)  # The other one has looked, and listens.
    return serves(other, create(one, token, "told"), within_s=SOON_S)


@pytest.mark.usefixtures("deaf")
def test_a_change_is_announced_by_redis_when_postgresql_announces_nothing(
    start_server: StartServer, token: str, redis: Valkey
) -> None:
    assert told_by_redis_alone(start_server, token, redis.url)


@pytest.mark.usefixtures("deaf")
def test_twin_without_redis_it_does_not(start_server: StartServer, token: str) -> None:
    assert not told_by_redis_alone(start_server, token, None)


@pytest.mark.usefixtures("deaf")
def test_with_both_buses_gone_a_change_is_found_by_the_poll(
    start_server: StartServer, token: str, redis: Valkey
) -> None:
    one, other = (start_server(REDIS_URL=redis.url, refresh_interval_s=0.2) for _ in range(2))
    redis.kill()

    assert serves(other, create(one, token, "polled"))


@pytest.mark.parametrize("fault", ["killed", "hanging", "flushed"])
def test_evaluation_and_writes_survive_any_redis_fault(
    fault: str, start_server: StartServer, token: str, redis: Valkey
) -> None:
    with capture_logs() as logs, ExitStack() as stack:
        one, other = (start_server(REDIS_URL=redis.url) for _ in range(2))
        create(one, token, "before")
        if fault == "killed":
            redis.kill()
        elif fault == "hanging":
            stack.enter_context(redis.hanging())
        else:
            with redis.client() as client:
                client.flushall()
        with connect(other) as channel:
            evaluation = EvaluationServiceStub(channel)
            for number in range(20):
                revision = create(one, token, f"flag-{number}")
                assert serves(other, revision)
                assert not evaluation.EvaluateFlags(ANNA, timeout=TIMEOUT_S).stale
        if fault != "flushed":
            assert eventually(lambda: any(log["event"] == "redis_away" for log in logs))

    # A busy machine may make Redis seem to be away, whatever the fault: once an instance.
    assert sum(log["event"] == "redis_away" for log in logs) <= 2
    assert not [log for log in logs if log["event"] == "write_not_visible"]


def kept_in(redis: Valkey) -> bytes:
    """The stored snapshot of the only installation on a Redis; nothing before the first write."""
    with redis.client() as client:
        # Any: bytes, which the published types do not say.
        keys: Any = client.keys("*:snapshot")
        pieces: Any = client.lrange(keys[0], 0, -1) if keys else []
    return b"".join(pieces)


def starting_alone(server_settings: dict[str, object], dsn: str) -> GatekeeperServer:
    """An instance whose database is away; not started yet."""

    def away(_dsn: str) -> None:
        raise Unavailable("the database is away")

    return GatekeeperServer(settings_for_tests(**server_settings), dsn=dsn, keys=KEYS, prepare=away)


def test_without_database_and_file_a_start_finds_the_snapshot_in_redis(
    start_server: StartServer, token: str, dsn: str, redis: Valkey
) -> None:
    one = start_server(REDIS_URL=redis.url)
    revision = create(one, token, "kept")
    assert eventually(lambda: bool(kept_in(redis)))
    one.stop()

    alone = starting_alone({"REDIS_URL": redis.url}, dsn)
    alone.start()
    try:
        kept = alone.startup.last_known_good
        with connect(alone) as channel:
            answer = EvaluationServiceStub(channel).EvaluateFlags(ANNA, timeout=TIMEOUT_S)
    finally:
        alone.stop()

    assert kept
    assert (kept.storage, kept.header.revision) == ("redis", revision)
    assert (answer.stale, answer.revision, [*answer.flags]) == (True, revision, ["kept"])


def test_a_start_takes_the_newer_one_of_file_and_redis(
    start_server: StartServer, token: str, dsn: str, redis: Valkey, tmp_path: Path
) -> None:
    file = tmp_path / "snapshot"
    one = start_server(snapshot_file=file)
    create(one, token, "older")
    one.stop()
    two = start_server(REDIS_URL=redis.url)
    revision = create(two, token, "newer")
    two.stop()

    alone = starting_alone({"REDIS_URL": redis.url, "snapshot_file": file}, dsn)
    alone.start()
    try:
        kept = alone.startup.last_known_good
    finally:
        alone.stop()

    assert kept
    assert (kept.storage, kept.header.revision) == ("redis", revision)


def test_a_start_with_redis_hanging_and_no_database_answers_from_the_file(
    start_server: StartServer, token: str, dsn: str, redis: Valkey, tmp_path: Path
) -> None:
    file = tmp_path / "snapshot"
    one = start_server(snapshot_file=file)
    revision = create(one, token, "kept")
    one.stop()

    with redis.hanging():
        alone = starting_alone({"REDIS_URL": redis.url, "snapshot_file": file}, dsn)
        starting = threading.Thread(target=alone.start)
        starting.start()
        starting.join(TIMEOUT_S)
        served = alone.cache.current().revision
        alone.stop()

    assert served == revision


def kept_traces(file: Path, redis: Valkey, text: str) -> list[str]:
    """Where a kept snapshot, opened with the keys, tells of a person."""
    found = {"file": file.read_bytes(), "redis": kept_in(redis)}
    return [storage for storage, kept in found.items() if text.encode() in b"".join(_opened(kept))]


def _opened(kept: bytes) -> Iterator[bytes]:
    at = 22
    while at < len(kept) - 32:
        end = at + 4 + int.from_bytes(kept[at : at + 4], "big")
        yield KEYS.data.open(kept[at + 4 : end])
        at = end


def test_of_an_erased_person_nothing_stays_in_what_is_kept(
    start_server: StartServer, token: str, redis: Valkey, tmp_path: Path
) -> None:
    file = tmp_path / "snapshot"
    server = start_server(REDIS_URL=redis.url, snapshot_file=file)
    with admin_of(server, token) as admin:
        live(admin, "c4nary")
        update = pb.UpdateUserRequest(user=user_with("c4nary", plan="plan-of-c4nary"))
        update.update_mask.paths.append("attributes.plan")
        send(admin, "UpdateUser", update)
        assert eventually(lambda: kept_traces(file, redis, "plan-of-c4nary") == ["file", "redis"])
        send(admin, "EraseUser", pb.EraseUserRequest(user_id="c4nary"))

        assert eventually(lambda: kept_traces(file, redis, "plan-of-c4nary") == [])
