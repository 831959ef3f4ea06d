"""Quotas of an installation, as a client meets them."""

import grpc

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.domain.caller import Role
from tests.support.clients import Refusal, refusal_of, send
from tests.support.servers import StartServer, connect, token_for


def test_a_flag_above_the_quota_is_refused_and_not_written(start_server: StartServer, dsn: str) -> None:
    def create(key: str) -> object:
        return send(admin, "CreateFlag", pb.CreateFlagRequest(flag=Flag(key=key)))

    with connect(start_server(max_flags=2), token=token_for(dsn, Role.EDITOR)) as channel:
        admin = AdminServiceStub(channel)
        create("first")
        create("second")
        refusal = refusal_of(lambda: create("third"))
        keys = [flag.key for flag in admin.ListFlags(pb.ListFlagsRequest()).flags]

    quota = {"quota": "flags", "limit": "2"}
    assert refusal == Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", quota)
    assert keys == ["first", "second"]
