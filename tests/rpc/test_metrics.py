"""`/metrics`: what Prometheus reads of a running server."""

from urllib.request import urlopen

import pytest

from gatekeeper.v1 import admin_service_pb2 as pb
from gatekeeper.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_grpc.server import GatekeeperServer, ListenError
from tests.conftest import StartServer
from tests.rpc.asking import created


def scraped(server: GatekeeperServer) -> dict[str, float]:
    """Read all samples, by name and labels."""
    with urlopen(f"http://127.0.0.1:{server.ops_port}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in samples}


def test_metrics_show_the_snapshot_that_is_served(server: GatekeeperServer, admin: AdminServiceStub) -> None:
    flag = created(admin)
    admin.AddTargets(pb.AddTargetsRequest(flag_key=flag.key, user_ids=["alice", "bob"]))

    samples = scraped(server)

    assert (samples["gatekeeper_revision"], samples["gatekeeper_flags"]) == (2, 1)
    assert (samples["gatekeeper_targets"], samples["gatekeeper_members"]) == (2, 0)
    assert samples["gatekeeper_snapshot_unconfirmed_seconds"] >= 0


def test_metrics_tell_that_the_role_could_rewrite_the_audit_log(server: GatekeeperServer) -> None:
    server.audit_watch.run()  # As it does every minute.

    assert scraped(server)["gatekeeper_audit_log_rewritable"] == 1


def test_metrics_count_the_calls_that_each_full_pool_turned_away(server: GatekeeperServer) -> None:
    assert scraped(server)['gatekeeper_refused_calls_total{pool="evaluation"}'] == 0


def test_an_address_of_metrics_that_is_taken_is_refused(start_server: StartServer) -> None:
    first = start_server()

    with pytest.raises(ListenError, match=f"127.0.0.1:{first.ops_port}"):
        start_server(ops_listen=f"127.0.0.1:{first.ops_port}")
