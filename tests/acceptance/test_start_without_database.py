"""A start without its database answers from the last-known-good snapshot, says so, and recovers by itself."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, LiteralString
from urllib.request import urlopen

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gatekeeper_client.v1.admin_service_pb2 import (
    CreateApiTokenRequest,
    CreateClientKeyRequest,
    CreateFlagRequest,
    ListFlagsRequest,
)
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.admin_user_pb2 import ROLE_EDITOR
from gatekeeper_client.v1.api_token_pb2 import ApiToken
from gatekeeper_client.v1.auth_service_pb2 import LoginRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_client.v1.client_key_pb2 import CLIENT_KEY_TYPE_BEARER, RATE_TIER_STANDARD, ClientKey
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest, EvaluateFlagsResponse
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.embedded.home import Home
from gatekeeper_grpc.operations.health import ADMIN, EVALUATION
from tests.support.operators import in_s
from tests.support.processes import KEYS, TIMEOUT_S, Gatekeeper, run, serving, start, stop
from tests.support.replication import Node, running_node
from tests.support.servers import Bearer
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("B4")

PASSWORD = "a-long-password"
# Longer than a start waits with a kept snapshot.
HELD_BACK_S = 8.0
ANNA = EvaluationContext(user_id="anna")
# On a busy machine, a database that is there takes longer than a start waits: this one waits for it.
PATIENT = """
from gatekeeper_grpc.cli.main import main
from gatekeeper_grpc.lifecycle import server
from gatekeeper_grpc.lifecycle.startup import StartupTimeouts
server.DEFAULT_TIMEOUTS = StartupTimeouts(unreachable_s=0.4, silent_s=60.0, loading_s=60.0)
main()
"""


@pytest.fixture(scope="module")
def prepared() -> Iterator[Node]:
    """A database of its own process, which has the schema."""
    with running_node() as node:
        yield node


@pytest.fixture
def node(prepared: Node) -> Iterator[Node]:
    """The database, empty but for the schema, and running again after the test."""
    prepared.run("DELETE FROM schema_migrations WHERE version > 1000")
    yield prepared
    if not prepared.answers():
        prepared.start()


def settings(node: Node, **others: str) -> dict[str, str]:
    return {**KEYS, "DATABASE_URL": node.dsn, "GATEKEEPER_ADMIN_PASSWORD": PASSWORD, **others}


@contextmanager
def admin_of(gatekeeper: Gatekeeper) -> Iterator[AdminServiceStub]:
    with gatekeeper.channel() as channel:
        login = LoginRequest(username="admin", password=PASSWORD)
        issued = AuthServiceStub(channel).Login(login, timeout=TIMEOUT_S)
        yield AdminServiceStub(grpc.intercept_channel(channel, Bearer(issued.access_token)))


def create(gatekeeper: Gatekeeper, key: str) -> int:
    with admin_of(gatekeeper) as admin:
        return admin.CreateFlag(CreateFlagRequest(flag=Flag(key=key, enabled=True)), timeout=TIMEOUT_S).revision


def answer(gatekeeper: Gatekeeper) -> EvaluateFlagsResponse:
    with gatekeeper.channel() as channel:
        return EvaluationServiceStub(channel).EvaluateFlags(EvaluateFlagsRequest(context=ANNA), timeout=TIMEOUT_S)


def health(gatekeeper: Gatekeeper, service: str) -> str:
    with grpc.insecure_channel(f"127.0.0.1:{gatekeeper.health_port}") as channel:
        found = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(found.status))


def readiness(gatekeeper: Gatekeeper) -> dict[str, Any]:
    with urlopen(f"http://127.0.0.1:{gatekeeper.ops_port}/readyz", timeout=TIMEOUT_S) as response:
        told: dict[str, Any] = json.load(response)
    return told


def serve_once(node: Node, data_dir: Path, key: str) -> int:
    """Let an instance make a flag, and end; returns the revision that it kept."""
    with serving(data_dir, **settings(node)) as gatekeeper:
        return create(gatekeeper, key)


def credentials(gatekeeper: Gatekeeper) -> tuple[str, str]:
    """The secrets of a new API token and of a new bearer key."""
    token = ApiToken(name="deploy", role=ROLE_EDITOR, expire_time=in_s(3_600))
    key = ClientKey(name="shop", type=CLIENT_KEY_TYPE_BEARER, tier=RATE_TIER_STANDARD)
    with admin_of(gatekeeper) as admin:
        return (
            admin.CreateApiToken(CreateApiTokenRequest(api_token=token), timeout=TIMEOUT_S).secret,
            admin.CreateClientKey(CreateClientKeyRequest(client_key=key), timeout=TIMEOUT_S).secret,
        )


def codes(gatekeeper: Gatekeeper, *, token: str, key: str) -> tuple[grpc.StatusCode, grpc.StatusCode]:
    """How an admin call with a token ends, and an evaluation with a key."""
    with gatekeeper.channel() as channel:
        admin = AdminServiceStub(grpc.intercept_channel(channel, Bearer(token)))
        evaluation = EvaluationServiceStub(grpc.intercept_channel(channel, Bearer(key)))
        listed = admin.ListFlags.future(ListFlagsRequest(), timeout=TIMEOUT_S)
        evaluated = evaluation.EvaluateFlags.future(EvaluateFlagsRequest(context=ANNA), timeout=TIMEOUT_S)
        return listed.code(), evaluated.code()


def test_credentials_that_are_not_loaded_yet_are_unavailable_not_invalid(node: Node, tmp_path: Path) -> None:
    by_key = settings(node, GATEKEEPER_EVALUATION_ACCESS="key")
    with serving(tmp_path, **by_key) as gatekeeper:
        token, key = credentials(gatekeeper)
    node.kill()
    with serving(tmp_path, **by_key) as gatekeeper:
        valid = codes(gatekeeper, token=token, key=key)
        malformed = codes(gatekeeper, token=f"{token}!", key=f"{key}!")
        node.start()
        back = eventually(lambda: codes(gatekeeper, token=token, key=key) == (grpc.StatusCode.OK,) * 2)

    assert valid == (grpc.StatusCode.UNAVAILABLE,) * 2
    assert malformed == (grpc.StatusCode.UNAUTHENTICATED,) * 2
    assert back


@pytest.mark.parametrize("fault", ["stopped", "hanging"])
def test_it_serves_the_last_known_good_snapshot_until_the_database_is_back(
    fault: str, node: Node, tmp_path: Path
) -> None:
    revision = serve_once(node, tmp_path, f"kept-{fault}")
    if fault == "stopped":
        node.kill()
    with (
        node.hanging() if fault == "hanging" else nullcontext(),
        serving(tmp_path, **settings(node)) as gatekeeper,
    ):
        said = gatekeeper.logged("serving_last_known_good")
        stale = answer(gatekeeper)
        healths = [health(gatekeeper, service) for service in ("", EVALUATION, ADMIN)]
        told = readiness(gatekeeper)
        with pytest.raises(grpc.RpcError) as refused:
            create(gatekeeper, "while-away")
        if fault == "stopped":
            node.start()
        else:
            for pid in node.pids():
                os.kill(pid, signal.SIGCONT)
        gatekeeper.logged("database_opened")
        fresh = eventually(lambda: not answer(gatekeeper).stale)
        ready = eventually(lambda: health(gatekeeper, ADMIN) == "SERVING")
        written = create(gatekeeper, f"after-{fault}")
        told_after = readiness(gatekeeper)

    assert (said["storage"], said["revision"]) == ("file", revision)
    assert (stale.stale, stale.revision, f"kept-{fault}" in stale.flags) == (True, revision, True)
    assert healths == ["SERVING", "SERVING", "NOT_SERVING"]
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert (fresh, ready, written) == (True, True, revision + 1)
    assert (told["ready"], told["stale"], told["database"], told["unconfirmed_s"]) == (True, True, False, None)
    assert any("last-known-good snapshot (file), confirmed at" in reason for reason in told["reasons"])
    assert (told_after["ready"], told_after["stale"], told_after["reasons"]) == (True, False, [])


def test_twin_without_a_kept_snapshot_a_start_without_database_is_refused(node: Node, tmp_path: Path) -> None:
    serve_once(node, tmp_path, "twin")
    (tmp_path / "snapshot").unlink()
    node.kill()

    code, _, complaints = run("serve", data_dir=tmp_path, **settings(node))

    assert code == 1
    assert "gatekeeper: PostgreSQL at 127.0.0.1 cannot be reached" in complaints


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param("corrupt", "damaged", id="corrupt"),
        pytest.param("foreign", "GATEKEEPER_DATA_KEYS", id="of another installation"),
    ],
)
def test_an_unusable_file_is_refused_with_a_clear_line_and_replaced(
    spoil: str, words: str, node: Node, tmp_path: Path
) -> None:
    serve_once(node, tmp_path, f"spoilt-{spoil}")
    kept = tmp_path / "snapshot"
    keys = {}
    if spoil == "corrupt":
        kept.write_bytes(kept.read_bytes()[:-50])
    else:
        keys = {"GATEKEEPER_DATA_KEYS": "other:" + "e" * 32}
    node.kill()

    code, _, complaints = run("serve", data_dir=tmp_path, **settings(node, **keys))
    node.start()
    with serving(tmp_path, **settings(node, **keys)) as gatekeeper:
        assert not answer(gatekeeper).stale
        gatekeeper.logged("last_known_good_replaced")
    node.kill()
    with serving(tmp_path, **settings(node, **keys)) as gatekeeper:
        assert answer(gatekeeper).stale

    assert code == 1
    refusals = [line for line in complaints.splitlines() if "last_known_good_refused" in line]
    assert len(refusals) == 1
    assert words in refusals[0]


SCHEMA_OF_LATER: LiteralString = """
    INSERT INTO schema_migrations (version, name, checksum, state, applied_time)
    SELECT 1001, 'of_a_later_release', checksum, state, applied_time FROM schema_migrations WHERE version = 1
