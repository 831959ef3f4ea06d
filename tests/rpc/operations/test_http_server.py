"""`/metrics`, `/livez` and `/readyz` of a running server."""

import json
import threading
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_grpc.interceptors.chain import Stages
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.operations.readiness import NO_DATABASE, SHUTTING_DOWN
from gatekeeper_grpc.transport.listener import ListenError
from tests.support.clients import TIMEOUT_S, created
from tests.support.outages import outage
from tests.support.servers import StartServer
from tests.support.waiting import eventually


def scraped(server: GatekeeperServer) -> dict[str, float]:
    """Read all samples, by name and labels."""
    with urlopen(f"http://127.0.0.1:{server.ops_port}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in samples}


def asked(server: GatekeeperServer, path: str) -> tuple[int, str]:
    """Read a page: status and body."""
    try:
        with urlopen(f"http://127.0.0.1:{server.ops_port}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except HTTPError as refused:
        return refused.code, refused.read().decode()


def readiness(server: GatekeeperServer) -> tuple[int, dict[str, Any]]:
    status, body = asked(server, "/readyz")
    return status, json.loads(body)


def test_metrics_show_the_snapshot_that_is_served(server: GatekeeperServer, admin: AdminServiceStub) -> None:
    flag = created(admin)
    admin.AddTargets(pb.AddTargetsRequest(flag_key=flag.key, user_ids=["alice", "bob"], value=False))

    samples = scraped(server)

    assert (samples["gatekeeper_snapshot_revision"], samples["gatekeeper_snapshot_flags"]) == (2, 1)
    assert (samples["gatekeeper_snapshot_targets"], samples["gatekeeper_snapshot_members"]) == (2, 0)
    assert samples["gatekeeper_snapshot_unconfirmed_seconds"] >= 0


def test_metrics_tell_that_the_role_could_rewrite_the_audit_log(server: GatekeeperServer) -> None:
    server.audit_head.run()  # As it does every minute.

    assert scraped(server)["gatekeeper_audit_log_rewritable"] == 1


def test_metrics_count_the_calls_that_each_full_pool_turned_away(server: GatekeeperServer) -> None:
    assert scraped(server)['gatekeeper_refused_calls_total{pool="evaluation",reason="full"}'] == 0


def test_metrics_tell_how_the_process_is_doing(server: GatekeeperServer) -> None:
    samples = scraped(server)

    assert (samples["gatekeeper_ready"], samples["gatekeeper_stale"], samples["gatekeeper_database_reachable"]) == (
        1,
        0,
        1,
    )
    assert min(samples["gatekeeper_threads"], samples["process_open_fds"], samples["process_resident_memory_bytes"]) > 1


def test_a_server_with_a_snapshot_is_ready(server: GatekeeperServer) -> None:
    status, ready = readiness(server)

    assert status == 200
    assert (ready["ready"], ready["stale"], ready["revision"], ready["database"]) == (True, False, 0, True)
    assert ready["reasons"] == []


def test_a_database_outage_is_reported_and_evaluation_stays_ready(
    start_server: StartServer, dsn: str, postgres: str
) -> None:
    server = start_server(refresh_interval_s=0.05)
    with outage(postgres, dsn):
        assert eventually(lambda: not readiness(server)[1]["database"])
        status, ready = readiness(server)
        assert (status, ready["ready"]) == (200, True)
        assert ready["reasons"] == [NO_DATABASE]
    assert eventually(lambda: readiness(server)[1]["reasons"] == [])


def test_a_snapshot_older_than_allowed_is_not_ready(start_server: StartServer, dsn: str, postgres: str) -> None:
    server = start_server(refresh_interval_s=0.05, stale_after_s=0.2, ready_max_staleness_s=0.2)
    with outage(postgres, dsn):
        assert eventually(lambda: readiness(server)[0] == 503)
        assert readiness(server)[1]["stale"]
    assert eventually(lambda: readiness(server)[0] == 200)


def test_draining_is_not_ready(server: GatekeeperServer) -> None:
    server.metrics.drain()

    status, ready = readiness(server)
    assert (status, ready["ready"], ready["reasons"]) == (503, False, [SHUTTING_DOWN])


def test_liveness_fails_only_while_the_serving_thread_hangs(
    server: GatekeeperServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    alive = asked(server, "/livez")
    monkeypatch.setattr(Stages, "intercept_service", lambda *_: over.wait(TIMEOUT_S) and None)

    hung = asked(server, "/livez")
    over.set()

    assert alive == (200, "alive\n")
    assert hung == (
        503,
        "hung: restart the process; docs/maintaining.md says how to find out first what it waits for\n",
    )
    assert eventually(lambda: asked(server, "/livez")[0] == 200)


def test_an_address_of_metrics_that_is_taken_is_refused(start_server: StartServer) -> None:
    first = start_server()

    with pytest.raises(ListenError, match=f"127.0.0.1:{first.ops_port}"):
        start_server(ops_listen=f"127.0.0.1:{first.ops_port}")
