"""The Python client: signed and bearer calls by the stubs, and answers that are kept until they change."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Struct

from gatekeeper_client.channels import SERVICE_CONFIG
from gatekeeper_client.channels import connect as connect_client
from gatekeeper_client.signing import ClientKey
from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1 import client_key_pb2
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import (
    BulkEvaluateFlagsRequest,
    EvaluateFlagsRequest,
    WatchFlagsRequest,
)
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_client.watching import CachedFlags
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from tests.support.clients import TIMEOUT_S
from tests.support.servers import StartServer, connect, token_for
from tests.support.waiting import eventually

ANNA = EvaluationContext(user_id="anna", attributes=Struct())
ANNA.attributes.update({f"attribute-{number}": number for number in range(20)})


def test_the_service_config_repeats_evaluations_and_reads_alone() -> None:
    (config,) = json.loads(SERVICE_CONFIG)["methodConfig"]
    methods = pb.DESCRIPTOR.services_by_name["AdminService"].methods
    reads = [method.name for method in methods if method.name.startswith(("Get", "List"))]

    assert config["name"] == [
        {"service": "gatekeeper.v1.EvaluationService"},
        *({"service": "gatekeeper.v1.AdminService", "method": name} for name in reads),
    ]


@contextmanager
def admin_of(server: GatekeeperServer, dsn: str) -> Iterator[AdminServiceStub]:
    with connect(server, token=token_for(dsn, Role.ADMIN)) as channel:
        yield AdminServiceStub(channel)


def create_key(admin: AdminServiceStub, kind: Any) -> ClientKey:
    key = client_key_pb2.ClientKey(name="till", tier=client_key_pb2.RATE_TIER_HIGH, type=kind)
    created = admin.CreateClientKey(pb.CreateClientKeyRequest(client_key=key), timeout=TIMEOUT_S)
    return ClientKey(created.client_key.key_id, created.secret)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (client_key_pb2.CLIENT_KEY_TYPE_BEARER, {"evaluation_access": "key"}),
        (client_key_pb2.CLIENT_KEY_TYPE_SIGNING, {"evaluation_access": "signed"}),
    ],
    ids=["bearer", "signing"],
)
def test_the_stubs_call_with_a_client_key(start_server: StartServer, dsn: str, kind: Any, settings: Any) -> None:
    server = start_server(**settings)
    with admin_of(server, dsn) as admin:
        key = create_key(admin, kind)
    with connect_client(f"127.0.0.1:{server.port}", key=key) as channel:
        stub = EvaluationServiceStub(channel)
        for _ in range(20):
            stub.EvaluateFlags(EvaluateFlagsRequest(context=ANNA), timeout=TIMEOUT_S)
        bulk = stub.BulkEvaluateFlags(iter([BulkEvaluateFlagsRequest(contexts=[ANNA])]), timeout=TIMEOUT_S)
        watch = stub.WatchFlags(WatchFlagsRequest(), timeout=TIMEOUT_S)

        assert len([*bulk]) == 2
        assert next(watch).revision >= 0
        watch.cancel()
    assert key.secret not in repr(key)


@pytest.mark.parametrize("access", ["key", "signed"])
def test_twin_a_client_without_the_key_is_refused(start_server: StartServer, access: str) -> None:
    server = start_server(evaluation_access=access)
    with connect_client(f"127.0.0.1:{server.port}") as channel, pytest.raises(grpc.RpcError) as refused:
        EvaluationServiceStub(channel).EvaluateFlags(EvaluateFlagsRequest(context=ANNA), timeout=TIMEOUT_S)

    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def set_default(admin: AdminServiceStub, value: bool) -> None:
    flag, mask = Flag(key="beta", default_value=value), FieldMask(paths=["default_value"])
    admin.UpdateFlag(pb.UpdateFlagRequest(flag=flag, update_mask=mask), timeout=TIMEOUT_S)


def test_answers_are_kept_until_they_change(
    server: GatekeeperServer, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[EvaluationContext] = []
    decide = Snapshot.decide

    def count(snapshot: Snapshot, selection: Any, context: Any) -> Any:
        asked.append(context)
        return decide(snapshot, selection, context)

    monkeypatch.setattr(Snapshot, "decide", count)
    with admin_of(server, dsn) as admin, connect_client(f"127.0.0.1:{server.port}") as channel:
        admin.CreateFlag(pb.CreateFlagRequest(flag=Flag(key="beta", enabled=True)), timeout=TIMEOUT_S)
        with CachedFlags(channel) as flags:
            assert eventually(lambda: flags.is_watching)
            assert flags.is_on("beta", ANNA) is False
            before = len(asked)
            assert [flags.is_on("beta", ANNA) for _ in range(50)] == [False] * 50
            assert 0 < len(asked) == before
            assert flags.is_on("gamma", ANNA) is None

            set_default(admin, value=True)

            assert eventually(lambda: flags.is_on("beta", ANNA) is True)


def test_nothing_comes_from_memory_while_the_watch_is_broken(start_server: StartServer, dsn: str) -> None:
    server = start_server(watch_max_age_s=0.3)
    with admin_of(server, dsn) as admin, connect_client(f"127.0.0.1:{server.port}") as channel:
        admin.CreateFlag(pb.CreateFlagRequest(flag=Flag(key="beta", enabled=True)), timeout=TIMEOUT_S)
        with CachedFlags(channel) as flags:
            assert eventually(lambda: flags.is_watching)
            assert eventually(lambda: not flags.is_watching)
            assert flags.is_on("beta", ANNA) is False
            set_default(admin, value=True)
            assert eventually(lambda: flags.is_watching and flags.is_on("beta", ANNA) is True)


def test_an_answer_older_than_a_change_is_not_kept(server: GatekeeperServer) -> None:
    with connect_client(f"127.0.0.1:{server.port}") as channel, CachedFlags(channel) as flags:
        assert eventually(lambda: flags.is_watching)
        flags._changed_at["beta"] = 9
        flags._keep((b"", "beta"), False, revision=8)
        flags._keep((b"", "alpha"), False, revision=8)

        assert [*flags._answers] == [(b"", "alpha")]
