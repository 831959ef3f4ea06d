"""The stack of docker-compose.yml: valid to Compose's own reader, and run by hand, because no engine is to be had.

What the file says about ports, secrets and order: tests/unit/test_deploy_files.py.
"""

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import psycopg
import pytest
import redis
import yaml

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.auth_service_pb2 import LoginRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from tests.deploy.compose import FILE, Machine, loaded, machine
from tests.deploy.prometheus import Prometheus
from tests.deploy.queries import GRAFANA
from tests.support.processes import TIMEOUT_S, connect
from tests.support.servers import Bearer
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(600)

SERVICES = loaded()["services"]
INSTANCES = ("gatekeeper-1", "gatekeeper-2")


def test_twin_a_misspelt_field_is_found(tmp_path: Path) -> None:
    odd = tmp_path / "docker-compose.yml"
    odd.write_text(FILE.read_text().replace("mem_limit:", "memory_limit:", 1))

    with pytest.raises(subprocess.CalledProcessError):
        loaded(odd)


def test_every_service_has_limits_and_keeps_its_port_on_loopback() -> None:
    assert [name for name, service in SERVICES.items() if not {"mem_limit", "cpus"} <= service.keys()] == []
    assert {port["host_ip"] for service in SERVICES.values() for port in service.get("ports", [])} == {"127.0.0.1"}


def test_grafana_is_given_the_dashboards_and_the_prometheus_of_the_stack() -> None:
    mounted = {volume["target"]: volume["source"] for volume in SERVICES["grafana"]["volumes"]}
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/gatekeeper.yml").read_text())["providers"]

    assert mounted["/etc/grafana/provisioning"] == str(GRAFANA / "provisioning")
    assert mounted[provider["options"]["path"]] == str(GRAFANA / "dashboards")
    assert source["url"] == "http://prometheus:9090"
    assert "--web.listen-address" not in " ".join(SERVICES["prometheus"]["command"])  # 9090 is its default.


@pytest.fixture(scope="module")
def prepared() -> Iterator[Machine]:
    """A machine on which all that the instances need runs, but for their rights in the database."""
    # Not below pytest's own folder: the account that runs PostgreSQL could not enter it.
    with (
        tempfile.TemporaryDirectory(prefix="gatekeeper-compose-", ignore_cleanup_errors=True) as folder,
        machine(Path(folder)) as prepared,
    ):
        for name in ("postgres", "replica", "valkey"):
            prepared.start(name)
        assert prepared.run("migrate") == 0, prepared.log("migrate")
        yield prepared


@pytest.fixture(scope="module")
def refused(prepared: Machine) -> str:
    """What an instance says that starts without the rights."""
    assert prepared.run(INSTANCES[0]) != 0
    return prepared.log(INSTANCES[0])


@pytest.fixture(scope="module")
def stack(prepared: Machine, refused: str) -> Machine:
    """The whole stack."""
    assert prepared.run("grants") == 0, prepared.log("grants")
    for name in (*INSTANCES, "prometheus"):
        prepared.start(name)
    return prepared


@pytest.fixture(scope="module")
def asked(stack: Machine) -> Prometheus:
    """The Prometheus of the stack."""
    return Prometheus(stack.ports["prometheus"])


@pytest.fixture(scope="module")
def channels(stack: Machine) -> Iterator[list[grpc.Channel]]:
    channels = [connect(stack.grpc_port(name)) for name in INSTANCES]
    yield channels
    for channel in channels:
        channel.close()


def found_in(machine: Machine, name: str, query: str) -> list[tuple[object, ...]]:
    """What one PostgreSQL of the stack answers its owner."""
    password, port = machine.secret("owner_password"), machine.ports[name]
    with psycopg.connect(f"postgresql://gatekeeper_owner:{password}@127.0.0.1:{port}/gatekeeper") as conn:
        return conn.execute(query.encode()).fetchall()


def test_twin_an_instance_without_its_grants_does_not_serve(refused: str) -> None:
    assert "permission denied" in refused


def test_a_change_on_one_instance_is_evaluated_on_both(stack: Machine, channels: list[grpc.Channel]) -> None:
    one, _ = channels
    login = LoginRequest(username="admin", password=stack.secret("admin_password"))
    token = AuthServiceStub(one).Login(login, timeout=TIMEOUT_S).access_token
    admin = AdminServiceStub(grpc.intercept_channel(one, Bearer(token)))
    request = pb.CreateFlagRequest(flag=Flag(key="checkout", enabled=True, default_value=True))
    created = admin.CreateFlag(request, timeout=TIMEOUT_S)
    alice = EvaluateFlagsRequest(context=EvaluationContext(user_id="alice"), min_revision=created.revision)

    answers = [EvaluationServiceStub(each).EvaluateFlags(alice, timeout=TIMEOUT_S).flags for each in channels]

    assert [dict(flags) for flags in answers] == [{"checkout": True}] * 2


def test_the_replica_follows_the_primary(stack: Machine) -> None:
    revision = found_in(stack, "postgres", "SELECT revision FROM revision_head")

    assert found_in(stack, "postgres", "SELECT usename, state FROM pg_stat_replication") == [
        ("gatekeeper_replica", "streaming")
    ]
    assert eventually(lambda: found_in(stack, "replica", "SELECT revision FROM revision_head") == revision)
    assert found_in(stack, "replica", "SELECT pg_is_in_recovery()") == [(True,)]


def test_valkey_asks_for_its_password(stack: Machine) -> None:
    with redis.Redis(port=stack.ports["valkey"]) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()


def test_prometheus_reaches_both_and_no_alert_fires(asked: Prometheus) -> None:
    assert eventually(lambda: asked.values('sum(up{job="gatekeeper"})') == [2])
    assert eventually(lambda: asked.values("sum(gatekeeper_workers_up)") == [4])
    assert asked.values('ALERTS{alertstate="firing"}') == []
    assert {each["health"] for group in asked.ask("rules")["groups"] for each in group["rules"]} <= {"ok", "unknown"}


def test_instances_serve_with_a_role_that_cannot_rewrite_the_log(asked: Prometheus) -> None:
    assert eventually(lambda: asked.values("gatekeeper_audit_log_rewritable") == [0] * 4)


def test_instances_keep_their_snapshot_in_valkey(asked: Prometheus) -> None:
    assert eventually(lambda: asked.values('gatekeeper_snapshot_storage_writable{storage="redis"}') == [1] * 4)
