"""Everything that an operator does with a database, to see that it works."""

from pathlib import Path

import grpc

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.auth_service_pb2 import LoginRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from tests.support.processes import KEYS, TIMEOUT_S, connect, run, serving
from tests.support.servers import Bearer

ADMIN_PASSWORD = "correct horse battery"


def works(folder: Path, url: str, *, owner: str = "", **environment: str) -> None:
    """Migrate as the owner, serve, change, read and verify: everything that an operator sees of a database."""
    variables = {**KEYS, "GATEKEEPER_ADMIN_PASSWORD": ADMIN_PASSWORD, "DATABASE_URL": url, **environment}
    as_owner = {**variables, "GATEKEEPER_MIGRATION_DATABASE_URL": owner or url}
    succeed("migrate", "up", folder=folder, **as_owner)
    with serving(folder, **variables) as gatekeeper, connect(gatekeeper.port) as channel:
        token = AuthServiceStub(channel).Login(
            LoginRequest(username="admin", password=ADMIN_PASSWORD), timeout=TIMEOUT_S
        )
        admin = AdminServiceStub(grpc.intercept_channel(channel, Bearer(token.access_token)))
        made = admin.CreateFlag(
            pb.CreateFlagRequest(flag=Flag(key="new", description="größe 1\\2", enabled=True)), timeout=TIMEOUT_S
        ).flag
        listed = admin.ListFlags(pb.ListFlagsRequest(), timeout=TIMEOUT_S).flags
        entries = admin.ListAuditEntries(pb.ListAuditEntriesRequest(), timeout=TIMEOUT_S).audit_entries
        assert list(listed) == [made]
        assert abs(made.create_time.seconds - entries[0].create_time.seconds) < TIMEOUT_S
    succeed("audit", "verify", folder=folder, **variables)


def succeed(*command: str, folder: Path, **variables: str) -> None:
    """Run a command, which must succeed."""
    code, printed, complaints = run(*command, data_dir=folder, **variables)
    assert code == 0, printed + complaints