"""


def test_it_never_serves_from_a_database_with_another_schema(node: Node, tmp_path: Path) -> None:
    revision = serve_once(node, tmp_path, "unfit")
    node.run(SCHEMA_OF_LATER)
    node.kill()
    with serving(tmp_path, **settings(node)) as gatekeeper:
        gatekeeper.logged("serving_last_known_good")
        node.start()
        refused = gatekeeper.logged("database_refused")
        assert "newer than this Gatekeeper" in refused["error"]
        assert (answer(gatekeeper).stale, answer(gatekeeper).revision) == (True, revision)
        assert health(gatekeeper, ADMIN) == "NOT_SERVING"
        assert any("newer than this Gatekeeper" in reason for reason in readiness(gatekeeper)["reasons"])
        node.run("DELETE FROM schema_migrations WHERE version > 1000")
        gatekeeper.logged("database_opened")
        assert eventually(lambda: not answer(gatekeeper).stale)


def test_a_snapshot_of_another_database_has_no_effect(node: Node, tmp_path: Path) -> None:
    with running_node() as other:
        serve_once(other, tmp_path, "of-another")
        for number in range(3):
            serve_once(other, tmp_path, f"more-{number}")
    with serving(tmp_path, program=("-c", PATIENT), **settings(node)) as gatekeeper:
        before = answer(gatekeeper)
        written = create(gatekeeper, "poisoned")

    assert "of-another" not in before.flags
    assert (before.stale, written) == (False, before.revision + 1)
    assert written < 1_000_000_000


def test_a_database_that_is_there_is_never_passed_over_for_an_older_answer(node: Node, tmp_path: Path) -> None:
    serve_once(node, tmp_path / "one", "old")
    revision = serve_once(node, tmp_path / "two", "new")
    with serving(tmp_path / "one", program=("-c", PATIENT), **settings(node)) as gatekeeper:
        found = answer(gatekeeper)

    assert (found.stale, found.revision) == (False, revision)


# As if there were a million targets, but without a million targets.
_SLOW_TARGETS = """
    ALTER TABLE targeted_users RENAME TO stored_targets;
    CREATE VIEW targeted_users AS SELECT * FROM stored_targets WHERE (SELECT pg_sleep(3_600)) IS NOT NULL
"""


def test_an_embedded_start_that_loads_for_long_answers_from_what_it_kept(data_dir: Path) -> None:
    with serving(data_dir) as gatekeeper, psycopg.connect(gatekeeper.dsn) as conn:
        conn.execute(_SLOW_TARGETS)

    with serving(data_dir, "--demo") as gatekeeper, gatekeeper.channel() as channel:
        request = EvaluateFlagsRequest(context=ANNA, flag_keys=["new_checkout"])
        answer = EvaluationServiceStub(channel).EvaluateFlags(request, timeout=TIMEOUT_S)

        assert gatekeeper.logged("serving_last_known_good")
        assert (answer.revision, answer.stale) == (1, True)


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_kept_snapshot_is_served_before_the_embedded_database_runs(*, is_kept: bool, data_dir: Path) -> None:
    """Twin: without a kept snapshot, the start waits for the database."""
    if not is_kept:
        (data_dir / "snapshot").unlink()
    # As if the database of a killed server had not ended yet.
    last_one = Home(data_dir).lock_cluster(timeout_s=TIMEOUT_S)
    with start("serve", data_dir=data_dir) as process:
        try:
            if not is_kept:
                threading.Timer(HELD_BACK_S, last_one.close).start()
            gatekeeper = Gatekeeper(process, data_dir)
            was_running = '"embedded_postgres_started"' in gatekeeper.log.text()
            before = answer(gatekeeper)
            last_one.close()
            gatekeeper.logged("embedded_postgres_started")
            is_fresh = eventually(lambda: not answer(gatekeeper).stale)
        finally:
            stop(process)

    assert (before.revision, before.stale, was_running) == (1, is_kept, not is_kept)
    assert is_fresh
